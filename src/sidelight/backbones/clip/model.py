"""CLIP (Radford et al., ICML 2021, arXiv 2103.00020) as a backbone: ViT-B/32, B/16, L/14 and L/14-336.

The weights and the blocks come from Hugging Face transformers. Features are the outputs of the blocks, all tokens,
before the last LayerNorm of each tower. R2-Tuning (Liu et al., ECCV 2024) reads CLIP in the same way.

- Video: each frame is encoded alone. Token 0 is CLS; the patches follow row by row. With several frames per clip,
  pooled vectors are averaged, and tokens are joined frame after frame.
- Text: start token, tokens of the sentence, end token. Under the causal mask a token sees only earlier tokens, so the
  padding on the right changes nothing and may have any id. The length of each sentence says which tokens are real:
  id 0 is a word of CLIP's vocabulary, and files differ in their padding id.
- Sentences are cleaned as OpenAI's tokenizer cleans them: ftfy repairs wrong code pages and replaces ligatures, wide
  letters and curly quotes; HTML entities are decoded. Longer sentences than the tower reads are cut, with a warning.

This package contains no weights and no vocabulary: ``weights`` names a folder or a hub id that has both.

Legend: C clips, F frames per clip, N frames in all (C * F), S side in pixels, P tokens of a frame, B sentences,
L tokens of a sentence, D width, K levels.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from sidelight.backbones.clip.loading import (
    identify_weights,
    read_config,
    read_model,
    read_tokenizer,
    require_transformers,
)
from sidelight.backbones.clip.released import CLIP_B32, CLIP_MEAN, CLIP_STD
from sidelight.backbones.common import (
    check_frames,
    check_tokens,
    choose_levels,
    cut_tokens,
    dtype_of,
    pad_ids,
    pool_tokens,
)
from sidelight.backbones.protocol import FeatureSpec
from sidelight.backbones.released import weights_folder


class Normalise(nn.Module):
    """The normalisation of CLIP in one step: (x / 255 - mean) / std, always in float32."""

    def __init__(self) -> None:
        super().__init__()
        mean, std = torch.tensor(CLIP_MEAN, dtype=torch.float64), torch.tensor(CLIP_STD, dtype=torch.float64)
        self.register_buffer("scale", (1 / (255 * std)).float(), persistent=False)
        self.register_buffer("shift", (-mean / std).float(), persistent=False)

    def forward(self, frames_NSS3: Tensor) -> Tensor:
        """Return uint8 frames as float32 (N, 3, S, S); the channels stay last in memory."""
        scale, shift = cast(Tensor, self.scale), cast(Tensor, self.shift)
        return torch.addcmul(shift, frames_NSS3.float(), scale).permute(0, 3, 1, 2)


class Tower(nn.Module):
    """One tower of CLIP, up to the deepest level that is read.

    Args:
        embed: turns pixels or token ids into tokens with positions.
        norm: LayerNorm before the first block; None in the text tower.
        blocks: all blocks of transformers' model; blocks after the deepest level are dropped.
        levels: levels to return, negative, ascending; -1 is the last block.
        causal: whether a token sees only itself and earlier tokens.
    """

    def __init__(
        self, embed: nn.Module, norm: nn.Module | None, blocks: Sequence[nn.Module], levels: Sequence[int], causal: bool
    ) -> None:
        super().__init__()
        self.state_indices = [len(blocks) + level + 1 for level in levels]
        self.embed, self.norm = embed, norm
        self.blocks = nn.ModuleList(blocks[: self.state_indices[-1]])
        self.causal = causal

    def hidden_states(self, inputs: Tensor) -> Iterator[Tensor]:
        """Yield the input of the first block, then the output of each block; (N or B, tokens, D)."""
        x = self.embed(inputs)
        x = x if self.norm is None else self.norm(x)
        yield x
        mask = None
        if self.causal:
            # An explicit mask: versions of transformers without a causal flag would silently ignore the flag.
            mask = torch.full((x.shape[1], x.shape[1]), -math.inf, dtype=x.dtype, device=x.device).triu(1)[None, None]
        for block in self.blocks:
            x = block(x, mask)
            yield x

    def forward(self, inputs: Tensor, pool: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return the levels as float32 (K, ...). Each level is pooled at once, so that memory holds one at a time."""
        levels = []
        for i, x in enumerate(self.hidden_states(inputs)):
            if i in self.state_indices:
                levels.append((x if pool is None else pool(x)).float())
        return torch.stack(levels)


class CLIPBackbone:
    """CLIP, frozen, behind the :class:`~sidelight.backbones.protocol.Backbone` protocol.

    Args:
        levels: number of last layers to return, or the layers themselves (negative, -1 is the last), of both towers.
        pooling: ``cls``, ``mean`` (of the patches, without CLS) or ``tokens`` (all tokens, CLS first). CLIP's vision
            transformers have no attention pool, so ``attention`` is refused.
        weights: hub id, or folder in Hugging Face's layout (:func:`~sidelight.backbones.clip.convert.convert_clip`
            makes one).
        dtype: type in which the towers compute: ``float32``, ``bfloat16`` or ``float16``. Features are always float32.
        clip_seconds: length of a clip in seconds.
        frames_per_clip: frames per clip, evenly spread over the clip.

    Raises:
        ValueError: for levels that the towers do not have, an unknown pooling or dtype, weights that are missing,
            incomplete or not CLIP, or if transformers is not installed.
    """

    def __init__(
        self,
        *,
        levels: int | Sequence[int] = 4,
        pooling: str = "cls",
        weights: str | Path = CLIP_B32,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        clip_seconds: float = 2.0,
        frames_per_clip: int = 1,
    ) -> None:
        if pooling == "attention":
            raise ValueError(
                "clip does not have the pooling attention: its vision transformers have no attention pool; choose cls "
                "(the token that CLIP compares with sentences), mean (of the patches) or tokens"
            )
        tower_dtype = dtype_of(dtype)
        require_transformers()
        folder = weights_folder(weights)
        config = read_config(folder)
        video_config, text_config = config.vision_config, config.text_config
        depth = min(video_config.num_hidden_layers, text_config.num_hidden_layers)
        chosen = choose_levels(levels, depth, model=str(weights))

        def make_spec(weights_name: str) -> FeatureSpec:
            return FeatureSpec(
                backbone="clip",
                weights=weights_name,
                levels=chosen,
                pooling=pooling,
                clip_seconds=clip_seconds,
                frames_per_clip=frames_per_clip,
                resolution=video_config.image_size,
                resize="crop",
                mean=CLIP_MEAN,
                std=CLIP_STD,
                video_dim=video_config.hidden_size,
                text_dim=text_config.hidden_size,
            )

        make_spec("unknown")  # checks the options before the weights are read, which takes long
        model = read_model(folder)
        self.spec = make_spec(identify_weights(weights, model))
        self._tokenizer = read_tokenizer(folder, text_config.vocab_size)
        self._weights = weights
        self._max_tokens: int = text_config.max_position_embeddings
        video, text = model.vision_model, model.text_model
        self.normalise = Normalise()
        self.video = Tower(video.embeddings, video.pre_layrnorm, video.encoder.layers, chosen, causal=False)
        self.text = Tower(text.embeddings, None, text.encoder.layers, chosen, causal=True)
        for tower in (self.video, self.text):
            tower.to(tower_dtype).eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return next(self.video.parameters()).device

    def to(self, device: torch.device | str) -> CLIPBackbone:
        """Move the weights, and return the backbone itself."""
        for part in (self.normalise, self.video, self.text):
            part.to(device)
        return self

    @torch.inference_mode()
    def encode_video(self, frames_CFSS3: Tensor) -> Tensor:
        """Encode uint8 RGB frames to float32 (K, C, D_v), or (K, C, F * P, D_v) where pooling is ``tokens``."""
        check_frames(frames_CFSS3, self.spec)
        clips, frames = frames_CFSS3.shape[:2]
        if not clips:  # the blocks cannot compute the output shape of an empty batch
            return self.encode_video(frames_CFSS3.new_zeros(1, *frames_CFSS3.shape[1:]))[:, :0]
        pixels_N3SS = self.normalise(frames_CFSS3.flatten(0, 1).to(self.device))
        levels: Tensor = self.video(pixels_N3SS.to(next(self.video.parameters()).dtype), self._pool)
        levels = levels.reshape(len(levels), clips, frames, *levels.shape[2:])
        return levels.flatten(2, 3) if self.spec.pooling == "tokens" else levels.mean(2)

    def _pool(self, tokens_NPD: Tensor) -> Tensor:
        if self.spec.pooling == "mean":
            return tokens_NPD[:, 1:].mean(1, dtype=torch.float32)  # no rounding to half precision
        return pool_tokens(tokens_NPD, self.spec.pooling)

    @torch.inference_mode()
    def encode_text(self, queries: Sequence[str]) -> list[Tensor]:
        """Encode each query to float32 (K, L, D_t): start token, sentence, end token, no padding.

        A query longer than the text tower reads (77 tokens) is cut, with a warning.

        Raises:
            ValueError: for an empty query.
        """
        if not queries:
            return []
        id_lists = self.token_ids(queries)
        levels_KBLD = self.text(pad_ids(id_lists).to(self.device))
        return [levels_KBLD[:, b, : len(ids)].clone() for b, ids in enumerate(id_lists)]

    def token_ids(self, queries: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each query, with start and end token; long queries are cut before the end token.

        Raises:
            ValueError: for an empty query, or if the weights have no vocabulary.
        """
        if self._tokenizer is None:
            raise ValueError(
                f"{self._weights} has no vocabulary, so no sentence can be read: put tokenizer.json, or vocab.json and "
                f"merges.txt, into it; all of OpenAI's models have the vocabulary of {CLIP_B32}"
            )
        texts = [clean_text(query) for query in queries]
        id_lists: list[list[int]] = self._tokenizer(texts, verbose=False)["input_ids"]
        id_lists = cut_tokens(queries, id_lists, self._max_tokens)
        for query, ids in zip(queries, id_lists, strict=True):
            check_tokens(query, ids, self._max_tokens, special=2)
        return id_lists


def clean_text(query: str) -> str:
    """Return a sentence as OpenAI's tokenizer cleans it: repaired by ftfy, HTML entities decoded twice (some nest).

    Raises:
        ValueError: if the sentence needs ftfy, and ftfy is not installed.
    """
    query = query.strip()
    if not (query.isascii() and query.isprintable()) or "&" in query:  # ftfy leaves all other sentences as they are
        try:
            import ftfy
        except ImportError:
            raise ValueError('the backbone clip needs ftfy: pip install "sidelight[backbones]"') from None
        query = ftfy.fix_text(query)
    return html.unescape(html.unescape(query)).strip()
