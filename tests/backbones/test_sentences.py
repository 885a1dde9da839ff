"""Tests of sentence encoders: equal to the library's own forward pass, independent of padding, with clear mistakes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from sidelight.backbones import SentenceEncoder, SpecMismatchError, load_backbone, load_sentence_encoder
from sidelight.backbones.common import QueryWarning
from tests.tiny_models import write_distilbert

QUERIES = ["A red star.", "star", "red red abc"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_distilbert(tmp_path_factory.mktemp("distilbert") / "tiny")


def plain(folder: Path, query: str) -> Tensor:
    """Return the tokens (L, E) of one sentence by the library's own tokenizer and forward pass."""
    model_class: Any = transformers.DistilBertModel
    tokenizer = transformers.DistilBertTokenizer.from_pretrained(folder)
    tokens: Tensor = model_class.from_pretrained(folder).eval()(**tokenizer(query, return_tensors="pt"))[0][0]
    return tokens


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_distilbert_equals_the_library(folder: Path, pooling: str) -> None:
    """Compare a padded batch with sentences one by one, at most 1e-5."""
    encoder = load_sentence_encoder("distilbert", weights=folder, pooling=pooling)
    assert isinstance(encoder, SentenceEncoder)
    encoded = encoder.encode(QUERIES)
    assert encoded.shape == (3, encoder.spec.width) and encoded.dtype == torch.float32
    for vector, query in zip(encoded, QUERIES, strict=True):
        tokens = plain(folder, query)
        torch.testing.assert_close(vector, tokens.mean(0) if pooling == "mean" else tokens[0], atol=1e-5, rtol=1e-5)


def test_shapes_sentences_are_the_joint_embeddings() -> None:
    encoder, queries = load_sentence_encoder("shapes"), ["a red star spins", "a circle grows"]
    expected = load_backbone("shapes", pooling="joint").encode_text(queries)
    assert torch.equal(encoder.encode(queries), torch.cat(expected)[:, 0])
    assert encoder.spec.width == 128


@pytest.mark.parametrize("name", ["shapes", "distilbert"])
def test_encoders_are_frozen_and_pinned(name: str, folder: Path) -> None:
    options = {"weights": folder} if name == "distilbert" else {}
    encoder = load_sentence_encoder(name, **options).to("cpu")
    assert encoder.encode([]).shape == (0, encoder.spec.width)
    vectors = encoder.encode(["red star"])
    assert not vectors.requires_grad and not vectors.is_inference()  # a layer that is trained may read them
    encoder.spec.require(load_sentence_encoder(name, **options).spec)
    with pytest.raises(SpecMismatchError, match=r"the sentence encoder is not the one .* weights is '0', expected"):
        encoder.spec.require(replace(encoder.spec, weights="0"))


def test_long_sentences_are_cut_with_a_warning(folder: Path) -> None:
    encoder = load_sentence_encoder("distilbert", weights=folder)
    with pytest.warns(QueryWarning, match="longer than the 12 tokens"):
        cut = encoder.encode(["red " * 20])
    torch.testing.assert_close(cut, encoder.encode(["red " * 10]))


def test_mistakes_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no sentence encoder 'bert'; known are shapes, distilbert"):
        load_sentence_encoder("bert")
    with pytest.raises(ValueError, match="DistilBERT does not have the pooling max; choose mean or cls"):
        load_sentence_encoder("distilbert", weights=folder, pooling="max")
    with pytest.raises(ValueError, match="a query needs at least one word, got ' '"):
        load_sentence_encoder("distilbert", weights=folder).encode([" "])
    silent = load_sentence_encoder("distilbert", weights=write_distilbert(tmp_path / "silent", vocabulary=False))
    with pytest.raises(ValueError, match=r"silent has no vocabulary, so no sentence can be read: put tokenizer.json"):
        silent.encode(["red"])
    other = write_distilbert(tmp_path / "other")
    with (other / "vocab.txt").open("a") as words:
        words.write("more\n")
    with pytest.raises(ValueError, match=r"the vocabulary of .*other does not fit DistilBERT: it has 61 tokens"):
        load_sentence_encoder("distilbert", weights=other)
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"is not DistilBERT: its config\.json says model_type 'bert'"):
        load_sentence_encoder("distilbert", weights=other)
