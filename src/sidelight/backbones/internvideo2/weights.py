"""The folder of InternVideo2's weights that sidelight writes and reads: safetensors, configuration, vocabulary.

``config.json`` holds the digest of the weights, the configuration and the vocabulary. The digest reads every byte
(seconds for the 1B model), so it is computed once, at the conversion. A second digest, of a few values of each tensor,
is compared each time the weights are loaded.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sidelight.backbones.common import weights_digest
from sidelight.backbones.conversion import new_weights_folder, shapes_of
from sidelight.backbones.internvideo2.config import InternVideo2Config
from sidelight.backbones.internvideo2.model import InternVideo2
from sidelight.backbones.internvideo2.wordpiece import WordPiece
from sidelight.io.files import write_text
from sidelight.io.tensors import check_shapes, shapes_only

_FILES = ("config.json", "model.safetensors", "vocab.txt")
_CONVERT_AGAIN = (
    "convert the published checkpoint again, into a new folder: sidelight convert internvideo2 FILE.pt --out DIR"
)
_SAMPLES = 64
"""Values of each tensor in the second digest."""


def save_weights(out: Path, tensors: Mapping[str, Tensor], config: InternVideo2Config, tokenizer: WordPiece) -> None:
    """Write a folder that :func:`load_weights` reads; the folder appears complete or not at all.

    Args:
        out: the new folder.
        tensors: parameters of :class:`InternVideo2`; they keep their types.
        config: sizes.
        tokenizer: the tokenizer with the vocabulary of the text tower.
    """
    sources = _as_bytes(config, tokenizer)
    values = {
        "digest": weights_digest({**tensors, **sources}),
        "sample": weights_digest({name: _sample(tensor) for name, tensor in tensors.items()} | sources),
        "config": dataclasses.asdict(config),
    }
    with new_weights_folder(out, tensors, values) as folder:
        write_text(folder / "vocab.txt", "\n".join(tokenizer.tokens) + "\n")


def load_weights(weights: str | Path, *, dtype: torch.dtype = torch.float32) -> tuple[InternVideo2, WordPiece, str]:
    """Read a folder that :func:`save_weights` wrote.

    The tensors are read one by one into a model without storage, so that memory holds the weights once.

    Args:
        weights: the folder, or one of its files.
        dtype: type of the loaded weights.

    Returns:
        The model, its tokenizer, and the digest of weights, configuration and vocabulary.

    Raises:
        ValueError: if a file is missing, or the weights are not the ones that ``config.json`` describes.
    """
    from safetensors import SafetensorError, safe_open

    folder = _folder_of(weights)
    if missing := [name for name in _FILES if not (folder / name).is_file()]:
        raise ValueError(
            f"{folder} is no InternVideo2 backbone: {', '.join(missing)} missing{_name_kind(folder)}; convert a "
            "published checkpoint: sidelight convert internvideo2 FILE.pt --out DIR"
        )
    digest, sample_digest, config = _read_config(folder)
    tokenizer = WordPiece.read(folder / "vocab.txt")
    with shapes_only():
        model = InternVideo2(config)
    shapes = shapes_of(model.state_dict())
    tensors, samples = {}, {}
    try:
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            # The file is not a dict and cannot be iterated.
            file_shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            check_shapes(file_shapes, shapes, folder, what="the model of its config.json", advice=_CONVERT_AGAIN)
            for name in shapes:
                tensor = file.get_tensor(name)
                samples[name] = _sample(tensor)
                tensors[name] = tensor.to(dtype)
    except SafetensorError as error:
        raise ValueError(f"cannot read {folder / 'model.safetensors'}: {error}") from None
    if weights_digest(samples | _as_bytes(config, tokenizer)) != sample_digest:
        raise ValueError(
            f"the weights, the config.json or the vocab.txt in {folder} have changed since they were written "
            f"together; {_CONVERT_AGAIN}"
        )
    model.load_state_dict(tensors, assign=True)
    return model.eval().requires_grad_(False), tokenizer, digest


def describe_weights(folder: str | Path) -> str:
    """Describe in one line the model of a folder that :func:`save_weights` wrote."""
    digest, _, config = _read_config(Path(folder))
    video, text = config.video, config.text
    with shapes_only():
        count = sum(p.numel() for p in InternVideo2(config).parameters())
    return (
        f"{video.depth} blocks of width {video.width} and {video.heads} heads, {video.frames} frames of "
        f"{video.resolution} x {video.resolution}, pool to {video.pool_width}; {text.depth} layers of text of width "
        f"{text.width}; {count:,} parameters, digest {digest}"
    )


def _read_config(folder: Path) -> tuple[str, str, InternVideo2Config]:
    """Return the two digests and the sizes in ``config.json``."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        digest, sample_digest, config = (values[name] for name in ("digest", "sample", "config"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not as convert_internvideo2 writes it: {error}; {_CONVERT_AGAIN}") from None
    return str(digest), str(sample_digest), InternVideo2Config.from_dict(config)


def _folder_of(weights: str | Path) -> Path:
    """Return the folder of the weights, also where ``weights`` is one of its files."""
    path = Path(weights)
    if path.suffix in (".pt", ".pth", ".bin"):
        raise ValueError(
            f"{path} is a published checkpoint; convert it once: sidelight convert internvideo2 {path} --out DIR"
        )
    return path.parent if path.name in _FILES else path


def _name_kind(folder: Path) -> str:
    """Name the model of a folder for a message, where ``config.json`` is of transformers."""
    try:
        model_type = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f" (it holds weights of {model_type})"


def _as_bytes(config: InternVideo2Config, tokenizer: WordPiece) -> dict[str, Tensor]:
    """Return the configuration and the vocabulary as tensors of bytes, for the digests."""
    texts = {
        "config.json": json.dumps(dataclasses.asdict(config), sort_keys=True),
        "vocab.txt": "\n".join(tokenizer.tokens),
    }
    return {name: torch.frombuffer(bytearray(t.encode()), dtype=torch.uint8) for name, t in texts.items()}


def _sample(tensor: Tensor) -> Tensor:
    """Return a few evenly spaced values: training changes all values, and reading a few costs nothing."""
    return tensor.flatten()[:: max(1, tensor.numel() // _SAMPLES)]
