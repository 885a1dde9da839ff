"""Check the parts of messages that every part of sidelight writes."""

from __future__ import annotations

import pytest

from sidelight.core.messages import count_of, did_you_mean, duration_of, no_such


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "video", "0 videos"),
        (1, "video", "1 video"),
        (2, "query", "2 queries"),
        (1200, "damaged file", "1,200 damaged files"),
    ],
)
def test_counts(number: int, noun: str, text: str) -> None:
    assert count_of(number, noun) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.001 s"),
        (0.046, "0.046 s"),
        (8.66, "8.7 s"),
        (9.97, "10 s"),
        (99.4, "99 s"),
        (99.6, "2 min"),
        (5969, "99 min"),
        (5971, "1.7 h"),
    ],
)
def test_durations_have_no_exponent(seconds: float, text: str) -> None:
    assert duration_of(seconds) == text


def test_suggestions() -> None:
    assert did_you_mean("", []) == ""
    assert did_you_mean("grond", ["train", "ground"]) == "; did you mean 'ground'?"
    assert did_you_mean("xyz", ["train", "ground"]) == ""
    assert no_such("model", "trian", ["train"]) == "there is no model 'trian'; did you mean 'train'? Known are train"
    assert no_such("model", "xyz", ["train", "b"]) == "there is no model 'xyz'; known are train, b"
