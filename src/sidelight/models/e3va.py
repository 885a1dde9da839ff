"""E3VA (Yin et al. 2023, arXiv 2306.09729): parallel low-rank adapters on a highway of their own, here for moments.

Each backbone layer passes through a small adapter. The outputs of the adapters are added up along a highway beside the
backbone, so gradients never enter the backbone. An adapter goes down to a narrow width and up again; both of its linear
layers are products of two thin matrices.

Differences from the paper (SDST's authors give only the size of their adaptation, 2.57 M):

- E3VA's highway runs beside the stages of an image backbone, and a detector's neck reads it. Here it runs over the K
  levels, once for clips and once for the query, each with adapters of its own, from shallow to deep.
- The highway ends in R2-Tuning's temporal layer and heads (``points.py``), as in all side-tuners of that comparison.
- Each layer is normalised first. Dropout is at the same place as in the other side-tuners.

Shape legend: B batch, K levels, T clips, P tokens of a clip, L query tokens, F hidden width, D input width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidelight.core.options import require
from sidelight.models.layers import Dropout
from sidelight.models.points import PointConfig, PointModel, TemporalLayer, clip_places, clip_vectors


@dataclass(frozen=True, kw_only=True)
class E3VAConfig(PointConfig):
    """Shape and behaviour of an E3VA model."""

    bottleneck: int = 64
    """Narrow width inside an adapter."""
    rank: int = 40
    """Rank of the two linear layers of an adapter."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("bottleneck", "rank"):
            require(self, getattr(self, name) >= 1, name, "at least 1")


class LowRank(nn.Module):
    """A linear layer whose matrix is the product of two thin ones."""

    def __init__(self, width_in: int, width_out: int, rank: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(width_in, rank, bias=False)
        self.widen = nn.Linear(rank, width_out)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.widen(self.narrow(x)))


class Adapter(nn.Module):
    """LayerNorm, dropout, down, ReLU, up, from backbone width to hidden width; down and up are low-rank."""

    def __init__(self, width_in: int, config: E3VAConfig) -> None:
        super().__init__()
        self.norm, self.dropout = nn.LayerNorm(width_in), Dropout(config.dropout)
        self.down = LowRank(width_in, config.bottleneck, config.rank)
        self.up = LowRank(config.bottleneck, config.hidden, config.rank)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.up(F.relu(self.down(self.dropout(self.norm(x))))))


class E3VABlock(nn.Module):
    """Turn the layers of the backbone into one vector per clip."""

    def __init__(self, config: E3VAConfig) -> None:
        super().__init__()
        self.config = config
        self.video_adapters = nn.ModuleList(Adapter(config.clip_dim, config) for _ in range(config.levels))
        self.text_adapters = nn.ModuleList(Adapter(config.text_dim, config) for _ in range(config.levels))
        self.video_norm, self.text_norm = nn.LayerNorm(config.hidden), nn.LayerNorm(config.hidden)
        self.temporal = TemporalLayer(config)

    def forward(
        self, video_KBTPD: Tensor, video_mask_BT: Tensor, text_KBLD: Tensor, text_mask_BL: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ends_BT2, code_BTF = clip_places(video_mask_BT, self.config, text_KBLD.dtype)
        video_KBTD = clip_vectors(video_KBTPD, ends_BT2, self.config)
        video = [adapter(level) for adapter, level in zip(self.video_adapters, video_KBTD, strict=True)]
        text = [adapter(level) for adapter, level in zip(self.text_adapters, text_KBLD, strict=True)]
        # The highway at each level is the sum of the adapters' outputs up to this level.
        video_KBTF = self.video_norm(torch.stack(video).cumsum(0))
        text_KBLF = self.text_norm(torch.stack(text).cumsum(0))
        memory = self.temporal.text_attention.project(text_KBLF[-1], text_KBLF[-1])
        return self.temporal(video_KBTF[-1], code_BTF, memory, video_mask_BT, text_mask_BL), video_KBTF, text_KBLF


class E3VA(PointModel):
    """The model: features of K levels in, points and highlights out."""

    def __init__(self, config: E3VAConfig) -> None:
        super().__init__(config, E3VABlock(config))
