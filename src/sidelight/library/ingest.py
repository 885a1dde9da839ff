"""Decode videos once, and encode their clips for both stages of a search.

Legend: K levels, C clips of a part, T clips of a video, D width of features, E width of the joint space.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sidelight.features.extract import BatchEncoder, clips_at_once, sampling_of, video_features
from sidelight.features.growing import GrowingFeatures
from sidelight.features.store import HalfFeatures, VideoFeatures
from sidelight.video.workers import DecodeWorkers, End

if TYPE_CHECKING:
    from sidelight.backbones.protocol import Backbone


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


class _Unfinished:
    """A video whose clips are not all encoded yet."""

    def __init__(self, parts: int, folder: Path) -> None:
        self.growing = [GrowingFeatures(folder, spare=True) for _ in range(parts)]
        self.end: End | None = None


def encode_videos(
    files: Mapping[str, str | Path], backbones: Sequence[Backbone], *, folder: Path, workers: int
) -> Iterator[Encoded]:
    """Yield each video when its last clip is encoded, or when it failed.

    A video's features are the same to the bit whatever other videos are read with it.

    Args:
        files: key -> file.
        backbones: the model's backbone, and the one that makes joint embeddings; once if they are the same.
        folder: where large features lie while they are made.
        workers: processes that decode; 0 decodes in this process.

    Raises:
        ValueError: if the two backbones read other frames.
    """
    samplings = [sampling_of(backbone.spec) for backbone in backbones]
    if any(sampling != samplings[0] for sampling in samplings):
        raise ValueError(f"the model's backbone and its joint embeddings read other frames: {samplings}")
    encoders = [BatchEncoder(backbone, clips_at_once(backbone.device.type)) for backbone in backbones]
    videos: dict[str, _Unfinished] = {}

    def put(part: int, encoded: Iterator[tuple[str, HalfFeatures]]) -> Iterator[Encoded]:
        for key, features_KCD in encoded:
            if key in videos:  # else it failed after these clips were sent
                videos[key].growing[part].put(features_KCD)
                yield from _finished(videos, key, backbones)

    with DecodeWorkers(files, samplings[0], workers=workers) as decoded:
        for item in decoded:
            if isinstance(item, End) and item.error:
                videos.pop(item.vid, None)
                yield Encoded(key=item.vid, error=item.error)
                continue
            video = videos.setdefault(item.vid, _Unfinished(len(backbones), folder))
            if isinstance(item, End):
                video.end = item
                yield from _finished(videos, item.vid, backbones)
                continue
            for part, encoder in enumerate(encoders):
                yield from put(part, encoder.put(item.vid, item.pixels_CFSS3))
        for part, encoder in enumerate(encoders):
            yield from put(part, encoder.flush())


def _finished(videos: dict[str, _Unfinished], key: str, backbones: Sequence[Backbone]) -> Iterator[Encoded]:
    """Yield a video if all of its clips have arrived, and forget it."""
    video = videos[key]
    if video.end is None or any(growing.clips < video.end.clips for growing in video.growing):
        return
    del videos[key]
    features_KTD, joint_KTE = video.growing[0].finish(), video.growing[-1]
    yield Encoded(
        key=key,
        features=video_features(features_KTD, video.end.duration, backbones[0].spec.clip_seconds),
        joint_TE=(features_KTD if len(backbones) == 1 else joint_KTE.finish())[0],
        notes=(video.end.warning,) if video.end.warning else (),
    )
