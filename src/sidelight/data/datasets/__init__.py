"""The benchmarks of the field: how their released files are read, and how they are scored.

from sidelight.data.datasets import benchmark

rows = benchmark("charades-sta").read("data/charades-sta", "test")
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from sidelight.data.annotations import CLIP_SECONDS, AnnotationError
from sidelight.data.datasets.activitynet import ACTIVITYNET
from sidelight.data.datasets.base import Benchmark, json_lines
from sidelight.data.datasets.charades_sta import CHARADES_STA
from sidelight.data.datasets.ego4d_nlq import EGO4D_NLQ
from sidelight.data.datasets.qvhighlights import QVHIGHLIGHTS
from sidelight.data.datasets.tacos import TACOS
from sidelight.data.datasets.tvsum import TVSUM
from sidelight.data.datasets.youtube_highlights import YOUTUBE_HIGHLIGHTS

__all__ = ["BENCHMARKS", "Benchmark", "benchmark", "recognise"]

BENCHMARKS: dict[str, Benchmark] = {
    "qvhighlights": QVHIGHLIGHTS,
    "charades-sta": CHARADES_STA,
    "tacos": TACOS,
    "activitynet-captions": ACTIVITYNET,
    "ego4d-nlq": EGO4D_NLQ,
    "youtube-highlights": YOUTUBE_HIGHLIGHTS,
    "tvsum": TVSUM,
}

_LOOK_AT = 20  # rows, to know a file by its content


def benchmark(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        AnnotationError: if there is none; names those there are.
    """
    if name not in BENCHMARKS:
        raise AnnotationError(f"there is no benchmark {name!r}; known are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def recognise(path: str | Path) -> Benchmark | None:
    """The benchmark whose file this is: by its name, else by its first rows; none if neither tells.

    JSON documents are known by their content, because train.json is a name that anybody may use; by their name only
    if they are damaged.

    Raises:
        OSError: if the file cannot be read.
    """
    path = Path(path)
    name = path.name.lower()
    if path.suffix == ".json":
        try:
            return _of_document(json.loads(path.read_bytes()))
        except (ValueError, RecursionError):
            return next((b for b in BENCHMARKS.values() for s in b.splits.values() if name in s.files), None)
    if path.suffix == ".txt":
        with path.open("rb") as file:
            return CHARADES_STA if b"##" in file.readline(10_000) else None
    for its in BENCHMARKS.values():
        if name.startswith(its.file_words):
            return its
    readable = (row.raw for row in json_lines(path) if not row.problem)
    rows = list(itertools.islice(readable, _LOOK_AT))
    if any(CLIP_SECONDS in row for row in rows):
        return None  # an imported table says how long its clips are, a benchmark's file never does
    return next((b for b in BENCHMARKS.values() if rows and all(map(b.row_is_ours, rows))), None)


def _of_document(values: object) -> Benchmark | None:
    if not isinstance(values, dict):
        return None
    if isinstance(values.get("videos"), list):
        clips = [c for v in values["videos"] if isinstance(v, dict) for c in v.get("clips") or ()]
        return EGO4D_NLQ if any(isinstance(c, dict) and "clip_uid" in c for c in clips) else None
    first = next(iter(values.values()), None)
    return ACTIVITYNET if isinstance(first, dict) and {"timestamps", "sentences"} <= first.keys() else None
