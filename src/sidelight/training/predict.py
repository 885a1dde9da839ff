"""Predict for annotations, or for a batch of videos of any length: the workflow behind `sidelight predict`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from sidelight.core.batch import Batch
from sidelight.core.grounding import Grounding
from sidelight.core.timeline import Timeline
from sidelight.data.annotations import Submission
from sidelight.models.decode.answer import AnswerConfig
from sidelight.models.decode.windows import merge_windows
from sidelight.training.dataset import GroundingDataset, in_order

_WINDOWS_AT_ONCE = 32
VECTORS_AT_ONCE = 2**16
"""Vectors of one level (clips times tokens) that are predicted from at once: with every token of long videos, a fixed
number of samples would need tens of gigabytes.
"""

if TYPE_CHECKING:
    from torch import nn


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
    """Groundings of a batch of videos of any length.

    Videos of up to ``window_clips`` clips are read at once; in a longer one, overlapping windows are read and
    merged without seams.
    """
    device = next(model.parameters()).device
    longest = batch.video_mask_BT.shape[1]
    if longest <= window_clips:
        return config.decode(model(batch.to(device)), timelines, queries, videos)
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
    """One sample of any length: its windows are read as batches, then merged."""
    windows = timeline.windows(window_clips)
    tokens = sample.video_KBTD.shape[3] if sample.video_KBTD.ndim == 5 else 1
    at_once = max(1, min(_WINDOWS_AT_ONCE, VECTORS_AT_ONCE // (window_clips * tokens)))
    device = next(model.parameters()).device
    answers: list[tuple[float, Grounding]] = []
    for first in range(0, len(windows), at_once):
        part = windows[first : first + at_once]
        count = len(part)
        clips = part[0][1].num_clips
        starts = torch.tensor([start for start, _ in part])
        rows = starts[:, None] + torch.arange(clips)
        cut = Batch(
            video_KBTD=sample.video_KBTD[:, 0][:, rows],
            video_mask_BT=torch.ones(count, clips, dtype=torch.bool),
            text_KBLD=sample.text_KBLD.expand(-1, count, -1, -1),
            text_mask_BL=sample.text_mask_BL.expand(count, -1),
        )
        inside = [window for _, window in part]
        decoded = config.decode(model(cut.to(device)), inside, [query] * count, [video] * count)
        answers += [(float(timeline.clip_spans()[start, 0]), d) for (start, _), d in zip(part, decoded, strict=True)]
    if len(answers) == 1:
        return answers[0][1]
    return merge_windows(answers, timeline, config)


def _sample(batch: Batch, b: int) -> Batch:
    """One sample of a batch, without its padding."""
    here, clips, tokens = slice(b, b + 1), int(batch.video_mask_BT[b].sum()), int(batch.text_mask_BL[b].sum())
    return Batch(
        video_KBTD=batch.video_KBTD[:, here, :clips],
        video_mask_BT=batch.video_mask_BT[here, :clips],
        text_KBLD=batch.text_KBLD[:, here, :tokens],
        text_mask_BL=batch.text_mask_BL[here, :tokens],
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
    """Predictions for every annotation of a dataset, in its order.

    ``batch_size`` samples at once, or fewer where they are long (``VECTORS_AT_ONCE``).
    """
    from tqdm import tqdm

    was_training = model.training
    model.eval()
    order = sorted(range(len(dataset)), key=lambda i: dataset.timeline(i).num_clips)
    found: dict[int, Submission] = {}
    longest = dataset.timeline(order[-1]).num_clips * dataset.tokens()
    batch_size = max(1, min(batch_size, VECTORS_AT_ONCE // longest))
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
                found[i] = Submission.from_grounding(annotation, grounding)
            bar.update(len(indices))
    model.train(was_training)
    return [found[i] for i in range(len(dataset))]
