"""Feature stores that are filled in object storage, one file at a time.

:class:`~sidelight.features.store.FeatureStore` reads them, through a copy on this machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sidelight.backbones.protocol import FeatureSpec
from sidelight.features.store import FAILURES, FeatureStore, HalfFeatures, VideoFeatures, not_our_failures
from sidelight.io.storage import fetch, file_versions, is_address, put_file


class RemoteStore(FeatureStore):
    """A store that is filled in object storage. Each file is uploaded as soon as it is complete.

    Args:
        address: address of the store.
        staging: a folder on this machine for files before their upload. It keeps all queries, but deletes videos after
            their upload, and is deleted with this object.
    """

    def __init__(self, address: str, staging: tempfile.TemporaryDirectory[str]) -> None:
        self.address, self._staging = address.rstrip("/"), staging
        super().__init__(staging.name)
        self._uploaded_videos = set(file_versions(f"{self.address}/videos"))

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

    def has_video(self, vid: str) -> bool:
        return self.video_file(vid).name in self._uploaded_videos

    def is_whole(self, vid: str) -> bool:
        return self.has_video(vid)  # objects appear complete

    def videos(self) -> list[str]:
        for name in self._uploaded_videos:
            self._fetch(name)
        return super().videos()

    def _open_video(self, vid: str) -> Any:
        self._fetch(self.video_file(vid).name)
        return super()._open_video(vid)

    def _fetch(self, name: str) -> None:
        if name in self._uploaded_videos and not (self.folder / "videos" / name).exists():
            fetch(self.address, f"videos/{name}", self.folder)

    def put_video(self, vid: str, features: VideoFeatures) -> None:
        super().put_video(vid, features)
        path = self.video_file(vid)
        put_file(path, f"{self.address}/videos/{path.name}")
        self._uploaded_videos.add(path.name)
        path.unlink()

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
