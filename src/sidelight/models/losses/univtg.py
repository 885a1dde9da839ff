"""The losses of UniVTG (Lin et al., ICCV 2023, arXiv 2307.16715, Sec. 4.2).

First the total, then the assignment of windows to clips. The contrastive losses are in ``contrastive.py``.

As in the published code, a clip belongs to a window if its anchor (``UniVTGConfig.anchor``) lies in it, ends included.
If no clip of a sample does, the clip in which the first window starts is in the moment, and the window is its goal.
With several such windows the published code stops with an error.

Unlike the published code, all losses are finite and have finite gradients: without a clip in a moment the boundary
losses are 0, and samples without a positive clip take no part in the contrastive losses.

Shape legend: B batch, T clips, G ground-truth spans, 2 [start, end] in units of the sample's extent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sidelight.core import spans
from sidelight.core.batch import Batch, Targets
from sidelight.core.options import require
from sidelight.models.losses.contrastive import ContrastiveConfig, alignment_losses, sampled_nce_loss
from sidelight.models.losses.r2_tuning import places_in_clips, spans_in_clips
from sidelight.models.univtg import UniVTGPredictions


@dataclass(frozen=True, kw_only=True)
class UniVTGLossConfig(ContrastiveConfig):
    """Weights and options of the losses. Defaults are those of the published co-training ("omni")."""

    weight_class: float = 10.0
    """Weight of binary cross-entropy: does a clip lie in a moment? (f_loss_coef)"""
    weight_l1: float = 10.0
    """Weight of smooth L1 of start and end, at clips in a moment (b_loss_coef)."""
    weight_giou: float = 1.0
    """Weight of 1 - generalised IoU, at clips in a moment (g_loss_coef)."""
    weight_alignment_levels: float = 0.0
    """Must be 0: UniVTG reads one level."""
    background_weight: float = 0.1
    """Weight of clips outside all moments in the cross-entropy (eos_coef)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, self.weight_alignment_levels == 0, "weight_alignment_levels", "0: UniVTG reads one level")
        require(self, 0 <= self.background_weight <= 1, "background_weight", "in [0, 1]")


def univtg_losses(predictions: UniVTGPredictions, batch: Batch, config: UniVTGLossConfig) -> dict[str, Tensor]:
    """Return every loss by name, not weighted, and their weighted sum "total" (scalars in float32).

    "saliency" is the published loss_s_intra, "alignment_batch" is loss_s_inter.

    Raises:
        ValueError: if the batch has no targets.
    """
    targets, mask_BT = batch.targets, predictions.video_mask_BT
    if targets is None:
        raise ValueError("losses need a batch with targets, got one without; build it from annotated samples")
    with torch.autocast(mask_BT.device.type, enabled=False):
        inside_BT, goal_BT2 = assign_clips(predictions.anchors_BT, mask_BT, targets)
        weight_BT = torch.where(inside_BT, 1.0, config.background_weight) * mask_BT
        cross_entropy_BT = F.binary_cross_entropy_with_logits(
            predictions.logits_BT.float(), inside_BT.float(), weight_BT, reduction="none"
        )
        spans_BT2 = predictions.spans_BT2()
        gap_BT = F.smooth_l1_loss(spans_BT2, goal_BT2, reduction="none").sum(-1)
        aligned = alignment_losses(
            predictions.video_BTF.float().unsqueeze(0), predictions.text_BF.float().unsqueeze(0), targets, config
        )
        losses = {
            "class": cross_entropy_BT.sum() / mask_BT.sum(),
            "l1": _mean_inside(gap_BT, inside_BT),
            "giou": _mean_inside(1 - spans.paired_giou(spans_BT2, goal_BT2), inside_BT),
            "saliency": sampled_nce_loss(
                predictions.cosine_BT(), mask_BT, targets, config, ties="ignore", compares_positives=True
            ),
            "alignment_batch": aligned["alignment_batch"].squeeze(0),
        }
        losses["total"] = torch.stack([getattr(config, f"weight_{n}") * loss for n, loss in losses.items()]).sum()
    return losses


def _mean_inside(loss_BT: Tensor, inside_BT: Tensor) -> Tensor:
    return torch.where(inside_BT, loss_BT, 0).sum() / inside_BT.sum().clamp(min=1)


@torch.no_grad()
def assign_clips(anchors_BT: Tensor, mask_BT: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Return which clips lie in a moment (B, T), and the moment of each, (B, T, 2); zeros for the other clips.

    If several windows contain a clip, the last one counts.
    """
    size, count = targets.spans_mask_BG.shape
    goal_BT2 = anchors_BT.new_zeros(*anchors_BT.shape, 2)
    inside_BT = torch.zeros_like(mask_BT)
    if count == 0:
        return inside_BT, goal_BT2
    lengths_B = mask_BT.sum(1)
    # Compared in clips and rounded, so that a rounding error of (center, width) does not decide about an edge.
    windows_BG2 = spans_in_clips(targets.spans_BG2, lengths_B)
    anchors_BT1 = places_in_clips(anchors_BT, lengths_B.unsqueeze(1)).unsqueeze(-1)
    starts_B1G, ends_B1G = windows_BG2.unsqueeze(1).unbind(-1)
    fits_BTG = (starts_B1G <= anchors_BT1) & (anchors_BT1 <= ends_B1G)
    fits_BTG &= mask_BT.unsqueeze(-1) & targets.spans_mask_BG.unsqueeze(1)
    lost_B = targets.spans_mask_BG.any(1) & ~fits_BTG.flatten(1).any(1)
    first_B = targets.spans_mask_BG.int().argmax(1)
    rows_B = torch.arange(size, device=mask_BT.device)
    nearest_B = windows_BG2[rows_B, first_B, 0].long().clamp(min=0).minimum(lengths_B - 1)
    fits_BTG[rows_B, nearest_B, first_B] |= lost_B
    inside_BT = fits_BTG.any(-1)
    last_BT = (fits_BTG * torch.arange(1, count + 1, device=mask_BT.device)).argmax(-1)
    spans_BG2 = spans.cw_to_se(targets.spans_BG2.float())
    goal_BT2 = spans_BG2.gather(1, last_BT.unsqueeze(-1).expand(-1, -1, 2))
    return inside_BT, goal_BT2.masked_fill(~inside_BT.unsqueeze(-1), 0)
