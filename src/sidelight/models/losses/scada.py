"""The losses of SCADA: L_boundary + L_iou + L_offset.

The paper names balanced cross-entropy at boundaries, classification and L2 of the IoU, and smooth L1 of the offsets. It
gives no weights and no targets. Those of BMN (Lin et al., ICCV 2019), which has the first three, are taken:

- A clip is a start if at least half of it lies within 1.5 clips of a moment's start; an end in the same way.
- Balanced cross-entropy: half the mean over positives plus half the mean over the others.
- A pair is positive for the classification above an IoU of 0.9; the L2 loss has weight 10, and pairs of high (above
  0.7), middle and low (at most 0.3) IoU count alike. BMN draws as many of each kind; here the mean of each kind is
  taken, which is the expectation of that draw, and needs no random numbers.
- The offsets (ours) are compared at pairs above an IoU of 0.7, with the moment that overlaps the pair most.
- The best pair of each moment is always positive (ours), since coarse clips may have no pair above the thresholds.

BMN balances over a batch. Here each query is balanced alone and the losses are means over the queries, so that a batch
gives the same gradient as its queries one by one.

Shape legend: B queries, T clips, A pairs, W moments, 2 (start, end) in clips.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from sidelight.core import spans
from sidelight.core.batch import FrameBatch, Targets
from sidelight.core.options import check_types, require
from sidelight.models.losses.r2_tuning import spans_in_clips
from sidelight.models.scada import ScadaPredictions, pair_edges


@dataclass(frozen=True, kw_only=True)
class ScadaLossConfig:
    """Weights and thresholds of the losses."""

    weight_boundary: float = 1.0
    """Weight of the balanced cross-entropy of starts and ends."""
    weight_iou_class: float = 1.0
    """Weight of the balanced cross-entropy of pairs."""
    weight_iou: float = 10.0
    """Weight of the squared error of the estimated IoU."""
    weight_offset: float = 1.0
    """Weight of the smooth L1 of the offsets."""
    boundary_radius: float = 1.5
    """Clips around a start or an end that belong to it."""
    class_iou: float = 0.9
    """IoU above which a pair is positive for the classification."""
    offset_iou: float = 0.7
    """IoU above which the offsets of a pair are trained."""
    kinds: tuple[float, float] = (0.3, 0.7)
    """Bounds of the IoU between low, middle and high, whose squared errors count alike."""

    def __post_init__(self) -> None:
        check_types(self)
        for field in fields(self):
            if field.name.startswith("weight_"):
                require(self, getattr(self, field.name) >= 0, field.name, "at least 0")
        require(self, self.boundary_radius > 0, "boundary_radius", "above 0")
        for name in ("class_iou", "offset_iou"):
            require(self, 0 <= getattr(self, name) <= 1, name, "in [0, 1]")
        require(self, 0 <= self.kinds[0] <= self.kinds[1] <= 1, "kinds", "two rising numbers in [0, 1]")


def scada_losses(predictions: ScadaPredictions, batch: FrameBatch, config: ScadaLossConfig) -> dict[str, Tensor]:
    """Return every loss by name, not weighted, and their weighted sum "total" (scalars in float32).

    Raises:
        ValueError: if the batch has no targets.
    """
    if batch.targets is None:
        raise ValueError("losses need a batch with targets, got one without; build it from annotated samples")
    mask_BT, mask_BA = predictions.video_mask_BT, predictions.pair_mask_BA()
    with torch.autocast(mask_BT.device.type, enabled=False):
        edges_BW2 = spans_in_clips(batch.targets.spans_BG2, mask_BT.sum(1))
        near_BT2 = boundary_labels(edges_BW2, batch.targets, mask_BT.shape[1], config.boundary_radius)
        boundary_BT2 = predictions.boundary_BT2.float()
        iou_BA, goal_BA2, best_BA = pair_labels(predictions.pairs_A2, mask_BA, edges_BW2, batch.targets)
        error_BA = (predictions.iou_BA.float() - iou_BA).square()
        low, high = config.kinds
        kinds = [iou_BA > high, (iou_BA > low) & (iou_BA <= high), iou_BA <= low]
        gap_BA = F.smooth_l1_loss(predictions.offsets_BA2.float(), goal_BA2, reduction="none").sum(-1)
        losses = {
            "boundary": torch.stack(
                [balanced_cross_entropy(boundary_BT2[..., i], near_BT2[..., i], mask_BT) for i in (0, 1)]
            ).sum(),
            "iou_class": balanced_cross_entropy(
                predictions.class_BA.float(), (iou_BA > config.class_iou) | best_BA, mask_BA
            ),
            "iou": _mean_of_kinds(error_BA, [kind & mask_BA for kind in kinds]),
            "offset": mean_where(gap_BA, ((iou_BA > config.offset_iou) | best_BA) & mask_BA).mean(),
        }
        losses["total"] = torch.stack([getattr(config, f"weight_{n}") * loss for n, loss in losses.items()]).sum()
    return losses


def mean_where(values_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """Return the mean of each row over the mask, (B,); 0 where the mask is empty."""
    return torch.where(mask_BN, values_BN, 0).sum(1) / mask_BN.sum(1).clamp(min=1)


def balanced_cross_entropy(logits_BN: Tensor, positive_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """Return half the mean over positives and half the mean over the others, of each row; then the mean over rows."""
    loss_BN = F.binary_cross_entropy_with_logits(logits_BN, positive_BN.float(), reduction="none")
    halves = mean_where(loss_BN, positive_BN & mask_BN), mean_where(loss_BN, ~positive_BN & mask_BN)
    return (torch.stack(halves).sum(0) / 2).mean()


def _mean_of_kinds(error_BA: Tensor, kinds: list[Tensor]) -> Tensor:
    """Return the mean over the kinds of pairs that a row has, each the mean of its pairs; then the mean over rows."""
    means_KB = torch.stack([mean_where(error_BA, kind) for kind in kinds])
    present_KB = torch.stack([kind.any(1) for kind in kinds])
    return (means_KB.sum(0) / present_KB.sum(0).clamp(min=1)).mean()


@torch.no_grad()
def boundary_labels(edges_BW2: Tensor, targets: Targets, clips: int, radius: float) -> Tensor:
    """Return which clips are starts and which are ends, (B, T, 2) bool: at least half in the range of an edge."""
    clip_T = torch.arange(clips, device=edges_BW2.device, dtype=torch.float32)
    start_T112, end_T112 = clip_T.view(-1, 1, 1), clip_T.view(-1, 1, 1) + 1
    overlap_BTW2 = torch.minimum(end_T112, edges_BW2.unsqueeze(1) + radius) - torch.maximum(
        start_T112, edges_BW2.unsqueeze(1) - radius
    )
    return ((overlap_BTW2 >= 0.5) & targets.spans_mask_BG[:, None, :, None]).any(2)


@torch.no_grad()
def pair_labels(
    pairs_A2: Tensor, mask_BA: Tensor, edges_BW2: Tensor, targets: Targets
) -> tuple[Tensor, Tensor, Tensor]:
    """Return each pair's best IoU (B, A), the shifts of its edges to that moment (B, A, 2), and the best pairs (B, A).

    The best pair of a moment is the first of those that overlap it most.
    """
    size, count = targets.spans_mask_BG.shape
    pair_edges_A2 = pair_edges(pairs_A2)
    if count == 0:
        none_BA = edges_BW2.new_zeros(size, len(pairs_A2))
        return none_BA, edges_BW2.new_zeros(size, len(pairs_A2), 2), none_BA.bool()
    real_BAW = mask_BA.unsqueeze(-1) & targets.spans_mask_BG.unsqueeze(1)
    iou_BAW = spans.iou(pair_edges_A2.unsqueeze(0), edges_BW2).masked_fill(~real_BAW, 0)
    best_iou_BA, chosen_BA = iou_BAW.max(-1)
    goal_BA2 = edges_BW2.gather(1, chosen_BA.unsqueeze(-1).expand(-1, -1, 2)) - pair_edges_A2
    best_BAW = torch.zeros_like(real_BAW).scatter_(1, iou_BAW.argmax(1, keepdim=True), True)
    return best_iou_BA, goal_BA2, (best_BAW & real_BAW & (iou_BAW > 0)).any(-1)
