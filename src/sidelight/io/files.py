"""Find video files in a folder, and write files so that each appears complete or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".ts", ".mpg", ".mpeg")
"""The suffixes of video files, in lower case."""


def videos_in(folder: str | Path) -> dict[str, Path]:
    """Return the video files of a folder, not of folders in it: id (the file's name without suffix) -> file, sorted.

    Raises:
        ValueError: if it is not a folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected the folder with the video files")
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in VIDEO_SUFFIXES}


def _umask() -> int:
    """Return the umask. To read it is to set it for a moment, so this is done once, before threads start."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


_UMASK = _umask()


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to, which is renamed to ``path`` if the block succeeds, and removed if it raises.

    The path lies beside ``path``, so that renaming cannot fail half-way; it keeps the suffix, which some writers look
    at; and no other process uses it. The content is on the disk before the renaming, so a power cut leaves the old file
    or the new one.
    """
    path = Path(path)
    owner = f"{_machine()}-{os.getpid()}-{secrets.token_hex(3)}"
    # The name of ``path`` may be as long as the file system allows; this name is longer, so the stem is cut.
    beside = path.with_name(f".{path.stem[:80]}.{owner}.partial{path.suffix}")
    try:
        yield beside
        if os.name == "posix":  # some writers deny others to read, whatever the user's umask is
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
        # Some file systems cannot sync (network ones; folders on others).
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def _machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


def sweep(folder: str | Path) -> None:
    """Remove half-written files from a folder: of dead processes of this machine, and any that are a day old."""
    now = time.time()
    for path in Path(folder).glob(".*.partial*"):
        with contextlib.suppress(OSError):  # another process sweeps too
            age = now - path.stat().st_mtime
            owner = path.name.split(".partial")[0].rsplit(".", 1)[-1].split("-")
            # Wait a minute, because processes in containers may not see each other and may share a host name.
            dead = len(owner) == 3 and owner[0] == _machine() and owner[1].isdigit() and not _alive(int(owner[1]))
            if age > 86400 or (dead and age > 60):
                path.unlink()


def _alive(process: int) -> bool:
    if os.name != "posix":
        return True  # signal 0 would end the process on Windows
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # the process exists and belongs to another user
    return True


def cache_folder(part: str) -> Path:
    """Return the folder of one part of the cache: in SIDELIGHT_CACHE if set, else in the user's cache folder."""
    if folder := os.environ.get("SIDELIGHT_CACHE"):
        return Path(folder) / part
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sidelight" / part


def require_writable_folder(folder: str | Path, *, target: str | Path | None = None) -> None:
    """Refuse, before the work starts, a folder in which no file can be written.

    A temporary file is made in it; if the folder is missing, in the nearest folder above that exists.

    Args:
        folder: the folder, which may be missing.
        target: the path that the user gave, for the message; the folder unless given.

    Raises:
        ValueError: if no file can be written there.
    """
    target = folder if target is None else target
    path = Path(os.path.abspath(folder))
    try:
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        if not existing.is_dir():
            raise ValueError(f"cannot write {target}: {existing} is a file; give another place")
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(
            f"cannot write {target}: {error.strerror or error}; give a place where you may write"
        ) from None


def require_new_folder(folder: str | Path, *, option: str = "out") -> None:
    """Refuse, before the work starts, an output folder that exists and is not empty.

    Args:
        folder: the output folder.
        option: the command-line option that names it, for the message.

    Raises:
        ValueError: if the folder is not empty, is a file, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} already exists; give --{option} a folder that is empty or does not exist yet")
    require_writable_folder(folder)


@contextlib.contextmanager
def replacing_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a folder to make and fill, which is renamed to ``folder`` if the block succeeds, and removed if it raises.

    ``folder`` must be empty or absent (:func:`require_new_folder`). An existing folder may be the current folder of a
    process, so it is kept, and files are moved into it, ``config.json`` last: a folder without this file is not taken
    for complete.
    """
    folder = Path(os.path.abspath(folder))  # "." has no name from which to make another
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(beside, ignore_errors=True)  # of a killed process of the same id
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
    """Write a text file in UTF-8, completely or not at all."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")
