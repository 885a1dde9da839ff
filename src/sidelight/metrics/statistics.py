"""Statistics of results: bootstrap intervals, paired permutation tests, ranks over many benchmarks.

All functions but the rank test take the value of each query for each metric
(:func:`sidelight.metrics.qvhighlights.per_query`), so that two predictions are compared query by query. Queries of one
video share its frames and are not independent: with ``groups``, whole videos are drawn. nan marks a query that does
not count for a metric.

Legend: Q queries, M metrics (or methods), R resamples, V groups, B blocks (benchmark and metric).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_AT_ONCE = 1000
"""Number of resamples drawn at a time; limits the memory to 1000 x Q numbers."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number and its confidence interval over draws of the queries."""

    value: float
    low: float
    high: float
    confidence: float = 0.95
    """Probability that an interval made this way contains the true number."""


def group_numbers(groups: Sequence[str] | None, queries: int) -> npt.NDArray[np.int64]:
    """Return the number of the group of each query, (Q,); without ``groups``, each query is a group of its own.

    Raises:
        ValueError: unless ``groups`` has one name per query.
    """
    if groups is None:
        return np.arange(queries)
    if len(groups) != queries:
        raise ValueError(f"groups must name one group for each of {queries} queries, got {len(groups)}")
    number_Q: npt.NDArray[np.int64] = np.unique(np.asarray(groups), return_inverse=True)[1]
    return number_Q


def bootstrap_means(
    values_QM: Floats, *, groups: Sequence[str] | None = None, resamples: int = 10_000, seed: int = 0
) -> Floats:
    """Return means over queries drawn with replacement, (R, M).

    Each resample is the same draw for all metrics, so that columns of two predictions (or of their difference) stay
    paired. Efron and Tibshirani, An Introduction to the Bootstrap (1993), ch. 13; whole groups are drawn as in ch. 8.

    Args:
        values_QM: the value of each query; nan for a query that does not count.
        groups: the group (video) of each query; without it each query is drawn on its own.
        resamples: number of draws.
        seed: of the draws.

    Raises:
        ValueError: for an empty or wrongly shaped table, or fewer than one resample.
    """
    sums_VM, counts_VM = _grouped(values_QM, groups)
    if resamples < 1:
        raise ValueError(f"resamples must be 1 or more, got {resamples}")
    rng = np.random.default_rng(seed)
    groups_count = len(sums_VM)
    parts = []
    for first in range(0, resamples, _AT_ONCE):
        draws = min(_AT_ONCE, resamples - first)
        # The weights are how often each group is drawn. With them, all means are one matrix product.
        shares = np.full(groups_count, 1 / groups_count)
        weights_RV = rng.multinomial(groups_count, shares, size=draws).astype(np.float64)
        counts_RM = weights_RV @ counts_VM
        means_RM = np.full(counts_RM.shape, np.nan)
        parts.append(np.divide(weights_RV @ sums_VM, counts_RM, out=means_RM, where=counts_RM > 0))
    return np.concatenate(parts)


def intervals(
    values_QM: Floats,
    *,
    groups: Sequence[str] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[Interval]:
    """Return the mean of each column with its bootstrap percentile interval.

    The ends are nan if only one group counts for a metric, because one group does not show how the mean varies.

    Raises:
        ValueError: for a confidence outside (0, 1), and as :func:`bootstrap_means`.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    drawn_RM = bootstrap_means(values_QM, groups=groups, resamples=resamples, seed=seed)
    tail = (1 - confidence) / 2
    # A draw may contain no query that counts for a metric; such a draw is nan and is ignored.
    low_M, high_M = np.nanquantile(drawn_RM, [tail, 1 - tail], axis=0)
    alone_M = (_grouped(values_QM, groups)[1] > 0).sum(0) < 2
    low_M[alone_M] = high_M[alone_M] = np.nan
    return [
        Interval(value=float(v), low=float(a), high=float(b), confidence=confidence)
        for v, a, b in zip(np.nanmean(values_QM, axis=0), low_M, high_M, strict=True)
    ]


def permutation_test(
    a_QM: Floats,
    b_QM: Floats,
    *,
    groups: Sequence[str] | None = None,
    permutations: int = 10_000,
    seed: int = 0,
) -> Floats:
    """Return two-sided p-values of the null hypothesis that two paired predictions are equally good, (M,).

    Under this hypothesis, each prediction could have come from the other model. So the signs of the differences are
    flipped at random, together for the queries of a group. The p-value is the share of flips whose difference of means
    is at least as large as the observed one. The observed one is counted too, so p is never 0 (Good, Permutation
    Tests, 2nd ed.).

    Raises:
        ValueError: if the two tables differ in shape, or in where they are nan.
    """
    a_QM, b_QM = np.asarray(a_QM, dtype=np.float64), np.asarray(b_QM, dtype=np.float64)
    if a_QM.shape != b_QM.shape or (np.isnan(a_QM) != np.isnan(b_QM)).any():
        raise ValueError(
            f"a paired test needs the same queries on both sides, got {a_QM.shape} and {b_QM.shape} "
            "with different queries that count; compare predictions for the same annotations"
        )
    if permutations < 1:
        raise ValueError(f"permutations must be 1 or more, got {permutations}")
    sums_VM, _ = _grouped(a_QM - b_QM, groups)
    observed_M = np.abs(sums_VM.sum(0))
    # Sums of the same numbers in another order differ in the last bits, but must count as equal.
    least_M = observed_M - 1e-9 * np.maximum(1.0, observed_M)
    rng = np.random.default_rng(seed)
    reached_M = np.zeros(sums_VM.shape[1])
    for first in range(0, permutations, _AT_ONCE):
        draws = min(_AT_ONCE, permutations - first)
        signs_RV = rng.integers(0, 2, size=(draws, len(sums_VM))) * 2.0 - 1.0
        reached_M += (np.abs(signs_RV @ sums_VM) >= least_M).sum(0)
    p_M: Floats = (1 + reached_M) / (1 + permutations)
    return p_M


def _grouped(values_QM: Floats, groups: Sequence[str] | None) -> tuple[Floats, Floats]:
    """Return the sums over the queries of each group, and the numbers of queries that count, each (V, M)."""
    values_QM = np.asarray(values_QM, dtype=np.float64)
    if values_QM.ndim != 2 or not values_QM.size:
        raise ValueError(
            f"values must be a table of (queries, metrics) with at least one of each, got {values_QM.shape}"
        )
    counted_QM = ~np.isnan(values_QM)
    if not counted_QM.any(0).all():
        raise ValueError("each metric needs at least one query that counts; leave out columns of nan")
    number_Q = group_numbers(groups, len(values_QM))
    sums_VM = np.zeros((number_Q.max() + 1, values_QM.shape[1]))
    counts_VM = np.zeros_like(sums_VM)
    np.add.at(sums_VM, number_Q, np.where(counted_QM, values_QM, 0.0))
    np.add.at(counts_VM, number_Q, counted_QM)
    return sums_VM, counts_VM


def holm(p_values: npt.ArrayLike) -> Floats:
    """Return p-values adjusted for several tests, so that the chance of any false alarm is kept (Holm 1979)."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    raised = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    adjusted = np.empty_like(raised)
    adjusted[order] = raised
    return adjusted


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation (of the sample, n - 1) of one metric over runs with several seeds.

    Raises:
        ValueError: for fewer than two values, which have no deviation.
    """
    if len(values) < 2:
        raise ValueError(f"a standard deviation over seeds needs 2 runs or more, got {len(values)}")
    return float(np.mean(values)), float(np.std(values, ddof=1))


@dataclass(frozen=True, kw_only=True)
class RankTest:
    """The result of Friedman's test over methods, with Nemenyi's comparison of each pair."""

    methods: tuple[str, ...]
    blocks: int
    """Number of complete blocks (pairs of benchmark and metric), which were used."""
    mean_ranks: tuple[float, ...]
    """Mean rank of each method; 1 is best."""
    statistic: float
    """Friedman's chi-squared, corrected for ties."""
    p: float
    """p-value of the hypothesis that all methods rank equally."""
    nemenyi: Floats
    """(M, M) p-values of each pair; 1 on the diagonal."""
    critical_difference: float
    """Smallest difference of mean ranks that is significant at 0.05 (Demsar, JMLR 2006)."""


def rank_test(methods: Sequence[str], ranks_BM: npt.ArrayLike) -> RankTest:
    """Test with Friedman's and Nemenyi's tests whether methods rank differently over blocks.

    Ties share their mean rank. Blocks without all methods (nan) are left out, because the tests need complete blocks.
    Needs ``sidelight[stats]`` (SciPy and scikit-posthocs).

    Args:
        methods: their names.
        ranks_BM: ranks, or results where lower is better; each block is ranked again.

    Raises:
        ValueError: for fewer than three methods or two complete blocks, or if a package is missing.
    """
    try:
        import scikit_posthocs
        from scipy import stats
    except ImportError:
        raise ValueError('rank tests need more packages: pip install "sidelight[stats]"') from None
    table = np.asarray(ranks_BM, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != len(methods):
        raise ValueError(f"ranks must be (blocks, {len(methods)} methods), got {table.shape}")
    table = table[~np.isnan(table).any(1)]
    if len(methods) < 3 or len(table) < 2:
        raise ValueError(
            "rank tests need 3 methods and 2 complete blocks or more, "
            f"got {len(methods)} methods and {len(table)} complete blocks"
        )
    count, blocks = len(methods), len(table)
    ranked = stats.rankdata(table, axis=1)
    statistic, p = stats.friedmanchisquare(*table.T)
    pairs = np.array(scikit_posthocs.posthoc_nemenyi_friedman(ranked), dtype=np.float64)
    spread = stats.studentized_range.ppf(0.95, count, np.inf) / np.sqrt(2)
    return RankTest(
        methods=tuple(methods),
        blocks=blocks,
        mean_ranks=tuple(float(r) for r in ranked.mean(0)),
        statistic=float(statistic),
        p=float(p),
        nemenyi=pairs,
        critical_difference=float(spread * np.sqrt(count * (count + 1) / (6 * blocks))),
    )
