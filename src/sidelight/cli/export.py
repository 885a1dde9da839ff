"""`sidelight export`: write answers for another program."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from sidelight.cli.films import Films, print_notes, worth_showing
from sidelight.cli.parser import Option
from sidelight.cli.shared import (
    ClipsFolder,
    Count,
    ExportFormat,
    File,
    JoinFile,
    OutFile,
    ReportFile,
    Score,
    Seconds,
    SheetFile,
    ThumbnailsFolder,
    require_range,
)

if TYPE_CHECKING:
    from sidelight.core.grounding import Grounding


def export(
    answers: File,
    out: Annotated[str | None, Option("FILE", path="output file")] = None,
    *,
    format: ExportFormat | None = None,
    video: File | None = None,
    top: Count | None = None,
    min_score: Score | None = None,
    padding: Seconds = 0.0,
    clips: ClipsFolder | None = None,
    join: JoinFile | None = None,
    copy: bool = False,
    thumbnails: ThumbnailsFolder | None = None,
    contact_sheet: SheetFile | None = None,
    report: ReportFile | None = None,
) -> None:
    """Write answers for another program, or cut clips, a film or a report from the video.

    Answers are the JSON of `sidelight ground --json` or `sidelight search --json`. The suffix of FILE chooses the
    format: .csv, .json, .srt, .vtt, .txt (chapters for YouTube), .otio, .edl, .fcpxml, .xml (Premiere Pro), .ffconcat
    or .sh (cuts with FFmpeg).

    Args:
        answers: JSON file with one answer, or a list of answers; or JSON lines (.jsonl).
        out: file to write; not needed with --clips, --join, --thumbnails, --contact-sheet or --report.
        video: the video file, if it has moved since the answer.
        top: moments of each answer, best first; all unless given.
        min_score: leave out moments with a lower score. Unless given, moments with less than a quarter of the best
            score are left out of everything but CSV and JSON.
        padding: seconds that cuts, clips and timelines add before and after each moment.
        copy: cut at keyframes without encoding; clips begin too early, and the true start of each is printed.
    """
    require_range(1, top=top)
    require_range(0, min_score=min_score)
    films = Films(
        clips=clips,
        join=join,
        copy=copy,
        thumbnails=thumbnails,
        contact_sheet=contact_sheet,
        report=report,
        padding=padding,
    )
    if not (out or films):
        raise ValueError(
            "there is nothing to write; give a file, or --clips, --join, --thumbnails, --contact-sheet or --report"
        )
    if video is not None and not Path(video).is_file():
        raise ValueError(f"{video} does not exist; give the video that the answers are about")
    groundings = [grounding.at_least(min_score or 0.0) for grounding in read_answers(answers)]
    is_cut = bool(out) and not is_data(out, format)
    shown = worth_showing(
        groundings, top=top, min_score=min_score, options=[*([str(out)] if is_cut else []), *films.options()]
    )
    if out:
        write_export(shown if is_cut else groundings, out, format=format, video=video, top=top, padding=padding)
    films.write(shown, video=video)


def is_data(out: str | None, format: str | None) -> bool:
    """Check whether an export is a table of answers, in which no moment is left out; False for no export.

    Raises:
        ValueError: if the format is unknown.
    """
    if not out:
        return False
    from sidelight.export.formats import FORMATS, format_of

    return FORMATS[format_of(out, format)].is_data


def read_answers(path: str) -> list[Grounding]:
    """Read the JSON of `sidelight ground`: one answer, or a list of answers.

    Raises:
        ValueError: if the file is missing or holds something else; names it.
    """
    from sidelight.core.grounding import Grounding
    from sidelight.core.summary import Summary
    from sidelight.io.files import read_text
    from sidelight.io.jsonl import read_json_lines

    if not Path(path).exists():
        raise ValueError(f"{path} does not exist; expected the JSON that `sidelight ground --json` writes")
    values: Any
    try:
        try:
            values = json.loads(read_text(path))
        except ValueError:
            if Path(path).suffix.lower() != ".jsonl":
                raise
            values = [line.values for line in read_json_lines(path)]
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not valid JSON; give the JSON that `sidelight ground --json` writes") from None
    try:
        if isinstance(values, dict) and isinstance(values.get("groundings"), list):  # the JSON of `sidelight search`
            values = values["groundings"]
        rows = values if isinstance(values, list) else [values]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"expected answers as JSON objects, got {type(rows[0]).__name__}")
        return [(Summary if "segments" in row else Grounding).from_dict(row) for row in rows]
    except ValueError as error:
        raise ValueError(f"{path}: {error}; give the JSON that `sidelight ground --json` writes") from None


def write_export(
    groundings: Sequence[Grounding],
    out: OutFile,
    *,
    format: str | None = None,
    video: str | None = None,
    top: int | None = None,
    padding: float = 0.0,
) -> None:
    """Write an export and say so; arguments and errors as :func:`sidelight.export.formats.export`."""
    from sidelight.export.formats import export as write

    print_notes(write(groundings, out, format=format, video=video, top=top, padding=padding))
    print(f"wrote {out}")
