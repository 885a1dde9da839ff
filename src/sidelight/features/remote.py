"""Feature stores that are written into object storage, a file at a time.

They are read through a copy on this machine, which :class:`~sidelight.features.store.FeatureStore` makes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sidelight.backbones.protocol import FeatureSpec
from sidelight.features.store import FAILURES, FeatureStore, HalfFeatures, VideoFeatures
from sidelight.io.storage import fetch, is_address, listing, put_file


class RemoteStore(FeatureStore):
    """A store that is filled in object storage. Each file is put there as soon as it is whole.

    Args:
        address: of the store.
        staging: a folder of this machine, for what is on its way; holds the queries, but no videos for long, and goes
            with this object.
    """

    def __init__(self, address: str, staging: tempfile.TemporaryDirectory[str]) -> None:
        self.address, self._staging = address.rstrip("/"), staging
        super().__init__(staging.name)
        self._there = set(listing(f"{self.address}/videos"))

    @classmethod
    def at(cls, address: str, spec: FeatureSpec) -> RemoteStore:
        """Make a store, or open one that is there.

        Raises:
            SpecMismatchError: if the store that is there has another spec.
            ValueError: if the storage cannot be reached.
        """
        address = address.rstrip("/")
        temporary = tempfile.TemporaryDirectory(prefix="sidelight-store-")
        staging = Path(temporary.name)
        there = listing(address)
        for name in (n for n in ("manifest.json", FAILURES) if n in there):
            fetch(address, name, staging)
        for part in ("videos", "queries"):
            (staging / part).mkdir()
        for name in listing(f"{address}/queries") if there else ():
            fetch(address, f"queries/{name}", staging)
        FeatureStore.create(staging, spec)
        if "manifest.json" not in there:
            put_file(staging / "manifest.json", f"{address}/manifest.json")
        return cls(address, temporary)

    def has_video(self, vid: str) -> bool:
        return self._video_path(vid).name in self._there

    def is_whole(self, vid: str) -> bool:
        return self.has_video(vid)  # objects are; what was put beside first is, too

    def videos(self) -> list[str]:
        for name in self._there:
            self._fetched(name)
        return super().videos()

    def _open_video(self, vid: str) -> Any:
        self._fetched(self._video_path(vid).name)
        return super()._open_video(vid)

    def _fetched(self, name: str) -> None:
        if name in self._there and not (self.folder / "videos" / name).exists():
            fetch(self.address, f"videos/{name}", self.folder)

    def put_video(self, vid: str, features: VideoFeatures) -> None:
        super().put_video(vid, features)
        path = self._video_path(vid)
        put_file(path, f"{self.address}/videos/{path.name}")
        self._there.add(path.name)
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
    """The store of a folder or an address, made if need be.

    Raises:
        SpecMismatchError: if the store that is there has another spec.
        ValueError: if an address cannot be reached.
    """
    return RemoteStore.at(str(out), spec) if is_address(out) else FeatureStore.create(out, spec)
