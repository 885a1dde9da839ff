"""Features of papers with their feature spec, as a dataset reads them.

Legend: K levels, T clips, P tokens of a clip, L tokens of a sentence, D_v / D_t widths of video and text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sidelight.backbones.protocol import FeatureSpec
from sidelight.core.timeline import CLIPS_OFF, Timeline, clips_to_seconds
from sidelight.features.growing import require_finite
from sidelight.features.layouts.arrays import Array, unit
from sidelight.features.layouts.base import Layout, Shape
from sidelight.features.layouts.registry import LAYOUTS, layout_of
from sidelight.features.store import Features, FeatureStore, HalfFeatures, SampleKey, VideoFeatures
from sidelight.io.jsonl import shown

NORMALISED = " (L2-normalised)"
"""Added to the name of the weights where every vector was divided by its length."""
UNIT_POOLING = "joint-video"
"""The pooling whose vectors have length 1 by definition: Moment-DETR's features of CLIP, as its loader divides them."""


class ForeignFeatures:
    """The features of one layout with their feature spec (see :class:`~sidelight.features.store.Features`).

    Args:
        layout: the files.
        spec: how the features were made; its levels are read.
        stored: the levels in the files.
        durations: vid -> seconds; a video without a duration lasts as long as its features.
        normalise: divide every vector by its length, each folder's vectors on their own.
    """

    late_clips = CLIPS_OFF

    def __init__(
        self,
        layout: Layout,
        spec: FeatureSpec,
        *,
        stored: tuple[int, ...],
        durations: Mapping[str, float],
        normalise: bool,
    ) -> None:
        self.layout, self.spec, self.normalise = layout, spec, normalise
        self.folder = Path(layout.where)
        self._durations = durations
        self._stored_levels, self._rows = len(stored), [stored.index(level) for level in spec.levels]

    def videos(self) -> list[str]:
        """Return the ids of all videos, sorted."""
        return self.layout.vids()

    def has_video(self, vid: str) -> bool:
        """Check whether there are features of a video."""
        return self.layout.has_video(vid)

    def timeline(self, vid: str) -> Timeline:
        """Return one video's timeline, without reading its features.

        Raises:
            ValueError: if the features are missing, of another form, or too long or too short for the video.
        """
        shape = self.layout.video_shape(vid)
        self._require_shape(self.layout.video_path(vid), shape, self.spec.video_dim)
        return fitted_timeline(vid, shape.length, self._durations.get(vid), self.spec.clip_seconds)

    def video(self, vid: str) -> VideoFeatures:
        """Read one video's features.

        Raises:
            ValueError: as :meth:`timeline`, or if float16 cannot hold a number.
        """
        timeline = self.timeline(vid)
        if self.normalise:
            video_KTD = self.layout.unit_video(vid, self._rows)
        else:
            video_KTD = self.layout.pooled_video(vid, self._rows, self.spec)
        half_features = self._halves(video_KTD[:, : timeline.num_clips], f"video {vid!r}", self.layout.video_path(vid))
        return VideoFeatures(video_KTD=half_features, timeline=timeline)

    def texts(self, keys: Iterable[SampleKey]) -> list[HalfFeatures]:
        """Read the features of each key's sentence, (K, L, D_t), in the order of the keys.

        Raises:
            ValueError: if a sentence's features are missing, damaged or of another form.
        """
        return [self.text(key) for key in keys]

    def text(self, key: SampleKey) -> HalfFeatures:
        """Read the features of one key's sentence, (K, L, D_t); errors as :meth:`texts`."""
        path = self.layout.text_path(key)
        self._require_shape(path, self.layout.text_shape(key), self.spec.text_dim)
        text_KLD = self.layout.text(key, self._rows)
        return self._halves(unit(text_KLD) if self.normalise else text_KLD, f"the query {shown(key.query)}", path)

    def _halves(self, values_K: Array, what: str, path: Path) -> HalfFeatures:
        """Convert to float16; ValueError if a number is not finite afterwards."""
        require_finite(values_K, self.spec.levels, store=self.folder, what=what, file=path)
        return np.ascontiguousarray(values_K, dtype=np.float16)

    def _require_shape(self, path: Path, shape: Shape, width: int) -> None:
        if shape.levels != self._stored_levels:
            raise ValueError(
                f"{path} has {shape.levels} levels, the other files have {self._stored_levels}; extract it again"
            )
        if shape.width != width:
            raise ValueError(
                f"{path} is {shape.width} wide, the feature spec says {width}; check which backbone made the file"
            )


def open_layout(
    where: str | Path,
    *,
    layout: str = "",
    durations: Mapping[str, float] | None = None,
    keys: Iterable[SampleKey] = (),
    backbone: str | None = None,
    weights: str | None = None,
    levels: tuple[int, ...] | None = None,
    pooling: str | None = None,
    clip_seconds: float | None = None,
    frames_per_clip: int | None = None,
    normalise: bool = True,
    spec: FeatureSpec | None = None,
) -> Features:
    """Open the features of any layout.

    Args:
        where: a folder, or VIDEO[+VIDEO...],TEXT.
        layout: recognised unless given.
        durations: vid -> seconds.
        keys: the annotations that will be read; one of them tells the width of the sentences' features.
        backbone: which backbone made the features of a paper; the paper's backbone unless given.
        weights: the name of its weights, as in feature specs; or their folder, and then the backbone in that folder
            gives the rest of the spec.
        levels: the levels to read, -1 the last; all unless given.
        pooling: of a clip; the layout's pooling unless given.
        clip_seconds: length of a clip; 2 unless given.
        frames_per_clip: the backbone's own number unless given.
        normalise: moment-detr only: divide every vector by its length, as published loaders do.
        spec: replaces all arguments from ``backbone`` on: assume that the features have this spec.

    Raises:
        ValueError: if the layout's folders are missing, or the features contradict the arguments.
    """
    name = layout_of(where, layout)
    if spec is not None:
        levels, normalise = spec.levels, spec.weights.endswith(NORMALISED) or spec.pooling == UNIT_POOLING
    if name == "sidelight":
        return FeatureStore(where, levels=levels)
    files = LAYOUTS[name](where)
    shape, text_width = _first_shapes(files, keys)
    written_spec = _read_spec(files)
    # Features that were exported from a store come back unchanged.
    normalise = normalise and files.normalised and written_spec is None
    stored = _stored_levels(files, shape, written_spec)
    levels = stored if levels is None else levels
    if missing := set(levels) - set(stored):
        advice = "extract them again with all levels that the model reads" if spec else "choose among those"
        raise ValueError(f"the features in {where} have the levels {stored} and lack {sorted(missing)}; {advice}")
    options = {
        "backbone": backbone,
        "weights": weights,
        "pooling": pooling,
        "clip_seconds": clip_seconds,
        "frames_per_clip": frames_per_clip,
    }
    widths = {"video_dim": shape.width, "text_dim": text_width}
    if written_spec:
        spec = replace(_checked_spec(written_spec, options, files), levels=levels)
    elif spec is None:
        spec = _stated_spec(files, options, levels, widths)
        if normalise and spec.pooling != UNIT_POOLING:
            spec = replace(spec, weights=spec.weights + NORMALISED)
    _require_widths(spec, widths, where)
    if spec.pooling == "tokens" and not files.keeps_tokens:
        raise ValueError(f"the layout {files.name} keeps one vector a clip: pooling must not be tokens")
    return ForeignFeatures(files, spec, stored=stored, durations=durations or {}, normalise=normalise)


def _stored_levels(files: Layout, shape: Shape, written_spec: FeatureSpec | None) -> tuple[int, ...]:
    """Return the levels that the files hold: the ones that their spec names, or the last ones if they have no spec.

    Raises:
        ValueError: if spec and files disagree.
    """
    stored = written_spec.levels if written_spec else tuple(range(-shape.levels, 0))
    if len(stored) != shape.levels:
        raise ValueError(f"{files.spec_file} names {len(stored)} levels, the files have {shape.levels}")
    return stored


def _require_widths(spec: FeatureSpec, widths: Mapping[str, int], where: str | Path) -> None:
    """Refuse a spec whose widths are not those of the files.

    Args:
        spec: the spec.
        widths: field of the spec -> width in the files.
        where: the features, for the message.
    """
    for field, width in widths.items():
        if getattr(spec, field) != width:
            raise ValueError(
                f"the features in {where} are not of the backbone {spec.backbone!r} ({spec.weights}): {field} is "
                f"{width}, expected {getattr(spec, field)}; correct backbone and weights, or give other features"
            )


def durations_of(rows: Iterable[Any]) -> dict[str, float]:
    """Return the seconds of each video, by vid, from its first annotation."""
    durations: dict[str, float] = {}
    for row in rows:
        durations.setdefault(row.vid, row.duration)
    return durations


def fitted_timeline(vid: str, clips: int, duration: float | None, clip_seconds: float) -> Timeline:
    """Return the timeline of a video whose features have ``clips`` clips.

    Features may have up to CLIPS_OFF clips more than the duration: the timeline keeps the duration, and the caller
    cuts the surplus. Features may have up to CLIPS_OFF clips fewer: the timeline keeps the duration too, so that
    moments may end after the features. Without a duration the video lasts as long as its features.

    Raises:
        ValueError: if the lengths differ by more than CLIPS_OFF clips.
    """
    if duration is None:
        return Timeline(duration=clips_to_seconds(clips, clip_seconds), clip_seconds=clip_seconds)
    expected = Timeline(duration=duration, clip_seconds=clip_seconds)
    if abs(clips - expected.num_clips) > CLIPS_OFF:
        raise ValueError(
            f"the features of {vid!r} have {clips} clips of {clip_seconds:g} s, but its {duration:g} s make "
            f"{expected.num_clips}; up to {CLIPS_OFF} more or fewer are taken: compare vid, duration and clip_seconds"
        )
    return replace(expected, clips=min(clips, expected.num_clips))


def _first_shapes(files: Layout, keys: Iterable[SampleKey]) -> tuple[Shape, int]:
    """Return the shape of one video's features, and the width of one sentence's features."""
    rows = list(keys)
    vid = next((row.vid for row in rows if files.has_video(row.vid)), None) or next(iter(files.vids()), None)
    if vid is None:
        folder = files.video_folders[0]
        raise ValueError(f"{files.where}: no video has features ({files.suffix} in {folder}); download or extract them")
    row = next((row for row in rows if files.has_text(row)), None)
    if row is None:
        example = f"; expected files such as {files.text_names(rows[0])[0]}{files.suffix}" if rows else ""
        raise ValueError(
            f"{files.text_folder} has no features of the annotations' sentences{example}: files are named by qid"
        )
    return files.video_shape(vid), files.text_shape(row).width


def _read_spec(files: Layout) -> FeatureSpec | None:
    """Read the feature spec of a folder that sidelight wrote; None for other folders."""
    path = files.spec_file
    if not path.is_file():
        return None
    try:
        return FeatureSpec.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no feature spec ({error}); delete it, and give backbone and weights instead"
        ) from None


def _checked_spec(written: FeatureSpec, options: Mapping[str, Any], files: Layout) -> FeatureSpec:
    """Return the spec in the folder; ValueError if an option contradicts it."""
    for name, value in options.items():
        if value is None or (name == "weights" and _can_load(written.backbone, value)):
            continue
        if name == "pooling" and value == "cls" and written.pooling == "tokens":
            written = replace(written, pooling="cls")  # the first of the tokens
        elif value != getattr(written, name):
            raise ValueError(f"{files.spec_file} says {name} {getattr(written, name)!r}, got {value!r}; correct one")
    return written


def _can_load(backbone: str, weights: str | None) -> bool:
    """Check whether the backbone can be loaded: its weights ship with sidelight, or are in a folder."""
    return backbone == "shapes" or (weights is not None and Path(weights).is_dir())


def _stated_spec(
    files: Layout, options: Mapping[str, Any], levels: tuple[int, ...], widths: Mapping[str, int]
) -> FeatureSpec:
    """Return the feature spec that the options state; the paper's values fill the gaps."""
    paper_backbone, paper_weights = files.paper_backbone()
    name, pooling = options["backbone"] or paper_backbone, options["pooling"] or files.pooling
    if _can_load(name, options["weights"]):
        from sidelight.backbones import load_backbone

        stated = {k: options[k] for k in ("clip_seconds", "frames_per_clip", "weights") if options[k] is not None}
        return load_backbone(name, levels=levels, pooling=pooling, **stated).spec
    if name in ("clip", "internvideo2") and name != paper_backbone and options["weights"] is None:
        raise ValueError(f"backbone.weights must name the weights of {name!r} that made the features in {files.where}")
    weights = options["weights"] or paper_weights
    resize: Literal["stretch", "crop"]
    if name == "internvideo2":
        from sidelight.backbones.internvideo2.config import MEAN as mean
        from sidelight.backbones.internvideo2.config import STD as std

        frames, resolution, resize = 4, 224, "stretch"
    else:  # nothing is known of SlowFast and others: CLIP's numbers fill the gaps
        from sidelight.backbones.clip.released import CLIP_MEAN as mean
        from sidelight.backbones.clip.released import CLIP_STD as std

        frames, resolution, resize = 1, 336 if name == "clip" and weights.endswith("-336") else 224, "crop"
    return FeatureSpec(
        backbone=name,
        weights=weights,
        levels=levels,
        pooling=pooling,
        clip_seconds=options["clip_seconds"] or 2.0,
        frames_per_clip=options["frames_per_clip"] or frames,
        resolution=resolution,
        resize=resize,
        mean=mean,
        std=std,
        **widths,
    )
