"""A bounded queue of jobs. Jobs that wait for the same video become one call of the model with several queries."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

from sidelight.core.grounding import Grounding
from sidelight.server.errors import ServiceError, busy
from sidelight.server.videos import Video, Videos

_LOGGER = logging.getLogger(__name__)
MOST_QUERIES = 32
"""Queries of one call of the model."""
State = Literal["queued", "running", "done", "failed", "cancelled"]


class Grounds(Protocol):
    """Answers queries about a video file, as :class:`sidelight.Grounder` does."""

    def ground(self, video: Path, query: list[str]) -> list[Grounding]:
        """Return the grounding of each query."""
        ...


@dataclass(eq=False)
class Job:
    """Queries about one video, and later their answers."""

    id: str
    video: Video
    queries: tuple[str, ...]
    top: int | None = None
    """Most moments of each answer; all unless given."""
    min_score: float = 0.0
    """Moments with a lower score are left out of the answers."""
    state: State = "queued"
    began: float = field(default_factory=time.monotonic)
    """When it began to wait, and later when it began to run."""
    expected: float | None = None
    """Seconds that it will probably run; None if unknown."""
    finished: Future[tuple[Grounding, ...]] = field(default_factory=Future)
    """The answers, or a ServiceError."""

    @property
    def progress(self) -> float | None:
        """Return the part of the work that is done, estimated by the time of earlier jobs; None if unknown."""
        if self.state == "queued":
            return 0.0
        if self.state != "running":
            return 1.0
        return None if not self.expected else min(0.95, (time.monotonic() - self.began) / self.expected)


class Jobs:
    """Run jobs in threads.

    Args:
        grounder: the model.
        videos: the videos, for durations and for messages.
        queue: jobs that may wait; one more is refused.
        workers: threads, each of which reads one video at a time.
        kept: finished jobs that can still be asked for.
        on_batch: called with the number of jobs and the seconds of each call of the model.
    """

    def __init__(
        self,
        grounder: Grounds,
        videos: Videos,
        *,
        queue: int = 32,
        workers: int = 2,
        kept: int = 200,
        on_batch: Callable[[int, float], None] = lambda jobs, seconds: None,
    ) -> None:
        self._grounder, self._videos, self._queue, self._kept, self._on_batch = grounder, videos, queue, kept, on_batch
        self._ready = threading.Condition()
        self._waiting: list[Job] = []
        self._running: set[str] = set()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._closed = False
        self._seconds = 2.0  # of a call, on average
        self._pace: float | None = None  # seconds of a call for a second of video, on average
        self._workers = max(1, workers)
        self._threads = [threading.Thread(target=self._work, daemon=True, name=f"job-{i}") for i in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, video: Video, queries: Sequence[str], *, top: int | None = None, min_score: float = 0.0) -> Job:
        """Put queries about a video into the queue.

        Args:
            video: the video.
            queries: sentences.
            top: most moments of each answer; all unless given.
            min_score: leave out moments with a lower score.

        Raises:
            ServiceError: 503 if the queue is full.
        """
        job = Job(id=secrets.token_urlsafe(12), video=video, queries=tuple(queries), top=top, min_score=min_score)
        with self._ready:
            if len(self._waiting) >= self._queue or self._closed:
                raise busy(f"{len(self._waiting)} requests wait for the model", self._seconds * len(self._waiting))
            self._waiting.append(job)
            self._jobs[job.id] = job
            self._drop_old()
            self._ready.notify()
        return job

    def get(self, name: str) -> Job:
        """Return a job by its id.

        Raises:
            ServiceError: 404 if there is none, or it ended long ago.
        """
        with self._ready:
            if name not in self._jobs:
                raise ServiceError(
                    404, "no_such_job", "there is no job of this id; finished jobs are kept for a while only"
                )
            return self._jobs[name]

    def cancel(self, job: Job) -> None:
        """Take a job out of the queue; a job that runs already ends by itself."""
        with self._ready:
            if job in self._waiting:
                self._waiting.remove(job)
                self._fail(job, ServiceError(409, "cancelled", "the job was cancelled"), state="cancelled")

    def position(self, job: Job) -> int | None:
        """Return how many jobs wait before this one; None if it does not wait."""
        with self._ready:
            return self._waiting.index(job) if job in self._waiting else None

    def waiting(self) -> int:
        """Return how many jobs wait."""
        return len(self._waiting)

    def close(self) -> None:
        """Cancel all jobs that wait, and end the threads once their calls return."""
        with self._ready:
            self._closed = True
            for job in self._waiting:
                self._fail(job, ServiceError(503, "busy", "the service ends"), state="cancelled")
            self._waiting.clear()
            self._ready.notify_all()
        for thread in self._threads:
            thread.join(timeout=5)

    def _drop_old(self) -> None:
        ended = [name for name, job in self._jobs.items() if job.finished.done()]
        for name in ended[: max(0, len(ended) - self._kept)]:
            del self._jobs[name]

    def _work(self) -> None:
        while True:
            with self._ready:
                while not (batch := self._take()):
                    if self._closed:
                        return
                    self._ready.wait()
            video = batch[0].video
            try:
                self._answer(batch)
            finally:
                with self._ready:
                    self._running.discard(video.id)
                    self._drop_old()
                    self._ready.notify_all()

    def _take(self) -> list[Job]:
        """Return the next job whose video no thread reads, with all others that wait for that video."""
        first = next((job for job in self._waiting if job.video.id not in self._running), None)
        if first is None:
            return []
        batch: list[Job] = []
        queries: set[str] = set()
        for job in self._waiting:
            if job.video == first.video and len(queries | set(job.queries)) <= MOST_QUERIES:
                batch.append(job)
                queries |= set(job.queries)
        self._running.add(first.video.id)
        for job in batch:
            self._waiting.remove(job)
            job.state, job.began = "running", time.monotonic()
        return batch

    def _answer(self, batch: Sequence[Job]) -> None:
        """Ground all queries of jobs about one video in one call; if one query is at fault, each job on its own."""
        video, start = batch[0].video, time.monotonic()
        queries = list(dict.fromkeys(query for job in batch for query in job.queries))
        try:
            duration = self._videos.facts(video).duration
            for job in batch:
                job.expected = self._pace * duration if self._pace is not None else None
            groundings = self._videos.readable(video, lambda: self._grounder.ground(video.path, queries))
            name = self._videos.key_of(video)
        except ServiceError as error:
            for job in batch:
                self._fail(job, error)
            return
        except ValueError as error:
            if len(batch) > 1:
                for job in batch:
                    self._answer([job])
            else:
                message = self._videos.hide(" ".join(str(error).split()), video)
                self._fail(batch[0], ServiceError(422, "invalid_request", message))
            return
        except Exception:
            _LOGGER.exception("a job about %s failed", video.name)
            for job in batch:
                self._fail(job, ServiceError(500, "internal", "the model failed; the service's log says why"))
            return
        seconds = time.monotonic() - start
        self._seconds = 0.7 * self._seconds + 0.3 * seconds
        pace = seconds / max(duration, 1.0)
        self._pace = pace if self._pace is None else 0.7 * self._pace + 0.3 * pace
        self._on_batch(len(batch), seconds)
        answers = {
            grounding.query: replace(
                grounding,
                video=name,
                model=self._videos.model,
                notes=tuple(self._videos.hide(note, video) for note in grounding.notes),
            )
            for grounding in groundings
        }
        for job in batch:
            job.state = "done"
            kept = [answers[query].at_least(job.min_score) for query in job.queries]
            job.finished.set_result(tuple(kept if job.top is None else (answer.best(job.top) for answer in kept)))

    def _fail(self, job: Job, error: ServiceError, *, state: State = "failed") -> None:
        job.state = state
        job.finished.set_exception(error)
