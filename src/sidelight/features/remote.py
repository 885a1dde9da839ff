"""Feature stores that are filled in object storage, one file at a time.

:class:`~sidelight.features.store.FeatureStore` reads them, through a copy on this machine.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from sidelight.backbones.protocol import FeatureSpec
from sidelight.core.timeline import Timeline
from sidelight.features.store import FAILURES, FeatureStore, HalfFeatures, VideoFeatures, not_our_failures, vid_in
from sidelight.io.storage import MissingError, delete_object, fetch, file_versions, is_address, put_file


class RemoteStore(FeatureStore):
    """A store that is filled in object storage. Each file is uploaded as soon as it is complete.

    Args:
        address: address of the store.
        staging: a folder on this machine for files before their upload. It keeps all queries, but deletes videos after
            their upload, and is deleted with this object. Videos that were read stay there up to a limit.
    """

    staged_bytes = 1 << 30
    """Most bytes of videos that were read and stay on this machine; the oldest are deleted first."""

    def __init__(self, address: str, staging: tempfile.TemporaryDirectory[str]) -> None:
        self.address, self._staging = address.rstrip("/"), staging
        super().__init__(staging.name)
        self._fetching = threading.RLock()

    @classmethod
    def at(cls, address: str, spec: FeatureSpec) -> RemoteStore:
        """Create a store, or open the one at the address.

        Raises:
            SpecMismatchError: if the store at the address has another spec.
            ValueError: if the kind of storage is not known, or a ``failures.jsonl`` there is not of a store.
            StorageError: if the storage cannot be reached.
        """
        address = address.rstrip("/")
        temporary = tempfile.TemporaryDirectory(prefix="sidelight-store-")
        staging = Path(temporary.name)
        names = file_versions(address)
        if FAILURES in names and "manifest.json" not in names:
            raise ValueError(not_our_failures(address))
        for name in {"manifest.json", FAILURES} & names.keys():
            fetch(address, name, staging)
        for part in ("videos", "queries"):
            (staging / part).mkdir()
        for name in file_versions(f"{address}/queries") if names else ():
            fetch(address, f"queries/{name}", staging)
        FeatureStore.create(staging, spec)
        if "manifest.json" not in names:
            put_file(staging / "manifest.json", f"{address}/manifest.json")
        return cls(address, temporary)

    @cached_property
    def _uploaded_videos(self) -> set[str]:
        """Return the names of all files of videos. A reader of a few videos never lists them all."""
        return set(file_versions(f"{self.address}/videos"))

    def has_video(self, vid: str) -> bool:
        return self.video_file(vid).name in self._uploaded_videos

    def is_whole(self, vid: str) -> bool:
        return self.has_video(vid)  # objects appear complete

    def videos(self) -> list[str]:
        vids: list[str] = []
        for name in self._uploaded_videos:
            with self._fetching:
                self._fetch(name)
                vids.append(vid_in(self.folder / "videos" / name))
        return sorted(vids)

    def video(self, vid: str, *, check: bool = False) -> VideoFeatures:
        with self._fetching:
            return super().video(vid, check=check)

    def timeline(self, vid: str) -> Timeline:
        with self._fetching:
            return super().timeline(vid)

    def _open_video(self, vid: str) -> Any:
        with self._fetching:
            self._fetch(self.video_file(vid).name)
            return super()._open_video(vid)

    def _fetch(self, name: str) -> None:
        """Fetch the file of a video, if it is not here yet and exists, and delete older ones if there are too many."""
        path = self.folder / "videos" / name
        if path.exists():
            return
        with suppress(MissingError):
            fetch(self.address, f"videos/{name}", self.folder)
        older = sorted((other.stat().st_mtime, other) for other in (self.folder / "videos").iterdir() if other != path)
        left = self.staged_bytes - sum(other.stat().st_size for _, other in older)
        for _, other in older:
            if left >= 0:
                break
            left += other.stat().st_size
            other.unlink()  # large features are mapped: the map keeps the content

    def put_video(self, vid: str, features: VideoFeatures) -> None:
        super().put_video(vid, features)
        path = self.video_file(vid)
        put_file(path, f"{self.address}/videos/{path.name}")
        self._uploaded_videos.add(path.name)
        path.unlink()

    def refresh(self) -> None:
        self.__dict__.pop("_uploaded_videos", None)

    def delete_video(self, vid: str) -> None:
        super().delete_video(vid)
        name = self.video_file(vid).name
        delete_object(f"{self.address}/videos/{name}")
        self._uploaded_videos.discard(name)

    def delete_other_videos(self, vids: Iterable[str]) -> None:
        kept = {self.video_file(vid).name for vid in vids}
        for name in self._uploaded_videos - kept:
            delete_object(f"{self.address}/videos/{name}")
        self._uploaded_videos &= kept

    def verify(self) -> dict[str, str]:
        self.refresh()
        faults: dict[str, str] = {}
        for path in sorted((self.folder / "queries").glob("[!.]*.safetensors")):
            faults |= self._faults_of(path)
        for name in sorted(self._uploaded_videos):
            with self._fetching:
                (self.folder / "videos" / name).unlink(missing_ok=True)  # what lies in the storage is checked
                self._fetch(name)
                faults |= self._faults_of(self.folder / "videos" / name)
                (self.folder / "videos" / name).unlink(missing_ok=True)
        return faults

    def put_queries(self, features: Mapping[str, HalfFeatures]) -> None:
        before = set((self.folder / "queries").iterdir())
        super().put_queries(features)
        for path in set((self.folder / "queries").iterdir()) - before:
            put_file(path, f"{self.address}/queries/{path.name}")

    def put_failures(self, rows: Iterable[Mapping[str, str]]) -> None:
        super().put_failures(rows)
        put_file(self.folder / FAILURES, f"{self.address}/{FAILURES}")


def store_at(out: str | Path, spec: FeatureSpec) -> FeatureStore:
    """Create a store in a folder or at an address, or open the one that exists.

    Raises:
        SpecMismatchError: if the existing store has another spec.
        ValueError: if the folder cannot be created, or the kind of storage is not known.
        StorageError: if the storage of an address cannot be reached.
    """
    return RemoteStore.at(str(out), spec) if is_address(out) else FeatureStore.create(out, spec)
