"""Train the embedded backbone on the shapes world, contrastively, from frames and sentences.

A batch holds clips, and for each clip one true sentence and some sentences that differ in one attribute. The world
knows exactly which sentence is true of which clip, so the loss never pushes a true pair apart. Combinations of the test
split occur neither in clips nor in sentences.

A contrastive loss teaches the towers whether a thing is present, not how well it is seen: they forget size, contrast
and place. ``visibility_weight`` adds a loss on the visibility of the thing that a sentence names. A small head predicts
the visibility; the head is not part of the saved weights.

Legend: C clips, F frames, S side in pixels, E events of a clip (at most 2), N sentences, D width.
"""

from __future__ import annotations

import json
import logging
import math
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidelight.backbones.shapes.labels import (
    Floats,
    Ints,
    Labels,
    Pixels,
    event_matches,
    label_clips,
    make_sentence,
    matches,
    mirrored,
    sample_sentences,
)
from sidelight.backbones.shapes.model import ShapesBackboneConfig, TwoTowers
from sidelight.core.messages import duration_of
from sidelight.core.options import check_threads, check_types, require
from sidelight.core.timeline import Timeline
from sidelight.io.files import only_writer, replacing, sweep
from sidelight.io.processes import end_with_parent
from sidelight.io.runtime import tune_cpu
from sidelight.io.tensors import read_state, write_state
from sidelight.shapes import make_world
from sidelight.shapes.render import Painter
from sidelight.shapes.world import ATTRIBUTES, Scene, sample_scene
from sidelight.video.read import frames_at

_LOGGER = logging.getLogger(__name__)

_DRAWN_SEED = 500_000
"""Added to the seed of drawn scenes, so that none of them equals a scene of the videos."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """One training run of the embedded backbone."""

    world: str = "data/shapes"
    """Folder of the videos; missing videos are made."""
    seed: int = 0
    """Seed of the world and of the run."""
    videos: int = 800
    """Training videos."""
    drawn_scenes: int = 8000
    """Further scenes, of which a few clips each are drawn at the model's size without compression. Without them the
    video tower learns the few thousand objects of its videos by heart; it then confuses shapes most of all."""
    drawn_clips: int = 5
    """Clips of each drawn scene."""
    val_videos: int = 60
    """Validation videos."""
    steps: int = 1500
    """Optimiser steps."""
    batch: int = 128
    """Clips per step."""
    negatives: int = 3
    """False sentences per clip; each differs from the true one in one attribute."""
    visibility_weight: float = 0.0
    """Weight of the loss on the visibility of the thing that a sentence names; 0 leaves the loss out."""
    lr: float = 1e-3
    """Peak learning rate."""
    warmup: int = 100
    """Steps of linear warm-up; a cosine decay to 0 follows."""
    weight_decay: float = 0.05
    """AdamW's weight decay."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    threads: int = 0
    """CPU threads, and processes that draw; 0 leaves PyTorch's default, which OMP_NUM_THREADS sets."""
    init: str = ""
    """Folder of weights to start from, instead of random weights."""
    out: str = "runs/shapes-backbone"
    """Folder for the weights and for the state from which an interrupted run resumes."""
    model: ShapesBackboneConfig = ShapesBackboneConfig()
    """Sizes of the towers."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("videos", "val_videos", "steps", "batch", "drawn_clips"):
            require(self, getattr(self, name) >= 1, name, "at least 1")
        for name in ("seed", "drawn_scenes", "negatives", "visibility_weight", "warmup", "weight_decay"):
            require(self, getattr(self, name) >= 0, name, "at least 0")
        for name in ("lr", "clip_norm"):
            require(self, getattr(self, name) > 0, name, "above 0")
        check_threads(self)

    @property
    def processes(self) -> int:
        """Return the number of processes that draw."""
        return self.threads or torch.get_num_threads()


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Clips in memory."""

    frames: Pixels
    """uint8 RGB (C, F, S, S, 3)."""
    labels: Labels
    """The labels of the clips."""

    def with_event(self) -> Ints:
        """Return the indices of the clips that have an event."""
        return np.flatnonzero((self.labels.events[:, :, 0] >= 0).any(1))


def load_clips(config: PretrainConfig, split: str) -> Clips:
    """Return the clips of a split: every clip of the videos and, in the train split, the clips of drawn scenes.

    Missing videos are made. Videos, decoded clips and drawn clips are kept in ``world/split``.
    """
    videos = config.videos if split == "train" else config.val_videos
    folder = Path(config.world) / split
    scenes = [sample_scene(seed=config.seed, index=i, split=split) for i in range(videos)]
    model = config.model
    size = f"{model.resolution}-{model.frames_per_clip}-{model.clip_seconds:g}"
    cached = folder / f"clips-{config.seed}-{size}-{videos}.npy"
    if not cached.exists():
        make_world(folder, videos=videos, seed=config.seed, split=split, workers=config.processes, progress=True)
        _decode_scenes(scenes, folder, cached, model)
    parts = [(cached, Labels.joined([label_clips(scene, model) for scene in scenes]))]
    if split == "train" and config.drawn_scenes:
        parts.append(
            _drawn_scenes(config, folder / f"drawn-{config.seed}-{size}-{config.drawn_scenes}x{config.drawn_clips}")
        )
    # Read into memory once: batches are random, and a memory map would read from disk again and again.
    labels = Labels.joined([part_labels for _, part_labels in parts])
    frames = np.empty((len(labels), *_clip_shape(model)), np.uint8)
    start = 0
    for path, part_labels in parts:
        stop = start + len(part_labels)
        frames[start:stop] = np.load(path, mmap_mode="r")[: stop - start]
        start = stop
    return Clips(frames=frames, labels=labels)


def _clip_shape(model: ShapesBackboneConfig) -> tuple[int, int, int, int]:
    return (model.frames_per_clip, model.resolution, model.resolution, 3)


def _decode_scenes(scenes: list[Scene], folder: Path, out: Path, model: ShapesBackboneConfig) -> None:
    """Write the decoded clips of all videos to one .npy file."""
    from tqdm import tqdm

    size = (model.resolution, model.resolution)
    timelines = [Timeline(duration=s.duration, clip_seconds=model.clip_seconds) for s in scenes]
    shape = (sum(t.num_clips for t in timelines), *_clip_shape(model))
    with replacing(out) as beside:
        clips = np.lib.format.open_memmap(beside, mode="w+", dtype=np.uint8, shape=shape)
        row = 0
        for scene, timeline in tqdm(list(zip(scenes, timelines, strict=True)), unit="video", desc="decoding"):
            seconds = timeline.frame_seconds(model.frames_per_clip).reshape(-1)
            path = folder / "videos" / f"{scene.vid}.mp4"
            images = [frame.image for frame in frames_at(path, seconds.tolist(), size=size)]
            clips[row : row + timeline.num_clips] = np.stack(images).reshape(-1, *shape[1:])
            row += timeline.num_clips
        clips.flush()


def _drawn_scenes(config: PretrainConfig, cached: Path) -> tuple[Path, Labels]:
    """Return the file of the clips of many drawn scenes, and their labels, which are kept beside the file."""
    from tqdm import tqdm

    pixels_path, labels_path = cached.with_name(f"{cached.name}.npy"), cached.with_name(f"{cached.name}.npz")
    if not (pixels_path.exists() and labels_path.exists()):
        draw = partial(_draw_clips, config=config)
        row, parts = 0, []
        # Written to disk clip by clip, because all clips at once would be in memory twice. A scene may have fewer
        # clips with events than wanted; the rows left over at the end stay black and have no label.
        shape = (config.drawn_scenes * config.drawn_clips, *_clip_shape(config.model))
        with replacing(pixels_path) as pixels_beside, replacing(labels_path) as labels_beside:
            clips = np.lib.format.open_memmap(pixels_beside, mode="w+", dtype=np.uint8, shape=shape)
            with ProcessPoolExecutor(config.processes, initializer=end_with_parent) as pool:
                scenes = pool.map(draw, range(config.drawn_scenes), chunksize=50)
                for frames, labels in tqdm(scenes, total=config.drawn_scenes, unit="scene", desc="drawing clips"):
                    clips[row : row + len(frames)] = frames
                    parts.append(labels)
                    row += len(frames)
            clips.flush()
            joined = Labels.joined(parts)
            with open(labels_beside, "wb") as file:
                np.savez(file, events=joined.events, visible=joined.visible)
    with np.load(labels_path) as arrays:
        return pixels_path, Labels(events=arrays["events"], visible=arrays["visible"])


def _draw_clips(index: int, *, config: PretrainConfig) -> tuple[Pixels, Labels]:
    """Return frames and labels of a few clips of one scene, all with an event."""
    model = config.model
    scene = sample_scene(seed=config.seed + _DRAWN_SEED, index=index)
    painter = Painter(scene, model.resolution)
    labels = label_clips(scene, model, painter)
    rng = np.random.default_rng([config.seed, _DRAWN_SEED, index])
    with_event = np.flatnonzero(labels.events[:, 0, 0] >= 0)
    chosen = np.sort(rng.choice(with_event, size=min(config.drawn_clips, len(with_event)), replace=False))
    times = Timeline(duration=scene.duration, clip_seconds=model.clip_seconds).frame_seconds(model.frames_per_clip)
    frames = np.stack([np.stack([painter.frame(float(t)) for t in times[clip]]) for clip in chosen])
    return frames, labels[chosen]


def contrastive_loss(video_CD: Tensor, text_ND: Tensor, match_CN: Tensor, log_scale: Tensor) -> Tensor:
    """Return the InfoNCE loss with several positives, in both directions: a scalar.

    The log-probabilities of each row and each column are averaged over the true pairs. A column without a true clip
    serves only as a negative.
    """
    logits = video_CD @ text_ND.T * log_scale.clamp(max=4.6).exp()
    positive = match_CN.float()
    rows = -(F.log_softmax(logits, 1) * positive).sum(1) / positive.sum(1)
    positives_N = positive.sum(0)
    columns = -(F.log_softmax(logits, 0) * positive).sum(0) / positives_N.clamp(min=1)
    return rows.mean() + columns[positives_N > 0].mean()


_VISIBLE_MEAN, _VISIBLE_STD = 0.55, 0.15
"""Approximate mean and deviation of the visibility of the world's events; the loss normalises by them."""


def visibility_loss(
    predicted_CD: Tensor, text_ND: Tensor, events_CE3: Ints, visible_CE: Floats, sentences_N3: Ints
) -> Tensor:
    """Return the smooth L1 loss between predicted and true visibility of the thing that a sentence names: a scalar.

    Only true pairs count. If two events of a clip match, the better visible one counts, as for raters.

    Args:
        predicted_CD: output of the head; its product with the unit vector of a sentence is the prediction.
        text_ND: unit vectors of the sentences.
        events_CE3: attributes of the events of each clip.
        visible_CE: visibility of each event, 0 to 1.
        sentences_N3: attributes of the sentences.
    """
    match_CEN = event_matches(events_CE3, sentences_N3)
    best_CN = np.where(match_CEN, visible_CE[:, :, None], 0).max(1)
    target_CN = torch.from_numpy((best_CN - _VISIBLE_MEAN) / _VISIBLE_STD).to(predicted_CD)
    match_CN = torch.from_numpy(match_CEN.any(1)).to(predicted_CD.device)
    return F.smooth_l1_loss((predicted_CD @ text_ND.T)[match_CN], target_CN[match_CN])


def learning_rate(step: int, config: PretrainConfig) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine to 0."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    part = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * part))


def pretrain(config: PretrainConfig) -> dict[str, float]:
    """Train the towers, and write ``out/model.safetensors`` and ``out/config.json``.

    An interrupted run resumes from its last saved state (every 100 steps).

    Returns:
        The validation accuracies of :func:`validate`.

    Raises:
        ValueError: if ``init`` has other sizes, ``out`` holds the state of another configuration, or another process
            writes into it.
    """
    tune_cpu(config.threads)
    with only_writer(config.out, option="--out"):
        return _pretrain(config, Path(config.out))


def _pretrain(config: PretrainConfig, out: Path) -> dict[str, float]:
    sweep(out)
    torch.manual_seed(config.seed)
    training = _Training(config)
    first = training.resume(out / "state.pt")
    clips = load_clips(config, "train")
    pool, began, losses = clips.with_event(), time.perf_counter(), []
    for step in range(first, config.steps):
        losses.append(training.step(step, clips, pool))
        if (step + 1) % 25 == 0:
            rate = (step + 1 - first) / (time.perf_counter() - began)
            left = (config.steps - step - 1) / rate
            _LOGGER.info(
                f"step {step + 1}/{config.steps}  loss {np.mean(losses[-25:]):.3f}  "
                f"{rate:.2f} steps/s  {duration_of(left)} left"
            )
        if (step + 1) % 100 == 0:
            training.save(out / "state.pt", step + 1)
        if (step + 1) % 500 == 0:
            _LOGGER.info(training.validate())
    training.model.save(out)
    accuracies = training.validate()
    _LOGGER.info(f"{asdict(config)}\n{accuracies}")
    return accuracies


def _fixed_values(config: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a configuration that must not change within a run."""
    return {name: value for name, value in config.items() if name != "threads"}


class _Training:
    """The state of one training run: towers, head and optimiser."""

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.model = TwoTowers(config.model)
        if config.init:
            start = TwoTowers.load(config.init)
            if start.config != config.model:
                raise ValueError(f"{config.init} holds towers of other sizes than `model`; leave out one of the two")
            self.model.load_state_dict(start.state_dict())
        # Only training uses the head. Models that later read the towers learn by themselves what the levels hold.
        self.head = nn.Linear(config.model.width, config.model.joint)
        self.parameters = [*self.model.parameters(), *self.head.parameters()]
        self.optimiser = torch.optim.AdamW(self.parameters, weight_decay=config.weight_decay, betas=(0.9, 0.98))

    def resume(self, path: Path) -> int:
        """Load the saved state, if any, and return the step from which to go on."""
        if not path.exists():
            return 0
        saved = read_state(path, [*self._parts(), "step", "config"], advice="delete it to start anew")
        if _fixed_values(json.loads(saved["config"])) != _fixed_values(asdict(self.config)):
            raise ValueError(f"{path} is of a run with another configuration; remove it or choose another out")
        for name, part in self._parts().items():
            part.load_state_dict(saved[name])
        first = int(saved["step"])
        _LOGGER.info(f"going on from step {first} of {self.config.steps}")
        return first

    def save(self, path: Path, step: int) -> None:
        """Save the state after ``step`` steps."""
        states = {name: part.state_dict() for name, part in self._parts().items()}
        write_state({**states, "step": step, "config": json.dumps(asdict(self.config))}, path)

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "head": self.head, "optimiser": self.optimiser}

    def step(self, step: int, clips: Clips, pool: Ints) -> float:
        """Take one optimiser step on clips of the pool, and return the loss."""
        config, model = self.config, self.model
        # Seeded by the step, so that a resumed run draws the same batches as an uninterrupted run.
        rng = np.random.default_rng([config.seed, step])
        chosen = rng.choice(pool, size=min(config.batch, len(pool)), replace=False)
        labels = clips.labels[chosen]
        frames, events = mirrored(rng, clips.frames[chosen], labels.events)
        sentences, rows = sample_sentences(rng, events, config.negatives)
        ids, _ = model.tokenizer.batch(sentences, max_tokens=config.model.text_length)
        pooled, text = model.pool_video(torch.from_numpy(frames)), model.embed_text(ids)
        match = torch.from_numpy(matches(events, rows))
        loss = contrastive_loss(model.join_video(pooled), text, match, model.log_scale)
        if config.visibility_weight:
            predicted = self.head(pooled)
            loss = loss + config.visibility_weight * visibility_loss(predicted, text, events, labels.visible, rows)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(step, config)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, config.clip_norm)
        if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
            raise ValueError(
                f"the loss of step {step} is {loss.item()} and its gradient norm {norm.item()}, so training stopped "
                f"before this step changed the weights; the last state is in {config.out}; try a lower lr"
            )
        self.optimiser.step()
        return loss.item()

    def validate(self) -> dict[str, float]:
        """Return the result of :func:`validate` on the val split."""
        head = self.head if self.config.visibility_weight else None
        return validate(self.model, load_clips(self.config, "val"), head)


@torch.inference_mode()
def validate(
    model: TwoTowers, clips: Clips, head: nn.Linear | None = None, *, batch: int = 128, max_clips: int = 1500
) -> dict[str, float]:
    """Measure how often the towers rank the true one of all 480 combinations first, in clips with one event.

    Returns:
        Top-1 accuracies in percent: ``combination``, ``colour``, ``shape`` and ``action``. With a ``head``, also
        ``visibility``: Pearson's correlation in percent between predicted and true visibility of the true sentence.
    """
    model.eval()
    single = np.flatnonzero((clips.labels.events[:, 0, 0] >= 0) & (clips.labels.events[:, 1, 0] < 0))
    single = np.sort(np.random.default_rng(0).permutation(single)[:max_clips])
    truth, visible = clips.labels.events[single, 0], clips.labels.visible[single, 0]
    sizes = [len(table) for table in ATTRIBUTES]
    grid = np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), -1).reshape(-1, 3)
    rng = np.random.default_rng(0)
    ids, _ = model.tokenizer.batch([make_sentence(rng, row) for row in grid], max_tokens=model.config.text_length)
    text = model.embed_text(ids)
    batches = [clips.frames[single[i : i + batch]] for i in range(0, len(single), batch)]
    pooled = torch.cat([model.pool_video(torch.from_numpy(frames)) for frames in batches])
    best = (model.join_video(pooled) @ text.T).argmax(1)
    right = grid[best.numpy()] == truth
    model.train()
    hits = {"combination": right.all(1), **{name: right[:, i] for i, name in enumerate(("colour", "shape", "action"))}}
    scores = {name: float(hit.mean()) for name, hit in hits.items()}
    if head is not None:
        predicted = (head(pooled) * text[np.ravel_multi_index(tuple(truth.T), sizes)]).sum(1).numpy()
        scores["visibility"] = float(np.corrcoef(predicted, visible)[0, 1])
    return {name: round(100 * score, 1) for name, score in scores.items()}
