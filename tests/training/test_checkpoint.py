"""Checkpoints are saved and loaded as the hub expects; damaged ones are refused."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sidelight.backbones import load_backbone
from sidelight.models.decode.sdst import DecodeConfig
from sidelight.models.registry import build_model
from sidelight.training.checkpoint import PACKAGED, Checkpoint

SMALL = {"video_dim": 32, "text_dim": 32, "hidden": 32, "heads": 4, "moment_queries": 6}


@pytest.fixture
def checkpoint(tiny_backbone: Path) -> Checkpoint:
    torch.manual_seed(0)
    return Checkpoint(
        model=build_model("sdst", SMALL),
        model_name="sdst",
        model_config=SMALL,
        features=load_backbone("shapes", weights=tiny_backbone).spec,
        decode=DecodeConfig(nms_threshold=0.4),
        metrics={"brief": {"MR-full-mAP": 1.0}},
    )


def test_round_trip(checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint.save_pretrained(tmp_path / "a")
    again = Checkpoint.from_pretrained(tmp_path / "a")
    assert again.features == checkpoint.features and again.decode == checkpoint.decode
    assert again.metrics == checkpoint.metrics and not again.model.training
    for name, value in checkpoint.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["config.json", "model.safetensors"]


def test_half_precision_is_half_the_size(checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint.save_pretrained(tmp_path / "full")
    checkpoint.save_pretrained(tmp_path / "half", half=True)
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    assert next(Checkpoint.from_pretrained(tmp_path / "half").model.parameters()).dtype == torch.float32


def _change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_wrong_checkpoint_is_refused_by_name(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "c"
    checkpoint.save_pretrained(folder)
    for name in ("nothing", "./nothing", "a/b/c"):
        with pytest.raises(ValueError, match="there is no model"):
            Checkpoint.from_pretrained(name)
    with pytest.raises(ValueError, match="is missing"):
        Checkpoint.from_pretrained(tmp_path)
    _change(folder / "config.json", model="other")
    with pytest.raises(ValueError, match="no model 'other'"):
        Checkpoint.from_pretrained(folder)
    _change(folder / "config.json", model="sdst", model_config={**SMALL, "hidden": 64})
    with pytest.raises(ValueError, match=r"does not hold the weights that fit config.json: it has other shapes"):
        Checkpoint.from_pretrained(folder)
    _change(folder / "config.json", model_config={**SMALL, "more": 1})
    with pytest.raises(ValueError, match="configuration of 'sdst'"):
        Checkpoint.from_pretrained(folder)
    _change(folder / "config.json", model_config=SMALL)
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="does not fit"):
        Checkpoint.from_pretrained(folder)
    _change(folder / "config.json", format="else")
    with pytest.raises(ValueError, match="expected format"):
        Checkpoint.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        Checkpoint.from_pretrained(folder)


def test_a_hub_id_that_cannot_be_downloaded_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    def offline(*_: object, **__: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match=r"'user/model' is neither a folder here nor could it be downloaded"):
        Checkpoint.from_pretrained("user/model")


def test_only_the_two_files_of_a_hub_id_are_downloaded(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    checkpoint.save_pretrained(tmp_path / "snapshot")
    downloads: list[object] = []

    def download(name: str, **options: object) -> str:
        downloads.append((name, options))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert Checkpoint.from_pretrained("user/model", revision="v1").decode == checkpoint.decode
    options = {"revision": "v1", "allow_patterns": ["config.json", "model.safetensors"], "local_files_only": False}
    assert downloads == [("user/model", options)]


def test_packaged_weights_are_small() -> None:
    files = list(PACKAGED.rglob("*.safetensors"))
    assert files and sum(f.stat().st_size for f in files) < 20e6


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"video_dim": 10**9}, r"has other shapes .*1000000002"),
        ({"hidden": 2**20, "heads": 4}, "has other shapes"),
        ({"levels": 10**9}, r"model_config\.levels is 1000000000, but there are only \d+ tensors"),
        ({"moment_queries": 10**10}, "has other shapes"),
        ({"video_dim": 10**18}, r"config\.json describes no model"),
        ({"video_dim": 10**30}, "the configuration of 'sdst' does not fit: empty"),
    ],
)
def test_huge_sizes_are_refused_before_memory_is_taken(
    checkpoint: Checkpoint, tmp_path: Path, config: dict[str, int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save_pretrained(tmp_path)
    _change(tmp_path / "config.json", model_config={**SMALL, **config})
    with pytest.raises(ValueError, match=message):
        Checkpoint.from_pretrained(tmp_path)


def test_a_save_that_is_killed_never_joins_new_scores_with_old_weights(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Stop a second save before each of its renames, as a kill would: no clean-up runs."""
    other = dataclasses.replace(checkpoint, model=build_model("sdst", SMALL), metrics={"brief": {"MR-full-mAP": 2.0}})
    code = (
        "import os, sys, pickle, pathlib\n"
        "checkpoint, folder, number = pickle.load(sys.stdin.buffer)\n"
        "replace = pathlib.Path.replace\n"
        "calls = []\n"
        "def stop(self, target):\n"
        "    calls.append(target)\n"
        "    if len(calls) > number: os._exit(9)\n"
        "    return replace(self, target)\n"
        "pathlib.Path.replace = stop\n"
        "checkpoint.save_pretrained(folder)\n"
    )
    for number, score in ((0, 1.0), (1, 2.0), (2, 2.0)):
        folder = tmp_path / str(number)
        checkpoint.save_pretrained(folder)
        values = pickle.dumps((other, folder, number))
        assert subprocess.run([sys.executable, "-c", code], input=values).returncode == (9 if number < 2 else 0)
        loaded = Checkpoint.from_pretrained(folder)
        expected = {1.0: checkpoint, 2.0: other}[loaded.metrics["brief"]["MR-full-mAP"]]
        assert loaded.metrics["brief"]["MR-full-mAP"] == score
        for name, value in expected.model.state_dict().items():
            assert torch.equal(loaded.model.state_dict()[name], value)


def test_weights_of_another_checkpoint_are_found(checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint.save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"has weights that do not fit config.json: their digest is"):
        Checkpoint.from_pretrained(tmp_path / "a")
    tensors = build_model("sdst", SMALL).state_dict()
    save_file(tensors, path)  # without sidelight's header
    with pytest.raises(ValueError, match=r"has weights that do not fit config.json: their digest is"):
        Checkpoint.from_pretrained(tmp_path / "a")
    # Checkpoints of before the first release have no digest.
    values = json.loads((tmp_path / "a" / "config.json").read_text())
    del values["weights"]
    (tmp_path / "a" / "config.json").write_text(json.dumps(values))
    loaded = Checkpoint.from_pretrained(tmp_path / "a").model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
