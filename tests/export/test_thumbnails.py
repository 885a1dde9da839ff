"""Check the pictures of moments."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sidelight.core.grounding import Grounding, Moment
from sidelight.core.timeline import Timeline
from sidelight.export.thumbnails import as_jpeg, best_second, thumbnails, write_thumbnails
from sidelight.video.read import frames_at, probe


def grounding(video: Path | None, *moments: Moment) -> Grounding:
    info_seconds = probe(video).duration if video else 10.0
    timeline = Timeline(duration=info_seconds, clip_seconds=2.0)
    return Grounding(
        query="x",
        timeline=timeline,
        moments=moments,
        saliency=np.zeros(timeline.num_clips, np.float32),
        video=str(video) if video else None,
    )


@pytest.mark.parametrize(
    ("curve", "span", "second"),
    [
        ((0, 0, 0, 0, 0), (0.0, 10.0), 5.0),  # of equals, the most central
        ((0, 0, 0, 1, 0), (0.0, 10.0), 7.0),
        ((0, 0, 0, 1, 0), (0.0, 6.5), 3.0),  # the highest clip is in the moment by a quarter only
        ((0, 0, 0, 1, 0), (0.0, 7.0), 6.5),
        ((9, 0, 1, 0, 0), (2.5, 5.5), 4.75),
        ((9, 0, 1, 0, 0), (2.2, 2.4), 2.3),  # shorter than a clip
    ],
)
def test_the_frame_is_where_the_curve_is_highest_in_the_moment(
    curve: tuple[float, ...], span: tuple[float, float], second: float
) -> None:
    moment = Moment(*span, 0.5)
    answer = replace(grounding(None, moment), saliency=np.array(curve, np.float32))
    assert best_second(answer, moment) == pytest.approx(second)


def test_each_moment_shows_its_middle_best_first(tiny_world: Path) -> None:
    video = sorted((tiny_world / "videos").iterdir())[0]
    moments = (Moment(8, 10, 0.2), Moment(0, 2, 0.9), Moment(4, 8, 0.5))
    pictures = thumbnails(grounding(video, *moments), height=64)
    assert len(pictures) == 3
    for picture, second in zip(pictures, (1, 6, 9), strict=True):
        image = np.asarray(Image.open(io.BytesIO(picture)))
        expected = next(frames_at(video, [second], size=(image.shape[1], 64))).image
        assert image.shape[0] == 64 and np.abs(image.astype(int) - expected).mean() < 8
    assert len(thumbnails(grounding(video, *moments), top=1)) == 1
    assert thumbnails(grounding(video)) == []


def test_a_grounding_without_a_file_needs_one() -> None:
    with pytest.raises(ValueError, match="does not say which video it is about"):
        thumbnails(grounding(None, Moment(0, 1, 0.5)))


def test_a_jpeg_has_the_colours_of_the_picture() -> None:
    image = np.zeros((32, 48, 3), np.uint8)
    image[:, :24] = (200, 30, 30)
    decoded = np.asarray(Image.open(io.BytesIO(as_jpeg(image)))).astype(int)
    assert decoded.shape == (32, 48, 3) and np.abs(decoded[:, :20] - (200, 30, 30)).max() < 12


def test_thumbnails_are_files_named_as_clips_and_replace_only_thumbnails(tiny_world: Path, tmp_path: Path) -> None:
    video = sorted((tiny_world / "videos").iterdir())[0]
    answer = grounding(video, Moment(4, 8, 0.5), Moment(0, 2, 0.9))
    folder = tmp_path / "new" / "frames"
    paths = write_thumbnails([answer, answer], folder, height=48)
    stem = video.stem.replace("_", "-").lower()
    expected = [f"{stem}-x-{span}.jpg" for span in ("00000.00-00002.00", "00004.00-00008.00")]
    expected += [name.replace(".jpg", "-2.jpg") for name in expected]
    assert [path.name for path in paths] == expected and sorted(folder.iterdir()) == sorted(paths)
    assert all(Image.open(path).height == 48 for path in paths)
    assert write_thumbnails(answer, folder, top=1, height=64) == paths[:1] and Image.open(paths[0]).height == 64
    paths[1].write_bytes(b"a picture of somebody else")
    before = paths[0].read_bytes()
    with pytest.raises(ValueError, match="exists and is no thumbnail"):
        write_thumbnails(answer, folder)
    assert paths[1].read_bytes() == b"a picture of somebody else" and paths[0].read_bytes() == before
    assert write_thumbnails([], tmp_path / "none") == []
