"""What a benchmark is, and how its files are read: strictly for training, row by row for the doctor.

Every released form becomes the QVHighlights form first (qid, query, vid, duration, relevant_windows, ...), and that
an :class:`~sidelight.data.annotations.Annotation`. Sentences stay as they were published.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sidelight.data.annotations import Annotation, AnnotationError
from sidelight.io.files import videos_in

Metric = Literal["qvhighlights", "moments", "tvsum", "youtube-highlights"]
"""moments with ratings of clips; moments alone; mean AP of the top 5 clips per rater; mean AP per video."""


class DataWarning(UserWarning):
    """Something in the data was left out or not read; it says what."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """One part of a benchmark, as released."""

    files: tuple[str, ...]
    """Names that its file has in the releases, the one in JSON lines first."""
    queries: int | None = None
    """Published number of queries; none where we know of no number."""
    videos: int | None = None
    """Published number of videos, or as counted in the released file where only a total was published."""


@dataclass(frozen=True, kw_only=True)
class Nms:
    """How overlapping predictions were held down for the published numbers, in the words of DecodeConfig."""

    kind: Literal["hard", "soft-linear"]
    """hard: removed (R2-Tuning calls it normal, and sets their scores to 0); soft-linear: scored down by 1 - IoU."""
    threshold: float
    """IoU from which two moments count as overlapping; 0 where the script knows no threshold."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One query as it stands in a file, not yet checked."""

    place: str
    """Where in the file: the line, or the path inside a JSON document."""
    raw: Mapping[str, Any] = field(default_factory=dict)
    """What stands there."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The same in the QVHighlights form."""
    problem: str = ""
    """Why it cannot be read at all; empty if it can."""


def json_lines(path: Path) -> Iterator[Row]:
    """The rows of a JSONL file in the QVHighlights form; a line that cannot be read does not hide the others."""
    # Not splitlines(): JSON may hold other line separators inside a sentence.
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            yield Row(place=str(number), problem="this line is not text in UTF-8")
        except json.JSONDecodeError as error:
            problem = f"this line is not valid JSON ({error.msg} at column {error.colno}); was the file cut short?"
            yield Row(place=str(number), problem=problem)
        except (ValueError, RecursionError):  # a number of thousands of digits, thousands of brackets
            yield Row(place=str(number), problem="this line is not readable JSON")
        else:
            if isinstance(values, dict):
                yield Row(place=str(number), raw=values, values=values)
            else:
                problem = f"expected a JSON object with named fields, got {shown(values)}"
                yield Row(place=str(number), problem=problem)


def json_document(path: Path) -> Mapping[str, Any]:
    """The one object that a JSON file holds.

    Raises:
        AnnotationError: if it holds none.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise AnnotationError(f"{path} is not text; expected annotations as JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        reason = f"{error.msg} in line {error.lineno}, column {error.colno}"
        raise AnnotationError(f"{path} is not valid JSON ({reason}); was the file cut short?") from None
    except (ValueError, RecursionError):
        raise AnnotationError(f"{path} is not readable JSON; download it again") from None
    if not isinstance(values, dict):
        raise AnnotationError(f"{path}: expected a JSON object with named fields, got {shown(values)}")
    return values


def rated_rows(path: Path, *, clip_seconds: float | None) -> Iterator[Row]:
    """Rows whose ``label`` is one list of ratings per clip of the whole video (TVSum, YouTube Highlights).

    Args:
        path: a JSONL file.
        clip_seconds: if given, the duration is that times the number of clips, whatever the file says.
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
                values["duration"] = clip_seconds * len(label)
            yield Row(place=row.place, raw=row.raw, values=values)


def _whole(ratings: Any) -> Any:
    """3.0 as 3, which is what it means; anything else is left for the Annotation to refuse."""
    if not isinstance(ratings, list):
        return ratings
    return [int(v) if isinstance(v, float) and v.is_integer() else v for v in ratings]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A published benchmark: what it asks, how it is scored, how its files are read."""

    name: str
    """Its key in BENCHMARKS."""
    title: str
    """As its paper writes it."""
    task: Literal["moments", "highlights", "both"]
    """What is annotated: windows, ratings of clips, or both."""
    clip_seconds: float | None
    """Length of a clip in the published models; none where it differs from video to video."""
    unit: float | None
    """Seconds to whose multiples predicted starts and ends are rounded; none where no windows are predicted."""
    moment_queries: int | None = None
    """SDST's M, where it was published."""
    nms: Nms | None = None
    """As published; none where nothing was, or no windows are predicted."""
    metric: Metric
    """By which convention it is scored."""
    splits: Mapping[str, Split] = field(hash=False)
    """Its parts, by name."""
    domains: tuple[str, ...] = ()
    """Parts that are trained and scored each on its own; none on most benchmarks."""
    source: str
    """The paper."""
    file_words: tuple[str, ...]
    """A file whose name begins with one of these is taken for the benchmark's."""
    row_is_ours: Callable[[Mapping[str, Any]], bool]
    """Whether a row, as it stands in a file, looks like the benchmark's."""
    parse: Callable[[Path], Iterator[Row]] = json_lines
    """The rows of any of its released files."""

    def split_of(self, path: str | Path) -> str | None:
        """The split that a file is, by its name; none if the name does not say."""
        name = Path(path).name.lower()
        for split, its in self.splits.items():
            if name in (file.lower() for file in its.files):
                return split
        return next((s for s in self.splits if s in _words(Path(name).stem)), None)

    def file(self, folder: str | Path, split: str) -> Path:
        """The file of a split in a folder.

        Raises:
            AnnotationError: if the folder has none of the names that it was released under.
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
        """The annotations of one split, in the order of the file.

        Args:
            path: a released file, or the folder it lies in.
            split: needed for a folder only.
            domain: only the rows of that one.
            lenient: leave out rows that cannot be used, with a warning that counts them, instead of stopping.

        Raises:
            AnnotationError: naming file, place and field.
        """
        path = Path(path)
        if split is not None:
            self._split(split)
        if domain is not None and domain not in self.domains:
            known = f"known are {', '.join(self.domains)}" if self.domains else "it has none"
            raise AnnotationError(f"{self.title} has no domain {domain!r}; {known}")
        if path.is_dir():
            if split is None:
                raise AnnotationError(f"{path} is a folder; say which split: {', '.join(self.splits)}")
            path = self.file(path, split)
        if not path.is_file():
            raise AnnotationError(f"there is no file {path}; expected annotations of {self.title}")
        found: list[Annotation] = []
        left_out: list[str] = []
        seen: dict[int | str, str] = {}
        for row in self.parse(path):
            try:
                annotation = annotation_of(row)
                if annotation.qid in seen:
                    other = f"qid {annotation.qid!r} stands in {seen[annotation.qid]} already"
                    raise AnnotationError(f"{other}; give each row its own")
            except AnnotationError as error:
                if not lenient:
                    raise AnnotationError(f"{path}:{row.place}: {error}; correct it, or leave it out") from None
                left_out.append(f"{row.place} ({error})")
                continue
            seen[annotation.qid] = row.place
            if domain is None or annotation.extra.get("domain") == domain:
                found.append(annotation)
        if left_out:
            message = f"{path}: {len(left_out)} rows cannot be used and were left out, the first at {left_out[0]}"
            warnings.warn(message, DataWarning, stacklevel=2)
        if not found and seen:
            raise AnnotationError(f"{path} has no row of the domain {domain!r}; leave out domain to read all")
        if not found:
            raise AnnotationError(f"{path} is empty; expected annotations of {self.title}")
        return found

    def _split(self, name: str) -> Split:
        if name not in self.splits:
            raise AnnotationError(f"{self.title} has no split {name!r}; known are {', '.join(self.splits)}")
        return self.splits[name]


def annotation_of(row: Row) -> Annotation:
    """The checked annotation of a row.

    Raises:
        AnnotationError: naming the field, what it must be and what came.
    """
    if row.problem:
        raise AnnotationError(row.problem)
    return Annotation.from_dict(row.values)


def video_files(folder: str | Path) -> dict[str, Path]:
    """The video files of a folder by their ids, which are their names without suffix.

    Raises:
        AnnotationError: if it is no folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AnnotationError(f"{folder} is not a folder; expected the folder with the video files")
    return videos_in(folder)


def shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _words(stem: str) -> Sequence[str]:
    """The words of a file name: ``highlight_val_release`` has val."""
    return stem.replace("-", "_").replace(".", "_").split("_")
