"""Scoring of a predictions file against a file of annotations, by the metric of their benchmark.

This module reads the files, recognises their benchmark and calls the metrics. It needs no model and no PyTorch.

Legend: Q queries, V videos, R raters.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sidelight.core.timeline import same_length
from sidelight.data.annotations import (
    CLIP_SECONDS,
    Annotation,
    AnnotationError,
    Submission,
    line_of,
    read_annotations,
    read_submissions,
)
from sidelight.data.datasets import benchmark as benchmark_named
from sidelight.data.datasets import recognise
from sidelight.data.datasets.base import Metric
from sidelight.data.labels import CLIPS_SHORT
from sidelight.metrics import highlights
from sidelight.metrics.calibration import Best, best_moments
from sidelight.metrics.pairing import pair
from sidelight.metrics.qvhighlights import Convention, brief_metrics, evaluate_qvhighlights, per_query

Floats = npt.NDArray[np.float64]

HIGHLIGHT_METRICS = ("tvsum", "youtube-highlights")
"""Metrics of a highlight curve, without moments."""
_OWN: Metric = "qvhighlights"
"""The metric of own data, which is in the form of QVHighlights."""


class EvaluationWarning(UserWarning):
    """The warning that the files are probably not the ones, or not in the form, that the user means to score."""


@dataclass(frozen=True, kw_only=True)
class QueryScores:
    """The value of each query for each metric, and the queries."""

    each: dict[str, Floats]
    """From metric to (Q,) shares between 0 and 1; nan for a query that does not count."""
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
    """Return the metrics of a predictions file in percent: ``brief``, and the tables with all numbers.

    Args:
        predictions: JSONL in the QVHighlights submission form.
        annotations: the ground truth, in any released form of the benchmark.
        benchmark: its name; recognised from the file unless given.
        convention: the published script to follow, for moments and the highlights of QVHighlights.

    Raises:
        AnnotationError: if the files do not fit; names them, and the line if one row is wrong.
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
    """Return the metrics of predictions in memory, in percent: ``brief``, and the tables with all numbers.

    Raises:
        AnnotationError: if predictions and annotations do not fit.
    """
    if metric in HIGHLIGHT_METRICS:
        return _domain_tables(_precision(submissions, annotations, metric), annotations)
    seconds = clip_seconds_of(annotations)
    return evaluate_qvhighlights(submissions, annotations, convention=convention, clip_seconds=seconds)


def metric_names(annotations: Sequence[Annotation], metric: Metric = "qvhighlights") -> tuple[str, ...]:
    """Return the names in "brief" of the metrics that these annotations can be scored by."""
    if metric not in HIGHLIGHT_METRICS:
        return brief_metrics(annotations, clip_seconds=clip_seconds_of(annotations))
    _, domains = _domains(annotations)
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
    """Return the value of each query of a predictions file for the metrics of :func:`evaluate_files`.

    Arguments and errors are those of :func:`evaluate_files`.
    """
    submissions, truth, metric = _read(predictions, annotations, benchmark)
    with _naming(predictions, annotations):
        if metric in HIGHLIGHT_METRICS:
            each = {name: values.mean(1) for name, values in _precision(submissions, truth, metric).items()}
            domain_V, domains = _domains(truth)
            each |= {
                f"{name} {domain}": np.where(domain_V == domain, precision_V, np.nan)
                for domain in domains
                for name, precision_V in each.items()
            }
        else:
            submissions, truth = _with_moments(submissions, truth, annotations)
            each = per_query(submissions, truth, convention=convention, clip_seconds=clip_seconds_of(truth))
    return QueryScores(
        each=each,
        qids=tuple(a.qid for a in truth),
        queries=tuple(a.query for a in truth),
        videos=tuple(a.vid for a in truth),
    )


def best_moments_of(predictions: str | Path, annotations: str | Path, *, iou: float = 0.5) -> Best:
    """Return the best moment of each query of two files; see :func:`sidelight.metrics.calibration.best_moments`."""
    submissions, truth, _ = _read(predictions, annotations, None)
    with _naming(predictions, annotations):
        return best_moments(submissions, truth, iou=iou)


def clip_seconds_of(annotations: Sequence[Annotation]) -> float:
    """Return the seconds of the clips that the ratings count: the field of the rows, else 2 s.

    Raises:
        AnnotationError: if the rows differ, or the field is not a number of seconds.
    """
    lengths = {a.clip_seconds: a.qid for a in reversed(annotations)}
    length = annotations[0].clip_seconds
    if len(lengths) > 1:
        raise AnnotationError(
            f"{CLIP_SECONDS} must be the same number of seconds in all rows, got {', '.join(map(repr, lengths))}",
            side="annotations",
            qid=next(qid for value, qid in lengths.items() if value != length),
        )
    return length


# --- reading ----------------------------------------------------------------------------------------------


def _read(
    predictions: str | Path, annotations: str | Path, name: str | None
) -> tuple[list[Submission], list[Annotation], Metric]:
    """Return the rows of both files, and the metric. Files of no benchmark are in the QVHighlights form."""
    submissions = read_submissions(predictions)
    if Path(annotations).is_dir():
        raise AnnotationError(f"{annotations} is a folder; give the file of annotations in it")
    if not Path(annotations).is_file():
        raise AnnotationError(f"there is no file {annotations}; expected annotations")
    recognised = recognise(annotations)
    benchmark = benchmark_named(name) if name else recognised
    if recognised is not None and benchmark is not recognised:
        message = f"{annotations} looks like {recognised.title}, but is scored as {name}"
        warnings.warn(message, EvaluationWarning, stacklevel=4)
    if benchmark is None:
        truth, metric = read_annotations(annotations), _OWN
    else:
        truth, metric = benchmark.read(annotations), benchmark.metric
        suffix = benchmark.vid_suffix
        submissions = [replace(s, vid=s.vid.removesuffix(suffix)) if suffix else s for s in submissions]
    _warn_of_unusual_windows(predictions, submissions, {a.qid: a.duration for a in truth})
    return submissions, truth, metric


def _with_moments(
    submissions: list[Submission], annotations: list[Annotation], path: str | Path
) -> tuple[list[Submission], list[Annotation]]:
    """Leave out the queries without a moment, which these metrics do not allow, and warn of their number."""
    absent = {a.qid for a in annotations if not a.relevant_windows and not a.saliency_scores}
    if not absent or len(absent) == len(annotations):
        return submissions, annotations
    message = (
        f"{path}: {len(absent)} of {len(annotations)} queries have no moment and are left out of these metrics; "
        "sidelight calibrate scores them"
    )
    warnings.warn(message, EvaluationWarning, stacklevel=4)
    return [s for s in submissions if s.qid not in absent], [a for a in annotations if a.qid not in absent]


def _warn_of_unusual_windows(
    path: str | Path, submissions: Sequence[Submission], durations: Mapping[int | str, float]
) -> None:
    """Warn of windows outside their video, and of windows that are not listed best first."""
    outside = unsorted = 0
    for s in submissions:
        windows = s.pred_relevant_windows
        duration = durations.get(s.qid, np.inf)
        outside += bool(((windows[:, 0] >= duration) | (windows[:, 1] <= 0)).any())
        unsorted += bool((np.diff(windows[:, 2]) > 0).any())
    for count, problem in (
        (outside, "predict windows outside their video; are they in seconds?"),
        (unsorted, "do not list the best window first, but R1 takes the first and R5 the first five as listed"),
    ):
        if count:
            message = f"{path}: {count} of {len(submissions)} predictions {problem}"
            warnings.warn(message, EvaluationWarning, stacklevel=5)


@contextmanager
def _naming(predictions: str | Path, annotations: str | Path) -> Iterator[None]:
    """Add the file, and the line of the first wrong row, to an error about rows that do not fit."""
    try:
        yield
    except AnnotationError as error:
        files = {"predictions": predictions, "annotations": annotations}
        if error.side not in files or error.qid is None:
            raise AnnotationError(f"{predictions} against {annotations}: {error}") from None
        file = files.pop(error.side)
        (other_file,) = files.values()
        line = line_of(file, error.qid)
        raise AnnotationError(f"{file}{f':{line}' if line else ''}: {error} (scored with {other_file})") from None


# --- highlight curves -------------------------------------------------------------------------------------


def _precision(
    submissions: Sequence[Submission], annotations: Sequence[Annotation], metric: Metric
) -> dict[str, Floats]:
    """Return (V, R) average precision of each video against each rater, by metric."""
    paired = pair(submissions, annotations)
    for submission, annotation in zip(paired, annotations, strict=True):
        _check_curve(submission, annotation)
    saliency = [s.pred_saliency_scores for s in paired]
    if metric == "tvsum":
        seconds = clip_seconds_of(annotations)
        for s in paired:
            if s.clip_seconds is not None and not same_length(s.clip_seconds, seconds):
                raise AnnotationError(
                    f"pred_saliency_scores is of clips of {s.clip_seconds:g} s, but the benchmark rates clips of "
                    f"{seconds:g} s; predict with features of those clips",
                    side="predictions",
                    qid=s.qid,
                )
        raters = [np.array(a.saliency_scores) for a in annotations]
        return {f"mAP@top{k}": highlights.tvsum_average_precision(saliency, raters, k) for k in (5, 15)}
    # Borderline clips (match 0) are no highlights.
    match = [np.array(a.extra.get("match", [r[0] for r in a.saliency_scores])) for a in annotations]
    return {"mAP": highlights.youtube_map(saliency, match)[:, None]}


def _check_curve(submission: Submission, annotation: Annotation) -> None:
    """Check that a video has ratings, and one predicted score for each rated clip."""
    clips, scores = len(annotation.saliency_scores), submission.pred_saliency_scores.size
    match = annotation.extra.get("match", annotation.saliency_scores)
    problem, side = "", "annotations"
    if not clips:
        problem = f"qid {annotation.qid!r} has no ratings (label); use the annotations as they were released"
    elif not isinstance(match, list | tuple) or len(match) != clips:
        problem = f"match must be a list of {clips} numbers, one for each label; correct it"
    elif not max(clips - CLIPS_SHORT, 1) <= scores <= clips:
        side = "predictions"
        problem = (
            f"pred_saliency_scores must hold one score for each of {clips} rated clips (at most {CLIPS_SHORT} less), "
            f"got {scores} for qid {submission.qid!r}; predict with the clips that the benchmark rates"
        )
    if problem:
        raise AnnotationError(problem, side=side, qid=annotation.qid)


def _domains(annotations: Sequence[Annotation]) -> tuple[npt.NDArray[np.str_], list[str]]:
    """Return the domain of each annotation, "" if it has none, and the sorted names of the domains."""
    domain_V = np.array([str(a.extra.get("domain", "")) for a in annotations])
    return domain_V, [str(name) for name in np.unique(domain_V) if name]


def _domain_tables(curves: dict[str, Floats], annotations: Sequence[Annotation]) -> dict[str, Any]:
    """Return the mean over all videos, the mean of the domains' means, and the mean of each domain.

    Papers print the mean of the domains' means as the average. Numbers are percent with three decimals, because the
    published script prints shares with five.
    """
    domain_V, names = _domains(annotations)
    brief: dict[str, float] = {}
    tables: dict[str, dict[str, float]] = {name: {} for name in names}
    for metric, precision_VR in curves.items():
        # Over videos first, then over raters, as published: the order decides the last bit.
        brief[metric] = _percent(precision_VR.mean(0).mean())
        means = [precision_VR[domain_V == name].mean(0).mean() for name in names]
        for name, mean in zip(names, means, strict=True):
            tables[name][metric] = _percent(mean)
        if names:
            brief[f"{metric} mean of domains"] = _percent(float(np.mean(means)))
    for name in names:
        brief |= {f"{metric} {name}": value for metric, value in tables[name].items()}
    return {"brief": brief, **tables}


def _percent(share: float) -> float:
    return float(f"{100 * round(float(share), 5):.3f}")
