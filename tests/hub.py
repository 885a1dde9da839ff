"""A small Hugging Face hub on this machine. It answers HEAD and GET with the headers that the hub's client needs."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_BLOCK = 1 << 20


@dataclass
class Hub:
    """One model repository, or several."""

    repository: str
    files: dict[str, bytes | Path] = field(default_factory=dict)
    """Path -> content, or a file that holds it; may be changed at any time."""
    others: dict[str, dict[str, bytes | Path]] = field(default_factory=dict)
    """Files of further repositories, by OWNER/NAME."""
    head_status: int = 200
    """Status of the answers to HEAD; others than 200 have no headers of a file."""
    delay: float = 0.0
    """Seconds before each answer with content."""
    cut_after: int | None = None
    """Bytes of a file after which a download breaks off; never if None."""
    served: int = 0
    """Bytes of content that were sent."""
    spans: list[tuple[float, float]] = field(default_factory=list)
    """Start and end of each answer with content, by ``time.perf_counter``."""
    log: list[str] = field(default_factory=list)
    """Method and path of every request."""
    endpoint: str = ""
    """Address of the hub, for HF_ENDPOINT."""
    digests: dict[tuple[Path, int], str] = field(default_factory=dict)
    """SHA-256 of files that were served, by path and time of change: a large file is read for it only once."""

    def digest(self, content: bytes | Path) -> str:
        """Return the SHA-256 of a content."""
        if isinstance(content, bytes):
            return hashlib.sha256(content).hexdigest()
        key = (content, content.stat().st_mtime_ns)
        if key not in self.digests:
            digest = hashlib.sha256()
            with open(content, "rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
            self.digests[key] = digest.hexdigest()
        return self.digests[key]

    def gets(self) -> int:
        """Return the number of requests for a file's content; the client sends other requests too."""
        return sum(line.startswith("GET ") and "/resolve/" in line for line in self.log)


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve the hub while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            hub.log.append(f"{self.command} {self.path}")
            content = self._content()
            if not body and hub.head_status != 200:
                self.send_response(hub.head_status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if content is None:
                known = any(self.path.startswith(f"/{name}/") for name in (hub.repository, *hub.others))
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
                if known:
                    self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start, size = 0, len(content) if isinstance(content, bytes) else content.stat().st_size
            if (byte_range := self.headers.get("Range")) and byte_range.startswith("bytes="):
                start = int(byte_range.removeprefix("bytes=").split("-")[0])
                if start >= size:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{size}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
            self.send_response(206 if byte_range else 200)
            self.send_header("ETag", f'"{hub.digest(content)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(size - start))
            if byte_range:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            self.end_headers()
            if body:
                began = time.perf_counter()
                time.sleep(hub.delay)
                end = max(start, size if hub.cut_after is None else min(hub.cut_after, size))
                hub.served += end - start
                with io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb") as file:
                    file.seek(start)
                    for place in range(start, end, _BLOCK):
                        self.wfile.write(file.read(min(_BLOCK, end - place)))
                hub.spans.append((began, time.perf_counter()))
                self.close_connection = True

        def _content(self) -> bytes | Path | None:
            before, _, after = self.path.partition("/resolve/")
            _, _, path = after.partition("/")  # any revision
            repositories = {hub.repository: hub.files, **hub.others}
            return repositories.get(before[1:], {}).get(path)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
