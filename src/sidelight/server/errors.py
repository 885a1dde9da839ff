"""The one error of the service. Each answer that is no success is ``{"error": {"kind", "message"}}``."""

from __future__ import annotations

import re


class ServiceError(Exception):
    """A request cannot be answered; the message is one sentence without a path of this machine.

    Args:
        status: HTTP status.
        kind: what went wrong, as one word for programs.
        message: what was expected, what came and what to do.
        retry_after: seconds after which the client may try again.
    """

    def __init__(self, status: int, kind: str, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.retry_after = status, kind, message, retry_after

    def to_dict(self) -> dict[str, dict[str, str]]:
        """Return the body of the answer."""
        return {"error": {"kind": self.kind, "message": self.message}}

    def headers(self) -> dict[str, str]:
        """Return the headers of the answer."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def busy(message: str, seconds: float) -> ServiceError:
    """Return the error of a service that has too much to do.

    Args:
        message: what is full.
        seconds: after which the client may try again; rounded up, between 1 and 120.
    """
    return ServiceError(503, "busy", f"{message}; try again later", retry_after=min(120, max(1, round(seconds + 0.5))))


def without_paths(text: str) -> str:
    """Return a text with the name alone where the path of a file of this machine stands, in one line."""
    return re.sub(r"(?<![\w:/.])/(?:[^\s/]+/)+", "", " ".join(text.split()))
