"""The rules of the shapes world: its colours, shapes and actions, and the events of one video.

A *scene* is the script of one synthetic video: a background, a slowly drifting camera, resting distractors and a list
of events. An *event* is one object (colour, shape) with one action, from ``start`` to ``end``; outside its events an
object is invisible. This module samples scenes, and :mod:`sidelight.shapes.render` draws them.

Each scene is built around a *cube*: two colours x two shapes x two actions. All eight combinations occur. So for each
queried combination, the video also holds the same shape and action in another colour, the same colour and shape with
another action, and the same colour and action with another shape.

Coordinates are fractions of the frame's side (x to the right, y down); times are in seconds, angles in radians.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from sidelight.core.timeline import Timeline, clips_to_seconds, seconds_to_clips

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
ATTRIBUTES: tuple[tuple[str, ...], ...] = (tuple(COLOURS), SHAPES, ACTIONS)
"""The values of the three attributes of a combination."""
SPLITS: tuple[str, ...] = ("train", "val", "test")

CLIP_SECONDS = 2.0
MAX_WINDOW_SECONDS = 50.0
MAX_WINDOWS = 3

Combination = tuple[str, str, str]
"""(colour, shape, action)"""


def held_out_combinations() -> frozenset[Combination]:
    """Return the 10 % of all combinations that occur only in the test split, the same for every seed."""
    combinations = list(itertools.product(COLOURS, SHAPES, ACTIONS))
    chosen = np.random.default_rng(2025).choice(len(combinations), size=len(combinations) // 10, replace=False)
    return frozenset(combinations[int(i)] for i in chosen)


HELD_OUT = held_out_combinations()


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object on the screen. The object moves around its place and its angle."""

    colour: str
    shape: str
    action: str | None
    """One of ACTIONS; None for an object that rests."""
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
    """Added to the RGB values of the colour."""

    @property
    def combination(self) -> Combination | None:
        """Return (colour, shape, action); None for an object that rests."""
        return None if self.action is None else (self.colour, self.shape, self.action)


@dataclass(frozen=True, kw_only=True)
class State:
    """Place and size of a thing at one instant. ``opacity`` 0 means that the thing is invisible."""

    x: float
    y: float
    radius: float
    angle: float
    opacity: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The script of one video: events are things with an action, distractors are things that rest."""

    vid: str
    split: str
    duration: float
    """Length in seconds, a multiple of CLIP_SECONDS."""
    events: tuple[Thing, ...]
    distractors: tuple[Thing, ...]
    background_seed: int
    noise: float
    """Standard deviation of the pixel noise, in units of 0 to 255."""
    drift: tuple[float, float, float]
    """Amplitude (fraction of the frame) and the two periods (seconds) of the camera's drift."""

    @property
    def timeline(self) -> Timeline:
        """Return the timeline of the annotated clips."""
        return Timeline(duration=self.duration, clip_seconds=CLIP_SECONDS)


_FADE_SECONDS = 0.15
_MARGIN = 1.2  # radii beyond the edge; a moving thing leaves the frame entirely before it re-enters


def state_at(thing: Thing, seconds: float) -> State:
    """Return the state of a thing at a time; the opacity is 0 outside [start, end)."""
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
    # Slow enough that four frames a second show every action without aliasing.
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

    The same arguments give the same scene on every machine. A scene does not depend on the number of scenes made.

    Args:
        seed: number of the world, 0 or more.
        index: number of the video, 0 or more.
        split: ``train`` and ``val`` never contain a held-out combination; ``test`` does.
        seconds: shortest and longest duration in seconds.

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
    fewest, most = (seconds_to_clips(limit, CLIP_SECONDS) for limit in seconds)
    clips = int(rng.integers(math.ceil(fewest), math.floor(most) + 1))
    combinations = _sample_cast(rng, split)
    distractors = _sample_distractors(rng, combinations, clips)
    events = _schedule(rng, combinations, clips, distractors)
    return Scene(
        vid=f"shapes_{split}_{seed}_{index:05d}",
        split=split,
        duration=clips_to_seconds(float(clips), CLIP_SECONDS),
        events=tuple(sorted(events, key=lambda e: (e.start, e.end))),
        distractors=distractors,
        background_seed=int(rng.integers(2**31)),
        noise=float(rng.uniform(1.0, 5.0)),
        drift=(float(rng.uniform(0.0, 0.06)), float(rng.uniform(20, 40)), float(rng.uniform(15, 30))),
    )


def _sample_cast(rng: np.random.Generator, split: str) -> list[Combination]:
    """Sample the combinations of a scene, the most important first: the cube, then up to three others."""
    while True:
        colours = rng.choice(list(COLOURS), size=2, replace=False)
        shapes = rng.choice(SHAPES, size=2, replace=False)
        actions = rng.choice(ACTIONS, size=2, replace=False)
        cube = [(str(c), str(s), str(a)) for c in colours for s in shapes for a in actions]
        unseen = sum(c in HELD_OUT for c in cube)
        if (split == "test" and unseen) or (split != "test" and not unseen):
            break
    # Held-out combinations first, so that they are scheduled even if time is short.
    order = sorted(rng.permutation(len(cube)).tolist(), key=lambda i: cube[i] not in HELD_OUT)
    cast = [cube[i] for i in order]
    for _ in range(int(rng.integers(0, 4))):
        extra = (str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES)), str(rng.choice(ACTIONS)))
        if extra not in cast and (split == "test" or extra not in HELD_OUT):
            cast.append(extra)
    return cast


def _sample_length(rng: np.random.Generator) -> int:
    """Sample the length of an event in clips: short (< 10 s), middle, long (> 30 s) in the ratio 45 : 37 : 18."""
    share = rng.random()
    if share < 0.45:
        return int(rng.integers(1, 5))
    if share < 0.82:
        return int(rng.integers(5, 15))
    return int(rng.integers(16, 26))


def _schedule(
    rng: np.random.Generator, cast: list[Combination], clips: int, distractors: tuple[Thing, ...]
) -> list[Thing]:
    """Place every combination one to three times on two lanes, so that at most two events run at the same time."""
    lanes: tuple[list[Thing], list[Thing]] = ([], [])
    room = [clips, math.ceil(clips * 0.6)]  # clips left in each lane; the second is mostly empty
    requested = [(combination, _sample_length(rng)) for combination in cast]
    for combination in cast:
        for _ in range(int(rng.choice(3, p=[0.62, 0.26, 0.12]))):
            requested.append((combination, _sample_length(rng)))
    # The first occurrences come first in `requested`; each of them must keep at least one clip and a gap.
    planned: tuple[list[tuple[Combination, int]], list[tuple[Combination, int]]] = ([], [])
    for position, (combination, length) in enumerate(requested):
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
    """Append the planned events to a lane in random order, with random gaps of at least one clip."""
    order = rng.permutation(len(plan))
    spare = clips - sum(length for _, length in plan) - max(0, len(plan) - 1)
    cuts = np.sort(rng.integers(0, max(spare, 0) + 1, size=len(plan)))
    used = 0
    for slot, index in enumerate(order):
        combination, length = plan[int(index)]
        first = used + slot + int(cuts[slot])
        used += length
        start, end = _seconds(first, first + length)
        neighbours = [thing for thing in others if thing.start < end and thing.end > start]
        lane.append(_sample_thing(rng, *combination, start, end, neighbours))


def _sample_distractors(rng: np.random.Generator, cast: list[Combination], clips: int) -> tuple[Thing, ...]:
    """Sample zero to two resting things, each visible for at least a quarter of the video, drawn below the events.

    Half of the distractors look exactly like a thing of the cast; only the action tells the two apart.
    """
    distractors: list[Thing] = []
    for _ in range(int(rng.integers(0, 3))):
        colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
        if rng.random() < 0.5:
            colour, shape, _ = cast[int(rng.integers(len(cast)))]
        length = int(rng.integers(clips // 4, clips + 1))
        first = int(rng.integers(0, clips - length + 1))
        distractors.append(_sample_thing(rng, colour, shape, None, *_seconds(first, first + length), distractors))
    return tuple(distractors)


def _seconds(first_clip: int, end_clip: int) -> tuple[float, float]:
    return clips_to_seconds(float(first_clip), CLIP_SECONDS), clips_to_seconds(float(end_clip), CLIP_SECONDS)


def _sample_thing(
    rng: np.random.Generator,
    colour: str,
    shape: str,
    action: str | None,
    start: float,
    end: float,
    neighbours: list[Thing],
) -> Thing:
    """Sample a thing that keeps away from its neighbours, if 20 attempts suffice."""
    radius = float(rng.uniform(0.10, 0.17)) * (0.8 if action is None else 1.0)
    low, high = 0.2, 0.8
    for _ in range(20):
        x, y = float(rng.uniform(low, high)), float(rng.uniform(low, high))
        if action == "bounce":
            y = float(rng.uniform(0.5, 0.82))
        if all(math.hypot(x - o.x, y - o.y) > 0.38 for o in neighbours):
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
