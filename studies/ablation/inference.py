"""Test whether two recipes differ, from several training runs of each on the same queries.

A recipe does not give one fixed result: another seed gives other weights, and other videos would give other scores. A
test of two prediction files (``sidelight compare``) is about those two sets of weights only. This test has two units:
the *training run*, for the randomness of training, and the *video*, for the choice of queries. With the mean
difference d of a metric,

    var(d) = s_1^2 / S_1 + s_2^2 / S_2     between runs: Welch, S runs of each recipe, s their deviation
           + var over videos               of the difference per query, averaged over runs first, so that it is paired

and d / sqrt(var(d)) is compared with Student's t. Its degrees of freedom are Satterthwaite's; with three runs each
there are few (about 4 where the runs vary most). Variation between runs from query to query is in both terms, so the
test tends towards "cannot tell". Runs are not paired by seed: the seed sets the order of the samples, but two recipes
soon diverge, and pairing would cost half of the degrees of freedom.

The test assumes that the results of the runs of one recipe are about normal. If some runs of a recipe fail
completely, its deviation is large and the test shows nothing; look at the single runs then.

With only one run of either recipe, the variance between runs is unknown. The test is then a paired permutation test
over videos, which is about these weights, not about the recipes.

Legend: S runs (seeds), Q queries, V videos.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from sidelight.metrics.statistics import group_numbers, over_seeds, permutation_test

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference of one metric, first minus second, and its uncertainty."""

    value: float
    low: float
    """Lower end of the 95 % interval; nan with fewer than two videos."""
    high: float
    p: float
    """Two-sided p-value; nan with fewer than two videos."""
    df: float
    """Degrees of freedom; nan for a permutation test."""
    of: Literal["recipes", "weights"]
    """Whether the test is about the recipes or only about these weights."""


def difference(
    first_SQ: Floats, second_SQ: Floats, *, groups: Sequence[str] | None = None, confidence: float = 0.95
) -> Difference:
    """Test the difference of two recipes in one metric, from the score of each query in each run.

    Args:
        first_SQ: (S, Q) scores of the first recipe's runs, in any unit; nan where a query does not count.
        second_SQ: (S, Q) scores of the second recipe's runs; the number of runs may differ.
        groups: the video of each query; by default each query is its own group.
        confidence: confidence level of the interval.

    Raises:
        ValueError: if the two recipes were not scored on the same queries.
    """
    first_SQ, second_SQ = np.atleast_2d(first_SQ), np.atleast_2d(second_SQ)
    counted_Q = ~np.isnan(first_SQ[0])
    for scores_SQ in (first_SQ, second_SQ):
        if scores_SQ.shape[1] != len(counted_Q) or (np.isnan(scores_SQ) == counted_Q).any():
            raise ValueError("runs that are compared must be scored on the same queries")
    names = None if groups is None else [g for g, counts in zip(groups, counted_Q, strict=True) if counts]
    first_SQ, second_SQ = first_SQ[:, counted_Q], second_SQ[:, counted_Q]
    difference_Q = first_SQ.mean(0) - second_SQ.mean(0)
    value = float(difference_Q.mean())
    video_Q = group_numbers(names, len(difference_Q))
    videos = int(video_Q.max()) + 1
    if videos < 2:
        return Difference(value=value, low=math.nan, high=math.nan, p=math.nan, df=math.nan, of="recipes")
    variances = [(_video_variance(difference_Q, video_Q, videos), videos - 1)]
    if min(len(first_SQ), len(second_SQ)) < 2:
        p = float(permutation_test(first_SQ.mean(0)[:, None], second_SQ.mean(0)[:, None], groups=names)[0])
        low, high = _interval(value, variances, confidence)[:2]
        return Difference(value=value, low=low, high=high, p=p, df=math.nan, of="weights")
    for scores_SQ in (first_SQ, second_SQ):
        runs = len(scores_SQ)
        variances.append((float(scores_SQ.mean(1).var(ddof=1)) / runs, runs - 1))
    low, high, df, p = _interval(value, variances, confidence)
    return Difference(value=value, low=low, high=high, p=p, df=df, of="recipes")


def mean_and_deviation(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Return the mean and the standard deviation of the known values; None where too few are known."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return known[0] if known else None, None
    return over_seeds(known)


def _video_variance(difference_Q: Floats, video_Q: npt.NDArray[np.int64], videos: int) -> float:
    """Return the variance of the mean over queries if whole videos are drawn (cluster-robust, of a ratio of sums)."""
    sums_V = np.bincount(video_Q, weights=difference_Q - difference_Q.mean(), minlength=videos)
    return float(videos / (videos - 1) * (sums_V**2).sum() / len(difference_Q) ** 2)


def _interval(value: float, variances: list[tuple[float, int]], confidence: float) -> tuple[float, float, float, float]:
    """Return low end, high end, degrees of freedom and two-sided p-value of a mean.

    Its variance is a sum of estimates, given as (estimate, degrees of freedom).
    """
    from scipy import stats

    variance = sum(v for v, _ in variances)
    if variance == 0:  # the same runs on both sides, or a metric that does not vary
        return value, value, math.nan, 1.0 if value == 0 else 0.0
    df = variance**2 / sum(v**2 / n for v, n in variances)
    error = math.sqrt(variance)
    half = float(stats.t.ppf((1 + confidence) / 2, df)) * error
    return value - half, value + half, df, float(2 * stats.t.sf(abs(value) / error, df))
