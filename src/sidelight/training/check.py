"""`sidelight train --check`: try a recipe with two training steps and two batches of validation, and keep nothing.

The check opens paths, features and shapes as the run would, takes two real steps (forward, losses, backward,
optimiser), and decodes and scores two batches of validation. It writes nothing into the folder of the run nor into a
feature store: where the recipe has videos and too few of them have features, it extracts the features of two short
videos into a temporary folder. For a model that is trained from pixels, it decodes the videos of the first two steps
and two short ones of validation, into such a folder too, unless their frames are in the cache already.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import torch

from sidelight.core.messages import count_of, duration_of
from sidelight.data.annotations import USUAL_CLIP_SECONDS, Annotation
from sidelight.features.frames import FrameCache
from sidelight.features.open import FeatureSource, open_features_for, require_durations
from sidelight.features.sources import find_videos
from sidelight.features.store import Features, FeatureStore, store_exists
from sidelight.io.cache import parse_size
from sidelight.io.runtime import peak_memory
from sidelight.metrics.evaluate import evaluate_submissions
from sidelight.models.registry import side_tuner
from sidelight.training.data import (
    FeatureData,
    FrameData,
    feature_source,
    frame_dataset,
    frames_folder,
    video_files,
)
from sidelight.training.dataset import AnnotatedVideos, GroundingDataset
from sidelight.training.frames import epoch_videos, frame_sampling
from sidelight.training.loop import Trainer, check_out, make_fabric
from sidelight.training.recipe import Recipe, TrainConfig
from sidelight.training.samples import Split, TrainingData, metric_of, read_split
from sidelight.training.state import STATE, load_state
from sidelight.training.tower import PixelBackbones

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
    """Videos that have features or decoded frames; the run makes those of the others when it starts."""
    makes: str = "features of {} exist, the run first extracts the others"
    """What the run does with the others; {} stands for the number of ready videos."""

    def text(self) -> str:
        """Return the counts as one line."""
        missing = self.ready_videos < self.videos
        note = f"; {self.makes.format(count_of(self.ready_videos, 'video'))}" if missing else ""
        labels = f" ({self.unlabelled:,} of them without windows or ratings)" if self.unlabelled else ""
        return f"{count_of(self.queries, 'query')}{labels}, {count_of(self.videos, 'video')}, {self.hours:.1f} h{note}"


@dataclass(frozen=True, kw_only=True)
class RunCheck:
    """The result of a check: what the run will be, and how long it will take."""

    recipe: Recipe
    train: SplitSummary
    val: SplitSummary | None
    inputs: tuple[str, str]
    """What the model reads, "features" or "frames", and a description of them."""
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
    """Largest memory of an accelerator, or of the whole process on a CPU; 0 where the system does not say."""
    largest: str = ""
    """The largest training video, where it decides the memory."""

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
        train = self.recipe.train
        per_process = f" ({train.batch_size // train.devices} a process)" if train.devices > 1 else ""
        rows = [
            ("train", self.train.text()),
            ("validation", self.val.text() if self.val else "none"),
            self.inputs,
            ("model", f"{self.recipe.side_tuner}, {self.parameters:,} parameters"),
            (
                "arithmetic",
                f"{self.device}, {self.precision}, batches of {train.batch_size}{per_process}"
                + (f", {self.peak_bytes / 2**20:,.0f} MiB" if self.peak_bytes else ""),
            ),
            ("losses", ", ".join(f"{loss:.4f}" for loss in self.losses) + f" (the first {len(self.losses)} steps)"),
        ]
        if self.largest:
            rows.insert(3, ("largest", self.largest))
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
    opener = {"features": _open_features, "frames": _open_frames}[side_tuner(recipe.side_tuner).reads]
    with TemporaryDirectory() as temporary:
        opened = opener(recipe, fabric, Path(temporary))
        data = opened.data
        trainer = Trainer(recipe, fabric, data, quiet=True)
        losses, step_seconds, peak_bytes = _take_steps(trainer, opened.batches)
        scored, val_seconds = _validate_some(trainer, opened) if opened.few_val is not None else (0, 0.0)
        # A state is compared with all training annotations, so it can be compared only if the check opened all.
        if resume and len(data.train) == opened.train.queries and (out / STATE).exists():
            load_state(out / STATE, recipe, data)
        inputs = (side_tuner(recipe.side_tuner).reads, data.description())
    return RunCheck(
        recipe=recipe,
        train=opened.train,
        val=opened.val,
        inputs=inputs,
        parameters=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        device=str(fabric.device),
        precision=str(fabric._precision.precision),
        losses=losses,
        step_seconds=step_seconds,
        steps=opened.steps,
        val_seconds=val_seconds,
        scored=scored,
        peak_bytes=peak_bytes,
        largest=opened.largest,
    )


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """The samples that a check reads, and the sizes of the whole run."""

    data: TrainingData
    few_val: AnnotatedVideos | None
    """Validation samples to decode and score."""
    batches: list[list[int]]
    """Training batches to take."""
    train: SplitSummary
    val: SplitSummary | None
    steps: int
    """Steps of an epoch of the whole run."""
    largest: str = ""
    """The largest training video, where it decides the memory."""


def _open_features(recipe: Recipe, fabric: Fabric, temporary: Path) -> _Opened:
    """Open the features of a run, or extract some."""
    train = _open_some(recipe, "train", fabric, temporary)
    val = _open_some(recipe, "val", fabric, temporary) if recipe.data.val else None
    few_val = None
    if val is not None:
        samples = val.samples
        few_val = GroundingDataset(
            samples.annotations[: STEPS * _batch_share(recipe.train)],
            samples.store,
            in_memory=False,
            seed=samples.seed,
            binding=samples.binding,
            round_clips=samples.round_clips,
        )
    data = FeatureData(recipe, train.samples, val.samples if val else None)
    return _Opened(
        data=data,
        few_val=few_val,
        batches=data.batches(0, world=recipe.train.devices),
        train=train.summary,
        val=val.summary if val else None,
        steps=_steps(len(train.annotations), recipe.train),
    )


def _open_frames(recipe: Recipe, fabric: Fabric, temporary: Path) -> _Opened:
    """Open the frames of the first steps and of some validation videos; decode those that the cache lacks."""
    backbones = PixelBackbones.load(recipe.backbone, recipe.model.sentence_dim)
    sampling = frame_sampling(backbones.spec)
    cache = FrameCache(frames_folder(recipe), sampling)
    limit = parse_size(recipe.data.frames_cache_limit, name="data.frames_cache_limit")
    names: tuple[Split, ...] = ("train", "val") if recipe.data.val else ("train",)
    splits = [_Videos.of(recipe, name, cache) for name in names]
    cache.check_room({vid: split.seconds[vid] for split in splits for vid in split.missing}, limit)

    train, vids = splits[0], list(splits[0].files)
    frame_bytes = cache.chunk_bytes // sampling.frames_per_clip
    frames = np.array([cache.bytes_for(train.seconds[vid]) // frame_bytes for vid in vids])
    steps = epoch_videos(
        frames,
        epoch=0,
        frames_per_step=recipe.train.frames_per_step,
        videos_per_step=recipe.train.batch_size,
        seed=recipe.train.seed,
        world=recipe.train.devices,
    )
    chosen = [{vids[video] for step in steps[:STEPS] for video in step}]
    chosen += [set(sorted(split.seconds, key=lambda vid: split.seconds[vid])[:_VIDEOS]) for split in splits[1:]]
    datasets = []
    for split, some in zip(splits, chosen, strict=True):
        files = {vid: split.files[vid] for vid in some}
        used = cache
        if some & set(split.missing):
            used = FrameCache(temporary, sampling)
            used.fill(files, split.seconds, limit=limit)
        rows = [a for a in split.annotations if a.vid in some]
        datasets.append(frame_dataset(recipe, rows, files, used, backbones))
    val = datasets[1] if len(datasets) > 1 else None
    rows_of = datasets[0].rows_of_videos()
    longest = vids[int(frames.argmax())]
    return _Opened(
        data=FrameData(recipe, datasets[0], val, backbones),
        few_val=val,
        batches=[[row for video in step for row in rows_of[vids[video]]] for step in steps[:STEPS]],
        train=train.summary(),
        val=splits[1].summary() if val else None,
        steps=len(steps),
        largest=f"{int(frames.max()):,} frames ({longest}); a step reads up to {recipe.train.frames_per_step:,}",
    )


@dataclass(frozen=True, kw_only=True)
class _Videos:
    """A split of a recipe that reads frames."""

    annotations: list[Annotation]
    files: Mapping[str, Path]
    """Id -> file of each video."""
    seconds: Mapping[str, float]
    """Id -> annotated seconds."""
    missing: list[str]
    """Videos whose frames are not in the cache."""

    @classmethod
    def of(cls, recipe: Recipe, split: Split, cache: FrameCache) -> _Videos:
        """Read the annotations and find the videos; ValueError if one is missing or has another length."""
        rows = read_split(recipe, split)
        files = video_files(recipe, split, rows)
        missing = cache.missing(files)
        require_durations(rows, {vid: files[vid] for vid in missing}, USUAL_CLIP_SECONDS)
        return cls(annotations=rows, files=files, seconds={a.vid: a.duration for a in rows}, missing=missing)

    def summary(self) -> SplitSummary:
        """Return the sizes of the split."""
        return _summary(self.annotations, len(self.files) - len(self.missing), makes=_FRAMES_MADE)


_FRAMES_MADE = "frames of {} are in the cache, the run first decodes the others"


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
    summary = _summary(annotations, ready_videos)
    return _SplitData(annotations=annotations, samples=samples, summary=summary)


def _summary(annotations: Sequence[Annotation], ready_videos: int, **more: str) -> SplitSummary:
    """Return the sizes of a split."""
    seconds = {a.vid: a.duration for a in annotations}
    return SplitSummary(
        queries=len(annotations),
        videos=len(seconds),
        hours=sum(seconds.values()) / 3600,
        unlabelled=sum(not a.relevant_windows and not a.saliency_scores for a in annotations),
        ready_videos=ready_videos,
        **more,
    )


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


def _take_steps(trainer: Trainer, batches: list[list[int]]) -> tuple[tuple[float, ...], float, int]:
    """Take the steps; return the total loss of each, the seconds of the last, and the largest memory in bytes."""
    device = trainer.fabric.device
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    trainer.wrapped.train()
    losses, seconds = [], 0.0
    for indices in (batches * STEPS)[:STEPS]:
        start = time.perf_counter()
        result = trainer.train_step(indices)
        if on_cuda:
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
        losses.append(result.values["total"])
    return tuple(losses), seconds, torch.cuda.max_memory_allocated(device) if on_cuda else peak_memory()


def _validate_some(trainer: Trainer, opened: _Opened) -> tuple[int, float]:
    """Decode and score some batches; return the number of queries, and the seconds of all queries at that speed."""
    val = opened.few_val
    assert val is not None and opened.val is not None
    start = time.perf_counter()
    submissions = opened.data.predict(trainer.model, val)
    evaluate_submissions(submissions, val.annotations, metric_of(trainer.recipe))
    return len(val), (time.perf_counter() - start) / len(val) * opened.val.queries
