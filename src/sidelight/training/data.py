"""Open the training and validation data of a recipe, and check that they fit it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sidelight.backbones.protocol import FeatureSpec
from sidelight.data.annotations import Annotation, read_annotations
from sidelight.data.datasets import benchmark
from sidelight.data.datasets.base import Metric
from sidelight.features.open import FeatureSource, open_features_for
from sidelight.metrics.evaluate import HIGHLIGHT_METRICS, metric_names
from sidelight.training.dataset import GroundingDataset
from sidelight.training.recipe import Recipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Split = Literal["train", "val"]


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The samples of a run."""

    train: GroundingDataset
    val: GroundingDataset | None

    @property
    def spec(self) -> FeatureSpec:
        """Return the spec of the training features."""
        return self.train.store.spec


def open_data(recipe: Recipe, fabric: Fabric, *, quiet: bool = False) -> TrainingData:
    """Open the data of a run. The main process first extracts the features that a store lacks.

    Args:
        recipe: the run.
        fabric: launched; its device extracts.
        quiet: show no progress bar.

    Raises:
        ValueError: if annotations, features or videos are missing or do not fit the recipe.
    """

    def open_split(split: Split) -> GroundingDataset:
        annotations = read_split(recipe, split)
        store = open_features_for(
            annotations,
            feature_source(recipe, split),
            device=fabric.device,
            progress=not quiet,
            extracts=fabric.is_global_zero,
            barrier=fabric.barrier,
        )
        data = recipe.data
        return GroundingDataset(
            annotations,
            store,
            in_memory=data.in_memory,
            seed=recipe.train.seed,
            binding=data.binding,
            round_clips=data.round_clips,
        )

    return TrainingData(train=open_split("train"), val=open_split("val") if recipe.data.val else None)


def read_split(recipe: Recipe, split: Split) -> list[Annotation]:
    """Read the annotations of a split, without the rows that the recipe leaves out.

    Raises:
        ValueError: if the file is missing or wrong, or the recipe leaves out every row.
    """
    data = recipe.data
    path = getattr(data, split) or _raise_missing(f"data.{split}")
    if data.domain and not data.benchmark:
        raise ValueError("recipe: data.domain needs data.benchmark, which defines the domains; set both or neither")
    if data.benchmark:
        annotations = benchmark(data.benchmark).read(path, domain=data.domain or None)
    else:
        annotations = list(read_annotations(path))
    if split == "train" and data.min_duration:
        annotations = [a for a in annotations if a.duration >= data.min_duration]
        if not annotations:
            raise ValueError(f"no video of {path} is {data.min_duration:g} s long; lower data.min_duration")
    if split == "val" and metric_of(recipe) not in HIGHLIGHT_METRICS:
        # `sidelight evaluate` leaves them out too: these metrics do not know queries without a moment.
        labelled = [a for a in annotations if a.relevant_windows or a.saliency_scores]
        annotations = labelled or annotations
    return annotations


def metric_of(recipe: Recipe) -> Metric:
    """Return the metric that scores the recipe's validation data."""
    return benchmark(recipe.data.benchmark).metric if recipe.data.benchmark else "qvhighlights"


def feature_source(recipe: Recipe, split: Split) -> FeatureSource:
    """Return where the features and the videos of a split are.

    Raises:
        ValueError: if the recipe names no features.
    """
    data = recipe.data
    return FeatureSource(
        folder=getattr(data, f"{split}_features") or data.train_features or _raise_missing("data.train_features"),
        videos=getattr(data, f"{split}_videos"),
        layout=data.layout or "",
        normalise=data.normalise,
        backbone=recipe.backbone.name,
        **recipe.backbone.options(),
    )


def _raise_missing(name: str) -> str:
    raise ValueError(f"the recipe has no {name}; set it in the YAML or with --{name}=PATH")


def check_data(recipe: Recipe, data: TrainingData) -> None:
    """Check that features and validation data fit the recipe.

    Raises:
        ValueError: naming the first field that does not fit.
    """
    _check_spec(recipe, data)
    if data.val is None:
        return
    data.spec.require(data.val.store.spec, what="the validation features")
    names = metric_names(data.val.annotations, metric_of(recipe))
    if recipe.train.best_by not in names:
        raise ValueError(f"train.best_by must be one of {', '.join(names)}; got {recipe.train.best_by!r}")


def _check_spec(recipe: Recipe, data: TrainingData) -> None:
    spec, backbone, model = data.spec, recipe.backbone, recipe.model
    stored: Mapping[str, Any] = {
        "name": spec.backbone,
        "pooling": spec.pooling,
        "levels": spec.levels,
        "clip_seconds": spec.clip_seconds,
        "frames_per_clip": spec.frames_per_clip,
    }
    for name, stored_value in stored.items():
        value = backbone.chosen if name == "levels" else getattr(backbone, name)
        if value is not None and not _same(value, stored_value):
            raise ValueError(
                f"recipe: backbone.{name} says {value!r}, but the features in {data.train.store.folder} were made "
                f"with {stored_value!r}; correct the recipe or give other features"
            )
    widths = {"video_dim": spec.video_dim, "text_dim": spec.text_dim, "levels": len(spec.levels)}
    for name, width in widths.items():
        if name == "levels" and width != model.levels and backbone.chosen is not None:
            raise ValueError(
                f"recipe: model.levels is {model.levels}, but backbone.levels chooses {width}; make both equal"
            )
        if getattr(model, name) != width:
            raise ValueError(
                f"recipe: model.{name} is {getattr(model, name)}, but the features in {data.train.store.folder} have "
                f"{width}; set model.{name}={width} or give other features"
            )


def _same(value: Any, stored: Any) -> bool:
    # Lengths of clips are often fractions, such as 50/30 s, and a recipe has few decimals of them.
    return math.isclose(value, stored, rel_tol=1e-4) if isinstance(value, float) else bool(value == stored)
