"""Tests of InternVideo2 at tiny width with random weights: conversion, loading, levels, pooling, sentences."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from sidelight.backbones import Backbone, FeatureSpec
from sidelight.backbones.internvideo2.backbone import (
    CLIPS_AT_ONCE,
    QUERIES_AT_ONCE,
    InternVideo2Backbone,
    clean_text,
)
from sidelight.backbones.internvideo2.config import MEAN, SIZES, STD, BertConfig, InternVideo2Config, VideoConfig
from sidelight.backbones.internvideo2.convert import config_of, convert_internvideo2, from_published
from sidelight.backbones.internvideo2.model import VideoTower
from sidelight.backbones.internvideo2.weights import load_weights
from sidelight.backbones.internvideo2.wordpiece import WordPiece, split_words

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PIECES = tuple(f"##{c}" for c in ascii_lowercase)
VOCABULARY = (*SPECIAL, *ascii_lowercase, "!", ",", *PIECES, "dog", "run", "##ning", "the", "中")
FUSION = 4
CONFIG = InternVideo2Config(
    video=VideoConfig(
        width=32,
        depth=5,
        heads=2,
        hidden=48,
        resolution=28,
        pool_width=12,
        pool_heads=4,
        align_levels=2,
        align_width=20,
        align_pool_width=12,
    ),
    text=BertConfig(vocabulary=len(VOCABULARY), width=24, depth=FUSION, heads=2, hidden=40, positions=30),
    joint=8,
)


def published_model(seed: int = 0) -> dict[str, Tensor]:
    """Return random weights by the names of the published checkpoint, with parameters that features do not need."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        vision = VideoTower(CONFIG.video, alignment=True).state_dict()
    shapes = {f"vision_encoder.{name}": tuple(t.shape) for name, t in vision.items()}
    text, width, hidden = CONFIG.text, CONFIG.text.width, CONFIG.text.hidden
    shapes |= {
        "temp": (),
        "text_encoder.bert.embeddings.word_embeddings.weight": (text.vocabulary, width),
        "text_encoder.bert.embeddings.position_embeddings.weight": (text.positions, width),
        "text_encoder.bert.embeddings.token_type_embeddings.weight": (2, width),
        "text_encoder.bert.embeddings.position_ids": (1, text.positions),
        "text_encoder.cls.predictions.bias": (text.vocabulary,),
        "vision_proj.weight": (CONFIG.joint, CONFIG.video.pool_width),
        "vision_proj.bias": (CONFIG.joint,),
        "text_proj.weight": (CONFIG.joint, width),
        "text_proj.bias": (CONFIG.joint,),
        "itm_head.weight": (2, width),
    }
    squares = [f"{part}.self.{x}" for part in ("attention", "crossattention") for x in ("query", "key", "value")]
    squares += [f"{part}.output.dense" for part in ("attention", "crossattention")]
    norms = ["attention.output.LayerNorm", "crossattention.output.LayerNorm", "output.LayerNorm"]
    for layer in range(FUSION + 2):
        linear = {name: (width, width) for name in squares}
        linear |= {"intermediate.dense": (hidden, width), "output.dense": (width, hidden)}
        for name, shape in linear.items():
            if layer >= FUSION or "cross" not in name:
                shapes[f"text_encoder.bert.encoder.layer.{layer}.{name}.weight"] = shape
                shapes[f"text_encoder.bert.encoder.layer.{layer}.{name}.bias"] = shape[:1]
        for name in norms:
            if layer >= FUSION or "cross" not in name:
                for kind in ("weight", "bias"):
                    shapes[f"text_encoder.bert.encoder.layer.{layer}.{name}.{kind}"] = (width,)
    for kind in ("weight", "bias"):
        shapes[f"text_encoder.bert.embeddings.LayerNorm.{kind}"] = (width,)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Path:
    """Return a converted tiny model. Tests only read it."""
    parent = tmp_path_factory.mktemp("internvideo2")
    torch.save({"module": published_model(), "epoch": 3}, parent / "tiny.pt")
    return convert_internvideo2(parent / "tiny.pt", parent / "converted", vocabulary=vocabulary, config=CONFIG)


@pytest.fixture(scope="module")
def backbone(folder: Path) -> InternVideo2Backbone:
    return InternVideo2Backbone(weights=folder)


def clips(count: int, frames: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, frames, 28, 28, 3), dtype=torch.uint8, generator=generator)


def test_the_protocol_is_fulfilled(backbone: InternVideo2Backbone) -> None:
    assert isinstance(backbone, Backbone)
    spec = backbone.spec
    assert FeatureSpec.from_dict(spec.to_dict()) == spec
    assert (spec.backbone, spec.levels, spec.pooling) == ("internvideo2", (-4, -3, -2, -1), "attention")
    assert (spec.resolution, spec.resize, spec.frames_per_clip, spec.clip_seconds) == (28, "stretch", 4, 2.0)
    assert (spec.mean, spec.std) == (MEAN, STD)
    assert backbone.to("cpu") is backbone


def test_joint_embeddings(folder: Path) -> None:
    """Compare with the projections of the pooled last level and of the last CLS token; the parity tests cover these."""
    joint = InternVideo2Backbone(weights=folder, pooling="joint")
    assert (joint.spec.levels, joint.spec.video_dim, joint.spec.text_dim) == ((-1,), CONFIG.joint, CONFIG.joint)
    last = InternVideo2Backbone(weights=folder, pooling="attention", levels=1)
    count = CLIPS_AT_ONCE + 1
    expected = joint.model.join_video(last.encode_video(clips(count)))
    torch.testing.assert_close(joint.encode_video(clips(count)), expected)
    queries = ["the dog", "dog running"] * (QUERIES_AT_ONCE // 2 + 1)
    for sentence, tokens in zip(joint.encode_text(queries), last.encode_text(queries), strict=True):
        torch.testing.assert_close(sentence, joint.model.join_text(tokens[:, :1]))


@pytest.mark.parametrize(("pooling", "width"), [("cls", 32), ("mean", 32), ("attention", 12), ("tokens", 32)])
def test_levels_and_poolings(folder: Path, pooling: str, width: int) -> None:
    all_levels = InternVideo2Backbone(weights=folder, pooling=pooling)
    two_levels = InternVideo2Backbone(weights=folder / "model.safetensors", pooling=pooling, levels=(-3, -2))
    video = all_levels.encode_video(clips(3))
    assert video.shape == ((4, 3, 17, width) if pooling == "tokens" else (4, 3, width))
    assert (all_levels.spec.video_dim, all_levels.spec.text_dim) == (width, 24)
    torch.testing.assert_close(two_levels.encode_video(clips(3)), video[[1, 2]])
    (text,) = all_levels.encode_text(["the dog"])
    assert text.shape == (4, 3, 24)
    torch.testing.assert_close(two_levels.encode_text(["the dog"])[0], text[[1, 2]])


def test_pooling_reads_the_tokens(folder: Path) -> None:
    def encoded(pooling: str) -> Tensor:
        return InternVideo2Backbone(weights=folder, pooling=pooling).encode_video(clips(2))

    tokens = encoded("tokens")
    torch.testing.assert_close(encoded("cls"), tokens[:, :, 0])
    torch.testing.assert_close(encoded("mean"), tokens[:, :, 1:].mean(2))
    model, *_ = load_weights(folder)
    pooled = torch.stack([model.vision_encoder.clip_projector(level) for level in tokens])
    torch.testing.assert_close(encoded("attention"), pooled)


def test_blocks_after_the_last_level_are_not_run(folder: Path) -> None:
    backbone = InternVideo2Backbone(weights=folder, levels=(-4, -3))
    ran: list[int] = []
    for i, block in enumerate(backbone.model.vision_encoder.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    backbone.encode_video(clips(1))
    assert ran == [0, 1, 2]


def test_a_clip_does_not_depend_on_its_batch(backbone: InternVideo2Backbone) -> None:
    many = clips(CLIPS_AT_ONCE + 3)
    together = backbone.encode_video(many)
    assert together.shape[1] == len(many)
    for i in (2, CLIPS_AT_ONCE + 1):
        alone = backbone.encode_video(many[i : i + 1])
        torch.testing.assert_close(alone[:, 0], together[:, i], atol=1e-5, rtol=1e-4)
    assert backbone.encode_video(many[:0]).shape == (4, 0, 12)


@pytest.mark.parametrize("frames", [1, 2, 4, 8])
def test_other_numbers_of_frames(folder: Path, frames: int) -> None:
    backbone = InternVideo2Backbone(weights=folder, pooling="tokens", frames_per_clip=frames)
    assert backbone.spec.frames_per_clip == frames
    before = backbone.encode_video(clips(2, frames))
    assert before.shape == (4, 2, 1 + 4 * frames, 32)
    backbone.model.vision_encoder.img_pos_embed.add_(1.0)  # the table of single frames
    after = backbone.encode_video(clips(2, frames))
    assert torch.equal(before, after) == (frames != 1)


@pytest.mark.parametrize(("dtype", "allowed"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_half_precision(folder: Path, backbone: InternVideo2Backbone, dtype: str, allowed: float) -> None:
    half = InternVideo2Backbone(weights=folder, dtype=dtype)
    assert half.spec == backbone.spec
    for features, expected in (
        (half.encode_video(clips(2)), backbone.encode_video(clips(2))),
        (half.encode_text(["the dog"])[0], backbone.encode_text(["the dog"])[0]),
    ):
        assert features.dtype == torch.float32
        assert 0 < float((features - expected).norm() / expected.norm()) < allowed


def test_pixels_are_normalised(backbone: InternVideo2Backbone) -> None:
    expected = (clips(2).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(backbone.normalise(clips(2)), expected.permute(0, 1, 4, 2, 3))


def test_sentences_keep_their_order_and_padding_changes_nothing(backbone: InternVideo2Backbone) -> None:
    queries = [f"the {'dog ' * (i % 7)}{chr(97 + i % 26)}" for i in range(QUERIES_AT_ONCE + 6)]
    together = backbone.encode_text(queries)
    for i in (0, 5, 13, QUERIES_AT_ONCE + 5):
        (alone,) = backbone.encode_text([queries[i]])
        assert alone.shape == (4, 3 + i % 7, 24)
        torch.testing.assert_close(alone, together[i], atol=1e-5, rtol=1e-4)
    assert backbone.encode_text([]) == []


def test_sentences_are_cleaned(backbone: InternVideo2Backbone) -> None:
    torch.testing.assert_close(*(backbone.encode_text([q])[0] for q in ("The DOG - (running)!", "the dog running")))
    assert clean_text("") == ""
    assert clean_text(" A dog's\nball/stick; <person> ") == "a dogs ball stick person"


@pytest.mark.parametrize("query", ["", "  ", "...", "a " * 30])
def test_queries_that_cannot_be_read_are_refused(backbone: InternVideo2Backbone, query: str) -> None:
    with pytest.raises(ValueError, match="query"):
        backbone.encode_text([query])


def test_wrong_frames_are_refused(backbone: InternVideo2Backbone) -> None:
    with pytest.raises(ValueError, match=r"uint8 of shape \(clips, 4, 28, 28, 3\)"):
        backbone.encode_video(clips(1, frames=2))
    with pytest.raises(ValueError, match="float32"):
        backbone.encode_video(clips(1).float())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": None}, "needs weights"),
        ({"weights": "nowhere"}, r"config.json, model.safetensors, vocab.txt missing"),
        ({"weights": "model.pt"}, "convert it once: sidelight convert internvideo2"),
        ({"levels": 5}, "levels -4 to -1"),
        ({"levels": ()}, "levels"),
        ({"pooling": "max"}, "InternVideo2 does not have the pooling max; choose cls or"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16"),
        ({"frames_per_clip": 0}, "frames_per_clip"),
        ({"clip_seconds": 0}, "clip_seconds"),
    ],
)
def test_wrong_options_are_named(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InternVideo2Backbone(**{"weights": folder, **options})


# ------------------------------------------------------------------------------------------------------ conversion


@pytest.mark.parametrize(
    "wrap", [dict, lambda s: {"model": s}, lambda s: {"module": s}], ids=["bare", "model", "module"]
)
def test_wrapped_or_not(
    tmp_path: Path, folder: Path, vocabulary: Path, wrap: Callable[[dict[str, Tensor]], dict[str, Any]]
) -> None:
    torch.save(wrap(published_model()), tmp_path / "tiny.pt")
    out = convert_internvideo2(tmp_path / "tiny.pt", tmp_path / "out", vocabulary=vocabulary, config=CONFIG)
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors", "vocab.txt"]
    ours, first = load_file(out / "model.safetensors"), load_file(folder / "model.safetensors")
    assert all(torch.equal(ours[name], first[name]) for name in first)
    assert not any("clip_decoder" in name or "cls.predictions" in name or "blocks.4." in name[:20] for name in ours)
    assert InternVideo2Backbone(weights=out).spec == InternVideo2Backbone(weights=folder).spec


def test_weights_keep_their_type(tmp_path: Path, vocabulary: Path) -> None:
    torch.save({name: t.half() for name, t in published_model().items()}, tmp_path / "tiny.pt")
    out = convert_internvideo2(tmp_path / "tiny.pt", tmp_path / "out", vocabulary=vocabulary, config=CONFIG)
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.float16}
    assert InternVideo2Backbone(weights=out).encode_video(clips(1)).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("vision_encoder.blocks.3.ls1.gamma"),
            r"lacks vision_encoder\.blocks\.3\.ls1\.gamma; download",
        ),
        (lambda s: s.update({"vision_encoder.more": torch.ones(1)}), r"has the unknown vision_encoder\.more; download"),
        (lambda s: s.update({"text_encoder.bert.pooler.dense.bias": torch.ones(1)}), r"unknown .*pooler\.dense\.bias"),
        (
            lambda s: s.update({"vision_proj.bias": torch.ones(3)}),
            r"other shapes \(vision_proj\.bias is \(3,\), expected \(8,\)\); download",
        ),
        (lambda s: [s.pop(name) for name in list(s) if "blocks" in name], r"lacks .* and \d+ more; download"),
        (lambda s: s.update({"temp": torch.tensor(torch.nan)}), "temp holds numbers that are not finite"),
        (lambda s: s.update({"temp": torch.tensor(1)}), r"temp is of type torch\.int64"),
    ],
    ids=["missing", "extra", "extra text", "shape", "many", "not finite", "whole numbers"],
)
def test_wrong_parameters_are_named(
    tmp_path: Path, vocabulary: Path, change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    state = published_model()
    change(state)
    torch.save({"module": state}, tmp_path / "tiny.pt")
    with pytest.raises(ValueError, match=message) as refused:
        convert_internvideo2(tmp_path / "tiny.pt", tmp_path / "out", vocabulary=vocabulary, config=CONFIG)
    assert "tiny.pt" in str(refused.value)
    assert not (tmp_path / "out").exists()


class Code:
    """An object that a pickle can make only by running code."""


@pytest.mark.parametrize(
    "write",
    [
        lambda path: None,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("no tensors"),
        lambda path: torch.save({"module": Code()}, path),
        lambda path: torch.save({"module": {"epoch": 3}}, path),
        lambda path: torch.save([torch.ones(2)], path),
        lambda path: torch.save({}, path),
    ],
    ids=["no file", "empty file", "text", "code", "no tensor", "list", "empty"],
)
def test_other_files_are_refused(tmp_path: Path, vocabulary: Path, write: Callable[[Path], Any]) -> None:
    write(tmp_path / "tiny.pt")
    with pytest.raises(ValueError, match=r"tiny\.pt"):
        convert_internvideo2(tmp_path / "tiny.pt", tmp_path / "out", vocabulary=vocabulary, config=CONFIG)
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_of_another_size_is_refused(tmp_path: Path) -> None:
    torch.save(published_model(), tmp_path / "tiny.pt")
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY[:-1]), encoding="utf-8")
    with pytest.raises(ValueError, match=f"has {len(VOCABULARY) - 1} tokens, the text tower {len(VOCABULARY)}"):
        convert_internvideo2(tmp_path / "tiny.pt", tmp_path / "out", vocabulary=tmp_path / "vocab.txt", config=CONFIG)


def test_the_digest_tells_weights_configuration_and_vocabulary_apart(tmp_path: Path, vocabulary: Path) -> None:
    def digest(seed: int = 0, config: InternVideo2Config = CONFIG, tokens: Path = vocabulary) -> str:
        torch.save(published_model(seed), tmp_path / "tiny.pt")
        out = convert_internvideo2(
            tmp_path / "tiny.pt", tmp_path / f"out{len(list(tmp_path.iterdir()))}", vocabulary=tokens, config=config
        )
        return InternVideo2Backbone(weights=out).spec.weights

    exact = replace(CONFIG, video=replace(CONFIG.video, activation="gelu"))
    (tmp_path / "other.txt").write_text("\n".join([*VOCABULARY[:-1], "new"]), encoding="utf-8")
    digests = [digest(), digest(1), digest(config=exact), digest(tokens=tmp_path / "other.txt")]
    assert len(set(digests)) == 4 and digest() == digests[0]


def test_changed_weights_are_noticed(tmp_path: Path, folder: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "changed")
    tensors = load_file(copy / "model.safetensors")
    tensors["vision_encoder.blocks.2.mlp.fc1.weight"] *= 1.001
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ValueError, match="have changed since they were written together"):
        InternVideo2Backbone(weights=copy)
    del tensors["temp"]
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ValueError, match="lacks temp"):
        InternVideo2Backbone(weights=copy)
    (copy / "model.safetensors").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"cannot read .*model\.safetensors"):
        InternVideo2Backbone(weights=copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.clear(), "not as convert_internvideo2 writes it"),
        (lambda c: c["config"].pop("text"), "no configuration of InternVideo2"),
        (lambda c: c["config"]["video"].update(colour=3), "colour"),
        (lambda c: c["config"]["video"].update(heads=5), "divisible by the 5 heads"),
        (lambda c: c["config"]["video"].update(depth=6), "lacks"),
        (lambda c: c["config"]["video"].update(activation="gelu"), "have changed since they were written together"),
        (lambda c: c["config"]["text"].update(heads=1), "have changed since they were written together"),
    ],
)
def test_a_broken_configuration_is_refused(
    tmp_path: Path, folder: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "changed")
    values = json.loads((copy / "config.json").read_text())
    change(values)
    (copy / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        InternVideo2Backbone(weights=copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not as convert_internvideo2 writes it"):
        InternVideo2Backbone(weights=copy)


def published_shapes(config: InternVideo2Config) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a published file with the tiny text tower and the video tower of ``config``."""
    with torch.device("meta"):
        vision = VideoTower(config.video, alignment=True).state_dict()
    shapes = {name: tuple(t.shape) for name, t in published_model().items() if not name.startswith("vision_encoder.")}
    shapes |= {"vision_proj.weight": (8, config.video.pool_width), "vision_proj.bias": (8,)}
    return shapes | {f"vision_encoder.{name}": tuple(t.shape) for name, t in vision.items()}


@pytest.mark.parametrize(("size", "frames"), [*((size, 4) for size in SIZES), ("1b", 8)])
def test_published_sizes_are_read_off_the_shapes(size: str, frames: int) -> None:
    expected = replace(CONFIG, video=replace(SIZES[size], frames=frames), text=replace(CONFIG.text, heads=1))
    shapes = published_shapes(expected)
    config = config_of(shapes)
    assert config == expected
    on_meta = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    assert all(tensor.is_meta for tensor in from_published(on_meta, config).values())


def test_unknown_sizes_need_a_configuration() -> None:
    shapes = {name: tuple(t.shape) for name, t in published_model().items()}
    with pytest.raises(
        ValueError, match=r"no published size has 5 blocks of width 32, .* give --heads and --pool-heads"
    ):
        config_of(shapes)
    config = config_of(shapes, heads=2, pool_heads=4, text_heads=2)
    assert config.text == CONFIG.text and config.joint == CONFIG.joint
    assert config.video == replace(CONFIG.video, align_levels=6, align_width=3200, align_pool_width=768)
    for name, shape in (("patch_embed.proj.weight", (32, 3)), ("img_pos_embed", (1, 1, 32)), ("pos_embed", (0,))):
        with pytest.raises(ValueError, match=f"vision_encoder.{name} has"):
            config_of(shapes | {f"vision_encoder.{name}": shape}, heads=2, pool_heads=4)
    with pytest.raises(ValueError, match=r"lacks vision_encoder\.patch_embed\.proj\.weight"):
        config_of({"weight": (3, 3)})


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (VideoConfig, {"width": 30, "heads": 16}, "divisible by the 16 heads"),
        (VideoConfig, {"pool_heads": 3}, "divisible by the 3 pool_heads"),
        (VideoConfig, {"resolution": 225}, "a multiple of the patch, 14"),
        (VideoConfig, {"depth": 0}, "more than 0"),
        (VideoConfig, {"activation": "relu"}, "activation"),
        (BertConfig, {"heads": 5}, "divisible by the 5 heads"),
        (BertConfig, {"width": "wide"}, "a whole number"),
        (InternVideo2Config, {"joint": 0}, "more than 0"),
    ],
)
def test_configurations_are_checked(config: type, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**options)


# ------------------------------------------------------------------------------------------------------- WordPiece


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        (" \t\n", []),
        ("The DOG", ["the", "dog"]),
        ("running", ["run", "##ning"]),
        ("dogs", ["dog", "##s"]),
        ("Été", ["e", "##t", "##e"]),
        ("dog!run", ["dog", "!", "run"]),
        ("dog\u200b\x00\ufffds", ["dog", "##s"]),
        ("a\u00a0b\u3000c", ["a", "b", "c"]),
        ("a中b", ["a", "中", "b"]),
        ("dog7", ["[UNK]"]),
        ("文 dog", ["[UNK]", "dog"]),
        ("a" * 101, ["[UNK]"]),
        ("a" * 100, ["a"] + ["##a"] * 99),
        ("dog [SEP]s", ["dog", "[SEP]", "s"]),
        ("[sep]", ["[UNK]", "s", "##e", "##p", "[UNK]"]),
        ("$5", ["[UNK]", "[UNK]"]),
    ],
)
def test_wordpiece(text: str, tokens: list[str]) -> None:
    tokenizer = WordPiece(VOCABULARY)
    assert [tokenizer.tokens[i] for i in tokenizer(text)] == ["[CLS]", *tokens]


@given(st.text(max_size=60))
def test_any_text_has_tokens(text: str) -> None:
    tokenizer = WordPiece(VOCABULARY)
    ids = tokenizer(text)
    assert ids[0] == 2 and all(0 <= i < len(tokenizer) for i in ids)
    assert all(word.split() == [word] for word in split_words(text))


def test_batches_are_padded() -> None:
    ids, mask = WordPiece(VOCABULARY).batch([[2, 5], [2, 6, 7]])
    assert ids.tolist() == [[2, 5, 0], [2, 6, 7]] and mask.tolist() == [[True, True, False], [True] * 3]
    assert WordPiece(VOCABULARY).batch([])[0].shape == (0, 0)


def test_vocabularies_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks \[SEP\], \[MASK\]"):
        WordPiece(("[PAD]", "[UNK]", "[CLS]", "a"))
    with pytest.raises(ValueError, match="cannot read a vocabulary"):
        WordPiece.read(tmp_path / "none.txt")
    (tmp_path / "words.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot read a vocabulary"):
        WordPiece.read(tmp_path / "words.txt")
    (tmp_path / "words.txt").write_text("\n".join([*VOCABULARY, "\u2028"]) + "\n", encoding="utf-8", newline="\n")
    assert WordPiece.read(tmp_path / "words.txt").tokens[-1] == "\u2028"
