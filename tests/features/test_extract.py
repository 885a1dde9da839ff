"""Extraction gives the same features for training and for inference."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sidelight.backbones import load_backbone
from sidelight.backbones.shapes.model import ShapesBackbone
from sidelight.data.annotations import Annotation
from sidelight.features.extract import (
    BatchEncoder,
    clips_at_once,
    encode_queries,
    encode_video_file,
    extract,
    sampling_of,
)
from sidelight.features.sources import find_videos, videos_of
from sidelight.features.store import FeatureStore
from sidelight.io import runtime
from sidelight.video.read import frames_at, probe
from sidelight.video.workers import clips_of


@pytest.fixture(scope="module")
def backbone(tiny_backbone: Path) -> ShapesBackbone:
    return ShapesBackbone(weights=tiny_backbone)


@pytest.fixture(scope="module")
def video(tiny_world: Path) -> Path:
    return sorted((tiny_world / "videos").iterdir())[0]


def test_features_equal_the_pieces_by_hand(video: Path, backbone: ShapesBackbone) -> None:
    features = encode_video_file(video, backbone)
    seconds = features.timeline.frame_seconds(4).reshape(-1).tolist()
    frames = np.stack([f.image for f in frames_at(video, seconds, size=(32, 32))]).reshape(-1, 4, 32, 32, 3)
    by_hand = backbone.encode_video(torch.from_numpy(frames)).half().numpy()
    assert features.video_KTD.shape == (4, features.timeline.num_clips, 32)
    np.testing.assert_allclose(features.video_KTD, by_hand, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(("at_once", "encoded"), [(0, 16), (1, 10), (4, 12)])
def test_the_last_batch_is_filled_as_far_as_the_backbone_needs(
    video: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch, at_once: int, encoded: int
) -> None:
    """Check that few clips are encoded in vain: a clip of VideoPrism takes 20 s on a CPU."""
    backbone = ShapesBackbone(weights=tiny_backbone)
    batches: list[int] = []
    encode = backbone.encode_video

    def counted(frames: torch.Tensor) -> torch.Tensor:
        batches.append(len(frames))
        return encode(frames)

    monkeypatch.setattr(backbone, "encode_video", counted)
    monkeypatch.setattr(backbone, "clips_at_once", at_once, raising=False)
    features = encode_video_file(video, backbone)
    assert features.timeline.num_clips == 10 and sum(batches) == encoded


def test_a_bar_shows_the_clips_of_a_long_video(
    video: Path, backbone: ShapesBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    clips = encode_video_file(video, backbone).timeline.num_clips
    assert terminal.getvalue() == ""
    monkeypatch.setattr("sidelight.io.progress._BAR_AFTER_SECONDS", 0)
    encode_video_file(video, backbone, progress=True)
    assert f"reading the video:   0%|          | 0/{clips}" in terminal.getvalue()


@pytest.mark.parametrize("chunk", [1, 3, 32])
def test_chunks_do_not_change_the_frames(video: Path, backbone: ShapesBackbone, chunk: int) -> None:
    sampling, duration = sampling_of(backbone.spec), probe(video).duration
    parts = list(clips_of(video, sampling, duration, chunk=chunk))
    assert all(len(p) <= chunk for p in parts)
    assert np.array_equal(np.concatenate(parts), np.concatenate(list(clips_of(video, sampling, duration))))


def test_a_long_video_returns_freed_memory(backbone: ShapesBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[int]()
    monkeypatch.setattr(runtime, "release_memory", lambda: calls.append(1))
    monkeypatch.setattr(ShapesBackbone, "encode_video", lambda self, pixels: torch.zeros(2, len(pixels), 4))
    encoder, pixels = BatchEncoder(backbone, 8), np.zeros((8, 2, 4, 4, 3), np.uint8)
    clips = sum(features.shape[1] for _ in range(128) for _, features in encoder.put(None, pixels))
    assert clips == 127 * 8 and len(calls) in (3, 4)  # about every 256 clips
    assert [features.shape for _, features in encoder.flush()] == [(2, 8, 4)] and len(calls) in (4, 5)


def test_queries_are_encoded_once_each(backbone: ShapesBackbone) -> None:
    assert encode_queries([], backbone) == {}
    features = encode_queries(["a red star", "spins", "a red star"], backbone, batch=1)
    assert list(features) == ["a red star", "spins"] and features["spins"].dtype == np.float16


def test_a_bad_video_is_reported_and_the_others_are_extracted(
    tiny_world: Path, tiny_annotations: list[Annotation], backbone: ShapesBackbone, tmp_path: Path
) -> None:
    videos = find_videos(tiny_world / "videos", (a.vid for a in tiny_annotations))
    empty = tmp_path / "empty.mp4"
    empty.touch()
    store, failures = extract({"bad": empty, **videos}, ["a star"], backbone, tmp_path / "out")
    assert store.videos() == sorted(videos) and list(failures) == ["bad"] and "empty" in failures["bad"]


def test_a_second_run_extracts_only_missing_features(video: Path, backbone: ShapesBackbone, tmp_path: Path) -> None:
    files = {"a": video, "b": video}
    store, _ = extract({"a": video}, ["a star"], backbone, tmp_path)
    stamp = (store.folder / "videos" / "a.safetensors").stat().st_mtime_ns
    extract(files, ["a star", "a ring"], backbone, tmp_path)
    assert (store.folder / "videos" / "a.safetensors").stat().st_mtime_ns == stamp
    again = FeatureStore(tmp_path)
    assert again.videos() == ["a", "b"] and again.missing_queries(["a star", "a ring"]) == []
    assert np.array_equal(again.video("a").video_KTD, again.video("b").video_KTD)


def test_other_levels_are_other_features(video: Path, tiny_backbone: Path, backbone: ShapesBackbone) -> None:
    two = load_backbone("shapes", weights=tiny_backbone, levels=2)
    assert np.array_equal(encode_video_file(video, two).video_KTD, encode_video_file(video, backbone).video_KTD[2:])


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("batch_clips", [3, 8])
def test_workers_and_other_videos_change_no_bit(
    tiny_world: Path, backbone: ShapesBackbone, tmp_path: Path, workers: int, batch_clips: int
) -> None:
    videos = {p.stem: p for p in sorted((tiny_world / "videos").iterdir())}
    store, _ = extract(videos, [], backbone, tmp_path / "all", workers=workers, batch_clips=batch_clips)
    for vid, path in videos.items():
        alone, _ = extract({vid: path}, [], backbone, tmp_path / vid, workers=0, batch_clips=batch_clips)
        assert np.array_equal(alone.video(vid).video_KTD, store.video(vid).video_KTD)
        if batch_clips == clips_at_once("cpu"):
            assert np.array_equal(encode_video_file(path, backbone).video_KTD, store.video(vid).video_KTD)


def test_another_size_of_batches_changes_the_last_bit_at_most(
    tiny_world: Path, backbone: ShapesBackbone, tmp_path: Path
) -> None:
    videos = {p.stem: p for p in sorted((tiny_world / "videos").iterdir())[:2]}
    small, large = (extract(videos, [], backbone, tmp_path / str(n), batch_clips=n)[0] for n in (1, 16))
    for vid in videos:
        first, second = small.video(vid).video_KTD, large.video(vid).video_KTD
        # Near 0 the last place is tiny, but sums of larger numbers lose more: hence atol.
        np.testing.assert_allclose(first.astype(np.float32), second.astype(np.float32), rtol=2**-10, atol=1e-4)


def test_failures_are_written_and_removed_when_the_video_can_be_read(
    video: Path, backbone: ShapesBackbone, tmp_path: Path
) -> None:
    bad = tmp_path / "b.mp4"
    bad.write_text("no video")
    out = tmp_path / "out"
    _, failures = extract({"a": video, "b": bad}, [], backbone, out, without_file={"c": "there is no file"}, workers=1)
    assert failures.keys() == {"b", "c"}
    rows = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert [(r["vid"], r["file"]) for r in rows] == [("b", str(bad)), ("c", "")] and "not a video" in rows[0]["reason"]
    # Failures of other videos stay; failures of videos that can be read now are removed.
    bad.write_bytes(video.read_bytes())
    store, failures = extract({"b": bad}, [], backbone, out)
    assert not failures and [row["vid"] for row in store.failures()] == ["c"]
    extract({"c": bad}, [], backbone, out)
    assert store.failures() == [] and store.videos() == ["a", "b", "c"]


@pytest.mark.parametrize(("name", "value"), [("workers", -1), ("batch_clips", 0), ("batch_clips", 12)])
def test_sizes_are_checked(backbone: ShapesBackbone, tmp_path: Path, name: str, value: int) -> None:
    sizes: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"{name} must be"):
        extract({}, [], backbone, tmp_path, **sizes)


def test_verify_reports_damaged_files(video: Path, backbone: ShapesBackbone, tmp_path: Path) -> None:
    store, _ = extract({"a": video, "b": video}, ["a star"], backbone, tmp_path)
    assert store.verify() == {}
    path = tmp_path / "videos" / "a.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-2] + bytes([content[-2] ^ 1, content[-1]]))  # one bit, of a number
    assert list(store.verify()) == ["videos/a.safetensors"] and "digest" in store.verify()["videos/a.safetensors"]
    path.write_bytes(content[: len(content) // 2])
    assert "damaged" in store.verify()["videos/a.safetensors"]


def test_a_cut_off_file_is_extracted_again(video: Path, backbone: ShapesBackbone, tmp_path: Path) -> None:
    extract({"a": video, "b": video}, [], backbone, tmp_path)
    path = tmp_path / "videos" / "a.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    store, failures = extract({"a": video, "b": video}, [], backbone, tmp_path)
    assert not failures and path.read_bytes() == content and not store.verify()
    assert path.stat().st_mode & 0o044 == 0o044 & ~os.umask(os.umask(0o022)) & 0o777


def test_ids_of_any_length_and_spelling(video: Path, backbone: ShapesBackbone, tmp_path: Path) -> None:
    ids = ["映画" * 60, "x" * 300, "a b/c", "..", os.fsdecode(b"\xff\xfe"), "%%"]
    store, failures = extract(dict.fromkeys(ids, video), [], backbone, tmp_path / "store")
    assert not failures and store.videos() == sorted(ids) and not store.verify()
    assert {p.parent for p in tmp_path.rglob("*.safetensors")} == {tmp_path / "store" / "videos"}
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    _, failures = extract(dict.fromkeys(["坏", os.fsdecode(b"\xff")], bad), [], backbone, tmp_path / "store")
    assert [row["vid"] for row in store.failures()] == sorted(failures)


def test_two_names_for_one_file_are_noticed(video: Path, backbone: ShapesBackbone, tmp_path: Path) -> None:
    store, _ = extract({"a": video}, [], backbone, tmp_path)
    # As on a file system that ignores capitals.
    shutil.copy(tmp_path / "videos" / "a.safetensors", tmp_path / "videos" / "A.safetensors")
    with pytest.raises(ValueError, match="takes both names for one"):
        store.video("A")


def test_a_link_that_leads_nowhere_is_a_failure(video: Path, backbone: ShapesBackbone, tmp_path: Path) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    (folder / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (folder / "._a.mp4").touch()
    shutil.copy(video, folder / "a.mp4")
    store, failures = extract(videos_of([folder]), [], backbone, tmp_path / "out", workers=1)
    assert store.videos() == ["a"] and list(failures) == ["gone"]


def test_a_store_that_cannot_be_created_is_an_error(backbone: ShapesBackbone, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="no store can be made"):
        extract({}, [], backbone, tmp_path / "file")


def test_partial_files_of_killed_processes_are_removed(video: Path, backbone: ShapesBackbone, tmp_path: Path) -> None:
    store, _ = extract({"a": video}, [], backbone, tmp_path)
    old = tmp_path / "videos" / ".b.000000-1-abcdef.partial.safetensors"
    old.write_bytes(b"half")
    extract({"a": video}, [], backbone, tmp_path)
    assert old.exists()  # it may be another machine's
    os.utime(old, (0, 0))
    extract({"a": video}, [], backbone, tmp_path)
    assert not old.exists() and store.videos() == ["a"]
