"""A recipe: one training run, whole, as a YAML file and as typed values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sidelight.decode import DecodeConfig
from sidelight.losses import SDSTLossConfig
from sidelight.models.sdst import SDSTConfig
from sidelight.options import check_types, require

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where a run's data lies. Paths are relative to where the command runs."""

    train: str = ""
    """Training annotations, JSONL in the QVHighlights form."""
    val: str = ""
    """Validation annotations, likewise."""
    train_features: str = ""
    """Feature store of the training videos and queries."""
    val_features: str = ""
    """Feature store of the validation ones; the training store unless given."""
    train_videos: str = ""
    """Folder of the training videos: with it, `sidelight train` extracts what the store lacks."""
    val_videos: str = ""
    """Folder of the validation videos, likewise."""
    in_memory: bool = True
    """Read all features once; else through a memory map as they are wanted."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Which backbone makes the features."""

    name: str = "shapes"
    """Key of sidelight.backbones.BACKBONES."""
    levels: int = 4
    """How many of its last layers, K."""
    pooling: Literal["cls", "mean", "attention"] = "attention"
    """How a layer's tokens become one vector a clip."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self, self.levels >= 1, "levels", "at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation."""

    epochs: int = 60
    """Passes over the training annotations."""
    batch_size: int = 32
    """Samples per step, over all processes together."""
    lr: float = 1e-4
    """Learning rate after warm-up."""
    lr_drop_epochs: int = 20
    """Epochs between two drops of the learning rate."""
    lr_drop: float = 0.1
    """Factor of a drop."""
    warmup_steps: int = 2000
    """Steps of linear warm-up."""
    warmup_ratio: float = 0.001
    """Share of the learning rate at which warm-up starts."""
    weight_decay: float = 1e-4
    """AdamW's weight decay."""
    clip_norm: float = 35.0
    """Largest gradient norm."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which is then validated and kept; 0 for none."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Arithmetic, as Lightning Fabric names it."""
    accelerator: str = "auto"
    """auto, cpu, cuda or mps."""
    devices: int = 1
    """Processes, each with a device."""
    threads: int = 0
    """CPU threads per process; 0 leaves PyTorch's default."""
    seed: int = 0
    """Of weights, order, dropout and positive clips."""
    val_every: int = 1
    """Epochs between two validations."""
    best_by: str = "MR-full-mAP"
    """The metric, a key of the evaluation's "brief" part, whose best epoch is kept."""
    save_every: int = 100
    """Steps between two saved states, besides the end of each epoch."""
    init: str = ""
    """A checkpoint (folder, packaged name or hub id) whose weights training starts from, instead of random ones."""
    out: str = "runs/sdst"
    """Folder of the run."""

    def __post_init__(self) -> None:
        check_types(self)
        counts = (
            "epochs", "batch_size", "lr_drop_epochs", "devices", "val_every", "save_every"
        )  # fmt: skip
        for name in counts:
            require(self, getattr(self, name) >= 1, name, "at least 1")
        for name in ("lr", "lr_drop", "clip_norm"):
            require(self, getattr(self, name) > 0, name, "above 0")
        require(self, 0 <= self.ema < 1, "ema", "in [0, 1)")
        require(self, self.batch_size % self.devices == 0, "batch_size", "divisible by devices")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run."""

    model: SDSTConfig
    """The side-tuner."""
    backbone: BackboneConfig = BackboneConfig()
    """What makes its features."""
    data: DataConfig = DataConfig()
    """Annotations and features."""
    losses: SDSTLossConfig = SDSTLossConfig()
    """Weights and options of the losses."""
    decode: DecodeConfig = DecodeConfig()
    """How predictions become moments."""
    train: TrainConfig = TrainConfig()
    """Optimisation."""
    window_clips: int = 75
    """Longest stretch that the model is asked about at once, in clips."""

    @property
    def model_name(self) -> str:
        """Key of :data:`sidelight.models.MODELS`."""
        return "sdst"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and YAML."""
        return dataclasses.asdict(self)


def add_recipe_arguments(parser: ArgumentParser) -> None:
    """Let a command take ``--config RECIPE.yaml`` and a typed option for every field, such as ``--train.lr``."""
    parser.add_argument("--config", action="config", help="recipe, a YAML file")
    parser.add_class_arguments(Recipe, fail_untyped=True)


def recipe_from(parsed: Namespace, parser: ArgumentParser) -> Recipe:
    """The recipe that the arguments of :func:`add_recipe_arguments` say."""
    built = parser.instantiate(parsed)
    return Recipe(**{field.name: built[field.name] for field in dataclasses.fields(Recipe)})


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML file, with overrides such as ``--train.lr=2e-4``.

    Raises:
        ValueError: if the file is missing, or a field is unknown, of the wrong type or out of its range.
    """
    from argparse import ArgumentError

    from jsonargparse import ArgumentParser

    if not Path(path).is_file():
        raise ValueError(f"there is no recipe {path}; expected a YAML file, such as those in recipes/")
    parser = ArgumentParser(exit_on_error=False)
    add_recipe_arguments(parser)
    try:
        return recipe_from(parser.parse_args([f"--config={path}", *overrides]), parser)
    except (ArgumentError, ValueError) as error:
        raise ValueError(f"recipe {path}: {' '.join(str(error).split())}") from None
