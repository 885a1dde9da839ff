"""Merge the answers of overlapping windows of a long video into one answer.

A model reads a limited number of clips, so a long video is cut into windows that overlap (``Timeline.windows``). The
inner edges of the windows cut moments into pieces. Merging puts the pieces together again. Pieces are compared only
with pieces near them, so the work grows with the length of the video, not with its square.

Shape legend: T clips of the video.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sidelight.core.grounding import Grounding, Moment
from sidelight.core.timeline import Timeline, clips_to_seconds
from sidelight.models.decode.answer import AnswerConfig

_NEAR = 1e-6
"""Seconds: two times that differ by less are the same time."""
_BUCKET_CLIPS = 8
"""Width of a bucket of :class:`_NearbyPieces`; 16 s of 2 s clips were the fastest of 4 to 64 s."""


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A moment as one window sees it (or several windows, once joined), in seconds of the video."""

    start: float
    end: float
    score: float
    windows: frozenset[int]
    cut_left: bool = False
    cut_right: bool = False

    @property
    def complete(self) -> bool:
        return not (self.cut_left or self.cut_right)

    def overlap(self, other: _Piece) -> float:
        """Return the seconds that both pieces cover."""
        return max(0.0, min(self.end, other.end) - max(self.start, other.start))


class _NearbyPieces:
    """Find pieces by the time that they cover: time is cut into buckets, which list the pieces that touch them.

    Args:
        bucket_seconds: width of a bucket.
    """

    def __init__(self, bucket_seconds: float) -> None:
        self._width = bucket_seconds
        self._buckets: defaultdict[int, list[int]] = defaultdict(list)

    def add(self, number: int, piece: _Piece) -> None:
        """Enter a piece under its number, in each bucket that it touches."""
        for bucket in self._touched(piece):
            self._buckets[bucket].append(number)

    def near(self, piece: _Piece) -> set[int]:
        """Return the numbers of all pieces that overlap this one, and of some that do not."""
        return set().union(*(self._buckets[bucket] for bucket in self._touched(piece) if bucket in self._buckets))

    def _touched(self, piece: _Piece) -> range:
        return range(int(piece.start // self._width), int(piece.end // self._width) + 1)


def merge_windows(groundings: Sequence[tuple[float, Grounding]], timeline: Timeline, config: AnswerConfig) -> Grounding:
    """Merge the answers of overlapping windows into one answer for the whole video.

    - A moment that an edge cuts is replaced by the complete moment, if another window sees it.
    - Cut moments of two adjacent windows that continue each other are joined. Their score is the mean by length.
    - A moment that several windows see is kept once.
    - Saliency is a weighted mean over windows. The weight of a window falls towards its inner edges.

    Args:
        groundings: (start of the window in seconds, its answer) of each window.
        timeline: of the whole video.
        config: tolerances and thresholds.

    Raises:
        ValueError: if there is no window, if windows answer different queries or lie outside the video, or if a clip is
            in no window.
    """
    if not groundings:
        raise ValueError("merge_windows needs at least one window, got none")
    windows = sorted(groundings, key=lambda window: window[0])
    query = windows[0][1].query
    for offset, grounding in windows:
        if grounding.query != query:
            raise ValueError(f"windows must answer one query, got {query!r} and {grounding.query!r}")
        end = offset + grounding.timeline.duration
        if not -_NEAR <= offset < timeline.duration or end > timeline.duration + timeline.clip_seconds:
            raise ValueError(
                f"a window from {offset} s to {end} s does not lie within the video's {timeline.duration} s"
            )
    tolerance = clips_to_seconds(config.merge_tolerance, timeline.clip_seconds)
    bucket_seconds = clips_to_seconds(_BUCKET_CLIPS, timeline.clip_seconds)
    pieces = [piece for number, window in enumerate(windows) for piece in _pieces(number, *window, timeline, tolerance)]
    pieces = _replace_cut_pieces(pieces, bucket_seconds, config)
    pieces = _join_cut_pieces(pieces, len(windows), tolerance, config)
    pieces = _drop_repeats(_replace_cut_pieces(pieces, bucket_seconds, config), bucket_seconds, config)
    return Grounding(
        query=query,
        timeline=timeline,
        moments=config.best(Moment(piece.start, piece.end, piece.score) for piece in pieces),
        saliency=_blend_saliency(windows, timeline),
        video=windows[0][1].video,
    )


def _pieces(number: int, offset: float, grounding: Grounding, timeline: Timeline, tolerance: float) -> list[_Piece]:
    """Return the moments of window ``number`` in seconds of the video, with marks where an inner edge cuts them."""
    left, right = _inner_edges(offset, grounding, timeline)
    pieces = []
    for moment in grounding.moments:
        start = min(max(offset + moment.start, 0.0), timeline.duration)
        end = min(offset + moment.end, timeline.duration)
        if end > start:
            pieces.append(
                _Piece(
                    start=start,
                    end=end,
                    score=moment.score,
                    windows=frozenset([number]),
                    cut_left=start - left <= tolerance,
                    cut_right=right - end <= tolerance,
                )
            )
    return pieces


def _inner_edges(offset: float, grounding: Grounding, timeline: Timeline) -> tuple[float, float]:
    """Return the start and end of a window in seconds of the video, infinite where the video itself ends."""
    end = offset + grounding.timeline.duration
    left = offset if offset > _NEAR else -np.inf
    right = end if end < timeline.duration - _NEAR else np.inf
    return left, right


def _replace_cut_pieces(pieces: list[_Piece], bucket_seconds: float, config: AnswerConfig) -> list[_Piece]:
    """Drop each cut piece that another window sees complete; the complete piece gets the better score of the two."""
    complete = [piece for piece in pieces if piece.complete]
    nearby = _NearbyPieces(bucket_seconds)
    for index, piece in enumerate(complete):
        nearby.add(index, piece)
    kept = []
    for piece in pieces:
        if piece.complete:
            continue
        matches = [
            (piece.overlap(complete[index]), index)
            for index in nearby.near(piece)
            if not piece.windows & complete[index].windows
            and piece.overlap(complete[index]) >= config.merge_iou * (piece.end - piece.start)
            and complete[index].score >= config.merge_ratio * piece.score
        ]
        if matches:
            index = max(matches)[1]
            complete[index] = replace(complete[index], score=max(complete[index].score, piece.score))
        else:
            kept.append(piece)
    return complete + kept


def _join_cut_pieces(pieces: list[_Piece], windows: int, tolerance: float, config: AnswerConfig) -> list[_Piece]:
    """Join pieces that the right edge of a window cuts with pieces that the left edge of the next window cuts.

    Windows are taken from first to last, so a moment can grow through several of them.
    """
    cut_right: defaultdict[int, list[_Piece]] = defaultdict(list)
    cut_left: defaultdict[int, list[_Piece]] = defaultdict(list)
    for piece in pieces:
        if piece.cut_right:
            cut_right[max(piece.windows)].append(piece)
        if piece.cut_left:
            cut_left[min(piece.windows)].append(piece)
    joined: list[_Piece] = []
    used: set[int] = set()
    for number in range(windows - 1):
        before = [piece for piece in cut_right[number] if id(piece) not in used]
        for left, right in _pairs_to_join(before, cut_left[number + 1], tolerance, config):
            used |= {id(left), id(right)}
            piece = _join(left, right)
            joined.append(piece)
            if piece.cut_right:
                cut_right[number + 1].append(piece)
    return [piece for piece in [*pieces, *joined] if id(piece) not in used]


def _pairs_to_join(
    before: Iterable[_Piece], after: Iterable[_Piece], tolerance: float, config: AnswerConfig
) -> list[tuple[_Piece, _Piece]]:
    """Pair pieces on both sides of an edge that continue each other; each piece is in one pair at most.

    The pairs with the highest product of scores come first.
    """
    pairs = [
        (left, right)
        for left in before
        for right in after
        # A piece that starts inside the next window is not the first half of one that this window's edge cuts.
        if left.start <= right.start + tolerance
        and left.end <= right.end + tolerance
        and right.start <= left.end + tolerance
        and min(left.score, right.score) >= config.merge_ratio * max(left.score, right.score)
    ]
    pairs.sort(key=lambda pair: -pair[0].score * pair[1].score)
    chosen: list[tuple[_Piece, _Piece]] = []
    used: set[int] = set()
    for left, right in pairs:
        if not used & {id(left), id(right)}:
            used |= {id(left), id(right)}
            chosen.append((left, right))
    return chosen


def _join(left: _Piece, right: _Piece) -> _Piece:
    """Return the piece that covers both; its score is the mean by length."""
    lengths = (left.end - left.start, right.end - right.start)
    return _Piece(
        start=min(left.start, right.start),
        end=max(left.end, right.end),
        score=float(np.average([left.score, right.score], weights=lengths)),
        windows=left.windows | right.windows,
        cut_left=left.cut_left,
        cut_right=right.cut_right,
    )


def _drop_repeats(pieces: list[_Piece], bucket_seconds: float, config: AnswerConfig) -> list[_Piece]:
    """Keep the best of the pieces by which different windows show the same moment.

    Pieces of one window are not compared: its decoder has already suppressed its repeats.
    """
    kept: list[_Piece] = []
    nearby = _NearbyPieces(bucket_seconds)
    for piece in sorted(pieces, key=lambda piece: -piece.score):
        # If two pieces touch, earliest start to latest end is their union; if not, the IoU is 0 either way.
        ious = (
            other.overlap(piece) / (max(other.end, piece.end) - min(other.start, piece.start))
            for other in map(kept.__getitem__, nearby.near(piece))
            if not other.windows & piece.windows
        )
        if all(iou < config.merge_iou for iou in ious):
            nearby.add(len(kept), piece)
            kept.append(piece)
    return kept


def _blend_saliency(windows: Sequence[tuple[float, Grounding]], timeline: Timeline) -> NDArray[np.float32]:
    """Return the saliency of each clip of the video, (T,).

    It is the mean over windows, weighted by the distance of the clip to the inner edges of the window.
    """
    centers = timeline.clip_centers()
    total, weights = np.zeros(len(centers)), np.zeros(len(centers))
    for offset, grounding in windows:
        left, right = _inner_edges(offset, grounding, timeline)
        extent = grounding.timeline.extent
        first = int(np.searchsorted(centers, offset - _NEAR, side="right"))
        last = int(np.searchsorted(centers, offset + extent + _NEAR, side="left"))
        inside = centers[first:last]
        # Above 0 for clips whose center lies on an edge, and finite for a window without inner edges.
        weight = np.minimum(inside - left, right - inside).clip(_NEAR, extent)
        total[first:last] += weight * np.interp(inside, offset + grounding.timeline.clip_centers(), grounding.saliency)
        weights[first:last] += weight
    if not (weights > 0).all():
        missing = float(centers[weights == 0][0])
        raise ValueError(f"no window covers the video at {missing} s; windows must overlap or touch")
    return (total / weights).astype(np.float32)
