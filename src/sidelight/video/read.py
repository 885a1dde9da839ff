"""Read a video file: what it is (``probe``) and its pictures at given seconds (``frames_at``).

Time: second 0 is where the video stream starts, whatever the file's own clock shows there. A picture is on
screen from its own timestamp until the next one's; a rate never replaces a time that the file gives.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, VideoReformatter
from av.video.stream import VideoStream

from sidelight.video.decoder import Decoder, Picture, VideoError, VideoWarning, last_packet, rate, stated_end

__all__ = ["Frame", "Resize", "VideoError", "VideoInfo", "VideoWarning", "frames_at", "probe"]

Resize = Literal["stretch", "crop"]

# Flags of swscale (PyAV 18 has names for them): area-aware bicubic; every chroma sample used; rounded, where the
# default cuts off (half a level darker); the same bits on every processor, so that features are the same too.
_SCALER = 0x4 | 0x2000 | 0x40000 | 0x80000


_AS_PRINTED = 5e-7
"""Half a microsecond: ffprobe and others print times with six decimals, which may lie just before the picture's own."""


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video file is."""

    path: str
    duration: float
    """Seconds from the start of the video stream to its end, as the file states it."""
    fps: Fraction
    """Pictures per second on average; says nothing about a variable rate."""
    width: int
    """As displayed: turned upright, with square pixels."""
    height: int
    rotation: int
    """Degrees (0, 90, 180, 270) by which the stored picture is turned clockwise for display."""
    codec: str
    container: str
    """FFmpeg's name of the file format."""
    pixel_format: str
    start: float
    """What the file's own clock shows at our second 0."""


@dataclass(frozen=True)
class Frame:
    """One picture of a video."""

    seconds: float
    """Its own presentation time from the video's start."""
    image: npt.NDArray[np.uint8]
    """(H, W, 3) RGB. Frames that are the same picture share one array."""


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """What the file is. Decodes one picture, so a file that passes is a video.

    Raises:
        VideoError: if the file cannot be read as a video.
    """
    decoder = Decoder(path)
    try:
        stream, first = decoder.stream, decoder.first
        turn, (width, height) = _turn(first), _displayed_size(first, stream)
        return VideoInfo(
            path=decoder.path,
            duration=stated_end(decoder)[0] or decoder.seconds(last_packet(decoder)),
            fps=rate(stream),
            width=width,
            height=height,
            rotation={(True, True, False): 90, (False, True, True): 180, (True, False, True): 270}.get(turn, 0),
            codec=stream.codec_context.codec.canonical_name,
            container=decoder.container.format.name,
            pixel_format=first.format.name,
            start=float(decoder.zero * decoder.tick),
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
    damaged: Callable[[str], None] | None = None,
) -> Iterator[Frame]:
    """For each wanted time the picture on screen then: the last whose own seconds are not above it (by a microsecond).

    A time before the first picture gets the first, one after the end of a whole video gets the last. Where a
    damaged file lacks pictures the last good one stays, and where it breaks off the iterator ends early: both
    with one VideoWarning. Unwanted pictures are decoded where others need them (or where it is not known that none
    does), and never converted; damage to the rest goes unnoticed. Untagged colours are taken as players do: BT.709 for
    high definition, BT.601 below.

    Args:
        path: the file.
        seconds: ascending times from the video's start.
        size: (width, height) of the images; as displayed if None.
        resize: "stretch" to the size, or "crop": scale until the size is covered, then cut out the middle.
        threads: of the decoder; 0 for as many as there are processors. The pictures are the same.
        damaged: is told of damage, in a sentence; unless given there is a VideoWarning.

    Yields:
        Exactly one Frame per wanted time, in order. Memory does not grow with the video.

    Raises:
        ValueError: if the times do not ascend, or size or resize is none of the above.
        VideoError: if the file cannot be read as a video.
    """
    try:
        wanted = [float(second) for second in seconds]
    except (TypeError, ValueError):
        raise ValueError(f"seconds must be a sequence of numbers, got {seconds!r}") from None
    if not all(map(math.isfinite, wanted)):
        raise ValueError("seconds must be finite, but a NaN or an infinity is among the wanted times")
    for before, after in pairwise(wanted):
        if after < before:
            raise ValueError(f"seconds must ascend, but {after} comes after {before}; sort the wanted times")
    lengths: Any = size  # whatever it is
    if size is not None and not (len(lengths) == 2 and all(type(n) is int and n > 0 for n in lengths)):
        raise ValueError(f"size must be (width, height), whole pixels above 0, or None; got {size!r}")
    if resize not in ("stretch", "crop"):
        raise ValueError(f"resize must be 'stretch' or 'crop', got {resize!r}")
    decoder = Decoder(path, threads)  # here, not in the generator: a bad file is told of at once
    tell = damaged or warn
    return _frames(decoder, _Painter(decoder, size, resize), [second + _AS_PRINTED for second in wanted], tell)


def _frames(decoder: Decoder, painter: _Painter, wanted: list[float], tell: Callable[[str], None]) -> Iterator[Frame]:
    """Paint what is on screen. Tells of damage before the last frame: whoever counts does not ask for one more."""
    frame, count = None, 0
    try:
        decoder.only(wanted)
        pictures = _on_screen(decoder, wanted)
        while (picture := next(pictures, None)) is not None:
            if decoder.lost_bet(picture, wanted[count]):  # then nothing is left out, from the beginning
                decoder.close()
                decoder = Decoder(decoder.path, decoder.threads)
                pictures = islice(_on_screen(decoder, wanted), count, None)
                continue
            count += 1
            if frame is None or frame.seconds != picture.seconds:
                frame = Frame(picture.seconds, painter.paint(picture.frame))
            if count == len(wanted):
                _tell(decoder, tell)
            yield frame
        if count < len(wanted):
            _tell(decoder, tell)
    finally:
        decoder.close()


def _on_screen(decoder: Decoder, wanted: list[float]) -> Iterator[Picture]:
    """The picture on screen at each wanted time, until a file that breaks off ends."""
    shown, coming = None, decoder.read()
    for second in wanted:
        if coming is not None and coming.seconds <= second and decoder.worth_a_jump(second):
            shown, coming = None, decoder.jump(second)
        while coming is not None and coming.seconds <= second:
            shown, coming = coming, decoder.read()
        picture = shown or coming
        if picture is None:  # there was one before
            raise VideoError(f"{decoder.path} has changed while it was read; leave it alone and try again")
        sound = not decoder.lost_bet(picture, second)
        if sound and coming is None and second >= decoder.end and decoder.breaks_off():
            return
        yield picture


class _Painter:
    """Pictures to upright RGB arrays of one size."""

    def __init__(self, decoder: Decoder, size: tuple[int, int] | None, resize: Resize) -> None:
        whole = _displayed_size(decoder.first, decoder.stream)
        self._size = size if size is not None else whole
        self._scaled = self._size
        if resize == "crop":
            scale = max(self._size[0] / whole[0], self._size[1] / whole[1])
            width, height = (round(length * scale) for length in whole)
            self._scaled = max(self._size[0], width), max(self._size[1], height)
        self._scaler = VideoReformatter()  # keeps its tables from picture to picture

    def paint(self, frame: VideoFrame) -> npt.NDArray[np.uint8]:
        """(H, W, 3) RGB."""
        (sideways, flip_x, flip_y), matrix = _turn(frame), None
        if frame.colorspace == 2 and not frame.format.is_rgb:  # H.273: 2 is unspecified
            matrix = Colorspace.ITU709 if frame.width >= 1280 or frame.height > 576 else Colorspace.ITU601
        width, height = self._scaled[::-1] if sideways else self._scaled
        image = self._scaler.reformat(
            frame, width, height, "rgb24", src_colorspace=matrix, interpolation=_SCALER
        ).to_ndarray()
        image = image.transpose(1, 0, 2) if sideways else image
        image = image[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
        left, top = (self._scaled[0] - self._size[0]) // 2, (self._scaled[1] - self._size[1]) // 2
        image = image[top : top + self._size[1], left : left + self._size[0]]
        return np.ascontiguousarray(image, dtype=np.uint8)


def _turn(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """How it becomes upright: whether to exchange rows and columns, then to mirror x, then y.

    The display matrix sends stored (x, y), y downwards, to (a x + c y, b x + d y).
    """
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    a, b, _, c, d = (1, 0, 0, 0, 1) if data is None else np.frombuffer(data, np.int32)[:5].tolist()
    return (True, c < 0, b < 0) if abs(b) > abs(a) else (False, a < 0, d < 0)


def _displayed_size(frame: VideoFrame, stream: VideoStream) -> tuple[int, int]:
    aspect = stream.sample_aspect_ratio or Fraction(1)
    width = round(frame.width * (aspect if Fraction(1, 8) <= aspect <= 8 else 1))  # beyond that it is rubbish
    return (frame.height, width) if _turn(frame)[0] else (width, frame.height)


def _tell(decoder: Decoder, tell: Callable[[str], None]) -> None:
    """Tell of a loss, if there is one."""
    lost, at_end = float(decoder.losses.total * decoder.tick), decoder.missing or 0.0
    if not lost + at_end:
        return
    whole = max(stated_end(decoder)[0] or 0.0, decoder.end + at_end)
    share = min(1.0, (lost + at_end) / whole)
    text = f"{decoder.path} is damaged: {lost + at_end:.2f} s of {whole:.2f} s ({share:.1%})"
    text += " could not be decoded" + " or only with errors" * (lost > 0)
    text += f"; it breaks off after {decoder.end:.2f} s" if at_end else "; the last good picture stays there"
    tell(f"{text}; get a fresh copy if you can")


def warn(text: str) -> None:
    """A VideoWarning that points at the caller outside of this package, whoever drives the iterator."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == "sidelight":
        level, frame = level + 1, frame.f_back
    warnings.warn(text, VideoWarning, stacklevel=level)
