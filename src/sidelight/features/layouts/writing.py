"""Export features of a store to the layout of a paper, and import features of a paper into a store.

Legend: K levels, T clips, L tokens of a sentence, D_v / D_t widths of video and text.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from sidelight.core.messages import no_such
from sidelight.features.layouts.arrays import safe_name
from sidelight.features.layouts.base import SPEC_FILE, Layout
from sidelight.features.layouts.reading import ForeignFeatures
from sidelight.features.layouts.registry import LAYOUTS
from sidelight.features.store import QUERIES_PER_FILE, FeatureStore, HalfFeatures, SampleKey
from sidelight.io.files import require_new_folder


def export_features(
    store: FeatureStore,
    out: str | Path,
    rows: Iterable[SampleKey],
    *,
    layout: str,
    level: int | None = None,
    progress: bool = False,
) -> tuple[int, int]:
    """Write the features of some annotations in a layout, with the feature spec in ``feature-spec.json``.

    The files are written beside ``out`` and renamed at the end; an interrupted run is continued by the same call.

    Args:
        store: a feature store of ours.
        out: a folder that is empty or does not exist yet.
        rows: the annotations; their vid and qid become the names of the files.
        layout: a key of LAYOUTS.
        level: write only this level; moment-detr has no place for several.
        progress: show a bar.

    Returns:
        The numbers of videos and of sentences.

    Raises:
        ValueError: if the features do not fit the layout, features are missing, or ``out`` exists already.
    """
    from tqdm import tqdm

    out, rows = Path(os.path.abspath(out)), list(rows)  # "." has no name to put another beside
    if layout not in LAYOUTS:
        raise ValueError(no_such("feature layout", layout, LAYOUTS))
    if not rows:
        raise ValueError("there are no annotations; expected at least one")
    require_new_folder(out)
    if level is not None:
        store = FeatureStore(store.folder, levels=(level,))
    LAYOUTS[layout].require_fits(store.spec)
    vids, sentences = list(dict.fromkeys(safe_name(row.vid, "vid") for row in rows)), _one_row_per_qid(rows)
    if missing := [vid for vid in vids if not store.has_video(vid)]:
        raise ValueError(
            f"the feature store {store.folder} lacks {len(missing)} of {len(vids)} videos, such as {missing[0]!r}; "
            "extract them"
        )
    beside = out.with_name(f".{out.name[:80]}.{_export_key(store, layout, rows)}.partial")
    files: Layout = LAYOUTS[layout].create(beside, store.spec)
    for vid in tqdm(vids, unit="video", desc="writing", disable=not progress):
        if not files.video_file(vid).is_file():
            files.write_video(vid, store.video(vid).video_KTD)
    for first in range(0, len(sentences), QUERIES_PER_FILE):
        part = sentences[first : first + QUERIES_PER_FILE]
        for row, text_KLD in zip(part, store.texts(part), strict=True):
            files.write_text(row, text_KLD)
    (beside / SPEC_FILE).write_text(json.dumps(store.spec.to_dict(), indent=2) + "\n", encoding="utf-8")
    if out.is_dir():
        out.rmdir()  # it is empty
    beside.rename(out)
    return len(vids), len(sentences)


def _one_row_per_qid(rows: Iterable[SampleKey]) -> list[SampleKey]:
    """Return the first annotation of each qid; ValueError if a qid has two sentences."""
    by_qid: dict[str, SampleKey] = {}
    for row in rows:
        first = by_qid.setdefault(safe_name(str(row.qid), "qid"), row)
        if first.query != row.query:
            raise ValueError(
                f"qid {row.qid!r} stands for two sentences, {first.query!r} and {row.query!r}; give each its own qid"
            )
    return list(by_qid.values())


def _export_key(store: FeatureStore, layout: str, rows: Iterable[SampleKey]) -> str:
    """Return a key of one export: only an export of the same features and annotations is continued."""
    parts = [str(store.folder.resolve()), layout, store.spec.digest()]
    parts += [f"{row.vid}\t{row.qid}\t{row.query}" for row in rows]
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def import_features(
    features: ForeignFeatures, out: str | Path, rows: Iterable[SampleKey], *, progress: bool = False
) -> FeatureStore:
    """Copy the features of some annotations into a store of ours; features that the store holds are not read again.

    Args:
        features: features of a paper (:func:`~sidelight.features.layouts.open_layout`).
        out: folder of the store; created if it does not exist.
        rows: the annotations.
        progress: show a bar.

    Raises:
        SpecMismatchError: if ``out`` holds features of another spec.
        ValueError: if features are missing or damaged, or one sentence has two features that differ.
    """
    from tqdm import tqdm

    rows = list(rows)
    vids = list(dict.fromkeys(row.vid for row in rows))
    for vid in vids:
        features.timeline(vid)  # raises before anything is written
    sentences: dict[str, list[SampleKey]] = {}
    for row in rows:
        sentences.setdefault(row.query, []).append(row)
    store = FeatureStore.create(out, features.spec)
    store.add_queries(sentences, lambda part: {query: _text_of(features, sentences[query]) for query in part})
    missing = [vid for vid in vids if not store.has_video(vid)]
    for vid in tqdm(missing, unit="video", desc="importing", disable=not (progress and missing)):
        store.put_video(vid, features.video(vid))
    return store


def _text_of(features: ForeignFeatures, rows: Sequence[SampleKey]) -> HalfFeatures:
    """Return the features of the sentence that these annotations share.

    A layout has a file for each qid, a store one entry for each sentence: ValueError if the files differ.
    """
    first, *others = (features.text(row) for row in rows)
    for row, text_KLD in zip(rows[1:], others, strict=True):
        if text_KLD.shape != first.shape or not np.allclose(text_KLD, first, rtol=0.02, atol=0.02):
            raise ValueError(
                f"{features.layout.text_path(rows[0])} and {features.layout.text_path(row)} are features of the same "
                f"sentence, {row.query!r}, and differ; a store keeps one for each: compare the annotations"
            )
    return first
