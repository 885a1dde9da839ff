"""Tests of I3D: padding and an Inception module against slow references, the tower, and the conversion of its port."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from sidelight.backbones import TrainableTower, load_tower
from sidelight.backbones.common import run_tower
from sidelight.backbones.i3d import I3DTower, Inception, Pool, Unit, convert_i3d, expected_shapes
from tests.tiny_models import frames, randomise


def published_i3d(channels: int = 3) -> dict[str, Tensor]:
    """Return a state dict as the port saves it: with the classifier, counters, and statistics above 0."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for name, shape in expected_shapes().items():
        fan = max(1, torch.Size(shape[1:]).numel())
        state[name] = torch.randn(shape, generator=generator) / fan**0.5
        if name.endswith(("running_var", "bn.weight")):
            state[name] = state[name].abs() + 0.5
    first = "Conv3d_1a_7x7.conv3d.weight"
    state[first] = state[first][:, :channels].clone()
    state["Mixed_5c.b0.bn.num_batches_tracked"] = torch.tensor(7)
    return {**state, "logits.conv3d.weight": torch.zeros(400, 1024, 1, 1, 1), "logits.conv3d.bias": torch.zeros(400)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("i3d")
    torch.save(published_i3d(), here / "rgb_imagenet.pt")
    return convert_i3d(here / "rgb_imagenet.pt", here / "converted")


def windows(size: int, kernel: int, stride: int) -> list[list[tuple[int, int]]]:
    """Return (place, tap) of what each cell reads along one axis, by TensorFlow's definition of "SAME"."""
    cells = -(-size // stride)
    before = max((cells - 1) * stride + kernel - size, 0) // 2
    return [
        [(i * stride + tap - before, tap) for tap in range(kernel) if 0 <= i * stride + tap - before < size]
        for i in range(cells)
    ]


def slow(module: Unit | Pool, x: Tensor) -> Tensor:
    """Compute a convolution with its norm and ReLU, or a pooling, cell by cell."""
    unit = module if isinstance(module, Unit) else None
    kernel: Any = module.kernel if isinstance(module, Pool) else module.conv3d.kernel_size
    stride: Any = module.stride if isinstance(module, Pool) else module.conv3d.stride
    axes = [windows(n, k, s) for n, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
    width = x.shape[1] if unit is None else unit.conv3d.out_channels
    result = torch.zeros(len(x), width, *map(len, axes))
    for cell in itertools.product(*(range(len(axis)) for axis in axes)):
        read = list(itertools.product(*(axis[i] for axis, i in zip(axes, cell, strict=True))))
        values = torch.stack([x[:, :, a, b, c] for (a, _), (b, _), (c, _) in read])
        if unit is None:
            result[:, :, cell[0], cell[1], cell[2]] = values.amax(0)
        else:
            taps = torch.stack([unit.conv3d.weight[:, :, i, j, k] for (_, i), (_, j), (_, k) in read])
            result[:, :, cell[0], cell[1], cell[2]] = torch.einsum("qoi,qni->no", taps, values)
    if unit is None:
        return result
    norm = unit.bn
    mean, variance, weight, bias = (
        cast(Tensor, part).view(-1, 1, 1, 1) for part in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return ((result - mean) / (variance + 1e-3).sqrt() * weight + bias).clamp(min=0)


@pytest.mark.parametrize("size", [(1, 1, 1), (4, 5, 6), (3, 8, 7)])
@pytest.mark.parametrize(
    "module",
    [Unit(2, 3, 1), Unit(2, 3, 3), Unit(2, 3, 7, 2), Pool((1, 3, 3), (1, 2, 2)), Pool((3, 3, 3), (1, 1, 1)),
     Pool((3, 3, 3), (2, 2, 2)), Pool((2, 2, 2), (2, 2, 2))],
)  # fmt: skip
def test_padding_is_tensorflows(module: Unit | Pool, size: tuple[int, int, int]) -> None:
    randomise(module)
    module.eval()
    x = torch.rand(2, 2, *size, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(module(x), slow(module, x), atol=1e-5, rtol=1e-4)


def test_an_inception_module_equals_a_slow_reference() -> None:
    module = Inception(4, (2, 3, 5, 2, 3, 4)).eval()
    randomise(module)
    x = torch.rand(2, 4, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    branches = [
        slow(module.b0, x),
        slow(module.b1b, slow(module.b1a, x)),
        slow(module.b2b, slow(module.b2a, x)),
        slow(module.b3b, slow(module.b3a, x)),
    ]
    torch.testing.assert_close(module(x), torch.cat(branches, 1), atol=1e-5, rtol=1e-4)


def plain(tower: I3DTower, shown_NFSS3: Tensor) -> list[Tensor]:
    """Return the maps (N, D, t, r, c) after each block, by the modules one after another, without tokens."""
    pixels = tower.normalise(shown_NFSS3.flatten(0, 1)).unflatten(0, shown_NFSS3.shape[:2])
    x, maps = tower.stem(pixels.transpose(1, 2).contiguous()), []
    for block in tower.blocks:
        for module in block.children():
            x = module(x)
        maps.append(x)
    return maps


@pytest.mark.parametrize(("count", "side"), [(16, 32), (8, 40), (24, 48)])
def test_the_tower_is_the_plain_network(folder: Path, count: int, side: int) -> None:
    """Compare bit for bit with the modules on maps, also with a new adapter that changes the order in memory."""
    tower = cast(I3DTower, load_tower("i3d", weights=folder, frames=count, resolution=side))
    assert not tower.training
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    shown = frames(2, count, side)
    maps, stages = plain(tower, shown), tower.stages
    assert [(s.grid, s.width) for s in stages] == [(tuple(m.shape[2:]), m.shape[1]) for m in maps]
    assert (stages[-1].grid, stages[-1].width) == (tower.spec.grid, tower.spec.width)
    tokens = run_tower(tower, shown)
    assert torch.equal(tokens, maps[-1].flatten(2).transpose(1, 2))
    zeros = [nn.Parameter(torch.zeros(stage.width)) for stage in stages]
    adapted = run_tower(tower, shown, lambda number, x: (x + zeros[number]).contiguous())
    assert torch.equal(adapted, tokens)
    adapted.sum().backward()
    assert all(zero.grad is not None and zero.grad.abs().sum() > 0 for zero in zeros)
    torch.testing.assert_close(run_tower(tower, shown[1:]), tokens[1:], atol=1e-4, rtol=1e-4)


def test_gradients_reach_every_weight(folder: Path) -> None:
    tower = cast(nn.Module, load_tower("i3d", weights=folder, resolution=32)).requires_grad_(True)
    statistics = {name: buffer.clone() for name, buffer in tower.named_buffers()}
    run_tower(cast(TrainableTower, tower), frames(2, 16, 32)).sum().backward()
    for name, parameter in tower.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in tower.named_buffers())


def test_conversion(folder: Path, tmp_path: Path) -> None:
    tower, published = I3DTower(weights=folder, resolution=32), published_i3d()
    assert torch.equal(
        tower.stem.get_parameter("Conv3d_1a_7x7.conv3d.weight"), published["Conv3d_1a_7x7.conv3d.weight"]
    )
    assert torch.equal(tower.blocks.get_parameter("7.Mixed_5b.b2b.bn.weight"), published["Mixed_5b.b2b.bn.weight"])
    assert torch.equal(
        tower.blocks.get_buffer("8.Mixed_5c.b3b.bn.running_var"), published["Mixed_5c.b3b.bn.running_var"]
    )
    assert sum(parameter.numel() for parameter in tower.parameters()) == 12_287_264
    wrapped = {"state_dict": {f"module.{name}": tensor for name, tensor in published.items()}}
    torch.save(wrapped, tmp_path / "wrapped.pt")
    again = I3DTower(weights=convert_i3d(tmp_path / "wrapped.pt", tmp_path / "again"), resolution=32)
    assert again.spec == tower.spec and len(tower.spec.weights) == 16


def test_mistakes_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"frames must be a multiple of 8, .* got 12"):
        I3DTower(weights=folder, frames=12)
    with pytest.raises(ValueError, match="resolution must be at least 32 pixels for I3D; got 16"):
        I3DTower(weights=folder, resolution=16)
    with pytest.raises(ValueError, match="I3D needs its weights: give a folder that `sidelight convert i3d"):
        load_tower("i3d")
    with pytest.raises(ValueError, match="holds no I3D: expected a folder that `sidelight convert i3d"):
        I3DTower(weights=tmp_path)
    for name, state, message in [
        ("flow", published_i3d(channels=2), r"flow.pt reads optical flow \(2 channels\); give the I3D of RGB frames"),
        ("part", {"Mixed_3b.b0.conv3d.weight": torch.zeros(1)}, "part.pt does not hold an I3D of the PyTorch port: it"),
        ("list", [1], "does not hold names and tensors"),
        (
            "nan",
            {**published_i3d(), "Mixed_3b.b0.bn.bias": torch.full((64,), torch.nan)},
            "numbers that are not finite",
        ),
    ]:
        torch.save(state, tmp_path / f"{name}.pt")
        with pytest.raises(ValueError, match=message):
            convert_i3d(tmp_path / f"{name}.pt", tmp_path / "out")
        assert not (tmp_path / "out").exists()
