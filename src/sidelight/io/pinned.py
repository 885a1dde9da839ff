"""The files that models need: where they are, and whether they are still the same.

A file is known by its place on the Hugging Face hub (repository, revision, path) and by its SHA-256, or the first
digits of it. ``models.toml`` in the cache, the *lock file*, records the SHA-256 of each file at its first use; a file
that changes later is refused. Files that the hub's own client has in its cache are used from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sidelight.core.messages import and_list
from sidelight.io.files import cache_folder, replacing, write_text

_LOGGER = logging.getLogger(__name__)

LOCK_FILE = "models.toml"
"""Name of the lock file, in the folder of models of the cache."""
ANY_DIGEST = "SIDELIGHT_ANY_DIGEST"
"""Environment variable for tests and rehearsals: files are not compared with the digests that sidelight knows. The lock
file still counts.
"""
_BLOCK = 1 << 20


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
    """Licence of the files, for announcements."""
    repository: str
    """OWNER/NAME on the hub."""
    files: tuple[HubFile, ...]
    """The file with the weights first."""
    revision: str = "main"
    """Commit; a branch, whose files may change, only if no commit is known. The lock file refuses a later change."""
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

    def missing_files(self) -> list[HubFile]:
        """Return the files that are not on this machine, without reading any."""
        if is_here(self):
            return []
        return [file for file in self.files if not (self.folder / file.path).is_file()]

    def address(self, file: HubFile) -> str:
        """Return the address of a file."""
        return self.page or f"{_endpoint()}/{self.repository}/resolve/{self.revision}/{file.path}"

    def key(self, file: HubFile) -> str:
        """Return the name of a file in the lock file."""
        return f"{self.repository}@{self.revision}/{file.path}"


def models_cache() -> Path:
    """Return the folder of models in the cache: downloaded files, converted checkpoints, the lock file."""
    return cache_folder("models")


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


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
    if not fits(download, file, digest):
        expected = expected_digest(download, file, digest)
        recorded = f", recorded on {entry['recorded'][:10]} in {models_cache() / LOCK_FILE}" if entry else ""
        raise ValueError(
            f"{path} was changed or is damaged: its SHA-256 begins with {digest[:8]}, expected {expected[:8]}"
            f"{recorded}; delete this file, and the same command downloads it again"
        )
    record(download, file, path, digest)


def fits(download: Download, file: HubFile, digest: str) -> bool:
    """Check the digest of a file against the known and the recorded one."""
    known = file.sha256 if compares_digests() else ""
    return digest.startswith(known) and digest.startswith(_lock_entries().get(download.key(file), {}).get("sha256", ""))


def compares_digests() -> bool:
    """Check whether files are compared with the digests that sidelight knows; :data:`ANY_DIGEST` turns this off."""
    return not os.environ.get(ANY_DIGEST)


def expected_digest(download: Download, file: HubFile, digest: str) -> str:
    """Return the known digits or the recorded digest of a file, whichever a digest does not fit."""
    if compares_digests() and not digest.startswith(file.sha256):
        return file.sha256
    return _lock_entries().get(download.key(file), {}).get("sha256", "")


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


def record(download: Download, file: HubFile, path: Path, digest: str) -> None:
    """Write the digest of a file into the lock file, with its place, size and time of change, which spare a reading."""
    target = models_cache() / LOCK_FILE
    with contextlib.suppress(OSError), only_process(LOCK_FILE):  # a read-only cache records nothing
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
        about = "# The files of models that sidelight uses, each with its SHA-256. Files that change are refused.\n"
        write_text(target, "\n".join([about, *(f"{table}\n" for table in tables)]))


def _quoted(text: str) -> str:
    """Return a text as TOML writes it; a string of JSON is one of TOML too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


@contextlib.contextmanager
def only_process(name: str) -> Iterator[None]:
    """Let one process at a time into the block with this name; another one says that it waits."""
    from filelock import FileLock, Timeout

    folder = models_cache() / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _LOGGER.warning("another process works on %s; waiting for it", name.rpartition("/")[2])
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


# by hand ------------------------------------------------------------------------------------------------------------


def import_file(path: str | Path, known: Iterable[Download]) -> list[Download]:
    """Copy a file that a person downloaded into the cache.

    The file is recognised by its SHA-256. Where no digest of it is known, it is recognised by its name, if the other
    files of the same download without a digest lie beside it: many models have a ``config.json``.

    Args:
        path: the file.
        known: the downloads that it may belong to.

    Returns:
        The downloads that the file belongs to.

    Raises:
        ValueError: if it is none of these files, or has the name of one of them and other content.
    """
    path = Path(path)
    digest = digest_of(path)
    pairs = [(download, file) for download in dict.fromkeys(known) for file in download.files]
    named = [(download, file) for download, file in pairs if file.name == path.name]
    by_digest = [(download, file) for download, file in pairs if file.sha256 and digest.startswith(file.sha256)]
    named_fits = [(download, file) for download, file in named if fits(download, file, digest)]
    fitting = by_digest or [(download, file) for download, file in named_fits if not _lacking_beside(path, download)]
    if not fitting and named_fits:
        download, _ = named_fits[0]
        others = and_list(_lacking_beside(path, download))
        raise ValueError(f"{path} belongs to {download.title}, together with {others}: put all of them into one folder")
    if not fitting and named:
        download, file = named[0]
        raise ValueError(
            f"{path} is not the {path.name} that sidelight knows: its SHA-256 begins with {digest[:8]}, expected "
            f"{expected_digest(download, file, digest)[:8]}; download it again from {download.address(file)}"
        )
    if not fitting:
        raise ValueError(
            f"{path} is no file of a model that sidelight knows (`sidelight models` lists them); for a checkpoint of "
            "your own use sidelight convert, or give its folder to --model"
        )
    if not by_digest and len(fitting) > 1:
        names = and_list([download.title for download, _ in fitting])
        raise ValueError(f"{path} could belong to {names}, because no digest of it is known; let sidelight download it")
    for download, file in fitting:
        target = download.folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        with only_process(download.key(file)):
            with replacing(target) as beside:
                shutil.copyfile(path, beside)
            record(download, file, target, digest)
    return [download for download, _ in fitting]


def _lacking_beside(path: Path, download: Download) -> list[str]:
    """Return the names of a download's files that only their names tell, and that are not in the folder of a file."""
    return [file.name for file in download.files if not file.sha256 and not path.with_name(file.name).is_file()]


def remove(download: Download) -> int:
    """Delete the files of a download from sidelight's folder and return their bytes; their digests stay recorded."""
    folder = download.folder
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    shutil.rmtree(folder, ignore_errors=True)
    return size
