"""Find video files in a folder, and write files so that each appears complete or not at all."""

from __future__ import annotations

import codecs
import contextlib
import errno
import glob
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sidelight.io.new_folders import require_parent

ANIMATION_SUFFIXES = (".gif", ".apng")
"""Animations. Beside a video of the same name they are its preview, and are not read."""
VIDEO_SUFFIXES = (
    *(".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".ts", ".mpg", ".mpeg"),
    *(".3g2", ".3gp", ".f4v", ".ismv", ".k3g", ".mj2", ".psp", ".qt"),  # relatives of MP4
    *(".m2t", ".m2ts", ".mts", ".tod", ".tp", ".trp"),  # MPEG-TS, as cameras and television receivers write it
    *(".evo", ".m1v", ".m2p", ".m2v", ".mod", ".mpe", ".vob"),  # MPEG-1 and MPEG-2
    *(".asf", ".divx", ".dvr-ms", ".wm", ".wmv", ".wtv"),  # Windows
    *(".amv", ".flv", ".ivr", ".mk3d", ".nsv", ".nut", ".nuv", ".ogm", ".ogv", ".rm", ".rmvb", ".swf", ".ty", ".viv"),
    *(".dav", ".dif", ".dv", ".gxf", ".imx", ".lxf", ".mxf"),  # cameras and studios
    *(".264", ".265", ".266", ".avc", ".h261", ".h263", ".h264", ".h265", ".h266", ".hevc", ".ivf", ".mjpeg", ".mjpg"),
    *(".obu", ".vc1", ".vvc", ".y4m"),
    *ANIMATION_SUFFIXES,
)
"""The suffixes of video files, in lower case: every container and raw stream that FFmpeg reads and people use. A file
with another suffix is read if it is named itself.
"""
USUAL_SUFFIXES = f"{', '.join(VIDEO_SUFFIXES[:5])} or another suffix of videos"
"""The suffixes of video files, for messages."""


def videos_in(folder: str | Path, vids: Iterable[str] | None = None) -> dict[str, Path]:
    """Return the video files of a folder, not of folders in it: id (the file's name without suffix) -> file, sorted.

    Args:
        folder: the folder.
        vids: the ids to return; all unless given. An id without a file is left out.

    Raises:
        ValueError: if it is not a folder, or two files have the same id.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected the folder with the video files")
    wanted_vids = None if vids is None else set(vids)
    files: dict[str, Path] = {}
    for name in video_names(path.name for path in folder.iterdir())[0]:
        vid = Path(name).stem
        if wanted_vids is not None and vid not in wanted_vids:
            continue
        if vid in files:
            raise ValueError(
                f"{files[vid]} and {folder / name} would both be the video {vid!r}: an id is a file's name without "
                "suffix; remove or rename one of them"
            )
        files[vid] = folder / name
    return files


def ignored_in(folder: str | Path) -> str:
    """Return a clause for messages about the files of a folder that are not taken for videos; "" if there are none."""
    ignored = video_names(path.name for path in Path(folder).iterdir())[1]
    return f"; ignored files: {ignored}" if ignored else ""


def video_names(names: Iterable[str]) -> tuple[list[str], str]:
    """Select the names of video files from the names in a folder.

    Args:
        names: names of files. A hidden file is no video: macOS puts a "._film.mp4" beside a film that it copies.

    Returns:
        The names of videos, sorted, and a few words about the names that were left out; "" if there are none.
    """
    shown_names = sorted(name for name in names if not name.startswith("."))
    by_suffix = [name for name in shown_names if Path(name).suffix.lower() in VIDEO_SUFFIXES]
    is_animation = {name: Path(name).suffix.lower() in ANIMATION_SUFFIXES for name in by_suffix}
    films = {Path(name).stem for name in by_suffix if not is_animation[name]}
    previews = [name for name in by_suffix if is_animation[name] and Path(name).stem in films]
    others = Counter(Path(name).suffix.lower() or "no suffix" for name in set(shown_names) - set(by_suffix))
    counts = ", ".join(f"{count} with {suffix}" for suffix, count in sorted(others.items()))
    reasons = [f"{sum(others.values())} without the suffix of a video ({counts})"] if others else []
    if previews:
        reasons.append(f"{len(previews)} beside a video of the same name ({previews[0]}, ...)")
    return [name for name in by_suffix if name not in set(previews)], " and ".join(reasons)


def path_text(path: object) -> str:
    """Return a path as text.

    Raises:
        ValueError: if the value is no path, such as an open file.
    """
    try:
        return os.fsdecode(os.fspath(path))  # type: ignore[call-overload]
    except TypeError:
        raise ValueError(
            f"expected the path of a file, got {type(path).__name__}; write the content to a file and give its path"
        ) from None


def _encoding_of(beginning: bytes) -> str:
    """Return the encoding of a text file by its byte order mark: PowerShell writes UTF-16, Excel marks UTF-8."""
    if beginning.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    return "utf-16" if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def read_text(path: str | Path) -> str:
    """Return the text of a file in UTF-8, or in another Unicode encoding if a byte order mark says so.

    Raises:
        UnicodeDecodeError: if it is in another encoding.
        OSError: if the file cannot be read.
    """
    content = Path(path).read_bytes()
    return content.decode(_encoding_of(content)).replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        ValueError: if the file holds no JSON object; names the file.
        OSError: if the file cannot be read.
    """
    try:
        values = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        reason = "brackets within brackets" if isinstance(error, RecursionError) else error
        raise ValueError(f"{path} is not valid JSON ({reason}); was it cut short? make or download it again") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object with named fields, got {type(values).__name__}")
    return values


def utf8_lines(path: str | Path) -> Iterator[bytes]:
    """Yield the lines of a text file in UTF-8, as :func:`read_text` finds its encoding; only a line feed ends a line.

    Bytes that are not UTF-8 are yielded as they are. Bytes that are not UTF-16, in a file that says it is, become a
    last line that is not UTF-8 either.

    Raises:
        OSError: if the file cannot be read.
    """
    with open(path, "rb") as file:
        encoding = _encoding_of(file.read(4))
        file.seek(0)
        if encoding == "utf-8-sig":
            yield file.readline().removeprefix(codecs.BOM_UTF8)
            yield from file
            return
    with open(path, encoding=encoding, newline="\n") as text:
        try:
            for line in text:
                yield line.encode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            yield b"\xff"


def _umask() -> int:
    """Return the umask. To read it is to set it for a moment, so this is done once, before threads start."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


_UMASK = _umask()


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to, which is renamed to ``path`` if the block succeeds, and removed if it raises.

    The path lies beside ``path``, so that renaming cannot fail half-way; it keeps the suffix, which some writers look
    at; and no other process uses it. The content is on the disk before the renaming, so a power cut leaves the old file
    or the new one.

    Where ``path`` is no regular file (a device, a pipe, or an open file such as ``/dev/fd/3``), the content is written
    into it at the end, and nothing is renamed: renaming would replace the device.
    """
    path = Path(path)
    if is_stream(path):
        with tempfile.TemporaryDirectory(prefix="sidelight-") as folder:
            beside = Path(folder) / f"content{path.suffix}"
            yield beside
            _write_into(path, beside)
        return
    beside = _name_beside(path.with_name(path.stem), path.suffix)
    try:
        yield beside
        if os.name == "posix":  # some writers deny others to read, whatever the user's umask is
            beside.chmod(0o666 & ~_UMASK)
        _to_disk(beside)
        beside.replace(path)
        if os.name == "posix":
            _to_disk(path.parent)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(beside), beside):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None  # the user knows no other name
    finally:
        beside.unlink(missing_ok=True)


def is_stream(path: str | Path) -> bool:
    """Check whether a path names a device, a pipe, a socket, or an open file of this process."""
    if _descriptor(path) is not None:
        return True
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _descriptor(path: str | Path) -> int | None:
    """Return the number of the open file that /dev/fd/3, /dev/stdout or a link to them names; None for other paths."""
    place = os.path.abspath(path)
    for _ in range(40):  # links may form a ring
        folder, name = os.path.realpath(os.path.dirname(place)), os.path.basename(place)
        if folder in ("/dev/fd", f"/proc/{os.getpid()}/fd") and name.isdigit():
            return int(name)
        if not os.path.islink(place):
            return None
        place = os.path.join(folder, os.readlink(place))
    return None


def _write_into(path: Path, source: Path) -> None:
    """Write the content of a file into a device, a pipe or an open file."""
    descriptor = _descriptor(path)
    try:
        # An open file is used as it is: opened anew, a regular file behind it would be written from its beginning.
        handle = os.open(path, os.O_WRONLY) if descriptor is None else os.dup(descriptor)
        with open(source, "rb") as content, open(handle, "wb", buffering=0) as target:
            shutil.copyfileobj(content, target)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems cannot sync (network ones; folders on others). A disk that fails or is full is an error.
        if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise
    finally:
        os.close(handle)


def _machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


LOCK = ".lock"
"""The file of a folder that its only writer locks; it stays, and means nothing when nobody locks it."""


def _name_beside(path: Path, suffix: str = "") -> Path:
    """Return the hidden name that a file or folder has while this process writes it.

    Args:
        path: the file without its suffix, or the folder.
        suffix: the suffix of the file.
    """
    owner = f"{_machine()}-{os.getpid()}-{secrets.token_hex(3)}"
    # A name may be as long as the file system allows; this one is longer, so the name is cut.
    return path.with_name(f".{path.name[:80]}.{owner}.partial{suffix}")


def sweep(folder: str | Path, name: str = "") -> None:
    """Remove half-written files and folders: of dead processes of this machine, and any that are a day old.

    Args:
        folder: where they lie; not folders below it.
        name: only parts of the file or folder that would have this name; in a folder of ours, those of all names.
    """
    now = time.time()
    pattern = f".{glob.escape(name[:80])}.*.partial*" if name else ".*.partial*"
    for path in Path(folder).glob(pattern):
        with contextlib.suppress(OSError):  # another process sweeps too
            age = now - path.stat().st_mtime
            owner = path.name.split(".partial")[0].rsplit(".", 1)[-1].split("-")
            # Wait a minute, because processes in containers may not see each other and may share a host name.
            dead = len(owner) == 3 and owner[0] == _machine() and owner[1].isdigit() and not _alive(int(owner[1]))
            if (age > 86400 and (not name or len(owner) == 3)) or (dead and age > 60):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in Path(folder).glob(".tmp??????") if not name else ():  # safetensors writes a file of such a name first
        with contextlib.suppress(OSError):
            if now - path.stat().st_mtime > 3600:
                path.unlink()


def _alive(process: int) -> bool:
    if os.name != "posix":
        return True  # signal 0 would end the process on Windows
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # the process exists and belongs to another user
    return True


@contextlib.contextmanager
def only_writer(folder: str | Path, *, option: str) -> Iterator[None]:
    """Make a folder, and refuse it to any other process that would write into it at the same time.

    The system frees the lock when the process ends, however it ends. Child processes do not inherit it.

    Args:
        folder: made if need be.
        option: the option that names the folder, for the message.

    Raises:
        ValueError: if another process has the folder.
        OSError: if the folder or the lock cannot be written.
    """
    folder = Path(folder)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    if find_spec("fcntl") is None:  # Windows
        yield
        return
    import fcntl

    with open(folder / LOCK, "a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"another process (number {file.read(20).strip() or 'unknown'}) writes into {folder} now; wait until "
                f"it ends, or give {option} another folder"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if is_new and [path.name for path in folder.iterdir()] == [LOCK]:  # nothing was written
                    (folder / LOCK).unlink()
                    folder.rmdir()


def cache_folder(part: str) -> Path:
    """Return the folder of one part of the cache: in SIDELIGHT_CACHE if set, else in the user's cache folder.

    Raises:
        ValueError: if none of the variables is set, and the user has no home folder, as in some containers.
    """
    if folder := os.environ.get("SIDELIGHT_CACHE"):
        return Path(folder) / part
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "sidelight" / part
    try:
        return Path.home() / ".cache" / "sidelight" / part
    except RuntimeError:
        raise ValueError(
            "this user has no home folder in which models and features can be kept: set SIDELIGHT_CACHE (or HOME) to a "
            "folder that can be written"
        ) from None


_DEVICES = (Path("/dev"), Path("/dev/fd"))
"""Folders of devices, in which no file is made."""


def require_outputs(outputs: Mapping[str, str | Path], inputs: Iterable[str | Path], *, folders: bool = False) -> None:
    """Check, before slow work begins, that results can be written and replace nothing that is read.

    Files are compared, not their names: links, hard links and relative paths lead to the same file.

    Args:
        outputs: the name of an option, as the user types it -> what it names; files, or folders.
        inputs: files, folders and addresses that are read; an input that is no file or folder is passed over.
        folders: whether the outputs are folders, which may lie inside an input and need no parent folder.

    Raises:
        ValueError: if an output is an input, is another output, replaces a file inside an input folder, is no file, or
            if its folder does not exist and should not be made (:func:`sidelight.io.new_folders.require_parent`).
    """
    kind = "folder" if folders else "file name"
    texts = [_local(path) for path in inputs]
    # Features may be given as VIDEO[+VIDEO...],TEXT.
    parts = [part for text in texts for part in ([text] if os.path.exists(text) else re.split("[,+]", text))]
    input_paths = [Path(part) for part in parts if os.path.exists(part)]
    paths = {name: Path(_local(output)) for name, output in outputs.items()}
    for number, (name, path) in enumerate(paths.items()):
        same_address = "://" in (text := _local(outputs[name])) and text in texts
        if same_address or any(_same_file(path, other) for other in input_paths):
            raise ValueError(f"cannot write {path}: it is read by the same command; give another {kind} to {name}")
        for earlier in list(paths)[:number]:
            if _same_file(path, paths[earlier]):
                raise ValueError(f"cannot write {path} twice: {earlier} and {name} name the same file; give two names")
        if folders:
            if "://" not in text:
                require_writable_folder(path)
            continue
        if path.is_dir():
            raise ValueError(f"cannot write {path}: it is a folder; give {name} a file name")
        if is_stream(path):
            _require_writable_stream(path, name)
            continue
        if Path(os.path.abspath(path)).parent in _DEVICES:
            raise ValueError(f"cannot write {path}: there is no such device; give {name} a file name")
        require_parent(path)
        require_writable_folder(Path(os.path.realpath(path)).parent, target=path)
        if path.exists() and (holder := next((i for i in input_paths if _holds(i, path)), None)):
            raise ValueError(
                f"cannot write {path}: this file exists and lies in {holder}, which the same command reads; "
                f"give another file name to {name}"
            )


def _require_writable_stream(path: Path, name: str) -> None:
    """Refuse a disk, a socket, and any device or pipe that may not be written; see :func:`require_outputs`."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}; give {name} a file name") from None
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        kind = "a socket" if stat.S_ISSOCK(mode) else "a disk"
        raise ValueError(f"cannot write {path}: it is {kind}, not a file; give {name} a file name")
    if not os.access(path, os.W_OK):
        raise ValueError(f"cannot write {path}: you may not write into it; give {name} a file name")


def require_regular(path: str | Path) -> None:
    """Refuse an input that exists and is a pipe, a socket or a device: reading it might never end.

    Args:
        path: a file, a folder or anything else that an option may name.

    Raises:
        ValueError: if it is none of files and folders.
    """
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise ValueError(f"{path} is a pipe or a device; expected a file, so write its content to a file first")


def _local(path: str | Path) -> str:
    """Return a path of this machine without file://, and any other address without its last slash."""
    text = os.fspath(path)
    return text.removeprefix("file://") if text.startswith("file://") else text.rstrip("/") if "://" in text else text


def _same_file(path: Path, other: Path) -> bool:
    """Check whether two paths lead to one file or folder, or would if it were written."""
    try:
        return path.samefile(other)
    except OSError:  # one of the two does not exist yet
        return os.path.realpath(path) == os.path.realpath(other)


def _holds(folder: Path, path: Path) -> bool:
    """Check whether a file is in a folder or below it, also by a link."""
    if not folder.is_dir():
        return False
    if Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents:
        return True
    file = path.stat()
    walked_folders: set[tuple[int, int]] = set()
    for parent, subfolders, names in os.walk(folder, followlinks=True):
        here = os.stat(parent)
        if (here.st_dev, here.st_ino) in walked_folders:  # by a link that leads back
            subfolders.clear()
            continue
        walked_folders.add((here.st_dev, here.st_ino))
        for name in names:
            with contextlib.suppress(OSError):  # a link that leads nowhere
                if os.path.samestat(os.stat(os.path.join(parent, name)), file):
                    return True
    return False


def require_writable_folder(folder: str | Path, *, target: str | Path | None = None) -> None:
    """Refuse, before the work starts, a folder in which no file can be written.

    A temporary file is made in it; if the folder is missing, in the nearest folder above that exists.

    Args:
        folder: the folder, which may be missing.
        target: the path that the user gave, for the message; the folder unless given.

    Raises:
        ValueError: if no file can be written there.
    """
    target = folder if target is None else target
    path = Path(os.path.abspath(folder))
    try:
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        if not existing.is_dir():
            raise ValueError(f"cannot write {target}: {existing} is a file; give another place")
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(
            f"cannot write {target}: {error.strerror or error}; give a place where you may write"
        ) from None


def require_new_folder(folder: str | Path, *, option: str = "out") -> None:
    """Refuse, before the work starts, an output folder that exists and is not empty.

    Args:
        folder: the output folder.
        option: the command-line option that names it, for the message.

    Raises:
        ValueError: if the folder is not empty, is a file, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} already exists; give --{option} a folder that is empty or does not exist yet")
    require_writable_folder(folder)


@contextlib.contextmanager
def replacing_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a folder to make and fill, which is renamed to ``folder`` if the block succeeds, and removed if it raises.

    ``folder`` must be empty or absent (:func:`require_new_folder`). An existing folder may be the current folder of a
    process, so it is kept, and files are moved into it, ``config.json`` last: a folder without this file is not taken
    for complete.
    """
    folder = Path(os.path.abspath(folder))  # "." has no name from which to make another
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder.parent, folder.name)  # of a killed process
    beside = _name_beside(folder)
    try:
        yield beside
        if folder.is_dir():
            for file in sorted(beside.iterdir(), key=lambda path: path.name == "config.json"):
                file.replace(folder / file.name)
        else:
            beside.rename(folder)
    except OSError as error:
        if error.errno is None or not str(error.filename or beside).startswith(str(beside)):
            raise
        raise OSError(error.errno, error.strerror, str(folder)) from None  # the user knows no other name
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, completely or not at all."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")
