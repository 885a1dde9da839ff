"""A recipe: everything that makes one training run, as a YAML file and as typed values."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sidelight.core.messages import did_you_mean
from sidelight.core.options import check_threads, check_types, describe, literals, require
from sidelight.data.labels import ALL_RATED, Binding
from sidelight.features.layouts import LAYOUTS
from sidelight.io.cache import parse_size
from sidelight.io.files import read_text
from sidelight.io.yaml_text import check_yaml, load_yaml
from sidelight.models.decode.answer import AnswerConfig
from sidelight.models.registry import SIDE_TUNERS, SideTuner, side_tuner
from sidelight.recipes import recipe_file
from sidelight.training.augment import AugmentConfig
from sidelight.training.tower import TowerConfig

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the data of a run is. Paths are relative to the current folder."""

    train: str = ""
    """Training annotations, JSONL in the QVHighlights form."""
    val: str = ""
    """Validation annotations, in the same form."""
    train_features: str = ""
    """Features of the training videos and queries: a store, a folder in a layout that a paper released, or the parts
    of such a folder as VIDEO[+VIDEO...],TEXT.
    """
    val_features: str = ""
    """Features of the validation videos and queries; train_features unless given."""
    layout: str | None = None
    """The layout of the features: sidelight for a feature store; or r2-tuning, sdst or moment-detr for features that
    these papers released, which the section backbone must then describe; recognised unless given.
    """
    normalise: bool = True
    """Divide every vector of the layout moment-detr by its length, as published loaders do."""
    train_videos: str = ""
    """Folder of the training videos: with it, `sidelight train` extracts the features that the store lacks; a model
    that is trained from pixels reads them.
    """
    val_videos: str = ""
    """Folder of the validation videos, for the same purpose; from pixels, train_videos unless given."""
    in_memory: bool = True
    """Read all features once; otherwise read a video each time a sample needs it."""
    binding: Binding = "plain"
    """How labels become targets: plain takes windows as they are and the raters' mean; the others do as R2-Tuning's
    published code, on benchmarks with moments (r2-tuning), on tvsum and on youtube-highlights.
    """
    benchmark: str = ""
    """The benchmark whose released files train and val are; the QVHighlights form unless given."""
    min_duration: float = 0.0
    """Shortest training video in seconds; queries on shorter ones are left out (5 in R2-Tuning's and SDST's runs)."""
    domain: str = ""
    """The only domain of youtube-highlights or tvsum to read; all unless given."""
    round_clips: bool = False
    """Leave out a last clip of which less than half lies in the video, as R2-Tuning's extraction of frames does."""
    frames_cache: str = ""
    """Folder for decoded frames of videos, for a model that is trained from pixels; below the user's cache unless
    given. Runs share it.
    """
    frames_cache_limit: str = "100GB"
    """Largest size of that folder."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self, self.min_duration >= 0, "min_duration", "at least 0")
        parse_size(self.frames_cache_limit, name="DataConfig.frames_cache_limit")
        layouts = ("sidelight", *LAYOUTS)
        require(self, self.layout is None or self.layout in layouts, "layout", f"one of {', '.join(layouts)}")


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The backbone that makes the features."""

    name: str = "shapes"
    """Key of sidelight.backbones.BACKBONES."""
    levels: int | list[int] = 4
    """The number of last layers to read, K; or the layers themselves, ascending, where -1 is the last."""
    pooling: Literal["cls", "mean", "attention", "tokens", "joint-video"] = "attention"
    """How a layer's tokens become one vector a clip; tokens keeps all of them, for R2-Tuning. joint-video is what
    Moment-DETR and UniVTG read of CLIP: image embeddings, and tokens of the query, all of length 1.
    """
    clip_seconds: float | None = None
    """Length of a clip in seconds; the backbone's own unless given."""
    frames_per_clip: int | None = None
    """Frames shown to the backbone per clip; the backbone's own unless given."""
    weights: str = ""
    """Folder or hub id of the weights; the backbone's own unless given."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self, self.clip_seconds is None or self.clip_seconds > 0, "clip_seconds", "above 0")
        require(self, self.frames_per_clip is None or self.frames_per_clip >= 1, "frames_per_clip", "at least 1")
        chosen = self.chosen
        valid = bool(chosen) and list(chosen) == sorted(set(chosen)) and chosen[-1] < 0
        require(self, valid, "levels", "at least 1, or different negative numbers in ascending order")

    def options(self) -> dict[str, Any]:
        """Return the options of :func:`sidelight.backbones.load_backbone`, without those that are not given."""
        options = {"clip_seconds": self.clip_seconds, "frames_per_clip": self.frames_per_clip, "weights": self.weights}
        return {"levels": self.chosen, "pooling": self.pooling, **{k: v for k, v in options.items() if v}}

    @property
    def chosen(self) -> tuple[int, ...]:
        """Return the levels as a feature spec has them, counted from the last: (-4, -3, -2, -1)."""
        return tuple(range(-self.levels, 0)) if isinstance(self.levels, int) else tuple(self.levels)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a run is optimised, validated and saved."""

    epochs: int = 60
    """Passes over the training annotations."""
    batch_size: int = 32
    """Samples per step, over all processes together; of a model that is trained from pixels, the most videos per step,
    each with all its queries.
    """
    frames_per_step: int = 4096
    """Most frames of the videos of a step, over all processes together, for a model that is trained from pixels; 4096
    are 8 videos of 512 frames. A video with more frames than a process may read is a step of its own.
    """
    accumulate: int = 0
    """Queries of a step whose gradients are computed at a time, and added, to save memory; 0 for all. Only for a model
    that is trained from pixels.
    """
    last_batch: Literal["drop", "keep"] = "drop"
    """What happens to samples that fill no batch at the end of an epoch: drop leaves them out (other samples in each
    epoch), keep makes them a smaller batch, as in the published runs. From pixels, steps have as many videos as fit,
    and none is left out in one process.
    """
    lr: float = 1e-4
    """Learning rate after warm-up."""
    offset_lr: float = 1.0
    """Factor of the learning rate for the offsets of deformable attention and the first references (0.1 in TadTR);
    only for side-tuners that have them.
    """
    lr_drop_epochs: int = 20
    """Epochs from one drop of the learning rate to the next."""
    lr_drop: float = 0.1
    """Factor by which a drop multiplies the learning rate."""
    warmup_steps: int = 2000
    """Steps of linear warm-up."""
    warmup_ratio: float = 0.001
    """Share of the learning rate at the first step of the warm-up."""
    weight_decay: float = 1e-4
    """Weight decay of AdamW."""
    clip_norm: float = 35.0
    """Largest gradient norm."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which is validated and saved instead; 0 for none."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Arithmetic, as Lightning Fabric names it."""
    accelerator: str = "auto"
    """auto, cpu, cuda or mps."""
    devices: int = 1
    """Number of processes, each with its device."""
    threads: int = 0
    """CPU threads per process; 0 leaves PyTorch's default, which OMP_NUM_THREADS sets."""
    seed: int = 0
    """Seed of the weights, the order, dropout and positive clips."""
    val_every: int = 1
    """Epochs from one validation to the next."""
    best_by: str = "MR-full-mAP"
    """The metric that chooses the best epoch: a key of the part "brief" of an evaluation."""
    save_every: int = 100
    """Steps from one saved state to the next; the end of each epoch is saved too."""
    init: str = ""
    """Checkpoint (folder, packaged name or hub id) with the weights to start from; random weights unless given."""
    out: str = "runs/run"
    """Folder of the run."""

    def __post_init__(self) -> None:
        check_types(self)
        counts = (
            "epochs", "batch_size", "frames_per_step", "lr_drop_epochs", "devices", "val_every", "save_every"
        )  # fmt: skip
        for name in counts:
            require(self, getattr(self, name) >= 1, name, "at least 1")
        for name in ("lr", "offset_lr", "lr_drop", "clip_norm"):
            require(self, getattr(self, name) > 0, name, "above 0")
        for name in ("warmup_steps", "weight_decay", "accumulate"):
            require(self, getattr(self, name) >= 0, name, "at least 0")
        require(self, 0 <= self.seed < 2**32, "seed", "at least 0 and below 2^32")
        require(self, 0 <= self.warmup_ratio <= 1, "warmup_ratio", "between 0 and 1")
        require(self, 0 <= self.ema < 1, "ema", "in [0, 1)")
        check_threads(self)
        divisible = self.batch_size % self.devices == 0
        require(self, divisible, "batch_size", f"divisible by train.devices ({self.devices})")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run."""

    side_tuner: str = "sdst"
    """Key of :data:`sidelight.models.registry.SIDE_TUNERS`; decides the types of the next fields."""
    model: Any
    """The side-tuner's configuration."""
    losses: Any = None
    """Weights and options of the losses; the side-tuner's defaults unless given."""
    decode: AnswerConfig | None = None
    """How predictions become moments; the side-tuner's defaults unless given."""
    backbone: Any = None
    """The backbone that makes the features, a BackboneConfig; or that is trained from pixels, a TowerConfig."""
    data: DataConfig = DataConfig()
    """Annotations and features."""
    train: TrainConfig = TrainConfig()
    """Optimisation, validation and saving."""
    window_clips: int = 75
    """Longest input of the model, in clips; longer videos are cut into overlapping windows."""
    memory: Any = None
    """Ways to train with less memory; only for a model that is trained from pixels, with the model's type."""
    augment: Any = None
    """Random changes of the training videos, an AugmentConfig; only for a model that is trained from pixels."""

    def __post_init__(self) -> None:
        sections = sections_of(self.side_tuner, getattr(self.model, "head", None))
        for name, expected in sections.items():
            if getattr(self, name) is None and name != "model":
                object.__setattr__(self, name, expected())
        for name in ("memory", "augment"):
            if name not in sections and getattr(self, name) is not None:
                raise ValueError(f"recipe: {self.side_tuner} reads features, and has no section {name}; leave it out")
        for name, expected in sections.items():
            if type(getattr(self, name)) is not expected:
                raise ValueError(
                    f"recipe: {name} of the side-tuner {self.side_tuner!r} must be a {expected.__name__}, "
                    f"got a {type(getattr(self, name)).__name__}"
                )
        require(self, self.window_clips >= 1, "window_clips", "at least 1")
        self._check_together()

    def _check_together(self) -> None:
        """Check fields that must fit each other."""
        {"features": self._check_features, "frames": self._check_frames}[side_tuner(self.side_tuner).reads]()
        if self.train.offset_lr != 1 and not side_tuner(self.side_tuner).has_slow_parameters:
            able = ", ".join(name for name, kind in SIDE_TUNERS.items() if kind.has_slow_parameters)
            raise ValueError(
                f"recipe: train.offset_lr is for the offsets of {able}, and {self.side_tuner} has none; "
                "leave train.offset_lr out"
            )

    def _check_frames(self) -> None:
        """Check the fields of a model that is trained from pixels."""
        if self.train.accumulate and getattr(self.model, "head", "scada") != "scada":
            raise ValueError(
                f"recipe: train.accumulate needs losses that are means over queries, and those of the head "
                f"{self.model.head} compare queries; leave train.accumulate out, or lower train.frames_per_step"
            )
        if self.data.train_features or self.data.val_features:
            raise ValueError(
                f"recipe: {self.side_tuner} reads videos, not features: leave out data.train_features and "
                "data.val_features, and set data.train_videos"
            )
        if self.data.binding in ALL_RATED or self.data.round_clips:
            raise ValueError(
                f"recipe: {self.side_tuner} needs moments and all clips: leave out data.binding and data.round_clips"
            )

    def _check_features(self) -> None:
        """Check the fields of a model that reads features."""
        for field in ("train.accumulate", "data.frames_cache"):
            section, _, name = field.partition(".")
            if getattr(getattr(self, section), name):
                raise ValueError(
                    f"recipe: {field} is for models that are trained from pixels; leave it out for {self.side_tuner}"
                )
        needs_bce = self.data.binding in ALL_RATED
        if self.data.benchmark in ALL_RATED and self.data.binding != self.data.benchmark:
            raise ValueError(f"recipe: data.benchmark {self.data.benchmark} needs data.binding: {self.data.benchmark}")
        if getattr(self.losses, "class_loss", "") == "bce":
            # The targets of bce are saliencies in [0, 1]; with raters' means above 1, this loss has no minimum.
            if self.data.binding in ("plain", "univtg"):
                raise ValueError("recipe: losses.class_loss bce needs saliency in [0, 1]: set data.binding to another")
            if self.model.boundary_head:
                raise ValueError("recipe: losses.class_loss bce trains no boundaries: set model.boundary_head: false")
        elif needs_bce:
            raise ValueError(
                f"recipe: data.binding {self.data.binding} has no moments; it needs losses.class_loss: bce"
            )
        if self.backbone.pooling == "tokens" and self.side_tuner != "r2-tuning":
            raise ValueError(f"recipe: {self.side_tuner} reads one vector a clip; backbone.pooling must not be tokens")

    @property
    def parts(self) -> SideTuner:
        """Return the parts of the side-tuner, with the chosen head."""
        return side_tuner(self.side_tuner).with_head(getattr(self.model, "head", None))

    @property
    def decoding(self) -> AnswerConfig:
        """Return ``decode``, which is never None in a built recipe."""
        assert self.decode is not None
        return self.decode

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON and YAML."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in ("memory", "augment") or value is not None}


def sections_of(name: str, head: str | None = None) -> dict[str, type[Any]]:
    """Return the sections of a recipe whose fields depend on the side-tuner: name -> configuration.

    Args:
        name: the side-tuner.
        head: the head of a model that has several; its own unless given.

    Raises:
        ValueError: for an unknown side-tuner.
    """
    kind = side_tuner(name).with_head(head)
    own = {"model": kind.config, "losses": kind.loss_config, "decode": kind.decode_config}
    inputs: dict[str, dict[str, type[Any]]] = {
        "features": {"backbone": BackboneConfig},
        "frames": {"backbone": TowerConfig, "augment": AugmentConfig},
    }
    memory = {} if kind.memory_config is None else {"memory": kind.memory_config}
    return {**own, **inputs[kind.reads], **memory}


def recipe_parser(**settings: Any) -> ArgumentParser:
    """Return an empty parser of jsonargparse that reads files in each encoding of :func:`sidelight.io.files.read_text`.

    Args:
        settings: arguments of jsonargparse's parser.
    """
    from jsonargparse import ArgumentParser, set_loader

    class RecipeParser(ArgumentParser):
        def parse_path(self, path: Any, *args: Any, **options: Any) -> Namespace:
            with contextlib.suppress(UnicodeDecodeError):  # the parser has the sentence for it
                check_yaml(text := read_text(path))
                if not text.strip():
                    raise ValueError("this file is empty; copy one of the recipes that `sidelight recipes` lists")
            try:
                parsed: Namespace = super().parse_path(path, *args, **options)
            except UnicodeDecodeError:
                parsed = self.parse_string(read_text(path), str(path), *args, **options)
            return parsed

    import yaml  # type: ignore[import-untyped]  # comes with jsonargparse, without types

    set_loader("recipe", _load_recipe_text, exceptions=(ValueError, yaml.YAMLError))
    return RecipeParser(parser_mode="recipe", **settings)


def _load_recipe_text(text: str) -> Any:
    """Load a value as jsonargparse does, after a check: a section may be a file of its own."""
    from jsonargparse import get_loader

    check_yaml(text)
    return get_loader("yaml")(text)


def add_recipe_arguments(parser: ArgumentParser, arguments: Sequence[str] = ()) -> None:
    """Add ``--config RECIPE.yaml`` and a typed option for every field, such as ``--train.lr``, to a command.

    Args:
        parser: gets the options.
        arguments: the arguments that it will parse. They, or the recipe that they name, choose the side-tuner, and
            the side-tuner decides the options of model, losses and decoding.

    Raises:
        ValueError: for an unknown side-tuner.
    """
    name, head = _chosen(arguments, "side_tuner") or "sdst", _chosen(arguments, "model.head")
    try:
        sections = sections_of(name, head)
    except ValueError as error:
        raise ValueError(f"recipe: side_tuner: {error}") from None
    parser.add_argument("--config", action="config", help="recipe, a YAML file")
    parser.add_argument("--side_tuner", default=name, help=f"one of {', '.join(SIDE_TUNERS)}")
    # instantiate=False would leave dicts; each part becomes the frozen dataclass that checks itself.
    for name, config in {**sections, "data": DataConfig, "train": TrainConfig}.items():
        parser.add_class_arguments(config, name, fail_untyped=True)
    parser.add_argument("--window_clips", type=int, default=75, help="longest input of the model, in clips")


def _chosen(arguments: Sequence[str], field: str) -> str | None:
    """Return the value of an option such as ``--side_tuner``, else that of the recipe file; None if neither has it."""
    options = dict(zip(arguments, [*arguments[1:], ""], strict=False))
    options |= {name: value for name, sign, value in (a.partition("=") for a in arguments) if sign}
    if f"--{field}" in options:
        return options[f"--{field}"]
    path = options.get("--config", "")
    if not Path(path).is_file():
        return None
    try:
        value = load_yaml(read_text(path))
    except ValueError:
        return None  # the parser has the better message for a broken file
    for name in field.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return None if value is None else str(value)


def recipe_from(parsed: Namespace, parser: ArgumentParser, options: Iterable[str] = ()) -> Recipe:
    """Build the recipe from the parsed options of :func:`add_recipe_arguments`.

    Args:
        parsed: the parsed options.
        parser: the parser.
        options: fields whose values come from the command line, for messages.

    Raises:
        ValueError: if a value is out of its range, or fields do not fit together; names the option or the file.
    """
    with naming(file_of(parsed), options):
        built = parser.instantiate(parsed)
        return Recipe(**{field.name: built.get(field.name) for field in dataclasses.fields(Recipe)})


def file_of(parsed: Namespace) -> str | None:
    """Return the path of the recipe as the user wrote it; None if there is no file."""
    files = parsed.get("config") or []
    return str(files[-1]) if files else None


_SECTIONS = {"Recipe": "", "PretrainConfig": "", "TrainConfig": "train.", "DataConfig": "data."}
_SECTIONS |= {"BackboneConfig": "backbone.", "TowerConfig": "backbone.", "AugmentConfig": "augment."}
_SECTIONS |= {"MemoryConfig": "memory."}


def _section_of(config: str) -> str:
    """Return the section of a recipe that a configuration class holds, with a dot: "train." for TrainConfig."""
    if config.endswith(("LossConfig", "DecodeConfig", "AnswerConfig")):
        return "losses." if config.endswith("LossConfig") else "decode."
    return _SECTIONS.get(config, "model.")


@contextlib.contextmanager
def naming(path: object, options: Iterable[str] = ()) -> Iterator[None]:
    """Begin errors about fields of a recipe with the option that was typed, or else with the recipe's file.

    "TrainConfig.epochs must be ..." becomes "--train.epochs must be ..." or "recipe FILE: train.epochs must be ...".
    "recipe: ..." becomes "recipe FILE: ...".

    Args:
        path: the file, or None.
        options: fields whose values come from the command line, such as "train.epochs".
    """
    try:
        yield
    except ValueError as error:
        message = " ".join(str(error).split())
        parts = re.match(r"(Recipe|\w+Config)\.(\w+)( must be .*)", message)
        if parts is None and not message.startswith("recipe: "):
            raise
        field = f"{_section_of(parts[1])}{parts[2]}" if parts else ""
        if parts and field in options:
            raise ValueError(f"--{field}{parts[3]}") from None
        if parts:
            message = f"{field}{parts[3]}"
        where = "recipe: " if path is None else f"recipe {path}: "
        raise ValueError(f"{where}{message.removeprefix('recipe: ')}") from None


def options_in(arguments: Sequence[str]) -> list[str]:
    """Return the fields that arguments such as ``--train.lr=2e-4`` set: "train.lr"."""
    return [argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")]


def plain_mistake(error: Exception, parser: ArgumentParser, path: object = None, arguments: Sequence[str] = ()) -> str:
    """Return an error of jsonargparse in plain words; begin it with the option that was typed, or the recipe's file.

    Args:
        error: the error.
        parser: has the options of :func:`add_recipe_arguments`.
        path: the recipe's file, or None.
        arguments: the arguments on the command line, without the file.
    """
    message = " ".join(str(error).split()).removeprefix("recipe: ")
    actions = {action.dest: action for action in parser._actions}
    options = options_in(arguments)
    if message.startswith("unrecognized arguments: "):
        unknown = message.split()[2]
        known = [f"--{name}" for name in actions] if unknown.startswith("-") else []
        return message + did_you_mean(unknown.partition("=")[0], known)
    if match := re.search(r'^Parser key "([\w.]+)": (.*)', message):
        field, message = match.groups()
        value = re.search(r"(?:Got value|Given value): (.*)$", message)
        hint = getattr(actions.get(field), "_typehint", None) or getattr(actions.get(field), "type", None)
        if value and hint:
            choices = [choice for choice in literals(hint) if isinstance(choice, str)]
            message = f"must be {describe(hint)}, got {value[1]!r}{did_you_mean(value[1], choices)}"
        elif "Unable to load config" in message:
            message = "must be a YAML file with the fields of this section"
        elif match := re.match(r"(File does not exist): (.*)", message):
            message = f"names a file that does not exist: {match[2]}"
        if field in options:
            return f"--{field} {message}"
        message = f"{field} {message}"
    elif match := re.match(r"(?:Group '([\w.]+)' does not accept option|Option) '([\w.]+)'", message):
        section, name = match.groups()
        known = [dest.removeprefix(f"{section}.") for dest in actions if dest.startswith(f"{section or ''}")]
        where = f"the section {section}" if section else "a recipe"
        message = f"{where} has no field {name!r}{did_you_mean(name, known)}"
    return message if path is None else f"recipe {path}: {message}"


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a YAML file.

    Args:
        path: the file, or the name of a recipe that ships with sidelight.
        overrides: options such as ``--train.lr=2e-4``, which win over the file.

    Raises:
        ValueError: if the file is missing, or a field is unknown, of the wrong type or out of its range.
    """
    from argparse import ArgumentError

    path = recipe_file(path)
    arguments = [f"--config={path}", *overrides]
    parser = recipe_parser(exit_on_error=False)
    try:
        add_recipe_arguments(parser, arguments)
        parsed = parser.parse_args(arguments)
    except (ArgumentError, ValueError) as error:
        raise ValueError(plain_mistake(error, parser, path, overrides)) from None
    return recipe_from(parsed, parser, options_in(overrides))
