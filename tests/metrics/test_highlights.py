"""The vectorised metrics, compared with plain loops over queries and raters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidelight.metrics import highlights


def slow_average_precision(saliency: Sequence[float], positive: Sequence[bool]) -> float:
    """Compute the points (hits so far, precision) of each distinct saliency from the top, and average them."""
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


def average_precision_of(saliency: Sequence[float], positive: Sequence[bool]) -> float:
    saliency_QT = np.array([saliency], dtype=np.float64)
    mask_QT = np.ones_like(saliency_QT, dtype=bool)
    precision_QR = highlights.average_precision(saliency_QT, mask_QT, np.array([positive], dtype=bool)[..., None])
    assert precision_QR.shape == (1, 1)
    return float(precision_QR[0, 0])


@pytest.mark.parametrize(
    ("saliency", "positive", "expected"),
    [
        ([0.0], [False], 0),  # no positive clip gives 0
        ([0.0], [True], 1),
        ([3, 2, 1], [False, False, False], 0),
        ([3, 2, 1], [True, True, True], 1),
        ([3, 2, 1], [True, False, True], (1 + 2 / 3) / 2),
        ([3, 2, 1], [False, True, True], 2 / 3),  # precision is made non-increasing: 1/2 becomes 2/3
        ([1, 1, 1], [True, False, False], 1 / 3),  # equal saliency shares one point, in any order
        ([1, 1, 1], [False, False, True], 1 / 3),
        ([1, 1, 1, 0], [True, True, False, True], (3 / 4 + 3 / 4) / 2),  # two points for three positives
        ([-5, -7], [True, False], 1),
    ],
)
def test_one_query(saliency: list[float], positive: list[bool], expected: float) -> None:
    assert average_precision_of(saliency, positive) == pytest.approx(expected)
    assert slow_average_precision(saliency, positive) == pytest.approx(expected)


_clip = st.tuples(st.one_of(st.integers(-2, 2).map(float), st.floats(-9, 9)), st.booleans(), st.booleans())
videos = st.lists(st.lists(_clip, min_size=1, max_size=9), max_size=5)


@settings(max_examples=50, deadline=None)
@given(videos, st.floats(-99, 99))
def test_many_queries_equal_one_at_a_time(rows: list[list[tuple[float, bool, bool]]], beyond: float) -> None:
    longest = 11
    saliency = np.full((len(rows), longest), beyond)  # values beyond a video must not matter
    clips = np.zeros((len(rows), longest), dtype=bool)
    positive = np.ones((len(rows), longest, 2), dtype=bool)
    for q, row in enumerate(rows):
        saliency[q, : len(row)] = [s for s, _, _ in row]
        clips[q, : len(row)] = True
        positive[q, : len(row)] = [[a, b] for _, a, b in row]
    precision = highlights.average_precision(saliency, clips, positive)
    expected = [
        [
            slow_average_precision([s for s, _, _ in row], [a for _, a, _ in row]),
            slow_average_precision([s for s, _, _ in row], [b for _, _, b in row]),
        ]
        for row in rows
    ]
    np.testing.assert_allclose(precision, np.reshape(expected, precision.shape), atol=1e-12)
    best = highlights.hit_at_1(saliency, clips, positive & clips[..., None])
    assert best.tolist() == [next(a or b for s, a, b in row if s == max(c[0] for c in row)) for row in rows]


def test_hit_at_1() -> None:
    saliency = np.array([[1.0, 2, 2, 0], [0, 0, 0, 9], [0, 0, 0, 9]])
    predicted = np.ones((3, 4), dtype=bool)
    predicted[2, 3] = False
    positive = np.zeros((3, 4, 2), dtype=bool)
    positive[0, 1, 1] = True  # one rater is enough; of equal clips the first counts
    positive[2, 0, 0] = True
    assert highlights.hit_at_1(saliency, predicted, positive).tolist() == [True, False, True]
    assert highlights.hit_at_1(saliency[:0], predicted[:0], positive[:0]).tolist() == []


# --- TVSum and YouTube Highlights -------------------------------------------------------------------------


def slow_trapezoids(positive: Sequence[bool]) -> float:
    """Add the trapezoids clip by clip, like the published script."""
    area, hits, recall, precision = 0.0, 0, 0.0, 1.0
    for rank, right in enumerate(positive, start=1):
        if right:
            hits += 1
        after = hits / sum(positive) if any(positive) else 0.0
        area += (after - recall) * (precision + hits / rank) / 2
        recall, precision = after, hits / rank
    return area


@pytest.fixture(scope="module")
def public(shared: Path) -> dict[str, Any]:
    path = shared / "golden" / "benchmarks" / "highlights" / "hl_public.json"
    if not path.is_file():
        pytest.skip(f"needs the golden numbers of highlight detection, but {path} is missing")
    numbers: dict[str, Any] = json.loads(path.read_text())
    return numbers


def test_every_published_digit_of_tvsum(public: dict[str, Any]) -> None:
    golden = public["tvsum"]
    saliency = [blob["saliency"] for blob in golden["blobs"]]
    raters = [blob["label"]["anno"] for blob in golden["blobs"]]
    assert sum(len(s) < len(r) for s, r in zip(saliency, raters, strict=True)) == 3
    for k in (5, 15):
        precision = highlights.tvsum_average_precision(saliency, raters, k)
        assert precision.shape == (5, highlights.RATERS)
        # The mean for k = 5 is 6907/8000, exactly between two numbers of five digits. Only the order of the published
        # script, videos first and then raters, rounds to the printed one.
        mean = sum(sum(rater) / 5 for rater in precision.T.tolist()) / highlights.RATERS
        assert round(mean, 5) == golden[f"mAP_top{k}"]
        assert round(float(precision.mean(0).mean()), 5) == golden[f"mAP_top{k}"]
        assert highlights.tvsum_map(saliency, raters, k).mean() == pytest.approx(mean, abs=1e-14)
    assert highlights.tvsum_map(saliency, raters).round(5).tolist() == golden["per_video_mAP_top5"]


def test_every_published_digit_of_youtube(public: dict[str, Any]) -> None:
    golden = public["youtube"]
    precision = highlights.youtube_map(
        [blob["saliency"] for blob in golden["blobs"]], [blob["label"]["match"] for blob in golden["blobs"]]
    )
    assert precision.round(5).tolist() == golden["per_video_mAP"]
    assert round(float(precision.mean()), 5) == golden["mAP"]


@pytest.mark.parametrize(
    ("saliency", "positive", "k", "expected"),
    [
        ([0.0], [False], 5, 0),  # no positive clip gives 0
        ([0.0], [True], 5, 1),
        ([3, 2, 1], [True, True, True], 2, 1),
        ([3, 2, 1], [False, False, True], 2, 0),  # clips after the first k are ignored
        ([3, 2, 1], [True, False, True], 2, 1),  # and do not count as missed
        ([3, 2, 1], [True, False, True], None, (1 + 1) / 2 / 2 + (1 / 2 + 2 / 3) / 2 / 2),
        ([3, 2, 1], [False, True, True], None, (0 + 1 / 2) / 2 / 2 + (1 / 2 + 2 / 3) / 2 / 2),
        ([1, 2, 3], [False, True, True], 1, 1),
        ([1, 1, 1], [True, False, False], None, 1),  # equal saliency stays in the order of time
        ([1, 1, 1], [False, False, True], None, (0 + 1 / 3) / 2),
        ([-np.inf, 0], [True, True], None, 1),
    ],
)
def test_one_video(saliency: list[float], positive: list[bool], k: int | None, expected: float) -> None:
    saliency_VT = np.array([saliency], dtype=np.float64)
    mask_VT = np.ones_like(saliency_VT, dtype=bool)
    precision = highlights.top_k_average_precision(saliency_VT, mask_VT, np.array([positive])[..., None], k)
    assert precision.shape == (1, 1)
    assert precision[0, 0] == pytest.approx(expected)


@settings(max_examples=50, deadline=None)
@given(videos, st.floats(-99, 99), st.one_of(st.none(), st.integers(1, 12)))
def test_many_videos_equal_one_at_a_time(
    rows: list[list[tuple[float, bool, bool]]], beyond: float, k: int | None
) -> None:
    longest = 11
    saliency = np.full((len(rows), longest), beyond)
    clips = np.zeros((len(rows), longest), dtype=bool)
    positive = np.ones((len(rows), longest, 2), dtype=bool)
    for v, row in enumerate(rows):
        saliency[v, : len(row)] = [s for s, _, _ in row]
        clips[v, : len(row)] = True
        positive[v, : len(row)] = [[a, b] for _, a, b in row]
    precision = highlights.top_k_average_precision(saliency, clips, positive, k)
    assert precision.shape == (len(rows), 2)
    ranked = [sorted(row, key=lambda clip: -clip[0])[:k] for row in rows]
    expected = [[slow_trapezoids([a for _, a, _ in row]), slow_trapezoids([b for _, _, b in row])] for row in ranked]
    np.testing.assert_allclose(precision, np.reshape(expected, precision.shape), atol=1e-12)


def test_no_videos() -> None:
    assert highlights.tvsum_map([], []).shape == (0,)
    assert highlights.tvsum_average_precision([], []).shape == (0, highlights.RATERS)
    assert highlights.youtube_map([], []).shape == (0,)


def test_tvsum_labels_are_ratings_above_the_lower_median_of_the_whole_video() -> None:
    # The lower medians of the columns are 1, 2 and 1; the upper ones would be 2, 3 and 2, with no rater above
    # the median at clip 2.
    raters = np.array([[1, 1, 1], [1, 2, 2], [2, 3, 2], [3, 3, 1]])
    precision = highlights.tvsum_average_precision([[0, 0, 9]], [raters], k=1)
    assert precision.tolist() == [[1, 1, 1]]
    assert highlights.tvsum_average_precision([[0, 9, 0]], [raters], k=1).tolist() == [[0, 0, 1]]
    # The median of all five clips is 2, so the third clip is not above it. The median of the first three is 1.
    ratings = np.array([[1], [1], [2], [3], [3]])
    assert highlights.tvsum_map([[0, 0, 9]], [ratings], k=1).tolist() == [0]
    assert highlights.tvsum_map([[0, 0, 9]], [ratings[:3]], k=1).tolist() == [1]


@pytest.mark.parametrize(
    ("saliency", "raters", "message"),
    [
        ([], [np.ones((3, 2))], "0 curves and 1 tables"),
        ([[]], [np.ones((2, 2))], r"video 0: expected one saliency per clip, 1 to 2 .* got shape \(0,\)"),
        ([[0.0]], [np.ones((0, 2))], r"video 0: expected labels .* got shape \(0, 2\)"),
        ([[0.0]], [np.ones(1)], r"video 0: expected labels .* got shape \(1,\)"),
        ([[0.0]], [3.0], r"video 0: expected labels .* got shape \(\)"),
        ([[0.0, 1], [0.0] * 4], [np.ones((2, 2)), np.ones((3, 2))], r"video 1: expected .* got shape \(4,\)"),
        ([[0.0], [0.0] * 5], [np.ones((1, 2)), np.ones((10, 2))], r"video 1: .*, 6 to 10 of them .* got shape \(5,\)"),
        ([[[0.0]]], [np.ones((1, 2))], r"video 0: .* got shape \(1, 1\)"),
        ([[0.0], [0.0]], [np.ones((1, 2)), np.ones((1, 3))], r"video 1: expected labels .* got shape \(1, 3\)"),
        ([[0.0, np.nan]], [np.ones((2, 2))], "video 0: expected numbers, got NaN for 1 of 2 saliency"),
        ([[0.0]], [np.full((1, 2), np.nan)], "video 0: expected numbers, got NaN for 2 of 2 labels"),
    ],
)
def test_wrong_input_is_refused(saliency: list[Any], raters: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        highlights.tvsum_map(saliency, raters)


def test_k_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        highlights.tvsum_map([[0.0]], [np.ones((1, 20))], k=0)


def test_youtube_lengths() -> None:
    assert highlights.youtube_map([[3.0, 2]], [[1, 0, 1]]).tolist() == [
        1
    ]  # a clip without saliency does not count as missed
    with pytest.raises(ValueError, match="video 0"):
        highlights.youtube_map([[3.0, 2, 1, 0]], [[1, 0, 1]])
