"""The recipes of the published runs hold the values of the papers, and the commands in their heads exist."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sidelight.cli.main import COMMANDS, main
from sidelight.data.datasets import BENCHMARKS
from sidelight.models.decode.scada import ScadaDecodeConfig
from sidelight.models.decode.sdst import DecodeConfig
from sidelight.models.losses.scada import ScadaLossConfig
from sidelight.models.losses.sdst import SDSTLossConfig
from sidelight.models.registry import build_model
from sidelight.models.scada import ScadaConfig
from sidelight.models.sdst import SDSTConfig
from sidelight.training.recipe import Recipe, TrainConfig, read_recipe
from tests.tiny_models import write_distilbert, write_siglip2, write_videomae, write_videoprism

FOLDER = Path(__file__).resolve().parents[2] / "src" / "sidelight" / "recipes"
SDST = {
    "sdst-internvideo2-qvhighlights": ("qvhighlights", 2.0, 30, 60, 1e-4, 20, 2.0),
    "sdst-charades-sta": ("charades-sta", 1.0, 30, 50, 2.5e-4, 30, 0.1),
    "sdst-tacos": ("tacos", 2.0, 5, 150, 1e-4, 20, None),
}
"""Benchmark, seconds of a clip, moment queries, epochs, learning rate and epochs between drops, of Table A of the SDST
paper; then the unit of rounding, of R2-Tuning."""
R2_BENCHMARKS = ("qvhighlights", "charades-sta", "tacos", "ego4d-nlq", "youtube-highlights", "tvsum")
PUBLISHED = (*SDST, *(f"r2-tuning-{name}" for name in R2_BENCHMARKS))
OTHER_BACKBONES = {"siglip2-qvhighlights": "siglip2", "videoprism-qvhighlights": "videoprism"}
"""Runs that nobody published: the values of the paper with another backbone."""


@pytest.mark.parametrize("name", SDST)
def test_sdst_is_as_table_a_says(name: str) -> None:
    recipe = read_recipe(FOLDER / f"{name}.yaml")
    benchmark, seconds, queries, epochs, lr, drop, unit = SDST[name]
    assert recipe.side_tuner == "sdst" and recipe.model == SDSTConfig(
        video_dim=768,
        text_dim=1024,
        levels=4,
        hidden=256,
        moment_queries=queries,
        dropout=0.5,
        droppath=0.25,
        roi_width=1.5,  # of TadTR's code, not of the table
    )
    backbone = recipe.backbone
    assert (backbone.name, backbone.chosen, backbone.pooling) == ("internvideo2", (-4, -3, -2, -1), "attention")
    assert backbone.clip_seconds == seconds == BENCHMARKS[benchmark].clip_seconds
    assert queries == BENCHMARKS[benchmark].moment_queries and unit in (BENCHMARKS[benchmark].unit, None)
    values: dict[str, Any] = {"lr_drop": 0.1, "warmup_steps": 2000, "warmup_ratio": 0.001, "weight_decay": 1e-4}
    values |= {"epochs": epochs, "batch_size": 32, "lr": lr, "lr_drop_epochs": drop, "clip_norm": 35.0}
    values |= {"precision": "16-mixed", "last_batch": "keep", "out": f"runs/{name}", "best_by": recipe.train.best_by}
    assert recipe.train == TrainConfig(**values)
    assert recipe.decode == DecodeConfig(round_to=unit) and recipe.losses == SDSTLossConfig()
    assert recipe.data.min_duration == 5 and recipe.data.binding == "plain"


def test_there_is_one_of_every_published_run() -> None:
    known = {path.stem for path in FOLDER.glob("*.yaml")}
    assert set(PUBLISHED) <= known
    assert {name for name in known if name.startswith(("r2-tuning-", "sdst-"))} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_starts_from_annotations_and_features(name: str) -> None:
    recipe = read_recipe(FOLDER / f"{name}.yaml")
    data = recipe.data
    benchmark = BENCHMARKS[data.benchmark or "qvhighlights"]
    for file in (data.train, data.val):
        assert any(Path(file).name in split.files for split in benchmark.splits.values()), file
    assert data.train_features and not data.train_videos
    with torch.device("meta"):
        model = build_model(recipe.side_tuner, recipe.to_dict()["model"])
    assert sum(p.numel() for p in model.parameters()) > 1e6


def shown_commands(path: Path) -> list[list[str]]:
    """Return the commands in the head of a recipe; a backslash continues a line."""
    head = [line[1:] for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(head).replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.strip().startswith("sidelight ")]


@pytest.mark.parametrize("name", [*PUBLISHED, *OTHER_BACKBONES])
def test_its_head_says_how_to_run_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = FOLDER / f"{name}.yaml"
    recipe, commands = read_recipe(path), shown_commands(path)
    trains = [command for command in commands if command[1] == "train"]
    assert len(trains) == 2 and all(command[2] == name for command in trains)
    (extracts,) = (command for command in commands if command[1] == "extract")
    for _, command, *arguments in commands:
        assert command in COMMANDS
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown = capsys.readouterr().out
        assert all(argument in shown for argument in arguments if argument.startswith("--")), arguments
    options = dict(zip(extracts, [*extracts[1:], ""], strict=True))
    assert options["--out"] == recipe.data.train_features and options["--backbone"] == recipe.backbone.name
    assert float(options["--clip-seconds"]) == recipe.backbone.clip_seconds
    assert int(options["--levels"]) == len(recipe.backbone.chosen)
    assert options.get("--pooling", "attention") == recipe.backbone.pooling
    assert {recipe.data.train, recipe.data.val} <= set(extracts)


def test_a_recipe_of_another_benchmark_is_not_the_same_run() -> None:
    read: dict[str, Recipe] = {name: read_recipe(FOLDER / f"{name}.yaml") for name in PUBLISHED}
    assert len({recipe.train.out for recipe in read.values()}) == len(PUBLISHED)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_recipes_are_read_in_each_unicode_encoding(
    encoding: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    model = "{video_dim: 32, text_dim: 32, hidden: 24, heads: 2, strides: [1]}"
    path.write_text(f"side_tuner: r2-tuning\nmodel: {model}\ntrain: {{out: runs/für}}\n", encoding=encoding)
    recipe = read_recipe(path)
    assert (recipe.side_tuner, recipe.model.hidden, recipe.train.out) == ("r2-tuning", 24, "runs/für")
    assert main(["summary", str(path)]) == 0
    assert capsys.readouterr().out.startswith("r2-tuning: reads ")
    with pytest.raises(SystemExit):
        main(["summary", str(path), "--help"])
    path.write_text("world: data\n", encoding=encoding)
    assert main(["summary", str(path)]) == 2
    assert "is a recipe for `sidelight pretrain`" in capsys.readouterr().err


def test_a_recipe_in_no_unicode_encoding_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_bytes("train: {out: runs/für}\n".encode("latin-1"))
    assert main(["summary", str(tmp_path / "mine.yaml")]) == 2
    assert capsys.readouterr().err.endswith("mine.yaml is not text in UTF-8; save it as UTF-8\n")


@pytest.mark.parametrize(("name", "backbone"), OTHER_BACKBONES.items())
def test_another_backbone_keeps_the_values_of_the_paper(name: str, backbone: str) -> None:
    paper, recipe = (read_recipe(FOLDER / f"{n}.yaml") for n in ("sdst-internvideo2-qvhighlights", name))
    assert isinstance(recipe.model, SDSTConfig) and recipe.backbone.name == backbone and recipe.backbone.weights
    assert replace(recipe.model, text_dim=1024) == paper.model
    assert replace(recipe.train, out=paper.train.out) == paper.train
    assert replace(recipe.data, train_features=paper.data.train_features) == paper.data
    assert (recipe.losses, recipe.decode) == (paper.losses, paper.decode)


@pytest.mark.filterwarnings("ignore:You passed `Fabric")
@pytest.mark.filterwarnings("default::sidelight.training.loop.PrecisionWarning")
@pytest.mark.parametrize("name", OTHER_BACKBONES)
def test_check_takes_real_steps(
    name: str, tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run ``train --check`` of the recipe on videos, with tiny weights of its backbone; the widths become theirs."""
    import transformers

    if name.startswith("videoprism") and not hasattr(transformers, "VideoPrismClipModel"):
        pytest.skip("needs a transformers with VideoPrism")
    write = write_siglip2 if name.startswith("siglip2") else write_videoprism
    weights = write(tmp_path / "weights")
    annotations = tiny_world / "annotations.jsonl"
    options = {f"--data.{part}": annotations for part in ("train", "val")}
    options |= {f"--data.{part}_videos": tiny_world / "videos" for part in ("train", "val")}
    options |= {"--data.train_features": tmp_path / "features", "--backbone.weights": weights}
    sizes = {"--model.video_dim": 32, "--model.text_dim": 32, "--train.batch_size": 8, "--train.accelerator": "cpu"}
    given = [f"{option}={value}" for option, value in {**options, **sizes, "--train.out": tmp_path / "out"}.items()]
    assert main(["train", name, "--check", *given]) == 0
    printed = capsys.readouterr()
    assert "longer than the 12 tokens that the text tower reads, and are cut" in printed.err
    shown = dict(line.split(maxsplit=1) for line in printed.out.splitlines())
    frames = 4 if name.startswith("videoprism") else 1
    assert shown["features"].startswith(f"{OTHER_BACKBONES[name]} (")
    assert "levels -4, -3, -2, -1, pooling attention" in shown["features"]
    assert f"{frames} frame" in shown["features"] and "widths 32 and 32" in shown["features"]
    assert shown["ready;"].startswith("nothing was written to") and not (tmp_path / "out").exists()


SCADA = ("scada-charades-sta-videomae-s", "scada-charades-sta-videomae-b", "scada-charades-sta-videomae-g")
SCADA_RUNS = (*SCADA, "scada-activitynet-captions-videomae-s")


@pytest.mark.parametrize("name", SCADA_RUNS)
def test_runs_from_pixels_have_the_figures_of_adatad(name: str) -> None:
    """Compare with the figures of AdaTAD's configurations, as ``shared/papers/scada.md`` and the recipes' heads say."""
    recipe = read_recipe(name)
    on_charades, size = name in SCADA, name[-1]
    assert recipe.side_tuner == "scada" and recipe.model == ScadaConfig(sentence_dim=768, mode="both")
    assert recipe.losses == ScadaLossConfig() and recipe.memory.checkpoint_blocks == 1
    assert recipe.backbone.resolution == (154 if size == "g" else 160) and recipe.backbone.sentences == "distilbert"
    window_seconds = recipe.window_clips * 2 / recipe.backbone.frames_per_second  # a clip of VideoMAE has two frames
    assert recipe.window_clips * 2 == (512 if on_charades else 768)
    assert window_seconds == pytest.approx(68 if on_charades else 240, rel=0.01)
    train = recipe.train
    assert train.batch_size == 16 and train.frames_per_step == 16 * recipe.window_clips * 2
    assert train.lr == (8e-5 if size == "g" else 4e-4 if on_charades else 1e-4)
    assert (train.weight_decay, train.clip_norm, train.epochs) == (0.05, 1, 20 if on_charades else 15)
    benchmark = BENCHMARKS[recipe.data.benchmark]
    steps = (benchmark.splits["train"].videos or 0) / train.batch_size
    assert train.warmup_steps == pytest.approx(5 * steps, rel=0.01)
    other = ScadaDecodeConfig(nms_sigma=0.7, max_moments=100)
    assert recipe.decode == (ScadaDecodeConfig() if on_charades else other)
    files = [name for split in benchmark.splits.values() for name in split.files]
    assert {Path(recipe.data.train).name, Path(recipe.data.val).name} <= set(files)
    commands = shown_commands(FOLDER / f"{name}.yaml")
    assert commands == [["sidelight", "train", name, "--check"], ["sidelight", "train", name]]


@pytest.mark.parametrize("name", ["scada-charades-sta-videomae-g"])
def test_check_takes_real_steps_from_pixels(
    name: str, tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run ``train --check`` of the recipe on videos, with tiny weights of its backbone and sentence encoder."""
    annotations = tiny_world / "annotations.jsonl"
    options: dict[str, object] = {f"--data.{part}": annotations for part in ("train", "val")}
    options |= {"--data.train_videos": tiny_world / "videos", "--data.benchmark": "", "--data.frames_cache": tmp_path}
    options |= {"--backbone.weights": write_videomae(tmp_path / "video"), "--train.accelerator": "cpu"}
    options |= {"--backbone.sentence_weights": write_distilbert(tmp_path / "text"), "--train.precision": "32-true"}
    options |= {"--model.sentence_dim": 32, "--backbone.resolution": 32, "--train.out": tmp_path / "out"}
    options |= {"--model.hidden": 16, "--train.frames_per_step": 200}
    assert main(["train", name, "--check", *(f"{option}={value}" for option, value in options.items())]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (
        "chunks of 8 frames of 32 pixels, 7.5 frames/s, clips of 0.266667 s; sentences by distilbert" in shown["frames"]
    )
    assert shown["model"].startswith("scada, ") and not (tmp_path / "out").exists()
