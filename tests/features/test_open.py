"""One function opens the features of annotations, and first extracts the features that a store lacks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidelight.backbones import SpecMismatchError, load_backbone
from sidelight.data.annotations import Annotation
from sidelight.features import open as opening
from sidelight.features.layouts import export_features
from sidelight.features.open import FeatureSource, open_features_for
from sidelight.features.store import FeatureStore, store_exists


@pytest.fixture
def source(tiny_store: Path, tiny_world: Path, tiny_backbone: Path) -> FeatureSource:
    """Return the complete store of the tiny world, with its videos."""
    return FeatureSource(
        folder=tiny_store,
        videos=tiny_world / "videos",
        backbone="shapes",
        levels=(-4, -3, -2, -1),
        pooling="attention",
        weights=tiny_backbone,
    )


def never(*_: Any, **__: Any) -> Any:
    pytest.fail("this must not be called")


def test_a_complete_store_needs_neither_videos_nor_backbone(
    source: FeatureSource, tiny_annotations: list[Annotation], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not source.lacks_features(tiny_annotations)
    for name in ("load_backbone", "backbone_for", "find_videos", "extract"):
        monkeypatch.setattr(opening, name, never)
    spec = FeatureStore(source.folder).spec
    for chosen in (source, replace(source, videos=None), FeatureSource.of_spec(spec, source.folder)):
        assert open_features_for(tiny_annotations, chosen).spec == spec
    # Of a store with more levels than the wanted ones, the wanted ones are opened.
    for few in (
        replace(source, levels=(-3, -1)),
        FeatureSource.of_spec(replace(spec, levels=(-3, -1)), source.folder),
    ):
        assert open_features_for(tiny_annotations, few).spec.levels == (-3, -1)


def test_missing_features_are_extracted(
    source: FeatureSource, tiny_annotations: list[Annotation], tmp_path: Path
) -> None:
    """Check that all levels of a store are filled, and only the wanted ones are opened."""
    new = replace(source, folder=tmp_path / "new")
    some = [a for a in tiny_annotations if a.vid == tiny_annotations[0].vid]
    assert new.lacks_features(some)
    first = open_features_for(some, new, workers=0)
    assert first.spec == FeatureStore(source.folder).spec and not new.lacks_features(some)
    assert new.lacks_features(tiny_annotations)
    second = open_features_for(tiny_annotations, replace(new, levels=(-2,)), workers=0)
    assert second.spec.levels == (-2,) and not new.lacks_features(tiny_annotations)
    for vid in {a.vid for a in tiny_annotations}:
        expected = FeatureStore(source.folder).video(vid).video_KTD
        assert np.array_equal(FeatureStore(tmp_path / "new").video(vid).video_KTD, expected)


def test_one_process_extracts_and_all_wait(
    source: FeatureSource, tiny_annotations: list[Annotation], tmp_path: Path
) -> None:
    new = replace(source, folder=tmp_path / "new")
    existed: list[bool] = []

    def barrier() -> None:
        existed.append(store_exists(new.folder))

    with pytest.raises(ValueError, match="no feature store"):
        open_features_for(tiny_annotations, new, extracts=False, barrier=barrier)
    open_features_for(tiny_annotations, new, workers=0, barrier=barrier)
    open_features_for(tiny_annotations, new, extracts=False, barrier=barrier)
    assert existed == [False, True, True]


def test_another_spec_is_refused(
    source: FeatureSource, tiny_annotations: list[Annotation], tiny_backbone: Path, tmp_path: Path
) -> None:
    other = load_backbone("shapes", weights=tiny_backbone, pooling="mean")
    difference = "pooling is '{}', expected '{}'"
    with pytest.raises(SpecMismatchError, match=difference.format("attention", "mean")):
        open_features_for(tiny_annotations, FeatureSource.of_spec(other.spec, source.folder))
    with pytest.raises(SpecMismatchError, match=difference.format("attention", "mean")):
        open_features_for(tiny_annotations, source, backbone=other)
    # Missing levels do not hide the other differences.
    deeper = replace(other.spec, levels=(-5, -1))
    with pytest.raises(SpecMismatchError, match=r"levels is .*pooling is"):
        open_features_for(tiny_annotations, FeatureSource.of_spec(deeper, source.folder))
    FeatureStore.create(tmp_path / "other", other.spec)
    with pytest.raises(SpecMismatchError, match=difference.format("mean", "attention")):
        open_features_for(tiny_annotations, replace(source, folder=tmp_path / "other"))


def test_nothing_is_added_to_a_released_layout(
    source: FeatureSource, tiny_annotations: list[Annotation], tmp_path: Path
) -> None:
    spec = FeatureStore(source.folder).spec
    export_features(FeatureStore(source.folder), tmp_path / "sdst", tiny_annotations, layout="sdst")
    released = FeatureSource.of_spec(spec, tmp_path / "sdst")
    assert not released.is_store and open_features_for(tiny_annotations, released).spec == spec
    with pytest.raises(ValueError, match=r"in the layout sdst, which are not added to; leave out .* or --videos"):
        open_features_for(tiny_annotations, replace(released, videos=source.videos))
    with pytest.raises(SpecMismatchError, match="pooling is 'attention', expected 'mean'"):
        open_features_for(tiny_annotations, FeatureSource.of_spec(replace(spec, pooling="mean"), tmp_path / "sdst"))


def test_videos_that_cannot_be_read_are_named(
    source: FeatureSource, tiny_annotations: list[Annotation], tmp_path: Path
) -> None:
    vid = tiny_annotations[0].vid
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / f"{vid}.mp4").write_bytes(b"not a video")
    rows = [a for a in tiny_annotations if a.vid == vid]
    broken = replace(source, folder=tmp_path / "new", videos=tmp_path / "videos")
    with pytest.raises(ValueError, match=f"1 of 1 videos could not be read; the first is {vid}: "):
        open_features_for(rows, broken, workers=0)
