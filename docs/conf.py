"""Settings of the documentation site, which `make docs` builds with Sphinx from the pages of this folder."""

import re
from typing import Any

import sidelight

project = "sidelight"
author = "The sidelight authors"
copyright = "The sidelight authors, Apache-2.0"
version = release = sidelight.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["ablation"]
myst_heading_anchors = 4  # links such as data.md#predictions, as GitHub makes them
highlight_language = "none"

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
python_use_unqualified_type_names = True
nitpick_ignore_regex = [
    # Other packages: their documentation is elsewhere, and a build needs no network.
    (r"py:.*", r"(argparse|collections|datetime|fastapi|fractions|nn|np|npt|numpy|os|pandas|pathlib|torch|typing)\..*"),
    # Names that a module imports for type checkers only, or that stand for a type of another package.
    (r"py:class", r"(Binding|Features|FrameImage|HalfFeatures|Path|Span|Tensor)"),
]

html_theme = "furo"
html_title = f"sidelight {release}"
html_show_sphinx = False


def hide_colons(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Triple the colons of a field's description: napoleon would read "Confidence: higher is surer" as a type."""
    if what in ("attribute", "property"):
        lines[:] = [re.sub(r":(?=\s|$)", ":::", line) for line in lines]


def show_colons(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Undo :func:`hide_colons`."""
    lines[:] = [line.replace(":::", ":") for line in lines]


def setup(app: Any) -> None:
    """Run the two functions before and after napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", hide_colons, priority=400)
    app.connect("autodoc-process-docstring", show_colons, priority=600)
