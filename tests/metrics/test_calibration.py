"""Thresholds and bins where the right answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidelight.data.annotations import Annotation, AnnotationError, Submission
from sidelight.export.charts import plot_reliability
from sidelight.metrics.calibration import absent_report, best_moments, choose_min_score, reliability


def truth(qid: int, windows: Any = ()) -> Annotation:
    return Annotation(qid=qid, query="a", vid="v", duration=20, relevant_windows=windows)


def guess(qid: int, windows: Any) -> Submission:
    return Submission(qid=qid, vid="v", pred_relevant_windows=windows, pred_saliency_scores=np.zeros(0))


def test_the_best_moment_of_each_query() -> None:
    found = best_moments(
        [guess(2, [[0, 1, 0.2], [0, 10, 0.9]]), guess(1, []), guess(3, [[0, 4, 0.5]]), guess(4, [[0, 9, 0.4]])],
        [truth(1), truth(2, [[0, 12]]), truth(3, [[10, 14]]), truth(4)],
    )
    assert found.score_Q.tolist() == [0, 0.9, 0.5, 0.4]
    assert found.right_Q.tolist() == [False, True, False, False]
    assert found.present_Q.tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    ("submissions", "message"),
    [
        ([], r"1 of 1 annotations have no prediction \(qid 1\)"),
        ([guess(1, []), guess(9, [])], r"1 of 2 predictions have no annotation \(qid 9\)"),
        ([guess(1, [[0, 1, 1.5]])], "scores between 0 and 1, got 1.5 to 1.5"),
    ],
)
def test_what_cannot_be_calibrated(submissions: list[Submission], message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        best_moments(submissions, [truth(1, [[0, 1]])])


def test_reliable_scores_have_no_error() -> None:
    rng = np.random.default_rng(0)
    score = rng.random(40_000)
    good = reliability(score, rng.random(40_000) < score)
    assert good.error < 0.015
    assert good.count_N.sum() == 40_000
    bold = reliability(score, rng.random(40_000) < score / 2)
    assert bold.error == pytest.approx(0.25, abs=0.015)


def test_reliability_by_hand() -> None:
    found = reliability(np.array([0.1, 0.3, 1.0]), np.array([False, True, True]), bins=2)
    assert found.count_N.tolist() == [2, 1]
    assert found.score_N.tolist() == [0.2, 1.0]
    assert found.right_N.tolist() == [0.5, 1.0]
    assert found.error == pytest.approx(0.3 * 2 / 3)


def test_chosen_threshold_is_the_best_of_all() -> None:
    rng = np.random.default_rng(3)
    present = rng.random(200) < 0.7
    score = np.round(rng.normal(0.3 + 0.3 * present, 0.2).clip(0, 1), 2).astype(np.float64)  # with ties
    chosen = absent_report(score, present, choose_min_score(score, present))
    every = [absent_report(score, present, t).f1 for t in np.linspace(0, 1, 1001)]
    assert chosen.f1 == pytest.approx(max(every))


@pytest.mark.parametrize(
    ("score", "present", "chosen"),
    [
        ([0.00112, 0.00114, 0.00116, 0.00118], [False, False, True, True], 0.00115),  # as few decimals as it takes
        ([0.1, 0.9], [False, True], 0.5),
        ([0.5, 1.0], [True, False], 0.0),  # no threshold can part these: best never given
        ([0.5, 0.5], [True, False], 1.0),  # all or none: then all, F1 2/3
        ([0.3, np.nextafter(0.3, 1)], [False, True], np.nextafter(0.3, 1)),
    ],
)
def test_chosen_threshold_can_be_copied(score: list[float], present: list[bool], chosen: float) -> None:
    scores, there = np.array(score), np.array(present)
    found = choose_min_score(scores, there)
    assert found == pytest.approx(chosen, abs=0.25 if chosen == 1.0 else 0)
    report = absent_report(scores, there, found)
    best = max(absent_report(scores, there, float(t)).f1 for t in [0.0, 1.0, *scores])
    assert report.f1 == best


def test_absent_report_by_hand() -> None:
    score, present = np.array([0.1, 0.2, 0.3, 0.9]), np.array([False, True, False, True])
    found = absent_report(score, present, 0.25)
    assert (found.precision, found.recall, found.f1, found.lost) == (0.5, 0.5, 0.5, 0.5)
    assert np.isnan(absent_report(score, present, 0.0).precision)
    assert absent_report(score, present, 0.0).recall == 0


@pytest.mark.parametrize("present", [[True, True], [False, False]])
def test_both_kinds_of_query_are_needed(present: list[bool]) -> None:
    with pytest.raises(ValueError, match="needs queries of both kinds"):
        choose_min_score(np.array([0.1, 0.2]), np.array(present))


@pytest.mark.parametrize(("score", "bins"), [([], 10), ([0.5], 0), ([1.5], 10)])
def test_unreliable_input(score: list[float], bins: int) -> None:
    with pytest.raises(ValueError, match="scores"):
        reliability(np.array(score, dtype=np.float64), np.ones(len(score), dtype=bool), bins=bins)


def test_chart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs sidelight[plot]")
    found = reliability(np.array([0.1, 0.3, 1.0]), np.array([False, True, True]))
    assert plot_reliability(found, tmp_path / "r.png", min_score=0.2).stat().st_size > 5000
