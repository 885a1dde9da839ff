"""Add a side-tuner: a learned mixture of the backbone's levels, which ends in R2-Tuning's temporal layer and heads.

    python examples/side_tuner.py train shapes-tiny-last-layer --side_tuner=mixture --train.out=runs/mixture
Legend: B batch, K levels, T clips, P tokens of a clip, L query tokens, F hidden width, D input width.
"""

import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sidelight.cli.main import main
from sidelight.models.layers import InputMap
from sidelight.models.points import PointConfig, PointModel, TemporalLayer, clip_places, clip_vectors
from sidelight.models.registry import SIDE_TUNERS, point_model


@dataclass(frozen=True, kw_only=True)
class MixtureConfig(PointConfig):
    """Shape and behaviour of the model. Each field is an option of ``train``, such as ``--model.temperature``."""

    temperature: float = 1.0
    """Divisor of the levels' scores before the softmax."""


class MixtureBlock(nn.Module):
    """Turn the levels into one vector per clip; the other two results are for the losses (see ``PointModel``)."""

    def __init__(self, config: MixtureConfig) -> None:
        super().__init__()
        self.config = config
        self.scores_K = nn.Parameter(torch.zeros(config.levels))
        self.video_map = InputMap(config.clip_dim, config.hidden, config.dropout)
        self.text_map = InputMap(config.text_dim, config.hidden, config.dropout)
        self.temporal = TemporalLayer(config)

    def forward(
        self, video_KBTPD: Tensor, video_mask_BT: Tensor, text_KBLD: Tensor, text_mask_BL: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ends_BT2, code_BTF = clip_places(video_mask_BT, self.config, text_KBLD.dtype)
        shares_K = (self.scores_K / self.config.temperature).softmax(0)
        video_KBTD = clip_vectors(video_KBTPD, ends_BT2, self.config)
        video_BTF = self.video_map(torch.einsum("k,kbtd->btd", shares_K, video_KBTD))
        text_BLF = self.text_map(torch.einsum("k,kbld->bld", shares_K, text_KBLD))
        query = self.temporal.text_attention.project(text_BLF, text_BLF)
        return self.temporal(video_BTF, code_BTF, query, video_mask_BT, text_mask_BL), video_BTF[None], text_BLF[None]


class Mixture(PointModel):
    """The model: features of K levels in, points and highlights out."""

    def __init__(self, config: MixtureConfig) -> None:
        super().__init__(config, MixtureBlock(config))


SIDE_TUNERS["mixture"] = point_model(Mixture, MixtureConfig)

if __name__ == "__main__":
    sys.exit(main())
