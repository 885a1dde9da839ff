"""The losses of R2-Tuning (Liu et al., ECCV 2024, arXiv 2404.00801, Sec. 3.4), which all point models use.

First the total, then the class loss and the L1 loss, then the assignment of targets to points. The contrastive losses
are in ``contrastive.py``.

As in the published code, and unlike the paper:

- The class loss is a focal loss without alpha.
- In SampledNCE, clips as salient as the positive clip are negatives.

Unlike the published code, all losses are finite and have finite gradients: without a positive point the L1 loss is 0.

Shape legend: B batch, K levels, T clips, N points, G ground-truth spans, F hidden width, 2 (start, end) in clips or the
distances to them, 4 (position, least and greatest reach, stride).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sidelight.core import spans
from sidelight.core.batch import Targets
from sidelight.core.options import require
from sidelight.models.losses.contrastive import ContrastiveConfig, alignment_losses, sampled_nce_loss
from sidelight.models.points import PointPredictions

_GRAIN = 1024
"""Ground-truth edges are rounded to this many parts of a clip. Points lie on whole clips, and edges often do too. The
rounding error of (center, width), such as 2.9999998, must not decide whether a point lies inside.
"""


@dataclass(frozen=True, kw_only=True)
class R2LossConfig(ContrastiveConfig):
    """Weights and options of the losses. Defaults are those for QVHighlights."""

    weight_class: float = 1.0
    """Weight of the class loss of all points."""
    weight_l1: float = 0.2
    """Weight of L1 of the distances to start and end, in strides, at positive points."""
    class_loss: Literal["focal", "bce"] = "focal"
    """Focal loss against positive and negative points, or binary cross-entropy against the clips' saliency
    (TVSum and YouTube Highlights; needs points at stride 1 only).
    """
    focal_gamma: float = 2.0
    """Exponent of the focal loss; a larger one gives more weight to hard points."""
    center_radius: float = 1.5
    """Greatest distance, in strides, of a positive point from the center of its moment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, self.center_radius > 0, "center_radius", "above 0")


def r2_losses(predictions: PointPredictions, targets: Targets, config: R2LossConfig) -> dict[str, Tensor]:
    """Return every loss by name, not weighted, and their weighted sum "total" (scalars in float32).

    Raises:
        ValueError: if the class loss is "bce" and the number of points is not that of the clips.
    """
    with torch.autocast(predictions.logits_BN.device.type, enabled=False):
        logits_BN = predictions.logits_BN.float()
        losses: dict[str, Tensor] = {}
        if config.class_loss == "bce":
            goal_BN = targets.saliency_BT.float()
            if goal_BN.shape != logits_BN.shape:
                raise ValueError(
                    "the class loss 'bce' compares every clip with its saliency and needs one point per clip "
                    f"(strides=(1,)), got {logits_BN.shape[1]} points for {goal_BN.shape[1]} clips"
                )
            losses["class"] = class_loss(logits_BN, goal_BN, predictions.point_mask_BN, gamma=0.0)
        else:
            windows_BG2 = spans_in_clips(targets.spans_BG2, predictions.video_mask_BT.sum(1))
            goal_BN, goal_distances_BN2 = assign_points(
                predictions.points_N4, windows_BG2, targets.spans_mask_BG, config.center_radius
            )
            losses["class"] = class_loss(logits_BN, goal_BN, predictions.point_mask_BN, gamma=config.focal_gamma)
            if predictions.distances_BN2 is not None:
                losses["l1"] = distance_loss(predictions.distances_BN2.float(), goal_distances_BN2, goal_BN > 0)
        losses["saliency"] = sampled_nce_loss(
            predictions.cosine_BT(), predictions.video_mask_BT, targets, config, ties="negative"
        )
        video_KBTF, text_KBF = predictions.level_video_KBTF.float(), predictions.level_text_KBF.float()
        aligned = alignment_losses(video_KBTF, text_KBF, targets, config)
        # The mean of the two directions, not their sum.
        losses |= {name: loss_K.mean() / 2 for name, loss_K in aligned.items()}
        losses["total"] = torch.stack([getattr(config, f"weight_{n}") * loss for n, loss in losses.items()]).sum()
    return losses


def class_loss(logits_BN: Tensor, goal_BN: Tensor, mask_BN: Tensor, *, gamma: float) -> Tensor:
    """Return the focal loss without alpha (gamma 0: binary cross-entropy), the mean over the points of the mask."""
    loss_BN = F.binary_cross_entropy_with_logits(logits_BN, goal_BN, reduction="none")
    if gamma:
        loss_BN = loss_BN * (goal_BN - logits_BN.sigmoid()).abs() ** gamma
    return torch.where(mask_BN, loss_BN, 0).sum() / mask_BN.sum().clamp(min=1)


def distance_loss(distances_BN2: Tensor, goal_BN2: Tensor, positive_BN: Tensor) -> Tensor:
    """Return L1, the mean over both distances of the positive points; 0 if no point is positive."""
    gap_BN = (distances_BN2 - goal_BN2).abs().sum(-1)
    return torch.where(positive_BN, gap_BN, 0).sum() / (2 * positive_BN.sum()).clamp(min=1)


def spans_in_clips(spans_BG2: Tensor, lengths_B: Tensor) -> Tensor:
    """Convert (center, width) in units of the extent to (start, end) in clips, rounded to 1/1024 clip."""
    return places_in_clips(spans.cw_to_se(_exact(spans_BG2)), lengths_B[:, None, None])


def places_in_clips(places: Tensor, lengths: Tensor) -> Tensor:
    """Convert places in units of the extent to clips, rounded to 1/1024 clip; a rounding error then decides nothing."""
    return ((_exact(places) * lengths * _GRAIN).round() / _GRAIN).float()


def _exact(values: Tensor) -> Tensor:
    """Return values in float64; unchanged on Apple's GPUs (mps), which have no float64."""
    return values if values.device.type == "mps" else values.double()


@torch.no_grad()
def assign_points(
    points_N4: Tensor, windows_BG2: Tensor, mask_BG: Tensor, radius: float = 1.5
) -> tuple[Tensor, Tensor]:
    """Return the goal of each point: 1 or 0 (B, N), and its distances to start and end in strides (B, N, 2).

    A point is positive for a window (start, end), in clips, if it lies inside, at most ``radius`` strides from the
    center, and if the greater of its two distances lies in the point's range. If several windows fit, the shortest
    counts (of two equal ones the earlier). The distances of a negative point have no meaning.
    """
    size, count = windows_BG2.shape[:2]
    if count == 0:
        return windows_BG2.new_zeros(size, len(points_N4)), windows_BG2.new_zeros(size, len(points_N4), 2)
    position_N1, low_N1, high_N1, stride_N1 = points_N4.unsqueeze(-1).unbind(1)
    start_B1G, end_B1G = windows_BG2.unsqueeze(1).unbind(-1)
    to_start, to_end = position_N1 - start_B1G, end_B1G - position_N1
    center = (start_B1G + end_B1G) / 2
    inside = (to_start >= 0) & (to_end >= 0)
    inside &= (position_N1 >= center - stride_N1 * radius) & (position_N1 <= center + stride_N1 * radius)
    reach = torch.maximum(to_start, to_end)
    fits_BNG = inside & (reach >= low_N1) & (reach <= high_N1) & mask_BG.unsqueeze(1)
    length_BNG = (end_B1G - start_B1G).expand_as(reach).masked_fill(~fits_BNG, math.inf)
    chosen_BN1 = length_BNG.argmin(-1, keepdim=True)
    distances = torch.stack([to_start.gather(-1, chosen_BN1), to_end.gather(-1, chosen_BN1)], -1).squeeze(-2)
    return fits_BNG.any(-1).float(), distances / stride_N1
