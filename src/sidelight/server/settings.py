"""The limits of the service, and who may reach it."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass

from sidelight.core.options import check_types, require

SHORTEST_TOKEN = 16


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the service runs.

    Raises:
        ValueError: if a value is out of its range, or another host than this machine's own address has no token.
    """

    host: str = "127.0.0.1"
    """Address to listen at."""
    port: int = 8000
    """Port to listen at; 0 takes a free one."""
    token: str | None = None
    """Secret that each request must carry; needed where other machines can connect."""
    allow_hosts: tuple[str, ...] = ()
    """Further names by which clients reach the service, such as that of a proxy."""
    queue: int = 32
    """Requests that may wait for the model; one more is refused."""
    workers: int = 2
    """Videos that are read at once."""
    requests: int = 128
    """Requests that are answered at once; one more is refused."""
    finished_jobs: int = 200
    """Finished jobs that can still be asked for."""
    body_bytes: int = 8 << 20
    """Largest body of a request that is no upload."""
    upload_bytes: int = 2 << 30
    """Largest file of an upload."""
    uploads_bytes: int = 20 << 30
    """Largest sum of all uploaded files."""
    uploads_at_once: int = 4
    """Uploads that run at the same time; one more is refused."""
    body_seconds: float = 20.0
    """Longest wait for a body that is no upload, and for the next part of an upload."""

    searches_at_once: int = 2
    """Searches of the library that run at the same time; others wait."""
    cut_moments: int = 100
    """Most moments that one job cuts."""
    cut_seconds: float = 3600.0
    """Longest sum of the moments that one job cuts."""
    cut_bytes: int = 2 << 30
    """Largest sum of the files that one job cuts."""
    cuts_bytes: int = 8 << 30
    """Largest sum of the files of all jobs that cut; the oldest ones are removed."""
    cut_keep_seconds: float = 3600.0
    """How long files that were cut can be downloaded."""
    write_seconds: float = 30.0
    """Longest time in which a client takes nothing of an answer that waits for it."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self, 0 <= self.port <= 65535, "port", "between 0 and 65535")
        for name in ("queue", "workers", "requests", "finished_jobs", "body_bytes", "uploads_at_once", "cut_moments"):
            require(self, getattr(self, name) >= 1, name, "1 or more")
        require(self, self.upload_bytes >= 1 and self.uploads_bytes >= self.upload_bytes, "uploads_bytes", "larger")
        require(self, 1 <= self.cut_bytes <= self.cuts_bytes, "cuts_bytes", "cut_bytes or more")
        for name in ("body_seconds", "cut_seconds", "cut_keep_seconds", "write_seconds"):
            require(self, getattr(self, name) > 0, name, "above 0")
        require(self, self.searches_at_once >= 1, "searches_at_once", "1 or more")
        if self.token is not None and not re.fullmatch(rf"[!-~]{{{SHORTEST_TOKEN},512}}", self.token):
            raise ValueError(f"token must be {SHORTEST_TOKEN} to 512 letters, digits and signs of ASCII without spaces")
        for name in self.allow_hosts:
            if not re.fullmatch(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+", name):
                raise ValueError(f"--allow-host must be the name of a host, such as films.example, got {name!r}")
        if self.token is None and not self.is_local:
            raise ValueError(
                f"--host {self.host} lets other machines connect, so it needs --token; choose a long secret, such as "
                'python -c "import secrets; print(secrets.token_urlsafe())" prints'
            )

    @property
    def is_local(self) -> bool:
        """Check whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def host_names(self) -> frozenset[str]:
        """Return the names that the Host header of a request may have, in lower case and without a port."""
        names = {"127.0.0.1", "localhost", "::1", *self.allow_hosts}
        if not self.is_local:
            names |= {self.host, socket.gethostname()}
        return frozenset(name.lower().strip("[]") for name in names)

    def allows_host(self, header: str) -> bool:
        """Check whether a Host header names this service.

        A page of a stranger can let its own name lead to this machine (DNS rebinding); its requests then carry that
        name. A plain address cannot be moved this way, so with a token any address passes.

        Args:
            header: the value of the header.
        """
        match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?", header)
        if match is None:
            return False
        name = match[1].lower().strip("[]")
        if name in self.host_names():
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return not self.is_local
