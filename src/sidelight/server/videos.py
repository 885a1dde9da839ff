"""The videos that the service may read: the files in and below the given folders, and uploads.

A request names a video by its id or its name. Both are looked up in a list of the files that exist, so no path is ever
made from a request. No answer contains a path: :meth:`Videos.hide` puts the name in its place.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sidelight.core.messages import did_you_mean
from sidelight.io.files import video_names
from sidelight.server.errors import ServiceError

UPLOADS = "uploads"
"""Name of the folder of uploads in the names of videos."""
_LISTED_SECONDS = 2.0
"""For which a list of the files is used again."""
_CACHED, _CACHED_THUMBNAILS = 4096, 256
"""Facts that are kept, and thumbnails of 8 to 400 kB."""
K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Video:
    """One file that may be read."""

    id: str
    """Sixteen hex digits, the same after a restart with the same folders."""
    name: str
    """Path below its folder with "/", after the folder's own name where there are several folders."""
    path: Path
    """The file itself, without links."""
    size: int
    """Bytes."""
    modified: int
    """Time of the last change, in nanoseconds."""
    uploaded: bool = False


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a client learns about a video."""

    duration: float
    """Seconds."""
    fps: float
    """Frames a second on average."""
    width: int
    height: int
    codec: str
    notes: tuple[str, ...]


class Videos:
    """Find videos by id or name, and read facts and small frames of them.

    Args:
        folders: folders of videos; folders in them count, links that lead out of them do not.
        uploads: folder of uploads; None if there are no uploads.
        model: name of the model, which may be the path of a checkpoint.

    Raises:
        ValueError: if a folder does not exist.
    """

    def __init__(
        self, folders: Sequence[str | Path], *, uploads: str | Path | None = None, model: str = "unknown"
    ) -> None:
        self._model_path = model if os.path.isdir(model) else ""
        self.model = Path(os.path.abspath(model)).name if self._model_path else model
        """Name of the model without folders."""
        self._roots: dict[str, Path] = {}
        for folder in folders:
            if not os.path.isdir(folder):
                raise ValueError(f"{folder} is not a folder; expected folders with video files")
            real = Path(os.path.realpath(folder))
            if real not in self._roots.values():
                self._roots[_new_label(real.name or "root", self._roots)] = real
        self.uploads = None if uploads is None else Path(os.path.realpath(uploads))
        self._lock = threading.Lock()
        self._listed: tuple[float, dict[str, Video], dict[str, Video]] | None = None
        self._facts: OrderedDict[tuple[str, int, int], Facts] = OrderedDict()
        self._thumbnails: OrderedDict[tuple[str, int, int, float, int], bytes] = OrderedDict()

    def all(self) -> list[Video]:
        """Return all videos by name."""
        return list(self._index()[0].values())

    def find(self, key: str) -> Video:
        """Return the video of an id or a name.

        Raises:
            ServiceError: 404 if there is none.
        """
        by_id, by_name = self._index()
        video = by_id.get(key) or by_name.get(key)
        if video is None or not _is_within(video.path, self._root_of(video)):
            hint = did_you_mean(key, list(by_name)[:2000]) if len(key) <= 200 else ""
            raise ServiceError(
                404, "no_such_video", f"there is no video of this name or id{hint}; GET v1/videos lists them"
            )
        return video

    def key_of(self, video: Video) -> str:
        """Return the name by which :meth:`find` finds a video; its id if another video has the same name."""
        return video.name if self._index()[1].get(video.name) == video else video.id

    def by_path(self) -> dict[Path, Video]:
        """Return all videos by their file, without links; of several names of a file, the first one."""
        return {video.path: video for video in reversed(self.all())}

    def forget_list(self) -> None:
        """Look at the folders again at the next request."""
        with self._lock:
            self._listed = None

    def hide(self, text: str, video: Video) -> str:
        """Return a text with names where the path of the video, of a folder or of the model stands.

        Args:
            text: such as the message of an error.
            video: the video that the text is about.
        """
        text = text.replace(str(video.path), video.name)
        for folder in (*self._roots.values(), *([self.uploads] if self.uploads else [])):
            text = text.replace(f"{folder}{os.sep}", "")
        return text.replace(self._model_path, self.model) if self._model_path else text

    def facts(self, video: Video) -> Facts:
        """Return facts about a video.

        Raises:
            ServiceError: 422 if the file cannot be read as a video.
        """
        from sidelight.video.read import probe

        def read() -> Facts:
            info = self.readable(video, lambda: probe(video.path))
            return Facts(
                duration=info.duration,
                fps=float(info.fps),
                width=info.width,
                height=info.height,
                codec=info.codec,
                notes=tuple(self.hide(note, video) for note in info.notes),
            )

        return self._cached(self._facts, (video.id, video.size, video.modified), read, most=_CACHED)

    def thumbnail(self, video: Video, seconds: float, height: int) -> bytes:
        """Return the frame at a second as JPEG.

        Args:
            video: the video.
            seconds: between 0 and the video's duration.
            height: in pixels; the width follows from the video.

        Raises:
            ServiceError: 422 if the second is outside the video, or no frame can be read.
        """
        from sidelight.export.thumbnails import as_jpeg
        from sidelight.video.read import frames_at

        facts = self.facts(video)
        if not 0 <= seconds <= facts.duration:
            message = f"at must be between 0 and the video's duration of {facts.duration:.2f} s, got {seconds:g}"
            raise ServiceError(422, "invalid_request", message)
        size = (min(4 * height, max(2, round(height * facts.width / facts.height / 2) * 2)), height)

        def read() -> bytes:
            frames = frames_at(video.path, [seconds], size=size, on_damage=lambda message: None)
            frame = self.readable(video, lambda: next(iter(frames), None))
            if frame is None:
                raise ServiceError(422, "unreadable_video", f"{video.name} has no frame at {seconds:g} s")
            return as_jpeg(frame.image)

        key = (video.id, video.size, video.modified, seconds, height)
        return self._cached(self._thumbnails, key, read, most=_CACHED_THUMBNAILS)

    def readable(self, video: Video, read: Callable[[], T]) -> T:
        """Return what a function reads of a video.

        Raises:
            ServiceError: 422 instead of a VideoError, 404 if the file has gone.
        """
        from sidelight.video.damage import VideoError

        try:
            return read()
        except VideoError as error:
            raise ServiceError(422, "unreadable_video", self.hide(str(error), video)) from None
        except OSError as error:
            message = f"{video.name} cannot be read ({error.strerror}); was it moved or deleted?"
            raise ServiceError(404, "no_such_video", message) from None

    def _cached(self, cache: OrderedDict[K, T], key: K, read: Callable[[], T], *, most: int) -> T:
        with self._lock:
            if key in cache:
                cache.move_to_end(key)
                return cache[key]
        value = read()
        with self._lock:
            cache[key] = value
            while len(cache) > most:
                cache.popitem(last=False)
        return value

    def _root_of(self, video: Video) -> Path:
        if video.uploaded and self.uploads is not None:
            return self.uploads
        return next(root for root in self._roots.values() if root in video.path.parents)

    def _index(self) -> tuple[dict[str, Video], dict[str, Video]]:
        with self._lock:
            if self._listed is None or time.monotonic() - self._listed[0] > _LISTED_SECONDS:
                videos = sorted(self._files(), key=lambda video: (video.name, video.id))
                by_name: dict[str, Video] = {}
                for video in videos:
                    by_name.setdefault(video.name, video)
                self._listed = (time.monotonic(), {video.id: video for video in videos}, by_name)
            return self._listed[1:]

    def _files(self) -> Iterator[Video]:
        for label, root in self._roots.items():
            yield from _videos_below(root, label, f"{label}/" if len(self._roots) > 1 else "", skip=self.uploads)
        if self.uploads is not None:
            yield from _videos_below(self.uploads, f"\0{UPLOADS}", f"{UPLOADS}/", uploaded=True)


def _new_label(name: str, known: dict[str, Path]) -> str:
    """Return a name for a folder that no other folder has."""
    taken = {*known, UPLOADS}
    return next(label for n in range(1, len(taken) + 2) if (label := name if n == 1 else f"{name}-{n}") not in taken)


def _videos_below(
    root: Path, label: str, prefix: str, *, uploaded: bool = False, skip: Path | None = None
) -> Iterator[Video]:
    """Yield the video files in a folder and below it, except links that lead out of it and hidden files."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(
            name
            for name in subfolders
            if not name.startswith(".") and Path(folder, name) != skip and name.isprintable()
        )
        for name in video_names(names)[0]:
            path = Path(os.path.realpath(os.path.join(folder, name)))
            relative = Path(folder, name).relative_to(root).as_posix()
            try:
                state = os.stat(path)
            except OSError:
                continue
            if not stat.S_ISREG(state.st_mode) or not relative.isprintable() or not _is_within(path, root):
                continue
            digest = hashlib.blake2b(f"{label}\0{relative}".encode(), digest_size=8).hexdigest()
            yield Video(
                id=digest,
                name=f"{prefix}{relative}",
                path=path,
                size=state.st_size,
                modified=state.st_mtime_ns,
                uploaded=uploaded,
            )


def _is_within(path: Path, root: Path) -> bool:
    """Check that a file, after all links, lies below a folder."""
    return root in Path(os.path.realpath(path)).parents
