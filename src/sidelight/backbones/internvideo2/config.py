"""The sizes of InternVideo2's two towers, and the normalisation of its frames. This module imports nothing heavy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sidelight.core.options import check_types, require

MEAN = (0.485, 0.456, 0.406)
"""Mean of RGB in [0, 1], subtracted from the pixels."""
STD = (0.229, 0.224, 0.225)
"""Standard deviation of RGB in [0, 1]; the pixels are divided by it."""


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """Sizes of the video tower; the defaults are the 1B model."""

    width: int = 1408
    """D, width of the tokens."""
    depth: int = 40
    """Blocks."""
    heads: int = 16
    """Attention heads of a block."""
    hidden: int = 6144
    """Width inside the feed-forward part."""
    activation: Literal["gelu_tanh", "gelu"] = "gelu_tanh"
    """The tanh form of GELU, with which the released weights were trained, or the exact form."""
    patch: int = 14
    """Side of a patch in pixels."""
    resolution: int = 224
    """Side of a frame in pixels."""
    frames: int = 4
    """Frames of a clip for which the position table was trained."""
    pool_width: int = 768
    """E, width of the attention pool's output."""
    pool_heads: int = 16
    """Attention heads of the pool."""
    align_levels: int = 6
    """Last blocks that the distillation read."""
    align_width: int = 3200
    """Width of the teacher's tokens."""
    align_pool_width: int = 768
    """Width of the teacher's pooled output."""

    def __post_init__(self) -> None:
        check_types(self)
        for field in dataclasses.fields(self):
            if field.name != "activation":
                require(self, getattr(self, field.name) > 0, field.name, "more than 0")
        require(self, self.width % self.heads == 0, "width", f"divisible by the {self.heads} heads")
        require(self, self.width % self.pool_heads == 0, "width", f"divisible by the {self.pool_heads} pool_heads")
        require(self, self.resolution % self.patch == 0, "resolution", f"a multiple of the patch, {self.patch}")

    @property
    def grid(self) -> int:
        """Return the number of patches along a side of a frame."""
        return self.resolution // self.patch


SIZES: dict[str, VideoConfig] = {
    "6b": VideoConfig(width=3200, depth=48, heads=25, hidden=12800),
    "1b": VideoConfig(),
    "large": VideoConfig(width=1024, depth=24, heads=16, hidden=4096),
    "base": VideoConfig(width=768, depth=12, heads=12, hidden=3072),
    "small": VideoConfig(width=384, depth=12, heads=6, hidden=1536),
}
"""The published video towers; large, base and small are distilled from larger towers."""


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Sizes of the text tower; the defaults are the first 19 of the 24 layers of BERT-large."""

    vocabulary: int = 30522
    """Number of tokens."""
    width: int = 1024
    """D, width of the tokens."""
    depth: int = 19
    """Layers."""
    heads: int = 16
    """Attention heads of a layer."""
    hidden: int = 4096
    """Width inside the feed-forward part."""
    positions: int = 512
    """Length of the longest sentence in tokens."""
    segments: int = 2
    """Rows of the segment table; only the first row is used."""

    def __post_init__(self) -> None:
        check_types(self)
        for field in dataclasses.fields(self):
            require(self, getattr(self, field.name) > 0, field.name, "more than 0")
        require(self, self.width % self.heads == 0, "width", f"divisible by the {self.heads} heads")


@dataclass(frozen=True, kw_only=True)
class InternVideo2Config:
    """Sizes of both towers and of their joint space."""

    video: VideoConfig = dataclasses.field(default_factory=VideoConfig)
    """The video tower."""
    text: BertConfig = dataclasses.field(default_factory=BertConfig)
    """The text tower."""
    joint: int = 512
    """J, width of the joint space."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self, self.joint > 0, "joint", "more than 0")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InternVideo2Config:
        """Build the configuration from the plain values of ``dataclasses.asdict``.

        Raises:
            ValueError: for a missing or unknown field, or a wrong value.
        """
        try:
            towers = {"video": VideoConfig(**values["video"]), "text": BertConfig(**values["text"])}
            return cls(**{**values, **towers})
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no configuration of InternVideo2: {error}") from None
