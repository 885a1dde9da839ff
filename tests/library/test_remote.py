"""A library in object storage, and videos there: the same answers, the same library after any kill, clear errors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from sidelight.cli.main import main
from sidelight.features.remote import RemoteStore
from sidelight.io.storage import delete_object, list_files, put_file, read_object, write_object
from sidelight.library import Library, Where
from sidelight.library.calibration import Calibration
from sidelight.library.folder import folder_at
from sidelight.library.tables import Tables
from tests.library.bucket import s3_server
from tests.library.test_calibration import RIGHT
from tests.library.test_kill import SCRIPT


@pytest.fixture(scope="module")
def storage() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, s3_server(patch) as bucket:
        yield bucket


@pytest.fixture
def bucket(storage: str) -> Iterator[str]:
    """Return the address of an empty bucket."""
    yield storage
    if names := fsspec.filesystem("s3").find(storage):
        fsspec.filesystem("s3").rm(names)


@pytest.fixture
def library(bucket: str, films: Path) -> Library:
    """Return a library in the bucket, of films of this machine."""
    library = Library.create(f"{bucket}/films.lib", model="shapes", device="cpu")
    assert len(library.add(films, workers=0).added) == 3
    return library


@pytest.fixture
def uploaded(bucket: str, films: Path) -> list[str]:
    """Put the films into the bucket, and return their addresses."""
    for film in sorted(films.iterdir()):
        put_file(film, f"{bucket}/films/{film.name}")
    return list_files(f"{bucket}/films")


def contents(library: Library) -> dict[str, Any]:
    """Return what a library holds, by name of the file, and check that it holds nothing else."""
    rows, result = library.files(), {}
    for row in rows:
        features = library._folder.store(library._manifest.features).video(row.key, check=True)
        vectors = library._tables.vectors([row.number])[row.number]
        about = (row.key, row.size, row.duration, row.clips, row.digest, row.notes)
        result[row.path.rpartition("/")[2]] = (*about, vectors.tobytes(), features.video_KTD.tobytes())
    assert set(library._tables.clip_counts()) == {row.number for row in rows}
    if library.place.startswith("s3://"):
        assert len(list_files(f"{library.place}/features/videos")) == len({row.key for row in rows})
    return result


def test_the_same_library_and_answers_as_on_this_machine(library: Library, built: Path, films: Path) -> None:
    local = Library.open(built / "lib", device="cpu")
    assert contents(library) == contents(local) and library.verify() == {}
    expected, result = (each.search("a red star spins", top=5) for each in (local, library))
    assert [(hit.moment, hit.relevance) for hit in result] == [(hit.moment, hit.relevance) for hit in expected]
    assert {hit.video for hit in result} <= {str(film) for film in films.iterdir()}
    status = library.status()
    assert (status.files, status.missing, status.failed) == (3, (), {}) and status.bytes > 10_000
    assert read_object(f"{library.place}/.lock") is None


def test_a_search_fetches_the_candidates_only(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, fetched = Library.open(library.place, device="cpu"), list[str]()
    fetch = RemoteStore._fetch

    def counted(self: RemoteStore, name: str) -> None:
        fetched.append(name)
        fetch(self, name)

    monkeypatch.setattr(RemoteStore, "_fetch", counted)
    hit = reader.search("a star", candidates=1)[0]
    key = next(row.key for row in reader.files() if row.path == hit.video)
    assert set(fetched) == {f"{key}.safetensors"}
    assert isinstance(reader.store, RemoteStore) and "_uploaded_videos" not in vars(reader.store)
    # Features that were read stay on this machine up to a limit.
    monkeypatch.setattr(RemoteStore, "staged_bytes", 0)
    assert len(reader.search("a star", top=50)) > 3
    assert len(list((reader.store.folder / "videos").iterdir())) == 1


def test_a_library_follows_its_files(library: Library, films: Path) -> None:
    first, second, third = sorted(films.iterdir())
    before = contents(library)
    first.rename(films / "moved.mp4")
    third.unlink()
    shutil.copy(second, films / "copy.mp4")
    (films / "broken.mp4").write_bytes(b"no video")
    changes = library.update(workers=0)
    assert (len(changes.moved), len(changes.removed), len(changes.added)) == (1, 1, 1)
    assert list(changes.failed) == [str(films / "broken.mp4")] == list(library.failures())
    after = contents(library)
    assert after["moved.mp4"] == before[first.name] and after["copy.mp4"] == after[second.name]
    assert library.remove(films / "moved.mp4") and not library.update(workers=0).added
    reader = Library.open(library.place, device="cpu")
    assert len(reader.files()) == 2 and reader.verify() == {} and reader.search("a star")
    delete_object(list_files(f"{library.place}/features/videos")[0])
    assert "are missing" in next(iter(Library.open(library.place).verify().values()))
    assert not Library.open(library.place, device="cpu").update(workers=0).removed
    assert reader.verify() == {} and Library.open(library.place).verify() == {}


def test_damage_is_found(library: Library) -> None:
    address = list_files(f"{library.place}/features/videos")[0]
    content = bytearray(read_object(address) or b"")
    content[-3] ^= 1
    write_object(address, bytes(content))
    (fault,) = Library.open(library.place).verify().items()
    assert fault[0] == f"features/videos/{address.rpartition('/')[2]}" and "digest" in fault[1]
    write_object(f"{library.place}/library.json", b"{")
    with pytest.raises(ValueError, match=r"s3://bucket/films.lib/library.json"):
        Library.open(library.place)


def test_videos_may_lie_in_object_storage(bucket: str, uploaded: list[str], built: Path, tmp_path: Path) -> None:
    lib = f"{bucket}/films.lib"
    library = Library.create(lib, model="shapes", device="cpu")
    assert library.add(f"{bucket}/films/*.mp4", workers=0).added == uploaded
    assert contents(library) == contents(Library.open(built / "lib"))
    assert library.add([f"{bucket}/films/", uploaded[0]], workers=0).unchanged == uploaded
    hit = library.search("a star", top=1)[0]
    assert hit.video in uploaded and library.search("a star", where=Where(folder=f"{bucket}/films"))
    assert library.search_like(hit.video, hit.moment.start, hit.moment.end).query.startswith(f"{hit.video}@")
    assert library.verify() == {} and library.status().missing == ()
    # Moved, changed, copied and deleted objects are followed as files are.
    s3 = fsspec.filesystem("s3")
    s3.mv(uploaded[0], f"{bucket}/films/moved.mp4")
    s3.copy(uploaded[1], uploaded[2])
    changes = library.update(workers=0)
    assert changes.moved == [f"{bucket}/films/moved.mp4"] and changes.changed == [uploaded[2]]
    s3.rm(uploaded[1])
    assert library.verify()[uploaded[1]].startswith("the file is missing")
    assert library.status().missing == (uploaded[1],)
    assert library.update(workers=0).removed == [uploaded[1]]
    # Nothing is lost while a folder is empty or gone.
    s3.rm([uploaded[2], f"{bucket}/films/moved.mp4"])
    changes = library.update(workers=0)
    assert len(changes.out_of_reach) == 2 and changes.problems and len(library.files()) == 2
    assert sorted(library.remove(f"{bucket}/films/")) == [f"{bucket}/films/moved.mp4", uploaded[2]]
    assert not library.files()


def test_a_local_library_of_videos_in_object_storage(
    bucket: str, uploaded: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_object(f"{bucket}/films/bad.mp4", b"no video")
    lib, options = str(tmp_path / "lib"), ["--model", "shapes", "--device", "cpu", "--workers", "1"]
    assert main(["library", "add", lib, f"{bucket}/films/", *options]) == 1
    assert f"failed: {bucket}/films/bad.mp4: {bucket}/films/bad.mp4 is not a video" in capsys.readouterr().err
    assert main(["library", "status", lib, "--files"]) == 0 and uploaded[1] in capsys.readouterr().out
    assert main(["search", lib, "a star", "--json", str(tmp_path / "a.json"), "--device", "cpu"]) == 0
    assert {hit["video"] for hit in json.loads((tmp_path / "a.json").read_text())["hits"]} <= set(uploaded)
    assert main(["library", "remove", lib, uploaded[0]]) == 0
    assert main(["library", "update", lib, "--offline", "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    assert "out of reach, kept" in captured.err and "must not use the network" in captured.err
    assert len(Library.open(lib).files()) == 2


def test_two_writers_are_refused(library: Library, films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sidelight.io.remote_lock import only_remote_writer

    with only_remote_writer(library.place):
        assert main(["library", "update", library.place, "--device", "cpu"]) == 2
        error = capsys.readouterr().err
        assert f"another process writes into {library.place}: number {os.getpid()} of" in error
        assert f"delete {library.place}/.lock" in error and error.count("\n") == 1
        assert len(Library.open(library.place, device="cpu").search("a star", top=1)) == 1
    assert len(library.add(films, workers=0).unchanged) == 3


def test_a_writer_whose_lock_is_gone_stops(library: Library, films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sidelight.io import remote_lock

    shutil.copy(sorted(films.iterdir())[0], films / "copy.mp4")
    before = contents(library)
    monkeypatch.setattr(remote_lock, "LEFT_BEHIND_AFTER", 0.0)  # checks each time
    monkeypatch.setattr(Tables, "drop_unknown_clips", lambda self, known: delete_object(f"{library.place}/.lock"))
    with pytest.raises(ValueError, match="no longer holds the lock"):
        library.update(workers=0)
    assert contents(library) == before


@pytest.mark.slow
def test_an_add_that_was_killed_loses_nothing(bucket: str, built: Path, films: Path) -> None:
    """Kill at some writes of the first videos; the lock that each leaves is deleted, as the message says."""
    lib, seen = f"{bucket}/killed.lib", 0
    expected = contents(Library.open(built / "lib"))
    arguments = ["library", "add", lib, str(films), "--model", "shapes", "--device", "cpu", "--workers", "0"]
    for write in (2, 6, 8, 0):
        command = [sys.executable, str(SCRIPT), str(write), *arguments]
        process = subprocess.run(command, capture_output=True, text=True, timeout=240, env={**os.environ})
        assert process.returncode == (-signal.SIGKILL if write else 0), process.stderr
        if read_object(f"{lib}/library.json") is not None:
            reader = Library.open(lib, device="cpu")
            held = len(reader.files())
            assert held >= seen and reader.search("a star") is not None
            seen = held
        if write:
            with pytest.raises(ValueError, match="another process writes into"), reader._folder.only_writer():
                pytest.fail("the killed process left no lock")
            delete_object(f"{lib}/.lock")
    assert contents(Library.open(lib)) == expected and Library.open(lib).verify() == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "s3://no-such-bucket/lib", "a star"], "s3://no-such-bucket/lib is no library"),
        (["library", "add", "s3://no-such-bucket/lib", "FILM"], "The specified bucket does not exist"),
        (["library", "add", "LIB", "s3://no-such-bucket/films/"], "s3://no-such-bucket/films/ does not exist"),
        (["library", "add", "BUCKET/films", "FILM"], "exists and is no library"),
        (["library", "add", "BUCKET", "FILM"], "is a whole bucket"),
        (["library", "add", "memory://a/b", "FILM"], "lies in a folder of this machine, or at s3://, gs://, az://"),
        (["search", "BUCKET/none.lib", "a star"], "is no library"),
        (["search", "LIB", "a star", "--offline"], "must not use the network"),
        (["library", "add", "LIB", "BUCKET/films/*.avi"], "matches no video files"),
    ],
)
def test_mistakes_are_one_sentence(
    bucket: str, films: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    film = sorted(films.iterdir())[0]
    put_file(film, f"{bucket}/films/{film.name}")
    names = {"LIB": f"{bucket}/films.lib", "FILM": str(film), "BUCKET": bucket}
    words = [
        argument.replace("BUCKET", bucket) if "/" in argument else names.get(argument, argument)
        for argument in arguments
    ]
    code = main([*words, *(["--model", "shapes", "--device", "cpu"] if words[1] == "add" else [])])
    error = capsys.readouterr().err
    assert code == 2 and message in error and error.count("\n") == 1, error


def test_no_access_is_one_sentence(
    library: Library, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    s3 = type(fsspec.filesystem("s3"))
    with monkeypatch.context() as patch:
        for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
            patch.setenv(name, str(tmp_path / "none"))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        s3.clear_instance_cache()
        for command in (["search", library.place, "a star"], ["library", "update", library.place]):
            assert main(command) == 2
            error = capsys.readouterr().err
            assert "cannot be read" in error and "check the address and the access" in error and error.count("\n") == 1
    s3.clear_instance_cache()


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(address: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", fail)
    assert main(["search", "s3://bucket/films.lib", "a star"]) == 2
    error = capsys.readouterr().err
    assert "pip install 'sidelight[s3]'" in error and error.count("\n") == 1


def test_a_calibration_lies_beside_the_tables(bucket: str) -> None:
    folder = folder_at(f"{bucket}/some.lib")
    assert Calibration.read(folder) is None
    RIGHT.write(folder)
    assert Calibration.read(folder) == RIGHT
    write_object(f"{folder.name}/calibration.json", b"[]")
    with pytest.raises(ValueError, match=r"s3://bucket/some.lib/calibration.json"):
        Calibration.read(folder)


def test_lancedb_reads_what_the_storage_of_the_features_reads(bucket: str) -> None:
    """Check that an endpoint of one name in the environment leads both to the same storage."""
    folder = folder_at(f"{bucket}/some.lib")
    assert folder.table_options["allow_http"] == "true" and folder.table_options["aws_region"] == "us-east-1"
    tables = Tables(folder, 4, is_new=True)
    tables.put_clips(1, np.eye(4, dtype=np.float16))
    assert tables.nearest(np.array([0, 1, 0, 0], np.float32), 1)[1].tolist() == [1]
    tables.build_index()
    assert tables.is_indexed() and json.loads(read_object(f"{folder.tables}/index.json") or b"") == {"clips": 4}
    assert any(name.endswith(".manifest") for name in fsspec.filesystem("s3").find(folder.tables))
