"""Scores of every golden file by `sidelight evaluate`: equal to the last printed digit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sidelight.cli.main import main
from sidelight.data.annotations import Annotation, AnnotationError
from sidelight.metrics.evaluate import evaluate_files, metric_names, query_scores

GOLDEN = [
    # predictions, annotations, the published numbers, the convention of the script
    (
        "golden/qvhighlights-eval/sample_val_preds.jsonl",
        "data/qvhighlights/highlight_val_release.jsonl",
        "golden/qvhighlights-eval/sample_val_preds_metrics_raw.json",
        "moment-detr",
    ),
    (
        "golden/qvhighlights-eval/sample_val_preds.jsonl",
        "data/qvhighlights/highlight_val_release.jsonl",
        "golden/qvhighlights-eval/sample_val_preds_r2_metrics.json",
        "r2-tuning",
    ),
    (
        "golden/benchmarks/stress/preds.jsonl",
        "data/qvhighlights/highlight_val_release.jsonl",
        "golden/benchmarks/stress/standalone_metrics.json",
        "moment-detr",
    ),
    (
        "golden/benchmarks/stress/preds.jsonl",
        "data/qvhighlights/highlight_val_release.jsonl",
        "golden/benchmarks/stress/vtg_metrics.json",
        "r2-tuning",
    ),
    (
        "golden/benchmarks/charades-sta/preds.jsonl",
        "data/charades-sta/charades_test.jsonl",
        "golden/benchmarks/charades-sta/vtg_metrics.json",
        "r2-tuning",
    ),
]


def leaves(values: Any, name: str = "") -> dict[str, float]:
    if not isinstance(values, dict):
        return {name: values}
    return {k: v for key, part in values.items() for k, v in leaves(part, f"{name}/{key}").items()}


@pytest.mark.filterwarnings(
    "ignore::sidelight.metrics.evaluate.EvaluationWarning"
)  # the stress file has unusual windows on purpose
@pytest.mark.parametrize(("predictions", "annotations", "numbers", "convention"), GOLDEN)
def test_every_golden_number(
    shared: Path, tmp_path: Path, predictions: str, annotations: str, numbers: str, convention: str
) -> None:
    written = tmp_path / "metrics.json"
    files = [str(shared / predictions), str(shared / annotations)]
    assert main(["evaluate", *files, "--convention", convention, "--json", str(written)]) == 0
    scores, golden = leaves(json.loads(written.read_text())), leaves(json.loads((shared / numbers).read_text()))
    print(f"\n{numbers} ({convention}): {len(golden)} numbers")
    print("\n".join(f"  {name:<44}{value:>8}{scores.get(name, 'missing'):>9}" for name, value in golden.items()))
    assert scores == golden
    assert len(golden) > 50


def domain_files(shared: Path, folder: Path, kind: str) -> tuple[Path, Path, dict[str, Any]]:
    """Write the videos of a golden file as annotations of the benchmark and as predictions."""
    golden = json.loads((shared / "golden" / "benchmarks" / "highlights" / "hl_public.json").read_text())[kind]
    annotations, predictions = folder / f"{kind}_val.jsonl", folder / "predictions.jsonl"
    rows, guesses = [], []
    for number, blob in enumerate(golden["blobs"]):
        row: dict[str, Any] = {"qid": f"v{number}", "query": "a", "vid": f"v{number}", "domain": "BK"}
        if kind == "tvsum":
            row |= {"label": blob["label"]["anno"], "duration": len(blob["label"]["anno"])}
        else:
            match = blob["label"]["match"]
            row |= {"label": [[int(m > 0)] for m in match], "match": match, "duration": 2.0 * len(match)}
            row |= {"clip": [[i, i + 1] for i in range(len(match))]}
        rows.append(row)
        guesses.append({"qid": f"v{number}", "vid": f"v{number}", "pred_saliency_scores": blob["saliency"]})
    for path, lines in ((annotations, rows), (predictions, guesses)):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return predictions, annotations, golden


def test_golden_tvsum(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions, annotations, golden = domain_files(shared, tmp_path, "tvsum")
    brief = evaluate_files(predictions, annotations)["brief"]
    assert [brief["mAP@top5"], brief["mAP@top15"]] == [86.337, 80.801]
    assert [brief["mAP@top5"], brief["mAP@top15"]] == [
        round(100 * golden[f"mAP_top{k}"], 3) for k in (5, 15)
    ]  # both, so that a change of the file is noticed too
    each = query_scores(predictions, annotations).each["mAP@top5"]
    assert [round(float(v), 5) for v in each] == golden["per_video_mAP_top5"]
    assert main(["evaluate", str(predictions), str(annotations)]) == 0
    assert "86.337" in capsys.readouterr().out


def test_golden_youtube_highlights(shared: Path, tmp_path: Path) -> None:
    predictions, annotations, golden = domain_files(shared, tmp_path, "youtube")
    brief = evaluate_files(predictions, annotations, benchmark="youtube-highlights")["brief"]
    assert brief["mAP"] == 57.719 == round(100 * golden["mAP"], 3)
    each = query_scores(predictions, annotations, benchmark="youtube-highlights").each["mAP"]
    assert [round(float(v), 5) for v in each] == golden["per_video_mAP"]


def test_domains_are_reported_apart(tmp_path: Path) -> None:
    rows, guesses = [], []
    for number, domain in enumerate(["dog", "dog", "surfing"]):
        row = {
            "qid": number,
            "query": domain,
            "vid": f"v{number}",
            "domain": domain,
            "duration": 6.0,
            "clip": [[0, 1]] * 3,
        }
        right = number != 1
        rows.append({**row, "label": [[1], [0], [0]], "match": [1, 0, -1]})
        scores = [3, 2, 1] if right else [1, 2, 3]
        guesses.append({"qid": number, "vid": f"v{number}", "pred_saliency_scores": scores})
    (tmp_path / "youtube_val.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in guesses))
    brief = evaluate_files(tmp_path / "p.jsonl", tmp_path / "youtube_val.jsonl")["brief"]
    assert brief["mAP dog"] == pytest.approx((100 + brief["mAP"] * 3 - 200) / 2, abs=0.01)
    assert brief["mAP surfing"] == 100
    assert brief["mAP mean of domains"] == pytest.approx((brief["mAP dog"] + 100) / 2, abs=0.01)


def test_saliency_of_the_wrong_length(shared: Path, tmp_path: Path) -> None:
    predictions, annotations, _ = domain_files(shared, tmp_path, "tvsum")
    lines = [json.loads(line) for line in predictions.read_text().splitlines()]
    lines[2]["pred_saliency_scores"] = [0.0] * 10
    predictions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(
        AnnotationError, match=r"predictions.jsonl:3: pred_saliency_scores must hold one score for each"
    ):
        evaluate_files(predictions, annotations)


def test_unknown_benchmark(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"qid": 1, "vid": "v", "pred_relevant_windows": []}\n')
    (tmp_path / "a.jsonl").write_text('{"qid": 1, "query": "a", "vid": "v", "duration": 2}\n')
    with pytest.raises(AnnotationError, match="there is no benchmark 'coco'; known are qvhighlights"):
        evaluate_files(tmp_path / "p.jsonl", tmp_path / "a.jsonl", benchmark="coco")


def test_metric_names_of_clips_of_another_length() -> None:
    """Check that clip 74 of 100 s is accepted where clips last 1 s."""
    annotation = Annotation(
        qid=1,
        query="a",
        vid="v",
        duration=100,
        relevant_windows=((70, 75),),
        relevant_clip_ids=(70, 74),
        saliency_scores=((4,), (4,)),
        extra={"clip_seconds": 1.0},
    )
    names = metric_names([annotation])
    assert {"MR-full-mAP", "MR-short-mIoU", "HL-min-Fair-Hit1"} < set(names)
    assert "MR-long-mAP" not in names


def test_predictions_of_official_code_name_the_camera(tmp_path: Path) -> None:
    """Check that ids such as s13-d21-cam-002 are those of TACoS' annotations, and that all their rows count."""
    truth = {"qid": "test_1", "query": "a person cuts", "vid": "s13-d21", "duration": 100, "relevant_windows": [[4, 8]]}
    rows = [[20, 30, 0.9], [50, 50, 0.5], [4, 8, 0.0]]
    guess = {"qid": "test_1", "vid": "s13-d21-cam-002", "pred_relevant_windows": rows}
    (tmp_path / "tacos_test.jsonl").write_text(json.dumps(truth) + "\n")
    (tmp_path / "p.jsonl").write_text(json.dumps(guess) + "\n")
    brief = evaluate_files(tmp_path / "p.jsonl", tmp_path / "tacos_test.jsonl")["brief"]
    assert brief["MR-full-R5@0.7"] == 100 and brief["MR-full-R1@0.7"] == 0
    assert brief["MR-full-mAP"] == pytest.approx(100 / 3, abs=0.01)
    other = {**guess, "vid": "s13-d22-cam-002"}
    (tmp_path / "p.jsonl").write_text(json.dumps(other) + "\n")
    with pytest.raises(AnnotationError, match="predictions are of another video"):
        evaluate_files(tmp_path / "p.jsonl", tmp_path / "tacos_test.jsonl")
