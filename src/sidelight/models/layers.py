"""The blocks that all side-tuners share.

Shape legend: B batch, K levels, T clips, L query tokens, N any number of vectors, H heads, C = F / H width of a head,
F hidden width; "..." stands for any leading axes.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidelight.core.batch import Batch

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of an attention's memory, split into heads: (..., H, L, C) each."""


class Dropout(nn.Module):
    """Dropout that is cheap on a CPU.

    On a CPU, PyTorch draws one random number per element; for the wide inputs of a side-tuner that costs more than the
    matrix products. Here each random 64-bit word decides eight elements, one byte each. This is exact if the
    probability is a multiple of 1/256 (0.5 and 0.25 are). For other probabilities and on other devices PyTorch's
    dropout is used.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        threshold = self.probability * 256
        if x.device.type != "cpu" or threshold != int(threshold) or threshold >= 256:
            return F.dropout(x, self.probability, True)
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        keep = (words.view(torch.uint8)[: x.numel()] >= int(threshold)).view(x.shape)
        return x * keep.to(x.dtype).mul_(1 / (1 - self.probability))

    def extra_repr(self) -> str:
        return f"p={self.probability}"


class DropPath(nn.Module):
    """Stochastic depth (Larsson et al. 2016): drops a residual branch, independently for each sample."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        keep = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1 - self.probability)
        return x * keep.div_(1 - self.probability)

    def extra_repr(self) -> str:
        return f"p={self.probability}"


class AddNorm(nn.Module):
    """The end of every sub-block: DropPath, residual, LayerNorm (post-norm)."""

    def __init__(self, width: int, droppath: float) -> None:
        super().__init__()
        self.drop = DropPath(droppath)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, update: Tensor) -> Tensor:
        return cast(Tensor, self.norm(x + self.drop(update)))


class InputMap(nn.Module):
    """Map from the backbone's width to the hidden width: MLP_V and MLP_T of SDST (Eq. 2), and R2-Tuning's maps."""

    def __init__(self, width_in: int, width_out: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width_in),
            Dropout(dropout),
            nn.Linear(width_in, width_out),
            nn.ReLU(),
            nn.LayerNorm(width_out),
            Dropout(dropout),
            nn.Linear(width_out, width_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.layers(x))


class MLP(nn.Module):
    """Linear layers with ReLU between them: MLP(256, 256, 2) has two layers."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            x = layer(x if index == 0 else F.relu(x))
        return x


class FeedForward(nn.Module):
    """Position-wise feed-forward layer: Linear, ReLU, Linear, with Kaiming-normal weights and zero biases."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, ratio * width)
        self.contract = nn.Linear(ratio * width, width)
        for layer in (self.expand, self.contract):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.contract(F.relu(self.expand(x))))


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention in two steps: keys and values of a memory are computed once, for all levels."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = xavier_linear(width, width)
        self.key = xavier_linear(width, width)
        self.value = xavier_linear(width, width)
        self.output = xavier_linear(width, width)

    def project(self, keys: Tensor, values: Tensor) -> KeysValues:
        """Return keys and values (..., H, L, C) of (..., L, F) each."""
        return self._split(self.key(keys)), self._split(self.value(values))

    def attend(self, queries_BNF: Tensor, memory: KeysValues, mask_BL: Tensor | None) -> Tensor:
        """Read the memory where ``mask_BL`` is True: (B, N, F) -> (B, N, F).

        A sample without any True gives NaN.
        """
        queries_BHNC = self._split(self.query(queries_BNF))
        mask = None if mask_BL is None else mask_BL[:, None, None, :]
        read_BHNC = F.scaled_dot_product_attention(queries_BHNC, *memory, attn_mask=mask)
        return cast(Tensor, self.output(read_BHNC.transpose(1, 2).flatten(2)))

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask_BL: Tensor | None) -> Tensor:
        return self.attend(queries, self.project(keys, values), mask_BL)

    def _split(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(-2, -3)


class TemporalBlock(nn.Module):
    """Clips read the query, then each other, then pass a feed-forward layer (post-norm)."""

    def __init__(self, width: int, heads: int, ffn_ratio: int, droppath: float) -> None:
        super().__init__()
        self.text_attention = MultiHeadAttention(width, heads)
        self.text_norm = AddNorm(width, droppath)
        self.self_attention = MultiHeadAttention(width, heads)
        self.self_norm = AddNorm(width, droppath)
        self.ffn = FeedForward(width, ffn_ratio)
        self.ffn_norm = AddNorm(width, droppath)

    def states(
        self, clips_BTF: Tensor, code_BTF: Tensor, text: KeysValues, video_mask_BT: Tensor, text_mask_BL: Tensor
    ) -> dict[str, Tensor]:
        """Return the clips (B, T, F) after each sub-block: "ca" (the query), "sa" (each other) and "ffn"."""
        ca = self.text_norm(clips_BTF, self.text_attention.attend(clips_BTF + code_BTF, text, text_mask_BL))
        coded = ca + code_BTF
        sa = self.self_norm(ca, self.self_attention(coded, coded, ca, video_mask_BT))
        return {"ca": ca, "sa": sa, "ffn": self.ffn_norm(sa, self.ffn(sa))}


class SaliencyCue(nn.Module):
    """Tells the parts of a model that find moments how relevant each clip is.

    Highlights are trained as the cosine of a clip and the query: relevance is an angle to a vector that changes with
    every query. Attention and heads that read only the clips would have to compute that product again, from the sparse
    losses of a few matched moments. The cue adds it to the clips along one learned direction.
    """

    SCALE = 4.0
    """Factor of the cosine, so that a relevant clip stands out among features of unit variance."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.randn(width))

    def forward(self, clips_BTF: Tensor, saliency_BT: Tensor) -> Tensor:
        """Add the saliency, (B, T) in [-1, 1], to the clips, (B, T, F)."""
        return clips_BTF + (self.SCALE * saliency_BT).unsqueeze(-1).to(clips_BTF.dtype) * self.direction


class AttentionPool(nn.Module):
    """Attention pooling: one linear score per token, softmax over real tokens, weighted mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, tokens: Tensor, mask_BL: Tensor) -> Tensor:
        """Pool tokens: (..., B, L, F) -> (..., B, F)."""
        scores: Tensor = self.score(tokens).squeeze(-1).masked_fill(~mask_BL, float("-inf"))
        return (scores.softmax(-1).unsqueeze(-2) @ tokens).squeeze(-2)


def xavier_linear(width_in: int, width_out: int) -> nn.Linear:
    """Build a linear layer with Xavier-uniform weights and a zero bias (the initialisation of attention)."""
    layer = nn.Linear(width_in, width_out)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def sinusoid(values: Tensor, width: int, temperature: float = 10000.0) -> Tensor:
    """Return sines and cosines of values in [0, 1], one turn of the fastest wave: (...) -> (..., width)."""
    steps = torch.arange(width // 2, device=values.device, dtype=torch.float32)
    frequencies = 2 * math.pi * temperature ** (-2 * steps / width)
    angles = values.float().unsqueeze(-1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


def position_code(places: Tensor, width: int) -> Tensor:
    """Return sine and cosine of each frequency side by side, for places in [0, 1]: (...) -> (..., width)."""
    return torch.unflatten(sinusoid(places, width), -1, (2, -1)).transpose(-1, -2).flatten(-2)


def unit_clip_centers(lengths_B: Tensor, clips: int) -> Tensor:
    """Return the middle of each clip in units of its sample's extent, (B, T); above 1 for padded clips."""
    middles = torch.arange(clips, device=lengths_B.device, dtype=torch.float32) + 0.5
    return middles / lengths_B.unsqueeze(1)


def inverse_sigmoid(x: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Return the logit of x, finite at 0 and 1 too."""
    x = x.clamp(epsilon, 1 - epsilon)
    return torch.log(x / (1 - x))


def check_features(model: nn.Module, config: Any, batch: Batch) -> None:
    """Raise ValueError unless the batch has the levels and the widths that the model was built for."""
    widths = {"video_dim": batch.video_KBTD.shape[-1], "text_dim": batch.text_KBLD.shape[-1]}
    for name, size in {"levels": batch.levels, **widths}.items():
        expected = getattr(config, name)
        if size != expected:
            raise ValueError(
                f"this {type(model).__name__} was built for {name}={expected}, the batch has {name}={size}: "
                "use features of the backbone and levels that the model was trained on"
            )


def parameter_table(model: nn.Module) -> list[tuple[str, int]]:
    """Return (name, number of trainable parameters) of each module, and of each parameter outside of a module.

    A list or dict of modules is listed by the modules of its entries, such as ``levels.0.dense``.
    """
    table = [(name, p.numel()) for name, p in model.named_parameters(recurse=False) if p.requires_grad]
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            for entry, module in child.named_children():
                table += [(f"{name}.{entry}.{inner}", count) for inner, count in parameter_table(module)]
        else:
            table.append((name, sum(p.numel() for p in child.parameters() if p.requires_grad)))
    return table
