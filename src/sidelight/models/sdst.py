"""SDST, the Sparse-Dense Side-Tuner (Pujol-Perich et al., ICCV 2025, arXiv 2507.07744).

A frozen backbone gives features of its last K layers. One small level, shared by all K, walks through them
and refines two things side by side: a dense stream D with one vector per clip, which becomes the highlight
curve, and a sparse stream of M moment queries, each a reference R (center, width) and an embedding H, which
become moments. The dense stream tells the sparse one where to look (RDSA, in ``deformable.py``).

Shape legend: B batch, K levels, T clips, L query tokens, M moment queries, F hidden width, D input width, 2
(center, width).

What the paper leaves open, and what is done here (fields of :class:`SDSTConfig`, but for the last two):

- The levels run from shallow to deep, so that the last refinement sees the backbone's last layer.
- The convolutions of RDSA are a per-channel one and one of width 1, as in DAT, and not two dense ones: only
  then does the model have the published 4.1 M parameters (counted as / 2**20), and the unshared one about
  the published 12.4 M.
- References are refined in inverse-sigmoid space with gradients stopped between levels (DAB-DETR); the
  learned first references do receive gradients. They start spread over all places and lengths.
- Beyond the video's ends deformable points read zero, as in Deformable DETR.
- How much around a span is pooled for its actionness: nothing. The paper follows TadTR, whose code pools one and a
  half times its width (``roi_width: 1.5``, as in our recipes of the published runs).
- A query without any token but CLS lets the dense stream read CLS, since attention must read something.
- Nothing beyond the video is pooled for actionness, and its goal is the overlap of the part inside, since only that
  part can be returned.

Parameters at D_v = 768, D_t = 1024 (4,346,633): the two input maps 595,972, dense stream 1,053,440, sparse
stream with RDSA 1,310,400 (cross-attention, self-attention, FFN, context, query map, deformable attention),
actionness head 1,114,881 (its first layer reads 16 bins x 256), boundary head 132,098, code of the
references 131,584, and 8,258 in class head, pooling, gates, references and embeddings. The frozen backbone
is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidelight.core.batch import Batch, Predictions
from sidelight.core.options import check_types, require
from sidelight.models.deformable import (
    EDGE,
    DeformableAttention,
    LocalContext,
    ReferenceDeformableAttention,
    roi_align,
)
from sidelight.models.layers import (
    MLP,
    AddNorm,
    AttentionPool,
    FeedForward,
    InputMap,
    KeysValues,
    MultiHeadAttention,
    clip_centers,
    inverse_sigmoid,
    sinusoid,
)

SPARSE_MODULES = ("ca", "sa", "rdsa", "ffn")


@dataclass(frozen=True, kw_only=True)
class SDSTConfig:
    """Everything that decides an SDST's shape and behaviour. Defaults are the paper's best model."""

    video_dim: int
    """Width of the backbone's video features."""
    text_dim: int
    """Width of the backbone's query features."""
    levels: int = 4
    """Backbone layers read, K (Tab. K)."""
    hidden: int = 256
    """Width inside the model, F."""
    moment_queries: int = 30
    """Moments predicted for each video, M (5 on TACoS)."""
    heads: int = 8
    """Attention heads, in plain and deformable attention."""
    points: int = 4
    """Points that each head of deformable attention reads."""
    dropout: float = 0.5
    """Dropout probability in the input maps."""
    droppath: float = 0.25
    """Probability that a sub-block is skipped for a sample."""
    ffn_ratio: int = 4
    """Width of a feed-forward layer, in hidden widths."""
    endpoint_features: bool = True
    """Append each clip's start and end, in [0, 1], to its video features, as R2-Tuning does."""
    level_order: Literal["shallow-first", "deep-first"] = "shallow-first"
    """Which level is refined first; R2-Tuning goes deep first."""
    level_source: Literal["each", "last"] = "each"
    """What a refinement reads: its own layer, or the last layer every time (Tab. K)."""
    share_levels: bool = True
    """One level for all (the paper's choice), or one of its own for each (Tab. J); heads are always
    shared.
    """
    attention: Literal["rdsa", "deformable", "standard"] = "rdsa"
    """How moment queries read the video: RDSA, deformable or plain cross-attention (Tab. 5)."""
    condition_on: Literal["raw", "ca", "sa", "ffn"] = "ffn"
    """What they read: the mapped video, or the dense stream after one of its sub-blocks (Tab. 6)."""
    sparse_order: tuple[str, ...] = SPARSE_MODULES
    """Sub-blocks of the sparse stream, in order (Tab. N); leave one out to switch it off (Tab. 7)."""
    rdsa_points: tuple[str, ...] = ("left", "center", "right")
    """Where RDSA reads the moment to choose its offsets (Tab. M)."""
    rdsa_cnn: bool = True
    """Let RDSA's readings know their neighbouring clips through a CNN (Tab. M)."""
    rdsa_conv: Literal["separable", "full"] = "separable"
    """The kind of that CNN; two full convolutions would make it 0.33 M parameters larger than the paper's
    count allows.
    """
    rdsa_kernel: int = 3
    """Clips that each of its convolutions over time sees (odd)."""
    rdsa_width: int = 64
    """Width of RDSA's own query (App. A)."""
    offset_init: Literal["directions", "grid", "zero"] = "directions"
    """Where deformable points start, see ``deformable.initial_offsets``."""
    outside: Literal["zero", "clamp"] = "zero"
    """What deformable points read beyond the video: nothing, as in Deformable DETR, or the nearest clip."""
    detach_references: bool = True
    """Stop gradients of the references between levels, as DAB-DETR does."""
    reference_init: Literal["spread", "normal"] = "spread"
    """First references: evenly over places and lengths whatever the seed, or sigmoid of a normal draw
    (DAB-DETR).
    """
    query_init: Literal["learned", "mixed", "pure"] = "learned"
    """Where moment queries start: as learned, with references of the best clips ("mixed"), or with references
    and embeddings of the best clips ("pure"; DINO's query selection, Tab. 5); see ``QuerySelection``.
    """
    roi_bins: int = 16
    """Bins that a moment is pooled into for its actionness."""
    roi_samples: int = 1
    """Points averaged in each bin."""
    roi_width: float = 1.0
    """Width of what is pooled for a moment's actionness, in widths of the moment; beyond the video's ends there is
    nothing to pool. With 1 the head reads only clips inside the moment. The paper does not say it (its "Roi scale 0" is
    another argument of RoIAlign in TadTR's code, whose head this is and which pools 1.5).
    """
    roi_gradient: bool = False
    """Let the actionness loss move the spans that it pools, instead of only judging them."""
    class_prior: float = 0.01
    """Probability that the class head starts from (focal loss needs it low)."""

    def __post_init__(self) -> None:
        check_types(self)
        counts = "video_dim text_dim levels hidden moment_queries heads points ffn_ratio rdsa_width"
        for name in (*counts.split(), "roi_bins", "roi_samples"):
            require(self, getattr(self, name) >= 1, name, "at least 1")
        require(self, 0 < self.roi_width < math.inf, "roi_width", "positive and finite")
        for name in ("dropout", "droppath"):
            require(self, 0 <= getattr(self, name) < 1, name, "in [0, 1)")
        require(self, 0 < self.class_prior < 1, "class_prior", "in (0, 1)")
        require(self, self.hidden % 4 == 0, "hidden", "a multiple of 4 (sines and cosines of two numbers)")
        require(self, self.hidden % self.heads == 0, "hidden", f"a multiple of heads={self.heads}")
        require(self, self.rdsa_kernel % 2 == 1 and self.rdsa_kernel > 0, "rdsa_kernel", "odd and positive")
        for name, known in (("sparse_order", SPARSE_MODULES), ("rdsa_points", tuple(EDGE))):
            value = getattr(self, name)
            valid = len(value) > 0 and set(value) <= set(known) and len(set(value)) == len(value)
            require(self, valid, name, f"different names out of {known}")


class Context(NamedTuple):
    """What every level needs to know about a batch."""

    lengths_B: Tensor
    """Clips of each sample."""
    video_mask_BT: Tensor
    text_mask_BL: Tensor
    words_mask_BL: Tensor
    """The tokens that the dense stream reads: all but CLS, or CLS where there is no other."""
    clip_code_BTF: Tensor
    """Position code of each clip, by its sample's own length."""


class DenseStream(nn.Module):
    """Eq. 4: clips read the query, then each other, then think for themselves."""

    def __init__(self, config: SDSTConfig) -> None:
        super().__init__()
        width = config.hidden
        self.text_attention = MultiHeadAttention(width, config.heads)
        self.text_norm = AddNorm(width, config.droppath)
        self.self_attention = MultiHeadAttention(width, config.heads)
        self.self_norm = AddNorm(width, config.droppath)
        self.ffn = FeedForward(width, config.ffn_ratio)
        self.ffn_norm = AddNorm(width, config.droppath)

    def forward(self, dense: Tensor, text: KeysValues, context: Context) -> dict[str, Tensor]:
        """D (B, T, F) -> D after each sub-block, by name."""
        code = context.clip_code_BTF
        ca = self.text_norm(dense, self.text_attention.attend(dense + code, text, context.words_mask_BL))
        query = ca + code
        sa = self.self_norm(ca, self.self_attention(query, query, ca, context.video_mask_BT))
        return {"ca": ca, "sa": sa, "ffn": self.ffn_norm(sa, self.ffn(sa))}


class SparseStream(nn.Module):
    """Eqs. 5 and 6: moment queries read the query, each other, and the video around their references."""

    def __init__(self, config: SDSTConfig) -> None:
        super().__init__()
        self.order, width = config.sparse_order, config.hidden
        blocks: dict[str, Callable[[], nn.Module]] = {
            "ca": lambda: MultiHeadAttention(width, config.heads),
            "sa": lambda: MultiHeadAttention(width, config.heads),
            "rdsa": lambda: video_attention(config),
            "ffn": lambda: FeedForward(width, config.ffn_ratio),
        }
        self.blocks = nn.ModuleDict({name: blocks[name]() for name in self.order})
        self.norms = nn.ModuleDict({name: AddNorm(width, config.droppath) for name in self.order})

    def project_text(self, text: Tensor) -> KeysValues:
        """T (..., L, F) -> keys and values of the cross-attention to the query, or T itself where there is
        none.
        """
        if "ca" not in self.order:
            return text, text
        return cast(MultiHeadAttention, self.blocks["ca"]).project(text, text)

    def forward(
        self,
        moments_BMF: Tensor,
        references_BM2: Tensor,
        reference_code_BMF: Tensor,
        video_BTF: Tensor,
        text: KeysValues,
        context: Context,
    ) -> Tensor:
        for name in self.order:
            block, queries = self.blocks[name], moments_BMF + reference_code_BMF
            if isinstance(block, FeedForward):
                update = block(moments_BMF)
            elif name == "ca":
                update = cast(MultiHeadAttention, block).attend(queries, text, context.text_mask_BL)
            elif name == "sa":
                update = block(queries, queries, moments_BMF, None)
            elif isinstance(block, ReferenceDeformableAttention):
                update = block(references_BM2, video_BTF, context.video_mask_BT, context.lengths_B)
            elif isinstance(block, DeformableAttention):
                update = block(queries, references_BM2, video_BTF, context.lengths_B)
            else:
                update = block(queries, video_BTF + context.clip_code_BTF, video_BTF, context.video_mask_BT)
            moments_BMF = self.norms[name](moments_BMF, update)
        return moments_BMF


def video_attention(config: SDSTConfig) -> nn.Module:
    """How moment queries read the video: RDSA or one of its rivals in Tab. 5."""
    if config.attention == "standard":
        return MultiHeadAttention(config.hidden, config.heads)
    attention = DeformableAttention(
        config.rdsa_width if config.attention == "rdsa" else config.hidden,
        config.hidden,
        config.heads,
        config.points,
        outside=config.outside,
        offset_init=config.offset_init,
    )
    if config.attention == "deformable":
        return attention
    context = LocalContext(config.hidden, config.rdsa_kernel, config.rdsa_conv) if config.rdsa_cnn else None
    return ReferenceDeformableAttention(config.hidden, config.rdsa_width, config.rdsa_points, context, attention)


class Level(nn.Module):
    """All that one level owns; a shared model has one, an unshared one K (Tab. J)."""

    def __init__(self, config: SDSTConfig) -> None:
        super().__init__()
        extra = 2 if config.endpoint_features else 0
        self.map_video = InputMap(config.video_dim + extra, config.hidden, config.dropout)
        self.map_text = InputMap(config.text_dim, config.hidden, config.dropout)
        self.dense = DenseStream(config)
        self.sparse = SparseStream(config)

    def read(self, video: Tensor, text: Tensor) -> Reading:
        """Everything that needs no recurrence, for one level or, when it is shared, for all levels at
        once.
        """
        video, text = self.map_video(video), self.map_text(text)
        dense_text = self.dense.text_attention.project(text, text)
        return Reading(video, text, *dense_text, *self.sparse.project_text(text))


class Reading(NamedTuple):
    """V and T, and T's keys and values in both streams; the first axis is K when all levels were read at
    once.
    """

    video: Tensor
    text: Tensor
    dense_keys: Tensor
    dense_values: Tensor
    sparse_keys: Tensor
    sparse_values: Tensor


class QuerySelection(nn.Module):
    """DINO's query selection (Zhang et al. 2022) in one dimension: moment queries start at the most likely clips.

    The memory is the dense stream after its first level: like DETR's, it has read the query and the other clips.
    Each clip proposes a span around its middle, of a width that a head corrects, and a class logit of its own; the
    best M become the first references, and ("pure") their embeddings the first moment queries. Both are detached,
    as in DINO: the heads learn from losses of their own, those of one more level in front of the K (class, L1 and
    IoU, after a matching of its own). Heads are not shared with the levels'. Where a video has fewer than M clips,
    the remaining moment queries start as learned.
    """

    WIDTH = 0.1
    """Width of a proposal before its correction, in extents; Deformable DETR's lie between 0.05 and 0.4."""

    def __init__(self, config: SDSTConfig) -> None:
        super().__init__()
        width = config.hidden
        self.map, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.class_head = nn.Linear(width, 1)
        self.span_head = MLP(width, width, width, 2)
        nn.init.constant_(self.class_head.bias, math.log(config.class_prior / (1 - config.class_prior)))
        last = cast(nn.Linear, self.span_head.layers[-1])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(
        self, memory_BTF: Tensor, references_BM2: Tensor, moments_BMF: Tensor, context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, M), spans (B, M, 2) and embeddings (B, M, F) of the chosen clips, or what came in where there
        is no clip left to choose.
        """
        queries, clips = moments_BMF.shape[1], memory_BTF.shape[1]
        mapped_BTF = self.norm(self.map(memory_BTF))
        logits_BT = self.class_head(mapped_BTF).squeeze(-1)
        found = logits_BT.float().masked_fill(~context.video_mask_BT, -math.inf).topk(min(queries, clips), 1).indices
        missing = (0, queries - found.shape[1])
        chosen_BM = F.pad(found, missing)
        real_BM = F.pad(context.video_mask_BT.gather(1, found), missing, value=False)
        middles_BT = clip_centers(context.lengths_B, clips)
        proposals_BT2 = torch.stack([middles_BT, torch.full_like(middles_BT, self.WIDTH)], -1)
        spans_BT2 = (inverse_sigmoid(proposals_BT2) + self.span_head(mapped_BTF).float()).sigmoid()
        start = self.class_head.bias.detach().expand_as(real_BM)
        return (
            torch.where(real_BM, logits_BT.gather(1, chosen_BM), start),
            torch.where(real_BM.unsqueeze(-1), _gathered(spans_BT2, chosen_BM), references_BM2),
            torch.where(real_BM.unsqueeze(-1), _gathered(mapped_BTF, chosen_BM).detach(), moments_BMF),
        )


def _gathered(values_BTN: Tensor, index_BM: Tensor) -> Tensor:
    """The rows of these clips: (B, T, N), (B, M) -> (B, M, N)."""
    return values_BTN.gather(1, index_BM.unsqueeze(-1).expand(-1, -1, values_BTN.shape[-1]))


class SDST(nn.Module):
    """The model: features of K levels in, moments and a highlight curve out."""

    def __init__(self, config: SDSTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden
        count = 1 if config.share_levels else config.levels
        self.levels = nn.ModuleList(Level(config) for _ in range(count))
        self.gates_K = nn.Parameter(torch.zeros(config.levels))
        self.references_M2 = nn.Parameter(initial_references(config))
        self.moments_MF = nn.Parameter(torch.randn(config.moment_queries, width))
        # Only where a sub-block adds it to its queries: an idle module would never learn.
        attends = set(config.sparse_order) - ({"rdsa", "ffn"} if config.attention == "rdsa" else {"ffn"})
        self.reference_code = MLP(width, width, width) if attends else None
        self.class_head = nn.Linear(width, 1)
        self.span_head = MLP(width, width, width, 2)
        self.actionness_head = MLP(config.roi_bins * width, width, width, 1)
        self.text_pool = AttentionPool(width)
        nn.init.constant_(self.class_head.bias, math.log(config.class_prior / (1 - config.class_prior)))
        last = cast(nn.Linear, self.span_head.layers[-1])
        nn.init.zeros_(last.weight)  # so that the first prediction is the reference itself
        nn.init.zeros_(last.bias)
        # After all others, so that these draw the same first weights with it and without.
        self.selection = QuerySelection(config) if config.query_init != "learned" else None

    def forward(self, batch: Batch) -> Predictions:
        config = self.config
        context = self._context(batch)
        every = self._read(batch, context)
        dense = torch.zeros_like(every.video[0])
        references = self.references_M2.float().sigmoid().expand(batch.size, -1, -1)
        moments = self.moments_MF.expand(batch.size, -1, -1)
        logits, spans = [], []
        # One unbind for all levels: its gradient is one stack; K slices would each fill a tensor of zeros.
        readings = map(Reading._make, zip(*(part.unbind(0) for part in every), strict=True))
        for k, reading in enumerate(readings):
            level = cast(Level, self.levels[0 if config.share_levels else k])
            mixed = reading.video + self.gates_K[k].sigmoid() * (dense - reading.video)  # Eq. 3
            states = level.dense(mixed, (reading.dense_keys, reading.dense_values), context)
            dense, states["raw"] = states["ffn"], reading.video
            if k == 0 and self.selection is not None:
                first, chosen, content = self.selection(dense, references, moments, context)
                logits.append(first)
                spans.append(chosen)
                references = chosen.detach()
                moments = content if config.query_init == "pure" else moments
            moments = level.sparse(
                moments,
                references,
                self._reference_code(references),
                states[config.condition_on],
                (reading.sparse_keys, reading.sparse_values),
                context,
            )
            logits.append(self.class_head(moments).squeeze(-1))
            refined = (inverse_sigmoid(references) + self.span_head(moments).float()).sigmoid()
            spans.append(refined)
            references = refined.detach() if config.detach_references else refined
        text_KBF = self.text_pool(every.text, context.text_mask_BL)
        return Predictions(
            logits_KBM=torch.stack(logits),
            spans_KBM2=torch.stack(spans),
            actionness_BM=self._actionness(dense, spans[-1], context.lengths_B),
            saliency_BT=cosine_saliency(dense, text_KBF[-1], context.video_mask_BT),
            video_KBTF=every.video,
            text_KBF=text_KBF,
            video_mask_BT=batch.video_mask_BT,
            saliency_video_BTF=dense,
            saliency_text_BF=text_KBF[-1],
        )

    def _context(self, batch: Batch) -> Context:
        lengths_B = batch.video_mask_BT.sum(1)
        words_mask_BL = batch.text_mask_BL.clone()
        words_mask_BL[:, 0] = ~batch.text_mask_BL[:, 1:].any(1)
        code = sinusoid(clip_centers(lengths_B, batch.video_mask_BT.shape[1]), self.config.hidden)
        return Context(
            lengths_B,
            batch.video_mask_BT,
            batch.text_mask_BL,
            words_mask_BL,
            code.to(self.moments_MF.dtype),
        )

    def _read(self, batch: Batch, context: Context) -> Reading:
        """The batch's features through the levels' input maps, every part with a leading K in order of
        refinement.
        """
        config = self.config
        widths = {"video_dim": batch.video_KBTD.shape[-1], "text_dim": batch.text_KBLD.shape[-1]}
        for name, got in {"levels": batch.levels, **widths}.items():
            if got != getattr(config, name):
                raise ValueError(
                    f"this SDST was built for {name}={getattr(config, name)}, the batch has {name}={got}: "
                    "use features of the backbone and levels that the model was trained on"
                )
        video = batch.video_KBTD.to(self.moments_MF.dtype)
        text = batch.text_KBLD.to(self.moments_MF.dtype)
        if config.level_source == "last":
            video, text = video[-1:].expand_as(video), text[-1:].expand_as(text)
        if config.level_order == "deep-first":
            video, text = video.flip(0), text.flip(0)
        if config.endpoint_features:
            middles_BT = clip_centers(context.lengths_B, video.shape[2])
            half_B1 = 0.5 / context.lengths_B.unsqueeze(1)
            ends_BT2 = torch.stack([middles_BT - half_B1, middles_BT + half_B1], -1)
            video = torch.cat([video, ends_BT2.to(video.dtype).expand(video.shape[0], -1, -1, -1)], -1)
        if config.share_levels:
            return cast(Level, self.levels[0]).read(video, text)
        readings = [cast(Level, level).read(v, t) for level, v, t in zip(self.levels, video, text, strict=True)]
        return Reading._make(torch.stack(parts) for parts in zip(*readings, strict=True))

    def _reference_code(self, references_BM2: Tensor) -> Tensor:
        """Sinusoids of center and width, half the width each, through an MLP: (B, M, 2) -> (B, M, F)."""
        if self.reference_code is None:
            return torch.zeros_like(self.moments_MF)
        waves = sinusoid(references_BM2, self.config.hidden // 2).flatten(-2)
        return cast(Tensor, self.reference_code(waves.to(self.moments_MF.dtype)))

    def _actionness(self, dense_BTF: Tensor, spans_BM2: Tensor, lengths_B: Tensor) -> Tensor:
        if not self.config.roi_gradient:
            spans_BM2 = spans_BM2.detach()
        center, width = spans_BM2.unbind(-1)
        around_BM2 = torch.stack([center, width * self.config.roi_width], -1)
        pooled = roi_align(dense_BTF, around_BM2, lengths_B, self.config.roi_bins, self.config.roi_samples)
        return cast(Tensor, self.actionness_head(pooled.flatten(2)).squeeze(-1).float().sigmoid())


def cosine_saliency(dense_BTF: Tensor, text_BF: Tensor, mask_BT: Tensor) -> Tensor:
    """Eq. 16: cosine of each clip and the pooled query in float32, 0 on padded clips."""
    clips = F.normalize(dense_BTF.float(), dim=-1)
    query = F.normalize(text_BF.float(), dim=-1)
    # Not a matrix product, which autocast would turn into half precision.
    return (clips * query.unsqueeze(1)).sum(-1).masked_fill(~mask_BT, 0)


def initial_references(config: SDSTConfig) -> Tensor:
    """First references before the sigmoid, (M, 2) of (center, width)."""
    if config.reference_init == "normal":
        return torch.randn(config.moment_queries, 2)
    # An additive recurrence in two dimensions covers the square evenly for any M. Widths grow from 0.05 to
    # 0.95 of the video, evenly in their logarithm since short moments need the finer choice; every span lies
    # inside the video.
    steps = torch.arange(1, config.moment_queries + 1)
    place, length = (0.5 + steps * 0.7548776662) % 1, (0.5 + steps * 0.5698402910) % 1
    width = 0.05 * (0.95 / 0.05) ** length
    return inverse_sigmoid(torch.stack([width / 2 + (1 - width) * place, width], -1))
