"""Highlight detection: mAP and HIT@1 at Fair, Good and VeryGood, as QVHighlights defines them.

The definitions are those of the published script (Lei et al., NeurIPS 2021).

Legend: Q queries, T clips (padded), W raters.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

LEVELS = {"Fair": 2, "Good": 3, "VeryGood": 4}
"""The rating from which a clip counts as positive."""


def hit_at_one(predicted_QT: Floats, clips_Q: npt.NDArray[np.int64], positive_QTW: Bools) -> float:
    """Percent of queries whose best clip some rater found positive.

    Args:
        predicted_QT: saliency, -inf where there is none.
        clips_Q: clips of each video; a best clip beyond them is wrong.
        positive_QTW: what each rater found.
    """
    best_Q = predicted_QT.argmax(1)
    inside = best_Q < clips_Q
    rows = np.arange(len(best_Q))
    hit = positive_QTW[rows, np.minimum(best_Q, positive_QTW.shape[1] - 1)].any(-1)
    return float(100 * (hit & inside).mean())


def average_precision(scores_QT: Floats, real_QT: Bools, positive_QTW: Bools) -> Floats:
    """(Q, W) average precision of the clips' ranking against each rater.

    Precision is made non-increasing in recall, then averaged over the distinct recalls above 0; clips of equal score
    share a rank. A rater who found every clip positive gives 1, one who found none gives 0.

    Args:
        scores_QT: saliency of each clip.
        real_QT: True for clips of the video.
        positive_QTW: what each rater found.
    """
    order = np.argsort(np.where(real_QT, -scores_QT, np.inf), axis=1, kind="stable")
    scores = np.take_along_axis(np.where(real_QT, scores_QT, -np.inf), order, 1)
    real = np.take_along_axis(real_QT, order, 1)
    positive = np.take_along_axis(positive_QTW & real_QT[..., None], order[..., None], 1)
    hits = positive.cumsum(1)
    # Only the last clip of a group of equal scores is a point of the curve.
    last = real.copy()
    last[:, :-1] &= (scores[:, 1:] != scores[:, :-1]) | ~real[:, 1:]
    precision = np.where(last[..., None], hits / np.arange(1, hits.shape[1] + 1)[:, None], 0.0)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    before = np.concatenate([np.zeros_like(hits[:, :1]), hits[:, :-1]], 1)
    before = np.maximum.accumulate(np.where(_after(last)[..., None], before, 0), axis=1)
    new = last[..., None] & (hits > before)
    found = (envelope * new).sum(1) / np.maximum(new.sum(1), 1)
    everything = (positive | ~real[..., None]).all(1)
    return np.where(everything, 1.0, found)


def _after(last_QT: Bools) -> Bools:
    """True where a group of equal scores begins: at the first clip, and after each group's last one."""
    begins = np.ones_like(last_QT)
    begins[:, 1:] = last_QT[:, :-1]
    return begins
