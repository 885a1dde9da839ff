"""Write answers for other programs, with names in place of the paths of this machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from sidelight.core.grounding import Grounding, Moment
from sidelight.core.messages import no_such
from sidelight.core.timeline import Timeline
from sidelight.export.formats import FORMATS
from sidelight.export.source import cuts_of, read_source
from sidelight.server.errors import ServiceError
from sidelight.server.schemas import AnswerBody, ExportRequest
from sidelight.server.videos import Video, Videos

_MEDIA_TYPES = {
    ".csv": "text/csv",
    ".json": "application/json",
    ".vtt": "text/vtt",
    ".xml": "application/xml",
    ".fcpxml": "application/xml",
    ".otio": "application/json",
}
_SUFFIXES = {"resolve": ".edl", "losslesscut": ".csv"}
"""Suffixes of the formats that no suffix chooses."""


def format_names() -> list[str]:
    """Return the formats that a service writes: those that are one text."""
    return [name for name, form in FORMATS.items() if form.answers is not None or form.cuts is not None]


def export_text(request: ExportRequest, videos: Videos) -> tuple[str, str, str, tuple[str, ...]]:
    """Return the text of an export, a file name, its media type, and notes.

    Args:
        request: answers and format.
        videos: the videos that the answers are about.

    Raises:
        ServiceError: if there is no such format or video, or the format cannot hold the answers.
    """
    if request.format not in format_names():
        raise ServiceError(422, "invalid_request", no_such("export format", request.format[:40], format_names()))
    found_videos = {answer.video: videos.find(answer.video) for answer in request.answers}
    pairs = [
        (_grounding(answer, found_videos[answer.video], videos, request), answer.video) for answer in request.answers
    ]
    form = FORMATS[request.format]
    if form.one_video and len({video.id for video in found_videos.values()}) > 1:
        message = f"the format {request.format} holds one video; export each video on its own"
        raise ServiceError(422, "invalid_request", message)
    stem = re.sub(r"[^\w.-]+", "-", PurePosixPath(next(iter(found_videos.values())).name).stem).strip("-.") or "moments"
    try:
        text, notes = _text(request, pairs, found_videos, videos, title=stem)
    except ValueError as error:
        message = " ".join(str(error).split())
        for video in found_videos.values():
            message = videos.hide(message, video)
        raise ServiceError(422, "invalid_request", message) from None
    suffix = _SUFFIXES.get(request.format, form.suffix)
    return text, f"{stem}{suffix}", _MEDIA_TYPES.get(suffix, "text/plain"), notes


def _text(
    request: ExportRequest,
    pairs: Sequence[tuple[Grounding, str]],
    named: dict[str, Video],
    videos: Videos,
    *,
    title: str,
) -> tuple[str, tuple[str, ...]]:
    form = FORMATS[request.format]
    if form.answers is not None:
        return form.answers([g if request.top is None else g.best(request.top) for g, _ in pairs]), ()
    assert form.cuts is not None
    sources = {}
    for key, video in named.items():
        source = videos.readable(video, lambda video=video: read_source(video.path))  # type: ignore[misc]
        shown_path = str(PurePosixPath(request.media_folder, PurePosixPath(video.name).name))
        notes = tuple(videos.hide(note, video) for note in source.notes)
        sources[key] = replace(source, path=shown_path, notes=notes)
    cuts = cuts_of([(g, sources[key]) for g, key in pairs], top=request.top, padding=request.padding)
    return form.cuts(cuts, title), tuple(note for source in sources.values() for note in source.notes)


def _grounding(answer: AnswerBody, video: Video, videos: Videos, request: ExportRequest) -> Grounding:
    """Return an answer as a grounding of a video.

    Raises:
        ServiceError: 422 if a moment is not within the video, or the format needs the curve and there is none.
    """
    duration = videos.facts(video).duration
    if request.format == "json" and (answer.saliency is None or answer.timeline is None):
        message = "the format json holds the curve too; send timeline and saliency as POST v1/ground answered them"
        raise ServiceError(422, "invalid_request", message)
    try:
        if answer.timeline is not None and answer.saliency is not None:
            timeline, saliency = Timeline(**answer.timeline.model_dump()), answer.saliency
        else:
            timeline, saliency = Timeline(duration=duration, clip_seconds=duration), [0.0]
        longest = min(timeline.duration, duration + 1)
        for moment in answer.moments:
            if not moment.start <= moment.end <= longest:
                message = (
                    f"a moment needs 0 <= start <= end <= {longest:.2f} s, got {moment.start:g} and {moment.end:g}"
                )
                raise ServiceError(422, "invalid_request", message)
        return Grounding(
            query=answer.query,
            timeline=timeline,
            moments=tuple(Moment(moment.start, moment.end, moment.score) for moment in answer.moments),
            saliency=saliency,  # type: ignore[arg-type]
            video=videos.key_of(video),
            notes=tuple(answer.notes),
            model=answer.model,
            features=answer.features,
        )
    except ValueError as error:
        raise ServiceError(422, "invalid_request", " ".join(str(error).split())[:500]) from None
