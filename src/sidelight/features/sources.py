"""Find video files in folders, patterns, lists and object storage. A video's id is its file name without suffix."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sidelight.io.files import VIDEO_SUFFIXES, videos_in
from sidelight.io.storage import is_address, list_files
from sidelight.video.damage import VideoError


def find_videos(folder: str | Path, vids: Iterable[str]) -> dict[str, Path]:
    """Return the file of each video id in a folder: ``VID`` with any usual suffix.

    Raises:
        ValueError: if the folder or a file is missing; the message names up to three missing videos.
    """
    files, wanted_vids = videos_in(folder), list(dict.fromkeys(vids))
    if missing := [vid for vid in wanted_vids if vid not in files]:
        raise ValueError(
            f"{folder} lacks {len(missing)} of {len(wanted_vids)} videos, such as {', '.join(missing[:3])}; "
            f"expected files named VID with one of {', '.join(VIDEO_SUFFIXES)}"
        )
    return {vid: files[vid] for vid in wanted_vids}


def videos_of(sources: Iterable[str | Path]) -> dict[str, str | Path]:
    """Return the videos in folders, files, patterns and lists: id -> file.

    Args:
        sources: each is a folder (its own video files, without subfolders), a video file, a pattern such as
            ``films/**/*.mp4``, a ``.txt`` list with one of these per line (relative to the list; # begins a comment),
            or the address in object storage of a file, a folder or a pattern.

    Raises:
        ValueError: if a source has no videos, or two files have the same id.
    """
    videos: dict[str, str | Path] = {}
    for source in sources:
        for path in _files_of(source):
            vid = Path(_file_name(path)).stem
            if vid in videos and str(videos[vid]) != str(path):
                raise ValueError(
                    f"{videos[vid]} and {path} would both be the video {vid!r}: an id is a file's name without suffix; "
                    "rename one file, or extract the two into two stores"
                )
            videos[vid] = path
    return videos


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

    Raises:
        VideoError: if the file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise VideoError(f"{path} cannot be read ({error.strerror}); check the path") from None
    return digest.hexdigest()


def _file_name(path: str | Path) -> str:
    """Return the name of a file or an address, without the query of a signed link."""
    return str(path).rsplit("/", 1)[-1].split("?")[0] if is_address(path) else Path(path).name


def _files_of(source: str | Path, *, listed_in: str = "") -> list[str | Path]:
    """Return the video files of one source; ``listed_in`` names the list and line that the source comes from."""
    where = f" ({listed_in})" if listed_in else ""
    if is_address(source):
        return _videos_only(list_files(str(source)), source, where)
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
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        if Path(entry).suffix.lower() == ".txt":
            raise ValueError(f"{path}, line {number}: a list in a list; expected a video, a folder or a pattern")
        files += _files_of(entry if is_address(entry) else path.parent / entry, listed_in=f"{path}, line {number}")
    if not files:
        raise ValueError(f"{path} names no video; expected a path on each line")
    return files


def _videos_only(files: Sequence[str | Path], source: str | Path, where: str) -> list[str | Path]:
    # Hidden files are no videos: macOS puts a "._film.mp4" beside a file that it copies.
    videos = [
        file
        for file in files
        if (name := _file_name(file).lower()).endswith(VIDEO_SUFFIXES) and not name.startswith(".")
    ]
    if not videos and _is_pattern(source):
        raise ValueError(f"{source} matches no video files{where}; expected some with {', '.join(VIDEO_SUFFIXES)}")
    if not videos:
        raise ValueError(
            f"{source} has no video files{where}; expected some with {', '.join(VIDEO_SUFFIXES)} directly in it "
            "(FOLDER/**/* also searches the folders below)"
        )
    return videos
