"""Frames are decoded once into a cache that survives a kill, is shared, and has a limit."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sidelight.features import frames as frames_module
from sidelight.features.frames import FrameCache, read_frames
from sidelight.video.damage import VideoError
from sidelight.video.read import frames_at, probe
from sidelight.video.workers import DecodeWorkers, Sampling

SAMPLING = Sampling(clip_seconds=2.0, frames_per_clip=4, resolution=32, resize="stretch")
ROOM = 10**9


@pytest.fixture
def videos(tiny_world: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted((tiny_world / "videos").iterdir())}


@pytest.fixture
def seconds(videos: dict[str, Path]) -> dict[str, float]:
    return {vid: probe(path).duration for vid, path in videos.items()}


def test_frames_are_those_of_the_video(videos: dict[str, Path], seconds: dict[str, float], tmp_path: Path) -> None:
    cache = FrameCache(tmp_path, SAMPLING)
    cache.fill(videos, seconds, limit=ROOM, workers=1)
    assert not cache.missing(videos)
    for vid, path in videos.items():
        held = cache.open(path)
        assert isinstance(held.pixels_CFSS3, np.memmap) and held.duration == pytest.approx(seconds[vid])
        times = [0.25 + 0.5 * i for i in range(int(seconds[vid] / 0.5))]
        expected = np.stack([frame.image for frame in frames_at(path, times, size=(32, 32))])
        assert np.array_equal(held.pixels_CFSS3.reshape(-1, 32, 32, 3)[: len(times)], expected)
        direct = read_frames(path, SAMPLING)
        assert np.array_equal(direct.pixels_CFSS3, held.pixels_CFSS3) and direct.duration == held.duration
    assert cache.bytes_held() == sum(map(cache.bytes_for, seconds.values()))


def test_runs_share_frames_by_content(
    videos: dict[str, Path], seconds: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FrameCache(tmp_path / "c", SAMPLING).fill(videos, seconds, limit=ROOM, workers=0)
    copies = {vid: Path(shutil.copy(path, tmp_path / f"copy-{vid}.mp4")) for vid, path in videos.items()}
    monkeypatch.setattr(frames_module, "DecodeWorkers", None)  # nothing is decoded again
    again = FrameCache(tmp_path / "c", SAMPLING)
    again.fill(copies, seconds, limit=0)
    assert not again.missing(copies)
    # Digests are remembered: a second look reads no video, unless a file has changed.
    monkeypatch.setattr(frames_module, "content_digest", lambda path: pytest.fail(f"{path} was read"))
    assert not FrameCache(tmp_path / "c", SAMPLING).missing(videos)
    monkeypatch.undo()
    vid, path = next(iter(copies.items()))
    path.write_bytes(b"other")
    assert FrameCache(tmp_path / "c", SAMPLING).missing(copies) == [vid]
    with pytest.raises(ValueError, match="no longer in"):
        again.open(path)
    other = Sampling(clip_seconds=2.0, frames_per_clip=2, resolution=32, resize="stretch")
    assert len(FrameCache(tmp_path / "c", other).missing(videos)) == len(videos)


def test_it_states_its_size_and_refuses_what_does_not_fit(
    videos: dict[str, Path],
    seconds: dict[str, float],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = FrameCache(tmp_path / "c", SAMPLING)
    with pytest.raises(ValueError, match=r"the frames of 3 videos take .* holds 0.0 MB of at most 0.1 MB: raise"):
        cache.fill(videos, seconds, limit=100_000)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
        with pytest.raises(ValueError, match=r"the disk of .* has 0.0 MB left: make room"):
            cache.fill(videos, seconds, limit=ROOM)
    assert not list(tmp_path.rglob("*.rgb"))
    with caplog.at_level(logging.INFO):
        cache.fill(videos, seconds, limit=ROOM, workers=0)
    size = cache.bytes_held()
    assert f"decoding into {cache.folder}: the frames of 3 videos take {size / 1e6:.1f} MB" in caplog.text


def test_a_broken_video_is_named_and_the_others_are_kept(
    videos: dict[str, Path], seconds: dict[str, float], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    cache = FrameCache(tmp_path / "c", SAMPLING)
    with pytest.raises(ValueError, match=r"1 of 4 videos could not be read; the first is broken: .*repair or replace"):
        cache.fill({**videos, "broken": broken}, {**seconds, "broken": 5.0}, limit=ROOM, workers=0)
    assert not cache.missing(videos)
    assert len(list(cache.folder.glob("*.rgb"))) == len(videos) and not list(cache.folder.glob(".*"))
    with pytest.raises(VideoError, match="broken"):
        read_frames(broken, SAMPLING)


def test_a_file_of_another_size_counts_as_missing(
    videos: dict[str, Path], seconds: dict[str, float], tmp_path: Path
) -> None:
    cache = FrameCache(tmp_path, SAMPLING)
    cache.fill(videos, seconds, limit=ROOM, workers=0)
    next(cache.folder.glob("*.rgb")).write_bytes(b"cut")
    assert len(cache.missing(videos)) == 1
    cache.fill(videos, seconds, limit=ROOM, workers=0)
    assert not cache.missing(videos)


def test_after_a_kill_finished_videos_are_kept(
    videos: dict[str, Path], seconds: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys, time\n"
        "from sidelight.features import frames\n"
        "from sidelight.video.workers import Sampling\n"
        "finish = frames.FrameCache._finish\n"
        "def slow(self, *a):\n"
        "    finish(self, *a)\n"
        "    print('done', flush=True)\n"
        "    time.sleep(60)\n"
        "frames.FrameCache._finish = slow\n"
        f"cache = frames.FrameCache({str(tmp_path)!r}, frames.{SAMPLING!r})\n"
        f"cache.fill({ {vid: str(path) for vid, path in videos.items()}!r}, {seconds!r}, limit={ROOM}, workers=0)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ})
    assert process.stdout is not None and process.stdout.readline() == b"done\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    cache = FrameCache(tmp_path, SAMPLING)
    missing = cache.missing(videos)
    assert len(missing) == 2
    decoded: list[str] = []

    class Counted(DecodeWorkers):
        def __init__(self, videos: dict[str, Path], *args: object, **options: object) -> None:
            decoded.extend(videos)
            super().__init__(videos, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(frames_module, "DecodeWorkers", Counted)
    half = cache.folder / ".half.other-1-abc.partial.rgb"
    half.write_bytes(b"half")
    os.utime(half, (time.time() - 2 * 86400,) * 2)
    cache.fill(videos, seconds, limit=ROOM, workers=0)
    assert decoded == missing and not cache.missing(videos) and not half.exists()
