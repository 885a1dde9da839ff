"""The tables of a library in LanceDB: the files with videos, and one embedding per clip.

Each change of a table is a new version, which appears complete or not at all, so a process that is killed leaves the
version before. The two tables change one after the other; :meth:`Tables.drop_unknown_clips` removes embeddings whose
file was not written yet.

Legend: T clips of a video, E width of the joint space, H clips that a search returns.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sidelight.core.messages import first_line
from sidelight.features.store import HalfFeatures
from sidelight.io.files import write_text
from sidelight.library.folder import Folder

if TYPE_CHECKING:
    import pyarrow

INDEX_FROM = 100_000
"""Clips from which the embeddings get an index; below, all of them are compared."""
READ_SHARE = 0.5
"""Share of the index's groups that a search reads. A sentence is far from all clips, and its nearest clips lie in many
groups: 8 % of the groups of a million synthetic embeddings hold 29 % of a sentence's nearest clips.
"""
REFINE = 2
"""How many times as many clips as wanted are compared again by their exact embeddings."""
_KEPT_VERSIONS = timedelta(minutes=10)
"""How long an old version of a table stays, for searches that read it."""
_TIDY_EVERY = 64
"""Changes of a table between two compactions; each change adds a file, and many small files slow every search."""
_CLIPS, _VIDEOS = "clips", "videos"
_INDEX_FILE = "tables/index.json"


@dataclass(frozen=True, kw_only=True)
class VideoRow:
    """One video file of a library."""

    id: int
    """Number of the row; stays while the file is moved or changed."""
    path: str
    """The absolute path."""
    key: str
    """Digest of the file's content, by which its features are stored."""
    number: int
    """Number of the content, which the embeddings of its clips carry; copies of a file share it."""
    size: int
    """Bytes of the file."""
    modified: int
    """Time of the file's last change, in ns since 1970."""
    duration: float
    """Seconds."""
    clips: int
    """Number of clips."""
    digest: str
    """Digest of the embeddings."""
    notes: tuple[str, ...] = ()
    """Sentences about the file's damage and its times."""


def embeddings_digest(vectors_TE: HalfFeatures) -> str:
    """Return 32 hex digits of embeddings."""
    return hashlib.blake2b(np.ascontiguousarray(vectors_TE).tobytes(), digest_size=16).hexdigest()


class Tables:
    """The two tables.

    Args:
        folder: the folder of the library; the tables lie in ``tables``.
        width: E.
        is_new: make the tables unless they exist.

    Raises:
        ValueError: if LanceDB is not installed, or a table is damaged or missing.
    """

    def __init__(self, folder: Folder, width: int, *, is_new: bool = False) -> None:
        self._folder, self.width = folder, width
        import pyarrow as pa

        lancedb = require_lancedb()
        self._changes = {_CLIPS: 0, _VIDEOS: 0}
        self._groups = -1, 1
        self._sample: tuple[tuple[int, int], npt.NDArray[np.float32]] | None = None
        self._rows: tuple[int, list[VideoRow]] = -1, []
        """Version of the table of files, and its rows."""
        clips = pa.schema(
            [
                pa.field("number", pa.int32(), nullable=False),
                pa.field("clip", pa.int32(), nullable=False),
                pa.field("vector", pa.list_(pa.float32(), width), nullable=False),
            ]
        )
        texts = {"path": pa.binary(), "key": pa.string(), "digest": pa.string(), "notes": pa.string()}
        numbers = dict.fromkeys(("id", "number", "size", "modified", "clips"), pa.int64())
        videos = pa.schema([*numbers.items(), *texts.items(), ("duration", pa.float64())])
        with self._sentences():
            database = lancedb.connect(folder.tables, storage_options=folder.table_options)
            if is_new:
                database.create_table(_CLIPS, schema=clips, exist_ok=True)
                database.create_table(_VIDEOS, schema=videos, exist_ok=True)
            # Made nowhere else: with empty tables in place of lost ones, an update would delete all features.
            self._clips = database.open_table(_CLIPS)
            self._videos = database.open_table(_VIDEOS)

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        """Turn errors of LanceDB, which are of many types, into one sentence."""
        try:
            yield
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            reason = first_line(error)[:200]
            if "No space left" in str(error):
                raise ValueError(
                    f"{self._folder.tables} cannot be written (no space left); free space and run the command again"
                ) from None
            raise ValueError(
                f"{self._folder.tables} is damaged or cannot be read ({reason}); {self._folder.advice}"
            ) from None

    def refresh(self) -> None:
        """Read the newest version of both tables."""
        with self._sentences():
            self._videos.checkout_latest()
            self._clips.checkout_latest()

    # --- videos -------------------------------------------------------------------------------------------------------

    def videos(self) -> list[VideoRow]:
        """Return the rows of all files, sorted by path. They are read once for each version of the table."""
        with self._sentences():
            version = self._videos.version
            if self._rows[0] != version:
                values = self._videos.to_arrow().to_pylist()
                for row in values:
                    row["path"], row["notes"] = os.fsdecode(row["path"]), tuple(json.loads(row["notes"]))
                self._rows = version, sorted((VideoRow(**row) for row in values), key=lambda row: row.path)
            return list(self._rows[1])

    def put_videos(self, rows: Sequence[VideoRow]) -> None:
        """Add rows, and replace rows of the same id; one version."""
        if not rows:
            return
        # A path is bytes: it may hold what is no text.
        values = [vars(row) | {"path": os.fsencode(row.path), "notes": json.dumps(row.notes)} for row in rows]
        with self._sentences():
            merge = self._videos.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(values)
        self._changed(_VIDEOS)

    def drop_videos(self, ids: Collection[int]) -> None:
        """Remove the rows of these ids; one version."""
        if ids:
            with self._sentences():
                self._videos.delete(f"id IN ({', '.join(map(str, map(int, ids)))})")
            self._changed(_VIDEOS)

    # --- clips --------------------------------------------------------------------------------------------------------

    def put_clips(self, number: int, vectors_TE: HalfFeatures) -> None:
        """Add the embeddings of all clips of a content; one version."""
        import pyarrow as pa

        count = len(vectors_TE)
        columns = {
            "number": pa.array(np.full(count, number, np.int32)),
            "clip": pa.array(np.arange(count, dtype=np.int32)),
            "vector": _as_lists(vectors_TE),
        }
        with self._sentences():
            self._clips.add(pa.table(columns, schema=self._clips.schema))
        self._changed(_CLIPS)

    def drop_clips(self, numbers: Collection[int]) -> None:
        """Remove the embeddings of these contents; one version."""
        if numbers:
            with self._sentences():
                self._clips.delete(_among(numbers))
            self._changed(_CLIPS)

    def clip_counts(self) -> dict[int, int]:
        """Return the number of embeddings of each content."""
        with self._sentences():
            column = self._clips.search().select(["number"]).to_arrow()["number"].to_numpy()
        numbers, counts = np.unique(column, return_counts=True)
        return dict(zip(numbers.tolist(), counts.tolist(), strict=True))

    def drop_unknown_clips(self, known: Collection[int]) -> None:
        """Remove embeddings that a killed process left: of contents that no file has."""
        self.drop_clips(self.clip_counts().keys() - set(known))

    def vectors(self, numbers: Collection[int]) -> dict[int, HalfFeatures]:
        """Return the embeddings (T, E) of each content that has some."""
        if not numbers:
            return {}
        with self._sentences():
            rows = self._clips.search().where(_among(numbers)).select(["number", "clip", "vector"]).to_arrow()
        number_H, clip_H = rows["number"].to_numpy(), rows["clip"].to_numpy()
        vectors_HE = _as_array(rows["vector"].combine_chunks(), self.width)
        order_H = np.lexsort((clip_H, number_H))
        numbers_N, starts = np.unique(number_H[order_H], return_index=True)
        parts = np.split(vectors_HE[order_H], starts[1:])
        return dict(zip(numbers_N.tolist(), parts, strict=bool(len(numbers_N))))

    def nearest(
        self,
        vector_E: npt.NDArray[np.float32],
        limit: int,
        *,
        among: Collection[int] | None = None,
        exact: bool = False,
        share: float = READ_SHARE,
        refine: int = REFINE,
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Return the clips whose embeddings are nearest to a vector, best first: number, clip and cosine, (H,) each.

        Args:
            vector_E: the vector.
            limit: most clips.
            among: contents to search; all unless given.
            exact: compare all embeddings, even if there is an index.
            share: share of the index's groups to read.
            refine: how many times as many clips are compared again by their exact embeddings.
        """
        groups = max(1, round(share * self._num_groups()))
        with self._sentences():
            query = self._clips.search(vector_E).distance_type("cosine").limit(limit)
            query = query.select(["number", "clip", "_distance"]).nprobes(groups).refine_factor(refine)
            if among is not None:
                query = query.where(_among(among), prefilter=True)
            if exact:
                query = query.bypass_vector_index()
            rows = query.to_arrow()
        cosine_H = 1 - rows["_distance"].to_numpy()
        return rows["number"].to_numpy(), rows["clip"].to_numpy(), cosine_H.astype(np.float32)

    def sample(self, count: int) -> npt.NDArray[np.float32]:
        """Return the embeddings of clips that are spread evenly over the table, (N, E); N is at most ``count``."""
        key = int(self._clips.version), count
        if self._sample is None or self._sample[0] != key:
            clips = self.num_clips()
            offsets = np.unique(np.linspace(0, max(0, clips - 1), min(count, clips)).astype(np.int64))
            with self._sentences():
                rows = self._clips.take_offsets(offsets.tolist()).select(["vector"]).to_arrow()
            self._sample = key, _as_array(rows["vector"].combine_chunks(), self.width).astype(np.float32)
        return self._sample[1]

    def num_clips(self) -> int:
        """Return the number of embeddings."""
        with self._sentences():
            return int(self._clips.count_rows())

    def is_indexed(self) -> bool:
        """Check whether there is an index."""
        with self._sentences():
            return bool(self._clips.list_indices())

    # --- upkeep -------------------------------------------------------------------------------------------------------

    def _changed(self, table: str) -> None:
        self._changes[table] += 1
        if self._changes[table] % _TIDY_EVERY == 0:
            self._compact()

    def _compact(self) -> None:
        with self._sentences():
            for table in (self._clips, self._videos):
                table.optimize(cleanup_older_than=_KEPT_VERSIONS)

    def finish(self) -> None:
        """Join small files, take new embeddings into the index, and build the index once there are enough clips.

        The index is built again when there are twice as many clips as at the last time: its groups are too large then.
        """
        if any(self._changes.values()):
            self._compact()
        self._changes = dict.fromkeys(self._changes, 0)
        if self.num_clips() >= max(INDEX_FROM, 2 * self._indexed_clips()):
            self.build_index()

    def _num_groups(self) -> int:
        """Return the number of groups of the index, if there is one. It is read once for each version."""
        version = self._clips.version
        if self._groups[0] != version:
            self._groups = version, _groups_for(self._indexed_clips() or self.num_clips())
        return self._groups[1]

    def _indexed_clips(self) -> int:
        """Return the number of clips when the index was built; 0 if there is none."""
        try:
            with self._folder.reading(_INDEX_FILE) as path:
                return int(json.loads(path.read_text())["clips"]) if path and self.is_indexed() else 0
        except (OSError, ValueError, KeyError, TypeError):  # the process was killed before it wrote the file
            return 0

    def build_index(self) -> None:
        """Build the index of the embeddings: groups of similar embeddings, of which a search reads a few."""
        from lancedb.index import IvfSq

        count = self.num_clips()
        with self._sentences():
            config = IvfSq(distance_type="cosine", num_partitions=_groups_for(count), sample_rate=32, max_iterations=10)
            self._clips.create_index("vector", config=config, replace=True)
        with self._folder.writing(_INDEX_FILE) as path:
            write_text(path, json.dumps({"clips": count}) + "\n")


def _groups_for(clips: int) -> int:
    """Return the number of groups of an index: as many groups as clips in each."""
    return max(1, math.isqrt(clips))


def require_lancedb() -> Any:
    """Import LanceDB and return it.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        import lancedb
    except ImportError:
        raise ValueError('a library needs LanceDB: pip install "sidelight[library]"') from None
    return lancedb


def _among(numbers: Iterable[int]) -> str:
    return f"number IN ({', '.join(map(str, map(int, numbers)))})"


def _as_lists(vectors_TE: HalfFeatures) -> pyarrow.FixedSizeListArray:
    """Return (T, E) as a column of T lists of float32: LanceDB builds an index of float16 three times as slowly."""
    import pyarrow as pa

    values = pa.array(np.ascontiguousarray(vectors_TE, dtype=np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(values, vectors_TE.shape[1])


def _as_array(column: pyarrow.FixedSizeListArray, width: int) -> HalfFeatures:
    """Return a column of lists as (H, E)."""
    array_HE = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    halves_HE: HalfFeatures = array_HE.astype(np.float16)  # as they were before they became float32
    return halves_HE
