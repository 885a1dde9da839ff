"""Scores of summaries against the summaries that people made: SumMe (best person) and TVSum (mean over persons).

For each video, precision, recall and F of the frames that the summary and a person's summary share; then the person
with the highest F (SumMe; Gygli et al., ECCV 2014, and the code of Zhang et al., ECCV 2016) or the mean over persons
(TVSum); then the mean over videos. Summaries should be at most 15 % of the video.

Legend: R persons, F frames, V videos.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sidelight.core.grounding import FORMAT, Grounding
from sidelight.data.annotations import AnnotationError
from sidelight.data.user_summaries import UserSummaries, read_user_summaries
from sidelight.io.files import read_text
from sidelight.io.jsonl import read_json_lines
from sidelight.metrics.evaluate import EvaluationWarning, QueryScores
from sidelight.metrics.summarization import BUDGET, f_score

SUMMARY_BENCHMARKS: dict[str, Literal["max", "mean"]] = {"summe": "max", "tvsum": "mean"}
"""How each benchmark combines the persons."""
_TOO_LONG = 1.02
"""A summary may be longer than 15 % by this factor, because the last clip of a video is cut short."""


def holds_summaries(path: str | Path) -> bool:
    """Check whether predictions are summaries: a folder, or JSON of `sidelight summarize`.

    Raises:
        OSError: if the file cannot be read.
    """
    if Path(path).is_dir():
        return True
    with open(path, "rb") as file:
        return FORMAT.encode() in file.read(400)


def summary_scores(
    predictions: str | Path, annotations: str | Path, *, benchmark: Literal["summe", "tvsum"]
) -> QueryScores:
    """Return F, precision and recall of the summary of each video, as shares.

    Args:
        predictions: the JSON of `sidelight summarize`: a folder with a file per video, one file, or JSON lines. A video
            is found by the name of its file.
        annotations: summaries by people; see :func:`sidelight.data.user_summaries.read_user_summaries`.
        benchmark: whose way of combining the persons.

    Raises:
        AnnotationError: if a file is damaged or missing, or a video has no annotation or two predictions.
    """
    truth = read_user_summaries(annotations)
    summaries = _read_summaries(Path(predictions))
    pairs = [(summary, _annotation_of(summary, truth, annotations)) for summary in summaries]
    vids = [annotation.vid for _, annotation in pairs]
    if repeated := [vid for vid in vids if vids.count(vid) > 1]:
        raise AnnotationError(f"{predictions} holds several summaries of the video {repeated[0]!r}; leave one")
    long = [vid for (summary, _), vid in zip(pairs, vids, strict=True) if _share(summary) > _TOO_LONG * BUDGET]
    if long:
        message = f"{len(long)} of {len(vids)} summaries are longer than {BUDGET:.0%} of their video, first {long[0]!r}"
        warnings.warn(f"{message}; published numbers are of shorter ones", EvaluationWarning, stacklevel=2)
    if len(vids) < len(truth):
        message = f"{len(vids)} of {len(truth)} videos of {annotations} have a summary; the others do not count"
        warnings.warn(message, EvaluationWarning, stacklevel=2)
    scores = [
        f_score(kept_frames(summary, annotation.kept_RF.shape[1]), annotation.kept_RF, SUMMARY_BENCHMARKS[benchmark])
        for summary, annotation in pairs
    ]
    return QueryScores(
        each={
            "F": np.array([score.f for score in scores]),
            "precision": np.array([score.precision for score in scores]),
            "recall": np.array([score.recall for score in scores]),
        },
        qids=tuple(vids),
        queries=tuple(summary.query for summary in summaries),
        videos=tuple(vids),
    )


def evaluate_summaries(
    predictions: str | Path, annotations: str | Path, *, benchmark: Literal["summe", "tvsum"]
) -> dict[str, Any]:
    """Return the metrics of summaries in percent: ``brief``, the means over videos, and ``videos``, each video's own.

    Arguments and errors are those of :func:`summary_scores`.
    """
    scores = summary_scores(predictions, annotations, benchmark=benchmark)
    percent = {name: 100 * values for name, values in scores.each.items()}
    return {
        "brief": {name: round(float(values.mean()), 2) for name, values in percent.items()},
        "videos": {
            vid: {name: round(float(values[v]), 2) for name, values in percent.items()}
            for v, vid in enumerate(scores.videos)
        },
    }


def kept_frames(summary: Grounding, frames: int) -> npt.NDArray[np.bool_]:
    """Return which frames of a video a summary holds, (F,): those whose middle lies in one of its moments.

    Args:
        summary: the summary.
        frames: frames of the video, which are taken as equally long.
    """
    middles_F = (np.arange(frames) + 0.5) * (summary.timeline.duration / frames)
    kept_F = np.zeros(frames, dtype=bool)
    for moment in summary:
        kept_F |= (middles_F >= moment.start) & (middles_F < moment.end)
    return kept_F


def _share(summary: Grounding) -> float:
    return sum(moment.duration for moment in summary) / summary.timeline.duration


def _annotation_of(summary: Grounding, truth: Sequence[UserSummaries], annotations: str | Path) -> UserSummaries:
    """Return the annotation of the video of a summary; AnnotationError if there is none."""
    name = Path(summary.video or "").stem
    same_video = [row for row in truth if row.is_called(name)]
    if not same_video:
        known = ", ".join(row.vid for row in truth[:3])
        raise AnnotationError(
            f"the video {summary.video!r} is not in {annotations}, which has {known}, ...; name the file as the "
            "annotations name the video"
        )
    return same_video[0]


def _read_summaries(path: Path) -> list[Grounding]:
    """Return the summaries of a folder or a file; AnnotationError if something else is there."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise AnnotationError(f"{path} holds no .json file; expected files that `sidelight summarize --json` wrote")
    summaries = []
    for file in files:
        try:
            try:
                values = json.loads(read_text(file))
            except ValueError:
                values = [line.values for line in read_json_lines(file)]
            for row in values if isinstance(values, list) else [values]:
                if not isinstance(row, dict) or "segments" not in row:
                    raise ValueError("this is no summary")
                summaries.append(Grounding.from_dict(row))
        except (ValueError, RecursionError) as error:
            raise AnnotationError(f"{file}: {error}; expected what `sidelight summarize --json` writes") from None
    return summaries
