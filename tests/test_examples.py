"""Run the examples of docs/extend.md end to end on the tiny world: each adds an entry to a registry from outside."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sidelight.backbones import BACKBONES, Backbone, load_backbone
from sidelight.data.annotations import Annotation, Submission, write_annotations, write_submissions
from sidelight.data.datasets import BENCHMARKS, benchmark
from sidelight.features.layouts import LAYOUTS
from sidelight.features.store import FeatureStore
from sidelight.models.registry import SIDE_TUNERS
from sidelight.training.checkpoint import Checkpoint

FOLDER = Path(__file__).resolve().parents[1] / "examples"
RECIPE = """
side_tuner: last-layer
model: {video_dim: 32, text_dim: 32, hidden: 16, heads: 2}
backbone: {name: shapes, levels: 4, pooling: attention, weights: BACKBONE}
data: {train: ROWS, val: ROWS, train_features: STORE}
train: {epochs: 1, batch_size: 8, warmup_steps: 2, accelerator: cpu, out: OUT}
"""

Run = Callable[..., int]


@pytest.fixture(autouse=True)
def own_registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take the entries of the examples out of the registries after each test."""
    registries: list[dict[str, Any]] = [SIDE_TUNERS, BACKBONES, BENCHMARKS, LAYOUTS]
    copies = [dict(registry) for registry in registries]
    yield
    for registry, entries in zip(registries, copies, strict=True):
        registry.clear()
        registry.update(entries)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs ``python examples/NAME ARGUMENTS`` in this process and returns the exit code."""

    def script(name: str, *arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", [str(FOLDER / name), *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(FOLDER / name), run_name="__main__")
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return script


@pytest.fixture
def rows(tiny_annotations: list[Annotation], tmp_path: Path) -> Path:
    """Write the first annotations of the tiny world."""
    write_annotations(tmp_path / "rows.jsonl", tiny_annotations[:16])
    return tmp_path / "rows.jsonl"


@pytest.fixture
def recipe(rows: Path, tiny_store: Path, tiny_backbone: Path, tmp_path: Path) -> Path:
    text = RECIPE
    named = {"ROWS": rows, "STORE": tiny_store, "BACKBONE": tiny_backbone, "OUT": tmp_path / "run"}
    for name, path in named.items():
        text = text.replace(name, str(path))
    (tmp_path / "recipe.yaml").write_text(text)
    return tmp_path / "recipe.yaml"


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_an_example_is_one_short_file(path: Path) -> None:
    assert path.suffix == ".py" and len(path.read_text(encoding="utf-8").splitlines()) <= 60


def test_a_side_tuner_trains_and_grounds(
    run: Run, recipe: Path, tiny_world: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    options = ("--side_tuner=mixture", "--model.temperature=0.5")
    assert run("side_tuner.py", "train", recipe, *options) == 0
    losses = [json.loads(line) for line in (tmp_path / "run" / "losses.jsonl").read_text().splitlines()]
    assert len(losses) == 2 and all(np.isfinite(row["total"]) for row in losses)
    checkpoint = Checkpoint.from_pretrained(tmp_path / "run" / "best")
    assert checkpoint.model_name == "mixture" and checkpoint.model_config["temperature"] == 0.5
    scores_K = checkpoint.model.get_parameter("block.scores_K")
    assert scores_K.shape == (4,) and scores_K.abs().max() > 0, "the mixture is trained"
    video = sorted((tiny_world / "videos").iterdir())[0]
    answer = tmp_path / "answer.json"
    ground = ("ground", video, "a red star spins", "--model", tmp_path / "run" / "best")
    assert run("side_tuner.py", *ground, "--backbone-weights", tiny_backbone, "--json", answer) == 0
    assert len(json.loads(answer.read_text())[0]["saliency"]) >= 10


def test_a_mixture_of_one_level_is_this_level(run: Run) -> None:
    assert run("side_tuner.py", "--version") == 0
    kind = SIDE_TUNERS["mixture"]
    block: Any = kind.model(kind.config(video_dim=6, text_dim=5, levels=2, hidden=8, heads=2)).eval().block
    torch.manual_seed(0)
    video, text = torch.randn(2, 1, 4, 1, 6), torch.randn(2, 1, 3, 5)
    masks = torch.ones(1, 4, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)
    with torch.no_grad():
        block.scores_K.copy_(torch.tensor([0.0, 60.0]))
        mixed = block(video, masks[0], text, masks[1])
        same = block(video[1:].expand_as(video), masks[0], text[1:].expand_as(text), masks[1])
    for one, other in zip(mixed, same, strict=True):
        torch.testing.assert_close(one, other)


def test_a_backbone_extracts_trains_and_grounds(
    run: Run, recipe: Path, rows: Path, tiny_world: Path, tmp_path: Path
) -> None:
    videos, store = tiny_world / "videos", tmp_path / "colours"
    extract = ("extract", videos, "--annotations", rows, "--backbone", "colours", "--out", store)
    assert run("backbone.py", *extract, "--workers", 0) == 0
    backbone = load_backbone("colours")
    assert isinstance(backbone, Backbone)
    assert backbone.to("cpu") is backbone
    assert FeatureStore(store).spec == backbone.spec and FeatureStore(store).verify() == {}
    video_KTD = FeatureStore(store).video(sorted(videos.iterdir())[0].stem).video_KTD
    assert video_KTD.shape[::2] == (1, 48) and 0 <= video_KTD.min() < video_KTD.max() <= 1
    options = ("--backbone.name=colours", "--backbone.levels=1", "--backbone.pooling=mean", "--backbone.weights=")
    sizes = ("--model.video_dim=48", "--model.text_dim=65", "--model.levels=1", f"--data.train_features={store}")
    assert run("backbone.py", "train", recipe, *options, *sizes) == 0
    model, answer = tmp_path / "run" / "best", tmp_path / "answer.json"
    video = sorted(videos.iterdir())[0]
    assert run("backbone.py", "ground", video, "a red star spins", "--model", model, "--json", answer) == 0
    assert json.loads(answer.read_text())[0]["features"] == backbone.spec.digest()


def test_a_backbone_encodes_what_it_says(run: Run) -> None:
    assert run("backbone.py", "--version") == 0
    backbone = load_backbone("colours", frames_per_clip=3)
    frames = torch.zeros(2, 3, 32, 32, 3, dtype=torch.uint8)
    frames[1, :, :8, 24:, 0] = 255  # red at the top right of the second clip: colour 0, part 3
    expected = torch.zeros(1, 2, 48)
    expected[0, 1, 3] = 1
    torch.testing.assert_close(backbone.encode_video(frames), expected)
    first, other = backbone.encode_text(["a red star", "RED"])
    assert first.shape == (1, 4, 65) and torch.equal(first[0, 2], other[0, 1]) and first[0, 0, 0] == 1
    for options, message in (({"levels": 2}, "levels -1 to -1"), ({"pooling": "cls"}, "choose mean")):
        with pytest.raises(ValueError, match=message):
            load_backbone("colours", **options)
    with pytest.raises(ValueError, match="frames must be uint8"):
        backbone.encode_video(frames.float())


def test_a_benchmark_is_read_trained_and_evaluated(
    run: Run, recipe: Path, tiny_annotations: list[Annotation], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [a for a in tiny_annotations if a.relevant_windows][:12]
    lines = ["\t".join(map(str, (a.vid, a.duration, *a.relevant_windows[0], a.query))) for a in chosen]
    path = tmp_path / "kitchen_val.tsv"
    path.write_text("\n".join(lines) + "\n")
    files = (f"--data.train={path}", f"--data.val={path}", "--data.benchmark=kitchen")
    assert run("benchmark.py", "train", recipe, *files, "--train.best_by=MR-full-mAP") == 0
    read = benchmark("kitchen").read(path)
    assert [a.query for a in read] == [a.query for a in chosen] and read[0].relevant_windows[0][1] > 0
    right = [np.array([[*a.relevant_windows[0], 1.0]]) for a in read]
    answers = [
        Submission(qid=a.qid, vid=a.vid, pred_relevant_windows=window, pred_saliency_scores=np.zeros(0))
        for a, window in zip(read, right, strict=True)
    ]
    write_submissions(tmp_path / "answers.jsonl", answers)
    capsys.readouterr()
    assert run("benchmark.py", "evaluate", tmp_path / "answers.jsonl", path, "--benchmark", "kitchen") == 0
    assert "MR-full-R1@0.5               100.00" in capsys.readouterr().out
    path.write_text("\n".join([*lines, "kitchen-1\tlong"]) + "\n")
    assert run("benchmark.py", "evaluate", tmp_path / "answers.jsonl", path, "--benchmark", "kitchen") == 2
    message = capsys.readouterr().err
    assert f"{path}:{len(lines) + 1}: expected vid, duration, start, end, query with tabs" in message


def test_a_layout_is_read_in_place(
    run: Run,
    recipe: Path,
    rows: Path,
    tiny_annotations: list[Annotation],
    tiny_store: Path,
    tiny_backbone: Path,
    tmp_path: Path,
) -> None:
    store, folder = FeatureStore(tiny_store), tmp_path / "plain"
    chosen = tiny_annotations[:16]
    for part in ("clips", "sentences"):
        (folder / part).mkdir(parents=True)
    for vid in {a.vid for a in chosen}:
        np.save(folder / "clips" / f"{vid}.npy", store.video(vid).video_KTD)
    for annotation, text_KLD in zip(chosen, store.texts(chosen), strict=True):
        np.save(folder / "sentences" / f"{annotation.qid}.npy", text_KLD)
    runs = {"whole": (), "named": ("--data.layout=plain",), "store": (f"--data.train_features={tiny_store}",)}
    losses = {}
    for name, options in runs.items():
        out = f"--train.out={tmp_path / name}"
        assert run("feature_layout.py", "train", recipe, f"--data.train_features={folder}", *options, out) == 0
        losses[name] = (tmp_path / name / "losses.jsonl").read_text().splitlines()
    totals = {name: [json.loads(line)["total"] for line in lines] for name, lines in losses.items()}
    assert totals["whole"] == totals["named"] == totals["store"], "the features are those of the store"
    predictions = tmp_path / "predictions.jsonl"
    files = ("--annotations", rows, "--features", folder, "--out", predictions, "--backbone-weights", tiny_backbone)
    assert run("feature_layout.py", "predict", "--model", tmp_path / "whole" / "best", *files) == 0
    assert len(predictions.read_text().splitlines()) == len(chosen)


def test_a_layout_without_writing_is_not_exported(
    run: Run, rows: Path, tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = ("features", "export", tiny_store, "--annotations", rows, "--out", tmp_path / "out", "--layout")
    assert run("feature_layout.py", *export, "plain") == 2
    assert "the layout plain can be read and not written" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == [rows], "nothing is left"
