"""Tests of the training of the embedded backbone: labels, losses, and a run that resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sidelight.backbones.shapes.labels import Labels, label_clips, matches, mirrored, sample_sentences
from sidelight.backbones.shapes.model import ShapesBackboneConfig, TwoTowers
from sidelight.backbones.shapes.pretrain import (
    PretrainConfig,
    contrastive_loss,
    load_clips,
    pretrain,
    validate,
    visibility_loss,
)
from sidelight.shapes.render import Painter, visibility
from sidelight.shapes.world import ACTIONS, COLOURS, HELD_OUT, SHAPES, sample_scene

SMALL = ShapesBackboneConfig(
    resolution=32, width=16, depth=2, heads=2, text_width=16, text_depth=2, text_heads=2, joint=8
)
NO_EVENT = (-1, -1, -1)


def test_labels_hold_events_and_visibility() -> None:
    scene = sample_scene(seed=3, index=0, split="train")
    labels = label_clips(scene, SMALL)
    painter = Painter(scene, SMALL.resolution)
    assert len(labels) == round(scene.duration / 2)
    for event in scene.events:
        row = [tuple(COLOURS).index(event.colour), SHAPES.index(event.shape), ACTIONS.index(str(event.action))]
        for clip in range(round(event.start / 2), round(event.end / 2)):
            (slot,) = np.flatnonzero((labels.events[clip] == row).all(1))
            assert labels.visible[clip, slot] == pytest.approx(visibility(painter, event, clip))
    empty = labels.events[:, :, 0] < 0
    assert empty.any() and (labels.visible[empty] == 0).all()
    assert ((labels.visible >= 0) & (labels.visible <= 1)).all()


@pytest.mark.parametrize(
    ("events", "sentence", "expected"),
    [
        ([NO_EVENT, NO_EVENT], (0, 0, 0), False),
        ([(0, 1, 2), NO_EVENT], (0, 1, 2), True),
        ([(0, 1, 2), (3, 4, 5)], (3, 4, 5), True),
        ([(0, 1, 2), (3, 4, 5)], (0, 4, 5), False),  # a single event must have all attributes
        ([(0, 1, 2), NO_EVENT], (-1, 1, 2), True),
        ([NO_EVENT, NO_EVENT], (-1, -1, -1), False),
    ],
)
def test_which_sentences_are_true_of_a_clip(
    events: list[tuple[int, ...]], sentence: tuple[int, ...], expected: bool
) -> None:
    assert matches(np.array([events]), np.array([sentence])).tolist() == [[expected]]


def test_visibility_loss_counts_matching_pairs_and_the_better_of_two_events() -> None:
    events = np.array([[(0, 1, 2), (0, 3, 2)], [(4, 4, 4), NO_EVENT]])
    visible = np.array([[0.4, 0.7], [0.55, 0.0]], np.float32)
    sentences = np.array([(0, -1, 2), (0, 1, 2), (4, 4, 4), (5, 5, 5)])
    text = F.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    seen = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    pairs = [(0, 0, 0.7), (0, 1, 0.4), (1, 2, 0.55)]  # clip, sentence, visibility
    expected = torch.stack(
        [F.smooth_l1_loss(seen[c] @ text[s], torch.tensor((v - 0.55) / 0.15)) for c, s, v in pairs]
    ).mean()
    torch.testing.assert_close(visibility_loss(seen, text, events, visible, sentences), expected)


def test_contrastive_loss_as_written_plainly() -> None:
    generator = torch.Generator().manual_seed(0)
    video, text = (F.normalize(torch.randn(n, 4, generator=generator), dim=-1) for n in (3, 5))
    match = torch.tensor([[1, 0, 0, 1, 0], [0, 1, 0, 0, 0], [0, 1, 0, 0, 0]], dtype=torch.bool)
    logits = video @ text.T * 10
    rows = [-logits.log_softmax(1)[i][match[i]].mean() for i in range(3)]
    columns = [-logits.log_softmax(0)[:, j][match[:, j]].mean() for j in range(5) if match[:, j].any()]
    expected = torch.stack(rows).mean() + torch.stack(columns).mean()
    torch.testing.assert_close(contrastive_loss(video, text, match, torch.tensor(10.0).log()), expected)


def test_a_mirror_turns_left_into_right_and_never_makes_a_test_combination() -> None:
    left, right = ACTIONS.index("left"), ACTIONS.index("right")
    events = np.array([[(0, 0, left), NO_EVENT]] * 64)
    frames = np.arange(64 * 2 * 4 * 4 * 3, dtype=np.int64).reshape(64, 2, 4, 4, 3).astype(np.uint8)
    seen, labels = mirrored(np.random.default_rng(0), frames, events)
    turned = labels[:, 0, 2] == right
    assert 10 < turned.sum() < 54 and (labels[~turned] == events[0]).all()
    assert (seen[turned] == frames[turned][:, :, :, ::-1]).all() and (seen[~turned] == frames[~turned]).all()
    names = [
        (tuple(COLOURS)[c], SHAPES[s], ACTIONS[a])
        for c in range(len(COLOURS)) for s in range(len(SHAPES)) for a in (left, right)
    ]  # fmt: skip
    grid = np.array(
        [[(c, s, a), NO_EVENT] for c in range(len(COLOURS)) for s in range(len(SHAPES)) for a in (left, right)]
    )
    allowed = grid[[name not in HELD_OUT for name in names]]
    for seed in range(5):
        frames = np.zeros((len(allowed), 2, 4, 4, 3), np.uint8)
        _, labels = mirrored(np.random.default_rng(seed), frames, allowed)
        assert not any((tuple(COLOURS)[c], SHAPES[s], ACTIONS[a]) in HELD_OUT for c, s, a in labels[:, 0])


def test_sentences_are_never_of_test_combinations() -> None:
    rng = np.random.default_rng(0)
    events = np.array([[(c, s, a), NO_EVENT] for c in range(2) for s in range(3) for a in range(4)])
    events = events[[(tuple(COLOURS)[c], SHAPES[s], ACTIONS[a]) not in HELD_OUT for c, s, a in events[:, 0]]]
    texts, sentences = sample_sentences(rng, events, 3)
    assert len(texts) == len(sentences) == 4 * len(events)
    complete = sentences[(sentences >= 0).all(1)]
    assert not any((tuple(COLOURS)[c], SHAPES[s], ACTIONS[a]) in HELD_OUT for c, s, a in complete)
    match = matches(events, sentences)
    assert all(match[i, 4 * i] for i in range(len(events)))


@pytest.mark.slow
def test_an_interrupted_run_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "sidelight")
    config = PretrainConfig(
        world=str(tmp_path / "world"), videos=2, val_videos=1, drawn_scenes=2, drawn_clips=2, steps=102, batch=4,
        warmup=2, threads=1, visibility_weight=0.5, out=str(tmp_path / "out"), model=SMALL,
    )  # fmt: skip
    clips = load_clips(config, "train")
    assert len(clips.frames) == len(clips.labels) and clips.frames.shape[1:] == (8, 32, 32, 3)
    drawn = np.load(next(Path(config.world).rglob("drawn*.npz")))
    assert np.array_equal(clips.labels.events[-len(drawn["events"]) :], drawn["events"])
    assert np.allclose(clips.labels.visible[-len(drawn["visible"]) :], drawn["visible"])
    scores = pretrain(config)
    assert set(scores) == {"combination", "colour", "shape", "action", "visibility"}
    assert all(0 <= scores[name] <= 100 for name in ("combination", "colour", "shape", "action"))
    trained = TwoTowers.load(config.out)
    # The state of step 100 remains: resuming from it gives the same weights.
    (Path(config.out) / "model.safetensors").unlink()
    assert pretrain(config) == scores
    assert "going on from step 100 of 102" in caplog.text
    resumed = TwoTowers.load(config.out)
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in trained.state_dict().items())
    with pytest.raises(ValueError, match="run with another configuration"):
        pretrain(replace(config, lr=1.0))
    with pytest.raises(ValueError, match="towers of other sizes"):
        pretrain(replace(config, init=config.out, out=str(tmp_path / "other"), model=replace(SMALL, width=32)))
    scores_without_head = validate(
        resumed, replace(clips, labels=Labels(events=clips.labels.events, visible=clips.labels.visible))
    )
    assert set(scores_without_head) == {"combination", "colour", "shape", "action"}
    with pytest.raises(ValueError, match="steps must be at least 1"):
        PretrainConfig(steps=0)
