"""Videos and queries to features: the one way there is, for training and for inference alike.

Decoding runs ahead in processes of its own (``decode_workers.py``); clips of several videos go through the backbone
together, in batches of one size. That size never changes within a run, a last batch is filled up, and so what is
computed for a clip does not depend on which clips came with it: not on the number of workers, on what was done before
an interruption, or on which videos there are.

Legend: K levels, B clips of a batch, C clips of a chunk, T clips of a video, F frames per clip, S side, D width.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sidelight.core.timeline import Timeline
from sidelight.features.remote import store_at
from sidelight.features.store import FeatureStore, HalfFeatures, VideoFeatures
from sidelight.video.read import VideoError, warn
from sidelight.video.workers import Chunk, DecodeWorkers, End, Sampling

if TYPE_CHECKING:
    import torch

    from sidelight.backbones.protocol import Backbone, FeatureSpec

_SECONDS_BETWEEN = 5.0
"""Between two writings of the failures."""


def sampling_of(spec: FeatureSpec) -> Sampling:
    """Which pictures a backbone wants of a video."""
    return Sampling(
        clip_seconds=spec.clip_seconds,
        frames_per_clip=spec.frames_per_clip,
        resolution=spec.resolution,
        resize=spec.resize,
    )


BATCH_UNIT = 8
"""Backbones that cut a large batch do so by this many clips: a batch is smaller, or a multiple of it, so that no clip
is computed among more than another.
"""


def clips_at_once(device: str) -> int:
    """Clips per batch on a kind of device: what fills a GPU; on a CPU few are as fast as many, and wait less."""
    return BATCH_UNIT if device == "cpu" else 4 * BATCH_UNIT


def check_batch(clips: int) -> None:
    """Refuse sizes of batches whose clips would not all be computed alike.

    Raises:
        ValueError: if it is one.
    """
    if clips < 1 or (clips > BATCH_UNIT and clips % BATCH_UNIT):
        raise ValueError(f"batch_clips must be 1 to {BATCH_UNIT}, or a multiple of {BATCH_UNIT}, got {clips}")


def workers_for(backbone: Backbone) -> int:
    """Decoding processes: one for each processor, or half as many where the model runs there too."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, there // 2) if backbone.device.type == "cpu" else min(there, 16)


class BatchEncoder:
    """Clips, as they come, to features, in batches of one size.

    The results of a batch are fetched when the next one has been sent off, so that an accelerator never waits for the
    host.

    Args:
        backbone: what to encode with.
        clips: B, the clips of each batch (:func:`check_batch`).
    """

    def __init__(self, backbone: Backbone, clips: int) -> None:
        check_batch(clips)
        self.backbone, self.clips = backbone, clips
        self._waiting: deque[tuple[Any, npt.NDArray[np.uint8]]] = deque()
        self._held = 0
        self._sent: tuple[torch.Tensor, list[tuple[Any, int]]] | None = None

    def put(self, key: Any, pixels_CFSS3: npt.NDArray[np.uint8]) -> Iterator[tuple[Any, HalfFeatures]]:
        """Take clips; yields what has become ready: (key, float16 (K, C, D)), in the order in which it was put."""
        self._waiting.append((key, pixels_CFSS3))
        self._held += len(pixels_CFSS3)
        while self._held >= self.clips:
            yield from self._send()

    def flush(self) -> Iterator[tuple[Any, HalfFeatures]]:
        """Encode what is left; yields it."""
        while self._held:
            yield from self._send()
        yield from self._fetch()

    def _send(self) -> Iterator[tuple[Any, HalfFeatures]]:
        import torch

        parts, owners, room = [], [], self.clips
        while room and self._waiting:
            key, pixels = self._waiting.popleft()
            if len(pixels) > room:
                self._waiting.appendleft((key, pixels[room:]))
                pixels = pixels[:room]
            parts.append(pixels)
            owners.append((key, len(pixels)))
            room -= len(pixels)
            self._held -= len(pixels)
        if room:
            parts.append(np.repeat(parts[-1][-1:], room, axis=0))
        pixels_BFSS3 = torch.from_numpy(np.concatenate(parts) if len(parts) > 1 else parts[0])
        if self.backbone.device.type == "cuda":
            pixels_BFSS3 = pixels_BFSS3.pin_memory().to(self.backbone.device, non_blocking=True)
        encoded = self.backbone.encode_video(pixels_BFSS3).to(torch.float16)
        ready, self._sent = self._fetch(), (encoded, owners)
        yield from ready

    def _fetch(self) -> Iterator[tuple[Any, HalfFeatures]]:
        sent, self._sent = self._sent, None
        return _apart(*sent) if sent is not None else iter(())


def _apart(encoded: torch.Tensor, owners: list[tuple[Any, int]]) -> Iterator[tuple[Any, HalfFeatures]]:
    """A batch's features, each owner's own."""
    features_KBD, first = encoded.cpu().numpy(), 0
    for key, count in owners:
        # Copied: a part of it would keep the whole batch in memory until its video is done.
        yield key, features_KBD[:, first : first + count].copy()
        first += count


def video_features(parts: Sequence[HalfFeatures], duration: float, clip_seconds: float) -> VideoFeatures:
    """Chunks of one video, in order, and the duration that its file states."""
    video_KTD = np.concatenate(parts, axis=1)
    covered = min(duration, video_KTD.shape[1] * clip_seconds)  # a file that breaks off has fewer clips
    return VideoFeatures(video_KTD=video_KTD, timeline=Timeline(duration=covered, clip_seconds=clip_seconds))


def encode_video_file(path: str | Path, backbone: Backbone) -> VideoFeatures:
    """The features of one file, to the bit those that :func:`extract` stores with the same sizes of batches.

    Pixels never pile up: one chunk is decoded while another is encoded.

    Returns:
        (K, T, D_v) float16 as a store would keep them, and the timeline of what could be decoded.

    Raises:
        VideoError: if the file cannot be read as a video or has no picture.
    """
    encoder, parts = BatchEncoder(backbone, clips_at_once(backbone.device.type)), []
    with DecodeWorkers({"": path}, sampling_of(backbone.spec), workers=0) as chunks:
        for part in chunks:
            if isinstance(part, Chunk):
                parts += [features for _, features in encoder.put(None, part.pixels_CFSS3)]
                continue
            if part.error:
                raise VideoError(part.error)
            if part.warning:
                warn(part.warning)
            parts += [features for _, features in encoder.flush()]
            found = video_features(parts, part.duration, backbone.spec.clip_seconds)
    return found


def encode_queries(queries: Sequence[str], backbone: Backbone, *, batch: int = 256) -> dict[str, HalfFeatures]:
    """The features of sentences: sentence -> (K, L, D_t) float16."""
    import torch

    wanted = list(dict.fromkeys(queries))
    found: dict[str, HalfFeatures] = {}
    for first in range(0, len(wanted), batch):
        part = wanted[first : first + batch]
        for query, encoded in zip(part, backbone.encode_text(part), strict=True):
            found[query] = encoded.to(torch.float16).cpu().numpy()
    return found


@dataclass
class _Unfinished:
    """A video on its way through the batches."""

    parts: list[tuple[int, HalfFeatures]] = field(default_factory=list)
    """First clip of each, and features."""
    done: int = 0
    """Clips encoded."""
    end: End | None = None


class Collector:
    """Features that come in pieces to a store: a video is written when it is whole.

    Args:
        store: where to; its ``failures.jsonl`` is kept in step.
        videos: id -> file, of all that are asked for.
        absent: id -> reason, of videos that have no file.
    """

    def __init__(
        self, store: FeatureStore, videos: Mapping[str, str | Path], absent: Mapping[str, str] | None = None
    ) -> None:
        self.store, self.videos = store, {**videos, **dict.fromkeys(absent or {}, "")}
        self.failures: dict[str, str] = dict(absent or {})
        self.clips = 0
        self._unfinished: dict[str, _Unfinished] = {}
        self._written = 0.0
        self.write_failures()

    def add(self, vid: str, features_KCD: HalfFeatures, first: int | None = None) -> int:
        """Take features of a video; returns how many videos this completed (0 or 1).

        Args:
            vid: whose.
            features_KCD: of some clips that follow one another.
            first: which clip is the first of them; the next that has not come unless given.
        """
        if vid in self.failures:
            return 0  # it failed after these were sent off
        video = self._unfinished.setdefault(vid, _Unfinished())
        video.parts.append((video.done if first is None else first, features_KCD))
        video.done += features_KCD.shape[1]
        self.clips += features_KCD.shape[1]
        return self._finish(vid, video)

    def end(self, end: End) -> int:
        """A video has been decoded, or cannot be; returns how many videos this completed (0 or 1)."""
        if end.error:
            self._unfinished.pop(end.vid, None)
            self.failures[end.vid] = end.error
            if time.monotonic() - self._written > _SECONDS_BETWEEN:  # there may be thousands
                self.write_failures()
            return 1
        if end.warning:
            warn(end.warning)
        video = self._unfinished.setdefault(end.vid, _Unfinished())
        video.end = end
        return self._finish(end.vid, video)

    def _finish(self, vid: str, video: _Unfinished) -> int:
        if video.end is None or video.done < video.end.clips:
            return 0
        del self._unfinished[vid]
        try:
            parts = [part for _, part in sorted(video.parts, key=lambda part: part[0])]
            self.store.put_video(vid, video_features(parts, video.end.duration, self.store.spec.clip_seconds))
        except ValueError as error:
            return self.end(End(vid=vid, error=" ".join(str(error).split())))
        return 1

    def write_failures(self) -> None:
        """Those of this run, and of earlier ones but for videos that are there by now or are tried again."""
        self._written = time.monotonic()
        before = self.store.failures()
        rows = [row for row in before if row["vid"] not in self.videos and not self.store.has_video(row["vid"])]
        rows += [{"vid": v, "file": str(self.videos.get(v, "")), "reason": r} for v, r in self.failures.items()]
        if rows or before:
            self.store.put_failures(sorted(rows, key=lambda row: row["vid"]))


class Progress:
    """A bar: videos, clips a second, time left, failures.

    Args:
        total: videos to do.
        shown: whether to show it.
    """

    def __init__(self, total: int, *, shown: bool) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, unit="video", desc="extracting", disable=not (shown and total), smoothing=0)
        self._began = time.perf_counter()

    def show(self, collector: Collector, videos: int) -> None:
        """So many more videos are done or have failed."""
        rate = collector.clips / max(time.perf_counter() - self._began, 1e-9)
        said = {"clips/s": f"{rate:.1f}", **({"failed": len(collector.failures)} if collector.failures else {})}
        self._bar.set_postfix(said, refresh=False)
        self._bar.update(videos)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()


def extract(
    videos: Mapping[str, str | Path],
    queries: Iterable[str],
    backbone: Backbone,
    out: str | Path,
    *,
    workers: int | None = None,
    batch_clips: int | None = None,
    absent: Mapping[str, str] | None = None,
    progress: bool = False,
) -> tuple[FeatureStore, dict[str, str]]:
    """Fill a feature store. What it already holds is not done again, so an interrupted run goes on.

    A store is the same to the bit whatever the number of workers, the order of the videos, and where a run was
    interrupted. Another ``batch_clips`` or another device computes the same numbers in another order: float16 values
    then differ by a unit in the last place here and there.

    Args:
        videos: id -> file, or address in object storage.
        queries: sentences; duplicates cost nothing.
        backbone: what to encode with.
        out: folder of the store, or an address in object storage; made if need be.
        workers: processes that decode; 0 decodes within this one. Chosen by the processors there are unless given.
        batch_clips: clips that go through the backbone at once, of one or several videos: up to 8, or a multiple.
        absent: id -> reason, of videos that are wanted and have no file; they count as failures.
        progress: show a bar with rate and time left.

    Returns:
        The store, and id -> reason for each video that could not be read (``failures.jsonl`` holds them too); the
        others are done all the same.

    Raises:
        SpecMismatchError: if ``out`` holds features of another spec.
        ValueError: if ``workers`` or ``batch_clips`` is too small.
    """
    workers = workers_for(backbone) if workers is None else workers
    batch_clips = clips_at_once(backbone.device.type) if batch_clips is None else batch_clips
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}")
    encoder = BatchEncoder(backbone, batch_clips)
    store = store_at(out, backbone.spec)
    store.add_queries(queries, lambda part: encode_queries(part, backbone))
    todo = {vid: path for vid, path in videos.items() if not store.is_whole(vid)}
    collector, shown = Collector(store, videos, absent), Progress(len(todo), shown=progress)
    try:
        with DecodeWorkers(todo, sampling_of(backbone.spec), workers=workers) as decoded:
            for part in decoded:
                if isinstance(part, End):
                    shown.show(collector, collector.end(part))
                    continue
                for vid, features in encoder.put(part.vid, part.pixels_CFSS3):
                    shown.show(collector, collector.add(vid, features))
            for vid, features in encoder.flush():
                shown.show(collector, collector.add(vid, features))
    finally:
        collector.write_failures()
        shown.close()
    return store, collector.failures
