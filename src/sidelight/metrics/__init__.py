"""Metrics, one module per task. None of them knows a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sidelight.annotations import Annotation, AnnotationError, Submission
from sidelight.metrics import highlights, moment_retrieval
from sidelight.metrics.moment_retrieval import AP_THRESHOLDS, R_THRESHOLDS, Windows

__all__ = ["evaluate_qvhighlights"]

CLIP_SECONDS = 2
"""QVHighlights' clips; its ratings are per clip of this length."""
RANGES = {"short": (0.0, 10.0), "middle": (10.0, 30.0), "long": (30.0, np.inf), "full": (0.0, np.inf)}
"""Seconds of the true windows: longer than the first, at most the second."""


def evaluate_qvhighlights(
    submissions: Sequence[Submission], annotations: Sequence[Annotation]
) -> dict[str, Any]:
    """The QVHighlights metrics, in the layout and with the rounding of the published scripts.

    Recall and mean IoU take windows in the order they are listed, average precision the first ten of them by score.
    Where the annotations have no ratings, or no window of some length, these entries are left out.

    Args:
        submissions: one for each annotation, in any order.
        annotations: the ground truth.

    Returns:
        ``brief`` (one number per metric, in percent, to two decimals) and the tables it is taken from: ``full``,
        ``long``, ``middle``, ``short``, ``HL-min-Fair``, ``HL-min-Good``, ``HL-min-VeryGood``.

    Raises:
        AnnotationError: if a prediction is missing, is surplus, or is of another video.
    """
    ordered = _paired(submissions, annotations)
    found: dict[str, Any] = {}
    rows = [i for i, a in enumerate(annotations) if a.relevant_windows]
    if rows:
        windows = moment_retrieval.pad_windows(
            [ordered[i].pred_relevant_windows for i in rows], [annotations[i].relevant_windows for i in rows]
        )
        for name, (shortest, longest) in RANGES.items():
            part = windows.within(shortest, longest)
            if len(part.truth_QG):
                found[name] = _moments(part)
    rated = [i for i, a in enumerate(annotations) if a.saliency_scores]
    if rated:
        found |= _highlights([ordered[i] for i in rated], [annotations[i] for i in rated])
    if not found:
        raise AnnotationError("the annotations have neither windows nor ratings: there is nothing to score")
    return {"brief": _brief(found), **found}


def _paired(submissions: Sequence[Submission], annotations: Sequence[Annotation]) -> list[Submission]:
    """The submission of each annotation."""
    by_qid = {s.qid: s for s in submissions}
    if missing := [a.qid for a in annotations if a.qid not in by_qid]:
        raise AnnotationError(
            f"{len(missing)} of {len(annotations)} annotations have no prediction, such as qid {missing[0]!r}; "
            "predict for all of them"
        )
    known = {a.qid for a in annotations}
    if surplus := [s.qid for s in submissions if s.qid not in known]:
        raise AnnotationError(
            f"{len(surplus)} predictions have no annotation, such as qid {surplus[0]!r}; "
            "are these the annotations that were predicted for?"
        )
    for annotation in annotations:
        if by_qid[annotation.qid].vid != annotation.vid:
            raise AnnotationError(
                f"qid {annotation.qid!r}: the prediction is of video {by_qid[annotation.qid].vid!r}, "
                f"the annotation of {annotation.vid!r}"
            )
    return [by_qid[a.qid] for a in annotations]


def _moments(windows: Windows) -> dict[str, Any]:
    iou = windows.iou()
    precision = 100 * moment_retrieval.average_precision(windows).mean(0)
    table = {f"{t:g}": _two(p) for t, p in zip(AP_THRESHOLDS, precision, strict=True)}
    # The published scripts average what is not yet rounded.
    return {
        "MR-mIoU": _two(moment_retrieval.mean_iou(iou)),
        "MR-mAP": {**table, "average": _two(precision.mean())},
        "MR-R1": _recalls(iou, 1),
        "MR-R5": _recalls(iou, 5),
    }


def _recalls(iou: npt.NDArray[np.float64], rank: int) -> dict[str, float]:
    found = moment_retrieval.recall(iou, R_THRESHOLDS, rank)
    return {f"{t:g}": _two(r) for t, r in zip(R_THRESHOLDS, found, strict=True)}


def _highlights(submissions: Sequence[Submission], annotations: Sequence[Annotation]) -> dict[str, Any]:
    clips = np.array([int(a.duration / CLIP_SECONDS) for a in annotations])
    longest = max(int(clips.max()), max(len(s.pred_saliency_scores) for s in submissions), 1)
    raters = max(len(s) for a in annotations for s in a.saliency_scores)
    ratings = np.zeros((len(annotations), longest, raters))
    guess = np.full((len(annotations), longest), -np.inf)
    for i, (submission, annotation) in enumerate(zip(submissions, annotations, strict=True)):
        for clip, scores in zip(annotation.relevant_clip_ids, annotation.saliency_scores, strict=True):
            if clip < clips[i]:
                ratings[i, clip, : len(scores)] = scores
        guess[i, : len(submission.pred_saliency_scores)] = submission.pred_saliency_scores
    real = np.arange(longest) < clips[:, None]
    # A curve that is too short counts as 0 for the clips it lacks, as the published script does.
    filled = np.where(np.isneginf(guess), 0.0, guess)
    found = {}
    for name, least in highlights.LEVELS.items():
        positive = ratings >= least
        precision = highlights.average_precision(filled, real, positive)
        found[f"HL-min-{name}"] = {
            "HL-mAP": _two(100 * precision.mean()),
            "HL-Hit1": _two(highlights.hit_at_one(guess, clips, positive)),
        }
    return found


def _brief(found: Mapping[str, Any]) -> dict[str, float]:
    brief: dict[str, float] = {}
    if full := found.get("full"):
        brief |= {f"MR-full-{r}@{t}": full[f"MR-{r}"][t] for r in ("R1", "R5") for t in ("0.3", "0.5", "0.7")}
        brief["MR-full-mAP"] = full["MR-mAP"]["average"]
        brief |= {f"MR-full-mAP@{t}": full["MR-mAP"][t] for t in ("0.5", "0.75")}
        brief["MR-full-mIoU"] = full["MR-mIoU"]
    for name in ("long", "middle", "short"):
        if name in found:
            brief[f"MR-{name}-mAP"] = found[name]["MR-mAP"]["average"]
            brief[f"MR-{name}-mIoU"] = found[name]["MR-mIoU"]
    for name in highlights.LEVELS:
        if part := found.get(f"HL-min-{name}"):
            brief[f"HL-min-{name}-mAP"] = part["HL-mAP"]
            brief[f"HL-min-{name}-Hit1"] = part["HL-Hit1"]
    return brief


def _two(value: float) -> float:
    """Percent to two decimals, through the text form as the published scripts do."""
    return float(f"{value:.2f}")
