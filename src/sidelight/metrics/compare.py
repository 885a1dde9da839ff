"""Comparison of two predictions for the same annotations, query by query: differences, intervals and p-values.

Legend: Q queries, M metrics; ``a`` is the first prediction, ``b`` the second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sidelight.metrics.statistics import Interval, holm, intervals, permutation_test

Floats = npt.NDArray[np.float64]
Verdict = Literal["first", "second", "no difference"]

SIGNIFICANT = 0.05
"""Adjusted p-value below which a difference is significant."""


@dataclass(frozen=True, kw_only=True)
class MetricDifference:
    """One metric of both predictions, in percent."""

    metric: str
    queries: int
    """Number of queries that count for the metric."""
    first: float
    second: float
    difference: Interval
    """First minus second, with its paired bootstrap interval."""
    p: float
    """p-value of the paired permutation test."""
    p_adjusted: float
    """The p-value, adjusted for the number of metrics (Holm)."""

    @property
    def verdict(self) -> Verdict:
        """Return the better prediction, or ``no difference`` unless the adjusted p-value is below 0.05."""
        if self.p_adjusted >= SIGNIFICANT:
            return "no difference"
        return "first" if self.difference.value > 0 else "second"


@dataclass(frozen=True, kw_only=True)
class Wins:
    """The number of queries for which each prediction is better, by one metric."""

    metric: str
    first: int
    second: int
    equal: int


@dataclass(frozen=True, kw_only=True)
class QueryDifference:
    """One query, and the value of each prediction for it, in percent."""

    qid: int | str
    query: str
    first: float
    second: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The result of :func:`compare`."""

    names: tuple[str, str]
    """Names of the predictions."""
    metrics: tuple[MetricDifference, ...]
    wins: tuple[Wins, ...]
    """One for each metric that has many values per query: average precision, IoU."""
    largest: tuple[QueryDifference, ...]
    """The queries with the largest difference, by :attr:`decided_by`."""
    decided_by: str
    """The metric that orders ``largest``."""
    groups: int
    """Number of groups that were drawn and flipped together."""
    grouped_by: Literal["video", "query"]
    """What a group is: the queries of one video, or a single query."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with the verdicts."""
        values: dict[str, Any] = asdict(self)
        for row, metric in zip(values["metrics"], self.metrics, strict=True):
            row["verdict"] = metric.verdict
            for end in ("low", "high"):  # nan (all queries are of one video) is not valid JSON
                if np.isnan(row["difference"][end]):
                    row["difference"][end] = None
        return values


def compare(
    first: Mapping[str, Floats],
    second: Mapping[str, Floats],
    *,
    qids: Sequence[int | str],
    queries: Sequence[str],
    videos: Sequence[str] | None,
    names: tuple[str, str] = ("first", "second"),
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
    largest: int = 5,
) -> Comparison:
    """Compare the values of each query for each metric under two predictions.

    Args:
        first: from metric to (Q,) shares between 0 and 1, nan for a query that does not count.
        second: the same for the second prediction.
        qids: of each query.
        queries: their sentences.
        videos: their videos; queries of one video are drawn and flipped together. None to treat queries as independent.
        names: names of the two predictions.
        resamples: number of draws of the bootstrap, and of flips of the permutation test.
        confidence: of the intervals.
        seed: of both.
        largest: number of single queries to list.

    Raises:
        ValueError: if the two have different metrics, or are of different queries.
    """
    if set(first) != set(second):
        unshared = sorted(set(first) ^ set(second))
        raise ValueError(
            f"the two predictions can be scored by different metrics ({', '.join(unshared)} only for one of them); "
            "both need the same fields"
        )
    if resamples < 1:
        raise ValueError(f"resamples must be 1 or more, got {resamples}")
    metrics = list(first)
    a_QM, b_QM = (np.stack([side[name] for name in metrics], axis=1) for side in (first, second))
    p_M = permutation_test(a_QM, b_QM, groups=videos, permutations=resamples, seed=seed)
    differences = intervals(100 * (a_QM - b_QM), groups=videos, confidence=confidence, resamples=resamples, seed=seed)
    a_M, b_M = 100 * np.nanmean(a_QM, axis=0), 100 * np.nanmean(b_QM, axis=0)
    adjusted_M = holm(p_M)
    rows = tuple(
        MetricDifference(
            metric=name,
            queries=int((~np.isnan(a_QM[:, i])).sum()),
            first=float(a_M[i]),
            second=float(b_M[i]),
            difference=differences[i],
            p=float(p_M[i]),
            p_adjusted=float(adjusted_M[i]),
        )
        for i, name in enumerate(metrics)
    )
    fine = [name for name in metrics if name.endswith(("-mAP", "-mIoU")) or name == "mAP"]
    decided_by = next((name for name in ("MR-full-mIoU", "MR-full-mAP") if name in metrics), (fine or metrics)[0])
    a_Q, b_Q = 100 * first[decided_by], 100 * second[decided_by]
    order = np.argsort(-np.nan_to_num(np.abs(a_Q - b_Q)), kind="stable")[:largest]
    return Comparison(
        names=names,
        metrics=rows,
        wins=tuple(_wins(name, first[name], second[name]) for name in fine or metrics),
        largest=tuple(
            QueryDifference(qid=qids[i], query=queries[i], first=float(a_Q[i]), second=float(b_Q[i]))
            for i in order
            if a_Q[i] != b_Q[i]
        ),
        decided_by=decided_by,
        groups=len(set(videos)) if videos else len(qids),
        grouped_by="video" if videos else "query",
    )


def _wins(metric: str, a_Q: Floats, b_Q: Floats) -> Wins:
    # Values that differ only in the last bits are equal.
    difference = np.round(a_Q - b_Q, 9)
    return Wins(
        metric=metric,
        first=int((difference > 0).sum()),
        second=int((difference < 0).sum()),
        equal=int((difference == 0).sum()),
    )
