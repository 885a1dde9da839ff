"""What a library answers: hits, filters, and reports about its videos."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from sidelight.core.display import NO_MOMENT, clock
from sidelight.core.grounding import Grounding, Moment
from sidelight.library.places import absolute, is_within
from sidelight.library.tables import VideoRow

FORMAT = "sidelight.search/1"


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A moment of one video of a library."""

    video: str
    """The file."""
    moment: Moment
    """Start, end, and the score that the model gives within this video; ``min_score`` is compared with it."""
    relevance: float
    """Value in [0, 1] by which the hits of all videos are ordered. In a calibrated library, the probability that the
    hit is right; else (1 + cosine of the query and the nearest clip of the video) / 2, times the moment's share of the
    best score in its video.
    """

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        span = {"start": self.moment.start, "end": self.moment.end}
        return {"video": self.video, **span, "relevance": self.relevance, "score": self.moment.score}


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The answer of a library: a sequence of hits, best first; false if no moment fits the query."""

    query: str
    """The sentence; or the name of the image or the moment that was searched."""
    hits: tuple[Hit, ...]
    """Best first."""
    groundings: tuple[Grounding, ...]
    """One for each video with a hit, in the order of the best hits; each has the moments of the hits only."""
    notes: tuple[str, ...] = ()
    """Sentences that matter to the whole answer, such as words that the model never saw."""
    is_calibrated: bool = False
    """Whether the relevance of hits is a probability."""
    best_left_out: float | None = None
    """The highest relevance that a hit would have had, if all were left out for it; None otherwise."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `sidelight export` reads them."""
        return {
            "format": FORMAT,
            "query": self.query,
            "calibrated": self.is_calibrated,
            "hits": [hit.to_dict() for hit in self.hits],
            "notes": list(self.notes),
            "groundings": [grounding.to_dict() for grounding in self.groundings],
        }

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self, *, folder: str | Path | None = None) -> str:
        """Return a table with a row for each hit, best first; or "no such moment".

        Args:
            folder: videos below it are shown by their path in it.
        """
        if not self:
            return NO_MOMENT
        rows = [f"{'start':>8}{'end':>9}{'relevance':>11}{'score':>7}  video"]
        for hit in self:
            moment, video = hit.moment, hit.video
            if folder is not None and is_within(video, absolute(folder)):
                video = os.path.relpath(video, absolute(folder))
            times = f"{clock(moment.start):>8}{clock(moment.end):>9}"
            rows.append(f"{times}{hit.relevance:>11.2f}{moment.score:>7.2f}  {video}")
        return "\n".join(rows)

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __getitem__(self, index: int) -> Hit:
        return self.hits[index]


@dataclass(frozen=True, kw_only=True)
class Where:
    """Which videos of a library a search reads.

    Raises:
        ValueError: if a limit is below 0, or a first limit is above the last one.
    """

    folder: str | Path | None = None
    """Videos in this folder, or in a folder below it."""
    since: date | None = None
    """Files that were changed on this day or later."""
    until: date | None = None
    """Files that were changed on this day or earlier."""
    min_seconds: float | None = None
    """Shortest video, in seconds."""
    max_seconds: float | None = None
    """Longest video, in seconds."""

    def __post_init__(self) -> None:
        low, high = self.min_seconds, self.max_seconds
        for name, value in (("min_seconds", low), ("max_seconds", high)):
            if value is not None and not value >= 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_seconds must be at most max_seconds, got {low:g} and {high:g}")
        if self.since is not None and self.until is not None and self.since > self.until:
            raise ValueError(f"since must be before until, got {self.since} and {self.until}")

    def is_inside(self, row: VideoRow) -> bool:
        """Check whether a video lies in the folder, or in a folder below it."""
        return self.folder is None or is_within(row.path, absolute(self.folder))

    def allows(self, row: VideoRow) -> bool:
        """Check whether a search reads a video."""
        if not self.is_inside(row):
            return False
        if self.min_seconds is not None and row.duration < self.min_seconds:
            return False
        if self.max_seconds is not None and row.duration > self.max_seconds:
            return False
        changed = date.fromtimestamp(row.modified / 1e9)  # the day in this machine's time zone
        if self.since is not None and changed < self.since:
            return False
        return self.until is None or changed <= self.until


@dataclass(kw_only=True)
class Changes:
    """What a call changed in a library; lists of files."""

    added: list[str] = field(default_factory=list)
    """New files."""
    changed: list[str] = field(default_factory=list)
    """Files whose content is another one now."""
    moved: list[str] = field(default_factory=list)
    """Files that have a new path; their features stay."""
    removed: list[str] = field(default_factory=list)
    """Files that are no longer in the library."""
    unchanged: list[str] = field(default_factory=list)
    """Files that were in the library already."""
    out_of_reach: list[str] = field(default_factory=list)
    """Files whose folder is missing or empty, such as that of a drive; they stay in the library."""
    failed: dict[str, str] = field(default_factory=dict)
    """File -> the reason why it could not be read."""
    problems: list[str] = field(default_factory=list)
    """Sentences about folders, patterns and lists in which there are no videos any more."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """Facts about a library."""

    model: str
    """The model that answers."""
    files: int
    """Number of files."""
    videos: int
    """Number of different contents; copies count once."""
    clips: int
    """Number of clips."""
    seconds: float
    """Length of all videos."""
    bytes: int
    """Size of the library on the disk."""
    indexed: bool
    """Whether there is an index of the embeddings."""
    sources: tuple[str, ...]
    """Folders, files, patterns and lists in which an update looks for videos."""
    missing: tuple[str, ...]
    """Files that are not where they were."""
    failed: Mapping[str, str]
    """File -> the reason why it could not be read."""
