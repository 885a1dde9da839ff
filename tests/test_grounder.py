"""A file and a sentence become a grounding, with a tiny random model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from sidelight import Grounder, Grounding
from sidelight.backbones import SpecMismatchError, load_backbone
from sidelight.backbones.shapes.model import ShapesBackbone
from sidelight.features.extract import encode_video_file
from sidelight.features.sources import content_digest
from sidelight.features.store import FeatureStore
from sidelight.models.decode.sdst import DecodeConfig
from sidelight.models.registry import build_model
from sidelight.training.checkpoint import Checkpoint
from sidelight.video.read import VideoError, VideoWarning, probe

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
    single = grounder.ground(video, "a red star spins")
    assert type(single) is Grounding
    assert single.video == str(video) and single.moments
    assert len(single.saliency) == single.timeline.num_clips
    both = grounder.ground(video, ["a red star spins", "a ring"])
    assert [g.query for g in both] == ["a red star spins", "a ring"]
    np.testing.assert_allclose(both[0].saliency, single.saliency, atol=1e-4)
    for a, b in zip(both[0].moments, single.moments, strict=True):
        assert a.start == pytest.approx(b.start, abs=1e-2) and a.score == pytest.approx(b.score, abs=1e-4)


def test_the_cache_goes_by_content(
    checkpoint: Checkpoint,
    backbone: ShapesBackbone,
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = Path(shutil.copy(video, tmp_path / "copy.mp4"))
    grounder = Grounder(checkpoint, backbone=backbone, cache=tmp_path / "cache", device="cpu")
    first = grounder.ground(copy, "a ring")
    copy.rename(tmp_path / "renamed.mp4")
    monkeypatch.setattr(ShapesBackbone, "encode_video", lambda *_: pytest.fail("the features are in the cache"))
    again = grounder.ground(tmp_path / "renamed.mp4", "a ring")
    assert again.moments == first.moments and np.array_equal(again.saliency, first.saliency)


@pytest.fixture
def damaged_video(video: Path, tmp_path: Path) -> Path:
    """Write a copy of the video with zeros in one packet of its second half."""
    with av.open(str(video)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    data, packet = video.read_bytes(), max(packets[len(packets) // 2 :], key=len)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data.replace(packet, bytes(len(packet))))
    return path


def test_features_of_a_damaged_video_are_not_cached(
    checkpoint: Checkpoint, backbone: ShapesBackbone, damaged_video: Path, video: Path, tmp_path: Path
) -> None:
    """Check that each query on a damaged file warns about the damage, because the file is decoded each time."""
    grounder = Grounder(checkpoint, backbone=backbone, cache=tmp_path / "cache", device="cpu")
    store = FeatureStore.create(tmp_path / "cache" / backbone.spec.digest(), backbone.spec)
    groundings = []
    for _ in range(2):
        with pytest.warns(VideoWarning, match="damaged"):
            groundings.append(grounder.ground(damaged_video, "a ring"))
        assert store.videos() == []
    assert groundings[0].moments == groundings[1].moments
    grounder.ground(video, "a ring")
    assert len(store.videos()) == 1


def test_notes_about_a_video_are_in_each_answer(
    checkpoint: Checkpoint, backbone: ShapesBackbone, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check two recordings in one file, and that features which an earlier version cached for it are not used."""
    path = tmp_path / "joined.mp4"
    path.write_bytes(2 * video.read_bytes())
    grounder = Grounder(checkpoint, backbone=backbone, cache=tmp_path / "cache", device="cpu")
    store = FeatureStore.create(tmp_path / "cache" / backbone.spec.digest(), backbone.spec)
    store.put_video(content_digest(path), encode_video_file(video, backbone))
    for _ in range(2):
        with pytest.warns(VideoWarning, match="joins 2 recordings") as caught:
            grounding = grounder.ground(path, "a ring")
        assert len(caught) == 1
        assert grounding.notes == (str(caught[0].message),) == tuple(grounding.at_least(0.5).to_dict()["notes"])
        assert Grounding.from_json(grounding.to_json()) == grounding
        assert grounding.timeline.duration == pytest.approx(2 * probe(video).duration)
        monkeypatch.setattr(ShapesBackbone, "encode_video", lambda *_: pytest.fail("the features are in the cache"))


def test_a_long_video_is_read_in_windows(checkpoint: Checkpoint, backbone: ShapesBackbone, video: Path) -> None:
    windowed = replace(checkpoint, window_clips=6)
    groundings = Grounder(windowed, backbone=backbone, device="cpu").ground(video, ["a red star spins", "a ring"])
    for grounding in groundings:
        assert grounding.timeline.num_clips > 6 and len(grounding.saliency) == grounding.timeline.num_clips
        assert all(0 <= m.start <= m.end <= grounding.timeline.duration for m in grounding.moments)


def test_another_backbone_is_refused(checkpoint: Checkpoint, tiny_backbone: Path) -> None:
    mean_pooled = load_backbone("shapes", weights=tiny_backbone, pooling="mean")
    with pytest.raises(SpecMismatchError, match="pooling is 'mean', expected 'attention'"):
        Grounder(checkpoint, backbone=mean_pooled, device="cpu")
    # The packaged backbone has other weights than the tiny one.
    with pytest.raises(SpecMismatchError, match="weights"):
        Grounder(checkpoint, device="cpu")


@pytest.mark.parametrize("query", [[], "", "  ", ["a star", ""]])
def test_empty_queries_are_refused(
    checkpoint: Checkpoint, backbone: ShapesBackbone, video: Path, query: list[str] | str
) -> None:
    with pytest.raises(ValueError, match="query"):
        Grounder(checkpoint, backbone=backbone, device="cpu").ground(video, query)


def test_a_missing_video_is_refused(checkpoint: Checkpoint, backbone: ShapesBackbone, tmp_path: Path) -> None:
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
