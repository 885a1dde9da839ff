"""Features with their feature spec, and the store that keeps them on disk.

A store is a folder:

    manifest.json               the feature spec
    videos/VID.safetensors      "video" (K, T, D_v) float16, or (K, T, P, D_v); the duration is in the header
    queries/NAME.safetensors    several thousand queries a file: digest of the sentence -> (K, L, D_t) float16
    failures.jsonl              the videos that could not be read, each with the reason; absent if there are none

Each video has its own file, because a video is read, written, and lost in a crash, on its own. The format is
safetensors, because it can be memory-mapped and cannot carry code. Every file is written beside its place and renamed,
so several processes can read while another one adds files.

Legend: K levels, T clips, P tokens of a clip where all were kept, L tokens, D_v / D_t widths of video and text.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt

from sidelight.backbones.protocol import FeatureSpec
from sidelight.core.timeline import Timeline
from sidelight.features.growing import LARGE, all_finite, blocks, map_video, require_finite
from sidelight.io.files import replacing, require_regular, sweep, write_text
from sidelight.io.jsonl import read_json_lines, shown, write_json_lines
from sidelight.io.storage import cached, file_versions, is_address

HalfFeatures = npt.NDArray[np.float16]
"""An array of float16 features."""
FORMAT = "sidelight.features/1"
FAILURES = "failures.jsonl"
"""The file of a store with the videos that could not be read."""
QUERIES_PER_FILE = 4096
_LONGEST_NAME = 180
"""Bytes of a file's name that come from a video's id; most file systems allow 255 in all."""


@dataclass(frozen=True, kw_only=True)
class VideoFeatures:
    """The features of one video at every level, with the timeline of its clips."""

    video_KTD: HalfFeatures
    """(K, T, D_v), or (K, T, P, D_v) where all tokens are kept."""
    timeline: Timeline
    """T clips."""

    def __post_init__(self) -> None:
        if self.video_KTD.ndim not in (3, 4) or self.video_KTD.shape[1] != self.timeline.num_clips:
            raise ValueError(
                f"video features must be (levels, {self.timeline.num_clips} clips, width), or (levels, clips, tokens, "
                f"width), for {self.timeline.duration:g} s; got {self.video_KTD.shape}"
            )

    def cut_to(self, timeline: Timeline) -> VideoFeatures:
        """Return the features of the clips of a timeline of the same video, which may have fewer clips at the end."""
        if timeline == self.timeline:
            return self
        return VideoFeatures(video_KTD=self.video_KTD[:, : timeline.num_clips], timeline=timeline)


class SampleKey(Protocol):
    """The key by which features are found: an annotation, or any object with these three attributes."""

    @property
    def qid(self) -> int | str:
        """Return the id of the query."""

    @property
    def query(self) -> str:
        """Return the sentence."""

    @property
    def vid(self) -> str:
        """Return the id of the video."""


class Features(Protocol):
    """The features that a dataset reads: a store of ours, or files in the layout of a paper."""

    folder: Path
    """The place of the features, for messages."""
    spec: FeatureSpec
    """The feature spec: how the features were made."""
    late_clips: int
    """Number of clips by which a label may lie beyond the features of its video."""

    def has_video(self, vid: str) -> bool:
        """Check whether there are features of a video."""

    def video(self, vid: str) -> VideoFeatures:
        """Read one video's features; ValueError if they are missing or damaged."""

    def timeline(self, vid: str) -> Timeline:
        """Return one video's timeline without reading its features; ValueError if they are missing or damaged."""

    def texts(self, keys: Iterable[SampleKey]) -> list[HalfFeatures]:
        """Read (K, L, D_t) of each key's sentence, in the order of the keys; ValueError if one is missing."""


class FeatureStore:
    """Features on disk, with their feature spec.

    Args:
        folder: an existing store, or its address in object storage, which is copied to the user's cache.
        levels: the levels to read (places from the end: -1 is the last); all unless given.

    Raises:
        ValueError: if the folder is no store, has another format, or lacks one of the levels.
    """

    late_clips = 1

    def __init__(self, folder: str | Path, *, levels: tuple[int, ...] | None = None) -> None:
        # Training reads at random and many times over, so a store in object storage is copied first.
        self.folder = cached(str(folder), ("videos", "queries")) if is_address(folder) else Path(folder)
        manifest = self.folder / "manifest.json"
        if not manifest.is_file():
            raise ValueError(
                f"{folder} is no feature store: manifest.json is missing; make one with `sidelight extract`"
            )
        try:
            values = json.loads(manifest.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{manifest} is not valid JSON ({error}); extract the features again") from None
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            stated = values.get("format") if isinstance(values, dict) else values
            raise ValueError(f"{manifest}: expected format {FORMAT!r}, got {shown(stated)}")
        spec = values.get("spec") or values.get("recipe")  # stores of before the first release say "recipe"
        if not isinstance(spec, dict):
            raise ValueError(f"{manifest} holds no feature spec; extract the features again")
        self.spec = FeatureSpec.from_dict(spec)
        self._rows: list[int] | None = None
        """Places of the levels to read; None for all."""
        if levels is not None and levels != self.spec.levels:
            if missing := set(levels) - set(self.spec.levels):
                raise ValueError(
                    f"the features in {self.folder} have the levels {self.spec.levels} and lack {sorted(missing)}; "
                    "choose among those, or extract the others"
                )
            self._rows = [self.spec.levels.index(level) for level in levels]
            self.spec = replace(self.spec, levels=levels)
        self._query_files: dict[str, Path] = {}
        self._indexed_files: set[Path] = set()
        self._finite_videos: set[str] = set()
        """Videos whose numbers were checked; a large one is mapped, and is read as a whole for that."""

    @classmethod
    def create(cls, folder: str | Path, spec: FeatureSpec) -> FeatureStore:
        """Create a store, or open the one in the folder.

        Raises:
            SpecMismatchError: if the store in the folder has another spec.
            ValueError: if the folder cannot be created, or holds a ``failures.jsonl`` that is not of a store.
        """
        folder = Path(folder)
        if (folder / "manifest.json").exists():
            for part in (".", "videos", "queries"):
                sweep(folder / part)
            store = cls(folder)
            spec.require(store.spec, what=f"the features in {folder}", than="what is asked for")
            return store
        if (folder / FAILURES).exists():
            raise ValueError(not_our_failures(folder))
        try:
            for part in ("videos", "queries"):
                (folder / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"no store can be made in {folder} ({error.strerror}); give another folder") from None
        write_text(folder / "manifest.json", json.dumps({"format": FORMAT, "spec": spec.to_dict()}, indent=2) + "\n")
        return cls(folder)

    @staticmethod
    def levels_to_extract(folder: str | Path, levels: tuple[int, ...]) -> tuple[int, ...]:
        """Return the levels to extract into a folder.

        A store that has the wanted levels among others is filled with all of its levels.

        Args:
            folder: a store, or a folder without one.
            levels: the wanted levels.
        """
        if not store_exists(folder):
            return levels
        stored_levels = FeatureStore(folder).spec.levels
        return stored_levels if set(levels) <= set(stored_levels) else levels

    def _select_levels(self, array: HalfFeatures) -> HalfFeatures:
        return array if self._rows is None else array[self._rows]

    def _require_all_levels(self) -> None:
        if self._rows is not None:
            raise ValueError(f"{self.folder} was opened for some of its levels only: open all of them to add features")

    # --- videos ---------------------------------------------------------------------------------------------------

    def video_file(self, vid: str) -> Path:
        """Return the file of a video's features, whether it exists or not."""
        return self.folder / "videos" / _file_name(vid)

    def _open_video(self, vid: str) -> Any:
        """Open a video's file.

        Raises:
            ValueError: if the file is missing, damaged, or another video's: some file systems confuse "a" and "A".
        """
        path = self.video_file(vid)
        if not path.is_file():
            raise ValueError(
                f"the feature store {self.folder} has no video {vid!r}; extract it, or check the annotations' vid"
            )
        file = _open(path)
        if (stored_vid := _metadata(file, path).get("vid", vid)) != vid:
            raise ValueError(
                f"the feature store {self.folder} has {stored_vid!r} where {vid!r} should be: this file system takes "
                "both names for one; extract them into two stores"
            )
        return file

    def has_video(self, vid: str) -> bool:
        """Check whether there is a file of a video; :meth:`is_whole` also opens it."""
        return self.video_file(vid).is_file()

    def is_whole(self, vid: str) -> bool:
        """Check whether a video's file exists and is complete; only :meth:`verify` checks the numbers."""
        try:
            self._open_video(vid)
        except ValueError:
            return False
        return True

    def videos(self) -> list[str]:
        """Return the ids of all videos, sorted."""
        return sorted(map(vid_in, (self.folder / "videos").glob("[!.]*.safetensors")))

    def put_video(self, vid: str, features: VideoFeatures) -> None:
        """Add or replace one video's features."""
        self._require_all_levels()
        metadata = {
            "vid": vid,
            "duration": repr(features.timeline.duration),
            "clip_seconds": repr(features.timeline.clip_seconds),
        }
        if features.timeline.clips is not None:
            metadata["clips"] = str(features.timeline.clips)
        _save_video(self.video_file(vid), features.video_KTD, metadata)

    def refresh(self) -> None:
        """Look again which videos there are, before a change: another machine may have changed the store."""

    def delete_video(self, vid: str) -> None:
        """Delete one video's features, if there are any."""
        self.video_file(vid).unlink(missing_ok=True)

    def delete_other_videos(self, vids: Iterable[str]) -> None:
        """Delete the features of all videos except these."""
        kept = {self.video_file(vid) for vid in vids}
        for path in (self.folder / "videos").glob("[!.]*.safetensors"):
            if path not in kept:
                path.unlink(missing_ok=True)

    def video(self, vid: str, *, check: bool = False) -> VideoFeatures:
        """Read one video's features. A large file (``growing.LARGE``) is mapped, and read where its numbers are used.

        Args:
            vid: id of the video.
            check: compare all numbers and the header with the digests that were written with them.

        Raises:
            ValueError: if the store has no such video, or its file is damaged or has numbers that are not finite.
        """
        file = self._open_video(vid)
        path = self.video_file(vid)
        array = map_video(path) if path.stat().st_size > LARGE else _halves(file, "video", path)
        metadata = _metadata(file, path)
        if check and (metadata.get("digest"), metadata.get("header")) != _digests({"video": array}, metadata):
            raise ValueError(f"{path} is damaged: its content is not what was written; delete it and extract again")
        video_KTD = self._select_levels(array)
        if vid not in self._finite_videos:
            require_finite(video_KTD, self.spec.levels, store=self.folder, what=f"video {vid!r}", file=path)
            self._finite_videos.add(vid)
        return VideoFeatures(video_KTD=video_KTD, timeline=_timeline(metadata, path))

    def timeline(self, vid: str) -> Timeline:
        """Return one video's timeline from the file's header.

        Raises:
            ValueError: as :meth:`video`.
        """
        path = self.video_file(vid)
        return _timeline(_metadata(self._open_video(vid), path), path)

    def failures(self) -> list[dict[str, str]]:
        """Return vid, file and reason of each video that could not be read during extraction.

        Raises:
            ValueError: if the file is not what an extraction writes.
        """
        path = self.folder / FAILURES
        if not path.is_file():
            return []
        rows = [dict(line.values) for line in read_json_lines(path)]
        if not all({"vid", "reason"} <= row.keys() for row in rows):
            raise ValueError(not_our_failures(self.folder))
        return rows

    def put_failures(self, rows: Iterable[Mapping[str, str]]) -> None:
        """Replace the rows that :meth:`failures` returns."""
        write_json_lines(self.folder / FAILURES, rows)

    # --- queries --------------------------------------------------------------------------------------------------

    def _index(self) -> dict[str, Path]:
        """Return the file of every stored query, by digest; files that appeared since the last call are added."""
        for path in sorted((self.folder / "queries").glob("[!.]*.safetensors")):
            if path not in self._indexed_files:
                self._query_files.update(dict.fromkeys(_open(path).keys(), path))
                self._indexed_files.add(path)
        return self._query_files

    def missing_queries(self, queries: Iterable[str]) -> list[str]:
        """Return the sentences that the store lacks, each once."""
        index = self._index()
        return [query for query in dict.fromkeys(queries) if query_digest(query) not in index]

    def put_queries(self, features: Mapping[str, HalfFeatures]) -> None:
        """Add the (K, L, D_t) features of many sentences as one file."""
        self._require_all_levels()
        if not features:
            return
        tensors = {query_digest(query): text_KLD for query, text_KLD in features.items()}
        name = hashlib.sha256("".join(sorted(tensors)).encode()).hexdigest()[:16]
        _save(self.folder / "queries" / f"{name}.safetensors", tensors, {})

    def add_queries(self, queries: Iterable[str], encode: Callable[[list[str]], Mapping[str, HalfFeatures]]) -> None:
        """Encode the sentences that the store lacks and add them, a few thousand a file.

        Args:
            queries: sentences.
            encode: returns the (K, L, D_t) features of each sentence of a list.
        """
        missing = self.missing_queries(queries)
        for first in range(0, len(missing), QUERIES_PER_FILE):
            self.put_queries(encode(missing[first : first + QUERIES_PER_FILE]))

    def queries(self, queries: Iterable[str]) -> dict[str, HalfFeatures]:
        """Read the features of many sentences, opening each file once: sentence -> (K, L, D_t).

        Raises:
            ValueError: if the store lacks one of them.
        """
        wanted_queries = list(dict.fromkeys(queries))
        if missing := self.missing_queries(wanted_queries):
            raise ValueError(
                f"the feature store {self.folder} lacks {len(missing)} of {len(wanted_queries)} queries, "
                f"such as {missing[0]!r}; run `sidelight extract` with these annotations"
            )
        by_file: dict[Path, list[str]] = {}
        for query in wanted_queries:
            by_file.setdefault(self._query_files[query_digest(query)], []).append(query)
        features: dict[str, HalfFeatures] = {}
        for path, file_queries in by_file.items():
            file = _open(path)
            for query in file_queries:
                features[query] = text_KLD = self._select_levels(_halves(file, query_digest(query), path))
                what = f"the query {shown(query)}"
                require_finite(text_KLD, self.spec.levels, store=self.folder, what=what, file=path)
        return features

    def texts(self, keys: Iterable[SampleKey]) -> list[HalfFeatures]:
        """Read (K, L, D_t) of each key's sentence, in the order of the keys.

        Raises:
            ValueError: as :meth:`queries`.
        """
        sentences = [key.query for key in keys]
        features = self.queries(sentences)
        return [features[query] for query in sentences]

    # --- check ----------------------------------------------------------------------------------------------------

    def verify(self) -> dict[str, str]:
        """Read every file and check shapes, widths and the digest of the content (files of older versions have none).

        Returns:
            File, relative to the store -> fault; empty if the store is faultless.
        """
        faults: dict[str, str] = {}
        for part in ("queries", "videos"):
            for path in sorted((self.folder / part).glob("[!.]*.safetensors")):
                faults |= self._faults_of(path)
        return faults

    @cached_property
    def _full_spec(self) -> FeatureSpec:
        return self.spec if self._rows is None else FeatureStore(self.folder).spec

    def _faults_of(self, path: Path) -> dict[str, str]:
        """Return the fault of one file, by its name in the store; empty if it is faultless."""
        try:
            _verify_file(path, self._full_spec)
        except (ValueError, KeyError, OSError) as error:
            return {str(path.relative_to(self.folder)): " ".join(str(error).split())}
        return {}


def not_our_failures(place: object) -> str:
    """Return the message for a ``failures.jsonl`` that no extraction wrote.

    Args:
        place: folder or address of the store.
    """
    return (
        f"{place} holds a {FAILURES} that no extraction wrote, and an extraction would replace it; "
        "move that file, or give another folder for the store"
    )


def vid_in(path: Path) -> str:
    """Return the id of the video whose features a file holds."""
    if "%%" in path.stem:
        return _metadata(_open(path), path)["vid"]
    return unquote(path.stem, errors="surrogateescape")


def store_exists(folder: str | Path) -> bool:
    """Check whether there is a store in a folder or at an address.

    Raises:
        StorageError: if the storage of an address cannot be reached.
    """
    if is_address(folder):
        return "manifest.json" in file_versions(str(folder))
    return (Path(folder) / "manifest.json").is_file()


def query_digest(query: str) -> str:
    """Return the key of a sentence: 20 hex digits of its SHA-256."""
    return hashlib.sha256(query.encode()).hexdigest()[:20]


def _file_name(vid: str) -> str:
    """Return the name of the file of a video's features."""
    # Quoted, so that no id can name a file outside the folder.
    name = quote(vid, safe=" ()[]+,=@", errors="surrogateescape")
    name = f"%2E{name[1:]}" if name.startswith(".") else name  # no hidden files
    if len(name) > _LONGEST_NAME:  # the file's header has the id; no quoted name has %%
        name = f"{name[: _LONGEST_NAME // 2]}%%{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return f"{name}.safetensors"


def _save(path: Path, tensors: Mapping[str, npt.NDArray[Any]], metadata: dict[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    half_tensors = {name: np.ascontiguousarray(values, dtype=np.float16) for name, values in tensors.items()}
    for name, values in half_tensors.items():
        if not all_finite(values):
            raise ValueError(f"features for {path.stem} ({name}) have values that float16 cannot hold")
    # safetensors writes several entries in any order; with one entry, equal features are equal files.
    about = json.dumps(_with_digests(half_tensors, metadata), sort_keys=True)
    with replacing(path) as temporary:
        try:
            save_file(half_tensors, temporary, {"about": about})
        except SafetensorError as error:  # raised for a full disk too
            raise OSError(f"{path} cannot be written ({error}); make room, or choose another folder") from None


def _save_video(path: Path, video_KTD: npt.NDArray[Any], metadata: dict[str, str]) -> None:
    """Write the file that safetensors would write, a part at a time: safetensors copies all features first."""
    if not all_finite(video_KTD):
        raise ValueError(f"features for {path.stem} (video) have values that float16 cannot hold")
    about = json.dumps(_with_digests({"video": video_KTD}, metadata), sort_keys=True)
    entry = {"dtype": "F16", "shape": video_KTD.shape, "data_offsets": [0, 2 * video_KTD.size]}
    header = json.dumps({"__metadata__": {"about": about}, "video": entry}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with replacing(path) as temporary:
        try:
            with open(temporary, "wb") as file:
                file.write(len(header).to_bytes(8, "little") + header)
                for block in blocks(video_KTD):
                    file.write(block.data)
        except OSError as error:
            raise OSError(f"{path} cannot be written ({error}); make room, or choose another folder") from None


def _open(path: Path) -> Any:
    """Map a safetensors file into memory; ValueError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    require_regular(path)
    if not os.access(path, os.R_OK):  # safetensors reports such a file as missing
        raise ValueError(f"{path} cannot be read; you need the right to")
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and extract again") from None


def _halves(file: Any, name: str, path: Path) -> HalfFeatures:
    """Read one array of a file.

    Raises:
        ValueError: if it is missing, or its numbers are of another type than float16, the only one that stores hold.
    """
    from safetensors import SafetensorError

    try:
        dtype = file.get_slice(name).get_dtype()
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and extract again") from None
    if dtype != "F16":
        raise ValueError(f"{path} is damaged (the numbers of {name} are {dtype}, not F16); delete it and extract again")
    values: HalfFeatures = file.get_tensor(name)
    return values


def _metadata(file: Any, path: Path) -> dict[str, str]:
    """Return the metadata of a file; files of older versions have several entries.

    Raises:
        ValueError: if the metadata is not as it was written.
    """
    metadata: dict[str, str] = file.metadata() or {}
    try:
        return dict(json.loads(metadata["about"])) if "about" in metadata else metadata
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged (its header: {error}); delete it and extract again") from None


def _timeline(metadata: Mapping[str, str], path: Path) -> Timeline:
    """Return the timeline in the metadata of a file.

    Raises:
        ValueError: if it is missing or no timeline.
    """
    try:
        clips = int(metadata["clips"]) if "clips" in metadata else None
        return Timeline(duration=float(metadata["duration"]), clip_seconds=float(metadata["clip_seconds"]), clips=clips)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged (its header: {error}); delete it and extract again") from None


def _digests(tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> tuple[str, str]:
    """Return the digest of values, and the digest of the metadata together with it."""
    digest = _content_digest(tensors)
    about = {name: value for name, value in metadata.items() if name not in ("digest", "header")} | {"digest": digest}
    return digest, hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=16).hexdigest()


def _with_digests(tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> dict[str, str]:
    digest, header = _digests(tensors, metadata)
    return {**metadata, "digest": digest, "header": header}


def _content_digest(tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return 32 hex digits of names, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape};".encode())
        for block in blocks(tensors[name]):
            digest.update(block.data)
    return digest.hexdigest()


def _verify_file(path: Path, spec: FeatureSpec) -> None:
    """Check one file against the spec; ValueError or KeyError if it is not as written."""
    file = _open(path)
    # A safetensors file has keys() and is no mapping.
    tensors = {name: _halves(file, name, path) for name in file.keys()}  # noqa: SIM118
    metadata = _metadata(file, path)
    digest, header = _digests(tensors, metadata)
    if metadata.get("digest", digest) != digest or metadata.get("header", header) != header:
        raise ValueError("the content is not what was written (digest); delete the file and extract again")
    video = path.parent.name == "videos"
    width, levels = spec.video_dim if video else spec.text_dim, len(spec.levels)
    for name, values in tensors.items():
        if len(values) != levels or values.shape[-1] != width:
            raise ValueError(
                f"{name}: expected {levels} levels of width {width}, got {values.shape}; delete the file and extract "
                "again"
            )
        require_finite(values, spec.levels, store=path.parent.parent, what=name, file=path)
    if video:
        if (vid := metadata.get("vid")) is not None and _file_name(vid) != path.name:
            raise ValueError(f"its header names another video, {shown(vid)}; delete the file and extract again")
        VideoFeatures(video_KTD=tensors["video"], timeline=_timeline(metadata, path))
