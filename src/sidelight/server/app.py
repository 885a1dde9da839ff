"""The service as an ASGI application, and the command that runs it with uvicorn."""

from __future__ import annotations

import socket
import struct
from asyncio import TimerHandle, Transport
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from sidelight import __version__
from sidelight.server.errors import ServiceError
from sidelight.server.guard import Guard
from sidelight.server.jobs import Grounds
from sidelight.server.page_files import page_files
from sidelight.server.routes import router
from sidelight.server.search import Searches
from sidelight.server.service import Service
from sidelight.server.settings import Settings

_HEADER_SECONDS = 10.0
_LEAST_BYTES = 16 << 10
"""That a client must take in this time, of an answer that has ended for the service."""
_KINDS = {404: "not_found", 405: "wrong_method", 400: "invalid_request"}


def create_app(
    grounder: Grounds,
    *,
    folders: Sequence[str | Path] = (),
    uploads: str | Path | None = None,
    library: Searches | None = None,
    settings: Settings | None = None,
) -> FastAPI:
    """Return the service as an ASGI application.

    Args:
        grounder: the model: a :class:`sidelight.Grounder`.
        folders: folders whose videos may be asked about.
        uploads: folder for uploads; no uploads unless given.
        library: an object with the methods of a library that search, for ``POST v1/search``.
        settings: the limits.

    Raises:
        ValueError: if a folder does not exist.
    """
    settings = settings or Settings()
    service = Service(
        grounder,
        model=str(getattr(grounder, "name", "unknown")),
        folders=folders,
        uploads=uploads,
        library=library,
        settings=settings,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="sidelight",
        summary="Find moments in video by a sentence.",
        version=__version__,
        docs_url=None,  # its page loads code from another host
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(router)
    _add_errors(app)
    _add_pages(app, service)
    guard = Guard(app.build_middleware_stack(), settings, service.metrics.on_answer)
    app.state.guard = guard
    app.middleware_stack = guard
    return app


def _add_errors(app: FastAPI) -> None:
    """Give all errors one form."""

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, ServiceError)
        return JSONResponse(error.to_dict(), status_code=error.status, headers=error.headers())

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        message = "; ".join(_sentence_of(part) for part in error.errors()[:3])
        return JSONResponse(ServiceError(422, "invalid_request", message).to_dict(), status_code=422)

    async def other(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kind = _KINDS.get(error.status_code, "refused")
        message = f"{error.detail}; openapi.json lists the endpoints"
        body = ServiceError(error.status_code, kind, message).to_dict()
        return JSONResponse(body, status_code=error.status_code, headers=error.headers)

    async def failed(request: Request, error: Exception) -> Response:
        body = ServiceError(500, "internal", "the service failed; its log says why").to_dict()
        return JSONResponse(body, status_code=500)

    app.add_exception_handler(ServiceError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, other)
    app.add_exception_handler(Exception, failed)


def _sentence_of(error: Mapping[str, Any]) -> str:
    """Return what is wrong with a field of a request; loc is its path, after the part of the request that holds it."""
    kind, *names = (str(part) for part in error["loc"])
    if error["type"] == "json_invalid":
        return "the body is not valid JSON"
    return f"{'.'.join(names)[:100] or f'the {kind}'}: {str(error['msg'])[:300]}"


def _add_pages(app: FastAPI, service: Service) -> None:
    """Add the page, health and metrics."""
    for path, (content, kind) in page_files().items():
        app.router.add_route(path, _plain(content, kind), methods=["GET"])

    @app.get("/healthz", summary="Whether the service runs")
    async def healthz() -> dict[str, str]:
        """Answer as long as the service runs."""
        return {"status": "ok", "version": __version__, "model": service.model}

    @app.get("/metrics", summary="Numbers for Prometheus", response_class=Response)
    async def metrics() -> Response:
        """Return counters and times."""
        return Response(generate_latest(service.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _plain(content: bytes, kind: str) -> Any:
    async def answer(request: Request) -> Response:
        return Response(content, headers={"Content-Type": kind, "Cache-Control": "no-cache"})

    return answer


class _TimedProtocol(H11Protocol):
    """Close a connection on which no whole head of a request arrives in time, or whose client does not read.

    uvicorn itself waits for ever. The transport holds up to 64 KiB that the client has not taken; sending waits until
    it holds less than 16 KiB. A client that takes longer than ``write_seconds`` for that loses its connection, so the
    least rate is 48 KiB in this time.
    """

    write_seconds = 30.0
    _timer: TimerHandle | None = None
    _write_timer: TimerHandle | None = None
    _unread = 0
    """Bytes that the client had not taken when the connection was looked at last."""

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch(None, first=True)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.write_seconds, self._reset)

    def resume_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
        super().resume_writing()

    def _reset(self) -> None:
        """End the connection, and give up what the system still holds for it, which may be megabytes."""
        bound = self.transport.get_extra_info("socket")
        if bound is not None:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _watch(self, last: object, *, first: bool = False) -> None:
        """Close the connection if it waits for the same request as at the call before."""
        cycle: Any = self.cycle
        waits = cycle is None or cycle.response_complete
        unread = self.transport.get_write_buffer_size()
        if waits and not first and cycle is last:
            if unread and unread > self._unread - _LEAST_BYTES:  # close would wait until the client takes the rest
                self._reset()
                return
            self.transport.close()
        self._unread = unread
        self._timer = self.loop.call_later(_HEADER_SECONDS, self._watch, cycle if waits else self)


def bind(settings: Settings) -> socket.socket:
    """Return a socket that listens at the service's address, before slow work begins; early clients wait.

    Raises:
        ValueError: if the address cannot be used.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, proto)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
    except OSError as error:
        problem = f"cannot listen at {settings.host}, port {settings.port}: {error.strerror}"
        raise ValueError(f"{problem}; give another --port, or stop the program that uses it") from None
    return bound


def run(app: FastAPI, bound: socket.socket, settings: Settings) -> None:
    """Serve until the process is interrupted, or ``app.state.uvicorn.should_exit`` is set.

    Args:
        app: the service.
        bound: from :func:`bind`.
        settings: the limits.
    """
    config = uvicorn.Config(
        app,
        http=type("TimedProtocol", (_TimedProtocol,), {"write_seconds": settings.write_seconds}),
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=2 * settings.requests,
        timeout_graceful_shutdown=5,
        proxy_headers=bool(settings.allow_hosts),
    )
    app.state.uvicorn = uvicorn.Server(config)
    app.state.uvicorn.run(sockets=[bound])
