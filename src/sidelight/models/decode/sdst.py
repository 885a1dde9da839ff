"""Predictions -> Grounding: scores, rounding, non-maximum suppression (SDST, App. C.4); and long videos from
windows.

Only here do spans become seconds. One batch costs one copy from the accelerator to the host.

Shape legend: B batch, T clips, M moment queries, 2 (start, end) in seconds once on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sidelight.core import spans
from sidelight.core.batch import Predictions
from sidelight.core.grounding import Grounding, Moment
from sidelight.core.options import check_types, require
from sidelight.core.timeline import Timeline

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class AnswerConfig:
    """What every side-tuner's decoding has in common: which moments are kept, and how windows become one answer."""

    max_moments: int | None = None
    """Keep that many best moments; none keeps all."""
    min_score: float = 0.0
    """Drop moments that score less."""
    merge_tolerance: float = 1.0
    """Windows of a long video: a moment that ends within this many clips of a window's inner edge is cut by
    it.
    """
    merge_iou: float = 0.5
    """Windows: two moments of different windows that overlap this much are the same moment."""
    merge_ratio: float = 0.3
    """Windows: pieces belong together only if the weaker scores at least this share of the stronger."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("min_score", "merge_iou", "merge_ratio"):
            require(self, 0 <= getattr(self, name) <= 1, name, "in [0, 1]")
        require(self, self.max_moments is None or self.max_moments >= 1, "max_moments", "at least 1, or none")
        require(self, 0 <= self.merge_tolerance < np.inf, "merge_tolerance", "at least 0")


@dataclass(frozen=True, kw_only=True)
class DecodeConfig(AnswerConfig):
    """How raw predictions become an answer. Defaults follow the paper where it speaks."""

    score: Literal["sqrt", "product", "class", "actionness"] = "sqrt"
    """Score of a moment: sqrt(class * actionness) as in Eq. 23, their product, or one of the two alone."""
    nms: Literal["soft-linear", "soft-gaussian", "hard", "none"] = "soft-linear"
    """How overlapping moments are held down: scores lowered (soft), moments removed (hard), or not at all."""
    nms_threshold: float = 0.3
    """IoU from which a moment counts as overlapping (soft-linear and hard)."""
    sigma: float = 0.5
    """Width of soft-gaussian's fall."""
    round_to: float | None = None
    """Round starts and ends to multiples of this many seconds (2 on QVHighlights) before suppression; a
    moment that would vanish becomes one unit long. None leaves them alone.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, 0 <= self.nms_threshold <= 1, "nms_threshold", "in [0, 1]")
        require(self, self.sigma > 0, "sigma", "above 0")
        positive = self.round_to is None or 0 < self.round_to < np.inf
        require(self, positive, "round_to", "a number of seconds above 0, or none")


def decode(
    predictions: Predictions,
    timelines: Sequence[Timeline],
    queries: Sequence[str],
    config: DecodeConfig,
    videos: Sequence[str | None] | None = None,
) -> list[Grounding]:
    """One validated Grounding per sample, moments by falling score and within the video's duration.

    ValueError if the numbers of timelines, queries or videos differ from the batch, if a timeline's number
    of clips differs from its sample's, or if the model returned numbers that are not finite.
    """
    size = predictions.video_mask_BT.shape[0]
    named = {"timelines": timelines, "queries": queries, "videos": videos if videos is not None else queries}
    for name, given in named.items():
        if len(given) != size:
            raise ValueError(f"decode needs {size} {name}, one for each sample of the batch, got {len(given)}")
    spans_BM2, scores_BM, saliency_BT, clips_B = _to_host(predictions, config)
    answers = []
    for b, (timeline, query) in enumerate(zip(timelines, queries, strict=True)):
        if timeline.num_clips != clips_B[b]:
            raise ValueError(
                f"sample {b} has {clips_B[b]} clips, but its timeline has {timeline.num_clips} "
                f"({timeline.duration} s in clips of {timeline.clip_seconds} s): "
                "the features were extracted with other clips than the timeline's"
            )
        seconds_M2 = timeline.to_seconds(np.clip(spans_BM2[b], 0, 1))
        if config.round_to is not None:
            seconds_M2 = _rounded(seconds_M2, config.round_to, timeline.duration)
        moments = _suppressed(seconds_M2, scores_BM[b], config)
        answers.append(
            Grounding(
                query=query,
                timeline=timeline,
                moments=moments,
                saliency=saliency_BT[b, : clips_B[b]].astype(np.float32),
                video=None if videos is None else videos[b],
            )
        )
    return answers


@torch.no_grad()
def _to_host(predictions: Predictions, config: DecodeConfig) -> tuple[Floats, Floats, Floats, NDArray[np.int64]]:
    """(start, end) (B, M, 2) in units of the extent, scores (B, M), saliency (B, T) and clips (B,), in one
    copy.
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
    if not np.isfinite(host).all():
        raise ValueError(
            "the model returned numbers that are not finite (NaN or infinity): "
            "its weights are damaged or have diverged, or its input features are not finite"
        )
    queries = scores_BM.shape[1]
    start, end, scores, clips, saliency = np.split(host, [queries, 2 * queries, 3 * queries, 3 * queries + 1], 1)
    return np.stack([start, end], -1), scores, saliency, clips[:, 0].astype(np.int64)


def _rounded(seconds_M2: Floats, unit: float, duration: float) -> Floats:
    """Starts and ends at multiples of ``unit``, at least one unit apart where they were apart, within the
    duration.
    """
    units = np.rint(seconds_M2 / unit)
    vanished = (units[:, 0] == units[:, 1]) & (seconds_M2[:, 1] > seconds_M2[:, 0])
    units[vanished, 0] = np.floor(seconds_M2[vanished].mean(1) / unit)
    units[vanished, 1] = units[vanished, 0] + 1
    # Nine decimals hide what a unit like 0.1 s leaves behind (0.30000000000000004).
    rounded: Floats = np.minimum((units * unit).round(9), duration)
    return rounded


def _suppressed(seconds_M2: Floats, scores_M: Floats, config: DecodeConfig) -> tuple[Moment, ...]:
    """Suppression, then the best moments by falling score; moments without length are dropped first."""
    real = seconds_M2[:, 1] > seconds_M2[:, 0]
    seconds_M2, scores_M = seconds_M2[real], scores_M[real]
    if config.nms == "hard":
        keep = spans.nms(seconds_M2, scores_M, config.nms_threshold)
        seconds_M2, scores_M = seconds_M2[keep], scores_M[keep]
    elif config.nms != "none":
        method: Literal["linear", "gaussian"] = "linear" if config.nms == "soft-linear" else "gaussian"
        scores_M = spans.soft_nms(
            seconds_M2, scores_M, method=method, threshold=config.nms_threshold, sigma=config.sigma
        )
    rows = np.column_stack([seconds_M2, scores_M]).tolist()
    found = [Moment(start, end, score) for start, end, score in rows]
    return _best(found, config)


def _best(moments: Sequence[Moment], config: AnswerConfig) -> tuple[Moment, ...]:
    kept = [moment for moment in moments if moment.score >= config.min_score]
    return tuple(sorted(kept, key=lambda moment: -moment.score)[: config.max_moments])


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A moment as one window (or, once united, several) saw it, in seconds of the whole video."""

    start: float
    end: float
    score: float
    windows: frozenset[int]
    cut_left: bool = False
    cut_right: bool = False

    @property
    def whole(self) -> bool:
        return not (self.cut_left or self.cut_right)

    def shared(self, other: _Piece) -> float:
        """Seconds that both cover."""
        return max(0.0, min(self.end, other.end) - max(self.start, other.start))


def merge_windows(groundings: Sequence[tuple[float, Grounding]], timeline: Timeline, config: AnswerConfig) -> Grounding:
    """One answer for a long video from the answers of overlapping windows, given as (window's start in
    seconds, answer).

    The windows' edges inside the video leave no trace: a moment cut by one is replaced by the whole moment
    where a neighbour saw it whole, cut moments that continue each other in adjacent windows are united (with
    the mean of their scores by length), a moment seen twice is kept once, and saliency is a mean that trusts
    a window less towards its inner edges. ValueError if there is no window, if they answer different queries
    or leave a clip uncovered.
    """
    if not groundings:
        raise ValueError("merge_windows needs at least one window, got none")
    windows = sorted(groundings, key=lambda window: window[0])
    query = windows[0][1].query
    for offset, grounding in windows:
        if grounding.query != query:
            raise ValueError(f"windows must answer one query, got {query!r} and {grounding.query!r}")
        end = offset + grounding.timeline.duration
        if not -1e-6 <= offset < timeline.duration or end > timeline.duration + timeline.clip_seconds:
            raise ValueError(
                f"a window from {offset} s to {end} s does not lie within the video's {timeline.duration} s"
            )
    pieces = [piece for number, window in enumerate(windows) for piece in _pieces(number, *window, timeline, config)]
    pieces = _superseded(pieces, config)
    for number in range(len(windows) - 1):
        pieces = _united(pieces, number, config.merge_tolerance * timeline.clip_seconds, config)
    pieces = _once(_superseded(pieces, config), config)
    return Grounding(
        query=query,
        timeline=timeline,
        moments=_best([Moment(piece.start, piece.end, piece.score) for piece in pieces], config),
        saliency=_blended(windows, timeline),
        video=windows[0][1].video,
    )


def _pieces(number: int, offset: float, grounding: Grounding, timeline: Timeline, config: AnswerConfig) -> list[_Piece]:
    """The window's moments in the whole video's seconds, marked where an inner edge cuts them."""
    tolerance = config.merge_tolerance * timeline.clip_seconds
    left, right = _inner_edges(offset, grounding, timeline)
    pieces = []
    for moment in grounding.moments:
        start = min(max(offset + moment.start, 0.0), timeline.duration)
        end = min(offset + moment.end, timeline.duration)
        if end > start:
            cut_left, cut_right = start - left <= tolerance, right - end <= tolerance
            pieces.append(
                _Piece(
                    start=start,
                    end=end,
                    score=moment.score,
                    windows=frozenset([number]),
                    cut_left=cut_left,
                    cut_right=cut_right,
                )
            )
    return pieces


def _inner_edges(offset: float, grounding: Grounding, timeline: Timeline) -> tuple[float, float]:
    """Where the window starts and ends, in seconds of the whole video; infinitely far where the video does
    too.
    """
    end = offset + grounding.timeline.duration
    left = offset if offset > 1e-6 else -np.inf
    right = end if end < timeline.duration - 1e-6 else np.inf
    return left, right


def _superseded(pieces: list[_Piece], config: AnswerConfig) -> list[_Piece]:
    """Without the cut moments that another window saw whole; the whole one keeps the better score of the
    two.
    """
    wholes = [piece for piece in pieces if piece.whole]
    kept = []
    for piece in pieces:
        if piece.whole:
            continue
        rivals = [
            (piece.shared(whole), place)
            for place, whole in enumerate(wholes)
            if not piece.windows & whole.windows
            and piece.shared(whole) >= config.merge_iou * (piece.end - piece.start)
            and whole.score >= config.merge_ratio * piece.score
        ]
        if rivals:
            place = max(rivals)[1]
            wholes[place] = replace(wholes[place], score=max(wholes[place].score, piece.score))
        else:
            kept.append(piece)
    return wholes + kept


def _united(pieces: list[_Piece], number: int, tolerance: float, config: AnswerConfig) -> list[_Piece]:
    """Join moments cut by the right edge of window ``number`` with those cut by the left edge of the next,
    best first.
    """
    before = [piece for piece in pieces if piece.cut_right and max(piece.windows) == number]
    after = [piece for piece in pieces if piece.cut_left and min(piece.windows) == number + 1]
    pairs = [
        (one, two)
        for one in before
        for two in after
        # Each must be cut where the other goes on: what starts inside the next window is not continued from
        # there.
        if one.start <= two.start + tolerance
        and one.end <= two.end + tolerance
        and two.start <= one.end + tolerance
        and min(one.score, two.score) >= config.merge_ratio * max(one.score, two.score)
    ]
    pairs.sort(key=lambda pair: -pair[0].score * pair[1].score)
    joined: list[_Piece] = []
    used: set[int] = set()
    for one, two in pairs:
        if used & {id(one), id(two)}:
            continue
        used |= {id(one), id(two)}
        lengths = (one.end - one.start, two.end - two.start)
        joined.append(
            _Piece(
                start=min(one.start, two.start),
                end=max(one.end, two.end),
                score=float(np.average([one.score, two.score], weights=lengths)),
                windows=one.windows | two.windows,
                cut_left=one.cut_left,
                cut_right=two.cut_right,
            )
        )
    return [piece for piece in pieces if id(piece) not in used] + joined


def _once(pieces: list[_Piece], config: AnswerConfig) -> list[_Piece]:
    """Keep the best of the moments that different windows agree on. Moments of one window were suppressed
    there.
    """
    kept: list[_Piece] = []
    for piece in sorted(pieces, key=lambda piece: -piece.score):
        same = (
            other.shared(piece) / (max(other.end, piece.end) - min(other.start, piece.start))
            for other in kept
            if not other.windows & piece.windows
        )
        if all(overlap < config.merge_iou for overlap in same):
            kept.append(piece)
    return kept


def _blended(windows: Sequence[tuple[float, Grounding]], timeline: Timeline) -> NDArray[np.float32]:
    """Saliency of each clip of the whole video: a mean over windows, weighted by the distance to their inner
    edges.
    """
    middles = (np.arange(timeline.num_clips) + 0.5) * timeline.clip_seconds
    total, weights = np.zeros(len(middles)), np.zeros(len(middles))
    for offset, grounding in windows:
        left, right = _inner_edges(offset, grounding, timeline)
        own = grounding.timeline
        own_middles = offset + (np.arange(own.num_clips) + 0.5) * own.clip_seconds
        inside = (middles > offset - 1e-6) & (middles < offset + own.extent + 1e-6)
        # Never quite zero, for clips whose middle lies on an edge; never infinite, for a window without
        # inner edges.
        distance = np.minimum(middles - left, right - middles).clip(1e-6, own.extent)
        weight = np.where(inside, distance, 0.0)
        total += weight * np.interp(middles, own_middles, grounding.saliency)
        weights += weight
    if not (weights > 0).all():
        missing = float(middles[weights == 0][0])
        raise ValueError(f"no window covers the video at {missing} s; windows must overlap or touch")
    return (total / weights).astype(np.float32)
