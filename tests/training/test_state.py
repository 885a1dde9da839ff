"""A run goes on after whatever stopped it: a full disk, a damaged state; and it has its folder to itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidelight.cli.main import main
from sidelight.training.loop import train
from sidelight.training.recipe import read_recipe

RECIPE = """
model: {video_dim: 32, text_dim: 32, hidden: 32, heads: 4, moment_queries: 6, roi_bins: 4}
data: {train: WORLD/annotations.jsonl, train_features: STORE}
train: {epochs: 2, batch_size: 8, warmup_steps: 5, save_every: 1, accelerator: cpu, out: OUT}
"""


@pytest.fixture
def path(tiny_world: Path, tiny_store: Path, tmp_path: Path) -> Path:
    """Write a tiny recipe without validation and return its file; the run goes to the folder "run"."""
    text = RECIPE.replace("WORLD", str(tiny_world)).replace("STORE", str(tiny_store))
    (file := tmp_path / "recipe.yaml").write_text(text.replace("OUT", str(tmp_path / "run")))
    return file


def losses(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("damage", ["empty", "cut", "junk", "changed", "another file"])
def test_a_damaged_state_is_one_sentence(
    damage: str, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    train(read_recipe(path, ["--train.epochs=1"]), quiet=True)
    state = tmp_path / "run" / "state.pt"
    whole = state.read_bytes()
    if damage == "another file":
        torch.save({"weights": torch.zeros(3)}, state)
    else:
        middle = len(whole) // 2
        changed = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
        contents = {"empty": b"", "cut": whole[:middle], "junk": b"hello " * 100, "changed": changed}
        state.write_bytes(contents[damage])
    before = state.read_bytes()
    capsys.readouterr()
    for arguments in (["--resume"], ["--resume", "--check"]):
        assert main(["train", str(path), *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"sidelight: {state} is damaged, was cut short, or is no saved state")
        assert "delete it to start anew" in error and error.count("\n") == 1
    assert state.read_bytes() == before
    state.write_bytes(whole)
    assert main(["train", str(path), "--resume"]) == 0


SLOW_RUN = """
import sys, time, sidelight.training.loop as t
from sidelight.cli.main import main
step = t.Trainer.train_step
t.Trainer.train_step = lambda *a: (time.sleep(0.5), step(*a))[1]
sys.exit(main(["train", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_two_runs_cannot_write_into_one_folder(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    run = [str(path), "--train.save_every=1000"]  # no state yet: only the lock tells that a run is there
    process = subprocess.Popen([sys.executable, "-c", SLOW_RUN, *run], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not ((out / "losses.jsonl").exists() and losses(out)):
        time.sleep(0.05)
    for arguments in ([], ["--resume"]):
        assert main(["train", *run, *arguments]) == 2
        assert f"another process (number {process.pid}) writes into {out} now" in capsys.readouterr().err
    process.send_signal(signal.SIGKILL)
    process.wait()
    # The lock of a killed process is free at once.
    assert main(["train", *run, "--resume"]) == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 200 kB and return its folder; skip the test where that is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    try:
        allowed = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_run_on_a_full_disk_goes_on_when_there_is_room(
    path: Path, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", str(path), f"--train.out={small_disk / 'run'}"]
    for extra in ([], ["--resume"]):
        assert main([*arguments, *extra]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"sidelight: {small_disk / 'run'}")
        assert "cannot be written: No space left on device; make room, then " in error
        assert not list(small_disk.rglob("*.partial*")) and not (small_disk / "run" / "state.pt").exists()
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    assert main([*arguments, "--resume"]) == 0
    assert main(["train", str(path)]) == 0
    assert losses(small_disk / "run") == losses(tmp_path / "run")


def test_a_disk_that_becomes_full_keeps_the_last_state(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(path)]) == 0
    whole = losses(tmp_path / "run")
    calls = 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise OSError(28, "No space left on device")

    arguments = ["train", str(path), f"--train.out={tmp_path / 'other'}"]
    import torch

    save = torch.save

    def save_unless_full(*values: Any) -> None:
        full(0)
        save(*values)

    with monkeypatch.context() as context:
        context.setattr("torch.save", save_unless_full)
        assert main(arguments) == 2
    state = tmp_path / "other" / "state.pt"
    message = f"{state} cannot be written: No space left on device; make room, then go on with --resume"
    assert message in capsys.readouterr().err and state.exists()
    assert main([*arguments, "--resume"]) == 0
    assert losses(tmp_path / "other") == whole


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["recipes"], 0),
        (["models"], 2),
        (["cache"], 2),
        (["ground", "film.mp4", "a dog"], 2),
        (["train", "recipe.yaml"], 0),
    ],
)
def test_a_user_without_a_home_folder(arguments: list[str], code: int, path: Path, tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"")
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "SIDELIGHT_CACHE", "XDG_CACHE_HOME")}
    # Of a user without an entry in the list of users, Python finds no home folder either.
    code_of_user = (
        "import os, pwd, sys\n"
        "def unknown(*a): raise KeyError('getpwuid(): uid not found')\n"
        "pwd.getpwuid = pwd.getpwnam = unknown\n"
        "from sidelight.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code_of_user, *arguments]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "~").exists()
    if code:
        assert done.stderr.count("\n") == 1
        assert "set SIDELIGHT_CACHE" in done.stderr or "film.mp4" in done.stderr


def test_training_without_a_single_moment_is_refused(
    path: Path, tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (tiny_world / "annotations.jsonl").read_text().splitlines()]
    for row in rows:
        row.update(relevant_windows=[], relevant_clip_ids=[], saliency_scores=[])
    negative = tmp_path / "negative.jsonl"
    negative.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for arguments in ([], ["--check"]):
        assert main(["train", str(path), f"--data.train={negative}", *arguments]) == 2
        error = capsys.readouterr().err
        assert f"none of the {len(rows)} queries of {negative} has a moment or a rating" in error
    assert not (tmp_path / "run" / "state.pt").exists()


def test_parts_of_a_killed_run_are_swept(path: Path, tmp_path: Path) -> None:
    for folder in ("", "best", "last"):
        part = tmp_path / "run" / folder / ".state.000000-1-abcdef.partial.pt"
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text("half")
        os.utime(part, (time.time() - 90_000,) * 2)
    assert main(["train", str(path), "--train.epochs=1"]) == 0
    assert not list((tmp_path / "run").rglob("*.partial*"))
