"""Fixtures of the service: its application on tiny videos, and a real server."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("fastapi", reason='the service needs pip install "sidelight[serve]"')

from starlette.testclient import TestClient

from sidelight import Grounder, Grounding, Moment
from sidelight.core.timeline import Timeline
from sidelight.io.progress import Progress
from sidelight.server.app import bind, create_app, run
from sidelight.server.settings import Settings
from sidelight.video.read import read_image

if TYPE_CHECKING:
    from fastapi import FastAPI


class SlowGrounder:
    """A model that answers once ``go`` is set, and remembers its calls."""

    name = "slow"

    def __init__(self, grounder: Grounder) -> None:
        self.grounder, self.calls = grounder, list[list[str]]()
        self.go, self.entered = threading.Event(), threading.Event()

    def ground(self, video: Path, query: list[str], *, progress: Progress = False) -> list[Grounding]:
        self.calls.append(query)
        self.entered.set()
        assert self.go.wait(20)
        return self.grounder.ground(video, query, progress=progress)


class FakeLibrary:
    """A library that answers each search with the same moment of some files, and remembers the searches."""

    def __init__(self, *paths: str | Path) -> None:
        self.paths, self.searches = paths, list[tuple[object, ...]]()
        self.is_calibrated = False

    def _result(self, top: int, *question: object) -> Any:
        self.searches.append(question)
        hits = [SimpleNamespace(video=str(path), moment=Moment(1, 2, 0.5), relevance=0.4) for path in self.paths]
        timeline = Timeline(duration=4, clip_seconds=2)
        groundings = [
            Grounding(
                query="x",
                timeline=timeline,
                moments=(hit.moment,),
                saliency=[0, 1],  # type: ignore[arg-type]
                video=hit.video,
                notes=(f"{hit.video} is damaged",),
            )
            for hit in hits
        ]
        limits = {"is_calibrated": self.is_calibrated, "best_left_out": None}
        return SimpleNamespace(hits=hits[:top], groundings=groundings[:top], notes=("a note",), **limits)

    def search(self, query: str, *, top: int, min_score: float, min_relevance: float | None) -> Any:
        result = self._result(top, query)
        if min_relevance is not None and min_relevance > 0.4:
            result.hits, result.groundings, result.best_left_out = [], [], 0.4
        return result

    def search_like(self, video: Path, start: float, end: float, *, top: int, min_score: float) -> Any:
        return self._result(top, video, start, end)

    def search_image(self, image: Path, *, top: int, min_score: float) -> Any:
        return self._result(top, read_image(image, size=(8, 8)).shape)


@pytest.fixture(scope="session")
def grounder(tmp_path_factory: pytest.TempPathFactory) -> Grounder:
    """Return the embedded model."""
    return Grounder.from_pretrained("shapes", cache=tmp_path_factory.mktemp("features"), device="cpu")


@pytest.fixture(scope="session")
def films(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of videos beside a secret, with a folder in it and links. Read only."""
    root = tmp_path_factory.mktemp("service")
    folder = root / "films"
    (folder / "old").mkdir(parents=True)
    videos = sorted((tiny_world / "videos").iterdir())
    for source, name in zip(videos, ("a.mp4", "b.mp4", "old/c d.mp4"), strict=True):
        (folder / name).write_bytes(source.read_bytes())
    (root / "secret.mp4").write_bytes(videos[0].read_bytes())
    (root / "secret.txt").write_text("top secret")
    (folder / "notes.txt").write_text("not a video")
    os.symlink(root / "secret.mp4", folder / "link.mp4")
    os.symlink(root, folder / "up")
    os.symlink(folder / "a.mp4", folder / "inside.mp4")
    (folder / "broken.mp4").write_bytes(b"not a video at all")
    return folder


def client_of(app: FastAPI, **options: Any) -> TestClient:
    """Return a client that reaches an application by this machine's address."""
    return TestClient(app, base_url="http://127.0.0.1:8000", **options)


@pytest.fixture(scope="session")
def reader(grounder: Grounder, films: Path) -> Iterator[TestClient]:
    """Return a client of a service that takes no uploads, for tests that change nothing."""
    app = create_app(grounder, folders=[films], settings=Settings(body_bytes=300_000))
    with client_of(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def client(grounder: Grounder, films: Path, tmp_path: Path) -> Iterator[TestClient]:
    """Return a client of the service, with uploads of its own."""
    (tmp_path / "uploads").mkdir()
    settings = Settings(upload_bytes=2_000_000, uploads_bytes=3_000_000, body_bytes=300_000)
    app = create_app(grounder, folders=[films], uploads=tmp_path / "uploads", settings=settings)
    with client_of(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def slow(grounder: Grounder) -> SlowGrounder:
    """Return a model that waits."""
    return SlowGrounder(grounder)


@pytest.fixture
def server(
    request: pytest.FixtureRequest, films: Path, tmp_path: Path, slow: SlowGrounder
) -> Iterator[tuple[str, int]]:
    """Return host and port of a real server with short limits; its parameter is a token."""
    settings = Settings(port=0, body_seconds=0.5, queue=2, workers=1, token=getattr(request, "param", None))
    (tmp_path / "arrived").mkdir()
    app = create_app(slow, folders=[films], uploads=tmp_path / "arrived", settings=settings)
    with serving(app, settings) as address:
        yield address
        slow.go.set()


@contextmanager
def serving(app: FastAPI, settings: Settings) -> Iterator[tuple[str, int]]:
    """Run a real server, and yield its host and port."""
    bound = bind(settings)
    thread = threading.Thread(target=run, args=(app, bound, settings), daemon=True)
    thread.start()
    host, port = bound.getsockname()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, port), timeout=1).close()
            break
        except OSError:
            time.sleep(0.05)
    yield host, port
    app.state.uvicorn.should_exit = True
    thread.join(timeout=10)
