"""The commands, as a person types them. They run the packaged model."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sidelight.cli.ground import clock, sparkline
from sidelight.cli.main import COMMANDS, main
from sidelight.core.grounding import Grounding


@pytest.fixture(scope="module")
def video(tiny_world: Path) -> Path:
    return sorted((tiny_world / "videos").iterdir())[0]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0:00.0"),
        (9.96, "0:10.0"),
        (59.99, "1:00.0"),
        (83.25, "1:23.2"),
        (3600, "1:00:00.0"),
        (7384.5, "2:03:04.5"),
    ],
)
def test_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


@pytest.mark.parametrize(
    ("values", "width", "shown"),
    [([], 5, ""), ([1.0], 5, "▁"), ([0, 1], 5, "▁█"), ([0, 0, 1, 1], 2, "▁█"), ([0.0, 0.5, 1.0], 3, "▁▅█")],
)
def test_sparkline(values: list[float], width: int, shown: str) -> None:
    assert sparkline(values, width) == shown


def test_help_lists_every_command_and_is_quick() -> None:
    took = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "sidelight", "--help"], capture_output=True, text=True)
        took.append(time.perf_counter() - began)
    assert done.returncode == 0 and all(name in done.stdout for name in COMMANDS)
    assert min(took) < 2  # a bound for slow machines; 0.5 s is what we hold ourselves to


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0 and f"sidelight {name}" in capsys.readouterr().out


def test_ground_prints_writes_and_draws(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer, picture = tmp_path / "a.json", tmp_path / "a.png"
    arguments = [
        "ground",
        str(video),
        "a red star spins",
        "something blinks",
        "--top",
        "2",
        "--device",
        "cpu",
    ]
    assert main([*arguments, "--json", str(answer), "--plot", str(picture)]) == 0
    shown = capsys.readouterr().out
    assert "a red star spins" in shown and "start" in shown and "█" in shown
    groundings = [Grounding.from_dict(g) for g in json.loads(answer.read_text())]
    assert [g.query for g in groundings] == ["a red star spins", "something blinks"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_ground_prints_json_alone_on_request(video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ground", str(video), "a star", "--json", "-", "--no-cache", "--device", "cpu"]) == 0
    (grounding,) = json.loads(capsys.readouterr().out)
    assert Grounding.from_dict(grounding).query == "a star"


def test_predict_and_evaluate(tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations, out = str(tiny_world / "annotations.jsonl"), tmp_path / "p.jsonl"
    store = tmp_path / "store"
    videos = ["--videos", str(tiny_world / "videos"), "--features", str(store)]
    assert main(["predict", "--annotations", annotations, *videos, "--out", str(out), "--device", "cpu"]) == 0
    first = out.read_text()
    features = ["--features", str(store)]
    assert main(["predict", "--annotations", annotations, *features, "--out", str(out), "--device", "cpu"]) == 0
    assert out.read_text() == first and len(first.splitlines()) == len(Path(annotations).read_text().splitlines())
    capsys.readouterr()
    assert main(["evaluate", str(out), annotations, "--json", str(tmp_path / "m.json")]) == 0
    brief = json.loads((tmp_path / "m.json").read_text())["brief"]
    assert f"{'MR-full-mAP':<28}{brief['MR-full-mAP']:>7.2f}" in capsys.readouterr().out


def test_evaluate_equals_the_published_numbers(shared: Path, tmp_path: Path) -> None:
    golden = shared / "golden" / "qvhighlights-eval"
    annotations = shared / "data" / "qvhighlights" / "highlight_val_release.jsonl"
    target = tmp_path / "m.json"
    predictions = golden / "sample_val_preds.jsonl"
    assert main(["evaluate", str(predictions), str(annotations), "--json", str(target)]) == 0
    expected = json.loads((golden / "sample_val_preds_r2_metrics.json").read_text())
    assert json.loads(target.read_text())["brief"] == expected["brief"]


def test_summary_counts_the_papers_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", "sdst-internvideo2-qvhighlights"]) == 0
    total = int(capsys.readouterr().out.splitlines()[-1].split()[2].replace(",", ""))
    assert abs(total / (4.10 * 2**20) - 1) < 0.03


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tmp_path), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("true:") == 3
    assert {p.suffix for p in tmp_path.iterdir()} == {".mp4", ".json", ".png"}


def test_shapes_and_extract(tmp_path: Path, tiny_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--videos", "1", "--seed", "5", "--shortest", "20", "--longest", "20", "--side", "128"]
    assert main(["shapes", "--out", str(tmp_path / "w"), *arguments, "--workers", "2"]) == 0
    world = tmp_path / "w"
    source = [str(world / "videos"), "--annotations", str(world / "annotations.jsonl")]
    assert main(["extract", *source, "--out", str(tmp_path / "s"), "--device", "cpu"]) == 0
    assert "1 of 1 videos" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["grond"], "there is no command 'grond'"),
        (["ground"], "video"),
        (["ground", "nowhere.mp4", "a star"], "nowhere.mp4 does not exist"),
        (["ground", "VIDEO", ""], "a query is empty"),
        (["ground", "VIDEO", "a star", "--top", "0"], "--top must be 1 or more"),
        (["ground", "VIDEO", "a star", "--top", "many"], "top"),
        (["ground", "VIDEO", "a star", "--model", "nothing"], "there is no model 'nothing'"),
        (["ground", "VIDEO", "a star", "--plot", "no/such/folder/a.png"], "there is no folder"),
        (["ground", "VIDEO", "a star", "--nonsense"], "nonsense"),
        (["ground", "VIDEO", "a star", "--device", "quantum"], "quantum"),
        (["evaluate", "nowhere.jsonl", "nowhere.jsonl"], "there is no file nowhere.jsonl"),
        (["train", "nowhere.yaml"], "there is no recipe nowhere.yaml"),
        (["train"], "needs a recipe"),
        (["train", "shapes", "--train.device=2"], "unrecognized arguments: --train.device=2"),
        (["train", "shapes", "--train.epochs=none"], "train.epochs"),
        (["train", "shapes", "--data.train=nowhere.jsonl"], "nowhere.jsonl"),
        (["summary", "shapes", "--model.heads=7"], "heads"),
        (["shapes", "--out", "OUT", "--videos", "0"], "videos must be 1 or more"),
        (["predict", "--annotations", "x", "--out", "y"], "give --videos"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    arguments: list[str], said: str, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"VIDEO": str(video), "OUT": str(tmp_path / "out")}
    assert main([named.get(a, a) for a in arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("sidelight: ") and said in message and len(message.strip().splitlines()) == 1
