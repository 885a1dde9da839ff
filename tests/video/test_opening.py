"""Files that are no videos, and paths that are no files, are explained in one sentence."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any

import av
import pytest

from sidelight.video import playlist
from sidelight.video.opening import options_for_any_metadata
from sidelight.video.playlist import allow_playlists
from sidelight.video.read import VideoError, VideoWarning, frames_at, probe
from tests.films import Encoding, encode, number_of, numbered, steady


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
        (b"#EXTM3U\n#EXTINF:5,\nnone.ts\n#EXT-X-ENDLIST\n", r"is a playlist \(HLS\).*allow it if you trust it"),
        (struct.pack(">I", 8) + b"ftyp" + bytes(20), "was cut off"),
    ],
)
def test_other_files_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(content)
    with pytest.raises(VideoError, match=message):
        probe(tmp_path / "v.mp4")


FILM = Encoding(steady(20))


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile secret.mp4\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 4096 RTP/AVP 96\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet><Representation>'
        "<BaseURL>secret.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>",
        "[playlist]\nFile1=secret.mp4\n",
    ],
)
def test_a_text_never_opens_another_file(text: str, tmp_path: Path) -> None:
    """Check concat, SDP, DASH and PLS under a name of a video, with and without the permission for playlists."""
    encode(tmp_path / "secret.mp4", FILM, numbered)
    (tmp_path / "v.mp4").write_text(text)
    for allowed in (False, True):
        with allow_playlists(allowed), pytest.raises(VideoError, match="is not a video; expected MP4"):
            probe(tmp_path / "v.mp4")


def write_playlist(path: Path, *entries: str, end: bool = True) -> Path:
    rows = [line for entry in entries for line in ("#EXTINF:2,", entry)]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["#EXTM3U", "#EXT-X-TARGETDURATION:2", *rows, *["#EXT-X-ENDLIST"] * end, ""]))
    return path


def test_an_allowed_playlist_is_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check two segments in a folder below, through a playlist of playlists, by a relative path."""
    for name in ("a.ts", "b.ts"):
        encode(tmp_path / name, FILM, numbered)
        (tmp_path / "deep").mkdir(exist_ok=True)
        (tmp_path / name).rename(tmp_path / "deep" / name)
    write_playlist(tmp_path / "deep" / "media.m3u8", "a.ts", "b.ts")
    master = tmp_path / "master.m3u8"
    master.write_text("#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=9\ndeep/media.m3u8\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VideoError, match=r"is a playlist \(HLS\)"):
        probe("master.m3u8")
    with allow_playlists():
        assert probe("master.m3u8").duration == pytest.approx(4.0, abs=0.2)
        with pytest.warns(VideoWarning, match="timestamps restart"):
            frames = list(frames_at("master.m3u8", [0.0, 1.95, 3.95]))
    assert [number_of(frame.image) for frame in frames] == [0, 19, 19]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{folder}/secret.ts", "names a file outside its folder"),
        ("../secret.ts", "names a file outside its folder"),
        ("link.ts", "names a file outside its folder"),
        ("file://{folder}/secret.ts", "names an address"),
        ("http://127.0.0.1:9/a.ts", "names an address"),
        ("concat:a.ts", "names an address"),
        ("none.ts", "names 'none.ts', which is no file beside it"),
        ("pipe.ts", "names 'pipe.ts', which is no file beside it"),
    ],
)
@pytest.mark.parametrize("form", ["{}", '#EXT-X-MAP:URI="{}"', "#EXT-X-MAP:URI={}"])
def test_an_allowed_playlist_stays_in_its_folder(entry: str, message: str, form: str, tmp_path: Path) -> None:
    encode(tmp_path / "secret.ts", FILM, numbered)
    path = write_playlist(tmp_path / "inside" / "a.m3u8", form.format(entry.format(folder=tmp_path)))
    (tmp_path / "inside" / "link.ts").symlink_to(tmp_path / "secret.ts")
    os.mkfifo(tmp_path / "inside" / "pipe.ts")
    with allow_playlists(), pytest.raises(VideoError, match=f"^{path} is a playlist that {message}"):
        probe(path)


def test_ffmpeg_opens_no_file_that_the_playlist_does_not_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the second guard, for a playlist that we and FFmpeg would read differently."""
    encode(tmp_path / "a.ts", FILM, numbered)
    path = write_playlist(tmp_path / "a.m3u8", "a.ts")
    monkeypatch.setattr(playlist, "_entries", lambda *_: iter(()))
    with allow_playlists(), pytest.raises(VideoError, match=r"opens .*a\.ts, which it does not name"):
        probe(path)


def test_a_playlist_without_an_end_is_refused(tmp_path: Path) -> None:
    encode(tmp_path / "a.ts", FILM, numbered)
    path = write_playlist(tmp_path / "a.m3u8", "a.ts", end=False)
    with allow_playlists(), pytest.raises(VideoError, match="is a playlist without an end"):
        probe(path)


def test_only_one_module_opens_files_with_ffmpeg() -> None:
    """Check that no other module reads media, so that the list of formats holds everywhere; files may be written."""
    package = Path(__file__).resolve().parents[2] / "src" / "sidelight"
    calls = [
        f"{path.relative_to(package)}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        for line in path.read_text().splitlines()
        if "av.open(" in line and '"w"' not in line
    ]
    assert [call.split(":")[0] for call in calls] == ["video/opening.py"]


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
