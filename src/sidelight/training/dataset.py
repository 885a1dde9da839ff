"""Turn annotations and features into batches.

Everything random is seeded by (seed, epoch, index). So an epoch is the same on one machine or four, and an interrupted
run goes on with exactly the samples that it would have had.

Legend: B batch, K levels, T clips, L tokens, G spans, D_v / D_t widths.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from sidelight.core import spans
from sidelight.core.batch import Batch, Targets
from sidelight.core.timeline import Timeline, clips_to_seconds, durations_differ, same_length
from sidelight.data.annotations import Annotation
from sidelight.data.datasets.base import DataWarning
from sidelight.data.labels import ALL_RATED, Binding, bind, rated_clips
from sidelight.features.growing import mapping_of
from sidelight.features.store import Features, HalfFeatures, VideoFeatures

NO_POSITIVE = -1
"""The positive clip of a sample that has none."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One (video, query) pair with its ground truth, not yet padded."""

    video_KTD: HalfFeatures
    text_KLD: HalfFeatures
    spans_G2: npt.NDArray[np.float32]
    saliency_T: npt.NDArray[np.float32]
    positive: int


@dataclass(frozen=True, kw_only=True)
class Truth:
    """The ground truth of one sample."""

    spans_G2: npt.NDArray[np.float32]
    """(center, width) of each moment in units of the extent."""
    saliency_T: npt.NDArray[np.float32]
    positive: int


class AnnotatedVideos:
    """Annotations and the timelines of their videos: the part of samples that does not depend on what a model reads.

    Args:
        annotations: one sample each.
        timelines: of each video.
        late_clips: clips after the end of a video in which labels may still begin.
        seed: of the positive clips.
        targets: read the ground truth too; without it, windows are neither checked nor returned (for prediction).
        binding: how labels become targets, a key of ``data.labels.BINDINGS``. With a binding that needs a rating of
            every clip ("tvsum", "youtube-highlights"), a video is as long as its ratings.
        round_clips: leave out a last clip of which less than half lies in the video (:meth:`Timeline.rounded`).

    Raises:
        ValueError: if a window lies outside its video, or, for prediction, if a video has another length.
    """

    def __init__(
        self,
        annotations: Sequence[Annotation],
        timelines: Mapping[str, Timeline],
        *,
        late_clips: int,
        seed: int = 0,
        targets: bool = True,
        binding: Binding = "plain",
        round_clips: bool = False,
    ) -> None:
        self.annotations, self.seed, self.targets = list(annotations), seed, targets
        self.binding, self.round_clips, self._late_clips = binding, round_clips, late_clips
        self._timelines = dict(timelines)
        self._check_durations()
        if round_clips:
            self._timelines = {vid: timeline.rounded() for vid, timeline in self._timelines.items()}
        if binding in ALL_RATED:
            for annotation in self.annotations:
                timeline = self._timelines[annotation.vid]
                self._timelines[annotation.vid] = timeline.first(rated_clips(annotation, timeline.num_clips))
        self._labels = [self._checked(annotation) for annotation in self.annotations] if targets else []

    def _check_durations(self) -> None:
        """Compare the annotated durations with the videos that are read.

        Where all clips are rated, the ratings are compared instead.

        Raises:
            ValueError: in prediction, if a video is far shorter or longer; training warns, and refuses only labels
                that lie outside of the features.
        """
        if self.binding in ALL_RATED:
            return
        different: dict[str, str] = {}
        for a in self.annotations:
            timeline = self._timelines[a.vid]
            if durations_differ(a.duration, timeline.duration, timeline.clip_seconds, clips=self._late_clips):
                different.setdefault(a.vid, f"{a.vid!r} lasts {timeline.duration:g} s, annotated {a.duration:g} s")
        if not different:
            return
        message = (
            f"{len(different)} of {len(self._timelines)} videos have features of another length than their "
            f"annotations say (the first: {next(iter(different.values()))}); compare vid, duration and the video file"
        )
        if not self.targets:
            raise ValueError(message)
        warnings.warn(message, DataWarning, stacklevel=4)

    def _checked(self, annotation: Annotation) -> Annotation:
        """Return the annotation that targets are made of, without labels of clips that the features lack."""
        timeline, late_clips = self._timelines[annotation.vid], self._late_clips
        for start, end in annotation.relevant_windows:
            if end > timeline.extent + clips_to_seconds(late_clips, timeline.clip_seconds):
                raise ValueError(
                    f"annotation {annotation.qid!r}: the window [{start}, {end}] ends after its video "
                    f"{annotation.vid!r}, whose features cover {timeline.extent:g} s; correct the window or the vid"
                )
        if (late_clips > 1 or timeline.clips is not None) and self.binding not in ALL_RATED:
            annotation = _without_late_labels(annotation, timeline, late_clips)
        bind(annotation, timeline, self.binding)  # raises now for a wrong label, instead of in the middle of a run
        return annotation

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.annotations)

    def timeline(self, index: int) -> Timeline:
        """Return the timeline of a sample's video."""
        return self._timelines[self.annotations[index].vid]

    def num_clips(self) -> npt.NDArray[np.int64]:
        """Return the number of clips of each sample's video, (samples,)."""
        return np.array([self._timelines[a.vid].num_clips for a in self.annotations])

    def truth(self, index: int, epoch: int = 0) -> Truth:
        """Return the ground truth of a sample; ``epoch`` decides which relevant clip is its positive."""
        timeline = self.timeline(index)
        labels = bind(self._labels[index], timeline, self.binding)
        positive = NO_POSITIVE
        if len(labels.positives):
            rng = np.random.default_rng([self.seed, epoch, index])
            positive = int(labels.positives[rng.integers(len(labels.positives))])
        unit = np.clip(timeline.to_unit(labels.windows_G2), 0, 1)
        spans_G2 = np.asarray(spans.se_to_cw(unit), dtype=np.float32)
        return Truth(spans_G2=spans_G2, saliency_T=labels.saliency_T, positive=positive)


class GroundingDataset(AnnotatedVideos):
    """The samples of annotations, with features from a store.

    Args:
        annotations: one sample each.
        store: features of their videos and queries, in any layout.
        in_memory: read the features of all videos once; otherwise read a video each time a sample needs it.
        seed: see the base class, as of all other arguments.

    Raises:
        ValueError: if there are no annotations, the store lacks a video or a query, or a window lies outside its
            video.
    """

    def __init__(
        self,
        annotations: Sequence[Annotation],
        store: Features,
        *,
        in_memory: bool = True,
        seed: int = 0,
        targets: bool = True,
        binding: Binding = "plain",
        round_clips: bool = False,
    ) -> None:
        if not annotations:
            raise ValueError("there are no annotations; expected at least one")
        self.store, self._text = store, store.texts(annotations)
        vids = dict.fromkeys(a.vid for a in annotations)
        super().__init__(
            annotations,
            {vid: store.timeline(vid) for vid in vids},
            late_clips=store.late_clips,
            seed=seed,
            targets=targets,
            binding=binding,
            round_clips=round_clips,
        )
        self._in_memory: dict[str, VideoFeatures] = {vid: _loaded(self._read_video(vid)) for vid in vids if in_memory}

    def _features(self, vid: str) -> VideoFeatures:
        return self._in_memory.get(vid) or self._read_video(vid)

    def _read_video(self, vid: str) -> VideoFeatures:
        return self.store.video(vid).cut_to(self._timelines[vid])

    def tokens(self) -> int:
        """Return the number of vectors of each clip: 1, or P where the backbone's tokens were not pooled."""
        if self.store.spec.pooling != "tokens":
            return 1
        return int(self._features(self.annotations[0].vid).video_KTD.shape[2])

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """Return a sample; ``epoch`` decides which relevant clip is its positive."""
        features = self._features(self.annotations[index].vid)
        if not self.targets:
            return unlabelled(features, self._text[index])
        truth = self.truth(index, epoch)
        return Sample(
            video_KTD=features.video_KTD,
            text_KLD=self._text[index],
            spans_G2=truth.spans_G2,
            saliency_T=truth.saliency_T,
            positive=truth.positive,
        )

    def batch(self, indices: Sequence[int], epoch: int = 0) -> Batch:
        """Return samples as one batch, padded."""
        return collate([self.sample(i, epoch) for i in indices])


def _loaded(features: VideoFeatures) -> VideoFeatures:
    """Return features whose numbers lie in memory, and not in a mapped file."""
    if mapping_of(features.video_KTD) is None:
        return features
    return replace(features, video_KTD=features.video_KTD.copy())


def _without_late_labels(annotation: Annotation, timeline: Timeline, max_late: int) -> Annotation:
    """Return the annotation without the labels that begin up to ``max_late`` clips after the end of the features.

    Windows that begin earlier stay; ``sample`` cuts them where the features end.
    """
    clips, late_clips = timeline.num_clips, set()
    if same_length(annotation.clip_seconds, timeline.clip_seconds):  # converting other ratings cuts them anyway
        late_clips = {clip for clip in annotation.relevant_clip_ids if clips <= clip < clips + max_late}
    windows = tuple(w for w in annotation.relevant_windows if w[0] < timeline.extent)
    if not late_clips and len(windows) == len(annotation.relevant_windows):
        return annotation
    kept = [i for i, clip in enumerate(annotation.relevant_clip_ids) if clip not in late_clips]
    return replace(
        annotation,
        relevant_windows=windows,
        relevant_clip_ids=tuple(annotation.relevant_clip_ids[i] for i in kept),
        saliency_scores=tuple(annotation.saliency_scores[i] for i in kept) if annotation.saliency_scores else (),
    )


def unlabelled(features: VideoFeatures, text_KLD: HalfFeatures) -> Sample:
    """Return a sample without ground truth."""
    return Sample(
        video_KTD=features.video_KTD,
        text_KLD=text_KLD,
        spans_G2=np.zeros((0, 2), np.float32),
        saliency_T=np.zeros(features.timeline.num_clips, np.float32),
        positive=NO_POSITIVE,
    )


def collate(samples: Sequence[Sample]) -> Batch:
    """Return samples, at least one, as one batch of float32 features, padded to common lengths."""
    size = len(samples)
    levels, _, *inner = samples[0].video_KTD.shape  # (D_v), or (P, D_v) where all tokens were kept
    text_width = samples[0].text_KLD.shape[2]
    clips = max(s.video_KTD.shape[1] for s in samples)
    tokens = max(s.text_KLD.shape[1] for s in samples)
    video = np.zeros((levels, size, clips, *inner), np.float16)
    text = np.zeros((levels, size, tokens, text_width), np.float16)
    video_mask, text_mask = np.zeros((size, clips), bool), np.zeros((size, tokens), bool)
    for i, s in enumerate(samples):
        t, n = s.video_KTD.shape[1], s.text_KLD.shape[1]
        video[:, i, :t], text[:, i, :n] = s.video_KTD, s.text_KLD
        video_mask[i, :t], text_mask[i, :n] = True, True
    return Batch(
        video_KBTD=torch.from_numpy(video).float(),
        video_mask_BT=torch.from_numpy(video_mask),
        text_KBLD=torch.from_numpy(text).float(),
        text_mask_BL=torch.from_numpy(text_mask),
        targets=pad_targets(samples, clips),
    )


def pad_targets(rows: Sequence[Sample | Truth], clips: int) -> Targets:
    """Return the ground truth of samples, padded to a number of clips."""
    size, most_spans = len(rows), max(len(row.spans_G2) for row in rows)
    truth, truth_mask = np.zeros((size, most_spans, 2), np.float32), np.zeros((size, most_spans), bool)
    saliency = np.zeros((size, clips), np.float32)
    for i, row in enumerate(rows):
        g = len(row.spans_G2)
        truth[i, :g], truth_mask[i, :g] = row.spans_G2, True
        saliency[i, : len(row.saliency_T)] = row.saliency_T
    return Targets(
        spans_BG2=torch.from_numpy(truth),
        spans_mask_BG=torch.from_numpy(truth_mask),
        saliency_BT=torch.from_numpy(saliency),
        positive_B=torch.tensor([row.positive for row in rows]),
    )


def epoch_batches(
    num_clips: npt.NDArray[np.int64],
    *,
    epoch: int,
    batch_size: int,
    last_batch: Literal["drop", "keep"] = "drop",
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
) -> list[list[int]]:
    """Return the batches of one training epoch: for each step, the samples of this process.

    Samples are shuffled, then sorted by length within groups of eight batches, so that little is padded; then the
    batches are shuffled. All processes get the same number of batches. Samples that fill no batch for every process
    are left out of this epoch, and each epoch leaves out others; or they become a smaller batch.

    Args:
        num_clips: (samples,) clips of each sample.
        epoch: number of the epoch, from 0.
        batch_size: samples per process and step; a smaller dataset gives one smaller batch.
        last_batch: "drop" leaves out the samples that fill no batch, "keep" makes them a smaller batch, in which all
            processes have equally many samples.
        seed: of the order.
        rank: number of this process.
        world: number of processes.

    Raises:
        ValueError: if there are fewer samples than processes.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(num_clips))
    step = batch_size * world
    if len(order) < step:
        step = len(order) // world * world
        if not step:
            raise ValueError(f"{len(order)} samples are too few for {world} processes; set train.devices lower")
    # Samples that fill no batch are taken before sorting by length; otherwise they would always be the longest.
    order, rest = np.split(order, [len(order) // step * step])
    group = 8 * step
    batches: list[npt.NDArray[np.int64]] = []
    for first in range(0, len(order), group):
        part = order[first : first + group]
        part = part[np.argsort(num_clips[part], kind="stable")]
        batches += [part[i : i + step] for i in range(0, len(part), step)]
    rest = rest[: len(rest) // world * world]
    if last_batch == "keep" and len(rest):
        batches.append(rest)
    return [batches[int(i)][rank::world].tolist() for i in rng.permutation(len(batches))]


def in_order(count: int, batch_size: int) -> Iterator[list[int]]:
    """Yield batches of consecutive samples, the last one smaller."""
    for first in range(0, count, batch_size):
        yield list(range(first, min(first + batch_size, count)))
