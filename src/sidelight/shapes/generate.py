"""Write a shapes world: videos that people can watch, and annotations in the QVHighlights form."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np

from sidelight.data.annotations import Annotation, write_annotations
from sidelight.io.files import replacing, write_text
from sidelight.shapes.language import phrase
from sidelight.shapes.render import Painter, visibility
from sidelight.shapes.world import (
    ACTIONS,
    CLIP_SECONDS,
    COLOURS,
    HELD_OUT,
    MAX_WINDOW_SECONDS,
    MAX_WINDOWS,
    SHAPES,
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

    Deterministic: the same arguments give the same annotations, and the same pixels before compression.
    Interrupted, it goes on where it stopped: a video that is there is not drawn again. Each file is written
    beside its place and renamed, so none is ever half there.

    Args:
        out: folder; made if need be.
        videos: how many, at least 1.
        seed: which world. Splits of one seed have no video in common.
        split: ``train``, ``val`` or ``test``; only ``test`` holds the combinations kept from training.
        seconds: shortest and longest duration of a video.
        side: width and height in pixels; even, at least 128.
        absent: also write ``out/with-absent.jsonl``: the same queries and that many more per video which are true of
            no moment in it, each a neighbour of one that is.
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
    folder.mkdir(parents=True, exist_ok=True)
    _same_world(Path(out) / "world.json", {"seed": seed, "split": split, "seconds": list(seconds), "side": side})
    annotations = [a for i, scene in enumerate(scenes) for a in annotate(scene, seed=seed, index=i, side=side)]
    for _ in _draw_all(scenes, folder, side, workers, progress):
        pass  # each video is on disk when its turn is over; nothing is returned
    if absent:
        without = [a for i, scene in enumerate(scenes) for a in absent_queries(scene, seed=seed, index=i, count=absent)]
        write_annotations(Path(out) / "with-absent.jsonl", [*annotations, *without])
    # Last, so that an annotations file means a whole world.
    write_annotations(Path(out) / "annotations.jsonl", annotations)
    return annotations


def _same_world(manifest: Path, settings: dict[str, object]) -> None:
    """Refuse to mix worlds in one folder: videos that are there are kept, so they must be of this one."""
    if manifest.exists():
        there = json.loads(manifest.read_text())
        if there != settings:
            raise ValueError(f"{manifest.parent} holds another world ({there}); choose another folder")
        return
    write_text(manifest, json.dumps(settings) + "\n")


def _draw_all(scenes: list[Scene], folder: Path, side: int, workers: int, progress: bool) -> Iterator[None]:
    from tqdm import tqdm

    draw = partial(_draw_one, folder=folder, side=side)
    bar = partial(tqdm, total=len(scenes), unit="video", desc="drawing", disable=not progress)
    if workers <= 1:
        yield from bar(map(draw, scenes))
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from bar(pool.map(draw, scenes, chunksize=1))


def _draw_one(scene: Scene, *, folder: Path, side: int) -> None:
    path = folder / f"{scene.vid}.mp4"
    if not path.exists():
        draw_video(scene, path, side=side)


def draw_video(scene: Scene, path: str | Path, *, side: int = SIDE) -> None:
    """Draw one scene as an H.264 mp4 of ``side`` x ``side`` pixels at 10 frames per second."""
    painter = Painter(scene, side)
    with replacing(path) as beside, av.open(str(beside), "w") as container:
        # One thread: what x264 writes depends on the number of threads.
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
    """The queries of one scene, each with its windows and the saliency scores of three simulated raters.

    Every combination with at most three windows gets one query that names all of it; then come up to six
    that leave the colour or the shape out, where hard negatives remain.
    """
    rng = np.random.default_rng([seed, index, 77])
    painter = Painter(scene, side)
    rows: list[Annotation] = []
    for colour, shape, action in _questions(rng, scene):
        matching = [e for e in scene.events if _matches(e, colour, shape, action)]
        windows = merge_windows((e.start, e.end) for e in matching)
        if len(windows) > MAX_WINDOWS or any(end - start > MAX_WINDOW_SECONDS for start, end in windows):
            continue
        clips = [c for start, end in windows for c in range(round(start / CLIP_SECONDS), round(end / CLIP_SECONDS))]
        combination = (colour, shape, action)
        extra = {
            "colour": colour,
            "shape": shape,
            "action": action,
            # Queries that leave something out are "unseen" for neither side.
            "unseen": combination in HELD_OUT,
        }
        rows.append(
            Annotation(
                qid=f"{scene.vid}_{len(rows):02d}",
                query=phrase(rng, action=action, colour=colour, shape=shape),
                vid=scene.vid,
                duration=_integer_if_whole(scene.duration),
                relevant_windows=tuple((_integer_if_whole(s), _integer_if_whole(e)) for s, e in windows),
                relevant_clip_ids=tuple(clips),
                saliency_scores=_rate(rng, painter, matching, clips),
                extra=extra,
            )
        )
    return rows


def absent_queries(scene: Scene, *, seed: int, index: int, count: int) -> list[Annotation]:
    """Up to ``count`` queries that are true of no moment of the scene, hence without windows.

    Each differs from something that happens there in one attribute only, so nothing but reading all of the sentence
    and looking closely tells that it is not there.
    """
    rng = np.random.default_rng([seed, index, 78])
    there = {e.combination for e in scene.events}
    tables = (tuple(COLOURS), SHAPES, ACTIONS)
    neighbours = sorted(
        {
            (*c[:i], value, *c[i + 1 :])
            for c in there
            if c is not None
            for i, table in enumerate(tables)
            for value in table
        }
        - there
    )
    allowed = [c for c in neighbours if scene.split == "test" or c not in HELD_OUT]
    chosen = [allowed[int(i)] for i in rng.permutation(len(allowed))[:count]]
    return [
        Annotation(
            qid=f"{scene.vid}_absent_{number:02d}",
            query=phrase(rng, action=action, colour=colour, shape=shape),
            vid=scene.vid,
            duration=_integer_if_whole(scene.duration),
            extra={
                "colour": colour,
                "shape": shape,
                "action": action,
                "unseen": (colour, shape, action) in HELD_OUT,
                "absent": True,
            },
        )
        for number, (colour, shape, action) in enumerate(chosen)
    ]


def _questions(rng: np.random.Generator, scene: Scene) -> list[tuple[str | None, str | None, str]]:
    """What to ask of a scene: (colour or None, shape or None, action)."""
    combinations = list(dict.fromkeys(e.combination for e in scene.events if e.combination))
    # Only inside the cube are all three kinds of hard negative sure to be there.
    cube = [c for c in combinations if _has_hard_negatives(c, combinations)]
    partial_ones: list[tuple[str | None, str | None, str]] = []
    partial_ones += [(colour, None, action) for colour, _, action in cube]
    partial_ones += [(None, shape, action) for _, shape, action in cube]
    partial_ones = list(dict.fromkeys(partial_ones))
    chosen = [partial_ones[int(i)] for i in rng.permutation(len(partial_ones))[:6]]
    return [*cube, *chosen]


def _has_hard_negatives(wanted: tuple[str, str, str], there: list[tuple[str, str, str]]) -> bool:
    def differs_only_at(position: int) -> bool:
        return any(
            all((a == b) != (i == position) for i, (a, b) in enumerate(zip(wanted, c, strict=True))) for c in there
        )

    return all(differs_only_at(position) for position in range(3))


def _matches(event: Thing, colour: str | None, shape: str | None, action: str) -> bool:
    return (
        event.action == action
        and (colour is None or event.colour == colour)
        and (shape is None or event.shape == shape)
    )


def merge_windows(windows: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Unite windows that overlap or touch; sorted by start."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted(windows):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _rate(
    rng: np.random.Generator, painter: Painter, matching: list[Thing], clips: list[int]
) -> tuple[tuple[int, ...], ...]:
    """Three raters score each clip 0 to 4: what is visible, plus each rater's own bias and noise."""
    seen = np.array(
        [
            max(
                visibility(painter, e, c)
                for e in matching
                if e.start <= c * CLIP_SECONDS and (c + 1) * CLIP_SECONDS <= e.end
            )
            for c in clips
        ]
    )
    bias = rng.normal(0.0, 0.25, size=RATERS)
    noise = rng.normal(0.0, 0.35, size=(len(clips), RATERS))
    scores = np.clip(np.rint(7.3 * (seen[:, None] - 0.16) + bias + noise), 0, 4).astype(int)
    return tuple(tuple(int(v) for v in row) for row in scores)


def _integer_if_whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value
