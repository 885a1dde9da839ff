"""A cache of decoded frames, so that a model that is trained from pixels decodes each video once.

A cache is a folder. It has one folder for each way to sample frames, and in that, two files for each video: its frames
as plain bytes, which are mapped into memory, and a JSON file with their number and the video's duration, which is
written last. Their name is the digest of the video's content, so that runs share frames, also of videos that were
copied or renamed. A process that is killed leaves finished videos and at most some half files, which are removed later.
Two processes that fill a cache at once may decode a video twice; both write the same bytes.

Nothing is deleted to make room: a cache that would grow past its limit is refused before anything is decoded.

Legend: C chunks of a video, F frames of a chunk, S side in pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from sidelight.core.messages import count_of
from sidelight.core.timeline import Timeline
from sidelight.features.sources import content_digest
from sidelight.io.files import replacing, sweep, write_text
from sidelight.io.progress import Progress, reporting
from sidelight.video.damage import VideoError, warn
from sidelight.video.read import probe
from sidelight.video.workers import Chunk, DecodeWorkers, End, Sampling

_LOGGER = logging.getLogger(__name__)
_DIGESTS = "digests.jsonl"
"""The file with the digests of videos that were read before, so that they need not be read again."""


@dataclass(frozen=True, kw_only=True)
class VideoFrames:
    """The frames of one video, chunk by chunk. The last frame is repeated until the last chunk is full."""

    pixels_CFSS3: npt.NDArray[np.uint8]
    duration: float
    """Seconds of the video that the frames cover."""


def read_frames(
    path: str | Path,
    sampling: Sampling,
    *,
    progress: Progress = False,
    on_damage: Callable[[str], None] = warn,
) -> VideoFrames:
    """Decode one video, without a cache: to a file without a name, which is mapped, so that memory stays bounded.

    Args:
        path: the file.
        sampling: which frames, and how large.
        progress: show a bar, or call a function with the part of the chunks that has been read.
        on_damage: called with a sentence about the damage or the times of the file; a VideoWarning unless given.

    Raises:
        VideoError: if the file cannot be read as a video.
        OSError: if there is no room for the frames.
    """
    chunks, end = 0, End(vid="")
    total = math.ceil(probe(path).duration / sampling.clip_seconds) if progress else None
    with tempfile.TemporaryFile() as file, DecodeWorkers({"": path}, sampling, workers=0) as decoded:
        with reporting(progress, total=total, what="reading the video", unit="chunk") as add_chunks:
            for item in decoded:
                if isinstance(item, End):
                    end = item
                    continue
                file.write(item.pixels_CFSS3.data)
                chunks += len(item.pixels_CFSS3)
                add_chunks(len(item.pixels_CFSS3))
        if end.error:
            raise VideoError(end.error)
        if end.warning:
            on_damage(end.warning)
        file.flush()
        side, seconds = sampling.resolution, sampling.clip_seconds
        pixels_CFSS3 = np.memmap(file, np.uint8, mode="r", shape=(chunks, sampling.frames_per_clip, side, side, 3))
    return VideoFrames(pixels_CFSS3=pixels_CFSS3, duration=covered_seconds(end, seconds))


def covered_seconds(end: End, chunk_seconds: float) -> float:
    """Return the seconds of a video that was decoded; one that breaks off early ends with its last chunk."""
    return Timeline(duration=end.duration, clip_seconds=chunk_seconds).first(end.clips).duration


class FrameCache:
    """The frames of videos at one sampling.

    Args:
        folder: of the cache, which other samplings may share; made if need be.
        sampling: which frames, and how large; a "clip" of the sampling is a chunk.
    """

    def __init__(self, folder: str | Path, sampling: Sampling) -> None:
        self.root, self.sampling = Path(folder), sampling
        key = hashlib.sha256(json.dumps(asdict(sampling), sort_keys=True).encode()).hexdigest()[:16]
        self.folder = self.root / key
        self._chunk_shape = (sampling.frames_per_clip, sampling.resolution, sampling.resolution, 3)
        self._digests: dict[str, str] = {}

    @property
    def chunk_bytes(self) -> int:
        """Return the bytes of a chunk."""
        return int(np.prod(self._chunk_shape))

    def bytes_for(self, duration: float) -> int:
        """Return the bytes of the frames of a video of some seconds."""
        return Timeline(duration=duration, clip_seconds=self.sampling.clip_seconds).num_clips * self.chunk_bytes

    def missing(self, videos: Mapping[str, str | Path]) -> list[str]:
        """Return the ids of the videos (id -> file) whose frames are not in the cache."""
        return [vid for vid, file in videos.items() if self._entry(file) is None]

    def bytes_held(self) -> int:
        """Return the bytes of all frames in the cache, also those of other samplings."""
        total = 0
        for path in self.root.glob("*/*.rgb"):
            with contextlib.suppress(OSError):  # deleted meanwhile
                total += path.stat().st_size
        return total

    def open(self, file: str | Path) -> VideoFrames:
        """Return the frames of a video, mapped from the disk.

        Raises:
            ValueError: if they are not in the cache, for example because it was cleared.
        """
        entry = self._entry(file)
        if entry is None:
            raise ValueError(f"the frames of {file} are no longer in {self.folder}; start the command again")
        path, chunks, duration = entry
        pixels_CFSS3 = np.memmap(path, np.uint8, mode="r", shape=(chunks, *self._chunk_shape))
        return VideoFrames(pixels_CFSS3=pixels_CFSS3, duration=duration)

    def duration(self, file: str | Path) -> float:
        """Return the seconds of a video that its frames cover; ValueError if they are not in the cache."""
        return self.open(file).duration

    def check_room(self, missing: Mapping[str, float], limit: int) -> str:
        """Return a sentence that says how much will be decoded.

        Args:
            missing: id -> seconds of each video to decode.
            limit: bytes that the cache may have.

        Raises:
            ValueError: if the frames do not fit the limit or the disk.
        """
        needed, held = sum(map(self.bytes_for, missing.values())), self.bytes_held()
        plan = f"the frames of {count_of(len(missing), 'video')} take {_size(needed)}"
        if held + needed > limit:
            raise ValueError(
                f"{plan}, and {self.root} holds {_size(held)} of at most {_size(limit)}: raise "
                "data.frames_cache_limit, set data.frames_cache to another folder, or delete folders of old runs in it"
            )
        existing = next(path for path in (self.root.absolute(), *self.root.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free
        if needed > free:
            raise ValueError(
                f"{plan}, and the disk of {self.root} has {_size(free)} left: make room, or set data.frames_cache to "
                "a folder of another disk"
            )
        return f"decoding into {self.folder}: {plan} (the cache holds {_size(held)} of at most {_size(limit)})"

    def fill(
        self,
        videos: Mapping[str, str | Path],
        durations: Mapping[str, float],
        *,
        limit: int,
        workers: int | None = None,
        progress: bool = False,
    ) -> None:
        """Decode the videos whose frames are not in the cache.

        Args:
            videos: id -> file.
            durations: id -> seconds, as annotated.
            limit: bytes that the cache may have, frames of other runs included.
            workers: processes that decode; one for each processor unless given, 0 for a thread of this process.
            progress: show a bar.

        Raises:
            ValueError: if the frames do not fit, or a video cannot be read; the frames of all others are kept.
        """
        from tqdm import tqdm

        missing = self.missing(videos)
        if not missing:
            return
        plan = self.check_room({vid: durations[vid] for vid in missing}, limit)
        _LOGGER.info(plan)
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep(self.folder)
        write_text(self.folder / "sampling.json", json.dumps(asdict(self.sampling)) + "\n")
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        decoding = DecodeWorkers(
            {vid: videos[vid] for vid in missing}, self.sampling, workers=processors if workers is None else workers
        )
        failures: dict[str, str] = {}
        bar = tqdm(total=len(missing), unit="video", desc="decoding", disable=not progress)
        with bar, ExitStack() as unfinished, decoding as decoded:
            writers: dict[str, _Writer] = {}
            for item in decoded:
                if item.vid not in writers:
                    path = self.folder / f"{self._digest(videos[item.vid])}.rgb"
                    writers[item.vid] = unfinished.enter_context(_Writer(path))
                if isinstance(item, Chunk):
                    writers[item.vid].write(item.pixels_CFSS3)
                    continue
                self._finish(item, writers.pop(item.vid), failures)
                bar.update()
        if failures:
            vid, reason = next(iter(failures.items()))
            raise ValueError(
                f"{len(failures)} of {len(videos)} videos could not be read; the first is {vid}: {reason}; repair or "
                "replace the files, or leave out their annotations"
            )

    def _finish(self, end: End, writer: _Writer, failures: dict[str, str]) -> None:
        """Keep the frames of a video that was decoded, or note why it was not."""
        if end.error:
            failures[end.vid] = end.error
            writer.discard()
            return
        if end.warning:
            warn(end.warning)
        writer.keep()
        values = {"chunks": end.clips, "duration": covered_seconds(end, self.sampling.clip_seconds)}
        write_text(writer.path.with_suffix(".json"), json.dumps(values) + "\n")

    def _entry(self, file: str | Path) -> tuple[Path, int, float] | None:
        """Return the file with the frames of a video, their chunks and seconds; None if the cache lacks them."""
        path = self.folder / f"{self._digest(file)}.rgb"
        try:
            values = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            if path.stat().st_size != values["chunks"] * self.chunk_bytes:
                return None
        except OSError:
            return None
        return path, values["chunks"], values["duration"]

    def _digest(self, file: str | Path) -> str:
        """Return the digest of a video's content, and remember it with the file's size and time."""
        path = os.path.abspath(file)
        if not self._digests:
            self._digests = dict(self._known_digests())
        try:
            status = os.stat(path)
            key = f"{path}|{status.st_size}|{status.st_mtime_ns}"
        except OSError:
            key = path  # the digest reports what is wrong
        if key not in self._digests:
            self._digests[key] = content_digest(path)
            with contextlib.suppress(OSError):  # a cache that cannot be written is reported when it is filled
                self.root.mkdir(parents=True, exist_ok=True)
                with open(self.root / _DIGESTS, "a", encoding="utf-8") as lines:
                    lines.write(json.dumps([key, self._digests[key]]) + "\n")
        return self._digests[key]

    def _known_digests(self) -> Iterator[tuple[str, str]]:
        with contextlib.suppress(OSError):
            for line in (self.root / _DIGESTS).read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):  # a line that a killed process left half written
                    key, digest = json.loads(line)
                    yield key, digest


class _Writer:
    """A file of frames that grows beside its place, and is renamed when it is complete."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stack = ExitStack()
        self._file: IO[bytes] | None = None

    def __enter__(self) -> _Writer:
        beside = self._stack.enter_context(replacing(self.path))
        self._file = self._stack.enter_context(open(beside, "wb"))
        return self

    def write(self, pixels_CFSS3: npt.NDArray[np.uint8]) -> None:
        assert self._file is not None
        self._file.write(pixels_CFSS3.data)

    def keep(self) -> None:
        """Give the file its name."""
        self._stack.close()

    def discard(self) -> None:
        """Remove the file."""
        self._stack.__exit__(_Unfinished, _Unfinished(), None)

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(_Unfinished):  # nothing is left to do after ``keep``
            self.discard()


class _Unfinished(Exception):
    """The reason why a file of frames is removed."""


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
