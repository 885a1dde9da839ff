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

from sidelight import spans

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

AP_THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10).round(2)
RECALL_THRESHOLDS: Floats = np.linspace(0.3, 0.95, 14).round(2)
AP_WINDOWS = 10
"""Average precision looks at the first ten windows as they are listed."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Predicted and true windows of many queries, padded. Windows are [start, end] in seconds."""

    pred_QN2: Floats
    """In the order they were listed."""
    score_QN: Floats
    pred_mask_QN: Bools
    true_QG2: Floats
    true_mask_QG: Bools

    def __len__(self) -> int:
        """Q."""
        return len(self.pred_QN2)

    def within(self, shortest: float, longest: float) -> tuple[Windows, npt.NDArray[np.int64]]:
        """The true windows longer than ``shortest`` and at most ``longest`` seconds, and which queries have some."""
        length_QG = self.true_QG2[..., 1] - self.true_QG2[..., 0]
        mask_QG = self.true_mask_QG & (length_QG > shortest) & (length_QG <= longest)
        rows = np.flatnonzero(mask_QG.any(1))
        part = Windows(
            pred_QN2=self.pred_QN2[rows],
            score_QN=self.score_QN[rows],
            pred_mask_QN=self.pred_mask_QN[rows],
            true_QG2=self.true_QG2[rows],
            true_mask_QG=mask_QG[rows],
        )
        return part, rows


def pad_windows(predicted: Sequence[npt.ArrayLike], true: Sequence[npt.ArrayLike]) -> Windows:
    """Pad for each query (N, 3) [start, end, score] and (G, 2) [start, end], whose numbers differ."""
    pred_QN3, pred_mask_QN = pad(predicted, width=3)
    true_QG2, true_mask_QG = pad(true, width=2)
    return Windows(
        pred_QN2=pred_QN3[..., :2],
        score_QN=pred_QN3[..., 2],
        pred_mask_QN=pred_mask_QN,
        true_QG2=true_QG2,
        true_mask_QG=true_mask_QG,
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
    """(Q,) the highest IoU between one of the first ``rank`` windows listed and any true one.

    0 for a query without predictions. The IoU here is intersection over hull, as in the published script; for
    windows that meet this is the same but for the last bit, which decides when an IoU lies at a threshold.
    """
    pred = windows.pred_QN2[:, :rank, None]
    true = windows.true_QG2[:, None]
    met = np.minimum(pred[..., 1], true[..., 1]) - np.maximum(pred[..., 0], true[..., 0])
    hull = np.maximum(pred[..., 1], true[..., 1]) - np.minimum(pred[..., 0], true[..., 0])
    real = windows.pred_mask_QN[:, :rank, None] & windows.true_mask_QG[:, None]
    iou_QNG = np.where(real & (met > 0), met / np.where(hull > 0, hull, 1.0), 0.0)
    found: Floats = iou_QNG.max(axis=(1, 2))
    return found


def average_precision(windows: Windows, thresholds: Floats = AP_THRESHOLDS) -> Floats:
    """(Q, H) interpolated average precision of the first ten windows listed, in the order of their scores.

    From the best score down, each window takes the true one that it overlaps most among those not yet taken,
    if by at least the threshold; otherwise it is a false alarm. Equal scores keep the order listed; of equal
    overlaps the last true window is taken, as the published script does. 0 for a query without predictions
    (the published script leaves such queries out of its mean).
    """
    mask_QN = windows.pred_mask_QN[:, :AP_WINDOWS]
    sinking = np.where(mask_QN, -windows.score_QN[:, :AP_WINDOWS], np.inf)
    order_QN = np.argsort(sinking, axis=1, kind="stable")
    iou_QNG = np.asarray(spans.iou(windows.pred_QN2[:, :AP_WINDOWS], windows.true_QG2))
    iou_QNG = np.where(mask_QN[:, :, None] & windows.true_mask_QG[:, None, :], iou_QNG, -1.0)
    iou_QNG = np.take_along_axis(iou_QNG, order_QN[..., None], 1)
    queries, ranks, most = iou_QNG.shape
    free_QHG = np.broadcast_to(windows.true_mask_QG[:, None], (queries, len(thresholds), most)).copy()
    right_QHN = np.zeros((queries, len(thresholds), ranks), dtype=bool)
    for rank in range(ranks):
        overlap_QHG = np.where(free_QHG, iou_QNG[:, rank, None, :], -1.0)
        best_QH1 = most - 1 - np.argmax(overlap_QHG[..., ::-1], axis=-1)[..., None]
        hit_QH1 = np.take_along_axis(overlap_QHG, best_QH1, -1) >= thresholds[:, None]
        right_QHN[..., rank] = hit_QH1[..., 0]
        np.put_along_axis(free_QHG, best_QH1, np.take_along_axis(free_QHG, best_QH1, -1) & ~hit_QH1, -1)
    return _interpolated(right_QHN, windows.true_mask_QG.sum(1))


def _interpolated(right_QHN: Bools, trues_Q: npt.NDArray[np.int64]) -> Floats:
    """(Q, H) area under the curve of precision over recall, precision made non-increasing.

    Padding stands last and is never right, so it changes neither.
    """
    precision_QHN = right_QHN.cumsum(-1) / np.arange(1, right_QHN.shape[-1] + 1)
    envelope_QHN = np.maximum.accumulate(precision_QHN[..., ::-1], axis=-1)[..., ::-1]
    found: Floats = (envelope_QHN * right_QHN).sum(-1) / trues_Q[:, None]
    return found
