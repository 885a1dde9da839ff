"""Read a CLIP in Hugging Face's layout with transformers, from a folder or from the hub.

The classes of transformers are ``Any`` here: its types do not describe the parts of the towers.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sidelight.backbones.clip.released import CLIP_B32, CLIP_MODELS, HUB_FILES
from sidelight.backbones.common import weights_digest
from sidelight.io.storage import hub_answers

SAME_WEIGHTS_AS = "same_weights_as"
"""Metadata of a safetensors file: the hub id of the same weights. The converter writes it."""
VOCABULARY_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""The files of a vocabulary, in either of two forms."""

_RELEASED = tuple(hub_id for hub_id, _, _ in CLIP_MODELS.values())
_WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
_INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_TOWERS = ("vision_model.", "text_model.")


def require_transformers() -> Any:
    """Return the package transformers, before anything is downloaded for it.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise ValueError('the backbone clip needs transformers: pip install "sidelight[backbones]"') from None
    return transformers


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
    folder = Path(weights)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"{weights} is not a folder in Hugging Face's layout: config.json is missing")
        if not any((folder / name).is_file() for name in _WEIGHTS_FILES + _INDEX_FILES):
            raise ValueError(f"{weights} holds no weights: expected {' or '.join(_WEIGHTS_FILES)}")
    elif not _is_hub_id(str(weights)):
        raise ValueError(
            f"weights {str(weights)!r} are neither a folder nor a hub id such as {CLIP_B32}; if this is the digest in "
            "a feature spec, give the folder of those weights (--backbone-weights FOLDER)"
        )
    with _reading(weights) as transformers:
        values, _ = transformers.CLIPConfig.get_config_dict(weights, local_files_only=_is_offline(weights))
    if (model_type := values.get("model_type")) != "clip":
        raise ValueError(f"{weights} is not CLIP: its config.json says model_type {model_type!r}, expected 'clip'")
    with _reading(weights) as transformers:
        return transformers.CLIPConfig.from_dict(values)


def read_model(weights: str | Path) -> Any:
    """Return the complete ``CLIPModel`` in float32.

    Raises:
        ValueError: if a tensor of a tower is missing in the file or has another shape.
    """
    with _reading(weights) as transformers:
        model, report = transformers.CLIPModel.from_pretrained(
            weights,
            dtype=torch.float32,
            attn_implementation="sdpa",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            local_files_only=_is_offline(weights),
        )
    names = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    missing = sorted(name for name in names if name.startswith(_TOWERS))
    if missing:
        raise ValueError(
            f"{weights} is incomplete: {len(missing)} tensors are missing or of another shape, such as {missing[0]}"
        )
    return model


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
    with _reading(weights) as transformers:
        tokenizer = transformers.CLIPTokenizer.from_pretrained(weights, local_files_only=_is_offline(weights))
    ids = tokenizer("a", verbose=False)["input_ids"]
    if len(tokenizer) > vocabulary_size or ids[0] != tokenizer.bos_token_id or ids[-1] != tokenizer.eos_token_id:
        raise ValueError(
            f"the vocabulary of {source or weights} does not fit the weights: it has {len(tokenizer)} tokens; expected "
            f"at most {vocabulary_size}, and a start and an end token around each sentence"
        )
    return tokenizer


def identify_weights(weights: str | Path, model: nn.Module) -> str:
    """Return the name of the weights for a feature spec: a hub id where they are one of OpenAI's models, or a digest.

    The weights are one of OpenAI's models if they were loaded by its hub id, if the folder holds a copy of the file on
    the hub, or if the converter made the folder from OpenAI's file. All other weights, such as a fine-tuned model or
    a copy that was saved again, get the digest of their values.

    Args:
        weights: the hub id or the folder.
        model: the complete model in float32.
    """
    folder = Path(weights)
    if not folder.is_dir():
        return str(weights) if str(weights) in _RELEASED else towers_digest(model)
    file = next((folder / name for name in _WEIGHTS_FILES if (folder / name).is_file()), None)
    if file is None:
        return towers_digest(model)
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, "pt") as opened:
            hub_id = (opened.metadata() or {}).get(SAME_WEIGHTS_AS)
        if hub_id in _RELEASED:
            return str(hub_id)
    with open(file, "rb") as content:
        digest = hashlib.sha256()
        while block := content.read(1 << 20):
            digest.update(block)
    return HUB_FILES.get(digest.hexdigest()) or towers_digest(model)


def towers_digest(model: nn.Module) -> str:
    """Return 16 hex digits of the two towers. The projections and the temperature behind them change no feature."""
    return weights_digest({name: t for name, t in model.state_dict().items() if name.startswith(_TOWERS)})


def _is_offline(weights: str | Path) -> bool:
    """Check whether the weights are on the hub and the hub does not answer."""
    return not Path(weights).is_dir() and not hub_answers()


def _is_hub_id(name: str) -> bool:
    """Check for the form OWNER/NAME. A path has more parts, or begins with a dot, a slash or a tilde."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")


@contextlib.contextmanager
def _reading(weights: str | Path) -> Iterator[Any]:
    """Yield transformers without its reports on the terminal, and turn its errors into one sentence."""
    transformers = require_transformers()
    logging: Any = transformers.utils.logging
    verbosity, progress_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if Path(weights).is_dir():
        logging.disable_progress_bar()  # a download keeps its progress bar
    try:
        yield transformers
    except Exception as error:  # errors of transformers, of the hub's client, and of three file formats
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        if _is_offline(weights):
            raise ValueError(
                f"{weights} is not on this machine, and the hub cannot be reached; check the connection, or give a "
                "folder with the weights"
            ) from None
        raise ValueError(f"{weights} cannot be read as CLIP ({reason}); check the folder or the hub id") from None
    finally:
        logging.set_verbosity(verbosity)
        if progress_bars:
            logging.enable_progress_bar()
