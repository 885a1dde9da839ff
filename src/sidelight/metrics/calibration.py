"""Calibration: the reliability of scores, and the score below which the answer is "no such moment".

Reliability compares the score of each query's best moment with how often moments of that score are right. A query has
no moment in its video if its annotation has no window. The answer is "no such moment" if the best score is below a
threshold. Choose the threshold on validation data and report it on other data.

Legend: Q queries, N bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sidelight.core import spans
from sidelight.data.annotations import Annotation, AnnotationError, Submission
from sidelight.metrics.pairing import pair

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best moment of each query."""

    score_Q: Floats
    """Its score; 0 if nothing was predicted."""
    right_Q: Bools
    """True if its IoU with a true window reaches the threshold."""
    present_Q: Bools
    """True if the video has a moment for the query."""


def best_moments(submissions: Sequence[Submission], annotations: Sequence[Annotation], *, iou: float = 0.5) -> Best:
    """Return the moment with the highest score of each query, and whether it is right.

    Args:
        submissions: predictions, in any order; their scores must lie in [0, 1].
        annotations: the ground truth; an annotation without windows means that the video has no such moment.
        iou: the lowest IoU with a true window that makes a moment right.

    Raises:
        AnnotationError: if predictions and annotations are of different queries, or a score is outside [0, 1].
    """
    score, right, present = [], [], []
    for annotation, submission in zip(annotations, pair(submissions, annotations), strict=True):
        windows = submission.pred_relevant_windows
        if windows.size and not 0 <= windows[:, 2].min() <= windows[:, 2].max() <= 1:
            raise AnnotationError(
                f"qid {annotation.qid!r}: calibration needs scores between 0 and 1, got {windows[:, 2].min():g} to "
                f"{windows[:, 2].max():g}; predict with a score that is a probability",
                side="predictions",
                qid=annotation.qid,
            )
        best = windows[np.argmax(windows[:, 2])] if len(windows) else np.zeros(3)
        true = np.asarray(annotation.relevant_windows, dtype=np.float64).reshape(-1, 2)
        score.append(best[2])
        present.append(len(true) > 0)
        right.append(len(true) > 0 and len(windows) > 0 and np.asarray(spans.iou(best[None, :2], true)).max() >= iou)
    return Best(
        score_Q=np.array(score, dtype=np.float64),
        right_Q=np.array(right, dtype=bool),
        present_Q=np.array(present, dtype=bool),
    )


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """The share of right moments in bins of similar scores. Bins without moments are nan."""

    edges: Floats
    """(N + 1,) edges of the bins, from 0 to 1."""
    count_N: npt.NDArray[np.int64]
    """Number of moments."""
    score_N: Floats
    """Mean score."""
    right_N: Floats
    """Share of right moments."""
    error: float
    """Expected calibration error: the mean gap between score and share, weighted by count (Guo et al., ICML 2017)."""


def reliability(score_Q: Floats, right_Q: Bools, *, bins: int = 10) -> Reliability:
    """Bin moments by score, and compare the mean score of each bin with its share of right moments.

    Raises:
        ValueError: if there are no scores, fewer than one bin, or scores outside [0, 1].
    """
    if bins < 1 or not score_Q.size:
        raise ValueError(f"reliability needs scores and 1 bin or more, got {score_Q.size} scores and {bins} bins")
    if not 0 <= score_Q.min() <= score_Q.max() <= 1:
        raise ValueError(f"scores must lie in [0, 1], got {score_Q.min():g} to {score_Q.max():g}")
    bin_Q = np.minimum((score_Q * bins).astype(np.int64), bins - 1)
    count_N = np.bincount(bin_Q, minlength=bins)
    divisor_N = np.where(count_N, count_N, np.nan)
    score_N = np.bincount(bin_Q, weights=score_Q, minlength=bins) / divisor_N
    right_N = np.bincount(bin_Q, weights=right_Q, minlength=bins) / divisor_N
    gap_N = np.nan_to_num(np.abs(score_N - right_N))
    return Reliability(
        edges=np.linspace(0, 1, bins + 1),
        count_N=count_N,
        score_N=score_N,
        right_N=right_N,
        error=float((gap_N * count_N).sum() / count_N.sum()),
    )


@dataclass(frozen=True, kw_only=True)
class AbsentReport:
    """The quality of the answer "no such moment" at one threshold, in shares."""

    min_score: float
    """The threshold: the answer is given if the best score is lower."""
    precision: float
    """Share of the answers that are right; nan if the answer was never given."""
    recall: float
    """Share of the queries without a moment that get the answer."""
    f1: float
    """Harmonic mean of precision and recall."""
    lost: float
    """Share of the queries with a moment that wrongly get the answer."""


def absent_report(score_Q: Floats, present_Q: Bools, min_score: float) -> AbsentReport:
    """Return precision and recall of the answer "no such moment", given if the best score is below ``min_score``.

    Raises:
        ValueError: unless there are queries with and without a moment.
    """
    _check_both_kinds(present_Q)
    rejected_Q = score_Q < min_score
    right = int((rejected_Q & ~present_Q).sum())
    precision = right / rejected_Q.sum() if rejected_Q.any() else float("nan")
    recall = right / (~present_Q).sum()
    return AbsentReport(
        min_score=float(min_score),
        precision=float(precision),
        recall=float(recall),
        f1=float(2 * right / (rejected_Q.sum() + (~present_Q).sum())),
        lost=float((rejected_Q & present_Q).sum() / present_Q.sum()),
    )


def choose_min_score(score_Q: Floats, present_Q: Bools) -> float:
    """Return the threshold with the best F1 of "no such moment"; of equal ones the lowest, which loses least.

    All thresholds between two neighbouring scores give the same answers, so one is tried for each pair: the number
    with the fewest decimals, which is easy to copy. 0 if it is best to never give the answer.

    Raises:
        ValueError: unless there are queries with and without a moment.
    """
    _check_both_kinds(present_Q)
    order = np.argsort(score_Q, kind="stable")
    score, absent = score_Q[order], ~present_Q[order]
    f1_Q = 2 * absent.cumsum() / (np.arange(1, len(score) + 1) + absent.sum())
    above_Q = np.append(score[1:], 1.0)
    # A threshold cannot separate equal scores, and cannot be above 1.
    f1_Q = np.where(above_Q > score, f1_Q, 0.0)
    best = int(np.argmax(f1_Q))
    return _between(float(score[best]), float(above_Q[best])) if f1_Q[best] > 0 else 0.0


def _between(low: float, high: float) -> float:
    """Return the number with the fewest decimals above ``low`` and at most ``high``, near their middle."""
    for decimals in range(1, 17):
        rounded = round((low + high) / 2, decimals)
        if low < rounded <= high:
            return rounded
    return high


def _check_both_kinds(present_Q: Bools) -> None:
    if present_Q.all() or not present_Q.any():
        raise ValueError(
            f"{int(present_Q.sum())} of {len(present_Q)} queries have a moment; a threshold for the answer "
            '"no such moment" needs queries of both kinds: add annotations without relevant_windows'
        )
