"""One way from files to features, for training and inference alike."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sidelight.annotations import Annotation
from sidelight.backbones import load_backbone
from sidelight.backbones.shapes import ShapesBackbone
from sidelight.extract import (
    clips_of,
    content_digest,
    encode_queries,
    encode_video_file,
    extract,
    find_videos,
)
from sidelight.features import FeatureStore
from sidelight.video import VideoError, frames_at


@pytest.fixture(scope="module")
def backbone(tiny_backbone: Path) -> ShapesBackbone:
    return ShapesBackbone(weights=tiny_backbone)


@pytest.fixture(scope="module")
def video(tiny_world: Path) -> Path:
    return sorted((tiny_world / "videos").iterdir())[0]


def test_features_equal_the_pieces_by_hand(video: Path, backbone: ShapesBackbone) -> None:
    found = encode_video_file(video, backbone)
    wanted = found.timeline.frame_seconds(4).reshape(-1).tolist()
    frames = np.stack([f.image for f in frames_at(video, wanted, size=(32, 32))]).reshape(-1, 4, 32, 32, 3)
    by_hand = backbone.encode_video(torch.from_numpy(frames)).half().numpy()
    assert found.video_KTD.shape == (4, found.timeline.num_clips, 32)
    np.testing.assert_allclose(found.video_KTD, by_hand, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("chunk", [1, 3, 32])
def test_chunks_do_not_change_the_pictures(video: Path, backbone: ShapesBackbone, chunk: int) -> None:
    parts = list(clips_of(video, backbone.recipe, chunk=chunk))
    assert all(len(p) <= chunk for p in parts)
    assert np.array_equal(np.concatenate(parts), np.concatenate(list(clips_of(video, backbone.recipe))))


def test_queries_are_encoded_once_each(backbone: ShapesBackbone) -> None:
    assert encode_queries([], backbone) == {}
    found = encode_queries(["a red star", "spins", "a red star"], backbone, batch=1)
    assert list(found) == ["a red star", "spins"] and found["spins"].dtype == np.float16


def test_a_bad_video_is_told_and_the_rest_goes_on(
    tiny_world: Path, tiny_annotations: list[Annotation], backbone: ShapesBackbone, tmp_path: Path
) -> None:
    videos = find_videos(tiny_world / "videos", (a.vid for a in tiny_annotations))
    empty = tmp_path / "empty.mp4"
    empty.touch()
    store, failures = extract({"bad": empty, **videos}, ["a star"], backbone, tmp_path / "out")
    assert store.videos() == sorted(videos) and list(failures) == ["bad"] and "empty" in failures["bad"]


def test_it_goes_on_where_it_stopped(video: Path, backbone: ShapesBackbone, tmp_path: Path) -> None:
    files = {"a": video, "b": video}
    store, _ = extract({"a": video}, ["a star"], backbone, tmp_path)
    stamp = (store.folder / "videos" / "a.safetensors").stat().st_mtime_ns
    extract(files, ["a star", "a ring"], backbone, tmp_path)
    assert (store.folder / "videos" / "a.safetensors").stat().st_mtime_ns == stamp
    again = FeatureStore(tmp_path)
    assert again.videos() == ["a", "b"] and again.missing_queries(["a star", "a ring"]) == []
    assert np.array_equal(again.video("a").video_KTD, again.video("b").video_KTD)


def test_videos_are_found_by_id(tiny_world: Path, tmp_path: Path) -> None:
    assert find_videos(tiny_world / "videos", []) == {}
    with pytest.raises(ValueError, match=r"lacks 1 of 1 videos, such as nowhere"):
        find_videos(tiny_world / "videos", ["nowhere"])
    with pytest.raises(ValueError, match="not a folder"):
        find_videos(tmp_path / "none", ["a"])


def test_the_content_decides_the_digest(video: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(video, tmp_path / "another name.mp4"))
    assert content_digest(copy) == content_digest(video)
    with copy.open("ab") as file:
        file.write(b"x")
    assert content_digest(copy) != content_digest(video)
    with pytest.raises(VideoError, match="cannot be read"):
        content_digest(tmp_path / "none.mp4")


def test_other_levels_are_other_features(video: Path, tiny_backbone: Path, backbone: ShapesBackbone) -> None:
    two = load_backbone("shapes", weights=tiny_backbone, levels=2)
    assert np.array_equal(encode_video_file(video, two).video_KTD, encode_video_file(video, backbone).video_KTD[2:])
