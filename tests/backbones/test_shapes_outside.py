"""Test which videos and queries the shapes backbone takes for its own."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from sidelight.backbones.protocol import LimitedBackbone
from sidelight.backbones.shapes.model import ShapesBackbone
from sidelight.backbones.shapes.outside import is_outside, query_doubt, video_doubt
from sidelight.shapes.language import ACTION_WORDS, phrase
from sidelight.shapes.render import Painter
from sidelight.shapes.world import COLOURS, SHAPES, sample_scene

VIDEOS = [
    "av1_video.mkv",
    "bt709_full_range.mp4",
    "charades_indoor.mp4",
    "corrupted.mp4",
    "flipping_a_pancake.mkv",
    "h264_10bits.mp4",
    "h265_video.mp4",
    "internvideo_example.mp4",
    "nasa_13013.mp4",
    "unordered.mov",
    "video_0.mov",
    "video_180.mov",
    "video_270.mov",
    "video_90.mov",
]


def test_the_backbone_knows_its_limits() -> None:
    assert isinstance(ShapesBackbone(), LimitedBackbone)


@pytest.mark.parametrize("name", VIDEOS)
def test_other_videos_are_outside(name: str, shared: Path) -> None:
    assert (video_doubt(shared / "videos" / name, "shapes") or "").startswith("the model shapes knows drawn shapes")


def test_videos_of_the_world_are_inside(tiny_world: Path) -> None:
    videos = sorted((tiny_world / "videos").iterdir())
    assert len(videos) == 3 and [video_doubt(video, "shapes") for video in videos] == [None] * 3


def test_100_scenes_of_the_world_are_inside() -> None:
    outside = []
    for index in range(100):
        scene = sample_scene(seed=90210, index=index, split="test", seconds=(20, 60))
        painter = Painter(scene, 128)  # the smallest side of a world's videos
        seconds = [(i + 0.5) / 8 * scene.duration for i in range(8)]
        frames = np.stack([painter.frame(second) for second in seconds]).reshape(8, 64, 2, 64, 2, 3)
        if is_outside(frames.mean((2, 4)).astype(np.uint8)):
            outside.append(index)
    assert outside == []


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((8, 64, 64, 3), np.uint8),
        np.full((8, 64, 64, 3), 120, np.uint8),
        np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), dtype=np.uint8),
        np.full((8, 64, 64, 3), (200, 60, 40), np.uint8),
    ],
    ids=["black", "grey", "noise", "red"],
)
def test_frames_without_a_scene_are_outside(frames: np.ndarray) -> None:
    assert is_outside(frames)


def test_no_sentence_of_the_world_has_unknown_words() -> None:
    rng = np.random.default_rng(0)
    choices = itertools.product(ACTION_WORDS, (None, *COLOURS), (None, *SHAPES))
    for action, colour, shape in choices:
        query = phrase(rng, action=action, colour=colour, shape=shape)
        assert query_doubt(query, "shapes") is None, query


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("", None),
        ("?!", None),
        ("The RED star, that spins!", None),
        ("a dog swims", "the words 'dog' and 'swims',"),
        ("a red dog, a blue dog", "the word 'dog',"),
        ("a grüner ★ spins", "the word 'grüner',"),
        ("please find the man who eats", "the words 'please', 'find', 'man', 'who' and 'eats',"),
    ],
)
def test_unknown_words_are_named_once(query: str, words: str | None) -> None:
    doubt = query_doubt(query, "shapes")
    assert doubt is None if words is None else doubt and f"never saw {words}" in doubt
