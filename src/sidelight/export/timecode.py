"""Frames, seconds and timecodes at exact rates: 23.976 is 24000/1001 frames a second, never 23.976.

Drop-frame timecode (SMPTE ST 12-1) leaves out numbers, not frames: ;00 and ;01 (at 59.94 also ;02 and ;03) of each
minute, except of every tenth one, so that the clock keeps up with 29.97 and 59.94 frames a second.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

STANDARD_RATES = tuple(
    Fraction(*pair)
    for pair in (
        (24000, 1001), (24, 1), (25, 1), (30000, 1001), (30, 1), (48, 1), (50, 1), (60000, 1001), (60, 1),
        (100, 1), (120000, 1001), (120, 1),
    )
)  # fmt: skip
_NEAR = 2e-4
"""Relative difference up to which an average rate is a standard one; 23.976 and 24 are five times as far apart."""
_FRAME_PART = 1e-3
"""Share of a frame by which a time may miss a frame's edge: times were computed in float32."""


def standard_rate(average: Fraction) -> Fraction:
    """Return the standard rate that an average rate stands for; the average itself if it is near none."""
    nearest = min(STANDARD_RATES, key=lambda rate: abs(rate - average))
    return nearest if abs(nearest - average) <= _NEAR * average else average


def first_frame(seconds: float, rate: Fraction) -> int:
    """Return the number of the frame that is shown at a time."""
    return max(0, math.floor(seconds * float(rate) + _FRAME_PART))


def end_frame(seconds: float, rate: Fraction) -> int:
    """Return the number of frames that begin before a time: the exclusive end of a cut that ends there."""
    return max(0, math.ceil(seconds * float(rate) - _FRAME_PART))


def base_of(rate: Fraction) -> int:
    """Return the frame numbers of one second of timecode: 30 for 29.97."""
    return max(1, round(rate))


def can_drop(rate: Fraction) -> bool:
    """Check whether a rate has drop-frame timecode: 29.97, 59.94 and 119.88."""
    return rate.denominator == 1001 and rate.numerator % 30000 == 0


def _dropped(rate: Fraction) -> int:
    return base_of(rate) // 15  # numbers that a minute lacks


def timecode(frame: int, rate: Fraction, *, drop: bool = False) -> str:
    """Return the timecode HH:MM:SS:FF of a frame; the frames follow a semicolon in drop-frame timecode.

    Args:
        frame: number of frames since 00:00:00:00; the clock starts anew after 24 hours.
        rate: frames a second.
        drop: whether numbers are dropped.

    Raises:
        ValueError: if the rate has no drop-frame timecode.
    """
    base = base_of(rate)
    if drop:
        _require_drop(rate)
        dropped = _dropped(rate)
        per_minute = 60 * base - dropped
        per_ten = 10 * per_minute + dropped
        frame %= 144 * per_ten
        tens, rest = divmod(frame, per_ten)
        # The first minute of ten has all numbers.
        minutes = max(0, rest - dropped) // per_minute
        frame += dropped * (9 * tens + minutes)
    frame %= 24 * 3600 * base
    seconds, number = divmod(frame, base)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{';' if drop else ':'}{number:02d}"


def frames_of(text: str, rate: Fraction) -> int:
    """Return the number of frames from 00:00:00:00 to a timecode; a semicolon or comma before the frames means drop.

    Raises:
        ValueError: if the text is no timecode of this rate, or names a number that drop-frame timecode leaves out.
    """
    match = re.fullmatch(r"(\d\d):(\d\d):(\d\d)([:;,.])(\d\d\d?)", text.strip())
    hours, minutes, seconds, frames = (int(match[i]) for i in (1, 2, 3, 5)) if match else (0, 60, 0, 0)
    base = base_of(rate)
    if match is None or hours > 23 or minutes > 59 or seconds > 59 or frames >= base:
        raise ValueError(f"{text!r} is no timecode at {float(rate):.6g} frames a second; expected such as 01:00:00:00")
    total = ((hours * 60 + minutes) * 60 + seconds) * base + frames
    if match[4] not in ";,":
        return total
    _require_drop(rate)
    dropped = _dropped(rate)
    if seconds == 0 and frames < dropped and minutes % 10:
        raise ValueError(f"{text!r} is a timecode that drop-frame counting leaves out; expected such as 00:01:00;02")
    all_minutes = 60 * hours + minutes
    return total - dropped * (all_minutes - all_minutes // 10)


def is_drop(text: str) -> bool:
    """Check whether a timecode is written as drop-frame."""
    return any(sign in text for sign in ";,")


def _require_drop(rate: Fraction) -> None:
    if not can_drop(rate):
        raise ValueError(
            f"{float(rate):.6g} frames a second has no drop-frame timecode; expected 29.97 or 59.94, so leave it out"
        )
