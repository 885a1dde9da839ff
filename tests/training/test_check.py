"""`sidelight train --check` takes two real steps and keeps nothing; errors name the file of the recipe."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sidelight.backbones import load_backbone
from sidelight.cli.main import main
from sidelight.data.annotations import Annotation, write_annotations
from sidelight.features.extract import extract
from sidelight.features.sources import find_videos
from sidelight.training.check import check_run
from sidelight.training.loop import train
from sidelight.training.recipe import read_recipe

TINY = """
model: {video_dim: 32, text_dim: 32, hidden: 32, heads: 4, moment_queries: 6, roi_bins: 4}
backbone: {weights: BACKBONE}
data:
  train: WORLD/annotations.jsonl
  val: WORLD/annotations.jsonl
  train_features: STORE
train: {epochs: 6, batch_size: 8, lr: 1.0e-3, warmup_steps: 5, accelerator: cpu, val_every: 4, out: OUT}
"""

Check = Callable[..., int]


@pytest.fixture
def recipe(tiny_world: Path, tiny_store: Path, tiny_backbone: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    named = {"WORLD": tiny_world, "STORE": tiny_store, "BACKBONE": tiny_backbone, "OUT": tmp_path / "runs" / "out"}
    text = TINY
    for name, folder in named.items():
        text = text.replace(name, str(folder))
    path.write_text(text)
    return path


@pytest.fixture
def check(recipe: Path, tmp_path: Path) -> Check:
    """Return a function that runs the command and checks that it writes nothing."""

    def run(*options: str) -> int:
        before = sorted(tmp_path.rglob("*"))
        code = main(["train", str(recipe), "--check", *options])
        assert sorted(tmp_path.rglob("*")) == before
        return code

    return run


def test_it_describes_the_run(
    check: Check, recipe: Path, tiny_annotations: list[Annotation], capsys: pytest.CaptureFixture[str]
) -> None:
    assert check() == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    queries = len(tiny_annotations)
    assert shown["train"].startswith(f"{queries} queries, 3 videos, 0.0 h")
    assert shown["validation"].startswith(f"{queries} queries, 3 videos") and "come first" not in shown["train"]
    assert "levels -4, -3, -2, -1, pooling attention, 4 frames per clip of 2 s; widths 32 and 32" in shown["features"]
    assert shown["model"].startswith("sdst, ") and "cpu, 32-true, batches of 8" in shown["arithmetic"]
    assert f"{queries // 8} steps an epoch" in shown["speed"] and "all 6 epochs" in shown["speed"]
    assert shown["decoded"] == f"{min(16, queries)} queries of validation"
    assert shown["ready;"].startswith("nothing was written to")


@pytest.mark.filterwarnings("ignore:You passed `Fabric")
@pytest.mark.filterwarnings("default::sidelight.training.loop.PrecisionWarning")
def test_it_names_the_arithmetic_in_use_and_the_queries_without_labels(
    check: Check, tiny_world: Path, tiny_annotations: list[Annotation], capsys: pytest.CaptureFixture[str]
) -> None:
    bare = replace(tiny_annotations[0], relevant_windows=(), relevant_clip_ids=(), saliency_scores=())
    rows = tiny_world.parent / "one-unlabelled.jsonl"
    write_annotations(rows, [bare, *tiny_annotations[1:8]])
    assert check(f"--data.train={rows}", "--train.precision=16-mixed") == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert "cpu, bf16-mixed, batches of 8" in shown["arithmetic"]
    assert shown["train"].startswith("8 queries (1 of them without windows or ratings), ")


def test_the_losses_are_those_of_the_run(recipe: Path) -> None:
    short = read_recipe(recipe, ["--train.epochs=1"])
    check = check_run(short)
    assert check.steps >= 2 and check.step_seconds > 0 and check.val_seconds > 0
    assert check.run_seconds == pytest.approx(check.steps * check.step_seconds + check.val_seconds)
    train(short, quiet=True)
    rows = [json.loads(line) for line in (Path(short.train.out) / "losses.jsonl").read_text().splitlines()]
    assert check.losses == pytest.approx([row["total"] for row in rows[:2]], rel=1e-5)


def test_without_validation_and_with_few_samples(check: Check, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("--data.val=", "--train.batch_size=10000") == 0
    shown = capsys.readouterr().out
    assert "validation  none" in shown and "1 step an epoch" in shown and "decoded" not in shown


def test_without_features_two_videos_are_extracted(
    check: Check, recipe: Path, tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = [f"--data.{part}_videos={tiny_world / 'videos'}" for part in ("train", "val")]
    assert check(*videos, f"--data.train_features={tmp_path / 'new'}") == 0
    shown = capsys.readouterr().out
    assert shown.count("3 videos, 0.0 h; features of 0 videos exist, the run first extracts the others") == 2
    assert check(*videos, f"--data.train_features={tmp_path / 'new'}", "--backbone.weights=nowhere") == 2
    assert "nowhere" in capsys.readouterr().err
    assert check(*videos, f"--data.train_videos={tmp_path}", f"--data.train_features={tmp_path / 'new'}") == 2
    assert "lacks 3 of 3 videos" in capsys.readouterr().err


def test_a_store_that_is_half_filled_serves(
    check: Check,
    tiny_world: Path,
    tiny_backbone: Path,
    tiny_annotations: list[Annotation],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    vid = tiny_annotations[0].vid
    queries = [a.query for a in tiny_annotations]
    backbone = load_backbone("shapes", weights=tiny_backbone)
    extract(find_videos(tiny_world / "videos", [vid]), queries, backbone, tmp_path / "half", workers=0)
    options = [f"--data.train_videos={tiny_world / 'videos'}", f"--data.train_features={tmp_path / 'half'}"]
    assert check(*options, "--data.val=", "--train.batch_size=2") == 0
    assert "features of 1 video exist, the run first extracts the others" in capsys.readouterr().out
    # Without the videos, the run would fail, and so does the check.
    assert check(options[1]) == 2
    assert "has no video" in capsys.readouterr().err
    # A store of another feature spec cannot be filled.
    mean_pooled = load_backbone("shapes", weights=tiny_backbone, pooling="mean")
    extract({}, queries[:1], mean_pooled, tmp_path / "other", workers=0)
    assert check(options[0], f"--data.train_features={tmp_path / 'other'}") == 2
    assert "pooling is 'mean', expected 'attention'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.video_dim=64"], "tiny.yaml: model.video_dim is 64, but the features in"),
        (["--backbone.pooling=mean"], "tiny.yaml: backbone.pooling says 'mean'"),
        (["--data.train=nowhere.jsonl"], "there is no file nowhere.jsonl"),
        (["--data.train_features=nowhere"], "nowhere"),
        (["--train.best_by=nothing"], "train.best_by must be one of"),
        (["--train.accelerator=tpu"], "'tpu' with train.devices 1 cannot be used here"),
        (["--train.init=nowhere"], "nowhere"),
        (["--train.lr=1e30", "--train.warmup_steps=0", "--train.weight_decay=0"], "of step 1 is nan"),
    ],
)
def test_a_mistake_that_would_stop_the_run_is_one_sentence(
    check: Check, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(*options) == 2
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.count("\n") == 1 and "ready" not in shown.out


def test_a_folder_that_is_taken_is_named(
    check: Check, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert check(f"--train.out={tmp_path / 'file' / 'run'}") == 2
    assert f"{tmp_path / 'file'} is a file" in capsys.readouterr().err
    train(read_recipe(recipe, ["--train.epochs=1"]), quiet=True)
    assert check() == 2
    assert "holds a run already; add --resume" in capsys.readouterr().err
    assert check("--resume") == 0
    assert check("--resume", "--train.lr=0.5") == 2
    assert "train.lr was 0.001 and is 0.5" in capsys.readouterr().err


BOMB = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
"""A file of 400 bytes that stands for a thousand million values."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {video_dim: 32\n", "is not valid YAML: "),
        ("- 1\n- 2\n", "Unexpected config"),
        (
            "model: {video_dim: 32, text_dim: 32}\ntrain: {epoch: 3}\n",
            "has no field 'epoch'; did you mean 'epochs'?",
        ),
        ("model: {video_dim: 32, text_dim: 32}\ntrain: {epochs: many}\n", "train.epochs"),
        ("model: {video_dim: 32, text_dim: 32}\ntrain: {epochs: 0}\n", "train.epochs must be at least 1"),
        ("model: {video_dim: 32}\n", "model.text_dim"),
        ("model: {video_dim: 32, text_dim: 32}\nbackbone: {pooling: tokens}\n", "sdst reads one vector a clip"),
        ("side_tuner: none\n", "there is no side-tuner 'none'"),
        ("\udcff\udcfe", "wrong.yaml: this file is empty"),
        (BOMB, "has 2,345,679,022 values"),
        ("model: &a [*a]\n", "has a part that contains itself in line 1"),
        ("model: &a {video_dim: *a}\n", "has a part that contains itself in line 1"),
        ("model: " + "[" * 20000, "is nested more than 32 levels deep in line 1"),
        ("".join(f"{' ' * i}a:\n" for i in range(500)), "is nested more than 32 levels deep in line 33"),
        (f"# {'x' * 2**20}\nmodel: {{}}\n", "has 1,048,589 characters, more than the limit of 1,048,576"),
        ("side_tuner: sdst\nside_tuner: lst\n", "has the field 'side_tuner' twice, in lines 1 and 2"),
        (
            "model: {video_dim: 32,\n  text_dim: 32, video_dim: 64}\n",
            "has the field 'video_dim' twice, in lines 1 and 2; remove one of them",
        ),
        ("model: other.yaml\n", "model "),
    ],
)
@pytest.mark.parametrize("command", ["train", "summary"])
def test_mistakes_of_a_recipe_name_its_file(
    command: str, text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    assert main([command, str(path)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"sidelight: recipe {path}: ") and message in shown and shown.count("\n") == 1
    with pytest.raises(ValueError, match=r"recipe .*wrong\.yaml: "):
        read_recipe(path)


def test_mistakes_of_the_command_line_do_not_blame_the_file(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe), "--train.epochs=none"]) == 2
    assert capsys.readouterr().err.startswith("sidelight: --train.epochs must be a whole number, got ")


def test_an_empty_store_folder_counts_as_none(check: Check, tiny_world: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    videos = f"--data.train_videos={tiny_world / 'videos'}"
    assert check(videos, f"--data.train_features={tmp_path / 'empty'}", "--data.val=") == 0
    shutil.rmtree(tmp_path / "empty")


@pytest.mark.filterwarnings("default::sidelight.training.loop.PrecisionWarning")
def test_another_precision_is_one_warning(check: Check, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("--train.precision=16-mixed") == 0
    message = "sidelight: warning: train.precision 16-mixed cannot be used on this device; bf16-mixed is used\n"
    assert capsys.readouterr().err == message


def test_a_resumed_run_without_a_state_says_that_it_starts_anew(
    check: Check, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check("--resume") == 0
    message = capsys.readouterr().err
    assert message.startswith("there is no saved state in ") and "the run starts anew" in message


def test_an_interrupt_names_no_folder_that_does_not_exist(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sidelight.training.loop.open_data", interrupt)
    assert main(["train", str(recipe)]) == 130
    message = capsys.readouterr().err
    assert "no state was saved yet; the same command starts anew" in message and str(tmp_path) not in message
    (tmp_path / "runs" / "out").mkdir(parents=True)
    (tmp_path / "runs" / "out" / "state.pt").touch()
    assert main(["train", str(recipe), "--resume"]) == 130
    assert f"continue with --resume and the same options; see {tmp_path}" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_refused_before_features_are_extracted(
    recipe: Path, tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    new = [f"--data.train_features={tmp_path / 'new'}", f"--data.train_videos={tiny_world / 'videos'}"]
    assert main(["train", str(recipe), *new, f"--train.out={tmp_path / 'file' / 'run'}"]) == 2
    assert f"cannot write {tmp_path / 'file' / 'run'}" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
