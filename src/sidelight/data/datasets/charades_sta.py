"""Charades-STA (Gao et al., ICCV 2017): moments in videos of people at home, about 30 s long.

Two forms are read: JSON lines, and the original text file, a line ``VIDEO START END##SENTENCE`` each. The original
has no durations; they are the column ``length`` of Charades_v1_train.csv or Charades_v1_test.csv, which must lie
beside it. Its rows have no qid either: they get the name of the file's split and their line, ``test_12``.

Rounding to 0.1 s and 'linear' soft-NMS, which knows no threshold: R2-Tuning (ECCV 2024). Clips and M: SDST (Tab. A).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sidelight.data.annotations import AnnotationError
from sidelight.data.datasets.base import Benchmark, Nms, Row, Split, json_lines

_LINE = re.compile(r"(\S+) +(\S+) +(\S+?)##(.*)")
_VIDEO = re.compile(r"[A-Z0-9]{5}")


def parse(path: Path) -> Iterator[Row]:
    """The rows of a JSONL file or of the original text file.

    Raises:
        AnnotationError: if the table of durations is missing or is another one.
    """
    return _original(path) if path.suffix == ".txt" else json_lines(path)


def _original(path: Path) -> Iterator[Row]:
    split = "train" if "train" in path.stem else "test"
    seconds = _durations(path, split)
    for number, content in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        place = str(number)
        try:
            line = content.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError:
            yield Row(place=place, problem="this line is not text in UTF-8")
            continue
        if not line.strip():
            continue
        found = _LINE.fullmatch(line)
        if not found:
            yield Row(
                place=place, problem="expected VIDEO START END##SENTENCE, such as 3MSZA 24.3 30.4##a light is on."
            )
            continue
        vid, start, end, query = found.groups()
        try:
            window = [float(start), float(end)]
        except ValueError:
            yield Row(place=place, problem=f"start and end must be seconds, got {start} and {end}")
            continue
        values = {"qid": f"{split}_{number}", "query": query, "vid": vid, "relevant_windows": [window]}
        if vid in seconds:
            yield Row(place=place, raw=values, values={**values, "duration": seconds[vid]})
        else:
            problem = f"Charades_v1_{split}.csv has no duration of the video {vid}"
            yield Row(place=place, raw=values, problem=problem)


def _durations(path: Path, split: str) -> dict[str, float]:
    table = path.with_name(f"Charades_v1_{split}.csv")
    if not table.is_file():
        raise AnnotationError(
            f"{path.name} has no durations, and {table} is missing; put that file of the Charades release beside it, "
            "or use the JSONL form"
        )
    found: dict[str, float] = {}
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            try:
                found[row["id"]] = float(row["length"])
            except (KeyError, TypeError, ValueError):
                raise AnnotationError(
                    f"{table}:{reader.line_num}: expected the columns id and length (seconds); download it again"
                ) from None
    return found


def _ours(row: Mapping[str, Any]) -> bool:
    # Five digits alone are a name that anybody may give; such ids are rare in the release.
    vid = row.get("vid")
    return isinstance(vid, str) and _VIDEO.fullmatch(vid) is not None and not vid.isdigit()


CHARADES_STA = Benchmark(
    name="charades-sta",
    title="Charades-STA",
    task="moments",
    clip_seconds=1.0,
    unit=0.1,
    moment_queries=30,
    nms=Nms(kind="soft-linear", threshold=0.0),
    metric="moments",
    splits={
        "train": Split(files=("charades_train.jsonl", "charades_sta_train.txt"), queries=12408, videos=5338),
        "test": Split(files=("charades_test.jsonl", "charades_sta_test.txt"), queries=3720, videos=1334),
    },
    source="Gao, Sun, Yang, Nevatia: TALL: Temporal Activity Localization via Language Query, ICCV 2017",
    file_words=("charades",),
    row_is_ours=_ours,
    parse=parse,
)
