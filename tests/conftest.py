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


@pytest.fixture(scope="session")
def goldens() -> Path:
    """Return the folder of arrays that the published codes computed with random weights (its README names them)."""
    return Path(__file__).resolve().parent / "data" / "golden"


@pytest.fixture(scope="session")
def openai_clip(goldens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return CLIP's golden weights as a file with OpenAI's names and layout, made from Hugging Face's."""
    import torch
    from safetensors.torch import load_file, save_file

    hub = load_file(goldens / "clip" / "weights_hf.safetensors")
    towers = {"visual.transformer.": "vision_model.", "transformer.": "text_model."}
    norms = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    tensors = {
        "logit_scale": hub["logit_scale"],
        "text_projection": hub["text_projection.weight"].T,
        "visual.proj": hub["visual_projection.weight"].T,
        "positional_embedding": hub["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": hub["text_model.embeddings.token_embedding.weight"],
        "visual.class_embedding": hub["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": hub["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": hub["vision_model.embeddings.position_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        tensors[f"ln_final.{kind}"] = hub[f"text_model.final_layer_norm.{kind}"]
        tensors[f"visual.ln_pre.{kind}"] = hub[f"vision_model.pre_layrnorm.{kind}"]
        tensors[f"visual.ln_post.{kind}"] = hub[f"vision_model.post_layernorm.{kind}"]
        for theirs, ours in towers.items():
            depth = len({name for name in hub if name.startswith(ours) and name.endswith("layer_norm1.bias")})
            for i in range(depth):
                block, layer = f"{theirs}resblocks.{i}", f"{ours}encoder.layers.{i}"
                parts = [hub[f"{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                tensors[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
                tensors[f"{block}.attn.out_proj.{kind}"] = hub[f"{layer}.self_attn.out_proj.{kind}"]
                tensors |= {f"{block}.{a}.{kind}": hub[f"{layer}.{b}.{kind}"] for a, b in norms.items()}
    path = tmp_path_factory.mktemp("openai") / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
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
