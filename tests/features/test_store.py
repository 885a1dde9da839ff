"""Feature stores return the features that were put in."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from sidelight.backbones import SpecMismatchError, load_backbone
from sidelight.core.timeline import Timeline
from sidelight.features import growing
from sidelight.features import store as stores
from sidelight.features.extract import Collector
from sidelight.features.growing import GrowingFeatures, drop_pages, mapping_of
from sidelight.features.remote import store_at
from sidelight.features.store import FORMAT, FeatureStore, VideoFeatures


@pytest.fixture
def store(tmp_path: Path, tiny_backbone: Path) -> FeatureStore:
    return FeatureStore.create(tmp_path / "store", load_backbone("shapes", weights=tiny_backbone).spec)


def features(clips: int = 5, seed: int = 0) -> VideoFeatures:
    values = np.random.default_rng(seed).normal(size=(4, clips, 32)).astype(np.float16)
    return VideoFeatures(video_KTD=values, timeline=Timeline(duration=clips * 2 - 0.5, clip_seconds=2.0))


@pytest.mark.parametrize("vid", ["plain", "with space", "a/b", "../../etc/passwd", "..", ".hidden", "ünï", "%2F"])
def test_videos_round_trip_whatever_their_name(store: FeatureStore, vid: str) -> None:
    assert store.videos() == [] and not store.has_video(vid)
    store.put_video(vid, features())
    again = FeatureStore(store.folder)
    assert again.has_video(vid) and np.array_equal(again.video(vid).video_KTD, features().video_KTD)
    assert again.video(vid).timeline == features().timeline
    inside = [p for p in (store.folder / "videos").rglob("*") if p.is_file()]
    assert len(inside) == 1 and len(list(store.folder.parent.iterdir())) == 1


def test_queries_round_trip_from_many_files(store: FeatureStore) -> None:
    assert store.queries([]) == {} and store.missing_queries(["a", "b", "a"]) == ["a", "b"]
    values = {q: np.full((4, n, 32), n, np.float16) for n, q in enumerate(("a", "b", "c"), start=2)}
    store.put_queries({})
    store.put_queries({q: values[q] for q in "ab"})
    store.put_queries({"c": values["c"]})
    texts = FeatureStore(store.folder).queries(["c", "a", "c"])
    assert list(texts) == ["c", "a"] and all(np.array_equal(texts[q], values[q]) for q in texts)
    assert store.missing_queries(["a", "d"]) == ["d"]
    with pytest.raises(ValueError, match=r"lacks 1 of 2 queries, such as 'd'"):
        store.queries(["a", "d"])


def test_a_store_refuses_another_spec(store: FeatureStore) -> None:
    assert FeatureStore.create(store.folder, store.spec).spec == store.spec
    with pytest.raises(SpecMismatchError, match="pooling is 'attention', expected 'mean'"):
        FeatureStore.create(store.folder, replace(store.spec, pooling="mean"))


def test_failures_that_no_extraction_wrote_are_kept(store: FeatureStore, tmp_path: Path) -> None:
    theirs = tmp_path / "films" / "failures.jsonl"
    theirs.parent.mkdir()
    theirs.write_text('{"server": "a", "reason": "down"}\n')
    with pytest.raises(ValueError, match=r"films holds a failures.jsonl that no extraction wrote"):
        FeatureStore.create(theirs.parent, store.spec)
    with pytest.raises(ValueError, match=r"films holds a failures.jsonl that no extraction wrote"):
        store_at(f"local://{theirs.parent}", store.spec)
    assert [path.name for path in theirs.parent.iterdir()] == ["failures.jsonl"]
    # Copied into a store afterwards.
    shutil.copy(theirs, store.folder)
    with pytest.raises(ValueError, match=r"store holds a failures.jsonl that no extraction wrote"):
        Collector(store, {})
    assert (store.folder / "failures.jsonl").read_text() == theirs.read_text()


def test_some_of_the_levels_can_be_read(store: FeatureStore) -> None:
    store.put_video("x", features())
    store.put_queries({"a": np.arange(4 * 3 * 32, dtype=np.float16).reshape(4, 3, 32)})
    some = FeatureStore(store.folder, levels=(-3, -1))
    assert some.spec == replace(store.spec, levels=(-3, -1))
    assert np.array_equal(some.video("x").video_KTD, features().video_KTD[[1, 3]])
    assert np.array_equal(some.queries(["a"])["a"], store.queries(["a"])["a"][[1, 3]])
    assert FeatureStore(store.folder, levels=store.spec.levels).spec == store.spec
    with pytest.raises(ValueError, match=r"have the levels \(-4, -3, -2, -1\) and lack \[-5\]"):
        FeatureStore(store.folder, levels=(-5, -1))
    with pytest.raises(ValueError, match="open all of them to add"):
        some.put_video("y", features())


def test_every_token_of_a_clip_can_be_kept(store: FeatureStore) -> None:
    tokens = np.random.default_rng(0).normal(size=(4, 5, 7, 32)).astype(np.float16)
    store.put_video("x", VideoFeatures(video_KTD=tokens, timeline=features().timeline))
    assert np.array_equal(store.video("x").video_KTD, tokens)


def test_missing_or_damaged_files_are_named(store: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no feature store: manifest.json is missing"):
        FeatureStore(tmp_path)
    with pytest.raises(ValueError, match="no video 'x'"):
        store.video("x")
    store.put_video("x", features())
    (file,) = (store.folder / "videos").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged"):
        store.video("x")
    (store.folder / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        FeatureStore(store.folder)
    for manifest, message in (
        ('{"format": "other"}', "expected format"),
        ("[]", "expected format"),
        (json.dumps({"format": FORMAT}), "holds no feature spec"),
    ):
        (store.folder / "manifest.json").write_text(manifest)
        with pytest.raises(ValueError, match=message):
            FeatureStore(store.folder)


def test_a_manifest_of_before_the_first_release_is_read(store: FeatureStore) -> None:
    manifest = store.folder / "manifest.json"
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({"format": values["format"], "recipe": values["spec"]}))
    assert FeatureStore(store.folder).spec == store.spec


def test_values_that_half_precision_cannot_hold_are_refused(store: FeatureStore) -> None:
    infinite = features()
    infinite.video_KTD[0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="float16"):
        store.put_video("x", infinite)
    assert store.videos() == [] and list((store.folder / "videos").iterdir()) == []


def test_features_must_fit_their_timeline() -> None:
    with pytest.raises(ValueError, match="5 clips"):
        VideoFeatures(video_KTD=np.zeros((4, 3, 8), np.float16), timeline=Timeline(duration=10, clip_seconds=2))


def test_large_features_are_written_and_read_in_parts(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that features on the disk are the same bytes as features in memory, whatever the order of their clips."""
    values = np.random.default_rng(1).normal(size=(4, 13, 7, 32)).astype(np.float16)
    timeline = Timeline(duration=25.5, clip_seconds=2.0)
    store.put_video("v", VideoFeatures(video_KTD=values, timeline=timeline))
    monkeypatch.setattr(growing, "LARGE", 1000)
    monkeypatch.setattr(stores, "LARGE", 1000)
    monkeypatch.setattr(growing, "_BLOCK", 999)
    parts = GrowingFeatures(store.folder)
    for first in (8, 0, 5):
        parts.put(values[:, first : {0: 5, 5: 8, 8: 13}[first]], first)
    mapped = parts.finish()
    assert parts.clips == 13 and mapping_of(mapped) is not None
    drop_pages(mapped)
    assert np.array_equal(mapped, values)
    plain = store.video_file("v").read_bytes()
    store.put_video("v", VideoFeatures(video_KTD=mapped, timeline=timeline))
    read = store.video("v", check=True).video_KTD
    assert mapping_of(read) is not None and np.array_equal(read, values)
    drop_pages(read)
    assert np.array_equal(read, values) and store.verify() == {}
    assert store.video_file("v").read_bytes() == plain
    assert sorted(path.name for path in store.folder.iterdir()) == ["manifest.json", "queries", "videos"]


def test_a_video_is_written_as_safetensors_writes_it(store: FeatureStore, tmp_path: Path) -> None:
    for vid in ("x", 'ünï "quoted"'):
        store.put_video(vid, features())
        (path,) = (store.folder / "videos").iterdir()
        with safe_open(path, "numpy") as file:
            save_file({"video": file.get_tensor("video")}, tmp_path / "expected", file.metadata())
        assert path.read_bytes() == (tmp_path / "expected").read_bytes()
        path.unlink()


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "LARGE", 1000)
    parts = GrowingFeatures(tmp_path / "absent")
    with pytest.raises(OSError, match=r"absent cannot hold the features of a long video \(No such file.*TMPDIR"):
        parts.put(features().video_KTD)


def poison(file: Path, name: str, place: tuple[int, ...], value: float) -> None:
    """Change one number of a store's file, and leave the header as it is."""
    with safe_open(file, framework="numpy") as opened:
        metadata = json.loads(opened.metadata()["about"])
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    tensors[name][place] = value
    save_file(
        tensors, file, {"about": json.dumps({k: v for k, v in metadata.items() if k not in ("digest", "header")})}
    )


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("large", [False, True])
def test_numbers_that_are_not_finite_are_refused_when_they_are_read(
    store: FeatureStore, value: float, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_video("x", features())
    store.put_queries({"a": np.zeros((4, 3, 32), np.float16)})
    (query_file,) = (store.folder / "queries").iterdir()
    poison(store.video_file("x"), "video", (2, 3, 1), value)
    poison(query_file, stores.query_digest("a"), (0, 1, 2), value)
    if large:
        monkeypatch.setattr(stores, "LARGE", 0)
    message = f"the features in {store.folder} are damaged: level -2 of video 'x' has numbers that are not finite"
    with pytest.raises(growing.FeatureValuesError, match=message):
        FeatureStore(store.folder).video("x")
    with pytest.raises(growing.FeatureValuesError, match=r"level -4 of the query 'a' has numbers that are not finite"):
        FeatureStore(store.folder).queries(["a"])
    other_levels = FeatureStore(store.folder, levels=(-3, -1))
    assert np.isfinite(other_levels.video("x").video_KTD).all() and np.isfinite(other_levels.queries(["a"])["a"]).all()
    faults = store.verify()
    assert "level -2 of video" in faults["videos/x.safetensors"] and len(faults) == 2


@pytest.mark.parametrize("large", [False, True])
def test_numbers_of_another_type_are_refused(store: FeatureStore, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put_video("x", features())
    store.put_queries({"a": np.zeros((4, 3, 32), np.float16)})
    for file in (store.video_file("x"), *(store.folder / "queries").iterdir()):
        file.write_bytes(file.read_bytes().replace(b'"dtype":"F16"', b'"dtype":"I16"'))
    if large:
        monkeypatch.setattr(stores, "LARGE", 0)
    again = FeatureStore(store.folder)
    with pytest.raises(ValueError, match=r"x\.safetensors is damaged .*I16, not F16"):
        again.video("x")
    with pytest.raises(ValueError, match=r"are I16, not F16"):
        again.queries(["a"])
    assert len(store.verify()) == 2 and all("not F16" in fault for fault in store.verify().values())


def test_a_file_without_its_array_is_damaged(store: FeatureStore) -> None:
    store.put_video("x", features())
    file = store.video_file("x")
    file.write_bytes(file.read_bytes().replace(b'"video":{', b'"vldeo":{'))
    with pytest.raises(ValueError, match=r"x\.safetensors is damaged"):
        store.video("x")


def test_the_file_of_another_video_is_found(store: FeatureStore) -> None:
    long_name = "x" * 300
    for vid in ("x", long_name, ".hidden", "a/b"):
        store.put_video(vid, features())
    assert store.verify() == {}
    shutil.copy(store.video_file("x"), store.video_file("y"))
    (fault,) = store.verify().values()
    assert fault == "its header names another video, 'x'; delete the file and extract again"
    with pytest.raises(ValueError, match=r"has 'x' where 'y' should be"):
        store.video("y")


@pytest.mark.parametrize(("size", "place"), [(0, None), (5, 4), (3 << 20, 0), (3 << 20, (3 << 20) - 1)])
def test_all_finite(size: int, place: int | None) -> None:
    values = np.full((1, size), 65504, np.float16)
    values[:, ::2] = -65504
    assert growing.all_finite(values)
    for wrong in (np.nan, -np.nan, np.inf, -np.inf) if place is not None else ():
        values[0, place] = wrong
        assert not growing.all_finite(values)
    assert not growing.all_finite(np.array([[1e9]]))


@pytest.mark.parametrize("place", ["first", "middle", "last", "duration", "cut"])
def test_a_check_finds_every_damage(store: FeatureStore, place: str) -> None:
    """Check flipped bits in the numbers and in the header, which the digest of the numbers does not cover."""
    store.put_video("v", features())
    path = store.video_file("v")
    data = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    at = {"first": begin, "middle": (begin + len(data)) // 2, "last": len(data) - 1}.get(place)
    at = data.index(b"duration") + len(b'duration\\": \\"') if at is None else at
    data[at] ^= 1
    path.write_bytes(data[:-1] if place == "cut" else data)
    with pytest.raises(ValueError, match="is damaged"):
        store.video("v", check=True)
    assert list(store.verify()) == ["videos/v.safetensors"]


def test_a_full_disk_moves_growing_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that no clip is lost if the first folder has no room any more, and that this must be allowed."""
    monkeypatch.setattr(growing, "LARGE", 100)
    temporary_file, files = tempfile.TemporaryFile, []

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() >= 600:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(bytes(data)[: 600 - self.tell()])

    def small(dir: Path | None = None) -> Any:
        files.append(temporary_file(dir=dir))
        return io.BufferedRandom(Full(os.dup(files[-1].fileno()), "r+b"), 64) if dir == tmp_path else files[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", small)
    values = np.random.default_rng(1).normal(size=(2, 40, 5)).astype(np.float16)
    for spare in (True, False):
        parts = GrowingFeatures(tmp_path, spare=spare)
        with nullcontext() if spare else pytest.raises(OSError, match=f"{tmp_path} cannot hold the features"):
            for first in range(0, 40, 4):
                parts.put(values[:, first : first + 4])
            assert np.array_equal(parts.finish(), values)
    for file in files:
        file.close()
