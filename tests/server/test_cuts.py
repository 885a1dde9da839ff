"""Cut moments into files, and download them."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import pytest
from starlette.testclient import TestClient

from sidelight import Grounder
from sidelight.export import clips
from sidelight.server import cuts
from sidelight.server.app import create_app
from sidelight.server.settings import Settings
from tests.server.conftest import client_of

QUERY = "an orange ball is moving"


def answer(video: str = "a.mp4", *spans: tuple[float, float], query: str = QUERY) -> dict[str, Any]:
    """Return the answer of a client, with moments."""
    moments = [{"start": start, "end": end} for start, end in spans or ((1, 2.5),)]
    return {"video": video, "query": query, "moments": moments}


def cut(client: TestClient, *answers: dict[str, Any], **values: Any) -> dict[str, Any]:
    """Cut moments and return the job once it has ended."""
    response = client.post("/v1/cuts", json={"answers": answers, **values})
    assert response.status_code == 202, response.text
    name = response.json()["id"]
    assert response.headers["location"] == f"v1/jobs/{name}"
    lines = client.get(f"/v1/jobs/{name}/events").text.splitlines()
    ended = json.loads(lines[-2].removeprefix("data: "))
    assert ended == client.get(f"/v1/jobs/{name}").json()
    return dict(ended)


def error_of(response: Any, status: int) -> dict[str, str]:
    """Check the form of an error and return it."""
    assert response.status_code == status, response.text
    assert "/tmp" not in response.text and "sidelight-cuts" not in response.text
    return dict(response.json()["error"])


def frames_in(content: bytes, path: Path) -> int:
    """Return the number of frames of a file."""
    path.write_bytes(content)
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@contextmanager
def service(grounder: Grounder, films: Path, **limits: Any) -> Iterator[TestClient]:
    """Yield a client of a service with other limits."""
    app = create_app(grounder, folders=[films], settings=Settings(**limits))
    with client_of(app, raise_server_exceptions=False) as client:
        yield client


def test_moments_are_cut_exactly_and_downloaded(reader: TestClient, tmp_path: Path) -> None:
    fps = reader.get("/v1/videos/a.mp4").json()["fps"]
    job = cut(reader, answer("a.mp4", (1, 2.5), (4, 5)), answer("old/c d.mp4", (0, 1), query="é <b>\"'"))
    assert job["state"] == "done" and job["progress"] == 1 and job["error"] is None
    files = job["files"]
    assert [file["frames"] for file in files] == [round(1.5 * fps), round(fps), round(fps)]
    assert [file["video"] for file in files] == ["a.mp4", "a.mp4", "old/c d.mp4"]
    assert [(file["start"], file["end"]) for file in files] == [(1, 2.5), (4, 5), (0, 1)]
    assert files[0]["name"] == "a-an-orange-ball-is-moving-00001.00-00002.50.mp4"
    for file in files:
        response = reader.get(f"/v1/cuts/{job['id']}/{file['number']}")
        assert response.headers["content-type"] == "video/mp4" and len(response.content) == file["bytes"]
        assert response.headers["content-disposition"].startswith("attachment; filename")
        assert frames_in(response.content, tmp_path / "cut.mp4") == file["frames"]
        part = reader.get(f"/v1/cuts/{job['id']}/{file['number']}", headers={"Range": "bytes=0-9"})
        assert part.status_code == 206 and part.content == response.content[:10]
    error_of(reader.get(f"/v1/cuts/{job['id']}/4"), 404)
    error_of(reader.get(f"/v1/cuts/{job['id']}/0"), 404)


def test_moments_become_one_film(reader: TestClient, tmp_path: Path) -> None:
    fps = reader.get("/v1/videos/a.mp4").json()["fps"]
    (file,) = cut(reader, answer("a.mp4", (1, 2), (4, 5)), answer("b.mp4", (0, 1)), join=True)["files"]
    assert file["name"] == "an-orange-ball-is-moving-moments.mp4" and file["video"] is None
    (file,) = (job := cut(reader, answer("a.mp4", (1, 2), (1.5, 3)), join=True, padding=0.5))["files"]
    assert file["name"] == "a-moments.mp4"
    content = reader.get(f"/v1/cuts/{job['id']}/1").content
    assert frames_in(content, tmp_path / "film.mp4") == round(3 * fps), "moments that overlap are shown once"


def test_moments_are_copied_from_keyframes(reader: TestClient) -> None:
    (file,) = cut(reader, answer("a.mp4", (1.3, 2.5)), exact=False)["files"]
    assert file["start"] <= 1.3 and file["frames"] > 0
    assert len(cut(reader, answer("a.mp4", (1, 2), (4, 5)), exact=False, join=True)["files"]) == 1
    error = error_of(
        reader.post("/v1/cuts", json={"answers": [answer("a.mp4"), answer("b.mp4")], "exact": False, "join": True}), 422
    )
    assert "exact: true" in error["message"]


def test_the_files_are_removed_at_last(grounder: Grounder, films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    real = tempfile.TemporaryDirectory

    def remember(**options: Any) -> Any:
        made.append((folder := real(**options)).name)
        return folder

    monkeypatch.setattr(tempfile, "TemporaryDirectory", remember)
    with service(grounder, films) as client:
        first, second = cut(client, answer()), cut(client, answer())
        (folder,) = made
        assert sorted(os.listdir(folder)) == sorted([first["id"], second["id"]])
        assert client.delete(f"/v1/jobs/{first['id']}").json()["state"] == "done"
        assert os.listdir(folder) == [second["id"]], "a client can remove its files"
        error_of(client.get(f"/v1/cuts/{first['id']}/1"), 404)
    assert not Path(folder).exists(), "nothing stays when the service ends"


def test_files_have_a_time_to_live_and_a_size(grounder: Grounder, films: Path) -> None:
    with service(grounder, films, cut_keep_seconds=1.0) as client:
        first = cut(client, answer())
        time.sleep(1.2)
        cut(client, answer())
        error_of(client.get(f"/v1/cuts/{first['id']}/1"), 404)
    with service(grounder, films, cut_bytes=100_000, cuts_bytes=100_001) as client:
        first, _ = cut(client, answer()), cut(client, answer())
        assert "kept for a while" in error_of(client.get(f"/v1/cuts/{first['id']}/1"), 404)["message"]


def test_a_cut_has_limits(grounder: Grounder, films: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuts, "_LOOK_SECONDS", 0.0)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with service(grounder, films, cut_moments=2, cut_seconds=5.0, cut_bytes=2000, cuts_bytes=2000) as client:
        many = error_of(client.post("/v1/cuts", json={"answers": [answer("a.mp4", (0, 1), (1, 2), (2, 3))]}), 422)
        assert many["message"] == "3 moments are too many to cut at once; the limit is 2"
        long = error_of(client.post("/v1/cuts", json={"answers": [answer("a.mp4", (0, 4), (2, 4))]}), 422)
        assert long["message"] == "the moments last 6 s together; the limit is 5 s"
        body = {"answers": [answer("a.mp4", (0, 1))], "padding": 2.5}
        assert "last 6 s" in error_of(client.post("/v1/cuts", json=body), 422)["message"]
        none = error_of(client.post("/v1/cuts", json={"answers": [{**answer(), "moments": []}]}), 422)
        assert "no moment to cut" in none["message"]
        job = cut(client, answer("a.mp4", (0, 5)))
        assert job["state"] == "failed" and job["error"]["kind"] == "too_large" and job["files"] is None
        assert "too_large" in error_of(client.get(f"/v1/cuts/{job['id']}/1"), 413)["kind"]
        (folder,) = tmp_path.glob("sidelight-cuts-*")
        assert list(folder.iterdir()) == [], "nothing half-written stays"


def test_a_full_disk_is_said(grounder: Grounder, films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "_LEAST_FREE", 1 << 60)
    with service(grounder, films) as client:
        job = cut(client, answer())
    assert job["error"] == {"kind": "no_space", "message": "the disk of the service is full"}


def test_a_broken_video_is_said_without_a_path(reader: TestClient, films: Path) -> None:
    message = error_of(reader.post("/v1/cuts", json={"answers": [answer("broken.mp4")]}), 422)["message"]
    assert message.startswith("broken.mp4 is not a video") and str(films) not in message


def test_a_fault_hides_its_details(reader: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(cuts, "cut_clips", broken)
    job = cut(reader, answer())
    assert job["error"] == {"kind": "internal", "message": "the cut failed; the service's log says why"}


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Let a cut wait before its first frame; return an event that it has begun, and one that lets it go on."""
    entered, go = threading.Event(), threading.Event()
    real: Callable[..., Any] = clips.cut_clips

    def waiting(*arguments: Any, **options: Any) -> Any:
        entered.set()
        assert go.wait(20)
        return real(*arguments, **options)

    monkeypatch.setattr(cuts, "cut_clips", waiting)
    return entered, go


def test_a_cut_is_cancelled(grounder: Grounder, films: Path, paused: tuple[threading.Event, threading.Event]) -> None:
    entered, go = paused
    with service(grounder, films, queue=1) as client:
        running = client.post("/v1/cuts", json={"answers": [answer()]}).json()
        assert entered.wait(5)
        waiting = client.post("/v1/cuts", json={"answers": [answer()]}).json()
        assert (waiting["state"], waiting["position"]) == ("queued", 0)
        full = client.post("/v1/cuts", json={"answers": [answer()]})
        assert error_of(full, 503)["kind"] == "busy" and 1 <= int(full.headers["retry-after"]) <= 120
        assert error_of(client.get(f"/v1/cuts/{running['id']}/1"), 409)["kind"] == "not_done"
        assert client.delete(f"/v1/jobs/{waiting['id']}").json()["state"] == "cancelled"
        assert client.delete(f"/v1/jobs/{running['id']}").json()["state"] == "running"
        go.set()
        ended = client.get(f"/v1/jobs/{running['id']}/events").text
        assert '"state":"cancelled"' in ended
        assert error_of(client.get(f"/v1/cuts/{running['id']}/1"), 409)["kind"] == "cancelled"


def test_a_video_that_becomes_a_link_is_not_cut(
    grounder: Grounder, films: Path, tmp_path: Path, paused: tuple[threading.Event, threading.Event]
) -> None:
    entered, go = paused
    (tmp_path / "uploads").mkdir()
    path = tmp_path / "uploads" / "new.mp4"
    path.write_bytes((films / "b.mp4").read_bytes())
    with client_of(create_app(grounder, folders=[films], uploads=path.parent)) as client:
        first = client.post("/v1/cuts", json={"answers": [answer()]}).json()
        assert entered.wait(5)
        second = client.post("/v1/cuts", json={"answers": [answer("uploads/new.mp4")]}).json()
        path.unlink()
        os.symlink(films.parent / "secret.mp4", path)
        go.set()
        for job, state in ((first, "done"), (second, "failed")):
            client.get(f"/v1/jobs/{job['id']}/events")
            assert client.get(f"/v1/jobs/{job['id']}").json()["state"] == state


@pytest.mark.parametrize("video", ["../secret.mp4", "/etc/passwd", "link.mp4", "a.mp4\0", "secret.mp4"])
def test_no_other_file_is_cut(reader: TestClient, video: str) -> None:
    error_of(reader.post("/v1/cuts", json={"answers": [answer(video)]}), 404)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"answers": []},
        {"answers": [answer()] * 101},
        {"answers": [answer("a.mp4", (2, 1))]},
        {"answers": [answer("a.mp4", (-1, 1))]},
        {"answers": [answer("a.mp4", (0, 1e9))]},
        {"answers": [answer()], "padding": -1},
        {"answers": [answer()], "padding": 1e9},
        {"answers": [answer()], "path": "/etc/cron.d/x"},
        {"answers": [answer()], "folder": "/etc"},
        {"answers": [answer()], "exact": "maybe"},
        {"answers": [answer()], "top": 0},
    ],
    ids=lambda body: json.dumps(body)[:60],
)
def test_bodies_of_wrong_values_are_refused(reader: TestClient, body: dict[str, Any]) -> None:
    error_of(reader.post("/v1/cuts", json=body), 422)


@pytest.mark.parametrize(
    "path",
    ["x/1", "..%2f..%2fetc/1", "%2e%2e/1", "x/..%2f1", "x/-1", "x/1e9", "x/99999999999999999999999", "a%00b/1"],
)
def test_no_download_leads_elsewhere(reader: TestClient, path: str) -> None:
    response = reader.get(f"/v1/cuts/{path}")
    assert response.status_code in (404, 422) and "error" in response.json()


def test_a_job_of_the_model_has_no_files(reader: TestClient) -> None:
    name = reader.post("/v1/ground", json={"video": "a.mp4", "query": QUERY, "async": True}).json()["id"]
    reader.get(f"/v1/jobs/{name}/events")
    assert "cuts no files" in error_of(reader.get(f"/v1/cuts/{name}/1"), 404)["message"]


@pytest.mark.parametrize("query", ['a"b\r\nX-Evil: 1', "../../etc/passwd", "\u202egpj", "日本 語", "." * 50, "\t"])
def test_names_of_files_are_safe(reader: TestClient, query: str) -> None:
    (file,) = (job := cut(reader, answer(query=query)))["files"]
    assert "/" not in file["name"] and file["name"].isprintable() and file["name"].startswith("a-")
    headers = reader.get(f"/v1/cuts/{job['id']}/1").headers
    assert "x-evil" not in headers and headers["content-disposition"].isascii()
