"""The tools for language models, as the SDK's own client sees them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp", reason='the tools need pip install "sidelight[mcp]"')

import anyio
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from sidelight import Grounder
from sidelight.server.mcp import tools
from tests.server.conftest import FakeLibrary

pytestmark = pytest.mark.filterwarnings("ignore::sidelight.OutsideWarning")
QUERY = "an orange ball is moving"


async def result_of(client: Client, name: str, **values: Any) -> Any:
    """Call a tool and return its values; the message if the call failed."""
    result = await client.call_tool(name, values)
    return result.content[0].text if result.is_error else result.structured_content  # type: ignore[union-attr]


async def check(client: Client, films: Path) -> None:
    """List the tools, and call each one."""
    listed = (await client.list_tools()).tools
    assert [tool.name for tool in listed] == ["list_videos", "ground", "export"]
    assert all(tool.description and tool.output_schema for tool in listed)
    names = await result_of(client, "list_videos", contains="MP4", limit=2)
    assert names == {"names": ["a.mp4", "b.mp4"], "total": 5}
    answers = (await result_of(client, "ground", video="a.mp4", queries=[QUERY, "a zebra"], top=2))["answers"]
    assert [answer["query"] for answer in answers] == [QUERY, "a zebra"]
    assert 1 <= len(answers[0]["moments"]) <= 2 and "zebra" in answers[1]["notes"][0]
    file = await result_of(client, "export", answers=answers[:1], format="csv")
    assert file["name"] == "a.csv" and file["content"].count(QUERY) == len(answers[0]["moments"])
    assert str(films) not in str([answers, file])
    for video in ("../secret.mp4", str(films / "a.mp4"), "link.mp4"):
        assert "there is no video" in await result_of(client, "ground", video=video, queries=[QUERY])
    assert "broken.mp4 is not a video" in await result_of(client, "ground", video="broken.mp4", queries=[QUERY])
    assert "a query is empty" in await result_of(client, "ground", video="a.mp4", queries=[" "])
    assert "export format" in await result_of(client, "export", answers=answers[:1], format="mp3")


def test_the_tools_answer(grounder: Grounder, films: Path) -> None:
    async def run() -> None:
        async with Client(tools(grounder, folders=[films])) as client:
            await check(client, films)

    anyio.run(run)


def test_a_library_adds_a_search(grounder: Grounder, films: Path) -> None:
    async def run() -> None:
        async with Client(tools(grounder, folders=[films], library=FakeLibrary(films / "b.mp4"))) as client:
            assert "search" in [tool.name for tool in (await client.list_tools()).tools]
            hits = (await result_of(client, "search", query=QUERY))["hits"]
            assert [hit["video"] for hit in hits] == ["b.mp4"]

    anyio.run(run)


def test_the_command_talks_over_standard_input_and_output(films: Path) -> None:
    command = StdioServerParameters(
        command=sys.executable, args=["-m", "sidelight", "mcp", str(films), "--model", "shapes"], env=dict(os.environ)
    )

    async def run() -> None:
        async with Client(stdio_client(command)) as client:
            await check(client, films)

    anyio.run(run)
