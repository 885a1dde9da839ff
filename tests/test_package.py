"""Test the package as it is installed: its public names, its files, its wheel, and what is written about it."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import sidelight

ROOT = Path(__file__).resolve().parent.parent
MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """Return the parsed pyproject.toml."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        tomllib = pytest.importorskip("tomli")
    with open(ROOT / "pyproject.toml", "rb") as file:
        parsed: dict[str, Any] = tomllib.load(file)
    return parsed


def normal(name: str) -> str:
    """Return a package's name in the form of PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def direct_dependencies(project: dict[str, Any]) -> set[str]:
    """Return the names of all packages that pyproject.toml requires, with its extras, without sidelight itself."""
    extras = project["project"]["optional-dependencies"].values()
    requirements = [*project["project"]["dependencies"], *(line for lines in extras for line in lines)]
    names = {normal(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in requirements}
    return names - {"sidelight"}


def pins() -> dict[str, list[str]]:
    """Return the pinned versions in constraints.txt by name; a pin can depend on the Python version."""
    versions: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, rest = line.partition("==")
            versions.setdefault(normal(name), []).append(rest.split(";")[0].strip())
    return versions


def test_public_names() -> None:
    public = ["Grounder", "Grounding", "Moment", "__version__"]
    errors = ["AnnotationError", "DownloadError", "SpecMismatchError", "StorageError", "VideoError"]
    warnings = ["CacheWarning", "OutsideWarning", "QueryWarning", "VideoWarning"]
    assert sidelight.__all__ == sorted([*public, *errors, *warnings])
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", sidelight.__version__)


@pytest.mark.parametrize("name", [name for name in sidelight.__all__ if name != "__version__"])
def test_a_public_name_is_imported_at_its_first_use(name: str) -> None:
    assert getattr(sidelight, name).__name__ == name
    assert name in dir(sidelight)
    assert name in vars(sidelight), "the first use stores the name, so the second use costs nothing"


@pytest.mark.parametrize("name", ["", "grounder_", "Timeline", "__wrapped__"])
def test_other_names_are_attribute_errors(name: str) -> None:
    with pytest.raises(AttributeError, match=f"has no attribute {name!r}"):
        getattr(sidelight, name)


def test_the_wheel_holds_recipes_weights_and_the_page_and_no_studies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = pytest.importorskip("hatchling.build")
    monkeypatch.chdir(ROOT)
    with zipfile.ZipFile(tmp_path / build.build_wheel(str(tmp_path))) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    source = ROOT / "src"
    assert names >= {"sidelight/py.typed", "sidelight/weights/shapes/model.safetensors"}
    kinds = {
        "recipes": {".yaml"},
        "weights": {".json", ".safetensors"},
        "server/page": {".html", ".css", ".js", ".svg"},
    }
    for folder, suffixes in kinds.items():
        files = [path for path in (source / "sidelight" / folder).rglob("*") if path.suffix in suffixes]
        assert files and {path.relative_to(source).as_posix() for path in files} <= names
    assert {name.split("/")[0] for name in names} == {"sidelight"}


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
    # Users choose their own object storage (s3 or gs). open-clip installs torchvision, which must fit the torch.
    excluded = ("all", "dev", "docs", "open-clip", "s3", "gs")
    assert extras["all"] == [f"sidelight[{','.join(extra for extra in extras if extra not in excluded)}]"]


def test_every_direct_dependency_is_pinned(project: dict[str, Any]) -> None:
    assert direct_dependencies(project) - set(pins()) == set()


def test_the_next_major_version_of_each_dependency_is_shut_out(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    lines = [*project["project"]["dependencies"], *(line for name in extras for line in extras[name] if name != "dev")]
    by_year = {"fsspec", "furo", "s3fs", "gcsfs"}
    for line in lines:
        name = normal(re.split(r"[^\w.-]", line, maxsplit=1)[0])
        if name in by_year | {"sidelight"}:
            continue
        bound = re.search(r",<(\d+)$", line.partition(";")[0])
        pinned = max(int(version.split(".")[0]) for version in pins()[name])
        tested = 19 if name == "av" else pinned  # constraints.txt pins 18; a clean install gets 19
        assert bound and int(bound[1]) == tested + 1, line


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
