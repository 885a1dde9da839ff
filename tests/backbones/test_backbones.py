"""Tests of the protocol, the feature spec, and the embedded backbone."""

from __future__ import annotations

import builtins
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sidelight.backbones import (
    Backbone,
    FeatureSpec,
    SpecMismatchError,
    backbone_for,
    default_weights,
    load_backbone,
)
from sidelight.backbones.common import joint_embedding, sentence_embeddings, weights_digest
from sidelight.backbones.pretrained import reading
from sidelight.backbones.shapes.model import ShapesBackbone
from sidelight.backbones.shapes.tokenizer import CLS, PAD, Tokenizer


@pytest.fixture(scope="module")
def backbone(tiny_backbone: Path) -> ShapesBackbone:
    return ShapesBackbone(weights=tiny_backbone)


def clips(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 4, 32, 32, 3), dtype=torch.uint8, generator=generator)


def test_the_protocol_is_fulfilled(backbone: ShapesBackbone) -> None:
    assert isinstance(backbone, Backbone)
    assert FeatureSpec.from_dict(backbone.spec.to_dict()) == backbone.spec
    assert backbone.spec.levels == (-4, -3, -2, -1)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("no such backbone", None),
        ("shapes", None),
        ("internvideo2", None),
        ("clip", "openai/clip-vit-base-patch32"),
        ("siglip2", "google/siglip2-base-patch32-256"),
        ("videoprism", "google/videoprism-lvt-base-f16r288"),
    ],
)
def test_a_backbone_knows_its_own_weights(name: str, weights: str | None) -> None:
    assert default_weights(name) == weights


@pytest.mark.parametrize("pooling", ["cls", "mean", "attention", "tokens"])
def test_levels_and_poolings(tiny_backbone: Path, pooling: str) -> None:
    all_levels = ShapesBackbone(weights=tiny_backbone, pooling=pooling)
    two_levels = ShapesBackbone(weights=tiny_backbone, pooling=pooling, levels=(-3, -1))
    video = all_levels.encode_video(clips(3))
    assert video.shape == ((4, 3, 9, 32) if pooling == "tokens" else (4, 3, 32))
    assert torch.equal(two_levels.encode_video(clips(3)), video[[1, 3]])
    (text,) = all_levels.encode_text(["a red square spins"])
    assert text.shape == (4, 5, 32)
    assert torch.equal(two_levels.encode_text(["a red square spins"])[0], text[[1, 3]])


def test_attention_pooling_of_a_level_is_the_last_levels_pool(tiny_backbone: Path) -> None:
    backbone = ShapesBackbone(weights=tiny_backbone, pooling="tokens")
    pooled = ShapesBackbone(weights=tiny_backbone, pooling="attention").encode_video(clips(2))
    tokens = backbone.encode_video(clips(2))
    for level in range(4):
        torch.testing.assert_close(pooled[level], backbone.model.video.pool(tokens[level]))


def test_a_clip_does_not_depend_on_its_batch(backbone: ShapesBackbone) -> None:
    together = backbone.encode_video(clips(5))
    alone = backbone.encode_video(clips(5)[2:3])
    torch.testing.assert_close(alone[:, 0], together[:, 2], atol=1e-5, rtol=1e-4)


def test_padding_does_not_change_a_sentence(backbone: ShapesBackbone) -> None:
    alone = backbone.encode_text(["a red square spins"])[0]
    padded = backbone.encode_text(["a red square spins", "there is a purple plus sign jumping up and down"])[0]
    torch.testing.assert_close(alone, padded, atol=1e-5, rtol=1e-4)


def test_no_queries_give_no_features(backbone: ShapesBackbone) -> None:
    assert backbone.encode_text([]) == []


@pytest.mark.parametrize(
    ("sentence", "tokens"),
    [
        ("", ["[CLS]"]),
        ("!?", ["[CLS]"]),
        ("A RED Square", ["[CLS]", "a", "red", "square"]),
        ("squares", ["[CLS]", "square", "##s"]),
        ("qx7", ["[CLS]", "##q", "##x", "##7"]),
        ("été", ["[CLS]", "[OTHER]", "##t", "[OTHER]"]),
        ("red,green_blue", ["[CLS]", "red", "green", "blue"]),
    ],
)
def test_tokenizer(sentence: str, tokens: list[str]) -> None:
    tokenizer = Tokenizer()
    assert [tokenizer.tokens[i] for i in tokenizer(sentence)] == tokens


def test_tokenizer_pads() -> None:
    ids, lengths = Tokenizer().batch(["red", "a red star"], max_tokens=10)
    assert lengths == [2, 4] and ids[0, 0] == CLS and ids[0, 2:].tolist() == [PAD, PAD]


@pytest.mark.parametrize("query", ["", "  ", "...", "a " * 100])
def test_queries_that_cannot_be_read_are_refused(backbone: ShapesBackbone, query: str) -> None:
    with pytest.raises(ValueError, match="query"):
        backbone.encode_text([query])


def test_wrong_frames_are_refused(backbone: ShapesBackbone) -> None:
    with pytest.raises(ValueError, match=r"uint8 of shape \(clips, 4, 32, 32, 3\)"):
        backbone.encode_video(torch.zeros(1, 4, 16, 16, 3, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 9}, "levels"),
        ({"levels": ()}, "levels"),
        ({"pooling": "max"}, "pooling"),
        ({"weights": "x"}, "x"),
    ],
)
def test_wrong_options_are_named(tiny_backbone: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_backbone("shapes", **{"weights": tiny_backbone, **options})
    with pytest.raises(ValueError, match="clip_seconds must be 2, got 1: the shapes backbone was trained"):
        load_backbone("shapes", clip_seconds=1.0)
    with pytest.raises(ValueError, match="no backbone 'clop'"):
        load_backbone("clop")


def test_a_spec_refuses_another_and_names_each_difference(backbone: ShapesBackbone) -> None:
    spec = backbone.spec
    spec.require(spec)
    other = replace(spec, pooling="mean", clip_seconds=1.0)
    assert other.digest() != spec.digest()
    with pytest.raises(
        SpecMismatchError, match=r"pooling is 'mean', expected 'attention'; clip_seconds is 1.0"
    ) as refusal:
        spec.require(other)
    assert "Extract them again" in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": []}, "levels"),
        ({"levels": [-1, -2]}, "levels"),
        ({"levels": [0]}, "levels"),
        ({"resize": "squash"}, "resize"),
        ({"clip_seconds": 0}, "clip_seconds"),
        ({"more": 1}, "unknown fields: more"),
    ],
)
def test_specs_are_checked(backbone: ShapesBackbone, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureSpec.from_dict({**backbone.spec.to_dict(), **change})
    with pytest.raises(ValueError, match="lacks backbone"):
        FeatureSpec.from_dict({k: v for k, v in backbone.spec.to_dict().items() if k != "backbone"})


def test_the_digest_sees_every_value() -> None:
    weights = {"a": torch.zeros(3), "b": torch.ones(2, dtype=torch.int64)}
    changed = {**weights, "a": torch.tensor([0.0, 0.0, 1e-7])}
    assert weights_digest(weights) != weights_digest(changed)
    assert weights_digest(weights) == weights_digest(dict(reversed(weights.items())))
    assert weights_digest({"s": torch.tensor(1.0)}) != weights_digest({"s": torch.tensor(2.0)})


# joint embeddings --------------------------------------------------------------------------------------------------


def test_the_joint_embeddings_are_the_ones_of_the_pretraining(tiny_backbone: Path) -> None:
    backbone = ShapesBackbone(weights=tiny_backbone, pooling="joint")
    model, width = backbone.model, backbone.model.config.joint
    assert (backbone.spec.levels, backbone.spec.video_dim, backbone.spec.text_dim) == ((-1,), width, width)
    video = backbone.encode_video(clips(3))
    torch.testing.assert_close(video, model.join_video(model.pool_video(clips(3)))[None])
    sentences = backbone.encode_text(["a red square spins", "a star"])
    ids, _ = model.tokenizer.batch(["a red square spins", "a star"], max_tokens=64)
    torch.testing.assert_close(torch.cat(sentences, dim=1)[0], model.embed_text(ids))
    for embedding in (video, *sentences):
        torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(embedding.shape[:-1]))
    assert backbone.encode_text([]) == []


def test_joint_embeddings_average_unit_vectors() -> None:
    """Check that a frame with a longer embedding counts no more than others."""
    embeddings_CFE = torch.tensor([[[10.0, 0.0], [0.0, 1.0]]])
    torch.testing.assert_close(joint_embedding(embeddings_CFE), torch.full((1, 1, 2), 0.5**0.5))
    torch.testing.assert_close(sentence_embeddings(torch.tensor([[0.0, 4.0]]))[0], torch.tensor([[[0.0, 1.0]]]))


@pytest.mark.parametrize("change", [{"levels": [-2, -1]}, {"levels": [-2]}, {"text_dim": 7}])
def test_joint_embeddings_have_one_level_and_one_width(tiny_backbone: Path, change: dict[str, object]) -> None:
    spec = ShapesBackbone(weights=tiny_backbone, pooling="joint").spec
    with pytest.raises(ValueError, match=r"pooling joint has (the level -1 alone|equal widths)"):
        FeatureSpec.from_dict({**spec.to_dict(), **change})


# packages that are missing or broken -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModuleNotFoundError("No module named 'open_clip'"), r'needs open_clip: pip install "sidelight\[open-clip\]"'),
        (RuntimeError("operator torchvision::nms does not exist"), "torchvision must be built for the installed torch"),
    ],
)
def test_without_open_clip_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    imported = builtins.__import__

    def broken(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "open_clip":
            raise error
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(ValueError, match=message):
        load_backbone("open-clip", weights=tmp_path)


def test_a_torchvision_of_another_build_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"\(Could not import module 'CLIPModel'\); .* both again from one index"),
        reading(tmp_path, family="CLIP"),
    ):
        raise ModuleNotFoundError("Could not import module 'CLIPModel'.")


def test_a_transformers_without_the_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "videoprism"}')
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setattr("transformers.VideoPrismConfig", None, raising=False)
    with pytest.raises(ValueError, match=r"^VideoPrism-LvT needs a newer transformers \(transformers 5\.\S+ has"):
        load_backbone("videoprism", weights=tmp_path)


def test_a_digest_alone_finds_no_weights(backbone: ShapesBackbone) -> None:
    spec = replace(backbone.spec, backbone="siglip2")
    with pytest.raises(ValueError, match=f"made by siglip2 with weights of the digest {spec.weights}: give the hub id"):
        backbone_for(spec)
