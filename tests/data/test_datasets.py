"""The released forms, each as a small file of our own, and the released files where they are available."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sidelight.core.timeline import Timeline
from sidelight.data.annotations import AnnotationError
from sidelight.data.datasets import BENCHMARKS, benchmark, recognise
from sidelight.data.datasets.base import DataWarning
from sidelight.data.datasets.qvhighlights import seconds_in_name
from sidelight.features.sources import find_videos
from sidelight.io.files import VIDEO_SUFFIXES, videos_in
from sidelight.models.decode.sdst import DecodeConfig

UID = "11111111-2222-3333-4444-555555555555"
NOTE = "99999999-2222-3333-4444-555555555555"


def moment(vid: str, **changes: Any) -> dict[str, Any]:
    return {"qid": 1, "query": " a dog  barks", "duration": 30.5, "vid": vid, "relevant_windows": [[1, 2.5]], **changes}


TVSUM_ROW: dict[str, Any] = {
    "qid": "abc",
    "query": "How to paint",
    "duration": 3,
    "vid": "abc",
    "relevant_clip_ids": None,
    "relevant_windows": None,
    "label": [[1.0] * 20, [5.0] * 20, [2.0] * 19 + [3.0]],
    "domain": "VU",
}
YOUTUBE_ROW: dict[str, Any] = {
    **TVSUM_ROW,
    "query": "dog",
    "duration": 6.5,
    "label": [[0], [1], [0]],
    "domain": "dog",
    "frames": 195.0,
    "fps": 30.0,
    "clip": [[0.0, 100.0], [50.0, 150.0], [100.0, 200.0]],
    "match": [-1, 1, 0],
}
ACTIVITYNET_JSON = {
    "v_abcdefghijk": {
        "duration": 55.5,
        "timestamps": [[0, 10], [8.5, 55.51]],
        "sentences": ["A man sits.", " He stands up."],
    }
}
EGO4D_QUERY: dict[str, Any] = {
    "query": "where is the cup?",
    "clip_start_sec": 3.5,
    "clip_end_sec": 4.0,
    "template": "t",
}
EGO4D_JSON: dict[str, Any] = {
    "version": "v2",
    "videos": [
        {
            "video_uid": "v1",
            "clips": [
                {
                    "clip_uid": UID,
                    "video_start_sec": 100.0,
                    "video_end_sec": 580.0,
                    "annotations": [{"annotation_uid": NOTE, "language_queries": [EGO4D_QUERY]}],
                }
            ],
        }
    ],
}


def write(path: Path, *rows: Any) -> Path:
    """Write rows as JSON lines, or the first one as a JSON document if the name ends with .json."""
    path.write_text(json.dumps(rows[0]) if path.suffix == ".json" else "".join(json.dumps(r) + "\n" for r in rows))
    return path


def charades(folder: Path, text: str, table: str | None = "id,subject,length\nABCDE,x,30.96\n") -> Path:
    """Write the original test file, and the table with the durations."""
    (folder / "charades_sta_test.txt").write_text(text)
    if table is not None:
        (folder / "Charades_v1_test.csv").write_text(table)
    return folder / "charades_sta_test.txt"


def test_every_benchmark_is_listed_under_its_name() -> None:
    for name, known in BENCHMARKS.items():
        assert known.name == name and benchmark(name) is known
        assert all(split.files for split in known.splits.values())
    with pytest.raises(
        AnnotationError, match=r"there is no benchmark 'charade'; did you mean 'charades-sta'\? Known are qvhighlights"
    ):
        benchmark("charade")


def test_published_settings_can_be_decoded_with() -> None:
    for known in BENCHMARKS.values():
        if known.nms is not None:
            DecodeConfig(nms=known.nms.kind, nms_threshold=known.nms.threshold, round_to=known.unit)
    tab_a = {
        name: (known.clip_seconds, known.moment_queries)
        for name, known in BENCHMARKS.items()
        if known.moment_queries is not None
    }
    assert tab_a == {"qvhighlights": (2.0, 30), "charades-sta": (1.0, 30), "tacos": (2.0, 5)}
    assert (BENCHMARKS["qvhighlights"].unit, BENCHMARKS["charades-sta"].unit) == (2.0, 0.1)


def test_videos_are_named_as_extraction_names_them(tmp_path: Path) -> None:
    assert videos_in(tmp_path) == {}
    for name in [
        *(f"v{i}{suffix}" for i, suffix in enumerate(VIDEO_SUFFIXES)),
        "UPPER.MP4",
        "notes.txt",
        "two.dots.mp4",
    ]:
        (tmp_path / name).touch()
    files = videos_in(tmp_path)
    assert files == find_videos(tmp_path, files) and {"UPPER", "two.dots"} < files.keys() and "notes" not in files
    with pytest.raises(ValueError, match="is not a folder"):
        videos_in(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "rows", "expected"),
    [
        ("anything.jsonl", [], None),
        ("anything.jsonl", [moment("holiday")], None),
        ("highlight_val_release.jsonl", [], "qvhighlights"),
        ("anything.jsonl", [moment("x_0.0_150.0")], "qvhighlights"),
        ("charades_test.jsonl", [moment("holiday")], "charades-sta"),
        ("anything.jsonl", [moment("3MSZA"), moment("AMT7R")], "charades-sta"),
        ("anything.jsonl", [moment("3MSZA"), moment("holiday")], None),
        ("anything.jsonl", [moment("s30-d52")], "tacos"),
        ("anything.jsonl", [moment("v_uqiMw7tQ1Cc")], "activitynet-captions"),
        ("anything.jsonl", [moment(UID)], "ego4d-nlq"),
        ("anything.jsonl", [TVSUM_ROW], "tvsum"),
        ("anything.jsonl", [YOUTUBE_ROW], "youtube-highlights"),
        ("train.json", [ACTIVITYNET_JSON], "activitynet-captions"),
        ("train.json", [EGO4D_JSON], "ego4d-nlq"),
        ("train.json", [{}], None),
        ("train.json", [{"videos": []}], None),
        ("nlq_val.json", [{"settings": 1}], None),
        ("notes.txt", ["nothing"], None),
        ("test.txt", ["3MSZA 24.3 30.4##person turns."], "charades-sta"),
    ],
)
def test_files_are_recognised(tmp_path: Path, name: str, rows: list[Any], expected: str | None) -> None:
    if name.endswith(".txt"):
        (tmp_path / name).write_text("\n".join(rows))
    else:
        write(tmp_path / name, *rows)
    recognised = recognise(tmp_path / name)
    assert (recognised.name if recognised else None) == expected


def test_a_damaged_document_is_recognised_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "val_1.json").write_text('{"v_abc')
    assert recognise(tmp_path / "val_1.json") is BENCHMARKS["activitynet-captions"]
    with pytest.raises(AnnotationError, match=r"val_1.json is not valid JSON \(Unterminated string .*cut short"):
        BENCHMARKS["activitynet-captions"].read(tmp_path / "val_1.json")


@pytest.mark.parametrize(
    ("name", "file", "split"),
    [
        ("qvhighlights", "", None),
        ("qvhighlights", "data/highlight_test_with_gt.jsonl", "test"),
        ("qvhighlights", "my_val.jsonl", "val"),
        ("qvhighlights", "interval.jsonl", None),
        ("charades-sta", "charades_sta_train.txt", "train"),
        ("activitynet-captions", "activitynet_val.jsonl", "val_1"),
        ("activitynet-captions", "val_2.json", "val_2"),
        ("ego4d-nlq", "nlq_test_unannotated.json", "test"),
    ],
)
def test_the_split_is_in_the_name(name: str, file: str, split: str | None) -> None:
    assert BENCHMARKS[name].split_of(file) == split


@pytest.mark.parametrize(
    ("vid", "seconds"),
    [("", None), ("abc", None), ("NUsG9BgSes0_210.0_360.0", 150.0), ("a_b_1.0_2.5", 1.5), ("x_1_2", None)],
)
def test_seconds_in_name(vid: str, seconds: float | None) -> None:
    assert seconds_in_name(vid) == seconds


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_reads_json_lines_as_published(tmp_path: Path, name: str) -> None:
    known = BENCHMARKS[name]
    split = next(iter(known.splits))
    write(tmp_path / known.splits[split].files[0], moment("a", extra_field=3), moment("b", qid=2))
    annotations = known.read(tmp_path, split)
    assert annotations == known.read(tmp_path / known.splits[split].files[0])
    assert [a.to_dict() for a in annotations] == [moment("a", extra_field=3), moment("b", qid=2)]


def test_charades_original(tmp_path: Path) -> None:
    path = charades(tmp_path, "ABCDE 24.3 30.4##person turn ## on  a light.\r\n\nABCDE 0.0 31.0##a b\n")
    annotations = BENCHMARKS["charades-sta"].read(tmp_path, "test")
    assert [(a.qid, a.query, a.vid, a.duration) for a in annotations] == [
        ("test_1", "person turn ## on  a light.", "ABCDE", 30.96),
        ("test_3", "a b", "ABCDE", 30.96),
    ]
    assert [a.relevant_windows for a in annotations] == [((24.3, 30.4),), ((0.0, 31.0),)]
    assert annotations == BENCHMARKS["charades-sta"].read(path)


@pytest.mark.parametrize(
    ("text", "table", "message"),
    [
        ("", "id,length\n", "charades_sta_test.txt is empty"),
        ("ABCDE 1 2##x", None, "has no durations, and .*Charades_v1_test.csv is missing; put that file"),
        ("ABCDE 1 2##x", "id,seconds\nABCDE,3\n", "Charades_v1_test.csv:2: expected the columns id and length"),
        ("ABCDE 1 2##x", "id,length\nABCDE,long\n", "Charades_v1_test.csv:2: expected the columns id and length"),
        (
            "ABCDE 1 2##x\nZZZZZ 1 2##x",
            "id,length\nABCDE,3\n",
            "txt:2: Charades_v1_test.csv has no duration of the video",
        ),
        ("ABCDE 1 2 x", "id,length\nABCDE,3\n", "txt:1: expected VIDEO START END##SENTENCE"),
        ("ABCDE 1 b##x", "id,length\nABCDE,3\n", "txt:1: start and end must be seconds, got 1 and b"),
        ("ABCDE 2 1##x", "id,length\nABCDE,3\n", "txt:1: relevant_windows.0. must be .start, end. in seconds"),
    ],
)
def test_charades_original_wrong(tmp_path: Path, text: str, table: str | None, message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        BENCHMARKS["charades-sta"].read(charades(tmp_path, text, table))


def test_charades_original_with_a_line_that_is_no_text(tmp_path: Path) -> None:
    path = charades(tmp_path, "")
    path.write_bytes(b"ABCDE 1 2##x\nABCDE 1 2##\xff\n")
    with pytest.raises(AnnotationError, match=r"txt:2: this line is not text in UTF-8"):
        BENCHMARKS["charades-sta"].read(path)


def test_activitynet_original(tmp_path: Path) -> None:
    annotations = BENCHMARKS["activitynet-captions"].read(write(tmp_path / "val_1.json", ACTIVITYNET_JSON))
    assert [a.to_dict() for a in annotations] == [
        {
            "qid": f"v_abcdefghijk_{i}",
            "query": query,
            "duration": 55.5,
            "vid": "v_abcdefghijk",
            "relevant_windows": [window],
        }
        for i, (query, window) in enumerate([("A man sits.", [0, 10]), (" He stands up.", [8.5, 55.51])])
    ]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "val_1.json is empty"),
        ([], "val_1.json: expected a JSON object with named fields, got .."),
        ({"v_x": {"duration": 3, "timestamps": [[1, 2]], "sentences": []}}, "val_1.json:v_x: expected timestamps and"),
        ({"v_x": None}, "val_1.json:v_x: expected timestamps and sentences, as many of both, got None"),
        ({"v_x": {"timestamps": [[1, 2]], "sentences": ["a"]}}, r"v_x\[0\]: the field duration is missing"),
        ({"v_x": {"duration": 3, "timestamps": [[2, 1]], "sentences": ["a"]}}, r"v_x\[0\]: relevant_windows\[0\] must"),
    ],
)
def test_activitynet_original_wrong(tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        BENCHMARKS["activitynet-captions"].read(write(tmp_path / "val_1.json", document))


def ego4d(**changes: Any) -> dict[str, Any]:
    """Return the document with a changed query."""
    document: dict[str, Any] = json.loads(json.dumps(EGO4D_JSON))
    query = document["videos"][0]["clips"][0]["annotations"][0]["language_queries"][0]
    for name, value in changes.items():
        query[name] = value
    return document


def test_ego4d_original(tmp_path: Path) -> None:
    (annotation,) = BENCHMARKS["ego4d-nlq"].read(write(tmp_path / "nlq_val.json", EGO4D_JSON), "val")
    assert (annotation.qid, annotation.vid, annotation.duration) == (f"{NOTE}_0", UID, 480.0)
    assert (annotation.query, annotation.relevant_windows) == ("where is the cup?", ((3.5, 4.0),))
    assert annotation.extra == {"template": "t", "video_uid": "v1", "annotation_uid": NOTE, "query_idx": 0}
    kept_back = ego4d(clip_start_sec=None, clip_end_sec=None)
    (annotation,) = BENCHMARKS["ego4d-nlq"].read(write(tmp_path / "nlq_test_unannotated.json", kept_back), "test")
    assert annotation.relevant_windows == ()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"videos": []}, "nlq_val.json is empty"),
        ({}, "nlq_val.json: expected the field videos, a list"),
        (ego4d(query=None), r"annotations\[0\].language_queries\[0\]: the field query is missing"),
        (ego4d(clip_end_sec=3.5), r"language_queries\[0\]: relevant_windows\[0\] must be"),
        (ego4d(clip_end_sec=None), r"language_queries\[0\]: relevant_windows\[0\] must be"),
        (
            {"videos": [{"clips": [{"annotations": [{}]}]}]},
            r"videos\[0\].clips\[0\].annotations\[0\]: the field clip_uid is missing",
        ),
        (
            json.loads(json.dumps(EGO4D_JSON).replace("580.0", "[]")),
            r"language_queries\[0\]: video_end_sec must be seconds, got \[\]",
        ),
    ],
)
def test_ego4d_original_wrong(tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        BENCHMARKS["ego4d-nlq"].read(write(tmp_path / "nlq_val.json", document))


def test_tvsum_has_seconds_and_ratings(tmp_path: Path) -> None:
    (annotation,) = BENCHMARKS["tvsum"].read(write(tmp_path / "tvsum_val.jsonl", TVSUM_ROW))
    assert annotation.duration == 6 and Timeline(duration=annotation.duration, clip_seconds=2.0).num_clips == 3
    assert annotation.relevant_clip_ids == (0, 1, 2) and annotation.relevant_windows == ()
    assert annotation.saliency_scores == ((1,) * 20, (5,) * 20, (2,) * 19 + (3,))
    assert annotation.extra == {"domain": "VU"}


def test_youtube_keeps_what_a_clip_is(tmp_path: Path) -> None:
    (annotation,) = BENCHMARKS["youtube-highlights"].read(write(tmp_path / "youtube_val.jsonl", YOUTUBE_ROW))
    assert annotation.duration == 6.5 and annotation.relevant_clip_ids == (0, 1, 2)
    assert annotation.saliency_scores == ((0,), (1,), (0,))
    assert annotation.extra == {name: YOUTUBE_ROW[name] for name in ("domain", "frames", "fps", "clip", "match")}


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([], r"tvsum_val.jsonl:1: label must be a list of ratings for each clip, got \[\]"),
        ("no", "label must be a list of ratings for each clip, got 'no'"),
        ([[1.5]], r"saliency_scores\[0\]\[0\] must be a whole number"),
        ([3], r"saliency_scores\[0\] must be a list of whole numbers"),
        ([[1], [1, 2]], "saliency_scores must be lists of one length"),
    ],
)
def test_wrong_labels(tmp_path: Path, label: Any, message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        BENCHMARKS["tvsum"].read(write(tmp_path / "tvsum_val.jsonl", {**TVSUM_ROW, "label": label}))


def test_domains_are_chosen(tmp_path: Path) -> None:
    tvsum = BENCHMARKS["tvsum"]
    path = write(tmp_path / "tvsum_val.jsonl", TVSUM_ROW, {**TVSUM_ROW, "qid": "b", "domain": "BK"})
    assert [a.qid for a in tvsum.read(path)] == ["abc", "b"]
    assert [a.qid for a in tvsum.read(path, domain="BK")] == ["b"]
    with pytest.raises(AnnotationError, match="TVSum has no domain 'XX'; known are BK, BT"):
        tvsum.read(path, domain="XX")
    with pytest.raises(AnnotationError, match="TACoS has no domain 'BK'; it has none"):
        BENCHMARKS["tacos"].read(path, domain="BK")


def test_a_bad_row_stops_unless_it_may_be_left_out(tmp_path: Path) -> None:
    tacos = BENCHMARKS["tacos"]
    path = write(
        tmp_path / "tacos_val.jsonl", moment("a"), moment("b", qid=2, duration=0), moment("c"), moment("d", qid=4)
    )
    with path.open("ab") as file:
        file.write(b"\xff\n[1]\n{\n" + b"[" * 100_000 + b"\n")
    with pytest.raises(AnnotationError, match=r"tacos_val.jsonl:2: duration must be .* above 0, got 0; correct it"):
        tacos.read(path)
    with pytest.warns(
        DataWarning, match=r"tacos_val.jsonl: 6 rows cannot be used and were left out, the first at 2 \("
    ):
        assert [a.vid for a in tacos.read(path, lenient=True)] == ["a", "d"]


def test_missing_parts_are_named(tmp_path: Path) -> None:
    tacos = BENCHMARKS["tacos"]
    (tmp_path / "tacos_val.jsonl").touch()
    for path, split, message in [
        (tmp_path, None, "is a folder; say which split: train, val, test"),
        (tmp_path, "dev", "TACoS has no split 'dev'; known are train, val, test"),
        (tmp_path, "test", "has no file of TACoS, test; expected tacos_test.jsonl"),
        (tmp_path / "x.jsonl", None, "there is no file .*x.jsonl; expected annotations of TACoS"),
        (tmp_path, "val", "tacos_val.jsonl is empty; expected annotations of TACoS"),
    ]:
        with pytest.raises(AnnotationError, match=message):
            tacos.read(path, split)


# file: rows, videos, windows, rated clips, hours
PUBLISHED = {
    "qvhighlights/highlight_train_release": (7218, 7100, 12803, 160573, 294.94),
    "qvhighlights/highlight_val_release": (1550, 1519, 2803, 32549, 63.13),
    "qvhighlights/highlight_test_with_gt": (1542, 1529, 2761, 32887, 63.52),
    "charades-sta/charades_train": (12404, 5336, 12404, 0, 45.76),
    "charades-sta/charades_test": (3720, 1334, 3720, 0, 10.92),
    "tacos/tacos_train": (9790, 75, 9790, 0, 4.66),
    "tacos/tacos_val": (4436, 27, 4436, 0, 2.90),
    "tacos/tacos_test": (4001, 25, 4001, 0, 2.55),
    "activitynet-captions/activitynet_val": (17505, 4917, 17505, 0, 161.48),
    "tvsum/tvsum_train": (40, 40, 0, 4387, 2.44),
    "tvsum/tvsum_val": (10, 10, 0, 1879, 1.04),
    "youtube-highlights/youtube_train": (233, 233, 0, 14933, 7.37),
    "youtube-highlights/youtube_val": (152, 152, 0, 7599, 3.59),
}


@pytest.mark.parametrize("file", PUBLISHED)
def test_the_published_files(shared: Path, file: str) -> None:
    path = shared / "data" / f"{file}.jsonl"
    known = recognise(path)
    assert known is BENCHMARKS[file.split("/")[0]]
    rows = known.read(path)
    hours = sum({a.vid: a.duration for a in rows}.values()) / 3600
    windows, clips = sum(len(a.relevant_windows) for a in rows), sum(len(a.saliency_scores) for a in rows)
    assert (len(rows), len({a.vid for a in rows}), windows, clips, round(hours, 2)) == PUBLISHED[file]
    lines = path.read_text(encoding="utf-8").split("\n")
    assert [a.query for a in rows] == [json.loads(line)["query"] for line in lines if line]
    assert {a.extra["domain"] for a in rows if "domain" in a.extra} == set(known.domains)
    if known.domains:
        domain = known.domains[0]
        assert len(known.read(path, domain=domain)) == sum(a.extra["domain"] == domain for a in rows)
