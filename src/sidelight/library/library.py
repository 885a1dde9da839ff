"""A folder with the features and embeddings of many videos, which answers queries about all of them.

It lies on this machine or in object storage (``folder.py``):

library.json     format, model, feature specs, where the videos come from
features/        a feature store: one file per video, by the digest of its content
tables/          LanceDB: the video files, and one embedding per clip
failures.jsonl   the files that could not be read, each with the reason; absent if there are none
calibration.json how likely a hit is right; absent until the library is calibrated
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sidelight.core.options import is_finite_number
from sidelight.features.store import FeatureStore
from sidelight.grounder import Grounder, PixelGrounder
from sidelight.io.files import path_text
from sidelight.library.answers import Changes, SearchResult, Status, Where
from sidelight.library.calibration import Calibration
from sidelight.library.folder import MANIFEST, folder_at
from sidelight.library.manifest import Manifest
from sidelight.library.places import Places, absolute, absolute_sources, files_of
from sidelight.library.tables import Tables, VideoRow, require_lancedb
from sidelight.library.writer import Writer, read_failures

if TYPE_CHECKING:
    import torch

    from sidelight.backbones.protocol import Backbone
    from sidelight.data.annotations import Annotation
    from sidelight.library.calibration import CalibrationReport
    from sidelight.library.ingest import Engine
    from sidelight.library.search import Searcher

EngineName = Literal["local", "ray"]


class Library:
    """Videos that can be searched together: make one with :meth:`create`, open it with :meth:`open`.

    Searches may run while another process adds videos; they see each video when it is complete.

    Args:
        folder: the library; an address such as ``s3://bucket/films.lib`` if it lies in object storage.
        model: another model that reads the same features; the one of the library unless given.
        device: ``cpu``, ``cuda``, ``mps``, ...; the best device here unless given.
        backbone_weights: folder of the backbone's weights, if it has moved.

    Raises:
        SpecMismatchError: if the library has features of another spec than the model reads.
        ValueError: if LanceDB is missing, the folder is no library, or its format is of another version.
        StorageError: if the storage of an address cannot be reached.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        model: str | Path | None = None,
        device: str | torch.device | None = None,
        backbone_weights: str | Path | None = None,
    ) -> None:
        require_lancedb()
        self._folder = folder_at(folder)
        self.place = self._folder.name
        """Absolute path of the folder, or its address."""
        self._manifest = Manifest.read(self._folder)
        self._model, self._device = str(model or self._manifest.model), device
        self._weights = _text(backbone_weights) or self._manifest.backbone_weights
        if self._model != self._manifest.model:
            self.grounder  # noqa: B018  # refuses a model of other features now, not at the first search

    @classmethod
    def create(
        cls,
        folder: str | Path,
        *,
        model: str | Path | None = None,
        device: str | torch.device | None = None,
        backbone_weights: str | Path | None = None,
    ) -> Library:
        """Make a library without videos, or open the one in the folder.

        Args:
            folder: the library, or its address; made if need be.
            model: as for :meth:`sidelight.Grounder.from_pretrained`; the default model unless given.
            device: ``cpu``, ``cuda``, ``mps``, ...; the best device here unless given.
            backbone_weights: folder of the backbone's weights, where they do not come with the model.

        Raises:
            SpecMismatchError: if the library in the folder has features of another spec than the model reads.
            ValueError: if LanceDB is missing, the model reads no features, or the folder holds something else.
        """
        require_lancedb()
        place = folder_at(folder)
        if place.has(MANIFEST):
            return cls.open(folder, model=model, device=device, backbone_weights=backbone_weights)
        if place.is_foreign():
            raise ValueError(
                f"{place.name} exists and is no library; give a folder that is empty or does not exist yet"
            )
        from sidelight.training.named import NAMED_MODELS

        grounder = Grounder.from_pretrained(model, cache=None, device=device, backbone_weights=backbone_weights)
        _require_features(grounder)
        weights = _text(backbone_weights)
        joint = _joint_of(grounder, weights)
        name = grounder.name
        if name not in NAMED_MODELS and os.path.isdir(name):
            name = os.path.abspath(name)
        with place.only_writer():
            if not place.has(MANIFEST):  # another process may have been faster
                spec = grounder.checkpoint.features
                Manifest(model=name, backbone_weights=weights, features=spec, joint=joint.spec).write(place)
        library = cls(folder, device=device)
        library._manifest.features.require(grounder.checkpoint.features, than=f"those in {place.name}")
        library.__dict__.update(grounder=grounder, joint=joint)  # loaded already
        return library

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        model: str | Path | None = None,
        device: str | torch.device | None = None,
        backbone_weights: str | Path | None = None,
    ) -> Library:
        """Open a library; arguments and errors as for the class."""
        return cls(folder, model=model, device=device, backbone_weights=backbone_weights)

    # --- parts, each loaded when it is needed -------------------------------------------------------------------------

    @cached_property
    def grounder(self) -> Grounder:
        """Return the model.

        Raises:
            SpecMismatchError: if it reads features of another spec than those of the library.
        """
        grounder = Grounder.from_pretrained(
            self._model, cache=None, device=self._device, backbone_weights=self._weights
        )
        _require_features(grounder)
        self._manifest.features.require(
            grounder.checkpoint.features,
            what=f"the features of the model {self._model}",
            than=f"those in {self.place}",
        )
        return grounder

    @cached_property
    def joint(self) -> Backbone:
        """Return the backbone that makes joint embeddings.

        Raises:
            SpecMismatchError: if it makes other embeddings than those of the library.
        """
        joint = _joint_of(self.grounder, self._weights)
        self._manifest.joint.require(joint.spec, what="the joint embeddings", than=f"those in {self.place}")
        return joint

    @cached_property
    def store(self) -> FeatureStore:
        """Return the features."""
        return self._folder.store(self._manifest.features)

    @cached_property
    def _tables(self) -> Tables:
        """Return files and embeddings."""
        is_new = not self._manifest.sources  # no video was ever added
        return Tables(self._folder, self._manifest.joint.video_dim, is_new=is_new)

    # --- changes ------------------------------------------------------------------------------------------------------

    def add(
        self,
        videos: str | Path | Iterable[str | Path],
        *,
        engine: EngineName = "local",
        workers: int | None = None,
        actors: int | None = None,
        progress: bool = False,
    ) -> Changes:
        """Add video files. A call that was interrupted goes on where it stopped; a broken file stops no other.

        Args:
            videos: folders (without those below), files, patterns such as ``films/**/*.mp4``, ``.txt`` lists, and
                addresses of files, folders and patterns.
            engine: ``local``, or ``ray`` for the Ray cluster of ``RAY_ADDRESS``, whose machines must all be able to
                read the videos and the backbone's weights.
            workers: processes that decode; by the number of processors unless given.
            actors: processes with backbones on a Ray cluster; one per GPU unless given.
            progress: show a bar.

        Raises:
            ValueError: if there are no such videos, or another process writes into the library.
            StorageError: if the storage of an address cannot be reached.
        """
        sources = absolute_sources([videos] if isinstance(videos, (str, Path)) else videos)
        files = files_of(sources)
        reads = self._engine(engine, workers, actors)
        with self._writing() as writer:
            return writer.add(sources, files, reads, self._doubt, progress=progress)

    def update(
        self,
        videos: Iterable[str | Path] = (),
        *,
        engine: EngineName = "local",
        workers: int | None = None,
        actors: int | None = None,
        progress: bool = False,
    ) -> Changes:
        """Compare the library with its files: add new ones, read changed ones, follow moved ones, remove deleted ones.

        A file counts as deleted if its folder still holds other files. If the folder is missing or empty, such as that
        of a drive that is not connected, or its storage cannot be reached, its videos stay.

        Args:
            videos: where to look too, such as a folder to which videos were moved.
            engine: as for :meth:`add`.
            workers: as for :meth:`add`.
            actors: as for :meth:`add`.
            progress: show a bar.

        Raises:
            ValueError: if there are no such videos, or another process writes into the library.
            StorageError: if the storage of the library cannot be reached.
        """
        more = absolute_sources(videos)
        reads = self._engine(engine, workers, actors)
        with self._writing() as writer:
            return writer.update(more, reads, self._doubt, progress=progress)

    def remove(self, videos: str | Path | Iterable[str | Path]) -> list[str]:
        """Remove videos, and return their files. An update does not add them again; :meth:`add` does.

        Args:
            videos: files, folders with all that is in and below them, or addresses; they need not exist any more.

        Raises:
            ValueError: if one of them is not in the library, or another process writes into the library.
        """
        places = [absolute(video).rstrip("/") for video in ([videos] if isinstance(videos, (str, Path)) else videos)]
        with self._writing() as writer:
            return writer.remove(places)

    @contextmanager
    def _writing(self) -> Iterator[Writer]:
        """Hold the lock of the library inside the block; another process may have changed it before."""
        with self._folder.only_writer() as check:
            self._tables.refresh()
            self.store.refresh()
            try:
                yield Writer(self._folder, self.store, self._tables, check)
            finally:
                self._manifest = Manifest.read(self._folder)

    def _engine(self, name: str, workers: int | None, actors: int | None) -> Engine:
        """Return what reads videos.

        Raises:
            ValueError: if a number is too small, or the engine is unknown or not installed.
        """
        from sidelight.features.extract import workers_for
        from sidelight.library.ingest import LocalEngine, RayEngine

        if name == "ray":
            specs = list(dict.fromkeys([self._manifest.features, self._manifest.joint]))
            return RayEngine(specs, weights=self._weights, workers=workers, actors=actors)
        if name != "local":
            raise ValueError(f"engine must be local or ray, got {name}")
        if workers is not None and workers < 0:
            raise ValueError(f"workers must be 0 or more, got {workers}")
        if actors is not None:
            raise ValueError("actors is for the engine ray")
        backbones = list(dict.fromkeys([self.grounder.backbone, self.joint]))
        return LocalEngine(backbones, workers=workers_for(self.joint) if workers is None else workers)

    def _doubt(self, video: str) -> str | None:
        """Return why the model may know nothing about a video file or an address."""
        from sidelight.backbones.protocol import LimitedBackbone
        from sidelight.features.sources import local_video

        backbone = self.grounder.backbone
        if not isinstance(backbone, LimitedBackbone):
            return None
        with local_video(video) as file:
            return backbone.video_doubt(file, self._model)

    def failures(self) -> dict[str, str]:
        """Return the files that could not be read, with the reasons.

        Raises:
            ValueError: if the list is damaged.
        """
        return read_failures(self._folder)

    @property
    def folders(self) -> list[str]:
        """Return the folders whose videos were added as a whole."""
        return [source for source in self._manifest.sources if os.path.isdir(source)]

    # --- facts --------------------------------------------------------------------------------------------------------

    def files(self) -> list[VideoRow]:
        """Return a row for each file of the library, sorted by path."""
        self._tables.refresh()
        return self._tables.videos()

    def status(self) -> Status:
        """Return facts about the library."""
        rows = self.files()
        contents = {row.number: row for row in rows}
        places = Places()
        return Status(
            model=self._manifest.model,
            files=len(rows),
            videos=len(contents),
            clips=sum(row.clips for row in contents.values()),
            seconds=sum(row.duration for row in contents.values()),
            bytes=self._folder.size(),
            indexed=self._tables.is_indexed(),
            sources=self._manifest.sources,
            missing=tuple(row.path for row in rows if places.is_missing(row.path)),
            failed=self.failures(),
        )

    def verify(self) -> dict[str, str]:
        """Read the whole library and compare it with what was written; the video files are not decoded.

        Returns:
            Place -> fault; empty if the library is faultless.

        Raises:
            ValueError: if a table cannot be read at all.
        """
        from sidelight.library.verify import faults_of

        return faults_of(self.files(), self.store, self._tables)

    # --- search -------------------------------------------------------------------------------------------------------

    @cached_property
    def _searcher(self) -> Searcher:
        from sidelight.library.search import Searcher

        return Searcher(self.grounder, self.joint, self.store, self._tables)

    def search(
        self,
        query: str,
        *,
        top: int = 10,
        min_score: float = 0.0,
        min_relevance: float | None = None,
        where: Where | None = None,
        candidates: int | None = None,
        whole: bool = False,
    ) -> SearchResult:
        """Find the moments of all videos in which a sentence is true.

        Args:
            query: the sentence.
            top: most hits.
            min_score: leave out moments with a lower score; if none is left, the answer is "no such moment".
            min_relevance: leave out hits with a lower relevance; the value of :meth:`calibrate` unless given, and 0 in
                a library that is not calibrated.
            where: which videos to search; all unless given.
            candidates: videos that the model reads, the nearest ones by their embeddings; 10, or ``top`` if that is
                more, unless given.
            whole: whether the model reads all of a long candidate, instead of the parts that are near to the query.

        Raises:
            ValueError: if the query is empty, a number is out of its range, or the calibration is damaged.
        """
        limits = replace(self._choose(top, min_score, where, candidates), min_relevance=min_relevance, whole=whole)
        return self._searcher.by_sentence(query, limits, self.calibration)

    @property
    def calibration(self) -> Calibration | None:
        """Return the calibration that fits the model of this object, or None.

        Raises:
            ValueError: if its file is damaged.
        """
        calibration = Calibration.read(self._folder)
        return calibration if calibration is not None and calibration.model == self._model else None

    def calibrate(
        self, annotations: Sequence[Annotation], *, iou: float = 0.5, progress: bool = False
    ) -> CalibrationReport:
        """Learn from annotated queries how likely a hit is right, and keep it in the library.

        From then on the relevance of a hit is this probability, and :meth:`search` leaves out hits below the one that
        best answers "no such moment" (best F1).

        Args:
            annotations: queries of videos of the library; ``vid`` is the name of a file without its suffix. A sentence
                counts as true in the annotated videos only.
            iou: the lowest IoU with a true window that makes a moment right.
            progress: show a bar.

        Raises:
            ValueError: if too few of the videos are in the library, or another process writes into it.
        """
        from sidelight.library.calibration import calibrate

        with self._writing() as writer:
            limits = self._choose(1, 0.0, None, None)
            judged = self._searcher.judge(annotations, limits, iou=iou, progress=progress)
            calibration, report = calibrate(judged, self._model)
            writer.check()
            calibration.write(self._folder)
        return report

    def search_image(
        self,
        image: str | Path,
        *,
        top: int = 10,
        min_score: float = 0.0,
        where: Where | None = None,
        candidates: int | None = None,
    ) -> SearchResult:
        """Find the moments of all videos that look like an image; its embedding takes the place of a sentence's.

        Args:
            image: the file.
            top: as for :meth:`search`; so are the other arguments.
            min_score: as for :meth:`search`; scores of images are higher than those of sentences.
            where: as for :meth:`search`.
            candidates: as for :meth:`search`.

        Raises:
            VideoError: if the file is no still image.
        """
        return self._searcher.by_image(path_text(image), self._choose(top, min_score, where, candidates))

    def search_like(
        self,
        video: str | Path,
        start: float,
        end: float,
        *,
        top: int = 10,
        min_score: float = 0.0,
        where: Where | None = None,
        candidates: int | None = None,
    ) -> SearchResult:
        """Find moments that look like a moment of a video; the moment itself is left out.

        Args:
            video: a file of the library, or another one, which is read first.
            start: first second of the moment.
            end: last second of the moment.
            top: as for :meth:`search`; so are the other arguments.
            min_score: as for :meth:`search`; scores of moments are higher than those of sentences.
            where: as for :meth:`search`.
            candidates: as for :meth:`search`.

        Raises:
            ValueError: if the moment is not within the video.
            VideoError: if the file cannot be read as a video.
        """
        if not is_finite_number(start) or not is_finite_number(end) or not 0 <= start < end:
            raise ValueError(f"a moment needs 0 <= start < end in seconds, got {start} and {end}")
        limits = self._choose(top, min_score, where, candidates)
        return self._searcher.by_moment(path_text(video), float(start), float(end), limits)

    def _choose(self, top: int, min_score: float, where: Where | None, candidates: int | None) -> Any:
        from sidelight.library.search import Limits

        limits = Limits(top=top, min_score=min_score, candidates=candidates)  # checks the numbers first
        where, rows = where or Where(), self.files()
        if where.folder is not None and not any(where.is_inside(row) for row in rows):
            raise ValueError(f"no video of the library {self.place} lies in {where.folder}; check the folder")
        return replace(limits, all_rows=tuple(rows), rows=tuple(row for row in rows if where.allows(row)))


def _require_features(grounder: Grounder) -> None:
    """Raise ValueError for a model that reads frames."""
    if isinstance(grounder, PixelGrounder):
        raise ValueError(
            f"{grounder.name} reads the frames of videos, and a library keeps features; choose another model"
        )


def _joint_of(grounder: Grounder, weights: str | None) -> Backbone:
    """Return the backbone of a model with joint embeddings: the model's own if it reads them."""
    from sidelight.backbones import joint_backbone_for

    spec = grounder.checkpoint.features
    if spec.pooling == "joint":
        return grounder.backbone
    return joint_backbone_for(spec, weights=weights).to(grounder.device)


def _text(path: str | Path | None) -> str | None:
    """Return a folder as an absolute path, and a hub id as it is."""
    return path if path is None else os.path.abspath(path) if os.path.isdir(path) else str(path)
