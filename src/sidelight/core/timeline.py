"""The map between clips and seconds; the only place where clips and seconds are converted.

Clip i covers [i, i + 1) * clip_seconds. The *extent* is the second at which the last clip ends; it may lie a little
after the end of the video. Models count in units of the extent, so that 1.0 is the end of the last clip.

Legend: T clips, n frames per clip; spans (..., 2) are [start, end].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast, overload

import numpy as np
import numpy.typing as npt

from sidelight.core.options import is_finite_number

Floats = npt.NDArray[np.float64]
_ROUNDING = 1e-6  # clips; durations are sums of fractions, so 150.0000001 s are still 75 clips


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The clips of one video.

    Raises:
        ValueError: unless both numbers are finite and above 0.
    """

    duration: float
    """Length of the video in seconds."""
    clip_seconds: float
    """Length of a clip in seconds."""
    clips: int | None = None
    """Number of clips, where their features end before the video does; else the clips that cover the duration."""

    def __post_init__(self) -> None:
        clips: object = self.clips  # a caller may pass any type
        if clips is not None and (not isinstance(clips, int) or clips < 1):
            raise ValueError(f"Timeline.clips must be a whole number above 0, or None, got {clips!r}")
        for name in ("duration", "clip_seconds"):
            value = getattr(self, name)
            if not is_finite_number(value) or value <= 0:
                raise ValueError(f"Timeline.{name} must be a number of seconds above 0, got {value!r}")
            object.__setattr__(self, name, float(value))
        if not math.isfinite(self.duration / self.clip_seconds):
            raise ValueError(f"Timeline.clip_seconds is too small for {self.duration:g} s, got {self.clip_seconds:g}")
        if self.clips == self._covering_clips():
            object.__setattr__(self, "clips", None)  # equal timelines are equal however they were made

    @property
    def num_clips(self) -> int:
        """Return T; the last clip may be cut short by the end of the video."""
        return self._covering_clips() if self.clips is None else self.clips

    def _covering_clips(self) -> int:
        return max(1, math.ceil(self.duration / self.clip_seconds - _ROUNDING))

    @property
    def extent(self) -> float:
        """Return the second at which the last clip ends: the unit of models."""
        return self.num_clips * self.clip_seconds

    def first(self, clips: int) -> Timeline:
        """Return the timeline of the first ``clips`` clips; this timeline itself if it has no more."""
        if clips >= self.num_clips:
            return self
        return Timeline(duration=clips * self.clip_seconds, clip_seconds=self.clip_seconds)

    def rounded(self) -> Timeline:
        """Return the timeline without a last clip of which less than half lies in the video.

        FFmpeg's filter fps, by which R2-Tuning extracts its frames, rounds the number of frames in the same way.
        """
        nearest = max(1, math.floor(self.duration / self.clip_seconds + 0.5))
        return self if nearest >= self.num_clips else replace(self, clips=nearest)

    def clip_spans(self) -> Floats:
        """Return the span of each clip in seconds, (T, 2); the last one ends at the duration."""
        edges = np.arange(self.num_clips + 1) * self.clip_seconds
        return np.stack([edges[:-1], np.minimum(edges[1:], self.duration)], axis=1)

    def clip_centers(self) -> Floats:
        """Return the middle of each clip in seconds, (T,); the last one may lie after the duration."""
        centers: Floats = np.arange(self.num_clips).astype(np.float64) + 0.5
        return clips_to_seconds(centers, self.clip_seconds)

    def frame_seconds(self, frames_per_clip: int) -> Floats:
        """Return the seconds of the frames to read, (T, n): middles of n equal parts of each clip, inside the video.

        Raises:
            ValueError: if frames_per_clip is below 1.
        """
        if frames_per_clip < 1:
            raise ValueError(f"frames_per_clip must be 1 or more, got {frames_per_clip}")
        clips = np.arange(self.num_clips)[:, None]
        parts = (np.arange(frames_per_clip) + 0.5) / frames_per_clip
        inside = np.nextafter(self.duration, 0.0)
        return np.minimum((clips + parts) * self.clip_seconds, inside)

    def frame_times(self, frames_per_clip: int) -> FrameTimes:
        """Return the seconds of :meth:`frame_seconds` in one row, each computed when it is read.

        Raises:
            ValueError: if frames_per_clip is below 1.
        """
        return FrameTimes(self, frames_per_clip)

    def to_unit(self, spans_seconds: npt.ArrayLike) -> Floats:
        """Convert [start, end] in seconds to units of the extent."""
        return np.asarray(spans_seconds, dtype=np.float64) / self.extent

    def to_seconds(self, spans_unit: npt.ArrayLike) -> Floats:
        """Convert [start, end] in units of the extent to seconds, clamped to the video."""
        return np.clip(np.asarray(spans_unit, dtype=np.float64) * self.extent, 0.0, self.duration)

    def clips_in(self, start: float, end: float) -> range:
        """Return the clips that [start, end] covers by at least half; if there is none, the clip that it covers most.

        Raises:
            ValueError: if the span is not within the video or ends before it starts.
        """
        # A duration may exceed the extent by a rounding error (see _ROUNDING).
        limit = max(self.extent, self.duration)
        if not 0 <= start <= end <= limit:
            raise ValueError(f"a span must lie within [0, {limit:g}] s in order, got [{start}, {end}]")
        unit = self.clip_seconds
        first, stop = math.ceil(start / unit - 0.5 - _ROUNDING), math.floor(end / unit + 0.5 + _ROUNDING)
        first, stop = max(first, 0), min(stop, self.num_clips)
        if first < stop:
            return range(first, stop)
        middle = min(int((start + end) / 2 / unit), self.num_clips - 1)
        return range(middle, middle + 1)

    def resample(self, values_S: npt.ArrayLike, clip_seconds: float) -> Floats:
        """Return the mean over each clip, (T,), of values that belong to clips of another length.

        A clip takes each value by the share of time that it overlaps. A clip that no value reaches gets 0; values after
        the last clip are left out.

        Args:
            values_S: one value for each clip of ``clip_seconds``, from the start of the video.
            clip_seconds: length of the clips of the values in seconds.
        """
        values = np.asarray(values_S, dtype=np.float64)
        # Rounded, so that edges at the same second are one edge: otherwise equal values could become unequal.
        own_edges = (np.arange(self.num_clips + 1) * self.clip_seconds).round(6)
        value_edges = (np.arange(len(values) + 1) * clip_seconds).round(6)
        edges = np.union1d(own_edges, value_edges)
        edges = edges[edges <= min(own_edges[-1], value_edges[-1])]
        lengths = np.diff(edges)
        own = np.searchsorted(own_edges, edges[:-1], side="right") - 1
        source = np.searchsorted(value_edges, edges[:-1], side="right") - 1
        total_T = np.bincount(own, weights=lengths * values[source], minlength=self.num_clips)
        seconds_T = np.bincount(own, weights=lengths, minlength=self.num_clips)
        resampled: Floats = np.divide(total_T, seconds_T, out=np.zeros(self.num_clips), where=seconds_T > 0)
        return resampled

    def windows(self, clips: int) -> list[tuple[int, Timeline]]:
        """Cut a long video into windows of ``clips`` clips that overlap by half.

        Returns:
            (first clip, the window's own timeline) of each window, in order. The last window ends with the video, so
            that all have equally many clips. A video of up to :func:`longest_input` clips is one window.
        """
        if clips < 2:
            raise ValueError(f"a window needs 2 clips or more, got {clips}")
        if self.num_clips <= longest_input(clips):
            return [(0, self)]
        last = self.num_clips - clips
        firsts = [*range(0, last, clips // 2), last]
        ends = [min((first + clips) * self.clip_seconds, self.duration) for first in firsts[:-1]]
        return [
            (first, replace(self, duration=end - first * self.clip_seconds, clips=clips))
            for first, end in zip(firsts, [*ends, self.duration], strict=True)
        ]

    def to_dict(self) -> dict[str, float]:
        """Return plain values for JSON; the number of clips only where the duration does not say it."""
        clips = {} if self.clips is None else {"clips": self.clips}
        return {"duration": self.duration, "clip_seconds": self.clip_seconds, **clips}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Timeline:
        """Build a timeline from the values of :meth:`to_dict`; ValueError if a field is missing."""
        present = values.keys() if hasattr(values, "keys") else ()
        for name in ("duration", "clip_seconds"):
            if name not in present:
                raise ValueError(f"a timeline needs duration and clip_seconds; {name} is missing")
        return cls(duration=values["duration"], clip_seconds=values["clip_seconds"], clips=values.get("clips"))


class FrameTimes(Sequence[float]):
    """The seconds of the frames to read, ascending: as many as T clips have, and no memory for them.

    Args:
        timeline: the clips.
        frames_per_clip: n.

    Raises:
        ValueError: if frames_per_clip is below 1.
    """

    def __init__(self, timeline: Timeline, frames_per_clip: int) -> None:
        if frames_per_clip < 1:
            raise ValueError(f"frames_per_clip must be 1 or more, got {frames_per_clip}")
        self._timeline, self._per_clip = timeline, frames_per_clip
        self._count = timeline.num_clips * frames_per_clip
        self._inside = math.nextafter(timeline.duration, 0.0)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> list[float]: ...

    def __getitem__(self, index: int | slice) -> float | list[float]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        clip, part = divmod(range(self._count)[index], self._per_clip)
        seconds = clips_to_seconds(clip + (part + 0.5) / self._per_clip, self._timeline.clip_seconds)
        return min(seconds, self._inside)


def longest_input(window_clips: int) -> int:
    """Return the clips of the longest video that is read whole: a twentieth more than a window.

    Two windows that differ by a few clips answer worse than one reading of the whole video.
    """
    return window_clips + window_clips // 20


Number = TypeVar("Number")
"""A number, an array or a tensor."""


def clips_to_seconds(clips: Number, clip_seconds: float) -> Number:
    """Convert places counted in clips to seconds; arrays and tensors keep their type and precision."""
    seconds: Number = cast("Any", clips) * clip_seconds  # numbers, arrays and tensors share no type
    return seconds


def same_length(first: float, second: float) -> bool:
    """Check whether two lengths of clips are the same; a recipe has few decimals of a fraction such as 50/30 s."""
    return math.isclose(first, second, rel_tol=1e-4)


CLIPS_OFF = 4
"""Clips by which the length of a video, or of its features, may differ from the annotated one. R2-Tuning's loader
accepts the same difference."""


def durations_differ(annotated: float, actual: float, clip_seconds: float, *, clips: int = 1) -> bool:
    """Check whether a video is so much shorter or longer than annotated that it is probably another video.

    A tenth of the annotated duration passes, up to CLIPS_OFF clips, and at least ``clips`` clips.
    """
    tenth = min(clips_to_seconds(CLIPS_OFF, clip_seconds), annotated / 10)
    return abs(annotated - actual) > max(clips_to_seconds(clips, clip_seconds), tenth)


def seconds_to_clips(seconds: Number, clip_seconds: float) -> Number:
    """Convert seconds to places counted in clips; arrays and tensors keep their type and precision."""
    clips: Number = cast("Any", seconds) / clip_seconds
    return clips
