"""The shapes world: unlimited labelled synthetic videos, without downloads and licences."""

from sidelight.shapes.generate import make_world
from sidelight.shapes.statistics import describe

__all__ = ["describe", "make_world"]
