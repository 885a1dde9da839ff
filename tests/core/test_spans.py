"""Check the arithmetic of spans with NumPy and torch, against plain loops."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidelight.core import spans

QUICK = settings(max_examples=50, deadline=None)
Floats = npt.NDArray[np.float64]

# Whole numbers make ties, equal spans and spans of no length likely; fractions the rest.
times = st.one_of(st.integers(0, 6).map(float), st.floats(0, 10))


def span_lists(least: int = 0, most: int = 7) -> st.SearchStrategy[Floats]:
    pairs = st.lists(st.tuples(times, times), min_size=least, max_size=most)
    return pairs.map(lambda rows: np.sort(np.reshape(rows, (-1, 2)).astype(float), axis=-1))


def tensor(values: npt.ArrayLike) -> torch.Tensor:
    return torch.tensor(np.asarray(values), dtype=torch.float64)


# --- forms ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 2), (2,), (3, 2), (2, 0, 2), (2, 3, 2)])
@pytest.mark.parametrize("convert", [spans.cw_to_se, spans.se_to_cw])
def test_forms_keep_shape_and_kind(convert: Callable[[Any], Any], shape: tuple[int, ...]) -> None:
    assert isinstance(convert(np.ones(shape)), np.ndarray)
    assert convert(np.ones(shape)).shape == shape
    assert isinstance(convert(torch.ones(shape)), torch.Tensor)
    assert convert(torch.ones(shape)).shape == shape


@pytest.mark.parametrize(("cw", "se"), [([0, 0], [0, 0]), ([5, 4], [3, 7]), ([0.5, 1], [0, 1]), ([2, 0], [2, 2])])
def test_forms(cw: list[float], se: list[float]) -> None:
    assert spans.cw_to_se(np.array(cw)).tolist() == se
    assert spans.se_to_cw(np.array(se)).tolist() == cw


@QUICK
@given(span_lists())
def test_forms_round_trip(se: Floats) -> None:
    np.testing.assert_allclose(spans.cw_to_se(spans.se_to_cw(se)), se, atol=1e-12)
    np.testing.assert_array_equal(spans.se_to_cw(tensor(se)).numpy(), spans.se_to_cw(se))


# --- overlap ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "iou", "giou"),
    [
        ([0, 0], [0, 0], 0.0, 0.0),  # an empty span with itself
        ([1, 1], [0, 4], 0.0, 0.0),  # an empty span inside a span
        ([5, 5], [0, 4], 0.0, -0.2),  # an empty span outside a span
        ([1, 1], [3, 3], 0.0, -1.0),  # two empty spans apart
        ([0, 4], [0, 4], 1.0, 1.0),
        ([0, 4], [2, 6], 1 / 3, 1 / 3),
        ([0, 2], [2, 4], 0.0, 0.0),
        ([0, 1], [3, 4], 0.0, -0.5),
        ([0, 8], [2, 4], 0.25, 0.25),
    ],
)
def test_overlap(a: list[float], b: list[float], iou: float, giou: float) -> None:
    first, second = np.array(a, dtype=float), np.array(b, dtype=float)
    assert spans.paired_iou(first, second) == pytest.approx(iou)
    assert spans.paired_giou(first, second) == pytest.approx(giou)
    assert spans.paired_iou(tensor(first), tensor(second)).item() == pytest.approx(iou)
    assert spans.paired_giou(tensor(first), tensor(second)).item() == pytest.approx(giou)


@pytest.mark.parametrize("batch", [(), (1,), (2, 3)])
@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (0, 3), (3, 0), (2, 3)])
def test_overlap_shapes(batch: tuple[int, ...], rows: int, columns: int) -> None:
    for function in (spans.iou, spans.giou):
        for make in (np.ones, torch.ones):
            overlaps = function(make((*batch, rows, 2)), make((*batch, columns, 2)))
            assert tuple(overlaps.shape) == (*batch, rows, columns)


@QUICK
@given(span_lists(), span_lists())
def test_overlap_properties(a: Floats, b: Floats) -> None:
    iou, giou = spans.iou(a, b), spans.giou(a, b)
    assert np.isfinite(iou).all()
    assert np.isfinite(giou).all()
    assert ((iou >= 0) & (iou <= 1)).all()
    # Where spans meet the two are equal, up to rounding.
    assert ((giou >= -1 - 1e-12) & (giou <= iou + 1e-12)).all()
    np.testing.assert_array_equal(iou, spans.iou(b, a).T)
    np.testing.assert_allclose(giou, spans.giou(b, a).T, atol=1e-12)
    np.testing.assert_array_equal(spans.iou(tensor(a), tensor(b)).numpy(), iou)
    np.testing.assert_array_equal(spans.giou(tensor(a), tensor(b)).numpy(), giou)


@QUICK
@given(span_lists(1))
def test_a_span_overlaps_itself_fully(a: Floats) -> None:
    length = a[:, 1] - a[:, 0]
    np.testing.assert_array_equal(np.diagonal(spans.iou(a, a)), (length > 0).astype(float))
    np.testing.assert_array_equal(spans.paired_iou(a, a), np.diagonal(spans.iou(a, a)))
    np.testing.assert_array_equal(spans.paired_giou(a, a), np.diagonal(spans.giou(a, a)))


@QUICK
@given(span_lists(), span_lists())
def test_gradients_are_finite(a: Floats, b: Floats) -> None:
    for function in (spans.iou, spans.giou):
        # Rounded: the slope of 1 / length is beyond any number where a length is 1e-308.
        first, second = tensor(a.round(9)).requires_grad_(), tensor(b.round(9)).requires_grad_()
        function(first, second).sum().backward()
        for leaf in (first, second):
            assert leaf.grad is not None
            assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_stays(dtype: torch.dtype) -> None:
    a = torch.tensor([[0.0, 1.0]], dtype=dtype)
    assert spans.giou(a, a).dtype == spans.iou(a, a).dtype == spans.cw_to_se(a).dtype == dtype


def test_lengths_too_small_to_divide_do_not_give_nan() -> None:
    tiny = np.array([[0.0, 5e-324], [0.0, 1e-310], [0.0, 0.0]])
    assert np.isfinite(spans.iou(tiny, tiny)).all()
    assert np.isfinite(spans.giou(tiny, tiny)).all()


# --- suppression ------------------------------------------------------------------------------------------


def slow_iou(a: Floats, b: Floats) -> float:
    inter = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - inter
    return inter / union if union > 0 else 0.0


def slow_nms(rows: Floats, scores: Floats, threshold: float) -> list[bool]:
    keep = [True] * len(rows)
    done: list[int] = []
    for at in sorted(range(len(rows)), key=lambda i: (-scores[i], i)):
        keep[at] = all(slow_iou(rows[other], rows[at]) <= threshold for other in done)
        if keep[at]:
            done.append(at)
    return keep


def slow_soft_nms(rows: Floats, scores: Floats, method: str, threshold: float, sigma: float) -> list[float]:
    left, now = list(range(len(rows))), [float(s) for s in scores]
    while left:
        best = max(left, key=lambda i: (now[i], -i))
        left.remove(best)
        for other in left:
            overlap = slow_iou(rows[best], rows[other])
            if method == "gaussian":
                now[other] *= math.exp(-(overlap**2) / sigma)
            elif overlap > threshold:
                now[other] *= 1 - overlap
    return now


def scored(most: int = 7) -> st.SearchStrategy[tuple[Floats, Floats]]:
    scores = st.one_of(st.integers(0, 3).map(float), st.floats(0, 1))
    return span_lists(0, most).flatmap(
        lambda rows: st.tuples(
            st.just(rows),
            st.lists(scores, min_size=len(rows), max_size=len(rows)).map(lambda s: np.array(s, dtype=float)),
        )
    )


@pytest.mark.parametrize(
    ("rows", "scores", "threshold", "expected"),
    [
        ([], [], 0.5, []),
        ([[0, 4]], [0.1], 0.5, [True]),
        ([[0, 4], [0, 4]], [0.1, 0.9], 0.5, [False, True]),
        ([[0, 4], [0, 4]], [0.5, 0.5], 0.5, [True, False]),  # of equal scores the earlier one
        ([[0, 4], [0, 8]], [0.9, 0.5], 0.5, [True, True]),  # an IoU at the threshold is not above it
        ([[0, 4], [0, 4]], [0.9, 0.5], 1.0, [True, True]),
        ([[2, 2], [2, 2]], [0.9, 0.5], 0.0, [True, True]),  # spans of no length overlap nothing
        # The second removes the third only if the first does not remove it before.
        ([[0, 10], [3, 13], [6, 16]], [0.9, 0.8, 0.7], 0.5, [True, False, True]),
        ([[0, 4], [0, 4], [8, 9]], [-3.0, -1.0, -9.0], 0.5, [False, True, True]),
    ],
)
def test_nms(rows: list[list[float]], scores: list[float], threshold: float, expected: list[bool]) -> None:
    spans_M2, scores_M = np.reshape(rows, (-1, 2)).astype(float), np.array(scores, dtype=float)
    kept = spans.nms(spans_M2, scores_M, threshold)
    assert kept.dtype == np.bool_
    assert kept.tolist() == expected
    kept_tensor = spans.nms(tensor(spans_M2), tensor(scores_M), threshold)
    assert kept_tensor.dtype == torch.bool
    assert kept_tensor.tolist() == expected


@pytest.mark.parametrize("make", [np.asarray, tensor])
def test_nms_keeps_the_first_of_many_equal_scores(make: Callable[[Any], Any]) -> None:
    chain_M2 = np.stack([np.arange(30.0), np.arange(30.0) + 4], axis=1)  # IoU 0.6 with the next, 1/3 with the one after
    assert spans.nms(make(chain_M2), make(np.full(30, 0.5)), 0.5).tolist() == [True, False] * 15
    # NumPy's unstable sorts reorder ties from 17 elements on, and only if there is more than one value.
    for seed in range(5):
        groups_M = np.random.default_rng(seed).permutation(np.arange(30.0) % 3)  # equal spans with equal scores
        same_M2 = np.stack([10 * groups_M, 10 * groups_M + 1], axis=1)
        kept = spans.nms(make(same_M2), make(groups_M), 0.5)
        assert np.flatnonzero(kept).tolist() == sorted(np.unique(groups_M, return_index=True)[1])


@QUICK
@given(scored(), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_nms_equals_a_plain_loop_and_is_idempotent(rows: tuple[Floats, Floats], threshold: float) -> None:
    keep = spans.nms(*rows, threshold)
    assert keep.tolist() == slow_nms(*rows, threshold)
    assert spans.nms(rows[0][keep], rows[1][keep], threshold).all()


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@QUICK
@given(rows=scored(), threshold=st.sampled_from([0.0, 0.3, 0.9]), sigma=st.sampled_from([0.1, 0.5, 2.0]))
def test_soft_nms_equals_a_plain_loop(method: Any, rows: tuple[Floats, Floats], threshold: float, sigma: float) -> None:
    before = rows[1].copy()
    new_scores = spans.soft_nms(*rows, method=method, threshold=threshold, sigma=sigma)
    expected = slow_soft_nms(*rows, method, threshold, sigma)
    np.testing.assert_allclose(new_scores, expected, rtol=1e-12, atol=1e-300)
    assert (new_scores <= before).all()
    assert (new_scores >= 0).all()
    np.testing.assert_array_equal(rows[1], before)  # the caller's scores are left alone
    new_tensor = spans.soft_nms(tensor(rows[0]), tensor(rows[1]), method=method, threshold=threshold, sigma=sigma)
    np.testing.assert_array_equal(new_tensor.numpy(), new_scores)


@QUICK
@given(st.lists(scored(5), min_size=1, max_size=4))
def test_a_batch_is_its_rows(rows: list[tuple[Floats, Floats]]) -> None:
    most = min(len(scores) for _, scores in rows)
    spans_BM2 = np.stack([spans_M2[:most] for spans_M2, _ in rows])
    scores_BM = np.stack([scores[:most] for _, scores in rows])
    keep = spans.nms(spans_BM2, scores_BM, 0.4)
    soft = spans.soft_nms(spans_BM2, scores_BM)
    for at in range(len(rows)):
        np.testing.assert_array_equal(keep[at], spans.nms(spans_BM2[at], scores_BM[at], 0.4))
        np.testing.assert_array_equal(soft[at], spans.soft_nms(spans_BM2[at], scores_BM[at]))
    deeper = spans.soft_nms(spans_BM2[None], scores_BM[None])
    np.testing.assert_array_equal(deeper[0], soft)


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3), (1, 2, 0)])
def test_empty_batches(shape: tuple[int, ...]) -> None:
    assert spans.nms(np.zeros((*shape, 2)), np.zeros(shape), 0.5).shape == shape
    assert spans.soft_nms(np.zeros((*shape, 2)), np.zeros(shape)).shape == shape


def test_tensors_with_gradients_are_accepted() -> None:
    rows = torch.tensor([[0.0, 4.0], [0.0, 4.0]], requires_grad=True)
    scores = torch.tensor([0.5, 0.9], requires_grad=True)
    assert spans.nms(rows, scores, 0.5).tolist() == [False, True]
    assert spans.soft_nms(rows, scores).tolist() == [0.0, pytest.approx(0.9)]


ONE, HALF = np.array([[0.0, 1.0]]), np.array([0.5])


@pytest.mark.parametrize(
    ("rows", "scores", "options", "message"),
    [
        (np.zeros((0, 2)), np.zeros(1), {}, "spans must be"),
        (np.zeros(2), np.array(0.5), {}, "spans must be"),
        (np.zeros((1, 3)), HALF, {}, "spans must be"),
        (np.array([[0.0, math.nan]]), HALF, {}, "some are NaN"),
        (ONE, np.array([math.nan]), {}, "some are NaN"),
        (ONE, np.array([-0.1]), {}, "finite scores of at least 0"),
        (ONE, np.array([math.inf]), {}, "finite scores of at least 0"),
        (ONE, HALF, {"threshold": 1.5}, "threshold must be an IoU"),
        (ONE, HALF, {"threshold": math.nan}, "threshold must be an IoU"),
        (ONE, HALF, {"sigma": 0.0}, "sigma must be above 0"),
        (ONE, HALF, {"sigma": math.nan}, "sigma must be above 0"),
        (ONE, HALF, {"method": "hard"}, "method must be 'linear' or 'gaussian', got 'hard'"),
    ],
)
def test_soft_nms_refuses(rows: Floats, scores: Floats, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spans.soft_nms(rows, scores, **options)


@pytest.mark.parametrize(
    ("rows", "scores", "threshold", "message"),
    [
        (np.zeros((0, 2)), np.zeros(1), 0.5, "spans must be"),
        (ONE, np.array([math.nan]), 0.5, "some are NaN"),
        (ONE, HALF, -0.1, "threshold must be an IoU"),
    ],
)
def test_nms_refuses(rows: Floats, scores: Floats, threshold: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spans.nms(rows, scores, threshold)


def test_torch_is_not_imported() -> None:
    modules = "core.timeline", "core.spans", "core.grounding", "data.annotations", "metrics"
    code = f"import sys, {', '.join(f'sidelight.{name}' for name in modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
