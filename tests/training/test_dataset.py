"""Annotations and features become batches; the order of an epoch is the same on every machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from sidelight.core.timeline import Timeline
from sidelight.data.annotations import Annotation
from sidelight.data.labels import Binding, bind, clip_saliency
from sidelight.features.store import FeatureStore, VideoFeatures
from sidelight.training.dataset import NO_POSITIVE, GroundingDataset, epoch_batches, in_order

TEN = Timeline(duration=20, clip_seconds=2)


@pytest.fixture(scope="module")
def dataset(tiny_annotations: list[Annotation], tiny_store: Path) -> GroundingDataset:
    return GroundingDataset(tiny_annotations, FeatureStore(tiny_store))


def test_a_batch_holds_its_samples_and_zeros(dataset: GroundingDataset) -> None:
    indices = [0, len(dataset) - 1]
    batch = dataset.batch(indices)
    assert batch.targets is not None
    for row, index in enumerate(indices):
        sample = dataset.sample(index)
        clips, tokens, spans = sample.video_KTD.shape[1], sample.text_KLD.shape[1], len(sample.spans_G2)
        assert batch.video_mask_BT[row].sum() == clips and batch.text_mask_BL[row].sum() == tokens
        torch.testing.assert_close(batch.video_KBTD[:, row, :clips], torch.from_numpy(sample.video_KTD).float())
        assert not batch.video_KBTD[:, row, clips:].any() and not batch.text_KBLD[:, row, tokens:].any()
        assert batch.targets.spans_mask_BG[row].sum() == spans
        # The spans in the model's units are the windows in seconds.
        center, width = sample.spans_G2.T
        seconds = dataset.timeline(index).to_seconds(np.stack([center - width / 2, center + width / 2], 1))
        np.testing.assert_allclose(seconds, dataset.annotations[index].relevant_windows, atol=1e-4)


def test_positive_clips_are_relevant_and_change_with_the_epoch(dataset: GroundingDataset) -> None:
    positives = np.array([[dataset.sample(i, e).positive for e in range(5)] for i in range(len(dataset))])
    for row, annotation in zip(positives, dataset.annotations, strict=True):
        assert set(row) <= set(annotation.relevant_clip_ids)
    assert (positives != positives[:, :1]).any()
    assert np.array_equal(positives[:, 3], [dataset.sample(i, 3).positive for i in range(len(dataset))])


def test_memory_or_map_make_no_difference(dataset: GroundingDataset) -> None:
    mapped = GroundingDataset(dataset.annotations, dataset.store, in_memory=False)
    torch.testing.assert_close(mapped.batch([0, 1]).video_KBTD, dataset.batch([0, 1]).video_KBTD)


def annotation(**changes: object) -> Annotation:
    return replace(Annotation(qid=1, query="q", vid="v", duration=20), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labelled", "expected"),
    [
        (annotation(), {}),
        (annotation(relevant_windows=((2, 6),)), {1: 1.0, 2: 1.0}),
        (annotation(relevant_windows=((4.5, 5.0),)), {2: 1.0}),
        (
            annotation(relevant_windows=((2, 4),), relevant_clip_ids=(1,), saliency_scores=((1, 2, 3),)),
            {1: 2.0},
        ),
        (
            annotation(relevant_windows=((2, 4),), relevant_clip_ids=(1,), saliency_scores=((0, 0, 0),)),
            {1: 0.1},
        ),
    ],
)
def test_clip_saliency(labelled: Annotation, expected: dict[int, float]) -> None:
    saliency_T = clip_saliency(labelled, TEN)
    assert {i: round(float(v), 3) for i, v in enumerate(saliency_T) if v} == expected


def test_data_that_does_not_fit_is_named(dataset: GroundingDataset) -> None:
    row = dataset.annotations[0]
    with pytest.raises(ValueError, match="no annotations"):
        GroundingDataset([], dataset.store)
    with pytest.raises(ValueError, match="no video 'other'"):
        GroundingDataset([replace(row, vid="other")], dataset.store)
    with pytest.raises(ValueError, match="lacks 1 of 1 queries"):
        GroundingDataset([replace(row, query="never seen")], dataset.store)
    with pytest.raises(ValueError, match="ends after its video"):
        GroundingDataset([replace(row, relevant_windows=((0, 500),))], dataset.store)
    with pytest.raises(ValueError, match="clip 50 is beyond"):
        clip_saliency(annotation(relevant_clip_ids=(50,), saliency_scores=((1,),)), TEN)


@pytest.mark.parametrize(
    ("count", "size", "world", "batches"),
    [(1, 32, 1, 1), (10, 4, 1, 2), (10, 2, 2, 2), (33, 32, 1, 1), (3, 32, 2, 1), (100, 8, 1, 12)],
)
def test_an_epoch_covers_and_splits(count: int, size: int, world: int, batches: int) -> None:
    clips = np.random.default_rng(0).integers(5, 75, size=count)
    parts = [epoch_batches(clips, epoch=0, batch_size=size, rank=rank, world=world) for rank in range(world)]
    assert {len(p) for p in parts} == {batches}
    flat = [i for part in parts for batch in part for i in batch]
    assert len(flat) == len(set(flat)) and set(flat) <= set(range(count))
    assert len(flat) > count - size * world


@pytest.mark.parametrize(
    ("count", "size", "world", "sizes"),
    [
        (10, 4, 1, [2, 4, 4]),
        (8, 4, 1, [4, 4]),
        (3, 4, 1, [3]),
        (7218, 32, 1, [18] + [32] * 225),
        (11, 2, 2, [1] + [2] * 2),
        (9, 2, 2, [2] * 2),
    ],
)
def test_the_last_batch_can_be_kept(count: int, size: int, world: int, sizes: list[int]) -> None:
    clips = np.random.default_rng(0).integers(5, 75, size=count)
    parts = [
        epoch_batches(clips, epoch=3, batch_size=size, last_batch="keep", rank=rank, world=world)
        for rank in range(world)
    ]
    assert all(sorted(map(len, part)) == sizes for part in parts)
    flat = [i for part in parts for batch in part for i in batch]
    assert len(set(flat)) == len(flat) == count // world * world
    # The full batches are those of a run that drops the rest: only their order may differ.
    dropped = epoch_batches(clips, epoch=3, batch_size=size, world=world)
    assert count < size * world or {tuple(b) for b in dropped} <= {tuple(b) for b in parts[0]}


def test_dropped_batches_are_those_of_earlier_versions() -> None:
    """Check the order of a run that began before the last batch could be kept: its states go on with it."""
    clips = np.array([5, 9, 7, 30, 12, 8, 40])
    assert epoch_batches(clips, epoch=1, batch_size=2, seed=4) == [[3, 6], [2, 5], [1, 4]]


def test_epochs_differ_and_repeat() -> None:
    clips = np.random.default_rng(0).integers(5, 75, size=64)
    first = epoch_batches(clips, epoch=0, batch_size=8)
    assert first == epoch_batches(clips, epoch=0, batch_size=8)
    assert first != epoch_batches(clips, epoch=1, batch_size=8)
    assert first != epoch_batches(clips, epoch=0, batch_size=8, seed=1)
    # The videos of a batch are similarly long.
    assert np.mean([np.ptp(clips[b]) for b in first]) < 0.6 * np.ptp(clips)
    with pytest.raises(ValueError, match="too few"):
        epoch_batches(clips[:1], epoch=0, batch_size=8, world=2)


@pytest.mark.parametrize(("count", "expected"), [(0, []), (1, [[0]]), (5, [[0, 1], [2, 3], [4]])])
def test_in_order(count: int, expected: list[list[int]]) -> None:
    assert list(in_order(count, 2)) == expected


def test_labels_can_be_bound_as_r2_tuning_does(tiny_annotations: list[Annotation], tiny_store: Path) -> None:
    """Check that a short window grows to a clip, and that saliency is the sum of the ratings over 12.

    A clip that every rater gave 0 is never the positive clip.
    """
    first = tiny_annotations[0]
    short = replace(
        first,
        relevant_windows=((4.5, 5.0),),
        relevant_clip_ids=(2, 3),
        saliency_scores=((4, 4, 2), (0, 0, 0)),
    )
    plain, bound = (
        GroundingDataset([short], FeatureStore(tiny_store), binding=binding) for binding in ("plain", "r2-tuning")
    )
    clips = int(bound.num_clips()[0])
    np.testing.assert_allclose(bound.sample(0).spans_G2 * clips, [[4.75 / 2, 1.0]], rtol=1e-6)
    np.testing.assert_allclose(plain.sample(0).spans_G2 * clips, [[4.75 / 2, 0.25]], rtol=1e-6)
    assert bound.sample(0).saliency_T[2:4].tolist() == pytest.approx([10 / 12, 0])
    assert plain.sample(0).saliency_T[2:4].tolist() == pytest.approx([10 / 3, 0.1])
    for dataset in (plain, bound):
        assert {dataset.sample(0, epoch).positive for epoch in range(20)} == {2}
    unrated = GroundingDataset([replace(short, saliency_scores=((0, 0, 0), (0, 0, 0)))], FeatureStore(tiny_store))
    assert unrated.sample(0).positive == NO_POSITIVE


@pytest.mark.parametrize("binding", ["plain", "r2-tuning"])
def test_ratings_of_clips_of_another_length_are_converted(binding: Binding) -> None:
    """Check that ratings of 2 s clips reach the seconds that they rate, in features of 1 s and of 4 s clips."""
    rated = annotation(relevant_windows=((4, 8),), relevant_clip_ids=(2, 3), saliency_scores=((4, 4), (2, 0)))
    full = 4.0 if binding == "plain" else 1.0
    fine = bind(rated, Timeline(duration=20, clip_seconds=1), binding)
    assert fine.saliency_T.tolist() == pytest.approx([0] * 4 + [full, full, full / 4, full / 4] + [0] * 12)
    assert fine.positives.tolist() == [4, 5, 6, 7]
    coarse = bind(rated, Timeline(duration=20, clip_seconds=4), binding)
    assert coarse.saliency_T.tolist() == pytest.approx([0, full * 5 / 8, 0, 0, 0])
    assert coarse.positives.tolist() == [1]
    # The row says how long its clips are: the same clips are other seconds.
    short_clips = replace(rated, extra={"clip_seconds": 1.0})
    assert bind(short_clips, TEN, binding).saliency_T.tolist() == pytest.approx([0, full * 5 / 8] + [0] * 8)
    with pytest.raises(ValueError, match="clip 50 is beyond its video 'v', which has 10 clips of 2 s"):
        bind(replace(rated, relevant_clip_ids=(2, 50)), Timeline(duration=20, clip_seconds=1), "plain")


def test_ratings_of_every_clip_of_another_length_are_refused() -> None:
    """Check a video so short that the number of its ratings alone does not show the difference."""
    rated = annotation(duration=8, relevant_clip_ids=(0, 1, 2, 3), saliency_scores=((1, 1), (5, 5), (3, 1), (2, 2)))
    with pytest.raises(ValueError, match="rates every clip of 2 s, but the features of its video 'v' have clips of 1"):
        bind(rated, Timeline(duration=8, clip_seconds=1), "tvsum")


def test_clips_can_be_rounded(tiny_annotations: list[Annotation], tiny_store: Path, tmp_path: Path) -> None:
    """Check a video of 20.7 s with clips of 2 s: 11 clips cover it, the published extraction has 10."""
    store, first = FeatureStore(tiny_store), replace(tiny_annotations[0], duration=20.697)
    video_KTD = store.video(first.vid).video_KTD[:, [0] * 11]
    own = FeatureStore.create(tmp_path, store.spec)
    own.put_video(first.vid, VideoFeatures(video_KTD=video_KTD, timeline=Timeline(duration=20.697, clip_seconds=2)))
    own.put_queries(store.queries([first.query]))
    late = replace(first, relevant_windows=((18, 20.6), (20.2, 20.6)), relevant_clip_ids=(9,), saliency_scores=((3,),))
    for binding in get_args(Binding)[:2]:
        whole, rounded = (GroundingDataset([late], own, binding=binding, round_clips=r) for r in (False, True))
        assert (whole.sample(0).video_KTD.shape[1], rounded.sample(0).video_KTD.shape[1]) == (11, 10)
        assert len(rounded.sample(0).saliency_T) == 10 and rounded.timeline(0).duration == 20.697
        np.testing.assert_allclose(rounded.sample(0).spans_G2, [[0.95, 0.1]], atol=1e-6)


def test_labels_of_benchmarks_that_rate_every_clip() -> None:
    tvsum = Annotation(
        qid="a",
        query="q",
        vid="v",
        duration=8.0,
        relevant_clip_ids=tuple(range(4)),
        saliency_scores=((1, 1), (5, 5), (3, 1), (2, 2)),
    )
    timeline = Timeline(duration=8, clip_seconds=2)
    labels = bind(tvsum, timeline, "tvsum")
    assert labels.saliency_T.tolist() == [0, 1, 0.25, 0.25] and labels.windows_G2.shape == (0, 2)
    assert labels.positives.tolist() == [1]  # 0.25 is the lower median and no more than itself
    youtube = replace(tvsum, saliency_scores=((0,), (1,), (0,), (1,)), extra={"match": [-1, 1, 0, 1]})
    labels = bind(youtube, timeline, "youtube-highlights")
    assert labels.saliency_T.tolist() == [0, 1, 0.5, 1] and labels.positives.tolist() == [1, 3]
    longer = bind(tvsum, Timeline(duration=12, clip_seconds=2), "tvsum")
    assert longer.saliency_T.tolist() == [0, 1, 0.25, 0.25, 0, 0] and longer.positives.tolist() == [1]
    with pytest.raises(ValueError, match="rates 4 clips, but the features of its video 'v' have 9"):
        bind(tvsum, Timeline(duration=18, clip_seconds=2), "tvsum")
    for match in ([1], ["a"] * 4, [[1]] * 4, 3):
        with pytest.raises(ValueError, match="match must be a list of 4"):
            bind(replace(youtube, extra={"match": match}), timeline, "youtube-highlights")
    some = replace(tvsum, relevant_clip_ids=(2, 3), saliency_scores=((4,), (2,)))
    for binding in ("tvsum", "youtube-highlights"):
        with pytest.raises(ValueError, match="must rate every clip"):
            bind(some, timeline, binding)
    # The number of raters does not matter: a 4 by one rater is as much as a 4 by three.
    assert bind(some, timeline, "r2-tuning").saliency_T.tolist() == [0, 0, 1, 0.5]


def test_a_video_is_as_long_as_its_ratings(tiny_annotations: list[Annotation], tiny_store: Path) -> None:
    store, first = FeatureStore(tiny_store), tiny_annotations[0]
    clips = store.timeline(first.vid).num_clips - 2
    rated = replace(
        first,
        relevant_windows=(),
        relevant_clip_ids=tuple(range(clips)),
        saliency_scores=tuple((i % 5 + 1,) for i in range(clips)),
    )
    for in_memory in (True, False):
        dataset = GroundingDataset([rated], store, binding="tvsum", in_memory=in_memory)
        assert dataset.num_clips().tolist() == [clips] and dataset.timeline(0).num_clips == clips
        sample = dataset.sample(0)
        assert sample.video_KTD.shape[1] == len(sample.saliency_T) == clips and sample.positive >= 0
