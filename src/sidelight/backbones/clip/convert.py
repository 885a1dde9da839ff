"""Turn OpenAI's published CLIP weights into a folder in Hugging Face's layout."""

from __future__ import annotations

import hashlib
import io
import math
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sidelight.backbones.clip.loading import SAME_WEIGHTS_AS, find_vocabulary, read_tokenizer
from sidelight.backbones.clip.released import CLIP_B32, OPENAI_FILES
from sidelight.backbones.conversion import (
    DOWNLOAD_AGAIN,
    count_blocks,
    new_weights_folder,
    read_state_dict,
    shapes_of,
    sizes_of,
)
from sidelight.io.files import read_json, require_new_folder
from sidelight.io.tensors import check_shapes, check_values, existing_file

# OpenAI's name -> Hugging Face's name.
_NAMES = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
}
_NAMES_IN_BLOCKS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_TOWERS = {"visual.transformer": "vision_model", "transformer": "text_model"}
_TRANSPOSED = ("text_projection", "visual.proj")
"""Matrices that multiply from the right; a linear layer stores the transpose."""
_SETTINGS = ("input_resolution", "context_length", "vocab_size")
"""Entries of OpenAI's archives that are not tensors of the model."""
_HEAD_WIDTH = 64
_EPSILON = 1e-5


def convert_clip(
    path: str | Path, out: str | Path, *, heads: tuple[int, int] | None = None, vocabulary: str | Path | None = None
) -> Path:
    """Turn OpenAI's weights of a vision transformer into a folder in Hugging Face's layout.

    Reads a state dict with OpenAI's names, from safetensors or from ``torch.save`` (tensors only; no code in the file
    is run). OpenAI's own files are TorchScript archives, which hold code. Such an archive is opened only if its SHA-256
    is in :data:`~sidelight.backbones.clip.released.OPENAI_FILES`; the folder then remembers the model's hub id.

    The values keep their types.

    Args:
        path: the file.
        out: new folder for ``model.safetensors``, ``config.json`` and the vocabulary; it appears complete or not at
            all.
        heads: attention heads of the vision and of the text tower, which no tensor tells; unless given, one head per
            64 channels, as in all of OpenAI's models.
        vocabulary: folder with ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``, of the same model. Without
            these files the weights encode no sentences; they can be added to ``out`` later.

    Returns:
        The folder.

    Raises:
        ValueError: if the file cannot be read, holds more than tensors, is not a vision transformer of CLIP, or has
            tensors of other shapes or with non-finite numbers; if the vocabulary is of another model; if ``out``
            exists and is not empty.
    """
    path, out = Path(path), Path(out)
    require_new_folder(out)
    existing_file(path, expected="a state dict of CLIP with OpenAI's names (.pt or .safetensors)")
    vocabulary_files = () if vocabulary is None else find_vocabulary(Path(vocabulary))
    if vocabulary is not None and not vocabulary_files:
        raise ValueError(
            f"{vocabulary} holds no vocabulary: expected a folder with tokenizer.json, or vocab.json and merges.txt, "
            f"such as the files of {CLIP_B32} on the hub"
        )
    tensors, hub_id = _read_tensors(path)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in _SETTINGS}
    if (scale := tensors.get("logit_scale")) is not None and scale.shape == (1,):
        tensors["logit_scale"] = scale.reshape(())  # some copies store a list of one number
    shapes = shapes_of(tensors)
    try:
        config = config_of(shapes, heads)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    check_shapes(shapes, _expected_shapes(config), path, what="a CLIP with OpenAI's names", advice=DOWNLOAD_AGAIN)
    check_values(tensors, path)
    metadata = {SAME_WEIGHTS_AS: hub_id} if hub_id else {}
    with new_weights_folder(out, _rename(tensors, config), config, **metadata) as folder:
        for file in vocabulary_files:
            shutil.copyfile(file, folder / file.name)
        if vocabulary_files:
            read_tokenizer(folder, config["text_config"]["vocab_size"], source=str(vocabulary))
    return out


def describe_weights(folder: str | Path) -> str:
    """Describe in one line the model of a folder that :func:`convert_clip` wrote."""
    config = read_json(Path(folder) / "config.json")
    vision, text = config["vision_config"], config["text_config"]
    side = vision["image_size"]
    return (
        f"{vision['num_hidden_layers']} blocks of width {vision['hidden_size']} and {vision['num_attention_heads']} "
        f"heads, {_tokens_per_frame(vision)} tokens of a {side} x {side} frame; {text['num_hidden_layers']} layers of "
        f"text of width {text['hidden_size']}, {text['vocab_size']:,} words"
    )


def config_of(shapes: Mapping[str, tuple[int, ...]], heads: tuple[int, int] | None = None) -> dict[str, Any]:
    """Return the ``config.json`` of a model, with the sizes that the shapes of OpenAI's tensors tell.

    Raises:
        ValueError: if a tensor that tells a size is missing, or the numbers of heads do not fit.
    """
    if "visual.layer1.0.conv1.weight" in shapes:
        raise ValueError("this is a ResNet of CLIP, which has no levels of tokens; convert a ViT, such as ViT-B-32")
    width, _, _, patch = sizes_of(shapes, "visual.conv1.weight", 4)
    grid = math.isqrt(sizes_of(shapes, "visual.positional_embedding", 2)[0] - 1)
    max_tokens, text_width = sizes_of(shapes, "positional_embedding", 2)
    vocabulary_size, _ = sizes_of(shapes, "token_embedding.weight", 2)
    _, joint_width = sizes_of(shapes, "text_projection", 2)
    if heads is None:
        if width % _HEAD_WIDTH or text_width % _HEAD_WIDTH:
            raise ValueError(
                f"the widths {width} and {text_width} are not multiples of {_HEAD_WIDTH}, as in OpenAI's models: give "
                "the attention heads of both towers (--heads and --text-heads)"
            )
        heads = (width // _HEAD_WIDTH, text_width // _HEAD_WIDTH)
    if min(heads) < 1 or width % heads[0] or text_width % heads[1]:
        raise ValueError(f"heads {heads} do not divide the widths {width} and {text_width}; give other numbers")
    both = {"hidden_act": "quick_gelu", "layer_norm_eps": _EPSILON, "projection_dim": joint_width}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": joint_width,
        "vision_config": both
        | {
            "model_type": "clip_vision_model",
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": count_blocks(shapes, "visual.transformer.resblocks"),
            "num_attention_heads": heads[0],
            "image_size": grid * patch,
            "patch_size": patch,
        },
        "text_config": both
        | {
            "model_type": "clip_text_model",
            "hidden_size": text_width,
            "intermediate_size": 4 * text_width,
            "num_hidden_layers": count_blocks(shapes, "transformer.resblocks"),
            "num_attention_heads": heads[1],
            "max_position_embeddings": max_tokens,
            "vocab_size": vocabulary_size,
            # Start and end are the last two tokens; the padding is the end token, as in Hugging Face's files.
            "bos_token_id": vocabulary_size - 2,
            "eos_token_id": vocabulary_size - 1,
            "pad_token_id": vocabulary_size - 1,
        },
    }


def _tokens_per_frame(vision: Mapping[str, Any]) -> int:
    return 1 + int(vision["image_size"] // vision["patch_size"]) ** 2


def _expected_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return OpenAI's name and the shape of every tensor of a model with this ``config.json``."""
    vision, text, joint_width = config["vision_config"], config["text_config"], config["projection_dim"]
    width, text_width, patch = vision["hidden_size"], text["hidden_size"], vision["patch_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "token_embedding.weight": (text["vocab_size"], text_width),
        "positional_embedding": (text["max_position_embeddings"], text_width),
        "text_projection": (text_width, joint_width),
        "visual.class_embedding": (width,),
        "visual.conv1.weight": (width, 3, patch, patch),
        "visual.positional_embedding": (_tokens_per_frame(vision), width),
        "visual.proj": (width, joint_width),
    }
    norms = [("ln_final", text_width), ("visual.ln_pre", width), ("visual.ln_post", width)]
    for tower, tower_config in (("visual.transformer", vision), ("transformer", text)):
        size = tower_config["hidden_size"]
        for i in range(tower_config["num_hidden_layers"]):
            block = f"{tower}.resblocks.{i}"
            norms += [(f"{block}.ln_1", size), (f"{block}.ln_2", size)]
            matrices = {"attn.in_proj_": (3 * size, size), "attn.out_proj.": (size, size)}
            matrices |= {"mlp.c_fc.": (4 * size, size), "mlp.c_proj.": (size, 4 * size)}
            for name, shape in matrices.items():
                shapes |= {f"{block}.{name}weight": shape, f"{block}.{name}bias": shape[:1]}
    return shapes | {f"{name}.{kind}": (size,) for name, size in norms for kind in ("weight", "bias")}


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Return the tensors of a file, and the hub id of the same weights if OpenAI released the file."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(content), None
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read as safetensors ({error}); {DOWNLOAD_AGAIN}") from None
    if not _is_torchscript(content):
        expected = "a state dict, names and tensors as torch.save writes one"
        return read_state_dict(content, path, wrappers=["state_dict"], expected=expected), None
    digest = hashlib.sha256(content).hexdigest()
    if digest not in OPENAI_FILES:
        raise ValueError(
            f"{path} is a TorchScript archive, which is code, and OpenAI did not release it (its SHA-256 is {digest}); "
            "if you trust it, save its tensors yourself by "
            f"torch.save(torch.jit.load({str(path)!r}, map_location='cpu').state_dict(), 'state.pt') and convert "
            "state.pt"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.load is deprecated
        return dict(torch.jit.load(io.BytesIO(content), map_location="cpu").state_dict()), OPENAI_FILES[digest]


def _is_torchscript(content: bytes) -> bool:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return any(name.endswith("/constants.pkl") or "/code/" in name for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _rename(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return OpenAI's tensors by Hugging Face's names, with queries, keys and values in separate tensors."""
    renamed = {ours: tensors[name].T if name in _TRANSPOSED else tensors[name] for name, ours in _NAMES.items()}
    for openai_tower, tower in _TOWERS.items():
        depth = config["vision_config" if tower == "vision_model" else "text_config"]["num_hidden_layers"]
        for i in range(depth):
            block, layer = f"{openai_tower}.resblocks.{i}", f"{tower}.encoder.layers.{i}"
            for kind in ("weight", "bias"):
                for name, new_name in _NAMES_IN_BLOCKS.items():
                    renamed[f"{layer}.{new_name}.{kind}"] = tensors[f"{block}.{name}.{kind}"]
                parts = tensors[f"{block}.attn.in_proj_{kind}"].chunk(3)
                for letter, part in zip("qkv", parts, strict=True):
                    renamed[f"{layer}.self_attn.{letter}_proj.{kind}"] = part
    return renamed
