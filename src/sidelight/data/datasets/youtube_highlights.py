"""YouTube Highlights (Sun et al., ECCV 2014): which clips of a video show its domain's activity well.

Read from JSON lines. A clip here is about 100 pictures long and begins about 50 after the one before, so clips
overlap and their seconds differ with a video's rate: clip i is pictures ``extra["clip"][i]`` at ``extra["fps"]`` a
second, and ``clip_seconds`` of the benchmark is none. All clips are listed, each with one rating: 1 if its ``match``
is 1, else 0. The query is the domain, whose models are trained and scored one by one. No window is predicted, so
there is neither rounding nor NMS. The releases differ in the videos that could still be had, so no count is published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sidelight.data.datasets.base import Benchmark, Row, Split, rated_rows


def parse(path: Path) -> Iterator[Row]:
    """The rows of a JSONL file, ``label`` as ratings."""
    return rated_rows(path, clip_seconds=None)


def _ours(row: Mapping[str, Any]) -> bool:
    return "label" in row and "match" in row and "clip" in row


YOUTUBE_HIGHLIGHTS = Benchmark(
    name="youtube-highlights",
    title="YouTube Highlights",
    task="highlights",
    clip_seconds=None,
    unit=None,
    metric="youtube-highlights",
    splits={"train": Split(files=("youtube_train.jsonl",)), "val": Split(files=("youtube_val.jsonl",))},
    domains=("dog", "gymnastics", "parkour", "skating", "skiing", "surfing"),
    source="Sun, Farhadi, Seitz: Ranking Domain-Specific Highlights by Analyzing Edited Videos, ECCV 2014",
    file_words=("youtube_train", "youtube_val", "youtube-highlights", "youtube_highlights"),
    row_is_ours=_ours,
    parse=parse,
)
