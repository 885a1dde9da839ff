"""Highlight detection: average precision and HIT@1 at Fair, Good and Very Good, as QVHighlights defines them.

The definitions are those of the published script (Lei et al., NeurIPS 2021).

Legend: Q queries, T clips (padded), R raters; masks are True where data is real.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

LEVELS = {"Fair": 2, "Good": 3, "VeryGood": 4}
"""The rating from which a clip counts as positive."""


def hit_at_1(saliency_QT: Floats, predicted_QT: Bools, positive_QTR: Bools) -> Bools:
    """(Q,) whether some rater found the clip of the highest saliency positive; of equal ones, the first.

    Args:
        saliency_QT: the prediction.
        predicted_QT: where there is one, which may go on beyond the video.
        positive_QTR: what each rater found; False beyond the video, so a best clip there is a miss.
    """
    best_Q11 = np.where(predicted_QT, saliency_QT, -np.inf).argmax(1)[:, None, None]
    found: Bools = np.any(np.take_along_axis(positive_QTR, best_Q11, 1), axis=(1, 2))
    return found


def average_precision(saliency_QT: Floats, clips_QT: Bools, positive_QTR: Bools) -> Floats:
    """(Q, R) average precision of the clips in the order of their saliency, against each rater.

    Clips of equal saliency share one point of the curve. Precision is made non-increasing in recall, then
    averaged over the points at which recall rises: not over the positive clips, which differs where clips
    tie. A rater who found no clip positive gives 0.

    Args:
        saliency_QT: the prediction.
        clips_QT: the clips of the video.
        positive_QTR: what each rater found.
    """
    falling = np.where(clips_QT, saliency_QT, -np.inf)
    order_QT = np.argsort(-falling, axis=1, kind="stable")
    falling = np.take_along_axis(falling, order_QT, 1)
    positive_QTR = np.take_along_axis(positive_QTR & clips_QT[..., None], order_QT[..., None], 1)
    hits_QTR = positive_QTR.cumsum(1)
    # The last clip of each run of equal saliency is where a point of the curve is. Padding is one run at the
    # end without positives, so it is never a point at which recall rises.
    ends_QT = np.ones(falling.shape, dtype=bool)
    ends_QT[:, :-1] = falling[:, 1:] != falling[:, :-1]
    ranks_T1 = np.arange(1, falling.shape[1] + 1)[:, None]
    precision_QTR = np.where(ends_QT[..., None], hits_QTR / ranks_T1, 0.0)
    envelope_QTR = np.maximum.accumulate(precision_QTR[:, ::-1], axis=1)[:, ::-1]
    # Hits up to the run before: what an end had, carried on to the next end.
    at_ends_QTR = np.maximum.accumulate(np.where(ends_QT[..., None], hits_QTR, 0), axis=1)
    before_QTR = np.zeros_like(hits_QTR)
    before_QTR[:, 1:] = at_ends_QTR[:, :-1]
    rises_QTR = ends_QT[..., None] & (hits_QTR > before_QTR)
    found: Floats = (envelope_QTR * rises_QTR).sum(1) / np.maximum(rises_QTR.sum(1), 1)
    return found
