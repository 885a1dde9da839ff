"""Open a video file and decode it: frames in the order of time, and jumps.

``open_video`` explains files that are no videos, ``Decoder`` reads, jumps and skips. ``damage`` counts the frames that
a damaged file did not give.

Where is a frame's time decided? ``Decoder._next_frame`` takes the presentation timestamp that the file gives the
frame, in *ticks* (units of the stream's time base); a raw stream has none, so its frames are counted.
``Decoder.seconds`` turns ticks into seconds since ``Decoder.zero``, the start of the video stream.

Skipping: after ``skip_unwanted`` the decoder decodes only frames that are shown at a wanted second and frames that
others refer to. This trusts the timestamps of packets, which are right in an undamaged file. Once ``skipped_too_much``
says so, the caller must begin again and decode everything. Damage to skipped frames goes unnoticed, as when jumping.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import Any, NamedTuple

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from sidelight.io.files import path_text
from sidelight.io.storage import is_address
from sidelight.video.damage import DamageLog, VideoError
from sidelight.video.nal import NalReader

_END_TOLERANCE = 0.5  # s, or two frames if longer: an undamaged video may end this much before its stated end
_BLIND_JUMP = 10.0  # s; without an index, nearer frames are decoded through: keyframes are seldom further apart
_IN_FLIGHT = 4  # frames; a jump throws away what the decoder's threads have begun, so a shorter jump gains nothing
_MAX_READ_ERRORS = 8  # in a row: then the rest of the file is given up
_MAX_LOOKAHEAD = 32  # packets read ahead to see whether one is wanted; reordering reaches half as far


class DecodedFrame(NamedTuple):
    """A decoded frame and the time from which it is shown."""

    seconds: float
    ticks: int
    av_frame: VideoFrame


class Decoder:
    """An open video, its frames in the order of time, and jumps.

    ``read`` returns frames with growing seconds; after a ``jump`` it goes on from the new place. A jump may land too
    late, because an index may hold decoding times, a group of pictures may be open, or a keyframe may be damaged. So
    each jump is checked and repeated from further back, at last from the start of the file, which needs no index.
    """

    container: InputContainer
    stream: VideoStream
    _ready: deque[VideoFrame]
    _previous: int | None  # ticks of the frame before
    _position: int | None  # decoding ticks of the last packet
    _earliest: int | None  # after a jump: ticks of the keyframe; frames before it lack references
    _lookahead: deque[Packet[VideoStream]]  # read, but not yet decoded
    _announced: list[int]  # ascending ticks of the frames to come, by their packets; kept only while skipping

    def __init__(self, path: str | os.PathLike[str], threads: int = 0) -> None:
        self.path, self.threads = path_text(path), threads
        self._open()
        stream = self.stream
        self.tick = stream.time_base or Fraction(1, 1000)
        self.fps = stream.average_rate or stream.guessed_rate or stream.base_rate or Fraction(25)
        # Ticks from frame to frame where the file does not state them.
        self.step = max(1, round(1 / (stream.guessed_rate or self.fps) / self.tick))
        self.end_tolerance = max(_END_TOLERANCE, float(2 * self.step * self.tick))
        self.zero = 0  # ticks at second 0
        self.end = 0.0  # s at which the last frame that was read ends
        self.damage = DamageLog(self.tick, self.step)
        self._can_jump = self._can_jump_blind = True  # at all, and without an index
        self._index_delay: int | None = None  # ticks from a keyframe's time in the index to its presentation
        self._matroska = "matroska" in self.container.format.name
        self._wanted_seconds: list[float] = []  # ascending; empty: all
        self._skipped = 0  # packets
        self._unreliable = False  # whether packets or frames are not as in an undamaged file
        self._nal = NalReader(stream)
        self._restart()
        if self._matroska:
            self._seek(stream.start_time or 0)  # Matroska's index is read at the first seek only
        first = self._next_frame()
        if first is None:
            self.close()
            raise VideoError(
                f"{self.path} is a {stream.codec_context.codec.canonical_name} video of which not one frame could be "
                "decoded; check that a video player shows it, or get a fresh copy"
            )
        ticks, self.first = first
        # Frames that could not be decoded before the first one are part of the video too.
        self.zero = min([ticks, *self.damage.pending])
        if self.seconds(ticks) > self.end_tolerance:
            self.damage.add(self.zero, ticks)
        self._ready.appendleft(self.first)
        self._previous = None

    def close(self) -> None:
        """Close the file."""
        self.container.close()

    def seconds(self, ticks: int) -> float:
        """Return the seconds from the video's start to a timestamp of the file."""
        return float((ticks - self.zero) * self.tick)

    def skip_unwanted(self, seconds: Sequence[float]) -> None:
        """Skip, from now on, frames that are not shown at any of these ascending seconds, where that is safe."""
        if self._nal.can_tell and not self.damage.lost and not self._unreliable:
            self._wanted_seconds = list(seconds)

    def skipped_too_much(self, frame: DecodedFrame, second: float) -> bool:
        """Check whether a needed frame may have been skipped, and forget the packets of frames up to this one.

        Args:
            frame: the frame that seems to be shown.
            second: the second at which it seems to be shown.
        """
        del self._announced[: bisect_right(self._announced, frame.ticks)]
        overlooked = bool(self._announced) and self.seconds(self._announced[0]) <= second
        return self._skipped > 0 and (overlooked or self._unreliable or self.damage.lost > 0)

    def read(self) -> DecodedFrame | None:
        """Return the next frame; None at the end."""
        following = self._next_frame()
        if following is None:
            return None
        ticks, av_frame = following
        end = ticks + max(av_frame.duration or 0, self.step)
        self.damage.frame_decoded(ticks, end, corrupt=av_frame.is_corrupt)
        self.end = self.seconds(end)
        return DecodedFrame(self.seconds(ticks), ticks, av_frame)

    def should_jump(self, second: float) -> bool:
        """Check whether a keyframe lies well between the last packet that was read and the wanted second."""
        if not self._can_jump or self._position is None:
            return False
        position, target = self._position + _IN_FLIGHT * self.step, self._ticks_at(second)
        keyframe = self._keyframe_before(target)
        if keyframe is not None and keyframe > position:
            return True
        index = self.stream.index_entries
        index_reaches_further = len(index) > 0 and index[-1].timestamp > self._position
        return self._can_jump_blind and not index_reaches_further and (target - position) * self.tick > _BLIND_JUMP

    def jump(self, second: float) -> DecodedFrame | None:
        """Go to a frame at or before the wanted second, if possible near it, and read that frame."""
        wanted_ticks, before = self._ticks_at(second), self._position or 0
        keyframe, back = self._keyframe_before(wanted_ticks), round(1 / self.tick)
        target = keyframe if keyframe is not None and keyframe > before else wanted_ticks
        while target > self.zero:
            frame = self._land(target, second)
            if frame is not None:
                self._can_jump_blind &= frame.ticks > before  # else keyframes are far apart here
                return frame
            target, back = wanted_ticks - back, 4 * back
        self._can_jump = False
        self.close()
        self._open()
        self._restart()
        return self.read()

    def is_truncated(self) -> bool:
        """Check, after the last frame, whether the file states that the video goes on."""
        if self.damage.missing is None:
            packets_end = self.seconds(self.damage.packets_end or self.zero)
            stated, of_this_stream = self.stated_end()
            of_audio = stated is not None and not of_this_stream and stated > packets_end + self.end_tolerance
            if stated is None or (of_audio and self._last_packet_end(others=True) + self.end_tolerance >= stated):
                stated = packets_end  # the file's duration is that of its audio, which goes on after the frames
            missing = max(stated, packets_end) - self.end
            self.damage.missing = missing if missing > self.end_tolerance else 0.0
        return self.damage.missing > 0

    def damage_message(self) -> str:
        """Return a sentence about the damage met so far; empty if there was none."""
        return self.damage.message(self.path, end=self.end, stated_end=self.stated_end()[0] or 0.0)

    def duration(self) -> float:
        """Return the seconds to the end of the video: as the file states them, else the end of the last packet."""
        return self.stated_end()[0] or self._last_packet_end()

    def stated_end(self) -> tuple[float | None, bool]:
        """Return the second at which the file states that it ends, and whether it states this for the video stream."""
        stream, container, zero = self.stream, self.container, float(self.zero * self.tick)
        if stream.duration:
            return float(stream.duration * self.tick), True
        if self._matroska and (tag := stream.metadata.get("DURATION")):
            with suppress(ValueError):  # of a tag that is not like 00:01:02.500
                hours, minutes, rest = tag.split(":")
                length = int(hours) * 3600 + int(minutes) * 60 + float(rest)
                # mkvmerge, which also tags statistics, gives the length; FFmpeg gives the end on the file's clock.
                length -= 0.0 if "_STATISTICS_TAGS" in stream.metadata else zero
                if length > 0:
                    return length, True
        if not container.duration:
            return None, False
        # Matroska states the end on the file's clock; of other formats FFmpeg computes the length of all streams.
        start = 0 if self._matroska else container.start_time or 0
        end = (start + container.duration) / av.time_base - zero
        return (end, False) if end > 0 else (None, False)

    def _last_packet_end(self, *, others: bool = False) -> float:
        """Return the second at which the last packet of the video, or of the other streams, ends; decode nothing."""
        container, stream = open_video(self.path)
        last, min_duration = self.zero, 0 if others else self.step
        with container, suppress(FFmpegError):  # after an error there are no more packets
            if others:  # called after the last frame: only later packets matter
                container.seek(self.zero + math.floor(self.end / self.tick), stream=stream)
            for packet in container.demux():
                if (packet.stream_index == stream.index) is others or not packet.size or packet.is_discard:
                    continue
                if packet.pts is None:  # of a raw stream
                    last += min_duration
                else:
                    end = (packet.pts + max(packet.duration or 0, min_duration)) * packet.time_base
                    last = max(last, math.floor(end / self.tick))
        return self.seconds(last)

    def _keyframe_before(self, ticks: int) -> int | None:
        """Return the presentation ticks of the last keyframe in the index that is not after ``ticks``."""
        index, delay = self.stream.index_entries, self._index_delay or 0
        entry = index.search_timestamp(ticks - delay)
        return index[entry].timestamp + delay if entry >= 0 else None

    def _ticks_at(self, second: float) -> int:
        return math.floor(Fraction(second) / self.tick + Fraction(1, 1000)) + self.zero  # floats are rounded

    def _open(self) -> None:
        self.container, self.stream = open_video(self.path)
        self.stream.codec_context.thread_count = self.threads

    def _restart(self) -> None:
        """Begin to read at the file's current place."""
        self._packets = self._demux()
        self._ready, self._lookahead, self._announced = deque(), deque(), []
        self._ended = False
        self._previous = self._position = self._earliest = None
        self.damage.restart()

    def _seek(self, ticks: int) -> bool:
        """Move to a place at or before ``ticks``, and say whether the file allowed it."""
        try:
            self.container.seek(ticks, stream=self.stream)
        except FFmpegError:
            return False
        self._restart()
        return True

    def _land(self, target: int, second: float) -> DecodedFrame | None:
        """Jump, and return the first frame at the new place; None if it is later than the wanted second."""
        if not self._seek(target):
            return None
        packet = self._next_packet()
        while packet is not None and not packet.is_keyframe:
            packet = self._next_packet()
        if packet is None or packet.pts is None or self.seconds(packet.pts) > second:
            return None
        self._earliest = packet.pts
        self._nal.is_disposable(packet)  # a keyframe never is, but it may hold parameter sets
        self._decode(packet)
        frame = self.read()
        # A later frame means that the keyframe is damaged, or only begins a gradual refresh that is not done yet.
        return frame if frame is not None and frame.ticks == packet.pts else None

    def _next_frame(self) -> tuple[int, VideoFrame] | None:
        """Return the next frame and its time in ticks; None at the end."""
        while True:
            while self._ready:
                frame = self._ready.popleft()
                ticks = frame.pts
                if ticks is None:  # raw streams have no times: count
                    self._unreliable = True
                    ticks = frame.pts = 0 if self._previous is None else self._previous + self.step
                in_order = self._previous is None or ticks > self._previous
                if in_order and (self._earliest is None or ticks >= self._earliest):
                    self._previous = ticks
                    return ticks, frame
                self._unreliable |= not in_order
                self.damage.pending.discard(ticks)
            if self._ended:
                return None
            packet = self._next_packet()
            while packet is not None and packet.pts is not None and self._is_skippable(packet, packet.pts):
                self._skipped += 1
                self.damage.pending.discard(packet.pts)
                packet = self._next_packet()
            self._decode(packet)

    def _is_skippable(self, packet: Packet[VideoStream], ticks: int) -> bool:
        """Check whether the packet's frame is neither needed by another frame nor shown at a wanted second."""
        unsafe = self._unreliable or self.damage.unreadable or self.damage.lost > 0
        if not self._wanted_seconds or unsafe or not self._nal.is_disposable(packet):
            return False
        index = bisect_left(self._wanted_seconds, self.seconds(ticks))
        if index == len(self._wanted_seconds):
            return False  # not worth it, and the last frame's time must be known
        second = self._wanted_seconds[index]
        # Is a later frame shown by then? Packets come in the order of decoding.
        while True:
            later = bisect_right(self._announced, ticks)
            if later < len(self._announced) and self.seconds(self._announced[later]) <= second:
                return True
            if len(self._lookahead) >= _MAX_LOOKAHEAD:
                return False
            following = self._read_packet()
            if following is None:
                return False
            self._lookahead.append(following)
            if following.dts is None or self.seconds(following.dts) > second:
                return False

    def _next_packet(self) -> Packet[VideoStream] | None:
        """Return the next packet to decode; None at the end of the readable file."""
        packet = self._lookahead.popleft() if self._lookahead else self._read_packet()
        if packet is not None:
            self._position = packet.dts if packet.dts is not None else packet.pts
        return packet

    def _read_packet(self) -> Packet[VideoStream] | None:
        """Read the next packet of the file; None at the end of the readable file."""
        errors = 0
        while errors < _MAX_READ_ERRORS:
            try:
                packet = next(self._packets)
            except StopIteration:
                return None
            except FFmpegError:
                errors += 1
                self.damage.packet_lost()
                self._packets = self._demux()  # goes on after the bad place
                continue
            if self._matroska:
                self.damage.check_place(packet)
            if packet.stream_index != self.stream.index:
                continue
            if not packet.size and packet.dts is None:  # PyAV's mark of the end
                return None
            self.damage.packet_read(packet)
            if self._wanted_seconds and packet.pts is not None and packet.size and not packet.is_discard:
                insort(self._announced, packet.pts)
            if self._index_delay is None:  # MP4's index holds times of decoding
                index = self.stream.index_entries
                self._index_delay = max(0, (packet.pts or 0) - index[0].timestamp) if len(index) else 0
            return packet
        return None

    def _demux(self) -> Iterator[Packet[Any]]:
        """Return the packets to come; of all streams where the places of packets are checked."""
        return self.container.demux() if self._matroska else self.container.demux(self.stream)

    def _decode(self, packet: Packet[VideoStream] | None) -> None:
        """Decode a packet into ``_ready``; None flushes the frames that the decoder held back."""
        self._ended = packet is None
        try:
            self._ready.extend(self.stream.codec_context.decode(packet))
        except FFmpegError:
            self._unreliable = True  # the packet stays pending in the damage log, and the next one may be good


def options_for_any_metadata(version: str) -> dict[str, Any]:
    """Return the options with which a version of PyAV opens a file whose metadata are not UTF-8; 19 needs none."""
    return {"metadata_errors": "replace"} if int(version.split(".")[0]) < 19 else {}


def open_video(path: str) -> tuple[InputContainer, VideoStream]:
    """Open a file and return it with its main video stream.

    Raises:
        VideoError: if the file is no video; one sentence says what the file is and what to do.
    """
    beginning = b""
    if is_address(path):
        raise VideoError(f"{path} is an address; expected a file of this machine, so download it first")
    if os.path.isdir(path):
        raise VideoError(f"{path} is a folder; expected one video file, so add the file's name")
    if os.path.exists(path) and not os.path.isfile(path):
        problem = "is a pipe or a device, and a video is read more than once"
        raise VideoError(f"{path} {problem}; expected a file, so save the video to a file first")
    try:
        with open(path, "rb") as file:
            beginning = file.read(256)
        if not beginning:
            raise VideoError(f"{path} is empty (0 bytes); expected a video file, so copy or download it again")
        # Absolute, since "a:b.mp4" is a protocol to FFmpeg.
        container = av.open(os.path.abspath(path), **options_for_any_metadata(av.__version__))
    except FileNotFoundError:
        raise VideoError(f"{path} does not exist; expected a video file, so check the path") from None
    except OSError as error:
        reason = error.strerror or "unknown reason"
        raise VideoError(f"{path} cannot be read ({reason}); expected a video file that you may read") from None
    except FFmpegError:
        if beginning[4:8] in (b"ftyp", b"mdat", b"wide", b"free", b"skip", b"moov"):
            problem = "is an MP4 or MOV file that was cut off: its index (moov), which is written last, is missing"
            raise VideoError(f"{path} {problem}; expected a whole file, so copy or record it again") from None
        if beginning.startswith(b"#EXTM3U"):
            problem = "is a playlist whose segments cannot be read; they must be files beside it on this machine"
            raise VideoError(f"{path} {problem}; download them, or give the video as one file") from None
        if beginning.lstrip().lower().startswith((b"<!doctype html", b"<html")):
            raise VideoError(f"{path} is a web page; expected a video file, so give the file itself") from None
        problem = "is not a video; expected MP4, MKV, MOV, WebM or the like"
        raise VideoError(f"{path} {problem}, so check that a video player shows it") from None
    try:
        # In WebP, the header VP8X has a bit for animations. FFmpeg reads them from PyAV 19 on.
        if container.format.name == "webp_pipe" and beginning[8:16] == b"WEBPVP8X" and beginning[20] & 2:
            problem = f"is an animated WebP, which PyAV {av.__version__} cannot read; expected a video file"
            raise VideoError(f"{path} {problem}, so convert it to MP4 or install PyAV 19 or newer")
        return container, _main_stream(container, path)
    except VideoError:
        container.close()
        raise


def _main_stream(container: InputContainer, path: str) -> VideoStream:
    """Return the stream that a player shows: no cover, no thumbnail, no still image."""
    kind, brand = container.format.name, container.metadata.get("major_brand", "").strip()
    if kind in ("image2", "ico") or kind.endswith("_pipe") or brand in ("avif", "heic", "heix", "mif1"):
        raise VideoError(f"{path} is a still image; expected a video file, so give one with several frames")
    stills = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [] if kind == "tty" else [s for s in container.streams.video if not s.disposition & stills]
    if not streams:
        content = "only audio" if container.streams.audio else "no video stream"
        raise VideoError(f"{path} holds {content}; expected a video file such as MP4, MKV or WebM, so check the path")
    # PyAV's types say that there always is a codec context; where FFmpeg knows no decoder, there is none.
    decodable = [stream for stream in streams if stream.codec_context is not None]  # type: ignore[redundant-expr]
    if not decodable:
        raise VideoError(
            f"{path} has a video codec that FFmpeg does not know; expected one such as H.264, so convert it"
        )
    for stream in decodable:
        stream.thread_type = "AUTO"
    best = container.streams.best("video")
    return next((stream for stream in decodable if best is not None and stream.index == best.index), decodable[0])
