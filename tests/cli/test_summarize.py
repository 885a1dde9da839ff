"""Check `sidelight summarize`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sidelight.cli.main import main
from sidelight.video.read import probe


@pytest.fixture
def video(tiny_world: Path, tmp_path: Path) -> Path:
    path = tmp_path / "video.mp4"
    path.write_bytes(sorted((tiny_world / "videos").iterdir())[0].read_bytes())
    return path


def run(video: Path, *options: str) -> int:
    return main(["summarize", str(video), "--model", "shapes", "--device", "cpu", *options])


def test_a_summary_becomes_a_table_json_a_film_and_chapters(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    options = ["--json", str(out / "s.json"), "--plot", str(out / "p.png"), "--export", str(out / "cuts.edl")]
    options += ["--join", str(out / "film.mp4"), "--clips", str(out / "clips"), "--report", str(out / "r.html")]
    assert run(video, "--topic", "a red star", "--seconds", "6", *options) == 0
    printed = capsys.readouterr()
    assert "picked by the model shapes" in printed.out and "is a guess" not in printed.err
    value = json.loads((out / "s.json").read_text())
    length = sum(moment["end"] - moment["start"] for moment in value["moments"])
    assert 0 < length <= 6 and value["segments"][0][0] == 0.0
    assert probe(out / "film.mp4").duration == pytest.approx(length, abs=0.1)
    assert len(list((out / "clips").iterdir())) == len(value["moments"])
    assert main(["export", str(out / "s.json"), str(out / "again.edl")]) == 0
    assert (out / "again.edl").read_text().splitlines()[2:] == (out / "cuts.edl").read_text().splitlines()[2:]
    rows = [line for line in printed.out.splitlines() if line.strip()[:2] in ("0:", "1:") and " of " not in line]
    assert rows == sorted(rows) and len(rows) == len(value["moments"])


def test_without_a_topic_it_says_that_it_guesses(video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(video, "--json", "-") == 0
    printed = capsys.readouterr()
    value = json.loads(printed.out)
    assert value["query"] == "something moves" and any("is a guess" in note for note in value["notes"])
    assert "its summary for 'something moves' is a guess" in printed.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--share 0", "--share must be above 0, got 0.0"),
        ("--share 2", "--share must be between 0 and 1, got 2.0"),
        ("--seconds -1", "--seconds must be above 0, got -1.0"),
        ("--topic= ", "a query is empty"),
        ("--join film.gif", "a film must end in .mp4"),
        ("--json video.mp4", "read by the same command"),
    ],
)
def test_mistakes(
    options: str, message: str, video: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(video.parent)
    assert run(Path("video.mp4"), *([options] if options.endswith(" ") else options.split())) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert [path.name for path in video.parent.iterdir()] == ["video.mp4"]
