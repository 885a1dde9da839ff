"""Search many videos, by an object that has a library's method ``search``."""

from __future__ import annotations

from typing import Any, Protocol

from sidelight.server import schemas
from sidelight.server.errors import ServiceError
from sidelight.server.videos import Videos


class Searches(Protocol):
    """Searches many videos, as a library does."""

    def search(self, query: str, *, top: int, min_score: float) -> Any:
        """Return a result with ``hits`` (each with ``video``, a path, and ``moment``) and ``notes``."""
        ...


def search_answer(library: Searches, videos: Videos, request: schemas.SearchRequest) -> schemas.SearchAnswer:
    """Return the hits of a search, without paths of this machine.

    Args:
        library: what is searched.
        videos: the videos that clients may see; a hit in another file has its name only.
        request: the query.

    Raises:
        ServiceError: 422 if the query cannot be searched.
    """
    try:
        result = library.search(request.query, top=request.top, min_score=request.min_score)
    except ValueError as error:
        raise ServiceError(422, "invalid_request", " ".join(str(error).split())) from None
    hits = []
    for hit in result.hits:
        video = videos.video_of_path(hit.video)
        hits.append(
            schemas.HitBody(
                video=videos.key_of(video) if video else hit.video.replace("\\", "/").rpartition("/")[2],
                id=video.id if video else None,
                start=hit.moment.start,
                end=hit.moment.end,
                score=hit.moment.score,
            )
        )
    return schemas.SearchAnswer(query=request.query, hits=hits, notes=list(result.notes))
