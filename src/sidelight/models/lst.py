"""LST, ladder side-tuning (Sung et al., NeurIPS 2022, arXiv 2206.06522), for moments and highlights.

Beside the frozen backbone is a narrow transformer, the ladder. Each of its layers, a rung, begins with a gate that
mixes the output of the rung below with the backbone's layer at the same height. A linear layer brings the backbone's
layer to the ladder's width. The gate is sigmoid(a / 0.1), with a starting at 0. The output of the ladder is widened
again.

Differences from the paper (SDST's authors give only the size of their adaptation, 2.04 M):

- There are two ladders, for clips and for the query. A rung of clips also reads the query's rung.
- The backbone's layers are normalised before the linear layer, since their scales differ between backbones. Dropout is
  at the same place as in the other side-tuners.
- The ladder's layers start at random. LST starts from pruned backbone weights, but a clip-level ladder over pooled
  features has no counterpart in the backbone.
- The ladder ends in R2-Tuning's heads (``points.py``), as in all side-tuners of that comparison.

Shape legend: B batch, K levels, T clips, P tokens of a clip, L query tokens, F hidden width, R width of the ladder,
D input width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from sidelight.core.options import require
from sidelight.models.layers import AddNorm, Dropout, FeedForward, MultiHeadAttention
from sidelight.models.points import PointConfig, PointModel, TemporalLayer, clip_places, clip_vectors

GATE_TEMPERATURE = 0.1
"""Divisor of a gate's parameter before the sigmoid."""


@dataclass(frozen=True, kw_only=True)
class LSTConfig(PointConfig):
    """Shape and behaviour of an LST model."""

    ladder: int = 64
    """Width of the ladder, R. LST divides the backbone's width by 8; this value gives the size in SDST's paper."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, self.ladder >= 2 and self.ladder % 2 == 0, "ladder", "at least 2 and even (sines and cosines)")
        require(self, self.ladder % self.heads == 0, "ladder", f"a multiple of heads={self.heads}")


class Down(nn.Module):
    """Map from the backbone's width to the ladder's width."""

    def __init__(self, width_in: int, width_out: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width_in), Dropout(dropout), nn.Linear(width_in, width_out))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.layers(x))


class TextRung(nn.Module):
    """Query tokens read each other, then pass a feed-forward layer (post-norm)."""

    def __init__(self, config: PointConfig) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(config.hidden, config.heads)
        self.self_norm = AddNorm(config.hidden, config.droppath)
        self.ffn = FeedForward(config.hidden, config.ffn_ratio)
        self.ffn_norm = AddNorm(config.hidden, config.droppath)

    def forward(self, x_BLR: Tensor, mask_BL: Tensor) -> Tensor:
        x_BLR = self.self_norm(x_BLR, self.self_attention(x_BLR, x_BLR, x_BLR, mask_BL))
        return cast(Tensor, self.ffn_norm(x_BLR, self.ffn(x_BLR)))


class LSTBlock(nn.Module):
    """Turn the layers of the backbone into one vector per clip."""

    def __init__(self, config: LSTConfig) -> None:
        super().__init__()
        self.config, self.narrow = config, replace(config, hidden=config.ladder)  # rungs are blocks of ladder width
        levels = range(config.levels)
        self.video_down = nn.ModuleList(Down(config.clip_dim, config.ladder, config.dropout) for _ in levels)
        self.text_down = nn.ModuleList(Down(config.text_dim, config.ladder, config.dropout) for _ in levels)
        self.video_rungs = nn.ModuleList(TemporalLayer(self.narrow) for _ in levels)
        self.text_rungs = nn.ModuleList(TextRung(self.narrow) for _ in levels)
        self.video_gates_K = nn.Parameter(torch.zeros(config.levels - 1))  # the first rung has no rung below
        self.text_gates_K = nn.Parameter(torch.zeros(config.levels - 1))
        self.video_up = nn.Linear(config.ladder, config.hidden)
        self.text_up = nn.Linear(config.ladder, config.hidden)

    def forward(
        self, video_KBTPD: Tensor, video_mask_BT: Tensor, text_KBLD: Tensor, text_mask_BL: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ends_BT2, code_BTR = clip_places(video_mask_BT, self.narrow, text_KBLD.dtype)
        video_KBTD = clip_vectors(video_KBTPD, ends_BT2, self.config)
        video_gates_K = (self.video_gates_K / GATE_TEMPERATURE).sigmoid()
        text_gates_K = (self.text_gates_K / GATE_TEMPERATURE).sigmoid()
        clips = text = None
        level_video, level_text = [], []
        for k in range(self.config.levels):
            video_BTR, text_BLR = self.video_down[k](video_KBTD[k]), self.text_down[k](text_KBLD[k])
            level_video.append(video_BTR)
            clips = video_BTR if clips is None else torch.lerp(video_BTR, clips, video_gates_K[k - 1])
            text = text_BLR if text is None else torch.lerp(text_BLR, text, text_gates_K[k - 1])
            text = self.text_rungs[k](text, text_mask_BL)
            level_text.append(text)
            rung = cast(TemporalLayer, self.video_rungs[k])
            memory = rung.text_attention.project(text, text)
            clips = rung(clips, code_BTR, memory, video_mask_BT, text_mask_BL)
        return self.video_up(clips), self.video_up(torch.stack(level_video)), self.text_up(torch.stack(level_text))


class LST(PointModel):
    """The model: features of K levels in, points and highlights out."""

    def __init__(self, config: LSTConfig) -> None:
        super().__init__(config, LSTBlock(config))
