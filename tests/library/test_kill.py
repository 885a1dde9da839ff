"""A library whose `add` was killed at any moment ends up equal to one that was made without interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sidelight.library import Library

SCRIPT = Path(__file__).with_name("kill.py")


def contents(library: Library) -> dict[str, Any]:
    """Return what a library holds: rows without their numbers, features, embeddings, and nothing beside them."""
    result = {}
    rows = library.files()
    for row in rows:
        vectors = library._tables.vectors([row.number])[row.number]
        features = library.store.video_file(row.key).read_bytes()
        about = (row.key, row.size, row.modified, row.duration, row.clips, row.digest, row.notes)
        result[row.path] = (*about, vectors.tobytes(), features)
    assert set(library._tables.clip_counts()) == {row.number for row in rows}
    assert len(list((library.store.folder / "videos").iterdir())) == len(rows)
    return result


def start(folder: Path, films: Path, write: int) -> subprocess.Popen[str]:
    """Start `sidelight library add` in a process that dies at the N-th write; 0 for never."""
    arguments = ["library", "add", str(folder), str(films), "--model", "shapes", "--device", "cpu", "--workers", "0"]
    command = [sys.executable, str(SCRIPT), str(write), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_an_add_that_was_killed_again_and_again_loses_nothing(built: Path, tmp_path: Path) -> None:
    """Kill at every write of the first two videos, each time in the same library, then after times of the clock."""
    expected = contents(Library.open(built / "lib"))
    lib = tmp_path / "lib"
    seen = 0
    for write in (1, 2, 3, 5, 6, 7, 8, 9, 5, 12):
        process = start(lib, built / "films", write)
        _, error = process.communicate(timeout=120)
        assert process.returncode in (-signal.SIGKILL, 0), error
        if (lib / "library.json").exists():
            held = [row.path for row in Library.open(lib).files()]
            assert len(held) >= seen and Library.open(lib).search("a star") is not None
            seen = len(held)
    process = start(lib, built / "films", 0)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    library = Library.open(lib)
    assert contents(library) == expected and library.verify() == {}


@pytest.mark.slow
def test_an_add_that_was_killed_by_the_clock_loses_nothing(built: Path, tmp_path: Path) -> None:
    expected = contents(Library.open(built / "lib"))
    lib = tmp_path / "lib"
    for moment in range(2):
        process = start(lib, built / "films", 0)
        until = time.monotonic() + 60
        while not (lib / "library.json").exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.3 * moment)
        process.kill()
        process.communicate(timeout=60)
    library = Library.open(lib, device="cpu")
    library.add(built / "films", workers=0)
    assert contents(library) == expected and library.verify() == {}
