"""Read a model in Hugging Face's layout with transformers, from a folder or from the hub.

The classes of transformers are ``Any`` here: its types do not describe the parts of the towers.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from sidelight.core.messages import first_line
from sidelight.io.storage import hub_answers

WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
"""The file of the weights, in either of two forms."""

_LOGGER = logging.getLogger(__name__)
_INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_VOCABULARY_FILES = ("tokenizer.json", "spiece.model", "vocab.txt")


def read_config(weights: str | Path, classes: Mapping[str, str], *, family: str, example: str) -> tuple[str, Any]:
    """Return the model type and the configuration of a folder or a hub id.

    Args:
        weights: the folder or the hub id.
        classes: model type in ``config.json`` -> name of the configuration's class in transformers.
        family: the models' name in messages.
        example: a hub id, for messages.

    Raises:
        ValueError: if the weights are neither, are incomplete, or are of another family.
    """
    folder = Path(weights)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"{weights} is not a folder in Hugging Face's layout: config.json is missing")
        if not any((folder / name).is_file() for name in WEIGHTS_FILES + _INDEX_FILES):
            raise ValueError(f"{weights} holds no weights: expected {' or '.join(WEIGHTS_FILES)}")
    else:
        require_hub_id(weights, example=example)
        _announce(str(weights), family)
    with reading(weights, family=family) as transformers:
        config_class = _class_of(transformers, next(iter(classes.values())))
        values, _ = config_class.get_config_dict(weights, local_files_only=is_unreachable(weights))
    model_type = values.get("model_type")
    if model_type not in classes:
        expected = " or ".join(map(repr, classes))
        raise ValueError(
            f"{weights} is not {family}: its config.json says model_type {model_type!r}, expected {expected}"
        )
    with reading(weights, family=family) as transformers:
        return model_type, _class_of(transformers, classes[model_type]).from_dict(values)


def _announce(weights: str, family: str) -> None:
    """Say on stderr that weights come from the hub, unless they are in the cache of the hub's client."""
    from huggingface_hub import constants, try_to_load_from_cache

    if try_to_load_from_cache(weights, "config.json") is None and not is_unreachable(weights):
        _LOGGER.warning("%s (%s) is downloaded from the hub, once, into %s", weights, family, constants.HF_HUB_CACHE)


def read_model(
    weights: str | Path, model_class: str, *, family: str, needed: tuple[str, ...] = ("",), attention: str = "sdpa"
) -> Any:
    """Return the complete model in float32.

    Args:
        weights: the folder or the hub id.
        model_class: name of the model's class in transformers.
        family: the models' name in messages.
        needed: beginnings of the names of the tensors that must be there; all tensors unless given.
        attention: the implementation of attention in transformers.

    Raises:
        ValueError: if a tensor that is needed is missing in the file or has another shape.
    """
    with reading(weights, family=family) as transformers:
        model, report = _class_of(transformers, model_class).from_pretrained(
            weights,
            dtype=torch.float32,
            attn_implementation=attention,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            local_files_only=is_unreachable(weights),
        )
    names = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    missing = sorted(name for name in names if name.startswith(needed))
    if missing:
        raise ValueError(
            f"{weights} is incomplete: {len(missing)} tensors are missing or of another shape, such as {missing[0]}"
        )
    return model


def read_vocabulary(weights: str | Path, tokenizer_class: str, *, family: str) -> Any:
    """Return the vocabulary as a ``tokenizers.Tokenizer`` that neither pads nor cuts, or None for a folder without one.

    Args:
        weights: the folder or the hub id.
        tokenizer_class: name of the class in transformers that reads a vocabulary without ``tokenizer.json``.
        family: the models' name in messages.
    """
    folder = Path(weights)
    if folder.is_dir() and not any((folder / name).is_file() for name in _VOCABULARY_FILES):
        return None
    offline = is_unreachable(weights)
    with reading(weights, family=family) as transformers:
        from tokenizers import Tokenizer
        from transformers.utils.hub import cached_file

        file = cached_file(
            str(weights), "tokenizer.json", local_files_only=offline, _raise_exceptions_for_missing_entries=False
        )
        if file is not None:
            vocabulary: Any = Tokenizer.from_file(file)
        else:
            reader = _class_of(transformers, tokenizer_class)
            vocabulary = reader.from_pretrained(weights, local_files_only=offline).backend_tokenizer
    vocabulary.no_padding()
    vocabulary.no_truncation()
    return vocabulary


def is_unreachable(weights: str | Path) -> bool:
    """Check whether the weights are on the hub and the hub does not answer, or must not be asked."""
    return not Path(weights).is_dir() and not hub_answers()


def require_hub_id(weights: str | Path, *, example: str) -> None:
    """Check for the form OWNER/NAME. A path has more parts, or begins with a dot, a slash or a tilde.

    Raises:
        ValueError: if the weights have another form.
    """
    name = str(weights)
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise ValueError(
            f"weights {name!r} are neither a folder nor a hub id such as {example}; if this is the digest in "
            "a feature spec, give the folder of those weights (--backbone-weights FOLDER)"
        )


def import_transformers() -> Any:
    """Return the package transformers.

    Raises:
        ValueError: if it cannot be imported.
    """
    try:
        import transformers
    except ImportError as error:  # missing, or another package has a version that it refuses
        raise ValueError(
            f"transformers cannot be imported ({first_line(error)}): pip install -U transformers"
        ) from None
    return transformers


class _OldTransformersError(Exception):
    """The installed transformers lacks a class."""


def _class_of(transformers: Any, name: str) -> Any:
    """Return a class of transformers."""
    wanted = getattr(transformers, name, None)
    if wanted is None:
        raise _OldTransformersError(f"transformers {transformers.__version__} has no {name}")
    return wanted


@contextlib.contextmanager
def reading(weights: str | Path, *, family: str) -> Iterator[Any]:
    """Yield transformers without its reports on the terminal, and turn its errors into one sentence."""
    transformers = import_transformers()
    logging: Any = transformers.utils.logging
    verbosity, progress_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if Path(weights).is_dir():
        logging.disable_progress_bar()  # a download keeps its progress bar
    try:
        yield transformers
    except Exception as error:  # errors of transformers, of the hub's client, and of three file formats
        reason = first_line(error)
        if isinstance(error, _OldTransformersError):
            raise ValueError(f"{family} needs a newer transformers ({reason}): pip install -U transformers") from None
        if isinstance(error, ImportError):  # transformers imports torchvision wherever it is installed
            raise ValueError(
                f"transformers cannot be used ({reason}); if torchvision is installed, it must be built for the "
                "installed torch: install both again from one index, or remove torchvision"
            ) from None
        if is_unreachable(weights):
            raise ValueError(
                f"{weights} is not on this machine, and the hub cannot be reached; check the connection, or give a "
                "folder with the weights"
            ) from None
        raise ValueError(f"{weights} cannot be read as {family} ({reason}); check the folder or the hub id") from None
    finally:
        logging.set_verbosity(verbosity)
        if progress_bars:
            logging.enable_progress_bar()
