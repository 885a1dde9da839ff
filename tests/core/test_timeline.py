"""Check the map between clips and seconds."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidelight.core.timeline import Timeline, longest_input

timelines = st.builds(
    Timeline,
    duration=st.floats(0.01, 400, allow_nan=False),
    clip_seconds=st.sampled_from([0.5, 1.0, 2.0, 64 / 30, 10.0]),
)
quick = settings(max_examples=50, deadline=None)


@pytest.mark.parametrize(
    ("duration", "clip_seconds", "clips"),
    [
        (1e-9, 2, 1),  # the shortest video has one clip
        (0.5, 2, 1),
        (2, 2, 1),
        (2.1, 2, 2),
        (150, 2, 75),
        (150.0000001, 2, 75),  # a rounding error is no clip
        (149.9999999, 2, 75),
        (150.1, 2, 76),
        (0.3, 0.1, 3),
        (3600, 64 / 30, 1688),
    ],
)
def test_number_of_clips_and_extent(duration: float, clip_seconds: float, clips: int) -> None:
    timeline = Timeline(duration=duration, clip_seconds=clip_seconds)
    assert timeline.num_clips == clips
    assert timeline.extent == clips * clip_seconds


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "duration is missing"),
        ([], "duration is missing"),
        (None, "duration is missing"),
        ({"duration": 1.0}, "clip_seconds is missing"),
        ({"duration": 0, "clip_seconds": 2}, "Timeline.duration must be a number of seconds above 0, got 0"),
        ({"duration": -1.0, "clip_seconds": 2}, "duration .* got -1.0"),
        ({"duration": float("nan"), "clip_seconds": 2}, "duration .* got nan"),
        ({"duration": float("inf"), "clip_seconds": 2}, "duration .* got inf"),
        ({"duration": 10**400, "clip_seconds": 2}, "duration .* got 1000"),
        ({"duration": "150", "clip_seconds": 2}, "duration .* got '150'"),
        ({"duration": 150, "clip_seconds": True}, "clip_seconds .* got True"),
        ({"duration": 150, "clip_seconds": None}, "clip_seconds .* got None"),
        ({"duration": 1e300, "clip_seconds": 1e-300}, "clip_seconds is too small for 1e\\+300 s"),
    ],
)
def test_wrong_values_are_named(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Timeline.from_dict(values)


def test_the_first_clips_alone() -> None:
    timeline = Timeline(duration=9, clip_seconds=2)
    assert timeline.first(3) == Timeline(duration=6, clip_seconds=2) and timeline.first(3).num_clips == 3
    assert timeline.first(5) is timeline and timeline.first(9) is timeline


def test_spans_of_clips_and_seconds_of_frames() -> None:
    timeline = Timeline(duration=5, clip_seconds=2)
    assert timeline.clip_spans().tolist() == [[0, 2], [2, 4], [4, 5]]
    assert timeline.frame_seconds(2).tolist()[:2] == [[0.5, 1.5], [2.5, 3.5]]
    last = timeline.frame_seconds(2)[2]
    assert last[0] == 4.5
    assert 4.999 < last[1] < 5  # 5.5 would lie after the video
    with pytest.raises(ValueError, match="frames_per_clip must be 1 or more, got 0"):
        timeline.frame_seconds(0)
    with pytest.raises(ValueError, match="frames_per_clip must be 1 or more"):
        timeline.frame_times(0)


@pytest.mark.parametrize(
    ("start", "end", "clips"),
    [
        (0, 0, [0]),  # an empty span gets the clip it lies in
        (3, 3, [1]),
        (10, 10, [4]),
        (0, 10, [0, 1, 2, 3, 4]),
        (2, 6, [1, 2]),
        (1, 6, [0, 1, 2]),  # half a clip is enough
        (1.1, 6, [1, 2]),
        (2, 5, [1, 2]),
        (2, 4.9, [1]),
        (2.2, 2.4, [1]),  # less than half of any clip: the clip covered most
        (3.5, 4.1, [1]),
        (3.8, 4.4, [2]),
        (1.2, 2.7, [0]),
        (9.5, 10, [4]),
    ],
)
def test_clips_in_a_span(start: float, end: float, clips: list[int]) -> None:
    assert list(Timeline(duration=10, clip_seconds=2).clips_in(start, end)) == clips


@pytest.mark.parametrize(("start", "end"), [(5, 4), (-1, 4), (0, 10.1), (float("nan"), 4)])
def test_no_clips_in_a_span_outside(start: float, end: float) -> None:
    with pytest.raises(ValueError, match=r"a span must lie within \[0, 10\] s in order"):
        Timeline(duration=10, clip_seconds=2).clips_in(start, end)


@quick
@given(timelines, st.floats(0, 1), st.floats(0, 1))
def test_clips_in_agree_with_a_check_of_each_clip(timeline: Timeline, a: float, b: float) -> None:
    start, end = sorted((a * timeline.duration, b * timeline.duration))
    unit = timeline.clip_seconds
    shared = [max(0.0, min(end, (i + 1) * unit) - max(start, i * unit)) / unit for i in range(timeline.num_clips)]
    clips = timeline.clips_in(start, end)
    assert 0 <= clips.start < clips.stop <= timeline.num_clips
    if max(shared) >= 0.5 + 1e-5:
        assert all(shared[i] >= 0.5 - 1e-5 for i in clips)
        assert all(i in clips for i, part in enumerate(shared) if part >= 0.5 + 1e-5)
    elif max(shared) < 0.5 - 1e-5:
        assert len(clips) == 1
        assert shared[clips[0]] == pytest.approx(max(shared), abs=1e-5)


@quick
@given(timelines, st.integers(1, 8))
def test_everything_lies_inside_the_video(timeline: Timeline, per_clip: int) -> None:
    spans = timeline.clip_spans()
    assert spans.shape == (timeline.num_clips, 2)
    assert (spans[:, 1] > spans[:, 0]).all()
    assert (spans[1:, 0] == spans[:-1, 1]).all()
    assert spans[-1, 1] == pytest.approx(timeline.duration, rel=1e-4)
    seconds = timeline.frame_seconds(per_clip)
    times = timeline.frame_times(per_clip)
    assert list(times) == times[:] == seconds.reshape(-1).tolist() and times[-1] == seconds[-1, -1]
    assert seconds.shape == (timeline.num_clips, per_clip)
    assert (np.diff(seconds.reshape(-1)) >= 0).all()
    assert seconds.min() >= 0
    assert seconds.max() < timeline.duration
    assert timeline.clips_in(0, timeline.duration).start == 0


@quick
@given(timelines, st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=4))
def test_units_and_seconds_are_inverse(timeline: Timeline, parts: list[tuple[float, float]]) -> None:
    seconds = np.sort(np.array(parts, dtype=np.float64).reshape(-1, 2), axis=1) * timeline.duration
    unit = timeline.to_unit(seconds)
    assert unit.shape == seconds.shape
    assert ((unit >= 0) & (unit <= 1 + 1e-6)).all()
    np.testing.assert_allclose(timeline.to_seconds(unit), seconds, rtol=1e-12, atol=1e-12)
    assert timeline.to_seconds([[-3.0, 5.0]]).tolist() == [[0.0, timeline.duration]]


@quick
@given(timelines)
def test_round_trip_of_the_dict(timeline: Timeline) -> None:
    assert Timeline.from_dict(timeline.to_dict()) == timeline


@quick
@given(st.integers(1, 60), st.integers(2, 20), st.floats(0.05, 1))
def test_windows_cover_the_video_and_overlap(clips: int, size: int, last: float) -> None:
    timeline = Timeline(duration=(clips - 1 + last) * 2.0, clip_seconds=2)
    windows = timeline.windows(size)
    covered = [set(range(first, first + window.num_clips)) for first, window in windows]
    assert set().union(*covered) == set(range(timeline.num_clips))
    assert {len(c) for c in covered} == {clips if clips <= longest_input(size) else size}
    assert all(a & b for a, b in itertools.pairwise(covered))
    first, window = windows[-1]
    assert first * 2.0 + window.duration == pytest.approx(timeline.duration)


@pytest.mark.parametrize(("clips", "count"), [(75, 1), (76, 1), (78, 1), (79, 2), (113, 3)])
def test_windows_start_where_a_video_is_clearly_longer(clips: int, count: int) -> None:
    assert len(Timeline(duration=clips * 2.0, clip_seconds=2).windows(75)) == count
    assert len(Timeline(duration=150.317, clip_seconds=2).windows(75)) == 1


@pytest.mark.parametrize(
    ("duration", "clip_seconds", "clips"),
    [
        (0.3, 2, 1),
        (30.697, 2, 15),
        (150.317, 2, 75),
        (151, 2, 76),
        (150.999, 2, 75),
        (150, 2, 75),
        (30.3, 1, 30),
        (30.5, 1, 31),
    ],
)
def test_rounded_clips(duration: float, clip_seconds: float, clips: int) -> None:
    rounded = Timeline(duration=duration, clip_seconds=clip_seconds).rounded()
    assert (rounded.num_clips, rounded.duration) == (clips, duration)
    assert rounded.rounded() == rounded == Timeline.from_dict(rounded.to_dict())
    assert rounded.clip_spans()[-1, 1] == min(rounded.extent, duration)


def test_fewer_clips_than_the_duration() -> None:
    short = Timeline(duration=19.5, clip_seconds=2, clips=8)
    assert (short.num_clips, short.extent) == (8, 16)
    assert short.to_seconds([0.5, 1.2]).tolist() == [8, pytest.approx(19.2)]
    assert list(short.clips_in(15, 19)) == [7] and list(short.clips_in(17, 19)) == [7]
    first, last = short.windows(5)[0][1], short.windows(5)[-1]
    assert (first.num_clips, last[0], last[1].num_clips, last[1].duration) == (5, 3, 5, 13.5)
    assert Timeline(duration=19.5, clip_seconds=2, clips=10) == Timeline(duration=19.5, clip_seconds=2)
    for clips in (0, 1.5, "3"):
        with pytest.raises(ValueError, match="clips must be a whole number above 0"):
            Timeline(duration=19.5, clip_seconds=2, clips=clips)  # type: ignore[arg-type]


def test_windows_need_two_clips() -> None:
    timeline = Timeline(duration=4, clip_seconds=2)
    assert timeline.windows(2) == [(0, timeline)]
    with pytest.raises(ValueError, match="a window needs 2 clips or more, got 1"):
        timeline.windows(1)


@pytest.mark.parametrize(
    ("duration", "clip_seconds", "values", "value_seconds", "expected"),
    [
        (4, 2, [], 1, [0, 0]),
        (4, 2, [1, 3, 5, 5], 1, [2, 5]),
        (4, 1, [1, 3], 2, [1, 1, 3, 3]),
        (3, 2, [1, 3, 5], 1, [2, 5]),
        (6, 2, [1, 3], 1, [2, 0, 0]),
        (4, 2, [1, 3, 5, 5, 9, 9], 1, [2, 5]),
        (3, 1.5, [3, 6, 9], 1, [4, 8]),
        (5, 50 / 30, [0.1] * 5, 1, [0.1, 0.1, 0.1]),
    ],
)
def test_resample(
    duration: float, clip_seconds: float, values: list[float], value_seconds: float, expected: list[float]
) -> None:
    resampled = Timeline(duration=duration, clip_seconds=clip_seconds).resample(values, value_seconds)
    assert resampled.tolist() == pytest.approx(expected)
