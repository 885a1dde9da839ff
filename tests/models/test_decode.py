"""Decoding of SDST: predictions to groundings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidelight.core.batch import Predictions
from sidelight.core.timeline import Timeline
from sidelight.models.decode.sdst import DecodeConfig

PLAIN = DecodeConfig(nms="none")
TEN = Timeline(duration=20.0, clip_seconds=2.0)


def predictions(
    spans: list[list[tuple[float, float]]],
    logits: list[list[float]] | None = None,
    actionness: list[list[float]] | None = None,
    clips: tuple[int, ...] = (10,),
) -> Predictions:
    """Build predictions of two levels; the first level is nonsense, which decoding must not read."""
    size, moment_queries, longest = len(spans), len(spans[0]), max(clips)
    last = torch.tensor(spans).view(size, moment_queries, 2)
    scores = torch.zeros(size, moment_queries) if logits is None else torch.tensor(logits)
    return Predictions(
        logits_KBM=torch.stack([torch.full_like(scores, 99.0), scores]),
        spans_KBM2=torch.stack([torch.full_like(last, 0.123), last]),
        actionness_BM=torch.ones(size, moment_queries) if actionness is None else torch.tensor(actionness),
        saliency_BT=torch.arange(longest).float().expand(size, -1) / longest,
        video_KBTF=torch.zeros(2, size, longest, 4),
        text_KBF=torch.zeros(2, size, 4),
        video_mask_BT=torch.arange(longest) < torch.tensor(clips).unsqueeze(1),
        saliency_video_BTF=torch.zeros(size, longest, 4),
        saliency_text_BF=torch.zeros(size, 4),
    )


def decode_one(config: DecodeConfig, timeline: Timeline = TEN, **changes: Any) -> list[tuple[float, float, float]]:
    (grounding,) = config.decode(predictions(clips=(timeline.num_clips,), **changes), [timeline], ["a query"])
    return [(moment.start, moment.end, moment.score) for moment in grounding.moments]


def test_moments_are_seconds_by_falling_score() -> None:
    moments = decode_one(PLAIN, spans=[[(0.5, 0.2), (0.2, 0.2)]], logits=[[0.0, 2.0]], actionness=[[0.5, 0.25]])
    p = 1 / (1 + math.exp(-2))
    assert [value for moment in moments for value in moment] == pytest.approx(
        [8, 12, 0.5, 2, 6, math.sqrt(p * 0.25)], abs=1e-5
    )


@pytest.mark.parametrize(
    ("score", "expected"),
    [("sqrt", math.sqrt(0.5 * 0.36)), ("product", 0.18), ("class", 0.5), ("actionness", 0.36)],
)
def test_scores(score: Any, expected: float) -> None:
    ((_, _, result),) = decode_one(DecodeConfig(score=score), spans=[[(0.5, 0.2)]], actionness=[[0.36]])
    assert result == pytest.approx(expected)


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
    """Use a video of 19 s in ten clips of 2 s: the last clip has one second, and the extent is 20 s."""
    moments = decode_one(PLAIN, Timeline(duration=19.0, clip_seconds=2.0), spans=[[span]])
    assert [value for moment in moments for value in moment[:2]] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("span", "unit", "expected"),
    [
        ((0.26, 0.12), 2.0, [4, 6]),
        ((0.26, 0.12), 0.1, [4.0, 6.4]),
        ((0.5, 0.02), 2.0, [10, 12]),  # rounds to no length: becomes the unit around its middle
        ((0.94, 0.01), 2.0, [18, 19]),
        ((0.93, 0.14), 2.0, [18, 19]),  # the end stays within the duration
        ((0.5, 0.0), 2.0, []),
    ],
)
def test_rounding(span: tuple[float, float], unit: float, expected: list[float]) -> None:
    timeline = Timeline(duration=19.0, clip_seconds=2.0)
    moments = decode_one(DecodeConfig(nms="none", round_to=unit), timeline, spans=[[span]])
    assert [value for moment in moments for value in moment[:2]] == pytest.approx(expected, abs=1e-9)


def test_suppression() -> None:
    changes: dict[str, Any] = {
        "spans": [[(0.5, 0.4), (0.5, 0.3), (0.1, 0.1)]],
        "logits": [[2.0, 1.0, 0.0]],
    }
    scores = {
        kind: [round(moment[2], 3) for moment in decode_one(DecodeConfig(nms=kind), **changes)]
        for kind in ("none", "hard", "soft-linear", "soft-gaussian")
    }
    best, second, third = (math.sqrt(1 / (1 + math.exp(-x))) for x in (2, 1, 0))
    assert scores["none"] == [round(x, 3) for x in (best, second, third)]
    assert scores["hard"] == [round(x, 3) for x in (best, third)]
    assert scores["soft-linear"] == [round(x, 3) for x in (best, third, second * 0.25)]
    gaussian = second * math.exp(-(0.75**2) / 0.5)
    assert scores["soft-gaussian"] == [round(x, 3) for x in (best, third, gaussian)]
    assert len(decode_one(DecodeConfig(max_moments=2), **changes)) == 2
    assert len(decode_one(DecodeConfig(min_score=0.5), **changes)) == 2


def test_each_sample_has_its_own_clips_query_and_video() -> None:
    timelines = [TEN, Timeline(duration=5.0, clip_seconds=2.0)]
    raw = predictions([[(0.5, 0.5)], [(0.5, 0.5)]], clips=(10, 3))
    first, second = PLAIN.decode(raw, timelines, ["one", "two"], videos=["a.mp4", None])
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
        PLAIN.decode(predictions([[(0.5, 0.5)]]), timelines, queries)


def test_a_diverged_model_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        PLAIN.decode(predictions([[(float("nan"), 0.5)]]), [TEN], ["a"])


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
    (grounding,) = DecodeConfig(nms=nms, round_to=round_to).decode(raw, [timeline], ["q"])
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
        ({"min_score": "a"}, "a finite number"),
    ],
)
def test_configuration_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodeConfig(**changes)
