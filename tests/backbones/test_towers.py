"""Tests of the video towers that are trained from pixels: equal to the plain backbones, with gradients and adapters."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from sidelight.backbones import SpecMismatchError, TrainableTower, load_tower
from sidelight.backbones.common import run_tower
from sidelight.backbones.shapes.model import PACKAGED, TwoTowers
from sidelight.backbones.videomae import MEAN, STD
from tests.tiny_models import DEPTH, frames, write_videomae


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videomae(tmp_path_factory.mktemp("videomae") / "tiny")


def tower_of(name: str, folder: Path, **options: Any) -> TrainableTower:
    return load_tower(name, **({"weights": folder} if name == "videomae" else {}), **options)


def shown_to(tower: TrainableTower, chunks: int = 3) -> Tensor:
    return frames(chunks, tower.spec.frames, tower.spec.resolution)


def plain(name: str, folder: Path, shown_NFSS3: Tensor) -> Tensor:
    """Return the tokens after the last layer, by the forward pass of the library or of the backbone itself."""
    if name == "shapes":
        *_, last = TwoTowers.load(PACKAGED).video.layers(shown_NFSS3)
        return last
    pixels = (shown_NFSS3.double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    kind: Any = transformers.VideoMAEModel
    model = kind.from_pretrained(folder).eval()
    last_hidden_state: Tensor = model(pixels.float().permute(0, 1, 4, 2, 3)).last_hidden_state
    return last_hidden_state


class ZeroAdapter(nn.Module):
    """A residual adapter whose last layer starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, width // 4), nn.Linear(width // 4, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        raised: Tensor = self.up(torch.nn.functional.gelu(self.down(x)))
        return x + raised


@pytest.mark.parametrize("name", ["shapes", "videomae"])
def test_zero_adapters_leave_the_plain_backbone(name: str, folder: Path) -> None:
    tower = tower_of(name, folder)
    assert isinstance(tower, nn.Module) and not tower.training
    assert isinstance(tower, TrainableTower)
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    shown, spec = shown_to(tower), tower.spec
    tokens = run_tower(tower, shown)
    times, rows, columns = spec.grid
    assert tokens.shape == (3, spec.prefix + times * rows * columns, spec.width) and len(tower.blocks) == spec.depth
    torch.testing.assert_close(tokens, plain(name, folder, shown), atol=2e-5, rtol=1e-5)
    if name == "videomae":  # the library's own forward pass, from the same normalised pixels: the same bits
        library: Any = tower
        pixels = library.normalise(shown.flatten(0, 1)).unflatten(0, shown.shape[:2])
        assert torch.equal(tokens, library.model(pixels).last_hidden_state)
    adapters = nn.ModuleList(ZeroAdapter(spec.width) for _ in range(spec.depth))
    adapted = run_tower(tower, shown, lambda number, x: adapters[number](x))
    assert torch.equal(adapted, tokens)
    adapted.square().mean().backward()
    assert all(a.get_submodule("up").get_parameter("weight").grad is not None for a in adapters)


@pytest.mark.parametrize("name", ["shapes", "videomae"])
def test_gradients_reach_every_weight_from_the_pixels_on(name: str, folder: Path) -> None:
    tower = tower_of(name, folder)
    assert isinstance(tower, nn.Module)
    tower.requires_grad_(True)
    run_tower(tower, shown_to(tower))[:, 1:].sin().sum().backward()
    for parameter_name, parameter in tower.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", ["shapes", "videomae"])
def test_chunks_do_not_read_each_other(name: str, folder: Path) -> None:
    tower = tower_of(name, folder)
    shown = shown_to(tower)
    torch.testing.assert_close(run_tower(tower, shown)[1:2], run_tower(tower, shown[1:2]), atol=1e-5, rtol=1e-5)


def test_tokens_are_ordered_by_time_then_row(folder: Path) -> None:
    """Change one corner of the last two frames: without blocks, only the token of this place changes."""
    tower = tower_of("videomae", folder)
    shown = shown_to(tower, 1)
    before = tower.embed(shown)
    shown[0, 6:, 24:, :8] = 0
    changed = (tower.embed(shown) != before).any(-1)[0].nonzero().flatten().tolist()
    assert changed == [3 * 16 + 3 * 4]  # time 3 of 4, row 3 of 4, column 0 of 4


def test_other_resolutions_interpolate_the_places(folder: Path) -> None:
    tower = tower_of("videomae", folder, resolution=48)
    assert tower.spec.grid == (4, 6, 6)
    assert tower.spec.weights == tower_of("videomae", folder).spec.weights
    assert run_tower(tower, shown_to(tower, 1)).shape == (1, 4 * 36, 32)
    model: Any = tower
    trained = transformers.VideoMAEModel.from_pretrained(folder).embeddings.position_embeddings
    table, places = model.model.embeddings.position_embeddings.reshape(4, 6, 6, 32), trained.reshape(4, 4, 4, 32)
    torch.testing.assert_close(table.mean((1, 2)), places.mean((1, 2)), atol=0.05, rtol=0)


def test_weights_without_a_last_norm(tmp_path: Path) -> None:
    tower = tower_of("videomae", write_videomae(tmp_path / "tuned", use_mean_pooling=True))
    shown = shown_to(tower)
    torch.testing.assert_close(
        run_tower(tower, shown), plain("videomae", tmp_path / "tuned", shown), atol=2e-5, rtol=1e-5
    )


def test_mistakes_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no trainable video backbone 'c3d'.* Known are shapes, videomae, i3d"):
        load_tower("c3d")
    with pytest.raises(ValueError, match="resolution must be a multiple of 8, the side of VideoMAE's patches; got 30"):
        tower_of("videomae", folder, resolution=30)
    tower = tower_of("videomae", folder)
    with pytest.raises(ValueError, match=r"reads uint8 frames of shape \(chunks, 8, 32, 32, 3\); got .*\(1, 4, 32"):
        tower.embed(frames(1, 4, 32))
    with pytest.raises(SpecMismatchError, match=r"not the one that .* trained with: weights is '0', expected"):
        tower.spec.require(replace(tower.spec, weights="0"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"")
    (other / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match=r"is not VideoMAE: its config\.json says model_type 'vit'"):
        load_tower("videomae", weights=other)


def test_the_depth_of_the_tiny_model(folder: Path) -> None:
    assert tower_of("videomae", folder).spec.depth == DEPTH
