"""Coverage of intervals, level of p-values, and rank tests against the formulas of textbooks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidelight.metrics.statistics import (
    bootstrap_means,
    holm,
    intervals,
    over_seeds,
    permutation_test,
    rank_test,
)


def test_bootstrap_against_a_plain_loop() -> None:
    """Repeat the draws with a loop: each row is repeated as often as it was drawn."""
    rng = np.random.default_rng(1)
    values = rng.random((7, 3))
    values[2, 1] = values[4, 1] = np.nan
    fast = bootstrap_means(values, resamples=50, seed=3)
    weights = np.random.default_rng(3).multinomial(7, np.full(7, 1 / 7), size=50)
    for row, counts in zip(fast, weights, strict=True):
        drawn = np.concatenate([np.repeat(values[q : q + 1], counts[q], axis=0) for q in range(7)])
        np.testing.assert_allclose(row, np.nanmean(drawn, axis=0))


def test_bootstrap_of_a_mean_has_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=(400, 1))
    drawn = bootstrap_means(values, resamples=4000)
    assert drawn.std() == pytest.approx(values.std() / 20, rel=0.05)
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.005)


def test_intervals_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for trial in range(300):
        (interval,) = intervals(rng.normal(size=(60, 1)), resamples=300, seed=trial, confidence=0.9)
        covered += interval.low <= 0 <= interval.high
    assert 0.84 < covered / 300 < 0.95


def test_groups_widen_the_interval() -> None:
    """Check that ten copies of each value in one group give the interval of the values without copies."""
    values = np.repeat(np.random.default_rng(0).random(40), 10)[:, None]
    videos = [str(i // 10) for i in range(400)]
    apart, together = intervals(values)[0], intervals(values, groups=videos)[0]
    ratio = (together.high - together.low) / (apart.high - apart.low)
    assert ratio == pytest.approx(np.sqrt(10), rel=0.1)
    (single,) = intervals(values[::10])
    assert together.high - together.low == pytest.approx(single.high - single.low, rel=0.05)


def test_one_group_has_no_interval() -> None:
    (interval,) = intervals(np.array([[0.2], [0.9]]), groups=["v", "v"])
    assert interval.value == pytest.approx(0.55)
    assert np.isnan([interval.low, interval.high]).all()


def test_a_range_that_few_queries_have() -> None:
    values = np.full((50, 1), np.nan)
    values[:2, 0] = 0.0, 1.0
    (interval,) = intervals(values)
    assert (interval.value, interval.low, interval.high) == (0.5, 0.0, 1.0)


def test_permutation_against_all_flips() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.random((8, 1)), rng.random((8, 1))
    difference = (a - b)[:, 0]
    flips = np.array(list(itertools.product([-1, 1], repeat=8))) @ difference
    exact = (np.abs(flips) >= abs(difference.sum()) - 1e-12).mean()
    assert permutation_test(a, b, permutations=40_000)[0] == pytest.approx(exact, abs=0.01)


def test_permutation_of_equal_predictions_and_of_clear_ones() -> None:
    a = np.random.default_rng(0).random((100, 2))
    b = np.stack([a[:, 0], a[:, 1] - 0.2], axis=1)
    same, clear = permutation_test(a, b, permutations=999)
    assert same == 1.0
    assert clear == 1 / 1000  # the observed one counts, so it is never 0


def test_permutation_is_level() -> None:
    """Check that about 5 % of the p-values are below 0.05 if the predictions do not differ."""
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=(80, 400)), rng.normal(size=(80, 400))
    below = (permutation_test(a, b, permutations=500) < 0.05).mean()
    assert 0.025 < below < 0.08


def test_groups_are_flipped_as_one() -> None:
    """Check that ten queries of one video count as one observation."""
    a, b = np.ones((10, 1)), np.zeros((10, 1))
    assert permutation_test(a, b, permutations=2000)[0] < 0.01
    assert permutation_test(a, b, groups=["v"] * 10, permutations=2000)[0] == 1.0


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ([], []),
        ([0.2], [0.2]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.9, 0.8], [1.0, 1.0]),
    ],
)
def test_holm(p: list[float], expected: list[float]) -> None:
    np.testing.assert_allclose(holm(p), expected)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_lowers_and_keeps_the_order(p: list[float]) -> None:
    raised = holm(p)
    assert (raised >= np.array(p)).all()
    assert (raised <= 1).all()
    assert (np.diff(raised[np.argsort(p, kind="stable")]) >= 0).all()


def test_over_seeds() -> None:
    mean, deviation = over_seeds([1.0, 3.0])
    assert mean == 2.0
    assert deviation == pytest.approx(np.sqrt(2))
    with pytest.raises(ValueError, match="2 runs or more, got 1"):
        over_seeds([1.0])


def test_rank_test_against_the_formulas() -> None:
    """Compare with Demsar (JMLR 2006), sec. 3.2.2, without ties: chi-squared from mean ranks, q from differences."""
    stats = pytest.importorskip("scipy.stats", reason="needs sidelight[stats]")
    pytest.importorskip("scikit_posthocs", reason="needs sidelight[stats]")
    scores = np.random.default_rng(4).random((14, 4)) - np.array([0.5, 0.2, 0.1, 0])
    result = rank_test(["a", "b", "c", "d"], scores)
    ranks = scores.argsort(1).argsort(1) + 1.0
    mean = ranks.mean(0)
    np.testing.assert_allclose(result.mean_ranks, mean)
    chi = 12 * 14 / (4 * 5) * ((mean**2).sum() - 4 * 25 / 4)
    assert result.statistic == pytest.approx(chi)
    assert result.p == pytest.approx(stats.chi2.sf(chi, 3))
    q = abs(mean[0] - mean[3]) / np.sqrt(4 * 5 / (6 * 14))
    assert result.nemenyi[0, 3] == pytest.approx(stats.studentized_range.sf(q * np.sqrt(2), 4, np.inf), rel=1e-3)
    assert result.critical_difference == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 14)), rel=1e-3)  # his Table 5


def test_blocks_that_lack_a_method_are_left_out() -> None:
    pytest.importorskip("scikit_posthocs", reason="needs sidelight[stats]")
    ranks = np.array([[1.0, 2, 3], [1, 2, 3], [2, 1, np.nan], [1, 2, 3]])
    assert rank_test("abc", ranks).blocks == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_means(np.zeros((0, 2))), "at least one of each"),
        (lambda: bootstrap_means(np.zeros(3)), "at least one of each"),
        (lambda: bootstrap_means(np.full((2, 1), np.nan)), "at least one query that counts"),
        (lambda: bootstrap_means(np.ones((2, 1)), resamples=0), "resamples must be 1 or more"),
        (lambda: bootstrap_means(np.ones((2, 1)), groups=["a"]), "one group for each of 2 queries, got 1"),
        (lambda: intervals(np.ones((2, 1)), confidence=1), "confidence must be between 0 and 1"),
        (lambda: permutation_test(np.ones((2, 1)), np.ones((3, 1))), "the same queries on both sides"),
        (lambda: permutation_test(np.array([[1, np.nan]]), np.ones((1, 2))), "the same queries on both sides"),
        (lambda: permutation_test(np.ones((2, 1)), np.ones((2, 1)), permutations=0), "permutations must be 1"),
        (lambda: rank_test("abc", [[1, 2]]), "3 methods"),
        (lambda: rank_test("abc", [[1, 2, 3]]), "2 complete blocks"),
    ],
)
def test_wrong_input_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
