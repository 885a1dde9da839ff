"""Measure time and memory of a training step of R2-Tuning and SDST, compared with a plain R2-Tuning.

    python benchmarks/training_step.py [--batch 8 32] [--repeat 2] [--threads 1] [--out FILE.json]

A step is forward, losses, backward, gradient clipping and AdamW. The models have the published size (4 levels, width
256, dropout 0.5) and read random float32 features as wide as those of CLIP ViT-B/32: 75 clips and 20 query tokens per
sample; 50 tokens per clip for R2-Tuning, one vector per clip for SDST. First the plain model (``plain_r2_tuning.py``)
is compared
with ours: with the same weights and no dropout, predictions, losses and gradients must agree to 1e-4.

Each measurement runs in a separate process: one untimed step, then one timed step. Each round measures all models,
and the shortest time counts. Seconds are wall-clock seconds. With one thread, ratios are of CPU seconds, which depend
less on other programs. Memory is the peak of the process above its memory after model and features were made. Our
models run with ``runtime.tune_cpu``, as in ``sidelight train``. The plain model runs once with PyTorch's default
settings, to which ratios refer, and once tuned alike.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from memory import peak_mib
from plain_r2_tuning import PlainR2Tuning, plain_losses
from torch import Tensor, nn

from sidelight.core.batch import Batch, Targets
from sidelight.io.runtime import tune_cpu
from sidelight.models.losses.r2_tuning import R2LossConfig, r2_losses
from sidelight.models.losses.sdst import SDSTLossConfig, sdst_losses
from sidelight.models.r2_tuning import R2Tuning, R2TuningConfig
from sidelight.models.sdst import SDST, SDSTConfig

MODELS = {"plain": "plain R2-Tuning", "plain-tuned": "plain, tuned alike", "r2": "R2-Tuning", "sdst": "SDST"}
CLIPS, WORDS, LEVELS, TOKENS = 75, 20, 4, 50
VIDEO_DIM, TEXT_DIM = 768, 512
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 1e-4, 1e-4, 35.0
WITHOUT_EFFECT = ("attention.key.bias", "v_map.bias")
"""Parameters whose true gradient is 0, so that only rounding noise remains."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 32], help="samples of a step")
    parser.add_argument("--repeat", type=int, default=2, help="rounds; the shortest time counts")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--out", type=Path, help="write the measurements to this file, as JSON")
    parser.add_argument("--one", choices=MODELS, help="measure one model in this process, and print a line of JSON")
    args = parser.parse_args()
    if args.one == "plain":
        torch.set_num_threads(args.threads)
    else:
        tune_cpu(args.threads)
    if args.one:
        print(json.dumps(measure(args.one, args.batch[0])))
        return
    print(f"plain and ours agree: largest relative difference {largest_difference():.0e}")
    runs = []
    for number in range(args.repeat):
        for size in args.batch:
            # The order of the models rotates from round to round.
            names = list(MODELS)[number % len(MODELS) :] + list(MODELS)[: number % len(MODELS)]
            for name in names:
                run = in_own_process(name, size, args.threads)
                runs.append({"model": name, "batch": size, "round": number, **run})
                print(f"round {number + 1}, {MODELS[name]}, batch {size}: {run['seconds']:.2f} s", file=sys.stderr)
    rows = summary(runs, args.threads)
    print(table(rows, args.threads))
    if args.out:
        args.out.write_text(json.dumps({"threads": args.threads, "rows": rows, "runs": runs}, indent=1) + "\n")


def in_own_process(name: str, size: int, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", name, "--batch", str(size), "--threads", str(threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{MODELS[name]} at batch {size} ended with {done.returncode} (out of memory?)")
    return json.loads(done.stdout)


def measure(name: str, size: int) -> dict[str, float]:
    """Return wall-clock and CPU seconds of the second step, and peak memory above model and features in MiB."""
    torch.manual_seed(0)
    tokens = TOKENS if name != "sdst" else None
    model, batch = build(name), random_batch(size, tokens, CLIPS, WORDS, VIDEO_DIM, TEXT_DIM)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    before = peak_mib()
    step(name, model, batch, optimizer)
    clock, cpu = time.perf_counter(), time.process_time()
    step(name, model, batch, optimizer)
    return {
        "seconds": time.perf_counter() - clock,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mib": peak_mib() - before,
        "features_mib": batch.video_KBTD.nbytes / 2**20,
    }


def build(name: str) -> nn.Module:
    if name == "sdst":
        return SDST(SDSTConfig(video_dim=VIDEO_DIM, text_dim=TEXT_DIM, levels=LEVELS))
    config = R2TuningConfig(video_dim=VIDEO_DIM, text_dim=TEXT_DIM, levels=LEVELS)
    return R2Tuning(config) if name == "r2" else PlainR2Tuning(config)


def random_batch(size: int, tokens: int | None, clips: int, words: int, video_dim: int, text_dim: int) -> Batch:
    """Return features without padding, with two moments and one positive clip per sample."""
    inner = (tokens,) if tokens else ()
    start = torch.rand(size, 2) * 0.6
    width = 0.1 + torch.rand(size, 2) * 0.3
    inside = (torch.arange(clips)[None, :, None] - start[:, None] * clips) / (width[:, None] * clips)
    saliency = ((inside >= 0) & (inside < 1)).any(-1).float()
    return Batch(
        video_KBTD=torch.randn(LEVELS, size, clips, *inner, video_dim),
        video_mask_BT=torch.ones(size, clips, dtype=torch.bool),
        text_KBLD=torch.randn(LEVELS, size, words, text_dim),
        text_mask_BL=torch.ones(size, words, dtype=torch.bool),
        targets=Targets(
            spans_BG2=torch.stack([start + width / 2, width], -1),
            spans_mask_BG=torch.ones(size, 2, dtype=torch.bool),
            saliency_BT=saliency,
            positive_B=saliency.argmax(1),
        ),
    )


def losses_of(name: str, predictions: Any, batch: Batch) -> dict[str, Tensor]:
    assert batch.targets is not None
    if name == "sdst":
        return sdst_losses(predictions, batch, SDSTLossConfig())
    if name.startswith("plain"):
        return plain_losses(predictions, batch.targets, R2LossConfig())
    return r2_losses(predictions, batch.targets, R2LossConfig())


def step(name: str, model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    losses_of(name, model(batch), batch)["total"].backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
    optimizer.step()


def largest_difference() -> float:
    """Return the largest difference of plain and ours, relative to each array's largest entry.

    Raises:
        AssertionError: if the difference is more than 1e-4.
    """
    torch.manual_seed(0)
    config = R2TuningConfig(video_dim=24, text_dim=16, hidden=32, dropout=0.0, droppath=0.0, padding="exact")
    ours, plain = R2Tuning(config), PlainR2Tuning(config)
    with torch.no_grad():  # away from the initial values, some of which are 0
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    plain.load_state_dict(ours.state_dict())
    batch = padded(random_batch(4, 5, 21, 6, 24, 16), (21, 13, 9, 17), (6, 3, 1, 4))
    arrays = []
    for name, model in (("r2", ours), ("plain", plain)):
        predictions = model(batch)
        losses = losses_of(name, predictions, batch)
        losses["total"].backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if not n.endswith(WITHOUT_EFFECT)}
        outputs = ("logits_BN", "distances_BN2", "video_BTF", "text_BF", "level_video_KBTF", "level_text_KBF")
        arrays.append({n: getattr(predictions, n) for n in outputs} | losses | gradients)
    largest = 0.0
    for name, expected in arrays[1].items():
        assert expected is not None and expected.abs().max() > 0, f"{name} is zero, so nothing is compared"
        difference = ((arrays[0][name] - expected).abs().max() / expected.abs().max()).item()
        assert difference < 1e-4, f"{name}: plain and ours differ by {difference:.1e}"
        largest = max(largest, difference)
    return largest


def padded(batch: Batch, lengths: tuple[int, ...], words: tuple[int, ...]) -> Batch:
    """Return the batch cut to these lengths and padded with zeros."""
    assert batch.targets is not None
    video_mask = torch.arange(batch.video_mask_BT.shape[1]) < torch.tensor(lengths)[:, None]
    text_mask = torch.arange(batch.text_mask_BL.shape[1]) < torch.tensor(words)[:, None]
    return Batch(
        video_KBTD=batch.video_KBTD * video_mask[:, :, None, None],
        video_mask_BT=video_mask,
        text_KBLD=batch.text_KBLD * text_mask[:, :, None],
        text_mask_BL=text_mask,
        targets=Targets(
            spans_BG2=batch.targets.spans_BG2,
            spans_mask_BG=batch.targets.spans_mask_BG,
            saliency_BT=batch.targets.saliency_BT * video_mask,
            positive_B=batch.targets.positive_B.clamp(max=min(lengths) - 1),
        ),
    )


def summary(runs: list[dict[str, Any]], threads: int) -> list[dict[str, Any]]:
    """Return one row per batch size and model: the least of each measurement, and ratios to the plain model."""
    rows = []
    for size in dict.fromkeys(run["batch"] for run in runs):
        least = {
            name: {
                key: min(run[key] for run in runs if run["batch"] == size and run["model"] == name)
                for key in ("seconds", "cpu_seconds", "peak_mib", "features_mib")
            }
            for name in MODELS
        }
        compared = "cpu_seconds" if threads == 1 else "seconds"
        for name, values in least.items():
            rows.append(
                {
                    "batch": size,
                    "model": name,
                    **values,
                    "times_faster": least["plain"][compared] / values[compared],
                    "memory_share": values["peak_mib"] / least["plain"]["peak_mib"],
                }
            )
    return rows


def table(rows: list[dict[str, Any]], threads: int) -> str:
    lines = [f"{'batch':>5}  {'model':<20}{'seconds':>9}{'CPU s':>9}{'peak MiB':>10}{'faster':>9}{'memory':>9}"]
    for row in rows:
        lines.append(
            f"{row['batch']:>5}  {MODELS[row['model']]:<20}{row['seconds']:>9.2f}{row['cpu_seconds']:>9.2f}"
            f"{row['peak_mib']:>10.0f}{row['times_faster']:>8.1f}x{row['memory_share']:>8.0%}"
        )
    return "\n".join([*lines, f"(threads: {threads}; memory is above that of model and features)"])


if __name__ == "__main__":
    main()
