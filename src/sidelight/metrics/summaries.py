"""Summarize a video of any length: its segments, and those of them that are worth the most and fit into a length.

The steps are those of ``summarization``; the settings here are for people who watch the summary, not for benchmarks.

Legend: T clips, D width, S segments. A segment is [start, end) in clips.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import fields
from typing import Literal

import numpy as np
import numpy.typing as npt

from sidelight.core.grounding import Grounding, Moment
from sidelight.core.summary import Summary, segment_spans
from sidelight.core.timeline import seconds_to_clips
from sidelight.metrics.summarization import (
    BUDGET,
    Floats,
    Ints,
    check_finite,
    kernel_temporal_segmentation,
    segments_between,
    summarize,
)

MEAN_SECONDS = 5.0
"""Least mean length of a segment of a video. Noisy features would otherwise make every clip a segment."""
PENALTY = 0.3
"""Of the segments of a video. With 1, the usual value, segments were twice as long, and on a shapes world the summaries
of ``benchmarks/summaries.py`` had a mean rating of 2.2 instead of 2.5.
"""
_CLIPS_AT_ONCE = 1000
"""Clips that are segmented together: 1000 take 50 MB and a second."""


def segments_of(features_TD: npt.ArrayLike, *, clip_seconds: float, clips_at_once: int = _CLIPS_AT_ONCE) -> Ints:
    """Return the segments of a video of any length by kernel temporal segmentation, (S, 2) [start, end) in clips.

    Segments are MEAN_SECONDS long or longer on average. A long video is segmented part by part; each part begins at
    the last change point of the part before, so that the edge of a part is no change point of its own.

    Args:
        features_TD: one row per clip.
        clip_seconds: length of a clip.
        clips_at_once: clips of a part.

    Raises:
        ValueError: as :func:`kernel_temporal_segmentation`.
    """
    features_TD = np.asarray(features_TD)
    clips, changes, start = len(features_TD), list[int](), 0
    while start < clips:
        part_TD = features_TD[start : start + clips_at_once]
        most = max(1, round(len(part_TD) * clip_seconds / MEAN_SECONDS))
        part_changes = (start + kernel_temporal_segmentation(part_TD, most_segments=most, penalty=PENALTY)).tolist()
        end = start + len(part_TD)
        if end >= clips:
            return segments_between(np.array([*changes, *part_changes], dtype=np.int64), clips)
        changes += part_changes or [end]
        start = changes[-1]
    return segments_between(np.zeros(0, dtype=np.int64), clips)


def fitting_segments(segments: npt.ArrayLike, most_clips: int) -> Ints:
    """Return segments of which each fits into a summary: longer ones are cut into equal parts.

    Args:
        segments: (S, 2) [start, end) in clips.
        most_clips: longest segment.

    Raises:
        ValueError: if most_clips is below 1.
    """
    if most_clips < 1:
        raise ValueError(f"most_clips must be 1 or more, got {most_clips}")
    parts: list[tuple[int, int]] = []
    for start, end in np.asarray(segments, dtype=np.int64).reshape(-1, 2).tolist():
        edges = np.linspace(start, end, -(-(end - start) // most_clips) + 1).round().astype(int).tolist()
        parts += itertools.pairwise(edges)
    return np.array(parts, dtype=np.int64).reshape(-1, 2)


def scaled(saliency_T: npt.ArrayLike) -> Floats:
    """Return a highlight curve scaled to 0 to 1 within the video, as summaries need it; all 1 for a constant curve.

    Args:
        saliency_T: one score per clip.

    Raises:
        ValueError: if a score is not finite.
    """
    saliency_T = np.asarray(saliency_T, dtype=np.float64)
    check_finite("saliency", saliency_T)
    low, high = (saliency_T.min(), saliency_T.max()) if saliency_T.size else (0.0, 0.0)
    return (saliency_T - low) / (high - low) if high > low else np.ones(saliency_T.shape)


def summary_of(
    grounding: Grounding,
    features_TD: npt.ArrayLike,
    *,
    share: float = BUDGET,
    seconds: float | None = None,
    value: Literal["mean", "sum"] = "sum",
) -> Summary:
    """Return the segments of a video that have the best scores and fit into a length.

    Args:
        grounding: the answer for the topic, whose highlight curve holds the scores; its moments are not used.
        features_TD: one row per clip, by which segments are found.
        share: longest summary, as a share of the video; at least one clip is picked.
        seconds: longest summary in seconds, instead of the share.
        value: of a segment, as for :func:`summarize`.
    """
    timeline = grounding.timeline
    clips, unit = timeline.num_clips, timeline.clip_seconds
    length = share * timeline.duration if seconds is None else seconds
    most = min(clips, max(1, math.floor(seconds_to_clips(length, unit) + 1e-6)))
    segments = segments_of(features_TD, clip_seconds=unit)
    scores_T = scaled(grounding.saliency)
    picked_T = summarize(scores_T, fitting_segments(segments, most), most / clips, value=value)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], picked_T.astype(np.int8), [0]])))
    runs = edges.reshape(-1, 2).astype(np.int64)
    moments = tuple(
        Moment(start, end, float(scores_T[first:stop].mean()))
        for (start, end), (first, stop) in zip(segment_spans(timeline, runs).tolist(), runs.tolist(), strict=True)
    )
    values = {field.name: getattr(grounding, field.name) for field in fields(Grounding)}
    return Summary(**{**values, "moments": moments}, segments=segments)
