"""Tests of VideoPrism-LvT as a backbone, with a tiny model of random weights, against transformers' forward pass."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from sidelight.backbones import Backbone, FeatureSpec, load_backbone
from sidelight.backbones.common import QueryWarning
from sidelight.backbones.videoprism import VideoPrismBackbone, clean_text
from tests.tiny_models import DEPTH, LONGEST, frames, write_videoprism

if not hasattr(transformers, "VideoPrismClipModel"):
    pytest.skip("needs a transformers with VideoPrism", allow_module_level=True)

SIDE, FRAMES, PATCHES, WIDTH = 32, 4, 4, 32
QUERIES = ["a RED dog", "red"]
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.02}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videoprism(tmp_path_factory.mktemp("videoprism") / "tiny")


def library(folder: Path, dtype: str = "float32") -> Any:
    kind: Any = transformers.VideoPrismClipModel
    return kind.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


def plain_pixels(frames_CFSS3: Tensor, dtype: str) -> Tensor:
    return (frames_CFSS3.float() / 255).permute(0, 1, 4, 2, 3).to(getattr(torch, dtype))


def library_levels(folder: Path, shown: Tensor, dtype: str, interpolate: bool = False) -> tuple[Tensor, Tensor]:
    """Return the four last levels (4, C, F * P, D) and the pooled video, with the library's own outputs."""
    model, (clips, count) = library(folder, dtype), shown.shape[:2]
    with torch.inference_mode():
        output = model.video_model(
            plain_pixels(shown, dtype), interpolate_pos_encoding=interpolate, output_hidden_states=True
        )
        tower = model.video_model.vision_model(
            plain_pixels(shown, dtype), interpolate_pos_encoding=interpolate, output_hidden_states=True
        )
    # The library's list of states ends with the second spatial layer (C * F, P, D), the first temporal layer
    # (C * P, F, D), and the normalised output; the second temporal layer is an output of its own.
    *_, spatial, first, _ = tower.hidden_states
    temporal = [
        state.reshape(clips, PATCHES, count, WIDTH).transpose(1, 2).flatten(1, 2)
        for state in (first, tower.last_temporal_hidden_state)
    ]
    levels = [spatial.reshape(clips, count * PATCHES, WIDTH), *temporal, output.last_hidden_state]
    return torch.stack(levels).float(), output.pooler_output.float()


def test_the_protocol_is_fulfilled(folder: Path) -> None:
    backbone = load_backbone("videoprism", weights=folder)
    assert isinstance(backbone, Backbone)
    assert backbone.to("cpu") is backbone
    spec = backbone.spec
    assert FeatureSpec.from_dict(spec.to_dict()) == spec
    assert (spec.backbone, spec.levels, spec.pooling) == ("videoprism", (-4, -3, -2, -1), "attention")
    assert (spec.resolution, spec.resize, spec.frames_per_clip) == (SIDE, "stretch", FRAMES)
    assert spec.mean == (0.0,) * 3 and spec.std == (1.0,) * 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_level_is_the_librarys(folder: Path, dtype: Any) -> None:
    """Compare the auxiliary layer, both temporal layers and the last spatial layer, arranged frame after frame."""
    shown = frames(2, FRAMES, SIDE)
    expected, pooled = library_levels(folder, shown, dtype)
    close = TOLERANCE[dtype] * float(expected.abs().max())
    tokens = VideoPrismBackbone(weights=folder, pooling="tokens", dtype=dtype).encode_video(shown)
    assert tokens.shape == (4, 2, FRAMES * PATCHES, WIDTH) and tokens.dtype == torch.float32
    torch.testing.assert_close(tokens, expected, atol=close, rtol=0)
    mean = VideoPrismBackbone(weights=folder, pooling="mean", dtype=dtype).encode_video(shown)
    torch.testing.assert_close(mean, expected.mean(2), atol=close, rtol=0)
    attention = VideoPrismBackbone(weights=folder, dtype=dtype).encode_video(shown)[-1]
    unit = F.normalize(attention, dim=-1)
    torch.testing.assert_close(unit, F.normalize(pooled[:, 0], dim=-1), atol=TOLERANCE[dtype], rtol=0)


def test_blocks_after_the_deepest_level_are_dropped(folder: Path) -> None:
    shown = frames(1, FRAMES, SIDE)
    every = VideoPrismBackbone(weights=folder, pooling="tokens").encode_video(shown)
    some = VideoPrismBackbone(weights=folder, pooling="tokens", levels=(-4, -3))
    torch.testing.assert_close(some.encode_video(shown), every[:2])
    tower = some.model.video_model
    kept = (tower.vision_model.spatial_layers, tower.vision_model.temporal_layers, tower.auxiliary_layers)
    assert [len(blocks) for blocks in kept] == [2, 1, 0] and len(some.model.text_model.layers) == DEPTH - 2


def test_other_numbers_of_frames_are_interpolated(folder: Path) -> None:
    """Compare with the library's interpolation in float32; check that bfloat16, which the library refuses, is near."""
    shown = frames(2, 3, SIDE)
    expected, _ = library_levels(folder, shown, "float32", interpolate=True)
    backbone = VideoPrismBackbone(weights=folder, pooling="tokens", frames_per_clip=3)
    torch.testing.assert_close(backbone.encode_video(shown), expected, atol=1e-5, rtol=1e-4)
    half = VideoPrismBackbone(weights=folder, pooling="tokens", frames_per_clip=3, dtype="bfloat16")
    assert (half.encode_video(shown) - expected).abs().max() < 0.1 * expected.abs().max()
    assert half.spec == backbone.spec
    assert backbone.spec.weights == VideoPrismBackbone(weights=folder).spec.weights


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_joint_embeddings_are_the_librarys(folder: Path, dtype: Any) -> None:
    shown = frames(2, FRAMES, SIDE)
    backbone = VideoPrismBackbone(weights=folder, pooling="joint", dtype=dtype)
    ids, counts = backbone.sentence_ids(QUERIES)
    mask = torch.tensor([[1] * count + [0] * (LONGEST - count) for count in counts])
    with torch.inference_mode():
        output = library(folder, dtype)(plain_pixels(shown, dtype), input_ids=ids, attention_mask=mask)
    expected = F.normalize(output.video_embeds.float(), dim=-1)
    torch.testing.assert_close(backbone.encode_video(shown)[0], expected, atol=TOLERANCE[dtype], rtol=0)
    sentences = torch.cat(backbone.encode_text(QUERIES))[:, 0]
    texts = F.normalize(output.text_embeds.float(), dim=-1)
    torch.testing.assert_close(sentences, texts, atol=TOLERANCE[dtype], rtol=0)


def test_sentences_have_cls_first(folder: Path) -> None:
    """Compare with the library's normalised last layer: CLS stands after the padding; padding changes nothing."""
    backbone = VideoPrismBackbone(weights=folder, levels=1)
    ids, counts = backbone.sentence_ids(QUERIES)
    mask = torch.tensor([[1] * count + [0] * (LONGEST - count) for count in counts])
    model = library(folder)
    with torch.inference_mode():
        last = model.text_model(ids, attention_mask=mask).last_hidden_state
        (alone,) = model.text_model(ids[1:, : counts[1]], attention_mask=mask[1:, : counts[1]]).pooler_output
    for b, features in enumerate(backbone.encode_text(QUERIES)):
        assert features.shape == (1, 1 + counts[b], WIDTH)
        with torch.inference_mode():
            normed = model.text_model.layernorm(features[0])
        torch.testing.assert_close(normed[1:], last[b, : counts[b]], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(normed[0], last[b, -1], atol=1e-5, rtol=1e-4)
    (sentence,) = VideoPrismBackbone(weights=folder, pooling="joint").encode_text(["red"])
    torch.testing.assert_close(sentence[0, 0], F.normalize(alone, dim=-1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("", ""),
        ("?!", ""),
        ("Hello, World!", "hello world."),
        ("  a man's  up-side DOWN cake.", "a man s up side down cake."),
    ],
)
def test_sentences_are_cleaned(sentence: str, expected: str) -> None:
    """Check lower case, spaces for punctuation, single spaces, and a period at the end."""
    assert clean_text(sentence) == expected


def test_longer_sentences_are_cut_at_their_end(folder: Path) -> None:
    backbone = VideoPrismBackbone(weights=folder, levels=1)
    with pytest.warns(QueryWarning, match=rf"1 of 1 queries are longer than the {LONGEST} tokens"):
        (ids,), (count,) = backbone.sentence_ids(["red " * 20])
    assert count == LONGEST and len(set(ids.tolist())) == 1  # no end token
    for query in ("", "..."):
        with pytest.raises(ValueError, match="at least one word"):
            backbone.encode_text([query])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 5}, "levels -4 to -1"),
        ({"pooling": "cls"}, "no CLS token, does not have the pooling cls"),
        ({"frames_per_clip": 0}, "frames_per_clip must be more than 0"),
        ({"weights": "here"}, "neither a folder nor a hub id"),
    ],
)
def test_wrong_options_are_named(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoPrismBackbone(**{"weights": folder, **options})


def test_other_models_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "tokenizer.json").unlink()
    bare = VideoPrismBackbone(weights=copy, levels=1)
    assert bare.encode_video(frames(0, FRAMES, SIDE)).shape == (1, 0, WIDTH)
    with pytest.raises(ValueError, match=r"has no vocabulary.* tokenizer\.json"):
        bare.encode_text(["a"])
    (copy / "config.json").write_text(json.dumps({"model_type": "videoprism_vision_model"}))
    with pytest.raises(ValueError, match=r"is not VideoPrism-LvT: .* expected 'videoprism'"):
        VideoPrismBackbone(weights=copy)
