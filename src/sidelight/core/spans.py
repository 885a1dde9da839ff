"""Arithmetic of spans: forms, overlap, non-maximum suppression.

Every function takes NumPy arrays or torch tensors, returns what it was given, and is batched over leading
axes. With tensors the forms and the overlaps are differentiable; suppression is not, and is done on the CPU.
torch is never imported here: a tensor brings it along. Units are the caller's: seconds or [0, 1].

Legend: N, M numbers of spans; se is [start, end], cw is (center, width).
"""

from __future__ import annotations

import sys
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

Array = TypeVar("Array", bound=Any)
"""numpy.ndarray or torch.Tensor; what comes in goes out."""
Floats = npt.NDArray[np.float64]


def _namespace(values: Any) -> Any:
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(values, torch.Tensor) else np


def cw_to_se(spans: Array) -> Array:
    """(..., 2) center and width to start and end."""
    center, half = spans[..., 0], spans[..., 1] / 2
    found: Array = _namespace(spans).stack([center - half, center + half], -1)
    return found


def se_to_cw(spans: Array) -> Array:
    """(..., 2) start and end to center and width."""
    start, end = spans[..., 0], spans[..., 1]
    found: Array = _namespace(spans).stack([(start + end) / 2, end - start], -1)
    return found


def _overlaps(a: Any, b: Any) -> tuple[Any, Any, Any]:
    """Intersection, union and hull of spans that broadcast."""
    xp = _namespace(a)
    inter = xp.clip(xp.minimum(a[..., 1], b[..., 1]) - xp.maximum(a[..., 0], b[..., 0]), 0, None)
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - inter
    hull = xp.maximum(a[..., 1], b[..., 1]) - xp.minimum(a[..., 0], b[..., 0])
    return inter, union, hull


def _ratio(numerator: Any, denominator: Any) -> Any:
    """0 where the denominator is 0, also in gradients."""
    xp = _namespace(numerator)
    safe = xp.where(denominator > 0, denominator, xp.ones_like(denominator))
    return xp.where(denominator > 0, numerator / safe, xp.zeros_like(denominator))


def paired_iou(a: Array, b: Array) -> Array:
    """(..., 2) x (..., 2) -> (...): intersection over union of pairs in se form; 0 for two empty spans."""
    inter, union, _ = _overlaps(a, b)
    found: Array = _ratio(inter, union)
    return found


def paired_giou(a: Array, b: Array) -> Array:
    """(..., 2) x (..., 2) -> (...): generalised IoU (Rezatofighi et al., CVPR 2019), in [-1, 1]."""
    inter, union, hull = _overlaps(a, b)
    found: Array = _ratio(inter, union) - _ratio(hull - union, hull)
    return found


def iou(a: Array, b: Array) -> Array:
    """(..., N, 2) x (..., M, 2) -> (..., N, M): intersection over union of all pairs, se form."""
    found: Array = paired_iou(a[..., :, None, :], b[..., None, :, :])
    return found


def giou(a: Array, b: Array) -> Array:
    """(..., N, 2) x (..., M, 2) -> (..., N, M): generalised IoU of all pairs, se form."""
    found: Array = paired_giou(a[..., :, None, :], b[..., None, :, :])
    return found


def nms(spans: Array, scores: Array, threshold: float) -> Array:
    """Hard non-maximum suppression, for a whole batch at once.

    From the best score down, a span that is still there removes those that overlap it by more than
    ``threshold``. Equal scores: the earlier one first.

    Args:
        spans: (..., M, 2), se form.
        scores: (..., M), any numbers.
        threshold: IoU in [0, 1].

    Returns:
        (..., M) True where a span stays.

    Raises:
        ValueError: if the shapes do not fit, a number is NaN or the threshold is no IoU.
    """
    spans_M2, scores_M = _checked(spans, scores, threshold)
    order = np.argsort(-scores_M, axis=-1, kind="stable")
    ordered = np.take_along_axis(spans_M2, order[..., None], -2)
    overlap = iou(ordered, ordered) > threshold
    keep = np.ones(scores_M.shape, dtype=bool)
    for i in range(scores_M.shape[-1] - 1):
        # Row i is final when its turn comes: only better spans could have removed it.
        keep[..., i + 1 :] &= ~(overlap[..., i, i + 1 :] & keep[..., i : i + 1])
    found = np.empty_like(keep)
    np.put_along_axis(found, order, keep, -1)
    kept: Array = _like(found, scores)
    return kept


def soft_nms(
    spans: Array,
    scores: Array,
    *,
    method: Literal["linear", "gaussian"] = "linear",
    threshold: float = 0.3,
    sigma: float = 0.5,
) -> Array:
    """Soft non-maximum suppression (Bodla et al., ICCV 2017), for a whole batch at once.

    Again and again the best span not yet chosen is chosen, and the scores of the others fall by how much they
    overlap it: times 1 - IoU above ``threshold`` (linear), or times exp(-IoU^2 / sigma) (gaussian).

    Args:
        spans: (..., M, 2), se form.
        scores: (..., M), at least 0: to multiply a score below 0 would raise it.
        method: how scores fall.
        threshold: IoU above which linear decay begins.
        sigma: width of the gaussian.

    Returns:
        (..., M) the new scores in the order of the old ones, float64 (a tensor's own precision); none is higher than
        before.

    Raises:
        ValueError: if the shapes do not fit, a score is below 0 or not finite, or an option is out of range.
    """
    spans_M2, scores_M = _checked(spans, scores, threshold)
    if method not in ("linear", "gaussian"):
        raise ValueError(f"method must be 'linear' or 'gaussian', got {method!r}")
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, got {sigma}")
    if not (np.isfinite(scores_M) & (scores_M >= 0)).all():
        raise ValueError("soft_nms needs finite scores of at least 0; apply a sigmoid to logits before")
    overlap = iou(spans_M2, spans_M2)
    decay = np.where(overlap > threshold, 1 - overlap, 1.0) if method == "linear" else np.exp(-(overlap**2) / sigma)
    waiting = np.ones(scores_M.shape, dtype=bool)
    for _ in range(scores_M.shape[-1]):
        best = np.argmax(np.where(waiting, scores_M, -np.inf), axis=-1)[..., None]
        np.put_along_axis(waiting, best, False, -1)
        factor = np.take_along_axis(decay, best[..., None], -2)[..., 0, :]
        scores_M = np.where(waiting, scores_M * factor, scores_M)
    found: Array = _like(scores_M, scores)
    return found


def _checked(spans: Any, scores: Any, threshold: float) -> tuple[Floats, Floats]:
    """Spans and scores as float64 on the CPU."""
    spans_M2, scores_M = _on_cpu(spans), _on_cpu(scores)
    if not scores_M.ndim or spans_M2.shape != (*scores_M.shape, 2):
        raise ValueError(f"spans must be (..., M, 2) and scores (..., M); got {spans_M2.shape} and {scores_M.shape}")
    if np.isnan(spans_M2).any() or np.isnan(scores_M).any():
        raise ValueError("spans and scores must be numbers to be put in order; some are NaN")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be an IoU in [0, 1], got {threshold}")
    return spans_M2, scores_M


def _on_cpu(values: Any) -> Floats:
    if _namespace(values) is not np:
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def _like(values: npt.NDArray[Any], pattern: Any) -> Any:
    """As a tensor on the same device if the pattern is one."""
    xp = _namespace(pattern)
    if xp is np:
        return values
    # Scores in the pattern's precision: some accelerators have no float64.
    return xp.as_tensor(values, dtype=xp.bool if values.dtype == bool else pattern.dtype, device=pattern.device)
