"""What a model learns from an annotation: windows, one saliency per clip, the clips that one positive is drawn from.

``plain`` is ours. The others are what R2-Tuning's published code does on its benchmarks (``datasets/*.py``); its losses
and ours take any of them.

Legend: T clips, G windows, 2 (start, end) in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from sidelight.core.timeline import Timeline
from sidelight.data.annotations import Annotation

Floats32 = npt.NDArray[np.float32]
Binding = Literal["plain", "r2-tuning", "tvsum", "youtube-highlights"]
ALL_RATED = ("tvsum", "youtube-highlights")
"""The bindings that want a rating of every clip, and know no moments."""
CLIPS_SHORT = 4
"""So many clips more than ratings, or fewer, may a video have where all its clips are rated: the longer end
is cut off. Released features often end before the video does; R2-Tuning's code allows as much.
"""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What is learned of one query."""

    saliency_T: Floats32
    """Saliency of each clip, at least 0."""
    positives: npt.NDArray[np.int64]
    """Clips that one positive is drawn from; may be empty."""
    windows_G2: npt.NDArray[np.float64]
    """Moments in seconds."""


def bind(annotation: Annotation, timeline: Timeline, binding: Binding) -> Labels:
    """The labels of an annotation, in the way that ``binding`` names.

    Raises:
        ValueError: naming the annotation, if its ratings do not fit its video.
    """
    return BINDINGS[binding](annotation, timeline)


def rated_clips(annotation: Annotation, clips: int) -> int:
    """How many of a video's clips count where all are rated: those that have both features and a rating.

    Raises:
        ValueError: if not every clip is rated, in order, or the two numbers differ by more than CLIPS_SHORT.
    """
    rated = len(annotation.saliency_scores)
    if not rated or annotation.relevant_clip_ids != tuple(range(rated)):
        raise ValueError(
            f"annotation {annotation.qid!r} must rate every clip of its video {annotation.vid!r}, from the first on; "
            "use the annotations as they were released, or another data.binding"
        )
    if abs(rated - clips) > CLIPS_SHORT:
        raise ValueError(
            f"annotation {annotation.qid!r} rates {rated} clips, but the features of its video {annotation.vid!r} have "
            f"{clips}; extract them with the clips that the benchmark rates"
        )
    return min(rated, clips)


def _plain(annotation: Annotation, timeline: Timeline) -> Labels:
    """Windows as they are, the mean of the raters."""
    saliency = clip_saliency(annotation, timeline)
    windows = np.asarray(annotation.relevant_windows, dtype=np.float64).reshape(-1, 2)
    return Labels(saliency_T=saliency, positives=np.flatnonzero(saliency > 0), windows_G2=windows)


def _r2_tuning(annotation: Annotation, timeline: Timeline) -> Labels:
    """Windows of at least a clip inside the video; the raters' mean over 4, which for three is their sum over 12."""
    bound = bind_windows(annotation.relevant_windows, timeline.num_clips, timeline.clip_seconds)
    rated = annotation.saliency_scores or None
    ids = annotation.relevant_clip_ids if rated else None
    saliency, clips = bind_saliency(bound, timeline.num_clips, timeline.clip_seconds, rated, ids)
    return Labels(saliency_T=saliency, positives=np.asarray(clips, dtype=np.int64), windows_G2=bound.astype(np.float64))


def _tvsum(annotation: Annotation, timeline: Timeline) -> Labels:
    """The raters' mean, 1 to 5 as 0 to 1; positive is what lies above the median (the lower of two)."""
    count = rated_clips(annotation, timeline.num_clips)
    saliency = np.zeros(timeline.num_clips, np.float32)
    ratings = np.asarray(annotation.saliency_scores[:count], np.float32)
    saliency[:count] = (ratings.mean(1) - 1) / 4
    median = np.sort(saliency[:count])[(count - 1) // 2]
    return Labels(saliency_T=saliency, positives=np.flatnonzero(saliency[:count] > median), windows_G2=np.zeros((0, 2)))


def _youtube(annotation: Annotation, timeline: Timeline) -> Labels:
    """``match``, -1 to 1, as 0 to 1; positive is what was matched, borderline clips are not."""
    count = rated_clips(annotation, timeline.num_clips)
    match = annotation.extra.get("match", [2 * rating[0] - 1 for rating in annotation.saliency_scores])
    numbers = isinstance(match, list | tuple) and all(m in (-1, 0, 1) for m in match)
    if not numbers or len(match) != len(annotation.saliency_scores):
        raise ValueError(
            f"annotation {annotation.qid!r}: match must be a list of {len(annotation.saliency_scores)} numbers "
            "-1, 0 or 1, one for each label; correct it"
        )
    saliency = np.zeros(timeline.num_clips, np.float32)
    saliency[:count] = (np.asarray(match[:count], np.float32) + 1) / 2
    return Labels(saliency_T=saliency, positives=np.flatnonzero(saliency[:count] > 0.5), windows_G2=np.zeros((0, 2)))


BINDINGS: dict[str, Callable[[Annotation, Timeline], Labels]] = {
    "plain": _plain,
    "r2-tuning": _r2_tuning,
    "tvsum": _tvsum,
    "youtube-highlights": _youtube,
}


def clip_saliency(annotation: Annotation, timeline: Timeline) -> npt.NDArray[np.float32]:
    """(T,) mean of the raters per clip, 0 elsewhere; 1 inside the windows where nobody rated.

    A relevant clip that every rater gave 0 gets a little more than 0: it is still relevant.

    Raises:
        ValueError: if a clip id lies beyond the video.
    """
    found = np.zeros(timeline.num_clips, dtype=np.float32)
    if annotation.saliency_scores:
        for clip, scores in zip(annotation.relevant_clip_ids, annotation.saliency_scores, strict=True):
            if clip < timeline.num_clips:
                found[clip] = max(float(np.mean(scores)), 0.1)
            elif clip > timeline.num_clips:  # one clip beyond is rounding in the published files
                raise ValueError(
                    f"annotation {annotation.qid!r}: clip {clip} is beyond its video {annotation.vid!r}, "
                    f"which has {timeline.num_clips} clips; correct relevant_clip_ids"
                )
        return found
    for start, end in annotation.relevant_windows:
        clips = timeline.clips_in(min(start, timeline.duration), min(end, timeline.duration))
        found[clips.start : clips.stop] = 1.0
    return found


def bind_windows(windows: Sequence[Sequence[float]], clips: int, clip_seconds: float) -> npt.NDArray[np.float32]:
    """Labelled windows in seconds, (G, 2), as points can learn them.

    They are cut to the clips' extent, put in order, and those shorter than a clip become one clip long around
    their center, moved inside where they would stick out.
    """
    half, extent = np.float32(clip_seconds / 2), np.float32(clips * clip_seconds)
    bound = np.sort(np.asarray(windows, dtype=np.float32).reshape(-1, 2).clip(0, extent), axis=1)
    short = bound[:, 1] - bound[:, 0] < clip_seconds
    center = (bound[short].sum(1) / 2).clip(half, extent - half)
    bound[short] = np.stack([center - half, center + half], 1)
    return bound


def bind_saliency(
    windows: npt.NDArray[np.float32],
    clips: int,
    clip_seconds: float,
    scores: Sequence[Sequence[float]] | None = None,
    clip_ids: Sequence[int] | None = None,
) -> tuple[npt.NDArray[np.float32], list[int]]:
    """Saliency of each clip in [0, 1], and the clips that one positive is drawn from.

    With ``scores`` (raters' 0 to 4 for each of ``clip_ids``) it is their mean over 4; without, 1 for
    every clip that starts inside one of the ``windows`` that ``bind_windows`` made.
    """
    saliency = np.zeros(clips, dtype=np.float32)
    if scores is not None and clip_ids is not None:
        rated = [
            (place, sum(rating) / (4 * len(rating)))
            for place, rating in zip(clip_ids, scores, strict=True)
            if place < clips
        ]
        for place, value in rated:
            saliency[place] = value
        return saliency, [place for place, _ in rated]
    for start, end in np.ceil(windows / np.float32(clip_seconds)).astype(int):
        saliency[start:end] = 1
    return saliency, np.flatnonzero(saliency).tolist()
