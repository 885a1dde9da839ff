"""What a backbone is to the rest of sidelight, and the spec that its features carry.

Legend: K levels, C clips, F frames per clip, S side in pixels, L tokens, D_v / D_t widths of video and text.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

POOLINGS = ("cls", "mean", "attention", "tokens")
RESIZES = ("stretch", "crop")


class SpecMismatchError(ValueError):
    """Features were made by another spec than the model was trained on."""


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """Everything that decides what numbers a backbone returns for a video and a query.

    Stored with features and with checkpoints; a model refuses features whose spec differs.
    """

    backbone: str
    """Name in :data:`sidelight.backbones.BACKBONES`, or of whoever made the features."""
    weights: str
    """Digest of the backbone's weights (SHA-256 over names, types, shapes and values, 16 hex digits), or the
    hub id under which an official model is known.
    """
    levels: tuple[int, ...]
    """Which layers, shallowest first, counted from the last: -1 is the last layer."""
    pooling: str
    """How one layer's tokens of a clip become one vector: cls, mean, attention, or tokens (all are kept)."""
    clip_seconds: float
    """Length of a clip in seconds."""
    frames_per_clip: int
    """Frames shown to the backbone per clip, evenly spread over it."""
    resolution: int
    """Side of the square picture in pixels."""
    resize: Literal["stretch", "crop"]
    """stretch: both sides to the resolution; crop: the shorter side, then the middle."""
    mean: tuple[float, float, float]
    """Subtracted from RGB in [0, 1]."""
    std: tuple[float, float, float]
    """Divides what is left."""
    video_dim: int
    """D_v."""
    text_dim: int
    """D_t."""

    def __post_init__(self) -> None:
        if not self.levels or list(self.levels) != sorted(set(self.levels)) or self.levels[-1] > -1:
            raise ValueError(
                f"levels must be different negative numbers in ascending order, such as (-4, -3, -2, -1); "
                f"got {self.levels}"
            )
        for field, allowed in (("pooling", POOLINGS), ("resize", RESIZES)):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be one of {', '.join(allowed)}; got {getattr(self, field)!r}")
        for field in ("clip_seconds", "frames_per_clip", "resolution", "video_dim", "text_dim"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} must be more than 0, got {getattr(self, field)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FeatureSpec:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: for a missing or an unknown field.
        """
        names = {f.name for f in dataclasses.fields(cls)}
        if missing := names - set(values):
            raise ValueError(f"the feature spec lacks {', '.join(sorted(missing))}")
        if unknown := set(values) - names:
            raise ValueError(f"the feature spec has unknown fields: {', '.join(sorted(unknown))}")
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)

    def digest(self) -> str:
        """16 hex digits that change when any field does: a key for caches."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def require(
        self, other: FeatureSpec, *, what: str = "the features", than: str = "this model was trained on"
    ) -> None:
        """Refuse features of another spec.

        Args:
            other: the spec of what is offered.
            what: how to call it in the message.
            than: what this spec is there.

        Raises:
            SpecMismatchError: naming each difference.
        """
        differences = [
            f"{f.name} is {getattr(other, f.name)!r}, expected {getattr(self, f.name)!r}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != getattr(other, f.name)
        ]
        if differences:
            raise SpecMismatchError(
                f"{what} were made by another feature spec than {than}: "
                f"{'; '.join(differences)}. Extract them again, into another folder, or choose another model or recipe."
            )


@runtime_checkable
class Backbone(Protocol):
    """A frozen video-language model, as a side-tuner sees it."""

    @property
    def spec(self) -> FeatureSpec:
        """The spec of what the two encoders return."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    def encode_video(self, frames_CFSS3: torch.Tensor) -> torch.Tensor:
        """Encode clips.

        Args:
            frames_CFSS3: uint8 RGB pictures, already resized as the spec says; any device.

        Returns:
            (K, C, D_v) float32 on the backbone's device, or (K, C, P, D_v) where pooling is ``tokens``.
        """
        ...

    def encode_text(self, queries: Sequence[str]) -> list[torch.Tensor]:
        """Encode queries.

        Returns:
            One (K, L, D_t) float32 tensor a query, without padding; token 0 is the start token.
        """
        ...

    def to(self, device: torch.device | str) -> Backbone:
        """Move the weights; returns itself."""
        ...


def weights_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """16 hex digits that identify a set of weights by names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.flatten().view(_bytes_dtype()).numpy().tobytes())
    return digest.hexdigest()[:16]


def _bytes_dtype() -> torch.dtype:
    import torch

    return torch.uint8
