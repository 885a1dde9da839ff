"""Run `evaluate`, `compare` and `calibrate` as a person types them, on files made here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sidelight.cli.main import main
from sidelight.cli.scores import short_names
from sidelight.data.annotations import Annotation, Submission, write_annotations, write_submissions

WARNED = pytest.mark.filterwarnings("always::sidelight.metrics.evaluate.EvaluationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make 120 queries on 20 videos, a third of them without a moment, and a good, an equal and a bad prediction."""
    folder = tmp_path_factory.mktemp("scores")
    rng = np.random.default_rng(0)
    truth, predictions = [], {"good": [], "twin": [], "bad": []}  # type: ignore[var-annotated]
    for i in range(120):
        start = float(rng.integers(0, 40))
        present = i % 3 > 0
        windows = ((start, start + 6),) if present else ()
        truth.append(Annotation(qid=i, query=f"query {i}", vid=f"v{i // 6}", duration=60, relevant_windows=windows))
        for name, noise in (("good", 0.5), ("twin", 0.5), ("bad", 4.0)):
            moved = np.clip(np.array([start, start + 6]) + rng.normal(scale=noise, size=2), 0, 60)
            score = np.clip(rng.normal(0.7 if present else 0.3, 0.12), 0, 1)
            row = [*np.sort(moved).tolist(), float(score)]
            predictions[name].append(
                Submission(
                    qid=i, vid=f"v{i // 6}", pred_relevant_windows=np.array([row]), pred_saliency_scores=np.zeros(0)
                )
            )
    present_qids = [a.qid for a in truth if a.relevant_windows]
    write_annotations(folder / "all.jsonl", truth)
    write_annotations(folder / "truth.jsonl", [a for a in truth if a.qid in present_qids])
    for name, rows in predictions.items():
        write_submissions(folder / f"{name}-all.jsonl", rows)
        write_submissions(folder / f"{name}.jsonl", [s for s in rows if s.qid in present_qids])
    return folder


def test_intervals_contain_the_numbers(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.json"
    files = [str(folder / "good.jsonl"), str(folder / "truth.jsonl")]
    assert main(["evaluate", *files, "--intervals", "--json", str(out)]) == 0
    values = json.loads(out.read_text())
    assert set(values["intervals"]) == set(values["brief"])
    for name, (low, high) in values["intervals"].items():
        assert low - 0.01 <= values["brief"][name] <= high + 0.01
    assert f"[{values['intervals']['MR-full-mAP'][0]:6.2f}" in capsys.readouterr().out
    assert main(["evaluate", *files]) == 0
    assert "[" not in capsys.readouterr().out


def test_several_seeds(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.json"
    files = [str(folder / f"{name}.jsonl") for name in ("good", "twin")]
    assert main(["evaluate", *files, str(folder / "truth.jsonl"), "--json", str(out)]) == 0
    values = json.loads(out.read_text())
    runs = [run["brief"]["MR-full-mIoU"] for run in values["runs"]]
    assert [run["predictions"] for run in values["runs"]] == files
    assert values["seeds"]["MR-full-mIoU"]["mean"] == pytest.approx(np.mean(runs))
    assert values["seeds"]["MR-full-mIoU"]["deviation"] == pytest.approx(np.std(runs, ddof=1))
    assert "deviation over 2 runs" in capsys.readouterr().out
    assert main(["evaluate", *files, str(folder / "truth.jsonl"), "--intervals"]) == 2


@pytest.mark.parametrize(("other", "better"), [("twin", "-"), ("bad", "good")])
def test_compare(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], other: str, better: str) -> None:
    pytest.importorskip("matplotlib", reason="needs sidelight[plot]")
    files = [str(folder / f"{name}.jsonl") for name in ("good", other, "truth")]
    out, plot = tmp_path / "c.json", tmp_path / "c.png"
    assert main(["compare", *files, "--resamples", "2000", "--json", str(out), "--plot", str(plot)]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("MR-full-mIoU"))
    assert row.split()[-1] == better
    assert "…" not in row
    values = json.loads(out.read_text())
    assert values["grouped_by"] == "video" and values["groups"] == 20
    assert values["metrics"][0]["verdict"] == ("no difference" if other == "twin" else "first")
    assert plot.stat().st_size > 10_000


def test_calibrate_chooses_and_reports(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="needs sidelight[plot]")
    out, plot = tmp_path / "c.json", tmp_path / "c.png"
    files = [str(folder / "good-all.jsonl"), str(folder / "all.jsonl")]
    assert main(["calibrate", *files, "--json", str(out), "--plot", str(plot)]) == 0
    absent = json.loads(out.read_text())["absent"]
    assert 0.3 < absent["min_score"] < 0.7
    assert absent["precision"] > 0.8 and absent["recall"] > 0.8
    assert f"--min-score {absent['min_score']:g}" in capsys.readouterr().out
    assert plot.stat().st_size > 5000
    # A score that is given is not chosen again, only reported.
    min_score = ["--min-score", str(absent["min_score"])]
    assert main(["calibrate", str(folder / "twin-all.jsonl"), str(folder / "all.jsonl"), *min_score]) == 0
    output = capsys.readouterr().out
    assert "chosen" not in output and "precision" in output


def test_calibrate_without_absent_queries(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", str(folder / "good.jsonl"), str(folder / "truth.jsonl")]) == 0
    assert "every query has a moment" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["calibrate", "good.jsonl", "truth.jsonl", "--min-score", "2"],
            "--min-score must be between 0 and 1, got 2.0",
        ),
        (["calibrate", "good.jsonl", "truth.jsonl", "--bins", "0"], "--bins must be 1 or more, got 0"),
        (["calibrate", "good.jsonl", "truth.jsonl", "--plot", "x.gif"], "--plot must end in"),
        (
            ["calibrate", "good.jsonl", "all.jsonl"],
            "all.jsonl:1: predictions and annotations must be of the same queries",
        ),
        (["compare", "good.jsonl", "good.jsonl", "truth.jsonl", "--resamples", "0"], "resamples must be 1 or more"),
        (["evaluate", "good.jsonl", "truth.jsonl", "--by", "query"], "give --intervals too"),
        (["compare", "good.jsonl", "good.jsonl", "truth.jsonl", "--plot", "/nowhere/x.png"], "there is no folder"),
        (["compare", "good.jsonl", "nothing.jsonl", "truth.jsonl"], "there is no file nothing.jsonl"),
        (["evaluate", "good.jsonl", "nothing.jsonl"], "there is no file nothing.jsonl"),
        (["evaluate", "good.jsonl"], "annotations"),
        (["evaluate", "good.jsonl", "truth.jsonl", "--benchmark", "coco"], "there is no benchmark 'coco'"),
        (["evaluate", "good.jsonl", "truth.jsonl", "--convention", "coco"], "convention"),
    ],
)
def test_mistakes(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(folder)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert expected in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "good.jsonl", "truth.jsonl", "--json", "good.jsonl"],
        ["evaluate", "good.jsonl", "truth.jsonl", "--json", "./truth.jsonl"],
        ["compare", "good.jsonl", "bad.jsonl", "truth.jsonl", "--json", "bad.jsonl"],
        ["calibrate", "good.jsonl", "truth.jsonl", "--json", "truth.jsonl"],
        ["data", "import", "truth.jsonl", "--out", "truth.jsonl"],
        ["data", "check", "truth.jsonl", "--json", "truth.jsonl"],
        ["ground", "video.mp4", "a star", "--json", "video.mp4"],
        ["ground", "video.mp4", "a star", "--plot", "video.mp4"],
    ],
)
def test_no_output_replaces_an_input(
    folder: Path,
    tiny_world: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    monkeypatch.chdir(folder)
    shutil.copy(next((tiny_world / "videos").iterdir()), folder / "video.mp4")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert main(arguments) == 2
    assert "it is read by the same command; give another file name" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "good.jsonl", "truth.jsonl", "--intervals"],
        ["compare", "good.jsonl", "bad.jsonl", "truth.jsonl", "--resamples", "100"],
        ["calibrate", "good-all.jsonl", "all.jsonl"],
    ],
)
def test_standard_output_holds_only_json(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.chdir(folder)
    assert main([*arguments, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)


@WARNED
def test_queries_without_a_moment_are_left_out_and_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(folder / "good-all.jsonl"), str(folder / "all.jsonl")]) == 0
    report, err = capsys.readouterr()
    assert "40 of 120 queries have no moment and are left out" in err
    assert main(["evaluate", str(folder / "good.jsonl"), str(folder / "truth.jsonl")]) == 0
    assert capsys.readouterr().out == report


@WARNED
def test_a_warning_is_printed_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # each command warns
        assert main(["evaluate", str(folder / "good-all.jsonl"), str(folder / "all.jsonl"), "--intervals"]) == 0
        assert capsys.readouterr().err.count("have no moment and are left out") == 1


@WARNED
@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (lambda w: [[3000.0, 3200.0, 0.5]], "80 of 80 predictions predict windows outside their video"),
        (lambda w: [[0.0, 1.0, 0.1], *w], "do not list the best window first"),
    ],
)
def test_unusual_predictions_are_scored_with_a_warning(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: object, warning: str
) -> None:
    rows = [json.loads(line) for line in (folder / "good.jsonl").read_text().splitlines()]
    for row in rows:
        row["pred_relevant_windows"] = change(row["pred_relevant_windows"])  # type: ignore[operator]
    changed = tmp_path / "changed.jsonl"
    changed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["evaluate", str(changed), str(folder / "truth.jsonl")]) == 0
    assert warning in capsys.readouterr().err


def test_short_names_tell_two_files_apart() -> None:
    assert short_names(Path("a.jsonl"), Path("b.jsonl")) == ("a", "b")
    assert short_names(Path("x/best/p.jsonl"), Path("y/best/p.jsonl")) == ("x/best/p", "y/best/p")
