"""Build the parser of a command from its function.

Names, types and defaults come from the signature, help texts from the docstring:

- A parameter before ``*`` is a positional argument; one with a default may be left out. ``min_score`` after ``*`` is
  the option ``--min-score``.
- ``bool`` is a flag. ``list[...]`` takes one or more values. ``Literal[...]`` takes one of its values.
- ``Annotated[..., Option(...)]`` sets how help shows the value, and the help of options that several commands share.
  It also says whether the value is a path that the command reads or writes; ``require_safe_paths`` compares them.
- ``configured.py`` reads a first parameter of type ``Recipe`` or ``PretrainConfig`` from a YAML file and from options.

The parser is argparse's. jsonargparse reads signatures too, but it writes options with underscores, flags take a value,
and its messages do not name an option as the user typed it. Each sub-command has a parser of its own for this reason.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from sidelight.core.messages import did_you_mean

CONFIGURATIONS = ("Recipe", "PretrainConfig")
"""Types of parameters that ``configured.py`` reads."""

Command = Callable[..., int | None]
"""A command returns its exit code; None is 0."""


@dataclass(frozen=True)
class Group:
    """A command that has sub-commands, such as ``sidelight data``."""

    summary: str
    commands: Mapping[str, Command]
    default: Command | None = None
    """Runs where no sub-command is named; its parameters are all options."""


@dataclass(frozen=True)
class Option:
    """How help shows an option."""

    metavar: str
    """Placeholder of the value, such as FILE."""
    help: str = ""
    """Help text, for options whose command does not explain them in its docstring."""
    path: Literal["", "input", "output file", "output folder"] = ""
    """Whether the value is a path, and what the command does with it."""


class Parser(argparse.ArgumentParser):
    """A parser that raises ValueError for a user's mistake, instead of ending the process."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def values(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Return the value of each argument by its name.

        Args:
            arguments: what the user typed after the command.

        Raises:
            ValueError: for a user's mistake.
        """
        # argparse looks for a positional argument that may be left out only in one place, before the first option.
        may_be_left_out = any(not action.option_strings and action.nargs == "?" for action in self._actions)
        parse = self.parse_intermixed_args if may_be_left_out else self.parse_args
        return vars(parse(arguments))

    def error(self, message: str) -> NoReturn:
        """Raise ValueError with the message in plain words, and the command that explains the options."""
        if match := re.match(r"argument (\S+): invalid choice: (['\"])(.*?)\2", message):
            name, value = match[1], match[3]
            choices = next(a.choices for a in self._actions if name in (a.dest, *a.option_strings)) or ()
            message = f"{name} must be one of {', '.join(choices)}, got {value!r}{did_you_mean(value, choices)}"
        elif match := re.match(r"argument (\S+): (must be .*)", message):
            message = f"{match[1]} {match[2]}"
        elif message.startswith("unrecognized arguments: "):
            message += option_hint(message.split()[2], self._option_string_actions)
        raise ValueError(f"{message} (see {self.prog} --help)")


def summary(command: Command | Group) -> str:
    """Return the first sentence about a command, without its full stop."""
    text = command.summary if isinstance(command, Group) else inspect.getdoc(command) or ""
    return " ".join(text.split("\n\n")[0].split()).removesuffix(".")


@contextlib.contextmanager
def option_names(names: Iterable[str], underscore: str = "-") -> Iterator[None]:
    """Name the option as it is typed in errors that begin with a parameter: "side must be ..." -> "--side must be ...".

    Args:
        names: the parameters of the command.
        underscore: what an option has in place of an underscore; options of recipes keep it.
    """
    try:
        yield
    except ValueError as error:
        parameter = re.match(r"(?:\w+\.)?(\w+)(?= must be )", str(error))
        if parameter is None or parameter[1] not in names:
            raise
        raise ValueError(f"--{parameter[1].replace('_', underscore)}{str(error)[parameter.end() :]}") from None


def option_hint(argument: str, options: Iterable[str]) -> str:
    """Return a suggestion for a misspelt option, or nothing.

    Args:
        argument: what the user typed, such as --tpo=3.
        options: the options of the command.
    """
    return did_you_mean(argument.partition("=")[0], options) if argument.startswith("-") else ""


def is_configured(command: Command) -> bool:
    """Check whether the first parameter of a command is a configuration."""
    first = next(iter(inspect.signature(command).parameters.values()), None)
    return first is not None and first.annotation in CONFIGURATIONS


def command_parser(command: Command, prog: str) -> Parser:
    """Return the parser of a command that takes no configuration."""
    text = (inspect.getdoc(command) or "").split("Args:")[0].rstrip()
    parser = Parser(prog=prog, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_parameters(parser, command)
    add_verbosity(parser)
    return parser


def add_verbosity(parser: argparse.ArgumentParser) -> None:
    """Add ``--quiet`` and ``--verbose``, which every command has and :func:`set_verbosity` reads."""
    parser.add_argument(
        "--quiet", action="store_true", help="show only results, warnings and errors; no progress and no notes"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="show details, the warnings of other packages, and where an error arose"
    )


def set_verbosity(*, quiet: bool, verbose: bool) -> None:
    """Choose how much sidelight says on stderr.

    Args:
        quiet: no progress bars, announcements and notes.
        verbose: details for developers too.

    Raises:
        ValueError: if both are true.
    """
    if quiet and verbose:
        raise ValueError("--quiet and --verbose exclude each other; give one of them")
    logging.getLogger("sidelight").setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)
    if quiet:
        os.environ["TQDM_DISABLE"] = "1"


def add_parameters(parser: argparse.ArgumentParser, command: Command) -> list[str]:
    """Add an argument for each parameter of a command, except configurations; return the parameters' names."""
    from docstring_parser import parse

    hints = get_type_hints(command, localns=dict.fromkeys(CONFIGURATIONS, object), include_extras=True)
    texts = {text.arg_name: text.description for text in parse(command.__doc__ or "").params}
    parameters = inspect.signature(command).parameters
    names = [name for name, parameter in parameters.items() if parameter.annotation not in CONFIGURATIONS]
    for name in names:
        settings = _settings(hints[name])
        settings["help"] = (
            " ".join((texts.get(name) or settings.get("help", "")).split()).removesuffix(".").replace("%", "%%")
        )
        default = parameters[name].default
        if parameters[name].kind is not inspect.Parameter.KEYWORD_ONLY:
            settings.pop("metavar", None)  # argparse would name the argument by it in messages
            if default is not inspect.Parameter.empty:
                settings |= {"nargs": "*" if "nargs" in settings else "?", "default": default}
            parser.add_argument(name, **settings)
            continue
        if default not in (inspect.Parameter.empty, None, False, ""):
            settings["help"] += f" (default: {default})"
        required = default is inspect.Parameter.empty
        settings |= {"required": True} if required else {"default": default}
        parser.add_argument(f"--{name.replace('_', '-')}", **settings)
    return names


def require_safe_paths(command: Command, values: Mapping[str, Any]) -> list[str]:
    """Check that a command reads no pipe and no device, writes no file that it reads, and no file twice.

    Args:
        command: the command.
        values: its arguments, by the name of the parameter.

    Returns:
        The files that it writes.

    Raises:
        ValueError: see :func:`sidelight.io.files.require_outputs` and :func:`sidelight.io.files.require_regular`.
    """
    from sidelight.io.files import require_outputs, require_regular

    hints = get_type_hints(command, localns=dict.fromkeys(CONFIGURATIONS, object), include_extras=True)
    kinds = {name: path_kind(hints[name]) for name, value in values.items() if value and value != "-"}
    parameters = inspect.signature(command).parameters
    # A default, such as the model "shapes", is a packaged name and not a folder of the user.
    inputs = [values[name] for name in kinds if kinds[name] == "input" and values[name] != parameters[name].default]
    paths = [path for value in inputs for path in (value if isinstance(value, list) else [value])]
    for path in paths:
        require_regular(path)
    for kind in ("output file", "output folder"):
        outputs = {f"--{name.replace('_', '-')}": values[name] for name in kinds if kinds[name] == kind}
        require_outputs(outputs, paths, folders=kind == "output folder")
    return [values[name] for name in kinds if kinds[name] == "output file" and "://" not in values[name]]


def path_kind(hint: Any) -> str:
    """Return how a command uses a path of this type (``Option.path``); empty for a type that is no path."""
    if get_origin(hint) is Annotated:
        return str(get_args(hint)[1].path)
    return next((kind for part in get_args(hint) if (kind := path_kind(part))), "")


def _settings(hint: Any) -> dict[str, Any]:
    """Return what ``add_argument`` needs to know about a type."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return {**_settings(parts[0]), "metavar": parts[1].metavar, "help": parts[1].help}
    if origin in (Union, UnionType):
        return _settings(next(part for part in parts if part is not NoneType))
    if origin is list:
        return {**_settings(parts[0]), "nargs": "+"}
    if origin is Literal:
        return {"choices": parts}
    if hint is bool:
        return {"action": "store_true"}
    return {"type": _whole_number if hint is int else _number if hint is float else hint}


def _whole_number(text: str) -> int:
    """Return an int, or raise the error that argparse shows beside the option's name."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None


def _number(text: str) -> float:
    """Return a finite float, or raise the error that argparse shows beside the option's name."""
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    raise argparse.ArgumentTypeError(f"must be a finite number, got {text!r}")
