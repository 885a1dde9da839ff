"""The rules of the shapes world: what there is, what it can do, and what happens in one video.

A *scene* is a script for one synthetic video: a background, a slowly drifting camera, still distractors and a
list of events. An *event* is one object (colour, shape) doing one thing (action) from ``start`` to ``end``;
outside its events an object is not there. Scenes are sampled here and drawn in :mod:`sidelight.shapes.render`.

Each scene is built around a *cube*: two colours x two shapes x two actions, all eight combinations of which
occur. So whichever combination is asked for, the video also holds the same shape and action in another colour,
the same colour and shape doing something else, and the same colour and action with another shape.

Coordinates are fractions of the frame's side (x to the right, y down), times are seconds, angles radians.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (244, 134, 24),
    "yellow": (246, 222, 60),
    "green": (52, 168, 70),
    "cyan": (64, 208, 224),
    "blue": (46, 82, 220),
    "purple": (134, 52, 190),
    "pink": (248, 132, 192),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "ring")
ACTIONS: tuple[str, ...] = (
    "left",
    "right",
    "up",
    "down",
    "grow",
    "shrink",
    "spin",
    "blink",
    "bounce",
    "shake",
)
SPLITS: tuple[str, ...] = ("train", "val", "test")

CLIP_SECONDS = 2.0
MAX_WINDOW_SECONDS = 50.0
MAX_WINDOWS = 3

Combination = tuple[str, str, str]
"""(colour, shape, action)"""


def held_out_combinations() -> frozenset[Combination]:
    """The 10 % of all combinations that never occur in the train and val splits, whatever the seed."""
    everything = list(itertools.product(COLOURS, SHAPES, ACTIONS))
    chosen = np.random.default_rng(2025).choice(len(everything), size=len(everything) // 10, replace=False)
    return frozenset(everything[int(i)] for i in chosen)


HELD_OUT = held_out_combinations()


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object on the screen: what it is, where it is at home, how it moves. ``action`` None: it rests."""

    colour: str
    shape: str
    action: str | None
    start: float
    end: float
    x: float
    y: float
    radius: float
    angle: float
    period: float
    """Seconds of one repetition: of a crossing, a growth, a blink, a bounce, a turn."""
    clockwise: bool = True
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def combination(self) -> Combination | None:
        return None if self.action is None else (self.colour, self.shape, self.action)


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a thing is at one instant. ``opacity`` 0 means that it cannot be seen."""

    x: float
    y: float
    radius: float
    angle: float
    opacity: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The script of one video."""

    vid: str
    split: str
    duration: float
    events: tuple[Thing, ...]
    distractors: tuple[Thing, ...]
    background_seed: int
    noise: float
    drift: tuple[float, float, float]
    """Amplitude (fraction of the frame) and the two periods (seconds) of the camera's drift."""


_FADE_SECONDS = 0.15
_MARGIN = 1.2  # a moving thing leaves the frame wholly, this many radii beyond the edge, before it re-enters


def state_at(thing: Thing, seconds: float) -> State:
    """The state of ``thing`` at ``seconds``; opacity 0 outside [start, end)."""
    since = seconds - thing.start
    x, y, radius, angle = thing.x, thing.y, thing.radius, thing.angle
    if not 0 <= since < thing.end - thing.start:
        return State(x=x, y=y, radius=radius, angle=angle, opacity=0.0)
    opacity = min(1.0, (since + 0.05) / _FADE_SECONDS, (thing.end - seconds + 0.05) / _FADE_SECONDS)
    phase = since / thing.period
    match thing.action:
        case "left" | "right":
            x = _wrap(x + (phase if thing.action == "right" else -phase), radius)
        case "up" | "down":
            y = _wrap(y + (phase if thing.action == "down" else -phase), radius)
        case "grow" | "shrink":
            part = phase % 1.0
            radius *= 0.5 + 0.9 * (part if thing.action == "grow" else 1.0 - part)
        case "spin":
            angle += 2 * math.pi * phase * (1 if thing.clockwise else -1)
        case "blink":
            opacity *= 1.0 if phase % 1.0 < 0.55 else 0.0
        case "bounce":
            y -= 0.24 * abs(math.sin(math.pi * phase))
        case "shake":
            x += 0.07 * math.sin(2 * math.pi * phase)
    return State(x=x, y=y, radius=radius, angle=angle, opacity=opacity)


def _wrap(position: float, radius: float) -> float:
    low, high = -_MARGIN * radius, 1 + _MARGIN * radius
    return low + (position - low) % (high - low)


_PERIODS: dict[str, tuple[float, float]] = {
    # Slow enough that four pictures a second show every action without aliasing.
    "left": (2.6, 4.2),
    "right": (2.6, 4.2),
    "up": (2.6, 4.2),
    "down": (2.6, 4.2),
    "grow": (2.2, 3.6),
    "shrink": (2.2, 3.6),
    "spin": (2.0, 3.4),
    "blink": (0.9, 1.4),
    "bounce": (0.9, 1.4),
    "shake": (0.75, 1.0),
}


def sample_scene(*, seed: int, index: int, split: str = "train", seconds: tuple[float, float] = (60, 150)) -> Scene:
    """Sample the script of video ``index`` of the world ``seed``.

    The same arguments give the same scene on every machine, and scene ``index`` does not depend on how many
    others are made.

    Args:
        seed: the world; any non-negative integer.
        index: which video of it.
        split: ``train`` and ``val`` never contain a held-out combination; ``test`` does.
        seconds: shortest and longest duration.

    Raises:
        ValueError: for an unknown split, a negative seed, or durations under 20 s or out of order.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must be 0 or more, got {seed} and {index}")
    shortest, longest = seconds
    if not 20 <= shortest <= longest:
        raise ValueError(f"seconds must be (shortest, longest) with 20 <= shortest <= longest, got {seconds}")
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    clips = int(rng.integers(math.ceil(shortest / CLIP_SECONDS), math.floor(longest / CLIP_SECONDS) + 1))
    duration = clips * CLIP_SECONDS
    combinations = _sample_cast(rng, split)
    distractors = _sample_distractors(rng, combinations, clips)
    events = _schedule(rng, combinations, clips, distractors)
    return Scene(
        vid=f"shapes_{split}_{seed}_{index:05d}",
        split=split,
        duration=duration,
        events=tuple(sorted(events, key=lambda e: (e.start, e.end))),
        distractors=distractors,
        background_seed=int(rng.integers(2**31)),
        noise=float(rng.uniform(1.0, 5.0)),
        drift=(float(rng.uniform(0.0, 0.06)), float(rng.uniform(20, 40)), float(rng.uniform(15, 30))),
    )


def _sample_cast(rng: np.random.Generator, split: str) -> list[Combination]:
    """The combinations that occur, most wanted first: the cube, then up to three from elsewhere."""
    while True:
        colours = rng.choice(list(COLOURS), size=2, replace=False)
        shapes = rng.choice(SHAPES, size=2, replace=False)
        actions = rng.choice(ACTIONS, size=2, replace=False)
        cube = [(str(c), str(s), str(a)) for c in colours for s in shapes for a in actions]
        unseen = sum(c in HELD_OUT for c in cube)
        if (split == "test" and unseen) or (split != "test" and not unseen):
            break
    # Held-out ones first, so that they are scheduled even where time is short.
    order = sorted(rng.permutation(len(cube)).tolist(), key=lambda i: cube[i] not in HELD_OUT)
    cast = [cube[i] for i in order]
    for _ in range(int(rng.integers(0, 4))):
        extra = (str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES)), str(rng.choice(ACTIONS)))
        if extra not in cast and (split == "test" or extra not in HELD_OUT):
            cast.append(extra)
    return cast


def _sample_clips(rng: np.random.Generator) -> int:
    """The length of one event in clips: short (< 10 s), middle, long (> 30 s) in the ratio 45 : 37 : 18."""
    kind = rng.random()
    if kind < 0.45:
        return int(rng.integers(1, 5))
    if kind < 0.82:
        return int(rng.integers(5, 15))
    return int(rng.integers(16, 26))


def _schedule(
    rng: np.random.Generator, cast: list[Combination], clips: int, distractors: tuple[Thing, ...]
) -> list[Thing]:
    """Place every combination once to three times on two lanes, so that at most two events run at once."""
    lanes: tuple[list[Thing], list[Thing]] = ([], [])
    room = [clips, math.ceil(clips * 0.6)]  # clips left in each lane; the second is mostly empty
    wanted = [(combination, _sample_clips(rng)) for combination in cast]
    for combination in cast:
        for _ in range(int(rng.choice(3, p=[0.62, 0.26, 0.12]))):
            wanted.append((combination, _sample_clips(rng)))
    # First occurrences come first in `wanted`: each must keep at least one clip and a gap.
    planned: tuple[list[tuple[Combination, int]], list[tuple[Combination, int]]] = ([], [])
    for position, (combination, length) in enumerate(wanted):
        lane = int(np.argmax(room)) if rng.random() < 0.8 else int(rng.integers(2))
        reserve = 3 * max(0, math.ceil((len(cast) - position - 1) / 2))
        available = room[lane] - reserve - 1
        if available < 1:
            lane = int(np.argmax(room))
            available = room[lane] - reserve - 1
        if available < 1:
            if position < len(cast) and room[lane] > 1:
                available = 1
            else:
                continue
        length = min(length, available)
        planned[lane].append((combination, length))
        room[lane] -= length + 1
    for lane, plan in enumerate(planned):
        _place(rng, plan, clips, lanes[lane], others=[*distractors, *(lanes[0] if lane else [])])
    return [*lanes[0], *lanes[1]]


def _place(
    rng: np.random.Generator,
    plan: list[tuple[Combination, int]],
    clips: int,
    lane: list[Thing],
    others: list[Thing],
) -> None:
    """Spread the planned events over one lane in random order, with random gaps of at least one clip."""
    order = rng.permutation(len(plan))
    spare = clips - sum(length for _, length in plan) - max(0, len(plan) - 1)
    cuts = np.sort(rng.integers(0, max(spare, 0) + 1, size=len(plan)))
    used = 0
    for slot, index in enumerate(order):
        combination, length = plan[int(index)]
        first = used + slot + int(cuts[slot])
        used += length
        start, end = first * CLIP_SECONDS, (first + length) * CLIP_SECONDS
        around = [o for o in others if o.start < end and o.end > start]
        lane.append(_thing(rng, combination[0], combination[1], combination[2], start, end, around))


def _sample_distractors(rng: np.random.Generator, cast: list[Combination], clips: int) -> tuple[Thing, ...]:
    """None to two resting things, each there for at least a quarter of the video, drawn below the events.

    Half of them look exactly like a thing of the cast: only what it does tells them apart.
    """
    distractors: list[Thing] = []
    for _ in range(int(rng.integers(0, 3))):
        colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
        if rng.random() < 0.5:
            colour, shape, _ = cast[int(rng.integers(len(cast)))]
        length = int(rng.integers(clips // 4, clips + 1))
        first = int(rng.integers(0, clips - length + 1))
        start, end = first * CLIP_SECONDS, (first + length) * CLIP_SECONDS
        distractors.append(_thing(rng, colour, shape, None, start, end, distractors))
    return tuple(distractors)


def _thing(
    rng: np.random.Generator,
    colour: str,
    shape: str,
    action: str | None,
    start: float,
    end: float,
    around: list[Thing],
) -> Thing:
    radius = float(rng.uniform(0.10, 0.17)) * (0.8 if action is None else 1.0)
    low, high = 0.2, 0.8
    for _ in range(20):
        x, y = float(rng.uniform(low, high)), float(rng.uniform(low, high))
        if action == "bounce":
            y = float(rng.uniform(0.5, 0.82))
        if all(math.hypot(x - o.x, y - o.y) > 0.38 for o in around):
            break
    shortest, longest = _PERIODS[action] if action else (1.0, 1.0)
    r, g, b = (float(v) for v in rng.normal(0.0, 6.0, size=3))
    return Thing(
        colour=colour,
        shape=shape,
        action=action,
        start=start,
        end=end,
        x=x,
        y=y,
        radius=radius,
        angle=float(rng.uniform(-0.35, 0.35)),
        period=float(rng.uniform(shortest, longest)),
        clockwise=bool(rng.random() < 0.5),
        tint=(r, g, b),
    )
