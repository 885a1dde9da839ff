"""Tell videos and queries that lie outside the shapes world, about which the embedded backbone knows nothing.

Legend: N frames, S side of a frame in cells.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sidelight.core.messages import and_list
from sidelight.shapes.language import ACTION_WORDS, ANY_SHAPE_WORDS, COLOUR_WORDS, SHAPE_WORDS
from sidelight.video.read import frames_at, probe

FRAMES = 8
"""Frames that are looked at, evenly spread over the video."""
_CELLS = 32
_SAME_TINT = 10.0
"""Largest difference of two colours' tints (R - G and B - G) that counts as the same tint, of 255."""
_SAME_LIGHT = 10.0
"""Largest difference in brightness between neighbouring cells of a smooth background."""
_VIVID = 40.0
"""Smallest difference in tint between a shape and the background."""

# Bounds of the test, with the extremes over 220 scenes of three worlds, 20 to 150 seconds long.
_MIN_BACKGROUND = 0.65  # 0.75
_MAX_TINT = 50.0  # 33
_LIGHT = (40.0, 205.0)  # 61 and 186
_MIN_VIVID = 0.001  # 0.006

_GRAMMAR = "something a an the is that there"
"""Words of the sentences of :func:`sidelight.shapes.language.phrase` that name nothing."""


def is_outside(frames_NSS3: npt.NDArray[np.uint8]) -> bool:
    """Check whether frames show something else than the shapes world.

    Every video of that world has one background: a dull, smooth texture whose light varies and whose tint does not
    (its three channels differ by two constants, in the whole video). A few vivid shapes stand before it. So the frames
    are of the world if

    - at least 65 % of their cells have the most usual tint and about the light of the cells beside them,
    - this tint is dull, and its light neither dark nor bright,
    - at least one cell in a thousand is vivid.

    All of 220 videos of the world pass, and none of 14 films and test patterns of other kinds: a real room has many
    tints, a night sky is dark, a page is white, and a plain wall has no vivid shapes. A drawn film that keeps to all
    three rules would pass too.

    Args:
        frames_NSS3: uint8 RGB frames of one video, with a side that is a multiple of 32.
    """
    count, side = frames_NSS3.shape[:2]
    step = side // _CELLS
    cells = frames_NSS3.reshape(count, _CELLS, step, _CELLS, step, 3).mean((2, 4))
    tint = np.stack([cells[..., 0] - cells[..., 1], cells[..., 2] - cells[..., 1]], -1)
    usual_tint = np.median(tint.reshape(-1, 2), axis=0)
    distance = np.abs(tint - usual_tint).max(-1)
    plain = distance < _SAME_TINT
    if not plain.any():
        return True
    light = cells.mean(-1)
    below, right = np.abs(np.diff(light, axis=1))[:, :, :-1], np.abs(np.diff(light, axis=2))[:, :-1]
    smooth = plain[:, :-1, :-1] & plain[:, 1:, :-1] & plain[:, :-1, 1:] & (np.maximum(below, right) < _SAME_LIGHT)
    low, high = _LIGHT
    is_world = (
        smooth.mean() >= _MIN_BACKGROUND
        and np.abs(usual_tint).max() <= _MAX_TINT
        and low <= np.median(light[plain]) <= high
        and (distance > _VIVID).mean() >= _MIN_VIVID
    )
    return not is_world


def video_doubt(video: str | Path, model: str) -> str | None:
    """Return a sentence if a video is outside the shapes world; None if it is of that world.

    Args:
        video: the file; eight frames are decoded.
        model: name of the model, for the sentence.
    """
    duration = probe(video).duration
    seconds = [(i + 0.5) / FRAMES * duration for i in range(FRAMES)]
    size = (2 * _CELLS, 2 * _CELLS)
    # Whoever reads the whole video reports its damage.
    images = [frame.image for frame in frames_at(video, seconds, size=size, on_damage=lambda message: None)]
    if images and not is_outside(np.stack(images)):
        return None
    return f"the model {model} knows drawn shapes only, and this video shows something else: the answer means nothing"


def query_doubt(query: str, model: str) -> str | None:
    """Return a sentence that names the words of a query that occur in no sentence of the shapes world; None if none.

    Args:
        query: the sentence.
        model: name of the model, for the sentence.
    """
    unknown = [word for word in dict.fromkeys(re.findall(r"[^\W_]+", query.lower())) if word not in known_words()]
    if not unknown:
        return None
    words = and_list([f"'{word}'" for word in unknown])
    return f"the model {model} never saw the word{'s' if unknown[1:] else ''} {words}, so its answer may mean nothing"


@cache
def known_words() -> frozenset[str]:
    """Return the words of all sentences of the shapes world."""
    phrases = [word for table in (COLOUR_WORDS, SHAPE_WORDS) for words in table.values() for word in words]
    phrases += [form for forms in ACTION_WORDS.values() for pair in forms for form in pair]
    return frozenset(word for phrase in (*phrases, *ANY_SHAPE_WORDS, _GRAMMAR) for word in phrase.split())
