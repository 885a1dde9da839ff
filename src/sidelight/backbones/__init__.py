"""The backbones by name. Each backbone is imported when it is loaded. ``protocol`` says how to add a backbone."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sidelight.backbones.protocol import (
    Backbone,
    FeatureSpec,
    FrameSpec,
    SentenceEncoder,
    SentenceSpec,
    SpecMismatchError,
    TokenShape,
    TowerSpec,
    TrainableTower,
)
from sidelight.core.messages import no_such

__all__ = [
    "BACKBONES",
    "SENTENCE_ENCODERS",
    "TOWERS",
    "Backbone",
    "FeatureSpec",
    "FrameSpec",
    "SentenceEncoder",
    "SentenceSpec",
    "SpecMismatchError",
    "TokenShape",
    "TowerSpec",
    "TrainableTower",
    "default_weights",
    "load_backbone",
    "load_sentence_encoder",
    "load_tower",
]


class _Later:
    """A class of a backbone, which is imported when it is called."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def backbone_class(self) -> Callable[..., Any]:
        """Import the class."""
        loaded: Callable[..., Any] = getattr(importlib.import_module(f"sidelight.backbones.{self._module}"), self._name)
        return loaded

    def __call__(self, **options: Any) -> Any:
        return self.backbone_class()(**options)


BACKBONES: dict[str, Callable[..., Backbone]] = {
    "shapes": _Later("shapes.model", "ShapesBackbone"),
    "clip": _Later("clip.model", "CLIPBackbone"),
    "siglip2": _Later("siglip2", "SigLIP2Backbone"),
    "open-clip": _Later("open_clip", "OpenCLIPBackbone"),
    "videoprism": _Later("videoprism", "VideoPrismBackbone"),
    "internvideo2": _Later("internvideo2.backbone", "InternVideo2Backbone"),
}

LIMITED = ("shapes",)
"""The backbones that know one world only and say so (:class:`~sidelight.backbones.protocol.LimitedBackbone`)."""
TOWERS: dict[str, Callable[..., TrainableTower]] = {
    "shapes": _Later("shapes.model", "ShapesTower"),
    "videomae": _Later("videomae", "VideoMAETower"),
    "i3d": _Later("i3d", "I3DTower"),
}
"""The video towers that can be trained from pixels."""
SENTENCE_ENCODERS: dict[str, Callable[..., SentenceEncoder]] = {
    "shapes": _Later("sentences", "ShapesSentences"),
    "distilbert": _Later("sentences", "DistilBertSentences"),
}
"""The models that turn a sentence into one vector, for models that are trained from pixels."""


def load_backbone(name: str, **options: Any) -> Backbone:
    """Load the backbone of that name.

    Args:
        name: a key of :data:`BACKBONES`.
        options: options of the backbone: ``levels``, ``pooling``, ``weights``, ``clip_seconds``, ``frames_per_clip``;
            all backbones except shapes also take ``dtype``.

    Raises:
        ValueError: if there is no such backbone, or an option is wrong.
    """
    if name not in BACKBONES:
        raise ValueError(no_such("backbone", name, BACKBONES))
    return BACKBONES[name](**options)


def default_weights(name: str) -> str | None:
    """Return the hub id of the weights that a backbone reads unless others are given; None if there is no such id."""
    parameter = _parameter(name, "weights")
    return parameter.default if parameter is not None and isinstance(parameter.default, str) else None


def _parameter(backbone: str, option: str) -> inspect.Parameter | None:
    """Return an option of a backbone as its class declares it; None if there is no such backbone or option."""
    loader = BACKBONES.get(backbone)
    if loader is None:
        return None
    return inspect.signature(loader.backbone_class() if isinstance(loader, _Later) else loader).parameters.get(option)


def load_tower(name: str, **options: Any) -> TrainableTower:
    """Load the video tower of that name, frozen, to be trained or adapted from pixels.

    Args:
        name: a key of :data:`TOWERS`.
        options: options of the tower: ``weights``; videomae and i3d also take ``resolution``, i3d ``frames`` (of a
            chunk).

    Raises:
        ValueError: if there is no such tower, or an option is wrong.
    """
    if name not in TOWERS:
        raise ValueError(no_such("trainable video backbone", name, TOWERS))
    return TOWERS[name](**options)


def load_sentence_encoder(name: str, **options: Any) -> SentenceEncoder:
    """Load the sentence encoder of that name, frozen.

    Args:
        name: a key of :data:`SENTENCE_ENCODERS`.
        options: options of the encoder: ``weights``; distilbert also takes ``pooling``.

    Raises:
        ValueError: if there is no such encoder, or an option is wrong.
    """
    if name not in SENTENCE_ENCODERS:
        raise ValueError(no_such("sentence encoder", name, SENTENCE_ENCODERS))
    return SENTENCE_ENCODERS[name](**options)


def backbone_for(spec: FeatureSpec, *, weights: str | Path | None = None) -> Backbone:
    """Load the backbone that makes features of a spec.

    Args:
        spec: the spec of the features.
        weights: folder or hub id of the backbone's weights. Not needed for ``shapes``, whose weights ship with
            sidelight, for CLIP where the spec names a model on the hub, nor for a backbone without weights.

    Raises:
        ValueError: if sidelight has no such backbone, or ``weights`` is needed.
        SpecMismatchError: if the loaded backbone makes other features.
    """
    options = {"levels": spec.levels, "pooling": spec.pooling, **_options_of(spec, weights)}
    backbone = load_backbone(spec.backbone, **options)
    spec.require(backbone.spec, what=f"features of the backbone {spec.backbone!r} at hand")
    return backbone


def joint_backbone_for(spec: FeatureSpec, *, weights: str | Path | None = None) -> Backbone:
    """Load the backbone of a spec with its joint embeddings: the same weights and clips, the pooling ``joint``.

    Args:
        spec: the spec of other features of this backbone.
        weights: as for :func:`backbone_for`.

    Raises:
        ValueError: if sidelight has no such backbone, it has no joint embeddings, or ``weights`` is needed.
    """
    return load_backbone(spec.backbone, pooling="joint", **_options_of(spec, weights))


def _options_of(spec: FeatureSpec, weights: str | Path | None) -> dict[str, Any]:
    """Return the options of a backbone that a spec names, except levels and pooling.

    Raises:
        ValueError: if the backbone's weights must be given.
    """
    options: dict[str, Any] = {}
    if spec.backbone != "shapes":  # its weights fix its clips; if the spec has others, a comparison names them
        options |= {"clip_seconds": spec.clip_seconds, "frames_per_clip": spec.frames_per_clip}
    if weights is not None:
        options["weights"] = weights
    elif spec.backbone == "clip":
        options["weights"] = spec.weights
    elif spec.backbone not in ("shapes", "internvideo2") and _parameter(spec.backbone, "weights") is not None:
        # A digest does not say where the weights are.
        raise ValueError(
            f"the features were made by {spec.backbone} with weights of the digest {spec.weights}: give the hub id or "
            "the folder of these weights (--backbone-weights)"
        )
    return options
