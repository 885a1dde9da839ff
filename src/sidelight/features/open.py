"""Open the features of a set of annotations, and first extract from videos the features that a store lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidelight.backbones import Backbone, FeatureSpec, backbone_for, load_backbone
from sidelight.core.timeline import durations_differ
from sidelight.features.extract import extract
from sidelight.features.layouts import durations_of, layout_of, open_layout
from sidelight.features.sources import find_videos
from sidelight.features.store import Features, FeatureStore, store_exists
from sidelight.io.storage import is_address
from sidelight.video.damage import VideoError
from sidelight.video.read import probe

if TYPE_CHECKING:
    import torch

    from sidelight.data.annotations import Annotation


@dataclass(frozen=True, kw_only=True)
class FeatureSource:
    """A place with features, what made them, and the videos from which missing features can be extracted."""

    folder: str | Path
    """A feature store, or features in a layout that a paper released: a folder, or VIDEO[+VIDEO...],TEXT."""
    backbone: str
    """Name of the backbone that made the features."""
    levels: tuple[int, ...]
    """The levels to read, in ascending order; -1 is the last layer."""
    pooling: str
    """How a layer's tokens of a clip become one vector; "tokens" keeps all of them."""
    clip_seconds: float | None = None
    """Length of a clip in seconds; the backbone's own if None."""
    frames_per_clip: int | None = None
    """Frames that the backbone sees of each clip; the backbone's own if None."""
    weights: str | Path | None = None
    """Folder or name of the backbone's weights; the backbone's own if None."""
    spec: FeatureSpec | None = None
    """The only feature spec that is accepted; any that fits the fields above if None."""
    videos: str | Path | None = None
    """Folder of the video files; nothing is extracted if it is None or empty."""
    layout: str = ""
    """The layout of the features; recognised if empty."""
    normalise: bool = True
    """Divide every vector of the layout moment-detr by its length."""

    @classmethod
    def of_spec(
        cls,
        spec: FeatureSpec,
        folder: str | Path,
        *,
        videos: str | Path | None = None,
        weights: str | Path | None = None,
    ) -> FeatureSource:
        """Build the source of features that must have the given spec, such as a checkpoint's."""
        return cls(
            folder=folder,
            backbone=spec.backbone,
            levels=spec.levels,
            pooling=spec.pooling,
            weights=weights,
            spec=spec,
            videos=videos,
        )

    @property
    def is_store(self) -> bool:
        """Return whether the folder is, or can become, a feature store of sidelight."""
        return layout_of(self.folder, self.layout) == "sidelight"

    def load_backbone(self) -> Backbone:
        """Load the backbone that extracts into the folder.

        A store with more levels than the wanted ones is filled with all its levels.

        Raises:
            ValueError: if there is no such backbone, or its weights are missing.
            SpecMismatchError: if the backbone makes features of another spec than ``spec``.
        """
        levels = FeatureStore.levels_to_extract(self.folder, self.levels)
        if self.spec is not None:
            return backbone_for(replace(self.spec, levels=levels), weights=self.weights)
        options = {name: getattr(self, name) for name in ("clip_seconds", "frames_per_clip", "weights")}
        chosen = {name: value for name, value in options.items() if value}
        return load_backbone(self.backbone, levels=levels, pooling=self.pooling, **chosen)

    def lacks_features(self, annotations: Sequence[Annotation]) -> bool:
        """Check whether the store is missing, or lacks a video or a query of the annotations."""
        if not store_exists(self.folder):
            return True
        store, vids = FeatureStore(self.folder), dict.fromkeys(a.vid for a in annotations)
        return bool(store.missing_queries(a.query for a in annotations)) or not all(map(store.is_whole, vids))


def open_features_for(
    annotations: Sequence[Annotation],
    source: FeatureSource,
    *,
    backbone: Backbone | None = None,
    device: str | torch.device = "cpu",
    workers: int | None = None,
    progress: bool = False,
    extracts: bool = True,
    barrier: Callable[[], object] | None = None,
) -> Features:
    """Open the features of annotations; where the source has videos, first extract what the store lacks.

    A store that lacks nothing is opened without its videos and without loading a backbone.

    Args:
        annotations: the rows whose videos and queries are read.
        source: where features and videos are.
        backbone: the loaded backbone (:meth:`FeatureSource.load_backbone`), whose spec a store must have; loaded
            when needed if None.
        device: where the backbone computes.
        workers: processes that decode videos, as :func:`sidelight.features.extract.extract` takes them.
        progress: show a progress bar of the extraction.
        extracts: extract in this process; with several processes, only one of them does.
        barrier: waits until every process has called it, so that all open the store when it is complete.

    Raises:
        SpecMismatchError: if the features have another spec than the source or the backbone.
        ValueError: if there are no features, videos are missing or cannot be read, or videos are given for
            features of a layout that cannot be added to.
    """
    features = f"the features in {source.folder}"
    if not source.is_store:
        opened = _open_layout(annotations, source)
        if source.spec is not None:
            source.spec.require(opened.spec, what=features)
        return opened
    if backbone is not None and store_exists(source.folder):
        backbone.spec.require(FeatureStore(source.folder).spec, what=features, than="the backbone makes")
    if source.videos:
        if extracts and source.lacks_features(annotations):
            files = find_videos(source.videos, (a.vid for a in annotations))
            backbone = (backbone or source.load_backbone()).to(device)
            filled = FeatureStore(source.folder) if store_exists(source.folder) else None
            new = {vid: file for vid, file in files.items() if filled is None or not filled.is_whole(vid)}
            require_durations(annotations, new, backbone.spec.clip_seconds)
            queries = (a.query for a in annotations)
            _, failures = extract(files, queries, backbone, source.folder, workers=workers, progress=progress)
            if failures:
                vid, reason = next(iter(failures.items()))
                raise ValueError(
                    f"{len(failures)} of {len(files)} videos could not be read; the first is {vid}: {reason}; repair "
                    "or replace the files, or leave out their annotations"
                )
        if barrier is not None:
            barrier()
    return _open_store(source)


def require_durations(annotations: Sequence[Annotation], files: Mapping[str, str | Path], clip_seconds: float) -> None:
    """Refuse, before the work, files whose length is not the annotated one; addresses are not opened for it.

    Args:
        annotations: the rows.
        files: id -> file.
        clip_seconds: length of a clip, by which a video may differ.

    Raises:
        ValueError: naming the first file of another length.
    """
    durations = durations_of(annotations)
    for vid, file in files.items():
        if is_address(file):
            continue
        try:
            seconds = probe(file).duration
        except VideoError:
            continue  # the extraction reports all files that cannot be read
        if durations_differ(durations[vid], seconds, clip_seconds):
            raise ValueError(
                f"{file} lasts {seconds:g} s, but the annotations of {vid!r} say {durations[vid]:g} s; compare vid, "
                "duration and file (`sidelight data check --videos` lists all)"
            )


def _open_layout(annotations: Sequence[Annotation], source: FeatureSource) -> Features:
    layout = layout_of(source.folder, source.layout)
    if source.videos:
        raise ValueError(
            f"{source.folder} has features in the layout {layout}, which are not added to; leave out "
            "data.train_videos and data.val_videos (in a recipe) or --videos, or name a feature store"
        )
    if source.spec is not None:
        # Released files hold no spec: only widths and levels can be compared with the spec.
        description: dict[str, Any] = {"spec": source.spec}
    else:
        fields = ("backbone", "weights", "levels", "pooling", "clip_seconds", "frames_per_clip", "normalise")
        description = {name: getattr(source, name) for name in fields}
    durations = durations_of(annotations)
    return open_layout(source.folder, layout=layout, durations=durations, keys=annotations, **description)


def _open_store(source: FeatureSource) -> FeatureStore:
    if source.spec is None:
        return FeatureStore(source.folder, levels=source.levels)
    store = FeatureStore(source.folder)
    if set(source.levels) < set(store.spec.levels):
        store = FeatureStore(source.folder, levels=source.levels)
    source.spec.require(store.spec, what=f"the features in {source.folder}")
    return store
