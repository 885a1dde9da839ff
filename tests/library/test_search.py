"""A search finds the right video and moment by a sentence, an image and another moment, and says when there is none."""

from __future__ import annotations

import json
import os
from datetime import date, datetime
from pathlib import Path

import av
import numpy as np
import pytest

from sidelight import Grounder, Grounding, OutsideWarning, VideoError
from sidelight.cli.main import main
from sidelight.data.annotations import Annotation
from sidelight.export.thumbnails import as_jpeg
from sidelight.library import Library, Where
from sidelight.library import tables as tables_module
from sidelight.library.folder import folder_at
from sidelight.library.tables import Tables
from sidelight.video.read import frames_at, read_image


@pytest.fixture(scope="module")
def library(built: Path) -> Library:
    """Return the library of the films; tests of this file change nothing in it."""
    return Library.open(built / "lib", device="cpu")


@pytest.fixture(scope="module")
def queried(tiny_annotations: list[Annotation]) -> list[Annotation]:
    """Return queries that name colour, shape and action, and are true in one of the films only."""
    named = [a for a in tiny_annotations if a.extra["colour"] and a.extra["shape"]]
    triples = [(a.extra["colour"], a.extra["shape"], a.extra["action"]) for a in named]
    return [a for a, triple in zip(named, triples, strict=True) if triples.count(triple) == 1]


def test_a_sentence_finds_the_right_video(library: Library, queried: list[Annotation]) -> None:
    right = [Path(library.search(a.query, top=1)[0].video).stem == a.vid for a in queried]
    assert len(queried) >= 6 and np.mean(right) >= 0.8


def test_the_answer_is_that_of_a_single_video(library: Library, queried: list[Annotation]) -> None:
    query = queried[0].query
    result = library.search(query, top=4)
    assert len(result) == 4
    assert [hit.relevance for hit in result] == sorted((hit.relevance for hit in result), reverse=True)
    grounder = Grounder.from_pretrained("shapes", cache=None, device="cpu")
    for hit in result:
        alone = grounder.ground(hit.video, query)
        assert any(
            np.allclose((m.start, m.end, m.score), (hit.moment.start, hit.moment.end, hit.moment.score), atol=1e-2)
            for m in alone
        )
    assert sum(len(grounding) for grounding in result.groundings) == 4
    assert [g.video for g in result.groundings] == list(dict.fromkeys(hit.video for hit in result))
    assert all(g.query == query and g.model == "shapes" for g in result.groundings)


def test_videos_are_never_decoded_again(
    library: Library, queried: list[Annotation], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        pytest.fail("a search opened a video")

    monkeypatch.setattr("sidelight.video.opening._open", fail)
    hit = library.search(queried[0].query)[0]
    assert library.search_like(hit.video, hit.moment.start, hit.moment.end)


def test_no_moment_fits(library: Library, queried: list[Annotation]) -> None:
    best = library.search(queried[0].query, top=1)[0].moment.score
    assert library.search(queried[0].query, min_score=best) and not library.search(
        queried[0].query, min_score=best + 1e-3
    )
    assert not library.search(queried[0].query, where=Where(min_seconds=1000))


def test_an_unknown_word_is_a_note(library: Library) -> None:
    with pytest.warns(OutsideWarning, match="never saw the word 'cathedral'"):
        result = library.search("a red cathedral")
    assert "cathedral" in result.notes[0] and all("cathedral" in g.notes[-1] for g in result.groundings)


def test_filters(library: Library, built: Path) -> None:
    rows = library.files()

    def videos(where: Where) -> set[str]:
        return {hit.video for hit in library.search("a star", top=100, where=where)}

    everything = {row.path for row in rows}
    assert videos(Where()) == everything
    assert videos(Where(folder=built / "films")) == videos(Where(folder=built)) == everything
    with pytest.raises(ValueError, match=r"no video of the library .* lies in"):
        videos(Where(folder=built / "film"))  # no folder, but the beginning of a path
    shortest = min(row.duration for row in rows)
    assert videos(Where(max_seconds=shortest)) == {row.path for row in rows if row.duration == shortest}
    assert videos(Where(min_seconds=shortest + 0.5)) == {row.path for row in rows if row.duration > shortest}
    day = datetime.fromtimestamp(rows[0].modified / 1e9).date()
    assert videos(Where(since=day, until=day)) == everything
    assert videos(Where(since=date.min, until=date.max)) == everything
    assert not videos(Where(since=date(day.year + 1, 1, 1))) and not videos(Where(until=date(day.year - 1, 1, 1)))


@pytest.mark.parametrize(
    "limits",
    [
        {"min_seconds": -1.0},
        {"min_seconds": 2.0, "max_seconds": 1.0},
        {"since": date(2026, 2, 1), "until": date(2026, 1, 1)},
    ],
)
def test_wrong_filters_are_refused(limits: dict[str, float | date]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Where(**limits)  # type: ignore[arg-type]  # a table


@pytest.mark.parametrize("options", [{"top": 0}, {"candidates": 0}, {"min_score": -1.0}, {"min_score": float("nan")}])
def test_wrong_numbers_are_refused(library: Library, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        library.search("a star", **options)  # type: ignore[arg-type]  # a table
    with pytest.raises(ValueError, match="empty"):
        library.search(" ")


def test_a_moment_finds_others_and_not_itself(library: Library, queried: list[Annotation], built: Path) -> None:
    start, end = queried[0].relevant_windows[0]
    film = built / "films" / f"{queried[0].vid}.mp4"
    result = library.search_like(film, start, end, top=20)
    assert result and result.query == f"{film}@{start:g}-{end:g}"
    for hit in result:
        assert hit.video != str(film) or hit.moment.end <= start or hit.moment.start >= end
    with pytest.raises(ValueError, match=r"lasts .* and the moment ends at 1000 s"):
        library.search_like(film, 0, 1000)
    with pytest.raises(ValueError, match="0 <= start < end"):
        library.search_like(film, 5, 5)


def test_a_moment_of_another_file_finds_its_copy(library: Library, built: Path, tmp_path: Path) -> None:
    film = sorted((built / "films").iterdir())[1]
    other = tmp_path / "other.mp4"
    with av.open(str(film)) as source, av.open(str(other), "w") as target:  # other bytes, the same frames
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    hit = library.search_like(other, 4, 8, top=1)[0]
    assert hit.video == str(film) and hit.moment.start < 8 and hit.moment.end > 4


def write_image(film: Path, second: float, out: Path) -> Path:
    """Write the frame of a video as an image."""
    image = next(iter(frames_at(film, [second]))).image
    with av.open(str(out), "w", format="image2") as container:
        stream = container.add_stream("png" if out.suffix == ".png" else "mjpeg", rate=1)
        stream.width, stream.height = image.shape[1], image.shape[0]
        stream.pix_fmt = "rgb24" if out.suffix == ".png" else "yuvj420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return out


def test_an_image_finds_the_video_that_shows_it(built: Path, tmp_path: Path) -> None:
    """Check with a film that stands still: the embedded backbone sees motion, which an image lacks."""
    film = sorted((built / "films").iterdir())[0]
    image = write_image(film, 9.0, tmp_path / "image.png")
    pixels = read_image(image, size=(128, 128))
    np.testing.assert_array_equal(pixels, next(iter(frames_at(film, [9.0]))).image)
    assert (
        read_image(image, size=(64, 48)).shape == read_image(image, size=(64, 48), resize="crop").shape == (48, 64, 3)
    )
    still = tmp_path / "still.mp4"
    with av.open(str(still), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "10"})
        stream.width = stream.height = 128
        stream.pix_fmt = "yuv420p"
        for number in range(80):
            shown = pixels if number >= 40 else np.full_like(pixels, 120)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        container.mux(stream.encode())
    library = Library.create(tmp_path / "lib", model="shapes", device="cpu")
    assert len(library.add([built / "films", still], workers=0).added) == 4
    hit = library.search_image(image, top=1)[0]
    assert (hit.video, hit.moment.start, hit.moment.end) == (str(still), 4.0, 8.0) and hit.relevance > 0.95


@pytest.mark.parametrize("name", ["missing.png", "text.png", "cut.png", "film.mp4", ""])
def test_wrong_images_are_one_sentence(library: Library, built: Path, tmp_path: Path, name: str) -> None:
    film = sorted((built / "films").iterdir())[0]
    (tmp_path / "text.png").write_text("no image")
    whole = write_image(film, 1.0, tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:60])
    (tmp_path / "film.mp4").symlink_to(film)
    with pytest.raises(VideoError, match="expected"):
        library.search_image(tmp_path / name)


def test_the_command_prints_writes_and_ends_with_its_code(
    built: Path, queried: list[Annotation], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lib, query, out = str(built / "lib"), queried[0].query, tmp_path / "answers.json"
    assert main(["search", lib, query, "--top", "2", "--json", str(out), "--export", str(tmp_path / "a.csv")]) == 0
    printed = capsys.readouterr().out
    assert (
        printed.splitlines()[0].split() == ["start", "end", "relevance", "score", "video"]
        and f"{queried[0].vid}.mp4" in printed
    )
    values = json.loads(out.read_text())
    assert values["format"] == "sidelight.search/1" and values["query"] == query and not values["calibrated"]
    assert [hit["relevance"] for hit in values["hits"]] == sorted(
        (h["relevance"] for h in values["hits"]), reverse=True
    )
    groundings = [Grounding.from_dict(one) for one in values["groundings"]]
    assert sum(map(len, groundings)) == 2 and (tmp_path / "a.csv").read_text().count("\n") == 3
    assert main(["export", str(out), str(tmp_path / "b.csv")]) == 0
    assert (tmp_path / "b.csv").read_text() == (tmp_path / "a.csv").read_text()
    capsys.readouterr()
    assert main(["search", lib, query, "--min-score", "1.5", "--json", "-"]) == 1
    assert json.loads(capsys.readouterr().out)["hits"] == []
    assert main(["search", lib, query, "--shortest", "900"]) == 1
    assert capsys.readouterr().out == "no such moment\n"
    film = next((built / "films").iterdir())
    assert main(["search", lib, "--like", f"{film}@0:04-0:08.5", "--folder", str(built / "films")]) == 0


def test_of_a_long_video_the_near_parts_are_read(
    library: Library, queried: list[Annotation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidelight.library.search.near_parts", lambda cosine_T, window_clips: [range(2, 6)])
    result = library.search(queried[0].query, top=3)
    assert result and all(4 <= hit.moment.start < hit.moment.end <= 12 for hit in result)
    assert all("the model read 0:08.0 of" in grounding.notes[0] for grounding in result.groundings)
    whole = library.search(queried[0].query, top=100, whole=True)
    assert any(hit.moment.end > 12 for hit in whole) and not any(g.notes for g in whole.groundings)


def test_a_result_prints_as_a_table(library: Library, queried: list[Annotation], built: Path) -> None:
    result = library.search(queried[0].query, top=2)
    lines = str(result).splitlines()
    assert len(lines) == 3 and lines[1].endswith(result[0].video)
    assert result.to_text(folder=built).splitlines()[1].endswith(f"  films/{Path(result[0].video).name}")
    assert str(library.search(queried[0].query, min_score=1.5)) == "no such moment"


def test_hits_become_clips_a_film_a_sheet_and_a_report(
    built: Path, queried: list[Annotation], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    films = ["--clips", str(tmp_path / "clips"), "--join", str(tmp_path / "film.mp4")]
    films += ["--contact-sheet", str(tmp_path / "sheet.png"), "--report", str(tmp_path / "report.html")]
    assert main(["search", str(built / "lib"), queried[0].query, "--top", "3", *films]) == 0
    assert len(list((tmp_path / "clips").iterdir())) == 3
    with av.open(str(tmp_path / "film.mp4")) as film:
        assert next(film.decode(video=0)).width > 0
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    assert queried[0].query in (tmp_path / "report.html").read_text()
    assert main(["search", str(built / "lib"), queried[0].query, "--min-score", "1.5", *films[:2]]) == 1
    assert capsys.readouterr().out.endswith("no such moment\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give one of a sentence, --image and --like"),
        (["a star", "--image", "x.png"], "give one of a sentence, --image and --like"),
        (["--like", "film.mp4"], "--like must be FILE@START-END"),
        (["--like", "film.mp4@1:x-2"], "--like must be FILE@START-END"),
        (["a star", "--since", "yesterday"], "--since must be a day"),
        (["a star", "--top", "0"], "--top must be 1 or more"),
        (["a star", "--export", "a.docx"], "cannot tell the format"),
        (["--like", "missing.mp4@1-2"], "missing.mp4 cannot be read"),
    ],
)
def test_wrong_options_are_one_sentence(
    built: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(built / "lib"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_no_video_is_overwritten(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film = next((built / "films").iterdir())
    before = film.read_bytes()
    for option, extra in (("--json", []), ("--export", ["--format", "csv"]), ("--join", [])):
        assert main(["search", str(built / "lib"), "a star", option, str(film), *extra]) == 2
        assert "is read by the same command" in capsys.readouterr().err
    outside = tmp_path / "outside.mp4"
    outside.write_bytes(before)
    assert main(["search", str(built / "lib"), "--like", f"{outside}@2-6", "--json", str(outside)]) == 2
    assert film.read_bytes() == outside.read_bytes() == before


def test_the_library_commands_print_what_they_did(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film, other, _ = sorted((built / "films").iterdir())
    lib = str(tmp_path / "lib")
    (tmp_path / "bad.mp4").write_bytes(b"bad")
    assert (
        main(["library", "add", lib, str(film), str(tmp_path / "bad.mp4"), "--model", "shapes", "--workers", "0"]) == 1
    )
    captured = capsys.readouterr()
    assert "1 added" in captured.out and "bad.mp4 is not a video" in captured.err
    assert main(["library", "add", lib, str(other), "--workers", "0"]) == 0  # the library knows its model
    assert main(["library", "status", lib, "--files", "--json", str(tmp_path / "s.json")]) == 0
    printed = capsys.readouterr().out
    assert "2 videos" in printed and str(film) in printed and "model shapes" in printed
    assert json.loads((tmp_path / "s.json").read_text())["paths"] == sorted([str(film), str(other)])
    assert main(["library", "verify", lib]) == 0
    assert main(["library", "remove", lib, str(film)]) == 0
    assert main(["library", "update", lib, "--workers", "0"]) == 1  # the bad file is still bad
    assert "1 unchanged" in capsys.readouterr().out
    os.unlink(next((tmp_path / "lib/features/videos").iterdir()))
    assert main(["library", "verify", lib]) == 1
    assert main(["library", "add", str(tmp_path), str(film)]) == 2
    assert "exists and is no library" in capsys.readouterr().err


def test_an_index_gives_what_the_comparison_with_all_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables_module, "INDEX_FROM", 3000)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((4000, 16)).astype(np.float16)
    tables = Tables(folder_at(tmp_path), 16, is_new=True)
    for video in range(40):
        tables.put_clips(video, vectors[video * 100 : (video + 1) * 100])
        if video == 20:
            tables.finish()
            assert not tables.is_indexed()
    tables.finish()
    assert tables.is_indexed() and tables.num_clips() == 4000
    query = vectors[1234].astype(np.float32)
    number, clip, cosine = tables.nearest(query, 10)
    assert (number[0], clip[0]) == (12, 34) and cosine[0] == pytest.approx(1, abs=1e-3)
    exact = tables.nearest(query, 10, exact=True)
    assert (
        len(
            {*zip(number.tolist(), clip.tolist(), strict=True)}
            & {*zip(exact[0].tolist(), exact[1].tolist(), strict=True)}
        )
        >= 8
    )
    among = tables.nearest(query, 10, among=[3, 4], exact=True)
    assert set(among[0].tolist()) <= {3, 4} and len(among[0]) == 10
    tables.put_clips(50, np.ones((5, 16), np.float16))  # not in the index yet
    assert tables.nearest(np.ones(16, np.float32), 1)[0].tolist() == [50]
    tables.drop_clips([12])
    assert 12 not in tables.nearest(query, 10)[0]


@pytest.mark.parametrize("name", ["still.jpg", "still.jpeg", "still.JPG", "still", "still.png"])
def test_a_jpeg_is_an_image_whatever_its_name(library: Library, built: Path, tmp_path: Path, name: str) -> None:
    film = sorted((built / "films").iterdir())[0]
    jpeg = tmp_path / name
    jpeg.write_bytes(as_jpeg(next(iter(frames_at(film, [3.0]))).image))
    assert library.search_image(jpeg, top=1)
