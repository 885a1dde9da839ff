"""Check that skipping frames that no other frame refers to leaves the wanted frames unchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.packet import Packet
from av.video.stream import VideoStream

from sidelight.video.decoder import Decoder
from sidelight.video.nal import NalReader
from sidelight.video.read import Frame, VideoWarning, frames_at
from tests.films import HEIGHT, WIDTH, Encoding, Pixels, encode, steady, unsteady

FRAMES = 70
X264 = "keyint=40:min-keyint=5:b-adapt=0:"
_X265 = "log-level=none:pools=none:frame-threads=1:keyint=30:min-keyint=5:b-adapt=0:"


def _x264(params: str, times: Callable[[int], list[float]] = steady) -> Encoding:
    return Encoding(times(FRAMES), options={"preset": "veryfast", "x264-params": X264 + params}, gop=40)


def _x265(params: str, times: Callable[[int], list[float]] = steady) -> Encoding:
    return Encoding(times(FRAMES), "libx265", {"preset": "ultrafast", "x265-params": _X265 + params}, gop=30)


# name of the file -> its encoding, and the smallest share of its frames that no other frame refers to; 0: no frame may
# be skipped
FILMS: dict[str, tuple[Encoding, float]] = {
    "defaults.mp4": (Encoding(steady(FRAMES)), 0.1),
    "no_b.mp4": (_x264("bframes=0"), 0),
    "one_b.mkv": (_x264("bframes=1"), 0.4),
    "three_b.mp4": (_x264("bframes=3:b-pyramid=none:ref=1"), 0.6),
    "pyramid.mp4": (_x264("bframes=3:b-pyramid=normal:ref=4"), 0.4),
    "strict.mkv": (_x264("bframes=8:b-pyramid=strict:ref=6", unsteady), 0.6),
    "sixteen_b.mp4": (_x264("bframes=16:b-pyramid=normal:ref=2"), 0.6),
    "unsteady.mp4": (_x264("bframes=5", unsteady), 0.5),
    "open.mp4": (_x264("bframes=3:open-gop=1:scenecut=0"), 0.4),
    "open.ts": (_x264("bframes=3:open-gop=1:scenecut=0"), 0.4),
    "refresh.mp4": (_x264("bframes=0:intra-refresh=1:b-pyramid=none"), 0),
    "slices.mp4": (_x264("bframes=3:slices=3"), 0.4),
    "delimited.mkv": (_x264("bframes=3:aud=1:nal-hrd=vbr:vbv-maxrate=200:vbv-bufsize=200"), 0.4),
    "interlaced.mp4": (_x264("bframes=3:interlaced=1"), 0),
    "stream.ts": (_x264("bframes=3"), 0.4),
    "late.ts": (replace(_x264("bframes=3"), times=steady(FRAMES, 1.5)), 0.4),
    "films.flv": (_x264("bframes=3"), 0.4),
    "bare.h264": (_x264("bframes=3"), 0.4),
    "fragments.mp4": (replace(_x264("bframes=3"), mux={"movflags": "frag_keyframe+empty_moov"}), 0.4),
    "h265.mp4": (_x265("bframes=3"), 0.4),
    "h265_open.mkv": (_x265("bframes=4:open-gop=1:b-pyramid=1", unsteady), 0.4),
    "h265_flat.ts": (_x265("bframes=4:open-gop=0:b-pyramid=0"), 0.6),
    "h265_layers.mp4": (_x265("bframes=3:temporal-layers=3"), 0.1),
    "mpeg4.mp4": (Encoding(steady(FRAMES), "mpeg4", reordered=2), 0),
    "vp9.webm": (Encoding(steady(FRAMES), "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}), 0),
    "av1.mkv": (Encoding(steady(FRAMES), "libsvtav1", {"preset": "12", "svtav1-params": "lp=1"}), 0),
}


def moving(number: int) -> Pixels:
    """Return a texture that wanders and wobbles, so that each frame is predicted from others."""
    field = np.random.default_rng(3).integers(0, 255, (HEIGHT // 4 + 8, WIDTH // 4 + 8)).astype(np.uint8)
    large = field.repeat(4, axis=0).repeat(4, axis=1)
    x, y = int(14 + 13 * np.sin(number / 5)), int(14 + 13 * np.sin(number / 7))
    wobble = (x + 2 * np.sin(np.arange(HEIGHT) / 9 + number / 3)).astype(int)
    return large[(y + np.arange(HEIGHT))[:, None], wobble[:, None] + np.arange(WIDTH)]


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("skipping")

    def make(name: str) -> Path:
        if not (folder / name).exists():
            try:
                encode(folder / name, FILMS[name][0], moving)
            except av.codec.codec.UnknownCodecError:
                pytest.skip(f"this FFmpeg has no encoder {FILMS[name][0].codec}")
        return folder / name

    return make


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that collects the presentation ticks of the packets that reach a decoder."""
    sent = list[int]()
    decode = Decoder._decode

    def count(self: Decoder, packet: Packet[VideoStream] | None) -> None:
        if packet is not None and packet.size:
            sent.append(packet.pts or 0)
        decode(self, packet)

    monkeypatch.setattr(Decoder, "_decode", count)
    return sent


def read_without_skipping(path: Path, seconds: Sequence[float], **options: Any) -> list[Frame]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "skip_unwanted", lambda self, seconds: None)
        return list(frames_at(path, seconds, **options))


def check(path: Path, seconds: Sequence[float], **options: Any) -> None:
    """Check that the frames and their times are the same with and without skipping."""
    expected, frames = read_without_skipping(path, seconds, **options), list(frames_at(path, seconds, **options))
    assert [frame.seconds for frame in frames] == [frame.seconds for frame in expected]
    for frame, expected_frame in zip(frames, expected, strict=True):
        np.testing.assert_array_equal(frame.image, expected_frame.image)


def some_times(seed: int, end: float) -> list[float]:
    rng = np.random.default_rng(seed)
    return sorted(rng.uniform(0, end, int(rng.integers(1, 25))).tolist())


@pytest.mark.parametrize("name", FILMS)
def test_skipping_changes_no_frame(film: Callable[[str], Path], name: str) -> None:
    path, own = film(name), FILMS[name][0].times
    end = own[-1] - own[0] + 0.3
    check(path, [time - own[0] for time in own])
    check(path, np.arange(0.25, end, 0.5).tolist())
    for seed in range(3):
        check(path, some_times(seed, end))


@pytest.mark.parametrize("name", FILMS)
def test_unwanted_frames_are_skipped(
    film: Callable[[str], Path], decoded: list[int], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(Decoder, "should_jump", lambda self, second: False)
    path, share = film(name), FILMS[name][1]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        reader = NalReader(stream)
        disposable = sum(reader.is_disposable(packet) for packet in container.demux(stream) if packet.size)
    assert share * FRAMES <= disposable <= (FRAMES if share else 0)
    last = FILMS[name][0].times[-1] - FILMS[name][0].times[0]
    list(frames_at(path, [0.0, last]))
    expected = 0 if name == "bare.h264" else disposable  # it has no times, so every frame may be wanted
    # The first few packets are decoded before the wanted seconds are known.
    assert FRAMES - expected <= len(decoded) <= FRAMES - expected + (12 if expected else 0)


@pytest.mark.parametrize("name", ["three_b.mp4", "strict.mkv", "h265.mp4"])
@pytest.mark.parametrize("disposable", [False, True])
def test_damage_is_reported_as_without_skipping(
    film: Callable[[str], Path], tmp_path: Path, name: str, disposable: bool
) -> None:
    """Wipe out a packet; a disposable packet is then no longer known as disposable."""
    path, data = tmp_path / name, bytearray(film(name).read_bytes())
    with av.open(str(film(name))) as container:
        stream = container.streams.video[0]
        reader = NalReader(stream)
        packets = [(bytes(p), reader.is_disposable(p)) for p in container.demux(stream) if p.size]
    wiped = next(packet for packet, is_disposable in packets[25:] if is_disposable == disposable)
    at = data.index(wiped)
    data[at : at + len(wiped)] = bytes(len(wiped))
    path.write_bytes(data)
    own = [time - FILMS[name][0].times[0] for time in FILMS[name][0].times]
    seconds = np.arange(0.25, own[-1], 0.5).tolist()
    with pytest.warns(VideoWarning) as expected:
        read_without_skipping(path, seconds)
    with pytest.warns(VideoWarning) as issued:
        check(path, seconds)
    assert {str(warning.message) for warning in issued} == {str(warning.message) for warning in expected}


def test_frames_that_do_not_come_as_announced(
    film: Callable[[str], Path], decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decode every frame if an announced frame is missing, whatever the reason."""
    monkeypatch.setattr(Decoder, "should_jump", lambda self, second: False)
    path, seconds = film("pyramid.mp4"), [0.5, 2.5, 4.5, 6.9]
    expected = read_without_skipping(path, seconds)
    decoded.clear()
    read = Decoder.read

    def forgetful(self: Decoder) -> Any:
        frame = read(self)
        lost = frame is not None and self._wanted_seconds and 2.45 < frame.seconds < 2.55
        return read(self) if lost else frame

    monkeypatch.setattr(Decoder, "read", forgetful)
    frames = list(frames_at(path, seconds))
    assert [frame.seconds for frame in frames] == [frame.seconds for frame in expected]
    assert len(set(decoded)) == FRAMES
