"""The main job: a video file and a sentence become a Grounding.

from sidelight import Grounder

grounder = Grounder.from_pretrained("shapes")
answer = grounder.ground("video.mp4", "a red square spins")
print(answer.moments[0])
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

from sidelight.core.grounding import Grounding

if TYPE_CHECKING:
    import torch

    from sidelight.backbones.protocol import Backbone
    from sidelight.features.store import HalfFeatures, VideoFeatures
    from sidelight.training.checkpoint import Checkpoint


DEFAULT_CACHE = "default"


class CacheWarning(UserWarning):
    """Features could not be kept; everything else goes on."""


class Grounder:
    """A backbone and the side-tuner that was trained on its features, together.

    Args:
        checkpoint: the side-tuner.
        backbone: its backbone; found by the checkpoint's feature spec unless given.
        cache: folder in which a video's features are kept, by the file's content and the spec, so that the next
            query on the same file answers at once; :func:`default_cache` unless given, None for no cache.
        device: where to compute.

    Raises:
        SpecMismatchError: if the backbone makes other features than the side-tuner was trained on.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        backbone: Backbone | None = None,
        cache: str | Path | None = DEFAULT_CACHE,
        device: str | torch.device | None = None,
    ) -> None:
        from sidelight.backbones import backbone_for
        from sidelight.io.runtime import usable_device

        self.device = usable_device(device)
        self.backbone = (backbone or backbone_for(checkpoint.features)).to(self.device)
        checkpoint.features.require(self.backbone.spec, what="the backbone's features")
        self.checkpoint = checkpoint.to(self.device)
        self.cache = default_cache() if cache == DEFAULT_CACHE else Path(cache) if cache is not None else None

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "shapes",
        *,
        cache: str | Path | None = DEFAULT_CACHE,
        device: str | torch.device | None = None,
        revision: str | None = None,
        backbone_weights: str | Path | None = None,
    ) -> Grounder:
        """Load a model: ``shapes`` (ships with sidelight), a checkpoint's folder, a hub id, or a published run such as
        ``r2-tuning/qvhighlights``, whose file is downloaded and converted once.

        Args:
            name: which one.
            cache: folder for features; see the class.
            device: ``cpu``, ``cuda``, ``mps``, ...; the best there is unless given.
            revision: of a hub id.
            backbone_weights: folder of the backbone's weights, where they neither ship with sidelight nor are known
                by their hub id.

        Raises:
            ValueError: if there is no such model, or the backbone's weights have to be given.
        """
        from sidelight.backbones import backbone_for
        from sidelight.training.checkpoint import Checkpoint
        from sidelight.training.convert import published_checkpoint

        folder = published_checkpoint(name, revision=revision) or name
        checkpoint = Checkpoint.from_pretrained(folder, revision=revision)
        backbone = backbone_for(checkpoint.features, weights=backbone_weights) if backbone_weights else None
        return cls(checkpoint, backbone=backbone, cache=cache, device=device)

    @overload
    def ground(self, video: str | Path, query: str) -> Grounding: ...
    @overload
    def ground(self, video: str | Path, query: list[str] | tuple[str, ...]) -> list[Grounding]: ...

    def ground(self, video: str | Path, query: str | list[str] | tuple[str, ...]) -> Grounding | list[Grounding]:
        """Find the moments of a video in which a sentence is true.

        Args:
            video: a video file of any length. One of more than the model's window is read in overlapping windows.
            query: a sentence, or several, which then share the video's features.

        Returns:
            A Grounding for a sentence, a list of them for several.

        Raises:
            VideoError: if the file cannot be read as a video.
            ValueError: if a query is empty, or there is none.
        """
        queries = [query] if isinstance(query, str) else list(query)
        if not queries:
            raise ValueError("there is no query; expected a sentence or a list of sentences")
        for sentence in queries:
            if not sentence.strip():
                raise ValueError("a query is empty; expected a sentence, such as 'a red square spins'")
        text = self.encode(queries)
        found = self.ground_features(self.features(video), text, queries, video_name=str(video))
        return found[0] if isinstance(query, str) else found

    def encode(self, queries: Sequence[str]) -> list[HalfFeatures]:
        """The (K, L, D_t) features of each sentence."""
        from sidelight.features.extract import encode_queries

        found = encode_queries(queries, self.backbone)
        return [found[query] for query in queries]

    def features(self, video: str | Path) -> VideoFeatures:
        """The features of a video file, from the cache if it holds them.

        Raises:
            VideoError: if the file cannot be read as a video.
        """
        from sidelight.features.extract import encode_video_file
        from sidelight.features.sources import content_digest
        from sidelight.features.store import FeatureStore
        from sidelight.video.read import VideoWarning, probe

        if self.cache is None:
            return encode_video_file(video, self.backbone)
        probe(video)  # says best what is wrong with a file that is none
        key = content_digest(video)
        try:
            store = FeatureStore.create(self.cache / self.backbone.spec.digest(), self.backbone.spec)
        except OSError as error:
            warnings.warn(f"no features are kept: {self.cache} cannot be written ({error})", CacheWarning, stacklevel=3)
            return encode_video_file(video, self.backbone)
        if store.has_video(key):
            return store.video(key)
        with warnings.catch_warnings(record=True) as lost:
            warnings.simplefilter("always", VideoWarning)
            found = encode_video_file(video, self.backbone)
        for warning in lost:
            warnings.warn(warning.message, stacklevel=3)
        # What a damaged file lost is told each time, so its features are not kept.
        if not any(issubclass(warning.category, VideoWarning) for warning in lost):
            store.put_video(key, found)
        return found

    def ground_features(
        self,
        video: VideoFeatures,
        text: Sequence[HalfFeatures],
        queries: Sequence[str],
        *,
        video_name: str | None = None,
    ) -> list[Grounding]:
        """Groundings from features at hand: one for each query."""
        from sidelight.training.dataset import collate, unlabelled
        from sidelight.training.predict import ground_batch

        samples = [unlabelled(video, features) for features in text]
        return ground_batch(
            self.checkpoint.model,
            collate(samples),
            [video.timeline] * len(samples),
            queries,
            self.checkpoint.decode,
            window_clips=self.checkpoint.window_clips,
            videos=[video_name] * len(samples),
        )


def default_cache() -> Path:
    """Where features are kept: SIDELIGHT_CACHE, else the user's cache folder."""
    from sidelight.io.files import cache_folder

    return cache_folder("features")
