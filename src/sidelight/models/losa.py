"""LoSA, long-short-range adapters (Gupta et al. 2024, arXiv 2404.01282), for moments and highlights by a query.

Beside each layer of a frozen video backbone are two adapters: a short-range one reads neighbouring clips, and a
long-range one reads all clips. The outputs are added to the last layer, each level through a gate of its own.

Differences from the paper (SDST's authors give only the size of their adaptation, 6.40 M):

- LoSA's adapters work on the backbone's space-time tokens; here on its clips. The short-range adapter is a convolution
  over three clips; the long-range adapter is attention over all clips and a feed-forward layer.
- LoSA has no query. Here the fused clips read it in R2-Tuning's temporal layer, and end in R2-Tuning's heads
  (``points.py``), as in all side-tuners of that comparison.
- As in LoSA the gates start at 0, so training starts from the last layer alone.

Shape legend: B batch, K levels, T clips, P tokens of a clip, L query tokens, F hidden width, D input width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidelight.core.options import require
from sidelight.models.layers import AddNorm, Dropout, FeedForward, InputMap, MultiHeadAttention
from sidelight.models.points import PointConfig, PointModel, TemporalLayer, clip_places, clip_vectors


@dataclass(frozen=True, kw_only=True)
class LoSAConfig(PointConfig):
    """Shape and behaviour of a LoSA model."""

    adapter_ratio: int = 2
    """Width of a long-range adapter's feed-forward layer, in hidden widths."""
    kernel: int = 3
    """Number of clips that a short-range adapter reads at once (odd)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, self.adapter_ratio >= 1, "adapter_ratio", "at least 1")
        require(self, self.kernel >= 1 and self.kernel % 2 == 1, "kernel", "odd and positive")


class LongShortAdapter(nn.Module):
    """The short-range and the long-range adapter of one backbone layer: (B, T, D) -> (B, T, F)."""

    def __init__(self, width_in: int, config: LoSAConfig) -> None:
        super().__init__()
        width = config.hidden
        self.down = nn.Sequential(nn.LayerNorm(width_in), Dropout(config.dropout), nn.Linear(width_in, width))
        self.short = nn.Conv1d(width, width, config.kernel, padding=config.kernel // 2)
        self.attention = MultiHeadAttention(width, config.heads)
        self.attention_norm = AddNorm(width, config.droppath)
        self.ffn = FeedForward(width, config.adapter_ratio)
        self.ffn_norm = AddNorm(width, config.droppath)
        self.short_scale, self.long_scale = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def forward(self, level_BTD: Tensor, code_BTF: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of both adapters, and the layer itself in their space, both (B, T, F)."""
        x = self.down(level_BTD)
        # Padded clips are zero to the convolution, as are the places beyond the video's ends.
        short = F.relu(self.short(x.masked_fill(~mask_BT.unsqueeze(-1), 0).transpose(1, 2))).transpose(1, 2)
        coded_BTF = x + code_BTF
        long = self.attention_norm(x, self.attention(coded_BTF, coded_BTF, x, mask_BT))
        long = self.ffn_norm(long, self.ffn(long))
        return self.short_scale * short + self.long_scale * long, x


class LoSABlock(nn.Module):
    """Turn the layers of the backbone into one vector per clip."""

    def __init__(self, config: LoSAConfig) -> None:
        super().__init__()
        self.config = config
        self.adapters = nn.ModuleList(LongShortAdapter(config.clip_dim, config) for _ in range(config.levels))
        self.gates_K = nn.Parameter(torch.zeros(config.levels))
        self.video_map = InputMap(config.clip_dim, config.hidden, config.dropout)
        self.text_map = InputMap(config.text_dim, config.hidden, config.dropout)
        self.temporal = TemporalLayer(config)

    def forward(
        self, video_KBTPD: Tensor, video_mask_BT: Tensor, text_KBLD: Tensor, text_mask_BL: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ends_BT2, code_BTF = clip_places(video_mask_BT, self.config, text_KBLD.dtype)
        video_KBTD = clip_vectors(video_KBTPD, ends_BT2, self.config)
        fused_BTF = self.video_map(video_KBTD[-1])
        levels = []
        for adapter, level_BTD, gate in zip(self.adapters, video_KBTD, self.gates_K.tanh(), strict=True):
            adapted_BTF, level_BTF = adapter(level_BTD, code_BTF, video_mask_BT)
            fused_BTF = fused_BTF + gate * adapted_BTF
            levels.append(level_BTF)
        text_KBLF = self.text_map(text_KBLD)
        memory = self.temporal.text_attention.project(text_KBLF[-1], text_KBLF[-1])
        clips_BTF = self.temporal(fused_BTF, code_BTF, memory, video_mask_BT, text_mask_BL)
        return clips_BTF, torch.stack(levels), text_KBLF


class LoSA(PointModel):
    """The model: features of K levels in, points and highlights out."""

    def __init__(self, config: LoSAConfig) -> None:
        super().__init__(config, LoSABlock(config))
