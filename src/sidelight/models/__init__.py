"""The side-tuners, one file per paper.

A model takes its configuration, reads a :class:`~sidelight.core.batch.Batch` and returns raw predictions; losses and
decoding live elsewhere, and :mod:`sidelight.models.registry` says what belongs together.
"""

from __future__ import annotations

from sidelight.models.layers import parameter_table
from sidelight.models.sdst import SDST, SDSTConfig

__all__ = ["SDST", "SDSTConfig", "parameter_table"]
