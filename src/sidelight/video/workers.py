"""Decode videos in processes of their own, ahead of whoever wants the pictures.

:func:`main` is one such process: it reads orders from standard input (a line of JSON each)
and answers on standard output with lines of JSON, some of them followed by raw pixels. A process of its own start,
and not ``multiprocessing``, because scripts then need no ``if __name__ == "__main__"``, and because a decoder that
crashes on a broken file takes one worker with it, and not the pool.

Nothing here imports PyTorch, so a worker starts in a fraction of a second.

Legend: C clips of a chunk, F frames per clip, S side in pixels.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from sidelight.core.timeline import Timeline
from sidelight.io.storage import local_copy
from sidelight.video.read import Resize, VideoError, frames_at, probe

CHUNK_CLIPS = 8
"""Clips that travel together: some megabytes, so that a worker is never far ahead in memory."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which pictures are wanted of a video, and how large."""

    clip_seconds: float
    frames_per_clip: int
    resolution: int
    resize: Resize


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some clips of a video, in order."""

    vid: str
    pixels_CFSS3: npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class End:
    """A video is decoded, or could not be."""

    vid: str
    clips: int = 0
    """How many there were."""
    duration: float = 0.0
    """Seconds, as the file states them."""
    error: str = ""
    """Why it could not be read."""
    warning: str = ""
    """What is damaged in a file that could be read."""


def clips_of(
    path: str | Path,
    sampling: Sampling,
    duration: float,
    *,
    chunk: int = CHUNK_CLIPS,
    threads: int = 0,
    damaged: Callable[[str], None] | None = None,
) -> Iterator[npt.NDArray[np.uint8]]:
    """The pictures that are wanted of a video, in chunks of at most ``chunk`` clips.

    Where the video ends early the last clip is filled up with its last picture, and the clips after it are not
    there.

    Args:
        path: the file.
        sampling: what is wanted of it.
        duration: seconds, as ``probe`` says them.
        chunk: clips at once.
        threads: of the decoder; 0 for as many as there are processors.
        damaged: is told of damage; a VideoWarning unless given.

    Yields:
        uint8 (C, F, S, S, 3).

    Raises:
        VideoError: if the file cannot be read as a video.
    """
    timeline = Timeline(duration=duration, clip_seconds=sampling.clip_seconds)
    wanted = timeline.frame_seconds(sampling.frames_per_clip).reshape(-1)
    size = (sampling.resolution, sampling.resolution)
    room, pictures = chunk * sampling.frames_per_clip, []
    for frame in frames_at(path, wanted.tolist(), size=size, resize=sampling.resize, threads=threads, damaged=damaged):
        pictures.append(frame.image)
        if len(pictures) == room:
            yield np.stack(pictures).reshape(-1, sampling.frames_per_clip, *pictures[0].shape)
            pictures = []
    if pictures:
        pictures += [pictures[-1]] * (-len(pictures) % sampling.frames_per_clip)
        yield np.stack(pictures).reshape(-1, sampling.frames_per_clip, *pictures[0].shape)


def decoded(
    vid: str, path: str | Path, sampling: Sampling, *, chunk: int = CHUNK_CLIPS, threads: int = 0
) -> Iterator[Chunk | End]:
    """All of one video: its chunks, then an :class:`End`, which also says if something was wrong."""
    count, damage = 0, list[str]()
    try:
        duration = probe(path).duration
        for pixels in clips_of(path, sampling, duration, chunk=chunk, threads=threads, damaged=damage.append):
            count += len(pixels)
            yield Chunk(vid=vid, pixels_CFSS3=pixels)
        if not count:
            raise VideoError(f"{path}: no picture could be decoded; check that the file plays in a video player")
    except (VideoError, OSError) as error:
        yield End(vid=vid, error=" ".join(str(error).split()))
        return
    yield End(vid=vid, clips=count, duration=duration, warning="; ".join(damage))


_READY = b'{"ready": true}\n'
"""A worker's first word: whoever ends before it could not start, which is no video's fault."""

# one worker --------------------------------------------------------------------------------------------------------


class Answers(Protocol):
    """Where a worker writes to; takes all that it is given."""

    def write(self, data: Any, /) -> object: ...


def serve(orders: IO[bytes], answers: Answers) -> None:
    """Work off orders until there are no more."""
    answers.write(_READY)
    for line in orders:
        order = json.loads(line)
        sampling = Sampling(**order["sampling"])
        for part in decoded(order["vid"], order["path"], sampling, chunk=order["chunk"], threads=order["threads"]):
            if isinstance(part, End):
                answers.write(json.dumps({"end": asdict(part)}).encode() + b"\n")
            else:
                answers.write(json.dumps({"shape": part.pixels_CFSS3.shape}).encode() + b"\n")
                answers.write(part.pixels_CFSS3.data)


class _Stopped(Exception):
    """Nobody wants the pictures any more."""


class _Crashed(Exception):
    """A worker ended in the middle of a video."""


class _Worker:
    """A process that decodes, and our ends of its pipes."""

    def __init__(self) -> None:
        # Modules are found where we find them, and never in the folder where somebody keeps videos.
        path = [folder for folder in sys.path if folder]
        start = f"import sys; sys.path[:] = {path!r}; from sidelight.video.workers import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", start],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl-C in a terminal reaches the whole group: whoever drives the workers decides when they stop.
            start_new_session=True,
        )
        self._started = False

    def decode(self, vid: str, path: str, sampling: Sampling, chunk: int) -> Iterator[Chunk | End]:
        order = {"vid": vid, "path": path, "sampling": asdict(sampling), "chunk": chunk, "threads": 1}
        orders, answers = self.process.stdin, self.process.stdout
        assert orders is not None and answers is not None
        if not self._started:
            if answers.readline() != _READY:
                raise RuntimeError(f"a process that decodes did not start (exit code {self.process.wait()}; see above)")
            self._started = True
        try:
            orders.write(json.dumps(order).encode() + b"\n")
            orders.flush()
        except OSError:
            raise _Crashed from None
        while line := answers.readline():
            head = json.loads(line)
            if "end" in head:
                yield End(**head["end"])
                return
            pixels = np.empty(head["shape"], np.uint8)
            if cast(io.BufferedReader, answers).readinto(pixels.data) < pixels.nbytes:
                break
            yield Chunk(vid=vid, pixels_CFSS3=pixels)
        raise _Crashed

    def stop(self) -> int:
        """Ends the process, and what it ended with."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # what was still to be said to it
                pipe.close()
        return self.process.wait()


# all of them -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Failed:
    """What went wrong with us, and not with a video."""

    error: BaseException


class DecodeWorkers:
    """Decodes many videos at once; iterate over it for chunks and ends, those of one video in order.

    Use it as a context manager: leaving it stops the processes.

    Args:
        videos: id -> file, or address in object storage, which is fetched to a temporary file first.
        sampling: what is wanted of each.
        workers: processes; 0 decodes in a thread of this one.
        chunk: clips at once.
    """

    RETRIES = 1
    """How often a video is tried again whose worker ended; a second crash is the file's fault."""

    def __init__(
        self, videos: Mapping[str, str | Path], sampling: Sampling, *, workers: int, chunk: int = CHUNK_CLIPS
    ) -> None:
        self._todo = iter(videos.items())
        self._sampling, self._chunk = sampling, chunk
        self._threads = max(1, min(workers, len(videos)))
        self._own = workers == 0
        # Full when each worker has one chunk waiting here and one in its hands.
        self._ready: queue.Queue[Chunk | End | _Failed | None] = queue.Queue(self._threads)
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._running: set[_Worker] = set()
        self._tenders = [threading.Thread(target=self._tend, daemon=True) for _ in range(self._threads)]

    def __enter__(self) -> DecodeWorkers:
        for tender in self._tenders:
            tender.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        with self._lock:
            for worker in self._running:
                worker.process.kill()
        while any(tender.is_alive() for tender in self._tenders):
            try:
                self._ready.get(timeout=0.05)  # lets go whoever waits for room
            except queue.Empty:
                continue

    def __iter__(self) -> Iterator[Chunk | End]:
        at_work = self._threads
        while at_work:
            part = self._ready.get()
            if part is None:
                at_work -= 1
            elif isinstance(part, _Failed):
                raise part.error
            else:
                yield part

    @property
    def processes(self) -> list[int]:
        """The process ids of the workers there are now."""
        with self._lock:
            return [worker.process.pid for worker in self._running]

    def _next(self) -> tuple[str, str | Path] | None:
        with self._lock:
            return None if self._stopped.is_set() else next(self._todo, None)

    def _tend(self) -> None:
        """One thread for each worker: gives it videos, takes what comes, replaces it if it dies."""
        worker: _Worker | None = None
        try:
            while (order := self._next()) is not None:
                vid, address = order
                with ExitStack() as held:
                    try:
                        path = held.enter_context(local_copy(address))
                    except (OSError, ValueError) as error:
                        self._ready.put(End(vid=vid, error=" ".join(str(error).split())))
                        continue
                    if self._own:
                        self._pass_on(decoded(vid, path, self._sampling, chunk=self._chunk))
                    else:
                        worker = self._with_worker(worker, vid, str(path))
        except BaseException as error:
            if not self._stopped.is_set():
                self._ready.put(_Failed(error))
        finally:
            if worker is not None:
                self._end(worker)
            self._ready.put(None)

    def _with_worker(self, worker: _Worker | None, vid: str, path: str) -> _Worker | None:
        """Decode with that worker, or with a new one where it dies; returns the one that is left."""
        seen = 0
        for attempt in range(self.RETRIES + 1):
            if self._stopped.is_set():
                return worker
            worker = worker or self._start()
            try:
                seen = self._pass_on(worker.decode(vid, path, self._sampling, self._chunk), skip=seen)
                return worker
            except _Crashed as crash:
                seen = max(seen, crash.args[0] if crash.args else 0)
                code, worker = self._end(worker), None
                if attempt == self.RETRIES and not self._stopped.is_set():
                    error = f"{path}: its decoder ended twice ({_said(code)}); check that a video player shows it"
                    self._ready.put(End(vid=vid, error=error))
            except BaseException:
                self._end(worker)
                raise
        return worker

    def _pass_on(self, parts: Iterator[Chunk | End], *, skip: int = 0) -> int:
        """Hand on what comes, but for the first chunks that were handed on before; returns how many there were."""
        count = 0
        try:
            for part in parts:
                if isinstance(part, Chunk):
                    count += 1
                    if count <= skip:
                        continue
                if self._stopped.is_set():
                    break
                self._ready.put(part)
        except _Crashed:
            raise _Crashed(count) from None
        return count

    def _start(self) -> _Worker:
        with self._lock:
            if self._stopped.is_set():
                raise _Stopped
            worker = _Worker()
            self._running.add(worker)
        return worker

    def _end(self, worker: _Worker) -> int:
        with self._lock:
            self._running.discard(worker)
        return worker.stop()


def _said(code: int) -> str:
    """What a process ended with, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # those of real time have no names
        name = f"signal {-code}"
    return f"{name}: out of memory?" if name == "SIGKILL" else name


def main() -> None:
    """One worker, on standard input and output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Libraries that print must not speak between our answers.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more
        serve(sys.stdin.buffer, _Whole(answers))


class _Whole:
    """An unbuffered pipe takes part of what it is given; this one takes all."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def write(self, data: Any) -> None:
        left = memoryview(data).cast("B")
        while left:
            left = left[self._pipe.write(left) :]
