"""The side-tuners by name: a model, its losses and its decoding, and the configuration of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sidelight.core.batch import Batch
from sidelight.core.grounding import Grounding
from sidelight.models.decode.r2_tuning import R2DecodeConfig, decode_r2
from sidelight.models.decode.sdst import DecodeConfig, decode
from sidelight.models.e3va import E3VA, E3VAConfig
from sidelight.models.last_layer import LastLayer, LastLayerConfig
from sidelight.models.losa import LoSA, LoSAConfig
from sidelight.models.losses.r2_tuning import R2LossConfig, r2_losses
from sidelight.models.losses.sdst import SDSTLossConfig, sdst_losses
from sidelight.models.lst import LST, LSTConfig
from sidelight.models.points import PointPredictions
from sidelight.models.r2_tuning import R2Tuning, R2TuningConfig
from sidelight.models.sdst import SDST, SDSTConfig


@dataclass(frozen=True, kw_only=True)
class SideTuner:
    """What belongs to one side-tuner. The three parts know each other only through the predictions' type."""

    model: type[nn.Module]
    """Built from its configuration alone; reads a Batch."""
    config: type[Any]
    """The model's."""
    losses: Callable[[Any, Batch, Any], dict[str, Tensor]]
    """Predictions, batch and configuration -> every loss by name, and their weighted sum "total"."""
    loss_config: type[Any]
    """The losses'."""
    decode: Callable[..., list[Grounding]]
    """Predictions, timelines, queries, configuration, videos -> one Grounding per sample."""
    decode_config: type[Any]
    """The decoding's."""


def _point_losses(predictions: PointPredictions, batch: Batch, config: R2LossConfig) -> dict[str, Tensor]:
    if batch.targets is None:
        raise ValueError("losses need a batch with targets, got one without; build it from annotated samples")
    return r2_losses(predictions, batch.targets, config)


def _of_points(model: type[nn.Module], config: type[Any]) -> SideTuner:
    return SideTuner(
        model=model,
        config=config,
        losses=_point_losses,
        loss_config=R2LossConfig,
        decode=decode_r2,
        decode_config=R2DecodeConfig,
    )


SIDE_TUNERS: dict[str, SideTuner] = {
    "sdst": SideTuner(
        model=SDST,
        config=SDSTConfig,
        losses=sdst_losses,
        loss_config=SDSTLossConfig,
        decode=decode,
        decode_config=DecodeConfig,
    ),
    "r2-tuning": _of_points(R2Tuning, R2TuningConfig),
    "last-layer": _of_points(LastLayer, LastLayerConfig),
    "lst": _of_points(LST, LSTConfig),
    "e3va": _of_points(E3VA, E3VAConfig),
    "losa": _of_points(LoSA, LoSAConfig),
}


def side_tuner(name: str) -> SideTuner:
    """The side-tuner of that name.

    Raises:
        ValueError: if there is none.
    """
    if name not in SIDE_TUNERS:
        raise ValueError(f"there is no side-tuner {name!r}; known are {', '.join(SIDE_TUNERS)}")
    return SIDE_TUNERS[name]


def build_model(name: str, config: Mapping[str, Any]) -> nn.Module:
    """A side-tuner's model with random weights.

    Raises:
        ValueError: for an unknown name, an unknown field or a value out of range.
    """
    found = side_tuner(name)
    try:
        return found.model(found.config(**config))
    except TypeError as error:
        raise ValueError(f"the configuration of {name!r} does not fit: {error}") from None


def decoder_of(config: Any) -> Callable[..., list[Grounding]]:
    """The function that decodes with a configuration of this type."""
    for found in SIDE_TUNERS.values():
        if type(config) is found.decode_config:
            return found.decode
    raise ValueError(f"nothing decodes with a {type(config).__name__}; expected one of a side-tuner's decode_config")
