"""The answer for one video and one query: moments and the highlight curve."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from sidelight import __version__
from sidelight.core.display import as_html, as_text
from sidelight.core.messages import count_of
from sidelight.core.options import is_finite_number
from sidelight.core.timeline import Timeline

if TYPE_CHECKING:
    import pandas

    from sidelight.export.clips import Clip

FORMAT = "sidelight.grounding/1"
FAINTEST = 0.25
"""Share of the best score; moments that score less are noise, which films and pictures leave out."""
_SHOWN = 10
"""Moments that ``print`` and a notebook show."""


@dataclass(frozen=True, slots=True)  # slots halve the memory of the answers to many queries
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
    """Confidence: higher is surer; comparable only within one Grounding."""

    def __post_init__(self) -> None:
        for name in ("start", "end", "score"):
            value = getattr(self, name)
            if not is_finite_number(value):
                raise ValueError(f"Moment.{name} must be a finite number, got {value!r}")
            object.__setattr__(self, name, float(value))
        if not 0 <= self.start <= self.end:
            raise ValueError(f"a moment needs 0 <= start <= end, got start {self.start} and end {self.end}")

    @property
    def duration(self) -> float:
        """Return the seconds from start to end."""
        return self.end - self.start


@dataclass(frozen=True, kw_only=True, eq=False)
class Grounding:
    """The moments of one video that fit one query, and the highlight curve.

    A grounding is a sequence of its moments, best first: ``for moment in grounding``, ``grounding[0]``,
    ``grounding[:3]``, ``len(grounding)``. It is false if no moment fits the query.

    Raises:
        ValueError: if a moment ends after the video, or the saliency has not one finite value per clip.
    """

    query: str
    """The sentence."""
    timeline: Timeline
    """Clips and duration of the video."""
    moments: tuple[Moment, ...]
    """Sorted by falling score; equal scores keep their order."""
    saliency: npt.NDArray[np.float32]
    """(num_clips,) the highlight curve: one score per clip. Read-only."""
    video: str | None = None
    """The file or the id of the video."""
    notes: tuple[str, ...] = ()
    """Sentences that matter to the answer: damage of the video, joined recordings, words that the model never saw."""
    model: str | None = None
    """The model that answered: a name of `sidelight models`, a folder, or a hub id; None if unknown."""
    features: str | None = None
    """Digest of the feature spec, which says how the features were made; None if unknown."""

    def __post_init__(self) -> None:
        if not isinstance(self.query, str):
            raise ValueError(f"Grounding.query must be a sentence, got {self.query!r}")
        if self.video is not None and not isinstance(self.video, str):
            raise ValueError(f"Grounding.video must be a path or id as text, or None, got {self.video!r}")
        model: Any = self.model
        if model is not None and (not isinstance(model, str) or not model.strip()):
            raise ValueError(f"Grounding.model must be the name of a model as text, or None, got {self.model!r}")
        if self.features is not None and not isinstance(self.features, str):
            raise ValueError(f"Grounding.features must be a digest as text, or None, got {self.features!r}")
        if not all(isinstance(note, str) for note in self.notes):
            raise ValueError(f"Grounding.notes must be sentences, got {self.notes!r}")
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

    def __len__(self) -> int:
        return len(self.moments)

    def __iter__(self) -> Iterator[Moment]:
        return iter(self.moments)

    @overload
    def __getitem__(self, index: int) -> Moment: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Moment, ...]: ...
    def __getitem__(self, index: int | slice) -> Moment | tuple[Moment, ...]:
        return self.moments[index]

    def __str__(self) -> str:
        return "\n".join([self.to_text(top=_SHOWN), *self._left_out(_SHOWN), *self.notes])

    def _repr_html_(self) -> str:
        return self.to_html(top=_SHOWN)

    def _left_out(self, top: int | None) -> list[str]:
        """Return a line that says how many moments are not among the first ones; none if all are."""
        more = 0 if top is None else len(self.moments) - top
        return [f"and {count_of(more, 'more moment')}"] if more > 0 else []

    def to_html(self, *, top: int | None = None, thumbnails: Sequence[bytes] = ()) -> str:
        """Return the query, the highlight curve and a table of the moments as HTML, as notebooks show them.

        Args:
            top: number of moments; all unless given.
            thumbnails: a JPEG for each moment that is shown, best first, as
                the function of ``export/thumbnails.py`` returns them; none unless given.

        Raises:
            ValueError: if there are thumbnails, but not one per moment.
        """
        return as_html(
            self.query,
            self.saliency.tolist(),
            self._rows(top),
            clip_seconds=self.timeline.clip_seconds,
            duration=self.timeline.duration,
            lines=[
                *self._left_out(top),
                *([self.video] if self.video else []),
                *([f"model {self.model}"] if self.model else []),
                *self.notes,
            ],
            thumbnails=thumbnails,
        )

    def to_text(self, *, top: int | None = None, width: int = 75) -> str:
        """Return the query, the highlight curve and a table of the moments, as ``sidelight ground`` prints them.

        Args:
            top: number of moments; all unless given.
            width: most characters of the curve.
        """
        return as_text(self.query, self.saliency.tolist(), self._rows(top), width=width)

    def _rows(self, top: int | None) -> list[tuple[float, float, float]]:
        moments = self.moments if top is None else self.top(top)
        return [(moment.start, moment.end, moment.score) for moment in moments]

    def to_pandas(self) -> pandas.DataFrame:
        """Return a data frame with a row for each moment, best first: video, query, start, end, score, model.

        Raises:
            ValueError: if pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise ValueError("to_pandas needs pandas: pip install pandas") from None
        columns = ["video", "query", "start", "end", "score", "model"]
        rows = [(self.video, self.query, m.start, m.end, m.score, self.model) for m in self.moments]
        return pandas.DataFrame(rows, columns=columns)

    def top(self, n: int) -> tuple[Moment, ...]:
        """Return the n best moments."""
        return self.moments[: max(0, n)]

    def best(self, n: int) -> Grounding:
        """Return the grounding with its n best moments."""
        return replace(self, moments=self.top(n))

    def without_faint(self) -> Grounding:
        """Return the grounding without the moments that score less than a quarter of the best one.

        The commands cut and draw these moments only; the methods of this class leave nothing out by themselves.
        """
        if not self.moments:
            return self
        best = self.moments[0].score
        return self.at_least(min(FAINTEST * best, best))

    def export(self, path: str | Path, *, format: str | None = None, video: str | Path | None = None) -> None:
        """Write the moments for another program: subtitles, chapters, an edit list, a timeline and so on.

        Args:
            path: the file to write; its suffix chooses the format (docs/export.md lists them).
            format: name of the format, where the suffix does not say it.
            video: the video file, for timelines and cut lists, where the grounding does not name it.

        Raises:
            ValueError: see :func:`sidelight.export.formats.export`.
        """
        # By name, because the package export stands above this one; see METHODS in tests/test_architecture.py.
        import_module("sidelight.export.formats").export(self, path, format=format, video=video)

    def clips(
        self,
        folder: str | Path,
        *,
        video: str | Path | None = None,
        top: int | None = None,
        padding: float = 0.0,
        copy: bool = False,
    ) -> list[Clip]:
        """Cut the moments into video files, and return them in the order of time.

        Args:
            folder: where to write; made if missing. A file gets the same name each time.
            video: the video file, where the grounding does not name it.
            top: number of moments, best first; all unless given.
            padding: seconds that are added before and after each moment, within the video.
            copy: copy without encoding, from the last keyframe before each moment on.

        Raises:
            ValueError: see :func:`sidelight.export.clips.cut_clips`.
            VideoError: if the video cannot be read.
        """
        cut = import_module("sidelight.export.clips").cut_clips
        clips: list[Clip] = cut(self, folder, video=video, top=top, padding=padding, copy=copy)
        return clips

    def at_least(self, score: float) -> Grounding:
        """Return the grounding without the moments that score less; if none is left, no moment fits the query.

        ``metrics/calibration.py`` chooses the score from examples; ``min_score`` of a decoding configuration does the
        same while decoding.
        """
        return replace(self, moments=tuple(m for m in self.moments if m.score >= score))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; :meth:`from_dict` returns an equal Grounding."""
        return {
            "format": FORMAT,
            "sidelight": __version__,
            "model": self.model,
            "features": self.features,
            "video": self.video,
            "query": self.query,
            **({"notes": list(self.notes)} if self.notes else {}),  # before the long lists, where people look
            "timeline": self.timeline.to_dict(),
            "moments": [{"start": m.start, "end": m.end, "score": m.score} for m in self.moments],
            "saliency": [float(v) for v in self.saliency],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Grounding:
        """Build a grounding from the values of :meth:`to_dict`.

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
            notes=_notes(values.get("notes", ())),
            model=values.get("model"),  # older files say neither
            features=values.get("features"),
        )

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Grounding:
        """Build a grounding from the text of :meth:`to_json`; ValueError if the text is not a grounding."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"expected a grounding as JSON, got invalid JSON: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"expected a grounding as a JSON object, got {type(values).__name__}")
        return cls.from_dict(values)


def _float32(values: Any) -> npt.NDArray[np.float32]:
    """Return a copy, so that the caller cannot change the values later."""
    try:
        with np.errstate(over="ignore"):  # the infinity is refused later, with a message
            return np.array(values, dtype=np.float32)
    except (TypeError, ValueError):
        raise ValueError(f"saliency must be a list of numbers, got {values!r}") from None


def _notes(values: Any) -> tuple[str, ...]:
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"notes must be a list of sentences, got {values!r}")
    return tuple(values)


def _moments(values: Any) -> tuple[Moment, ...]:
    expected = "moments must be a list of objects with start, end and score"
    if not isinstance(values, list):
        raise ValueError(f"{expected}, got {values!r}")
    for item in values:
        if not isinstance(item, Mapping) or not {"start", "end", "score"} <= item.keys():
            raise ValueError(f"{expected}; one is {item!r}")
    return tuple(Moment(item["start"], item["end"], item["score"]) for item in values)
