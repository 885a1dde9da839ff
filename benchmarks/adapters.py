"""Print what SCADA's adapters change at the start, and what they cost in parameters and memory.

    python benchmarks/adapters.py                  # parameters of VideoMAE S, B and g, counted without memory
    python benchmarks/adapters.py --differences    # new adapters against plain backbones
    python benchmarks/adapters.py --memory S B g   # peak memory of a training step, counted without memory
    python benchmarks/adapters.py --measure        # the same of VideoMAE S with few frames, counted and measured

The first table counts the weights of the backbone, of each mode's adapters (with the sentence), and of the head. The
second one prints the largest difference over the tokens after the last block (column "inner", new inner branches
alone), and over the clips of each mode.

The memory of a step is that of the backbone and its adapters at the peak, for 2 videos with one query each:

- all weights, the two moments of AdamW of each trained weight, and the frames of the batch in uint8;
- the largest number of bytes that the tensors made in the step take at one time: kept and computed values, gradients of
  tokens and of weights. They are counted on PyTorch's meta device, on which operations have shapes and no numbers.

The head is left out (it is the same in all modes), and so is the scratch memory of kernels. Attention counts as a
kernel that keeps its inputs, its output and one number a row (as FlashAttention and PyTorch's kernels do). The ways:
"plain" keeps everything; "blocks" keeps the tokens before each block; "chunks" computes one chunk at a time besides,
and keeps borders in place of the tokens of coupled chunks (``models/recompute.py``); with "bf16", products are in
bfloat16, and so are the frozen matrices and the tokens; weights that are trained, their gradients and moments stay in
float32.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import itertools
import os
import resource
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sidelight.backbones import TrainableTower, load_tower
from sidelight.backbones.common import run_tower
from sidelight.backbones.videomae import VideoMAETower
from sidelight.core.batch import FrameBatch
from sidelight.models import recompute
from sidelight.models.recompute import MemoryConfig
from sidelight.models.scada import MODES, InnerBranch, Scada, ScadaConfig

SIZES = {"S": (384, 12, 6, 1536, 16), "B": (768, 12, 12, 3072, 16), "g": (1408, 40, 16, 6144, 14)}
"""Width, blocks, heads, hidden width and side of a patch; S and B of VideoMAE, g of VideoMAE V2."""


def videomae(size: str, resolution: int | None = None, depth: int | None = None) -> VideoMAETower:
    """Build a VideoMAE with random weights, that reads 16 frames of 224 pixels or of another resolution."""
    from transformers import VideoMAEConfig, VideoMAEModel

    width, blocks, heads, hidden, patch = SIZES[size]
    config: Any = VideoMAEConfig(
        hidden_size=width, num_hidden_layers=depth or blocks, num_attention_heads=heads, intermediate_size=hidden,
        patch_size=patch, use_mean_pooling=False,
    )  # fmt: skip
    return VideoMAETower(model=VideoMAEModel(config), resolution=resolution)


def print_shares() -> None:
    print(f"{'size':<5}{'mode':<8}{'backbone':>15}{'trained in it':>15}{'share':>8}{'head':>11}")
    for size in SIZES:
        for mode in MODES:
            with torch.device("meta"):
                model = Scada(ScadaConfig(mode=mode), videomae(size))
            backbone = sum(p.numel() for p in model.tower.parameters())
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            head = sum(p.numel() for p in model.head.parameters())
            inside = trained - head
            print(f"{size:<5}{mode:<8}{backbone:>15,}{inside:>15,}{inside / backbone:>8.1%}{head:>11,}")


def towers() -> dict[str, Callable[[], TrainableTower]]:
    """Return the backbones that are compared, all with random weights but shapes."""
    from transformers import VideoMAEConfig, VideoMAEModel

    tiny: Any = VideoMAEConfig(
        image_size=32, patch_size=8, num_frames=8, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=2, use_mean_pooling=False,
    )  # fmt: skip
    return {
        "VideoMAE tiny": lambda: VideoMAETower(model=VideoMAEModel(tiny)),
        "VideoMAE S": lambda: videomae("S"),
        "shapes": lambda: load_tower("shapes"),
        "I3D": i3d,
    }


def i3d() -> TrainableTower:
    """Build an I3D whose random weights keep the size of the numbers."""
    tower = load_tower("i3d", random_weights=True)
    for module in cast(nn.Module, tower).modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return tower


@torch.no_grad()
def print_differences(chunks: int) -> None:
    print(f"{chunks} chunks, largest difference of new adapters to the plain backbone (it must be 0)")
    print(f"{'backbone':<15}{'tokens':>18}{'largest':>9}{'inner':>7}" + "".join(f"{mode:>7}" for mode in MODES[1:]))
    for name, build in towers().items():
        torch.manual_seed(0)
        tower = build()
        spec = tower.spec
        shown = torch.randint(0, 256, (1, chunks, spec.frames, spec.resolution, spec.resolution, 3), dtype=torch.uint8)
        plain = run_tower(tower, shown[0])
        adapters = [InnerBranch(ScadaConfig(), stage) for stage in tower.stages]
        sentences_NE = torch.randn(1, 768).expand(chunks, -1)
        adapted = run_tower(
            tower,
            shown[0],
            lambda number, x, a=adapters, s=sentences_NE: a[number](x, s, None),  # type: ignore[misc]  # mypy infers no lambda with defaults
        )
        batch = FrameBatch(
            frames_VCFSS3=shown,
            video_mask_VT=torch.ones(1, spec.grid[0] * chunks, dtype=torch.bool),
            sentences_BE=torch.randn(1, 768),
            video_of_B=torch.zeros(1, dtype=torch.long),
        )
        clips = {mode: Scada(ScadaConfig(mode=mode), tower).encode(batch) for mode in MODES}  # type: ignore[arg-type]  # a str, one of MODES
        differences = [adapted - plain, *(clips[mode] - clips["frozen"] for mode in MODES[1:])]
        cells = "".join(f"{float(x.abs().max()):>7g}" for x in differences)
        print(f"{name:<15}{tuple(plain.shape)!s:>18}{float(plain.abs().max()):>9.3f}{cells}", flush=True)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside and still live, and the largest such number.

    Args:
        existing: tensors that were made before; views of them are not counted.
    """

    def __init__(self, existing: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.before = [tensor.untyped_storage() for tensor in existing]
        self.seen = {storage._cdata for storage in self.before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device.type == "meta":
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


class Attention(torch.autograd.Function):
    """Attention as a fused kernel keeps it: the inputs, the output, and one number a row. It computes nothing."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1]))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


@contextlib.contextmanager
def as_on_a_device(bfloat16: bool) -> Iterator[None]:
    """Count attention as a fused kernel; and cast as autocast to bfloat16 does, which the meta device does not have."""

    def casting(function: Any, dtype: torch.dtype) -> Any:
        def cast(x: Any) -> Any:
            return x.to(dtype) if isinstance(x, Tensor) else x

        return lambda *args, **options: function(*map(cast, args), **{k: cast(x) for k, x in options.items()})

    changed = {"scaled_dot_product_attention": lambda q, k, v, **options: Attention.apply(q, k, v)}
    if bfloat16:
        changed |= {
            name: casting(getattr(F, name), torch.bfloat16) for name in ("linear", "conv1d", "conv2d", "conv3d")
        }
        changed["layer_norm"] = casting(F.layer_norm, torch.float32)
    with mock.patch.multiple(F, **changed):
        yield


def tokens_again(self: recompute._Backward, step: int, k: int) -> Tensor:
    """Return tokens in place of those that are computed again over several steps, which holds less than one step."""
    with torch.no_grad():
        return self.stack.start(self.frames[k])


def devices(depth: int) -> dict[str, tuple[MemoryConfig, bool]]:
    """Return the ways to save memory by name, and whether they compute in bfloat16."""
    borders = MemoryConfig(checkpoint_blocks=depth, chunks_at_once=1)
    return {
        "plain": (MemoryConfig(), False),
        "blocks": (MemoryConfig(checkpoint_blocks=1), False),
        "chunks": (borders, False),
        "chunks, bf16": (borders, True),
    }


@dataclass(frozen=True)
class StepBytes:
    """Bytes that a step holds at its peak."""

    weights: int
    """Weights of the backbone, the adapters and the norm of the clips."""
    states: int
    """The two moments of AdamW of each trained weight, in float32."""
    frames: int
    """The frames of the batch."""
    made: int
    """Tensors made in the step at its peak: kept and computed values, gradients of the weights among them."""

    @property
    def total(self) -> int:
        return self.weights + self.states + self.frames + self.made


@functools.cache
def meta_tower(size: str, depth: int) -> VideoMAETower:
    with torch.device("meta"):
        return videomae(size, 154 if SIZES[size][4] == 14 else 160, depth)


def meta_model(size: str, mode: Any, memory: MemoryConfig, depth: int) -> Scada:
    """Build a model without its head, on the meta device; g reads 154 pixels, 11 patches of 14."""
    if memory.checkpoint_blocks > 1:  # keeps borders alone
        memory = replace(memory, checkpoint_blocks=depth)
    with torch.device("meta"):
        model = Scada(ScadaConfig(mode=mode), copy.deepcopy(meta_tower(size, depth)), memory)
    del model.head
    return model


def fitting(mode: Any, memory: MemoryConfig) -> MemoryConfig:
    """Return the configuration for a mode: independent chunks have no borders, and are checkpointed block by block."""
    is_independent = ScadaConfig(mode=mode).has_independent_chunks
    return replace(memory, checkpoint_blocks=1) if memory.chunks_at_once and is_independent else memory


def step_bytes(size: str, mode: Any, memory: MemoryConfig, bfloat16: bool, frames: int, videos: int = 2) -> StepBytes:
    """Count a step of the backbone and its adapters.

    Where chunks pass one at a time, the bytes are a line over the number of chunks and over the number of blocks. Steps
    of 1 and 2 chunks a video and of 3 and 6 blocks are counted, and the lines are continued. VideoMAE S in mode both
    with 8 chunks: 3 % more than a count of all of them.
    """
    if bfloat16 and mode != "full":
        memory = replace(memory, frozen_dtype="bfloat16")
    memory = fitting(mode, memory)
    chunks, depth = frames // 16, SIZES[size][1]
    in_turn = bool(memory.chunks_at_once) and chunks > 4

    def made(depth: int) -> int:
        model = meta_model(size, mode, memory, depth)
        counted = functools.partial(made_bytes, model, bfloat16, videos)
        return _continued(counted, 1, 2, chunks) if in_turn else counted(chunks)

    model = meta_model(size, mode, memory, depth)
    return StepBytes(
        weights=sum(p.nbytes for p in model.parameters()),
        states=2 * sum(p.nbytes for p in model.parameters() if p.requires_grad),
        frames=videos * frames * 3 * model.spec.resolution**2,
        made=_continued(made, 3, 6, depth) if in_turn else made(depth),
    )


def _continued(function: Callable[[int], int], first: int, second: int, place: int) -> int:
    """Return the value at a place of the line through two values of a function."""
    a, b = function(first), function(second)
    return a + (b - a) * (place - first) // (second - first)


def made_bytes(model: Scada, bfloat16: bool, videos: int, chunks: int) -> int:
    """Return the largest number of bytes that the tensors made in a step take at one time."""
    model.zero_grad()
    side = model.spec.resolution
    batch = FrameBatch(
        frames_VCFSS3=torch.empty(videos, chunks, 16, side, side, 3, dtype=torch.uint8, device="meta"),
        video_mask_VT=torch.ones(videos, 8 * chunks, dtype=torch.bool),
        sentences_BE=torch.randn(videos, 768, device="meta"),
        video_of_B=torch.arange(videos),
    )
    again = mock.patch.object(recompute._Backward, "_tokens", tokens_again)
    existing = [*model.parameters(), *model.buffers(), batch.frames_VCFSS3, batch.sentences_BE]
    with LiveBytes(existing) as count, as_on_a_device(bfloat16), again:
        results = model._run(batch, batch.video_mask_VT[:, ::8])
        torch.stack([x.sum() for x in results]).sum().backward()
    return count.peak


def print_memory(sizes: list[str], frames: int) -> None:
    print(f"{frames} frames of 160 x 160 (g: 154 x 154), 2 videos, one query each, GiB; in brackets the share of full")
    for size in sizes:
        names = devices(SIZES[size][1])
        print(f"{size:<5}{'mode':<8}" + "".join(f"{name:>16}" for name in names))
        full: dict[str, int] = {}
        for mode in MODES[:0:-1]:
            cells = []
            for name, (memory, bfloat16) in names.items():
                bytes_ = step_bytes(size, mode, memory, bfloat16, frames).total
                share = bytes_ / full.setdefault(name, bytes_)
                cells.append(f"{bytes_ / 2**30:.2f} ({share:.0%})")
            print(f"{size:<5}{mode:<8}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


def measured_bytes(mode: Any, memory: MemoryConfig, frames: int, videos: int) -> int:
    """Return what a whole step of VideoMAE S adds to the memory of a process, on the CPU, with AdamW."""
    reader, writer = os.pipe()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = os.fork()
    if child == 0:  # a process of its own, since memory that was freed may stay with a process
        model = Scada(ScadaConfig(mode=mode), videomae("S", 160), memory)
        del model.head
        batch = FrameBatch(
            frames_VCFSS3=torch.randint(0, 256, (videos, frames // 16, 16, 160, 160, 3), dtype=torch.uint8),
            video_mask_VT=torch.ones(videos, frames // 2, dtype=torch.bool),
            sentences_BE=torch.randn(videos, 768),
            video_of_B=torch.arange(videos),
        )
        optimiser = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), foreach=False)
        for _ in range(2):  # the first step makes the moments
            optimiser.zero_grad()
            torch.stack([x.sum() for x in model._run(batch, batch.video_mask_VT[:, ::8])]).sum().backward()
            optimiser.step()
        os.write(writer, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return (int(os.read(reader, 100)) - before) * 1024


def print_measured(frames: int) -> None:
    print(f"VideoMAE S, {frames} frames of 160 x 160, 1 video, GiB")
    print(f"{'mode':<8}{'way':<10}{'counted':>9}{'measured':>10}")
    ways = {name: memory for name, (memory, bfloat16) in devices(12).items() if not bfloat16}
    for mode, name in itertools.product(("full", "both"), ("plain", "chunks")):
        counted = step_bytes("S", mode, ways[name], False, frames, 1).total / 2**30
        measured = measured_bytes(mode, fitting(mode, ways[name]), frames, 1) / 2**30
        print(f"{mode:<8}{name:<10}{counted:>9.2f}{measured:>10.2f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--differences", action="store_true", help="compare with the plain backbone, on this machine")
    parser.add_argument("--chunks", type=int, default=2, help="chunks of 16 frames to compare (default: 2)")
    parser.add_argument("--memory", nargs="+", choices=SIZES, help="sizes whose peak memory is counted")
    parser.add_argument("--measure", action="store_true", help="measure VideoMAE S in a process, beside the count")
    parser.add_argument("--frames", type=int, help="frames of a video (default: 512 for --memory, 32 for --measure)")
    options = parser.parse_args()
    if options.memory:
        print_memory(options.memory, options.frames or 512)
    elif options.measure:
        print_measured(options.frames or 32)
    elif options.differences:
        print_differences(options.chunks)
    else:
        print_shares()
