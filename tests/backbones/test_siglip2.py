"""Tests of SigLIP 2 as a backbone, with tiny models of random weights, against the forward pass of transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from sidelight.backbones import Backbone, FeatureSpec, load_backbone
from sidelight.backbones.common import QueryWarning
from sidelight.backbones.siglip2 import SigLIP2Backbone, patches_of
from tests.tiny_models import DEPTH, LONGEST, frames, write_gemma, write_siglip2

SIDE, PATCHES, WIDTH = 32, 16, 32
QUERIES = ["a RED dog", "red!"]
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.02}


@pytest.fixture(scope="module", params=["fixed", "naflex"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of each of the two kinds of weights. Tests only read it."""
    return write_siglip2(tmp_path_factory.mktemp("siglip2") / str(request.param), naflex=request.param == "naflex")


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_siglip2(tmp_path_factory.mktemp("siglip2") / "fixed")


def library(folder: Path, dtype: str = "float32") -> Any:
    return transformers.AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


def plain_inputs(folder: Path, frames_CFSS3: Tensor, dtype: str) -> dict[str, Tensor]:
    """Return the inputs of the vision tower, by the plain steps of the library's image processors."""
    pixels = ((frames_CFSS3.flatten(0, 1).float() / 255 - 0.5) / 0.5).permute(0, 3, 1, 2).to(getattr(torch, dtype))
    if "naflex" not in folder.name:
        return {"pixel_values": pixels}
    from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

    patches = [torch.tensor(convert_image_to_patches(image.float().numpy(), 8)) for image in pixels]
    count = len(patches)
    return {
        "pixel_values": torch.stack(patches).to(pixels.dtype),
        "pixel_attention_mask": torch.ones(count, PATCHES, dtype=torch.long),
        "spatial_shapes": torch.full((count, 2), 4),
    }


def test_the_protocol_is_fulfilled(folder: Path) -> None:
    backbone = load_backbone("siglip2", weights=folder)
    assert isinstance(backbone, Backbone)
    assert backbone.to("cpu") is backbone
    spec = backbone.spec
    assert FeatureSpec.from_dict(spec.to_dict()) == spec
    assert (spec.backbone, spec.levels, spec.pooling) == ("siglip2", (-4, -3, -2, -1), "attention")
    assert (spec.resolution, spec.resize, spec.mean, spec.std) == (SIDE, "stretch", (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_level_is_the_librarys(folder: Path, dtype: Any) -> None:
    """Compare all tokens of every level, and each pooling, with the hidden states of transformers."""
    model, shown = library(folder, dtype), frames(2, 2, SIDE)
    with torch.inference_mode():
        output = model.vision_model(**plain_inputs(folder, shown, dtype), output_hidden_states=True)
        states = torch.stack(output.hidden_states[-DEPTH:]).float().unflatten(1, (2, 2))
    options: dict[str, Any] = {"weights": folder, "frames_per_clip": 2, "dtype": dtype}
    close = TOLERANCE[dtype] * float(states.abs().max())
    tokens = SigLIP2Backbone(pooling="tokens", **options).encode_video(shown)
    assert tokens.shape == (DEPTH, 2, 2 * PATCHES, WIDTH) and tokens.dtype == torch.float32
    torch.testing.assert_close(tokens, states.flatten(2, 3), atol=close, rtol=0)
    two = SigLIP2Backbone(pooling="tokens", levels=(-4, -2), **options)
    assert len(two.model.vision_model.encoder.layers) == len(two.model.text_model.encoder.layers) == DEPTH - 1
    torch.testing.assert_close(two.encode_video(shown), tokens[[0, 2]])
    mean = SigLIP2Backbone(pooling="mean", **options).encode_video(shown)
    torch.testing.assert_close(mean, states.mean((2, 3)), atol=close, rtol=0)
    attention = SigLIP2Backbone(pooling="attention", **options).encode_video(shown)
    pooled = output.pooler_output.float().unflatten(0, (2, 2)).mean(1)
    torch.testing.assert_close(attention[-1], pooled, atol=close, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_joint_embeddings_are_the_librarys(folder: Path, dtype: Any) -> None:
    """Compare with ``image_embeds`` and ``text_embeds``, which are unit vectors too."""
    shown = frames(3, 2, SIDE)
    backbone = SigLIP2Backbone(weights=folder, pooling="joint", frames_per_clip=2, dtype=dtype)
    ids, _ = backbone.sentence_ids(QUERIES)
    with torch.inference_mode():
        output = library(folder, dtype)(input_ids=ids, **plain_inputs(folder, shown, dtype))
    images = output.image_embeds.float().unflatten(0, (3, 2))
    expected = F.normalize(images.mean(1), dim=-1)[None]
    torch.testing.assert_close(backbone.encode_video(shown), expected, atol=TOLERANCE[dtype], rtol=0)
    sentences = torch.cat(backbone.encode_text(QUERIES))[:, 0]
    torch.testing.assert_close(sentences, output.text_embeds.float(), atol=TOLERANCE[dtype], rtol=0)
    assert backbone.spec.levels == (-1,) and backbone.spec.video_dim == backbone.spec.text_dim == WIDTH


def test_sentences_have_their_summary_first(fixed: Path) -> None:
    """Compare every token with the library's: the 12th place, which the tower projects, then the sentence."""
    backbone = SigLIP2Backbone(weights=fixed, levels=(-3, -1))
    ids, counts = backbone.sentence_ids(QUERIES)
    with torch.inference_mode():
        states = library(fixed).text_model(input_ids=ids, output_hidden_states=True).hidden_states
    expected = torch.stack([states[-3], states[-1]])
    for b, features in enumerate(backbone.encode_text(QUERIES)):
        assert features.shape == (2, 1 + counts[b], WIDTH)
        torch.testing.assert_close(features[:, 0], expected[:, b, -1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(features[:, 1:], expected[:, b, : counts[b]], atol=1e-5, rtol=1e-4)
    full = backbone.encode_text(["a" * (LONGEST - 1)])[0]
    assert full.shape == (2, LONGEST, WIDTH)  # the last place is the end token, and is not repeated


@pytest.mark.parametrize(
    ("sentence", "tokens"),
    [
        (" a  red", ["a", "\u2581", "\u2581", "red", "<eos>"]),
        ("RED!", ["red", "!", "<eos>"]),
        ("\u00e9", ["<unk>", "<eos>"]),
    ],
)
def test_sentences_are_read_as_in_the_training(fixed: Path, sentence: str, tokens: list[str]) -> None:
    """Check lower case, no start token, an end token and padding to the end, whatever the file's own settings are."""
    backbone = SigLIP2Backbone(weights=fixed, levels=1)
    reader: Any = transformers.PreTrainedTokenizerFast
    vocabulary = reader(tokenizer_file=str(fixed / "tokenizer.json"))
    (ids,), (count,) = backbone.sentence_ids([sentence])
    padded = tokens + ["<pad>"] * (LONGEST - len(tokens))
    assert vocabulary.convert_ids_to_tokens(ids.tolist()) == padded and count == len(tokens)


def test_longer_sentences_are_cut_before_the_end_token(fixed: Path) -> None:
    backbone = SigLIP2Backbone(weights=fixed, levels=1)
    with pytest.warns(QueryWarning, match=rf"1 of 2 queries are longer than the {LONGEST} tokens .* first has 21"):
        ids, counts = backbone.sentence_ids(["a", "ab" * 10])
    assert counts == [2, LONGEST] and ids[1, -1] == ids[0, 1] and ids[1, :2].tolist() == [5, 6]
    with pytest.raises(ValueError, match="at least one word"):
        backbone.encode_text(["a", " "])


def test_patches_are_cut_as_the_library_cuts_them() -> None:
    from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

    pixels = torch.arange(2 * 3 * 16 * 16.0).reshape(2, 3, 16, 16)
    expected = [torch.tensor(convert_image_to_patches(image.numpy(), 8)) for image in pixels]
    assert torch.equal(patches_of(pixels, 8), torch.stack(expected))


def test_no_input_and_other_weights(fixed: Path, tmp_path: Path) -> None:
    backbone = SigLIP2Backbone(weights=fixed)
    assert backbone.encode_video(frames(0, 1, SIDE)).shape == (DEPTH, 0, WIDTH) and backbone.encode_text([]) == []
    folder = shutil.copytree(fixed, tmp_path / "tuned")
    tensors = load_file(folder / "model.safetensors")
    tensors["text_model.head.bias"] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert SigLIP2Backbone(weights=folder).spec.weights != backbone.spec.weights
    del tensors["text_model.head.bias"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"is incomplete: 1 tensors .* text_model\.head\.bias"):
        SigLIP2Backbone(weights=folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 5}, "levels -4 to -1"),
        (
            {"pooling": "cls"},
            "no CLS token, does not have the pooling cls; choose attention or mean or tokens or joint",
        ),
        ({"pooling": "joint", "levels": 2}, "pooling joint has the level -1 alone"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"weights": "0123456789abcdef"}, "neither a folder nor a hub id such as google/siglip2-base-patch32-256"),
    ],
)
def test_wrong_options_are_named(fixed: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SigLIP2Backbone(**{"weights": fixed, **options})


def test_other_models_and_vocabularies_are_refused(fixed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(fixed, tmp_path / "copy")
    write_gemma(folder, end="</s>")
    with pytest.raises(ValueError, match="the first SigLIP loads through the backbone open-clip"):
        SigLIP2Backbone(weights=folder)
    (folder / "tokenizer.json").unlink()
    bare = SigLIP2Backbone(weights=folder, levels=1)
    assert bare.encode_video(frames(1, 1, SIDE)).shape == (1, 1, WIDTH)
    with pytest.raises(ValueError, match=r"has no vocabulary.* tokenizer\.json"):
        bare.encode_text(["a"])
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(ValueError, match=r"is not SigLIP 2: .* model_type 'clip', expected 'siglip' or 'siglip2'"):
        SigLIP2Backbone(weights=folder)
