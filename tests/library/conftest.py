"""A small drawn world, a library of it, and helpers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sidelight.library import Library

pytest.importorskip("lancedb", reason='needs LanceDB: pip install "sidelight[library]"')


@pytest.fixture(scope="session")
def built(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the films of tiny_world (in films/) and a library of them (lib). Read only: copy it."""
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(tiny_world / "videos", folder / "films")
    library = Library.create(folder / "lib", model="shapes", device="cpu")
    changes = library.add(folder / "films", workers=0)
    assert len(changes.added) == 3 and not changes.failed
    return folder


@pytest.fixture
def films(built: Path, tmp_path: Path) -> Path:
    """Return a folder with copies of the films, of the same times of change."""
    for film in sorted((built / "films").iterdir()):
        (tmp_path / "films").mkdir(exist_ok=True)
        shutil.copy2(film, tmp_path / "films" / film.name)
    return tmp_path / "films"


@pytest.fixture
def library(films: Path) -> Library:
    """Return a library of the films in the test's own folder."""
    library = Library.create(films.parent / "lib", model="shapes", device="cpu")
    library.add(films, workers=0)
    return library
