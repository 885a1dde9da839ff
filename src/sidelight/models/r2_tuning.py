"""R2-Tuning (Liu et al., ECCV 2024, arXiv 2404.00801): reversed recurrent tuning of CLIP.

A frozen CLIP gives every token of every frame in its last K layers. One small block, shared by all layers,
walks through them from the deepest to the shallowest: each query token looks at the tokens of a frame, what
they find is pooled into one vector per clip, a gate mixes it with what deeper layers said, and a transformer
layer relates clips to the query and to each other. A pyramid over time (``points.py``) then gives points: each says
how likely a moment is around it, and how far away its start and its end are.

Features that were pooled to one vector per clip are frames of one token.

Shape legend: B batch, K levels, T clips, P tokens of a frame (token 0 is CLS), L query tokens, F hidden width, D
input width.

Same numbers as the published code (``tests/parity/test_r2_tuning.py``), in another way:

- Padding. In a padded batch the published code's answer for a sample depends on the other samples: endpoint
  features and position codes are divided by the padded length, the maximum over query tokens takes padded
  ones, the head's convolutions read padded clips. ``padding="independent"``, the default, gives each sample
  what it would get alone, and a pyramid level counts only the points whose clips are all real;
  ``padding="exact"`` repeats the published numbers.
- The spatial pooling never repeats the query over clips, and never maps all tokens of a frame to the end.
  Queries q and tokens h before the last layer of the video map (weight W, bias c) meet in
  (A q + a) . (V (W h + c) + v): V and W go to the query's side, and what does not depend on the token, a
  constant under softmax, goes away. The values W h + c are a sum with weights that add up to 1, so the sum is
  taken of h, and W applied to L vectors of a clip instead of P.
- Nothing as wide as the video features is kept for the backward pass but one byte per entry (what dropout kept);
  the features are normalised again instead, and their gradient, which nobody needs, is never computed
  (``InputLayer``). A few samples are mapped at a time, so that they stay in a CPU's caches.
- ``v_map.bias`` has no effect (see above) and a gradient of exactly 0; it stands here because published
  checkpoints have it.

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

TOKENS_AT_ONCE = {"cpu": 2**13}
"""Tokens of the video that are mapped at once, by device: on a CPU as many as its caches hold."""
TOKENS_AT_ONCE_ELSEWHERE = 2**18


@dataclass(frozen=True, kw_only=True)
class R2TuningConfig(PointConfig):
    """Everything that decides an R2-Tuning model's shape and behaviour. Defaults are those for QVHighlights."""


class R2Block(nn.Module):
    """Layers of the backbone -> one vector per clip (Sec. 3.2)."""

    def __init__(self, config: R2TuningConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden
        self.video_map = InputMap(config.video_dim + 2 * config.endpoint_features, width, config.dropout)
        self.text_map = InputMap(config.text_dim, width, config.dropout)
        self.q_map = nn.Linear(width, width)
        self.v_map = nn.Linear(width, width)
        self.scales_K = nn.Parameter(torch.zeros(config.levels))
        self.gates_K = nn.Parameter(torch.zeros(config.levels - 1))
        self.temporal = TemporalLayer(config)

    def forward(
        self, video_KBTPD: Tensor, video_mask_BT: Tensor, text_KBLD: Tensor, text_mask_BL: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Clips (B, T, F) after the last step, CLS (K, B, T, F) and query (K, B, L, F) of each layer, the
        deepest first.
        """
        ends_BT2, code_BTF = clip_places(video_mask_BT, self.config, self.q_map.weight.dtype)
        text_KBLF = self.text_map(text_KBLD.flip(0))
        keys, values = self.temporal.text_attention.project(text_KBLF, text_KBLF)
        clips, every_cls = None, []
        for step, level in enumerate(reversed(range(self.config.levels))):
            cls_BTF, found_BTF = self._look(video_KBTPD[level], ends_BT2, video_mask_BT, text_KBLF[step], text_mask_BL)
            every_cls.append(cls_BTF)
            seen_BTF = cls_BTF + self.scales_K[level].tanh() * found_BTF
            if clips is not None:
                seen_BTF = clips + self.gates_K[level].sigmoid() * (seen_BTF - clips)
            clips = self.temporal(seen_BTF, code_BTF, (keys[step], values[step]), video_mask_BT, text_mask_BL)
        return cast(Tensor, clips), torch.stack(every_cls), text_KBLF

    def _look(
        self, video_BTPD: Tensor, ends_BT2: Tensor, video_mask_BT: Tensor, text_BLF: Tensor, text_mask_BL: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One layer's CLS and what the query found in each frame, both (B, T, F), a few samples at a time."""
        at_once = TOKENS_AT_ONCE.get(video_BTPD.device.type, TOKENS_AT_ONCE_ELSEWHERE)
        samples = max(1, at_once // (video_BTPD.shape[1] * video_BTPD.shape[2]))
        parts = zip(
            *(x.split(samples) for x in (video_BTPD, ends_BT2, video_mask_BT, text_BLF, text_mask_BL)), strict=True
        )
        found = [
            self._find(self._narrow(video, ends, video_mask), text, text_mask)
            for video, ends, video_mask, text, text_mask in parts
        ]
        cls, best = zip(*found, strict=True)
        return torch.cat(cls), torch.cat(best)

    def _narrow(self, video_BTPD: Tensor, ends_BT2: Tensor, video_mask_BT: Tensor) -> Tensor:
        """The video map up to its ReLU: (B, T, P, D) -> (B, T, P, F)."""
        norm, linear = cast(nn.LayerNorm, self.video_map.layers[0]), cast(nn.Linear, self.video_map.layers[2])
        return cast(
            Tensor,
            InputLayer.apply(  # type: ignore[no-untyped-call]
                video_BTPD,
                ends_BT2 if self.config.endpoint_features else None,
                video_mask_BT if self.config.padding == "exact" else None,
                norm.weight,
                norm.bias,
                linear.weight,
                linear.bias,
                self.config.dropout if self.training else 0.0,
                norm.eps,
            ),
        )

    def _find(self, hidden_BTPF: Tensor, text_BLF: Tensor, text_mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """The rest of the video map of CLS, and the best over query tokens of what they read in each frame."""
        norm, last = self.video_map.layers[4], cast(nn.Linear, self.video_map.layers[6])
        tokens_BTPF, weight = norm(hidden_BTPF), last.weight
        if self.training and self.config.dropout:
            kept = draw_kept(tokens_BTPF, self.config.dropout)
            tokens_BTPF = Keep.apply(tokens_BTPF, kept)  # type: ignore[no-untyped-call]
            weight = weight / (1 - self.config.dropout)
        asked_BLF = self.q_map(text_BLF) @ (self.v_map.weight @ weight) / math.sqrt(self.config.hidden)
        asked_BLF = asked_BLF + 0 * self.v_map.bias  # so that its gradient is 0 and not missing
        scores = tokens_BTPF.flatten(1, 2) @ asked_BLF.transpose(1, 2)
        weights_BTPL = scores.unflatten(1, tokens_BTPF.shape[1:3]).softmax(2)
        read_BTLF = weights_BTPL.transpose(2, 3) @ tokens_BTPF
        read_BTLF = F.linear(read_BTLF, weight, last.bias) + text_BLF.unsqueeze(1)
        if self.config.padding == "independent":
            read_BTLF = read_BTLF.masked_fill(~text_mask_BL[:, None, :, None], float("-inf"))
        return F.linear(tokens_BTPF[:, :, 0], weight, last.bias), read_BTLF.amax(2)


class InputLayer(torch.autograd.Function):
    """LayerNorm, dropout, linear layer and ReLU, of features that need no gradient.

    Most of a training step's arithmetic is here. Nothing of the features' size is kept for the
    backward pass but one byte per entry, what dropout kept. With x the normalised features where they were kept
    (0 elsewhere), m 1 where they were kept, and d the gradient of the output, all gradients follow from d^T x
    and d^T m: those of the norm need not go back to the features first.
    """

    @staticmethod
    def forward(
        ctx: Any,
        video: Tensor,
        ends_BT2: Tensor | None,
        mask_BT: Tensor | None,
        gain: Tensor,
        shift: Tensor,
        weight: Tensor,
        bias: Tensor,
        dropout: float,
        eps: float,
    ) -> Tensor:
        x = joined(video, ends_BT2, mask_BT, gain.dtype)
        x = F.layer_norm(x, x.shape[-1:], gain, shift, eps)
        kept = draw_kept(x, dropout) if dropout else None
        if ctx.needs_input_grad[0]:
            raise ValueError("R2-Tuning gives no gradient to its features; got some that require one: detach them")
        ctx.scale, ctx.eps = 1 / (1 - dropout), eps
        if kept is not None:
            x.mul_(kept.to(x.dtype))
        hidden = F.linear(x, weight * ctx.scale, bias).relu_()
        ctx.save_for_backward(video, ends_BT2, mask_BT, gain, shift, weight, kept, hidden)
        return hidden

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        video, ends_BT2, mask_BT, gain, shift, weight, kept, hidden = ctx.saved_tensors
        x = joined(video, ends_BT2, mask_BT, gain.dtype)
        x = F.layer_norm(x, x.shape[-1:], eps=ctx.eps)
        grad_NF = (grad * (hidden > 0)).flatten(0, -2)
        total_F = grad_NF.sum(0, dtype=weight.dtype)
        if kept is None:
            kept_FD = total_F.unsqueeze(1).expand_as(weight)
        else:
            x.mul_(kept := kept.to(x.dtype))
            kept_FD = (grad_NF.t() @ kept.flatten(0, -2).to(grad.dtype)).to(weight.dtype) * ctx.scale
        seen_FD = (grad_NF.t() @ x.flatten(0, -2).to(grad.dtype)).to(weight.dtype) * ctx.scale
        return (
            *(None, None, None),
            (weight * seen_FD).sum(0),
            (weight * kept_FD).sum(0),
            seen_FD * gain + kept_FD * shift,
            total_F,
            *(None, None),
        )


class Keep(torch.autograd.Function):
    """x where the mask is True, 0 elsewhere. torch.where says the same, more slowly; a product with the mask
    would keep four bytes per entry for the backward pass, and not one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(kept)
        return x * kept.to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return grad * kept.to(grad.dtype), None


def joined(video_BTPD: Tensor, ends_BT2: Tensor | None, mask_BT: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Video features with their clips' ends appended, if given, and 0 for clips where the mask, if given, is
    False.
    """
    video = video_BTPD.to(dtype)
    if mask_BT is not None:
        video = video.masked_fill(~mask_BT[:, :, None, None], 0)
    if ends_BT2 is not None:
        video = torch.cat([video, ends_BT2.unsqueeze(2).expand(-1, -1, video.shape[2], -1)], -1)
    return video


def draw_kept(like: Tensor, probability: float) -> Tensor:
    """True where dropout keeps an entry of ``like`` (on a CPU eight entries share a random word, see
    ``layers.Dropout``).
    """
    threshold = probability * 256
    if like.device.type != "cpu" or threshold != int(threshold):
        return torch.rand(like.shape, device=like.device) >= probability
    words = torch.empty((like.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    return (words.view(torch.uint8)[: like.numel()] >= int(threshold)).view(like.shape)


class R2Tuning(PointModel):
    """The model: tokens of K layers in, points and highlights out."""

    name = "this R2-Tuning"

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
"""What our parameters are called, in the order in which published names are changed into ours."""


def our_name(published: str) -> str:
    """The name of a published checkpoint's parameter in R2Tuning."""
    for pattern, ours in _RENAMED:
        published = re.sub(pattern, ours, published)
    inside = re.fullmatch(r"pyramid\.blocks\.(\d+)\.(\d+)\.(weight|bias)", published)
    if inside:
        # Each halving was five modules in a row, the convolution the second and the norm the fourth.
        step, place = divmod(int(inside[2]), 5)
        published = f"pyramid.{inside[1]}.{step}.{'conv' if place == 1 else 'norm'}.{inside[3]}"
    return published


def from_published(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The ``state_dict`` of a published checkpoint (its entry "state_dict") as R2Tuning loads it.

    The temperature of a loss is left out, and so are the coefficients of a model that predicts no boundaries.
    """
    boundaries = any(name.startswith("coord_head.") for name in state_dict)
    kept = {name for name in state_dict if not name.startswith("loss.") and (boundaries or name != "coef")}
    return {our_name(name): tensor for name, tensor in state_dict.items() if name in kept}
