"""Find the moments of a video file by a sentence.

from sidelight import Grounder

grounder = Grounder.from_pretrained()  # downloads 620 MB, once
grounding = grounder.ground("video.mp4", "a person opens the door")
print(grounding.moments[0])
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from sidelight.core.grounding import Grounding
from sidelight.data.annotations import LONGEST_QUERY
from sidelight.io.files import path_text
from sidelight.io.jsonl import shown
from sidelight.io.progress import Progress

if TYPE_CHECKING:
    import torch

    from sidelight.backbones.protocol import Backbone
    from sidelight.core.summary import Summary
    from sidelight.features.frames import VideoFrames
    from sidelight.features.store import HalfFeatures, VideoFeatures
    from sidelight.training.checkpoint import Checkpoint, PixelCheckpoint

DEFAULT_CACHE = "default"
"""Stands for :func:`default_cache`."""


class OutsideWarning(UserWarning):
    """Warning that a video or a query is unlike all that the model was trained on; the answer may mean nothing."""


class Grounder:
    """A backbone together with the side-tuner that was trained on its features.

    Several threads may use one Grounder at once: each gets the answers and the warnings that it would get alone. Files
    are decoded side by side, and the models compute for one thread at a time. A forked copy of the process hangs once
    PyTorch has computed with several threads: start processes by the method "spawn", each with its own Grounder.

    Args:
        checkpoint: the side-tuner.
        backbone: its backbone; the one that the checkpoint's feature spec names unless given.
        cache: folder in which features of videos are kept, by the content of the file and the feature spec, so that
            the next query on the same file is answered at once; :func:`sidelight.grounder.default_cache` unless given,
            None for no cache.
        device: where to compute; the best device here unless given.
        name: name of the model, which each grounding states; the side-tuner's kind, such as ``sdst``, unless given.

    Raises:
        SpecMismatchError: if the backbone makes other features than the side-tuner was trained on.
        ValueError: if the backbone's weights are needed, or the device cannot be used.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        backbone: Backbone | None = None,
        cache: str | Path | None = DEFAULT_CACHE,
        device: str | torch.device | None = None,
        name: str | None = None,
    ) -> None:
        from sidelight.backbones import backbone_for
        from sidelight.io.runtime import usable_device

        self.device = usable_device(device)
        self.backbone = (backbone or backbone_for(checkpoint.features)).to(self.device)
        checkpoint.features.require(self.backbone.spec, what="the backbone's features")
        self.checkpoint = checkpoint.to(self.device)
        self.name = name or checkpoint.model_name
        self._computing = threading.Lock()
        self.cache = default_cache() if cache == DEFAULT_CACHE else Path(cache) if cache is not None else None

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path | None = None,
        *,
        cache: str | Path | None = DEFAULT_CACHE,
        device: str | torch.device | None = None,
        revision: str | None = None,
        backbone_weights: str | Path | None = None,
        offline: bool = False,
    ) -> Grounder:
        """Load a model. Its files are downloaded once; what, from where and how large is said on stderr before.

        Args:
            name: a name of :data:`sidelight.training.named.NAMED_MODELS` (which `sidelight models` prints), the folder
                of a checkpoint, or a hub id. Unless given, ``r2-tuning/qvhighlights``, a model for real videos.
                ``zero-shot/BACKBONE`` grounds without training, by the joint embeddings of any backbone.
            cache: folder for features; see the class.
            device: ``cpu``, ``cuda``, ``mps``, ...; the best device here unless given.
            revision: branch, tag or commit of a hub id.
            backbone_weights: folder of the backbone's weights. Needed unless they ship with sidelight or the
                checkpoint names them by a hub id.
            offline: never use the network while loading.

        Raises:
            DownloadError: if files are missing and cannot be downloaded; says how to bring them by hand.
            ValueError: if there is no such model, a file is not the one that is known, or the backbone's weights must
                be given.
        """
        from sidelight.backbones import backbone_for
        from sidelight.io.download import offline as without_network
        from sidelight.io.runtime import usable_device
        from sidelight.training.checkpoint import Checkpoint, PixelCheckpoint, reads_frames, zero_shot_backbone
        from sidelight.training.named import DEFAULT_MODEL, NAMED_MODELS, named_checkpoint

        usable_device(device)  # what is wrong is said before a download
        name = DEFAULT_MODEL if name is None else name
        with without_network(offline):
            backbone = None
            if backbone_weights or name not in NAMED_MODELS:
                backbone = zero_shot_backbone(name, weights=backbone_weights, revision=revision)
            if backbone is not None:
                checkpoint = Checkpoint.zero_shot(backbone.spec)
            else:
                folder = named_checkpoint(name, backbone=backbone_weights is None, revision=revision) or name
                if reads_frames(folder, revision=revision):
                    of_pixels = PixelCheckpoint.from_pretrained(
                        folder, revision=revision, backbone_weights=backbone_weights
                    )
                    return PixelGrounder(of_pixels, device=device, name=str(name))
                checkpoint = Checkpoint.from_pretrained(folder, revision=revision)
                backbone = backbone_for(checkpoint.features, weights=backbone_weights or None)
            return cls(checkpoint, backbone=backbone, cache=cache, device=device, name=str(name))

    @overload
    def ground(
        self, video: str | Path, query: str, *, progress: Progress = ..., allow_playlists: bool = ...
    ) -> Grounding: ...
    @overload
    def ground(
        self,
        video: str | Path,
        query: list[str] | tuple[str, ...],
        *,
        progress: Progress = ...,
        allow_playlists: bool = ...,
    ) -> list[Grounding]: ...

    def ground(
        self,
        video: str | Path,
        query: str | list[str] | tuple[str, ...],
        *,
        progress: Progress = False,
        allow_playlists: bool = False,
    ) -> Grounding | list[Grounding]:
        """Find the moments of a video in which a sentence is true.

        Args:
            video: a video file of any length, or its address (``https://``, ``s3://`` and all else that fsspec reads),
                from which it is copied first. A video longer than the model's window is read in overlapping windows.
            query: a sentence, or several, which share the features of the video.
            progress: True shows a bar on a terminal once reading the video takes longer than 2 s. A function is called
                with the part of the video that has been read, 0 to 1, unless its features are in the cache; an
                exception that it raises ends the call.
            allow_playlists: read a video that is a playlist (HLS) with files in its own folder; allow it only for
                playlists that you trust.

        Returns:
            A Grounding for one sentence, a list of Groundings for several.

        Raises:
            VideoError: if the file cannot be read as a video.
            ValueError: if a query is empty or no sentence, there is none, or the video is no path.
            StorageError: if the file at an address cannot be fetched.
        """
        from sidelight.features.sources import local_video
        from sidelight.video import playlist
        from sidelight.video.damage import warn

        queries = checked_queries(query)
        name = path_text(video)
        text = self._encode(queries)
        with playlist.allow_playlists(allow_playlists), local_video(video) as file:
            read, notes = self._read(file, progress=progress)
            doubts = self._doubts(file, queries)
        for note in notes:
            warn(note)
        for doubt in dict.fromkeys(doubt for of_query in doubts for doubt in of_query):
            warn(doubt, OutsideWarning)
        groundings = self._answer(read, text, queries, name, progress=progress is True)
        answers = zip(groundings, doubts, strict=True)
        groundings = [replace(grounding, notes=(*notes, *of_query)) for grounding, of_query in answers]
        return groundings[0] if isinstance(query, str) else groundings

    def summarize(
        self,
        video: str | Path,
        *,
        topic: str | None = None,
        share: float = 0.15,
        seconds: float | None = None,
        progress: bool = False,
        allow_playlists: bool = False,
    ) -> Summary:
        """Return the best moments of a video without a question.

        The video is cut into segments where its features change (kernel temporal segmentation). The summary is the
        segments with the highest sum of scores that fit into the length (a knapsack). The scores are the highlight
        curve of the model for the topic. A segment that is longer than the summary is cut into equal
        parts, so that one shot can be summarized too.

        Args:
            video: as for :meth:`ground`.
            topic: a sentence that says what matters; unless given, the subject of a model that was trained on the
                highlights of one kind of video, and a neutral sentence for other models, with a warning that the
                summary is a guess.
            share: longest summary, as a share of the video.
            seconds: longest summary in seconds, instead of the share; at least one clip is picked.
            progress: as for :meth:`ground`.
            allow_playlists: as for :meth:`ground`.

        Raises:
            VideoError: if the file cannot be read as a video.
            ValueError: if the topic is empty, a length is out of range, or the model reads frames and makes no
                features.
            StorageError: if the file at an address cannot be fetched.
        """
        from sidelight.features.sources import local_video
        from sidelight.metrics.summaries import summary_of
        from sidelight.training.named import topic_of
        from sidelight.video import playlist
        from sidelight.video.damage import warn

        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {share}")
        if seconds is not None and not seconds > 0:
            raise ValueError(f"seconds must be above 0, got {seconds}")
        sentence = topic_of(self.name) if topic is None else topic
        (query,) = checked_queries(sentence)
        name, text = path_text(video), self._encode([query])
        with playlist.allow_playlists(allow_playlists), local_video(video) as file:
            features, notes = self._read(file, progress=progress)
            (doubts,) = self._doubts(file, [query])
        if topic is None and self.checkpoint.model_config.get("boundary_head", True):
            doubts.append(
                f"no topic was given, and {self.name} was trained to find what a sentence describes: its summary for "
                f"{query!r} is a guess; give a topic, or use a model of highlights (`sidelight models --all`)"
            )
        for note in notes:
            warn(note)
        for doubt in doubts:
            warn(doubt, OutsideWarning)
        (grounding,) = self._answer(features, text, [query], name)
        vectors_TD = clip_vectors(features.cut_to(grounding.timeline))
        grounding = replace(grounding, notes=(*notes, *doubts))
        return summary_of(grounding, vectors_TD, share=share, seconds=seconds)

    def _encode(self, queries: Sequence[str]) -> Any:
        """Return what the model reads of sentences."""
        return self.encode(queries)

    def _read(self, video: Path, *, progress: Progress) -> tuple[Any, list[str]]:
        """Return what the model reads of a video file, and sentences about the file's damage and its times."""
        return self._features_of_file(video, progress=progress)

    def _answer(
        self, read: Any, text: Any, queries: Sequence[str], name: str, *, progress: bool = False
    ) -> list[Grounding]:
        """Return the grounding of each query, from what :meth:`_read` and :meth:`_encode` returned."""
        return self.ground_features(read, text, queries, video_name=name, progress=progress)

    def _doubts(self, video: Path, queries: Sequence[str]) -> list[list[str]]:
        """Return, for each query, sentences that say why its answer may mean nothing."""
        from sidelight.backbones.protocol import LimitedBackbone

        backbone = self.backbone
        if not isinstance(backbone, LimitedBackbone):
            return [[] for _ in queries]
        of_video = backbone.video_doubt(video, self.name)
        return [[doubt for doubt in (of_video, backbone.query_doubt(query, self.name)) if doubt] for query in queries]

    def encode(self, queries: Sequence[str]) -> list[HalfFeatures]:
        """Return the (K, L, D_t) features of each sentence."""
        from sidelight.features.extract import encode_each

        with self._computing:
            return encode_each(queries, self.backbone)

    def features(self, video: str | Path, *, allow_playlists: bool = False) -> VideoFeatures:
        """Return the (K, T, D_v) features of a video file or address, from the cache if they are in it.

        Features of a damaged file are not cached, so that each call warns about the damage. Notes about a file's times
        (``probe``) are issued as warnings too, at each call.

        Args:
            video: as for :meth:`ground`.
            allow_playlists: as for :meth:`ground`.

        Raises:
            VideoError: if the file cannot be read as a video.
            StorageError: if the file at an address cannot be fetched.
            ValueError: if the video is no path.
        """
        from sidelight.features.sources import local_video
        from sidelight.video import playlist
        from sidelight.video.damage import warn

        with playlist.allow_playlists(allow_playlists), local_video(video) as path:
            features, notes = self._features_of_file(path)
        for note in notes:
            warn(note)
        return features

    def _features_of_file(self, video: Path, *, progress: Progress = False) -> tuple[VideoFeatures, list[str]]:
        """Return the features of a file, and sentences about its damage and its times."""
        from sidelight.features.cache import FeatureCache
        from sidelight.features.extract import encode_video_file
        from sidelight.features.sources import content_digest
        from sidelight.video.read import probe

        damage: list[str] = []

        def encoded(folder: Path | None) -> VideoFeatures:
            return encode_video_file(
                video,
                self.backbone,
                folder=folder,
                progress=progress,
                on_damage=damage.append,
                lock=self._computing,
            )

        if self.cache is None:
            return encoded(None), damage
        cache = FeatureCache(self.cache, self.backbone.spec)  # a wrong limit is said before the work
        info = probe(video)  # has the best messages for a file that is not a video
        notes = ["; ".join(info.notes)] if info.notes else []
        # Features without the mark may be of an earlier version, which gave such a video other times or colours.
        key = content_digest(video) + ("-2" if notes or info.hdr else "")
        features = cache.read(key)
        if features is not None:
            return features, notes
        features = encoded(cache.folder)
        if damage == notes:
            cache.keep(key, features)
        return features, damage

    def ground_features(
        self,
        video: VideoFeatures,
        text: Sequence[HalfFeatures],
        queries: Sequence[str],
        *,
        video_name: str | None = None,
        progress: bool = False,
    ) -> list[Grounding]:
        """Return the grounding of each query in a video, from features. Memory grows with the answers alone.

        Args:
            video: features of the video.
            text: (K, L, D_t) features of each query.
            queries: the sentences.
            video_name: name of the video, for the groundings.
            progress: show a bar on a terminal if several queries take longer than 2 s.
        """
        from tqdm import tqdm

        from sidelight.training.predict import ground_queries

        checkpoint = self.checkpoint
        if checkpoint.round_clips:
            video = video.cut_to(video.timeline.rounded())
        answers = ground_queries(
            checkpoint.model,
            video,
            text,
            queries,
            checkpoint.decode,
            window_clips=checkpoint.window_clips,
            video=video_name,
        )
        groundings = []
        shown = None if progress and len(queries) > 1 else True
        with tqdm(total=len(queries), desc="answering", unit="query", delay=2, leave=False, disable=shown) as bar:
            for _ in queries:
                with self._computing:
                    groundings.append(next(answers))
                bar.update()
        return self._named(groundings, checkpoint.features.digest())

    def _named(self, groundings: Sequence[Grounding], digest: str) -> list[Grounding]:
        """Return the groundings with the model's name and the digest of its inputs, and without empty moments.

        Published decoding keeps these for its metrics; they answer nothing.
        """
        return [
            replace(
                g,
                model=self.name,
                features=digest,
                moments=tuple(m for m in g.moments if m.score > 0 and m.duration > 0),
            )
            for g in groundings
        ]


class PixelGrounder(Grounder):
    """A model that was trained from pixels, with its backbone and sentence encoder.

    Nothing of a video is kept: each call decodes the file, and runs the backbone once for the layers below the first
    adapter and once for each query above it, where the adapters read the sentence.

    Args:
        checkpoint: the model.
        device: where to compute; the best device here unless given.
        name: name of the model, which each grounding states; the model's kind unless given.

    Raises:
        ValueError: if the device cannot be used.
    """

    def __init__(
        self, checkpoint: PixelCheckpoint, *, device: str | torch.device | None = None, name: str | None = None
    ) -> None:
        from sidelight.io.runtime import usable_device

        self.device, self.cache = usable_device(device), None
        self._computing = threading.Lock()
        self.pixels = checkpoint.to(self.device)
        self.name = name or checkpoint.model_name

    def summarize(self, video: str | Path, **options: Any) -> Summary:
        """Raise ValueError: there are no features."""
        raise ValueError(f"{self.name} reads the frames of a video and makes no features; summarize by another model")

    def encode(self, queries: Sequence[str]) -> list[HalfFeatures]:
        """Raise ValueError: there are no features."""
        raise ValueError(f"{self.name} reads the frames of a video and makes no features; use ground")

    def features(self, video: str | Path, *, allow_playlists: bool = False) -> VideoFeatures:
        """Raise ValueError: there are no features."""
        raise ValueError(f"{self.name} reads the frames of a video and makes no features; use ground")

    def ground_features(
        self,
        video: VideoFeatures,
        text: Sequence[HalfFeatures],
        queries: Sequence[str],
        *,
        video_name: str | None = None,
        progress: bool = False,
    ) -> list[Grounding]:
        """Raise ValueError: there are no features."""
        raise ValueError(f"{self.name} reads the frames of a video and no features; use ground")

    def _encode(self, queries: Sequence[str]) -> torch.Tensor:
        with self._computing:
            return self.pixels.sentences.encode(queries)

    def _read(self, video: Path, *, progress: Progress) -> tuple[VideoFrames, list[str]]:
        from sidelight.features.frames import read_frames
        from sidelight.training.frames import frame_sampling

        damage: list[str] = []
        frames = read_frames(video, frame_sampling(self.pixels.frames), progress=progress, on_damage=damage.append)
        return frames, damage

    def _answer(
        self, read: VideoFrames, text: torch.Tensor, queries: Sequence[str], name: str, *, progress: bool = False
    ) -> list[Grounding]:
        from sidelight.training.predict import ground_frames

        pixels = self.pixels
        with self._computing:
            groundings = ground_frames(
                pixels.model,
                read,
                text,
                queries,
                pixels.decode,
                clip_seconds=pixels.clip_seconds,
                window_clips=pixels.window_clips,
                video=name,
            )
        return self._named(groundings, pixels.frames.digest())

    def _doubts(self, video: Path, queries: Sequence[str]) -> list[list[str]]:
        from sidelight.backbones.protocol import LimitedBackbone

        tower, sentences = self.pixels.model.tower, self.pixels.sentences
        of_video = tower.video_doubt(video, self.name) if isinstance(tower, LimitedBackbone) else None
        limited = sentences if isinstance(sentences, LimitedBackbone) else None
        of_queries = [limited.query_doubt(query, self.name) if limited else None for query in queries]
        return [[doubt for doubt in (of_video, of_query) if doubt] for of_query in of_queries]


def clip_vectors(features: VideoFeatures) -> npt.NDArray[np.float32]:
    """Return one vector per clip, (T, D): the last level, and the mean of tokens where all were kept."""
    video_TD = features.video_KTD[-1]
    blocks = [video_TD[first : first + 256].astype(np.float32) for first in range(0, len(video_TD), 256)]
    return np.concatenate([block.mean(axis=1) if block.ndim == 3 else block for block in blocks])


def checked_queries(query: Any) -> list[str]:
    """Return the queries as a list.

    Args:
        query: a sentence, or a list or tuple of sentences.

    Raises:
        ValueError: if there is none, or one is empty, no sentence, or longer than any backbone reads.
    """
    if not isinstance(query, (str, list, tuple)):
        raise ValueError(f"query must be a sentence or a list of sentences, got {shown(query)}")
    queries: list[Any] = [query] if isinstance(query, str) else list(query)
    if wrong := [sentence for sentence in queries if not isinstance(sentence, str)]:
        raise ValueError(f"each query must be a sentence, got {shown(wrong[0])} in the list; remove it")
    if not queries:
        raise ValueError("there is no query; expected a sentence or a list of sentences")
    if not all(sentence.strip() for sentence in queries):
        raise ValueError("a query is empty; expected a sentence, such as 'a person opens the door'")
    if long := [sentence for sentence in queries if len(sentence) > LONGEST_QUERY]:
        raise ValueError(
            f"a query has {len(long[0]):,} characters, the limit is {LONGEST_QUERY:,}: {shown(long[0])}; shorten it"
        )
    return queries


def default_cache() -> Path:
    """Return the folder in which features are kept: below SIDELIGHT_CACHE, else below the user's cache folder."""
    from sidelight.io.files import cache_folder

    return cache_folder("features")
