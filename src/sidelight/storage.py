"""Paths in object storage (``s3://``, ``gs://``, whatever fsspec knows): found, fetched whole, and put whole.

A path without ``://`` is one of this machine and goes through nothing here. Credentials are those that fsspec's
packages for each storage find by themselves.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from sidelight.files import replacing


def is_address(path: str | Path) -> bool:
    """Whether a path lies in object storage."""
    return "://" in str(path)


def storage_of(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it.

    Raises:
        ValueError: if the kind of storage is not known, or its package is not installed.
    """
    import fsspec

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
        ValueError: if the storage cannot be used or reached.
    """
    storage, path = storage_of(address)
    try:
        if any(sign in path for sign in "*?["):
            found = storage.glob(path)
        elif storage.isfile(path):
            found = [path]
        else:
            found = [entry["name"] for entry in storage.ls(path, detail=True) if entry["type"] == "file"]
    except FileNotFoundError:
        raise ValueError(f"{address}: there is nothing; check the address") from None
    except Exception as error:
        raise ValueError(f"{address} cannot be listed ({_said(error)}); check the address and the access") from None
    return sorted(storage.unstrip_protocol(name) for name in found)


@contextmanager
def local_copy(path: str | Path) -> Iterator[Path]:
    """A file of this machine with the content of ``path``: itself, or a copy that goes when the block ends.

    A copy, because a decoder jumps within a file, and each jump would be a request.

    Raises:
        ValueError: if an address cannot be fetched.
    """
    if not is_address(path):
        yield Path(path)
        return
    storage, name = storage_of(str(path))
    with tempfile.TemporaryDirectory(prefix="sidelight-") as folder:
        copy = Path(folder) / PurePosixPath(name).name
        try:
            storage.get_file(name, str(copy))
        except Exception as error:
            raise ValueError(f"{path} cannot be fetched ({_said(error)}); check the address and the access") from None
        yield copy


def put_file(local: Path, address: str) -> None:
    """Copy a file to an address, so that it appears whole or not at all.

    Raises:
        ValueError: if it cannot be written.
    """
    storage, name = storage_of(address)
    try:
        storage.makedirs(str(PurePosixPath(name).parent), exist_ok=True)
        if storage.protocol in ("file", ("file", "local")) or "memory" in storage.protocol:
            beside = str(PurePosixPath(name).with_name(f".{PurePosixPath(name).name}.partial"))
            storage.put_file(str(local), beside)
            storage.mv(beside, name)
        else:
            storage.put_file(str(local), name)  # an object appears when it is complete
    except Exception as error:
        raise ValueError(f"{address} cannot be written ({_said(error)}); check the address and the access") from None


def sizes_of(address: str) -> dict[str, int]:
    """Name -> bytes of each file in a folder of object storage; empty if there is none.

    Raises:
        ValueError: if the storage cannot be used or reached.
    """
    storage, path = storage_of(address.rstrip("/"))
    try:
        entries = storage.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    except Exception as error:
        raise ValueError(f"{address} cannot be listed ({_said(error)}); check the address and the access") from None
    names = {PurePosixPath(e["name"]).name: int(e["size"] or 0) for e in entries if e["type"] == "file"}
    return {name: size for name, size in names.items() if not name.startswith(".")}


def fetch(address: str, name: str, folder: Path, *, size: int | None = None) -> None:
    """Copy ``address/name`` into a folder of this machine, unless it is there (and of that size).

    Raises:
        ValueError: if it cannot be fetched, or its name would lead out of the folder.
    """
    target = folder / name
    if folder.resolve() not in target.resolve().parents:
        raise ValueError(f"{address}/{name} would be copied out of {folder}; rename it")
    if target.exists() and size in (None, target.stat().st_size):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with local_copy(f"{address.rstrip('/')}/{name}") as copy, replacing(target) as beside:
        shutil.copyfile(copy, beside)


def cached(address: str, folders: tuple[str, ...]) -> Path:
    """A folder in the user's cache with the files of an address, and of these folders in it.

    Only files that are new, or of another size, are fetched.

    Raises:
        ValueError: if the storage cannot be used or reached.
    """
    address = address.rstrip("/")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sidelight" / "stores"
    copy = cache / hashlib.sha256(address.encode()).hexdigest()[:16]
    for part in ("", *(f"{name}/" for name in folders)):
        (copy / part).mkdir(parents=True, exist_ok=True)
        for name, size in sizes_of(f"{address}/{part}").items():
            fetch(address, f"{part}{name}", copy, size=size)
    return copy


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
