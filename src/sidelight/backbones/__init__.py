"""The backbones by name. Each is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidelight.backbones.protocol import Backbone, FeatureSpec, SpecMismatchError

if TYPE_CHECKING:
    from sidelight.backbones.clip.model import CLIPBackbone
    from sidelight.backbones.internvideo2.model import InternVideo2Backbone
    from sidelight.backbones.shapes.model import ShapesBackbone

__all__ = ["BACKBONES", "Backbone", "FeatureSpec", "SpecMismatchError", "load_backbone"]


def _shapes(**options: Any) -> ShapesBackbone:
    from sidelight.backbones.shapes.model import ShapesBackbone

    return ShapesBackbone(**options)


def _clip(**options: Any) -> CLIPBackbone:
    from sidelight.backbones.clip.model import CLIPBackbone

    return CLIPBackbone(**options)


def _internvideo2(**options: Any) -> InternVideo2Backbone:
    from sidelight.backbones.internvideo2.model import InternVideo2Backbone

    return InternVideo2Backbone(**options)


BACKBONES: dict[str, Callable[..., Backbone]] = {
    "shapes": _shapes,
    "clip": _clip,
    "internvideo2": _internvideo2,
}


def load_backbone(name: str, **options: Any) -> Backbone:
    """The backbone of that name.

    Args:
        name: a key of :data:`BACKBONES`.
        options: what that backbone takes: ``levels``, ``pooling``, ``weights``; all but shapes take ``clip_seconds``,
            ``frames_per_clip`` and ``dtype`` too.

    Raises:
        ValueError: if there is no such backbone.
    """
    if name not in BACKBONES:
        raise ValueError(f"there is no backbone {name!r}; known are {', '.join(BACKBONES)}")
    return BACKBONES[name](**options)


def backbone_for(spec: FeatureSpec, *, weights: str | Path | None = None) -> Backbone:
    """The backbone that makes features of ``spec``.

    Args:
        spec: of the features.
        weights: a folder of the backbone's weights. Not needed for ``shapes``, whose weights ship with sidelight, nor
            for CLIP where the spec names a model on the hub.

    Raises:
        ValueError: if there is no such backbone here, or its weights have to be given.
        SpecMismatchError: if the backbone at hand would make other features.
    """
    options: dict[str, Any] = {"levels": spec.levels, "pooling": spec.pooling}
    if spec.backbone != "shapes":
        options |= {"clip_seconds": spec.clip_seconds, "frames_per_clip": spec.frames_per_clip}
    if weights is not None:
        options["weights"] = weights
    elif spec.backbone == "clip":
        options["weights"] = spec.weights
    backbone = load_backbone(spec.backbone, **options)
    spec.require(backbone.spec, what=f"features of the backbone {spec.backbone!r} at hand")
    return backbone
