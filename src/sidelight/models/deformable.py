"""Deformable attention in one dimension, and RDSA, its reference-based form (SDST, Sec. 3.3.4 and App. D, K).

Deformable attention lets each moment query read a few points of the video instead of every clip. A point between two
clips is read by linear interpolation: a sparse row vector times the features. All rows are built first (one scatter)
and then applied as one matrix product. Measured on a CPU at the sizes of QVHighlights, forward and backward, this is
three times as fast as ``grid_sample`` and five times as fast as gathering feature rows.

Positions are in units of the sample's extent: 1.0 is the end of its last clip. Clip i of a sample of n clips has its
middle at (i + 0.5) / n. Padded clips are never read.

Shape legend: B batch, T clips, M moment queries, H heads, P sampling points, N any number of points, F hidden width, Q
width of the vectors that choose the points, C = F / H width of a head, 2 (center, width).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidelight.models.layers import MLP, xavier_linear

Outside = Literal["zero", "clamp"]
"""Value beyond the video's ends: zero, or the first or last clip ("clamp")."""

EDGE = {"left": -1.0, "center": 0.0, "right": 1.0}
"""Named points of a span, as offsets from its center in half widths."""


class Clips(NamedTuple):
    """The parts of a batch that describe its clips."""

    mask_BT: Tensor
    """True for real clips."""
    lengths_B: Tensor
    """Number of real clips of each sample."""
    code_BTF: Tensor
    """Position code of each clip, by the length of its own sample."""


def span_points(references_BM2: Tensor, offsets: Tensor) -> Tensor:
    """Return center + offset * width / 2 in float32: (B, M, 2) and (B or 1, M or 1, ...) -> (B, M, ...)."""
    references_BM2 = references_BM2.float()
    extra = offsets.ndim - 2
    center, width = (part.reshape(*part.shape, *[1] * extra) for part in references_BM2.unbind(-1))
    return center + offsets.float() * (width / 2)


def interpolation_matrix(
    positions: Tensor, weights: Tensor | float, lengths_B: Tensor, clips: int, outside: Outside
) -> Tensor:
    """Return rows that, multiplied with features (B, T, F), give the weighted sum of the features at ``positions``.

    Args:
        positions: (B, ..., P) in units of the sample's extent.
        weights: (B, ..., P), or one number.
        lengths_B: number of real clips of each sample.
        clips: T, with padding.
        outside: value beyond the video's ends.

    Returns:
        (B, ..., T) in float32, differentiable in positions and weights.
    """
    lengths = lengths_B.reshape(-1, *[1] * (positions.ndim - 1))
    index = positions.float() * lengths - 0.5
    last = lengths - 1
    if outside == "clamp":
        index = torch.minimum(index.clamp(min=0), last)
    lower = index.detach().floor()
    upper = lower + 1
    fraction = index - lower
    weight_lower = (1 - fraction) * weights * ((lower >= 0) & (lower <= last))
    weight_upper = fraction * weights * ((upper >= 0) & (upper <= last))
    # Clamped as integers: a position that is NaN must show up in the result, and not as an index out of range.
    columns = torch.cat([lower, upper], -1).long().clamp(0, clips - 1)
    values = torch.cat([weight_lower, weight_upper], -1)
    return values.new_zeros(*positions.shape[:-1], clips).scatter_add(-1, columns, values)


def read_points(features_BTF: Tensor, positions_BMN: Tensor, lengths_B: Tensor, outside: Outside) -> Tensor:
    """Read features at positions by linear interpolation: (B, T, F), (B, M, N) -> (B, M, N, F)."""
    rows = interpolation_matrix(positions_BMN.unsqueeze(-1), 1.0, lengths_B, features_BTF.shape[1], outside)
    return _apply_rows(rows, features_BTF)


def roi_align(features_BTF: Tensor, spans_BM2: Tensor, lengths_B: Tensor, bins: int, samples: int = 1) -> Tensor:
    """Pool the features of spans (RoIAlign in one dimension): (B, T, F), (B, M, 2) -> (B, M, bins, F).

    The part of each span inside the video is cut into equal bins, and each bin is the mean of ``samples`` points. As in
    two dimensions, points are clamped to the middles of the first and last clip. The result is differentiable in
    features and spans; detach the spans to stop their gradient.
    """
    spans_BM2 = spans_BM2.float()
    start = (spans_BM2[..., 0] - spans_BM2[..., 1] / 2).clamp(0, 1)
    end = (spans_BM2[..., 0] + spans_BM2[..., 1] / 2).clamp(0, 1)
    steps = torch.arange(bins * samples, device=spans_BM2.device, dtype=torch.float32)
    steps = ((steps + 0.5) / (bins * samples)).view(bins, samples)
    positions = start[..., None, None] + (end - start)[..., None, None] * steps
    rows = interpolation_matrix(positions, 1 / samples, lengths_B, features_BTF.shape[1], "clamp")
    return _apply_rows(rows, features_BTF)


def _apply_rows(rows_BMNT: Tensor, features_BTF: Tensor) -> Tensor:
    """Multiply interpolation rows with features: (B, M, N, T), (B, T, F) -> (B, M, N, F)."""
    read = rows_BMNT.flatten(1, 2).to(features_BTF.dtype) @ features_BTF
    return torch.unflatten(read, 1, rows_BMNT.shape[1:3])


OffsetInit = Literal["directions", "tadtr", "grid", "zero"]
"""First offsets of deformable points, see :func:`initial_offsets`."""


def initial_offsets(kind: OffsetInit, heads: int, points: int) -> Tensor:
    """Return the first offsets of the points of each head, in half widths: (H, P).

    "directions": the first axis of Deformable DETR's directions, cos(2 pi h / H), with the points at growing distance;
    "tadtr": the same with the angles of TadTR's code, cos(4 pi h / H); "grid": all H * P points evenly over [-1, 1];
    "zero": all in the center.
    """
    if kind in ("directions", "tadtr"):
        angles = (2 if kind == "directions" else 4) * math.pi * torch.arange(heads) / heads
        return angles.cos().unsqueeze(1) * torch.arange(1, points + 1) / points
    if kind == "grid":
        return torch.linspace(-1, 1, heads * points).view(points, heads).t().contiguous()
    return torch.zeros(heads, points)


class DeformableAttention(nn.Module):
    """Each moment query reads P points per head around its reference (Eqs. 8 and 9; Deformable DETR in one dimension).

    A vector of width Q chooses offsets and weights of the points. If it is the embedding of the moment query, this is
    the paper's baseline "Def. CA".
    """

    def __init__(
        self,
        query_width: int,
        width: int,
        heads: int,
        points: int,
        *,
        outside: Outside = "zero",
        offset_init: OffsetInit = "directions",
    ) -> None:
        super().__init__()
        self.heads, self.points, self.outside = heads, points, outside
        # TadTR's code divides the predicted offsets by the number of points, so that they move more slowly.
        self.unit = points if offset_init == "tadtr" else 1
        self.offsets = nn.Linear(query_width, heads * points)
        self.weights = nn.Linear(query_width, heads * points)
        self.value = xavier_linear(width, width)
        self.output = xavier_linear(width, width)
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        if not self.offsets.bias.is_meta:  # PyTorch would import its compiler to compute without memory
            with torch.no_grad():
                self.offsets.bias.copy_((self.unit * initial_offsets(offset_init, heads, points)).flatten())

    def sampling(self, chooser_BMQ: Tensor) -> tuple[Tensor, Tensor]:
        """Return offsets in half widths, and weights that add up to 1 over the points of a head: (B, M, H, P) each."""
        shape = (self.heads, self.points)
        offsets = torch.unflatten(self.offsets(chooser_BMQ), -1, shape).float()
        if self.unit != 1:
            offsets = offsets / self.unit
        weights = torch.unflatten(self.weights(chooser_BMQ), -1, shape).float().softmax(-1)
        return offsets, weights

    def forward(self, chooser_BMQ: Tensor, references_BM2: Tensor, video_BTF: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the update of the moment queries, (B, M, F)."""
        offsets, weights = self.sampling(chooser_BMQ)
        values_BHTC = torch.unflatten(self.value(video_BTF), -1, (self.heads, -1)).transpose(1, 2)
        positions = span_points(references_BM2, offsets)
        rows_BMHT = interpolation_matrix(positions, weights, lengths_B, video_BTF.shape[1], self.outside)
        read_BHMC = rows_BMHT.transpose(1, 2).to(values_BHTC.dtype) @ values_BHTC
        return cast(Tensor, self.output(read_BHMC.transpose(1, 2).flatten(2)))

    def read_video(self, moment_queries_BMF: Tensor, references_BM2: Tensor, video_BTF: Tensor, clips: Clips) -> Tensor:
        """Return the update of the moment queries, which choose the points themselves, (B, M, F)."""
        return cast(Tensor, self(moment_queries_BMF, references_BM2, video_BTF, clips.lengths_B))


class LocalContext(nn.Module):
    """The CNN of Eq. 10: convolutions over time, after which each clip knows its neighbours.

    "separable": a convolution per channel, LayerNorm, ReLU, a convolution of width 1 (the offset network of DAT, which
    the paper cites for CNNs that predict offsets); "full": twice a dense convolution, LayerNorm, ReLU. Padded clips
    count as zero before every convolution, as do the places beyond the video's ends.
    """

    def __init__(self, width: int, kernel: int = 3, kind: Literal["separable", "full"] = "separable") -> None:
        super().__init__()
        self.kernel, self.kind = kernel, kind
        self.norm = nn.LayerNorm(width)
        if kind == "separable":
            bound = 1 / math.sqrt(kernel)
            self.taps_kernelF = nn.Parameter(torch.empty(kernel, width).uniform_(-bound, bound))
            self.bias_F = nn.Parameter(torch.empty(width).uniform_(-bound, bound))
            self.mix = nn.Linear(width, width)
        else:
            self.first = nn.Linear(kernel * width, width)
            self.second = nn.Linear(kernel * width, width)
            self.second_norm = nn.LayerNorm(width)

    def forward(self, x_BTF: Tensor, mask_BT: Tensor) -> Tensor:
        real = mask_BT.unsqueeze(-1).to(x_BTF.dtype)
        if self.kind == "separable":
            shifted = self._shifted(x_BTF * real)
            x_BTF = torch.addcmul(self.bias_F, shifted[0], self.taps_kernelF[0])
            for neighbour, tap in zip(shifted[1:], self.taps_kernelF[1:], strict=True):
                x_BTF = torch.addcmul(x_BTF, neighbour, tap)
            return cast(Tensor, self.mix(F.relu(self.norm(x_BTF))))
        x_BTF = F.relu(self.norm(self.first(torch.cat(self._shifted(x_BTF * real), -1))))
        x_BTF = self.second(torch.cat(self._shifted(x_BTF * real), -1))
        return F.relu(cast(Tensor, self.second_norm(x_BTF)))

    def _shifted(self, x_BTF: Tensor) -> list[Tensor]:
        """Return the features of each clip's neighbours -k//2 .. k//2, zero beyond the ends."""
        half, clips = self.kernel // 2, x_BTF.shape[1]
        padded = F.pad(x_BTF, (0, 0, half, half))
        return [padded[:, shift : shift + clips] for shift in range(self.kernel)]


class ReferenceDeformableAttention(nn.Module):
    """RDSA (Eqs. 10 and 11): the video itself, read at the moment's own reference, chooses the offsets.

    So the vector that chooses the points and the features at these points are in one space. With ``reads_query`` the
    embedding of the moment query helps to choose.
    """

    edges_11N: Tensor

    def __init__(
        self,
        width: int,
        query_width: int,
        read_at: tuple[str, ...],
        context: LocalContext | None,
        attention: DeformableAttention,
        *,
        reads_query: bool = False,
    ) -> None:
        super().__init__()
        self.context, self.reads_query = context, reads_query
        self.query = MLP((len(read_at) + reads_query) * width, query_width, query_width)
        self.attention = attention
        self.outside = attention.outside
        edges = torch.tensor([EDGE[name] for name in read_at]).view(1, 1, -1)
        self.register_buffer("edges_11N", edges, persistent=False)

    def forward(
        self,
        references_BM2: Tensor,
        video_BTF: Tensor,
        mask_BT: Tensor,
        lengths_B: Tensor,
        moment_queries_BMF: Tensor | None = None,
    ) -> Tensor:
        """Return the update of the moment queries, (B, M, F); only with ``reads_query`` their embeddings are needed."""
        source_BTF = video_BTF if self.context is None else self.context(video_BTF, mask_BT)
        positions_BMN = span_points(references_BM2, self.edges_11N)
        read_BMF = read_points(source_BTF, positions_BMN, lengths_B, self.outside).flatten(2)
        if self.reads_query:
            assert moment_queries_BMF is not None
            read_BMF = torch.cat([read_BMF, moment_queries_BMF], -1)
        return cast(Tensor, self.attention(self.query(read_BMF), references_BM2, video_BTF, lengths_B))

    def read_video(self, moment_queries_BMF: Tensor, references_BM2: Tensor, video_BTF: Tensor, clips: Clips) -> Tensor:
        """Return the update of the moment queries, (B, M, F)."""
        return cast(Tensor, self(references_BM2, video_BTF, clips.mask_BT, clips.lengths_B, moment_queries_BMF))
