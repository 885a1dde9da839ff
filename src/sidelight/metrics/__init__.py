"""Metrics, one module per task. None of them knows a model.

:func:`evaluate_qvhighlights` pairs predictions with annotations, and reports what the published scripts do.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sidelight.annotations import Annotation, AnnotationError, Submission
from sidelight.metrics import highlights, moment_retrieval
from sidelight.metrics.moment_retrieval import AP_THRESHOLDS, RECALL_THRESHOLDS, Windows

__all__ = ["Convention", "brief_metrics", "evaluate_qvhighlights"]

Convention = Literal["r2-tuning", "moment-detr"]
"""The published script whose keys and length ranges are used."""

RANGES: dict[Convention, dict[str, tuple[float, float]]] = {
    "r2-tuning": {
        "full": (-math.inf, math.inf), "long": (30, math.inf), "middle": (10, 30), "short": (0, 10)
    },
    "moment-detr": {
        "full": (-math.inf, math.inf), "long": (30, 150), "middle": (10, 30), "short": (0, 10)
    },
}  # fmt: skip
"""Seconds of the true windows counted: longer than the first number, at most the second."""


def evaluate_qvhighlights(
    submissions: Sequence[Submission],
    annotations: Sequence[Annotation],
    *,
    convention: Convention = "r2-tuning",
    clip_seconds: float = 2.0,
) -> dict[str, Any]:
    """The metrics of QVHighlights in percent, rounded to two decimals as the published scripts do.

    R1 takes the first window as listed, R5 the first five, average precision the first ten in the order of
    their scores. Saliency that is too short counts as 0 for the clips it lacks, what is too long is ignored
    (but a highest value there is a miss for HIT@1). The scripts of Moment-DETR and R2-Tuning agree wherever
    they report the same number for windows of up to 150 s; ``moment-detr`` leaves longer ones out of "long".

    What has no ground truth is left out of the result, and is not 0: the highlight metrics if the annotations
    have no saliency scores, a length range that no window has (there R2-Tuning's script repeats "full", and
    Moment-DETR's stops). A query without predicted windows counts as a miss (there both scripts stop).

    Args:
        submissions: one for each annotation, in any order.
        annotations: the ground truth.
        convention: ``r2-tuning``: with mIoU, R5, and recall from 0.3; ``moment-detr``: without.
        clip_seconds: length of the clips that the annotations' clip ids count.

    Returns:
        ``brief``, from metric to number, and the tables it is taken from: ``full``, ``long``, ``middle``,
        ``short``, ``HL-min-Fair``, ``HL-min-Good``, ``HL-min-VeryGood``.

    Raises:
        AnnotationError: if the two do not pair off, or only some rows have what is to be scored.
    """
    if convention not in RANGES:
        raise ValueError(f"convention must be one of {', '.join(map(repr, RANGES))}, got {convention!r}")
    paired = _pair(submissions, annotations)
    tables: dict[str, Any] = {}
    if _all_or_none("annotations", "relevant_windows", [(a.qid, a.relevant_windows) for a in annotations]):
        windows = moment_retrieval.pad_windows(
            [s.pred_relevant_windows for s in paired], [a.relevant_windows for a in annotations]
        )
        for name, limits in RANGES[convention].items():
            if len(part := windows.within(*limits)):
                tables[name] = _moment_table(part, convention)
    curves = _all_or_none("predictions", "pred_saliency_scores", [(s.qid, s.pred_saliency_scores.size) for s in paired])
    rated = _all_or_none("annotations", "saliency_scores", [(a.qid, a.saliency_scores) for a in annotations])
    if curves and rated:
        tables |= _highlight_tables(paired, annotations, clip_seconds)
    if not tables:
        raise AnnotationError(
            "there is nothing to score: the annotations have no relevant_windows, nor saliency_scores "
            "with predictions for them; use a split whose labels are public"
        )
    return {"brief": _brief(tables), **dict(sorted(tables.items()))}


def brief_metrics(annotations: Sequence[Annotation]) -> tuple[str, ...]:
    """The names under "brief" that these annotations can be scored by."""
    nothing = [
        Submission(
            qid=a.qid,
            query=a.query,
            vid=a.vid,
            pred_relevant_windows=np.zeros((0, 3)),
            pred_saliency_scores=np.zeros(math.ceil(a.duration)),
        )
        for a in annotations
    ]
    return tuple(evaluate_qvhighlights(nothing, annotations)["brief"])


def _pair(submissions: Sequence[Submission], annotations: Sequence[Annotation]) -> list[Submission]:
    """The submission of each annotation, in the annotations' order."""
    if not annotations:
        raise AnnotationError("there are no annotations to score against; expected at least one")
    for rows, what in ((submissions, "predictions"), (annotations, "annotations")):
        counts = Counter(row.qid for row in rows)
        if len(counts) < len(rows):
            twice = [qid for qid, count in counts.items() if count > 1]
            raise AnnotationError(f"each qid must stand once among the {what}; {_named(twice)} stand more often")
    by_qid = {s.qid: s for s in submissions}
    known = {a.qid for a in annotations}
    missing = [a.qid for a in annotations if a.qid not in by_qid]
    surplus = [s.qid for s in submissions if s.qid not in known]
    if missing or surplus:
        parts = [
            f"{len(rows)} of {of} {text} ({_named(rows)})"
            for rows, of, text in (
                (missing, len(annotations), "annotations have no prediction"),
                (surplus, len(submissions), "predictions have no annotation"),
            )
            if rows
        ]
        raise AnnotationError(
            f"predictions and annotations must be of the same queries: {', and '.join(parts)}; "
            "predict for exactly the annotations that you score against"
        )
    if others := [a.qid for a in annotations if by_qid[a.qid].vid != a.vid]:
        raise AnnotationError(
            f"{len(others)} of {len(annotations)} predictions are of another video (vid) than the annotation "
            f"of the same qid ({_named(others)}); score predictions against the annotations they are for"
        )
    return [by_qid[a.qid] for a in annotations]


def _all_or_none(what: str, name: str, rows: Sequence[tuple[int | str, Any]]) -> bool:
    """Whether all have it; an error if only some do: a mean over some would look like one over all."""
    without = [qid for qid, value in rows if not value]
    if without and len(without) < len(rows):
        raise AnnotationError(
            f"{len(without)} of {len(rows)} {what} have no {name} ({_named(without)}); "
            "all or none must have them: complete these rows, or leave them out of both files"
        )
    return not without


def _named(qids: Sequence[int | str]) -> str:
    few = ", ".join(repr(qid) for qid in qids[:3])
    return f"qid {few}" + (f" and {len(qids) - 3} more" if len(qids) > 3 else "")


def _moment_table(windows: Windows, convention: Convention) -> dict[str, Any]:
    precision_H = moment_retrieval.average_precision(windows).mean(0)
    first_Q = moment_retrieval.best_iou(windows, 1)
    table: dict[str, Any] = {
        "MR-mAP": {**_by_threshold(AP_THRESHOLDS, precision_H), "average": _percent(precision_H.mean())},
        "MR-R1": _recall(first_Q, AP_THRESHOLDS if convention == "moment-detr" else RECALL_THRESHOLDS),
    }
    if convention == "r2-tuning":
        table["MR-R5"] = _recall(moment_retrieval.best_iou(windows, 5), RECALL_THRESHOLDS)
        table = {"MR-mIoU": _percent(first_Q.mean()), **table}
    return table


def _recall(iou_Q: npt.NDArray[np.float64], thresholds: npt.NDArray[np.float64]) -> dict[str, float]:
    return _by_threshold(thresholds, (iou_Q[:, None] >= thresholds).mean(0))


def _by_threshold(thresholds: npt.NDArray[np.float64], shares: npt.NDArray[np.float64]) -> dict[str, float]:
    return {f"{t:g}": _percent(share) for t, share in zip(thresholds, shares, strict=True)}


def _highlight_tables(
    submissions: Sequence[Submission], annotations: Sequence[Annotation], clip_seconds: float
) -> dict[str, Any]:
    ratings_QTR, clips_QT = _ratings(annotations, clip_seconds)
    saliency_QT1, predicted_QT = moment_retrieval.pad([s.pred_saliency_scores for s in submissions], width=1)
    longest = max(clips_QT.shape[1], predicted_QT.shape[1])
    saliency_QT = _widen(saliency_QT1[..., 0], longest)
    predicted_QT, clips_QT, ratings_QTR = (_widen(a, longest) for a in (predicted_QT, clips_QT, ratings_QTR))
    tables = {}
    for name, least in highlights.LEVELS.items():
        positive_QTR = ratings_QTR >= least
        tables[f"HL-min-{name}"] = {
            "HL-mAP": _percent(highlights.average_precision(saliency_QT, clips_QT, positive_QTR).mean()),
            "HL-Hit1": _percent(highlights.hit_at_1(saliency_QT, predicted_QT, positive_QTR).mean()),
        }
    return tables


def _ratings(
    annotations: Sequence[Annotation], clip_seconds: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """(Q, T, R) ratings, 0 for clips that nobody rated, and the (Q, T) mask of the videos' whole clips."""
    raters = {len(a.saliency_scores[0]) for a in annotations}
    if len(raters) > 1:
        raise AnnotationError(
            f"all annotations must have the same number of raters, got {sorted(raters)}; score them apart"
        )
    rows = np.repeat(np.arange(len(annotations)), [len(a.relevant_clip_ids) for a in annotations])
    clips = np.concatenate([a.relevant_clip_ids for a in annotations])
    whole = (np.array([a.duration for a in annotations]) / clip_seconds).astype(np.int64)
    # A rated clip that the end of the video cuts short counts too.
    counts = np.maximum(whole, [max(a.relevant_clip_ids) + 1 for a in annotations])
    mask = np.arange(counts.max()) < counts[:, None]
    ratings = np.zeros((*mask.shape, raters.pop()))
    ratings[rows, clips] = np.concatenate([a.saliency_scores for a in annotations])
    return ratings, mask


def _widen(values: npt.NDArray[Any], longest: int) -> npt.NDArray[Any]:
    """Zeros (False) after the end of axis 1."""
    return np.pad(values, [(0, longest - n if axis == 1 else 0) for axis, n in enumerate(values.shape)])


def _brief(tables: Mapping[str, Any]) -> dict[str, float]:
    """One number per metric: moments sorted by name, then highlights by level."""
    moments: dict[str, float] = {}
    for name in ("full", "long", "middle", "short"):
        if table := tables.get(name):
            moments[f"MR-{name}-mAP"] = table["MR-mAP"]["average"]
            if "MR-mIoU" in table:
                moments[f"MR-{name}-mIoU"] = table["MR-mIoU"]
    if full := tables.get("full"):
        chosen = {"mAP": ("0.5", "0.75"), "R1": ("0.3", "0.5", "0.7"), "R5": ("0.3", "0.5", "0.7")}
        for metric, thresholds in chosen.items():
            values = full.get(f"MR-{metric}", {})
            moments |= {f"MR-full-{metric}@{t}": values[t] for t in thresholds if t in values}
    levels = {
        f"HL-min-{level}-{metric}": tables[f"HL-min-{level}"][f"HL-{metric}"]
        for level in highlights.LEVELS
        if f"HL-min-{level}" in tables
        for metric in ("mAP", "Hit1")
    }
    return {**dict(sorted(moments.items())), **levels}


def _percent(share: float) -> float:
    """To two decimals by way of the text, which is how the published scripts round."""
    return float(f"{100 * share:.2f}")
