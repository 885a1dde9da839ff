"""Training targets from annotations: windows, a saliency per clip, the clips from which a positive is drawn.

A *binding* is a way to make targets. ``plain`` is our own. ``univtg`` does what UniVTG's published code does, and the
others what R2-Tuning's does on its benchmarks (``datasets/*.py``). All losses accept the targets of every binding.

Legend: T clips, G windows, 2 (start, end) in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sidelight.core.timeline import Timeline, clips_to_seconds, same_length, seconds_to_clips
from sidelight.data.annotations import Annotation

Floats32 = npt.NDArray[np.float32]
Binding = Literal["plain", "r2-tuning", "univtg", "tvsum", "youtube-highlights"]
ALL_RATED = ("tvsum", "youtube-highlights")
"""The bindings that need a rating of every clip and have no moments."""
CLIPS_SHORT = 4
"""Largest difference between a video's clips and its ratings where all clips are rated; the longer end is cut off.
Released features often end before the video. R2-Tuning's code allows the same difference."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The training targets of one query."""

    saliency_T: Floats32
    """Saliency of each clip, at least 0."""
    positives: npt.NDArray[np.int64]
    """Clips that one positive is drawn from; may be empty."""
    windows_G2: npt.NDArray[np.float64]
    """Moments in seconds."""


def bind(annotation: Annotation, timeline: Timeline, binding: Binding) -> Labels:
    """Return the training targets of an annotation.

    Raises:
        ValueError: if the ratings do not fit the video; names the annotation.
    """
    return BINDINGS[binding](annotation, timeline)


def rated_clips(annotation: Annotation, clips: int) -> int:
    """Return how many clips have both features and a rating, for a video whose clips are all rated.

    Args:
        annotation: the ratings.
        clips: number of clips that have features.

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
            f"{clips}; extract features of the clips that the benchmark rates"
        )
    return min(rated, clips)


def _plain(annotation: Annotation, timeline: Timeline) -> Labels:
    """Return the windows as annotated, and the mean of the raters."""
    saliency = clip_saliency(annotation, timeline)
    relevant = _mean_ratings(annotation, timeline) if annotation.saliency_scores else saliency
    windows = np.asarray(annotation.relevant_windows, dtype=np.float64).reshape(-1, 2)
    return Labels(saliency_T=saliency, positives=np.flatnonzero(relevant > 0), windows_G2=windows)


def _r2_tuning(annotation: Annotation, timeline: Timeline) -> Labels:
    """Return windows of at least one clip inside the video, and a quarter of the mean of the raters."""
    windows = bind_windows(annotation.relevant_windows, timeline.num_clips, timeline.clip_seconds)
    ratings = annotation.saliency_scores or None
    if ratings and not same_length(annotation.clip_seconds, timeline.clip_seconds):
        saliency = (_mean_ratings(annotation, timeline) / 4).astype(np.float32)
        positives = np.flatnonzero(saliency)
    else:
        ids = annotation.relevant_clip_ids if ratings else None
        saliency, clips = bind_saliency(windows, timeline.num_clips, timeline.clip_seconds, ratings, ids)
        positives = np.asarray(clips, dtype=np.int64)
    return Labels(saliency_T=saliency, positives=positives, windows_G2=windows.astype(np.float64))


def _univtg(annotation: Annotation, timeline: Timeline) -> Labels:
    """Return the windows as annotated, and the mean of the raters; without ratings, 1 for every clip in a window.

    A clip is in a window if its anchor is: half a clip in *seconds*, added to the number of the clip, as in the
    published code (the end of a clip of 2 s). If there is none, the clip in which the first window starts is. Rated
    clips are positive, also those that every rater gave 0; if every clip is rated, only the last of the best is.
    """
    windows = np.asarray(annotation.relevant_windows, dtype=np.float64).reshape(-1, 2)
    count = timeline.num_clips
    if annotation.saliency_scores:
        saliency = _mean_ratings(annotation, timeline).astype(np.float32)
        relevant = [clip for clip in annotation.relevant_clip_ids if clip < count]
        if not same_length(annotation.clip_seconds, timeline.clip_seconds):
            relevant = np.flatnonzero(saliency).tolist()
        elif len(set(relevant)) == count:
            relevant = [count - 1 - int(np.argmax(saliency[::-1]))]
        return Labels(saliency_T=saliency, positives=np.asarray(relevant, dtype=np.int64), windows_G2=windows)
    anchors_T1 = np.arange(count)[:, None] + timeline.clip_seconds / 2
    edges = seconds_to_clips(windows, timeline.clip_seconds).round(6)
    inside_T = ((edges[:, 0] <= anchors_T1) & (anchors_T1 <= edges[:, 1])).any(1)
    if len(windows) and not inside_T.any():
        inside_T[min(max(int(edges[0, 0]), 0), count - 1)] = True
    return Labels(saliency_T=inside_T.astype(np.float32), positives=np.flatnonzero(inside_T), windows_G2=windows)


def _tvsum(annotation: Annotation, timeline: Timeline) -> Labels:
    """Return the mean of the raters, scaled from [1, 5] to [0, 1]; clips above the lower median are positive."""
    count = rated_clips(annotation, timeline.num_clips)
    if not same_length(annotation.clip_seconds, timeline.clip_seconds):
        raise ValueError(
            f"annotation {annotation.qid!r} rates every clip of {annotation.clip_seconds:g} s, but the features of its "
            f"video {annotation.vid!r} have clips of {timeline.clip_seconds:g} s; extract features of the clips that "
            "the benchmark rates"
        )
    ratings = np.asarray(annotation.saliency_scores[:count], np.float32)
    saliency = (ratings.mean(1) - 1) / 4
    return _without_windows(saliency, float(np.sort(saliency)[(count - 1) // 2]), timeline)


def _youtube(annotation: Annotation, timeline: Timeline) -> Labels:
    """Return ``match``, scaled from [-1, 1] to [0, 1]; matched clips are positive, borderline clips are not."""
    count = rated_clips(annotation, timeline.num_clips)
    match = annotation.extra.get("match", [2 * rating[0] - 1 for rating in annotation.saliency_scores])
    numbers = isinstance(match, list | tuple) and all(m in (-1, 0, 1) for m in match)
    if not numbers or len(match) != len(annotation.saliency_scores):
        raise ValueError(
            f"annotation {annotation.qid!r}: match must be a list of {len(annotation.saliency_scores)} numbers "
            "-1, 0 or 1, one for each label; correct it"
        )
    return _without_windows((np.asarray(match[:count], np.float32) + 1) / 2, 0.5, timeline)


def _without_windows(saliency: npt.NDArray[np.floating[Any]], threshold: float, timeline: Timeline) -> Labels:
    """Return targets without windows; clips after the last rated one have saliency 0 and are not positive."""
    saliency_T = np.zeros(timeline.num_clips, np.float32)
    saliency_T[: len(saliency)] = saliency
    positives = np.flatnonzero(saliency > threshold)
    return Labels(saliency_T=saliency_T, positives=positives, windows_G2=np.zeros((0, 2)))


BINDINGS: dict[str, Callable[[Annotation, Timeline], Labels]] = {
    "plain": _plain,
    "r2-tuning": _r2_tuning,
    "univtg": _univtg,
    "tvsum": _tvsum,
    "youtube-highlights": _youtube,
}


def clip_saliency(annotation: Annotation, timeline: Timeline) -> Floats32:
    """Return the mean of the raters for each clip, (T,), and 0 for clips that nobody rated.

    Ratings of clips of another length are converted. Without any ratings, clips inside the windows get 1. A relevant
    clip that every rater gave 0 gets 0.1, because it lies in a moment; it is never the positive clip.

    Raises:
        ValueError: if a clip id lies beyond the video.
    """
    if annotation.saliency_scores:
        return _mean_ratings(annotation, timeline, lowest=0.1).astype(np.float32)
    saliency_T = np.zeros(timeline.num_clips, dtype=np.float32)
    for start, end in annotation.relevant_windows:
        clips = timeline.clips_in(min(start, timeline.duration), min(end, timeline.duration))
        saliency_T[clips.start : clips.stop] = 1.0
    return saliency_T


def _mean_ratings(annotation: Annotation, timeline: Timeline, lowest: float = 0.0) -> npt.NDArray[np.float64]:
    """Return the mean of the raters for each clip of the features, (T,), and 0 for clips that nobody rated.

    Args:
        annotation: its ratings may count clips of another length than the features have.
        timeline: of the features.
        lowest: the least that a relevant clip gets.
    """
    own, seconds = timeline, annotation.clip_seconds
    converts = not same_length(seconds, timeline.clip_seconds)
    if converts:
        own = Timeline(duration=max(annotation.duration, timeline.duration), clip_seconds=seconds)
    mean_S = np.zeros(own.num_clips)
    for clip, scores in zip(annotation.relevant_clip_ids, annotation.saliency_scores, strict=True):
        if clip < own.num_clips:
            mean_S[clip] = max(float(np.mean(scores)), lowest)
        elif clip > own.num_clips:  # one clip beyond is rounding in the published files
            raise ValueError(
                f"annotation {annotation.qid!r}: clip {clip} is beyond its video {annotation.vid!r}, which has "
                f"{own.num_clips} clips of {seconds:g} s; correct relevant_clip_ids, or state the length of the rated "
                "clips in clip_seconds"
            )
    return timeline.resample(mean_S, seconds) if converts else mean_S


def bind_windows(windows: Sequence[Sequence[float]], clips: int, clip_seconds: float) -> Floats32:
    """Return windows that R2-Tuning's points can learn, (G, 2) in seconds.

    Windows are cut to the extent of the clips, and start and end are put in order. Windows shorter than a clip become
    one clip long around their center, and are moved inside the extent.
    """
    half, extent = (np.float32(clips_to_seconds(count, clip_seconds)) for count in (0.5, clips))
    bound = np.sort(np.asarray(windows, dtype=np.float32).reshape(-1, 2).clip(0, extent), axis=1)
    short = bound[:, 1] - bound[:, 0] < clip_seconds
    center = (bound[short].sum(1) / 2).clip(half, extent - half)
    bound[short] = np.stack([center - half, center + half], 1)
    return bound


def bind_saliency(
    windows: Floats32,
    clips: int,
    clip_seconds: float,
    scores: Sequence[Sequence[float]] | None = None,
    clip_ids: Sequence[int] | None = None,
) -> tuple[Floats32, list[int]]:
    """Return the saliency of each clip in [0, 1], and the clips from which one positive is drawn in each epoch.

    With ratings, saliency is their mean over 4; a clip that every rater gave 0 is not positive. Without ratings, it is
    1 for every clip that starts inside a window.

    Args:
        windows: (G, 2) seconds, made by ``bind_windows``.
        clips: T.
        clip_seconds: length of a clip in seconds.
        scores: ratings from 0 to 4 for each of ``clip_ids``, one per rater.
        clip_ids: the rated clips.
    """
    saliency_T = np.zeros(clips, dtype=np.float32)
    if scores is not None and clip_ids is not None:
        for clip, rating in zip(clip_ids, scores, strict=True):
            if clip < clips:
                saliency_T[clip] = sum(rating) / (4 * len(rating))
        return saliency_T, np.flatnonzero(saliency_T).tolist()
    # Windows and the length of a clip are float32, as in the published code.
    for start, end in np.ceil(seconds_to_clips(windows, clip_seconds)).astype(int):
        saliency_T[start:end] = 1
    return saliency_T, np.flatnonzero(saliency_T).tolist()
