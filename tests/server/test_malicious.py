"""Requests of strangers: none reaches a file outside the folders, and none stops the service."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from sidelight import Grounder
from sidelight.server.app import _TimedProtocol, create_app
from sidelight.server.settings import Settings
from tests.server.conftest import SlowGrounder, serving

pytestmark = pytest.mark.filterwarnings("ignore::sidelight.OutsideWarning")
QUERY = "an orange ball is moving"
FORM = b"--x\r\nContent-Disposition: form-data; "


def require_refused(client: TestClient, response: object, films: Path, statuses: tuple[int, ...]) -> str:
    """Check that a request was refused in the one form, without a path, and that the service still answers."""
    status, text = response.status_code, response.text  # type: ignore[attr-defined]
    assert status in statuses, (status, text)
    error = json.loads(text)["error"]
    assert set(error) == {"kind", "message"} and error["message"]
    for secret in (str(films), str(films.parent), "top secret", "Traceback", "site-packages"):
        assert secret not in text
    assert client.get("/healthz").status_code == 200
    return str(error["kind"])


PATHS = [
    "/v1/videos/../secret.mp4/file",
    "/v1/videos/..%2fsecret.mp4/file",
    "/v1/videos/%2e%2e/secret.mp4/file",
    "/v1/videos/%2e%2e%2fsecret.mp4/file",
    "/v1/videos/..%252fsecret.mp4/file",
    "/v1/videos/..%5csecret.mp4/file",
    "/v1/videos/old/../../secret.mp4/file",
    "/v1/videos/old%2f..%2f..%2fsecret.mp4/file",
    "/v1/videos/up/secret.mp4/file",
    "/v1/videos/link.mp4/file",
    "/v1/videos/%2fetc%2fpasswd/file",
    "/v1/videos//etc/passwd/file",
    "/v1/videos/notes.txt/file",
    "/v1/videos/a.mp4%00/file",
    "/v1/videos/a.mp4%00.txt/file",
    "/v1/videos/%ff%fe/file",
    "/v1/videos/file:%2f%2f%2fetc%2fpasswd/thumbnail",
    "/v1/videos/https:%2f%2fexample.org%2fa.mp4",
    "/v1/videos/" + "a" * 5000,
    "/v1/jobs/..%2f..%2fsecret/events",
    "/../../etc/passwd",
    "/style.css/../../app.py",
    "/page/../app.py",
]


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_out_of_the_folders(reader: TestClient, films: Path, path: str) -> None:
    require_refused(reader, reader.get(path), films, (404, 422))


@pytest.mark.parametrize("name", ["secret.mp4", "/secret.mp4", "../secret.mp4", "ABS", "link.mp4", "a.mp4\0", "\ud800"])
def test_no_name_in_a_body_leads_out_of_the_folders(reader: TestClient, films: Path, name: str) -> None:
    name = str(films / "a.mp4") if name == "ABS" else name
    content = json.dumps({"video": name, "query": QUERY})
    response = reader.post("/v1/ground", content=content, headers={"Content-Type": "application/json"})
    require_refused(reader, response, films, (404, 422))
    answer = {"video": name, "query": QUERY, "moments": []}
    content = json.dumps({"format": "ffmpeg", "answers": [answer]})
    require_refused(reader, reader.post("/v1/export", content=content), films, (404, 415, 422))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 20_000,
        '{"video": "a.mp4"}',
        '{"video": "a.mp4", "query": ""}',
        '{"video": "a.mp4", "query": "   "}',
        '{"video": "a.mp4", "query": 5}',
        '{"video": "a.mp4", "query": []}',
        '{"video": ["a.mp4"], "query": "x"}',
        '{"video": "a.mp4", "query": {"$ne": 1}}',
        '{"video": "a.mp4", "query": "\\ud800"}',
        '{"video": "a.mp4", "query": "x", "top": 0}',
        '{"video": "a.mp4", "query": "x", "top": 1e999}',
        '{"video": "a.mp4", "query": "x", "top": ' + "9" * 5000 + "}",
        '{"video": "a.mp4", "query": "x", "min_score": NaN}',
        '{"video": "a.mp4", "query": "x", "unknown": 1}',
        json.dumps({"video": "a.mp4", "query": ["x"] * 33}),
        json.dumps({"video": "a.mp4", "query": "x" * 20_000}),
    ],
    ids=lambda content: content[:40] or "empty",
)
def test_bodies_of_wrong_types_are_refused(reader: TestClient, films: Path, content: str) -> None:
    response = reader.post("/v1/ground", content=content, headers={"Content-Type": "application/json"})
    require_refused(reader, response, films, (400, 422))


@pytest.mark.parametrize(
    "values",
    [
        {"moments": [{"start": 2, "end": 1}]},
        {"moments": [{"start": -1, "end": 1}]},
        {"moments": [{"start": 0, "end": 1e308}]},
        {"timeline": {"duration": 1e300, "clip_seconds": 1e-300}, "saliency": [0]},
        {"timeline": {"duration": 20, "clip_seconds": 2}, "saliency": [0]},
        {"timeline": {"duration": 20, "clip_seconds": 20, "clips": 3}, "saliency": []},
        {"saliency": ["x"]},
    ],
)
def test_answers_that_cannot_be_are_refused(reader: TestClient, films: Path, values: dict[str, object]) -> None:
    answer = {"video": "a.mp4", "query": QUERY, "moments": [], **values}
    response = reader.post("/v1/export", json={"format": "csv", "answers": [answer]})
    require_refused(reader, response, films, (422,))


def test_an_export_runs_no_command_of_its_query(reader: TestClient) -> None:
    query = "x'; rm -rf ~ #\n$(touch /tmp/owned) `id`"
    answer = {"video": "a.mp4", "query": query, "moments": [{"start": 1, "end": 2}]}
    request = {"format": "ffmpeg", "answers": [answer], "media_folder": "$(id)'\n"}
    script = reader.post("/v1/export", json=request).text
    commands = [line for line in script.splitlines() if line.startswith(("rm", "$", "`", "touch"))]
    assert commands == []


def test_a_body_that_is_too_large_is_refused(reader: TestClient, films: Path) -> None:
    query = json.dumps({"video": "a.mp4", "query": QUERY, "x": "y" * 400_000})
    require_refused(reader, reader.post("/v1/ground", content=query), films, (413,))
    parts = (b"x" * 50_000 for _ in range(8))  # without Content-Length
    require_refused(reader, reader.post("/v1/ground", content=parts), films, (413,))
    require_refused(reader, reader.post("/v1/ground", content=b"{}", headers={"Content-Length": "-5"}), films, (413,))


# uploads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../a.mp4", "/etc/a.mp4", "..\\a.mp4", "C:\\a.mp4", ".a.mp4", "..mp4", "a.mp4/", "a\tb.mp4", " a.mp4", "a.txt",
        "a", "a.mp4.sh", "a.html", "x" * 300 + ".mp4", "a\u202egpj.mp4",
    ],
)  # fmt: skip
def test_names_of_uploads_are_checked(client: TestClient, films: Path, tmp_path: Path, name: str) -> None:
    content = (films / "a.mp4").read_bytes()
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="' + name.encode() + b'"\r\n\r\n'
    body += content + b"\r\n--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    require_refused(client, client.post("/v1/videos", content=body, headers=headers), films, (422,))
    assert list((tmp_path / "uploads").iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"text", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n", b"ffconcat version 1.0\nfile '/etc/passwd'\n",
     b"<html>", b"\x89PNG\r\n\x1a\n", b"\0" * 1000],
    ids=["empty", "text", "playlist", "concat", "page", "png", "zeros"],
)  # fmt: skip
def test_uploads_that_are_no_videos_are_refused(
    client: TestClient, films: Path, tmp_path: Path, content: bytes
) -> None:
    response = client.post("/v1/videos", files={"file": ("film.mp4", content)})
    assert require_refused(client, response, films, (422,)) == "unreadable_video"
    assert str(tmp_path) not in response.text
    assert list((tmp_path / "uploads").iterdir()) == []


def test_uploads_have_limits(client: TestClient, films: Path, tmp_path: Path) -> None:
    response = client.post("/v1/videos", files={"file": ("film.mp4", b"x" * 2_050_000)})
    assert require_refused(client, response, films, (413,)) == "too_large"
    (tmp_path / "uploads" / "old.bin").write_bytes(b"x" * 2_999_000)
    response = client.post("/v1/videos", files={"file": ("film.mp4", b"x" * 50_000)})
    assert require_refused(client, response, films, (507,)) == "no_space"
    assert [path.name for path in (tmp_path / "uploads").iterdir()] == ["old.bin"]


@pytest.mark.parametrize("place", ["write", "close", "rename"])
def test_an_upload_to_a_full_disk_leaves_nothing(
    client: TestClient, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    names = {"write": "uploads._Form._data", "close": "uploads.Uploads._keep", "rename": "uploads.Path.replace"}
    monkeypatch.setattr(f"sidelight.server.{names[place]}", full)
    response = client.post("/v1/videos", files={"file": ("film.mp4", (films / "a.mp4").read_bytes())})
    assert require_refused(client, response, films, (507,)) == "no_space"
    assert list((tmp_path / "uploads").iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=" + "x" * 500, b"x"),
        ("multipart/form-data; boundary=x", b"not a form"),
        ("multipart/form-data; boundary=x", b"--x--\r\n"),
        ("multipart/form-data; boundary=x", FORM + b'name="file"; filename="a.mp4"\r\n\r\nab'),
        ("multipart/form-data; boundary=x", FORM + b'name="other"\r\n\r\nab\r\n--x--\r\n'),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"A: b\r\n" * 1000 + b"\r\nab\r\n--x--\r\n"),
    ],
)
def test_forms_that_are_none_are_refused(client: TestClient, films: Path, kind: str, body: bytes) -> None:
    response = client.post("/v1/videos", content=body, headers={"Content-Type": kind})
    assert require_refused(client, response, films, (422,)) == "invalid_upload"


# who asks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "192.168.0.1", "", "a b", "@x"]
)
def test_other_host_names_are_refused(reader: TestClient, films: Path, host: str) -> None:
    require_refused(reader, reader.get("/v1/videos", headers={"Host": host}), films, (421,))


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_pages_of_other_sites_are_refused(reader: TestClient, films: Path, headers: dict[str, str]) -> None:
    response = reader.post("/v1/ground", json={"video": "a.mp4", "query": QUERY}, headers=headers)
    assert require_refused(reader, response, films, (403,)) == "cross_origin"
    own = {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}
    assert reader.get("/v1/videos", headers=own).status_code == 200


def test_a_video_that_becomes_a_link_is_not_read(client: TestClient, films: Path, tmp_path: Path) -> None:
    path = tmp_path / "uploads" / "new.mp4"
    path.write_bytes((films / "b.mp4").read_bytes())
    assert client.get("/v1/videos/uploads/new.mp4/file").status_code == 200
    path.unlink()
    os.symlink(films.parent / "secret.mp4", path)  # within the time for which the list is used again
    require_refused(client, client.get("/v1/videos/uploads/new.mp4/file"), films, (404,))


# a real server ------------------------------------------------------------------------------------------------------


def talk(server: tuple[str, int], request: bytes, *, timeout: float = 15) -> bytes:
    """Send bytes and return all bytes that come back until the server closes the connection."""
    with socket.create_connection(server, timeout=timeout) as connection:
        connection.sendall(request)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer


HEAD = b"POST /v1/ground HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


def test_a_slow_body_is_given_up(server: tuple[str, int]) -> None:
    start = time.monotonic()
    answer = talk(server, HEAD + b"Content-Length: 100\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408") and b"too_slow" in answer and time.monotonic() - start < 5
    form = b"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    answer = talk(server, form + b"Content-Length: 100\r\n\r\n--x")
    assert answer.startswith(b"HTTP/1.1 408")


def test_a_body_that_is_sent_drop_by_drop_is_given_up(server: tuple[str, int]) -> None:
    with socket.create_connection(server, timeout=10) as connection:
        connection.sendall(HEAD + b"Content-Length: 100\r\n\r\n")
        for _ in range(30):
            try:
                connection.sendall(b" ")
            except OSError:
                break
            time.sleep(0.05)
        assert connection.recv(65536).startswith(b"HTTP/1.1 408")


def test_a_slow_head_is_given_up(server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidelight.server.app._HEADER_SECONDS", 0.3)
    start = time.monotonic()
    assert talk(server, b"GET /healthz HTTP/1.1\r\nHost: 127") == b""
    assert time.monotonic() - start < 5


@pytest.fixture
def large(grounder: Grounder, films: Path, tmp_path: Path) -> Iterator[tuple[str, int]]:
    """Yield the address of a server with a large file, for few and impatient requests."""
    (tmp_path / "large").mkdir()
    with open(tmp_path / "large" / "large.mp4", "wb") as file:
        file.write((films / "a.mp4").read_bytes())
        file.truncate(200 << 20)
    settings = Settings(port=0, requests=2, write_seconds=1.0)
    with serving(create_app(grounder, folders=[tmp_path / "large"], settings=settings), settings) as address:
        yield address


GET_LARGE = b"GET /v1/videos/large.mp4/file HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def test_a_client_that_reads_too_slowly_gives_its_place_back(large: tuple[str, int]) -> None:
    connections = [socket.create_connection(large, timeout=10) for _ in range(2)]
    for connection in connections:
        connection.sendall(GET_LARGE)
        assert connection.recv(12) == b"HTTP/1.1 200"
    health = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    assert talk(large, health).startswith(b"HTTP/1.1 503"), "both places are taken"
    deadline = time.monotonic() + 8
    while not (answer := talk(large, health)).startswith(b"HTTP/1.1 200") and time.monotonic() < deadline:
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.recv(1)  # a byte now and then is too slow
        time.sleep(0.1)
    assert answer.startswith(b"HTTP/1.1 200")
    for connection in connections:
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(1 << 20):
                received += len(part)
        assert received < 100 << 20, "the connection was cut, and not only forgotten"
        connection.close()


def test_a_client_that_reads_slowly_but_steadily_gets_the_whole_file(large: tuple[str, int]) -> None:
    with socket.create_connection(large, timeout=10) as connection:
        connection.sendall(GET_LARGE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        received, start = 0, time.monotonic()
        while part := connection.recv(4 << 20):
            received += len(part)
            if time.monotonic() - start < 2.5:
                time.sleep(0.05)
    assert received > 200 << 20


@pytest.mark.parametrize(
    ("unread", "ends"),
    [
        ([0, 0], ["close"]),
        ([60_000, 59_999], ["abort"]),  # close would wait until the client takes the rest
        ([60_000, 20_000, 0], ["close", "close"]),
        ([60_000, 20_000, 19_000], ["close", "abort"]),
    ],
)
def test_the_rest_of_an_answer_is_not_kept_for_ever(unread: list[int], ends: list[str]) -> None:
    calls: list[str] = []
    sizes = iter(unread)
    protocol = _TimedProtocol.__new__(_TimedProtocol)
    protocol.cycle = SimpleNamespace(response_complete=True)  # type: ignore[assignment]
    protocol.loop = SimpleNamespace(call_later=lambda *arguments: None)  # type: ignore[assignment]
    protocol.transport = SimpleNamespace(  # type: ignore[assignment]
        get_write_buffer_size=lambda: next(sizes),
        get_extra_info=lambda name: None,
        close=lambda: calls.append("close"),
        abort=lambda: calls.append("abort"),
    )
    protocol._watch(None)
    for _ in unread[1:]:
        protocol._watch(protocol.cycle)
    assert calls == ends


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\n\r\n", (400, 421)),
        (b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n", (400, 421)),
        (b"GET http://evil.example/healthz HTTP/1.1\r\nHost: evil.example\r\n\r\n", (421,)),
        (b"GET /v1/videos/../../secret.mp4/file HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", (404,)),
        (HEAD + b"Content-Length: 999999999999\r\n\r\n", (413,)),
        (HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", (400, 422)),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", (400,)),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", (400, 404)),
    ],
    ids=["no host", "two hosts", "absolute", "traversal", "huge", "smuggling", "tls", "long path"],
)
def test_requests_that_are_no_http_are_refused(
    server: tuple[str, int], request_bytes: bytes, status: tuple[int, ...]
) -> None:
    lines = request_bytes.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r\nConnection: close\r\n", 1)
    answer = talk(server, lines)
    assert int(answer.split()[1]) in status, answer[:200]
    assert talk(server, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").startswith(
        b"HTTP/1.1 200"
    )


def test_a_client_that_goes_away_leaves_the_queue(server: tuple[str, int], slow: SlowGrounder) -> None:
    def post(video: str, query: str) -> socket.socket:
        body = json.dumps({"video": video, "query": query}).encode()
        connection = socket.create_connection(server, timeout=20)
        connection.sendall(HEAD + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        return connection

    first = post("a.mp4", "first")
    assert slow.entered.wait(5)
    gone = post("b.mp4", "gone")
    time.sleep(0.3)
    gone.close()
    time.sleep(1.5)
    last = post("b.mp4", "last")
    slow.go.set()
    for connection in (first, last):
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.close()
    assert slow.calls == [["first"], ["last"]], "nobody waits for the second answer"
