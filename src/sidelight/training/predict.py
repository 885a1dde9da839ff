"""Predict moments for annotations, or for a batch of videos of any length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from sidelight.core.batch import Batch
from sidelight.core.grounding import Grounding
from sidelight.core.timeline import Timeline, longest_input
from sidelight.data.annotations import Submission
from sidelight.io.runtime import release_memory
from sidelight.models.decode.answer import AnswerConfig
from sidelight.models.decode.windows import merge_windows
from sidelight.training.dataset import GroundingDataset, in_order

if TYPE_CHECKING:
    from torch import nn

_WINDOWS_AT_ONCE = 32
VECTORS_AT_ONCE = 2**16
"""Largest number of vectors of one level (samples x clips x tokens) in a batch. Without this limit, 64 long videos with
all their tokens would need tens of gigabytes.
"""


@torch.inference_mode()
def ground_batch(
    model: nn.Module,
    batch: Batch,
    timelines: Sequence[Timeline],
    queries: Sequence[str],
    config: AnswerConfig,
    *,
    window_clips: int,
    videos: Sequence[str | None] | None = None,
) -> list[Grounding]:
    """Return the groundings of a batch of videos of any length.

    Videos of up to ``window_clips`` clips, or a few more (:func:`longest_input`), are read whole. Longer ones are read
    in overlapping windows, whose answers are merged without seams.

    Args:
        model: the side-tuner.
        batch: features of B samples.
        timelines: of each sample's video.
        queries: the sentence of each sample.
        config: how predictions become moments.
        window_clips: longest input of the model, in clips.
        videos: names of the videos, for the groundings.
    """
    longest = batch.video_mask_BT.shape[1]
    if longest <= longest_input(window_clips):
        return config.decode(model(_beside(batch, model)), timelines, queries, videos)
    names = videos or [None] * batch.size
    return [
        _ground_long(model, _sample(batch, b), timelines[b], queries[b], config, window_clips, names[b])
        for b in range(batch.size)
    ]


def _ground_long(
    model: nn.Module,
    sample: Batch,
    timeline: Timeline,
    query: str,
    config: AnswerConfig,
    window_clips: int,
    video: str | None,
) -> Grounding:
    """Return the grounding of one sample of any length: read its windows in batches, then merge their answers."""
    windows = timeline.windows(window_clips)
    tokens = sample.video_KBTD.shape[3] if sample.video_KBTD.ndim == 5 else 1
    at_once = max(1, min(_WINDOWS_AT_ONCE, VECTORS_AT_ONCE // (window_clips * tokens)))
    starts = timeline.clip_spans()[:, 0]
    answers: list[tuple[float, Grounding]] = []
    for first in range(0, len(windows), at_once):
        release_memory()  # answers that stay would otherwise break up the memory of the batches
        part = windows[first : first + at_once]
        count, clips = len(part), part[0][1].num_clips
        first_clips = [clip for clip, _ in part]
        window_timelines = [window for _, window in part]
        clips_BT = torch.tensor(first_clips)[:, None] + torch.arange(clips)
        batch = Batch(
            video_KBTD=sample.video_KBTD[:, 0][:, clips_BT].float(),
            video_mask_BT=torch.ones(count, clips, dtype=torch.bool),
            text_KBLD=sample.text_KBLD.expand(-1, count, -1, -1),
            text_mask_BL=sample.text_mask_BL.expand(count, -1),
        )
        groundings = config.decode(model(_beside(batch, model)), window_timelines, [query] * count, [video] * count)
        answers += [(float(starts[clip]), answer) for clip, answer in zip(first_clips, groundings, strict=True)]
    if len(answers) == 1:
        return answers[0][1]
    return merge_windows(answers, timeline, config)


def _beside(batch: Batch, model: nn.Module) -> Batch:
    """Return a batch on the device of a model's weights; the batch itself for a model without weights."""
    weight = next(model.parameters(), None)
    return batch if weight is None else batch.to(weight.device)


def _sample(batch: Batch, b: int) -> Batch:
    """Return one sample of a batch, without its padding."""
    row, clips, tokens = slice(b, b + 1), int(batch.video_mask_BT[b].sum()), int(batch.text_mask_BL[b].sum())
    return Batch(
        video_KBTD=batch.video_KBTD[:, row, :clips],
        video_mask_BT=batch.video_mask_BT[row, :clips],
        text_KBLD=batch.text_KBLD[:, row, :tokens],
        text_mask_BL=batch.text_mask_BL[row, :tokens],
    )


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
            groundings = ground_batch(
                model,
                dataset.batch(indices),
                [dataset.timeline(i) for i in indices],
                [a.query for a in annotations],
                config,
                window_clips=window_clips,
            )
            for i, annotation, grounding in zip(indices, annotations, groundings, strict=True):
                submissions[i] = Submission.from_grounding(annotation, grounding)
            bar.update(len(indices))
    model.train(was_training)
    return [submissions[i] for i in range(len(dataset))]
