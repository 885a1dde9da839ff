"""Ego4D-NLQ (Grauman et al., CVPR 2022): questions about long first-person videos, each answered by one window.

Two forms are read: JSON lines, and the original JSON of version 2, which nests videos, clips, annotations and language
queries. A clip of Ego4D is some minutes long. Here it is the video: its ``clip_uid`` is the vid, and windows count
from its start. The qid is ``ANNOTATION_UID_INDEX``; the ids that a submission needs are in ``extra``. The test split
has no public windows. We did not have the licensed files: the form follows the official reader, and no counts are
given, because we could not check them.

'linear' soft-NMS without a threshold, and clips of 2 s: R2-Tuning (ECCV 2024). No rounding unit was published
(R2-Tuning's released configuration sets none): 0.001 s is our choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sidelight.data.annotations import AnnotationError
from sidelight.data.datasets.base import Benchmark, Nms, Row, Split, json_document, original_or_json_lines, vid_matches
from sidelight.io.jsonl import shown

_LISTS = ("clips", "annotations", "language_queries")
"""The lists inside of a video, a clip and an annotation."""


def _original(path: Path) -> Iterator[Row]:
    document = json_document(path)
    if not isinstance(document.get("videos"), list):
        raise AnnotationError(f"{path}: expected the field videos, a list; is this a file of Ego4D-NLQ?")
    yield from _rows("videos", document["videos"])


def _rows(place: str, values: Any, *parents: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows of a list of videos, or of a list inside of ``parents``: (video, clip, annotation)."""
    if not isinstance(values, list):
        yield Row(place=place, problem=f"expected a list of objects, got {shown(values)}")
        return
    for index, value in enumerate(values):
        entry_place = f"{place}[{index}]"
        if not isinstance(value, dict):
            problem = f"expected an object with named fields, got {shown(value)}"
            yield Row(place=entry_place, problem=problem)
        elif len(parents) == len(_LISTS):
            yield _row(entry_place, index, value, *parents)
        elif len(parents) == 2 and (missing := _missing_fields(parents[1], value)):
            yield Row(place=entry_place, problem=f"the field {missing[0]} is missing; add it")
        else:
            name = _LISTS[len(parents)]
            yield from _rows(f"{entry_place}.{name}", value.get(name), *parents, value)


def _missing_fields(clip: dict[str, Any], annotation: dict[str, Any]) -> list[str]:
    missing = [name for name in ("clip_uid", "video_start_sec", "video_end_sec") if name not in clip]
    return missing if "annotation_uid" in annotation else [*missing, "annotation_uid"]


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
    renamed = ("qid", "query", "duration", "vid", "clip_start_sec", "clip_end_sec")
    values: dict[str, Any] = {
        "qid": f"{annotation['annotation_uid']}_{index}",
        "query": query.get("query"),
        "duration": duration,
        "vid": clip["clip_uid"],
        **{k: v for k, v in query.items() if k not in renamed},
        "video_uid": video.get("video_uid"),
        "annotation_uid": annotation["annotation_uid"],
        "query_idx": index,
    }
    if query.get("clip_start_sec") is not None or query.get("clip_end_sec") is not None:
        values["relevant_windows"] = [[query.get("clip_start_sec"), query.get("clip_end_sec")]]
    return Row(place=place, raw=query, values=values)


def _is_original(document: Mapping[str, Any]) -> bool:
    if not isinstance(document.get("videos"), list):
        return False
    clips = [c for v in document["videos"] if isinstance(v, dict) for c in v.get("clips") or ()]
    return any(isinstance(c, dict) and "clip_uid" in c for c in clips)


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
    row_is_ours=vid_matches(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    document_is_ours=_is_original,
    parse=original_or_json_lines(".json", _original),
)
