"""The files of the page. They hold no secret, so they are sent without the token."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Media types by suffix."""


@cache
def page_files() -> dict[str, tuple[bytes, str]]:
    """Return path below the service -> content and media type."""
    contents = {}
    for entry in (files("sidelight.server") / "page").iterdir():
        kind = _KINDS.get(f".{entry.name.rpartition('.')[2]}")
        if kind is not None:
            contents[f"/{entry.name}"] = (entry.read_bytes(), kind)
    return {"/": contents["/index.html"], **contents}
