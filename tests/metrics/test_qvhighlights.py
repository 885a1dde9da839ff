"""The metrics of QVHighlights against every printed digit of the published scripts, and small cases."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidelight.data.annotations import Annotation, AnnotationError, Submission, read_annotations, read_submissions
from sidelight.metrics.qvhighlights import CONVENTIONS, Convention, brief_metrics, evaluate_qvhighlights, per_query


@pytest.fixture(scope="module")
def val(shared: Path) -> list[Annotation]:
    return read_annotations(shared / "data" / "qvhighlights" / "highlight_val_release.jsonl")


@pytest.mark.parametrize(
    ("predictions", "numbers", "convention"),
    [
        (
            "qvhighlights-eval/sample_val_preds",
            "qvhighlights-eval/sample_val_preds_metrics_raw",
            "moment-detr",
        ),
        ("qvhighlights-eval/sample_val_preds", "qvhighlights-eval/sample_val_preds_r2_metrics", "r2-tuning"),
        ("benchmarks/stress/preds", "benchmarks/stress/standalone_metrics", "moment-detr"),
        ("benchmarks/stress/preds", "benchmarks/stress/vtg_metrics", "r2-tuning"),
    ],
)
def test_every_printed_digit(
    shared: Path, val: list[Annotation], predictions: str, numbers: str, convention: Convention
) -> None:
    submissions = read_submissions(shared / "golden" / f"{predictions}.jsonl")
    began = time.perf_counter()
    scores = evaluate_qvhighlights(submissions, val, convention=convention)
    assert time.perf_counter() - began < 5  # 0.3 s where nothing else runs
    golden = json.loads((shared / "golden" / f"{numbers}.json").read_text())
    assert scores == golden
    assert json.dumps(scores) == json.dumps(golden)  # also in the order of the keys
    assert evaluate_qvhighlights(submissions[::-1], val, convention=convention) == golden


def test_default_has_the_numbers_of_both_scripts(shared: Path, val: list[Annotation]) -> None:
    submissions = read_submissions(shared / "golden" / "qvhighlights-eval" / "sample_val_preds.jsonl")
    both = evaluate_qvhighlights(submissions, val)
    for name, table in evaluate_qvhighlights(submissions, val, convention="moment-detr").items():
        for metric, value in table.items():
            if isinstance(value, dict):
                assert value.items() <= both[name][metric].items()
            else:
                assert both[name][metric] == value


def test_charades(shared: Path) -> None:
    annotations = read_annotations(shared / "data" / "charades-sta" / "charades_test.jsonl")
    submissions = read_submissions(shared / "golden" / "benchmarks" / "charades-sta" / "preds.jsonl")
    golden = json.loads((shared / "golden" / "benchmarks" / "charades-sta" / "vtg_metrics.json").read_text())
    assert evaluate_qvhighlights(submissions, annotations, convention="r2-tuning") == golden
    # No window there is longer than 30 s: the published script repeats "full", our own convention leaves "long" out.
    assert golden.pop("long") == golden["full"]
    golden["brief"] = {k: v for k, v in golden["brief"].items() if "-long-" not in k}
    assert evaluate_qvhighlights(submissions, annotations) == golden


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("predictions", ["qvhighlights-eval/sample_val_preds", "benchmarks/stress/preds"])
def test_the_mean_over_queries_is_the_metric(
    shared: Path, val: list[Annotation], predictions: str, convention: Convention
) -> None:
    submissions = read_submissions(shared / "golden" / f"{predictions}.jsonl")
    each = per_query(submissions, val, convention=convention)
    brief = evaluate_qvhighlights(submissions, val, convention=convention)["brief"]
    assert list(each) == list(brief)
    assert {name: float(f"{100 * np.nanmean(values):.2f}") for name, values in each.items()} == brief
    for name, values in each.items():
        assert values.shape == (len(val),)
        assert not np.isnan(values).any() or "short" in name or "middle" in name or "long" in name


# --- small cases ------------------------------------------------------------------------------------------


def truth(qid: int | str = 1, **changes: Any) -> Annotation:
    values: dict[str, Any] = {
        "query": "a",
        "vid": "v",
        "duration": 10,
        "relevant_windows": ((0, 8),),
        "relevant_clip_ids": (0, 1, 2, 3),
        "saliency_scores": ((2, 0), (3, 0), (4, 4), (0, 0)),
    }
    return Annotation(qid=qid, **{**values, **changes})


def guess(qid: int | str = 1, windows: Any = ((0, 8, 0.5),), saliency: Any = (0, 1, 2, 0, 0)) -> Submission:
    return Submission(qid=qid, vid="v", pred_relevant_windows=windows, pred_saliency_scores=saliency)


def test_one_query() -> None:
    scores = evaluate_qvhighlights([guess()], [truth()])
    assert scores["full"]["MR-mAP"]["average"] == scores["short"]["MR-R1"]["0.95"] == 100
    assert scores["brief"]["MR-full-mIoU"] == 100
    assert scores["HL-min-VeryGood"] == {"HL-mAP": 100, "HL-Hit1": 100}
    # The first rater's positives are clips 0 to 2; clip 0 shares its saliency with clips 3 and 4.
    assert scores["HL-min-Fair"]["HL-mAP"] == round(100 * ((1 + 1 + 3 / 5) / 3 + 1) / 2, 2)
    assert set(scores) == {"brief", "full", "short", "HL-min-Fair", "HL-min-Good", "HL-min-VeryGood"}
    assert not any("long" in key or "middle" in key for key in scores["brief"])
    assert brief_metrics([truth()]) == tuple(scores["brief"])


@pytest.mark.parametrize(
    ("submission", "r1", "ap", "hit"),
    [
        (guess(windows=[]), 0, 0, 100),  # no window is a miss, not an error
        (guess(windows=[[4, 4, 1]]), 0, 0, 100),
        (guess(windows=[[0, 8, 0.1]] * 50), 100, 100, 100),
        (guess(windows=[[9, 10, 0.9]] * 10 + [[0, 8, 1.0]]), 0, 0, 100),
        (guess(saliency=[0]), 100, 100, 100),  # too short
        (guess(saliency=[0, 0, 0, 0, 0, 9]), 100, 100, 0),  # its best clip is beyond the video
        (guess(saliency=[0, 0, 0, 0, 9, 0]), 100, 100, 0),
        (guess(saliency=[-9, -9, -1]), 100, 100, 100),
    ],
)
def test_awkward_predictions(submission: Submission, r1: float, ap: float, hit: float) -> None:
    scores = evaluate_qvhighlights([submission], [truth()])
    assert scores["full"]["MR-R1"]["0.5"] == r1
    assert scores["full"]["MR-mAP"]["average"] == ap
    assert scores["HL-min-Fair"]["HL-Hit1"] == hit


def test_metrics_without_ground_truth_are_left_out() -> None:
    no_saliency = truth(relevant_clip_ids=(), saliency_scores=())
    assert set(evaluate_qvhighlights([guess()], [no_saliency])) == {"brief", "full", "short"}
    assert set(evaluate_qvhighlights([guess(saliency=[])], [truth()])) == {"brief", "full", "short"}
    only_saliency = evaluate_qvhighlights([guess()], [truth(relevant_windows=())])
    assert set(only_saliency) == {"brief", "HL-min-Fair", "HL-min-Good", "HL-min-VeryGood"}
    assert not any(key.startswith("MR") for key in only_saliency["brief"])


def test_long_windows_by_convention() -> None:
    annotation = truth(duration=400, relevant_windows=((0, 200),), relevant_clip_ids=(), saliency_scores=())
    submission = guess(windows=[[0, 200, 1]])
    assert evaluate_qvhighlights([submission], [annotation])["long"]["MR-mAP"]["average"] == 100
    scores = evaluate_qvhighlights([submission], [annotation], convention="moment-detr")
    assert "long" not in scores
    assert set(scores["full"]) == {"MR-mAP", "MR-R1"}
    assert "0.3" not in scores["full"]["MR-R1"]


def test_clips_of_another_length_and_the_cut_last_clip() -> None:
    annotation = truth(duration=10.5, relevant_clip_ids=(10,), saliency_scores=((4,),), relevant_windows=((10, 10.5),))
    saliency = np.zeros(11)
    saliency[10] = 1
    scores = evaluate_qvhighlights([guess(saliency=saliency)], [annotation], clip_seconds=1)
    assert scores["HL-min-VeryGood"] == {"HL-mAP": 100, "HL-Hit1": 100}


@pytest.mark.parametrize(
    ("submissions", "annotations", "message"),
    [
        ([], [], "there are no annotations to score against"),
        ([guess()], [], "there are no annotations to score against"),
        (
            [],
            [truth(q) for q in range(5)],
            r"5 of 5 annotations have no prediction \(qid 0, 1, 2 and 2 more\); predict for exactly",
        ),
        ([guess()], [truth(), truth("b")], r"1 of 2 annotations have no prediction \(qid 'b'\)"),
        ([guess(), guess(9)], [truth()], r"1 of 2 predictions have no annotation \(qid 9\)"),
        (
            [guess("1")],
            [truth(1)],
            r"no prediction \(qid 1\), and 1 of 1 predictions have no annotation \(qid '1'\)",
        ),
        (
            [guess(), guess("b")],
            [truth(vid="other"), truth("b")],
            r"1 of 2 predictions are of another video \(vid\) than .* \(qid 1\); give the annotations",
        ),
        ([guess(), guess()], [truth()], "each qid must appear once in the predictions; qid 1 appear"),
        ([guess()], [truth(), truth()], "each qid must appear once in the annotations; qid 1 appear"),
        (
            [guess(), guess(2)],
            [truth(), truth(2, relevant_windows=())],
            r"1 of 2 annotations have no relevant_windows \(qid 2\); all or none",
        ),
        (
            [guess(), guess(2)],
            [truth(), truth(2, saliency_scores=())],
            r"1 of 2 annotations have no saliency_scores \(qid 2\)",
        ),
        (
            [guess(), guess(2, saliency=[])],
            [truth(), truth(2)],
            r"1 of 2 predictions have no pred_saliency_scores \(qid 2\)",
        ),
        (
            [guess(), guess(2)],
            [truth(), truth(2, saliency_scores=((1,), (1,), (1,), (1,)))],
            r"the same number of raters, got \[1, 2\]",
        ),
        (
            [guess()],
            [truth(relevant_windows=(), saliency_scores=(), relevant_clip_ids=())],
            "there is nothing to score",
        ),
    ],
)
def test_rows_that_do_not_fit(submissions: list[Submission], annotations: list[Annotation], message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        evaluate_qvhighlights(submissions, annotations)


def test_unknown_convention() -> None:
    with pytest.raises(
        ValueError, match="convention must be one of 'sidelight', 'r2-tuning', 'moment-detr', got 'coco'"
    ):
        evaluate_qvhighlights([guess()], [truth()], convention="coco")  # type: ignore[arg-type]


def test_saliency_of_clips_of_another_length_is_converted() -> None:
    """Check that a perfect curve of 1 s clips is perfect against ratings of 2 s clips."""
    clips = (35, 36, 40)
    annotation = Annotation(
        qid=1, query="a", vid="v", duration=150, relevant_clip_ids=clips, saliency_scores=((4,), (4,), (3,))
    )
    curve = np.zeros(150)
    for clip in clips:
        curve[2 * clip : 2 * clip + 2] = 1.0
    perfect = {"HL-mAP": 100.0, "HL-Hit1": 100.0}
    prediction = Submission(
        qid=1, vid="v", pred_relevant_windows=np.zeros((0, 3)), pred_saliency_scores=curve, clip_seconds=1
    )
    scores = evaluate_qvhighlights([prediction], [annotation])
    assert scores["HL-min-Good"] == perfect
    assert scores["HL-min-VeryGood"]["HL-Hit1"] == 100.0
    rated_seconds = tuple(second for clip in clips for second in (2 * clip, 2 * clip + 1))
    fine = replace(
        annotation,
        relevant_clip_ids=rated_seconds,
        saliency_scores=((4,), (4,), (4,), (4,), (3,), (3,)),
        extra={"clip_seconds": 1.0},
    )
    coarse = replace(prediction, pred_saliency_scores=curve[::2], clip_seconds=2.0)
    assert evaluate_qvhighlights([coarse], [fine], clip_seconds=1)["HL-min-Good"] == perfect
    assert (
        evaluate_qvhighlights([replace(prediction, clip_seconds=None)], [fine], clip_seconds=1)["HL-min-Good"]
        == perfect
    )
    with pytest.raises(AnnotationError, match="has 150 values, but the video has 75 clips of 2 s"):
        evaluate_qvhighlights([replace(prediction, clip_seconds=None)], [annotation])
