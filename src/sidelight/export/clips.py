"""Cut the moments of answers into video files: a file each, or one film of all of them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
from av.container import OutputContainer
from av.error import FFmpegError

from sidelight.core.grounding import Grounding
from sidelight.export.copying import CopyWriter
from sidelight.export.cutting import FilmWriter, Written, look_of
from sidelight.export.editors import one_line, require_some
from sidelight.export.source import Cut, cuts_of, sources_of
from sidelight.io.files import replacing, require_outputs, require_writable_folder
from sidelight.io.progress import Progress, reporting
from sidelight.io.storage import name_of
from sidelight.video.damage import VideoError
from sidelight.video.opening import open_video

COPIED_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm")
"""Suffixes that a copied clip keeps; others become .mkv, which holds every codec."""
FILM_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv")
"""Suffixes of a film that is encoded."""
_LONGEST_NAME = 60
"""Bytes of the video's name, and of the query, in the name of a clip."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A moment as a file."""

    path: Path
    video: str
    """The video that it was cut from."""
    query: str
    score: float
    start: float
    """Second of the video at which the clip begins: with ``copy``, at a keyframe before the moment."""
    end: float
    """Second of the video at which the clip ends."""
    frames: int
    """Number of frames; 0 for a clip of an earlier run, which is not counted again."""
    is_new: bool = True
    """Whether this call wrote the file; if not, an earlier call wrote the same clip."""
    notes: tuple[str, ...] = ()
    """Sentences that matter to the clip, such as frames that could not be read."""


def cut_clips(
    groundings: Grounding | Sequence[Grounding],
    folder: str | Path,
    *,
    video: str | Path | None = None,
    top: int | None = None,
    padding: float = 0.0,
    copy: bool = False,
    progress: Progress = False,
) -> list[Clip]:
    """Cut the moments of answers into files, one each.

    A clip is encoded again (H.264 and AAC in MP4), so it begins and ends at exactly the frames of the moment, and its
    sound at the same instants. The name of a file is made of the video's name, the query, and the seconds of the
    moment: the same moment always gets the same name.

    Args:
        groundings: one answer, or several.
        folder: where to write; made if missing.
        video: the video file, where the answers do not name it.
        top: moments of each answer, best first; all unless given.
        padding: seconds that are added before and after each moment, within the video.
        copy: copy without encoding, from the last keyframe before each moment on; quick and without loss, but clips
            begin too early. ``Clip.start`` is where.
        progress: show a bar on a terminal, or call a function with the part of the frames that has been written.

    Returns:
        The clips in the order of time, video by video.

    Raises:
        ValueError: if there is no moment, an answer names no video, or a file of that name exists and is another one.
        VideoError: if a video cannot be read.
    """
    answers = [groundings] if isinstance(groundings, Grounding) else list(groundings)
    pairs = sources_of(answers, video)
    cuts = cuts_of(pairs, top=top, padding=padding)
    require_some(cuts)
    names = {source.path: name_of(answer.video or source.path) for answer, source in pairs}
    folder = Path(folder)
    require_writable_folder(folder)
    paths = _paths(cuts, folder, names, copy=copy)
    kept = {path for path, cut in zip(paths, cuts, strict=True) if _is_kept(path, _comment(cut, copy=copy))}
    folder.mkdir(parents=True, exist_ok=True)
    clips = []
    with _frames_of(cuts, progress, "cutting") as add_frames:
        for path, cut in zip(paths, cuts, strict=True):
            if path in kept:
                written, is_new = Written(*cut.span, 0), False
                add_frames(cut.length)
            else:
                written, is_new = _write(path, [cut], add_frames, copy=copy), True
            clips.append(
                Clip(
                    path=path,
                    video=cut.source.path,
                    query=cut.query,
                    score=cut.score,
                    start=written.start,
                    end=written.end,
                    frames=written.frames,
                    is_new=is_new,
                    notes=written.notes,
                )
            )
    return clips


def join_clips(
    groundings: Grounding | Sequence[Grounding],
    path: str | Path,
    *,
    video: str | Path | None = None,
    top: int | None = None,
    padding: float = 0.0,
    copy: bool = False,
    progress: Progress = False,
) -> tuple[str, ...]:
    """Make one film of all moments of answers, in the order of time, video by video.

    Moments that overlap are shown once. Videos that differ in size are scaled into the size of the first one, with
    black bars; each frame keeps its duration.

    Args:
        groundings: one answer, or several.
        path: the film: .mp4, .mov, .m4v or .mkv; an existing film is replaced.
        video: the video file, where the answers do not name it.
        top: moments of each answer, best first; all unless given.
        padding: seconds that are added before and after each moment, within the video.
        copy: copy without encoding; only for one video.
        progress: show a bar on a terminal, or call a function with the part of the frames that has been written.

    Returns:
        Sentences that matter to the film, such as sizes that differ.

    Raises:
        ValueError: if there is no moment, an answer names no video, the film would replace a video that it is cut
            from, or the suffix is none of a film.
        VideoError: if a video cannot be read.
    """
    answers = [groundings] if isinstance(groundings, Grounding) else list(groundings)
    film_suffix(path)
    cuts = merged(cuts_of(sources_of(answers, video), top=top, padding=padding))
    require_some(cuts)
    sources = list(dict.fromkeys(cut.source.path for cut in cuts))
    require_outputs({"join": path}, sources)
    if copy and len(sources) > 1:
        raise ValueError(f"a film of {len(sources)} videos must be encoded; leave out --copy")
    with _frames_of(cuts, progress, "joining") as add_frames:
        return _write(Path(path), cuts, add_frames, copy=copy).notes


def film_suffix(path: str | Path) -> str:
    """Return the suffix of a film.

    Raises:
        ValueError: if it is none of FILM_SUFFIXES.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FILM_SUFFIXES:
        raise ValueError(f"a film must end in {', '.join(FILM_SUFFIXES)}, got {path}")
    return suffix


def merged(cuts: Sequence[Cut]) -> list[Cut]:
    """Return cuts without overlap: those of one source that share frames, or touch, become one.

    Args:
        cuts: in the order of ``cuts_of``.
    """
    result: list[Cut] = []
    for cut in cuts:
        last = result[-1] if result else None
        if last is None or last.source.path != cut.source.path or cut.start > last.end:
            result.append(cut)
            continue
        best = max(last, cut, key=lambda part: part.score)
        span = (last.span[0], max(last.span[1], cut.span[1]))
        result[-1] = replace(best, start=last.start, end=max(last.end, cut.end), span=span)
    return result


# names --------------------------------------------------------------------------------------------------------------


def _paths(cuts: Sequence[Cut], folder: Path, names: dict[str, str], *, copy: bool) -> list[Path]:
    """Return the file of each cut; no two are the same."""
    paths: list[Path] = []
    for cut in cuts:
        source = names[cut.source.path]
        suffix = Path(source).suffix.lower()
        suffix = (suffix if suffix in COPIED_SUFFIXES else ".mkv") if copy else ".mp4"
        paths.append(new_path(folder, source, cut.query, cut.span, suffix, paths))
    return paths


def new_path(
    folder: Path, video: str, query: str, span: tuple[float, float], suffix: str, paths: Sequence[Path]
) -> Path:
    """Return the file of a moment in a folder: the names of video and query, and start and end in seconds.

    Args:
        folder: the folder.
        video: name of the video.
        query: the sentence.
        span: start and end in seconds.
        suffix: of the file.
        paths: the files of other moments, of which the new one is none.
    """
    name = f"{slug(Path(video).stem) or 'video'}-{slug(query) or 'query'}-{span[0]:08.2f}-{span[1]:08.2f}"
    number, path = 1, folder / f"{name}{suffix}"
    while path in paths:
        number += 1
        path = folder / f"{name}-{number}{suffix}"
    return path


def slug(text: str) -> str:
    """Return a text as a part of a file name: letters and digits of any language, joined by hyphens, 60 bytes at most.

    Args:
        text: any text.
    """
    words = re.findall(r"\w+", unicodedata.normalize("NFC", text).replace("_", " "))
    name = "-".join(words).lower().encode()[:_LONGEST_NAME].decode(errors="ignore")
    return name.strip("-")


def _comment(cut: Cut, *, copy: bool) -> str:
    """Return what the file says of itself; two clips with the same text hold the same frames."""
    size = os.stat(cut.source.path).st_size
    way = "copied from a keyframe on" if copy else "exact"
    return (
        f"cut by sidelight from {cut.source.name} ({size} bytes): frames {cut.start} to {cut.end}, "
        f"{cut.span[0]:.3f} to {cut.span[1]:.3f} s, {way}"
    )


def _is_kept(path: Path, comment: str) -> bool:
    """Check whether a file holds a clip already.

    Raises:
        ValueError: if it is another file.
    """
    if not os.path.lexists(path):
        return False
    with suppress(VideoError):
        container, _ = open_video(str(path))
        with container:
            texts = {key.lower(): text for key, text in container.metadata.items()}
            if texts.get("comment") == comment:
                return True
    raise ValueError(f"{path} exists and is not the clip to write; give another folder, or remove the file")


# writing ------------------------------------------------------------------------------------------------------------


def _frames_of(cuts: Sequence[Cut], progress: Progress, what: str) -> AbstractContextManager[Callable[[int], object]]:
    """Return a context whose value takes the number of frames that were written."""
    return reporting(progress, total=sum(cut.length for cut in cuts), what=what, unit="frame")


def _write(path: Path, cuts: Sequence[Cut], add_frames: Callable[[int], object], *, copy: bool) -> Written:
    """Write cuts into one file; return the start of the first, the end of the last, all frames and notes."""
    look, notes = (None, ()) if copy else look_of(cuts)
    tags = {"title": "; ".join(dict.fromkeys(one_line(cut.query) for cut in cuts))[:500]}
    if len(cuts) == 1:
        tags["comment"] = _comment(cuts[0], copy=copy)
        tags["description"] = f"score {cuts[0].score:.4f}" + (f" by {cuts[0].model}" if cuts[0].model else "")
    parts = []
    with replacing(path) as beside, _explained(path):
        container = _opened(beside, tags)
        with container:
            writer = CopyWriter(container, add_frames) if look is None else FilmWriter(container, look, add_frames)
            parts = [writer.add(cut) for cut in cuts]
            writer.close()
    notes += tuple(note for part in parts for note in part.notes)
    return Written(parts[0].start, parts[-1].end, sum(part.frames for part in parts), tuple(dict.fromkeys(notes)))


def _opened(path: Path, tags: dict[str, str]) -> OutputContainer:
    kind = {".mkv": "matroska", ".webm": "webm", ".mov": "mov"}.get(path.suffix.lower(), "mp4")
    options = {"movflags": "+faststart"} if kind in ("mp4", "mov") else {}
    container: Any = av.open(str(path), "w", format=kind, options=options)
    container.metadata.update(tags)
    opened: OutputContainer = container
    return opened


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn an error of FFmpeg's writers into one sentence."""
    try:
        yield
    except VideoError:
        raise
    except FFmpegError as error:
        if isinstance(error, OSError):  # a full disk, for example
            raise OSError(error.errno, error.strerror, str(path)) from None
        reason = error.strerror or "unknown reason"
        raise VideoError(f"{path} cannot be written ({reason}); for a copied clip, leave out --copy") from None
