"""The protocol of backbones, and the spec that their features carry.

How to add a backbone:

1. Make a module ``backbones/NAME.py``; or a folder with ``model.py`` and ``convert.py``, if published weights need a
   conversion.
2. Write a class with the five members of :class:`Backbone`. Its constructor takes ``levels``, ``pooling``,
   ``clip_seconds`` and ``frames_per_clip`` by name, and ``weights`` if it has any. If a library has the model,
   ``backbones/hooked.py`` has the rest; ``backbones/siglip2.py`` is an example.
3. Use ``backbones/common.py`` for levels, pooling, checks and digests, ``backbones/pretrained.py`` to read weights of
   transformers, and ``backbones/conversion.py`` to convert.
4. Register the class in ``BACKBONES`` in ``backbones/__init__.py``, and describe it in ``docs/backbones.md``.
5. Copy ``tests/backbones/test_backbones.py``; compare with the original in ``tests/parity``, as ``test_clip.py`` does.

A backbone that can also be trained from pixels has a second class, a :class:`TrainableTower`: its video tower, run
block by block with gradients. Register it in ``TOWERS``; ``backbones/videomae.py`` is an example. A text model that
gives one vector a sentence is a :class:`SentenceEncoder`: register it in ``SENTENCE_ENCODERS``.

Legend: K levels, C clips, F frames per clip or per chunk, S side in pixels, P tokens of a clip or of a chunk, L tokens
of a query, D_v / D_t widths of video and text, N chunks, D width of a tower, B sentences, E width of a sentence.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from sidelight.core.options import check_types

if TYPE_CHECKING:
    import torch
    from torch import nn

POOLINGS = ("cls", "mean", "attention", "tokens", "joint", "joint-video")
JOINT_POOLINGS = ("joint", "joint-video")
"""The poolings in the space in which a backbone compares clips with sentences; they have one level."""
RESIZES = ("stretch", "crop")


class SpecMismatchError(ValueError):
    """The error for features that were made by another spec than expected."""


def _differences(expected: Any, spec: Any) -> str:
    """Return the fields in which two specs of one kind differ, for a message; empty if they are equal."""
    return "; ".join(
        f"{f.name} is {getattr(spec, f.name)!r}, expected {getattr(expected, f.name)!r}"
        for f in dataclasses.fields(expected)
        if getattr(expected, f.name) != getattr(spec, f.name)
    )


def _require_equal(expected: Any, spec: Any, what: str) -> None:
    """Raise SpecMismatchError unless two specs are equal; ``what`` is the thing that they describe."""
    if differences := _differences(expected, spec):
        raise SpecMismatchError(
            f"the {what} is not the one that this model was trained with: {differences}. Give the weights of the "
            "training, or choose another model."
        )


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """The settings that decide which numbers a backbone returns for a video and a query.

    The spec is stored with features and with checkpoints. A model refuses features of another spec.
    """

    backbone: str
    """Name in :data:`sidelight.backbones.BACKBONES`, or the name of another program that made the features."""
    weights: str
    """Digest of the backbone's weights (16 hex digits of the SHA-256 over names, types, shapes and values), or the hub
    id of an official model.
    """
    levels: tuple[int, ...]
    """Layers that are read, shallowest first, counted from the last: -1 is the last layer."""
    pooling: str
    """The way from the tokens of a clip to one vector: cls, mean, attention, or tokens (keeps all tokens); or joint,
    the embeddings in the space in which the backbone compares clips with sentences; or joint-video, which Moment-DETR
    and UniVTG read: the clips of joint, with the query's tokens after the last layer of the text tower. The vectors of
    both have length 1, and their one level is -1.
    """
    clip_seconds: float
    """Length of a clip in seconds."""
    frames_per_clip: int
    """Frames per clip that the backbone reads, evenly spread over the clip."""
    resolution: int
    """Side of the square frame in pixels."""
    resize: Literal["stretch", "crop"]
    """stretch: scale both sides to the resolution; crop: scale the shorter side, then crop the middle."""
    mean: tuple[float, float, float]
    """Mean of RGB in [0, 1], subtracted from the pixels."""
    std: tuple[float, float, float]
    """Standard deviation of RGB in [0, 1]; the pixels are divided by it."""
    video_dim: int
    """D_v, width of the video features."""
    text_dim: int
    """D_t, width of the query features."""

    def __post_init__(self) -> None:
        check_types(self)
        if not self.levels or list(self.levels) != sorted(set(self.levels)) or self.levels[-1] > -1:
            raise ValueError(
                f"levels must be different negative numbers in ascending order, such as (-4, -3, -2, -1); "
                f"got {self.levels}"
            )
        for field, allowed in (("pooling", POOLINGS), ("resize", RESIZES)):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be one of {', '.join(allowed)}; got {getattr(self, field)!r}")
        if self.pooling in JOINT_POOLINGS and self.levels != (-1,):
            raise ValueError(
                f"the pooling {self.pooling} has the level -1 alone, got {self.levels}; give 1 level, or another "
                "pooling"
            )
        if self.pooling == "joint" and self.video_dim != self.text_dim:
            raise ValueError(
                f"the pooling joint has equal widths of video and text; got {self.video_dim} and {self.text_dim}"
            )
        for field in ("clip_seconds", "frames_per_clip", "resolution", "video_dim", "text_dim"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} must be more than 0, got {getattr(self, field)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FeatureSpec:
        """Build a spec from the values of :meth:`to_dict`.

        Raises:
            ValueError: for a missing or an unknown field, or a value of another type.
        """
        names = {f.name for f in dataclasses.fields(cls)}
        if missing := names - set(values):
            raise ValueError(f"the feature spec lacks {', '.join(sorted(missing))}")
        if unknown := set(values) - names:
            raise ValueError(f"the feature spec has unknown fields: {', '.join(sorted(unknown))}")
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)

    def digest(self) -> str:
        """Return 16 hex digits that change with every field: a key for caches."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def require(
        self, other: FeatureSpec, *, what: str = "the features", than: str = "this model was trained on"
    ) -> None:
        """Check that other features were made by this spec.

        Args:
            other: the spec of the other features.
            what: name of the other features in the message.
            than: name of this spec in the message.

        Raises:
            SpecMismatchError: if the specs differ; the message names each difference.
        """
        differences = _differences(self, other)
        if differences:
            raise SpecMismatchError(
                f"{what} were made by another feature spec than {than}: "
                f"{differences}. Extract them again, into another folder, or choose another model or recipe."
            )


@runtime_checkable
class Backbone(Protocol):
    """A frozen video-language model that encodes clips and queries."""

    @property
    def spec(self) -> FeatureSpec:
        """Return the spec of the features that the two encoders make."""
        ...

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        ...

    def encode_video(self, frames_CFSS3: torch.Tensor) -> torch.Tensor:
        """Encode clips.

        Args:
            frames_CFSS3: uint8 RGB frames, already resized as the spec says, on any device.

        Returns:
            (K, C, D_v) float32 on the backbone's device, or (K, C, P, D_v) where pooling is ``tokens``. Where pooling
            is ``joint``, K is 1 and each vector has length 1: the normalised mean of the normalised embeddings of the
            clip's frames, or the normalised embedding of the clip if the backbone reads several frames together.
        """
        ...

    def encode_text(self, queries: Sequence[str]) -> list[torch.Tensor]:
        """Encode queries.

        Returns:
            One float32 tensor (K, L, D_t) per query, without padding; token 0 is the start token. Where pooling is
            ``joint``, (1, 1, D_t): the embedding of the sentence, of length 1.
        """
        ...

    def to(self, device: torch.device | str) -> Backbone:
        """Move the weights, and return the backbone itself."""
        ...


@dataclass(frozen=True, kw_only=True)
class TokenShape:
    """The shape of the tokens (N, P, D) at one place of a tower: P is ``prefix`` and the cells of the grid."""

    grid: tuple[int, int, int]
    """Tokens of a chunk: times, rows, columns. Tokens are ordered time after time, row by row."""
    prefix: int
    """Tokens before those of the grid, such as CLS."""
    width: int
    """D, width of a token."""


@dataclass(frozen=True, kw_only=True)
class TowerSpec(TokenShape):
    """The settings that decide which tokens a video tower returns for a chunk, the frames that it reads together.

    The shape is that of the tokens that the tower returns. The spec is stored with checkpoints of models that are
    trained from pixels.
    """

    backbone: str
    """Name in :data:`sidelight.backbones.TOWERS`."""
    weights: str
    """Digest of the weights (16 hex digits of the SHA-256 over names, types, shapes and values)."""
    frames: int
    """Frames of a chunk."""
    resolution: int
    """Side of the square frame in pixels."""
    depth: int
    """Number of blocks."""

    def require(self, other: TowerSpec) -> None:
        """Check that another tower is the one of this spec.

        Raises:
            SpecMismatchError: if it is not; the message names each difference.
        """
        _require_equal(self, other, "video backbone")


@runtime_checkable
class TrainableTower(Protocol):
    """A video tower that is run block by block, with gradients from pixels to tokens: an ``nn.Module``.

    It is loaded frozen and in evaluation mode. ``blocks[i](tokens_NPD)`` returns the tokens after block i, so that an
    adapter has its place between two calls; :func:`sidelight.backbones.common.run_tower` is the whole pass. Chunks do
    not read each other. Tokens are the common form: a convolutional network reads and returns the cells of its maps as
    tokens, whose number and width may change from block to block.
    """

    @property
    def spec(self) -> TowerSpec:
        """Return the shapes and the origin of the tower."""
        ...

    @property
    def blocks(self) -> nn.ModuleList:
        """Return the blocks, shallowest first."""
        ...

    @property
    def stages(self) -> Sequence[TokenShape]:
        """Return the shape of the tokens after each block; the last one is that of the spec."""
        ...

    def embed(self, frames_NFSS3: torch.Tensor) -> torch.Tensor:
        """Turn uint8 RGB frames of chunks into the tokens (N, P, D) that the first block reads."""
        ...

    def finish(self, tokens_NPD: torch.Tensor) -> torch.Tensor:
        """Apply what follows the last block, such as a LayerNorm; the shape stays."""
        ...


@dataclass(frozen=True, kw_only=True)
class SentenceSpec:
    """The settings that decide which vector a sentence encoder returns. Stored with models trained from pixels."""

    encoder: str
    """Name in :data:`sidelight.backbones.SENTENCE_ENCODERS`."""
    weights: str
    """Digest of the weights (16 hex digits of the SHA-256 over names, types, shapes and values)."""
    pooling: str
    """The way from the tokens of a sentence to one vector: mean, cls or joint."""
    width: int
    """E, width of the vector."""

    def require(self, other: SentenceSpec) -> None:
        """Check that another encoder is the one of this spec.

        Raises:
            SpecMismatchError: if it is not; the message names each difference.
        """
        _require_equal(self, other, "sentence encoder")


@runtime_checkable
class SentenceEncoder(Protocol):
    """A frozen model that turns a sentence into one vector, for models that are trained from pixels."""

    @property
    def spec(self) -> SentenceSpec:
        """Return the settings and the origin of the encoder."""
        ...

    def encode(self, queries: Sequence[str]) -> torch.Tensor:
        """Encode sentences to float32 (B, E), on the encoder's device.

        Raises:
            ValueError: for a sentence without a word, or if the weights have no vocabulary.
        """
        ...

    def to(self, device: torch.device | str) -> SentenceEncoder:
        """Move the weights, and return the encoder itself."""
        ...


@dataclass(frozen=True, kw_only=True)
class FrameSpec:
    """The settings that decide what a model that is trained from pixels reads. They are stored with its checkpoints."""

    tower: TowerSpec
    """The video backbone."""
    sentences: SentenceSpec
    """The sentence encoder."""
    frames_per_second: float
    """Frames that are read of a second of video."""
    resize: Literal["stretch", "crop"]
    """stretch: scale both sides to the resolution; crop: scale the shorter side, then crop the middle."""

    def __post_init__(self) -> None:
        check_types(self)

    @property
    def chunk_seconds(self) -> float:
        """Return the seconds of the frames that the backbone reads together."""
        return self.tower.frames / self.frames_per_second

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        values = dataclasses.asdict(self)
        values["tower"]["grid"] = list(values["tower"]["grid"])
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FrameSpec:
        """Build a spec from the values of :meth:`to_dict`.

        Raises:
            ValueError: for a missing or an unknown field.
        """
        try:
            tower = {**values["tower"], "grid": tuple(values["tower"]["grid"])}
            parts = {"tower": TowerSpec(**tower), "sentences": SentenceSpec(**values["sentences"])}
            return cls(**{**values, **parts})
        except (KeyError, TypeError) as error:
            raise ValueError(f"the frame spec does not fit: {error}") from None

    def digest(self) -> str:
        """Return 16 hex digits that change with every field."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def require(self, other: FrameSpec) -> None:
        """Check that other backbones and frames are those of this spec.

        Raises:
            SpecMismatchError: if they are not; the message names each difference.
        """
        self.tower.require(other.tower)
        self.sentences.require(other.sentences)
        if differences := _differences(self, other):
            raise SpecMismatchError(
                f"the sampling of frames is not the one that this model was trained with: {differences}. Read the "
                "frames of the training, or choose another model."
            )


@runtime_checkable
class LimitedBackbone(Protocol):
    """A backbone that can tell which videos and queries lie outside of all that it was trained on."""

    def video_doubt(self, video: str | Path, model: str) -> str | None:
        """Return a sentence for people if the answer about this video means nothing, else None.

        Args:
            video: the file.
            model: name of the model, for the sentence.
        """
        ...

    def query_doubt(self, query: str, model: str) -> str | None:
        """Return a sentence for people that names the unknown words of a query; None if all are known.

        Args:
            query: the sentence.
            model: name of the model, for the sentence.
        """
        ...
