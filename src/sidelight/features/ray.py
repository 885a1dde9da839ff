"""The extraction of ``extract.py`` on a Ray cluster: videos are decoded where there are processors, clips are encoded
where there are GPUs, and the process that asked writes the store.

Ray Data moves the clips, keeps what waits within the memory there is, and does again what a lost process or machine
was doing. Rows are single clips, so that the batches of the encoders are made up of several videos' clips.

Legend: K levels, B clips of a batch, F frames per clip, S side, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sidelight.backbones import Backbone, load_backbone
from sidelight.features.extract import Collector, Progress, check_batch, clips_at_once, encode_queries, sampling_of
from sidelight.features.remote import store_at
from sidelight.features.store import FeatureStore
from sidelight.io.runtime import usable_device
from sidelight.io.storage import is_address
from sidelight.video.workers import CHUNK_CLIPS, Chunk, DecodeWorkers, End, Sampling

Rows = dict[str, npt.NDArray[Any]]
"""Columns of as many rows: vid, clip (its number), pixels_FSS3 or features_KD; of a video's last row also clips (how
many there were; else 0), duration, error and warning.
"""


def _rows(vid: str, first: int, pixels_CFSS3: npt.NDArray[np.uint8], end: End | None) -> Rows:
    count = len(pixels_CFSS3)
    last = [None] * (count - 1) + [end]
    return {
        "vid": np.array([vid] * count),
        "clip": np.arange(first, first + count),
        "clips": np.array([e.clips if e else 0 for e in last]),
        "duration": np.array([e.duration if e else 0.0 for e in last]),
        "error": np.array([e.error if e else "" for e in last]),
        "warning": np.array([e.warning if e else "" for e in last]),
        "pixels_FSS3": pixels_CFSS3,
    }


def decode_rows(videos: Rows, *, sampling: Sampling, chunk: int = CHUNK_CLIPS) -> Iterator[Rows]:
    """The clips of some videos (columns vid and path), as Ray Data moves them.

    They are decoded in a process of its own here too: a file that crashes it costs itself, and not the run.
    """
    files: dict[str, str | Path] = dict(zip(videos["vid"].tolist(), videos["path"].tolist(), strict=True))
    blank = np.zeros((1, sampling.frames_per_clip, sampling.resolution, sampling.resolution, 3), np.uint8)
    # One chunk is held back: the last one carries what is known at the end.
    held: npt.NDArray[np.uint8] | None = None
    first = 0
    with DecodeWorkers(files, sampling, workers=1, chunk=chunk) as parts:
        for part in parts:
            if isinstance(part, Chunk):
                if held is not None:
                    yield _rows(part.vid, first, held, None)
                    first += len(held)
                held = part.pixels_CFSS3
            else:
                # A row without a clip, for a video that failed: its pixels mean nothing.
                yield _rows(part.vid, first, blank if part.error or held is None else held, part)
                held, first = None, 0


class Encoder:
    """A backbone, as one process of the cluster runs it.

    Args:
        name: of the backbone.
        options: what it takes.
        clips: B; smaller batches are filled up, so that what is computed for a clip never depends on its company.
        device: cpu or cuda.
    """

    def __init__(self, name: str, options: Mapping[str, Any], clips: int, device: str) -> None:
        self.backbone, self.clips = load_backbone(name, **options).to(device), clips

    def __call__(self, rows: Rows) -> Rows:
        import torch

        pixels = rows.pop("pixels_FSS3")
        filled = np.concatenate([pixels, np.repeat(pixels[-1:], self.clips - len(pixels), axis=0)])
        encoded_KBD = self.backbone.encode_video(torch.from_numpy(filled)).to(torch.float16)[:, : len(pixels)]
        return {**rows, "features_KD": encoded_KBD.transpose(0, 1).contiguous().cpu().numpy()}


def extract_on_ray(
    videos: Mapping[str, str | Path],
    queries: Iterable[str],
    backbone: str,
    options: Mapping[str, Any],
    out: str | Path,
    *,
    workers: int | None = None,
    batch_clips: int | None = None,
    actors: int | None = None,
    absent: Mapping[str, str] | None = None,
    progress: bool = False,
) -> tuple[FeatureStore, dict[str, str]]:
    """Fill a feature store on a Ray cluster: that of ``RAY_ADDRESS``, or one on this machine.

    Args:
        videos: id -> file that every machine of the cluster can read, or address in object storage.
        queries: sentences; they are encoded here.
        backbone: its name.
        options: what it takes; weights must be where every machine can read them.
        out: folder of the store, or an address; it is written from here.
        workers: videos that are decoded at once; as many as there are processors unless given.
        batch_clips: clips that go through a backbone at once.
        actors: backbones; one for each GPU, or one on a processor where there is none, unless given.
        absent: id -> reason, of videos that are wanted and have no file.
        progress: show a bar with rate and time left.

    Returns:
        As :func:`sidelight.features.extract.extract`; the store is the same, whatever the cluster.

    Raises:
        ValueError: if Ray is not installed, or a number is too small.
        SpecMismatchError: if ``out`` holds features of another spec.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise ValueError("--engine ray needs Ray: pip install 'sidelight[ray]'") from None
    for name, value in (("workers", workers), ("batch_clips", batch_clips), ("actors", actors)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more with Ray, got {value}")
    if batch_clips is not None:
        check_batch(batch_clips)
    if Path(str(options.get("weights", ""))).exists() and options.get("weights"):
        options = {**options, "weights": str(Path(options["weights"]).resolve())}
    store = _store_with_queries(out, queries, load_backbone(backbone, **options).to(usable_device(None)))
    sampling = sampling_of(store.spec)
    todo = [{"vid": v, "path": _everywhere(path)} for v, path in videos.items() if not store.is_whole(v)]
    collector, shown = Collector(store, videos, absent), Progress(len(todo), shown=progress)
    if not todo:
        return store, collector.failures
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    there = ray.cluster_resources()
    gpus, processors = int(there.get("GPU", 0)), int(there.get("CPU", 0))
    actors = actors or max(1, gpus)
    if processors <= actors or (gpus and actors > gpus):
        raise ValueError(
            f"the Ray cluster has {processors} processors and {gpus} GPUs: too few for {actors} backbones (each takes "
            "a processor, and a GPU if there are any) and a decoder; give fewer --actors, or more machines"
        )
    device = "cuda" if gpus else "cpu"
    clips = batch_clips or clips_at_once(device)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # our own bar says how far it is
    encoder = {"name": backbone, "options": dict(options), "clips": clips, "device": device}
    batches = (
        ray.data.from_items(todo, override_num_blocks=min(len(todo), 1000))
        .map_batches(
            decode_rows,
            batch_size=None,
            fn_kwargs={"sampling": sampling},
            compute=ray.data.TaskPoolStrategy(size=workers),
            num_cpus=1,
        )
        .map_batches(
            Encoder,
            batch_size=clips,
            fn_constructor_kwargs=encoder,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=1,
            num_gpus=1 if gpus else 0,
            # Over all machines; and steps that are placed alike would be made one, so that encoders decoded.
            scheduling_strategy="SPREAD",
        )
        .iter_batches(batch_size=None)
    )
    try:
        for rows in batches:
            for i, vid in enumerate(rows["vid"].tolist()):
                shown.show(collector, _take(collector, rows, i, vid))
    finally:
        collector.write_failures()
        shown.close()
    return store, collector.failures


def _store_with_queries(out: str | Path, queries: Iterable[str], backbone: Backbone) -> FeatureStore:
    """Open the store and add the queries; the backbone is freed afterwards, because each actor loads its own."""
    store = store_at(out, backbone.spec)
    store.add_queries(queries, lambda part: encode_queries(part, backbone))
    return store


def _everywhere(path: str | Path) -> str:
    """A path that does not depend on where a process works."""
    return str(path) if is_address(path) else str(Path(path).resolve())


def _take(collector: Collector, rows: Rows, i: int, vid: str) -> int:
    """One row; returns how many videos it completed."""
    error, clips = str(rows["error"][i]), int(rows["clips"][i])
    if error:
        return collector.end(End(vid=vid, error=error))
    done = collector.add(vid, rows["features_KD"][i][:, None], int(rows["clip"][i]))
    if clips:
        warning = str(rows["warning"][i])
        done += collector.end(End(vid=vid, clips=clips, duration=float(rows["duration"][i]), warning=warning))
    return done
