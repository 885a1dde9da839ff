"""UniVTG's checkpoints are converted in every form that its code writes; wrong and tampered files are refused."""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import pathlib
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sidelight.cli.main import main
from sidelight.models.decode.univtg import UniVTGDecodeConfig
from sidelight.models.univtg import UniVTG, UniVTGConfig, from_published, published_shapes
from sidelight.training.checkpoint import Checkpoint
from sidelight.training.convert_univtg import OMNI, convert_univtg, imported_folder
from sidelight.training.named import named_checkpoint

DATA = Path(__file__).resolve().parents[1] / "data" / "golden" / "univtg"
OPTIONS: dict[str, Any] = {
    "hidden_dim": 32, "nheads": 8, "enc_layers": 3, "dim_feedforward": 48, "v_feat_dim": 16, "t_feat_dim": 12,
    "clip_length": 2.0, "input_dropout": 0.5, "dropout": 0.0, "droppath": 0.1, "v_feat_types": "clip",
    "eval_mode": None, "lr_warmup": [10, 100], "train_path": ["a.jsonl"], "use_txt_pos": False, "b_loss_coef": 10.0,
    "g_loss_coef": 0.5, "f_loss_coef": 4.0, "s_loss_intra_coef": 0.1, "s_loss_inter_coef": 0.2, "eos_coef": 0.1,
}  # fmt: skip


def weights() -> dict[str, Tensor]:
    return load_file(DATA / "weights.safetensors")


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def full(options: Any = None, **changes: Any) -> dict[str, Any]:
    """Return what the published training writes: prefixed names, the optimiser, the options."""
    model = OrderedDict((f"module.{name}", tensor) for name, tensor in weights().items())
    optimiser = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    values = argparse.Namespace(**{**OPTIONS, "v_feat_dim": 18}) if options is None else options
    return {"model": model, "optimizer": optimiser, "lr_scheduler": {}, "epoch": 4, "opt": values, **changes}


def command(file: Path, out: Path, *options: str) -> int:
    return main(["convert", "univtg", str(file), "--out", str(out), "--weights", "tiny", *options])


def refused(file: Path, out: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """Run the command on a file that must be refused; return its one sentence."""
    assert command(file, out, *options) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("sidelight: ") and shown.err.count("\n") == 1
    assert not out.exists()
    return shown.err


# what is written -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["full", "without prefix", "model only", "half"])
def test_every_form_gives_the_same_model(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content: dict[str, Any] = full() if form == "full" else {"model": weights(), "epoch": 4}
    if form == "without prefix":
        content = full(model=weights())
    if form == "half":
        content["model"] = {name: tensor.half() for name, tensor in weights().items()}
    file = saved(tmp_path / "model.ckpt", content)
    assert command(file, tmp_path / "out") == 0
    source = "the options in model.ckpt" if form in ("full", "without prefix") else "none; those of omni were taken"
    assert f"univtg, 38,639 parameters; options: {source}" in capsys.readouterr().out
    checkpoint = Checkpoint.from_pretrained(tmp_path / "out")
    expected = from_published(content["model"] if form == "half" else weights())
    for name, tensor in checkpoint.model.state_dict().items():
        assert torch.equal(tensor, expected[name].float()), name
    config = UniVTGConfig(video_dim=16, text_dim=12, hidden=32, heads=8, layers=3, ffn=48)
    assert checkpoint.model.config == config
    spec = checkpoint.features
    assert (spec.backbone, spec.weights, spec.pooling, spec.levels) == ("clip", "tiny", "joint-video", (-1,))
    assert (spec.clip_seconds, spec.frames_per_clip, spec.resolution, spec.resize) == (2.0, 1, 224, "crop")
    assert (spec.video_dim, spec.text_dim) == (16, 12)
    assert checkpoint.round_clips and checkpoint.window_clips == 702
    assert checkpoint.decode == UniVTGDecodeConfig()
    if form == "full":
        losses = checkpoint.recipe["losses"]
        assert (losses["weight_class"], losses["weight_giou"], losses["weight_alignment_batch"]) == (4.0, 0.5, 0.2)


@pytest.mark.parametrize("name", ["checkpoint.ckpt", "checkpoint_model_only.ckpt"])
def test_files_that_the_published_code_wrote(name: str, shared: Path, tmp_path: Path) -> None:
    checkpoint = convert_univtg(shared / "golden" / "univtg" / name, tmp_path / "out", weights="tiny")
    for key, tensor in from_published(weights()).items():
        assert torch.equal(checkpoint.model.state_dict()[key], tensor), key
    assert isinstance(checkpoint.model, UniVTG) and checkpoint.model.config.layers == 3


def test_options_beside_the_file_and_options_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = saved(tmp_path / "model.ckpt", {"model": weights(), "epoch": 0})
    (tmp_path / "opt.json").write_text(json.dumps({**OPTIONS, "nheads": 4, "eval_mode": "add", "clip_length": 1.0}))
    assert command(file, tmp_path / "out") == 0
    assert f"{tmp_path / 'opt.json'}, beside the checkpoint" in capsys.readouterr().out
    checkpoint = Checkpoint.from_pretrained(tmp_path / "out")
    assert checkpoint.model_config["heads"] == 4 and checkpoint.model_config["anchor"] == 0.5
    assert checkpoint.features.clip_seconds == 1.0 and checkpoint.decode == UniVTGDecodeConfig(saliency="sum")
    (tmp_path / "own.json").write_text(json.dumps({**OPTIONS, "nheads": 2}))
    assert command(file, tmp_path / "own", "--options", str(tmp_path / "own.json")) == 0
    assert Checkpoint.from_pretrained(tmp_path / "own").model_config["heads"] == 2


def test_features_of_several_backbones_are_named_as_their_layout_is(tmp_path: Path) -> None:
    content = full(argparse.Namespace(v_feat_types="slowfast_clip"))
    checkpoint = convert_univtg(saved(tmp_path / "a.ckpt", content), tmp_path / "out")
    spec = checkpoint.features
    assert (spec.backbone, spec.weights, spec.pooling) == ("slowfast+clip", "moment-detr (L2-normalised)", "cls")


# the name univtg/omni ------------------------------------------------------------------------------------------------


def omni_like(path: Path) -> Path:
    """Write a small model that reads features of omni's widths."""
    config = UniVTGConfig(video_dim=512, text_dim=512, hidden=16, heads=8, layers=1, ffn=16)
    generator = torch.Generator().manual_seed(0)
    shapes = published_shapes(config)
    return saved(path, {"model": {n: torch.randn(s, generator=generator) for n, s in shapes.items()}, "epoch": 0})


def test_omni_has_a_name_once_it_is_imported(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = sorted((tiny_world / "videos").iterdir())[0]
    assert main(["ground", str(video), "a dog", "--model", OMNI]) == 2
    message = capsys.readouterr().err
    assert message.startswith("sidelight: univtg/omni is not on this machine") and message.count("\n") == 1
    assert "https://drive.google.com/" in message and "sidelight convert univtg FILE.ckpt" in message
    file = omni_like(tmp_path / "model_best.ckpt")
    assert main(["convert", "univtg", str(file)]) == 0
    assert "use it with --model univtg/omni" in capsys.readouterr().out
    folder = named_checkpoint(OMNI, backbone=False)
    assert folder == imported_folder()
    checkpoint = Checkpoint.from_pretrained(folder)
    assert checkpoint.features.weights == "openai/clip-vit-base-patch32" and checkpoint.recipe["name"] == OMNI
    assert main(["convert", "univtg", str(file)]) == 2
    assert "is here already" in capsys.readouterr().err


def test_another_model_does_not_get_the_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = saved(tmp_path / "a.ckpt", full())
    assert main(["convert", "univtg", str(file)]) == 2
    assert "is not univtg/omni" in capsys.readouterr().err and not imported_folder().exists()


def test_a_folder_of_that_name_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "univtg" / "omni").mkdir(parents=True)
    assert named_checkpoint(f"./{OMNI}", backbone=False) is None


# tampered files ------------------------------------------------------------------------------------------------------


class Runs:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("place", ["opt", "optimizer", "model", "inside the options", "bare"])
def test_code_in_a_file_is_not_run(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker = tmp_path / "marker"
    attack = Runs(os.system, f"touch {marker}")
    content: Any = full()
    if place == "inside the options":
        content = full(argparse.Namespace(**OPTIONS, device=attack))
    elif place == "model":
        content["model"]["module.weightedpool.weight"] = attack
    elif place == "bare":
        content = attack
    else:
        content[place] = attack
    message = refused(saved(tmp_path / "bad.ckpt", content), tmp_path / "out", capsys)
    assert not marker.exists()
    assert "bad.ckpt is refused" in message and "posix.system" in message and "none was run" in message
    assert "weights_only" not in message


@pytest.mark.parametrize(
    "value",
    [
        Runs(eval, "print(1)"),
        Runs(functools.partial, sorted),
        pathlib.PurePosixPath("a"),
        np.zeros(3),
        io.BytesIO,
        functools.reduce,
        torch.nn.Linear(2, 2),
    ],
    ids=["eval", "partial", "path", "array", "bytes", "reduce", "module"],
)
def test_every_other_class_is_refused(value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = full(argparse.Namespace(**OPTIONS, extra=value))
    message = refused(saved(tmp_path / "bad.ckpt", content), tmp_path / "out", capsys)
    assert "bad.ckpt is refused: besides tensors it holds" in message


def test_the_options_are_allowed_in_this_conversion_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = saved(tmp_path / "a.ckpt", full())
    assert command(file, tmp_path / "out") == 0
    capsys.readouterr()
    with pytest.raises(Exception, match=r"argparse\.Namespace"):
        torch.load(file, weights_only=True)
    arguments = ["convert", "r2-tuning", str(file), "--run", "qvhighlights", "--out", str(tmp_path / "r2")]
    assert main(arguments) == 2 and "argparse.Namespace" in capsys.readouterr().err


@pytest.mark.parametrize("value", [torch.zeros(2), {"a": 1}, [1, [2]], argparse.Namespace(a=1)])
def test_options_must_be_plain(value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = full(argparse.Namespace(**{**OPTIONS, "nheads": value}))
    message = refused(saved(tmp_path / "bad.ckpt", content), tmp_path / "out", capsys)
    assert "the options in bad.ckpt: nheads must be a plain value or a list of them" in message


def test_a_changed_tensor_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Change one number of a tensor in the file; PyTorch's own reader does not notice."""
    file = saved(tmp_path / "good.ckpt", full())
    name, tensor = "span_embed.layers.2.bias", weights()["span_embed.layers.2.bias"]
    data, old = file.read_bytes(), tensor.numpy().tobytes()
    assert data.count(old) == 1
    changed = tmp_path / "changed.ckpt"
    changed.write_bytes(data.replace(old, (tensor + 1).numpy().tobytes()))
    assert torch.serialization.get_unsafe_globals_in_checkpoint(changed) == ["argparse.Namespace"]
    with torch.serialization.safe_globals([argparse.Namespace]):
        read = torch.load(changed, weights_only=True)["model"][f"module.{name}"]
    assert torch.equal(read, tensor + 1)
    message = refused(changed, tmp_path / "out", capsys)
    assert "changed.ckpt is damaged or was changed after it was saved" in message and "checksum" in message


def test_a_tensor_that_points_outside_its_storage_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shorten the storage of a tensor, with a new checksum."""
    file = saved(tmp_path / "good.ckpt", full())
    bad = tmp_path / "bad.ckpt"
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(bad, "w") as new:
        largest = max((item for item in old.infolist() if "/data/" in item.filename), key=lambda item: item.file_size)
        for item in old.infolist():
            data = old.read(item)
            new.writestr(item.filename, data[:64] if item is largest else data)
    assert "bad.ckpt cannot be read as a PyTorch checkpoint" in refused(bad, tmp_path / "out", capsys)


# wrong files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read as a PyTorch checkpoint"),
        (b"<html>quota exceeded</html>", "cannot be read as a PyTorch checkpoint"),
        ("short", "cannot be read as a PyTorch checkpoint"),
        ([1, 2], "has no entry 'model', as UniVTG saves it (it has: a list)"),
        ({"state_dict": {}}, "has no entry 'model', as UniVTG saves it (it has: state_dict)"),
        ({"model": {}}, "does not hold names and tensors inside 'model'"),
        ({"model": {"a": 1}}, "its entry a is no tensor"),
        ({"model": {"a": torch.zeros(1)}}, "it lacks transformer.encoder.layers.0"),
    ],
)
def test_files_of_another_kind(data: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bad.ckpt"
    if data == "short":
        file.write_bytes(saved(tmp_path / "good.ckpt", full()).read_bytes()[:5000])
    elif isinstance(data, bytes):
        file.write_bytes(data)
    else:
        saved(file, data)
    assert message in refused(file, tmp_path / "out", capsys)


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no file" in refused(tmp_path / "none.ckpt", tmp_path / "out", capsys)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("weightedpool.weight", None, "it lacks weightedpool.weight"),
        ("extra.weight", torch.zeros(2), "has the unknown extra.weight"),
        ("weightedpool.weight", torch.zeros(1, 32), "weightedpool.weight is (1, 32), expected (32, 1)"),
        ("weightedpool.weight", torch.full((32, 1), torch.nan), "numbers that are not finite"),
        ("weightedpool.weight", torch.zeros(32, 1, dtype=torch.int64), "expected plain floating-point numbers"),
        ("input_vid_proj.2.net.1.weight", torch.zeros(32, 32), "has the unknown input_vid_proj.2"),
    ],
)
def test_other_tensors(
    name: str, tensor: Tensor | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = {**weights(), name: tensor}
    content = {"model": {name: tensor for name, tensor in tensors.items() if tensor is not None}}
    assert message in refused(saved(tmp_path / "bad.ckpt", content), tmp_path / "out", capsys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_dim": 64}, "hidden_dim is 64, the tensors say 32"),
        ({"v_feat_dim": 512}, "v_feat_dim is 512, the tensors say 16"),
        ({"use_txt_pos": True}, "use_txt_pos is True, sidelight's UniVTG knows False only"),
        ({"ctx_mode": "video"}, "ctx_mode is 'video'"),
        ({"nheads": "eight"}, "nheads must be a number, at least 0; got 'eight'"),
        ({"nheads": 5}, "hidden must be a multiple of heads=5"),
        ({"clip_length": 0}, "clip_seconds must be more than 0"),
        ({"f_loss_coef": -1}, "f_loss_coef must be a number, at least 0; got -1"),
    ],
)
def test_options_that_do_not_fit(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = saved(tmp_path / "a.ckpt", full(argparse.Namespace(**{**OPTIONS, **changes})))
    assert message in refused(file, tmp_path / "out", capsys)


@pytest.mark.parametrize(("text", "message"), [("{", "is no JSON"), ("[1]", "must be names and values, got a list")])
def test_a_wrong_options_file(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "opt.json").write_text(text)
    file = saved(tmp_path / "a.ckpt", {"model": weights()})
    assert message in refused(file, tmp_path / "out", capsys)


def test_weights_must_be_named_for_other_widths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = saved(tmp_path / "a.ckpt", full())
    assert main(["convert", "univtg", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "widths 16 and 12, which are not those of openai/clip-vit-base-patch32" in capsys.readouterr().err


def test_a_full_folder_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert command(saved(tmp_path / "a.ckpt", full()), tmp_path / "out") == 2
    assert "already exists" in capsys.readouterr().err and [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]
