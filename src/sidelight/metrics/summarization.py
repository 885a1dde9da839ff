"""Video summarization: summaries from saliency, and their agreement with the choices of people.

A video is cut into segments where its features change. The summary is the segments of the highest saliency that fit
into a share of the video's length. The F-score compares it with the summaries of several people; rank correlations
compare saliency with their ratings.

Sources: kernel temporal segmentation is that of Potapov et al. (ECCV 2014, "Category-specific video summarization",
section 3); the summary as a knapsack, also of a rater's ratings, is that of TVSum (Song et al., CVPR 2015); several
reference summaries of one video come from SumMe (Gygli et al., ECCV 2014); the mean over raters for TVSum and the
maximum for SumMe are the protocol of Zhang et al. (ECCV 2016); the rank correlations are those of Otani et al.
(CVPR 2019).

Legend: T clips, D width, M change points, S segments, R raters, N items. A segment is [start, end) in clips.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

BUDGET = 0.15
"""Usual length of a summary, as a share of the video."""


class FScore(NamedTuple):
    """The agreement of a summary with references, in shares from 0 to 1."""

    precision: float
    """Share of the summary that is in the reference."""
    recall: float
    """Share of the reference that is in the summary."""
    f: float
    """Their harmonic mean, computed for each reference before the mean or maximum over references."""


# --- segments ---------------------------------------------------------------------------------------------


def kernel_temporal_segmentation(
    features_TD: npt.ArrayLike, *, most_segments: int | None = None, penalty: float = 1.0
) -> Ints:
    """Return the change points, (M,): the first clip of each segment except the first segment.

    The features are normalised to length 1 and compared by their inner product. For each M, a dynamic program finds
    the M change points with the least scatter within segments (squared distance to the mean of the segment). M
    minimises scatter / T + penalty * M / (2 T) * (ln(T / M) + 1); of equal values, the smallest M is taken. This is the
    penalty of the paper with the factor of its authors' code, which calls ``penalty`` vmax.

    The penalty has a limit: a cut after every clip costs less than ``penalty / 2``. If features scatter by more than
    that per clip within any few segments, as noisy features do, every clip becomes a segment. In that case set
    ``most_segments``, or raise the penalty.

    Takes O(T^2 M) time and O(T^2) memory. The penalty rises with M, so the search for M ends when the penalty alone
    reaches the best sum; with ``penalty=0`` it ends when the scatter is 0.

    Args:
        features_TD: one row per clip. Rows of zeros stay zeros.
        most_segments: largest number of segments; None for the number of clips.
        penalty: a higher value gives fewer segments.

    Raises:
        ValueError: if an argument is out of range, or the features are not a finite table.
    """
    features_TD = np.asarray(features_TD, dtype=np.float64)
    if features_TD.ndim != 2:
        raise ValueError(f"features must be a table, one row per clip; got shape {features_TD.shape}")
    check_finite("features", features_TD)
    if most_segments is not None and most_segments < 1:
        raise ValueError(f"most_segments must be at least 1, or None for no limit, got {most_segments}")
    if not (math.isfinite(penalty) and penalty >= 0):
        raise ValueError(f"penalty must be a finite number of at least 0, got {penalty}")
    clips = len(features_TD)
    if clips == 0:
        return np.zeros(0, dtype=np.int64)
    scatter_TT = _scatter(features_TD)
    # cost[e] is the least scatter of the clips before e, in the current number of segments. scatter_TT[e, s] is of
    # the clips [s, e).
    cost = scatter_TT[:, 0]
    lowest, best_changes = cost[clips] / clips, 0
    starts: list[Ints] = []  # for each number of changes and each end: the start of the last segment
    for changes in range(1, min(most_segments or clips, clips)):
        price = penalty * changes / (2 * clips) * (math.log(clips / changes) + 1)
        if price >= lowest:
            break
        sums = cost + scatter_TT
        starts.append(sums.argmin(1))
        cost = np.take_along_axis(sums, starts[-1][:, None], 1)[:, 0]
        if cost[clips] / clips + price < lowest:
            lowest, best_changes = cost[clips] / clips + price, changes
    changes_M = np.zeros(best_changes, dtype=np.int64)
    end = clips
    for m in reversed(range(best_changes)):
        end = changes_M[m] = starts[m][end]
    return changes_M


def _scatter(features_TD: Floats) -> Floats:
    """Return the scatter of the clips [s, e) around their mean, (T + 1, T + 1) at [e, s]; infinite unless s < e."""
    norms_T1 = np.linalg.norm(features_TD, axis=1, keepdims=True)
    unit_TD = features_TD / np.where(norms_T1 > 0, norms_T1, 1.0)
    # Subtracting the mean of all clips does not change the scatter, and small prefix sums lose fewer digits.
    unit_TD = unit_TD - unit_TD.mean(0)
    sums = np.concatenate([np.zeros((1, unit_TD.shape[1])), unit_TD.cumsum(0)])
    squares = np.concatenate([np.zeros(1), (unit_TD**2).sum(1).cumsum()])
    products = sums @ sums.T
    squared_norms = np.diagonal(products)
    ends = np.arange(len(sums))
    lengths = ends[:, None] - ends
    # Scatter is the sum of squares, less the squared length of the sum over the number of clips.
    explained = (squared_norms[:, None] + squared_norms - 2 * products) / np.maximum(lengths, 1)
    scatter = np.maximum(squares[:, None] - squares - explained, 0.0)
    return np.where(lengths > 0, scatter, np.inf)


def segments_between(changes_M: npt.ArrayLike, clips: int) -> Ints:
    """Return the segments [start, end) between change points, (S, 2); none for a video without clips.

    Args:
        changes_M: the first clip of each segment except the first segment.
        clips: number of clips of the video.

    Raises:
        ValueError: if the change points do not rise strictly between 0 and ``clips``.
    """
    inner = np.asarray(changes_M)
    if clips < 0 or inner.ndim != 1 or (inner.size and inner.dtype.kind not in "iu"):
        raise ValueError(
            f"change points must be whole numbers in one row, and clips at least 0, "
            f"got {inner.dtype} of shape {inner.shape} and {clips} clips"
        )
    bounds = np.concatenate([[0], inner.astype(np.int64), [clips]]) if clips or inner.size else np.zeros(1, np.int64)
    if (np.diff(bounds) <= 0).any():
        raise ValueError(f"change points must rise strictly between 0 and {clips} clips, got {inner.tolist()}")
    return np.stack([bounds[:-1], bounds[1:]], axis=1)


# --- summaries --------------------------------------------------------------------------------------------


def knapsack(values_N: npt.ArrayLike, weights_N: npt.ArrayLike, capacity: int) -> Bools:
    """Return the items with the highest sum of values whose weights sum to at most the capacity, (N,) True or False.

    The result is exact, by a dynamic program over the capacity: O(N * capacity) time and memory. Items of value 0 or
    less are not chosen. Of equally good choices, the one with earlier items is returned.

    Args:
        values_N: any finite numbers.
        weights_N: whole numbers of at least 0.
        capacity: at least 0.

    Raises:
        ValueError: if an argument is out of range, or the numbers of values and weights differ.
    """
    values_N = np.asarray(values_N, dtype=np.float64)
    weights = np.asarray(weights_N)
    if values_N.ndim != 1 or weights.shape != values_N.shape:
        raise ValueError(
            f"expected one row of values and as many weights, got shapes {values_N.shape} and {weights.shape}"
        )
    check_finite("values", values_N)
    if weights.size and (weights.dtype.kind not in "iu" or weights.min() < 0):
        raise ValueError(
            f"weights must be whole numbers of at least 0, got {weights.dtype} from {weights.min()} to {weights.max()}"
        )
    if capacity < 0:
        raise ValueError(f"capacity must be at least 0, got {capacity}")
    (chosen_N,) = _knapsacks(values_N[None], weights.astype(np.int64), capacity)
    return np.asarray(chosen_N)


def _knapsacks(values_RN: Floats, weights_N: Ints, capacity: int) -> Bools:
    """Solve one knapsack for each row of values with the same weights, (R, N)."""
    capacity = min(capacity, int(weights_N.sum()))
    rows = np.arange(len(values_RN))
    best_RC = np.zeros((len(values_RN), capacity + 1))
    taken_NRC = np.zeros((len(weights_N), len(values_RN), capacity + 1), dtype=bool)
    for n, weight in enumerate(weights_N):
        if weight > capacity:
            continue
        without_RC = best_RC[:, weight:]
        with_RC = best_RC[:, : capacity + 1 - weight] + values_RN[:, n, None]
        taken_NRC[n, :, weight:] = with_RC > without_RC
        best_RC[:, weight:] = np.maximum(with_RC, without_RC)
    chosen_RN = np.zeros(values_RN.shape, dtype=bool)
    left_R = np.full(len(values_RN), capacity)
    for n in reversed(range(len(weights_N))):
        chosen_RN[:, n] = taken_NRC[n, rows, left_R]
        left_R -= weights_N[n] * chosen_RN[:, n]
    return chosen_RN


def summarize(
    saliency_T: npt.ArrayLike,
    segments: npt.ArrayLike,
    budget: float = BUDGET,
    *,
    value: Literal["mean", "sum"] = "mean",
) -> Bools:
    """Return the clips of the summary, (T,): the segments with the highest sum of values within the budget.

    As in TVSum, the value of a segment is its mean saliency; its length only counts against the budget. So several
    short segments win over one long segment of the same mean. With "sum", the value is the sum of its saliency, so a
    summary is filled with the best clips that the segments allow. A segment whose value is not above 0 is never taken:
    map a saliency that may be negative to positive numbers first. The result depends on that map.

    Args:
        saliency_T: one score per clip.
        segments: (S, 2) [start, end) in clips, from 0 to T without gaps, as ``segments_between`` returns them.
        budget: largest share of the clips in the summary, rounded down to whole clips.
        value: of a segment: the mean of its saliency (benchmarks), or the sum.

    Raises:
        ValueError: if saliency is not finite, value is neither of the two, the segments do not cover the video, or the
            budget is not a share.
    """
    saliency_T = np.asarray(saliency_T, dtype=np.float64)
    if saliency_T.ndim != 1:
        raise ValueError(f"expected one saliency per clip in one row, got shape {saliency_T.shape}")
    if value not in ("mean", "sum"):
        raise ValueError(f"value must be 'mean' or 'sum', got {value!r}")
    (summary_T,) = _summaries(saliency_T[None], segments, budget, name="saliency", mean=value == "mean")
    return np.asarray(summary_T)


def rater_summaries(raters_TR: npt.ArrayLike, segments: npt.ArrayLike, budget: float = BUDGET) -> Bools:
    """Return the summary of each rater, (R, T), made from ratings as ``summarize`` makes it from saliency.

    Errors are those of ``summarize``.
    """
    raters_TR = np.asarray(raters_TR, dtype=np.float64)
    if raters_TR.ndim != 2:
        raise ValueError(f"expected one row of ratings per clip and one column per rater, got shape {raters_TR.shape}")
    return _summaries(raters_TR.T, segments, budget, name="ratings")


def _summaries(curves_RT: Floats, segments: npt.ArrayLike, budget: float, *, name: str, mean: bool = True) -> Bools:
    clips = curves_RT.shape[1]
    check_finite(name, curves_RT)
    starts_S, lengths_S = _starts_and_lengths(segments, clips)
    if not 0 <= budget <= 1:
        raise ValueError(f"budget must be a share of the video's clips, from 0 to 1, got {budget}")
    if clips == 0:
        return np.zeros(curves_RT.shape, dtype=bool)
    # 0.29 of 100 clips is 28.999999999999996, so round before rounding down.
    capacity = math.floor(round(budget * clips, 9))
    values_RS = np.add.reduceat(curves_RT, starts_S, axis=1) / (lengths_S if mean else 1)
    return np.repeat(_knapsacks(values_RS, lengths_S, capacity), lengths_S, axis=1)


def _starts_and_lengths(segments: npt.ArrayLike, clips: int) -> tuple[Ints, Ints]:
    bounds_S2 = np.asarray(segments)
    if bounds_S2.ndim != 2 or bounds_S2.shape[1] != 2 or (bounds_S2.size and bounds_S2.dtype.kind not in "iu"):
        raise ValueError(
            f"segments must be whole numbers of clips, of shape (segments, 2), "
            f"got {bounds_S2.dtype} of shape {bounds_S2.shape}"
        )
    starts_S, ends_S = bounds_S2.astype(np.int64).T
    without_gaps = np.array_equal(np.append(starts_S, clips), np.insert(ends_S, 0, 0))
    if not without_gaps or (starts_S >= ends_S).any():
        raise ValueError(
            f"segments must follow each other without a gap from clip 0 to {clips}, the end of the video, "
            f"none empty; got {_few(bounds_S2.tolist())}"
        )
    return starts_S, ends_S - starts_S


def _few(rows: list[list[int]]) -> str:
    return ", ".join(map(str, rows[:5])) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "") if rows else "none"


# --- agreement --------------------------------------------------------------------------------------------


def f_score(summary_T: npt.ArrayLike, references_RT: npt.ArrayLike, reduce: Literal["mean", "max"] = "mean") -> FScore:
    """Return precision, recall and F of a summary against references, by the number of clips they share.

    With ``mean`` (TVSum), each of the three is a mean over the references, so F is not the harmonic mean of the other
    two. With ``max`` (SumMe), all three are of the reference with the highest F, the first of equals. If no clip is
    shared, all three are 0, also if summary or reference is empty.

    Args:
        summary_T: True for the clips of the summary.
        references_RT: True for the clips of each reference summary.
        reduce: how to combine the references.

    Raises:
        ValueError: if the two are not boolean, are of different lengths, or there is no reference.
    """
    summary_T, references_RT = np.asarray(summary_T), np.asarray(references_RT)
    if reduce not in ("mean", "max"):
        raise ValueError(f"reduce must be 'mean' or 'max', got {reduce!r}")
    if summary_T.dtype != bool or references_RT.dtype != bool:
        raise ValueError(
            f"summary and references must be True or False per clip, got {summary_T.dtype} and {references_RT.dtype}"
        )
    if summary_T.ndim != 1 or references_RT.ndim != 2 or references_RT.shape[1:] != summary_T.shape:
        raise ValueError(
            f"expected a summary of shape (clips,) and references of shape (raters, clips), "
            f"got {summary_T.shape} and {references_RT.shape}"
        )
    if not len(references_RT):
        raise ValueError("expected at least one reference, got none")
    shared_R = (references_RT & summary_T).sum(1)
    sizes_R = references_RT.sum(1)
    # A divisor is 0 only if nothing is shared.
    precision_R = shared_R / max(int(summary_T.sum()), 1)
    recall_R = shared_R / np.maximum(sizes_R, 1)
    f_R = 2 * shared_R / np.maximum(summary_T.sum() + sizes_R, 1)
    chosen = slice(None) if reduce == "mean" else [int(f_R.argmax())]
    return FScore(*(float(share_R[chosen].mean()) for share_R in (precision_R, recall_R, f_R)))


def spearman(saliency_T: npt.ArrayLike, raters_TR: npt.ArrayLike) -> float:
    """Return the mean over raters of Spearman's rank correlation of saliency with their ratings, in [-1, 1].

    Equal values share the mean of their ranks. The correlation of a constant curve is not defined; it counts as 0,
    like a random order (scipy gives NaN). A video of a single clip is such a case too.

    Args:
        saliency_T: one score per clip.
        raters_TR: the ratings.

    Raises:
        ValueError: if the numbers of clips differ, a value is not finite, or there is no clip or no rater.
    """
    saliency_T, raters_TR = _check_curves(saliency_T, raters_TR)
    ranks_T = _centred_ranks(saliency_T)
    ranks_TR = np.stack([_centred_ranks(rater_T) for rater_T in raters_TR.T], axis=1)
    return _mean_correlation(ranks_T @ ranks_TR, (ranks_T**2).sum(), (ranks_TR**2).sum(0))


def kendall(saliency_T: npt.ArrayLike, raters_TR: npt.ArrayLike) -> float:
    """Return the mean over raters of Kendall's tau-b of saliency with their ratings, in [-1, 1].

    Tau-b is the number of pairs of clips in the same order in both curves, less the number of pairs in opposite order,
    over the geometric mean of the numbers of pairs with different values in each curve. Constant curves count as in
    ``spearman``. Takes O(T^2 R) time.

    Arguments and errors are those of ``spearman``.
    """
    saliency_T, raters_TR = _check_curves(saliency_T, raters_TR)
    clips, raters = raters_TR.shape
    agreement_R, saliency_ordered, rater_ordered_R = np.zeros(raters), 0.0, np.zeros(raters)
    block = max(1, 2**20 // (clips * raters))  # limits the memory; sums of whole numbers are exact in any order
    for start in range(0, clips, block):
        signs_P = _signs(saliency_T[start : start + block], saliency_T).reshape(-1)
        signs_PR = _signs(raters_TR[start : start + block], raters_TR).reshape(-1, raters)
        agreement_R += signs_P @ signs_PR
        saliency_ordered += float((signs_P**2).sum())
        rater_ordered_R += (signs_PR**2).sum(0)
    return _mean_correlation(agreement_R, saliency_ordered, rater_ordered_R)


def _signs(part: Floats, values: Floats) -> Floats:
    """Return 1 where ``part`` is higher, -1 where lower, 0 where equal. A difference could overflow."""
    signs: Floats = (part[:, None] > values).astype(np.float64) - (part[:, None] < values)
    return signs


def _centred_ranks(values_T: Floats) -> Floats:
    """Return ranks less their mean, (T,), in exact halves; equal values share the mean of their ranks."""
    _, index_T, counts = np.unique(values_T, return_inverse=True, return_counts=True)
    ranks = counts.cumsum() - (counts - 1) / 2
    centred_T: Floats = ranks[index_T] - (len(values_T) + 1) / 2
    return centred_T


def _mean_correlation(agreement_R: Floats, saliency_square: float, rater_square_R: Floats) -> float:
    scale_R = np.sqrt(saliency_square) * np.sqrt(rater_square_R)
    correlation_R = np.where(scale_R > 0, agreement_R / np.where(scale_R > 0, scale_R, 1.0), 0.0)
    # Rounding may give a little more than 1.
    return float(np.clip(correlation_R, -1.0, 1.0).mean())


def _check_curves(saliency_T: npt.ArrayLike, raters_TR: npt.ArrayLike) -> tuple[Floats, Floats]:
    saliency_T = np.asarray(saliency_T, dtype=np.float64)
    raters_TR = np.asarray(raters_TR, dtype=np.float64)
    if saliency_T.ndim != 1 or raters_TR.ndim != 2 or len(raters_TR) != len(saliency_T) or not raters_TR.size:
        raise ValueError(
            f"expected saliency of shape (clips,) and ratings of shape (clips, raters), at least one of each, "
            f"got {saliency_T.shape} and {raters_TR.shape}"
        )
    check_finite("saliency", saliency_T)
    check_finite("ratings", raters_TR)
    return saliency_T, raters_TR


def check_finite(name: str, values: Floats) -> None:
    """Raise ValueError if a value is NaN or infinite; the message names what the values are."""
    if wrong := int((~np.isfinite(values)).sum()):
        raise ValueError(f"{name} must be finite numbers, got NaN or infinity in {wrong} of {values.size}")
