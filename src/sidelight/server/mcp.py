"""Tools for language models (Model Context Protocol): list videos, ground sentences, export moments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel, Field

from sidelight import __version__
from sidelight.server import schemas
from sidelight.server.errors import ServiceError, without_paths
from sidelight.server.exports import export_text, text_formats
from sidelight.server.jobs import Grounds
from sidelight.server.search import Searches, search_answer
from sidelight.server.videos import Videos

P = ParamSpec("P")
T = TypeVar("T")

INSTRUCTIONS = (
    "Find moments in the user's videos. First list_videos, then ground with short English sentences about what can be "
    "seen; sound is not heard. Scores rank the moments of one query and are no probabilities; a query that is true "
    "nowhere gets moments too, so read the notes."
)


class ListedVideos(BaseModel):
    """Names of videos."""

    names: list[str]
    total: int


class ToolMoment(BaseModel):
    """A part of a video in seconds, with a score."""

    start: float
    end: float
    score: float


class ToolAnswer(BaseModel):
    """The moments of one query, best first."""

    video: str
    query: str
    moments: list[ToolMoment]
    notes: list[str]


class ToolAnswers(BaseModel):
    """An answer for each query."""

    answers: list[ToolAnswer]


class ToolFile(BaseModel):
    """The content of an export."""

    name: str
    content: str
    notes: list[str]


def tools(grounder: Grounds, *, folders: Sequence[str | Path], library: Searches | None = None) -> MCPServer[Any]:
    """Return a server of tools; ``run("stdio")`` runs it.

    Args:
        grounder: the model: a :class:`sidelight.Grounder`.
        folders: folders whose videos the tools may read.
        library: an object with the method ``search`` of a library; adds the tool ``search``.

    Raises:
        ValueError: if a folder does not exist.
    """
    videos = Videos(folders, model=str(getattr(grounder, "name", "unknown")))
    server: MCPServer[Any] = MCPServer("sidelight", version=__version__, instructions=INSTRUCTIONS, log_level="WARNING")

    def list_videos(
        contains: Annotated[str, Field(max_length=200, description="part of the name, in any case")] = "",
        limit: Annotated[int, Field(ge=1, le=1000)] = 100,
    ) -> ListedVideos:
        """List the names of the videos that can be asked about."""
        names = [video.name for video in videos.all() if contains.lower() in video.name.lower()]
        return ListedVideos(names=names[:limit], total=len(names))

    def ground(
        video: schemas.VideoKey,
        queries: Annotated[list[schemas.Query], Field(min_length=1, max_length=32)],
        top: Annotated[int, Field(ge=1, le=100, description="most moments of each query")] = 5,
        min_score: schemas.MinScore = 0.0,
    ) -> ToolAnswers:
        """Find the moments of a video in which sentences are true; start and end are seconds."""
        file = videos.find(video)
        groundings = videos.readable(file, lambda: grounder.ground(file.path, queries))
        kept = [replace(grounding.at_least(min_score).best(top), video=videos.key_of(file)) for grounding in groundings]
        return ToolAnswers(
            answers=[
                ToolAnswer(
                    video=grounding.video or "",
                    query=grounding.query,
                    moments=[ToolMoment(start=m.start, end=m.end, score=m.score) for m in grounding],
                    notes=[videos.hide(note, file) for note in grounding.notes],
                )
                for grounding in kept
            ]
        )

    def export(
        answers: Annotated[list[schemas.AnswerBody], Field(min_length=1, max_length=32)],
        format: Annotated[str, Field(description=f"one of {', '.join(text_formats())}")],
        padding: Annotated[float, Field(ge=0, le=600, description="seconds before and after each cut")] = 0.0,
    ) -> ToolFile:
        """Write moments for another program: a table, subtitles, chapters, a cut list or a timeline."""
        text, name, _, notes = export_text(
            schemas.ExportRequest(answers=answers, format=format, padding=padding), videos
        )
        return ToolFile(name=name, content=text, notes=list(notes))

    def search(query: schemas.Query, top: Annotated[int, Field(ge=1, le=100)] = 10) -> schemas.SearchAnswer:
        """Find the moments of all videos of the library in which a sentence is true."""
        assert library is not None
        return search_answer(library, videos, schemas.SearchRequest(query=query, top=top))

    functions: list[Callable[..., Any]] = [list_videos, ground, export, *([search] if library is not None else [])]
    for function in functions:
        server.add_tool(_with_sentences(function))
    return server


def _with_sentences(function: Callable[P, T]) -> Callable[P, T]:
    """Return a tool that answers a mistake with its sentence."""

    @wraps(function)
    def tool(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except ServiceError as error:
            raise ToolError(error.message) from None
        except ValueError as error:
            raise ToolError(without_paths(str(error))) from None

    return tool
