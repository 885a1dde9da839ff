"""Check features together with annotations, and the command `sidelight data check`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidelight.backbones.protocol import FeatureSpec
from sidelight.cli.main import main
from sidelight.core.timeline import Timeline
from sidelight.data.findings import KINDS, OWN_DATA, Report
from sidelight.features.check import check
from sidelight.features.layouts import CLIPS_OFF
from sidelight.features.store import FeatureStore, VideoFeatures

SPEC = FeatureSpec(
    backbone="shapes",
    weights="0" * 16,
    levels=(-1,),
    pooling="cls",
    clip_seconds=2.0,
    frames_per_clip=4,
    resolution=32,
    resize="stretch",
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    video_dim=2,
    text_dim=2,
)


def row(**changes: Any) -> dict[str, Any]:
    return {"qid": 1, "query": "a dog barks", "duration": 20, "vid": "yard", "relevant_windows": [[2, 6]], **changes}


def folder_with(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def rows_and_examples(report: Report) -> dict[str, tuple[int, tuple[str, ...]]]:
    return {f.kind: (f.rows, f.examples) for f in report.findings}


def store_with(folder: Path, seconds: dict[str, float], queries: list[str], **changes: Any) -> Path:
    spec = dataclasses.replace(SPEC, **changes)
    store = FeatureStore.create(folder, spec)
    for vid, duration in seconds.items():
        timeline = Timeline(duration=duration, clip_seconds=spec.clip_seconds)
        array = np.zeros((1, timeline.num_clips, 2), np.float16)
        store.put_video(vid, VideoFeatures(video_KTD=array, timeline=timeline))
    store.put_queries({q: np.zeros((1, 3, 2), np.float16) for q in queries})
    return folder


def test_features(tmp_path: Path) -> None:
    folder_with(tmp_path, "annotations.jsonl", [row(), row(qid=2, vid="street", query="a cat")])
    good = store_with(tmp_path / "good", {"yard": 20, "street": 21.9}, ["a dog barks", "a cat"])
    assert not check(tmp_path, features=good).findings
    assert check(tmp_path, features=good).features == (
        f"{good}: features of 2 of 2 videos and of 2 of 2 sentences, which fit",
    )
    assert check(tmp_path, features=good).skipped == ()  # manifest.json is a file of the store
    bad = store_with(tmp_path / "bad", {"yard": 16, "roof": 20, "street": 20}, ["a dog barks"])
    (bad / "videos" / "street.safetensors").write_bytes(b"damaged")
    findings = rows_and_examples(check(tmp_path, features=bad))
    assert findings.pop("features-unreadable")[1][0].startswith("street: ")
    assert findings == {
        "features-length": (1, ("yard: 8 clips, 20 s are 10",)),
        "missing-query-features": (1, ("'a cat'",)),
        "surplus-features": (1, ("roof",)),
    }
    assert check(tmp_path, features=bad).features == (f"{bad}: features of 2 of 2 videos and of 1 of 2 sentences",)
    empty = store_with(tmp_path / "empty", {}, [])
    findings = rows_and_examples(check(tmp_path, features=empty))
    assert findings["missing-features"] == (2, ("yard", "street")) and findings["missing-query-features"][0] == 2
    with pytest.raises(ValueError, match="is no feature store"):
        check(tmp_path, features=tmp_path)


def test_stores_together(tmp_path: Path) -> None:
    folder_with(tmp_path, "annotations.jsonl", [row(), row(qid=2, vid="street", query="a cat")])
    yard = store_with(tmp_path / "one", {"yard": 20}, ["a dog barks"])
    street = store_with(tmp_path / "two", {"street": 20}, ["a cat"])
    assert not check(tmp_path, features=[yard, street]).findings
    other = store_with(tmp_path / "other", {"street": 20}, ["a cat"], clip_seconds=1.0, pooling="mean")
    (finding,) = check(tmp_path, features=[yard, other]).findings
    assert (finding.kind, finding.rows, finding.file) == ("features-spec", 2, str(other))
    assert finding.examples == (f"pooling is 'mean', in {yard} 'cls'", f"clip_seconds is 1.0, in {yard} 2.0")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    folder_with(data, "annotations.jsonl", [row(), row(qid=2, query="a  [bold]dog", vid="street")])
    target = tmp_path / "report.json"
    assert main(["data", "check", str(data), "--json", str(target)]) == 0
    shown = capsys.readouterr().out
    assert "a  [bold]dog" in shown and "0 errors, 0 warnings, 1 note" in shown and "annotations.jsonl" in shown
    assert json.loads(target.read_text()) == check(data).to_dict()
    folder_with(data, "val.jsonl", [row(qid=q, relevant_windows=[[6, 2]]) for q in range(5)])
    folder_with(data, "losses.jsonl", [{"step": 1}])
    assert main(["data", "check", str(data), "--benchmark", OWN_DATA]) == 1
    shown = capsys.readouterr().out
    assert "windows that end before they start (5)" in shown and "and 2 more" in shown and "not looked at" in shown
    assert main(["data", "check", str(data), "--json", "-"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["kind"] == "window-swapped"
    (data / "val.jsonl").unlink()
    fitting = store_with(data / "features", {"yard": 20, "street": 20}, ["a dog barks", "a  [bold]dog"])
    assert main(["data", "check", str(data), "--features", str(fitting)]) == 0
    shown = capsys.readouterr().out
    assert "features of 2 of 2 videos and of 2 of 2 sentences, which fit" in shown and "manifest" not in shown
    store = store_with(tmp_path / "store", {}, [])
    assert main(["data", "check", str(data), "--features", str(store), str(store)]) == 1
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "expected one of check, import"),
        (["check"], "folder"),
        (["chek"], "chek"),
        (["check", "nowhere"], "there is no folder nowhere"),
        (["check", "DATA", "--benchmark", "x"], "there is no benchmark 'x'"),
        (["check", "DATA", "--videos", "nowhere"], "nowhere is not a folder"),
        (["check", "DATA", "--features", "nowhere"], "nowhere is no feature store"),
        (["check", "DATA", "--json", "/no/such/folder.json"], "there is no folder"),
        (["check", "DATA", "--nonsense"], "nonsense"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_with(tmp_path, "annotations.jsonl", [row()])
    assert main(["data", *(str(tmp_path) if a == "DATA" else a for a in arguments)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("sidelight: ") and expected in message and len(message.strip().splitlines()) == 1


def test_the_table_of_kinds_states_the_accepted_difference() -> None:
    assert f"up to {CLIPS_OFF} clips" in KINDS["features-few"].says
