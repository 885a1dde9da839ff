"""The parts that R2-Tuning and its rivals share: temporal layer, pyramid over time, heads that predict from points.

SDST's authors compared several side-tuners that end in the same heads (Tabs. H and I). The heads are R2-Tuning's (Liu
et al., ECCV 2024): a pyramid over time gives points; each point predicts how likely a moment is around it, and the
distances to its start and its end. The highlight curve is the cosine of clip and query, times the best point's score.
The side-tuners differ in the *block*, which turns the backbone's levels into one vector per clip.

As in R2-Tuning's published code, and unlike its paper: the first pyramid level is a ReLU of the block's output, and
the other levels and the saliency see the rectified clips too.

Shape legend: B batch, K levels, T clips, P tokens of a clip (token 0 is CLS), L query tokens, N points, F hidden width,
D input width, 2 (to the start, to the end), 4 (position, least and greatest reach, stride).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidelight.core.batch import Batch
from sidelight.core.options import check_types, require
from sidelight.models.layers import KeysValues, SaliencyCue, TemporalBlock, check_features, position_code


@dataclass(frozen=True, kw_only=True)
class PointConfig:
    """Shape and behaviour of a point model. Defaults are those for QVHighlights."""

    video_dim: int
    """Width of the backbone's video features."""
    text_dim: int
    """Width of the backbone's query features."""
    levels: int = 4
    """Number of backbone layers that are read, K."""
    hidden: int = 256
    """Width inside the model, F."""
    heads: int = 8
    """Attention heads of the temporal layer."""
    ffn_ratio: int = 4
    """Width of the temporal layer's feed-forward layer, in hidden widths."""
    strides: tuple[int, ...] = (1, 2, 4, 8)
    """Clips between two points at each level of the pyramid: powers of two from 1; only 1 for highlights."""
    dropout: float = 0.5
    """Dropout probability in the input maps."""
    droppath: float = 0.1
    """Probability that a sub-block of the temporal layer is skipped for a sample."""
    endpoint_features: bool = True
    """Append the start and end of each clip, in units of the extent, to its video features."""
    boundary_head: bool = True
    """Predict starts and ends. TVSum and YouTube Highlights predict the highlight curve alone."""
    saliency_cue: bool = False
    """Add each clip's saliency for the query, along one learned direction, to the clips that the pyramid reads. Not in
    any of the papers; SDST has the same option.
    """
    padding: Literal["independent", "exact"] = "independent"
    """Effect of padding on a sample: none (independent), or the same as in the published code (exact)."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("video_dim", "text_dim", "levels", "hidden", "heads", "ffn_ratio"):
            require(self, getattr(self, name) >= 1, name, "at least 1")
        for name in ("dropout", "droppath"):
            require(self, 0 <= getattr(self, name) < 1, name, "in [0, 1)")
        require(self, self.hidden % 2 == 0, "hidden", "a multiple of 2 (sines and cosines)")
        require(self, self.hidden % self.heads == 0, "hidden", f"a multiple of heads={self.heads}")
        powers = tuple(2**i for i in range(len(self.strides)))
        require(self, bool(self.strides) and self.strides == powers, "strides", "1, 2, 4, ... without gaps")

    @property
    def clip_dim(self) -> int:
        """Return the width of the vectors of :func:`clip_vectors`."""
        return self.video_dim + 2 * self.endpoint_features


@dataclass(frozen=True, kw_only=True, eq=False)
class PointPredictions:
    """The result of ``PointModel.forward``. The K axis is in order of refinement."""

    logits_BN: Tensor
    """Class logit of each point."""
    distances_BN2: Tensor | None
    """Distances from each point back to the moment's start and forward to its end, at least 0, in strides; None without
    a boundary head.
    """
    points_N4: Tensor
    """Position in clips, least and greatest reach of the moments that the point predicts, in clips, and its stride."""
    point_mask_BN: Tensor
    """True for points that count."""
    video_BTF: Tensor
    """Clips whose cosine with the query is the saliency."""
    text_BF: Tensor
    """Query whose cosine with the clips is the saliency."""
    level_video_KBTF: Tensor
    """CLS of each level in the shared space (for the alignment losses)."""
    level_text_KBF: Tensor
    """Pooled query of each level in the shared space (for the alignment losses)."""
    video_mask_BT: Tensor
    """True for real clips."""

    def cosine_BT(self) -> Tensor:
        """Return the cosine of clip and query, (B, T), in float32."""
        return F.cosine_similarity(self.video_BTF.float(), self.text_BF.float().unsqueeze(1), dim=-1)


def clip_places(video_mask_BT: Tensor, config: PointConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the start and end of each clip in units of the extent (B, T, 2), and its position code (B, T, F)."""
    clips = video_mask_BT.shape[1]
    lengths_B1 = video_mask_BT.sum(1, keepdim=True).float()
    if config.padding == "exact":
        lengths_B1 = torch.full_like(lengths_B1, clips)
    starts = torch.arange(clips, device=video_mask_BT.device, dtype=torch.float32)
    ends_BT2 = torch.stack([starts / lengths_B1, starts / lengths_B1 + 1 / lengths_B1], -1)
    code_BTF = position_code((starts + 1) / (lengths_B1 + 1e-6), config.hidden)
    return ends_BT2.to(dtype), code_BTF.to(dtype)


def clip_vectors(video_KBTPD: Tensor, ends_BT2: Tensor, config: PointConfig) -> Tensor:
    """Return one vector per clip (K, B, T, D): its CLS token, with its start and end if ``endpoint_features``."""
    video_KBTD = video_KBTPD[:, :, :, 0].to(ends_BT2.dtype)
    if not config.endpoint_features:
        return video_KBTD
    return torch.cat([video_KBTD, ends_BT2.expand(len(video_KBTD), -1, -1, -1)], -1)


class TemporalLayer(TemporalBlock):
    """R2-Tuning's transformer layer over time."""

    def __init__(self, config: PointConfig) -> None:
        super().__init__(config.hidden, config.heads, config.ffn_ratio, config.droppath)
        for layer in (self.ffn.expand, self.ffn.contract):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(
        self, clips_BTF: Tensor, code_BTF: Tensor, text: KeysValues, video_mask_BT: Tensor, text_mask_BL: Tensor
    ) -> Tensor:
        return self.states(clips_BTF, code_BTF, text, video_mask_BT, text_mask_BL)["ffn"]


class Halve(nn.Module):
    """Convolution of stride 2 that merges pairs of clips, LayerNorm, ReLU: (B, T, F) -> (B, T // 2, F)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 2, stride=2)
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BTF: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x_BTF.transpose(1, 2)).transpose(1, 2)))


class ConvHead(nn.Module):
    """Two convolutions over three neighbouring points. Points outside the mask are zero."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(width, width, 3, padding=1)
        self.last = nn.Conv1d(width, outputs, 3, padding=1)

    def forward(self, x_BTF: Tensor, mask_BT: Tensor | None) -> Tensor:
        x = x_BTF.transpose(1, 2)
        if mask_BT is not None:
            x = x.masked_fill(~mask_BT.unsqueeze(1), 0)
        x = F.relu(self.first(x))
        if mask_BT is not None:
            x = x.masked_fill(~mask_BT.unsqueeze(1), 0)
        return cast(Tensor, self.last(x).transpose(1, 2))


class PointModel(nn.Module):
    """The model: features of K levels in, points and highlights out.

    Args:
        config: shape and behaviour.
        block: takes video (K, B, T, P, D), its mask, the query (K, B, L, D) and its mask. Returns clips (B, T, F), and
            clips (K, B, T, F) and query (K, B, L, F) of each level in a shared space, in order of refinement.
    """

    block: nn.Module

    def __init__(self, config: PointConfig, block: nn.Module) -> None:
        super().__init__()
        self.config = config
        width = config.hidden
        self.block = block
        self.pyramid = nn.ModuleList(
            nn.Sequential(*(Halve(width) for _ in range(times))) for times in range(len(config.strides))
        )
        self.text_pool = nn.Linear(width, 1, bias=False)
        self.class_head = ConvHead(width, 1)
        self.boundary_head = ConvHead(width, 2) if config.boundary_head else None
        self.coefficients = nn.Parameter(torch.ones(len(config.strides))) if config.boundary_head else None
        # Built last, so that the other modules draw the same first weights with and without it.
        self.cue = SaliencyCue(width) if config.saliency_cue else None

    def forward(self, batch: Batch) -> PointPredictions:
        """Predict; ValueError if levels or widths are not those that the model was built for."""
        check_features(self, self.config, batch)
        video_KBTPD = batch.video_KBTD if batch.video_KBTD.ndim == 5 else batch.video_KBTD.unsqueeze(3)
        video_mask_BT, text_mask_BL = batch.video_mask_BT, batch.text_mask_BL
        text_KBLD = batch.text_KBLD.to(self.text_pool.weight.dtype)
        if self.config.padding == "exact":
            text_KBLD = text_KBLD.masked_fill(~text_mask_BL.unsqueeze(-1), 0)
        clips_BTF, level_video_KBTF, text_KBLF = self.block(video_KBTPD, video_mask_BT, text_KBLD, text_mask_BL)
        clips_BTF = F.relu(clips_BTF)
        scores = self.text_pool(text_KBLF).masked_fill(~text_mask_BL.unsqueeze(-1), float("-inf"))
        level_text_KBF = (scores.softmax(2) * text_KBLF).sum(2)
        cued_BTF = clips_BTF
        if self.cue is not None:
            cosine_BT = F.cosine_similarity(clips_BTF.float(), level_text_KBF[-1].float().unsqueeze(1), dim=-1)
            cued_BTF = self.cue(clips_BTF, cosine_BT.masked_fill(~video_mask_BT, 0))
        logits, distances, masks = [], [], []
        clips = video_mask_BT.shape[1]
        for number, stride in enumerate(self.config.strides):
            if clips < stride:
                break
            level_BTF = self.pyramid[number](cued_BTF)
            mask_BT = self._point_mask(video_mask_BT, stride)
            head_mask_BT = mask_BT if self.config.padding == "independent" else None
            masks.append(mask_BT)
            logits.append(self.class_head(level_BTF, head_mask_BT).squeeze(-1))
            if self.boundary_head is not None and self.coefficients is not None:
                distances.append(self.boundary_head(level_BTF, head_mask_BT).exp() * self.coefficients[number])
        return PointPredictions(
            logits_BN=torch.cat(logits, 1),
            distances_BN2=torch.cat(distances, 1) if distances else None,
            points_N4=make_points(clips, self.config.strides).to(video_mask_BT.device),
            point_mask_BN=torch.cat(masks, 1),
            video_BTF=clips_BTF,
            text_BF=level_text_KBF[-1],
            level_video_KBTF=level_video_KBTF,
            level_text_KBF=level_text_KBF,
            video_mask_BT=video_mask_BT,
        )

    def _point_mask(self, video_mask_BT: Tensor, stride: int) -> Tensor:
        """Return True for the points of one pyramid level whose clips are all real.

        In the published code it is enough that the first clip is real.
        """
        points = video_mask_BT.shape[1] // stride
        first = 0 if self.config.padding == "exact" else stride - 1
        return video_mask_BT[:, first::stride][:, :points]


def make_points(clips: int, strides: tuple[int, ...]) -> Tensor:
    """Return position, least and greatest reach, and stride of each point, in clips, (N, 4).

    A point predicts moments whose farther edge lies within its reach. A level has no points if its stride is greater
    than the number of clips.
    """
    edges = (0.0, *(float(stride) for stride in strides[1:]), math.inf)
    levels = []
    for stride, low, high in zip(strides, edges, edges[1:], strict=False):
        positions = torch.arange(clips // stride, dtype=torch.float32) * stride
        rest = torch.tensor([low, high, float(stride)]).expand(len(positions), -1)
        levels.append(torch.cat([positions.unsqueeze(1), rest], 1))
    return torch.cat(levels)
