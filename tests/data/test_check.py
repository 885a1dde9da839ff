"""Each kind of finding about annotations and video files has a file that triggers it; clean files trigger none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sidelight.data.annotations import AnnotationError
from sidelight.data.check import check_data
from sidelight.data.findings import EXAMPLES, KINDS, OWN_DATA, SEVERITIES, Report
from tests.films import Encoding, encode, numbered


def row(**changes: Any) -> dict[str, Any]:
    """Return a faultless row of own data, 20 s long; a value of ... removes the field."""
    values = {
        "qid": 1,
        "query": "a dog barks",
        "duration": 20,
        "vid": "yard",
        "relevant_windows": [[2, 6], [6, 8]],
        "relevant_clip_ids": [1, 2, 3],
        "saliency_scores": [[1, 2], [2, 2], [4, 3]],
    }
    return {k: v for k, v in {**values, **changes}.items() if v is not ...}


def windows(*spans: Any, **changes: Any) -> dict[str, Any]:
    """Return a row without ratings."""
    return row(relevant_windows=list(spans), relevant_clip_ids=..., saliency_scores=..., **changes)


CUT = {"vid": "abc_0.0_150.0", "duration": 150}
RATED = {"qid": 1, "query": "dog", "duration": 9.0, "vid": "a", "label": [[0], [1]], "match": [0, 1], "domain": "dog"}
CLIPS = {**RATED, "frames": 120.0, "fps": 30.0, "clip": [[0, 100], [50, 120]]}
TVSUM = {"qid": 1, "query": "How to", "duration": 2.0, "vid": "a", "label": [[1] * 20, [2] * 20], "domain": "VU"}

# file, its rows, kinds of findings
FILES: list[tuple[str, list[Any], list[str]]] = [
    ("annotations.jsonl", [], ["unreadable-file"]),
    ("annotations.jsonl", [row()], []),
    ("annotations.jsonl", [row(), row(qid=2, vid="other")], []),
    ("annotations.jsonl", [row(), row(qid=2, query="a dog runs")], []),
    ("nlq_val.json", ['{"videos'], ["unreadable-file"]),
    ("charades_sta_test.txt", ["ABCDE 1 2##a light is on."], ["unreadable-file"]),
    ("annotations.jsonl", [row(), '{"qid'], ["unreadable-row"]),
    ("annotations.jsonl", ["{", "[1]"], ["unreadable-row"]),
    ("annotations.jsonl", [row(qid=...)], ["missing-field"]),
    ("annotations.jsonl", [row(duration=None)], ["missing-field"]),
    ("annotations.jsonl", [row(duration="20")], ["bad-field"]),
    ("annotations.jsonl", [row(duration=0)], ["bad-field"]),
    ("annotations.jsonl", [row(duration=10**400)], ["bad-field"]),
    ("annotations.jsonl", [windows([1, 10**400])], ["bad-field"]),
    ("annotations.jsonl", [row(vid=["yard"])], ["bad-field"]),
    ("annotations.jsonl", [row(qid={})], ["bad-field"]),
    ("annotations.jsonl", [row(query=" ")], ["bad-field"]),
    ("annotations.jsonl", [windows([1, 2, 3])], ["bad-field"]),
    ("annotations.jsonl", [windows(["1", 2])], ["bad-field"]),
    ("annotations.jsonl", [row(relevant_windows={})], ["bad-field"]),
    ("annotations.jsonl", [row(relevant_clip_ids=3)], ["bad-field"]),
    ("annotations.jsonl", [row(relevant_clip_ids=[[1], {}, 3])], ["bad-field"]),
    ("annotations.jsonl", [row(saliency_scores=[1, 2, 3])], ["bad-field"]),
    ("annotations.jsonl", [row(), row(vid="other")], ["duplicate-qid"]),
    ("annotations.jsonl", [row(), row(qid=2)], ["duplicate-row"]),
    ("annotations.jsonl", [row(), windows([0, 4], qid=2)], ["duplicate-query"]),
    ("annotations.jsonl", [row(), windows([0, 4], qid=2, query="A dog barks")], ["duplicate-query"]),
    ("annotations.jsonl", [row(query=" a dog")], ["query-spaces"]),
    ("annotations.jsonl", [row(query="a  dog")], ["query-spaces"]),
    ("annotations.jsonl", [row(query="a\ndog")], ["query-control"]),
    ("annotations.jsonl", [row(query="a\u200bdog")], ["query-control"]),
    ("annotations.jsonl", [row(query="un été à Málaga: ☀ 100 %")], []),
    ("annotations.jsonl", [windows()], ["no-labels"]),
    ("annotations.jsonl", [windows([20, 22])], ["window-beyond"]),
    ("annotations.jsonl", [windows([18, 22.5])], ["window-ends-far"]),
    ("annotations.jsonl", [windows([18, 20.01])], ["window-ends-late"]),
    ("annotations.jsonl", [windows([18, 20])], []),
    ("annotations.jsonl", [windows([1, 2], [6, 2])], ["window-swapped"]),
    ("annotations.jsonl", [windows([6, 6])], ["window-empty"]),
    ("annotations.jsonl", [windows([-1, 6])], ["window-negative"]),
    ("annotations.jsonl", [windows([2, 6], [5, 8])], ["window-overlap"]),
    ("annotations.jsonl", [windows([6, 8], [2, 6])], ["window-unsorted"]),
    ("annotations.jsonl", [row(relevant_clip_ids=[1, 2, 11])], ["clip-far"]),
    ("annotations.jsonl", [row(relevant_clip_ids=[1, 2, 10])], ["clip-late"]),
    ("annotations.jsonl", [row(relevant_clip_ids=[1, 2, 2])], ["clip-twice"]),
    ("annotations.jsonl", [row(saliency_scores=[[1, 2]])], ["rating-count"]),
    ("annotations.jsonl", [row(saliency_scores=[[1, 2], [1], [1, 2]])], ["raters-differ"]),
    ("annotations.jsonl", [row(saliency_scores=[[1, 2], [0, 0], [1, 2]])], ["clip-rated-0"]),
    ("youtube-highlights.jsonl", [CLIPS], []),
    ("youtube-highlights.jsonl", [{**CLIPS, "clip": [[0, 100], [50, 121]]}], ["clip-frames"]),
    ("youtube-highlights.jsonl", [{**CLIPS, "clip": ["?"]}], []),
    ("youtube-highlights.jsonl", [{**CLIPS, "label": []}], ["unreadable-row"]),
    ("qvhighlights.jsonl", [row(**CUT)], []),
    ("qvhighlights.jsonl", [row(**{**CUT, "duration": 142})], ["duration-name"]),
    ("tvsum.jsonl", [TVSUM], ["duration-clips"]),
    ("tvsum.jsonl", [{**TVSUM, "duration": 4.5}], []),
    ("annotations.jsonl", [row(), row(qid=2, query="a cat", duration=21)], ["duration-differs"]),
    ("charades_test.jsonl", [windows([2, 6])], ["count-differs"]),
]


def check(*args: Any, **options: Any) -> Report:
    return check_data(*args, **options).report()


def folder_with(folder: Path, name: str, rows: list[Any]) -> Path:
    text = [line if isinstance(line, str) else json.dumps(line) for line in rows]
    (folder / name).write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    return folder


@pytest.mark.parametrize(("name", "rows", "kinds"), FILES)
def test_kinds_of_findings(tmp_path: Path, name: str, rows: list[Any], kinds: list[str]) -> None:
    report = check(folder_with(tmp_path, name, rows))
    assert [f.kind for f in report.findings] == kinds
    assert [f.file for f in report.files] == [str(tmp_path / name)]


def test_every_kind_is_tested_and_explained() -> None:
    # Below, in tests/features/test_check.py and in tests/features/test_layouts.py.
    tested_elsewhere = {"shared-video", "missing-video", "surplus-video", "unreadable-video", "video-length"}
    tested_elsewhere |= {"missing-features", "missing-query-features", "video-twice", "ignored-files"}
    tested_elsewhere |= {"surplus-features", "features-length", "features-unreadable", "features-spec"}
    tested_elsewhere |= {"features-layout", "features-shape", "features-values", "features-few"}
    assert {kind for _, _, kinds in FILES for kind in kinds} | tested_elsewhere == KINDS.keys()
    for kind in KINDS.values():
        assert kind.severity in SEVERITIES and kind.says and kind.advice


def test_a_bad_row_does_not_hide_the_rest(tmp_path: Path) -> None:
    rows = [row(), "{", windows([6, 2], qid=2), row(qid=3, query=" a"), *(windows([5, 5], qid=q) for q in range(4, 9))]
    report = check(folder_with(tmp_path, "annotations.jsonl", rows))
    findings = {f.kind: f for f in report.findings}
    assert list(findings) == ["unreadable-row", "window-swapped", "window-empty", "query-spaces"]
    assert findings["window-swapped"].examples == ("annotations.jsonl:3 qid 2: [6, 2]",)
    assert findings["window-empty"].rows == 5 and len(findings["window-empty"].examples) == EXAMPLES
    (file,) = report.files
    assert (file.rows, file.usable, file.windows, file.rated_clips, file.videos) == (9, 2, 4, 6, 1)
    assert (file.benchmark, file.split, file.published_queries) == (OWN_DATA, None, None)
    assert file.hours * 3600 == pytest.approx(20)
    assert [f.kind for f in report.errors] == ["unreadable-row", "window-swapped", "window-empty"]


def test_a_video_in_two_splits(tmp_path: Path) -> None:
    for name in ("train.jsonl", "train-more.jsonl", "val.jsonl", "annotations.jsonl"):
        folder_with(tmp_path, name, [row(), row(qid=2, vid=f"only in {name}")])
    findings = [f for f in check(tmp_path).findings if f.kind == "shared-video"]
    assert [(Path(f.file).name, f.rows, f.examples) for f in findings] == [
        ("val.jsonl", 1, ("yard is in train-more.jsonl",)),
        ("val.jsonl", 1, ("yard is in train.jsonl",)),
    ]


def test_both_validations_of_activitynet_share_their_videos(tmp_path: Path) -> None:
    for name in ("val_1.json", "val_2.json", "train.json"):
        video = {"duration": 20, "timestamps": [[1, 2]], "sentences": ["a dog"]}
        folder_with(tmp_path, name, [{"v_abcdefghijk": video}])
    findings = [f for f in check(tmp_path).findings if f.kind == "shared-video"]
    assert [(Path(f.file).name, f.rows) for f in findings] == [("val_1.json", 1), ("val_2.json", 1)]


def test_which_files_are_checked(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"has no annotations; expected \.jsonl, or the original files"):
        check(tmp_path)
    with pytest.raises(AnnotationError, match=r"there is no folder .*nowhere"):
        check(tmp_path / "nowhere")
    (tmp_path / "sub" / "deeper").mkdir(parents=True)
    for place in (tmp_path, tmp_path / "sub", tmp_path / "sub" / "deeper"):
        folder_with(place, "annotations.jsonl", [row()])
    folder_with(tmp_path, "predictions.jsonl", [{"qid": 1, "vid": "yard", "pred_relevant_windows": []}])
    folder_with(tmp_path, "losses.jsonl", [{"step": 1, "loss": 0.5}])
    folder_with(tmp_path, "config.json", [{"model": "sdst"}])
    folder_with(tmp_path, "README.txt", ["hello"])
    folder_with(tmp_path, ".hidden.jsonl", [row()])
    report = check(tmp_path)
    assert [Path(f.file).relative_to(tmp_path).as_posix() for f in report.files] == [
        "annotations.jsonl",
        "sub/annotations.jsonl",
    ]
    assert sorted(Path(f).name for f in report.skipped) == ["config.json", "losses.jsonl", "predictions.jsonl"]
    assert len(check(tmp_path / "sub" / "deeper" / "annotations.jsonl").files) == 1


def test_the_benchmark_can_be_given(tmp_path: Path) -> None:
    folder_with(tmp_path, "charades_test.jsonl", [windows([2, 6])])
    assert check(tmp_path).files[0].benchmark == "charades-sta"
    assert check(tmp_path, benchmark_name="tacos").files[0].benchmark == "tacos"
    assert check(tmp_path, benchmark_name=OWN_DATA).files[0].benchmark == OWN_DATA
    with pytest.raises(
        AnnotationError, match=r"there is no benchmark 'charades'; did you mean 'charades-sta'\? Known are"
    ):
        check(tmp_path, benchmark_name="charades")


def rows_and_examples(report: Report) -> dict[str, tuple[int, tuple[str, ...]]]:
    return {f.kind: (f.rows, f.examples) for f in report.findings}


def test_videos(tmp_path: Path) -> None:
    folder_with(tmp_path, "annotations.jsonl", [row(), row(qid=2, vid="street")])
    videos = tmp_path / "videos"
    videos.mkdir()
    film = Encoding([float(second) for second in range(20)])
    encode(videos / "yard.mp4", film, numbered)
    encode(videos / "street.MKV", film, numbered)
    (videos / "notes.txt").touch()
    ignored = (1, ("1 without the suffix of a video (1 with .txt)",))
    assert rows_and_examples(check(tmp_path, videos=videos)) == {"ignored-files": ignored}
    (videos / "yard.wmv").touch()
    report = check(tmp_path, videos=videos)
    assert rows_and_examples(report) == {"ignored-files": ignored, "video-twice": (1, ("yard.mp4 and yard.wmv",))}
    assert [f.kind for f in report.errors] == ["video-twice"]
    for name in ("yard.wmv", "notes.txt"):
        (videos / name).unlink()
    (videos / "yard.mp4").rename(videos / "Yard.mp4")
    findings = rows_and_examples(check(tmp_path, videos=videos))
    assert findings == {"missing-video": (1, ("yard",)), "surplus-video": (1, ("Yard.mp4",))}
    with pytest.raises(ValueError, match="is not a folder"):
        check(tmp_path, videos=tmp_path / "nowhere")


def test_videos_of_another_length(tmp_path: Path) -> None:
    rows = [
        row(qid=1, vid="same", duration=13),
        windows([100, 140], qid=2, vid="short", duration=150),
        windows([1, 2], qid=3, vid="long", duration=5),
        row(qid=4, vid="damaged"),
    ]
    folder_with(tmp_path, "annotations.jsonl", rows)
    videos = tmp_path / "videos"
    videos.mkdir()
    film = Encoding([float(second) for second in range(12)])
    for vid in ("same", "short", "long"):
        encode(videos / f"{vid}.mp4", film, numbered)
    (videos / "damaged.mp4").write_bytes(b"no video")
    report = check(tmp_path, videos=videos)
    findings = rows_and_examples(report)
    assert {finding.kind for finding in report.errors} == {"unreadable-video", "video-length"} == set(findings)
    length, examples = findings["video-length"]
    assert length == 2 and examples[0].startswith("short.mp4 lasts ") and examples[0].endswith("s, annotated 150 s")
    assert examples[1].startswith("long.mp4 lasts ") and "damaged.mp4" in findings["unreadable-video"][1][0]


def test_the_published_files(shared: Path) -> None:
    report = check(shared / "data")
    assert not report.errors and not report.skipped
    counts = {(Path(f.file).stem, f.kind): f.rows for f in report.findings}
    assert counts == {
        ("activitynet_val", "window-ends-late"): 5,
        ("activitynet_val", "query-control"): 2,
        ("activitynet_val", "query-spaces"): 11693,
        ("activitynet_val", "duplicate-query"): 3,
        ("charades_train", "count-differs"): 2,
        ("charades_train", "query-spaces"): 33,
        ("charades_test", "query-spaces"): 9,
        ("highlight_train_release", "duration-name"): 213,
        ("highlight_train_release", "clip-rated-0"): 165,
        ("highlight_train_release", "query-spaces"): 87,
        ("highlight_val_release", "duration-name"): 39,
        ("highlight_val_release", "clip-rated-0"): 33,
        ("highlight_val_release", "query-spaces"): 16,
        ("highlight_test_with_gt", "duration-name"): 47,
        ("highlight_test_with_gt", "clip-rated-0"): 36,
        ("highlight_test_with_gt", "query-spaces"): 18,
        ("tacos_train", "duplicate-row"): 1201,
        ("tacos_train", "duplicate-query"): 515,
        ("tacos_train", "query-spaces"): 55,
        ("tacos_val", "duplicate-row"): 516,
        ("tacos_val", "duplicate-query"): 282,
        ("tacos_val", "query-spaces"): 26,
        ("tacos_test", "duplicate-row"): 567,
        ("tacos_test", "duplicate-query"): 273,
        ("tacos_test", "query-spaces"): 36,
        ("tvsum_train", "duration-clips"): 40,
        ("tvsum_val", "duration-clips"): 10,
        ("youtube_train", "clip-frames"): 42,
        ("youtube_val", "clip-frames"): 28,
    }
