"""How likely a hit of a library is right, learnt from annotated queries of its videos.

Scores of different videos compare badly: a model is trained on videos in which the sentence is true. So three facts of
a hit are joined by logistic regression, which gives a probability:

- nearest: the cosine of the query and the nearest clip of the video, above the mean over the clips of the library, in
  standard deviations; so a query that is near to everything gains nothing by it,
- inside: the same for the nearest clip within the moment,
- score: the model's score of the moment, as log-odds.

A fifth of the queries is set aside while the others teach, in turn, so the reported numbers are of queries that the
calibration never saw. For each query the hits are judged twice: with the right videos, and without them, as in a
library in which the sentence is true nowhere.

Legend: H hits, Q queries.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sidelight.core.options import is_finite_number
from sidelight.io.files import read_json, write_text
from sidelight.io.jsonl import shown
from sidelight.library.folder import Folder
from sidelight.metrics.calibration import AbsentReport, absent_report, choose_min_score, reliability

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
FORMAT = "sidelight.library.calibration/1"
FILE = "calibration.json"
FACTS = ("nearest", "inside", "score")
FEWEST_QUERIES = 30
"""Queries below which three weights and a threshold mean little."""
_FOLDS = 5
_ROUNDS = 5
_RIDGE = 1e-3
"""Weight of the squared weights; it keeps them finite where the facts separate right hits from wrong ones."""
_CERTAIN = 1e-4
"""Scores are kept this far from 0 and 1, where the log-odds are infinite."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How a library turns facts of a hit into the probability that the hit is right.

    Raises:
        ValueError: if a number is not finite, or the threshold lies outside [0, 1].
    """

    model: str
    """Name of the model whose scores were used."""
    weights: tuple[float, float, float]
    """Of the facts, in the order of ``FACTS``."""
    bias: float
    """The log-odds of a hit all of whose facts are 0."""
    min_relevance: float
    """Probability below which a hit is left out; if none is left, the answer is "no such moment"."""
    queries: int
    """Number of queries that taught it."""

    def __post_init__(self) -> None:
        if len(self.weights) != len(FACTS):
            raise ValueError(f"weights must be {len(FACTS)} numbers, got {len(self.weights)}")
        numbers = (*self.weights, self.bias, self.min_relevance, self.queries)
        if not all(is_finite_number(number) for number in numbers) or not 0 <= self.min_relevance <= 1:
            raise ValueError("weights and bias must be finite numbers, and min_relevance a number between 0 and 1")
        model: Any = self.model
        if not isinstance(model, str):
            raise ValueError(f"model must be a name, got {shown(model)}")

    def probabilities(self, facts_H3: Floats) -> Floats:
        """Return the probability of each hit, (H,), for its facts (H, 3)."""
        return _probabilities(facts_H3, np.array([self.bias, *self.weights]))

    def write(self, folder: Folder) -> None:
        """Write the file of a library, completely or not at all."""
        with folder.writing(FILE) as path:
            write_text(path, json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Folder) -> Calibration | None:
        """Read the file of a library; None if there is none.

        Raises:
            ValueError: if the file is damaged.
        """
        with folder.reading(FILE) as path:
            return None if path is None else cls._read_file(path)

    @classmethod
    def _read_file(cls, path: Path) -> Calibration:
        values = read_json(path)
        try:
            if values.pop("format", None) != FORMAT:
                raise ValueError(f"expected format {FORMAT!r}")
            return cls(**{**values, "weights": tuple(values["weights"])})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}); remove it, or calibrate the library again") from None


@dataclass(frozen=True, kw_only=True)
class CalibrationReport:
    """What a calibration achieves on queries that it never saw, by cross-validation."""

    queries: int
    """Number of queries."""
    first_right: float
    """Share of queries whose first hit is right, with hits ordered by the calibration."""
    first_right_before: float
    """The same share in the order without a calibration."""
    error: float
    """Expected calibration error of the probabilities of first hits, with and without the right videos."""
    absent: AbsentReport
    """The answer "no such moment", over searches with and without the right videos."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The hits of one search of a library, with the answer whether each is right."""

    query: int
    """Number of the sentence; its two searches teach or are tested together."""
    present: bool
    """Whether the search reads the videos in which the sentence is true."""
    facts_H3: Floats
    """The facts of all hits; there is at least one."""
    right_H: Bools
    """Whether each hit is right."""
    relevance_H: Floats
    """The order without a calibration."""

    def first(self, weights_4: Floats) -> int:
        """Return the place of the hit that these weights (the first one is the bias) put first."""
        return int(np.argmax(self.facts_H3 @ weights_4[1:]))


def log_odds(score: npt.ArrayLike) -> Floats:
    """Return the log-odds of scores in [0, 1]; finite for 0 and 1 too."""
    kept = np.clip(np.asarray(score, dtype=np.float64), _CERTAIN, 1 - _CERTAIN)
    odds: Floats = np.log(kept / (1 - kept))
    return odds


def calibrate(judged: Sequence[Judged], model: str) -> tuple[Calibration, CalibrationReport]:
    """Learn a calibration from judged hits, and report what it achieves on queries that it never saw.

    Args:
        judged: searches of annotated queries.
        model: name of the model.

    Raises:
        ValueError: if there are too few queries, too few with a right hit, or no search without the right videos.
    """
    searches = [search for search in judged if search.present]
    with_right = sum(bool(search.right_H.any()) for search in searches)
    if len(searches) < FEWEST_QUERIES or with_right < FEWEST_QUERIES // 2:
        raise ValueError(
            f"the library finds the right moment of {with_right} of {len(searches)} annotated queries; a calibration "
            f"needs at least {FEWEST_QUERIES} queries of its videos, and the right moment of half as many: annotate "
            "more queries"
        )
    if len(judged) - len(searches) < FEWEST_QUERIES // 2:
        raise ValueError(
            "most annotated sentences are true in all videos near to them; annotate sentences that are true in few"
        )
    weights_4, min_relevance = _fit(judged)
    bias, nearest, inside, score = (float(weight) for weight in weights_4)
    calibration = Calibration(
        model=model, weights=(nearest, inside, score), bias=bias, min_relevance=min_relevance, queries=len(searches)
    )
    return calibration, _cross_validated(judged, min_relevance)


def _cross_validated(judged: Sequence[Judged], min_relevance: float) -> CalibrationReport:
    """Return what calibrations achieve on queries that did not teach them; each fifth of the queries in turn."""
    present, score, beyond, right, before = [], [], [], [], []
    for fold in range(_FOLDS):
        weights_4, threshold = _fit([search for search in judged if search.query % _FOLDS != fold])
        for search in (search for search in judged if search.query % _FOLDS == fold):
            place = search.first(weights_4)
            probability = float(_probabilities(search.facts_H3[place], weights_4))
            present.append(search.present)
            score.append(probability)
            beyond.append(probability - threshold)  # each fold has its own threshold
            right.append(bool(search.right_H[place]))
            before.append(bool(search.right_H[np.argmax(search.relevance_H)]))
    present_Q, right_Q = np.array(present), np.array(right)
    return CalibrationReport(
        queries=int(present_Q.sum()),
        first_right=float(right_Q[present_Q].mean()),
        first_right_before=float(np.array(before)[present_Q].mean()),
        error=reliability(np.array(score), right_Q).error,
        absent=replace(absent_report(np.array(beyond), present_Q, 0.0), min_score=min_relevance),
    )


def _fit(judged: Sequence[Judged]) -> tuple[Floats, float]:
    """Return bias and weights by which first hits are right as often as their probability says, and the threshold.

    Which hit is the first depends on the weights, so they are fitted to the first hits of the weights before; the first
    weights are equal. Later hits do not teach: there are many of them, and most are wrong.
    """
    facts_H3 = np.concatenate([search.facts_H3 for search in judged])
    weights_4 = np.array([0.0, *1 / np.maximum(facts_H3.std(0), 1e-9)])
    for _ in range(_ROUNDS):
        places = [search.first(weights_4) for search in judged]
        inputs_N3 = np.array([search.facts_H3[place] for search, place in zip(judged, places, strict=True)])
        right_N = np.array([float(search.right_H[place]) for search, place in zip(judged, places, strict=True)])
        weights_4 = _logistic(inputs_N3, right_N)
    first_N3 = np.array([search.facts_H3[search.first(weights_4)] for search in judged])
    present_N = np.array([search.present for search in judged])
    return weights_4, choose_min_score(_probabilities(first_N3, weights_4), present_N)


def _probabilities(facts_N3: Floats, weights_4: Floats) -> Floats:
    return _sigmoid(facts_N3 @ weights_4[1:] + weights_4[0])


def _logistic(inputs_N3: Floats, right_N: Floats) -> Floats:
    """Return bias and weights of a logistic regression by Newton's method."""
    mean_3, deviation_3 = inputs_N3.mean(0), np.maximum(inputs_N3.std(0), 1e-9)
    scaled_N4 = np.column_stack([np.ones(len(inputs_N3)), (inputs_N3 - mean_3) / deviation_3])
    ridge_44 = _RIDGE * len(inputs_N3) * np.diag([0.0, *np.ones(inputs_N3.shape[1])])
    weights_4 = np.zeros(scaled_N4.shape[1])
    for _ in range(100):
        probability_N = _sigmoid(scaled_N4 @ weights_4)
        gradient_4 = scaled_N4.T @ (probability_N - right_N) + ridge_44 @ weights_4
        curvature_N = np.maximum(probability_N * (1 - probability_N), 1e-9)
        step_4 = np.linalg.solve(scaled_N4.T @ (curvature_N[:, None] * scaled_N4) + ridge_44, gradient_4)
        weights_4 = weights_4 - step_4 / max(1.0, float(np.abs(step_4).max()))
        if np.abs(step_4).max() < 1e-8:
            break
    slopes_3 = weights_4[1:] / deviation_3
    return np.array([weights_4[0] - slopes_3 @ mean_3, *slopes_3])


def _sigmoid(values: Floats) -> Floats:
    probability: Floats = 1 / (1 + np.exp(-np.clip(values, -50, 50)))
    return probability
