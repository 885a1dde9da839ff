"""SigLIP 2 (Tschannen et al., 2025, arXiv 2502.14786) as a backbone: all sizes, with fixed resolution and NaFlex.

The weights and the forward pass come from Hugging Face transformers (``SiglipModel``; ``Siglip2Model`` for NaFlex).

- Video: each frame is encoded alone, as a square: the training scales both sides to the resolution. The towers have no
  CLS token; an attention pool makes one vector a frame, which is also the joint embedding. NaFlex weights read patches
  of any shape of frame; here they read the square of their number of patches (256 x 256 for 256 patches of 16).
- Text: the training makes sentences lower case, keeps their punctuation, adds an end token and no start token, and pads
  to 64 tokens. The tower has no mask, so a token sees the padding too, and the summary of the sentence is read at the
  64th place. Longer sentences are cut before the end token, with a warning. The vocabulary is Gemma's; the training
  data has 109 languages.

The first SigLIP has the same layers but another vocabulary and other cleaning; its weights are refused. They load
through ``open_clip.py``.

Legend: N frames, S side in pixels, P patches, p side of a patch, B sentences, L tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sidelight.backbones.common import check_pooling, check_tokens, choose_levels, cut_tokens, dtype_of, weights_digest
from sidelight.backbones.hooked import HookedBackbone
from sidelight.backbones.pretrained import read_config, read_model, read_vocabulary
from sidelight.backbones.protocol import FeatureSpec
from sidelight.backbones.released import SIGLIP2_B32, weights_folder

POOLINGS = ("attention", "mean", "tokens", "joint")

_CONFIGS = {"siglip": "SiglipConfig", "siglip2": "Siglip2Config"}
_MODELS = {"siglip": "SiglipModel", "siglip2": "Siglip2Model"}
_HALF = (0.5, 0.5, 0.5)
_PADDING, _END = "<pad>", "<eos>"


class SigLIP2Backbone(HookedBackbone):
    """SigLIP 2, frozen, behind the :class:`~sidelight.backbones.protocol.Backbone` protocol.

    Args:
        levels: number of last layers to return, or the layers themselves (negative, -1 is the last), of both towers;
            unless given, 4, or 1 with ``joint``.
        pooling: ``attention`` (the frozen pool, on every level), ``mean`` (of the patches), ``tokens`` (all patches) or
            ``joint`` (the embeddings that SigLIP compares). There is no CLS token, so ``cls`` is refused.
        weights: hub id, or folder in Hugging Face's layout.
        dtype: type in which the towers compute: ``float32``, ``bfloat16`` or ``float16``. Features are always float32.
        clip_seconds: length of a clip in seconds.
        frames_per_clip: frames per clip, evenly spread over the clip.

    Raises:
        ValueError: for levels that the towers do not have, an unknown pooling or dtype, weights that are missing,
            incomplete or not SigLIP 2, or if transformers is not installed.
    """

    def __init__(
        self,
        *,
        levels: int | Sequence[int] | None = None,
        pooling: str = "attention",
        weights: str | Path = SIGLIP2_B32,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        clip_seconds: float = 2.0,
        frames_per_clip: int = 1,
    ) -> None:
        check_pooling(pooling, POOLINGS, model="SigLIP 2, which has no CLS token,")
        tower_dtype = dtype_of(dtype)
        weights = weights_folder(weights)
        model_type, config = read_config(weights, _CONFIGS, family="SigLIP 2", example=SIGLIP2_B32)
        video, text = config.vision_config, config.text_config
        depth = min(video.num_hidden_layers, text.num_hidden_layers)
        self._patch: int = video.patch_size
        self._is_naflex = model_type == "siglip2"
        side = self._patch * math.isqrt(video.num_patches) if self._is_naflex else video.image_size
        joint = pooling == "joint"

        def make_spec(digest: str) -> FeatureSpec:
            return FeatureSpec(
                backbone="siglip2",
                weights=digest,
                levels=choose_levels(levels, depth, model=str(weights), pooling=pooling),
                pooling=pooling,
                clip_seconds=clip_seconds,
                frames_per_clip=frames_per_clip,
                resolution=side,
                resize="stretch",
                mean=_HALF,
                std=_HALF,
                video_dim=video.hidden_size,
                text_dim=text.projection_size if joint else text.hidden_size,
            )

        make_spec("unknown")  # checks the options before the weights are read, which takes long
        self._vocabulary = read_vocabulary(weights, "Siglip2Tokenizer", family="SigLIP 2")
        self._weights, self._longest = weights, int(text.max_position_embeddings)
        _require_gemma(self._vocabulary, weights, text.vocab_size)
        model = read_model(weights, _MODELS[model_type], family="SigLIP 2")
        super().__init__(
            model=model,
            spec=make_spec(weights_digest(model.state_dict())),
            dtype=tower_dtype,
            video_blocks=[model.vision_model.encoder.layers],
            text_blocks=[model.text_model.encoder.layers],
        )

    def embed_video(self, pixels_N3SS: Tensor, clips: int) -> Tensor:
        """Return the pooled vector of each frame, (N, E)."""
        inputs: dict[str, Tensor] = {"pixel_values": pixels_N3SS}
        if self._is_naflex:
            frames, grid = len(pixels_N3SS), pixels_N3SS.shape[-1] // self._patch
            inputs = {
                "pixel_values": patches_of(pixels_N3SS, self._patch),
                "pixel_attention_mask": torch.ones(frames, grid * grid, dtype=torch.long, device=self.device),
                "spatial_shapes": torch.full((frames, 2), grid, device=self.device),
            }
        embeddings_NE: Tensor = self.model.vision_model(**inputs).pooler_output
        return embeddings_NE

    def embed_text(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the projected summary of each sentence, (B, E); the tower was trained without a mask."""
        embeddings_BE: Tensor = self.model.text_model(input_ids=ids_BL).pooler_output
        return embeddings_BE

    def attention_pool(self, tokens_NPD: Tensor) -> Tensor:
        """Apply the last LayerNorm and the attention pool to the patches of any level, (N, D)."""
        tower = self.model.vision_model
        normed_NPD = tower.post_layernorm(tokens_NPD)
        pooled_ND: Tensor = tower.head(normed_NPD)
        return pooled_ND

    def sentence_ids(self, queries: Sequence[str]) -> tuple[Tensor, list[int]]:
        """Return the token ids (B, 64) of the queries, and the number of tokens of each with its end token.

        Raises:
            ValueError: for an empty query, or if the weights have no vocabulary.
        """
        if self._vocabulary is None:
            raise ValueError(
                f"{self._weights} has no vocabulary, so no sentence can be read: put its tokenizer.json into it; all "
                f"SigLIP 2 models have the vocabulary of {SIGLIP2_B32}"
            )
        end, padding = (self._vocabulary.token_to_id(token) for token in (_END, _PADDING))
        texts = [query.strip().lower() for query in queries]
        rows = [[*self._vocabulary.encode(text, add_special_tokens=False).ids, end] for text in texts]
        rows = cut_tokens(queries, rows, self._longest)
        for query, ids in zip(queries, rows, strict=True):
            check_tokens(query, ids, self._longest, special=1)
        padded = [ids + [padding] * (self._longest - len(ids)) for ids in rows]
        return torch.tensor(padded), [len(ids) for ids in rows]

    def places(self, count: int, length: int) -> list[int]:
        """Return the last place, where the summary is, and the places of the sentence before it."""
        return [length - 1, *range(min(count, length - 1))]


def patches_of(pixels_N3SS: Tensor, patch: int) -> Tensor:
    """Cut frames into square patches, row by row: (N, P, p * p * 3), as NaFlex reads them."""
    frames, _, side, _ = pixels_N3SS.shape
    grid = side // patch
    cut = pixels_N3SS.reshape(frames, 3, grid, patch, grid, patch)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(frames, grid * grid, -1)


def _require_gemma(vocabulary: Any, weights: str | Path, known: int) -> None:
    """Check that a vocabulary is SigLIP 2's, and not larger than the text tower knows.

    Raises:
        ValueError: if it is not.
    """
    if vocabulary is None:
        return
    if any(vocabulary.token_to_id(token) is None for token in (_END, _PADDING)):
        raise ValueError(
            f"{weights} has another vocabulary than SigLIP 2, with {_PADDING} and {_END}; the first SigLIP loads "
            "through the backbone open-clip, such as timm/ViT-B-16-SigLIP"
        )
    if vocabulary.get_vocab_size() > known:
        raise ValueError(
            f"the vocabulary of {weights} does not fit the weights: it has {vocabulary.get_vocab_size()} tokens; "
            f"expected at most {known}"
        )
