"""PointPredictions -> Grounding: points to windows, clamping, rounding, suppression, as R2-Tuning does it.

The published post-processing differs from SDST's (``decode.py``) in each step: the 50 best windows are chosen
first; only windows that end before the video does are rounded, and one that vanishes is not made longer;
linear soft suppression knows no threshold; hard suppression sets scores to 0 and keeps the row. One difference:
a window without length overlaps nothing here, where the published soft suppression makes its score not a number.

Shape legend: B batch, T clips, N windows, 2 (start, end) in seconds, 3 (start, end, score).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from sidelight.core import spans
from sidelight.core.grounding import Grounding, Moment
from sidelight.core.options import require
from sidelight.core.timeline import Timeline
from sidelight.models.decode.sdst import AnswerConfig
from sidelight.models.points import PointPredictions

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class R2DecodeConfig(AnswerConfig):
    """How raw predictions become an answer. Defaults are those for QVHighlights."""

    nms: Literal["hard", "soft-linear", "soft-gaussian", "none"] = "hard"
    """How overlapping windows are held down (soft-linear on every other dataset)."""
    nms_threshold: float = 0.7
    """IoU from which hard suppression removes."""
    sigma: float = 0.5
    """Width of soft-gaussian's fall."""
    max_moments: int | None = 50
    """Windows that are looked at, best first; none looks at all."""
    round_to: float | None = 2.0
    """Round starts and ends to multiples of this many seconds (0.1 on Charades-STA); none leaves them alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, 0 < self.nms_threshold <= 1, "nms_threshold", "in (0, 1]")
        require(self, self.sigma > 0, "sigma", "above 0")
        positive = self.round_to is None or 0 < self.round_to < math.inf
        require(self, positive, "round_to", "a number of seconds above 0, or none")


def decode_r2(
    predictions: PointPredictions,
    timelines: Sequence[Timeline],
    queries: Sequence[str],
    config: R2DecodeConfig,
    videos: Sequence[str | None] | None = None,
) -> list[Grounding]:
    """One validated Grounding per sample, moments by falling score; windows without length or with a score of 0
    are left out.

    ValueError if the numbers of timelines, queries or videos differ from the batch, if a timeline's number
    of clips differs from its sample's, or if the model returned numbers that are not finite.
    """
    size = len(predictions.video_mask_BT)
    named = {"timelines": timelines, "queries": queries, "videos": videos if videos is not None else queries}
    for name, given in named.items():
        if len(given) != size:
            raise ValueError(f"decode_r2 needs {size} {name}, one for each sample of the batch, got {len(given)}")
    curves = saliency(predictions)
    answers = []
    for b, (timeline, query) in enumerate(zip(timelines, queries, strict=True)):
        if timeline.num_clips != len(curves[b]):
            raise ValueError(
                f"sample {b} has {len(curves[b])} clips, but its timeline has {timeline.num_clips} "
                f"({timeline.duration} s in clips of {timeline.clip_seconds} s): "
                "the features were extracted with other clips than the timeline's"
            )
        rows = np.empty((0, 3))
        raw_N3 = np.empty((0, 3), np.float32)
        if predictions.distances_BN2 is not None:
            raw_N3 = point_windows(predictions, b, timeline.clip_seconds, config.max_moments)
        if not (np.isfinite(raw_N3).all() and np.isfinite(curves[b]).all()):
            raise ValueError(
                "the model returned numbers that are not finite (NaN or infinity): "
                "its weights are damaged or have diverged, or its input features are not finite"
            )
        if len(raw_N3):
            rows = postprocess(raw_N3, timeline.duration, config).astype(np.float64)
        moments = tuple(
            Moment(start, min(end, timeline.duration), score)
            for start, end, score in rows.tolist()
            if score > 0 and score >= config.min_score and start < min(end, timeline.duration)
        )
        answers.append(
            Grounding(
                query=query,
                timeline=timeline,
                moments=moments,
                saliency=curves[b],
                video=None if videos is None else videos[b],
            )
        )
    return answers


@torch.no_grad()
def point_windows(predictions: PointPredictions, b: int, clip_seconds: float, most: int | None = 50) -> Floats:
    """The ``most`` best windows of sample ``b``, (N, 3), best first, as its points say them: not yet clamped."""
    if predictions.distances_BN2 is None:
        raise ValueError("a model without a boundary head predicts no windows")
    real_N = predictions.point_mask_BN[b]
    place, stride = predictions.points_N4[real_N][:, 0], predictions.points_N4[real_N][:, 3]
    to_start, to_end = (predictions.distances_BN2[b, real_N].float() * stride.unsqueeze(1)).unbind(1)
    scores = predictions.logits_BN[b, real_N].float().sigmoid()
    windows = torch.stack([place - to_start, place + to_end], 1) * clip_seconds
    best = scores.argsort(descending=True, stable=True)[:most]
    found: Floats = torch.cat([windows, scores.unsqueeze(1)], 1)[best].cpu().numpy()
    return found


@torch.no_grad()
def saliency(predictions: PointPredictions) -> list[Floats]:
    """The highlight curve of each sample: the cosine of clip and query, times the best class score that any
    level of the pyramid gives to the clip's time. A model without a boundary head answers with the class score.
    """
    cosine_BT = F.cosine_similarity(predictions.video_BTF.float(), predictions.text_BF.float().unsqueeze(1), dim=-1)
    cosine_BT, scores_BN = cosine_BT.cpu(), predictions.logits_BN.float().sigmoid().cpu()
    masks_BN, lengths = predictions.point_mask_BN.cpu(), predictions.video_mask_BT.sum(1).tolist()
    strides_N = predictions.points_N4[:, 3].cpu()
    curves = []
    for b, clips in enumerate(lengths):
        levels = []
        for stride in strides_N.unique():
            own = scores_BN[b, (strides_N == stride) & masks_BN[b]]
            if len(own):
                # In the published code each score is repeated clips // len(own) times, which may be more than
                # the stride, and the last one as often as clips are left.
                index = torch.arange(clips) // max(clips // len(own), 1)
                levels.append(own[index.clamp(max=len(own) - 1)])
        curve = torch.stack(levels).amax(0)
        if predictions.distances_BN2 is not None:
            curve = curve * cosine_BT[b, :clips]
        curves.append(curve.numpy())
    return curves


def postprocess(windows_N3: Floats, duration: float, config: R2DecodeConfig) -> Floats:
    """Clamp to the duration, round, suppress; the same number of rows, by falling score, in float32."""
    windows_N2 = windows_N3[:, :2].astype(np.float32).clip(0, np.float32(duration))
    scores_N = windows_N3[:, 2].astype(np.float32)
    if config.round_to is not None:
        unit = np.float32(config.round_to)
        before_N = windows_N2[:, 1] < np.float32(duration)
        windows_N2[before_N] = np.rint(windows_N2[before_N] / unit) * unit  # halves to the even neighbour
    if config.nms == "hard":
        # The published code removes at the threshold, not only above it.
        keep_N = spans.nms(windows_N2, scores_N, math.nextafter(np.float32(config.nms_threshold), 0))
        scores_N = np.where(keep_N, scores_N, 0)
    elif config.nms != "none":
        method: Literal["linear", "gaussian"] = "linear" if config.nms == "soft-linear" else "gaussian"
        scores_N = spans.soft_nms(windows_N2, scores_N, method=method, threshold=0.0, sigma=config.sigma)
    order_N = np.argsort(-scores_N, kind="stable")
    found: Floats = np.column_stack([windows_N2, scores_N])[order_N].astype(np.float32)
    return found
