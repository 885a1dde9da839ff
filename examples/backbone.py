"""Add a backbone: the colours of a frame's parts, and words as numbers. It has no weights, so none is needed later.

Legend: C clips, F frames per clip, S side in pixels, D width, L tokens of a query.
"""

import sys
import zlib
from collections.abc import Sequence

import torch

from sidelight.backbones import BACKBONES, FeatureSpec
from sidelight.backbones.common import check_frames, check_pooling, choose_levels
from sidelight.cli.main import main

SIDE, PARTS, WORDS = 32, 4, 64
Levels = int | tuple[int, ...]


class ColourBackbone:
    """Encode a clip by the mean colour of each part of its frames, and a query by its words."""

    def __init__(
        self, *, levels: Levels = 1, pooling: str = "mean", clip_seconds: float = 2.0, frames_per_clip: int = 2
    ) -> None:
        check_pooling(pooling, ["mean"], model="colours")
        self.device = torch.device("cpu")
        self.spec = FeatureSpec(
            backbone="colours",
            weights="none-1",  # a digest of the weights; here a version, to change when the numbers change
            levels=choose_levels(levels, 1, model="colours", pooling=pooling),
            pooling=pooling,
            clip_seconds=clip_seconds,
            frames_per_clip=frames_per_clip,
            resolution=SIDE,
            resize="stretch",
            mean=(0, 0, 0),
            std=(1, 1, 1),
            video_dim=3 * PARTS**2,
            text_dim=WORDS + 1,
        )

    def encode_video(self, frames_CFSS3: torch.Tensor) -> torch.Tensor:
        check_frames(frames_CFSS3, self.spec)
        mean_C3SS = (frames_CFSS3.to(self.device) / 255).mean(1).permute(0, 3, 1, 2)
        return torch.nn.functional.adaptive_avg_pool2d(mean_C3SS, PARTS).flatten(1)[None]

    def encode_text(self, queries: Sequence[str]) -> list[torch.Tensor]:
        rows = [[0, *(1 + zlib.crc32(word.encode()) % WORDS for word in query.lower().split())] for query in queries]
        return [torch.eye(WORDS + 1, device=self.device)[ids][None] for ids in rows]

    def to(self, device: torch.device | str) -> "ColourBackbone":
        self.device = torch.device(device)
        return self


BACKBONES["colours"] = ColourBackbone

if __name__ == "__main__":
    sys.exit(main())
