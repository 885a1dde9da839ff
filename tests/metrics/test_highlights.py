"""The vectorised metrics against their definitions, one query and one rater at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidelight.metrics import highlights


def slow_average_precision(saliency: Sequence[float], positive: Sequence[bool]) -> float:
    """Walk down the distinct values of saliency: each is a point (hits so far, precision)."""
    points: list[tuple[int, float]] = []
    for value in sorted(set(saliency), reverse=True):
        chosen = [p for s, p in zip(saliency, positive, strict=True) if s >= value]
        points.append((sum(chosen), sum(chosen) / len(chosen)))
    rising = [
        max(precision for hits, precision in points[n:])
        for n, (hits, _) in enumerate(points)
        if hits > (points[n - 1][0] if n else 0)
    ]
    return sum(rising) / len(rising) if rising else 0.0


def one(saliency: Sequence[float], positive: Sequence[bool]) -> float:
    shown = np.array([saliency], dtype=np.float64)
    found = highlights.average_precision(
        shown, np.ones_like(shown, dtype=bool), np.array([positive], dtype=bool)[..., None]
    )
    assert found.shape == (1, 1)
    return float(found[0, 0])


@pytest.mark.parametrize(
    ("saliency", "positive", "expected"),
    [
        ([0.0], [False], 0),  # nothing to find gives 0
        ([0.0], [True], 1),
        ([3, 2, 1], [False, False, False], 0),
        ([3, 2, 1], [True, True, True], 1),
        ([3, 2, 1], [True, False, True], (1 + 2 / 3) / 2),
        ([3, 2, 1], [False, True, True], 2 / 3),  # precision is made non-increasing: 1/2 becomes 2/3
        ([1, 1, 1], [True, False, False], 1 / 3),  # equal saliency shares one point, whatever the order
        ([1, 1, 1], [False, False, True], 1 / 3),
        ([1, 1, 1, 0], [True, True, False, True], (3 / 4 + 3 / 4) / 2),  # two points for three positives
        ([-5, -7], [True, False], 1),
    ],
)
def test_one_query(saliency: list[float], positive: list[bool], expected: float) -> None:
    assert one(saliency, positive) == pytest.approx(expected)
    assert slow_average_precision(saliency, positive) == pytest.approx(expected)


_clip = st.tuples(st.one_of(st.integers(-2, 2).map(float), st.floats(-9, 9)), st.booleans(), st.booleans())
videos = st.lists(st.lists(_clip, min_size=1, max_size=9), max_size=5)


@settings(max_examples=50, deadline=None)
@given(videos, st.floats(-99, 99))
def test_many_queries_equal_one_at_a_time(rows: list[list[tuple[float, bool, bool]]], beyond: float) -> None:
    longest = 11
    saliency = np.full((len(rows), longest), beyond)  # what stands beyond a video must not matter
    clips = np.zeros((len(rows), longest), dtype=bool)
    positive = np.ones((len(rows), longest, 2), dtype=bool)
    for q, row in enumerate(rows):
        saliency[q, : len(row)] = [s for s, _, _ in row]
        clips[q, : len(row)] = True
        positive[q, : len(row)] = [[a, b] for _, a, b in row]
    found = highlights.average_precision(saliency, clips, positive)
    expected = [
        [
            slow_average_precision([s for s, _, _ in row], [a for _, a, _ in row]),
            slow_average_precision([s for s, _, _ in row], [b for _, _, b in row]),
        ]
        for row in rows
    ]
    np.testing.assert_allclose(found, np.reshape(expected, found.shape), atol=1e-12)
    best = highlights.hit_at_1(saliency, clips, positive & clips[..., None])
    assert best.tolist() == [next(a or b for s, a, b in row if s == max(c[0] for c in row)) for row in rows]


def test_hit_at_1() -> None:
    saliency = np.array([[1.0, 2, 2, 0], [0, 0, 0, 9], [0, 0, 0, 9]])
    predicted = np.ones((3, 4), dtype=bool)
    predicted[2, 3] = False
    positive = np.zeros((3, 4, 2), dtype=bool)
    positive[0, 1, 1] = True  # one rater is enough, and of equal clips the first is taken
    positive[2, 0, 0] = True
    assert highlights.hit_at_1(saliency, predicted, positive).tolist() == [True, False, True]
    assert highlights.hit_at_1(saliency[:0], predicted[:0], positive[:0]).tolist() == []
