"""Test the models that a name stands for: from a local hub, without one, imported by hand, removed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sidelight.backbones.released import SIGLIP2_B32, WEIGHTS
from sidelight.cli.main import main
from sidelight.io.pinned import Download, HubFile, models_cache
from sidelight.training.checkpoint import Checkpoint
from sidelight.training.convert import with_widths
from sidelight.training.named import (
    DEFAULT_MODEL,
    NAMED_MODELS,
    NamedModel,
    find_model,
    named_checkpoint,
    r2_tuning_model,
    remove_model,
)
from sidelight.training.published import CLIP_WEIGHTS, R2_REPOSITORY, R2_TUNING
from tests.hub import Hub, serving
from tests.tiny_models import write_siglip2
from tests.training.test_convert import WIDTHS, saved

NAME = "r2-tuning/golden"
BACKBONE = Download(
    title="A backbone", licence="MIT", repository=CLIP_WEIGHTS, revision="abc", files=(HubFile(path="config.json"),)
)


@pytest.fixture(scope="module")
def tiny(goldens: Path) -> Path:
    return goldens / "r2" / "tiny"


@pytest.fixture
def hub(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve a hub with the golden checkpoint as the file of the run ``golden``, and a stub of its backbone."""
    data = (tiny / "checkpoint.pth").read_bytes()
    file = f"checkpoints/r2_tuning_golden-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    run = replace(with_widths(R2_TUNING["qvhighlights"], **WIDTHS), file=file)
    monkeypatch.setitem(R2_TUNING, "golden", run)
    monkeypatch.setitem(NAMED_MODELS, NAME, r2_tuning_model("golden", run))
    monkeypatch.setitem(WEIGHTS, CLIP_WEIGHTS, BACKBONE)
    monkeypatch.setattr("sidelight.training.convert.CLIP_WIDTHS", (48, 32))
    monkeypatch.setattr("time.sleep", lambda _: None)
    with serving(Hub(R2_REPOSITORY, {file: data}, others={CLIP_WEIGHTS: {"config.json": b"{}"}})) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


def checkpoints() -> list[Path]:
    """Return the checkpoints in the cache, and what is left of them."""
    return [path for path in models_cache().glob("*") if path.name.lstrip(".").startswith("r2-tuning")]


def problem() -> str:
    """Return the message with which the model fails; check that no part of a checkpoint is left."""
    with pytest.raises(ValueError) as caught:
        named_checkpoint(NAME)
    assert checkpoints() == [] and "\n" not in str(caught.value)
    return str(caught.value)


def test_the_first_use_downloads_both_files_and_the_second_asks_no_hub(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    folder = named_checkpoint(NAME)
    assert folder is not None and folder.parent == models_cache() and hub.gets() == 2
    screen = caplog.text
    assert "R2-Tuning, trained on golden" in screen and "A backbone" in screen and "--model shapes" in screen
    requests = len(hub.log)
    assert named_checkpoint(NAME) == folder and len(hub.log) == requests
    checkpoint = Checkpoint.from_pretrained(folder)
    assert checkpoint.features.weights == CLIP_WEIGHTS
    assert checkpoint.recipe["converted_from"]["published"] == f"{R2_REPOSITORY}/{next(iter(hub.files))}"
    (folder / "model.safetensors").unlink()  # as if somebody tidied up
    assert named_checkpoint(NAME) == folder and hub.gets() == 2  # the download was kept
    Checkpoint.from_pretrained(folder)


def test_without_its_backbone_only_the_model_is_downloaded(hub: Hub) -> None:
    assert named_checkpoint(NAME, backbone=False) is not None and hub.gets() == 1
    assert not NAMED_MODELS[NAME].is_here()
    named_checkpoint(NAME)
    assert hub.gets() == 2 and NAMED_MODELS[NAME].is_here()


def test_an_interrupted_download_leaves_nothing_broken(hub: Hub) -> None:
    hub.cut_after = 100_000
    assert "the connection broke off after 100 kB of 685 kB; the same command goes on" in problem()
    hub.cut_after = None
    folder = named_checkpoint(NAME)
    assert folder is not None
    Checkpoint.from_pretrained(folder)


def test_a_file_of_other_content_is_not_used_nor_kept(hub: Hub) -> None:
    path, data = next(iter(hub.files.items()))
    hub.files[path] = saved({"state_dict": {}})
    assert "has other content than expected: its SHA-256 begins with" in problem()
    hub.files[path] = data
    assert named_checkpoint(NAME) is not None


def test_a_changed_download_is_refused(hub: Hub) -> None:
    folder = named_checkpoint(NAME)
    assert folder is not None
    file = NAMED_MODELS[NAME].downloads[1].folder / "config.json"
    file.write_bytes(b"{} ")
    with pytest.raises(ValueError, match=r"config\.json was changed or is damaged: .* recorded on 20\d\d-"):
        named_checkpoint(NAME)


def test_without_a_network_there_is_one_sentence(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    message = problem()
    path = next(iter(hub.files))
    assert f"http://127.0.0.1:9/{R2_REPOSITORY}/resolve/main/{path} and http://127.0.0.1:9/{CLIP_WEIGHTS}/" in message
    assert "sidelight models import FOLDER" in message and "--model shapes" in message
    row = {"qid": 1, "query": "a dog", "vid": "a", "duration": 10, "relevant_windows": [[0, 2]]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    files = {"--annotations": tmp_path / "a.jsonl", "--features": tmp_path, "--out": tmp_path / "p.jsonl"}
    options = [str(part) for option in files.items() for part in option]
    capsys.readouterr()
    assert main(["predict", "--model", NAME, "--offline", *options]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"sidelight: the model {NAME} is not on this machine") and message.count("\n") == 1
    assert hub.log == []


def test_imported_files_need_no_network(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    name, data = next(iter(hub.files.items()))
    assert isinstance(data, bytes)
    (tmp_path / Path(name).name).write_bytes(data)
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["models", "import", str(tmp_path / Path(name).name)]) == 0
    assert f"{NAME} still needs config.json" in capsys.readouterr().out
    (tmp_path / "config.json").write_text("{}")
    assert main(["models", "import", str(tmp_path)]) == 0
    assert f"{NAME} is complete" in capsys.readouterr().out
    assert named_checkpoint(NAME) is not None and hub.log == []


def test_removing_keeps_what_another_model_needs(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(NAMED_MODELS[NAME], download=None)
    monkeypatch.setitem(NAMED_MODELS, "other/model", other)
    named_checkpoint(NAME)
    (models_cache() / f"other-model-{'0' * 12}").mkdir()
    freed, kept = remove_model(NAME)
    assert freed > 600_000 and kept == ["A backbone stays, because other/model needs it"]
    assert checkpoints() == [] and not NAMED_MODELS[NAME].is_here()
    (models_cache() / f"other-model-{'0' * 12}").rmdir()
    named_checkpoint(NAME)
    assert remove_model(NAME)[1] == [] and not BACKBONE.folder.exists()
    with pytest.raises(ValueError, match=f"{NAME} has no files on this machine that can be deleted$"):
        remove_model(NAME)
    named_checkpoint(NAME)
    with pytest.raises(
        ValueError, match=r"^other/model has no files .* deleted; A backbone stays, because .*golden ne"
    ):
        remove_model("other/model")
    with pytest.raises(ValueError, match="shapes comes with sidelight"):
        remove_model("shapes")
    assert "sha256" in (models_cache() / "models.toml").read_text()


def test_a_cache_that_cannot_be_written_is_one_sentence(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SIDELIGHT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"cannot be kept in .* set SIDELIGHT_CACHE"):
        named_checkpoint(NAME)


def test_names_of_other_models_are_not_named_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("user/model", "./r2-tuning/x", Path("runs/a"), Path("shapes")):
        assert named_checkpoint(name) is None
    with pytest.raises(
        ValueError, match=r"no model 'r2-tuning/qvhighlight'; did you mean 'r2-tuning/qvhighlights'\? Known are "
    ):
        named_checkpoint("r2-tuning/qvhighlight")
    with pytest.raises(ValueError, match=r"no model 'shaeps'; .*did you mean 'shapes'"):
        named_checkpoint("shaeps")
    with pytest.raises(ValueError, match="revision must be left out for shapes"):
        named_checkpoint("shapes", revision="v1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r2-tuning" / "else").mkdir(parents=True)
    assert named_checkpoint("r2-tuning/else") is None  # a folder of the user's


def test_models_are_kept_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SIDELIGHT_CACHE", str(tmp_path / "own"))
    assert models_cache() == tmp_path / "own" / "models"
    monkeypatch.delenv("SIDELIGHT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models_cache() == tmp_path / "sidelight" / "models"


@pytest.mark.parametrize("name", NAMED_MODELS)
def test_every_model_states_its_facts(name: str) -> None:
    model = NAMED_MODELS[name]
    assert find_model(name) is model
    assert all((model.answers, model.trained_on, model.backbone, model.languages, model.licence))
    assert (model.make is None and model.imported is None) == (name == "shapes")
    for download in model.downloads:
        for file in download.files:
            recorded = download.revision != "main" or download is WEIGHTS[SIGLIP2_B32]  # by the lock file
            assert len(file.sha256) in (8, 64) or (recorded and not file.sha256) or download.page
            assert download.size > 0


def test_zero_shot_on_siglip_announces_its_download_and_records_its_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_siglip2(tmp_path / "siglip2")
    files: dict[str, bytes | Path] = {path.name: path for path in folder.iterdir()}
    with serving(Hub(SIGLIP2_B32, files)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        assert main(["models", "pull", "zero-shot/siglip2"]) == 0
    printed = capsys.readouterr()
    assert "SigLIP 2 B/32-256, the backbone" in printed.err and "zero-shot/siglip2 is here" in printed.out
    assert (models_cache() / "models.toml").read_text().count("sha256") == len(WEIGHTS[SIGLIP2_B32].files)
    checkpoint = named_checkpoint("zero-shot/siglip2")
    assert checkpoint and Checkpoint.from_pretrained(checkpoint).features.backbone == "siglip2"


def test_the_default_model_is_for_real_videos() -> None:
    default: NamedModel = NAMED_MODELS[DEFAULT_MODEL]
    assert DEFAULT_MODEL == "r2-tuning/qvhighlights" and default.backbone == "CLIP ViT-B/32"
    assert [d.repository for d in default.downloads] == [R2_REPOSITORY, "openai/clip-vit-base-patch32"]


SCRIPT = """
import sys
from dataclasses import replace
import sidelight.training.convert
from sidelight import Grounder
from sidelight.backbones import BACKBONES
from sidelight.training.named import NAMED_MODELS, r2_tuning_model
from sidelight.training.published import R2_TUNING

sidelight.training.convert.CLIP_WIDTHS = (48, 32)
run = sidelight.training.convert.with_widths(R2_TUNING["qvhighlights"], 48, 32, 64)
R2_TUNING["golden"] = replace(run, file=sys.argv[1])
NAMED_MODELS["r2-tuning/golden"] = replace(r2_tuning_model("golden", R2_TUNING["golden"]), weights="")

class Stub:
    spec = R2_TUNING["golden"].features()
    def to(self, device):
        return self

BACKBONES["clip"] = lambda **_: Stub()
try:
    grounder = Grounder.from_pretrained("r2-tuning/golden", device="cpu")
except ValueError as error:
    sys.exit(str(error))
print(type(grounder.checkpoint.model).__name__, grounder.name)
"""


@pytest.mark.slow
def test_two_processes_that_start_at_once_share_one_download(hub: Hub) -> None:
    """Run two processes with one cache that read HF_ENDPOINT, as for a user."""
    hub.delay = 1.0
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *hub.files],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ},
        )
        for _ in range(2)
    ]
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0 and out.strip() == "R2Tuning r2-tuning/golden", err
    assert hub.gets() == 1, hub.log
    assert len(checkpoints()) == 1
