"""Highlight detection: average precision and HIT@1 at Fair, Good and Very Good, as QVHighlights defines them.

The definitions are those of the published script (Lei et al., NeurIPS 2021).

TVSum and YouTube Highlights have no queries. They are scored by another average precision, that of UMT (Liu et al.,
CVPR 2022) and R2-Tuning (Liu et al., ECCV 2024): ``top_k_average_precision``.

Legend: Q queries, V videos, T clips (padded), R raters; masks are True for real data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sidelight.data.labels import CLIPS_SHORT

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

LEVELS = {"Fair": 2, "Good": 3, "VeryGood": 4}
"""Lowest rating of a positive clip."""

RATERS = 20
"""Number of people who rated each video of TVSum."""


def hit_at_1(saliency_QT: Floats, predicted_QT: Bools, positive_QTR: Bools) -> Bools:
    """Return whether the clip of the highest saliency is positive to any rater, (Q,); of equal clips, the first.

    Args:
        saliency_QT: the prediction.
        predicted_QT: True for clips with a prediction, which may go on beyond the video.
        positive_QTR: True for clips that are positive to a rater; False beyond the video, so that a best clip there
            is a miss.
    """
    best_Q11 = np.where(predicted_QT, saliency_QT, -np.inf).argmax(1)[:, None, None]
    hit_Q: Bools = np.any(np.take_along_axis(positive_QTR, best_Q11, 1), axis=(1, 2))
    return hit_Q


def average_precision(saliency_QT: Floats, clips_QT: Bools, positive_QTR: Bools) -> Floats:
    """Return the average precision of the clips, sorted by saliency, against each rater, (Q, R).

    Clips of equal saliency share one point of the curve. Precision is made non-increasing in recall, and then averaged
    over the points at which recall rises. (An average over the positive clips differs where clips tie.) It is 0 for a
    rater without positive clips.

    Args:
        saliency_QT: the prediction.
        clips_QT: True for the clips of the video.
        positive_QTR: True for clips that are positive to a rater.
    """
    sorted_QT = np.where(clips_QT, saliency_QT, -np.inf)
    order_QT = np.argsort(-sorted_QT, axis=1, kind="stable")
    sorted_QT = np.take_along_axis(sorted_QT, order_QT, 1)
    positive_QTR = np.take_along_axis(positive_QTR & clips_QT[..., None], order_QT[..., None], 1)
    hits_QTR = positive_QTR.cumsum(1)
    # The last clip of each run of equal saliency is a point of the curve. Padding is one run at the end without
    # positives, so recall never rises there.
    ends_QT = np.ones(sorted_QT.shape, dtype=bool)
    ends_QT[:, :-1] = sorted_QT[:, 1:] != sorted_QT[:, :-1]
    ranks_T1 = np.arange(1, sorted_QT.shape[1] + 1)[:, None]
    precision_QTR = np.where(ends_QT[..., None], hits_QTR / ranks_T1, 0.0)
    envelope_QTR = np.maximum.accumulate(precision_QTR[:, ::-1], axis=1)[:, ::-1]
    # Hits up to the end of the run before.
    at_ends_QTR = np.maximum.accumulate(np.where(ends_QT[..., None], hits_QTR, 0), axis=1)
    before_QTR = np.zeros_like(hits_QTR)
    before_QTR[:, 1:] = at_ends_QTR[:, :-1]
    rises_QTR = ends_QT[..., None] & (hits_QTR > before_QTR)
    precision_QR: Floats = (envelope_QTR * rises_QTR).sum(1) / np.maximum(rises_QTR.sum(1), 1)
    return precision_QR


def top_k_average_precision(saliency_VT: Floats, mask_VT: Bools, positive_VTR: Bools, k: int | None = None) -> Floats:
    """Return the average precision of the ``k`` clips of the highest saliency, against each rater, (V, R).

    It is the area under the line through the points of precision over recall, from the best clip down; the line begins
    at precision 1. Recall counts the positive clips among the ``k`` only: with one positive clip in the first five,
    only its rank matters. Clips of equal saliency stay in the order of time (the published script leaves their order
    open). Without a positive clip among the ``k``, average precision is 0.

    Args:
        saliency_VT: the prediction.
        mask_VT: True for clips with a prediction.
        positive_VTR: True for clips that are positive to a rater.
        k: number of clips; None for all.

    Raises:
        ValueError: if ``k`` is less than 1.
    """
    if k is not None and k < 1:
        raise ValueError(f"k must be at least 1, or None for all clips, got {k}")
    # Sorted by the mask first, so that padding is last even if saliency is minus infinity. Lexsort is stable.
    order_VT = np.lexsort((-saliency_VT, ~mask_VT), axis=1)[:, :k]
    positive_VTR = np.take_along_axis(positive_VTR & mask_VT[..., None], order_VT[..., None], 1)
    hits_VTR = positive_VTR.cumsum(1)
    recall_VTR = hits_VTR / np.maximum(hits_VTR[:, -1:], 1)
    precision_VTR = hits_VTR / np.arange(1, hits_VTR.shape[1] + 1)[:, None]
    # Padding is last and never positive, so recall does not rise there.
    steps_VTR = np.diff(recall_VTR, axis=1, prepend=0.0)
    before_VTR = np.concatenate([np.ones_like(precision_VTR[:, :1]), precision_VTR[:, :-1]], axis=1)
    area_VR: Floats = (steps_VTR * (before_VTR + precision_VTR) / 2).sum(1)
    return area_VR


def tvsum_average_precision(saliency: Sequence[npt.ArrayLike], raters: Sequence[npt.ArrayLike], k: int = 5) -> Floats:
    """Return the average precision of each TVSum video against each rater, among the ``k`` best clips, (V, R).

    A clip is positive to a rater who rated it above the median of their ratings of the video. The median is the lower
    of the two middle ratings if their number is even, and includes all clips, even if saliency is shorter.

    The published mean is over videos first, then over raters (``.mean(0).mean()``). The order changes only the last
    bit, but that bit can decide how the mean is rounded.

    Args:
        saliency: for each video (T,), or up to CLIPS_SHORT clips less.
        raters: for each video (T, R) ratings; R is 20 on TVSum.
        k: 5 in UMT and R2-Tuning; other papers report 15 too.

    Raises:
        ValueError: if the numbers of videos, lengths or raters differ, or a value is NaN.
    """
    saliency_VT, mask_VT, ratings_VTR, rated_VT = _pad_videos(saliency, raters, raters=RATERS)
    sorted_VTR = np.sort(np.where(rated_VT[..., None], ratings_VTR, np.inf), axis=1)
    median_V11 = (rated_VT.sum(1)[:, None, None] - 1) // 2
    positive_VTR = ratings_VTR > np.take_along_axis(sorted_VTR, median_V11, 1)
    return top_k_average_precision(saliency_VT, mask_VT, positive_VTR, k)


def tvsum_map(saliency: Sequence[npt.ArrayLike], raters: Sequence[npt.ArrayLike], k: int = 5) -> Floats:
    """Return the mean of ``tvsum_average_precision`` over the raters, (V,); arguments and errors are the same."""
    mean_V: Floats = tvsum_average_precision(saliency, raters, k).mean(1)
    return mean_V


def youtube_map(saliency: Sequence[npt.ArrayLike], match: Sequence[npt.ArrayLike]) -> Floats:
    """Return the average precision of each video of YouTube Highlights, over all its clips, (V,).

    Args:
        saliency: for each video (T,), or up to CLIPS_SHORT clips less.
        match: for each video (T,): 1 for a highlight, 0 for a borderline clip, -1 for neither. Only 1 is positive.

    Raises:
        ValueError: if the numbers of videos or lengths differ, or a value is NaN.
    """
    columns = [np.reshape(np.asarray(m, dtype=np.float64), (*np.shape(m), 1)) for m in match]
    saliency_VT, mask_VT, match_VT1, _ = _pad_videos(saliency, columns, raters=1)
    precision_V: Floats = top_k_average_precision(saliency_VT, mask_VT, match_VT1 > 0)[:, 0]
    return precision_V


def _pad_videos(
    saliency: Sequence[npt.ArrayLike], labels: Sequence[npt.ArrayLike], *, raters: int
) -> tuple[Floats, Bools, Floats, Bools]:
    """Return (V, T) saliency and its mask, (V, T, R) labels and their (V, T) mask; ``raters`` is R if V is 0."""
    if len(saliency) != len(labels):
        raise ValueError(
            f"saliency and labels must be of the same videos: expected the same number, got {len(saliency)} curves "
            f"and {len(labels)} tables of labels"
        )
    curves = [np.asarray(curve, dtype=np.float64) for curve in saliency]
    tables = [np.asarray(table, dtype=np.float64) for table in labels]
    for v, (curve, table) in enumerate(zip(curves, tables, strict=True)):
        _check_video(v, curve, table, raters=tables[0].shape[-1] if tables[0].ndim else 0)
    raters = tables[0].shape[1] if tables else raters
    lengths = np.array([[len(curve), len(table)] for curve, table in zip(curves, tables, strict=True)]).reshape(-1, 2)
    clips_T = np.arange(lengths.max(initial=1))
    mask_VT, labelled_VT = clips_T < lengths[:, :1], clips_T < lengths[:, 1:]
    saliency_VT = np.zeros(mask_VT.shape)
    saliency_VT[mask_VT] = np.concatenate([np.zeros(0), *curves])
    labels_VTR = np.zeros((*mask_VT.shape, raters))
    labels_VTR[labelled_VT] = np.concatenate([np.zeros((0, raters)), *tables])
    return saliency_VT, mask_VT, labels_VTR, labelled_VT


def _check_video(video: int, curve: Floats, table: Floats, *, raters: int) -> None:
    if table.ndim != 2 or table.shape[1] != raters or not table.size:
        raise ValueError(
            f"video {video}: expected labels for at least one clip and of the same raters as the first video's, "
            f"got shape {table.shape} where the first video has {raters} in the last dimension"
        )
    shortest = max(len(table) - CLIPS_SHORT, 1)
    if curve.ndim != 1 or not shortest <= len(curve) <= len(table):
        raise ValueError(
            f"video {video}: expected one saliency per clip, {shortest} to {len(table)} of them for {len(table)} "
            f"labelled clips, got shape {curve.shape}; cut videos for both into clips of the same length"
        )
    for name, values in (("saliency", curve), ("labels", table)):
        if missing := int(np.isnan(values).sum()):
            raise ValueError(f"video {video}: expected numbers, got NaN for {missing} of {values.size} {name}")
