"""Check which package imports which, and that light imports stay light.

PACKAGES is the architecture, in the order in which a value travels: from a file to an answer. A package may import the
packages above it and nothing below it. All imports count: at the top of a file, inside a function, under
TYPE_CHECKING. The modules of one package may import each other, but not in a circle.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "sidelight"

PACKAGES = (
    "core",  # words that every part uses
    "io",  # safe reading and writing
    "recipes",  # YAML files and their names
    "video",  # frames at given times
    "data",  # annotations and benchmarks
    "shapes",  # the synthetic world
    "backbones",  # frames and sentences -> features
    "features",  # stores, extraction, layouts that papers released
    "models",  # features -> predictions -> groundings
    "metrics",  # groundings -> numbers
    "training",  # recipes -> checkpoints
    "grounder",  # a file and a sentence -> a grounding
    "library",  # features of many videos -> hits
    "export",  # groundings -> files for people
    "server",  # REST, a page, tools for language models
    "cli",  # parse, call, print
    "__main__",
)
NEVER = (
    ("sidelight.metrics", "sidelight.models"),  # metrics score files, whatever model wrote them
    ("sidelight.models.losses", "sidelight.models.decode"),
    ("sidelight.models.losses", "sidelight.core.timeline"),  # only decoding knows seconds
    ("sidelight.models.losses", "sidelight.models.registry"),
    ("sidelight.models.decode", "sidelight.models.losses"),
)
"""Imports that the order would allow, but the design forbids."""

HEAVY = (
    "torch",
    "av",
    "matplotlib",
    "scipy",
    "lightning_fabric",
    "safetensors",
    "huggingface_hub",
    "transformers",
    "fsspec",
    "ray",
    "lancedb",
    "pyarrow",
    "fastapi",
    "uvicorn",
    "mcp",
)


METHODS = {
    ("sidelight.core.grounding", "sidelight.export.formats"),
    ("sidelight.core.grounding", "sidelight.export.clips"),
}
"""Imports inside a method that people expect on a class of a lower package: ``Grounding.export`` and ``clips``."""


def modules_of(source: Path, name: str = "sidelight") -> dict[str, Path]:
    """Return the modules below a folder, by dotted name."""
    modules = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        modules[".".join([name, *(parts[:-1] if parts[-1] == "__init__" else parts)])] = path
    return modules


def imports_of(code: str, module: str, known: set[str], *, package: bool) -> Iterator[tuple[int, str]]:
    """Yield (line, imported module) for each import of a known module in ``code``.

    A string that is the name of a known module counts too: it is written to be given to ``import_module``.
    """

    def nearest(target: str) -> str | None:
        while target and target not in known:
            target = target.rpartition(".")[0]
        return target or None

    for node in ast.walk(ast.parse(code)):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            targets = [node.value] if node.value in known else []
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # from . import x: counted from the package that holds the module
                parts = module.split(".")
                base = ".".join([*parts[: len(parts) - node.level + package], *([base] if base else [])])
            targets = [f"{base}.{alias.name}" for alias in node.names]
        for target in targets:
            imported = nearest(target)
            if imported is not None and target != "sidelight.__version__":  # a constant, not a dependency
                yield getattr(node, "lineno", 0), imported


def graph_of(modules: Mapping[str, Path]) -> dict[str, dict[str, int]]:
    """Return module -> imported module -> line."""
    graph: dict[str, dict[str, int]] = {}
    for name, path in modules.items():
        code = path.read_text(encoding="utf-8")
        package = path.name == "__init__.py"
        graph[name] = {
            other: line
            for line, other in imports_of(code, name, set(modules), package=package)
            if other != name and (name, other) not in METHODS
        }
    return graph


def package_of(module: str) -> str:
    """Return the part of the package that a module belongs to: "core" for "sidelight.core.spans"."""
    return [*module.split("."), ""][1]


def complaints(graph: Mapping[str, Mapping[str, int]], order: tuple[str, ...]) -> list[str]:
    """Return a sentence for each import that the order of packages forbids; none if all is well."""
    wrong = []
    places = {name: place for place, name in enumerate(order)}
    for name in sorted({package_of(module) for module in graph} - {"", *order}):
        wrong.append(f"{name}: has no row in PACKAGES")
    for module, imported in graph.items():
        for other, line in imported.items():
            one, two = package_of(module), package_of(other)
            if one == "":  # the public names: they stand for what is below
                continue
            if two == "":
                wrong.append(f"{module}:{line} imports the public names; import from the module that defines them")
            elif places.get(two, 0) > places.get(one, len(order)) or any(
                module.startswith(importer) and other.startswith(target) for importer, target in NEVER
            ):
                wrong.append(f"{module}:{line} may not import {other}")
    return wrong


def cycle_in(graph: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return the modules of one circle of imports, or an empty list."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for other in graph.get(module, {}):
            # A package's __init__ runs before its modules; that is no circle of our making.
            if not module.startswith(f"{other}.") and (circle := visit(other, [*path, module])):
                return circle
        done.add(module)
        return []

    return next((circle for module in graph if (circle := visit(module, []))), [])


def test_a_package_imports_only_packages_above_it() -> None:
    wrong = complaints(graph_of(modules_of(SOURCE)), PACKAGES)
    assert not wrong, "\n".join(["", *wrong])


def test_every_row_is_a_package() -> None:
    on_disk = {p.stem for p in SOURCE.iterdir() if (p / "__init__.py").exists() or p.suffix == ".py"} - {"__init__"}
    assert on_disk == set(PACKAGES)


def test_there_is_no_circle_of_imports() -> None:
    assert not cycle_in(graph_of(modules_of(SOURCE)))


def test_the_package_does_not_need_the_studies() -> None:
    graph = graph_of({**modules_of(SOURCE), **modules_of(ROOT / "studies", "studies")})
    assert not [(one, two) for one in graph if one.startswith("sidelight") for two in graph[one] if "studies" in two]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("", []),
        ("import os, torch", []),
        ("from sidelight.low import x", []),
        ("from sidelight import low, __version__", []),
        ("from sidelight import high", ["sidelight.mid:1 may not import sidelight.high"]),
        ("import sidelight.high as h", ["sidelight.mid:1 may not import sidelight.high"]),
        ("from .high import x", ["sidelight.mid:1 may not import sidelight.high"]),
        ("from . import high", ["sidelight.mid:1 may not import sidelight.high"]),
        ("def f():\n    from sidelight.high import x", ["sidelight.mid:2 may not import sidelight.high"]),
        ("from sidelight.pack.inner import x", ["sidelight.mid:1 may not import sidelight.pack.inner"]),
        ("from sidelight.pack import inner", ["sidelight.mid:1 may not import sidelight.pack.inner"]),
        ("from sidelight.pack import name", ["sidelight.mid:1 may not import sidelight.pack"]),
        ("import_module('sidelight.high')", ["sidelight.mid:1 may not import sidelight.high"]),
        ("'sidelight.high is named in a sentence'", []),
        (
            "from sidelight import Grounder",
            ["sidelight.mid:1 imports the public names; import from the module that defines them"],
        ),
    ],
)
def test_the_check_sees_every_kind_of_import(tmp_path: Path, code: str, expected: list[str]) -> None:
    files = {"__init__": "", "low": "", "mid": code, "high": "", "pack/__init__": "", "pack/inner": ""}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(text)
    assert complaints(graph_of(modules_of(tmp_path)), ("low", "mid", "high", "pack")) == expected


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ((), ["a: has no row in PACKAGES", "b: has no row in PACKAGES"]),
        (("a", "b"), []),
        (("b", "a"), ["sidelight.b:1 may not import sidelight.a"]),
    ],
)
def test_the_check_sees_wrong_rows(tmp_path: Path, order: tuple[str, ...], expected: list[str]) -> None:
    (tmp_path / "a.py").touch()
    (tmp_path / "b.py").write_text("import sidelight.a")
    assert complaints(graph_of(modules_of(tmp_path)), order) == expected


@pytest.mark.parametrize(
    ("imports", "circle"),
    [
        ({}, []),
        ({"a": ["b"], "b": []}, []),
        ({"a": ["b"], "b": ["a"]}, ["a", "b", "a"]),
        ({"a": ["b"], "b": ["c"], "c": ["b"]}, ["b", "c", "b"]),
        ({"a": ["b", "c"], "b": ["c"], "c": []}, []),
        ({"p": ["p.x"], "p.x": ["p", "q"], "q": []}, []),
    ],
)
def test_the_check_sees_circles(imports: dict[str, list[str]], circle: list[str]) -> None:
    assert cycle_in({name: dict.fromkeys(others, 1) for name, others in imports.items()}) == circle


@pytest.mark.parametrize(
    "code",
    [
        "import sidelight",
        "import sidelight.export.plot; from sidelight import Grounding, Moment",
        "import sidelight.core.timeline, sidelight.core.spans, sidelight.data.annotations, sidelight.metrics",
        "import sidelight.cli.main",
        "import sys; sys.argv = ['sidelight', '--help']\n"
        "from sidelight.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass",
    ],
    ids=["package", "words", "light modules", "cli", "help"],
)
def test_light_imports_stay_light(code: str) -> None:
    """`sidelight --help` answers in under half a second only as long as none of these is imported."""
    report = f"\nimport sys; print('HEAVY', *[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["HEAVY"]
