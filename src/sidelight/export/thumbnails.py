"""Small pictures of moments, as JPEG."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from sidelight.core.grounding import Grounding, Moment
from sidelight.video.damage import VideoError
from sidelight.video.read import frames_at, probe

FrameImage = npt.NDArray[np.uint8]
"""An RGB image (H, W, 3)."""


def thumbnails(
    grounding: Grounding, video: str | Path | None = None, *, top: int | None = None, height: int = 144
) -> list[bytes]:
    """Return a frame of each moment, best first, as JPEG: from where the highlight curve is highest in the moment.

    Args:
        grounding: the answer.
        video: the file; the one that the grounding names unless given.
        top: number of moments; all unless given.
        height: of the pictures, in pixels; the width follows from the video.

    Raises:
        ValueError: if the grounding names no video and none is given.
        VideoError: if the video cannot be read.
    """
    return [as_jpeg(image) for image in moment_frames(grounding, video, top=top, height=height)]


def moment_frames(
    grounding: Grounding, video: str | Path | None = None, *, top: int | None = None, height: int = 144
) -> list[FrameImage]:
    """Return a frame of each moment, best first, as RGB; arguments and errors as :func:`thumbnails`.

    Args:
        grounding: the answer.
        video: the file.
        top: number of moments.
        height: of the frames, in pixels.
    """
    if video is None and grounding.video is None:
        raise ValueError("the grounding does not say which video it is about; give the file")
    path = grounding.video if video is None else video
    assert path is not None
    info = probe(path)
    size = (max(2, round(height * info.width / info.height / 2) * 2), height)
    moments = grounding.moments if top is None else grounding.top(top)
    seconds = [best_second(grounding, moment) for moment in moments]
    order = sorted(range(len(seconds)), key=seconds.__getitem__)
    frames = frames_at(path, [seconds[i] for i in order], size=size, on_damage=lambda message: None)
    images = [frame.image for frame in frames]
    if moments and not images:
        raise VideoError(f"{path} has no frame that can be shown; expected the video that the grounding is about")
    images += images[-1:] * (len(moments) - len(images))  # a file that breaks off ends with its last frame
    return [images[order.index(i)] for i in range(len(moments))]


def best_second(grounding: Grounding, moment: Moment) -> float:
    """Return the middle of the clip of a moment in which the highlight curve is highest; of equals, the most central.

    Only the part of a clip that lies in the moment counts. Clips that lie in it by less than half are passed over where
    the moment has others.

    Args:
        grounding: the answer.
        moment: one of its moments.
    """
    spans_T2 = np.clip(grounding.timeline.clip_spans(), moment.start, moment.end)
    inside_T = spans_T2[:, 1] - spans_T2[:, 0]
    middles_T = spans_T2.mean(axis=1)
    middle = (moment.start + moment.end) / 2
    candidates = np.flatnonzero(inside_T >= min(grounding.timeline.clip_seconds / 2, inside_T.max()))
    best = min(candidates, key=lambda clip: (-grounding.saliency[clip], abs(middles_T[clip] - middle)))
    return float(middles_T[best])


def as_jpeg(image_HW3: npt.NDArray[np.uint8]) -> bytes:
    """Return an RGB picture as JPEG.

    Args:
        image_HW3: the picture.
    """
    height, width, _ = image_HW3.shape
    encoder = av.CodecContext.create("mjpeg", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = width, height, "yuvj420p", Fraction(1, 25)
    encoder.options = {"qscale": "4"}
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image_HW3), format="rgb24").reformat(format="yuvj420p")
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
