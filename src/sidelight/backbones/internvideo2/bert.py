"""The text tower of BERT (Devlin et al., NAACL 2019, arXiv 1810.04805), as far as a frozen backbone needs it.

What differs from the paper: no pooler and no output head, for nobody reads them here; one segment only; no dropout,
for it is never trained. Layers are named flatly; :func:`our_name` translates the published names.

Legend: B sentences, L tokens, D width.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidelight.core.options import check_types, require

_EPSILON = 1e-12
_TOP = {
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "segments",
    "embeddings.LayerNorm": "norm",
}
_INSIDE = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "norm_1",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm_2",
}
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)")


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Sizes of the tower; those of BERT-large cut after 19 of its 24 layers unless given."""

    vocabulary: int = 30522
    """Number of tokens."""
    width: int = 1024
    """D."""
    depth: int = 19
    """Layers."""
    heads: int = 16
    """Attention heads."""
    hidden: int = 4096
    """Width inside the feed-forward part."""
    positions: int = 512
    """Longest sentence in tokens."""
    segments: int = 2
    """Rows of the segment table, of which the first is used."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("vocabulary", "width", "depth", "heads", "hidden", "positions", "segments"):
            require(self, getattr(self, name) > 0, name, "more than 0")
        require(self, self.width % self.heads == 0, "width", f"divisible by the {self.heads} heads")


def our_name(published: str) -> str | None:
    """The name here of a parameter in the published code (``BertModel``); None for what has no place here."""
    stem, _, kind = published.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    if (found := _LAYER.fullmatch(stem)) and found[2] in _INSIDE:
        return f"blocks.{found[1]}.{_INSIDE[found[2]]}.{kind}"
    return None


class BertLayer(nn.Module):
    """A post-norm transformer layer."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, config.hidden), nn.Linear(config.hidden, width)
        self.norm_1, self.norm_2 = nn.LayerNorm(width, eps=_EPSILON), nn.LayerNorm(width, eps=_EPSILON)

    def forward(self, x_BLD: Tensor, mask_B11L: Tensor | None) -> Tensor:
        q, k, v = (
            project(x_BLD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B11L)
        x_BLD = self.norm_1(x_BLD + self.out(attended.transpose(1, 2).flatten(2)))
        found: Tensor = self.norm_2(x_BLD + self.down(F.gelu(self.up(x_BLD))))
        return found


def _table(rows: int, width: int) -> nn.Embedding:
    """Zeros, for weights are always loaded; random rows on the meta device would load a compiler, for seconds."""
    table: nn.Embedding = nn.Embedding.from_pretrained(torch.zeros(rows, width), freeze=False)
    return table


class Bert(nn.Module):
    """Token ids to the tokens of every layer."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.words = _table(config.vocabulary, config.width)
        self.positions = _table(config.positions, config.width)
        self.segments = _table(config.segments, config.width)
        self.norm = nn.LayerNorm(config.width, eps=_EPSILON)
        self.blocks = nn.ModuleList(BertLayer(config) for _ in range(config.depth))

    def embed(self, ids_BL: Tensor) -> Tensor:
        """(B, L, D), what the first layer reads."""
        x_BLD = self.words(ids_BL) + self.segments.weight[0] + self.positions.weight[: ids_BL.shape[1]]
        found: Tensor = self.norm(x_BLD)
        return found

    def layers(self, ids_BL: Tensor, mask_BL: Tensor | None = None) -> Iterator[Tensor]:
        """The (B, L, D) tokens after each layer, shallowest first.

        Args:
            ids_BL: token ids, at most ``config.positions`` a sentence.
            mask_BL: True where a token is; everywhere unless given.
        """
        mask_B11L = None if mask_BL is None else mask_BL.to(torch.bool)[:, None, None]
        x_BLD = self.embed(ids_BL)
        for block in self.blocks:
            x_BLD = block(x_BLD, mask_B11L)
            yield x_BLD
