"""The user's cache: where it is, how large its parts are, and the limit on features, the part that grows with use."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path

from sidelight.io.files import cache_folder, write_text
from sidelight.io.pinned import LOCK_FILE


class CacheWarning(UserWarning):
    """Warning that features could not be cached; the answer is not affected."""


PARTS = {
    "features": "features of videos; computed again when needed",
    "frames": "frames of videos that models are trained from; decoded again when needed",
    "models": "models: downloads, and the checkpoints made of them",
    "stores": "copies of feature stores in object storage",
}
"""The parts of the cache, and what they hold."""
DEFAULT_LIMIT = 20 * 1000**3
"""Bytes of features that are kept unless a limit is set; an hour of video takes 0.6 GB with all tokens of CLIP."""
_LIMIT_FILE = "limit"
_UNITS = " kmgt"


def cache_sizes() -> dict[str, tuple[Path, int, int]]:
    """Return the folder of each part of the cache, its bytes and its number of files."""
    sizes = {}
    for part in PARTS:
        files = _files(cache_folder(part))
        sizes[part] = (cache_folder(part), sum(size for _, size, _ in files), len(files))
    return sizes


def clear_cache(part: str) -> int:
    """Delete a part of the cache and return its bytes.

    Args:
        part: a key of :data:`PARTS`. The limit on features stays, and the lock file of the models, so that a later
            download is compared with it.

    Raises:
        OSError: if something cannot be deleted.
    """
    folder = cache_folder(part)
    before = sum(size for _, size, _ in _files(folder))
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (LOCK_FILE, _LIMIT_FILE):
            path.unlink()
    return before - sum(size for _, size, _ in _files(folder))


def feature_limit() -> int:
    """Return the bytes of features that are kept: by SIDELIGHT_CACHE_LIMIT, by :func:`set_feature_limit`, or 20 GB.

    A file of the limit that is damaged counts as absent.

    Raises:
        ValueError: if the variable holds no size.
    """
    if text := os.environ.get("SIDELIGHT_CACHE_LIMIT"):
        return parse_size(text, name="SIDELIGHT_CACHE_LIMIT")
    path = cache_folder("features") / _LIMIT_FILE
    try:
        return parse_size(path.read_text(encoding="utf-8"), name=str(path))
    except (OSError, ValueError):
        return DEFAULT_LIMIT


def set_feature_limit(size: int) -> int:
    """Set the limit for later commands, delete features beyond it, and return the bytes that were deleted."""
    folder = cache_folder("features")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / _LIMIT_FILE, f"{size}\n")
    return trim_features(size)


def trim_features(limit: int | None = None) -> int:
    """Delete the features that were not used for longest, until the rest fits the limit; return the deleted bytes.

    Args:
        limit: bytes; :func:`feature_limit` unless given.
    """
    limit = feature_limit() if limit is None else limit
    files = [file for file in _files(cache_folder("features")) if file[0].parent.name == "videos"]
    total = sum(size for _, size, _ in files)
    deleted = 0
    for path, size, _ in sorted(files, key=lambda file: file[2]):
        if total - deleted <= limit:
            break
        with contextlib.suppress(OSError):  # another process deletes too
            path.unlink()
            deleted += size
    return deleted


def mark_used(path: Path) -> None:
    """Note that a file of the cache was used now, by its time of change."""
    with contextlib.suppress(OSError):  # a cache that cannot be written
        os.utime(path)


def parse_size(text: str, *, name: str) -> int:
    """Return the bytes of a size such as "20 GB", "500MB", "4 GiB" (1024 for 1000) or "0".

    Args:
        text: the size.
        name: what it is, for the message.

    Raises:
        ValueError: if it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:bytes|([kmgt]?)(i?)b?)\s*", text.lower())
    if match is None:
        raise ValueError(f"{name} must be a size such as 20GB or 500MB, got {text.strip()!r}")
    return round(float(match[1]) * (1024.0 if match[3] else 1000.0) ** _UNITS.index(match[2] or " "))


def _files(folder: Path) -> list[tuple[Path, int, float]]:
    """Return path, bytes and time of last use of every file below a folder."""
    files = []
    for path in folder.rglob("*") if folder.is_dir() else []:
        with contextlib.suppress(OSError):  # deleted meanwhile
            if path.is_file() and not path.is_symlink():
                status = path.stat()
                files.append((path, status.st_size, status.st_mtime))
    return files
