"""The shapes world: labelled synthetic videos without end, without downloads, without licences."""

from sidelight.shapes.generate import make_world

__all__ = ["make_world"]
