"""A Ray cluster fills the same store as one machine, even if a worker is killed."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from sidelight.backbones import load_backbone
from sidelight.features.extract import extract
from sidelight.features.ray import decode_rows, extract_on_ray
from sidelight.features.store import FeatureStore
from sidelight.video.workers import Sampling

SAMPLING = Sampling(clip_seconds=2.0, frames_per_clip=4, resolution=32, resize="stretch")


def content(folder: Path) -> dict[str, bytes]:
    """Return every file of a store, byte for byte."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("[!.]*")) if p.is_file()}


def test_rows_of_clips(tiny_world: Path, tmp_path: Path) -> None:
    video = sorted((tiny_world / "videos").iterdir())[0]
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    files = {"vid": np.array(["a", "b"]), "path": np.array([str(video), str(bad)])}
    parts = list(decode_rows(files, sampling=SAMPLING, chunk=3))
    vids = np.concatenate([p["vid"] for p in parts])
    clips, errors = np.concatenate([p["clips"] for p in parts]), np.concatenate([p["error"] for p in parts])
    count = int((vids == "a").sum())
    assert np.concatenate([p["clip"] for p in parts])[:count].tolist() == list(range(count))
    # Only the last row of a video has the number of clips, and only the row of a bad video has an error.
    assert clips.tolist() == [0] * (count - 1) + [count] + [0] and vids[-1] == "b" and "not a video" in errors[-1]
    assert not any(errors[:-1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray: Any = pytest.importorskip("ray", reason="Ray is not installed: pip install 'sidelight[ray]'")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


def _kill_one(killed: list[int], stopped: threading.Event, folder: Path) -> None:
    """Kill a process that encodes, once the first video is done."""
    while not stopped.is_set() and not any((folder / "videos").glob("*.safetensors")):
        time.sleep(0.02)
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if line.startswith("ray::") and "Encoder" in line and not stopped.is_set():
                process.kill()
                killed.append(process.pid)
                return


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_the_same_store_with_a_worker_killed(
    cluster: None, tiny_world: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    source = sorted((tiny_world / "videos").iterdir())
    videos: dict[str, str | Path] = {f"v{i}": source[i % len(source)] for i in range(24)}
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    videos["bad"] = bad
    queries = ["a red star", "spins"]
    options = {"weights": str(tiny_backbone)}
    local = tmp_path / "local"
    _, failures = extract(videos, queries, load_backbone("shapes", **options), local, workers=1)
    killed: list[int] = []
    stopped = threading.Event()
    out = tmp_path / "ray"
    killer = threading.Thread(target=_kill_one, args=(killed, stopped, out))
    killer.start()
    try:
        store, again = extract_on_ray(videos, queries, "shapes", options, out, actors=2)
    finally:
        stopped.set()
        killer.join()
    assert len(killed) == 1
    assert again == failures and list(again) == ["bad"]
    assert content(out) == content(local) and len(store.videos()) == 24
    # A deleted file is extracted again.
    (out / "videos" / "v3.safetensors").unlink()
    extract_on_ray(videos, queries, "shapes", options, out, actors=1)
    assert content(out) == content(local) and not FeatureStore(out).verify()
    shutil.rmtree(out)
