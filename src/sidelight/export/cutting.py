"""Write parts of videos into a film: encoded again and exact, or copied from keyframe to keyframe.

A cut is a moment in whole frames (``source.Cut``). Exact films begin with the frame that is shown when the cut begins.
In a video with an even rate they hold as many frames as the cut; in any other they hold the frames that are shown
within the moment, each with its own time. Sound is cut at the same seconds, to a sample.

``FilmWriter`` and ``CopyWriter`` have one method, ``add``, which appends a cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from av.container import OutputContainer
from av.video.frame import VideoFrame

from sidelight.core.messages import count_of
from sidelight.export.sound import Samples, placed, sound_from, sound_of
from sidelight.export.source import Cut
from sidelight.video.clock import parts_of
from sidelight.video.damage import VideoError
from sidelight.video.decoder import DecodedFrame, Decoder

VIDEO_ENCODERS: dict[str, dict[str, str]] = {
    "libx264": {"crf": "18", "preset": "medium"},
    "libopenh264": {"b": "8M"},
    "h264_videotoolbox": {"q": "65"},
    "mpeg4": {"q": "2", "flags": "+qscale"},
}
"""Encoders of exact clips with their options; the first one that PyAV's FFmpeg has is used."""
_FINE = Fraction(1, 90000)
"""Time base of a film whose sources have different rates."""
_ON_GRID = 0.3
"""Share of a frame by which a frame of an even video may miss its place: files round times to their own ticks."""
_ROUNDING = 5e-7


class Written(NamedTuple):
    """What was written of a cut."""

    start: float
    """Seconds of the video at the first frame of the film."""
    end: float
    """Seconds of the video at the end of the last frame."""
    frames: int
    notes: tuple[str, ...] = ()
    """Sentences that matter to the result, such as missing frames."""


# exact ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What the stored frames of a video are like."""

    width: int
    height: int
    pixel_format: str
    aspect: Fraction
    """Width of a pixel over its height."""
    matrix: tuple[int, ...]
    """How a player turns the frame, as FFmpeg's display matrix; empty for not at all."""
    colour: tuple[int, int, int, int]
    """Range, matrix, primaries and transfer function, by their numbers in H.273."""

    @property
    def upright(self) -> tuple[int, int]:
        """Return (width, height) as a player shows it, with square pixels and even lengths."""
        width, height = round(self.width * self.aspect), self.height
        if self.matrix and abs(self.matrix[1]) > abs(self.matrix[0]):
            width, height = height, width
        return max(2, width // 2 * 2), max(2, height // 2 * 2)


def picture_of(decoder: Decoder) -> Picture:
    """Return what the frames of an open video are like."""
    frame, context = decoder.first, decoder.stream.codec_context
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    matrix = () if data is None else tuple(np.frombuffer(data, np.int32)[:9].tolist())
    aspect = decoder.stream.sample_aspect_ratio or Fraction(1)
    return Picture(
        width=frame.width,
        height=frame.height,
        pixel_format=frame.format.name,
        aspect=aspect if Fraction(1, 8) <= aspect <= 8 else Fraction(1),
        matrix=() if matrix[:5] == (65536, 0, 0, 0, 65536) else matrix,
        colour=(context.color_range, context.colorspace, context.color_primaries, context.color_trc),
    )


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the frames and the sound of a film are like."""

    picture: Picture
    """The stored frames."""
    fit: bool
    """Whether frames are turned upright and scaled into the film's size, because the sources differ."""
    tick: Fraction
    """Time base."""
    rate: Fraction
    """Frames a second."""
    sound: tuple[int, str] | None
    """Samples a second and layout; None for a silent film."""


def look_of(cuts: Sequence[Cut]) -> tuple[Look, tuple[str, ...]]:
    """Return what a film of these cuts is like, and a sentence if their sources differ.

    The first source sets size, rate and sound. Frames of other sizes are scaled and get black bars; each frame keeps
    its time, whatever its rate.

    Raises:
        VideoError: if a file cannot be read, or joins several recordings.
        ValueError: if some sources have a high dynamic range (HDR) and others do not.
    """
    pictures: dict[str, Picture] = {}
    sounds: dict[str, tuple[int, str] | None] = {}
    ticks: dict[str, Fraction] = {}
    for cut in cuts:
        path = cut.source.path
        if path not in pictures:
            decoder = open_decoder(path)
            with decoder.container:
                pictures[path] = picture_of(decoder)
                sounds[path] = None if decoder.clock.breaks else sound_of(decoder.container)
                ticks[path] = decoder.tick
    first, rate = next(iter(pictures.values())), cuts[0].source.rate
    sound = next((sound for sound in sounds.values() if sound), None)
    if len({picture.colour[3] in (16, 18) for picture in pictures.values()}) > 1:
        raise ValueError(
            "some of the videos have a high dynamic range (HDR) and others do not, and one film can hold one range; "
            "join them into two films"
        )
    rates = list(dict.fromkeys(cut.source.rate for cut in cuts))
    one_rate = len(rates) == 1 and all(cut.source.even for cut in cuts)
    alike = len({_comparable(picture) for picture in pictures.values()}) == 1
    picture, notes = _encodable(first), list[str]()
    if not alike:
        width, height = first.upright
        picture = replace(first, width=width, height=height, pixel_format="yuv420p", aspect=Fraction(1), matrix=())
        notes = [f"the videos differ in size or shape, so all are scaled into {width}x{height} pixels, with black bars"]
    if len(rates) > 1:
        texts = ", ".join(f"{float(rate):.6g}" for rate in rates)
        notes.append(f"the videos have different frame rates ({texts}), and each keeps its own in the film")
    tick = 1 / rate if one_rate else next(iter(ticks.values())) if len(ticks) == 1 else _FINE
    return Look(picture=picture, fit=not alike, tick=tick, rate=rate, sound=sound), tuple(notes)


def _comparable(picture: Picture) -> tuple[Any, ...]:
    return picture.width, picture.height, picture.pixel_format, picture.aspect, picture.matrix, picture.colour


def _encodable(picture: Picture) -> Picture:
    """Return the picture as the encoder takes it: a pixel format that it knows, and even lengths."""
    formats = {form.name for form in av.Codec(_encoder_name(), "w").video_formats or ()}
    form = picture.pixel_format if picture.pixel_format in formats else "yuv420p"
    even = "444" not in form
    width, height = (length // 2 * 2 if even else length for length in (picture.width, picture.height))
    return replace(picture, width=max(2, width), height=max(2, height), pixel_format=form)


def _encoder_name() -> str:
    return next((name for name in VIDEO_ENCODERS if name in av.codecs_available), "mpeg4")


def open_decoder(path: str) -> Decoder:
    """Open a video that is one recording.

    Raises:
        VideoError: if the file cannot be read, or joins several recordings.
    """
    if len(parts_of(path)) > 1:
        raise VideoError(
            f"{path} joins several recordings in one file, which cannot be cut; convert it to one recording first"
        )
    return Decoder(path)


class FilmWriter:
    """Encodes cuts, one after the other, into an open file.

    Args:
        container: opened for writing.
        look: the film's frames and sound.
        add_frames: called with the number of frames that were written since its last call.
    """

    def __init__(
        self, container: OutputContainer, look: Look, add_frames: Callable[[int], object] = lambda frames: None
    ) -> None:
        self._container, self._look, self._add_frames = container, look, add_frames
        name, picture = _encoder_name(), look.picture
        video: Any = container.add_stream(name, rate=look.rate, options=VIDEO_ENCODERS[name])
        video.width, video.height, video.pix_fmt = picture.width, picture.height, picture.pixel_format
        context = video.codec_context
        context.time_base, context.sample_aspect_ratio = look.tick, picture.aspect
        context.color_range, context.colorspace, context.color_primaries, context.color_trc = picture.colour
        if picture.matrix:
            video.set_display_matrix(picture.matrix)
        self._video = video
        self._sound: Any = None
        if look.sound is not None:
            rate, layout = look.sound
            channels = len(av.AudioLayout(layout).channels)
            self._sound = container.add_stream("aac", rate=rate, layout=layout)
            self._sound.bit_rate = 96_000 * channels
        self._ticks = -1  # of the last frame
        self._start = Fraction(0)  # seconds of the film at which the next cut begins
        self._samples = 0  # written so far

    def add(self, cut: Cut) -> Written:
        """Append a cut.

        Raises:
            VideoError: if the video has no frame in it that can be shown.
        """
        decoder = open_decoder(cut.source.path)
        try:
            return self._add(cut, decoder)
        finally:
            decoder.close()

    def _add(self, cut: Cut, decoder: Decoder) -> Written:
        frames = _frames_within(decoder, cut)
        frame = next(frames, None)
        if frame is None:
            raise VideoError(f"{decoder.path} has no frame at {cut.span[0]:.2f} s that can be decoded")
        place = _Place.of(cut, frame.seconds)
        sound = self._sound_within(decoder, place)
        converter, count, end = _Converter(self._look, decoder), 0, place.length
        while frame is not None:
            since = place.since(frame.seconds)
            self._write(converter.convert(frame.av_frame), self._start + since, sound)
            count, end, frame = count + 1, max(end, since), next(frames, None)
            self._add_frames(1)
        self._fill(sound, None)
        self._start += end
        notes = [decoder.damage_message()] if decoder.damage.lost else []
        if place.grid is not None and count < cut.length:
            expected = count_of(cut.length, "frame")
            notes.append(f"{decoder.path}: {count} of {expected} from {cut.span[0]:.2f} s could be read")
        if self._sound is not None and decoder.clock.breaks:
            notes.append(f"{decoder.path}: its timestamps break, so the sound of this part is left out")
        return Written(place.start, place.start + float(place.length), count, tuple(filter(None, notes)))

    def close(self) -> None:
        """Write what the encoders hold back."""
        self._container.mux(self._video.encode(None))
        if self._sound is not None:
            self._container.mux(self._sound.encode(None))

    def _write(self, frame: VideoFrame, at: Fraction, sound: Iterator[Samples]) -> None:
        self._ticks = max(self._ticks + 1, round(at / self._look.tick))
        frame.pts, frame.time_base, frame.pict_type = self._ticks, self._look.tick, 0
        frame.duration = 0
        self._container.mux(self._video.encode(frame))
        self._fill(sound, at)

    def _fill(self, sound: Iterator[Samples], until: Fraction | None) -> None:
        """Write sound up to a second of the film, or all that is left of the cut."""
        if self._look.sound is None:
            return
        rate, layout = self._look.sound
        while until is None or self._samples <= until * rate:
            block = next(sound, None)
            if block is None:
                return
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, self._samples, Fraction(1, rate)
            self._samples += block.shape[1]
            self._container.mux(self._sound.encode(frame))

    def _sound_within(self, decoder: Decoder, place: _Place) -> Iterator[Samples]:
        """Yield the sound of a part of a video in blocks: exactly as long as the part, with silence where none is."""
        if self._look.sound is None:
            return iter(())
        rate, layout = self._look.sound
        total = round((self._start + place.length) * rate) - self._samples
        begin = place.start + float(decoder.zero * decoder.tick)
        blocks = iter(()) if decoder.clock.breaks else sound_from(decoder.path, begin, rate, layout)
        return placed(blocks, total, len(av.AudioLayout(layout).channels), rate)


def _is_on_grid(seconds: float, rate: Fraction) -> bool:
    place = seconds * float(rate)
    return abs(place - round(place)) <= _ON_GRID


class _Place(NamedTuple):
    """Where a cut lies in its video, once its first frame is known."""

    start: float
    """Seconds at which the film of the cut begins."""
    length: Fraction
    """Seconds."""
    grid: Fraction | None
    """Frames a second, where frames lie on the grid of an even rate; None where each has its own time."""

    @classmethod
    def of(cls, cut: Cut, seconds: float) -> _Place:
        """Return the place of a cut whose first frame is shown from ``seconds`` on."""
        rate = cut.source.rate
        if cut.source.even and _is_on_grid(seconds, rate):
            start = seconds if round(seconds * float(rate)) == cut.start else cut.start / float(rate)
            return cls(start, cut.length / rate, rate)
        start = max(seconds, cut.span[0])
        return cls(start, Fraction(max(0.0, cut.span[1] - start)).limit_denominator(10**6), None)

    def since(self, seconds: float) -> Fraction:
        """Return the seconds of the film at which a frame is shown."""
        passed = max(0.0, seconds - self.start)
        return Fraction(passed) if self.grid is None else Fraction(round(passed * float(self.grid))) / self.grid


def _frames_within(decoder: Decoder, cut: Cut) -> Iterator[DecodedFrame]:
    """Yield the frame that is shown when a cut begins, and those that begin before it ends."""
    rate, even = cut.source.rate, cut.source.even

    def has_begun(frame: DecodedFrame) -> bool:
        if even and _is_on_grid(frame.seconds, rate):
            return round(frame.seconds * float(rate)) <= cut.start
        return frame.seconds <= cut.span[0] + _ROUNDING

    def is_before_end(frame: DecodedFrame) -> bool:
        if even and _is_on_grid(frame.seconds, rate):
            return round(frame.seconds * float(rate)) < cut.end
        return frame.seconds < cut.span[1] - _ROUNDING

    current, following = None, decoder.read()
    second = float(cut.start / rate) if even else cut.span[0]
    if following is not None and has_begun(following) and decoder.should_jump(second):
        following = decoder.jump(second)
    while following is not None and has_begun(following):
        current, following = following, decoder.read()
    if current is not None:
        yield current
    while following is not None and is_before_end(following):
        yield following
        following = decoder.read()


class _Converter:
    """Converts frames of one source to those of a film."""

    def __init__(self, look: Look, decoder: Decoder) -> None:
        picture = look.picture
        self._graph: Any = None
        steps = []
        if look.fit:
            turns = picture_of(decoder)
            steps = _upright(turns.matrix)
            width, height = turns.upright
            scale = min(picture.width / width, picture.height / height)
            size = [max(2, round(length * scale / 2) * 2) for length in (width, height)]
            steps.append(("scale", f"{size[0]}:{size[1]}:flags=bicubic+accurate_rnd+full_chroma_int"))
            steps.append(("pad", f"{picture.width}:{picture.height}:(ow-iw)/2:(oh-ih)/2"))
            steps.append(("setsar", "1"))
        elif (decoder.first.width, decoder.first.height) != (picture.width, picture.height):
            steps.append(("crop", f"{picture.width}:{picture.height}:0:0"))
        if look.fit or decoder.first.format.name != picture.pixel_format:
            steps.append(("format", picture.pixel_format))
        self._steps, self._tick = steps, decoder.tick

    def convert(self, frame: VideoFrame) -> VideoFrame:
        """Return a frame as the encoder of the film takes it."""
        if not self._steps:
            return frame
        if self._graph is None:
            graph = av.filter.Graph()
            nodes = [
                graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=self._tick)
            ]
            nodes += [graph.add(name, settings) for name, settings in self._steps]
            graph.link_nodes(*nodes, graph.add("buffersink")).configure()
            self._graph = graph
        self._graph.vpush(frame)
        converted: VideoFrame = self._graph.vpull()
        return converted


def _upright(matrix: Sequence[int]) -> list[tuple[str, str]]:
    """Return the filters that turn a frame as its display matrix says."""
    if not matrix:
        return []
    a, b, _, c, d = matrix[:5]
    swaps = abs(b) > abs(a)
    flip_x, flip_y = (c < 0, b < 0) if swaps else (a < 0, d < 0)
    # FFmpeg's transpose 0 turns and flips: that is, it exchanges rows and columns.
    steps = [("transpose", "0")] if swaps else []
    return steps + [("hflip", "")] * flip_x + [("vflip", "")] * flip_y
