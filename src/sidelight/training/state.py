"""The saved state of a run: a file from which an interrupted run goes on with the losses that it would have had."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, cast

from torch import Tensor

from sidelight.data.annotations import Annotation
from sidelight.io.tensors import read_state, require_finite, write_state
from sidelight.training.recipe import Recipe
from sidelight.training.samples import TrainingData, metric_of

STATE = "state.pt"
"""Name of the file, in train.out."""


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    """Finished steps of the whole run."""
    epoch: int = 0
    """Finished epochs."""
    best: float = -1.0
    """The best score so far on the validation data."""
    best_epoch: int = -1
    """The epoch with that score, counted from 1; -1 before the first validation."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """The scores of each validation."""


class State(TypedDict):
    """Everything that a run needs to go on."""

    model: dict[str, Any]
    """State of the trained part of the model."""
    optimiser: dict[str, Any]
    """State of the optimiser."""
    average: dict[str, Tensor] | None
    """Moving average of the weights, if the recipe asks for one."""
    scaler: dict[str, Any] | None
    """State of the loss scaling of float16, if the run uses it."""


def save_state(path: Path, state: State, progress: Progress, recipe: Recipe, data: TrainingData) -> None:
    """Write the state of a run, whole or not at all.

    Raises:
        OSError: if the disk is full or cannot be written.
        ValueError: if a weight is not finite: a saved state is always one from which a run can go on.
    """
    require_finite(state["model"].values(), path)
    values = {
        **state,
        "progress": json.dumps(vars(progress)),
        "recipe": json.dumps(_fixed_values(recipe, data)),
        "best_by": json.dumps(_selection(recipe, data)),
    }
    write_state(values, path)


def load_state(path: Path, recipe: Recipe, data: TrainingData) -> tuple[State, Progress]:
    """Read the state of a run, on the CPU, and how far it is.

    Options that are newer than the state count as left at their defaults.

    With another validation metric or other validation data, the best score so far is forgotten: the new scores
    cannot be compared with it.

    Raises:
        ValueError: if the file is damaged, or the state is of another recipe or other data; names each field that
            differs.
    """
    advice = f"delete it to start anew, or set train.out; the weights in {path.parent} stay usable"
    names = ("model", "optimiser", "average", "scaler", "progress", "recipe", "best_by")
    values = cast(Any, read_state(path, names, advice=advice))
    saved, current = json.loads(values["recipe"]), json.loads(json.dumps(_fixed_values(recipe, data)))
    for part in ("model", "backbone", "losses", "train"):
        defaults = _defaults(getattr(recipe, part))
        saved[part] = {**{name: defaults[name] for name in current[part] if name in defaults}, **saved[part]}
    saved["data"].setdefault("round_clips", False)
    for part in current:
        if saved.get(part) != current[part]:
            raise ValueError(
                f"{path} is of another recipe ({_difference(part, saved.get(part), current[part])}): it cannot be "
                "resumed with this one; give the options again that it was started with, or set train.out to "
                "start anew"
            )
    progress = Progress(**json.loads(values["progress"]))
    if json.loads(values["best_by"]) != _selection(recipe, data):
        progress.best, progress.best_epoch = -1.0, -1
    return values, progress


def _fixed_values(recipe: Recipe, data: TrainingData) -> dict[str, Any]:
    """Return what must not change within a run. Epochs may be added, and paths may move.

    Of the ways to save memory, only ``chunk_share`` changes more than the rounding of a gradient.
    """
    values = recipe.to_dict()
    for name in ("out", "threads", "epochs", "val_every", "save_every", "best_by", "accelerator"):
        del values["train"][name]
    fixed = {part: values[part] for part in ("side_tuner", "model", "backbone", "losses", "train")}
    if "augment" in values:  # of a model that is trained from pixels
        fixed |= {"augment": values["augment"], "memory": {"chunk_share": values["memory"]["chunk_share"]}}
    digests = {"features": data.digest(), "annotations": _digest(data.train.annotations)}
    return {**fixed, "data": {**digests, **{name: values["data"][name] for name in ("binding", "round_clips")}}}


def _defaults(config: Any) -> dict[str, Any]:
    """Return the default of each option of a section that has a plain one, as JSON holds it."""
    plain = {f.name: f.default for f in dataclasses.fields(config) if f.default is not dataclasses.MISSING}
    return dict(json.loads(json.dumps(plain)))


def _selection(recipe: Recipe, data: TrainingData) -> list[str]:
    """Return what decides which epoch is the best: the metric and the validation annotations."""
    return [recipe.train.best_by, metric_of(recipe), _digest(data.val.annotations if data.val else [])]


def _digest(annotations: Sequence[Annotation]) -> str:
    return hashlib.sha256(json.dumps([a.to_dict() for a in annotations]).encode()).hexdigest()[:16]


def _difference(name: str, saved: Any, current: Any) -> str:
    """Return what differs between two values of a recipe: "train.batch_size was 8 and is 32"."""
    if isinstance(saved, dict) and isinstance(current, dict):
        changed = [key for key in current if saved.get(key) != current[key]]
        if changed:
            return "; ".join(_difference(f"{name}.{key}", saved.get(key), current[key]) for key in changed)
    if name in ("data.annotations", "data.features"):
        return f"{name} differ"
    return f"{name} was {saved!r} and is {current!r}"
