"""The sound of a part of a video: samples from a second on, with silence where the file has none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.error import FFmpegError

from sidelight.video.opening import open_video

Samples = npt.NDArray[np.float32]
"""(channels, N), from -1 to 1."""
_WARM_UP = 1.0
"""Seconds of sound that are decoded before the first sample: Opus and AAC need some to be exact."""
_JITTER = 0.05
"""Seconds by which times of sound may be off without a gap or an overlap: files round times."""


def sound_of(container: InputContainer) -> tuple[int, str] | None:
    """Return samples a second and layout in which the sound of a file is encoded; None without sound."""
    stream = container.streams.best("audio")
    context: Any = stream.codec_context if stream is not None else None
    if context is None or not context.sample_rate or not context.channels:
        return None
    rates = av.Codec("aac", "w").audio_rates or [48000]
    rate = context.sample_rate if context.sample_rate in rates else 48000
    layout = {1: "mono", 2: "stereo", 6: "5.1"}.get(context.channels, "stereo")
    return rate, layout


def sound_from(path: str, begin: float, rate: int, layout: str) -> Iterator[tuple[int, Samples]]:
    """Yield (place of the first sample, samples) of a file's sound, from a second of its own clock on.

    Places count from that second and may be negative.
    """
    container, _ = open_video(path)
    with container:
        stream: Any = container.streams.best("audio")
        if stream is None:
            return
        with suppress(FFmpegError):
            container.seek(int(max(0.0, begin - _WARM_UP) / stream.time_base), stream=stream)
        resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
        for frame in _decoded_sound(container, stream):
            if frame.pts is None:
                continue
            place = round((float(frame.pts * frame.time_base) - begin) * rate)
            for block in resampler.resample(frame):
                samples = np.asarray(block.to_ndarray(), dtype=np.float32)
                yield place, samples
                place += samples.shape[1]


def _decoded_sound(container: InputContainer, stream: Any) -> Iterator[Any]:
    """Yield the frames of sound that can be decoded."""
    packets = container.demux(stream)
    errors = 0
    while errors < 8:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except FFmpegError:
            errors += 1
            continue
        with suppress(FFmpegError):
            yield from packet.decode()


def placed(blocks: Iterator[tuple[int, Samples]], total: int, channels: int, rate: int) -> Iterator[Samples]:
    """Yield ``total`` samples: blocks at their places, and silence between them.

    Args:
        blocks: (place of the first sample, samples of shape (channels, N)), in order.
        total: number of samples to yield.
        channels: number of channels.
        rate: samples a second.
    """
    done, expected = 0, None
    for place, samples in blocks:
        place = expected if expected is not None and abs(place - expected) <= _JITTER * rate else place
        expected = place + samples.shape[1]
        if expected <= done:
            continue
        if place >= total:
            break
        if place > done:
            yield np.zeros((channels, place - done), np.float32)
            done = place
        kept = samples[:, done - place : total - place]
        done += kept.shape[1]
        yield kept
        if done >= total:
            return
    while done < total:  # in pieces, since the part may be long
        piece = min(total - done, 1 << 16)
        yield np.zeros((channels, piece), np.float32)
        done += piece
