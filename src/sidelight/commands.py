"""What each command of the CLI takes and does. Imports of heavy modules stand in the command that needs them."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidelight.files import write_text

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from sidelight.compare import Comparison
    from sidelight.data_check import Report
    from sidelight.grounding import Grounding


# ground ------------------------------------------------------------------------------------------------------------


def add_ground(parser: ArgumentParser) -> None:
    parser.add_argument("video", help="video file of any length")
    parser.add_argument("query", nargs="+", help="one or more sentences, each in quotes")
    _add_model(parser)
    _add_backbone_weights(parser)
    parser.add_argument("--top", type=int, default=5, help="moments to print per query; JSON holds all")
    low = "leave out moments that score less; with none left there is no such moment (choose with sidelight calibrate)"
    parser.add_argument("--min-score", type=float, default=0.0, help=low)
    parser.add_argument("--json", metavar="FILE", help="write the groundings as JSON; - for standard output")
    parser.add_argument("--plot", metavar="FILE.png", help="draw frames, highlight curve and moments")
    parser.add_argument("--no-cache", action="store_true", help="neither read nor keep this video's features")


def run_ground(args: Namespace, _: ArgumentParser) -> int:
    from sidelight.grounder import DEFAULT_CACHE, Grounder
    from sidelight.video import probe

    if args.top < 1:
        raise ValueError(f"--top must be 1 or more, got {args.top}")
    if not 0 <= args.min_score <= 1:
        raise ValueError(f"--min-score must be between 0 and 1, got {args.min_score}")
    probe(args.video)  # says what is wrong with the file before anything slow begins
    _check_writable(args.json)
    _check_picture(args.plot)
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
    from sidelight.plot import plot_groundings
    from sidelight.video import frames_at, probe

    info = probe(video)
    height = 160
    width = max(2, round(height * info.width / info.height))
    wanted = [(i + 0.5) / pictures * groundings[0].timeline.duration for i in range(pictures)]
    frames = frames_at(video, wanted, size=(width, height))
    strip = [(t, frame.image) for t, frame in zip(wanted, frames, strict=False)]
    plot_groundings(groundings, out, frames=strip, truth=truth)


def _groundings_json(groundings: Sequence[Grounding]) -> str:
    return json.dumps([g.to_dict() for g in groundings], indent=2)


# demo --------------------------------------------------------------------------------------------------------------


def add_demo(parser: ArgumentParser) -> None:
    parser.add_argument("--out", default="demo", help="folder for the video, the JSON and the picture")
    parser.add_argument("--seed", type=int, default=7, help="which video; models were trained on others")
    _add_model(parser)


def run_demo(args: Namespace, _: ArgumentParser) -> int:
    from sidelight.demo import demo

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


# shapes, extract ---------------------------------------------------------------------------------------------------


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


def add_extract(parser: ArgumentParser) -> None:
    parser.usage = "sidelight extract VIDEOS ... --out STORE [--annotations FILE ...] [--backbone NAME] [--levels N]"
    what = "folders, files, patterns ('films/**/*.mp4'), .txt lists, or addresses such as s3://films/"
    parser.add_argument("videos", nargs="+", help=f"{what}; a video's id is its file name without suffix")
    only = "JSONL in the QVHighlights form: extract its queries, and of the videos only those that it names"
    parser.add_argument("--annotations", nargs="+", metavar="FILE", default=[], help=only)
    parser.add_argument("--benchmark", help="whose files these are, as released: charades-sta, tacos, ...")
    parser.add_argument("--domain", help="only this domain's (YouTube Highlights, TVSum)")
    parser.add_argument("--out", required=True, metavar="STORE", help="folder of the feature store, or an address")
    parser.add_argument("--backbone", default="shapes", help="which backbone")
    parser.add_argument("--levels", type=int, default=4, help="how many of its last layers")
    how = "how the tokens of a clip become one vector, or tokens for all of them; attention unless given, cls for clip"
    parser.add_argument("--pooling", choices=["cls", "mean", "attention", "tokens"], help=how)
    parser.add_argument("--clip-seconds", type=float, help="length of a clip; the backbone's own unless given")
    parser.add_argument("--frames-per-clip", type=int, help="pictures per clip; the backbone's own unless given")
    parser.add_argument("--weights", default="", help="folder of the backbone's weights, or a hub id")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="what the backbone computes in")
    parser.add_argument("--device", help="cpu, cuda, mps; the best there is unless given")
    parser.add_argument("--workers", type=int, help="processes that decode; by the processors unless given")
    parser.add_argument("--batch-clips", type=int, help="clips that go through the backbone at once")
    parser.add_argument("--engine", choices=["local", "ray"], default="local", help="ray: on a Ray cluster")
    parser.add_argument("--actors", type=int, help="with --engine ray: backbones; one for each GPU unless given")


def run_extract(args: Namespace, _: ArgumentParser) -> int:
    from sidelight.annotations import read_annotations
    from sidelight.backbones import load_backbone
    from sidelight.benchmarks import benchmark
    from sidelight.extract import chosen_videos, extract, videos_of
    from sidelight.features import FAILURES
    from sidelight.recipe import BackboneConfig
    from sidelight.runtime import usable_device

    if args.actors is not None and args.engine != "ray":
        raise ValueError("--actors says how many backbones a Ray cluster runs; give --engine ray too")
    if args.device is not None and args.engine == "ray":
        raise ValueError("--device is for --engine local: on a Ray cluster each backbone takes a GPU if there are any")
    if (args.benchmark or args.domain) and not args.annotations:
        raise ValueError("--benchmark and --domain say how to read --annotations; give these too")
    if args.domain and not args.benchmark:
        raise ValueError("--domain needs --benchmark, which says what a domain is")
    released = benchmark(args.benchmark) if args.benchmark else None
    annotations = [
        annotation
        for file in args.annotations
        for annotation in (released.read(file, domain=args.domain) if released else read_annotations(file))
    ]
    files, absent = chosen_videos(videos_of(args.videos), [a.vid for a in annotations] if args.annotations else None)
    config = BackboneConfig(
        name=args.backbone,
        levels=args.levels,
        pooling=args.pooling or ("cls" if args.backbone == "clip" else "attention"),
        clip_seconds=args.clip_seconds,
        frames_per_clip=args.frames_per_clip,
        weights=args.weights,
    )
    options = {**config.options(), **({"dtype": args.dtype} if args.dtype else {})}
    if args.dtype and config.name == "shapes":
        raise ValueError("--dtype: the embedded backbone computes in float32; leave --dtype out")
    queries = list(dict.fromkeys(a.query for a in annotations))
    sizes = {"workers": args.workers, "batch_clips": args.batch_clips, "progress": True, "absent": absent}
    try:
        if args.engine == "ray":
            from sidelight.extract_ray import extract_on_ray

            store, failures = extract_on_ray(
                files, queries, config.name, options, args.out, actors=args.actors, **sizes
            )
        else:
            backbone = load_backbone(config.name, **options).to(usable_device(args.device))
            store, failures = extract(files, queries, backbone, args.out, **sizes)
    except KeyboardInterrupt:
        print("the same command goes on where this one stopped", file=sys.stderr)
        raise
    there = sum(store.has_video(vid) for vid in files)
    print(f"{args.out}: {there} of {len(files) + len(absent)} videos, {len(queries)} queries")
    for vid, reason in list(failures.items())[:10]:
        print(f"failed: {vid}: {reason}", file=sys.stderr)
    if failures:
        videos = "1 video" if len(failures) == 1 else f"{len(failures)} videos"
        print(f"{videos} failed; {args.out}/{FAILURES} names each with the reason", file=sys.stderr)
    return 1 if failures else 0


# train, predict, evaluate, summary, pretrain -----------------------------------------------------------------------


def add_train(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    from sidelight.recipe import add_recipe_arguments

    parser.usage = "sidelight train RECIPE.yaml [--resume] [--check] [--train.lr LR ...]"
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    check = "look at paths, features and shapes, do two steps and two batches of validation, say how long it will take"
    parser.add_argument("--check", action="store_true", help=f"{check}; nothing is written")
    add_recipe_arguments(parser, arguments)


def run_train(args: Namespace, parser: ArgumentParser) -> int:
    from sidelight.recipe import file_of, naming, recipe_from
    from sidelight.train import train

    recipe = recipe_from(args, parser)
    if args.check:
        from sidelight.train_check import check_run

        with naming(file_of(args)):
            checked = check_run(recipe, resume=args.resume)
        for name, text in checked.lines():
            print(f"{name:<12}{text}")
        print(f"ready; nothing was written to {recipe.train.out}")
        return 0
    try:
        with naming(file_of(args)):
            progress = train(recipe, resume=args.resume)
    except KeyboardInterrupt:
        print(f"go on with --resume and the same options; see {recipe.train.out}", file=sys.stderr)
        raise
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return 0  # the first process speaks for all
    if recipe.data.val:
        print(f"best epoch {progress.best_epoch}: {recipe.train.best_by} {progress.best:.2f}; see {recipe.train.out}")
    else:
        print(f"trained {progress.step} steps without validation; see {recipe.train.out}/last")
    return 0


def add_predict(parser: ArgumentParser) -> None:
    _add_model(parser)
    _add_backbone_weights(parser)
    parser.add_argument("--annotations", required=True, help="JSONL in the QVHighlights form")
    parser.add_argument("--videos", help="folder with the video files, named by their ids")
    features = "feature store, or a layout that a paper released; with --videos what a store lacks is extracted into it"
    parser.add_argument("--features", help=features)
    parser.add_argument("--out", required=True, help="JSONL in the QVHighlights submission form")


def run_predict(args: Namespace, _: ArgumentParser) -> int:
    import tempfile

    from sidelight.annotations import read_annotations, write_submissions
    from sidelight.backbones import backbone_for
    from sidelight.checkpoint import Checkpoint
    from sidelight.convert import published_checkpoint
    from sidelight.dataset import GroundingDataset
    from sidelight.extract import extract, find_videos
    from sidelight.features import Features, FeatureStore
    from sidelight.layouts import durations_of, layout_of, open_features
    from sidelight.predict import predict
    from sidelight.runtime import usable_device

    if not args.videos and not args.features:
        raise ValueError("give --videos (a folder with the files) or --features (a feature store), or both")
    _check_writable(args.out, args.annotations)
    foreign = args.features is not None and layout_of(args.features) != "sidelight"
    if foreign and args.videos:
        raise ValueError(f"{args.features} is no store of ours, nothing is extracted into it; leave out --videos")
    annotations = read_annotations(args.annotations)
    device = usable_device(args.device)
    store: Features
    checkpoint = Checkpoint.from_pretrained(published_checkpoint(args.model) or args.model).to(device)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.features or temporary
        if args.videos:
            files = find_videos(args.videos, (a.vid for a in annotations))
            features = checkpoint.features
            wanted = replace(features, levels=FeatureStore.levels_there(folder, features.levels))
            backbone = backbone_for(wanted, weights=args.backbone_weights).to(device)
            store, failures = extract(files, (a.query for a in annotations), backbone, folder, progress=True)
            if failures:
                vid, reason = next(iter(failures.items()))
                raise ValueError(f"{len(failures)} videos could not be read; the first, {vid}: {reason}")
        elif foreign:
            # Its files do not say what made them: what can be compared is, the rest is taken on trust.
            durations = durations_of(annotations)
            store = open_features(folder, durations=durations, asked=annotations, recipe=checkpoint.features)
        else:
            store = FeatureStore(folder)
        if set(checkpoint.features.levels) < set(store.recipe.levels):
            store = FeatureStore(folder, levels=checkpoint.features.levels)
        checkpoint.features.require(store.recipe, what=f"the features in {folder}")
        submissions = predict(
            checkpoint.model,
            GroundingDataset(annotations, store, targets=False),
            checkpoint.decode,
            window_clips=checkpoint.window_clips,
            progress=True,
        )
    write_submissions(args.out, submissions)
    print(f"wrote {len(submissions)} predictions to {args.out}")
    return 0


_FEW = 20
"""Below so many independent units we warn: a percentile bootstrap over few covers less than it says."""


def add_evaluate(parser: ArgumentParser) -> None:
    parser.add_argument(
        "predictions", nargs="+", help="JSONL in the QVHighlights submission form; several are runs of several seeds"
    )
    parser.add_argument("annotations", help="the ground truth, JSONL")
    parser.add_argument("--benchmark", help="whose metric; found from the file unless given")
    parser.add_argument(
        "--convention",
        choices=["sidelight", "r2-tuning", "moment-detr"],
        default="sidelight",
        help="which published script to equal",
    )
    parser.add_argument("--intervals", action="store_true", help="bootstrap intervals (95 in 100) beside the numbers")
    parser.add_argument("--by", choices=["video", "query"], default="video", help="what the bootstrap draws as one")
    parser.add_argument("--json", metavar="FILE", help="write all metrics as JSON")


def run_evaluate(args: Namespace, _: ArgumentParser) -> int:
    from sidelight.evaluate import evaluate_files, query_scores
    from sidelight.statistics import intervals, over_seeds

    _check_writable(args.json, args.annotations, *args.predictions)
    if args.intervals and len(args.predictions) > 1:
        raise ValueError("--intervals is for one predictions file; several are reported with mean and deviation")
    if args.by == "query" and not args.intervals:
        raise ValueError("--by says what --intervals draws; give --intervals too")
    options = {"benchmark": args.benchmark, "convention": args.convention}
    results = [evaluate_files(file, args.annotations, **options) for file in args.predictions]
    brief = results[0]["brief"]
    written: dict[str, Any] = results[0]
    # As many as the published script prints: three for TVSum and YouTube Highlights.
    decimals = 3 if any(round(v, 2) != v for v in brief.values()) else 2
    with _report(args.json):
        if len(results) > 1:
            for file, result in zip(args.predictions, results, strict=True):
                if odd := sorted(set(brief) ^ set(result["brief"])):
                    raise ValueError(
                        f"{file} and {args.predictions[0]} can be scored by different metrics ({odd[0]}, ...): only "
                        "one of them has saliency; runs of several seeds need the same fields"
                    )
            seeds = {name: over_seeds([r["brief"][name] for r in results]) for name in brief}
            print(f"{'':<28}   mean  deviation over {len(results)} runs")
            for name, (mean, deviation) in seeds.items():
                print(f"{name:<28}{mean:>7.{decimals}f}  {deviation:.2f}")
            runs = [{"predictions": f, **r} for f, r in zip(args.predictions, results, strict=True)]
            written = {"runs": runs, "seeds": {k: {"mean": m, "deviation": d} for k, (m, d) in seeds.items()}}
        elif args.intervals:
            import numpy as np

            scored = query_scores(args.predictions[0], args.annotations, **options)
            table = np.stack(list(scored.each.values()), axis=1) * 100
            groups = scored.videos if args.by == "video" else None
            found = dict(zip(scored.each, intervals(table, groups=groups), strict=True))
            ends = {k: None if v.low != v.low else [v.low, v.high] for k, v in found.items()}
            for name, value in brief.items():
                between = ends.get(name)
                inside = f"  [{between[0]:6.2f}, {between[1]:6.2f}]" if between else "  [    -,     -]"
                print(f"{name:<28}{value:>7.{decimals}f}{inside}")
            count = len(set(groups)) if groups else len(scored.qids)
            units = f"{count} videos" if groups else f"{count} queries"
            print(f"95 % intervals over {units}; - where too few of them count")
            if count < _FEW:
                print(f"note: a bootstrap over fewer than {_FEW} gives intervals that are too narrow; take more")
            written = {**results[0], "intervals": ends}
        else:
            for name, value in brief.items():
                print(f"{name:<28}{value:>7.{decimals}f}")
    _write_json(args.json, written)
    return 0


def add_compare(parser: ArgumentParser) -> None:
    parser.add_argument("first", help="predictions, JSONL in the QVHighlights submission form")
    parser.add_argument("second", help="other predictions of the same annotations")
    parser.add_argument("annotations", help="the ground truth, JSONL")
    parser.add_argument("--benchmark", help="whose metric; found from the file unless given")
    parser.add_argument("--by", choices=["video", "query"], default="video", help="what is drawn and flipped as one")
    parser.add_argument("--resamples", type=int, default=10_000, help="draws of the bootstrap and of the permutations")
    parser.add_argument("--seed", type=int, default=0, help="of these draws")
    parser.add_argument("--json", metavar="FILE", help="write everything as JSON")
    parser.add_argument("--plot", metavar="FILE.png", help="draw differences, intervals and wins")


def run_compare(args: Namespace, _: ArgumentParser) -> int:
    from sidelight.compare import compare
    from sidelight.evaluate import query_scores

    inputs = (args.first, args.second, args.annotations)
    _check_writable(args.json, *inputs)
    _check_picture(args.plot, *inputs)
    first, second = (query_scores(f, args.annotations, benchmark=args.benchmark) for f in (args.first, args.second))
    names = _names(Path(args.first), Path(args.second))
    found = compare(
        first.each,
        second.each,
        qids=first.qids,
        queries=first.queries,
        videos=first.videos if args.by == "video" else None,
        names=names,
        resamples=args.resamples,
        seed=args.seed,
    )
    with _report(args.json):
        _print_comparison(found)
        if args.plot:
            from sidelight.charts import plot_comparison

            plot_comparison(found, args.plot)
            print(f"wrote {args.plot}")
    _write_json(args.json, found.to_dict())
    return 0


def _names(first: Path, second: Path) -> tuple[str, str]:
    """What tells two files apart: their names, with as many folders as that takes."""
    one, two = first.resolve().with_suffix("").parts, second.resolve().with_suffix("").parts
    for count in range(1, max(len(one), len(two)) + 1):
        names = "/".join(one[-count:]), "/".join(two[-count:])
        if names[0] != names[1]:
            return names
    return first.name, second.name


def _print_comparison(found: Comparison) -> None:
    first, second = found.names
    verdicts = {"first": first, "second": second, "no difference": "-"}
    rows = [["metric", "queries", first, second, "difference", "95 % interval", "p", "adjusted", "better"]]
    for row in found.metrics:
        d = row.difference
        inside = "-" if d.low != d.low else f"[{d.low:+.2f}, {d.high:+.2f}]"
        rows.append(
            [
                row.metric,
                str(row.queries),
                f"{row.first:.2f}",
                f"{row.second:.2f}",
                f"{d.value:+.2f}",
                inside,
                f"{row.p:.4f}",
                f"{row.p_adjusted:.4f}",
                verdicts[row.verdict],
            ]
        )
    # Plain text: nothing is cut off in a narrow terminal or a log, and no sentence is taken for markup.
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for texts in rows:
        cells = [f"{texts[0]:<{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(texts[1:-1], widths[1:-1], strict=True))]
        print("  ".join([*cells, texts[-1]]))
    units = f"{found.groups} {'videos' if found.grouped_by == 'video' else 'queries'}"
    print(f"\np: paired permutation test over {units}; adjusted: Holm, over this table")
    print("\nqueries answered better")
    width = max(len(w.metric) for w in found.wins)
    for win in found.wins:
        print(f"  {win.metric:<{width}}  {first} {win.first}, {second} {win.second}, equal {win.equal}")
    if found.largest:
        print(f"\nlargest differences by {found.decided_by}: {first} against {second}")
        for query in found.largest:
            print(f"  qid {query.qid}: {query.first:.1f} against {query.second:.1f}  {query.query}")


def add_calibrate(parser: ArgumentParser) -> None:
    parser.add_argument("predictions", help="JSONL in the QVHighlights submission form")
    parser.add_argument("annotations", help="the ground truth; queries without relevant_windows have no moment")
    parser.add_argument(
        "--min-score", type=float, help="report on this threshold, chosen on other data; else choose one"
    )
    parser.add_argument("--iou", type=float, default=0.5, help="from which overlap a moment is right")
    parser.add_argument("--bins", type=int, default=10, help="bins of the scores")
    parser.add_argument("--json", metavar="FILE", help="write everything as JSON")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the reliability of the scores")


def run_calibrate(args: Namespace, _: ArgumentParser) -> int:
    import dataclasses

    from sidelight.evaluate import best_moments_of
    from sidelight.metrics.calibration import absent_report, choose_min_score, reliability

    _check_writable(args.json, args.predictions, args.annotations)
    _check_picture(args.plot, args.predictions, args.annotations)
    for name in ("min_score", "iou"):
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"--{name.replace('_', '-')} must be between 0 and 1, got {value}")
    if args.iou == 0:
        raise ValueError("--iou must be above 0: at 0 every moment would be right")
    if args.bins < 1:
        raise ValueError(f"--bins must be 1 or more, got {args.bins}")
    best = best_moments_of(args.predictions, args.annotations, iou=args.iou)
    asked = best.present_Q
    if not asked.any():
        raise ValueError(f"no query of {args.annotations} has a moment (relevant_windows); there is nothing to compare")
    found = reliability(best.score_Q[asked], best.right_Q[asked], bins=args.bins)
    with _report(args.json):
        print("the best moment of each query that has one; queries without a moment are looked at below")
        print("   score   queries   mean score   right (%)")
        for low, high, count, score, right in zip(
            found.edges[:-1], found.edges[1:], found.count_N, found.score_N, found.right_N, strict=True
        ):
            if count:
                print(f"{low:.2f}-{high:.2f}{count:>10}{score:>13.2f}{100 * right:>12.1f}")
        print(f"expected calibration error: {100 * found.error:.1f} points")
        values = {"reliability": {"count": found.count_N.tolist(), "error": found.error}}
        for name in ("edges", "score_N", "right_N"):
            numbers = getattr(found, name).tolist()
            values["reliability"][name.removesuffix("_N")] = [None if v != v else v for v in numbers]
        threshold = args.min_score
        if not asked.all():
            if threshold is None:
                threshold = choose_min_score(best.score_Q, asked)
                print(f'\nchosen for the best F1 of the answer "no such moment": --min-score {threshold:.3f}')
            report = absent_report(best.score_Q, asked, threshold)
            absent = int((~asked).sum())
            print(
                f'"no such moment" below {threshold:g} ({absent} of {len(asked)} queries have none): '
                f"precision {100 * report.precision:.1f} %, recall {100 * report.recall:.1f} %, "
                f"F1 {100 * report.f1:.1f} %; {100 * report.lost:.1f} % of the others are lost"
            )
            values["absent"] = {k: None if v != v else v for k, v in dataclasses.asdict(report).items()}
        else:
            print('every query has a moment: nothing is said of the answer "no such moment", nor of a --min-score')
        if args.plot:
            from sidelight.charts import plot_reliability

            plot_reliability(found, args.plot, min_score=threshold)
            print(f"wrote {args.plot}")
    _write_json(args.json, values)
    return 0


def add_summary(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    from sidelight.recipe import add_recipe_arguments

    parser.usage = "sidelight summary RECIPE.yaml [--model.hidden 128 ...]"
    add_recipe_arguments(parser, arguments)


def run_summary(args: Namespace, parser: ArgumentParser) -> int:
    from sidelight.models.layers import parameter_table
    from sidelight.recipe import recipe_from
    from sidelight.side_tuners import build_model

    recipe = recipe_from(args, parser)
    values = recipe.to_dict()["model"]
    model = build_model(recipe.side_tuner, values)
    rows = parameter_table(model)
    reads = f"{values['levels']} levels of {recipe.backbone.name}, {recipe.backbone.pooling}"
    print(f"{recipe.side_tuner}: reads {reads}, widths {values['video_dim']} (video) and {values['text_dim']} (query)")
    for name, count in rows:
        print(f"{name:<32}{count:>12,}")
    total = sum(count for _, count in rows)
    print(f"{'trainable parameters':<32}{total:>12,}  = {total / 2**20:.2f} x 2^20")
    return 0


def add_pretrain(parser: ArgumentParser) -> None:
    from sidelight.pretrain import PretrainConfig

    parser.usage = "sidelight pretrain RECIPE.yaml [--steps STEPS ...]"
    parser.add_argument("--config", action="config", help="a YAML file with the fields below")
    parser.add_class_arguments(PretrainConfig)


def run_pretrain(args: Namespace, parser: ArgumentParser) -> int:
    import dataclasses

    from sidelight.pretrain import PretrainConfig, pretrain

    built = parser.instantiate(args)
    pretrain(PretrainConfig(**{f.name: built[f.name] for f in dataclasses.fields(PretrainConfig)}))
    return 0


# ablate ------------------------------------------------------------------------------------------------------------


def add_ablate(parser: ArgumentParser) -> None:
    parser.add_argument("table", help="3, 4, 5, 6, 7, E, H, J, K, L, M, N, or offsets (Fig. 4 and Fig. A)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant")
    parser.add_argument("--first-seed", type=int, default=0, help="the seed of the first of them")
    parser.add_argument("--recipe", default="recipes/ablation.yaml", help="the recipe that variants change")
    parser.add_argument("--out", default="runs/ablation", help="folder of features, runs and tables")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; with several, each has one thread")
    parser.add_argument("--keep", action="store_true", help="keep weights, predictions and logs of what is trained")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and which of them exist; train nothing")


def run_ablate(args: Namespace, _: ArgumentParser) -> int:
    from sidelight.ablation import offsets, report
    from sidelight.ablation.run import execute, plan, prepare
    from sidelight.ablation.variants import find_ablation

    for name in ("seeds", "jobs"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be 1 or more, got {getattr(args, name)}")
    if args.first_seed < 0:
        raise ValueError(f"--first-seed must be 0 or more, got {args.first_seed}")
    ablation = find_ablation(args.table)
    runs = plan(ablation, args.recipe, args.out, range(args.first_seed, args.first_seed + args.seeds))
    if args.dry_run:
        for run in runs:
            print(f"{'finished' if run.finished else 'to train':<10}{run.folder}  {' = '.join(run.variants)}")
        for variant in ablation.variants:
            if variant.overrides is None:
                print(f"{'never':<10}{variant.name}: {variant.why}")
        print(f"{len(runs)} runs, {sum(not run.finished for run in runs)} to train")
        return 0
    if ablation.name == "offsets":
        offsets.check_weights(runs)
        prepare(runs, args.out)  # finished ones too: offsets are measured on the validation split
    else:
        prepare([run for run in runs if not run.finished], args.out)
    failures = execute(runs, jobs=args.jobs, keep=args.keep)
    folder = Path(args.out) / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / (ablation.name if ablation.name == "offsets" else f"table-{ablation.name}")
    made = offsets if ablation.name == "offsets" else report
    table = made.from_runs(ablation, runs)
    print(made.as_text(table))
    made.write_report(table, f"{stem}.json")
    made.plot_report(table, f"{stem}.png")
    print(f"wrote {stem}.json and {stem}.png")
    for failure in failures:
        print(f"failed: {failure.run.folder}: {failure.reason}")
    return 1 if failures else 0


# shared ------------------------------------------------------------------------------------------------------------


def _add_model(parser: ArgumentParser) -> None:
    parser.add_argument("--model", default="shapes", help="a packaged model, a checkpoint's folder, or a hub id")
    parser.add_argument("--device", help="cpu, cuda, mps; the best there is unless given")


def _add_backbone_weights(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--backbone-weights", help="folder of the backbone's weights, where they do not come with the model"
    )


def _check_writable(path: str | None, *inputs: str | None) -> None:
    """Say so before the work, not after it, if a result cannot be written, or would replace what it is made of."""
    if path and path != "-":
        if any(i and Path(i).exists() and Path(path).resolve() == Path(i).resolve() for i in inputs):
            raise ValueError(f"cannot write {path}: it is read by the same command; give another file name")
        folder = Path(path).resolve().parent
        if not folder.is_dir():
            raise ValueError(f"cannot write {path}: there is no folder {folder}; make it first")
        if Path(path).is_dir():
            raise ValueError(f"cannot write {path}: it is a folder; give a file name")


def _check_picture(path: str | None, *inputs: str | None) -> None:
    _check_writable(path, *inputs)
    if path and Path(path).suffix.lower() not in (".png", ".pdf", ".svg", ".jpg", ".jpeg"):
        raise ValueError(f"--plot must end in .png, .pdf, .svg or .jpg, got {path}")


@contextmanager
def _report(json_file: str | None) -> Iterator[None]:
    """What is printed is for people: not if JSON goes to standard output."""
    with redirect_stdout(io.StringIO()) if json_file == "-" else nullcontext():
        yield


def _write_json(path: str | None, values: Any) -> None:
    """Write JSON to a file, or to standard output for -."""
    if path == "-":
        print(json.dumps(values, indent=2))
    elif path:
        write_text(path, json.dumps(values, indent=2) + "\n")
        print(f"wrote {path}")


# data --------------------------------------------------------------------------------------------------------------


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
    from sidelight.data_import import import_file

    _check_writable(chosen.out, chosen.table)
    found = import_file(chosen.table, chosen.out, videos=chosen.videos, clip_seconds=chosen.clip_seconds)
    videos, windows = len({a.vid for a in found}), sum(len(a.relevant_windows) for a in found)
    print(f"wrote {len(found)} queries with {windows} windows on {videos} videos to {chosen.out}")
    return 0


def _data_check(args: Namespace) -> int:
    from sidelight.data_check import SEVERITIES, check

    _check_writable(args.json)
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
