"""Video files: what is in them, and their pictures at given seconds (PyAV, that is FFmpeg).

Times are seconds since the video's first picture. The picture at time t is the one on screen then: the last whose
presentation time is not after t. A picture's own time is exact, also where the rate varies.

Legend: H, W height and width as displayed.
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import av.error
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Picture = npt.NDArray[np.uint8]


class VideoError(ValueError):
    """A file that cannot be used as a video; the message says why and what to do."""


class VideoWarning(UserWarning):
    """Part of a video could not be decoded; the message says how much."""


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What is known of a video file without decoding it."""

    path: str
    duration: float
    """Seconds from the first picture to the end of the last, as the file says."""
    fps: Fraction
    """Average pictures per second; exact. Single pictures may last longer or shorter."""
    width: int
    """Pixels, as displayed (after rotation)."""
    height: int
    """Pixels, as displayed (after rotation)."""
    rotation: int
    """Degrees, clockwise, by which players turn the stored pictures: 0, 90, 180 or 270."""
    codec: str
    container: str
    pixel_format: str
    start: float
    """Presentation time of the first picture in the file, in seconds; all other times count from it."""


@dataclass(frozen=True)
class Frame:
    """One picture."""

    seconds: float
    """Its own presentation time, since the first picture."""
    image: Picture
    """RGB (H, W, 3)."""


def probe(path: str | Path) -> VideoInfo:
    """Read what a file says of itself; only its first picture is decoded.

    Raises:
        VideoError: if the file is missing, empty, not a video, without pictures, or damaged from the start.
    """
    with _opened(path) as (container, stream):
        return _describe(str(path), container, stream)


def frames_at(
    path: str | Path,
    seconds: Sequence[float],
    *,
    size: tuple[int, int] | None = None,
    resize: str = "stretch",
) -> Iterator[Frame]:
    """The picture on screen at each wanted time.

    One picture is in memory at a time, however long the video is. Stretches in which nothing is wanted are skipped
    where the file's keyframes allow it.

    Args:
        path: a video file.
        seconds: wanted times, ascending; before the first picture counts as the first.
        size: (width, height) to scale to; the video's own unless given.
        resize: ``stretch`` scales both sides; ``crop`` scales until the picture covers ``size`` and keeps its middle.

    Yields:
        One :class:`Frame` per wanted time, in order. Where the video ends early (cut short, damaged) the rest is not
        there, after a :class:`VideoWarning`.

    Raises:
        VideoError: as :func:`probe`, or if nothing can be decoded.
        ValueError: if times are not ascending, or an option is unknown.
    """
    wanted = [float(t) for t in seconds]
    if any(b < a for a, b in zip(wanted, wanted[1:], strict=False)) or not all(map(math.isfinite, wanted)):
        raise ValueError("wanted times must be finite and ascending")
    if resize not in ("stretch", "crop"):
        raise ValueError(f"resize must be stretch or crop, got {resize!r}")
    if size is not None and min(size) < 1:
        raise ValueError(f"size must be (width, height) of at least 1 pixel, got {size}")
    if not wanted:
        return
    with _opened(path) as (container, stream):
        info = _describe(str(path), container, stream)
        reader = _Reader(container, stream, info)
        draw = _Drawer(size, resize)
        for t in wanted:
            frame = reader.at(t)
            if frame is None:
                break
            yield draw(frame, reader.seconds(frame))
        reader.report()


class _opened:
    """Open a container and choose its video stream; every failure becomes one sentence."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __enter__(self) -> tuple[InputContainer, VideoStream]:
        path = self.path
        if not path.exists():
            raise VideoError(f"{path} does not exist; check the path")
        if path.is_dir():
            raise VideoError(f"{path} is a folder; give the path of one video file")
        if path.stat().st_size == 0:
            raise VideoError(f"{path} is empty (0 bytes); copy or download it again")
        try:
            self.container = av.open(str(path))
        except PermissionError:
            raise VideoError(f"{path} may not be read; check its permissions") from None
        except (av.error.FFmpegError, OSError, ValueError):
            raise VideoError(
                f"{path} is not a video that can be read: its header is missing or damaged, or it is another kind of "
                "file; check that it plays in a video player, or copy it again"
            ) from None
        try:
            return self.container, self._stream()
        except BaseException:
            self.container.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def _stream(self) -> VideoStream:
        names = set(self.container.format.name.split(","))
        cover = av.stream.Disposition.attached_pic
        streams = [s for s in self.container.streams.video if not s.disposition & cover]
        if names & {"image2", "gif"} or any(n.endswith("_pipe") for n in names):
            raise VideoError(f"{self.path} is a picture, not a video; give a video file, such as an mp4")
        if not streams:
            kind = "has sound but no pictures" if self.container.streams.audio else "has no video stream"
            raise VideoError(f"{self.path} {kind}; give a file with a video stream")
        stream = streams[0]
        if stream.codec_context is None:
            raise VideoError(
                f"{self.path} holds video in a format that cannot be decoded; convert it to H.264, for example"
            )
        stream.thread_type = "AUTO"
        return stream


def _describe(path: str, container: InputContainer, stream: VideoStream) -> VideoInfo:
    context = stream.codec_context
    start = Fraction(0)
    if stream.start_time is not None and stream.time_base is not None:
        start = stream.start_time * stream.time_base
    elif container.start_time is not None:
        start = Fraction(container.start_time, av.time_base)
    rotation = _rotation(container, stream)
    width, height = context.width, context.height
    if rotation % 180:
        width, height = height, width
    duration = _duration(container, stream, start)
    if duration <= 0:
        raise VideoError(f"{path} does not say how long it is and no picture could be read; it may be cut short")
    return VideoInfo(
        path=path,
        duration=float(duration),
        fps=stream.average_rate or stream.guessed_rate or Fraction(0),
        width=width,
        height=height,
        rotation=rotation,
        codec=context.name,
        container=container.format.name,
        pixel_format=context.pix_fmt or "",
        start=float(start),
    )


def _duration(container: InputContainer, stream: VideoStream, start: Fraction) -> Fraction:
    """Seconds of the video stream. The file's own length is the last resort: sound may go on longer."""
    if stream.duration is not None and stream.time_base is not None:
        return stream.duration * stream.time_base
    # Matroska writes when each track ends, counted from 0, not how long it lasts.
    if tag := stream.metadata.get("DURATION"):
        hours, minutes, rest = tag.split(":")
        end = int(hours) * 3600 + int(minutes) * 60 + Fraction(rest)
        return end - start
    if container.duration is not None:
        return Fraction(container.duration, av.time_base) - start
    # Raw streams say nothing: read every packet's time, without decoding.
    last = Fraction(0)
    for packet in container.demux(stream):
        if packet.pts is not None and packet.time_base is not None:
            last = max(last, (packet.pts + (packet.duration or 0)) * packet.time_base)
    container.seek(0)
    return last - start


def _rotation(container: InputContainer, stream: VideoStream) -> int:
    """Clockwise degrees by which to turn pictures; it stands with the pictures, so the first one is decoded."""
    angle = 0
    try:
        for frame in container.decode(stream):
            angle = round(-frame.rotation / 90) * 90 % 360
            break
        container.seek(0)
    except (av.error.FFmpegError, OSError):
        pass  # whoever decodes on will say what is wrong
    return angle


class _Reader:
    """Finds the picture on screen at ascending times, decoding as little as it can."""

    def __init__(self, container: InputContainer, stream: VideoStream, info: VideoInfo) -> None:
        self.container, self.stream, self.info = container, stream, info
        self.base = stream.time_base or Fraction(1, 1000)
        self.first = stream.start_time
        self.current: VideoFrame | None = None  # the last picture not after the wanted time
        self.ahead: VideoFrame | None = None  # the one after it
        self.ended = False
        self.damaged = 0
        self.decoded = 0
        self.asked = 0.0
        self.seekable = True
        self.frames = self._decode()
        entries = stream.index_entries
        # Times in an index are decoding times; a keyframe is shown at or after its own.
        self.keyframes = sorted(e.timestamp for e in entries if e.is_keyframe and not e.is_discard)

    def seconds(self, frame: VideoFrame) -> float:
        """A picture's time since the first one."""
        return float(self._ticks(frame) * self.base)

    def _ticks(self, frame: VideoFrame) -> int:
        assert frame.pts is not None
        return frame.pts - (self.first or 0)

    def at(self, t: float) -> VideoFrame | None:
        """The picture at ``t``, or None if the video ends before."""
        self.asked = t
        self._skip_to(t)
        while not self.ended and (self.ahead is None or self.seconds(self.ahead) <= t):
            following = next(self.frames, None)
            if following is None:
                self.ended = True
                if self.ahead is not None:
                    self.current, self.ahead = self.ahead, None
                break
            if self.ahead is not None:
                self.current = self.ahead
            self.ahead = following
        found = self.current
        if found is None:  # nothing is shown so early: the first picture
            found = self.ahead
        if found is None:
            raise VideoError(
                f"{self.info.path}: no picture could be decoded; it is damaged: copy or download it again"
            )
        return None if self.ended and t > self._end(found) else found

    def _end(self, last: VideoFrame) -> float:
        """Until when the last picture stays: its own duration, or what lies within rounding of the video's end."""
        shown = self.seconds(last) + float((last.duration or 0) * self.base)
        rate = float(self.info.fps) or 25.0
        tolerance = max(2 / rate, 0.5)
        return max(shown, self.info.duration) if self.info.duration - shown <= tolerance else shown

    def _skip_to(self, t: float) -> None:
        """Seek if a keyframe lies between where decoding stands and ``t``."""
        if not self.seekable or self.ended or len(self.keyframes) < 2:
            return
        stands = self._ticks(self.ahead) if self.ahead is not None else 0
        # One second of margin: shorter skips cost more than they save.
        margin = int(1 / self.base)
        wanted = int(Fraction(t) / self.base)
        offset = self.first or 0
        number = bisect_right(self.keyframes, wanted + offset) - 1
        if number < 1 or self.keyframes[number] - offset <= stands + margin:
            return
        for target in (number, number - 1):
            if target < 1 or self.keyframes[target] - offset <= stands:
                break
            if self._seek(self.keyframes[target], t):
                return
        # The index misleads: start over and decode through.
        self.seekable = False
        self.container.seek(0)
        self.frames = self._decode()
        self.current = self.ahead = None

    def _seek(self, timestamp: int, t: float) -> bool:
        """Go to a keyframe; False if no picture at or before ``t`` is found there."""
        try:
            self.container.seek(timestamp, stream=self.stream, backward=True)
        except (av.error.FFmpegError, OSError):
            return False
        self.frames = self._decode()
        for frame in self.frames:
            # Pictures shown before the keyframe may refer to ones that were skipped.
            if frame.key_frame:
                if self.seconds(frame) > t:
                    return False
                self.current, self.ahead = None, frame
                return True
        return False

    def _decode(self) -> Iterator[VideoFrame]:
        """Pictures in the order they are shown; packets that cannot be decoded are counted and left out."""
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, OSError):
                self.damaged += 1
                return
            if packet is None:
                return
            try:
                decoded: list[Any] = packet.decode()
            except (av.error.FFmpegError, OSError):
                self.damaged += 1
                continue
            for frame in decoded:
                if frame.pts is not None:
                    if self.first is None:
                        self.first = frame.pts
                    self.decoded += 1
                    yield frame

    def report(self) -> None:
        """Warn of what was lost, if anything was."""
        lost, why = 0.0, ""
        if self.ended and self.current is not None:
            end = self._end(self.current)
            if self.info.duration > end and self.asked > end:
                lost, why = self.info.duration - end, f"ends after {end:.1f} s"
        rate = float(self.info.fps) or 25.0
        if not lost and self.damaged:
            lost, why = self.damaged / rate, "is damaged in places, where the picture before is held"
        if lost:
            share = min(1.0, lost / self.info.duration)
            warnings.warn(
                f"{self.info.path} {why}: {lost:.1f} of {self.info.duration:.1f} s ({share:.0%}) could not be decoded",
                VideoWarning,
                stacklevel=3,
            )


class _Drawer:
    """Decoded pictures to RGB arrays of the wanted size; the same picture twice is converted once."""

    def __init__(self, size: tuple[int, int] | None, resize: str) -> None:
        self.size, self.resize = size, resize
        self._last: tuple[float, Frame] | None = None
        self._reformatter = av.video.reformatter.VideoReformatter()

    def __call__(self, frame: VideoFrame, seconds: float) -> Frame:
        if self._last is None or self._last[0] != seconds:
            self._last = (seconds, Frame(seconds, self._image(frame)))
        return self._last[1]

    def _image(self, frame: VideoFrame) -> Picture:
        turns = round(frame.rotation / 90) % 4  # counterclockwise quarter turns
        stored = (frame.height, frame.width) if turns % 2 else (frame.width, frame.height)
        width, height = self.size or stored
        if self.resize == "crop" and self.size is not None:
            scale = max(width / stored[0], height / stored[1])
            width, height = max(width, round(stored[0] * scale)), max(height, round(stored[1] * scale))
        if turns % 2:
            width, height = height, width
        range_ = av.video.reformatter.ColorRange
        full = frame.color_range == range_.JPEG or frame.format.name.startswith("yuvj")
        converted = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgb24",
            src_colorspace=_matrix(frame),
            src_color_range=range_.JPEG if full else range_.MPEG,
            dst_color_range=range_.JPEG,
            threads=1,
        )
        image: Picture = converted.to_ndarray()
        if turns:
            image = np.ascontiguousarray(np.rot90(image, turns))
        if self.resize == "crop" and self.size is not None:
            left, top = (image.shape[1] - self.size[0]) // 2, (image.shape[0] - self.size[1]) // 2
            image = np.ascontiguousarray(image[top : top + self.size[1], left : left + self.size[0]])
        return image


def _matrix(frame: VideoFrame) -> int:
    """The matrix from YUV to RGB: as the file says, else BT.709 for high definition and BT.601 below."""
    space = av.video.reformatter.Colorspace
    # FFmpeg's numbers: 2 unspecified, 5 and 6 both BT.601, 9 and 10 both BT.2020.
    known = {1: space.ITU709, 4: space.FCC, 5: space.ITU601, 6: space.ITU601, 7: space.SMPTE240M, 9: space.BT2020}
    known[10] = space.BT2020
    default = space.ITU709 if frame.height >= 720 else space.ITU601
    return int(known.get(int(frame.colorspace), default))
