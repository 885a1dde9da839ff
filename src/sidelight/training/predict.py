"""Predict moments for annotations, for a batch of videos, or for one video of any length.

Legend: B batch, K levels, T clips, L tokens of a query, D width, C chunks of a video, F frames of a chunk, S side,
E width of a sentence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
    """Return the grounding of one video of any length for one query; see :func:`ground_queries`."""
    return next(ground_queries(model, features, [text_KLD], [query], config, window_clips=window_clips, video=video))


def ground_queries(
    model: nn.Module,
    features: VideoFeatures,
    texts: Sequence[HalfFeatures],
    queries: Sequence[str],
    config: AnswerConfig,
    *,
    window_clips: int,
    video: str | None = None,
) -> Iterator[Grounding]:
    """Yield the grounding of one video of any length for each query.

    Each window of the video is read once for each query, in batches; then the answers of the windows are merged. Only
    the features of one batch are in memory, if those of the video are mapped from a file.

    Args:
        model: the side-tuner.
        features: of the video.
        texts: (K, L, D_t) features of each query.
        queries: the sentences.
        config: how predictions become moments.
        window_clips: clips of a window; a video of hardly more (``longest_input``) is one window.
        video: name of the video, for the groundings.
    """
    windows = features.timeline.windows(window_clips)
    clips = windows[0][1].num_clips
    most = (
        _WINDOW_BYTES_AT_ONCE // features.video_KTD[:, :clips].nbytes,
        VECTORS_AT_ONCE // (clips * tokens_of(features)),
    )
    at_once = max(1, min(_WINDOWS_AT_ONCE, *most))
    # Batches of one size for each query, or several queries a batch where one has few windows.
    group = max(1, at_once // len(windows))
    starts = features.timeline.clip_spans()[:, 0]
    for first in range(0, len(queries), group):
        rows = range(first, min(first + group, len(queries)))
        tasks = [(row, window) for row in rows for window in windows]
        answers: dict[int, list[tuple[float, Grounding]]] = {row: [] for row in rows}
        batches = math.ceil(len(tasks) / at_once)
        for number in range(batches):
            part = tasks[len(tasks) * number // batches : len(tasks) * (number + 1) // batches]
            for (row, (clip, _)), answer in zip(
                part, _ground_windows(model, features, texts, queries, part, config, video), strict=True
            ):
                answers[row].append((float(starts[clip]), answer))
        for row in rows:
            of_query = answers.pop(row)
            yield of_query[0][1] if len(of_query) == 1 else merge_windows(of_query, features.timeline, config)


_Task = tuple[int, tuple[int, Timeline]]
"""Number of a query, and a window: its first clip and its timeline."""


def _ground_windows(
    model: nn.Module,
    features: VideoFeatures,
    texts: Sequence[HalfFeatures],
    queries: Sequence[str],
    tasks: Sequence[_Task],
    config: AnswerConfig,
    video: str | None,
) -> list[Grounding]:
    """Return the grounding of each window for its query, as one batch."""
    release_memory()  # answers that stay would otherwise break up the memory of the batches
    clips = tasks[0][1][1].num_clips
    batch = _windows_batch(features, [texts[row] for row, _ in tasks], [clip for _, (clip, _) in tasks], clips)
    sentences, names = [queries[row] for row, _ in tasks], [video] * len(tasks)
    return ground_batch(model, batch, [window for _, (_, window) in tasks], sentences, config, videos=names)


def _beside(batch: Batch, model: nn.Module) -> Batch:
    """Return a batch on the device of a model's weights; the batch itself for a model without weights."""
    weight = next(model.parameters(), None)
    return batch if weight is None else batch.to(weight.device)


def _windows_batch(features: VideoFeatures, texts: Sequence[HalfFeatures], first_clips: list[int], clips: int) -> Batch:
    """Return windows of ``clips`` clips, each with its query, as one batch.

    Video features stay float16: models convert what they read.
    """
    count, tokens = len(first_clips), max(text_KLD.shape[1] for text_KLD in texts)
    text_KBLD = np.zeros((len(texts[0]), count, tokens, texts[0].shape[2]), np.float32)
    text_mask_BL = np.zeros((count, tokens), bool)
    for i, text_KLD in enumerate(texts):
        text_KBLD[:, i, : text_KLD.shape[1]], text_mask_BL[i, : text_KLD.shape[1]] = text_KLD, True
    video_KBTD = np.stack([features.video_KTD[:, clip : clip + clips] for clip in first_clips], axis=1)
    for mapped in (features.video_KTD, texts[0]):  # all texts are often parts of one file
        drop_pages(mapped)
    return Batch(
        video_KBTD=torch.from_numpy(video_KBTD),
        video_mask_BT=torch.ones(count, clips, dtype=torch.bool),
        text_KBLD=torch.from_numpy(text_KBLD),
        text_mask_BL=torch.from_numpy(text_mask_BL),
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
