"""Extract features: videos and queries go through a backbone, in the same way for training and for inference.

Processes of their own (``video/workers.py``) decode ahead. Clips of several videos go through the backbone together, in
batches of one size, which never changes within a run; the last batch is filled up. So the features of a clip
depend neither on the other clips of its batch nor on the number of workers, on interruptions or on the set of videos.

Legend: K levels, B clips of a batch, C clips of a chunk, T clips of a video, F frames per clip, S side, D width.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sidelight.core.timeline import Timeline, clips_to_seconds
from sidelight.features.growing import GrowingFeatures
from sidelight.features.remote import store_at
from sidelight.features.store import FeatureStore, HalfFeatures, VideoFeatures
from sidelight.io.progress import Progress as ReadProgress
from sidelight.io.progress import reporting
from sidelight.video.damage import VideoError, warn
from sidelight.video.read import probe
from sidelight.video.workers import Chunk, DecodeWorkers, End, Sampling

if TYPE_CHECKING:
    import torch

    from sidelight.backbones.protocol import Backbone, FeatureSpec

BATCH_UNIT = 8
"""A backbone may split a large batch into parts of this many clips. So a batch has at most this many clips, or a
multiple of them: then all parts have the same size.
"""
_RELEASE_EVERY = 256
"""Clips between two returns of freed memory to the system. Without them, a process grows by up to 170 KB a clip, where
features need 1 KB: the decoder's buffers, the batches and the features that stay lie side by side on the heap, so that
the gaps between them never fit the next batch.
"""
_QUERIES_AT_ONCE = 256
_FAILURES_EVERY = 5.0
"""Seconds between two writings of the failures."""


def sampling_of(spec: FeatureSpec) -> Sampling:
    """Return which frames of a video a backbone needs."""
    return Sampling(
        clip_seconds=spec.clip_seconds,
        frames_per_clip=spec.frames_per_clip,
        resolution=spec.resolution,
        resize=spec.resize,
    )


def clips_at_once(device: str) -> int:
    """Return the clips per batch for a kind of device: 32 fill a GPU; on a CPU 8 are as fast, and finish sooner."""
    return BATCH_UNIT if device == "cpu" else 4 * BATCH_UNIT


def check_batch(clips: int) -> None:
    """Check that all clips of a batch of this size are computed in parts of the same size.

    Raises:
        ValueError: if not.
    """
    if clips < 1 or (clips > BATCH_UNIT and clips % BATCH_UNIT):
        raise ValueError(f"batch_clips must be 1 to {BATCH_UNIT}, or a multiple of {BATCH_UNIT}, got {clips}")


def workers_for(backbone: Backbone) -> int:
    """Return the number of decoding processes: one per processor, half as many if the backbone runs on the CPU."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, processors // 2) if backbone.device.type == "cpu" else min(processors, 16)


class BatchEncoder:
    """Encodes a stream of clips in batches of one size.

    The features of a batch are fetched after the next batch was started, so that an accelerator never waits for the
    host.

    Args:
        backbone: the model.
        clips: B, the clips of each batch (:func:`check_batch`).
        lock: held while the backbone computes, where several threads share it.
    """

    def __init__(self, backbone: Backbone, clips: int, lock: AbstractContextManager[Any] | None = None) -> None:
        check_batch(clips)
        self.backbone, self.clips, self._lock = backbone, clips, lock or nullcontext()
        self._queue: deque[tuple[Any, npt.NDArray[np.uint8]]] = deque()
        self._queued_clips = self._clips_until_release = 0
        self._started: tuple[torch.Tensor, list[tuple[Any, int]]] | None = None

    def put(self, key: Any, pixels_CFSS3: npt.NDArray[np.uint8]) -> Iterator[tuple[Any, HalfFeatures]]:
        """Add clips to the queue, and yield finished features: (key, float16 (K, C, D)), in the order of the clips."""
        self._queue.append((key, pixels_CFSS3))
        self._queued_clips += len(pixels_CFSS3)
        while self._queued_clips >= self.clips:
            yield from self._start_batch()

    def flush(self) -> Iterator[tuple[Any, HalfFeatures]]:
        """Encode the rest of the queue, and yield all features that are left."""
        from sidelight.io.runtime import release_memory

        while self._queued_clips:
            yield from self._start_batch()
        yield from self._fetch_batch()
        release_memory()

    def _start_batch(self) -> Iterator[tuple[Any, HalfFeatures]]:
        """Start the next batch, and yield the features of the batch before."""
        import torch

        from sidelight.io.runtime import release_memory

        self._clips_until_release -= self.clips
        if self._clips_until_release < 0:
            self._clips_until_release = _RELEASE_EVERY
            release_memory()
        parts, owners, room = [], [], self.clips
        while room and self._queue:
            key, pixels = self._queue.popleft()
            if len(pixels) > room:
                self._queue.appendleft((key, pixels[room:]))
                pixels = pixels[:room]
            parts.append(pixels)
            owners.append((key, len(pixels)))
            room -= len(pixels)
            self._queued_clips -= len(pixels)
        # A backbone that computes fewer clips at once gives the same bits without the rest of the batch.
        if padding := room % (getattr(self.backbone, "clips_at_once", 0) or self.clips):
            parts.append(np.repeat(parts[-1][-1:], padding, axis=0))
        pixels_BFSS3 = torch.from_numpy(np.concatenate(parts) if len(parts) > 1 else parts[0])
        if self.backbone.device.type == "cuda":
            pixels_BFSS3 = pixels_BFSS3.pin_memory().to(self.backbone.device, non_blocking=True)
        with self._lock:
            encoded_KBD = self.backbone.encode_video(pixels_BFSS3).to(torch.float16)
        finished, self._started = self._fetch_batch(), (encoded_KBD, owners)
        yield from finished

    def _fetch_batch(self) -> Iterator[tuple[Any, HalfFeatures]]:
        """Return the features of the batch that was started, if there is one."""
        started, self._started = self._started, None
        return _split_batch(*started) if started is not None else iter(())


def _split_batch(encoded_KBD: torch.Tensor, owners: list[tuple[Any, int]]) -> Iterator[tuple[Any, HalfFeatures]]:
    """Yield each owner's part of a batch: (key, float16 (K, C, D))."""
    features_KBD, first = encoded_KBD.cpu().numpy(), 0
    for key, count in owners:
        # Copied: a view would keep the batch in memory until its video is finished.
        yield key, features_KBD[:, first : first + count].copy()
        first += count


def video_features(video_KTD: HalfFeatures, duration: float, clip_seconds: float) -> VideoFeatures:
    """Return the features of one video with their timeline.

    Args:
        video_KTD: features of all clips.
        duration: seconds, as the file states them; a file that breaks off has fewer clips, and then ends with these.
        clip_seconds: length of a clip.
    """
    duration = min(duration, clips_to_seconds(video_KTD.shape[1], clip_seconds))
    return VideoFeatures(video_KTD=video_KTD, timeline=Timeline(duration=duration, clip_seconds=clip_seconds))


def encode_video_file(
    path: str | Path,
    backbone: Backbone,
    *,
    folder: str | Path | None = None,
    progress: ReadProgress = False,
    on_damage: Callable[[str], None] | None = None,
    lock: AbstractContextManager[Any] | None = None,
) -> VideoFeatures:
    """Encode one video file, to the same bits as :func:`extract` with the same batch size.

    One chunk is decoded while another one is encoded, and large features go to the disk (``growing``), so a long video
    needs no more memory than a short one.

    Args:
        path: the file.
        backbone: the model.
        folder: where large features lie until the returned object is gone; the system's folder for temporary files
            unless given, or if the given one has no room.
        progress: show a bar, or call a function with the part of the clips that has been read.
        on_damage: called with a sentence about damage and the notes of ``probe``; if None, a VideoWarning is issued.
        lock: held while the backbone computes, where several threads share it.

    Returns:
        (K, T, D_v) float16 as in a store, and the timeline of the decoded clips.

    Raises:
        VideoError: if the file cannot be read as a video or has no frame.
        OSError: if there is no room for large features.
    """
    encoder = BatchEncoder(backbone, clips_at_once(backbone.device.type), lock)
    growing, duration = GrowingFeatures(folder, spare=True), 0.0
    decoding = DecodeWorkers({"": path}, sampling_of(backbone.spec), workers=0)
    clips = math.ceil(probe(path).duration / backbone.spec.clip_seconds) if progress else None
    bar = reporting(progress, total=clips, what="reading the video", unit="clip")
    with bar as add_clips, decoding as decoded:
        for item in decoded:
            if isinstance(item, Chunk):
                for _, features_KCD in encoder.put(None, item.pixels_CFSS3):
                    growing.put(features_KCD)
                add_clips(len(item.pixels_CFSS3))
                continue
            if item.error:
                raise VideoError(item.error)
            if item.warning:
                (on_damage or warn)(item.warning)
            duration = item.duration
    for _, features_KCD in encoder.flush():
        growing.put(features_KCD)
    return video_features(growing.finish(), duration, backbone.spec.clip_seconds)


def encode_queries(
    queries: Sequence[str], backbone: Backbone, *, batch: int = _QUERIES_AT_ONCE
) -> dict[str, HalfFeatures]:
    """Encode sentences, each once: sentence -> (K, L, D_t) float16."""
    import torch

    unique_queries = list(dict.fromkeys(queries))
    features: dict[str, HalfFeatures] = {}
    for first in range(0, len(unique_queries), batch):
        part = unique_queries[first : first + batch]
        for query, text_KLD in zip(part, backbone.encode_text(part), strict=True):
            features[query] = text_KLD.to(torch.float16).cpu().numpy()
    return features


def encode_each(queries: Sequence[str], backbone: Backbone) -> list[HalfFeatures]:
    """Encode sentences: the (K, L, D_t) float16 features of each, in their order. Large ones lie on the disk.

    Raises:
        ValueError: if the backbone cannot read a sentence.
        OSError: if there is no room for large features.
    """
    from sidelight.io.runtime import release_memory

    growing, places = GrowingFeatures(), dict[str, slice]()
    unique_queries = list(dict.fromkeys(queries))
    for first in range(0, len(unique_queries), _QUERIES_AT_ONCE):
        encoded = encode_queries(unique_queries[first : first + _QUERIES_AT_ONCE], backbone)
        for query, text_KLD in encoded.items():
            places[query] = slice(growing.clips, growing.clips + text_KLD.shape[1])
            growing.put(text_KLD)
        release_memory()  # for 10,000 queries, otherwise 290 MB stay in gaps of the heap
    if not unique_queries:
        return []
    tokens_KLD = growing.finish()  # of all sentences, one after the other
    return [tokens_KLD[:, places[query]] for query in queries]


@dataclass
class _UnfinishedVideo:
    features: GrowingFeatures
    end: End | None = None
    """Set when the video is decoded."""


class Collector:
    """Collects the features of videos, and writes each video to a store when its last clip has arrived.

    Args:
        store: the store to fill; its ``failures.jsonl`` is kept up to date.
        videos: id -> file, of all videos of this run.
        without_file: id -> reason, of videos without a file.
    """

    def __init__(
        self, store: FeatureStore, videos: Mapping[str, str | Path], without_file: Mapping[str, str] | None = None
    ) -> None:
        self.store, self.videos = store, {**videos, **dict.fromkeys(without_file or {}, "")}
        self.failures: dict[str, str] = dict(without_file or {})
        self.clips = 0
        self._unfinished: dict[str, _UnfinishedVideo] = {}
        self._failures_written = 0.0
        self.write_failures()

    def add(self, vid: str, features_KCD: HalfFeatures, first: int | None = None) -> int:
        """Add features of a video, and return the number of videos that this completed (0 or 1).

        Args:
            vid: id of the video.
            features_KCD: features of consecutive clips.
            first: number of the first of these clips; unless given, they follow the clips before.
        """
        if vid in self.failures:
            return 0  # the video failed after these clips were sent to the backbone
        video = self._video(vid)
        video.features.put(features_KCD, first)
        self.clips += features_KCD.shape[1]
        return self._finish(vid, video)

    def end(self, end: End) -> int:
        """Note that a video is decoded or failed, and return the number of videos that this completed (0 or 1)."""
        if end.error:
            self._unfinished.pop(end.vid, None)
            self.failures[end.vid] = end.error
            if time.monotonic() - self._failures_written > _FAILURES_EVERY:  # there may be thousands of failures
                self.write_failures()
            return 1
        if end.warning:
            warn(end.warning)
        video = self._video(end.vid)
        video.end = end
        return self._finish(end.vid, video)

    def _video(self, vid: str) -> _UnfinishedVideo:
        if vid not in self._unfinished:
            self._unfinished[vid] = _UnfinishedVideo(GrowingFeatures(self.store.folder))
        return self._unfinished[vid]

    def _finish(self, vid: str, video: _UnfinishedVideo) -> int:
        """Write a video if all of its clips have arrived."""
        if video.end is None or video.features.clips < video.end.clips:
            return 0
        del self._unfinished[vid]
        try:
            features_KTD = video.features.finish()
            self.store.put_video(vid, video_features(features_KTD, video.end.duration, self.store.spec.clip_seconds))
        except ValueError as error:
            return self.end(End(vid=vid, error=" ".join(str(error).split())))
        return 1

    def write_failures(self) -> None:
        """Write the failures of this run, and keep earlier failures of videos that are still missing."""
        self._failures_written = time.monotonic()
        earlier = self.store.failures()
        rows = [row for row in earlier if row["vid"] not in self.videos and not self.store.has_video(row["vid"])]
        rows += [{"vid": v, "file": str(self.videos.get(v, "")), "reason": r} for v, r in self.failures.items()]
        if rows or earlier:
            self.store.put_failures(sorted(rows, key=lambda row: row["vid"]))


class Progress:
    """A progress bar with videos, clips per second, time left and failures.

    Args:
        total: number of videos to extract.
        shown: whether to show the bar.
    """

    def __init__(self, total: int, *, shown: bool) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, unit="video", desc="extracting", disable=not (shown and total), smoothing=0)
        self._start = time.perf_counter()

    def show(self, collector: Collector, videos: int) -> None:
        """Advance the bar by the videos that are finished or have failed since the last call."""
        rate = collector.clips / max(time.perf_counter() - self._start, 1e-9)
        failed = {"failed": len(collector.failures)} if collector.failures else {}
        self._bar.set_postfix({"clips/s": f"{rate:.1f}", **failed}, refresh=False)
        self._bar.update(videos)

    def close(self) -> None:
        """Stop updating the bar."""
        self._bar.close()


def extract(
    videos: Mapping[str, str | Path],
    queries: Iterable[str],
    backbone: Backbone,
    out: str | Path,
    *,
    workers: int | None = None,
    batch_clips: int | None = None,
    without_file: Mapping[str, str] | None = None,
    progress: bool = False,
) -> tuple[FeatureStore, dict[str, str]]:
    """Fill a feature store. Features that the store holds are not computed again, so a later call continues.

    The store is the same to the bit whatever the number of workers, the order of the videos, and the place where a run
    was interrupted. With another ``batch_clips`` or on another device, sums are computed in another order, and some
    float16 values differ by one unit in the last place.

    Args:
        videos: id -> file, or address in object storage.
        queries: sentences; duplicates cost nothing.
        backbone: the model.
        out: folder of the store, or an address in object storage; created if it does not exist.
        workers: number of decoding processes; 0 decodes in this process. Depends on the processors unless given.
        batch_clips: clips that go through the backbone at once, of one or several videos: up to 8, or a multiple.
        without_file: id -> reason, of videos without a file; they count as failures.
        progress: show a bar with rate and time left.

    Returns:
        The store, and id -> reason for each video that could not be read (also in ``failures.jsonl``); a failure does
        not stop the other videos.

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
    missing = {vid: path for vid, path in videos.items() if not store.is_whole(vid)}
    collector, bar = Collector(store, videos, without_file), Progress(len(missing), shown=progress)
    try:
        with DecodeWorkers(missing, sampling_of(backbone.spec), workers=workers) as decoded:
            for item in decoded:
                if isinstance(item, End):
                    bar.show(collector, collector.end(item))
                    continue
                for vid, features in encoder.put(item.vid, item.pixels_CFSS3):
                    bar.show(collector, collector.add(vid, features))
            for vid, features in encoder.flush():
                bar.show(collector, collector.add(vid, features))
    finally:
        collector.write_failures()
        bar.close()
    return store, collector.failures
