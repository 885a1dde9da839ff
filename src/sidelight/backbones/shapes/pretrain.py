"""Train the embedded backbone on the shapes world, contrastively, from pixels and sentences.

A batch holds clips, and for each clip a sentence that is true of it and some that differ in one attribute. Which
sentence is true of which clip is known exactly, so a pair that happens to fit is never pushed apart. Combinations
that are kept for the test split occur neither as clips nor as sentences.

A contrastive loss asks whether a thing is there, not how well it is seen, and forgets size, contrast and place. So
the towers may also be taught the visibility of what a sentence names (``visibility_weight``), by a small head that
is not part of the weights.

Legend: C clips, F frames, S side, E events of a clip (at most 2), N sentences; attributes are indices into the
colours, shapes and actions, -1 for "not named" or "no event".
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidelight.backbones.shapes.model import ShapesBackboneConfig, TwoTowers
from sidelight.core.timeline import Timeline
from sidelight.io.files import replacing
from sidelight.io.runtime import tune_cpu
from sidelight.shapes import make_world
from sidelight.shapes.language import phrase
from sidelight.shapes.render import Painter, visibility
from sidelight.shapes.world import ACTIONS, COLOURS, HELD_OUT, SHAPES, Scene, sample_scene
from sidelight.video.read import frames_at

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
_DRAWN_SEED = 500_000
_TABLES: tuple[tuple[str, ...], ...] = (tuple(COLOURS), SHAPES, ACTIONS)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """One training run of the embedded backbone."""

    world: str = "data/shapes"
    """Folder of the videos; they are made there if they are missing."""
    seed: int = 0
    """Seed of the world and of the run."""
    videos: int = 800
    """Training videos."""
    drawn_scenes: int = 8000
    """Further scenes of which a few clips each are drawn straight at the model's size, never compressed: without
    them a tower learns the few thousand objects of its videos by heart, and shapes worst of all."""
    drawn_clips: int = 5
    """Clips of each of them."""
    val_videos: int = 60
    """Validation videos."""
    steps: int = 1500
    """Optimiser steps."""
    batch: int = 128
    """Clips per step."""
    negatives: int = 3
    """Sentences per clip that differ in one attribute."""
    visibility_weight: float = 0.0
    """Weight of the loss by which the towers learn how well what a sentence names is seen; 0 leaves it out."""
    lr: float = 1e-3
    """Peak learning rate."""
    warmup: int = 100
    """Steps of linear warm-up; a cosine to 0 follows."""
    weight_decay: float = 0.05
    """AdamW's weight decay."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    threads: int = 2
    """CPU threads."""
    init: str = ""
    """Folder of weights to start from, instead of random ones."""
    out: str = "runs/shapes-backbone"
    """Folder for the weights, the log and the state to resume from."""
    model: ShapesBackboneConfig = ShapesBackboneConfig()
    """Sizes of the towers."""

    def __post_init__(self) -> None:
        for field in ("videos", "val_videos", "steps", "batch", "threads"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be 1 or more, got {getattr(self, field)}")
        if self.visibility_weight < 0:
            raise ValueError(f"visibility_weight must be 0 or more, got {self.visibility_weight}")


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What happens in each clip: the attributes (C, 2, 3) of up to two events, and how well each is seen (C, 2)."""

    events: Ints
    visible: Floats

    def __len__(self) -> int:
        return len(self.events)

    def __getitem__(self, rows: Ints) -> Labels:
        return Labels(events=self.events[rows], visible=self.visible[rows])

    @classmethod
    def joined(cls, parts: list[Labels]) -> Labels:
        """The labels of several parts, one after the other."""
        return cls(events=np.concatenate([p.events for p in parts]), visible=np.concatenate([p.visible for p in parts]))


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Clips in memory: pictures uint8 (C, F, S, S, 3) and their labels."""

    frames: npt.NDArray[np.uint8]
    labels: Labels

    def with_event(self) -> Ints:
        """Indices of the clips in which something happens."""
        return np.flatnonzero((self.labels.events[:, :, 0] >= 0).any(1))


def load_clips(config: PretrainConfig, split: str) -> Clips:
    """Make the world if need be, decode every clip of it, and keep both in ``world/split``.

    The train split also gets the clips of ``drawn_scenes``.
    """
    videos = config.videos if split == "train" else config.val_videos
    folder = Path(config.world) / split
    scenes = [sample_scene(seed=config.seed, index=i, split=split) for i in range(videos)]
    model = config.model
    size = f"{model.resolution}-{model.frames_per_clip}-{model.clip_seconds:g}"
    cached = folder / f"clips-{config.seed}-{size}-{videos}.npy"
    if not cached.exists():
        make_world(folder, videos=videos, seed=config.seed, split=split, workers=config.threads, progress=True)
        _decode(scenes, folder, cached, model)
    parts = [(cached, Labels.joined([_labels_of(scene, model) for scene in scenes]))]
    if split == "train" and config.drawn_scenes:
        drawn = folder / f"drawn-{config.seed}-{size}-{config.drawn_scenes}x{config.drawn_clips}"
        parts.append(_drawn(config, drawn))
    # Read into memory once: batches are random, and a memory map would wait for the disk again and again.
    rows = [len(found) for _, found in parts]
    frames = np.empty((sum(rows), model.frames_per_clip, model.resolution, model.resolution, 3), np.uint8)
    for start, (path, labels) in zip(np.cumsum([0, *rows]), parts, strict=False):
        frames[start : start + len(labels)] = np.load(path, mmap_mode="r")[: len(labels)]
    return Clips(frames=frames, labels=Labels.joined([found for _, found in parts]))


def _drawn(config: PretrainConfig, cached: Path) -> tuple[Path, Labels]:
    """File of the clips of many scenes, drawn at the model's size, and their labels (kept beside it)."""
    from concurrent.futures import ProcessPoolExecutor

    from tqdm import tqdm

    pixels, labels = cached.with_name(f"{cached.name}.npy"), cached.with_name(f"{cached.name}.npz")
    if not (pixels.exists() and labels.exists()):
        draw = partial(_draw_clips, config=config)
        model, row = config.model, 0
        labelled: list[Labels] = []
        shape = (model.frames_per_clip, model.resolution, model.resolution, 3)
        # Straight to disk: all of them at once would be twice in memory. A scene may have fewer clips than asked
        # for; what is left at the end stays black and has no label.
        most = config.drawn_scenes * config.drawn_clips
        with replacing(pixels) as beside, replacing(labels) as labels_beside:
            frames = np.lib.format.open_memmap(beside, mode="w+", dtype=np.uint8, shape=(most, *shape))
            with ProcessPoolExecutor(config.threads) as pool:
                scenes = pool.map(draw, range(config.drawn_scenes), chunksize=50)
                for pictures, found in tqdm(scenes, total=config.drawn_scenes, unit="scene", desc="drawing clips"):
                    frames[row : row + len(pictures)] = pictures
                    labelled.append(found)
                    row += len(pictures)
            frames.flush()
            together = Labels.joined(labelled)
            with open(labels_beside, "wb") as file:
                np.savez(file, events=together.events, visible=together.visible)
    with np.load(labels) as kept:
        return pixels, Labels(events=kept["events"], visible=kept["visible"])


def _draw_clips(index: int, *, config: PretrainConfig) -> tuple[npt.NDArray[np.uint8], Labels]:
    """Pictures and labels of a few clips of one scene in which something happens."""
    model = config.model
    # A seed of its own: none of these scenes is one of the videos.
    scene = sample_scene(seed=config.seed + _DRAWN_SEED, index=index)
    painter = Painter(scene, model.resolution)
    labels = _labels_of(scene, model, painter)
    rng = np.random.default_rng([config.seed, _DRAWN_SEED, index])
    busy = np.flatnonzero(labels.events[:, 0, 0] >= 0)
    chosen = np.sort(rng.choice(busy, size=min(config.drawn_clips, len(busy)), replace=False))
    times = Timeline(duration=scene.duration, clip_seconds=model.clip_seconds).frame_seconds(model.frames_per_clip)
    frames = np.stack([np.stack([painter.frame(float(t)) for t in times[clip]]) for clip in chosen])
    return frames, labels[chosen]


def _decode(scenes: list[Scene], folder: Path, out: Path, model: ShapesBackboneConfig) -> None:
    from tqdm import tqdm

    side, per_clip = model.resolution, model.frames_per_clip
    timelines = [Timeline(duration=s.duration, clip_seconds=model.clip_seconds) for s in scenes]
    shape = (sum(t.num_clips for t in timelines), per_clip, side, side, 3)
    with replacing(out) as beside:
        frames = np.lib.format.open_memmap(beside, mode="w+", dtype=np.uint8, shape=shape)
        row = 0
        for scene, timeline in tqdm(list(zip(scenes, timelines, strict=True)), unit="video", desc="decoding"):
            wanted = timeline.frame_seconds(per_clip).reshape(-1)
            path = folder / "videos" / f"{scene.vid}.mp4"
            pictures = [f.image for f in frames_at(path, wanted.tolist(), size=(side, side))]
            frames[row : row + timeline.num_clips] = np.stack(pictures).reshape(-1, *shape[1:])
            row += timeline.num_clips
        frames.flush()


def _labels_of(scene: Scene, model: ShapesBackboneConfig, painter: Painter | None = None) -> Labels:
    """The events of each clip of a scene, and how well they are seen; -1 and 0 where there is none."""
    painter = painter or Painter(scene, model.resolution)
    clips = round(scene.duration / model.clip_seconds)
    events, visible = np.full((clips, 2, 3), -1), np.zeros((clips, 2), np.float32)
    for event in scene.events:
        assert event.action is not None
        row = [_TABLES[0].index(event.colour), SHAPES.index(event.shape), ACTIONS.index(event.action)]
        for clip in range(round(event.start / model.clip_seconds), round(event.end / model.clip_seconds)):
            place = int(events[clip, 0, 0] >= 0)
            events[clip, place] = row
            visible[clip, place] = visibility(painter, event, clip)
    return Labels(events=events, visible=visible)


_HARDNESS = (0.15, 0.7, 0.15)
"""How often a negative sentence differs in colour, shape or action. Shapes are by far the hardest to tell apart."""


_MIRROR = np.array([*(ACTIONS.index({"left": "right", "right": "left"}.get(a, a)) for a in ACTIONS), -1])
"""The action that is seen in a mirror; the last entry is for "no event" (-1)."""


def mirrored(
    rng: np.random.Generator, frames_CFSS3: npt.NDArray[np.uint8], events_CE3: Ints
) -> tuple[npt.NDArray[np.uint8], Ints]:
    """Each clip as it is, or (every second one) in a mirror, where left is right; shapes are all symmetric.

    A combination that is kept for the test split must not arise by that; such clips stay as they are.
    """
    frames, events = frames_CFSS3.copy(), events_CE3.copy()
    events[..., 2] = _MIRROR[events[..., 2]]
    for clip in range(len(frames)):
        there = events[clip][events[clip, :, 0] >= 0]
        if rng.random() < 0.5 and not any(_name(row) in HELD_OUT for row in there):
            frames[clip] = frames[clip, :, :, ::-1]
        else:
            events[clip] = events_CE3[clip]
    return frames, events


def matches(events_CE3: Ints, wanted_N3: Ints) -> npt.NDArray[np.bool_]:
    """(C, N): is the sentence true of the clip, that is, of one of its events?"""
    return np.asarray(_event_matches(events_CE3, wanted_N3).any(1))


def _event_matches(events_CE3: Ints, wanted_N3: Ints) -> npt.NDArray[np.bool_]:
    """(C, E, N): is the sentence true of the event?"""
    e, w = events_CE3[:, :, None, :], wanted_N3[None, None]
    same: npt.NDArray[np.bool_] = (((e == w) | (w < 0)) & (e >= 0)).all(-1)
    return same


def sample_sentences(rng: np.random.Generator, events_CE3: Ints, negatives: int) -> tuple[list[str], Ints]:
    """For each clip a true sentence, then ``negatives`` that differ in one attribute; with their attributes."""
    wanted = []
    for events in events_CE3:
        there = events[events[:, 0] >= 0]
        row = there[int(rng.integers(len(there)))].copy()
        others: list[Ints] = []
        while len(others) < negatives:
            other = row.copy()
            column = int(rng.choice(3, p=_HARDNESS))
            other[column] = rng.integers(len(_TABLES[column]))
            if _name(other) not in HELD_OUT:
                others.append(other)
        if rng.random() < 0.15:
            row[0] = -1
        elif rng.random() < 0.15:
            row[1] = -1
        wanted += [row, *others]
    return [_phrase(rng, row) for row in wanted], np.stack(wanted)


def _name(row: Ints) -> tuple[str, str, str]:
    colour, shape, action = (table[int(i)] for table, i in zip(_TABLES, row, strict=True))
    return colour, shape, action


_FILLERS = ("please", "find", "show", "video", "clip", "one", "xyz", "really", "big", "um", "then")


def _phrase(rng: np.random.Generator, row: Ints) -> str:
    colour, shape, action = (table[int(i)] if i >= 0 else None for table, i in zip(_TABLES, row, strict=True))
    assert action is not None
    sentence = phrase(rng, action=action, colour=colour, shape=shape)
    if rng.random() < 0.15:
        # Words that say nothing, so that the tower learns to look past what it does not know.
        words = sentence.split()
        words.insert(int(rng.integers(len(words) + 1)), _FILLERS[int(rng.integers(len(_FILLERS)))])
        sentence = " ".join(words)
    return sentence


def contrastive_loss(video_CD: Tensor, text_ND: Tensor, match_CN: Tensor, log_scale: Tensor) -> Tensor:
    """InfoNCE with several positives, both ways: a scalar.

    Each row's (and each column's) log-probabilities are averaged over its true pairs; columns without any clip
    that they are true of serve as negatives only.
    """
    logits = video_CD @ text_ND.T * log_scale.clamp(max=4.6).exp()
    positive = match_CN.float()
    rows = -(F.log_softmax(logits, 1) * positive).sum(1) / positive.sum(1)
    used = positive.sum(0)
    columns = -(F.log_softmax(logits, 0) * positive).sum(0) / used.clamp(min=1)
    return rows.mean() + columns[used > 0].mean()


_VISIBLE_MEAN, _VISIBLE_STD = 0.55, 0.15
"""About those of the world's events; the loss compares visibilities in these units."""


def visibility_loss(seen_CD: Tensor, text_ND: Tensor, events_CE3: Ints, visible_CE: Floats, wanted_N3: Ints) -> Tensor:
    """Smooth L1 between how well a sentence's thing is seen and what the two towers say of it: a scalar.

    Only pairs that match count; a clip with two events that match has the visibility of the better one, as raters
    see it.

    Args:
        seen_CD: what the head reads from a clip; its product with a sentence's unit vector is the prediction.
        text_ND: unit vectors of the sentences.
        events_CE3: attributes of each clip's events.
        visible_CE: how well each is seen, 0 to 1.
        wanted_N3: attributes of the sentences.
    """
    match_CEN = _event_matches(events_CE3, wanted_N3)
    best_CN = np.where(match_CEN, visible_CE[:, :, None], 0).max(1)
    target_CN = torch.from_numpy((best_CN - _VISIBLE_MEAN) / _VISIBLE_STD).to(seen_CD)
    match_CN = torch.from_numpy(match_CEN.any(1)).to(seen_CD.device)
    return F.smooth_l1_loss((seen_CD @ text_ND.T)[match_CN], target_CN[match_CN])


def learning_rate(step: int, config: PretrainConfig) -> float:
    """Linear warm-up, then a cosine to 0."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    part = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * part))


def pretrain(config: PretrainConfig) -> dict[str, float]:
    """Train the towers; write ``out/model.safetensors`` and ``out/config.json``.

    An interrupted run goes on from its last saved state (every 100 steps).

    Returns:
        The validation accuracies of :func:`validate`.
    """
    tune_cpu(config.threads)
    torch.manual_seed(config.seed)
    clips, out = load_clips(config, "train"), Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    model = TwoTowers(config.model)
    if config.init:
        start = TwoTowers.load(config.init)
        if start.config != config.model:
            raise ValueError(f"{config.init} holds towers of other sizes than asked for; leave out one of the two")
        model.load_state_dict(start.state_dict())
    # Asked only while training: whatever reads the towers' layers later finds by itself what they now hold.
    head = nn.Linear(config.model.width, config.model.joint)
    optimiser = torch.optim.AdamW(
        [*model.parameters(), *head.parameters()], weight_decay=config.weight_decay, betas=(0.9, 0.98)
    )
    first, state = 0, out / "state.pt"
    if state.exists():
        saved = torch.load(state, weights_only=True)
        if saved["config"] != json.dumps(asdict(config)):
            raise ValueError(f"{state} is of a run with another configuration; remove it or choose another out")
        model.load_state_dict(saved["model"])
        head.load_state_dict(saved["head"])
        optimiser.load_state_dict(saved["optimiser"])
        first = saved["step"]
        print(f"going on from step {first} of {config.steps}", flush=True)
    pool, began, losses = clips.with_event(), time.perf_counter(), []
    for step in range(first, config.steps):
        # Seeded by the step, so that a resumed run sees what an unbroken one would have.
        rng = np.random.default_rng([config.seed, step])
        chosen = rng.choice(pool, size=min(config.batch, len(pool)), replace=False)
        losses.append(_step(model, head, optimiser, clips, chosen, rng, learning_rate(step, config), config))
        if (step + 1) % 25 == 0:
            rate = (step + 1 - first) / (time.perf_counter() - began)
            left = (config.steps - step - 1) / rate / 60
            print(
                f"step {step + 1}/{config.steps}  loss {np.mean(losses[-25:]):.3f}  "
                f"{rate:.2f} steps/s  {left:.0f} min left",
                flush=True,
            )
        if (step + 1) % 100 == 0:
            values = {
                "model": model.state_dict(),
                "head": head.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": step + 1,
                "config": json.dumps(asdict(config)),
            }
            with replacing(state) as beside:
                torch.save(values, beside)
        if (step + 1) % 500 == 0:
            print(validate(model, load_clips(config, "val"), head if config.visibility_weight else None), flush=True)
    model.save(out)
    found = validate(model, load_clips(config, "val"), head if config.visibility_weight else None)
    print(f"{asdict(config)}\n{found}", flush=True)
    return found


def _step(
    model: TwoTowers,
    head: nn.Linear,
    optimiser: torch.optim.Optimizer,
    clips: Clips,
    chosen: Ints,
    rng: np.random.Generator,
    lr: float,
    config: PretrainConfig,
) -> float:
    labels = clips.labels[chosen]
    pictures, events = mirrored(rng, clips.frames[chosen], labels.events)
    sentences, wanted = sample_sentences(rng, events, config.negatives)
    ids, _ = model.tokenizer.batch(sentences, longest=config.model.text_length)
    pooled, text = model.pool_video(torch.from_numpy(pictures)), model.embed_text(ids)
    match = torch.from_numpy(matches(events, wanted))
    loss = contrastive_loss(model.join_video(pooled), text, match, model.log_scale)
    if config.visibility_weight:
        loss = loss + config.visibility_weight * visibility_loss(head(pooled), text, events, labels.visible, wanted)
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([*model.parameters(), *head.parameters()], config.clip_norm)
    optimiser.step()
    return loss.item()


@torch.inference_mode()
def validate(
    model: TwoTowers, clips: Clips, head: nn.Linear | None = None, *, batch: int = 128, most: int = 1500
) -> dict[str, float]:
    """How often the right one of all 480 combinations is found in clips with one event, in percent.

    Returns:
        ``combination``, ``colour``, ``shape`` and ``action``: top-1 accuracies; with a ``head``, ``visibility``
        too: Pearson's correlation, in percent, between the visibility it tells of the true sentence and the true one.
    """
    model.eval()
    one = np.flatnonzero((clips.labels.events[:, 0, 0] >= 0) & (clips.labels.events[:, 1, 0] < 0))
    one = np.sort(np.random.default_rng(0).permutation(one)[:most])
    truth, visible = clips.labels.events[one, 0], clips.labels.visible[one, 0]
    grid = np.stack(np.meshgrid(*(np.arange(len(t)) for t in _TABLES), indexing="ij"), -1).reshape(-1, 3)
    rng = np.random.default_rng(0)
    ids, _ = model.tokenizer.batch([_phrase(rng, row) for row in grid], longest=model.config.text_length)
    text = model.embed_text(ids)
    pooled = torch.cat(
        [model.pool_video(torch.from_numpy(clips.frames[one[i : i + batch]])) for i in range(0, len(one), batch)]
    )
    best = (model.join_video(pooled) @ text.T).argmax(1)
    right = grid[best.numpy()] == truth
    model.train()
    names = ("colour", "shape", "action")
    found = {
        "combination": round(100 * float(right.all(1).mean()), 1),
        **{name: round(100 * float(right[:, i].mean()), 1) for i, name in enumerate(names)},
    }
    if head is not None:
        sizes = [len(table) for table in _TABLES]
        told = (head(pooled) * text[np.ravel_multi_index(tuple(truth.T), sizes)]).sum(1).numpy()
        found["visibility"] = round(100 * float(np.corrcoef(told, visible)[0, 1]), 1)
    return found
