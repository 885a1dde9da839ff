"""Read a CLIP in Hugging Face's layout, and name its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from sidelight.backbones import pretrained
from sidelight.backbones.clip.released import CLIP_B32, CLIP_MODELS, HUB_FILES
from sidelight.backbones.common import weights_digest
from sidelight.io.pinned import digest_of

SAME_WEIGHTS_AS = "same_weights_as"
"""Metadata of a safetensors file: the hub id of the same weights. The converter writes it."""
VOCABULARY_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""The files of a vocabulary, in either of two forms."""

_RELEASED = tuple(hub_id for hub_id, _, _ in CLIP_MODELS.values())
_TOWERS = ("vision_model.", "text_model.")
_JOINT = (*_TOWERS, "visual_projection.", "text_projection.")


def find_vocabulary(folder: Path) -> tuple[Path, ...]:
    """Return the files of the vocabulary in a folder; none if no form of it is complete."""
    for names in VOCABULARY_FILES:
        paths = tuple(folder / name for name in names)
        if all(path.is_file() for path in paths):
            return paths
    return ()


def read_config(weights: str | Path) -> Any:
    """Return the ``CLIPConfig`` of a folder or a hub id.

    Raises:
        ValueError: if the weights are neither, are incomplete, or are not CLIP.
    """
    _, config = pretrained.read_config(weights, {"clip": "CLIPConfig"}, family="CLIP", example=CLIP_B32)
    return config


def read_model(weights: str | Path, *, joint: bool) -> Any:
    """Return the complete ``CLIPModel`` in float32.

    Args:
        weights: the folder or the hub id.
        joint: whether the projections to the joint space are needed too.

    Raises:
        ValueError: if a tensor that is needed is missing in the file or has another shape.
    """
    return pretrained.read_model(weights, "CLIPModel", family="CLIP", needed=_JOINT if joint else _TOWERS)


def read_tokenizer(weights: str | Path, vocabulary_size: int, *, source: str | None = None) -> Any:
    """Return the tokenizer of the weights, or None for a folder without a vocabulary.

    Args:
        weights: the folder or the hub id.
        vocabulary_size: number of tokens that the text tower knows.
        source: name of the vocabulary in messages; ``weights`` unless given.

    Raises:
        ValueError: if the vocabulary does not fit the weights.
    """
    folder = Path(weights)
    if folder.is_dir() and not find_vocabulary(folder):
        return None  # transformers would invent a vocabulary of three words
    with pretrained.reading(weights, family="CLIP") as transformers:
        offline = pretrained.is_unreachable(weights)
        tokenizer = transformers.CLIPTokenizer.from_pretrained(weights, local_files_only=offline)
    ids = tokenizer("a", verbose=False)["input_ids"]
    if len(tokenizer) > vocabulary_size or ids[0] != tokenizer.bos_token_id or ids[-1] != tokenizer.eos_token_id:
        raise ValueError(
            f"the vocabulary of {source or weights} does not fit the weights: it has {len(tokenizer)} tokens; expected "
            f"at most {vocabulary_size}, and a start and an end token around each sentence"
        )
    return tokenizer


def identify_weights(weights: str | Path, model: nn.Module, *, joint: bool = False) -> str:
    """Return the name of the weights for a feature spec: a hub id where they are one of OpenAI's models, or a digest.

    The weights are one of OpenAI's models if they were loaded by its hub id, if the folder holds a copy of the file on
    the hub, or if the converter made the folder from OpenAI's file. All other weights, such as a fine-tuned model or
    a copy that was saved again, get the digest of their values.

    Args:
        weights: the hub id or the folder.
        model: the complete model in float32.
        joint: whether the features are joint embeddings, so that a digest covers the projections too.
    """
    folder = Path(weights)
    if not folder.is_dir():
        return str(weights) if str(weights) in _RELEASED else towers_digest(model, joint)
    file = next((folder / name for name in pretrained.WEIGHTS_FILES if (folder / name).is_file()), None)
    if file is None:
        return towers_digest(model, joint)
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, "pt") as opened:
            hub_id = (opened.metadata() or {}).get(SAME_WEIGHTS_AS)
        if hub_id in _RELEASED:
            return str(hub_id)
    return HUB_FILES.get(digest_of(file)) or towers_digest(model, joint)


def towers_digest(model: nn.Module, joint: bool) -> str:
    """Return 16 hex digits of the two towers; with ``joint``, of the projections behind them too."""
    names = _JOINT if joint else _TOWERS
    return weights_digest({name: t for name, t in model.state_dict().items() if name.startswith(names)})
