"""Decode SDST's predictions: score, clamp, round, suppress (SDST, App. C.4).

Spans become seconds only here. A batch costs one copy from the accelerator to the host.

Shape legend: B batch, K levels, T clips, M moment queries, 2 (start, end), in seconds once on the host.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sidelight.core import spans
from sidelight.core.batch import Predictions
from sidelight.core.grounding import Moment
from sidelight.core.options import require
from sidelight.core.timeline import Timeline
from sidelight.models.decode.answer import Answer, AnswerConfig, check_finite

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DecodeConfig(AnswerConfig):
    """Options of SDST's decoding. Defaults follow the paper where it gives a value."""

    score: Literal["sqrt", "product", "class", "actionness"] = "sqrt"
    """Score of a moment: sqrt(class * actionness) as in Eq. 23, their product, or one of the two alone."""
    nms: Literal["soft-linear", "soft-gaussian", "hard", "none"] = "soft-linear"
    """Suppression of overlapping moments: lower their scores (soft), remove them (hard), or neither (none)."""
    nms_threshold: float = 0.3
    """IoU above which two moments overlap (soft-linear and hard)."""
    sigma: float = 0.5
    """Width of the decay of soft-gaussian."""
    round_to: float | None = None
    """Seconds: round starts and ends to multiples of this before suppression (2 on QVHighlights). A moment whose
    rounded length would be 0 becomes one unit long. None does not round.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, 0 <= self.nms_threshold <= 1, "nms_threshold", "in [0, 1]")
        require(self, self.sigma > 0, "sigma", "above 0")
        positive = self.round_to is None or 0 < self.round_to < math.inf
        require(self, positive, "round_to", "a number of seconds above 0, or none")

    def answers(self, predictions: Predictions, timelines: Sequence[Timeline]) -> Iterator[Answer]:
        """Yield the moments and the saliency of each sample."""
        spans_BM2, scores_BM, saliency_BT, clips_B = _to_host(predictions, self)
        for b, timeline in enumerate(timelines):
            seconds_M2 = timeline.to_seconds(spans_BM2[b])
            if self.round_to is not None:
                seconds_M2 = _round(seconds_M2, self.round_to, timeline.duration)
            moments = _suppress(seconds_M2, scores_BM[b], self)
            yield self.best(moments), saliency_BT[b, : clips_B[b]].astype(np.float32)


@torch.no_grad()
def _to_host(predictions: Predictions, config: DecodeConfig) -> tuple[Floats, Floats, Floats, NDArray[np.int64]]:
    """Return (start, end) (B, M, 2) in units of the extent, scores (B, M), saliency (B, T) and numbers of clips (B,).

    All of them travel in one copy. Raise ValueError if a number is not finite.
    """
    probability = predictions.logits_KBM[-1].float().sigmoid()
    actionness = predictions.actionness_BM.float()
    scores_BM = {
        "sqrt": (probability * actionness).sqrt(),
        "product": probability * actionness,
        "class": probability,
        "actionness": actionness,
    }[config.score]
    center_BM, width_BM = predictions.spans_KBM2[-1].float().unbind(-1)
    clips_B1 = predictions.video_mask_BT.sum(1, keepdim=True).float()
    edges = (center_BM - width_BM / 2, center_BM + width_BM / 2)
    packed = torch.cat([*edges, scores_BM, clips_B1, predictions.saliency_BT.float()], 1)
    host = packed.cpu().numpy().astype(np.float64)
    check_finite(host)
    count = scores_BM.shape[1]
    start, end, scores, clips, saliency = np.split(host, [count, 2 * count, 3 * count, 3 * count + 1], 1)
    return np.stack([start, end], -1), scores, saliency, clips[:, 0].astype(np.int64)


def _round(seconds_M2: Floats, unit: float, duration: float) -> Floats:
    """Round starts and ends to multiples of ``unit``, within the duration; keep a span with length one unit long."""
    units = np.rint(seconds_M2 / unit)
    vanished = (units[:, 0] == units[:, 1]) & (seconds_M2[:, 1] > seconds_M2[:, 0])
    units[vanished, 0] = np.floor(seconds_M2[vanished].mean(1) / unit)
    units[vanished, 1] = units[vanished, 0] + 1
    # Nine decimals remove the rounding errors of a unit like 0.1 s (0.30000000000000004).
    rounded: Floats = np.minimum((units * unit).round(9), duration)
    return rounded


def _suppress(seconds_M2: Floats, scores_M: Floats, config: DecodeConfig) -> list[Moment]:
    """Suppress overlapping moments, and drop moments without length."""
    has_length = seconds_M2[:, 1] > seconds_M2[:, 0]
    seconds_M2, scores_M = seconds_M2[has_length], scores_M[has_length]
    if config.nms == "hard":
        keep = spans.nms(seconds_M2, scores_M, config.nms_threshold)
        seconds_M2, scores_M = seconds_M2[keep], scores_M[keep]
    elif config.nms != "none":
        method: Literal["linear", "gaussian"] = "linear" if config.nms == "soft-linear" else "gaussian"
        scores_M = spans.soft_nms(
            seconds_M2, scores_M, method=method, threshold=config.nms_threshold, sigma=config.sigma
        )
    return [Moment(start, end, score) for start, end, score in np.column_stack([seconds_M2, scores_M]).tolist()]
