"""The answer for one video and one query: moments, and the highlight curve."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sidelight.core.timeline import Timeline

FORMAT = "sidelight.grounding/1"


@dataclass(frozen=True)
class Moment:
    """A span with a score.

    Raises:
        ValueError: unless all three are finite and 0 <= start <= end.
    """

    start: float
    """Seconds."""
    end: float
    """Seconds."""
    score: float
    """The higher the surer; comparable within one Grounding."""

    def __post_init__(self) -> None:
        for name in ("start", "end", "score"):
            value = getattr(self, name)
            object.__setattr__(self, name, _finite(value, f"Moment.{name}"))
        if not 0 <= self.start <= self.end:
            raise ValueError(f"a moment needs 0 <= start <= end, got start {self.start} and end {self.end}")

    @property
    def duration(self) -> float:
        """Seconds from start to end."""
        return self.end - self.start


@dataclass(frozen=True, kw_only=True, eq=False)
class Grounding:
    """Where in a video a query is true.

    Raises:
        ValueError: if a moment ends after the video, or the saliency has not one finite value per clip.
    """

    query: str
    """The sentence that was asked."""
    timeline: Timeline
    """Clips and duration of the video."""
    moments: tuple[Moment, ...]
    """By falling score."""
    saliency: npt.NDArray[np.float32]
    """(num_clips,) the highlight curve: one score per clip; read-only."""
    video: str | None = None
    """The file, or the id, of the video."""

    def __post_init__(self) -> None:
        if not isinstance(self.query, str):
            raise ValueError(f"Grounding.query must be a sentence, got {self.query!r}")
        if self.video is not None and not isinstance(self.video, str):
            raise ValueError(f"Grounding.video must be a path or id as text, or None, got {self.video!r}")
        duration = self.timeline.duration
        for moment in self.moments:
            if moment.end > duration:
                raise ValueError(f"the moment {moment} ends after its video, which lasts {duration:g} s")
        ordered = tuple(sorted(self.moments, key=lambda m: -m.score))
        saliency = _float32(self.saliency)
        if saliency.shape != (self.timeline.num_clips,):
            raise ValueError(
                f"saliency must have one value for each of {self.timeline.num_clips} clips, got shape {saliency.shape}"
            )
        if not np.isfinite(saliency).all():
            raise ValueError("saliency must be finite; it holds NaN or infinity")
        saliency.setflags(write=False)
        object.__setattr__(self, "moments", ordered)
        object.__setattr__(self, "saliency", saliency)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grounding) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.query, self.timeline, self.moments, self.video))

    def top(self, n: int) -> tuple[Moment, ...]:
        """The n best moments."""
        return self.moments[: max(0, n)]

    def at_least(self, score: float) -> Grounding:
        """Without the moments that score less; with none left, the answer is that there is no such moment."""
        return replace(self, moments=tuple(m for m in self.moments if m.score >= score))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; :meth:`from_dict` gives back an equal Grounding."""
        return {
            "format": FORMAT,
            "video": self.video,
            "query": self.query,
            "timeline": self.timeline.to_dict(),
            "moments": [{"start": m.start, "end": m.end, "score": m.score} for m in self.moments],
            "saliency": [float(v) for v in self.saliency],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Grounding:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: for another format, or a missing field.
        """
        if values.get("format") != FORMAT:
            raise ValueError(f"expected a grounding of format {FORMAT!r}, got {values.get('format')!r}")
        if missing := [k for k in ("query", "timeline", "moments", "saliency") if k not in values]:
            raise ValueError(f"the grounding lacks {', '.join(missing)}")
        return cls(
            query=values["query"],
            timeline=Timeline.from_dict(values["timeline"]),
            moments=_moments(values["moments"]),
            saliency=_float32(values["saliency"]),
            video=values.get("video"),
        )

    def to_json(self) -> str:
        """As one line of JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Grounding:
        """The inverse of :meth:`to_json`; ValueError for what is no grounding."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"expected a grounding as JSON, got invalid JSON: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"expected a grounding as a JSON object, got {type(values).__name__}")
        return cls.from_dict(values)


def _finite(value: object, name: str) -> float:
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    try:
        # mypy does not follow `number` back to the type that it was found by.
        found = float(value) if number else math.nan  # type: ignore[arg-type]
    except OverflowError:  # a whole number with more than 308 digits
        found = math.inf
    if not math.isfinite(found):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return found


def _float32(values: Any) -> npt.NDArray[np.float32]:
    """A copy, so that nobody else can change it."""
    try:
        with np.errstate(over="ignore"):  # an infinity, which is refused by name later
            return np.array(values, dtype=np.float32)
    except (TypeError, ValueError):
        raise ValueError(f"saliency must be a list of numbers, got {values!r}") from None


def _moments(values: Any) -> tuple[Moment, ...]:
    wanted = "moments must be a list of objects with start, end and score"
    if not isinstance(values, list):
        raise ValueError(f"{wanted}, got {values!r}")
    for item in values:
        if not isinstance(item, Mapping) or not {"start", "end", "score"} <= item.keys():
            raise ValueError(f"{wanted}; one is {item!r}")
    return tuple(Moment(item["start"], item["end"], item["score"]) for item in values)
