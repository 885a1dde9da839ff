from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidelight.core.grounding import Grounding, Moment
from sidelight.core.timeline import Timeline
from sidelight.data.annotations import (
    Annotation,
    AnnotationError,
    Submission,
    read_annotations,
    read_submissions,
    write_annotations,
    write_submissions,
)

QVHIGHLIGHTS = ("train_release", "val_release", "test_with_gt")


def row(**changes: Any) -> dict[str, Any]:
    """Return the fields of an annotation; a value of ... removes a field."""
    values = {
        "qid": 7,
        "query": "a dog barks",
        "duration": 150,
        "vid": "v_0.0_150.0",
        "relevant_clip_ids": [3, 4],
        "saliency_scores": [[1, 2, 3], [4, 4, 4]],
        "relevant_windows": [[6, 10]],
    }
    return {k: v for k, v in {**values, **changes}.items() if v is not ...}


def prediction(**changes: Any) -> dict[str, Any]:
    """Return the fields of a prediction."""
    values = {
        "qid": 7,
        "query": "a dog barks",
        "vid": "v",
        "pred_relevant_windows": [[0.0, 10.0, 0.9], [4.0, 4.0, 0.1]],
        "pred_saliency_scores": [0.5, -1.0],
    }
    return {k: v for k, v in {**values, **changes}.items() if v is not ...}


def lines(*rows: Any) -> str:
    return "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)


GOOD = row(qid="first")
# Text of the file, then a part of the message; {} is the file.
BAD_ANNOTATIONS: list[tuple[str, str]] = [
    ("", "{} is empty; expected annotations as JSON lines"),
    ("\n \n", "{} is empty"),
    (lines(GOOD, json.dumps(row())[:60]), "{}:2: this line is not valid JSON (Unterminated string"),
    (lines(GOOD, "", "qid,query"), "{}:3: this line is not valid JSON (Expecting value at column 1)"),
    (
        lines(GOOD, [1, 2]),
        "{}:2: expected a JSON object with named fields, got [1, 2]; correct this line, or give annotations",
    ),
    (lines(GOOD, "[" * 100_000), "{}:2: this line is not readable JSON"),
    (lines(GOOD, '{"qid": ' + "9" * 5000 + "}"), "{}:2: this line is not readable JSON"),
    (lines(row(qid=...)), "{}:1: the field qid is missing; add it"),
    (lines(row(query=None)), "{}:1: the field query is missing"),
    (lines(row(vid=...)), "{}:1: the field vid is missing"),
    (lines(row(duration=...)), "{}:1: the field duration is missing"),
    (lines(row(), GOOD, row()), "{}:3: qid 7 is in line 1 already; give each row its own qid"),
    (lines(row(qid=1.5)), "{}:1: qid must be a whole number or a text, got 1.5"),
    (lines(row(qid=True)), "{}:1: qid must be a whole number or a text, got True"),
    (lines(row(query="  ")), "{}:1: query must be a sentence, got '  '"),
    (lines(row(vid=3)), "{}:1: vid must be the name of a video, got 3"),
    (lines(row(duration="150")), "{}:1: duration must be a number of seconds above 0, got '150'"),
    (lines(row(duration=0)), "{}:1: duration must be a number of seconds above 0, got 0"),
    (lines(row(duration=float("nan"))), "{}:1: duration must be a number of seconds above 0, got nan"),
    (lines(row(duration=10**400)), "{}:1: duration must be a number of seconds above 0, got 1000"),
    (lines(row(relevant_windows=[[6, 10], [8, 8]])), "{}:1: relevant_windows[1] must be [start, end] in"),
    (lines(row(relevant_windows=[[10, 6]])), "with 0 <= start < end, got [10, 6]"),
    (lines(row(relevant_windows=[[-1, 6]])), "{}:1: relevant_windows[0] must be"),
    (lines(row(relevant_windows=[[0, "6"]])), "{}:1: relevant_windows[0] must be"),
    (lines(row(relevant_windows=[[0, float("inf")]])), "{}:1: relevant_windows[0] must be"),
    (lines(row(relevant_windows=[[0, 1, 2]])), "{}:1: relevant_windows[0] must be"),
    (lines(row(relevant_windows=[6, 10])), "{}:1: relevant_windows[0] must be"),
    (lines(row(relevant_windows=[[4500, 5100]])), "relevant_windows[0] must be within its video of 150 s"),
    (lines(row(relevant_windows={"start": 1})), "{}:1: relevant_windows must be a list"),
    (
        lines(row(relevant_clip_ids=[3, -4])),
        "{}:1: relevant_clip_ids[1] must be a whole number of at least 0",
    ),
    (
        lines(row(relevant_clip_ids=[3.5, 4])),
        "relevant_clip_ids[0] must be a whole number of at least 0, got 3.5",
    ),
    (lines(row(relevant_clip_ids=[3, 3])), "{}:1: relevant_clip_ids must be clips that differ, got [3, 3]"),
    (
        lines(row(relevant_clip_ids=[3])),
        "{}:1: saliency_scores must be 1 lists, as many as relevant_clip_ids, got 2",
    ),
    (lines(row(saliency_scores=[[1, 2], [4]])), "{}:1: saliency_scores must be lists of one length"),
    (
        lines(row(saliency_scores=[[1], [2.5]])),
        "{}:1: saliency_scores[1][0] must be a whole number of at least 0",
    ),
    (lines(row(saliency_scores=[[], []])), "{}:1: saliency_scores[0] must be a list of whole numbers"),
    (
        lines(GOOD, row(relevant_windows=..., windows=[[6, 10]])),
        "{}:2: there is no field windows; give relevant_windows instead, or remove windows if it is something else",
    ),
    (lines(row(relevant_windows=..., relevent_windows=[[6, 10]])), "no field relevent_windows; give relevant_windows"),
    (lines(row(relevant_windows=..., Relevant_Windows=[[6, 10]])), "no field Relevant_Windows; give relevant_windows"),
    (lines(row(relevant_windows=..., start=6, end=10)), "there is no field end; give relevant_windows instead"),
    (lines(row(saliency_scores=..., saliency=[[1], [2]])), "there is no field saliency; give saliency_scores"),
    (lines(row(clip_length=1, clip_second=1)), "there is no field clip_second; give clip_seconds instead"),
    (lines(row(clip_seconds="2 s")), "{}:1: clip_seconds must be a number of seconds above 0, got '2 s'"),
    (lines(row(clip_seconds=0)), "{}:1: clip_seconds must be a number of seconds above 0, got 0"),
    (lines(row(saliency_scores=[3, 4])), "{}:1: saliency_scores[0] must be a list of whole numbers"),
]
BAD_PREDICTIONS: list[tuple[str, str]] = [
    ("", "{} is empty; expected predictions as JSON lines"),
    (lines(prediction(), '{"qid": 8, "vid'), "{}:2: this line is not valid JSON"),
    (lines(prediction(qid=...)), "{}:1: the field qid is missing; add it; correct this line"),
    (lines(prediction(vid=...)), "{}:1: the field vid is missing"),
    (lines(prediction(), prediction()), "{}:2: qid 7 is in line 1 already"),
    (
        lines(prediction(pred_relevant_windows=..., pred_saliency_scores=...)),
        "{}:1: the field pred_relevant_windows is missing",
    ),
    (
        lines(prediction(pred_saliency_scores=..., pred_saliency_score=[1, 2])),
        "{}:1: there is no field pred_saliency_score; give pred_saliency_scores instead",
    ),
    (
        lines(prediction(pred_relevant_windows=5)),
        "{}:1: pred_relevant_windows must be a list, in which each is a list",
    ),
    (
        lines(prediction(pred_relevant_windows=[[0, 1, 0.5], [5, 4, 0.5]])),
        "{}:1: pred_relevant_windows[1] must be [start, end, score] with start <= end, got [5.0, 4.0, 0.5]",
    ),
    (
        lines(prediction(pred_relevant_windows=[[0, 1]])),
        "{}:1: pred_relevant_windows[0] must be a list of 3 finite numbers, got [0, 1]",
    ),
    (
        lines(prediction(), prediction(qid=8, pred_relevant_windows=[[0, 1, float("nan")]])),
        "{}:2: pred_relevant_windows[0] must be a list of 3 finite numbers, got [0, 1, nan]",
    ),
    (
        lines(prediction(pred_relevant_windows=[[0, 1, "0.5"]])),
        "{}:1: pred_relevant_windows[0] must be a list of 3",
    ),
    (
        lines(prediction(pred_relevant_windows=[[0, True, 0.5]])),
        "{}:1: pred_relevant_windows[0] must be a list of 3",
    ),
    (
        lines(prediction(pred_relevant_windows=[[0, None, 0.5]])),
        "{}:1: pred_relevant_windows[0] must be a list of 3",
    ),
    (lines(prediction(pred_relevant_windows=["abc"])), "{}:1: pred_relevant_windows[0] must be a list of 3"),
    (
        lines(prediction(pred_saliency_scores=[0.5, float("inf")])),
        "pred_saliency_scores[1] must be a finite number",
    ),
    (
        lines(prediction(pred_saliency_scores=[[0.5]])),
        "{}:1: pred_saliency_scores[0] must be a finite number",
    ),
    (
        lines(prediction(pred_saliency_scores="0.5")),
        "{}:1: pred_saliency_scores must be a list, in which each is a",
    ),
    (lines(prediction(query=3)), "{}:1: query must be a sentence, got 3"),
]


@pytest.mark.parametrize(("text", "message"), BAD_ANNOTATIONS)
def test_a_wrong_annotation_is_named_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.jsonl"
    path.write_text(text)
    with pytest.raises(AnnotationError) as error:
        read_annotations(path)
    assert message.replace("{}", str(path)) in str(error.value)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(("text", "message"), BAD_PREDICTIONS)
def test_a_wrong_prediction_is_named_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.jsonl"
    path.write_text(text)
    with pytest.raises(AnnotationError) as error:
        read_submissions(path)
    assert message.replace("{}", str(path)) in str(error.value)
    assert str(path) in str(error.value)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"there is no file .*missing\.jsonl; expected annotations"):
        read_annotations(tmp_path / "missing.jsonl")
    with pytest.raises(AnnotationError, match="there is no file"):
        read_submissions(tmp_path)
    (tmp_path / "video.mp4").write_bytes(b"\x00\xff\xfe\x80")
    with pytest.raises(
        AnnotationError, match=r"video\.mp4:1: this line is not text in UTF-8; correct this line, or give pred"
    ):
        read_submissions(tmp_path / "video.mp4")


@pytest.mark.parametrize(
    "text",
    [
        lines(row()).rstrip("\n"),  # no newline at the end
        lines("", row(), " "),
        lines(row()).replace("\n", "\r\n"),
        "\ufeff" + lines(row()),
    ],
)
def test_harmless_differences_between_editors(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(text.encode())
    assert [a.qid for a in read_annotations(path)] == [7]


def test_labels_may_be_kept_back(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    kept_back = row(relevant_windows=..., relevant_clip_ids=..., saliency_scores=...)
    path.write_text(lines(kept_back, row(qid=8, relevant_windows=None, relevant_clip_ids=None, saliency_scores=None)))
    rows = read_annotations(path)
    for annotation in rows:
        assert not annotation.relevant_windows
        assert not annotation.relevant_clip_ids
        assert not annotation.saliency_scores
    write_annotations(path, rows)
    assert json.loads(path.read_text().splitlines()[0]) == kept_back
    assert read_annotations(path) == rows


def test_nothing_is_lost_on_the_way(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    text = lines(row(mood="happy", tags=[1, None], absent=None), row(qid="b", query="un été ☀\u2028", duration=30.5))
    path.write_text(text)
    rows = read_annotations(path)
    assert rows[0].extra == {"mood": "happy", "tags": [1, None], "absent": None}
    assert type(rows[0].duration) is int
    assert [type(v) for v in rows[0].relevant_windows[0]] == [int, int]
    assert len({*rows}) == 2
    write_annotations(path, rows)
    assert path.read_text() == text


@pytest.mark.parametrize("split", QVHIGHLIGHTS)
def test_the_published_annotations_round_trip_byte_for_byte(shared: Path, tmp_path: Path, split: str) -> None:
    source = shared / "data" / "qvhighlights" / f"highlight_{split}.jsonl"
    write_annotations(tmp_path / "again.jsonl", read_annotations(source))
    # The published file lacks the last newline.
    assert (tmp_path / "again.jsonl").read_bytes() == source.read_bytes().rstrip(b"\n") + b"\n"


@pytest.mark.parametrize(
    "name",
    ["qvhighlights-eval/sample_val_preds", "benchmarks/stress/preds", "benchmarks/charades-sta/preds"],
)
def test_published_predictions_round_trip_byte_for_byte(shared: Path, tmp_path: Path, name: str) -> None:
    source = shared / "golden" / f"{name}.jsonl"
    rows = read_submissions(source)
    write_submissions(tmp_path / "again.jsonl", rows)
    assert (tmp_path / "again.jsonl").read_bytes() == source.read_bytes().rstrip(b"\n") + b"\n"
    assert not rows[0].pred_relevant_windows.flags.writeable


@pytest.mark.parametrize(
    "name",
    [
        "activitynet-captions/activitynet_val",
        "charades-sta/charades_test",
        "tacos/tacos_val",
        "tvsum/tvsum_val",
        "youtube-highlights/youtube_val",
    ],
)
def test_other_published_annotations_are_read(shared: Path, tmp_path: Path, name: str) -> None:
    source = shared / "data" / f"{name}.jsonl"
    with source.open() as file:
        part = tmp_path / "part.jsonl"
        part.write_text("".join(line for line, _ in zip(file, range(500), strict=False)))
    rows = read_annotations(part)
    write_annotations(tmp_path / "again.jsonl", rows)
    assert read_annotations(tmp_path / "again.jsonl") == rows
    first = json.loads(part.read_text().splitlines()[0])
    assert rows[0].to_dict() == {k: v for k, v in first.items() if v is not None}


_numbers = st.integers(0, 10**6) | st.floats(0, 1e6)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_annotation_round_trips(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    words = st.text(min_size=1).filter(lambda text: text.strip() != "")
    clips = data.draw(st.lists(st.integers(0, 75), unique=True, max_size=5))
    annotation = Annotation(
        qid=data.draw(st.integers() | words),
        query=data.draw(words),
        vid=data.draw(words),
        duration=data.draw(_numbers.map(lambda v: v + 1)),
        relevant_windows=tuple((0, v + 1) for v in data.draw(st.lists(_numbers, max_size=3))),
        relevant_clip_ids=tuple(clips),
        saliency_scores=tuple((1, data.draw(st.integers(0, 4))) for _ in clips),
        extra=data.draw(st.dictionaries(words.map("x-".__add__), st.none() | words | st.booleans(), max_size=2)),
    )
    path = tmp_path_factory.mktemp("any") / "rows.jsonl"
    write_annotations(path, [annotation])
    assert read_annotations(path) == [annotation]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": {"vid": 3}}, "extra must not hold vid"),
        ({"relevant_windows": None}, "relevant_windows must be a list, got None"),
        ({"relevant_windows": ((0, float("nan")),)}, r"relevant_windows\[0\] must be"),
        ({"qid": None}, "qid must be a whole number or a text, got None"),
    ],
)
def test_annotations_are_checked_when_built(changes: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"qid": 1, "query": "a", "vid": "v", "duration": 10}
    with pytest.raises(AnnotationError, match=message):
        Annotation(**{**values, **changes})


def test_numpy_numbers_become_plain_ones(tmp_path: Path) -> None:
    annotation = Annotation(
        qid=1,
        query="a",
        vid="v",
        duration=np.float32(10),
        relevant_windows=((np.int64(1), np.float64(2.5)),),
        relevant_clip_ids=(np.int64(1),),
        saliency_scores=((np.int8(3),),),
    )
    write_annotations(tmp_path / "rows.jsonl", [annotation])
    assert read_annotations(tmp_path / "rows.jsonl") == [annotation]


def test_a_submission_from_a_grounding() -> None:
    annotation = Annotation(qid=3, query="a dog barks", vid="v", duration=5)
    answer = Grounding(
        query="a dog barks",
        timeline=Timeline(duration=5, clip_seconds=2),
        moments=(Moment(0, 2, 0.1), Moment(1, 5, 0.9)),
        saliency=np.array([0.1, 2, -1], dtype=np.float32),
    )
    submission = Submission.from_grounding(annotation, answer)
    assert (submission.qid, submission.query, submission.vid) == (3, "a dog barks", "v")
    assert submission.pred_relevant_windows.tolist() == [[1, 5, 0.9], [0, 2, 0.1]]
    assert submission.pred_saliency_scores.astype(np.float32).tolist() == answer.saliency.tolist()
    assert submission == Submission.from_dict(json.loads(json.dumps(submission.to_dict())))
    assert hash(submission) == hash(Submission.from_dict(submission.to_dict()))
    assert submission != answer
    assert submission.clip_seconds is None and "clip_seconds" not in submission.to_dict()
    fine = replace(answer, timeline=Timeline(duration=3, clip_seconds=1), moments=())
    fine_submission = Submission.from_grounding(annotation, fine)
    assert fine_submission.to_dict()["clip_seconds"] == 1.0
    assert Submission.from_dict(fine_submission.to_dict()) == fine_submission
    another_query = Annotation(qid=4, query="a cat", vid="v", duration=5)
    with pytest.raises(AnnotationError, match="expected a grounding of qid 4's query 'a cat', got one of 'a dog"):
        Submission.from_grounding(another_query, answer)


def test_empty_predictions_are_predictions() -> None:
    empty = Submission.from_dict({"qid": 1, "vid": "v", "pred_relevant_windows": []})
    assert empty.pred_relevant_windows.shape == (0, 3)
    assert empty.pred_saliency_scores.shape == (0,)
    assert empty.to_dict() == {"qid": 1, "vid": "v", "pred_relevant_windows": []}
    curve = Submission.from_dict({"qid": 1, "vid": "v", "pred_saliency_scores": [1, 2]})
    assert curve.pred_relevant_windows.shape == (0, 3)


def test_writing_leaves_no_half_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("before\n")
    bad = Annotation(qid=1, query="a", vid="v", duration=5, extra={"x": object()})
    good = Annotation(qid=0, query="a", vid="v", duration=5)
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_annotations(path, [good, bad])
    assert path.read_text() == "before\n"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="No such file or directory"):
        write_annotations(tmp_path / "no" / "rows.jsonl", [good])


def test_a_query_of_a_megabyte_is_refused(tmp_path: Path) -> None:
    row = {"qid": 1, "query": "dog " * 250_000, "vid": "v", "duration": 10, "relevant_windows": [[0, 2]]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(
        AnnotationError, match=r"a\.jsonl:1: .*query.* a sentence of at most 10,000 characters"
    ) as refused:
        read_annotations(tmp_path / "a.jsonl")
    assert len(str(refused.value)) < 400
