"""What the README and the docs show runs as it stands there."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from sidelight.cli.main import COMMANDS, main

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    """(page and number, text) of every code block of a language."""
    found = []
    for page in PAGES:
        # Fences alternate, so that a block without a language is not mistaken for the text between two others.
        parts = re.split(r"^```(.*)\n", page.read_text(), flags=re.MULTILINE)
        opened = zip(parts[1::4], parts[2::4], strict=True)
        found += [(f"{page.name}:{i}", text) for i, (name, text) in enumerate(opened) if name == language]
    return found


@pytest.mark.parametrize(("where", "code"), blocks("python"))
def test_python_examples_run(
    where: str, code: str, tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").mkdir()
    video = sorted((tiny_world / "videos").iterdir())[0]
    shutil.copy(video, tmp_path / "demo" / "video.mp4")
    monkeypatch.chdir(tmp_path)
    values: dict[str, object] = {}
    exec(compile(code, where, "exec"), values)
    assert values


def _commands() -> list[tuple[str, str]]:
    lines = [(where, line) for where, block in blocks("") for line in block.splitlines()]
    shown = [(where, line.split("#")[0].strip().removeprefix(".venv/bin/")) for where, line in lines]
    return [(where, line) for where, line in shown if line.startswith("sidelight ")]


@pytest.mark.parametrize(("where", "line"), _commands())
def test_shown_commands_and_options_exist(where: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, name, *arguments = shlex.split(line)
    if name == "COMMAND":
        return
    assert name in COMMANDS, where
    with pytest.raises(SystemExit):
        main([name, "--help"])
    shown = capsys.readouterr().out
    for option in (a.split("=")[0] for a in arguments if a.startswith("--")):
        assert option in shown, (where, option)


def test_there_is_something_to_check() -> None:
    assert len(blocks("python")) >= 2 and len(_commands()) >= 6


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)
