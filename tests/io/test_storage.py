"""Check object storage with fsspec's file systems in memory and on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from sidelight.backbones.shapes.model import ShapesBackbone
from sidelight.cli.main import main
from sidelight.features.extract import extract
from sidelight.features.remote import RemoteStore
from sidelight.features.sources import videos_of
from sidelight.features.store import FeatureStore
from sidelight.io.storage import (
    StorageError,
    cached,
    fetch,
    file_versions,
    is_address,
    list_files,
    local_copy,
    put_file,
    storage_of,
)


@pytest.fixture
def memory() -> Iterator[Any]:
    storage = fsspec.filesystem("memory")
    storage.store.clear()
    yield storage
    storage.store.clear()


@pytest.fixture(params=["memory://bucket", "file"])
def bucket(request: pytest.FixtureRequest, memory: Any, tmp_path: Path) -> str:
    """Return an address in memory, then an address on disk."""
    return str(request.param) if request.param != "file" else f"file://{tmp_path / 'bucket'}"


@pytest.fixture
def backbone(tiny_backbone: Path) -> ShapesBackbone:
    return ShapesBackbone(weights=tiny_backbone)


@pytest.mark.parametrize(
    ("path", "address"),
    [("", False), ("films", False), ("/films/a.mp4", False), ("s3://b/a.mp4", True), (Path("films"), False)],
)
def test_addresses_are_told_from_paths(path: str | Path, address: bool) -> None:
    assert is_address(path) is address


def test_files_are_put_listed_and_fetched(bucket: str, tmp_path: Path) -> None:
    assert file_versions(f"{bucket}/none") == {}
    file = tmp_path / "one.mp4"
    file.write_bytes(b"abc")
    put_file(file, f"{bucket}/films/one.mp4")
    put_file(file, f"{bucket}/films/two.mkv")
    assert set(file_versions(f"{bucket}/films")) == {"one.mp4", "two.mkv"}
    addresses = list_files(f"{bucket}/films")
    assert [a.rsplit("/", 1)[1] for a in addresses] == ["one.mp4", "two.mkv"] and all(map(is_address, addresses))
    assert list_files(f"{bucket}/films/*.mkv") == addresses[1:] and list_files(addresses[0]) == addresses[:1]
    with local_copy(addresses[0]) as copy:
        assert copy.read_bytes() == b"abc" and copy.name == "one.mp4"
    assert not copy.exists()
    fetch(f"{bucket}/films", "one.mp4", tmp_path / "here")
    assert (tmp_path / "here" / "one.mp4").read_bytes() == b"abc"


def test_a_name_does_not_lead_out_of_its_folder(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="out of"):
        fetch(bucket, "../escaped", tmp_path / "here")


@pytest.mark.parametrize(
    ("address", "message"),
    [("nothing://a/b", "cannot use nothing://"), ("memory://bucket/none/*.mp4", "matches no video files")],
)
def test_wrong_addresses_are_named(memory: Any, address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        videos_of([address])
    with pytest.raises(ValueError, match="does not exist"):
        list_files("memory://bucket/none")
    with pytest.raises(StorageError, match="cannot be fetched"), local_copy("memory://bucket/none.mp4"):
        pass


def test_from_a_bucket_into_a_bucket(
    bucket: str, tiny_world: Path, backbone: ShapesBackbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = sorted((tiny_world / "videos").iterdir())[:2]
    for video in videos:
        put_file(video, f"{bucket}/films/{video.name}")
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    put_file(bad, f"{bucket}/films/bad.mp4")
    videos_by_id = videos_of([f"{bucket}/films"])
    assert sorted(videos_by_id) == sorted(["bad", *(v.stem for v in videos)])
    store, failures = extract(videos_by_id, ["a star"], backbone, f"{bucket}/store", workers=1)
    assert isinstance(store, RemoteStore) and list(failures) == ["bad"]
    assert set(file_versions(f"{bucket}/store")) == {"manifest.json", "failures.jsonl"}
    assert len(file_versions(f"{bucket}/store/videos")) == 2 and len(file_versions(f"{bucket}/store/queries")) == 1
    # Reading through a copy gives the same features as files of this machine.
    plain, _ = extract({v.stem: v for v in videos}, ["a star"], backbone, tmp_path / "plain", workers=0)
    read = FeatureStore(f"{bucket}/store")
    assert read.videos() == plain.videos() and not read.missing_queries(["a star"]) and not read.verify()
    for vid in plain.videos():
        assert np.array_equal(read.video(vid).video_KTD, plain.video(vid).video_KTD)
    # A second extraction adds only the new query.
    again, failures = extract(videos_by_id, ["a star", "a ring"], backbone, f"{bucket}/store", workers=1)
    assert all(again.has_video(v.stem) for v in videos) and list(failures) == ["bad"]
    assert not FeatureStore(f"{bucket}/store").missing_queries(["a star", "a ring"])
    # The command reads the store too.
    assert main(["features", "verify", f"{bucket}/store"]) == 0
    assert "2 videos; 0 damaged files" in capsys.readouterr().out


def test_a_copy_follows_its_address(bucket: str, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    put_file(file, f"{bucket}/folder/a.txt")
    first = cached(f"{bucket}/folder", ())
    file.write_text("new")  # as long as the old one
    put_file(file, f"{bucket}/folder/a.txt")
    put_file(file, f"{bucket}/folder/b.txt")
    assert cached(f"{bucket}/folder", ()) == first
    assert (first / "a.txt").read_text() == "new" and (first / "b.txt").exists()
    stamp = (first / "a.txt").stat().st_mtime_ns
    storage, path = storage_of(f"{bucket}/folder/b.txt")
    storage.rm(path)
    cached(f"{bucket}/folder", ())
    assert not (first / "b.txt").exists() and (first / "a.txt").stat().st_mtime_ns == stamp


def test_a_store_that_was_made_anew_is_read_anew(
    bucket: str, tiny_world: Path, backbone: ShapesBackbone, tmp_path: Path
) -> None:
    first, second = sorted((tiny_world / "videos").iterdir())[:2]
    for video in (first, second):  # of equal length, so that the files have equal sizes
        storage, path = storage_of(f"{bucket}/store")
        if storage.exists(path):
            storage.rm(path, recursive=True)
        extract({"v": video}, [], backbone, f"{bucket}/store", workers=0)
        plain, _ = extract({"v": video}, [], backbone, tmp_path / video.stem, workers=0)
        assert np.array_equal(FeatureStore(f"{bucket}/store").video("v").video_KTD, plain.video("v").video_KTD)
    storage.rm(path, recursive=True)
    with pytest.raises(ValueError, match="is no feature store"):
        FeatureStore(f"{bucket}/store")


def test_a_storage_has_a_path() -> None:
    storage, path = storage_of("memory://bucket/a")
    assert path.endswith("bucket/a") and storage.protocol == "memory"
