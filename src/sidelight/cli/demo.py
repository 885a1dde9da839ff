"""The demo: a video that no model has seen, three queries, their answers beside the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sidelight.core.grounding import Grounding
from sidelight.data.annotations import Annotation
from sidelight.grounder import Grounder
from sidelight.shapes.generate import annotate, draw_video
from sidelight.shapes.world import sample_scene

WORLD_SEED = 1_000_003
"""The demo's own world, which nothing was trained or tuned on."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What the demo made."""

    video: Path
    json: Path
    picture: Path
    answers: Sequence[tuple[Grounding, Sequence[tuple[float, float]]]]
    """Per query: the grounding and the true windows."""


def demo(out: Path, *, seed: int, model: str = "shapes", device: str | None = None) -> Demo:
    """Make video ``seed`` of the demo's world and ground three of its queries.

    Args:
        out: folder for the video; made if need be.
        seed: which video.
        model: as :meth:`sidelight.grounder.Grounder.from_pretrained` takes it.
        device: likewise.
    """
    out.mkdir(parents=True, exist_ok=True)
    scene = sample_scene(seed=WORLD_SEED, index=seed, split="test", seconds=(60, 100))
    video = out / "video.mp4"
    draw_video(scene, video, side=320)
    chosen = choose(annotate(scene, seed=WORLD_SEED, index=seed))
    groundings = Grounder.from_pretrained(model, device=device).ground(video, [a.query for a in chosen])
    return Demo(
        video=video,
        json=out / "groundings.json",
        picture=out / "groundings.png",
        answers=[(g, a.relevant_windows) for g, a in zip(groundings, chosen, strict=True)],
    )


def choose(annotations: Sequence[Annotation]) -> list[Annotation]:
    """Three queries: one window, several windows, and one that leaves an attribute out. By what they ask alone."""
    whole = [a for a in annotations if a.extra["colour"] and a.extra["shape"]]
    partial = [a for a in annotations if a not in whole]
    several = [a for a in whole if len(a.relevant_windows) > 1]
    single = [a for a in whole if len(a.relevant_windows) == 1]
    picked = [*single[:1], *several[:1], *partial[:1]]
    rest = [a for a in annotations if a not in picked]
    return (picked + rest)[:3]
