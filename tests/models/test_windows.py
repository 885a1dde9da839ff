"""Merging of the windows of a long video into one answer."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidelight.core.grounding import Grounding, Moment
from sidelight.core.timeline import Timeline
from sidelight.models.decode.sdst import DecodeConfig
from sidelight.models.decode.windows import merge_windows

VIDEO = Timeline(duration=40.0, clip_seconds=2.0)
"""Most tests use windows of 20 s, every 10 s: [0, 20], [10, 30], [20, 40]."""


def window(
    offset: float, *moments: tuple[float, float, float], duration: float = 20.0, saliency: Any = 0.5
) -> tuple[float, Grounding]:
    """Return the window's answer: moments in seconds of the video, cut to the window and counted from its start."""
    timeline = Timeline(duration=duration, clip_seconds=2.0)
    cut = [
        Moment(max(start - offset, 0), min(end - offset, duration), score)
        for start, end, score in moments
        if min(end - offset, duration) > max(start - offset, 0)
    ]
    curve = np.broadcast_to(np.asarray(saliency, dtype=np.float32), timeline.num_clips)
    return offset, Grounding(query="q", timeline=timeline, moments=tuple(cut), saliency=curve)


def merged(windows: list[tuple[float, Grounding]], timeline: Timeline = VIDEO) -> list[tuple[float, ...]]:
    answer = merge_windows(windows, timeline, DecodeConfig())
    return [(moment.start, moment.end, round(moment.score, 6)) for moment in answer.moments]


@pytest.mark.parametrize(
    ("truth", "expected"),
    [
        ([], []),
        ([(3, 7, 0.9)], [(3, 7, 0.9)]),
        ([(12, 18, 0.9)], [(12, 18, 0.9)]),  # complete in two windows
        ([(17, 23, 0.9)], [(17, 23, 0.9)]),  # across an edge, complete in the middle window
        ([(12, 20, 0.9)], [(12, 20, 0.9)]),  # ends on an edge
        ([(20, 24, 0.9)], [(20, 24, 0.9)]),  # starts on an edge
        ([(5, 25, 0.9)], [(5, 25, 0.9)]),  # longer than any window
        ([(5, 35, 0.9)], [(5, 35, 0.9)]),  # fills the middle window
        ([(0, 40, 0.9)], [(0, 40, 0.9)]),  # all of the video
        ([(3, 7, 0.9), (26, 34, 0.8)], [(3, 7, 0.9), (26, 34, 0.8)]),
        ([(5, 25, 0.9), (26, 29, 0.8)], [(5, 25, 0.9), (26, 29, 0.8)]),
    ],
)
def test_windows_leave_no_trace(
    truth: list[tuple[float, float, float]], expected: list[tuple[float, float, float]]
) -> None:
    assert merged([window(offset, *truth) for offset in (20, 0, 10)]) == expected


def test_windows_that_only_touch() -> None:
    truth = ((13.0, 27.0, 0.9), (30.0, 33.0, 0.8))
    assert merged([window(0, *truth), window(20, *truth)]) == [*truth]


def test_a_last_window_that_is_pushed_back() -> None:
    """Use 38 s in windows of 20 s every 12 s: the last window starts at 18 s, so that its last clip is complete."""
    timeline = Timeline(duration=38.0, clip_seconds=2.0)
    truth = ((10.0, 31.0, 0.9), (34.0, 38.0, 0.7))
    assert merged([window(offset, *truth) for offset in (0, 12, 18)], timeline) == [*truth]


def test_a_strong_piece_is_not_joined_with_a_weak_one() -> None:
    windows = [window(0, (15, 20, 0.9)), window(20, (20, 29, 0.05))]
    assert merged(windows) == [(15, 20, 0.9), (20, 29, 0.05)]


def test_a_complete_moment_is_not_joined_with_a_cut_neighbour() -> None:
    # The second window shows the start of this moment, so its left edge cuts another moment.
    windows = [window(0, (16, 20, 0.9), (4, 9, 0.6)), window(10, (10, 13, 0.8), (16, 22, 0.9)), window(20)]
    assert merged(windows) == [(16, 22, 0.9), (10, 13, 0.8), (4, 9, 0.6)]


def test_a_single_window_is_itself() -> None:
    answer = merge_windows(
        [window(0, (0, 5, 0.9), (30, 40, 0.4), duration=40.0, saliency=np.arange(20))], VIDEO, DecodeConfig()
    )
    assert [(moment.start, moment.end) for moment in answer.moments] == [(0, 5), (30, 40)]
    np.testing.assert_array_equal(answer.saliency, np.arange(20))
    assert answer.timeline == VIDEO


def test_a_constant_curve_stays_constant() -> None:
    for offsets in ((0, 10, 20), (0, 20), (0, 7.3, 20), (0, 3, 20)):
        answer = merge_windows([window(offset, saliency=0.7) for offset in offsets], VIDEO, DecodeConfig())
        np.testing.assert_array_equal(answer.saliency, np.float32(0.7))


def test_a_curve_has_no_jump_at_an_edge() -> None:
    """Blend windows that differ by 1: the curve changes in small steps over their overlap."""
    windows = [window(0, saliency=0.0), window(10, saliency=1.0), window(20, saliency=0.0)]
    curve = merge_windows(windows, VIDEO, DecodeConfig()).saliency
    assert curve[0] == 0
    assert curve[-1] == 0
    assert np.abs(np.diff(curve)).max() <= 0.21
    assert curve[9:11].min() > 0.8


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ([], "at least one window"),
        ([window(0)], "no window covers the video at 21.0 s"),
        ([window(0), window(30)], "does not lie within"),
        ([window(0), (20.0, replace(window(0)[1], query="other"))], "one query, got 'q' and 'other'"),
    ],
)
def test_wrong_windows_are_named(windows: list[tuple[float, Grounding]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge_windows(windows, VIDEO, DecodeConfig())


@settings(max_examples=60, deadline=None)
@given(
    truth=st.lists(
        st.tuples(st.floats(0, 100), st.floats(0, 100), st.floats(0, 1)).map(lambda x: (min(x[:2]), max(x[:2]), x[2])),
        max_size=6,
    ),
    stride=st.sampled_from([10.0, 14.0, 20.0]),
)
def test_merging_stays_within_the_duration(truth: list[tuple[float, float, float]], stride: float) -> None:
    timeline = Timeline(duration=101.0, clip_seconds=2.0)
    offsets = [*np.arange(0, 81, stride), 81.0]
    answer = merge_windows([window(float(offset), *truth) for offset in offsets], timeline, DecodeConfig())
    for moment in answer.moments:
        assert 0 <= moment.start < moment.end <= 101.0
    assert len(answer.saliency) == timeline.num_clips


@dataclass(eq=False)
class Piece:
    """A moment of the plain reference, in seconds of the video."""

    start: float
    end: float
    score: float
    windows: set[int]
    cut_left: bool
    cut_right: bool

    @property
    def cut(self) -> bool:
        return self.cut_left or self.cut_right

    @property
    def length(self) -> float:
        return self.end - self.start


def overlap(a: Piece, b: Piece) -> float:
    return max(0.0, min(a.end, b.end) - max(a.start, b.start))


def all_pieces(windows: list[tuple[float, Grounding]], duration: float, tolerance: float) -> list[Piece]:
    pieces = []
    for number, (offset, grounding) in enumerate(windows):
        end = offset + grounding.timeline.duration
        for moment in grounding.moments:
            piece = Piece(
                offset + moment.start, min(offset + moment.end, duration), moment.score, {number}, False, False
            )
            piece.cut_left = offset > 0 and piece.start - offset <= tolerance
            piece.cut_right = end < duration - 1e-6 and end - piece.end <= tolerance
            pieces.append(piece)
    return pieces


def replaced(pieces: list[Piece], config: DecodeConfig) -> list[Piece]:
    """Compare each cut piece with each complete piece."""
    complete, cut = [p for p in pieces if not p.cut], [p for p in pieces if p.cut]
    kept = []
    for piece in cut:
        best, most = None, -1.0
        for other in complete:
            covers = overlap(piece, other) >= config.merge_iou * piece.length
            strong = other.score >= config.merge_ratio * piece.score
            if covers and strong and not piece.windows & other.windows and overlap(piece, other) >= most:
                best, most = other, overlap(piece, other)
        if best is None:
            kept.append(piece)
        else:
            best.score = max(best.score, piece.score)
    return complete + kept


def joined(pieces: list[Piece], number: int, tolerance: float, config: DecodeConfig) -> list[Piece]:
    """Compare each piece that the right edge of a window cuts with each piece that the next window's left edge cuts."""
    pairs = [
        (left, right)
        for left, right in itertools.product(pieces, pieces)
        if left.cut_right
        and right.cut_left
        and max(left.windows) == number
        and min(right.windows) == number + 1
        and left.start <= right.start + tolerance
        and left.end <= right.end + tolerance
        and right.start <= left.end + tolerance
        and min(left.score, right.score) >= config.merge_ratio * max(left.score, right.score)
    ]
    for left, right in sorted(pairs, key=lambda pair: -pair[0].score * pair[1].score):
        if left in pieces and right in pieces:
            pieces = [piece for piece in pieces if piece not in (left, right)]
            score = float(np.average([left.score, right.score], weights=[left.length, right.length]))
            start, end = min(left.start, right.start), max(left.end, right.end)
            pieces.append(Piece(start, end, score, left.windows | right.windows, left.cut_left, right.cut_right))
    return pieces


def unrepeated(pieces: list[Piece], config: DecodeConfig) -> list[Piece]:
    """Compare each piece with all better pieces."""
    kept: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: -piece.score):
        repeats = [
            other
            for other in kept
            if not other.windows & piece.windows
            and overlap(other, piece) / (max(other.end, piece.end) - min(other.start, piece.start)) >= config.merge_iou
        ]
        if not repeats:
            kept.append(piece)
    return kept


def moments_by_reference(
    windows: list[tuple[float, Grounding]], timeline: Timeline, config: DecodeConfig
) -> list[tuple[float, float, float]]:
    """Merge windows plainly and slowly: every piece is compared with every other."""
    tolerance = config.merge_tolerance * timeline.clip_seconds
    pieces = replaced(all_pieces(windows, timeline.duration, tolerance), config)
    for number in range(len(windows) - 1):
        pieces = joined(pieces, number, tolerance, config)
    pieces = unrepeated(replaced(pieces, config), config)
    return [(piece.start, piece.end, piece.score) for piece in sorted(pieces, key=lambda piece: -piece.score)]


HALF_SECONDS = st.integers(0, 180).map(lambda half: half / 2)
"""Many equal times and scores: ties must be decided as in the reference."""


@settings(max_examples=100, deadline=None)
@given(
    seen=st.lists(
        st.lists(st.tuples(HALF_SECONDS, HALF_SECONDS, st.sampled_from([0.1, 0.3, 0.5, 0.9])), max_size=8),
        min_size=8,
        max_size=8,
    ),
    iou=st.sampled_from([0.01, 0.2, 0.5, 1.0]),
    ratio=st.sampled_from([0.0, 0.3, 1.0]),
    tolerance=st.sampled_from([0.0, 1.0, 2.5]),
)
def test_merging_agrees_with_a_comparison_of_all_pieces(
    seen: list[list[tuple[float, float, float]]], iou: float, ratio: float, tolerance: float
) -> None:
    timeline = Timeline(duration=90.0, clip_seconds=2.0)
    windows = [
        window(10.0 * number, *((min(a, b), max(a, b), score) for a, b, score in moments))
        for number, moments in enumerate(seen)
    ]
    config = DecodeConfig(merge_iou=iou, merge_ratio=ratio, merge_tolerance=tolerance)
    answer = merge_windows(windows, timeline, config)
    expected = moments_by_reference(windows, timeline, config)
    assert [(moment.start, moment.end, moment.score) for moment in answer.moments] == expected
