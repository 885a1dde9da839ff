"""Grounding without training: moments from the similarity of each clip to the sentence, and nothing else.

A backbone such as CLIP embeds clips and sentences in one space, where the cosine of the two says how well they fit
(``pooling: joint``). The cosines of all clips are the highlight curve. This file turns the curve into moments, in four
steps that are functions of their own:

1. **Adjust** the curve (:func:`normalise`, :func:`smooth`, :func:`box_cox`): cosines of one backbone lie between 0.2
   and 0.3, those of another between -0.4 and 0.7; after this step every video's curve reaches from 0 to 1.
2. **Propose** spans: :func:`runs`, :func:`windows`, :func:`clusters` or :func:`all_runs`.
3. **Score** each span: :func:`contrast` or :func:`persistence`.
4. **Refine** the start: :func:`rising_starts`.

``models/decode/zero_shot.py`` chooses among them, suppresses overlaps and writes seconds. Its ``METHODS`` are:

- ``threshold``, the simplest: the runs of clips above mean + deviation.
- ``tfvtg``, after TFVTG (Zheng et al., ECCV 2024, arXiv 2408.16219): windows of several lengths, scored by mean inside
  minus mean outside; the start moves back along the rising curve. Differences from the paper: no language model that
  splits the sentence into parts; lengths count clips instead of frames at 3 per second; clips with a cosine below 0.2
  (a threshold for BLIP-2) are not left out.
- ``tag``, after TAG (Lee et al., 2025, arXiv 2508.07925): embeddings are averaged over neighbours, k-means++ groups
  them, and every span from one change of group to another is a proposal, scored like TFVTG's on a curve that Box-Cox
  makes less skewed. Differences: those of TFVTG; Box-Cox's exponent is searched on a grid; the smallest range of the
  adjusted curve is left out, since it does not change the order of the moments of one query.
- ``persistence``, ours and the default. A threshold decides which runs of clips are moments, and no single threshold
  suits every query. So take all thresholds: a run's score is the share of the thresholds at which exactly this run is
  a moment. This is the lifetime of a branch in the tree of the curve's peaks, as in persistent homology (Edelsbrunner
  et al., 2002) and in the stable regions of MSER (Matas et al., BMVC 2002). An event stands out over many thresholds; a
  wiggle inside it, or an event together with a half-fitting neighbour, over few. The share is multiplied by a power of
  the run's mean, because the highest clips are what the sentence describes best. Several degrees of smoothing are
  averaged: spans that stand out in all of them are no noise.

Shape legend: B batch, T clips, E width of the joint space, F width of any vectors, N proposals, 2 [first, stop) in
clips.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from sidelight.core.batch import Batch

Floats = NDArray[np.float64]
Clips = NDArray[np.int64]

ZERO_SHOT = "zero-shot"
"""Name of the model."""


@dataclass(frozen=True, kw_only=True)
class Similarities:
    """The output of :class:`ZeroShot`."""

    similarity_BT: Tensor
    """Cosine of clip and sentence in [-1, 1]; exactly 0 on padded clips."""
    video_BTE: Tensor
    """The embeddings of the clips, by which some proposals group them."""
    video_mask_BT: Tensor
    """True for real clips."""


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig:
    """The model has no options: all options are those of the decoding."""


class ZeroShot(nn.Module):
    """The model: joint embeddings in, cosines out. It has no weights."""

    def __init__(self, config: ZeroShotConfig | None = None) -> None:
        super().__init__()
        self.config = config or ZeroShotConfig()

    def forward(self, batch: Batch) -> Similarities:
        """Return the cosine of each clip and the sentence.

        Raises:
            ValueError: if the features are not joint embeddings: one level, one vector per clip, one per sentence.
        """
        video, text = batch.video_KBTD, batch.text_KBLD
        if video.ndim != 4 or len(video) != 1 or text.shape[2] != 1 or video.shape[-1] != text.shape[-1]:
            raise ValueError(
                f"zero-shot reads joint embeddings, (1, B, T, E) and (1, B, 1, E); got {tuple(video.shape)} and "
                f"{tuple(text.shape)}; extract the features with the pooling joint"
            )
        video_BTE = nn.functional.normalize(video[0].float(), dim=-1)
        text_BE = nn.functional.normalize(text[0, :, 0].float(), dim=-1)
        similarity_BT = (video_BTE * text_BE[:, None]).sum(-1)
        mask_BT = batch.video_mask_BT
        return Similarities(
            similarity_BT=similarity_BT.masked_fill(~mask_BT, 0), video_BTE=video_BTE, video_mask_BT=mask_BT
        )


# 1. adjust the curve -------------------------------------------------------------------------------------------------


def smooth(curve_T: Floats, deviation: float) -> Floats:
    """Return a curve averaged over its neighbours with Gaussian weights; the ends are continued.

    Args:
        curve_T: one value per clip.
        deviation: of the Gaussian, in clips; 0 returns the curve.
    """
    if deviation == 0 or len(curve_T) < 2:
        return curve_T
    reach = int(np.ceil(3 * deviation))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    return np.convolve(np.pad(curve_T, reach, mode="edge"), weights / weights.sum(), mode="valid")


def normalise(curve_T: Floats, floor: float = 0.0) -> Floats:
    """Return a curve moved and scaled into [0, 1]; 0 everywhere if it is constant.

    Args:
        curve_T: one value per clip.
        floor: share of the clips that are set to 0, because a few clips that fit very badly would otherwise press all
            others together.
    """
    if not len(curve_T):
        return curve_T
    low, high = np.quantile(curve_T, floor), curve_T.max()
    if high - low < 1e-9:  # a difference by rounding only
        return np.zeros_like(curve_T)
    scaled: Floats = ((curve_T - low) / (high - low)).clip(0, 1)
    return scaled


_EXPONENTS = np.linspace(-2, 2, 81)
"""TAG searches the exponent between -2 and 2."""


def box_cox(curve_T: Floats) -> Floats:
    """Return a curve after the power transform that makes its values most like a normal distribution, in [0, 1].

    Box and Cox (1964); the exponent with the highest likelihood of a grid.
    """
    if not len(curve_T) or np.ptp(curve_T) < 1e-9:
        return np.zeros_like(curve_T)
    logs_T = np.log(curve_T - curve_T.min() + 1e-6 if curve_T.min() <= 0 else curve_T)

    def transformed(exponent: float) -> Floats:
        values: Floats = logs_T if abs(exponent) < 1e-9 else np.expm1(exponent * logs_T) / exponent
        return values

    def likelihood(exponent: float) -> float:
        variance = transformed(exponent).var() + 1e-300
        return float((exponent - 1) * logs_T.sum() - len(curve_T) / 2 * np.log(variance))

    return normalise(transformed(max(_EXPONENTS.tolist(), key=likelihood)))


# 2. propose spans ----------------------------------------------------------------------------------------------------


def runs(above_T: NDArray[np.bool_]) -> Clips:
    """Return the longest runs of True, (N, 2)."""
    edges = np.diff(np.concatenate([[0], above_T.astype(np.int8), [0]]))
    return np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)], axis=1).astype(np.int64)


def all_runs(curve_T: Floats) -> Clips:
    """Return the runs of clips that reach a threshold, for all thresholds together, (N, 2) with N <= T, no repeats.

    Each clip is the lowest clip of one such run: the run that reaches from it to the next lower clip on either side. A
    stack of clips with rising values finds all of them in one pass.
    """
    count = len(curve_T)
    spans_T2 = np.tile(np.array([0, count], np.int64), (count, 1))
    open_runs: list[int] = []
    for clip, value in enumerate(curve_T.tolist()):
        while open_runs and curve_T[open_runs[-1]] > value:
            spans_T2[open_runs.pop(), 1] = clip
        if open_runs:
            last = open_runs[-1]
            spans_T2[clip, 0] = spans_T2[last, 0] if curve_T[last] == value else last + 1
        open_runs.append(clip)
    return np.unique(spans_T2, axis=0)


def windows(clips: int, step: int, longest: float) -> Iterator[Clips]:
    """Yield windows that start at every clip, (N, 2), one array for each length.

    Args:
        clips: T.
        step: the lengths are its multiples, in clips; at most half of the video.
        longest: length of the longest window, as a share of the video; one step is always tried.
    """
    step = max(1, min(step, clips // 2))
    for length in range(step, min(clips, max(step, int(longest * clips))) + 1, step):
        starts = np.arange(clips - length + 1)
        yield np.stack([starts, starts + length], axis=1)


def clusters(
    vectors_TF: Floats, *, count: int, pool: int, neighbours: int, longest: float, seed: int = 0
) -> Iterator[Clips]:
    """Yield the spans from each change of group to each later one, (N, 2), one array for each start.

    Args:
        vectors_TF: the embeddings of the clips. The time of the clip, from 0 to 1, is added to them.
        count: number of groups.
        pool: number of neighbouring clips, odd, over which embeddings are averaged.
        neighbours: number of neighbouring clips, odd, over which the distances to the groups are averaged.
        longest: length of the longest span, as a share of the video; spans from one change to the next are always kept.
        seed: of the first centers.
    """
    clips = len(vectors_TF)
    if not clips:
        return
    time_T1 = (np.arange(clips) / clips)[:, None]
    groups_T = k_means(_averaged(np.hstack([vectors_TF, time_T1]), pool), count, neighbours, seed)
    edges = np.concatenate([[0], np.flatnonzero(np.diff(groups_T)) + 1, [clips]])
    for i, start in enumerate(edges[:-1]):
        stops = edges[i + 1 :]
        stops = stops[(stops - start <= longest * clips) | (stops == stops[0])]
        yield np.stack([np.full(len(stops), start), stops], axis=1)


def k_means(vectors_TF: Floats, count: int, neighbours: int, seed: int) -> Clips:
    """Return the group of each vector, (T,), by k-means++ (Arthur and Vassilvitskii, 2007) along time.

    A vector joins the group whose center is nearest on average over the vector's neighbours, so that groups do not
    change from clip to clip.
    """
    rng = np.random.default_rng(seed)
    count = min(count, len(vectors_TF))
    centers = vectors_TF[[rng.integers(len(vectors_TF))]]
    while len(centers) < count:
        nearest_T = _distances(vectors_TF, centers).min(1) ** 2
        if nearest_T.sum() == 0:  # fewer different vectors than groups
            break
        centers = np.vstack([centers, vectors_TF[rng.choice(len(vectors_TF), p=nearest_T / nearest_T.sum())]])
    groups_T = np.full(len(vectors_TF), -1)
    for _ in range(100):
        nearest_T = _averaged(_distances(vectors_TF, centers), neighbours, shrink=True).argmin(1)
        if (nearest_T == groups_T).all():
            break
        groups_T = nearest_T
        for group in np.unique(groups_T):
            centers[group] = vectors_TF[groups_T == group].mean(0)
    return groups_T


def _distances(vectors_TF: Floats, centers_NF: Floats) -> Floats:
    squares: Floats = ((vectors_TF[:, None] - centers_NF[None]) ** 2).sum(-1)
    return np.sqrt(squares)


def _averaged(values_TF: Floats, width: int, *, shrink: bool = False) -> Floats:
    """Return the mean over ``width`` neighbours; at the ends the first and last count several times, or shrink."""
    half = width // 2
    padded = values_TF if shrink else np.pad(values_TF, ((half, half), (0, 0)), mode="edge")
    sums = np.concatenate([np.zeros((1, values_TF.shape[1])), padded.cumsum(0)])
    clips = np.arange(len(values_TF))
    first, stop = clips - half, clips + half + 1
    if shrink:
        first, stop = first.clip(min=0), stop.clip(max=len(clips))
    else:
        first, stop = first + half, stop + half  # the padding comes first
    means: Floats = (sums[stop] - sums[first]) / (stop - first)[:, None]
    return means


# 3. score spans ------------------------------------------------------------------------------------------------------


def inside_and_outside(curve_T: Floats, spans_N2: Clips) -> tuple[Floats, Floats]:
    """Return the mean of the curve inside each span and outside it, each (N,); nothing outside counts as equal."""
    sums = np.concatenate([[0.0], curve_T.cumsum()])
    length_N = spans_N2[:, 1] - spans_N2[:, 0]
    inside_N = sums[spans_N2[:, 1]] - sums[spans_N2[:, 0]]
    mean_N: Floats = inside_N / length_N
    others_N = len(curve_T) - length_N
    outside_N = np.where(others_N > 0, (sums[-1] - inside_N) / np.maximum(others_N, 1), mean_N)
    return mean_N, outside_N


def contrast(curve_T: Floats, spans_N2: Clips) -> Floats:
    """Return the mean inside minus the mean outside of each span, (N,), as TFVTG and TAG score."""
    inside_N, outside_N = inside_and_outside(curve_T, spans_N2)
    return inside_N - outside_N


def persistence(curve_T: Floats, spans_N2: Clips) -> Floats:
    """Return the share of the thresholds between 0 and 1 at which each span is a run, (N,).

    A span is a run at thresholds above both clips beside it and up to its lowest clip. A clip beyond the end of the
    video counts as 0.

    Args:
        curve_T: in [0, 1].
        spans_N2: at least one clip each.
    """
    if not len(spans_N2):
        return np.zeros(0)
    lowest_N = np.minimum.reduceat(np.append(curve_T, np.inf), spans_N2.ravel())[::2]
    beside_T2 = np.concatenate([[0.0], curve_T, [0.0]])
    beside_N = np.maximum(beside_T2[spans_N2[:, 0]], beside_T2[spans_N2[:, 1] + 1])
    share_N: Floats = (lowest_N - beside_N).clip(min=0)
    return share_N


# 4. refine starts ----------------------------------------------------------------------------------------------------


def rising_starts(curve_T: Floats, least: float = 0.0005) -> Clips:
    """Return for each clip the clip at which the rise that leads to it begins, (T,); itself if the curve does not rise.

    TFVTG calls the rise the dynamic part of an event. The curve rises at a clip if one of three sums of its last
    differences exceeds ``least``, which is TFVTG's number for cosines: 3 times the last, 2 times the last plus the one
    before, or the last three.
    """
    first_T = np.diff(curve_T, prepend=curve_T[:1])
    second_T, third_T = (np.concatenate([np.zeros(shift), first_T[:-shift]])[: len(first_T)] for shift in (1, 2))
    sums = np.stack([3 * first_T, 2 * first_T + second_T, first_T + second_T + third_T])
    starts_T = np.arange(len(curve_T))
    for clip in np.flatnonzero(sums.max(0, initial=-np.inf) > least):
        if clip:
            starts_T[clip] = starts_T[clip - 1]
    return starts_T
