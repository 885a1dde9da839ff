"""English for the shapes world: several phrasings for every colour, shape and action.

A query names an action and, mostly, a colour and a shape. Some queries leave out one of the two ("something red spins",
"a square goes up"). :func:`phrase` writes one query.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np

_T = TypeVar("_T")

COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red",),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "cyan": ("cyan", "turquoise"),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
}
SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "wedge"),
    "star": ("star",),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop", "donut"),
}
ANY_SHAPE_WORDS: tuple[str, ...] = ("shape", "object", "thing")
ACTION_WORDS: dict[str, tuple[tuple[str, str], ...]] = {
    # (third person, -ing form)
    "left": (
        ("moves left", "moving left"),
        ("goes to the left", "going to the left"),
        ("slides left", "sliding left"),
        ("travels leftwards", "travelling leftwards"),
    ),
    "right": (
        ("moves right", "moving right"),
        ("goes to the right", "going to the right"),
        ("slides right", "sliding right"),
        ("travels rightwards", "travelling rightwards"),
    ),
    "up": (
        ("moves up", "moving up"),
        ("rises", "rising"),
        ("goes upwards", "going upwards"),
        ("climbs", "climbing"),
    ),
    "down": (
        ("moves down", "moving down"),
        ("falls", "falling"),
        ("goes downwards", "going downwards"),
        ("sinks", "sinking"),
    ),
    "grow": (
        ("grows", "growing"),
        ("gets bigger", "getting bigger"),
        ("expands", "expanding"),
    ),
    "shrink": (
        ("shrinks", "shrinking"),
        ("gets smaller", "getting smaller"),
        ("contracts", "contracting"),
    ),
    "spin": (
        ("spins", "spinning"),
        ("rotates", "rotating"),
        ("turns around", "turning around"),
    ),
    "blink": (
        ("blinks", "blinking"),
        ("flashes", "flashing"),
        ("flickers on and off", "flickering on and off"),
    ),
    "bounce": (
        ("bounces", "bouncing"),
        ("hops", "hopping"),
        ("jumps up and down", "jumping up and down"),
    ),
    "shake": (
        ("shakes", "shaking"),
        ("wiggles", "wiggling"),
        ("trembles from side to side", "trembling from side to side"),
    ),
}


def phrase(rng: np.random.Generator, *, action: str, colour: str | None = None, shape: str | None = None) -> str:
    """Write one English query for an action. It names the colour and the shape if they are given."""
    third, ing = _pick(rng, ACTION_WORDS[action])
    adjective = _pick(rng, COLOUR_WORDS[colour]) if colour else None
    if shape is None:
        if rng.random() < 0.6:
            subject = f"something {adjective}" if adjective else "something"
            return _pick(rng, (f"{subject} {third}", f"{subject} is {ing}", f"{subject} {ing}"))
        noun = _pick(rng, ANY_SHAPE_WORDS)
    else:
        noun = _pick(rng, SHAPE_WORDS[shape])
    name = f"{adjective} {noun}" if adjective else noun
    article = "an" if name[0] in "aeiou" else "a"
    forms = [
        f"{article} {name} {third}",
        f"{article} {name} is {ing}",
        f"the {name} {third}",
        f"{article} {name} that {third}",
        f"{name} {ing}",
        f"there is {article} {name} {ing}",
    ]
    if adjective:
        forms.append(f"{'an' if noun[0] in 'aeiou' else 'a'} {noun} that is {adjective} {third}")
    return _pick(rng, tuple(forms))


def _pick(rng: np.random.Generator, options: tuple[_T, ...]) -> _T:
    return options[int(rng.integers(len(options)))]
