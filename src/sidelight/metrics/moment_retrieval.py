"""Moment retrieval: recall at ranks, mean IoU and average precision, as QVHighlights defines them.

The definitions are those of the published script (Lei et al., NeurIPS 2021), with the additions of R2-Tuning's (mIoU,
R5, R1 from 0.3), which agree wherever both report a number. Nothing here loops over queries or thresholds.

Legend: Q queries, N predicted windows of a query, G ground-truth windows, H thresholds; rows are padded, masks are
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

AP_THRESHOLDS = np.linspace(0.5, 0.95, 10).round(2)
R_THRESHOLDS = np.linspace(0.3, 0.95, 14).round(2)
AP_WINDOWS = 10
"""Average precision looks at the first ten windows as they are listed."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Predicted and true windows of many queries, padded."""

    pred_QN3: Floats
    """[start, end, score], in the order they were listed."""
    pred_QN: Bools
    truth_QG2: Floats
    truth_QG: Bools

    def iou(self) -> Floats:
        """(Q, N, G); -1 where either is padding."""
        found = np.asarray(spans.iou(self.pred_QN3[..., :2], self.truth_QG2))
        return np.where(self.pred_QN[:, :, None] & self.truth_QG[:, None, :], found, -1.0)

    def within(self, shortest: float, longest: float) -> Windows:
        """Only the true windows longer than ``shortest`` and at most ``longest`` seconds, and the queries with any."""
        length = self.truth_QG2[..., 1] - self.truth_QG2[..., 0]
        mask = self.truth_QG & (length > shortest) & (length <= longest)
        rows = mask.any(1)
        return Windows(
            pred_QN3=self.pred_QN3[rows],
            pred_QN=self.pred_QN[rows],
            truth_QG2=self.truth_QG2[rows],
            truth_QG=mask[rows],
        )


def pad_windows(
    predicted: Sequence[npt.ArrayLike], truth: Sequence[npt.ArrayLike]
) -> Windows:
    """Windows of unequal numbers to padded arrays: for each query (N, 3) predicted and (G, 2) true ones."""
    pred, pred_mask = _pad(predicted, 3)
    true, true_mask = _pad(truth, 2)
    return Windows(pred_QN3=pred, pred_QN=pred_mask, truth_QG2=true, truth_QG=true_mask)


def _pad(rows: Sequence[npt.ArrayLike], width: int) -> tuple[Floats, Bools]:
    arrays = [np.asarray(row, np.float64).reshape(-1, width) for row in rows]
    counts = np.array([len(a) for a in arrays], dtype=int)
    mask = np.arange(max(1, counts.max(initial=0))) < counts[:, None]
    padded = np.zeros((*mask.shape, width))
    if len(arrays):
        padded[mask] = np.concatenate(arrays)
    return padded, mask


def recall(iou_QNG: Floats, thresholds: Floats, rank: int) -> Floats:
    """(H,) percent of queries one of whose first ``rank`` windows overlaps a true one by at least the threshold."""
    best_Q = iou_QNG[:, :rank].max((1, 2), initial=0.0)
    found: Floats = 100 * (best_Q[:, None] >= thresholds).mean(0)
    return found


def mean_iou(iou_QNG: Floats) -> float:
    """Percent: the mean, over queries, of the first window's best IoU."""
    return float(100 * iou_QNG[:, :1].max((1, 2), initial=0.0).mean())


def average_precision(windows: Windows, thresholds: Floats = AP_THRESHOLDS) -> Floats:
    """(Q, H) interpolated average precision of the first ten windows, ordered by score.

    From the best score down each window takes the true one it overlaps most among those not yet taken, if by at
    least the threshold; it is wrong otherwise.
    """
    pred, mask = windows.pred_QN3[:, :AP_WINDOWS], windows.pred_QN[:, :AP_WINDOWS]
    order = np.argsort(np.where(mask, -pred[..., 2], np.inf), axis=1, kind="stable")
    iou = Windows(
        pred_QN3=pred, pred_QN=mask, truth_QG2=windows.truth_QG2, truth_QG=windows.truth_QG
    ).iou()
    iou = np.take_along_axis(iou, order[..., None], 1)
    real = np.take_along_axis(mask, order, 1)
    queries, ranks, truths = iou.shape
    free = np.broadcast_to(windows.truth_QG[:, None], (queries, len(thresholds), truths)).copy()
    right = np.zeros((queries, len(thresholds), ranks), bool)
    for rank in range(ranks):
        overlap = np.where(free, iou[:, rank, None, :], -1.0)
        # Of equal overlaps the last true window is taken, as the published script's reversed sort does.
        best = truths - 1 - np.argmax(overlap[..., ::-1], axis=-1)[..., None]
        hit = np.take_along_axis(overlap, best, -1)[..., 0] >= thresholds
        right[..., rank] = hit
        taken = np.take_along_axis(free, best, -1) & ~hit[..., None]
        np.put_along_axis(free, best, taken, -1)
    return _interpolated(right & real[:, None], real, windows.truth_QG.sum(1))


def _interpolated(right_QHN: Bools, real_QN: Bools, truths_Q: npt.NDArray[np.int64]) -> Floats:
    """(Q, H): the area under precision made non-increasing, over recall."""
    hits = right_QHN.cumsum(-1)
    precision = hits / np.maximum(real_QN.cumsum(-1), 1)[:, None]
    envelope = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    gained = np.diff(hits, axis=-1, prepend=0) / np.maximum(truths_Q, 1)[:, None, None]
    found: Floats = (envelope * gained).sum(-1)
    return found
