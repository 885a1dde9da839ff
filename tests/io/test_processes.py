"""Worker processes end with the process that started them, also when that one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.films import Encoding, encode, numbered, steady

DECODE = """
import sys, time
from sidelight.video.workers import DecodeWorkers, Sampling
with DecodeWorkers({"v": sys.argv[1]}, Sampling(clip_seconds=1, frames_per_clip=1, resolution=16, resize="stretch"),
                   workers=1, chunk=1) as decoded:
    next(iter(decoded))
    print("ready", flush=True)
    time.sleep(60)
"""
SHAPES = """
import sys
from sidelight.shapes.generate import make_world
print("ready", flush=True)
make_world(sys.argv[1], videos=4, seed=1, workers=2)
"""
POOL = """
import sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from sidelight.io.processes import end_with_parent
with ProcessPoolExecutor(2, mp_context=get_context(sys.argv[1]), initializer=end_with_parent) as pool:
    pool.submit(abs, 1).result()
    pool.submit(time.sleep, 60)
    print("ready", flush=True)
    pool.submit(time.sleep, 60).result()
"""


def end_of_children(script: str, *arguments: str, count: int, stop: bool = False) -> float:
    """Run a script until it is ready and has its worker processes, kill it, and return the seconds they live on."""
    # In a session of its own, and without our pipes, so that nothing else ends the workers.
    with subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True) as process:
        children: list[psutil.Process] = []
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            deadline = time.monotonic() + 20
            while len(children) < count and time.monotonic() < deadline:
                children = psutil.Process(process.pid).children(recursive=True)
                time.sleep(0.05)
            assert len(children) >= count
            time.sleep(0.5)  # the workers have begun
            for child in children:
                if stop:
                    child.send_signal(signal.SIGSTOP)  # so that it cannot end on its own
        finally:
            process.kill()
        process.stdout.close()
        process.wait()
        start = time.monotonic()
        _, alive = psutil.wait_procs(children, timeout=10)
        for child in alive:
            child.kill()
        return time.monotonic() - start


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a worker that is stopped cannot watch its parent")
def test_a_decoding_worker_ends_with_its_parent(tmp_path: Path) -> None:
    encode(tmp_path / "v.mp4", Encoding(steady(100)), numbered)
    assert (
        end_of_children(DECODE, str(tmp_path / "v.mp4"), count=1, stop=True) < 9
    )  # a bound for busy machines; half a second elsewhere


def test_workers_that_draw_shapes_end_with_their_parent(tmp_path: Path) -> None:
    assert (
        end_of_children(SHAPES, str(tmp_path / "world"), count=2) < 9
    )  # a bound for busy machines; half a second elsewhere


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_workers_of_every_pool_end_with_their_parent(start: str) -> None:
    """Check the pools of pretraining (fork, or forkserver in later Pythons) and of the studies (spawn)."""
    if start == "fork" and os.name != "posix":
        pytest.skip("this system cannot fork")
    assert end_of_children(POOL, start, count=2) < 9  # a bound for busy machines; half a second elsewhere


def test_every_pool_lets_its_workers_end_with_the_parent() -> None:
    root = Path(__file__).resolve().parents[2]
    calls = [
        line.strip()
        for folder in ("src", "studies", "benchmarks")
        for path in sorted((root / folder).rglob("*.py"))
        for line in path.read_text().splitlines()
        if "ProcessPoolExecutor(" in line
    ]
    assert len(calls) == 3 and all("initializer=end_with_parent" in call for call in calls)
