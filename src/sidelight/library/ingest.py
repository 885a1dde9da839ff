"""Decode videos once, and encode their clips for both stages of a search: on this machine, or on a Ray cluster.

Legend: K levels, C clips of a part, T clips of a video, D width of features, E width of the joint space.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sidelight.core.messages import first_line
from sidelight.features.extract import BatchEncoder, clips_at_once, sampling_of, video_features
from sidelight.features.growing import GrowingFeatures
from sidelight.features.sources import content_digest, local_video
from sidelight.features.store import HalfFeatures, VideoFeatures
from sidelight.video.damage import VideoError
from sidelight.video.workers import DecodeWorkers, End, Sampling

if TYPE_CHECKING:
    from sidelight.backbones.protocol import Backbone, FeatureSpec
    from sidelight.features.ray import Cluster


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One video after it was read: features and embeddings, or the reason why there are none."""

    key: str
    """Digest of the content."""
    features: VideoFeatures | None = None
    """What the model reads; None if the video could not be read."""
    joint_TE: HalfFeatures | None = None
    """The joint embedding of each clip; None if the video could not be read."""
    error: str = ""
    """Why the video could not be read."""
    notes: tuple[str, ...] = ()
    """Sentences about damage and times."""


@dataclass(frozen=True, kw_only=True)
class Digest:
    """The digest of a file's content, or the reason why there is none."""

    key: str = ""
    """32 hex digits."""
    error: str = ""
    """Why the file could not be read."""


def digest_of(path: str) -> Digest:
    """Read a file, or a copy of an address, and return the digest of its content."""
    try:
        with local_video(path) as file:
            return Digest(key=content_digest(file))
    except (VideoError, OSError) as error:
        return Digest(error=first_line(error))


class Engine(Protocol):
    """The machines that read videos. A video has the same features to the bit, whatever other videos are read too."""

    files_at_once: int
    """Files that are compared with the library, before those with new contents are decoded together."""

    def digests(self, paths: Sequence[str]) -> Iterable[Digest]:
        """Return the digest of each file, in the order of the paths."""

    def encode(self, files: Mapping[str, str], folder: Path) -> Iterator[Encoded]:
        """Yield each video when its last clip is encoded, or when it failed.

        Args:
            files: key -> file.
            folder: where large features lie while they are made.
        """


class LocalEngine:
    """The engine that runs on this machine.

    Args:
        backbones: the model's backbone, and the one that makes joint embeddings; once if they are the same.
        workers: processes that decode; 0 decodes in this process.

    Raises:
        ValueError: if the two backbones read other frames.
    """

    files_at_once = 16

    def __init__(self, backbones: Sequence[Backbone], *, workers: int) -> None:
        self._backbones, self._workers = backbones, workers
        self._sampling = _common_sampling([backbone.spec for backbone in backbones])

    def digests(self, paths: Sequence[str]) -> Iterable[Digest]:
        """Return the digest of each file, in the order of the paths."""
        return map(digest_of, paths)

    def encode(self, files: Mapping[str, str], folder: Path) -> Iterator[Encoded]:
        """Yield each video when its last clip is encoded, or when it failed; arguments as for :class:`Engine`."""
        videos = _Videos([backbone.spec for backbone in self._backbones], folder)
        encoders = [BatchEncoder(backbone, clips_at_once(backbone.device.type)) for backbone in self._backbones]
        with DecodeWorkers(files, self._sampling, workers=self._workers) as decoded:
            for item in decoded:
                if isinstance(item, End):
                    yield from videos.end(item)
                    continue
                for part, encoder in enumerate(encoders):
                    for key, features_KCD in encoder.put(item.vid, item.pixels_CFSS3):
                        yield from videos.put(key, part, features_KCD)
            for part, encoder in enumerate(encoders):
                for key, features_KCD in encoder.flush():
                    yield from videos.put(key, part, features_KCD)


class RayEngine:
    """The engine that runs on a Ray cluster: its machines fetch, compare, decode and encode the files.

    Args:
        specs: the features that the model reads, and the joint embeddings; once if they are the same.
        weights: folder or hub id of the backbone's weights, which every machine must be able to read; None if they
            come with the spec.
        workers: number of videos that are decoded at once; one per processor unless given.
        actors: number of processes with backbones; one per GPU unless given.

    Raises:
        ValueError: if Ray is not installed, a number is too small, or the two backbones read other frames.
    """

    files_at_once = 1024
    """Each group starts the processes with backbones again, which takes longer than one video."""

    def __init__(
        self, specs: Sequence[FeatureSpec], *, weights: str | None, workers: int | None, actors: int | None
    ) -> None:
        from sidelight.features.ray import require_numbers, require_ray

        require_ray()
        require_numbers(workers=workers, actors=actors)
        self._specs, self._weights, self._workers = specs, weights, workers
        self._sampling = _common_sampling(specs)
        self._actors = actors

    @cached_property
    def _cluster(self) -> Cluster:
        """Return the cluster; it is connected, or started, when there is something to read."""
        from sidelight.features.ray import Cluster

        return Cluster.connect(self._actors)

    def digests(self, paths: Sequence[str]) -> Iterable[Digest]:
        """Return the digest of each file, in the order of the paths; the machines of the cluster read the files."""
        import ray

        self._cluster  # noqa: B018  # connects
        digest = ray.remote(num_cpus=1)(digest_of)
        results: list[Digest] = ray.get([digest.remote(path) for path in paths])
        return results

    def encode(self, files: Mapping[str, str], folder: Path) -> Iterator[Encoded]:
        """Yield each video when its last clip is encoded, or when it failed; arguments as for :class:`Engine`."""
        from sidelight.backbones import backbone_for
        from sidelight.features.ray import encoded_rows, end_in

        videos = _Videos(self._specs, folder)
        load = [partial(backbone_for, spec, weights=self._weights) for spec in self._specs]
        named = {key: path for key, path in files.items() if _is_text(path)}
        for key in files.keys() - named.keys():
            yield Encoded(key=key, error="its name is no valid text, which a Ray cluster needs; rename the file")
        if not named:
            return
        for rows in encoded_rows(named, self._sampling, load, self._cluster, workers=self._workers):
            for i, key in enumerate(rows["vid"].tolist()):
                end = end_in(rows, i)
                if end is None or not end.error:
                    for part in range(len(self._specs)):
                        features_KCD, clip = rows[f"features_{part}_KD"][i][:, None], int(rows["clip"][i])
                        yield from videos.put(key, part, features_KCD, clip)
                if end is not None:
                    yield from videos.end(end)


class _Videos:
    """Collects the features of videos from each backbone.

    Args:
        specs: the features of each backbone; the first is what the model reads, the last the joint embeddings.
        folder: where large features lie while they are made.
    """

    def __init__(self, specs: Sequence[FeatureSpec], folder: Path) -> None:
        self._specs, self._folder = specs, folder
        self._growing: dict[str, list[GrowingFeatures]] = {}
        self._ends: dict[str, End] = {}

    def put(self, key: str, part: int, features_KCD: HalfFeatures, first: int | None = None) -> Iterator[Encoded]:
        """Add features of one backbone, and yield the video if this completed it.

        Args:
            key: the video.
            part: place of the backbone.
            features_KCD: features of consecutive clips.
            first: number of the first of these clips; unless given, they follow the clips before.
        """
        if (end := self._ends.get(key)) is None or not end.error:  # else it failed after these clips were sent
            self._of(key)[part].put(features_KCD, first)
            yield from self._finished(key)

    def end(self, end: End) -> Iterator[Encoded]:
        """Note that a video is decoded or failed, and yield it if it is complete."""
        self._ends[end.vid] = end
        if end.error:
            self._growing.pop(end.vid, None)
            yield Encoded(key=end.vid, error=end.error)
        else:
            yield from self._finished(end.vid)

    def _of(self, key: str) -> list[GrowingFeatures]:
        if key not in self._growing:
            self._growing[key] = [GrowingFeatures(self._folder, spare=True) for _ in self._specs]
        return self._growing[key]

    def _finished(self, key: str) -> Iterator[Encoded]:
        """Yield a video if all of its clips have arrived, and forget it."""
        end, parts = self._ends.get(key), self._of(key)
        if end is None or any(growing.clips < end.clips for growing in parts):
            return
        del self._growing[key], self._ends[key]
        features_KTD, joint_KTE = parts[0].finish(), parts[-1]
        yield Encoded(
            key=key,
            features=video_features(features_KTD, end.duration, self._specs[0].clip_seconds),
            joint_TE=(features_KTD if len(parts) == 1 else joint_KTE.finish())[0],
            notes=(end.warning,) if end.warning else (),
        )


def _common_sampling(specs: Sequence[FeatureSpec]) -> Sampling:
    """Return which frames all backbones read; ValueError if they read other frames."""
    samplings = [sampling_of(spec) for spec in specs]
    if any(sampling != samplings[0] for sampling in samplings):
        raise ValueError(f"the model's backbone and its joint embeddings read other frames: {samplings}")
    return samplings[0]


def _is_text(path: str) -> bool:
    """Check whether a path is valid Unicode; a file system may hold other bytes."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
