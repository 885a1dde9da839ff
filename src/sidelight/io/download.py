"""Download the files of models: say what is coming, resume where a download stopped, and check every file.

Downloads are made here and not by the hub's client, because its version 2 begins a file anew after an interruption.
Partial files have a fixed name, a lock that processes share, and are renamed when they are complete and checked.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from sidelight.core.messages import and_list, size_of
from sidelight.io.files import require_writable_folder
from sidelight.io.pinned import (
    Download,
    HubFile,
    check_file,
    digest_of,
    expected_digest,
    fits,
    local_folder,
    models_cache,
    only_process,
    record,
)

_LOGGER = logging.getLogger(__name__)
_OFFLINE_VARIABLES = ("SIDELIGHT_OFFLINE", "HF_HUB_OFFLINE")
_TRIES = 3
"""Tries in a row that bring no byte, after which a broken download gives up."""
_BLOCK = 1 << 20
_PARTIAL = ".part"


class DownloadError(ValueError):
    """A file is not on this machine and cannot be downloaded now."""


# offline ------------------------------------------------------------------------------------------------------------

_OFFLINE: ContextVar[bool] = ContextVar("offline", default=False)


@contextlib.contextmanager
def offline(active: bool = True) -> Iterator[None]:
    """Use no network inside the block: what is not on this machine is refused with one sentence."""
    token = _OFFLINE.set(active or _OFFLINE.get())
    try:
        yield
    finally:
        _OFFLINE.reset(token)


def is_offline() -> bool:
    """Check whether no network may be used: by :func:`offline`, or by SIDELIGHT_OFFLINE or HF_HUB_OFFLINE."""
    values = (os.environ.get(name, "").lower() for name in _OFFLINE_VARIABLES)
    return _OFFLINE.get() or any(value in ("1", "true", "yes", "on") for value in values)


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
            reason = "sidelight must not use the network (--offline)"
            raise DownloadError(_by_hand(missing, needed_by, reason, "leave that out, or ", hint))
        if pages := [download for download in missing if download.page]:
            raise DownloadError(_by_hand(pages, needed_by, "only a person can download it", "", hint))
        _require_room(missing)
        try:
            _opened(missing[0].address(missing[0].files[0]), 0, method="HEAD").close()
        except _MethodError:
            pass  # some mirrors know GET only
        except (_UnreachableError, _BrokenError) as error:
            raise DownloadError(_by_hand(missing, needed_by, str(error), "try again later, or ", hint)) from None
        _LOGGER.warning(announcement(missing, needed_by, hint))
        for download in missing:
            folders[download] = _download(download, missing, needed_by, hint)
    return [folder for folder in folders.values() if folder is not None]


def _checked(downloads: Sequence[Download]) -> str:
    if all(file.sha256 for download in downloads for file in download.files):
        return "Every file is compared with its checksum."
    return "Files are compared with their checksums; where none is known yet, it is recorded for later."


def announcement(downloads: Sequence[Download], needed_by: str, hint: str = "") -> str:
    """Return the screen that is shown before a download: what, size, licence, from where, into which folder."""
    rows = [("what", "size", "licence", "from")]
    rows += [(d.title, size_of(d.size) if d.size else "?", d.licence, d.source) for d in downloads]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    have = sum(_partial_size(d, file) for d in downloads for file in d.files)
    partly = f", of which {size_of(have)} are here" if have else ""
    lines = [f"{needed_by} is not on this machine yet. It is downloaded once; later it needs no network.", ""]
    lines += ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [
        "",
        f"  into {models_cache()} (SIDELIGHT_CACHE names another folder), "
        f"in all {size_of(sum(d.size for d in downloads))}{partly}.",
        f"  {_checked(downloads)} After Ctrl-C the same command goes on where it stopped.",
    ]
    return "\n".join([*lines, *([f"  {hint[0].upper()}{hint[1:]}."] if hint else []), ""])


def _by_hand(downloads: Sequence[Download], needed_by: str, reason: str, again: str, hint: str) -> str:
    """Return the sentence for files that are missing: their addresses, and how to bring them."""
    parts = []
    for download in downloads:
        first, *others = download.files
        beside = f" (with {and_list([file.name for file in others])} from beside it)" if others else ""
        parts.append(f"{download.address(first)}{beside}")
    return (
        f"{needed_by} is not on this machine, and {reason}: {again}bring the files by hand: download "
        f"{' and '.join(parts)} on another machine into one folder, copy the folder here and run: "
        f"sidelight models import FOLDER{f'; {hint}' if hint else ''}"
    )


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
        with only_process(download.key(file)):
            if target.is_file():  # another process was first, or an earlier call got as far as this file
                check_file(download, file, target)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                _download_file(download, file, target)
            except _UnreachableError as error:
                raise DownloadError(_by_hand(missing, needed_by, str(error), "try again later, or ", hint)) from None
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
    if began_with and not fits(download, file, digest):
        # The part may be of another file, or damaged. The file from its beginning decides.
        partial.unlink()
        _receive(download.address(file), partial, label=file.name, size=file.size)
        digest = digest_of(partial)
    if not fits(download, file, digest):
        partial.unlink()
        raise ValueError(
            f"{download.address(file)} has other content than expected: its SHA-256 begins with {digest[:8]}, expected "
            f"{expected_digest(download, file, digest)[:8]}; it was not kept: try again later or from another network, "
            "and report it if this stays so"
        )
    partial.replace(target)
    record(download, file, target, digest)


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
                    total = _total_size(response)
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
            except _RangeError as error:
                if have == error.size:  # an earlier call was stopped between the last byte and the comparison
                    return
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
                raise DownloadError(f"the download of {label} stopped: {reason}; the same command goes on from there")
            time.sleep(2**failures - 1)


class _MethodError(Exception):
    """The server knows no HEAD requests."""


class _BrokenError(Exception):
    """The connection could not be made, or broke."""


class _RangeError(Exception):
    """The server does not have the bytes after the part: it is complete, or of another file.

    Args:
        size: bytes of the whole file; None if the server does not say it.
    """

    def __init__(self, size: int | None) -> None:
        super().__init__()
        self.size = size


def _opened(address: str, start: int, *, method: str = "GET") -> Any:
    """Return the response with the bytes of a file from ``start`` on; with the method HEAD, one without content."""
    import ssl
    import urllib.error
    import urllib.request

    from huggingface_hub import get_token

    from sidelight import __version__

    request = urllib.request.Request(
        address,
        headers={"User-Agent": f"sidelight/{__version__}", "Accept-Encoding": "identity"},
        method=method,
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
            raise _RangeError(_size_in_range(error.headers)) from None
        if error.code in (405, 501) and method == "HEAD":
            raise _MethodError from None
        if error.code in (401, 403, 404, 410):
            name = address.rpartition("/")[2]
            raise _UnreachableError(f"{host} does not provide {name} (HTTP {error.code})") from None
        raise _BrokenError(f"{host} answers with HTTP {error.code}") from None
    except OSError as error:  # URLError, time-outs, refused connections
        cause = getattr(error, "reason", error)
        reason = str(getattr(cause, "strerror", None) or cause).rstrip(".") or type(error).__name__
        raise _BrokenError(f"{host} cannot be reached ({reason})") from None


def _read(response: Any) -> bytes:
    import http.client

    try:
        return bytes(response.read(_BLOCK))
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(f"the connection broke off ({str(error) or type(error).__name__})") from None


def _total_size(response: Any) -> int | None:
    """Return the size of the whole file by the headers of a response; None if they do not say it."""
    if response.status == 206:
        return _size_in_range(response.headers)
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _size_in_range(headers: Any) -> int | None:
    """Return the size of the whole file by the header Content-Range; None if it does not say it."""
    total = headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isdigit() else None
