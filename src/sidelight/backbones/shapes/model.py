"""The embedded backbone: a small two-tower video-language transformer for the shapes world.

``pretrain.py`` trains it from pixels and sentences alone. The weights ship inside the package, and the backbone has the
same protocol as the large ones, so that all of sidelight can be used, taught and tested offline.

Video: a convolutional stem reads each 64 x 64 frame together with its difference from the previous frame. Two frames
make 16 tokens of 16 x 16 pixels. All tokens of a clip, and a CLS token, attend to one another.
Text: a CLS token, then words; unknown words become pieces or letters.

Legend: C clips, F frames, S side, P tokens of a clip (1 + 16 F/2), B sentences, L tokens, D width, K levels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidelight.backbones.common import (
    check_chunks,
    check_frames,
    check_pooling,
    choose_levels,
    joint_embedding,
    pool_tokens,
    sentence_embeddings,
    weights_digest,
)
from sidelight.backbones.protocol import FeatureSpec, TokenShape, TowerSpec
from sidelight.backbones.shapes.tokenizer import PAD, Tokenizer
from sidelight.core.options import check_types, require
from sidelight.io.files import read_json, replacing
from sidelight.io.tensors import check_shapes, shapes_only, write_tensors

PACKAGED = Path(__file__).resolve().parents[2] / "weights" / "shapes-backbone"
MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)


@dataclass(frozen=True, kw_only=True)
class ShapesBackboneConfig:
    """Sizes of the two towers."""

    resolution: int = 64
    """Side of a frame in pixels; a multiple of 16."""
    frames_per_clip: int = 8
    """Frames per clip; even."""
    clip_seconds: float = 2.0
    """Length of a clip in seconds."""
    width: int = 128
    """Width of the video tower, D_v."""
    depth: int = 5
    """Layers of the video tower."""
    heads: int = 4
    """Attention heads of the video tower and of its pool."""
    text_width: int = 128
    """Width of the text tower, D_t."""
    text_depth: int = 4
    """Layers of the text tower."""
    text_heads: int = 4
    """Attention heads of the text tower."""
    text_length: int = 64
    """Length of the longest query in tokens."""
    joint: int = 128
    """Width of the joint space, in which clips are compared with sentences."""

    def __post_init__(self) -> None:
        check_types(self)
        for field in fields(self):
            require(self, getattr(self, field.name) > 0, field.name, "above 0")
        require(self, self.resolution % 16 == 0, "resolution", "a multiple of 16")
        require(self, self.frames_per_clip % 2 == 0, "frames_per_clip", "even")
        for width, heads in (("width", "heads"), ("text_width", "text_heads")):
            divisible = getattr(self, width) % getattr(self, heads) == 0
            require(self, divisible, width, f"divisible by {heads} ({getattr(self, heads)})")


class Block(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BLD: Tensor, mask_B11L: Tensor | None = None) -> Tensor:
        batch, length, width = x_BLD.shape
        qkv = self.qkv(self.norm_1(x_BLD)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B11L)
        x_BLD = x_BLD + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        x_BLD = x_BLD + self.down(F.gelu(self.up(self.norm_2(x_BLD))))
        return x_BLD


class Stem(nn.Module):
    """The convolutional stem: two strided convolutions on a frame and its change, then one on each pair of frames."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(6, 48, kernel_size=6, stride=4, padding=1)
        self.second = nn.Conv2d(48, 96, kernel_size=3, stride=2, padding=1)
        self.norm_1, self.norm_2 = nn.GroupNorm(8, 48), nn.GroupNorm(8, 96)
        self.pair = nn.Conv2d(2 * 96, width, kernel_size=3, stride=2, padding=1)

    def forward(self, pixels_CF3SS: Tensor) -> Tensor:
        """Return the tokens (C, F/2, (S/16)^2, D) of normalised pixels."""
        clips, frames = pixels_CF3SS.shape[:2]
        change = torch.zeros_like(pixels_CF3SS)
        change[:, 1:] = pixels_CF3SS[:, 1:] - pixels_CF3SS[:, :-1]
        x = torch.cat([pixels_CF3SS, change], dim=2).flatten(0, 1)
        x = x.contiguous(memory_format=torch.channels_last)
        x = F.relu(self.norm_1(self.first(x)))
        x = F.relu(self.norm_2(self.second(x)))
        x = self.pair(x.reshape(clips * frames // 2, -1, *x.shape[2:]))
        tokens: Tensor = x.flatten(2).transpose(1, 2)
        return tokens.reshape(clips, frames // 2, *tokens.shape[1:])


class AttentionPool(nn.Module):
    """One vector per clip: the query is a learned vector plus the mean of the tokens; it attends to all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.question = nn.Parameter(torch.randn(width) * 0.02)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens_CPD: Tensor) -> Tensor:
        clips, length, width = tokens_CPD.shape
        tokens_CPD = self.norm(tokens_CPD)
        query = self.query(self.question + tokens_CPD.mean(1)).view(clips, 1, self.heads, -1).transpose(1, 2)
        key, value = self.key_value(tokens_CPD).view(clips, length, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        pooled = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.out(pooled.transpose(1, 2).reshape(clips, width))
        return projected


class VideoTower(nn.Module):
    """The video tower: clips of frames to the tokens of every layer."""

    def __init__(self, config: ShapesBackboneConfig) -> None:
        super().__init__()
        self.stem = Stem(config.width)
        cells = (config.resolution // 16) ** 2
        self.cls = nn.Parameter(torch.randn(config.width) * 0.02)
        self.space = nn.Parameter(torch.randn(cells, config.width) * 0.02)
        self.time = nn.Parameter(torch.randn(config.frames_per_clip // 2, 1, config.width) * 0.02)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.pool = AttentionPool(config.width, config.heads)

    def embed(self, frames_CFSS3: Tensor) -> Tensor:
        """Return the tokens (C, P, D) before the first layer, for uint8 frames."""
        pixels = frames_CFSS3.permute(0, 1, 4, 2, 3).to(self.cls.dtype) / 255
        pixels = (pixels - MEAN[0]) / STD[0]  # all three channels have the same values
        tokens = (self.stem(pixels) + self.space + self.time).flatten(1, 2)
        return torch.cat([self.cls.expand(len(tokens), 1, -1), tokens], dim=1)

    def layers(self, frames_CFSS3: Tensor) -> Iterator[Tensor]:
        """Yield the tokens (C, P, D) after each layer, shallowest first, for uint8 frames."""
        x = self.embed(frames_CFSS3)
        for block in self.blocks:
            x = block(x)
            yield x


class TextTower(nn.Module):
    """The text tower: token ids to the tokens of every layer."""

    def __init__(self, config: ShapesBackboneConfig, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, config.text_width)
        nn.init.normal_(self.embedding.weight, std=0.05)
        self.position = nn.Parameter(torch.randn(config.text_length, config.text_width) * 0.02)
        self.blocks = nn.ModuleList(Block(config.text_width, config.text_heads) for _ in range(config.text_depth))

    def layers(self, ids_BL: Tensor) -> Iterator[Tensor]:
        """Yield the tokens (B, L, D_t) after each layer, shallowest first, for token ids padded with PAD."""
        mask = (ids_BL != PAD)[:, None, None]
        x = self.embedding(ids_BL) + self.position[: ids_BL.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
            yield x


class TwoTowers(nn.Module):
    """Both towers and their joint space: the model that is trained and stored."""

    def __init__(self, config: ShapesBackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = Tokenizer()
        self.video = VideoTower(config)
        self.text = TextTower(config, len(self.tokenizer))
        self.text_norm = nn.LayerNorm(config.text_width)
        self.video_projection = nn.Linear(config.width, config.joint, bias=False)
        self.text_projection = nn.Linear(config.text_width, config.joint, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(2.6))

    def pool_video(self, frames_CFSS3: Tensor) -> Tensor:
        """Return one vector per clip, (C, D): the pooled tokens of the last layer."""
        *_, last = self.video.layers(frames_CFSS3)
        pooled: Tensor = self.video.pool(last)
        return pooled

    def join_video(self, pooled_CD: Tensor) -> Tensor:
        """Project pooled clips to unit vectors of the joint space, (C, joint)."""
        return F.normalize(self.video_projection(pooled_CD), dim=-1)

    def embed_text(self, ids_BL: Tensor) -> Tensor:
        """Encode sentences to unit vectors of the joint space, (B, joint)."""
        *_, last = self.text.layers(ids_BL)
        return F.normalize(self.text_projection(self.text_norm(last[:, 0])), dim=-1)

    def save(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` (float16) and ``config.json``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Both are renamed together, so that no weights lie beside the configuration of others.
        with replacing(folder / "model.safetensors") as weights, replacing(folder / "config.json") as config:
            write_tensors({k: v.detach().half() for k, v in self.state_dict().items()}, weights, {"format": "pt"})
            config.write_text(json.dumps(asdict(self.config), indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> TwoTowers:
        """Read the weights that :meth:`save` wrote.

        Raises:
            ValueError: if the folder or one of its files is missing.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise ValueError(
                    f"{folder} is no shapes backbone: {name} is missing; make one with `sidelight pretrain`"
                )
        try:
            config = ShapesBackboneConfig(**read_json(folder / "config.json"))
            tensors = load_file(folder / "model.safetensors")
        except (TypeError, SafetensorError) as error:
            raise ValueError(f"{folder} is no shapes backbone: {error}; make one with `sidelight pretrain`") from None
        with shapes_only():  # sizes are compared before memory is taken for them
            expected = {key: tensor.shape for key, tensor in cls(config).state_dict().items()}
        shapes = {key: tensor.shape for key, tensor in tensors.items()}
        what, advice = "the weights that fit config.json", "make both again with `sidelight pretrain`"
        check_shapes(shapes, expected, folder / "model.safetensors", what=what, advice=advice)
        model = cls(config)
        model.load_state_dict({k: v.float() for k, v in tensors.items()})
        return model


class KnowsOneWorld:
    """The methods of :class:`~sidelight.backbones.protocol.LimitedBackbone`."""

    def video_doubt(self, video: str | Path, model: str) -> str | None:
        """Return a sentence if a video is outside the shapes world (:mod:`sidelight.backbones.shapes.outside`)."""
        from sidelight.backbones.shapes.outside import video_doubt

        return video_doubt(video, model)

    def query_doubt(self, query: str, model: str) -> str | None:
        """Return a sentence that names the words of a query that the backbone never saw; None if it saw all."""
        from sidelight.backbones.shapes.outside import query_doubt

        return query_doubt(query, model)


class ShapesTower(nn.Module, KnowsOneWorld):
    """The video tower behind the :class:`~sidelight.backbones.protocol.TrainableTower` protocol; a chunk is a clip.

    Args:
        weights: folder of the weights; unless given, the weights shipped with the package.

    Raises:
        ValueError: if the weights are missing.
    """

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        model = TwoTowers.load(weights or PACKAGED)
        config, side = model.config, model.config.resolution // 16
        self.spec = TowerSpec(
            backbone="shapes",
            weights=weights_digest(model.state_dict()),
            frames=config.frames_per_clip,
            resolution=config.resolution,
            grid=(config.frames_per_clip // 2, side, side),
            prefix=1,
            width=config.width,
            depth=config.depth,
        )
        self.tower = model.video
        del self.tower.pool  # reads the tokens after the last block, which are returned here
        self.eval().requires_grad_(False)

    @property
    def blocks(self) -> nn.ModuleList:
        """Return the blocks, shallowest first."""
        return self.tower.blocks

    @property
    def stages(self) -> tuple[TokenShape, ...]:
        """Return the shape of the tokens after each block: the same after all."""
        return (self.spec,) * self.spec.depth

    def embed(self, frames_NFSS3: Tensor) -> Tensor:
        """Return the tokens (N, P, D) that the first block reads, CLS first."""
        check_chunks(frames_NFSS3, self.spec)
        return self.tower.embed(frames_NFSS3)

    def finish(self, tokens_NPD: Tensor) -> Tensor:
        """Return the tokens as they are: no layer follows the last block."""
        return tokens_NPD


POOLINGS = ("cls", "mean", "attention", "tokens", "joint")


class ShapesBackbone(KnowsOneWorld):
    """The embedded backbone, frozen, behind the :class:`~sidelight.backbones.protocol.Backbone` protocol.

    Args:
        levels: number of last layers to return, or the layers themselves (negative, -1 is the last); unless given, 4,
            or 1 with ``joint``.
        pooling: ``cls``, ``mean``, ``attention`` (the frozen pool of the last layer on every level), ``tokens``, or
            ``joint`` (the embeddings that the pretraining compares).
        weights: folder of the weights; unless given, the weights shipped with the package.
        clip_seconds: length of a clip; must be the length that the backbone was trained on.
        frames_per_clip: frames of a clip; must be the number that the backbone was trained on.

    Raises:
        ValueError: for levels that the towers do not have, an unknown pooling, missing weights, or clips that differ
            from those of the training.
    """

    def __init__(
        self,
        *,
        levels: int | Sequence[int] | None = None,
        pooling: str = "attention",
        weights: str | Path | None = None,
        clip_seconds: float | None = None,
        frames_per_clip: int | None = None,
    ) -> None:
        check_pooling(pooling, POOLINGS, model="the shapes backbone")
        self.model = TwoTowers.load(weights or PACKAGED).eval().requires_grad_(False)
        config = self.model.config
        for name, value in (("clip_seconds", clip_seconds), ("frames_per_clip", frames_per_clip)):
            if value not in (None, trained := getattr(config, name)):
                raise ValueError(
                    f"{name} must be {trained:g}, got {value:g}: the shapes backbone was trained on such clips; leave "
                    f"{name} out"
                )
        self.spec = FeatureSpec(
            backbone="shapes",
            weights=weights_digest(self.model.state_dict()),
            levels=choose_levels(
                levels, min(config.depth, config.text_depth), model="the shapes backbone", pooling=pooling
            ),
            pooling=pooling,
            clip_seconds=config.clip_seconds,
            frames_per_clip=config.frames_per_clip,
            resolution=config.resolution,
            resize="stretch",
            mean=MEAN,
            std=STD,
            video_dim=config.joint if pooling == "joint" else config.width,
            text_dim=config.joint if pooling == "joint" else config.text_width,
        )

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return self.model.log_scale.device

    def to(self, device: torch.device | str) -> ShapesBackbone:
        """Move the weights, and return the backbone itself."""
        self.model.to(device)
        return self

    @torch.inference_mode()
    def encode_video(self, frames_CFSS3: Tensor) -> Tensor:
        """Encode uint8 RGB frames to (K, C, D_v), or (K, C, P, D_v) where pooling is ``tokens``."""
        check_frames(frames_CFSS3, self.spec)
        if self.spec.pooling == "joint":
            pooled_CD = self.model.pool_video(frames_CFSS3.to(self.device))
            return joint_embedding(self.model.join_video(pooled_CD)[:, None])
        layers = list(self.model.video.layers(frames_CFSS3.to(self.device)))
        pooling, attention_pool = self.spec.pooling, self.model.video.pool
        return torch.stack([pool_tokens(layers[level], pooling, attention_pool) for level in self.spec.levels])

    @torch.inference_mode()
    def encode_text(self, queries: Sequence[str]) -> list[Tensor]:
        """Encode each query to (K, L, D_t), where token 0 is CLS; or to (1, 1, D_t) where pooling is ``joint``.

        Raises:
            ValueError: for a query without a letter or digit, or longer than the text tower reads.
        """
        if not queries:
            return []
        ids, lengths = self.model.tokenizer.batch(queries, max_tokens=self.model.config.text_length)
        if self.spec.pooling == "joint":
            return sentence_embeddings(self.model.embed_text(ids.to(self.device)))
        layers = list(self.model.text.layers(ids.to(self.device)))
        levels_KBLD = torch.stack([layers[level] for level in self.spec.levels])
        return [levels_KBLD[:, b, :length].clone() for b, length in enumerate(lengths)]
