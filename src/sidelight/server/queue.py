"""A bounded queue of work that threads do, and that clients follow and cancel."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from sidelight.server.errors import ServiceError, busy

_LOGGER = logging.getLogger(__name__)
State = Literal["queued", "running", "done", "failed", "cancelled"]


class JobStoppedError(Exception):
    """Nobody wants the work any more; raised inside it, where it reports its progress."""


@dataclass(eq=False, kw_only=True)
class Job:
    """Work that a client waits for, and later its result."""

    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    state: State = "queued"
    done_part: float | None = None
    """Part of the work that is done, 0 to 1, while it runs; None until the work reports it."""
    is_stopped: bool = False
    """Whether the client has cancelled the job while it ran."""
    finished: Future[Any] = field(default_factory=Future)
    """The result, or a ServiceError."""

    @property
    def progress(self) -> float | None:
        """Return the part of the work that is done, 0 to 1; None if unknown."""
        if self.state == "queued":
            return 0.0
        return self.done_part if self.state == "running" else 1.0

    def succeed(self, result: Any) -> None:
        """Set the result; a job that was cancelled meanwhile has none."""
        if self.is_stopped:
            self.cancel()
            return
        self.state = "done"
        self.finished.set_result(result)

    def fail(self, error: ServiceError) -> None:
        """Set the error."""
        self.state = "failed"
        self.finished.set_exception(error)

    def cancel(self, error: ServiceError | None = None) -> None:
        """End the job without a result."""
        self.state = "cancelled"
        self.finished.set_exception(error or ServiceError(409, "cancelled", "the job was cancelled"))


J = TypeVar("J", bound=Job)


class JobQueue(Generic[J]):
    """Run jobs in threads. A kind of work is a subclass with the method :meth:`run`.

    Args:
        queue: jobs that may wait; one more is refused.
        workers: threads.
        kept: finished jobs that can still be asked for.
        name: name of the threads, and of what waits, for messages.
    """

    _wake_seconds: float | None = None
    """A thread without work calls :meth:`tidy` after so long; None for never."""

    def __init__(self, *, queue: int, workers: int, kept: int, name: str) -> None:
        self._queue, self._kept, self._name = queue, kept, name
        self._ready = threading.Condition()
        self._waiting: list[J] = []
        self._running: list[J] = []
        self._jobs: OrderedDict[str, J] = OrderedDict()
        self._closed = False
        self._seconds = 2.0  # of a call of run, on average
        self._threads = [threading.Thread(target=self._work, daemon=True, name=f"{name}-{i}") for i in range(workers)]
        for thread in self._threads:
            thread.start()

    def put(self, job: J) -> J:
        """Put a job into the queue.

        Raises:
            ServiceError: 503 if the queue is full.
        """
        with self._ready:
            if len(self._waiting) >= self._queue or self._closed:
                raise busy(f"{len(self._waiting)} {self._name} wait", self._seconds * len(self._waiting))
            self._waiting.append(job)
            self._jobs[job.id] = job
            self._drop_old()
            self._ready.notify()
        return job

    def find(self, name: str) -> J | None:
        """Return a job by its id; None if there is none, or it ended long ago."""
        with self._ready:
            return self._jobs.get(name)

    def cancel(self, job: J) -> None:
        """Take a job out of the queue, or tell it to stop if it runs."""
        with self._ready:
            if job in self._waiting:
                self._waiting.remove(job)
                job.cancel()
            elif job in self._running:
                job.is_stopped = True

    def position(self, job: J) -> int | None:
        """Return how many jobs wait before this one; None if it does not wait."""
        with self._ready:
            return self._waiting.index(job) if job in self._waiting else None

    def waiting(self) -> int:
        """Return how many jobs wait."""
        return len(self._waiting)

    def close(self) -> None:
        """Cancel all jobs, and end the threads once their work returns."""
        with self._ready:
            self._closed = True
            for job in self._waiting:
                job.cancel(ServiceError(503, "busy", "the service ends"))
            self._waiting.clear()
            for job in self._running:
                job.is_stopped = True
            self._ready.notify_all()
        for thread in self._threads:
            thread.join(timeout=5)

    # for subclasses -------------------------------------------------------------------------------------------------

    def run(self, batch: Sequence[J]) -> None:
        """Do the work of some jobs, and end each of them."""
        raise NotImplementedError

    def take(self) -> list[J]:
        """Return the jobs to run next, out of those that wait; the queue's lock is held."""
        return self._waiting[:1]

    def tidy(self) -> None:
        """Remove what is kept no longer; the queue's lock is held."""

    def dropped(self, job: J) -> None:
        """Remove what a job left, which is forgotten now; the queue's lock is held."""

    # threads --------------------------------------------------------------------------------------------------------

    def drop(self, job: J) -> None:
        """Forget a job that has ended; the queue's lock is held."""
        self._jobs.pop(job.id, None)
        self.dropped(job)

    def _drop_old(self) -> None:
        ended = [job for job in self._jobs.values() if job.finished.done()]
        for job in ended[: max(0, len(ended) - self._kept)]:
            self.drop(job)
        self.tidy()

    def _work(self) -> None:
        while True:
            with self._ready:
                while not (batch := self.take()):
                    if self._closed:
                        return
                    self._ready.wait(self._wake_seconds)
                    self.tidy()
                for job in batch:
                    self._waiting.remove(job)
                    self._running.append(job)
                    job.state = "running"
            start = time.monotonic()
            try:
                self.run(batch)
            except Exception:  # the thread must go on with the next jobs
                _LOGGER.exception("a job failed")
                for job in batch:
                    if not job.finished.done():
                        job.fail(ServiceError(500, "internal", "the job failed; the service's log says why"))
            finally:
                with self._ready:
                    self._seconds = 0.7 * self._seconds + 0.3 * (time.monotonic() - start)
                    self._running = [job for job in self._running if job not in batch]
                    self._drop_old()
                    self._ready.notify_all()
