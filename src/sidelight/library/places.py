"""The places of a library's videos on this machine, as absolute paths."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from sidelight.features.sources import video_files
from sidelight.io.files import path_text
from sidelight.io.storage import is_address


def is_within(path: str, folder: str) -> bool:
    """Check whether an absolute path is a folder or lies below it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def files_of(sources: Iterable[str | Path]) -> list[str]:
    """Return the video files in folders, files, patterns and lists; ValueError if one has none."""
    return [os.path.abspath(path) for path in video_files(sources)]


def absolute_sources(videos: Iterable[str | Path]) -> list[str]:
    """Return folders, files, patterns and lists as absolute paths.

    Raises:
        ValueError: for an address.
    """
    texts = [path_text(video) for video in videos]
    if address := next((text for text in texts if is_address(text)), None):
        raise ValueError(f"{address} is an address; a library takes files of this machine, so copy the videos first")
    return [os.path.abspath(text) for text in texts]


def holds_files(folder: str) -> bool:
    """Check whether a folder exists and is not empty."""
    try:
        with os.scandir(folder) as entries:
            return any(entries)
    except OSError:
        return False
