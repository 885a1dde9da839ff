"""The formats of an export by name. To add one, add an entry to :data:`FORMATS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sidelight.core.grounding import Grounding
from sidelight.core.messages import did_you_mean, no_such
from sidelight.export import editors, lists
from sidelight.export.source import Cut, cuts_of, sources_of
from sidelight.io.files import write_text


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format of an export."""

    summary: str
    """What it is, in a few words."""
    suffix: str
    """Suffix of file names that choose this format; "" if only its name does."""
    answers: Callable[[Sequence[Grounding]], str] | None = None
    """Write answers as text; None for a format of cuts."""
    cuts: Callable[[Sequence[Cut], str], str] | None = None
    """Write cuts, with a title, as text; reads the video for its frame rate."""
    one_video: bool = False
    """Whether all answers must be about one video."""
    is_data: bool = False
    """Whether it is a table of answers, in which commands leave out no moment."""


def _cuts_only(write: Callable[[Sequence[Cut]], str]) -> Callable[[Sequence[Cut], str], str]:
    def written(cuts: Sequence[Cut], title: str) -> str:
        editors.require_some(cuts)
        return write(cuts)

    return written


FORMATS: dict[str, Format] = {
    "csv": Format(summary="table, a row per moment", suffix=".csv", answers=lists.as_csv, is_data=True),
    "json": Format(summary="answers with curves", suffix=".json", answers=lists.as_json, is_data=True),
    "srt": Format(
        summary="subtitles", suffix=".srt", answers=lambda answers: lists.subtitles(answers, "srt"), one_video=True
    ),
    "vtt": Format(
        summary="subtitles for the web",
        suffix=".vtt",
        answers=lambda answers: lists.subtitles(answers, "vtt"),
        one_video=True,
    ),
    "youtube": Format(summary="chapters for YouTube", suffix=".txt", answers=lists.chapters, one_video=True),
    "otio": Format(summary="OpenTimelineIO timeline", suffix=".otio", cuts=editors.otio),
    "edl": Format(summary="edit list, CMX 3600", suffix=".edl", cuts=editors.edl),
    "fcpxml": Format(summary="Final Cut Pro project", suffix=".fcpxml", cuts=editors.fcpxml),
    "xmeml": Format(summary="Premiere Pro sequence", suffix=".xml", cuts=editors.xmeml),
    "resolve": Format(
        summary="markers for DaVinci Resolve, as EDL", suffix="", cuts=editors.resolve_markers, one_video=True
    ),
    "ffconcat": Format(summary="list for FFmpeg's concat", suffix=".ffconcat", cuts=_cuts_only(lists.ffconcat)),
    "ffmpeg": Format(summary="shell script that cuts with FFmpeg", suffix=".sh", cuts=_cuts_only(lists.ffmpeg_script)),
    "losslesscut": Format(
        summary="segments for LosslessCut, as CSV", suffix="", cuts=_cuts_only(lists.losslesscut), one_video=True
    ),
}
"""Every format of ``sidelight export``, by name."""


def format_of(path: str | Path, name: str | None = None) -> str:
    """Return the name of a format: the given one, else by the suffix of the file.

    Raises:
        ValueError: if there is no such format, or the suffix belongs to none.
    """
    if name is not None:
        if name not in FORMATS:
            raise ValueError(no_such("export format", name, FORMATS))
        return name
    suffix = Path(path).suffix.lower()
    known = {form.suffix: key for key, form in FORMATS.items() if form.suffix}
    if suffix not in known:
        expected = ", ".join(known)
        raise ValueError(
            f"cannot tell the format of {path} by its suffix; expected one of {expected}, or name it with --format"
            f"{did_you_mean(suffix, known) if suffix else ''}"
        )
    return known[suffix]


def export(
    groundings: Grounding | Sequence[Grounding],
    path: str | Path,
    *,
    format: str | None = None,
    video: str | Path | None = None,
    top: int | None = None,
    padding: float = 0.0,
) -> tuple[str, ...]:
    """Write answers to a file for another program.

    Args:
        groundings: one answer, or several.
        path: the file to write; its suffix chooses the format.
        format: name of the format, a key of :data:`FORMATS`, where the suffix does not say it.
        video: the video file, for formats of cuts, where the answers do not name it.
        top: moments of each answer, best first; all unless given.
        padding: seconds that formats of cuts add before and after each moment.

    Returns:
        Sentences that matter to the result, such as a variable frame rate.

    Raises:
        ValueError: for an unknown format, if a format of cuts has no video or no moment, or if the answers are about
            several videos and the format holds one.
        VideoError: if the video cannot be read.
    """
    answers = [groundings] if isinstance(groundings, Grounding) else list(groundings)
    text, notes = as_text(
        answers, format_of(path, format), title=Path(path).stem, video=video, top=top, padding=padding
    )
    write_text(path, text)
    return notes


def as_text(
    groundings: Sequence[Grounding],
    format: str,
    *,
    title: str,
    video: str | Path | None = None,
    top: int | None = None,
    padding: float = 0.0,
) -> tuple[str, tuple[str, ...]]:
    """Return the text of an export, and sentences that matter to it; arguments and errors as :func:`export`.

    Args:
        groundings: the answers.
        format: a key of :data:`FORMATS`.
        title: name of a timeline.
        video: the video file.
        top: moments of each answer.
        padding: seconds around each moment.
    """
    form = FORMATS[format_of("", format)]
    videos = {str(video)} if video is not None else {grounding.video for grounding in groundings}
    if form.one_video and len(videos) > 1:
        raise ValueError(f"the format {format} holds one video, got {len(videos)}; export each video on its own")
    if form.answers is not None:
        kept = [grounding if top is None else grounding.best(top) for grounding in groundings]
        return form.answers(kept), ()
    pairs = sources_of(groundings, video)
    assert form.cuts is not None
    notes = tuple(dict.fromkeys(note for _, source in pairs for note in source.notes))
    return form.cuts(cuts_of(pairs, top=top, padding=padding), title), notes
