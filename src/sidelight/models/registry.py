"""The models by name: the model, the losses and the decoding of each, with their configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn

from sidelight.core.batch import Batch, FrameBatch
from sidelight.core.messages import first_line, no_such
from sidelight.models.decode.answer import AnswerConfig
from sidelight.models.decode.r2_tuning import R2DecodeConfig
from sidelight.models.decode.scada import ScadaDecodeConfig
from sidelight.models.decode.sdst import DecodeConfig
from sidelight.models.decode.univtg import UniVTGDecodeConfig
from sidelight.models.decode.zero_shot import ZeroShotDecodeConfig
from sidelight.models.e3va import E3VA, E3VAConfig
from sidelight.models.last_layer import LastLayer, LastLayerConfig
from sidelight.models.losa import LoSA, LoSAConfig
from sidelight.models.losses.r2_tuning import R2LossConfig, r2_losses
from sidelight.models.losses.scada import ScadaLossConfig, scada_losses
from sidelight.models.losses.sdst import SDSTLossConfig, sdst_losses
from sidelight.models.losses.univtg import UniVTGLossConfig, univtg_losses
from sidelight.models.lst import LST, LSTConfig
from sidelight.models.points import PointPredictions
from sidelight.models.r2_tuning import R2Tuning, R2TuningConfig
from sidelight.models.recompute import MemoryConfig
from sidelight.models.scada import Scada, ScadaConfig
from sidelight.models.sdst import SDST, SDSTConfig
from sidelight.models.univtg import UniVTG, UniVTGConfig
from sidelight.models.zero_shot import ZERO_SHOT, ZeroShot, ZeroShotConfig


@dataclass(frozen=True, kw_only=True)
class ModelParts:
    """The parts of one model. The parts know each other only through the type of the predictions."""

    model: type[nn.Module]
    """Class of the model: built from its configuration alone, reads a Batch; or from its configuration, a video
    backbone and ways to save memory, and reads a FrameBatch.
    """
    config: type[Any]
    """Class of the model's configuration."""
    decode_config: type[AnswerConfig]
    """Class of the decoding's configuration; its method ``decode`` turns predictions into groundings."""
    reads: Literal["features", "frames"] = "features"
    """What the model reads: a Batch of features, or a FrameBatch."""

    def with_head(self, head: str | None) -> ModelParts:
        """Return the parts of the model with another head; this model itself if it has only one, or None is given."""
        return self


@dataclass(frozen=True, kw_only=True)
class HeadParts:
    """The losses and the decoding of a head of SCADA."""

    losses: Callable[[Any, FrameBatch, Any], dict[str, Tensor]]
    """Function of (predictions, batch, loss configuration), as of a side-tuner."""
    loss_config: type[Any]
    """Class of the losses' configuration."""
    decode_config: type[AnswerConfig]
    """Class of the decoding's configuration."""


@dataclass(frozen=True, kw_only=True)
class SideTuner(ModelParts):
    """The parts of one side-tuner: a model that can be trained."""

    losses: Callable[[Any, Any, Any], dict[str, Tensor]]
    """Function of (predictions, batch, loss configuration) that returns every loss by name, and their weighted sum
    "total".
    """
    loss_config: type[Any]
    """Class of the losses' configuration."""
    memory_config: type[Any] | None = None
    """Class of the ways to train with less memory, if the model has some."""
    heads: Mapping[str, HeadParts] = field(default_factory=dict)
    """The losses and the decoding of each head, if the model has several."""

    def with_head(self, head: str | None) -> SideTuner:
        """Return the parts of the model with the losses and the decoding of a head.

        An unknown head changes nothing: the model's configuration has the better message.
        """
        chosen = self.heads.get(head or "")
        if chosen is None:
            return self
        return replace(self, losses=chosen.losses, loss_config=chosen.loss_config, decode_config=chosen.decode_config)

    @property
    def has_slow_parameters(self) -> bool:
        """Check whether the model names parameters that ``train.offset_lr`` slows down (``slow_parameters``)."""
        return hasattr(self.model, "slow_parameters")


def _point_losses(predictions: PointPredictions, batch: Batch | FrameBatch, config: R2LossConfig) -> dict[str, Tensor]:
    if batch.targets is None:
        raise ValueError("losses need a batch with targets, got one without; build it from annotated samples")
    return r2_losses(predictions, batch.targets, config)


def point_model(model: type[nn.Module], config: type[Any]) -> SideTuner:
    """Return the parts of a model that ends in R2-Tuning's heads (``points.py``): it shares losses and decoding."""
    return SideTuner(
        model=model,
        config=config,
        losses=_point_losses,
        loss_config=R2LossConfig,
        decode_config=R2DecodeConfig,
    )


HEADS: dict[str, HeadParts] = {
    "scada": HeadParts(losses=scada_losses, loss_config=ScadaLossConfig, decode_config=ScadaDecodeConfig),
    "sdst": HeadParts(losses=sdst_losses, loss_config=SDSTLossConfig, decode_config=DecodeConfig),
    "points": HeadParts(losses=_point_losses, loss_config=R2LossConfig, decode_config=R2DecodeConfig),
}
"""``ScadaConfig.head`` -> its losses and decoding."""


SIDE_TUNERS: dict[str, SideTuner] = {
    "sdst": SideTuner(
        model=SDST,
        config=SDSTConfig,
        losses=sdst_losses,
        loss_config=SDSTLossConfig,
        decode_config=DecodeConfig,
    ),
    "r2-tuning": point_model(R2Tuning, R2TuningConfig),
    "last-layer": point_model(LastLayer, LastLayerConfig),
    "lst": point_model(LST, LSTConfig),
    "e3va": point_model(E3VA, E3VAConfig),
    "losa": point_model(LoSA, LoSAConfig),
    "univtg": SideTuner(
        model=UniVTG,
        config=UniVTGConfig,
        losses=univtg_losses,
        loss_config=UniVTGLossConfig,
        decode_config=UniVTGDecodeConfig,
    ),
    "scada": SideTuner(
        model=Scada,
        config=ScadaConfig,
        losses=scada_losses,
        loss_config=ScadaLossConfig,
        decode_config=ScadaDecodeConfig,
        reads="frames",
        memory_config=MemoryConfig,
        heads=HEADS,
    ),
}
"""The models that can be trained. Scada is no side-tuner in the narrow sense: it works inside its backbone."""


_WITHOUT_TRAINING = ModelParts(model=ZeroShot, config=ZeroShotConfig, decode_config=ZeroShotDecodeConfig)


def model_parts(name: str) -> ModelParts:
    """Return the parts of a side-tuner, or of grounding without training; ValueError if the name is unknown."""
    if name == ZERO_SHOT:
        return _WITHOUT_TRAINING
    if name not in SIDE_TUNERS:
        raise ValueError(no_such("model", name, [*SIDE_TUNERS, ZERO_SHOT]))
    return SIDE_TUNERS[name]


def side_tuner(name: str) -> SideTuner:
    """Return the side-tuner of that name; ValueError if the name is unknown, or is of a model that is not trained."""
    if name == ZERO_SHOT:
        raise ValueError(f"{name} has no weights to train; choose a side-tuner: {', '.join(SIDE_TUNERS)}")
    if name not in SIDE_TUNERS:
        raise ValueError(no_such("side-tuner", name, SIDE_TUNERS))
    return SIDE_TUNERS[name]


def build_model(name: str, config: Mapping[str, Any], **parts_of_model: Any) -> nn.Module:
    """Build a model with random weights.

    Args:
        name: key of :data:`SIDE_TUNERS`, or ``zero-shot``.
        config: fields of its configuration.
        parts_of_model: further arguments of the model's class: ``tower`` and ``memory`` of one that reads frames.

    Raises:
        ValueError: for an unknown name, an unknown field or a value out of range.
    """
    parts = model_parts(name)
    try:
        return parts.model(parts.config(**config), **parts_of_model)
    except TypeError as error:
        raise ValueError(f"the configuration of {name!r} does not fit: {first_line(error)}") from None
