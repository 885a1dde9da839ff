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
import weakref
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental import _config as meta_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sidelight.backbones.common import run_tower
from sidelight.backbones.videomae import VideoMAETower
from sidelight.core.batch import FrameBatch
from sidelight.models.scada import MODES, InnerBranch, MemoryConfig, Scada, ScadaConfig

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


DEVICES = {
    "plain": MemoryConfig(),
    "checkpoint": MemoryConfig(checkpoint_blocks=1),
    "chunks": MemoryConfig(chunks_at_once=1),
    "both": MemoryConfig(checkpoint_blocks=1, chunks_at_once=1),
    "groups": MemoryConfig(checkpoint_blocks=4, chunks_at_once=1),
}


def peak_bytes(size: str, mode: Any, memory: MemoryConfig, frames: int, videos: int = 2) -> int:
    """Return the peak of a step of the backbone and its adapters; g reads 154 pixels, 11 patches of 14."""
    with torch.device("meta"):
        model = Scada(ScadaConfig(mode=mode), videomae(size, 154 if SIZES[size][4] == 14 else 160), memory)
    side, chunks = model.spec.resolution, frames // 16
    batch = FrameBatch(
        frames_VCFSS3=torch.empty(videos, chunks, 16, side, side, 3, dtype=torch.uint8),
        video_mask_VT=torch.ones(videos, 8 * chunks, dtype=torch.bool),
        sentences_BE=torch.randn(videos, 768),
        video_of_B=torch.arange(videos),
    )
    meta_config.meta_nonzero_assume_all_nonzero = True  # all chunks and all clips are real
    # The meta device computes attention unfused, which would count scores that no device keeps.
    plain = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda q, k, v, **options: Attention.apply(q, k, v)  # type: ignore[assignment]
    try:
        with LiveBytes() as count:
            model.encode(batch.to("meta")).sum().backward()
    finally:
        F.scaled_dot_product_attention = plain
    return count.peak


def print_memory(sizes: list[str], frames: int) -> None:
    print(f"{frames} frames of 160 x 160 (g: 154 x 154), 2 videos, GiB")
    print(f"{'size':<5}{'mode':<8}" + "".join(f"{name:>12}" for name in DEVICES))
    for size in sizes:
        for mode in MODES[:0:-1]:
            peaks = [peak_bytes(size, mode, memory, frames) / 2**30 for memory in DEVICES.values()]
            print(f"{size:<5}{mode:<8}" + "".join(f"{peak:>12.2f}" for peak in peaks), flush=True)


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
