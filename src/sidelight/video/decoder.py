"""Open a video file and decode it: pictures in the order of time, jumps, and what a damaged file did not give.

Way: ``open_video`` explains files that are no videos, ``Decoder`` reads and jumps, ``Losses`` counts.

*Ticks* are timestamps as the file has them, in units of the stream's time base.

Who tells which seconds are wanted (``only``) gets the pictures on screen then, and those that other pictures refer to;
the rest is not decoded. That is a bet that the file is sound: its packets promise which picture is on screen when. Once
``lost_bet``, one has to begin again and read everything. Damage to what is left out goes unnoticed, as when jumping.
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

from sidelight.video.nal import References

_SLACK = 0.5  # s, or two pictures if longer: a video may end this much before its stated end and be whole
_BLIND_JUMP = 10.0  # s; without an index, what is nearer is decoded through: keyframes are seldom further apart
_IN_FLIGHT = 4  # pictures; a jump throws away what the decoder's threads have begun, a shorter one gains nothing
_READ_ERRORS = 8  # in a row: then the rest of the file is given up
_OVERHEAD = 4096  # bytes between two packets; what a container puts there is far smaller
_FAR_AHEAD = 32  # packets read ahead to find out whether one is wanted; reordering reaches half as far
_MANY = 4096  # packets remembered for which no picture came yet; healthy decoders hold back far fewer


class VideoError(ValueError):
    """A file that cannot be read as a video; says what was expected and what to do."""


class VideoWarning(UserWarning):
    """A damaged video of which only a part could be decoded; says how much was lost."""


class Picture(NamedTuple):
    """A decoded picture and when it comes on screen."""

    seconds: float
    frame: VideoFrame


class Decoder:
    """An open video, its pictures in the order of time, and jumps.

    ``read`` gives pictures with growing seconds; after a ``jump`` it goes on from there. A jump may land too
    late: indexes hold decoding times, groups of pictures are open, keyframes are damaged. So it is checked,
    and repeated from further back, at last from the start of the file, which needs no index.
    """

    _ready: deque[VideoFrame]
    _previous: int | None  # ticks of the picture before
    _position: int | None  # decoding ticks of the last packet
    _floor: int | None  # after a jump: ticks of the keyframe; what is before lacks references
    _ahead: deque[Packet[VideoStream]]  # read, but not yet decoded
    _promised: list[int]  # ascending ticks of the pictures that come, by their packets, while some are left out

    def __init__(self, path: str | os.PathLike[str], threads: int = 0) -> None:
        self.container, self.stream, self.path = open_video(path)
        self.stream.codec_context.thread_count = self.threads = threads
        self.tick = self.stream.time_base or Fraction(1, 1000)
        # Ticks from picture to picture where the file does not tell.
        self.step = max(1, round(1 / (self.stream.guessed_rate or rate(self.stream)) / self.tick))
        self.end = 0.0  # s, of the last picture read
        self.zero = 0  # ticks at second 0
        self.missing: float | None = None  # s that should follow the last picture; None before it was reached
        self.losses = Losses(self)
        self._jumps = self._blind = True  # whether to jump at all, and without an index
        self._delay: int | None = None  # ticks from a keyframe's time in the index to its presentation
        self._matroska = "matroska" in self.container.format.name
        self._wanted: list[float] = []  # ascending seconds; empty: all
        self._left_out = 0  # packets
        self._doubt = False  # whether packets or pictures are not as in a sound file
        self._references = References(self.stream)
        self._reset()
        if self._matroska:
            self._seek(self.stream.start_time or 0)  # Matroska's index is read at the first seek only
        first = self._next_frame()
        if first is None:
            self.close()
            raise VideoError(
                f"{self.path} is a {self.stream.codec_context.codec.canonical_name} video of which not one "
                "picture could be decoded; check that a video player shows it, or get a fresh copy"
            )
        self.first = first
        # What could not be decoded before the first picture is part of the video all the same.
        self.zero = min([ticks_of(first), *self.losses.due])
        if self.seconds(ticks_of(first)) > self.slack:
            self.losses.add(self.zero, ticks_of(first))
        self._ready.appendleft(first)
        self._previous = None

    def close(self) -> None:
        self.container.close()

    @property
    def slack(self) -> float:
        return max(_SLACK, float(2 * self.step * self.tick))

    def seconds(self, ticks: int) -> float:
        return float((ticks - self.zero) * self.tick)

    def only(self, seconds: Sequence[float]) -> None:
        """From now on leave out what is not on screen at any of these ascending seconds, where that is safe."""
        if self._references.possible and not self.losses.total and not self._doubt:
            self._wanted = list(seconds)

    def lost_bet(self, picture: Picture, second: float) -> bool:
        """Whether something was left out that should not have been.

        Args:
            picture: what seems to be on screen.
            second: when.
        """
        del self._promised[: bisect_right(self._promised, ticks_of(picture.frame))]
        broken = bool(self._promised) and self.seconds(self._promised[0]) <= second
        return self._left_out > 0 and (broken or self._doubt or self.losses.total > 0)

    def read(self) -> Picture | None:
        """The next picture; None at the end."""
        frame = self._next_frame()
        if frame is None:
            return None
        self.end = self.seconds(ticks_of(frame) + self.losses.came(frame))
        return Picture(self.seconds(ticks_of(frame)), frame)

    def worth_a_jump(self, second: float) -> bool:
        """Whether a keyframe lies well between what was read so far and the wanted second."""
        if not self._jumps or self._position is None:
            return False
        here, wanted = self._position + _IN_FLIGHT * self.step, self._ticks_at(second)
        key = self.keyframe_before(wanted)
        if key is not None and key > here:
            return True
        index = self.stream.index_entries
        knows_more = len(index) > 0 and index[-1].timestamp > self._position
        return self._blind and not knows_more and (wanted - here) * self.tick > _BLIND_JUMP

    def jump(self, second: float) -> Picture | None:
        """Go to a picture at or before the wanted second, hopefully near it, and read it."""
        wanted, before = self._ticks_at(second), self._position or 0
        key, back = self.keyframe_before(wanted), round(1 / self.tick)
        target = key if key is not None and key > before else wanted
        while target > self.zero:
            picture = self._land(target, second)
            if picture is not None:
                self._blind &= ticks_of(picture.frame) > before  # else keyframes are far apart here
                return picture
            target, back = wanted - back, 4 * back
        self._jumps = False
        self.close()
        self.container, self.stream, _ = open_video(self.path)
        self.stream.codec_context.thread_count = self.threads
        self._reset()
        return self.read()

    def breaks_off(self) -> bool:
        """After the last picture: whether the video should have gone on."""
        if self.missing is None:
            read = self.seconds(self.losses.last or self.zero)
            stated, own = stated_end(self)
            sound = stated is not None and not own and stated > read + self.slack
            if stated is None or (sound and self.seconds(last_packet(self, others=True)) + self.slack >= stated):
                stated = read  # the file's duration is that of its sound, which goes on after the pictures
            missing = max(stated, read) - self.end
            self.missing = missing if missing > self.slack else 0.0
        return self.missing > 0

    def keyframe_before(self, ticks: int) -> int | None:
        """Presentation ticks of the last keyframe in the index that is not after ``ticks``."""
        index, delay = self.stream.index_entries, self._delay or 0
        found = index.search_timestamp(ticks - delay)
        return index[found].timestamp + delay if found >= 0 else None

    def _ticks_at(self, second: float) -> int:
        return math.floor(Fraction(second) / self.tick + Fraction(1, 1000)) + self.zero  # floats are rounded

    def _reset(self) -> None:
        """Begin to read at the file's current place."""
        self._packets = self._demux()
        self._ready, self._ahead, self._promised = deque(), deque(), []
        self._ended = False
        self._previous = self._position = self._floor = None
        self.losses.moved()

    def _seek(self, ticks: int) -> bool:
        try:
            self.container.seek(ticks, stream=self.stream)
        except FFmpegError:
            return False
        self._reset()
        return True

    def _land(self, target: int, second: float) -> Picture | None:
        """Jump; the first picture there, or None if it is later than wanted."""
        if not self._seek(target):
            return None
        packet = self._next_packet()
        while packet is not None and not packet.is_keyframe:
            packet = self._next_packet()
        if packet is None or packet.pts is None or self.seconds(packet.pts) > second:
            return None
        self._floor = packet.pts
        self._references.disposable(packet)  # no, but it may hold parameter sets
        self._decode(packet)
        picture = self.read()
        # A later picture: the keyframe is damaged, or only begins a gradual refresh that is not done yet.
        return picture if picture is not None and ticks_of(picture.frame) == packet.pts else None

    def _next_frame(self) -> VideoFrame | None:
        while True:
            while self._ready:
                frame = self._ready.popleft()
                if frame.pts is None:  # raw streams have no times: count
                    self._doubt = True
                    frame.pts = 0 if self._previous is None else self._previous + self.step
                ticks = ticks_of(frame)
                in_order = self._previous is None or ticks > self._previous
                if in_order and (self._floor is None or ticks >= self._floor):
                    self._previous = ticks
                    return frame
                self._doubt |= not in_order
                self.losses.due.discard(ticks)
            if self._ended:
                return None
            packet = self._next_packet()
            while packet is not None and self._spare(packet):
                self._left_out += 1
                self.losses.spared(packet)
                packet = self._next_packet()
            self._decode(packet)

    def _spare(self, packet: Packet[VideoStream]) -> bool:
        """Whether the packet need not be decoded: for no other picture, and not to be shown."""
        doubtful = self._doubt or self.losses.troubled or self.losses.total > 0
        if not self._wanted or doubtful or packet.pts is None or not self._references.disposable(packet):
            return False
        index = bisect_left(self._wanted, self.seconds(packet.pts))
        if index == len(self._wanted):
            return False  # not worth it; and what the last picture is should be known
        second = self._wanted[index]
        # Is there a picture after this one that is on screen by then? Packets come in the order of decoding.
        while True:
            later = bisect_right(self._promised, packet.pts)
            if later < len(self._promised) and self.seconds(self._promised[later]) <= second:
                return True
            if len(self._ahead) >= _FAR_AHEAD:
                return False
            following = self._read_packet()
            if following is None:
                return False
            self._ahead.append(following)
            if following.dts is None or self.seconds(following.dts) > second:
                return False

    def _next_packet(self) -> Packet[VideoStream] | None:
        """The next packet to decode; None at the end of what can be read."""
        packet = self._ahead.popleft() if self._ahead else self._read_packet()
        if packet is not None:
            self._position = packet.dts if packet.dts is not None else packet.pts
        return packet

    def _read_packet(self) -> Packet[VideoStream] | None:
        """The next packet of the file; None at the end of what can be read."""
        errors = 0
        while errors < _READ_ERRORS:
            try:
                packet = next(self._packets)
            except StopIteration:
                return None
            except FFmpegError:
                errors += 1
                self.losses.trouble()
                self._packets = self._demux()  # goes on after the bad place
                continue
            if self._matroska:
                self.losses.passed(packet)
            if packet.stream_index != self.stream.index:
                continue
            if not packet.size and packet.dts is None:  # PyAV's mark of the end
                return None
            self.losses.sent(packet)
            if self._wanted and packet.pts is not None and packet.size and not packet.is_discard:
                insort(self._promised, packet.pts)
            if self._delay is None:  # MP4 has the time of decoding there
                index = self.stream.index_entries
                self._delay = max(0, (packet.pts or 0) - index[0].timestamp) if len(index) else 0
            return packet
        return None

    def _demux(self) -> Iterator[Packet[Any]]:
        """Packets; of all streams where bytes are counted."""
        return self.container.demux() if self._matroska else self.container.demux(self.stream)

    def _decode(self, packet: Packet[VideoStream] | None) -> None:
        """Make pictures ready; None asks for those that the decoder held back."""
        self._ended = packet is None
        try:
            self._ready.extend(self.stream.codec_context.decode(packet))
        except FFmpegError:
            self._doubt = True  # the packet stays due in the losses, and the next one may be good


class Losses:
    """Time, in ticks, for which a damaged file gave no picture, or a wrong one.

    A gap between two pictures is a loss only if a packet for it was read or noticed to be missing: a variable
    rate leaves gaps too.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.due: set[int] = set()  # presentation ticks of packets whose picture has not come yet
        self.total = 0
        self.troubled = False  # whether some of the file could not be read
        self.last: int | None = None  # where the last packet ends
        self._counted = 0
        self._before: tuple[int, int] | None = None  # start and end of the picture before

    def moved(self) -> None:
        """Reading goes on elsewhere."""
        self.due.clear()
        self._before = None
        self._doubt = 0  # packets around which something may be missing
        self._place = 0  # byte in the file after the last packet

    def passed(self, packet: Packet[Any]) -> None:
        """Notice bytes of the file that are in no packet; Matroska skips bad ones without a word."""
        if packet.pos is not None and packet.pos > self._place > 0 and packet.pos - self._place > _OVERHEAD:
            self.trouble()
        self._place = (packet.pos or 0) + packet.size

    def sent(self, packet: Packet[VideoStream]) -> None:
        """Expect a picture of this packet, unless it is made to have none."""
        if packet.pts is None or not packet.size or packet.is_discard:
            return
        self._doubt = 3 if packet.is_corrupt else self._doubt - 1  # MPEG-TS flags a packet early
        if self._doubt > 0:
            self.trouble()
        end = packet.pts + max(packet.duration or 0, self._decoder.step)
        self.last = end if self.last is None else max(self.last, end)
        if self._doubt > 0:
            self.trouble()
        if len(self.due) < _MANY:
            self.due.add(packet.pts)

    def spared(self, packet: Packet[VideoStream]) -> None:
        """Expect no picture of this packet: it is not decoded."""
        if packet.pts is not None:
            self.due.discard(packet.pts)

    def trouble(self) -> None:
        """What comes after the last packet is missing."""
        self.troubled = True
        if self.last is not None and len(self.due) < _MANY:
            self.due.add(self.last)

    def came(self, frame: VideoFrame) -> int:
        """Account for a picture; its duration."""
        ticks, step = ticks_of(frame), self._decoder.step
        duration = max(frame.duration or 0, step)
        if self._before is not None and ticks - self._before[1] > step // 2:
            start, end = self._before
            if any(start < due < ticks for due in self.due):
                self.add(end, ticks)
        if frame.is_corrupt:
            self.add(ticks, ticks + duration)
        self.due = {due for due in self.due if due > ticks}
        self._before = ticks, ticks + duration
        return duration

    def add(self, start: int, end: int) -> None:
        """Count a loss, once: after a jump some of it may be met again."""
        start = start if not self.total else max(start, self._counted)
        self.total += max(0, end - start)
        self._counted = max(self._counted, end)


def ticks_of(frame: VideoFrame) -> int:
    """Presentation time of a picture that the decoder gave."""
    assert frame.pts is not None, "_next_frame gives every picture a time"
    return frame.pts


def rate(stream: VideoStream) -> Fraction:
    """Pictures per second on average."""
    return stream.average_rate or stream.guessed_rate or stream.base_rate or Fraction(25)


def stated_end(decoder: Decoder) -> tuple[float | None, bool]:
    """Second at which the file states that it ends, and whether it does so for this very stream."""
    stream, container, zero = decoder.stream, decoder.container, float(decoder.zero * decoder.tick)
    if stream.duration:
        return float(stream.duration * decoder.tick), True
    matroska = "matroska" in container.format.name
    if matroska and (tag := stream.metadata.get("DURATION")):
        with suppress(ValueError):  # of a tag that is not like 00:01:02.500
            hours, minutes, rest = tag.split(":")
            length = int(hours) * 3600 + int(minutes) * 60 + float(rest)
            # mkvmerge, which also tags statistics, gives the length; FFmpeg the end on the file's clock.
            length -= 0.0 if "_STATISTICS_TAGS" in stream.metadata else zero
            if length > 0:
                return length, True
    if not container.duration:
        return None, False
    # Matroska states the end on the file's clock; of other formats FFmpeg computes the length of all streams.
    began = 0 if matroska else container.start_time or 0
    end = (began + container.duration) / av.time_base - zero
    return (end, False) if end > 0 else (None, False)


def last_packet(decoder: Decoder, *, others: bool = False) -> int:
    """Ticks at which the last packet of the video ends, or the last of other streams. Decodes nothing."""
    container, stream, _ = open_video(decoder.path)
    last, least = decoder.zero, 0 if others else decoder.step
    with container, suppress(FFmpegError):  # after an error there is no more
        if others:  # asked at the end of the pictures: what comes later is of interest
            container.seek(decoder.zero + math.floor(decoder.end / decoder.tick), stream=stream)
        for packet in container.demux():
            if (packet.stream_index == stream.index) is others or not packet.size or packet.is_discard:
                continue
            if packet.pts is None:  # of a raw stream
                last += least
            else:
                end = (packet.pts + max(packet.duration or 0, least)) * packet.time_base
                last = max(last, math.floor(end / decoder.tick))
    return last


def open_video(path: str | os.PathLike[str]) -> tuple[InputContainer, VideoStream, str]:
    """The file, its main video stream and its name.

    Raises:
        VideoError: in one sentence, what the file is instead and what to do.
    """
    name, beginning = str(path), b""
    if os.path.isdir(name):
        raise VideoError(f"{name} is a folder; expected one video file, so add the file's name")
    try:
        with open(name, "rb") as file:
            beginning = file.read(8)
        if not beginning:
            raise VideoError(f"{name} is empty (0 bytes); expected a video file, so copy or download it again")
        # Absolute, since "a:b.mp4" is a protocol to FFmpeg; "replace", since metadata may be any bytes.
        container = av.open(os.path.abspath(name), metadata_errors="replace")
    except FileNotFoundError:
        raise VideoError(f"{name} does not exist; expected a video file, so check the path") from None
    except OSError as error:
        why = error.strerror or "unknown reason"
        raise VideoError(f"{name} cannot be read ({why}); expected a video file that you may read") from None
    except FFmpegError:
        if beginning[4:] in (b"ftyp", b"mdat", b"wide", b"free", b"skip", b"moov"):
            what = "is an MP4 or MOV file that was cut off: its index (moov), which is written last, is missing"
            raise VideoError(f"{name} {what}; expected a whole file, so copy or record it again") from None
        what = "is not a video; expected MP4, MKV, MOV, WebM or the like"
        raise VideoError(f"{name} {what}, so check that a video player shows it") from None
    try:
        return container, _main_stream(container, name), name
    except VideoError:
        container.close()
        raise


def _main_stream(container: InputContainer, name: str) -> VideoStream:
    """What a player shows: no cover, no thumbnail, no still image."""
    kind, brand = container.format.name, container.metadata.get("major_brand", "").strip()
    if kind in ("image2", "ico") or kind.endswith("_pipe") or brand in ("avif", "heic", "heix", "mif1"):
        raise VideoError(f"{name} is a still image; expected a video file, so give one with moving pictures")
    stills = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [] if kind == "tty" else [s for s in container.streams.video if not s.disposition & stills]
    if not streams:
        what = "only sound" if container.streams.audio else "no moving pictures"
        raise VideoError(f"{name} holds {what}; expected a video file such as MP4, MKV or WebM, so check the path")
    # PyAV's types say that there always is one; where FFmpeg knows no decoder, there is none.
    known = [stream for stream in streams if stream.codec_context is not None]  # type: ignore[redundant-expr]
    if not known:
        raise VideoError(
            f"{name} has a video codec that FFmpeg does not know; expected one such as H.264, so convert it"
        )
    for stream in known:
        stream.thread_type = "AUTO"
    best = container.streams.best("video")
    return next((stream for stream in known if best is not None and stream.index == best.index), known[0])
