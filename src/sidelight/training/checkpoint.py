"""Checkpoints: a folder with ``model.safetensors`` and ``config.json``, as the Hugging Face hub expects.

``config.json`` holds the model's name and resolved configuration, the spec of the features that it was trained on, how
its predictions are decoded, its metrics, the recipe of the run, and the digest of the weights. A model refuses features
of another spec.

The header of ``model.safetensors`` holds the same configuration. It is renamed to its place first; if the process is
killed before ``config.json`` follows, the digest there is that of the older weights, and the header counts.

A model that was trained from pixels has a spec of frames and backbones in place of features (``PixelCheckpoint``). Its
weights are stored without those that were not trained: the backbone is loaded from its own weights, which must be the
same.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from sidelight.backbones import BACKBONES, Backbone, load_backbone
from sidelight.backbones.common import weights_digest
from sidelight.backbones.protocol import FeatureSpec, FrameSpec, SentenceEncoder
from sidelight.core.messages import did_you_mean, first_line
from sidelight.io.download import is_offline
from sidelight.io.files import read_json, replacing
from sidelight.io.tensors import check_shapes, require_finite, shapes_only, shown, write_tensors
from sidelight.models.decode.answer import AnswerConfig
from sidelight.models.decode.zero_shot import METHODS, ZeroShotDecodeConfig
from sidelight.models.recompute import MemoryConfig
from sidelight.models.registry import build_model, model_parts
from sidelight.models.scada import Scada
from sidelight.models.zero_shot import ZERO_SHOT, ZeroShot
from sidelight.training.tower import TowerConfig

if TYPE_CHECKING:
    from typing_extensions import Self

PACKAGED = Path(__file__).resolve().parent.parent / "weights"
FORMAT = "sidelight.checkpoint/1"
FILES = ("config.json", "model.safetensors")
"""The files of a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class ModelCheckpoint(ABC):
    """A model and everything that is needed to use it, except for what it reads, which each kind adds."""

    model: nn.Module
    """The model."""
    model_name: str
    """Name that :func:`sidelight.models.registry.model_parts` knows."""
    model_config: Mapping[str, Any]
    """The configuration that the model was built with."""
    decode: AnswerConfig
    """How predictions become moments."""
    window_clips: int = 75
    """Longest input in clips; longer videos are cut into overlapping windows."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Scores on the validation data."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """The resolved recipe of the run, as plain values."""

    @abstractmethod
    def input_values(self) -> dict[str, Any]:
        """Return the fields of ``config.json`` that say what the model reads."""

    def state(self) -> dict[str, Tensor]:
        """Return the weights that are stored."""
        return self.model.state_dict()

    def save_pretrained(
        self, folder: str | Path, *, half: bool = False, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write the checkpoint into a folder. Each file is written beside its place, then renamed.

        Args:
            folder: made if need be.
            half: store the weights as float16.
            weights: name -> tensor, stored instead of the model's own weights, such as their average.

        Raises:
            OSError: if the disk is full or cannot be written.
            ValueError: if a weight is not finite.
        """
        values = {
            "format": FORMAT,
            "model": self.model_name,
            "model_config": dict(self.model_config),
            "decode": asdict(self.decode),
            "window_clips": self.window_clips,
            "metrics": dict(self.metrics),
            "recipe": dict(self.recipe),
            **self.input_values(),
        }
        _write(Path(folder), values, weights or self.state(), half=half)

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Upload the checkpoint to the Hugging Face hub, where you must be logged in; return the commit's address."""
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder).commit_url)

    def to(self, device: torch.device | str) -> Self:
        """Move the model to a device; return the checkpoint itself."""
        self.model.to(device)
        return self


@dataclass(frozen=True, kw_only=True)
class Checkpoint(ModelCheckpoint):
    """A model that reads features, mostly a trained side-tuner."""

    features: FeatureSpec
    """Spec of the features that it was trained on."""
    round_clips: bool = False
    """Leave out a last clip of which less than half lies in the video, as in the training of the model."""

    def input_values(self) -> dict[str, Any]:
        """Return the spec of the features, and which clips are left out."""
        return {"features": self.features.to_dict(), "round_clips": self.round_clips}

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, revision: str | None = None, backbone_weights: str | Path | None = None
    ) -> Checkpoint:
        """Load a checkpoint: one that ships with sidelight (``shapes``), a folder, a hub id (``user/model``), or
        grounding without training on a backbone (``zero-shot/clip``).

        A hub id is downloaded once, into the Hugging Face cache. Weights are read as safetensors only.

        Args:
            name: the checkpoint.
            revision: branch, tag or commit of a hub id.
            backbone_weights: folder or hub id of the weights of a backbone named by ``zero-shot/BACKBONE``.

        Raises:
            ValueError: if there is no such checkpoint, or one of its files is missing or does not fit.
        """
        if backbone := zero_shot_backbone(name, weights=backbone_weights, revision=revision):
            return cls.zero_shot(backbone.spec)
        saved = _read_saved(name, revision)
        values = saved.values
        if "frames" in values:
            raise ValueError(
                f"{name} is a {values['model']} model, which reads videos and no features; use it with `sidelight "
                "ground`, `sidelight predict --videos` or Grounder"
            )
        saved.require("features", *_COMMON)
        return cls(
            model=saved.build(),
            model_name=values["model"],
            model_config=values["model_config"],
            features=FeatureSpec.from_dict(values["features"]),
            decode=saved.decode(),
            window_clips=values["window_clips"],
            round_clips=values.get("round_clips", False),  # older checkpoints have all clips
            metrics=values["metrics"],
            recipe=values["recipe"],
        )

    @classmethod
    def zero_shot(cls, features: FeatureSpec, decode: ZeroShotDecodeConfig | None = None) -> Checkpoint:
        """Return the model that grounds without training, which has no weights.

        Args:
            features: spec of a backbone's joint embeddings.
            decode: the method and its options; unless given, ours for clean curves with the backbone ``shapes``, and
                ours for noisy curves with all others, which were not trained on the videos that they read.

        Raises:
            ValueError: if the features have another pooling than ``joint``.
        """
        if features.pooling != "joint":
            raise ValueError(f"zero-shot needs features of the pooling joint, got {features.pooling}")
        return cls(
            model=ZeroShot().eval(),
            model_name=ZERO_SHOT,
            model_config={},
            features=features,
            decode=decode or METHODS["persistence" if features.backbone == "shapes" else "persistence-smooth"],
            window_clips=_WHOLE_VIDEO,
        )


@dataclass(frozen=True, kw_only=True)
class PixelCheckpoint(ModelCheckpoint):
    """A model that was trained from pixels, with its backbones. Only the trained weights are stored."""

    model: Scada
    """The model."""
    frames: FrameSpec
    """What it reads: backbone, sentence encoder and sampling, with the digests of the frozen weights."""
    sentences: SentenceEncoder
    """The sentence encoder, loaded."""

    @property
    def clip_seconds(self) -> float:
        """Return the length of a clip in seconds."""
        return self.frames.chunk_seconds / self.model.clips_per_chunk

    def input_values(self) -> dict[str, Any]:
        """Return the spec of the frames and of the backbones."""
        return {"frames": self.frames.to_dict()}

    def state(self) -> dict[str, Tensor]:
        """Return the trained weights."""
        return trained_state(self.model)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        backbone_weights: str | Path | None = None,
        sentence_weights: str | Path | None = None,
    ) -> PixelCheckpoint:
        """Load a checkpoint of a model that reads frames: a folder, or a hub id (``user/model``).

        The backbones are loaded as the recipe says, and compared with those of the training.

        Args:
            name: the checkpoint.
            revision: branch, tag or commit of a hub id.
            backbone_weights: folder or hub id of the video backbone's weights; those of the recipe unless given.
            sentence_weights: folder or hub id of the sentence encoder's weights; those of the recipe unless given.

        Raises:
            SpecMismatchError: if the weights are not those of the training.
            ValueError: if there is no such checkpoint, or one of its files is missing or does not fit.
        """
        saved = _read_saved(name, revision)
        values = saved.values
        if "features" in values:
            raise ValueError(f"{name} is a {values['model']} model, which reads features; load it with Checkpoint")
        saved.require("frames", *_COMMON)
        frames = FrameSpec.from_dict(values["frames"])
        try:
            backbone = TowerConfig(**values["recipe"]["backbone"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{saved.folder / 'config.json'}: the recipe's backbone does not fit: {error}") from None
        backbone = replace(
            backbone,
            weights=str(backbone_weights or backbone.weights),
            sentence_weights=str(sentence_weights or backbone.sentence_weights),
        )
        tower, sentences = backbone.load()
        frames.require(replace(frames, tower=tower.spec, sentences=sentences.spec))
        memory = MemoryConfig(chunks_at_once=_CHUNKS_AT_ONCE)
        return cls(
            model=cast(Scada, saved.build(tower=tower, memory=memory)),
            model_name=values["model"],
            model_config=values["model_config"],
            frames=frames,
            sentences=sentences,
            decode=saved.decode(),
            window_clips=values["window_clips"],
            metrics=values["metrics"],
            recipe=values["recipe"],
        )


_CHUNKS_AT_ONCE = 8
"""Chunks that pass the backbone together when a model answers: without gradients, more are no faster."""
_COMMON = ("model", "model_config", "decode", "window_clips", "metrics", "recipe")
"""The fields of ``config.json`` of every checkpoint, beside the format and what the model reads."""


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of a model without parameters that are frozen, such as those of a backbone."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def load_trained(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what :func:`trained_state` returned.

    Raises:
        RuntimeError: if names or shapes do not fit.
    """
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    kept = {name: value for name, value in model.state_dict().items() if name in frozen}
    model.load_state_dict({**kept, **state})


def _write(folder: Path, values: Mapping[str, Any], state: Mapping[str, Tensor], *, half: bool) -> None:
    """Write the two files of a checkpoint.

    Raises:
        OSError: if the disk is full or cannot be written.
        ValueError: if a weight is not finite.
    """
    require_finite(state.values(), folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    if half:
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    text = json.dumps({**values, "weights": weights_digest(tensors)}, indent=2)
    # The inner one, the weights, is renamed first.
    with replacing(folder / "config.json") as config, replacing(folder / "model.safetensors") as model:
        config.write_text(text + "\n")
        # safetensors writes several entries in any order; with one entry, equal weights are equal files.
        write_tensors(tensors, model, {"config": text})


@dataclass(frozen=True, kw_only=True)
class _Saved:
    """The files of a checkpoint, read but not yet made into a model."""

    folder: Path
    values: Mapping[str, Any]
    """The configuration."""
    tensors: Mapping[str, Tensor]
    """The weights."""

    def require(self, *names: str) -> None:
        """Raise ValueError unless the configuration has these fields."""
        if missing := [name for name in names if name not in self.values]:
            raise ValueError(f"{self.folder / 'config.json'} lacks {', '.join(missing)}; download or save it again")

    def decode(self) -> AnswerConfig:
        """Return how predictions become moments; ValueError if the values do not fit."""
        parts = model_parts(self.values["model"]).with_head(self.values["model_config"].get("head"))
        try:
            return parts.decode_config(**self.values["decode"])
        except TypeError as error:
            raise ValueError(f"{self.folder / 'config.json'}: decode does not fit: {error}") from None

    def build(self, **parts_of_model: Any) -> nn.Module:
        """Return the model with the weights, as float32; ValueError if they do not fit.

        Args:
            parts_of_model: as of :func:`build_model`.
        """
        name, config = self.values["model"], self.values["model_config"]
        _require_shapes(self.folder, name, config, self.tensors, **parts_of_model)
        model = build_model(name, config, **parts_of_model)
        load_trained(model, {k: v.float() if v.is_floating_point() else v for k, v in self.tensors.items()})
        return model.eval()


def _read_saved(name: str | Path, revision: str | None) -> _Saved:
    """Find and read the files of a checkpoint; ValueError if there is none, or a file is damaged."""
    folder = _folder_of(name, revision)
    values, tensors = _read_pair(folder)
    return _Saved(folder=folder, values=values, tensors=tensors)


def _folder_of(name: str | Path, revision: str | None) -> Path:
    """Return the folder with the files of a checkpoint; ValueError if there is none."""
    folder = _locate(str(name), revision)
    for file in FILES:
        if not (folder / file).is_file():
            raise ValueError(
                f"{name} is no sidelight checkpoint: {folder / file} is missing; expected a folder with {FILES}"
            )
    return folder


def reads_frames(name: str | Path, *, revision: str | None = None) -> bool:
    """Check whether a checkpoint is a :class:`PixelCheckpoint`, by its ``config.json``.

    Raises:
        ValueError: if there is no such checkpoint, or the file is damaged.
    """
    return "frames" in read_json(_folder_of(name, revision) / "config.json")


def _read_pair(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the configuration and the weights of a checkpoint, and check that they belong together.

    Raises:
        ValueError: if one of them is damaged, or they are of two checkpoints; older ones have no digest to compare.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    values = read_json(folder / "config.json")
    if values.get("format") != FORMAT:
        raise ValueError(
            f"{folder / 'config.json'}: expected format {FORMAT!r}, got {values.get('format')!r}; "
            "is this a sidelight checkpoint?"
        )
    try:
        tensors = load_file(path)
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("config", "{}"))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} does not fit config.json: {error}; download or save it again") from None
    digest = values.get("weights")
    if digest is None or digest == (actual := weights_digest(tensors)):
        return values, tensors
    if isinstance(header, dict) and header.get("weights") == actual:  # the save was interrupted
        return header, tensors
    raise ValueError(
        f"{folder} has weights that do not fit config.json: their digest is {actual}, expected {shown(digest)}; one of "
        "the two files was damaged or replaced: download or save both again"
    )


_PARTS = ("levels", "layers", "head_layers")
"""Fields of models that say how many parts are built, each with weights."""


def _require_shapes(
    folder: Path, name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor], **parts_of_model: Any
) -> None:
    """Refuse a configuration that the weights do not fit, before memory for its model is taken.

    Raises:
        ValueError: if so.
    """
    for field_name in _PARTS:
        count = config.get(field_name, 0)
        if isinstance(count, int) and count > len(tensors):
            raise ValueError(
                f"{folder / 'config.json'}: model_config.{field_name} is {count}, but there are only {len(tensors)} "
                "tensors in model.safetensors; download or save both again"
            )
    try:
        with shapes_only():
            state = trained_state(build_model(name, config, **parts_of_model))
        expected = {key: tensor.shape for key, tensor in state.items()}
    except (RuntimeError, OverflowError, MemoryError) as error:  # a size that no tensor can have
        reason = first_line(error)
        raise ValueError(f"{folder / 'config.json'} describes no model ({reason}); download both again") from None
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    what, advice = "the weights that fit config.json", "download or save both again"
    check_shapes(shapes, expected, folder / "model.safetensors", what=what, advice=advice)


def is_complete(folder: Path) -> bool:
    """Check whether a folder has all files of a checkpoint."""
    return all((folder / name).is_file() for name in FILES)


_WHOLE_VIDEO = 2**16
"""Clips (36 hours at 2 s) that zero-shot reads at once: a threshold over the whole video needs no windows."""


def zero_shot_backbone(
    name: str | Path, *, weights: str | Path | None = None, revision: str | None = None
) -> Backbone | None:
    """Load the backbone of a name such as ``zero-shot/clip``, with joint embeddings; None for another kind of name.

    Args:
        name: name of a model; a Path is always a folder.
        weights: folder or hub id of the backbone's weights; its own unless given.
        revision: must be None for a name of this kind.

    Raises:
        ValueError: if there is no such backbone, it has no joint embeddings, or its weights are needed.
    """
    kind, _, backbone = str(name).partition("/")
    if isinstance(name, Path) or kind != ZERO_SHOT or (backbone not in BACKBONES and Path(name).is_dir()):
        return None
    if not backbone:
        raise ValueError(f"{name} needs a backbone: {', '.join(f'{ZERO_SHOT}/{known}' for known in BACKBONES)}")
    if revision is not None:
        raise ValueError(f"{name} has no revisions, got {revision!r}; give backbone_weights to choose the weights")
    options = {} if weights is None else {"weights": weights}
    return load_backbone(backbone, pooling="joint", **options)


def _locate(name: str, revision: str | None) -> Path:
    """Return the folder of a checkpoint: of a packaged name, a folder, or a download from the hub."""
    packaged = sorted(p.parent.name for p in PACKAGED.glob("*/config.json") if "-backbone" not in p.parent.name)
    # Packaged names come first: a folder of the same name must not change the result of a command.
    if name in packaged:
        return PACKAGED / name
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ValueError(
            f"there is no model {name!r}; expected a name that `sidelight models` lists, the folder of a checkpoint, "
            f"or a hub id such as user/model{did_you_mean(name, packaged)}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    only_local = is_offline()
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES), local_files_only=only_local))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        if only_local:
            raise ValueError(
                f"model {name!r} is neither a folder here nor in the cache of the hub's client, and sidelight must not "
                "use the network (--offline)"
            ) from None
        raise ValueError(
            f"model {name!r} is neither a folder here nor could it be downloaded from the hub ({first_line(error)}); "
            "check the name and the connection"
        ) from None
