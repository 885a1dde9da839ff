"""Turn a published InternVideo2 checkpoint into a folder of safetensors.

A published ``.pt`` is a pickle. It is read once, by PyTorch's reader that runs no code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from sidelight.backbones.conversion import DOWNLOAD_AGAIN, count_blocks, read_state_dict, shapes_of, sizes_of
from sidelight.backbones.internvideo2 import bert
from sidelight.backbones.internvideo2.config import SIZES, BertConfig, InternVideo2Config, VideoConfig
from sidelight.backbones.internvideo2.model import InternVideo2
from sidelight.backbones.internvideo2.weights import save_weights
from sidelight.backbones.internvideo2.wordpiece import WordPiece
from sidelight.io.files import require_new_folder
from sidelight.io.tensors import check_shapes, check_values, existing_file, shapes_only

_VOCABULARY = "vocab.txt of bert-large-uncased (on the hub: google-bert/bert-large-uncased)"
# Parameters that features do not need: the heads and tables of the distillation, the language model head, the head
# that matches video and text, and the table 0, 1, 2, ...
_UNUSED = re.compile(
    r"vision_encoder\.(clip_pos_embed|clip_img_pos_embed|clip_decoder\..*|final_clip_decoder\..*)"
    r"|text_encoder\.cls\..*|text_encoder\.bert\.embeddings\.position_ids|itm_head\..*"
)
_TEXT = "text_encoder.bert."
_TEXT_LAYER = re.compile(r"text_encoder\.bert\.encoder\.layer\.(\d+)\.(.*)")


def convert_internvideo2(
    checkpoint: str | Path,
    out: str | Path,
    *,
    vocabulary: str | Path | None = None,
    config: InternVideo2Config | None = None,
    heads: int | None = None,
    pool_heads: int | None = None,
    text_heads: int | None = None,
    activation: Literal["gelu_tanh", "gelu"] | None = None,
) -> Path:
    """Turn a published checkpoint into a folder of safetensors that the backbone loads.

    The weights keep their types.

    Args:
        checkpoint: a file such as ``InternVideo2-stage2_1b-224p-f4.pt``: names to tensors, bare or inside ``module`` or
            ``model``.
        out: the new folder; it appears complete or not at all.
        vocabulary: the ``vocab.txt`` of bert-large-uncased, which the checkpoint does not hold; unless given, the
            ``vocab.txt`` beside the checkpoint.
        config: the sizes; unless given, :func:`config_of` reads them off the shapes with the next four arguments.
        heads: attention heads of the video tower.
        pool_heads: attention heads of its pool.
        text_heads: attention heads of the text tower.
        activation: ``gelu`` for weights that were trained without the fused kernel.

    Returns:
        The folder.

    Raises:
        ValueError: if a file cannot be read; if parameters are missing, unknown, of another shape or not finite; if
            ``out`` exists and is not empty.
    """
    path, folder = Path(checkpoint), Path(out)
    require_new_folder(folder)
    existing_file(path, expected="a published checkpoint of InternVideo2 (.pt)")
    vocabulary_file = _find_vocabulary(path, vocabulary)
    tokenizer = WordPiece.read(vocabulary_file)
    # The path, not the content: the file is mapped into memory, so the 6B model needs its size only once.
    expected = "names and tensors, bare or inside 'module' or 'model'"
    published = read_state_dict(path, path, wrappers=["module", "model"], expected=expected)
    if config is None:
        try:
            config = config_of(shapes_of(published), heads, pool_heads, text_heads, activation)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    tensors = from_published(published, config, source=path)
    if len(tokenizer) != config.text.vocabulary:
        raise ValueError(
            f"{vocabulary_file} has {len(tokenizer)} tokens, the text tower {config.text.vocabulary}; "
            f"give the {_VOCABULARY}"
        )
    check_values(tensors, path)
    save_weights(folder, tensors, config, tokenizer)
    return folder


def from_published(
    published: Mapping[str, Tensor], config: InternVideo2Config, *, source: object = "the checkpoint"
) -> dict[str, Tensor]:
    """Return the parameters of :class:`~sidelight.backbones.internvideo2.model.InternVideo2` from a published file.

    Text layers that fuse text with video, and heads that features do not need, are left out.

    Args:
        published: published names to tensors.
        config: sizes.
        source: name of the file in messages.

    Raises:
        ValueError: if a parameter is missing, unknown, or of another shape.
    """
    tensors = {}
    for name, tensor in published.items():
        layer = _TEXT_LAYER.fullmatch(name)
        if _UNUSED.fullmatch(name) or (layer and int(layer[1]) >= config.text.depth):
            continue
        text_name = bert.our_name(name.removeprefix(_TEXT)) if name.startswith(_TEXT) else None
        tensors[f"text_encoder.{text_name}" if text_name else name] = tensor
    with shapes_only():
        expected = shapes_of(InternVideo2(config).state_dict())
    advice = f"{DOWNLOAD_AGAIN}, of a complete Stage-2 model"
    check_shapes(shapes_of(tensors), expected, source, what="this model", advice=advice)
    return {name: tensors[name] for name in expected}


def config_of(
    shapes: Mapping[str, tuple[int, ...]],
    heads: int | None = None,
    pool_heads: int | None = None,
    text_heads: int | None = None,
    activation: Literal["gelu_tanh", "gelu"] | None = None,
) -> InternVideo2Config:
    """Return the sizes of a published model, read off its names and shapes.

    Shapes do not tell the numbers of heads. Unless given, the video tower has the heads of the published size of the
    same width and depth, and the text tower has one head per 64 channels. Shapes do not tell the activation either.
    The text tower ends where the fusion with video begins.

    Raises:
        ValueError: if a tensor that tells a size is missing or has another number of dimensions, or if no published
            size has that width and depth and the numbers of heads are not given.
    """

    def sizes(name: str, dimensions: int) -> tuple[int, ...]:
        return sizes_of(shapes, name, dimensions)

    width, _, _, patch, _ = sizes("vision_encoder.patch_embed.proj.weight", 5)
    depth = count_blocks(shapes, "vision_encoder.blocks")
    size = next((s for s in SIZES.values() if (s.width, s.depth) == (width, depth)), None)
    if size is None and (heads is None or pool_heads is None):
        raise ValueError(
            f"no published size has {depth} blocks of width {width}, and shapes do not tell the numbers of heads: give "
            "--heads and --pool-heads"
        )
    patches = sizes("vision_encoder.img_pos_embed", 3)[1] - 1
    if patches < 1:
        raise ValueError(f"vision_encoder.img_pos_embed has no position for a patch; {DOWNLOAD_AGAIN}")
    fusion_layers = [int(m[1]) for name in shapes if (m := _TEXT_LAYER.fullmatch(name)) and "crossattention" in m[2]]
    vocabulary, text_width = sizes(f"{_TEXT}embeddings.word_embeddings.weight", 2)
    options: dict[str, Any] = {} if size is None else {"heads": size.heads, "pool_heads": size.pool_heads}
    arguments = {"heads": heads, "pool_heads": pool_heads, "activation": activation}
    options |= {name: value for name, value in arguments.items() if value is not None}
    return InternVideo2Config(
        video=VideoConfig(
            width=width,
            depth=depth,
            hidden=sizes("vision_encoder.blocks.0.mlp.fc1.weight", 2)[0],
            patch=patch,
            resolution=patch * isqrt(patches),
            frames=(sizes("vision_encoder.pos_embed", 3)[1] - 1) // patches,
            pool_width=sizes("vision_encoder.clip_projector.cross_attn.proj.weight", 2)[0],
            **options,
        ),
        text=BertConfig(
            vocabulary=vocabulary,
            width=text_width,
            depth=min(fusion_layers, default=count_blocks(shapes, f"{_TEXT}encoder.layer")),
            heads=max(1, text_width // 64) if text_heads is None else text_heads,
            hidden=sizes(f"{_TEXT}encoder.layer.0.intermediate.dense.weight", 2)[0],
            positions=sizes(f"{_TEXT}embeddings.position_embeddings.weight", 2)[0],
            segments=sizes(f"{_TEXT}embeddings.token_type_embeddings.weight", 2)[0],
        ),
        joint=sizes("vision_proj.weight", 2)[0],
    )


def _find_vocabulary(checkpoint: Path, vocabulary: str | Path | None) -> Path:
    """Return the given file, or the ``vocab.txt`` beside the checkpoint."""
    if vocabulary is not None:
        return Path(vocabulary)
    beside = checkpoint.with_name("vocab.txt")
    if not beside.is_file():
        raise ValueError(
            f"{checkpoint} holds no vocabulary, and there is no {beside}: put the {_VOCABULARY} there, or give it by "
            "--vocabulary FILE"
        )
    return beside
