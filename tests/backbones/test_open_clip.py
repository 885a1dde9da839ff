"""Tests of the models of ``open_clip`` as a backbone, with tiny models of random weights, against its forward pass.

The tests skip where ``open_clip`` cannot be imported: it needs torchvision in the build of the installed torch.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sidelight.backbones.open_clip import OpenCLIPBackbone

try:
    import open_clip
except (ImportError, RuntimeError, OSError) as error:
    pytest.skip(f'needs pip install "sidelight[open-clip]": {error}', allow_module_level=True)

from sidelight.backbones import Backbone, FeatureSpec, load_backbone
from sidelight.backbones.common import QueryWarning
from tests.tiny_models import frames, write_open_clip

SIDE, WIDTH, TEXT_WIDTH, JOINT, LONGEST = 32, 64, 32, 24, 16
QUERIES = ["a red dog!", "A cat"]
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.02}
TEXT: dict[str, Any] = {
    "context_length": LONGEST,
    "vocab_size": 49408,
    "width": TEXT_WIDTH,
    "heads": 2,
    "layers": 3,
}
TIMM = {"image_size": SIDE, "timm_model_pretrained": False, "timm_proj": None}
PLAIN = {"image_size": SIDE, "layers": 4, "width": WIDTH, "patch_size": 8, "head_width": 32}
GEMMA = {"hf_tokenizer_name": "local", "vocab_size": 80, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "clip": (PLAIN, TEXT, {}),
    "coca-text": (PLAIN, {**TEXT, "embed_cls": True}, {"custom_text": True}),
    "siglip": (
        {**TIMM, "timm_model_name": "tiny_siglip", "timm_pool": "map", "timm_proj": "none"},
        {**TEXT, **GEMMA, "tokenizer_kwargs": {"clean": "canonicalize"}},
        {"custom_text": True, "embed_dim": WIDTH},
    ),
    "pe-core": (
        {**TIMM, "timm_model_name": "tiny_pe_core", "timm_pool": "map"},
        TEXT,
        {"custom_text": True},
    ),
    "resnet": ({"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}, TEXT, {}),
}
PREFIX = {"clip": 1, "coca-text": 1, "siglip": 0, "pe-core": 1}
"""Models with levels, and their tokens before the patches."""


@pytest.fixture(scope="module", autouse=True)
def tiny_towers() -> None:
    """Register two tiny towers with timm: a vision transformer as SigLIP's, and one as Perception Encoder's."""
    import timm
    from timm.models import eva, vision_transformer

    def tiny_siglip(**options: Any) -> Any:
        sizes = {"img_size": SIDE, "patch_size": 8, "embed_dim": WIDTH, "depth": 4, "num_heads": 2}
        known = {key: value for key, value in options.items() if key in ("num_classes", "global_pool")}
        return vision_transformer.VisionTransformer(**sizes, class_token=False, **known)

    def tiny_pe_core(**options: Any) -> Any:
        sizes = {"img_size": SIDE, "patch_size": 8, "embed_dim": WIDTH, "depth": 4, "num_heads": 2}
        known = {key: value for key, value in options.items() if key in ("num_classes", "global_pool")}
        rope = {"use_rot_pos_emb": True, "ref_feat_shape": (4, 4), "rope_grid_offset": 1.0}
        pool = {"attn_pool_num_heads": 2, "attn_pool_mlp_ratio": 2.0, "use_pre_transformer_norm": True}
        return eva.Eva(**sizes, **rope, **pool, **known)

    for build in (tiny_siglip, tiny_pe_core):
        build.__module__ = "timm.models.tiny"
        timm.models._registry._model_entrypoints[build.__name__] = build


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_towers: None) -> Path:
    """Return a folder of each kind of model. Tests only read it."""
    vision, text, model = MODELS[str(request.param)]
    return write_open_clip(tmp_path_factory.mktemp("open_clip") / str(request.param), vision, text, **model)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_open_clip(tmp_path_factory.mktemp("open_clip") / "clip", PLAIN, TEXT)


def library(folder: Path, dtype: str = "float32") -> Any:
    precision = {"float32": "fp32", "bfloat16": "pure_bf16"}[dtype]
    return open_clip.create_model(f"local-dir:{folder}", precision=precision).eval()


def plain_pixels(frames_CFSS3: Tensor, dtype: str) -> Tensor:
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])
    pixels = (frames_CFSS3.flatten(0, 1).float() / 255 - mean) / std
    return pixels.permute(0, 3, 1, 2).to(getattr(torch, dtype))


def test_the_protocol_is_fulfilled(clip: Path) -> None:
    backbone = load_backbone("open-clip", weights=clip, levels=2)
    assert isinstance(backbone, Backbone)
    assert backbone.to("cpu") is backbone
    spec = backbone.spec
    assert FeatureSpec.from_dict(spec.to_dict()) == spec
    assert (spec.backbone, spec.levels, spec.pooling) == ("open-clip", (-2, -1), "cls")
    assert (spec.resolution, spec.resize, spec.video_dim, spec.text_dim) == (SIDE, "stretch", WIDTH, TEXT_WIDTH)
    assert spec.mean == (0.5, 0.4, 0.3) and spec.std == (0.2, 0.25, 0.3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_joint_embeddings_are_the_librarys(folder: Path, dtype: Any) -> None:
    shown = frames(3, 2, SIDE)
    backbone = OpenCLIPBackbone(weights=folder, pooling="joint", frames_per_clip=2, dtype=dtype)
    model = library(folder, dtype)
    with torch.inference_mode():
        images = model.encode_image(plain_pixels(shown, dtype), normalize=True).float()
        texts = model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(QUERIES), normalize=True).float()
    expected = F.normalize(images.unflatten(0, (3, 2)).mean(1), dim=-1)[None]
    torch.testing.assert_close(backbone.encode_video(shown), expected, atol=TOLERANCE[dtype], rtol=0)
    sentences = torch.cat(backbone.encode_text(QUERIES))[:, 0]
    torch.testing.assert_close(sentences, texts, atol=TOLERANCE[dtype], rtol=0)
    assert backbone.spec.video_dim == backbone.spec.text_dim == images.shape[-1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_level_is_the_librarys(folder: Path, dtype: Any) -> None:
    """Compare with ``forward_intermediates``: all tokens of three levels of both towers, and the poolings."""
    if folder.name not in PREFIX:
        pytest.skip("this tower has no levels")
    shown, model = frames(2, 1, SIDE), library(folder, dtype)
    options: dict[str, Any] = {"weights": folder, "levels": 3, "dtype": dtype}
    tokens = OpenCLIPBackbone(pooling="tokens", **options)
    ids, counts = tokens.sentence_ids(QUERIES)
    with torch.inference_mode():
        output = model.forward_intermediates(
            plain_pixels(shown, dtype),
            ids,
            image_indices=3,
            text_indices=3,
            image_output_fmt="NLC",
            image_output_extra_tokens=True,
        )
        embeddings = model.encode_image(plain_pixels(shown, dtype)).float()
    patches = torch.stack(output["image_intermediates"]).float()
    prefix = output.get("image_intermediates_prefix")
    states = patches if not PREFIX[folder.name] else torch.cat([torch.stack(list(prefix)).float(), patches], dim=2)
    close = TOLERANCE[dtype] * float(states.abs().max())
    video = tokens.encode_video(shown)
    torch.testing.assert_close(video, states, atol=close, rtol=0)
    mean = OpenCLIPBackbone(pooling="mean", **options).encode_video(shown)
    torch.testing.assert_close(mean, patches.mean(2), atol=close, rtol=0)
    default = OpenCLIPBackbone(**options)
    if default.spec.pooling == "cls":
        torch.testing.assert_close(default.encode_video(shown), states[:, :, 0], atol=close, rtol=0)
    else:
        pooled = default.encode_video(shown)[-1].to(getattr(torch, dtype))
        head = getattr(default.model.visual.trunk, "head", torch.nn.Identity())
        torch.testing.assert_close(head(pooled).float(), embeddings, atol=close, rtol=0)

    texts = torch.stack(output["text_intermediates"]).float()
    for b, features in enumerate(tokens.encode_text(QUERIES)):
        summary_first = folder.name in ("siglip", "coca-text")
        assert features.shape[1] == counts[b] + summary_first
        close = TOLERANCE[dtype] * float(texts.abs().max())
        torch.testing.assert_close(features[:, summary_first:], texts[:, b, : counts[b]], atol=close, rtol=0)
        if folder.name == "siglip":
            torch.testing.assert_close(features[:, 0], texts[:, b, -1], atol=close, rtol=0)


def test_two_levels_and_several_frames(clip: Path) -> None:
    shown = frames(2, 2, SIDE)
    every = OpenCLIPBackbone(weights=clip, levels=3, pooling="tokens", frames_per_clip=2).encode_video(shown)
    some = OpenCLIPBackbone(weights=clip, levels=(-3, -2), pooling="tokens", frames_per_clip=2)
    assert len(some.model.visual.transformer.resblocks) == 3 and len(some.model.transformer.resblocks) == 2
    torch.testing.assert_close(some.encode_video(shown), every[:2])
    cls = OpenCLIPBackbone(weights=clip, levels=3, frames_per_clip=2).encode_video(shown)
    torch.testing.assert_close(cls, every.unflatten(2, (2, -1))[:, :, :, 0].mean(2))
    assert some.encode_video(frames(0, 2, SIDE)).shape == (2, 0, 2 * 17, WIDTH) and some.encode_text([]) == []


def test_sentences(clip: Path) -> None:
    """Check the tokens of CLIP's own vocabulary, and that longer sentences are cut before their end token."""
    backbone = OpenCLIPBackbone(weights=clip, levels=1)
    with pytest.warns(QueryWarning, match=rf"1 of 2 queries are longer than the {LONGEST} tokens .* first has 32"):
        ids, counts = backbone.sentence_ids(["a dog!", "dog " * 30])
    assert counts == [5, LONGEST] and ids[0, 0] == 49406 and ids[0, 4] == ids[1, -1] == 49407
    with pytest.raises(ValueError, match="at least one word"):
        backbone.encode_text(["a dog", " "])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 4}, "levels -3 to -1"),
        ({"pooling": "max"}, "does not have the pooling max"),
        ({"pooling": "attention", "levels": 1}, "does not have the pooling attention; choose cls or mean"),
        ({"weights": "here"}, "neither a folder nor a hub id such as timm/PE-Core-B-16"),
    ],
)
def test_wrong_options_are_named(clip: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OpenCLIPBackbone(**{"weights": clip, **options})


def test_a_tower_without_equal_blocks_has_joint_embeddings_only(tmp_path: Path) -> None:
    folder = write_open_clip(tmp_path / "resnet", *MODELS["resnet"][:2])
    with pytest.raises(ValueError, match="has no equal blocks, so that it has no levels; choose the pooling joint"):
        OpenCLIPBackbone(weights=folder, pooling="tokens")
    with pytest.raises(ValueError, match="has levels -1 to -1"):
        OpenCLIPBackbone(weights=folder, pooling="joint", levels=(-2, -1))


def test_wrong_folders_are_refused(clip: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip, tmp_path / "copy")
    (folder / "open_clip_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="cannot be read by open_clip"):
        OpenCLIPBackbone(weights=folder, levels=1)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="asks to run code from the hub"):
        OpenCLIPBackbone(weights=folder)
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no weights: expected open_clip_model\.safetensors"):
        OpenCLIPBackbone(weights=folder)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}}))
    with pytest.raises(ValueError, match="lacks model_cfg with vision_cfg and text_cfg"):
        OpenCLIPBackbone(weights=folder)
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(ValueError, match=r"not a folder in open_clip's layout: open_clip_config\.json is missing"):
        OpenCLIPBackbone(weights=folder)
