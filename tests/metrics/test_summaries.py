"""Check the segments and the summaries of videos."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from sidelight.core.grounding import Grounding
from sidelight.core.summary import Summary
from sidelight.core.timeline import Timeline
from sidelight.metrics.summaries import fitting_segments, scaled, segments_of, summary_of
from sidelight.metrics.summarization import f_score, summarize


@pytest.mark.parametrize("clips_at_once", [1000, 60, 30])
def test_segments_of_a_long_video_do_not_depend_on_its_parts(clips_at_once: int) -> None:
    rng = np.random.default_rng(3)
    lengths = [12, 20, 8, 25, 15, 20]
    features_TD = np.repeat(rng.normal(size=(6, 32)), lengths, axis=0) + rng.normal(scale=0.05, size=(100, 32))
    segments = segments_of(features_TD, clip_seconds=2.0, clips_at_once=clips_at_once)
    assert segments[:, 1].tolist() == np.cumsum(lengths).tolist()


def test_segments_are_five_seconds_long_on_average() -> None:
    noise_TD = np.random.default_rng(0).normal(size=(60, 16))
    assert len(segments_of(noise_TD, clip_seconds=1.0)) <= 12
    assert segments_of(np.zeros((0, 4)), clip_seconds=1.0).shape == (0, 2)
    assert segments_of(np.ones((70, 4)), clip_seconds=1.0, clips_at_once=20)[0, 0] == 0


@pytest.mark.parametrize(
    ("segments", "most", "expected"),
    [
        ([], 3, []),
        ([[0, 3]], 3, [[0, 3]]),
        ([[0, 7], [7, 8]], 3, [[0, 2], [2, 5], [5, 7], [7, 8]]),
        ([[0, 4]], 1, [[0, 1], [1, 2], [2, 3], [3, 4]]),
    ],
)
def test_long_segments_are_cut_into_equal_parts(
    segments: list[list[int]], most: int, expected: list[list[int]]
) -> None:
    assert fitting_segments(segments, most).tolist() == expected


def test_no_segment_fits_into_nothing() -> None:
    with pytest.raises(ValueError, match="most_clips must be 1 or more, got 0"):
        fitting_segments([[0, 2]], 0)


@pytest.mark.parametrize(
    ("curve", "expected"), [([], []), ([2.0, 2.0], [1.0, 1.0]), ([-3.0, 1.0, -1.0], [0.0, 1.0, 0.5])]
)
def test_curves_are_scaled(curve: list[float], expected: list[float]) -> None:
    assert scaled(curve).tolist() == expected


def test_the_sum_values_long_segments() -> None:
    saliency, segments = [0.6, 0.1, 0.5, 0.5, 0.5], [[0, 1], [1, 2], [2, 5]]
    picks = {value: summarize(saliency, segments, 0.6, value=value) for value in ("mean", "sum")}
    assert picks["mean"].tolist() == [True, True, False, False, False]
    assert picks["sum"].tolist() == [False, False, True, True, True]
    with pytest.raises(ValueError, match="value must be 'mean' or 'sum', got 'max'"):
        summarize(saliency, segments, value="max")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({}, 3),
        ({"share": 0.5}, 10),
        ({"seconds": 1.0}, 1),
        ({"seconds": 8.5}, 4),
        ({"share": 1.0}, 21),
        ({"seconds": 1e6}, 21),
    ],
)
def test_a_summary_fits_and_is_a_grounding(options: dict[str, Any], most: int) -> None:
    rng = np.random.default_rng(1)
    timeline = Timeline(duration=40.4, clip_seconds=2.0)  # the last of 21 clips is cut short
    curve_T = rng.normal(size=21).astype(np.float32)
    grounding = Grounding(query="a dog", timeline=timeline, moments=(), saliency=curve_T, video="v.mp4", model="m")
    summary = summary_of(grounding, np.repeat(rng.normal(size=(7, 8)), 3, axis=0), **options)
    assert 1 <= summary.picked_clips.sum() <= most and summary.seconds <= 2.0 * most
    assert all(0 <= moment.score <= 1 for moment in summary) and summary.query == "a dog"
    spans = sorted((moment.start, moment.end) for moment in summary)
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(spans))  # those that touch are one
    again = Grounding.from_dict(summary.to_dict())
    assert again.moments == summary.moments and summary.to_dict()["segments"][-1][1] == 40.4
    assert f_score(summary.picked_clips, summary.picked_clips[None]).f == 1.0


def test_segments_of_a_summary_cover_the_video() -> None:
    timeline = Timeline(duration=4, clip_seconds=2)
    values: dict[str, Any] = {"query": "x", "timeline": timeline, "moments": (), "saliency": np.zeros(2)}
    assert Summary(**values, segments=np.array([[0, 2]])).segments.shape == (1, 2)
    whole = Summary(**values, segments=np.array([[0, 1], [1, 2]]))
    assert Summary.from_dict(whole.to_dict()) == whole and whole.without_faint() is whole
    for wrong in ([[0.0]], "x", [[0.0, 1e9, 2.0]], [[2.0, 3.0]]):
        with pytest.raises(ValueError, match="segments"):
            Summary.from_dict({**whole.to_dict(), "segments": wrong})
    for segments in ([[0, 1]], [[1, 2]], [], [[0, 1], [0, 2]]):
        with pytest.raises(ValueError, match="must cover 2 clips without gaps"):
            Summary(**values, segments=np.array(segments))
