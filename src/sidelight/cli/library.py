"""`sidelight library` and `sidelight search`: keep a library of videos, and search all of them at once."""

from __future__ import annotations

import re
import sys
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any

from sidelight.cli.films import Films
from sidelight.cli.parser import Group, Option
from sidelight.cli.shared import (
    BackboneWeights,
    ClipsFolder,
    Count,
    Device,
    Engine,
    ExportFile,
    ExportFormat,
    File,
    Folder,
    JoinFile,
    JsonFile,
    Model,
    ReportFile,
    Score,
    Seconds,
    SheetFile,
    ThumbnailsFolder,
    report_to,
    require_engine,
    require_package,
    require_range,
    write_json,
)
from sidelight.core.messages import count_of

if TYPE_CHECKING:
    from sidelight.library import Changes, SearchResult

OutLibrary = Annotated[str, Option("LIB", path="output folder")]
InLibrary = Annotated[str, Option("LIB", path="input")]
Day = Annotated[str, Option("YYYY-MM-DD")]
LibraryModel = Annotated[
    str, Option("NAME|DIR", "another model that reads the same features; the one of the library unless given", "input")
]
MAX_LINES = 10
"""How many files of one kind a command prints."""


def library_add(
    library: OutLibrary,
    videos: list[File],
    *,
    model: Model | None = None,
    device: Device | None = None,
    backbone_weights: BackboneWeights | None = None,
    offline: bool = False,
    workers: Count | None = None,
    engine: Engine = "local",
    actors: Count | None = None,
) -> int:
    """Add videos to a library; make the library if there is none.

    The same command continues where it was interrupted. A broken video does not stop the others. The exit code is 1 if
    a video could not be read.

    Args:
        library: folder of the library, or an address such as s3://bucket/films.lib.
        videos: folders, files, patterns ('films/**/*.mp4'), .txt lists, or addresses such as s3://bucket/films/; an
            update looks there again.
        offline: use no network, only what is on this machine.
        workers: processes that decode; by the number of processors unless given.
        engine: read videos on this machine, or on a Ray cluster.
        actors: how many processes with backbones a Ray cluster runs; one for each GPU unless given.
    """
    from sidelight.io.download import offline as without_network
    from sidelight.library import Library

    _require_lancedb()
    require_engine(engine, actors, device)
    require_range(0, workers=workers)
    with without_network(offline):
        opened = Library.create(library, model=model, device=device, backbone_weights=backbone_weights)
        try:
            changes = opened.add(videos, engine=engine, workers=workers, actors=actors, progress=True)
        except KeyboardInterrupt:
            print("interrupted; the same command continues where it stopped", file=sys.stderr)
            raise
    return _report(library, changes)


def library_update(
    library: OutLibrary,
    *,
    videos: list[File] | None = None,
    device: Device | None = None,
    backbone_weights: BackboneWeights | None = None,
    offline: bool = False,
    workers: Count | None = None,
    engine: Engine = "local",
    actors: Count | None = None,
) -> int:
    """Follow new, changed, moved and deleted videos.

    Files are recognised by their content, so a moved or renamed video is not read by the model again. A video counts as
    deleted if its folder still holds other files; if the folder is missing or empty, its videos stay in the library.

    Args:
        library: folder of the library, or its address.
        videos: where to look too, such as a folder to which videos were moved.
        offline: use no network, only what is on this machine.
        workers: processes that decode; by the number of processors unless given.
        engine: read videos on this machine, or on a Ray cluster.
        actors: how many processes with backbones a Ray cluster runs; one for each GPU unless given.
    """
    from sidelight.io.download import offline as without_network
    from sidelight.library import Library

    _require_lancedb()
    require_engine(engine, actors, device)
    require_range(0, workers=workers)
    with without_network(offline):
        opened = Library.open(library, device=device, backbone_weights=backbone_weights)
        changes = opened.update(videos or (), engine=engine, workers=workers, actors=actors, progress=True)
    return _report(library, changes)


def library_remove(library: OutLibrary, videos: list[File]) -> None:
    """Remove videos from a library; the video files stay.

    Args:
        library: folder of the library, or its address.
        videos: files, folders with all that is in and below them, or addresses; they need not exist any more.
    """
    from sidelight.library import Library

    _require_lancedb()
    removed = Library.open(library).remove(videos)
    print(f"{library}: removed {count_of(len(removed), 'video')}; `sidelight library add` adds them again")


def library_status(library: InLibrary, *, files: bool = False, json: JsonFile | None = None) -> None:
    """Show what is in a library.

    Args:
        library: folder of the library, or its address.
        files: list all files too.
    """
    from sidelight.core.display import clock
    from sidelight.core.messages import size_of
    from sidelight.library import Library

    _require_lancedb()
    opened = Library.open(library)
    _require_outputs(opened, json=json)
    status, rows = opened.status(), opened.files()
    with report_to(json):
        copies = f" ({count_of(status.files, 'file')})" if status.files != status.videos else ""
        print(
            f"{library}: {count_of(status.videos, 'video')}{copies}, {clock(status.seconds)}, "
            f"{count_of(status.clips, 'clip')}, {size_of(status.bytes)}"
        )
        print(f"model {status.model}; {'with' if status.indexed else 'without'} an index")
        _print_files("missing", status.missing)
        _print_files("failed", [f"{path}: {reason}" for path, reason in status.failed.items()])
        if files:
            for row in rows:
                print(f"{clock(row.duration):>10}  {row.path}")
    write_json(json, {**vars(status), "failed": dict(status.failed), "paths": [row.path for row in rows]})


def library_verify(library: InLibrary) -> int:
    """Read a whole library and report what is damaged, missing or changed.

    Args:
        library: folder of the library, or its address.
    """
    from sidelight.library import Library

    _require_lancedb()
    opened = Library.open(library)
    faults = opened.verify()
    for place, fault in faults.items():
        print(f"{place}: {fault}")
    print(f"{library}: {count_of(len(opened.files()), 'file')}; {count_of(len(faults), 'fault')}")
    return 1 if faults else 0


def library_calibrate(
    library: InLibrary,
    annotations: File,
    *,
    iou: Score = 0.5,
    device: Device | None = None,
    backbone_weights: BackboneWeights | None = None,
    offline: bool = False,
    json: JsonFile | None = None,
) -> None:
    """Learn how likely a hit is right, from annotated queries of the library's videos.

    From then on `sidelight search` shows this probability as the relevance of a hit, orders hits by it, and answers
    "no such moment" if no hit is likely enough. At least 30 different queries are needed. They are searched with and
    without the annotated videos; a sentence counts as true in the annotated videos only.

    Args:
        library: folder of the library.
        annotations: JSONL; vid is the name of a video file without its suffix.
        iou: overlap (IoU) with a true window from which a hit is right.
        offline: use no network, only what is on this machine.
    """
    from sidelight.data.annotations import read_annotations
    from sidelight.io.download import offline as without_network
    from sidelight.library import Library

    _require_lancedb()
    require_range(0, 1, iou=iou)
    if iou == 0:
        raise ValueError("--iou must be above 0: at 0 every moment would be right")
    rows = read_annotations(annotations)
    with without_network(offline):
        opened = Library.open(library, device=device, backbone_weights=backbone_weights)
        _require_outputs(opened, annotations, json=json)
        report = opened.calibrate(rows, iou=iou, progress=True)
    absent = report.absent
    with report_to(json):
        print(f"{library}: calibrated with {count_of(report.queries, 'query')}; on queries that were set aside:")
        print(
            f"first hit right: {100 * report.first_right:.1f} % ({100 * report.first_right_before:.1f} % before); "
            f"expected calibration error of its relevance: {100 * report.error:.1f} points"
        )
        print(
            f'"no such moment" below a relevance of {absent.min_score:g}: given for {100 * absent.recall:.1f} % of '
            f"queries without their videos, and wrongly for {100 * absent.lost:.1f} % of queries with them"
        )
    write_json(json, report.to_dict())


library = Group(
    "Keep a library of videos, which `sidelight search` searches.",
    {
        "add": library_add,
        "update": library_update,
        "remove": library_remove,
        "status": library_status,
        "verify": library_verify,
        "calibrate": library_calibrate,
    },
)


def search(
    library: InLibrary,
    query: str = "",
    *,
    image: File | None = None,
    like: Annotated[str, Option("FILE@START-END")] | None = None,
    top: Count = 10,
    min_score: Score = 0.0,
    min_relevance: Score | None = None,
    folder: Folder | None = None,
    since: Day | None = None,
    until: Day | None = None,
    shortest: Seconds | None = None,
    longest: Seconds | None = None,
    candidates: Count | None = None,
    whole: bool = False,
    model: LibraryModel | None = None,
    device: Device | None = None,
    backbone_weights: BackboneWeights | None = None,
    offline: bool = False,
    json: JsonFile | None = None,
    export: ExportFile | None = None,
    format: ExportFormat | None = None,
    padding: Seconds = 0.0,
    clips: ClipsFolder | None = None,
    join: JoinFile | None = None,
    copy: bool = False,
    thumbnails: ThumbnailsFolder | None = None,
    contact_sheet: SheetFile | None = None,
    report: ReportFile | None = None,
) -> int:
    """Find moments in all videos of a library by a sentence, an image or another moment.

    Hits are in the order of their relevance. After `sidelight library calibrate` it is the probability that the hit is
    right, and less likely hits are left out. Before, it says how near the video comes to the query, times the share
    that the moment has of its video's best score. "score" is the model's own, as `sidelight ground` prints it. The exit
    code is 0 if there is a moment, 1 if there is none, 2 after a mistake.

    Args:
        library: folder of the library, or its address.
        query: a sentence in quotes; or give --image or --like.
        image: find what looks like this image.
        like: find what looks like a moment of a video, such as film.mp4@61.5-70 or film.mp4@1:01-1:10.
        top: how many moments to return.
        min_score: leave out moments with a lower score; if none is left, the answer is "no such moment" (`sidelight
            calibrate` chooses this score).
        min_relevance: leave out hits with a lower relevance; chosen by `sidelight library calibrate` unless given.
        folder: only videos in or below this folder.
        since: only files that were changed on this day or later.
        until: only files that were changed on this day or earlier.
        shortest: only videos of at least this length.
        longest: only videos of at most this length.
        candidates: how many of the nearest videos the model reads; 10, or --top if that is more, unless given.
        whole: read all of each candidate, where a search reads only the parts of a long video near to the sentence.
        offline: use no network, only what is on this machine.
        json: write hits and answers as JSON, which `sidelight export` reads; - for standard output.
        export: write the moments, if there are any, for another program (`sidelight export --help` lists the formats).
        padding: seconds that --clips, --join and --export add before and after each moment, within the video.
        copy: cut at keyframes without encoding; clips begin too early, and the true start of each is printed.
    """
    from sidelight.cli.export import write_export
    from sidelight.export.formats import format_of
    from sidelight.io.download import offline as without_network
    from sidelight.library import Library, Where

    _require_lancedb()
    if sum(bool(given) for given in (query, image, like)) != 1:
        raise ValueError("give one of a sentence, --image and --like")
    require_range(1, top=top, candidates=candidates)
    require_range(0, min_score=min_score, shortest=shortest, longest=longest)
    require_range(0, 1, min_relevance=min_relevance)
    if (whole or min_relevance is not None) and not query:
        raise ValueError("--min-relevance and --whole are for sentences; --min-score fits --image and --like too")
    films = Films(
        clips=clips,
        join=join,
        copy=copy,
        thumbnails=thumbnails,
        contact_sheet=contact_sheet,
        report=report,
        padding=padding,
    )
    if export:
        format_of(export, format)
    moment = _moment_of(like) if like else None
    where = Where(
        folder=folder,
        since=_day(since, "since"),
        until=_day(until, "until"),
        min_seconds=shortest,
        max_seconds=longest,
    )
    options: dict[str, Any] = {"top": top, "min_score": min_score, "where": where, "candidates": candidates}
    with without_network(offline), report_to(json):
        opened = Library.open(library, model=model, device=device, backbone_weights=backbone_weights)
        outputs = {"json": json, "export": export, "join": join, "contact-sheet": contact_sheet, "report": report}
        _require_outputs(opened, *([moment[0]] if moment else []), **outputs)
        if image:
            result = opened.search_image(image, **options)
        elif moment:
            result = opened.search_like(*moment, **options)
        else:
            result = opened.search(query, min_relevance=min_relevance, whole=whole, **options)
        print(result.to_text(folder="."))
        if query:
            _print_reading(result, opened.grounder.name)
    write_json(json, result.to_dict())
    with report_to(json):
        if export and result:
            write_export(result.groundings, export, format=format, padding=padding)
        (films if result else films.without_cuts()).write(result.groundings)
    return 0 if result else 1


def _print_reading(result: SearchResult, model: str) -> None:
    """Print how the numbers of a result are to be read, or why it has no hit."""
    from sidelight.core.display import BEST_GUESSES

    if result.best_left_out is not None:
        print(
            f"the best guess has a relevance of {result.best_left_out:.2f}, which is too low; "
            "--min-relevance 0 shows the guesses"
        )
    elif result and result.is_calibrated:
        print(f"answered by the model {model}; relevance is the probability that a hit is right")
    elif result:
        print(f"answered by the model {model}; {BEST_GUESSES}")


def _report(library: str, changes: Changes) -> int:
    """Print what changed in a library, and return the exit code."""
    kinds = ("added", "changed", "moved", "removed", "unchanged")
    counts = [f"{len(getattr(changes, kind)):,} {kind}" for kind in kinds if getattr(changes, kind)]
    print(f"{library}: {', '.join(counts) or 'no videos'}")
    for problem in changes.problems:
        print(f"sidelight: note: {problem}", file=sys.stderr)
    _print_files("out of reach, kept", changes.out_of_reach)
    _print_files("failed", [f"{path}: {reason}" for path, reason in changes.failed.items()])
    return 1 if changes.failed else 0


def _print_files(kind: str, lines: list[str] | tuple[str, ...]) -> None:
    for line in lines[:MAX_LINES]:
        print(f"{kind}: {line}", file=sys.stderr)
    if len(lines) > MAX_LINES:
        print(f"{kind}: and {len(lines) - MAX_LINES:,} more", file=sys.stderr)


def _require_lancedb() -> None:
    require_package("lancedb", "library", "a library needs LanceDB")


def _require_outputs(opened: object, *inputs: str, **outputs: str | None) -> None:
    """Refuse an output that is a video of the library, or another input.

    Raises:
        ValueError: if so.
    """
    from sidelight.io.files import require_outputs
    from sidelight.library import Library

    assert isinstance(opened, Library)
    named = {f"--{name}": path for name, path in outputs.items() if path and path != "-"}
    if named:
        require_outputs(named, [*inputs, *(row.path for row in opened.files())])


def _day(text: str | None, name: str) -> date | None:
    """Return a day; ValueError if the text is none."""
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise ValueError(f"--{name} must be a day such as 2026-03-31, got {text!r}") from None


def _moment_of(text: str) -> tuple[str, float, float]:
    """Return file, start and end of FILE@START-END; ValueError if the text is of another form."""
    match = re.fullmatch(r"(.+)@([\d:.]+)-([\d:.]+)", text, flags=re.DOTALL)
    try:
        if match is None:
            raise ValueError
        return match[1], _seconds(match[2]), _seconds(match[3])
    except ValueError:
        raise ValueError(f"--like must be FILE@START-END, such as film.mp4@61.5-70, got {text!r}") from None


def _seconds(text: str) -> float:
    """Return the seconds of 70, 1:10 or 1:02:03.5; ValueError if the text is of another form."""
    seconds = 0.0
    for part in text.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds
