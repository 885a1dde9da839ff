"""Extract features on a Ray cluster: processors decode, GPUs encode, and the calling process writes the store.

Ray Data moves the clips, limits the memory of waiting clips, and repeats the work of lost processes and machines. A row
is one clip, so that a batch can hold clips of several videos.

Legend: K levels, B clips of a batch, C clips of a chunk, F frames per clip, S side, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
"""Columns of a batch of rows: vid, clip (its number), and pixels_FSS3, or features_0_KD of the first backbone,
features_1_KD of the second, ... The last row of a video also has clips (how many the video has; 0 in other rows),
duration, error and warning.
"""


def _rows(vid: str, first: int, pixels_CFSS3: npt.NDArray[np.uint8], end: End | None) -> Rows:
    count = len(pixels_CFSS3)
    ends = [None] * (count - 1) + [end]
    return {
        "vid": np.array([vid] * count),
        "clip": np.arange(first, first + count),
        "clips": np.array([e.clips if e else 0 for e in ends]),
        "duration": np.array([e.duration if e else 0.0 for e in ends]),
        "error": np.array([e.error if e else "" for e in ends]),
        "warning": np.array([e.warning if e else "" for e in ends]),
        "pixels_FSS3": pixels_CFSS3,
    }


def decode_rows(videos: Rows, *, sampling: Sampling, chunk: int = CHUNK_CLIPS) -> Iterator[Rows]:
    """Yield the clips of some videos (columns vid and path) as rows.

    A process of its own decodes: a file that crashes the decoder is one failed video, and the run continues.
    """
    files: dict[str, str | Path] = dict(zip(videos["vid"].tolist(), videos["path"].tolist(), strict=True))
    blank = np.zeros((1, sampling.frames_per_clip, sampling.resolution, sampling.resolution, 3), np.uint8)
    # One chunk is held back, because the last row of a video carries its end.
    held_chunk: npt.NDArray[np.uint8] | None = None
    first = 0
    with DecodeWorkers(files, sampling, workers=1, chunk=chunk) as decoded:
        for item in decoded:
            if isinstance(item, Chunk):
                if held_chunk is not None:
                    yield _rows(item.vid, first, held_chunk, None)
                    first += len(held_chunk)
                held_chunk = item.pixels_CFSS3
            else:
                # A failed video has one row, with blank pixels.
                last_chunk = blank if item.error or held_chunk is None else held_chunk
                yield _rows(item.vid, first, last_chunk, item)
                held_chunk, first = None, 0


class Encoder:
    """Backbones in one process of the cluster, which all read the same frames.

    Args:
        backbones: each loads a backbone.
        clips: B; smaller batches are filled up, so that the features of a clip do not depend on the other clips.
        device: cpu or cuda.
    """

    def __init__(self, backbones: Sequence[Callable[[], Backbone]], clips: int, device: str) -> None:
        self.backbones, self.clips = [load().to(device) for load in backbones], clips

    def __call__(self, rows: Rows) -> Rows:
        """Return the rows with the features of each backbone instead of pixels_FSS3."""
        import torch

        pixels = rows.pop("pixels_FSS3")
        filled = torch.from_numpy(np.concatenate([pixels, np.repeat(pixels[-1:], self.clips - len(pixels), axis=0)]))
        for part, backbone in enumerate(self.backbones):
            encoded_KBD = backbone.encode_video(filled).to(torch.float16)[:, : len(pixels)]
            rows[f"features_{part}_KD"] = encoded_KBD.transpose(0, 1).contiguous().cpu().numpy()
        return rows


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A Ray cluster that runs: the cluster of ``RAY_ADDRESS``, or a new one on this machine (:meth:`connect`)."""

    actors: int
    """Number of processes with backbones."""
    device: str
    """cpu or cuda: where each of them computes."""

    @classmethod
    def connect(cls, actors: int | None) -> Cluster:
        """Connect to the cluster, or start a new one, once in a process.

        Args:
            actors: number of processes with backbones; unless given, one per GPU, or one on a processor if there is no
                GPU.

        Raises:
            ValueError: if the cluster is too small.
        """
        ray = require_ray()
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        actors, gpus = _actors_and_gpus(ray.cluster_resources(), actors)
        return cls(actors=actors, device="cuda" if gpus else "cpu")


def require_ray() -> Any:
    """Import Ray and return it.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise ValueError("--engine ray needs Ray: pip install 'sidelight[ray]'") from None
    return ray


def require_numbers(**numbers: int | None) -> None:
    """Raise ValueError if a number of processes or clips is given and below 1."""
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more with Ray, got {value}")


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
    without_file: Mapping[str, str] | None = None,
    progress: bool = False,
) -> tuple[FeatureStore, dict[str, str]]:
    """Fill a feature store on a Ray cluster: the cluster of ``RAY_ADDRESS``, or a new one on this machine.

    Args:
        videos: id -> file that every machine of the cluster can read, or address in object storage.
        queries: sentences; this process encodes them.
        backbone: name of the backbone.
        options: options of the backbone; every machine must be able to read the weights.
        out: folder of the store, or an address; this process writes it.
        workers: number of videos that are decoded at once; one per processor unless given.
        batch_clips: clips that go through a backbone at once.
        actors: number of backbones; unless given, one per GPU, or one on a processor if there is no GPU.
        without_file: id -> reason, of videos without a file.
        progress: show a bar with rate and time left.

    Returns:
        As :func:`sidelight.features.extract.extract`; the store is the same, whatever the cluster.

    Raises:
        ValueError: if Ray is not installed, or a number is too small.
        SpecMismatchError: if ``out`` holds features of another spec.
    """
    require_ray()
    require_numbers(workers=workers, batch_clips=batch_clips, actors=actors)
    if batch_clips is not None:
        check_batch(batch_clips)
    if options.get("weights") and Path(str(options["weights"])).exists():
        options = {**options, "weights": str(Path(options["weights"]).resolve())}
    store = _store_with_queries(out, queries, load_backbone(backbone, **options).to(usable_device(None)))
    missing = {vid: path for vid, path in videos.items() if not store.is_whole(vid)}
    collector, bar = Collector(store, videos, without_file), Progress(len(missing), shown=progress)
    if not missing:
        return store, collector.failures
    encoded = encoded_rows(
        missing,
        sampling_of(store.spec),
        [partial(load_backbone, backbone, **options)],
        Cluster.connect(actors),
        workers=workers,
        batch_clips=batch_clips,
    )
    try:
        for rows in encoded:
            for i, vid in enumerate(rows["vid"].tolist()):
                bar.show(collector, _collect_row(collector, rows, i, vid))
    finally:
        collector.write_failures()
        bar.close()
    return store, collector.failures


def encoded_rows(
    videos: Mapping[str, str | Path],
    sampling: Sampling,
    backbones: Sequence[Callable[[], Backbone]],
    cluster: Cluster,
    *,
    workers: int | None = None,
    batch_clips: int | None = None,
) -> Iterator[Rows]:
    """Yield the clips of videos with their features, as the cluster decodes and encodes them.

    Args:
        videos: id -> file that every machine of the cluster can read, or address.
        sampling: which frames are decoded.
        backbones: each loads a backbone that reads these frames.
        cluster: where they run.
        workers: number of videos that are decoded at once; one per processor unless given.
        batch_clips: clips that go through a backbone at once.
    """
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False  # our own bar shows the progress
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    items = [{"vid": vid, "path": _absolute(path)} for vid, path in videos.items()]
    decoded = ray.data.from_items(items, override_num_blocks=min(len(items), 1000)).map_batches(
        decode_rows,
        batch_size=None,
        fn_kwargs={"sampling": sampling},
        compute=ray.data.TaskPoolStrategy(size=workers),
        num_cpus=1,
    )
    clips = batch_clips or clips_at_once(cluster.device)
    encoded = decoded.map_batches(
        Encoder,
        batch_size=clips,
        fn_constructor_kwargs={"backbones": list(backbones), "clips": clips, "device": cluster.device},
        compute=ray.data.ActorPoolStrategy(size=cluster.actors),
        num_cpus=1,
        num_gpus=1 if cluster.device == "cuda" else 0,
        # Spreads the encoders over all machines. Without it Ray would fuse both steps, and encoders would decode.
        scheduling_strategy="SPREAD",
    )
    return iter(encoded.iter_batches(batch_size=None))


def _store_with_queries(out: str | Path, queries: Iterable[str], backbone: Backbone) -> FeatureStore:
    """Open the store and add the queries; the backbone is freed afterwards, because each actor loads its own."""
    store = store_at(out, backbone.spec)
    store.add_queries(queries, lambda part: encode_queries(part, backbone))
    return store


def _absolute(path: str | Path) -> str:
    """Return a path that means the same file in every working folder."""
    return str(path) if is_address(path) else str(Path(path).resolve())


def _actors_and_gpus(resources: Mapping[str, float], actors: int | None) -> tuple[int, int]:
    """Return the number of backbones and of GPUs; ValueError if the cluster is too small."""
    gpus, processors = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    actors = actors or max(1, gpus)
    if processors <= actors or (gpus and actors > gpus):
        raise ValueError(
            f"the Ray cluster has {processors} processors and {gpus} GPUs: too few for {actors} backbones (each takes "
            "a processor, and a GPU if there are any) and a decoder; give fewer --actors, or more machines"
        )
    return actors, gpus


def _collect_row(collector: Collector, rows: Rows, i: int, vid: str) -> int:
    """Add one row to the collector, and return the number of videos that this completed."""
    end = end_in(rows, i)
    if end is not None and end.error:
        return collector.end(end)
    completed = collector.add(vid, rows["features_0_KD"][i][:, None], int(rows["clip"][i]))
    return completed + (collector.end(end) if end is not None else 0)


def end_in(rows: Rows, i: int) -> End | None:
    """Return the end of a video if one row is its last; None for other rows."""
    vid, error, clips = str(rows["vid"][i]), str(rows["error"][i]), int(rows["clips"][i])
    if error:
        return End(vid=vid, error=error)
    if not clips:
        return None
    return End(vid=vid, clips=clips, duration=float(rows["duration"][i]), warning=str(rows["warning"][i]))
