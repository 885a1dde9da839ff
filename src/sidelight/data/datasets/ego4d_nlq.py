"""Ego4D-NLQ (Grauman et al., CVPR 2022): questions about long first-person videos, answered by one window.

Two forms are read: JSON lines, and the original JSON of version 2, from videos over clips and annotations to language
queries. What Ego4D calls a clip is a cut of some minutes: here it is the video, its ``clip_uid`` the vid, and windows
count from its start. qid is ``ANNOTATION_UID_INDEX``; the ids that a submission needs are kept in ``extra``. In the
test split the windows are kept back. Files behind the licence were not at hand: the form is that of the official
reader, and we publish no counts that we did not check.

'linear' soft-NMS, which knows no threshold, and clips of 2 s: R2-Tuning (ECCV 2024). For the rounding no unit was
published (R2-Tuning's released configuration sets none): 0.001 s is our choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sidelight.data.annotations import AnnotationError
from sidelight.data.datasets.base import Benchmark, Nms, Row, Split, json_document, json_lines, shown

_UID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def parse(path: Path) -> Iterator[Row]:
    """The rows of a JSONL file or of the original JSON.

    Raises:
        AnnotationError: if a JSON document cannot be read.
    """
    return _original(path) if path.suffix == ".json" else json_lines(path)


def _original(path: Path) -> Iterator[Row]:
    document = json_document(path)
    if not isinstance(document.get("videos"), list):
        raise AnnotationError(f"{path}: expected the field videos, a list; is this a file of Ego4D-NLQ?")
    for place, video in _objects("videos", document["videos"]):
        yield from [video] if isinstance(video, Row) else _of_video(place, video)


def _of_video(at: str, video: dict[str, Any]) -> Iterator[Row]:
    for within, clip in _objects(f"{at}.clips", video.get("clips")):
        if isinstance(clip, Row):
            yield clip
            continue
        for place, annotation in _objects(f"{within}.annotations", clip.get("annotations")):
            if isinstance(annotation, Row):
                yield annotation
                continue
            missing = [n for n in ("clip_uid", "video_start_sec", "video_end_sec") if n not in clip]
            if missing or "annotation_uid" not in annotation:
                problem = f"the field {(missing or ['annotation_uid'])[0]} is missing; add it"
                yield Row(place=place, problem=problem)
                continue
            queries = _objects(f"{place}.language_queries", annotation.get("language_queries"))
            for index, (where, query) in enumerate(queries):
                yield query if isinstance(query, Row) else _row(where, index, query, video, clip, annotation)


def _objects(place: str, values: Any) -> Iterator[tuple[str, dict[str, Any] | Row]]:
    """(place, object) of each entry of a list; a Row that says the problem where one is something else."""
    if not isinstance(values, list):
        yield place, Row(place=place, problem=f"expected a list of objects, got {shown(values)}")
        return
    for index, value in enumerate(values):
        where = f"{place}[{index}]"
        problem = f"expected an object with named fields, got {shown(value)}"
        yield where, value if isinstance(value, dict) else Row(place=where, problem=problem)


def _row(
    place: str,
    index: int,
    query: dict[str, Any],
    video: dict[str, Any],
    clip: dict[str, Any],
    annotation: dict[str, Any],
) -> Row:
    try:
        duration = float(clip["video_end_sec"]) - float(clip["video_start_sec"])
    except (TypeError, ValueError):
        problem = f"video_end_sec must be seconds, got {shown(clip['video_end_sec'])}"
        return Row(place=place, raw=query, problem=problem)
    ours = ("qid", "query", "duration", "vid", "clip_start_sec", "clip_end_sec")
    values: dict[str, Any] = {
        "qid": f"{annotation['annotation_uid']}_{index}",
        "query": query.get("query"),
        "duration": duration,
        "vid": clip["clip_uid"],
        **{k: v for k, v in query.items() if k not in ours},
        "video_uid": video.get("video_uid"),
        "annotation_uid": annotation["annotation_uid"],
        "query_idx": index,
    }
    if query.get("clip_start_sec") is not None or query.get("clip_end_sec") is not None:
        values["relevant_windows"] = [[query.get("clip_start_sec"), query.get("clip_end_sec")]]
    return Row(place=place, raw=query, values=values)


def _ours(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("vid"), str) and _UID.fullmatch(row["vid"]) is not None


EGO4D_NLQ = Benchmark(
    name="ego4d-nlq",
    title="Ego4D-NLQ",
    task="moments",
    clip_seconds=2.0,
    unit=0.001,
    nms=Nms(kind="soft-linear", threshold=0.0),
    metric="moments",
    splits={
        "train": Split(files=("nlq_train.jsonl", "nlq_train.json")),
        "val": Split(files=("nlq_val.jsonl", "nlq_val.json")),
        "test": Split(files=("nlq_test.jsonl", "nlq_test_unannotated.json")),
    },
    source="Grauman et al.: Ego4D: Around the World in 3,000 Hours of Egocentric Video, CVPR 2022",
    file_words=("nlq", "ego4d"),
    row_is_ours=_ours,
    parse=parse,
)
