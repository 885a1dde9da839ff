"""CLIP (Radford et al., ICML 2021, arXiv 2103.00020) as a backbone: ViT-B/32, B/16, L/14 and L/14-336.

The weights and the blocks come from Hugging Face transformers. Features are the outputs of the blocks, all tokens,
before the last LayerNorm of each tower. R2-Tuning (Liu et al., ECCV 2024) reads CLIP in the same way.

- Video: each frame is encoded alone. Token 0 is CLS; the patches follow row by row. With several frames per clip,
  pooled vectors are averaged, and tokens are joined frame after frame.
- Text: start token, tokens of the sentence, end token. Under the causal mask a token sees only earlier tokens, so the
  padding on the right changes nothing and may have any id. The length of each sentence says which tokens are real:
  id 0 is a word of CLIP's vocabulary, and files differ in their padding id.
- With the pooling ``joint-video``, features are those that Moment-DETR and UniVTG read: of a clip CLIP's image
  embedding, of a sentence every token after the last LayerNorm, not projected, at most 32 tokens. Both have length 1.
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
import torch.nn.functional as F
from torch import Tensor, nn

from sidelight.backbones.clip.loading import identify_weights, read_config, read_model, read_tokenizer
from sidelight.backbones.clip.released import CLIP_B32, CLIP_MEAN, CLIP_STD
from sidelight.backbones.common import (
    Normalise,
    check_frames,
    check_tokens,
    choose_levels,
    cut_tokens,
    dtype_of,
    joint_embedding,
    pad_ids,
    pool_tokens,
    sentence_embeddings,
)
from sidelight.backbones.pretrained import import_transformers
from sidelight.backbones.protocol import JOINT_POOLINGS, FeatureSpec
from sidelight.backbones.released import weights_folder

_JOINT_VIDEO_TOKENS = 32
"""Most tokens of a sentence in the features of Moment-DETR and UniVTG, start and end token included."""


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
        levels: number of last layers to return, or the layers themselves (negative, -1 is the last), of both towers;
            unless given, 4, or 1 with ``joint`` and ``joint-video``.
        pooling: ``cls``, ``mean`` (of the patches, without CLS), ``tokens`` (all tokens, CLS first), ``joint`` (the
            projected embeddings, which CLIP compares) or ``joint-video`` (see above). CLIP's vision transformers have
            no attention pool, so ``attention`` is refused.
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
        levels: int | Sequence[int] | None = None,
        pooling: str = "cls",
        weights: str | Path = CLIP_B32,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        clip_seconds: float = 2.0,
        frames_per_clip: int = 1,
    ) -> None:
        if pooling == "attention":
            raise ValueError(
                "clip does not have the pooling attention: its vision transformers have no attention pool; choose cls "
                "(CLIP's own summary of a frame), mean (of the patches), tokens or joint"
            )
        tower_dtype = dtype_of(dtype)
        import_transformers()  # what is wrong is said before a download
        folder = weights_folder(weights)
        config = read_config(folder)
        video_config, text_config = config.vision_config, config.text_config
        depth = min(video_config.num_hidden_layers, text_config.num_hidden_layers)
        chosen, joint = choose_levels(levels, depth, model=str(weights), pooling=pooling), pooling in JOINT_POOLINGS

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
                video_dim=config.projection_dim if joint else video_config.hidden_size,
                text_dim=config.projection_dim if pooling == "joint" else text_config.hidden_size,
            )

        make_spec("unknown")  # checks the options before the weights are read, which takes long
        model = read_model(folder, joint=joint)
        self.spec = make_spec(identify_weights(weights, model, joint=joint))
        self._tokenizer = read_tokenizer(folder, text_config.vocab_size)
        self._weights = weights
        self._max_tokens: int = text_config.max_position_embeddings
        if pooling == "joint-video":
            self._max_tokens = min(self._max_tokens, _JOINT_VIDEO_TOKENS)
        video, text = model.vision_model, model.text_model
        self.normalise = Normalise(CLIP_MEAN, CLIP_STD)
        self.video = Tower(video.embeddings, video.pre_layrnorm, video.encoder.layers, chosen, causal=False)
        self.text = Tower(text.embeddings, None, text.encoder.layers, chosen, causal=True)
        self.video_head = nn.Sequential(video.post_layernorm, model.visual_projection) if joint else nn.Identity()
        self.text_head: nn.Module = text.final_layer_norm if joint else nn.Identity()
        if pooling == "joint":
            self.text_head = nn.Sequential(text.final_layer_norm, model.text_projection)
        for part in (self.video, self.text, self.video_head, self.text_head):
            part.to(tower_dtype).eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return next(self.video.parameters()).device

    def to(self, device: torch.device | str) -> CLIPBackbone:
        """Move the weights, and return the backbone itself."""
        for part in (self.normalise, self.video, self.text, self.video_head, self.text_head):
            part.to(device)
        return self

    @torch.inference_mode()
    def encode_video(self, frames_CFSS3: Tensor) -> Tensor:
        """Encode uint8 RGB frames to float32 (K, C, D_v), or (K, C, F * P, D_v) where pooling is ``tokens``.

        With ``joint``, the result is (1, C, D_v): the normalised mean of the frames' normalised embeddings.
        """
        check_frames(frames_CFSS3, self.spec)
        clips, frames = frames_CFSS3.shape[:2]
        if not clips:  # the blocks cannot compute the output shape of an empty batch
            return self.encode_video(frames_CFSS3.new_zeros(1, *frames_CFSS3.shape[1:]))[:, :0]
        pixels_N3SS = self.normalise(frames_CFSS3.flatten(0, 1).to(self.device))
        levels: Tensor = self.video(pixels_N3SS.to(next(self.video.parameters()).dtype), self._pool)
        levels = levels.reshape(len(levels), clips, frames, *levels.shape[2:])
        if self.spec.pooling in JOINT_POOLINGS:
            return joint_embedding(levels[0])
        return levels.flatten(2, 3) if self.spec.pooling == "tokens" else levels.mean(2)

    def _pool(self, tokens_NPD: Tensor) -> Tensor:
        if self.spec.pooling in JOINT_POOLINGS:
            embeddings_NE: Tensor = self.video_head(tokens_NPD[:, 0])
            return embeddings_NE
        if self.spec.pooling == "mean":
            return tokens_NPD[:, 1:].mean(1, dtype=torch.float32)  # no rounding to half precision
        return pool_tokens(tokens_NPD, self.spec.pooling)

    @torch.inference_mode()
    def encode_text(self, queries: Sequence[str]) -> list[Tensor]:
        """Encode each query to float32 (K, L, D_t): start token, sentence, end token, no padding.

        With ``joint``, each is (1, 1, D_t): the normalised projection of the end token.
        A query longer than the text tower reads (77 tokens; 32 with ``joint-video``) is cut, with a warning.

        Raises:
            ValueError: for an empty query.
        """
        if not queries:
            return []
        id_lists = self.token_ids(queries)
        levels_KBLD = self.text(pad_ids(id_lists).to(self.device), self._text_pool(id_lists))
        if self.spec.pooling == "joint":
            return sentence_embeddings(levels_KBLD[0])
        if self.spec.pooling == "joint-video":
            levels_KBLD = F.normalize(levels_KBLD, dim=-1)
        return [levels_KBLD[:, b, : len(ids)].clone() for b, ids in enumerate(id_lists)]

    def _text_pool(self, id_lists: Sequence[Sequence[int]]) -> Callable[[Tensor], Tensor]:
        """Return the function from the tokens of a level (B, L, D) to their features."""
        if self.spec.pooling != "joint":
            return self.text_head
        ends = [ids.index(ids[-1]) for ids in id_lists]  # CLIP reads a sentence up to its first end token
        return lambda x_BLD: cast(Tensor, self.text_head(x_BLD[torch.arange(len(ends)), ends]))

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
    """Return a sentence as OpenAI's tokenizer cleans it: repaired by ftfy, HTML entities decoded twice (some nest)."""
    query = query.strip()
    if not (query.isascii() and query.isprintable()) or "&" in query:  # ftfy leaves all other sentences as they are
        import ftfy

        query = ftfy.fix_text(query)
    return html.unescape(html.unescape(query)).strip()
