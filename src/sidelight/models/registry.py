"""The side-tuners by name: the model, the losses and the decoding of each, with their configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sidelight.core.batch import Batch
from sidelight.core.messages import no_such
from sidelight.models.decode.answer import AnswerConfig
from sidelight.models.decode.r2_tuning import R2DecodeConfig
from sidelight.models.decode.sdst import DecodeConfig
from sidelight.models.decode.univtg import UniVTGDecodeConfig
from sidelight.models.e3va import E3VA, E3VAConfig
from sidelight.models.last_layer import LastLayer, LastLayerConfig
from sidelight.models.losa import LoSA, LoSAConfig
from sidelight.models.losses.r2_tuning import R2LossConfig, r2_losses
from sidelight.models.losses.sdst import SDSTLossConfig, sdst_losses
from sidelight.models.losses.univtg import UniVTGLossConfig, univtg_losses
from sidelight.models.lst import LST, LSTConfig
from sidelight.models.points import PointPredictions
from sidelight.models.r2_tuning import R2Tuning, R2TuningConfig
from sidelight.models.sdst import SDST, SDSTConfig
from sidelight.models.univtg import UniVTG, UniVTGConfig


@dataclass(frozen=True, kw_only=True)
class SideTuner:
    """The parts of one side-tuner. The parts know each other only through the type of the predictions."""

    model: type[nn.Module]
    """Class of the model: built from its configuration alone, reads a Batch."""
    config: type[Any]
    """Class of the model's configuration."""
    losses: Callable[[Any, Batch, Any], dict[str, Tensor]]
    """Function of (predictions, batch, loss configuration) that returns every loss by name, and their weighted sum
    "total".
    """
    loss_config: type[Any]
    """Class of the losses' configuration."""
    decode_config: type[AnswerConfig]
    """Class of the decoding's configuration; its method ``decode`` turns predictions into groundings."""


def _point_losses(predictions: PointPredictions, batch: Batch, config: R2LossConfig) -> dict[str, Tensor]:
    if batch.targets is None:
        raise ValueError("losses need a batch with targets, got one without; build it from annotated samples")
    return r2_losses(predictions, batch.targets, config)


def _point_model(model: type[nn.Module], config: type[Any]) -> SideTuner:
    return SideTuner(
        model=model,
        config=config,
        losses=_point_losses,
        loss_config=R2LossConfig,
        decode_config=R2DecodeConfig,
    )


SIDE_TUNERS: dict[str, SideTuner] = {
    "sdst": SideTuner(
        model=SDST,
        config=SDSTConfig,
        losses=sdst_losses,
        loss_config=SDSTLossConfig,
        decode_config=DecodeConfig,
    ),
    "r2-tuning": _point_model(R2Tuning, R2TuningConfig),
    "last-layer": _point_model(LastLayer, LastLayerConfig),
    "lst": _point_model(LST, LSTConfig),
    "e3va": _point_model(E3VA, E3VAConfig),
    "losa": _point_model(LoSA, LoSAConfig),
    "univtg": SideTuner(
        model=UniVTG,
        config=UniVTGConfig,
        losses=univtg_losses,
        loss_config=UniVTGLossConfig,
        decode_config=UniVTGDecodeConfig,
    ),
}


def side_tuner(name: str) -> SideTuner:
    """Return the side-tuner of that name; ValueError if the name is unknown."""
    if name not in SIDE_TUNERS:
        raise ValueError(no_such("side-tuner", name, SIDE_TUNERS))
    return SIDE_TUNERS[name]


def build_model(name: str, config: Mapping[str, Any]) -> nn.Module:
    """Build the model of a side-tuner with random weights.

    Raises:
        ValueError: for an unknown name, an unknown field or a value out of range.
    """
    tuner = side_tuner(name)
    try:
        return tuner.model(tuner.config(**config))
    except TypeError as error:
        raise ValueError(f"the configuration of {name!r} does not fit: {error}") from None
