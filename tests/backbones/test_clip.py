"""Tests of CLIP as a backbone, with a tiny model of random weights and a vocabulary of bytes. They need no network."""

from __future__ import annotations

import builtins
import hashlib
import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sidelight import Grounder
from sidelight.backbones import Backbone, FeatureSpec, SpecMismatchError
from sidelight.backbones.clip.convert import convert_clip
from sidelight.backbones.clip.loading import identify_weights
from sidelight.backbones.clip.model import CLIPBackbone, clean_text
from sidelight.backbones.clip.released import CLIP_B32, CLIP_MEAN, CLIP_STD, HUB_FILES, OPENAI_FILES
from sidelight.backbones.common import QueryWarning
from sidelight.models.decode.zero_shot import METHODS
from sidelight.training import published

SIDE, PATCH, WIDTH, TEXT_WIDTH, JOINT, LONGEST = 24, 8, 32, 16, 8, 24
VIDEO_DEPTH, TEXT_DEPTH = 4, 3
TOKENS = 1 + (SIDE // PATCH) ** 2
HEADS = (2, 2)


def byte_symbols() -> list[str]:
    """Return the printable characters that stand for the 256 bytes, in the order of byte-level BPE."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + i) for i in range(len(hidden))]


def write_vocabulary(folder: Path) -> int:
    """Write bytes, bytes that end a word, two merges, start and end; return the number of tokens."""
    symbols = byte_symbols()
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n", encoding="utf-8")
    return len(tokens)


def openai_tensors(vocabulary: int, seed: int = 0) -> dict[str, Tensor]:
    """Return random weights by OpenAI's names."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    tensors = {
        "logit_scale": torch.tensor(2.5),
        "token_embedding.weight": draw(vocabulary, TEXT_WIDTH),
        "positional_embedding": draw(LONGEST, TEXT_WIDTH),
        "text_projection": draw(TEXT_WIDTH, JOINT),
        "visual.class_embedding": draw(WIDTH),
        "visual.positional_embedding": draw(TOKENS, WIDTH),
        "visual.conv1.weight": draw(WIDTH, 3, PATCH, PATCH),
        "visual.proj": draw(WIDTH, JOINT),
    }
    norms = [("ln_final", TEXT_WIDTH), ("visual.ln_pre", WIDTH), ("visual.ln_post", WIDTH)]
    sides = (("visual.transformer", WIDTH, VIDEO_DEPTH), ("transformer", TEXT_WIDTH, TEXT_DEPTH))
    for side, width, depth in sides:
        for i in range(depth):
            block = f"{side}.resblocks.{i}"
            norms += [(f"{block}.ln_1", width), (f"{block}.ln_2", width)]
            matrices = {"mlp.c_fc": (4 * width, width), "mlp.c_proj": (width, 4 * width)}
            for name, shape in (matrices | {"attn.out_proj": (width, width)}).items():
                tensors |= {f"{block}.{name}.weight": draw(*shape), f"{block}.{name}.bias": draw(shape[0])}
            tensors[f"{block}.attn.in_proj_weight"] = draw(3 * width, width)
            tensors[f"{block}.attn.in_proj_bias"] = draw(3 * width)
    for name, width in norms:
        tensors |= {f"{name}.weight": 1 + draw(width), f"{name}.bias": draw(width)}
    return tensors


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a state dict with torch.save."""
    folder = tmp_path_factory.mktemp("openai")
    path = folder / "tiny.pt"
    torch.save(openai_tensors(write_vocabulary(folder)), path)
    return path


@pytest.fixture(scope="module")
def tiny(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the converted folder with its vocabulary. Tests only read it."""
    folder = convert_clip(original, tmp_path_factory.mktemp("clip") / "tiny", heads=HEADS)
    write_vocabulary(folder)
    return folder


@pytest.fixture(scope="module")
def backbone(tiny: Path) -> CLIPBackbone:
    return CLIPBackbone(weights=tiny, levels=3)


def clips(count: int, frames: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, frames, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)


# features ----------------------------------------------------------------------------------------------------------


def test_the_protocol_is_fulfilled(backbone: CLIPBackbone) -> None:
    assert isinstance(backbone, Backbone)
    assert FeatureSpec.from_dict(backbone.spec.to_dict()) == backbone.spec
    spec = backbone.spec
    assert (spec.backbone, spec.levels, spec.resize) == ("clip", (-3, -2, -1), "crop")
    assert (spec.resolution, spec.video_dim, spec.text_dim) == (SIDE, WIDTH, TEXT_WIDTH)
    assert spec.mean == CLIP_MEAN and spec.std == CLIP_STD


@pytest.mark.parametrize("pooling", ["cls", "mean", "tokens"])
@pytest.mark.parametrize("frames", [1, 2])
def test_levels_and_poolings(tiny: Path, pooling: str, frames: int) -> None:
    """Compare with a plain reference, which computes every hidden state of each frame and then selects the levels."""
    all_levels = CLIPBackbone(weights=tiny, levels=3, pooling=pooling, frames_per_clip=frames)
    two_levels = CLIPBackbone(weights=tiny, levels=(-3, -2), pooling=pooling, frames_per_clip=frames)
    video = all_levels.encode_video(clips(3, frames))
    assert video.dtype == torch.float32
    assert video.shape == ((3, 3, frames * TOKENS, WIDTH) if pooling == "tokens" else (3, 3, WIDTH))
    # Unused layers are dropped.
    assert (len(two_levels.video.blocks), len(two_levels.text.blocks)) == (VIDEO_DEPTH - 1, TEXT_DEPTH - 1)
    torch.testing.assert_close(two_levels.encode_video(clips(3, frames)), video[:2])

    pixels = clips(3, frames).double() / 255
    pixels = (pixels - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    states = torch.stack(list(all_levels.video.hidden_states(pixels.float().flatten(0, 1).permute(0, 3, 1, 2)))[-3:])
    states = states.unflatten(1, (3, frames))
    plain = {"cls": states[..., 0, :].mean(2), "mean": states[..., 1:, :].mean((2, 3)), "tokens": states.flatten(2, 3)}
    torch.testing.assert_close(video, plain[pooling], atol=1e-5, rtol=1e-4)

    (text,) = all_levels.encode_text(["a red square"])
    (two_text,) = two_levels.encode_text(["a red square"])
    torch.testing.assert_close(two_text, text[:2])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_joint_embeddings_are_those_of_transformers(tiny: Path, dtype: Any) -> None:
    import transformers

    backbone = CLIPBackbone(weights=tiny, pooling="joint", frames_per_clip=2, dtype=dtype)
    assert (backbone.spec.levels, backbone.spec.video_dim, backbone.spec.text_dim) == ((-1,), JOINT, JOINT)
    model: Any = transformers.CLIPModel.from_pretrained(tiny, dtype=getattr(torch, dtype))
    pixels = backbone.normalise(clips(3, 2).flatten(0, 1)).to(getattr(torch, dtype))
    images = model.get_image_features(pixels).pooler_output.float().detach()
    expected = F.normalize(F.normalize(images, dim=-1).unflatten(0, (3, 2)).mean(1), dim=-1)
    tolerance = 1e-5 if dtype == "float32" else 0.02
    torch.testing.assert_close(backbone.encode_video(clips(3, 2)), expected[None], atol=tolerance, rtol=0)
    queries = ["a red square", "red"]
    for query, sentence in zip(queries, backbone.encode_text(queries), strict=True):
        text = model.get_text_features(torch.tensor(backbone.token_ids([query]))).pooler_output.float().detach()
        torch.testing.assert_close(sentence, F.normalize(text, dim=-1)[None], atol=tolerance, rtol=0)


def test_clip_grounds_without_training(tiny: Path, tiny_world: Path) -> None:
    grounder = Grounder.from_pretrained("zero-shot/clip", backbone_weights=tiny, device="cpu", cache=None)
    assert grounder.checkpoint.features == CLIPBackbone(weights=tiny, pooling="joint").spec
    assert grounder.checkpoint.decode == METHODS["persistence-smooth"]
    grounding = grounder.ground(sorted((tiny_world / "videos").iterdir())[0], "a red square")
    assert grounding.moments and -1 <= grounding.saliency.min() <= grounding.saliency.max() <= 1


def test_joint_embeddings_depend_on_the_projections(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    tensors["visual_projection.weight"] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    specs = [CLIPBackbone(weights=weights, pooling="joint").spec for weights in (tiny, folder)]
    assert specs[0].weights != specs[1].weights
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert CLIPBackbone(weights=folder, levels=1).spec.pooling == "cls"
    with pytest.raises(ValueError, match=r"is incomplete: 1 tensors .* visual_projection\.weight"):
        CLIPBackbone(weights=folder, pooling="joint")


def test_no_input_gives_no_features(backbone: CLIPBackbone) -> None:
    assert backbone.encode_video(clips(0)).shape == (3, 0, WIDTH)
    assert backbone.encode_text([]) == []


def test_a_clip_does_not_depend_on_its_batch(backbone: CLIPBackbone) -> None:
    together = backbone.encode_video(clips(5))
    alone = backbone.encode_video(clips(5)[2:3])
    torch.testing.assert_close(alone[:, 0], together[:, 2], atol=1e-5, rtol=1e-4)


def test_padding_does_not_change_a_sentence(backbone: CLIPBackbone) -> None:
    """Check also that a later token changes nothing, because the mask is causal."""
    alone = backbone.encode_text(["a red"])[0]
    padded, longer = backbone.encode_text(["a red", "a red square spins"])
    torch.testing.assert_close(alone, padded, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(alone[:, :-1], longer[:, : alone.shape[1] - 1], atol=1e-5, rtol=1e-4)


def test_tokens_are_counted_and_id_0_is_one(backbone: CLIPBackbone) -> None:
    """Check that id 0 is a token ("!" at the start of a word), not padding."""
    assert backbone.token_ids(["!a"]) != backbone.token_ids(["a"])
    ids = backbone.token_ids(["red", "!! red"])
    start, end = 514, 515
    assert ids[0] == [start, 513, end]
    assert ids[1] == [start, 0, 256, 513, end]
    assert [features.shape for features in backbone.encode_text(["red", "!! red"])] == [
        (3, 3, TEXT_WIDTH),
        (3, 5, TEXT_WIDTH),
    ]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("", ""),
        ("  a man\u2019s \u201chat\u201d ", 'a man\'s "hat"'),
        ("R&amp;amp;D &lt;3", "R&D <3"),
        ("plain text, as it is", "plain text, as it is"),
        ("the \ufb01rst o\ufb00icer", "the first officer"),  # ligatures
        ("\uff21 \uff44og\uff01", "A dog!"),  # full-width letters
        ("a man\u00e2\u20ac\u2122s caf\u00c3\u00a9", "a man's caf\u00e9"),  # UTF-8 that was read as Windows-1252
        ("cafe\u0301", "caf\u00e9"),  # a letter and its accent become one character
        ("a\r\nb", "a\nb"),
        ("&EACUTE;", "\u00c9"),
        ("un \u00e9t\u00e9 \u00e0 M\u00e1laga", "un \u00e9t\u00e9 \u00e0 M\u00e1laga"),
    ],
)
def test_sentences_are_cleaned(sentence: str, expected: str) -> None:
    """Check the results of OpenAI's ``basic_clean``: ftfy.fix_text, then HTML entities decoded twice."""
    assert clean_text(sentence) == expected


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="&")))
def test_plain_sentences_need_no_repair(sentence: str) -> None:
    """Check the shortcut of ``clean_text``, which does not import ftfy."""
    import ftfy

    assert ftfy.fix_text(sentence) == sentence


@pytest.mark.parametrize(("query", "message"), [("", "one word"), (" \n", "one word")])
def test_queries_that_cannot_be_read_are_refused(backbone: CLIPBackbone, query: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backbone.encode_text(["a red square", query])


def test_the_longest_query_is_read(backbone: CLIPBackbone) -> None:
    assert backbone.encode_text(["a " * 22])[0].shape == (3, LONGEST, TEXT_WIDTH)


def test_longer_queries_are_cut_with_a_warning(backbone: CLIPBackbone) -> None:
    """Check that the start of the sentence and the end token stay, as with ``truncate`` in OpenAI's code."""
    with pytest.warns(QueryWarning, match=rf"1 of 2 queries are longer than the {LONGEST} tokens .* first has 31"):
        short, cut = backbone.token_ids(["red", "a " * 21 + "red " * 8])
    assert len(cut) == LONGEST and cut[-1] == short[-1] and cut[-2] == short[1]
    (whole,) = backbone.token_ids(["a " * 21 + "red"])
    assert cut == whole


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.0), ("bfloat16", 0.05), ("float16", 0.01)])
def test_dtypes(tiny: Path, backbone: CLIPBackbone, dtype: Any, tolerance: float) -> None:
    """Check that the spec is the same, and that features are float32 and near the features of a float32 model."""
    converted = CLIPBackbone(weights=tiny, levels=3, dtype=dtype)
    assert converted.spec == backbone.spec
    pairs = [(converted.encode_video(clips(2)), backbone.encode_video(clips(2)))]
    pairs += zip(converted.encode_text(["a red star"]), backbone.encode_text(["a red star"]), strict=True)
    for features, expected in pairs:
        assert features.dtype == torch.float32
        assert (features - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_on_a_gpu(tiny: Path, backbone: CLIPBackbone, dtype: Any) -> None:
    on_gpu = CLIPBackbone(weights=tiny, levels=3, dtype=dtype).to("cuda")
    features = on_gpu.encode_video(clips(2))
    assert features.device.type == "cuda" and on_gpu.encode_text(["a star"])[0].device.type == "cuda"
    expected = backbone.encode_video(clips(2))
    assert (features.cpu() - expected).abs().max() <= 0.05 * expected.abs().max()


# refused input ---------------------------------------------------------------------------------------------------


def test_wrong_frames_are_refused(backbone: CLIPBackbone) -> None:
    with pytest.raises(ValueError, match=rf"uint8 of shape \(clips, 1, {SIDE}, {SIDE}, 3\)"):
        backbone.encode_video(torch.zeros(1, 2, SIDE, SIDE, 3, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 4}, "levels -3 to -1"),
        ({"levels": ()}, "levels"),
        ({"levels": (-1, -2)}, "ascending"),
        ({"pooling": "max"}, "pooling must be one of"),
        ({"pooling": "attention"}, "no attention pool; choose cls"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16"),
        ({"frames_per_clip": 0}, "frames_per_clip"),
        ({"weights": "0123456789abcdef"}, "neither a folder nor a hub id .* digest"),
        ({"weights": "no/such/folder"}, "neither a folder"),
    ],
)
def test_wrong_options_are_named(tiny: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CLIPBackbone(**{"weights": tiny, "levels": 1, **options})


def test_incomplete_folders_are_refused(tiny: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        CLIPBackbone(weights=bare)
    shutil.copy(tiny / "config.json", bare)
    with pytest.raises(ValueError, match=r"no weights: expected model\.safetensors"):
        CLIPBackbone(weights=bare)
    (bare / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="cannot be read as CLIP"):
        CLIPBackbone(weights=bare, levels=1)
    tensors = load_file(tiny / "model.safetensors")
    del tensors["text_model.encoder.layers.1.mlp.fc1.bias"]
    save_file(tensors, bare / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"is incomplete: 1 tensors .* text_model\.encoder\.layers\.1\.mlp\.fc1\.bias"):
        CLIPBackbone(weights=bare, levels=1)
    (bare / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"is not CLIP: its config\.json says model_type 'bert'"):
        CLIPBackbone(weights=bare, levels=1)


def test_without_a_vocabulary_videos_are_read_and_sentences_refused(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "copy")
    (folder / "merges.txt").unlink()
    bare = CLIPBackbone(weights=folder, levels=1)
    assert bare.encode_video(clips(1)).shape == (1, 1, WIDTH)
    with pytest.raises(ValueError, match=r"has no vocabulary.* merges\.txt"):
        bare.encode_text(["a star"])


def test_a_larger_vocabulary_than_the_weights_know_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "copy")
    tokens = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    (folder / "vocab.json").write_text(json.dumps(tokens | {"more": len(tokens)}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"vocabulary of .* does not fit the weights: it has 517 tokens"):
        CLIPBackbone(weights=folder, levels=1)


def test_a_transformers_that_cannot_be_imported_is_one_sentence(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "transformers":
            raise ImportError("huggingface-hub>=1.3.0 is required.\nTry: pip install")
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"imported \(huggingface-hub>=1\.3\.0 is required\): pip install -U"):
        CLIPBackbone(weights=tiny)


# names of weights --------------------------------------------------------------------------------------------


def test_other_weights_have_another_spec(tiny: Path, backbone: CLIPBackbone, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "tuned")
    tensors = load_file(folder / "model.safetensors")
    behind = {**tensors, "visual_projection.weight": tensors["visual_projection.weight"] + 1}
    save_file(behind, folder / "model.safetensors", {"format": "pt"})
    same = CLIPBackbone(weights=folder, levels=3)
    assert same.spec == backbone.spec  # weights after the towers change no feature
    tensors["text_model.encoder.layers.0.mlp.fc1.bias"][0] += 1e-6
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SpecMismatchError, match="weights is"):
        backbone.spec.require(CLIPBackbone(weights=folder, levels=3).spec)


def test_half_precision_copies_of_half_precision_weights_are_the_same(tmp_path: Path) -> None:
    """Check that equal values have equal digests. The released files are float16, the files on the hub float32."""
    half = {name: tensor.half() for name, tensor in openai_tensors(516).items()}
    specs = []
    for name, tensors in (("half", half), ("full", {name: tensor.float() for name, tensor in half.items()})):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        folder = convert_clip(tmp_path / f"{name}.safetensors", tmp_path / name, heads=HEADS)
        specs.append(CLIPBackbone(weights=folder, levels=1).spec)
    assert specs[0] == specs[1] and len(specs[0].weights) == 16


def test_published_models_are_named_by_their_hub_id(
    tiny: Path, backbone: CLIPBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check the name for the hub id and for a copy of the file, but not for a folder that only has the same name."""
    clip = nn.Module()
    assert identify_weights(CLIP_B32, clip) == CLIP_B32 == published.CLIP_WEIGHTS
    assert identify_weights("somebody/clip-vit-base-patch32", clip) != CLIP_B32  # a digest
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(tiny, tmp_path / CLIP_B32)
    assert CLIPBackbone(weights=CLIP_B32, levels=3).spec == backbone.spec
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    monkeypatch.setitem(HUB_FILES, digest, CLIP_B32)
    assert CLIPBackbone(weights=folder, levels=3).spec.weights == CLIP_B32


def test_a_published_run_takes_its_features(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that the specs of R2-Tuning's checkpoints and of the backbone differ only in the tiny model's sizes."""
    run = published.R2_TUNING["qvhighlights"].features()
    spec = CLIPBackbone(weights=tiny, levels=3, pooling="tokens", clip_seconds=run.clip_seconds).spec
    sizes: dict[str, Any] = {"resolution": 224, "video_dim": 768, "text_dim": 512, "levels": run.levels}
    assert replace(spec, weights=CLIP_B32, **sizes) == run
    with pytest.raises(SpecMismatchError, match="weights is"):
        run.require(replace(spec, **sizes))


# OpenAI's files ----------------------------------------------------------------------------------------------------


def test_converted_config(tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    vision, text = config["vision_config"], config["text_config"]
    assert (vision["image_size"], vision["patch_size"], vision["num_hidden_layers"]) == (SIDE, PATCH, VIDEO_DEPTH)
    assert (text["max_position_embeddings"], text["vocab_size"], text["num_hidden_layers"]) == (
        LONGEST,
        516,
        TEXT_DEPTH,
    )
    assert vision["hidden_act"] == text["hidden_act"] == "quick_gelu"
    assert (text["bos_token_id"], text["eos_token_id"]) == (514, 515)


def test_heads_are_64_wide_unless_given(tmp_path: Path) -> None:
    save_file(openai_tensors(516), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="give the attention heads of both towers"):
        convert_clip(tmp_path / "a.safetensors", tmp_path / "out")
    with pytest.raises(ValueError, match="do not divide"):
        convert_clip(tmp_path / "a.safetensors", tmp_path / "out", heads=(3, 2))
    assert not (tmp_path / "out").exists()


def changed(**changes: Tensor | None) -> dict[str, Tensor]:
    tensors: dict[str, Tensor | None] = {**openai_tensors(516)}
    tensors |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, r"does not hold a state dict|lacks visual\.conv1\.weight"),
        (changed(ln_final__bias=None), r"it lacks ln_final\.bias"),
        (
            changed(transformer__resblocks__1__ln_2__bias=None),
            r"it lacks transformer\.resblocks\.1\.ln_2\.bias; download it again",
        ),
        (changed(extra=torch.zeros(1)), "it has the unknown extra; download"),
        ({"visual.layer1.0.conv1.weight": torch.zeros(1)}, "is a ResNet of CLIP"),
        (
            changed(visual__proj=torch.zeros(WIDTH, JOINT + 1)),
            rf"visual\.proj is \({WIDTH}, {JOINT + 1}\), expected \({WIDTH}, {JOINT}\)",
        ),
        (changed(visual__conv1__weight=torch.zeros(3, 3)), r"visual\.conv1\.weight has the shape \(3, 3\), expected 4"),
        (changed(ln_final__bias=torch.full((TEXT_WIDTH,), torch.nan)), r"ln_final\.bias holds numbers .* not finite"),
        (changed(ln_final__bias=torch.zeros(TEXT_WIDTH).int()), r"ln_final\.bias is of type torch\.int32"),
    ],
)
def test_other_models_are_refused(tmp_path: Path, tensors: Mapping[str, Tensor], message: str) -> None:
    save_file(dict(tensors), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=message):
        convert_clip(tmp_path / "a.safetensors", tmp_path / "out", heads=HEADS)
    assert not (tmp_path / "out").exists()


def test_wrappings_are_read(original: Path, tiny: Path, tmp_path: Path) -> None:
    """Read a state dict inside a checkpoint, and with the three settings that released files hold."""
    tensors = torch.load(original, weights_only=True)
    notes = {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    torch.save({"epoch": 3, "state_dict": tensors | notes}, tmp_path / "a.pt")
    folder = convert_clip(tmp_path / "a.pt", tmp_path / "out", heads=HEADS)
    assert (folder / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()


class Danger:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('code in the file was run')",))


@pytest.mark.parametrize("content", ["nothing", "text", "list", "code"])
def test_files_of_another_kind_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.pt"
    if content == "text":
        path.write_text("no tensors")
    elif content == "list":
        torch.save([1, 2], path)
    elif content == "code":
        torch.save({"a": Danger()}, path)
    message = {"nothing": "there is no file", "list": "does not hold a state dict", "code": "none was run"}.get(
        content, "nothing in it was run"
    )
    with pytest.raises(ValueError, match=message):
        convert_clip(path, tmp_path / "out")


def test_a_full_folder_is_not_written_over(original: Path, tiny: Path) -> None:
    with pytest.raises(ValueError, match="already exists"):
        convert_clip(original, tiny, heads=HEADS)


class Node(nn.Module):
    """A tree of parameters by dotted names."""

    def put(self, name: str, tensor: Tensor) -> None:
        head, _, rest = name.partition(".")
        if not rest:
            self.register_parameter(head, nn.Parameter(tensor))
            return
        if head not in self._modules:
            self.add_module(head, Node())
        self.get_submodule(head).put(rest, tensor)  # type: ignore[operator]  # a Node, as all of them


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_archives_are_opened_only_if_they_are_the_released_ones(
    original: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = Node()
    for name, tensor in torch.load(original, weights_only=True).items():
        tree.put(name, tensor)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(tree), buffer)
    path = tmp_path / "ViT-tiny.pt"
    path.write_bytes(buffer.getvalue())
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    with pytest.raises(ValueError, match=rf"TorchScript archive, which is code, .*{digest}.*torch\.save"):
        convert_clip(path, tmp_path / "out", heads=HEADS)

    monkeypatch.setitem(OPENAI_FILES, digest, CLIP_B32)
    folder = convert_clip(path, tmp_path / "out", heads=HEADS)
    ours, theirs = load_file(folder / "model.safetensors"), load_file(tiny / "model.safetensors")
    assert set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert CLIPBackbone(weights=folder, levels=1).spec.weights == CLIP_B32  # the folder remembers the hub id


def test_without_a_network_there_is_one_sentence_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("the client tries again"))
    with pytest.raises(ValueError, match="someone/clip is not on this machine, and the hub cannot be reached"):
        CLIPBackbone(weights="someone/clip")
    assert not caplog.records
