"""Read a video file: its properties (``probe``) and its frames at given seconds (``frames_at``).

Second 0 is where the video stream starts, whatever the file's own clock shows there; if the sound starts clearly
earlier, it is where the sound starts, as in a player. A frame is shown from its own presentation timestamp until the
next frame's; a frame rate never replaces a timestamp that the file gives. Recordings that were joined in one file
follow each other without a gap.

Where is a frame's time decided? ``Decoder._next_frame`` in ``decoder`` takes each frame's timestamp, and
``Decoder.seconds`` turns it into seconds. ``_shown_frames`` here decides which frame is shown at a wanted second.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice, pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, VideoReformatter
from av.video.stream import VideoStream

from sidelight.core.messages import size_of
from sidelight.core.timeline import FrameTimes
from sidelight.io.files import path_text
from sidelight.video.clock import Part, parts_of, state_of
from sidelight.video.damage import VideoError, VideoWarning, warn
from sidelight.video.decoder import DecodedFrame, Decoder
from sidelight.video.hdr import HLG, PQ, to_sdr
from sidelight.video.opening import open_image

__all__ = ["Frame", "Resize", "VideoError", "VideoInfo", "VideoWarning", "frames_at", "probe", "read_image"]

MOST_DAYS = 30
"""Days of the longest video that is read."""
_DAY, _FREE_SECONDS = 86400, 3600
_LEAST_BYTES_PER_SECOND = 10
"""Of a video longer than an hour. One still frame a second takes more, so only wrong timestamps give less."""

Resize = Literal["stretch", "crop"]

# Flags of swscale (PyAV 18 has names for them): area-aware bicubic; every chroma sample used; rounded, where the
# default cuts off (half a level darker); the same bits on every processor, so that features are the same too.
_SCALER_FLAGS = 0x4 | 0x2000 | 0x40000 | 0x80000

_ROUNDING = 5e-7
"""Seconds; ffprobe and others print times with six decimals, so a printed time may lie just before the frame's own."""


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """The properties of a video file."""

    path: str
    duration: float
    """Seconds from the start of the video stream to its end, as the file states it."""
    fps: Fraction
    """Frames per second on average; says nothing about a variable rate."""
    width: int
    """Pixels as displayed: turned upright, with square pixels."""
    height: int
    """Pixels as displayed."""
    rotation: int
    """Degrees (0, 90, 180, 270) by which the stored frame is turned clockwise for display."""
    codec: str
    container: str
    """FFmpeg's name of the file format."""
    pixel_format: str
    start: float
    """Seconds on the file's own clock at second 0 of the video."""
    hdr: str = ""
    """The transfer function of a video of high dynamic range: pq or hlg; its frames are mapped."""
    notes: tuple[str, ...] = ()
    """Sentences: where times differ from the file's own statements, such as a duration that is too short."""


@dataclass(frozen=True)
class Frame:
    """One frame of a video."""

    seconds: float
    """The frame's own presentation time, in seconds from the video's start."""
    image: npt.NDArray[np.uint8]
    """(H, W, 3) RGB. Wanted times that show the same frame share one array."""


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Return the properties of a video file. Decodes one frame, so a file that passes is a video.

    Raises:
        VideoError: if the file cannot be read as a video, or its timestamps state an absurd duration: more than
            MOST_DAYS, or more than an hour with less than 10 bytes for each further second.
    """
    recordings, unreadable = _recordings(path)
    info = recordings[0][1]
    duration = sum(info.duration for _, info in recordings)
    _check_duration(path_text(path), duration)
    if len(recordings) + len(unreadable) == 1:
        return info
    note = f"{path_text(path)} joins {len(recordings)} recordings; they follow each other, {duration:.2f} s in all"
    return replace(info, duration=duration, notes=(note, *unreadable))


def _check_duration(path: str, seconds: float) -> None:
    """Refuse a duration that is longer than any recording, or than a file of this size can fill."""
    if seconds > _DAY * MOST_DAYS:
        problem = f"lasts {seconds / _DAY:,.0f} days by its timestamps, and at most {MOST_DAYS} days are read"
        raise VideoError(f"{path} {problem}; cut it into shorter files, or repair its timestamps")
    size = state_of(path)[0]
    most = _FREE_SECONDS + size / _LEAST_BYTES_PER_SECOND
    if seconds > most:
        problem = f"lasts {seconds / 3600:,.1f} hours by its timestamps, but has only {size_of(size)}"
        raise VideoError(
            f"{path} {problem}, which are read as {most / 3600:,.1f} hours at most ({_LEAST_BYTES_PER_SECOND} bytes a "
            "second after the first hour); repair its timestamps"
        )


def _recordings(path: str | os.PathLike[str]) -> tuple[list[tuple[Part, VideoInfo]], list[str]]:
    """Return the recordings in a file, and a sentence about each that cannot be read, unless none can."""
    recordings, unreadable = list[tuple[Part, VideoInfo]](), list[str]()
    parts = parts_of(path)
    for part in parts:
        try:
            recordings.append((part, _part_info(path, part, alone=len(parts) == 1)))
        except VideoError as error:
            if part is parts[-1] and not recordings:
                raise
            unreadable.append(f"a recording in {os.fspath(path)} is left out: {error}")
    return recordings, unreadable


def _part_info(path: str | os.PathLike[str], part: Part, *, alone: bool) -> VideoInfo:
    decoder = Decoder(path, part=part)
    try:
        first = decoder.first
        turn, (width, height) = _turn(first), _displayed_size(first, decoder.stream)
        duration, frames_end = decoder.duration(), decoder.frames_end()
        if not alone and not part.indexed and frames_end is not None:
            duration = frames_end  # where the next recording follows
        return VideoInfo(
            path=decoder.path,
            duration=duration,
            fps=decoder.fps,
            width=width,
            height=height,
            rotation={(True, True, False): 90, (False, True, True): 180, (True, False, True): 270}.get(turn, 0),
            codec=decoder.stream.codec_context.codec.canonical_name,
            container=decoder.container.format.name,
            pixel_format=first.format.name,
            start=float(decoder.zero * decoder.tick),
            hdr={PQ: "pq", HLG: "hlg"}.get(decoder.stream.codec_context.color_trc, ""),
            notes=decoder.notes(),
        )
    finally:
        decoder.close()


def frames_at(
    path: str | os.PathLike[str],
    seconds: Sequence[float],
    *,
    size: tuple[int, int] | None = None,
    resize: Resize = "stretch",
    threads: int = 0,
    on_damage: Callable[[str], None] | None = None,
) -> Iterator[Frame]:
    """Yield the frame shown at each wanted time: the last frame that starts at or before it (or a microsecond after).

    A time before the first frame gets the first frame, a time after the end of a whole video gets the last frame.
    Where a damaged file lacks frames, the last good frame is repeated; where the file breaks off, the iterator ends
    early. Both are reported once. Other frames are decoded only where a wanted frame needs them or may need them, and
    are never converted to RGB; damage to the rest goes unnoticed. Colours without a tag are read as players do: BT.709
    for high definition, BT.601 below. HDR (PQ, HLG) is mapped to the standard range (``hdr``).

    Args:
        path: the file.
        seconds: ascending times from the video's start.
        size: (width, height) of the images; as displayed if None.
        resize: "stretch" to the size, or "crop": scale until the size is covered, then cut out the middle.
        threads: threads of the decoder; 0 for one per processor. The images do not depend on it.
        on_damage: called with a sentence about the damage, and with the notes of ``probe``; if None, a VideoWarning is
            issued for each.

    Yields:
        Exactly one Frame per wanted time, in order. Memory does not grow with the video.

    Raises:
        ValueError: if the times do not ascend, or size or resize is none of the above.
        VideoError: if the file cannot be read as a video.
    """
    if not isinstance(seconds, FrameTimes):
        seconds = _ascending(seconds)
    lengths: Any = size  # of any type
    if size is not None and not (len(lengths) == 2 and all(type(n) is int and n > 0 for n in lengths)):
        raise ValueError(f"size must be (width, height), whole pixels above 0, or None; got {size!r}")
    if resize not in ("stretch", "crop"):
        raise ValueError(f"resize must be 'stretch' or 'crop', got {resize!r}")
    wanted_seconds, report = _Moved(seconds, _ROUNDING), on_damage or warn
    if len(parts_of(path)) > 1:
        info, recordings = probe(path), _recordings(path)[0]
        size = size or (info.width, info.height)

        def frames_of(part: Part, seconds: Sequence[float]) -> Iterator[Frame]:
            decoder = Decoder(path, threads, part)
            return _frames(decoder, _RgbConverter(decoder.first, decoder.stream, size, resize), seconds, report)

        lengths = [(part, info.duration) for part, info in recordings]
        return _noted(info.notes, report, _joined_frames(lengths, frames_of, wanted_seconds))
    decoder = Decoder(path, threads)  # opened here, not in the generator, so that a bad file is reported at once
    frames = _frames(decoder, _RgbConverter(decoder.first, decoder.stream, size, resize), wanted_seconds, report)
    return _noted(decoder.notes(), report, frames)


def read_image(
    path: str | os.PathLike[str], *, size: tuple[int, int], resize: Resize = "stretch"
) -> npt.NDArray[np.uint8]:
    """Return a still image as (H, W, 3) RGB.

    Args:
        path: the file: JPEG, PNG or another kind that FFmpeg reads.
        size: (width, height) of the result.
        resize: as for :func:`frames_at`.

    Raises:
        VideoError: if the file is no still image, or is damaged.
    """
    name = path_text(path)
    container, stream = open_image(name)
    with container:
        try:
            frame = next(container.decode(stream), None)
        except FFmpegError:
            frame = None
        if frame is None:
            raise VideoError(f"{name} is a damaged image; expected one that a viewer shows")
        return _RgbConverter(frame, stream, size, resize).convert(frame)


def _ascending(seconds: Sequence[float]) -> list[float]:
    """Return wanted times as numbers; ValueError unless they are finite and ascend."""
    try:
        numbers = [float(second) for second in seconds]
    except (TypeError, ValueError):
        raise ValueError(f"seconds must be a sequence of numbers, got {seconds!r}") from None
    if not all(map(math.isfinite, numbers)):
        raise ValueError("seconds must be finite, but a NaN or an infinity is among the wanted times")
    for before, after in pairwise(numbers):
        if after < before:
            raise ValueError(f"seconds must ascend, but {after} comes after {before}; sort the wanted times")
    return numbers


class _Moved(Sequence[float]):
    """A part of a row of times, moved; the times of a long video are computed where they are read, and never kept."""

    def __init__(self, seconds: Sequence[float], by: float, part: slice = slice(None)) -> None:
        self._seconds, self._by, self._range = seconds, by, range(len(seconds))[part]

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, index: Any) -> Any:
        return self._seconds[self._range[index]] + self._by


def _noted(notes: Sequence[str], report: Callable[[str], None], frames: Iterator[Frame]) -> Iterator[Frame]:
    """Report the notes when the first frame is read."""
    for note in notes:
        report(note)
    yield from frames


def _joined_frames(
    recordings: Sequence[tuple[Part, float]],
    frames_of: Callable[[Part, Sequence[float]], Iterator[Frame]],
    wanted_seconds: Sequence[float],
) -> Iterator[Frame]:
    """Yield the frame shown at each wanted second, where recordings follow each other.

    Args:
        recordings: each with its seconds.
        frames_of: yields the frames of a recording at seconds since its start.
        wanted_seconds: since the start of the first recording.
    """
    start, first = 0.0, 0
    for number, (part, length) in enumerate(recordings):
        is_last = number == len(recordings) - 1
        after = len(wanted_seconds) if is_last else bisect_left(wanted_seconds, start + length)
        frame, missing = None, after - first
        if missing:
            for frame in frames_of(part, _Moved(wanted_seconds, -start, slice(first, after))):
                frame, missing = replace(frame, seconds=frame.seconds + start), missing - 1
                yield frame
        if frame is not None and not is_last:
            yield from [frame] * missing  # this recording breaks off, and others follow
        start, first = start + length, after


def _frames(
    decoder: Decoder, converter: _RgbConverter, wanted_seconds: Sequence[float], report: Callable[[str], None]
) -> Iterator[Frame]:
    """Yield the frame shown at each wanted second as RGB.

    Damage is reported before the last frame is yielded: a caller that counts does not ask for one more.
    """
    frame, count = None, 0
    try:
        decoder.skip_unwanted(wanted_seconds)
        shown_frames = _shown_frames(decoder, wanted_seconds)
        while (decoded := next(shown_frames, None)) is not None:
            if decoder.skipped_too_much(decoded, wanted_seconds[count]):  # begin again, and skip nothing
                decoder.close()
                decoder = Decoder(decoder.path, decoder.threads, decoder.part)
                shown_frames = islice(_shown_frames(decoder, wanted_seconds), count, None)
                continue
            count += 1
            if frame is None or frame.seconds != decoded.seconds:
                frame = Frame(decoded.seconds, converter.convert(decoded.av_frame))
            if count == len(wanted_seconds) and (message := decoder.damage_message()):
                report(message)
            yield frame
        if count < len(wanted_seconds) and (message := decoder.damage_message()):
            report(message)
    finally:
        decoder.close()


def _shown_frames(decoder: Decoder, wanted_seconds: Sequence[float]) -> Iterator[DecodedFrame]:
    """Yield the frame shown at each wanted second, until a file that breaks off ends."""
    current, following = None, decoder.read()
    for second in wanted_seconds:
        if following is not None and following.seconds <= second and decoder.should_jump(second):
            current, following = None, decoder.jump(second)
        while following is not None and following.seconds <= second:
            current, following = following, decoder.read()
        shown = current or following
        if shown is None:  # the first pass over the file found a frame
            raise VideoError(f"{decoder.path} has changed while it was read; leave it alone and try again")
        at_end = following is None and second >= decoder.end
        if not decoder.skipped_too_much(shown, second) and at_end and decoder.is_truncated():
            return
        yield shown


class _RgbConverter:
    """Converts frames to upright RGB arrays of one size."""

    def __init__(self, first: VideoFrame, stream: VideoStream, size: tuple[int, int] | None, resize: Resize) -> None:
        displayed = _displayed_size(first, stream)
        self._size = self._scaled = size if size is not None else displayed
        if resize == "crop":
            scale = max(self._size[0] / displayed[0], self._size[1] / displayed[1])
            width, height = (round(length * scale) for length in displayed)
            self._scaled = max(self._size[0], width), max(self._size[1], height)
        context = stream.codec_context
        self._transfer, self._primaries = context.color_trc, context.color_primaries
        self._scaler = VideoReformatter()  # keeps its tables from frame to frame
        self._turns = _turn(first) != (False, False, False)

    def convert(self, frame: VideoFrame) -> npt.NDArray[np.uint8]:
        """Return (H, W, 3) RGB."""
        # PyAV keeps a frame whose side data was read until the garbage collector runs, so they are read where needed.
        turned = self._turns or frame.rotation
        (sideways, flip_x, flip_y), matrix = _turn(frame) if turned else (False, False, False), None
        is_hdr = self._transfer in (PQ, HLG)
        if frame.colorspace == 2 and is_hdr and not frame.format.is_rgb:
            matrix = Colorspace.BT2020
        elif frame.colorspace == 2 and not frame.format.is_rgb:  # H.273: 2 is unspecified
            matrix = Colorspace.ITU709 if frame.width >= 1280 or frame.height > 576 else Colorspace.ITU601
        width, height = self._scaled[::-1] if sideways else self._scaled
        layout = "rgb48le" if is_hdr else "rgb24"
        image = self._scaler.reformat(
            frame, width, height, layout, src_colorspace=matrix, interpolation=_SCALER_FLAGS
        ).to_ndarray()
        if is_hdr:
            image = to_sdr(image.astype(np.uint16, copy=False), self._transfer, self._primaries)
        image = image.transpose(1, 0, 2) if sideways else image
        image = image[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
        left, top = (self._scaled[0] - self._size[0]) // 2, (self._scaled[1] - self._size[1]) // 2
        image = image[top : top + self._size[1], left : left + self._size[0]]
        return np.ascontiguousarray(image, dtype=np.uint8)


def _turn(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """Return how the frame becomes upright: whether to exchange rows and columns, then to mirror x, then y.

    The display matrix sends stored (x, y), y downwards, to (a x + c y, b x + d y).
    """
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    a, b, _, c, d = (1, 0, 0, 0, 1) if data is None else np.frombuffer(data, np.int32)[:5].tolist()
    return (True, c < 0, b < 0) if abs(b) > abs(a) else (False, a < 0, d < 0)


def _displayed_size(frame: VideoFrame, stream: VideoStream) -> tuple[int, int]:
    """Return (width, height) of the upright frame with square pixels."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    width = round(frame.width * (aspect if Fraction(1, 8) <= aspect <= 8 else 1))  # other values are errors of files
    return (frame.height, width) if _turn(frame)[0] else (width, frame.height)
