"""A library follows its files, finds damage, and refuses what does not fit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidelight import Grounder, SpecMismatchError
from sidelight.cli.main import main
from sidelight.io.files import only_writer
from sidelight.library import Library, Where
from sidelight.library.folder import folder_at
from sidelight.library.manifest import Manifest


def names(paths: list[str] | tuple[str, ...]) -> list[str]:
    return sorted(Path(path).name for path in paths)


def contents(library: Library) -> dict[str, Any]:
    """Return what a library holds, by the content of the videos: rows without their numbers, features, embeddings."""
    rows = library.files()
    result = {}
    for row in rows:
        vectors = library._tables.vectors([row.number])[row.number]
        features = library.store.video_file(row.key).read_bytes()
        result[row.path] = (row.key, row.size, row.duration, row.clips, row.digest, vectors.tobytes(), features)
    assert set(library._tables.clip_counts()) == {row.number for row in rows}
    assert len(list((library.store.folder / "videos").iterdir())) == len({row.key for row in rows})
    return result


def encoded_videos(library: Library, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the clips that the backbone encodes."""
    backbone, clips = type(library.grounder.backbone), list[int]()
    encode = backbone.encode_video

    def counted(self: Any, frames: Any) -> Any:
        clips.append(len(frames))
        return encode(self, frames)

    monkeypatch.setattr(backbone, "encode_video", counted)
    return clips


def test_features_are_those_of_a_single_video(library: Library, films: Path) -> None:
    film = sorted(films.iterdir())[0]
    row = next(row for row in library.files() if row.path == str(film))
    alone = Grounder.from_pretrained("shapes", cache=None, device="cpu").features(film)
    np.testing.assert_array_equal(library.store.video(row.key).video_KTD, alone.video_KTD)
    joint = Grounder.from_pretrained("zero-shot/shapes", cache=None, device="cpu").features(film)
    np.testing.assert_array_equal(library._tables.vectors([row.number])[row.number], joint.video_KTD[0])
    assert (row.clips, row.duration) == (alone.timeline.num_clips, alone.timeline.duration)


def test_nothing_is_read_twice(library: Library, films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips, before = encoded_videos(library, monkeypatch), contents(library)
    assert len(library.add(films, workers=0).unchanged) == 3
    os.utime(sorted(films.iterdir())[0])  # the same content at another time
    assert len(library.update(workers=0).unchanged) == 3
    assert contents(library) == before and not clips


def test_an_update_follows_files(library: Library, films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = sorted(films.iterdir())
    before = contents(library)
    clips = encoded_videos(library, monkeypatch)
    first.rename(films / "renamed.mp4")
    changes = library.update(workers=0)
    assert (names(changes.moved), changes.removed, changes.added) == (["renamed.mp4"], [], []) and not clips
    after = contents(library)
    assert after[str(films / "renamed.mp4")] == before[str(first)] and str(first) not in after
    shutil.copy(third, films / "copy.mp4")
    changes = library.update(workers=0)
    assert names(changes.added) == ["copy.mp4"] and not clips
    assert (library.status().files, library.status().videos) == (4, 3)
    third.unlink()  # its content is still in the copy
    assert names(library.update(workers=0).removed) == [third.name] and not clips
    shutil.copy(second, films / "renamed.mp4")
    changes = library.update(workers=0)
    assert names(changes.changed) == ["renamed.mp4"] and not clips
    assert contents(library)[str(films / "renamed.mp4")][0] == before[str(second)][0]
    assert library.verify() == {}


def test_a_moved_folder_is_found_where_the_user_says(library: Library, films: Path) -> None:
    moved = films.rename(films.with_name("elsewhere"))
    changes = library.update(workers=0)
    assert len(changes.out_of_reach) == 3 and not changes.removed and len(changes.problems) == 1
    assert len(library.files()) == 3
    changes = library.update([moved], workers=0)
    assert len(changes.moved) == 3 and not changes.out_of_reach
    assert library.verify() == {}


def test_an_empty_folder_of_a_drive_loses_nothing(library: Library, films: Path) -> None:
    for film in films.iterdir():
        film.unlink()
    changes = library.update(workers=0)
    assert len(changes.out_of_reach) == 3 and not changes.removed and len(library.files()) == 3


def test_removed_videos_stay_away_until_they_are_added(library: Library, films: Path) -> None:
    first, *_ = sorted(films.iterdir())
    assert library.remove(first) == [str(first)] and first.exists()
    assert len(contents(library)) == 2
    assert not library.update(workers=0).added
    assert names(library.add(films, workers=0).added) == [first.name]
    with pytest.raises(ValueError, match=r"nowhere\.mp4 is not in the library"):
        library.remove([first, films / "nowhere.mp4"])
    assert len(library.files()) == 3
    assert len(library.remove(films)) == 3 and contents(library) == {}
    with pytest.raises(ValueError, match="is not in the library"):
        library.remove(str(films)[:-1])  # no folder, but the beginning of a path


def test_a_broken_video_stops_no_other(films: Path) -> None:
    broken = films / "broken.mp4"
    broken.write_bytes(b"no video")
    library = Library.create(films.parent / "lib", model="shapes", device="cpu")
    changes = library.add(films, workers=0)
    assert len(changes.added) == 3 and names(list(changes.failed)) == ["broken.mp4"]
    assert "is not a video" in library.status().failed[str(broken)]
    shutil.copy(sorted(films.glob("shapes*"))[0], broken)
    assert names(library.update(workers=0).added) == ["broken.mp4"] and not library.failures()
    broken.write_bytes(b"no video any more")
    assert list(library.update(workers=0).failed) == [str(broken)]
    assert len(library.files()) == 3 and library.verify() == {}


def test_verification_finds_damage(library: Library, films: Path) -> None:
    row, other, third = library.files()
    path = library.store.video_file(row.key)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    library._tables.drop_clips([other.number])
    os.utime(third.path)
    faults = library.verify()
    assert "digest" in faults[f"features/videos/{path.name}"]
    assert "0 of" in faults[other.path] and "changed" in faults[third.path] and len(faults) == 3
    path.unlink()
    assert "missing" in library.verify()[f"features/videos/{path.name}"]
    changes = library.update(workers=0)  # makes again what is missing
    assert not changes.failed and library.verify() == {}


def test_verification_finds_changed_embeddings(library: Library) -> None:
    row = library.files()[0]
    vectors = library._tables.vectors([row.number])[row.number]
    library._tables.drop_clips([row.number])
    library._tables.put_clips(row.number, vectors[::-1])
    assert "not what was written" in library.verify()[row.path]


def test_damaged_tables_are_one_sentence(library: Library) -> None:
    for path in (Path(library.place) / "tables").rglob("*.lance"):
        if path.is_file():
            path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"tables is damaged or cannot be read .*; make a new library"):
        Library.open(library.place).verify()


def test_another_model_is_refused(built: Path) -> None:
    with pytest.raises(SpecMismatchError, match="pooling is 'joint', expected 'attention'"):
        Library.open(built / "lib", model="zero-shot/shapes")
    with pytest.raises(SpecMismatchError, match="another feature spec"):
        Library.create(built / "lib", model="zero-shot/shapes")
    assert Library.open(built / "lib", model="shapes").status().files == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "sidelight.library/2"}, "expected format 'sidelight.library/1', got 'sidelight.library/2'"),
        ({"format": None}, "expected format"),
        ({"model": 3}, "is damaged"),
        ({"features": {}}, "is damaged"),
        ({"sources": "films"}, "is damaged"),
        ({"more": 1}, "is damaged"),
    ],
)
def test_other_formats_are_refused(built: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    values = json.loads((built / "lib" / "library.json").read_text())
    (tmp_path / "library.json").write_text(json.dumps(values | change))
    with pytest.raises(ValueError, match=message):
        Manifest.read(folder_at(tmp_path))


@pytest.mark.parametrize("place", ["", "missing", "file"])
def test_other_folders_are_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is no library"):
        Library.open(tmp_path / place)
    if place != "missing":
        with pytest.raises(ValueError, match="exists and is no library"):
            Library.create(tmp_path / place, model="shapes")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["it's.mp4", "a'); DROP TABLE videos;--.mp4", "ü\n%.mp4", os.fsdecode(b"\xff.mp4")])
def test_hostile_names_are_names(films: Path, name: str) -> None:
    film = sorted(films.iterdir())[0]
    try:
        film.rename(films / name)
    except OSError:
        pytest.skip("this file system refuses the name")
    library = Library.create(films.parent / "lib", model="shapes", device="cpu")
    assert str(films / name) in library.add(films / name, workers=0).added
    library.add(films, workers=0)
    (films / name).rename(films / f"other {name}")
    assert library.update(workers=0).moved == [str(films / f"other {name}")]
    assert library.search("a red star", top=1)
    assert library.remove(films / f"other {name}") == [str(films / f"other {name}")]
    assert len(library.files()) == 2 and library.verify() == {}


def test_two_folders_may_have_a_file_of_the_same_name(library: Library, films: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.mkdir()
    first, second, _ = sorted(films.iterdir())
    shutil.copy(second, more / first.name)
    assert library.add(more, workers=0).added == [str(more / first.name)]
    assert len(library.files()) == 4


def test_addresses_of_the_web_are_refused(library: Library) -> None:
    for address in ("https://host/a.mp4", "http://host/*.mp4"):
        with pytest.raises(ValueError, match=r"does not say when its file changes; .*copy it first"):
            library.add(address)


def test_a_file_address_is_a_path(films: Path) -> None:
    library = Library.create(f"file://{films.parent}/lib", model="shapes", device="cpu")
    assert library.place == str(films.parent / "lib") and (films.parent / "lib" / "library.json").is_file()
    first = sorted(films.iterdir())[0]
    assert library.add(f"file://{first}", workers=0).added == [str(first)]
    assert library.search("a star", where=Where(folder=f"file://{films}"))
    assert library.remove(f"file://{films}") == [str(first)]


@pytest.mark.parametrize("place", ["memory://bucket/lib", "http://host/lib", "s3a://bucket/lib", "s3://bucket"])
def test_a_library_lies_where_lancedb_can_read_it(place: str) -> None:
    with pytest.raises(ValueError, match=r"lies in a folder of this machine, or at s3://|is a whole bucket"):
        Library.create(place, model="shapes")


@pytest.mark.parametrize("options", [{"engine": "local", "actors": 2}, {"engine": "other"}, {"workers": -1}])
def test_wrong_engines_are_refused(library: Library, films: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"actors is for|must be local or ray|must be 0 or more"):
        library.add(films, **options)


def test_two_writers_are_refused(library: Library, films: Path) -> None:
    arguments = ["library", "remove", library.place, "x"]
    script = f"from sidelight.cli.main import main; raise SystemExit(main({arguments!r}))"
    with only_writer(library.place, option="LIB"):
        other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert other.returncode == 2 and "another process" in other.stderr
    errors: list[str] = []

    def add() -> None:
        try:
            library.add(films, workers=0)
        except ValueError as error:
            errors.append(str(error))

    with folder_at(library.place).only_writer():
        thread = threading.Thread(target=add)
        thread.start()
        thread.join()
    assert len(errors) == 1 and "another thread writes" in errors[0]
    assert len(library.add(films, workers=0).unchanged) == 3


def test_a_reader_sees_what_a_writer_added(built: Path, library: Library, films: Path) -> None:
    reader = Library.open(library.place, device="cpu")
    assert len(reader.files()) == 3
    library.remove(sorted(films.iterdir())[0])
    assert len(reader.files()) == 2
    assert reader.search("a red star spins", top=50) and len({hit.video for hit in reader.search("a star")}) <= 2


def test_lancedb_is_named_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(ValueError, match=r'pip install "sidelight\[library\]"'):
        Library.create(tmp_path / "lib", model="shapes")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["search", str(tmp_path), "a star"]) == 2
    assert 'a library needs LanceDB: pip install "sidelight[library]"' in capsys.readouterr().err


def test_lost_tables_are_an_error_and_no_empty_library(library: Library, films: Path) -> None:
    features = sorted((films.parent / "lib" / "features" / "videos").iterdir())
    shutil.rmtree(films.parent / "lib" / "tables")
    with pytest.raises(ValueError, match="tables is damaged or cannot be read"):
        Library.open(films.parent / "lib", device="cpu").update()
    assert sorted((films.parent / "lib" / "features" / "videos").iterdir()) == features


def test_a_full_disk_is_no_damage(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(library._tables._videos, "checkout_latest", full)
    with pytest.raises(ValueError, match=r"cannot be written .* free space"):
        library.files()
