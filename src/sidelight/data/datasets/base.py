"""The description of a benchmark, and the reader of its files: strict for training, row by row for checks of data.

Every released form is first mapped to the QVHighlights form (qid, query, vid, duration, relevant_windows, ...), and
then to an :class:`~sidelight.data.annotations.Annotation`. Sentences are not changed.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sidelight.core.timeline import clips_to_seconds
from sidelight.data.annotations import Annotation, AnnotationError
from sidelight.io.files import read_text
from sidelight.io.jsonl import read_json_lines, shown

Metric = Literal["qvhighlights", "moments", "tvsum", "youtube-highlights"]
"""Moments and ratings of clips; moments alone; mean AP of the top 5 clips per rater; mean AP per video."""


class DataWarning(UserWarning):
    """The warning that a part of the data is left out or not read."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """One part of a benchmark, as released."""

    files: tuple[str, ...]
    """Names of its file in the releases, the JSON lines first."""
    queries: int | None = None
    """Published number of queries; None if no number is known."""
    videos: int | None = None
    """Published number of videos; counted in the released file if only a total was published."""


@dataclass(frozen=True, kw_only=True)
class Nms:
    """The suppression of overlapping predictions that gave the published numbers, in the terms of DecodeConfig."""

    kind: Literal["hard", "soft-linear"]
    """hard: removed (R2-Tuning calls it normal, and sets their scores to 0); soft-linear: score times 1 - IoU."""
    threshold: float
    """IoU from which two moments overlap; 0 if the published script has no threshold."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One query of a file, not checked yet."""

    place: str
    """Place in the file: the line number, or the path inside a JSON document."""
    raw: Mapping[str, Any] = field(default_factory=dict)
    """The fields in the form of the file."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The fields in the QVHighlights form."""
    problem: str = ""
    """Why the row cannot be read; empty if it can."""


Parse = Callable[[Path], Iterator[Row]]
"""A reader of a file; it yields rows with a problem and goes on."""


def json_lines(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSONL file in the QVHighlights form, also those that cannot be read."""
    for line in read_json_lines(path, lenient=True):
        yield Row(place=str(line.number), raw=line.values, values=line.values, problem=line.problem)


def json_document(path: Path) -> Mapping[str, Any]:
    """Return the one object in a JSON file.

    Raises:
        AnnotationError: if the file is not JSON or holds another value.
    """
    try:
        values = json.loads(read_text(path))
    except UnicodeDecodeError:
        raise AnnotationError(f"{path} is not text; expected annotations as JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        reason = f"{error.msg} in line {error.lineno}, column {error.colno}"
        raise AnnotationError(f"{path} is not valid JSON ({reason}); was the file cut short?") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, thousands of brackets
        raise AnnotationError(f"{path} is not readable JSON; download it again") from None
    if not isinstance(values, dict):
        raise AnnotationError(f"{path}: expected a JSON object with named fields, got {shown(values)}")
    return values


def original_or_json_lines(suffix: str, original: Parse) -> Parse:
    """Return a reader that takes files with the suffix for the original form, and all others for JSON lines."""
    return lambda path: original(path) if path.suffix == suffix else json_lines(path)


def rated_rows(path: Path, *, clip_seconds: int | None = None) -> Iterator[Row]:
    """Yield rows whose ``label`` lists ratings for each clip of the video (TVSum, YouTube Highlights).

    Args:
        path: a JSONL file.
        clip_seconds: if given, the duration is set to the number of clips times these seconds.
    """
    for row in json_lines(path):
        label = row.raw.get("label")
        if row.problem or label is None:
            yield row
        elif not isinstance(label, list) or not label:
            problem = f"label must be a list of ratings for each clip, got {shown(label)}"
            yield Row(place=row.place, raw=row.raw, problem=problem)
        else:
            values = {k: v for k, v in row.raw.items() if k != "label"}
            values["relevant_clip_ids"] = list(range(len(label)))
            values["saliency_scores"] = [_whole(ratings) for ratings in label]
            if clip_seconds is not None and "duration" in values:
                values["duration"] = clips_to_seconds(len(label), clip_seconds)
            yield Row(place=row.place, raw=row.raw, values=values)


def _whole(ratings: Any) -> Any:
    """Return ratings such as 3.0 as 3, and anything else unchanged, for Annotation to check."""
    if not isinstance(ratings, list):
        return ratings
    return [int(v) if isinstance(v, float) and v.is_integer() else v for v in ratings]


def vid_matches(pattern: str) -> Callable[[Mapping[str, Any]], bool]:
    """Return a function that checks whether the whole vid of a row matches a regular expression."""
    compiled = re.compile(pattern)
    return lambda row: isinstance(row.get("vid"), str) and compiled.fullmatch(row["vid"]) is not None


def _never(value: object) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A published benchmark: its task, its metric, its files and how they are read."""

    name: str
    """Its key in BENCHMARKS."""
    title: str
    """Its name in the paper."""
    task: Literal["moments", "highlights", "both"]
    """What is annotated: windows, ratings of clips, or both."""
    clip_seconds: float | None
    """Length of a clip in the published models; None if it differs between videos."""
    unit: float | None
    """Seconds to whose multiples predicted starts and ends are rounded; None if no windows are predicted."""
    moment_queries: int | None = None
    """SDST's M, if published."""
    nms: Nms | None = None
    """As published; None if nothing was published, or no windows are predicted."""
    metric: Metric
    """The convention by which it is scored."""
    splits: Mapping[str, Split] = field(hash=False)
    """Its parts, by name."""
    vid_suffix: str = ""
    """Ending of the names of released videos, features and predictions that the annotations' vids lack."""
    domains: tuple[str, ...] = ()
    """Parts that are trained and scored separately; empty on most benchmarks."""
    source: str
    """The paper."""
    file_words: tuple[str, ...]
    """A JSONL file whose name begins with one of these words is taken for a file of the benchmark."""
    row_is_ours: Callable[[Mapping[str, Any]], bool]
    """Check whether a row of a JSONL file looks like one of the benchmark."""
    document_is_ours: Callable[[Mapping[str, Any]], bool] = _never
    """Check whether a JSON document looks like one of the benchmark."""
    text_is_ours: Callable[[bytes], bool] = _never
    """Check whether the first line of a text file looks like one of the benchmark."""
    parse: Parse = json_lines
    """Read the rows of any of its released files."""

    def split_of(self, path: str | Path) -> str | None:
        """Return the split that the name of a file says; None if it says none."""
        name = Path(path).name.lower()
        for split_name, split in self.splits.items():
            if name in (file.lower() for file in split.files):
                return split_name
        return next((s for s in self.splits if s in _words(Path(name).stem)), None)

    def file(self, folder: str | Path, split: str) -> Path:
        """Return the file of a split in a folder.

        Raises:
            AnnotationError: if the folder has no file with a released name.
        """
        names = self._split(split).files
        for name in names:
            if (Path(folder) / name).is_file():
                return Path(folder) / name
        raise AnnotationError(
            f"{folder} has no file of {self.title}, {split}; expected {' or '.join(names)}, or give the file itself"
        )

    def read(
        self, path: str | Path, split: str | None = None, *, domain: str | None = None, lenient: bool = False
    ) -> list[Annotation]:
        """Return the annotations of one split, in the order of the file.

        Args:
            path: a released file, or its folder.
            split: needed for a folder only.
            domain: return only the rows of this domain.
            lenient: leave out rows that cannot be used, with a warning that counts them, instead of stopping.

        Raises:
            AnnotationError: naming file, place and field.
        """
        path = self._file_of(Path(path), split, domain)
        annotations: list[Annotation] = []
        left_out: list[str] = []
        places: dict[int | str, str] = {}
        for row in self.parse(path):
            try:
                annotation = annotation_of(row)
                if annotation.qid in places:
                    repeated = f"qid {annotation.qid!r} is at {places[annotation.qid]} already"
                    raise AnnotationError(f"{repeated}; give each row its own qid")
            except AnnotationError as error:
                if not lenient:
                    raise AnnotationError(f"{path}:{row.place}: {error}; correct it, or leave it out") from None
                left_out.append(f"{row.place} ({error})")
                continue
            places[annotation.qid] = row.place
            if domain is None or annotation.extra.get("domain") == domain:
                annotations.append(annotation)
        if left_out:
            message = f"{path}: {len(left_out)} rows cannot be used and were left out, the first at {left_out[0]}"
            warnings.warn(message, DataWarning, stacklevel=2)
        if not annotations and places:
            raise AnnotationError(f"{path} has no row of the domain {domain!r}; leave out domain to read all")
        if not annotations:
            raise AnnotationError(f"{path} is empty; expected annotations of {self.title}")
        return annotations

    def _file_of(self, path: Path, split: str | None, domain: str | None) -> Path:
        """Return the file to read, after checking the names of split and domain."""
        if split is not None:
            self._split(split)
        if domain is not None and domain not in self.domains:
            known = f"known are {', '.join(self.domains)}" if self.domains else "it has none"
            raise AnnotationError(f"{self.title} has no domain {domain!r}; {known}")
        if path.is_dir():
            if split is None:
                raise AnnotationError(f"{path} is a folder; say which split: {', '.join(self.splits)}")
            return self.file(path, split)
        if not path.is_file():
            raise AnnotationError(f"there is no file {path}; expected annotations of {self.title}")
        return path

    def _split(self, name: str) -> Split:
        if name not in self.splits:
            raise AnnotationError(f"{self.title} has no split {name!r}; known are {', '.join(self.splits)}")
        return self.splits[name]


def annotation_of(row: Row) -> Annotation:
    """Return the checked annotation of a row.

    Raises:
        AnnotationError: if a field is wrong; names the field, the expected value and the value it has.
    """
    if row.problem:
        raise AnnotationError(row.problem)
    return Annotation.from_dict(row.values)


def _words(stem: str) -> Sequence[str]:
    """Return the words of a file name: ``val`` is a word of ``highlight_val_release``."""
    return stem.replace("-", "_").replace(".", "_").split("_")
