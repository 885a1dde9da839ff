"""Predictions to groundings, and windows of a long video to one answer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidelight.core.batch import Predictions
from sidelight.core.grounding import Grounding, Moment
from sidelight.core.timeline import Timeline
from sidelight.models.decode.sdst import DecodeConfig, decode, merge_windows

PLAIN = DecodeConfig(nms="none")
TEN = Timeline(duration=20.0, clip_seconds=2.0)


def predictions(
    spans: list[list[tuple[float, float]]],
    logits: list[list[float]] | None = None,
    actionness: list[list[float]] | None = None,
    clips: tuple[int, ...] = (10,),
) -> Predictions:
    """Raw (center, width) per sample. Of the two levels the first is nonsense; decoding must not read it."""
    size, queries, most = len(spans), len(spans[0]), max(clips)
    last = torch.tensor(spans).view(size, queries, 2)
    scores = torch.zeros(size, queries) if logits is None else torch.tensor(logits)
    return Predictions(
        logits_KBM=torch.stack([torch.full_like(scores, 99.0), scores]),
        spans_KBM2=torch.stack([torch.full_like(last, 0.123), last]),
        actionness_BM=torch.ones(size, queries) if actionness is None else torch.tensor(actionness),
        saliency_BT=torch.arange(most).float().expand(size, -1) / most,
        video_KBTF=torch.zeros(2, size, most, 4),
        text_KBF=torch.zeros(2, size, 4),
        video_mask_BT=torch.arange(most) < torch.tensor(clips).unsqueeze(1),
        saliency_video_BTF=torch.zeros(size, most, 4),
        saliency_text_BF=torch.zeros(size, 4),
    )


def one(config: DecodeConfig, timeline: Timeline = TEN, **changes: Any) -> list[tuple[float, float, float]]:
    (grounding,) = decode(predictions(clips=(timeline.num_clips,), **changes), [timeline], ["a query"], config)
    return [(moment.start, moment.end, moment.score) for moment in grounding.moments]


def test_moments_are_seconds_by_falling_score() -> None:
    got = one(PLAIN, spans=[[(0.5, 0.2), (0.2, 0.2)]], logits=[[0.0, 2.0]], actionness=[[0.5, 0.25]])
    p = 1 / (1 + math.exp(-2))
    assert [value for moment in got for value in moment] == pytest.approx(
        [8, 12, 0.5, 2, 6, math.sqrt(p * 0.25)], abs=1e-5
    )


@pytest.mark.parametrize(
    ("score", "expected"),
    [("sqrt", math.sqrt(0.5 * 0.36)), ("product", 0.18), ("class", 0.5), ("actionness", 0.36)],
)
def test_scores(score: Any, expected: float) -> None:
    got = one(DecodeConfig(score=score), spans=[[(0.5, 0.2)]], actionness=[[0.36]])
    assert got[0][2] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ((0.5, 0.0), []),  # no length
        ((1.2, 0.2), []),  # outside
        ((0.0, 0.4), [0, 4]),
        ((0.95, 0.5), [14, 19]),
        ((0.5, 3.0), [0, 19]),
    ],
)
def test_moments_are_cut_to_the_duration(span: tuple[float, float], expected: list[float]) -> None:
    """The last of ten clips has one real second only: the extent is 20 s, the video 19 s."""
    got = one(PLAIN, Timeline(duration=19.0, clip_seconds=2.0), spans=[[span]])
    assert [value for moment in got for value in moment[:2]] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("span", "unit", "expected"),
    [
        ((0.26, 0.12), 2.0, [4, 6]),
        ((0.26, 0.12), 0.1, [4.0, 6.4]),
        ((0.5, 0.02), 2.0, [10, 12]),  # would vanish: the unit that its middle lies in
        ((0.94, 0.01), 2.0, [18, 19]),
        ((0.93, 0.14), 2.0, [18, 19]),  # the end stays within the duration
        ((0.5, 0.0), 2.0, []),
    ],
)
def test_rounding(span: tuple[float, float], unit: float, expected: list[float]) -> None:
    timeline = Timeline(duration=19.0, clip_seconds=2.0)
    got = one(DecodeConfig(nms="none", round_to=unit), timeline, spans=[[span]])
    assert [value for moment in got for value in moment[:2]] == pytest.approx(expected, abs=1e-9)


def test_suppression() -> None:
    changes: dict[str, Any] = {
        "spans": [[(0.5, 0.4), (0.5, 0.3), (0.1, 0.1)]],
        "logits": [[2.0, 1.0, 0.0]],
    }
    scores = {
        kind: [round(moment[2], 3) for moment in one(DecodeConfig(nms=kind), **changes)]
        for kind in ("none", "hard", "soft-linear", "soft-gaussian")
    }
    best, second, third = (math.sqrt(1 / (1 + math.exp(-x))) for x in (2, 1, 0))
    assert scores["none"] == [round(x, 3) for x in (best, second, third)]
    assert scores["hard"] == [round(x, 3) for x in (best, third)]
    assert scores["soft-linear"] == [round(x, 3) for x in (best, third, second * 0.25)]
    gaussian = second * math.exp(-(0.75**2) / 0.5)
    assert scores["soft-gaussian"] == [round(x, 3) for x in (best, third, gaussian)]
    assert len(one(DecodeConfig(max_moments=2), **changes)) == 2
    assert len(one(DecodeConfig(min_score=0.5), **changes)) == 2


def test_each_sample_has_its_own_clips_query_and_video() -> None:
    timelines = [TEN, Timeline(duration=5.0, clip_seconds=2.0)]
    raw = predictions([[(0.5, 0.5)], [(0.5, 0.5)]], clips=(10, 3))
    first, second = decode(raw, timelines, ["one", "two"], PLAIN, videos=["a.mp4", None])
    assert (first.query, first.video, second.query, second.video) == ("one", "a.mp4", "two", None)
    np.testing.assert_allclose(first.saliency, np.arange(10) / 10)
    np.testing.assert_allclose(second.saliency, np.arange(3) / 10)
    assert (second.moments[0].start, second.moments[0].end) == (1.5, 4.5)


@pytest.mark.parametrize(
    ("timelines", "queries", "message"),
    [
        ([], [], "decode needs 1 timelines"),
        ([TEN], ["a", "b"], "decode needs 1 queries, .* got 2"),
        ([Timeline(duration=18.0, clip_seconds=2.0)], ["a"], "has 10 clips, but its timeline has 9"),
    ],
)
def test_mismatches_are_named(timelines: list[Timeline], queries: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(predictions([[(0.5, 0.5)]]), timelines, queries, PLAIN)


def test_a_diverged_model_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        decode(predictions([[(float("nan"), 0.5)]]), [TEN], ["a"], PLAIN)


unit = st.floats(0, 1, width=32)
samples = st.lists(st.tuples(unit, unit, st.floats(-20, 20, width=32), unit), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    rows=samples,
    duration=st.floats(0.1, 500),
    clip_seconds=st.sampled_from([0.5, 1.0, 2.0, 2.135]),
    nms=st.sampled_from(["soft-linear", "soft-gaussian", "hard", "none"]),
    round_to=st.sampled_from([None, 0.1, 1.0, 2.0]),
)
def test_decoding_stays_within_the_duration(
    rows: list[tuple[float, float, float, float]],
    duration: float,
    clip_seconds: float,
    nms: Any,
    round_to: float | None,
) -> None:
    timeline = Timeline(duration=duration, clip_seconds=clip_seconds)
    raw = predictions(
        [[(center, width) for center, width, _, _ in rows]],
        [[logit for _, _, logit, _ in rows]],
        [[actionness for *_, actionness in rows]],
        clips=(timeline.num_clips,),
    )
    (grounding,) = decode(raw, [timeline], ["q"], DecodeConfig(nms=nms, round_to=round_to))
    scores = [moment.score for moment in grounding.moments]
    assert scores == sorted(scores, reverse=True)
    for moment in grounding.moments:
        assert 0 <= moment.start < moment.end <= duration
        assert 0 <= moment.score <= 1
    assert len(grounding.saliency) == timeline.num_clips


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nms": "soft"}, "nms must be one of"),
        ({"nms_threshold": 1.5}, r"in \[0, 1\]"),
        ({"sigma": 0.0}, "above 0"),
        ({"max_moments": 0}, "at least 1, or none"),
        ({"round_to": 0.0}, "above 0, or none"),
        ({"merge_tolerance": -1.0}, "at least 0"),
        ({"min_score": "a"}, "a number"),
    ],
)
def test_configuration_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodeConfig(**changes)


# Windows of 20 s, every 10 s, over 40 s: [0, 20], [10, 30], [20, 40].
WHOLE = Timeline(duration=40.0, clip_seconds=2.0)


def window(
    offset: float, *moments: tuple[float, float, float], duration: float = 20.0, saliency: Any = 0.5
) -> tuple[float, Grounding]:
    """Moments in seconds of the whole video, as the window sees them: cut to it, counted from its start."""
    timeline = Timeline(duration=duration, clip_seconds=2.0)
    seen = [
        Moment(max(start - offset, 0), min(end - offset, duration), score)
        for start, end, score in moments
        if min(end - offset, duration) > max(start - offset, 0)
    ]
    curve = np.broadcast_to(np.asarray(saliency, dtype=np.float32), timeline.num_clips)
    return offset, Grounding(query="q", timeline=timeline, moments=tuple(seen), saliency=curve)


def merged(windows: list[tuple[float, Grounding]], timeline: Timeline = WHOLE) -> list[tuple[float, ...]]:
    answer = merge_windows(windows, timeline, DecodeConfig())
    return [(moment.start, moment.end, round(moment.score, 6)) for moment in answer.moments]


@pytest.mark.parametrize(
    ("truth", "expected"),
    [
        ([], []),
        ([(3, 7, 0.9)], [(3, 7, 0.9)]),
        ([(12, 18, 0.9)], [(12, 18, 0.9)]),  # seen whole by two windows
        ([(17, 23, 0.9)], [(17, 23, 0.9)]),  # across an edge, whole in the middle window
        ([(12, 20, 0.9)], [(12, 20, 0.9)]),  # ends on an edge
        ([(20, 24, 0.9)], [(20, 24, 0.9)]),  # starts on an edge
        ([(5, 25, 0.9)], [(5, 25, 0.9)]),  # longer than any window shows
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
    """38 s in windows of 20 s every 12 s: the last starts at 18 s, and its last clip is whole."""
    timeline = Timeline(duration=38.0, clip_seconds=2.0)
    truth = ((10.0, 31.0, 0.9), (34.0, 38.0, 0.7))
    assert merged([window(offset, *truth) for offset in (0, 12, 18)], timeline) == [*truth]


def test_a_strong_piece_is_not_joined_with_a_weak_one() -> None:
    windows = [window(0, (15, 20, 0.9)), window(20, (20, 29, 0.05))]
    assert merged(windows) == [(15, 20, 0.9), (20, 29, 0.05)]


def test_a_whole_moment_is_not_joined_with_a_cut_neighbour() -> None:
    """The second window sees where this moment starts, so what its left edge cuts is another one."""
    windows = [window(0, (16, 20, 0.9), (4, 9, 0.6)), window(10, (10, 13, 0.8), (16, 22, 0.9)), window(20)]
    assert merged(windows) == [(16, 22, 0.9), (10, 13, 0.8), (4, 9, 0.6)]


def test_a_single_window_is_itself() -> None:
    answer = merge_windows(
        [window(0, (0, 5, 0.9), (30, 40, 0.4), duration=40.0, saliency=np.arange(20))], WHOLE, DecodeConfig()
    )
    assert [(moment.start, moment.end) for moment in answer.moments] == [(0, 5), (30, 40)]
    np.testing.assert_array_equal(answer.saliency, np.arange(20))
    assert answer.timeline == WHOLE


def test_a_constant_curve_stays_constant() -> None:
    for offsets in ((0, 10, 20), (0, 20), (0, 7.3, 20), (0, 3, 20)):
        answer = merge_windows([window(offset, saliency=0.7) for offset in offsets], WHOLE, DecodeConfig())
        np.testing.assert_array_equal(answer.saliency, np.float32(0.7))


def test_a_curve_has_no_jump_at_an_edge() -> None:
    """Windows that disagree by 1 are blended step by step, over the whole of their overlap."""
    windows = [window(0, saliency=0.0), window(10, saliency=1.0), window(20, saliency=0.0)]
    curve = merge_windows(windows, WHOLE, DecodeConfig()).saliency
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
        merge_windows(windows, WHOLE, DecodeConfig())


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
