"""Write answers for other programs, with names in place of the paths of this machine."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from sidelight.core.grounding import Grounding, Moment
from sidelight.core.messages import no_such
from sidelight.core.timeline import Timeline
from sidelight.export.formats import FORMATS
from sidelight.export.source import cuts_of, read_source
from sidelight.server.errors import ServiceError
from sidelight.server.schemas import AnswerBody, ExportRequest, FormatBody
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
_SHOWN = {
    "sheet": ("contact sheet: a frame of each moment, as PNG", "moments.png", "image/png"),
    "report": ("page with frames and curves, as HTML", "moments.html", "text/html; charset=utf-8"),
}
"""Formats that show frames: summary, end of the file's name, and media type."""
_MOST_SHOWN = 200
"""Moments of a contact sheet or a report."""


@dataclass(frozen=True, kw_only=True)
class ExportedFile:
    """An export."""

    content: bytes
    name: str
    kind: str
    """Media type."""
    notes: tuple[str, ...] = ()


def text_formats() -> list[str]:
    """Return the formats that are one text."""
    return [name for name, form in FORMATS.items() if form.answers is not None or form.cuts is not None]


def format_bodies() -> list[FormatBody]:
    """Return all formats that a service writes."""
    texts = [
        FormatBody(name=name, summary=FORMATS[name].summary, one_video=FORMATS[name].one_video)
        for name in text_formats()
    ]
    return [*texts, *(FormatBody(name=name, summary=row[0], one_video=False) for name, row in _SHOWN.items())]


def export_file(request: ExportRequest, videos: Videos) -> ExportedFile:
    """Return an export.

    Args:
        request: answers and format.
        videos: the videos that the answers are about.

    Raises:
        ServiceError: if there is no such format or video, or the format cannot hold the answers.
    """
    if request.format in _SHOWN:
        return _with_frames(request, videos)
    text, name, kind, notes = export_text(request, videos)
    return ExportedFile(content=text.encode("utf-8", "replace"), name=name, kind=kind, notes=notes)


def _with_frames(request: ExportRequest, videos: Videos) -> ExportedFile:
    """Return a contact sheet or a report."""
    from sidelight.export.report import write_report
    from sidelight.export.sheet import contact_sheet

    found_videos = [videos.find(answer.video) for answer in request.answers]
    groundings = []
    for answer, video in zip(request.answers, found_videos, strict=True):
        grounding = grounding_of(answer, video, videos)
        grounding = grounding if request.top is None else grounding.best(request.top)
        groundings.append(replace(grounding, video=str(video.path)))
    count = sum(map(len, groundings))
    if count > _MOST_SHOWN:
        message = f"the format {request.format} holds {_MOST_SHOWN} moments, got {count}; send fewer, or top"
        raise ServiceError(422, "invalid_request", message)
    _, end, kind = _SHOWN[request.format]
    try:
        with tempfile.TemporaryDirectory(prefix="sidelight-export-") as folder:
            path = Path(folder, end)
            if request.format == "sheet":
                contact_sheet(groundings, path)
            else:
                write_report(groundings, path, player=False)  # the file is not beside the video
            content = path.read_bytes()
    except ValueError as error:
        raise ServiceError(422, "invalid_request", _hidden(error, found_videos, videos)) from None
    return ExportedFile(content=content, name=f"{_stem_of(found_videos[0])}-{end}", kind=kind)


def _hidden(error: ValueError, of: Iterable[Video], videos: Videos) -> str:
    message = " ".join(str(error).split())
    for video in of:
        message = videos.hide(message, video)
    return message


def _stem_of(video: Video) -> str:
    """Return the start of the name of an export."""
    return re.sub(r"[^\w.-]+", "-", PurePosixPath(video.name).stem).strip("-.") or "moments"


def export_text(request: ExportRequest, videos: Videos) -> tuple[str, str, str, tuple[str, ...]]:
    """Return the text of an export, a file name, its media type, and notes.

    Args:
        request: answers and format.
        videos: the videos that the answers are about.

    Raises:
        ServiceError: if there is no such format or video, or the format cannot hold the answers.
    """
    if request.format not in text_formats():
        names = [form.name for form in format_bodies()]
        raise ServiceError(422, "invalid_request", no_such("export format", request.format[:40], names))
    if request.format == "json" and not all(answer.saliency and answer.timeline for answer in request.answers):
        message = "the format json holds the curve too; send timeline and saliency as POST v1/ground answered them"
        raise ServiceError(422, "invalid_request", message)
    found_videos = {answer.video: videos.find(answer.video) for answer in request.answers}
    pairs = [(grounding_of(answer, found_videos[answer.video], videos), answer.video) for answer in request.answers]
    form = FORMATS[request.format]
    if form.one_video and len({video.id for video in found_videos.values()}) > 1:
        message = f"the format {request.format} holds one video; export each video on its own"
        raise ServiceError(422, "invalid_request", message)
    stem = _stem_of(next(iter(found_videos.values())))
    try:
        text, notes = _text(request, pairs, found_videos, videos, title=stem)
    except ValueError as error:
        raise ServiceError(422, "invalid_request", _hidden(error, found_videos.values(), videos)) from None
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
    names, sources = _shown_names(named), {}
    for key, video in named.items():
        source = videos.readable(video, lambda video=video: read_source(video.path))  # type: ignore[misc]
        shown_path = str(PurePosixPath(request.media_folder, names[key]))
        notes = tuple(videos.hide(note, video) for note in source.notes)
        sources[key] = replace(source, path=shown_path, notes=notes)
    cuts = cuts_of([(g, sources[key]) for g, key in pairs], top=request.top, padding=request.padding)
    return form.cuts(cuts, title), tuple(note for source in sources.values() for note in source.notes)


def _shown_names(named: dict[str, Video]) -> dict[str, str]:
    """Return the name of each video in an export: the file's, or its path below its folder where names are equal.

    Raises:
        ServiceError: 422 if the paths of two videos are equal too; a timeline would take one file for both.
    """
    names = {key: PurePosixPath(video.name).name for key, video in named.items()}
    if len(set(names.values())) < len(names):
        names = {key: video.name for key, video in named.items()}
    if len(set(names.values())) < len(names):
        message = "two videos have the same name in their folders; export them one after the other"
        raise ServiceError(422, "invalid_request", message)
    return names


def grounding_of(answer: AnswerBody, video: Video, videos: Videos) -> Grounding:
    """Return an answer of a request as a grounding of a video; without a curve, the curve is flat.

    Args:
        answer: the answer.
        video: the video that it is about.
        videos: all videos.

    Raises:
        ServiceError: 422 if a moment is not within the video.
    """
    duration = videos.facts(video).duration
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
