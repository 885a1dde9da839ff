"""Decode the predictions of point models (R2-Tuning and the side-tuners that share its heads).

The published post-processing of R2-Tuning differs from SDST's (``sdst.py``) in each step:

- The 50 best windows are chosen first.
- Only windows that end before the video ends are rounded. A window whose rounded length is 0 keeps that length.
- Linear soft suppression has no threshold.
- Hard suppression sets scores to 0 and keeps the rows; ``keep_all`` answers with them too.

One difference from the published code: a window without length overlaps nothing here. There, soft suppression turns its
score into NaN.

Shape legend: B batch, T clips, N points or windows, 2 (start, end) in seconds, 3 (start, end, score).
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
from sidelight.core.grounding import Moment
from sidelight.core.options import require
from sidelight.core.timeline import Timeline, clips_to_seconds
from sidelight.models.decode.answer import Answer, AnswerConfig, check_finite
from sidelight.models.points import PointPredictions

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class R2DecodeConfig(AnswerConfig):
    """Options of R2-Tuning's decoding. Defaults are those for QVHighlights."""

    nms: Literal["hard", "soft-linear", "soft-gaussian", "none"] = "hard"
    """Suppression of overlapping windows: set their scores to 0 (hard), lower their scores (soft), or neither (none).
    Every dataset but QVHighlights uses soft-linear.
    """
    nms_threshold: float = 0.7
    """IoU from which hard suppression sets a score to 0."""
    sigma: float = 0.5
    """Width of the decay of soft-gaussian."""
    max_moments: int | None = 50
    """Number of windows to process, best first; none processes all."""
    round_to: float | None = 2.0
    """Seconds: round starts and ends to multiples of this (0.1 on Charades-STA). None does not round."""
    keep_all: bool = False
    """Keep windows of score 0 or without length, as the published code does. They count in average precision; a
    Grounder leaves them out.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, 0 < self.nms_threshold <= 1, "nms_threshold", "in (0, 1]")
        require(self, self.sigma > 0, "sigma", "above 0")
        positive = self.round_to is None or 0 < self.round_to < math.inf
        require(self, positive, "round_to", "a number of seconds above 0, or none")

    def answers(self, predictions: PointPredictions, timelines: Sequence[Timeline]) -> Iterator[Answer]:
        """Yield the moments and the saliency of each sample."""
        curves = saliency(predictions)
        for b, timeline in enumerate(timelines):
            windows_N3 = np.empty((0, 3), np.float32)
            if predictions.distances_BN2 is not None:
                windows_N3 = point_windows(predictions, b, timeline.clip_seconds, self.max_moments)
            check_finite(windows_N3, curves[b])
            if len(windows_N3):
                windows_N3 = postprocess(windows_N3, timeline.duration, self)
            rows_N3 = windows_N3.astype(np.float64)
            rows_N3[:, :2] = rows_N3[:, :2].clip(max=timeline.duration)  # float32 may have rounded it up
            moments = tuple(
                Moment(start, end, score)
                for start, end, score in rows_N3.tolist()
                if score >= self.min_score and (self.keep_all or (score > 0 and start < end))
            )
            yield moments, curves[b]


@torch.no_grad()
def point_windows(predictions: PointPredictions, b: int, clip_seconds: float, most: int | None = 50) -> Floats:
    """Return the ``most`` best windows of sample ``b``, (N, 3), best first, not yet clamped to the video.

    Raises:
        ValueError: if the model has no boundary head.
    """
    if predictions.distances_BN2 is None:
        raise ValueError("a model without a boundary head predicts no windows; set boundary_head: true to train one")
    real_N = predictions.point_mask_BN[b]
    position_N, stride_N = predictions.points_N4[real_N][:, 0], predictions.points_N4[real_N][:, 3]
    to_start_N, to_end_N = (predictions.distances_BN2[b, real_N].float() * stride_N.unsqueeze(1)).unbind(1)
    scores_N1 = predictions.logits_BN[b, real_N].float().sigmoid().unsqueeze(1)
    clips_N2 = torch.stack([position_N - to_start_N, position_N + to_end_N], 1)
    order = scores_N1[:, 0].argsort(descending=True, stable=True)[:most]
    windows_N3: Floats = torch.cat([clips_to_seconds(clips_N2, clip_seconds), scores_N1], 1)[order].cpu().numpy()
    return windows_N3


@torch.no_grad()
def saliency(predictions: PointPredictions) -> list[Floats]:
    """Return the highlight curve of each sample, one score per clip.

    The score of a clip is the cosine of clip and query, times the best class score that any level of the pyramid gives
    to the clip's time. For a model without a boundary head, the score is the class score alone.
    """
    cosine_BT, scores_BN = predictions.cosine_BT().cpu(), predictions.logits_BN.float().sigmoid().cpu()
    masks_BN, lengths = predictions.point_mask_BN.cpu(), predictions.video_mask_BT.sum(1).tolist()
    strides_N = predictions.points_N4[:, 3].cpu()
    curves = []
    for b, clips in enumerate(lengths):
        levels = []
        for stride in strides_N.unique():
            scores_N = scores_BN[b, (strides_N == stride) & masks_BN[b]]
            if len(scores_N):
                # In the published code each score is repeated clips // len(scores_N) times, which may be more than the
                # stride; the last score fills the clips that are left.
                index = torch.arange(clips) // max(clips // len(scores_N), 1)
                levels.append(scores_N[index.clamp(max=len(scores_N) - 1)])
        curve = torch.stack(levels).amax(0)
        if predictions.distances_BN2 is not None:
            curve = curve * cosine_BT[b, :clips]
        curves.append(curve.numpy())
    return curves


def postprocess(windows_N3: Floats, duration: float, config: R2DecodeConfig) -> Floats:
    """Clamp windows to the duration, round and suppress them; return all rows, (N, 3), by falling score, in float32."""
    windows_N2 = windows_N3[:, :2].astype(np.float32).clip(0, np.float32(duration))
    scores_N = windows_N3[:, 2].astype(np.float32)
    if config.round_to is not None:
        unit = np.float32(config.round_to)
        ends_early_N = windows_N2[:, 1] < np.float32(duration)
        windows_N2[ends_early_N] = np.rint(windows_N2[ends_early_N] / unit) * unit  # halves to the even neighbour
    if config.nms == "hard":
        # The published code removes at the threshold, not only above it.
        keep_N = spans.nms(windows_N2, scores_N, math.nextafter(np.float32(config.nms_threshold), 0))
        scores_N = np.where(keep_N, scores_N, 0)
    elif config.nms != "none":
        method: Literal["linear", "gaussian"] = "linear" if config.nms == "soft-linear" else "gaussian"
        scores_N = spans.soft_nms(windows_N2, scores_N, method=method, threshold=0.0, sigma=config.sigma)
    order_N = np.argsort(-scores_N, kind="stable")
    rows_N3: Floats = np.column_stack([windows_N2, scores_N])[order_N].astype(np.float32)
    return rows_N3
