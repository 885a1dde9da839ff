"""The samples of a run, whatever a model reads of them: annotations of a split, and the methods that training needs.

``data.py`` has the two kinds of samples: features and frames.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from sidelight.core.messages import count_of
from sidelight.data.annotations import Annotation, Submission, read_annotations
from sidelight.data.datasets import benchmark
from sidelight.data.datasets.base import Metric
from sidelight.metrics.evaluate import HIGHLIGHT_METRICS, metric_names
from sidelight.training.checkpoint import Checkpoint, PixelCheckpoint
from sidelight.training.dataset import AnnotatedVideos
from sidelight.training.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from sidelight.core.batch import Batch, FrameBatch

Split = Literal["train", "val"]


class TrainingData(ABC):
    """The samples of a run, and what depends on the kind of samples: the model's input, its checkpoints, its answers.

    Args:
        recipe: the run.
        train: the training samples.
        val: the validation samples, if there are some.
    """

    where_to_look: str
    """Advice where the numbers of a step are not finite."""

    def __init__(self, recipe: Recipe, train: AnnotatedVideos, val: AnnotatedVideos | None) -> None:
        self.recipe, self.train, self.val = recipe, train, val

    @abstractmethod
    def check(self) -> None:
        """Raise ValueError, naming the first field that does not fit, unless the data fits the recipe."""

    @abstractmethod
    def digest(self) -> str:
        """Return what changes with everything that decides which numbers the model reads of a video and a query."""

    @abstractmethod
    def build_model(self) -> nn.Module:
        """Return the recipe's model with random weights."""

    @abstractmethod
    def load_start(self, model: nn.Module) -> None:
        """Load the weights of ``train.init`` into a model; ValueError if they do not fit."""

    @abstractmethod
    def batches(self, epoch: int, *, rank: int = 0, world: int = 1) -> list[list[int]]:
        """Return the samples of each step of an epoch, for one of ``world`` processes."""

    @abstractmethod
    def batch(self, indices: Sequence[int], epoch: int) -> Batch | FrameBatch:
        """Return training samples as one batch."""

    @abstractmethod
    def predict(self, model: nn.Module, samples: Any) -> list[Submission]:
        """Return a prediction for every annotation of samples such as ``val``."""

    @abstractmethod
    def checkpoint(self, model: nn.Module, metrics: Mapping[str, Any]) -> Checkpoint | PixelCheckpoint:
        """Return a model with all that is needed to use it."""

    @abstractmethod
    def description(self) -> str:
        """Return in one line what the model reads."""

    def steps_per_epoch(self, world: int = 1) -> list[int]:
        """Return the number of steps of each epoch of the run."""
        return [len(self.batches(epoch, world=world)) for epoch in range(self.recipe.train.epochs)]

    def check_metric(self) -> None:
        """Raise ValueError unless the validation has the metric that chooses the best epoch."""
        if self.val is None:
            return
        names = metric_names(self.val.annotations, metric_of(self.recipe))
        if self.recipe.train.best_by not in names:
            raise ValueError(f"train.best_by must be one of {', '.join(names)}; got {self.recipe.train.best_by!r}")


def read_split(recipe: Recipe, split: Split) -> list[Annotation]:
    """Read the annotations of a split, without the rows that the recipe leaves out.

    Raises:
        ValueError: if the file is missing or wrong, or the recipe leaves out every row.
    """
    data = recipe.data
    path = getattr(data, split) or raise_missing(f"data.{split}")
    if data.domain and not data.benchmark:
        raise ValueError("recipe: data.domain needs data.benchmark, which defines the domains; set both or neither")
    if data.benchmark:
        annotations = benchmark(data.benchmark).read(path, domain=data.domain or None)
    else:
        annotations = list(read_annotations(path))
    if split == "train" and data.min_duration:
        annotations = [a for a in annotations if a.duration >= data.min_duration]
        if not annotations:
            raise ValueError(f"no video of {path} is {data.min_duration:g} s long; lower data.min_duration")
    if split == "train" and not any(a.relevant_windows or a.saliency_scores for a in annotations):
        raise ValueError(
            f"none of the {count_of(len(annotations), 'query')} of {path} has a moment or a rating, so nothing can be "
            "learned; add relevant_windows to some of them"
        )
    if split == "val" and metric_of(recipe) not in HIGHLIGHT_METRICS:
        # `sidelight evaluate` leaves them out too: these metrics do not know queries without a moment.
        labelled = [a for a in annotations if a.relevant_windows or a.saliency_scores]
        annotations = labelled or annotations
    return annotations


def metric_of(recipe: Recipe) -> Metric:
    """Return the metric that scores the recipe's validation data."""
    return benchmark(recipe.data.benchmark).metric if recipe.data.benchmark else "qvhighlights"


def raise_missing(name: str) -> str:
    """Raise ValueError: the recipe lacks a field."""
    raise ValueError(f"the recipe has no {name}; set it in the YAML or with --{name}=PATH")
