"""The way of the data: which module may import which.

MAY_IMPORT is the architecture, in the order of the way of the data. A module may only name modules above it,
so there can be no cycles. All imports count: at the top of a file, inside a function, under TYPE_CHECKING.
A new module gets a line here; an import that is not listed is a question to ask before it is a line to add.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "sidelight"

# module -> the modules of sidelight that it may import. A package's own name stands for its __init__.py, and
# the last line, sidelight itself, for the public names.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    # words everybody speaks
    "options": (),
    "files": (),
    "foreign": (),
    "timeline": (),
    "spans": (),
    "grounding": ("timeline",),
    # what is read from disk
    "references": (),
    "storage": ("files",),
    "decoding": ("references",),
    "video": ("decoding",),
    "decode_workers": ("storage", "timeline", "video"),
    "annotations": ("files", "timeline", "grounding"),
    # one module per benchmark, and own data
    "benchmarks.base": ("files", "annotations"),
    "benchmarks.qvhighlights": ("benchmarks.base",),
    "benchmarks.charades_sta": ("annotations", "benchmarks.base"),
    "benchmarks.tacos": ("benchmarks.base",),
    "benchmarks.activitynet": ("benchmarks.base",),
    "benchmarks.ego4d_nlq": ("annotations", "benchmarks.base"),
    "benchmarks.youtube_highlights": ("benchmarks.base",),
    "benchmarks.tvsum": ("benchmarks.base",),
    "benchmarks": (
        "annotations",
        "benchmarks.base",
        "benchmarks.qvhighlights",
        "benchmarks.charades_sta",
        "benchmarks.tacos",
        "benchmarks.activitynet",
        "benchmarks.ego4d_nlq",
        "benchmarks.youtube_highlights",
        "benchmarks.tvsum",
    ),
    "data_import": ("files", "timeline", "video", "annotations", "benchmarks.base"),
    # the shapes world
    "shapes.world": (),
    "shapes.language": ("shapes.world",),
    "shapes.render": ("shapes.world",),
    "shapes.generate": ("files", "timeline", "annotations", "shapes.world", "shapes.language", "shapes.render"),
    "shapes.statistics": ("annotations",),
    "shapes": ("shapes.generate", "shapes.statistics"),
    # frames -> features
    "backbones.protocol": (),
    "backbones.tokenizer": ("shapes.language",),
    "backbones.shapes": ("files", "backbones.protocol", "backbones.tokenizer"),
    "backbones.wordpiece": (),
    "backbones.bert": ("options",),
    "backbones.internvideo2": (
        "options",
        "files",
        "foreign",
        "backbones.protocol",
        "backbones.wordpiece",
        "backbones.bert",
    ),
    "backbones.clip": ("files", "foreign", "backbones.protocol"),
    "backbones": ("backbones.protocol", "backbones.shapes", "backbones.clip", "backbones.internvideo2"),
    "runtime": (),
    "pretrain": (
        "files",
        "runtime",
        "timeline",
        "video",
        "shapes",
        "shapes.world",
        "shapes.language",
        "shapes.render",
        "backbones.shapes",
    ),
    "features": ("files", "storage", "timeline", "backbones.protocol"),
    # features in the layouts that papers released
    "layouts.arrays": (),
    "layouts.files": ("features", "layouts.arrays"),
    "layouts.reading": (
        "timeline",
        "backbones.protocol",
        "backbones.clip",
        "backbones.internvideo2",
        "backbones",
        "features",
        "layouts.arrays",
        "layouts.files",
    ),
    "layouts.writing": (
        "files",
        "backbones.protocol",
        "features",
        "layouts.arrays",
        "layouts.files",
        "layouts.reading",
    ),
    "layouts": ("layouts.files", "layouts.reading", "layouts.writing"),
    "data_check": (
        "timeline",
        "annotations",
        "benchmarks",
        "benchmarks.base",
        "benchmarks.qvhighlights",
        "features",
        "layouts",
    ),
    "remote": ("storage", "backbones.protocol", "features"),
    "extract": (
        "files",
        "storage",
        "timeline",
        "video",
        "decode_workers",
        "backbones.protocol",
        "features",
        "remote",
    ),
    "extract_ray": ("storage", "decode_workers", "backbones", "features", "remote", "extract", "runtime"),
    # features -> predictions
    "batch": (),
    "labels": ("timeline", "annotations"),
    "dataset": ("timeline", "spans", "annotations", "features", "batch", "labels"),
    "models.layers": (),
    "models.deformable": ("models.layers",),
    "models.sdst": ("options", "batch", "models.layers", "models.deformable"),
    "models.points": ("options", "batch", "models.layers"),
    "models.r2_tuning": ("models.layers", "models.points"),
    "models.last_layer": ("models.layers", "models.points"),
    "models.lst": ("options", "models.layers", "models.points"),
    "models.e3va": ("options", "models.layers", "models.points"),
    "models.losa": ("options", "models.layers", "models.points"),
    "models": ("models.layers", "models.sdst"),
    "losses": ("options", "spans", "batch"),
    "losses_r2_tuning": ("options", "spans", "batch", "models.points", "losses"),
    # predictions -> groundings -> numbers; metrics know nothing of models
    "decode": ("options", "timeline", "spans", "grounding", "batch"),
    "decode_r2_tuning": ("options", "timeline", "spans", "grounding", "models.points", "decode"),
    "side_tuners": (
        "batch",
        "grounding",
        "models.sdst",
        "models.points",
        "models.r2_tuning",
        "models.last_layer",
        "models.lst",
        "models.e3va",
        "models.losa",
        "losses",
        "losses_r2_tuning",
        "decode",
        "decode_r2_tuning",
    ),
    "metrics.moment_retrieval": ("spans", "annotations"),
    "metrics.highlights": ("labels",),
    "metrics.pairing": ("annotations",),
    "metrics.calibration": ("spans", "annotations", "metrics.pairing"),
    "metrics.summarization": (),
    "metrics": ("annotations", "metrics.moment_retrieval", "metrics.highlights", "metrics.pairing"),
    "statistics": (),
    "compare": ("statistics",),
    # workflows
    "checkpoint": ("files", "backbones.protocol", "decode", "side_tuners"),
    "published": ("backbones.protocol", "losses_r2_tuning", "decode_r2_tuning", "models.r2_tuning"),
    "convert": ("files", "foreign", "checkpoint", "models.r2_tuning", "published"),
    "recipe": ("options", "layouts", "labels", "decode", "side_tuners"),
    "evaluate": (
        "labels",
        "annotations",
        "benchmarks",
        "benchmarks.base",
        "metrics",
        "metrics.highlights",
        "metrics.pairing",
        "metrics.calibration",
    ),
    "predict": ("timeline", "grounding", "annotations", "batch", "dataset", "decode", "side_tuners"),
    "train": (
        "files",
        "annotations",
        "backbones",
        "benchmarks",
        "benchmarks.base",
        "features",
        "layouts",
        "extract",
        "batch",
        "dataset",
        "side_tuners",
        "evaluate",
        "checkpoint",
        "convert",
        "recipe",
        "runtime",
        "predict",
    ),
    "train_check": (
        "annotations",
        "backbones",
        "backbones.protocol",
        "dataset",
        "evaluate",
        "extract",
        "features",
        "layouts",
        "predict",
        "recipe",
        "train",
    ),
    "grounder": (
        "timeline",
        "spans",
        "grounding",
        "video",
        "backbones",
        "backbones.protocol",
        "features",
        "extract",
        "dataset",
        "decode",
        "checkpoint",
        "convert",
        "predict",
        "files",
        "runtime",
    ),
    # what people do with a grounding
    "plot": ("files", "grounding"),
    "charts": ("files", "compare", "metrics.calibration"),
    "demo": ("annotations", "shapes.world", "shapes.generate", "grounding", "grounder"),
    "ablation": (),
    "ablation.paper": (),
    "ablation.variants": ("ablation.paper",),
    "ablation.run": (
        "files",
        "annotations",
        "backbones",
        "features",
        "extract",
        "dataset",
        "checkpoint",
        "recipe",
        "evaluate",
        "predict",
        "train",
        "grounder",
        "ablation.variants",
        "runtime",
    ),
    "ablation.inference": ("statistics",),
    "ablation.report": (
        "files",
        "statistics",
        "evaluate",
        "charts",
        "ablation.paper",
        "ablation.variants",
        "ablation.run",
        "ablation.inference",
    ),
    "ablation.offsets": (
        "files",
        "annotations",
        "features",
        "batch",
        "dataset",
        "models.deformable",
        "models.sdst",
        "losses",
        "statistics",
        "checkpoint",
        "charts",
        "ablation.variants",
        "ablation.run",
    ),
    "commands.shared": ("files",),
    "commands.ground": ("files", "grounding", "video", "grounder", "plot", "demo", "commands.shared"),
    "commands.train": (
        "annotations",
        "backbones",
        "runtime",
        "pretrain",
        "features",
        "layouts",
        "extract",
        "dataset",
        "models.layers",
        "side_tuners",
        "checkpoint",
        "convert",
        "recipe",
        "predict",
        "train",
        "train_check",
        "ablation.variants",
        "ablation.run",
        "ablation.report",
        "ablation.offsets",
        "commands.shared",
    ),
    "commands.scores": ("metrics.calibration", "statistics", "compare", "evaluate", "charts", "commands.shared"),
    "commands.data": ("files", "data_import", "shapes", "data_check", "commands.shared"),
    "commands.features": (
        "storage",
        "annotations",
        "benchmarks",
        "backbones",
        "runtime",
        "features",
        "layouts",
        "extract",
        "extract_ray",
        "recipe",
    ),
    "commands.convert": ("backbones.internvideo2", "backbones.clip", "backbones", "convert"),
    "commands": (),
    "cli": (
        "commands.ground",
        "commands.train",
        "commands.scores",
        "commands.data",
        "commands.features",
        "commands.convert",
    ),
    "sidelight": ("grounding", "grounder"),
}

HEAVY = ("torch", "av", "matplotlib", "scipy", "lightning_fabric", "safetensors", "huggingface_hub", "transformers")


def modules(source: Path) -> dict[str, Path]:
    """The modules under ``source`` by the names that MAY_IMPORT uses."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name or "sidelight"] = path
    return found


def imports(code: str, module: str, known: set[str], *, package: bool) -> Iterator[tuple[int, str]]:
    """(line, module of sidelight) of every import in ``code``, wherever it stands.

    A string that is the name of a module counts too: it is there to be given to ``import_module``.
    """
    here = [] if module == "sidelight" else module.split(".")
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first, _, rest = alias.name.partition(".")
                if first == "sidelight":
                    yield node.lineno, rest or "sidelight"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            first, _, rest = node.value.partition(".")
            if first == "sidelight" and rest in known:
                yield node.lineno, rest
        elif isinstance(node, ast.ImportFrom):
            if node.level:  # from . import x: counted from the package the module lies in
                base = here[: len(here) - node.level + package]
                target = ".".join([*base, *([node.module] if node.module else [])])
            elif node.module and node.module.split(".")[0] == "sidelight":
                target = node.module.partition(".")[2]
            else:
                continue
            for alias in node.names:
                inside = f"{target}.{alias.name}" if target else alias.name
                if inside in known:  # from sidelight import spans: spans is what is imported
                    yield node.lineno, inside
                elif not (target == "" and alias.name == "__version__"):  # a constant, not a dependency
                    yield node.lineno, target or "sidelight"


def complaints(source: Path, may_import: dict[str, tuple[str, ...]]) -> list[str]:
    """What is wrong, one sentence each; empty if the code is as ``may_import`` says."""
    found = modules(source)
    wrong = [f"{name}: has no line in MAY_IMPORT" for name in found if name not in may_import]
    wrong += [f"{name}: has a line in MAY_IMPORT but no file" for name in may_import if name not in found]
    above: set[str] = set()
    for name, allowed in may_import.items():
        wrong += [f"{name}: may not list {other}, which is not above it" for other in allowed if other not in above]
        above.add(name)
    for name, path in found.items():
        code = path.read_text(encoding="utf-8")
        for line, other in imports(code, name, set(found), package=path.name == "__init__.py"):
            if other != name and other not in may_import.get(name, ()):
                wrong.append(f"{path.name}:{line}: {name} may not import {other}")
    return wrong


def test_every_module_imports_only_what_its_line_allows() -> None:
    wrong = complaints(SOURCE, MAY_IMPORT)
    assert not wrong, "\n".join(["", *wrong])


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("", []),
        ("import os, torch", []),
        ("from sidelight.low import x", []),
        ("from sidelight import low, __version__", []),
        ("from sidelight import high", ["mid.py:1: mid may not import high"]),
        ("import sidelight.high as h", ["mid.py:1: mid may not import high"]),
        ("from .high import x", ["mid.py:1: mid may not import high"]),
        ("from . import high", ["mid.py:1: mid may not import high"]),
        ("def f():\n    from sidelight.high import x", ["mid.py:2: mid may not import high"]),
        ("from sidelight.pack.inner import x", ["mid.py:1: mid may not import pack.inner"]),
        ("from sidelight.pack import inner", ["mid.py:1: mid may not import pack.inner"]),
        ("from sidelight.pack import name", ["mid.py:1: mid may not import pack"]),
        ("import_module('sidelight.high')", ["mid.py:1: mid may not import high"]),
        ("'sidelight.high is named in a sentence'", []),
        ("from sidelight import Grounder", ["mid.py:1: mid may not import sidelight"]),
    ],
)
def test_the_check_sees_every_kind_of_import(tmp_path: Path, code: str, expected: list[str]) -> None:
    files = {"__init__": "", "low": "", "mid": code, "high": "", "pack/__init__": "", "pack/inner": ""}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(text)
    lines = {"low": (), "mid": ("low",), "high": ("mid",), "pack.inner": (), "pack": (), "sidelight": ()}
    assert complaints(tmp_path, lines) == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ({}, ["a: has no line in MAY_IMPORT", "b: has no line in MAY_IMPORT"]),
        ({"a": (), "b": ("a",)}, []),
        ({"a": (), "b": (), "c": ()}, ["c: has a line in MAY_IMPORT but no file"]),
        ({"a": ("b",), "b": ("a",)}, ["a: may not list b, which is not above it"]),
        ({"a": ("a",), "b": ()}, ["a: may not list a, which is not above it"]),
    ],
)
def test_the_check_sees_wrong_lines(tmp_path: Path, lines: dict[str, tuple[str, ...]], expected: list[str]) -> None:
    (tmp_path / "a.py").touch()
    (tmp_path / "b.py").touch()
    assert complaints(tmp_path, lines) == expected


@pytest.mark.parametrize(
    "code",
    [
        "import sidelight",
        "import sidelight.plot; from sidelight import Grounding, Moment",
        "import sidelight.timeline, sidelight.spans, sidelight.annotations, sidelight.metrics",
        "import sidelight.cli",
        "import sys; sys.argv = ['sidelight', '--help']\n"
        "from sidelight.cli import main\n"
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
