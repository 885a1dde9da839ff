"""Turn annotations and videos into batches of frames, for models that are trained from pixels.

A batch holds whole videos with all their queries, so that the queries of a video share what the backbone reads. Frames
come from a cache on the disk (:mod:`sidelight.features.frames`), sentences were encoded once. Everything random is
seeded by (seed, epoch, video or query), as in :mod:`sidelight.training.dataset`.

Legend: V videos, B queries, C chunks of a video, F frames of a chunk, S side, T clips, E width of a sentence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sidelight.backbones.common import run_tower
from sidelight.backbones.protocol import FrameSpec, SentenceEncoder, TrainableTower
from sidelight.core.batch import FrameBatch
from sidelight.core.timeline import Timeline
from sidelight.data.annotations import USUAL_CLIP_SECONDS, Annotation
from sidelight.data.labels import Binding
from sidelight.features.frames import FrameCache
from sidelight.training.augment import AugmentConfig, augment
from sidelight.training.dataset import AnnotatedVideos, pad_targets
from sidelight.video.workers import Sampling

_SENTENCES_AT_ONCE = 256


def frame_sampling(spec: FrameSpec) -> Sampling:
    """Return which frames of a video a model reads; a "clip" of the sampling is a chunk."""
    return Sampling(
        clip_seconds=spec.chunk_seconds,
        frames_per_clip=spec.tower.frames,
        resolution=spec.tower.resolution,
        resize=spec.resize,
    )


def encode_sentences(queries: Sequence[str], encoder: SentenceEncoder) -> dict[str, Tensor]:
    """Encode sentences, each once: sentence -> (E,)."""
    unique_queries = list(dict.fromkeys(queries))
    vectors: dict[str, Tensor] = {}
    for first in range(0, len(unique_queries), _SENTENCES_AT_ONCE):
        part = unique_queries[first : first + _SENTENCES_AT_ONCE]
        vectors.update(zip(part, encoder.encode(part).float().cpu(), strict=True))
    return vectors


_CHUNKS_AT_ONCE = 8


@torch.no_grad()
def encode_chunks(tower: TrainableTower, frames_CFSS3: Tensor) -> Tensor:
    """Return what a frozen backbone makes of the chunks of a video: means over space, (C * t, D), on the CPU."""
    spec, device = tower.spec, next(cast(nn.Module, tower).parameters()).device
    parts = []
    for part_NFSS3 in frames_CFSS3.split(_CHUNKS_AT_ONCE):
        places_NPD = run_tower(tower, part_NFSS3.to(device))[:, spec.prefix :]
        parts.append(torch.unflatten(places_NPD, 1, (spec.grid[0], -1)).mean(2).flatten(0, 1))
    return torch.cat(parts).cpu()


class FrameDataset(AnnotatedVideos):
    """The samples of annotations, with the frames of their videos.

    Args:
        annotations: one sample each.
        cache: has the frames of all videos.
        files: id -> file of each video.
        sentences: sentence -> vector, for all queries.
        clips_per_chunk: clips that the model divides a chunk into.
        seed: of positive clips and augmentation.
        targets: read the ground truth too.
        binding: how labels become targets.
        augmentation: random changes of the frames; none unless given.

    Raises:
        ValueError: if there are no annotations, or a window lies outside its video.
    """

    def __init__(
        self,
        annotations: Sequence[Annotation],
        cache: FrameCache,
        files: Mapping[str, str | Path],
        sentences: Mapping[str, Tensor],
        *,
        clips_per_chunk: int,
        seed: int = 0,
        targets: bool = True,
        binding: Binding = "plain",
        augmentation: AugmentConfig | None = None,
    ) -> None:
        if not annotations:
            raise ValueError("there are no annotations; expected at least one")
        self.cache, self.files, self.sentences, self.clips_per_chunk = cache, files, sentences, clips_per_chunk
        self._augmentation = AugmentConfig() if augmentation is None else augmentation
        clip_seconds = cache.sampling.clip_seconds / clips_per_chunk
        vids = dict.fromkeys(a.vid for a in annotations)
        timelines = {vid: Timeline(duration=cache.duration(files[vid]), clip_seconds=clip_seconds) for vid in vids}
        # Labels may be as late as on features of usual clips, which are longer than those of a video backbone.
        late_clips = max(1, math.ceil(USUAL_CLIP_SECONDS / clip_seconds))
        super().__init__(annotations, timelines, late_clips=late_clips, seed=seed, targets=targets, binding=binding)
        self._rows: dict[str, list[int]] = {vid: [] for vid in vids}
        for row, annotation in enumerate(self.annotations):
            self._rows[annotation.vid].append(row)

    def rows_of_videos(self) -> dict[str, list[int]]:
        """Return the samples of each video, by its id."""
        return self._rows

    def frames_of_videos(self) -> npt.NDArray[np.int64]:
        """Return the number of frames of each video, in the order of :meth:`rows_of_videos`."""
        frames = self.cache.sampling.frames_per_clip
        return np.array([chunks_of(self._timelines[vid], self.clips_per_chunk) * frames for vid in self._rows])

    def batch(self, indices: Sequence[int], epoch: int = 0) -> FrameBatch:
        """Return samples as one batch, each of their videos once."""
        number = {vid: v for v, vid in enumerate(dict.fromkeys(self.annotations[i].vid for i in indices))}
        videos = [self._video(vid, epoch) for vid in number]
        rows = [self.truth(i, epoch) for i in indices] if self.targets else []
        batch = frame_batch(
            videos,
            [self._timelines[vid] for vid in number],
            torch.stack([self.sentences[self.annotations[i].query] for i in indices]),
            torch.tensor([number[self.annotations[i].vid] for i in indices]),
            clips_per_chunk=self.clips_per_chunk,
        )
        return replace(batch, targets=pad_targets(rows, batch.video_mask_VT.shape[1])) if rows else batch

    def _video(self, vid: str, epoch: int) -> npt.NDArray[np.uint8]:
        pixels_CFSS3 = self.cache.open(self.files[vid]).pixels_CFSS3
        queries = [self.annotations[row].query for row in self._rows[vid]]
        return augment(pixels_CFSS3, self._augmentation, seed=self.seed, epoch=epoch, vid=vid, queries=queries)


def chunks_of(timeline: Timeline, clips_per_chunk: int) -> int:
    """Return the number of chunks that the clips of a video fill."""
    return -(-timeline.num_clips // clips_per_chunk)


def frame_batch(
    videos: Sequence[npt.NDArray[np.uint8]],
    timelines: Sequence[Timeline],
    sentences_BE: Tensor,
    video_of_B: Tensor,
    *,
    clips_per_chunk: int,
) -> FrameBatch:
    """Return videos and queries about them as one batch without targets, padded to the longest video.

    Args:
        videos: frames of each, (C, F, S, S, 3).
        timelines: clips of each.
        sentences_BE: vectors of the queries.
        video_of_B: number of each query's video.
        clips_per_chunk: clips of a chunk.
    """
    counts = [chunks_of(timeline, clips_per_chunk) for timeline in timelines]
    frames_VCFSS3 = torch.zeros(len(videos), max(counts), *videos[0].shape[1:], dtype=torch.uint8)
    video_mask_VT = torch.zeros(len(videos), max(counts) * clips_per_chunk, dtype=torch.bool)
    for v, (pixels_CFSS3, count, timeline) in enumerate(zip(videos, counts, timelines, strict=True)):
        frames_VCFSS3[v, :count].numpy()[:] = pixels_CFSS3[:count]
        video_mask_VT[v, : timeline.num_clips] = True
    return FrameBatch(
        frames_VCFSS3=frames_VCFSS3, video_mask_VT=video_mask_VT, sentences_BE=sentences_BE, video_of_B=video_of_B
    )


def epoch_videos(
    frames: npt.NDArray[np.int64],
    *,
    epoch: int,
    frames_per_step: int,
    videos_per_step: int,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
) -> list[list[int]]:
    """Return the videos of each step of one epoch, for this process.

    Videos are shuffled, then taken one after another until the next one would exceed a limit. All processes get the
    same number of steps; videos of up to ``world - 1`` steps are left out, others in each epoch.

    Args:
        frames: frames of each video.
        epoch: number of the epoch, from 0.
        frames_per_step: most frames of a step, over all processes; a longer video is a step of its own.
        videos_per_step: most videos of a step, over all processes.
        seed: of the order.
        rank: number of this process.
        world: number of processes.

    Raises:
        ValueError: if there are fewer steps than processes.
    """
    most_frames, most_videos = frames_per_step / world, max(1, videos_per_step // world)
    steps: list[list[int]] = []
    total = 0
    for video in np.random.default_rng([seed, epoch]).permutation(len(frames)).tolist():
        if not steps or total + frames[video] > most_frames or len(steps[-1]) == most_videos:
            steps.append([])
            total = 0
        steps[-1].append(video)
        total += int(frames[video])
    count = len(steps) // world
    if not count:
        raise ValueError(
            f"{len(frames)} videos are too few for {world} processes; set train.devices or train.frames_per_step lower"
        )
    return steps[rank : count * world : world]
