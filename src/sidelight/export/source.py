"""The video file that a cut comes from, as editing programs need to know it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from av.container import InputContainer
from av.video.stream import VideoStream

from sidelight.core.grounding import Grounding
from sidelight.export.timecode import can_drop, end_frame, first_frame, frames_of, is_drop, standard_rate
from sidelight.io.jsonl import shown
from sidelight.video.opening import open_video
from sidelight.video.read import VideoInfo, probe

_LOOKED_AT, _REORDERED = 400, 16
"""Packets whose times are compared, and those at the end whose neighbours may not have been read."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A video file with an exact rate."""

    path: str
    """Absolute path."""
    rate: Fraction
    """Frames a second."""
    frames: int
    """Length in frames."""
    width: int
    height: int
    start: int = 0
    """Timecode of the first frame, in frames since 00:00:00:00."""
    drop: bool = False
    """Whether the timecode of the file is drop-frame."""
    channels: int = 0
    """Channels of sound; 0 without sound."""
    sample_rate: int = 0
    """Samples of sound a second."""
    even: bool = True
    """Whether frames follow each other at the rate; if not, the rate is their average."""
    notes: tuple[str, ...] = ()
    """Sentences that matter to the export, such as a variable frame rate."""

    @property
    def name(self) -> str:
        """Return the file's name without folders."""
        return Path(self.path).name


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A part of a source: a moment in whole frames."""

    source: Source
    start: int
    """First frame, counted from the source's first frame."""
    end: int
    """The frame after the last one."""
    query: str
    score: float
    span: tuple[float, float] = (0.0, 0.0)
    """Start and end of the moment with its padding, in seconds of the video."""
    model: str | None = None
    """The model that answered."""

    @property
    def length(self) -> int:
        """Return the number of frames."""
        return self.end - self.start


def read_source(path: str | os.PathLike[str]) -> Source:
    """Read what editing programs need to know about a video file.

    Args:
        path: the file.

    Raises:
        VideoError: if it cannot be read as a video.
    """
    info = probe(path)
    container, stream = open_video(os.fspath(path))
    with container:
        timecode = _timecode_of([stream.metadata, container.metadata, *(s.metadata for s in container.streams)])
        sound: Any = next(iter(container.streams.audio), None)
        channels = sound.codec_context.channels if sound is not None and sound.codec_context else 0
        sample_rate = sound.codec_context.sample_rate if channels else 0
        uneven = _is_uneven(container, stream)
    rate, notes = _rate_of(info, uneven=uneven)
    start, drop = 0, False
    if timecode:
        try:
            start, drop = frames_of(timecode, rate), is_drop(timecode) and can_drop(rate)
        except ValueError as error:
            notes += (f"{info.path}: its timecode is not used: {error}",)
    return Source(
        path=os.path.abspath(path),
        rate=rate,
        frames=max(1, end_frame(info.duration, rate)),
        width=info.width,
        height=info.height,
        start=start,
        drop=drop,
        channels=channels,
        sample_rate=sample_rate,
        even=not uneven,
        notes=notes,
    )


def _timecode_of(tags: Iterable[Any]) -> str:
    """Return the first timecode in the metadata of a file, or nothing."""
    return next((str(values["timecode"]) for values in tags if values.get("timecode")), "")


def _is_uneven(container: InputContainer, stream: VideoStream) -> bool:
    """Check whether the times of the first frames are uneven by more than rounding to the file's own ticks."""
    packets = itertools.islice(container.demux(stream), _LOOKED_AT)
    times = sorted(packet.pts for packet in packets if packet.pts is not None)
    steps = [b - a for a, b in itertools.pairwise(times)][: -_REORDERED or None]
    return bool(steps) and max(steps) - min(steps) > max(2, min(steps) // 50)


def _rate_of(info: VideoInfo, *, uneven: bool) -> tuple[Fraction, tuple[str, ...]]:
    """Return the rate in which cuts are counted, and a sentence where the frames of the video are uneven."""
    rate = standard_rate(info.fps)
    if not uneven:
        return rate, ()
    counted = f"cuts are counted in its average of {float(rate):.6g} frames a second"
    return rate, (f"{info.path} has a variable frame rate; {counted}",)


def sources_of(
    groundings: Iterable[Grounding], video: str | os.PathLike[str] | None = None
) -> list[tuple[Grounding, Source]]:
    """Return each answer with the source that it is about; each file is read once.

    Args:
        groundings: the answers.
        video: the video file of all answers, where they do not name it.

    Raises:
        ValueError: if an answer names no video and none is given.
        VideoError: if a file cannot be read as a video.
    """
    sources: dict[str, Source] = {}
    pairs = []
    for grounding in groundings:
        file = grounding.video if video is None else os.fspath(video)
        if file is None:
            raise ValueError(f"the answer about {shown(grounding.query)} names no video; give the file (--video FILE)")
        if file not in sources:
            sources[file] = read_source(file)
        pairs.append((grounding, sources[file]))
    return pairs


def cuts_of(
    groundings: Iterable[tuple[Grounding, Source]], *, top: int | None = None, padding: float = 0.0
) -> list[Cut]:
    """Return the moments as cuts in the order of time, source by source.

    Args:
        groundings: each answer with its source.
        top: moments of each answer, best first; all unless given.
        padding: seconds that are added before and after each moment, within the video.
    """
    cuts: list[Cut] = []
    order: dict[str, int] = {}
    for grounding, source in groundings:
        order.setdefault(source.path, len(order))
        for moment in grounding.moments if top is None else grounding.top(top):
            start = min(first_frame(moment.start - padding, source.rate), source.frames - 1)
            end = min(max(end_frame(moment.end + padding, source.rate), start + 1), source.frames)
            span = (max(0.0, moment.start - padding), min(moment.end + padding, float(source.frames / source.rate)))
            cuts.append(
                Cut(
                    source=source,
                    start=start,
                    end=end,
                    span=span,
                    score=moment.score,
                    query=grounding.query,
                    model=grounding.model,
                )
            )
    return sorted(cuts, key=lambda cut: (order[cut.source.path], cut.start, cut.end))
