"""Make the demo: a video that no model has seen, three queries, and their groundings beside the true windows."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sidelight.core.grounding import Grounding
from sidelight.data.annotations import Annotation
from sidelight.features.sources import content_digest
from sidelight.grounder import Grounder
from sidelight.io.files import read_json, replacing, write_text
from sidelight.shapes.generate import annotate, draw_video
from sidelight.shapes.world import sample_scene

WORLD_SEED = 1_000_003
"""Seed of the demo's own world. No model was trained or tuned on this world."""

FILES = ("video.mp4", "groundings.json", "groundings.png")
"""The files of a demo, in its folder."""
_MADE = ".demo.json"
"""Name of the file with the digests of each file that demos made."""
_KEPT = 8
"""Earlier digests of a file that are kept."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Result of the demo: a video, and one grounding per query."""

    video: Path
    groundings: Sequence[Grounding]
    windows: Sequence[Sequence[tuple[float, float]]]
    """True windows of each query, in seconds."""


def make_demo(out: Path, *, seed: int, model: str = "shapes", device: str | None = None) -> Demo:
    """Make one video of the demo's world and ground three of its queries.

    Args:
        out: folder for the video; made if it is missing.
        seed: number of the video in the demo's world.
        model: see :meth:`sidelight.grounder.Grounder.from_pretrained`.
        device: see :meth:`sidelight.grounder.Grounder.from_pretrained`.
    """
    require_own_files(out)
    grounder = Grounder.from_pretrained(model, device=device)
    out.mkdir(parents=True, exist_ok=True)
    video, annotations = draw_demo(out, seed=seed)
    groundings = grounder.ground(video, [a.query for a in annotations])
    return Demo(video=video, groundings=groundings, windows=[a.relevant_windows for a in annotations])


def draw_demo(out: Path, *, seed: int) -> tuple[Path, list[Annotation]]:
    """Draw one video of the demo's world into a folder; return it with three of its queries and their true windows."""
    scene = sample_scene(seed=WORLD_SEED, index=seed, split="test", seconds=(60, 100))
    video = out / "video.mp4"
    with own_file(video) as beside:
        draw_video(scene, beside, side=320)
    return video, choose(annotate(scene, seed=WORLD_SEED, index=seed))


def require_own_files(out: Path) -> None:
    """Check that a demo in this folder would replace only files that a demo made.

    Raises:
        ValueError: if a file of that name exists whose content is not a demo's.
    """
    made = _made_digests(out)
    for name in FILES:
        path = out / name
        if (path.exists() or path.is_symlink()) and (not path.is_file() or content_digest(path) not in made[name]):
            raise ValueError(f"{path} exists and was not made by the demo; give --out another folder")


@contextlib.contextmanager
def own_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which becomes a file of the demo.

    Its digest is noted before it gets its name, so that after an error at any point the next demo may replace it.
    """
    with replacing(path) as beside:
        yield beside
        made = _made_digests(path.parent)
        made[path.name] = [*made[path.name][-_KEPT:], content_digest(beside)]
        write_text(path.parent / _MADE, json.dumps(made) + "\n")


def _made_digests(out: Path) -> dict[str, list[str]]:
    """Return the digests of the files that demos made, by name; the file itself may be of an earlier demo."""
    made: dict[str, list[str]] = {name: [] for name in FILES}
    with contextlib.suppress(OSError, ValueError):  # no demo was made here
        for name, digests in read_json(out / _MADE).items():
            made[name] = [digests] if isinstance(digests, str) else list(digests)  # older demos noted one
    return made


def choose(annotations: Sequence[Annotation]) -> list[Annotation]:
    """Return three queries: with one window, with several windows, and with an attribute left out.

    The choice depends on the annotations alone, not on how well a model answers them.
    """
    full = [a for a in annotations if a.extra["colour"] and a.extra["shape"]]
    partial = [a for a in annotations if a not in full]
    several = [a for a in full if len(a.relevant_windows) > 1]
    single = [a for a in full if len(a.relevant_windows) == 1]
    chosen = [*single[:1], *several[:1], *partial[:1]]
    rest = [a for a in annotations if a not in chosen]
    return (chosen + rest)[:3]
