"""Published checkpoints are converted, by the command and from a hub on this machine; wrong files are refused."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sidelight.backbones.protocol import FeatureSpec
from sidelight.cli.main import main
from sidelight.core.batch import Batch
from sidelight.data.datasets import BENCHMARKS
from sidelight.models.decode.r2_tuning import R2DecodeConfig, point_windows, saliency
from sidelight.models.r2_tuning import R2Tuning, from_published
from sidelight.training.checkpoint import Checkpoint
from sidelight.training.convert import (
    convert_r2_tuning,
    published_shapes,
    published_tensors,
    with_widths,
)
from sidelight.training.published import R2_TUNING

WIDTHS: dict[str, Any] = {"video_dim": 48, "text_dim": 32, "hidden": 64}
OPTIONS = ["--video-dim", "48", "--text-dim", "32", "--hidden", "64", "--weights", "tiny"]


@pytest.fixture(scope="module")
def tiny(goldens: Path) -> Path:
    return goldens / "r2" / "tiny"


@pytest.fixture(scope="module")
def highlights(goldens: Path) -> Path:
    return goldens / "r2" / "tiny_highlights"


def command(file: Path, out: Path, run: str = "qvhighlights", options: list[str] = OPTIONS) -> int:
    return main(["convert", "r2-tuning", str(file), "--run", run, "--out", str(out), *options])


# what is written ---------------------------------------------------------------------------------------------------


def test_the_command_converts_the_golden_checkpoint(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tiny / "checkpoint.pth", tmp_path / "new" / "out") == 0
    shown = capsys.readouterr().out
    assert "r2-tuning of the run qvhighlights, 164,850 parameters" in shown and "1 frame per clip of 2 s" in shown
    assert sorted(p.name for p in (tmp_path / "new" / "out").iterdir()) == ["config.json", "model.safetensors"]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out"]
    checkpoint = Checkpoint.from_pretrained(tmp_path / "new" / "out")
    assert checkpoint.model_name == "r2-tuning" and checkpoint.window_clips == 75 and not checkpoint.model.training
    assert checkpoint.model_config["padding"] == "independent"
    assert checkpoint.decode == R2DecodeConfig(nms="hard", nms_threshold=0.7, round_to=2.0, keep_all=True)
    assert checkpoint.round_clips
    assert checkpoint.features == FeatureSpec(
        backbone="clip",
        weights="tiny",
        levels=(-4, -3, -2, -1),
        pooling="tokens",
        clip_seconds=2.0,
        frames_per_clip=1,
        resolution=224,
        resize="crop",
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        video_dim=48,
        text_dim=32,
    )
    source = checkpoint.recipe["converted_from"]
    assert source["sha256"] == hashlib.sha256((tiny / "checkpoint.pth").read_bytes()).hexdigest()
    assert source["published"] is None  # no published file has this content


def batch_of(arrays: Any, samples: list[int], tokens: int = 5) -> Batch:
    """Return the golden inputs, padded with zeros to the longest."""
    parts: list[Tensor] = []
    for name, inner in (("video", (tokens, 48)), ("query", (32,))):
        rows = [torch.tensor(arrays[f"{name}_{i}"].astype(np.float32)).view(-1, 4, *inner) for i in samples]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).movedim(2, 0)
        lengths = torch.tensor([len(row) for row in rows])
        parts += [padded, torch.arange(padded.shape[2]) < lengths.unsqueeze(1)]
    return Batch(video_KBTD=parts[0], video_mask_BT=parts[1], text_KBLD=parts[2], text_mask_BL=parts[3])


def close(ours: Any, golden: Any) -> None:
    np.testing.assert_allclose(np.asarray(ours), golden, rtol=0, atol=1e-5 * float(np.abs(golden).max()))


def test_the_converted_checkpoint_answers_as_the_published_one(tiny: Path, tmp_path: Path) -> None:
    inputs = np.load(tiny / "inputs.npz")
    padded, single = np.load(tiny / "a_forward.npz"), np.load(tiny / "b_single.npz")
    for padding in ("exact", "independent"):
        folder = tmp_path / padding
        assert command(tiny / "checkpoint.pth", folder, options=[*OPTIONS, "--padding", padding]) == 0
        model = Checkpoint.from_pretrained(folder).model
        with torch.no_grad():
            if padding == "exact":
                predictions = model(batch_of(inputs, [0, 1, 2]))
                close(predictions.logits_BN, padded["out_class"][..., 0])
                close(predictions.distances_BN2, padded["out_coord"])
            for i in range(3):  # a sample alone has no padding
                predictions = model(batch_of(inputs, [i]))
                close(point_windows(predictions, 0, 2.0), single[f"boundary_{i}"])
                close(saliency(predictions)[0], single[f"saliency_{i}"])


def test_a_highlights_checkpoint_answers_as_the_published_one(highlights: Path, tmp_path: Path) -> None:
    assert command(highlights / "checkpoint.pth", tmp_path / "out", run="tvsum-BK") == 0
    checkpoint, golden = Checkpoint.from_pretrained(tmp_path / "out"), np.load(highlights / "hl.npz")
    with torch.no_grad():
        for i in range(3):
            close(saliency(checkpoint.model(batch_of(golden, [i])))[0], golden[f"val_saliency_{i}"])


@pytest.mark.parametrize(("folder", "run"), [("tiny", "qvhighlights"), ("tiny_highlights", "youtube-highlights-dog")])
def test_the_names_and_shapes_are_the_published_ones(goldens: Path, folder: str, run: str) -> None:
    file = goldens / "r2" / folder / "checkpoint.pth"
    tensors = published_tensors(file.read_bytes(), file)
    expected = published_shapes(with_widths(R2_TUNING[run], **WIDTHS).model)
    assert expected == {name: tuple(tensor.shape) for name, tensor in tensors.items()}


# the table ---------------------------------------------------------------------------------------------------------


def test_every_published_run_has_a_file_a_model_and_a_benchmark() -> None:
    assert len(R2_TUNING) == 4 + 6 + 10 and len({run.file for run in R2_TUNING.values()}) == 20
    for name, run in R2_TUNING.items():
        benchmark = BENCHMARKS[next(known for known in BENCHMARKS if name.startswith(known))]
        assert name.removeprefix(benchmark.name) in ("", *(f"-{domain}" for domain in benchmark.domains))
        assert benchmark.clip_seconds in (None, run.clip_seconds)
        assert run.model.boundary_head == (benchmark.task != "highlights")
        if benchmark.nms is not None:
            assert run.decode.nms == benchmark.nms.kind
        assert run.features().clip_seconds == run.clip_seconds and run.model.hidden == 256
    with torch.device("meta"):
        assert sum(p.numel() for p in R2Tuning(R2_TUNING["qvhighlights"].model).parameters()) == 2_836_242


def test_a_file_of_the_published_size_converts_without_options(tmp_path: Path) -> None:
    shapes = published_shapes(R2_TUNING["qvhighlights"].model)
    torch.save({"state_dict": {name: torch.zeros(shape) for name, shape in shapes.items()}}, tmp_path / "run.pth")
    assert command(tmp_path / "run.pth", tmp_path / "out", options=[]) == 0
    features = Checkpoint.from_pretrained(tmp_path / "out").features
    assert (features.weights, features.video_dim) == ("openai/clip-vit-base-patch32", 768)


# what is refused ---------------------------------------------------------------------------------------------------


class RunsCode:
    """An object whose pickle makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


class RunsShell(RunsCode):
    """An object whose pickle makes a file by a shell command when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


def refusal(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    """Return the one sentence with which the command refuses a file; check that nothing is written."""
    before = sorted(tmp_path.rglob("*"))
    assert command(file, tmp_path / "out", **options) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and str(file) in shown.err, shown.err
    assert "Traceback" not in shown.err and sorted(tmp_path.rglob("*")) == before
    return shown.err


@pytest.mark.parametrize("old_form", [False, True])
@pytest.mark.parametrize("kind", [RunsCode, RunsShell])
def test_a_file_that_would_run_code_is_refused_and_runs_none(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: type[RunsCode], old_form: bool
) -> None:
    content = torch.load(tiny / "checkpoint.pth", weights_only=True)
    content["meta"]["hook"] = kind(tmp_path / "it-ran")
    file = tmp_path / "tampered.pth"
    torch.save(content, file, _use_new_zipfile_serialization=not old_form)
    message = refusal(file, tmp_path, capsys)
    assert not (tmp_path / "it-ran").exists()
    assert "is refused: besides tensors it holds" in message and "none was run" in message
    # The file is dangerous: an unprotected reader does run the code.
    torch.load(file, weights_only=False)
    assert (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_bare_pickle_is_refused_and_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], protocol: int
) -> None:
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(RunsShell(tmp_path / "it-ran"), protocol))
    message = refusal(tmp_path / "bare.pth", tmp_path, capsys)
    assert "none was run" in message or "nothing in it was run" in message
    assert not (tmp_path / "it-ran").exists()


def saved(content: Any) -> bytes:
    data = io.BytesIO()
    torch.save(content, data)
    return data.getvalue()


def _without_state(content: Any) -> None:
    content["weights"] = content.pop("state_dict")


def _missing(content: Any) -> None:
    del content["state_dict"]["adapter.gate"]


def _extra(content: Any) -> None:
    content["state_dict"]["clip.logit_scale"] = torch.ones(1)


def _shape(content: Any) -> None:
    content["state_dict"]["class_head.module.3.weight"] = torch.ones(2, 64, 3)


def _flat(content: Any) -> None:
    content["state_dict"]["adapter.query_map.0.weight"] = torch.tensor(1.0)


def _not_finite(content: Any) -> None:
    content["state_dict"]["adapter.q_map.bias"][3] = float("nan")


def _whole_numbers(content: Any) -> None:
    content["state_dict"]["adapter.gate"] = torch.ones(3, dtype=torch.int64)


def _no_tensor(content: Any) -> None:
    content["state_dict"]["adapter.gate"] = [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_without_state, "has no entry 'state_dict' with tensors, as R2-Tuning saves them (it has: meta, weights)"),
        (_missing, "does not fit the published run 'qvhighlights': it lacks adapter.gate; download it again"),
        (_extra, "it has clip.logit_scale too many"),
        (_shape, "class_head.module.3.weight has shape (2, 64, 3), expected (1, 64, 3); download it again"),
        (_flat, "adapter.query_map.0.weight has shape (), expected (32,)"),
        (_not_finite, "adapter.q_map.bias holds numbers that are not finite"),
        (_whole_numbers, "adapter.gate is of type torch.int64"),
        (_no_tensor, "the entry adapter.gate of its state_dict is no tensor"),
    ],
)
def test_a_changed_checkpoint_is_refused(
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Any], None],
    sentence: str,
) -> None:
    content = torch.load(tiny / "checkpoint.pth", weights_only=True)
    change(content)
    (tmp_path / "changed.pth").write_bytes(saved(content))
    assert sentence in refusal(tmp_path / "changed.pth", tmp_path, capsys)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"<html>404</html>", saved({"state_dict": {"a": torch.ones(99)}})[:-40], saved([1]), saved({})],
    ids=["empty", "text", "page", "cut short", "list", "empty dict"],
)
def test_a_file_that_is_no_checkpoint_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    message = refusal(tmp_path / "a.pth", tmp_path, capsys)
    assert "cannot be read as a PyTorch checkpoint" in message or "has no entry 'state_dict'" in message


def test_a_wrong_run_is_refused(
    tiny: Path, highlights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tiny / "checkpoint.pth"
    message = refusal(file, tmp_path, capsys, options=[])
    assert "adapter.video_map.0.weight has shape (50,), expected (770,)" in message
    assert "give its widths: --video-dim 48 --text-dim 32 --hidden 64" in message
    message = refusal(file, tmp_path, capsys, run="tvsum-BK")
    assert "its tensors are those of qvhighlights and others" in message
    message = refusal(highlights / "checkpoint.pth", tmp_path, capsys)
    assert "it lacks " in message and "its tensors are those of youtube-highlights-dog and others" in message
    assert command(file, tmp_path / "out", run="else") == 2
    assert "there is no published run of R2-Tuning 'else'; known are qvhighlights" in capsys.readouterr().err


def test_other_widths_need_the_name_of_their_weights(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tiny / "checkpoint.pth", tmp_path / "out", options=OPTIONS[:-2]) == 2
    assert "say which weights made them by --weights NAME" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_must_be_what_its_name_says(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (tiny / "checkpoint.pth").read_bytes()
    (tmp_path / "run-00000000.pth").write_bytes(data)
    assert "begins with 00000000, but it begins with" in refusal(tmp_path / "run-00000000.pth", tmp_path, capsys)
    file = f"checkpoints/some-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    monkeypatch.setitem(R2_TUNING, "tacos", replace(R2_TUNING["tacos"], file=file))
    message = refusal(tiny / "checkpoint.pth", tmp_path, capsys)
    assert "is the published file of tacos, not of qvhighlights: give --run tacos" in message


def test_nothing_is_overwritten(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for out, reason in ((tmp_path / "full", "already exists"), (tmp_path / "full" / "mine.txt", "is a file; give")):
        assert command(tiny / "checkpoint.pth", out) == 2
        assert reason in capsys.readouterr().err
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert command(tiny / "checkpoint.pth", tmp_path / "empty") == 0
    for file in (tmp_path, tmp_path / "nothing.pth"):
        assert command(file, tmp_path / "out") == 2
        assert str(file) in capsys.readouterr().err


def test_a_conversion_that_fails_leaves_nothing(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Checkpoint, folder: Path, **_: object) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{")
        raise OSError("no space left")

    monkeypatch.setattr(Checkpoint, "save_pretrained", full)
    with pytest.raises(OSError, match="no space left"):
        convert_r2_tuning(tiny / "checkpoint.pth", tmp_path / "out", run="qvhighlights", weights="tiny", **WIDTHS)
    assert list(tmp_path.iterdir()) == []


def test_from_published_leaves_out_the_tensor_of_a_loss(tiny: Path) -> None:
    tensors = published_tensors((tiny / "checkpoint.pth").read_bytes(), "checkpoint.pth")
    assert len(from_published(tensors)) == len(tensors) - 1
