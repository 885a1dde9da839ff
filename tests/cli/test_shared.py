"""Check the line that says what takes long."""

from __future__ import annotations

import logging
import sys
import time

import pytest

from sidelight.cli.main import main
from sidelight.cli.shared import announced


@pytest.mark.parametrize(
    ("seconds", "has_bar", "is_terminal", "is_printed"),
    [
        (0.0, False, False, False),
        (0.0, True, False, False),
        (0.4, False, False, True),
        (0.4, False, True, True),
        (0.4, True, False, True),
        (0.4, True, True, False),  # the bar shows it
    ],
)
def test_slow_work_is_announced_once(
    seconds: float,
    has_bar: bool,
    is_terminal: bool,
    is_printed: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    with caplog.at_level(logging.INFO, logger="sidelight"), announced("reading", has_bar=has_bar, delay=0.1):
        time.sleep(seconds)
    time.sleep(0.15)  # a timer that was not stopped would print now
    assert [record.message for record in caplog.records] == ["reading ..."] * is_printed


def test_an_error_ends_the_wait(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO, logger="sidelight"),
        pytest.raises(ZeroDivisionError),
        announced("reading", delay=0.1),
    ):
        raise ZeroDivisionError
    time.sleep(0.15)
    assert caplog.records == []


def test_quiet_commands_announce_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for options, printed in (([], "reading ...\n"), (["--quiet"], "")):
        assert main(["recipes", *options]) == 0  # sets how much is said
        with announced("reading", delay=0.05):
            time.sleep(0.2)
        assert capsys.readouterr().err == printed
