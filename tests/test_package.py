"""The package as it is installed: its public names, its files, and that what is written about it agrees."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sidelight

ROOT = Path(__file__).resolve().parent.parent
MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """The parsed pyproject.toml."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        tomllib = pytest.importorskip("tomli")
    with open(ROOT / "pyproject.toml", "rb") as file:
        parsed: dict[str, Any] = tomllib.load(file)
    return parsed


def normal(name: str) -> str:
    """A package's name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def direct_dependencies(project: dict[str, Any]) -> set[str]:
    """Names of all packages asked for in pyproject.toml, extras included, ourselves left out."""
    extras = project["project"]["optional-dependencies"].values()
    wanted = [*project["project"]["dependencies"], *(line for lines in extras for line in lines)]
    names = {normal(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in wanted}
    return names - {"sidelight"}


def pins() -> dict[str, list[str]]:
    """Name -> pinned versions in constraints.txt (several where they depend on the Python version)."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, rest = line.partition("==")
            found.setdefault(normal(name), []).append(rest.split(";")[0].strip())
    return found


def test_public_names() -> None:
    assert sidelight.__all__ == ["Grounder", "Grounding", "Moment", "__version__"]
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", sidelight.__version__)


@pytest.mark.parametrize("name", ["Grounder", "Grounding", "Moment"])
def test_a_public_name_is_imported_when_asked_for(name: str) -> None:
    assert getattr(sidelight, name).__name__ == name
    assert name in dir(sidelight)
    assert name in vars(sidelight), "kept, so that the second use costs nothing"


@pytest.mark.parametrize("name", ["", "grounder_", "Timeline", "__wrapped__"])
def test_other_names_are_attribute_errors(name: str) -> None:
    with pytest.raises(AttributeError, match=f"has no attribute {name!r}"):
        getattr(sidelight, name)


def test_types_are_shipped() -> None:
    assert (ROOT / "src/sidelight/py.typed").is_file()


def test_shipped_weights_are_small() -> None:
    files = list((ROOT / "src/sidelight/weights").rglob("*"))
    assert {f.suffix for f in files if f.is_file()} <= {".safetensors", ".json", ".md"}, "what the wheel carries"
    assert sum(f.stat().st_size for f in files) < 20 * MEBIBYTE


def test_shipped_weights_are_not_ignored_by_git() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    files = [str(f) for f in (ROOT / "src/sidelight/weights").rglob("*") if f.is_file()]
    ignored = subprocess.run(
        ["git", "check-ignore", *files, "dist/sidelight.whl"], cwd=ROOT, capture_output=True, text=True
    )
    assert ignored.stdout.split() == ["dist/sidelight.whl"]


def test_all_is_every_extra_that_users_need(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    # Of the kinds of object storage one needs one's own.
    apart = ("all", "dev", "s3", "gs")
    assert extras["all"] == [f"sidelight[{','.join(e for e in extras if e not in apart)}]"]


def test_every_direct_dependency_is_pinned(project: dict[str, Any]) -> None:
    assert direct_dependencies(project) - set(pins()) == set()


def test_pins_are_published_versions() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    plain = re.compile(r'[a-z0-9-]+==[0-9][0-9a-z.]*( ; python_version (<|>=) "3\.\d+")?')
    assert [line for line in lines if not plain.fullmatch(line)] == [], "no paths, no local builds (+cpu)"


def test_every_direct_dependency_is_explained(project: dict[str, Any]) -> None:
    text = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8")
    explained = {normal(name) for name in re.findall(r"^\| `([^`]+)`", text, flags=re.MULTILINE)}
    assert explained == direct_dependencies(project)


def test_the_changelog_knows_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{sidelight.__version__}]" in text
