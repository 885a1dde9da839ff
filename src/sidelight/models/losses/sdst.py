"""The losses of SDST (Sec. 3.4, App. C): first the total, then the assignment of targets, then one function per loss.

The contrastive losses are in ``contrastive.py``. Losses read Predictions and Targets and never call a model. They are
computed in float32, under autocast too, and stay finite, with finite gradients, for samples without a ground-truth
span.

The paper says less than the code needs; these are our choices:

- Which of the seven published weights belongs to which loss: see :class:`SDSTLossConfig`.
- The goal of actionness is the overlap of the part of a span inside the video, since decoding returns that part.
- The costs of the matching are Deformable DETR's.

Shape legend: B batch, K levels, T clips, M moment queries, G ground-truth spans, F hidden width, 2 (center, width).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sidelight.core import spans
from sidelight.core.batch import Batch, FrameBatch, Predictions, Targets
from sidelight.core.options import require
from sidelight.models.losses.contrastive import ContrastiveConfig, alignment_losses, sampled_nce_loss

_IMPOSSIBLE = 1e9
"""Cost of a pair whose cost is NaN or infinite."""


@dataclass(frozen=True, kw_only=True)
class SDSTLossConfig(ContrastiveConfig):
    """Weights and options of the losses.

    The paper gives seven weights, 1, 1, 0.1, 0.1, 0.1, 1, 1, without names. The defaults read them as class, L1,
    highlights, alignment over the batch, alignment over the levels, IoU, actionness: the paper keeps R2-Tuning's values
    where it has them (its three contrastive losses weigh 0.1), and sets the newly introduced ones to 1 "for
    simplicity".
    """

    weight_class: float = 1.0
    """Weight of the focal loss of the class logits, at every level."""
    weight_l1: float = 1.0
    """Weight of L1 of (center, width), at every level."""
    weight_iou: float = 1.0
    """Weight of 1 - IoU, at every level."""
    weight_actionness: float = 1.0
    """Weight of the loss of the estimated IoU, at the last level."""
    actionness_loss: Literal["l1", "bce"] = "l1"
    """Loss of the estimated IoU: L1 (the paper), whose best answer is the median of the goal and so 0 where a span
    misses more often than not; or binary cross-entropy, whose best answer is the mean.
    """
    class_target: Literal["one", "iou"] = "one"
    """Goal of the class logit of a matched moment query: 1 (the paper), or its IoU with the matched span, so that the
    class tells how well a moment fits (as in VarifocalNet).
    """
    alignment_reduction: Literal["sum", "mean"] = "sum"
    """Reduction of the alignment losses over directions and levels; the weight comes from R2-Tuning, which averages
    them.
    """
    level_reduction: Literal["sum", "mean"] = "sum"
    """Reduction of the levels' losses: added, like DETR's auxiliary losses, or averaged."""
    cost_class: float = 2.0
    """Weight of the focal class cost in the matching (Deformable DETR's)."""
    cost_l1: float = 5.0
    """Weight of the L1 cost in the matching."""
    cost_giou: float = 2.0
    """Weight of the negative overlap in the matching."""
    matching_overlap: Literal["giou", "iou"] = "giou"
    """That overlap: the generalised IoU, as in Deformable DETR, or the plain one, as in TadTR."""
    focal_alpha: float | None = 0.25
    """Share of positives in the focal loss (negatives get the rest); None weighs both with 1."""
    focal_gamma: float = 2.0
    """Exponent of the focal loss; a larger one gives more weight to hard moment queries."""
    iou_kind: Literal["iou", "giou"] = "iou"
    """Overlap that the IoU loss raises; the generalised IoU also attracts spans that do not touch."""
    nce_ties: Literal["ignore", "negative"] = "ignore"
    """Role of clips as salient as the positive clip in SampledNCE: ignored, or negatives, as in R2-Tuning's code."""
    nce_positives: Literal["sampled", "all"] = "sampled"
    """Clips that must score above others in their video: the one positive clip drawn for each sample, as in the paper,
    or every relevant clip at every step, weighted by its saliency.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        alpha = self.focal_alpha
        require(self, alpha is None or 0 < alpha < 1, "focal_alpha", "in (0, 1), or none")


def sdst_losses(predictions: Predictions, batch: Batch | FrameBatch, config: SDSTLossConfig) -> dict[str, Tensor]:
    """Return every loss by name, not weighted, and their weighted sum "total" (scalars in float32).

    The matching needs one copy from the accelerator to the host.

    Raises:
        ValueError: if the batch has no targets.
    """
    targets = batch.targets
    if targets is None:
        raise ValueError("losses need a batch with targets, got one without; build it from annotated samples")
    with torch.autocast(predictions.logits_KBM.device.type, enabled=False):
        device = predictions.logits_KBM.device
        predictions, targets = predictions.to(device, torch.float32), targets.to(device, torch.float32)
        matched_KBM, count = match(predictions, targets, config)
        goal_KBM = class_goal(predictions, matched_KBM, targets, config)
        aligned = alignment_losses(predictions.video_KBTF, predictions.text_KBF, targets, config)
        losses = {
            "class": focal_loss(predictions.logits_KBM, matched_KBM >= 0, goal_KBM, count, config),
            **span_losses(predictions.spans_KBM2, matched_KBM, targets, count, config),
            "actionness": actionness_loss(predictions, targets, config),
            "saliency": sampled_nce_loss(
                predictions.saliency_BT,
                batch.video_mask_BT,
                targets,
                config,
                ties=config.nce_ties,
                positives=config.nce_positives,
            ),
            **{name: _aligned(loss_K, config) for name, loss_K in aligned.items()},
        }
        losses["total"] = torch.stack([getattr(config, f"weight_{n}") * loss for n, loss in losses.items()]).sum()
    return losses


@torch.no_grad()
def match(predictions: Predictions, targets: Targets, config: SDSTLossConfig) -> tuple[Tensor, int]:
    """Match moment queries with ground-truth spans at every level, at the lowest total cost (Hungarian algorithm).

    Returns:
        (K, B, M) the index of the span that each moment query got, or -1, and the number of pairs at one level (at
        least 1, since losses are divided by it).
    """
    from scipy.optimize import linear_sum_assignment

    levels, size, moment_queries = predictions.logits_KBM.shape
    spans_KBG2 = targets.spans_BG2.expand(levels, -1, -1, -1)
    matched = np.full((levels, size, moment_queries), -1, dtype=np.int64)
    if spans_KBG2.shape[2] == 0:
        return torch.from_numpy(matched).to(predictions.logits_KBM.device), 1
    probability = predictions.logits_KBM.sigmoid().clamp(1e-6, 1 - 1e-6)
    alpha = 0.5 if config.focal_alpha is None else config.focal_alpha
    as_positive = -alpha * (1 - probability) ** config.focal_gamma * probability.log()
    as_negative = -(1 - alpha) * probability**config.focal_gamma * (1 - probability).log()
    overlap_of = spans.giou if config.matching_overlap == "giou" else spans.iou
    overlap = overlap_of(spans.cw_to_se(predictions.spans_KBM2), spans.cw_to_se(spans_KBG2))
    distance = (predictions.spans_KBM2.unsqueeze(3) - spans_KBG2.unsqueeze(2)).abs().sum(-1)
    cost = config.cost_class * (as_positive - as_negative).unsqueeze(-1)
    cost = cost + config.cost_l1 * distance - config.cost_giou * overlap
    # Padded spans are marked by infinite costs, so that one copy brings everything to the host.
    cost_KBMG = cost.masked_fill(~targets.spans_mask_BG.unsqueeze(1), float("inf")).cpu().numpy()
    real_BG = ~np.isposinf(cost_KBMG[0]).all(1)
    # The costs of a diverged model may be NaN. The matching must not fail then: the loss shows the NaN.
    cost_KBMG = np.nan_to_num(cost_KBMG, nan=_IMPOSSIBLE, posinf=_IMPOSSIBLE, neginf=-_IMPOSSIBLE)
    for b in range(size):
        (columns,) = real_BG[b].nonzero()
        for k in range(levels if len(columns) else 0):
            rows, chosen = linear_sum_assignment(cost_KBMG[k, b][:, columns])
            matched[k, b, rows] = columns[chosen]
    pairs = int((matched[0] >= 0).sum())
    return torch.from_numpy(matched).to(predictions.logits_KBM.device), max(pairs, 1)


def class_goal(predictions: Predictions, matched_KBM: Tensor, targets: Targets, config: SDSTLossConfig) -> Tensor:
    """Return the goal of each class logit, (K, B, M): 0 without a match; with one, 1 or the IoU with the match."""
    is_matched_KBM = (matched_KBM >= 0).to(predictions.logits_KBM.dtype)
    if config.class_target == "one" or targets.spans_BG2.shape[1] == 0:
        return is_matched_KBM
    goal_KBM2 = _matched_spans(matched_KBM, targets)
    iou_KBM = spans.paired_iou(spans.cw_to_se(predictions.spans_KBM2.detach()), spans.cw_to_se(goal_KBM2))
    return is_matched_KBM * iou_KBM


def focal_loss(
    logits_KBM: Tensor, positive_KBM: Tensor, goal_KBM: Tensor, count: int, config: SDSTLossConfig
) -> Tensor:
    """Return the focal loss (Eq. 17), divided by ``count``.

    Args:
        logits_KBM: class logits.
        positive_KBM: True for matched moment queries.
        goal_KBM: goals in [0, 1].
        count: number of matched pairs at one level.
        config: alpha and gamma.
    """
    loss = F.binary_cross_entropy_with_logits(logits_KBM, goal_KBM, reduction="none")
    loss = loss * (goal_KBM - logits_KBM.sigmoid()).abs() ** config.focal_gamma
    if config.focal_alpha is not None:
        loss = loss * torch.where(positive_KBM, config.focal_alpha, 1 - config.focal_alpha)
    return _over_levels(loss.sum((1, 2)) / count, config)


def span_losses(
    spans_KBM2: Tensor, matched_KBM: Tensor, targets: Targets, count: int, config: SDSTLossConfig
) -> dict[str, Tensor]:
    """Return L1 of (center, width), and 1 - IoU, over the matched pairs (Eqs. 18 and 19)."""
    if targets.spans_BG2.shape[1] == 0:
        zero = spans_KBM2.sum() * 0  # a zero with a gradient, so that backward passes through the span head
        return {"l1": zero, "iou": zero}
    goal_KBM2 = _matched_spans(matched_KBM, targets)
    is_matched_KBM = (matched_KBM >= 0).to(spans_KBM2.dtype)
    distance_KBM = (spans_KBM2 - goal_KBM2).abs().sum(-1)
    overlap = spans.paired_iou if config.iou_kind == "iou" else spans.paired_giou
    gap_KBM = 1 - overlap(spans.cw_to_se(spans_KBM2), spans.cw_to_se(goal_KBM2))
    return {
        "l1": _over_levels((distance_KBM * is_matched_KBM).sum((1, 2)) / count, config),
        "iou": _over_levels((gap_KBM * is_matched_KBM).sum((1, 2)) / count, config),
    }


def _matched_spans(matched_KBM: Tensor, targets: Targets) -> Tensor:
    """Return the ground-truth span that each moment query got, (K, B, M, 2); the first one without a match."""
    index = matched_KBM.clamp(min=0).unsqueeze(-1).expand(-1, -1, -1, 2)
    return targets.spans_BG2.expand(matched_KBM.shape[0], -1, -1, -1).gather(2, index)


def actionness_loss(predictions: Predictions, targets: Targets, config: SDSTLossConfig) -> Tensor:
    """Return the mean L1 or cross-entropy between actionness and its goal (Eq. 20).

    The goal is the best IoU of the last level's span with any ground-truth span, 0 without one. Only the part of the
    span inside the video counts, since decoding returns that part.
    """
    with torch.no_grad():
        inside_BM2 = spans.cw_to_se(predictions.spans_KBM2[-1]).clamp(0, 1)
        goal_BM = torch.zeros_like(predictions.actionness_BM)
        if targets.spans_BG2.shape[1] > 0:
            overlap_BMG = spans.iou(inside_BM2, spans.cw_to_se(targets.spans_BG2))
            goal_BM = overlap_BMG.masked_fill(~targets.spans_mask_BG.unsqueeze(1), 0).amax(-1)
    if config.actionness_loss == "bce":
        return F.binary_cross_entropy(predictions.actionness_BM, goal_BM)
    return F.l1_loss(predictions.actionness_BM, goal_BM)


def _aligned(loss_K: Tensor, config: SDSTLossConfig) -> Tensor:
    """Reduce an alignment loss, whose two directions are added, over directions and levels."""
    return loss_K.mean() / 2 if config.alignment_reduction == "mean" else _over_levels(loss_K, config)


def _over_levels(loss_K: Tensor, config: SDSTLossConfig) -> Tensor:
    return loss_K.sum() if config.level_reduction == "sum" else loss_K.mean()
