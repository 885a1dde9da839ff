"""Own data: tables of every form, and the messages for wrong ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidelight.cli.main import main
from sidelight.core.timeline import Timeline
from sidelight.data.annotations import Annotation, AnnotationError, read_annotations
from sidelight.data.datasets.base import DataWarning
from sidelight.data.labels import clip_saliency
from sidelight.data.table_import import TableError, import_file, import_table, seconds_of
from sidelight.features.check import check
from sidelight.metrics.evaluate import evaluate_files
from sidelight.video.read import probe

HEADER = "video,query,start,end,duration\n"


def table(folder: Path, text: str, name: str = "table.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder / name


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        (0, 0),
        (83.25, 83.25),
        ("83.25", 83.25),
        (" 83. ", 83),
        (".5", 0.5),
        ("1:23.25", 83.25),
        ("0:05", 5),
        ("75:00", 4500),
        ("1:02:03.5", 3723.5),
        ("01:02:03", 3723),
    ],
)
def test_times(text: object, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-1",
        -1,
        "1:60",
        "1:60:00",
        "1:2:3:4",
        "1,5",
        "1m",
        "1e3",
        "nan",
        float("nan"),
        float("inf"),
        True,
        None,
        [1],
    ],
)
def test_wrong_times(text: object) -> None:
    with pytest.raises(ValueError, match="a time must be seconds, m:ss or h:mm:ss, such as"):
        seconds_of(text)


EXPECTED = Annotation(
    qid=0,
    query="the dog jumps, twice",
    vid="holiday",
    duration=90,
    relevant_windows=((10, 14), (62.5, 68)),
    relevant_clip_ids=(5, 6, 31, 32, 33),
    extra={"clip_seconds": 2.0},
)
FORMS = {
    "table.csv": f"""{HEADER}
holiday.mp4,"the dog jumps, twice",1:02.5,1:08,90
holiday,"the dog jumps, twice",10,14,
""",
    "semicolons.csv": """Video;Query;Start;End;Duration
clips/holiday.MP4;the dog jumps, twice;62.5;68;1:30
clips/holiday.MP4;the dog jumps, twice;10;14;1:30
""",
    "tabs.tsv": "duration\tend\tstart\tquery\tvideo\r\n90\t68\t62.5\tthe dog jumps, twice\tholiday\r\n"
    "90\t14\t10\tthe dog jumps, twice\tholiday\r\n",
    "mark.csv": f'\ufeff{HEADER}holiday,"the dog jumps, twice",62.5,68,90\nholiday,"the dog jumps, twice",10,14,90',
    "table.jsonl": '{"video": "holiday.mp4", "query": "the dog jumps, twice", "start": "1:02.5", "end": 68,'
    ' "duration": 90}\n\n{"video": "holiday", "query": "the dog jumps, twice", "start": 10, "end": 14}\n',
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_table(tmp_path: Path, name: str) -> None:
    (annotation,) = import_table(table(tmp_path, FORMS[name], name))
    assert annotation == EXPECTED


def test_rows_are_joined_by_video_and_query(tmp_path: Path) -> None:
    text = "a,x,1,2,20\nb,x,1,2,30\na,x,5,6,20\na,y,,,20\n"
    annotations = import_table(table(tmp_path, HEADER + text))
    assert [(a.qid, a.vid, a.query, a.relevant_windows) for a in annotations] == [
        (0, "a", "x", ((1, 2), (5, 6))),
        (1, "b", "x", ((1, 2),)),
        (2, "a", "y", ()),
    ]


@pytest.mark.parametrize("clip_seconds", [1.0, 2.0])
def test_without_ratings_windows_are_relevant_as_in_training(tmp_path: Path, clip_seconds: float) -> None:
    text = "a,x,1.4,6.5,19\na,x,18.9,19,19\na,x,4,12,19\na,x,18,20,19\n"
    (annotation,) = import_table(table(tmp_path, HEADER + text), clip_seconds=clip_seconds)
    timeline = Timeline(duration=19, clip_seconds=clip_seconds)
    saliency = clip_saliency(annotation, timeline)
    assert annotation.saliency_scores == ()
    assert np.flatnonzero(saliency).tolist() == list(annotation.relevant_clip_ids)
    assert set(saliency.tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("first", "second", "scores"),
    [
        ("3", "1", {1: 3, 2: 3, 3: 1}),
        ("3 0", "4 1", {1: 3, 2: 4, 3: 1}),
        (3, [0, 4], {1: 3, 2: 3, 3: 4}),
    ],
)
def test_ratings(tmp_path: Path, first: Any, second: Any, scores: dict[int, int]) -> None:
    rows = [{"start": 2, "end": 6, "saliency": first}, {"start": 4, "end": 8, "saliency": second}]
    lines = "".join(json.dumps({"video": "a", "query": "x", "duration": 20, **r}) + "\n" for r in rows)
    (annotation,) = import_table(table(tmp_path, lines, "t.jsonl"))
    ratings = dict(zip(annotation.relevant_clip_ids, annotation.saliency_scores, strict=True))
    assert ratings == {c: (s,) for c, s in scores.items()}
    clip_saliency(annotation, Timeline(duration=20, clip_seconds=2))


def test_durations_come_from_the_videos(tiny_world: Path, tmp_path: Path) -> None:
    videos = tiny_world / "videos"
    first, second = sorted(videos.iterdir())[:2]
    path = table(tmp_path, f"video,query,start,end,duration\n{first.name},x,1,2,\n{second.stem},x,1,2,12\n")
    annotations = import_table(path, videos=videos)
    assert [a.duration for a in annotations] == [probe(first).duration, 12]


S = "holiday,x,1,2,20\n"
WRONG: list[tuple[str, str, str]] = [
    ("t.csv", "", "t.csv is empty; expected rows with video, query, start, end"),
    ("t.csv", HEADER, "t.csv is empty"),
    ("t.jsonl", "\n", "t.jsonl is empty"),
    ("t.csv", "video,query,start\n", "t.csv:1: the column end is missing; expected a header with video, query, start"),
    ("t.csv", "holiday,x,1,2\n", "t.csv:1: the column video is missing"),
    ("t.csv", f"{HEADER}{S}holiday,x,1,2,20,7\n", "t.csv:3: more values than the header has columns"),
    ("t.csv", f"{HEADER}{S}holiday,x,1\n", "t.csv:3: fewer values than the header has columns"),
    ("t.csv", f'{HEADER}{S}"holiday,x,1,2,3\n', "t.csv:3: this line is not valid CSV"),
    ("t.csv", f'{HEADER}\n"holi\nday",x,1,2,20\n\n,x,1,2,20\n', "t.csv:6: video must be a text, got ''"),
    ("t.csv", f"{HEADER}holiday, ,1,2,20\n", "t.csv:2: query must be a text, got ' '; fill it in"),
    ("t.csv", f"{HEADER}{S}holiday,x,1,b,20\n", "t.csv:3: end: a time must be seconds, m:ss or h:mm:ss, such as"),
    ("t.csv", f"{HEADER}{S}holiday,x,,4,20\n", "t.csv:3: start is missing; give both, or neither"),
    ("t.csv", f"{HEADER}{S}holiday,x,4,4,20\n", "t.csv:3: end must be after start, got 4 to 4 s"),
    ("t.csv", f"{HEADER}{S}holiday,x,1:00,0:30,20\n", "t.csv:3: end must be after start, got 60 to 30 s"),
    ("t.csv", f"{HEADER}holiday,x,1,2,0\n", "t.csv:2: duration must be more than 0"),
    ("t.csv", f"{HEADER}{S}holiday,y,1,2,21\n", "t.csv:3: the video 'holiday' lasts 21 s here and 20 s in line 2"),
    ("t.csv", f"{HEADER}{S}{S}", "t.csv:3: this row repeats line 2; remove one of the two"),
    ("t.csv", f"{HEADER}{S}holiday,x,,,20\n", "t.csv:3: one of the lines 2 and 3 has a window, the other says that"),
    ("t.csv", f"{HEADER}holiday,x,,,20\n{S}", "t.csv:3: one of the lines 2 and 3 has a window, the other says that"),
    ("t.csv", f"{HEADER}holiday,x,20,21,20\n", "t.csv:2: the window from 20 to 21 s is not inside its video of 20 s"),
    ("t.csv", f"{HEADER}holiday,x,2,22.5,20\n", "t.csv:2: the window from 2 to 22.5 s is not inside its video"),
    (
        "t.csv",
        f"{HEADER}{S}street,x,1,2,\n",
        "t.csv:3: the duration of the video 'street' is missing; add a column duration, or give",
    ),
    ("t.jsonl", "{", "t.jsonl:1: this line is not valid JSON"),
    ("t.jsonl", "[]", "t.jsonl:1: expected a JSON object with named fields, got []"),
    ("t.jsonl", '{"query": "x"}', "t.jsonl:1: the field video is missing; add it"),
    ("t.jsonl", '\n{"video": 3, "query": "x"}', "t.jsonl:2: video must be a text, got 3"),
    ("t.jsonl", '{"video": "a", "query": "x", "start": [1], "end": 2}', "t.jsonl:1: start: a time must be seconds"),
]
RATED = '{"video": "a", "query": "x", "duration": 20, "start": 2, "end": 6%s}\n'
WRONG += [
    ("t.jsonl", RATED % f', "saliency": {wrong}', "t.jsonl:1: saliency must be a whole number from 0, or one for each")
    for wrong in ("-1", "1.5", "[]", '"high"', "true", '"1,2"', "{}")
]
WRONG += [
    (
        "t.jsonl",
        RATED % ', "saliency": [1, 2, 3]',
        "t.jsonl:1: saliency must be one number, or 2, one for each clip of 2 s",
    ),
    ("t.jsonl", RATED % ', "saliency": 1' + RATED.replace("6", "8") % "", "t.jsonl:2: saliency is missing, but line 1"),
    (
        "t.jsonl",
        '{"video": "a", "query": "x", "duration": 20, "windows": [[1, 2]]}',
        "t.jsonl:1: there is no field windows; give start and end instead, or remove windows if it is something else",
    ),
    (
        "t.jsonl",
        '{"video": "a", "query": "x", "duration": 20, "Start": 1, "End": 2}',
        "t.jsonl:1: there is no field End; give end instead",
    ),
    (
        "t.csv",
        "video,query,start,end,windows,duration\na,x,1,2,,20\na,y,,,3-4,20\n",
        "t.csv:3: there is no field windows; give start and end instead",
    ),
    ("t.csv", "video,query,start,end,durations\na,x,1,2,20\n", "t.csv:2: there is no field durations; give duration"),
    (
        "t.jsonl",
        '{"video": "a", "query": "x", "duration": 20, "saliency": 3}',
        "t.jsonl:1: saliency rates the clips of a window, but start and end are missing",
    ),
]


@pytest.mark.parametrize(("name", "text", "message"), WRONG)
def test_wrong_rows_are_named_with_file_and_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(AnnotationError) as error:
        import_file(table(tmp_path, text, name), tmp_path / "out.jsonl")
    assert f"{tmp_path}/{message}" in str(error.value) and len(str(error.value)) < 400
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_all_wrong_rows_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["a,x,1,2,20", "a,y,5,3,20", "a,z,1:99,3,20", "b,x,30,40,20", "b,y,1,2", "b,y,3,4,21", "c,x,1,2,"]
    path = table(tmp_path, HEADER + "\n".join(rows) + "\n")
    with pytest.raises(TableError) as error:
        import_table(path)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{path} has 5 wrong rows:" and len(error.value.problems) == 5
    assert [int(line.split(":")[1]) for line in lines[1:]] == [3, 4, 5, 6, 7]
    out = tmp_path / "out.jsonl"
    assert main(["data", "import", str(path), "--out", str(out)]) == 2
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 5 and all(line.startswith(f"sidelight: {path}:") for line in shown) and not out.exists()
    many = table(tmp_path, HEADER + "a,y,5,3,20\n" * 23)
    assert main(["data", "import", str(many), "--out", str(out)]) == 2
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 21 and shown[-1] == "sidelight: and 3 more wrong rows"


def test_files_that_cannot_be_read(tmp_path: Path, tiny_world: Path) -> None:
    with pytest.raises(AnnotationError, match=r"there is no file .*nowhere"):
        import_table(tmp_path / "nowhere.csv")
    (tmp_path / "t.csv").write_bytes(b"video,query,start,end\n\xff,x,1,2\n")
    with pytest.raises(AnnotationError, match="is not text in UTF-8; save the table as CSV in UTF-8"):
        import_table(tmp_path / "t.csv")
    path = table(tmp_path, "video,query,start,end\nholiday,x,1,2\n")
    with pytest.raises(
        AnnotationError, match=r"table.csv:2: .* has no file of the video 'holiday'; expected holiday with"
    ):
        import_table(path, videos=tiny_world / "videos")
    with pytest.raises(AnnotationError, match="nowhere is not a folder"):
        import_table(path, videos=tmp_path / "nowhere")
    with pytest.raises(AnnotationError, match="clip_seconds must be more than 0, got 0"):
        import_table(path, clip_seconds=0)


TABLE = "video,query,start,end,duration\r\na.mp4,un été,1,2,20\r\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_tables_are_read_as_excel_and_powershell_write_them(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(TABLE.encode(encoding))
    (row,) = import_table(tmp_path / "t.csv")
    assert (row.vid, row.query) == ("a", "un été")
    (tmp_path / "t.jsonl").write_bytes(
        '{"video": "a", "query": "un été", "start": 1, "end": 2, "duration": 20}\n'.encode(encoding)
    )
    assert import_table(tmp_path / "t.jsonl") == [row]


@pytest.mark.parametrize("beginning", [b"PK\x03\x04", b"\xd0\xcf\x11\xe0"])
def test_a_workbook_is_no_table(beginning: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(beginning + bytes(40))
    with pytest.raises(
        AnnotationError, match=r"t\.csv is an Excel workbook, not CSV; in Excel choose Save As, then CSV"
    ):
        import_table(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("video", "vid"),
    [
        ("C:\\films\\a.mp4", "a"),
        ("films\\a.MKV", "a"),
        ("\\\\server\\films\\a.mp4", "a"),
        ("C:/films/a.mp4", "a"),
        ("films/a.wmv", "a"),
        ("a", "a"),
        ("a\\b", "a\\b"),
    ],
)
def test_paths_of_any_system_become_ids(video: str, vid: str, tmp_path: Path) -> None:
    path = table(tmp_path, f"video,query,start,end,duration\n{video},x,1,2,20\n")
    assert [row.vid for row in import_table(path)] == [vid]


def test_windows_paths_of_two_folders_are_two_videos(tmp_path: Path) -> None:
    path = table(tmp_path, "video,query,start,end,duration\nC:\\one\\a.mp4,x,1,2,20\nC:\\two\\a.mp4,x,1,2,20\n")
    with pytest.raises(AnnotationError, match="has the same id, 'a', as"):
        import_table(path)


def test_columns_that_mean_nothing_are_named(tmp_path: Path) -> None:
    path = table(tmp_path, "video,query,start,end,duration,note\na,x,1,2,20,funny\n")
    with pytest.warns(DataWarning, match=r"table.csv: columns that are not read: note; known columns are video, query"):
        (annotation,) = import_table(path)
    assert (annotation.vid, annotation.query, annotation.relevant_windows) == ("a", "x", ((1, 2),))
    assert "note" not in annotation.extra


def test_the_command(tmp_path: Path, tiny_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = sorted((tiny_world / "videos").iterdir())[0]
    path = table(tmp_path, f"video,query,start,end\n{video.name},a star,1,2\n{video.name},a star,0:05,0:07.5\n")
    out = tmp_path / "annotations.jsonl"
    arguments = ["data", "import", str(path), "--out", str(out)]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("sidelight: ") and "--videos" in message and not out.exists()
    assert main([*arguments, "--videos", str(tiny_world / "videos"), "--clip-seconds", "1"]) == 0
    assert f"wrote 1 query with 2 windows on 1 video to {out}" in capsys.readouterr().out
    (annotation,) = read_annotations(out)
    assert (annotation.vid, annotation.relevant_windows) == (video.stem, ((1, 2), (5, 7.5)))
    assert not check(out).findings
    assert main([*arguments[:-1], str(tmp_path / "no" / "a.jsonl"), "--videos", str(tiny_world / "videos")]) == 0
    assert (tmp_path / "no" / "a.jsonl").is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "h.mp4,a,1,2,10\na/h.mp4,a,3,4,10\n", "a/h.mp4 has the same id, 'h', as h.mp4 in line 2"),
        ("video,query,start,end,duration,start\nh,a,1,2,10,3\n", ":1: the column start appears twice"),
        (HEADER + f"h,a,1,1{'0' * 400}:00:00,10\n", ":2: end: a time must be seconds"),
        (HEADER + f"h,a,1,1{'0' * 400},10\n", ":2: end: a time must be seconds"),
    ],
)
def test_rows_that_would_mix_or_overflow(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(AnnotationError) as error:
        import_table(table(tmp_path, text))
    assert message in str(error.value)


def test_clips_of_another_length_are_checked_and_scored_as_such(tmp_path: Path) -> None:
    """Check that 100 s in clips of 1 s contain clip 74, and that saliency after clip 50 counts."""
    path = table(tmp_path, "video,query,start,end,duration,saliency\nh,a,10,15,100,4\nh,b,70,75,100,4\n")
    out = tmp_path / "own.jsonl"
    annotations = import_file(path, out, clip_seconds=1)
    assert max(annotations[1].relevant_clip_ids) == 74
    assert check(out).errors == ()
    curve = [0.0] * 60 + [1.0] * 40
    rows = [
        {"qid": q, "vid": "h", "pred_relevant_windows": [[10, 15, 1]], "pred_saliency_scores": curve} for q in (0, 1)
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    brief = evaluate_files(tmp_path / "p.jsonl", out)["brief"]
    assert brief["HL-min-VeryGood-Hit1"] == 0  # the first best clip is 60; in clips of 2 s it would not exist
    assert brief["HL-min-VeryGood-mAP"] < 20
