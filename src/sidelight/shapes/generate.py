"""Write a shapes world: videos for people to watch, and annotations in the form of QVHighlights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np

from sidelight.data.annotations import Annotation, write_annotations
from sidelight.io.files import read_json, replacing, sweep, write_text
from sidelight.io.processes import end_with_parent
from sidelight.shapes.language import phrase
from sidelight.shapes.render import Painter, visibility
from sidelight.shapes.world import (
    ATTRIBUTES,
    HELD_OUT,
    MAX_WINDOW_SECONDS,
    MAX_WINDOWS,
    Combination,
    Scene,
    Thing,
    sample_scene,
)

FPS = 10
SIDE = 160
RATERS = 3


def make_world(
    out: str | Path,
    *,
    videos: int,
    seed: int = 0,
    split: str = "train",
    seconds: tuple[float, float] = (60, 150),
    side: int = SIDE,
    absent: int = 0,
    workers: int = 1,
    progress: bool = False,
) -> list[Annotation]:
    """Make ``videos`` synthetic videos under ``out/videos`` and their queries in ``out/annotations.jsonl``.

    The same arguments give the same annotations, and the same pixels before compression. An interrupted call can be
    repeated: existing videos are not drawn again. Each file is written beside its place and then renamed, so every
    file is complete.

    Args:
        out: folder; made if it does not exist.
        videos: number of videos, at least 1.
        seed: number of the world. Splits of one seed have no video in common.
        split: ``train``, ``val`` or ``test``; only ``test`` holds the combinations kept from training.
        seconds: shortest and longest duration of a video in seconds.
        side: width and height in pixels; even, at least 128.
        absent: number of queries per video that match no moment of the video, each a neighbour of a query that does.
            They are written, with all other queries, to ``out/with-absent.jsonl``.
        workers: processes that draw at the same time.
        progress: show a progress bar.

    Returns:
        The annotations, in the order of the file.

    Raises:
        ValueError: if an argument is out of its range.
    """
    if videos < 1:
        raise ValueError(f"videos must be 1 or more, got {videos}")
    if absent < 0:
        raise ValueError(f"absent must be 0 or more queries per video, got {absent}")
    if side < 128 or side % 2:
        raise ValueError(f"side must be an even number of at least 128 pixels, got {side}")
    scenes = [sample_scene(seed=seed, index=i, split=split, seconds=seconds) for i in range(videos)]
    folder = Path(out) / "videos"
    _check_same_world(Path(out), {"seed": seed, "split": split, "seconds": list(seconds), "side": side})
    folder.mkdir(parents=True, exist_ok=True)
    sweep(out)
    sweep(folder)
    annotations = [a for i, scene in enumerate(scenes) for a in annotate(scene, seed=seed, index=i, side=side)]
    for _ in _draw_all(scenes, folder, side, workers, progress):
        pass  # videos are written to disk, and the iterator yields nothing
    if absent:
        without = [a for i, scene in enumerate(scenes) for a in absent_queries(scene, seed=seed, index=i, count=absent)]
        write_annotations(Path(out) / "with-absent.jsonl", [*annotations, *without])
    # Last, so that an annotations file means a complete world.
    write_annotations(Path(out) / "annotations.jsonl", annotations)
    return annotations


def _check_same_world(folder: Path, settings: dict[str, object]) -> None:
    """Refuse a folder that holds another world or the user's own files; note the world of a new folder."""
    manifest = folder / "world.json"
    if manifest.exists():
        existing = read_json(manifest)
        if existing != settings:
            raise ValueError(f"{folder} holds another world ({existing}); choose another folder")
        return
    for name in ("videos", "annotations.jsonl", "with-absent.jsonl"):
        if (folder / name).is_file() or ((folder / name).is_dir() and any((folder / name).iterdir())):
            raise ValueError(
                f"{folder / name} exists and belongs to no world that sidelight made; give --out another folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(manifest, json.dumps(settings) + "\n")


def _draw_all(scenes: list[Scene], folder: Path, side: int, workers: int, progress: bool) -> Iterator[None]:
    from tqdm import tqdm

    draw = partial(_draw_one, folder=folder, side=side)
    bar = partial(tqdm, total=len(scenes), unit="video", desc="drawing", disable=not progress)
    if workers <= 1:
        yield from bar(map(draw, scenes))
        return
    with ProcessPoolExecutor(workers, initializer=end_with_parent) as pool:
        yield from bar(pool.map(draw, scenes, chunksize=1))


def _draw_one(scene: Scene, *, folder: Path, side: int) -> None:
    path = folder / f"{scene.vid}.mp4"
    if not path.exists():
        draw_video(scene, path, side=side)


def draw_video(scene: Scene, path: str | Path, *, side: int = SIDE) -> None:
    """Draw a scene as an H.264 mp4 of ``side`` x ``side`` pixels at 10 frames per second."""
    painter = Painter(scene, side)
    with replacing(path) as beside, av.open(str(beside), "w") as container:
        # One thread, because the output of x264 depends on the number of threads.
        options = {"preset": "veryfast", "crf": "23", "threads": "1"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        stream.gop_size = 5 * FPS
        for number in range(math.ceil(scene.duration * FPS)):
            frame = av.VideoFrame.from_ndarray(painter.frame(number / FPS), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def annotate(scene: Scene, *, seed: int, index: int, side: int = SIDE) -> list[Annotation]:
    """Return the queries of a scene, each with its windows and the saliency scores of three simulated raters.

    Each combination of the cube gets one query that names colour, shape and action. Up to six queries follow that leave
    out the colour or the shape. Queries with too many or too long windows are dropped.
    """
    rng = np.random.default_rng([seed, index, 77])
    painter = Painter(scene, side)
    rows: list[Annotation] = []
    for colour, shape, action in _sample_combinations(rng, scene):
        matching = [e for e in scene.events if _matches(e, colour, shape, action)]
        windows = join_windows((e.start, e.end) for e in matching)
        if len(windows) > MAX_WINDOWS or any(end - start > MAX_WINDOW_SECONDS for start, end in windows):
            continue
        clips = [clip for start, end in windows for clip in scene.timeline.clips_in(start, end)]
        rows.append(
            Annotation(
                qid=f"{scene.vid}_{len(rows):02d}",
                query=phrase(rng, action=action, colour=colour, shape=shape),
                vid=scene.vid,
                duration=_integer_if_whole(scene.duration),
                relevant_windows=tuple((_integer_if_whole(s), _integer_if_whole(e)) for s, e in windows),
                relevant_clip_ids=tuple(clips),
                saliency_scores=_rate_clips(rng, painter, matching, clips),
                extra=_extra(colour, shape, action),
            )
        )
    return rows


def _extra(colour: str | None, shape: str | None, action: str) -> dict[str, Any]:
    """Return the extra fields of an annotation. A query that leaves out an attribute does not count as unseen."""
    unseen = (colour, shape, action) in HELD_OUT
    return {"colour": colour, "shape": shape, "action": action, "unseen": unseen}


def absent_queries(scene: Scene, *, seed: int, index: int, count: int) -> list[Annotation]:
    """Return up to ``count`` queries that match no moment of the scene, so they have no windows.

    Each query differs from an event of the scene in one attribute only, so a model must read the full sentence and look
    closely to reject the query.
    """
    rng = np.random.default_rng([seed, index, 78])
    present = {e.combination for e in scene.events if e.combination}
    neighbours = sorted(
        {(*c[:i], value, *c[i + 1 :]) for c in present for i, table in enumerate(ATTRIBUTES) for value in table}
        - present
    )
    allowed = [c for c in neighbours if scene.split == "test" or c not in HELD_OUT]
    chosen = [allowed[int(i)] for i in rng.permutation(len(allowed))[:count]]
    return [
        Annotation(
            qid=f"{scene.vid}_absent_{number:02d}",
            query=phrase(rng, action=action, colour=colour, shape=shape),
            vid=scene.vid,
            duration=_integer_if_whole(scene.duration),
            extra=_extra(colour, shape, action) | {"absent": True},
        )
        for number, (colour, shape, action) in enumerate(chosen)
    ]


def _sample_combinations(rng: np.random.Generator, scene: Scene) -> list[tuple[str | None, str | None, str]]:
    """Sample the queries of a scene as (colour or None, shape or None, action)."""
    combinations = list(dict.fromkeys(e.combination for e in scene.events if e.combination))
    # Only combinations of the cube are sure to have all three kinds of hard negatives.
    cube = [c for c in combinations if _has_hard_negatives(c, combinations)]
    shorter: list[tuple[str | None, str | None, str]] = []
    shorter += [(colour, None, action) for colour, _, action in cube]
    shorter += [(None, shape, action) for _, shape, action in cube]
    shorter = list(dict.fromkeys(shorter))
    chosen = [shorter[int(i)] for i in rng.permutation(len(shorter))[:6]]
    return [*cube, *chosen]


def _has_hard_negatives(combination: Combination, combinations: list[Combination]) -> bool:
    """Check whether, for each attribute, another combination differs in exactly this attribute."""
    different = [tuple(a != b for a, b in zip(combination, other, strict=True)) for other in combinations]
    return all(tuple(i == position for i in range(3)) in different for position in range(3))


def _matches(event: Thing, colour: str | None, shape: str | None, action: str) -> bool:
    return (
        event.action == action
        and (colour is None or event.colour == colour)
        and (shape is None or event.shape == shape)
    )


def join_windows(windows: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Unite windows that overlap or touch, and sort them by start."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted(windows):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _rate_clips(
    rng: np.random.Generator, painter: Painter, matching: list[Thing], clips: list[int]
) -> tuple[tuple[int, ...], ...]:
    """Return the scores 0 to 4 of three raters for each clip: the visibility, plus a bias and noise of each rater."""
    timeline = painter.scene.timeline
    seen = np.array(
        [max(visibility(painter, e, c) for e in matching if c in timeline.clips_in(e.start, e.end)) for c in clips]
    )
    bias = rng.normal(0.0, 0.25, size=RATERS)
    noise = rng.normal(0.0, 0.35, size=(len(clips), RATERS))
    scores = np.clip(np.rint(7.3 * (seen[:, None] - 0.16) + bias + noise), 0, 4).astype(int)
    return tuple(tuple(int(v) for v in row) for row in scores)


def _integer_if_whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value
