"""The shapes world: labelled synthetic videos without end, without downloads, without licences."""

from sidelight.shapes.generate import make_world
from sidelight.shapes.statistics import describe

__all__ = ["describe", "make_world"]
