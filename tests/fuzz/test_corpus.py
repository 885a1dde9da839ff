"""Every input of the fuzzers' corpus is read or refused with a sentence; among them are all that once crashed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.run import CORPUS
from tests.fuzz.targets import TARGETS, is_refusal, run

INPUTS = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


@pytest.mark.parametrize("path", INPUTS, ids=[f"{path.parent.name}/{path.name}" for path in INPUTS])
def test_each_input_of_the_corpus(path: Path, tmp_path: Path) -> None:
    run(TARGETS[path.parent.name], path.read_bytes(), tmp_path)


@pytest.mark.parametrize("name", TARGETS)
def test_each_target_has_an_input_that_is_read(name: str, tmp_path: Path) -> None:
    """Check that a target reaches the end of its parser, so that mutations of the input reach all of it."""
    inputs = [path for path in INPUTS if path.parent.name == name]
    assert inputs
    read = 0
    for path in inputs:
        try:
            TARGETS[name](path.read_bytes(), tmp_path)
        except (ValueError, OSError):
            continue
        read += 1
    assert read


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (ValueError("expected a number, got x"), True),
        (OSError(2, "No such file"), True),
        (ValueError("x"), False),
        (KeyError("duration of the video"), False),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "bad byte"), False),
    ],
)
def test_what_counts_as_a_refusal(error: Exception, refusal: bool) -> None:
    assert is_refusal(error) == refusal
