"""Decode the predictions of SCADA: one window per pair of clips, then soft non-maximum suppression.

The paper does not say how a window is scored. As in BMN (Lin et al., ICCV 2019), the score is the product of four
numbers: the probability of a start at the pair's first clip, of an end at its last clip, the score of the
classification and the estimated IoU. Suppression is AdaTAD's: Gaussian, sigma 0.3.

The paper has no highlight curve. Here the curve of a clip is the best score of a pair that contains the clip (ours).

Shape legend: A pairs of clips, T clips, 2 [start, end].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sidelight.core import spans
from sidelight.core.grounding import Moment
from sidelight.core.options import require
from sidelight.core.timeline import Timeline, clips_to_seconds
from sidelight.models.decode.answer import Answer, AnswerConfig, check_finite
from sidelight.models.scada import ScadaPredictions

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ScadaDecodeConfig(AnswerConfig):
    """Options of SCADA's decoding."""

    max_moments: int | None = 10
    """Number of moments to keep, best first; none keeps all."""
    max_windows: int = 200
    """Number of windows that suppression reads, best first."""
    nms_sigma: float | None = 0.3
    """Width of the Gaussian of soft suppression; none suppresses nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, self.nms_sigma is None or self.nms_sigma > 0, "nms_sigma", "above 0, or none")
        require(self, self.max_windows >= 1, "max_windows", "at least 1")

    def answers(self, predictions: ScadaPredictions, timelines: Sequence[Timeline]) -> Iterator[Answer]:
        """Yield the moments and the saliency of each sample."""
        scores_BA, edges_BA2, mask_BA = read_predictions(predictions)
        pairs_A2 = predictions.pairs_A2.cpu().numpy()
        lengths = predictions.video_mask_BT.sum(1).tolist()
        for b, (clips, timeline) in enumerate(zip(lengths, timelines, strict=True)):
            real_A = mask_BA[b]
            scores_A, edges_A2 = scores_BA[b, real_A], edges_BA2[b, real_A]
            check_finite(scores_A, edges_A2)
            curve_T = highlight_curve(pairs_A2[real_A], scores_A, clips)
            order_A = np.argsort(-scores_A, kind="stable")[: self.max_windows]
            windows_A2 = clips_to_seconds(edges_A2[order_A], timeline.clip_seconds).clip(0, timeline.duration)
            kept_A = windows_A2[:, 1] > windows_A2[:, 0]  # the offsets may have crossed
            windows_A2, scores_A = windows_A2[kept_A], scores_A[order_A][kept_A]
            if self.nms_sigma is not None and len(scores_A):
                scores_A = spans.soft_nms(windows_A2, scores_A, method="gaussian", sigma=self.nms_sigma)
            rows = np.column_stack([windows_A2, scores_A]).tolist()
            yield self.best(Moment(start, end, score) for start, end, score in rows), curve_T.astype(np.float32)


@torch.no_grad()
def read_predictions(predictions: ScadaPredictions) -> tuple[Floats, Floats, NDArray[Any]]:
    """Return scores (B, A), edges in clips (B, A, 2), and which pairs are real (B, A)."""
    boundary_BT2 = predictions.boundary_BT2.float().sigmoid()
    first_A, last_A = predictions.pairs_A2.unbind(1)
    scores_BA = boundary_BT2[:, first_A, 0] * boundary_BT2[:, last_A, 1]
    scores_BA = scores_BA * predictions.class_BA.float().sigmoid() * predictions.iou_BA.float()
    scores, edges = (x.cpu().numpy().astype(np.float64) for x in (scores_BA, predictions.edges_BA2()))
    return scores, edges, predictions.pair_mask_BA().cpu().numpy()


def highlight_curve(pairs_A2: NDArray[Any], scores_A: Floats, clips: int) -> Floats:
    """Return the best score of a pair that contains each clip, (T,)."""
    table_TT = np.zeros((clips, clips))
    table_TT[pairs_A2[:, 0], pairs_A2[:, 1]] = scores_A
    started_TT = np.maximum.accumulate(table_TT, axis=0)  # [t, j]: the best that starts at t or before and ends at j
    curve_T: Floats = np.maximum.accumulate(started_TT[:, ::-1], axis=1)[:, ::-1].diagonal().copy()
    return curve_T
