"""Import of own annotations from a table: CSV with a header, or JSON lines, one row per moment.

    video,query,start,end
    holiday.mp4,the dog jumps into the water,1:02.5,1:08
    holiday.mp4,the dog jumps into the water,2:40,2:44.5
    holiday.mp4,a child waves,,

Rows with the same video and query become one annotation with several windows. A row without start and end says that
the video does not show the query. ``duration`` (of the video) and ``saliency`` are optional columns. Times are
seconds, m:ss or h:mm:ss, with or without decimals.

Without ratings, the clips inside the windows are the relevant ones, as in SDST (App. B) for TACoS: they are written as
relevant_clip_ids, and training gives them a saliency of 1. No saliency_scores are written, so that evaluation does not
report highlight metrics against ratings that nobody gave.
"""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from sidelight.core.timeline import Timeline
from sidelight.data.annotations import (
    CLIP_SECONDS,
    TIME_NAMES,
    Annotation,
    AnnotationError,
    require_known_names,
    write_annotations,
)
from sidelight.data.datasets.base import DataWarning
from sidelight.io.files import USUAL_SUFFIXES, VIDEO_SUFFIXES, ignored_in, read_text, videos_in
from sidelight.io.jsonl import read_json_lines, shown
from sidelight.video.damage import VideoError, warn
from sidelight.video.read import probe

NEEDED = ("video", "query", "start", "end")
OPTIONAL = ("duration", "saliency")
_NAMES = {**dict.fromkeys((*NEEDED, *OPTIONAL), ()), "start": TIME_NAMES, "end": TIME_NAMES}
"""The columns, with other names that users give to them."""
_LONGEST = 1e6
"""Longest time in seconds: eleven days."""
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
"""The first bytes of .xlsx (a zip file) and of .xls."""
_TIME = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)")


class TableError(AnnotationError):
    """The error for all wrong rows of a table together.

    Args:
        path: the table.
        problems: line number and message of each wrong row.
    """

    def __init__(self, path: Path, problems: Sequence[tuple[int, str]]) -> None:
        self.problems = tuple(text for _, text in sorted(problems))
        several = [f"{path} has {len(self.problems)} wrong rows:"] if len(self.problems) > 1 else []
        super().__init__("\n".join([*several, *self.problems]))


@dataclass(frozen=True, kw_only=True)
class _Moment:
    """One row of the table."""

    line: int
    file: str
    """The video as written in the table."""
    video: str
    """The id of the video."""
    query: str
    window: tuple[float, float] | None
    duration: float | None
    ratings: tuple[int, ...] | None


def import_table(path: str | Path, *, videos: str | Path | None = None, clip_seconds: float = 2.0) -> list[Annotation]:
    """Return the annotations of a table, in the order of the first row of each query; qid counts from 0.

    Args:
        path: a CSV file with a header (separated by comma, semicolon or tab), or JSON lines.
        videos: folder with the video files, named by video id; read for durations that are missing in the table.
        clip_seconds: length in seconds of the clips that relevant_clip_ids count.

    Raises:
        TableError: if rows are wrong; names file, line, the expected value and the value of each wrong row.
        AnnotationError: if the table cannot be read.
    """
    path = Path(path)
    if not clip_seconds > 0:
        raise AnnotationError(f"clip_seconds must be more than 0, got {clip_seconds}")
    if videos is not None and not Path(videos).is_dir():
        raise AnnotationError(f"{videos} is not a folder; expected the folder with the video files")
    problems: list[tuple[int, str]] = []
    moments: list[_Moment] = []
    unread: set[str] = set()
    for line, values in _rows(path):
        with _noting(problems, line):
            if isinstance(values, AnnotationError):
                raise values
            unread |= {str(name) for name in values if name not in _NAMES}
            moments.append(_moment(path, line, values))
    if not moments and not problems:
        raise AnnotationError(f"{path} is empty; expected rows with {', '.join(NEEDED)}")
    first_of_video: dict[str, _Moment] = {}
    by_query: dict[tuple[str, str], list[_Moment]] = {}
    for moment in moments:
        first = first_of_video.setdefault(moment.video, moment)
        with _noting(problems, moment.line):
            if _path_of(first.file).parent != _path_of(moment.file).parent:
                raise AnnotationError(
                    f"{path}:{moment.line}: {moment.file} has the same id, {moment.video!r}, as {first.file} in line "
                    f"{first.line}; different videos need different names"
                )
            by_query.setdefault((moment.video, moment.query), []).append(moment)
    durations = _durations(path, moments, videos, problems)
    annotations = [
        _annotation(path, qid, rows, durations[vid], clip_seconds, problems)
        for qid, ((vid, _), rows) in enumerate(by_query.items())
        if vid in durations
    ]
    if problems:
        raise TableError(path, problems)
    if unread:
        message = (
            f"{path}: columns that are not read: {', '.join(sorted(unread))}; known columns are {', '.join(_NAMES)}"
        )
        warnings.warn(message, DataWarning, stacklevel=2)
    return [annotation for annotation in annotations if annotation is not None]


@contextmanager
def _noting(problems: list[tuple[int, str]], line: int) -> Iterator[None]:
    """Add an error about a row to the problems, so that the rows after it are checked too."""
    try:
        yield
    except AnnotationError as error:
        problems.append((line, str(error)))


def import_file(
    path: str | Path, out: str | Path, *, videos: str | Path | None = None, clip_seconds: float = 2.0
) -> list[Annotation]:
    """Write the annotations of a table to ``out`` as JSON lines, and return them.

    Arguments and errors are those of :func:`import_table`. The file appears complete or not at all.
    """
    annotations = import_table(path, videos=videos, clip_seconds=clip_seconds)
    write_annotations(out, annotations)
    return annotations


def seconds_of(text: object) -> float:
    """Return a time in seconds, from a number or from a text such as 83.25, 1:23.25 or 1:02:03.

    Raises:
        ValueError: if it is not a time.
    """
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        if 0 <= text <= _LONGEST:
            return text
    elif isinstance(text, str) and (match := _TIME.fullmatch(text.strip())):
        hours, minutes, seconds = (float(part or 0) for part in match.groups())
        total = hours * 3600 + minutes * 60 + seconds
        seconds_only = match[2] is None
        if total <= _LONGEST and (seconds_only or (seconds < 60 and (match[1] is None or minutes < 60))):
            return total
    raise ValueError(f"a time must be seconds, m:ss or h:mm:ss, such as 83.5 or 1:23.5, got {shown(text)}")


# --- the table ----------------------------------------------------------------------------------------------------


_Row = tuple[int, Mapping[str, Any] | AnnotationError]
"""The line number and the fields of a row, or what is wrong with its form."""


def _rows(path: Path) -> Iterator[_Row]:
    if not path.is_file():
        raise AnnotationError(f"there is no file {path}; expected a table with {', '.join(NEEDED)}")
    yield from _json_rows(path) if path.suffix.lower() in (".jsonl", ".json") else _csv_rows(path)


def _json_rows(path: Path) -> Iterator[_Row]:
    for line in read_json_lines(path, lenient=True):
        where = f"{path}:{line.number}"
        if line.problem:
            yield line.number, AnnotationError(f"{where}: {line.problem}; expected one JSON object per line")
        elif missing := [name for name in ("video", "query") if name not in line.values]:
            yield line.number, AnnotationError(f"{where}: the field {missing[0]} is missing; add it")
        else:
            yield line.number, line.values


def _csv_rows(path: Path) -> Iterator[_Row]:
    if path.read_bytes()[:8].startswith(_WORKBOOKS):
        raise AnnotationError(f"{path} is an Excel workbook, not CSV; in Excel choose Save As, then CSV UTF-8")
    try:
        text = read_text(path)
    except UnicodeDecodeError:
        raise AnnotationError(f"{path} is not text in UTF-8; save the table as CSV in UTF-8") from None
    separator = max(",;\t", key=text.split("\n", 1)[0].count)
    # DictReader skips empty lines, so it does not know the line in which a row begins.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    names: list[str] = []
    before = 0
    try:
        for cells in reader:
            line, before = before + 1, reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if not names:
                names = [name.strip().lower() for name in cells]
                if repeated := [name for name in names if names.count(name) > 1]:
                    raise AnnotationError(f"{path}:{line}: the column {repeated[0]} appears twice; keep one of them")
                if missing := [name for name in NEEDED if name not in names]:
                    raise AnnotationError(
                        f"{path}:{line}: the column {missing[0]} is missing; expected a header with "
                        f"{', '.join(NEEDED)}, got {shown(', '.join(names))}"
                    )
                continue
            if len(cells) > len(names):
                yield (
                    line,
                    AnnotationError(
                        f"{path}:{line}: more values than the header has columns; "
                        f"put a sentence that contains {separator!r} in double quotes"
                    ),
                )
            elif len(cells) < len(names):
                problem = "fewer values than the header has columns; add the missing ones"
                yield line, AnnotationError(f"{path}:{line}: {problem}")
            else:
                yield line, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise AnnotationError(f"{path}:{before + 1}: this line is not valid CSV ({error}); check its quotes") from None


def _moment(path: Path, line: int, values: Mapping[str, Any]) -> _Moment:
    where = f"{path}:{line}"
    try:
        require_known_names(values, _NAMES)
    except AnnotationError as error:
        raise AnnotationError(f"{where}: {error}") from None
    for name in ("video", "query"):
        if not isinstance(values[name], str) or not values[name].strip():
            raise AnnotationError(f"{where}: {name} must be a text, got {shown(values[name])}; fill it in")
    start, end, duration = (_time(where, name, values.get(name)) for name in ("start", "end", "duration"))
    if (start is None) != (end is None):
        missing = "start" if start is None else "end"
        raise AnnotationError(
            f"{where}: {missing} is missing; give both, or neither if the video does not show the query"
        )
    window = None
    if start is not None and end is not None:
        if end <= start:
            raise AnnotationError(f"{where}: end must be after start, got {start:g} to {end:g} s; correct this line")
        window = (start, end)
    if duration == 0:
        raise AnnotationError(f"{where}: duration must be more than 0; correct this line")
    ratings = _ratings(where, values.get("saliency"))
    if ratings is not None and window is None:
        raise AnnotationError(f"{where}: saliency rates the clips of a window, but start and end are missing; add them")
    return _Moment(
        line=line,
        file=values["video"].strip(),
        video=_vid(values["video"]),
        query=values["query"],
        window=window,
        duration=duration,
        ratings=ratings,
    )


def _vid(video: str) -> str:
    """Return the id of a video: the name of a video file without folder and suffix, other names unchanged."""
    path = _path_of(video)
    return path.stem if path.suffix.lower() in VIDEO_SUFFIXES else video.strip()


def _path_of(video: str) -> PurePath:
    r"""Return the path of a video in a table, which may come from Windows: C:\films\a.mp4."""
    return PureWindowsPath(video.strip()) if "\\" in video else PurePath(video.strip())


def _is_blank(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _time(where: str, name: str, value: object) -> float | None:
    if _is_blank(value):
        return None
    try:
        return seconds_of(value)
    except ValueError as error:
        raise AnnotationError(f"{where}: {name}: {error}; correct this line") from None


def _ratings(where: str, value: object) -> tuple[int, ...] | None:
    if _is_blank(value):
        return None
    parts = value.split() if isinstance(value, str) else value if isinstance(value, list) else [value]
    ratings = [int(v) if isinstance(v, str) and v.isdecimal() else v for v in parts]
    if not ratings or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in ratings):
        raise AnnotationError(
            f"{where}: saliency must be a whole number from 0, or one for each clip of the window, got {shown(value)}"
        )
    return tuple(v for v in ratings if isinstance(v, int))


# --- joining the rows of a query ----------------------------------------------------------------------------------


def _durations(
    path: Path, moments: Sequence[_Moment], videos: str | Path | None, problems: list[tuple[int, str]]
) -> dict[str, float]:
    """Return the seconds of every video, from the table if it gives them, else from the video file.

    Where rows are wrong already, a missing duration is no problem: a wrong row may have it.
    """
    rows_are_wrong = bool(problems)
    first_with_duration: dict[str, _Moment] = {}
    for moment in moments:
        if moment.duration is not None:
            first = first_with_duration.setdefault(moment.video, moment)
            if first.duration != moment.duration:
                problem = (
                    f"{path}:{moment.line}: the video {moment.video!r} lasts {moment.duration:g} s here and "
                    f"{first.duration:g} s in line {first.line}; correct one of them"
                )
                problems.append((moment.line, problem))
    durations = {vid: moment.duration for vid, moment in first_with_duration.items() if moment.duration is not None}
    lines: dict[str, int] = {}  # of the first row of each video without a duration
    for moment in moments:
        if moment.video not in durations:
            lines.setdefault(moment.video, moment.line)
    files = videos_in(videos, lines) if lines and videos is not None else {}
    for vid, line in lines.items():
        if vid in files:
            try:
                info = probe(files[vid])
            except VideoError as error:
                problems.append((line, f"{path}:{line}: {error}"))
                continue
            for note in info.notes:
                warn(note)
            durations[vid] = info.duration
        elif videos is not None:
            problem = (
                f"{path}:{line}: {videos} has no file of the video {vid!r}; expected {vid} with {USUAL_SUFFIXES}"
                f"{ignored_in(videos)}"
            )
            problems.append((line, problem))
        elif not rows_are_wrong:
            problem = (
                f"{path}:{line}: the duration of the video {vid!r} is missing; add a column duration, or give --videos "
                "with the video files"
            )
            problems.append((line, problem))
    return durations


def _annotation(
    path: Path,
    qid: int,
    moments: Sequence[_Moment],
    duration: float,
    clip_seconds: float,
    problems: list[tuple[int, str]],
) -> Annotation | None:
    """Return the annotation of the rows of a query; None, and the problems of its rows, if they are wrong."""
    timeline = Timeline(duration=duration, clip_seconds=clip_seconds)
    window_lines: dict[tuple[float, float] | None, int] = {}
    rated = [m for m in moments if m.ratings is not None]
    scores: dict[int, int] = {}
    known = len(problems)
    for moment in moments:
        with _noting(problems, moment.line):
            where, window = f"{path}:{moment.line}", moment.window
            if window in window_lines:
                raise AnnotationError(f"{where}: this row repeats line {window_lines[window]}; remove one of the two")
            if window_lines and (window is None or None in window_lines):
                raise AnnotationError(
                    f"{where}: one of the lines {min(window_lines.values())} and {moment.line} has a window, the other "
                    "says that the video does not show this query; keep one of them"
                )
            window_lines[window] = moment.line
            if rated and moment.ratings is None:
                raise AnnotationError(
                    f"{where}: saliency is missing, but line {rated[0].line} rates the same query; rate all or none"
                )
            if window is None:
                continue
            start, end = window
            if start >= duration or end > duration + clip_seconds:
                raise AnnotationError(
                    f"{where}: the window from {start:g} to {end:g} s is not inside its video of {duration:g} s; "
                    "correct the times or the video"
                )
            clips = timeline.clips_in(start, min(end, duration))
            ratings = moment.ratings or (1,)
            if len(ratings) not in (1, len(clips)):
                raise AnnotationError(
                    f"{where}: saliency must be one number, or {len(clips)}, one for each clip of {clip_seconds:g} s "
                    f"in the window, got {len(ratings)}"
                )
            for clip, rating in zip(clips, ratings * (len(clips) if len(ratings) == 1 else 1), strict=True):
                scores[clip] = max(rating, scores.get(clip, 0))
    if len(problems) > known:
        return None
    clip_ids = sorted(scores)
    return Annotation(
        qid=qid,
        query=moments[0].query,
        vid=moments[0].video,
        duration=duration,
        relevant_windows=tuple(sorted(m.window for m in moments if m.window is not None)),
        relevant_clip_ids=tuple(clip_ids),
        saliency_scores=tuple((scores[c],) for c in clip_ids) if rated else (),
        # Readers need the length of the clips that clip_ids count.
        extra={CLIP_SECONDS: clip_seconds},
    )
