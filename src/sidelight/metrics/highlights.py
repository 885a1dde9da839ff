"""Highlight detection: average precision and HIT@1 at Fair, Good and Very Good, as QVHighlights defines them.

The definitions are those of the published script (Lei et al., NeurIPS 2021).

TVSum and YouTube Highlights, which have no queries, are scored by another average precision: that of UMT (Liu et
al., CVPR 2022) and R2-Tuning (Liu et al., ECCV 2024). It stands below the first, as ``top_k_average_precision``.

Legend: Q queries, V videos, T clips (padded), R raters; masks are True where data is real.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sidelight.data.labels import CLIPS_SHORT

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

LEVELS = {"Fair": 2, "Good": 3, "VeryGood": 4}
"""The rating from which a clip counts as positive."""

RATERS = 20
"""How many people rated each video of TVSum."""


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


def top_k_average_precision(saliency_VT: Floats, mask_VT: Bools, positive_VTR: Bools, k: int | None = None) -> Floats:
    """(V, R) average precision among the ``k`` clips of the highest saliency, against each rater.

    Down from the best clip, the area under the line from point to point of precision over recall; the line begins
    at precision 1. Recall is of the positive clips among those ``k``, not among all: with one positive clip in the
    first five, only its rank counts. Clips of equal saliency stay in the order of time (the published script leaves
    their order open). Without a positive clip among the ``k`` it is 0.

    Args:
        saliency_VT: the prediction.
        mask_VT: the clips that have one.
        positive_VTR: what each rater found.
        k: None for all clips.

    Raises:
        ValueError: if ``k`` is less than 1.
    """
    if k is not None and k < 1:
        raise ValueError(f"k must be at least 1, or None for all clips, got {k}")
    # By the mask first, so that padding comes last also where saliency is minus infinity. Lexsort is stable.
    order_VT = np.lexsort((-saliency_VT, ~mask_VT), axis=1)[:, :k]
    positive_VTR = np.take_along_axis(positive_VTR & mask_VT[..., None], order_VT[..., None], 1)
    hits_VTR = positive_VTR.cumsum(1)
    recall_VTR = hits_VTR / np.maximum(hits_VTR[:, -1:], 1)
    precision_VTR = hits_VTR / np.arange(1, hits_VTR.shape[1] + 1)[:, None]
    # Padding is last and never positive: recall does not rise there, so it adds nothing.
    steps_VTR = np.diff(recall_VTR, axis=1, prepend=0.0)
    before_VTR = np.concatenate([np.ones_like(precision_VTR[:, :1]), precision_VTR[:, :-1]], axis=1)
    found: Floats = (steps_VTR * (before_VTR + precision_VTR) / 2).sum(1)
    return found


def tvsum_average_precision(saliency: Sequence[npt.ArrayLike], raters: Sequence[npt.ArrayLike], k: int = 5) -> Floats:
    """(V, R) average precision of each TVSum video against each rater, among the ``k`` best clips.

    A clip is positive to a rater who rated it above the median of their own ratings of this video. The median is the
    lower of the two middle ones where their number is even, and is of the whole video, also where saliency is shorter.

    The published mean is that over videos first, then over raters (``.mean(0).mean()``). The order matters only to
    the last bit, but a mean can lie that close to where it is rounded.

    Args:
        saliency: for each video (T,), or up to CLIPS_SHORT clips less.
        raters: for each video (T, R) ratings; R is 20 on TVSum.
        k: 5 in UMT and R2-Tuning; 15 is the other customary one.

    Raises:
        ValueError: if the two do not pair off, or hold NaN, or lengths or raters differ.
    """
    saliency_VT, mask_VT, ratings_VTR, rated_VT = _pad_videos(saliency, raters, raters=RATERS)
    sorted_VTR = np.sort(np.where(rated_VT[..., None], ratings_VTR, np.inf), axis=1)
    median_V11 = (rated_VT.sum(1)[:, None, None] - 1) // 2
    positive_VTR = ratings_VTR > np.take_along_axis(sorted_VTR, median_V11, 1)
    return top_k_average_precision(saliency_VT, mask_VT, positive_VTR, k)


def tvsum_map(saliency: Sequence[npt.ArrayLike], raters: Sequence[npt.ArrayLike], k: int = 5) -> Floats:
    """(V,) mean over the raters of ``tvsum_average_precision``; arguments and errors are the same."""
    found: Floats = tvsum_average_precision(saliency, raters, k).mean(1)
    return found


def youtube_map(saliency: Sequence[npt.ArrayLike], match: Sequence[npt.ArrayLike]) -> Floats:
    """(V,) average precision of each video of YouTube Highlights, over all its clips.

    Args:
        saliency: for each video (T,), or up to CLIPS_SHORT clips less.
        match: for each video (T,): 1 for a highlight, 0 for a borderline clip, -1 for none. Only above 0 is positive.

    Raises:
        ValueError: if the two do not pair off, or hold NaN, or lengths differ.
    """
    columns = [np.reshape(np.asarray(m, dtype=np.float64), (*np.shape(m), 1)) for m in match]
    saliency_VT, mask_VT, match_VT1, _ = _pad_videos(saliency, columns, raters=1)
    found: Floats = top_k_average_precision(saliency_VT, mask_VT, match_VT1 > 0)[:, 0]
    return found


def _pad_videos(
    saliency: Sequence[npt.ArrayLike], labels: Sequence[npt.ArrayLike], *, raters: int
) -> tuple[Floats, Bools, Floats, Bools]:
    """(V, T) saliency and its mask, (V, T, R) labels and their (V, T) mask; ``raters`` is R where V is 0."""
    if len(saliency) != len(labels):
        raise ValueError(
            f"saliency and labels must be of the same videos: expected as many of each, got {len(saliency)} curves "
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
    for what, values in (("saliency", curve), ("labels", table)):
        if missing := int(np.isnan(values).sum()):
            raise ValueError(f"video {video}: expected numbers, got NaN for {missing} of {values.size} {what}")
