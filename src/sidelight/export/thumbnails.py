"""Frames of moments, as JPEG."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from sidelight.core.grounding import Grounding, Moment
from sidelight.export.clips import new_path
from sidelight.io.files import replacing, require_writable_folder
from sidelight.io.storage import name_of
from sidelight.video.damage import VideoError
from sidelight.video.read import frames_at, probe

FrameImage = npt.NDArray[np.uint8]
"""An RGB image (H, W, 3)."""
_START = b"\xff\xd8"
"""The first bytes of a JPEG."""
_MARK = b"\xff\xfe\x00\x18sidelight, thumbnail 1"
"""A comment of a JPEG, by which a thumbnail of an earlier run is known."""


def write_thumbnails(
    groundings: Grounding | Sequence[Grounding],
    folder: str | Path,
    *,
    video: str | Path | None = None,
    top: int | None = None,
    height: int = 360,
) -> list[Path]:
    """Write a frame of each moment as JPEG, from where the highlight curve is highest in the moment.

    The name of a file is that of the moment's clip. A thumbnail of an earlier run is replaced, and no other file.

    Args:
        groundings: one answer, or several.
        folder: where to write; made if missing.
        video: the video file, where the answers do not name it.
        top: moments of each answer, best first; all unless given.
        height: of the frames, in pixels; the width follows from the video.

    Returns:
        The files, answer by answer, best first.

    Raises:
        ValueError: if an answer names no video, or a file of that name exists and is no thumbnail.
        VideoError: if a video cannot be read.
    """
    answers = [groundings] if isinstance(groundings, Grounding) else list(groundings)
    folder = Path(folder)
    require_writable_folder(folder)
    paths: list[Path] = []
    for answer in answers:
        name = name_of(answer.video or video or "")
        for moment in answer.moments if top is None else answer.top(top):
            paths.append(new_path(folder, name, answer.query, (moment.start, moment.end), ".jpg", paths))
    for path in paths:
        if os.path.lexists(path) and not _is_thumbnail(path):
            raise ValueError(f"{path} exists and is no thumbnail; give another folder, or remove the file")
    folder.mkdir(parents=True, exist_ok=True)
    waiting = iter(paths)
    for answer in answers:
        for jpeg in thumbnails(answer, video, top=top, height=height):
            with replacing(next(waiting)) as beside:
                beside.write_bytes(jpeg)
    return paths


def _is_thumbnail(path: Path) -> bool:
    """Check whether a file is a thumbnail of an earlier run."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_START) + len(_MARK)) == _START + _MARK


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
    jpeg = b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
    return _START + _MARK + jpeg[len(_START) :]
