"""Measure how fast videos become features: decoding, backbones, and both together, each compared with a limit.

    python benchmarks/extraction.py                                       # some minutes on a laptop
    python benchmarks/extraction.py --device cuda --dtype bfloat16 --depth 40 --clips 32 --parts backbone,extract

Decoding: 4 frames of each clip of 2 s at 224 x 224, compared with an ffmpeg pipe that scales and drops frames. Both run
in turn, and the fastest run counts. CPU seconds are printed beside wall-clock seconds, because they depend less
on other programs. The script makes the video: 720p at 25 frames per second, a grainy texture that pans, wobbles and is
cut, encoded with the default settings of PyAV's x264 (keyframes every 250 frames, B-frames).

Backbones: random weights, and by default fewer InternVideo2 blocks than in the real model. The limit is one large
matrix product in the same run.

Both together: on a GPU the limit is the slower part alone. On a CPU, decoding and the model share the cores, and the
limit is the sum of both times.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import numpy.typing as npt
import torch
from av.video.stream import VideoStream
from torch import nn

from sidelight.backbones.clip.model import CLIPBackbone
from sidelight.backbones.common import DTYPES
from sidelight.backbones.internvideo2.backbone import InternVideo2Backbone
from sidelight.backbones.internvideo2.config import MEAN, SIZES, STD, BertConfig, InternVideo2Config, VideoConfig
from sidelight.backbones.internvideo2.model import InternVideo2
from sidelight.backbones.protocol import Backbone, FeatureSpec
from sidelight.features.extract import extract
from sidelight.video.read import frames_at, probe

SIDE, FRAMES, CLIP_SECONDS, LEVELS = 224, 4, 2.0, 4
WIDTH, HEIGHT, RATE = 1280, 720, 25
Pixels = npt.NDArray[np.uint8]


class Cost(NamedTuple):
    """The cost of one run."""

    seconds: float
    cpu_seconds: float
    """Seconds of all CPU cores together, child processes included."""
    result: int
    """The number that the run returned."""


def cost(run: Callable[[], int]) -> Cost:
    def cpu_seconds() -> float:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    before, start = cpu_seconds(), time.perf_counter()
    result = run()
    return Cost(time.perf_counter() - start, cpu_seconds() - before, result)


def least(runs: dict[str, Callable[[], int]], repeats: int) -> dict[str, Cost]:
    """Run all in turn, several times; return the least wall-clock and CPU seconds of each."""
    costs: dict[str, list[Cost]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            costs[name].append(cost(run))
    return {
        n: Cost(min(c.seconds for c in cs), min(c.cpu_seconds for c in cs), cs[0].result) for n, cs in costs.items()
    }


# the synthetic video -----------------------------------------------------------------------------------------------


def texture(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Return noise of all sizes, the finer the weaker, as in natural images."""
    total = np.zeros((height, width), np.float32)
    for octave in range(1, 9):
        cells = 2**octave
        coarse = np.clip(rng.normal(128, 40, size=(cells * height // width + 2, cells + 1)), 0, 255).astype(np.uint8)
        large = av.VideoFrame.from_ndarray(coarse, format="gray").reformat(width, height, interpolation="BICUBIC")
        total += (large.to_ndarray().astype(np.float32) - 128) * 0.8**octave
    image: Pixels = np.clip(total * 45 / total.std() + 120, 0, 255).astype(np.uint8)
    return image


def synthetic_frames(seconds: float) -> Iterator[Pixels]:
    """Yield frames of shape (1080, 1280): Y, then U and V, of 4:2:0."""
    rng = np.random.default_rng(0)
    scenes = [texture(rng, HEIGHT + 240, WIDTH + 400) for _ in range(4)]
    colours = [texture(rng, HEIGHT // 2 + 120, WIDTH // 2 + 200) for _ in range(2)]
    grain = rng.normal(scale=2.0, size=(13, HEIGHT, WIDTH)).astype(np.int8)
    rows, columns = np.arange(HEIGHT), np.arange(WIDTH)
    for number in range(round(seconds * RATE)):
        t = number / RATE
        scene = int(t / 7.3)
        x = int(200 + 180 * np.sin(0.6 * t + scene)) // 2 * 2
        y = int(120 + 110 * np.sin(0.7 * t + 2 * scene)) // 2 * 2
        wobble = (x + 9 * np.sin(rows / 37 + 2.2 * t)).astype(int)
        luma = scenes[scene % 4][(y + rows)[:, None], wobble[:, None] + columns]
        for i in range(5):  # objects that move independently
            left = int((WIDTH - 200) * (0.5 + 0.5 * np.sin(1.3 * t * (1 + i / 5) + i)))
            top = int((HEIGHT - 200) * (0.5 + 0.5 * np.cos(1.1 * t + i * 1.3)))
            luma[top : top + 160, left : left + 160] = scenes[(scene + 1) % 4][100 * i :, 80 * i :][:160, :160]
        luma = np.clip(luma.astype(np.int16) + grain[number % 13], 0, 255).astype(np.uint8)
        chroma = [c[y // 2 : (y + HEIGHT) // 2, x // 2 : (x + WIDTH) // 2] // 2 + 64 for c in colours]
        yield np.concatenate([plane.reshape(-1) for plane in (luma, *chroma)]).reshape(-1, WIDTH)


def make_video(path: Path, *, seconds: float = 20.0, times: int = 3) -> None:
    """Encode a video of this length and repeat its packets ``times`` times, because encoding is slow."""
    once = path.with_suffix(".once.mp4")
    with av.open(str(once), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number, pixels in enumerate(synthetic_frames(seconds)):
            frame = av.VideoFrame.from_ndarray(pixels, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    part = path.with_suffix(".part.mp4")
    with av.open(str(part), "w") as container:
        copy: VideoStream | None = None
        for number in range(times):
            with av.open(str(once)) as source:
                stream = source.streams.video[0]
                copy = copy or container.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.dts is None or packet.pts is None:
                        continue
                    packet.pts += number * (stream.duration or 0)
                    packet.dts += number * (stream.duration or 0)
                    packet.stream = copy
                    container.mux(packet)
    once.unlink()
    part.replace(path)


# decoding ----------------------------------------------------------------------------------------------------------


def decode(path: Path, threads: int) -> int:
    rate = FRAMES / CLIP_SECONDS
    times = (np.arange(round(probe(path).duration * rate)) + 0.5) / rate  # as many frames as ffmpeg's filter gives
    return sum(1 for _ in frames_at(path, times.tolist(), size=(SIDE, SIDE), threads=threads))


def decode_everything(path: Path, threads: int) -> int:
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        assert isinstance(stream, VideoStream)
        stream.thread_type, stream.codec_context.thread_count = "AUTO", threads
        return sum(1 for _ in container.decode(stream))


def decode_with_ffmpeg(path: Path, threads: int) -> int:
    limits = ["-threads", str(threads), "-filter_threads", str(threads)] if threads else []
    command = ["ffmpeg", "-v", "error", "-nostdin", *limits, "-i", str(path), "-an", "-sn"]
    command += ["-vf", f"fps={FRAMES / CLIP_SECONDS},scale={SIDE}:{SIDE}:flags=bicubic"]
    command += ["-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    size, count = SIDE * SIDE * 3, 0
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while block := process.stdout.read(size):
            count += len(block)
    if process.returncode:
        raise SystemExit(f"ffmpeg failed on {path}")
    return count // size


def measure_decoding(video: Path, repeats: int) -> None:
    shared = Path(os.environ.get("SIDELIGHT_SHARED", "../shared")) / "videos"
    names = ("charades_indoor.mp4", "nasa_13013.mp4", "flipping_a_pancake.mkv")
    has_ffmpeg = shutil.which("ffmpeg") is not None
    if not has_ffmpeg:
        print("ffmpeg is not on the PATH, so its lines are left out; install it (apt install ffmpeg) for them")
    head = ("decoding", "threads", "frames", "seconds", "ratio", "CPU s", "ratio")
    print(f"{head[0]:<50}{head[1]:>8}{head[2]:>10}{head[3]:>10}{head[4]:>8}{head[5]:>13}{head[6]:>8}")
    for path in (video, *(shared / name for name in names if (shared / name).is_file())):
        for threads in (1, 0):

            def bound(run: Callable[[Path, int], int], p: Path = path, t: int = threads) -> Callable[[], int]:
                return lambda: run(p, t)

            runs = {"ffmpeg pipe": bound(decode_with_ffmpeg)} if has_ffmpeg else {}
            runs |= {"sidelight": bound(decode), "PyAV, every frame": bound(decode_everything)}
            costs = least(runs, repeats if path == video else max(repeats, 5))
            base = next(iter(costs.values()))
            for name, (seconds, cpu_seconds, count) in costs.items():
                line = f"{f'{path.name}: {name}':<50}{threads or 'all':>8}{count:>10}{seconds:>10.2f}"
                print(f"{line}{seconds / base.seconds:>8.2f}{cpu_seconds:>13.2f}{cpu_seconds / base.cpu_seconds:>8.2f}")
            if has_ffmpeg and costs["sidelight"].result != base.result:
                print(f"    the numbers of frames differ by {abs(costs['sidelight'].result - base.result)}")


# backbones ---------------------------------------------------------------------------------------------------------


def internvideo2_flops(config: VideoConfig, frames: int, pools: int) -> float:
    """Return the floating-point operations of one clip in its matrix products."""
    tokens, width = 1 + frames * config.grid**2, config.width
    block = 8 * tokens * width**2 + 4 * tokens**2 * width + 4 * tokens * width * config.hidden
    pool = 4 * tokens * width**2 + 2 * width**2 + 4 * tokens * width + 2 * width * config.pool_width
    return config.depth * block + pools * pool + 2 * (tokens - 1) * 3 * config.patch**2 * width


def clip_flops(frames: int) -> float:
    """Return the floating-point operations of one clip through ViT-B/32."""
    width, depth, tokens = 768, 12, 50
    block = 8 * tokens * width**2 + 4 * tokens**2 * width + 16 * tokens * width**2
    return frames * (depth * block + 2 * (tokens - 1) * 3 * 32**2 * width)


def internvideo2(depth: int, dtype: str, device: str) -> InternVideo2Backbone:
    """Return an InternVideo2 with random weights and a tiny text tower."""
    video = dataclasses.replace(SIZES["1b"], depth=depth)
    text = BertConfig(vocabulary=8, width=64, depth=LEVELS, heads=1, hidden=64, positions=8)
    backbone = InternVideo2Backbone.__new__(InternVideo2Backbone)  # its __init__ reads a folder
    with torch.device(device):
        backbone.model = InternVideo2(InternVideo2Config(video=video, text=text))
    backbone.model.to(DTYPES[dtype]).eval().requires_grad_(False)
    backbone.spec = FeatureSpec(
        backbone="internvideo2",
        weights="random",
        levels=tuple(range(-LEVELS, 0)),
        pooling="attention",
        clip_seconds=CLIP_SECONDS,
        frames_per_clip=FRAMES,
        resolution=SIDE,
        resize="stretch",
        mean=MEAN,
        std=STD,
        video_dim=video.pool_width,
        text_dim=text.width,
    )
    return backbone


def clip_b32(dtype: str, device: str) -> CLIPBackbone:
    """Return a CLIP ViT-B/32 with random weights and a tiny text tower."""
    from transformers import CLIPConfig, CLIPModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types here
    text = {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 64, "num_hidden_layers": LEVELS}
    text |= {"vocab_size": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    with tempfile.TemporaryDirectory() as folder:
        CLIPModel(CLIPConfig(text_config=text)).save_pretrained(folder)
        backbone = CLIPBackbone(weights=folder, levels=LEVELS, frames_per_clip=FRAMES, dtype=dtype)  # type: ignore[arg-type]  # a str of argparse's choices
    return backbone.to(device)


def finish(device: str) -> None:
    """Wait until the device has finished its work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def seconds_of(run: Callable[[], object], device: str, repeats: int) -> float:
    """Return the least time of some runs after a warm-up."""
    times = []
    for _ in range(repeats + 1):
        finish(device)
        start = time.perf_counter()
        run()
        finish(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def measure_backbones(backbones: dict[str, tuple[Backbone, float]], args: argparse.Namespace) -> dict[str, float]:
    """Print a table and return the clips per second of each backbone."""
    side = 8192 if torch.device(args.device).type == "cuda" else 2048
    with torch.device(args.device):
        a, b = (torch.randn(side, side, dtype=DTYPES[args.dtype]) for _ in range(2))
    print(f"\n{'backbone':<44}{'GFLOP/clip':>12}{'clips/s':>10}{'GFLOP/s':>10}{'of product':>12}")
    rates = {}
    product = 0.0
    for name, (backbone, flops) in backbones.items():
        # Measured again for each backbone, because machines warm up.
        rate = 2 * side**3 / seconds_of(lambda: a @ b, args.device, args.repeats + 2)
        product = max(product, rate)

        clips = args.clips if backbone.spec.backbone == "internvideo2" else 4 * args.clips
        random = torch.randint(256, (clips, FRAMES, SIDE, SIDE, 3), dtype=torch.uint8)

        def run(backbone: Backbone = backbone, random: torch.Tensor = random) -> object:
            return backbone.encode_video(random)

        rates[name] = clips / seconds_of(run, args.device, args.repeats)
        reached = rates[name] * flops
        line = f"{name:<44}{flops / 1e9:>12.0f}{rates[name]:>10.2f}{reached / 1e9:>10.0f}"
        print(f"{line}{reached / rate:>12.2f}")
    print(f"{f'matrix product of side {side}':<66}{product / 1e9:>10.0f}{1:>12.2f}")
    return rates


def compile_blocks(*towers: nn.Module) -> None:
    for tower in towers:
        for module in tower.modules():
            if isinstance(module, nn.ModuleList):
                for block in module:
                    block.compile()


# both together -----------------------------------------------------------------------------------------------------


def measure_extraction(video: Path, name: str, backbone: Backbone, rate: float, args: argparse.Namespace) -> None:
    on_cpu, cores = torch.device(args.device).type == "cpu", os.cpu_count() or 1
    videos = {f"video_{i}": video for i in range(args.videos)}
    clips = round(probe(video).duration / CLIP_SECONDS) * len(videos)
    decoding = least({"": lambda: decode(video, 1)}, 1)[""]

    def run() -> int:
        with tempfile.TemporaryDirectory() as folder:
            _, failures = extract(videos, [], backbone, Path(folder) / "features")
        if failures:
            raise SystemExit(f"extraction failed: {failures}")
        return clips

    extraction = cost(run)
    alone = {"decoding": decoding.cpu_seconds * len(videos) / cores, f"{name}": clips / rate}
    limit = sum(alone.values()) if on_cpu else max(alone.values())
    print(f"\n{f'files to features, {clips} clips':<56}{'seconds':>10}{'clips/s':>10}")
    for title, seconds in {
        **{f"{part} alone{' (CPU seconds / cores)' if part == 'decoding' else ''}": s for part, s in alone.items()},
        f"limit: {'both, on the same cores' if on_cpu else 'the slower'}": limit,
        "extract": extraction.seconds,
    }.items():
        print(f"{title:<56}{seconds:>10.1f}{clips / seconds:>10.2f}")
    print(f"{'of the limit':<56}{'':>10}{limit / extraction.seconds:>10.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="decode,backbone,extract", help="which of the three to measure")
    parser.add_argument(
        "--out", type=Path, default=Path("data/extraction"), help="folder that keeps the synthetic video"
    )
    parser.add_argument("--repeats", type=int, default=2, help="runs; the fastest counts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--depth", type=int, default=4, help="blocks of InternVideo2; the 1B model has 40")
    parser.add_argument(
        "--clips", type=int, default=2, help="clips that InternVideo2 sees at once; CLIP sees 4 times as many"
    )
    parser.add_argument("--compile", action="store_true", help="compile the blocks of the backbones")
    parser.add_argument("--videos", type=int, default=4, help="how many videos to extract")
    parser.add_argument(
        "--backbone", default="clip", choices=("clip", "internvideo2"), help="the backbone to extract with"
    )
    args = parser.parse_args()
    parts = args.parts.split(",")
    if args.depth < LEVELS:
        raise SystemExit(f"--depth must be {LEVELS} or more, because {LEVELS} levels are pooled")
    full = internvideo2_flops(SIZES["1b"], FRAMES, LEVELS)
    if round(full / 1e12, 2) != 2.34:
        raise SystemExit(f"a clip of 4 frames should cost InternVideo2-1B 2.34 TFLOP, the formula gives {full / 1e12}")
    video = args.out / "film.mp4"
    if {"decode", "extract"} & set(parts) and not video.exists():
        args.out.mkdir(parents=True, exist_ok=True)
        print("making the synthetic video, once", flush=True)
        make_video(video)
    if "decode" in parts:
        print(f"{video.name}: {8e-6 * video.stat().st_size / probe(video).duration:.1f} Mbit/s, synthetic")
        measure_decoding(video, args.repeats)
    if not {"backbone", "extract"} & set(parts):
        return
    large, small = internvideo2(args.depth, args.dtype, args.device), clip_b32(args.dtype, args.device)
    if args.compile:
        compile_blocks(large.model.vision_encoder, small.video)
    flops = internvideo2_flops(large.model.config.video, FRAMES, LEVELS)
    names = {
        "internvideo2": f"InternVideo2-1B, {args.depth} of 40 blocks, 4 pools",
        "clip": "CLIP ViT-B/32, 4 frames",
    }
    backbones: dict[str, tuple[Backbone, float]] = {
        names["internvideo2"]: (large, flops),
        names["clip"]: (small, clip_flops(FRAMES)),
    }
    print(f"\nwith all 40 blocks a clip costs InternVideo2-1B {full / 1e12:.2f} TFLOP")
    rates = measure_backbones(backbones, args)
    if "extract" in parts:
        name = names[args.backbone]
        measure_extraction(video, name, backbones[name][0], rates[name], args)


if __name__ == "__main__":
    main()
