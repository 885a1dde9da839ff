"""Verdicts in cases where the right answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sidelight.export.charts import plot_comparison
from sidelight.metrics.compare import Comparison, compare


def against(shift: float, *, noise: float = 0.1, queries: int = 300, seed: int = 0) -> Comparison:
    """Compare two predictions of which the first is better by ``shift`` on average."""
    rng = np.random.default_rng(seed)
    base = rng.random(queries)
    sides = []
    for better in (shift, 0.0):
        iou = np.clip(base + better + noise * rng.normal(size=queries), 0, 1)
        short = np.where(np.arange(queries) % 3 == 0, iou, np.nan)
        hits = (iou >= 0.5).astype(float)
        sides.append({"MR-full-mIoU": iou, "MR-short-mIoU": short, "MR-full-R1@0.5": hits})
    names = [f"query {i}" for i in range(queries)]
    videos = [str(i // 3) for i in range(queries)]
    return compare(sides[0], sides[1], qids=range(queries), queries=names, videos=videos, resamples=2000)


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, "no difference"), (0.1, "first"), (-0.1, "second")])
def test_verdicts(shift: float, verdict: str) -> None:
    comparison = against(shift)
    assert [m.verdict for m in comparison.metrics] == [verdict] * 3
    assert [m.queries for m in comparison.metrics] == [300, 100, 300]
    interval = comparison.metrics[0].difference
    assert interval.low <= interval.value <= interval.high
    assert (interval.low <= 0 <= interval.high) == (shift == 0)
    assert (comparison.groups, comparison.grouped_by) == (100, "video")


def test_wins_count_every_query_once() -> None:
    full, short = against(0.0).wins
    assert full.first + full.second + full.equal == 300
    assert short.first + short.second + short.equal == 300 - 200  # a third of the queries has short windows
    assert [w.metric for w in (full, short)] == ["MR-full-mIoU", "MR-short-mIoU"]


def test_largest_differences_come_first() -> None:
    comparison = against(0.0, queries=30)
    sizes = [abs(q.first - q.second) for q in comparison.largest]
    assert comparison.decided_by == "MR-full-mIoU"
    assert len(sizes) == 5
    assert sizes == sorted(sizes, reverse=True)


def test_equal_predictions_differ_nowhere() -> None:
    side = {"MR-full-mAP": np.array([0.1, 0.5, 1.0])}
    comparison = compare(side, side, qids=[1, 2, 3], queries=["a", "b", "c"], videos=None, resamples=100)
    assert comparison.metrics[0].p == 1.0
    assert comparison.metrics[0].verdict == "no difference"
    assert comparison.wins[0].equal == 3
    assert comparison.largest == ()
    assert comparison.grouped_by == "query"


def test_json_holds_the_verdicts() -> None:
    values = json.loads(json.dumps(against(0.1).to_dict()))
    assert values["metrics"][0]["verdict"] == "first"
    assert values["metrics"][0]["difference"]["confidence"] == 0.95


def test_other_metrics_are_refused() -> None:
    scores = {"MR-full-mAP": np.ones(2)}
    with pytest.raises(ValueError, match=r"HL-min-Fair-mAP only for one of them"):
        compare(scores, {**scores, "HL-min-Fair-mAP": np.ones(2)}, qids=[1, 2], queries=["a", "b"], videos=None)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_chart(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib", reason="needs sidelight[plot]")
    path = plot_comparison(against(0.1), tmp_path / f"chart.{suffix}")
    assert path.stat().st_size > 5000
    assert [p.name for p in tmp_path.iterdir()] == [f"chart.{suffix}"]
