"""Video files that are made for tests; each frame shows its own number."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
import numpy.typing as npt
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

Pixels = npt.NDArray[np.uint8]
WIDTH, HEIGHT = 64, 48
_LEVEL = 36  # brightness between two digits; lossy codecs stay well within half of it


def numbered(number: int) -> Pixels:
    """Return a (48, 64) image of three grey columns: the digits of the number to base 8."""
    digits = [number // 64, number // 8 % 8, number % 8]
    return np.repeat(np.array(digits, np.uint8) * _LEVEL, [21, 21, 22])[None].repeat(HEIGHT, axis=0)


def number_of(image: Pixels) -> int:
    """Return the number that an image of any size shows."""
    height, width = image.shape[:2]
    centers = ((np.arange(3) + 0.5) * width / 3).astype(int)
    grey = image[height // 4 : -height // 4].mean(axis=(0, 2))
    digits = [round(float(grey[c - 4 : c + 4].mean()) / _LEVEL) for c in centers]
    return digits[0] * 64 + digits[1] * 8 + digits[2]


def steady(count: int, start: float = 0.0) -> list[float]:
    """Return the times of ten frames a second."""
    return [start + n / 10 for n in range(count)]


def unsteady(count: int) -> list[float]:
    """Return times that are 20 to 400 ms apart."""
    steps = np.random.default_rng(0).integers(20, 400, count)
    return [int(time) / 1000 for time in np.cumsum(steps)]


@dataclass(frozen=True)
class Film:
    """A video file that was made for a test, and the times of its frames."""

    path: Path
    times: list[float]

    def shown_at(self, second: float) -> int:
        """Return the number of the frame shown at a second after the first frame."""
        seconds = [float(Fraction(round((t - self.times[0]) * 1000), 1000)) for t in self.times]
        return max(0, bisect_right(seconds, second + 5e-7) - 1)  # times may be printed with six decimals


@dataclass(frozen=True)
class Encoding:
    """How a film is encoded."""

    times: list[float]
    """Seconds of the frames on the file's clock."""
    codec: str = "libx264"
    options: dict[str, str] = field(default_factory=dict)
    mux: dict[str, str] = field(default_factory=dict)
    gop: int = 20
    reordered: int | None = None
    sound: float = 0.0
    sound_codec: str = "aac"
    tick: Fraction = Fraction(1, 1000)
    turn: int = 0
    aspect: Fraction = Fraction(1)


_OPEN = {"x264-params": "open-gop=1:bframes=3:b-adapt=0:keyint=25:min-keyint=25:scenecut=0"}
_X265 = "log-level=none:pools=none:frame-threads=1:open-gop=1:keyint=20:min-keyint=20:bframes=3"
_AV1 = {"preset": "12", "svtav1-params": "lp=1"}
_VP9 = {"deadline": "realtime", "cpu-used": "8"}
ENCODINGS = {
    "one.mp4": Encoding(steady(1)),
    "plain.mp4": Encoding(steady(30)),
    "unsteady.mp4": Encoding(unsteady(60)),
    "unsteady.mkv": Encoding(unsteady(60)),
    "late.mp4": Encoding(steady(60, 1.5)),
    "late.mkv": Encoding(steady(60, 1.5)),
    "open.mp4": Encoding(steady(300), options=_OPEN, gop=25),
    "open.mkv": Encoding(steady(300), options=_OPEN, gop=25),
    "near.mp4": Encoding(steady(300), gop=25, reordered=0),
    "far.mp4": Encoding(steady(300), gop=250),
    "vp9.webm": Encoding(steady(60), "libvpx-vp9", _VP9),
    "av1.mkv": Encoding(steady(60), "libsvtav1", _AV1),
    "mpeg4.mp4": Encoding(steady(60), "mpeg4", reordered=2),
    "mpeg4.avi": Encoding(steady(60), "mpeg4", tick=Fraction(1, 10)),
    "h265.mp4": Encoding(steady(80), "libx265", {"preset": "ultrafast", "x265-params": _X265}),
    "h265.mkv": Encoding(steady(80), "libx265", {"preset": "ultrafast", "x265-params": _X265}),
    "stream.ts": Encoding(steady(80)),
    "fragments.mp4": Encoding(steady(80), mux={"movflags": "frag_keyframe+empty_moov"}),
    "live.mkv": Encoding(steady(80), mux={"live": "1"}),
    "faststart.mp4": Encoding(steady(300), mux={"movflags": "faststart"}),
    "original.mkv": Encoding(steady(300)),
    "sound.mp4": Encoding(steady(20), sound=5.0),
    "sound.mkv": Encoding(steady(20), sound=5.0),
    "sound.ts": Encoding(steady(20), sound=5.0),
    "sound.webm": Encoding(steady(20), "libvpx-vp9", _VP9, sound=5.0, sound_codec="libopus"),
}


class MakeFilm(Protocol):
    def __call__(self, name: str, encoding: Encoding | None = None) -> Film: ...


def encode(path: Path, encoding: Encoding, draw: Callable[[int], Pixels]) -> None:
    with av.open(str(path), "w", options=encoding.mux) as container:
        stream = container.add_stream(encoding.codec, rate=round(1 / encoding.tick) if encoding.tick > 0.01 else 10)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"threads": "1", **encoding.options}
        stream.codec_context.time_base, stream.codec_context.gop_size = encoding.tick, encoding.gop
        if encoding.reordered is not None:
            stream.codec_context.max_b_frames = encoding.reordered
        stream.codec_context.sample_aspect_ratio = encoding.aspect
        if encoding.turn:
            stream.set_display_rotation(encoding.turn)
        sound = container.add_stream(encoding.sound_codec, rate=48000) if encoding.sound else None
        for number, time in enumerate(encoding.times):
            frame = av.VideoFrame.from_ndarray(draw(number), format="gray").reformat(format="yuv420p")
            frame.pts, frame.time_base = round(time / encoding.tick), encoding.tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            assert isinstance(sound, AudioStream)
            encode_silence(container, sound, encoding.sound)


def encode_silence(container: Any, stream: AudioStream, seconds: float) -> None:
    for at in range(0, int(seconds * 48000), 960):
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.int16), format="s16", layout="mono")
        silence.sample_rate, silence.pts, silence.time_base = 48000, at, Fraction(1, 48000)
        container.mux(stream.encode(silence))
    container.mux(stream.encode(None))


def full_decode(path: Path) -> list[tuple[float, Pixels]]:
    """Decode a file in the plainest way, and return each frame's seconds from the first frame and its image."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")  # of several, the one that players show
        assert isinstance(stream, VideoStream)
        frames = [(f.pts, f.to_ndarray(format="rgb24")) for f in container.decode(stream)]
        base = stream.time_base
    assert base is not None
    ticks = [pts for pts, _ in frames if pts is not None]
    return [(float((pts - ticks[0]) * base), image) for pts, (_, image) in zip(ticks, frames, strict=True)]


def corner(number: int) -> Pixels:
    """Return an image whose top left quarter is white."""
    image = np.zeros((HEIGHT, WIDTH), np.uint8)
    image[: HEIGHT // 2, : WIDTH // 2] = 255
    return image
