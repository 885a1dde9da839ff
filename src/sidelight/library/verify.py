"""Compare a library with what was written."""

from __future__ import annotations

from collections.abc import Sequence

from sidelight.features.store import FeatureStore
from sidelight.io.storage import MissingError
from sidelight.library.places import Places
from sidelight.library.tables import Tables, VideoRow, embeddings_digest


def faults_of(rows: Sequence[VideoRow], store: FeatureStore, tables: Tables) -> dict[str, str]:
    """Return place -> fault: damaged or missing features and embeddings, and files that are missing or changed.

    Args:
        rows: all files of the library.
        store: its features.
        tables: its embeddings.
    """
    faults = {f"features/{name}": fault for name, fault in store.verify().items()}
    counts = tables.clip_counts()
    for row in {row.number: row for row in rows}.values():
        if not store.has_video(row.key):
            name = f"features/{store.video_file(row.key).relative_to(store.folder)}"
            faults[name] = f"the features of {row.path} are missing; `sidelight library update` makes them again"
        if (stored := counts.get(row.number, 0)) != row.clips:
            advice = "`sidelight library update` makes them again"
            faults[row.path] = f"{stored} of {row.clips} embeddings are there; {advice}"
        elif embeddings_digest(tables.vectors([row.number])[row.number]) != row.digest:
            faults[row.path] = "its embeddings are not what was written; remove this file and add it again"
    places = Places()
    for row in rows:
        try:
            state = places.listed_state(row.path)
        except (MissingError, FileNotFoundError, NotADirectoryError):
            faults.setdefault(row.path, "the file is missing; `sidelight library update` follows or removes it")
        except OSError as error:
            faults.setdefault(row.path, str(error))
        else:
            if state != (row.size, row.modified):
                faults.setdefault(row.path, "the file was changed; `sidelight library update` reads it again")
    return faults
