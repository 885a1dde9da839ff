"""The contrastive losses of all side-tuners: SampledNCE of saliency, and InfoNCE that aligns clips with queries.

They come from R2-Tuning (Liu et al., ECCV 2024, arXiv 2404.00801, Sec. 3.4). SDST uses them too (Eqs. 12, 21 and 22),
and UniVTG, from which R2-Tuning has them.

- Samples without a positive clip take no part.
- All losses are finite and have finite gradients. The published code of R2-Tuning gives NaN gradients if a clip index
  is masked in every sample.
- The alignment losses treat all other samples of the batch as negatives, also a sample with the same query (a false
  negative). Batches drawn at random contain few of those.

Shape legend: B batch, K levels, T clips, F hidden width, N any number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sidelight.core.batch import Targets
from sidelight.core.options import check_types, require

_MASKED = -1e4
"""Logit of a masked entry. Its exponential is exactly 0 in float32, and unlike infinity it has finite gradients."""

Ties = Literal["ignore", "negative"]
"""Role of clips as salient as the positive clip: ignored, or negatives, as in R2-Tuning's code."""


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """Weights and options of the contrastive losses."""

    weight_saliency: float = 0.1
    """Weight of SampledNCE of the highlight curve."""
    weight_alignment_batch: float = 0.1
    """Weight of InfoNCE of clip and query across the batch, at every level ("video calibration")."""
    weight_alignment_levels: float = 0.1
    """Weight of InfoNCE of clip and query across the levels, in every sample ("layer calibration")."""
    nce_temperature: float = 0.07
    """Temperature of SampledNCE."""
    nce_directions: tuple[str, ...] = ("row", "col")
    """Negatives of a positive clip in SampledNCE: clips of its own video (row), the same clip index of other samples
    (col). TVSum and YouTube Highlights use row alone.
    """
    alignment_temperature: float = 0.07
    """Temperature of the alignment losses."""

    def __post_init__(self) -> None:
        """Check all weights, costs, exponents and temperatures, those of a subclass too."""
        check_types(self)
        for field in fields(self):
            if field.name.startswith(("weight_", "cost_")) or field.name == "focal_gamma":
                require(self, 0 <= getattr(self, field.name) < math.inf, field.name, "at least 0 and finite")
            if field.name.endswith("_temperature"):
                require(self, getattr(self, field.name) > 0, field.name, "above 0")
        known = bool(self.nce_directions) and set(self.nce_directions) <= {"row", "col"}
        require(self, known, "nce_directions", "'row', 'col' or both")


def sampled_nce_loss(
    saliency_BT: Tensor,
    mask_BT: Tensor,
    targets: Targets,
    config: ContrastiveConfig,
    *,
    ties: Ties,
    positives: Literal["sampled", "all"] = "sampled",
    compares_positives: bool = False,
) -> Tensor:
    """Return SampledNCE (SDST, Eq. 12), the mean over samples.

    A positive clip must score above the clips of lower saliency in its own video ("row"), and above the clips at its
    own index in the other samples, if these have low saliency too ("col").

    Args:
        saliency_BT: the highlight curve.
        mask_BT: True for real clips.
        targets: saliency and positive clips.
        config: temperature and directions.
        ties: role of clips as salient as the positive clip.
        positives: in direction "row", use the one positive clip drawn for each sample, or all relevant clips, weighted
            by their saliency.
        compares_positives: in direction "col", the positive clips of the other samples are negatives too, as in
            UniVTG's code. With ``ties="negative"`` they are in any case.
    """
    positive_B, valid_B = targets.positive_B.clamp(min=0), targets.positive_B >= 0
    positive_saliency_B1 = targets.saliency_BT.gather(1, positive_B.unsqueeze(1))
    # In a sample without a positive clip, every clip is a negative for the other samples.
    limit_B1 = torch.where(valid_B.unsqueeze(1), positive_saliency_B1, float("inf"))
    negative_BT = mask_BT & _is_lower(targets.saliency_BT, limit_B1, ties)
    is_positive_BT = F.one_hot(positive_B, saliency_BT.shape[1]).bool()
    if compares_positives:
        negative_BT = negative_BT | (is_positive_BT & valid_B.unsqueeze(1))
    logits_BT = saliency_BT / config.nce_temperature
    positive_logit_B = logits_BT.gather(1, positive_B.unsqueeze(1)).squeeze(1)
    loss_B = torch.zeros_like(positive_logit_B)
    if "row" in config.nce_directions and positives == "all":
        loss_B = loss_B + _row_loss_of_all_positives(logits_BT, mask_BT, targets.saliency_BT, ties)
    elif "row" in config.nce_directions:
        row_BT = logits_BT.masked_fill(~(negative_BT | is_positive_BT), _MASKED)
        loss_B = loss_B + row_BT.logsumexp(1) - positive_logit_B
    if "col" in config.nce_directions:
        is_self_BB = torch.eye(len(positive_B), dtype=torch.bool, device=positive_B.device)
        # Column b holds the clip index of sample b's positive clip, in every sample.
        col_BB = logits_BT[:, positive_B].masked_fill(~(negative_BT[:, positive_B] | is_self_BB), _MASKED)
        loss_B = loss_B + col_BB.logsumexp(0) - positive_logit_B
    return _mean_of_valid(loss_B, valid_B)


def _row_loss_of_all_positives(logits_BT: Tensor, mask_BT: Tensor, saliency_BT: Tensor, ties: Ties) -> Tensor:
    """Return the "row" loss of all relevant clips, (B,): the mean weighted by saliency; 0 if no clip is relevant."""
    lower_BTT = _is_lower(saliency_BT.unsqueeze(1), saliency_BT.unsqueeze(2), ties)
    is_self_TT = torch.eye(saliency_BT.shape[1], dtype=torch.bool, device=saliency_BT.device)
    compared_BTT = (lower_BTT & mask_BT.unsqueeze(1)) | is_self_TT
    row_BT = logits_BT.unsqueeze(1).masked_fill(~compared_BTT, _MASKED).logsumexp(2) - logits_BT
    weight_BT = saliency_BT * mask_BT
    return (row_BT * weight_BT).sum(1) / weight_BT.sum(1).clamp(min=1e-6)


def _is_lower(saliency: Tensor, limit: Tensor, ties: Ties) -> Tensor:
    return saliency <= limit if ties == "negative" else saliency < limit


def alignment_losses(
    video_KBTF: Tensor, text_KBF: Tensor, targets: Targets, config: ContrastiveConfig
) -> dict[str, Tensor]:
    """Return InfoNCE of the positive clip V[l] and the pooled query T[l] (SDST, Eqs. 21 and 22), each (K,).

    "alignment_batch" compares across the batch, at each level. "alignment_levels" compares across the levels of each
    sample. Both directions, clip to query and query to clip, are added.
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
        "alignment_batch": _mean_of_valid(_info_nce(batch_KBB), valid_B),
        "alignment_levels": _mean_of_valid(_info_nce(levels_BKK).t(), valid_B),
    }


def _info_nce(logits: Tensor) -> Tensor:
    """Compare each diagonal entry with its row and with its column: (..., N, N) -> (..., N)."""
    diagonal = logits.diagonal(dim1=-2, dim2=-1)
    return logits.logsumexp(-1) + logits.logsumexp(-2) - 2 * diagonal


def _mean_of_valid(values: Tensor, valid_B: Tensor) -> Tensor:
    """Return the mean of the valid entries of the last axis; 0 if no entry is valid."""
    return torch.where(valid_B, values, 0).sum(-1) / valid_B.sum().clamp(min=1)
