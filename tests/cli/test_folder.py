"""Check `sidelight ground` on folders, patterns and lists."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from sidelight.cli.main import main
from sidelight.features.sources import holds_videos
from sidelight.grounder import Grounder

QUERIES = ("a red star", "a blue ball spins")


@pytest.fixture
def here(tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fill the current folder with a folder of two videos and a broken one between them."""
    monkeypatch.chdir(tmp_path)
    Path("films").mkdir()
    videos = sorted((tiny_world / "videos").iterdir())
    shutil.copy(videos[0], "films/a.mp4")
    shutil.copy(videos[1], "films/c.mp4")
    Path("films/b.mp4").write_bytes(videos[0].read_bytes()[:200])
    return tmp_path


@pytest.fixture
def grounded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[str, ...]]]:
    """Return a list that grows by (name of the video, queries) with each call of the model."""
    calls: list[tuple[str, tuple[str, ...]]] = []
    original = Grounder.ground

    def ground(self: Grounder, video: Any, query: Any, **options: Any) -> Any:
        calls.append((Path(video).name, tuple(query)))
        return original(self, video, query, **options)

    monkeypatch.setattr(Grounder, "ground", ground)
    return calls


def test_a_run_that_is_already_answered_loads_no_model(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: Any, **options: Any) -> Grounder:
        raise AssertionError("the model was loaded")

    assert run("films", "--json", "answers.jsonl") == 0
    first = capsys.readouterr()
    monkeypatch.setattr(Grounder, "from_pretrained", refuse)
    assert run("films", "--json", "answers.jsonl") == 0
    second = capsys.readouterr()
    assert "2 videos of 3 answered by an earlier run" in second.out and first.err.endswith(second.err)
    assert second.out.splitlines()[:5] == first.out.splitlines()[:5]
    with pytest.raises(AssertionError, match="the model was loaded"):
        run("films", "--json", "answers.jsonl", queries=("another query",))


def run(*arguments: str, queries: tuple[str, ...] = QUERIES) -> int:
    source, *options = arguments
    return main(["ground", source, *queries, "--model", "shapes", "--device", "cpu", *options])


def test_one_table_by_score_and_failures_at_the_end(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("films", "--top", "1") == 0
    printed = capsys.readouterr()
    head, *rows = printed.out.split("\n\n")[0].splitlines()
    assert head.split() == ["file", "start", "end", "score", "query"] and len(rows) == 4
    assert {row.split()[0] for row in rows} == {"a.mp4", "c.mp4"}
    scores = [float(row.split()[3]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert "answered by the model shapes" in printed.out
    assert "1 video of 3 could not be read:\n  films/b.mp4 is an MP4 or MOV file that was cut off" in printed.err


def test_a_later_run_goes_on(
    here: Path, grounded: list[tuple[str, tuple[str, ...]]], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("films/b.mp4").rename("b.mp4")
    Path("films/c.mp4").rename("c.mp4")
    assert run("films", "--json", "answers.jsonl") == 0
    os.utime("c.mp4", (1, 1))
    Path("c.mp4").rename("films/c.mp4")
    with open("answers.jsonl", "a") as file:
        file.write('{"format": "sidelight.gr')  # a killed run
    assert run("films", "--json", "answers.jsonl", queries=(*QUERIES, "a red star is blinking")) == 0
    assert grounded == [("a.mp4", QUERIES), ("a.mp4", ("a red star is blinking",)),
                        ("c.mp4", (*QUERIES, "a red star is blinking"))]  # fmt: skip
    first = capsys.readouterr().out
    assert run("films", "--json", "answers.jsonl", "--min-score", "1") == 1
    assert run("films", "--json", "answers.jsonl") == 0
    assert len(grounded) == 3  # nothing was grounded again
    second = capsys.readouterr().out
    assert "2 videos of 2 answered by an earlier run, from answers.jsonl" in second
    assert [row for row in second.splitlines() if row in first]
    assert all(json.loads(line)["moments"] for line in Path("answers.jsonl").read_text().splitlines())
    later = Path("answers.jsonl").stat().st_mtime + 5
    os.utime("films/c.mp4", (later, later))
    assert run("films", "--json", "answers.jsonl") == 0
    assert grounded[3:] == [("c.mp4", QUERIES)]  # it has changed since


def test_outputs_hold_all_videos(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--export", "m.csv", "--clips", "clips", "--report", "r.html", "--contact-sheet", "s.png"]
    assert run("films", "--top", "1", "--json", "a.json", *options, queries=QUERIES[:1]) == 0
    assert [Path(answer["video"]).name for answer in json.loads(Path("a.json").read_text())] == ["a.mp4", "c.mp4"]
    assert len(Path("m.csv").read_text().splitlines()) == 3
    assert [path.name[:11] for path in sorted(Path("clips").iterdir())] == ["a-a-red-sta", "c-a-red-sta"]
    assert Path("r.html").read_text().count("<video") == 2 and Path("s.png").stat().st_size > 1000
    capsys.readouterr()
    assert run("films", "--json", "-", queries=QUERIES[:1]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_patterns_and_lists(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("list.txt").write_text("films/a.mp4\nfilms/c.mp4\n")
    for source in ("films/[ac].mp4", "list.txt"):
        assert run(source, queries=QUERIES[:1]) == 0
        table = capsys.readouterr().out
        assert "films/a.mp4 " in table and "films/c.mp4 " in table


@pytest.mark.parametrize(
    ("source", "several"),
    [("films", True), ("films/*.mp4", True), ("films/a.mp4", False), ("missing.mp4", False), ("list.txt", True),
     ("s3://films/", True), ("s3://films/*.mp4", True), ("https://host/v.mp4?x=1", False), ("[1].mp4", False)],
)  # fmt: skip
def test_what_stands_for_several_videos(source: str, several: bool, here: Path) -> None:
    Path("list.txt").touch()
    Path("[1].mp4").touch()
    assert holds_videos(source) is several


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("films --plot p.png", "--plot draws one video, and films holds several; use --report or --contact-sheet"),
        ("films --export m.srt", "the format srt holds one video, and films has 3"),
        ("none/*.mp4", "none/*.mp4 matches no video files"),
        ("films --json bad.jsonl", "bad.jsonl:1: expected a grounding of format"),
        ("films/b.mp4", "was cut off"),
        ("films/b*.mp4", "1 video of 1 could not be read"),
        ("films --json films/a.mp4", "this file exists and lies in films"),
        ("films --clips films", "read by the same command"),
    ],
)
def test_mistakes(arguments: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.jsonl").write_text('{"qid": 1}\n{"qid": 2}\n')
    before = sorted(here.rglob("*"))
    assert run(*arguments.split()) == 2
    assert message in capsys.readouterr().err
    assert sorted(here.rglob("*")) == before


def test_a_pattern_without_quotes_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ground", "films/a.mp4", "films/c.mp4", "a red star"]) == 2
    assert "films/c.mp4 is a file, not a sentence; for several videos, put the pattern into quotes" in (
        capsys.readouterr().err
    )


def test_answers_of_changed_videos_are_made_again(here: Path, grounded: list[tuple[str, tuple[str, ...]]]) -> None:
    Path("films/b.mp4").unlink()
    assert run("films", "--json", "answers.jsonl") == 0
    times = os.stat("films/a.mp4")
    Path("films/c.mp4").replace("films/a.mp4")  # another film under this name, which looks old
    os.utime("films/a.mp4", (1, times.st_mtime))
    assert run("films", "--json", "answers.jsonl") == 0
    assert [name for name, _ in grounded] == ["a.mp4", "c.mp4", "a.mp4"]


@pytest.mark.parametrize("text", ['[{"my": "list"}]', "a diary", '{"format": "other'])
def test_the_file_of_somebody_else_is_not_changed(here: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.jsonl").write_text(text)
    assert run("films", "--json", "mine.jsonl") == 2
    assert "give --json a new file" in capsys.readouterr().err and Path("mine.jsonl").read_text() == text
