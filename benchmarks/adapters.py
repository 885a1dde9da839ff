"""Print what SCADA's adapters change at the start, and how many parameters are trained at full size.

    python benchmarks/adapters.py                  # parameters of VideoMAE S, B and g, counted without memory
    python benchmarks/adapters.py --differences    # a full-size VideoMAE S with random weights, with and without them
    python benchmarks/adapters.py --memory S B g   # peak memory of a training step, counted without memory

The first table counts the weights of the backbone, of each mode's adapters (with the sentence), and of the head. The
second one prints the largest difference of new adapters to the plain backbone, over tokens and clips: it must be 0.

The third table is counted on PyTorch's meta device, on which operations have shapes and no numbers: a forward pass of
the backbone and the adapters, and a backward pass from the clips, of 2 videos with one query each. The count is the
largest number of bytes, in float32, that all tensors of the step take at one time, without weights, their gradients,
the optimiser, the head, and the scratch memory of kernels. Attention counts as a kernel that keeps its inputs, its
output and one number a row (as FlashAttention and PyTorch's kernels on CPU and GPU do).
"""

from __future__ import annotations

import argparse
import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sidelight.backbones.common import run_tower
from sidelight.backbones.videomae import VideoMAETower
from sidelight.core.batch import FrameBatch
from sidelight.models.recompute import MemoryConfig
from sidelight.models.scada import MODES, InnerBranch, Scada, ScadaConfig

SIZES = {"S": (384, 12, 6, 1536, 16), "B": (768, 12, 12, 3072, 16), "g": (1408, 40, 16, 6144, 14)}
"""Width, blocks, heads, hidden width and side of a patch; S and B of VideoMAE, g of VideoMAE V2."""


def videomae(size: str, resolution: int | None = None) -> VideoMAETower:
    """Build a VideoMAE with random weights, that reads 16 frames of 224 pixels or of another resolution."""
    from transformers import VideoMAEConfig, VideoMAEModel

    width, depth, heads, hidden, patch = SIZES[size]
    config: Any = VideoMAEConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=hidden,
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


@torch.no_grad()
def print_differences(chunks: int) -> None:
    torch.manual_seed(0)
    tower = videomae("S")
    shown = torch.randint(0, 256, (1, chunks, 16, 224, 224, 3), dtype=torch.uint8)
    plain: Tensor = tower.model(
        tower.normalise(shown[0].flatten(0, 1)).unflatten(0, (chunks, 16)), None
    ).last_hidden_state
    adapters = [InnerBranch(ScadaConfig(), tower.spec) for _ in range(tower.spec.depth)]
    sentences_NE = torch.randn(1, 768).expand(chunks, -1)
    adapted = run_tower(tower, shown[0], lambda number, x: adapters[number](x, sentences_NE, None))
    print(f"VideoMAE S, {chunks} chunks: tokens of {tuple(plain.shape)}, largest {float(plain.abs().max()):.3f}")
    print(f"tokens, new inner adapters against VideoMAEModel: {float((adapted - plain).abs().max())}")
    batch = FrameBatch(
        frames_VCFSS3=shown,
        video_mask_VT=torch.ones(1, 8 * chunks, dtype=torch.bool),
        sentences_BE=torch.randn(1, 768),
        video_of_B=torch.zeros(1, dtype=torch.long),
    )
    clips = {mode: Scada(ScadaConfig(mode=mode), tower).encode(batch) for mode in MODES}
    for mode in MODES[1:]:
        print(f"clips, mode {mode} against frozen: {float((clips[mode] - clips['frozen']).abs().max())}")


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside and still live, and the largest such number."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

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


def devices(depth: int) -> dict[str, tuple[MemoryConfig, bool]]:
    """Return the ways to save memory by name, and whether they compute in bfloat16."""
    half = MemoryConfig(checkpoint_blocks=depth // 2, chunks_at_once=1)
    none = MemoryConfig(checkpoint_blocks=depth, chunks_at_once=1)
    return {
        "plain": (MemoryConfig(), False),
        "blocks": (MemoryConfig(checkpoint_blocks=1), False),
        "chunks": (MemoryConfig(checkpoint_blocks=1, chunks_at_once=1), False),
        "half": (half, False),
        "borders": (none, False),
        "blocks16": (MemoryConfig(checkpoint_blocks=1), True),
        "half16": (half, True),
        "borders16": (none, True),
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


def step_bytes(size: str, mode: Any, memory: MemoryConfig, bfloat16: bool, frames: int, videos: int = 2) -> StepBytes:
    """Count a step of the backbone and its adapters; g reads 154 pixels, 11 patches of 14.

    Where chunks pass one at a time, every number is a constant plus a multiple of the number of chunks. Then steps of
    2 and of 4 chunks a video are counted, and the line through both is continued, which saves hours.
    """
    if bfloat16 and mode != "full":
        memory = replace(memory, frozen_dtype="bfloat16")
    with torch.device("meta"):
        model = Scada(ScadaConfig(mode=mode), videomae(size, 154 if SIZES[size][4] == 14 else 160), memory)
    del model.head
    chunks = frames // 16
    if memory.chunks_at_once and chunks > 4:
        two, four = (made_bytes(model, bfloat16, count, videos) for count in (2, 4))
        made = two + (four - two) * (chunks - 2) // 2
    else:
        made = made_bytes(model, bfloat16, chunks, videos)
    return StepBytes(
        weights=sum(p.nbytes for p in model.parameters()),
        states=2 * sum(p.nbytes for p in model.parameters() if p.requires_grad),
        frames=videos * frames * 3 * model.spec.resolution**2,
        made=made,
    )


def made_bytes(model: Scada, bfloat16: bool, chunks: int, videos: int) -> int:
    """Return the largest number of bytes that the tensors made in a step take at one time."""
    model.zero_grad()
    side = model.spec.resolution
    batch = FrameBatch(
        frames_VCFSS3=torch.empty(videos, chunks, 16, side, side, 3, dtype=torch.uint8, device="meta"),
        video_mask_VT=torch.ones(videos, 8 * chunks, dtype=torch.bool),
        sentences_BE=torch.randn(videos, 768, device="meta"),
        video_of_B=torch.arange(videos),
    )
    with LiveBytes() as count, as_on_a_device(bfloat16):
        results = model._run(batch, batch.video_mask_VT[:, ::8])
        torch.stack([x.sum() for x in results]).sum().backward()
    return count.peak


def print_memory(sizes: list[str], frames: int) -> None:
    print(f"{frames} frames of 160 x 160 (g: 154 x 154), 2 videos, one query each, GiB; in brackets the share of full")
    for size in sizes:
        names = devices(SIZES[size][1])
        print(f"{size:<5}{'mode':<8}" + "".join(f"{name:>15}" for name in names))
        full: dict[str, int] = {}
        for mode in MODES[:0:-1]:
            cells = []
            for name, (memory, bfloat16) in names.items():
                bytes_ = step_bytes(size, mode, memory, bfloat16, frames).total
                share = bytes_ / full.setdefault(name, bytes_)
                cells.append(f"{bytes_ / 2**30:.2f} ({share:.0%})")
            print(f"{size:<5}{mode:<8}" + "".join(f"{cell:>15}" for cell in cells), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--differences", action="store_true", help="compare with the plain backbone, on this machine")
    parser.add_argument("--chunks", type=int, default=2, help="chunks of 16 frames to compare (default: 2)")
    parser.add_argument("--memory", nargs="+", choices=SIZES, help="sizes whose peak memory is counted")
    parser.add_argument("--frames", type=int, default=512, help="frames of a video for --memory (default: 512)")
    options = parser.parse_args()
    if options.memory:
        print_memory(options.memory, options.frames)
    elif options.differences:
        print_differences(options.chunks)
    else:
        print_shares()
