"""SDST, the Sparse-Dense Side-Tuner (Pujol-Perich et al., ICCV 2025, arXiv 2507.07744).

A frozen backbone gives features of its last K layers. One small level, shared by all K, walks through them and refines
two streams side by side:

- The dense stream D has one vector per clip. It becomes the highlight curve.
- The sparse stream has M moment queries, each a reference R (center, width) and an embedding H. They become moments.

The sparse stream reads the dense stream around its references (RDSA, in ``deformable.py``).

Shape legend: B batch, K levels, T clips, L query tokens, M moment queries, F hidden width, D input width, N any width,
2 (center, width).

The paper leaves some points open. These are our choices (most of them are fields of :class:`SDSTConfig`):

- The levels run from shallow to deep, so that the last refinement reads the backbone's last layer.
- The convolutions of RDSA are a per-channel convolution and a convolution of width 1, as in DAT, and not two dense
  ones. Only then does the model have the published 4.1 M parameters (counted as / 2**20), and the model with unshared
  levels about the published 12.4 M.
- References are refined in inverse-sigmoid space, with gradients stopped between levels (DAB-DETR). The learned first
  references do receive gradients. At first they are spread over all places and lengths.
- Beyond the video's ends deformable points read zero, as in Deformable DETR.
- The actionness head pools the span alone, and nothing around it. The paper follows TadTR, whose code pools one and a
  half times the width (``roi_width: 1.5``, as in our recipes of the published runs).
- If a query has no token but CLS, the dense stream reads CLS, since attention must read a token.
- The actionness head pools nothing beyond the video, and its goal is the overlap of the part of the span inside the
  video, since decoding returns only that part.

Parameters at D_v = 768, D_t = 1024 (4,346,633), without the frozen backbone: the two input maps 595,972, dense stream
1,053,440, sparse stream with RDSA 1,310,400 (cross-attention, self-attention, FFN, context, query map, deformable
attention), actionness head 1,114,881 (its first layer reads 16 bins x 256), boundary head 132,098, code of the
references 131,584, and 8,258 in class head, pooling, gates, references and embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidelight.core.batch import Batch, Predictions
from sidelight.core.options import check_types, require
from sidelight.models.deformable import (
    EDGE,
    Clips,
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
    SaliencyCue,
    TemporalBlock,
    check_features,
    inverse_sigmoid,
    sinusoid,
    unit_clip_centers,
)

SPARSE_MODULES = ("ca", "sa", "rdsa", "ffn")
"""Sub-blocks of the sparse stream: read the query, each other, the video; feed-forward layer."""


@dataclass(frozen=True, kw_only=True)
class SDSTConfig:
    """Shape and behaviour of an SDST. Defaults are the paper's best model."""

    video_dim: int
    """Width of the backbone's video features."""
    text_dim: int
    """Width of the backbone's query features."""
    levels: int = 4
    """Number of backbone layers that are read, K (Tab. K)."""
    hidden: int = 256
    """Width inside the model, F."""
    moment_queries: int = 30
    """Number of moments predicted for each video, M (5 on TACoS)."""
    heads: int = 8
    """Attention heads, in plain and deformable attention."""
    points: int = 4
    """Number of points that each head of deformable attention reads."""
    dropout: float = 0.5
    """Dropout probability in the input maps."""
    droppath: float = 0.25
    """Probability that a sub-block is skipped for a sample."""
    ffn_ratio: int = 4
    """Width of a feed-forward layer, in hidden widths."""
    endpoint_features: bool = True
    """Append the start and end of each clip, in units of the extent, to its video features, as R2-Tuning does."""
    level_order: Literal["shallow-first", "deep-first"] = "shallow-first"
    """Order of the levels; R2-Tuning starts with the deepest."""
    level_source: Literal["each", "last"] = "each"
    """Layer that a refinement reads: its own, or the last layer every time (Tab. K)."""
    share_levels: bool = True
    """One level for all K (the paper's choice), or one level each (Tab. J); heads are always shared."""
    attention: Literal["rdsa", "deformable", "standard"] = "rdsa"
    """Attention of moment queries to the video: RDSA, deformable or plain cross-attention (Tab. 5)."""
    condition_on: Literal["raw", "ca", "sa", "ffn"] = "ffn"
    """Source that moment queries read: the mapped video, or the dense stream after one of its sub-blocks (Tab. 6)."""
    sparse_order: tuple[str, ...] = SPARSE_MODULES
    """Sub-blocks of the sparse stream, in order (Tab. N); leave one out to switch it off (Tab. 7)."""
    rdsa_points: tuple[str, ...] = ("left", "center", "right")
    """Points of the moment at which RDSA reads the video to choose its offsets (Tab. M)."""
    rdsa_cnn: bool = True
    """Pass the video through a CNN over time before RDSA reads it to choose its offsets (Tab. M)."""
    rdsa_conv: Literal["separable", "full"] = "separable"
    """Kind of that CNN; with two full convolutions the model has 0.33 M parameters more than the paper's."""
    rdsa_kernel: int = 3
    """Number of clips that each convolution of that CNN reads at once (odd)."""
    rdsa_width: int = 64
    """Width of the vector by which RDSA chooses its offsets (App. A)."""
    rdsa_reads_query: bool = False
    """Let RDSA read the embedding of the moment query too to choose its offsets; the sentence after Eq. 11 says that
    offsets depend on the query's text, the equation reads the video alone.
    """
    offset_init: Literal["directions", "tadtr", "grid", "zero"] = "directions"
    """First offsets of deformable points, see ``deformable.initial_offsets``."""
    outside: Literal["zero", "clamp"] = "zero"
    """Value of deformable points beyond the video: zero, as in Deformable DETR, or the nearest clip."""
    detach_references: bool = True
    """Stop gradients of the references between levels, as DAB-DETR does."""
    reference_init: Literal["spread", "normal"] = "spread"
    """First references: evenly over places and lengths, for any seed, or sigmoid of a normal draw (DAB-DETR)."""
    query_init: Literal["learned", "mixed", "pure"] = "learned"  # stored recipes and checkpoints have this name
    """Start of the moment queries: learned, with references of the best clips ("mixed"), or with references and
    embeddings of the best clips ("pure"; DINO's query selection, Tab. 5); see ``QuerySelection``.
    """
    saliency_cue: bool = False
    """Add each clip's saliency for the query, along one learned direction, to the dense stream that moment queries and
    the actionness head read. Not in the paper; moments are then found after a fraction of the steps.
    """
    actionness_input: Literal["dense", "saliency", "both"] = "dense"
    """What the actionness head pools: the dense stream (the paper), the highlight curve alone, or both."""
    roi_bins: int = 16
    """Number of bins that a moment is pooled into for its actionness."""
    roi_samples: int = 1
    """Number of points averaged in each bin."""
    roi_width: float = 1.0
    """Width of the pooled region for a moment's actionness, in widths of the moment; nothing is pooled beyond the
    video's ends. With 1 the head reads only clips inside the moment. The paper does not give it (its "Roi scale 0" is
    another argument of RoIAlign in TadTR's code, whose head this is and which pools 1.5).
    """
    roi_gradient: bool = False
    """Let the actionness loss send gradients to the spans that it pools."""
    class_prior: float = 0.01
    """First probability of the class head (focal loss needs a low one)."""

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
    """The parts of a batch that every level needs."""

    clips: Clips
    text_mask_BL: Tensor
    """True for real tokens."""
    words_mask_BL: Tensor
    """True for the tokens that the dense stream reads: all but CLS, or CLS if it is the only token."""


class DenseStream(TemporalBlock):
    """Eq. 4: clips read the query, then each other, then pass a feed-forward layer."""

    def forward(self, dense: Tensor, text: KeysValues, context: Context) -> dict[str, Tensor]:
        """Return D (B, T, F) after each sub-block, by name."""
        clips = context.clips
        return self.states(dense, clips.code_BTF, text, clips.mask_BT, context.words_mask_BL)


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
        """Return keys and values of the cross-attention to the query, or T itself if there is no cross-attention."""
        if "ca" not in self.order:
            return text, text
        return cast(MultiHeadAttention, self.blocks["ca"]).project(text, text)

    def forward(
        self,
        moment_queries_BMF: Tensor,
        references_BM2: Tensor,
        reference_code_BMF: Tensor,
        video_BTF: Tensor,
        text: KeysValues,
        context: Context,
    ) -> Tensor:
        for name in self.order:
            block = cast(Any, self.blocks[name])
            coded_BMF = moment_queries_BMF + reference_code_BMF
            if name == "ca":
                update = block.attend(coded_BMF, text, context.text_mask_BL)
            elif name == "sa":
                update = block(coded_BMF, coded_BMF, moment_queries_BMF, None)
            elif name == "rdsa":
                update = block.read_video(coded_BMF, references_BM2, video_BTF, context.clips)
            else:
                update = block(moment_queries_BMF)
            moment_queries_BMF = self.norms[name](moment_queries_BMF, update)
        return moment_queries_BMF


class PlainAttention(MultiHeadAttention):
    """Plain cross-attention of moment queries to all clips ("standard" in Tab. 5)."""

    def read_video(self, moment_queries_BMF: Tensor, references_BM2: Tensor, video_BTF: Tensor, clips: Clips) -> Tensor:
        """Return the update of the moment queries, (B, M, F)."""
        return cast(Tensor, self(moment_queries_BMF, video_BTF + clips.code_BTF, video_BTF, clips.mask_BT))


def video_attention(config: SDSTConfig) -> nn.Module:
    """Build the attention of moment queries to the video: RDSA or one of its rivals in Tab. 5.

    All of them have a method ``read_video``.
    """
    if config.attention == "standard":
        return PlainAttention(config.hidden, config.heads)
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
    return ReferenceDeformableAttention(
        config.hidden,
        config.rdsa_width,
        config.rdsa_points,
        context,
        attention,
        reads_query=config.rdsa_reads_query,
    )


class Level(nn.Module):
    """The modules of one level. A model with shared levels has one, a model with unshared levels has K (Tab. J)."""

    def __init__(self, config: SDSTConfig) -> None:
        super().__init__()
        extra = 2 if config.endpoint_features else 0
        self.map_video = InputMap(config.video_dim + extra, config.hidden, config.dropout)
        self.map_text = InputMap(config.text_dim, config.hidden, config.dropout)
        self.dense = DenseStream(config.hidden, config.heads, config.ffn_ratio, config.droppath)
        self.sparse = SparseStream(config)

    def read(self, video: Tensor, text: Tensor) -> MappedInputs:
        """Compute the parts without recurrence, for one level, or for all levels at once if they share it."""
        video, text = self.map_video(video), self.map_text(text)
        dense_text = self.dense.text_attention.project(text, text)
        return MappedInputs(video, text, *dense_text, *self.sparse.project_text(text))


class MappedInputs(NamedTuple):
    """V and T, and T's keys and values in both streams. Read for all levels at once, the first axis is K."""

    video: Tensor
    text: Tensor
    dense_keys: Tensor
    dense_values: Tensor
    sparse_keys: Tensor
    sparse_values: Tensor


class QuerySelection(nn.Module):
    """DINO's query selection (Zhang et al. 2022) in one dimension: moment queries start at the most likely clips.

    The memory is the dense stream after its first level: like DETR's, it has read the query and the other clips. Each
    clip proposes a span around its middle, of a width that a head corrects, and a class logit of its own. The best M
    become the first references, and ("pure") their embeddings the first moment queries. Both are detached, as in DINO:
    the heads learn from losses of their own. For the losses the selection is one more level, in front of the K (class,
    L1 and IoU, after a matching of its own). The heads are not shared with those of the levels. If a video has fewer
    than M clips, the remaining moment queries start as learned.
    """

    WIDTH = 0.1
    """Width of a proposal before its correction, in extents. Deformable DETR's are between 0.05 and 0.4."""

    def __init__(self, config: SDSTConfig) -> None:
        super().__init__()
        width = config.hidden
        self.map, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.class_head = nn.Linear(width, 1)
        self.span_head = MLP(width, width, width, 2)
        _init_heads(self.class_head, self.span_head, config.class_prior)

    def forward(
        self, memory_BTF: Tensor, references_BM2: Tensor, moment_queries_BMF: Tensor, clips: Clips
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (B, M), spans (B, M, 2) and embeddings (B, M, F) of the chosen clips.

        Where no clip is left to choose, the spans and embeddings are the inputs.
        """
        mapped_BTF = self.norm(self.map(memory_BTF))
        logits_BT = self.class_head(mapped_BTF).squeeze(-1)
        count = moment_queries_BMF.shape[1]
        candidates_BT = logits_BT.float().masked_fill(~clips.mask_BT, -math.inf)
        best = candidates_BT.topk(min(count, candidates_BT.shape[1]), 1).indices
        missing = (0, count - best.shape[1])
        chosen_BM = F.pad(best, missing)
        real_BM = F.pad(clips.mask_BT.gather(1, best), missing, value=False)
        middles_BT = unit_clip_centers(clips.lengths_B, clips.mask_BT.shape[1])
        proposals_BT2 = torch.stack([middles_BT, torch.full_like(middles_BT, self.WIDTH)], -1)
        spans_BT2 = (inverse_sigmoid(proposals_BT2) + self.span_head(mapped_BTF).float()).sigmoid()
        first_logit = self.class_head.bias.detach().expand_as(real_BM)
        return (
            torch.where(real_BM, logits_BT.gather(1, chosen_BM), first_logit),
            torch.where(real_BM.unsqueeze(-1), _rows_of(spans_BT2, chosen_BM), references_BM2),
            torch.where(real_BM.unsqueeze(-1), _rows_of(mapped_BTF, chosen_BM).detach(), moment_queries_BMF),
        )


def _init_heads(class_head: nn.Linear, span_head: MLP, class_prior: float) -> None:
    """Make the first class probability ``class_prior``, and the first span the reference itself."""
    nn.init.constant_(class_head.bias, math.log(class_prior / (1 - class_prior)))
    last = cast(nn.Linear, span_head.layers[-1])
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


def _rows_of(values_BTN: Tensor, index_BM: Tensor) -> Tensor:
    """Return the rows of the chosen clips: (B, T, N), (B, M) -> (B, M, N)."""
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
        # Only if a sub-block adds the code to its moment queries: an unused module would never learn.
        attends = set(config.sparse_order) - ({"rdsa", "ffn"} if config.attention == "rdsa" else {"ffn"})
        self.reference_code = MLP(width, width, width) if attends else None
        self.class_head = nn.Linear(width, 1)
        self.span_head = MLP(width, width, width, 2)
        inputs = {"dense": width, "saliency": 1, "both": width + 1}[config.actionness_input]
        self.actionness_head = MLP(config.roi_bins * inputs, width, width, 1)
        self.text_pool = AttentionPool(width)
        _init_heads(self.class_head, self.span_head, config.class_prior)
        # Built last, so that the other modules draw the same first weights with and without it.
        self.selection = QuerySelection(config) if config.query_init != "learned" else None
        self.cue = SaliencyCue(width) if config.saliency_cue else None

    def slow_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that ``train.offset_lr`` slows down: offsets of deformable points, first references."""
        layers = [module.offsets for module in self.modules() if isinstance(module, DeformableAttention)]
        return [self.references_M2, *(parameter for layer in layers for parameter in layer.parameters())]

    def forward(self, batch: Batch) -> Predictions:
        check_features(self, self.config, batch)
        config = self.config
        context = self._context(batch)
        readings = self._read(batch, context.clips)
        dense = torch.zeros_like(readings.video[0])
        references = self.references_M2.float().sigmoid().expand(batch.size, -1, -1)
        moment_queries = self.moments_MF.expand(batch.size, -1, -1)
        text_KBF = self.text_pool(readings.text, context.text_mask_BL)
        mask_BT = batch.video_mask_BT
        logits, spans = [], []
        # One unbind for all levels: its gradient is one stack; K slices would each fill a tensor of zeros.
        levels = map(MappedInputs._make, zip(*(part.unbind(0) for part in readings), strict=True))
        for k, reading in enumerate(levels):
            level = cast(Level, self.levels[0 if config.share_levels else k])
            mixed = reading.video + self.gates_K[k].sigmoid() * (dense - reading.video)  # Eq. 3
            states = level.dense(mixed, (reading.dense_keys, reading.dense_values), context)
            dense, states["raw"] = states["ffn"], reading.video
            video = states[config.condition_on]
            if self.cue is not None:
                video = self.cue(video, cosine_saliency(dense, text_KBF[k], mask_BT))
            if k == 0 and self.selection is not None:
                chosen_logits, chosen_spans, chosen_rows = self.selection(
                    dense, references, moment_queries, context.clips
                )
                logits.append(chosen_logits)
                spans.append(chosen_spans)
                references = chosen_spans.detach()
                moment_queries = chosen_rows if config.query_init == "pure" else moment_queries
            moment_queries = level.sparse(
                moment_queries,
                references,
                self._reference_code(references),
                video,
                (reading.sparse_keys, reading.sparse_values),
                context,
            )
            logits.append(self.class_head(moment_queries).squeeze(-1))
            refined = (inverse_sigmoid(references) + self.span_head(moment_queries).float()).sigmoid()
            spans.append(refined)
            references = refined.detach() if config.detach_references else refined
        saliency_BT = cosine_saliency(dense, text_KBF[-1], mask_BT)
        return Predictions(
            logits_KBM=torch.stack(logits),
            spans_KBM2=torch.stack(spans),
            actionness_BM=self._actionness(dense, saliency_BT, spans[-1], context.clips.lengths_B),
            saliency_BT=saliency_BT,
            video_KBTF=readings.video,
            text_KBF=text_KBF,
            video_mask_BT=mask_BT,
            saliency_video_BTF=dense,
            saliency_text_BF=text_KBF[-1],
        )

    def _context(self, batch: Batch) -> Context:
        mask_BT = batch.video_mask_BT
        lengths_B = mask_BT.sum(1)
        code_BTF = sinusoid(unit_clip_centers(lengths_B, mask_BT.shape[1]), self.config.hidden)
        words_mask_BL = batch.text_mask_BL.clone()
        words_mask_BL[:, 0] = ~batch.text_mask_BL[:, 1:].any(1)
        clips = Clips(mask_BT, lengths_B, code_BTF.to(self.moments_MF.dtype))
        return Context(clips, batch.text_mask_BL, words_mask_BL)

    def _read(self, batch: Batch, clips: Clips) -> MappedInputs:
        """Pass the features through the levels' input maps; each part starts with axis K, in order of refinement."""
        config = self.config
        video = batch.video_KBTD.to(self.moments_MF.dtype)
        text = batch.text_KBLD.to(self.moments_MF.dtype)
        if config.level_source == "last":
            video, text = video[-1:].expand_as(video), text[-1:].expand_as(text)
        if config.level_order == "deep-first":
            video, text = video.flip(0), text.flip(0)
        if config.endpoint_features:
            middles_BT = unit_clip_centers(clips.lengths_B, video.shape[2])
            half_B1 = 0.5 / clips.lengths_B.unsqueeze(1)
            ends_BT2 = torch.stack([middles_BT - half_B1, middles_BT + half_B1], -1)
            video = torch.cat([video, ends_BT2.to(video.dtype).expand(video.shape[0], -1, -1, -1)], -1)
        if config.share_levels:
            return cast(Level, self.levels[0]).read(video, text)
        readings = [cast(Level, level).read(v, t) for level, v, t in zip(self.levels, video, text, strict=True)]
        return MappedInputs._make(torch.stack(parts) for parts in zip(*readings, strict=True))

    def _reference_code(self, references_BM2: Tensor) -> Tensor:
        """Encode references by sinusoids of center and width and an MLP: (B, M, 2) -> (B, M, F)."""
        if self.reference_code is None:
            return torch.zeros_like(self.moments_MF)
        waves = sinusoid(references_BM2, self.config.hidden // 2).flatten(-2)
        return cast(Tensor, self.reference_code(waves.to(self.moments_MF.dtype)))

    def _actionness(self, dense_BTF: Tensor, saliency_BT: Tensor, spans_BM2: Tensor, lengths_B: Tensor) -> Tensor:
        """Estimate the best IoU of each span with any ground-truth span, (B, M) in [0, 1]."""
        if not self.config.roi_gradient:
            spans_BM2 = spans_BM2.detach()
        center, width = spans_BM2.unbind(-1)
        around_BM2 = torch.stack([center, width * self.config.roi_width], -1)
        if self.cue is not None:
            dense_BTF = self.cue(dense_BTF, saliency_BT)
        read_BTF = dense_BTF
        if self.config.actionness_input != "dense":
            read_BTF = saliency_BT.unsqueeze(-1).to(dense_BTF.dtype)
        if self.config.actionness_input == "both":
            read_BTF = torch.cat([dense_BTF, read_BTF], -1)
        pooled = roi_align(read_BTF, around_BM2, lengths_B, self.config.roi_bins, self.config.roi_samples)
        return cast(Tensor, self.actionness_head(pooled.flatten(2)).squeeze(-1).float().sigmoid())


def cosine_saliency(dense_BTF: Tensor, text_BF: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the cosine of each clip and the pooled query (Eq. 16), (B, T) in float32, 0 on padded clips."""
    clips = F.normalize(dense_BTF.float(), dim=-1)
    query = F.normalize(text_BF.float(), dim=-1)
    # Not a matrix product, since autocast would do that in half precision.
    return (clips * query.unsqueeze(1)).sum(-1).masked_fill(~mask_BT, 0)


def initial_references(config: SDSTConfig) -> Tensor:
    """Return the first references before the sigmoid, (M, 2) of (center, width)."""
    if config.reference_init == "normal":
        return torch.randn(config.moment_queries, 2)
    if torch.get_default_device().type == "meta":  # PyTorch would import its compiler to compute without memory
        return torch.empty(config.moment_queries, 2)
    # An additive recurrence in two dimensions covers the square evenly for any M. Widths grow from 0.05 to 0.95 of the
    # video, evenly in their logarithm, since short moments need a finer choice. Every span lies inside the video.
    steps = torch.arange(1, config.moment_queries + 1)
    place, exponent = (0.5 + steps * 0.7548776662) % 1, (0.5 + steps * 0.5698402910) % 1
    width = 0.05 * (0.95 / 0.05) ** exponent
    return inverse_sigmoid(torch.stack([width / 2 + (1 - width) * place, width], -1))
