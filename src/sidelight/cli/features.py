"""`sidelight extract` and `sidelight features`: extract features, verify stores, write and read layouts of papers."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from sidelight.cli.parser import Group, Option
from sidelight.cli.shared import (
    Benchmark,
    Count,
    Device,
    Engine,
    File,
    Folder,
    Name,
    OutFolder,
    OutStore,
    Seconds,
    Store,
    Weights,
    require_above_zero,
    require_engine,
)
from sidelight.core.messages import count_of

if TYPE_CHECKING:
    from sidelight.data.annotations import Annotation

Pooling = Literal["cls", "mean", "attention", "tokens", "joint", "joint-video"]
Layout = Annotated[str, Option("LAYOUT")]
MAX_LINES = 10
"""How many failed or missing items a command prints."""


def extract(
    videos: list[File],
    *,
    out: OutStore,
    annotations: list[File] | None = None,
    benchmark: Benchmark | None = None,
    domain: Name | None = None,
    backbone: Name = "shapes",
    levels: Count | None = None,
    pooling: Pooling | None = None,
    clip_seconds: Seconds | None = None,
    frames_per_clip: Count | None = None,
    weights: Weights = "",
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    device: Device | None = None,
    workers: Count | None = None,
    batch_clips: Count | None = None,
    engine: Engine = "local",
    actors: Count | None = None,
) -> int:
    """Extract the features of videos and queries into a store.

    Args:
        videos: folders, files, patterns ('films/**/*.mp4'), .txt lists, or addresses such as s3://films/; a video's id
            is its file name without suffix.
        annotations: JSONL in the QVHighlights form: extract its queries, and only the videos that it names.
        domain: only this domain (YouTube Highlights, TVSum).
        out: folder of the feature store, or an address.
        backbone: the backbone that makes the features.
        levels: how many of the backbone's last layers; 4 unless given, and 1 with the pooling joint.
        pooling: how the tokens of a clip become one vector; tokens to keep all tokens; or joint for the embeddings in
            which clips are compared with sentences. The backbone's own unless given.
        clip_seconds: length of a clip; the backbone's own unless given.
        frames_per_clip: frames per clip; the backbone's own unless given.
        weights: folder of the backbone's weights, or a hub id.
        dtype: number type in which the backbone computes.
        workers: processes that decode; by the number of processors unless given.
        batch_clips: clips that go through the backbone at once.
        engine: run on this machine, or on a Ray cluster.
        actors: how many backbones a Ray cluster runs; one for each GPU unless given.
    """
    from sidelight.backbones import load_backbone
    from sidelight.features.extract import extract
    from sidelight.features.sources import chosen_videos, videos_of
    from sidelight.io.runtime import usable_device

    require_engine(engine, actors, device)
    require_above_zero(levels=levels, clip_seconds=clip_seconds, frames_per_clip=frames_per_clip)
    if (benchmark or domain) and not annotations:
        raise ValueError("--benchmark and --domain say how to read --annotations; give --annotations too")
    if domain and not benchmark:
        raise ValueError("--domain needs --benchmark, which says what a domain is")
    rows = _read(annotations or (), benchmark, domain)
    files, missing = chosen_videos(videos_of(videos), [row.vid for row in rows] if annotations else None)
    chosen: dict[str, Any] = {"levels": levels, "pooling": pooling, "weights": weights}
    chosen |= {"clip_seconds": clip_seconds, "frames_per_clip": frames_per_clip, **_number_type(backbone, dtype)}
    options = {name: value for name, value in chosen.items() if value}
    queries = list(dict.fromkeys(row.query for row in rows))
    settings: dict[str, Any] = {
        "workers": workers,
        "batch_clips": batch_clips,
        "progress": True,
        "without_file": missing,
    }
    try:
        if engine == "ray":
            from sidelight.features.ray import extract_on_ray

            store, failures = extract_on_ray(files, queries, backbone, options, out, actors=actors, **settings)
        else:
            loaded = load_backbone(backbone, **options).to(usable_device(device))
            store, failures = extract(files, queries, loaded, out, **settings)
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        raise
    num_stored = sum(store.has_video(vid) for vid in files)
    print(f"{out}: {num_stored} of {count_of(len(files) + len(missing), 'video')}, {count_of(len(queries), 'query')}")
    _print_failures(failures, out)
    return 1 if failures else 0


def _number_type(backbone: str, dtype: str | None) -> dict[str, str]:
    """Return the backbone's option for ``--dtype``; the backbone shapes has none and computes in float32."""
    if backbone != "shapes":
        return {"dtype": dtype} if dtype else {}
    if dtype not in (None, "float32"):
        raise ValueError(f"--dtype must be float32 for the backbone shapes, got {dtype}")
    return {}


def _print_failures(failures: Mapping[str, str], out: str) -> None:
    """Print the first failed videos with their reasons, and where all of them are."""
    from sidelight.features.store import FAILURES

    for vid, reason in list(failures.items())[:MAX_LINES]:
        print(f"failed: {vid}: {reason}", file=sys.stderr)
    if failures:
        count = count_of(len(failures), "video")
        print(f"{count} failed; {out}/{FAILURES} names each with the reason", file=sys.stderr)


def _read(files: Sequence[str], benchmark: str | None, domain: str | None = None) -> list[Annotation]:
    """Read annotations: released files of a benchmark, or of one of its domains, or JSONL."""
    from sidelight.data.annotations import read_annotations
    from sidelight.data.datasets import benchmark as benchmark_named

    if benchmark is None:
        return [row for file in files for row in read_annotations(file)]
    released = benchmark_named(benchmark)
    return [row for file in files for row in released.read(file, domain=domain)]


def features_verify(store: Store, *, annotations: list[File] | None = None, benchmark: Benchmark | None = None) -> int:
    """Read a whole store and report what is damaged or missing.

    Args:
        store: feature store.
        annotations: annotations whose videos and queries the store has to hold.
    """
    from sidelight.features.store import FAILURES, FeatureStore

    opened = FeatureStore(store)
    damaged = opened.verify()
    for file, problem in damaged.items():
        print(f"{store}/{file}: {problem}")
    rows = _read(annotations or (), benchmark)
    failed = {row["vid"]: row["reason"] for row in opened.failures()}
    missing_videos = [vid for vid in dict.fromkeys(row.vid for row in rows) if not opened.has_video(vid)]
    for vid in missing_videos[:MAX_LINES]:
        print(f"missing video {vid}" + (f": {failed[vid]}" if vid in failed else ""))
    # The queries of a damaged file cannot be read.
    readable = not any(file.startswith("queries") for file in damaged)
    missing_queries = opened.missing_queries(row.query for row in rows) if readable else []
    for query in missing_queries[:MAX_LINES]:
        print(f"missing query {query!r}")
    for kind, names in (("video", missing_videos), ("query", missing_queries)):
        if len(names) > MAX_LINES:
            print(f"and {count_of(len(names) - MAX_LINES, f'more missing {kind}')}")
    if failed and not rows:
        count = count_of(len(failed), "video")
        print(f"{count} could not be read when the store was made, see {FAILURES}: {', '.join(failed)}")
    counts = count_of(len(damaged), "damaged file")
    if rows:
        queries = (
            count_of(len(missing_queries), "missing query")
            if readable
            else ("queries not compared, since their files are damaged")
        )
        counts += f", {count_of(len(missing_videos), 'missing video')}, {queries}"
    print(f"{store}: {count_of(len(opened.videos()), 'video')}; {counts}")
    return 1 if damaged or missing_videos or missing_queries else 0


def features_export(
    store: Store,
    *,
    layout: Layout,
    annotations: File,
    out: OutFolder,
    level: Annotated[int, Option("LEVEL")] | None = None,
    benchmark: Benchmark | None = None,
) -> None:
    """Write the features of a store in a layout that papers released.

    Args:
        store: feature store.
        layout: the layout to write: r2-tuning, sdst or moment-detr.
        annotations: annotations whose qid and vid name the files.
        out: folder to make; new, or empty.
        level: write this level alone, where -1 is the last level; moment-detr has room for one level.
    """
    from sidelight.features.layouts import export_features
    from sidelight.features.store import FeatureStore

    _require_local(out)
    rows = _read([annotations], benchmark)
    opened = FeatureStore(store)
    if level is not None and level not in opened.spec.levels:
        raise ValueError(f"--level must be one of {', '.join(map(str, opened.spec.levels))}, got {level}")
    videos, queries = export_features(opened, out, rows, layout=layout, level=level, progress=True)
    folders = ", ".join(sorted(path.name for path in Path(out).iterdir() if path.is_dir()))
    print(f"wrote {count_of(videos, 'video')} and {count_of(queries, 'query')} to {out} ({folders})")


def features_import(
    folder: Folder,
    *,
    annotations: File,
    out: OutStore,
    layout: Layout | None = None,
    backbone: Name | None = None,
    weights: Weights | None = None,
    levels: Count | None = None,
    pooling: Pooling | None = None,
    clip_seconds: Seconds | None = None,
    frames_per_clip: Count | None = None,
    as_is: bool = False,
    benchmark: Benchmark | None = None,
) -> None:
    """Copy features in a layout that papers released into a store.

    Args:
        folder: folder with the folders of the layout; or these folders themselves, as VIDEO[+VIDEO...],TEXT.
        layout: the layout to read: r2-tuning, sdst or moment-detr; recognised unless given.
        annotations: annotations whose qid and vid name the files.
        out: folder of the feature store.
        backbone: the backbone that made the features; the paper's unless given.
        weights: the backbone's weights, as feature specs name them, or their folder; the paper's unless given.
        levels: how many of the last levels; all unless given.
        pooling: how clips were pooled; or cls, to keep the first of all tokens.
        clip_seconds: length of a clip; 2 unless given.
        frames_per_clip: frames per clip that the backbone read.
        as_is: do not divide vectors by their length, as published loaders of moment-detr do.
    """
    from sidelight.features.layouts import LAYOUTS, ForeignFeatures, durations_of, import_features, open_layout

    _require_local(folder)
    _require_local(out)
    if "," not in folder and not Path(folder).is_dir():
        raise ValueError(f"{folder} is not a folder; expected one with a layout's folders in it")
    require_above_zero(levels=levels, clip_seconds=clip_seconds, frames_per_clip=frames_per_clip)
    rows = _read([annotations], benchmark)
    features = open_layout(
        folder,
        layout=layout or "",
        durations=durations_of(rows),
        keys=rows,
        backbone=backbone,
        weights=weights,
        levels=None if levels is None else tuple(range(-levels, 0)),
        pooling=pooling,
        clip_seconds=clip_seconds,
        frames_per_clip=frames_per_clip,
        normalise=not as_is,
    )
    if not isinstance(features, ForeignFeatures):
        raise ValueError(
            f"{folder} is a feature store of sidelight; expected features in one of the layouts {', '.join(LAYOUTS)}"
        )
    store = import_features(features, out, rows, progress=True)
    spec = store.spec
    videos, queries = len({row.vid for row in rows}), len({row.query for row in rows})
    print(f"{store.folder}: {count_of(videos, 'video')}, {count_of(queries, 'query')}")
    print(
        f"made by {spec.backbone} ({spec.weights}), levels {', '.join(map(str, spec.levels))}, pooling {spec.pooling}, "
        f"clips of {spec.clip_seconds:g} s"
    )


def _require_local(path: str) -> None:
    from sidelight.io.storage import is_address

    if is_address(path):
        raise ValueError(f"{path} is an address; layouts are read and written on this machine, so give a folder")


features = Group(
    "Verify feature stores; write and read features in the layouts that papers released.",
    {"verify": features_verify, "export": features_export, "import": features_import},
)
