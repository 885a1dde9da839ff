"""Copy parts of a video into a film without encoding: from a keyframe on, with all quality and in no time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from typing import Any

from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.packet import Packet

from sidelight.export.cutting import Written, open_decoder
from sidelight.export.source import Cut
from sidelight.video.damage import VideoError
from sidelight.video.opening import open_video

_SOUND_BEFORE = 1.0
"""Seconds before the keyframe at which reading begins, because sound may lie before the frames of its time."""


class CopyWriter:
    """Copies cuts of one source, one after the other, into an open file.

    Args:
        container: opened for writing.
        add_frames: called with the number of frames that were written since its last call.
    """

    def __init__(self, container: OutputContainer, add_frames: Callable[[int], object] = lambda frames: None) -> None:
        self._container, self._add_frames = container, add_frames
        self._streams: dict[int, Any] = {}  # by the index of the source's stream
        self._ends: dict[int, int] = {}  # ticks after the last packet of each
        self._start = Fraction(0)  # seconds of the film at which the next cut begins

    def add(self, cut: Cut) -> Written:
        """Append the frames from the last keyframe before a cut to its end.

        Raises:
            VideoError: if there is no keyframe, or the timestamps of the video break.
        """
        path = cut.source.path
        decoder = open_decoder(path)
        zero, tick, step = decoder.zero, decoder.tick, decoder.step
        breaks = decoder.clock.breaks
        decoder.close()
        if breaks:
            raise VideoError(f"{path}: its timestamps break, so it cannot be cut without encoding; leave out --copy")
        begin, end = (
            (cut.start / cut.source.rate, cut.end / cut.source.rate)
            if cut.source.even
            else (Fraction(cut.span[0]), Fraction(cut.span[1]))
        )
        half = 1 / (2 * cut.source.rate)  # times are rounded to ticks
        keyframe = _keyframe_before(path, zero + round((begin + half) / tick), zero)
        last = zero + round((end - half) / tick)
        return self._copy(path, keyframe, last, zero=zero, step=step)

    def close(self) -> None:
        """Do nothing: no packet is held back."""

    def _copy(self, path: str, keyframe: int, last: int, *, zero: int, step: int) -> Written:
        """Copy the packets from a keyframe (in ticks) to the last frame that begins before ``last``."""
        container, video = open_video(path)
        with container:
            sound: Any = container.streams.best("audio")
            streams: list[Any] = [video] if sound is None or sound.codec_context is None else [video, sound]
            if not self._streams:
                self._streams = {stream.index: self._added(stream, path) for stream in streams}
            tick = Fraction(video.time_base or 1)
            start, stop = keyframe * tick, last * tick
            with suppress(FFmpegError):
                container.seek(max(0, keyframe - round(Fraction(_SOUND_BEFORE) / tick)), stream=video)
            frames, film_end, done = 0, keyframe, set[int]()
            for packet in _packets(container, streams):
                index, is_video = packet.stream_index, packet.stream_index == video.index
                time = packet.pts * packet.time_base
                if is_video and not frames and not (packet.is_keyframe and packet.pts == keyframe):
                    continue
                if index in done or time < start:  # frames before the keyframe lack references
                    continue
                # Packets come in the order of decoding: later frames may come first, and those before them follow.
                until = max(stop, film_end * tick) if is_video else stop
                if (packet.dts if packet.dts is not None else packet.pts) * packet.time_base >= until:
                    done.add(index)
                    if len(done) == len(streams):
                        break
                    continue
                if is_video and time >= until and packet.dts * packet.time_base >= stop:
                    continue
                if is_video:
                    frames, film_end = frames + 1, max(film_end, packet.pts + (packet.duration or step))
                self._mux(packet, start)
                if is_video:
                    self._add_frames(1)
        if not frames:
            raise VideoError(f"{path} has no keyframe that can be copied; leave out --copy")
        self._start += (film_end - keyframe) * tick
        return Written(float((keyframe - zero) * tick), float((film_end - zero) * tick), frames)

    def _added(self, stream: Any, path: str) -> Any:
        """Add a stream like one of the source.

        Raises:
            VideoError: if the format of the film cannot hold its codec.
        """
        try:
            return self._container.add_stream_from_template(stream, opaque=True)
        except ValueError:
            codec, kind = stream.codec_context.codec.canonical_name, self._container.format.name
            raise VideoError(f"{path}: {codec} cannot be copied into {kind}; leave out --copy") from None

    def _mux(self, packet: Packet[Any], start: Fraction) -> None:
        """Write a packet whose source begins at ``start`` seconds of its clock."""
        index = packet.stream_index
        shift = round((self._start - start) / packet.time_base)
        packet.pts = (packet.pts or 0) + shift
        packet.dts = packet.pts if packet.dts is None else packet.dts + shift
        previous = self._ends.get(index)
        if previous is not None and packet.dts <= previous:
            packet.dts = previous + 1
            packet.pts = max(packet.pts, packet.dts)
        self._ends[index] = packet.dts
        packet.stream = self._streams[index]
        self._container.mux(packet)


def _packets(container: InputContainer, streams: list[Any]) -> Iterator[Any]:
    """Yield the packets with data and a time; end at the first place that cannot be read."""
    with suppress(FFmpegError):
        for packet in container.demux(streams):
            if packet.size and packet.pts is not None and not packet.is_discard:
                yield packet


def _keyframe_before(path: str, ticks: int, zero: int) -> int:
    """Return the ticks of the last keyframe at or before a place; the first keyframe if all are later.

    Args:
        path: the file.
        ticks: the place.
        zero: ticks at second 0 of the video.

    Raises:
        VideoError: if there is no keyframe.
    """
    back, first = 0, None
    while True:
        container, stream = open_video(path)
        with container:
            target = max(zero, ticks - back)
            if target > zero:
                with suppress(FFmpegError):
                    container.seek(target, stream=stream)
            best = None
            for packet in _packets(container, [stream]):
                if packet.is_keyframe:
                    first = packet.pts if first is None else min(first, packet.pts)
                    best = packet.pts if packet.pts <= ticks else best
                if (packet.dts if packet.dts is not None else packet.pts) > ticks:
                    break
            if best is not None:
                return int(best)
            if target <= zero:
                break
            back = max(round(1 / Fraction(stream.time_base or 1)), 4 * back)
    if first is None:
        raise VideoError(f"{path} has no keyframe that can be copied; leave out --copy")
    return int(first)
