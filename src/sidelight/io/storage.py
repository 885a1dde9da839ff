"""List, fetch and write files in object storage (``s3://``, ``gs://`` and all else that fsspec supports).

A path without ``://`` is a file of this machine. fsspec's packages for each storage find the credentials themselves.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from sidelight.io.download import is_offline
from sidelight.io.files import cache_folder, replacing, sweep, write_text

_ATOMIC = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss"}
"""Kinds of storage in which an object appears only when all of it is written."""


_TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")
"""The names under which storages state the time of a file's last change; the first of them counts."""
State = tuple[int, int]
"""Size of a file in bytes, and time of its last change in ns since 1970."""
_ON_THIS_MACHINE = ("file", "local", "memory")
"""Kinds of storage that need no network."""


class StorageError(OSError):
    """Object storage cannot be reached, or denies access."""


class MissingError(StorageError):
    """A file or a bucket does not exist in object storage."""


def hub_answers() -> bool:
    """Check by one request whether the Hugging Face hub can be reached; not at all if no network may be used.

    The hub's client retries for half a minute, even for files that it has already.
    """
    from huggingface_hub import constants, get_session

    if is_offline():
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:  # versions of the client use different HTTP libraries, each with its own exceptions
        return False
    return True


def is_address(path: str | Path) -> bool:
    """Check whether a path lies in object storage."""
    return "://" in str(path)


def storage_of(address: str) -> tuple[Any, str]:
    """Return the fsspec file system of an address, and the path in it.

    Raises:
        ValueError: if the kind of storage is unknown, or its package is not installed.
    """
    import fsspec

    if is_offline() and address.partition("://")[0] not in _ON_THIS_MACHINE:
        raise StorageError(
            f"{address} is not on this machine, and sidelight must not use the network (--offline): copy it here"
        )
    # gcsfs logs each failed connection with a traceback; the last failure is raised as an error anyway.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    try:
        storage, path = fsspec.core.url_to_fs(address)
        return storage, str(path)
    except (ImportError, ValueError) as error:
        kind = address.split("://")[0]
        extra = "http" if kind == "https" else kind
        advice = f"pip install 'sidelight[{extra}]'" if extra in ("http", "s3", "gs") else "see fsspec"
        raise ValueError(f"{address}: cannot use {kind}:// ({error}); {advice}") from None


def list_files(address: str) -> list[str]:
    """Return the sorted addresses of the files of a folder, of those that a pattern with ``*`` matches, or of one file.

    Raises:
        ValueError: if the address does not exist.
        StorageError: if the storage cannot be reached.
    """
    storage, path = storage_of(address)
    # In a web address a question mark begins the query of a signed link.
    wildcards = "*[" if address.startswith(("http://", "https://")) else "*?["
    with _explained(address, "listed"), suppress(FileNotFoundError):
        storage.invalidate_cache()  # other machines write there too
        if any(sign in path for sign in wildcards):
            names = storage.glob(path)
        else:
            names = [path] if storage.isfile(path) else [entry["name"] for entry in _files_in(storage, path)]
        return sorted(storage.unstrip_protocol(name) for name in names)
    raise ValueError(f"{address} does not exist; check the address")


def _files_in(storage: Any, path: str) -> list[dict[str, Any]]:
    """Return fsspec's description of each file in a folder."""
    return [entry for entry in storage.ls(path, detail=True) if entry["type"] == "file"]


@contextmanager
def _explained(address: str, action: str) -> Iterator[None]:
    """Turn any error of a storage into a StorageError: the packages for storages raise errors of all kinds."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        kind = MissingError if isinstance(error, FileNotFoundError) else StorageError
        raise kind(f"{address} cannot be {action} ({reason}); check the address and the access") from None


@contextmanager
def local_copy(path: str | Path) -> Iterator[Path]:
    """Yield a file of this machine with the content of ``path``: the file itself, or a copy for the time of the block.

    An address is copied, because a decoder jumps within a file, and each jump would be a request.

    Raises:
        StorageError: if an address cannot be fetched.
        ValueError: if the kind of storage is unknown.
    """
    if not is_address(path):
        yield Path(path)
        return
    storage, name = storage_of(str(path))
    with tempfile.TemporaryDirectory(prefix="sidelight-") as folder:
        copy = Path(folder) / (name_of(str(path))[-100:] or "video")  # a name may be too long for this machine
        _get(storage, name, copy, str(path))
        yield copy


def name_of(path: str | Path) -> str:
    """Return the name of a file or an address, without the query of a signed link."""
    if str(path).startswith(("http://", "https://")):
        return str(path).split("?")[0].split("#")[0].rsplit("/", 1)[-1]
    return str(path).rsplit("/", 1)[-1].split("?")[0] if is_address(path) else Path(path).name


def _get(storage: Any, name: str, target: Path, address: str) -> None:
    with _explained(address, "fetched"):
        storage.get_file(name, str(target))


def put_file(local: Path, address: str) -> None:
    """Copy a file to an address, so that it appears completely or not at all.

    Raises:
        StorageError: if it cannot be written.
        ValueError: if the kind of storage is unknown.
    """
    storage, name = storage_of(address)
    kinds = {storage.protocol} if isinstance(storage.protocol, str) else set(storage.protocol)
    with _explained(address, "written"):
        if kinds & _ATOMIC:
            storage.put_file(str(local), name)
            return
        path = PurePosixPath(name)
        storage.makedirs(str(path.parent), exist_ok=True)
        beside = str(path.with_name(f".{path.name}.{secrets.token_hex(3)}.partial"))
        storage.put_file(str(local), beside)
        storage.mv(beside, name)


def file_versions(address: str) -> dict[str, str]:
    """Return the files in a folder of object storage: name -> a digest that changes with the file; empty if absent.

    Files whose names begin with a point are left out.

    Raises:
        StorageError: if the storage cannot be reached.
        ValueError: if the kind of storage is unknown.
    """
    storage, path = storage_of(address.rstrip("/"))
    versions: dict[str, str] = {}
    with _explained(address, "listed"), suppress(FileNotFoundError):
        storage.invalidate_cache(path)  # other machines write there too
        for entry in _files_in(storage, path):
            name = PurePosixPath(entry["name"]).name
            if not name.startswith("."):
                # Size, time of change, ETag, checksum: all that the storage states.
                description = json.dumps(entry, sort_keys=True, default=str)
                versions[name] = hashlib.sha256(description.encode()).hexdigest()[:16]
    return versions


def names_in(address: str) -> set[str]:
    """Return the names of all files and folders in a folder; empty if absent. Errors as for :func:`file_versions`."""
    storage, path = storage_of(address.rstrip("/"))
    with _explained(address, "listed"), suppress(FileNotFoundError):
        storage.invalidate_cache(path)
        return {PurePosixPath(entry["name"]).name for entry in storage.ls(path, detail=True)}
    return set()


def file_states(address: str) -> dict[str, State]:
    """Return size and time of each file in a folder of object storage, by name; empty if it does not exist.

    Raises:
        StorageError: if the storage cannot be reached.
        ValueError: if the kind of storage is unknown, or states no times.
    """
    storage, path = storage_of(address.rstrip("/"))
    entries: list[dict[str, Any]] = []
    with _explained(address, "listed"), suppress(FileNotFoundError):
        storage.invalidate_cache(path)  # other machines write there too
        entries = _files_in(storage, path)
    return {PurePosixPath(entry["name"]).name: _state_in(entry, address) for entry in entries}


def file_state(address: str) -> State | None:
    """Return size and time of one file; None if it does not exist. Errors as for :func:`file_states`."""
    storage, path = storage_of(address)
    entry = None
    with _explained(address, "read"), suppress(FileNotFoundError):
        storage.invalidate_cache(storage._parent(path))
        entry = storage.info(path)
    return _state_in(entry, address) if entry and entry["type"] == "file" else None


def _state_in(entry: Mapping[str, Any], address: str) -> State:
    """Return size and time in a storage's description of a file; ValueError if it states none."""
    value = next((entry[name] for name in _TIMES if entry.get(name) is not None), None)
    if isinstance(value, str):
        value = datetime.fromisoformat(value.replace("Z", "+00:00"))
    seconds = value.timestamp() if isinstance(value, datetime) else value
    if not isinstance(seconds, (int, float)) or entry.get("size") is None:
        raise ValueError(f"{address}: this kind of storage does not say when files change; copy them first")
    return int(entry["size"]), round(seconds * 1_000_000) * 1000  # microseconds are all that a float holds


def read_object(address: str) -> bytes | None:
    """Return the content of a small file; None if it does not exist.

    Raises:
        StorageError: if the storage cannot be reached.
        ValueError: if the kind of storage is unknown.
    """
    storage, path = storage_of(address)
    with _explained(address, "read"), suppress(FileNotFoundError):
        content: bytes = storage.cat_file(path)
        return content
    return None


def write_object(address: str, content: bytes) -> None:
    """Write a small file; errors as for :func:`read_object`."""
    storage, path = storage_of(address)
    with _explained(address, "written"):
        storage.pipe_file(path, content)


def create_object(address: str, content: bytes) -> bool:
    """Write a small file unless it exists, and return whether it was written; errors as for :func:`read_object`.

    The storage itself compares (``If-None-Match`` of S3, generation 0 of Google Cloud), so of several machines that
    call this at the same time, one writes.
    """
    storage, path = storage_of(address)
    with _explained(address, "written"), suppress(FileExistsError):
        storage.pipe_file(path, content, mode="create")
        return True
    return False


def delete_object(address: str) -> None:
    """Delete a file, if it exists; errors as for :func:`read_object`."""
    storage, path = storage_of(address)
    with _explained(address, "deleted"), suppress(FileNotFoundError):
        storage.rm_file(path)


def size_of_all(address: str) -> int:
    """Return the bytes of all files in a folder and below it; errors as for :func:`read_object`."""
    storage, path = storage_of(address)
    with _explained(address, "listed"), suppress(FileNotFoundError):
        storage.invalidate_cache()
        return sum(int(entry["size"] or 0) for entry in storage.find(path, detail=True).values())
    return 0


def fetch(address: str, name: str, folder: Path) -> None:
    """Copy ``address/name`` into a folder of this machine.

    Raises:
        StorageError: if it cannot be fetched.
        ValueError: if the name would lead out of the folder.
    """
    target = folder / name
    if folder.resolve() not in target.resolve().parents:
        raise ValueError(f"{address}/{name} would be copied out of {folder}; rename it")
    target.parent.mkdir(parents=True, exist_ok=True)
    storage, path = storage_of(f"{address.rstrip('/')}/{name}")
    with replacing(target) as beside:
        _get(storage, path, beside, f"{address}/{name}")


def cached(address: str, folders: tuple[str, ...]) -> Path:
    """Return a folder in the user's cache with the current files of an address and of the named folders in it.

    Only new and changed files are fetched; files that no longer exist at the address are removed from the cache.

    Raises:
        StorageError: if the storage cannot be reached.
        ValueError: if the kind of storage is unknown.
    """
    address = address.rstrip("/")
    copy = cache_folder("stores") / hashlib.sha256(address.encode()).hexdigest()[:16]
    index = copy / ".index.json"
    try:
        known: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    current: dict[str, str] = {}
    for part in ("", *(f"{name}/" for name in folders)):
        (copy / part).mkdir(parents=True, exist_ok=True)
        sweep(copy / part)
        current |= {f"{part}{name}": version for name, version in file_versions(f"{address}/{part}").items()}
    for name in set(known) - set(current):
        (copy / name).unlink(missing_ok=True)
    for name, version in current.items():
        if known.get(name) != version or not (copy / name).is_file():
            fetch(address, name, copy)
    # The index is written last: after an interruption, files that it does not list are fetched again.
    if known != current:
        write_text(index, json.dumps(current))
    return copy
