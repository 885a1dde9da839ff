"""Show an answer as text and as HTML."""

from __future__ import annotations

import base64
import sys
from collections.abc import Sequence
from html import escape

Span = tuple[float, float, float]
"""Start and end in seconds, and the score."""
_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = "_.-:=+*#"
_WIDTH, _HEIGHT = 600, 60
"""Size of the highlight curve in HTML, in pixels."""
NO_MOMENT = "no such moment"
BEST_GUESSES = "moments are its best guesses, also for what is never shown"
"""What answers for people say of the model."""


def clock(seconds: float) -> str:
    """Return seconds as m:ss.s, or as h:mm:ss.s from one hour on."""
    tenths = round(seconds * 10)
    hours, rest = divmod(tenths, 36000)
    minutes, rest = divmod(rest, 600)
    tail = f"{rest // 10:02d}.{rest % 10}"
    return f"{hours}:{minutes:02d}:{tail}" if hours else f"{minutes}:{tail}"


def _bars_for(encoding: str) -> str:
    """Return eight bars of rising height that can be printed in an encoding."""
    try:
        _BARS.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return _ASCII_BARS
    return _BARS


def sparkline(values: Sequence[float], width: int, bars: str = _BARS) -> str:
    """Return numbers as a row of at most ``width`` bars; the lowest bar is the lowest number."""
    if not values:
        return ""
    count = min(width, len(values))
    bins = [
        max(values[i * len(values) // count : max((i + 1) * len(values) // count, i * len(values) // count + 1)])
        for i in range(count)
    ]
    low, high = min(bins), max(bins)
    span = high - low or 1.0
    return "".join(bars[min(7, int((value - low) / span * 8))] for value in bins)


def as_text(query: str, curve: Sequence[float], moments: Sequence[Span], *, width: int) -> str:
    """Return the query, the highlight curve as one row of bars, and the moments as a table.

    Args:
        query: the sentence.
        curve: a value per clip.
        moments: in the order of the table.
        width: most bars.
    """
    bars = _bars_for(getattr(sys.stdout, "encoding", None) or "utf-8")
    rows = [("start", "end", "score"), *(_cells(*moment) for moment in moments)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([query, f"  {sparkline(curve, width, bars)}", *(table if moments else [f"  {NO_MOMENT}"])])


def _cells(start: float, end: float, score: float) -> tuple[str, str, str]:
    return clock(start), clock(end), f"{score:.2f}"


def as_html(
    query: str,
    curve: Sequence[float],
    moments: Sequence[Span],
    *,
    clip_seconds: float,
    duration: float,
    lines: Sequence[str] = (),
    thumbnails: Sequence[bytes] = (),
) -> str:
    """Return the query, the highlight curve with the moments, and a table, as HTML without scripts and addresses.

    Args:
        query: the sentence.
        curve: a value per clip.
        moments: in the order of the table.
        clip_seconds: length of a clip.
        duration: seconds of the video.
        lines: small print below the table.
        thumbnails: a JPEG for each moment; none unless given.

    Raises:
        ValueError: if there are thumbnails, but not one per moment.
    """
    if thumbnails and len(thumbnails) != len(moments):
        raise ValueError(f"expected one thumbnail for each of {len(moments)} moments, got {len(thumbnails)}")
    images = [
        f'<img alt="" height="72" src="data:image/jpeg;base64,{base64.b64encode(picture).decode()}">'
        for picture in thumbnails
    ]
    rows: list[tuple[str, ...]] = [("start", "end", "score"), *(_cells(*moment) for moment in moments)]
    if images:
        rows = [(image, *row) for image, row in zip(["frame", *images], rows, strict=True)]
    table = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    svg = curve_svg(curve, moments, clip_seconds=clip_seconds, duration=duration)
    below = "".join(f"<p><small>{escape(line)}</small></p>" for line in lines)
    answer = f"<table>{table}</table>" if moments else f"<p>{NO_MOMENT}</p>"
    return f"<div><p><b>{escape(query)}</b></p>{svg}{answer}{below}</div>"


def curve_svg(curve: Sequence[float], moments: Sequence[Span], *, clip_seconds: float, duration: float) -> str:
    """Return the highlight curve as SVG, in the text's colour, above a band for each moment.

    Args:
        curve: a value per clip.
        moments: start, end and score of each.
        clip_seconds: length of a clip.
        duration: seconds of the video.
    """
    low, high = min(curve), max(curve)
    scale = (_HEIGHT - 4) / (high - low or 1.0)
    per_second = _WIDTH / duration
    points = [f"0,{_HEIGHT}"]
    for clip, value in enumerate(curve):
        left, right = (min(_WIDTH, edge * clip_seconds * per_second) for edge in (clip, clip + 1))
        height = _HEIGHT - 2 - (value - low) * scale
        points += [f"{left:.1f},{height:.1f}", f"{right:.1f},{height:.1f}"]
    points.append(f"{_WIDTH},{_HEIGHT}")
    best = max((score for _, _, score in moments), default=1.0) or 1.0
    bands = "".join(
        f'<rect x="{start * per_second:.1f}" width="{max(1.0, (end - start) * per_second):.1f}" height="{_HEIGHT}" '
        f'fill="#e8590c" opacity="{0.1 + 0.3 * max(0.0, score / best):.2f}" '
        f'data-start="{start:.3f}" data-end="{end:.3f}">'
        f"<title>{clock(start)} - {clock(end)}, score {score:.2f}</title></rect>"
        for start, end, score in moments
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img">'
        f"<title>highlight curve of {clock(duration)}</title>{bands}"
        f'<polygon points="{" ".join(points)}" fill="currentColor" opacity="0.35"/></svg>'
    )
