"""Files that are no videos, and paths that are no files, are explained in one sentence."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any

import av
import pytest

from sidelight.video.opening import options_for_any_metadata
from sidelight.video.read import VideoError, probe
from tests.films import Encoding, encode, numbered, steady


@pytest.mark.parametrize(
    ("version", "options"),
    [("17.0.0", {"metadata_errors": "replace"}), ("18.1.0", {"metadata_errors": "replace"}), ("19.0.2", {})],
)
def test_each_version_of_pyav_gets_the_options_that_it_knows(version: str, options: dict[str, Any]) -> None:
    assert options_for_any_metadata(version) == options


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>", "is a web page; expected a video file"),
        (b"\n<HTML>", "is a web page"),
        (b"#EXTM3U\n#EXTINF:5,\nnone.ts\n#EXT-X-ENDLIST\n", "is a playlist whose segments cannot be read"),
        (b"#EXTM3U\n#EXTINF:5,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n", "is a playlist whose segments"),
        (struct.pack(">I", 8) + b"ftyp" + bytes(20), "was cut off"),
    ],
)
def test_other_files_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(content)
    with pytest.raises(VideoError, match=message):
        probe(tmp_path / "v.mp4")


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "v.mp4")  # like /dev/stdin; to open it would wait for ever
    for path in (tmp_path / "v.mp4", "/dev/null"):
        with pytest.raises(VideoError, match=r"is a pipe or a device.*save the video to a file first"):
            probe(path)
    with pytest.raises(VideoError, match=r"^- means standard input.*save the video to a file first"):
        probe("-")


@pytest.mark.parametrize("address", ["https://host/v.mp4", "rtsp://host/v", "s3://bucket/v.mp4"])
def test_an_address_is_never_opened_by_ffmpeg(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "open", lambda *_, **__: pytest.fail("FFmpeg must not see an address"))
    with pytest.raises(VideoError, match=f"{address} is an address; expected a file of this machine"):
        probe(address)


@pytest.mark.parametrize("value", [io.BytesIO(b"x"), None, 3])
def test_a_value_that_is_no_path_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=f"expected the path of a file, got {type(value).__name__}; write the content"):
        probe(value)


def test_a_path_in_bytes_is_a_path(tmp_path: Path) -> None:
    encode(tmp_path / "v.mp4", Encoding(steady(2)), numbered)
    path: Any = os.fsencode(tmp_path / "v.mp4")
    assert probe(path).path == str(tmp_path / "v.mp4")


def test_an_animated_webp_is_no_still_image(tmp_path: Path) -> None:
    path = tmp_path / "v.webp"
    with av.open(str(path), "w", format="webp") as container:
        stream = container.add_stream("libwebp_anim", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(4):
            frame = av.VideoFrame(32, 32, "yuv420p")
            for plane in frame.planes:
                plane.update(bytes([50 * number] * plane.buffer_size))
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if int(av.__version__.split(".")[0]) >= 19:
        assert probe(path).duration == pytest.approx(0.4)
        return
    with pytest.raises(VideoError, match=r"is an animated WebP, which PyAV .* cannot read; .* convert it to MP4"):
        probe(path)
