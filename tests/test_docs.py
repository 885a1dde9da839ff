"""The examples of the README and the docs run, their links lead somewhere, and the map of the code is true."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from sidelight.cli.main import COMMANDS, main
from studies.ablation.__main__ import parser as ablation_parser
from studies.ablation.variants import find_ablation

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCE = REPOSITORY / "src" / "sidelight"
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    """Return (page and number, text) of every code block of a language."""
    result = []
    for page in PAGES:
        # Fences alternate, so that a block without a language is not mistaken for the text between two others.
        parts = re.split(r"^```(.*)\n", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
        opened = zip(parts[1::4], parts[2::4], strict=True)
        result += [(f"{page.name}:{i}", text) for i, (name, text) in enumerate(opened) if name == language]
    return result


@pytest.mark.parametrize(("where", "code"), blocks("python"))
def test_python_examples_run(
    where: str, code: str, tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").mkdir()
    video = sorted((tiny_world / "videos").iterdir())[0]
    for name in ("demo/video.mp4", "holiday.mp4"):
        shutil.copy(video, tmp_path / name)
    monkeypatch.setattr("sidelight.training.named.DEFAULT_MODEL", "shapes")  # examples run without a network
    monkeypatch.chdir(tmp_path)
    values: dict[str, object] = {}
    exec(compile(code, where, "exec"), values)
    assert values


def _commands(start: str) -> list[tuple[str, str]]:
    lines = [(where, line) for where, block in blocks("") for line in block.splitlines()]
    shown = [(where, line.split("#")[0].strip().removeprefix(".venv/bin/")) for where, line in lines]
    return [(where, line) for where, line in shown if line.startswith(start)]


@pytest.mark.parametrize(("where", "line"), _commands("python -m studies.ablation "))
def test_shown_studies_are_valid(where: str, line: str) -> None:
    args = ablation_parser().parse_args(shlex.split(line)[3:])
    assert find_ablation(args.table).name == args.table, where


@pytest.mark.parametrize(("where", "line"), _commands("sidelight "))
def test_shown_commands_and_options_exist(where: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, name, *arguments = shlex.split(line)
    if name == "COMMAND":
        return
    assert name in COMMANDS, where
    with pytest.raises(SystemExit):
        main([name, "--help"])
    help_text = capsys.readouterr().out
    for option in (a.split("=")[0] for a in arguments if a.startswith("--")):
        assert option in help_text, (where, option)


def _scripts() -> list[tuple[str, str]]:
    lines = [(page.name, line) for page in PAGES for line in page.read_text(encoding="utf-8").splitlines()]
    return sorted({(name, script) for name, line in lines for script in re.findall(r"python (\S+\.py)\b", line)})


@pytest.mark.parametrize(("page", "script"), _scripts())
def test_shown_scripts_exist(page: str, script: str) -> None:
    assert (REPOSITORY / script).is_file()


def test_the_examples_are_collected() -> None:
    assert len(blocks("python")) >= 2 and len(_commands("sidelight ")) >= 6 and len(_scripts()) >= 6


def _anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        links = re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8"))
        for target, anchor in links:
            path = page.parent / target if target else page
            assert path.exists(), (page.name, target)
            assert not anchor or anchor in _anchors(path), (page.name, target, anchor)


# the map in CONTRIBUTING.md ----------------------------------------------------------------------------------------

_MAP = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
_MAP = _MAP.partition("## A map of the code\n")[2].partition("\n## Conventions\n")[0]


def test_the_map_names_every_package() -> None:
    packages = {p.stem for p in SOURCE.iterdir() if (p / "__init__.py").exists() or p.suffix == ".py"}
    table = _MAP.partition("Beside `src`")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)) == packages - {"__init__", "__main__"}


@pytest.mark.parametrize("path", sorted({p.rstrip("/") for p in re.findall(r"`([\w.-]*/[\w./-]*)`", _MAP)}))
def test_every_path_of_the_map_exists(path: str) -> None:
    assert (SOURCE / path).exists() or (REPOSITORY / path).exists()
