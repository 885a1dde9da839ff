"""QVHighlights (Lei et al., NeurIPS 2021): moments and highlights in YouTube videos of up to 150 s.

Released as JSON lines, the form that sidelight writes too. Three people rated each clip of 2 s in a window from 0 to 4.
Rounding to 2 s and NMS 'normal' at 0.7: R2-Tuning (ECCV 2024). Clips and M: SDST (Tab. A).
"""

from __future__ import annotations

import re

from sidelight.data.datasets.base import Benchmark, Nms, Split, vid_matches

_CUT = re.compile(r"_(\d+\.\d+)_(\d+\.\d+)$")


def seconds_in_name(vid: str) -> float | None:
    """Return the seconds between the two times in a video's name, such as 150 for ``NUsG9BgSes0_210.0_360.0``."""
    match = _CUT.search(vid)
    return float(match[2]) - float(match[1]) if match else None


QVHIGHLIGHTS = Benchmark(
    name="qvhighlights",
    title="QVHighlights",
    task="both",
    clip_seconds=2.0,
    unit=2.0,
    moment_queries=30,
    nms=Nms(kind="hard", threshold=0.7),
    metric="qvhighlights",
    splits={
        "train": Split(files=("highlight_train_release.jsonl", "qvhighlights_train.jsonl"), queries=7218, videos=7100),
        "val": Split(files=("highlight_val_release.jsonl", "qvhighlights_val.jsonl"), queries=1550, videos=1519),
        "test": Split(
            files=("highlight_test_with_gt.jsonl", "highlight_test_release.jsonl", "qvhighlights_test.jsonl"),
            queries=1542,
            videos=1529,
        ),
    },
    source="Lei, Berg, Bansal: QVHighlights, NeurIPS 2021",
    file_words=("highlight_train", "highlight_val", "highlight_test", "qvhighlights"),
    row_is_ours=vid_matches(rf".*{_CUT.pattern}"),
)
