"""`sidelight train --check`: is a recipe ready to run? Everything that a run does, twice, and nothing is kept.

Paths, features and shapes are looked at as the run would; then come two real steps (forward, losses, backward,
optimiser) and two batches of validation, decoded and scored. Nothing is written where the run will be, nor into a
feature store: where the recipe has videos, and features of too few of them are there yet, those of two short ones are
extracted into a temporary folder.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from sidelight.backbones import load_backbone
from sidelight.backbones.protocol import FeatureSpec
from sidelight.data.annotations import Annotation
from sidelight.features.extract import extract
from sidelight.features.layouts import layout_of
from sidelight.features.sources import find_videos
from sidelight.features.store import Features, FeatureStore, store_exists
from sidelight.metrics.evaluate import evaluate_submissions
from sidelight.training.dataset import GroundingDataset, epoch_batches
from sidelight.training.loop import STATE, Trainer, learning_rate, make_fabric
from sidelight.training.predict import predict
from sidelight.training.recipe import Recipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric

STEPS = 2
"""Steps of training, and batches of validation."""
_VIDEOS = 2
"""Videos whose features are extracted if too few are there."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Training or validation data."""

    queries: int
    videos: int
    hours: float
    ready: int
    """Videos whose features are there; the others are extracted when the run starts."""


@dataclass(frozen=True, kw_only=True)
class RunCheck:
    """What two steps of a run told."""

    recipe: Recipe
    train: Part
    val: Part | None
    features: FeatureSpec
    parameters: int
    device: str
    losses: tuple[float, ...]
    """Of each step, all terms together."""
    step_seconds: float
    """Of the last step; the first one warms up."""
    steps: int
    """Of an epoch."""
    val_seconds: float
    """Of one validation, by its two batches."""
    scored: int
    """Queries of validation that were decoded and scored."""
    peak_bytes: int
    """Largest memory of an accelerator; 0 on a CPU."""

    @property
    def epoch_seconds(self) -> float:
        """Of the training steps of an epoch."""
        return self.steps * self.step_seconds

    @property
    def run_seconds(self) -> float:
        """Of the whole run, validations included."""
        train = self.recipe.train
        return train.epochs * self.epoch_seconds + math.ceil(train.epochs / train.val_every) * self.val_seconds

    def lines(self) -> list[tuple[str, str]]:
        """What to print: a name and a text each."""
        made, train = self.features, self.recipe.train
        shape = "all tokens" if made.pooling == "tokens" else f"pooling {made.pooling}"
        per_process = f" ({train.batch_size // train.devices} a process)" if train.devices > 1 else ""
        rows = [
            ("train", _counts(self.train)),
            ("validation", _counts(self.val) if self.val else "none"),
            (
                "features",
                f"{made.backbone} ({made.weights}), levels {', '.join(map(str, made.levels))}, {shape}, "
                f"{made.frames_per_clip} frames per clip of {made.clip_seconds:g} s; widths {made.video_dim} and "
                f"{made.text_dim}",
            ),
            ("model", f"{self.recipe.side_tuner}, {self.parameters:,} parameters"),
            (
                "arithmetic",
                f"{self.device}, {train.precision}, batches of {train.batch_size}{per_process}"
                + (f", {self.peak_bytes / 2**20:,.0f} MiB" if self.peak_bytes else ""),
            ),
            ("losses", ", ".join(f"{loss:.4f}" for loss in self.losses) + f" (the first {len(self.losses)} steps)"),
        ]
        if self.val:
            rows.append(("decoded", f"{self.scored} queries of validation"))
        speed = f"{self.step_seconds:.2g} s a step, {self.steps:,} steps an epoch: about {_clock(self.epoch_seconds)}"
        if self.val:
            speed += f"; a validation {_clock(self.val_seconds)}"
        rows.append(("speed", f"{speed}; all {train.epochs} epochs {_clock(self.run_seconds)}"))
        return rows


def _counts(part: Part) -> str:
    later = f"; features of {part.ready:,} are there, the others come first" if part.ready < part.videos else ""
    return f"{part.queries:,} queries, {part.videos:,} videos, {part.hours:.1f} h{later}"


def _clock(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def check_run(recipe: Recipe, *, resume: bool = False) -> RunCheck:
    """Do two steps of a run, and keep nothing.

    With several processes, the check is one of them alone, with its share of a batch.

    Args:
        recipe: the run.
        resume: whether it will go on with an interrupted one: then its state must be there and fit.

    Raises:
        ValueError: for whatever would stop the run; if a loss is not finite.
    """
    out = Path(recipe.train.out)
    _check_out(out, resume=resume)
    make_fabric(recipe.train)  # as it will be: are there so many devices?
    fabric = make_fabric(recipe.train, devices=1)
    with TemporaryDirectory() as temporary:
        rehearsal = _Rehearsal(recipe, fabric, Path(temporary))
        done = rehearsal.rehearse()
        if resume and rehearsal.complete and (out / STATE).exists():
            rehearsal._load(out / STATE)  # says it if the state is of another recipe
        return done


def _check_out(out: Path, *, resume: bool) -> None:
    if (out / STATE).exists() and not resume:
        raise ValueError(f"{out} holds a run already; add --resume to go on with it, or set train.out")
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise ValueError(f"train.out {out} cannot be made: {there} is a file; set another")
    if not os.access(there, os.W_OK):
        raise ValueError(f"train.out {out} cannot be made: {there} cannot be written; set another")


class _Rehearsal(Trainer):
    """A run that is not opened: no state, no log."""

    def __init__(self, recipe: Recipe, fabric: Fabric, temporary: Path) -> None:
        self._temporary = temporary
        self._whole: dict[str, list[Annotation]] = {}
        self._ready: dict[str, int] = {}
        super().__init__(recipe, fabric, quiet=True)

    @property
    def complete(self) -> bool:
        """Whether the training data is all there, not a part of it."""
        return len(self.train_data) == len(self._whole["train"])

    def _dataset(self, part: str) -> GroundingDataset:
        data = self.recipe.data
        rows = self._whole[part] = self._annotations(part)
        folder, videos = self._folder(part), getattr(data, f"{part}_videos")
        self._ready[part] = len({a.vid for a in rows})
        if videos and layout_of(folder, data.layout or "") == "sidelight":
            store, rows = self._few(part, folder, videos, rows)
        else:
            store = self._store(folder, videos, rows)
        return GroundingDataset(rows, store, in_memory=False, seed=self.config.seed, binding=data.binding)

    def _few(self, part: str, folder: str, videos: str, rows: list[Annotation]) -> tuple[Features, list[Annotation]]:
        """The rows whose features are in the store; if these are too few, those of two short videos, extracted."""
        files = find_videos(videos, (a.vid for a in rows))
        backbone = self.recipe.backbone
        levels = FeatureStore.levels_to_extract(folder, backbone.chosen)
        made = load_backbone(backbone.name, **{**backbone.options(), "levels": levels})
        enough = min(STEPS * self._share, len(rows))
        if store_exists(folder):
            store = FeatureStore(folder)
            made.spec.require(store.spec, what=f"the features in {folder}", than="the recipe asks for")
            lacking = set(store.missing_queries(a.query for a in rows))
            there = [a for a in rows if a.query not in lacking and store.has_video(a.vid)]
            self._ready[part] = len({a.vid for a in rows if store.has_video(a.vid)})
            if len(there) >= enough:
                return FeatureStore(folder, levels=backbone.chosen), there
        else:
            self._ready[part] = 0
        seconds = {a.vid: a.duration for a in rows}
        short = sorted(seconds, key=lambda vid: seconds[vid])[:_VIDEOS]
        some = [a for a in rows if a.vid in short]
        out = self._temporary / part
        wanted = {vid: files[vid] for vid in short}
        _, failures = extract(wanted, (a.query for a in some), made.to(self.fabric.device), out, workers=0)
        if failures:
            vid, reason = next(iter(failures.items()))
            raise ValueError(f"the video {vid} could not be read: {reason}")
        if part == "train":
            some = (some * math.ceil(enough / len(some)))[:enough]
        return FeatureStore(out, levels=backbone.chosen), some

    @property
    def _share(self) -> int:
        """Samples of a batch that one process gets."""
        return self.config.batch_size // self.config.devices

    def rehearse(self) -> RunCheck:
        """The steps and the batches of validation."""
        config, fabric = self.config, self.fabric
        if fabric.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(fabric.device)
        batches = epoch_batches(self.train_data.num_clips(), epoch=0, batch_size=self._share, seed=config.seed)
        self.model.train()
        losses, took = [], 0.0
        for step, indices in enumerate((batches * STEPS)[:STEPS]):
            began = time.perf_counter()
            found, _ = self._step(indices, 0, learning_rate(step, 0, config))
            terms = {name: float(value.detach()) for name, value in found.items()}  # waits for the accelerator
            took = time.perf_counter() - began
            self.progress.step += 1
            if odd := [name for name, value in terms.items() if not math.isfinite(value)]:
                raise ValueError(
                    f"the loss {odd[0]} of step {step} is {terms[odd[0]]}, with train.precision {config.precision}; "
                    "check the features, or try --train.precision=32-true"
                )
            losses.append(terms["total"])
        scored, val_seconds = self._rehearse_validation()
        rows = self._whole["train"]
        peak = torch.cuda.max_memory_allocated(fabric.device) if fabric.device.type == "cuda" else 0
        return RunCheck(
            recipe=self.recipe,
            train=self._counted("train"),
            val=self._counted("val") if self.val_data else None,
            features=self.train_data.store.spec,
            parameters=sum(p.numel() for p in self.bare.parameters()),
            device=str(fabric.device),
            losses=tuple(losses),
            step_seconds=took,
            steps=max(1, len(rows) // config.batch_size),
            val_seconds=val_seconds,
            scored=scored,
            peak_bytes=peak,
        )

    def _rehearse_validation(self) -> tuple[int, float]:
        """Decode and score two batches: how many queries, and the seconds of all of them at that rate."""
        if self.val_data is None:
            return 0, 0.0
        data = self.val_data
        rows = data.annotations[: STEPS * self._share]
        few = GroundingDataset(rows, data.store, in_memory=False, seed=data.seed, binding=data.binding)
        began = time.perf_counter()
        submissions = predict(
            self.bare, few, self.recipe.decoding, window_clips=self.recipe.window_clips, batch_size=self._share
        )
        evaluate_submissions(submissions, rows, self._metric)
        return len(rows), (time.perf_counter() - began) / len(rows) * len(self._whole["val"])

    def _counted(self, part: str) -> Part:
        rows = self._whole[part]
        seconds = {a.vid: a.duration for a in rows}
        return Part(queries=len(rows), videos=len(seconds), hours=sum(seconds.values()) / 3600, ready=self._ready[part])
