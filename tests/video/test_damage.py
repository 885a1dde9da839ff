"""Check which ticks count as damage, and the sentence about them."""

from __future__ import annotations

from fractions import Fraction

import pytest

from sidelight.video.damage import DamageLog


@pytest.mark.parametrize(
    ("pending", "frames", "lost"),
    [
        ([], [], 0),
        ([], [(0, 10), (10, 20)], 0),
        ([], [(0, 10), (50, 60)], 0),  # a variable frame rate leaves gaps
        ([20, 30], [(0, 10), (50, 60)], 40),
        ([60], [(0, 10), (50, 60)], 0),  # the packet of a later frame
        ([20, 30], [(0, 10), (50, 60), (0, 10), (50, 60)], 40),  # read twice, counted once
    ],
)
def test_gaps_count_where_packets_lie_in_them(pending: list[int], frames: list[tuple[int, int]], lost: int) -> None:
    log = DamageLog(Fraction(1, 10), 10)
    for i, (start, end) in enumerate(frames):
        if i % 2 == 0:
            log.restart()
            log.pending.update(pending)
        log.frame_decoded(start, end, corrupt=False)
    assert log.lost == lost


@pytest.mark.parametrize(
    ("lost", "missing", "expected"),
    [
        (0, None, ""),
        (0, 0.0, ""),
        (20, None, "2.00 s of 10.00 s (20.0%) could not be decoded or only with errors; the last good frame is shown"),
        (0, 4.0, "4.00 s of 10.00 s (40.0%) could not be decoded; the file breaks off after 6.00 s"),
        (20, 4.0, "6.00 s of 10.00 s (60.0%) could not be decoded or only with errors; the file breaks off after 6.00"),
    ],
)
def test_the_message_states_seconds_and_share(lost: int, missing: float | None, expected: str) -> None:
    log = DamageLog(Fraction(1, 10), 1)
    log.add(0, lost)
    log.missing = missing
    message = log.message("a.mp4", end=6.0, stated_end=10.0)
    assert message.startswith(f"a.mp4 is damaged: {expected}") if expected else message == ""
