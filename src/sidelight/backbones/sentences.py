"""Sentence encoders: one vector a sentence, for models that are trained from pixels.

DistilBERT (Sanh et al., 2019, arXiv 1910.01108) comes from Hugging Face transformers (``DistilBertModel``). SCADA reads
"one sentence embedding" of it and does not say which. The default is the mean over all tokens, CLS and SEP included, as
MMN takes it (Wang et al., AAAI 2022; the published code of "Negative Sample Matters" reads the same DistilBERT for this
task). ``cls`` takes the first token.

Legend: B sentences, L tokens of a sentence, E width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sidelight.backbones.common import check_pooling, check_tokens, cut_tokens, pad_ids, weights_digest
from sidelight.backbones.pretrained import read_config, read_model, read_vocabulary
from sidelight.backbones.protocol import SentenceSpec
from sidelight.backbones.shapes.model import KnowsOneWorld, ShapesBackbone

DISTILBERT = "distilbert/distilbert-base-uncased"
_CLS, _SEP = "[CLS]", "[SEP]"


class ShapesSentences(KnowsOneWorld):
    """The text tower of the embedded backbone: the unit vectors that its pretraining compares with clips.

    Args:
        weights: folder of the weights; unless given, the weights shipped with the package.

    Raises:
        ValueError: if the weights are missing.
    """

    def __init__(self, weights: str | Path | None = None) -> None:
        self._backbone = ShapesBackbone(weights=weights, pooling="joint")
        spec = self._backbone.spec
        self.spec = SentenceSpec(encoder="shapes", weights=spec.weights, pooling="joint", width=spec.text_dim)

    def to(self, device: torch.device | str) -> ShapesSentences:
        """Move the weights, and return the encoder itself."""
        self._backbone.to(device)
        return self

    def encode(self, queries: Sequence[str]) -> Tensor:
        """Encode sentences to float32 (B, E), of length 1."""
        if not queries:
            return torch.zeros(0, self.spec.width, device=self._backbone.device)
        return torch.cat(self._backbone.encode_text(queries))[:, 0]


class DistilBertSentences:
    """DistilBERT, frozen, behind the :class:`~sidelight.backbones.protocol.SentenceEncoder` protocol.

    Args:
        weights: hub id, or folder in Hugging Face's layout.
        pooling: ``mean`` of all tokens, or ``cls``.

    Raises:
        ValueError: for another pooling, or weights that are missing, incomplete or not DistilBERT.
    """

    def __init__(self, *, weights: str | Path = DISTILBERT, pooling: Literal["mean", "cls"] = "mean") -> None:
        check_pooling(pooling, ("mean", "cls"), model="DistilBERT")
        classes = {"distilbert": "DistilBertConfig"}
        _, config = read_config(weights, classes, family="DistilBERT", example=DISTILBERT)
        self._vocabulary = read_vocabulary(weights, "DistilBertTokenizer", family="DistilBERT")
        self._weights, self._longest = weights, int(config.max_position_embeddings)
        _check_vocabulary(self._vocabulary, weights, config.vocab_size)
        self.model: Any = read_model(weights, "DistilBertModel", family="DistilBERT")
        self.model.eval().requires_grad_(False)
        digest = weights_digest(self.model.state_dict())
        self.spec = SentenceSpec(encoder="distilbert", weights=digest, pooling=pooling, width=config.dim)

    def to(self, device: torch.device | str) -> DistilBertSentences:
        """Move the weights, and return the encoder itself."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def encode(self, queries: Sequence[str]) -> Tensor:
        """Encode sentences to float32 (B, E). A sentence longer than DistilBERT reads is cut, with a warning.

        Raises:
            ValueError: for a sentence without a word, or if the weights have no vocabulary.
        """
        if not queries:
            return torch.zeros(0, self.spec.width, device=self.model.device)
        rows = self._token_ids(queries)
        lengths_B1 = torch.tensor([[len(ids)] for ids in rows], device=self.model.device)
        ids_BL = pad_ids(rows).to(self.model.device)
        mask_BL = torch.arange(ids_BL.shape[1], device=self.model.device) < lengths_B1
        tokens_BLE: Tensor = self.model(input_ids=ids_BL, attention_mask=mask_BL.long()).last_hidden_state
        if self.spec.pooling == "cls":
            return tokens_BLE[:, 0].clone()
        return tokens_BLE.masked_fill(~mask_BL.unsqueeze(-1), 0).sum(1) / lengths_B1

    def _token_ids(self, queries: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each sentence, with CLS and SEP."""
        if self._vocabulary is None:
            raise ValueError(
                f"{self._weights} has no vocabulary, so no sentence can be read: put tokenizer.json or vocab.txt of "
                "the same model into it"
            )
        start, end = (self._vocabulary.token_to_id(token) for token in (_CLS, _SEP))
        rows = [
            [start, *encoding.ids, end]
            for encoding in self._vocabulary.encode_batch(list(queries), add_special_tokens=False)
        ]
        rows = cut_tokens(queries, rows, self._longest)
        for query, ids in zip(queries, rows, strict=True):
            check_tokens(query, ids, self._longest, special=2)
        return rows


def _check_vocabulary(vocabulary: Any, weights: str | Path, known: int) -> None:
    """Raise ValueError unless a vocabulary has CLS and SEP and is not larger than DistilBERT knows."""
    if vocabulary is None:
        return
    if any(vocabulary.token_to_id(token) is None for token in (_CLS, _SEP)) or vocabulary.get_vocab_size() > known:
        raise ValueError(
            f"the vocabulary of {weights} does not fit DistilBERT: it has {vocabulary.get_vocab_size()} tokens, "
            f"expected at most {known} with {_CLS} and {_SEP}"
        )
