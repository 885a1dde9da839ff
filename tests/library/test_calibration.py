"""A calibration turns facts of a hit into a probability, and says from which one on a hit is an answer."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import minimize

from sidelight.cli.main import main
from sidelight.core.grounding import Grounding, Moment
from sidelight.core.timeline import Timeline
from sidelight.data.annotations import Annotation, write_annotations
from sidelight.library import Hit, Library, calibration
from sidelight.library.calibration import FILE, Calibration, Judged, calibrate, log_odds
from sidelight.library.folder import folder_at
from sidelight.library.search import Evidence, _judged
from sidelight.library.tables import VideoRow

TRUE_WEIGHTS = np.array([1.2, 0.6, 0.8])


def searches(rng: np.random.Generator, query: int, hits: int) -> list[Judged]:
    """Return searches with and without the right videos; the chance of a hit to be right follows from its facts."""
    made = []
    for present in (True, False):
        facts = rng.standard_normal((hits, 3)) * 2 - (0 if present else 4)
        chance = 1 / (1 + np.exp(-(facts @ TRUE_WEIGHTS - 1)))
        right = (rng.random(hits) < chance) & present
        relevance = rng.random(hits)
        made.append(Judged(query=query, present=present, facts_H3=facts, right_H=right, relevance_H=relevance))
    return made


@pytest.mark.parametrize(("score", "odds"), [(0.5, 0.0), (0.9, 2.1972), (0.0, -9.2102), (1.0, 9.2102)])
def test_log_odds_are_finite(score: float, odds: float) -> None:
    assert float(log_odds(score)) == pytest.approx(odds, abs=1e-3)
    assert log_odds([]).shape == (0,)


def test_the_weights_are_those_of_a_general_optimiser() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((80, 3)) * [1, 3, 0.2] + [0, 5, -1]
    right = (rng.random(80) < 1 / (1 + np.exp(-inputs @ [1.0, -0.5, 2.0]))).astype(float)
    deviation = inputs.std(0)

    def loss(w: npt.NDArray[np.float64]) -> float:
        z = inputs @ w[1:] + w[0]
        ridge = 0.5 * calibration._RIDGE * len(inputs) * float(((w[1:] * deviation) ** 2).sum())
        return float((np.logaddexp(0, z) - right * z).sum()) + ridge

    best = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-9})
    assert np.allclose(calibration._logistic(inputs, right), best.x, rtol=1e-3, atol=1e-4)


def test_probabilities_are_calibrated_and_order_hits_better() -> None:
    rng = np.random.default_rng(1)
    learnt, report = calibrate([one for query in range(400) for one in searches(rng, query, 10)], "shapes")
    assert learnt.queries == report.queries == 400 and learnt.model == "shapes"
    assert report.first_right > report.first_right_before + 0.3
    assert report.error < 0.08
    assert 0 < learnt.min_relevance < 1 and report.absent.min_score == learnt.min_relevance
    assert report.absent.recall > 0.3 and report.absent.lost < 0.5
    near = learnt.probabilities(np.array([[3.0, 3.0, 3.0], [-3.0, -3.0, -3.0]]))
    assert near[0] > 0.9 and near[1] < 0.1


def test_facts_that_separate_right_from_wrong_give_finite_weights() -> None:
    near, far = np.array([[9.0, 9.0, 9.0], [-9.0, -9.0, -9.0]]), np.array([[-9.0, -9.0, -9.0]])
    judged = []
    for query in range(40):
        right, order = np.array([True, False]), np.array([0.0, 1.0])
        judged.append(Judged(query=query, present=True, facts_H3=near, right_H=right, relevance_H=order))
        judged.append(Judged(query=query, present=False, facts_H3=far, right_H=right[1:], relevance_H=order[1:]))
    learnt, report = calibrate(judged, "shapes")
    assert np.isfinite(learnt.weights).all()
    assert report.first_right == 1 and report.first_right_before == 0 and report.absent.recall == 1


@pytest.mark.parametrize("number", [0, 29])
def test_too_few_queries_are_refused(number: int) -> None:
    rng = np.random.default_rng(3)
    with pytest.raises(ValueError, match=r"needs at least 30 queries .* annotate more"):
        calibrate([one for query in range(number) for one in searches(rng, query, 10)], "shapes")


def test_sentences_that_are_true_everywhere_are_refused() -> None:
    rng = np.random.default_rng(3)
    with pytest.raises(ValueError, match="true in all videos near to them"):
        calibrate([searches(rng, query, 10)[0] for query in range(40)], "shapes")


RIGHT = Calibration(model="shapes", weights=(1.0, 0.5, 0.2), bias=-2.0, min_relevance=0.3, queries=40)


def test_the_file_returns_what_was_written(tmp_path: Path) -> None:
    assert Calibration.read(folder_at(tmp_path)) is None
    RIGHT.write(folder_at(tmp_path))
    assert Calibration.read(folder_at(tmp_path)) == RIGHT


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"weights": [1.0]},
        {"weights": [1.0, 2.0, None]},
        {"weights": 3},
        {"bias": "x"},
        {"min_relevance": 1.5},
        {"model": 3},
        {"queries": None},
        {"more": 1},
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, change: dict[str, object]) -> None:
    RIGHT.write(folder_at(tmp_path))
    values = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(values | change))
    with pytest.raises(ValueError, match=r"calibration.json is damaged .* calibrate the library again"):
        Calibration.read(folder_at(tmp_path))


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """Return a copy of the library that a test may change."""
    shutil.copytree(built / "lib", tmp_path / "lib")
    return tmp_path / "lib"


def test_a_library_learns_from_annotations(
    copy: Path,
    tiny_annotations: list[Annotation],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(calibration, "FEWEST_QUERIES", 10)
    rows = tmp_path / "rows.jsonl"
    write_annotations(rows, tiny_annotations)
    out = tmp_path / "report.json"
    assert main(["library", "calibrate", str(copy), str(rows), "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    report = json.loads(out.read_text())
    assert f"calibrated with {report['queries']} queries" in printed and "no such moment" in printed
    assert report["queries"] == len({a.query for a in tiny_annotations})

    library = Library.open(copy, device="cpu")
    learnt = library.calibration
    assert learnt is not None
    result = library.search(tiny_annotations[0].query, min_relevance=0)
    relevance = [hit.relevance for hit in result]
    assert result.is_calibrated and relevance == sorted(relevance, reverse=True) and min(relevance) >= 0
    kept = library.search(tiny_annotations[0].query)
    assert [hit for hit in result if hit.relevance >= learnt.min_relevance] == list(kept)
    nothing = library.search(tiny_annotations[0].query, min_relevance=1.0)
    assert not nothing and nothing.best_left_out == pytest.approx(relevance[0])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = (copy / FILE).read_bytes()
    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", full)
        assert main(["library", "calibrate", str(copy), str(rows)]) == 2
    assert "No space left" in capsys.readouterr().err
    assert (copy / FILE).read_bytes() == before and not list(copy.glob("*.partial*"))
    film = library.files()[0].path
    assert not library.search_like(film, 2, 6).is_calibrated  # its scores are of another kind

    assert main(["search", str(copy), tiny_annotations[0].query, "--min-relevance", "0"]) == 0
    assert "relevance is the probability that a hit is right" in capsys.readouterr().out
    assert main(["search", str(copy), tiny_annotations[0].query, "--min-relevance", "1"]) == 1
    assert "the best guess has a relevance of" in capsys.readouterr().out


def test_a_calibration_of_another_model_is_not_used(copy: Path, tiny_annotations: list[Annotation]) -> None:
    library = Library.open(copy, device="cpu")
    replace(RIGHT, model="other").write(folder_at(copy))
    assert library.calibration is None and not library.search(tiny_annotations[0].query).is_calibrated
    RIGHT.write(folder_at(copy))
    assert library.search(tiny_annotations[0].query, min_relevance=0).is_calibrated


def test_annotations_of_other_videos_and_wrong_options_are_refused(
    copy: Path, tiny_annotations: list[Annotation], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    write_annotations(rows, [replace(row, vid=f"other-{row.vid}") for row in tiny_annotations])
    for options, message in (
        ([], "the right moment of 0 of 0 annotated queries"),
        (["--iou", "0"], "--iou must be above 0"),
        (["--json", str(rows)], "is read by the same command"),
    ):
        assert main(["library", "calibrate", str(copy), str(rows), *options]) == 2
        error = capsys.readouterr().err
        assert message in error
    assert not (copy / FILE).exists()
    assert main(["search", str(copy), "--like", "x.mp4@1-2", "--min-relevance", "0.5"]) == 2
    assert "--min-relevance and --whole are for sentences" in capsys.readouterr().err


def test_a_sentence_is_searched_with_and_without_the_right_videos() -> None:
    def evidence(number: int, nearest: float) -> Evidence:
        row = VideoRow(
            id=number, path=f"/{number}.mp4", key="k", number=number, size=1, modified=1, duration=9, clips=1, digest=""
        )
        moment = Moment(1.0, 3.0, 0.5)
        grounding = Grounding(
            query="a star",
            timeline=Timeline(duration=9.0, clip_seconds=9.0),
            moments=(moment,),
            saliency=np.zeros(1, np.float32),
        )
        hit = Hit(video=row.path, moment=moment, relevance=nearest)
        return Evidence(hit=hit, row=row, grounding=grounding, facts=(nearest, nearest, 0.0))

    # The nearest contents have the highest numbers; 11 is right, 10 overlaps too little, both have the sentence.
    windows = {11: [(1.0, 3.5)], 10: [(2.5, 9.0)]}
    whole, without = _judged(7, [evidence(number, number / 10) for number in range(12)], windows, 0.5)
    assert (whole.query, whole.present, without.query, without.present) == (7, True, 7, False)
    assert whole.facts_H3[:, 0].tolist() == [number / 10 for number in range(2, 12)]
    assert whole.right_H.tolist() == [False] * 9 + [True]
    assert without.facts_H3[:, 0].tolist() == [number / 10 for number in range(10)] and not without.right_H.any()
    assert _judged(0, [evidence(11, 1.0)], windows, 0.5)[0].present and len(_judged(0, [], windows, 0.5)) == 0
