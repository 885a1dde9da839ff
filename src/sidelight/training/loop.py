"""Train a side-tuner by a recipe: a plain loop on Lightning Fabric.

What makes a run repeatable and resumable: every step seeds itself by (seed, step, process), every epoch's order by
(seed, epoch). So a saved state is the weights, the optimiser and a step number, and a run that was killed goes on
with exactly the losses that it would have had.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sidelight.backbones import load_backbone
from sidelight.data.annotations import Annotation, read_annotations
from sidelight.data.datasets import benchmark
from sidelight.data.datasets.base import Metric
from sidelight.features.extract import extract
from sidelight.features.layouts import durations_of, layout_of, open_features
from sidelight.features.sources import find_videos
from sidelight.features.store import Features, FeatureStore, store_exists
from sidelight.io.files import replacing, write_text
from sidelight.io.runtime import tune_cpu
from sidelight.metrics.evaluate import HIGHLIGHT_METRICS, evaluate_submissions, metric_names
from sidelight.models.registry import SideTuner, build_model, side_tuner
from sidelight.training.checkpoint import Checkpoint
from sidelight.training.convert import published_checkpoint
from sidelight.training.dataset import GroundingDataset, epoch_batches
from sidelight.training.predict import predict
from sidelight.training.recipe import Recipe, TrainConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from sidelight.core.batch import Batch

STATE = "state.pt"
"""Where a run stands, in train.out."""


def learning_rate(step: int, epoch: int, config: TrainConfig) -> float:
    """Linear warm-up from ``warmup_ratio``, then a drop by ``lr_drop`` every ``lr_drop_epochs`` epochs."""
    factor: float = config.lr_drop ** (epoch // config.lr_drop_epochs)
    if step < config.warmup_steps:
        start = config.warmup_ratio
        factor *= start + (1 - start) * step / config.warmup_steps
    return config.lr * factor


@dataclass
class Progress:
    """Where a run is; all that a saved state holds besides tensors."""

    step: int = 0
    epoch: int = 0
    best: float = -1.0
    best_epoch: int = -1
    history: list[dict[str, Any]] = field(default_factory=list)


class _Held:
    """Carries a batch through Fabric's wrappers, which otherwise take apart (and refuse) frozen dataclasses."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch


class _WithLosses(nn.Module):
    """Model and losses in one forward, so that a process group sees one module with scalar outputs."""

    def __init__(self, model: nn.Module, kind: SideTuner, config: Any) -> None:
        super().__init__()
        self.model, self.losses, self.config = model, kind.losses, config

    def forward(self, held: _Held) -> dict[str, Tensor]:
        return self.losses(self.model(held.batch), held.batch, self.config)


def _holds(folder: str, annotations: Sequence[Annotation]) -> bool:
    """Whether a store lacks nothing, so that nobody needs the videos."""
    if not store_exists(folder):
        return False
    store = FeatureStore(folder)
    return not store.missing_queries(a.query for a in annotations) and all(
        store.is_whole(vid) for vid in dict.fromkeys(a.vid for a in annotations)
    )


class Trainer:
    """One run of a recipe.

    Args:
        recipe: the run.
        fabric: launched; says where and in what precision to compute.
        quiet: print nothing.

    Raises:
        ValueError: if data is missing or does not fit the recipe.
    """

    def __init__(self, recipe: Recipe, fabric: Fabric, *, quiet: bool = False) -> None:
        self.recipe, self.config, self.fabric = recipe, recipe.train, fabric
        self.out, self.quiet = Path(recipe.train.out), quiet or not fabric.is_global_zero
        self.train_data = self._dataset("train")
        self.val_data = self._dataset("val") if recipe.data.val else None
        self._check_widths()
        torch.manual_seed(self.config.seed)
        model = build_model(recipe.side_tuner, recipe.to_dict()["model"])
        if self.config.init:
            start = Checkpoint.from_pretrained(published_checkpoint(self.config.init) or self.config.init)
            start.features.require(self.train_data.store.spec, what="the training features")
            if not _same_shapes(start.model, model):
                raise ValueError(f"train.init: {self.config.init} is a model of other sizes than the recipe's")
            model.load_state_dict(start.model.state_dict())
        # fused: one kernel for all parameters instead of several for each.
        optimiser = torch.optim.AdamW(
            model.parameters(),
            lr=self.config.lr,
            weight_decay=self.config.weight_decay,
            # The fused one unscales fp16 gradients by itself, so that Fabric could not clip them before.
            fused=self.config.precision != "16-mixed",
        )
        self.bare = model
        self.model, self.optimiser = fabric.setup(
            _WithLosses(model, side_tuner(recipe.side_tuner), recipe.losses), optimiser
        )
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()} if self.config.ema else None
        self.progress = Progress()

    def _dataset(self, part: str) -> GroundingDataset:
        data = self.recipe.data
        annotations = self._annotations(part)
        store = self._store(self._folder(part), getattr(data, f"{part}_videos"), annotations)
        return GroundingDataset(
            annotations, store, in_memory=data.in_memory, seed=self.config.seed, binding=data.binding
        )

    def _folder(self, part: str) -> str:
        """Where the features of a part are."""
        data = self.recipe.data
        return getattr(data, f"{part}_features") or data.train_features or _missing("data.train_features")

    def _annotations(self, part: str) -> list[Annotation]:
        data = self.recipe.data
        path = getattr(data, part) or _missing(f"data.{part}")
        if data.domain and not data.benchmark:
            raise ValueError("recipe: data.domain needs data.benchmark, which says what a domain is")
        if data.benchmark:
            found = benchmark(data.benchmark).read(path, domain=data.domain or None)
        else:
            found = list(read_annotations(path))
        if part == "train" and data.min_duration:
            found = [a for a in found if a.duration >= data.min_duration]
            if not found:
                raise ValueError(f"no video of {path} is {data.min_duration:g} s long; lower data.min_duration")
        if part == "val" and self._metric not in HIGHLIGHT_METRICS:
            # As `sidelight evaluate` does: these metrics do not know queries without a moment.
            scored = [a for a in found if a.relevant_windows or a.saliency_scores]
            found = scored or found
        return found

    @property
    def _metric(self) -> Metric:
        name = self.recipe.data.benchmark
        return benchmark(name).metric if name else "qvhighlights"

    def _store(self, folder: str, videos: str, annotations: list[Annotation]) -> Features:
        """The features; a store is filled first by the main process if the recipe says where the videos are."""
        backbone, data = self.recipe.backbone, self.recipe.data
        layout = layout_of(folder, data.layout or "")
        if layout != "sidelight":
            if videos:
                raise ValueError(
                    f"{folder} has features in the layout {layout}, which are not added to; leave out "
                    "data.train_videos and data.val_videos, or name a store for data.train_features"
                )
            return open_features(
                folder,
                layout=layout,
                durations=durations_of(annotations),
                keys=annotations,
                backbone=backbone.name,
                weights=backbone.weights or None,
                levels=backbone.chosen,
                pooling=backbone.pooling,
                clip_seconds=backbone.clip_seconds,
                frames_per_clip=backbone.frames_per_clip,
                normalise=data.normalise,
            )
        if not videos or _holds(folder, annotations):
            return FeatureStore(folder, levels=backbone.chosen)
        if self.fabric.is_global_zero:
            levels = FeatureStore.levels_to_extract(folder, backbone.chosen)
            made = load_backbone(backbone.name, **{**backbone.options(), "levels": levels})
            files = find_videos(videos, (a.vid for a in annotations))
            _, failures = extract(
                files,
                (a.query for a in annotations),
                made.to(self.fabric.device),
                folder,
                progress=not self.quiet,
            )
            if failures:
                vid, reason = next(iter(failures.items()))
                raise ValueError(f"{len(failures)} videos could not be read; the first: {vid}: {reason}")
        self.fabric.barrier()
        return FeatureStore(folder, levels=backbone.chosen)

    def _check_widths(self) -> None:
        found, model = self.train_data.store.spec, self.recipe.model
        backbone = self.recipe.backbone
        asked: dict[str, Any] = {"name": backbone.name, "pooling": backbone.pooling, "levels": backbone.chosen}
        asked |= {"clip_seconds": backbone.clip_seconds, "frames_per_clip": backbone.frames_per_clip}
        there: dict[str, Any] = {"name": found.backbone, "pooling": found.pooling, "levels": found.levels}
        there |= {"clip_seconds": found.clip_seconds, "frames_per_clip": found.frames_per_clip}
        for name, said in asked.items():
            # Lengths of clips are often fractions: 50/30 s.
            same = math.isclose(said, there[name], rel_tol=1e-4) if isinstance(said, float) else said == there[name]
            if said is not None and not same:
                raise ValueError(
                    f"recipe: backbone.{name} says {said!r}, but the features in {self.train_data.store.folder} were "
                    f"made with {there[name]!r}; correct the recipe or give other features"
                )
        wanted = {"video_dim": model.video_dim, "text_dim": model.text_dim, "levels": model.levels}
        given = {"video_dim": found.video_dim, "text_dim": found.text_dim, "levels": len(found.levels)}
        for name, value in wanted.items():
            if value != given[name]:
                raise ValueError(
                    f"recipe: model.{name} is {value}, but the features in {self.train_data.store.folder} have "
                    f"{given[name]}; set model.{name}={given[name]} or give other features"
                )
        if self.val_data is not None:
            found.require(self.val_data.store.spec, what="the validation features")
            known = metric_names(self.val_data.annotations, self._metric)
            if self.config.best_by not in known:
                raise ValueError(f"train.best_by must be one of {', '.join(known)}; got {self.config.best_by!r}")

    def run(self, *, resume: bool = False, stop_after: int | None = None) -> Progress:
        """Train to the end.

        Args:
            resume: go on from the saved state, if there is one; else the run must not exist yet.
            stop_after: stop after this many steps of the whole run, state saved (for tests).

        Raises:
            ValueError: if the run exists and ``resume`` is not said, or its state is of another recipe.
        """
        self._open(resume)
        try:
            return self._run(stop_after)
        finally:
            if self.fabric.is_global_zero:
                self._losses.close()
            if self._board is not None:
                self._board.close()

    def _run(self, stop_after: int | None) -> Progress:
        while self.progress.epoch < self.config.epochs:
            if not self._epoch(stop_after):
                self._save()
                return self.progress
            self.progress.epoch += 1
            last = self.progress.epoch == self.config.epochs
            if self.val_data is not None and (self.progress.epoch % self.config.val_every == 0 or last):
                self._validate()
            if last and self.fabric.is_global_zero:
                self._checkpoint().save_pretrained(self.out / "last", weights=self.average)
            self._save()
        return self.progress

    def _epoch(self, stop_after: int | None) -> bool:
        """The rest of the current epoch; False if stopped within it."""
        config, at, epoch = self.config, self.progress, self.progress.epoch
        batches = epoch_batches(
            self.train_data.num_clips(),
            epoch=epoch,
            batch_size=config.batch_size // self.fabric.world_size,
            seed=config.seed,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
        )
        self.model.train()
        done = at.step - epoch * len(batches)
        shown = _Rate(len(batches) * config.epochs, at.step, quiet=self.quiet)
        for indices in batches[done:]:
            rate = learning_rate(at.step, epoch, config)
            losses, norm = self._step(indices, epoch, rate)
            self._log(losses, norm, rate, shown)
            at.step += 1
            if stop_after is not None and at.step >= stop_after:
                return False
            if at.step % config.save_every == 0:
                self._save()
        return True

    def _step(self, indices: list[int], epoch: int, rate: float) -> tuple[dict[str, Tensor], Tensor]:
        torch.manual_seed((self.config.seed * 1_000_003 + self.progress.step) * 64 + self.fabric.global_rank)
        batch = self.train_data.batch(indices, epoch).to(self.fabric.device)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        losses = self.model(_Held(batch))
        self.fabric.backward(losses["total"])
        norm = self.fabric.clip_gradients(
            self.model, self.optimiser, max_norm=self.config.clip_norm, error_if_nonfinite=False
        )
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.average is not None:
            with torch.no_grad():
                for name, value in self.bare.state_dict().items():
                    if value.is_floating_point():
                        self.average[name].lerp_(value, 1 - self.config.ema)
        return losses, norm if norm is not None else torch.zeros(())

    def _log(self, losses: Mapping[str, Tensor], norm: Tensor, rate: float, shown: _Rate) -> None:
        if not self.fabric.is_global_zero:
            return
        # One copy to the host for all of them.
        values = torch.stack([*(v.detach().float() for v in losses.values()), norm.float()]).tolist()
        named = dict(zip([*losses, "gradient_norm"], values, strict=True))
        row = {"step": self.progress.step, "epoch": self.progress.epoch, "lr": rate, **named}
        self._losses.write(json.dumps(row) + "\n")
        self._losses.flush()
        if self._board is not None:
            for name, value in named.items():
                self._board.add_scalar(f"train/{name}", value, self.progress.step)
            self._board.add_scalar("train/lr", rate, self.progress.step)
        shown.show(self.progress.step, self.progress.epoch, named["total"])

    @torch.no_grad()
    def _validate(self) -> None:
        """Score the (averaged) weights on the validation split; keep them if they are the best so far."""
        assert self.val_data is not None
        if self.fabric.is_global_zero:
            kept = {k: v.clone() for k, v in self.bare.state_dict().items()} if self.average else None
            if self.average is not None:
                self.bare.load_state_dict(self.average)
            submissions = predict(self.bare, self.val_data, self.recipe.decoding, window_clips=self.recipe.window_clips)
            metrics = evaluate_submissions(submissions, self.val_data.annotations, self._metric)
            self._keep_best(metrics)
            if kept is not None:
                self.bare.load_state_dict(kept)
        self.fabric.barrier()

    def _keep_best(self, metrics: dict[str, Any]) -> None:
        at, brief = self.progress, metrics["brief"]
        at.history.append({"epoch": at.epoch, **brief})
        score = float(brief[self.config.best_by])
        better = score > at.best
        if better:
            at.best, at.best_epoch = score, at.epoch
            self._checkpoint(metrics).save_pretrained(self.out / "best")
        if self._board is not None:
            for name, value in brief.items():
                self._board.add_scalar(f"val/{name}", value, at.step)
        if not self.quiet:
            shown = [k for k in _SHOWN if k in brief] or [self.config.best_by]
            named = "  ".join(f"{k} {brief[k]:.2f}" for k in shown)
            print(f"epoch {at.epoch}: {named}{'  (best)' if better else ''}", flush=True)

    def _checkpoint(self, metrics: Mapping[str, Any] | None = None) -> Checkpoint:
        values = self.recipe.to_dict()
        return Checkpoint(
            model=self.bare,
            model_name=self.recipe.side_tuner,
            model_config=values["model"],
            features=self.train_data.store.spec,
            decode=self.recipe.decoding,
            window_clips=self.recipe.window_clips,
            metrics=dict(metrics or {}),
            recipe=values,
        )

    def _open(self, resume: bool) -> None:
        """Start or go on: the state, the log of losses (cut to the state's step), TensorBoard."""
        self._board: Any = None
        state = self.out / STATE
        if state.exists() and not resume:
            raise ValueError(f"{self.out} holds a run already; add --resume to go on with it, or set train.out")
        if state.exists():
            self._load(state)
        if not self.fabric.is_global_zero:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        log = self.out / "losses.jsonl"
        kept = []
        if log.exists() and resume:
            rows = (line for line in log.read_text().splitlines() if line.endswith("}"))
            kept = [line for line in rows if json.loads(line)["step"] < self.progress.step]
        write_text(log, "".join(f"{line}\n" for line in kept))
        self._losses = log.open("a")
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.out / "tensorboard"), purge_step=self.progress.step)
        except ImportError:
            pass  # the losses are in losses.jsonl all the same

    def _save(self) -> None:
        if self.fabric.is_global_zero:
            values = {
                "model": self.bare.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "average": self.average,
                "scaler": _scaler(self.fabric),
                "progress": json.dumps(vars(self.progress)),
                "recipe": json.dumps(self._decisive()),
                "best_by": json.dumps(self._best_by()),
            }
            with replacing(self.out / STATE) as beside:
                torch.save(values, beside)
        self.fabric.barrier()

    def _decisive(self) -> dict[str, Any]:
        """What must not change within a run; epochs may be added, paths may move."""
        values = self.recipe.to_dict()
        for name in ("out", "threads", "epochs", "val_every", "save_every", "best_by", "accelerator"):
            del values["train"][name]
        rows = [a.to_dict() for a in self.train_data.annotations]
        data = {
            "features": self.train_data.store.spec.digest(),
            "annotations": hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16],
        }
        data["binding"] = values["data"]["binding"]
        return {**{part: values[part] for part in ("side_tuner", "model", "backbone", "losses", "train")}, "data": data}

    def _best_by(self) -> list[Any]:
        """What the best epoch is chosen by: the metric and the queries."""
        queries = [] if self.val_data is None else [a.to_dict() for a in self.val_data.annotations]
        return [self.config.best_by, self._metric, hashlib.sha256(json.dumps(queries).encode()).hexdigest()[:16]]

    def _load(self, state: Path) -> None:
        values = torch.load(state, weights_only=True, map_location="cpu")
        saved, now = json.loads(values["recipe"]), json.loads(json.dumps(self._decisive()))
        for part in now:
            if saved.get(part) != now[part]:
                raise ValueError(
                    f"{state} is of another recipe ({_differing(part, saved.get(part), now[part])}): it cannot be "
                    "resumed with this one; give the options again that it was started with, or set train.out to "
                    "start anew"
                )
        self.bare.load_state_dict(values["model"])
        self.optimiser.load_state_dict(values["optimiser"])
        if self.average is not None:
            self.average = {k: v.to(self.fabric.device) for k, v in values["average"].items()}
        if values["scaler"] is not None:
            self.fabric._precision.load_state_dict(values["scaler"])
        self.progress = Progress(**json.loads(values["progress"]))
        # Another metric, or other validation data: its best so far is no measure for this one's.
        if json.loads(values["best_by"]) != self._best_by():
            self.progress.best, self.progress.best_epoch = -1.0, -1


_SHOWN = ("MR-full-mAP", "MR-full-R1@0.5", "MR-full-R1@0.7", "HL-min-VeryGood-mAP", "HL-min-VeryGood-Hit1")


def _differing(name: str, saved: Any, now: Any) -> str:
    """What differs between two values of a recipe: "train.batch_size was 8 and is 32"."""
    if isinstance(saved, dict) and isinstance(now, dict):
        odd = [key for key in now if saved.get(key) != now[key]]
        if odd:
            return "; ".join(_differing(f"{name}.{key}", saved.get(key), now[key]) for key in odd)
    if name in ("data.annotations", "data.features"):
        return f"{name} differ"
    return f"{name} was {saved!r} and is {now!r}"


def _scaler(fabric: Fabric) -> dict[str, Any] | None:
    """State of fp16's loss scaling, if there is any."""
    return fabric._precision.state_dict() or None


def _missing(name: str) -> str:
    raise ValueError(f"the recipe has no {name}; set it in the YAML or with --{name}=PATH")


class _Rate:
    """Prints where the run is, how fast it goes and how long it still takes, every few seconds."""

    def __init__(self, total: int, first: int, *, quiet: bool) -> None:
        self.total, self.first, self.quiet = total, first, quiet
        self.began = self.shown = time.perf_counter()

    def show(self, step: int, epoch: int, loss: float) -> None:
        now = time.perf_counter()
        if self.quiet or now - self.shown < 10:
            return
        self.shown = now
        rate = (step + 1 - self.first) / (now - self.began)
        left = (self.total - step - 1) / rate
        print(
            f"epoch {epoch}  step {step + 1}/{self.total}  loss {loss:.3f}  {rate:.2f} steps/s  "
            f"{left / 60:.0f} min left",
            flush=True,
        )


def train(recipe: Recipe, *, resume: bool = False, quiet: bool = False) -> Progress:
    """Run a recipe from start to end (or from where it was interrupted), and say where the run's files are.

    Raises:
        ValueError: for what does not fit; see :class:`Trainer`.
    """
    fabric = make_fabric(recipe.train)
    fabric.launch()
    return Trainer(recipe, fabric, quiet=quiet).run(resume=resume)


def make_fabric(config: TrainConfig, *, devices: int | None = None) -> Fabric:
    """What computes a run, not yet launched.

    Args:
        config: says where and in what precision.
        devices: processes; those of ``config`` unless given.

    Raises:
        ValueError: if there is no such device, or a package is missing.
    """
    try:
        from lightning_fabric import Fabric
    except ImportError:
        raise ValueError('training needs more packages: pip install "sidelight[train]"') from None
    devices = config.devices if devices is None else devices
    tune_cpu(config.threads)
    try:
        return Fabric(
            accelerator=config.accelerator,
            devices=devices,
            precision=config.precision,
            # Moment queries that match nothing leave parameters without a gradient in some processes.
            strategy="auto" if devices == 1 else "ddp_find_unused_parameters_true",
        )
    except (RuntimeError, ValueError, ImportError) as error:
        raise ValueError(
            f"train.accelerator {config.accelerator!r} with train.devices {devices} cannot be used here "
            f"({' '.join(str(error).split())}); try --train.accelerator=cpu --train.devices=1"
        ) from None


def _same_shapes(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(v.shape == second[k].shape for k, v in first.items())
