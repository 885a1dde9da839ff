"""Extraction that is killed several times gives the same store as an uninterrupted run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sidelight.features.store import FeatureStore
from tests.films import Encoding, encode, numbered, steady

KILLS = 10


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 40 short videos, five of them damaged in different ways."""
    folder = tmp_path_factory.mktemp("forty")
    for i in range(35):
        encode(folder / f"good{i:02d}.mp4", Encoding(steady(200 + 30 * (i % 7))), numbered)
    content_of_good = (folder / "good00.mp4").read_bytes()
    (folder / "bad-empty.mp4").touch()
    (folder / "bad-text.mp4").write_text("no video")
    (folder / "bad-cut.mp4").write_bytes(content_of_good[: len(content_of_good) // 3])
    (folder / "bad-zeros.mkv").write_bytes(bytes(5000))
    (folder / "bad-noise.webm").write_bytes(random.Random(0).randbytes(5000))
    (folder / "notes.md").write_text("not looked at")
    rows = [{"qid": i, "query": f"a red star {i % 5}", "vid": f"good{i:02d}", "duration": 3} for i in range(35)]
    (folder / "queries.jsonl").write_text("".join(json.dumps({**r, "relevant_windows": [[0, 2]]}) + "\n" for r in rows))
    return folder


def command(source: Path, out: Path) -> list[str]:
    return [
        *[sys.executable, "-m", "sidelight", "extract", str(source), "--out", str(out)],
        *["--workers", "2", "--batch-clips", "8", "--device", "cpu"],
    ]


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("[!.]*")) if p.is_file()}


def test_killed_ten_times_it_ends_in_the_same_store(forty: Path, tmp_path: Path) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command(forty, unbroken), capture_output=True, text=True, env=env)
    assert ended.returncode == 1 and "35 of 40 videos" in ended.stdout, ended.stderr
    written = sorted(path.stat().st_mtime for path in (unbroken / "videos").iterdir())
    seconds_per_video = (written[-1] - written[0]) / len(written)  # on this machine
    chance, seen, kills = random.Random(1), 0, 0
    while kills < KILLS:
        process = subprocess.Popen(
            command(forty, broken), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env
        )
        # Killed at work, not while Python starts: at a random moment after it has got one video further.
        while process.poll() is None and len(list((broken / "videos").glob("[!.]*"))) <= seen:
            time.sleep(0.005)
        time.sleep(chance.random() * seconds_per_video)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "too few videos for so many kills"
        kills += 1
        seen = len(list((broken / "videos").glob("[!.]*")))
        FeatureStore(broken)  # can be read at any time
        assert not FeatureStore(broken).verify()
    assert seen < 35
    ended = subprocess.run(command(forty, broken), capture_output=True, text=True, env=env)
    assert ended.returncode == 1, ended.stderr
    assert content(broken) == content(unbroken)
    assert sorted(row["vid"] for row in FeatureStore(broken).failures()) == [
        "bad-cut",
        "bad-empty",
        "bad-noise",
        "bad-text",
        "bad-zeros",
    ]
    print(f"killed {kills} times, with {seen} of 35 videos done at the last: the same {len(content(unbroken))} files")
