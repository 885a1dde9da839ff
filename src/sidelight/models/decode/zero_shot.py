"""Decode the similarity of clips and sentence: moments without training, by the functions of ``models/zero_shot.py``.

Shape legend: B batch, T clips, E width of the joint space, N proposals, 2 [first, stop) in clips.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sidelight.core import spans
from sidelight.core.grounding import Moment
from sidelight.core.options import require
from sidelight.core.timeline import Timeline, clips_to_seconds
from sidelight.models import zero_shot
from sidelight.models.decode.answer import Answer, AnswerConfig, check_finite

Floats = NDArray[np.float64]
Clips = NDArray[np.int64]
Scored = tuple[Clips, Floats]
"""Spans in clips, (N, 2), and their scores, (N,)."""


@dataclass(frozen=True, kw_only=True)
class ZeroShotDecodeConfig(AnswerConfig):
    """Options of grounding without training. The defaults are our method; :data:`METHODS` has the others.

    Options that only one kind of proposals reads are ignored by the others. Sources: TFVTG's and TAG's published
    settings for Charades-STA, whose frames at 3 per second are counted here in clips of 2 seconds; our own options
    were chosen on a validation world of shapes, as ``docs/zero-shot.md`` says.
    """

    proposals: Literal["persistent", "windows", "clusters", "threshold"] = "persistent"
    """Which spans are scored: the runs above any threshold (ours), windows of several lengths (TFVTG), spans between
    changes of content (TAG), or the runs above one threshold.
    """
    score: Literal["persistence", "contrast"] = "persistence"
    """How a span is scored: by the share of thresholds at which it is a run (ours), or by the mean inside minus the
    mean outside (TFVTG, TAG).
    """
    adjust: Literal["normalise", "box-cox"] = "normalise"
    """How the curve is brought into [0, 1] before it is scored: linearly, or by the power transform of TAG."""
    smoothing: tuple[float, ...] = (0.5, 1.0)
    """Deviations in clips of the Gaussians by which the curve is smoothed; 0 does not smooth. Spans are proposed and
    scored on each smoothed curve, and the scores of equal spans are averaged.
    """
    floor: float = 0.1
    """Share of the clips, the worst ones, that count as equally bad."""
    height: float = 6.0
    """How strongly persistence prefers high runs: the power of a run's mean. 0 does not."""
    deviations: float = 1.0
    """threshold: the threshold is the mean of the curve plus this many standard deviations."""
    window_step: int = 3
    """windows: the lengths are multiples of this, in clips (TFVTG: 20 frames, 6.7 s)."""
    longest: float = 0.5
    """windows and clusters: the longest span, as a share of the video (TFVTG, TAG)."""
    clusters: int = 9
    """clusters: number of groups (TAG)."""
    cluster_pool: int = 3
    """clusters: neighbours over which embeddings are averaged, odd (TAG: 21 frames, 7 s)."""
    cluster_neighbours: int = 1
    """clusters: neighbours over which distances are averaged, odd (TAG: 7 frames, 2.3 s)."""
    seed: int = 0
    """clusters: seed of the first centers."""
    rising_start: bool = False
    """Move the start back to where the curve begins to rise (TFVTG, TAG)."""
    nms: Literal["soft-linear", "hard", "none"] = "soft-linear"
    """Suppression of overlapping moments: lower their scores (soft), remove them (hard: TFVTG, TAG), or neither."""
    nms_threshold: float = 0.3
    """IoU above which two moments overlap (TFVTG)."""
    presence: Literal["level", "contrast"] = "level"
    """The score of the best moment, by which "no such moment" is decided: the highest cosine of the smoothed curve,
    moved from [-1, 1] to [0, 1], or the mean cosine inside the moment minus the mean outside, at least 0. Other moments
    score in proportion.
    """
    max_moments: int | None = 50
    """Number of moments to keep, best first; none keeps all of the 200 best proposals."""

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range = bool(self.smoothing) and min(self.smoothing) >= 0 and max(self.smoothing) <= 100
        require(self, in_range, "smoothing", "one or more deviations between 0 and 100 clips")
        require(self, 0 <= self.floor < 1, "floor", "in [0, 1)")
        require(self, 0 <= self.height <= 100, "height", "between 0 and 100")
        for name in ("window_step", "clusters"):
            require(self, getattr(self, name) >= 1, name, "at least 1")
        for name in ("cluster_pool", "cluster_neighbours"):
            require(self, getattr(self, name) >= 1 and getattr(self, name) % 2 == 1, name, "an odd number above 0")
        require(self, 0 < self.longest <= 1, "longest", "in (0, 1]")
        require(self, self.seed >= 0, "seed", "at least 0")
        require(self, 0 <= self.nms_threshold <= 1, "nms_threshold", "in [0, 1]")

    def answers(self, predictions: zero_shot.Similarities, timelines: Sequence[Timeline]) -> Iterator[Answer]:
        """Yield the moments of each sample, and its similarity as saliency."""
        similarity_BT = predictions.similarity_BT.detach().cpu().double().numpy()  # MPS has no float64
        mask_BT = predictions.video_mask_BT.cpu().numpy()
        for b, timeline in enumerate(timelines):
            curve_T = similarity_BT[b, mask_BT[b]]
            vectors_TE = predictions.video_BTE[b].detach().cpu().double().numpy()[mask_BT[b]]
            check_finite(curve_T, vectors_TE)
            spans_N2, scores_N = self.moments(curve_T, vectors_TE)
            seconds_N2 = clips_to_seconds(spans_N2.astype(np.float64), timeline.clip_seconds).clip(0, timeline.duration)
            rows = np.column_stack([seconds_N2, scores_N]).tolist()
            yield self.best(Moment(*row) for row in rows), curve_T.astype(np.float32)

    def moments(self, curve_T: Floats, vectors_TE: Floats) -> Scored:
        """Return the moments of one curve of cosines, in clips, and their scores in [0, 1].

        A curve in which nothing stands out, such as a constant one, has the whole video as its only moment.

        Args:
            curve_T: cosine of each clip and the sentence.
            vectors_TE: embedding of each clip.
        """
        if not len(curve_T):
            return np.zeros((0, 2), np.int64), np.zeros(0)
        spans_N2, scores_N = _best(self._scored(curve_T, vectors_TE))
        if not len(spans_N2):
            spans_N2, scores_N = np.array([[0, len(curve_T)]]), np.ones(1)
        best_spans_N2 = spans_N2[scores_N > scores_N.max() - 1e-9]  # several if they are equally good
        if self.rising_start:
            starts_T = zero_shot.rising_starts(zero_shot.smooth(curve_T, _TFVTG_DEVIATION))
            spans_N2 = np.stack([starts_T[spans_N2[:, 0]], spans_N2[:, 1]], axis=1)
        if self.nms == "hard":
            keep_N = spans.nms(spans_N2.astype(np.float64), scores_N, self.nms_threshold)
            spans_N2, scores_N = spans_N2[keep_N], scores_N[keep_N]
        elif self.nms == "soft-linear":
            scores_N = spans.soft_nms(spans_N2.astype(np.float64), scores_N, threshold=self.nms_threshold)
        return spans_N2, scores_N / scores_N.max() * self._presence(curve_T, best_spans_N2)

    def _scored(self, curve_T: Floats, vectors_TE: Floats) -> Iterator[Scored]:
        """Yield proposals with their scores, for one smoothed curve after the other."""
        if self.adjust == "box-cox":
            adjusted_T = zero_shot.box_cox(curve_T)
        else:
            adjusted_T = zero_shot.normalise(curve_T, self.floor)
        for deviation in self.smoothing:
            # Smoothed last: before, clips that fit very badly would pull their neighbours down.
            smoothed_T = zero_shot.smooth(adjusted_T, deviation)
            for spans_N2 in self._proposals(smoothed_T, vectors_TE):
                if self.score == "contrast":
                    scores_N = zero_shot.contrast(adjusted_T, spans_N2)
                else:
                    # The height is that of the sharp curve, which falls at once beside an event.
                    height_N, _ = zero_shot.inside_and_outside(adjusted_T, spans_N2)
                    scores_N = zero_shot.persistence(smoothed_T, spans_N2) * height_N**self.height
                yield spans_N2, scores_N / len(self.smoothing)

    def _proposals(self, smoothed_T: Floats, vectors_TE: Floats) -> Iterable[Clips]:
        clips = len(smoothed_T)
        if self.proposals == "persistent":
            return [zero_shot.all_runs(smoothed_T)]
        if self.proposals == "threshold":
            return [zero_shot.runs(smoothed_T > smoothed_T.mean() + self.deviations * smoothed_T.std())]
        if self.proposals == "windows":
            return zero_shot.windows(clips, self.window_step, self.longest)
        return zero_shot.clusters(
            vectors_TE,
            count=self.clusters,
            pool=self.cluster_pool,
            neighbours=self.cluster_neighbours,
            longest=self.longest,
            seed=self.seed,
        )

    def _presence(self, curve_T: Floats, spans_N2: Clips) -> float:
        """Return in [0, 1] how likely it is that the sentence is true anywhere, for the best spans."""
        if self.presence == "contrast":
            return float(zero_shot.contrast(curve_T, spans_N2).clip(0, 1).max())
        return float(np.clip((1 + zero_shot.smooth(curve_T, max(self.smoothing)).max()) / 2, 0, 1))


_MOST = 200
"""Number of proposals that are suppressed against each other, best first; the published programs answer with 10."""
_TFVTG_DEVIATION = 1.0
"""Deviation of the Gaussian by which TFVTG smooths the curve before it looks for the rise; there in frames."""


def _best(parts: Iterable[Scored]) -> Scored:
    """Return the best spans of all parts, best first, without those of score 0 or less; adds scores of equal spans."""
    best: Scored = np.zeros((0, 2), np.int64), np.zeros(0)
    for spans_N2, scores_N in parts:
        all_N2, all_N = np.concatenate([best[0], spans_N2]), np.concatenate([best[1], scores_N])
        unique_N2, same_N = np.unique(all_N2, axis=0, return_inverse=True)
        sums_N: Floats = np.bincount(same_N.ravel(), all_N, len(unique_N2)).astype(np.float64)
        # More are kept than are returned, because a span may gain by a later part.
        order = np.argsort(-sums_N, kind="stable")[: 4 * _MOST]
        order = order[sums_N[order] > 0]
        best = unique_N2[order], sums_N[order]
    return best[0][:_MOST], best[1][:_MOST]


_CONTRAST = ZeroShotDecodeConfig(score="contrast", smoothing=(0.0,), floor=0.0, nms="hard", max_moments=10)

METHODS: dict[str, ZeroShotDecodeConfig] = {
    "persistence": ZeroShotDecodeConfig(),
    "persistence-smooth": ZeroShotDecodeConfig(smoothing=(1.0, 2.0), height=2.0),
    "tfvtg": replace(_CONTRAST, proposals="windows", rising_start=True),
    "tag": replace(_CONTRAST, proposals="clusters", adjust="box-cox", rising_start=True),
    "threshold": replace(_CONTRAST, proposals="threshold"),
}
"""The methods by name: ours for clean and for noisy curves, the two published ones, and the simplest."""
