"""Search a library by a sentence, a moment and an image."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from sidelight import Grounder
from sidelight.export.thumbnails import as_jpeg
from sidelight.server.app import create_app
from sidelight.server.errors import without_paths
from sidelight.video.read import frames_at
from tests.server.conftest import FakeLibrary, client_of

QUERY = "an orange ball is moving"
pytestmark = pytest.mark.filterwarnings("ignore::sidelight.OutsideWarning")


@pytest.fixture(scope="module")
def fake(films: Path) -> FakeLibrary:
    return FakeLibrary(films / "a.mp4", "/secret/elsewhere.mp4")


@pytest.fixture(scope="module")
def searching(grounder: Grounder, films: Path, fake: FakeLibrary) -> Iterator[TestClient]:
    with client_of(create_app(grounder, folders=[films], library=fake)) as client:
        yield client


def error_of(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    assert "/secret" not in response.text and "/tmp" not in response.text
    return str(response.json()["error"]["message"])


def test_a_search_needs_a_library(reader: TestClient, films: Path) -> None:
    assert "no library" in error_of(reader.post("/v1/search", json={"query": QUERY}), 404)
    files = {"file": ("a.jpg", b"x", "image/jpeg")}
    assert "no library" in error_of(reader.post("/v1/search/image", files=files), 404)


def test_hits_have_names_and_no_paths(searching: TestClient, fake: FakeLibrary) -> None:
    answer = searching.post("/v1/search", json={"query": QUERY, "top": 2}).json()
    assert [hit["video"] for hit in answer["hits"]] == ["a.mp4", "elsewhere.mp4"]
    assert answer["hits"][0]["id"] and answer["hits"][1]["id"] is None and answer["notes"] == ["a note"]
    assert answer["hits"][0]["relevance"] == 0.4 and answer["hits"][0]["score"] == 0.5
    assert answer["answers"] is None and fake.searches[-1] == (QUERY,)


def test_no_message_has_a_path(searching: TestClient, fake: FakeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("/secret/films.lib/calibration.json is damaged; remove it")

    monkeypatch.setattr(fake, "search", fail)
    message = error_of(searching.post("/v1/search", json={"query": QUERY}), 422)
    assert message == "calibration.json is damaged; remove it"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("no path, 1/2 and a/b", "no path, 1/2 and a/b"),
        ("/srv/a.lib/x.json is\ndamaged", "x.json is damaged"),
        ("see https://host/a/b (/tmp/c/d.mp4)", "see https://host/a/b (d.mp4)"),
    ],
)
def test_paths_become_names(text: str, shown: str) -> None:
    assert without_paths(text) == shown


def test_hits_may_be_too_little_relevant(searching: TestClient, fake: FakeLibrary) -> None:
    fake.is_calibrated = True
    answer = searching.post("/v1/search", json={"query": QUERY, "min_relevance": 0.5}).json()
    assert answer["hits"] == [] and answer["best_left_out"] == 0.4 and answer["calibrated"]
    answer = searching.post("/v1/search", json={"query": QUERY, "min_relevance": 0.3}).json()
    assert len(answer["hits"]) == 2 and answer["best_left_out"] is None
    like = {"video": "b.mp4", "start": 3, "end": 4.5}
    message = error_of(searching.post("/v1/search", json={"like": like, "min_relevance": 0.3}), 422)
    assert "min_relevance is for a query" in message


def test_answers_come_with_curves_of_shown_videos(searching: TestClient, films: Path) -> None:
    response = searching.post("/v1/search", json={"query": QUERY, "answers": True})
    (answer,) = response.json()["answers"]
    assert answer["video"] == "a.mp4" and answer["query"] == QUERY and answer["saliency"] == [0, 1]
    assert answer["notes"] == ["a.mp4 is damaged"] and str(films) not in response.text
    assert "/secret" not in response.text


def test_moments_are_searched_by_a_moment(searching: TestClient, fake: FakeLibrary, films: Path) -> None:
    like = {"video": "b.mp4", "start": 3, "end": 4.5}
    answer = searching.post("/v1/search", json={"like": like}).json()
    assert answer["query"] == "like b.mp4, 0:03.0 to 0:04.5"
    assert fake.searches[-1] == (films / "b.mp4", 3, 4.5)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"query": QUERY, "like": {"video": "a.mp4", "start": 0, "end": 1}},
        {"like": {"video": "a.mp4", "start": 0}},
        {"like": {"video": "a.mp4", "start": -1, "end": 1}},
        {"like": {"video": "a.mp4", "start": 0, "end": 1, "path": "/etc"}},
        {"query": QUERY, "top": 101},
    ],
    ids=json.dumps,
)
def test_questions_that_are_none_are_refused(searching: TestClient, body: dict[str, Any]) -> None:
    error_of(searching.post("/v1/search", json=body), 422)


@pytest.mark.parametrize("video", ["../secret.mp4", "/etc/passwd", "link.mp4", "elsewhere.mp4"])
def test_no_moment_of_another_file_is_searched(searching: TestClient, fake: FakeLibrary, video: str) -> None:
    before = len(fake.searches)
    error_of(searching.post("/v1/search", json={"like": {"video": video, "start": 0, "end": 1}}), 404)
    assert len(fake.searches) == before


def frame_of(films: Path) -> bytes:
    """Return a frame of a film as JPEG."""
    return as_jpeg(next(iter(frames_at(films / "a.mp4", [3.0]))).image)


def test_an_image_is_searched(searching: TestClient, fake: FakeLibrary, films: Path) -> None:
    files = {"file": ("my frame.jpg", frame_of(films), "image/jpeg")}
    answer = searching.post("/v1/search/image?top=1", files=files).json()
    assert answer["query"] == "like my frame.jpg" and len(answer["hits"]) == 1 and len(answer["answers"]) == 1
    assert fake.searches[-1] == ((8, 8, 3),)


BOMB = (
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xff\xff\0\0\xff\xff\x08\x02\0\0\0\x05\x1c\xb3\xd4"
    b"\0\0\0\x0cIDATx\x9cc\0\x01\0\0\x05\0\x01\x0d\x0a\x2d\xb4\0\0\0\0IEND\xaeB`\x82"
)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jpg", b"", "is no image"),
        ("a.jpg", b"text", "is no image"),
        ("a.jpg", "FILM", "is no still image"),
        ("a.png", BOMB, "a.png"),
        ("a.jpg", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n", "is a playlist"),
        ("a.png", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='/etc/passwd'/></svg>", "no"),
        ("a.mp4", "FILM", "has not the suffix of an image"),
        ("../a.jpg", "FRAME", "is a path"),
        ("..\\a.jpg", "FRAME", "is a path"),
        (".a.jpg", "FRAME", "hidden"),
        ("a.jpg.exe", "FRAME", "suffix"),
        ("x" * 300 + ".jpg", "FRAME", "longer"),
    ],
    ids=["empty", "text", "film", "bomb", "playlist", "svg", "name", "path", "backslash", "hidden", "exe", "long"],
)
def test_what_is_no_image_is_refused(
    searching: TestClient, films: Path, fake: FakeLibrary, name: str, content: bytes | str, message: str
) -> None:
    if isinstance(content, str):
        content = (films / "b.mp4").read_bytes() if content == "FILM" else frame_of(films)
    before = len(fake.searches)
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="' + name.encode() + b'"\r\n\r\n' + content
    response = searching.post(
        "/v1/search/image",
        content=body + b"\r\n--x--\r\n",
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    assert message in error_of(response, 422)
    assert len(fake.searches) == before and "root:" not in response.text


def test_an_image_is_no_larger_than_other_requests(searching: TestClient, fake: FakeLibrary) -> None:
    files = {"file": ("a.jpg", b"x" * (9 << 20), "image/jpeg")}
    assert "larger" in error_of(searching.post("/v1/search/image", files=files), 413)


def test_a_real_library_is_searched_and_served(grounder: Grounder, films: Path, tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    from sidelight.cli.serve import _parts
    from sidelight.library import Library

    Library.create(tmp_path / "lib", model="shapes", device="cpu").add(films, workers=0)
    model, library, folders = _parts(str(tmp_path / "lib"), [], None, "cpu", None, offline=True)
    assert folders == [str(films)] and library is not None
    with client_of(create_app(model, folders=folders, library=library)) as searching:
        answer = searching.post("/v1/search", json={"query": QUERY, "top": 3, "answers": True}).json()
        assert {hit["video"] for hit in answer["hits"]} <= {"a.mp4", "b.mp4"} and all(h["id"] for h in answer["hits"])
        relevance = [hit["relevance"] for hit in answer["hits"]]
        assert relevance == sorted(relevance, reverse=True) and not answer["calibrated"]
        assert sum(len(one["moments"]) for one in answer["answers"]) == len(answer["hits"])
        assert searching.get("/v1/models").json()["search"]
        answers = [{key: one[key] for key in ("video", "query", "moments")} for one in answer["answers"]]
        exported = searching.post("/v1/export", json={"format": "csv", "answers": answers})
        assert len(exported.text.splitlines()) == 1 + len(answer["hits"])
        like = {"video": "a.mp4", "start": 2, "end": 6}
        similar = searching.post("/v1/search", json={"like": like, "answers": True}).json()
        assert similar["hits"] and "@" not in similar["query"] and str(films) not in str(similar)
        files = {"file": ("frame.jpg", frame_of(films), "image/jpeg")}
        by_image = searching.post("/v1/search/image", files=files).json()
        assert by_image["hits"] and by_image["query"] == "like frame.jpg" and str(tmp_path) not in str(by_image)
        late = {"video": "a.mp4", "start": 2, "end": 6000}
        assert "lasts" in error_of(searching.post("/v1/search", json={"like": late}), 422)
