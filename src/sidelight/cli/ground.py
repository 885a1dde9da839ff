"""`sidelight ground` and `sidelight demo`: answers for people."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sidelight.cli.shared import add_backbone_weights, add_model, check_picture, check_writable
from sidelight.io.files import write_text

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from sidelight.core.grounding import Grounding


def add_ground(parser: ArgumentParser) -> None:
    parser.add_argument("video", help="video file of any length")
    parser.add_argument("query", nargs="+", help="one or more sentences, each in quotes")
    add_model(parser)
    add_backbone_weights(parser)
    parser.add_argument("--top", type=int, default=5, help="moments to print per query; JSON holds all")
    low = "leave out moments that score less; with none left there is no such moment (choose with sidelight calibrate)"
    parser.add_argument("--min-score", type=float, default=0.0, help=low)
    parser.add_argument("--json", metavar="FILE", help="write the groundings as JSON; - for standard output")
    parser.add_argument("--plot", metavar="FILE.png", help="draw frames, highlight curve and moments")
    parser.add_argument("--no-cache", action="store_true", help="neither read nor keep this video's features")


def run_ground(args: Namespace, _: ArgumentParser) -> int:
    from sidelight.grounder import DEFAULT_CACHE, Grounder
    from sidelight.video.read import probe

    if args.top < 1:
        raise ValueError(f"--top must be 1 or more, got {args.top}")
    if not 0 <= args.min_score <= 1:
        raise ValueError(f"--min-score must be between 0 and 1, got {args.min_score}")
    probe(args.video)  # says what is wrong with the file before anything slow begins
    check_writable(args.json)
    check_picture(args.plot)
    grounder = Grounder.from_pretrained(
        args.model,
        cache=None if args.no_cache else DEFAULT_CACHE,
        device=args.device,
        backbone_weights=args.backbone_weights,
    )
    groundings = [g.at_least(args.min_score) for g in grounder.ground(args.video, args.query)]
    if args.json == "-":
        if args.plot:
            draw(groundings, args.video, args.plot)
        print(_groundings_json(groundings))
        return 0
    for grounding in groundings:
        print_grounding(grounding, top=args.top)
    if args.model == "shapes":
        print("note: the model 'shapes' knows the synthetic shapes world only; other videos need another --model")
    if args.json:
        write_text(args.json, _groundings_json(groundings) + "\n")
        print(f"wrote {args.json}")
    if args.plot:
        draw(groundings, args.video, args.plot)
        print(f"wrote {args.plot}")
    return 0


def print_grounding(grounding: Grounding, *, top: int = 5, truth: Sequence[tuple[float, float]] = ()) -> None:
    """A table of moments, with a sparkline of the highlight curve; true windows beside it if they are known."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, show_edge=False)
    for name in ("start", "end", "score"):
        table.add_column(name, justify="right")
    for moment in grounding.top(top):
        table.add_row(clock(moment.start), clock(moment.end), f"{moment.score:.2f}")
    console.print(Text(grounding.query, style="bold"))
    # The curve, as wide as the terminal leaves room for.
    console.print(Text(f"  {sparkline(grounding.saliency.tolist(), max(20, min(75, console.width - 14)))}"))
    if not grounding.moments:
        console.print("  no such moment")
    else:
        console.print(table)
    if truth:
        console.print("true: " + ", ".join(f"{clock(s)} - {clock(e)}" for s, e in truth))
    console.print()


def clock(seconds: float) -> str:
    """Seconds as m:ss.s, or h:mm:ss.s from an hour on."""
    tenths = round(seconds * 10)
    hours, rest = divmod(tenths, 36000)
    minutes, rest = divmod(rest, 600)
    tail = f"{rest // 10:02d}.{rest % 10}"
    return f"{hours}:{minutes:02d}:{tail}" if hours else f"{minutes}:{tail}"


_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int) -> str:
    """Numbers as a row of bars, at most ``width`` of them, from the lowest to the highest value."""
    if not values:
        return ""
    count = min(width, len(values))
    bins = [
        max(values[i * len(values) // count : max((i + 1) * len(values) // count, i * len(values) // count + 1)])
        for i in range(count)
    ]
    low, high = min(bins), max(bins)
    span = high - low or 1.0
    return "".join(_BARS[min(7, int((v - low) / span * 8))] for v in bins)


def draw(
    groundings: Sequence[Grounding],
    video: str | Path,
    out: str | Path,
    truth: Sequence[Sequence[tuple[float, float]]] | None = None,
    *,
    pictures: int = 12,
) -> None:
    """Draw groundings of one video below a strip of its frames."""
    from sidelight.export.plot import plot_groundings
    from sidelight.video.read import frames_at, probe

    info = probe(video)
    height = 160
    width = max(2, round(height * info.width / info.height))
    wanted = [(i + 0.5) / pictures * groundings[0].timeline.duration for i in range(pictures)]
    frames = frames_at(video, wanted, size=(width, height))
    strip = [(t, frame.image) for t, frame in zip(wanted, frames, strict=False)]
    plot_groundings(groundings, out, frames=strip, truth=truth)


def _groundings_json(groundings: Sequence[Grounding]) -> str:
    return json.dumps([g.to_dict() for g in groundings], indent=2)


def add_demo(parser: ArgumentParser) -> None:
    parser.add_argument("--out", default="demo", help="folder for the video, the JSON and the picture")
    parser.add_argument("--seed", type=int, default=7, help="which video; models were trained on others")
    add_model(parser)


def run_demo(args: Namespace, _: ArgumentParser) -> int:
    from sidelight.cli.demo import demo

    began = time.perf_counter()
    shown = demo(Path(args.out), seed=args.seed, model=args.model, device=args.device)
    for grounding, truth in shown.answers:
        print_grounding(grounding, top=3, truth=truth)
    truths = [truth for _, truth in shown.answers]
    draw([g for g, _ in shown.answers], shown.video, shown.picture, truths)
    write_text(shown.json, _groundings_json([g for g, _ in shown.answers]) + "\n")
    print(f"a synthetic video that was not trained on: {shown.video}")
    print(f"wrote {shown.json} and {shown.picture} in {time.perf_counter() - began:.1f} s")
    return 0
