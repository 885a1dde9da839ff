"""Whatever a body holds, the service answers it or says what is wrong with it: no status is 500 or more."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from sidelight import Grounder
from sidelight.server.app import create_app
from sidelight.server.settings import Settings
from tests.server.conftest import FakeLibrary, client_of

pytestmark = pytest.mark.filterwarnings("ignore::sidelight.OutsideWarning")

ANSWER = {
    "video": "a.mp4",
    "query": "an orange ball is moving",
    "moments": [{"start": 1, "end": 1.5, "score": 1}],
    "timeline": {"duration": 20, "clip_seconds": 20, "clips": 1},
    "saliency": [0],
    "notes": ["x"],
    "model": "shapes",
    "features": "x",
}
BODIES: dict[str, dict[str, Any]] = {
    "ground": {"video": "a.mp4", "query": "x", "top": 2, "min_score": 0.5, "async": True},
    "search": {"query": "x", "top": 2, "min_score": 0.5, "answers": True},
    "search by a moment": {"like": {"video": "a.mp4", "start": 0, "end": 2}, "top": 2, "answers": True},
    "export": {"format": "edl", "answers": [ANSWER], "top": 1, "padding": 1, "media_folder": "/x"},
    "cuts": {"answers": [ANSWER], "join": False, "exact": False, "top": 1, "padding": 0},
    "session": {"token": "x"},
}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "a.mp4", 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def service(grounder: Grounder, films: Path) -> Iterator[TestClient]:
    library = FakeLibrary(films / "a.mp4")
    app = create_app(grounder, folders=[films], library=library, settings=Settings(queue=10_000))
    with client_of(app, raise_server_exceptions=False) as client:
        yield client


def places_in(body: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in a body."""
    items = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    return [place, *(inner for key, value in items for inner in places_in(value, (*place, key)))]


def changed(body: Any, place: tuple[Any, ...], value: Any) -> Any:
    """Return a body with another value at a place."""
    if not place:
        return value
    result = copy.deepcopy(body)
    parent = result
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    return result


@pytest.mark.parametrize("name", BODIES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_body_is_a_fault_of_the_service(service: TestClient, name: str, data: st.DataObject) -> None:
    body = BODIES[name]
    for _ in range(data.draw(st.integers(1, 3))):
        body = changed(body, data.draw(st.sampled_from(places_in(body))), data.draw(VALUES))
        if not isinstance(body, dict):
            break
    content = json.dumps(body).encode("utf-8", "surrogatepass")
    headers = {"Content-Type": "application/json"}
    response = service.post(f"/v1/{name.split()[0]}", content=content, headers=headers)
    assert response.status_code < 500, (response.text, content)
    assert "Traceback" not in response.text and "site-packages" not in response.text
