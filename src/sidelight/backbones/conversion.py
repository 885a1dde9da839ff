"""Pieces that the converters share: reading a published state dict, its sizes, and writing a folder of weights."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sidelight.io.files import replacing_folder, write_text
from sidelight.io.tensors import named_tensors, read_tensors, write_tensors

DOWNLOAD_AGAIN = "download it again, or give another file"


def read_state_dict(source: bytes | Path, file: Path, *, wrappers: Iterable[str], expected: str) -> dict[str, Tensor]:
    """Return the names and tensors of a PyTorch checkpoint.

    Args:
        source: content of the file; or its path, and then the file is mapped into memory where its form allows.
        file: the path for messages.
        wrappers: keys under which the state dict may stand; the first one present counts.
        expected: what the file should hold, for the message.

    Raises:
        ValueError: if the file cannot be read, or holds anything but names and tensors.
    """
    content = read_tensors(source, file)
    if isinstance(content, Mapping):
        content = next((content[key] for key in wrappers if isinstance(content.get(key), Mapping)), content)
    return named_tensors(content, file, expected=expected)


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def sizes_of(shapes: Mapping[str, tuple[int, ...]], name: str, dimensions: int) -> tuple[int, ...]:
    """Return the shape of the tensor ``name``, from which a converter reads sizes of the model.

    Raises:
        ValueError: if the tensor is missing, has another number of dimensions, or is empty.
    """
    if name not in shapes:
        raise ValueError(f"it lacks {name}, so it is another model or a part of one; {DOWNLOAD_AGAIN}")
    shape = tuple(shapes[name])
    if len(shape) != dimensions or 0 in shape:
        raise ValueError(f"{name} has the shape {shape}, expected {dimensions} dimensions; {DOWNLOAD_AGAIN}")
    return shape


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """Count the blocks of which ``names`` holds parameters, such as PREFIX.0.weight.

    Raises:
        ValueError: if there is none.
    """
    count = len({name.removeprefix(prefix).split(".")[1] for name in names if name.startswith(f"{prefix}.")})
    if not count:
        raise ValueError(f"it lacks {prefix}.0, so it is another model or a part of one; {DOWNLOAD_AGAIN}")
    return count


@contextlib.contextmanager
def new_weights_folder(
    out: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], **metadata: str
) -> Iterator[Path]:
    """Write ``model.safetensors`` and ``config.json``, and yield their folder so that the caller can add files.

    The folder gets the name ``out`` when the block ends well, and is removed when it does not.
    """
    with replacing_folder(out) as folder:
        folder.mkdir()
        write_tensors(tensors, folder / "model.safetensors", {"format": "pt", **metadata})
        write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
        yield folder
