"""Make the folders in which a command writes its results, except where a missing folder is probably a mistake."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_TOP_FOLDERS = ("/", "/dev", "/media", "/mnt", "/run/media", "/Volumes")
"""Folders of the system and of disks: a folder that is missing in one of them is a misspelt name or a missing disk."""
_SYSTEM_FOLDERS = ("/dev", "/proc", "/sys")
"""Folders that are no disk."""


def require_parent(path: str | Path) -> None:
    """Refuse a file whose folder is missing where none should be made: at the top of the system, or behind a dead link.

    Args:
        path: a file that is to be written.

    Raises:
        ValueError: if so; names the folder.
    """
    folder = Path(os.path.abspath(path)).parent
    if folder.is_dir():
        return
    existing = next(parent for parent in folder.parents if parent.exists())
    dead_link = next((p for p in (folder, *folder.parents) if os.path.islink(p) and not p.exists()), None)
    place = os.path.realpath(existing)
    is_of_system = any(place == system or place.startswith(f"{system}/") for system in _SYSTEM_FOLDERS)
    # A disk of the user lies two levels below /media and /run/media.
    is_of_disks = os.path.dirname(place) in ("/media", "/run/media")
    if dead_link is not None or place in _TOP_FOLDERS or is_of_system or is_of_disks:
        reason = f"{dead_link} is a link that leads nowhere" if dead_link else "it would lie at the top of the system"
        raise ValueError(f"cannot write {path}: there is no folder {folder}, and {reason}; make the folder first")


@contextlib.contextmanager
def parent_folders(paths: Iterable[str | Path]) -> Iterator[None]:
    """Make the missing folders of files that the block writes; remove those that are empty afterwards.

    Args:
        paths: the files, checked by :func:`require_parent`.

    Raises:
        OSError: if a folder cannot be made.
    """
    made: list[Path] = []
    try:
        for path in paths:
            folder = Path(os.path.realpath(path)).parent
            missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
            for parent in reversed(missing):
                parent.mkdir(exist_ok=True)
                made.append(parent)
        yield
    finally:
        for parent in reversed(made):
            with contextlib.suppress(OSError):  # it holds results
                parent.rmdir()
