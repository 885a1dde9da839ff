"""Decode videos in separate processes, ahead of the caller that consumes the frames.

:func:`main` is one such process: it reads orders from standard input (a line of JSON each) and answers on standard
output with lines of JSON, some of them followed by raw pixels. The processes are started with ``subprocess`` and not
with ``multiprocessing``, because scripts then need no ``if __name__ == "__main__"``, and because a decoder that crashes
on a broken file ends one worker, and not the pool.

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
from contextvars import copy_context
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from sidelight.core.timeline import Timeline
from sidelight.io.processes import end_with_parent
from sidelight.io.storage import is_address, local_copy
from sidelight.video.damage import VideoError
from sidelight.video.read import Resize, frames_at, probe

CHUNK_CLIPS = 8
"""Clips that travel together: some megabytes, so that a worker is never far ahead in memory."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The frames that are read of a video, and their size."""

    clip_seconds: float
    frames_per_clip: int
    resolution: int
    """Side of the square images, in pixels."""
    resize: Resize


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some clips of a video, in order."""

    vid: str
    pixels_CFSS3: npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class End:
    """The end of one video: it was decoded, or could not be."""

    vid: str
    clips: int = 0
    """Number of clips that were decoded."""
    duration: float = 0.0
    """Seconds, as the file states them."""
    error: str = ""
    """Reason why the file could not be read."""
    warning: str = ""
    """Damage of a file that could be read."""


def clips_of(
    path: str | Path,
    sampling: Sampling,
    duration: float,
    *,
    chunk: int = CHUNK_CLIPS,
    threads: int = 0,
    on_damage: Callable[[str], None] | None = None,
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the sampled frames of a video, in chunks of at most ``chunk`` clips.

    Where the video ends early, the last clip is filled up with its last frame, and the clips after it are absent.

    Args:
        path: the file.
        sampling: which frames, and how large.
        duration: seconds, as ``probe`` returns them.
        chunk: clips at once.
        threads: threads of the decoder; 0 for one per processor.
        on_damage: called with a sentence about the damage; if None, a VideoWarning is issued.

    Yields:
        uint8 (C, F, S, S, 3).

    Raises:
        VideoError: if the file cannot be read as a video.
    """
    seconds = Timeline(duration=duration, clip_seconds=sampling.clip_seconds).frame_times(sampling.frames_per_clip)
    size, resize = (sampling.resolution, sampling.resolution), sampling.resize
    frames = frames_at(path, seconds, size=size, resize=resize, threads=threads, on_damage=on_damage)
    while images := [frame.image for frame in islice(frames, chunk * sampling.frames_per_clip)]:
        images += [images[-1]] * (-len(images) % sampling.frames_per_clip)
        yield np.stack(images).reshape(-1, sampling.frames_per_clip, *images[0].shape)


def _naming(parts: Iterator[Chunk | End], path: Path, address: str | Path) -> Iterator[Chunk | End]:
    """Yield the parts of a video; messages about the copy of an address name the address."""
    for part in parts:
        if isinstance(part, End) and is_address(address):
            error, warning = (text.replace(str(path), str(address)) for text in (part.error, part.warning))
            part = replace(part, error=error, warning=warning)
        yield part


def decode_video(
    vid: str, path: str | Path, sampling: Sampling, *, chunk: int = CHUNK_CLIPS, threads: int = 0
) -> Iterator[Chunk | End]:
    """Yield the chunks of one video, then an :class:`End`, which also reports errors and damage."""
    count, damage = 0, list[str]()
    try:
        duration = probe(path).duration
        for pixels in clips_of(path, sampling, duration, chunk=chunk, threads=threads, on_damage=damage.append):
            count += len(pixels)
            yield Chunk(vid=vid, pixels_CFSS3=pixels)
        if not count:
            raise VideoError(f"{path}: no frame could be decoded; check that the file plays in a video player")
    except (VideoError, OSError) as error:
        yield End(vid=vid, error=" ".join(str(error).split()))
        return
    yield End(vid=vid, clips=count, duration=duration, warning="; ".join(damage))


_READY = b'{"ready": true}\n'
"""The first line of a worker. A worker that ends before it could not start, which is no video's fault."""

# one worker --------------------------------------------------------------------------------------------------------


def serve(orders: IO[bytes], answers: _FullWriter) -> None:
    """Decode the videos that are ordered, until the orders end."""
    answers.write(_READY)
    for line in orders:
        order = json.loads(line)
        sampling = Sampling(**order["sampling"])
        for part in decode_video(order["vid"], order["path"], sampling, chunk=order["chunk"], threads=order["threads"]):
            if isinstance(part, End):
                answers.write(json.dumps({"end": asdict(part)}).encode() + b"\n")
            else:
                answers.write(json.dumps({"shape": part.pixels_CFSS3.shape}).encode() + b"\n")
                answers.write(part.pixels_CFSS3.data)


class _Crashed(Exception):
    """A worker ended in the middle of a video; the argument is the number of chunks that came before."""


class _Worker:
    """A process that decodes, and our ends of its pipes."""

    def __init__(self) -> None:
        # Modules are imported from where we import them, and never from the current folder, which may hold videos.
        path = [folder for folder in sys.path if folder]
        start = f"import sys; sys.path[:] = {path!r}; from sidelight.video.workers import main; main({os.getpid()})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", start],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl-C in a terminal reaches the whole process group: the caller decides when its workers stop.
            start_new_session=True,
        )
        self._started = False

    def decode(self, vid: str, path: str, sampling: Sampling, chunk: int) -> Iterator[Chunk | End]:
        """Order a video, and yield its chunks and its end.

        Raises:
            _Crashed: if the process ends before the video does.
            RuntimeError: if the process did not start.
        """
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
        """End the process and return its exit code."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # an order that was not sent yet
                pipe.close()
        return self.process.wait()


# all workers -------------------------------------------------------------------------------------------------------


class DecodeWorkers:
    """Several videos decoded at once; iterate for chunks and ends, where each video's chunks come in order.

    Use it as a context manager: leaving it stops the processes.

    Args:
        videos: id -> file, or address in object storage, which is fetched to a temporary file first.
        sampling: which frames of each video, and how large.
        workers: processes; 0 decodes in a thread of this process.
        chunk: clips at once.
    """

    RETRIES = 1
    """How often a video whose worker crashed is tried again; a second crash is the file's fault."""

    def __init__(
        self, videos: Mapping[str, str | Path], sampling: Sampling, *, workers: int, chunk: int = CHUNK_CLIPS
    ) -> None:
        self._todo = iter(videos.items())
        self._sampling, self._chunk = sampling, chunk
        self._in_this_process = workers == 0
        count = max(1, min(workers, len(videos)))
        # Full when each worker has one chunk waiting here and holds another.
        self._ready: queue.Queue[Chunk | End | BaseException | None] = queue.Queue(count)
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._running: set[_Worker] = set()
        # Each thread gets a copy of our context, which may allow playlists.
        self._threads = [
            threading.Thread(target=copy_context().run, args=(self._run,), daemon=True) for _ in range(count)
        ]

    def __enter__(self) -> DecodeWorkers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        with self._lock:
            for worker in self._running:
                worker.process.kill()
        while any(thread.is_alive() for thread in self._threads):
            try:
                self._ready.get(timeout=0.05)  # frees threads that wait for room in the queue
            except queue.Empty:
                continue

    def __iter__(self) -> Iterator[Chunk | End]:
        active = len(self._threads)
        while active:
            part = self._ready.get()
            if part is None:
                active -= 1
            elif isinstance(part, BaseException):
                raise part
            else:
                yield part

    @property
    def processes(self) -> list[int]:
        """Return the process ids of the running workers."""
        with self._lock:
            return [worker.process.pid for worker in self._running]

    def _next_video(self) -> tuple[str, str | Path] | None:
        with self._lock:
            return None if self._stopped.is_set() else next(self._todo, None)

    def _run(self) -> None:
        """Run one thread: give videos to a worker, forward its answers, replace it if it crashes."""
        worker: _Worker | None = None
        try:
            while (video := self._next_video()) is not None:
                vid, address = video
                with ExitStack() as stack:
                    try:
                        path = stack.enter_context(local_copy(address))
                    except (OSError, ValueError) as error:
                        self._ready.put(End(vid=vid, error=" ".join(str(error).split())))
                        continue
                    if self._in_this_process:
                        parts = decode_video(vid, path, self._sampling, chunk=self._chunk)
                        self._forward(_naming(parts, path, address))
                    else:
                        worker = self._decode_with(worker, vid, path, address)
        except BaseException as error:
            if not self._stopped.is_set():
                self._ready.put(error)  # an error of this program, not of a video
        finally:
            if worker is not None:
                self._end(worker)
            self._ready.put(None)

    def _decode_with(self, worker: _Worker | None, vid: str, path: Path, address: str | Path) -> _Worker | None:
        """Decode a video with a worker, or with a new one if that crashes; return the worker that still runs."""
        forwarded = 0
        for attempt in range(self.RETRIES + 1):
            with self._lock:  # __exit__ kills all workers in _running, and none may start afterwards
                if self._stopped.is_set():
                    return worker
                worker = worker or _Worker()
                self._running.add(worker)
            try:
                parts = worker.decode(vid, str(path), self._sampling, self._chunk)
                self._forward(_naming(parts, path, address), skip=forwarded)
                return worker
            except _Crashed as crash:
                forwarded = max(forwarded, *crash.args)
                code, worker = self._end(worker), None
                if attempt == self.RETRIES and not self._stopped.is_set():
                    reason = _describe_exit(code)
                    error = f"{address}: its decoder crashed twice ({reason}); check that a video player shows it"
                    self._ready.put(End(vid=vid, error=error))
            except BaseException:
                self._end(worker)
                raise
        return worker

    def _forward(self, parts: Iterator[Chunk | End], *, skip: int = 0) -> None:
        """Put chunks and ends into the queue, except the first ``skip`` chunks, which were forwarded before.

        Raises:
            _Crashed: if the worker crashes; with the number of chunks until then.
        """
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

    def _end(self, worker: _Worker) -> int:
        with self._lock:
            self._running.discard(worker)
        return worker.stop()


def _describe_exit(code: int) -> str:
    """Return the exit code of a process in words; below 0 it is the signal that ended the process."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # real-time signals have no names
        name = f"signal {-code}"
    return f"{name}: out of memory?" if name == "SIGKILL" else name


def main(parent: int | None = None) -> None:
    """Run one worker on standard input and output.

    Args:
        parent: id of the process that started the worker, which ends with it; asked from the system unless given.
    """
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Libraries that print must not write between our answers.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    with contextlib.suppress(BrokenPipeError):  # the caller has ended
        serve(sys.stdin.buffer, _FullWriter(answers))


class _FullWriter:
    """An unbuffered pipe that writes all of its argument; the pipe alone may write only a part."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def write(self, data: Any) -> None:
        left = memoryview(data).cast("B")
        while left:
            left = left[self._pipe.write(left) :]
