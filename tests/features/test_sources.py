"""Video files are found by id in every kind of source."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sidelight.features.sources import chosen_videos, content_digest, find_videos, videos_of
from sidelight.video.read import VideoError


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
        ([films], ["a", "b"]),
        ([films / "a.mp4"], ["a"]),
        ([str(films / "*.mp4")], ["a"]),
        ([str(films / "**" / "*")], ["a", "b", "c"]),
        ([listed], ["a", "c"]),
        ([films, films / "a.mp4", listed], ["a", "b", "c"]),
    ]
    for sources, ids in table:
        assert sorted(videos_of(sources)) == ids
    (films / "deep" / "a.mkv").touch()
    for sources_without_videos, message in (
        ([films / "none"], "does not exist"),
        ([films / "deep" / "*.avi"], "matches no video files"),
        ([tmp_path], "has no video files"),
        ([films, films / "deep"], "would both be the video 'a'"),
    ):
        with pytest.raises(ValueError, match=message):
            videos_of([str(source) for source in sources_without_videos])
    listed.write_text("films/none.mp4")
    with pytest.raises(ValueError, match=r"list\.txt, line 1"):
        videos_of([listed])
    listed.write_text("# none\n")
    with pytest.raises(ValueError, match="names no video"):
        videos_of([listed])


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
