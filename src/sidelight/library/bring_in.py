"""Bring the rows of a library up to date with files: new, changed, moved and broken ones.

A video is written in three steps: its features, its embeddings, then its row. A process that is killed in between
leaves features or embeddings without a row, which the next call replaces or removes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from sidelight.core.messages import first_line
from sidelight.features.store import FeatureStore
from sidelight.io.storage import State
from sidelight.library.answers import Changes
from sidelight.library.folder import Check
from sidelight.library.ingest import Encoded, Engine
from sidelight.library.places import Places, state_now
from sidelight.library.tables import Tables, VideoRow, embeddings_digest


class BringIn:
    """One run over files.

    Args:
        store: the features of the library.
        tables: its tables.
        engine: what reads videos.
        changes: filled while the files are read.
        places: the sizes and times of files.
        check: called before each step that writes a video.
        doubt: returns why the model may know nothing about a video file; None if it may.
    """

    def __init__(
        self,
        store: FeatureStore,
        tables: Tables,
        engine: Engine,
        changes: Changes,
        *,
        places: Places,
        check: Check,
        doubt: Callable[[str], str | None],
    ) -> None:
        self._store, self._tables, self._engine = store, tables, engine
        self._places, self._check, self._doubt = places, check, doubt
        self.changes = changes
        rows = tables.videos()
        tables.drop_unknown_clips([row.number for row in rows])
        self._counts = tables.clip_counts()
        self._rows = {row.path: row for row in rows}
        self._next_id = max((row.id for row in rows), default=0) + 1
        self._next_number = max((row.number for row in rows), default=0) + 1

    def run(self, paths: Iterable[str]) -> Iterator[str]:
        """Bring files in, a few at once, and yield each when it is done."""
        waiting = iter(paths)
        while group := list(islice(waiting, self._engine.files_at_once)):
            yield from self._run_group(group)

    def _run_group(self, group: Sequence[str]) -> Iterator[str]:
        states: dict[str, State] = {}
        for path in group:
            if (state := self._state_to_read(path)) is None:
                yield path
            else:
                states[path] = state
        paths_of: dict[str, list[str]] = {}
        for path, digest in zip(states, self._engine.digests(list(states)) if states else (), strict=True):
            if digest.error:
                self.changes.failed[path] = digest.error  # its row stays: nobody knows what the file holds
                yield path
            elif (known := self._whole_content(digest.key)) is not None:
                self._put_row(path, known, states[path])
                yield path
            else:
                paths_of.setdefault(digest.key, []).append(path)
        files = {key: paths[0] for key, paths in paths_of.items()}
        for video in self._engine.encode(files, self._store.folder) if files else ():
            paths = paths_of[video.key]
            error = video.error
            if not error and state_now(paths[0]) != states[paths[0]]:
                error = f"{paths[0]} changed while it was read; add it again"
            row = None if error else self._put_content(video, paths[0], states[paths[0]])
            for path in paths:
                if row is None:
                    self._fail(path, error or self.changes.failed[paths[0]])
                else:
                    self._put_row(path, row, states[path])
                yield path

    def _state_to_read(self, path: str) -> State | None:
        """Return size and time of a file before it is read; None if nothing is to be done with it."""
        row = self._rows.get(path)
        try:
            if row is not None and (row.size, row.modified) == self._places.listed_state(path) and self._is_whole(row):
                self.changes.unchanged.append(path)
                return None
            return state_now(path)
        except OSError as error:
            self.changes.failed[path] = first_line(error)  # its row stays: nobody knows what the file holds
            return None

    def _is_whole(self, row: VideoRow) -> bool:
        """Check whether the features and embeddings of a row are complete; only a verification checks the numbers."""
        return self._counts.get(row.number) == row.clips and self._store.is_whole(row.key)

    def _whole_content(self, key: str) -> VideoRow | None:
        """Return a row with this content whose features and embeddings are complete."""
        return next((row for row in self._rows.values() if row.key == key and self._is_whole(row)), None)

    def _put_content(self, video: Encoded, path: str, state: State) -> VideoRow | None:
        """Write features and embeddings, and return the row that belongs to them; None if they cannot be kept."""
        assert video.features is not None and video.joint_TE is not None
        self._check()
        damaged = next((row for row in self._rows.values() if row.key == video.key), None)
        if damaged is not None:
            number = damaged.number
            self._tables.drop_clips([number])
        else:
            number, self._next_number = self._next_number, self._next_number + 1
        try:
            self._store.put_video(video.key, video.features)
        except ValueError as error:
            self._fail(path, first_line(error))
            return None
        self._check()  # an upload may take long
        self._tables.put_clips(number, video.joint_TE)
        self._counts[number] = len(video.joint_TE)
        return VideoRow(
            id=0,
            path=path,
            key=video.key,
            number=number,
            size=state[0],
            modified=state[1],
            duration=video.features.timeline.duration,
            clips=len(video.joint_TE),
            digest=embeddings_digest(video.joint_TE),
            notes=(*video.notes, *filter(None, [self._doubt(path)])),
        )

    def _put_row(self, path: str, content: VideoRow, state: State) -> None:
        """Write the row of a file, whose content is that of another row."""
        self._check()
        before, moved = self._rows.get(path), None
        if before is None:
            copies = (
                row for row in self._rows.values() if row.key == content.key and not self._places.exists(row.path)
            )
            moved = next(copies, None)
        row_id = (before or moved or replace(content, id=self._next_id)).id
        self._next_id = max(self._next_id, row_id + 1)
        row = replace(content, id=row_id, path=path, size=state[0], modified=state[1])
        self._tables.put_videos([row])
        if moved is not None:
            del self._rows[moved.path]
            self.changes.moved.append(path)
        elif before is None:
            self.changes.added.append(path)
        else:
            (self.changes.unchanged if before.key == row.key else self.changes.changed).append(path)
        self._rows[path] = row
        if before is not None and before.number != row.number:
            self._forget([before])

    def _fail(self, path: str, reason: str) -> None:
        """Note that a file cannot be read; what it held before is no longer in it."""
        self.changes.failed[path] = reason
        if path in self._rows:
            self.drop([self._rows[path]])

    def drop(self, rows: Sequence[VideoRow]) -> None:
        """Remove rows, and the features and embeddings that no other row has."""
        self._check()
        self._tables.drop_videos([row.id for row in rows])
        for row in rows:
            del self._rows[row.path]
        self._forget(rows)

    def _forget(self, rows: Sequence[VideoRow]) -> None:
        kept = {row.number for row in self._rows.values()}
        gone = {row.number: row.key for row in rows if row.number not in kept}
        self._tables.drop_clips(gone)
        for number, key in gone.items():
            self._counts.pop(number, None)
            self._store.delete_video(key)

    @property
    def rows(self) -> list[VideoRow]:
        """Return the rows of all files."""
        return list(self._rows.values())

    def drop_unknown_features(self) -> None:
        """Remove features that a killed process left: of contents that no file has."""
        self._check()
        self._store.delete_other_videos({row.key for row in self._rows.values()})
