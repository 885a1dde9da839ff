"""The examples of the README and the docs run, their links lead somewhere, and the map of the code is true."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

import sidelight
from sidelight.cli.demo import draw_demo
from sidelight.cli.main import COMMANDS, main
from studies.ablation.__main__ import parser as ablation_parser
from studies.ablation.variants import find_ablation

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCE = REPOSITORY / "src" / "sidelight"
API = REPOSITORY / "docs" / "api.md"
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


def python_examples(page: Path) -> list[tuple[str, str]]:
    """Return (code, text that it prints) of each Python block; the text is "" unless a block of text is right below."""
    blocks = re.findall(
        r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", page.read_text(encoding="utf-8"), re.M | re.S
    )
    return [(code, text) for code, text in blocks]


PYTHON_PAGES = [page for page in PAGES if python_examples(page)]


@pytest.fixture(scope="module")
def demo_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the video that `sidelight demo` draws."""
    return draw_demo(tmp_path_factory.mktemp("demo"), seed=7)[0]  # 7 is the default of the command


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=lambda page: page.name)
def test_python_examples_run_and_print_what_the_page_shows(
    page: Path,
    demo_video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "demo").mkdir()
    for name in ("demo/video.mp4", "holiday.mp4"):
        shutil.copy(demo_video, tmp_path / name)
    monkeypatch.setattr("sidelight.training.named.DEFAULT_MODEL", "shapes")  # examples run without a network
    monkeypatch.chdir(tmp_path)
    values: dict[str, object] = {}  # the blocks of a page follow each other
    for number, (code, text) in enumerate(python_examples(page)):
        exec(compile(code, f"{page.name}:{number}", "exec"), values)
        printed = capsys.readouterr().out
        if text:
            assert_same_text(printed, text)


def assert_same_text(printed: str, shown: str) -> None:
    """Compare two texts; numbers and bars may differ a little, as they do between processors."""
    number = r"-?\d+(?:\.\d+)?"
    texts = [re.sub("[▁▂▃▄▅▆▇█]", "█", text).strip() for text in (printed, shown)]
    assert re.sub(number, "0", texts[0]) == re.sub(number, "0", texts[1])
    values = [[float(value) for value in re.findall(number, text)] for text in texts]
    assert values[0] == pytest.approx(values[1], abs=0.11)


@pytest.mark.parametrize("shown", ["a 0.52 █▁", "a 0.7 ▁▁", "b 0.5 █▁", "a 0.5", "a 0.5 0.5 █▁"])
def test_printed_text_is_compared(shown: str) -> None:
    if shown == "a 0.52 █▁":
        assert_same_text("a 0.5 ▁█\n", shown)
    else:
        with pytest.raises(AssertionError):
            assert_same_text("a 0.5 █▁\n", shown)


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
    assert len(PYTHON_PAGES) >= 8 and len(_commands("sidelight ")) >= 6 and len(_scripts()) >= 6


def _anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_api_reference_has_every_public_name() -> None:
    documented = set(
        re.findall(r"^\.\. (?:auto)?\w+:: sidelight\.(\w+)$", API.read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    assert documented == set(sidelight.__all__)


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
