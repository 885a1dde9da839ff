"""Moment retrieval: recall at ranks, mean IoU and average precision, as QVHighlights defines them.

The definitions are those of the published script (Lei et al., NeurIPS 2021), with the additions of
R2-Tuning's (Liu et al., ECCV 2024: mIoU, R5, recall from 0.3). No code loops over queries or thresholds.

Legend: Q queries, N predicted windows of a query, G true windows, H thresholds; rows are padded, masks are
True where data is real.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sidelight.core import spans

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

AP_THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10).round(2)
RECALL_THRESHOLDS: Floats = np.linspace(0.3, 0.95, 14).round(2)
AP_WINDOWS = 10
"""Number of listed windows that average precision uses."""
RECALL_WINDOWS = 5
"""Largest number of listed windows that recall uses (R5)."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """The overlaps of the predicted windows of many queries with the true ones; padded."""

    length_QG: Floats
    """Seconds of each true window."""
    true_mask_QG: Bools
    """True for real true windows, False for padding."""
    listed_iou_QNG: Floats
    """IoU of the first five windows in the listed order, for recall; 0 where padded."""
    ranked_iou_QNG: Floats
    """IoU of the first ten windows, sorted by score, for average precision; -1 where padded."""

    def __len__(self) -> int:
        """Return Q."""
        return len(self.length_QG)

    def within(self, shortest: float, longest: float) -> tuple[Windows, npt.NDArray[np.int64]]:
        """Return the true windows of more than ``shortest`` and at most ``longest`` seconds, and their queries."""
        mask_QG = self.true_mask_QG & (self.length_QG > shortest) & (self.length_QG <= longest)
        rows = np.flatnonzero(mask_QG.any(1))
        part = Windows(
            length_QG=self.length_QG[rows],
            true_mask_QG=mask_QG[rows],
            listed_iou_QNG=self.listed_iou_QNG[rows],
            ranked_iou_QNG=self.ranked_iou_QNG[rows],
        )
        return part, rows


def pad_windows(predicted: Sequence[npt.ArrayLike], true: Sequence[npt.ArrayLike]) -> Windows:
    """Return the overlaps of predicted and true windows.

    Only the first ten predicted windows count. Recall uses intersection over hull, like the published script. For
    windows that overlap, this equals the IoU except for the last bit, which decides for values at a threshold.

    Args:
        predicted: (N, 3) [start, end, score] in seconds for each query.
        true: (G, 2) [start, end] in seconds for each query.
    """
    pred_QN3, pred_mask_QN = pad([np.asarray(p)[:AP_WINDOWS] for p in predicted], width=3)
    true_QG2, true_mask_QG = pad(true, width=2)
    pred_QN12, true_Q1G2 = pred_QN3[:, :RECALL_WINDOWS, None, :2], true_QG2[:, None]
    overlap = np.minimum(pred_QN12[..., 1], true_Q1G2[..., 1]) - np.maximum(pred_QN12[..., 0], true_Q1G2[..., 0])
    hull = np.maximum(pred_QN12[..., 1], true_Q1G2[..., 1]) - np.minimum(pred_QN12[..., 0], true_Q1G2[..., 0])
    real = pred_mask_QN[:, :RECALL_WINDOWS, None] & true_mask_QG[:, None]
    listed_QNG = np.where(real & (overlap > 0), overlap / np.where(hull > 0, hull, 1.0), 0.0)
    # Windows of equal score keep their order.
    order_QN = np.argsort(np.where(pred_mask_QN, -pred_QN3[..., 2], np.inf), axis=1, kind="stable")
    ranked_QN3 = np.take_along_axis(pred_QN3, order_QN[..., None], 1)
    ranked_QNG = np.asarray(spans.iou(ranked_QN3[..., :2], true_QG2))
    # Padding is at the end of each row.
    ranked_QNG[~pred_mask_QN] = -1.0
    return Windows(
        length_QG=true_QG2[..., 1] - true_QG2[..., 0],
        true_mask_QG=true_mask_QG,
        listed_iou_QNG=listed_QNG,
        ranked_iou_QNG=ranked_QNG,
    )


def pad(rows: Sequence[npt.ArrayLike], *, width: int) -> tuple[Floats, Bools]:
    """Return (rows, longest, width) with zeros after the end of each row, and (rows, longest) True for real data."""
    arrays = [np.asarray(row, dtype=np.float64).reshape(-1, width) for row in rows]
    counts = np.array([len(array) for array in arrays], dtype=np.int64)
    mask = np.arange(counts.max(initial=1)) < counts[:, None]
    padded = np.zeros((*mask.shape, width))
    padded[mask] = np.concatenate([np.zeros((0, width)), *arrays])
    return padded, mask


def best_iou(windows: Windows, rank: int) -> Floats:
    """Return the highest IoU of the first ``rank`` listed windows (at most 5) with any true window, (Q,).

    It is 0 for a query without predictions.
    """
    best_Q: Floats = (windows.listed_iou_QNG[:, :rank] * windows.true_mask_QG[:, None]).max(axis=(1, 2), initial=0.0)
    return best_Q


def average_precision(windows: Windows, thresholds: Floats = AP_THRESHOLDS) -> Floats:
    """Return the interpolated average precision of the first ten listed windows, sorted by score, (Q, H).

    From the best score down, each window takes the free true window with the largest IoU, if that reaches the
    threshold; otherwise the window is a false alarm. Of equal IoUs, the last true window is taken, like in the
    published script. Average precision is 0 for a query without predictions (the published script leaves such queries
    out of its mean).
    """
    # True windows in reverse, because argmax takes the first of equals; thresholds last, for fast memory access.
    free_QGH = np.repeat(windows.true_mask_QG[:, ::-1, None], len(thresholds), axis=2)
    iou_QNG = windows.ranked_iou_QNG[:, :, ::-1]
    queries, ranks, _ = iou_QNG.shape
    right_QHN = np.zeros((queries, len(thresholds), ranks), dtype=bool)
    for rank in range(ranks):
        overlap_QGH = np.where(free_QGH, iou_QNG[:, rank, :, None], -1.0)
        best_Q1H = overlap_QGH.argmax(1)[:, None]
        hit_Q1H = np.take_along_axis(overlap_QGH, best_Q1H, 1) >= thresholds
        right_QHN[..., rank] = hit_Q1H[:, 0]
        np.put_along_axis(free_QGH, best_Q1H, np.take_along_axis(free_QGH, best_Q1H, 1) & ~hit_Q1H, 1)
    return _interpolated(right_QHN, windows.true_mask_QG.sum(1))


def _interpolated(right_QHN: Bools, trues_Q: npt.NDArray[np.int64]) -> Floats:
    """Return the area under precision over recall, with precision made non-increasing, (Q, H).

    Padding is last and never right, so it changes nothing.
    """
    precision_QHN = right_QHN.cumsum(-1) / np.arange(1, right_QHN.shape[-1] + 1)
    envelope_QHN = np.maximum.accumulate(precision_QHN[..., ::-1], axis=-1)[..., ::-1]
    area_QH: Floats = (envelope_QHN * right_QHN).sum(-1) / trues_Q[:, None]
    return area_QH
