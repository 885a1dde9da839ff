"""Blocks that every side-tuner shares.

Shape legend: B batch, K levels, T clips, L query tokens, M moment queries, H heads, C = F / H head width, F
hidden width; "..." stands for any leading axes.
"""

from __future__ import annotations

import itertools
import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeysValues = tuple[Tensor, Tensor]


class Dropout(nn.Module):
    """Dropout whose mask costs little on a CPU.

    PyTorch draws one random number per element, one at a time, on a CPU; for a side-tuner's wide inputs that
    costs more than its matrix products. Here each random 64-bit word decides eight elements, one byte each,
    which is exact for every probability that is a multiple of 1/256 (0.5 and 0.25 are). Elsewhere PyTorch's
    own dropout is used.
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
    """Stochastic depth (Larsson et al. 2016): drops a whole residual branch, independently for each
    sample.
    """

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
    """The end of every sub-block: residual, DropPath, then LayerNorm (post-norm)."""

    def __init__(self, width: int, droppath: float) -> None:
        super().__init__()
        self.drop = DropPath(droppath)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, update: Tensor) -> Tensor:
        return cast(Tensor, self.norm(x + self.drop(update)))


class InputMap(nn.Module):
    """MLP_V and MLP_T of SDST (Eq. 2), and the maps of R2-Tuning: backbone width to hidden width."""

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
    """PFFN: Linear, ReLU, Linear, with Kaiming-normal weights and zero biases."""

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
    """Scaled dot-product attention in two steps, so that a memory's keys and values can be made once for all
    levels.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = xavier_linear(width, width)
        self.key = xavier_linear(width, width)
        self.value = xavier_linear(width, width)
        self.output = xavier_linear(width, width)

    def project(self, keys: Tensor, values: Tensor) -> KeysValues:
        """(..., L, F) twice -> keys and values (..., H, L, C)."""
        return self._split(self.key(keys)), self._split(self.value(values))

    def attend(self, queries_BNF: Tensor, memory: KeysValues, mask_BL: Tensor | None) -> Tensor:
        """Queries read the memory where ``mask_BL`` is True (at least once per sample, or the result is not
        a number).
        """
        queries = self._split(self.query(queries_BNF))
        mask = None if mask_BL is None else mask_BL[:, None, None, :]
        read_BHNC = F.scaled_dot_product_attention(queries, *memory, attn_mask=mask)
        return cast(Tensor, self.output(read_BHNC.transpose(1, 2).flatten(2)))

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask_BL: Tensor | None) -> Tensor:
        return self.attend(queries, self.project(keys, values), mask_BL)

    def _split(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(-2, -3)


class AttentionPool(nn.Module):
    """Learned attention pooling: one linear score per token, softmax over real tokens, weighted mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, tokens: Tensor, mask_BL: Tensor) -> Tensor:
        """(..., B, L, F) -> (..., B, F)."""
        scores: Tensor = self.score(tokens).squeeze(-1).masked_fill(~mask_BL, float("-inf"))
        return (scores.softmax(-1).unsqueeze(-2) @ tokens).squeeze(-2)


def xavier_linear(width_in: int, width_out: int) -> nn.Linear:
    """A linear layer with Xavier-uniform weights and a zero bias (attention's initialisation)."""
    layer = nn.Linear(width_in, width_out)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def sinusoid(values: Tensor, width: int, temperature: float = 10000.0) -> Tensor:
    """Normalised sinusoidal code of ``values`` in [0, 1] (one turn of the fastest wave): (...) -> (...,
    width).
    """
    steps = torch.arange(width // 2, device=values.device, dtype=torch.float32)
    frequencies = 2 * math.pi * temperature ** (-2 * steps / width)
    angles = values.float().unsqueeze(-1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


def clip_centers(lengths_B: Tensor, clips: int) -> Tensor:
    """(B, T): the middle of each clip in units of its sample's own extent; padded clips lie beyond 1."""
    middles = torch.arange(clips, device=lengths_B.device, dtype=torch.float32) + 0.5
    return middles / lengths_B.unsqueeze(1)


def inverse_sigmoid(x: Tensor, epsilon: float = 1e-5) -> Tensor:
    """The logit of x, kept finite at 0 and 1."""
    x = x.clamp(epsilon, 1 - epsilon)
    return torch.log(x / (1 - x))


def parameter_table(model: nn.Module) -> list[tuple[str, int]]:
    """(name, number of trainable parameters) of each module and each parameter that belongs to none; what stands in a
    list of levels is opened up two steps further, since that is where the streams are.
    """
    table = [(name, p.numel()) for name, p in model.named_parameters(recurse=False) if p.requires_grad]
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            for part, level in child.named_children():
                table += [(f"{name}.{part}.{inner}", count) for inner, count in parameter_table(level)]
        else:
            table.append((name, sum(p.numel() for p in child.parameters() if p.requires_grad)))
    return table
