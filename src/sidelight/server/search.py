"""Search many videos, by an object that has a library's methods."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from sidelight.core.display import clock
from sidelight.server import schemas
from sidelight.server.errors import ServiceError, without_paths
from sidelight.server.videos import Video, Videos

_MOST_PIXELS = 50_000_000
"""Of an image; a small file can hold an image that fills the memory."""


class Searches(Protocol):
    """Searches many videos, as a library does.

    Each method returns a result with ``hits`` (each with ``video``, a path; ``moment``; and ``relevance``),
    ``groundings`` (one for each video with a hit), ``is_calibrated``, ``best_left_out`` and ``notes``.
    """

    def search(self, query: str, *, top: int, min_score: float, min_relevance: float | None) -> Any:
        """Return the moments in which a sentence is true."""
        ...

    def search_like(self, video: Path, start: float, end: float, *, top: int, min_score: float) -> Any:
        """Return moments that look like a moment of a video."""
        ...

    def search_image(self, image: Path, *, top: int, min_score: float) -> Any:
        """Return moments that look like an image."""
        ...


def search_answer(library: Searches, videos: Videos, request: schemas.SearchRequest) -> schemas.SearchAnswer:
    """Return the hits of a search, without paths of this machine.

    Args:
        library: what is searched.
        videos: the videos that clients may see; a hit in another file has its name only, and no answer.
        request: the query.

    Raises:
        ServiceError: 422 if the query cannot be searched.
    """
    like, limits = request.like, {"top": request.top, "min_score": request.min_score}
    if like is None:
        query, least = request.query or "", request.min_relevance

        def search_sentence() -> Any:
            return library.search(query, min_relevance=least, **limits)  # type: ignore[arg-type]

        return _answer(search_sentence, videos, query, answers=request.answers)
    video = videos.find(like.video)
    name = f"like {videos.key_of(video)}, {clock(like.start)} to {clock(like.end)}"

    def search() -> Any:
        return videos.readable(video, lambda: library.search_like(video.path, like.start, like.end, **limits))  # type: ignore[arg-type]

    return _answer(search, videos, name, video, answers=request.answers)


def image_answer(
    library: Searches, videos: Videos, content: bytes, name: str, *, top: int, min_score: float
) -> schemas.SearchAnswer:
    """Return the hits that look like an image; arguments and errors as :func:`search_answer`.

    Args:
        library: what is searched.
        videos: the videos that clients may see.
        content: the image file.
        name: its name.
        top: most hits.
        min_score: lowest score of a hit.
    """
    from sidelight.video.damage import VideoError
    from sidelight.video.opening import open_image

    with tempfile.TemporaryDirectory(prefix="sidelight-image-") as folder:
        path = Path(folder, "image")
        path.write_bytes(content)
        try:
            container, stream = open_image(str(path))
            with container:
                pixels = stream.width * stream.height
            if pixels > _MOST_PIXELS:
                message = f"{name} has {pixels:,} pixels; the limit is {_MOST_PIXELS:,}, so make it smaller"
                raise ServiceError(422, "invalid_upload", message)
            result = library.search_image(path, top=top, min_score=min_score)
        except VideoError as error:
            message = str(error).replace(str(path), name).replace(", or name a moment of a video (FILE@START-END)", "")
            raise ServiceError(422, "unreadable_image", message) from None
    return _answer(lambda: result, videos, f"like {name}", answers=True)


def _answer(
    search: Callable[[], Any], videos: Videos, name: str, like_video: Video | None = None, *, answers: bool
) -> schemas.SearchAnswer:
    """Run a search and return its answer.

    Args:
        search: runs it.
        videos: the videos that clients may see.
        name: the query, as clients see it.
        like_video: the video of the moment that is searched.
        answers: whether to return the groundings.
    """
    try:
        result = search()
    except ValueError as error:
        message = videos.hide(str(error), like_video) if like_video else str(error)
        raise ServiceError(422, "invalid_request", without_paths(message)) from None
    by_path = videos.by_path()
    hits = []
    for hit in result.hits:
        video = by_path.get(Path(hit.video).resolve())
        hits.append(
            schemas.HitBody(
                video=videos.key_of(video) if video else hit.video.replace("\\", "/").rpartition("/")[2],
                id=video.id if video else None,
                start=hit.moment.start,
                end=hit.moment.end,
                score=hit.moment.score,
                relevance=hit.relevance,
            )
        )
    shown = None
    if answers:
        pairs = [(grounding, by_path.get(Path(grounding.video).resolve())) for grounding in result.groundings]
        shown = [
            replace(
                grounding,
                query=name,
                video=videos.key_of(video),
                model=videos.model,
                notes=tuple(videos.hide(note, video) for note in grounding.notes),
            ).to_dict()
            for grounding, video in pairs
            if video is not None
        ]
    return schemas.SearchAnswer(
        query=name,
        hits=hits,
        calibrated=result.is_calibrated,
        best_left_out=result.best_left_out,
        notes=[without_paths(note) for note in result.notes],
        answers=shown,
    )
