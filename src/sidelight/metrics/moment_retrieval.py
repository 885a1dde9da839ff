"""Moment retrieval: recall at ranks, mean IoU and average precision, as QVHighlights defines them.

The definitions are those of the published script (Lei et al., NeurIPS 2021), with the additions of
R2-Tuning's (Liu et al., ECCV 2024: mIoU, R5, recall from 0.3). Nothing here loops over queries or thresholds.

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
"""Average precision looks at the first ten windows as they are listed."""
RECALL_WINDOWS = 5
"""Recall looks at the first one and at the first five."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How the predicted windows of many queries overlap the true ones; padded."""

    length_QG: Floats
    """Seconds of each true window."""
    true_mask_QG: Bools
    listed_iou_QNG: Floats
    """IoU of the first five windows as they are listed, for recall; 0 where padded."""
    ranked_iou_QNG: Floats
    """IoU of the first ten, ranked by their scores, for average precision; -1 where padded."""

    def __len__(self) -> int:
        """Q."""
        return len(self.length_QG)

    def within(self, shortest: float, longest: float) -> tuple[Windows, npt.NDArray[np.int64]]:
        """The true windows longer than ``shortest`` and at most ``longest`` seconds, and which queries have some."""
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
    """From (N, 3) [start, end, score] and (G, 2) [start, end] in seconds for each query, whose numbers differ.

    Only the first ten predicted windows matter. Recall takes intersection over hull, as the published script does;
    for windows that meet this is the IoU but for the last bit, which decides when it lies at a threshold.
    """
    pred_QN3, pred_mask_QN = pad([np.asarray(p)[:AP_WINDOWS] for p in predicted], width=3)
    true_QG2, true_mask_QG = pad(true, width=2)
    pred_QN12, true_Q1G2 = pred_QN3[:, :RECALL_WINDOWS, None, :2], true_QG2[:, None]
    met = np.minimum(pred_QN12[..., 1], true_Q1G2[..., 1]) - np.maximum(pred_QN12[..., 0], true_Q1G2[..., 0])
    hull = np.maximum(pred_QN12[..., 1], true_Q1G2[..., 1]) - np.minimum(pred_QN12[..., 0], true_Q1G2[..., 0])
    real = pred_mask_QN[:, :RECALL_WINDOWS, None] & true_mask_QG[:, None]
    listed_QNG = np.where(real & (met > 0), met / np.where(hull > 0, hull, 1.0), 0.0)
    # Equal scores keep the order listed.
    order_QN = np.argsort(np.where(pred_mask_QN, -pred_QN3[..., 2], np.inf), axis=1, kind="stable")
    ranked_QN3 = np.take_along_axis(pred_QN3, order_QN[..., None], 1)
    ranked_QNG = np.asarray(spans.iou(ranked_QN3[..., :2], true_QG2))
    # Padding is ranked last.
    ranked_QNG[~pred_mask_QN] = -1.0
    return Windows(
        length_QG=true_QG2[..., 1] - true_QG2[..., 0],
        true_mask_QG=true_mask_QG,
        listed_iou_QNG=listed_QNG,
        ranked_iou_QNG=ranked_QNG,
    )


def pad(rows: Sequence[npt.ArrayLike], *, width: int) -> tuple[Floats, Bools]:
    """(rows, longest, width) with zeros after each row's end, and (rows, longest) True where data is real."""
    arrays = [np.asarray(row, dtype=np.float64).reshape(-1, width) for row in rows]
    counts = np.array([len(array) for array in arrays], dtype=np.int64)
    mask = np.arange(counts.max(initial=1)) < counts[:, None]
    padded = np.zeros((*mask.shape, width))
    padded[mask] = np.concatenate([np.zeros((0, width)), *arrays])
    return padded, mask


def best_iou(windows: Windows, rank: int) -> Floats:
    """(Q,) the highest IoU between one of the first ``rank`` windows listed (at most 5) and any true one.

    0 for a query without predictions.
    """
    found: Floats = (windows.listed_iou_QNG[:, :rank] * windows.true_mask_QG[:, None]).max(axis=(1, 2), initial=0.0)
    return found


def average_precision(windows: Windows, thresholds: Floats = AP_THRESHOLDS) -> Floats:
    """(Q, H) interpolated average precision of the first ten windows listed, in the order of their scores.

    From the best score down, each window takes the true one that it overlaps most among those not yet taken,
    if by at least the threshold; otherwise it is a false alarm. Of equal overlaps the last true window is taken,
    as the published script does. 0 for a query without predictions (the published script leaves such queries out
    of its mean).
    """
    # The last true window first, so that argmax finds it; thresholds last, where they are next to each other.
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
    """(Q, H) area under the curve of precision over recall, precision made non-increasing.

    Padding stands last and is never right, so it changes neither.
    """
    precision_QHN = right_QHN.cumsum(-1) / np.arange(1, right_QHN.shape[-1] + 1)
    envelope_QHN = np.maximum.accumulate(precision_QHN[..., ::-1], axis=-1)[..., ::-1]
    found: Floats = (envelope_QHN * right_QHN).sum(-1) / trues_Q[:, None]
    return found
