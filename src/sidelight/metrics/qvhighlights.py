"""The metrics of QVHighlights, as the scripts of Moment-DETR and R2-Tuning report them.

Legend: Q queries, T clips (padded), R raters, H thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sidelight.core.timeline import Timeline, clips_to_seconds, same_length, seconds_to_clips
from sidelight.data.annotations import Annotation, AnnotationError, Submission
from sidelight.data.labels import CLIPS_SHORT
from sidelight.metrics import highlights, moment_retrieval
from sidelight.metrics.moment_retrieval import AP_THRESHOLDS, RECALL_THRESHOLDS, Windows
from sidelight.metrics.pairing import named, pair

Floats = npt.NDArray[np.float64]

Convention = Literal["sidelight", "r2-tuning", "moment-detr"]
"""The script whose numbers are reported: R2-Tuning's, Moment-DETR's, or (sidelight) the numbers on which both agree,
without any that lack ground truth."""
CONVENTIONS: tuple[Convention, ...] = ("sidelight", "r2-tuning", "moment-detr")


@dataclass(frozen=True, kw_only=True)
class _Script:
    """The numbers that one convention reports."""

    recall_thresholds: Floats
    longest: float = math.inf
    """Seconds of the longest windows in the range "long"."""
    with_iou_and_five: bool = True
    """Report mIoU and R5."""
    repeats_full: bool = False
    """Repeat "full" for a range that no window has, instead of leaving the range out."""


_SCRIPTS: dict[str, _Script] = {
    "sidelight": _Script(recall_thresholds=RECALL_THRESHOLDS),
    "r2-tuning": _Script(recall_thresholds=RECALL_THRESHOLDS, repeats_full=True),
    "moment-detr": _Script(recall_thresholds=AP_THRESHOLDS, longest=150, with_iou_and_five=False),
}

_BRIEF = {"mAP": ("0.5", "0.75"), "R1": ("0.3", "0.5", "0.7"), "R5": ("0.3", "0.5", "0.7")}
"""The thresholds of each metric in "brief"."""


def evaluate_qvhighlights(
    submissions: Sequence[Submission],
    annotations: Sequence[Annotation],
    *,
    convention: Convention = "sidelight",
    clip_seconds: float = 2.0,
) -> dict[str, Any]:
    """Return the metrics of QVHighlights in percent, rounded to two decimals like the published scripts.

    R1 uses the first window as listed, R5 the first five, and average precision the first ten, sorted by score.
    Saliency of clips of another length (``Submission.clip_seconds``) is converted. Where saliency is too short, the
    missing clips get 0. Where it is too long, the rest is ignored, but a highest value there is a miss for HIT@1. The
    scripts of Moment-DETR and R2-Tuning agree wherever they report the same number for windows of up to 150 s;
    ``moment-detr`` does not count longer windows as "long".

    Metrics without ground truth are left out of the result; they are not 0. These are the highlight metrics if the
    annotations have no saliency scores, and a length range that no window has (R2-Tuning's script, and
    ``r2-tuning``, repeat "full" there, and Moment-DETR's script stops). A query without predicted windows is a miss
    (both scripts stop there).

    Args:
        submissions: one for each annotation, in any order.
        annotations: the ground truth.
        convention: ``sidelight``: with mIoU, R5, and recall from 0.3; ``r2-tuning``: the same to the digit as
            R2-Tuning's script; ``moment-detr``: the same as Moment-DETR's script, without mIoU and R5.
        clip_seconds: length in seconds of the clips that the annotations' clip ids count.

    Returns:
        ``brief``, from metric to number, and the tables with all numbers: ``full``, ``long``, ``middle``, ``short``,
        ``HL-min-Fair``, ``HL-min-Good``, ``HL-min-VeryGood``.

    Raises:
        AnnotationError: if predictions and annotations are of different queries, or only some rows have the fields
            that are scored.
    """
    moments, curves = _scored(submissions, annotations, convention, clip_seconds)
    tables: dict[str, Any] = {}
    if moments is not None:
        for name, rows in moments.rows.items():
            if rows.size:
                tables[name] = moments.table(name)
            elif moments.script.repeats_full:
                tables[name] = moments.table("full")
    for name, curve in curves.items():
        tables[f"HL-min-{name}"] = {
            "HL-mAP": _percent(curve.precision_QR.mean()),
            "HL-Hit1": _percent(curve.hit_Q.mean()),
        }
    return {"brief": _brief(tables), **dict(sorted(tables.items()))}


def per_query(
    submissions: Sequence[Submission],
    annotations: Sequence[Annotation],
    *,
    convention: Convention = "sidelight",
    clip_seconds: float = 2.0,
) -> dict[str, Floats]:
    """Return the value of each query for each metric of ``brief``: from metric to (Q,) shares between 0 and 1.

    The mean over the queries is the metric, so differences can be tested. A query without any window of a length range
    does not count for that range: nan.

    Arguments and errors are those of :func:`evaluate_qvhighlights`.
    """
    moments, curves = _scored(submissions, annotations, convention, clip_seconds)
    shares: dict[str, Floats] = {}
    if moments is not None:
        for name, rows in moments.rows.items():
            if rows.size:
                for metric, values in moments.shares(name).items():
                    shares[metric] = np.full(len(annotations), np.nan)
                    shares[metric][rows] = values
    shares = dict(sorted(shares.items()))
    for name, curve in curves.items():
        shares[f"HL-min-{name}-mAP"] = curve.precision_QR.mean(1)
        shares[f"HL-min-{name}-Hit1"] = curve.hit_Q.astype(np.float64)
    return shares


def brief_metrics(annotations: Sequence[Annotation], *, clip_seconds: float = 2.0) -> tuple[str, ...]:
    """Return the names in "brief" of the metrics that these annotations can be scored by.

    Args:
        annotations: the ground truth.
        clip_seconds: length in seconds of the clips that the annotations' clip ids count.
    """
    empty = [
        Submission(
            qid=a.qid,
            vid=a.vid,
            pred_relevant_windows=np.zeros((0, 3)),
            pred_saliency_scores=np.zeros(Timeline(duration=a.duration, clip_seconds=clip_seconds).num_clips),
        )
        for a in annotations
    ]
    return tuple(evaluate_qvhighlights(empty, annotations, clip_seconds=clip_seconds)["brief"])


def _all_or_none(side: str, field: str, rows: Sequence[tuple[int | str, Any]]) -> bool:
    """Check whether all rows have a field, and raise an error if only some do: their mean would be misleading."""
    without = [qid for qid, value in rows if not value]
    if without and len(without) < len(rows):
        raise AnnotationError(
            f"{len(without)} of {len(rows)} {side} have no {field} ({named(without)}); "
            "all or none must have it: complete these rows, or leave them out of both files",
            side=side,
            qid=without[0],
        )
    return not without


def _scored(
    submissions: Sequence[Submission],
    annotations: Sequence[Annotation],
    convention: Convention,
    clip_seconds: float,
) -> tuple[_Moments | None, dict[str, _Curves]]:
    """Return the metrics of each query: of moments, and of highlights at each level."""
    if convention not in _SCRIPTS:
        raise ValueError(f"convention must be one of {', '.join(map(repr, _SCRIPTS))}, got {convention!r}")
    paired = pair(submissions, annotations)
    moments = None
    if _all_or_none("annotations", "relevant_windows", [(a.qid, a.relevant_windows) for a in annotations]):
        windows = moment_retrieval.pad_windows(
            [s.pred_relevant_windows for s in paired], [a.relevant_windows for a in annotations]
        )
        moments = _Moments(windows, _SCRIPTS[convention])
    curves = _all_or_none("predictions", "pred_saliency_scores", [(s.qid, s.pred_saliency_scores.size) for s in paired])
    rated = _all_or_none("annotations", "saliency_scores", [(a.qid, a.saliency_scores) for a in annotations])
    if not moments and not (curves and rated):
        raise AnnotationError(
            "there is nothing to score: the annotations have no relevant_windows, nor saliency_scores "
            "with predictions for them; use a split with public labels"
        )
    return moments, _curves(paired, annotations, clip_seconds) if curves and rated else {}


class _Moments:
    """Average precision and IoU of each query, for each range of lengths."""

    def __init__(self, windows: Windows, script: _Script) -> None:
        self.script = script
        self.rows: dict[str, npt.NDArray[np.int64]] = {}  # the queries with windows in each range
        self.precision_QH: dict[str, Floats] = {}
        self.first_Q: dict[str, Floats] = {}
        self.five_Q: dict[str, Floats] = {}
        # Seconds: longer than the first number, at most the second.
        ranges = {"full": (-math.inf, math.inf), "long": (30, script.longest), "middle": (10, 30), "short": (0, 10)}
        for name, limits in ranges.items():
            part, self.rows[name] = windows.within(*limits)
            self.precision_QH[name] = moment_retrieval.average_precision(part)
            self.first_Q[name] = moment_retrieval.best_iou(part, 1)
            self.five_Q[name] = moment_retrieval.best_iou(part, 5)

    def table(self, name: str) -> dict[str, Any]:
        """Return the metrics of one range, nested like in the scripts."""
        precision_H = self.precision_QH[name].mean(0)
        first_Q = self.first_Q[name]
        table: dict[str, Any] = {
            "MR-mAP": {**_by_threshold(AP_THRESHOLDS, precision_H), "average": _percent(precision_H.mean())},
            "MR-R1": _recall(first_Q, self.script.recall_thresholds),
        }
        if not self.script.with_iou_and_five:
            return table
        table["MR-R5"] = _recall(self.five_Q[name], RECALL_THRESHOLDS)
        return {"MR-mIoU": _percent(first_Q.mean()), **table}

    def shares(self, name: str) -> dict[str, Floats]:
        """Return the metrics of one range in ``brief``, for each query."""
        precision_QH = self.precision_QH[name]
        shares: dict[str, Floats] = {f"MR-{name}-mAP": precision_QH.mean(1)}
        ranks = {"R1": self.first_Q[name]}
        if self.script.with_iou_and_five:
            shares[f"MR-{name}-mIoU"] = self.first_Q[name]
            ranks["R5"] = self.five_Q[name]
        if name != "full":
            return shares
        for threshold in _BRIEF["mAP"]:
            shares[f"MR-full-mAP@{threshold}"] = precision_QH[:, np.searchsorted(AP_THRESHOLDS, float(threshold))]
        for metric, iou_Q in ranks.items():
            for threshold in _BRIEF[metric]:
                if float(threshold) >= self.script.recall_thresholds[0]:
                    shares[f"MR-full-{metric}@{threshold}"] = (iou_Q >= float(threshold)).astype(np.float64)
        return shares


@dataclass(frozen=True, kw_only=True)
class _Curves:
    """Highlight metrics of each query at one level."""

    precision_QR: Floats
    hit_Q: npt.NDArray[np.bool_]


def _recall(iou_Q: Floats, thresholds: Floats) -> dict[str, float]:
    return _by_threshold(thresholds, (iou_Q[:, None] >= thresholds).mean(0))


def _by_threshold(thresholds: Floats, shares: Floats) -> dict[str, float]:
    return {f"{t:g}": _percent(share) for t, share in zip(thresholds, shares, strict=True)}


def _curves(
    submissions: Sequence[Submission], annotations: Sequence[Annotation], clip_seconds: float
) -> dict[str, _Curves]:
    ratings_QTR, clips_QT = _ratings(annotations, clip_seconds)
    curves = [_curve(s, a, clip_seconds) for s, a in zip(submissions, annotations, strict=True)]
    _check_lengths(curves, clips_QT.sum(1), submissions, clip_seconds)
    saliency_QT1, predicted_QT = moment_retrieval.pad(curves, width=1)
    longest = max(clips_QT.shape[1], predicted_QT.shape[1])
    saliency_QT = _widen(saliency_QT1[..., 0], longest)
    predicted_QT, clips_QT, ratings_QTR = (_widen(a, longest) for a in (predicted_QT, clips_QT, ratings_QTR))
    raters = ratings_QTR.shape[2]
    # All levels at once, because they share the order of the clips.
    positive_QTR = np.concatenate([ratings_QTR >= lowest for lowest in highlights.LEVELS.values()], axis=2)
    precision_QR = highlights.average_precision(saliency_QT, clips_QT, positive_QTR)
    parts = [slice(i * raters, (i + 1) * raters) for i in range(len(highlights.LEVELS))]
    return {
        name: _Curves(
            precision_QR=precision_QR[:, part],
            hit_Q=highlights.hit_at_1(saliency_QT, predicted_QT, positive_QTR[..., part]),
        )
        for name, part in zip(highlights.LEVELS, parts, strict=True)
    }


def _curve(submission: Submission, annotation: Annotation, clip_seconds: float) -> Floats:
    """Return the predicted saliency of clips of ``clip_seconds``, converted if the prediction has other clips."""
    seconds, curve = submission.clip_seconds, submission.pred_saliency_scores
    if seconds is None or same_length(seconds, clip_seconds):
        return curve
    extent = min(annotation.duration, clips_to_seconds(len(curve), seconds))
    return Timeline(duration=extent, clip_seconds=clip_seconds).resample(curve, seconds)


def _check_lengths(
    curves: Sequence[Floats], clips_Q: npt.NDArray[np.int64], submissions: Sequence[Submission], clip_seconds: float
) -> None:
    """Refuse curves that are of clips of another length: most of them are far longer or shorter than their videos."""
    values_Q, clips_Q = np.array([len(curve) for curve in curves]), np.maximum(clips_Q, 1)
    far_Q = (np.abs(values_Q - clips_Q) > CLIPS_SHORT) & (np.abs(np.log(values_Q / clips_Q)) > math.log(1.25))
    if far_Q.mean() <= 0.5:
        return
    q = int(far_Q.argmax())
    raise AnnotationError(
        f"pred_saliency_scores has {values_Q[q]} values, but the video has {clips_Q[q]} clips of {clip_seconds:g} s, "
        f"which the ratings count; {far_Q.sum()} of {len(far_Q)} predictions differ so: write the length of the "
        "predicted clips into each prediction, such as clip_seconds: 1, or predict again",
        side="predictions",
        qid=submissions[q].qid,
    )


def _ratings(annotations: Sequence[Annotation], clip_seconds: float) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return (Q, T, R) ratings, 0 for clips that nobody rated, and (Q, T) True for the clips of the video."""
    raters = {len(a.saliency_scores[0]): a.qid for a in reversed(annotations)}
    if len(raters) > 1:
        raise AnnotationError(
            f"all annotations must have the same number of raters, got {sorted(raters)}; score them separately",
            side="annotations",
            qid=next(q for n, q in raters.items() if n != len(annotations[0].saliency_scores[0])),
        )
    rows = np.repeat(np.arange(len(annotations)), [len(a.relevant_clip_ids) for a in annotations])
    clips = np.concatenate([a.relevant_clip_ids for a in annotations])
    ends_Q = seconds_to_clips(np.array([a.duration for a in annotations]), clip_seconds)
    last_Q = np.array([max(a.relevant_clip_ids) for a in annotations])
    if (beyond := np.flatnonzero(last_Q >= np.ceil(ends_Q))).size:
        q = int(beyond[0])
        raise AnnotationError(
            f"relevant_clip_ids has clip {last_Q[q]}, but a video of {annotations[q].duration} s has "
            f"{math.ceil(ends_Q[q])} clips of {clip_seconds:g} s; correct it, or set clip_seconds",
            side="annotations",
            qid=annotations[q].qid,
        )
    # A rated clip counts even if the end of the video cuts it short.
    counts_Q = np.maximum(ends_Q.astype(np.int64), last_Q + 1)
    mask_QT = np.arange(counts_Q.max()) < counts_Q[:, None]
    ratings_QTR = np.zeros((*mask_QT.shape, len(annotations[0].saliency_scores[0])))
    ratings_QTR[rows, clips] = np.concatenate([a.saliency_scores for a in annotations])
    return ratings_QTR, mask_QT


def _widen(values: npt.NDArray[Any], longest: int) -> npt.NDArray[Any]:
    """Append zeros (False) to axis 1."""
    return np.pad(values, [(0, longest - n if axis == 1 else 0) for axis, n in enumerate(values.shape)])


def _brief(tables: Mapping[str, Any]) -> dict[str, float]:
    """Return one number per metric: moments sorted by name, then highlights by level."""
    moments: dict[str, float] = {}
    for name in ("full", "long", "middle", "short"):
        if table := tables.get(name):
            moments[f"MR-{name}-mAP"] = table["MR-mAP"]["average"]
            if "MR-mIoU" in table:
                moments[f"MR-{name}-mIoU"] = table["MR-mIoU"]
    if full := tables.get("full"):
        for metric, thresholds in _BRIEF.items():
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
    """Return percent, rounded to two decimals as text is, because the published scripts round that way."""
    return float(f"{100 * share:.2f}")
