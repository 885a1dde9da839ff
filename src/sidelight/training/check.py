"""`sidelight train --check`: try a recipe with two training steps and two batches of validation, and keep nothing.

The check opens paths, features and shapes as the run would, takes two real steps (forward, losses, backward,
optimiser), and decodes and scores two batches of validation. It writes nothing into the folder of the run nor into a
feature store: where the recipe has videos and too few of them have features, it extracts the features of two short
videos into a temporary folder.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from sidelight.backbones.protocol import FeatureSpec
from sidelight.core.messages import count_of, duration_of
from sidelight.data.annotations import Annotation
from sidelight.features.open import FeatureSource, open_features_for
from sidelight.features.sources import find_videos
from sidelight.features.store import Features, FeatureStore, store_exists
from sidelight.metrics.evaluate import evaluate_submissions
from sidelight.training.data import Split, TrainingData, feature_source, metric_of, read_split
from sidelight.training.dataset import GroundingDataset, epoch_batches
from sidelight.training.loop import Trainer, check_out, make_fabric
from sidelight.training.predict import predict
from sidelight.training.recipe import Recipe, TrainConfig
from sidelight.training.state import STATE, load_state

if TYPE_CHECKING:
    from lightning_fabric import Fabric

STEPS = 2
"""Number of training steps, and of validation batches."""
_VIDEOS = 2
"""Number of videos whose features are extracted if the store has too few."""


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """Size of the training or validation data."""

    queries: int
    videos: int
    hours: float
    """Length of all videos together."""
    unlabelled: int
    """Queries with neither windows nor ratings, which cannot be trained on or scored."""
    ready_videos: int
    """Videos that have features; the run extracts the others when it starts."""

    def text(self) -> str:
        """Return the counts as one line."""
        missing = self.ready_videos < self.videos
        ready = count_of(self.ready_videos, "video")
        note = f"; features of {ready} exist, the run first extracts the others" if missing else ""
        labels = f" ({self.unlabelled:,} of them without windows or ratings)" if self.unlabelled else ""
        return f"{count_of(self.queries, 'query')}{labels}, {count_of(self.videos, 'video')}, {self.hours:.1f} h{note}"


@dataclass(frozen=True, kw_only=True)
class RunCheck:
    """The result of a check: what the run will be, and how long it will take."""

    recipe: Recipe
    train: SplitSummary
    val: SplitSummary | None
    features: FeatureSpec
    parameters: int
    """Number of trained parameters."""
    device: str
    precision: str
    """Arithmetic that the device computes in: 16-mixed becomes bf16-mixed on a CPU."""
    losses: tuple[float, ...]
    """The total loss of each step."""
    step_seconds: float
    """Time of the last step; the first one warms up."""
    steps: int
    """Steps of an epoch."""
    val_seconds: float
    """Time of one validation, estimated from its two batches."""
    scored: int
    """Validation queries that were decoded and scored."""
    peak_bytes: int
    """Largest memory of an accelerator; 0 on a CPU."""

    @property
    def epoch_seconds(self) -> float:
        """Return the time of the training steps of an epoch."""
        return self.steps * self.step_seconds

    @property
    def run_seconds(self) -> float:
        """Return the time of the whole run, validations included."""
        train = self.recipe.train
        return train.epochs * self.epoch_seconds + math.ceil(train.epochs / train.val_every) * self.val_seconds

    def lines(self) -> list[tuple[str, str]]:
        """Return the lines to print, each a name and a text."""
        spec, train = self.features, self.recipe.train
        pooling = "all tokens" if spec.pooling == "tokens" else f"pooling {spec.pooling}"
        per_process = f" ({train.batch_size // train.devices} a process)" if train.devices > 1 else ""
        rows = [
            ("train", self.train.text()),
            ("validation", self.val.text() if self.val else "none"),
            (
                "features",
                f"{spec.backbone} ({spec.weights}), levels {', '.join(map(str, spec.levels))}, {pooling}, "
                f"{spec.frames_per_clip} frames per clip of {spec.clip_seconds:g} s; widths {spec.video_dim} and "
                f"{spec.text_dim}",
            ),
            ("model", f"{self.recipe.side_tuner}, {self.parameters:,} parameters"),
            (
                "arithmetic",
                f"{self.device}, {self.precision}, batches of {train.batch_size}{per_process}"
                + (f", {self.peak_bytes / 2**20:,.0f} MiB" if self.peak_bytes else ""),
            ),
            ("losses", ", ".join(f"{loss:.4f}" for loss in self.losses) + f" (the first {len(self.losses)} steps)"),
        ]
        if self.val:
            rows.append(("decoded", f"{count_of(self.scored, 'query')} of validation"))
        step, epoch = duration_of(self.step_seconds), duration_of(self.epoch_seconds)
        speed = f"{step} a step, {count_of(self.steps, 'step')} an epoch: about {epoch}"
        if self.val:
            speed += f"; a validation {duration_of(self.val_seconds)}"
        rows.append(("speed", f"{speed}; all {count_of(train.epochs, 'epoch')} {duration_of(self.run_seconds)}"))
        return rows


def check_run(recipe: Recipe, *, resume: bool = False) -> RunCheck:
    """Take two steps of a run, and keep nothing.

    A run of several processes is checked in one process, with its share of a batch.

    Args:
        recipe: the run.
        resume: the run will go on with an interrupted one, whose state must fit.

    Raises:
        ValueError: for whatever would stop the run; if a loss is not finite.
    """
    out = Path(recipe.train.out)
    check_out(out, resume=resume)
    if recipe.train.devices > 1:
        make_fabric(recipe.train)  # fails if there are fewer devices than the run needs
    fabric = make_fabric(recipe.train, devices=1)
    with TemporaryDirectory() as temporary:
        train = _open_some(recipe, "train", fabric, Path(temporary))
        val = _open_some(recipe, "val", fabric, Path(temporary)) if recipe.data.val else None
        data = TrainingData(train=train.samples, val=val.samples if val else None)
        trainer = Trainer(recipe, fabric, data, quiet=True)
        losses, step_seconds, peak_bytes = _take_steps(trainer)
        scored, val_seconds = _validate_some(trainer, val) if val else (0, 0.0)
        # A state is compared with all training annotations, so it can be compared only if the check opened all.
        if resume and len(train.samples) == len(train.annotations) and (out / STATE).exists():
            load_state(out / STATE, recipe, data)
    return RunCheck(
        recipe=recipe,
        train=train.summary,
        val=val.summary if val else None,
        features=data.spec,
        parameters=sum(p.numel() for p in trainer.model.parameters()),
        device=str(fabric.device),
        precision=str(fabric._precision.precision),
        losses=losses,
        step_seconds=step_seconds,
        steps=_steps(len(train.annotations), recipe.train),
        val_seconds=val_seconds,
        scored=scored,
        peak_bytes=peak_bytes,
    )


@dataclass(frozen=True, kw_only=True)
class _SplitData:
    """A split of a recipe, and the samples of it that the check reads."""

    annotations: list[Annotation]
    """All annotations of the split."""
    samples: GroundingDataset
    summary: SplitSummary


def _open_some(recipe: Recipe, split: Split, fabric: Fabric, temporary: Path) -> _SplitData:
    """Open a split.

    All features that exist are read once, which refuses numbers that are not finite.

    Of a store that the run will fill, open only the samples that have features; if they are too few, extract some.
    """
    from tqdm import tqdm

    annotations = read_split(recipe, split)
    source = feature_source(recipe, split)
    if source.videos and source.is_store:
        some, store, ready_videos = _extract_some(recipe, split, source, annotations, fabric, temporary)
    else:
        some, store = annotations, open_features_for(annotations, source)
        ready_videos = len({a.vid for a in annotations})
    for vid in tqdm(dict.fromkeys(a.vid for a in some), unit="video", desc=f"reading {split}", disable=None):
        store.video(vid)  # refuses numbers that are not finite
    samples = GroundingDataset(
        some,
        store,
        in_memory=False,
        seed=recipe.train.seed,
        binding=recipe.data.binding,
        round_clips=recipe.data.round_clips,
    )
    seconds = {a.vid: a.duration for a in annotations}
    summary = SplitSummary(
        queries=len(annotations),
        videos=len(seconds),
        hours=sum(seconds.values()) / 3600,
        unlabelled=sum(not a.relevant_windows and not a.saliency_scores for a in annotations),
        ready_videos=ready_videos,
    )
    return _SplitData(annotations=annotations, samples=samples, summary=summary)


def _extract_some(
    recipe: Recipe, split: Split, source: FeatureSource, annotations: list[Annotation], fabric: Fabric, temporary: Path
) -> tuple[list[Annotation], Features, int]:
    """Return annotations with features, their features, and the number of videos that have features already."""
    assert source.videos
    find_videos(source.videos, (a.vid for a in annotations))  # fails if the run would lack a video
    backbone = source.load_backbone()
    enough = min(STEPS * _batch_share(recipe.train), len(annotations))
    ready_videos = 0
    if store_exists(source.folder):
        filled = FeatureStore(source.folder)
        backbone.spec.require(filled.spec, what=f"the features in {source.folder}", than="the recipe asks for")
        missing_queries = set(filled.missing_queries(a.query for a in annotations))
        with_video = [a for a in annotations if filled.has_video(a.vid)]
        ready_videos = len({a.vid for a in with_video})
        ready = [a for a in with_video if a.query not in missing_queries]
        if len(ready) >= enough:
            return ready, open_features_for(ready, replace(source, videos=None)), ready_videos
    seconds = {a.vid: a.duration for a in annotations}
    short_videos = sorted(seconds, key=lambda vid: seconds[vid])[:_VIDEOS]
    some = [a for a in annotations if a.vid in short_videos]
    extracted = replace(source, folder=temporary / split)
    store = open_features_for(some, extracted, backbone=backbone, device=fabric.device, workers=0)
    if split == "train":
        some = (some * math.ceil(enough / len(some)))[:enough]
    return some, store, ready_videos


def _batch_share(config: TrainConfig) -> int:
    """Return how many samples of a batch one process gets."""
    return config.batch_size // config.devices


def _steps(samples: int, config: TrainConfig) -> int:
    """Return the steps of an epoch; a dataset smaller than a batch is one batch."""
    full, rest = divmod(samples, config.batch_size)
    return max(1, full + (config.last_batch == "keep" and rest >= config.devices))


def _take_steps(trainer: Trainer) -> tuple[tuple[float, ...], float, int]:
    """Take the steps; return the total loss of each, the seconds of the last, and the largest memory in bytes."""
    config, device = trainer.config, trainer.fabric.device
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    num_clips = trainer.data.train.num_clips()
    batches = epoch_batches(
        num_clips, epoch=0, batch_size=_batch_share(config), last_batch=config.last_batch, seed=config.seed
    )
    trainer.wrapped.train()
    losses, seconds = [], 0.0
    for indices in (batches * STEPS)[:STEPS]:
        start = time.perf_counter()
        result = trainer.train_step(indices)
        if on_cuda:
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
        losses.append(result.values["total"])
    return tuple(losses), seconds, torch.cuda.max_memory_allocated(device) if on_cuda else 0


def _validate_some(trainer: Trainer, val: _SplitData) -> tuple[int, float]:
    """Decode and score some batches; return the number of queries, and the seconds of all queries at that speed."""
    recipe, share = trainer.recipe, _batch_share(trainer.config)
    samples = val.samples
    some = samples.annotations[: STEPS * share]
    few = GroundingDataset(
        some,
        samples.store,
        in_memory=False,
        seed=samples.seed,
        binding=samples.binding,
        round_clips=samples.round_clips,
    )
    start = time.perf_counter()
    submissions = predict(trainer.model, few, recipe.decoding, window_clips=recipe.window_clips, batch_size=share)
    evaluate_submissions(submissions, some, metric_of(recipe))
    return len(some), (time.perf_counter() - start) / len(some) * len(val.annotations)
