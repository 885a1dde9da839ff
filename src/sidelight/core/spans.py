"""Arithmetic of spans: forms, overlap, non-maximum suppression.

Every function takes NumPy arrays or torch tensors, returns the same kind, and is batched over leading axes. With
tensors, forms and overlaps are differentiable; suppression is not, and runs on the CPU. torch is never imported here:
a caller with a tensor has imported it. Units are the caller's: seconds or [0, 1].

Legend: N, M numbers of spans; se is [start, end], cw is (center, width).
"""

from __future__ import annotations

import sys
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

Array = TypeVar("Array", bound=Any)
"""numpy.ndarray or torch.Tensor; a function returns the kind that it is given."""
Floats = npt.NDArray[np.float64]


def _namespace(values: Any) -> Any:
    """Return the module of an array's functions: torch for a tensor, else NumPy."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(values, torch.Tensor) else np


def cw_to_se(spans: Array) -> Array:
    """Convert (..., 2) center and width to start and end."""
    center, half = spans[..., 0], spans[..., 1] / 2
    spans_se: Array = _namespace(spans).stack([center - half, center + half], -1)
    return spans_se


def se_to_cw(spans: Array) -> Array:
    """Convert (..., 2) start and end to center and width."""
    start, end = spans[..., 0], spans[..., 1]
    spans_cw: Array = _namespace(spans).stack([(start + end) / 2, end - start], -1)
    return spans_cw


def _overlaps(a: Any, b: Any) -> tuple[Any, Any, Any]:
    """Return the lengths of intersection, union and hull of spans that broadcast."""
    xp = _namespace(a)
    inter = xp.clip(xp.minimum(a[..., 1], b[..., 1]) - xp.maximum(a[..., 0], b[..., 0]), 0, None)
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - inter
    hull = xp.maximum(a[..., 1], b[..., 1]) - xp.minimum(a[..., 0], b[..., 0])
    return inter, union, hull


def _ratio(numerator: Any, denominator: Any) -> Any:
    """Divide; the result is 0 where the denominator is 0, also in gradients."""
    xp = _namespace(numerator)
    safe = xp.where(denominator > 0, denominator, xp.ones_like(denominator))
    return xp.where(denominator > 0, numerator / safe, xp.zeros_like(denominator))


def paired_iou(a: Array, b: Array) -> Array:
    """Return the intersection over union of pairs in se form, (..., 2) x (..., 2) -> (...); 0 for two empty spans."""
    inter, union, _ = _overlaps(a, b)
    ious: Array = _ratio(inter, union)
    return ious


def paired_giou(a: Array, b: Array) -> Array:
    """Return the generalised IoU (Rezatofighi et al., CVPR 2019) of pairs in se form, in [-1, 1]; (..., 2) -> (...)."""
    inter, union, hull = _overlaps(a, b)
    gious: Array = _ratio(inter, union) - _ratio(hull - union, hull)
    return gious


def iou(a: Array, b: Array) -> Array:
    """Return the intersection over union of all pairs in se form, (..., N, 2) x (..., M, 2) -> (..., N, M)."""
    ious: Array = paired_iou(a[..., :, None, :], b[..., None, :, :])
    return ious


def giou(a: Array, b: Array) -> Array:
    """Return the generalised IoU of all pairs in se form, (..., N, 2) x (..., M, 2) -> (..., N, M)."""
    gious: Array = paired_giou(a[..., :, None, :], b[..., None, :, :])
    return gious


def nms(spans: Array, scores: Array, threshold: float) -> Array:
    """Return which spans hard non-maximum suppression keeps, for a whole batch at once.

    From the best score down, each span that was not removed removes the later spans that overlap it by more than
    ``threshold``. Of equal scores the span with the lower index comes first.

    Args:
        spans: (..., M, 2), se form.
        scores: (..., M), any numbers.
        threshold: IoU in [0, 1].

    Returns:
        (..., M) True where a span is kept.

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
    kept_M = np.empty_like(keep)
    np.put_along_axis(kept_M, order, keep, -1)
    kept: Array = _like(kept_M, scores)
    return kept


def soft_nms(
    spans: Array,
    scores: Array,
    *,
    method: Literal["linear", "gaussian"] = "linear",
    threshold: float = 0.3,
    sigma: float = 0.5,
) -> Array:
    """Return the scores after soft non-maximum suppression (Bodla et al., ICCV 2017), for a whole batch at once.

    In each round the best span not yet chosen is chosen, and the score of each span that waits is multiplied by a
    factor of its IoU with the chosen span: 1 - IoU above ``threshold`` (linear), or exp(-IoU^2 / sigma) (gaussian).

    Args:
        spans: (..., M, 2), se form.
        scores: (..., M), at least 0: a factor below 1 would raise a negative score.
        method: which factor.
        threshold: IoU above which linear decay begins.
        sigma: width of the gaussian.

    Returns:
        (..., M) the new scores in the order of the old scores, float64 (for tensors: their own precision). No score
        rises.

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
    new_scores: Array = _like(scores_M, scores)
    return new_scores


def _checked(spans: Any, scores: Any, threshold: float) -> tuple[Floats, Floats]:
    """Return spans and scores as float64 on the CPU; ValueError if they do not fit."""
    spans_M2, scores_M = _on_cpu(spans), _on_cpu(scores)
    if not scores_M.ndim or spans_M2.shape != (*scores_M.shape, 2):
        raise ValueError(f"spans must be (..., M, 2) and scores (..., M); got {spans_M2.shape} and {scores_M.shape}")
    if np.isnan(spans_M2).any() or np.isnan(scores_M).any():
        raise ValueError("spans and scores must be numbers, but some are NaN; remove these spans before")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be an IoU in [0, 1], got {threshold}")
    return spans_M2, scores_M


def _on_cpu(values: Any) -> Floats:
    if _namespace(values) is not np:
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def _like(values: npt.NDArray[Any], pattern: Any) -> Any:
    """Return the values as the pattern's kind: for a tensor, a tensor on the same device."""
    xp = _namespace(pattern)
    if xp is np:
        return values
    # Scores in the pattern's precision: some accelerators have no float64.
    return xp.as_tensor(values, dtype=xp.bool if values.dtype == bool else pattern.dtype, device=pattern.device)
