"""The doctor: what is in a folder of annotations, and what is wrong with it, its videos and its features.

    from sidelight.features.data_check import check

    report = check("data/tacos")
    for finding in report.findings:
        print(finding.severity, finding.file, finding.says, finding.rows)

Every row is looked at on its own, so that a bad one does not hide the rest.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sidelight.core.timeline import Timeline
from sidelight.data.annotations import CLIP_SECONDS, Annotation, AnnotationError, is_number
from sidelight.data.datasets import BENCHMARKS, Benchmark, benchmark, recognise
from sidelight.data.datasets.base import Row, annotation_of, json_lines, shown, video_files
from sidelight.data.datasets.qvhighlights import seconds_in_name
from sidelight.features.layouts import CLIPS_OFF, LAYOUTS, Layout, Shape, layout_of
from sidelight.features.store import FeatureStore

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
OWN_DATA = "own data"
EXAMPLES = 3
_OWN_CLIP_SECONDS = 2.0
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One thing that can be wrong."""

    severity: Severity
    """error: cannot be used as it is; warning: can, but probably not as meant; note: good to know."""
    says: str
    """What it is, in a few words."""
    advice: str
    """What sidelight does about it, or what to do."""


KINDS: dict[str, Kind] = {
    # rows
    "unreadable-file": Kind(severity="error", says="unreadable file", advice="it cannot be read at all"),
    "unreadable-row": Kind(
        severity="error", says="unreadable rows", advice="readers stop here; correct them, or read with lenient=True"
    ),
    "missing-field": Kind(severity="error", says="missing fields", advice="readers stop here; add the field"),
    "bad-field": Kind(severity="error", says="fields of a wrong form", advice="readers stop here; correct them"),
    "duplicate-qid": Kind(
        severity="error", says="qid given twice", advice="readers stop here; give each row its own qid"
    ),
    "duplicate-row": Kind(
        severity="warning",
        says="the same row again",
        advice="all are kept: each counts in training and in scores, as in published numbers",
    ),
    "duplicate-query": Kind(
        severity="note",
        says="the same sentence of the same video again, with other labels",
        advice="each is a query of its own, though one answer can hardly be right for all",
    ),
    "query-spaces": Kind(
        severity="note",
        says="surplus spaces in the sentence",
        advice="kept as published; features are stored under the exact sentence",
    ),
    "query-control": Kind(
        severity="warning", says="control characters in the sentence", advice="kept as published; a tokenizer may trip"
    ),
    "no-labels": Kind(
        severity="note", says="neither windows nor ratings", advice="can be predicted, but not trained on or scored"
    ),
    # windows
    "window-beyond": Kind(
        severity="error", says="windows that start after the video", advice="readers stop here; correct the window"
    ),
    "window-ends-far": Kind(
        severity="error",
        says="windows that end more than a clip after the video",
        advice="training refuses them; correct the window or the duration",
    ),
    "window-ends-late": Kind(
        severity="warning",
        says="windows that end after the video, by at most a clip",
        advice="training cuts them at the video's end, scores use them as they are",
    ),
    "window-swapped": Kind(
        severity="error", says="windows that end before they start", advice="readers stop here; swap the two"
    ),
    "window-empty": Kind(
        severity="error", says="windows without length", advice="readers stop here; correct or remove them"
    ),
    "window-negative": Kind(
        severity="error", says="windows that start before 0", advice="readers stop here; correct them"
    ),
    "window-overlap": Kind(
        severity="warning", says="windows of a query that overlap", advice="each counts as a moment of its own"
    ),
    "window-unsorted": Kind(severity="note", says="windows that are not in order", advice="kept in this order"),
    # ratings
    "clip-far": Kind(
        severity="error", says="rated clips beyond the video", advice="training refuses them; correct relevant_clip_ids"
    ),
    "clip-late": Kind(
        severity="warning", says="one rated clip beyond the video", advice="training leaves this clip's ratings out"
    ),
    "clip-twice": Kind(severity="error", says="clips rated twice", advice="readers stop here; correct them"),
    "rating-count": Kind(
        severity="error",
        says="saliency_scores and relevant_clip_ids of different numbers",
        advice="readers stop here; give one list of ratings per clip",
    ),
    "raters-differ": Kind(
        severity="error", says="clips with different numbers of raters", advice="readers stop here; give one per rater"
    ),
    "clip-rated-0": Kind(
        severity="note",
        says="relevant clips that every rater gave 0",
        advice="training takes 0.1 for them, so that they stay relevant",
    ),
    "clip-frames": Kind(
        severity="warning",
        says="the last clip ends after the video's last picture",
        advice="nothing here depends on it; cut clips at the last picture",
    ),
    # durations
    "duration-name": Kind(
        severity="note",
        says="videos shorter or longer than their name says",
        advice="the field duration is taken; compare with the video file",
    ),
    "duration-clips": Kind(
        severity="note",
        says="duration is the number of clips, not seconds",
        advice="the reader of TVSum takes 2 s times the rated clips; other readers are misled",
    ),
    "duration-differs": Kind(
        severity="warning", says="videos with several durations", advice="each row is read with its own; correct them"
    ),
    # files against each other and against what was published
    "shared-video": Kind(
        severity="warning", says="videos that stand in two splits", advice="scores on them say too much; separate them"
    ),
    "count-differs": Kind(
        severity="note", says="other numbers than published", advice="scores are not quite comparable"
    ),
    # videos and features
    "missing-video": Kind(
        severity="error", says="videos without a file", advice="extraction stops here; expected VID.mp4 or the like"
    ),
    "surplus-video": Kind(severity="note", says="video files that no annotation names", advice="they are not used"),
    "missing-features": Kind(
        severity="error", says="videos without features", advice="run `sidelight extract`; it goes on where it stopped"
    ),
    "missing-query-features": Kind(
        severity="error",
        says="sentences without features",
        advice="run `sidelight extract` with these annotations; the sentence must match exactly",
    ),
    "surplus-features": Kind(severity="note", says="features that no annotation names", advice="they are not used"),
    "features-length": Kind(
        severity="error",
        says="features longer or shorter than the video by more than a clip",
        advice="windows would point elsewhere; compare vid, duration and clip length, then extract again",
    ),
    "features-unreadable": Kind(
        severity="error", says="features that cannot be read", advice="delete the file and extract again"
    ),
    "features-layout": Kind(
        severity="note",
        says="features in the layout of a paper",
        advice="training, predict and features import read it",
    ),
    "features-shape": Kind(
        severity="error",
        says="features of other levels, tokens or width than most",
        advice="readers stop here; get or write them again",
    ),
    "features-values": Kind(
        severity="error",
        says="features that are not finite, or too large for float16",
        advice="training would not survive them; get or write them again",
    ),
    "features-few": Kind(
        severity="note",
        says=f"features up to {CLIPS_OFF} clips longer or shorter than their video",
        advice="what is more is cut, what is missing is as if the video ended there",
    ),
    "features-recipe": Kind(
        severity="error",
        says="stores of different feature specs",
        advice="a model takes features of one spec only; extract all with the same backbone and options",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One kind of fault in one file, store or folder."""

    kind: str
    """Its key in KINDS."""
    file: str
    """Where: a file of annotations, a folder of videos or a store."""
    rows: int
    """How many rows are concerned; where the kind is about clips, videos or sentences, how many of these."""
    examples: tuple[str, ...]
    """The first few: place, qid, and what stands there."""

    @property
    def severity(self) -> Severity:
        """error, warning or note."""
        return KINDS[self.kind].severity

    @property
    def says(self) -> str:
        """What it is, in a few words."""
        return KINDS[self.kind].says

    @property
    def advice(self) -> str:
        """What sidelight does about it, or what to do."""
        return KINDS[self.kind].advice

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        words = {"severity": self.severity, "says": self.says, "advice": self.advice}
        return {**asdict(self), "examples": list(self.examples), **words}


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """What one file of annotations holds."""

    file: str
    """Its path."""
    benchmark: str
    """The name of its benchmark, or "own data"."""
    split: str | None
    """By its name; none if the name does not say."""
    rows: int
    """All rows, the unusable ones included."""
    usable: int
    """Those that the readers take."""
    videos: int
    """Different videos of the usable rows."""
    windows: int
    """Of the usable rows."""
    hours: float
    """Length of these videos, each counted once."""
    rated_clips: int
    """Clips with ratings, of the usable rows."""
    published_queries: int | None
    """As the benchmark's paper or release counts them."""
    published_videos: int | None
    """Likewise."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the doctor found."""

    files: tuple[FileReport, ...]
    """The files of annotations, in the order of their names."""
    findings: tuple[Finding, ...]
    """Errors first."""
    skipped: tuple[str, ...] = ()
    """Files that hold something else than annotations and were not looked at."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that keep the data from being used."""
        return tuple(f for f in self.findings if f.severity == "error")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "files": [asdict(f) for f in self.files],
            "findings": [f.to_dict() for f in self.findings],
            "skipped": list(self.skipped),
        }


def check(
    folder: str | Path,
    benchmark: str | None = None,
    videos: str | Path | None = None,
    features: str | Path | Sequence[str | Path] | None = None,
) -> Report:
    """Look at all annotations of a folder, and at the videos and features that belong to them.

    Args:
        folder: where the files of annotations are, in it or one folder below; or one file.
        benchmark: how to read them, or "own data" for the QVHighlights form; else each file is recognised by its
            name or content.
        videos: folder with the video files, named by their ids; names are compared, nothing is decoded.
        features: one feature store or several; or folders in a layout that papers released, of which every file that
            the annotations name is read.

    Raises:
        AnnotationError: if there is nothing to look at, or no such benchmark.
        ValueError: if a feature store cannot be opened.
    """
    its = _named(benchmark)
    paths, skipped = _files(Path(folder))
    looked = [_look(path, its if benchmark is not None else recognise(path)) for path in paths]
    findings = [finding for one in looked for finding in one.findings()]
    findings += _shared_videos(looked)
    durations = {vid: seconds for one in looked for vid, seconds in one.durations.items()}
    if videos is not None:
        findings += _check_videos(Path(videos), durations)
    stores = [features] if isinstance(features, (str, Path)) else list(features or ())
    foreign = [s for s in stores if layout_of(s) != "sidelight"]
    for where in foreign:
        findings += _check_layout(LAYOUTS[layout_of(where)](where), looked)
    if ours := [s for s in stores if s not in foreign]:
        queries = dict.fromkeys(a.query for one in looked for a in one.annotations)
        findings += _check_features([FeatureStore(s) for s in ours], durations, list(queries))
    order = {severity: i for i, severity in enumerate(SEVERITIES)}
    findings.sort(key=lambda f: order[f.severity])
    return Report(
        files=tuple(one.report() for one in looked), findings=tuple(findings), skipped=tuple(map(str, skipped))
    )


def _named(name: str | None) -> Benchmark | None:
    return None if name in (None, OWN_DATA) else benchmark(str(name))


# --- which files --------------------------------------------------------------------------------------------------


def _files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files of annotations, and those that look like it but hold something else."""
    if folder.is_file():
        return [folder], []
    if not folder.is_dir():
        raise AnnotationError(f"there is no folder {folder}; expected one with files of annotations")
    found: list[Path] = []
    skipped: list[Path] = []
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        if path.name.startswith(".") or path.suffix not in (".jsonl", ".json", ".txt") or not path.is_file():
            continue
        if path.suffix == ".jsonl":
            (found if _holds_annotations(path) else skipped).append(path)
        elif recognise(path) is not None:
            found.append(path)
        elif path.suffix == ".json":
            skipped.append(path)
    if not found:
        raise AnnotationError(f"{folder} has no annotations; expected .jsonl, or the original files of a benchmark")
    return found, skipped


def _holds_annotations(path: Path) -> bool:
    """Whether the first readable row looks like one; true if none is readable, for that must be reported."""
    for row in json_lines(path):
        if not row.problem:
            named = {"query", "vid", "duration", "relevant_windows"} & row.raw.keys()
            return bool(named) and not any(name.startswith("pred_") for name in row.raw)
    return True


# --- one file -----------------------------------------------------------------------------------------------------


@dataclass
class _Looked:
    """What was seen of one file, row by row."""

    path: Path
    benchmark: Benchmark | None
    rows: int = 0
    annotations: list[Annotation] = field(default_factory=list)
    durations: dict[str, float] = field(default_factory=dict)
    seen: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def split(self) -> str | None:
        if self.benchmark is not None:
            return self.benchmark.split_of(self.path)
        words = self.path.stem.lower().replace("-", "_").split("_")
        return next((s for s in _SPLITS if s in words), None)

    def clip_seconds(self, annotation: Annotation) -> float | None:
        """What the row says, else what the benchmark does."""
        said: Any = annotation.extra.get(CLIP_SECONDS)
        if is_number(said) and said > 0:
            return float(said)
        return _OWN_CLIP_SECONDS if self.benchmark is None else self.benchmark.clip_seconds

    def add(self, kind: str, row: Row, detail: str) -> None:
        qid = row.values.get("qid", row.raw.get("qid"))
        named = "" if qid is None else f" qid {qid}"
        self.seen[kind].append(f"{self.path.name}:{row.place}{named}: {detail}")

    def findings(self) -> list[Finding]:
        return [_finding(kind, str(self.path), found) for kind, found in self.seen.items()]

    def report(self) -> FileReport:
        split = self.split
        its = self.benchmark.splits.get(split or "") if self.benchmark else None
        return FileReport(
            file=str(self.path),
            benchmark=self.benchmark.name if self.benchmark else OWN_DATA,
            split=split,
            rows=self.rows,
            usable=len(self.annotations),
            videos=len(self.durations),
            windows=sum(len(a.relevant_windows) for a in self.annotations),
            hours=sum(self.durations.values()) / 3600,
            rated_clips=sum(len(a.saliency_scores) for a in self.annotations),
            published_queries=its.queries if its else None,
            published_videos=its.videos if its else None,
        )


def _finding(kind: str, file: str, found: Sequence[str]) -> Finding:
    return Finding(kind=kind, file=file, rows=len(found), examples=tuple(found[:EXAMPLES]))


def _look(path: Path, its: Benchmark | None) -> _Looked:
    found = _Looked(path, its)
    pairs: dict[tuple[str, str], list[Annotation]] = defaultdict(list)
    qids: dict[int | str, str] = {}
    try:
        for row in its.parse(path) if its else json_lines(path):
            found.rows += 1
            try:
                annotation = annotation_of(row)
            except AnnotationError as error:
                _say_why(found, row, str(error))
            else:
                found.annotations.append(annotation)
                _check_usable(found, row, annotation, qids, pairs)
    except (AnnotationError, OSError) as error:
        found.seen["unreadable-file"].append(str(error))
    else:
        if not found.rows:
            found.seen["unreadable-file"].append(f"{path} is empty; expected annotations")
    _check_counts(found)
    return found


def _say_why(found: _Looked, row: Row, error: str) -> None:
    """Sort a row that readers refuse into its kind; the first reason counts, as it does for them."""
    if row.problem:
        found.add("unreadable-row", row, row.problem)
        return
    for name in ("qid", "query", "vid", "duration"):
        if row.values.get(name) is None:
            found.add("missing-field", row, f"{name} is missing")
            return
    for kind, detail in _broken(row.values):
        found.add(kind, row, detail)
        return
    found.add("bad-field", row, error)


def _broken(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with windows and ratings whose form is right."""
    duration = values["duration"]
    windows = values.get("relevant_windows")
    for window in windows if isinstance(windows, list) else ():
        if not isinstance(window, list) or len(window) != 2 or not all(map(is_number, window)):
            return  # a matter of form
        start, end = window
        if end < start:
            yield "window-swapped", shown(window)
        elif end == start:
            yield "window-empty", shown(window)
        elif start < 0:
            yield "window-negative", shown(window)
        elif is_number(duration) and 0 < duration <= start:
            yield "window-beyond", f"{shown(window)} in a video of {duration} s"
    clips, ratings = values.get("relevant_clip_ids") or [], values.get("saliency_scores") or []
    if not isinstance(clips, list) or not isinstance(ratings, list):
        return
    if twice := [c for c, n in Counter(map(repr, clips)).items() if n > 1]:
        yield "clip-twice", f"clip {twice[0]}"
    if ratings and len(ratings) != len(clips):
        yield "rating-count", f"{len(clips)} clips, {len(ratings)} ratings"
    lists = [r for r in ratings if isinstance(r, list) and r]
    if len(lists) == len(ratings) and len(numbers := sorted({len(r) for r in lists})) > 1:
        yield "raters-differ", f"{' and '.join(map(str, numbers))} ratings"


def _check_usable(
    found: _Looked,
    row: Row,
    annotation: Annotation,
    qids: dict[int | str, str],
    pairs: dict[tuple[str, str], list[Annotation]],
) -> None:
    a, clip_seconds = annotation, found.clip_seconds(annotation)
    if a.qid in qids:
        found.add("duplicate-qid", row, f"stands at {qids[a.qid]} already")
    qids.setdefault(a.qid, row.place)
    others = pairs[a.vid, " ".join(a.query.split()).casefold()]
    if any((o.query, o.relevant_windows, o.saliency_scores) == _labels(a) for o in others):
        found.add("duplicate-row", row, f"{a.vid}: {shown(a.query)}")
    elif others:
        found.add("duplicate-query", row, f"{a.vid}: {shown(a.query)}")
    others.append(a)
    if any((not c.isprintable() and not c.isspace()) or c in "\n\r\t\v\f" for c in a.query):
        found.add("query-control", row, shown(a.query))
    elif a.query != " ".join(a.query.split()):
        found.add("query-spaces", row, shown(a.query))
    if not a.relevant_windows and not a.saliency_scores:
        found.add("no-labels", row, shown(a.query))
    if found.durations.setdefault(a.vid, a.duration) != a.duration:
        found.add("duration-differs", row, f"{a.vid}: {a.duration} s, before {found.durations[a.vid]} s")
    _check_windows(found, row, a)
    _check_ratings(found, row, a)
    named = seconds_in_name(a.vid) if found.benchmark is BENCHMARKS["qvhighlights"] else None
    if named is not None and abs(named - a.duration) > (clip_seconds or 0) / 2:
        found.add("duration-name", row, f"{a.vid} lasts {a.duration} s")
    label, duration = row.raw.get("label"), row.raw.get("duration")
    if found.benchmark is BENCHMARKS["tvsum"] and isinstance(label, list) and duration == len(label):
        found.add("duration-clips", row, f"duration {duration}, {len(label)} clips of 2 s")
    clips, frames = a.extra.get("clip"), a.extra.get("frames")
    if isinstance(clips, list) and clips and isinstance(clips[-1], list) and len(clips[-1]) == 2:
        last = clips[-1][1]
        if is_number(last) and is_number(frames) and last > frames:
            found.add("clip-frames", row, f"the last clip ends at {last:g} of {frames:g} pictures")


def _labels(a: Annotation) -> tuple[Any, ...]:
    return a.query, a.relevant_windows, a.saliency_scores


def _check_windows(found: _Looked, row: Row, a: Annotation) -> None:
    latest = max((end for _, end in a.relevant_windows), default=0)
    if latest > a.duration:
        seconds = found.clip_seconds(a) or _OWN_CLIP_SECONDS
        far = latest > Timeline(duration=a.duration, clip_seconds=seconds).extent + seconds
        detail = f"ends at {latest} in a video of {a.duration} s"
        found.add("window-ends-far" if far else "window-ends-late", row, detail)
    in_order = sorted(a.relevant_windows)
    for (start, end), (next_start, next_end) in pairwise(in_order):
        if next_start < end:
            found.add("window-overlap", row, f"[{start}, {end}] and [{next_start}, {next_end}]")
            break
    if in_order != list(a.relevant_windows):
        found.add("window-unsorted", row, shown([list(w) for w in a.relevant_windows]))


def _check_ratings(found: _Looked, row: Row, a: Annotation) -> None:
    seconds = found.clip_seconds(a)
    if a.relevant_clip_ids and seconds is not None:
        clips = Timeline(duration=a.duration, clip_seconds=seconds).num_clips
        if (last := max(a.relevant_clip_ids)) >= clips:
            detail = f"clip {last} in a video of {clips} clips"
            found.add("clip-far" if last > clips else "clip-late", row, detail)
    if a.relevant_windows:  # elsewhere all clips are listed, the irrelevant ones too
        nought = [c for c, r in zip(a.relevant_clip_ids, a.saliency_scores, strict=False) if not any(r)]
        for clip in nought:
            found.add("clip-rated-0", row, f"clip {clip}")


def _check_counts(found: _Looked) -> None:
    its = found.report()
    if "unreadable-file" in found.seen:
        return
    for what, here, published in (
        ("queries", its.rows, its.published_queries),
        ("videos", its.videos, its.published_videos),
    ):
        if published is not None and here != published:
            found.seen["count-differs"].append(f"{here:,} {what}, published {published:,}")


# --- files against each other, videos, features -------------------------------------------------------------------


def _shared_videos(looked: Sequence[_Looked]) -> list[Finding]:
    found = []
    for i, one in enumerate(looked):
        for other in looked[:i]:
            splits = [(x.split or "").partition("_")[0] for x in (one, other)]  # val_1 and val_2 share theirs
            if one.benchmark is not other.benchmark or "" in splits or splits[0] == splits[1]:
                continue
            if shared := [vid for vid in one.durations if vid in other.durations]:
                found.append(_finding("shared-video", str(one.path), [f"{v} is in {other.path.name}" for v in shared]))
    return found


def _check_videos(folder: Path, durations: Mapping[str, float]) -> list[Finding]:
    there = video_files(folder)
    missing = [vid for vid in durations if vid not in there]
    surplus = [path.name for vid, path in there.items() if vid not in durations]
    named = (("missing-video", missing), ("surplus-video", surplus))
    return [_finding(kind, str(folder), found) for kind, found in named if found]


def _check_features(
    stores: Sequence[FeatureStore], durations: Mapping[str, float], queries: Sequence[str]
) -> list[Finding]:
    found = []
    held: dict[str, FeatureStore] = {}
    surplus: dict[str, list[str]] = {}
    wrong: dict[tuple[str, str], list[str]] = defaultdict(list)
    for store in stores:
        name = str(store.folder)
        ours, first = store.spec, stores[0].spec
        differences = [
            f"{f.name} is {getattr(ours, f.name)!r}, in {stores[0].folder} {getattr(first, f.name)!r}"
            for f in fields(ours)
            if getattr(ours, f.name) != getattr(first, f.name)
        ]
        if differences:
            found.append(_finding("features-recipe", name, differences))
        for vid in store.videos():
            if vid not in durations:
                surplus.setdefault(name, []).append(vid)
                continue
            held[vid] = store
            try:
                theirs = store.timeline(vid)
            except (ValueError, KeyError) as error:
                wrong["features-unreadable", name].append(f"{vid}: {error}")
                continue
            expected = Timeline(duration=durations[vid], clip_seconds=theirs.clip_seconds).num_clips
            if abs(theirs.num_clips - expected) > 1:
                detail = f"{vid}: {theirs.num_clips} clips, {durations[vid]:g} s are {expected}"
                wrong["features-length", name].append(detail)
    found += [_finding(kind, name, examples) for (kind, name), examples in wrong.items()]
    everywhere = ", ".join(str(s.folder) for s in stores)
    if missing := [vid for vid in durations if vid not in held]:
        found.append(_finding("missing-features", everywhere, missing))
    for store in stores:
        queries = store.missing_queries(queries)
    if queries:
        found.append(_finding("missing-query-features", everywhere, [shown(q) for q in queries]))
    found += [_finding("surplus-features", name, vids) for name, vids in surplus.items()]
    return found


def _check_layout(files: Layout, looked: Sequence[_Looked]) -> list[Finding]:
    """Features in a layout that papers released: what is there, of which shape, and whether its numbers are sound."""
    from tqdm import tqdm

    asked = {str(a.qid): a for one in looked for a in one.annotations}
    clips = {a.vid: _clips_of(one, a) for one in looked for a in one.annotations}
    seen: dict[str, list[str]] = defaultdict(list)
    videos: dict[str, Shape] = {}
    texts: dict[str, Shape] = {}
    for vid, expected in tqdm(clips.items(), unit="video", desc="reading", disable=None):
        try:
            if not files.has_video(vid):
                seen["missing-features"].append(vid)
                continue
            videos[vid] = shape = files.video_shape(vid)
            if not _sound(files.video(vid, range(shape.levels))):
                seen["features-values"].append(f"video {vid}")
        except ValueError as error:
            seen["features-unreadable"].append(f"{vid}: {error}")
            continue
        if expected is not None and shape.length != expected:
            far = abs(shape.length - expected) > CLIPS_OFF
            seen["features-length" if far else "features-few"].append(
                f"{vid}: {shape.length} clips, its duration makes {expected}"
            )
    for qid, annotation in asked.items():
        try:
            if not files.has_text(annotation):
                seen["missing-query-features"].append(f"qid {qid}: {shown(annotation.query)}")
                continue
            texts[qid] = shape = files.text_shape(annotation)
            if not _sound(files.text(annotation, range(shape.levels))):
                seen["features-values"].append(f"qid {qid}: {shown(annotation.query)}")
        except ValueError as error:
            seen["features-unreadable"].append(f"qid {qid}: {error}")
    summary = []
    for what, found, wanted in (("video", videos, clips), ("sentence", texts, asked)):
        forms = Counter(shape.describe() for shape in found.values())
        usual = forms.most_common(1)[0][0] if forms else "none"
        summary.append(f"{files.name}: {len(found):,} of {len(wanted):,} {what}s; {usual}")
        odd = [f"{what} {name}: {s.describe()}" for name, s in found.items() if s.describe() != usual]
        seen["features-shape"] += odd
    if surplus := files.surplus_vids(clips):
        seen["surplus-features"] = surplus
    findings = [Finding(kind="features-layout", file=files.where, rows=len(summary), examples=tuple(summary))]
    return findings + [_finding(kind, files.where, found) for kind, found in seen.items() if found]


def _clips_of(one: _Looked, annotation: Annotation) -> int | None:
    """How many clips the video of a row has; none where clips have no fixed length."""
    seconds = one.clip_seconds(annotation)
    return None if seconds is None else Timeline(duration=annotation.duration, clip_seconds=seconds).num_clips


def _sound(array: npt.NDArray[Any]) -> bool:
    """Whether all its numbers are finite, as float16 too."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(array.astype(np.float16, copy=False)).all())
