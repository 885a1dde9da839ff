"""Paths in object storage (``s3://``, ``gs://``, whatever fsspec knows): found, fetched whole, and put whole.

A path without ``://`` is one of this machine and goes through nothing here. Credentials are those that fsspec's
packages for each storage find by themselves.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from sidelight.io.files import cache_folder, replacing, sweep, write_text

_APPEARING_WHOLE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss"}
"""Kinds of storage where an object is there when all of it is there, and not before."""


class StorageError(OSError):
    """Object storage cannot be reached, or does not let us."""


def is_address(path: str | Path) -> bool:
    """Whether a path lies in object storage."""
    return "://" in str(path)


def storage_of(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it.

    Raises:
        ValueError: if the kind of storage is not known, or its package is not installed.
    """
    import fsspec

    # It logs every try of a connection with its traceback; what is wrong in the end comes as an error too.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    try:
        storage, path = fsspec.core.url_to_fs(address)
        return storage, str(path)
    except (ImportError, ValueError) as error:
        kind = address.split("://")[0]
        advice = {"s3": "pip install 'sidelight[s3]'", "gs": "pip install 'sidelight[gs]'"}.get(kind, "see fsspec")
        raise ValueError(f"{address}: cannot use {kind}:// ({error}); {advice}") from None


def list_files(address: str) -> list[str]:
    """The files in a folder of object storage, or those that a pattern with ``*`` matches, as sorted addresses.

    Raises:
        ValueError: if there is nothing.
        StorageError: if the storage cannot be reached.
    """
    storage, path = storage_of(address)
    # In a web address a question mark begins the query of a signed link.
    signs = "*[" if address.startswith(("http://", "https://")) else "*?["
    try:
        if any(sign in path for sign in signs):
            found = storage.glob(path)
        elif storage.isfile(path):
            found = [path]
        else:
            found = [entry["name"] for entry in storage.ls(path, detail=True) if entry["type"] == "file"]
    except FileNotFoundError:
        raise ValueError(f"{address}: there is nothing; check the address") from None
    except Exception as error:
        raise StorageError(f"{address} cannot be listed ({_said(error)}); check the address and the access") from None
    return sorted(storage.unstrip_protocol(name) for name in found)


@contextmanager
def local_copy(path: str | Path) -> Iterator[Path]:
    """A file of this machine with the content of ``path``: itself, or a copy that goes when the block ends.

    A copy, because a decoder jumps within a file, and each jump would be a request.

    Raises:
        StorageError: if an address cannot be fetched.
        ValueError: if its kind of storage is not known.
    """
    if not is_address(path):
        yield Path(path)
        return
    storage, name = storage_of(str(path))
    with tempfile.TemporaryDirectory(prefix="sidelight-") as folder:
        copy = Path(folder) / PurePosixPath(name).name.split("?")[0]
        _get(storage, name, copy, str(path))
        yield copy


def _get(storage: Any, name: str, target: Path, address: str) -> None:
    try:
        storage.get_file(name, str(target))
    except Exception as error:
        raise StorageError(f"{address} cannot be fetched ({_said(error)}); check the address and the access") from None


def put_file(local: Path, address: str) -> None:
    """Copy a file to an address, so that it appears whole or not at all.

    Raises:
        StorageError: if it cannot be written.
        ValueError: if its kind of storage is not known.
    """
    storage, name = storage_of(address)
    kinds = {storage.protocol} if isinstance(storage.protocol, str) else set(storage.protocol)
    try:
        if kinds & _APPEARING_WHOLE:
            storage.put_file(str(local), name)
            return
        storage.makedirs(str(PurePosixPath(name).parent), exist_ok=True)
        beside = str(PurePosixPath(name).with_name(f".{PurePosixPath(name).name}.{secrets.token_hex(3)}.partial"))
        storage.put_file(str(local), beside)
        storage.mv(beside, name)
    except Exception as error:
        raise StorageError(f"{address} cannot be written ({_said(error)}); check the address and the access") from None


def listing(address: str) -> dict[str, str]:
    """The files in a folder of object storage: name -> what changes when the file does; empty if there is none.

    Raises:
        StorageError: if the storage cannot be reached.
        ValueError: if its kind is not known.
    """
    storage, path = storage_of(address.rstrip("/"))
    try:
        # Without what an earlier call saw: other machines write there too.
        storage.invalidate_cache(path)
        entries = storage.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    except Exception as error:
        raise StorageError(f"{address} cannot be listed ({_said(error)}); check the address and the access") from None
    # Size, time of change, ETag, checksum: whatever the storage tells.
    marks = {
        PurePosixPath(entry["name"]).name: hashlib.sha256(
            json.dumps(entry, sort_keys=True, default=str).encode()
        ).hexdigest()[:16]
        for entry in entries
        if entry["type"] == "file"
    }
    return {name: mark for name, mark in marks.items() if not name.startswith(".")}


def fetch(address: str, name: str, folder: Path) -> None:
    """Copy ``address/name`` into a folder of this machine.

    Raises:
        StorageError: if it cannot be fetched.
        ValueError: if its name would lead out of the folder.
    """
    target = folder / name
    if folder.resolve() not in target.resolve().parents:
        raise ValueError(f"{address}/{name} would be copied out of {folder}; rename it")
    target.parent.mkdir(parents=True, exist_ok=True)
    storage, path = storage_of(f"{address.rstrip('/')}/{name}")
    with replacing(target) as beside:
        _get(storage, path, beside, f"{address}/{name}")


def cached(address: str, folders: tuple[str, ...]) -> Path:
    """A folder in the user's cache with the files of an address, and of these folders in it, as they are now.

    Only files that are new or have changed are fetched; those that are gone there go here.

    Raises:
        StorageError: if the storage cannot be reached.
        ValueError: if its kind is not known.
    """
    address = address.rstrip("/")
    copy = cache_folder("stores") / hashlib.sha256(address.encode()).hexdigest()[:16]
    index = copy / ".index.json"
    try:
        known: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    now: dict[str, str] = {}
    for part in ("", *(f"{name}/" for name in folders)):
        (copy / part).mkdir(parents=True, exist_ok=True)
        sweep(copy / part)
        now |= {f"{part}{name}": mark for name, mark in listing(f"{address}/{part}").items()}
    for name in set(known) - set(now):
        (copy / name).unlink(missing_ok=True)
    # What is fetched is written down at the end: a copy that is broken off fetches again what it is not sure of.
    changed = [name for name, mark in now.items() if known.get(name) != mark or not (copy / name).is_file()]
    for name in changed:
        fetch(address, name, copy)
    if known != now:
        write_text(index, json.dumps(now))
    return copy


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
