"""TVSum (Song et al., CVPR 2015): the importance of each 2 s of 50 YouTube videos, rated from 1 to 5 by 20 people.

Read from JSON lines. The released ``duration`` is the number of clips, not of seconds. The reader replaces it by 2 s
times the number of rated clips, which may differ a little from the length of the video. The query is the title of the
video. The ten domains are trained and scored one by one, with four videos for training and one for validation. No
windows are predicted, so there is neither rounding nor NMS. Clips of 2 s: R2-Tuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from sidelight.data.datasets.base import Benchmark, Split, rated_rows

CLIP_SECONDS = 2
RATERS = 20


def _is_ours(row: Mapping[str, Any]) -> bool:
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
    row_is_ours=_is_ours,
    parse=partial(rated_rows, clip_seconds=CLIP_SECONDS),
)
