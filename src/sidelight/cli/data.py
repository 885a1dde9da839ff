"""`sidelight data` and `sidelight shapes`: check and import annotations, and make a synthetic world."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sidelight.cli.parser import Group
from sidelight.cli.shared import (
    Count,
    File,
    Folder,
    JsonFile,
    Name,
    OutFile,
    OutFolder,
    Seconds,
    Store,
    report_to,
    require_range,
    write_json,
)
from sidelight.core.messages import count_of

if TYPE_CHECKING:
    from sidelight.data.findings import Report


_MOST_PROBLEMS = 20
"""Largest number of wrong rows that `data import` prints."""


def data_check(
    folder: Folder,
    *,
    benchmark: Name | None = None,
    videos: Folder | None = None,
    features: list[Store] | None = None,
    json: JsonFile | None = None,
) -> int:
    """Report what annotations hold, and what is wrong with them.

    Args:
        folder: folder with annotations, in it or one folder below; or one file.
        benchmark: how to read the annotations, or "own data"; each file is recognised unless given.
        videos: folder with the video files, named by their ids.
        features: feature stores, or features in layouts that papers released.
        json: write the report as JSON; - for standard output.
    """
    from sidelight.data.findings import SEVERITIES
    from sidelight.features.check import check

    report = check(folder, benchmark=benchmark, videos=videos, features=features)
    counts = {severity: sum(f.severity == severity for f in report.findings) for severity in SEVERITIES}
    with report_to(json):
        _print_report(report)
        print(", ".join(count_of(n, severity) for severity, n in counts.items()))
    write_json(json, report.to_dict())
    return 1 if report.errors else 0


def _print_report(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for name in ("file", "benchmark", "split"):
        table.add_column(name, no_wrap=True)
    for name in ("rows (published)", "videos (published)", "windows", "hours", "rated clips"):
        table.add_column(name, justify="right", no_wrap=True)
    for f in report.files:
        rows, videos = (
            f"{count:,}" if published is None else f"{count:,} ({published:,})"
            for count, published in ((f.rows, f.published_queries), (f.videos, f.published_videos))
        )
        numbers = (rows, videos, f"{f.windows:,}", f"{f.hours:.2f}", f"{f.rated_clips:,}")
        table.add_row(Text(Path(f.file).name), f.benchmark, f.split or "-", *numbers)
    # At least 140 columns: a narrow terminal wraps the lines, where rich would cut numbers off.
    Console(highlight=False, width=max(console.width, 140)).print(table)
    colours = {"error": "bold red", "warning": "yellow", "note": "cyan"}
    for finding in report.findings:
        severity = (finding.severity, colours[finding.severity])
        console.print()
        console.print(Text.assemble(severity, f"  {finding.file}: {finding.says} ({finding.rows:,})"))
        for example in finding.examples:
            console.print(Text(f"    {example}"))
        if finding.rows > len(finding.examples):
            console.print(f"    and {finding.rows - len(finding.examples):,} more")
        console.print(Text(f"    -> {finding.advice}"))
    for line in report.features:
        console.print(Text(f"\n{line}"))
    for path in report.skipped:
        console.print(Text(f"\nnot looked at, because it holds no annotations: {path}"))
    console.print()


def data_import(table: File, *, out: OutFile, videos: Folder | None = None, clip_seconds: Seconds = 2.0) -> int:
    """Make annotations from a table of your own.

    Args:
        table: CSV with a header, or JSONL, with the columns video, query, start and end.
        out: JSONL in the QVHighlights form.
        videos: folder with the video files, for durations that the table lacks.
        clip_seconds: length of the clips that are marked relevant.
    """
    from sidelight.data.table_import import TableError, import_file

    try:
        annotations = import_file(table, out, videos=videos, clip_seconds=clip_seconds)
    except TableError as error:
        for problem in error.problems[:_MOST_PROBLEMS]:
            print(f"sidelight: {' '.join(problem.split())}", file=sys.stderr)
        if (hidden := len(error.problems) - _MOST_PROBLEMS) > 0:
            print(f"sidelight: and {hidden} more wrong rows", file=sys.stderr)
        return 2
    num_videos, num_windows = len({a.vid for a in annotations}), sum(len(a.relevant_windows) for a in annotations)
    queries, windows = count_of(len(annotations), "query"), count_of(num_windows, "window")
    print(f"wrote {queries} with {windows} on {count_of(num_videos, 'video')} to {out}")
    return 0


data = Group("Check annotations, videos and features; import your own.", {"check": data_check, "import": data_import})


def shapes(
    *,
    out: OutFolder,
    videos: Count,
    seed: Count = 0,
    split: Literal["train", "val", "test"] = "train",
    shortest: Seconds = 60.0,
    longest: Seconds = 150.0,
    side: Count = 160,
    absent: Count = 0,
    workers: Count | None = None,
) -> None:
    """Make a world of labelled synthetic videos.

    Args:
        out: folder; gets videos/ and annotations.jsonl.
        videos: how many videos to make.
        seed: number of the world.
        split: which split of the world to make.
        shortest: duration of the shortest video.
        longest: duration of the longest video.
        side: width and height in pixels.
        absent: also write with-absent.jsonl, with this many more queries per video that match no moment.
        workers: processes that draw; one per processor unless given.
    """
    from sidelight.shapes import describe, make_world

    require_range(0, seed=seed, absent=absent)
    require_range(1, workers=workers)
    if not 20 <= shortest <= longest:
        raise ValueError(
            f"--shortest must be 20 or more, and at most --longest, got --shortest {shortest:g} --longest {longest:g}"
        )
    annotations = make_world(
        out,
        videos=videos,
        seed=seed,
        split=split,
        seconds=(shortest, longest),
        side=side,
        absent=absent,
        workers=(os.cpu_count() or 1) if workers is None else workers,
        progress=True,
    )
    for name, value in describe(annotations):
        print(f"{name:<44}{value}")
    print(f"wrote {out}")
