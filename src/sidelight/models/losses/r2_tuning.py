"""The losses of R2-Tuning (arXiv 2404.00801, Sec. 3.4): assignment of targets to points, one function per loss.

As in the published code, and not in the paper: the class loss is a focal loss without alpha, and clips as
salient as the positive one count as negatives. Unlike the published code, every loss is finite and has finite
gradients: without a positive point the L1 loss is 0, and a clip index that is masked in every sample harms
nothing. Samples without a positive clip take no part in the contrastive losses.

Shape legend: B batch, K levels, T clips, N points, G ground-truth spans, F hidden width, 2 (start, end) in clips
or the distances to them, 4 (position, least and greatest reach, stride).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sidelight.core import spans
from sidelight.core.batch import Targets
from sidelight.core.options import check_types, require
from sidelight.models.losses.sdst import SDSTLossConfig, alignment_losses, sampled_nce_loss
from sidelight.models.points import PointPredictions

_GRAIN = 1024
"""Ground-truth edges are placed on this many parts of a clip: points lie on whole clips, edges often do too, and
what a change of form leaves behind (2.9999998) must not decide whether a point lies inside.
"""


@dataclass(frozen=True, kw_only=True)
class R2LossConfig:
    """Weights and options of the losses. Defaults are those for QVHighlights."""

    weight_class: float = 1.0
    """Class loss of all points."""
    weight_l1: float = 0.2
    """L1 of the distances to start and end, in strides, at positive points."""
    weight_saliency: float = 0.1
    """SampledNCE of clip and query."""
    weight_alignment_batch: float = 0.1
    """InfoNCE of clip and query across the batch, every level ("video calibration")."""
    weight_alignment_levels: float = 0.1
    """InfoNCE of clip and query across the levels, every sample ("layer calibration")."""
    class_loss: Literal["focal", "bce"] = "focal"
    """Focal loss against positive and negative points, or binary cross-entropy against the clips' saliency
    (TVSum and YouTube Highlights; needs points at stride 1 only).
    """
    focal_gamma: float = 2.0
    """How much the focal loss favours hard points."""
    center_radius: float = 1.5
    """A point is positive within this many strides of a moment's center."""
    nce_temperature: float = 0.07
    """Temperature of the highlight loss."""
    nce_directions: tuple[str, ...] = ("row", "col")
    """What a positive clip must beat: clips of its own video (row), the same clip index of other samples
    (col); TVSum and YouTube Highlights use the first alone.
    """
    alignment_temperature: float = 0.07
    """Temperature of the alignment losses."""

    def __post_init__(self) -> None:
        check_types(self)
        for field in fields(self):
            if field.name.startswith("weight_") or field.name == "focal_gamma":
                require(self, 0 <= getattr(self, field.name) < math.inf, field.name, "at least 0 and finite")
            if field.name.endswith("_temperature") or field.name == "center_radius":
                require(self, getattr(self, field.name) > 0, field.name, "above 0")
        known = bool(self.nce_directions) and set(self.nce_directions) <= {"row", "col"}
        require(self, known, "nce_directions", "'row', 'col' or both")


def r2_losses(predictions: PointPredictions, targets: Targets, config: R2LossConfig) -> dict[str, Tensor]:
    """Every loss by name, not yet weighted, and their weighted sum "total" (scalars in float32)."""
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
            lengths_B = predictions.video_mask_BT.sum(1)
            windows_BG2 = spans_in_clips(targets.spans_BG2, lengths_B)
            found = assign_points(predictions.points_N4, windows_BG2, targets.spans_mask_BG, config.center_radius)
            goal_BN, distances_BN2 = found
            losses["class"] = class_loss(logits_BN, goal_BN, predictions.point_mask_BN, gamma=config.focal_gamma)
            if predictions.distances_BN2 is not None:
                losses["l1"] = distance_loss(predictions.distances_BN2.float(), distances_BN2, goal_BN > 0)
        # The two contrastive losses are SDST's, which took them from here.
        contrast = SDSTLossConfig(
            nce_temperature=config.nce_temperature,
            nce_directions=config.nce_directions,
            nce_ties="negative",
            alignment_temperature=config.alignment_temperature,
            level_reduction="mean",
        )
        cosine_BT = F.cosine_similarity(predictions.video_BTF.float(), predictions.text_BF.float().unsqueeze(1), dim=-1)
        losses["saliency"] = sampled_nce_loss(cosine_BT, predictions.video_mask_BT, targets, contrast)
        video_KBTF, text_KBF = predictions.level_video_KBTF.float(), predictions.level_text_KBF.float()
        aligned = alignment_losses(video_KBTF, text_KBF, targets, contrast)
        losses |= {name: loss / 2 for name, loss in aligned.items()}  # the mean of the two directions, not the sum
        losses["total"] = torch.stack([getattr(config, f"weight_{n}") * loss for n, loss in losses.items()]).sum()
    return losses


def class_loss(logits_BN: Tensor, goal_BN: Tensor, mask_BN: Tensor, *, gamma: float) -> Tensor:
    """Focal loss without alpha (at gamma 0: binary cross-entropy), the mean over the points that count."""
    loss_BN = F.binary_cross_entropy_with_logits(logits_BN, goal_BN, reduction="none")
    if gamma:
        loss_BN = loss_BN * (goal_BN - logits_BN.sigmoid()).abs() ** gamma
    return torch.where(mask_BN, loss_BN, 0).sum() / mask_BN.sum().clamp(min=1)


def distance_loss(distances_BN2: Tensor, goal_BN2: Tensor, positive_BN: Tensor) -> Tensor:
    """L1, the mean over both distances of the positive points; 0 where there is none."""
    gap_BN = (distances_BN2 - goal_BN2).abs().sum(-1)
    return torch.where(positive_BN, gap_BN, 0).sum() / (2 * positive_BN.sum()).clamp(min=1)


def spans_in_clips(spans_BG2: Tensor, lengths_B: Tensor) -> Tensor:
    """(center, width) in units of the extent -> (start, end) in clips, on a grain of 1/1024 clip."""
    edges = spans.cw_to_se(spans_BG2.double()) * lengths_B[:, None, None]
    return ((edges * _GRAIN).round() / _GRAIN).float()


@torch.no_grad()
def assign_points(
    points_N4: Tensor, windows_BG2: Tensor, mask_BG: Tensor, radius: float = 1.5
) -> tuple[Tensor, Tensor]:
    """What each point should say: 1 or 0 (B, N), and its distances to start and end in strides (B, N, 2).

    A point is positive for a window (start, end), in clips, if it lies inside, at most ``radius`` strides from
    the center, and if the greater of its two distances lies in the point's range. Of several, the shortest
    window counts (the earlier one of two equal ones). Distances mean nothing where a point is negative.
    """
    size, count = windows_BG2.shape[:2]
    if count == 0:
        return windows_BG2.new_zeros(size, len(points_N4)), windows_BG2.new_zeros(size, len(points_N4), 2)
    place_N1, low_N1, high_N1, stride_N1 = points_N4.unsqueeze(-1).unbind(1)
    start_B1G, end_B1G = windows_BG2.unsqueeze(1).unbind(-1)
    to_start, to_end = place_N1 - start_B1G, end_B1G - place_N1
    center = (start_B1G + end_B1G) / 2
    inside = (to_start >= 0) & (to_end >= 0)
    inside &= (place_N1 >= center - stride_N1 * radius) & (place_N1 <= center + stride_N1 * radius)
    reach = torch.maximum(to_start, to_end)
    fits_BNG = inside & (reach >= low_N1) & (reach <= high_N1) & mask_BG.unsqueeze(1)
    length_BNG = (end_B1G - start_B1G).expand_as(reach).masked_fill(~fits_BNG, math.inf)
    chosen_BN1 = length_BNG.argmin(-1, keepdim=True)
    distances = torch.stack([to_start.gather(-1, chosen_BN1), to_end.gather(-1, chosen_BN1)], -1).squeeze(-2)
    return fits_BNG.any(-1).float(), distances / stride_N1
