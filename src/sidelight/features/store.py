"""Features with their spec, and the store that keeps them on disk.

A store is a folder:

    manifest.json               what made the features: the feature spec
    videos/VID.safetensors      "video" (K, T, D_v) float16, or (K, T, P, D_v), and the duration in the header
    queries/NAME.safetensors    many queries a file: digest of the sentence -> (K, L, D_t) float16
    failures.jsonl              the videos that could not be read, and why, if there are any

One file a video, because a video is what is read at once, written at once, and lost at once if a machine stops;
safetensors, because it is read through a memory map and cannot carry code. Every file is written beside its place
and renamed, so several processes can read while another one adds.

Legend: K levels, T clips, P tokens of a clip where all were kept, L tokens, D_v / D_t widths of video and text.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt

from sidelight.backbones.protocol import FeatureSpec
from sidelight.core.timeline import Timeline
from sidelight.io.files import replacing, sweep, write_text
from sidelight.io.jsonl import read_json_lines
from sidelight.io.storage import cached, file_versions, is_address

HalfFeatures = npt.NDArray[np.float16]
FORMAT = "sidelight.features/1"
_LONGEST_NAME = 180
"""Bytes of a file's name that come from a video's id; most file systems allow 255 in all."""
FAILURES = "failures.jsonl"
"""The file of a store that says which videos could not be read, and why."""


@dataclass(frozen=True, kw_only=True)
class VideoFeatures:
    """What a backbone returned for one video, at every level, and the timeline of its clips."""

    video_KTD: HalfFeatures
    timeline: Timeline

    def __post_init__(self) -> None:
        if self.video_KTD.ndim not in (3, 4) or self.video_KTD.shape[1] != self.timeline.num_clips:
            raise ValueError(
                f"video features must be (levels, {self.timeline.num_clips} clips, width), or (levels, clips, tokens, "
                "width), for "
                f"{self.timeline.duration:g} s; got {self.video_KTD.shape}"
            )


class SampleKey(Protocol):
    """What features are found by: an annotation, or whatever has these three."""

    @property
    def qid(self) -> int | str:
        """Identifies the query."""

    @property
    def query(self) -> str:
        """The sentence."""

    @property
    def vid(self) -> str:
        """Identifies the video."""


class Features(Protocol):
    """What a dataset reads features from: a store of ours, or files in a layout that others released."""

    folder: Path
    """Where they are, for messages."""
    spec: FeatureSpec
    """What made them."""
    slack: int
    """By so many clips a label may lie beyond the features of its video."""

    def has_video(self, vid: str) -> bool:
        """Whether there are features of it."""

    def video(self, vid: str) -> VideoFeatures:
        """One video's features; ValueError if they are missing or damaged."""

    def timeline(self, vid: str) -> Timeline:
        """One video's timeline, without its features being read; ValueError likewise."""

    def texts(self, asked: Iterable[SampleKey]) -> list[HalfFeatures]:
        """(K, L, D_t) of each one's sentence, in their order; ValueError if one is missing or damaged."""


class FeatureStore:
    """Features on disk, with the spec that made them.

    Args:
        folder: an existing store, or its address in object storage, which is copied to the user's cache.
        levels: read only these of its levels (places from the end: -1 is the last); all unless given.

    Raises:
        ValueError: if the folder is no store, or of a newer format, or lacks one of the levels.
    """

    slack = 1

    def __init__(self, folder: str | Path, *, levels: tuple[int, ...] | None = None) -> None:
        # Read at random, many times over: of a store in object storage a copy on this machine is read.
        self.folder = cached(str(folder), ("videos", "queries")) if is_address(folder) else Path(folder)
        manifest = self.folder / "manifest.json"
        if not manifest.is_file():
            raise ValueError(
                f"{folder} is no feature store: manifest.json is missing; make one with `sidelight extract`"
            )
        try:
            values = json.loads(manifest.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{manifest} is not valid JSON ({error}); extract the features again") from None
        if values.get("format") != FORMAT:
            raise ValueError(f"{manifest}: expected format {FORMAT!r}, got {values.get('format')!r}")
        # Stores of before the first release call it "recipe".
        self.spec = FeatureSpec.from_dict(values["spec"] if "spec" in values else values["recipe"])
        self._rows: list[int] | None = None
        if levels is not None and levels != self.spec.levels:
            if missing := set(levels) - set(self.spec.levels):
                raise ValueError(
                    f"the features in {self.folder} have the levels {self.spec.levels} and lack {sorted(missing)}; "
                    "choose among those, or extract the others"
                )
            self._rows = [self.spec.levels.index(level) for level in levels]
            self.spec = replace(self.spec, levels=levels)
        self._queries: dict[str, Path] = {}
        self._shards_seen: set[Path] = set()

    @classmethod
    def create(cls, folder: str | Path, spec: FeatureSpec) -> FeatureStore:
        """Make a store, or open one that is there.

        Raises:
            SpecMismatchError: if the store that is there has another spec.
        """
        folder = Path(folder)
        if (folder / "manifest.json").exists():
            for part in (".", "videos", "queries"):
                sweep(folder / part)
            store = cls(folder)
            spec.require(store.spec, what=f"the features in {folder}", than="what is asked for")
            return store
        try:
            for part in ("videos", "queries"):
                (folder / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"no store can be made in {folder} ({error.strerror}); give another folder") from None
        text = json.dumps({"format": FORMAT, "spec": spec.to_dict()}, indent=2) + "\n"
        with replacing(folder / "manifest.json") as temporary:
            temporary.write_text(text)
        return cls(folder)

    @staticmethod
    def levels_there(folder: str | Path, wanted: tuple[int, ...]) -> tuple[int, ...]:
        """The levels to extract into a folder: those of the store that is there, if it has the wanted ones among
        others, for such a store serves too and is filled as it is; else the wanted ones.
        """
        if not store_exists(folder):
            return wanted
        there = FeatureStore(folder).spec.levels
        return there if set(wanted) <= set(there) else wanted

    def _chosen(self, levels_first: HalfFeatures) -> HalfFeatures:
        """The levels that are read."""
        return levels_first if self._rows is None else levels_first[self._rows]

    def _require_whole(self) -> None:
        if self._rows is not None:
            raise ValueError(f"{self.folder} was opened for some of its levels only: open all of them to add features")

    def _video_path(self, vid: str) -> Path:
        # Quoted, so that no id can name a file outside the folder.
        name = quote(vid, safe=" ()[]+,=@", errors="surrogateescape")
        name = f"%2E{name[1:]}" if name.startswith(".") else name  # no hidden files
        if len(name) > _LONGEST_NAME:  # the file's header says which id it is; %% is in no quoted name
            name = f"{name[: _LONGEST_NAME // 2]}%%{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        return self.folder / "videos" / f"{name}.safetensors"

    def has_video(self, vid: str) -> bool:
        return self._video_path(vid).is_file()

    def is_whole(self, vid: str) -> bool:
        """Whether a video is there and its file not cut off; numbers are compared by :meth:`verify` alone."""
        try:
            self._of(vid)
        except ValueError:
            return False
        return True

    def videos(self) -> list[str]:
        """The ids of all videos, sorted."""
        files = (self.folder / "videos").glob("[!.]*.safetensors")
        return sorted(
            _about(_opened(p))["vid"] if "%%" in p.stem else unquote(p.stem, errors="surrogateescape") for p in files
        )

    def put_video(self, vid: str, features: VideoFeatures) -> None:
        """Add or replace one video's features."""
        self._require_whole()
        metadata = {
            "vid": vid,
            "duration": repr(features.timeline.duration),
            "clip_seconds": repr(features.timeline.clip_seconds),
        }
        _save(self._video_path(vid), {"video": features.video_KTD}, metadata)

    def video(self, vid: str) -> VideoFeatures:
        """One video's features, read through a memory map.

        Raises:
            ValueError: if the store has no such video, or its file is damaged.
        """
        file = self._of(vid)
        return VideoFeatures(video_KTD=self._chosen(file.get_tensor("video")), timeline=_timeline(_about(file)))

    def timeline(self, vid: str) -> Timeline:
        """One video's timeline, from the header alone.

        Raises:
            ValueError: as :meth:`video`.
        """
        return _timeline(_about(self._of(vid)))

    def _of(self, vid: str) -> Any:
        """A video's file; ValueError if it is another's, as where a file system does not tell "a" from "A"."""
        file = _opened(self._existing(vid))
        if (other := _about(file).get("vid", vid)) != vid:
            raise ValueError(
                f"the feature store {self.folder} has {other!r} where {vid!r} should be: this file system takes both "
                "names for one; extract them into two stores"
            )
        return file

    def _existing(self, vid: str) -> Path:
        path = self._video_path(vid)
        if not path.is_file():
            raise ValueError(
                f"the feature store {self.folder} has no video {vid!r}; extract it, or check the annotations' vid"
            )
        return path

    def _index(self) -> dict[str, Path]:
        """Digest of every stored query -> its file; looks for new files each time something is missing."""
        for path in sorted((self.folder / "queries").glob("[!.]*.safetensors")):
            if path not in self._shards_seen:
                self._queries.update(dict.fromkeys(_opened(path).keys(), path))
                self._shards_seen.add(path)
        return self._queries

    def failures(self) -> list[dict[str, str]]:
        """The videos that could not be read when they were extracted: vid, file and reason of each."""
        path = self.folder / FAILURES
        if not path.is_file():
            return []
        return [dict(line.values) for line in read_json_lines(path)]

    def put_failures(self, rows: Iterable[Mapping[str, str]]) -> None:
        """Replace what :meth:`failures` says."""
        lines = "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
        # File names that are not UTF-8 become JSON's own escapes.
        write_text(self.folder / FAILURES, lines.encode("utf-8", "backslashreplace").decode("utf-8"))

    def verify(self) -> dict[str, str]:
        """Read everything and see whether it is what was written: shapes, widths and, but for files of older
        versions, the digest of the content.

        Returns:
            File, relative to the store -> what is wrong with it; empty if nothing is.
        """
        wrong: dict[str, str] = {}
        for path in sorted(
            [*self.folder.glob("videos/[!.]*.safetensors"), *self.folder.glob("queries/[!.]*.safetensors")]
        ):
            try:
                self._verify_file(path)
            except (ValueError, KeyError, OSError) as error:
                wrong[str(path.relative_to(self.folder))] = " ".join(str(error).split())
        return wrong

    def _verify_file(self, path: Path) -> None:
        file, whole = _opened(path), FeatureStore(self.folder).spec if self._rows is not None else self.spec
        # A safetensors file has keys() and is no mapping.
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = _about(file)
        said = metadata.get("digest")
        if said is not None and said != _content_digest(tensors):
            raise ValueError("the content is not what was written (digest); delete the file and extract again")
        video = path.parent.name == "videos"
        width, levels = whole.video_dim if video else whole.text_dim, len(whole.levels)
        for name, values in tensors.items():
            if len(values) != levels or values.shape[-1] != width or not np.isfinite(values).all():
                raise ValueError(
                    f"{name}: expected {levels} levels of width {width}, all finite; got {values.shape}; delete the "
                    "file and extract again"
                )
        if video:
            VideoFeatures(video_KTD=tensors["video"], timeline=_timeline(metadata))

    def missing_queries(self, queries: Iterable[str]) -> list[str]:
        """Those sentences, each once, that the store lacks."""
        index = self._index()
        return [q for q in dict.fromkeys(queries) if query_digest(q) not in index]

    def put_queries(self, features: Mapping[str, HalfFeatures]) -> None:
        """Add the (K, L, D_t) features of many sentences as one file."""
        self._require_whole()
        if not features:
            return
        tensors = {query_digest(q): value for q, value in features.items()}
        name = hashlib.sha256("".join(sorted(tensors)).encode()).hexdigest()[:16]
        _save(self.folder / "queries" / f"{name}.safetensors", tensors, {})

    def queries(self, queries: Iterable[str]) -> dict[str, HalfFeatures]:
        """Sentence -> (K, L, D_t), for many at once: each file is opened once.

        Raises:
            ValueError: if the store lacks one of them.
        """
        wanted = list(dict.fromkeys(queries))
        if missing := self.missing_queries(wanted):
            raise ValueError(
                f"the feature store {self.folder} lacks {len(missing)} of {len(wanted)} queries, "
                f"such as {missing[0]!r}; run `sidelight extract` with these annotations"
            )
        by_file: dict[Path, list[str]] = {}
        for query in wanted:
            by_file.setdefault(self._queries[query_digest(query)], []).append(query)
        found: dict[str, HalfFeatures] = {}
        for path, names in by_file.items():
            file = _opened(path)
            found.update({q: self._chosen(file.get_tensor(query_digest(q))) for q in names})
        return found

    def texts(self, asked: Iterable[SampleKey]) -> list[HalfFeatures]:
        """(K, L, D_t) of each one's sentence, in their order.

        Raises:
            ValueError: as :meth:`queries`.
        """
        sentences = [one.query for one in asked]
        found = self.queries(sentences)
        return [found[query] for query in sentences]


def store_exists(folder: str | Path) -> bool:
    """Whether there is a store, in a folder or at an address.

    Raises:
        StorageError: if the storage of an address cannot be reached.
    """
    if is_address(folder):
        return "manifest.json" in file_versions(str(folder))
    return (Path(folder) / "manifest.json").is_file()


def query_digest(query: str) -> str:
    """The key of a sentence: 20 hex digits of its SHA-256."""
    return hashlib.sha256(query.encode()).hexdigest()[:20]


def _save(path: Path, tensors: Mapping[str, npt.NDArray[Any]], metadata: dict[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    halves = {k: np.ascontiguousarray(v, dtype=np.float16) for k, v in tensors.items()}
    for name, values in halves.items():
        if not np.isfinite(values).all():
            raise ValueError(f"features for {path.stem} ({name}) have values that float16 cannot hold")
    with replacing(path) as temporary:
        # One entry, for several would be written in any order: equal features are equal files.
        about = {**metadata, "digest": _content_digest(halves)}
        try:
            save_file(halves, temporary, {"about": json.dumps(about, sort_keys=True)})
        except SafetensorError as error:  # its own word for a full disk
            raise OSError(f"{path} cannot be written ({error}); make room, or choose another folder") from None


def _about(file: Any) -> dict[str, str]:
    """What stands in a file beside its tensors; older files have it entry by entry."""
    metadata: dict[str, str] = file.metadata() or {}
    return dict(json.loads(metadata["about"])) if "about" in metadata else metadata


def _content_digest(tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    """32 hex digits of names, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape};".encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


def _opened(path: Path) -> Any:
    """A safetensors file, mapped into memory; ValueError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    if not os.access(path, os.R_OK):  # else it is said not to be there
        raise ValueError(f"{path} cannot be read; you need the right to")
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and extract again") from None


def _timeline(metadata: Mapping[str, str]) -> Timeline:
    return Timeline(duration=float(metadata["duration"]), clip_seconds=float(metadata["clip_seconds"]))
