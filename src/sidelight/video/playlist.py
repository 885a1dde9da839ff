"""Playlists (HLS): text files that name the files of a video. They are read only where the caller allows it.

A playlist from a stranger could name any file of this machine. So FFmpeg opens only files that the playlist names and
that lie in its own folder or below.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import IO

from sidelight.video.damage import VideoError

_MARK = b"#EXTM3U"
_MOST_BYTES = 16 << 20  # of one playlist; a day in segments of one second has 3 MB
_MOST_FILES = 1_000_000
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_URI = re.compile(r'URI\s*=\s*(?:"([^"]*)"|([^,\s]*))')
_allowed: ContextVar[bool] = ContextVar("allow_playlists", default=False)


@contextmanager
def allow_playlists(allowed: bool = True) -> Iterator[None]:
    """Allow, inside the block, videos that are playlists (HLS).

    A playlist may name files in its own folder and below, and must have an end. The permission holds for the current
    thread and for the threads in which sidelight decodes for it.

    Args:
        allowed: False to forbid playlists inside the block.
    """
    token = _allowed.set(allowed)
    try:
        yield
    finally:
        _allowed.reset(token)


def are_allowed() -> bool:
    """Check whether playlists are allowed here."""
    return _allowed.get()


def is_playlist(path: str | os.PathLike[str]) -> bool:
    """Check whether a file begins like a playlist; no for anything but a regular file."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(len(_MARK)) == _MARK


def files_of(path: str) -> list[str]:
    """Return the files of a video, as absolute paths without links: the file itself, and those that a playlist names.

    Args:
        path: a video file, or a playlist. A playlist may name other playlists.

    Raises:
        VideoError: if the playlist names an address, a file outside its folder or a file that does not exist, or has no
            end; the message names the entry.
        OSError: if a file cannot be read.
    """
    first = os.path.realpath(path)
    folder, files, unread = os.path.dirname(first), {first: None}, [first]
    while unread:
        playlist = unread.pop()
        if not is_playlist(playlist):
            continue
        for entry in _entries(path, playlist):
            file = os.path.realpath(os.path.join(os.path.dirname(playlist), entry))
            if _ADDRESS.match(entry):
                raise VideoError(f"{path} is a playlist that names an address, {entry!r}; download the segments first")
            if os.path.isabs(entry) or os.path.commonpath([folder, file]) != folder:
                problem = f"is a playlist that names a file outside its folder, {entry!r}"
                raise VideoError(f"{path} {problem}; expected files beside it, so copy them into its folder")
            if not os.path.isfile(file):
                raise VideoError(
                    f"{path} is a playlist that names {entry!r}, which is no file beside it; copy it there"
                )
            if file not in files:
                files[file] = None
                unread.append(file)
            if len(files) > _MOST_FILES:
                raise VideoError(f"{path} is a playlist of more than {_MOST_FILES:,} files; give the video as one file")
    return list(files)


def _entries(path: str, playlist: str) -> Iterator[str]:
    """Yield the file names in a playlist, as it writes them.

    Args:
        path: the playlist that the user gave, for messages.
        playlist: the same, or another one that it names.
    """
    text = os.fsdecode(_content(path, playlist))
    lines = [line.strip() for line in text.replace("\0", "\n").splitlines()]
    if any(line.startswith("#EXTINF") for line in lines) and "#EXT-X-ENDLIST" not in lines:
        problem = "is a playlist without an end (#EXT-X-ENDLIST), as of a live broadcast"
        raise VideoError(f"{path} {problem}; record it to its end first")
    for line in lines:
        if line and not line.startswith("#"):
            yield line
        elif line:
            yield from (quoted or plain for quoted, plain in _URI.findall(line))


def _content(path: str, playlist: str) -> bytes:
    with open(playlist, "rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise VideoError(f"{path} is a playlist of more than 16 MB; give the video as one file")
    return content


class Opener:
    """Opens the files of one playlist for FFmpeg, and refuses all others.

    Args:
        path: the playlist.

    Raises:
        VideoError: see :func:`files_of`.
    """

    def __init__(self, path: str) -> None:
        self._path, self._files = path, frozenset(files_of(path))

    def __call__(self, url: str, flags: int, options: dict[str, str]) -> IO[bytes]:
        """Open a file by the name that FFmpeg gives it."""
        file = os.path.realpath(url.removeprefix("file:"))
        if file not in self._files:
            raise VideoError(
                f"{self._path} is a playlist that opens {url}, which it does not name; give one video file"
            )
        if is_playlist(file):  # PyAV does not close the file that it opens first
            return io.BytesIO(_content(self._path, file))
        return open(file, "rb")
