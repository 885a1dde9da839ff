"""Segments, summaries and their agreement, compared with exhaustive search on tiny videos."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidelight.metrics import summarization
from sidelight.metrics.summarization import FScore

Floats = npt.NDArray[np.float64]


# --- segments ---------------------------------------------------------------------------------------------


def scatter(features: Floats, changes: tuple[int, ...]) -> float:
    """Return the sum of squared distances to the mean of the segment, of features of length 1."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    parts = np.split(features / np.where(norms > 0, norms, 1), changes)
    return float(sum(((part - part.mean(0)) ** 2).sum() for part in parts))


def objective(features: Floats, changes: tuple[int, ...], penalty: float) -> float:
    clips, m = len(features), len(changes)
    return scatter(features, changes) / clips + (penalty * m / (2 * clips) * (np.log(clips / m) + 1) if m else 0.0)


def slow_segmentation(features: Floats, most: int, penalty: float) -> float:
    """Return the lowest objective of all ways to cut."""
    return min(
        objective(features, changes, penalty)
        for m in range(min(most, len(features)))
        for changes in combinations(range(1, len(features)), m)
    )


EAST, NORTH, WEST = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]


@pytest.mark.parametrize(
    ("features", "most", "penalty", "expected"),
    [
        (np.zeros((0, 2)), None, 1, []),
        ([EAST], None, 1, []),
        ([EAST] * 5, None, 1, []),
        ([EAST] * 5, None, 0, []),  # of equal sums, the fewest
        ([[0.0, 0.0]] * 3, None, 0.1, []),
        ([EAST] * 3 + [NORTH] * 4, None, 1, [3]),
        ([EAST] * 3 + [[0.0, 9.0]] * 4, None, 1, [3]),  # length does not count
        ([EAST] * 3 + [[5.0, 0.0]] * 4, None, 0.01, []),
        ([EAST] * 9 + [NORTH] * 9 + [WEST] * 9, None, 1, [9, 18]),
        ([EAST] * 9 + [NORTH] * 9 + [WEST] * 9, 1, 1, []),
        ([EAST] * 9 + [NORTH] * 8 + [EAST] * 9, 2, 1, [9]),  # cutting at 17 would be as good
        ([EAST, NORTH, EAST, NORTH], None, 0, [1, 2, 3]),
        ([EAST, NORTH, EAST, NORTH], None, 0.9, [1, 2, 3]),  # 0.43 for all cuts is less than the scatter of 0.5
        ([EAST, NORTH, EAST, NORTH], None, 99, []),
        ([EAST, NORTH, EAST, NORTH], 2, 0, [1]),
    ],
)
def test_change_points(features: Any, most: int | None, penalty: float, expected: list[int]) -> None:
    changes = summarization.kernel_temporal_segmentation(features, most_segments=most, penalty=penalty)
    assert changes.dtype == np.int64
    assert changes.tolist() == expected


def test_where_one_more_segment_begins_to_pay() -> None:
    # One cut takes the scatter of E E N N from 2 to 0, 1/2 per clip; it costs penalty / 8 * (ln 4 + 1).
    pays = 4 / (np.log(4) + 1)
    features = [EAST, EAST, NORTH, NORTH]
    for penalty, expected in ((pays * 0.999, [2]), (pays * 1.001, [])):
        assert summarization.kernel_temporal_segmentation(features, penalty=penalty).tolist() == expected


_rows = st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None)
@given(_rows, st.integers(1, 9), st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0]))
def test_segmentation_is_the_best_of_all(rows: list[tuple[int, int]], most: int, penalty: float) -> None:
    features = np.array(rows, dtype=np.float64)
    changes = summarization.kernel_temporal_segmentation(features, most_segments=most, penalty=penalty)
    assert len(changes) < most
    bounds = [0, *changes.tolist(), len(features)]
    assert bounds == sorted(set(bounds))
    best = slow_segmentation(features, most, penalty)
    assert objective(features, tuple(changes.tolist()), penalty) == pytest.approx(best, abs=1e-12)


def test_a_long_video_with_noise() -> None:
    draw = np.random.default_rng(0)
    lengths = draw.integers(5, 60, size=25)
    features = np.repeat(draw.normal(size=(25, 32)), lengths, axis=0)
    features += draw.normal(scale=0.2, size=features.shape)
    changes = summarization.kernel_temporal_segmentation(features)
    assert changes.tolist() == lengths.cumsum()[:-1].tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features_TD": np.zeros(0)}, r"got shape \(0,\)"),
        ({"features_TD": [[1.0, np.nan]]}, "features must be finite numbers, got NaN or infinity in 1 of 2"),
        ({"features_TD": [EAST], "most_segments": 0}, "most_segments must be at least 1, .* got 0"),
        ({"features_TD": [EAST], "penalty": -1.0}, "penalty must be .* got -1"),
        ({"features_TD": [EAST], "penalty": float("nan")}, "penalty must be .* got nan"),
    ],
)
def test_wrong_arguments_of_segmentation(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summarization.kernel_temporal_segmentation(**arguments)


@pytest.mark.parametrize(
    ("changes", "clips", "expected"),
    [
        ([], 0, []),
        ([], 4, [[0, 4]]),
        ([1, 3], 4, [[0, 1], [1, 3], [3, 4]]),
    ],
)
def test_segments_between(changes: list[int], clips: int, expected: list[list[int]]) -> None:
    segments = summarization.segments_between(changes, clips)
    assert segments.shape == (len(expected), 2)
    assert segments.tolist() == expected


@pytest.mark.parametrize(
    ("changes", "clips"),
    [([], -1), ([1], 0), ([0], 4), ([4], 4), ([2, 1], 4), ([2, 2], 4), ([1.5], 4), ([[1]], 4)],
)
def test_wrong_change_points(changes: Any, clips: int) -> None:
    with pytest.raises(ValueError, match="change points"):
        summarization.segments_between(changes, clips)


# --- summaries --------------------------------------------------------------------------------------------


def slow_knapsack(values: list[float], weights: list[int], capacity: int) -> float:
    """Return the highest sum of values of all choices that fit."""
    return max(
        sum(values[n] for n in chosen)
        for size in range(len(values) + 1)
        for chosen in combinations(range(len(values)), size)
        if sum(weights[n] for n in chosen) <= capacity
    )


@pytest.mark.parametrize(
    ("values", "weights", "capacity", "expected"),
    [
        ([], [], 0, []),
        ([], [], 7, []),
        ([1], [1], 0, [False]),
        ([1], [1], 1, [True]),
        ([1], [0], 0, [True]),  # an item without weight always fits
        ([0, -1], [1, 0], 9, [False, False]),  # items of no value are not chosen
        ([6, 5, 5], [3, 2, 2], 4, [False, True, True]),
        ([5, 5, 6], [2, 2, 3], 3, [False, False, True]),
        ([1, 1, 1], [1, 1, 1], 2, [True, True, False]),
        ([60, 100, 120], [10, 20, 30], 50, [False, True, True]),
        ([1, 2], [10**9, 1], 10**3, [False, True]),
        ([3, 4], [1, 1], 10**12, [True, True]),  # only the capacity that can be filled costs memory
    ],
)
def test_one_knapsack(values: list[float], weights: list[int], capacity: int, expected: list[bool]) -> None:
    assert summarization.knapsack(values, weights, capacity).tolist() == expected


_items = st.lists(st.tuples(st.one_of(st.integers(-2, 5).map(float), st.floats(-1, 9)), st.integers(0, 6)), max_size=8)


@settings(max_examples=100, deadline=None)
@given(_items, st.integers(0, 30))
def test_knapsack_is_the_best_of_all(items: list[tuple[float, int]], capacity: int) -> None:
    values, weights = [v for v, _ in items], [w for _, w in items]
    chosen = summarization.knapsack(values, weights, capacity)
    assert chosen.shape == (len(items),)
    assert chosen @ np.array(weights, dtype=np.int64) <= capacity
    best = slow_knapsack(values, weights, capacity)
    assert chosen @ np.array(values, dtype=np.float64) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize(
    ("values", "weights", "capacity", "message"),
    [
        ([], [1], 1, r"shapes \(0,\) and \(1,\)"),
        ([[1]], [[1]], 1, r"shapes \(1, 1\) and \(1, 1\)"),
        ([np.inf], [1], 1, "values must be finite numbers"),
        ([1], [1.0], 1, "weights must be whole numbers of at least 0, got float64"),
        ([1], [-1], 1, "weights must be .* from -1 to -1"),
        ([1], [1], -1, "capacity must be at least 0, got -1"),
    ],
)
def test_wrong_knapsacks(values: Any, weights: Any, capacity: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summarization.knapsack(values, weights, capacity)


@pytest.mark.parametrize(
    ("saliency", "segments", "budget", "expected"),
    [
        ([], np.zeros((0, 2), dtype=np.int64), 0.15, ""),
        ([1], [[0, 1]], 0.15, "0"),  # 0.15 of a clip is none
        ([1], [[0, 1]], 1, "1"),
        ([3, 1, 1, 1], [[0, 1], [1, 4]], 0.25, "1000"),
        ([1, 1, 9, 9], [[0, 2], [2, 4]], 0.5, "0011"),
        ([9, 9, 9, 9, 6, 5], [[0, 4], [4, 5], [5, 6]], 4 / 6, "000011"),  # 6 + 5 is more than the mean 9
        ([0, 0], [[0, 1], [1, 2]], 1, "00"),  # not above 0
        ([-1, -9], [[0, 1], [1, 2]], 1, "00"),
        ([1] * 100, [[i, i + 1] for i in range(100)], 0.29, "1" * 29 + "0" * 71),  # not 28, as 0.29 * 100 in floats
        ([1] * 100, [[i, i + 1] for i in range(100)], 0.15, "1" * 15 + "0" * 85),
        ([1] * 19, [[i, i + 1] for i in range(19)], 0.15, "11" + "0" * 17),
    ],
)
def test_one_summary(saliency: list[float], segments: Any, budget: float, expected: str) -> None:
    summary = summarization.summarize(saliency, segments, budget)
    assert summary.dtype == bool
    assert "".join("01"[clip] for clip in summary.tolist()) == expected
    raters = np.array([saliency, saliency], dtype=np.float64).T
    assert summarization.rater_summaries(raters, segments, budget).tolist() == [summary.tolist()] * 2


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.lists(st.integers(1, 5), min_size=3, max_size=3))), st.floats(0, 1))
def test_summaries_are_whole_segments_within_the_budget(parts: list[tuple[int, list[int]]], budget: float) -> None:
    lengths = [length for length, _ in parts]
    raters = np.repeat(np.array([r for _, r in parts], dtype=np.float64).reshape(-1, 3), lengths, axis=0)
    raters += np.arange(len(raters))[:, None] / 100
    changes = np.cumsum(lengths, dtype=np.int64)[:-1]
    segments = summarization.segments_between(changes, len(raters))
    summaries = summarization.rater_summaries(raters, segments, budget)
    assert summaries.shape == raters.T.shape
    assert (summaries.sum(1) <= budget * len(raters) + 1e-9).all()
    for rater, summary in zip(raters.T, summaries, strict=True):
        assert all(len(set(part.tolist())) <= 1 for part in np.split(summary, changes))
        assert summary.tolist() == summarization.summarize(rater, segments, budget).tolist()


@pytest.mark.parametrize(
    ("saliency", "segments", "budget", "message"),
    [
        ([], [[0, 1]], 0.15, r"from clip 0 to 0, .* got \[0, 1\]"),
        ([1], np.zeros((0, 2), dtype=np.int64), 0.15, "from clip 0 to 1, .* got none"),
        ([[1]], [[0, 1]], 0.15, r"in one row, got shape \(1, 1\)"),
        ([np.nan], [[0, 1]], 0.15, "saliency must be finite numbers"),
        ([1, 2], [[0, 1]], 0.15, "from clip 0 to 2"),
        ([1, 2], [[0, 1], [1, 3]], 0.15, "from clip 0 to 2"),
        ([1, 2], [[1, 2]], 0.15, "from clip 0 to 2"),
        ([1, 2, 3], [[0, 1], [2, 3]], 0.15, "without a gap"),
        ([1, 2], [[0, 1], [1, 1], [1, 2]], 0.15, "none empty"),
        ([1] * 7, [[i, i + 2] for i in range(7)], 0.15, "and 2 more"),
        ([1, 2], [[0.0, 2.0]], 0.15, "whole numbers of clips, .* got float64"),
        ([1, 2], [0, 2], 0.15, r"of shape \(2,\)"),
        ([1, 2], [[0, 2]], 15, "budget must be a share .* got 15"),
        ([1, 2], [[0, 2]], float("nan"), "budget must be a share .* got nan"),
    ],
)
def test_wrong_arguments_of_summaries(saliency: Any, segments: Any, budget: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summarization.summarize(saliency, segments, budget)


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        ([1, 2], r"one column per rater, got shape \(2,\)"),
        ([[1], [np.inf]], "ratings must be finite numbers"),
    ],
)
def test_ratings_that_cannot_be_summarized(ratings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summarization.rater_summaries(ratings, [[0, 2]])


# --- agreement --------------------------------------------------------------------------------------------


def bits(*rows: str) -> npt.NDArray[np.bool_]:
    return np.array([[letter == "1" for letter in row] for row in rows], dtype=bool)


@pytest.mark.parametrize(
    ("summary", "references", "reduce", "expected"),
    [
        ("", [""], "mean", (0, 0, 0)),
        ("000", ["000"], "mean", (0, 0, 0)),
        ("000", ["111"], "max", (0, 0, 0)),
        ("110", ["001"], "mean", (0, 0, 0)),
        ("110", ["110"], "mean", (1, 1, 1)),
        ("1100", ["1000"], "mean", (1 / 2, 1, 2 / 3)),
        ("1000", ["1100"], "mean", (1, 1 / 2, 2 / 3)),
        ("1100", ["1000", "0011"], "mean", (1 / 4, 1 / 2, 1 / 3)),
        ("1100", ["0011", "1000"], "max", (1 / 2, 1, 2 / 3)),
        ("1100", ["1000", "1110"], "max", (1, 2 / 3, 4 / 5)),
        ("1110", ["1000", "1111"], "mean", (2 / 3, 7 / 8, (1 / 2 + 6 / 7) / 2)),
    ],
)
def test_f_score(summary: str, references: list[str], reduce: Literal["mean", "max"], expected: Any) -> None:
    score = summarization.f_score(bits(summary)[0], bits(*references), reduce)
    assert isinstance(score, FScore)
    assert score == pytest.approx(expected)


@pytest.mark.parametrize(
    ("summary", "references", "reduce", "message"),
    [
        (bits("")[0], np.zeros((0, 0), dtype=bool), "mean", "at least one reference, got none"),
        (bits("10")[0], bits("1"), "mean", r"got \(2,\) and \(1, 1\)"),
        (bits("10"), bits("10"), "mean", r"got \(1, 2\) and \(1, 2\)"),
        ([1, 0], bits("10"), "mean", "got int64 and bool"),
        (bits("10")[0], bits("10"), "min", "'mean' or 'max', got 'min'"),
    ],
)
def test_wrong_arguments_of_f_score(summary: Any, references: Any, reduce: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summarization.f_score(summary, references, reduce)


def slow_kendall(a: list[float], b: list[float]) -> float:
    pairs = [((a[i] > a[j]) - (a[i] < a[j]), (b[i] > b[j]) - (b[i] < b[j])) for i, j in combinations(range(len(a)), 2)]
    scale: float = (sum(x != 0 for x, _ in pairs) * sum(y != 0 for _, y in pairs)) ** 0.5
    return sum(x * y for x, y in pairs) / scale if scale else 0.0


def slow_spearman(a: list[float], b: list[float]) -> float:
    def ranks(values: list[float]) -> Floats:
        return np.array([sum(w < v for w in values) + (values.count(v) + 1) / 2 for v in values])

    if len(set(a)) < 2 or len(set(b)) < 2:
        return 0.0
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


@pytest.mark.parametrize(
    ("saliency", "raters", "rho", "tau"),
    [
        ([1], [[5]], 0, 0),  # one clip is not ordered
        ([1, 1], [[1, 2]], 0, 0),  # a constant curve orders nothing
        ([1, 2], [[3, 3]], 0, 0),
        ([1, 2], [[5, 9]], 1, 1),
        ([1, 2], [[9, 5]], -1, -1),
        ([1, 2], [[5, 9], [3, 3]], 1 / 2, 1 / 2),  # 0 counts in the mean
        ([1, 2, 3], [[1, 3, 2]], 1 / 2, 1 / 3),
        ([1, 2, 3, 4], [[1, 3, 2, 4]], 4 / 5, 2 / 3),
        ([1, 2, 3, 4], [[1, 1, 2, 2]], 4 / 20**0.5, 4 / 24**0.5),
        ([-1e308, 1e308, 0], [[1, 3, 2]], 1, 1),
        ([1, 2, 3], [[1, 2, 3], [3, 2, 1]], 0, 0),
    ],
)
def test_correlations(saliency: list[float], raters: list[list[float]], rho: float, tau: float) -> None:
    ratings = np.array(raters).T
    assert summarization.spearman(saliency, ratings) == pytest.approx(rho)
    assert summarization.kendall(saliency, ratings) == pytest.approx(tau)


_rating = st.integers(1, 5).map(float)
_rated = st.lists(st.tuples(st.one_of(_rating, st.floats(-9, 9)), _rating, _rating), min_size=1, max_size=12)


@settings(max_examples=100, deadline=None)
@given(_rated)
def test_correlations_equal_their_definitions(rows: list[tuple[float, float, float]]) -> None:
    saliency, *raters = ([row[i] for row in rows] for i in range(3))
    ratings = np.array(raters).T
    for correlation, slow in ((summarization.spearman, slow_spearman), (summarization.kendall, slow_kendall)):
        value = correlation(saliency, ratings)
        assert -1 <= value <= 1
        assert value == pytest.approx(sum(slow(saliency, rater) for rater in raters) / 2, abs=1e-9)
        assert correlation(saliency, np.array([saliency]).T) == pytest.approx(float(len(set(saliency)) > 1))


def test_correlations_equal_scipy_on_a_long_video() -> None:
    stats = pytest.importorskip("scipy.stats", reason="needs scipy, of the extra `train`, to compare with")
    draw = np.random.default_rng(0)
    saliency, ratings = draw.normal(size=700).round(1), draw.integers(1, 6, size=(700, 20)).astype(np.float64)
    ratings += saliency[:, None].round()
    for correlation, name in ((summarization.spearman, "spearmanr"), (summarization.kendall, "kendalltau")):
        expected = np.mean([getattr(stats, name)(saliency, rater).statistic for rater in ratings.T])
        assert correlation(saliency, ratings) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("correlation", [summarization.spearman, summarization.kendall])
@pytest.mark.parametrize(
    ("saliency", "ratings", "message"),
    [
        ([], np.zeros((0, 20)), r"got \(0,\) and \(0, 20\)"),
        ([1, 2], np.zeros((2, 0)), r"got \(2,\) and \(2, 0\)"),
        ([1, 2], [[1]], r"got \(2,\) and \(1, 1\)"),
        ([1, 2], [1, 2], r"got \(2,\) and \(2,\)"),
        ([1, np.nan], [[1], [2]], "saliency must be finite numbers, got NaN or infinity in 1 of 2"),
        ([1, 2], [[1], [np.inf]], "ratings must be finite numbers"),
    ],
)
def test_wrong_arguments_of_correlations(
    correlation: Callable[..., float], saliency: Any, ratings: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        correlation(saliency, ratings)
