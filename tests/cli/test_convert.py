"""Tests of `sidelight convert internvideo2` and `clip`, with golden files and tiny random files.

A refused file must leave nothing behind. tests/training/test_convert.py tests `sidelight convert r2-tuning`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sidelight.backbones import load_backbone
from sidelight.backbones.internvideo2.weights import load_weights
from sidelight.cli.main import main
from sidelight.io.tensors import own_memory
from sidelight.training.checkpoint import Checkpoint
from tests.backbones import test_clip as tiny_clip
from tests.backbones import test_internvideo2 as tiny_internvideo2

HEADS = {
    "internvideo2": ["--heads", "2", "--pool-heads", "4", "--text-heads", "2"],
    "clip": ["--heads", "2", "--text-heads", "2"],
}
KINDS = tuple(HEADS)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with both tiny vocabularies. Tests only read it."""
    folder = tmp_path_factory.mktemp("words")
    tiny_clip.write_vocabulary(folder)
    (folder / "vocab.txt").write_text("\n".join(tiny_internvideo2.VOCABULARY) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a tiny published file of each kind. Tests only read them."""
    folder = tmp_path_factory.mktemp("published")
    torch.save({"module": tiny_internvideo2.published_model(), "epoch": 3}, folder / "internvideo2.pt")
    torch.save(tiny_clip.openai_tensors(516), folder / "clip.pt")
    return {kind: folder / f"{kind}.pt" for kind in KINDS}


def convert(kind: str, file: Path, out: Path, words: Path | None, *options: str) -> int:
    vocabulary = (
        [] if words is None else ["--vocabulary", str(words / "vocab.txt" if kind == "internvideo2" else words)]
    )
    return main(["convert", kind, str(file), "--out", str(out), *vocabulary, *(options or HEADS[kind])])


# written folders ---------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_the_golden_internvideo2(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = shared / "golden" / "internvideo2" / "whole_model"
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(75))]))
    shutil.copy(
        golden / "ckpt_module_wrapped.pt", tmp_path / "golden.pt"
    )  # the command reads the vocabulary beside the file
    options = ["--heads", "4", "--pool-heads", "4", "--text-heads", "4", "--activation", "gelu"]
    assert convert("internvideo2", tmp_path / "golden.pt", tmp_path / "out", None, *options) == 0
    shown = capsys.readouterr().out
    assert "4 blocks of width 64 and 4 heads, 4 frames of 42 x 42, pool to 24; 3 layers of text of width 48" in shown
    model, *_ = load_weights(tmp_path / "out")
    with np.load(golden / "inputs.npz") as inputs, np.load(golden / "outputs.npz") as expected:
        *_, video = model.vision_encoder.layers(torch.from_numpy(inputs["video_BTCHW"]))
        ids, mask = torch.from_numpy(inputs["input_ids"]), torch.from_numpy(inputs["attention_mask"])
        *_, text = model.text_encoder.layers(ids, mask)
        np.testing.assert_allclose(video.numpy(), expected["video_tokens"], atol=2e-5)
        np.testing.assert_allclose(model.vision_encoder.clip_projector(video), expected["video_pooled"], atol=3e-6)
        np.testing.assert_allclose(text.numpy(), expected["text_tokens"], atol=2e-5)
    assert load_backbone("internvideo2", weights=tmp_path / "out", levels=3).spec.video_dim == 24


def test_the_golden_clip(goldens: Path, openai_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = goldens / "clip"
    both = ["--heads", "4", "--text-heads", "4"]
    assert convert("clip", openai_clip, tmp_path / "out", None, *both) == 0
    shown = capsys.readouterr().out
    assert "6 blocks of width 64 and 4 heads" in shown and "no sentence can be read yet" in shown
    ours, theirs = load_file(tmp_path / "out" / "model.safetensors"), load_file(golden / "weights_hf.safetensors")
    assert set(ours) == set(theirs)
    assert all(torch.equal(tensor.flatten(), theirs[name].flatten()) for name, tensor in ours.items())


@pytest.mark.parametrize("kind", KINDS)
def test_tiny_files_become_backbones(
    kind: str, files: dict[str, Path], words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    assert convert(kind, files[kind], out, words) == 0
    assert f"wrote {out}" in (shown := capsys.readouterr().out) and "no sentence" not in shown
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    backbone = load_backbone(kind, weights=out, levels=3, pooling="cls")
    side, frames = backbone.spec.resolution, backbone.spec.frames_per_clip
    assert backbone.encode_video(torch.zeros(2, frames, side, side, 3, dtype=torch.uint8)).shape[:2] == (3, 2)
    assert backbone.encode_text(["the dog"])[0].shape[0] == 3


@pytest.mark.parametrize("wrapper", ["", "module", "model"])
def test_wrapped_or_bare(wrapper: str, words: Path, tmp_path: Path) -> None:
    tensors = tiny_internvideo2.published_model()
    torch.save({wrapper: tensors, "step": 3} if wrapper else tensors, tmp_path / "a.pt")
    assert convert("internvideo2", tmp_path / "a.pt", tmp_path / "out", words) == 0


def test_the_digest_of_r2_tunings_features_is_taken_from_a_folder(
    goldens: Path, files: dict[str, Path], words: Path, tmp_path: Path
) -> None:
    assert convert("clip", files["clip"], tmp_path / "clip", words) == 0
    options = ["--run", "qvhighlights", "--video-dim", "48", "--text-dim", "32", "--hidden", "64", "--weights"]
    golden = goldens / "r2" / "tiny" / "checkpoint.pth"
    command = ["convert", "r2-tuning", str(golden), "--out", str(tmp_path / "out"), *options, str(tmp_path / "clip")]
    assert main(command) == 0
    backbone = load_backbone("clip", weights=tmp_path / "clip", levels=1)
    assert Checkpoint.from_pretrained(tmp_path / "out").features.weights == backbone.spec.weights


def test_tensors_that_share_memory_are_written(words: Path, tmp_path: Path) -> None:
    tensors = tiny_internvideo2.published_model()
    shared = torch.stack([tensors["vision_proj.weight"], tensors["vision_proj.weight"] + 1])
    tensors["vision_proj.weight"] = shared[0]
    tensors["vision_proj.bias"] = tensors["text_proj.bias"]
    torch.save(tensors, tmp_path / "a.pt")
    assert convert("internvideo2", tmp_path / "a.pt", tmp_path / "out", words) == 0
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["vision_proj.weight"], shared[0]) and torch.equal(
        written["vision_proj.bias"], written["text_proj.bias"]
    )
    separate = own_memory({"a": shared[0], "b": shared[0], "c": torch.zeros(0), "d": torch.zeros(0)})
    assert len({separate[name].untyped_storage().data_ptr() for name in "ab"}) == 2


# refused files ---------------------------------------------------------------------------------------------------


class RunsCode:
    """An object whose pickle, when read, makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


def refusal(kind: str, file: Path, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one sentence with which the command refuses a file; check that nothing is written."""
    before = sorted(tmp_path.rglob("*"))
    assert convert(kind, file, tmp_path / "out", words) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and str(file) in shown.err, shown.err
    assert "Traceback" not in shown.err and sorted(tmp_path.rglob("*")) == before
    return shown.err


@pytest.mark.parametrize("old_form", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_would_run_code_is_refused_and_runs_none(
    kind: str,
    old_form: bool,
    files: dict[str, Path],
    words: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tensors = torch.load(files[kind], weights_only=True)
    tensors["hook"] = RunsCode(tmp_path / "it-ran")
    torch.save(tensors, tmp_path / "tampered.pt", _use_new_zipfile_serialization=not old_form)
    message = refusal(kind, tmp_path / "tampered.pt", words, tmp_path, capsys)
    assert not (tmp_path / "it-ran").exists()
    assert "is refused: besides tensors it holds" in message and "none was run" in message
    torch.load(tmp_path / "tampered.pt", weights_only=False)  # the payload is real
    assert (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path, content: None, "there is no file"),
        (lambda path, content: path.mkdir(), "is a folder"),
        (lambda path, content: path.write_bytes(b""), "cannot be read as a PyTorch checkpoint"),
        (lambda path, content: path.write_bytes(b"<html>404</html>"), "cannot be read as a PyTorch checkpoint"),
        (
            lambda path, content: path.write_bytes(content[: len(content) // 2]),
            "cannot be read as a PyTorch checkpoint",
        ),
        (lambda path, content: torch.save([torch.ones(2)], path), "(it holds: a list)"),
        (lambda path, content: torch.save({}, path), "(it holds: nothing)"),
        (lambda path, content: torch.save({"a": 3}, path), "its entry a is no tensor"),
        (lambda path, content: torch.save({3: torch.ones(1)}, path), "its entry 3 is no tensor"),
        (lambda path, content: torch.save({"a": torch.ones(1)}, path), "lacks"),
    ],
    ids=["no file", "folder", "empty", "page", "cut short", "list", "empty dict", "number", "name", "another model"],
)
def test_other_files_are_refused(
    kind: str,
    write: Callable[[Path, bytes], Any],
    message: str,
    files: dict[str, Path],
    words: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / "a.pt", files[kind].read_bytes())
    shown = refusal(kind, tmp_path / "a.pt", words, tmp_path, capsys)
    assert any(part in shown for part in message.split("|")), shown


@pytest.mark.parametrize(
    ("kind", "name", "value", "message"),
    [
        ("internvideo2", "vision_encoder.blocks.2.attn.q_norm.weight", None, "lacks vision_encoder.blocks.2.attn.q_n"),
        ("internvideo2", "vision_encoder.more", torch.ones(1), "has the unknown vision_encoder.more"),
        ("internvideo2", "text_proj.weight", torch.ones(3, 3), "(text_proj.weight is (3, 3), expected (8, 24))"),
        ("internvideo2", "vision_proj.weight", torch.tensor(1.0), "vision_proj.weight has the shape ()"),
        (
            "internvideo2",
            "text_proj.bias",
            torch.full((8,), torch.inf),
            "text_proj.bias holds numbers that are not fin",
        ),
        ("internvideo2", "text_proj.bias", torch.ones(8).to_sparse(), "text_proj.bias is of type torch.sparse_coo"),
        ("clip", "transformer.resblocks.1.mlp.c_fc.bias", None, "lacks transformer.resblocks.1.mlp.c_fc.bias"),
        ("clip", "visual.more", torch.ones(1), "has the unknown visual.more"),
        ("clip", "visual.proj", torch.ones(3, 3), "(visual.proj is (3, 3), expected (32, 8))"),
        ("clip", "positional_embedding", torch.tensor(1.0), "positional_embedding has the shape ()"),
        ("clip", "visual.proj", torch.full((32, 8), torch.nan), "visual.proj holds numbers that are not finite"),
    ],
)
def test_a_changed_file_is_refused(
    kind: str,
    name: str,
    value: Tensor | None,
    message: str,
    words: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tensors = tiny_internvideo2.published_model() if kind == "internvideo2" else tiny_clip.openai_tensors(516)
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    torch.save(tensors, tmp_path / "changed.pt")
    assert message in refusal(kind, tmp_path / "changed.pt", words, tmp_path, capsys)


def test_options_that_do_not_fit_are_named(
    files: dict[str, Path], words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, options, message in (
        ("internvideo2", ["--heads", "3", "--pool-heads", "4"], "divisible by the 3 heads"),
        ("internvideo2", ["--heads", "0", "--pool-heads", "4"], "--heads must be 1 or more, got 0"),
        ("internvideo2", ["--heads", "2"], "no published size has 5 blocks of width 32"),
        ("internvideo2", ["--activation", "relu"], "relu"),
        ("clip", ["--heads", "2"], "give both --heads and --text-heads, or neither"),
        ("clip", ["--heads", "3", "--text-heads", "2"], "do not divide the widths 32 and 16"),
    ):
        assert convert(kind, files[kind], tmp_path / "out", words, *options) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
    for kind, vocabulary, message in (
        ("internvideo2", tmp_path / "none.txt", "cannot read a vocabulary from"),
        ("internvideo2", None, "holds no vocabulary, and there is no"),
        ("clip", tmp_path, "holds no vocabulary: expected a folder with tokenizer.json, or vocab.json and merges.txt"),
    ):
        option = [] if vocabulary is None else ["--vocabulary", str(vocabulary)]
        assert main(["convert", kind, str(files[kind]), "--out", str(tmp_path / "out"), *option, *HEADS[kind]]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_vocabulary_of_another_clip_is_refused(
    words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(tiny_clip.openai_tensors(400), tmp_path / "small.pt")
    before = sorted(tmp_path.iterdir())
    assert convert("clip", tmp_path / "small.pt", tmp_path / "out", words) == 2
    assert f"the vocabulary of {words} does not fit the weights: it has 516 tokens" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_overwritten_and_a_failure_leaves_nothing(
    kind: str,
    files: dict[str, Path],
    words: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert convert(kind, files[kind], tmp_path / "full", words) == 2
    assert "already exists" in capsys.readouterr().err and (tmp_path / "full" / "mine.txt").read_text() == "mine"

    def full(*_: object) -> None:
        raise OSError("no space left")

    def full_disk(*_: object) -> None:
        raise SafetensorError("No space left on device")

    failing = {"sidelight.backbones.conversion.write_text": full, "safetensors.torch.save_file": full_disk}
    for name, fails in failing.items():
        with monkeypatch.context() as patched:
            patched.setattr(name, fails)
            assert convert(kind, files[kind], tmp_path / "out", words) == 2
        assert "no space left" in capsys.readouterr().err.lower()
        assert [path.name for path in tmp_path.iterdir()] == ["full"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert convert(kind, files[kind], Path("."), words) == 0
    assert (tmp_path / "here" / "config.json").is_file()
