"""`sidelight ground FOLDER`: ground every video of a folder, a pattern or a list, and go on after broken ones."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sidelight.cli.export import is_data, write_export
from sidelight.cli.films import Films, worth_showing
from sidelight.cli.shared import announced, report_to, write_json
from sidelight.core.display import BEST_GUESSES, clock
from sidelight.core.messages import count_of

if TYPE_CHECKING:
    from sidelight.core.grounding import Grounding
    from sidelight.grounder import Grounder

_STATE = "file"
"""Field of a line with the size and the time of the video's file when it was answered."""
_BEGIN = b'{"format": "sidelight.grounding/1"'
"""The beginning of each line."""
_NAMED = 3
"""How many videos a warning names."""


@dataclass(kw_only=True)
class _Run:
    """What is known while the videos are grounded."""

    groundings: list[Grounding] = field(default_factory=list)
    """All moments of each video and query."""
    failures: dict[str, str] = field(default_factory=dict)
    """Video -> sentence."""
    warnings: dict[str, list[str]] = field(default_factory=dict)
    """Sentence -> videos."""
    kept: int = 0
    """Videos whose answers an earlier run wrote."""


def ground_folder(
    source: str,
    queries: Sequence[str],
    *,
    model: str | None,
    load: Callable[[], Grounder],
    films: Films,
    top: int,
    min_score: float | None,
    json: str | None,
    export: str | None,
    format: str | None,
    allow_playlists: bool,
) -> int:
    """Ground every video of a source, print one table, and return the exit code.

    Args:
        source: a folder, a pattern, or a list of videos.
        queries: the sentences.
        model: the name of the model that the user gave.
        load: returns the grounder; not called if an earlier run has answered everything.
        films: files for people to watch.
        top: moments of each video and query that are printed and cut.
        min_score: leave out moments with a lower score; None for no such choice.
        json: where the answers go; a file ending in .jsonl grows with each video, and a later run goes on.
        export: file for another program.
        format: its format.
        allow_playlists: read playlists.

    Returns:
        0 if a query has a moment in a video, 1 if none has, 2 if no video could be read.

    Raises:
        ValueError: if the source has no videos, or the export holds one video only.
    """
    from sidelight.export.formats import FORMATS, format_of
    from sidelight.features.sources import video_files
    from sidelight.io.storage import is_address

    videos = [str(path) for path in video_files([source])]
    if export and len(videos) > 1 and FORMATS[format_of(export, format)].one_video:
        raise ValueError(
            f"the format {format_of(export, format)} holds one video, and {source} has {len(videos)}; give --export "
            "a file such as moments.csv"
        )
    if (films or export) and (addresses := [video for video in videos if is_address(video)]):
        raise ValueError(
            f"{addresses[0]} is an address, and moments are cut from files of this machine; download the videos first, "
            "or give --json alone and cut later"
        )
    lines = json if json and json.lower().endswith(".jsonl") else None
    earlier = _earlier_answers(lines)
    with report_to(json):
        with announced(f"grounding {count_of(len(videos), 'video')}", has_bar=True):
            run = _ground_each(videos, queries, model, load, earlier, lines=lines, allow_playlists=allow_playlists)
        groundings = [grounding.at_least(min_score or 0.0) for grounding in run.groundings]
        _print_table(groundings, source, top=top)
        _print_end(run, len(videos), lines)
        if lines:
            print(f"wrote {lines}")
        is_table = is_data(export, format)
        options = [*(["--export"] if export and not is_table else []), *films.options()]
        shown = worth_showing(groundings, top=top, min_score=min_score, options=options)
        if export and any(groundings):
            answers = groundings if is_table else shown
            write_export(answers, export, format=format, top=top, padding=films.padding)
    if not lines:
        write_json(json, [grounding.to_dict() for grounding in groundings])
    with report_to(json):
        if run.groundings:
            (films if any(groundings) else films.without_cuts()).write(shown)
    return 2 if not run.groundings else 0 if any(groundings) else 1


def _earlier_answers(lines: str | None) -> dict[tuple[str, str, str | None], Grounding]:
    """Return the answers of an earlier run by video, query and model, but for videos that changed since.

    Raises:
        ValueError: if the file holds something else.
    """
    from sidelight.core.grounding import Grounding
    from sidelight.io.jsonl import read_json_lines

    if lines is None or not os.path.isfile(lines):
        return {}
    written = os.path.getmtime(lines)
    answers = {}
    rows = list(read_json_lines(lines, lenient=True))
    for line in rows:
        if line.problem and line is rows[-1] and _is_begun_answer(lines):  # a killed run was writing this line
            continue
        try:
            if line.problem:
                raise ValueError(line.problem)
            answer = Grounding.from_dict(line.values)
        except ValueError as error:
            raise ValueError(
                f"{lines}:{line.number}: {error}; give --json a new file, or one of an earlier run of this command"
            ) from None
        video = answer.video or ""
        state = line.values.get(_STATE)
        is_same = state == _state_of(video) if state else os.path.isfile(video) and os.path.getmtime(video) <= written
        if is_same or not os.path.isfile(video):
            answers[video, answer.query, answer.model] = answer
    return answers


def _is_begun_answer(lines: str) -> bool:
    """Check whether the last line of a file is the beginning of an answer, which a killed run was writing."""
    with open(lines, "rb") as file:
        tail = file.read().rpartition(b"\n")[2]
    return tail.startswith(_BEGIN) or _BEGIN.startswith(tail)


def _state_of(video: str) -> list[int] | None:
    """Return size and time of a file, by which a changed one is known; None for an address."""
    try:
        state = os.stat(video)
    except OSError:
        return None
    return [state.st_size, state.st_mtime_ns]


def _ground_each(
    videos: Sequence[str],
    queries: Sequence[str],
    model: str | None,
    load: Callable[[], Grounder],
    earlier: Mapping[tuple[str, str, str | None], Grounding],
    *,
    lines: str | None,
    allow_playlists: bool,
) -> _Run:
    """Ground the videos one after the other; write the answers of each at once."""
    from tqdm import tqdm

    from sidelight.features.sources import local_video
    from sidelight.io.jsonl import append_json_lines
    from sidelight.io.storage import StorageError
    from sidelight.video.damage import VideoError

    name = _name_of(model)
    run, grounder = _Run(), None
    for video in tqdm(videos, desc="videos", unit="video", delay=2, leave=False, disable=None):
        answers = {query: earlier.get((video, query, name)) for query in queries}
        missing = [query for query, answer in answers.items() if answer is None]
        if missing:
            if grounder is None:
                if problem := _damage(video):  # no model is needed to find that a file is broken
                    run.failures[video] = problem
                    continue
                with announced("loading the model"):
                    grounder = load()
            try:
                state = _state_of(video)  # a file that changes while it is read counts as another one
                with _collected(run.warnings, video), local_video(video) as file:
                    new = grounder.ground(file, missing, allow_playlists=allow_playlists)
            except (VideoError, StorageError, OSError) as error:
                run.failures[video] = _sentence(error, video)
                continue
            new = [replace(answer, video=video) for answer in new]
            if lines:
                append_json_lines(lines, [{**answer.to_dict(), _STATE: state} for answer in new])
            answers |= {answer.query: answer for answer in new}
        run.kept += not missing
        run.groundings += [answer for answer in answers.values() if answer is not None]
    return run


def _damage(video: str) -> str:
    """Return why a file cannot be read as a video; "" if its header can be read, and for an address."""
    from sidelight.io.storage import is_address
    from sidelight.video.damage import VideoError
    from sidelight.video.read import probe

    try:
        if not is_address(video):
            probe(video)
    except (VideoError, OSError) as error:
        return _sentence(error, video)
    return ""


def _name_of(model: str | None) -> str:
    """Return the name that a model's answers state."""
    if model is not None:
        return model
    from sidelight.training.named import DEFAULT_MODEL  # imports PyTorch

    return DEFAULT_MODEL


@contextmanager
def _collected(messages: dict[str, list[str]], video: str) -> Iterator[None]:
    """Collect sidelight's own warnings in the block, by sentence; show others as usual."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if warning.category.__module__.startswith("sidelight"):
            of_video = messages.setdefault(str(warning.message), [])
            of_video += [video] if video not in of_video else []
        else:
            warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)


def _sentence(error: Exception, video: str) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{video} cannot be read: {error.strerror}"
    return text if video in text else f"{video}: {text}"


def _print_table(groundings: Sequence[Grounding], source: str, *, top: int) -> None:
    """Print the best moments of each video and query in one table, by falling score."""
    ranked = [(grounding, moment) for grounding in groundings for moment in grounding.top(top)]
    ranked.sort(key=lambda pair: (-pair[1].score, pair[0].video or "", pair[1].start))
    if not ranked:
        print("no such moment")
        return
    rows = [("file", "start", "end", "score", "query")]
    for grounding, moment in ranked:
        name = _name(grounding.video or "", source)
        query = " ".join(grounding.query.split())
        rows.append((name, clock(moment.start), clock(moment.end), f"{moment.score:.2f}", query))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *numbers, query in rows:
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:-1], strict=True)]
        print("  ".join([name.ljust(widths[0]), *cells, query]))


def _name(video: str, source: str) -> str:
    """Return the name of a video in the table: relative to the folder that the user named."""
    return os.path.relpath(video, source) if os.path.isdir(source) else video


def _print_end(run: _Run, videos: int, lines: str | None) -> None:
    """Print who answered, and on stderr what was not as it should be."""
    models = ", ".join(dict.fromkeys(grounding.model for grounding in run.groundings if grounding.model))
    if models:
        print(f"\nanswered by the model {models}; {BEST_GUESSES},")
        print("and scores of different videos can be compared only roughly")
    if run.kept:
        print(f"{count_of(run.kept, 'video')} of {videos} answered by an earlier run, from {lines}")
    for sentence, named in run.warnings.items():
        names = ", ".join(Path(name).name for name in named[:_NAMED])
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        print(f"sidelight: warning: {sentence} ({names}{more})", file=sys.stderr)
    if run.failures:
        print(f"sidelight: {count_of(len(run.failures), 'video')} of {videos} could not be read:", file=sys.stderr)
        for sentence in run.failures.values():
            print(f"  {sentence}", file=sys.stderr)
