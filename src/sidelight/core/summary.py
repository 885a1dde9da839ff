"""The summary of a video: its best segments, as a grounding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from sidelight.core.grounding import Grounding
from sidelight.core.timeline import Timeline, seconds_to_clips


@dataclass(frozen=True, kw_only=True, eq=False)
class Summary(Grounding):
    """The best moments of a video without a question: a grounding, so that all exports work.

    The query is the topic. The moments are the segments that were picked, those that touch as one; their score is the
    mean of the highlight curve over their clips, scaled to 0 to 1 within the video.

    Raises:
        ValueError: as :class:`sidelight.Grounding`, or if the segments do not cover the clips.
    """

    segments: npt.NDArray[np.int64]
    """(S, 2) first clip of each segment of the video and the clip after its last one, without gaps. Read-only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        segments = np.array(self.segments, dtype=np.int64).reshape(-1, 2)
        clips = self.timeline.num_clips
        if not np.array_equal(np.append(segments[:, 0], clips), np.insert(segments[:, 1], 0, 0)):
            raise ValueError(f"the segments of a summary must cover {clips} clips without gaps")
        segments.setflags(write=False)
        object.__setattr__(self, "segments", segments)

    @property
    def seconds(self) -> float:
        """Return the length of the summary."""
        return sum(moment.duration for moment in self.moments)

    @property
    def picked_clips(self) -> npt.NDArray[np.bool_]:
        """Return whether each clip is in the summary, (T,), as the metrics of summaries read it."""
        picked_T = np.zeros(self.timeline.num_clips, dtype=bool)
        for moment in self.moments:
            first, last = (seconds_to_clips(edge, self.timeline.clip_seconds) for edge in (moment.start, moment.end))
            picked_T[round(first) : math.ceil(last - 1e-6)] = True  # the last clip may be cut short
        return picked_T

    def without_faint(self) -> Summary:
        """Return the summary itself: a picked segment with a low score is no noise."""
        return self

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Summary:
        """Build a summary from the values of :meth:`to_dict`.

        Raises:
            ValueError: as :meth:`sidelight.Grounding.from_dict`, or if the segments are no pairs of seconds.
        """
        grounding = Grounding.from_dict(values)
        try:
            seconds = np.array(values["segments"], dtype=np.float64).reshape(-1, 2)
            spans_T2 = grounding.timeline.clip_spans()
            starts, ends = (np.searchsorted(spans_T2[:, i], seconds[:, i] - 1e-6) for i in (0, 1))
            segments = np.stack([starts, ends + 1], axis=1)
        except (KeyError, TypeError, ValueError):
            raise ValueError("segments must be a list of [start, end] in seconds, which follow each other") from None
        return cls(**{f.name: getattr(grounding, f.name) for f in fields(Grounding)}, segments=segments)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: those of a grounding, and the segments in seconds."""
        spans = segment_spans(self.timeline, self.segments)
        return {**super().to_dict(), "segments": [[float(start), float(end)] for start, end in spans]}


def segment_spans(timeline: Timeline, segments: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the start and end of segments in seconds, (S, 2).

    Args:
        timeline: the clips.
        segments: (S, 2) first clip, and the clip after the last one.
    """
    spans_T2 = timeline.clip_spans()
    return np.stack([spans_T2[segments[:, 0], 0], spans_T2[segments[:, 1] - 1, 1]], axis=1)
