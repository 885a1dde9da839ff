"""Check that an event at minute 20 of a 30-minute video is found and that memory stays bounded.

    python benchmarks/long_video.py

The script draws a synthetic video in which one red star bounces at 20:10 among many other events. It grounds the
video in a separate process, and does the same with the first minute only. Peak memory is the largest resident set of
the process; most of it is PyTorch.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from memory import peak_mib

from sidelight.shapes.generate import draw_video
from sidelight.shapes.world import Scene, sample_scene

QUERY = "a red star bounces"
TARGET = (1210.0, 1224.0)


def long_scene(minutes: float) -> Scene:
    """Return a scene of this length without red objects, plus the target if the video is long enough."""
    events, distractors, offset, index = [], [], 0.0, 0
    base = sample_scene(seed=77, index=0)
    while offset < minutes * 60:
        scene = sample_scene(seed=77, index=index)
        index += 1
        if any(t.colour == "red" for t in (*scene.events, *scene.distractors)):
            continue
        shifted = [replace(e, start=e.start + offset, end=e.end + offset) for e in scene.events]
        events += [e for e in shifted if e.end <= TARGET[0] or e.start >= TARGET[1]]
        distractors += [replace(d, start=d.start + offset, end=d.end + offset) for d in scene.distractors]
        offset += scene.duration
    target = replace(
        events[0], colour="red", shape="star", action="bounce", start=TARGET[0], end=TARGET[1], x=0.5, y=0.7,
        radius=0.15, period=1.2,
    )  # fmt: skip
    duration = minutes * 60
    inside = [e for e in (*events, target) if e.end <= duration]
    return replace(
        base, vid=f"long_{minutes:g}", duration=duration, events=tuple(inside), distractors=tuple(distractors)
    )


def child(video: str) -> None:
    from sidelight import Grounder

    start = time.perf_counter()
    grounding = Grounder.from_pretrained("shapes", device="cpu", cache=None).ground(video, QUERY)
    seconds, best = time.perf_counter() - start, grounding.moments[0]
    print(json.dumps([best.start, best.end, best.score, peak_mib(), seconds, grounding.timeline.num_clips]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="data/long")
    parser.add_argument("--child")
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return
    Path(args.out).mkdir(parents=True, exist_ok=True)
    print(f"query: {QUERY!r}; true in the long video: {TARGET[0]:.0f} to {TARGET[1]:.0f} s (synthetic)")
    print(f"{'minutes':>8}{'clips':>8}{'best moment (s)':>24}{'score':>8}{'peak MiB':>10}{'seconds':>9}")
    for minutes in (1, 30):
        video = Path(args.out) / f"long_{minutes}.mp4"
        if not video.exists():
            draw_video(long_scene(minutes), video, side=128)
        command = [sys.executable, __file__, "--child", str(video)]
        start, end, score, peak, seconds, clips = json.loads(subprocess.check_output(command, text=True))
        print(f"{minutes:>8}{clips:>8}{f'{start:.1f} to {end:.1f}':>24}{score:>8.2f}{peak:>10.0f}{seconds:>9.1f}")


if __name__ == "__main__":
    main()
