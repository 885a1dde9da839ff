"""A recipe: one training run, whole, as a YAML file and as typed values."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sidelight.core.options import check_types, require
from sidelight.data.labels import ALL_RATED, Binding
from sidelight.features.layouts import LayoutName
from sidelight.models.decode.answer import AnswerConfig
from sidelight.models.registry import SIDE_TUNERS, side_tuner
from sidelight.recipes import recipe_file

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
    """Features of the training videos and queries: a store, or a folder in another layout, or of such its parts as
    VIDEO[+VIDEO...],TEXT.
    """
    val_features: str = ""
    """Features of the validation ones; those of training unless given."""
    layout: LayoutName | None = None
    """How the features lie there: a store of ours, or as R2-Tuning, SDST or Moment-DETR released theirs, which the
    section backbone then has to describe; recognised unless given.
    """
    normalise: bool = True
    """Of the layout moment-detr: divide every vector by its length, as published loaders do."""
    train_videos: str = ""
    """Folder of the training videos: with it, `sidelight train` extracts what the store lacks."""
    val_videos: str = ""
    """Folder of the validation videos, likewise."""
    in_memory: bool = True
    """Read all features once; else through a memory map as they are wanted."""
    binding: Binding = "plain"
    """How labels become what a model learns: windows as they are and the raters' mean; or as R2-Tuning's published
    code does, on benchmarks with moments (r2-tuning), on tvsum or on youtube-highlights.
    """
    benchmark: str = ""
    """Whose files train and val are, as they were released; in the QVHighlights form unless given."""
    min_duration: float = 0.0
    """Queries on training videos shorter than so many seconds are left out (5 in R2-Tuning's and SDST's runs)."""
    domain: str = ""
    """Of youtube-highlights or tvsum: read that one only."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self, self.min_duration >= 0, "min_duration", "at least 0")


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Which backbone makes the features."""

    name: str = "shapes"
    """Key of sidelight.backbones.BACKBONES."""
    levels: int | list[int] = 4
    """How many of its last layers, K, or which ones: -1 is the last, ascending."""
    pooling: Literal["cls", "mean", "attention", "tokens"] = "attention"
    """How a layer's tokens become one vector a clip; or tokens, to keep all (R2-Tuning chooses among them)."""
    clip_seconds: float | None = None
    """Length of a clip in seconds; the backbone's own unless given."""
    frames_per_clip: int | None = None
    """Pictures shown to the backbone per clip; the backbone's own unless given."""
    weights: str = ""
    """Folder of its weights, or a hub id; the backbone's own unless given."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self, self.clip_seconds is None or self.clip_seconds > 0, "clip_seconds", "above 0")
        require(self, self.frames_per_clip is None or self.frames_per_clip >= 1, "frames_per_clip", "at least 1")
        chosen = self.chosen
        valid = bool(chosen) and list(chosen) == sorted(set(chosen)) and chosen[-1] < 0
        require(self, valid, "levels", "at least 1, or different negative numbers in ascending order")

    def options(self) -> dict[str, Any]:
        """What :func:`sidelight.backbones.load_backbone` takes besides the name: only what was given."""
        given = {"clip_seconds": self.clip_seconds, "frames_per_clip": self.frames_per_clip, "weights": self.weights}
        return {"levels": self.chosen, "pooling": self.pooling, **{k: v for k, v in given.items() if v}}

    @property
    def chosen(self) -> tuple[int, ...]:
        """The layers by their places from the end, as a feature spec has them."""
        return tuple(range(-self.levels, 0)) if isinstance(self.levels, int) else tuple(self.levels)


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
    out: str = "runs/run"
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
        for name in ("warmup_steps", "weight_decay"):
            require(self, getattr(self, name) >= 0, name, "at least 0")
        require(self, 0 <= self.ema < 1, "ema", "in [0, 1)")
        require(self, self.batch_size % self.devices == 0, "batch_size", "divisible by devices")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run."""

    side_tuner: str = "sdst"
    """Key of :data:`sidelight.models.registry.SIDE_TUNERS`; says what the three next fields are."""
    model: Any
    """The side-tuner's configuration."""
    losses: Any = None
    """Weights and options of its losses; the defaults unless given."""
    decode: AnswerConfig | None = None
    """How its predictions become moments; the defaults unless given."""
    backbone: BackboneConfig = BackboneConfig()
    """What makes its features."""
    data: DataConfig = DataConfig()
    """Annotations and features."""
    train: TrainConfig = TrainConfig()
    """Optimisation."""
    window_clips: int = 75
    """Longest stretch that the model is asked about at once, in clips."""

    def __post_init__(self) -> None:
        kind = side_tuner(self.side_tuner)
        for name, expected in (("losses", kind.loss_config), ("decode", kind.decode_config)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, expected())
        parts = {"model": kind.config, "losses": kind.loss_config, "decode": kind.decode_config}
        for name, expected in parts.items():
            if type(getattr(self, name)) is not expected:
                raise ValueError(
                    f"recipe: {name} of the side-tuner {self.side_tuner!r} must be a {expected.__name__}, "
                    f"got a {type(getattr(self, name)).__name__}"
                )
        require(self, self.window_clips >= 1, "window_clips", "at least 1")
        self._check_together()

    def _check_together(self) -> None:
        """What single fields cannot see."""
        rated = self.data.binding in ALL_RATED
        if self.data.benchmark in ALL_RATED and self.data.binding != self.data.benchmark:
            raise ValueError(f"recipe: data.benchmark {self.data.benchmark} needs data.binding: {self.data.benchmark}")
        if getattr(self.losses, "class_loss", "") == "bce":
            # Its target is a saliency between 0 and 1; that of raters' means has no least value.
            if self.data.binding == "plain":
                raise ValueError("recipe: losses.class_loss bce needs saliency in [0, 1]: set data.binding to another")
            if self.model.boundary_head:
                raise ValueError("recipe: losses.class_loss bce trains no boundaries: set model.boundary_head: false")
        elif rated:
            raise ValueError(
                f"recipe: data.binding {self.data.binding} has no moments; it needs losses.class_loss: bce"
            )
        if self.backbone.pooling == "tokens" and self.side_tuner != "r2-tuning":
            raise ValueError(f"recipe: {self.side_tuner} reads one vector a clip; backbone.pooling must not be tokens")

    @property
    def decoding(self) -> AnswerConfig:
        """``decode``, which is there once the recipe is built."""
        assert self.decode is not None
        return self.decode

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and YAML."""
        return dataclasses.asdict(self)


def add_recipe_arguments(parser: ArgumentParser, arguments: Sequence[str] = ()) -> None:
    """Let a command take ``--config RECIPE.yaml`` and a typed option for every field, such as ``--train.lr``.

    Args:
        parser: gets the options.
        arguments: those that it will parse: which options a model, its losses and its decoding have depends on
            the side-tuner that they, or the recipe that they name, ask for.

    Raises:
        ValueError: for an unknown side-tuner.
    """
    name = _asked_side_tuner(arguments)
    kind = side_tuner(name)
    parser.add_argument("--config", action="config", help="recipe, a YAML file")
    parser.add_argument("--side_tuner", default=name, help=f"which one: {', '.join(SIDE_TUNERS)}")
    # instantiate=False would leave dicts; each part becomes the frozen dataclass that checks itself.
    for part, kind_of_part in (("model", kind.config), ("losses", kind.loss_config), ("decode", kind.decode_config)):
        parser.add_class_arguments(kind_of_part, part, fail_untyped=True)
    for part, kind_of_part in (("backbone", BackboneConfig), ("data", DataConfig), ("train", TrainConfig)):
        parser.add_class_arguments(kind_of_part, part, fail_untyped=True)
    parser.add_argument("--window_clips", type=int, default=75, help="longest stretch asked about at once, in clips")


def _asked_side_tuner(arguments: Sequence[str]) -> str:
    """What ``--side_tuner``, or else the recipe file, says."""
    said = dict(zip(arguments, [*arguments[1:], ""], strict=False))
    said |= {name: value for name, found, value in (a.partition("=") for a in arguments) if found}
    if "--side_tuner" in said:
        return said["--side_tuner"]
    path = said.get("--config", "")
    if not Path(path).is_file():
        return "sdst"
    import yaml  # type: ignore[import-untyped]  # comes with jsonargparse, without types

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return "sdst"  # the parser says better what is wrong with it
    return str(values.get("side_tuner", "sdst")) if isinstance(values, dict) else "sdst"


def recipe_from(parsed: Namespace, parser: ArgumentParser) -> Recipe:
    """The recipe that the arguments of :func:`add_recipe_arguments` say.

    Raises:
        ValueError: if fields do not fit together; names the file, if one was read.
    """
    with naming(file_of(parsed)):
        built = parser.instantiate(parsed)
        return Recipe(**{field.name: built[field.name] for field in dataclasses.fields(Recipe)})


def file_of(parsed: Namespace) -> str | None:
    """The recipe's file, as it was given; None if there is none."""
    files = parsed.get("config") or []
    return str(files[-1]) if files else None


@contextlib.contextmanager
def naming(path: object) -> Iterator[None]:
    """Say in which recipe a mistake is, in errors that are of one: those of its fields, and "recipe: ...".

    Args:
        path: the file; None if there is none.
    """
    try:
        yield
    except ValueError as error:
        said = " ".join(str(error).split())
        if path is None or not re.match(r"recipe: |\w+Config\.", said):
            raise
        raise ValueError(f"recipe {path}: {said.removeprefix('recipe: ')}") from None


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, a YAML file or the name of a shipped one, with overrides such as ``--train.lr=2e-4``.

    Raises:
        ValueError: if the file is missing, or a field is unknown, of the wrong type or out of its range.
    """
    from argparse import ArgumentError

    from jsonargparse import ArgumentParser

    path = recipe_file(path)
    arguments = [f"--config={path}", *overrides]
    parser = ArgumentParser(exit_on_error=False)
    try:
        add_recipe_arguments(parser, arguments)
        return recipe_from(parser.parse_args(arguments), parser)
    except (ArgumentError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ValueError(said if said.startswith(f"recipe {path}: ") else f"recipe {path}: {said}") from None
