"""The side-tuners, one file per paper, and the dict that names them.

A model takes its configuration, reads a :class:`~sidelight.batch.Batch` and returns raw
:class:`~sidelight.batch.Predictions`; losses and decoding live elsewhere.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from sidelight.models.layers import parameter_table
from sidelight.models.sdst import SDST, SDSTConfig

MODELS: dict[str, tuple[type[nn.Module], type[Any]]] = {"sdst": (SDST, SDSTConfig)}
"""Name in recipes and checkpoints -> (model, its configuration)."""

__all__ = ["MODELS", "SDST", "SDSTConfig", "parameter_table"]
