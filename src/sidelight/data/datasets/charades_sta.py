"""Charades-STA (Gao et al., ICCV 2017): moments in videos of people at home, about 30 s long.

Two forms are read: JSON lines, and the original text file with lines ``VIDEO START END##SENTENCE``. The original has
no durations; they are the column ``length`` of Charades_v1_train.csv or Charades_v1_test.csv, which must be in the
same folder. It has no qids either: the qid is made of the split and the line number, such as ``test_12``.

Rounding to 0.1 s and 'linear' soft-NMS without a threshold: R2-Tuning (ECCV 2024). Clips and M: SDST (Tab. A).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from sidelight.data.annotations import AnnotationError
from sidelight.data.datasets.base import Benchmark, Nms, Row, Split, original_or_json_lines, vid_matches
from sidelight.io.files import read_text, utf8_lines

_LINE = re.compile(r"(\S+) +(\S+) +(\S+?)##(.*)")


def _original(path: Path) -> Iterator[Row]:
    split = "train" if "train" in path.stem else "test"
    durations = _durations(path, split)
    for number, content in enumerate(utf8_lines(path), start=1):
        place = str(number)
        try:
            line = content.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            yield Row(place=place, problem="this line is not text in UTF-8")
            continue
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        if not match:
            problem = "expected VIDEO START END##SENTENCE, such as 3MSZA 24.3 30.4##a light is on."
            yield Row(place=place, problem=problem)
            continue
        vid, start, end, query = match.groups()
        try:
            window = [float(start), float(end)]
        except ValueError:
            yield Row(place=place, problem=f"start and end must be seconds, got {start} and {end}")
            continue
        values = {"qid": f"{split}_{number}", "query": query, "vid": vid, "relevant_windows": [window]}
        if vid in durations:
            yield Row(place=place, raw=values, values={**values, "duration": durations[vid]})
        else:
            problem = f"Charades_v1_{split}.csv has no duration of the video {vid}"
            yield Row(place=place, raw=values, problem=problem)


def _durations(path: Path, split: str) -> dict[str, float]:
    table = path.with_name(f"Charades_v1_{split}.csv")
    if not table.is_file():
        raise AnnotationError(
            f"{path.name} has no durations, and {table} is missing; put that file of the Charades release "
            "into the same folder, or use the JSONL form"
        )
    durations: dict[str, float] = {}
    reader = csv.DictReader(io.StringIO(read_text(table)))
    for row in reader:
        try:
            durations[row["id"]] = float(row["length"])
        except (KeyError, TypeError, ValueError):
            raise AnnotationError(
                f"{table}:{reader.line_num}: expected the columns id and length (seconds); download it again"
            ) from None
    return durations


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
    # Anybody may name a video with five digits; such ids are rare in the release.
    row_is_ours=vid_matches(r"(?![0-9]{5})[A-Z0-9]{5}"),
    text_is_ours=lambda first_line: b"##" in first_line,
    parse=original_or_json_lines(".txt", _original),
)
