"""`sidelight library` and `sidelight search`: keep a library of videos, and search all of them at once."""

from __future__ import annotations

import re
import sys
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any

from sidelight.cli.parser import Group, Option
from sidelight.cli.shared import (
    BackboneWeights,
    Count,
    Device,
    ExportFile,
    ExportFormat,
    File,
    Folder,
    JsonFile,
    Model,
    Score,
    Seconds,
    report_to,
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
) -> int:
    """Add videos to a library; make the library if there is none.

    The same command continues where it was interrupted. A broken video does not stop the others. The exit code is 1 if
    a video could not be read.

    Args:
        library: folder of the library.
        videos: folders, files, patterns ('films/**/*.mp4'), or .txt lists; an update looks there again.
        offline: use no network, only what is on this machine.
        workers: processes that decode; by the number of processors unless given.
    """
    from sidelight.io.download import offline as without_network
    from sidelight.library import Library

    _require_lancedb()
    require_range(0, workers=workers)
    with without_network(offline):
        opened = Library.create(library, model=model, device=device, backbone_weights=backbone_weights)
        try:
            changes = opened.add(videos, workers=workers, progress=True)
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
) -> int:
    """Follow new, changed, moved and deleted videos.

    Files are recognised by their content, so a moved or renamed video is not read by the model again. A video counts as
    deleted if its folder still holds other files; if the folder is missing or empty, its videos stay in the library.

    Args:
        library: folder of the library.
        videos: where to look too, such as a folder to which videos were moved.
        offline: use no network, only what is on this machine.
        workers: processes that decode; by the number of processors unless given.
    """
    from sidelight.io.download import offline as without_network
    from sidelight.library import Library

    _require_lancedb()
    require_range(0, workers=workers)
    with without_network(offline):
        opened = Library.open(library, device=device, backbone_weights=backbone_weights)
        return _report(library, opened.update(videos or (), workers=workers, progress=True))


def library_remove(library: OutLibrary, videos: list[File]) -> None:
    """Remove videos from a library; the video files stay.

    Args:
        library: folder of the library.
        videos: files, or folders with all that is in and below them; they need not exist any more.
    """
    from sidelight.library import Library

    _require_lancedb()
    removed = Library.open(library).remove(videos)
    print(f"{library}: removed {count_of(len(removed), 'video')}; `sidelight library add` adds them again")


def library_status(library: InLibrary, *, files: bool = False, json: JsonFile | None = None) -> None:
    """Show what is in a library.

    Args:
        library: folder of the library.
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
        library: folder of the library.
    """
    from sidelight.library import Library

    _require_lancedb()
    opened = Library.open(library)
    faults = opened.verify()
    for place, fault in faults.items():
        print(f"{place}: {fault}")
    print(f"{library}: {count_of(len(opened.files()), 'file')}; {count_of(len(faults), 'fault')}")
    return 1 if faults else 0


library = Group(
    "Keep a library of videos, which `sidelight search` searches.",
    {
        "add": library_add,
        "update": library_update,
        "remove": library_remove,
        "status": library_status,
        "verify": library_verify,
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
    folder: Folder | None = None,
    since: Day | None = None,
    until: Day | None = None,
    shortest: Seconds | None = None,
    longest: Seconds | None = None,
    candidates: Count | None = None,
    model: LibraryModel | None = None,
    device: Device | None = None,
    backbone_weights: BackboneWeights | None = None,
    offline: bool = False,
    json: JsonFile | None = None,
    export: ExportFile | None = None,
    format: ExportFormat | None = None,
) -> int:
    """Find moments in all videos of a library by a sentence, an image or another moment.

    Hits are in the order of "fits": how near the video comes to the query, times the share that the moment has of its
    video's best score. "score" is the model's own, as `sidelight ground` prints it: a hit that fits and has a score
    near 0 is only the best of a video that does not show it. The exit code is 0 if there is a moment, 1 if there is
    none (see --min-score), 2 after a mistake.

    Args:
        library: folder of the library.
        query: a sentence in quotes; or give --image or --like.
        image: find what looks like this image.
        like: find what looks like a moment of a video, such as film.mp4@61.5-70 or film.mp4@1:01-1:10.
        top: how many moments to return.
        min_score: leave out moments with a lower score; if none is left, the answer is "no such moment" (`sidelight
            calibrate` chooses this score).
        folder: only videos in or below this folder.
        since: only files that were changed on this day or later.
        until: only files that were changed on this day or earlier.
        shortest: only videos of at least this length.
        longest: only videos of at most this length.
        candidates: how many of the nearest videos the model reads; 10, or --top if that is more, unless given.
        offline: use no network, only what is on this machine.
        json: write the answers as JSON, one for each video, as `sidelight ground` does; - for standard output.
        export: write the moments, if there are any, for another program (`sidelight export --help` lists the formats).
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
        _require_outputs(opened, *([moment[0]] if moment else []), json=json, export=export)
        if image:
            result = opened.search_image(image, **options)
        elif moment:
            result = opened.search_like(*moment, **options)
        else:
            result = opened.search(query, **options)
        _print_result(result)
        if query and result:
            name = opened.grounder.name
            print(f"answered by the model {name}; moments are its best guesses, also for what is never shown")
        if export and result:
            write_export(result.groundings, export, format=format)
    write_json(json, [grounding.to_dict() for grounding in result.groundings])
    return 0 if result else 1


def _print_result(result: SearchResult) -> None:
    """Print a row for each hit, best first."""
    from sidelight.core.display import NO_MOMENT, clock

    if not result:
        print(NO_MOMENT)
        return
    print(f"{'start':>8}{'end':>9}{'fits':>7}{'score':>7}  video")
    for hit in result:
        moment = hit.moment
        print(f"{clock(moment.start):>8}{clock(moment.end):>9}{hit.relevance:>7.2f}{moment.score:>7.2f}  {hit.video}")


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
