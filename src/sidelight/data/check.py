"""Check annotations and the video files that belong to them: what they hold, and what is wrong with them.

    from sidelight.features.check import check  # checks features too

    report = check("data/tacos")
    for finding in report.findings:
        print(finding.severity, finding.file, finding.says, finding.rows)

Every row is checked on its own, so that a bad row does not hide the rest.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from sidelight.core.options import is_finite_number
from sidelight.core.timeline import Timeline, durations_differ
from sidelight.data.annotations import CLIP_SECONDS, USUAL_CLIP_SECONDS, Annotation, AnnotationError
from sidelight.data.datasets import BENCHMARKS, Benchmark, benchmark, recognise
from sidelight.data.datasets.base import Row, annotation_of, json_lines
from sidelight.data.datasets.qvhighlights import seconds_in_name
from sidelight.data.findings import OWN_DATA, SEVERITIES, FileReport, Finding, Report, findings_of
from sidelight.io.files import video_names
from sidelight.io.jsonl import shown
from sidelight.video.damage import VideoError
from sidelight.video.read import probe

_OTHER_FILES = ("world.json", "manifest.json", "feature-spec.json", "feature-recipe.json")
"""Files of a shapes world or of features, which may lie beside annotations."""
_SPLITS = ("train", "val", "test")


@dataclass
class CheckedFile:
    """One file of annotations after its rows were checked."""

    path: Path
    benchmark: Benchmark | None
    """None for own data."""
    rows: int = 0
    """All rows, including rows that readers refuse."""
    annotations: list[Annotation] = field(default_factory=list)
    """The usable rows."""
    durations: dict[str, float] = field(default_factory=dict)
    """vid -> seconds, from the first row of the video."""
    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Kind -> a line for each fault."""

    @property
    def split(self) -> str | None:
        """Return the split in the file's name; None if the name has none."""
        if self.benchmark is not None:
            return self.benchmark.split_of(self.path)
        words = self.path.stem.lower().replace("-", "_").split("_")
        return next((split for split in _SPLITS if split in words), None)

    def clip_seconds(self, annotation: Annotation) -> float | None:
        """Return the length of a clip: the row's, else the benchmark's; None where clips have no fixed length."""
        if self.benchmark is None or CLIP_SECONDS in annotation.extra:
            return annotation.clip_seconds
        return self.benchmark.clip_seconds

    def num_clips(self, annotation: Annotation) -> int | None:
        """Return the number of clips of a row's video; None where clips have no fixed length."""
        seconds = self.clip_seconds(annotation)
        return None if seconds is None else Timeline(duration=annotation.duration, clip_seconds=seconds).num_clips

    def add(self, kind: str, row: Row, detail: str) -> None:
        """Note a fault of a row."""
        qid = row.values.get("qid", row.raw.get("qid"))
        named = "" if qid is None else f" qid {qid}"
        self.faults[kind].append(f"{self.path.name}:{row.place}{named}: {detail}")

    def report(self) -> FileReport:
        """Return the contents in numbers."""
        split = self.split
        published = self.benchmark.splits.get(split or "") if self.benchmark else None
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
            published_queries=published.queries if published else None,
            published_videos=published.videos if published else None,
        )


@dataclass
class CheckedData:
    """The annotations of a folder after they were checked."""

    files: list[CheckedFile]
    """In the order of their names."""
    findings: list[Finding]
    """In the order in which the faults were found."""
    skipped: list[Path]
    """Files without annotations."""
    features: list[str] = field(default_factory=list)
    """A line for the feature stores that were compared (``Report.features``)."""

    @property
    def durations(self) -> dict[str, float]:
        """Return the seconds of each video, by vid."""
        return {vid: seconds for file in self.files for vid, seconds in file.durations.items()}

    def report(self) -> Report:
        """Return the report, errors first."""
        return Report(
            files=tuple(file.report() for file in self.files),
            findings=tuple(sorted(self.findings, key=lambda finding: SEVERITIES.index(finding.severity))),
            skipped=tuple(map(str, self.skipped)),
            features=tuple(self.features),
        )


def check_data(folder: str | Path, benchmark_name: str | None = None, videos: str | Path | None = None) -> CheckedData:
    """Check all annotations of a folder, and the names of their video files.

    Args:
        folder: the folder of the annotations, which may lie one folder below; or one file.
        benchmark_name: how to read them, or "own data" for the QVHighlights form; unless given, each file is recognised
            by its name or content.
        videos: folder with the video files, named by their ids; one frame of each is decoded.

    Raises:
        AnnotationError: if there are no annotations, or no such benchmark.
    """
    chosen = None if benchmark_name in (None, OWN_DATA) else benchmark(str(benchmark_name))
    paths, skipped = _annotation_files(Path(folder))
    files = [_check_file(path, recognise(path) if benchmark_name is None else chosen) for path in paths]
    findings = [finding for file in files for finding in findings_of(file.faults, file.path)]
    data = CheckedData(files, findings + _shared_videos(files), skipped)
    if videos is not None:
        data.findings += _check_videos(Path(videos), data)
    return data


# --- which files --------------------------------------------------------------------------------------------------


def _annotation_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files of annotations, and the files with the same suffixes that hold something else."""
    if folder.is_file():
        return [folder], []
    if not folder.is_dir():
        raise AnnotationError(f"there is no folder {folder}; expected one with files of annotations")
    files: list[Path] = []
    skipped: list[Path] = []
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        if path.name.startswith(".") or path.suffix not in (".jsonl", ".json", ".txt") or not path.is_file():
            continue
        if path.name in _OTHER_FILES or (path.parent / "manifest.json").is_file():
            continue  # a file of a shapes world, of features, or in a feature store
        if path.suffix == ".jsonl":
            (files if _holds_annotations(path) else skipped).append(path)
        elif recognise(path) is not None:
            files.append(path)
        elif path.suffix == ".json":
            skipped.append(path)
    if not files:
        raise AnnotationError(f"{folder} has no annotations; expected .jsonl, or the original files of a benchmark")
    return files, skipped


def _holds_annotations(path: Path) -> bool:
    """Check whether the first readable row looks like an annotation; a file without readable rows is reported too."""
    for row in json_lines(path):
        if not row.problem:
            has_field = bool({"query", "vid", "duration", "relevant_windows"} & row.raw.keys())
            return has_field and not any(name.startswith("pred_") for name in row.raw)
    return True


# --- one file -----------------------------------------------------------------------------------------------------


def _check_file(path: Path, benchmark: Benchmark | None) -> CheckedFile:
    file = CheckedFile(path, benchmark)
    qid_places: dict[int | str, str] = {}
    similar_rows: dict[tuple[str, str], list[Annotation]] = defaultdict(list)
    try:
        for row in benchmark.parse(path) if benchmark else json_lines(path):
            file.rows += 1
            try:
                annotation = annotation_of(row)
            except AnnotationError as error:
                file.add(*_fault_of_refused(row, str(error)))
                continue
            file.annotations.append(annotation)
            if annotation.qid in qid_places:
                file.add("duplicate-qid", row, f"stands at {qid_places[annotation.qid]} already")
            qid_places.setdefault(annotation.qid, row.place)
            # Sentences count as the same up to spaces and capitals.
            sentence = " ".join(annotation.query.split()).casefold()
            _check_repetition(file, row, annotation, similar_rows[annotation.vid, sentence])
            _check_row(file, row, annotation)
    except (AnnotationError, OSError) as error:
        file.faults["unreadable-file"].append(str(error))
    else:
        if not file.rows:
            file.faults["unreadable-file"].append(f"{path} is empty; expected annotations")
    if "unreadable-file" not in file.faults:
        _check_counts(file)
    return file


def _fault_of_refused(row: Row, error: str) -> tuple[str, Row, str]:
    """Return kind, row and detail of a row that readers refuse; the first fault counts, as in readers."""
    if row.problem:
        return "unreadable-row", row, row.problem
    for name in ("qid", "query", "vid", "duration"):
        if row.values.get(name) is None:
            return "missing-field", row, f"{name} is missing"
    kind, detail = next(_wrong_labels(row.values), ("bad-field", error))
    return kind, row, detail


def _wrong_labels(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield kind and detail of wrong windows and ratings whose form is right."""
    duration = values["duration"]
    windows = values.get("relevant_windows")
    for window in windows if isinstance(windows, list) else ():
        if not isinstance(window, list) or len(window) != 2 or not all(map(is_finite_number, window)):
            return  # the form is wrong
        start, end = window
        if end < start:
            yield "window-swapped", shown(window)
        elif end == start:
            yield "window-empty", shown(window)
        elif start < 0:
            yield "window-negative", shown(window)
        elif is_finite_number(duration) and 0 < duration <= start:
            yield "window-beyond", f"{shown(window)} in a video of {duration} s"
    clips, ratings = values.get("relevant_clip_ids") or [], values.get("saliency_scores") or []
    if not isinstance(clips, list) or not isinstance(ratings, list):
        return
    if repeated := [clip for clip, count in Counter(map(repr, clips)).items() if count > 1]:
        yield "clip-twice", f"clip {repeated[0]}"
    if ratings and len(ratings) != len(clips):
        yield "rating-count", f"{len(clips)} clips, {len(ratings)} ratings"
    lists = [r for r in ratings if isinstance(r, list) and r]
    if len(lists) == len(ratings) and len(raters := sorted({len(r) for r in lists})) > 1:
        yield "raters-differ", f"{' and '.join(map(str, raters))} ratings"


def _check_repetition(file: CheckedFile, row: Row, a: Annotation, earlier: list[Annotation]) -> None:
    """Compare a row with earlier rows of the same video and sentence, and add it to them."""
    labels = (a.query, a.relevant_windows, a.saliency_scores)
    if any((b.query, b.relevant_windows, b.saliency_scores) == labels for b in earlier):
        file.add("duplicate-row", row, f"{a.vid}: {shown(a.query)}")
    elif earlier:
        file.add("duplicate-query", row, f"{a.vid}: {shown(a.query)}")
    earlier.append(a)


def _check_row(file: CheckedFile, row: Row, a: Annotation) -> None:
    if any((not c.isprintable() and not c.isspace()) or c in "\n\r\t\v\f" for c in a.query):
        file.add("query-control", row, shown(a.query))
    elif a.query != " ".join(a.query.split()):
        file.add("query-spaces", row, shown(a.query))
    if not a.relevant_windows and not a.saliency_scores:
        file.add("no-labels", row, shown(a.query))
    if file.durations.setdefault(a.vid, a.duration) != a.duration:
        file.add("duration-differs", row, f"{a.vid}: {a.duration} s, before {file.durations[a.vid]} s")
    _check_windows(file, row, a)
    _check_ratings(file, row, a)
    named_seconds = seconds_in_name(a.vid) if file.benchmark is BENCHMARKS["qvhighlights"] else None
    if named_seconds is not None and abs(named_seconds - a.duration) > (file.clip_seconds(a) or 0) / 2:
        file.add("duration-name", row, f"{a.vid} lasts {a.duration} s")
    label, duration = row.raw.get("label"), row.raw.get("duration")
    if file.benchmark is BENCHMARKS["tvsum"] and isinstance(label, list) and duration == len(label):
        file.add("duration-clips", row, f"duration {duration}, {len(label)} clips of 2 s")
    clips, frames = a.extra.get("clip"), a.extra.get("frames")
    if isinstance(clips, list) and clips and isinstance(clips[-1], list) and len(clips[-1]) == 2:
        last = clips[-1][1]
        if is_finite_number(last) and is_finite_number(frames) and last > frames:
            file.add("clip-frames", row, f"the last clip ends at frame {last:g} of {frames:g}")


def _check_windows(file: CheckedFile, row: Row, a: Annotation) -> None:
    latest_end = max((end for _, end in a.relevant_windows), default=0)
    if latest_end > a.duration:
        seconds = file.clip_seconds(a) or USUAL_CLIP_SECONDS
        far = latest_end > Timeline(duration=a.duration, clip_seconds=seconds).extent + seconds
        detail = f"ends at {latest_end} in a video of {a.duration} s"
        file.add("window-ends-far" if far else "window-ends-late", row, detail)
    in_order = sorted(a.relevant_windows)
    for (start, end), (next_start, next_end) in pairwise(in_order):
        if next_start < end:
            file.add("window-overlap", row, f"[{start}, {end}] and [{next_start}, {next_end}]")
            break
    if in_order != list(a.relevant_windows):
        file.add("window-unsorted", row, shown([list(w) for w in a.relevant_windows]))


def _check_ratings(file: CheckedFile, row: Row, a: Annotation) -> None:
    clips, last = file.num_clips(a), max(a.relevant_clip_ids, default=-1)
    if clips is not None and last >= clips:
        file.add("clip-far" if last > clips else "clip-late", row, f"clip {last} in a video of {clips} clips")
    if a.relevant_windows:  # rows without windows list all clips, the irrelevant ones too
        for clip, ratings in zip(a.relevant_clip_ids, a.saliency_scores, strict=False):
            if not any(ratings):
                file.add("clip-rated-0", row, f"clip {clip}")


def _check_counts(file: CheckedFile) -> None:
    report = file.report()
    for noun, count, published in (
        ("queries", report.rows, report.published_queries),
        ("videos", report.videos, report.published_videos),
    ):
        if published is not None and count != published:
            file.faults["count-differs"].append(f"{count:,} {noun}, published {published:,}")


# --- files against each other, and video files --------------------------------------------------------------------


def _shared_videos(files: Sequence[CheckedFile]) -> list[Finding]:
    findings = []
    for i, file in enumerate(files):
        for earlier in files[:i]:
            splits = [(f.split or "").partition("_")[0] for f in (file, earlier)]  # val_1 and val_2 share videos
            if file.benchmark is not earlier.benchmark or "" in splits or splits[0] == splits[1]:
                continue
            shared = [f"{vid} is in {earlier.path.name}" for vid in file.durations if vid in earlier.durations]
            findings += findings_of({"shared-video": shared}, file.path)
    return findings


def _check_videos(folder: Path, data: CheckedData) -> list[Finding]:
    from tqdm import tqdm

    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected the folder with the video files")
    names, ignored = video_names(path.name for path in folder.iterdir())
    by_vid: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_vid[Path(name).stem].append(name)
    annotations = {a.vid: (file, a) for file in data.files for a in file.annotations}
    faults: dict[str, list[str]] = defaultdict(list)
    faults["missing-video"] = [vid for vid in annotations if vid not in by_vid]
    faults["video-twice"] = [" and ".join(by_vid[vid]) for vid in annotations if len(by_vid.get(vid, ())) > 1]
    present = [vid for vid in annotations if len(by_vid.get(vid, ())) == 1]
    for vid in tqdm(present, unit="video", desc="reading", disable=None):
        (file, annotation), (name,) = annotations[vid], by_vid[vid]
        try:
            seconds = probe(folder / name).duration
        except VideoError as error:
            faults["unreadable-video"].append(" ".join(str(error).split()))
            continue
        if durations_differ(annotation.duration, seconds, file.clip_seconds(annotation) or USUAL_CLIP_SECONDS):
            faults["video-length"].append(f"{name} lasts {seconds:g} s, annotated {annotation.duration:g} s")
    faults["surplus-video"] = [name for vid in by_vid if vid not in annotations for name in by_vid[vid]]
    faults["ignored-files"] = [ignored] if ignored else []
    return findings_of(faults, folder)
