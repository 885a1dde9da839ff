"""Score a file of predictions against a file of annotations, by the metric of their benchmark.

Reads, finds out whose annotations they are, and calls the metrics; no model, no PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sidelight.annotations import (
    Annotation,
    AnnotationError,
    Submission,
    line_of,
    read_annotations,
    read_submissions,
)
from sidelight.benchmarks import benchmark as find_benchmark
from sidelight.benchmarks import recognise
from sidelight.benchmarks.base import Metric
from sidelight.metrics import Convention, evaluate_qvhighlights, highlights, pair, per_query

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class QueryScores:
    """What each query adds to each metric, and what the queries are."""

    each: dict[str, Floats]
    """From metric to (Q,) shares between 0 and 1; nan where a query does not count."""
    qids: tuple[int | str, ...]
    queries: tuple[str, ...]
    videos: tuple[str, ...]


def evaluate_files(
    predictions: str | Path,
    annotations: str | Path,
    *,
    benchmark: str | None = None,
    convention: Convention = "sidelight",
) -> dict[str, Any]:
    """The metrics of a predictions file in percent: ``brief`` and the tables it is taken from.

    Args:
        predictions: JSONL in the QVHighlights submission form.
        annotations: the ground truth, in any form that the benchmark is published in.
        benchmark: whose; found from the file unless given.
        convention: which published script to equal, for moments and QVHighlights' highlights.

    Raises:
        AnnotationError: naming the files, and where it can the line, of what does not fit.
    """
    submissions, truth, metric = _read(predictions, annotations, benchmark)
    with _naming(predictions, annotations):
        if metric in ("tvsum", "youtube-highlights"):
            return _domain_tables(_curves(submissions, truth, metric), truth)
        return dict(evaluate_qvhighlights(submissions, truth, convention=convention))


def query_scores(
    predictions: str | Path,
    annotations: str | Path,
    *,
    benchmark: str | None = None,
    convention: Convention = "sidelight",
) -> QueryScores:
    """What each query of a predictions file adds to the metrics of :func:`evaluate_files`."""
    submissions, truth, metric = _read(predictions, annotations, benchmark)
    with _naming(predictions, annotations):
        if metric in ("tvsum", "youtube-highlights"):
            each = {name: precision_VR.mean(1) for name, precision_VR in _curves(submissions, truth, metric).items()}
        else:
            each = per_query(submissions, truth, convention=convention)
    return QueryScores(
        each=each,
        qids=tuple(a.qid for a in truth),
        queries=tuple(a.query for a in truth),
        videos=tuple(a.vid for a in truth),
    )


def _read(
    predictions: str | Path, annotations: str | Path, name: str | None
) -> tuple[list[Submission], list[Annotation], Metric]:
    """Both files, and by which metric they are scored. Files of no benchmark are in the QVHighlights form."""
    submissions = read_submissions(predictions)
    if not Path(annotations).is_file():
        raise AnnotationError(f"there is no file {annotations}; expected annotations")
    its = find_benchmark(name) if name else recognise(annotations)
    if its is None:
        return submissions, read_annotations(annotations), "qvhighlights"
    return submissions, its.read(annotations), its.metric


def _curves(
    submissions: Sequence[Submission], annotations: Sequence[Annotation], metric: Metric
) -> dict[str, npt.NDArray[np.float64]]:
    """(V, R) average precision of each video against each rater, by metric."""
    paired = pair(submissions, annotations)
    for submission, annotation in zip(paired, annotations, strict=True):
        clips, got = len(annotation.saliency_scores), submission.pred_saliency_scores.size
        if not max(clips - highlights.CLIPS_SHORT, 1) <= got <= clips:
            raise AnnotationError(
                f"pred_saliency_scores must hold one score for each of {clips} rated clips (at most "
                f"{highlights.CLIPS_SHORT} less), got {got} for qid {submission.qid!r}; predict with the clips that "
                "the benchmark rates",
                side="predictions",
                qid=submission.qid,
            )
    saliency = [s.pred_saliency_scores for s in paired]
    if metric == "tvsum":
        raters = [np.array(a.saliency_scores) for a in annotations]
        return {f"mAP@top{k}": highlights.tvsum_average_precision(saliency, raters, k) for k in (5, 15)}
    # Borderline clips (match 0) are no highlights.
    match = [np.array(a.extra.get("match", [r[0] for r in a.saliency_scores])) for a in annotations]
    return {"mAP": highlights.youtube_map(saliency, match)[:, None]}


def _domain_tables(curves: dict[str, Floats], annotations: Sequence[Annotation]) -> dict[str, Any]:
    """Percent with three decimals, as the published script prints shares with five.

    The mean over all videos, the mean of the domains' means (which papers print as the average), and each domain.
    """
    domains = np.array([str(a.extra.get("domain", "")) for a in annotations])
    names = [str(n) for n in np.unique(domains) if n]
    brief: dict[str, float] = {}
    tables: dict[str, dict[str, float]] = {name: {} for name in names}
    for metric, precision_VR in curves.items():
        # Over videos first, then over raters, as published: the order decides the last bit.
        brief[metric] = _percent(precision_VR.mean(0).mean())
        for name in names:
            tables[name][metric] = _percent(precision_VR[domains == name].mean(0).mean())
        if names:
            brief[f"{metric} mean of domains"] = _percent(
                float(np.mean([precision_VR[domains == name].mean(0).mean() for name in names]))
            )
    for name in names:
        brief |= {f"{metric} {name}": value for metric, value in tables[name].items()}
    return {"brief": brief, **tables}


def _percent(share: float) -> float:
    return float(f"{100 * round(float(share), 5):.3f}")


@contextmanager
def _naming(predictions: str | Path, annotations: str | Path) -> Iterator[None]:
    """Name the file, and the line, of rows that do not fit together."""
    try:
        yield
    except AnnotationError as error:
        files = {"predictions": predictions, "annotations": annotations}
        if error.side not in files or error.qid is None:
            raise AnnotationError(f"{predictions} against {annotations}: {error}") from None
        file = files[error.side]
        line = line_of(file, error.qid)
        other = annotations if error.side == "predictions" else predictions
        raise AnnotationError(f"{file}{f':{line}' if line else ''}: {error} (scored with {other})") from None
