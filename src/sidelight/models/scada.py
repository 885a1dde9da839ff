"""SCADA, sentence-conditioned adapters in a video backbone that is trained from pixels (CVPR 2026, arXiv 2604.02860).

"A Paradigm Shift: Fully End-to-End Training for Temporal Sentence Grounding in Videos". The authors published neither
code nor weights. This file is written from the paper's description: adapters with an inner and an outer branch after
the blocks of a frozen backbone, F = Normalize(x_backbone + sum of the outer branches), a recurrent head, and the
queries of one video in one batch.

Where the paper is silent, these sources are taken; each is an option unless the list says otherwise:

- Inner branch: AdaTAD (Liu et al., CVPR 2024; OpenTAD): width D/4, GELU, kernel 3 over the whole video's time, across
  chunks, the residual around the convolutions (fixed), up-projection zero at the start (fixed), scale 1 at the start
  (fixed), an adapter after every block.
- The place of the sentence: its product with the hidden channels comes after GELU and before the convolutions (fixed;
  ours). The projected sentence starts around 1 (bias 1; ours), so that an adapter begins like one without a sentence.
- Outer branch: both branches read the output of the block (fixed; ours). GELU as in the inner branch (fixed; AdaTAD).
  Width D/16; the reducing convolution spans 2 x 2 places and one time, the second one place and 3 times, zero at the
  start (ours: with D/4 and 3 x 3 x 3, ViT-S would get 24 million parameters, and the paper counts "a few million").
  As the second convolution spans one place, and the sentence is the same at all places, the spatial pooling is moved
  before both. This gives the same numbers, and the queries of a video share all but the last convolution.
- Tokens that are no places, such as CLS, pass an adapter unchanged (fixed; VideoMAE has none).
- I3D: an adapter after every Inception module, as wide as its share of this module. Outer branches of modules with more
  times than the last one are averaged to the times of the last one (fixed; ours).
- Clips: one for each time of the backbone (two frames of VideoMAE), or means of several (AdaTAD: one for each time).
- Normalize: LayerNorm, or division by the length (ours).
- Sentence: one vector that the caller computes (DistilBERT in the paper).
- Head: BMN (Lin et al., ICCV 2019) has the same three outputs and losses, and names them as the paper does: start and
  end probabilities of each clip; for each pair of a start and an end clip, a score by classification and one by
  regression. A pair is read as its first clip, its last clip and the mean from one to the other, by one hidden layer
  (ours). The offsets move both edges of a pair, in clips (ours). Widths are ours.

Modes: ``frozen`` (no adapters), ``inner``, ``outer`` (no gradient passes the backbone), ``both``, and ``full`` (all
weights of the backbone are trained, no adapters); the adapters read the sentence, or not. The head always reads it.

Memory: see ``recompute.py``. Checkpointing of blocks, the backbone on a few chunks at a time, and gradients through a
share of the chunks (ETAD, Liu et al., CVPR 2023 workshops) are options of ``MemoryConfig``. The first two change no
gradient, also where the inner branches convolve across chunks.

Shape legend: V videos, B queries, C chunks of a video, N chunks of all videos or queries that are read, T clips,
t times of a chunk, P tokens of a chunk, G places (rows x columns), D width of the backbone, R width of an adapter,
E width of a sentence, H width of the head, A pairs of a start and an end clip.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sidelight.backbones.protocol import TokenShape, TrainableTower
from sidelight.core.batch import Batch, FrameBatch, Predictions
from sidelight.core.options import check_types, require
from sidelight.models.last_layer import LastLayer, LastLayerConfig
from sidelight.models.layers import MLP
from sidelight.models.points import PointPredictions
from sidelight.models.recompute import (
    ChunkStack,
    MemoryConfig,
    borders_of,
    in_pieces,
    neighbours,
    run_coupled,
    scale_gradient,
)
from sidelight.models.sdst import SDST, SDSTConfig

MODES = ("frozen", "inner", "outer", "both", "full")


@dataclass(frozen=True, kw_only=True)
class ScadaConfig:
    """Shape and behaviour of a SCADA model. The backbone's sizes come from the backbone."""

    sentence_dim: int = 768
    """E, width of the vector of a sentence; 768 in DistilBERT."""
    mode: Literal["frozen", "inner", "outer", "both", "full"] = "both"
    """The part of the backbone that is trained: nothing, one or both branches of the adapters, or all its weights."""
    sentence_in_adapters: bool = True
    """Multiply the hidden channels of the adapters by the projected sentence."""
    first_adapter: int = 0
    """Number of the first block with an adapter; the queries of a video share the backbone up to it."""
    adapter_ratio: float = 0.25
    """Width of an inner branch, as a share of the backbone's width."""
    outer_ratio: float = 0.0625
    """Width of an outer branch, as a share of the backbone's width."""
    kernel: int = 3
    """Extent of the convolutions over time; odd."""
    across_chunks: bool = True
    """Convolve over the whole video's time; false: within each chunk, so that chunks are independent."""
    outer_stride: int = 2
    """Rows and columns that the outer branch reduces to one."""
    clips_per_chunk: int | None = None
    """Clips that a chunk is divided into; unless given, the backbone's times."""
    normalise: Literal["layer", "length"] = "layer"
    """Normalisation of the clips: LayerNorm, or division by their length."""
    head: Literal["scada", "sdst", "points"] = "scada"
    """Head that reads the clips: SCADA's own; SDST's two streams, whose moment queries become moments; or the temporal
    layer and the points of R2-Tuning. Each has its own losses and decoding (``HEADS`` in ``models/registry.py``).
    """
    hidden: int = 256
    """H, width of the head; even; a multiple of 8 for the other heads."""
    head_layers: int = 2
    """Recurrent layers of SCADA's head; refinements of the head ``sdst``, all of which read the same clips. The head
    ``points`` has one layer.
    """
    pair_hidden: int = 128
    """Width of the hidden layer that reads pairs of clips."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("sentence_dim", "outer_stride", "hidden", "head_layers", "pair_hidden"):
            require(self, getattr(self, name) >= 1, name, "at least 1")
        require(self, self.first_adapter >= 0, "first_adapter", "at least 0")
        for name in ("adapter_ratio", "outer_ratio"):
            require(self, 0 < getattr(self, name) <= 1, name, "in (0, 1]")
        require(self, self.kernel >= 1 and self.kernel % 2 == 1, "kernel", "odd and at least 1")
        require(self, self.clips_per_chunk is None or self.clips_per_chunk >= 1, "clips_per_chunk", "at least 1")
        require(self, self.hidden % 2 == 0, "hidden", "even (two directions)")

    @property
    def has_inner(self) -> bool:
        """Check whether the adapters have inner branches."""
        return self.mode in ("inner", "both")

    @property
    def has_outer(self) -> bool:
        """Check whether the adapters have outer branches."""
        return self.mode in ("outer", "both")

    @property
    def has_independent_chunks(self) -> bool:
        """Check whether no chunk reads another one inside the backbone."""
        return not (self.has_inner and self.across_chunks and self.kernel > 1)


# The adapters -------------------------------------------------------------------------------------------------------


class Chunks:
    """The places of N chunks, stored one after another without padding, among the rows of a batch.

    Rows are videos or queries. Chunks that are padding take no part in the backbone.
    """

    def __init__(self, mask_RC: Tensor) -> None:
        self.shape = mask_RC.shape
        self.row_N, column_N = mask_RC.nonzero(as_tuple=True)
        self.place_N = self.row_N * self.shape[1] + column_N
        self.follows_N = column_N > 0  # real chunks come first

    def spread(self, x_Nt: Tensor) -> Tensor:
        """Return (N, t, ...) as whole videos (rows, C * t, ...), with zeros at padded chunks."""
        rows, chunks = self.shape
        spread: Tensor = x_Nt.new_zeros(rows * chunks, *x_Nt.shape[1:]).index_copy(
            0, self.place_N.to(x_Nt.device), x_Nt
        )
        return spread.view(rows, chunks * x_Nt.shape[1], *x_Nt.shape[2:])


class SentenceScale(nn.Module):
    """The projected sentence, which multiplies the channels of an adapter. It starts around 1."""

    def __init__(self, sentence: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(sentence, width)
        nn.init.ones_(self.project.bias)

    def forward(self, sentences_E: Tensor) -> Tensor:
        return cast(Tensor, self.project(sentences_E))


class InnerBranch(nn.Module):
    """Down-projection, GELU, times the sentence, convolutions over time, up-projection, residual with learned scale."""

    def __init__(self, config: ScadaConfig, stage: TokenShape) -> None:
        super().__init__()
        width = max(1, round(stage.width * config.adapter_ratio))
        self.stage = stage
        self.down, self.up = nn.Linear(stage.width, width), nn.Linear(width, stage.width)
        self.over_time = nn.Conv1d(width, width, config.kernel, groups=width)
        self.reach = config.kernel // 2
        self.mix = nn.Linear(width, width)  # the 1x1 convolution
        self.sentence = SentenceScale(config.sentence_dim, width) if config.sentence_in_adapters else None
        self.scale = nn.Parameter(torch.ones(()))
        nn.init.trunc_normal_(self.down.weight, std=0.02)
        nn.init.normal_(self.over_time.weight, std=(2 / config.kernel) ** 0.5)
        nn.init.normal_(self.mix.weight, std=(2 / width) ** 0.5)
        for bias in (self.down.bias, self.over_time.bias, self.mix.bias):
            nn.init.zeros_(cast(Tensor, bias))
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens_NPD: Tensor, sentences_NE: Tensor | None, chunks: Chunks | None) -> Tensor:
        """Return the tokens for the next block.

        Args:
            tokens_NPD: the output of the block.
            sentences_NE: the sentence of each chunk; None if the adapters do not read it.
            chunks: the places of the chunks; None to convolve within each chunk.
        """
        hidden_NtGR = self.reduce(tokens_NPD, sentences_NE)
        borders_N2kGR = borders_of(hidden_NtGR, self.reach)
        outside = torch.zeros_like(borders_N2kGR) if chunks is None else neighbours(borders_N2kGR, chunks.follows_N)
        return self.raise_and_add(tokens_NPD, hidden_NtGR, outside)

    def reduce(self, tokens_NPD: Tensor, sentences_NE: Tensor | None) -> Tensor:
        """Return the hidden channels of each chunk, (N, t, G, R)."""
        hidden_NPR = F.gelu(self.down(tokens_NPD[:, self.stage.prefix :]))
        if self.sentence is not None and sentences_NE is not None:
            hidden_NPR = hidden_NPR * self.sentence(sentences_NE)[:, None]
        return torch.unflatten(hidden_NPR, 1, (self.stage.grid[0], -1))

    def raise_and_add(self, tokens_NPD: Tensor, hidden_NtGR: Tensor, outside_N2kGR: Tensor) -> Tensor:
        """Convolve over time, raise the channels, and add them to the tokens.

        Args:
            tokens_NPD: the output of the block.
            hidden_NtGR: the hidden channels.
            outside_N2kGR: the times before and after each chunk.
        """
        prefix, places = self.stage.prefix, hidden_NtGR.shape[2]
        before_NkGR, after_NkGR = outside_N2kGR.unbind(1)
        longer_NTGR = torch.cat([before_NkGR, hidden_NtGR, after_NkGR], 1)
        series = self.over_time(longer_NTGR.permute(0, 2, 3, 1).flatten(0, 1))  # (N * G, R, t)
        mixed_NtGR = self.mix(series.transpose(1, 2)).unflatten(0, (-1, places)).transpose(1, 2)
        places_NPD = tokens_NPD[:, prefix:] + self.scale * self.up((hidden_NtGR + mixed_NtGR).flatten(1, 2))
        return torch.cat([tokens_NPD[:, :prefix], places_NPD], 1) if prefix else places_NPD


class OuterBranch(nn.Module):
    """A convolution that reduces channels and space, times the sentence, a convolution up, spatial pooling.

    ``reduce`` is the part that the queries of a video share. The pooling is in it: see the list at the top.
    """

    def __init__(self, config: ScadaConfig, stage: TokenShape, output: TokenShape) -> None:
        super().__init__()
        width, stride = max(1, round(stage.width * config.outer_ratio)), config.outer_stride
        self.stage, self.stride, self.times = stage, stride, output.grid[0]
        self.down = nn.Conv3d(stage.width, width, (1, stride, stride), stride=(1, stride, stride))
        self.sentence = SentenceScale(config.sentence_dim, width) if config.sentence_in_adapters else None
        self.up = nn.Conv1d(width, output.width, config.kernel, padding=config.kernel // 2)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(cast(Tensor, self.up.bias))

    def reduce(self, tokens_NPD: Tensor) -> Tensor:
        """Return (N, t, R): channels reduced, means over space. A last odd row or column is filled with zeros.

        Where a stage has more times than the backbone's output, t is the number of the output, and times are averaged.
        """
        times, rows, columns = self.stage.grid
        video_NDtrc = tokens_NPD[:, self.stage.prefix :].transpose(1, 2).unflatten(2, (times, rows, columns))
        fill = (0, -columns % self.stride, 0, -rows % self.stride)
        reduced_NRtrc = F.gelu(self.down(F.pad(video_NDtrc, fill) if any(fill) else video_NDtrc))
        return torch.unflatten(reduced_NRtrc, 2, (self.times, -1)).mean((3, 4, 5)).transpose(1, 2)

    def forward(self, reduced_BTR: Tensor, sentences_BE: Tensor, chunks: int) -> Tensor:
        """Return what is added to the backbone's output, (B, C * t, D).

        Args:
            reduced_BTR: the reduced tokens of each query's video.
            sentences_BE: the sentences.
            chunks: parts of the time that are convolved apart; 1 for the whole video's time.
        """
        if self.sentence is not None:
            reduced_BTR = reduced_BTR * self.sentence(sentences_BE)[:, None]
        series = reduced_BTR.unflatten(1, (chunks, -1)).flatten(0, 1).transpose(1, 2)
        raised = self.up(series).transpose(1, 2)
        return cast(Tensor, raised.unflatten(0, (-1, chunks)).flatten(1, 2))


# The head -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class ScadaPredictions:
    """The result of ``Scada.forward``."""

    boundary_BT2: Tensor
    """Logits of each clip: does a moment start, does one end here?"""
    class_BA: Tensor
    """Logit of each pair: does it overlap a moment closely?"""
    iou_BA: Tensor
    """Estimated best IoU of each pair with a moment, in [0, 1]."""
    offsets_BA2: Tensor
    """Shift of the start and of the end of each pair, in clips."""
    pairs_A2: Tensor
    """First and last clip of each pair; first <= last."""
    video_mask_BT: Tensor
    """True for real clips."""

    def pair_mask_BA(self) -> Tensor:
        """Return True for pairs of real clips, (B, A)."""
        return self.pairs_A2[:, 1] < self.video_mask_BT.sum(1, keepdim=True)

    def edges_BA2(self) -> Tensor:
        """Return the start and the end of each pair after its shift, in clips, (B, A, 2)."""
        return pair_edges(self.pairs_A2) + self.offsets_BA2.float()


def pair_edges(pairs_A2: Tensor) -> Tensor:
    """Return the start of the first clip and the end of the last clip, in clips, (A, 2) float32."""
    return (pairs_A2 + pairs_A2.new_tensor([0, 1])).float()


class ScadaHead(nn.Module):
    """Bidirectional LSTMs with residuals read the clips times the sentence; then boundaries, and pairs of clips."""

    def __init__(self, config: ScadaConfig, width: int) -> None:
        super().__init__()
        hidden = config.hidden
        self.video_map, self.sentence_map = nn.Linear(width, hidden), nn.Linear(config.sentence_dim, hidden)
        layers = range(config.head_layers)
        self.recurrent = nn.ModuleList(
            nn.LSTM(hidden, hidden // 2, batch_first=True, bidirectional=True) for _ in layers
        )
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in layers)
        self.boundary = MLP(hidden, hidden, 2)
        self.first, self.last = nn.Linear(hidden, config.pair_hidden), nn.Linear(hidden, config.pair_hidden)
        self.between = nn.Linear(hidden, config.pair_hidden)
        self.pair = nn.Linear(config.pair_hidden, 4)

    def forward(self, clips_BTD: Tensor, sentences_BE: Tensor, mask_BT: Tensor) -> ScadaPredictions:
        """Predict from clips, (B, T, D), and sentences; padded clips are not read."""
        x_BTH = self.video_map(clips_BTD) * self.sentence_map(sentences_BE)[:, None]
        lengths_B, clips = mask_BT.sum(1), mask_BT.shape[1]
        for layer, norm in zip(self.recurrent, self.norms, strict=True):
            packed = nn.utils.rnn.pack_padded_sequence(x_BTH, lengths_B.cpu(), batch_first=True, enforce_sorted=False)
            read_BTH, _ = nn.utils.rnn.pad_packed_sequence(layer(packed)[0], batch_first=True, total_length=clips)
            x_BTH = norm(x_BTH + read_BTH)
        first_A, last_A = torch.ones(clips, clips, device=mask_BT.device).triu().nonzero(as_tuple=True)
        sums_BTH = F.pad(x_BTH.float().cumsum(1), (0, 0, 1, 0))
        mean_BTH = self.between(sums_BTH.to(x_BTH.dtype))  # linear, so that it is applied before the differences
        bias_H = self.between.bias
        length_A1 = (last_A - first_A + 1).unsqueeze(1)
        between_BAH = (mean_BTH[:, last_A + 1] - mean_BTH[:, first_A]) / length_A1 + bias_H
        pairs_BAH = F.relu(self.first(x_BTH)[:, first_A] + self.last(x_BTH)[:, last_A] + between_BAH)
        outputs_BA4 = self.pair(pairs_BAH)
        return ScadaPredictions(
            boundary_BT2=self.boundary(x_BTH),
            class_BA=outputs_BA4[..., 0],
            iou_BA=outputs_BA4[..., 1].sigmoid(),
            offsets_BA2=outputs_BA4[..., 2:],
            pairs_A2=torch.stack([first_A, last_A], 1),
            video_mask_BT=mask_BT,
        )


class FeatureHead(nn.Module):
    """A side-tuner in place of SCADA's head: the clips are its features at every level, the sentence its one token."""

    def __init__(self, side_tuner: nn.Module, levels: int) -> None:
        super().__init__()
        self.side_tuner, self.levels = side_tuner, levels

    def forward(self, clips_BTD: Tensor, sentences_BE: Tensor, mask_BT: Tensor) -> Predictions | PointPredictions:
        """Predict from clips, (B, T, D), and sentences; padded clips are not read."""
        text_B1E = sentences_BE.unsqueeze(1)
        batch = Batch(
            video_KBTD=clips_BTD.expand(self.levels, *clips_BTD.shape),
            video_mask_BT=mask_BT,
            text_KBLD=text_B1E.expand(self.levels, *text_B1E.shape),
            text_mask_BL=torch.ones_like(mask_BT[:, :1]),
        )
        return cast("Predictions | PointPredictions", self.side_tuner(batch))


def sdst_head(config: ScadaConfig, width: int) -> FeatureHead:
    """Build SDST with its defaults, whose K refinements read the clips."""
    levels, text_dim = config.head_layers, config.sentence_dim
    inner = SDSTConfig(video_dim=width, text_dim=text_dim, hidden=config.hidden, levels=levels)
    return FeatureHead(SDST(inner), levels)


def point_head(config: ScadaConfig, width: int) -> FeatureHead:
    """Build R2-Tuning's temporal layer and heads with their defaults, as the side-tuner of the last layer has them."""
    inner = LastLayerConfig(video_dim=width, text_dim=config.sentence_dim, hidden=config.hidden, levels=1)
    return FeatureHead(LastLayer(inner), 1)


HEADS: dict[str, Callable[[ScadaConfig, int], nn.Module]] = {
    "scada": ScadaHead,
    "sdst": sdst_head,
    "points": point_head,
}
"""Head -> function of the configuration and the width of the clips that builds it."""


def real_frames(batch: FrameBatch, mask_VC: Tensor) -> Tensor:
    """Return the frames of the real chunks, (N, F, S, S, 3); a view, not a copy, if no chunk is padding."""
    frames_VCFSS3 = batch.frames_VCFSS3
    return frames_VCFSS3.flatten(0, 1) if bool(mask_VC.all()) else frames_VCFSS3[mask_VC]


# The model ----------------------------------------------------------------------------------------------------------


class Scada(nn.Module):
    """The model: frames and sentences in; boundaries, scores and offsets out, or the predictions of another head.

    Args:
        config: the model.
        tower: the video backbone. It stays in evaluation mode, and frozen unless the mode is ``full``.
        memory: ways to train with less memory.

    Raises:
        ValueError: if the configuration does not fit the backbone or the ways to save memory.
    """

    def __init__(self, config: ScadaConfig, tower: TrainableTower, memory: MemoryConfig | None = None) -> None:
        super().__init__()
        self.config, self.spec = config, tower.spec
        self.memory = MemoryConfig() if memory is None else memory
        alone = self.memory.chunk_share == 1 or config.has_independent_chunks
        expected = "1 where inner branches convolve across chunks (across_chunks: false makes chunks independent)"
        require(self.memory, alone, "chunk_share", expected)
        times, depth = self.spec.grid[0], self.spec.depth
        reach = min(stage.grid[0] for stage in tower.stages)
        require(config, config.kernel // 2 <= reach, "kernel", f"at most {2 * reach + 1}: {reach} times of a chunk")
        self.clips_per_chunk = times if config.clips_per_chunk is None else config.clips_per_chunk
        require(config, times % self.clips_per_chunk == 0, "clips_per_chunk", f"a divisor of the backbone's {times}")
        require(config, config.first_adapter < depth, "first_adapter", f"below the backbone's {depth} blocks")
        self.tower = cast(nn.Module, tower).requires_grad_(config.mode == "full").eval()
        if self.memory.frozen_dtype == "bfloat16":
            require(
                self.memory, config.mode != "full", "frozen_dtype", "float32 in mode full, which trains the backbone"
            )
            for parameter in self.tower.parameters():
                if parameter.ndim > 1:
                    parameter.data = parameter.data.bfloat16()
        numbers = range(config.first_adapter, depth)
        # After the last inner branch comes no block, only the backbone's last norm.
        inner = {str(n): InnerBranch(config, tower.stages[n]) for n in numbers if config.has_inner}
        outer = {str(n): OuterBranch(config, tower.stages[n], self.spec) for n in numbers if config.has_outer}
        self.inner, self.outer = nn.ModuleDict(inner), nn.ModuleDict(outer)
        self.norm = nn.LayerNorm(self.spec.width) if config.normalise == "layer" else None
        self.head = HEADS[config.head](config, self.spec.width)

    def train(self, mode: bool = True) -> Scada:
        """Set the training mode of all but the backbone, which always computes without dropout."""
        super().train(mode)
        self.tower.eval()
        return self

    def forward(self, batch: FrameBatch) -> Any:
        """Predict: ScadaPredictions, or Predictions or PointPredictions of the other heads.

        Raises:
            ValueError: if the sentences or the clips have another size than the model was built for.
        """
        return self.head(self.encode(batch), batch.sentences_BE, batch.video_mask_BT)

    def encode(self, batch: FrameBatch) -> Tensor:
        """Return the clips of each query's video, (B, T, D), zeros where padded: F of the paper."""
        self._check(batch)
        mask_VC = batch.video_mask_VT.unflatten(1, (-1, self.clips_per_chunk)).any(-1)
        video_BTD, *reduced_BTR = self._run(batch, mask_VC)
        apart = 1 if self.config.across_chunks else mask_VC.shape[1]
        for branch, x_BTR in zip(self.outer.values(), reduced_BTR, strict=True):
            video_BTD = video_BTD + branch(x_BTR, batch.sentences_BE, apart)
        clips_BTD = video_BTD.unflatten(1, (batch.video_mask_VT.shape[1], -1)).mean(2)
        clips_BTD = F.normalize(clips_BTD, dim=-1) if self.norm is None else self.norm(clips_BTD)
        return clips_BTD.masked_fill(~batch.video_mask_BT.unsqueeze(-1), 0)

    def _run(self, batch: FrameBatch, mask_VC: Tensor) -> tuple[Tensor, ...]:
        """Return the backbone's output (B, C * t, D), and the reduced tokens of the outer branches (B, C * t, R)."""
        if batch.encoded_VND is not None and self.config.mode == "frozen":
            return (batch.encoded_VND[batch.video_of_B],)
        per_query = self.config.has_inner and self.config.sentence_in_adapters
        chunks = Chunks(mask_VC[batch.video_of_B] if per_query else mask_VC)
        coupled, size = not self.config.has_independent_chunks, self.memory.chunks_at_once
        if coupled and size:
            outputs = self._run_in_turn(batch, mask_VC, per_query)
        elif per_query:
            frames_NFSS3 = real_frames(batch, mask_VC)
            (tokens_NPD,) = in_pieces(self._run_shared, size, frames_NFSS3)
            number_VC = mask_VC.flatten().cumsum(0).view_as(mask_VC) - 1
            tokens_NPD = tokens_NPD[number_VC[batch.video_of_B][mask_VC[batch.video_of_B]]]  # a copy for each query
            sentences_NE = batch.sentences_BE[chunks.row_N]
            run = partial(self._run_adapted, chunks if coupled else None)
            outputs = run(tokens_NPD, sentences_NE) if coupled else self._run_share(run, tokens_NPD, sentences_NE)
        elif coupled:
            outputs = self._run_adapted(chunks, *self._run_shared(real_frames(batch, mask_VC)))
        else:
            frames_NFSS3 = real_frames(batch, mask_VC)
            outputs = self._run_share(lambda x: self._run_adapted(None, *self._run_shared(x)), frames_NFSS3)
        spread = (chunks.spread(x) for x in outputs)
        return tuple(spread) if per_query else tuple(x[batch.video_of_B] for x in spread)

    def _run_in_turn(self, batch: FrameBatch, mask_VC: Tensor, per_query: bool) -> tuple[Tensor, ...]:
        """Run chunks that read their neighbours: one video, or one query, after another, and a few chunks at a time."""
        size, depth = self.memory.chunks_at_once, self.spec.depth - self.config.first_adapter
        stack = ChunkStack(
            start=lambda frames: self._run_shared(frames)[0],
            before=self._before,
            after=self._after,
            finish=self._finish,
            steps=depth,
            width=self.config.kernel // 2,
        )
        trained = [
            *self.inner.parameters(),
            *(w for b in self.outer.values() for w in b.get_submodule("down").parameters()),
        ]
        outputs: dict[int, tuple[Tensor, ...]] = {}
        for video, count in enumerate(mask_VC.sum(1).tolist()):
            frames_NFSS3 = batch.frames_VCFSS3[video, :count]
            rows = (batch.video_of_B == video).nonzero().flatten().tolist() if per_query else [video]
            with torch.no_grad():
                shared = [stack.start(piece) for piece in frames_NFSS3.split(size)]
            for row in rows:
                outputs[row] = run_coupled(
                    stack,
                    shared if row == rows[-1] else list(shared),
                    frames_NFSS3,
                    batch.sentences_BE[row : row + 1] if per_query else None,
                    trained,
                    size=size,
                    every=max(1, self.memory.checkpoint_blocks),
                )
        return tuple(torch.cat(parts) for parts in zip(*(outputs[row] for row in sorted(outputs)), strict=True))

    def _run_shared(self, frames_NFSS3: Tensor) -> tuple[Tensor]:
        """Return the tokens (N, P, D) after the block of the first adapter: the part that the queries share."""
        tokens_NPD = self._kept(self._tower.embed)(frames_NFSS3)
        if self.memory.frozen_dtype == "bfloat16":
            tokens_NPD = tokens_NPD.bfloat16()
        for block in self._tower.blocks[: self.config.first_adapter + 1]:
            tokens_NPD = self._kept(block)(tokens_NPD)
        return (tokens_NPD,)

    def _kept(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that keeps its inputs alone for the backward pass, if blocks are checkpointed."""
        if not (self.memory.checkpoint_blocks and torch.is_grad_enabled()):
            return function
        return partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)

    def _run_share(self, run: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run independent chunks, a drawn share of them with gradients."""
        total, size = len(inputs[0]), self.memory.chunks_at_once
        count = max(1, round(self.memory.chunk_share * total))
        if count == total or not (self.training and torch.is_grad_enabled()):
            return in_pieces(run, size, *inputs)
        order_N = torch.randperm(total).to(inputs[0].device)
        chosen, rest = order_N[:count], order_N[count:]
        drawn = in_pieces(run, size, *(x[chosen] for x in inputs))
        with torch.no_grad():
            others = in_pieces(run, size, *(x[rest] for x in inputs))
        back_N = order_N.argsort()
        scaled = (scale_gradient(x, total / count) for x in drawn)
        return tuple(torch.cat([x, y])[back_N] for x, y in zip(scaled, others, strict=True))

    def _run_adapted(
        self, chunks: Chunks | None, tokens_NPD: Tensor, sentences_NE: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Return the backbone's output (N, t, D), means over space, and the reduced tokens of each outer branch.

        Args:
            chunks: the places of the chunks; None if chunks are independent.
            tokens_NPD: the tokens after the block of the first adapter.
            sentences_NE: the sentence of each chunk; None if the adapters do not read it.
        """
        outer: list[Tensor] = []
        numbers, group = range(self.config.first_adapter, self.spec.depth), max(1, self.memory.checkpoint_blocks)
        for first in numbers[::group]:
            run = partial(self._run_blocks, numbers[first - numbers.start :][:group], chunks)
            tokens_NPD, *reduced = self._kept(run)(tokens_NPD, sentences_NE)
            outer += reduced
        return self._finish(tokens_NPD), *outer

    def _finish(self, tokens_NPD: Tensor) -> Tensor:
        """Return the backbone's output, (N, t, D): means over space."""
        places_NPD = self._tower.finish(tokens_NPD)[:, self.spec.prefix :]
        return torch.unflatten(places_NPD, 1, (self.spec.grid[0], -1)).mean(2)

    def _run_blocks(
        self, numbers: range, chunks: Chunks | None, tokens_NPD: Tensor, sentences_NE: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return the tokens after some blocks and their adapters, and the reduced tokens of their outer branches."""
        outer: list[Tensor] = []
        for number in numbers:
            run: Callable[..., Any] = partial(self._run_block, number, chunks)
            run = self._kept(run) if len(numbers) > 1 else run  # a block alone is kept by the caller
            tokens_NPD, *reduced = run(tokens_NPD, sentences_NE)
            outer += reduced
        return tokens_NPD, *outer

    def _run_block(
        self, number: int, chunks: Chunks | None, tokens_NPD: Tensor, sentences_NE: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return the tokens after a block and its adapter, and the reduced tokens of its outer branch if it has one."""
        tokens_NPD, *reduced = self._block(number, tokens_NPD)
        if self.inner:
            tokens_NPD = self.inner[str(number)](tokens_NPD, sentences_NE, chunks)
        return tokens_NPD, *reduced

    def _block(self, number: int, tokens_NPD: Tensor) -> tuple[Tensor, ...]:
        """Return the tokens after a block, and the reduced tokens of its outer branch if it has one."""
        if number > self.config.first_adapter:  # the block of the first adapter ran before
            tokens_NPD = self._tower.blocks[number](tokens_NPD)
        if not self.outer:
            return (tokens_NPD,)
        return tokens_NPD, cast(OuterBranch, self.outer[str(number)]).reduce(tokens_NPD)

    def _before(self, step: int, tokens_NPD: Tensor, sentences_NE: Tensor | None) -> tuple[Tensor, ...]:
        """Run the part of a block and its adapter that reads no other chunk (``before`` of ChunkStack)."""
        number = self.config.first_adapter + step
        tokens_NPD, *reduced = self._block(number, tokens_NPD)
        return tokens_NPD, self._branch(number).reduce(tokens_NPD, sentences_NE), *reduced

    def _after(self, step: int, tokens_NPD: Tensor, hidden_NtGR: Tensor, outside_N2kGR: Tensor) -> Tensor:
        """Run the rest of an adapter (``after`` of ChunkStack)."""
        return self._branch(self.config.first_adapter + step).raise_and_add(tokens_NPD, hidden_NtGR, outside_N2kGR)

    def _branch(self, number: int) -> InnerBranch:
        return cast(InnerBranch, self.inner[str(number)])

    @property
    def _tower(self) -> TrainableTower:
        return cast(TrainableTower, self.tower)

    def _check(self, batch: FrameBatch) -> None:
        """Raise ValueError unless the batch has the sentences and the clips that the model was built for."""
        chunks, clips = batch.frames_VCFSS3.shape[1], batch.video_mask_VT.shape[1]
        sizes = {
            "sentence_dim": (self.config.sentence_dim, batch.sentences_BE.shape[1]),
            "clips_per_chunk": (self.clips_per_chunk, clips // chunks),
        }
        for name, (expected, size) in sizes.items():
            if size != expected:
                raise ValueError(f"this Scada was built for {name}={expected}, the batch has {name}={size}")
        device = batch.frames_VCFSS3.device.type
        if self.memory.frozen_dtype == "bfloat16" and not torch.is_autocast_enabled(device):
            raise ValueError("frozen_dtype: bfloat16 needs autocast; train with precision: bf16-mixed, or leave it out")
