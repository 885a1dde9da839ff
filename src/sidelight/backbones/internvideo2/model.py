"""InternVideo2, Stage 2: a video tower of one or six billion parameters, and the first layers of BERT-large.

Paper: InternVideo2: Scaling Foundation Models for Multimodal Video Understanding (Wang et al., ECCV 2024, arXiv
2403.15377). The video tower cuts each frame into patches of 14 x 14 pixels, puts a CLS token before the patches, and
lets all tokens of a clip attend to one another. An attention pool, whose query is the mean of the tokens, makes one
vector per clip. The backbone reuses this frozen pool on every level that it returns. The text tower is BERT-large
(``bert.py``) up to the layers that fuse text with video.

Differences from the published code, with reasons:

- Attention and normalisation are PyTorch's own (``scaled_dot_product_attention``, ``RMSNorm``): no compiled extras.
- The default activation is the tanh form of GELU, as in the fused kernel with which the released model was trained.
  Without that kernel, the published code falls back to the exact form, which gives other numbers.
- The patch embedding is a matrix product: the same result as a convolution whose stride equals its kernel, but faster.
- Layer scale and residual sum are one operation, which saves a rounding in half precision.
- Sentences are not cut at 40 tokens; a sentence longer than the position table is refused.
- The heads of the distillation are built only on request (``alignment``) and are not converted.
- Frames are resized by sidelight's decoder (bicubic, as in the published evaluation; the published demo is bilinear).

Parameters of the video tower have their published names.

Legend: C clips, F frames of a clip, S side in pixels, N patches of a frame, P tokens of a clip (1 + F N), D width of
the video tower, E width of its pool, J width of the joint space, B sentences.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidelight.backbones.internvideo2.bert import Bert
from sidelight.backbones.internvideo2.config import InternVideo2Config, VideoConfig

_RMS_EPSILON = 1e-6


class LayerScale(nn.Module):
    """A factor per channel on the output of a block's part, and the residual sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x_CPD: Tensor, added_CPD: Tensor) -> Tensor:
        return torch.addcmul(x_CPD, added_CPD, self.gamma)  # half precision is computed in float32 inside


class Attention(nn.Module):
    """Self-attention that normalises queries and keys over the full width, before the split into heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm, self.k_norm = (nn.RMSNorm(width, eps=_RMS_EPSILON) for _ in range(2))
        self.proj = nn.Linear(width, width)

    def forward(self, x_CPD: Tensor) -> Tensor:
        q, k, v = self.qkv(x_CPD).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q_norm(q), self.k_norm(k), v))
        attended = F.scaled_dot_product_attention(q, k, v)
        projected: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return projected


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.approximate = "tanh" if activation == "gelu_tanh" else "none"
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x_CPD: Tensor) -> Tensor:
        projected: Tensor = self.fc2(F.gelu(self.fc1(x_CPD), approximate=self.approximate))
        return projected


class Block(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: VideoConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1, self.norm2 = (nn.RMSNorm(width, eps=_RMS_EPSILON) for _ in range(2))
        self.attn = Attention(width, config.heads)
        self.mlp = FeedForward(width, config.hidden, config.activation)
        self.ls1, self.ls2 = LayerScale(width), LayerScale(width)

    def forward(self, x_CPD: Tensor) -> Tensor:
        x_CPD = self.ls1(x_CPD, self.attn(self.norm1(x_CPD)))
        x_CPD = self.ls2(x_CPD, self.mlp(self.norm2(x_CPD)))
        return x_CPD


class PatchEmbedding(nn.Module):
    """The patches of a frame, each projected to a token."""

    def __init__(self, config: VideoConfig) -> None:
        super().__init__()
        kernel = (1, config.patch, config.patch)
        self.patch = config.patch
        self.proj = nn.Conv3d(3, config.width, kernel_size=kernel, stride=kernel)  # for its names and shape

    def forward(self, pixels_CF3SS: Tensor) -> Tensor:
        """Return the tokens (C, F, N, D), row by row."""
        clips, frames, channels, side, _ = pixels_CF3SS.shape
        grid, patch = side // self.patch, self.patch
        cut = pixels_CF3SS.reshape(clips, frames, channels, grid, patch, grid, patch)
        patches = cut.permute(0, 1, 3, 5, 2, 4, 6).reshape(clips, frames, grid * grid, channels * patch * patch)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class CrossAttention(nn.Module):
    """The attention inside the pool. The biases are separate parameters, as published."""

    def __init__(self, width: int, heads: int, out: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_bias, self.k_bias, self.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(3))
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.proj = nn.Linear(width, out)

    def forward(self, query_C1D: Tensor, key_CPD: Tensor, value_CPD: Tensor) -> Tensor:
        """Return one vector per clip, (C, E)."""
        q = F.linear(query_C1D, self.q.weight, self.q_bias)
        k = F.linear(key_CPD, self.k.weight, self.k_bias)
        v = F.linear(value_CPD, self.v.weight, self.v_bias)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v)
        projected: Tensor = self.proj(attended.transpose(1, 2).flatten(1))
        return projected


class AttentionPool(nn.Module):
    """One vector per clip: the mean of all tokens, CLS included, attends to all tokens. No residual."""

    def __init__(self, width: int, heads: int, out: int) -> None:
        super().__init__()
        self.norm1_q, self.norm1_k, self.norm1_v = (nn.LayerNorm(width, eps=1e-5) for _ in range(3))
        self.cross_attn = CrossAttention(width, heads, out)

    def forward(self, tokens_CPD: Tensor) -> Tensor:
        """Return one vector per clip, (C, E)."""
        query_C1D = self.norm1_q(tokens_CPD.mean(1, keepdim=True))
        pooled: Tensor = self.cross_attn(query_C1D, self.norm1_k(tokens_CPD), self.norm1_v(tokens_CPD))
        return pooled


class AlignmentHead(nn.Module):
    """A projection of tokens to the unit vectors of a teacher."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.head, self.norm = nn.Linear(width, out), nn.LayerNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.norm(self.head(x)), dim=-1)


class VideoTower(nn.Module):
    """The video tower: clips of frames to the tokens of every block.

    Args:
        config: sizes.
        alignment: also build the heads of the distillation. Published files hold them; features do not need them.
    """

    def __init__(self, config: VideoConfig, *, alignment: bool = False) -> None:
        super().__init__()
        self.config = config
        video = sine_positions(config.width, config.frames, config.grid)
        image = sine_positions(config.width, 1, config.grid)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed, self.img_pos_embed = nn.Parameter(video), nn.Parameter(image)
        self.patch_embed = PatchEmbedding(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.clip_projector = AttentionPool(config.width, config.pool_heads, config.pool_width)
        if alignment:
            self.clip_pos_embed = nn.Parameter(video.clone())
            self.clip_img_pos_embed = nn.Parameter(image.clone())
            heads = (AlignmentHead(config.width, config.align_width) for _ in range(config.align_levels))
            self.clip_decoder = nn.ModuleList(heads)
            self.final_clip_decoder = AlignmentHead(config.pool_width, config.align_pool_width)

    def embed(self, pixels_CF3SS: Tensor) -> Tensor:
        """Return the input of the first block, (C, P, D), for normalised pixels."""
        tokens_CPD = self.patch_embed(pixels_CF3SS).flatten(1, 2)
        cls_C1D = self.cls_token.expand(len(tokens_CPD), -1, -1)
        positions_1PD = self._positions(self.pos_embed, self.img_pos_embed, pixels_CF3SS)
        return torch.cat([cls_C1D, tokens_CPD], dim=1) + positions_1PD

    def layers(self, pixels_CF3SS: Tensor) -> Iterator[Tensor]:
        """Yield the tokens (C, P, D) after each block, shallowest first; no norm follows the last block."""
        x_CPD = self.embed(pixels_CF3SS)
        for block in self.blocks:
            x_CPD = block(x_CPD)
            yield x_CPD

    def align(self, pixels_CF3SS: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs that the distillation compared with its teachers. Needs ``alignment``.

        Returns:
            (H, C, P, ``align_width``) of the last H = ``align_levels`` blocks, and (C, ``align_pool_width``).
        """
        last = list(self.layers(pixels_CF3SS))[-self.config.align_levels :]
        positions_1PD = self._positions(self.clip_pos_embed, self.clip_img_pos_embed, pixels_CF3SS)
        tokens = torch.stack([head(x + positions_1PD) for head, x in zip(self.clip_decoder, last, strict=True)])
        pooled: Tensor = self.final_clip_decoder(self.clip_projector(last[-1]))
        return tokens, pooled

    def _positions(self, video_1PD: Tensor, image_1PD: Tensor, pixels_CF3SS: Tensor) -> Tensor:
        """Return the position table that fits the clips. A clip of one frame is an image and has its own table."""
        frames, side = pixels_CF3SS.shape[1], pixels_CF3SS.shape[-1]
        grids = (self.config.grid, side // self.config.patch)
        if frames == 1:
            return fit_positions(image_1PD, frames=(1, 1), grids=grids)
        return fit_positions(video_1PD, frames=(self.config.frames, frames), grids=grids)


def fit_positions(table_1PD: Tensor, *, frames: tuple[int, int], grids: tuple[int, int]) -> Tensor:
    """Interpolate a position table to another number of frames (linear) or another grid (bicubic).

    Args:
        table_1PD: row of CLS, which stays as it is, then the patches row by row and frame by frame.
        frames: frames of the table, and of the result.
        grids: patches along a side of a frame, of the table and of the result.
    """
    if frames[0] == frames[1] and grids[0] == grids[1]:
        return table_1PD
    width = table_1PD.shape[-1]
    cls, cells = table_1PD[:, :1], table_1PD[0, 1:].float()  # interpolation in half precision loses precision
    if frames[0] != frames[1]:
        lines = cells.view(frames[0], -1, width).permute(1, 2, 0)  # (N, D, F)
        lines = F.interpolate(lines, size=frames[1], mode="linear", align_corners=False)
        cells = lines.permute(2, 0, 1).reshape(-1, width)
    if grids[0] != grids[1]:
        planes = cells.view(frames[1], grids[0], grids[0], width).permute(0, 3, 1, 2)
        planes = F.interpolate(planes, size=(grids[1], grids[1]), mode="bicubic", align_corners=False)
        cells = planes.permute(0, 2, 3, 1).reshape(-1, width)
    return torch.cat([cls, cells.to(cls.dtype)[None]], dim=1)


def sine_positions(width: int, frames: int, grid: int) -> Tensor:
    """Return the sines and cosines with which training began, (1, P, D); the row of CLS is zero.

    A quarter of the width encodes the frame, and the rest encodes the place: first the column, then the row.
    """
    temporal = width // 4
    spatial = (width - temporal) // 2
    # On the CPU: the first arithmetic on the meta device loads a compiler, which takes seconds.
    places, times = torch.arange(grid * grid, device="cpu"), torch.arange(frames, device="cpu")
    rows, columns = places // grid, places % grid
    space_ND = torch.cat([_waves(columns, spatial), _waves(rows, spatial)], dim=1)
    time_FD = _waves(times, temporal)
    parts = [time_FD[:, None].expand(-1, grid * grid, -1), space_ND.expand(frames, -1, -1)]
    table = torch.cat(parts, dim=-1).reshape(1, -1, width)
    table = torch.cat([torch.zeros(1, 1, width, device="cpu"), table.float()], dim=1)
    return table.to(torch.get_default_device())


def _waves(positions_N: Tensor, width: int) -> Tensor:
    """Return (N, width) sines, then cosines, with wavelengths from 2 pi to nearly 20000 pi."""
    rates = torch.exp(-math.log(10000.0) * torch.arange(width // 2, dtype=torch.float64, device="cpu") / (width // 2))
    angles = positions_N.double()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class InternVideo2(nn.Module):
    """Both towers and their joint space."""

    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        self.config = config
        self.vision_encoder = VideoTower(config.video)
        self.text_encoder = Bert(config.text)
        self.vision_proj = nn.Linear(config.video.pool_width, config.joint)
        self.text_proj = nn.Linear(config.text.width, config.joint)
        self.temp = nn.Parameter(torch.full((), 0.07))

    def join_video(self, pooled_CE: Tensor) -> Tensor:
        """Project the pooled clips of the last level to unit vectors of the joint space, (C, J)."""
        return F.normalize(self.vision_proj(pooled_CE), dim=-1)

    def join_text(self, cls_BD: Tensor) -> Tensor:
        """Project the CLS tokens of the last level to unit vectors of the joint space, (B, J)."""
        return F.normalize(self.text_proj(cls_BD), dim=-1)
