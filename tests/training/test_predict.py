"""Predictions come in the order of the annotations, and need the memory of one batch."""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sidelight.backbones import load_backbone
from sidelight.core.batch import Batch
from sidelight.core.grounding import Moment
from sidelight.core.timeline import Timeline
from sidelight.data.annotations import Annotation
from sidelight.data.datasets.base import DataWarning
from sidelight.features.open import FeatureSource, open_features_for
from sidelight.features.store import FeatureStore, VideoFeatures
from sidelight.models.decode.answer import Answer, AnswerConfig
from sidelight.models.decode.sdst import DecodeConfig
from sidelight.models.registry import SIDE_TUNERS, build_model, model_parts
from sidelight.models.zero_shot import ZERO_SHOT
from sidelight.training import predict as prediction
from sidelight.training.dataset import GroundingDataset, collate, unlabelled
from sidelight.training.predict import ground_batch, ground_long, predict

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

    def video(self, vid: str, *, check: bool = False) -> VideoFeatures:
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


@pytest.mark.parametrize("tokens", [0, 3])
@pytest.mark.parametrize("clips", [1, 9])
@pytest.mark.parametrize("name", [*(name for name, kind in SIDE_TUNERS.items() if kind.reads == "features"), ZERO_SHOT])
def test_every_model_reads_float16_features(name: str, clips: int, tokens: int) -> None:
    """Compare with float32 features: windows keep the float16 of the file, and models convert what they read."""
    if tokens and name in ("sdst", "zero-shot"):
        pytest.skip("reads one vector a clip")
    width, length = (16, 1) if name == "zero-shot" else (12, 4)
    config = {} if name == "zero-shot" else {"video_dim": 16, "text_dim": width, "levels": 1, "hidden": 16, "heads": 4}
    torch.manual_seed(0)
    model, decode = build_model(name, config).eval(), model_parts(name).decode_config()
    generator = np.random.default_rng(0)
    shape = (1, clips, tokens, 16) if tokens else (1, clips, 16)
    timeline = Timeline(duration=2.0 * clips, clip_seconds=2.0)
    video = VideoFeatures(video_KTD=generator.normal(size=shape).astype(np.float16), timeline=timeline)
    text_KLD = generator.normal(size=(1, length, width)).astype(np.float16)
    (expected,) = ground_batch(model, collate([unlabelled(video, text_KLD)]), [timeline], ["q"], decode)
    assert expected.moments
    assert ground_long(model, video, text_KLD, "q", decode, window_clips=75) == expected


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


@dataclass(frozen=True, kw_only=True)
class Runs(AnswerConfig):
    """Decodes the predictions of ``Oracle``: each run of clips above 0 is a moment, and its score is their mean."""

    def answers(self, predictions: Any, timelines: Sequence[Timeline]) -> Iterator[Answer]:
        for values_T, timeline in zip(predictions.values_BT.numpy(), timelines, strict=True):
            edges = np.flatnonzero(np.diff(np.concatenate([[0], values_T > 0, [0]])))
            ends = np.append(timeline.clip_spans()[:, 0], timeline.duration)
            yield (
                tuple(
                    Moment(ends[a], ends[b], float(values_T[a:b].mean()))
                    for a, b in zip(edges[::2], edges[1::2], strict=True)
                ),
                values_T,
            )


class Oracle(nn.Module):
    """A model whose only level of features is the strength of the event in each clip."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.windows = 0

    def forward(self, batch: Batch) -> Any:
        self.windows += batch.size
        return SimpleNamespace(video_mask_BT=batch.video_mask_BT, values_BT=batch.video_KBTD[0, :, :, 0].float())


HOUR = Timeline(duration=3599.0, clip_seconds=2.0)
"""1800 clips: 48 windows of 75, each 37 clips (74 s) after the one before; the last one starts at clip 1725."""


@pytest.mark.parametrize(
    "events",
    [
        [],
        [(start, start + 10) for start in range(64, 3500, 74)],  # each ends where a window starts
        [(start, start + 10) for start in range(74, 3500, 74)],  # each starts where a window starts
        [(start - 4, start + 6) for start in range(74, 3500, 74)],  # each is cut by a start
        [(start - 4, start + 6) for start in range(150, 3500, 74)],  # each is cut by an end
        [(start, start + 2) for start in range(72, 3500, 74)],  # one clip before each start
        [(start - 76, start + 74) for start in range(222, 3500, 296)],  # as long as a window
        [(100, 300), (444, 1036), (1500, 3300)],  # longer than a window
        [(2, 3598)],
        [(0, 3599)],
        [(0, 2), (3440, 3460), (3598, 3599)],  # the first and the last clip, and the last, pushed back window
    ],
)
def test_windows_leave_no_trace_in_an_hour(events: list[tuple[int, int]]) -> None:
    """Check events at every place relative to the windows; each has its own strength, so the order is checked too."""
    values = np.zeros((1, HOUR.num_clips, 1), np.float16)
    strengths = np.linspace(0.3, 1.0, max(1, len(events))).astype(np.float16)
    for (start, end), strength in zip(events, strengths, strict=False):
        values[0, start // 2 : -(-end // 2)] = strength
    model, features = Oracle(), VideoFeatures(video_KTD=values, timeline=HOUR)
    answer = ground_long(model, features, np.zeros((1, 1, 1), np.float16), "q", Runs(), window_clips=75)
    expected = sorted(((*event, float(s)) for event, s in zip(events, strengths, strict=False)), key=lambda e: -e[2])
    moments = [(round(m.start, 6), round(m.end, 6), m.score) for m in answer.moments]
    assert [m[:2] for m in moments] == [tuple(e[:2]) for e in expected]
    np.testing.assert_allclose([m[2] for m in moments], [e[2] for e in expected], rtol=1e-3)
    np.testing.assert_allclose(answer.saliency, values[0, :, 0], rtol=1e-3)
    assert model.windows == 48


def test_a_long_video_with_all_tokens_needs_the_memory_of_a_few_windows(tmp_path: Path) -> None:
    """Check the peaks of a process that grounds half an hour and then one and a half, at a fifth of CLIP's width."""
    script = """
import resource, sys
import numpy as np, torch
from sidelight.core.timeline import Timeline
from sidelight.features import growing
from sidelight.features.growing import GrowingFeatures
from sidelight.features.store import VideoFeatures
from sidelight.models.decode.r2_tuning import R2DecodeConfig
from sidelight.models.r2_tuning import R2Tuning, R2TuningConfig
from sidelight.training.predict import ground_long
growing.LARGE = 1 << 20
torch.manual_seed(0)
config = R2TuningConfig(video_dim=160, text_dim=16, hidden=32, heads=4)
model, rng = R2Tuning(config).eval(), np.random.default_rng(0)
def peak(clips):
    parts = GrowingFeatures(sys.argv[1])
    for first in range(0, clips, 8):
        parts.put(rng.standard_normal((4, min(8, clips - first), 50, 160), dtype=np.float32).astype(np.float16))
    video = VideoFeatures(video_KTD=parts.finish(), timeline=Timeline(duration=2.0 * clips, clip_seconds=2.0))
    del parts
    ground_long(model, video, np.zeros((4, 3, 16), np.float16), "q", R2DecodeConfig(), window_clips=75)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(peak(900), peak(2700))
"""
    output = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True, timeout=300
    ).stdout
    short, long = map(float, output.split())
    features = 4 * 1800 * 50 * 160 * 2 / 2**20  # MiB of the clips that only the longer video has
    assert long - short < features / 3, f"{long - short:.0f} MiB more for {features:.0f} MiB more features"
    assert list(tmp_path.iterdir()) == []
