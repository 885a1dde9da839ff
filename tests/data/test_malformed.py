"""Malformed files of users: each mistake gets one sentence that names file and line, and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sidelight.cli.main import main

GOOD_TRUTH: dict[str, Any] = {
    "qid": 1, "query": "a dog runs", "vid": "v", "duration": 20, "relevant_windows": [[2, 8]],
    "relevant_clip_ids": [1, 2, 3], "saliency_scores": [[4, 3], [4, 4], [2, 1]],
}  # fmt: skip
GOOD_GUESS: dict[str, Any] = {
    "qid": 1, "query": "a dog runs", "vid": "v",
    "pred_relevant_windows": [[2, 8, 0.9]], "pred_saliency_scores": [0.5] * 10,
}  # fmt: skip
MISSING = object()
NAN = float("nan")


def text(row: dict[str, Any], *changes: dict[str, Any] | str | bytes) -> bytes:
    """Return a good first row, then one row per change; a text or bytes is a line of its own."""
    lines = [json.dumps(row).encode()]
    for number, change in enumerate(changes, start=2):
        if isinstance(change, bytes):
            lines.append(change)
        elif isinstance(change, str):
            lines.append(change.encode())
        else:
            changed = {k: v for k, v in {**row, "qid": number, **change}.items() if v is not MISSING}
            lines.append(json.dumps(changed).encode())
    return b"\n".join(lines) + b"\n"


def guesses(*changes: dict[str, Any] | str | bytes) -> bytes:
    return text(GOOD_GUESS, *changes)


def truths(*changes: dict[str, Any] | str | bytes) -> bytes:
    return text(GOOD_TRUTH, *changes)


@pytest.mark.parametrize(
    ("predictions", "annotations", "message"),
    [
        (b"", truths(), "p.jsonl is empty; expected predictions as JSON lines"),
        (None, truths(), "there is no file"),
        (guesses({"qid": MISSING}), truths(), "p.jsonl:2: the field qid is missing; add it"),
        (guesses({"vid": MISSING}), truths(), "p.jsonl:2: the field vid is missing"),
        (guesses({"pred_relevant_windows": [[2, NAN, 0.5]]}), truths(), "p.jsonl:2: pred_relevant_windows[0] must"),
        (guesses({"pred_relevant_windows": [[2, 8, NAN]]}), truths(), "list of 3 finite numbers, got [2, 8, nan]"),
        (guesses({"pred_relevant_windows": [[8, 2, 0.5]]}), truths(), "p.jsonl:2: pred_relevant_windows[0] must be"),
        (guesses({"pred_relevant_windows": [["2", 8, 0.5]]}), truths(), "p.jsonl:2: pred_relevant_windows[0] must"),
        (guesses({"pred_relevant_windows": [[2, 8]]}), truths(), "a list of 3 finite numbers, got [2, 8]"),
        (guesses({"pred_relevant_windows": "[[2, 8, 1]]"}), truths(), "p.jsonl:2: pred_relevant_windows must be a li"),
        (guesses({"pred_saliency_scores": ["high"]}), truths(), "p.jsonl:2: pred_saliency_scores[0] must"),
        (guesses({"pred_saliency_scores": [float("inf")]}), truths(), "p.jsonl:2: pred_saliency_scores[0] must"),
        (guesses({"qid": 1}), truths(), "p.jsonl:2: qid 1 is in line 1 already"),
        (guesses({"qid": 2.5}), truths(), "p.jsonl:2: qid must be a whole number or a text, got 2.5"),
        (guesses('{"qid": 2, "vid": "v", "pred_rel'), truths({}), "p.jsonl:2: this line is not valid JSON"),
        (guesses("[1, 2, 3]"), truths(), "p.jsonl:2: expected a JSON object with named fields, got [1, 2, 3]"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", truths(), "p.jsonl:1: this line is not text in UTF-8"),
        (guesses({"vid": "w"}), truths({}), "p.jsonl:2: 1 of 2 predictions are of another video (vid)"),
        (guesses(), truths({}), "a.jsonl:2: predictions and annotations must be of the same queries: 1 of 2 annot"),
        (guesses({}), truths(), "p.jsonl:2: predictions and annotations must be of the same queries: 1 of 2 predict"),
        (guesses({"pred_saliency_scores": MISSING}), truths({}), "p.jsonl:2: 1 of 2 predictions have no pred_sal"),
        (guesses({}), truths({"relevant_windows": [[8, 2]]}), "a.jsonl:2: relevant_windows[0] must be [start, end]"),
        (guesses({}), truths({"relevant_windows": [[25, 30]]}), "a.jsonl:2: relevant_windows[0] must be within its"),
        (guesses({}), truths({"duration": "20"}), "a.jsonl:2: duration must be a number of seconds above 0, got '20'"),
        (guesses({}), truths({"duration": 0}), "a.jsonl:2: duration must be a number of seconds above 0, got 0"),
        (guesses({}), truths({"query": "  "}), "a.jsonl:2: query must be a sentence"),
        (guesses({}), truths({"relevant_clip_ids": [1, 1, 2]}), "a.jsonl:2: relevant_clip_ids must be clips that"),
        (guesses({}), truths({"saliency_scores": [[4, 3]]}), "a.jsonl:2: saliency_scores must be 3 lists"),
        (guesses({}), truths({"saliency_scores": [[4], [4], [2]]}), "a.jsonl:2: all annotations must have the same"),
        (guesses({}), truths({"relevant_windows": []}), "a.jsonl:2: 1 of 2 annotations have no relevant_windows"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_one_sentence_that_names_file_and_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    predictions: bytes | None,
    annotations: bytes,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if predictions is not None:
        Path("p.jsonl").write_bytes(predictions)
    Path("a.jsonl").write_bytes(annotations)
    files = ["p.jsonl"] * (1 if command == "evaluate" else 2)
    assert main([command, *files, "a.jsonl", "--json", "out.json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("sidelight: ") and err.count("\n") == 1
    assert "Traceback" not in err
    assert not Path("out.json").exists()


def test_the_good_files_are_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that the unchanged rows pass, so that the test above fails for the change alone."""
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_bytes(guesses({}))
    Path("a.jsonl").write_bytes(truths({}))
    assert main(["evaluate", "p.jsonl", "a.jsonl", "--json", "out.json"]) == 0
    assert json.loads(Path("out.json").read_text())["brief"]["MR-full-R1@0.7"] == 100
    assert main(["compare", "p.jsonl", "p.jsonl", "a.jsonl"]) == 0
