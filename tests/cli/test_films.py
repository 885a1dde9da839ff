"""Check the outputs of `ground` and `export` that people watch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sidelight.cli.main import main
from sidelight.video.read import probe


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a video that the model `shapes` knows."""
    from sidelight.cli.demo import draw_demo

    return draw_demo(tmp_path_factory.mktemp("film"), seed=7)[0]


@pytest.fixture
def answers(video: Path, tmp_path: Path) -> Path:
    """Return answers about the video: two moments, of which one is weak."""
    duration = probe(video).duration
    moments = [{"start": 4.0, "end": 6.0, "score": 0.9}, {"start": 5.0, "end": 8.0, "score": 0.1}]
    value = {
        "format": "sidelight.grounding/1",
        "video": str(video),
        "query": "a star",
        "timeline": {"duration": duration, "clip_seconds": duration},
        "moments": moments,
        "saliency": [0.5],
    }
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(value))
    return path


def test_ground_cuts_joins_and_draws(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    line = ["ground", str(video), "an orange ball is flickering on and off", "--model", "shapes", "--device", "cpu"]
    line += ["--top", "2", "--clips", str(out / "clips"), "--join", str(out / "film.mp4"), "--json", "-"]
    line += ["--contact-sheet", str(out / "sheet.png"), "--report", str(out / "report.html")]
    assert main(line) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1  # nothing else goes to standard output
    assert len(list((out / "clips").iterdir())) == 2
    assert sorted(path.name for path in out.iterdir()) == ["clips", "film.mp4", "report.html", "sheet.png"]
    assert (out / "report.html").read_text().count("<button") == 2


def test_export_cuts_without_a_file_of_its_own(
    answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = tmp_path / "clips"
    assert main(["export", str(answers), "--clips", str(clips), "--padding", "0.5", "--min-score", "0.5"]) == 0
    (clip,) = clips.iterdir()
    assert clip.name == "video-a-star-00003.50-00006.50.mp4"
    printed = capsys.readouterr().out
    assert f"wrote {clip}  3.0 s, {round(3 * probe(clip).fps)} frames" in printed
    assert main(["export", str(answers), "--clips", str(clips), "--padding", "0.5", "--min-score", "0.5"]) == 0
    assert capsys.readouterr().out == f"kept  {clip}\n"


LEFT_OUT = "1 moment with less than a quarter of the best score (--min-score 0 takes all)\n"


@pytest.mark.parametrize(
    ("options", "count", "line"),
    [
        ("", 1, f"left out of --clips, --join and --report: {LEFT_OUT}"),
        ("cuts.ffconcat", 1, f"left out of cuts.ffconcat, --clips, --join and --report: {LEFT_OUT}"),
        ("--min-score 0", 2, ""),
        ("--min-score 0.05", 2, ""),
        ("--min-score 0.5", 1, ""),
        ("--top 1", 1, ""),
        ("table.csv", 1, f"left out of --clips, --join and --report: {LEFT_OUT}"),
    ],
)
def test_faint_moments_are_left_out_and_counted(
    options: str,
    count: int,
    line: str,
    answers: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(answers.parent)
    files = ["--clips", "c", "--join", "film.mp4", "--report", "r.html"]
    assert main(["export", "answers.json", *options.split(), *files]) == 0
    assert len(list(Path("c").iterdir())) == count and Path("r.html").read_text().count("<button") == count
    printed = capsys.readouterr().out
    assert printed.startswith(line) and ("left out" in printed) == bool(line)
    if "table.csv" in options:
        assert len(Path("table.csv").read_text().splitlines()) == 3  # a table is data: nothing is left out
    if "ffconcat" in options:
        assert Path("cuts.ffconcat").read_text().count("inpoint") == 1


def test_a_summary_is_exported_whole(answers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(answers.parent)
    value = json.loads(answers.read_text())
    answers.write_text(json.dumps({**value, "segments": [[0.0, value["timeline"]["duration"]]]}))
    assert main(["export", "answers.json", "--clips", "c"]) == 0
    assert len(list(Path("c").iterdir())) == 2


def test_copies_tell_their_true_start(answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(answers), "--clips", str(tmp_path / "c"), "--copy", "--top", "1"]) == 0
    assert " s (keyframe) to " in capsys.readouterr().out


def test_lines_of_answers_are_read(answers: Path, tmp_path: Path) -> None:
    lines = tmp_path / "answers.jsonl"
    lines.write_text(2 * f"{answers.read_text()}\n")
    assert main(["export", str(lines), str(tmp_path / "table.csv")]) == 0
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "there is nothing to write; give a file, or --clips, --join, --thumbnails, --contact-sheet or --report"),
        ("--copy out.csv", "--copy says how --clips and --join cut"),
        ("--join film.avi", "a film must end in .mp4, .mov, .m4v, .mkv, got film.avi"),
        ("--report report.txt", "--report must end in .html, got report.txt"),
        ("--contact-sheet sheet.gif", "--contact-sheet must end in .png, .pdf, .svg or .jpg, got sheet.gif"),
        ("--clips c --padding -1", "--padding must be 0 or more, got -1.0"),
        ("--clips c --min-score 2", "there is no moment to export; expected at least one"),
        ("--join VIDEO", "it is read by the same command"),
        ("--clips answers.json", "read by the same command"),
        ("--report r.html --join r.html", "twice"),
    ],
)
def test_mistakes_are_one_sentence(
    options: str,
    message: str,
    answers: Path,
    video: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(answers.parent)
    before = video.read_bytes()
    code = main(["export", "answers.json", *options.replace("VIDEO", str(video)).split()])
    error = capsys.readouterr().err
    assert code == 2 and message in error and len(error.splitlines()) == 1
    assert [path.name for path in answers.parent.iterdir()] == ["answers.json"] and video.read_bytes() == before
