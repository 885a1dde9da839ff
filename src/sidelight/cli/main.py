"""The commands: parse, call, print.

A user's mistake is one sentence on stderr and exit code 2. Everything heavy is imported by the command that needs it,
so that ``sidelight --help`` answers at once.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

COMMANDS: dict[str, str] = {
    "ground": "find moments in a video by a sentence",
    "demo": "make a video that no model has seen, ground three queries in it, draw the result",
    "train": "train a side-tuner by a recipe",
    "predict": "predict for annotations, in the QVHighlights submission form",
    "evaluate": "score predictions against annotations by the benchmark's published metrics",
    "compare": "compare two predictions of the same annotations: differences, intervals, p-values",
    "calibrate": "see how reliable scores are, and choose from which score on there is no such moment",
    "data": "check annotations, videos and features; import your own",
    "extract": "extract the features of videos and queries into a store",
    "features": "write features in the layouts that papers released, and import them",
    "shapes": "make a world of labelled synthetic videos",
    "recipes": "list the recipes that ship with sidelight",
    "summary": "print the parameters of a recipe's model, by module",
    "convert": "turn a checkpoint that others published into one of ours",
    "pretrain": "train the embedded backbone on the shapes world",
}
_MODULES = {
    "ground": ("ground", "demo"),
    "train": ("train", "pretrain", "recipes", "summary", "predict"),
    "scores": ("evaluate", "compare", "calibrate"),
    "data": ("data", "shapes"),
    "features": ("extract", "features"),
    "convert": ("convert",),
}
MODULES: dict[str, str] = {name: f"sidelight.cli.{module}" for module, names in _MODULES.items() for name in names}
"""Where a command stands."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from sidelight import __version__

        print(f"sidelight {__version__}")
        return 0
    name = arguments.pop(0)
    if name not in COMMANDS:
        return _fail(f"there is no command {name!r}; known are {', '.join(COMMANDS)} (see sidelight --help)")
    if name not in ("train", "pretrain"):  # people who train want to see what other packages say
        warnings.showwarning = _show_warning
    try:
        return _run(name, arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`| head`): no news for the user.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        return _fail(" ".join(str(error).split()))


def _run(name: str, arguments: list[str]) -> int:
    from argparse import ArgumentError

    from jsonargparse import ArgumentParser, set_parsing_settings

    # The sentence below each field of a configuration is its help.
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    commands = import_module(MODULES[name])
    add: Callable[..., None] = getattr(commands, f"add_{name}")
    run: Callable[[Namespace, ArgumentParser], int] = getattr(commands, f"run_{name}")
    parser = ArgumentParser(
        prog=f"sidelight {name}", description=COMMANDS[name], exit_on_error=False, default_env=False, allow_abbrev=False
    )
    arguments = _with_config(name, arguments)
    file = arguments[1] if arguments[:1] == ["--config"] and arguments[1:] else None
    try:
        # A recipe's options depend on the side-tuner that it names.
        add(parser, arguments) if name in ("train", "summary") else add(parser)
        parsed = parser.parse_args(arguments)
    except (ArgumentError, ValueError) as error:
        # The parser calls the options of a sub-command "import.out".
        said = re.sub(
            r"\b(?:check|import|export|verify|r2-tuning|internvideo2|clip)\.(\w+)",
            r"--\1",
            " ".join(str(error).split()),
        )
        # What the command line says beside the recipe is no mistake of the recipe.
        options = (argument.lstrip("-").partition("=")[0] for argument in arguments[2:] if argument.startswith("--"))
        where = f"recipe {file}: " if file and not any(option in said for option in options) else ""
        raise ValueError(f"{where}{said} (see sidelight {name} --help)") from None
    return run(parsed, parser)


def _with_config(name: str, arguments: list[str]) -> list[str]:
    """`sidelight train RECIPE.yaml` is short for `sidelight train --config RECIPE.yaml`."""
    takes_config = name in ("train", "summary", "pretrain")
    if takes_config and not arguments:
        raise ValueError(f"sidelight {name} needs a recipe: a YAML file, or a name that `sidelight recipes` lists")
    if takes_config and arguments and not arguments[0].startswith("-"):
        from sidelight.recipes import recipe_file

        return ["--config", str(recipe_file(arguments[0])), *arguments[1:]]
    return arguments


def _usage() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "sidelight finds moments in video by a sentence.\n\n"
        "usage: sidelight COMMAND ...\n\n"
        f"commands:\n{rows}\n\n"
        "sidelight COMMAND --help says more; sidelight --version tells the version.\n\n"
        'example: sidelight ground holiday.mp4 "the dog jumps into the water" --plot answer.png'
    )


def _fail(sentence: str) -> int:
    print(f"sidelight: {sentence}", file=sys.stderr)
    return 2


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own warnings as one line; other packages' are for developers, not users."""
    if category.__module__.startswith("sidelight"):
        print(f"sidelight: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
