"""The backbones by name. Each is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sidelight.backbones.protocol import Backbone, FeatureRecipe, RecipeMismatchError

if TYPE_CHECKING:
    from sidelight.backbones.internvideo2 import InternVideo2Backbone
    from sidelight.backbones.shapes import ShapesBackbone

__all__ = ["BACKBONES", "Backbone", "FeatureRecipe", "RecipeMismatchError", "load_backbone"]


def _shapes(**options: Any) -> ShapesBackbone:
    from sidelight.backbones.shapes import ShapesBackbone

    return ShapesBackbone(**options)


def _internvideo2(**options: Any) -> InternVideo2Backbone:
    from sidelight.backbones.internvideo2 import InternVideo2Backbone

    return InternVideo2Backbone(**options)


BACKBONES: dict[str, Callable[..., Backbone]] = {"shapes": _shapes, "internvideo2": _internvideo2}


def load_backbone(name: str, **options: Any) -> Backbone:
    """The backbone of that name.

    Args:
        name: a key of :data:`BACKBONES`.
        options: what that backbone takes: ``levels``, ``pooling``, ``weights``.

    Raises:
        ValueError: if there is no such backbone.
    """
    if name not in BACKBONES:
        raise ValueError(f"there is no backbone {name!r}; known are {', '.join(BACKBONES)}")
    return BACKBONES[name](**options)


def backbone_for(recipe: FeatureRecipe) -> Backbone:
    """The backbone that makes features of ``recipe``.

    Raises:
        ValueError: if there is no such backbone here.
        RecipeMismatchError: if the backbone at hand would make other features.
    """
    backbone = load_backbone(recipe.backbone, levels=recipe.levels, pooling=recipe.pooling)
    recipe.require(backbone.recipe, what=f"features of the backbone {recipe.backbone!r} at hand")
    return backbone
