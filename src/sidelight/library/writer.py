"""Change a library while this process holds its lock: add files, follow them, remove them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from sidelight.features.store import FeatureStore
from sidelight.io.jsonl import read_json_lines, write_json_lines
from sidelight.io.storage import StorageError
from sidelight.library.answers import Changes
from sidelight.library.folder import Check, Folder
from sidelight.library.ingest import Engine
from sidelight.library.manifest import Manifest
from sidelight.library.places import Places, files_of, is_within
from sidelight.library.tables import Tables, VideoRow

FAILURES = "failures.jsonl"


class Writer:
    """One change of a library.

    Args:
        folder: the folder of the library.
        store: its features.
        tables: its tables.
        check: raises ValueError if another process took the lock over.
    """

    def __init__(self, folder: Folder, store: FeatureStore, tables: Tables, check: Check) -> None:
        self._folder, self._store, self._tables, self.check = folder, store, tables, check
        self._manifest = Manifest.read(folder)
        self._places = Places()

    def add(
        self,
        sources: Sequence[str],
        files: Sequence[str],
        engine: Engine,
        doubt: Callable[[str], str | None],
        *,
        progress: bool,
    ) -> Changes:
        """Remember where videos come from, and bring their files in.

        Args:
            sources: folders, files, patterns, lists and addresses.
            files: their files.
            engine: what reads videos.
            doubt: returns why the model may know nothing about a video.
            progress: show a bar.
        """
        self._remember(sources, files)
        return self._bring_in(files, [], Changes(), engine, doubt, progress=progress)

    def update(
        self, more: Sequence[str], engine: Engine, doubt: Callable[[str], str | None], *, progress: bool
    ) -> Changes:
        """Compare the library with its files, and with those of more sources; arguments as for :meth:`add`."""
        changes, places = Changes(), self._places
        files = files_of(more)
        self._remember(more, files)
        for source in self._manifest.sources:
            try:
                files += files_of([source])
            except (ValueError, StorageError) as error:
                changes.problems.append(str(error))
        rows = self._tables.videos()
        files += [row.path for row in rows if places.exists(row.path)]
        excluded = set(self._manifest.excluded)
        files = [path for path in dict.fromkeys(files) if path not in excluded]
        missing = [row.path for row in rows if not places.exists(row.path)]
        changes.out_of_reach = [path for path in missing if places.is_out_of_reach(path)]
        kept = set(changes.out_of_reach)
        gone = [path for path in missing if path not in kept]
        return self._bring_in(files, gone, changes, engine, doubt, progress=progress)

    def _bring_in(
        self,
        files: Sequence[str],
        gone: Sequence[str],
        changes: Changes,
        engine: Engine,
        doubt: Callable[[str], str | None],
        *,
        progress: bool,
    ) -> Changes:
        """Read files, then remove the rows of files that are gone and were not found elsewhere."""
        from tqdm import tqdm

        from sidelight.library.bring_in import BringIn

        run = BringIn(self._store, self._tables, engine, changes, places=self._places, check=self.check, doubt=doubt)
        shown = None if progress else True
        try:
            with tqdm(total=len(files), unit="video", desc="adding", disable=shown) as bar:
                for _ in run.run(files):
                    bar.update()
            gone_paths = set(gone)
            rows = [row for row in run.rows if row.path in gone_paths]
            run.drop(rows)
            changes.removed += [row.path for row in rows]
            paths = {row.path for row in run.rows}
            changes.out_of_reach = [path for path in changes.out_of_reach if path in paths]
            run.drop_unknown_features()
        finally:
            self.check()
            self._write_failures(changes)
            self._tables.finish()
        return changes

    def remove(self, places: Sequence[str]) -> list[str]:
        """Remove the videos at or below some places, and return their files.

        Raises:
            ValueError: if one of the places is not in the library.
        """
        rows = self._tables.videos()
        chosen: dict[int, VideoRow] = {}
        for place in places:
            inside = [row for row in rows if is_within(row.path, place)]
            if not inside:
                raise ValueError(
                    f"{place} is not in the library {self._folder.name}; `sidelight library status --files` "
                    "lists its files"
                )
            chosen |= {row.id: row for row in inside}
        removed = [row.path for row in chosen.values()]
        sources = [source for source in self._manifest.sources if source.rstrip("/") not in places]
        self._write_manifest(sources, dict.fromkeys([*self._manifest.excluded, *removed]))
        kept_numbers = {row.number for row in rows if row.id not in chosen}
        self.check()
        self._tables.drop_videos(list(chosen))
        gone = {row.number: row.key for row in chosen.values() if row.number not in kept_numbers}
        self._tables.drop_clips(gone)
        for key in gone.values():
            self._store.delete_video(key)
        self._tables.finish()
        return removed

    def _remember(self, sources: Sequence[str], files: Sequence[str]) -> None:
        """Add sources to the manifest; files that are given again are no longer excluded."""
        given = set(files)
        excluded = [path for path in self._manifest.excluded if path not in given]
        self._write_manifest(dict.fromkeys([*self._manifest.sources, *sources]), excluded)

    def _write_manifest(
        self, sources: Sequence[str] | dict[str, None], excluded: Sequence[str] | dict[str, None]
    ) -> None:
        """Write the manifest if it changed."""
        manifest = replace(self._manifest, sources=tuple(sources), excluded=tuple(excluded))
        if manifest != self._manifest:
            self.check()
            manifest.write(self._folder)
            self._manifest = manifest

    def _write_failures(self, changes: Changes) -> None:
        """Write the failures of this run, and keep earlier ones of files that are still missing in the library."""
        known = {row.path for row in self._tables.videos()}
        before = read_failures(self._folder)
        earlier = {path: why for path, why in before.items() if path not in known and self._places.exists(path)}
        failures = {**earlier, **changes.failed}
        if failures != before:
            rows = ({"file": path, "reason": reason} for path, reason in sorted(failures.items()))
            with self._folder.writing(FAILURES) as path:
                write_json_lines(path, rows)


def read_failures(folder: Folder) -> dict[str, str]:
    """Return the files that could not be read, with the reasons.

    Raises:
        ValueError: if the list is damaged.
    """
    with folder.reading(FAILURES) as path:
        if path is None:
            return {}
        return {str(line.values.get("file")): str(line.values.get("reason")) for line in read_json_lines(path)}
