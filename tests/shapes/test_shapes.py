"""Tests of the shapes world: rules, queries, drawing, and writing a world."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest

from sidelight.data.annotations import read_annotations
from sidelight.shapes import make_world
from sidelight.shapes.generate import absent_queries, annotate, join_windows
from sidelight.shapes.language import ACTION_WORDS, SHAPE_WORDS, phrase
from sidelight.shapes.render import Painter, visibility
from sidelight.shapes.world import (
    ACTIONS,
    COLOURS,
    HELD_OUT,
    MAX_WINDOW_SECONDS,
    MAX_WINDOWS,
    SHAPES,
    Scene,
    Thing,
    sample_scene,
    state_at,
)
from sidelight.video.read import frames_at, probe

SCENES = {split: [sample_scene(seed=3, index=i, split=split) for i in range(30)] for split in ("train", "val", "test")}
ALL_SCENES = [scene for scenes in SCENES.values() for scene in scenes]


@pytest.mark.parametrize(
    ("windows", "merged"),
    [
        ([], []),
        ([(0, 2)], [(0, 2)]),
        ([(4, 6), (0, 2)], [(0, 2), (4, 6)]),
        ([(0, 2), (2, 4)], [(0, 4)]),
        ([(0, 10), (2, 4), (8, 12)], [(0, 12)]),
    ],
)
def test_join_windows(windows: list[tuple[float, float]], merged: list[tuple[float, float]]) -> None:
    assert join_windows(windows) == merged


def test_the_vocabulary_has_its_size() -> None:
    assert len(COLOURS) == 8 and len(SHAPES) >= 5 and len(ACTIONS) >= 8
    assert all(len(words) >= 3 for words in ACTION_WORDS.values())
    assert len(HELD_OUT) == len(COLOURS) * len(SHAPES) * len(ACTIONS) // 10
    # Each attribute alone does occur in training.
    seen = set(itertools.product(COLOURS, SHAPES, ACTIONS)) - HELD_OUT
    assert {c for c, _, _ in seen} == set(COLOURS) and {a for _, _, a in seen} == set(ACTIONS)


def test_scenes_are_deterministic_and_independent_of_how_many_there_are() -> None:
    assert sample_scene(seed=3, index=7) == SCENES["train"][7]
    assert sample_scene(seed=4, index=7) != SCENES["train"][7]
    assert sample_scene(seed=3, index=7, split="val").events != SCENES["train"][7].events


def test_durations_and_at_most_two_events_at_once() -> None:
    for scene in ALL_SCENES:
        assert 60 <= scene.duration <= 150
        assert all(0 <= e.start < e.end <= scene.duration for e in scene.events)
        for clip in range(int(scene.duration // 2)):
            assert sum(e.start <= clip * 2 < e.end for e in scene.events) <= 2
    assert any(a.start < b.end and b.start < a.end for s in ALL_SCENES for a, b in itertools.combinations(s.events, 2))


def test_held_out_combinations_occur_in_the_test_split_only() -> None:
    for split, scenes in SCENES.items():
        has_held_out = [any(e.combination in HELD_OUT for e in scene.events) for scene in scenes]
        assert all(has_held_out) if split == "test" else not any(has_held_out)


def test_every_query_has_hard_negatives_and_true_windows() -> None:
    for index, scene in enumerate(SCENES["test"]):
        rows = annotate(scene, seed=3, index=index)
        assert rows
        for row in rows:
            attributes = [row.extra[k] for k in ("colour", "shape", "action")]
            events = [e.combination for e in scene.events]
            for position in range(3):
                if attributes[position] is None:
                    continue
                # Something in the video differs in exactly this attribute.
                assert any(
                    all(
                        (a is None or (a == b) != (i == position))
                        for i, (a, b) in enumerate(zip(attributes, e or (), strict=True))
                    )
                    for e in events
                ), (row.query, attributes)
            assert 1 <= len(row.relevant_windows) <= MAX_WINDOWS
            assert all(2 <= end - start <= MAX_WINDOW_SECONDS for start, end in row.relevant_windows)
            # The windows cover exactly the clips in which a matching event runs.
            for clip in range(int(scene.duration // 2)):
                running = any(
                    e.start <= clip * 2 < e.end
                    and all(a is None or a == b for a, b in zip(attributes, e.combination or (), strict=True))
                    for e in scene.events
                )
                assert running == (clip in row.relevant_clip_ids)


def test_moments_of_all_lengths_and_ratings_of_all_kinds_occur() -> None:
    rows = [r for i, s in enumerate(SCENES["train"]) for r in annotate(s, seed=3, index=i)]
    lengths = np.array([end - start for r in rows for start, end in r.relevant_windows])
    assert (lengths < 10).mean() > 0.2 and (lengths > 30).mean() > 0.05
    assert ((lengths >= 10) & (lengths <= 30)).mean() > 0.2
    ratings = np.array([s for r in rows for s in r.saliency_scores])
    assert ratings.shape[1] == 3 and ratings.min() >= 0 and ratings.max() == 4
    assert (ratings.std(1) > 0).mean() > 0.3  # raters disagree
    assert {len(r.relevant_windows) for r in rows} == {1, 2, 3}
    assert any(r.extra["colour"] is None for r in rows) and any(r.extra["shape"] is None for r in rows)


@pytest.mark.parametrize("split", ["val", "test"])
def test_absent_queries_are_neighbours_of_events_and_never_true(split: str) -> None:
    count = 0
    for index in range(20):
        scene = sample_scene(seed=3, index=index, split=split)
        present = {e.combination for e in scene.events}
        for row in absent_queries(scene, seed=3, index=index, count=4):
            combination = (row.extra["colour"], row.extra["shape"], row.extra["action"])
            assert combination not in present
            assert row.relevant_windows == ()
            assert any(sum(a != b for a, b in zip(combination, c, strict=True)) == 1 for c in present if c)
            assert split == "test" or combination not in HELD_OUT
            count += 1
    assert count == 80
    assert absent_queries(scene, seed=3, index=index, count=0) == []


def test_phrases_name_the_given_attributes_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    sentences = {phrase(rng, action="spin", colour="red", shape="square") for _ in range(200)}
    assert len(sentences) > 20 and all("red" in q for q in sentences)
    assert all(any(w in q for w in SHAPE_WORDS["square"]) for q in sentences)
    without_shape = {phrase(rng, action="spin", colour="red") for _ in range(100)}
    assert not any(w in q.split() for q in without_shape for words in SHAPE_WORDS.values() for w in words)
    assert phrase(rng, action="grow", colour="orange", shape="star").count("a orange") == 0


def _thing(action: str | None, shape: str = "square") -> Thing:
    return Thing(
        colour="red",
        shape=shape,
        action=action,
        start=0,
        end=8,
        x=0.5,
        y=0.6,
        radius=0.15,
        angle=0.0,
        period=2.0,
    )


@pytest.mark.parametrize("action", ACTIONS)
def test_each_action_changes_the_state_in_its_own_way(action: str) -> None:
    states = [state_at(_thing(action), 0.5 + t / 10) for t in range(20)]
    moved = {name: len({round(getattr(s, name), 6) for s in states}) > 1 for name in ("x", "y", "radius", "angle")}
    moved["opacity"] = any(s.opacity == 0 for s in states)
    changing = {
        "left": "x", "right": "x", "shake": "x", "up": "y", "down": "y", "bounce": "y",
        "grow": "radius", "shrink": "radius", "spin": "angle", "blink": "opacity",
    }[action]  # fmt: skip
    assert [name for name, yes in moved.items() if yes] == [changing]


def test_a_thing_is_invisible_outside_its_time() -> None:
    assert state_at(_thing("spin"), -0.1).opacity == 0 == state_at(_thing("spin"), 8.0).opacity
    assert state_at(_thing(None), 4.0).opacity == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_is_drawn_in_its_colour(shape: str) -> None:
    scene = SCENES["train"][0]
    empty = Painter(_only(scene), 128).frame(4.0).astype(int)
    drawn = Painter(_only(scene, _thing(None, shape)), 128).frame(4.0).astype(int)
    changed = np.abs(drawn - empty).max(-1) > 8
    rows, columns = np.nonzero(changed)
    area = changed.sum() / (np.pi * (0.15 * 128) ** 2)
    assert 0.3 < area < 1.1
    assert abs(columns.mean() / 128 - 0.5) < 0.03 and abs(rows.mean() / 128 - 0.6) < 0.05
    assert (drawn[changed][:, 0] > drawn[changed][:, 2] + 30).mean() > 0.6


def _only(scene: Scene, *things: Thing) -> Scene:
    return dataclasses.replace(scene, events=things, distractors=())


def test_a_turned_circle_can_be_seen_to_turn() -> None:
    painter = Painter(_only(SCENES["train"][0], _thing("spin", "circle")), 128)
    difference = np.abs(painter.frame(1.0).astype(int) - painter.frame(1.5).astype(int)).max(-1)
    assert (difference > 60).sum() > 20


def test_visibility_prefers_large_and_central() -> None:
    painter = Painter(SCENES["train"][0], 128)
    good = visibility(painter, dataclasses.replace(_thing(None), radius=0.17, x=0.5, y=0.5), 1)
    assert 0 < visibility(painter, dataclasses.replace(_thing(None), radius=0.1, x=0.2, y=0.2), 1) < good <= 1
    assert visibility(painter, _thing(None), 9) == 0


def test_a_world_is_watchable_complete_and_repeatable(tiny_world: Path, tmp_path: Path) -> None:
    rows = read_annotations(tiny_world / "annotations.jsonl")
    files = sorted((tiny_world / "videos").iterdir())
    assert {r.vid for r in rows} == {f.stem for f in files} and len(files) == 3
    info = probe(files[0])
    assert info.codec == "h264" and info.width == info.height == 128 and info.pixel_format == "yuv420p"
    assert info.duration == next(r.duration for r in rows if r.vid == files[0].stem)
    repeated = make_world(tmp_path, videos=1, seed=11, seconds=(20, 26), side=128, absent=2)
    assert read_annotations(tmp_path / "with-absent.jsonl")[: len(repeated)] == repeated
    assert len(read_annotations(tmp_path / "with-absent.jsonl")) == len(repeated) + 2
    assert repeated == [r for r in rows if r.vid == files[0].stem]
    assert _digest(tmp_path / "videos" / files[0].name) == _digest(files[0])
    # The frame in the file is the frame that was drawn, except for compression.
    scene = sample_scene(seed=11, index=0, seconds=(20, 26))
    (frame,) = frames_at(files[0], [5.0])
    assert np.abs(frame.image.astype(int) - Painter(scene, 128).frame(5.0)).mean() < 6


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_interrupted_world_goes_on(tmp_path: Path) -> None:
    make_world(tmp_path, videos=1, seed=1, seconds=(20, 20), side=128)
    kept = tmp_path / "videos" / "shapes_train_1_00000.mp4"
    kept.write_bytes(b"kept")
    make_world(tmp_path, videos=2, seed=1, seconds=(20, 20), side=128)
    assert kept.read_bytes() == b"kept" and len(list((tmp_path / "videos").iterdir())) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"videos": 0}, "videos"),
        ({"absent": -1}, "absent"),
        ({"side": 127}, "side"),
        ({"side": 64}, "side"),
        ({"split": "dev"}, "split"),
        ({"seed": -1}, "seed"),
        ({"seconds": (90, 60)}, "seconds"),
        ({"seconds": (2, 60)}, "seconds"),
    ],
)
def test_wrong_arguments_are_named(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_world(tmp_path, **{"videos": 1, **options})  # type: ignore[arg-type]
