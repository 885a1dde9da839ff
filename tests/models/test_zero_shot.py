"""Test grounding without training: each step as a table, properties, slow references, and whole answers.

Shape legend: B batch, T clips, E width of the joint space, N proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from sidelight.core.batch import Batch
from sidelight.core.timeline import Timeline
from sidelight.models import zero_shot
from sidelight.models.decode.zero_shot import METHODS, ZeroShotDecodeConfig
from sidelight.models.registry import build_model, model_parts, side_tuner
from sidelight.models.zero_shot import Similarities, ZeroShot

CURVES = npst.arrays(np.float64, st.integers(1, 24), elements=st.integers(0, 6).map(lambda n: n / 6))
"""Curves with many equal values."""


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


# adjusting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("curve", "deviation", "expected"),
    [
        ([], 1.0, []),
        ([0.3], 1.0, [0.3]),
        ([0.0, 1.0, 0.0], 0.0, [0.0, 1.0, 0.0]),
        ([2.0, 2.0, 2.0], 3.0, [2.0, 2.0, 2.0]),
        ([0.0, 0.0, 1.0, 0.0, 0.0], 1e-3, [0.0, 0.0, 1.0, 0.0, 0.0]),
    ],
)
def test_smooth(curve: list[float], deviation: float, expected: list[float]) -> None:
    np.testing.assert_allclose(zero_shot.smooth(array(*curve), deviation), expected, atol=1e-12)


def test_smoothing_spreads_a_peak_evenly() -> None:
    smoothed = zero_shot.smooth(array(0, 0, 0, 0, 1, 0, 0, 0, 0), 1.0)
    assert smoothed.sum() == pytest.approx(1.0, abs=5e-3) and smoothed.argmax() == 4
    np.testing.assert_allclose(smoothed, smoothed[::-1])


@pytest.mark.parametrize(
    ("curve", "floor", "expected"),
    [
        ([], 0.0, []),
        ([0.4], 0.0, [0.0]),
        ([0.4, 0.4], 0.5, [0.0, 0.0]),
        ([-1.0, 0.0, 1.0], 0.0, [0.0, 0.5, 1.0]),
        ([-9.0, 0.0, 1.0, 2.0], 1 / 3, [0.0, 0.0, 0.5, 1.0]),
    ],
)
def test_normalise(curve: list[float], floor: float, expected: list[float]) -> None:
    np.testing.assert_allclose(zero_shot.normalise(array(*curve), floor), expected)


@pytest.mark.parametrize("curve", [[], [0.4], [0.2, 0.2, 0.2]])
def test_box_cox_of_nothing_to_transform(curve: list[float]) -> None:
    assert zero_shot.box_cox(array(*curve)).tolist() == [0.0] * len(curve)


def test_box_cox_straightens_a_log_normal_curve() -> None:
    logs = np.random.default_rng(0).normal(size=400)
    np.testing.assert_allclose(zero_shot.box_cox(np.exp(logs)), zero_shot.normalise(logs), atol=0.05)


@given(CURVES, st.booleans())
def test_adjusting_keeps_the_order_of_clips(curve: np.ndarray, shifted: bool) -> None:
    for adjusted in (zero_shot.box_cox(curve - shifted), zero_shot.normalise(curve - shifted)):
        assert len(adjusted) == len(curve) and adjusted.min() >= 0 and adjusted.max() <= 1
        assert (np.diff(adjusted[np.argsort(curve, kind="stable")]) >= -1e-9).all()


# proposing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("above", "expected"),
    [
        ([], []),
        ([False], []),
        ([True], [[0, 1]]),
        ([True, False, True, True], [[0, 1], [2, 4]]),
    ],
)
def test_runs(above: list[bool], expected: list[list[int]]) -> None:
    assert zero_shot.runs(np.array(above, dtype=bool)).tolist() == expected


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([], []),
        ([0.5], [[0, 1]]),
        ([1.0, 1.0, 1.0], [[0, 3]]),
        ([0.0, 1.0, 0.0, 2.0, 0.0], [[0, 5], [1, 2], [3, 4]]),
        ([0.0, 1.0, 2.0, 1.0], [[0, 4], [1, 4], [2, 3]]),
    ],
)
def test_all_runs(curve: list[float], expected: list[list[int]]) -> None:
    assert zero_shot.all_runs(array(*curve)).tolist() == expected


@given(CURVES)
def test_all_runs_are_the_runs_of_every_threshold(curve: np.ndarray) -> None:
    """Compare with the plain way: try each value of the curve as the threshold."""
    plain = {tuple(run) for value in curve for run in zero_shot.runs(curve >= value).tolist()}
    assert {tuple(run) for run in zero_shot.all_runs(curve).tolist()} == plain
    assert len(plain) <= len(curve)


@pytest.mark.parametrize(
    ("clips", "step", "longest", "lengths"),
    [
        (0, 3, 0.5, []),
        (1, 3, 0.5, [1]),
        (2, 3, 0.5, [1]),
        (10, 3, 0.5, [3]),
        (10, 2, 0.5, [2, 4]),
        (4, 3, 1.0, [2, 4]),
        (4, 2, 0.1, [2]),
    ],
)
def test_windows(clips: int, step: int, longest: float, lengths: list[int]) -> None:
    parts = list(zero_shot.windows(clips, step, longest))
    assert [int(part[0, 1]) for part in parts] == lengths
    for length, part in zip(lengths, parts, strict=True):
        assert part.tolist() == [[start, start + length] for start in range(clips - length + 1)]


def test_clusters_change_where_the_content_changes() -> None:
    vectors = np.repeat(np.eye(3), [6, 8, 7], axis=0)
    spans = np.concatenate(list(zero_shot.clusters(vectors, count=3, pool=1, neighbours=1, longest=1.0)))
    assert spans.tolist() == [[0, 6], [0, 14], [0, 21], [6, 14], [6, 21], [14, 21]]
    short = np.concatenate(list(zero_shot.clusters(vectors, count=3, pool=1, neighbours=1, longest=0.5)))
    assert short.tolist() == [[0, 6], [6, 14], [14, 21]]


@pytest.mark.parametrize("clips", [0, 1, 2])
def test_clusters_of_few_clips(clips: int) -> None:
    parts = list(zero_shot.clusters(np.eye(4)[:clips], count=9, pool=3, neighbours=3, longest=0.5))
    assert np.concatenate([np.zeros((0, 2), int), *parts])[:, 1].max(initial=0) == clips


def test_k_means_finds_groups_and_stays_with_its_neighbours() -> None:
    rng = np.random.default_rng(3)
    vectors = np.repeat(np.eye(2), 10, axis=0) + rng.normal(0, 0.05, (20, 2))
    vectors[4] = [0, 1]  # one clip that looks like the others
    alone = zero_shot.k_means(vectors, 2, neighbours=1, seed=0)
    together = zero_shot.k_means(vectors, 2, neighbours=5, seed=0)
    assert alone[4] == alone[15] != alone[3]
    assert together[4] == together[3] != together[15]
    assert (zero_shot.k_means(vectors, 2, neighbours=5, seed=0) == together).all()
    assert set(zero_shot.k_means(np.ones((5, 2)), 3, neighbours=1, seed=0)) == {0}


# scoring -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("curve", "spans", "expected"),
    [
        ([1.0], np.zeros((0, 2)), []),
        ([0.7], [[0, 1]], [0.0]),
        ([1.0, 0.0, 0.5], [[0, 1], [0, 2], [0, 3]], [0.75, 0.0, 0.0]),
    ],
)
def test_contrast(curve: list[float], spans: Any, expected: list[float]) -> None:
    np.testing.assert_allclose(zero_shot.contrast(array(*curve), np.array(spans, int)), expected)


@given(CURVES, st.data())
def test_contrast_agrees_with_a_plain_reference(curve: np.ndarray, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(curve) - 1))
    stop = data.draw(st.integers(start + 1, len(curve)))
    inside = [curve[i] for i in range(len(curve)) if start <= i < stop]
    outside = [curve[i] for i in range(len(curve)) if not start <= i < stop]
    plain = sum(inside) / len(inside) - sum(outside) / len(outside) if outside else 0.0
    assert zero_shot.contrast(curve, np.array([[start, stop]]))[0] == pytest.approx(plain, abs=1e-12)


@pytest.mark.parametrize(
    ("curve", "spans", "expected"),
    [
        ([1.0], np.zeros((0, 2)), []),
        ([0.0], [[0, 1]], [0.0]),
        ([0.0, 0.6, 1.0, 0.2], [[2, 3], [1, 3], [1, 4], [0, 4], [0, 2]], [0.4, 0.4, 0.2, 0.0, 0.0]),
        ([0.0, 0.5, 0.0, 1.0], [[1, 2], [3, 4]], [0.5, 1.0]),
    ],
)
def test_persistence(curve: list[float], spans: Any, expected: list[float]) -> None:
    np.testing.assert_allclose(zero_shot.persistence(array(*curve), np.array(spans, int)), expected)


@settings(max_examples=30)
@given(CURVES)
def test_persistence_is_the_share_of_thresholds(curve: np.ndarray) -> None:
    """Compare with the plain way: try 600 thresholds, and count how often each span is a run."""
    spans = zero_shot.all_runs(curve)
    thresholds = (np.arange(600) + 0.5) / 600
    counts = {tuple(span): 0 for span in spans.tolist()}
    for threshold in thresholds:
        for run in zero_shot.runs(curve >= threshold).tolist():
            counts[tuple(run)] += 1
    plain = [counts[tuple(span)] / 600 for span in spans.tolist()]
    np.testing.assert_allclose(zero_shot.persistence(curve, spans), plain, atol=1e-9)


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([], []),
        ([0.5], [0]),
        ([0.0, 0.0, 0.0], [0, 1, 2]),
        ([0.0, 0.1, 0.2, 0.3], [0, 0, 0, 0]),
        ([0.3, 0.2, 0.0, 0.5, 0.5], [0, 1, 2, 2, 2]),
    ],
)
def test_rising_starts(curve: list[float], expected: list[int]) -> None:
    assert zero_shot.rising_starts(array(*curve)).tolist() == expected


# whole answers -------------------------------------------------------------------------------------------------------


def batch_of(curves: Sequence[Sequence[float]]) -> Batch:
    """Return joint embeddings, padded with other numbers, whose cosines with the sentence are the curves."""
    longest = max(map(len, curves))
    video = torch.full((1, len(curves), longest, 2), 7.0)
    mask = torch.zeros(len(curves), longest, dtype=torch.bool)
    for b, curve in enumerate(curves):
        cosine = torch.tensor(curve)
        video[0, b, : len(curve)] = torch.stack([cosine, (1 - cosine**2).sqrt()], -1)
        mask[b, : len(curve)] = True
    text = torch.tensor([1.0, 0.0]).expand(1, len(curves), 1, 2)
    return Batch(
        video_KBTD=video, video_mask_BT=mask, text_KBLD=text, text_mask_BL=torch.ones(len(curves), 1, dtype=torch.bool)
    )


def answers(curves: Sequence[Sequence[float]], config: ZeroShotDecodeConfig, seconds: float = 2.0) -> Any:
    timelines = [Timeline(duration=len(curve) * seconds, clip_seconds=seconds) for curve in curves]
    return config.decode(ZeroShot()(batch_of(curves)), timelines, ["a dog swims"] * len(curves))


EVENT = [0.1, 0.12, 0.1, 0.3, 0.1, 0.62, 0.6, 0.61, 0.1, 0.08, 0.1, 0.11]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_a_clear_event(method: str) -> None:
    """Find an event from 10 s to 16 s, in a batch with a shorter video whose padding must not matter."""
    config = replace(METHODS[method], rising_start=False)
    first, short = answers([EVENT, [0.2, 0.7, 0.2]], config)
    assert (first.moments[0].start, first.moments[0].end) == (10.0, 16.0)
    assert first.moments[0].score == max(m.score for m in first.moments) <= 1
    np.testing.assert_allclose(first.saliency, EVENT, atol=1e-6)
    assert answers([[0.2, 0.7, 0.2]], config)[0] == short


def test_the_start_moves_back_along_the_rise() -> None:
    curve = [0.1] * 8 + [0.2, 0.3, 0.6, 0.6, 0.6] + [0.1] * 6
    config = replace(METHODS["tfvtg"], rising_start=False)
    plain, moved = (answers([curve], replace(config, rising_start=value))[0].moments[0] for value in (False, True))
    assert (plain.start, plain.end) == (20.0, 26.0)
    # Smoothing over 3 clips lets the rise begin 3 clips before the curve's own at 14 s.
    assert 8.0 <= moved.start <= 14.0 and moved.end == 26.0


def test_the_default_finds_both_events_and_prefers_neither_half_nor_union() -> None:
    two = [0.1, 0.5, 0.52, 0.1, 0.1, 0.1, 0.5, 0.51, 0.49, 0.1, 0.3, 0.1]
    (grounding,) = answers([two], ZeroShotDecodeConfig(smoothing=(0.0,)))
    assert [(m.start, m.end) for m in grounding.moments[:2]] == [(2.0, 6.0), (12.0, 18.0)]
    assert grounding.moments[2].score < 0.1 * grounding.moments[1].score


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("curve", [[0.4], [0.4, 0.4], [0.25] * 9])
def test_a_constant_curve_is_one_moment_or_none(method: str, curve: list[float]) -> None:
    """Nothing stands out: the whole video is the answer, with the score of its level, and of contrast 0."""
    (grounding,) = answers([curve], METHODS[method])
    assert [(m.start, m.end) for m in grounding.moments] == [(0.0, 2.0 * len(curve))]
    assert grounding.moments[0].score == pytest.approx((1 + curve[0]) / 2, abs=1e-6)
    (grounding,) = answers([curve], replace(METHODS[method], presence="contrast"))
    assert grounding.moments[0].score == 0


def test_presence_compares_videos() -> None:
    """Check that the best score follows the highest cosine, or the contrast, so that videos compare."""
    low = [v / 3 for v in EVENT]
    level = [g.moments[0].score for g in answers([EVENT, low], ZeroShotDecodeConfig(smoothing=(0.0,)))]
    assert level == pytest.approx([1.62 / 2, (1 + 0.62 / 3) / 2], abs=1e-6)
    config = ZeroShotDecodeConfig(smoothing=(0.0,), presence="contrast")
    by_contrast = [g.moments[0].score for g in answers([EVENT, low], config)]
    outside = np.mean(EVENT[:5] + EVENT[8:])
    assert by_contrast == pytest.approx([0.61 - outside, (0.61 - outside) / 3], abs=1e-6)
    assert not answers([low], replace(config, min_score=0.3))[0].moments


@settings(max_examples=40, deadline=None)
@given(CURVES, st.sampled_from(sorted(METHODS)), st.sampled_from(["level", "contrast"]))
def test_answers_are_valid_for_any_curve(curve: np.ndarray, method: str, presence: Any) -> None:
    config = replace(METHODS[method], presence=presence)
    (grounding,) = answers([(curve * 1.8 - 0.9).tolist()], config)
    assert grounding.moments and all(0 <= m.score <= 1 and m.start < m.end for m in grounding.moments)
    assert answers([(curve * 1.8 - 0.9).tolist()], config)[0] == grounding


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(9)), st.floats(0.1, 0.5), st.floats(-0.3, 0.3))
@example([4, 3, 5, 2, 7, 0, 6, 8, 1], 0.1875, 0.0)  # two spans are equally good
def test_moments_do_not_depend_on_scale_and_level_of_the_cosines(ranks: list[int], scale: float, shift: float) -> None:
    config = ZeroShotDecodeConfig(smoothing=(0.0,), presence="contrast", nms="none")
    curve = np.array(ranks) / 9

    def moments(values: np.ndarray) -> dict[tuple[int, ...], float]:
        spans, scores = config.moments(values, curve[:, None])
        pairs = zip(spans.tolist(), scores.tolist(), strict=True)
        return {tuple(span): score for span, score in pairs if score > 1e-9}

    expected = {span: score * scale for span, score in moments(curve).items()}
    assert moments(curve * scale + shift) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("where", ["video", "text"])
def test_nan_is_refused(where: str) -> None:
    batch = batch_of([EVENT])
    broken = {
        "video": lambda: replace(batch, video_KBTD=batch.video_KBTD.index_fill(2, torch.tensor([3]), float("nan"))),
        "text": lambda: replace(batch, text_KBLD=batch.text_KBLD * float("nan")),
    }[where]()
    predictions = ZeroShot()(broken)
    with pytest.raises(ValueError, match="not finite"):
        ZeroShotDecodeConfig().decode(predictions, [Timeline(duration=24.0, clip_seconds=2.0)], ["x"])


@pytest.mark.parametrize("shape", [(2, 1, 12, 2), (1, 1, 12, 3), (1, 1, 12, 5, 2)])
def test_other_features_are_refused(shape: tuple[int, ...]) -> None:
    batch = batch_of([EVENT])
    text = batch.text_KBLD.expand(shape[0], -1, -1, -1)
    with pytest.raises(ValueError, match="pooling joint"):
        ZeroShot()(replace(batch, video_KBTD=torch.zeros(shape), text_KBLD=text))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smoothing": ()}, "smoothing must be one or more"),
        ({"smoothing": (-1.0,)}, "smoothing must be one or more"),
        ({"floor": 1.0}, "floor must be in"),
        ({"height": -1.0}, "height must be between"),
        ({"proposals": "guess"}, "proposals must be one of 'persistent'"),
        ({"window_step": 0}, "window_step must be at least 1"),
        ({"cluster_pool": 4}, "cluster_pool must be an odd number"),
        ({"longest": 0.0}, "longest must be in"),
        ({"clusters": 2.5}, "clusters must be a whole number"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ZeroShotDecodeConfig(**options)


def test_the_registry_knows_the_model_and_training_refuses_it() -> None:
    assert isinstance(build_model("zero-shot", {}), ZeroShot)
    assert model_parts("zero-shot").decode_config is ZeroShotDecodeConfig
    assert not list(build_model("zero-shot", {}).parameters())
    with pytest.raises(ValueError, match="zero-shot has no weights to train; choose a side-tuner: sdst"):
        side_tuner("zero-shot")
    with pytest.raises(ValueError, match=r"no model 'zero-shoot'.*did you mean 'zero-shot'"):
        build_model("zero-shoot", {})


def test_similarities_of_padding_are_zero() -> None:
    predictions = ZeroShot()(batch_of([EVENT, [0.2, 0.7, 0.2]]))
    assert isinstance(predictions, Similarities)
    assert predictions.similarity_BT[1, 3:].tolist() == [0.0] * 9
