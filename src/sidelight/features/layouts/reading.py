"""Features of others with their spec, as a dataset reads them.

Legend: K levels, T clips, P tokens of a clip, L tokens of a sentence, D_v / D_t widths of video and text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sidelight.backbones.protocol import FeatureSpec
from sidelight.core.timeline import Timeline
from sidelight.features.layouts.arrays import Array, halves, unit
from sidelight.features.layouts.files import (
    CLIPS_OFF,
    LAYOUTS,
    Layout,
    MomentDETRLayout,
    R2TuningLayout,
    Shape,
    layout_of,
)
from sidelight.features.store import Features, FeatureStore, HalfFeatures, SampleKey, VideoFeatures

NORMALISED = " (L2-normalised)"
"""What stands behind the name of the weights where every vector was divided by its length."""


class ForeignFeatures:
    """The features of one layout with the spec that made them, as a dataset reads them (:class:`Features`).

    Args:
        files: where they are.
        spec: what made them.
        stored: the levels that the files hold; those of the spec are read.
        durations: vid -> seconds; a video that is not among them lasts as long as its features.
        normalise: divide every vector by its length, each folder's by its own.
    """

    slack = CLIPS_OFF

    def __init__(
        self,
        files: Layout,
        spec: FeatureSpec,
        *,
        stored: tuple[int, ...],
        durations: Mapping[str, float],
        normalise: bool,
    ) -> None:
        self.files, self.spec, self.normalise = files, spec, normalise
        self.folder = Path(files.where)
        self._durations = durations
        self._stored, self._rows = len(stored), [stored.index(level) for level in spec.levels]

    def videos(self) -> list[str]:
        """The ids of all videos, sorted."""
        return self.files.vids()

    def has_video(self, vid: str) -> bool:
        """Whether there are features of it."""
        return self.files.has_video(vid)

    def timeline(self, vid: str) -> Timeline:
        """One video's timeline, without reading its features.

        Raises:
            ValueError: if they are missing, of another form, or too long or too short for the video.
        """
        shape = self.files.video_shape(vid)
        self._require(self.files.video_path(vid), shape, self.spec.video_dim)
        return fitted_timeline(vid, shape.length, self._durations.get(vid), self.spec.clip_seconds)

    def video(self, vid: str) -> VideoFeatures:
        """One video's features.

        Raises:
            ValueError: as :meth:`timeline`, or if there are numbers that float16 cannot hold.
        """
        timeline = self.timeline(vid)
        path, array = self.files.video_path(vid), self._read(vid)
        return VideoFeatures(video_KTD=halves(path, array[:, : timeline.num_clips]), timeline=timeline)

    def _read(self, vid: str) -> Array:
        """(K, T, D_v) or (K, T, P, D_v), as the files have it."""
        if isinstance(self.files, MomentDETRLayout) and self.normalise:
            return np.concatenate([unit(part) for part in self.files.parts(vid)], axis=1)[None]
        if not isinstance(self.files, R2TuningLayout) or self.spec.pooling == "tokens":
            return self.files.video(vid, self._rows)
        tokens = self.files.video_shape(vid).tokens
        if tokens > 1 and (self.spec.pooling != "cls" or self.spec.frames_per_clip != 1):
            raise ValueError(
                f"{self.files.video_path(vid)} keeps all {tokens} tokens of a clip: pooling must be tokens, or cls (the"
                f" first of them) with one frame a clip; got {self.spec.pooling} with {self.spec.frames_per_clip}"
            )
        return self.files.first_tokens(vid, self._rows)

    def texts(self, asked: Iterable[SampleKey]) -> list[HalfFeatures]:
        """(K, L, D_t) of each annotation's sentence, in their order.

        Raises:
            ValueError: if one is missing, damaged or of another form.
        """
        return [self.text(one) for one in asked]

    def text(self, asked: SampleKey) -> HalfFeatures:
        """(K, L, D_t) of one annotation's sentence."""
        path = self.files.text_path(asked)
        self._require(path, self.files.text_shape(asked), self.spec.text_dim)
        array = self.files.text(asked, self._rows)
        return halves(path, unit(array) if self.normalise else array)

    def _require(self, path: Path, shape: Shape, width: int) -> None:
        if shape.levels != self._stored:
            raise ValueError(f"{path} has {shape.levels} levels, others there {self._stored}; extract it again")
        if shape.width != width:
            raise ValueError(f"{path} is {shape.width} wide, the feature spec says {width}; was it made by another?")


def open_features(
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
        keys: the annotations that will be read; one of them shows how wide sentences are.
        backbone: what made foreign features; the paper's unless given.
        weights: their name, as it stands in feature specs; or a folder, whose backbone then says all that follows.
        levels: which to read, -1 the last; all unless given.
        pooling: of a clip; the layout's unless given.
        clip_seconds: of a clip; 2 unless given.
        frames_per_clip: the backbone's own unless given.
        normalise: moment-detr only: divide every vector by its length, as published loaders do.
        spec: instead of all that from ``backbone`` on: take the features for made by this one (it says which levels).

    Raises:
        ValueError: if there are no features of that layout, or they cannot be what is said.
    """
    if layout_of(where, layout) == "sidelight":
        return FeatureStore(where, levels=spec.levels if spec else levels)
    files = LAYOUTS[layout_of(where, layout)](where)
    shape, text_width = _first_shapes(files, keys)
    said = _stated_spec(files)
    if spec is not None:
        levels, normalise = spec.levels, spec.weights.endswith(NORMALISED)
    # What was exported from a store comes back as it was.
    normalise = normalise and isinstance(files, MomentDETRLayout) and said is None
    stored = said.levels if said else tuple(range(-shape.levels, 0))
    if len(stored) != shape.levels:
        raise ValueError(f"{files.spec_file} names {len(stored)} levels, the files have {shape.levels}")
    wanted = stored if levels is None else levels
    if missing := set(wanted) - set(stored):
        raise ValueError(
            f"the features in {where} have the levels {stored} and lack {sorted(missing)}; choose among those with "
            "backbone.levels (or --levels)"
        )
    given = {
        "backbone": backbone,
        "weights": weights,
        "pooling": pooling,
        "clip_seconds": clip_seconds,
        "frames_per_clip": frames_per_clip,
    }
    widths = {"video_dim": shape.width, "text_dim": text_width}
    if said:
        made = _checked_against(said, given, files)
        made = replace(made, levels=wanted, weights=made.weights + (NORMALISED if normalise else ""))
    elif spec:
        made = spec
    else:
        made = _spec_of(files, given, wanted, widths)
        made = replace(made, weights=made.weights + (NORMALISED if normalise else ""))
    for name, here in widths.items():
        if getattr(made, name) != here:
            raise ValueError(
                f"the features in {where} are not of the backbone {made.backbone!r} ({made.weights}): {name} is "
                f"{here}, expected {getattr(made, name)}; correct backbone and weights, or give other features"
            )
    if made.pooling == "tokens" and not isinstance(files, R2TuningLayout):
        raise ValueError(f"the layout {files.name} keeps one vector a clip: pooling must not be tokens")
    return ForeignFeatures(files, made, stored=stored, durations=durations or {}, normalise=normalise)


def durations_of(rows: Iterable[Any]) -> dict[str, float]:
    """Seconds of each video, by vid, as its first annotation says."""
    found: dict[str, float] = {}
    for row in rows:
        found.setdefault(row.vid, row.duration)
    return found


def fitted_timeline(vid: str, clips: int, duration: float | None, clip_seconds: float) -> Timeline:
    """The timeline of a video whose features have so many clips.

    Its duration where they are as many as it makes, or up to CLIPS_OFF more (the surplus is then cut); where they are
    up to CLIPS_OFF fewer, it ends with its features; without a duration it lasts as long as they do.

    Raises:
        ValueError: if they are further off.
    """
    whole = Timeline(duration=clips * clip_seconds, clip_seconds=clip_seconds)
    if duration is None:
        return whole
    expected = Timeline(duration=duration, clip_seconds=clip_seconds)
    if abs(clips - expected.num_clips) > CLIPS_OFF:
        raise ValueError(
            f"the features of {vid!r} have {clips} clips of {clip_seconds:g} s, but its {duration:g} s make "
            f"{expected.num_clips}; up to {CLIPS_OFF} more or fewer are taken: compare vid, duration and clip_seconds"
        )
    return expected if clips >= expected.num_clips else whole


def _first_shapes(files: Layout, asked: Iterable[SampleKey]) -> tuple[Shape, int]:
    """The shape of some video, the width of some sentence."""
    rows = list(asked)
    vid = next((row.vid for row in rows if files.has_video(row.vid)), None) or next(iter(files.vids()), None)
    if vid is None:
        raise ValueError(f"{files.where}: no video has features ({files.suffix} in {files.videos_in[0]}); get them")
    row = next((row for row in rows if files.has_text(row)), None)
    if row is None:
        wanted = f"; expected {files.text_names(rows[0])[0]}{files.suffix} and the like" if rows else ""
        raise ValueError(f"{files.text_in} has no features of the annotations' sentences{wanted}: names go by qid")
    return files.video_shape(vid), files.text_shape(row).width


def _stated_spec(files: Layout) -> FeatureSpec | None:
    """The feature spec of a folder that we wrote."""
    path = files.spec_file
    if not path.is_file():
        return None
    try:
        return FeatureSpec.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no feature spec ({error}); delete it, and say what made the features") from None


def _checked_against(said: FeatureSpec, given: Mapping[str, Any], files: Layout) -> FeatureSpec:
    """The spec in the folder, unless what is given says otherwise."""
    for name, value in given.items():
        if value is None or (name == "weights" and _has_folder(said.backbone, value)):
            continue
        first_token = name == "pooling" and value == "cls" and said.pooling == "tokens"
        if first_token:
            said = replace(said, pooling="cls")
        elif value != getattr(said, name):
            raise ValueError(f"{files.spec_file} says {name} {getattr(said, name)!r}, got {value!r}; correct one")
    return said


def _has_folder(backbone: str, weights: str | None) -> bool:
    """Whether the backbone itself can be asked: its weights come with sidelight, or are in a folder."""
    return backbone == "shapes" or (weights is not None and Path(weights).is_dir())


def _spec_of(
    files: Layout, given: Mapping[str, Any], levels: tuple[int, ...], widths: Mapping[str, int]
) -> FeatureSpec:
    """What made the features, as far as the paper and whoever reads them say."""
    name, weights = files.made_by()
    name = given["backbone"] or name
    pooling = given["pooling"] or files.pooling
    options = {k: given[k] for k in ("clip_seconds", "frames_per_clip", "weights") if given[k] is not None}
    if _has_folder(name, given["weights"]):
        from sidelight.backbones import load_backbone

        # What is not asked of the backbone is not computed: this is only to learn what it would make.
        return load_backbone(name, levels=levels, pooling=pooling, **options).spec
    made, resolution, resize = files.made_by()[0], 224, "crop"
    if name == "internvideo2":
        from sidelight.backbones.internvideo2.config import MEAN as mean
        from sidelight.backbones.internvideo2.config import STD as std

        frames, resize = 4, "stretch"
    else:  # of SlowFast and others nothing is known: the numbers of CLIP stand in their place
        from sidelight.backbones.clip.released import CLIP_MEAN as mean
        from sidelight.backbones.clip.released import CLIP_STD as std

        frames = 1
    if name in ("clip", "internvideo2") and name != made and given["weights"] is None:
        raise ValueError(f"backbone.weights must name the weights of {name!r} that made the features in {files.where}")
    if name == "clip" and (given["weights"] or weights).endswith("-336"):
        resolution = 336
    return FeatureSpec(
        backbone=name,
        weights=given["weights"] or weights,
        levels=levels,
        pooling=pooling,
        clip_seconds=given["clip_seconds"] or 2.0,
        frames_per_clip=given["frames_per_clip"] or frames,
        resolution=resolution,
        resize="stretch" if resize == "stretch" else "crop",
        mean=mean,
        std=std,
        video_dim=widths["video_dim"],
        text_dim=widths["text_dim"],
    )
