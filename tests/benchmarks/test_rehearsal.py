"""The rehearsal of first uses: the table has its numbers, and downloads that go wrong are told apart."""

from __future__ import annotations

import importlib
import random
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def rehearsal(monkeypatch: pytest.MonkeyPatch, tiny_world: Path) -> ModuleType:
    """Return the script; its film is a short one."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    module = importlib.import_module("rehearsal")
    monkeypatch.setattr(module, "write_univtg", lambda file: file.touch())  # 164 MB
    film = min((tiny_world / "videos").iterdir())
    monkeypatch.setattr(module, "film_of", lambda out, seconds: film)
    return module


def write_stub(folder: Path) -> None:
    """Write files by the names of CLIP's, which a download without an answer does not read."""
    (folder / "pytorch_model.bin").write_bytes(random.Random(0).randbytes(12 << 20))
    for name in ("config.json", "merges.txt", "vocab.json"):
        (folder / name).write_text("{}")


@pytest.mark.slow
def test_a_model_is_rehearsed(
    rehearsal: ModuleType,
    tiny_world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(rehearsal, "REPOSITORIES", {})
    rehearsal.main(["shapes", "--out", str(tmp_path), "--videos", str(tiny_world / "videos")])
    head, names, row = capsys.readouterr().out.splitlines()
    assert "film of 10 minutes, random weights" in head and len(names) == len(row)
    model, megabytes, _, first, slash, first_cpu, again, *_, peak = row.split()
    assert (model, megabytes, slash, row.count(" / ")) == ("shapes", "-", "/", 4)
    assert min(map(float, (first, first_cpu, again))) > 0 and float(peak) > 100
    assert [path.name for path in tmp_path.iterdir()] == ["model_best.ckpt"]  # caches are gone


@pytest.mark.slow
def test_downloads_that_go_wrong_are_checked(
    rehearsal: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repositories = {rehearsal.CLIP: write_stub, rehearsal.R2_TUNING: rehearsal.write_r2_tuning}
    monkeypatch.setattr(rehearsal, "REPOSITORIES", repositories)
    monkeypatch.setattr(rehearsal, "MODELS", ())
    rehearsal.main(["--out", str(tmp_path), "--checks"])
    printed = capsys.readouterr().out
    for sentence in (
        "expected ed516355; it was not kept",
        "the same command goes on from there",
        "pytorch_model.bin was changed or is damaged",
        "config.json has other content than expected",
    ):
        assert sentence in printed


def test_tokens_are_merged_of_earlier_ones(rehearsal: ModuleType) -> None:
    tokens, pairs = rehearsal.merged_tokens(["a", "b"], 50, ends=["a</w>", "b</w>"])
    assert len({*tokens, "a", "b"}) == 52 and tokens == [left + right for left, right in pairs]
    for i, (left, right) in enumerate(pairs):
        assert left in ["a", "b", *tokens[:i]] and not left.endswith("</w>")
        assert right.removesuffix("</w>") in ("a", "b")
