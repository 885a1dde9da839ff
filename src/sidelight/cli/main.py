"""Find the command that the user typed, run it, and turn errors into messages.

A user's mistake is one sentence on stderr and exit code 2. Each command imports what it needs, so
``sidelight --help`` answers at once.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Literal, TextIO

from sidelight.cli.parser import (
    Command,
    Group,
    command_parser,
    is_configured,
    option_names,
    require_safe_paths,
    set_verbosity,
    summary,
)
from sidelight.core.messages import did_you_mean
from sidelight.io.new_folders import parent_folders

_LOGGER = logging.getLogger("sidelight")

COMMANDS: dict[str, str] = {
    "ground": "sidelight.cli.ground",
    "summarize": "sidelight.cli.summarize",
    "demo": "sidelight.cli.ground",
    "export": "sidelight.cli.export",
    "library": "sidelight.cli.library",
    "search": "sidelight.cli.library",
    "serve": "sidelight.cli.serve",
    "mcp": "sidelight.cli.serve",
    "train": "sidelight.cli.train",
    "predict": "sidelight.cli.train",
    "evaluate": "sidelight.cli.scores",
    "compare": "sidelight.cli.scores",
    "calibrate": "sidelight.cli.scores",
    "data": "sidelight.cli.data",
    "extract": "sidelight.cli.features",
    "features": "sidelight.cli.features",
    "shapes": "sidelight.cli.data",
    "recipes": "sidelight.cli.train",
    "summary": "sidelight.cli.train",
    "convert": "sidelight.cli.convert",
    "models": "sidelight.cli.models",
    "cache": "sidelight.cli.models",
    "pretrain": "sidelight.cli.train",
    "completion": "sidelight.cli.main",
}
"""The module of each command; the module's function (or group of sub-commands) has the command's name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    Args:
        argv: the arguments after ``sidelight``; those of the process unless given.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal or a pipe may have an encoding without bars and accents, such as ASCII or cp1252.
            stream.reconfigure(errors="backslashreplace")
    name, *arguments = (sys.argv[1:] if argv is None else argv) or [""]
    _log_to_stderr()
    # People who train want to see the warnings of other packages; for others they are noise.
    warnings.showwarning = _warning_printer(shows_others=name in ("train", "pretrain"))
    try:
        return _dispatch(name, arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has ended (`| head`), which is no error for the user.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, ValueError) as error:
        if _LOGGER.isEnabledFor(logging.DEBUG):
            traceback.print_exc()
        if not isinstance(error, OSError):
            return _fail(" ".join(str(error).split()))
        if error.filename is None:
            return _fail(str(error) if error.errno is None else f"a file cannot be read or written: {error.strerror}")
        return _fail(f"{os.fsdecode(error.filename)} cannot be read or written: {error.strerror}")


class _StderrHandler(logging.Handler):
    """Print what sidelight logs on stderr, without time and level."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def _log_to_stderr() -> None:
    """Show on stderr what the library logs; ``set_verbosity`` chooses how much."""
    if not any(isinstance(handler, _StderrHandler) for handler in _LOGGER.handlers):
        _LOGGER.addHandler(_StderrHandler())
    _LOGGER.setLevel(logging.INFO)


def _dispatch(name: str, arguments: Sequence[str]) -> int:
    if name in ("", "-h", "--help", "help"):
        print(_usage(), flush=True)
        return 0 if name else 2
    if name == "--version":
        from sidelight import __version__

        print(f"sidelight {__version__}", flush=True)
        return 0
    if name not in COMMANDS:
        raise ValueError(
            f"there is no command {name!r}{did_you_mean(name, COMMANDS)} (sidelight --help lists all commands)"
        )
    return _run(command_of(name), f"sidelight {name}", arguments)


def command_of(name: str) -> Command | Group:
    """Return the function of a command, or its group of sub-commands.

    Args:
        name: a key of :data:`COMMANDS`.
    """
    command: Command | Group = getattr(import_module(COMMANDS[name]), name)
    return command


def _run(command: Command | Group, prog: str, arguments: Sequence[str]) -> int:
    """Parse the arguments of a command, call its function, and return the exit code."""
    if isinstance(command, Group):
        return _run_group(command, prog, arguments)
    if is_configured(command):
        from sidelight.cli.configured import run_configured

        return run_configured(command, prog, arguments)
    values = command_parser(command, prog).values(arguments)
    set_verbosity(quiet=values.pop("quiet"), verbose=values.pop("verbose"))
    with parent_folders(require_safe_paths(command, values)), option_names(values):
        return command(**values) or 0


def _run_group(group: Group, prog: str, arguments: Sequence[str]) -> int:
    name, *rest = arguments or [""]
    if name in group.commands:
        return _run(group.commands[name], f"{prog} {name}", rest)
    if group.default is not None and (not name or name.startswith("-")) and name not in ("-h", "--help"):
        return _run(group.default, prog, arguments)
    if name not in ("-h", "--help"):
        problem = f"{prog} has no sub-command {name!r}" if name else f"{prog} needs a sub-command"
        hint = did_you_mean(name, group.commands)
        raise ValueError(f"{problem}; expected one of {', '.join(group.commands)}{hint} (see {prog} --help)")
    print(f"{group.summary}\n")
    if group.default is not None:
        print(f"{command_parser(group.default, prog).format_usage()}  {summary(group.default)}\n")
    for sub_name, command in group.commands.items():
        print(f"{command_parser(command, f'{prog} {sub_name}').format_usage()}  {summary(command)}\n")
    print(f"{prog} SUBCOMMAND --help explains the options.")
    raise SystemExit(0)


def completion(shell: Literal["bash", "zsh"]) -> None:
    """Print a script that completes commands, options and file names with the Tab key.

    For bash, add this line to ~/.bashrc:  eval "$(sidelight completion bash)"
    For zsh, add this line to ~/.zshrc:    eval "$(sidelight completion zsh)"

    Args:
        shell: your shell.
    """
    from sidelight.cli.completion import completion_script

    print(completion_script({name: command_of(name) for name in COMMANDS}, shell))


def _usage() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {summary(command_of(name))}" for name in COMMANDS)
    return (
        "sidelight finds moments in video by a sentence.\n\n"
        "usage: sidelight COMMAND ...\n\n"
        f"commands:\n{rows}\n\n"
        "sidelight COMMAND --help explains a command; sidelight --version prints the version.\n\n"
        'example: sidelight ground holiday.mp4 "the dog jumps into the water" --plot answer.png'
    )


def _fail(sentence: str) -> int:
    print(f"sidelight: {sentence}", file=sys.stderr)
    return 2


def _warning_printer(*, shows_others: bool) -> Callable[..., None]:
    """Return a function that prints each of sidelight's own warnings once, as one line.

    Args:
        shows_others: print warnings of other packages too, which are for developers.
    """
    printed: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category.__module__.startswith("sidelight"):
            if str(message) not in printed:
                printed.add(str(message))
                print(f"sidelight: warning: {message}", file=sys.stderr)
        elif shows_others or _LOGGER.isEnabledFor(logging.DEBUG):
            print(warnings.formatwarning(message, category, filename, lineno, line), end="", file=sys.stderr)

    return show
