"""Run a command that takes a configuration: a recipe, or the settings of pretraining.

A YAML file gives the values, and options such as ``--train.lr 2e-4`` replace single values. jsonargparse makes the
options from the fields of the configuration's dataclasses and from the docstrings below the fields.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from sidelight.cli.parser import Command, add_parameters, add_verbosity, option_names, set_verbosity, summary
from sidelight.io.files import require_regular
from sidelight.recipes import command_of, recipe_file
from sidelight.training.recipe import (
    add_recipe_arguments,
    file_of,
    naming,
    options_in,
    plain_mistake,
    recipe_from,
    recipe_parser,
)

Build = Callable[[Namespace, ArgumentParser, Sequence[str]], Any]
"""Make a configuration from parsed arguments; the last value names the fields that were typed."""


def run_configured(command: Command, prog: str, arguments: Sequence[str]) -> int:
    """Parse the arguments of a command, call its function with the configuration, and return the exit code.

    Raises:
        ValueError: for unknown, missing or wrong arguments; names the recipe if the mistake is in the recipe.
    """
    if not arguments:
        raise ValueError(f"{prog} needs a recipe: a YAML file, or a name that `sidelight recipes` lists")
    name = None if arguments[0].startswith("-") else arguments[0]
    if name is not None:
        arguments = ["--config", str(recipe_file(name)), *arguments[1:]]
    recipe, options = _recipe_in(arguments), options_in(arguments)
    if recipe is not None:
        proper, typed = command_of(recipe), prog.rpartition(" ")[2]
        if "pretrain" in (proper, typed) and proper != typed:
            raise ValueError(f"{name or recipe} is a recipe for `sidelight {proper}`, not for `{prog}`")
    with naming(recipe, options):
        parser, build, flags = configured_parser(command, prog, arguments)
    if recipe is not None and not {"-h", "--help"}.isdisjoint(arguments):
        with contextlib.suppress(UnicodeDecodeError):  # jsonargparse would refuse UTF-16
            Path(recipe).read_text(encoding="utf-8")
            parser.default_config_files = [recipe]  # help shows the recipe's values as defaults
    try:
        parsed = parser.parse_args(arguments)
    except (ArgumentError, ValueError) as error:
        raise ValueError(f"{plain_mistake(error, parser, recipe, arguments)} (see {prog} --help)") from None
    set_verbosity(quiet=parsed["quiet"], verbose=parsed["verbose"])
    with naming(file_of(parsed), options), option_names(options, "_"):
        return command(build(parsed, parser, options), **{name: parsed[name] for name in flags}) or 0


def _recipe_in(arguments: Sequence[str]) -> str | None:
    """Return the file of the recipe in the arguments; None if they have none, or it does not exist."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, _, value = argument.partition("=")
        if name != "--config":
            continue
        require_regular(value or following)
        if Path(value or following).is_file():
            return value or following
    return None


def configured_parser(
    command: Command, prog: str, arguments: Sequence[str] = ()
) -> tuple[ArgumentParser, Build, list[str]]:
    """Return the parser of a command, the function that makes its configuration, and its other parameters.

    Args:
        command: a command whose first parameter is a configuration.
        prog: the command as the user types it.
        arguments: the arguments to be parsed; which options a recipe has depends on its side-tuner.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = recipe_parser(
        prog=prog, description=f"{summary(command)}.", exit_on_error=False, default_env=False, allow_abbrev=False
    )
    flags = add_parameters(parser, command)
    add_verbosity(parser)
    usage = "".join(f" [--{name.replace('_', '-')}]" for name in flags)
    if next(iter(inspect.signature(command).parameters.values())).annotation == "Recipe":
        parser.usage = f"{prog} RECIPE{usage} [--train.lr LR ...]"
        add_recipe_arguments(parser, arguments)
        return parser, recipe_from, flags
    from sidelight.backbones.shapes.pretrain import PretrainConfig

    parser.usage = f"{prog} RECIPE{usage} [--steps STEPS ...]"
    parser.add_argument("--config", action="config", help="a YAML file with the fields below")
    parser.add_class_arguments(PretrainConfig)
    fields = [field.name for field in dataclasses.fields(PretrainConfig)]

    def build(parsed: Namespace, parser: ArgumentParser, options: Sequence[str]) -> PretrainConfig:
        built = parser.instantiate(parsed)
        return PretrainConfig(**{name: built[name] for name in fields})

    return parser, build, flags
