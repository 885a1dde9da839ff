"""A library that a Ray cluster read is the same to the bit as one that this machine read."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidelight.cli.main import main
from sidelight.library import Library
from tests.library.test_kill import contents


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray: Any = pytest.importorskip("ray", reason="Ray is not installed: pip install 'sidelight[ray]'")
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_the_same_library(cluster: None, built: Path, films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = films / "bad.mp4"
    bad.write_text("no video")
    local = Library.create(films.parent / "local", model="shapes", device="cpu")
    failed = local.add(films, workers=0).failed
    assert list(failed) == [str(bad)]
    lib = films.parent / "ray"
    assert main(["library", "add", str(lib), str(films), "--model", "shapes", "--engine", "ray", "--actors", "1"]) == 1
    assert "3 added" in capsys.readouterr().out
    library = Library.open(lib, device="cpu")
    assert contents(library) == contents(local) and library.failures() == local.failures() == failed
    assert library.verify() == {}
    # An update reads on the cluster what is new or missing, and nothing else.
    first, second, third = sorted(films.glob("shapes*"))
    library.store.delete_video(next(row.key for row in library.files() if row.path == str(first)))
    second.rename(films / "moved.mp4")
    bad.unlink()
    changes = library.update(engine="ray")
    assert changes.moved == [str(films / "moved.mp4")] and not changes.failed
    assert sorted(changes.unchanged) == sorted([str(first), str(third)])
    local.update(workers=0)
    assert contents(library) == contents(local) and library.verify() == {}


@pytest.mark.skipif(os.name != "posix", reason="other systems refuse such names")
@pytest.mark.filterwarnings("ignore")
def test_a_name_that_is_no_text_fails_alone(cluster: None, films: Path) -> None:
    first, second, third = sorted(films.iterdir())
    third.unlink()
    try:
        hostile = second.rename(films / os.fsdecode(b"\xff.mp4"))
    except OSError:
        pytest.skip("this file system refuses the name")
    library = Library.create(films.parent / "hostile", model="shapes", device="cpu")
    changes = library.add(films, engine="ray", actors=1)
    assert changes.added == [str(first)] and "rename the file" in changes.failed[str(hostile)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--actors", "2"], "--actors says how many"),
        (["--engine", "ray", "--device", "cpu"], "--device is for --engine local"),
        (["--engine", "ray", "--actors", "0"], "--actors must be 1 or more"),
    ],
)
def test_wrong_options_are_one_sentence(
    built: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["add", str(built / "lib"), str(built / "films")], ["update", str(built / "lib")]):
        assert main(["library", *command, *options]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
