"""Measure training from pixels: decoding into the cache of frames, reading from it, and whole training steps.

    python benchmarks/pixel_pipeline.py                       # the miniature, on 24 drawn videos
    python benchmarks/pixel_pipeline.py --videos 60 --steps 20
    python benchmarks/pixel_pipeline.py --ground runs/shapes-scada/best

The first table: the same step with all queries of its videos at once, and query by query, each in a process of its
own: CPU seconds, what the step adds to the memory of the process, and the loss and the norm of the gradient, which must
be equal. In mode ``outer``, queries share the whole backbone; in mode ``both``, the blocks up to the first adapter.

The second table: decoding of all videos into an empty cache, by one process and by one for each processor; then one
reading of all frames from the full cache, without and with augmentation; for the frames of the miniature and for those
of the recipes of Charades-STA. "cold" are files that the system was asked to drop from its memory; "warm" follows.

The third table: steps of the recipe ``shapes-scada``, where the cache is empty (decoding included) and where it is
full.

``--ground`` prints another table: CPU seconds of one call of ``Grounder.ground`` with the checkpoint, for one query and
for several, beside the model ``shapes``, which reads features, without and with a cache of features. The video lasts a
minute. CPU time counts all threads, so that other work on the machine changes little.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

from sidelight.data.annotations import read_annotations
from sidelight.features.frames import FrameCache, read_frames
from sidelight.features.sources import find_videos
from sidelight.grounder import Grounder, PixelGrounder
from sidelight.io.runtime import peak_memory
from sidelight.shapes.generate import make_world
from sidelight.training.augment import AugmentConfig, augment
from sidelight.training.data import open_data
from sidelight.training.frames import frame_sampling
from sidelight.training.loop import Trainer, make_fabric
from sidelight.training.recipe import Recipe, read_recipe
from sidelight.video.workers import Sampling

SAMPLINGS = {
    "miniature, 64 pixels, 4/s": Sampling(clip_seconds=2.0, frames_per_clip=8, resolution=64, resize="stretch"),
    "Charades-STA, 160 pixels, 7.5/s": Sampling(
        clip_seconds=16 / 7.5, frames_per_clip=16, resolution=160, resize="crop"
    ),
}
LIMIT = 10**12


def forget(folder: Path) -> None:
    """Ask the system to drop the pages of all files of a folder from its memory."""
    for path in folder.rglob("*.rgb"):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def print_row(name: str, seconds: float, videos: int, frames: int, size: int) -> None:
    rates = f"{videos / seconds:>10.1f}{frames / seconds:>12,.0f}{size / seconds / 1e6:>9,.0f}"
    print(f"  {name:<38}{seconds:>8.2f}{rates}", flush=True)


def measure_cache(world: Path, folder: Path) -> None:
    rows = read_annotations(world / "annotations.jsonl")
    files, seconds = find_videos(world / "videos", (a.vid for a in rows)), {a.vid: a.duration for a in rows}
    processors = os.cpu_count() or 1
    print(f"{len(files)} videos of {sum(seconds.values()) / len(files):.0f} s")
    print(f"  {'':<38}{'seconds':>8}{'videos/s':>10}{'frames/s':>12}{'MB/s':>9}")
    for name, sampling in SAMPLINGS.items():
        caches = {n: FrameCache(folder / f"{n}", sampling) for n in sorted({1, processors})}
        size = sum(map(caches[1].bytes_for, seconds.values()))
        frames = size // (sampling.resolution**2 * 3)
        print(f"{name}: {size / 1e6:,.0f} MB")
        for workers, cache in caches.items():
            start = time.perf_counter()
            cache.fill(files, seconds, limit=LIMIT, workers=workers)
            print_row(f"decode, {workers} processes", time.perf_counter() - start, len(files), frames, size)
        forget(folder)
        for title, config in (("cold", None), ("warm", None), ("warm, augmented", AugmentConfig(crop=0.8, jitter=0.2))):
            start = time.perf_counter()
            for vid, file in files.items():
                pixels_CFSS3 = caches[1].open(file).pixels_CFSS3
                if config is None:
                    np.array(pixels_CFSS3)
                else:
                    augment(pixels_CFSS3, config, seed=0, epoch=0, vid=vid, queries=[])
            print_row(f"read, {title}", time.perf_counter() - start, len(files), frames, size)


def with_world(recipe: Recipe, world: Path, folder: Path) -> Recipe:
    """Return a recipe that trains on the drawn videos, with a cache of frames in a folder."""
    annotations = str(world / "annotations.jsonl")
    data = {"train": annotations, "val": "", "train_videos": str(world / "videos"), "frames_cache": str(folder)}
    return replace(recipe, data=replace(recipe.data, **data))


def measure_steps(world: Path, folder: Path, steps: int) -> None:
    recipe = with_world(read_recipe("shapes-scada", ["--train.accelerator=cpu"]), world, folder)
    print(f"\n{'shapes-scada':<40}{'steps':>6}{'seconds':>9}{'steps/s':>9}{'frames/s':>10}{'queries/s':>11}")
    for name in ("empty cache", "full cache"):
        start = time.perf_counter()
        fabric = make_fabric(recipe.train)
        trainer = Trainer(recipe, fabric, open_data(recipe, fabric, quiet=True), quiet=True)
        opened = time.perf_counter() - start
        batches = (trainer.data.batches(0) * steps)[:steps]
        rows, videos = trainer.data.train.annotations, {a.vid: a.duration for a in trainer.data.train.annotations}
        frames = sum(
            int(videos[vid] * recipe.backbone.frames_per_second)
            for indices in batches
            for vid in {rows[i].vid for i in indices}
        )
        start = time.perf_counter()
        for indices in batches:
            trainer.train_step(indices)
        for title, seconds in (
            (f"{name}, with opening", time.perf_counter() - start + opened),
            (f"{name}, steps alone", time.perf_counter() - start),
        ):
            queries = sum(map(len, batches))
            rates = f"{steps / seconds:>9.2f}{frames / seconds:>10.1f}{queries / seconds:>11.1f}"
            print(f"{title:<40}{steps:>6}{seconds:>9.1f}{rates}", flush=True)


def first_step(recipe: Recipe) -> dict[str, float]:
    """Take two first steps of a recipe in a process of their own, and return what the second one took and gave."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # memory that was freed may stay with a process
        fabric = make_fabric(recipe.train)
        trainer = Trainer(recipe, fabric, open_data(recipe, fabric, quiet=True), quiet=True)
        indices = trainer.data.batches(0)[0]
        before = peak_memory()
        for _ in range(2):  # the first one warms up
            start = time.process_time()
            values = trainer.train_step(indices).values
            seconds = time.process_time() - start
        result = {"queries": len(indices), "seconds": seconds, "bytes": peak_memory() - before, **values}
        os.write(writer, json.dumps(result).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    result = json.loads(os.read(reader, 10_000))
    os.close(reader)
    return cast(dict[str, float], result)


def measure_queries(world: Path, folder: Path) -> None:
    print(f"\n{'shapes-scada, one step':<40}{'queries':>8}{'CPU s':>8}{'MiB':>8}{'loss':>12}{'gradient':>12}")
    for mode in ("outer", "both"):
        for name, accumulate in (("all queries of a video at once", 0), ("query by query", 1)):
            options = [f"--model.mode={mode}", f"--train.accumulate={accumulate}", "--train.accelerator=cpu"]
            recipe = with_world(read_recipe("shapes-scada", options), world, folder)
            got = first_step(recipe)
            numbers = f"{got['queries']:>8}{got['seconds']:>8.2f}{got['bytes'] / 2**20:>8.0f}"
            print(f"{mode + ', ' + name:<40}{numbers}{got['total']:>12.7f}{got['gradient_norm']:>12.6f}", flush=True)


def cpu_seconds(run: Callable[[], object], repeats: int = 3) -> float:
    """Return the median CPU time of some runs after a first one."""
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return statistics.median(times[1:])


def measure_grounding(world: Path, checkpoint: str, cache: Path) -> None:
    rows = read_annotations(world / "annotations.jsonl")
    video, queries = world / "videos" / f"{rows[0].vid}.mp4", [a.query for a in rows]
    pixels = Grounder.from_pretrained(checkpoint, device="cpu")
    uncached, cached = (Grounder.from_pretrained("shapes", device="cpu", cache=place) for place in (None, cache))
    assert isinstance(pixels, PixelGrounder)
    decode = cpu_seconds(lambda: read_frames(video, frame_sampling(pixels.pixels.frames)))
    counts = (1, 2, 4, 8)
    print(
        f"a video of {rows[0].duration:.0f} s, CPU seconds of one call"
        + "".join(f"{n:>8}" for n in counts)
        + "  queries"
    )
    for name, grounder in (
        (f"{checkpoint}, from pixels", pixels),
        ("shapes (SDST), no cached features", uncached),
        ("shapes (SDST), cached features", cached),
    ):
        times = [cpu_seconds(lambda g=grounder, n=n: g.ground(video, queries[:n])) for n in counts]
        print(f"{name:<44}" + "".join(f"{seconds:>8.2f}" for seconds in times), flush=True)
    print(f"{'decoding alone':<44}{decode:>8.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=24, help="videos to draw (default: 24)")
    parser.add_argument("--side", type=int, default=320, help="side of the drawn videos in pixels (default: 320)")
    parser.add_argument("--ground", metavar="CHECKPOINT", help="measure answers of a checkpoint instead")
    parser.add_argument("--steps", type=int, default=10, help="training steps to take (default: 10)")
    options = parser.parse_args()
    print(f"{os.cpu_count()} processors, {torch.get_num_threads()} threads of PyTorch")
    with tempfile.TemporaryDirectory() as temporary:
        world = Path(temporary) / "world"
        seconds = (60, 61) if options.ground else (20, 40)
        make_world(world, videos=1 if options.ground else options.videos, seed=3, seconds=seconds, side=options.side)
        if options.ground:
            measure_grounding(world, options.ground, Path(temporary) / "features")
            sys.exit()
        measure_queries(world, Path(temporary) / "steps-of-queries")  # first: a child begins with its parent's peak
        measure_cache(world, Path(temporary) / "frames")
        measure_steps(world, Path(temporary) / "steps", options.steps)
