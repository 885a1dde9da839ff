"""TACoS (Regneri et al., TACL 2013): moments in 127 cooking videos, split as usual since 2D-TAN.

Read from JSON lines. Clips and M: SDST (Tab. A). 'linear' soft-NMS without a threshold: R2-Tuning. No rounding unit was
published (R2-Tuning's released configuration sets none): 0.001 s is our choice, too fine to change a metric. The
released video files have the camera in their names (``VID-cam-002``); rename them to ``VID``. Predictions of official
code have it too; evaluation accepts them.
"""

from __future__ import annotations

from sidelight.data.datasets.base import Benchmark, Nms, Split, vid_matches

CAMERA = "-cam-002"
"""Ending of the names of released videos."""

TACOS = Benchmark(
    name="tacos",
    title="TACoS",
    task="moments",
    clip_seconds=2.0,
    unit=0.001,
    moment_queries=5,
    nms=Nms(kind="soft-linear", threshold=0.0),
    metric="moments",
    vid_suffix=CAMERA,
    splits={
        "train": Split(files=("tacos_train.jsonl",), queries=9790, videos=75),
        "val": Split(files=("tacos_val.jsonl",), queries=4436, videos=27),
        "test": Split(files=("tacos_test.jsonl",), queries=4001, videos=25),
    },
    source="Regneri, Rohrbach, Wetzel, Thater, Schiele, Pinkal: Grounding Action Descriptions in Videos, TACL 2013",
    file_words=("tacos",),
    row_is_ours=vid_matches(r"s\d+-d\d+"),
)
