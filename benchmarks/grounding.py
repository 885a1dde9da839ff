"""Measure the time of one grounding whose video features are already extracted: 75 clips, one query, 2 threads.

    python benchmarks/grounding.py

The limit is the time of the model's matrix products alone: the same number of floating-point operations in one large
product, on the same threads, in the same run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from sidelight.core.timeline import Timeline
from sidelight.features.store import VideoFeatures
from sidelight.grounder import Grounder
from sidelight.training.dataset import collate, unlabelled

CLIPS = 75


def milliseconds(run: Callable[[], object], repeats: int = 30) -> float:
    """Return the median time of several runs after a warm-up, in ms."""
    times = []
    for number in range(repeats + 5):
        start = time.perf_counter()
        run()
        if number >= 5:
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def main() -> None:
    torch.set_num_threads(2)
    grounder = Grounder.from_pretrained("shapes", device="cpu")
    spec = grounder.backbone.spec
    rng = np.random.default_rng(0)
    values = rng.normal(size=(len(spec.levels), CLIPS, spec.video_dim)).astype(np.float16)
    video = VideoFeatures(video_KTD=values, timeline=Timeline(duration=2.0 * CLIPS, clip_seconds=2.0))
    query = "a red square spins"
    text = grounder.encode([query])

    def ground() -> object:
        return grounder.ground_features(video, text, [query])

    # The counter does not work in inference mode, so the model is called once directly.
    with FlopCounterMode(display=False) as counter:
        grounder.checkpoint.model(collate([unlabelled(video, text[0])]))
    side = 1024
    a, b = torch.randn(side, side), torch.randn(side, side)
    rate = 2 * side**3 / milliseconds(lambda: a @ b)
    limit = counter.get_total_flops() / rate
    with_query = milliseconds(lambda: grounder.ground_features(video, grounder.encode([query]), [query]))
    alone = milliseconds(ground)
    print(f"{'':<44}{'ms':>8}{'of the limit':>14}")
    print(f"{'limit: its matrix products alone':<44}{limit:>8.1f}{1:>14.1f}")
    print(f"{'grounding from features of video and query':<44}{alone:>8.1f}{alone / limit:>14.1f}")
    print(f"{'encoding the query too':<44}{with_query:>8.1f}{with_query / limit:>14.1f}")


if __name__ == "__main__":
    main()
