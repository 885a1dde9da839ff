"""Train a side-tuner by a recipe: a plain loop on Lightning Fabric.

A run can be repeated and resumed because nothing random outlives a step: each step is seeded by (seed, step, process),
the order of each epoch by (seed, epoch). A saved state is therefore the weights, the optimiser and a step number, and
a run that was killed goes on with exactly the losses that it would have had.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from sidelight.io.files import only_writer, require_writable_folder, sweep
from sidelight.io.runtime import tune_cpu
from sidelight.io.tensors import counted
from sidelight.metrics.evaluate import evaluate_submissions
from sidelight.models.registry import SideTuner
from sidelight.training.checkpoint import load_trained, trained_state
from sidelight.training.data import open_data
from sidelight.training.log import RunLog
from sidelight.training.recipe import Recipe, TrainConfig
from sidelight.training.samples import TrainingData, metric_of
from sidelight.training.state import STATE, Progress, State, load_state, save_state

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from sidelight.core.batch import Batch, FrameBatch


def accumulate_gradients(
    batch: FrameBatch,
    queries: int,
    losses: Callable[[FrameBatch], Mapping[str, Tensor]],
    backward: Callable[[Tensor], None] = Tensor.backward,
    *,
    before_last: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> dict[str, Tensor]:
    """Add the gradients of a batch from its parts, and return every loss of the whole batch by name.

    The losses must be means over queries that do not read each other, as SCADA's are; then the gradients are those of
    the whole batch.

    Args:
        batch: the batch.
        queries: most queries of a part.
        losses: function of a part that runs the model and returns the losses; "total" is differentiated.
        backward: function that runs the backward pass, such as that of Fabric.
        before_last: context of all parts but the last, such as one in which processes do not exchange gradients.
    """
    sums: dict[str, Tensor] = {}
    parts = batch.parts(queries)
    for number, part in enumerate(parts, 1):
        share = part.size / batch.size
        with nullcontext() if number == len(parts) else before_last():
            by_name = losses(part)
            backward(by_name["total"] * share)
        for name, loss in by_name.items():
            sums[name] = sums.get(name, torch.zeros_like(loss)).detach() + share * loss.detach()
    return sums


class PrecisionWarning(UserWarning):
    """Warning that a run computes in another precision than its recipe says."""


def learning_rate(step: int, epoch: int, config: TrainConfig) -> float:
    """Return the learning rate of a step: linear warm-up, then a drop every ``lr_drop_epochs`` epochs."""
    factor: float = config.lr_drop ** (epoch // config.lr_drop_epochs)
    if step < config.warmup_steps:
        start = config.warmup_ratio
        factor *= start + (1 - start) * step / config.warmup_steps
    return config.lr * factor


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Return the parameters for the optimiser; with ``offset_lr``, the model's slow parameters are a second group."""
    if config.offset_lr == 1:
        return [{"params": [p for p in model.parameters() if p.requires_grad]}]
    slow = {id(parameter) for parameter in model.slow_parameters()}  # type: ignore[operator]  # a recipe checks it
    return [
        {"params": [p for p in model.parameters() if id(p) not in slow]},
        {"params": [p for p in model.parameters() if id(p) in slow], "factor": config.offset_lr},
    ]


class _BatchHolder:
    """A batch that Fabric's wrappers pass on as it is; they take apart (and refuse) frozen dataclasses."""

    def __init__(self, batch: Batch | FrameBatch) -> None:
        self.batch = batch


class _WithLosses(nn.Module):
    """Model and losses in one forward, so that a process group sees one module with scalar outputs."""

    def __init__(self, model: nn.Module, kind: SideTuner, config: Any) -> None:
        super().__init__()
        self.model, self.losses, self.config = model, kind.losses, config

    def forward(self, holder: _BatchHolder) -> dict[str, Tensor]:
        return self.losses(self.model(holder.batch), holder.batch, self.config)


class NotFiniteError(ValueError):
    """A loss, a gradient or a weight became NaN or infinite."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The numbers of one training step."""

    values: Mapping[str, float]
    """Every term of the loss, their sum as "total", and "gradient_norm", the norm before the gradient was clipped."""
    lr: float
    """Learning rate."""


class Trainer:
    """One run of a recipe.

    Args:
        recipe: the run.
        fabric: launched; says where and in what precision to compute.
        data: the samples, of :func:`sidelight.training.data.open_data`.
        quiet: print nothing.

    Raises:
        ValueError: if the data or the checkpoint to start from does not fit the recipe.
    """

    def __init__(self, recipe: Recipe, fabric: Fabric, data: TrainingData, *, quiet: bool = False) -> None:
        data.check()
        self.recipe, self.config, self.fabric, self.data = recipe, recipe.train, fabric, data
        self.out, self.quiet = Path(recipe.train.out), quiet
        torch.manual_seed(self.config.seed)
        model = data.build_model()
        if self.config.init:
            data.load_start(model)
        # fused: one kernel for all parameters instead of several for each.
        optimiser = torch.optim.AdamW(
            parameter_groups(model, self.config),
            lr=self.config.lr,
            weight_decay=self.config.weight_decay,
            # The fused one unscales fp16 gradients by itself, so that Fabric could not clip them before.
            fused=self.config.precision != "16-mixed",
        )
        self.model = model
        self.wrapped, self.optimiser = fabric.setup(_WithLosses(model, recipe.parts, recipe.losses), optimiser)
        self.average = {k: v.detach().clone() for k, v in trained_state(model).items()} if self.config.ema else None
        self.progress = Progress()
        self._steps = data.steps_per_epoch(fabric.world_size)
        self._log: RunLog | None = None

    def run(self, *, resume: bool = False, stop_after: int | None = None) -> Progress:
        """Train to the end.

        Args:
            resume: go on from the saved state, if there is one; otherwise the run must not exist yet.
            stop_after: stop after this many steps of the whole run, with the state saved (for tests).

        Raises:
            ValueError: if the run exists and ``resume`` is false, or its state is of another recipe.
        """
        check_out(self.out, resume=resume)
        state = self.out / STATE
        if state.exists():
            self._load(state)
        if self.fabric.is_global_zero:
            for folder in (self.out, self.out / "best", self.out / "last"):
                sweep(folder)
            self._log = RunLog(self.out, first_step=self.progress.step, resume=resume, quiet=self.quiet)
        try:
            self._run_epochs(stop_after)
        except NotFiniteError as error:
            self._save()
            raise NotFiniteError(f"{error}; the state before this step is in {state}: --resume goes on") from None
        finally:
            if self._log is not None:
                self._log.close()
        return self.progress

    def _run_epochs(self, stop_after: int | None) -> None:
        progress = self.progress
        while progress.epoch < self.config.epochs:
            if not self._finish_epoch(stop_after):
                self._save()
                return
            progress.epoch += 1
            is_last = progress.epoch == self.config.epochs
            if self.data.val is not None and (progress.epoch % self.config.val_every == 0 or is_last):
                self._validate()
            if is_last and self.fabric.is_global_zero:
                self.data.checkpoint(self.model, {}).save_pretrained(self.out / "last", weights=self.average)
            self._save()

    def _finish_epoch(self, stop_after: int | None) -> bool:
        """Train the rest of the current epoch; return False if ``stop_after`` ended it early."""
        config, progress = self.config, self.progress
        batches = self.data.batches(progress.epoch, rank=self.fabric.global_rank, world=self.fabric.world_size)
        self.wrapped.train()
        done = progress.step - sum(self._steps[: progress.epoch])
        for indices in batches[done:]:
            step = progress.step
            result = self.train_step(indices)
            if self._log is not None:
                self._log.log_step(step, progress.epoch, result.lr, result.values, sum(self._steps))
            if stop_after is not None and progress.step >= stop_after:
                return False
            if progress.step % config.save_every == 0:
                self._save()
        return True

    def train_step(self, indices: list[int]) -> StepResult:
        """Train on one batch of samples, and count the step.

        Raises:
            NotFiniteError: if a loss or the gradient is not finite; weights and optimiser stay as they were.
        """
        progress = self.progress
        # Dropout differs between steps and processes (up to 64), and is the same again after a resume.
        torch.manual_seed((self.config.seed * 1_000_003 + progress.step) * 64 + self.fabric.global_rank)
        batch = self.data.batch(indices, progress.epoch).to(self.fabric.device)
        lr = learning_rate(progress.step, progress.epoch, self.config)
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group.get("factor", 1.0)
        losses = self._add_gradients(batch)
        norm = self.fabric.clip_gradients(
            self.wrapped, self.optimiser, max_norm=self.config.clip_norm, error_if_nonfinite=False
        )
        values = self._finite_values(indices, losses, norm if norm is not None else torch.zeros(()))
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.average is not None:
            with torch.no_grad():
                for name, value in trained_state(self.model).items():
                    if value.is_floating_point():
                        self.average[name].lerp_(value, 1 - self.config.ema)
        progress.step += 1
        return StepResult(values=values, lr=lr)

    def _finite_values(self, indices: list[int], losses: Mapping[str, Tensor], norm: Tensor) -> dict[str, float]:
        """Return losses and gradient norm as numbers, after checking that they are finite in every process.

        They are copied from the device at once, before the optimiser's step and not after it: there is one copy a step
        as before, and the next batch is prepared while the device takes the optimiser's step.
        """
        numbers = torch.stack([*(v.detach().float() for v in losses.values()), norm.to(self.fabric.device).float()])
        not_finite = (~numbers.isfinite()).float()
        if self.fabric.world_size > 1:  # losses differ between processes, and all must stop at the same step
            torch.distributed.all_reduce(not_finite)
        copied = torch.cat([numbers, not_finite]).tolist()
        names = [*losses, "gradient_norm"]
        values = dict(zip(names, copied, strict=False))
        wrong = [name for name, count in zip(names, copied[len(names) :], strict=True) if count]
        scaler = getattr(self.fabric._precision, "scaler", None)
        # Loss scaling lowers its factor after a gradient that float16 cannot hold, and leaves out that step.
        if wrong and not (wrong == ["gradient_norm"] and scaler is not None and scaler.get_scale() >= 1):
            self.optimiser.zero_grad(set_to_none=True)
            raise NotFiniteError(self._not_finite_message(indices, wrong[0], values[wrong[0]]))
        return values

    def _not_finite_message(self, indices: list[int], name: str, value: float) -> str:
        if self.fabric.world_size > 1:
            gathered = [indices] * self.fabric.world_size
            torch.distributed.all_gather_object(gathered, indices)
            indices = [index for part in gathered for index in part]
        rows = [self.data.train.annotations[i] for i in indices]
        what = "gradient norm" if name == "gradient_norm" else f"loss {name}"
        value_text = "not finite in another process" if math.isfinite(value) else str(value)
        precision = self.config.precision
        advice = "" if precision.startswith("32") else f" (or try --train.precision=32-true, now {precision})"
        return (
            f"the {what} of step {self.progress.step} is {value_text}, so training stopped before this step changed "
            f"the weights; its batch has the videos {counted(list(dict.fromkeys(a.vid for a in rows)), 32)} with the "
            f"queries {counted([a.query for a in rows], 32)}; {self.data.where_to_look}{advice}, or "
            "start anew with a lower train.lr"
        )

    def _add_gradients(self, batch: Batch | FrameBatch) -> Mapping[str, Tensor]:
        """Add the gradients of a batch to those of the weights, and return every loss."""
        if not self.config.accumulate:
            losses: Mapping[str, Tensor] = self.wrapped(_BatchHolder(batch))
            self.fabric.backward(losses["total"])
            return losses
        return accumulate_gradients(
            cast("FrameBatch", batch),  # a recipe of features has no ``accumulate``
            self.config.accumulate,
            lambda part: self.wrapped(_BatchHolder(part)),
            self.fabric.backward,
            before_last=lambda: self.fabric.no_backward_sync(self.wrapped, enabled=self.fabric.world_size > 1),
        )

    @torch.no_grad()
    def _validate(self) -> None:
        """Score the weights (their average, if there is one) on the validation data; keep the best ones."""
        assert self.data.val is not None
        if self.fabric.is_global_zero:
            weights = None
            if self.average is not None:
                weights = {k: v.clone() for k, v in trained_state(self.model).items()}
                load_trained(self.model, self.average)
            submissions = self.data.predict(self.model, self.data.val)
            self._keep_best(evaluate_submissions(submissions, self.data.val.annotations, metric_of(self.recipe)))
            if weights is not None:
                load_trained(self.model, weights)
        self.fabric.barrier()

    def _keep_best(self, metrics: dict[str, Any]) -> None:
        progress, brief = self.progress, metrics["brief"]
        progress.history.append({"epoch": progress.epoch, **brief})
        score = float(brief[self.config.best_by])
        is_best = score > progress.best
        if is_best:
            progress.best, progress.best_epoch = score, progress.epoch
            self.data.checkpoint(self.model, metrics).save_pretrained(self.out / "best")
        if self._log is not None:
            self._log.log_validation(progress.step, progress.epoch, brief, self.config.best_by, best=is_best)

    def _save(self) -> None:
        if self.fabric.is_global_zero:
            state: State = {
                "model": trained_state(self.model),
                "optimiser": self.optimiser.state_dict(),
                "average": self.average,
                "scaler": self.fabric._precision.state_dict() or None,
            }
            save_state(self.out / STATE, state, self.progress, self.recipe, self.data)
        self.fabric.barrier()

    def _load(self, path: Path) -> None:
        state, self.progress = load_state(path, self.recipe, self.data)
        load_trained(self.model, state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        if state["average"] is not None:
            self.average = {k: v.to(self.fabric.device) for k, v in state["average"].items()}
        if state["scaler"] is not None:
            self.fabric._precision.load_state_dict(state["scaler"])


def train(recipe: Recipe, *, resume: bool = False, quiet: bool = False) -> Progress:
    """Run a recipe from the start, or from where it was interrupted, to the end.

    Args:
        recipe: the run.
        resume: go on with an interrupted run, if there is one.
        quiet: print nothing.

    Raises:
        ValueError: if data is missing or does not fit the recipe, the run exists and ``resume`` is false, or another
            process trains into the same folder.
    """
    check_out(Path(recipe.train.out), resume=resume)
    # The first process locks, before it starts the others.
    is_first = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"
    with only_writer(recipe.train.out, option="train.out") if is_first else nullcontext():
        fabric = make_fabric(recipe.train)
        fabric.launch()
        return Trainer(recipe, fabric, open_data(recipe, fabric, quiet=quiet), quiet=quiet).run(resume=resume)


def check_out(out: Path, *, resume: bool) -> None:
    """Refuse, before features are extracted, the folder of another run or one that cannot be written.

    Args:
        out: the folder of the run.
        resume: the run goes on with the one in the folder.

    Raises:
        ValueError: if the folder holds a run and ``resume`` is false, or cannot be made or written.
    """
    require_writable_folder(out, target=f"train.out {out}")
    if (out / STATE).exists() and not resume:
        raise ValueError(f"{out} holds a run already; add --resume to go on with it, or set train.out")


def make_fabric(config: TrainConfig, *, devices: int | None = None) -> Fabric:
    """Return the Fabric that computes a run, not yet launched.

    Args:
        config: says where and in what precision.
        devices: number of processes; that of ``config`` unless given.

    Raises:
        ValueError: if there is no such device, or a package is missing.
    """
    try:
        from lightning_fabric import Fabric
    except ImportError:
        raise ValueError('training needs more packages: pip install "sidelight[train]"') from None
    devices = config.devices if devices is None else devices
    tune_cpu(config.threads)
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning's own; what a user needs to know is said below
            fabric = Fabric(
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
    if (precision := fabric._precision.precision) != config.precision:
        warnings.warn(
            f"train.precision {config.precision} cannot be used on this device; {precision} is used",
            PrecisionWarning,
            stacklevel=2,
        )
    return fabric
