"""Leaving out pictures to which no other refers: the wanted ones come out as if every picture were decoded."""

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
from tests.films import HEIGHT, WIDTH, Pixels, Recipe, encode, steady, unsteady

PICTURES = 70
X264 = "keyint=40:min-keyint=5:b-adapt=0:"
_X265 = "log-level=none:pools=none:frame-threads=1:keyint=30:min-keyint=5:b-adapt=0:"


def _x264(params: str, times: Callable[[int], list[float]] = steady) -> Recipe:
    return Recipe(times(PICTURES), options={"preset": "veryfast", "x264-params": X264 + params}, gop=40)


def _x265(params: str, times: Callable[[int], list[float]] = steady) -> Recipe:
    return Recipe(times(PICTURES), "libx265", {"preset": "ultrafast", "x265-params": _X265 + params}, gop=30)


# name of the file -> how it is made, and the least share of its pictures that no other refers to; 0: nothing may be
# left out
FILMS: dict[str, tuple[Recipe, float]] = {
    "defaults.mp4": (Recipe(steady(PICTURES)), 0.1),
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
    "late.ts": (replace(_x264("bframes=3"), times=steady(PICTURES, 1.5)), 0.4),
    "films.flv": (_x264("bframes=3"), 0.4),
    "bare.h264": (_x264("bframes=3"), 0.4),
    "fragments.mp4": (replace(_x264("bframes=3"), mux={"movflags": "frag_keyframe+empty_moov"}), 0.4),
    "h265.mp4": (_x265("bframes=3"), 0.4),
    "h265_open.mkv": (_x265("bframes=4:open-gop=1:b-pyramid=1", unsteady), 0.4),
    "h265_flat.ts": (_x265("bframes=4:open-gop=0:b-pyramid=0"), 0.6),
    "h265_layers.mp4": (_x265("bframes=3:temporal-layers=3"), 0.1),
    "mpeg4.mp4": (Recipe(steady(PICTURES), "mpeg4", reordered=2), 0),
    "vp9.webm": (Recipe(steady(PICTURES), "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}), 0),
    "av1.mkv": (Recipe(steady(PICTURES), "libsvtav1", {"preset": "12", "svtav1-params": "lp=1"}), 0),
}


def moving(number: int) -> Pixels:
    """A texture that wanders and wobbles, so that each picture is made of others."""
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
    """Presentation ticks of the packets that reach a decoder."""
    sent = list[int]()
    decode = Decoder._decode

    def count(self: Decoder, packet: Packet[VideoStream] | None) -> None:
        if packet is not None and packet.size:
            sent.append(packet.pts or 0)
        decode(self, packet)

    monkeypatch.setattr(Decoder, "_decode", count)
    return sent


def everything(path: Path, seconds: Sequence[float], **options: Any) -> list[Frame]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "skip_unwanted", lambda self, seconds: None)
        return list(frames_at(path, seconds, **options))


def check(path: Path, seconds: Sequence[float], **options: Any) -> None:
    """The same pictures at the same times, whether or not others are left out."""
    expected, found = everything(path, seconds, **options), list(frames_at(path, seconds, **options))
    assert [frame.seconds for frame in found] == [frame.seconds for frame in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.image, other.image)


def some_times(seed: int, end: float) -> list[float]:
    rng = np.random.default_rng(seed)
    return sorted(rng.uniform(0, end, int(rng.integers(1, 25))).tolist())


@pytest.mark.parametrize("name", FILMS)
def test_leaving_out_changes_no_picture(film: Callable[[str], Path], name: str) -> None:
    path, own = film(name), FILMS[name][0].times
    end = own[-1] - own[0] + 0.3
    check(path, [time - own[0] for time in own])
    check(path, np.arange(0.25, end, 0.5).tolist())
    for seed in range(3):
        check(path, some_times(seed, end))


@pytest.mark.parametrize("name", FILMS)
def test_what_is_not_wanted_is_left_out(
    film: Callable[[str], Path], decoded: list[int], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(Decoder, "should_jump", lambda self, second: False)
    path, share = film(name), FILMS[name][1]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        references = NalReader(stream)
        spare = sum(references.is_disposable(packet) for packet in container.demux(stream) if packet.size)
    assert share * PICTURES <= spare <= (PICTURES if share else 0)
    last = FILMS[name][0].times[-1] - FILMS[name][0].times[0]
    list(frames_at(path, [0.0, last]))
    expected = 0 if name == "bare.h264" else spare  # it has no times by which to tell what is wanted
    # A few of the first are decoded before anybody says what is wanted.
    assert PICTURES - expected <= len(decoded) <= PICTURES - expected + (12 if expected else 0)


@pytest.mark.parametrize("name", ["three_b.mp4", "strict.mkv", "h265.mp4"])
@pytest.mark.parametrize("spare", [False, True])
def test_damage_is_found_and_told_as_if_every_picture_were_decoded(
    film: Callable[[str], Path], tmp_path: Path, name: str, spare: bool
) -> None:
    """A packet is wiped out; one that can be spared is then no longer known as such."""
    path, data = tmp_path / name, bytearray(film(name).read_bytes())
    with av.open(str(film(name))) as container:
        stream = container.streams.video[0]
        references = NalReader(stream)
        packets = [(bytes(p), references.is_disposable(p)) for p in container.demux(stream) if p.size]
    wiped = next(packet for packet, disposable in packets[25:] if disposable == spare)
    at = data.index(wiped)
    data[at : at + len(wiped)] = bytes(len(wiped))
    path.write_bytes(data)
    own = [time - FILMS[name][0].times[0] for time in FILMS[name][0].times]
    seconds = np.arange(0.25, own[-1], 0.5).tolist()
    with pytest.warns(VideoWarning) as expected:
        everything(path, seconds)
    with pytest.warns(VideoWarning) as found:
        check(path, seconds)
    assert {str(warning.message) for warning in found} == {str(warning.message) for warning in expected}


def test_pictures_that_do_not_come_as_promised(
    film: Callable[[str], Path], decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever may be the reason, everything is decoded then."""
    monkeypatch.setattr(Decoder, "should_jump", lambda self, second: False)
    path, seconds = film("pyramid.mp4"), [0.5, 2.5, 4.5, 6.9]
    expected = everything(path, seconds)
    decoded.clear()
    read = Decoder.read

    def forgetful(self: Decoder) -> Any:
        picture = read(self)
        lost = picture is not None and self._wanted_seconds and 2.45 < picture.seconds < 2.55
        return read(self) if lost else picture

    monkeypatch.setattr(Decoder, "read", forgetful)
    found = list(frames_at(path, seconds))
    assert [frame.seconds for frame in found] == [frame.seconds for frame in expected]
    assert len(set(decoded)) == PICTURES
