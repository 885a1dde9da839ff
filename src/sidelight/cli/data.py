"""`sidelight data` and `sidelight shapes`: annotations, yours and those of a world."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from sidelight.cli.shared import check_writable
from sidelight.io.files import write_text

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from sidelight.data.check import Report


def add_data(parser: ArgumentParser) -> None:
    from jsonargparse import ArgumentParser as Parser

    usage = {
        "check": "sidelight data check DIR [--benchmark NAME] [--videos DIR] [--features STORE ...] [--json FILE]",
        "import": "sidelight data import FILE --out FILE.jsonl [--videos DIR] [--clip-seconds SECONDS]",
    }
    parser.usage = f"\n  {usage['check']}\n  {usage['import']}"
    commands = parser.add_subcommands(metavar="check | import")
    check = Parser(usage=usage["check"], exit_on_error=False, default_env=False)
    check.add_argument("folder", help="folder with annotations, in it or one folder below; or one file")
    check.add_argument("--benchmark", help='how to read them, or "own data"; each file is recognised unless given')
    check.add_argument("--videos", help="folder with the video files, named by their ids")
    check.add_argument("--features", nargs="+", metavar="STORE", help="feature stores, or layouts that papers released")
    check.add_argument("--json", metavar="FILE", help="write the report as JSON; - for standard output")
    commands.add_subcommand("check", check, help="say what is in annotations, and what is wrong with them")
    table = Parser(usage=usage["import"], exit_on_error=False, default_env=False)
    table.add_argument("table", metavar="FILE", help="CSV with a header, or JSONL: video, query, start, end")
    table.add_argument("--out", required=True, metavar="FILE", help="JSONL in the QVHighlights form")
    table.add_argument("--videos", help="folder with the video files, for durations that the table lacks")
    table.add_argument("--clip-seconds", type=float, default=2.0, help="length of the clips that are marked relevant")
    commands.add_subcommand("import", table, help="make annotations of your own table")


def run_data(args: Namespace, _: ArgumentParser) -> int:
    chosen = args[args.subcommand]
    if args.subcommand == "check":
        return _data_check(chosen)
    from sidelight.data.table_import import import_file

    check_writable(chosen.out, chosen.table)
    found = import_file(chosen.table, chosen.out, videos=chosen.videos, clip_seconds=chosen.clip_seconds)
    videos, windows = len({a.vid for a in found}), sum(len(a.relevant_windows) for a in found)
    print(f"wrote {len(found)} queries with {windows} windows on {videos} videos to {chosen.out}")
    return 0


def _data_check(args: Namespace) -> int:
    from sidelight.data.check import SEVERITIES
    from sidelight.features.check import check

    check_writable(args.json)
    report = check(args.folder, benchmark=args.benchmark, videos=args.videos, features=args.features)
    text = json.dumps(report.to_dict(), indent=2)
    if args.json == "-":
        print(text)
        return 1 if report.errors else 0
    _print_report(report)
    if args.json:
        write_text(args.json, text + "\n")
        print(f"wrote {args.json}")
    counts = {s: sum(f.severity == s for f in report.findings) for s in SEVERITIES}
    print(", ".join(f"{n} {s}{'' if n == 1 else 's'}" for s, n in counts.items()))
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
            f"{here:,}" if published is None else f"{here:,} ({published:,})"
            for here, published in ((f.rows, f.published_queries), (f.videos, f.published_videos))
        )
        numbers = (rows, videos, f"{f.windows:,}", f"{f.hours:.2f}", f"{f.rated_clips:,}")
        table.add_row(Text(Path(f.file).name), f.benchmark, f.split or "-", *numbers)
    # Numbers that are cut off are of no use: a narrow terminal wraps the lines instead.
    Console(highlight=False, width=max(console.width, 140)).print(table)
    colours = {"error": "bold red", "warning": "yellow", "note": "cyan"}
    for finding in report.findings:
        console.print()
        console.print(
            Text.assemble(
                (finding.severity, colours[finding.severity]),
                f"  {finding.file}: {finding.says} ({finding.rows:,})",
            )
        )
        for example in finding.examples:
            console.print(Text(f"    {example}"))
        if finding.rows > len(finding.examples):
            console.print(f"    and {finding.rows - len(finding.examples):,} more")
        console.print(Text(f"    -> {finding.advice}"))
    for path in report.skipped:
        console.print(Text(f"\nnot looked at, because it holds something else than annotations: {path}"))
    console.print()


def add_shapes(parser: ArgumentParser) -> None:
    parser.add_argument("--out", required=True, help="folder; gets videos/ and annotations.jsonl")
    parser.add_argument("--videos", type=int, required=True, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="which world")
    parser.add_argument("--split", choices=["train", "val", "test"], default="train")
    parser.add_argument("--shortest", type=float, default=60, help="seconds of the shortest video")
    parser.add_argument("--longest", type=float, default=150, help="seconds of the longest video")
    parser.add_argument("--side", type=int, default=160, help="width and height in pixels")
    parser.add_argument(
        "--absent",
        type=int,
        default=0,
        help="also write with-absent.jsonl: so many more queries per video, true of none",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that draw")


def run_shapes(args: Namespace, _: ArgumentParser) -> int:
    from sidelight.shapes import describe, make_world

    annotations = make_world(
        args.out,
        videos=args.videos,
        seed=args.seed,
        split=args.split,
        seconds=(args.shortest, args.longest),
        side=args.side,
        absent=args.absent,
        workers=args.workers,
        progress=True,
    )
    for what, how_much in describe(annotations):
        print(f"{what:<44}{how_much}")
    print(f"wrote {args.out}")
    return 0
