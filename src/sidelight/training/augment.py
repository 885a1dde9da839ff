"""Change the frames of a video at random, alike in all its frames, so that a model does not learn the pixels by heart.

What is drawn depends on the seed, the epoch and the video alone: a run that was interrupted goes on with the same
frames, on any number of processes.

Legend: C chunks, F frames of a chunk, S side in pixels.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from sidelight.core.options import check_types, require

_SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes of the training videos. None is made unless asked for."""

    crop: float = 1.0
    """Smallest side of a square that is cut from the frames at a random place and enlarged again, as a share of the
    side; 1 cuts nothing.
    """
    jitter: float = 0.0
    """Largest relative change of brightness, contrast and saturation; 0 changes nothing. A world whose queries name
    colours needs a small one.
    """
    flip: bool = False
    """Mirror half of the videos. This makes queries about left and right wrong, so a video with a query that says left
    or right (in English) is never mirrored; leave it off for queries in other languages.
    """

    def __post_init__(self) -> None:
        check_types(self)
        require(self, 0 < self.crop <= 1, "crop", "in (0, 1]")
        require(self, 0 <= self.jitter < 1, "jitter", "in [0, 1)")

    @property
    def changes_nothing(self) -> bool:
        """Check whether all changes are off."""
        return self.crop == 1 and self.jitter == 0 and not self.flip


def augment(
    pixels_CFSS3: npt.NDArray[np.uint8],
    config: AugmentConfig,
    *,
    seed: int,
    epoch: int,
    vid: str,
    queries: Sequence[str],
) -> npt.NDArray[np.uint8]:
    """Return the frames of a video with the changes of one epoch.

    Args:
        pixels_CFSS3: the frames.
        config: which changes.
        seed: of the run.
        epoch: number of the epoch.
        vid: id of the video.
        queries: the queries of the video, which decide whether it may be mirrored.
    """
    if config.changes_nothing:
        return pixels_CFSS3
    rng = np.random.default_rng([seed, epoch, zlib.crc32(vid.encode())])
    share, left, top = rng.uniform(config.crop, 1), rng.random(), rng.random()
    factors = rng.uniform(1 - config.jitter, 1 + config.jitter, 3)
    mirror = config.flip and rng.random() < 0.5 and not any(map(_SIDES.search, queries))
    side = pixels_CFSS3.shape[2]
    kept = max(1, round(share * side))
    first_row, first_column = round(top * (side - kept)), round(left * (side - kept))
    changed = np.empty_like(pixels_CFSS3)
    for number, chunk_FSS3 in enumerate(pixels_CFSS3):  # one at a time: as floats they take four times the space
        cut = chunk_FSS3[:, first_row : first_row + kept, first_column : first_column + kept]
        cut = cut[:, :, ::-1] if mirror else cut
        x_F3SS = torch.from_numpy(cut.copy()).permute(0, 3, 1, 2).float()  # the cache is mapped for reading only
        if kept != side:
            x_F3SS = F.interpolate(x_F3SS, size=(side, side), mode="bilinear", align_corners=False)
        if config.jitter:
            x_F3SS = _recoloured(x_F3SS, *factors.tolist())
        changed[number] = x_F3SS.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return changed


def _recoloured(x_F3SS: torch.Tensor, brightness: float, contrast: float, saturation: float) -> torch.Tensor:
    """Return frames with scaled brightness, contrast around the mean of the chunk, and distance from grey."""
    x_F3SS = x_F3SS * brightness
    mean = x_F3SS.mean()
    x_F3SS = (x_F3SS - mean) * contrast + mean
    grey_F1SS = x_F3SS.mean(1, keepdim=True)
    return (x_F3SS - grey_F1SS) * saturation + grey_F1SS
