"""The benchmarks of the field: how their released files are read, and how they are scored.

from sidelight.data.datasets import benchmark

rows = benchmark("charades-sta").read("data/charades-sta", "test")
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from sidelight.core.messages import no_such
from sidelight.data.annotations import CLIP_SECONDS, AnnotationError
from sidelight.data.datasets.activitynet import ACTIVITYNET
from sidelight.data.datasets.base import Benchmark, json_lines
from sidelight.data.datasets.charades_sta import CHARADES_STA
from sidelight.data.datasets.ego4d_nlq import EGO4D_NLQ
from sidelight.data.datasets.qvhighlights import QVHIGHLIGHTS
from sidelight.data.datasets.tacos import TACOS
from sidelight.data.datasets.tvsum import TVSUM
from sidelight.data.datasets.youtube_highlights import YOUTUBE_HIGHLIGHTS
from sidelight.io.files import utf8_lines

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

_FIRST_ROWS = 20  # are enough to recognise a file


def benchmark(name: str) -> Benchmark:
    """Return the benchmark of that name.

    Raises:
        AnnotationError: if there is none; lists the known names.
    """
    if name not in BENCHMARKS:
        raise AnnotationError(no_such("benchmark", name, BENCHMARKS))
    return BENCHMARKS[name]


def recognise(path: str | Path) -> Benchmark | None:
    """Return the benchmark whose file this is, by the name of the file, else by its first rows; None if unknown.

    JSON documents are recognised by their content, because anybody may use a name such as train.json. The name counts
    only if the document is damaged.

    Raises:
        OSError: if the file cannot be read.
    """
    path = Path(path)
    name = path.name.lower()
    if path.suffix == ".json":
        try:
            document = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return next((b for b in BENCHMARKS.values() for s in b.splits.values() if name in s.files), None)
        return next(
            (b for b in BENCHMARKS.values() if isinstance(document, dict) and b.document_is_ours(document)), None
        )
    if path.suffix == ".txt":
        first_line = next(utf8_lines(path), b"")[:10_000]
        return next((b for b in BENCHMARKS.values() if b.text_is_ours(first_line)), None)
    for known in BENCHMARKS.values():
        if name.startswith(known.file_words):
            return known
    readable = (row.raw for row in json_lines(path) if not row.problem)
    rows = list(itertools.islice(readable, _FIRST_ROWS))
    if not rows or any(CLIP_SECONDS in row for row in rows):
        return None  # an imported table says how long its clips are, the file of a benchmark never does
    return next((b for b in BENCHMARKS.values() if all(map(b.row_is_ours, rows))), None)
