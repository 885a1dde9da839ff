"""Ground in long videos: is the event found, how much memory and time does it take, and how near are the limits?

    python benchmarks/long_video.py             # 30 minutes of the shapes world
    python benchmarks/long_video.py --parts     # R2-Tuning with all tokens of CLIP on 720p H.264, part by part
    python benchmarks/long_video.py --whole     # the same on a whole hour, with its peak memory: minutes

Without options, the script draws a synthetic video in which one red star bounces at 20:10 among many other events. It
grounds the video in a separate process, and does the same with the first minute only. Peak memory is the largest
resident set of the process; most of it is PyTorch.

``--parts`` and ``--whole`` use ``r2-tuning/qvhighlights`` on CLIP ViT-B/32 with random weights of full size, because
time and memory do not depend on the values, and an hour of the synthetic video of ``extraction.py``. A part is measured
on ``--minutes`` of it and scaled to the hour. CPU seconds count all threads; wall-clock seconds also depend on other
programs. The limits are measured in the same run: PyAV decodes the frames that others refer to and converts none; the
matrix products of CLIP and of R2-Tuning at the speed of one large product.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import av
import numpy as np
import torch
from memory import peak_mib

from sidelight.shapes.generate import draw_video
from sidelight.shapes.world import Scene, sample_scene

QUERY = "a red star bounces"
TARGET = (1210.0, 1224.0)
RUN, HOUR, WINDOW, CLIP_SECONDS = "qvhighlights", 3600, 75, 2.0
LEVELS, TOKENS, WIDTH, TEXT_WIDTH, HIDDEN, SENTENCE = 4, 50, 768, 512, 256, 8


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


def measure_shapes(out: Path) -> None:
    print(f"query: {QUERY!r}; true in the long video: {TARGET[0]:.0f} to {TARGET[1]:.0f} s (synthetic)")
    print(f"{'minutes':>8}{'clips':>8}{'best moment (s)':>24}{'score':>8}{'peak MiB':>10}{'seconds':>9}")
    for minutes in (1, 30):
        video = out / f"long_{minutes}.mp4"
        if not video.exists():
            draw_video(long_scene(minutes), video, side=128)
        command = [sys.executable, __file__, "--child", str(video)]
        start, end, score, peak, seconds, clips = json.loads(subprocess.check_output(command, text=True))
        print(f"{minutes:>8}{clips:>8}{f'{start:.1f} to {end:.1f}':>24}{score:>8.2f}{peak:>10.0f}{seconds:>9.1f}")


# R2-Tuning on an hour ----------------------------------------------------------------------------------------------


def make_files(out: Path) -> None:
    """Make the video, CLIP and the side-tuner, unless they exist."""
    from extraction import make_video
    from transformers import CLIPConfig, CLIPModel

    from sidelight.backbones.clip.model import CLIPBackbone
    from sidelight.models.r2_tuning import R2Tuning
    from sidelight.training.checkpoint import Checkpoint
    from sidelight.training.published import R2_TUNING

    torch.manual_seed(0)
    if not (out / "clip-b32" / "config.json").exists():
        CLIPModel(CLIPConfig()).save_pretrained(out / "clip-b32")
    if not (out / "r2" / "config.json").exists():
        run = R2_TUNING[RUN]
        Checkpoint(
            model=R2Tuning(run.model).eval(),
            model_name="r2-tuning",
            model_config=asdict(run.model),
            features=CLIPBackbone(weights=out / "clip-b32", levels=LEVELS, pooling="tokens").spec,
            decode=run.decode,
            window_clips=run.window_clips,
            round_clips=run.round_clips,
        ).save_pretrained(out / "r2")
    if not (out / "hour.mp4").exists():
        make_video(out / "hour.mp4", seconds=20.0, times=HOUR // 20)


def random_half(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32).astype(np.float16)


def ground_hour(out: Path) -> None:
    """Ground in the whole video and print CPU seconds and memory since the start of the process, as JSON."""
    from sidelight.grounder import Grounder

    rows = [("start", time.process_time(), peak_mib())]
    grounder = Grounder.from_pretrained(out / "r2", backbone_weights=out / "clip-b32", cache=None, device="cpu")
    rows.append(("models", time.process_time(), peak_mib()))
    features = grounder.features(out / "hour.mp4")
    rows.append(("features", time.process_time(), peak_mib()))
    # The random CLIP has no vocabulary; a real sentence costs 0.1 s.
    (grounding,) = grounder.ground_features(features, [random_half(LEVELS, SENTENCE, TEXT_WIDTH)], ["a query"])
    rows.append((f"answer ({len(grounding.moments)} moments)", time.process_time(), peak_mib()))
    print(json.dumps(rows))


def measure_hour(out: Path) -> None:
    start = time.perf_counter()
    output = subprocess.check_output([sys.executable, __file__, "--hour", "--out", str(out)], text=True)
    print(f"a whole hour: {time.perf_counter() - start:.0f} s from start to answer")
    print(f"{'until':<26}{'CPU s':>9}{'peak MiB':>10}")
    for name, cpu_seconds, peak in json.loads(output):
        print(f"{name:<26}{cpu_seconds:>9.1f}{peak:>10.0f}")


def decode_references(video: Path, seconds: float) -> int:
    """Decode the frames that others refer to, up to this second; return their number."""
    count = 0
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "AUTO", 0
        stream.codec_context.skip_frame = "NONREF"
        for frame in container.decode(stream):
            if frame.time is not None and frame.time >= seconds:
                break
            count += 1
    return count


def map_flops(clips: int) -> float:
    """Return the floating-point operations of R2-Tuning's map and pooling, nearly all of the model, in its products."""
    per_token = 2 * HIDDEN * (WIDTH + 2) + 2 * 2 * HIDDEN * SENTENCE
    return LEVELS * clips * (TOKENS * per_token + SENTENCE * 2 * HIDDEN**2)


def measure_parts(out: Path, minutes: float) -> None:
    """Print what an hour costs, part by part."""
    from extraction import Cost, clip_flops, cost

    from sidelight.core.timeline import Timeline
    from sidelight.features.extract import BatchEncoder, clips_at_once, sampling_of
    from sidelight.features.growing import GrowingFeatures
    from sidelight.features.sources import content_digest
    from sidelight.features.store import VideoFeatures
    from sidelight.grounder import Grounder
    from sidelight.video.workers import clips_of

    video, seconds = out / "hour.mp4", 60 * minutes
    grounders: list[Grounder] = []
    pixels: list[np.ndarray] = []

    def run(code: str) -> Cost:
        return cost(lambda: subprocess.run([sys.executable, "-c", code], check=True).returncode)

    def load() -> int:
        weights = out / "clip-b32"
        grounders.append(Grounder.from_pretrained(out / "r2", backbone_weights=weights, cache=None, device="cpu"))
        return 0

    def decode() -> int:
        pixels.extend(clips_of(video, sampling_of(grounders[0].backbone.spec), seconds))
        return sum(map(len, pixels))

    def encode() -> int:
        encoder, growing = BatchEncoder(grounders[0].backbone, clips_at_once("cpu")), GrowingFeatures()
        for chunk in pixels:
            for _, features_KCD in encoder.put(None, chunk):
                growing.put(features_KCD)
        for _, features_KCD in encoder.flush():
            growing.put(features_KCD)
        return growing.clips

    python, packages = run("import torch"), run("import torch; from transformers import CLIPModel")
    reading, digest, decoding = cost(load), cost(lambda: len(content_digest(video))), cost(decode)
    references = cost(lambda: decode_references(video, seconds))
    grounders[0].backbone.encode_video(torch.from_numpy(pixels[0]))  # a warm-up
    encoding = cost(encode)
    few = Timeline(duration=CLIP_SECONDS * 4 * WINDOW, clip_seconds=CLIP_SECONDS)
    features = VideoFeatures(video_KTD=random_half(LEVELS, few.num_clips, TOKENS, WIDTH), timeline=few)
    query = random_half(LEVELS, SENTENCE, TEXT_WIDTH)
    tuning = cost(lambda: len(grounders[0].ground_features(features, [query], ["a query"])))
    side = 2048
    a, b = torch.randn(side, side), torch.randn(side, side)
    products = min((cost(lambda: len(a @ b)) for _ in range(4)), key=lambda c: c.cpu_seconds)
    rate = 2 * side**3 / products.cpu_seconds

    clips = HOUR / CLIP_SECONDS
    hour_windows, few_windows = (
        len(t.windows(WINDOW)) for t in (Timeline(duration=HOUR, clip_seconds=CLIP_SECONDS), few)
    )
    times, windows = clips / encoding.result, hour_windows / few_windows
    rows: list[tuple[str, float, float, float]] = [
        ("start Python and PyTorch", python.seconds, python.cpu_seconds, 0),
        ("import CLIP", packages.seconds - python.seconds, packages.cpu_seconds - python.cpu_seconds, 0),
        ("read the models", reading.seconds, reading.cpu_seconds, 0),
        ("digest of the file, for the cache", digest.seconds, digest.cpu_seconds, 0),
        ("decode and resize", *(times * x for x in (decoding.seconds, decoding.cpu_seconds, references.cpu_seconds))),
        ("CLIP", times * encoding.seconds, times * encoding.cpu_seconds, clips * clip_flops(1) / rate),
        (
            "side-tuner, decoding and merging",
            windows * tuning.seconds,
            windows * tuning.cpu_seconds,
            map_flops(hour_windows * WINDOW) / rate,
        ),
    ]
    print(f"an hour, from {minutes:g} minutes; threads: {torch.get_num_threads()}", end="; ")
    print(f"a large product: {rate / 1e9:.0f} GFLOP per CPU second")
    print(f"{'part':<36}{'seconds':>9}{'CPU s':>9}{'limit':>9}{'ratio':>7}")
    for name, wall, cpu, limit in rows:
        print(f"{name:<36}{wall:>9.1f}{cpu:>9.1f}" + (f"{limit:>9.1f}{cpu / limit:>7.2f}" if limit else ""))
    print(f"{'sum':<36}{sum(row[1] for row in rows):>9.1f}{sum(row[2] for row in rows):>9.1f}", end="")
    print(f"{sum(row[3] for row in rows):>9.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="data/long", type=Path)
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--minutes", default=2.0, type=float, help="minutes from which decoding and CLIP are measured")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--hour", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return
    if args.hour:
        ground_hour(args.out)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.parts and not args.whole:
        measure_shapes(args.out)
        return
    make_files(args.out)
    if args.parts:
        measure_parts(args.out, args.minutes)
    if args.whole:
        measure_hour(args.out)


if __name__ == "__main__":
    main()
