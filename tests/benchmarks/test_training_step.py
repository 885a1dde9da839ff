"""The benchmark of training steps: its plain model equals ours, and it measures and prints correctly."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def training_step(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("training_step")


def test_the_plain_model_equals_ours(training_step: ModuleType) -> None:
    """Compare predictions, losses and gradients in a padded batch."""
    assert 0 < training_step.largest_difference() < 1e-4


def test_a_small_benchmark(training_step: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"CLIPS": 9, "WORDS": 3, "TOKENS": 2, "VIDEO_DIM": 6, "TEXT_DIM": 5}.items():
        monkeypatch.setattr(training_step, name, value)
    runs: list[dict[str, Any]] = []
    for name in training_step.MODELS:
        run = training_step.measure(name, 2)
        assert run["seconds"] > 0 and run["cpu_seconds"] > 0 and run["peak_mib"] >= 0
        runs += [{"model": name, "batch": 2, "round": n, **run, "peak_mib": 10.0 + n} for n in range(2)]
    rows = training_step.summary(runs, threads=1)
    assert [row["model"] for row in rows] == list(training_step.MODELS)
    assert rows[0]["times_faster"] == 1 and all(row["memory_share"] == 1 for row in rows)
    assert "R2-Tuning" in training_step.table(rows, 1)
