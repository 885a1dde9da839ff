"""Predict moments for annotations, for a batch of videos, or for one video of any length.

Legend: B batch, K levels, T clips, L tokens of a query, D width, C chunks of a video, F frames of a chunk, S side,
E width of a sentence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from sidelight.core.batch import Batch
from sidelight.core.grounding import Grounding
from sidelight.core.timeline import Timeline, longest_input
from sidelight.data.annotations import Submission
from sidelight.features.frames import VideoFrames
from sidelight.features.growing import drop_pages
from sidelight.features.store import HalfFeatures, VideoFeatures
from sidelight.io.runtime import release_memory
from sidelight.models.decode.answer import AnswerConfig
from sidelight.models.decode.windows import merge_windows
from sidelight.training.dataset import GroundingDataset, in_order
from sidelight.training.frames import FrameDataset, frame_batch

if TYPE_CHECKING:
    from torch import nn

    from sidelight.models.scada import Scada

_WINDOWS_AT_ONCE = 32
_WINDOW_BYTES_AT_ONCE = 128 << 20
"""Bytes of the features of a batch of windows: five windows of 75 clips with all tokens of CLIP ViT-B/32."""
VECTORS_AT_ONCE = 2**16
"""Largest number of vectors of one level (samples x clips x tokens) in a batch. Without this limit, 64 long videos with
all their tokens would need tens of gigabytes.
"""
QUERY_CHUNKS_AT_ONCE = 512
"""Largest number of chunks times queries in a batch of a model that reads frames, whose adapters may keep the tokens of
each chunk for each query: 512 take 0.6 GB with VideoMAE-S at 160 pixels.
"""


@torch.inference_mode()
def ground_batch(
    model: nn.Module,
    batch: Batch,
    timelines: Sequence[Timeline],
    queries: Sequence[str],
    config: AnswerConfig,
    *,
    videos: Sequence[str | None] | None = None,
) -> list[Grounding]:
    """Return the groundings of a batch of videos that the model reads whole.

    Args:
        model: the side-tuner.
        batch: features of B samples.
        timelines: of each sample's video.
        queries: the sentence of each sample.
        config: how predictions become moments.
        videos: names of the videos, for the groundings.
    """
    return config.decode(model(_beside(batch, model)), timelines, queries, videos)


@torch.inference_mode()
def ground_long(
    model: nn.Module,
    features: VideoFeatures,
    text_KLD: HalfFeatures,
    query: str,
    config: AnswerConfig,
    *,
    window_clips: int,
    video: str | None = None,
) -> Grounding:
    """Return the grounding of one video of any length: read its windows in batches, then merge their answers.

    Only the features of one batch of windows are in memory, if the features are mapped from a file.

    Args:
        model: the side-tuner.
        features: of the video.
        text_KLD: features of the query.
        query: the sentence.
        config: how predictions become moments.
        window_clips: clips of a window; a video of hardly more (:func:`longest_input`) is one window.
        video: name of the video, for the grounding.
    """
    windows = features.timeline.windows(window_clips)
    clips = windows[0][1].num_clips
    most = (
        _WINDOW_BYTES_AT_ONCE // features.video_KTD[:, :clips].nbytes,
        VECTORS_AT_ONCE // (clips * tokens_of(features)),
    )
    batches = math.ceil(len(windows) / max(1, min(_WINDOWS_AT_ONCE, *most)))
    starts = features.timeline.clip_spans()[:, 0]
    answers: list[tuple[float, Grounding]] = []
    for number in range(batches):
        release_memory()  # answers that stay would otherwise break up the memory of the batches
        part = windows[len(windows) * number // batches : len(windows) * (number + 1) // batches]
        batch = _windows_batch(features, text_KLD, [clip for clip, _ in part], clips)
        sentences, names = [query] * len(part), [video] * len(part)
        groundings = ground_batch(model, batch, [window for _, window in part], sentences, config, videos=names)
        answers += [(float(starts[clip]), answer) for (clip, _), answer in zip(part, groundings, strict=True)]
        del batch  # before the next one is made
    if len(answers) == 1:
        return answers[0][1]
    return merge_windows(answers, features.timeline, config)


def _beside(batch: Batch, model: nn.Module) -> Batch:
    """Return a batch on the device of a model's weights; the batch itself for a model without weights."""
    weight = next(model.parameters(), None)
    return batch if weight is None else batch.to(weight.device)


def _windows_batch(features: VideoFeatures, text_KLD: HalfFeatures, first_clips: list[int], clips: int) -> Batch:
    """Return windows of ``clips`` clips as one batch. Video features stay float16: models convert what they read."""
    count, text_KBLD = len(first_clips), torch.from_numpy(np.array(text_KLD, np.float32)).unsqueeze(1)
    video_KBTD = np.stack([features.video_KTD[:, clip : clip + clips] for clip in first_clips], axis=1)
    drop_pages(features.video_KTD)
    return Batch(
        video_KBTD=torch.from_numpy(video_KBTD),
        video_mask_BT=torch.ones(count, clips, dtype=torch.bool),
        text_KBLD=text_KBLD.expand(-1, count, -1, -1),
        text_mask_BL=torch.ones(count, text_KBLD.shape[2], dtype=torch.bool),
    )


def tokens_of(features: VideoFeatures) -> int:
    """Return the number of vectors of each clip: 1, or P where the backbone's tokens were not pooled."""
    return features.video_KTD.shape[2] if features.video_KTD.ndim == 4 else 1


def predict(
    model: nn.Module,
    dataset: GroundingDataset,
    config: AnswerConfig,
    *,
    window_clips: int = 75,
    batch_size: int = 64,
    progress: bool = False,
) -> list[Submission]:
    """Return a prediction for every annotation of a dataset, in its order.

    The features of one batch are in memory at a time, besides those that the dataset itself keeps.

    Args:
        model: the side-tuner.
        dataset: the samples.
        config: how predictions become moments.
        window_clips: longest input of the model, in clips.
        batch_size: samples of a batch; fewer where videos are long (``VECTORS_AT_ONCE``).
        progress: show a progress bar.
    """
    from tqdm import tqdm

    was_training = model.training
    model.eval()
    order = sorted(range(len(dataset)), key=lambda i: dataset.timeline(i).num_clips)
    submissions: dict[int, Submission] = {}
    most_vectors = dataset.timeline(order[-1]).num_clips * dataset.tokens()
    batch_size = max(1, min(batch_size, VECTORS_AT_ONCE // most_vectors))
    with tqdm(total=len(order), unit="query", desc="predicting", disable=not progress) as bar:
        for rows in in_order(len(order), batch_size):
            indices = [order[row] for row in rows]
            annotations = [dataset.annotations[i] for i in indices]
            timelines, queries = [dataset.timeline(i) for i in indices], [a.query for a in annotations]
            if timelines[-1].num_clips <= longest_input(window_clips):
                groundings = ground_batch(model, dataset.batch(indices), timelines, queries, config)
            else:
                groundings = []
                for i, timeline, query in zip(indices, timelines, queries, strict=True):
                    sample = dataset.sample(i)
                    features = VideoFeatures(video_KTD=sample.video_KTD, timeline=timeline)
                    groundings.append(
                        ground_long(model, features, sample.text_KLD, query, config, window_clips=window_clips)
                    )
            for i, annotation, grounding in zip(indices, annotations, groundings, strict=True):
                submissions[i] = Submission.from_grounding(annotation, grounding)
            bar.update(len(indices))
    model.train(was_training)
    return [submissions[i] for i in range(len(dataset))]


@torch.inference_mode()
def ground_frames(
    model: Scada,
    frames: VideoFrames,
    sentences_BE: torch.Tensor,
    queries: Sequence[str],
    config: AnswerConfig,
    *,
    clip_seconds: float,
    window_clips: int,
    video: str | None = None,
) -> list[Grounding]:
    """Return the grounding of each query in one video of any length, from its frames.

    The queries share the part of the backbone that does not read them, unless they are many and the window is long.

    Args:
        model: a model that reads frames.
        frames: of the video.
        sentences_BE: vectors of the queries.
        queries: the sentences.
        config: how predictions become moments.
        clip_seconds: length of a clip.
        window_clips: clips of a window, rounded down to whole chunks, at least two.
        video: name of the video, for the groundings.
    """
    timeline = Timeline(duration=frames.duration, clip_seconds=clip_seconds)
    per_chunk, device = model.clips_per_chunk, next(model.parameters()).device
    by_chunks = Timeline(duration=frames.duration, clip_seconds=clip_seconds * per_chunk)
    starts = by_chunks.clip_spans()[:, 0]
    answers: list[list[tuple[float, Grounding]]] = [[] for _ in queries]
    for first, window in by_chunks.windows(max(2, window_clips // per_chunk)):
        part = Timeline(duration=window.duration, clip_seconds=clip_seconds)
        pixels_CFSS3 = frames.pixels_CFSS3[first : first + window.num_clips]
        most = max(1, QUERY_CHUNKS_AT_ONCE // len(pixels_CFSS3))
        for start in range(0, len(queries), most):
            names = queries[start : start + most]
            video_of_B = torch.zeros(len(names), dtype=torch.long)
            rows_BE = sentences_BE[start : start + most]
            batch = frame_batch([pixels_CFSS3], [part], rows_BE, video_of_B, clips_per_chunk=per_chunk)
            groundings = config.decode(model(batch.to(device)), [part] * len(names), names, [video] * len(names))
            for number, grounding in enumerate(groundings, start):
                answers[number].append((float(starts[first]), grounding))
    return [windows[0][1] if len(windows) == 1 else merge_windows(windows, timeline, config) for windows in answers]


def predict_frames(
    model: Scada, dataset: FrameDataset, config: AnswerConfig, *, window_clips: int, progress: bool = False
) -> list[Submission]:
    """Return a prediction for every annotation of a dataset of frames, in its order; video by video.

    Args:
        model: a model that reads frames.
        dataset: the samples.
        config: how predictions become moments.
        window_clips: longest input of the model, in clips.
        progress: show a progress bar.
    """
    from tqdm import tqdm

    was_training = model.training
    model.eval()
    submissions: dict[int, Submission] = {}
    with tqdm(total=len(dataset), unit="query", desc="predicting", disable=not progress) as bar:
        for vid, rows in dataset.rows_of_videos().items():
            annotations = [dataset.annotations[row] for row in rows]
            queries = [a.query for a in annotations]
            groundings = ground_frames(
                model,
                dataset.cache.open(dataset.files[vid]),
                torch.stack([dataset.sentences[query] for query in queries]),
                queries,
                config,
                clip_seconds=dataset.timeline(rows[0]).clip_seconds,
                window_clips=window_clips,
            )
            for row, annotation, grounding in zip(rows, annotations, groundings, strict=True):
                submissions[row] = Submission.from_grounding(annotation, grounding)
            bar.update(len(rows))
    model.train(was_training)
    return [submissions[row] for row in range(len(dataset))]
