"""VideoPrism-LvT (Zhao et al., ICML 2024, arXiv 2402.13217) as a backbone: base and large, from video natively.

The weights and the forward pass come from Hugging Face transformers (``VideoPrismClipModel``).

- Video: the frames of a clip are read together: first the spatial blocks read each frame, then the temporal blocks
  read each place over time, then the auxiliary blocks read all tokens. Levels are counted over all three: -1 and -2
  are the auxiliary blocks, -3 to -6 the temporal ones. Each level is arranged frame after frame, row by row. Pixels are
  in [0, 1], both sides are scaled to the resolution (288). The tower has no CLS token, but an attention pool.
- Clips of another number of frames than the training's (16 in base, 8 in large) are read with interpolated positions
  in time, as the authors advise. The positions are interpolated once, in float32.
- Text: punctuation becomes spaces, letters lower case, and a period ends the sentence, as the published tokenisation
  does. No start or end token. At most 64 tokens are read: longer sentences are cut, with a warning. Shorter ones are
  padded to 64 and masked. A CLS token after the padding is the summary. English.

Legend: C clips, F frames per clip, S side in pixels, P patches of a frame, B sentences, L tokens, D width.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
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
from sidelight.backbones.pretrained import read_config, read_model, read_vocabulary
from sidelight.backbones.protocol import FeatureSpec

LVT_BASE = "google/videoprism-lvt-base-f16r288"
POOLINGS = ("attention", "mean", "tokens", "joint")

_SPACES = str.maketrans(string.punctuation, " " * len(string.punctuation))
_PADDING = 0


class VideoPrismBackbone(HookedBackbone):
    """VideoPrism-LvT, frozen, behind the :class:`~sidelight.backbones.protocol.Backbone` protocol.

    Args:
        levels: number of last layers to return, or the layers themselves (negative, -1 is the last), of both towers;
            unless given, 4, or 1 with ``joint``.
        pooling: ``attention`` (the frozen pool, on every level), ``mean`` (of the patches of all frames), ``tokens``
            (all patches) or ``joint`` (the embeddings that VideoPrism compares). There is no CLS token in the video
            tower, so ``cls`` is refused.
        weights: hub id, or folder in Hugging Face's layout.
        dtype: type in which the towers compute: ``float32``, ``bfloat16`` or ``float16``. Features are always float32.
        clip_seconds: length of a clip in seconds.
        frames_per_clip: frames per clip, evenly spread over the clip; unless given, the number of the training. The
            last layers compare all tokens of a clip, so that 4 frames take about a seventh of the time of 16.

    Raises:
        ValueError: for levels that the towers do not have, an unknown pooling or dtype, weights that are missing,
            incomplete or not VideoPrism-LvT, or if transformers is not installed.
    """

    clips_at_once = 1
    """16 frames have 4096 tokens, and the weights of their attention take 0.8 GB a layer in float32."""

    def __init__(
        self,
        *,
        levels: int | Sequence[int] | None = None,
        pooling: str = "attention",
        weights: str | Path = LVT_BASE,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        clip_seconds: float = 2.0,
        frames_per_clip: int | None = None,
    ) -> None:
        check_pooling(pooling, POOLINGS, model="VideoPrism, which has no CLS token,")
        tower_dtype = dtype_of(dtype)
        classes = {"videoprism": "VideoPrismConfig"}
        _, config = read_config(weights, classes, family="VideoPrism-LvT", example=LVT_BASE)
        video, text = config.vision_config, config.text_config
        video_depth = video.num_spatial_layers + video.num_temporal_layers + video.num_auxiliary_layers
        frames = video.num_frames if frames_per_clip is None else frames_per_clip

        def make_spec(digest: str) -> FeatureSpec:
            depth = min(video_depth, text.num_hidden_layers)
            return FeatureSpec(
                backbone="videoprism",
                weights=digest,
                levels=choose_levels(levels, depth, model=str(weights), pooling=pooling),
                pooling=pooling,
                clip_seconds=clip_seconds,
                frames_per_clip=frames,
                resolution=square_side(video.image_size),
                resize="stretch",
                mean=(0.0, 0.0, 0.0),
                std=(1.0, 1.0, 1.0),
                video_dim=video.hidden_size,
                text_dim=text.hidden_size,
            )

        make_spec("unknown")  # checks the options before the weights are read, which takes long
        self._vocabulary = read_vocabulary(weights, "VideoPrismTokenizer", family="VideoPrism-LvT")
        self._weights, self._longest = weights, int(text.max_position_embeddings)
        # transformers has no other attention for logits that are capped.
        model = read_model(weights, "VideoPrismClipModel", family="VideoPrism-LvT", attention="eager")
        digest = weights_digest(model.state_dict())
        tower = model.video_model.vision_model
        self._temporal_blocks = list(tower.temporal_layers)
        if frames != video.num_frames:
            _fit_frames(tower.temporal_embeddings, frames)
        super().__init__(
            model=model,
            spec=make_spec(digest),
            dtype=tower_dtype,
            video_blocks=[tower.spatial_layers, tower.temporal_layers, model.video_model.auxiliary_layers],
            text_blocks=[model.text_model.layers],
        )

    def embed_video(self, pixels_N3SS: Tensor, clips: int) -> Tensor:
        """Return the pooled and normalised vector of each clip, (C, E)."""
        clips_CF3SS = pixels_N3SS.unflatten(0, (clips, -1))
        embeddings_C1E: Tensor = self.model.video_model(pixel_values_videos=clips_CF3SS).pooler_output
        return embeddings_C1E.reshape(clips, -1)

    def arrange(self, block: nn.Module, output: Tensor, clips: int) -> Tensor:
        """Return the tokens of a clip frame after frame, (C, F * P, D), whichever tokens the block read together."""
        frames, width = self.spec.frames_per_clip, output.shape[-1]
        if block in self._temporal_blocks:  # each place of a frame over time: (C * P, F, D)
            output = output.reshape(clips, -1, frames, width).transpose(1, 2)
        return output.reshape(clips, -1, width)

    def attention_pool(self, tokens_NPD: Tensor) -> Tensor:
        """Apply the attention pool and its LayerNorm to the tokens of any level, (C, D)."""
        pooled_C1D, _ = self.model.video_model.head(tokens_NPD)
        normed_C1D: Tensor = self.model.video_model.head_layernorm(pooled_C1D)
        return normed_C1D[:, 0]

    def embed_text(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the normalised CLS token of each sentence, (B, E)."""
        embeddings_BE: Tensor = self.model.text_model(input_ids=ids_BL, attention_mask=mask_BL).pooler_output
        return embeddings_BE

    def sentence_ids(self, queries: Sequence[str]) -> tuple[Tensor, list[int]]:
        """Return the token ids (B, 64) of the queries, and the number of tokens of each.

        Raises:
            ValueError: for a query without a letter or digit, or if the weights have no vocabulary.
        """
        if self._vocabulary is None:
            raise ValueError(
                f"{self._weights} has no vocabulary, so no sentence can be read: put its tokenizer.json into it; all "
                f"VideoPrism-LvT models have the vocabulary of {LVT_BASE}"
            )
        texts = [clean_text(query) for query in queries]
        rows = [self._vocabulary.encode(text, add_special_tokens=False).ids for text in texts]
        rows = cut_tokens(queries, rows, self._longest, keep_last=False)
        for query, ids in zip(queries, rows, strict=True):
            check_tokens(query, ids, self._longest, special=0)
        padded = [ids + [_PADDING] * (self._longest - len(ids)) for ids in rows]
        return torch.tensor(padded), [len(ids) for ids in rows]

    def places(self, count: int, length: int) -> list[int]:
        """Return the place of CLS, which follows the padding, and the places of the sentence."""
        return [length - 1, *range(count)]


def clean_text(query: str) -> str:
    """Return a sentence as the published tokenisation cleans it; empty if no word is left."""
    words = query.translate(_SPACES).lower().split()
    return " ".join(words) + "." if words else ""


def _fit_frames(embeddings: Any, frames: int) -> None:
    """Interpolate the positions in time to another number of frames.

    The library interpolates in each forward pass, in the type of the weights, which PyTorch refuses in half precision
    on a CPU.
    """
    width = embeddings.position_embeddings.shape[-1]
    fitted_1FD = embeddings.interpolate_pos_encoding(torch.zeros(1, frames, width))
    embeddings.position_embeddings = nn.Parameter(fitted_1FD.detach())
