"""Files: which are videos, and how one is written so that it appears whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".ts", ".mpg", ".mpeg")
"""The files of a folder that count as videos."""


def _umask() -> int:
    """There is no way to read it but to set it; so once, before there are threads."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


_UMASK = _umask()


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path to write to, renamed to ``path`` when the block ends well, and removed when it does not.

    It lies beside ``path``, so that renaming cannot fail half-way, keeps its suffix, which some writers look at, and
    is nobody else's. What was written is on the disk before it gets its name: a power cut leaves the old or the new.
    """
    path = Path(path)
    owner = f"{_machine()}-{os.getpid()}-{secrets.token_hex(3)}"
    # Whole names may be as long as a file system allows; this one is longer, so the stem is cut.
    beside = path.with_name(f".{path.stem[:80]}.{owner}.partial{path.suffix}")
    try:
        yield beside
        if os.name == "posix":  # some writers let nobody else read, whatever the user's umask says
            beside.chmod(0o666 & ~_UMASK)
        _to_disk(beside)
        beside.replace(path)
        if os.name == "posix":
            _to_disk(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        # Some file systems cannot (network ones, folders on some): then there is no more to be done.
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def _machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


def sweep(folder: str | Path) -> None:
    """Remove what killed processes left half-written in a folder: theirs of this machine, and what is a day old."""
    now = time.time()
    for path in Path(folder).glob(".*.partial*"):
        with contextlib.suppress(OSError):  # another process sweeps too
            age = now - path.stat().st_mtime
            owner = path.name.split(".partial")[0].rsplit(".", 1)[-1].split("-")
            # A minute, because processes of one name may not see each other (containers).
            dead = len(owner) == 3 and owner[0] == _machine() and owner[1].isdigit() and not _alive(int(owner[1]))
            if age > 86400 or (dead and age > 60):
                path.unlink()


def _alive(process: int) -> bool:
    if os.name != "posix":
        return True  # signal 0 would end it there
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # it is there, and another user's
    return True


def cache_folder(part: str) -> Path:
    """Where something is kept for later: SIDELIGHT_CACHE, else the user's cache folder."""
    if folder := os.environ.get("SIDELIGHT_CACHE"):
        return Path(folder) / part
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sidelight" / part


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
