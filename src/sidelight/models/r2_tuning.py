"""R2-Tuning (Liu et al., ECCV 2024, arXiv 2404.00801): reversed recurrent tuning of CLIP.

A frozen CLIP gives every token of every frame in its last K layers. One small block, shared by all layers, walks
through them from the deepest to the shallowest:

1. Each query token reads the tokens of a frame. The results are pooled into one vector per clip.
2. A gate mixes this vector with the block's output at the deeper layer.
3. A transformer layer relates clips to the query and to each other.

A pyramid over time (``points.py``) then gives points. Each point predicts how likely a moment is around it, and the
distances to its start and its end. Features that were pooled to one vector per clip count as frames of one token.

Shape legend: B batch, K levels, T clips, P tokens of a frame (token 0 is CLS), L query tokens, F hidden width, D input
width, N tokens of a part of the batch (samples * clips * P).

The numbers are those of the published code (``tests/parity/test_r2_tuning.py``). They are computed differently:

- Padding. In a padded batch of the published code, a sample's answer depends on the other samples: endpoint features
  and position codes are divided by the padded length, the maximum over query tokens includes padded tokens, and the
  head's convolutions read padded clips. ``padding="independent"``, the default, gives each sample the answer that it
  gets alone, and a pyramid level counts only the points whose clips are all real. ``padding="exact"`` repeats the
  published numbers.
- Spatial pooling never repeats the query over clips, and never maps all tokens of a frame to the end. Queries q and
  tokens h before the last layer of the video map (weight W, bias c) meet in (A q + a) . (V (W h + c) + v). V and W are
  folded into the query. The terms that do not depend on the token are constant under softmax and are left out. The
  values W h + c are summed with weights that add up to 1, so h is summed first, and W is applied to L vectors of a clip
  instead of P.
- Of the tensors as wide as the video features, only the dropout mask is kept for the backward pass: one byte per entry
  of one level. The features are normalised again, and their gradient, which nothing needs, is never computed
  (``MapAndPool``). A few frames are mapped at a time, so that they stay in a CPU's caches.
- Dropout of video features keeps the same entries in all levels. The published code draws for each level anew.
- ``v_map.bias`` has no effect (see above) and a gradient of exactly 0. It exists because published checkpoints have it.

Parameters at D_v = 768, D_t = 512, F = 256: 2,836,242.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidelight.models.layers import InputMap
from sidelight.models.points import PointConfig, PointModel, TemporalLayer, clip_places

TOKENS_AT_ONCE = {"cpu": 2**11}
"""Tokens of the video that are mapped at once, by device. On a CPU, as many as its caches hold."""
TOKENS_AT_ONCE_ELSEWHERE = 2**18
"""Tokens of the video that are mapped at once on all other devices."""


@dataclass(frozen=True, kw_only=True)
class R2TuningConfig(PointConfig):
    """Shape and behaviour of an R2-Tuning model. Defaults are those for QVHighlights."""


class R2Block(nn.Module):
    """Turn the layers of the backbone into one vector per clip (Sec. 3.2)."""

    def __init__(self, config: R2TuningConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden
        self.video_map = InputMap(config.clip_dim, width, config.dropout)
        self.text_map = InputMap(config.text_dim, width, config.dropout)
        self.q_map = nn.Linear(width, width)
        self.v_map = nn.Linear(width, width)
        self.scales_K = nn.Parameter(torch.zeros(config.levels))
        self.gates_K = nn.Parameter(torch.zeros(config.levels - 1))
        self.temporal = TemporalLayer(config)

    def forward(
        self, video_KBTPD: Tensor, video_mask_BT: Tensor, text_KBLD: Tensor, text_mask_BL: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return clips (B, T, F) of the last step, and CLS (K, B, T, F) and query (K, B, L, F) of each layer.

        The deepest layer comes first.
        """
        ends_BT2, code_BTF = clip_places(video_mask_BT, self.config, self.q_map.weight.dtype)
        text_KBLF = self.text_map(text_KBLD)
        cls_KBTF, pooled_KBTF = self._pool(video_KBTPD, ends_BT2, video_mask_BT, text_KBLF, text_mask_BL)
        video_KBTF = cls_KBTF + self.scales_K.tanh()[:, None, None, None] * pooled_KBTF
        keys, values = self.temporal.text_attention.project(text_KBLF, text_KBLF)
        # One unbind for all levels: its gradient is one stack; K slices would each fill a tensor of zeros.
        levels = list(zip(video_KBTF.unbind(), keys.unbind(), values.unbind(), strict=True))
        clips = None
        for level, (video_BTF, *memory) in reversed(list(enumerate(levels))):
            if clips is not None:
                video_BTF = clips + self.gates_K[level].sigmoid() * (video_BTF - clips)
            clips = self.temporal(video_BTF, code_BTF, tuple(memory), video_mask_BT, text_mask_BL)
        return cast(Tensor, clips), cls_KBTF.flip(0), text_KBLF.flip(0)

    def _pool(
        self, video_KBTPD: Tensor, ends_BT2: Tensor, video_mask_BT: Tensor, text_KBLF: Tensor, text_mask_BL: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return CLS, and the maximum over query tokens of their readings of each frame, both (K, B, T, F)."""
        norm, linear, inner, last = (cast(Any, self.video_map.layers[i]) for i in (0, 2, 4, 6))
        dropout = self.config.dropout if self.training else 0.0
        weight = last.weight / (1 - dropout)
        folded_KBLF = self.q_map(text_KBLF) @ (self.v_map.weight @ weight) / math.sqrt(self.config.hidden)
        folded_KBLF = folded_KBLF + 0 * self.v_map.bias  # so that its gradient is 0 and not None
        if self.config.padding == "independent":  # a padded query token is never the maximum
            text_KBLF = text_KBLF.masked_fill(~text_mask_BL.unsqueeze(-1), float("-inf"))
        # PyTorch gives `apply` no types.
        cls_KBTF, pooled_KBTF = MapAndPool.apply(  # type: ignore[no-untyped-call]
            video_KBTPD,
            ends_BT2 if self.config.endpoint_features else None,
            video_mask_BT if self.config.padding == "exact" else None,
            *(text_KBLF, folded_KBLF),
            *(norm.weight, norm.bias, linear.weight, linear.bias, inner.weight, inner.bias, weight),
            *(dropout, norm.eps, torch.is_grad_enabled()),
        )
        return F.linear(cls_KBTF, weight, last.bias), pooled_KBTF + last.bias


class MapAndPool(torch.autograd.Function):
    """The video map of every token of every frame, and the spatial pooling, as one autograd function.

    The video map is LayerNorm, dropout, linear layer, ReLU, LayerNorm, dropout; its last linear layer is left out. The
    results are CLS (K, B, T, F) before that last layer, and pooled (K, B, T, F): the maximum over query tokens of the
    reading of a frame, through the last layer without its bias, plus the query token.

    Nearly all arithmetic of a training step is here. It is written out for three reasons:

    - Autograd would keep eight tensors as large as the features or the tokens. One is kept, the tokens after the ReLU.
      The others are computed again, for a few frames at a time, so that they stay in a CPU's caches.
    - The gradient of the features, which nothing needs, is never computed. Let x be the normalised features where
      dropout kept them (0 elsewhere), m the dropout mask (1 or 0), and d the gradient before the ReLU. The gradients of
      norm and layer follow from d^T x and d^T m.
    - The dropout mask is the same in all K levels (as recurrent dropout is the same at all steps; Gal and Ghahramani
      2016); within a level every entry is drawn independently. So d^T m is one product for the sum of the levels' d,
      and a K-th of the random numbers is drawn and kept.

    The weights ``folded_KBLF`` and ``last_FF`` contain the factor 1 / (1 - dropout) of the second dropout already.
    ``needs_backward`` says whether a backward pass may follow. ValueError if the features require a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        video_KBTPD: Tensor,
        ends_BT2: Tensor | None,
        mask_BT: Tensor | None,
        text_KBLF: Tensor,
        folded_KBLF: Tensor,
        gain_D: Tensor,
        shift_D: Tensor,
        weight_FD: Tensor,
        bias_F: Tensor,
        inner_gain_F: Tensor,
        inner_shift_F: Tensor,
        last_FF: Tensor,
        dropout: float,
        eps: float,
        needs_backward: bool,
    ) -> tuple[Tensor, Tensor]:
        if ctx.needs_input_grad[0]:
            raise ValueError(
                "R2-Tuning computes no gradient of its features, got features that require one: detach them"
            )
        exact, products = gain_D.dtype, products_dtype(weight_FD)
        (levels, *frames), width, new = video_KBTPD.shape[:4], len(bias_F), video_KBTPD.new_empty
        kept_BTPD, kept_BTPF = (new(*frames, n, dtype=torch.bool) if dropout else None for n in (len(gain_D), width))
        hidden_KBTPF = new(levels if needs_backward else 0, *frames, width, dtype=products)
        weights_KBTPL = new(levels, *frames, text_KBLF.shape[2], dtype=products)
        cls_KBTF, pooled_KBTF = (new(levels, *frames[:2], width, dtype=products) for _ in range(2))
        winner_KBTF = torch.empty_like(pooled_KBTF, dtype=torch.int64)
        with torch.autocast(video_KBTPD.device.type, enabled=False):
            weight, bias, last = (weight_FD / (1 - dropout)).to(products), bias_F.to(products), last_FF.to(products)
            text, folded = text_KBLF.to(products), folded_KBLF.to(products)
            for part in frame_parts(video_KBTPD):
                factor_ND, factor_NF = (draw_factor(kept, part, dropout, exact) for kept in (kept_BTPD, kept_BTPF))
                for k in range(levels):
                    x_BTPD = join_ends(video_KBTPD[k], ends_BT2, mask_BT, part, exact)
                    size_BTP = x_BTPD.shape[:3]
                    x_ND = F.layer_norm(x_BTPD.flatten(0, 2), gain_D.shape, gain_D, shift_D, eps)
                    if factor_ND is not None:
                        x_ND.mul_(factor_ND)
                    hidden_BTPF = hidden_KBTPF[k][part] if needs_backward else new(*size_BTP, width, dtype=products)
                    torch.addmm(bias, x_ND.to(products), weight.t(), out=hidden_BTPF.view(-1, width)).relu_()
                    tokens_NF, *_ = inner_norm(hidden_BTPF, inner_gain_F, inner_shift_F, eps, factor_NF)
                    tokens_BTPF = tokens_NF.to(products).unflatten(0, size_BTP)
                    scores_BNL = tokens_BTPF.flatten(1, 2) @ folded[k][part[0]].transpose(1, 2)
                    weights_BTPL = scores_BNL.unflatten(1, size_BTP[1:]).softmax(2)
                    read_BTLF = weights_BTPL.transpose(2, 3) @ tokens_BTPF
                    sums_BTLF = (read_BTLF @ last.t()).add_(text[k][part[0]].unsqueeze(1))
                    pooled_KBTF[k][part], winner_KBTF[k][part] = sums_BTLF.max(2)
                    cls_KBTF[k][part], weights_KBTPL[k][part] = tokens_BTPF[:, :, 0], weights_BTPL
        ctx.dropout, ctx.eps = dropout, eps
        ctx.save_for_backward(
            *(video_KBTPD, ends_BT2, mask_BT, text_KBLF, folded_KBLF, gain_D, shift_D, weight_FD, inner_gain_F),
            *(inner_shift_F, last_FF, hidden_KBTPF, weights_KBTPL, winner_KBTF, kept_BTPD, kept_BTPF),
        )
        return cls_KBTF, pooled_KBTF

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_cls_KBTF: Tensor, grad_pooled_KBTF: Tensor) -> tuple[Tensor | None, ...]:
        video_KBTPD, ends_BT2, mask_BT, text_KBLF, folded_KBLF, gain_D, shift_D, weight_FD = ctx.saved_tensors[:8]
        inner_gain_F, inner_shift_F, last_FF, hidden_KBTPF, weights_KBTPL, winner_KBTF = ctx.saved_tensors[8:14]
        kept_BTPD, kept_BTPF = ctx.saved_tensors[14:]
        exact, products, width = gain_D.dtype, hidden_KBTPF.dtype, len(last_FF)
        folded, last = folded_KBLF.to(products), last_FF.to(products)
        grad_text, grad_folded = (torch.zeros_like(x, dtype=exact) for x in (text_KBLF, folded_KBLF))
        grad_last = torch.zeros_like(last_FF, dtype=exact)
        grad_gain, grad_shift, total_F = (torch.zeros_like(inner_gain_F) for _ in range(3))
        grad_clips_FD, grad_mask_FD = (torch.zeros_like(weight_FD) for _ in range(2))
        one_D, zero_D = torch.ones_like(gain_D), torch.zeros_like(gain_D)  # on a CPU faster than None
        for part in frame_parts(video_KBTPD):
            factor_ND, factor_NF = (
                None if kept is None else kept[part].flatten(0, 2).to(exact) for kept in (kept_BTPD, kept_BTPF)
            )
            sum_NF: Tensor | None = None
            for k in range(len(video_KBTPD)):
                hidden_BTPF, weights_BTPL = hidden_KBTPF[k][part], weights_KBTPL[k][part]
                size_BTP = hidden_BTPF.shape[:3]
                hidden_NF = hidden_BTPF.view(-1, width).to(exact)
                tokens_NF, mean, deviation = inner_norm(hidden_NF, inner_gain_F, inner_shift_F, ctx.eps, factor_NF)
                tokens_BTPF = tokens_NF.to(products).unflatten(0, size_BTP)
                # In each channel only the maximum has a gradient.
                grad_sums = weights_BTPL.new_zeros(*size_BTP[:2], weights_BTPL.shape[3], width)
                grad_sums.scatter_(2, winner_KBTF[k][part].unsqueeze(2), grad_pooled_KBTF[k][part].unsqueeze(2))
                grad_text[k][part[0]] += grad_sums.sum(1)
                read_BTLF = weights_BTPL.transpose(2, 3) @ tokens_BTPF
                add_product(grad_last, grad_sums.view(-1, width).t(), read_BTLF.view(-1, width))
                grad_read = grad_sums @ last
                grad_weights = tokens_BTPF @ grad_read.transpose(2, 3)
                grad_scores = torch._softmax_backward_data(grad_weights, weights_BTPL, 2, products).flatten(1, 2)
                grad_folded[k][part[0]] += grad_scores.transpose(1, 2) @ tokens_BTPF.flatten(1, 2)
                grad_tokens = weights_BTPL @ grad_read
                grad_tokens.flatten(1, 2).baddbmm_(grad_scores, folded[k][part[0]])
                grad_tokens[:, :, 0] += grad_cls_KBTF[k][part]
                grad_NF = grad_tokens.view(-1, width).to(exact)
                if factor_NF is not None:
                    grad_NF.mul_(factor_NF)
                grad_NF, gain, shift = torch.ops.aten.native_layer_norm_backward(
                    grad_NF, hidden_NF, inner_gain_F.shape, mean, deviation, inner_gain_F, inner_shift_F, [True] * 3
                )
                grad_gain += gain
                grad_shift += shift
                grad_NF = torch.ops.aten.threshold_backward(grad_NF, hidden_NF, 0)
                x_ND = join_ends(video_KBTPD[k], ends_BT2, mask_BT, part, exact).flatten(0, 2)
                x_ND = F.layer_norm(x_ND, gain_D.shape, one_D, zero_D, ctx.eps)
                if factor_ND is not None:
                    x_ND.mul_(factor_ND)
                add_product(grad_clips_FD, grad_NF.to(products).t(), x_ND.to(products))
                sum_NF = grad_NF if sum_NF is None else sum_NF.add_(grad_NF)
            assert sum_NF is not None
            total_F += sum_NF.sum(0)
            if factor_ND is not None:
                add_product(grad_mask_FD, sum_NF.to(products).t(), factor_ND.to(products))
        if kept_BTPD is None:
            grad_mask_FD += total_F.unsqueeze(1)
        grad_clips_FD, grad_mask_FD = grad_clips_FD / (1 - ctx.dropout), grad_mask_FD / (1 - ctx.dropout)
        return (
            *(None, None, None),
            *(grad_text.to(text_KBLF.dtype), grad_folded.to(folded_KBLF.dtype)),
            *((weight_FD * grad_clips_FD).sum(0), (weight_FD * grad_mask_FD).sum(0)),
            *(
                grad_clips_FD * gain_D + grad_mask_FD * shift_D,
                total_F,
                grad_gain,
                grad_shift,
                grad_last.to(last_FF.dtype),
            ),
            *(None, None, None),
        )


Part = tuple[slice, slice]
"""A part of the batch: a few samples, and a few of their clips."""


def frame_parts(video_KBTPD: Tensor) -> list[Part]:
    """Cut the batch into parts of about TOKENS_AT_ONCE tokens per level: several samples, or some clips of one."""
    _, samples, clips, tokens, _ = video_KBTPD.shape
    at_once = max(1, TOKENS_AT_ONCE.get(video_KBTPD.device.type, TOKENS_AT_ONCE_ELSEWHERE) // tokens)
    part_clips = math.ceil(clips / math.ceil(clips / at_once))  # parts of about the same size
    part_samples = max(1, at_once // clips)
    return [
        (slice(b, b + part_samples), slice(t, t + part_clips))
        for b in range(0, samples, part_samples)
        for t in range(0, clips, part_clips)
    ]


def draw_factor(kept_BTPN: Tensor | None, part: Part, dropout: float, dtype: torch.dtype) -> Tensor | None:
    """Draw the dropout mask of a part into ``kept_BTPN``; return it as ones and zeros (tokens, N)."""
    if kept_BTPN is None:
        return None
    draw_kept(kept_BTPN[part], dropout)
    return kept_BTPN[part].flatten(0, 2).to(dtype)


def inner_norm(
    hidden: Tensor, gain_F: Tensor, shift_F: Tensor, eps: float, factor_NF: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return LayerNorm and dropout of (..., F) as (N, F), and the mean and deviation for the norm's gradient."""
    hidden_NF = hidden.view(-1, len(gain_F)).to(gain_F.dtype)
    tokens_NF, mean, deviation = torch.native_layer_norm(hidden_NF, gain_F.shape, gain_F, shift_F, eps)
    if factor_NF is not None:
        tokens_NF.mul_(factor_NF)
    return tokens_NF, mean, deviation


def add_product(into: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to ``into``, in the type of ``into``."""
    if into.dtype == left.dtype:
        into.addmm_(left, right)
    else:
        into += left @ right


def products_dtype(weight: Tensor) -> torch.dtype:
    """Return the type of matrix products: autocast's, or that of the weights."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def join_ends(
    video_BTPD: Tensor, ends_BT2: Tensor | None, mask_BT: Tensor | None, part: Part, dtype: torch.dtype
) -> Tensor:
    """Copy the features of a part, append the ends of its clips, and zero clips outside the mask: (B, T, P, D).

    Ends and mask may be None.
    """
    video = video_BTPD[part]
    width = video.shape[-1]
    joint = video.new_empty(*video.shape[:-1], width + (0 if ends_BT2 is None else 2), dtype=dtype)
    joint[..., :width] = video
    if mask_BT is not None:
        joint[~mask_BT[part]] = 0
    if ends_BT2 is not None:
        joint[..., width:] = ends_BT2[part].unsqueeze(2)
    return joint


def draw_kept(kept: Tensor, probability: float) -> None:
    """Fill a contiguous ``kept`` with True where dropout keeps an entry.

    On a CPU eight entries share a random word, see ``layers.Dropout``.
    """
    threshold = probability * 256
    if kept.device.type != "cpu" or threshold != int(threshold):
        torch.ge(torch.rand(kept.shape, device=kept.device), probability, out=kept)
        return
    words = torch.empty((kept.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    torch.ge(words.view(torch.uint8)[: kept.numel()].view(kept.shape), int(threshold), out=kept)


class R2Tuning(PointModel):
    """The model: tokens of K layers in, points and highlights out."""

    block: R2Block

    def __init__(self, config: R2TuningConfig) -> None:
        super().__init__(config, R2Block(config))


_RENAMED = (
    (r"^adapter\.", "block."),
    (r"^block\.video_map\.", "block.video_map.layers."),
    (r"^block\.query_map\.", "block.text_map.layers."),
    (r"^block\.gate$", "block.gates_K"),
    (r"^block\.scale$", "block.scales_K"),
    (r"^block\.tem\.", "block.temporal."),
    (r"\.cross_att", ".text_att"),
    (r"_att_norm\.", "_norm.norm."),
    (r"\.ffn_norm\.", ".ffn_norm.norm."),
    (r"_att\.q\.", "_attention.query."),
    (r"_att\.k\.", "_attention.key."),
    (r"_att\.v\.", "_attention.value."),
    (r"_att\.m\.", "_attention.output."),
    (r"\.ffn\.mapping\.0\.", ".ffn.expand."),
    (r"\.ffn\.mapping\.2\.", ".ffn.contract."),
    (r"^pooling\.att\.", "text_pool."),
    (r"^coord_head\.", "boundary_head."),
    (r"_head\.module\.1\.", "_head.first."),
    (r"_head\.module\.3\.", "_head.last."),
    (r"^coef$", "coefficients"),
)
"""(pattern, replacement) pairs that turn published parameter names into ours, applied in this order."""


def our_name(published: str) -> str:
    """Return the name in R2Tuning of a parameter of a published checkpoint."""
    for pattern, ours in _RENAMED:
        published = re.sub(pattern, ours, published)
    match = re.fullmatch(r"pyramid\.blocks\.(\d+)\.(\d+)\.(weight|bias)", published)
    if match:
        # There each halving is five modules in a row; the convolution is the second and the norm the fourth.
        step, index = divmod(int(match[2]), 5)
        published = f"pyramid.{match[1]}.{step}.{'conv' if index == 1 else 'norm'}.{match[3]}"
    return published


def from_published(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the entry "state_dict" of a published checkpoint to a ``state_dict`` of R2Tuning.

    The temperature of a loss is left out, and so are the coefficients of a model that predicts no boundaries.
    """
    boundaries = any(name.startswith("coord_head.") for name in state_dict)
    kept = {name for name in state_dict if not name.startswith("loss.") and (boundaries or name != "coef")}
    return {our_name(name): tensor for name, tensor in state_dict.items() if name in kept}
