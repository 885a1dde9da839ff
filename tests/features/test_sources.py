"""Video files are found by id in every kind of source."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from sidelight.data.datasets.base import DataWarning
from sidelight.features.sources import chosen_videos, content_digest, find_videos, videos_of
from sidelight.io.files import video_names
from sidelight.video.read import VideoError, probe


def test_videos_are_found_by_id(tiny_world: Path, tmp_path: Path) -> None:
    assert find_videos(tiny_world / "videos", []) == {}
    with pytest.raises(ValueError, match=r"lacks 1 of 1 videos, such as nowhere"):
        find_videos(tiny_world / "videos", ["nowhere"])
    with pytest.raises(ValueError, match="not a folder"):
        find_videos(tmp_path / "none", ["a"])


def test_sources_of_videos(tmp_path: Path) -> None:
    films = tmp_path / "films"
    for name in ("a.mp4", "b.MKV", "deep/c.mov", "notes.txt"):
        (films / name).parent.mkdir(parents=True, exist_ok=True)
        (films / name).touch()
    listed = tmp_path / "list.txt"
    listed.write_text("# chosen\nfilms/a.mp4\n\nfilms/deep/*.mov\n")
    table: list[tuple[list[str | Path], list[str]]] = [
        ([], []),
        ([films / "a.mp4"], ["a"]),
        ([str(films / "*.mp4")], ["a"]),
        ([str(films / "**" / "*.m*")], ["a", "c"]),
        ([listed], ["a", "c"]),
        ([films / "deep", films / "a.mp4", listed], ["a", "c"]),
    ]
    for sources, ids in table:
        assert sorted(videos_of(sources)) == ids
    for source, ids in ((films, ["a", "b"]), (films / "**" / "*", ["a", "b", "c"])):
        with pytest.warns(
            DataWarning, match=r"ignored files: 1 without the suffix of a video \(1 with \.txt\) in .*films;"
        ):
            assert sorted(videos_of([str(source)])) == ids
    (films / "deep" / "a.mkv").touch()
    for sources_without_videos, message in (
        ([films / "none"], "does not exist"),
        ([films / "deep" / "*.avi"], "matches no video files"),
        ([tmp_path], "has no video files"),
        ([films / "a.mp4", films / "deep"], "would both be the video 'a'"),
    ):
        with pytest.raises(ValueError, match=message):
            videos_of([str(source) for source in sources_without_videos])
    listed.write_text("films/none.mp4")
    with pytest.raises(ValueError, match=r"list\.txt, line 1"):
        videos_of([listed])
    listed.write_text("# none\n")
    with pytest.raises(ValueError, match="names no video"):
        videos_of([listed])


@pytest.mark.parametrize(
    ("names", "videos", "ignored"),
    [
        ([], [], ""),
        (["a.mp4", "B.WMV", ".hidden.mp4"], ["B.WMV", "a.mp4"], ""),
        (
            ["a.mp4", "a.srt", "b.srt", "README"],
            ["a.mp4"],
            "3 without the suffix of a video (2 with .srt, 1 with no suffix)",
        ),
        (["a.mp4", "a.gif", "b.gif"], ["a.mp4", "b.gif"], "1 beside a video of the same name (a.gif, ...)"),
    ],
)
def test_files_of_a_folder_are_ignored_with_a_reason(names: list[str], videos: list[str], ignored: str) -> None:
    assert video_names(names) == (videos, ignored)


def test_two_files_of_one_video_are_refused(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.wmv", "b.mp4"):
        (tmp_path / name).touch()
    assert find_videos(tmp_path, ["b"]) == {"b": tmp_path / "b.mp4"}
    (tmp_path / "c.docx").touch()
    with pytest.raises(ValueError, match=r"such as c; .*; ignored files: 1 without the suffix .* \(1 with \.docx\)"):
        find_videos(tmp_path, ["c"])
    with pytest.raises(ValueError, match=r"a\.mp4 and .*a\.wmv would both be the video 'a'"):
        find_videos(tmp_path, ["a"])


CONTAINERS = {
    ".3gp": ("3gp", "mpeg4"),
    ".asf": ("asf", "mpeg4"),
    ".avi": ("avi", "mpeg4"),
    ".dv": ("dv", "dvvideo"),
    ".f4v": ("f4v", "libx264"),
    ".flv": ("flv", "libx264"),
    ".gif": ("gif", "gif"),
    ".h264": ("h264", "libx264"),
    ".m2ts": ("mpegts", "libx264"),
    ".mpg": ("mpeg", "mpeg2video"),
    ".mts": ("mpegts", "libx264"),
    ".mxf": ("mxf", "mpeg2video"),
    ".nut": ("nut", "mpeg4"),
    ".ogv": ("ogg", "libvpx"),
    ".vob": ("vob", "mpeg2video"),
    ".wmv": ("asf", "wmv2"),
    ".y4m": ("yuv4mpegpipe", "rawvideo"),
}


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a short film in each container that FFmpeg can write."""
    folder = tmp_path_factory.mktemp("containers")
    for suffix, (format_name, codec) in CONTAINERS.items():
        with av.open(str(folder / f"v{suffix[1:]}{suffix}"), "w", format=format_name) as container:
            stream = container.add_stream(codec, rate=25)
            assert isinstance(stream, VideoStream)
            stream.width, stream.height = (720, 576) if codec == "dvvideo" else (64, 48)
            stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
            for number in range(4):
                frame = av.VideoFrame.from_ndarray(np.zeros((stream.height, stream.width, 3), np.uint8))
                frame = frame.reformat(format=stream.pix_fmt)
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return folder


def test_every_container_in_a_folder_is_read(containers: Path) -> None:
    for videos in (videos_of([containers]), find_videos(containers, [f"v{suffix[1:]}" for suffix in CONTAINERS])):
        assert sorted(videos) == sorted(f"v{suffix[1:]}" for suffix in CONTAINERS)
    assert all(probe(path).width in (64, 720, 768) for path in videos.values())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_are_read_as_powershell_writes_them(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "été.mp4").touch()
    for line in ("films/été.mp4", "films\\été.mp4"):
        (tmp_path / "list.txt").write_bytes(f"{line}\r\n".encode(encoding))
        assert list(videos_of([tmp_path / "list.txt"])) == ["été"]


def test_a_list_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("été.mp4".encode("latin-1"))
    with pytest.raises(ValueError, match=r"list\.txt is not a text in UTF-8 or UTF-16; expected a list"):
        videos_of([tmp_path / "list.txt"])


def test_videos_are_chosen_by_annotations() -> None:
    videos: dict[str, str | Path] = {"a": "a.mp4", "b": "b.mp4"}
    assert chosen_videos(videos, None) == (videos, {})
    assert chosen_videos(videos, ["b", "c", "b"]) == ({"b": "b.mp4"}, {"c": "there is no file of that name"})
    with pytest.raises(ValueError, match=r"none of the 1 videos .* such as 'c'"):
        chosen_videos(videos, ["c"])


def test_the_content_decides_the_digest(tiny_world: Path, tmp_path: Path) -> None:
    video = sorted((tiny_world / "videos").iterdir())[0]
    copy = Path(shutil.copy(video, tmp_path / "another name.mp4"))
    assert content_digest(copy) == content_digest(video)
    with copy.open("ab") as file:
        file.write(b"x")
    assert content_digest(copy) != content_digest(video)
    with pytest.raises(VideoError, match="cannot be read"):
        content_digest(tmp_path / "none.mp4")
