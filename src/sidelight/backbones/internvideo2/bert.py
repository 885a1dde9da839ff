"""The text tower, BERT (Devlin et al., NAACL 2019, arXiv 1810.04805), as far as a frozen backbone needs it.

Differences from the paper: no pooler and no output head, because nothing reads them; one segment only; no dropout,
because the tower is never trained. Layers have flat names; :func:`our_name` translates the published names.

Legend: B sentences, L tokens, D width.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidelight.backbones.internvideo2.config import BertConfig

_EPSILON = 1e-12
# Published name -> our name.
_TOP = {
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "segments",
    "embeddings.LayerNorm": "norm",
}
_IN_LAYERS = {
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


def our_name(published: str) -> str | None:
    """Return our name of a parameter of the published ``BertModel``; None for a parameter that the tower lacks."""
    stem, _, kind = published.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    if (layer := _LAYER.fullmatch(stem)) and layer[2] in _IN_LAYERS:
        return f"blocks.{layer[1]}.{_IN_LAYERS[layer[2]]}.{kind}"
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
        x_BLD = self.norm_2(x_BLD + self.down(F.gelu(self.up(x_BLD))))
        return x_BLD


def _table(rows: int, width: int) -> nn.Embedding:
    """Return a table of zeros. Random rows on the meta device would load a compiler, which takes seconds."""
    table: nn.Embedding = nn.Embedding.from_pretrained(torch.zeros(rows, width), freeze=False)
    return table


class Bert(nn.Module):
    """The text tower: token ids to the tokens of every layer."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.words = _table(config.vocabulary, config.width)
        self.positions = _table(config.positions, config.width)
        self.segments = _table(config.segments, config.width)
        self.norm = nn.LayerNorm(config.width, eps=_EPSILON)
        self.blocks = nn.ModuleList(BertLayer(config) for _ in range(config.depth))

    def embed(self, ids_BL: Tensor) -> Tensor:
        """Return the input of the first layer, (B, L, D)."""
        x_BLD = self.words(ids_BL) + self.segments.weight[0] + self.positions.weight[: ids_BL.shape[1]]
        normed_BLD: Tensor = self.norm(x_BLD)
        return normed_BLD

    def layers(self, ids_BL: Tensor, mask_BL: Tensor | None = None) -> Iterator[Tensor]:
        """Yield the tokens (B, L, D) after each layer, shallowest first.

        Args:
            ids_BL: token ids, at most ``config.positions`` per sentence.
            mask_BL: True for tokens, False for padding; unless given, all ids are tokens.
        """
        mask_B11L = None if mask_BL is None else mask_BL.to(torch.bool)[:, None, None]
        x_BLD = self.embed(ids_BL)
        for block in self.blocks:
            x_BLD = block(x_BLD, mask_B11L)
            yield x_BLD
