"""The embedded backbone: a small two-tower video-language transformer that knows the shapes world.

It is trained by ``pretrain.py`` from pixels and sentences alone, ships inside the package, and stands
behind the same protocol as the large ones, so that everything else can be used, taught and tested offline.

Video: each 64 x 64 picture, together with its change from the picture before, goes through a convolutional stem;
two pictures make 16 tokens of 16 x 16 pixels. All tokens of a clip, and a CLS token, attend to one another.
Text: words and, for unknown ones, pieces down to letters; a CLS token first.

Legend: C clips, F frames, S side, P tokens of a clip (1 + 16 F/2), B sentences, L tokens, D width, K levels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidelight.backbones.protocol import FeatureSpec, weights_digest
from sidelight.backbones.shapes.tokenizer import PAD, Tokenizer
from sidelight.io.files import replacing

PACKAGED = Path(__file__).resolve().parents[2] / "weights" / "shapes-backbone"
MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)


@dataclass(frozen=True, kw_only=True)
class ShapesBackboneConfig:
    """Sizes of the two towers."""

    resolution: int = 64
    """Side of a picture in pixels; a multiple of 16."""
    frames_per_clip: int = 8
    """Pictures per clip; even."""
    clip_seconds: float = 2.0
    """Seconds per clip."""
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
    """Longest query in tokens."""
    joint: int = 128
    """Width of the space in which a clip and a sentence are compared."""

    def __post_init__(self) -> None:
        if self.resolution % 16:
            raise ValueError(f"resolution must be a multiple of 16, got {self.resolution}")
        if self.frames_per_clip % 2:
            raise ValueError(f"frames_per_clip must be even, got {self.frames_per_clip}")
        if self.width % self.heads or self.text_width % self.text_heads:
            raise ValueError("width must be divisible by heads, and text_width by text_heads")


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
        found: Tensor = x_BLD + self.down(F.gelu(self.up(self.norm_2(x_BLD))))
        return found


class Stem(nn.Module):
    """Pictures to tokens: two strided convolutions over a picture and its change, a third over two of these."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(6, 48, kernel_size=6, stride=4, padding=1)
        self.second = nn.Conv2d(48, 96, kernel_size=3, stride=2, padding=1)
        self.norm_1, self.norm_2 = nn.GroupNorm(8, 48), nn.GroupNorm(8, 96)
        self.pair = nn.Conv2d(2 * 96, width, kernel_size=3, stride=2, padding=1)

    def forward(self, pixels_CF3SS: Tensor) -> Tensor:
        """(C, F, 3, S, S) normalised pixels to (C, F/2, (S/16)^2, D)."""
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
    """One vector from a clip's tokens: a learned question, asked of the tokens' mean too, over all of them."""

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
        found: Tensor = self.out(pooled.transpose(1, 2).reshape(clips, width))
        return found


class VideoTower(nn.Module):
    """Clips of pictures to the tokens of every layer."""

    def __init__(self, config: ShapesBackboneConfig) -> None:
        super().__init__()
        self.stem = Stem(config.width)
        cells = (config.resolution // 16) ** 2
        self.cls = nn.Parameter(torch.randn(config.width) * 0.02)
        self.space = nn.Parameter(torch.randn(cells, config.width) * 0.02)
        self.time = nn.Parameter(torch.randn(config.frames_per_clip // 2, 1, config.width) * 0.02)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.pool = AttentionPool(config.width, config.heads)

    def layers(self, frames_CFSS3: Tensor) -> Iterator[Tensor]:
        """uint8 (C, F, S, S, 3) to the (C, P, D) tokens after each layer, shallowest first."""
        pixels = frames_CFSS3.permute(0, 1, 4, 2, 3).to(self.cls.dtype) / 255
        pixels = (pixels - MEAN[0]) / STD[0]  # the same for all three channels
        tokens = (self.stem(pixels) + self.space + self.time).flatten(1, 2)
        x = torch.cat([self.cls.expand(len(tokens), 1, -1), tokens], dim=1)
        for block in self.blocks:
            x = block(x)
            yield x


class TextTower(nn.Module):
    """Token ids to the tokens of every layer."""

    def __init__(self, config: ShapesBackboneConfig, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, config.text_width)
        nn.init.normal_(self.embedding.weight, std=0.05)
        self.position = nn.Parameter(torch.randn(config.text_length, config.text_width) * 0.02)
        self.blocks = nn.ModuleList(Block(config.text_width, config.text_heads) for _ in range(config.text_depth))

    def layers(self, ids_BL: Tensor) -> Iterator[Tensor]:
        """(B, L) token ids, padded with PAD, to the (B, L, D_t) tokens after each layer."""
        mask = (ids_BL != PAD)[:, None, None]
        x = self.embedding(ids_BL) + self.position[: ids_BL.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
            yield x


class TwoTowers(nn.Module):
    """Both towers and the joint space; what is trained and stored."""

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
        """(C, D) vectors: the last layer's tokens, pooled."""
        *_, last = self.video.layers(frames_CFSS3)
        pooled: Tensor = self.video.pool(last)
        return pooled

    def join_video(self, pooled_CD: Tensor) -> Tensor:
        """Pooled clips to (C, joint) unit vectors."""
        return F.normalize(self.video_projection(pooled_CD), dim=-1)

    def embed_text(self, ids_BL: Tensor) -> Tensor:
        """(B, joint) unit vectors."""
        *_, last = self.text.layers(ids_BL)
        return F.normalize(self.text_projection(self.text_norm(last[:, 0])), dim=-1)

    def save(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` (float16) and ``config.json``."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.detach().half().contiguous() for k, v in self.state_dict().items()}
        with replacing(folder / "model.safetensors") as weights, replacing(folder / "config.json") as config:
            config.write_text(json.dumps(asdict(self.config), indent=2) + "\n")
            save_file(tensors, weights, {"format": "pt"})

    @classmethod
    def load(cls, folder: str | Path) -> TwoTowers:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: if the folder or one of its files is missing.
        """
        from safetensors.torch import load_file

        folder = Path(folder)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise ValueError(
                    f"{folder} is no shapes backbone: {name} is missing; make one with `sidelight pretrain`"
                )
        model = cls(ShapesBackboneConfig(**json.loads((folder / "config.json").read_text())))
        model.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
        return model


class ShapesBackbone:
    """The embedded backbone, frozen, behind the :class:`~sidelight.backbones.protocol.Backbone` protocol.

    Args:
        levels: how many of the last layers to return, or which ones (negative, -1 the last).
        pooling: ``cls``, ``mean``, ``attention`` (the last layer's frozen pool, reused on every level) or
            ``tokens``.
        weights: folder of the weights; those shipped with the package unless given.

    Raises:
        ValueError: for levels that the towers do not have, an unknown pooling, or missing weights.
    """

    def __init__(
        self,
        *,
        levels: int | Sequence[int] = 4,
        pooling: str = "attention",
        weights: str | Path | None = None,
    ) -> None:
        self.model = TwoTowers.load(weights or PACKAGED).eval().requires_grad_(False)
        config = self.model.config
        chosen = tuple(range(-levels, 0)) if isinstance(levels, int) else tuple(levels)
        deepest = min(config.depth, config.text_depth)
        if not chosen or min(chosen) < -deepest:
            raise ValueError(f"the shapes backbone has levels -{deepest} to -1; got {chosen}")
        self._spec = FeatureSpec(
            backbone="shapes",
            weights=weights_digest(self.model.state_dict()),
            levels=chosen,
            pooling=pooling,
            clip_seconds=config.clip_seconds,
            frames_per_clip=config.frames_per_clip,
            resolution=config.resolution,
            resize="stretch",
            mean=MEAN,
            std=STD,
            video_dim=config.width,
            text_dim=config.text_width,
        )

    @property
    def spec(self) -> FeatureSpec:
        """The spec of the features that the two encoders return."""
        return self._spec

    @property
    def device(self) -> torch.device:
        return self.model.log_scale.device

    def to(self, device: torch.device | str) -> ShapesBackbone:
        """Move the weights; returns itself."""
        self.model.to(device)
        return self

    @torch.inference_mode()
    def encode_video(self, frames_CFSS3: Tensor) -> Tensor:
        """uint8 RGB (C, F, S, S, 3) to (K, C, D_v), or (K, C, P, D_v) where pooling is ``tokens``."""
        expected = (self.spec.frames_per_clip, self.spec.resolution, self.spec.resolution, 3)
        if frames_CFSS3.dtype != torch.uint8 or frames_CFSS3.shape[1:] != expected:
            raise ValueError(
                f"frames must be uint8 of shape (clips, {', '.join(map(str, expected))}); "
                f"got {frames_CFSS3.dtype} {tuple(frames_CFSS3.shape)}"
            )
        layers = list(self.model.video.layers(frames_CFSS3.to(self.device)))
        return torch.stack([self._pool(layers[level]) for level in self.spec.levels])

    def _pool(self, tokens_CPD: Tensor) -> Tensor:
        match self.spec.pooling:
            case "cls":
                return tokens_CPD[:, 0]
            case "mean":
                return tokens_CPD[:, 1:].mean(1)
            case "attention":
                pooled: Tensor = self.model.video.pool(tokens_CPD)
                return pooled
        return tokens_CPD

    @torch.inference_mode()
    def encode_text(self, queries: Sequence[str]) -> list[Tensor]:
        """Sentences to (K, L, D_t) each, token 0 the CLS token.

        Raises:
            ValueError: for a query without any letter or digit, or longer than the tower reads.
        """
        if not queries:
            return []
        ids, lengths = self.model.tokenizer.batch(queries, longest=self.model.config.text_length)
        layers = list(self.model.text.layers(ids.to(self.device)))
        stacked = torch.stack([layers[level] for level in self.spec.levels])
        return [stacked[:, i, :length].clone() for i, length in enumerate(lengths)]
