"""The endpoints below /v1."""

from __future__ import annotations

import asyncio
import json
import mimetypes
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any
from urllib.parse import quote

from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse

from sidelight.server import schemas
from sidelight.server.cuts import CutJob
from sidelight.server.errors import ServiceError, busy
from sidelight.server.exports import export_file, format_bodies
from sidelight.server.guard import COOKIE, Guard
from sidelight.server.jobs import GroundJob
from sidelight.server.queue import Job
from sidelight.server.search import Searches, image_answer, search_answer
from sidelight.server.service import Service
from sidelight.server.uploads import FIELD, receive_image
from sidelight.server.videos import Video

_WRONG: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.ErrorBody, "description": text}
    for status, text in {
        400: "the body cannot be read",
        401: "the token is missing or wrong",
        403: "a page of another site asks",
        404: "there is no such thing",
        408: "the body is too slow",
        413: "the body is too large",
        421: "the service is not reached by this name",
        422: "a value is wrong",
        503: "the service is busy; the header Retry-After says for how many seconds",
    }.items()
}
_UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {FIELD: {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}
_LOOK_SECONDS, _STEP_SECONDS, _BEAT_SECONDS = 0.02, 0.2, 5.0


def service_of(request: Request) -> Service:
    """Return the service that a request is sent to."""
    service: Service = request.app.state.service
    return service


Here = Annotated[Service, Depends(service_of)]
router = APIRouter(prefix="/v1", responses=_WRONG)


def video_body(video: Video) -> schemas.VideoBody:
    """Return what a list says about a video."""
    return schemas.VideoBody(id=video.id, name=video.name, bytes=video.size, uploaded=video.uploaded)


async def facts_body(video: Video, service: Service) -> schemas.VideoFacts:
    """Return a video with what its file says."""
    facts = await to_thread.run_sync(service.videos.facts, video, limiter=service.decoders)
    return schemas.VideoFacts(**video_body(video).model_dump(), **{**vars(facts), "notes": list(facts.notes)})


@router.get("/models", summary="The model that answers, other models, and formats of exports")
async def models(service: Here) -> schemas.ModelList:
    """List the models that sidelight knows; the loaded one answers."""
    from sidelight.training.named import EXAMPLE, NAMED_MODELS

    rows = [
        schemas.ModelBody(
            name=name,
            answers=model.answers,
            languages=model.languages,
            example=model.example,
            loaded=name == service.model,
        )
        for name, model in NAMED_MODELS.items()
        if not model.special or name == service.model
    ]
    loaded = NAMED_MODELS.get(service.model)
    return schemas.ModelList(
        model=service.model,
        knows=loaded.answers if loaded else "",
        example=loaded.example if loaded else EXAMPLE,
        models=rows,
        formats=format_bodies(),
        uploads=service.videos.uploads is not None,
        search=service.library is not None,
    )


@router.get("/videos", summary="The videos that can be asked about")
async def videos(
    service: Here,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
) -> schemas.VideoList:
    """List the videos of the folders and the uploads by name."""
    found_videos = await to_thread.run_sync(service.videos.all)
    page = found_videos[offset : offset + limit]
    return schemas.VideoList(videos=[video_body(video) for video in page], total=len(found_videos))


@router.post(
    "/videos",
    status_code=201,
    summary="Upload a video",
    openapi_extra=_UPLOAD_BODY,
    responses={507: {"model": schemas.ErrorBody, "description": "there is no room for more uploads"}},
)
async def upload(request: Request, service: Here) -> schemas.VideoFacts:
    """Keep a video in the folder of uploads. A taken name gets a number; no file is replaced."""
    video = await service.uploads.receive(request.headers.get("content-type", ""), request.stream())
    return await facts_body(video, service)


@router.get("/videos/{key:path}/file", summary="The file, whole or a range of bytes", response_class=FileResponse)
async def video_file(key: str, service: Here) -> FileResponse:
    """Return the file of a video; the header Range chooses a part."""
    video = await to_thread.run_sync(service.videos.find, key)
    kind = mimetypes.guess_type(video.path.name)[0] or ""
    kind = kind if kind.startswith("video/") else "application/octet-stream"
    return FileResponse(video.path, media_type=kind, filename=video.path.name, content_disposition_type="inline")


@router.get(
    "/videos/{key:path}/thumbnail",
    summary="The frame at a second, as JPEG",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}}},
)
async def thumbnail(
    key: str,
    service: Here,
    at: Annotated[float, Query(ge=0, le=86400 * 30, allow_inf_nan=False, description="seconds")] = 0.0,
    height: Annotated[int, Query(ge=32, le=480, description="pixels")] = 144,
) -> Response:
    """Return a small picture of a video."""
    video = await to_thread.run_sync(service.videos.find, key)
    content = await to_thread.run_sync(service.videos.thumbnail, video, at, height, limiter=service.decoders)
    return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


@router.get("/videos/{key:path}", summary="What the file of a video says")
async def video(key: str, service: Here) -> schemas.VideoFacts:
    """Return duration, size and codec of a video."""
    return await facts_body(await to_thread.run_sync(service.videos.find, key), service)


@router.post(
    "/ground",
    summary="Find moments in a video by sentences",
    response_model=schemas.GroundAnswer | schemas.JobBody,
    responses={202: {"model": schemas.JobBody, "description": "a job, with async"}},
)
async def ground(body: schemas.GroundRequest, request: Request, service: Here) -> Any:
    """Answer one or several queries about a video. With ``async``, answer at once with a job."""
    from sidelight.grounder import checked_queries

    try:
        queries = checked_queries(body.queries)
    except ValueError as error:
        raise ServiceError(422, "invalid_request", str(error)) from None
    video = await to_thread.run_sync(service.videos.find, body.video)
    job = service.jobs.submit(video, queries, top=body.top, min_score=body.min_score)
    if body.run_async:
        content = job_body(job, service).model_dump(mode="json")
        return JSONResponse(content, status_code=202, headers={"Location": f"v1/jobs/{job.id}"})
    while not await _has_ended(job):
        if await request.is_disconnected():
            service.jobs.cancel(job)
            raise ServiceError(499, "client_gone", "the client closed the connection")
    return result_body(job)


@router.get("/jobs/{name}", summary="A job and, once it is done, its answers")
async def job(name: str, service: Here) -> schemas.JobBody:
    """Return the state of a job."""
    return job_body(service.job(name), service)


@router.delete("/jobs/{name}", summary="Cancel a job, or remove the files that it cut")
async def cancel(name: str, service: Here) -> schemas.JobBody:
    """Take a job out of the queue, or stop it soon if it runs. The files of a finished job are removed."""
    known = service.job(name)
    await to_thread.run_sync(service.cancel, known)
    return job_body(known, service)


@router.get(
    "/jobs/{name}/events",
    summary="The states of a job, as server-sent events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def events(name: str, request: Request, service: Here) -> StreamingResponse:
    """Send an event ``progress`` for each change and each second, and one event ``end`` with the answers."""
    known = service.job(name)

    async def stream() -> AsyncIterator[str]:
        last, sent = "", time.monotonic()
        while not await _has_ended(known, _STEP_SECONDS):
            if await request.is_disconnected():
                return
            text = job_body(known, service).model_dump_json()
            if text != last and (known.state != "running" or time.monotonic() - sent > 1 or not last):
                yield f"event: progress\ndata: {text}\n\n"
                last, sent = text, time.monotonic()
            elif time.monotonic() - sent > _BEAT_SECONDS:
                yield ": still here\n\n"
                sent = time.monotonic()
        yield f"event: end\ndata: {job_body(known, service).model_dump_json()}\n\n"

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # a proxy (nginx) must not collect the events
    return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)


@router.post(
    "/export",
    summary="Write answers for another program",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "the file; notes are in Sidelight-Notes, as JSON"}},
)
async def export(body: schemas.ExportRequest, service: Here) -> Response:
    """Return answers, also with edited moments, as a file for another program."""
    file = await to_thread.run_sync(export_file, body, service.videos, limiter=service.decoders)
    headers = {
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.name)}",
        "Sidelight-Notes": json.dumps(file.notes),
    }
    return Response(file.content, media_type=file.kind, headers=headers)


@router.post("/cuts", status_code=202, summary="Cut moments into video files")
async def cut(body: schemas.CutRequest, response: Response, service: Here) -> schemas.JobBody:
    """Answer with a job, whose files can be downloaded once it is done."""
    job = await to_thread.run_sync(service.cuts.submit, body, limiter=service.decoders)
    response.headers["Location"] = f"v1/jobs/{job.id}"
    return job_body(job, service)


@router.get(
    "/cuts/{name}/{number}",
    summary="A file that a job has cut",
    response_class=FileResponse,
    responses={409: {"model": schemas.ErrorBody, "description": "the job is not done, or was cancelled"}},
)
async def cut_file(name: str, number: int, service: Here) -> FileResponse:
    """Return a file of a job, to save it."""
    job = service.job(name)
    if not isinstance(job, CutJob):
        raise ServiceError(404, "no_such_file", "this job cuts no files; POST v1/cuts makes one that does")
    path = service.cuts.file(job, number).path
    return FileResponse(path, media_type=mimetypes.guess_type(path.name)[0], filename=path.name)


def _library_of(service: Service) -> Searches:
    """Return the library, if there is one and not too many searches wait."""
    if service.library is None:
        raise ServiceError(404, "no_library", "this service has no library to search; ask about one video: v1/ground")
    waiting = service.searchers.statistics().tasks_waiting
    if waiting >= service.settings.queue:
        raise busy(f"{waiting} searches wait", 2.0 * waiting)
    return service.library


@router.post("/search", summary="Find moments in all videos of the library")
async def search(body: schemas.SearchRequest, service: Here) -> schemas.SearchAnswer:
    """Search the library of the service by a sentence, or by a moment."""
    library = _library_of(service)
    return await to_thread.run_sync(search_answer, library, service.videos, body, limiter=service.searchers)


@router.post("/search/image", summary="Find moments that look like an image", openapi_extra=_UPLOAD_BODY)
async def search_image(
    request: Request, service: Here, top: schemas.SearchTop = 10, min_score: schemas.MinScore = 0.0
) -> schemas.SearchAnswer:
    """Search the library by a still image, which is sent as a form with one file. The answers have curves."""
    library = _library_of(service)
    content, name = await receive_image(request.headers.get("content-type", ""), request.stream())

    def answer() -> schemas.SearchAnswer:
        return image_answer(library, service.videos, content, name, top=top, min_score=min_score)

    return await to_thread.run_sync(answer, limiter=service.searchers)


@router.post("/session", status_code=204, summary="Get a cookie for the token, for browsers")
async def session(body: schemas.SessionRequest, request: Request, service: Here) -> Response:
    """Set a cookie that stands for the token until the service ends."""
    guard: Guard = request.app.state.guard
    if service.settings.token is not None and not guard.is_token(body.token):
        await asyncio.sleep(0.5)
        raise ServiceError(401, "no_token", "this is not the token of the service")
    response = Response(status_code=204)
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, guard.cookie_value(), httponly=True, samesite="strict", secure=secure)
    return response


async def _has_ended(job: Job, seconds: float = 0.5) -> bool:
    """Wait for a job, at most some seconds; return whether it has ended."""
    until = time.monotonic() + seconds
    while not job.finished.done() and time.monotonic() < until:
        await asyncio.sleep(_LOOK_SECONDS)
    return job.finished.done()


def result_body(job: GroundJob) -> schemas.GroundAnswer:
    """Return the answers of a job that has ended.

    Raises:
        ServiceError: if it failed.
    """
    answers = [grounding.to_dict() for grounding in job.finished.result()]
    return schemas.GroundAnswer(video=video_body(job.video), answers=answers)


def file_bodies(job: CutJob) -> list[schemas.CutFileBody]:
    """Return what a client learns about the files of a job."""
    return [
        schemas.CutFileBody(
            number=number,
            name=file.path.name,
            bytes=file.bytes,
            video=file.video,
            start=file.start,
            end=file.end,
            frames=file.frames,
            notes=list(file.notes),
        )
        for number, file in enumerate(job.files, 1)
    ]


def job_body(job: GroundJob | CutJob, service: Service) -> schemas.JobBody:
    """Return a job, with its answers or files once it is done."""
    values = schemas.JobBody(id=job.id, state=job.state, position=service.position(job), progress=job.progress)
    if not job.finished.done():
        return values
    error = job.finished.exception()
    if isinstance(error, ServiceError):
        values.error = schemas.ErrorFields(kind=error.kind, message=error.message)
    elif isinstance(job, CutJob):
        values.files = file_bodies(job)
    else:
        values.result = result_body(job)
    return values
