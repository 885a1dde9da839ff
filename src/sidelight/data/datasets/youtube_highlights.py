"""YouTube Highlights (Sun et al., ECCV 2014): the clips of a video that show the activity of its domain well.

Read from JSON lines. A clip is about 100 frames long and begins about 50 frames after the clip before, so clips
overlap, and their seconds depend on the frame rate: clip i covers the frames ``extra["clip"][i]`` at ``extra["fps"]``
frames per second. So the benchmark has no ``clip_seconds``. All clips are listed, each with one rating: 1 if its
``match`` is 1, else 0. The query is the domain, and the domains are trained and scored one by one. No windows are
predicted, so there is neither rounding nor NMS. The releases contain different videos, so no count is published.
"""

from __future__ import annotations

from sidelight.data.datasets.base import Benchmark, Split, rated_rows

YOUTUBE_HIGHLIGHTS = Benchmark(
    name="youtube-highlights",
    title="YouTube Highlights",
    task="highlights",
    clip_seconds=None,
    unit=None,
    metric="youtube-highlights",
    splits={"train": Split(files=("youtube_train.jsonl",)), "val": Split(files=("youtube_val.jsonl",))},
    domains=("dog", "gymnastics", "parkour", "skating", "skiing", "surfing"),
    source="Sun, Farhadi, Seitz: Ranking Domain-Specific Highlights by Analyzing Edited Videos, ECCV 2014",
    file_words=("youtube_train", "youtube_val", "youtube-highlights", "youtube_highlights"),
    row_is_ours=lambda row: "label" in row and "match" in row and "clip" in row,
    parse=rated_rows,
)
