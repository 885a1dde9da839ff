"""Find video files in folders, patterns, lists and object storage. A video's id is its file name without suffix."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from sidelight.data.datasets.base import DataWarning
from sidelight.io.files import USUAL_SUFFIXES, ignored_in, path_text, read_text, video_names, videos_in
from sidelight.io.storage import is_address, list_files, local_copy, name_of
from sidelight.video.damage import VideoError, warn
from sidelight.video.playlist import files_of, is_playlist

_MAX_FOLDERS = 3
"""How many folders a warning about ignored files names."""


def find_videos(folder: str | Path, vids: Iterable[str]) -> dict[str, Path]:
    """Return the file of each video id in a folder: ``VID`` with any usual suffix.

    Raises:
        ValueError: if the folder or a file is missing; the message names up to three missing videos.
    """
    wanted_vids = list(dict.fromkeys(vids))
    files = videos_in(folder, wanted_vids)
    if missing := [vid for vid in wanted_vids if vid not in files]:
        raise ValueError(
            f"{folder} lacks {len(missing)} of {len(wanted_vids)} videos, such as {', '.join(missing[:3])}; "
            f"expected files named VID with {USUAL_SUFFIXES}{ignored_in(folder)}"
        )
    return {vid: files[vid] for vid in wanted_vids}


def videos_of(sources: Iterable[str | Path]) -> dict[str, str | Path]:
    """Return the videos in folders, files, patterns and lists: id -> file.

    Args:
        sources: each is a folder (its own video files, without subfolders), a video file, a pattern such as
            ``films/**/*.mp4``, a ``.txt`` list with one of these per line (relative to the list; # begins a comment),
            or the address in object storage of a file, a folder or a pattern.

    A warning says how many files of a folder or pattern were not taken for videos, and why.

    Raises:
        ValueError: if a source has no videos, or two files have the same id.
    """
    videos: dict[str, str | Path] = {}
    for path in video_files(sources):
        vid = Path(name_of(path)).stem
        if vid in videos and str(videos[vid]) != str(path):
            raise ValueError(
                f"{videos[vid]} and {path} would both be the video {vid!r}: an id is a file's name without suffix; "
                "rename one file, or extract the two into two stores"
            )
        videos[vid] = path
    return videos


def holds_videos(source: str | Path) -> bool:
    """Check whether a source stands for several videos: a folder, a pattern or a ``.txt`` list, but no file.

    Args:
        source: as for :func:`video_files`. An address is a file unless it has a ``*`` or ends in a slash.
    """
    text = str(source)
    if is_address(text):
        return "*" in text or text.endswith("/")
    if os.path.isfile(text):
        return text.lower().endswith(".txt")
    return os.path.isdir(text) or _is_pattern(text)


def video_files(sources: Iterable[str | Path]) -> list[str | Path]:
    """Return the video files in folders, patterns and lists, each once; two may have the same name.

    Args:
        sources: as for :func:`videos_of`.

    Raises:
        ValueError: if a source has no videos.
    """
    return list(dict.fromkeys(path for source in sources for path in _files_of(source)))


def chosen_videos(
    videos: Mapping[str, str | Path], vids: Iterable[str] | None
) -> tuple[dict[str, str | Path], dict[str, str]]:
    """Select videos by id, and say which ids have no file.

    Args:
        videos: id -> file.
        vids: the ids to select; None selects all videos.

    Returns:
        The selected videos (id -> file), and id -> reason for each id without a file.

    Raises:
        ValueError: if none of the ids has a file: the folder is probably the wrong one.
    """
    if vids is None:
        return dict(videos), {}
    wanted_vids = list(dict.fromkeys(vids))
    chosen = {vid: videos[vid] for vid in wanted_vids if vid in videos}
    if wanted_vids and not chosen:
        raise ValueError(
            f"none of the {len(wanted_vids)} videos of the annotations has a file, such as {wanted_vids[0]!r}; "
            f"expected files named by their ids, such as {wanted_vids[0]}.mp4; check the folder"
        )
    return chosen, {vid: "there is no file of that name" for vid in wanted_vids if vid not in videos}


def content_digest(path: str | Path) -> str:
    """Return 32 hex digits of a file's content: a key that stays the same for copies and renamed files.

    The key of a playlist is that of its text and of all files that it names.

    Raises:
        VideoError: if the file cannot be read, or is a playlist that names files outside its folder.
    """
    digest = hashlib.blake2b(digest_size=16)
    try:
        files = files_of(str(path)) if is_playlist(path) else [path]
        for name in files:
            if len(files) > 1:
                digest.update(f"{os.path.getsize(name)};".encode())
            with open(name, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    except OSError as error:
        raise VideoError(f"{path} cannot be read ({error.strerror}); check the path") from None
    return digest.hexdigest()


@contextmanager
def local_video(video: str | Path) -> Iterator[Path]:
    """Yield a file of this machine with a video: the file itself, or a copy of an address for the time of the block.

    FFmpeg itself never opens an address.

    Raises:
        VideoError: from the block, and then names the address.
        StorageError: if an address cannot be fetched.
        ValueError: if the video is no path, or the kind of storage is unknown.
    """
    with local_copy(path_text(video)) as path:
        try:
            yield path
        except VideoError as error:
            if not is_address(video):
                raise
            raise VideoError(str(error).replace(str(path), str(video))) from None


def _files_of(source: str | Path, *, listed_in: str = "") -> list[str | Path]:
    """Return the video files of one source; ``listed_in`` names the list and line that the source comes from."""
    where = f" ({listed_in})" if listed_in else ""
    if is_address(source):
        addresses = list_files(str(source))
        return [source] if addresses == [str(source)] else _videos_only(addresses, source, where)
    path = Path(source)
    if path.is_file():
        return _files_in_list(path) if path.suffix.lower() == ".txt" else [path]
    if path.is_dir():
        candidates = path.iterdir()
    elif _is_pattern(source):
        anchor, pattern = Path(path.anchor), str(path.relative_to(path.anchor)) if path.anchor else str(path)
        candidates = anchor.glob(pattern)
    else:
        raise ValueError(f"{source} does not exist{where}; expected a folder, a video file, a pattern or a .txt list")
    return _videos_only(sorted(p for p in candidates if p.is_file() or p.is_symlink()), source, where)


def _is_pattern(source: str | Path) -> bool:
    return any(sign in str(source) for sign in "*?[")


def _files_in_list(path: Path) -> list[str | Path]:
    files: list[str | Path] = []
    try:
        lines = read_text(path).splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text in UTF-8 or UTF-16; expected a list with a video per line") from None
    for number, line in enumerate(lines, 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        if Path(entry).suffix.lower() == ".txt":
            raise ValueError(f"{path}, line {number}: a list in a list; expected a video, a folder or a pattern")
        listed = entry if is_address(entry) else path.parent / entry
        if "\\" in entry and not os.path.exists(listed):  # a relative path as Windows writes it
            listed = path.parent / entry.replace("\\", "/")
        files += _files_of(listed, listed_in=f"{path}, line {number}")
    if not files:
        raise ValueError(f"{path} names no video; expected a path on each line")
    return files


def _videos_only(files: Sequence[str | Path], source: str | Path, where: str) -> list[str | Path]:
    by_folder: dict[str, dict[str, str | Path]] = {}
    for file in files:
        by_folder.setdefault(str(file).rpartition("/")[0], {})[name_of(file)] = file
    videos: list[str | Path] = []
    reasons: list[str] = []
    for folder, by_name in by_folder.items():
        names, ignored = video_names(by_name)
        videos += [by_name[name] for name in names]
        reasons += [f"{ignored} in {folder or '.'}"] if ignored else []
    if len(reasons) > _MAX_FOLDERS:
        reasons[_MAX_FOLDERS:] = [f"others in {len(reasons) - _MAX_FOLDERS} more folders"]
    rest = f"ignored files: {'; '.join(reasons)}" if reasons else ""
    if not videos and _is_pattern(source):
        message = f"{source} matches no video files{where}; expected some with {USUAL_SUFFIXES}"
        raise ValueError("; ".join(filter(None, (message, rest))))
    if not videos:
        message = f"{source} has no video files{where}; expected some with {USUAL_SUFFIXES} directly in it"
        raise ValueError("; ".join(filter(None, (f"{message} (FOLDER/**/* also searches the folders below)", rest))))
    if rest:
        warn(f"{rest}; name a file to read it anyway", DataWarning)
    return videos
