"""Annotations and submissions as JSON lines, in the form of QVHighlights (Lei et al., NeurIPS 2021).

An annotation is the ground truth of one query on one video. A submission is the prediction of a model for that query.
Both have the same ``qid``. Both are checked when built; errors in files name file and line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from sidelight.core.options import is_finite_number
from sidelight.core.timeline import same_length
from sidelight.io.jsonl import read_json_lines, shown, write_json_lines

if TYPE_CHECKING:
    from sidelight.core.grounding import Grounding

Row = TypeVar("Row", "Annotation", "Submission")
Floats = npt.NDArray[np.float64]

CLIP_SECONDS = "clip_seconds"
"""Field of a row: the seconds of the clips that its ratings (of a prediction: its saliency) count."""
USUAL_CLIP_SECONDS = 2.0
"""Length of a rated clip where an annotation has no field clip_seconds, as on QVHighlights."""


class AnnotationError(ValueError):
    """The error for annotations or predictions of a wrong form.

    Args:
        message: what is wrong.
        side: the file with the wrong rows, ``predictions`` or ``annotations``; empty if neither alone is wrong.
        qid: the first wrong row, so that a caller who knows the file can name its line.
    """

    def __init__(self, message: str, *, side: str = "", qid: int | str | None = None) -> None:
        super().__init__(message)
        self.side, self.qid = side, qid


LONGEST_QUERY = 10_000
"""Most characters of a query. Text towers read a few hundred; to cut a megabyte into words takes minutes."""


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """The ground truth of one query on one video. Whole numbers stay whole, so a file can be written back.

    Raises:
        AnnotationError: if a field is wrong; names the field, the expected value and the value it has.
    """

    qid: int | str
    """Identifier of the query within its file."""
    query: str
    """The sentence."""
    vid: str
    """Identifier of the video."""
    duration: float
    """Length of the video in seconds."""
    relevant_windows: tuple[tuple[float, float], ...] = ()
    """[start, end] in seconds; empty in a split whose labels are not public. A few published windows end after their
    video."""
    relevant_clip_ids: tuple[int, ...] = ()
    """The rated clips."""
    saliency_scores: tuple[tuple[int, ...], ...] = ()
    """For each rated clip, one score per rater (0 to 4 on QVHighlights)."""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Fields of the file that sidelight does not read, kept so that they can be written back."""

    def __post_init__(self) -> None:
        _identify(self.qid, self.query, self.vid)
        duration = _number("duration", self.duration, "a number of seconds above 0")
        if duration <= 0:
            raise _wrong("duration", "a number of seconds above 0", self.duration)
        windows = tuple(_window(i, w, duration) for i, w in enumerate(_list(self, "relevant_windows")))
        clips = tuple(_whole("relevant_clip_ids", i, v) for i, v in enumerate(_list(self, "relevant_clip_ids")))
        if repeated := [clip for clip, count in Counter(clips).items() if count > 1]:
            raise _wrong("relevant_clip_ids", "clips that differ", repeated * 2)
        ratings = tuple(_ratings(i, v) for i, v in enumerate(_list(self, "saliency_scores")))
        if ratings and len(ratings) != len(clips):
            raise _wrong("saliency_scores", f"{len(clips)} lists, as many as relevant_clip_ids", len(ratings))
        if len(raters := sorted({len(r) for r in ratings})) > 1:
            raise _wrong("saliency_scores", "lists of one length, a score per rater", raters)
        if known := [name for name in self.extra if name in _ANNOTATION_FIELDS]:
            raise AnnotationError(f"extra must not hold {known[0]}, which is a field of its own; set that field")
        _ = self.clip_seconds  # raises if the field is wrong
        object.__setattr__(self, "duration", duration)
        object.__setattr__(self, "relevant_windows", windows)
        object.__setattr__(self, "relevant_clip_ids", clips)
        object.__setattr__(self, "saliency_scores", ratings)

    @property
    def clip_seconds(self) -> float:
        """Return the seconds of the clips that relevant_clip_ids count: the row's field, else 2 s.

        Raises:
            AnnotationError: if the field is not a number of seconds.
        """
        seconds = self.extra.get(CLIP_SECONDS)
        return USUAL_CLIP_SECONDS if seconds is None else _clip_seconds(seconds)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of a line, without the labels that are empty."""
        labels = {
            "relevant_clip_ids": list(self.relevant_clip_ids),
            "saliency_scores": [list(s) for s in self.saliency_scores],
            "relevant_windows": [list(w) for w in self.relevant_windows],
        }
        return {
            "qid": self.qid,
            "query": self.query,
            "duration": self.duration,
            "vid": self.vid,
            **{name: values for name, values in labels.items() if values},
            **self.extra,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Annotation:
        """Read one JSON object; a field that is null counts as missing.

        Raises:
            AnnotationError: if a field is wrong; names the field, the expected value and the value it has.
        """
        fields = {name: values[name] for name in _ANNOTATION_FIELDS if values.get(name) is not None}
        if "pred_relevant_windows" in values and "duration" not in fields:
            raise AnnotationError("expected an annotation, but this looks like a prediction; were two files swapped?")
        _require(fields, "qid", "query", "vid", "duration")
        require_known_names(values, {**dict.fromkeys(_ANNOTATION_FIELDS, ()), **_OTHER_NAMES})
        return cls(**fields, extra={k: v for k, v in values.items() if k not in _ANNOTATION_FIELDS})


_ANNOTATION_FIELDS = (
    "qid", "query", "vid", "duration", "relevant_windows", "relevant_clip_ids", "saliency_scores"
)  # fmt: skip
TIME_NAMES = (
    "window", "windows", "span", "spans", "moment", "moments", "segment", "segments", "interval", "intervals",
    "timestamps", "times", "start_time", "end_time", "start_sec", "end_sec", "begin",
)  # fmt: skip
"""Names that users give to the times of a moment."""
_OTHER_NAMES = {
    "relevant_windows": (*TIME_NAMES, "start", "end"),
    "relevant_clip_ids": ("clip_ids",),
    "saliency_scores": ("saliency", "ratings"),
    CLIP_SECONDS: (),
}
"""Fields of labels, with other names for them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Submission:
    """The prediction for one query, in the form of a submission. Arrays are read-only.

    Raises:
        AnnotationError: if a field is wrong; names the field, the expected value and the value it has.
    """

    qid: int | str
    """The qid of the annotation."""
    query: str = ""
    """The sentence; some published files leave it out."""
    vid: str
    """Identifier of the video."""
    pred_relevant_windows: Floats
    """(N, 3) [start, end, score] in seconds, best first. Evaluation does not sort them for recall."""
    pred_saliency_scores: Floats
    """(T,) one score per clip; (0,) if the model predicts none."""
    clip_seconds: float | None = None
    """Seconds of these clips; None if they are the clips that the annotation's ratings count."""

    def __post_init__(self) -> None:
        _identify(self.qid, self.query, self.vid, query_needed=False)
        windows = _floats("pred_relevant_windows", self.pred_relevant_windows, width=3)
        if (reversed_windows := np.flatnonzero(windows[:, 1] < windows[:, 0])).size:
            i = int(reversed_windows[0])
            expected = "[start, end, score] with start <= end"
            raise _wrong(f"pred_relevant_windows[{i}]", expected, windows[i].tolist())
        saliency = _floats("pred_saliency_scores", self.pred_saliency_scores)
        object.__setattr__(self, "pred_relevant_windows", windows)
        object.__setattr__(self, "pred_saliency_scores", saliency)
        if self.clip_seconds is not None:
            object.__setattr__(self, "clip_seconds", _clip_seconds(self.clip_seconds))

    def __eq__(self, value: object) -> bool:
        return isinstance(value, Submission) and self.to_dict() == value.to_dict()

    def __hash__(self) -> int:
        return hash((self.qid, self.vid))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of a line, without the query or the saliency if it is empty."""
        values: dict[str, Any] = {"qid": self.qid, "query": self.query, "vid": self.vid}
        if not self.query:
            del values["query"]
        values["pred_relevant_windows"] = self.pred_relevant_windows.tolist()
        if self.pred_saliency_scores.size:
            values["pred_saliency_scores"] = self.pred_saliency_scores.tolist()
        if self.clip_seconds is not None:
            values[CLIP_SECONDS] = self.clip_seconds
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Submission:
        """Read one JSON object; a field that is null counts as missing, and other fields are ignored.

        Raises:
            AnnotationError: if a field is wrong; names the field, the expected value and the value it has.
        """
        fields = {name: value for name, value in values.items() if value is not None}
        if "relevant_windows" in fields and "pred_relevant_windows" not in fields:
            raise AnnotationError("expected a prediction, but this looks like an annotation; were two files swapped?")
        _require(fields, "qid", "vid")
        require_known_names(fields, {name: () for name in ("pred_relevant_windows", "pred_saliency_scores")})
        if "pred_saliency_scores" not in fields:  # a prediction needs one of the two
            _require(fields, "pred_relevant_windows")
        return cls(
            qid=fields["qid"],
            query=fields.get("query", ""),
            vid=fields["vid"],
            pred_relevant_windows=fields.get("pred_relevant_windows", []),
            pred_saliency_scores=fields.get("pred_saliency_scores", []),
            clip_seconds=fields.get(CLIP_SECONDS),
        )

    @classmethod
    def from_grounding(cls, annotation: Annotation, grounding: Grounding) -> Submission:
        """Build the submission from a grounding of the annotation's query.

        Raises:
            AnnotationError: if the grounding is of another query.
        """
        if grounding.query != annotation.query:
            raise AnnotationError(
                f"expected a grounding of qid {annotation.qid!r}'s query {annotation.query!r}, "
                f"got one of {grounding.query!r}; give the grounding of that query"
            )
        windows = [[m.start, m.end, m.score] for m in grounding.moments]
        seconds = grounding.timeline.clip_seconds
        return cls(
            qid=annotation.qid,
            query=annotation.query,
            vid=annotation.vid,
            pred_relevant_windows=np.array(windows, dtype=np.float64).reshape(-1, 3),
            pred_saliency_scores=grounding.saliency.astype(np.float64),
            clip_seconds=None if same_length(seconds, annotation.clip_seconds) else seconds,
        )


def read_annotations(path: str | Path) -> list[Annotation]:
    """Read a JSONL file of annotations.

    Raises:
        AnnotationError: if a row is wrong; names file, line and field.
    """
    return _read(path, Annotation.from_dict, "annotations")


def read_submissions(path: str | Path) -> list[Submission]:
    """Read a JSONL file of predictions.

    Raises:
        AnnotationError: if a row is wrong; names file, line and field.
    """
    return _read(path, Submission.from_dict, "predictions")


def _read(path: str | Path, parse: Callable[[Mapping[str, Any]], Row], kind: str) -> list[Row]:
    if not Path(path).is_file():
        raise AnnotationError(f"there is no file {path}; expected {kind} as JSON lines")
    rows: list[Row] = []
    line_numbers: dict[int | str, int] = {}
    for line in read_json_lines(path, lenient=True):
        where = f"{path}:{line.number}"
        if line.problem:
            raise AnnotationError(f"{where}: {line.problem}; correct this line, or give {kind} as JSON lines")
        try:
            row = parse(line.values)
        except AnnotationError as error:
            raise AnnotationError(f"{where}: {error}; correct this line") from None
        if row.qid in line_numbers:
            raise AnnotationError(
                f"{where}: qid {row.qid!r} is in line {line_numbers[row.qid]} already; give each row its own qid"
            )
        line_numbers[row.qid] = line.number
        rows.append(row)
    if not rows:
        raise AnnotationError(f"{path} is empty; expected {kind} as JSON lines")
    return rows


def line_of(path: str | Path, qid: int | str) -> int | None:
    """Return the number of the line with a qid; None if no line of the file has it, or it is not in JSON lines."""
    return next((line.number for line in read_json_lines(path, lenient=True) if line.values.get("qid") == qid), None)


def write_annotations(path: str | Path, rows: Sequence[Annotation]) -> None:
    """Write a JSONL file of annotations. The file appears complete or not at all."""
    write_json_lines(path, (row.to_dict() for row in rows))


def write_submissions(path: str | Path, rows: Sequence[Submission]) -> None:
    """Write a JSONL file of predictions. The file appears complete or not at all."""
    write_json_lines(path, (row.to_dict() for row in rows))


# --- checks of one field each -----------------------------------------------------------------------------


def _wrong(name: str, expected: str, value: Any) -> AnnotationError:
    return AnnotationError(f"{name} must be {expected}, got {shown(value)}")


def _require(values: Mapping[str, Any], *names: str) -> None:
    for name in names:
        if name not in values:
            raise AnnotationError(f"the field {name} is missing; add it")


def require_known_names(values: Mapping[str, Any], names: Mapping[str, Sequence[str]]) -> None:
    """Refuse a field whose name looks like a misspelt one: without its labels a row would mean something else.

    Args:
        values: the fields of a row; a field that is null or blank counts as missing.
        names: each known field, with other names that users give to it.

    Raises:
        AnnotationError: if the row lacks a known field, and has an unknown one with a similar or another name.
    """
    present = {name for name, value in values.items() if value is not None and str(value).strip()}
    for name in sorted(present.difference(names)):
        lower = name.lower()
        if lower.startswith("pred_") and not any(known.startswith("pred_") for known in names):
            continue  # predictions beside the annotation
        meant = [
            known
            for known, other_names in names.items()
            if known not in present and (lower in other_names or get_close_matches(lower, [known], cutoff=0.8))
        ]
        if meant:
            raise AnnotationError(
                f"there is no field {name}; give {' and '.join(meant)} instead, or remove {name} if it is something "
                "else"
            )


def _identify(qid: Any, query: Any, vid: Any, *, query_needed: bool = True) -> None:
    if isinstance(qid, bool) or not isinstance(qid, (int, str)) or qid == "":
        raise _wrong("qid", "a whole number or a text", qid)
    if not isinstance(query, str) or (query_needed and not query.strip()):
        raise _wrong("query", "a sentence", query)
    if len(query) > LONGEST_QUERY:
        raise _wrong("query", f"a sentence of at most {LONGEST_QUERY:,} characters", query)
    if not isinstance(vid, str) or not vid.strip():
        raise _wrong("vid", "the name of a video", vid)


def _list(row: Annotation, name: str) -> Sequence[Any]:
    values = getattr(row, name)
    if not isinstance(values, (list, tuple)):
        raise _wrong(name, "a list", values)
    return values


def _plain(value: Any) -> Any:
    """Return a NumPy number as a Python number, which JSON can hold."""
    return value.item() if isinstance(value, np.generic) else value


def _number(name: str, value: Any, expected: str) -> float:
    value = _plain(value)
    if not is_finite_number(value):
        raise _wrong(name, expected, value)
    number: float = value
    return number


def _clip_seconds(value: Any) -> float:
    expected = "a number of seconds above 0"
    seconds = _number(CLIP_SECONDS, value, expected)
    if not 0 < seconds < 1e6:
        raise _wrong(CLIP_SECONDS, expected, value)
    return float(seconds)


def _window(index: int, window: Any, duration: float) -> tuple[float, float]:
    name, expected = f"relevant_windows[{index}]", "[start, end] in seconds with 0 <= start < end"
    if not isinstance(window, (list, tuple)) or len(window) != 2:
        raise _wrong(name, expected, window)
    start, end = (_number(name, v, expected) for v in window)
    if not 0 <= start < end:
        raise _wrong(name, expected, list(window))
    if start >= duration:
        raise _wrong(name, f"within its video of {duration} s", list(window))
    return start, end


def _whole(name: str, index: int, value: Any) -> int:
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _wrong(f"{name}[{index}]", "a whole number of at least 0", value)
    return value


def _ratings(index: int, values: Any) -> tuple[int, ...]:
    name = f"saliency_scores[{index}]"
    if not isinstance(values, (list, tuple)) or not values:
        raise _wrong(name, "a list of whole numbers, a score per rater", values)
    return tuple(_whole(name, i, v) for i, v in enumerate(values))


def _floats(name: str, values: Any, width: int | None = None) -> Floats:
    """Return finite numbers from lists or an array as a read-only copy, (N,) or (N, width)."""
    each = "a finite number" if width is None else f"a list of {width} finite numbers"
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if not isinstance(values, (list, tuple)):
        raise _wrong(name, f"a list, in which each is {each}", values)
    for i, row in enumerate(values):
        cells = [row] if width is None else row
        fits = isinstance(cells, (list, tuple)) and (width is None or len(cells) == width)
        if not fits or not all(map(is_finite_number, cells)):
            raise _wrong(f"{name}[{i}]", each, row)
    array = np.array(values, dtype=np.float64).reshape((-1,) if width is None else (-1, width))
    array.setflags(write=False)
    return array
