"""Check the scores of summaries against summaries by people, with a plain, slow reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from sidelight.cli.main import main
from sidelight.core.grounding import Moment
from sidelight.core.summary import Summary
from sidelight.core.timeline import Timeline
from sidelight.data.annotations import AnnotationError
from sidelight.data.user_summaries import holds_user_summaries, read_user_summaries
from sidelight.metrics.evaluate import EvaluationWarning
from sidelight.metrics.summary_scores import evaluate_summaries, kept_frames

VIDEOS = {"Air_Force_One": (240, 40.0), "Base jumping": (333, 61.0), "St Maarten Landing": (90, 20.5)}
"""Frames and seconds."""


def summary(video: str, seconds: float, *spans: tuple[float, float]) -> Summary:
    timeline = Timeline(duration=seconds, clip_seconds=2.0)
    return Summary(
        query="the highlights",
        timeline=timeline,
        moments=tuple(Moment(start, end, 0.5) for start, end in spans),
        saliency=np.zeros(timeline.num_clips, np.float32),
        video=video,
        segments=np.array([[0, timeline.num_clips]]),
    )


def people(seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Return summaries of five persons for each video: runs of frames."""
    draw = np.random.default_rng(seed)
    kept = {}
    for vid, (frames, _) in VIDEOS.items():
        kept[vid] = np.zeros((5, frames), np.int64)
        for person in kept[vid]:
            for start in draw.integers(0, frames - 10, size=3):
                person[start : start + draw.integers(3, 20)] = 1
    kept["Base jumping"][0] = 0  # a person who kept nothing
    return kept


SUMMARIES = (
    summary("films/Air_Force_One.mp4", 40.0, (4.0, 6.0), (12.0, 14.0)),
    summary("base_jumping.webm", 61.0, (0.0, 4.0), (50.0, 52.0)),
    summary("St Maarten Landing.mp4", 20.5, (20.0, 20.5)),
)


def slow_score(answer: Summary, rows: list[list[int]], reduce: str) -> tuple[float, float, float]:
    """Return F, precision and recall frame by frame and person by person, as Zhang et al. compute them."""
    frames = len(rows[0])
    machine = []
    for frame in range(frames):
        second = (frame + 0.5) * answer.timeline.duration / frames
        machine.append(any(m.start <= second < m.end for m in answer))
    scores = []
    for row in rows:
        overlap = sum(1 for a, b in zip(machine, row, strict=True) if a and b)
        precision = overlap / (sum(machine) + 1e-8)
        recall = overlap / (sum(row) + 1e-8)
        scores.append((2 * precision * recall / (precision + recall) if overlap else 0.0, precision, recall))
    if reduce == "max":
        return max(scores, key=lambda score: score[0])
    f, precision, recall = (sum(score[i] for score in scores) / len(scores) for i in range(3))
    return f, precision, recall


def write_lines(path: Path, kept: dict[str, np.ndarray[Any, Any]]) -> Path:
    lines = [json.dumps({"vid": vid, "user_summary": rows.tolist()}) + "\n" for vid, rows in kept.items()]
    path.write_text("".join(lines))
    return path


def write_hdf5(path: Path, kept: dict[str, np.ndarray[Any, Any]], *, named: bool = True) -> Path:
    """Write the layout of ``eccv16_dataset_summe_google_pool5.h5`` (or of TVSum, whose videos have no names)."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for number, (vid, rows) in enumerate(kept.items(), 1):
            group = file.create_group(f"video_{number}")
            group["user_summary"] = rows.astype(np.float32)
            group["n_frames"] = rows.shape[1]
            group["picks"] = np.arange(0, rows.shape[1], 15)
            group["features"] = np.zeros((len(group["picks"]), 4), np.float32)
            if named:
                group["video_name"] = vid.replace("_", " ")
    return path


def write_predictions(folder: Path, answers: tuple[Summary, ...] = SUMMARIES) -> Path:
    folder.mkdir(exist_ok=True)
    for number, answer in enumerate(answers):
        (folder / f"{number}.json").write_text(json.dumps(answer.to_dict(), indent=2))
    return folder


@pytest.mark.parametrize(("benchmark", "reduce"), [("summe", "max"), ("tvsum", "mean")])
@pytest.mark.parametrize("form", ["json lines", "hdf5"])
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_are_those_of_the_slow_reference(
    benchmark: Literal["summe", "tvsum"], reduce: str, form: str, seed: int, tmp_path: Path
) -> None:
    kept = people(seed)
    truth = write_lines(tmp_path / "t.jsonl", kept) if form == "json lines" else write_hdf5(tmp_path / "t.h5", kept)
    result = evaluate_summaries(write_predictions(tmp_path / "p"), truth, benchmark=benchmark)
    expected = np.array([slow_score(s, kept[v].tolist(), reduce) for s, v in zip(SUMMARIES, VIDEOS, strict=True)])
    assert list(result["brief"].values()) == pytest.approx((100 * expected.mean(0)).tolist(), abs=0.006)
    assert [list(video.values()) for video in result["videos"].values()] == [
        pytest.approx(row, abs=0.006) for row in (100 * expected).tolist()
    ]
    assert 0 < result["brief"]["F"] < 100


def test_the_same_summary_scores_100(tmp_path: Path) -> None:
    kept = {vid: np.zeros((2, VIDEOS[vid][0]), np.int64) for vid in VIDEOS}
    for answer, rows in zip(SUMMARIES, kept.values(), strict=True):
        rows[1] = kept_frames(answer, rows.shape[1])
    truth, predicted = write_lines(tmp_path / "t.jsonl", kept), write_predictions(tmp_path / "p")
    assert evaluate_summaries(predicted, truth, benchmark="summe")["brief"] == {
        "F": 100,
        "precision": 100,
        "recall": 100,
    }
    assert evaluate_summaries(predicted, truth, benchmark="tvsum")["brief"]["F"] == 50


def test_videos_without_names_are_found_by_their_key(tmp_path: Path) -> None:
    truth = write_hdf5(
        tmp_path / "tvsum.hdf5", {f"v{i}": np.eye(3, 60, dtype=np.int64) for i in range(12)}, named=False
    )
    assert [row.vid for row in read_user_summaries(truth)] == [f"video_{i}" for i in range(1, 13)]
    predicted = tmp_path / "one.json"
    predicted.write_text(json.dumps(summary("video_7.mp4", 60.0, (0.0, 2.0)).to_dict()))
    with pytest.warns(EvaluationWarning, match="1 of 12 videos of .* have a summary; the others do not count"):
        assert list(evaluate_summaries(predicted, truth, benchmark="tvsum")["videos"]) == ["video_7"]


def test_long_summaries_are_noted(tmp_path: Path) -> None:
    truth = write_lines(tmp_path / "t.jsonl", {"a": np.eye(2, 50, dtype=np.int64)})
    predicted = write_predictions(tmp_path / "p", (summary("a.mp4", 20.0, (0.0, 6.0)),))
    with pytest.warns(EvaluationWarning, match="1 of 1 summaries are longer than 15% of their video, first 'a'"):
        evaluate_summaries(predicted, truth, benchmark="summe")


def test_the_command_prints_means_and_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, predicted = write_lines(tmp_path / "t.jsonl", people()), write_predictions(tmp_path / "p")
    out = tmp_path / "e.json"
    assert main(["evaluate", str(predicted), str(truth), "--benchmark", "summe", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    values = json.loads(out.read_text())
    assert [line.split()[0] for line in printed.splitlines()[:3]] == ["F", "precision", "recall"]
    assert f"{values['brief']['F']:.2f}" in printed and set(values["videos"]) == set(VIDEOS)
    assert main(["evaluate", str(predicted), str(truth), "--benchmark", "tvsum", "--intervals"]) == 0
    assert "95 % intervals over 3 videos" in capsys.readouterr().out
    assert main(["evaluate", str(predicted), str(predicted), str(truth), "--benchmark", "summe"]) == 0
    assert "deviation over 2 runs" in capsys.readouterr().out


ONES = '{"vid": "a", "user_summary": [[0, 1], [1, 1]]}\n'


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ("", "t.jsonl holds no summaries by people"),
        ('{"vid": "a"}\n', "t.jsonl holds no summaries by people"),
        ('{"vid": "a", "user_summary": []}\n', "t.jsonl:1: user_summary of 'a' must have one row per person"),
        ('{"vid": "a", "user_summary": [[0, 2]]}\n', "must have one row per person with 0 or 1 per frame"),
        ('{"vid": "a", "user_summary": [[0, 1], [1]]}\n', "all rows must be equally long"),
        ('{"vid": "a", "user_summary": "x"}\n', "must have one row per person"),
        ('{"vid": 3, "user_summary": [[0, 1]]}\n', "t.jsonl:1: vid must be the name of a video, got 3"),
        (f"{ONES}{{\n", "t.jsonl:2: this line is not valid JSON"),
        (2 * ONES, "the video 'a' is in it twice"),
        (ONES.replace('"a"', '"b"'), "the video 'a.mp4' is not in"),
    ],
)
def test_wrong_annotations_are_one_sentence(
    truth: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.jsonl").write_text(truth)
    predicted = write_predictions(tmp_path / "p", (summary("a.mp4", 20.0, (0.0, 2.0)),))
    assert main(["evaluate", str(predicted), str(tmp_path / "t.jsonl"), "--benchmark", "summe"]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("predictions", "options", "message"),
    [
        ("p", [], "--benchmark summe for the best one, or --benchmark tvsum for their mean"),
        ("p", ["--benchmark", "tacos"], "--benchmark summe for the best one"),
        ("p", ["--benchmark", "summe", "--convention", "moment-detr"], "summaries have one convention only"),
        ("t.jsonl", ["--benchmark", "summe"], "t.jsonl holds no summaries; expected what `sidelight summarize"),
        ("none", ["--benchmark", "summe"], "none"),
        ("empty", ["--benchmark", "summe"], "empty holds no .json file"),
        ("twice", ["--benchmark", "summe"], "holds several summaries of the video 'a'"),
        ("moments", ["--benchmark", "summe"], "0.json: this is no summary"),
    ],
)
def test_wrong_predictions_are_one_sentence(
    predictions: str,
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.jsonl").write_text(ONES)
    Path("empty").mkdir()
    answer = summary("a.mp4", 20.0, (0.0, 2.0))
    write_predictions(Path("p"), (answer,))
    write_predictions(Path("twice"), (answer, answer))
    (write_predictions(Path("moments"), (answer,)) / "0.json").write_text(
        json.dumps({key: value for key, value in answer.to_dict().items() if key != "segments"})
    )
    assert main(["evaluate", predictions, "t.jsonl", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_damaged_hdf5_is_one_sentence(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = write_hdf5(tmp_path / "t.h5", people())
    assert holds_user_summaries(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:300])
    with pytest.raises(AnnotationError, match="is no readable HDF5 file"):
        read_user_summaries(path)
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        del file["video_2/n_frames"]
        file["video_2/n_frames"] = 7
    with pytest.raises(AnnotationError, match=r"user_summary of video_2 has shape \(5, 333\), but n_frames is 7"):
        read_user_summaries(path)
    with h5py.File(path, "a") as file:
        del file["video_2/user_summary"]
    with pytest.raises(AnnotationError, match="video_2 has no user_summary"):
        read_user_summaries(path)
