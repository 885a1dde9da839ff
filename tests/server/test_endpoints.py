"""Each endpoint of the service, on tiny videos and the embedded model."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from sidelight import Grounder
from sidelight.core.grounding import Grounding
from sidelight.io.progress import Progress
from sidelight.server.app import create_app
from sidelight.server.errors import ServiceError
from sidelight.server.exports import _shown_names, format_bodies
from sidelight.server.jobs import Jobs
from sidelight.server.page_files import page_files
from sidelight.server.queue import Job, JobQueue
from sidelight.server.settings import Settings
from sidelight.server.videos import Video, Videos
from tests.server.conftest import SlowGrounder, client_of

QUERY = "an orange ball is moving"
TOKEN = "0123456789abcdef-secret"
pytestmark = pytest.mark.filterwarnings("ignore::sidelight.OutsideWarning")


def error_of(response: Any, status: int) -> dict[str, str]:
    """Check the form of an error and return it."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"kind", "message"}
    return dict(body["error"])


def ground(client: TestClient, **values: Any) -> Any:
    """Send a query and return the answer."""
    response = client.post("/v1/ground", json={"video": "a.mp4", "query": QUERY, **values})
    assert response.status_code == 200, response.text
    return response.json()


def test_the_videos_are_listed_without_paths(client: TestClient, films: Path) -> None:
    response = client.get("/v1/videos")
    names = [video["name"] for video in response.json()["videos"]]
    assert names == ["a.mp4", "b.mp4", "broken.mp4", "inside.mp4", "old/c d.mp4"], "no link that leads out"
    assert response.json()["total"] == 5 and str(films) not in response.text
    page = client.get("/v1/videos", params={"limit": 1, "offset": 1}).json()
    assert [video["name"] for video in page["videos"]] == ["b.mp4"] and page["total"] == 5


def test_a_video_has_facts_by_name_and_by_id(client: TestClient) -> None:
    facts = client.get("/v1/videos/old/c d.mp4").json()
    assert facts["name"] == "old/c d.mp4" and 20 <= facts["duration"] <= 26 and facts["width"] == 128
    assert client.get(f"/v1/videos/{facts['id']}").json() == facts
    problem = error_of(client.get("/v1/videos/broken.mp4"), 422)
    assert problem["kind"] == "unreadable_video" and problem["message"].startswith("broken.mp4 is not a video")
    assert "did you mean 'a.mp4'" in error_of(client.get("/v1/videos/aa.mp4"), 404)["message"]


def test_a_file_is_sent_whole_and_in_ranges(client: TestClient, films: Path) -> None:
    content = (films / "a.mp4").read_bytes()
    whole = client.get("/v1/videos/a.mp4/file")
    assert whole.content == content and whole.headers["content-type"] == "video/mp4"
    part = client.get("/v1/videos/a.mp4/file", headers={"Range": "bytes=10-19"})
    assert part.status_code == 206 and part.content == content[10:20]
    assert part.headers["content-range"] == f"bytes 10-19/{len(content)}"
    assert client.get("/v1/videos/a.mp4/file", headers={"Range": "bytes=999999999-"}).status_code == 416


def test_a_thumbnail_is_a_jpeg_of_its_second(client: TestClient) -> None:
    pictures = [client.get("/v1/videos/a.mp4/thumbnail", params={"at": at, "height": 64}) for at in (0, 10)]
    for picture in pictures:
        assert picture.headers["content-type"] == "image/jpeg" and picture.content.startswith(b"\xff\xd8")
    assert pictures[0].content != pictures[1].content
    assert "between 0 and" in error_of(client.get("/v1/videos/a.mp4/thumbnail?at=1000"), 422)["message"]


def test_queries_are_answered_as_by_the_grounder(client: TestClient, grounder: Grounder, films: Path) -> None:
    queries = [QUERY, "a blue square is growing"]
    answer = ground(client, query=queries, top=2)
    expected = [grounding.best(2) for grounding in grounder.ground(films / "a.mp4", queries)]
    assert answer["video"]["name"] == "a.mp4"
    for got, grounding in zip(answer["answers"], expected, strict=True):
        assert got["video"] == "a.mp4" and got["query"] == grounding.query and len(got["moments"]) <= 2
        assert [m["start"] for m in got["moments"]] == pytest.approx([m.start for m in grounding.moments], abs=1e-4)
        assert got["saliency"] == pytest.approx(grounding.saliency.tolist(), abs=1e-4)
    assert ground(client, min_score=1.0)["answers"][0]["moments"] == []


def test_notes_are_part_of_the_answer(client: TestClient) -> None:
    notes = ground(client, query="a zebra is moving")["answers"][0]["notes"]
    assert "never saw the word 'zebra'" in notes[0]


def test_a_job_goes_from_the_queue_to_its_answers(client: TestClient) -> None:
    started = client.post("/v1/ground", json={"video": "b.mp4", "query": QUERY, "async": True})
    assert started.status_code == 202
    name = started.json()["id"]
    lines = client.get(f"/v1/jobs/{name}/events").text.splitlines()
    assert lines[-3] == "event: end"
    ended = json.loads(lines[-2].removeprefix("data: "))
    assert ended["state"] == "done" and ended["progress"] == 1
    assert ended["result"]["answers"][0]["video"] == "b.mp4"
    assert client.get(f"/v1/jobs/{name}").json() == ended
    error_of(client.get("/v1/jobs/unknown"), 404)


def test_a_failed_job_says_why(client: TestClient) -> None:
    error = error_of(client.post("/v1/ground", json={"video": "broken.mp4", "query": QUERY}), 422)
    assert error["kind"] == "unreadable_video"
    name = client.post("/v1/ground", json={"video": "broken.mp4", "query": QUERY, "async": True}).json()["id"]
    client.get(f"/v1/jobs/{name}/events")
    assert client.get(f"/v1/jobs/{name}").json()["error"] == error


def test_an_upload_is_kept_and_can_be_asked_about(client: TestClient, films: Path, tmp_path: Path) -> None:
    content = (films / "a.mp4").read_bytes()
    names = []
    for _ in range(2):
        response = client.post("/v1/videos", files={"file": ("my film.mp4", content, "video/mp4")})
        assert response.status_code == 201, response.text
        names.append(response.json()["name"])
    assert names == ["uploads/my film.mp4", "uploads/my film-2.mp4"], "nothing is replaced"
    assert [(tmp_path / name).read_bytes() == content for name in names] == [True, True]
    assert ground(client, video=names[1])["answers"][0]["video"] == names[1]
    assert {path.name for path in (tmp_path / "uploads").iterdir()} == {"my film.mp4", "my film-2.mp4"}


@pytest.mark.parametrize("form", [form.name for form in format_bodies()])
def test_answers_are_exported_without_paths(client: TestClient, films: Path, form: str) -> None:
    if form in ("srt", "vtt"):
        pytest.importorskip("pysubs2")
    if form == "otio":
        pytest.importorskip("opentimelineio")
    answer = ground(client)["answers"][0]
    answer["moments"] = [{"start": 1.25, "end": 4, "score": 0.9}]  # edited
    if form in ("sheet", "report"):
        pytest.importorskip("matplotlib")
    if form == "youtube":  # needs 30 s
        error_of(client.post("/v1/export", json={"format": form, "answers": [answer]}), 422)
        return
    response = client.post("/v1/export", json={"format": form, "answers": [answer], "media_folder": "/Users/me"})
    assert response.status_code == 200, response.text
    assert str(films) not in response.text and str(films.parent) not in response.text
    assert "attachment" in response.headers["content-disposition"] and response.text.strip()
    if form == "csv":
        assert response.text.splitlines()[1].startswith("a.mp4,an orange ball is moving,1.250,4.000,0.9000")
    if form == "fcpxml":
        assert "file:///Users/me/a.mp4" in response.text


def test_an_export_needs_little_and_checks_it(client: TestClient) -> None:
    answer = {"video": "a.mp4", "query": QUERY, "moments": [{"start": 1, "end": 2}]}
    assert client.post("/v1/export", json={"format": "edl", "answers": [answer]}).status_code == 200
    assert "curve" in error_of(client.post("/v1/export", json={"format": "json", "answers": [answer]}), 422)["message"]
    answer["moments"] = [{"start": 1, "end": 2000}]
    assert "2000" in error_of(client.post("/v1/export", json={"format": "edl", "answers": [answer]}), 422)["message"]
    assert "mp3" in error_of(client.post("/v1/export", json={"format": "mp3", "answers": [answer]}), 422)["message"]


def test_health_models_and_numbers(client: TestClient) -> None:
    assert client.get("/healthz").json()["status"] == "ok"
    models = client.get("/v1/models").json()
    assert models["model"] == "shapes" and models["uploads"] and not models["search"]
    assert [model["name"] for model in models["models"] if model["loaded"]] == ["shapes"]
    assert models["knows"] == "drawn shapes only; for trying things out", "as `sidelight models` says it"
    assert ground(client, query=models["example"])["answers"][0].get("notes", []) == [], "the example fits the model"
    text = client.get("/metrics").text
    assert 'sidelight_requests_total{method="POST",route="/v1/ground",status="200"} 1.0' in text
    assert "sidelight_batch_jobs_count 1.0" in text and "sidelight_queue_jobs 0.0" in text


def test_the_openapi_description_has_examples_and_one_form_of_errors(client: TestClient) -> None:
    description = client.get("/openapi.json").json()
    assert description["components"]["schemas"]["GroundRequest"]["examples"]
    for path, methods in description["paths"].items():
        for operation in methods.values():
            assert operation["summary"], path
            if path.startswith("/v1"):
                schema = operation["responses"]["422"]["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorBody"}


@pytest.mark.parametrize("path", sorted(page_files()))
def test_the_page_is_served_with_headers_of_security(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 200 and len(response.content) > 100
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in response.headers


# the token ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(grounder: Grounder, films: Path) -> TestClient:
    settings = Settings(host="0.0.0.0", token=TOKEN, allow_hosts=("films.example",))
    return client_of(create_app(grounder, folders=[films], settings=settings))


def test_a_token_is_asked_for(guarded: TestClient) -> None:
    assert guarded.get("/").status_code == 200 and guarded.get("/healthz").status_code == 200
    for path in ("/v1/videos", "/metrics", "/openapi.json", "/v1/videos/a.mp4/file"):
        error_of(guarded.get(path), 401)
        error_of(guarded.get(path, headers={"Authorization": f"Bearer {TOKEN}x"}), 401)
        error_of(guarded.get(path, headers={"Authorization": f"Basic {TOKEN}"}), 401)
        error_of(guarded.get(path, headers={"Cookie": f"sidelight_session={TOKEN}"}), 401)
        assert guarded.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_a_browser_gets_a_cookie_for_the_token(guarded: TestClient) -> None:
    error_of(guarded.post("/v1/session", json={"token": "wrong"}), 401)
    response = guarded.post("/v1/session", json={"token": TOKEN})
    assert response.status_code == 204
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
    assert guarded.get("/v1/videos").status_code == 200


def test_another_host_needs_a_token() -> None:
    with pytest.raises(ValueError, match=r"--host 0\.0\.0\.0 lets other machines connect, so it needs --token"):
        Settings(host="0.0.0.0")
    with pytest.raises(ValueError, match="token must be 16 to 512"):
        Settings(token="short")
    assert Settings(host="::1").is_local and Settings(host="localhost").is_local


# the queue ----------------------------------------------------------------------------------------------------------


def test_requests_for_one_video_become_one_call(films: Path, slow: SlowGrounder) -> None:
    videos = Videos([films])
    jobs = Jobs(slow, videos, queue=10, workers=1)
    first = jobs.submit(videos.find("b.mp4"), [QUERY])
    assert slow.entered.wait(5)
    a, b = videos.find("a.mp4"), videos.find("b.mp4")
    later = [jobs.submit(a, ["one", "two"]), jobs.submit(b, ["three"]), jobs.submit(a, ["two", "four"], top=1)]
    assert [jobs.position(job) for job in (first, *later)] == [None, 0, 1, 2]
    slow.go.set()
    answers = [job.finished.result(timeout=20) for job in (first, *later)]
    assert slow.calls == [[QUERY], ["one", "two", "four"], ["three"]]
    assert [[grounding.query for grounding in answer] for answer in answers[1:]] == [
        ["one", "two"],
        ["three"],
        ["two", "four"],
    ]
    assert all(len(grounding) <= 1 for grounding in answers[3])
    assert later[0].state == "done" and later[0].progress == 1
    jobs.close()


def test_a_full_queue_says_when_to_come_again(films: Path, slow: SlowGrounder) -> None:
    settings = Settings(queue=2, workers=1)
    app = create_app(slow, folders=[films], settings=settings)
    with client_of(app) as client:
        body = {"video": "a.mp4", "query": QUERY, "async": True}
        first = client.post("/v1/ground", json=body).json()
        assert slow.entered.wait(5)
        waiting = [client.post("/v1/ground", json=body).json() for _ in range(2)]
        response = client.post("/v1/ground", json=body)
        assert error_of(response, 503)["kind"] == "busy" and 1 <= int(response.headers["retry-after"]) <= 120
        assert "sidelight_queue_jobs 2.0" in client.get("/metrics").text
        assert client.get(f"/v1/jobs/{first['id']}").json()["state"] == "running"
        assert client.delete(f"/v1/jobs/{waiting[0]['id']}").json()["state"] == "cancelled"
        assert client.get(f"/v1/jobs/{waiting[1]['id']}").json()["position"] == 0
        assert client.post("/v1/ground", json=body).status_code == 202
        slow.go.set()


def test_progress_is_the_part_that_was_read_and_a_cancelled_job_stops(films: Path) -> None:
    reading, go, parts = threading.Event(), threading.Event(), list[float]()

    class Reads:
        def ground(self, video: Path, query: list[str], *, progress: Progress = False) -> list[Grounding]:
            assert callable(progress)
            for part in (0.25, 0.5, 1.0):
                progress(part)
                parts.append(part)
                reading.set()
                assert go.wait(20)
            raise AssertionError("the job was not stopped")

    with client_of(create_app(Reads(), folders=[films])) as client:
        name = client.post("/v1/ground", json={"video": "a.mp4", "query": QUERY, "async": True}).json()["id"]
        assert reading.wait(5)
        assert client.get(f"/v1/jobs/{name}").json()["progress"] == 0.25
        assert client.delete(f"/v1/jobs/{name}").json()["state"] == "running", "it ends at its next clip"
        go.set()
        ended = [line for line in client.get(f"/v1/jobs/{name}/events").text.splitlines() if "cancelled" in line]
        assert json.loads(ended[-1].removeprefix("data: "))["state"] == "cancelled" and parts == [0.25]


def test_the_grounder_reports_what_it_has_read(grounder: Grounder, films: Path) -> None:
    parts: list[float] = []
    Grounder(grounder.checkpoint, backbone=grounder.backbone, cache=None, device="cpu").ground(
        films / "a.mp4", QUERY, progress=parts.append
    )
    assert len(parts) > 1 and parts == sorted(parts) and parts[-1] == 1


def test_one_bad_query_stops_no_other(films: Path) -> None:
    go = threading.Event()

    class Strict:
        def ground(self, video: Path, query: list[str], *, progress: Progress = False) -> list[Grounding]:
            assert go.wait(20)
            if "bad" in query:
                raise ValueError(f"the query 'bad' cannot be read in {video}")
            from sidelight.core.timeline import Timeline

            timeline = Timeline(duration=4, clip_seconds=4)
            return [Grounding(query=q, timeline=timeline, moments=(), saliency=[0]) for q in query]  # type: ignore[arg-type]

    videos = Videos([films])
    jobs = Jobs(Strict(), videos, workers=1)
    video = videos.find("a.mp4")
    batch = [jobs.submit(video, [query]) for query in ("blocks", "good", "bad", "fine")]
    go.set()
    assert [job.finished.result(timeout=20)[0].query for job in (batch[0], batch[1], batch[3])] == [
        "blocks",
        "good",
        "fine",
    ]
    with pytest.raises(ServiceError, match=r"the query 'bad' cannot be read in a\.mp4"):
        batch[2].finished.result(timeout=20)
    jobs.close()
    with pytest.raises(ServiceError, match="try again later"):
        jobs.submit(video, ["late"])


def test_a_fault_of_the_model_hides_its_details(films: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def ground(self, video: Path, query: list[str], *, progress: Progress = False) -> list[Grounding]:
            raise RuntimeError(f"secret of {video}")

    with client_of(create_app(Broken(), folders=[films])) as client:
        error = error_of(client.post("/v1/ground", json={"video": "a.mp4", "query": QUERY}), 500)
    assert error == {"kind": "internal", "message": "the model failed; the service's log says why"}
    assert "secret of" in caplog.text


def test_finished_jobs_are_forgotten_in_the_end(films: Path, grounder: Grounder) -> None:
    videos = Videos([films])
    jobs = Jobs(grounder, videos, kept=2)
    video = videos.find("a.mp4")
    names = []
    for i in range(5):
        job = jobs.submit(video, [f"query {i}"])
        job.finished.result(timeout=20)
        names.append(job.id)
    jobs.submit(video, [QUERY]).finished.result(timeout=20)
    jobs.close()
    last = jobs.find(names[-1])
    assert jobs.find(names[0]) is None and last is not None and last.state == "done"


def test_names_of_several_folders_start_with_the_folder(films: Path, tmp_path: Path) -> None:
    other = tmp_path / "films"
    other.mkdir()
    (other / "a.mp4").write_bytes((films / "a.mp4").read_bytes())
    names = [video.name for video in Videos([films, other]).all()]
    assert "films/a.mp4" in names and "films-2/a.mp4" in names
    with pytest.raises(ValueError, match="is not a folder"):
        Videos([tmp_path / "missing"])


def test_the_folder_of_a_model_is_not_shown(grounder: Grounder, films: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my-run"
    folder.mkdir()

    class Named:
        name = str(folder)

        def ground(self, video: Path, query: list[str], *, progress: Progress = False) -> list[Grounding]:
            notes = (f"the model {folder} says: {video}",)
            return [replace(answer, notes=notes, model=str(folder)) for answer in grounder.ground(video, query)]

    with client_of(create_app(Named(), folders=[films])) as client:
        answer = ground(client)["answers"][0]
        assert client.get("/healthz").json()["model"] == client.get("/v1/models").json()["model"] == "my-run"
    assert answer["model"] == "my-run" and answer["notes"] == ["the model my-run says: a.mp4"]


def test_a_job_that_fails_unexpectedly_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(JobQueue[Job]):
        def run(self, batch: Sequence[Job]) -> None:
            (job,) = batch
            if job.id == "bad":
                raise RuntimeError("a bug")
            job.succeed("fine")

    queue = Broken(queue=9, workers=1, kept=9, name="jobs")
    bad, good = queue.put(Job(id="bad")), queue.put(Job(id="good"))
    assert good.finished.result(timeout=20) == "fine" and good.state == "done"
    with pytest.raises(ServiceError, match="the service's log says why"):
        bad.finished.result(timeout=20)
    assert bad.state == "failed" and "a bug" in caplog.text
    queue.close()


def test_videos_of_one_name_are_two_files_in_a_timeline() -> None:
    def video(name: str) -> Video:
        return Video(id=name, name=name, path=Path("/x", name), size=1, modified=1, uploaded=False)

    first, second, third = video("a/clip.mp4"), video("b/clip.mp4"), video("c.mp4")
    assert _shown_names({"1": first, "2": third}) == {"1": "clip.mp4", "2": "c.mp4"}
    assert _shown_names({"1": first, "2": second}) == {"1": "a/clip.mp4", "2": "b/clip.mp4"}
    with pytest.raises(ServiceError, match="one after the other"):
        _shown_names({"1": first, "2": first})
