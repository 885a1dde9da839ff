"""Check annotations together with their video files and features: the work of ``sidelight data check``."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from sidelight.core.timeline import Timeline
from sidelight.data.check import CheckedData, check_data
from sidelight.data.findings import Finding, Report, findings_of
from sidelight.features.growing import FeatureValuesError, all_finite
from sidelight.features.layouts import CLIPS_OFF, LAYOUTS, Layout, Shape, layout_of
from sidelight.features.store import FeatureStore
from sidelight.io.jsonl import shown


def check(
    folder: str | Path,
    benchmark: str | None = None,
    videos: str | Path | None = None,
    features: str | Path | Sequence[str | Path] | None = None,
) -> Report:
    """Check all annotations of a folder, and the videos and features that belong to them.

    Args:
        folder: the folder of the annotations, which may lie one folder below; or one file.
        benchmark: how to read them, or "own data" for the QVHighlights form; unless given, each file is recognised by
            its name or content.
        videos: folder with the video files, named by their ids; one frame of each is decoded.
        features: one feature store or several; or folders in the layout of a paper, whose files are read one by one.

    Raises:
        AnnotationError: if there are no annotations, or no such benchmark.
        ValueError: if a feature store cannot be opened.
    """
    data = check_data(folder, benchmark, videos)
    folders = [features] if isinstance(features, (str, Path)) else list(features or ())
    layouts = {place: layout_of(place) for place in folders}
    for place, layout in layouts.items():
        if layout != "sidelight":
            data.findings += _check_layout(LAYOUTS[layout](place), data)
    if stores := [FeatureStore(place) for place in folders if layouts[place] == "sidelight"]:
        data.findings += _check_stores(stores, data)
    return data.report()


def _check_stores(stores: Sequence[FeatureStore], data: CheckedData) -> list[Finding]:
    """Check feature stores that together hold the features of some annotations."""
    durations = data.durations
    findings: list[Finding] = []
    surplus: list[Finding] = []
    stored_vids: set[str] = set()
    sentences = queries = list(dict.fromkeys(a.query for file in data.files for a in file.annotations))
    for store in stores:
        findings += findings_of({"features-spec": _spec_differences(store, stores[0])}, store.folder)
    for store in stores:
        vids = store.videos()
        known_vids = [vid for vid in vids if vid in durations]
        stored_vids.update(known_vids)
        findings += findings_of(_faults_of_videos(store, known_vids, durations), store.folder)
        findings += findings_of(_faults_of_queries(store, sentences), store.folder)
        surplus += findings_of({"surplus-features": [vid for vid in vids if vid not in durations]}, store.folder)
    for store in stores:
        queries = store.missing_queries(queries)
    places = ", ".join(str(store.folder) for store in stores)
    data.features.append(
        f"{places}: features of {len(stored_vids):,} of {len(durations):,} videos and of "
        f"{len(sentences) - len(queries):,} of {len(sentences):,} sentences"
        + ("" if findings or queries or len(stored_vids) < len(durations) else ", which fit")
    )
    missing = {
        "missing-features": [vid for vid in durations if vid not in stored_vids],
        "missing-query-features": [shown(query) for query in queries],
    }
    return findings + findings_of(missing, places) + surplus


def _spec_differences(store: FeatureStore, first: FeatureStore) -> list[str]:
    """Return a line for each field of the feature spec that differs from the first store's."""
    names = [f.name for f in fields(store.spec) if getattr(store.spec, f.name) != getattr(first.spec, f.name)]
    return [
        f"{name} is {getattr(store.spec, name)!r}, in {first.folder} {getattr(first.spec, name)!r}" for name in names
    ]


def _faults_of_videos(store: FeatureStore, vids: Iterable[str], durations: Mapping[str, float]) -> dict[str, list[str]]:
    """Read the features of videos of a store, and return their faults by kind."""
    from tqdm import tqdm

    faults: dict[str, list[str]] = defaultdict(list)
    for vid in tqdm(vids, unit="video", desc="reading", disable=None):
        try:
            timeline = store.video(vid).timeline
        except FeatureValuesError as error:
            faults["features-values"].append(f"video {vid}: {error}")
            continue
        except (ValueError, KeyError) as error:
            faults["features-unreadable"].append(f"{vid}: {error}")
            continue
        expected = Timeline(duration=durations[vid], clip_seconds=timeline.clip_seconds).num_clips
        if abs(timeline.num_clips - expected) > 1:
            faults["features-length"].append(f"{vid}: {timeline.num_clips} clips, {durations[vid]:g} s are {expected}")
    return faults


def _faults_of_queries(store: FeatureStore, sentences: Sequence[str]) -> dict[str, list[str]]:
    """Read the features of the sentences that a store has, and return their faults by kind."""
    faults: dict[str, list[str]] = defaultdict(list)
    missing = set(store.missing_queries(sentences))
    present = [query for query in sentences if query not in missing]
    try:
        store.queries(present)  # opens each file once
    except ValueError:
        for query in present:
            try:
                store.queries([query])
            except FeatureValuesError as error:
                faults["features-values"].append(str(error))
            except ValueError as error:
                faults["features-unreadable"].append(f"{shown(query)}: {error}")
    return faults


def _check_layout(files: Layout, data: CheckedData) -> list[Finding]:
    """Read all features of some annotations in the layout of a paper, and check their shapes and values."""
    from tqdm import tqdm

    rows = {str(a.qid): a for file in data.files for a in file.annotations}
    num_clips = {a.vid: file.num_clips(a) for file in data.files for a in file.annotations}
    faults: dict[str, list[str]] = defaultdict(list)
    videos: dict[str, Shape] = {}
    sentences: dict[str, Shape] = {}
    for vid, expected in tqdm(num_clips.items(), unit="video", desc="reading", disable=None):
        try:
            if not files.has_video(vid):
                faults["missing-features"].append(vid)
                continue
            videos[vid] = shape = files.video_shape(vid)
            if not all_finite(files.video(vid, range(shape.levels))):
                faults["features-values"].append(f"video {vid}")
        except ValueError as error:
            faults["features-unreadable"].append(f"{vid}: {error}")
            continue
        if expected is not None and shape.length != expected:
            kind = "features-length" if abs(shape.length - expected) > CLIPS_OFF else "features-few"
            faults[kind].append(f"{vid}: {shape.length} clips, its duration makes {expected}")
    for qid, row in rows.items():
        try:
            if not files.has_text(row):
                faults["missing-query-features"].append(f"qid {qid}: {shown(row.query)}")
                continue
            sentences[qid] = shape = files.text_shape(row)
            if not all_finite(files.text(row, range(shape.levels))):
                faults["features-values"].append(f"qid {qid}: {shown(row.query)}")
        except ValueError as error:
            faults["features-unreadable"].append(f"qid {qid}: {error}")
    summary = []
    for noun, shapes, count in (("video", videos, len(num_clips)), ("sentence", sentences, len(rows))):
        forms = Counter(shape.describe() for shape in shapes.values())
        usual = forms.most_common(1)[0][0] if forms else "none"
        summary.append(f"{files.name}: {len(shapes):,} of {count:,} {noun}s; {usual}")
        faults["features-shape"] += [
            f"{noun} {name}: {shape.describe()}" for name, shape in shapes.items() if shape.describe() != usual
        ]
    faults["surplus-features"] = files.surplus_vids(num_clips)
    return findings_of({"features-layout": summary, **faults}, files.where)
