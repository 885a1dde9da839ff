"""Predictions come in the order of the annotations, and need the memory of one batch."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sidelight.backbones import load_backbone
from sidelight.core.batch import Batch
from sidelight.data.annotations import Annotation
from sidelight.data.datasets.base import DataWarning
from sidelight.features.open import FeatureSource, open_features_for
from sidelight.features.store import FeatureStore, VideoFeatures
from sidelight.models.decode.sdst import DecodeConfig
from sidelight.models.registry import build_model
from sidelight.training import predict as prediction
from sidelight.training.dataset import GroundingDataset
from sidelight.training.predict import predict

SMALL = {"video_dim": 32, "text_dim": 32, "hidden": 32, "heads": 4, "moment_queries": 6}


class Alive:
    """Counts the objects that are still in memory. None of them is part of a reference cycle."""

    def __init__(self) -> None:
        self.references: list[weakref.ref[Any]] = []
        self.most = 0

    def add(self, thing: Any) -> None:
        """Count another object."""
        self.references = [*(r for r in self.references if r() is not None), weakref.ref(thing)]
        self.most = max(self.most, len(self.references))


class CountingStore(FeatureStore):
    """A store that counts the videos whose features are in memory at once."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.alive = Alive()

    def video(self, vid: str) -> VideoFeatures:
        features = super().video(vid)
        self.alive.add(features.video_KTD)
        return features


class CountingDataset(GroundingDataset):
    """A dataset that counts the batches in memory at once, and records the size of each."""

    def __init__(self, annotations: Sequence[Annotation], store: FeatureStore) -> None:
        super().__init__(annotations, store, in_memory=False, targets=False)
        self.alive = Alive()
        self.sizes: list[tuple[int, int]] = []

    def batch(self, indices: Sequence[int], epoch: int = 0) -> Batch:
        batch = super().batch(indices, epoch)
        self.alive.add(batch)
        self.sizes.append((batch.size, batch.video_mask_BT.shape[1]))
        return batch


class CountingModel(nn.Module):
    """A model that counts its predictions in memory at once."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = build_model("sdst", SMALL).eval()
        self.alive = Alive()

    def forward(self, batch: Batch) -> Any:
        predictions = self.model(batch)
        self.alive.add(predictions)
        return predictions


@pytest.fixture
def mixed_annotations(tiny_annotations: list[Annotation]) -> list[Annotation]:
    """Return 24 annotations, with the videos mixed."""
    by_video: dict[str, list[Annotation]] = {}
    for row in tiny_annotations:
        by_video.setdefault(row.vid, []).append(row)
    rows = [row for several in zip(*by_video.values(), strict=False) for row in several]
    return [replace((rows * 24)[i], qid=i) for i in range(24)]


def test_one_batch_is_in_memory_at_a_time(mixed_annotations: list[Annotation], tiny_store: Path) -> None:
    store = CountingStore(tiny_store)
    dataset, model = CountingDataset(mixed_annotations, store), CountingModel()
    submissions = predict(model, dataset, DecodeConfig(), batch_size=4)
    assert [s.qid for s in submissions] == list(range(24))
    assert [size for size, _ in dataset.sizes] == [4] * 6
    assert dataset.alive.most == 1
    assert model.alive.most == 1
    assert store.alive.most <= 4


def test_batches_of_long_videos_are_smaller(
    mixed_annotations: list[Annotation], tiny_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, model = CountingDataset(mixed_annotations, CountingStore(tiny_store)), CountingModel()
    expected = predict(model, dataset, DecodeConfig(), batch_size=4)
    dataset.sizes.clear()
    longest = int(dataset.num_clips().max())
    monkeypatch.setattr(prediction, "VECTORS_AT_ONCE", 3 * longest - 1)
    submissions = predict(model, dataset, DecodeConfig())
    assert [size for size, _ in dataset.sizes] == [2] * 12
    assert all(size * clips < 3 * longest for size, clips in dataset.sizes)
    for submission, larger_batch in zip(submissions, expected, strict=True):
        assert submission.qid == larger_batch.qid and submission.vid == larger_batch.vid


def test_windows_of_a_long_video_are_read_in_batches(
    mixed_annotations: list[Annotation], tiny_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that the windows of a batch are limited too, for a video longer than the model's input."""
    dataset, model = CountingDataset(mixed_annotations[:1], CountingStore(tiny_store)), CountingModel()
    monkeypatch.setattr(prediction, "VECTORS_AT_ONCE", 8)
    sizes: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].video_mask_BT.shape)))
    (submission,) = predict(model, dataset, DecodeConfig(), window_clips=4)
    assert set(sizes) == {(2, 4), (1, 4)} or set(sizes) == {(2, 4)}
    assert submission.qid == 0 and model.alive.most == 1


def test_a_video_of_another_length_than_annotated(
    tiny_annotations: list[Annotation], tiny_world: Path, tiny_backbone: Path, tiny_store: Path, tmp_path: Path
) -> None:
    """Check that predict refuses a store or a file that is far shorter than annotated, before it extracts."""
    wrong = [replace(tiny_annotations[0], duration=150.0, relevant_windows=((100, 140),))]
    with pytest.raises(ValueError, match=r"1 of 1 videos have features of another length .* annotated 150 s"):
        GroundingDataset(wrong, FeatureStore(tiny_store), targets=False)
    late = [replace(tiny_annotations[0], duration=150.0)]
    with pytest.warns(DataWarning, match="1 of 1 videos have features of another length"):
        GroundingDataset(late, FeatureStore(tiny_store))
    spec = FeatureStore(tiny_store).spec
    source = FeatureSource.of_spec(spec, tmp_path, videos=tiny_world / "videos")
    with pytest.raises(ValueError, match=r"lasts 2\d.* s, but the annotations of .* say 150 s; compare vid"):
        open_features_for(wrong, source, backbone=load_backbone("shapes", weights=tiny_backbone))
    assert not list(tmp_path.rglob("*.safetensors"))
