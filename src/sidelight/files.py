"""Files: which are videos, and how one is written so that it appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".ts", ".mpg", ".mpeg")
"""The files of a folder that count as videos."""


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path to write to, renamed to ``path`` when the block ends well, and removed when it does not.

    It lies beside ``path``, so that renaming cannot fail half-way, keeps its suffix, which some writers look at, and
    is this process's own.
    """
    path = Path(path)
    beside = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def require_new_folder(folder: str | Path, *, option: str = "out") -> None:
    """Say so before the work if a folder that a command is to make is there already.

    Raises:
        ValueError: if it is there and not empty, or is a file.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already; give --{option} a folder that is empty or not there yet")


@contextlib.contextmanager
def replacing_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to fill, renamed to ``folder`` when the block ends well, and removed when it does not.

    ``folder`` must be empty or not there (:func:`require_new_folder`). One that is there may be where somebody stands,
    so it stays, and files are moved into it, ``config.json`` last: without that a folder is not taken for whole. The
    one to fill is not made yet.
    """
    folder = Path(os.path.abspath(folder))  # "." has no name to put another beside
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(beside, ignore_errors=True)  # of a process of the same number that was killed
    try:
        yield beside
        if folder.is_dir():
            for file in sorted(beside.iterdir(), key=lambda path: path.name == "config.json"):
                file.replace(folder / file.name)
        else:
            beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")
