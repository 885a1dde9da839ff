"""Pixels of the shapes world: the frame of a scene at a time, and the visibility of a thing in a clip.

Legend: S side of the square frame in pixels.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sidelight.core.timeline import clips_to_seconds
from sidelight.shapes.world import CLIP_SECONDS, COLOURS, Scene, State, Thing, state_at

Floats = npt.NDArray[np.float32]

_NOISE_FIELDS = 8


class Painter:
    """A painter of the frames of one scene.

    Args:
        scene: the scene.
        side: width and height of a frame in pixels.
    """

    def __init__(self, scene: Scene, side: int) -> None:
        self.scene, self.side = scene, side
        rng = np.random.default_rng(scene.background_seed)
        self._reach = math.ceil(scene.drift[0] * side) + 2
        self._texture = _texture(rng, side + 2 * self._reach)
        self._noise_seed = int(rng.integers(2**31))

    @cached_property
    def _noise(self) -> Floats:
        """Return the noise fields (fields, S, S, 1), computed for the first frame; annotations do not need them."""
        shape = (_NOISE_FIELDS, self.side, self.side, 1)
        rng = np.random.default_rng(self._noise_seed)
        noise: Floats = rng.standard_normal(shape, dtype=np.float32) * np.float32(self.scene.noise)
        return noise

    def frame(self, seconds: float) -> npt.NDArray[np.uint8]:
        """Return the frame at a time: uint8 RGB (S, S, 3)."""
        image = self._background(seconds)
        for thing in (*self.scene.distractors, *self.scene.events):
            if thing.start <= seconds < thing.end:
                state = state_at(thing, seconds)
                if state.opacity > 0:
                    _draw(image, thing, state)
        # The time alone chooses the noise field, so a frame does not depend on other frames.
        step = round(seconds * 1000)
        image += self._noise[(step * 2654435761 >> 7) % _NOISE_FIELDS]
        return np.clip(image, 0, 255).astype(np.uint8)

    def _background(self, seconds: float) -> Floats:
        """Return the part of the texture that the drifting camera shows at a time."""
        amplitude, period_x, period_y = self.scene.drift
        dx = self._reach + amplitude * self.side * math.sin(2 * math.pi * seconds / period_x)
        dy = self._reach + amplitude * self.side * math.sin(2 * math.pi * seconds / period_y)
        x, y = int(dx), int(dy)
        fx, fy = np.float32(dx - x), np.float32(dy - y)
        patch = self._texture[y : y + self.side + 1, x : x + self.side + 1]
        rows = patch[:-1] * (1 - fy) + patch[1:] * fy
        blended: Floats = rows[:, :-1] * (1 - fx) + rows[:, 1:] * fx
        return blended

    def contrast(self, colour: str) -> float:
        """Return how far a colour stands out from the mean of the background, 0 to 1."""
        mean = self._texture.reshape(-1, 3).mean(0)
        distance = float(np.linalg.norm(np.asarray(COLOURS[colour], np.float32) - mean))
        return min(1.0, distance / 220.0)


def _texture(rng: np.random.Generator, side: int) -> Floats:
    """Return a dull, smooth texture: three octaves of interpolated noise around a muted base colour."""
    base = rng.uniform(70, 170) + rng.uniform(-18, 18, size=3)
    grain = np.zeros((side, side, 1), np.float32)
    for cells, strength in ((4, 16.0), (9, 9.0), (24, 5.0)):
        coarse = rng.normal(0.0, strength, size=(cells + 1, cells + 1)).astype(np.float32)
        grain += _stretch(coarse, side)[..., None]
    return np.asarray(base, np.float32) + grain


def _stretch(coarse: Floats, side: int) -> Floats:
    """Interpolate a small square array to (side, side), bilinearly."""
    positions = np.linspace(0, coarse.shape[0] - 1, side, dtype=np.float32)
    low = np.minimum(positions.astype(int), coarse.shape[0] - 2)
    part = positions - low
    rows = coarse[low] * (1 - part)[:, None] + coarse[low + 1] * part[:, None]
    stretched: Floats = rows[:, low] * (1 - part) + rows[:, low + 1] * part
    return stretched


def _draw(image: Floats, thing: Thing, state: State) -> None:
    """Paint one thing over the image, antialiased by its signed distance."""
    side = image.shape[0]
    radius = state.radius * side
    reach = radius * 1.25 + 1
    left, right = max(0, int(state.x * side - reach)), min(side, int(state.x * side + reach) + 1)
    top, bottom = max(0, int(state.y * side - reach)), min(side, int(state.y * side + reach) + 1)
    if left >= right or top >= bottom:
        return
    x = (np.arange(left, right, dtype=np.float32) + 0.5 - state.x * side) / radius
    y = (np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5 - state.y * side) / radius
    cos, sin = math.cos(state.angle), math.sin(state.angle)
    u, v = cos * x + sin * y, cos * y - sin * x
    body = np.clip(0.5 - _distance(thing.shape, u, v) * radius, 0, 1)[..., None] * np.float32(state.opacity)
    colour = np.clip(np.asarray(COLOURS[thing.colour], np.float32) + thing.tint, 0, 255).astype(np.float32)
    # The mark makes a turn visible, even on a circle.
    offset, size = _MARKS[thing.shape]
    mark = np.clip(0.5 - (np.sqrt(u * u + (v + offset) ** 2) - size) * radius, 0, 1)[..., None]
    dark = float(colour @ np.asarray([0.3, 0.59, 0.11], np.float32)) < 115
    paint = colour * (1 - mark) + np.float32(245.0 if dark else 25.0) * mark
    region = image[top:bottom, left:right]
    region += (paint - region) * body


_MARKS = {
    # shape: (distance of the mark from the centre, its radius), in radii
    "circle": (0.5, 0.22),
    "square": (0.45, 0.22),
    "triangle": (0.4, 0.22),
    "star": (0.45, 0.2),
    "cross": (0.62, 0.2),
    "ring": (0.7, 0.2),
}


def _distance(shape: str, u: Floats, v: Floats) -> Floats:
    """Return the signed distance, in radii, to the outline of a shape; negative inside. u, v broadcast to (H, W)."""
    distance: Floats
    match shape:
        case "circle":
            distance = np.sqrt(u * u + v * v) - np.float32(0.95)
        case "square":
            distance = np.maximum(np.abs(u), np.abs(v)) - np.float32(0.82)
        case "triangle":
            slanted = np.float32(math.sqrt(3) / 2) * np.abs(u) - np.float32(0.5) * v
            distance = np.maximum(slanted, v) - np.float32(0.58)
        case "star":
            distance = _star(u, v)
        case "cross":
            au, av = np.abs(u), np.abs(v)
            upright = np.maximum(au - np.float32(0.3), av - np.float32(1.0))
            lying = np.maximum(au - np.float32(1.0), av - np.float32(0.3))
            distance = np.minimum(upright, lying)
        case "ring":
            distance = np.abs(np.sqrt(u * u + v * v) - np.float32(0.72)) - np.float32(0.27)
        case _:
            raise ValueError(f"there is no shape {shape!r}; known are {', '.join(_MARKS)}")
    return distance


def _star(u: Floats, v: Floats) -> Floats:
    """Return the distance to a five-pointed star: fold the plane to half a point, and measure to its straight edge."""
    outer, inner, half = 1.18, 0.48, math.pi / 5
    length = np.sqrt(u * u + v * v)
    angle = np.abs((np.arctan2(u, -v) + half) % (2 * half) - half)
    px, py = length * np.cos(angle), length * np.sin(angle)
    ex, ey = inner * math.cos(half) - outer, inner * math.sin(half)
    norm = math.hypot(ex, ey)
    edge: Floats = ((px - outer) * ey - py * ex) / np.float32(norm)
    return edge


def visibility(painter: Painter, thing: Thing, clip: int) -> float:
    """Return how well a thing is seen during one clip, 0 to 1, by its size, its contrast and its place.

    The result is the mean over the instants, of eight, at which the thing is in the frame, times a factor from 1 (all
    eight) down towards 0.7 (few).
    """
    qualities = []
    contrast = painter.contrast(thing.colour)
    for part in range(8):
        state = state_at(thing, clips_to_seconds(clip + (part + 0.5) / 8, CLIP_SECONDS))
        reach = 0.5 * state.radius
        if state.opacity == 0 or not (-reach < state.x < 1 + reach and -reach < state.y < 1 + reach):
            continue
        size = min(1.0, state.radius / 0.17)
        central = 1.0 - min(1.0, math.hypot(state.x - 0.5, state.y - 0.5) / 0.7)
        qualities.append(0.4 * size + 0.3 * contrast + 0.3 * central)
    if not qualities:
        return 0.0
    # A thing that blinks or leaves the frame is seen less, but human raters forgive short absences.
    return sum(qualities) / len(qualities) * (0.7 + 0.3 * len(qualities) / 8)
