"""Score a file of predictions against a file of annotations, by the metric of their benchmark.

Reads, finds out whose annotations they are, and calls the metrics; no model, no PyTorch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sidelight.data.annotations import (
    CLIP_SECONDS,
    Annotation,
    AnnotationError,
    Submission,
    line_of,
    read_annotations,
    read_submissions,
)
from sidelight.data.datasets import benchmark as find_benchmark
from sidelight.data.datasets import recognise
from sidelight.data.datasets.base import Metric
from sidelight.data.labels import CLIPS_SHORT
from sidelight.metrics import Convention, brief_metrics, evaluate_qvhighlights, highlights, per_query
from sidelight.metrics.calibration import Best, best_moments
from sidelight.metrics.pairing import pair

Floats = npt.NDArray[np.float64]


HIGHLIGHT_METRICS = ("tvsum", "youtube-highlights")
"""Conventions that score a highlight curve and no moments."""
_OWN: Metric = "qvhighlights"
"""Own data is in the form of QVHighlights, and scored like it."""


class EvaluationWarning(UserWarning):
    """What is scored is probably not what was meant; it says what."""


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
        if metric in HIGHLIGHT_METRICS:
            if convention != "sidelight":
                raise AnnotationError(f"{annotations} has one convention only; leave out {convention!r}")
        else:
            submissions, truth = _with_moments(submissions, truth, annotations)
        return evaluate_submissions(submissions, truth, metric, convention=convention)


def evaluate_submissions(
    submissions: Sequence[Submission],
    annotations: Sequence[Annotation],
    metric: Metric = "qvhighlights",
    *,
    convention: Convention = "sidelight",
) -> dict[str, Any]:
    """The metrics of predictions at hand, in percent: ``brief`` and the tables it is taken from.

    Raises:
        AnnotationError: naming what does not fit.
    """
    if metric in HIGHLIGHT_METRICS:
        return _domain_tables(_curves(submissions, annotations, metric), annotations)
    seconds = clip_seconds_of(annotations)
    return dict(evaluate_qvhighlights(submissions, annotations, convention=convention, clip_seconds=seconds))


def metric_names(annotations: Sequence[Annotation], metric: Metric = "qvhighlights") -> tuple[str, ...]:
    """What stands under "brief" for such annotations."""
    if metric not in HIGHLIGHT_METRICS:
        return brief_metrics(annotations)
    domains = sorted({str(a.extra.get("domain", "")) for a in annotations} - {""})
    names = ("mAP@top5", "mAP@top15") if metric == "tvsum" else ("mAP",)
    means = [f"{name} mean of domains" for name in names if domains]
    return (*names, *means, *(f"{name} {domain}" for domain in domains for name in names))


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
        if metric in HIGHLIGHT_METRICS:
            each = {}
            domains = np.array([str(a.extra.get("domain", "")) for a in truth])
            curves = {name: found.mean(1) for name, found in _curves(submissions, truth, metric).items()}
            each.update(curves)
            for domain in np.unique(domains[domains != ""]):
                for name, precision_V in curves.items():
                    each[f"{name} {domain}"] = np.where(domains == domain, precision_V, np.nan)
        else:
            submissions, truth = _with_moments(submissions, truth, annotations)
            each = per_query(submissions, truth, convention=convention, clip_seconds=clip_seconds_of(truth))
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
    if Path(annotations).is_dir():
        raise AnnotationError(f"{annotations} is a folder; give the file of annotations in it")
    if not Path(annotations).is_file():
        raise AnnotationError(f"there is no file {annotations}; expected annotations")
    looks = recognise(annotations)
    its = find_benchmark(name) if name else looks
    if looks is not None and its is not looks:
        message = f"{annotations} looks like {looks.title}, but is scored as {name}"
        warnings.warn(message, EvaluationWarning, stacklevel=4)
    if its is None:
        truth, metric = read_annotations(annotations), _OWN
    else:
        truth, metric = its.read(annotations), its.metric
    _warn_of_odd_windows(predictions, submissions, {a.qid: a.duration for a in truth})
    return submissions, truth, metric


def _with_moments(
    submissions: list[Submission], annotations: list[Annotation], path: str | Path
) -> tuple[list[Submission], list[Annotation]]:
    """Without the queries that have no moment, which these metrics do not know; says how many."""
    absent = {a.qid for a in annotations if not a.relevant_windows and not a.saliency_scores}
    if not absent or len(absent) == len(annotations):
        return submissions, annotations
    message = (
        f"{path}: {len(absent)} of {len(annotations)} queries have no moment and are left out of these metrics; "
        "sidelight calibrate scores them"
    )
    warnings.warn(message, EvaluationWarning, stacklevel=4)
    return [s for s in submissions if s.qid not in absent], [a for a in annotations if a.qid not in absent]


def _warn_of_odd_windows(
    path: str | Path, submissions: Sequence[Submission], durations: Mapping[int | str, float]
) -> None:
    """Windows that are probably not meant so: outside the video, or not best first."""
    outside = unsorted = 0
    for s in submissions:
        windows = s.pred_relevant_windows
        duration = durations.get(s.qid, np.inf)
        outside += bool(len(windows)) and bool(((windows[:, 0] >= duration) | (windows[:, 1] <= 0)).any())
        unsorted += bool((np.diff(windows[:, 2]) > 0).any())
    for count, what in (
        (outside, "predict windows outside their video; are they in seconds?"),
        (unsorted, "do not list the best window first, but R1 takes the first and R5 the first five as listed"),
    ):
        if count:
            message = f"{path}: {count} of {len(submissions)} predictions {what}"
            warnings.warn(message, EvaluationWarning, stacklevel=5)


def best_moments_of(predictions: str | Path, annotations: str | Path, *, iou: float = 0.5) -> Best:
    """The best moment of each query of two files; see :func:`sidelight.metrics.calibration.best_moments`."""
    submissions, truth, _ = _read(predictions, annotations, None)
    with _naming(predictions, annotations):
        return best_moments(submissions, truth, iou=iou)


def clip_seconds_of(annotations: Sequence[Annotation]) -> float:
    """The length of the clips that the ratings count: what the rows say, else 2 s.

    Raises:
        AnnotationError: if rows differ, or say no number.
    """
    lengths = {a.extra.get(CLIP_SECONDS, 2.0): a.qid for a in reversed(annotations)}
    length = annotations[0].extra.get(CLIP_SECONDS, 2.0)
    if len(lengths) > 1 or isinstance(length, bool) or not isinstance(length, (int, float)) or not 0 < length < 1e6:
        odd = next((q for v, q in lengths.items() if v != length), annotations[0].qid)
        raise AnnotationError(
            f"{CLIP_SECONDS} must be the same number of seconds in all rows, got {', '.join(map(repr, lengths))}",
            side="annotations",
            qid=odd,
        )
    return float(length)


def _curves(
    submissions: Sequence[Submission], annotations: Sequence[Annotation], metric: Metric
) -> dict[str, npt.NDArray[np.float64]]:
    """(V, R) average precision of each video against each rater, by metric."""
    paired = pair(submissions, annotations)
    for annotation in annotations:
        if not annotation.saliency_scores:
            raise AnnotationError(
                f"qid {annotation.qid!r} has no ratings (label); use the annotations as they were released",
                side="annotations",
                qid=annotation.qid,
            )
        match = annotation.extra.get("match", annotation.saliency_scores)
        if not isinstance(match, list | tuple) or len(match) != len(annotation.saliency_scores):
            raise AnnotationError(
                f"match must be a list of {len(annotation.saliency_scores)} numbers, one for each label; correct it",
                side="annotations",
                qid=annotation.qid,
            )
    for submission, annotation in zip(paired, annotations, strict=True):
        clips, got = len(annotation.saliency_scores), submission.pred_saliency_scores.size
        if not max(clips - CLIPS_SHORT, 1) <= got <= clips:
            raise AnnotationError(
                f"pred_saliency_scores must hold one score for each of {clips} rated clips (at most "
                f"{CLIPS_SHORT} less), got {got} for qid {submission.qid!r}; predict with the clips that "
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
