"""The main job, with a tiny random model; and long videos without seams."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sidelight import Grounder, Grounding
from sidelight.backbones import SpecMismatchError, load_backbone
from sidelight.backbones.shapes.model import ShapesBackbone
from sidelight.models.decode.sdst import DecodeConfig
from sidelight.models.registry import build_model
from sidelight.training.checkpoint import Checkpoint
from sidelight.video.read import VideoError

SMALL = {"video_dim": 32, "text_dim": 32, "hidden": 32, "heads": 4, "moment_queries": 6}


@pytest.fixture
def backbone(tiny_backbone: Path) -> ShapesBackbone:
    return ShapesBackbone(weights=tiny_backbone)


@pytest.fixture
def checkpoint(backbone: ShapesBackbone) -> Checkpoint:
    torch.manual_seed(0)
    model = build_model("sdst", SMALL).eval()
    return Checkpoint(model=model, model_name="sdst", model_config=SMALL, features=backbone.spec, decode=DecodeConfig())


@pytest.fixture
def video(tiny_world: Path) -> Path:
    return sorted((tiny_world / "videos").iterdir())[0]


def test_a_sentence_gives_a_grounding_and_several_a_list(
    checkpoint: Checkpoint, backbone: ShapesBackbone, video: Path
) -> None:
    grounder = Grounder(checkpoint, backbone=backbone, device="cpu")
    one = grounder.ground(video, "a red star spins")
    assert type(one) is Grounding
    assert one.video == str(video) and one.moments
    assert len(one.saliency) == one.timeline.num_clips
    both = grounder.ground(video, ["a red star spins", "a ring"])
    assert [g.query for g in both] == ["a red star spins", "a ring"]
    np.testing.assert_allclose(both[0].saliency, one.saliency, atol=1e-4)
    for a, b in zip(both[0].moments, one.moments, strict=True):
        assert a.start == pytest.approx(b.start, abs=1e-2) and a.score == pytest.approx(b.score, abs=1e-4)


def test_the_cache_goes_by_content(
    checkpoint: Checkpoint,
    backbone: ShapesBackbone,
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = Path(shutil.copy(video, tmp_path / "a.mp4"))
    grounder = Grounder(checkpoint, backbone=backbone, cache=tmp_path / "cache", device="cpu")
    first = grounder.ground(copy, "a ring")
    copy.rename(tmp_path / "renamed.mp4")
    monkeypatch.setattr(ShapesBackbone, "encode_video", lambda *_: pytest.fail("not from the cache"))
    again = grounder.ground(tmp_path / "renamed.mp4", "a ring")
    assert again.moments == first.moments and np.array_equal(again.saliency, first.saliency)


def test_a_long_video_is_read_in_windows(checkpoint: Checkpoint, backbone: ShapesBackbone, video: Path) -> None:
    import dataclasses

    windowed = dataclasses.replace(checkpoint, window_clips=6)
    found = Grounder(windowed, backbone=backbone, device="cpu").ground(video, ["a red star spins", "a ring"])
    for grounding in found:
        assert grounding.timeline.num_clips > 6 and len(grounding.saliency) == grounding.timeline.num_clips
        assert all(0 <= m.start <= m.end <= grounding.timeline.duration for m in grounding.moments)


def test_another_backbone_is_refused(checkpoint: Checkpoint, tiny_backbone: Path) -> None:
    other = load_backbone("shapes", weights=tiny_backbone, pooling="mean")
    with pytest.raises(SpecMismatchError, match="pooling is 'mean', expected 'attention'"):
        Grounder(checkpoint, backbone=other, device="cpu")
    # The packaged backbone has other weights than the tiny one.
    with pytest.raises(SpecMismatchError, match="weights"):
        Grounder(checkpoint, device="cpu")


@pytest.mark.parametrize("query", [[], "", "  ", ["a star", ""]])
def test_empty_queries_are_refused(
    checkpoint: Checkpoint, backbone: ShapesBackbone, video: Path, query: list[str] | str
) -> None:
    with pytest.raises(ValueError, match="query"):
        Grounder(checkpoint, backbone=backbone, device="cpu").ground(video, query)


def test_what_is_no_video_is_refused(checkpoint: Checkpoint, backbone: ShapesBackbone, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="does not exist"):
        Grounder(checkpoint, backbone=backbone, device="cpu").ground(tmp_path / "no.mp4", "a star")


def test_weights_of_the_backbone_can_be_given(
    checkpoint: Checkpoint, tiny_backbone: Path, video: Path, tmp_path: Path
) -> None:
    checkpoint.save_pretrained(tmp_path / "model")
    with pytest.raises(SpecMismatchError, match="weights is"):
        Grounder.from_pretrained(tmp_path / "model", device="cpu", cache=None)
    grounder = Grounder.from_pretrained(tmp_path / "model", device="cpu", cache=None, backbone_weights=tiny_backbone)
    assert grounder.ground(video, "a red square spins").timeline.num_clips >= 1
