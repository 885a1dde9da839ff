"""The places of a library's videos: absolute paths of this machine, and addresses in object storage."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from sidelight.features.sources import video_files
from sidelight.io.files import path_text
from sidelight.io.storage import MissingError, State, StorageError, file_state, file_states, is_address


def is_within(path: str, folder: str) -> bool:
    """Check whether an absolute path or an address is a folder or lies below it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def absolute(place: str | Path) -> str:
    """Return a path of this machine as an absolute path, and an address as it is; ``file://`` is a path."""
    text = path_text(place)
    text = text.removeprefix("file://") if text.startswith("file://") else text
    return text if is_address(text) else os.path.abspath(text)


def files_of(sources: Iterable[str | Path]) -> list[str]:
    """Return the video files in folders, files, patterns, lists and addresses.

    Raises:
        ValueError: if one of them has none, or a list has an address of the web.
        StorageError: if a storage cannot be reached.
    """
    files = [absolute(path) for path in video_files(sources)]
    for file in files:
        _require_states(file)
    return files


def absolute_sources(videos: Iterable[str | Path]) -> list[str]:
    """Return folders, files, patterns, lists and addresses, each with an absolute path.

    Raises:
        ValueError: for an address of the web.
    """
    sources = [absolute(video) for video in videos]
    for source in sources:
        _require_states(source)
    return sources


def _require_states(place: str) -> None:
    """Raise ValueError for an address of the web, which does not say when its file changed."""
    if place.startswith(("http://", "https://")):
        raise ValueError(f"{place} does not say when its file changes; a library cannot follow it, so copy it first")


class Places:
    """The sizes and times of files during one run. Each folder in object storage is listed once."""

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, State] | StorageError] = {}

    def listed_state(self, path: str) -> State:
        """Return size and time of a file, by the listing of its folder.

        Raises:
            OSError: if the file does not exist, or its storage cannot be reached.
        """
        if not is_address(path):
            state = os.stat(path)
            return state.st_size, state.st_mtime_ns
        folder, _, name = path.rpartition("/")
        states = self._listed(folder)
        if isinstance(states, StorageError):
            raise states
        if name not in states:
            raise MissingError(f"{path} does not exist; check the address")
        return states[name]

    def exists(self, path: str) -> bool:
        """Check whether a file exists; a file whose storage cannot be reached counts as missing."""
        if not is_address(path):
            return os.path.lexists(path)
        folder, _, name = path.rpartition("/")
        states = self._listed(folder)
        return not isinstance(states, StorageError) and name in states

    def is_missing(self, path: str) -> bool:
        """Check whether there is no file to read; unlike :meth:`exists`, a link that leads nowhere is missing."""
        return not (self.exists(path) if is_address(path) else os.path.isfile(path))

    def is_out_of_reach(self, path: str) -> bool:
        """Check whether the folder of a missing file is missing or empty, or its storage cannot be reached."""
        folder = os.path.dirname(path)
        if is_address(path):
            states = self._listed(folder)
            return isinstance(states, StorageError) or not states
        try:
            with os.scandir(folder) as entries:
                return not any(entries)
        except OSError:
            return True

    def _listed(self, folder: str) -> dict[str, State] | StorageError:
        if folder not in self._folders:
            try:
                self._folders[folder] = file_states(folder)
            except StorageError as error:  # not tried again for every file
                self._folders[folder] = error
        return self._folders[folder]


def state_now(path: str) -> State:
    """Return size and time of the last change of a file, as they are now; zeros if it is gone.

    Raises:
        StorageError: if the storage of an address cannot be reached.
    """
    if is_address(path):
        return file_state(path) or (0, 0)
    try:
        state = os.stat(path)
    except OSError:
        return 0, 0
    return state.st_size, state.st_mtime_ns
