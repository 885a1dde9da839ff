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


@pytest.mark.parametrize(
    ("frames", "end", "total"),
    [
        ([], 0.0, False),
        ([True], 1.0, False),  # one frame of a film that starts in the middle of a group of pictures
        ([True, True, True], 3.0, True),
        ([True, True, True], 9.0, False),
        ([True, False, True], 3.0, False),
    ],
)
def test_damage_is_total_if_no_frame_is_sound(frames: list[bool], end: float, total: bool) -> None:
    log = DamageLog(Fraction(1, 10), 10)
    for i, corrupt in enumerate(frames):
        log.frame_decoded(10 * i, 10 * i + 10, corrupt=corrupt)
    assert log.is_total(end) == total
