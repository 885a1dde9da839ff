"""Check the rules of plain English that a program can check: docstrings and names (see CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    p for folder in ("src", "studies", "benchmarks", "examples", "tests") for p in (ROOT / folder).rglob("*.py")
)

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
            case ast.ExceptHandler(name=str(name)) | ast.alias(asname=str(name)) | ast.MatchAs(name=str(name)):
                yield node.lineno, name


def complaints(code: str) -> list[str]:
    """Return a sentence, which starts with its line, for each docstring and each name that breaks the rules."""
    tree = ast.parse(code)
    wrong = [f"{line}: {text.splitlines()[0]}" for line, text in docstrings(tree) if NOT_A_VERB.match(text)]
    return wrong + [f"{line}: the name {name} says nothing" for line, name in names(tree) if name in SAY_NOTHING]


def test_docstrings_start_with_a_verb_and_names_say_something() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{complaint}"
        for path in FILES
        for complaint in complaints(path.read_text(encoding="utf-8"))
    ]
    assert not wrong, "\n".join(["", *wrong])


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("", 0),
        ("def f():\n    '''Return the answer.'''", 0),
        ("def f():\n    '''The answer.'''", 1),
        ("found = 1", 1),
        ("f(said=1)", 1),
        ("def f(there, odd): ...", 2),
        ("x.odd", 1),
        ("try: ...\nexcept ValueError as found: ...", 1),
        ("import a as said", 1),
        ("match x:\n    case [came]: ...", 1),
    ],
)
def test_the_check_sees_what_it_should(code: str, count: int) -> None:
    assert len(complaints(code)) == count
