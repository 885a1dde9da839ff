"""Every model that ``open_clip`` loads, as a backbone: Perception Encoder (PE-Core), SigLIP, DFN, EVA and others.

``open_clip`` (Ilharco et al., github.com/mlfoundations/open_clip) loads the weights, runs the forward pass and cuts
sentences into tokens, each as its model was trained; timm brings many of the vision towers.

- Video: each frame is encoded alone. The normalisation, and whether a frame is scaled or cropped to a square, come from
  the configuration of the weights. Levels need a tower of equal blocks: a vision transformer. ResNet, ConvNeXt, Swin
  and FastViT (MobileCLIP-S) towers have none; they have joint embeddings only.
- Text: the tokens of a sentence are returned without padding. Where the tower reads its summary at the last place
  (SigLIP, CoCa), the summary comes first. Longer sentences than the tower reads are cut as ``open_clip`` cuts them,
  with a warning.

Licences differ from model to model: MobileCLIP's weights are for research only. See the card of the weights.

Legend: N frames, S side in pixels, P tokens of a frame, B sentences, L tokens, D width, E width of the joint space.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sidelight.backbones.common import (
    check_pooling,
    check_tokens,
    choose_levels,
    cut_tokens,
    dtype_of,
    square_side,
    weights_digest,
)
from sidelight.backbones.hooked import HookedBackbone
from sidelight.backbones.pretrained import is_unreachable, require_hub_id
from sidelight.backbones.protocol import POOLINGS, FeatureSpec
from sidelight.core.messages import first_line

PE_CORE_B16 = "timm/PE-Core-B-16"

_VIDEO_BLOCKS = ("transformer.resblocks", "trunk.blocks")
_TEXT_BLOCKS = ("transformer.resblocks", "transformer.encoder.layer", "transformer.layers")
_RESIZES: dict[str, Literal["stretch", "crop"]] = {"squash": "stretch", "shortest": "crop"}
_CONFIG = "open_clip_config.json"
_LONGEST = 4096
"""Tokens that are counted in a query, for the warning that it is cut."""


class OpenCLIPBackbone(HookedBackbone):
    """A model of ``open_clip``, frozen, behind the :class:`~sidelight.backbones.protocol.Backbone` protocol.

    Args:
        levels: number of last layers to return, or the layers themselves (negative, -1 is the last), of both towers;
            unless given, 4, or 1 with ``joint``.
        pooling: ``cls`` or ``attention`` where the vision tower has a CLS token or an attention pool; ``mean`` (of the
            patches), ``tokens`` (all tokens) or ``joint`` (the embeddings that the model compares). Unless given,
            ``attention``, or else ``cls``, or else ``mean``.
        weights: hub id, or folder in ``open_clip``'s layout (``open_clip_config.json``, the weights, and the vocabulary
            where it is not CLIP's own).
        dtype: type in which the towers compute: ``float32``, ``bfloat16`` or ``float16``. Features are always float32.
        clip_seconds: length of a clip in seconds.
        frames_per_clip: frames per clip, evenly spread over the clip.

    Raises:
        ValueError: for levels or a pooling that the towers do not have, an unknown dtype, weights that are missing or
            not of ``open_clip``, or if ``open_clip`` is not installed.
    """

    def __init__(
        self,
        *,
        levels: int | Sequence[int] | None = None,
        pooling: str | None = None,
        weights: str | Path = PE_CORE_B16,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        clip_seconds: float = 2.0,
        frames_per_clip: int = 1,
    ) -> None:
        if pooling is not None:
            check_pooling(pooling, POOLINGS, model="open-clip")
        tower_dtype = dtype_of(dtype)
        model, self._tokenizer = _read(weights)
        self._text = getattr(model, "text", model)
        self._length: int = model.context_length
        self._video = model.visual
        self.prefix = _count_prefix(model.visual)
        allowed = [name for name in ("attention", "cls") if self._has(name)] + ["mean", "tokens", "joint"]
        pooling = pooling or allowed[0]
        check_pooling(pooling, allowed, model=str(weights))
        video_blocks, text_blocks = _blocks(model.visual, _VIDEO_BLOCKS), _blocks(self._text, _TEXT_BLOCKS)
        if pooling != "joint" and not (video_blocks and text_blocks):
            raise ValueError(
                f"a tower of {weights} has no equal blocks, so that it has no levels; choose the pooling joint, or the "
                "weights of a vision transformer"
            )
        depth = 1 if pooling == "joint" else min(len(video_blocks[0]), len(text_blocks[0]))
        chosen = choose_levels(levels, depth, model=str(weights), pooling=pooling)
        settings = model.visual.preprocess_cfg
        if settings["resize_mode"] not in _RESIZES:
            raise ValueError(f"{weights} resizes frames by {settings['resize_mode']!r}; expected squash or shortest")

        def make_spec(digest: str, video_dim: int, text_dim: int) -> FeatureSpec:
            return FeatureSpec(
                backbone="open-clip",
                weights=digest,
                levels=chosen,
                pooling=str(pooling),
                clip_seconds=clip_seconds,
                frames_per_clip=frames_per_clip,
                resolution=square_side(settings["size"]),
                resize=_RESIZES[settings["resize_mode"]],
                mean=tuple(settings["mean"]),
                std=tuple(settings["std"]),
                video_dim=video_dim,
                text_dim=text_dim,
            )

        super().__init__(
            model=model,
            spec=make_spec(weights_digest(model.state_dict()), 1, 1),
            dtype=tower_dtype,
            video_blocks=video_blocks,
            text_blocks=text_blocks,
        )
        # No configuration tells the widths of all towers: read them from a black frame and a word.
        side = self.spec.resolution
        video = self.encode_video(torch.zeros(1, frames_per_clip, side, side, 3, dtype=torch.uint8))
        (text,) = self.encode_text(["a"])
        self.spec = make_spec(self.spec.weights, video.shape[-1], text.shape[-1])

    def _has(self, pooling: str) -> bool:
        if pooling == "cls":
            return self.prefix > 0
        return getattr(getattr(self._video, "trunk", None), "attn_pool", None) is not None

    def embed_video(self, pixels_N3SS: Tensor, clips: int) -> Tensor:
        """Return the embedding of each frame, (N, E)."""
        return _first(self.model.encode_image(pixels_N3SS))

    def embed_text(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the embedding of each sentence, (B, E); the tower makes its own mask."""
        return _first(self.model.encode_text(ids_BL))

    def attention_pool(self, tokens_NPD: Tensor) -> Tensor:
        """Apply the last norm and the attention pool to the tokens of any level, (N, D)."""
        trunk = self._video.trunk
        pooled_ND: Tensor = trunk.forward_head(trunk.norm(tokens_NPD), pre_logits=True)
        return pooled_ND

    def sentence_ids(self, queries: Sequence[str]) -> tuple[Tensor, list[int]]:
        """Return the padded token ids of the queries, and the number of tokens of each.

        Raises:
            ValueError: for an empty query.
        """
        long_BL = self._tokenizer([*queries, ""], context_length=_LONGEST)
        padding = long_BL[-1, -1]
        counts = [int(row.nonzero().max()) + 1 if row.any() else 0 for row in long_BL != padding]
        special = counts.pop()
        for query, count in zip(queries, counts, strict=True):
            check_tokens(query, range(count), _LONGEST, special=special)
        cut_tokens(queries, [list(range(count)) for count in counts], self._length)  # warns; open_clip cuts
        return self._tokenizer(list(queries)), [min(count, self._length) for count in counts]

    def places(self, count: int, length: int) -> list[int]:
        """Return the places of the sentence; before them the last place, where the tower reads its summary there."""
        appended = getattr(self._text, "cls_emb", None) is not None
        pool = getattr(self._text, "pool_type", getattr(self._text, "text_pool_type", None))
        if appended or pool == "last":
            return [length - 1, *range(min(count, length - 1))]
        return list(range(count))


def _read(weights: str | Path) -> tuple[Any, Any]:
    """Return the complete model in float32 and its tokenizer.

    Raises:
        ValueError: if the weights are neither a folder nor a hub id, or cannot be read.
    """
    with _importing():
        import open_clip
    if Path(weights).is_dir():
        _check_folder(Path(weights))
        name = f"local-dir:{weights}"
    else:
        require_hub_id(weights, example=PE_CORE_B16)
        name = f"hf-hub:{weights}"
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # open_clip reports each step
    try:
        _refuse_code(open_clip.get_model_config(name), weights)
        model = open_clip.create_model(name, require_pretrained=True)
        return model, open_clip.get_tokenizer(name)
    except _CodeError as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # errors of open_clip, timm, transformers, the hub's client, and of three file formats
        reason = first_line(error)
        if is_unreachable(weights):
            raise ValueError(
                f"{weights} is not on this machine, and the hub cannot be reached; check the connection, or give a "
                "folder with the weights"
            ) from None
        raise ValueError(f"{weights} cannot be read by open_clip ({reason}); check the folder or the hub id") from None
    finally:
        logging.disable(level)


class _CodeError(Exception):
    """A configuration asks for code of a repository."""


def _refuse_code(config: Any, weights: str | Path) -> None:
    """Refuse a configuration with which the tokenizer would download code and run it."""
    options = (config or {}).get("text_cfg", {}).get("tokenizer_kwargs", {})
    if options.get("trust_remote_code"):
        raise _CodeError(
            f"the configuration of {weights} asks to run code from the hub (trust_remote_code), and sidelight runs "
            "none; choose other weights"
        )


@contextlib.contextmanager
def _importing() -> Iterator[None]:
    """Turn the errors of an import of ``open_clip`` into one sentence."""
    try:
        yield
    except ModuleNotFoundError:
        raise ValueError('the backbone open-clip needs open_clip: pip install "sidelight[open-clip]"') from None
    except (ImportError, RuntimeError, OSError) as error:  # torchvision is imported, with its compiled operators
        raise ValueError(
            f"open_clip cannot be imported ({first_line(error)}): torchvision must be built for the installed torch; "
            "install both again from one index"
        ) from None


def _check_folder(folder: Path) -> None:
    """Check that a folder has ``open_clip``'s layout.

    Raises:
        ValueError: if the configuration is missing or no configuration, or no weights lie beside it.
    """
    file = folder / _CONFIG
    if not file.is_file():
        raise ValueError(f"{folder} is not a folder in open_clip's layout: {_CONFIG} is missing")
    try:
        complete = {"vision_cfg", "text_cfg"} <= set(json.loads(file.read_text(encoding="utf-8"))["model_cfg"])
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise ValueError(f"{file} lacks model_cfg with vision_cfg and text_cfg; copy it from the hub again")
    if not any(file.suffix in (".safetensors", ".bin", ".pth") for file in folder.iterdir()):
        raise ValueError(f"{folder} holds no weights: expected open_clip_model.safetensors")


def _blocks(tower: Any, paths: Sequence[str]) -> list[Any]:
    """Return the list of equal blocks of a tower, as a list of one; empty if there is none."""
    for path in paths:
        with contextlib.suppress(AttributeError):
            blocks = tower.get_submodule(path)
            if isinstance(blocks, (nn.ModuleList, nn.Sequential)) and len({type(block) for block in blocks}) == 1:
                return [blocks]
    return []


def _count_prefix(tower: Any) -> int:
    """Return how many tokens, such as CLS, stand before the patches."""
    trunk = getattr(tower, "trunk", None)
    if trunk is None:
        return int(hasattr(tower, "class_embedding"))
    return int(getattr(trunk, "num_prefix_tokens", 0))


def _first(output: Any) -> Tensor:
    """Return the embedding; some models of ``open_clip`` return tokens with it."""
    embedding: Tensor = output[0] if isinstance(output, tuple) else output
    return embedding
