"""The parts of the service, which all endpoints share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anyio import CapacityLimiter
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector

from sidelight.server.cuts import CutJob, Cuts
from sidelight.server.errors import ServiceError
from sidelight.server.jobs import GroundJob, Grounds, Jobs
from sidelight.server.search import Searches
from sidelight.server.settings import Settings
from sidelight.server.uploads import Uploads
from sidelight.server.videos import Videos

_DECODERS = 2
"""Thumbnails and files that are read at once."""


class Service:
    """A model, the videos that it may read, and the queue before it.

    Args:
        grounder: the model.
        model: name of the model.
        folders: folders of videos.
        uploads: folder of uploads; None if there are no uploads.
        library: searches many videos; None if there is no library.
        settings: the limits.
    """

    def __init__(
        self,
        grounder: Grounds,
        *,
        model: str,
        folders: Sequence[str | Path] = (),
        uploads: str | Path | None = None,
        library: Searches | None = None,
        settings: Settings,
    ) -> None:
        self.library, self.settings = library, settings
        self.videos = Videos(folders, uploads=uploads, model=model)
        self.model = self.videos.model
        self.uploads = Uploads(self.videos, settings)
        self.metrics = Metrics()
        self.jobs = Jobs(
            grounder,
            self.videos,
            queue=settings.queue,
            workers=settings.workers,
            kept=settings.finished_jobs,
            on_batch=self.metrics.on_batch,
        )
        self.metrics.queue.set_function(self.jobs.waiting)
        self.cuts = Cuts(self.videos, settings)
        self.decoders = CapacityLimiter(_DECODERS)
        self.searchers = CapacityLimiter(settings.searches_at_once)

    def job(self, name: str) -> GroundJob | CutJob:
        """Return a job by its id.

        Raises:
            ServiceError: 404 if there is none, or it is forgotten.
        """
        job = self.jobs.find(name) or self.cuts.find(name)
        if job is None:
            raise ServiceError(
                404, "no_such_job", "there is no job of this id; finished jobs are kept for a while only"
            )
        return job

    def cancel(self, job: GroundJob | CutJob) -> None:
        """Cancel a job that waits or runs; remove the files of a finished one that cut moments."""
        if isinstance(job, CutJob):
            self.cuts.cancel(job)
        else:
            self.jobs.cancel(job)

    def position(self, job: GroundJob | CutJob) -> int | None:
        """Return how many jobs wait before this one; None if it does not wait."""
        return self.cuts.position(job) if isinstance(job, CutJob) else self.jobs.position(job)

    def close(self) -> None:
        """End all jobs, and remove the files that were cut."""
        self.cuts.close()
        self.jobs.close()


class Metrics:
    """Numbers about the service, for Prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._requests = Counter(
            "sidelight_requests", "Requests by route and status", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "sidelight_request_seconds", "Time until the end of the answer", ["route"], registry=self.registry
        )
        self._batch = Histogram(
            "sidelight_batch_jobs",
            "Jobs of one call of the model",
            registry=self.registry,
            buckets=(1, 2, 4, 8, 16, 32),
        )
        self._batch_seconds = Histogram(
            "sidelight_batch_seconds", "Time of one call of the model", registry=self.registry
        )
        self.queue = Gauge("sidelight_queue_jobs", "Jobs that wait for the model", registry=self.registry)

    def on_answer(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        method = method if method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS") else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def on_batch(self, jobs: int, seconds: float) -> None:
        """Count one call of the model."""
        self._batch.observe(jobs)
        self._batch_seconds.observe(seconds)
