"""The parts that all decoders share: options of every answer, checks of the input, and the list of groundings.

Shape legend: B batch, T clips.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidelight.core.grounding import Grounding, Moment
from sidelight.core.options import check_types, require
from sidelight.core.timeline import Timeline

Answer = tuple[tuple[Moment, ...], NDArray[np.float32]]
"""The moments of one sample, best first, and the saliency of its clips, (T,)."""


@dataclass(frozen=True, kw_only=True)
class AnswerConfig(ABC):
    """Options of every decoder: which moments are kept, and how windows become one answer.

    Each family of models has a subclass, which adds its own options and decodes the predictions of these models.
    """

    max_moments: int | None = None
    """Number of moments to keep, best first; none keeps all."""
    min_score: float = 0.0
    """Lowest score of a moment that is kept."""
    merge_tolerance: float = 1.0
    """Windows of a long video: a moment that ends within this many clips of a window's inner edge is cut by it."""
    merge_iou: float = 0.5
    """Windows: IoU from which two moments of different windows are the same moment; above 0, since any two moments have
    at least 0.
    """
    merge_ratio: float = 0.3
    """Windows: lowest ratio of the weaker to the stronger score at which two pieces are joined."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("min_score", "merge_ratio"):
            require(self, 0 <= getattr(self, name) <= 1, name, "in [0, 1]")
        require(self, 0 < self.merge_iou <= 1, "merge_iou", "above 0 and at most 1")
        require(self, self.max_moments is None or self.max_moments >= 1, "max_moments", "at least 1, or none")
        require(self, 0 <= self.merge_tolerance < math.inf, "merge_tolerance", "at least 0")

    def decode(
        self,
        predictions: Any,
        timelines: Sequence[Timeline],
        queries: Sequence[str],
        videos: Sequence[str | None] | None = None,
    ) -> list[Grounding]:
        """Turn predictions into one grounding per sample, with moments by falling score, within the video.

        Args:
            predictions: the result of the model's ``forward``.
            timelines: one per sample.
            queries: one sentence per sample.
            videos: one name per sample, if the groundings shall name their videos.

        Raises:
            ValueError: if the number of timelines, queries or videos is not that of the batch, if a timeline has
                another number of clips than its sample, or if the model returned numbers that are not finite.
        """
        size = len(predictions.video_mask_BT)
        per_sample = {"timelines": timelines, "queries": queries, "videos": queries if videos is None else videos}
        for name, values in per_sample.items():
            if len(values) != size:
                raise ValueError(f"decode needs {size} {name}, one for each sample of the batch, got {len(values)}")
        groundings = []
        for b, (moments, saliency_T) in enumerate(self.answers(predictions, timelines)):
            timeline = timelines[b]
            if timeline.num_clips != len(saliency_T):
                raise ValueError(
                    f"sample {b} has {len(saliency_T)} clips, but its timeline has {timeline.num_clips} "
                    f"({timeline.duration} s in clips of {timeline.clip_seconds} s): "
                    "extract the features again with the timeline's clip_seconds"
                )
            video = None if videos is None else videos[b]
            groundings.append(
                Grounding(query=queries[b], timeline=timeline, moments=moments, saliency=saliency_T, video=video)
            )
        return groundings

    @abstractmethod
    def answers(self, predictions: Any, timelines: Sequence[Timeline]) -> Iterable[Answer]:
        """Yield the answer for each sample."""

    def best(self, moments: Iterable[Moment]) -> tuple[Moment, ...]:
        """Return the moments that are kept, by falling score."""
        kept = [moment for moment in moments if moment.score >= self.min_score]
        return tuple(sorted(kept, key=lambda moment: -moment.score)[: self.max_moments])


def check_finite(*arrays: NDArray[Any]) -> None:
    """Raise ValueError if a number of a model's predictions is not finite."""
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError(
            "the model returned numbers that are not finite (NaN or infinity): "
            "its weights are damaged or have diverged, or its input features are not finite"
        )
