"""Cut the moments of answers into files that clients download: jobs, one after the other, with limits.

The files lie in a temporary folder of the service's own, and are removed after a while.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from sidelight.core.grounding import Grounding
from sidelight.core.messages import count_of, size_of
from sidelight.export.clips import FILM_SUFFIXES, cut_clips, join_clips, slug
from sidelight.server.errors import ServiceError
from sidelight.server.exports import grounding_of
from sidelight.server.queue import Job, JobQueue, JobStoppedError
from sidelight.server.schemas import CutRequest
from sidelight.server.settings import Settings
from sidelight.server.videos import Video, Videos

_LOGGER = logging.getLogger(__name__)
_LEAST_FREE = 256 << 20
"""Bytes of the disk that stay free."""
_LOOK_SECONDS = 0.5
"""Time between two looks at the size of the files that are written."""


@dataclass(frozen=True, kw_only=True)
class CutFile:
    """A file that was cut."""

    path: Path
    bytes: int
    video: str | None = None
    """Name of the video; None for a film of several moments."""
    start: float | None = None
    """Second of the video at which the file begins."""
    end: float | None = None
    frames: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(eq=False, kw_only=True)
class CutJob(Job):
    """Moments to cut, and later the files."""

    pairs: tuple[tuple[Grounding, Video], ...]
    join: bool
    exact: bool
    padding: float
    files: tuple[CutFile, ...] = ()
    expires: float = float("inf")
    """When the files are removed, by ``time.monotonic``."""


class Cuts(JobQueue[CutJob]):
    """Cut moments, one job at a time: encoding takes all processors already.

    Args:
        videos: the videos.
        settings: the limits.
    """

    _wake_seconds = 30.0

    def __init__(self, videos: Videos, settings: Settings) -> None:
        self._videos, self._settings = videos, settings
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        super().__init__(queue=settings.queue, workers=1, kept=settings.finished_jobs, name="jobs that cut videos")

    def submit(self, request: CutRequest) -> CutJob:
        """Check a request and put it into the queue.

        Raises:
            ServiceError: if there is no such video, a moment is not within its video, the moments are too many or too
                long, or the queue is full.
        """
        videos = {answer.video: self._videos.find(answer.video) for answer in request.answers}
        pairs = [(grounding_of(answer, videos[answer.video], self._videos), videos[answer.video])
                 for answer in request.answers]  # fmt: skip
        if request.top is not None:
            pairs = [(grounding.best(request.top), video) for grounding, video in pairs]
        pairs = [(grounding, video) for grounding, video in pairs if grounding]
        moments = [moment for grounding, _ in pairs for moment in grounding]
        seconds = sum(moment.duration + 2 * request.padding for moment in moments)
        most = self._settings
        problem = ""
        if not moments:
            problem = "there is no moment to cut; send answers with moments"
        elif len(moments) > most.cut_moments:
            problem = f"{len(moments)} moments are too many to cut at once; the limit is {most.cut_moments}"
        elif seconds > most.cut_seconds:
            problem = f"the moments last {seconds:.0f} s together; the limit is {most.cut_seconds:.0f} s"
        elif request.join and not request.exact and len({video.id for _, video in pairs}) > 1:
            problem = "a film of several videos must be encoded; send exact: true"
        if problem:
            raise ServiceError(422, "invalid_request", problem)
        return self.put(CutJob(pairs=tuple(pairs), join=request.join, exact=request.exact, padding=request.padding))

    def file(self, job: CutJob, number: int) -> CutFile:
        """Return a file of a job that is done.

        Args:
            job: the job.
            number: of the file, from 1 on.

        Raises:
            ServiceError: if the job is not done, or there is no such file.
        """
        if not job.finished.done():
            raise ServiceError(409, "not_done", f"the job is {job.state}; wait until it is done")
        job.finished.result()
        if not 1 <= number <= len(job.files):
            message = f"the job has {count_of(len(job.files), 'file')}, which are numbered from 1 on"
            raise ServiceError(404, "no_such_file", message)
        return job.files[number - 1]

    def cancel(self, job: CutJob) -> None:
        """Take a job out of the queue, stop it if it runs, or remove its files if it is done."""
        super().cancel(job)
        with self._ready:
            if job.state == "done":
                self.drop(job)

    def run(self, batch: Sequence[CutJob]) -> None:
        """Cut the moments of a job."""
        (job,) = batch
        folder = None
        try:
            with self._ready:
                self._make_room()
            folder = self._new_folder(job)
            files = self._cut(job, folder)
            self._check_size(folder)  # a short file is written at its end only
            job.files = files
            job.expires = time.monotonic() + self._settings.cut_keep_seconds
            job.succeed(job.files)
        except JobStoppedError:
            job.cancel()
        except ServiceError as error:
            job.fail(error)
        except ValueError as error:
            job.fail(ServiceError(422, "invalid_request", self._shown(error, job)))
        except OSError as error:
            _LOGGER.warning("a cut failed: %s", error)
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = "the disk of the service is full" if is_full else error.strerror or "a file cannot be written"
            job.fail(ServiceError(507 if is_full else 500, "no_space" if is_full else "internal", reason))
        except Exception:
            _LOGGER.exception("a cut failed")
            job.fail(ServiceError(500, "internal", "the cut failed; the service's log says why"))
        if folder is not None and job.state != "done":
            shutil.rmtree(folder, ignore_errors=True)

    def tidy(self) -> None:
        """Forget the jobs whose time is over."""
        for job in [job for job in self._jobs.values() if job.state == "done" and job.expires <= time.monotonic()]:
            self.drop(job)

    def _make_room(self) -> None:
        """Forget the oldest jobs, so that the files of the next one fit; the queue's lock is held."""
        room = self._settings.cuts_bytes - self._settings.cut_bytes
        done = [job for job in self._jobs.values() if job.state == "done"]
        while done and sum(file.bytes for job in done for file in job.files) > room:
            self.drop(done.pop(0))

    def dropped(self, job: CutJob) -> None:
        """Remove the files of a job."""
        if self._folder is not None and job.files:
            shutil.rmtree(Path(self._folder.name, job.id), ignore_errors=True)

    def close(self) -> None:
        """Cancel all jobs, and remove all files."""
        super().close()
        if self._folder is not None:
            self._folder.cleanup()

    def _new_folder(self, job: CutJob) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="sidelight-cuts-", ignore_cleanup_errors=True)
        folder = Path(self._folder.name, job.id)
        folder.mkdir()
        return folder

    def _cut(self, job: CutJob, folder: Path) -> tuple[CutFile, ...]:
        """Write the files of a job."""
        # The list is asked again: a file may have become a link since the request came.
        current = [(grounding, self._videos.find(video.id)) for grounding, video in job.pairs]
        groundings = [replace(grounding, video=str(video.path)) for grounding, video in current]
        names = {str(video.path): self._videos.key_of(video) for _, video in current}
        report = self._reporter(job, folder)
        if job.join:
            first = current[0][1].path.suffix.lower()
            suffix = ".mp4" if job.exact else first if first in FILM_SUFFIXES else ".mkv"
            stem = slug(PurePosixPath(current[0][1].name).stem if len(names) == 1 else groundings[0].query)
            path = folder / f"{stem or 'film'}-moments{suffix}"
            notes = join_clips(groundings, path, padding=job.padding, copy=not job.exact, progress=report)
            shown = tuple(self._shown(note, job) for note in notes)
            return (CutFile(path=path, bytes=path.stat().st_size, notes=shown),)
        clips = cut_clips(groundings, folder, padding=job.padding, copy=not job.exact, progress=report)
        return tuple(
            CutFile(
                path=clip.path,
                bytes=clip.path.stat().st_size,
                video=names[clip.video],
                start=clip.start,
                end=clip.end,
                frames=clip.frames,
                notes=tuple(self._shown(note, job) for note in clip.notes),
            )
            for clip in clips
        )

    def _reporter(self, job: CutJob, folder: Path) -> Callable[[float], None]:
        """Return a function that takes the part that is done, and ends the job once it is stopped or too large."""
        looked = 0.0

        def report(part: float) -> None:
            nonlocal looked
            job.done_part = part
            if job.is_stopped:
                raise JobStoppedError
            if time.monotonic() - looked < _LOOK_SECONDS:
                return
            looked = time.monotonic()
            self._check_size(folder)
            if shutil.disk_usage(folder).free < _LEAST_FREE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return report

    def _check_size(self, folder: Path) -> None:
        """Refuse files that are larger together than the limit."""
        limit = self._settings.cut_bytes
        if sum(entry.stat().st_size for entry in os.scandir(folder)) > limit:
            raise ServiceError(413, "too_large", f"the files of a cut would be larger than {size_of(limit)}; cut less")

    def _shown(self, problem: object, job: CutJob) -> str:
        """Return a message without paths, in the words of the service."""
        text = " ".join(str(problem).split())
        for _, video in job.pairs:
            text = self._videos.hide(text, video)
        if self._folder is not None:
            text = text.replace(f"{Path(self._folder.name, job.id)}{os.sep}", "")
        return text.replace("leave out --copy", "cut exactly (exact: true)")
