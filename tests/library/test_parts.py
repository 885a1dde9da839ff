"""The parts of a long video that are near to a query are read, and no others."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidelight import Grounder, Grounding
from sidelight.core.grounding import Moment
from sidelight.core.timeline import Timeline
from sidelight.features.store import VideoFeatures
from sidelight.library.parts import ground_parts, near_parts


def cosines(clips: int, *near: int) -> np.ndarray:
    """Return cosines that are highest at the named clips, the first one highest."""
    cosine_T = np.zeros(clips, np.float32)
    cosine_T[list(near)] = 1 - np.arange(len(near)) / 100
    return cosine_T


@pytest.mark.parametrize(
    ("clips", "near", "parts"),
    [
        (1, [0], [(0, 1)]),
        (20, [5], [(0, 20)]),  # as many as the windows hold: all
        (21, [5, 15], [(0, 20)]),
        (41, [20, 35], [(15, 25), (30, 40)]),
        (41, [0, 40], [(0, 10), (31, 41)]),  # the edges of the video
        (41, [20, 21, 33], [(15, 25), (28, 38)]),  # a window has the second clip already
        (41, [20, 24], [(15, 29)]),  # it lies at the edge of the first window, so they are joined
    ],
)
def test_windows_lie_around_the_nearest_clips(clips: int, near: list[int], parts: list[tuple[int, int]]) -> None:
    assert [(part.start, part.stop) for part in near_parts(cosines(clips, *near), 10, 2)] == parts


@given(st.integers(1, 400), st.integers(4, 40), st.integers(1, 5), st.integers(0, 99))
def test_parts_are_in_order_apart_and_hold_the_nearest_clip(clips: int, window: int, windows: int, seed: int) -> None:
    cosine_T = np.random.default_rng(seed).random(clips).astype(np.float32)
    parts = near_parts(cosine_T, window, windows)
    assert parts[0].start >= 0 and parts[-1].stop <= clips
    assert all(left.stop < right.start for left, right in itertools.pairwise(parts))
    assert any(int(cosine_T.argmax()) in part for part in parts)
    assert parts == [range(clips)] or sum(map(len, parts)) <= windows * window


def test_an_answer_has_the_times_of_the_whole_video() -> None:
    timeline = Timeline(duration=99.0, clip_seconds=2.0)
    features = VideoFeatures(video_KTD=np.zeros((1, 50, 1), np.float16), timeline=timeline)

    def ground(part: VideoFeatures) -> Grounding:
        moment = Moment(1.0, part.timeline.duration, 0.5 if part.timeline.num_clips == 10 else 0.9)
        curve = np.arange(1, part.timeline.num_clips + 1, dtype=np.float32)
        return Grounding(query="q", timeline=part.timeline, moments=(moment,), saliency=curve, notes=("noted",))

    answer = ground_parts(features, [range(5, 15), range(45, 50)], ground)
    assert answer.timeline == timeline
    assert answer.moments == (Moment(91.0, 99.0, 0.9), Moment(11.0, 30.0, 0.5))
    assert answer.saliency[5:15].tolist() == list(range(1, 11)) and answer.saliency[45:].tolist() == [1, 2, 3, 4, 5]
    assert (answer.saliency[:5] == 1).all() and (answer.saliency[15:45] == 1).all()
    assert answer.notes == ("noted", "the model read 0:30.0 of 1:39.0, near to the query")
    whole = ground_parts(features, [range(50)], ground)
    assert whole.notes == ("noted",) and whole.moments[0].end == 99.0


def test_a_part_is_answered_as_the_same_clips_of_a_video() -> None:
    grounder = Grounder.from_pretrained("shapes", cache=None, device="cpu")
    spec, query = grounder.checkpoint.features, "a red star spins"
    video_KTD = np.random.default_rng(0).standard_normal((len(spec.levels), 400, spec.video_dim)).astype(np.float16)
    features = VideoFeatures(video_KTD=video_KTD, timeline=Timeline(duration=800.0, clip_seconds=2.0))
    text = grounder.encode([query])

    def ground(part: VideoFeatures) -> Grounding:
        return grounder.ground_features(part, text, [query])[0]

    answer = ground_parts(features, [range(100, 170)], ground)
    alone = ground(VideoFeatures(video_KTD=video_KTD[:, 100:170], timeline=Timeline(duration=140.0, clip_seconds=2.0)))
    assert len(answer) == len(alone) > 0
    for moment, other in zip(answer, alone, strict=True):
        assert (moment.start - 200, moment.end - 200, moment.score) == pytest.approx(
            (other.start, other.end, other.score)
        )
    assert np.array_equal(answer.saliency[100:170], alone.saliency)
