"""Download the files of models: say what is coming, resume where a download stopped, and check every file.

A file is known by its place on the Hugging Face hub (repository, revision, path) and by its SHA-256, or the first
digits of it. ``models.toml`` in the cache, the *lock file*, records the SHA-256 of each file at its first use; a file
that changes later is refused. Files that the hub's own client has in its cache are used from there.

Downloads are made here and not by the hub's client, because its version 2 begins a file anew after an interruption.
Partial files have a fixed name, a lock that processes share, and are renamed when they are complete and checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidelight.core.messages import size_of
from sidelight.io.files import cache_folder, replacing, require_writable_folder, write_text

LOCK_FILE = "models.toml"
"""Name of the lock file, in the folder of models of the cache."""
ANY_DIGEST = "SIDELIGHT_ANY_DIGEST"
"""Environment variable for tests and rehearsals: files are not compared with the digests that sidelight knows. The lock
file still counts.
"""
_OFFLINE_VARIABLES = ("SIDELIGHT_OFFLINE", "HF_HUB_OFFLINE")
_TRIES = 3
"""Tries in a row that bring no byte, after which a broken download gives up."""
_BLOCK = 1 << 20
_PARTIAL = ".part"


class DownloadError(ValueError):
    """A file is not on this machine and cannot be downloaded now."""


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """One file of a repository on the Hugging Face hub."""

    path: str
    """Path in the repository."""
    sha256: str = ""
    """SHA-256 in hex digits, or the first digits that are known; "" if none is, and the lock file records it."""
    size: int = 0
    """Bytes, for announcements; 0 if unknown."""

    @property
    def name(self) -> str:
        """Return the file's name without folders."""
        return self.path.rsplit("/", 1)[-1]


@dataclass(frozen=True, kw_only=True)
class Download:
    """Files of one repository that belong together, such as the weights of a backbone and its vocabulary."""

    title: str
    """A few words that say what it is."""
    licence: str
    repository: str
    """OWNER/NAME on the hub."""
    files: tuple[HubFile, ...]
    """The file with the weights first."""
    revision: str = "main"
    """Commit; a branch only if all digests are known."""
    page: str = ""
    """Web page where a person downloads the files, if sidelight cannot: they then come by `sidelight models import`."""

    @property
    def folder(self) -> Path:
        """Return the folder in which sidelight keeps the files."""
        return models_cache() / "files" / self.repository.replace("/", "--") / self.revision[:12]

    @property
    def size(self) -> int:
        """Return the bytes of all files, as far as they are known."""
        return sum(file.size for file in self.files)

    @property
    def source(self) -> str:
        """Return where the files come from, for announcements."""
        return self.page or f"{_endpoint()}/{self.repository}".partition("://")[2]

    def address(self, file: HubFile) -> str:
        """Return the address of a file."""
        return self.page or f"{_endpoint()}/{self.repository}/resolve/{self.revision}/{file.path}"

    def key(self, file: HubFile) -> str:
        """Return the name of a file in the lock file."""
        return f"{self.repository}@{self.revision}/{file.path}"


def models_cache() -> Path:
    """Return the folder of models in the cache: downloaded files, converted checkpoints, the lock file."""
    return cache_folder("models")


# offline ------------------------------------------------------------------------------------------------------------

_OFFLINE: ContextVar[bool] = ContextVar("offline", default=False)


@contextlib.contextmanager
def offline(active: bool = True) -> Iterator[None]:
    """Ask no network inside the block: what is not on this machine is refused with one sentence."""
    token = _OFFLINE.set(active or _OFFLINE.get())
    try:
        yield
    finally:
        _OFFLINE.reset(token)


def is_offline() -> bool:
    """Check whether no network may be asked: by :func:`offline`, or by SIDELIGHT_OFFLINE or HF_HUB_OFFLINE."""
    values = (os.environ.get(name, "").lower() for name in _OFFLINE_VARIABLES)
    return _OFFLINE.get() or any(value in ("1", "true", "yes", "on") for value in values)


# where files are ----------------------------------------------------------------------------------------------------


def local_folder(download: Download) -> Path | None:
    """Return the folder with all files of a download, checked; None if a file is missing.

    Raises:
        ValueError: if a file is not the one that is known or was recorded.
    """
    for folder in (download.folder, _client_folder(download)):
        if folder is not None and all((folder / file.path).is_file() for file in download.files):
            for file in download.files:
                check_file(download, file, folder / file.path)
            return folder
    return None


def is_here(download: Download) -> bool:
    """Check whether all files of a download are on this machine, without reading them."""
    folders = (download.folder, _client_folder(download))
    return any(folder and all((folder / file.path).is_file() for file in download.files) for folder in folders)


def _client_folder(download: Download) -> Path | None:
    """Return the folder in the cache of the hub's client that has all files of a download; None if there is none."""
    if download.page:
        return None
    from huggingface_hub import try_to_load_from_cache

    folders = set()
    for file in download.files:
        path = try_to_load_from_cache(download.repository, file.path, revision=download.revision)
        if not isinstance(path, str):
            return None
        folders.add(Path(path[: -len(file.path)]))
    return folders.pop() if len(folders) == 1 else None


def fetch(downloads: Sequence[Download], *, needed_by: str, hint: str = "") -> list[Path]:
    """Return the folder of each download; what is missing is announced on stderr, downloaded and checked.

    Args:
        downloads: what is needed.
        needed_by: name of the model, for the announcement and for messages.
        hint: a last line of the announcement and a last clause of the message without a network.

    Raises:
        DownloadError: if a file is missing and cannot be downloaded; the sentence says how to bring it by hand.
        ValueError: if a file is not the one that is known or was recorded, or the cache cannot be written.
    """
    folders = {download: local_folder(download) for download in downloads}
    missing = [download for download, folder in folders.items() if folder is None]
    if missing:
        if is_offline():
            raise DownloadError(_by_hand(missing, needed_by, "sidelight must not ask the network (--offline)", hint))
        if pages := [download for download in missing if download.page]:
            raise DownloadError(_by_hand(pages, needed_by, "sidelight cannot download such a page itself", hint))
        _require_room(missing)
        print(announcement(missing, needed_by, hint), file=sys.stderr, flush=True)
        for download in missing:
            folders[download] = _download(download, missing, needed_by, hint)
    return [folder for folder in folders.values() if folder is not None]


def announcement(downloads: Sequence[Download], needed_by: str, hint: str = "") -> str:
    """Return the screen that is shown before a download: what, size, licence, from where, into which folder."""
    rows = [("what", "size", "licence", "from")]
    rows += [(d.title, size_of(d.size) if d.size else "?", d.licence, d.source) for d in downloads]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{needed_by} is not on this machine yet. It is downloaded once; later it needs no network.", ""]
    lines += ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [
        "",
        f"  into {models_cache()} (SIDELIGHT_CACHE names another folder), "
        f"in all {size_of(sum(d.size for d in downloads))}.",
        "  Every file is compared with its checksum. After Ctrl-C the same command goes on where it stopped.",
    ]
    return "\n".join([*lines, *([f"  {hint[0].upper()}{hint[1:]}."] if hint else []), ""])


def _by_hand(downloads: Sequence[Download], needed_by: str, reason: str, hint: str) -> str:
    """Return the sentence for files that are missing: their addresses, and how to bring them."""
    parts = []
    for download in downloads:
        first, *others = download.files
        beside = f" and, beside it, {_and([file.name for file in others])}" if others else ""
        parts.append(f"{download.address(first)}{beside}")
    names = " ".join(download.files[0].name for download in downloads)
    folder = " (or the folder that holds them)" if any(len(download.files) > 1 for download in downloads) else ""
    return (
        f"{needed_by} is not on this machine, and {reason}: download {_and(parts)} on a machine with a network, copy "
        f"the files here, and run: sidelight models import {names}{folder}{f'; {hint}' if hint else ''}"
    )


def _and(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts)


# downloading --------------------------------------------------------------------------------------------------------


def _require_room(downloads: Sequence[Download]) -> None:
    """Refuse, before the download, a cache that cannot be written or that is too small."""
    folder = models_cache()
    try:
        require_writable_folder(folder)
    except ValueError as error:
        raise ValueError(
            f"downloads cannot be kept in {folder} ({error}): set SIDELIGHT_CACHE to a folder that can be written"
        ) from None
    needed = sum(d.size for d in downloads) - sum(_partial_size(d, file) for d in downloads for file in d.files)
    free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
    if free < needed:
        raise ValueError(
            f"{folder} has {size_of(free)} free, and the download needs {size_of(needed)}: make room there, or set "
            "SIDELIGHT_CACHE to another folder"
        )


def _partial_size(download: Download, file: HubFile) -> int:
    target = download.folder / file.path
    path = target if target.is_file() else target.with_name(target.name + _PARTIAL)
    return path.stat().st_size if path.is_file() else 0


def _download(download: Download, missing: Sequence[Download], needed_by: str, hint: str) -> Path:
    for file in download.files:
        target = download.folder / file.path
        with _only_process(download.key(file)):
            if target.is_file():  # another process was first, or an earlier call got as far as this file
                check_file(download, file, target)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                _download_file(download, file, target)
            except _UnreachableError as error:
                raise DownloadError(_by_hand(missing, needed_by, str(error), hint)) from None
    return download.folder


class _UnreachableError(Exception):
    """The clause of a sentence that says why a file cannot be downloaded."""


def _download_file(download: Download, file: HubFile, target: Path) -> None:
    """Download one file; go on with the part that an earlier try left."""
    partial = target.with_name(target.name + _PARTIAL)
    began_with = partial.stat().st_size if partial.is_file() else 0
    try:
        _receive(download.address(file), partial, label=file.name, size=file.size)
    except OSError as error:  # the disk is full, or the folder became read-only
        raise ValueError(
            f"{file.name} cannot be written into {target.parent} ({error.strerror or error}): make room there, or set "
            "SIDELIGHT_CACHE to another folder; the same command goes on where this one stopped"
        ) from None
    digest = digest_of(partial)
    if began_with and not _fits(download, file, digest):
        # The part may be of another file, or damaged. The file from its beginning decides.
        partial.unlink()
        _receive(download.address(file), partial, label=file.name, size=file.size)
        digest = digest_of(partial)
    if not _fits(download, file, digest):
        partial.unlink()
        raise ValueError(
            f"{download.address(file)} has other content than expected: its SHA-256 begins with {digest[:8]}, expected "
            f"{_expected(download, file)[:8]}; the file was not kept. Try again later or from another network, and "
            "report it if it stays so"
        )
    partial.replace(target)
    _record(download, file, target, digest)


def _receive(address: str, partial: Path, *, label: str, size: int) -> None:
    """Append the rest of a file to its part, with a progress bar.

    Raises:
        _UnreachableError: if the file cannot be reached, or the connection breaks again and again.
        OSError: if the part cannot be written.
    """
    from tqdm import tqdm

    have = partial.stat().st_size if partial.is_file() else 0
    with tqdm(
        total=size or None, initial=have, desc=label, unit="B", unit_scale=True, file=sys.stderr, disable=None
    ) as bar:
        failures = 0
        while True:
            before = have
            try:
                with _opened(address, have) as response:
                    total = _total_size(response, have)
                    if response.status == 200 and have:  # the server begins anew
                        bar.update(-have)
                        have = before = 0
                    bar.total = total or bar.total
                    with open(partial, "ab" if have else "wb") as out:
                        while block := _read(response):
                            out.write(block)
                            have += len(block)
                            bar.update(len(block))
                if total is None or have >= total:
                    return
                reason = f"the connection broke off after {size_of(have)} of {size_of(total)}"
            except _RangeError:  # the part is longer than the file
                partial.unlink()
                bar.update(-have)
                have = before = 0
                reason = "the part of an earlier download does not fit"
            except _BrokenError as error:
                if not have:
                    raise _UnreachableError(str(error)) from None
                reason = str(error)
            failures = 0 if have > before else failures + 1
            if failures == _TRIES:
                raise _UnreachableError(f"{reason}; the same command goes on from there")
            time.sleep(2**failures - 1)


class _BrokenError(Exception):
    """The connection could not be made, or broke."""


class _RangeError(Exception):
    """The server does not have the bytes after the part."""


def _opened(address: str, start: int) -> Any:
    """Return the response with the bytes of a file from ``start`` on."""
    import ssl
    import urllib.error
    import urllib.request

    from huggingface_hub import get_token

    from sidelight import __version__

    request = urllib.request.Request(
        address, headers={"User-Agent": f"sidelight/{__version__}", "Accept-Encoding": "identity"}
    )
    if start:
        request.add_header("Range", f"bytes={start}-")
    if token := get_token():
        request.add_unredirected_header("Authorization", f"Bearer {token}")  # not for the host of the content
    certificates = ssl.create_default_context()
    with contextlib.suppress(ImportError):  # Python's own builds for macOS bring no certificates
        import certifi

        certificates.load_verify_locations(certifi.where())
    host = address.partition("://")[2].partition("/")[0]
    try:
        return urllib.request.urlopen(request, timeout=20, context=certificates)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            raise _RangeError from None
        if error.code in (401, 403, 404, 410):
            raise _UnreachableError(f"{host} does not give the file away (HTTP {error.code})") from None
        raise _BrokenError(f"{host} answers with HTTP {error.code}") from None
    except OSError as error:  # URLError, time-outs, refused connections
        reason = str(getattr(error, "reason", error)).rstrip(".") or type(error).__name__
        raise _BrokenError(f"{host} cannot be reached ({reason})") from None


def _read(response: Any) -> bytes:
    import http.client

    try:
        return bytes(response.read(_BLOCK))
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(f"the connection broke off ({error or type(error).__name__})") from None


def _total_size(response: Any, have: int) -> int | None:
    """Return the size of the whole file by the headers of a response; None if they do not say it."""
    if response.status == 206:
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        return int(total) if total.isdigit() else None
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


@contextlib.contextmanager
def _only_process(name: str) -> Iterator[None]:
    """Let one process at a time into the block with this name; another one says that it waits."""
    from filelock import FileLock, Timeout

    folder = models_cache() / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"another process works on {name.rpartition('/')[2]}; waiting for it", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


# digests and the lock file ------------------------------------------------------------------------------------------


def digest_of(path: str | Path) -> str:
    """Return the SHA-256 of a file in hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as content:
        while block := content.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def check_file(download: Download, file: HubFile, path: Path) -> None:
    """Compare a file with the digest that is known and with the one that was recorded.

    A file whose size and time of change are those of the last comparison is not read again.

    Raises:
        ValueError: if the file is another one.
    """
    entry, status = _lock_entries().get(download.key(file), {}), path.stat()
    if entry.get("path") == str(path) and entry.get("seen") == _seen(status):
        return
    digest = digest_of(path)
    if not _fits(download, file, digest):
        expected = _expected(download, file)
        recorded = f", recorded on {entry['recorded'][:10]} in {models_cache() / LOCK_FILE}" if entry else ""
        raise ValueError(
            f"{path} was changed or is damaged: its SHA-256 begins with {digest[:8]}, expected {expected[:8]}"
            f"{recorded}; delete this file, and the same command downloads it again"
        )
    _record(download, file, path, digest)


def _fits(download: Download, file: HubFile, digest: str) -> bool:
    """Check a digest against the known and the recorded one."""
    known = file.sha256 if compares_digests() else ""
    return digest.startswith(known) and digest.startswith(_lock_entries().get(download.key(file), {}).get("sha256", ""))


def compares_digests() -> bool:
    """Check whether files are compared with the digests that sidelight knows; :data:`ANY_DIGEST` turns this off."""
    return not os.environ.get(ANY_DIGEST)


def _expected(download: Download, file: HubFile) -> str:
    recorded: str = _lock_entries().get(download.key(file), {}).get("sha256", "")
    return recorded or (file.sha256 if compares_digests() else "")


def _seen(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def _lock_entries() -> dict[str, dict[str, str]]:
    """Return the entries of the lock file.

    Raises:
        ValueError: if somebody made it unreadable.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    path = models_cache() / LOCK_FILE
    try:
        entries: dict[str, dict[str, str]] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is not valid TOML ({error}); correct it, or delete it to record anew") from None
    return entries


def _record(download: Download, file: HubFile, path: Path, digest: str) -> None:
    """Write the digest of a file into the lock file, with its place, size and time of change, which spare a reading."""
    target = models_cache() / LOCK_FILE
    with contextlib.suppress(OSError), _only_process(LOCK_FILE):  # a read-only cache records nothing
        entries = _lock_entries()
        old = entries.get(download.key(file), {})
        entries[download.key(file)] = {
            "sha256": digest,
            "recorded": old.get("recorded") or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "path": str(path),
            "seen": _seen(path.stat()),
        }
        tables = [
            "\n".join([f"[{_quoted(key)}]", *(f"{name} = {_quoted(value)}" for name, value in entry.items())])
            for key, entry in sorted(entries.items())
        ]
        about = (
            "# The files of models that sidelight uses, each with its SHA-256. A file that is another one is refused.\n"
        )
        write_text(target, "\n".join([about, *(f"{table}\n" for table in tables)]))


def _quoted(text: str) -> str:
    """Return a text as TOML writes it; a string of JSON is one of TOML too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


# by hand ------------------------------------------------------------------------------------------------------------


def import_file(path: str | Path, known: Iterable[Download]) -> tuple[Download, HubFile]:
    """Copy a file that a person downloaded into the cache.

    The file is recognised by its SHA-256, or by its name where no digest of it is known.

    Args:
        path: the file.
        known: the downloads that it may belong to.

    Returns:
        The download and the file of it that this is.

    Raises:
        ValueError: if it is none of these files, or has the name of one of them and other content.
    """
    path = Path(path)
    digest = digest_of(path)
    pairs = [(download, file) for download in dict.fromkeys(known) for file in download.files]
    named = [(download, file) for download, file in pairs if file.name == path.name]
    by_digest = [(download, file) for download, file in pairs if file.sha256 and digest.startswith(file.sha256)]
    fitting = by_digest or [(download, file) for download, file in named if _fits(download, file, digest)]
    if not fitting and named:
        expected = _expected(*named[0])
        raise ValueError(
            f"{path} is not the {path.name} that sidelight knows: its SHA-256 begins with {digest[:8]}, expected "
            f"{expected[:8]}; download it again from {named[0][0].address(named[0][1])}"
        )
    if not fitting:
        raise ValueError(
            f"{path} is no file of a model that sidelight knows (`sidelight models` lists them); for a checkpoint of "
            "your own use sidelight convert, or give its folder to --model"
        )
    if len({file.sha256 for _, file in fitting}) > 1 or (not by_digest and len(fitting) > 1):
        names = _and([download.title for download, _ in fitting])
        raise ValueError(f"{path} could belong to {names}: say which model needs it by --model NAME")
    for download, file in fitting:
        target = download.folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        with _only_process(download.key(file)):
            with replacing(target) as beside:
                shutil.copyfile(path, beside)
            _record(download, file, target, digest)
    return fitting[0]


def remove(download: Download) -> int:
    """Delete the files of a download from sidelight's folder and return their bytes; their digests stay recorded."""
    folder = download.folder
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    shutil.rmtree(folder, ignore_errors=True)
    return size


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
