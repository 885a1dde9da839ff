"""Find the recipes that ship with the package: one YAML file per published run, and a tiny one per model."""

from __future__ import annotations

from pathlib import Path

from sidelight.core.messages import did_you_mean
from sidelight.io.files import read_text

FOLDER = Path(__file__).resolve().parent


def recipe_file(recipe: str | Path) -> Path:
    """Return the file of a recipe, given as a path or as the name of a shipped one.

    Args:
        recipe: a YAML file, or a name such as ``shapes``.

    Raises:
        ValueError: if there is neither such a file nor such a shipped recipe.
    """
    path = Path(recipe)
    if path.is_file():
        return path
    shipped = FOLDER / f"{recipe}.yaml"
    if shipped.parent == FOLDER and shipped.is_file():
        return shipped
    if not any(sign in str(recipe) for sign in "/\\"):
        hint = did_you_mean(str(recipe).removesuffix(".yaml"), recipe_names())
    else:
        hint = ""
    raise ValueError(
        f"there is no recipe {recipe}{hint or '; give a YAML file, or a name that `sidelight recipes` lists'}"
    )


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def command_of(recipe: str | Path) -> str:
    """Return the command that takes a recipe: ``train``, or ``pretrain`` for the embedded backbone.

    Raises:
        ValueError: if there is no such recipe, or it is in no Unicode encoding.
    """
    path = recipe_file(recipe)
    try:
        lines = read_text(path).splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"recipe {path} is not text in UTF-8; save it as UTF-8") from None
    return "pretrain" if any(line.startswith("world:") for line in lines) else "train"


def summary_of(name: str) -> str:
    """Return the first line of a shipped recipe: a comment that says in one sentence what the recipe trains.

    Raises:
        ValueError: if no such recipe ships.
    """
    first_line = recipe_file(name).read_text(encoding="utf-8").partition("\n")[0]
    return first_line.lstrip("# ").removesuffix(".")
