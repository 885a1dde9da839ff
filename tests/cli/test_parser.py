"""Test how a function's signature and docstring become a parser."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest

from sidelight.cli.parser import Group, Option, command_parser, is_configured, summary

Shared = Annotated[str, Option("NAME", "explained once, for 100 % of commands")]


def command(
    first: str,
    rest: list[str],
    *,
    out: Annotated[str, Option("FILE")],
    shared: Shared | None = None,
    max_count: int = 3,
    ratio: float | None = None,
    kind: Literal["a", "b"] = "a",
    names: list[str] | None = None,
    dry_run: bool = False,
) -> None:
    """Do something
    with arguments.

    Args:
        first: the first one.
        rest: all others.
        out: where to
            write.
        max_count: how many.
    """


DEFAULTS = {"shared": None, "max_count": 3, "ratio": None, "kind": "a", "names": None, "dry_run": False}
DEFAULTS |= {"quiet": False, "verbose": False}


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("x y --out o", {"first": "x", "rest": ["y"], "out": "o"}),
        ("x y z --out=o --dry-run", {"first": "x", "rest": ["y", "z"], "out": "o", "dry_run": True}),
        ("--out o --max-count 0 x y", {"first": "x", "rest": ["y"], "out": "o", "max_count": 0}),
        ("x y --out o --ratio 1e-2", {"first": "x", "rest": ["y"], "out": "o", "ratio": 0.01}),
        ("x y --out o --max-count -1", {"first": "x", "rest": ["y"], "out": "o", "max_count": -1}),
        ("x y --out o --kind b", {"first": "x", "rest": ["y"], "out": "o", "kind": "b"}),
        ("x y --names n m --out o", {"first": "x", "rest": ["y"], "out": "o", "names": ["n", "m"]}),
    ],
)
def test_values(line: str, values: dict[str, Any]) -> None:
    assert vars(command_parser(command, "prog").parse_args(line.split())) == DEFAULTS | values


@pytest.mark.parametrize("line", ["a --top 3", "a b --top 3", "a --top 3 b", "--top 3 a b"])
def test_a_positional_argument_with_a_default_may_be_left_out(line: str) -> None:
    def convert(source: str, out: str | None = None, *, top: int = 1) -> None:
        """Convert."""

    values = command_parser(convert, "prog").values(line.split())
    assert (values["source"], values["out"], values["top"]) == ("a", "b" if "b" in line else None, 3)
    with pytest.raises(ValueError, match=r"the following arguments are required: source"):
        command_parser(convert, "prog").values([])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the following arguments are required: first, rest, --out (see prog --help)"),
        ("x y --out o --max 1", "unrecognized arguments: --max 1; did you mean '--max-count'? (see prog --help)"),
        ("x y --out o --max-count 1.5", "--max-count must be a whole number, got '1.5'"),
        ("x y --out o --ratio inf", "--ratio must be a finite number, got 'inf'"),
        ("x y --out o --kind c", "--kind must be one of a, b, got 'c' (see prog --help)"),
        ("x y --out", "argument --out: expected one argument"),
    ],
)
def test_messages_name_options_as_they_are_typed(line: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        command_parser(command, "prog").parse_args(line.split())
    assert message in str(error.value)


def test_help() -> None:
    text = " ".join(command_parser(command, "prog").format_help().split())
    assert "Do something with arguments." in text
    assert "--out FILE where to write " in text
    assert "--max-count MAX_COUNT how many (default: 3)" in text
    assert "--shared NAME explained once, for 100 % of commands" in text


def test_summary() -> None:
    assert summary(command) == "Do something with arguments"
    assert summary(Group("Do two things.", {"command": command})) == "Do two things"
    assert not is_configured(command)
