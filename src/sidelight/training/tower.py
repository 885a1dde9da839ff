"""The section ``backbone`` of a recipe that trains from pixels: which backbones, and which frames they read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from sidelight.backbones import (
    SENTENCE_ENCODERS,
    TOWERS,
    FrameSpec,
    SentenceEncoder,
    TrainableTower,
    load_sentence_encoder,
    load_tower,
)
from sidelight.core.options import check_types, require

Loaded = TypeVar("Loaded")
"""A backbone or an encoder."""


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """The video backbone that is trained or adapted from pixels, the frames that it reads, and the sentence encoder."""

    name: str = "videomae"
    """Key of sidelight.backbones.TOWERS."""
    weights: str = ""
    """Folder or hub id of the weights; the backbone's own unless given."""
    resolution: int | None = None
    """Side of the square frames in pixels; that of the backbone's training unless given."""
    chunk_frames: int | None = None
    """Frames that the backbone reads together, where it can read different numbers (i3d); its own unless given."""
    frames_per_second: float = 7.5
    """Frames that are read of a second of video; 7.5 is every fourth frame of a usual video, as in VideoMAE's training.
    """
    resize: Literal["crop", "stretch"] = "crop"
    """crop scales the shorter side to the resolution and keeps the middle; stretch scales both sides."""
    sentences: str = "shapes"
    """Encoder of the sentences, a key of sidelight.backbones.SENTENCE_ENCODERS."""
    sentence_weights: str = ""
    """Folder or hub id of the sentence encoder's weights; its own unless given."""
    sentence_pooling: str = ""
    """The way from the tokens of a sentence to one vector, where the encoder has several; its own unless given."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("resolution", "chunk_frames"):
            value = getattr(self, name)
            require(self, value is None or value >= 1, name, "at least 1")
        require(self, self.frames_per_second > 0, "frames_per_second", "above 0")
        for name, known in (("name", TOWERS), ("sentences", SENTENCE_ENCODERS)):
            require(self, getattr(self, name) in known, name, f"one of {', '.join(known)}")

    def load(self) -> tuple[TrainableTower, SentenceEncoder]:
        """Load the two, frozen.

        Raises:
            ValueError: if there is no such backbone or encoder, or an option is wrong.
        """
        of_tower = {"weights": "weights", "resolution": "resolution", "frames": "chunk_frames"}
        of_sentences = {"weights": "sentence_weights", "pooling": "sentence_pooling"}
        return self._load(load_tower, self.name, of_tower), self._load(
            load_sentence_encoder, self.sentences, of_sentences
        )

    def _load(self, loader: Callable[..., Loaded], name: str, fields: Mapping[str, str]) -> Loaded:
        """Load a model with the options (option -> field) that are given; ValueError if it does not have one."""
        options = {option: value for option, field in fields.items() if (value := getattr(self, field))}
        try:
            return loader(name, **options)
        except TypeError:
            given = ", ".join(f"backbone.{fields[option]}" for option in options if option != "weights")
            raise ValueError(f"recipe: {name} does not have all of {given}; leave out what it does not have") from None


@dataclass(frozen=True, kw_only=True)
class PixelBackbones:
    """The frozen models of a run that reads frames, loaded."""

    tower: TrainableTower
    sentences: SentenceEncoder
    spec: FrameSpec

    @classmethod
    def load(cls, config: TowerConfig, sentence_dim: int) -> PixelBackbones:
        """Load the backbones of a recipe.

        Args:
            config: which backbones.
            sentence_dim: width of the sentences that the model was built for.

        Raises:
            ValueError: if there is none of that name, weights are missing, or the model was built for other sentences.
        """
        tower, sentences = config.load()
        spec = FrameSpec(
            tower=tower.spec,
            sentences=sentences.spec,
            frames_per_second=config.frames_per_second,
            resize=config.resize,
        )
        if sentence_dim != spec.sentences.width:
            raise ValueError(
                f"recipe: model.sentence_dim is {sentence_dim}, but the sentence encoder "
                f"{spec.sentences.encoder} makes vectors of {spec.sentences.width}; set model.sentence_dim="
                f"{spec.sentences.width} or choose another backbone.sentences"
            )
        return cls(tower=tower, sentences=sentences, spec=spec)
