"""ActivityNet-Captions (Krishna et al., ICCV 2017): moments in YouTube videos of activities, about two minutes long.

Two forms are read: JSON lines, and the original JSON. Rows of the original get the qids ``v_..._0``, ``v_..._1``, ...
val_1 and val_2 are descriptions of the same videos by different people. SDST and R2-Tuning publish nothing on this
benchmark: clips of 2 s and the rounding unit of 0.001 s are our choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sidelight.data.datasets.base import Benchmark, Row, Split, json_document, original_or_json_lines, vid_matches
from sidelight.io.jsonl import shown


def _original(path: Path) -> Iterator[Row]:
    for vid, video in json_document(path).items():
        fields = video if isinstance(video, dict) else {}
        windows, sentences = fields.get("timestamps"), fields.get("sentences")
        if not isinstance(windows, list) or not isinstance(sentences, list) or len(windows) != len(sentences):
            problem = f"expected timestamps and sentences, as many of both, got {shown(video)}"
            yield Row(place=vid, problem=problem)
            continue
        for i, (window, sentence) in enumerate(zip(windows, sentences, strict=True)):
            values = {
                "qid": f"{vid}_{i}",
                "query": sentence,
                "duration": fields.get("duration"),
                "vid": vid,
                "relevant_windows": [window],
            }
            yield Row(place=f"{vid}[{i}]", raw=values, values=values)


def _is_original(document: Mapping[str, Any]) -> bool:
    first = next(iter(document.values()), None)
    return isinstance(first, dict) and {"timestamps", "sentences"} <= first.keys()


ACTIVITYNET = Benchmark(
    name="activitynet-captions",
    title="ActivityNet-Captions",
    task="moments",
    clip_seconds=2.0,
    unit=0.001,
    metric="moments",
    splits={
        "train": Split(files=("activitynet_train.jsonl", "train.json"), queries=37421, videos=10009),
        "val_1": Split(
            files=("activitynet_val.jsonl", "activitynet_val_1.jsonl", "val_1.json"), queries=17505, videos=4917
        ),
        "val_2": Split(files=("activitynet_val_2.jsonl", "val_2.json"), queries=17031, videos=4885),
    },
    source="Krishna, Hata, Ren, Fei-Fei, Niebles: Dense-Captioning Events in Videos, ICCV 2017",
    file_words=("activitynet", "anet"),
    row_is_ours=vid_matches(r"v_[\w-]{11}"),
    document_is_ours=_is_original,
    parse=original_or_json_lines(".json", _original),
)
