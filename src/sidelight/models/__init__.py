"""The side-tuners, one file per paper.

A model is built from its configuration, reads a :class:`~sidelight.core.batch.Batch` and returns raw predictions.
Losses and decoding are in packages of their own. :mod:`sidelight.models.registry` lists the parts of each side-tuner.
"""

from __future__ import annotations

from sidelight.models.layers import parameter_table
from sidelight.models.sdst import SDST, SDSTConfig

__all__ = ["SDST", "SDSTConfig", "parameter_table"]
