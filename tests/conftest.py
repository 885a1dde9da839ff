"""Fixtures that several tests use."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sidelight.data.annotations import Annotation

if platform.machine() in ("x86_64", "AMD64"):
    # One set of kernels, whichever processor runs the tests. In one golden case a ReLU's input is 3e-7; kernels for
    # AVX-512 round it to the other side of 0, and gradients jump by 3e-3. Those of AVX2 agree with float64.
    # PyTorch reads this variable when it is imported.
    os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of reference data: golden numbers, annotations, videos. Without it, skip the test."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    path = Path(os.environ.get("SIDELIGHT_SHARED") or beside)
    if not path.is_dir():
        pytest.skip(f"needs the reference folder, which is not at {path}; set SIDELIGHT_SHARED to it")
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a cache of its own, so that it neither reads nor fills the user's cache, and no hub to ask."""
    monkeypatch.setenv("SIDELIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make three short videos of the shapes world and their annotations, and return their folder. Read only."""
    from sidelight.shapes.generate import make_world

    folder = tmp_path_factory.mktemp("tiny_world")
    make_world(folder, videos=3, seed=11, seconds=(20, 26), side=128)
    return folder


@pytest.fixture(scope="session")
def tiny_annotations(tiny_world: Path) -> list[Annotation]:
    """Return the annotations of tiny_world."""
    from sidelight.data.annotations import read_annotations

    return read_annotations(tiny_world / "annotations.jsonl")


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a shapes backbone with random weights: four levels, 32 wide. Read only."""
    import torch

    from sidelight.backbones.shapes.model import ShapesBackboneConfig, TwoTowers

    config = ShapesBackboneConfig(
        resolution=32,
        frames_per_clip=4,
        width=32,
        depth=4,
        heads=2,
        text_width=32,
        text_depth=4,
        text_heads=2,
        joint=16,
    )
    folder = tmp_path_factory.mktemp("tiny_backbone")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        TwoTowers(config).save(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_store(
    tiny_world: Path,
    tiny_annotations: list[Annotation],
    tiny_backbone: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return a store of the features of tiny_world by tiny_backbone. Read only."""
    from sidelight.backbones import load_backbone
    from sidelight.features.extract import extract
    from sidelight.features.sources import find_videos

    folder = tmp_path_factory.mktemp("tiny_store")
    videos = find_videos(tiny_world / "videos", (a.vid for a in tiny_annotations))
    backbone = load_backbone("shapes", weights=tiny_backbone)
    _, failures = extract(videos, [a.query for a in tiny_annotations], backbone, folder)
    assert not failures
    return folder
