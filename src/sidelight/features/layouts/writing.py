"""Features written in the layouts of others, and brought into a store of ours.

Legend: K levels, T clips, P tokens of a clip, L tokens of a sentence, D_v / D_t widths of video and text.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from sidelight.backbones.clip.released import CLIP_MODELS
from sidelight.backbones.protocol import FeatureSpec
from sidelight.features.layouts.arrays import Array, safe_name
from sidelight.features.layouts.files import LAYOUTS, SPEC_FILE, MomentDETRLayout, R2TuningLayout, SDSTLayout
from sidelight.features.layouts.reading import ForeignFeatures
from sidelight.features.store import FeatureStore, HalfFeatures, SampleKey
from sidelight.io.files import replacing, require_new_folder

_QUERIES_PER_FILE = 4096


def export_features(
    store: FeatureStore,
    out: str | Path,
    rows: Iterable[SampleKey],
    *,
    layout: str,
    level: int | None = None,
    progress: bool = False,
) -> tuple[int, int]:
    """Write the features of some annotations in a layout, with the feature spec beside them.

    Written beside ``out`` and renamed at the end; what an interrupted run has written is not written again.

    Args:
        store: ours.
        out: a folder that is empty or not there yet.
        rows: the annotations; their vid and qid become the names of the files.
        layout: a key of LAYOUTS.
        level: the only one to write; moment-detr has no place for several.
        progress: show a bar.

    Returns:
        How many videos and sentences.

    Raises:
        ValueError: if the features do not fit the layout, something is missing, or ``out`` is there already.
    """
    from tqdm import tqdm

    out, asked = Path(os.path.abspath(out)), list(rows)  # "." has no name to put another beside
    if layout not in LAYOUTS:
        raise ValueError(f"there is no feature layout {layout!r} to write; known are {', '.join(LAYOUTS)}")
    if not asked:
        raise ValueError("there are no annotations; expected at least one")
    require_new_folder(out)
    if level is not None:
        store = FeatureStore(store.folder, levels=(level,))
    spec = store.spec
    _check_fits(spec, layout)
    by_qid: dict[str, SampleKey] = {}
    for row in asked:
        safe_name(row.vid, "vid")
        other = by_qid.setdefault(safe_name(str(row.qid), "qid"), row)
        if other.query != row.query:
            raise ValueError(
                f"qid {row.qid!r} stands for two sentences, {other.query!r} and {row.query!r}; tell them apart"
            )
    vids = list(dict.fromkeys(row.vid for row in asked))
    if missing := [vid for vid in vids if not store.has_video(vid)]:
        raise ValueError(
            f"the feature store {store.folder} lacks {len(missing)} of {len(vids)} videos, such as {missing[0]!r}; "
            "extract them"
        )
    names = _names_for(spec, layout)
    # Goes on with what it began, and with nothing else: the same features of the same store for the same annotations.
    order = [str(store.folder.resolve()), layout, spec.digest(), *(f"{r.vid}\t{r.qid}\t{r.query}" for r in asked)]
    key = hashlib.sha256("\n".join(order).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    beside = out.with_name(f".{out.name[:80]}.{key}.partial")
    for name in names:
        (beside / name).mkdir(parents=True, exist_ok=True)
    for vid in tqdm(vids, unit="video", desc="writing", disable=not progress):
        path = beside / names[0] / vid
        _write(layout, path, video=None if _done(path) else store.video(vid).video_KTD)
    sentences = list(by_qid.items())
    for first in range(0, len(sentences), _QUERIES_PER_FILE):
        part = sentences[first : first + _QUERIES_PER_FILE]
        for (qid, _), text_KLD in zip(part, store.texts(row for _, row in part), strict=True):
            name = f"qid{qid}" if layout == MomentDETRLayout.name else qid
            _write(layout, beside / names[1] / name, text=text_KLD)
    (beside / SPEC_FILE).write_text(json.dumps(spec.to_dict(), indent=2) + "\n", encoding="utf-8")
    if out.is_dir():
        out.rmdir()  # it is empty
    beside.rename(out)
    return len(vids), len(sentences)


def _check_fits(spec: FeatureSpec, layout: str) -> None:
    if spec.pooling == "tokens" and layout != R2TuningLayout.name:
        raise ValueError(
            f"the layout {layout} has one vector a clip, the store every token; choose r2-tuning, or extract with "
            "another pooling"
        )
    count = len(spec.levels)
    if layout == MomentDETRLayout.name and count > 1:
        levels = ", ".join(map(str, spec.levels))
        raise ValueError(f"the layout {layout} has one level, the store {count} ({levels}); choose one with --level")
    if layout != MomentDETRLayout.name and spec.levels != tuple(range(-count, 0)):
        raise ValueError(
            f"the layout {layout} holds the last levels of a backbone, the store has {spec.levels}; extract the last "
            f"{-spec.levels[0]}"
        )


def _names_for(spec: FeatureSpec, layout: str) -> tuple[str, str]:
    """The folders of videos and of sentences."""
    if layout == SDSTLayout.name:
        return "vid_feats", "txt_feats"
    if layout == MomentDETRLayout.name:
        return f"{spec.backbone}_features", f"{spec.backbone}_text_features"
    sizes = {weights: size for size, (weights, _, _) in CLIP_MODELS.items()}
    size = f"_{sizes[spec.weights]}" if spec.weights in sizes else ""
    name, count = spec.backbone + size, len(spec.levels)
    return f"{name}_vid_k{count}", f"{name}_txt_k{count}"


def _done(path: Path) -> bool:
    return any(path.with_name(path.name + suffix).is_file() for suffix in (".npy", ".npz"))


def _write(layout: str, path: Path, *, video: HalfFeatures | None = None, text: HalfFeatures | None = None) -> None:
    """One video's or sentence's file, its suffix added."""
    if layout == R2TuningLayout.name:
        if video is not None:
            array = video if video.ndim == 4 else video[:, :, None]
            _save_npy(path, array.transpose(1, 0, 2, 3))
        elif text is not None:
            _save_npy(path, text.transpose(1, 0, 2))
    elif layout == SDSTLayout.name:
        if video is not None:
            _save_npz(path, SDSTLayout.VIDEO, video.transpose(1, 0, 2))
        elif text is not None:
            _save_npz(path, SDSTLayout.TEXT, text)
    elif video is not None:
        _save_npz(path, MomentDETRLayout.VIDEO, video[0])
    elif text is not None:
        _save_npz(path, MomentDETRLayout.TEXT, text[0])


def _save_npy(path: Path, array: Array) -> None:
    with replacing(path.with_name(f"{path.name}.npy")) as beside, beside.open("wb") as file:
        np.save(file, np.ascontiguousarray(array), allow_pickle=False)


def _save_npz(path: Path, key: str, array: Array) -> None:
    with replacing(path.with_name(f"{path.name}.npz")) as beside, beside.open("wb") as file:
        np.savez(file, **{key: np.ascontiguousarray(array)})  # type: ignore[arg-type]  # stubs take the names for options


def import_features(
    features: ForeignFeatures, out: str | Path, rows: Iterable[SampleKey], *, progress: bool = False
) -> FeatureStore:
    """Bring the features of some annotations into a store of ours. What it holds is not read again.

    Args:
        features: foreign ones (:func:`open_features`).
        out: folder of the store; made if need be.
        rows: the annotations.
        progress: show a bar.

    Raises:
        SpecMismatchError: if ``out`` holds features of another spec.
        ValueError: if something is missing or damaged, or one sentence has two features that differ.
    """
    from tqdm import tqdm

    asked = list(rows)
    vids = list(dict.fromkeys(row.vid for row in asked))
    for vid in vids:
        features.timeline(vid)  # what is missing or does not fit is said before anything is written
    sentences: dict[str, list[SampleKey]] = {}
    for row in asked:
        sentences.setdefault(row.query, []).append(row)
    store = FeatureStore.create(out, features.spec)
    missing = store.missing_queries(sentences)
    for first in range(0, len(missing), _QUERIES_PER_FILE):
        part = missing[first : first + _QUERIES_PER_FILE]
        store.put_queries({query: _one_text(features, sentences[query]) for query in part})
    todo = [vid for vid in vids if not store.has_video(vid)]
    for vid in tqdm(todo, unit="video", desc="importing", disable=not (progress and todo)):
        store.put_video(vid, features.video(vid))
    return store


def _one_text(features: ForeignFeatures, rows: Sequence[SampleKey]) -> HalfFeatures:
    """The features of a sentence that several annotations may have: files go by qid, our store by sentence."""
    first, *others = (features.text(row) for row in rows)
    for row, other in zip(rows[1:], others, strict=True):
        if other.shape != first.shape or not np.allclose(other, first, rtol=0.02, atol=0.02):
            raise ValueError(
                f"{features.files.text_path(rows[0])} and {features.files.text_path(row)} are features of the same "
                f"sentence, {row.query!r}, and differ; a store keeps one for each: compare the annotations"
            )
    return first
