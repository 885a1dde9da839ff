"""InternVideo2, Stage 2: a video tower of one or six billion parameters, and the first layers of BERT-large.

Paper: InternVideo2: Scaling Foundation Models for Multimodal Video Understanding (Wang et al., ECCV 2024, arXiv
2403.15377). The video tower cuts every frame into 14 x 14 patches, puts a CLS token before them, and lets all tokens
of a clip attend to one another. Its attention pool asks the mean of the tokens what the clip is about; here this
frozen pool is reused on every level that is asked for. The text tower is BERT-large up to its fusion layers.

What differs from the published code, and why:

- Attention is PyTorch's own (``scaled_dot_product_attention``), normalisation too: no compiled extras.
- The activation is the tanh form of GELU unless told otherwise: the fused kernel, with which the released model was
  trained, has this one. The published fallback without that kernel has the exact form and gives other numbers.
- A patch is a row of a matrix product: a convolution whose stride is its kernel is no more than that, and slower.
- Layer scale and the residual sum are one operation: a rounding less in half precision.
- Sentences are not cut off at 40 tokens; one that the position table cannot hold is refused.
- The heads that only the distillation needs are built on request alone (``alignment``), and are not converted.
- Pictures are scaled as sidelight's decoder does it (bicubic, as the published evaluation; its demo is bilinear).

Names inside the video tower are the published ones. A published ``.pt`` is a pickle: :func:`convert_internvideo2`
reads it once, with the reader that runs no code, and writes a folder of safetensors that everything else reads.

Legend: C clips, F frames of a clip, S side in pixels, N patches of a frame, P tokens of a clip (1 + F N), D width of
the video tower, E width of its pool, J of the joint space, K levels, B sentences, L tokens of a sentence.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidelight.backbones.internvideo2 import bert
from sidelight.backbones.internvideo2.bert import Bert, BertConfig
from sidelight.backbones.internvideo2.wordpiece import WordPiece
from sidelight.backbones.protocol import POOLINGS, FeatureSpec, weights_digest
from sidelight.core.options import check_types, require
from sidelight.io.files import replacing_folder, require_new_folder, write_text
from sidelight.io.tensors import check_shapes, check_values, existing_file, named_tensors, read_tensors, write_tensors

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FILES = ("config.json", "model.safetensors", "vocab.txt")
CLIPS_AT_ONCE = 8
"""Clips that the video tower sees together; each takes some 60 MB of activations in the 1B model in float32."""
QUERIES_AT_ONCE = 64
"""Sentences that the text tower sees together."""

_AGAIN = "convert the published checkpoint again, into a new folder: sidelight convert internvideo2 FILE.pt --out DIR"
_RMS_EPSILON = 1e-6
_SAMPLE = 64
"""Values of each tensor that are looked at when weights are loaded, to see that they are what the digest is of."""


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """Sizes of the video tower; those of the 1B model unless given."""

    width: int = 1408
    """D."""
    depth: int = 40
    """Blocks."""
    heads: int = 16
    """Attention heads of a block."""
    hidden: int = 6144
    """Width inside the feed-forward part."""
    activation: Literal["gelu_tanh", "gelu"] = "gelu_tanh"
    """The tanh form of GELU, with which the released weights were trained, or the exact one."""
    patch: int = 14
    """Side of a patch in pixels."""
    resolution: int = 224
    """Side of a picture in pixels."""
    frames: int = 4
    """Frames of a clip that the position table was trained for."""
    pool_width: int = 768
    """E."""
    pool_heads: int = 16
    """Attention heads of the pool."""
    align_levels: int = 6
    """Blocks, counted from the last, that the distillation read."""
    align_width: int = 3200
    """Width of the tokens of the teacher."""
    align_pool_width: int = 768
    """Width of the pooled output of the teacher."""

    def __post_init__(self) -> None:
        check_types(self)
        for field in dataclasses.fields(self):
            if field.name != "activation":
                require(self, getattr(self, field.name) > 0, field.name, "more than 0")
        require(self, self.width % self.heads == 0, "width", f"divisible by the {self.heads} heads")
        require(self, self.width % self.pool_heads == 0, "width", f"divisible by the {self.pool_heads} pool_heads")
        require(self, self.resolution % self.patch == 0, "resolution", f"a multiple of the patch, {self.patch}")

    @property
    def grid(self) -> int:
        """Patches along a side of a picture."""
        return self.resolution // self.patch


SIZES: dict[str, VideoConfig] = {
    "6b": VideoConfig(width=3200, depth=48, heads=25, hidden=12800),
    "1b": VideoConfig(),
    "large": VideoConfig(width=1024, depth=24, heads=16, hidden=4096),
    "base": VideoConfig(width=768, depth=12, heads=12, hidden=3072),
    "small": VideoConfig(width=384, depth=12, heads=6, hidden=1536),
}
"""The published video towers; the three smaller ones are distilled from the larger."""


@dataclass(frozen=True, kw_only=True)
class InternVideo2Config:
    """Both towers and the space in which they meet."""

    video: VideoConfig = dataclasses.field(default_factory=VideoConfig)
    """The video tower."""
    text: BertConfig = dataclasses.field(default_factory=BertConfig)
    """The text tower."""
    joint: int = 512
    """J."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self, self.joint > 0, "joint", "more than 0")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InternVideo2Config:
        """From the plain values of ``dataclasses.asdict``.

        Raises:
            ValueError: for an unknown field or a wrong value.
        """
        try:
            video, text = VideoConfig(**values["video"]), BertConfig(**values["text"])
            return cls(video=video, text=text, **{k: v for k, v in values.items() if k not in ("video", "text")})
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no configuration of InternVideo2: {error}") from None


# ---------------------------------------------------------------------------------------------- the video tower


class LayerScale(nn.Module):
    """A factor per channel on what a block adds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x_CPD: Tensor, added_CPD: Tensor) -> Tensor:
        return torch.addcmul(x_CPD, added_CPD, self.gamma)  # half precision is computed in float32 inside


class Attention(nn.Module):
    """Self-attention whose queries and keys are normalised over the whole width, before it falls into heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm, self.k_norm = (nn.RMSNorm(width, eps=_RMS_EPSILON) for _ in range(2))
        self.proj = nn.Linear(width, width)

    def forward(self, x_CPD: Tensor) -> Tensor:
        q, k, v = self.qkv(x_CPD).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q_norm(q), self.k_norm(k), v))
        attended = F.scaled_dot_product_attention(q, k, v)
        found: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return found


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.approximate = "tanh" if activation == "gelu_tanh" else "none"
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x_CPD: Tensor) -> Tensor:
        found: Tensor = self.fc2(F.gelu(self.fc1(x_CPD), approximate=self.approximate))
        return found


class Block(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: VideoConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1, self.norm2 = (nn.RMSNorm(width, eps=_RMS_EPSILON) for _ in range(2))
        self.attn = Attention(width, config.heads)
        self.mlp = FeedForward(width, config.hidden, config.activation)
        self.ls1, self.ls2 = LayerScale(width), LayerScale(width)

    def forward(self, x_CPD: Tensor) -> Tensor:
        x_CPD = self.ls1(x_CPD, self.attn(self.norm1(x_CPD)))
        found: Tensor = self.ls2(x_CPD, self.mlp(self.norm2(x_CPD)))
        return found


class PatchEmbedding(nn.Module):
    """Pictures to patches, and each patch to a token."""

    def __init__(self, config: VideoConfig) -> None:
        super().__init__()
        kernel = (1, config.patch, config.patch)
        self.patch = config.patch
        self.proj = nn.Conv3d(3, config.width, kernel_size=kernel, stride=kernel)  # for the names and the shape

    def forward(self, pixels_CF3SS: Tensor) -> Tensor:
        """To (C, F, N, D); patches in the order of reading."""
        clips, frames, channels, side, _ = pixels_CF3SS.shape
        grid, patch = side // self.patch, self.patch
        cut = pixels_CF3SS.reshape(clips, frames, channels, grid, patch, grid, patch)
        rows = cut.permute(0, 1, 3, 5, 2, 4, 6).reshape(clips, frames, grid * grid, channels * patch * patch)
        return F.linear(rows, self.proj.weight.flatten(1), self.proj.bias)


class CrossAttention(nn.Module):
    """The attention inside the pool; its biases are parameters of their own, as published."""

    def __init__(self, width: int, heads: int, out: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_bias, self.k_bias, self.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(3))
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.proj = nn.Linear(width, out)

    def forward(self, query_C1D: Tensor, key_CPD: Tensor, value_CPD: Tensor) -> Tensor:
        """To (C, E)."""
        q = F.linear(query_C1D, self.q.weight, self.q_bias)
        k = F.linear(key_CPD, self.k.weight, self.k_bias)
        v = F.linear(value_CPD, self.v.weight, self.v_bias)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v)
        found: Tensor = self.proj(attended.transpose(1, 2).flatten(1))
        return found


class AttentionPool(nn.Module):
    """One vector from a clip's tokens: the mean of all, CLS among them, asks all of them. No residual."""

    def __init__(self, width: int, heads: int, out: int) -> None:
        super().__init__()
        self.norm1_q, self.norm1_k, self.norm1_v = (nn.LayerNorm(width, eps=1e-5) for _ in range(3))
        self.cross_attn = CrossAttention(width, heads, out)

    def forward(self, tokens_CPD: Tensor) -> Tensor:
        """To (C, E)."""
        query_C1D = self.norm1_q(tokens_CPD.mean(1, keepdim=True))
        found: Tensor = self.cross_attn(query_C1D, self.norm1_k(tokens_CPD), self.norm1_v(tokens_CPD))
        return found


class AlignmentHead(nn.Module):
    """Tokens to the unit vectors of a teacher."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.head, self.norm = nn.Linear(width, out), nn.LayerNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(self.head(x))
        return F.normalize(found, dim=-1)


class VideoTower(nn.Module):
    """Clips of pictures to the tokens of every block.

    Args:
        config: its sizes.
        alignment: also build what only the distillation needs (the published model has it; features do not).
    """

    def __init__(self, config: VideoConfig, *, alignment: bool = False) -> None:
        super().__init__()
        self.config = config
        video = sine_positions(config.width, config.frames, config.grid)
        image = sine_positions(config.width, 1, config.grid)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed, self.img_pos_embed = nn.Parameter(video), nn.Parameter(image)
        self.patch_embed = PatchEmbedding(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.clip_projector = AttentionPool(config.width, config.pool_heads, config.pool_width)
        if alignment:
            self.clip_pos_embed = nn.Parameter(video.clone())
            self.clip_img_pos_embed = nn.Parameter(image.clone())
            heads = (AlignmentHead(config.width, config.align_width) for _ in range(config.align_levels))
            self.clip_decoder = nn.ModuleList(heads)
            self.final_clip_decoder = AlignmentHead(config.pool_width, config.align_pool_width)

    def embed(self, pixels_CF3SS: Tensor) -> Tensor:
        """Normalised pixels to (C, P, D), what the first block reads."""
        tokens_CPD = self.patch_embed(pixels_CF3SS).flatten(1, 2)
        cls_C1D = self.cls_token.expand(len(tokens_CPD), -1, -1)
        table = self._positions(self.pos_embed, self.img_pos_embed, pixels_CF3SS)
        return torch.cat([cls_C1D, tokens_CPD], dim=1) + table

    def layers(self, pixels_CF3SS: Tensor) -> Iterator[Tensor]:
        """The (C, P, D) tokens after each block, shallowest first; there is no norm after the last."""
        x_CPD = self.embed(pixels_CF3SS)
        for block in self.blocks:
            x_CPD = block(x_CPD)
            yield x_CPD

    def align(self, pixels_CF3SS: Tensor) -> tuple[Tensor, Tensor]:
        """What the distillation compared with its teachers; needs ``alignment``.

        Returns:
            (H, C, P, ``align_width``) of the last H = ``align_levels`` blocks, and (C, ``align_pool_width``).
        """
        last = list(self.layers(pixels_CF3SS))[-self.config.align_levels :]
        table = self._positions(self.clip_pos_embed, self.clip_img_pos_embed, pixels_CF3SS)
        tokens = torch.stack([head(x + table) for head, x in zip(self.clip_decoder, last, strict=True)])
        pooled: Tensor = self.final_clip_decoder(self.clip_projector(last[-1]))
        return tokens, pooled

    def _positions(self, video_1PD: Tensor, image_1PD: Tensor, pixels_CF3SS: Tensor) -> Tensor:
        """The table for clips of this form; one frame is an image, and has a table of its own."""
        frames, side = pixels_CF3SS.shape[1], pixels_CF3SS.shape[-1]
        grid = side // self.config.patch
        if frames == 1:
            return fit_positions(image_1PD, frames=(1, 1), grids=(self.config.grid, grid))
        return fit_positions(video_1PD, frames=(self.config.frames, frames), grids=(self.config.grid, grid))


def fit_positions(table_1PD: Tensor, *, frames: tuple[int, int], grids: tuple[int, int]) -> Tensor:
    """A position table for another number of frames (linear in time) or another grid (bicubic in space).

    Args:
        table_1PD: CLS, then frame by frame in the order of reading. CLS stays as it is.
        frames: of the table, and wanted.
        grids: patches along a side, of the table and wanted.
    """
    if frames[0] == frames[1] and grids[0] == grids[1]:
        return table_1PD
    width = table_1PD.shape[-1]
    cls, cells = table_1PD[:, :1], table_1PD[0, 1:].float()  # interpolation in half precision loses what it finds
    if frames[0] != frames[1]:
        lines = cells.view(frames[0], -1, width).permute(1, 2, 0)  # (N, D, F)
        lines = F.interpolate(lines, size=frames[1], mode="linear", align_corners=False)
        cells = lines.permute(2, 0, 1).reshape(-1, width)
    if grids[0] != grids[1]:
        planes = cells.view(frames[1], grids[0], grids[0], width).permute(0, 3, 1, 2)
        planes = F.interpolate(planes, size=(grids[1], grids[1]), mode="bicubic", align_corners=False)
        cells = planes.permute(0, 2, 3, 1).reshape(-1, width)
    return torch.cat([cls, cells.to(cls.dtype)[None]], dim=1)


def sine_positions(width: int, frames: int, grid: int) -> Tensor:
    """(1, P, D) sines and cosines with which training began; CLS has zeros.

    A quarter of the width tells the frame, the rest the place: its column first, then its row.
    """
    temporal = width // 4
    spatial = (width - temporal) // 2
    # On the CPU: the first arithmetic on the meta device loads a compiler, which takes seconds.
    places, times = torch.arange(grid * grid, device="cpu"), torch.arange(frames, device="cpu")
    rows, columns = places // grid, places % grid
    space_ND = torch.cat([_waves(columns, spatial), _waves(rows, spatial)], dim=1)
    time_FD = _waves(times, temporal)
    parts = [time_FD[:, None].expand(-1, grid * grid, -1), space_ND.expand(frames, -1, -1)]
    table = torch.cat(parts, dim=-1).reshape(1, -1, width)
    table = torch.cat([torch.zeros(1, 1, width, device="cpu"), table.float()], dim=1)
    return table.to(torch.get_default_device())


def _waves(positions_N: Tensor, width: int) -> Tensor:
    """(N, width): half sines, half cosines, of wavelengths from 2 pi to nearly 20000 pi."""
    rates = torch.exp(-math.log(10000.0) * torch.arange(width // 2, dtype=torch.float64, device="cpu") / (width // 2))
    angles = positions_N.double()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


# ----------------------------------------------------------------------------------------------- the whole model


class InternVideo2(nn.Module):
    """Both towers and the joint space."""

    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        self.config = config
        self.vision_encoder = VideoTower(config.video)
        self.text_encoder = Bert(config.text)
        self.vision_proj = nn.Linear(config.video.pool_width, config.joint)
        self.text_proj = nn.Linear(config.text.width, config.joint)
        self.temp = nn.Parameter(torch.full((), 0.07))

    def join_video(self, pooled_CE: Tensor) -> Tensor:
        """The last level's pooled clips to (C, J) unit vectors."""
        return F.normalize(self.vision_proj(pooled_CE), dim=-1)

    def join_text(self, cls_BD: Tensor) -> Tensor:
        """The last level's CLS tokens to (B, J) unit vectors."""
        return F.normalize(self.text_proj(cls_BD), dim=-1)

    @classmethod
    def load(cls, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> tuple[InternVideo2, WordPiece, str]:
        """Read what :func:`convert_internvideo2` wrote.

        The weights are read one after another into a model that holds none, so that memory is needed once.

        Returns:
            The model, its tokenizer, and the digest of the weights, the configuration and the vocabulary.

        Raises:
            ValueError: if something is missing, or the weights are not those that the configuration describes.
        """
        from safetensors import SafetensorError, safe_open

        folder = _folder_of(folder)
        if missing := [name for name in FILES if not (folder / name).is_file()]:
            raise ValueError(
                f"{folder} is no InternVideo2 backbone: {', '.join(missing)} missing{_kind_of(folder)}; make one of "
                "the published checkpoint: sidelight convert internvideo2 FILE.pt --out DIR"
            )
        try:
            written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            digest, sample, values = (written.pop(name) for name in ("digest", "sample", "config"))
        except (KeyError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{folder / 'config.json'} is not as convert_internvideo2 writes it: {error}; {_AGAIN}"
            ) from None
        config, tokenizer = InternVideo2Config.from_dict(values), WordPiece.read(folder / "vocab.txt")
        with torch.device("meta"):
            model = cls(config)
        found, shapes = {}, {name: tuple(t.shape) for name, t in model.state_dict().items()}
        try:
            with safe_open(folder / "model.safetensors", framework="pt") as file:
                # Not a dict: the file cannot be iterated over itself.
                here = {n: tuple(file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118
                check_shapes(here, shapes, folder, what="the model of its config.json", advice=_AGAIN)
                samples = {}
                for name in shapes:
                    tensor = file.get_tensor(name)
                    samples[name] = _sample(tensor)
                    found[name] = tensor.to(dtype)
        except SafetensorError as error:
            raise ValueError(f"cannot read {folder / 'model.safetensors'}: {error}") from None
        if weights_digest(samples | _as_bytes(config, tokenizer)) != sample:
            raise ValueError(
                f"the weights, the config.json or the vocab.txt in {folder} have changed since they were written "
                f"together; {_AGAIN}"
            )
        model.load_state_dict(found, assign=True)
        return model.eval().requires_grad_(False), tokenizer, str(digest)


def _kind_of(folder: Path) -> str:
    """What a folder holds by its ``config.json``, for a message, if that is one of transformers."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f" (it holds weights of {kind})"


def _folder_of(weights: str | Path) -> Path:
    """The folder that ``weights`` is, or one of whose files it is."""
    path = Path(weights)
    if path.suffix in (".pt", ".pth", ".bin"):
        raise ValueError(
            f"{path} is a published checkpoint; convert it once: sidelight convert internvideo2 {path} --out DIR"
        )
    return path.parent if path.name in FILES else path


def _as_bytes(config: InternVideo2Config, tokenizer: WordPiece) -> dict[str, Tensor]:
    """What decides the features beside the weights, in a form of which a digest can be taken."""
    texts = {
        "config.json": json.dumps(dataclasses.asdict(config), sort_keys=True),
        "vocab.txt": "\n".join(tokenizer.tokens),
    }
    return {name: torch.frombuffer(bytearray(t.encode()), dtype=torch.uint8) for name, t in texts.items()}


def _sample(tensor: Tensor) -> Tensor:
    """A few values, evenly spread: training changes all of them, and reading them costs nothing."""
    return tensor.flatten()[:: max(1, tensor.numel() // _SAMPLE)]


# ------------------------------------------------------------------------------------------------- published files

# What a published file holds and features do not need: the heads and tables of the distillation, the head for words,
# the head that says whether video and text match, the table 0, 1, 2, ...
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
    """A published checkpoint to a folder of safetensors that :class:`InternVideo2Backbone` loads.

    The file is read with PyTorch's reader of tensors and plain values alone. The weights keep their type. Their
    digest, together with that of the configuration and the vocabulary, is taken here, once, while they are at hand:
    it reads every byte (seconds for the 1B model), and need not be taken each time they are loaded.

    Args:
        checkpoint: such as ``InternVideo2-stage2_1b-224p-f4.pt``: names to tensors, bare or inside ``module`` or
            ``model``.
        out: the folder to make; appears whole or not at all.
        vocabulary: the ``vocab.txt`` of bert-large-uncased, which the checkpoint does not hold; the one beside it
            unless given.
        config: the sizes; read off the shapes unless given, by :func:`config_of` with the next four.
        heads: attention heads of the video tower.
        pool_heads: attention heads of its pool.
        text_heads: attention heads of the text tower.
        activation: ``gelu`` for weights that were trained without the fused kernel.

    Returns:
        The folder.

    Raises:
        ValueError: if a file cannot be read, parameters are missing, unknown, of another shape or not finite, or
            ``out`` is there already and not empty.
    """
    path, folder = Path(checkpoint), Path(out)
    require_new_folder(folder)
    existing_file(path, expected="a published checkpoint of InternVideo2 (.pt)")
    words = _vocabulary_of(path, vocabulary)
    tokenizer = WordPiece.read(words)
    published = _read_published(path)
    if config is None:
        shapes = {name: tuple(t.shape) for name, t in published.items()}
        try:
            config = config_of(shapes, heads, pool_heads, text_heads, activation)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    tensors = from_published(published, config, where=path)
    if len(tokenizer) != config.text.vocabulary:
        raise ValueError(
            f"{words} has {len(tokenizer)} tokens, the text tower {config.text.vocabulary}; give the {VOCABULARY}"
        )
    check_values(tensors, path)
    beside = _as_bytes(config, tokenizer)
    written = {
        "digest": weights_digest(tensors | beside),
        "sample": weights_digest({name: _sample(tensor) for name, tensor in tensors.items()} | beside),
        "config": dataclasses.asdict(config),
    }
    with replacing_folder(folder) as making:
        making.mkdir()
        write_tensors(tensors, making / "model.safetensors", {"format": "pt"})
        write_text(making / "vocab.txt", words.read_text(encoding="utf-8"))
        write_text(making / "config.json", json.dumps(written, indent=2) + "\n")
    return folder


def described(folder: str | Path) -> str:
    """What a folder that :func:`convert_internvideo2` wrote holds, in a line, from its ``config.json``."""
    values = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    config = InternVideo2Config.from_dict(values["config"])
    video, text = config.video, config.text
    with torch.device("meta"):
        count = sum(p.numel() for p in InternVideo2(config).parameters())
    return (
        f"{video.depth} blocks of width {video.width} and {video.heads} heads, {video.frames} frames of "
        f"{video.resolution} x {video.resolution}, pool to {video.pool_width}; {text.depth} layers of text of width "
        f"{text.width}; {count:,} parameters, digest {values['digest']}"
    )


VOCABULARY = "vocab.txt of bert-large-uncased (on the hub: google-bert/bert-large-uncased)"


def _vocabulary_of(checkpoint: Path, vocabulary: str | Path | None) -> Path:
    """The file that is given, or lies beside the checkpoint."""
    if vocabulary is None:
        beside = checkpoint.with_name("vocab.txt")
        if not beside.is_file():
            raise ValueError(
                f"{checkpoint} holds no vocabulary, and there is no {beside}: put the {VOCABULARY} there, or give it "
                "by --vocabulary FILE"
            )
        return beside
    return Path(vocabulary)


def _read_published(path: Path) -> dict[str, Tensor]:
    """Names to tensors of a ``.pt``, without what they may be wrapped in."""
    found = read_tensors(path, path)  # mapped: the 6B model need not fit into memory twice
    for wrapper in ("module", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
            break
    return named_tensors(found, path, expected="names and tensors, bare or inside 'module' or 'model'")


def from_published(
    published: Mapping[str, Tensor], config: InternVideo2Config, *, where: object = "the checkpoint"
) -> dict[str, Tensor]:
    """The parameters of :class:`InternVideo2` out of the published ones.

    Text layers from the fusion on, and the heads that features do not need, are left out.

    Raises:
        ValueError: naming what is missing, unknown, or of another shape.
    """
    found = {}
    for name, tensor in published.items():
        layer = _TEXT_LAYER.fullmatch(name)
        if _UNUSED.fullmatch(name) or (layer and int(layer[1]) >= config.text.depth):
            continue
        renamed = bert.our_name(name.removeprefix(_TEXT)) if name.startswith(_TEXT) else name
        found[f"text_encoder.{renamed}" if renamed and name.startswith(_TEXT) else name] = tensor
    with torch.device("meta"):
        wanted = {name: tuple(t.shape) for name, t in InternVideo2(config).state_dict().items()}
    here = {name: tuple(t.shape) for name, t in found.items()}
    advice = "download it again, or give another file, of a whole Stage-2 model"
    check_shapes(here, wanted, where, what="this model", advice=advice)
    return {name: found[name] for name in wanted}


def config_of(
    shapes: Mapping[str, tuple[int, ...]],
    heads: int | None = None,
    pool_heads: int | None = None,
    text_heads: int | None = None,
    activation: Literal["gelu_tanh", "gelu"] | None = None,
) -> InternVideo2Config:
    """The sizes of a published model, read off its names and shapes.

    Numbers of heads are in no shape: unless given, they are those of the published size of that width and depth, and
    64 channels a head for text. Nor is the activation. The text tower ends where the fusion with video begins.

    Raises:
        ValueError: if a shape that tells is missing or of another kind, or no published size has that width and depth
            and the numbers of heads are not given.
    """

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if name not in shapes:
            raise ValueError(f"this is no checkpoint of a whole InternVideo2 model: it has no {name}")
        found = tuple(shapes[name])
        if len(found) != dimensions or 0 in found:
            raise ValueError(f"{name} has the shape {found}, expected {dimensions} dimensions; download it again")
        return found

    def count(pattern: str) -> int:
        return len({m[1] for name in shapes if (m := re.match(pattern, name))})

    width, _, _, patch, _ = shape("vision_encoder.patch_embed.proj.weight", 5)
    depth = count(r"vision_encoder\.blocks\.(\d+)\.")
    size = next((s for s in SIZES.values() if (s.width, s.depth) == (width, depth)), None)
    if size is None and (heads is None or pool_heads is None):
        raise ValueError(
            f"no published size has {depth} blocks of width {width}, and shapes do not tell the numbers of heads: give "
            "--heads and --pool-heads"
        )
    cells = shape("vision_encoder.img_pos_embed", 3)[1] - 1
    if cells < 1:
        raise ValueError("vision_encoder.img_pos_embed has no place for a patch; download it again")
    fusion = [int(m[1]) for name in shapes if (m := _TEXT_LAYER.fullmatch(name)) and "crossattention" in m[2]]
    vocabulary, text_width = shape(f"{_TEXT}embeddings.word_embeddings.weight", 2)
    known = {} if size is None else {"heads": size.heads, "pool_heads": size.pool_heads}
    given = {"heads": heads, "pool_heads": pool_heads, "activation": activation}
    chosen: dict[str, Any] = known | {name: value for name, value in given.items() if value is not None}
    return InternVideo2Config(
        video=VideoConfig(
            width=width,
            depth=depth,
            hidden=shape("vision_encoder.blocks.0.mlp.fc1.weight", 2)[0],
            patch=patch,
            resolution=patch * math.isqrt(cells),
            frames=(shape("vision_encoder.pos_embed", 3)[1] - 1) // cells,
            pool_width=shape("vision_encoder.clip_projector.cross_attn.proj.weight", 2)[0],
            **chosen,
        ),
        text=BertConfig(
            vocabulary=vocabulary,
            width=text_width,
            depth=min(fusion, default=count(r"text_encoder\.bert\.encoder\.layer\.(\d+)\.")),
            heads=max(1, text_width // 64) if text_heads is None else text_heads,
            hidden=shape(f"{_TEXT}encoder.layer.0.intermediate.dense.weight", 2)[0],
            positions=shape(f"{_TEXT}embeddings.position_embeddings.weight", 2)[0],
            segments=shape(f"{_TEXT}embeddings.token_type_embeddings.weight", 2)[0],
        ),
        joint=shape("vision_proj.weight", 2)[0],
    )


# ---------------------------------------------------------------------------------------------------- the backbone

_MARKS = re.compile(r"[,.'!?\"()*#:;~]")


def clean_text(query: str) -> str:
    """A sentence as the text tower was trained on: lower case, most punctuation gone, single spaces.

    Hyphens and slashes become spaces; an apostrophe leaves no trace ("man's" is "mans"). The published training and
    evaluation clean sentences so, the published demo does not.
    """
    text = _MARKS.sub("", query.lower()).replace("-", " ").replace("/", " ").replace("<person>", "person")
    return " ".join(text.split())


class InternVideo2Backbone:
    """InternVideo2, frozen, behind the :class:`~sidelight.backbones.protocol.Backbone` protocol.

    Text levels are counted like those of video: -1 is the last layer before the fusion, the 19th of BERT-large.

    Args:
        weights: folder that :func:`convert_internvideo2` wrote.
        levels: how many of the last layers to return, or which ones (negative, -1 the last).
        pooling: ``cls``; ``mean`` of the patches; ``attention``, the last level's frozen pool on every level; or
            ``tokens``, which keeps all.
        dtype: ``float32``, ``bfloat16`` or ``float16``: what the towers compute in. It is not part of the spec:
            features of one type serve a model trained on another, to within rounding.
        frames_per_clip: frames of a clip; as many as the checkpoint was trained with unless given (4 in the released
            one). One is read as an image.
        clip_seconds: seconds of a clip.

    Raises:
        ValueError: for levels that the towers do not have, an unknown option, or missing weights.
    """

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        levels: int | Sequence[int] = 4,
        pooling: str = "attention",
        dtype: str = "float32",
        frames_per_clip: int | None = None,
        clip_seconds: float = 2.0,
    ) -> None:
        if weights is None:
            raise ValueError("internvideo2 needs weights: the folder that `sidelight convert internvideo2` made")
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}; got {pooling!r}")
        self.model, self.tokenizer, digest = InternVideo2.load(weights, dtype=DTYPES[dtype])
        config = self.model.config
        chosen = tuple(range(-levels, 0)) if isinstance(levels, int) else tuple(levels)
        deepest = min(config.video.depth, config.text.depth)
        if not chosen or min(chosen) < -deepest:
            raise ValueError(f"this InternVideo2 has levels -{deepest} to -1; got {chosen}")
        self._spec = FeatureSpec(
            backbone="internvideo2",
            weights=digest,
            levels=chosen,
            pooling=pooling,
            clip_seconds=clip_seconds,
            frames_per_clip=config.video.frames if frames_per_clip is None else frames_per_clip,
            resolution=config.video.resolution,
            resize="stretch",
            mean=MEAN,
            std=STD,
            video_dim=config.video.pool_width if pooling == "attention" else config.video.width,
            text_dim=config.text.width,
        )

    @property
    def spec(self) -> FeatureSpec:
        """The spec of the features that the two encoders return."""
        return self._spec

    @property
    def device(self) -> torch.device:
        return self.model.temp.device

    def to(self, device: torch.device | str) -> InternVideo2Backbone:
        """Move the weights; returns itself."""
        self.model.to(device)
        return self

    def normalise(self, frames_CFSS3: Tensor) -> Tensor:
        """uint8 RGB to (C, F, 3, S, S) on the model's device, in its type."""
        raw = frames_CFSS3.to(self.device, non_blocking=True).permute(0, 1, 4, 2, 3).float()
        mean, std = (raw.new_tensor(values)[:, None, None] for values in (MEAN, STD))
        return torch.addcmul(-mean / std, raw, 1 / (255 * std)).to(self.model.temp.dtype)

    @torch.inference_mode()
    def encode_video(self, frames_CFSS3: Tensor) -> Tensor:
        """uint8 RGB (C, F, S, S, 3) to float32 (K, C, D_v), or (K, C, P, D_v) where pooling is ``tokens``.

        Blocks after the last level asked for are not run; a level is pooled as soon as it is there.
        """
        side = self.spec.resolution
        expected = (self.spec.frames_per_clip, side, side, 3)
        if frames_CFSS3.dtype != torch.uint8 or frames_CFSS3.shape[1:] != expected:
            raise ValueError(
                f"frames must be uint8 of shape (clips, {', '.join(map(str, expected))}); "
                f"got {frames_CFSS3.dtype} {tuple(frames_CFSS3.shape)}"
            )
        parts = [self._levels(self.normalise(part)) for part in frames_CFSS3.split(CLIPS_AT_ONCE)]
        return torch.cat(parts, dim=1)

    def _levels(self, pixels_CF3SS: Tensor) -> Tensor:
        tower = self.model.vision_encoder
        wanted = [tower.config.depth + level for level in self.spec.levels]
        found = []
        for i, tokens_CPD in enumerate(tower.layers(pixels_CF3SS)):
            if i in wanted:
                found.append(self._pool(tokens_CPD).float())
            if i == wanted[-1]:
                break
        return torch.stack(found)

    def _pool(self, tokens_CPD: Tensor) -> Tensor:
        match self.spec.pooling:
            case "cls":
                return tokens_CPD[:, 0]
            case "mean":
                return tokens_CPD[:, 1:].mean(1)
            case "attention":
                pooled: Tensor = self.model.vision_encoder.clip_projector(tokens_CPD)
                return pooled
        return tokens_CPD

    @torch.inference_mode()
    def encode_text(self, queries: Sequence[str]) -> list[Tensor]:
        """Sentences to float32 (K, L, D_t) each, token 0 the CLS token.

        Raises:
            ValueError: for a query without a word, or with more tokens than the tower has positions.
        """
        rows = [self._ids(query) for query in queries]
        # Sentences of like length go together: padding is work too.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        found: dict[int, Tensor] = {}
        for start in range(0, len(order), QUERIES_AT_ONCE):
            chosen = order[start : start + QUERIES_AT_ONCE]
            ids_BL, mask_BL = self.tokenizer.batch([rows[i] for i in chosen])
            layers = list(self.model.text_encoder.layers(ids_BL.to(self.device), mask_BL.to(self.device)))
            stacked = torch.stack([layers[level] for level in self.spec.levels]).float()
            found |= {i: stacked[:, b, : len(rows[i])].clone() for b, i in enumerate(chosen)}
        return [found[i] for i in range(len(rows))]

    def _ids(self, query: str) -> list[int]:
        ids, longest = self.tokenizer(clean_text(query)), self.model.config.text.positions
        if len(ids) == 1:
            raise ValueError(f"a query needs at least one word, got {query!r}")
        if len(ids) > longest:
            raise ValueError(
                f"the query has {len(ids)} tokens, the text tower reads at most {longest}; "
                f"shorten it: {query[:60]!r}..."
            )
        return ids
