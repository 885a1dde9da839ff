"""TVSum (Song et al., CVPR 2015): how important 20 people found each 2 s of 50 YouTube videos, from 1 to 5.

Read from JSON lines. The released ``duration`` is the number of clips, not of seconds; the reader replaces it by
2 s times the number of rated clips, which need not be the video's length to the second. The query is the video's
title. The ten domains are trained and scored one by one, four videos against one. No window is predicted, so there
is neither rounding nor NMS. Clips of 2 s: R2-Tuning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sidelight.data.datasets.base import Benchmark, Row, Split, rated_rows

CLIP_SECONDS = 2
RATERS = 20


def parse(path: Path) -> Iterator[Row]:
    """The rows of a JSONL file, ``label`` as ratings and the duration in seconds."""
    return rated_rows(path, clip_seconds=CLIP_SECONDS)


def _ours(row: Mapping[str, Any]) -> bool:
    label = row.get("label")
    return isinstance(label, list) and all(isinstance(r, list) and len(r) == RATERS for r in label) and bool(label)


TVSUM = Benchmark(
    name="tvsum",
    title="TVSum",
    task="highlights",
    clip_seconds=float(CLIP_SECONDS),
    unit=None,
    metric="tvsum",
    splits={
        "train": Split(files=("tvsum_train.jsonl",), queries=40, videos=40),
        "val": Split(files=("tvsum_val.jsonl",), queries=10, videos=10),
    },
    domains=("BK", "BT", "DS", "FM", "GA", "MS", "PK", "PR", "VT", "VU"),
    source="Song, Vallmitjana, Stent, Jaimes: TVSum: Summarizing Web Videos Using Titles, CVPR 2015",
    file_words=("tvsum",),
    row_is_ours=_ours,
    parse=parse,
)
