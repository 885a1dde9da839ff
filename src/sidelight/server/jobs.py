"""The queue before the model. Jobs that wait for the same video become one call of the model with several queries."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from sidelight.core.grounding import Grounding
from sidelight.io.progress import Progress
from sidelight.server.errors import ServiceError
from sidelight.server.queue import Job, JobQueue, JobStoppedError
from sidelight.server.videos import Video, Videos

_LOGGER = logging.getLogger(__name__)
MOST_QUERIES = 32
"""Queries of one call of the model."""


class Grounds(Protocol):
    """Answers queries about a video file, as :class:`sidelight.Grounder` does."""

    def ground(self, video: Path, query: list[str], *, progress: Progress = False) -> list[Grounding]:
        """Return the grounding of each query.

        Args:
            video: the file.
            query: the sentences.
            progress: may be called with the part of the video that has been read; its exceptions end the call.
        """
        ...


@dataclass(eq=False, kw_only=True)
class GroundJob(Job):
    """Queries about one video, and later their answers."""

    video: Video
    queries: tuple[str, ...]
    top: int | None = None
    """Most moments of each answer; all unless given."""
    min_score: float = 0.0
    """Moments with a lower score are left out of the answers."""


class Jobs(JobQueue[GroundJob]):
    """Ask the model in threads.

    Args:
        grounder: the model.
        videos: the videos, for messages.
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
        self._grounder, self._videos, self._on_batch = grounder, videos, on_batch
        super().__init__(queue=queue, workers=workers, kept=kept, name="requests for the model")

    def submit(
        self, video: Video, queries: Sequence[str], *, top: int | None = None, min_score: float = 0.0
    ) -> GroundJob:
        """Put queries about a video into the queue.

        Args:
            video: the video.
            queries: sentences.
            top: most moments of each answer; all unless given.
            min_score: leave out moments with a lower score.

        Raises:
            ServiceError: 503 if the queue is full.
        """
        return self.put(GroundJob(video=video, queries=tuple(queries), top=top, min_score=min_score))

    def take(self) -> list[GroundJob]:
        """Return the next job whose video no thread reads, with all others that wait for that video."""
        busy_videos = {job.video.id for job in self._running}
        first = next((job for job in self._waiting if job.video.id not in busy_videos), None)
        if first is None:
            return []
        batch: list[GroundJob] = []
        queries: set[str] = set()
        for job in self._waiting:
            if job.video == first.video and len(queries | set(job.queries)) <= MOST_QUERIES:
                batch.append(job)
                queries |= set(job.queries)
        return batch

    def run(self, batch: Sequence[GroundJob]) -> None:
        """Ground all queries of jobs about one video in one call; if one query is at fault, each job on its own."""
        video, start = batch[0].video, time.monotonic()
        queries = list(dict.fromkeys(query for job in batch for query in job.queries))

        def report(part: float) -> None:
            if all(job.is_stopped for job in batch):
                raise JobStoppedError
            for job in batch:
                job.done_part = part

        try:
            groundings = self._videos.readable(
                video, lambda: self._grounder.ground(video.path, queries, progress=report)
            )
            name = self._videos.key_of(video)
        except JobStoppedError:
            for job in batch:
                job.cancel()
            return
        except ServiceError as error:
            for job in batch:
                job.fail(error)
            return
        except ValueError as error:
            if len(batch) > 1:
                for job in batch:
                    self.run([job])
            else:
                message = self._videos.hide(" ".join(str(error).split()), video)
                batch[0].fail(ServiceError(422, "invalid_request", message))
            return
        except Exception:
            _LOGGER.exception("a job about %s failed", video.name)
            for job in batch:
                job.fail(ServiceError(500, "internal", "the model failed; the service's log says why"))
            return
        self._on_batch(len(batch), time.monotonic() - start)
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
            kept = [answers[query].at_least(job.min_score) for query in job.queries]
            job.succeed(tuple(kept if job.top is None else (answer.best(job.top) for answer in kept)))
