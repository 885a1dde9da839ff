"""The vectorised metrics, compared with plain loops over queries and thresholds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidelight.metrics.moment_retrieval import (
    AP_THRESHOLDS,
    RECALL_THRESHOLDS,
    average_precision,
    best_iou,
    pad,
    pad_windows,
)

Window = Sequence[float]


def slow_iou(a: Window, b: Window) -> float:
    inter = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - inter
    return inter / union if union > 0 else 0.0


def slow_average_precision(predicted: Sequence[Window], true: Sequence[Window], threshold: float) -> float:
    ranked = sorted(predicted[:10], key=lambda window: -window[2])
    taken: set[int] = set()
    right: list[bool] = []
    for window in ranked:
        best, best_overlap = None, -1.0
        for g, true_window in enumerate(true):
            overlap = slow_iou(window, true_window)
            # >= takes the last of equal overlaps.
            if g not in taken and overlap >= threshold and overlap >= best_overlap:
                best, best_overlap = g, overlap
        right.append(best is not None)
        if best is not None:
            taken.add(best)
    precision = [sum(right[: n + 1]) / (n + 1) for n in range(len(right))]
    return sum(max(precision[n:]) for n, hit in enumerate(right) if hit) / len(true)


def slow_best_iou(predicted: Sequence[Window], true: Sequence[Window], rank: int) -> float:
    return max((slow_iou(p, g) for p in predicted[:rank] for g in true), default=0.0)


def test_thresholds_are_the_numbers_one_writes() -> None:
    # linspace alone gives 0.7000000000000001, which an IoU of 7/10 would not reach.
    assert [f"{t!r}" for t in AP_THRESHOLDS.tolist()] == [f"{n / 100!r}" for n in range(50, 100, 5)]
    assert [f"{t!r}" for t in RECALL_THRESHOLDS.tolist()] == [f"{n / 100!r}" for n in range(30, 100, 5)]


@pytest.mark.parametrize(
    ("predicted", "true", "precision", "first", "five"),
    [
        ([], [[0, 10]], 0, 0, 0),  # no prediction is a miss
        ([[3, 3, 0.5]], [[0, 10]], 0, 0, 0),  # a window without length overlaps nothing
        ([[0, 10, 0.5]], [[0, 10]], 1, 1, 1),
        ([[0, 5, 0.5]], [[0, 10]], 1, 0.5, 0.5),  # an IoU at the threshold counts
        ([[0, 4.9, 0.5]], [[0, 10]], 0, 0.49, 0.49),
        ([[20, 30, 0.9], [0, 10, 0.5]], [[0, 10]], 0.5, 0, 1),
        ([[20, 30, 0.1], [0, 10, 0.5]], [[0, 10]], 1, 0, 1),  # precision sorts by score, recall uses the listed order
        ([[20, 30, 0.5], [0, 10, 0.5]], [[0, 10]], 0.5, 0, 1),  # equal scores keep their order
        # A second hit is a false alarm, but after full recall it costs nothing.
        ([[0, 10, 0.9], [0, 10, 0.8]], [[0, 10]], 1, 1, 1),
        ([[0, 10, 0.9], [0, 10, 0.8], [20, 30, 0.7]], [[0, 10], [20, 30]], 1 / 2 + 1 / 3, 1, 1),
        ([[0, 10, 0.9]], [[0, 10], [20, 30]], 0.5, 1, 1),
        # The eleventh listed window is not used.
        ([[50, 60, 0.1]] * 10 + [[0, 10, 0.9]], [[0, 10]], 0, 0, 0),
        ([[50, 60, 0.1]] * 4 + [[0, 10, 0.9]], [[0, 10]], 1, 0, 1),
        ([[50, 60, 0.1]] * 5 + [[0, 10, 0.9]], [[0, 10]], 1, 0, 0),
        # The first window takes the true window with the largest IoU; the second window gets the other.
        ([[0, 10, 0.9], [0, 6, 0.8]], [[0, 6], [0, 9]], 1, 0.9, 1),
    ],
)
def test_one_query(predicted: list[Window], true: list[Window], precision: float, first: float, five: float) -> None:
    windows = pad_windows([predicted], [true])
    assert len(windows) == 1
    assert average_precision(windows, np.array([0.5]))[0, 0] == pytest.approx(precision)
    assert slow_average_precision(predicted, true, 0.5) == pytest.approx(precision)
    assert best_iou(windows, 1)[0] == pytest.approx(first)
    assert best_iou(windows, 5)[0] == pytest.approx(five)


def test_of_equal_overlaps_the_last_true_window_is_taken() -> None:
    # Both true windows overlap the first prediction by 0.8; the second prediction fits only one of them.
    windows = pad_windows([[[0, 10, 0.9], [0, 7, 0.8]]], [[[0, 8], [2, 10]]])
    assert average_precision(windows, np.array([0.8]))[0, 0] == 1
    windows = pad_windows([[[0, 10, 0.9], [3, 10, 0.8]]], [[[0, 8], [2, 10]]])
    assert average_precision(windows, np.array([0.8]))[0, 0] == 0.5


_seconds = st.integers(0, 12)
_true = st.tuples(_seconds, st.integers(1, 8)).map(lambda v: [v[0], v[0] + v[1]])
_predicted = st.tuples(_seconds, st.integers(0, 8), st.integers(0, 3)).map(lambda v: [v[0], v[0] + v[1], v[2] / 3])
queries = st.lists(st.tuples(st.lists(_predicted, max_size=13), st.lists(_true, min_size=1, max_size=5)), max_size=6)


@settings(max_examples=50, deadline=None)
@given(queries)
def test_many_queries_equal_one_at_a_time(rows: list[tuple[list[Window], list[Window]]]) -> None:
    windows = pad_windows([p for p, _ in rows], [t for _, t in rows])
    precision = average_precision(windows)
    assert precision.shape == (len(rows), len(AP_THRESHOLDS))
    expected = [[slow_average_precision(p, t, h) for h in AP_THRESHOLDS] for p, t in rows]
    np.testing.assert_allclose(precision, np.reshape(expected, precision.shape), atol=1e-12)
    assert ((precision >= 0) & (precision <= 1)).all()
    for rank in (1, 5):
        best = [slow_best_iou(p, t, rank) for p, t in rows]
        np.testing.assert_allclose(best_iou(windows, rank), best, atol=1e-12)


def test_real_valued_windows_equal_one_at_a_time() -> None:
    rng = np.random.default_rng(3)
    predicted, true = [], []
    for _ in range(60):
        pairs = np.sort(rng.uniform(0, 60, (rng.integers(1, 30), 2)), axis=1)
        predicted.append(np.concatenate([pairs, rng.uniform(size=(len(pairs), 1))], axis=1).tolist())
        true.append(np.sort(rng.uniform(0, 60, (rng.integers(1, 9), 2)), axis=1).tolist())
    expected = [[slow_average_precision(p, t, h) for h in AP_THRESHOLDS] for p, t in zip(predicted, true, strict=True)]
    np.testing.assert_allclose(average_precision(pad_windows(predicted, true)), expected, atol=1e-12)


def test_ranges_of_length() -> None:
    true: list[list[Window]] = [[[0, 10]], [[0, 10], [0, 10.5]], [[0, 40]]]
    windows = pad_windows([[[0, 1, 0.5]]] * 3, true)
    short, middle, long = (windows.within(*limits)[0] for limits in ((0, 10), (10, 30), (30, np.inf)))
    assert [len(w) for w in (short, middle, long)] == [2, 1, 1]
    assert short.true_mask_QG.sum() == 2  # longer than the first bound, at most the second
    assert middle.true_mask_QG.tolist() == [[False, True]]
    assert len(windows.within(100, 200)[0]) == 0
    assert average_precision(windows.within(100, 200)[0]).shape == (0, 10)


@pytest.mark.parametrize(
    ("rows", "padded", "mask"),
    [
        ([], (0, 1, 2), []),
        ([[]], (1, 1, 2), [[False]]),
        ([[], [[1, 2]], [[3, 4], [5, 6]]], (3, 2, 2), [[False, False], [True, False], [True, True]]),
    ],
)
def test_padding(rows: list[list[Window]], padded: tuple[int, ...], mask: list[list[bool]]) -> None:
    values, real = pad(rows, width=2)
    assert values.shape == padded
    assert real.tolist() == mask
    assert values[real].tolist() == [list(window) for row in rows for window in row]
