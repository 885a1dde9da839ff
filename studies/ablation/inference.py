"""Is a difference one of the recipes? Two recipes, several training runs of each, the same queries.

What varies. A recipe does not give one result: another seed gives other weights, and other videos would give other
scores. A test of two files of predictions (``sidelight compare``) holds for those two sets of weights only. So the
unit of inference is twofold: the *training run* for what training leaves to chance, the *video* for which queries
were drawn. With the mean difference d of a metric,

    var(d) = s_1^2 / S_1 + s_2^2 / S_2     between runs: Welch, S runs of each recipe, s their deviation
           + var over videos               of the difference per query, averaged over runs first, so that it is paired

and d / sqrt(var(d)) is compared with Student's t; its degrees of freedom are Satterthwaite's, which with three runs
each are few (about 4 where the runs vary most). What varies between runs from query to query is in both terms, so
the test errs on the side of "cannot tell". Runs are not paired by their seed: it decides the order of the samples, but
two recipes soon part, and pairing would cost half of the degrees of freedom.

Its assumption: the results of the runs of one recipe are about normal. A recipe of which some runs fail altogether
has a large deviation, and then the test says nothing; look at the single runs.

With one run of either recipe the first term is unknown. Then a paired permutation test over videos is all there
is, and it is about these weights, not about the recipes.

Legend: S runs (seeds), Q queries, V videos.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from sidelight.metrics.statistics import group_numbers, permutation_test

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """First minus second of one metric, and how sure it is."""

    value: float
    low: float
    """Of the 95 % interval; nan where nothing is known of how it varies."""
    high: float
    p: float
    """Two-sided; nan likewise."""
    df: float
    """Degrees of freedom; nan for a permutation test."""
    of: Literal["recipes", "weights"]
    """What the test is about."""


def difference(
    first_SQ: Floats, second_SQ: Floats, *, groups: Sequence[str] | None = None, confidence: float = 0.95
) -> Difference:
    """Compare what each query adds to a metric over the runs of two recipes.

    Args:
        first_SQ: a row for each run, in any unit; nan where a query does not count.
        second_SQ: the same of the other recipe, of as many runs as there are.
        groups: the video of each query; each its own without it.
        confidence: of the interval.

    Raises:
        ValueError: if the two are not of the same queries.
    """
    first_SQ, second_SQ = np.atleast_2d(first_SQ), np.atleast_2d(second_SQ)
    counted_Q = ~np.isnan(first_SQ[0])
    for side in (first_SQ, second_SQ):
        if side.shape[1] != len(counted_Q) or (np.isnan(side) == counted_Q).any():
            raise ValueError("runs that are compared must be scored on the same queries")
    names = None if groups is None else [g for g, counts in zip(groups, counted_Q, strict=True) if counts]
    first_SQ, second_SQ = first_SQ[:, counted_Q], second_SQ[:, counted_Q]
    difference_Q = first_SQ.mean(0) - second_SQ.mean(0)
    value = float(difference_Q.mean())
    number_Q = group_numbers(names, len(difference_Q))
    videos = int(number_Q.max()) + 1
    if videos < 2:
        return Difference(value=value, low=math.nan, high=math.nan, p=math.nan, df=math.nan, of="recipes")
    parts = [(_video_variance(difference_Q, number_Q, videos), videos - 1)]
    if min(len(first_SQ), len(second_SQ)) < 2:
        p = float(permutation_test(first_SQ.mean(0)[:, None], second_SQ.mean(0)[:, None], groups=names)[0])
        low, high = _interval(value, parts, confidence)[:2]
        return Difference(value=value, low=low, high=high, p=p, df=math.nan, of="weights")
    parts += [(float(side.mean(1).var(ddof=1)) / len(side), len(side) - 1) for side in (first_SQ, second_SQ)]
    low, high, df, p = _interval(value, parts, confidence)
    return Difference(value=value, low=low, high=high, p=p, df=df, of="recipes")


def _video_variance(difference_Q: Floats, number_Q: npt.NDArray[np.int64], videos: int) -> float:
    """Variance of the mean over queries when whole videos are drawn (cluster-robust, of a ratio of sums)."""
    sums_V = np.bincount(number_Q, weights=difference_Q - difference_Q.mean(), minlength=videos)
    return float(videos / (videos - 1) * (sums_V**2).sum() / len(difference_Q) ** 2)


def _interval(value: float, parts: list[tuple[float, int]], confidence: float) -> tuple[float, float, float, float]:
    """Ends, degrees of freedom and two-sided p-value of a mean whose variance is a sum of (estimate, its df)."""
    from scipy import stats

    variance = sum(v for v, _ in parts)
    if variance == 0:  # the same runs on both sides, or metrics that do not vary at all
        return value, value, math.nan, 1.0 if value == 0 else 0.0
    df = variance**2 / sum(v**2 / n for v, n in parts)
    error = math.sqrt(variance)
    half = float(stats.t.ppf((1 + confidence) / 2, df)) * error
    return value - half, value + half, df, float(2 * stats.t.sf(abs(value) / error, df))
