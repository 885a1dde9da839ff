"""Thresholds and bins in cases where the right answer is known."""

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
    best = best_moments(
        [guess(2, [[0, 1, 0.2], [0, 10, 0.9]]), guess(1, []), guess(3, [[0, 4, 0.5]]), guess(4, [[0, 9, 0.4]])],
        [truth(1), truth(2, [[0, 12]]), truth(3, [[10, 14]]), truth(4)],
    )
    assert best.score_Q.tolist() == [0, 0.9, 0.5, 0.4]
    assert best.right_Q.tolist() == [False, True, False, False]
    assert best.present_Q.tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    ("submissions", "message"),
    [
        ([], r"1 of 1 annotations have no prediction \(qid 1\)"),
        ([guess(1, []), guess(9, [])], r"1 of 2 predictions have no annotation \(qid 9\)"),
        ([guess(1, [[0, 1, 1.5]])], "scores between 0 and 1, got 1.5 to 1.5"),
    ],
)
def test_wrong_input_is_refused(submissions: list[Submission], message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        best_moments(submissions, [truth(1, [[0, 1]])])


def test_reliable_scores_have_no_error() -> None:
    rng = np.random.default_rng(0)
    score = rng.random(40_000)
    good = reliability(score, rng.random(40_000) < score)
    assert good.error < 0.015
    assert good.count_N.sum() == 40_000
    overconfident = reliability(score, rng.random(40_000) < score / 2)
    assert overconfident.error == pytest.approx(0.25, abs=0.015)


def test_reliability_by_hand() -> None:
    result = reliability(np.array([0.1, 0.3, 1.0]), np.array([False, True, True]), bins=2)
    assert result.count_N.tolist() == [2, 1]
    assert result.score_N.tolist() == [0.2, 1.0]
    assert result.right_N.tolist() == [0.5, 1.0]
    assert result.error == pytest.approx(0.3 * 2 / 3)


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
        (
            [0.00112, 0.00114, 0.00116, 0.00118],
            [False, False, True, True],
            0.00115,
        ),  # the fewest decimals that separate them
        ([0.1, 0.9], [False, True], 0.5),
        ([0.5, 1.0], [True, False], 0.0),  # no threshold separates these: never answer
        ([0.5, 0.5], [True, False], 1.0),  # all or none: all has F1 2/3
        ([0.3, np.nextafter(0.3, 1)], [False, True], np.nextafter(0.3, 1)),
    ],
)
def test_chosen_threshold_can_be_copied(score: list[float], present: list[bool], chosen: float) -> None:
    score_Q, present_Q = np.array(score), np.array(present)
    threshold = choose_min_score(score_Q, present_Q)
    assert threshold == pytest.approx(chosen, abs=0.25 if chosen == 1.0 else 0)
    report = absent_report(score_Q, present_Q, threshold)
    best = max(absent_report(score_Q, present_Q, float(t)).f1 for t in [0.0, 1.0, *score])
    assert report.f1 == best


def test_absent_report_by_hand() -> None:
    score, present = np.array([0.1, 0.2, 0.3, 0.9]), np.array([False, True, False, True])
    report = absent_report(score, present, 0.25)
    assert (report.precision, report.recall, report.f1, report.lost) == (0.5, 0.5, 0.5, 0.5)
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
    result = reliability(np.array([0.1, 0.3, 1.0]), np.array([False, True, True]))
    assert plot_reliability(result, tmp_path / "r.png", min_score=0.2).stat().st_size > 5000
