"""Check the rules of plain English that a program can check: docstrings and names (see CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(p for folder in ("src", "studies", "benchmarks", "tests") for p in (ROOT / folder).rglob("*.py"))

NOT_A_VERB = re.compile(
    r"(A|An|The|This|That|These|Those|There|Here|It|Its|They|What|Which|Who|Whose|Where|When|Whether|How|Why|One|All|"
    r"Each|Every|Some|Any|No|None|Not|Of|In|On|At|To|For|By|As|With|Without|From|If|So|Such|And|Or)\b"
)
"""Ruff's rule D401 knows verbs in a wrong form; this finds docstrings that start with no verb at all."""
SAY_NOTHING = {"found", "said", "there", "asked", "odd", "came"}
"""Names that do not say what their value is."""


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, docstring) of each function that has a docstring."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (text := ast.get_docstring(node)):
            yield node.lineno, text


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of each variable, parameter, attribute, function and class."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name


def test_docstrings_start_with_a_verb_and_names_say_something() -> None:
    wrong = []
    for path in FILES:
        tree, where = ast.parse(path.read_text(encoding="utf-8")), path.relative_to(ROOT)
        wrong += [f"{where}:{n}: {text.splitlines()[0]}" for n, text in docstrings(tree) if NOT_A_VERB.match(text)]
        wrong += [f"{where}:{n}: the name {name} says nothing" for n, name in names(tree) if name in SAY_NOTHING]
    assert not wrong, "\n".join(["", *wrong])


@pytest.mark.parametrize(
    "code", ["def f():\n    '''The answer.'''", "found = 1", "f(said=1)", "def f(there): ...", "x.odd"]
)
def test_the_check_sees_what_it_should(code: str) -> None:
    tree = ast.parse(code)
    assert any(NOT_A_VERB.match(text) for _, text in docstrings(tree)) or SAY_NOTHING & {
        name for _, name in names(tree)
    }
