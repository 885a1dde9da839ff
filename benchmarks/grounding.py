"""How long one grounding takes when the video's features are at hand: 75 clips, one query, 2 threads.

    python benchmarks/grounding.py

The limit beside it is what the model's matrix products alone would take: the same number of floating-point operations
as one large product on the same threads, in the same run.
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
    """Median of several runs after a warm-up."""
    times = []
    for number in range(repeats + 5):
        began = time.perf_counter()
        run()
        if number >= 5:
            times.append(1000 * (time.perf_counter() - began))
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

    def answer() -> object:
        return grounder.ground_features(video, text, [query])

    # The counter cannot watch inference mode, so the model is called once by itself.
    with FlopCounterMode(display=False) as counter:
        grounder.checkpoint.model(collate([unlabelled(video, text[0])]))
    side = 1024
    a, b = torch.randn(side, side), torch.randn(side, side)
    rate = 2 * side**3 / milliseconds(lambda: a @ b)
    limit = counter.get_total_flops() / rate
    both = milliseconds(lambda: grounder.ground_features(video, grounder.encode([query]), [query]))
    took = milliseconds(answer)
    print(f"{'':<44}{'ms':>8}{'of the limit':>14}")
    print(f"{'limit: its matrix products alone':<44}{limit:>8.1f}{1:>14.1f}")
    print(f"{'grounding from features of video and query':<44}{took:>8.1f}{took / limit:>14.1f}")
    print(f"{'encoding the query too':<44}{both:>8.1f}{both / limit:>14.1f}")


if __name__ == "__main__":
    main()
