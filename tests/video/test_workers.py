"""Check that decoding in other processes gives the same frames and survives a process that crashes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sidelight.video import workers
from sidelight.video.read import probe
from sidelight.video.workers import Chunk, DecodeWorkers, End, Sampling, clips_of
from tests.films import Encoding, encode, numbered, steady

SAMPLING = Sampling(clip_seconds=1.0, frames_per_clip=2, resolution=16, resize="stretch")


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Make five films of 1 to 12 s and a file that is no video, and return them by id."""
    folder = tmp_path_factory.mktemp("films")
    videos = {}
    for count in (10, 25, 40, 70, 120):
        path = folder / f"f{count}.mp4"
        encode(path, Encoding(steady(count)), numbered)
        videos[path.stem] = path
    (folder / "bad.mp4").write_text("no video")
    return {**videos, "bad": folder / "bad.mp4"}


def decode_all(videos: Mapping[str, Path], workers: int) -> tuple[dict[str, npt.NDArray[np.uint8]], dict[str, End]]:
    parts: dict[str, list[npt.NDArray[np.uint8]]] = {}
    ends: dict[str, End] = {}
    with DecodeWorkers(videos, SAMPLING, workers=workers, chunk=3) as decoded:
        for part in decoded:
            if isinstance(part, Chunk):
                assert part.vid not in ends and len(part.pixels_CFSS3) <= 3
                parts.setdefault(part.vid, []).append(part.pixels_CFSS3)
            else:
                ends[part.vid] = part
    return {vid: np.concatenate(chunks) for vid, chunks in parts.items()}, ends


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_same_frames_in_order(films: dict[str, Path], workers: int) -> None:
    pixels, ends = decode_all(films, workers)
    assert ends.keys() == films.keys() and pixels.keys() == films.keys() - {"bad"}
    for vid, images in pixels.items():
        assert np.array_equal(images, np.concatenate(list(clips_of(films[vid], SAMPLING, probe(films[vid]).duration))))
        assert not ends[vid].error and ends[vid].duration == pytest.approx(int(vid[1:]) / 10)
    assert "not a video" in ends["bad"].error


def test_no_videos_are_no_work() -> None:
    assert decode_all({}, 2) == ({}, {})


def test_a_killed_worker_is_replaced_and_nothing_is_lost(films: dict[str, Path]) -> None:
    longest, killed = films["f120"], 0
    parts: list[npt.NDArray[np.uint8]] = []
    with DecodeWorkers({"a": longest, "b": films["f10"]}, SAMPLING, workers=1, chunk=1) as decoded:
        for part in decoded:
            if isinstance(part, Chunk) and part.vid == "a":
                parts.append(part.pixels_CFSS3)
                if not killed:
                    (pid,) = decoded.processes
                    os.kill(pid, signal.SIGKILL)
                    killed = pid
            elif isinstance(part, End):
                assert not part.error
    assert killed and np.array_equal(
        np.concatenate(parts), np.concatenate(list(clips_of(longest, SAMPLING, probe(longest).duration)))
    )


def test_a_video_that_crashes_its_decoder_twice_is_bad(
    films: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A worker that crashes on one file, as a decoder might on a broken file.
    fatal = "import sys, sidelight.video.workers as w; old = w.clips_of\n"
    fatal += (
        "def dies(path, *a, **k):\n    if 'f25' in str(path): import os; os.abort()\n    return old(path, *a, **k)\n"
    )
    fatal += "w.clips_of = dies; w.main()\n"
    script = tmp_path / "fatal.py"
    script.write_text(fatal)
    starts: list[list[str]] = []
    real = subprocess.Popen

    def started(command: list[str], **options: Any) -> Any:
        starts.append(command)
        return real([sys.executable, str(script)], **options)

    monkeypatch.setattr(subprocess, "Popen", started)
    pixels, ends = decode_all({k: films[k] for k in ("f25", "f40")}, 1)
    assert "crashed twice (SIGABRT)" in ends["f25"].error and pixels.keys() == {"f40"}
    assert len(starts) == 3


def test_leaving_early_stops_the_processes(films: dict[str, Path]) -> None:
    with DecodeWorkers(films, SAMPLING, workers=2, chunk=1) as decoded:
        next(iter(decoded))
        pids = decoded.processes
    assert pids and decoded.processes == []
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_an_error_of_the_program_is_raised(films: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> object:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(workers, "decode_video", broken)
    with pytest.raises(RuntimeError, match="out of luck"), DecodeWorkers(films, SAMPLING, workers=0) as decoded:
        list(decoded)


def test_a_worker_starts_without_torch() -> None:
    code = "import sys, sidelight.video.workers; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
