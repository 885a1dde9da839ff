"""Keep the features of videos in a folder, by the content of the file, and read them again.

The cache never stands in the way of an answer: a damaged entry counts as absent and is made again, and a folder that
cannot be used is one warning.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from sidelight.backbones.protocol import FeatureSpec
from sidelight.features.store import FeatureStore, VideoFeatures
from sidelight.io.cache import CacheWarning, feature_limit, mark_used, trim_features
from sidelight.io.files import cache_folder
from sidelight.video.damage import warn


class FeatureCache:
    """The features of videos by one feature spec.

    Args:
        folder: the cache; each spec has a folder of its own in it.
        spec: how the features are made.

    Raises:
        ValueError: if ``SIDELIGHT_CACHE_LIMIT`` holds no size.
    """

    def __init__(self, folder: Path, spec: FeatureSpec) -> None:
        self._limit = feature_limit() if folder == cache_folder("features") else None
        self._store = self._open(folder / spec.digest(), spec)

    @property
    def folder(self) -> Path | None:
        """Return the folder of the entries; None if it cannot be used."""
        return self._store.folder if self._store is not None else None

    def _open(self, folder: Path, spec: FeatureSpec) -> FeatureStore | None:
        try:
            return FeatureStore.create(folder, spec)
        except (OSError, ValueError) as error:
            reason = str(error).partition("; ")[0]
        # Perhaps only the manifest is damaged. Each entry has its own digest.
        with suppress(OSError, ValueError):
            (folder / "manifest.json").unlink()
            return FeatureStore.create(folder, spec)
        self._give_up(reason)
        return None

    def _give_up(self, reason: str) -> None:
        warn(f"the features are not kept: {reason}; SIDELIGHT_CACHE can name another folder", CacheWarning)

    def read(self, key: str) -> VideoFeatures | None:
        """Return the features of a video; None if they are absent, or not as they were written.

        Args:
            key: digest of the file's content.
        """
        if self._store is None:
            return None
        path = self._store.video_file(key)
        try:
            if not path.is_file():
                path.unlink()  # a pipe, for example: writing into it would wait for ever
                return None
            features = self._store.video(key, check=True)
        except (OSError, ValueError, KeyError, TypeError):
            with suppress(OSError):
                path.unlink()
            return None
        mark_used(path)
        return features

    def keep(self, key: str, features: VideoFeatures) -> None:
        """Write the features of a video, and delete those that were not used for longest if there are too many.

        Args:
            key: digest of the file's content.
            features: features of all of its clips.
        """
        if self._store is None:
            return
        try:
            self._store.put_video(key, features)
            if self._limit is not None:
                trim_features(self._limit)
        except OSError as error:  # the disk is full, or the folder became read-only
            self._give_up(str(error).partition("; ")[0])
