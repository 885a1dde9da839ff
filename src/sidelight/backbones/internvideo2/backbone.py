"""InternVideo2 behind sidelight's protocol of backbones: frames and queries in, levels of features out.

Legend: C clips, F frames of a clip, S side in pixels, P tokens of a clip, K levels, B sentences, L tokens of a
sentence, D width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sidelight.backbones.common import (
    check_frames,
    check_pooling,
    check_tokens,
    choose_levels,
    dtype_of,
    joint_embedding,
    pool_tokens,
    sentence_embeddings,
)
from sidelight.backbones.internvideo2.config import MEAN, STD
from sidelight.backbones.internvideo2.weights import load_weights
from sidelight.backbones.protocol import FeatureSpec

CLIPS_AT_ONCE = 8
"""Clips in one batch of the video tower. Each clip takes about 60 MB of activations in the 1B model in float32."""
QUERIES_AT_ONCE = 64
"""Queries in one batch of the text tower."""

POOLINGS = ("cls", "mean", "attention", "tokens", "joint")
_PUNCTUATION = re.compile(r"[,.'!?\"()*#:;~]")


class InternVideo2Backbone:
    """InternVideo2, frozen, behind the :class:`~sidelight.backbones.protocol.Backbone` protocol.

    Text levels are counted like video levels: -1 is the last layer before the fusion, which is the 19th of BERT-large.

    Args:
        weights: folder that :func:`~sidelight.backbones.internvideo2.convert.convert_internvideo2` wrote.
        levels: number of last layers to return, or the layers themselves (negative, -1 is the last); unless given, 4,
            or 1 with ``joint``.
        pooling: ``cls``; ``mean`` of the patches; ``attention``, the frozen pool of the last level on every level;
            ``tokens``, which keeps all tokens; or ``joint``, the embeddings that the published training compares.
        dtype: type in which the towers compute: ``float32``, ``bfloat16`` or ``float16``. The type is not part of the
            spec: features of one type serve a model trained on features of another, up to rounding.
        frames_per_clip: frames of a clip; unless given, the number that the checkpoint was trained with (4 in the
            released one). A single frame is read as an image.
        clip_seconds: length of a clip in seconds.

    Raises:
        ValueError: for levels that the towers do not have, an unknown option, or missing weights.
    """

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        levels: int | Sequence[int] | None = None,
        pooling: str = "attention",
        dtype: str = "float32",
        frames_per_clip: int | None = None,
        clip_seconds: float = 2.0,
    ) -> None:
        if weights is None:
            raise ValueError("internvideo2 needs weights: the folder that `sidelight convert internvideo2` made")
        check_pooling(pooling, POOLINGS, model="InternVideo2")
        self.model, self.tokenizer, digest = load_weights(weights, dtype=dtype_of(dtype))
        video, text = self.model.config.video, self.model.config.text
        self.spec = FeatureSpec(
            backbone="internvideo2",
            weights=digest,
            levels=choose_levels(levels, min(video.depth, text.depth), model="this InternVideo2", pooling=pooling),
            pooling=pooling,
            clip_seconds=clip_seconds,
            frames_per_clip=video.frames if frames_per_clip is None else frames_per_clip,
            resolution=video.resolution,
            resize="stretch",
            mean=MEAN,
            std=STD,
            video_dim=self._video_dim(pooling),
            text_dim=self.model.config.joint if pooling == "joint" else text.width,
        )

    def _video_dim(self, pooling: str) -> int:
        config = self.model.config
        return {"attention": config.video.pool_width, "joint": config.joint}.get(pooling, config.video.width)

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return self.model.temp.device

    def to(self, device: torch.device | str) -> InternVideo2Backbone:
        """Move the weights, and return the backbone itself."""
        self.model.to(device)
        return self

    def normalise(self, frames_CFSS3: Tensor) -> Tensor:
        """Return uint8 RGB frames as normalised (C, F, 3, S, S), with the device and type of the model."""
        raw = frames_CFSS3.to(self.device, non_blocking=True).permute(0, 1, 4, 2, 3).float()
        mean, std = (raw.new_tensor(values)[:, None, None] for values in (MEAN, STD))
        return torch.addcmul(-mean / std, raw, 1 / (255 * std)).to(self.model.temp.dtype)

    @torch.inference_mode()
    def encode_video(self, frames_CFSS3: Tensor) -> Tensor:
        """Encode uint8 RGB frames to float32 (K, C, D_v), or (K, C, P, D_v) where pooling is ``tokens``.

        Blocks after the last level are not run. Each level is pooled at once, so that memory holds one at a time.
        """
        check_frames(frames_CFSS3, self.spec)
        batches = [self._levels(self.normalise(batch)) for batch in frames_CFSS3.split(CLIPS_AT_ONCE)]
        return torch.cat(batches, dim=1)

    def _levels(self, pixels_CF3SS: Tensor) -> Tensor:
        tower = self.model.vision_encoder
        indices = [tower.config.depth + level for level in self.spec.levels]
        levels = []
        for i, tokens_CPD in enumerate(tower.layers(pixels_CF3SS)):
            if i in indices:
                if self.spec.pooling == "joint":
                    return joint_embedding(self.model.join_video(tower.clip_projector(tokens_CPD))[:, None])
                levels.append(pool_tokens(tokens_CPD, self.spec.pooling, tower.clip_projector).float())
            if i == indices[-1]:
                break
        return torch.stack(levels)

    @torch.inference_mode()
    def encode_text(self, queries: Sequence[str]) -> list[Tensor]:
        """Encode each query to float32 (K, L, D_t), where token 0 is CLS; or to (1, 1, D_t) where pooling is ``joint``.

        Raises:
            ValueError: for a query without a word, or with more tokens than the text tower has positions.
        """
        rows = [self._token_ids(query) for query in queries]
        # Sentences of similar length share a batch, because padding costs time.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        encoded: dict[int, Tensor] = {}
        for start in range(0, len(order), QUERIES_AT_ONCE):
            batch = order[start : start + QUERIES_AT_ONCE]
            ids_BL, mask_BL = self.tokenizer.batch([rows[i] for i in batch])
            layers = list(self.model.text_encoder.layers(ids_BL.to(self.device), mask_BL.to(self.device)))
            if self.spec.pooling == "joint":
                embeddings = sentence_embeddings(self.model.join_text(layers[-1][:, 0]))
                encoded |= dict(zip(batch, embeddings, strict=True))
                continue
            levels_KBLD = torch.stack([layers[level] for level in self.spec.levels]).float()
            encoded |= {i: levels_KBLD[:, b, : len(rows[i])].clone() for b, i in enumerate(batch)}
        return [encoded[i] for i in range(len(rows))]

    def _token_ids(self, query: str) -> list[int]:
        ids = self.tokenizer(clean_text(query))
        check_tokens(query, ids, self.model.config.text.positions, special=1)
        return ids


def clean_text(query: str) -> str:
    """Return a sentence as the text tower was trained on: lower case, little punctuation, single spaces.

    Hyphens and slashes become spaces; apostrophes vanish ("man's" becomes "mans"). The published training and
    evaluation clean sentences in this way; the published demo does not.
    """
    text = _PUNCTUATION.sub("", query.lower()).replace("-", " ").replace("/", " ").replace("<person>", "person")
    return " ".join(text.split())
