"""Add a benchmark: Kitchen, a made-up one.

Its files have a line for each moment, with tabs between video, duration, start, end and sentence.

    python examples/benchmark.py data check kitchen_val.tsv --benchmark kitchen
    python examples/benchmark.py train RECIPE --data.benchmark=kitchen --data.train=kitchen_train.tsv
    python examples/benchmark.py evaluate predictions.jsonl kitchen_val.tsv --benchmark kitchen
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from sidelight.cli.main import main
from sidelight.data.datasets import BENCHMARKS
from sidelight.data.datasets.base import Benchmark, Row, Split, vid_matches
from sidelight.io.files import read_text

FIELDS = ("vid", "duration", "start", "end", "query")


def read_moments(path: Path) -> Iterator[Row]:
    """Yield each line in the form of QVHighlights; a line that cannot be read has a ``problem`` instead."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        raw = dict(zip(FIELDS, line.split("\t"), strict=False))
        try:
            start, end, duration = (float(raw[name]) for name in ("start", "end", "duration"))
        except (KeyError, ValueError):
            problem = f"expected {', '.join(FIELDS)} with tabs between them, got {line[:80]!r}"
            yield Row(place=str(number), raw=raw, problem=problem)
            continue
        values = {
            "qid": f"{raw['vid']}-{number}",
            "query": raw.get("query"),
            "vid": raw["vid"],
            "duration": duration,
            "relevant_windows": [[start, end]],
        }
        yield Row(place=str(number), raw=raw, values=values)


KITCHEN = Benchmark(
    name="kitchen",
    title="Kitchen",
    task="moments",
    clip_seconds=2.0,
    unit=0.001,  # predicted starts and ends are rounded to milliseconds
    metric="moments",
    splits={split: Split(files=(f"kitchen_{split}.tsv",)) for split in ("train", "val")},
    source="an example of sidelight's documentation",
    file_words=("kitchen",),
    row_is_ours=vid_matches(r"kitchen-\d+"),
    parse=read_moments,
)

BENCHMARKS["kitchen"] = KITCHEN

if __name__ == "__main__":
    sys.exit(main())
