"""The folder of a library: on this machine, or in object storage."""

from __future__ import annotations

import os
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from sidelight.backbones.protocol import FeatureSpec
from sidelight.features.remote import RemoteStore
from sidelight.features.store import FeatureStore
from sidelight.io.files import LOCK, only_writer, path_text, sweep
from sidelight.io.remote_lock import only_remote_writer
from sidelight.io.storage import is_address, names_in, put_file, read_object, size_of_all

MANIFEST = "library.json"
"""The file that says what a library is."""
_KINDS = ("s3", "gs", "az")
"""Kinds of object storage that LanceDB and fsspec both know, and that create an object only if it does not exist."""
_WRITERS: set[str] = set()
_WRITERS_LOCK = threading.Lock()
"""Libraries that this process writes; the lock of a file excludes other processes only."""

Check = Callable[[], None]
"""Raises ValueError if this process may not write any more."""


class Folder(ABC):
    """The files of a library.

    Args:
        name: path or address, as messages name it.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def tables(self) -> str:
        """Return the place of LanceDB's tables."""
        return f"{self.name}/tables"

    @property
    def table_options(self) -> dict[str, str]:
        """Return LanceDB's options for the storage."""
        return {}

    @property
    def advice(self) -> str:
        """Return what a person can do if the tables cannot be read."""
        return "make a new library of the same videos, or bring this folder back from a copy"

    @abstractmethod
    def has(self, name: str) -> bool:
        """Check whether a file exists."""

    @abstractmethod
    def is_foreign(self) -> bool:
        """Check whether the place holds anything that is not of a library."""

    @abstractmethod
    def reading(self, name: str) -> AbstractContextManager[Path | None]:
        """Yield a file of this machine with the content of a file; None if it does not exist."""

    @abstractmethod
    def writing(self, name: str) -> AbstractContextManager[Path]:
        """Yield a file of this machine to write; it takes the place of a file at the end of the block."""

    @abstractmethod
    def store(self, spec: FeatureSpec) -> FeatureStore:
        """Open the features, or make a store for them."""

    @abstractmethod
    def size(self) -> int:
        """Return the bytes of all files."""

    @abstractmethod
    def _lock(self) -> AbstractContextManager[Check]:
        """Refuse other processes inside the block."""

    def _real_place(self) -> str:
        """Return the one name of the place, where several names lead to it."""
        return self.name

    @contextmanager
    def only_writer(self) -> Iterator[Check]:
        """Refuse other writers, of this process and of others, inside the block.

        Yields:
            A function to call before each step; it raises ValueError if another process took the lock over.
        """
        place = self._real_place()
        with _WRITERS_LOCK:
            if place in _WRITERS:
                raise ValueError(f"another thread writes into {self.name} now; wait until it ends")
            _WRITERS.add(place)
        try:
            with self._lock() as check:
                yield check
        finally:
            with _WRITERS_LOCK:
                _WRITERS.discard(place)


class LocalFolder(Folder):
    """A folder of this machine."""

    def __init__(self, name: str) -> None:
        super().__init__(os.path.abspath(name))
        self._path = Path(self.name)

    def _real_place(self) -> str:
        return os.path.realpath(self._path)

    def has(self, name: str) -> bool:
        return (self._path / name).exists()

    def is_foreign(self) -> bool:
        if not self._path.exists():
            return False
        return not self._path.is_dir() or any(map(_is_of_others, self._path.iterdir()))

    @contextmanager
    def reading(self, name: str) -> Iterator[Path | None]:
        path = self._path / name
        yield path if path.is_file() else None

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        yield self._path / name  # whoever writes it writes beside it, then renames

    def store(self, spec: FeatureSpec) -> FeatureStore:
        return FeatureStore.create(self._path / "features", spec)

    def size(self) -> int:
        return sum(path.stat().st_size for path in self._path.rglob("*") if path.is_file())

    @contextmanager
    def _lock(self) -> Iterator[Check]:
        with only_writer(self._path, option="LIB"):
            sweep(self._path)
            yield lambda: None


class RemoteFolder(Folder):
    """A folder in object storage.

    Raises:
        ValueError: if a library cannot lie in this kind of storage.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name.rstrip("/"))
        kind, _, path = self.name.partition("://")
        if kind not in _KINDS:
            kinds = ", ".join(f"{kind}://" for kind in _KINDS)
            raise ValueError(f"{name}: a library lies in a folder of this machine, or at {kinds}; give such an address")
        if "/" not in path:
            raise ValueError(
                f"{name} is a whole bucket; give a library an address in it, such as {self.name}/films.lib"
            )

    @property
    def table_options(self) -> dict[str, str]:
        """Return LanceDB's options; it reads credentials and all else from the environment, as fsspec does."""
        options = {}
        if self.name.startswith("s3://"):
            environment = os.environ
            endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
            if endpoint:
                options = {"aws_endpoint": endpoint, "allow_http": str(endpoint.startswith("http://")).lower()}
            if region := environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION"):
                options["aws_region"] = region
        return options

    @property
    def advice(self) -> str:
        return "check the address, the access and the network; if they are right, make a new library of the same videos"

    def has(self, name: str) -> bool:
        return read_object(f"{self.name}/{name}") is not None

    def is_foreign(self) -> bool:
        return bool(names_in(self.name) - {LOCK})

    @contextmanager
    def reading(self, name: str) -> Iterator[Path | None]:
        content = read_object(f"{self.name}/{name}")
        if content is None:
            yield None
            return
        with self._named(name) as path:
            path.write_bytes(content)
            yield path

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        with self._named(name) as path:
            yield path
            put_file(path, f"{self.name}/{name}")

    def store(self, spec: FeatureSpec) -> FeatureStore:
        return RemoteStore.at(f"{self.name}/features", spec)

    def size(self) -> int:
        return size_of_all(self.name)

    @contextmanager
    def _lock(self) -> Iterator[Check]:
        with only_remote_writer(self.name) as lock:
            yield lock.check

    @contextmanager
    def _named(self, name: str) -> Iterator[Path]:
        """Yield a temporary file; an error that names it names the address instead."""
        with tempfile.TemporaryDirectory(prefix="sidelight-library-") as folder:
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield path
            except ValueError as error:
                raise ValueError(str(error).replace(folder, self.name)) from None


def folder_at(place: str | Path) -> Folder:
    """Return the folder at a path or an address; ``file://`` is a path.

    Raises:
        ValueError: if a library cannot lie in this kind of storage.
    """
    text = path_text(place)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    return RemoteFolder(text) if is_address(text) else LocalFolder(text)


def _is_of_others(path: Path) -> bool:
    """Check whether a file is none that a killed process leaves in a new library."""
    return path.name != LOCK and not (path.name.startswith(f".{Path(MANIFEST).stem}.") and ".partial" in path.name)
