"""Decode a video file: frames in the order of time, and jumps.

``opening`` opens the file, ``damage`` counts the frames that a damaged file did not give.

Where is a frame's time decided? ``Decoder._next_frame`` takes the presentation timestamp that the file gives the
frame, in *ticks* (units of the stream's time base); a raw stream has none, so its frames are counted, and AVI states
only when a frame is decoded (``_time_in_order``). Where timestamps break, ``clock`` says how they go on.
``Decoder.seconds`` turns ticks into seconds since ``Decoder.zero``: the start of the video stream, or of the sound if
that starts clearly earlier.

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
from functools import lru_cache
from typing import Any, NamedTuple

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from sidelight.io.files import path_text
from sidelight.video.clock import Clock, Part, may_jump, parts_of, read_clock, state_of
from sidelight.video.damage import DamageLog, VideoError
from sidelight.video.nal import NalReader
from sidelight.video.opening import open_video

_END_TOLERANCE = 0.5  # s, or two frames if longer: an undamaged video may end this much before its stated end
_LEAD = (0.5, 10.0)  # s; sound may start this much before the video in ordinary files, and in unbroken broadcasts
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

    def __init__(self, path: str | os.PathLike[str], threads: int = 0, part: Part | None = None) -> None:
        self.path, self.threads = path_text(path), threads
        self.part = part or parts_of(self.path)[0]
        self._open()
        stream = self.stream
        self.tick = stream.time_base or Fraction(1, 1000)
        self.fps = stream.average_rate or stream.guessed_rate or stream.base_rate or Fraction(25)
        # Ticks from frame to frame where the file does not state them.
        self.step = max(1, round(1 / (stream.guessed_rate or self.fps) / self.tick))
        self.end_tolerance = max(_END_TOLERANCE, float(2 * self.step * self.tick))
        self.clock = self._read_clock()
        self.zero = 0  # ticks at second 0
        self.lead = 0.0  # s of sound before the video stream
        self.end = 0.0  # s at which the last frame that was read ends
        self.damage = DamageLog(self.tick, self.step)
        # At all, and without an index. Places are found by timestamps, which must ascend.
        self._can_jump = self._can_jump_blind = not self.clock.breaks
        self._index_delay: int | None = None  # ticks from a keyframe's time in the index to its presentation
        self._matroska = "matroska" in self.container.format.name
        self._avi = self.container.format.name == "avi"
        self._wanted_seconds: Sequence[float] = ()  # ascending; empty: all
        self._skipped = 0  # packets
        self._unreliable = False  # whether packets or frames are not as in an undamaged file
        self._delay: int | None = None  # AVI: ticks from a frame's decoding to its showing
        self._nal = NalReader(stream)
        self._restart()
        if self._matroska and self._can_jump:
            self._seek(stream.start_time or 0)  # Matroska's index is read at the first seek only
        first = self._next_frame()
        if first is None:
            self.close()
            raise VideoError(self._undecodable())
        ticks, self.first = first
        # Frames that could not be decoded before the first one are part of the video too.
        self.zero = min([ticks, *self.damage.pending])
        if self.seconds(ticks) > self.end_tolerance:
            self.damage.add(self.zero, ticks)
        self._count_from_sound()
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
        if self._nal.can_tell and not self._avi and not self.damage.lost and not self._unreliable:
            self._wanted_seconds = seconds

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
            if stated is None or (of_audio and self._other_streams_end() + self.end_tolerance >= stated):
                stated = packets_end  # the file's duration is that of its audio, which goes on after the frames
            missing = max(stated, packets_end) - self.end
            self.damage.missing = missing if missing > self.end_tolerance else 0.0
        return self.damage.missing > 0

    def damage_message(self) -> str:
        """Return a sentence about the damage met so far; empty if there was none.

        Raises:
            VideoError: if the damage is the whole video.
        """
        if self.damage.is_total(self.end - self.lead):
            raise VideoError(self._undecodable())
        return self.damage.message(self.path, end=self.end, stated_end=self.stated_end()[0] or 0.0)

    def _undecodable(self) -> str:
        codec = self.stream.codec_context.codec.canonical_name
        problem = f"is a {codec} video of which not one frame could be decoded"
        return f"{self.path} {problem}; check that a video player shows it, or get a fresh copy"

    def duration(self) -> float:
        """Return the seconds to the end of the video: as the file states them, or as its frames show them."""
        return self.stated_end()[0] or self.frames_end() or 0.0

    def frames_end(self) -> float | None:
        """Return the second at which the last frame ends by the file's index or packets; None if unknown."""
        if self.clock.end is not None:
            return self.seconds(self.clock.end)
        index = self.stream.index_entries
        last = next((i for i in reversed(range(len(index))) if not index[i].is_discard), None)
        if not self.part.indexed or last is None:
            return None
        return self.seconds(index[last].timestamp + (self._index_delay or 0) + self.step)

    def notes(self) -> tuple[str, ...]:
        """Return a sentence about each way in which times differ from the file's own statements."""
        notes, frames_end, (header_end, _) = [], self.frames_end() or 0.0, self._header_end()
        if self.clock.breaks:
            notes.append(f"{self.path}: timestamps restart or jump, as where recordings were joined")
            notes[-1] += f"; times go on from frame to frame, {frames_end:.2f} s in all"
        elif header_end is not None and frames_end > header_end + self.end_tolerance:
            notes.append(f"{self.path} states a duration of {header_end:.2f} s, but its frames go on")
            notes[-1] += f"; it is read to the last frame, at {frames_end:.2f} s"
        elif self._starts_late(header_end, frames_end):
            start = float(self.zero * self.tick) + self.lead
            notes.append(f"{self.path} starts at {start:.2f} s of its own clock and holds {frames_end:.2f} s")
            notes[-1] += "; times count from its first frame"
        if self.lead:
            notes.append(f"{self.path}: the video starts {self.lead:.2f} s after the sound")
            notes[-1] += "; times count from the start of the sound, as in a player"
        return tuple(notes)

    def stated_end(self) -> tuple[float | None, bool]:
        """Return the second at which the video ends by its header, and whether this is stated for the video stream.

        Where the header ends before the frames, or counts from another place than the first frame, the frames decide.
        """
        header_end, of_this_stream = self._header_end()
        frames_end = self.frames_end()
        if header_end is None or frames_end is None:
            return header_end, of_this_stream
        too_short = frames_end > header_end + self.end_tolerance
        if too_short or self.clock.breaks or self._starts_late(header_end, frames_end):
            return frames_end, True
        return header_end, of_this_stream

    def _starts_late(self, header_end: float | None, frames_end: float) -> bool:
        """Check whether the header's duration is too long because the file's own clock starts late.

        A header may state the end on that clock, as of the last segments of a stream. Where MP4 has an empty edit
        before trimmed media, FFmpeg returns the length of the media before trimming.
        """
        start = float(self.zero * self.tick) + self.lead
        if header_end is None or header_end <= frames_end + self.end_tolerance or start <= self.end_tolerance:
            return False
        index = self.stream.index_entries
        trimmed = self.part.indexed and (len(index) < self.stream.frames or any(entry.is_discard for entry in index))
        return trimmed or abs(header_end - start - frames_end) <= self.end_tolerance

    def _header_end(self) -> tuple[float | None, bool]:
        """Return the second at which the file states that it ends, and whether it states this for the video stream."""
        stream, container, zero = self.stream, self.container, float(self.zero * self.tick)
        if stream.duration:
            return float(stream.duration * self.tick) + self.lead, True
        if self._matroska and (tag := stream.metadata.get("DURATION")):
            with suppress(ValueError):  # of a tag that is not like 00:01:02.500
                hours, minutes, rest = tag.split(":")
                length = int(hours) * 3600 + int(minutes) * 60 + float(rest)
                # mkvmerge, which also tags statistics, gives the length; FFmpeg gives the end on the file's clock.
                length += self.lead if "_STATISTICS_TAGS" in stream.metadata else -zero
                if length > 0:
                    return length, True
        if not container.duration:
            return None, False
        # Matroska states the end on the file's clock; of other formats FFmpeg computes the length of all streams.
        start = 0 if self._matroska else container.start_time or 0
        end = (start + container.duration) / av.time_base - zero
        return (end, False) if end > 0 else (None, False)

    def _other_streams_end(self) -> float:
        """Return the second at which the last packet of the other streams ends; decode nothing."""
        container, stream = open_video(self.path, self.part)
        last = self.zero
        with container, suppress(FFmpegError):  # after an error there are no more packets
            # Called after the last frame: only later packets matter.
            container.seek(self.zero + math.floor(self.end / self.tick), stream=stream)
            for packet in container.demux():
                if packet.stream_index == stream.index or not packet.size or packet.is_discard or packet.pts is None:
                    continue
                end = (packet.pts + (packet.duration or 0)) * packet.time_base
                last = max(last, math.floor(end / self.tick))
        return self.seconds(last)

    def _read_clock(self) -> Clock:
        """Return the clock of the file. It is kept, because a file is opened several times."""
        if self.part.indexed:
            return Clock((), None)
        try:
            return _clock_of(self.path, self.part, self.step, *state_of(self.path))
        except OSError:  # not a file, such as a pipe
            return Clock((), None)

    def _count_from_sound(self) -> None:
        """Let second 0 be the start of the sound, as in a player, if the video starts clearly later."""
        sounds = self.container.streams.audio
        starts = [s.start_time * s.time_base for s in sounds if s.start_time is not None and s.time_base is not None]
        least, most = _LEAD
        if not starts or not least < (lead := self.zero * self.tick - min(starts)):
            return
        if lead > most and may_jump(self.container):
            return  # the clocks of the two streams differ
        zero = round(min(starts) / self.tick)
        self.lead, self.zero = float((self.zero - zero) * self.tick), zero

    def _keyframe_before(self, ticks: int) -> int | None:
        """Return the presentation ticks of the last keyframe in the index that is not after ``ticks``."""
        index, delay = self.stream.index_entries, self._index_delay or 0
        entry = index.search_timestamp(ticks - delay)
        return index[entry].timestamp + delay if entry >= 0 else None

    def _ticks_at(self, second: float) -> int:
        return math.floor(Fraction(second) / self.tick + Fraction(1, 1000)) + self.zero  # floats are rounded

    def _open(self) -> None:
        self.container, self.stream = open_video(self.path, self.part)
        self.stream.codec_context.thread_count = self.threads

    def _restart(self) -> None:
        """Begin to read at the file's current place."""
        self._packets = self._demux()
        self._ready, self._lookahead, self._announced = deque(), deque(), []
        self._ended = False
        self._previous = self._position = self._earliest = None
        self._number = -1  # of the last packet, counted from the start of the file
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
        is_keyframe = frame is not None and frame.av_frame.pts == packet.pts
        return frame if frame is not None and is_keyframe and frame.seconds <= second else None

    def _next_frame(self) -> tuple[int, VideoFrame] | None:
        """Return the next frame and its time in ticks; None at the end."""
        while True:
            while self._ready:
                frame = self._ready.popleft()
                ticks = self._time_in_order(frame) if self._avi else frame.pts
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

    def _time_in_order(self, frame: VideoFrame) -> int | None:
        """Return when a frame of AVI is shown; None to count on from the frame before.

        Frames leave the decoder in the order of showing, each with the decoding time of the packet that drove it out.
        From the first one of the file, a keyframe, we learn how much later that is than its own decoding time.
        """
        if frame.dts is None:
            return None if self._previous is not None else frame.pts
        if self._delay is None:
            self._delay = max(0, frame.dts - (frame.pts if frame.pts is not None else frame.dts))
        return frame.dts - self._delay

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
        """Read the next packet of the file; None at the end of the readable file.

        Raises:
            VideoError: if the packet is encrypted.
        """
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
            if packet.has_sidedata("encryption_info"):  # only where the key is unknown
                self.close()
                raise VideoError(f"{self.path} is encrypted (DRM), so it cannot be decoded; expected an open copy")
            self._continue_clock(packet)
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

    def _continue_clock(self, packet: Packet[VideoStream]) -> None:
        """Set the timestamps of the next packet so that they go on across breaks; AVI only states decoding times."""
        if not packet.size or packet.is_discard:
            return
        self._number += 1
        if self._avi:
            packet.pts = packet.dts
        shift = next((ticks for first, ticks in reversed(self.clock.breaks) if self._number >= first), 0)
        if shift and packet.pts is not None:
            packet.pts += shift
        if shift and packet.dts is not None:
            packet.dts += shift

    def _decode(self, packet: Packet[VideoStream] | None) -> None:
        """Decode a packet into ``_ready``; None flushes the frames that the decoder held back."""
        self._ended = packet is None
        try:
            self._ready.extend(self.stream.codec_context.decode(packet))
        except FFmpegError:
            self._unreliable = True  # the packet stays pending in the damage log, and the next one may be good


@lru_cache(maxsize=16)
def _clock_of(path: str, part: Part, step: int, size: int, changed: int) -> Clock:
    container, stream = open_video(path, part)
    with container:
        return read_clock(container, stream, step)
