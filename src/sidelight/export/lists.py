"""Answers as tables, subtitles, chapters and cut lists."""

from __future__ import annotations

import csv
import io
import itertools
import json
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from sidelight.core.grounding import Grounding, Moment
from sidelight.export.editors import one_line, require_some
from sidelight.export.source import Cut

_SHORTEST_CHAPTER = 10
_FEWEST_CHAPTERS = 3
FILLER = "More"
"""Title of a chapter between moments."""


def moments_in_time(groundings: Iterable[Grounding]) -> list[tuple[Grounding, Moment]]:
    """Return the moments of all answers in the order of time."""
    pairs = [(grounding, moment) for grounding in groundings for moment in grounding.moments]
    return sorted(pairs, key=lambda pair: (pair[0].video or "", pair[1].start, pair[1].end))


def as_csv(groundings: Sequence[Grounding]) -> str:
    """Return a table with one row per moment: video, query, start, end, score, model; best first for each query."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["video", "query", "start", "end", "score", "model"])
    for grounding in groundings:
        for moment in grounding.moments:
            values = (f"{moment.start:.3f}", f"{moment.end:.3f}", f"{moment.score:.4f}")
            texts = (_cell(grounding.video or ""), _cell(grounding.query))
            writer.writerow([*texts, *values, _cell(grounding.model or "")])
    return stream.getvalue()


def _cell(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def as_json(groundings: Sequence[Grounding]) -> str:
    """Return the answers as ``sidelight ground --json`` writes them."""
    return json.dumps([grounding.to_dict() for grounding in groundings], indent=2) + "\n"


def subtitles(groundings: Sequence[Grounding], kind: str) -> str:
    """Return subtitles that show each query while it is true.

    Args:
        groundings: answers about one video.
        kind: srt or vtt.

    Raises:
        ValueError: if pysubs2 is not installed.
    """
    try:
        import pysubs2
    except ImportError:
        raise ValueError('subtitles need pysubs2: pip install "sidelight[export]"') from None
    file = pysubs2.SSAFile()
    for grounding, moment in moments_in_time(groundings):
        start, end = round(1000 * moment.start), round(1000 * moment.end)
        event = pysubs2.SSAEvent(start=start, end=max(end, start + 1))
        event.plaintext = one_line(grounding.query)
        if kind == "vtt":  # its cues have entities, as HTML has
            event.plaintext = escape(event.plaintext, quote=False)
        file.append(event)
    text: str = file.to_string(kind)
    return text


def chapters(groundings: Sequence[Grounding]) -> str:
    """Return chapters for the description of a video on YouTube.

    YouTube's rules: the first chapter begins at 0:00, there are at least three, they ascend, and each lasts 10 seconds
    or more. Better moments win where two are too near to each other. Chapters with the title "More" fill gaps.

    Args:
        groundings: answers about one video.

    Raises:
        ValueError: if the video is shorter than 30 s, or there is no moment.
    """
    pairs = sorted(moments_in_time(groundings), key=lambda pair: -pair[1].score)
    require_some(pairs)
    duration = int(pairs[0][0].timeline.duration)
    if duration < _FEWEST_CHAPTERS * _SHORTEST_CHAPTER:
        raise ValueError(f"YouTube's chapters need a video of at least 30 s, got {duration} s; use another format")
    titles: dict[int, str] = {}

    def fits(second: int) -> bool:
        others = [0, *(known for known in titles if known), duration]
        return second in (0, *titles) or all(abs(second - other) >= _SHORTEST_CHAPTER for other in others)

    taken: list[tuple[int, int]] = []
    for grounding, moment in pairs:
        start, end = int(moment.start), min(duration, round(moment.end))
        start = 0 if start < _SHORTEST_CHAPTER else start
        inside = any(low < start < high for low, high in taken)
        if start not in titles and not inside and fits(start):
            titles[start] = one_line(grounding.query)
            taken.append((start, end))
    for _, end in sorted(taken):
        if end not in titles and fits(end) and not any(low <= end < high for low, high in taken):
            titles[end] = FILLER
    titles.setdefault(0, FILLER)
    while len(titles) < _FEWEST_CHAPTERS:
        edges = [*sorted(titles), duration]
        low, high = max(itertools.pairwise(edges), key=lambda pair: pair[1] - pair[0])
        if high - low < 2 * _SHORTEST_CHAPTER:
            break
        titles[(low + high) // 2] = FILLER if titles[low] == FILLER else f"{titles[low]} (continued)"
    if len(titles) < _FEWEST_CHAPTERS:
        titles = {
            place: titles.get(place, FILLER) for place in range(0, duration - _SHORTEST_CHAPTER + 1, duration // 3)
        }
    return "".join(f"{_clock(second, duration)} {titles[second]}\n" for second in sorted(titles))


def _clock(second: int, duration: int) -> str:
    tail = f"{second // 60 % 60:02d}:{second % 60:02d}" if duration >= 3600 else f"{second // 60}:{second % 60:02d}"
    return f"{second // 3600}:{tail}" if duration >= 3600 else tail


# cut lists ----------------------------------------------------------------------------------------------------------


def _seconds(frame: int, cut: Cut) -> str:
    return f"{float(frame / cut.source.rate):.6f}"


def ffconcat(cuts: Sequence[Cut]) -> str:
    """Return a list for FFmpeg's concat demuxer: ffmpeg -f concat -safe 0 -i LIST ..."""
    lines = ["ffconcat version 1.0"]
    for cut in cuts:
        path = cut.source.path.replace("'", "'\\''")
        lines += [f"file '{path}'", f"inpoint {_seconds(cut.start, cut)}", f"outpoint {_seconds(cut.end, cut)}"]
    return "\n".join([*lines, ""])


def ffmpeg_script(cuts: Sequence[Cut]) -> str:
    """Return a shell script with one FFmpeg command per cut, which encodes it exactly into a file of its own."""
    lines = ["#!/bin/sh", "# Cut the moments into files; each is encoded again, so its edges are exact.", "set -e"]
    for number, cut in enumerate(cuts, 1):
        out = f"{Path(cut.source.path).stem}-{number:03d}.mp4"
        command = ["ffmpeg", "-ss", _seconds(cut.start, cut), "-i", cut.source.path, "-frames:v", str(cut.length)]
        command += ["-t", f"{float(cut.length / cut.source.rate):.6f}", "-c:v", "libx264", "-crf", "18", f"./{out}"]
        lines += [f"# {one_line(cut.query)} ({cut.score:.2f})", shlex.join(command)]
    return "\n".join([*lines, ""])


def losslesscut(cuts: Sequence[Cut]) -> str:
    """Return segments that LosslessCut imports: start and end in seconds, and a name, without a head."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    for cut in cuts:
        writer.writerow([_seconds(cut.start, cut), _seconds(cut.end, cut), one_line(cut.query)])
    return stream.getvalue()
