"""Are two results different, and how sure is a number: intervals, permutation tests, ranks over many benchmarks.

Everything starts from what each query adds to each metric (:func:`sidelight.metrics.per_query`), so that two
predictions are compared query by query. Queries of one video share its pictures and are not independent: give
``groups`` and whole videos are drawn instead. nan marks a query that does not count for a metric.

Legend: Q queries, M metrics (or methods), R resamples, V groups, B blocks (benchmark and metric).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_AT_ONCE = 1000
"""Resamples drawn at a time: bounds the memory at 1000 x Q numbers."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number and the range in which it would lie, had other queries been drawn."""

    value: float
    low: float
    high: float
    confidence: float = 0.95


def group_numbers(groups: Sequence[str] | None, queries: int) -> npt.NDArray[np.int64]:
    """(Q,) the number of each query's group; each its own without ``groups``."""
    if groups is None:
        return np.arange(queries)
    if len(groups) != queries:
        raise ValueError(f"groups must name one group for each of {queries} queries, got {len(groups)}")
    found: npt.NDArray[np.int64] = np.unique(np.asarray(groups), return_inverse=True)[1]
    return found


def bootstrap_means(
    values_QM: Floats, *, groups: Sequence[str] | None = None, resamples: int = 10_000, seed: int = 0
) -> Floats:
    """(R, M) means over queries drawn with replacement; each resample is the same draw for all metrics.

    So columns that hold two predictions (or their difference) stay paired. Efron and Tibshirani, An Introduction
    to the Bootstrap (1993), ch. 13; whole groups are drawn as in their ch. 8.

    Args:
        values_QM: what each query adds; nan where it does not count.
        groups: the group (video) of each query; without it each query is drawn for itself.
        resamples: how many draws.
        seed: of the draws.

    Raises:
        ValueError: for an empty or wrongly shaped table, or fewer than one resample.
    """
    sums_VM, counts_VM = _grouped(values_QM, groups)
    if resamples < 1:
        raise ValueError(f"resamples must be 1 or more, got {resamples}")
    rng = np.random.default_rng(seed)
    number = len(sums_VM)
    parts = []
    for first in range(0, resamples, _AT_ONCE):
        draws = min(_AT_ONCE, resamples - first)
        # How often each group is drawn: with these weights every mean is one matrix product.
        weights_RV = rng.multinomial(number, np.full(number, 1 / number), size=draws).astype(np.float64)
        counted = weights_RV @ counts_VM
        parts.append(np.divide(weights_RV @ sums_VM, counted, out=np.full(counted.shape, np.nan), where=counted > 0))
    return np.concatenate(parts)


def intervals(
    values_QM: Floats,
    *,
    groups: Sequence[str] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[Interval]:
    """The mean of each column with its bootstrap percentile interval.

    The ends are nan where all that counts for a metric lies in one group: then nothing is known of how it varies.

    Raises:
        ValueError: for a confidence outside (0, 1), and as :func:`bootstrap_means`.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    drawn_RM = bootstrap_means(values_QM, groups=groups, resamples=resamples, seed=seed)
    tail = (1 - confidence) / 2
    # A short range of lengths may be missing from a draw; such a draw says nothing of it.
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
    """(M,) two-sided p-values that the means of two paired predictions differ by chance alone.

    Under that assumption either could have come from the other model, so the sign of a query's difference (of all
    differences of a group) is flipped at random; the p-value is the share of flips whose difference of means is at
    least as large. The observed one counts as one of them, so p is never 0 (Good, Permutation Tests, 2nd ed.).

    Raises:
        ValueError: if the two tables differ in shape, or in where they are nan.
    """
    a_QM, b_QM = np.asarray(a_QM, dtype=np.float64), np.asarray(b_QM, dtype=np.float64)
    if a_QM.shape != b_QM.shape or (np.isnan(a_QM) != np.isnan(b_QM)).any():
        raise ValueError(
            f"a paired test needs the same queries on both sides, got {a_QM.shape} and {b_QM.shape} "
            "with different queries that count; compare predictions of the same annotations"
        )
    if permutations < 1:
        raise ValueError(f"permutations must be 1 or more, got {permutations}")
    sums_VM, _ = _grouped(a_QM - b_QM, groups)
    observed_M = np.abs(sums_VM.sum(0))
    # Sums of the same numbers in another order differ in the last bits; a tie must count as a tie.
    least_M = observed_M - 1e-9 * np.maximum(1.0, observed_M)
    rng = np.random.default_rng(seed)
    reached_M = np.zeros(sums_VM.shape[1])
    for first in range(0, permutations, _AT_ONCE):
        draws = min(_AT_ONCE, permutations - first)
        signs_RV = rng.integers(0, 2, size=(draws, len(sums_VM))) * 2.0 - 1.0
        reached_M += (np.abs(signs_RV @ sums_VM) >= least_M).sum(0)
    found: Floats = (1 + reached_M) / (1 + permutations)
    return found


def _grouped(values_QM: Floats, groups: Sequence[str] | None) -> tuple[Floats, Floats]:
    """(V, M) sums over the queries of each group, and how many of them count."""
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
    """p-values of several tests, raised so that together they keep the chance of a false alarm (Holm 1979)."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    raised = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    found = np.empty_like(raised)
    found[order] = raised
    return found


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (of the sample, n - 1) of one metric over runs of several seeds.

    Raises:
        ValueError: for fewer than two values: a deviation of one run is not known.
    """
    if len(values) < 2:
        raise ValueError(f"a standard deviation over seeds needs 2 runs or more, got {len(values)}")
    return float(np.mean(values)), float(np.std(values, ddof=1))


@dataclass(frozen=True, kw_only=True)
class RankTest:
    """Friedman's test over methods, with Nemenyi's comparison of each pair."""

    methods: tuple[str, ...]
    blocks: int
    """How many blocks (pairs of benchmark and metric) were complete and used."""
    mean_ranks: tuple[float, ...]
    """Of each method; 1 is best."""
    statistic: float
    """Friedman's chi-squared, corrected for ties."""
    p: float
    """Of "all methods rank alike"."""
    nemenyi: Floats
    """(M, M) p-values of each pair; 1 on the diagonal."""
    critical_difference: float
    """Mean ranks that lie further apart differ at 0.05 (Demsar, JMLR 2006)."""


def rank_test(methods: Sequence[str], ranks_BM: npt.ArrayLike) -> RankTest:
    """Friedman's and Nemenyi's tests of methods by blocks; a lower number is a better rank.

    Give ranks, or results with their sign turned so that lower is better. Each block is ranked anew, ties share
    their mean rank. Blocks that lack a method (nan) are left out: the tests are defined for complete ones.

    Needs ``sidelight[stats]`` (SciPy and scikit-posthocs).

    Raises:
        ValueError: for fewer than three methods or two complete blocks.
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
