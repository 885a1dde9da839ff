"""Annotations and submissions as JSON lines, in the form of QVHighlights (Lei et al., NeurIPS 2021).

One JSON object per line. An annotation says what is true of a video, a submission what a model said of it;
``qid`` ties them. Both are checked when built; errors in files name file and line.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from sidelight.core.options import is_finite_number
from sidelight.io.files import replacing

if TYPE_CHECKING:
    from sidelight.core.grounding import Grounding

Row = TypeVar("Row", "Annotation", "Submission")
Floats = npt.NDArray[np.float64]


CLIP_SECONDS = "clip_seconds"
"""Field of a row that says how long the clips of its ratings are; 2 s, as on QVHighlights, where it is missing."""


class AnnotationError(ValueError):
    """Annotations or predictions do not have the form that they should have.

    Args:
        message: what is wrong.
        side: which file the rows are in, ``predictions`` or ``annotations``, where the error is about rows of one.
        qid: the first row that is wrong, so that whoever knows the file can name its line.
    """

    def __init__(self, message: str, *, side: str = "", qid: int | str | None = None) -> None:
        super().__init__(message)
        self.side, self.qid = side, qid


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """One query on one video, and where it is true. Whole numbers stay whole, so a file can be written back.

    Raises:
        AnnotationError: naming the field, what it must be and what came.
    """

    qid: int | str
    """Identifies the query within its file."""
    query: str
    """The sentence."""
    vid: str
    """Identifies the video."""
    duration: float
    """Seconds of the video."""
    relevant_windows: tuple[tuple[float, float], ...] = ()
    """[start, end] in seconds; none in a split whose labels are kept back. A window may end after the
    video, as a few do in published files."""
    relevant_clip_ids: tuple[int, ...] = ()
    """The clips that were rated."""
    saliency_scores: tuple[tuple[int, ...], ...] = ()
    """For each of them, one score per rater (0 to 4 on QVHighlights)."""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Fields of the file that sidelight does not read, kept so that nothing is lost on the way."""

    def __post_init__(self) -> None:
        _identify(self.qid, self.query, self.vid)
        duration = _number("duration", self.duration, "a number of seconds above 0")
        if duration <= 0:
            raise _wrong("duration", "a number of seconds above 0", self.duration)
        windows = tuple(_window(i, w, duration) for i, w in enumerate(_list(self, "relevant_windows")))
        clips = tuple(_whole("relevant_clip_ids", i, v) for i, v in enumerate(_list(self, "relevant_clip_ids")))
        if twice := [clip for clip, count in Counter(clips).items() if count > 1]:
            raise _wrong("relevant_clip_ids", "clips that differ", twice * 2)
        ratings = tuple(_ratings(i, v) for i, v in enumerate(_list(self, "saliency_scores")))
        if ratings and len(ratings) != len(clips):
            raise _wrong("saliency_scores", f"{len(clips)} lists, as many as relevant_clip_ids", len(ratings))
        if len(raters := sorted({len(r) for r in ratings})) > 1:
            raise _wrong("saliency_scores", "lists of one length, a score per rater", raters)
        if taken := [name for name in self.extra if name in _ANNOTATION_FIELDS]:
            raise AnnotationError(f"extra must not hold {taken[0]}, which is a field of its own; set that instead")
        object.__setattr__(self, "duration", duration)
        object.__setattr__(self, "relevant_windows", windows)
        object.__setattr__(self, "relevant_clip_ids", clips)
        object.__setattr__(self, "saliency_scores", ratings)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of the file's line; labels that are not there are left out."""
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
        """Read one JSON object; null is the same as absent.

        Raises:
            AnnotationError: naming the field, what it must be and what came.
        """
        given = {name: values[name] for name in _ANNOTATION_FIELDS if values.get(name) is not None}
        if "pred_relevant_windows" in values and "duration" not in given:
            raise AnnotationError("expected an annotation, but this looks like a prediction; were two files swapped?")
        _require(given, "qid", "query", "vid", "duration")
        return cls(**given, extra={k: v for k, v in values.items() if k not in _ANNOTATION_FIELDS})


_ANNOTATION_FIELDS = (
    "qid", "query", "vid", "duration", "relevant_windows", "relevant_clip_ids", "saliency_scores"
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Submission:
    """The prediction for one query, as it is handed in. Arrays are read-only.

    Raises:
        AnnotationError: naming the field, what it must be and what came.
    """

    qid: int | str
    """The annotation's."""
    query: str = ""
    """The sentence; some published files leave it out."""
    vid: str
    """The video."""
    pred_relevant_windows: Floats
    """(N, 3) [start, end, score], seconds, best first: evaluation takes the order as it is."""
    pred_saliency_scores: Floats
    """(T,) one per clip; (0,) if the model predicts none."""

    def __post_init__(self) -> None:
        _identify(self.qid, self.query, self.vid, query_needed=False)
        windows = _floats("pred_relevant_windows", self.pred_relevant_windows, width=3)
        if (wrong := np.flatnonzero(windows[:, 1] < windows[:, 0])).size:
            at = int(wrong[0])
            expected = "[start, end, score] with start <= end"
            raise _wrong(f"pred_relevant_windows[{at}]", expected, windows[at].tolist())
        saliency = _floats("pred_saliency_scores", self.pred_saliency_scores)
        object.__setattr__(self, "pred_relevant_windows", windows)
        object.__setattr__(self, "pred_saliency_scores", saliency)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Submission) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.qid, self.vid))

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of the file's line; a query or saliency that is not there is left out."""
        values: dict[str, Any] = {"qid": self.qid, "query": self.query, "vid": self.vid}
        if not self.query:
            del values["query"]
        values["pred_relevant_windows"] = self.pred_relevant_windows.tolist()
        if self.pred_saliency_scores.size:
            values["pred_saliency_scores"] = self.pred_saliency_scores.tolist()
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Submission:
        """Read one JSON object; null is the same as absent, fields of other names are left unread.

        Raises:
            AnnotationError: naming the field, what it must be and what came.
        """
        given = {name: value for name, value in values.items() if value is not None}
        if "relevant_windows" in given and "pred_relevant_windows" not in given:
            raise AnnotationError("expected a prediction, but this looks like an annotation; were two files swapped?")
        _require(given, "qid", "vid")
        if "pred_saliency_scores" not in given:  # a prediction needs one of the two
            _require(given, "pred_relevant_windows")
        return cls(
            qid=given["qid"],
            query=given.get("query", ""),
            vid=given["vid"],
            pred_relevant_windows=given.get("pred_relevant_windows", []),
            pred_saliency_scores=given.get("pred_saliency_scores", []),
        )

    @classmethod
    def from_grounding(cls, annotation: Annotation, grounding: Grounding) -> Submission:
        """The submission form of a grounding of an annotation's query.

        Raises:
            AnnotationError: if the grounding answers another query.
        """
        if grounding.query != annotation.query:
            raise AnnotationError(
                f"expected a grounding of qid {annotation.qid!r}'s query {annotation.query!r}, "
                f"got one of {grounding.query!r}; give each annotation its own grounding"
            )
        windows = [[m.start, m.end, m.score] for m in grounding.moments]
        return cls(
            qid=annotation.qid,
            query=annotation.query,
            vid=annotation.vid,
            pred_relevant_windows=np.array(windows, dtype=np.float64).reshape(-1, 3),
            pred_saliency_scores=grounding.saliency.astype(np.float64),
        )


def read_annotations(path: str | Path) -> list[Annotation]:
    """Read a JSONL file of annotations.

    Raises:
        AnnotationError: naming file, line and field.
    """
    return _read(path, Annotation.from_dict, "annotations")


def read_submissions(path: str | Path) -> list[Submission]:
    """Read a JSONL file of predictions.

    Raises:
        AnnotationError: naming file, line and field.
    """
    return _read(path, Submission.from_dict, "predictions")


def line_of(path: str | Path, qid: int | str) -> int | None:
    """The line of a JSONL file in which the row of ``qid`` stands; to be asked when something is wrong with it."""
    with Path(path).open(encoding="utf-8-sig", errors="replace", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):  # an empty line, or a file that is not in JSON lines
                continue
            if isinstance(values, dict) and values.get("qid") == qid:
                return number
    return None


def write_annotations(path: str | Path, rows: Sequence[Annotation]) -> None:
    """Write a JSONL file; beside its place, then renamed."""
    _write(path, (row.to_dict() for row in rows))


def write_submissions(path: str | Path, rows: Sequence[Submission]) -> None:
    """Write a JSONL file; beside its place, then renamed."""
    _write(path, (row.to_dict() for row in rows))


def _read(path: str | Path, parse: Callable[[Mapping[str, Any]], Row], what: str) -> list[Row]:
    path = Path(path)
    if not path.is_file():
        raise AnnotationError(f"there is no file {path}; expected {what} as JSON lines")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise AnnotationError(f"{path} is not text; expected {what} as JSON lines in UTF-8") from None
    rows: list[Row] = []
    seen: dict[int | str, int] = {}
    # Not splitlines(): JSON may hold other line separators inside a sentence.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = parse(_object(line))
        except AnnotationError as error:
            raise AnnotationError(f"{where}: {error}; correct this line") from None
        if row.qid in seen:
            raise AnnotationError(
                f"{where}: qid {row.qid!r} stands in line {seen[row.qid]} already; give each row its own"
            )
        seen[row.qid] = number
        rows.append(row)
    if not rows:
        raise AnnotationError(f"{path} is empty; expected {what} as JSON lines")
    return rows


def _object(line: str) -> Mapping[str, Any]:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at column {error.colno}"
        raise AnnotationError(f"this line is not valid JSON ({reason}); was the file cut short?") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, thousands of brackets
        raise AnnotationError("this line is not readable JSON") from None
    if not isinstance(values, dict):
        raise AnnotationError(f"expected a JSON object with named fields, got {_shown(values)}")
    return values


def _write(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with replacing(path) as beside, beside.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


# --- checks of one field each -----------------------------------------------------------------------------


def _wrong(name: str, expected: str, got: Any) -> AnnotationError:
    return AnnotationError(f"{name} must be {expected}, got {_shown(got)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _require(values: Mapping[str, Any], *names: str) -> None:
    for name in names:
        if name not in values:
            raise AnnotationError(f"the field {name} is missing; add it")


def _identify(qid: Any, query: Any, vid: Any, *, query_needed: bool = True) -> None:
    if isinstance(qid, bool) or not isinstance(qid, (int, str)) or qid == "":
        raise _wrong("qid", "a whole number or a text", qid)
    if not isinstance(query, str) or (query_needed and not query.strip()):
        raise _wrong("query", "a sentence", query)
    if not isinstance(vid, str) or not vid.strip():
        raise _wrong("vid", "the name of a video", vid)


def _list(row: Annotation, name: str) -> Sequence[Any]:
    values = getattr(row, name)
    if not isinstance(values, (list, tuple)):
        raise _wrong(name, "a list", values)
    return values


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's, which JSON can hold."""
    return value.item() if isinstance(value, np.generic) else value


def _number(name: str, value: Any, expected: str) -> float:
    value = _plain(value)
    if not is_finite_number(value):
        raise _wrong(name, expected, value)
    found: float = value
    return found


def _window(at: int, window: Any, duration: float) -> tuple[float, float]:
    name, expected = f"relevant_windows[{at}]", "[start, end] in seconds with 0 <= start < end"
    if not isinstance(window, (list, tuple)) or len(window) != 2:
        raise _wrong(name, expected, window)
    start, end = (_number(name, v, expected) for v in window)
    if not 0 <= start < end:
        raise _wrong(name, expected, list(window))
    if start >= duration:
        raise _wrong(name, f"within its video of {duration} s", list(window))
    return start, end


def _whole(name: str, at: int, value: Any) -> int:
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _wrong(f"{name}[{at}]", "a whole number of at least 0", value)
    return value


def _ratings(at: int, values: Any) -> tuple[int, ...]:
    if not isinstance(values, (list, tuple)) or not values:
        raise _wrong(f"saliency_scores[{at}]", "a list of whole numbers, a score per rater", values)
    return tuple(_whole(f"saliency_scores[{at}]", i, v) for i, v in enumerate(values))


def _floats(name: str, values: Any, width: int | None = None) -> Floats:
    """(N,) or (N, width) finite numbers as a read-only copy, from lists or an array."""
    each = "a finite number" if width is None else f"a list of {width} finite numbers"
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if not isinstance(values, (list, tuple)):
        raise _wrong(name, f"a list, in which each is {each}", values)
    for at, row in enumerate(values):
        cells = [row] if width is None else row
        fits = isinstance(cells, (list, tuple)) and (width is None or len(cells) == width)
        if not fits or not all(map(is_finite_number, cells)):
            raise _wrong(f"{name}[{at}]", each, row)
    found = np.array(values, dtype=np.float64).reshape((-1,) if width is None else (-1, width))
    found.setflags(write=False)
    return found
