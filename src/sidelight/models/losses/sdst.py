"""The losses of SDST (Sec. 3.4, App. C): assignment of targets, then one function per loss, named as in the
paper.

Losses read Predictions and Targets and never call a model. All of them are computed in float32, under
autocast too, and stay finite, with finite gradients, for samples without a single ground-truth span.

Known simplification: the two InfoNCE losses take every other sample of the batch for a negative, also one
that asks for the same thing in the same words (a false negative). Batches drawn at random contain few of
those.

Shape legend: B batch, K levels, T clips, M moment queries, G ground-truth spans, F hidden width, 2 (center,
width).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sidelight.core import spans
from sidelight.core.batch import Batch, Predictions, Targets
from sidelight.core.options import check_types, require

_MASKED = -1e4
"""Stands for minus infinity among logits: its exponential is exactly 0 in float32, and its gradient is a
number.
"""
_IMPOSSIBLE = 1e9
"""Cost of a pair whose cost is not a number."""


@dataclass(frozen=True, kw_only=True)
class SDSTLossConfig:
    """Weights and options of the losses.

    The paper gives seven weights, 1, 1, 0.1, 0.1, 0.1, 1, 1, without saying to whom. The defaults read them
    as class, L1, highlights, alignment over the batch, alignment over the levels, IoU, actionness: the paper
    keeps R2-Tuning's values where it has them (its three contrastive losses weigh 0.1) and sets the newly
    introduced ones to 1 "for simplicity".
    """

    weight_class: float = 1.0
    """Focal loss of the class logits, every level."""
    weight_l1: float = 1.0
    """L1 of (center, width), every level."""
    weight_saliency: float = 0.1
    """SampledNCE of the highlight curve."""
    weight_alignment_batch: float = 0.1
    """InfoNCE of clip and query across the batch, every level."""
    weight_alignment_levels: float = 0.1
    """InfoNCE of clip and query across the levels, every sample."""
    weight_iou: float = 1.0
    """1 - IoU, every level."""
    weight_actionness: float = 1.0
    """L1 of the estimated IoU, last level."""
    level_reduction: Literal["sum", "mean"] = "sum"
    """How the levels' losses become one: added, like DETR's auxiliary losses, or averaged."""
    cost_class: float = 2.0
    """Weight of the focal class cost in the matching (Deformable DETR's)."""
    cost_l1: float = 5.0
    """Weight of the L1 cost in the matching."""
    cost_giou: float = 2.0
    """Weight of the negative generalised IoU in the matching."""
    focal_alpha: float | None = 0.25
    """Share of positives in the focal loss (negatives get the rest); None weighs both with 1."""
    focal_gamma: float = 2.0
    """How much the focal loss favours hard moment queries."""
    iou_kind: Literal["iou", "giou"] = "iou"
    """The overlap that the IoU loss raises; the generalised one also pulls spans that do not touch."""
    nce_temperature: float = 0.07
    """Temperature of the highlight loss."""
    nce_directions: tuple[str, ...] = ("row", "col")
    """What a positive clip must beat: clips of its own video (row), the same clip index of other samples
    (col).
    """
    nce_ties: Literal["ignore", "negative"] = "ignore"
    """What clips as salient as the positive one count for: nothing, or negatives, as in R2-Tuning's code."""
    nce_positives: Literal["sampled", "all"] = "sampled"
    """Which clips must beat others in their video: the one positive drawn for each sample, as in the paper, or every
    relevant clip, weighted by its saliency: the same comparisons, all of them at every step.
    """
    alignment_temperature: float = 0.07
    """Temperature of the alignment losses."""

    def __post_init__(self) -> None:
        check_types(self)
        for field in fields(self):
            if field.name.startswith(("weight_", "cost_")) or field.name == "focal_gamma":
                require(self, 0 <= getattr(self, field.name) < math.inf, field.name, "at least 0 and finite")
            if field.name.endswith("_temperature"):
                require(self, getattr(self, field.name) > 0, field.name, "above 0")
        alpha = self.focal_alpha
        require(self, alpha is None or 0 < alpha < 1, "focal_alpha", "in (0, 1), or none")
        known = bool(self.nce_directions) and set(self.nce_directions) <= {"row", "col"}
        require(self, known, "nce_directions", "'row', 'col' or both")


def sdst_losses(predictions: Predictions, batch: Batch, config: SDSTLossConfig) -> dict[str, Tensor]:
    """Every loss by name, not yet weighted, and their weighted sum "total" (scalars in float32).

    ValueError if the batch carries no targets. Needs one copy from the accelerator to the host, for the
    matching.
    """
    targets = batch.targets
    if targets is None:
        raise ValueError("losses need a batch with targets, got one without; build it from annotated samples")
    with torch.autocast(predictions.logits_KBM.device.type, enabled=False):
        predictions = predictions._map(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)
        targets = targets._map(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)
        matched_KBM, count = match(predictions, targets, config)
        losses = {
            "class": focal_loss(predictions.logits_KBM, matched_KBM >= 0, count, config),
            **span_losses(predictions.spans_KBM2, matched_KBM, targets, count, config),
            "actionness": actionness_loss(predictions, targets),
            "saliency": sampled_nce_loss(predictions.saliency_BT, batch.video_mask_BT, targets, config),
            **alignment_losses(predictions.video_KBTF, predictions.text_KBF, targets, config),
        }
        losses["total"] = torch.stack([getattr(config, f"weight_{n}") * loss for n, loss in losses.items()]).sum()
    return losses


@torch.no_grad()
def match(predictions: Predictions, targets: Targets, config: SDSTLossConfig) -> tuple[Tensor, int]:
    """Hungarian matching at every level: (K, B, M) index of the ground-truth span each moment query got, or
    -1, and the number of pairs at one level (at least 1, to divide by).
    """
    from scipy.optimize import linear_sum_assignment

    levels, size, queries = predictions.logits_KBM.shape
    spans_KBG2 = targets.spans_BG2.expand(levels, -1, -1, -1)
    matched = np.full((levels, size, queries), -1, dtype=np.int64)
    if spans_KBG2.shape[2] == 0:
        return torch.from_numpy(matched).to(predictions.logits_KBM.device), 1
    probability = predictions.logits_KBM.sigmoid().clamp(1e-6, 1 - 1e-6)
    alpha = 0.5 if config.focal_alpha is None else config.focal_alpha
    as_positive = -alpha * (1 - probability) ** config.focal_gamma * probability.log()
    as_negative = -(1 - alpha) * probability**config.focal_gamma * (1 - probability).log()
    overlap = spans.giou(spans.cw_to_se(predictions.spans_KBM2), spans.cw_to_se(spans_KBG2))
    distance = (predictions.spans_KBM2.unsqueeze(3) - spans_KBG2.unsqueeze(2)).abs().sum(-1)
    cost = config.cost_class * (as_positive - as_negative).unsqueeze(-1)
    cost = cost + config.cost_l1 * distance - config.cost_giou * overlap
    # Padded spans travel as infinite costs, so that one copy brings everything to the host.
    cost_KBMG = cost.masked_fill(~targets.spans_mask_BG.unsqueeze(1), float("inf")).cpu().numpy()
    real_BG = ~np.isposinf(cost_KBMG[0]).all(1)
    # A diverged model's costs may be no numbers. Matching must not hide that behind its own error: the loss
    # shows it.
    cost_KBMG = np.nan_to_num(cost_KBMG, nan=_IMPOSSIBLE, posinf=_IMPOSSIBLE, neginf=-_IMPOSSIBLE)
    for b in range(size):
        (columns,) = real_BG[b].nonzero()
        for k in range(levels if len(columns) else 0):
            rows, chosen = linear_sum_assignment(cost_KBMG[k, b][:, columns])
            matched[k, b, rows] = columns[chosen]
    pairs = int((matched[0] >= 0).sum())
    return torch.from_numpy(matched).to(predictions.logits_KBM.device), max(pairs, 1)


def focal_loss(logits_KBM: Tensor, positive_KBM: Tensor, count: int, config: SDSTLossConfig) -> Tensor:
    """Eq. 17: matched moment queries towards 1, the others towards 0; divided by the number of matched
    ones.
    """
    goal = positive_KBM.to(logits_KBM.dtype)
    loss = F.binary_cross_entropy_with_logits(logits_KBM, goal, reduction="none")
    loss = loss * (goal - logits_KBM.sigmoid()).abs() ** config.focal_gamma
    if config.focal_alpha is not None:
        loss = loss * torch.where(positive_KBM, config.focal_alpha, 1 - config.focal_alpha)
    return _over_levels(loss.sum((1, 2)) / count, config)


def span_losses(
    spans_KBM2: Tensor, matched_KBM: Tensor, targets: Targets, count: int, config: SDSTLossConfig
) -> dict[str, Tensor]:
    """Eqs. 18 and 19 over the matched pairs: L1 of (center, width), and 1 - IoU."""
    if targets.spans_BG2.shape[1] == 0:
        nothing = spans_KBM2.sum() * 0  # keeps the graph whole
        return {"l1": nothing, "iou": nothing}
    levels = matched_KBM.shape[0]
    index = matched_KBM.clamp(min=0).unsqueeze(-1).expand(-1, -1, -1, 2)
    wanted_KBM2 = targets.spans_BG2.expand(levels, -1, -1, -1).gather(2, index)
    real_KBM = (matched_KBM >= 0).to(spans_KBM2.dtype)
    distance_KBM = (spans_KBM2 - wanted_KBM2).abs().sum(-1)
    overlap = spans.paired_iou if config.iou_kind == "iou" else spans.paired_giou
    gap_KBM = 1 - overlap(spans.cw_to_se(spans_KBM2), spans.cw_to_se(wanted_KBM2))
    return {
        "l1": _over_levels((distance_KBM * real_KBM).sum((1, 2)) / count, config),
        "iou": _over_levels((gap_KBM * real_KBM).sum((1, 2)) / count, config),
    }


def actionness_loss(predictions: Predictions, targets: Targets) -> Tensor:
    """Eq. 20: L1 between actionness and the best IoU of the last level's span with any ground truth (0
    without one).

    The IoU is that of the span's part inside the video, which is what decoding returns.
    """
    with torch.no_grad():
        inside_BM2 = spans.cw_to_se(predictions.spans_KBM2[-1]).clamp(0, 1)
        goal_BM = torch.zeros_like(predictions.actionness_BM)
        if targets.spans_BG2.shape[1] > 0:
            overlap_BMG = spans.iou(inside_BM2, spans.cw_to_se(targets.spans_BG2))
            goal_BM = overlap_BMG.masked_fill(~targets.spans_mask_BG.unsqueeze(1), 0).amax(-1)
    return F.l1_loss(predictions.actionness_BM, goal_BM)


def sampled_nce_loss(saliency_BT: Tensor, mask_BT: Tensor, targets: Targets, config: SDSTLossConfig) -> Tensor:
    """Eq. 12: a positive clip must score above the clips of lower saliency in its own video ("row"), and
    above the clips at its own index in the other samples, where those are of low saliency too ("col").
    """
    positive_B, valid_B = targets.positive_B.clamp(min=0), targets.positive_B >= 0
    reached_B1 = targets.saliency_BT.gather(1, positive_B.unsqueeze(1))
    # Where nothing is positive, every clip is a negative for the others.
    bar_B1 = torch.where(valid_B.unsqueeze(1), reached_B1, float("inf"))
    if config.nce_ties == "negative":
        negative_BT = mask_BT & (targets.saliency_BT <= bar_B1)
    else:
        negative_BT = mask_BT & (targets.saliency_BT < bar_B1)
    logits_BT = saliency_BT / config.nce_temperature
    own_B = logits_BT.gather(1, positive_B.unsqueeze(1)).squeeze(1)
    loss_B = torch.zeros_like(own_B)
    if "row" in config.nce_directions and config.nce_positives == "all":
        loss_B = loss_B + _every_row(logits_BT, mask_BT, targets.saliency_BT, config)
    elif "row" in config.nce_directions:
        chosen_BT = F.one_hot(positive_B, saliency_BT.shape[1]).bool()
        row_BT = logits_BT.masked_fill(~(negative_BT | chosen_BT), _MASKED)
        loss_B = loss_B + row_BT.logsumexp(1) - own_B
    if "col" in config.nce_directions:
        own_BB = torch.eye(len(positive_B), dtype=torch.bool, device=positive_B.device)
        # Column b holds the clip index of sample b's positive, in every sample.
        col_BB = logits_BT[:, positive_B].masked_fill(~(negative_BT[:, positive_B] | own_BB), _MASKED)
        loss_B = loss_B + col_BB.logsumexp(0) - own_B
    return _mean_where(loss_B, valid_B)


def _every_row(logits_BT: Tensor, mask_BT: Tensor, saliency_BT: Tensor, config: SDSTLossConfig) -> Tensor:
    """(B,) the "row" loss of every relevant clip, averaged with their saliency as weights; 0 without any."""
    mine_BT1, other_B1T = saliency_BT.unsqueeze(2), saliency_BT.unsqueeze(1)
    lower_BTT = other_B1T <= mine_BT1 if config.nce_ties == "negative" else other_B1T < mine_BT1
    own_TT = torch.eye(saliency_BT.shape[1], dtype=torch.bool, device=saliency_BT.device)
    asked_BTT = (lower_BTT & mask_BT.unsqueeze(1)) | own_TT
    row_BT = logits_BT.unsqueeze(1).masked_fill(~asked_BTT, _MASKED).logsumexp(2) - logits_BT
    weight_BT = saliency_BT * mask_BT
    return (row_BT * weight_BT).sum(1) / weight_BT.sum(1).clamp(min=1e-6)


def alignment_losses(
    video_KBTF: Tensor, text_KBF: Tensor, targets: Targets, config: SDSTLossConfig
) -> dict[str, Tensor]:
    """Eqs. 21 and 22: InfoNCE, in both directions, of the positive clip's V[l] and the pooled T[l], across
    the batch at each level and across the levels of each sample. Samples without a positive clip take no
    part.
    """
    positive_B, valid_B = targets.positive_B.clamp(min=0), targets.positive_B >= 0
    levels, size, _, width = video_KBTF.shape
    index = positive_B.view(1, size, 1, 1).expand(levels, size, 1, width)
    video_KBF = F.normalize(video_KBTF.gather(2, index).squeeze(2), dim=-1)
    text_KBF = F.normalize(text_KBF, dim=-1)
    batch_KBB = video_KBF @ text_KBF.transpose(1, 2) / config.alignment_temperature
    batch_KBB = batch_KBB.masked_fill(~(valid_B & valid_B.unsqueeze(1)), _MASKED)
    video_BKF, text_BKF = video_KBF.transpose(0, 1), text_KBF.transpose(0, 1)
    levels_BKK = video_BKF @ text_BKF.transpose(1, 2) / config.alignment_temperature
    return {
        "alignment_batch": _over_levels(_mean_where(_info_nce(batch_KBB), valid_B), config),
        "alignment_levels": _over_levels(_mean_where(_info_nce(levels_BKK).t(), valid_B), config),
    }


def _info_nce(logits: Tensor) -> Tensor:
    """(..., N, N) -> (..., N): each entry of the diagonal against its row, plus against its column."""
    own = logits.diagonal(dim1=-2, dim2=-1)
    return logits.logsumexp(-1) + logits.logsumexp(-2) - 2 * own


def _mean_where(values: Tensor, valid_B: Tensor) -> Tensor:
    """Mean over the last axis of the valid entries; 0 if there is none."""
    return torch.where(valid_B, values, 0).sum(-1) / valid_B.sum().clamp(min=1)


def _over_levels(loss_K: Tensor, config: SDSTLossConfig) -> Tensor:
    return loss_K.sum() if config.level_reduction == "sum" else loss_K.mean()
