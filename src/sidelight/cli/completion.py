"""Write the script with which a shell completes commands, options and values of ``sidelight``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, Literal

import shtab

from sidelight.cli.parser import Command, Group, Parser, add_parameters, is_configured, summary
from sidelight.recipes import recipe_names

RECIPE = {"bash": "_sidelight_recipe", "zsh": "_sidelight_recipe"}
"""Shell functions that complete the name of a shipped recipe, or a file."""


def completion_script(commands: Mapping[str, Command | Group], shell: Literal["bash", "zsh"]) -> str:
    """Return the completion script of a shell.

    Args:
        commands: function or group of sub-commands, by the name of the command.
        shell: bash or zsh.
    """
    root = Parser(prog="sidelight")
    sub_parsers = root.add_subparsers()
    for name, command in commands.items():
        parser = sub_parsers.add_parser(name, help=summary(command))
        if isinstance(command, Group):
            if command.default is not None:
                _add_arguments(parser, command.default)
            group = parser.add_subparsers()
            for sub_name, sub_command in command.commands.items():
                _add_arguments(group.add_parser(sub_name, help=summary(sub_command)), sub_command)
        else:
            _add_arguments(parser, command)
    names = " ".join(recipe_names())
    preamble = {
        "bash": f'_sidelight_recipe() {{ compgen -W "{names}" -- "$1"; compgen -f -- "$1"; }}',
        "zsh": f'_sidelight_recipe() {{ _alternative "names:recipe:({names})" "files:file:_files"; }}',
    }
    return shtab.complete(root, shell, preamble=preamble[shell])


def _add_arguments(parser: argparse.ArgumentParser, command: Command) -> None:
    """Add the arguments of a command; complete values that are neither choices nor numbers as file names."""
    if is_configured(command):
        from sidelight.cli.configured import configured_parser

        parser.add_argument("recipe").complete = RECIPE  # type: ignore[attr-defined]
        for action in configured_parser(command, parser.prog)[0]._actions:
            if action.option_strings and "--help" not in action.option_strings:
                settings: dict[str, Any] = {"action": "store_true"} if action.nargs == 0 else {}
                parser.add_argument(*action.option_strings, help=action.help, **settings)
    else:
        add_parameters(parser, command)
    for action in parser._actions:
        if action.nargs != 0 and not action.choices and action.type in (None, str) and not hasattr(action, "complete"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
