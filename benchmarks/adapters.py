"""Print what SCADA's adapters change at the start, and how many parameters are trained at full size.

    python benchmarks/adapters.py                  # parameters of VideoMAE S, B and g, counted without memory
    python benchmarks/adapters.py --differences    # a full-size VideoMAE S with random weights, with and without them

The first table counts the weights of the backbone, of each mode's adapters (with the sentence), and of the head. The
second one prints the largest difference of new adapters to the plain backbone, over tokens and clips: it must be 0.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from sidelight.backbones.common import run_tower
from sidelight.backbones.videomae import VideoMAETower
from sidelight.core.batch import FrameBatch
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--differences", action="store_true", help="compare with the plain backbone, on this machine")
    parser.add_argument("--chunks", type=int, default=2, help="chunks of 16 frames to compare (default: 2)")
    options = parser.parse_args()
    print_differences(options.chunks) if options.differences else print_shares()
