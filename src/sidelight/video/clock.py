"""Learn a file's clock without decoding: which recordings the file joins, where timestamps break, where frames end.

``parts_of`` finds whole files that were written one after the other into one file (``cat a.mkv b.mkv``); FFmpeg reads
such a file wrongly or only its first part, so each part is opened alone. ``read_clock`` reads all packets of one part.
Timestamps of a stream may restart or jump in the middle, where a broadcast was cut or two recordings were joined; the
clock then goes on from the last frame, as in ffmpeg.

*Ticks* are timestamps as the file has them, in units of the stream's time base.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from functools import lru_cache
from typing import IO, Any, NamedTuple

from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.stream import VideoStream

from sidelight.io.files import path_text
from sidelight.video.playlist import files_of, is_playlist

_BACK = Fraction(1, 10)  # s; a timestamp that is earlier than the one before by more is a break, as in ffmpeg
_AHEAD = 10  # s; so is one that is later by more, in a broadcast format, as in ffmpeg
_AHEAD_FRAMES = 8  # unless frames are that far apart
_BETWEEN = 1  # s; sound further than this from both ends of a gap, in both halves, shows that the gap is real

# How a file begins that others may follow. MP4 is read box by box instead, because "ftyp" alone may occur by chance.
_BEGINNINGS = {
    b"\x1aE\xdf\xa3": re.compile(rb"\x1aE\xdf\xa3.{1,60}?\x42\x82.(?:matroska|webm)", re.DOTALL),
    b"FLV\x01": re.compile(rb"FLV\x01.\0\0\0\x09\0\0\0\0", re.DOTALL),
    b"RIFF": re.compile(rb"RIFF....AVI LIST....hdrl", re.DOTALL),
}
_LONGEST_BEGINNING = 80  # bytes
_BOXES = (b"ftyp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"styp", b"sidx", b"uuid", b"mfra", b"pdin")
_BLOCK = 1 << 20  # bytes


class Part(NamedTuple):
    """A whole recording in a file."""

    begin: int = 0
    """Its first byte."""
    end: int = 0
    """The byte after its last byte; 0 for the end of the file."""
    indexed: bool = False
    """Whether its header lists all of its frames, as in MP4 without fragments."""

    def address(self, path: str) -> str:
        """Return the name by which FFmpeg opens the part: absolute, since "a:b.mp4" is a protocol to FFmpeg."""
        whole = os.path.abspath(path)
        return f"subfile,,start,{self.begin},end,{self.end},,:{whole}" if self.end else whole


class Clock(NamedTuple):
    """What the packets of a video stream say about its time."""

    breaks: tuple[tuple[int, int], ...]
    """(number of a packet of the stream, ticks to add to the timestamps from this packet on), in order."""
    end: int | None
    """Ticks at which the last packet ends, on the continued clock; None without packets."""


def parts_of(path: str | os.PathLike[str]) -> tuple[Part, ...]:
    """Return the recordings that a file joins: one of an ordinary file, and of a file that cannot be read."""
    name = path_text(path)
    with suppress(OSError):
        if os.path.isfile(name) and not is_playlist(name):
            return _parts_of(name, *state_of(name))
    return (Part(),)


def state_of(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return the size of a file and the time of its last change, by which results of reading it are kept.

    Of a playlist, they are the sum of the sizes of its files, and the time of the last change of any.
    """
    files = files_of(path_text(path)) if is_playlist(path) else [path]
    states = [os.stat(file) for file in files]
    return sum(state.st_size for state in states), max(state.st_mtime_ns for state in states)


@lru_cache(maxsize=16)
def _parts_of(path: str, size: int, changed: int) -> tuple[Part, ...]:
    with open(path, "rb") as file:
        start = file.read(8)
        if start[4:] in _BOXES:
            parts = _mp4_parts(file, size)
        elif (pattern := _BEGINNINGS.get(start[:4])) is not None:
            begins = [0, *_search(file, pattern)]
            parts = [Part(begin, end) for begin, end in zip(begins, [*begins[1:], size], strict=True)]
        else:
            parts = []
    return tuple(parts) if len(parts) > 1 else (Part(indexed=bool(parts) and parts[0].indexed),)


def _search(file: IO[bytes], pattern: re.Pattern[bytes]) -> list[int]:
    """Return the places of a pattern after the beginning of a file."""
    places, offset, data = list[int](), 0, b""
    file.seek(0)
    while block := file.read(_BLOCK):
        kept = data[-_LONGEST_BEGINNING:]  # a match may reach over the end of a block
        data = kept + block
        base = offset - len(kept)
        places += [base + match.start() for match in pattern.finditer(data)]
        offset += len(block)
    return sorted(set(places) - {0})


def _mp4_parts(file: IO[bytes], size: int) -> list[Part]:
    """Return the recordings of an MP4 file; each begins with a file type box and has a movie header (ISO 14496-12)."""
    groups, place = [(0, list[bytes]())], 0  # first byte, and kinds of boxes
    while place + 8 <= size:
        file.seek(place)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:
            length = size - place
        if length < 8:
            break
        if kind == b"ftyp" and place > 0:
            groups.append((place, []))
        groups[-1][1].append(kind)
        place += length
    # A segment may begin with a file type box too, but has no movie header.
    begins = [begin for begin, kinds in groups if begin == 0 or b"moov" in kinds]
    parts = []
    for begin, end in zip(begins, [*begins[1:], size], strict=True):
        kinds = {kind for first, kinds in groups if begin <= first < end for kind in kinds}
        parts.append(Part(begin, end, b"moov" in kinds and b"moof" not in kinds))
    return parts


def may_jump(container: InputContainer) -> bool:
    """Check whether timestamps of this format may jump, as in broadcasts (AVFMT_TS_DISCONT)."""
    return container.format.flags & 0x200 > 0


def read_clock(container: InputContainer, stream: VideoStream, step: int) -> Clock:
    """Read all packets of a stream, decode none, and return the stream's clock.

    Args:
        container: just opened.
        stream: of the container.
        step: ticks from frame to frame, where the file does not state them.
    """
    tick, number, shift = stream.time_base or Fraction(1, 1000), -1, 0
    jumps = may_jump(container)
    ahead = max(Fraction(_AHEAD), _AHEAD_FRAMES * step * tick)
    breaks, end = list[tuple[int, int]](), None
    previous: int | None = None  # decoding ticks of the packet before
    doubtful: tuple[int, int, int, int] | None = None  # number, decoding, presentation and ending ticks of a packet
    # Ticks far from the decoding ticks: in MPEG, the last packet before a break may have the timestamp of the next one.
    strange: int | None = None
    sound: list[Fraction] = []  # s; timestamps of other streams after the packet before
    for packet in _packets(container):
        if packet.stream_index != stream.index:
            if jumps and packet.dts is not None and packet.time_base is not None:
                sound.append(packet.dts * packet.time_base)
            continue
        number += 1
        if packet.pts is None:  # of a raw stream
            end = (end or 0) + step
            continue
        time, length = packet.dts, max(packet.duration or 0, step)
        last = packet.pts + length
        if doubtful is not None and time is not None:
            first, first_time, presented, first_last = doubtful
            doubtful = None
            # A break lasts; a single wrong timestamp does not.
            if previous is not None and abs(time - first_time) < abs(time - previous):
                if strange is not None:
                    breaks.append((first - 1, (end or 0) - strange))
                    end, strange = (end or 0) + step, None
                shift = (end or 0) - presented
                breaks.append((first, shift))
                end = max(end or 0, first_last + shift)
                previous = first_time
        if previous is not None and time is not None:
            begin, gap = previous * tick, (time - previous) * tick
            sound = [second for second in sound if second > begin + _BETWEEN]
            halves = {second < begin + gap / 2 for second in sound if second < begin + gap - _BETWEEN}
            if gap < -_BACK or (jumps and gap > ahead and len(halves) < 2):
                doubtful = number, time, packet.pts, last
                continue
        previous = time if time is not None else previous
        if strange is not None:
            end, strange = max(end or 0, strange + step + shift), None
        if jumps and time is not None and end is not None and abs(packet.pts - time) * tick > _AHEAD:
            strange = packet.pts
        else:
            end = last + shift if end is None else max(end, last + shift)
    return Clock(tuple(breaks), end)


def _packets(container: InputContainer) -> Iterator[Packet[Any]]:
    """Yield the packets that hold data; end at the first place that cannot be read."""
    with suppress(FFmpegError):
        for packet in container.demux():
            if packet.size and not packet.is_discard:
                if container.format.name == "avi":
                    packet.pts = packet.dts  # AVI has no other times, and FFmpeg guesses
                yield packet
