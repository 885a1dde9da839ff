"""Every parser of foreign bytes, as a function that feeds it bytes.

A parser may refuse its input with a sentence (ValueError or OSError). Every other exception is a crash, and so is an
error without a sentence of ours, such as a bare UnicodeDecodeError. ``run.py`` mutates inputs; ``test_corpus.py`` runs
the kept ones.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from sidelight.backbones.internvideo2.wordpiece import WordPiece
from sidelight.backbones.protocol import FeatureSpec
from sidelight.core.grounding import Grounding
from sidelight.core.timeline import Timeline
from sidelight.data import datasets
from sidelight.data.annotations import read_annotations, read_submissions
from sidelight.data.table_import import import_table
from sidelight.features.layouts.arrays import mapped, members, packed, packed_shape
from sidelight.features.store import FeatureStore, VideoFeatures
from sidelight.training.recipe import read_recipe
from sidelight.video.clock import parts_of
from sidelight.video.nal import NalReader
from sidelight.video.playlist import files_of

Target = Callable[[bytes, Path], None]
"""Feeds bytes to a parser; may write files into the folder."""

SPEC = FeatureSpec(
    backbone="shapes",
    weights="0",
    levels=(-2, -1),
    pooling="cls",
    clip_seconds=2.0,
    frames_per_clip=4,
    resolution=32,
    resize="stretch",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    video_dim=4,
    text_dim=4,
)


def is_refusal(error: Exception) -> bool:
    """Check whether an error is a sentence for people."""
    bare = isinstance(error, (UnicodeError, json.JSONDecodeError))
    return isinstance(error, (ValueError, OSError)) and not bare and " " in str(error)


def run(target: Target, data: bytes, folder: Path) -> None:
    """Feed bytes to a target; raise what is no refusal."""
    try:
        target(data, folder)
    except Exception as error:
        if not is_refusal(error):
            raise


def _written(data: bytes, path: Path) -> Path:
    path.write_bytes(data)
    return path


def _chosen(data: bytes, choices: tuple[str, ...]) -> tuple[str, bytes]:
    """Return the choice that the first byte makes, and the other bytes."""
    return choices[data[0] % len(choices)] if data else choices[0], data[1:]


def annotation_lines(data: bytes, folder: Path) -> None:
    """Read annotations and predictions as JSON lines."""
    path = _written(data, folder / "rows.jsonl")
    for read in (read_annotations, read_submissions):
        try:
            read(path)
        except ValueError as error:
            if not is_refusal(error):
                raise


def benchmarks(data: bytes, folder: Path) -> None:
    """Recognise and read the released files of all benchmarks."""
    suffix, rest = _chosen(data, (".jsonl", ".json", ".txt"))
    path = _written(rest, folder / f"train{suffix}")
    datasets.recognise(path)
    for benchmark in datasets.BENCHMARKS.values():
        try:
            benchmark.read(path)
        except ValueError as error:
            if not is_refusal(error):
                raise


def table(data: bytes, folder: Path) -> None:
    """Import a table."""
    suffix, rest = _chosen(data, (".csv", ".tsv", ".jsonl", ".json"))
    import_table(_written(rest, folder / f"table{suffix}"))


def recipe(data: bytes, folder: Path) -> None:
    """Read a recipe in YAML."""
    read_recipe(_written(data, folder / "recipe.yaml"))


def stored_video(data: bytes, folder: Path) -> None:
    """Read a video's file in a feature store (safetensors)."""
    store = _store(folder)
    _written(data, store.video_file("v"))
    store.verify()
    store.videos()
    if store.is_whole("v"):
        store.timeline("v")
        np.asarray(store.video("v").video_KTD, dtype=np.float64)


def stored_queries(data: bytes, folder: Path) -> None:
    """Read a file of queries in a feature store (safetensors)."""
    store = _store(folder)
    _written(data, store.folder / "queries" / "q.safetensors")
    store.verify()
    store.queries(["a ring"])


def manifest(data: bytes, folder: Path) -> None:
    """Open a feature store by its manifest."""
    store = _store(folder)
    _written(data, store.folder / "manifest.json")
    FeatureStore(store.folder)


def _store(folder: Path) -> FeatureStore:
    shutil.rmtree(folder / "store", ignore_errors=True)
    return FeatureStore.create(folder / "store", SPEC)


def arrays(data: bytes, folder: Path) -> None:
    """Read features that papers released: .npz and .npy."""
    suffix, rest = _chosen(data, (".npz", ".npy"))
    path = _written(rest, folder / f"array{suffix}")
    if suffix == ".npy":
        np.asarray(mapped(path)[:1])
        return
    for key in members(path):
        packed_shape(path, key, "(clips, width)")
        packed(path, key)


def nal(data: bytes, folder: Path) -> None:
    """Read the parameter sets and packets of H.264 and HEVC."""
    codec, rest = _chosen(data, ("h264", "hevc"))
    header, *packets = rest.split(b"\xff\xfe\xfd")
    name = SimpleNamespace(canonical_name=codec)
    stream: Any = SimpleNamespace(codec_context=SimpleNamespace(extradata=header, codec=name))
    reader = NalReader(stream)
    for packet in packets:
        reader.is_disposable(_Packet(packet))  # type: ignore[arg-type]


class _Packet(bytes):
    """A packet of a video, as far as NalReader looks at it."""

    is_keyframe = is_discard = is_corrupt = False

    def has_sidedata(self, name: str) -> bool:
        return False


def recordings(data: bytes, folder: Path) -> None:
    """Find the recordings that a video file joins."""
    path = _written(data, folder / "v.mp4")
    parts = parts_of(path)
    assert parts and all(0 <= part.begin <= (part.end or len(data)) <= len(data) for part in parts)


def playlist(data: bytes, folder: Path) -> None:
    """Find the files that a playlist names: none outside its folder."""
    (folder / "a.ts").touch()
    (folder / "b.m3u8").write_bytes(b"#EXTM3U\n#EXTINF:1,\na.ts\n#EXT-X-ENDLIST\n")
    path = _written(b"#EXTM3U" + data, folder / "a.m3u8")
    inside = folder.resolve()
    assert all(inside in Path(file).parents for file in files_of(str(path)))


def vocabulary(data: bytes, folder: Path) -> None:
    """Read a vocabulary, and a text with it."""
    words, _, text = data.partition(b"\xff")
    tokens = WordPiece.read(_written(words, folder / "vocab.txt"))
    tokens(text.decode("utf-8", "replace"))


def grounding(data: bytes, folder: Path) -> None:
    """Read a grounding as JSON, and write and read it again."""
    answer = Grounding.from_json(data.decode("utf-8", "replace"))
    assert Grounding.from_json(answer.to_json()) == answer


TARGETS: dict[str, Target] = {
    "annotations": annotation_lines,
    "arrays": arrays,
    "benchmarks": benchmarks,
    "grounding": grounding,
    "manifest": manifest,
    "nal": nal,
    "playlist": playlist,
    "recipe": recipe,
    "recordings": recordings,
    "stored_queries": stored_queries,
    "stored_video": stored_video,
    "table": table,
    "vocabulary": vocabulary,
}
"""The targets by name; the corpus of each is the folder of its name."""


def seed_features() -> VideoFeatures:
    """Return small features for the seeds of the corpus."""
    values = np.arange(2 * 3 * 4, dtype=np.float16).reshape(2, 3, 4)
    return VideoFeatures(video_KTD=values, timeline=Timeline(duration=5.5, clip_seconds=2.0))
