"""`sidelight extract`: videos and queries to features. `sidelight features`: stores verified; features in the layouts
that papers released, written and brought in.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from sidelight.data.annotations import Annotation


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
    from sidelight.backbones import load_backbone
    from sidelight.data.annotations import read_annotations
    from sidelight.data.datasets import benchmark
    from sidelight.features.extract import extract
    from sidelight.features.sources import chosen_videos, videos_of
    from sidelight.features.store import FAILURES
    from sidelight.io.runtime import usable_device
    from sidelight.training.recipe import BackboneConfig

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
            from sidelight.features.ray import extract_on_ray

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


# features ----------------------------------------------------------------------------------------------------------

_LAYOUTS = ["r2-tuning", "sdst", "moment-detr"]
_USAGE = {
    "verify": "sidelight features verify STORE [--annotations FILE ...] [--benchmark NAME]",
    "export": "sidelight features export STORE --layout r2-tuning|sdst|moment-detr --annotations FILE --out DIR "
    "[--level LEVEL] [--benchmark NAME]",
    "import": "sidelight features import DIR --annotations FILE --out STORE [--layout r2-tuning|sdst|moment-detr] "
    "[--backbone NAME] [--weights NAME|DIR] [--levels N] [--pooling HOW] [--clip-seconds SECONDS] "
    "[--frames-per-clip N] [--as-is] [--benchmark NAME]",
}


def add_features(parser: ArgumentParser) -> None:
    from jsonargparse import ArgumentParser as Parser

    parser.usage = "".join(f"\n  {usage}" for usage in _USAGE.values())
    commands = parser.add_subcommands(metavar=" | ".join(_USAGE))
    kinds = {name: Parser(usage=usage, exit_on_error=False, default_env=False) for name, usage in _USAGE.items()}
    _verify_options(kinds["verify"])
    _export_options(kinds["export"])
    _import_options(kinds["import"])
    commands.add_subcommand("verify", kinds["verify"], help="read a whole store and say what is damaged or missing")
    commands.add_subcommand("export", kinds["export"], help="write a store's features in a layout of others")
    commands.add_subcommand("import", kinds["import"], help="bring features of others into a store")


def run_features(args: Namespace, _: ArgumentParser) -> int:
    return {"verify": _verify, "export": _export, "import": _import}[args.subcommand](args[args.subcommand])


def _annotation_options(parser: ArgumentParser) -> None:
    parser.add_argument("--annotations", required=True, metavar="FILE", help="whose qid and vid are the files' names")
    parser.add_argument("--benchmark", metavar="NAME", help="whose files these are, as released; else JSONL")


def _read(args: Namespace) -> list[Annotation]:
    from sidelight.data.annotations import read_annotations
    from sidelight.data.datasets import benchmark

    return list(
        benchmark(args.benchmark).read(args.annotations) if args.benchmark else read_annotations(args.annotations)
    )


_SHOWN = 10


def _require_here(path: str) -> None:
    from sidelight.io.storage import is_address

    if is_address(path):
        raise ValueError(f"{path} is an address; layouts are read and written on this machine, so give a folder")


# verify ------------------------------------------------------------------------------------------------------------


def _verify_options(parser: ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="feature store")
    parser.add_argument("--annotations", nargs="+", metavar="FILE", default=[], help="what it has to hold")
    parser.add_argument("--benchmark", metavar="NAME", help="whose files these are, as released; else JSONL")


def _verify(args: Namespace) -> int:
    from sidelight.data.annotations import read_annotations
    from sidelight.data.datasets import benchmark
    from sidelight.features.store import FAILURES, FeatureStore

    store = FeatureStore(args.store)
    wrong = store.verify()
    for file, what in wrong.items():
        print(f"{args.store}/{file}: {what}")
    released = benchmark(args.benchmark) if args.benchmark else None
    annotations = [
        a for file in args.annotations for a in (released.read(file) if released else read_annotations(file))
    ]
    failed = {row["vid"]: row["reason"] for row in store.failures()}
    missing = [vid for vid in dict.fromkeys(a.vid for a in annotations) if not store.has_video(vid)]
    for vid in missing[:_SHOWN]:
        print(f"missing video {vid}" + (f": {failed[vid]}" if vid in failed else ""))
    # A damaged file of sentences cannot be asked what it holds.
    readable = not any(file.startswith("queries") for file in wrong)
    queries = store.missing_queries(a.query for a in annotations) if readable else []
    for query in queries[:_SHOWN]:
        print(f"missing query {query!r}")
    for kind, names in (("videos", missing), ("queries", queries)):
        if len(names) > _SHOWN:
            print(f"and {len(names) - _SHOWN} more missing {kind}")
    if failed and not annotations:
        print(f"{len(failed)} videos could not be read when they were extracted, see {FAILURES}: {', '.join(failed)}")
    lacking = f"{len(queries)} missing queries" if readable else "queries not compared, since their files are damaged"
    counts = f"{len(wrong)} damaged files, {len(missing)} missing videos, {lacking}"
    print(f"{args.store}: {len(store.videos())} videos; {counts if annotations else counts.split(',')[0]}")
    return 1 if wrong or missing or queries else 0


# export ------------------------------------------------------------------------------------------------------------


def _export_options(parser: ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="feature store")
    parser.add_argument("--layout", required=True, choices=_LAYOUTS, help="whose")
    _annotation_options(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make; new, or empty")
    parser.add_argument(
        "--level", type=int, help="write this level alone: -1 is the last; moment-detr has room for one"
    )


def _export(args: Namespace) -> int:
    from sidelight.features.layouts import export_features
    from sidelight.features.store import FeatureStore

    _require_here(args.out)
    store = FeatureStore(args.store)
    videos, queries = export_features(store, args.out, _read(args), layout=args.layout, level=args.level, progress=True)
    folders = ", ".join(sorted(p.name for p in Path(args.out).iterdir() if p.is_dir()))
    print(f"wrote {videos} videos and {queries} queries to {args.out} ({folders})")
    return 0


# import ------------------------------------------------------------------------------------------------------------


def _import_options(parser: ArgumentParser) -> None:
    where = "folder with the layout's folders in it; or VIDEO[+VIDEO...],TEXT, the folders themselves"
    parser.add_argument("folder", metavar="DIR", help=where)
    parser.add_argument("--layout", choices=_LAYOUTS, help="whose; recognised unless given")
    _annotation_options(parser)
    parser.add_argument("--out", required=True, metavar="STORE", help="folder of the feature store")
    parser.add_argument("--backbone", metavar="NAME", help="what made them; what the paper used unless given")
    named = "its weights, as feature specs name them; or their folder"
    parser.add_argument("--weights", metavar="NAME|DIR", help=f"{named}; what the paper used unless given")
    parser.add_argument("--levels", type=int, help="how many of the last levels; all unless given")
    how = "tokens, cls, mean or attention: how clips were pooled; or cls, to keep the first of all tokens"
    parser.add_argument("--pooling", choices=["tokens", "cls", "mean", "attention"], help=how)
    parser.add_argument("--clip-seconds", type=float, help="length of a clip; 2 unless given")
    parser.add_argument("--frames-per-clip", type=int, help="pictures that the backbone was shown per clip")
    as_is = "moment-detr: do not divide every vector by its length, as published loaders do"
    parser.add_argument("--as-is", action="store_true", help=as_is)


def _import(args: Namespace) -> int:
    from sidelight.features.layouts import ForeignFeatures, durations_of, import_features, open_features

    _require_here(args.folder)
    _require_here(args.out)
    if "," not in args.folder and not Path(args.folder).is_dir():
        raise ValueError(f"{args.folder} is not a folder; expected one with a layout's folders in it")
    for name in ("levels", "clip_seconds", "frames_per_clip"):
        if args[name] is not None and not args[name] > 0:
            raise ValueError(f"--{name.replace('_', '-')} must be above 0, got {args[name]}")
    rows = _read(args)
    features = open_features(
        args.folder,
        layout=args.layout or "",
        durations=durations_of(rows),
        keys=rows,
        backbone=args.backbone,
        weights=args.weights,
        levels=None if args.levels is None else tuple(range(-args.levels, 0)),
        pooling=args.pooling,
        clip_seconds=args.clip_seconds,
        frames_per_clip=args.frames_per_clip,
        normalise=not args.as_is,
    )
    if not isinstance(features, ForeignFeatures):
        raise ValueError(
            f"{args.folder} is a feature store of ours; expected features in one of the layouts {', '.join(_LAYOUTS)}"
        )
    store = import_features(features, args.out, rows, progress=True)
    recipe, vids = store.spec, {a.vid for a in rows}
    print(f"{store.folder}: {len(vids)} videos, {len({a.query for a in rows})} queries")
    levels = ", ".join(map(str, recipe.levels))
    print(
        f"made by {recipe.backbone} ({recipe.weights}), levels {levels}, pooling {recipe.pooling}, "
        f"clips of {recipe.clip_seconds:g} s"
    )
    return 0
