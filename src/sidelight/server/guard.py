"""What each request passes before it reaches an endpoint: who asks, how much is sent and how fast."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any

from sidelight.server.errors import ServiceError, busy
from sidelight.server.page_files import page_files
from sidelight.server.settings import Settings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

COOKIE = "sidelight_session"
_OPEN_PATHS = frozenset({*page_files(), "/healthz", "/v1/session"})
"""Paths that need no token: the page itself, which asks for it."""
_UPLOADS = ("POST", "/v1/videos")
_FORM_BYTES = 64 << 10
"""Of a form besides its file."""
_LEAST_RATE = 16 << 10
"""Bytes a second that an upload must have on average after its first minute."""
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


class Guard:
    """ASGI middleware that refuses strangers, bodies that are too large or too slow, and more requests than the limit.

    Args:
        app: the service.
        settings: the limits.
        on_answer: called with method, path template, status and seconds of each request.
    """

    def __init__(self, app: App, settings: Settings, on_answer: Callable[[str, str, int, float], None]) -> None:
        self._app, self._settings, self._on_answer = app, settings, on_answer
        self._active = 0
        self._session = secrets.token_bytes(32)

    def cookie_value(self) -> str:
        """Return the value of the cookie that stands for the token; another one after each start."""
        return hmac.new(self._session, (self._settings.token or "").encode(), hashlib.sha256).hexdigest()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        start, answer = time.perf_counter(), _Answer(send)
        self._active += 1
        try:
            self._check(scope)
            body = _Body(receive, scope, self._settings, answer)
            answer.body = body
            try:
                await self._app(scope, body.receive, answer.send)
            except Exception:
                if body.problem is None or answer.status:
                    raise
            if body.problem is not None and not answer.status:
                raise body.problem
        except ServiceError as error:
            await answer.refuse(error)
        finally:
            self._active -= 1
            route = getattr(scope.get("route"), "path", "other")
            self._on_answer(scope["method"], route, answer.status or 499, time.perf_counter() - start)

    def _check(self, scope: MutableMapping[str, Any]) -> None:
        """Check number of requests, Host, Origin and token.

        Raises:
            ServiceError: if one of them is refused.
        """
        settings = self._settings
        if self._active > settings.requests:
            raise busy(f"{self._active - 1} requests are answered now", 5)
        headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        hosts = [value for name, value in headers if name == "host"]
        if len(hosts) != 1 or not settings.allows_host(hosts[0]):
            message = "this service is not reached by this name; use its address, or start it with --allow-host NAME"
            raise ServiceError(421, "wrong_host", message)
        values = dict(headers)
        origin = values.get("origin")
        own_origins = (f"http://{hosts[0]}", f"https://{hosts[0]}")
        is_foreign = origin is not None and origin not in own_origins
        is_foreign = is_foreign or values.get("sec-fetch-site") in ("cross-site", "same-site")
        opens_page = scope["path"] in ("/", "/index.html") and scope["method"] == "GET"  # by a link
        if is_foreign and not opens_page:
            message = "a page of another site may not use this service; open the page of the service itself"
            raise ServiceError(403, "cross_origin", message)
        if settings.token is not None and scope["path"] not in _OPEN_PATHS and not self._has_token(values):
            raise ServiceError(
                401, "no_token", "this service needs its token; send the header Authorization: Bearer TOKEN"
            )

    def _has_token(self, headers: dict[str, str]) -> bool:
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.is_token(token.strip()):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), self.cookie_value().encode())

    def is_token(self, token: str) -> bool:
        """Check a token; takes the same time for each wrong one."""
        return hmac.compare_digest(token.encode("utf-8", "replace"), (self._settings.token or "").encode())


class _Body:
    """Passes the body of a request on, up to a size and not longer than a time."""

    def __init__(self, receive: Receive, scope: MutableMapping[str, Any], settings: Settings, answer: _Answer) -> None:
        self._receive, self._answer = receive, answer
        self.problem: ServiceError | None = None
        self._is_upload = (scope["method"], scope["path"]) == _UPLOADS
        self._most = settings.upload_bytes + _FORM_BYTES if self._is_upload else settings.body_bytes
        self._seconds = settings.body_seconds
        self._began = time.monotonic()
        self._size = 0
        self._ended = False
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not length.isdigit() or int(length[:20]) > self._most:
            raise self._too_large()

    async def receive(self) -> Message:
        """Return the next message; a disconnection once a limit is passed."""
        if self.problem is not None:
            return {"type": "http.disconnect"}
        if self._ended:
            return await self._receive()
        since = time.monotonic() - self._began
        left = self._seconds if self._is_upload else self._seconds - since
        try:
            message = await asyncio.wait_for(self._receive(), max(0.01, left))
        except asyncio.TimeoutError:
            return self._refuse(ServiceError(408, "too_slow", "the body of the request did not arrive in time"))
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            self._ended = not message.get("more_body", False)
            if self._size > self._most:
                return self._refuse(self._too_large())
            if self._is_upload and not self._ended and since > 60 and self._size < _LEAST_RATE * since:
                return self._refuse(ServiceError(408, "too_slow", "the upload is too slow"))
        return message

    @property
    def is_whole(self) -> bool:
        """Check whether the whole body was read."""
        return self._ended

    def _refuse(self, problem: ServiceError) -> Message:
        self.problem = problem
        return {"type": "http.disconnect"}

    def _too_large(self) -> ServiceError:
        return ServiceError(413, "too_large", f"the body of the request is larger than {self._most:,} bytes")


class _Answer:
    """Sends the answer with the headers of security, and an error in place of it once a limit was passed."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.body: _Body | None = None
        self._replaced = False

    async def send(self, message: Message) -> None:
        """Send one message of the service."""
        if self._replaced:
            return
        if message["type"] == "http.response.start":
            if self.body is not None and self.body.problem is not None:
                await self.refuse(self.body.problem)
                return
            self.status = message["status"]
            known = {name.lower() for name, _ in message.get("headers", ())}
            extra = [(n.lower().encode(), v.encode()) for n, v in _HEADERS.items() if n.lower().encode() not in known]
            if self.status >= 400 and self.body is not None and not self.body.is_whole:
                extra.append((b"connection", b"close"))  # the rest of the body would be read as the next request
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await self._send(message)

    async def refuse(self, error: ServiceError) -> None:
        """Send an error as the whole answer."""
        if self.status:
            return
        content = json.dumps(error.to_dict()).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), "Connection": "close"}
        pairs = {**headers, **error.headers(), **_HEADERS}
        self.status, self._replaced = error.status, True
        encoded = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in pairs.items()]
        await self._send({"type": "http.response.start", "status": error.status, "headers": encoded})
        await self._send({"type": "http.response.body", "body": content})
