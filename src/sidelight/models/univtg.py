"""UniVTG (Lin et al., ICCV 2023, arXiv 2307.16715): one encoder for moments and highlights of any kind of label.

Clips and query tokens, both brought to one width, pass one transformer encoder. From its output each clip predicts how
likely it lies in a moment, and how far away the start and the end of that moment are. The highlight curve is the cosine
of a clip and the pooled query *before* the encoder.

Shape legend: B batch, K levels, T clips, L query tokens, S = T + L (input of the encoder), F hidden width, D input
width, 2 (to the start, to the end).

The numbers are those of the published code, github.com/showlab/UniVTG (``tests/parity/test_univtg.py``). Where ours
differs:

- Padding. In a padded batch of the published code, the convolutions of the heads read what the encoder computed at
  padded clips, so the last three clips of a shorter sample change. ``padding="independent"``, the default, gives each
  sample the answer that it gets alone; ``padding="exact"`` repeats the published numbers.
- ``forward`` returns logits, and distances that are at least 0; the published outputs are probabilities and
  (-distance, +distance).
- Published checkpoints hold position embeddings of the query that the published model never reads
  (``txt_position_embed``, with the option use_txt_pos). They are left out here.
- The published option dropout (of attention weights, 0 in all published scripts) does not exist.

Parameters at D_v = 512, D_t = 512, F = 1024, 4 layers: 40,964,103.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidelight.core.batch import Batch
from sidelight.core.options import check_types, require
from sidelight.models.layers import AddNorm, InputMap, MultiHeadAttention, check_features, position_code, xavier_linear

VIDEO, TEXT = 1, 0
"""Rows of the type embedding."""


@dataclass(frozen=True, kw_only=True)
class UniVTGConfig:
    """Shape and behaviour of a UniVTG model. Defaults are those of the published co-training ("omni")."""

    video_dim: int
    """Width of the video features; several kinds of features are put side by side."""
    text_dim: int
    """Width of the query features."""
    levels: int = 1
    """Number of levels of the features. UniVTG reads the last one."""
    hidden: int = 1024
    """Width inside the model, F."""
    heads: int = 8
    """Attention heads of an encoder layer."""
    layers: int = 4
    """Number of encoder layers."""
    ffn: int = 1024
    """Width of the feed-forward layer inside an encoder layer."""
    anchor: float = 1.0
    """Place in a clip from which its distances are measured, in clips: 0 is its start, 0.5 its middle, 1 its end. The
    published code adds half a clip in seconds to a number of clips, so it is 1 for its clips of 2 s.
    """
    dropout: float = 0.5
    """Dropout probability in the input maps."""
    droppath: float = 0.1
    """Probability that a sub-block of an encoder layer is skipped for a sample."""
    padding: Literal["independent", "exact"] = "independent"
    """Effect of padding on a sample: none (independent), or the same as in the published code (exact)."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("video_dim", "text_dim", "levels", "hidden", "heads", "layers", "ffn"):
            require(self, getattr(self, name) >= 1, name, "at least 1")
        for name in ("dropout", "droppath"):
            require(self, 0 <= getattr(self, name) < 1, name, "in [0, 1)")
        require(self, 0 <= self.anchor < math.inf, "anchor", "at least 0 and finite")
        require(self, self.hidden % 2 == 0, "hidden", "a multiple of 2 (sines and cosines)")
        require(self, self.hidden % self.heads == 0, "hidden", f"a multiple of heads={self.heads}")


@dataclass(frozen=True, kw_only=True, eq=False)
class UniVTGPredictions:
    """The result of ``UniVTG.forward``. Places and distances are in units of the sample's extent."""

    logits_BT: Tensor
    """Logit of each clip: does it lie in a moment?"""
    distances_BT2: Tensor
    """Distances from a clip's anchor back to the moment's start and on to its end, in (0, 1)."""
    anchors_BT: Tensor
    """Place of each clip, from which the distances are measured; 0 for padded clips."""
    video_BTF: Tensor
    """Clips whose cosine with the query is the saliency."""
    text_BF: Tensor
    """Query whose cosine with the clips is the saliency."""
    video_mask_BT: Tensor
    """True for real clips."""

    def cosine_BT(self) -> Tensor:
        """Return the cosine of clip and query, (B, T), in float32."""
        return F.cosine_similarity(self.video_BTF.float(), self.text_BF.float().unsqueeze(1), dim=-1)

    def spans_BT2(self) -> Tensor:
        """Return the [start, end] that each clip predicts, in units of the extent; it may leave [0, 1]."""
        to_start, to_end = self.distances_BT2.float().unbind(-1)
        return torch.stack([self.anchors_BT - to_start, self.anchors_BT + to_end], -1)


class EncoderLayer(nn.Module):
    """Clips and query tokens read each other, then pass a feed-forward layer with GELU (post-norm)."""

    def __init__(self, config: UniVTGConfig) -> None:
        super().__init__()
        width = config.hidden
        self.attention = MultiHeadAttention(width, config.heads)
        for layer in (self.attention.query, self.attention.key, self.attention.value):
            # The published code initialises the three as one matrix, with a smaller bound.
            nn.init.xavier_uniform_(layer.weight, gain=0.5**0.5)
        self.attention_norm = AddNorm(width, config.droppath)
        self.expand = xavier_linear(width, config.ffn)
        self.contract = xavier_linear(config.ffn, width)
        self.ffn_norm = AddNorm(width, config.droppath)

    def forward(self, x_BSF: Tensor, code_BSF: Tensor, mask_BS: Tensor) -> Tensor:
        coded_BSF = x_BSF + code_BSF
        x_BSF = self.attention_norm(x_BSF, self.attention(coded_BSF, coded_BSF, x_BSF, mask_BS))
        return cast(Tensor, self.ffn_norm(x_BSF, self.contract(F.gelu(self.expand(x_BSF)))))


class ClipHead(nn.Module):
    """Three convolutions over three neighbouring clips, with ReLU between them. Clips outside the mask are zero."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(width, out, 3, padding=1) for out in (width, width, outputs))

    def forward(self, x_BTF: Tensor, mask_BT: Tensor | None) -> Tensor:
        x = x_BTF.transpose(1, 2)
        for index, layer in enumerate(self.layers):
            x = x if index == 0 else F.relu(x)
            x = layer(x if mask_BT is None else x.masked_fill(~mask_BT.unsqueeze(1), 0))
        return x.transpose(1, 2)


class UniVTG(nn.Module):
    """The model: features of one level in; foreground, distances and highlights of each clip out."""

    def __init__(self, config: UniVTGConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden
        self.video_map = InputMap(config.video_dim + 2, width, config.dropout)
        self.text_map = InputMap(config.text_dim, width, config.dropout)
        self.types = nn.Embedding(2, width)
        nn.init.normal_(self.types.weight, std=0.02)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.class_head = ClipHead(width, 1)
        self.boundary_head = ClipHead(width, 2)
        self.text_pool = nn.Linear(width, 1, bias=False)
        nn.init.xavier_uniform_(self.text_pool.weight)

    def forward(self, batch: Batch) -> UniVTGPredictions:
        """Predict; ValueError if levels or widths are not those that the model was built for."""
        check_features(self, self.config, batch)
        video_mask_BT, text_mask_BL = batch.video_mask_BT, batch.text_mask_BL
        video_BTF, text_BLF = self.project(batch)
        code_BTF = self.code(video_mask_BT).to(video_BTF.dtype)
        code_BSF = torch.cat([code_BTF, torch.zeros_like(text_BLF)], 1)
        mask_BS = torch.cat([video_mask_BT, text_mask_BL], 1)
        x_BSF = torch.cat([video_BTF, text_BLF], 1)
        for layer in self.encoder:
            x_BSF = layer(x_BSF, code_BSF, mask_BS)
        clips_BTF = x_BSF[:, : video_mask_BT.shape[1]]
        head_mask_BT = video_mask_BT if self.config.padding == "independent" else None
        places_BT, _ = self.places(video_mask_BT)
        return UniVTGPredictions(
            logits_BT=self.class_head(clips_BTF, head_mask_BT).squeeze(-1),
            distances_BT2=self.boundary_head(clips_BTF, head_mask_BT).sigmoid(),
            anchors_BT=places_BT,
            video_BTF=video_BTF,
            text_BF=self.pool(text_BLF, text_mask_BL),
            video_mask_BT=video_mask_BT,
        )

    def project(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return clips (B, T, F) and query tokens (B, L, F), each with its type embedding added."""
        video_BTD, text_BLD = batch.video_KBTD[-1], batch.text_KBLD[-1].to(self.types.weight.dtype)
        if video_BTD.ndim == 4:
            video_BTD = video_BTD[:, :, 0]  # all tokens of a clip: CLS
        _, ends_BT2 = self.places(batch.video_mask_BT)
        video_BTD = torch.cat([video_BTD.to(text_BLD.dtype), ends_BT2.to(text_BLD.dtype)], -1)
        if self.config.padding == "exact":
            video_BTD = video_BTD.masked_fill(~batch.video_mask_BT.unsqueeze(-1), 0)
            text_BLD = text_BLD.masked_fill(~batch.text_mask_BL.unsqueeze(-1), 0)
        return self.video_map(video_BTD) + self.types.weight[VIDEO], self.text_map(text_BLD) + self.types.weight[TEXT]

    def places(self, video_mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return the anchor of each clip (B, T), and its start and end (B, T, 2), in units of the extent."""
        lengths_B1 = video_mask_BT.sum(1, keepdim=True).float()
        starts_T = torch.arange(video_mask_BT.shape[1], device=video_mask_BT.device, dtype=torch.float32)
        anchors_BT = ((starts_T + self.config.anchor) / lengths_B1).masked_fill(~video_mask_BT, 0)
        return anchors_BT, torch.stack([starts_T / lengths_B1, starts_T / lengths_B1 + 1 / lengths_B1], -1)

    def code(self, video_mask_BT: Tensor) -> Tensor:
        """Return the position code of each clip, (B, T, F); padded clips repeat the last real one."""
        counts_BT = video_mask_BT.cumsum(1).float()
        return position_code(counts_BT / (counts_BT[:, -1:] + 1e-6), self.config.hidden)

    def pool(self, text_BLF: Tensor, text_mask_BL: Tensor) -> Tensor:
        """Return the query as one vector, (B, F): the mean of its tokens, weighted by a softmax of a linear score."""
        scores_BL1: Tensor = self.text_pool(text_BLF).masked_fill(~text_mask_BL.unsqueeze(-1), float("-inf"))
        return (scores_BL1.softmax(1) * text_BLF).sum(1)


_RENAMED = (
    (r"^transformer\.encoder\.layers\.", "encoder."),
    (r"\.self_attn\.out_proj\.", ".attention.output."),
    (r"\.linear1\.", ".expand."),
    (r"\.linear2\.", ".contract."),
    (r"^(encoder\.\d+)\.norm1\.", r"\1.attention_norm.norm."),
    (r"^(encoder\.\d+)\.norm2\.", r"\1.ffn_norm.norm."),
    (r"^input_vid_proj\.", "video_map."),
    (r"^input_txt_proj\.", "text_map."),
    (r"_map\.0\.LayerNorm\.", "_map.layers.0."),
    (r"_map\.0\.net\.1\.", "_map.layers.2."),
    (r"_map\.1\.LayerNorm\.", "_map.layers.4."),
    (r"_map\.1\.net\.1\.", "_map.layers.6."),
    (r"^class_embed\.", "class_head."),
    (r"^span_embed\.", "boundary_head."),
    (r"^token_type_embeddings\.", "types."),
    (r"^weightedpool\.weight$", "text_pool.weight"),
)
"""(pattern, replacement) pairs that turn published parameter names into ours, applied in this order."""


def our_name(published: str) -> str:
    """Return the name in UniVTG of a parameter of a published checkpoint that is taken over as it is."""
    for pattern, ours in _RENAMED:
        published = re.sub(pattern, ours, published)
    return published


def from_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the entry "model" of a published checkpoint (or gradients of the same names) to names of UniVTG.

    The joint projection of queries, keys and values is cut into three. The unused position embeddings of the query are
    left out.
    """
    converted: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith("txt_position_embed."):
            continue
        if joint := re.fullmatch(r"transformer\.encoder\.layers\.(\d+)\.self_attn\.in_proj_(weight|bias)", name):
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                converted[f"encoder.{joint[1]}.attention.{part}.{joint[2]}"] = rows
        else:
            converted[our_name(name)] = tensor.t() if name == "weightedpool.weight" else tensor
    return converted


def published_shapes(config: UniVTGConfig, query_places: int = 75) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a published checkpoint of this model, by published name.

    Args:
        config: the model.
        query_places: length of the unused position embeddings of the query, the published option max_q_l.
    """
    width, ffn = config.hidden, config.ffn
    weights: dict[str, tuple[int, ...]] = {}  # of modules that have a bias too, as long as the first axis
    for i in range(config.layers):
        layer = f"transformer.encoder.layers.{i}"
        weights |= {f"{layer}.self_attn.in_proj_": (3 * width, width), f"{layer}.self_attn.out_proj.": (width, width)}
        weights |= {f"{layer}.linear1.": (ffn, width), f"{layer}.linear2.": (width, ffn)}
        weights |= {f"{layer}.norm1.": (width,), f"{layer}.norm2.": (width,)}
    for side, width_in in (("vid", config.video_dim + 2), ("txt", config.text_dim)):
        for i, size in enumerate((width_in, width)):
            weights |= {f"input_{side}_proj.{i}.LayerNorm.": (size,), f"input_{side}_proj.{i}.net.1.": (width, size)}
    for head, outputs in (("class", 1), ("span", 2)):
        weights |= {f"{head}_embed.layers.{i}.": (n, width, 3) for i, n in enumerate((width, width, outputs))}
    weights["txt_position_embed.LayerNorm."] = (width,)
    return {
        **{f"{name}weight": shape for name, shape in weights.items()},
        **{f"{name}bias": shape[:1] for name, shape in weights.items()},
        "token_type_embeddings.weight": (2, width),
        "weightedpool.weight": (width, 1),
        "txt_position_embed.position_embeddings.weight": (query_places, width),
    }
