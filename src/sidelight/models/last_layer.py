"""The last layer alone, without tuning of several levels (SDST, Tabs. H and I, "w/o Tuning").

The clips of the backbone's last layer read the query and each other once, in R2-Tuning's temporal layer, and end in its
heads (``points.py``). This baseline shows the gain of reading several layers.

Differences from the paper: it gives the size (2.70 M, as R2-Tuning) and not the parts. Here the model is R2-Tuning with
one level, without the query-dependent pooling of a frame's tokens, since pooled features have one token.

Shape legend: B batch, K levels, T clips, P tokens of a clip, L query tokens, F hidden width, D input width.

Parameters at D_v = 768, D_t = 1024, F = 256: 2,836,747 (2.71 * 2^20).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from sidelight.models.layers import InputMap
from sidelight.models.points import PointConfig, PointModel, TemporalLayer, clip_places, clip_vectors


@dataclass(frozen=True, kw_only=True)
class LastLayerConfig(PointConfig):
    """Shape and behaviour of a model of the last layer. ``levels`` may be any number; the last level is read."""


class LastLayerBlock(nn.Module):
    """Turn the last layer of the backbone into one vector per clip."""

    def __init__(self, config: LastLayerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden
        self.video_map = InputMap(config.clip_dim, width, config.dropout)
        self.text_map = InputMap(config.text_dim, width, config.dropout)
        self.temporal = TemporalLayer(config)

    def forward(
        self, video_KBTPD: Tensor, video_mask_BT: Tensor, text_KBLD: Tensor, text_mask_BL: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ends_BT2, code_BTF = clip_places(video_mask_BT, self.config, text_KBLD.dtype)
        video_1BTF = self.video_map(clip_vectors(video_KBTPD[-1:], ends_BT2, self.config))
        text_1BLF = self.text_map(text_KBLD[-1:])
        memory = self.temporal.text_attention.project(text_1BLF[0], text_1BLF[0])
        return self.temporal(video_1BTF[0], code_BTF, memory, video_mask_BT, text_mask_BL), video_1BTF, text_1BLF


class LastLayer(PointModel):
    """The model: features of K levels in, points and highlights out. Only the last level is read."""

    def __init__(self, config: LastLayerConfig) -> None:
        super().__init__(config, LastLayerBlock(config))
