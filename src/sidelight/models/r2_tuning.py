"""R2-Tuning (Liu et al., ECCV 2024, arXiv 2404.00801): reversed recurrent tuning of CLIP.

A frozen CLIP gives every token of every frame in its last K layers. One small block, shared by all layers,
walks through them from the deepest to the shallowest: each query token looks at the tokens of a frame, what
they find is pooled into one vector per clip, a gate mixes it with what deeper layers said, and a transformer
layer relates clips to the query and to each other. A pyramid over time then gives points: each says how
likely a moment is around it, and how far away its start and its end are.

Shape legend: B batch, K levels, T clips, P tokens of a frame (token 0 is CLS), L query tokens, N points, F
hidden width, D input width, 2 (to the start, to the end), 4 (position, least and greatest reach, stride).

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

As in the published code, and not in the paper: the first pyramid level is a ReLU of the block's output, and
the other levels and the saliency see the rectified clips too.

Parameters at D_v = 768, D_t = 512, F = 256: 2,836,242.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidelight.models.layers import (
    AddNorm,
    FeedForward,
    InputMap,
    KeysValues,
    MultiHeadAttention,
    sinusoid,
)
from sidelight.options import check_types, require

TOKENS_AT_ONCE = {"cpu": 2**13}
"""Tokens of the video that are mapped at once, by device: on a CPU as many as its caches hold."""
TOKENS_AT_ONCE_ELSEWHERE = 2**18


@dataclass(frozen=True, kw_only=True)
class R2TuningConfig:
    """Everything that decides an R2-Tuning model's shape and behaviour. Defaults are those for QVHighlights."""

    video_dim: int
    """Width of the backbone's video features."""
    text_dim: int
    """Width of the backbone's query features."""
    levels: int = 4
    """Backbone layers read, K."""
    hidden: int = 256
    """Width inside the model, F."""
    heads: int = 8
    """Attention heads of the temporal layer."""
    ffn_ratio: int = 4
    """Width of its feed-forward layer, in hidden widths."""
    strides: tuple[int, ...] = (1, 2, 4, 8)
    """Clips between two points at each level of the pyramid: powers of two from 1; only 1 for highlights."""
    dropout: float = 0.5
    """Dropout probability in the input maps."""
    droppath: float = 0.1
    """Probability that a sub-block of the temporal layer is skipped for a sample."""
    endpoint_features: bool = True
    """Append each clip's start and end, in [0, 1], to its video features."""
    boundary_head: bool = True
    """Predict starts and ends; without it only the highlight curve remains (TVSum, YouTube Highlights)."""
    padding: Literal["independent", "exact"] = "independent"
    """What padding does to a sample: nothing, or what it does in the published code."""

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


@dataclass(frozen=True, kw_only=True, eq=False)
class R2Predictions:
    """What ``R2Tuning.forward`` returns. The K axis is in order of refinement: the deepest layer first."""

    logits_BN: Tensor
    """Class logit of each point."""
    distances_BN2: Tensor | None
    """How far the moment's start lies before the point and its end behind it, at least 0, in strides; None
    without a boundary head.
    """
    points_N4: Tensor
    """Position in clips, the range of greater distances it is responsible for, in clips, and its stride."""
    point_mask_BN: Tensor
    """True for points that count."""
    video_BTF: Tensor
    """The clips that saliency is the cosine of."""
    text_BF: Tensor
    """The query that saliency is the cosine of."""
    level_video_KBTF: Tensor
    """Each layer's CLS in the shared space (for the alignment losses)."""
    level_text_KBF: Tensor
    """Each layer's pooled query in the shared space (for the alignment losses)."""
    video_mask_BT: Tensor
    """True for real clips."""


class TemporalLayer(nn.Module):
    """Clips read the query, then each other, then think for themselves (post-norm)."""

    def __init__(self, config: R2TuningConfig) -> None:
        super().__init__()
        width = config.hidden
        self.text_attention = MultiHeadAttention(width, config.heads)
        self.text_norm = AddNorm(width, config.droppath)
        self.self_attention = MultiHeadAttention(width, config.heads)
        self.self_norm = AddNorm(width, config.droppath)
        self.ffn = FeedForward(width, config.ffn_ratio)
        self.ffn_norm = AddNorm(width, config.droppath)
        for layer in (self.ffn.expand, self.ffn.contract):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(
        self, clips_BTF: Tensor, code_BTF: Tensor, text: KeysValues, video_mask_BT: Tensor, text_mask_BL: Tensor
    ) -> Tensor:
        x = self.text_norm(clips_BTF, self.text_attention.attend(clips_BTF + code_BTF, text, text_mask_BL))
        query = x + code_BTF
        x = self.self_norm(x, self.self_attention(query, query, x, video_mask_BT))
        return cast(Tensor, self.ffn_norm(x, self.ffn(x)))


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
        ends_BT2, code_BTF = self._places(video_mask_BT)
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

    def _places(self, video_mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Start and end of each clip in units of the extent (B, T, 2), and its position code (B, T, F)."""
        dtype = self.q_map.weight.dtype
        clips = video_mask_BT.shape[1]
        lengths_B1 = video_mask_BT.sum(1, keepdim=True).float()
        if self.config.padding == "exact":
            lengths_B1 = torch.full_like(lengths_B1, clips)
        starts = torch.arange(clips, device=video_mask_BT.device, dtype=torch.float32)
        ends_BT2 = torch.stack([starts / lengths_B1, starts / lengths_B1 + 1 / lengths_B1], -1)
        waves = sinusoid((starts + 1) / (lengths_B1 + 1e-6), self.config.hidden)
        # All sines, then all cosines -> sine and cosine of each frequency side by side.
        code_BTF = waves.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
        return ends_BT2.to(dtype), code_BTF.to(dtype)

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


class Halve(nn.Module):
    """Two neighbouring clips become one: (B, T, F) -> (B, T // 2, F)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 2, stride=2)
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BTF: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x_BTF.transpose(1, 2)).transpose(1, 2)))


class ConvHead(nn.Module):
    """Two convolutions over three neighbouring points; where the mask is False they read zero."""

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


class R2Tuning(nn.Module):
    """The model: tokens of K layers in, points and highlights out."""

    def __init__(self, config: R2TuningConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden
        self.block = R2Block(config)
        self.pyramid = nn.ModuleList(
            nn.Sequential(*(Halve(width) for _ in range(times))) for times in range(len(config.strides))
        )
        self.text_pool = nn.Linear(width, 1, bias=False)
        self.class_head = ConvHead(width, 1)
        self.boundary_head = ConvHead(width, 2) if config.boundary_head else None
        self.coefficients = nn.Parameter(torch.ones(len(config.strides))) if config.boundary_head else None

    def forward(
        self, video_KBTPD: Tensor, video_mask_BT: Tensor, text_KBLD: Tensor, text_mask_BL: Tensor
    ) -> R2Predictions:
        """Levels run from shallow to deep; masks are True for real clips and tokens, which come first.

        ValueError if levels or widths are not those that the model was built for.
        """
        self._check(video_KBTPD, text_KBLD)
        text_KBLD = text_KBLD.to(self.text_pool.weight.dtype)
        if self.config.padding == "exact":
            text_KBLD = text_KBLD.masked_fill(~text_mask_BL.unsqueeze(-1), 0)
        clips_BTF, level_video_KBTF, text_KBLF = self.block(video_KBTPD, video_mask_BT, text_KBLD, text_mask_BL)
        clips_BTF = F.relu(clips_BTF)
        scores = self.text_pool(text_KBLF).masked_fill(~text_mask_BL.unsqueeze(-1), float("-inf"))
        level_text_KBF = (scores.softmax(2) * text_KBLF).sum(2)
        logits, distances, masks = [], [], []
        clips = video_mask_BT.shape[1]
        for number, stride in enumerate(self.config.strides):
            if clips < stride:
                break
            level_BTF = self.pyramid[number](clips_BTF)
            mask_BT = self._point_mask(video_mask_BT, stride)
            seen_BT = mask_BT if self.config.padding == "independent" else None
            masks.append(mask_BT)
            logits.append(self.class_head(level_BTF, seen_BT).squeeze(-1))
            if self.boundary_head is not None and self.coefficients is not None:
                distances.append(self.boundary_head(level_BTF, seen_BT).exp() * self.coefficients[number])
        return R2Predictions(
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

    def _check(self, video_KBTPD: Tensor, text_KBLD: Tensor) -> None:
        config = self.config
        if video_KBTPD.ndim != 5 or text_KBLD.ndim != 4:
            raise ValueError(
                "R2-Tuning reads video (K, B, T, P, D) with every token of a frame and text (K, B, L, D), got "
                f"shapes {tuple(video_KBTPD.shape)} and {tuple(text_KBLD.shape)}"
            )
        expected = (config.levels, config.video_dim, config.levels, config.text_dim)
        got = (video_KBTPD.shape[0], video_KBTPD.shape[-1], text_KBLD.shape[0], text_KBLD.shape[-1])
        if got != expected:
            raise ValueError(
                "this R2-Tuning was built for (levels, video_dim) and (levels, text_dim) "
                f"{expected[:2]} and {expected[2:]}, the batch has {got[:2]} and {got[2:]}: "
                "use features of the backbone and levels that the model was trained on"
            )

    def _point_mask(self, video_mask_BT: Tensor, stride: int) -> Tensor:
        """Points of one pyramid level that count: those whose clips are all real, or, in the published code,
        whose first clip is.
        """
        points = video_mask_BT.shape[1] // stride
        first = 0 if self.config.padding == "exact" else stride - 1
        return video_mask_BT[:, first::stride][:, :points]


def make_points(clips: int, strides: tuple[int, ...]) -> Tensor:
    """(N, 4): position of each point, the range of reaches that it is responsible for, and its stride, all in
    clips. A level that is shorter than its stride has no points.
    """
    edges = (0.0, *(float(stride) for stride in strides[1:]), math.inf)
    levels = []
    for stride, low, high in zip(strides, edges, edges[1:], strict=False):
        positions = torch.arange(clips // stride, dtype=torch.float32) * stride
        rest = torch.tensor([low, high, float(stride)]).expand(len(positions), -1)
        levels.append(torch.cat([positions.unsqueeze(1), rest], 1))
    return torch.cat(levels)


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
