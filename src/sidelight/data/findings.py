"""Kinds of faults that a check of data finds, the findings of a check, and its report.

Faults of annotations and videos are found in ``data/check.py``, faults of features in ``features/check.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
OWN_DATA = "own data"
"""The name of no benchmark: annotations in the QVHighlights form."""
EXAMPLES = 3
"""Examples in each finding."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault."""

    severity: Severity
    """error: the data cannot be used as they are; warning: they can, but probably differ from what was meant; note:
    good to know.
    """
    says: str
    """The fault in a few words."""
    advice: str
    """What sidelight does with the data, or what the user should do."""


KINDS: dict[str, Kind] = {
    # rows
    "unreadable-file": Kind("error", "unreadable file", "correct the file, or download it again"),
    "unreadable-row": Kind("error", "unreadable rows", "readers stop here; correct them, or read with lenient=True"),
    "missing-field": Kind("error", "missing fields", "readers stop here; add the field"),
    "bad-field": Kind("error", "fields of a wrong form", "readers stop here; correct them"),
    "duplicate-qid": Kind("error", "one qid in several rows", "readers stop here; give each row its own qid"),
    "duplicate-row": Kind(
        "warning", "repeated rows", "all are kept: each row counts in training and in scores, as in published numbers"
    ),
    "duplicate-query": Kind(
        "note",
        "sentences repeated for the same video, with other labels",
        "each row is a query of its own, but one answer can hardly be right for all of them",
    ),
    "query-spaces": Kind(
        "note", "surplus spaces in sentences", "kept as published; features are stored under the exact sentence"
    ),
    "query-control": Kind("warning", "control characters in sentences", "kept as published; a tokenizer may fail"),
    "no-labels": Kind(
        "note", "rows with neither windows nor ratings", "can be predicted, but not trained on or scored"
    ),
    # windows
    "window-beyond": Kind("error", "windows that start after the video", "readers stop here; correct the window"),
    "window-ends-far": Kind(
        "error",
        "windows that end more than a clip after the video",
        "training refuses them; correct the window or the duration",
    ),
    "window-ends-late": Kind(
        "warning",
        "windows that end after the video, by at most a clip",
        "training cuts them at the end of the video, scores use them unchanged",
    ),
    "window-swapped": Kind("error", "windows that end before they start", "readers stop here; swap start and end"),
    "window-empty": Kind("error", "windows without length", "readers stop here; correct or remove them"),
    "window-negative": Kind("error", "windows that start before 0", "readers stop here; correct them"),
    "window-overlap": Kind("warning", "queries with windows that overlap", "each window counts as a moment of its own"),
    "window-unsorted": Kind("note", "queries with windows that are not in order", "kept in this order"),
    # ratings
    "clip-far": Kind("error", "rated clips beyond the video", "training refuses them; correct relevant_clip_ids"),
    "clip-late": Kind("warning", "one rated clip beyond the video", "training ignores the ratings of this clip"),
    "clip-twice": Kind("error", "clips rated twice", "readers stop here; correct them"),
    "rating-count": Kind(
        "error",
        "saliency_scores and relevant_clip_ids of different lengths",
        "readers stop here; give one list of ratings per clip",
    ),
    "raters-differ": Kind(
        "error", "clips with different numbers of raters", "readers stop here; give one rating per rater"
    ),
    "clip-rated-0": Kind(
        "note",
        "relevant clips that every rater gave 0",
        "training gives them a saliency of 0.1, and never draws them as the positive clip",
    ),
    "clip-frames": Kind(
        "warning",
        "videos whose last clip ends after the last frame",
        "nothing in sidelight depends on it; cut clips at the last frame",
    ),
    # durations
    "duration-name": Kind(
        "note",
        "videos shorter or longer than their name says",
        "sidelight uses the field duration; compare it with the video file",
    ),
    "duration-clips": Kind(
        "note",
        "rows whose duration is the number of clips, not of seconds",
        "the reader of TVSum uses 2 s times the rated clips; other readers get wrong seconds",
    ),
    "duration-differs": Kind(
        "warning", "videos with several durations", "each row is read with its own duration; correct them"
    ),
    # files against each other and against what was published
    "shared-video": Kind("warning", "videos in two splits", "scores on them are too high; separate the splits"),
    "count-differs": Kind("note", "numbers that differ from the published ones", "scores are not quite comparable"),
    # videos and features
    "missing-video": Kind(
        "error", "videos without a file", "extraction fails for them; expected VID.mp4 or another suffix"
    ),
    "video-twice": Kind(
        "error", "videos with two files", "training and prediction stop here; remove or rename one of the files"
    ),
    "ignored-files": Kind("note", "files beside the videos that are ignored", "no video is read from them"),
    "unreadable-video": Kind(
        "error", "video files that cannot be read", "extraction fails for them; repair or replace the files"
    ),
    "video-length": Kind(
        "error",
        "videos much shorter or longer than their annotated duration",
        "predict refuses them, because the file is probably another video; compare vid, duration and file",
    ),
    "surplus-video": Kind("note", "video files without annotations", "they are not used"),
    "missing-features": Kind(
        "error", "videos without features", "run `sidelight extract`; it continues where it stopped"
    ),
    "missing-query-features": Kind(
        "error",
        "sentences without features",
        "run `sidelight extract` with these annotations; the sentence must match exactly",
    ),
    "surplus-features": Kind("note", "features without annotations", "they are not used"),
    "features-length": Kind(
        "error",
        "features longer or shorter than the video by more than a clip",
        "windows would point to other clips; compare vid, duration and clip length, then extract again",
    ),
    "features-unreadable": Kind("error", "features that cannot be read", "delete the file and extract again"),
    "features-layout": Kind("note", "features in the layout of a paper", "train, predict and features import read it"),
    "features-shape": Kind(
        "error",
        "features of other levels, tokens or width than most",
        "readers stop here; download or write them again",
    ),
    "features-values": Kind(
        "error",
        "features with values that are not finite, or too large for float16",
        "training would fail; download or write them again",
    ),
    "features-few": Kind(
        "note",
        "features up to 4 clips longer or shorter than their video",
        "surplus clips are cut; where clips are missing, moments may still end at the annotated duration",
    ),
    "features-spec": Kind(
        "error",
        "stores of different feature specs",
        "a model takes features of one spec only; extract all with the same backbone and options",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The faults of one kind in one file, store or folder."""

    kind: str
    """Its key in KINDS."""
    file: str
    """Path of a file of annotations, a folder of videos or a store."""
    rows: int
    """Number of rows; of clips, videos or sentences where the kind is about these."""
    examples: tuple[str, ...]
    """The first few faults: place, qid, and value."""

    @property
    def severity(self) -> Severity:
        """Return error, warning or note."""
        return KINDS[self.kind].severity

    @property
    def says(self) -> str:
        """Return the fault in a few words."""
        return KINDS[self.kind].says

    @property
    def advice(self) -> str:
        """Return what sidelight does with the data, or what the user should do."""
        return KINDS[self.kind].advice

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        texts = {"severity": self.severity, "says": self.says, "advice": self.advice}
        return {**asdict(self), "examples": list(self.examples), **texts}


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """The contents of one file of annotations, in numbers."""

    file: str
    """Its path."""
    benchmark: str
    """The name of its benchmark, or "own data"."""
    split: str | None
    """The split in the file's name; None if the name has none."""
    rows: int
    """All rows, including rows that readers refuse."""
    usable: int
    """Rows that readers accept."""
    videos: int
    """Different videos of the usable rows."""
    windows: int
    """Windows of the usable rows."""
    hours: float
    """Length of these videos, each counted once."""
    rated_clips: int
    """Clips with ratings, of the usable rows."""
    published_queries: int | None
    """Number of queries in the benchmark's paper or release."""
    published_videos: int | None
    """Number of videos in the benchmark's paper or release."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of a check."""

    files: tuple[FileReport, ...]
    """The files of annotations, in the order of their names."""
    findings: tuple[Finding, ...]
    """Errors first."""
    skipped: tuple[str, ...] = ()
    """Files without annotations, which were not checked."""
    features: tuple[str, ...] = ()
    """A line for the feature stores that were compared: how many videos and sentences have features."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Return the findings that make the data unusable."""
        return tuple(f for f in self.findings if f.severity == "error")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "files": [asdict(f) for f in self.files],
            "findings": [f.to_dict() for f in self.findings],
            "skipped": list(self.skipped),
            "features": list(self.features),
        }


def findings_of(faults: Mapping[str, Sequence[str]], file: str | Path) -> list[Finding]:
    """Return a finding for each kind that has faults.

    Args:
        faults: kind -> a line for each fault.
        file: the file, store or folder with the faults.
    """
    return [
        Finding(kind=kind, file=str(file), rows=len(lines), examples=tuple(lines[:EXAMPLES]))
        for kind, lines in faults.items()
        if lines
    ]
