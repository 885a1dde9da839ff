"""Labels of clips of the shapes world, and sentences that are true or false of them.

Legend: C clips, F frames, S side in pixels, E events of a clip (at most 2), N sentences. Attributes are indices into
the colours, shapes and actions; -1 means "not named" in a sentence and "no event" in a clip.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sidelight.backbones.shapes.model import ShapesBackboneConfig
from sidelight.core.timeline import seconds_to_clips
from sidelight.shapes.language import phrase
from sidelight.shapes.render import Painter, visibility
from sidelight.shapes.world import ACTIONS, ATTRIBUTES, HELD_OUT, Scene

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The events of each clip, and how well each event is seen."""

    events: Ints
    """(C, 2, 3) attributes of up to two events."""
    visible: Floats
    """(C, 2) visibility of each event, 0 to 1."""

    def __len__(self) -> int:
        return len(self.events)

    def __getitem__(self, rows: Ints) -> Labels:
        return Labels(events=self.events[rows], visible=self.visible[rows])

    @classmethod
    def joined(cls, parts: list[Labels]) -> Labels:
        """Join the labels of several parts in their order."""
        return cls(events=np.concatenate([p.events for p in parts]), visible=np.concatenate([p.visible for p in parts]))


def label_clips(scene: Scene, model: ShapesBackboneConfig, painter: Painter | None = None) -> Labels:
    """Return the events of each clip of a scene and their visibility; -1 and 0 where there is no event."""
    painter = painter or Painter(scene, model.resolution)

    def clip_at(seconds: float) -> int:
        return round(seconds_to_clips(seconds, model.clip_seconds))

    clips = clip_at(scene.duration)
    events, visible = np.full((clips, 2, 3), -1), np.zeros((clips, 2), np.float32)
    for event in scene.events:
        assert event.combination is not None
        row = [table.index(name) for table, name in zip(ATTRIBUTES, event.combination, strict=True)]
        for clip in range(clip_at(event.start), clip_at(event.end)):
            slot = int(events[clip, 0, 0] >= 0)
            events[clip, slot] = row
            visible[clip, slot] = visibility(painter, event, clip)
    return Labels(events=events, visible=visible)


_MIRROR = np.array([*(ACTIONS.index({"left": "right", "right": "left"}.get(a, a)) for a in ACTIONS), -1])
"""Action -> the action seen in a mirror; the last entry maps -1 (no event) to itself."""


def mirrored(rng: np.random.Generator, frames_CFSS3: Pixels, events_CE3: Ints) -> tuple[Pixels, Ints]:
    """Return the clips with about half of them mirrored, so that left becomes right; all shapes are symmetric.

    A clip stays as it is if the mirror would make a combination of the test split.
    """
    frames, events = frames_CFSS3.copy(), events_CE3.copy()
    events[..., 2] = _MIRROR[events[..., 2]]
    for clip in range(len(frames)):
        if rng.random() < 0.5 and not any(_combination(row) in HELD_OUT for row in _present(events[clip])):
            frames[clip] = frames[clip, :, :, ::-1]
        else:
            events[clip] = events_CE3[clip]
    return frames, events


def matches(events_CE3: Ints, sentences_N3: Ints) -> Bools:
    """Return (C, N): whether each sentence is true of each clip, that is, of one of its events."""
    return np.asarray(event_matches(events_CE3, sentences_N3).any(1))


def event_matches(events_CE3: Ints, sentences_N3: Ints) -> Bools:
    """Return (C, E, N): whether each sentence is true of each event."""
    events, sentences = events_CE3[:, :, None, :], sentences_N3[None, None]
    same: Bools = (((events == sentences) | (sentences < 0)) & (events >= 0)).all(-1)
    return same


def _present(events_E3: Ints) -> Ints:
    """Return the events of one clip without the empty slots."""
    return events_E3[events_E3[:, 0] >= 0]


def _combination(row: Ints) -> tuple[str, ...]:
    return tuple(table[int(i)] for table, i in zip(ATTRIBUTES, row, strict=True))


_NEGATIVE_SHARES = (0.15, 0.7, 0.15)
"""Shares of false sentences that differ in colour, shape and action. Shapes are by far the hardest to tell apart."""


def sample_sentences(rng: np.random.Generator, events_CE3: Ints, negatives: int) -> tuple[list[str], Ints]:
    """Sample sentences for clips that each have an event.

    Returns:
        The sentences, and their attributes (N, 3). Each clip has one true sentence, then ``negatives`` sentences that
        differ in one attribute.
    """
    rows: list[Ints] = []
    for events_E3 in events_CE3:
        events = _present(events_E3)
        true = events[int(rng.integers(len(events)))].copy()
        false: list[Ints] = []
        while len(false) < negatives:
            row = true.copy()
            column = int(rng.choice(3, p=_NEGATIVE_SHARES))
            row[column] = rng.integers(len(ATTRIBUTES[column]))
            if _combination(row) not in HELD_OUT:
                false.append(row)
        if rng.random() < 0.15:
            true[0] = -1
        elif rng.random() < 0.15:
            true[1] = -1
        rows += [true, *false]
    return [make_sentence(rng, row) for row in rows], np.stack(rows)


_FILLERS = ("please", "find", "show", "video", "clip", "one", "xyz", "really", "big", "um", "then")


def make_sentence(rng: np.random.Generator, row: Ints) -> str:
    """Phrase one sentence. Some sentences get a word without meaning, so that the text tower learns to ignore it."""
    colour, shape, action = (table[int(i)] if i >= 0 else None for table, i in zip(ATTRIBUTES, row, strict=True))
    assert action is not None
    sentence = phrase(rng, action=action, colour=colour, shape=shape)
    if rng.random() < 0.15:
        words = sentence.split()
        words.insert(int(rng.integers(len(words) + 1)), _FILLERS[int(rng.integers(len(_FILLERS)))])
        sentence = " ".join(words)
    return sentence
