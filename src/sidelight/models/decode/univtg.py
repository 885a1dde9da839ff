"""Decode the predictions of UniVTG: one window per clip, then non-maximum suppression.

The published evaluation and the published demo turn predictions into seconds in different ways. Both are here:

- ``unit="extent"`` (the demo, and the way in which training divides windows) multiplies by clips times their length;
  ``unit="duration"`` (the evaluation) by the duration of the video.
- The evaluation rounds starts, ends and scores to four decimals, after sorting; then starts and ends to whole clips
  (``round_to_clips``; halves to the even neighbour). The demo rounds nothing and removes no overlaps.

Here windows are always cut to the video, and sorted. Four decimals are always kept.

In the published evaluation a padded clip of a batch leaves a window of score 0 in the list. Such windows depend on the
other samples and are left out.

Shape legend: B batch, T clips, N windows, 2 [start, end], 3 (start, end, score).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sidelight.core import spans
from sidelight.core.grounding import Moment
from sidelight.core.options import require
from sidelight.core.timeline import Timeline, clips_to_seconds, seconds_to_clips
from sidelight.models.decode.answer import Answer, AnswerConfig, check_finite
from sidelight.models.univtg import UniVTGPredictions

Floats = NDArray[np.float64]
_DECIMALS = 4
"""Digits after the point of seconds and scores in published predictions."""


@dataclass(frozen=True, kw_only=True)
class UniVTGDecodeConfig(AnswerConfig):
    """Options of UniVTG's decoding."""

    max_moments: int | None = 10
    """Number of moments to keep, best first; none keeps all (max_after_nms)."""
    max_windows: int | None = 1000
    """Number of windows that suppression reads, best first; none reads all (max_before_nms)."""
    nms_threshold: float | None = 0.7
    """IoU above which a better window removes another; none removes nothing (nms_thd)."""
    unit: Literal["extent", "duration"] = "extent"
    """Seconds that 1.0 stands for: the end of the last clip, or the duration of the video."""
    round_to_clips: bool = False
    """Round starts and ends to whole clips, as the published evaluation does unless round_multiple is below 0."""
    saliency: Literal["cosine", "sum"] = "cosine"
    """The highlight curve: cosine of clip and query, or this plus the clip's score (eval_mode add, on QVHighlights)."""
    keep_all: bool = False
    """Keep windows without length, which rounding makes. They count in average precision; a Grounder leaves them out.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        threshold = self.nms_threshold
        require(self, threshold is None or 0 <= threshold <= 1, "nms_threshold", "in [0, 1], or none")
        require(self, self.max_windows is None or self.max_windows >= 1, "max_windows", "at least 1, or none")

    def answers(self, predictions: UniVTGPredictions, timelines: Sequence[Timeline]) -> Iterator[Answer]:
        """Yield the moments and the saliency of each sample."""
        spans_BT2, scores_BT, cosine_BT = read_predictions(predictions)
        lengths = predictions.video_mask_BT.sum(1).tolist()
        for b, (clips, timeline) in enumerate(zip(lengths, timelines, strict=True)):
            spans_T2, scores_T, curve_T = spans_BT2[b, :clips], scores_BT[b, :clips], cosine_BT[b, :clips]
            check_finite(spans_T2, scores_T, curve_T)
            seconds = timeline.extent if self.unit == "extent" else timeline.duration
            rows_N3 = suppress(windows(spans_T2 * seconds, scores_T, timeline, self), self)
            rows_N3[:, :2] = rows_N3[:, :2].clip(max=timeline.duration)  # rounding may have moved an end after it
            moments = (Moment(start, end, score) for start, end, score in rows_N3.tolist())
            kept = self.best(m for m in moments if self.keep_all or m.duration > 0)
            yield kept, (curve_T + scores_T if self.saliency == "sum" else curve_T).astype(np.float32)


@torch.no_grad()
def read_predictions(predictions: UniVTGPredictions) -> tuple[Floats, Floats, Floats]:
    """Return spans (B, T, 2) in units of the extent, scores (B, T) and cosines (B, T)."""
    scores_BT = predictions.logits_BT.float().sigmoid()
    arrays = (predictions.spans_BT2(), scores_BT, predictions.cosine_BT())
    spans_BT2, scores, cosines = (array.cpu().numpy().astype(np.float64) for array in arrays)
    return spans_BT2, scores, cosines


def windows(seconds_T2: Floats, scores_T: Floats, timeline: Timeline, config: UniVTGDecodeConfig) -> Floats:
    """Return one window per clip, (T, 3), best first, cut to the video and rounded."""
    windows_T2 = seconds_T2.clip(0, timeline.duration)
    order_T = np.argsort(-scores_T, kind="stable")
    rows_T3: Floats = np.column_stack([windows_T2, scores_T])[order_T].round(_DECIMALS)
    if config.round_to_clips:
        clips_T2 = np.rint(seconds_to_clips(rows_T3[:, :2], timeline.clip_seconds))
        rows_T3[:, :2] = clips_to_seconds(clips_T2, timeline.clip_seconds)
    return rows_T3


def suppress(rows_N3: Floats, config: UniVTGDecodeConfig) -> Floats:
    """Return the windows that suppression keeps, (N, 3), best first, at most ``max_moments``."""
    if config.nms_threshold is not None:
        rows_N3 = rows_N3[: config.max_windows]
        rows_N3 = rows_N3[spans.nms(rows_N3[:, :2], rows_N3[:, 2], config.nms_threshold)]
    return rows_N3[: config.max_moments]
