"""Measure the search of a library: its first stage on many embeddings, and both stages on videos.

    python benchmarks/library.py --vectors 1000000
    python benchmarks/library.py --videos 200
    python benchmarks/library.py --videos 200 --calibrate 200
    python benchmarks/library.py --videos 8 --seconds 1200 1300

--vectors: the embeddings are synthetic. 500 subjects have videos of 100 clips each; the cosine of two clips of one
video is about 0.72, of two videos of one subject 0.26. Queries are a clip with noise in all directions: "like an image"
has a cosine of 0.9 with its clip, "like a sentence" one of 0.35, since sentences lie far from all clips. Recall is the
share of the 100 nearest clips, found by comparing all embeddings, that the index finds too.

--videos: drawn videos of the shapes world, which the embedded model knows. A query is right if the best hit is a moment
of a video in which the sentence is true, and its IoU with a true window is at least 0.5. A sentence may be true in
several videos; the scripts of the videos say in which. "All videos" grounds every video of the library and takes the
moment with the highest score; "ordered alike" does the same, but orders the moments as a search does. "The default"
reads parts of long videos, "whole candidates" all of them.

--calibrate: as many queries teach how likely a hit is right. Their annotations name all videos in which they are true.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from sidelight.core.messages import size_of
from sidelight.core.spans import iou
from sidelight.data.annotations import Annotation
from sidelight.library import Hit, Library, SearchResult
from sidelight.library.calibration import FILE as CALIBRATION
from sidelight.library.folder import folder_at
from sidelight.library.tables import INDEX_FROM, Tables
from sidelight.shapes.generate import join_windows, make_world
from sidelight.shapes.world import Scene, sample_scene

Vectors = npt.NDArray[np.float32]
CLIPS, SUBJECTS, NEAREST = 100, 500, 100
SIDE = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, help="search this many synthetic embeddings")
    parser.add_argument("--width", type=int, default=512, help="width of the embeddings")
    parser.add_argument("--videos", type=int, help="search this many drawn videos")
    parser.add_argument("--seconds", type=float, nargs=2, default=(20.0, 40.0), help="shortest and longest drawn video")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--candidates", type=int, nargs="+", help="videos that the second stage reads")
    parser.add_argument(
        "--calibrate", type=int, default=0, help="calibrate the library of videos with this many queries"
    )
    parser.add_argument("--seed", type=int, default=4711)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("data/library"), help="folder for what is made")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.vectors:
        first_stage(args.vectors, args.width, args.queries, args.out / f"vectors-{args.vectors}")
    if args.videos:
        library, annotations, scenes = drawn_library(args.videos, args.seed, tuple(args.seconds), args.out)
        if args.calibrate:
            calibrate(library, annotations, scenes, args.calibrate, args.seed)
        else:
            both_stages(library, annotations, scenes, args.queries, args.candidates, args.seed)


# the first stage ----------------------------------------------------------------------------------------------------


def first_stage(count: int, width: int, queries: int, folder: Path) -> None:
    rng = np.random.default_rng(0)
    vectors_NE = synthetic_embeddings(rng, count, width)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start = time.perf_counter()
    tables = Tables(folder_at(folder), width, is_new=True)
    for number in range(0, len(vectors_NE) // CLIPS, CLIPS):  # 100 videos at once: writing is not measured here
        block = vectors_NE[number * CLIPS : (number + CLIPS) * CLIPS]
        tables.put_clips(number // CLIPS, block)
    written = time.perf_counter() - start
    start = time.perf_counter()
    tables.finish()
    built = time.perf_counter() - start
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    raw = 4 * vectors_NE.size
    print(f"{len(vectors_NE):,} synthetic embeddings of width {width}: written in {written:.0f} s, index ", end="")
    print(f"{'built in' if len(vectors_NE) >= INDEX_FROM else 'not needed,'} {built:.0f} s")
    print(f"size on disk {size_of(size)} (the embeddings alone {size_of(raw)})\n")
    print(f"{'query':<16}{'p50 ms':>10}{'p95 ms':>10}{f'recall@{NEAREST}':>12}")
    for name, cosine in (("like an image", 0.9), ("like a sentence", 0.35)):
        clips = vectors_NE[rng.integers(0, len(vectors_NE), queries)].astype(np.float32)
        noise = unit(rng.standard_normal((queries, width), np.float32))
        queries_QE = unit(cosine * clips + (1 - cosine**2) ** 0.5 * noise)
        times, answers_Q = [], []
        for query_E in [*queries_QE[:5], *queries_QE]:  # the first ones warm up
            start = time.perf_counter()
            answers_Q.append(tables.nearest(query_E, NEAREST))
            times.append(1000 * (time.perf_counter() - start))
        times, answers_Q = times[5:], answers_Q[5:]
        recalls = []
        for truth, rows in zip(exact_nearest(vectors_NE, queries_QE), answers_Q, strict=True):
            hits = {(n, c) for n, c in zip(rows[0].tolist(), rows[1].tolist(), strict=True)}
            recalls.append(len(hits & truth) / NEAREST)
        p50, p95 = np.percentile(times, (50, 95))
        print(f"{name:<16}{p50:>10.1f}{p95:>10.1f}{np.mean(recalls):>12.3f}")


def unit(vectors: Vectors) -> Vectors:
    """Return vectors of length 1."""
    normal: Vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return normal


def synthetic_embeddings(rng: np.random.Generator, count: int, width: int) -> npt.NDArray[np.float16]:
    """Return (N, E): clips near their video, videos near their subject."""
    videos = count // CLIPS
    subjects = unit(rng.standard_normal((SUBJECTS, width), np.float32))
    noise = unit(rng.standard_normal((videos, width), np.float32))
    of_videos = unit(0.6 * subjects[rng.integers(0, SUBJECTS, videos)] + 0.8 * noise)
    vectors_NE = np.empty((videos * CLIPS, width), np.float16)
    for video, vector_E in enumerate(of_videos):
        noise = unit(rng.standard_normal((CLIPS, width), np.float32))
        vectors_NE[video * CLIPS : (video + 1) * CLIPS] = unit(0.85 * vector_E + 0.53 * noise)
    return vectors_NE


def exact_nearest(vectors_NE: npt.NDArray[np.float16], queries_QE: Vectors) -> list[set[tuple[int, int]]]:
    """Return (number, clip) of the nearest embeddings of each query, by comparing all; all queries at once."""
    block, best = 50_000, np.full((len(queries_QE), NEAREST), -np.inf, np.float32)
    places = np.zeros((len(queries_QE), NEAREST), np.int64)
    for first in range(0, len(vectors_NE), block):
        part_QB = queries_QE @ vectors_NE[first : first + block].astype(np.float32).T
        joined = np.concatenate([best, part_QB], axis=1)
        numbers = np.concatenate([places, np.broadcast_to(first + np.arange(part_QB.shape[1]), part_QB.shape)], axis=1)
        kept = np.argpartition(-joined, NEAREST - 1, axis=1)[:, :NEAREST]
        best, places = np.take_along_axis(joined, kept, 1), np.take_along_axis(numbers, kept, 1)
    per_row = CLIPS * CLIPS
    return [{(int(index) // per_row, int(index) % per_row) for index in row} for row in places]


# both stages --------------------------------------------------------------------------------------------------------


def drawn_library(
    videos: int, seed: int, lengths: tuple[float, float], out: Path
) -> tuple[Library, list[Annotation], list[Scene]]:
    """Draw videos unless they exist, and return a library of them, without a calibration, and what happens in them."""
    name = f"{seed}-{videos}-{lengths[0]:g}-{lengths[1]:g}"
    world = out / f"world-{name}"
    annotations = make_world(world, videos=videos, seed=seed, split="test", seconds=lengths, side=SIDE, progress=True)
    scenes = [sample_scene(seed=seed, index=i, split="test", seconds=lengths) for i in range(videos)]
    library = Library.create(out / f"library-{name}", model="shapes", device="cpu")
    (Path(library.place) / CALIBRATION).unlink(missing_ok=True)
    start = time.perf_counter()
    changes = library.add(world / "videos", progress=True)
    if changes.failed:
        raise SystemExit(f"these videos cannot be read: {changes.failed}")
    seconds = library.status().seconds
    if changes.added:
        print(f"added {len(changes.added)} videos ({seconds / 60:.0f} minutes) in {time.perf_counter() - start:.0f} s")
    print(f"{videos} drawn videos (synthetic), {seconds / videos:.0f} s each on average\n")
    return library, list(annotations), scenes


def calibrate(
    library: Library, annotations: Sequence[Annotation], scenes: Sequence[Scene], queries: int, seed: int
) -> None:
    """Calibrate the library, and print what the calibration achieves on queries that it never saw."""
    chosen = np.random.default_rng(seed).permutation(len(annotations))[:queries]
    complete = []
    for index in chosen:
        annotation = annotations[int(index)]
        for scene in scenes:
            if windows := true_windows(scene, annotation):
                duration = max(annotation.duration, windows[-1][1])
                complete.append(
                    Annotation(
                        qid=len(complete),
                        query=annotation.query,
                        vid=scene.vid,
                        duration=duration,
                        relevant_windows=tuple(windows),
                    )
                )
    report = library.calibrate(complete, progress=True)
    absent = report.absent
    print(f"{report.queries} different queries, searched with and without the videos in which they are true")
    print(f"first hit right: {100 * report.first_right:.1f} %, before {100 * report.first_right_before:.1f} %")
    print(f"expected calibration error: {100 * report.error:.1f} points")
    print(
        f'"no such moment" below {absent.min_score:g}: recall {100 * absent.recall:.1f} %, precision '
        f"{100 * absent.precision:.1f} %, wrongly given for {100 * absent.lost:.1f} % of queries with a moment"
    )


def both_stages(
    library: Library,
    annotations: Sequence[Annotation],
    scenes: Sequence[Scene],
    queries: int,
    candidates: Sequence[int] | None,
    seed: int,
) -> None:
    """Compare a search with grounding all videos."""
    chosen = np.random.default_rng(seed).permutation(len(annotations))[:queries]
    queried, videos = [annotations[int(index)] for index in chosen], len(scenes)
    print(f"{len(queried)} queries")
    print(f"{'':<22}{'R1@0.5':>8}{'R1@0.7':>8}{'right video':>13}{'ms a query':>12}{'times as fast':>15}")
    library.search(queried[0].query)  # loads the model
    ways = {
        "all videos": Way(candidates=videos, top=1_000_000, whole=True),
        "the default": Way(),
        "whole candidates": Way(whole=True),
        **{f"{number} candidates": Way(candidates=number) for number in candidates or [20]},
    }
    # Each query is answered in all ways in turn, so that a busy machine slows all of them.
    runs = answers(library, queried, list(ways.values()))
    results, times = runs[0]
    by_score = [sorted(result, key=lambda hit: -hit.moment.score)[:1] for result in results]
    every = row_of(by_score, times, queried, scenes)
    show("all videos", every, every)
    show("ordered alike", row_of([result.hits[:1] for result in results], times, queried, scenes), every)
    for name, (results, times) in zip(list(ways)[1:], runs[1:], strict=True):
        row = row_of([result.hits[:1] for result in results], times, queried, scenes)
        show(name, row, every)
        print(f"{'':<22}{every[0] - row[0]:>8.2f}{every[1] - row[1]:>8.2f}{every[2] - row[2]:>13.2f}  points lost")


Row = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Way:
    """Options of a search."""

    candidates: int | None = None
    top: int = 10
    whole: bool = False


def show(name: str, row: Row, every: Row) -> None:
    print(f"{name:<22}{row[0]:>8.2f}{row[1]:>8.2f}{row[2]:>13.2f}{row[3]:>12.0f}{every[3] / row[3]:>15.1f}", flush=True)


def answers(
    library: Library, queried: Sequence[Annotation], ways: Sequence[Way]
) -> list[tuple[list[SearchResult], list[float]]]:
    """Return for each way the result of each query and its ms."""
    runs: list[tuple[list[SearchResult], list[float]]] = [([], []) for _ in ways]
    for annotation in queried:
        for way, (results, times) in zip(ways, runs, strict=True):
            start = time.perf_counter()
            results.append(library.search(annotation.query, **vars(way)))
            times.append(1000 * (time.perf_counter() - start))
    return runs


def row_of(
    best_hits: Sequence[Sequence[Hit]],
    times: Sequence[float],
    queried: Sequence[Annotation],
    scenes: Sequence[Scene],
) -> Row:
    """Return R1@0.5, R1@0.7 and the share of right videos in percent, and the median ms of a search.

    Args:
        best_hits: the best hit of each query, or none.
        times: ms of each query.
        queried: the queries.
        scenes: the scripts of all videos.
    """
    by_vid, right = {scene.vid: scene for scene in scenes}, []
    for hits, annotation in zip(best_hits, queried, strict=True):
        windows = true_windows(by_vid[Path(hits[0].video).stem], annotation) if hits else []
        spans = [[hit.moment.start, hit.moment.end] for hit in hits]
        overlap = float(iou(np.array(spans), np.array(windows)).max()) if windows else 0.0
        right.append((overlap >= 0.5, overlap >= 0.7, bool(windows)))
    r5, r7, video = 100 * np.mean(right, axis=0)
    return float(r5), float(r7), float(video), float(np.median(times))


def true_windows(scene: Scene, annotation: Annotation) -> list[tuple[float, float]]:
    """Return the windows of a scene in which the sentence of an annotation is true."""
    wanted = annotation.extra
    return join_windows(
        (event.start, event.end)
        for event in scene.events
        if event.action == wanted["action"]
        and wanted["colour"] in (None, event.colour)
        and wanted["shape"] in (None, event.shape)
    )


if __name__ == "__main__":
    main()
