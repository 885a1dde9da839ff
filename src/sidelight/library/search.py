"""Search a library in two stages: embeddings find candidates, then the model grounds the candidates' videos.

Stage 1 compares the query's embedding with those of all clips. A video is as near as its nearest clip. Stage 2 reads
the features of the nearest videos from the store and answers as for a single video. It says where in a video a moment
is. Which video comes first is decided by the embeddings, since a model was never trained to tell videos that fit a
sentence from videos that do not (docs/library.md has the figures), or by a calibration, if the library has one. Images
and moments have an embedding but no sentence: there, grounding without training reads the similarity of the query to
each clip.

Legend: T clips of a video, E width of the joint space, K levels, F frames of a clip, S side of a frame.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sidelight.backbones.protocol import Backbone, LimitedBackbone
from sidelight.core import spans
from sidelight.core.grounding import Grounding, Moment
from sidelight.core.options import is_finite_number
from sidelight.core.timeline import Timeline
from sidelight.data.annotations import Annotation
from sidelight.features.extract import encode_each, encode_video_file
from sidelight.features.sources import content_digest, local_video
from sidelight.features.store import FeatureStore, HalfFeatures, VideoFeatures
from sidelight.grounder import Grounder, OutsideWarning, checked_queries
from sidelight.io.storage import is_address
from sidelight.library.answers import Hit, SearchResult
from sidelight.library.calibration import Calibration, Judged, log_odds
from sidelight.library.parts import ground_parts, near_parts
from sidelight.library.places import absolute
from sidelight.library.tables import Tables, VideoRow
from sidelight.video.damage import warn

Vector = npt.NDArray[np.float32]
FEWEST_CANDIDATES = 10
"""Videos that the model reads for a few hits."""
_CLIPS_PER_CANDIDATE = 50
"""Clips that stage 1 asks for, per candidate, at the first time."""
_MOST_CLIPS = 100_000
"""Most clips that stage 1 asks for; then the videos among them are all candidates."""
_SHORTEST = 0.1
"""Seconds of a moment below which it is no hit: there is nothing to see."""
_SAME_MOMENT = 0.5
"""IoU above which two moments of one video are the same hit."""
_MOST_RIGHT = 30
"""Videos with a sentence that may be near to it, so that a calibration finds enough videos without it."""
_SAMPLE = 4096
"""Clips of the library that say how near a query is to any clip."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Which hits a search returns, and which videos it reads.

    Raises:
        ValueError: if a number is out of its range.
    """

    top: int
    """Most hits."""
    min_score: float
    """Lowest score of a hit."""
    candidates: int | None
    """Videos that the model reads; by ``top`` unless given."""
    whole: bool = False
    """Whether the model reads all of a long video, and not only the parts near to the query."""
    min_relevance: float | None = None
    """Lowest relevance of a hit; that of the calibration unless given, and 0 without one."""
    rows: tuple[VideoRow, ...] = ()
    """Files to search."""
    all_rows: tuple[VideoRow, ...] = ()
    """All files of the library."""

    def __post_init__(self) -> None:
        for name in ("top", "candidates"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if not is_finite_number(self.min_score) or self.min_score < 0:
            raise ValueError(f"min_score must be 0 or more, got {self.min_score}")
        if self.min_relevance is not None and not (is_finite_number(self.min_relevance) and self.min_relevance >= 0):
            raise ValueError(f"min_relevance must be 0 or more, got {self.min_relevance}")

    @property
    def num_candidates(self) -> int:
        """Return the number of videos that the model reads."""
        return self.candidates or max(FEWEST_CANDIDATES, self.top)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A hit with all that is known about it."""

    hit: Hit
    """The hit, whose relevance is that of a library without a calibration."""
    row: VideoRow
    """Its video."""
    grounding: Grounding
    """All moments of the video."""
    facts: tuple[float, float, float]
    """What a calibration reads (:data:`sidelight.library.calibration.FACTS`)."""


class Searcher:
    """The parts of a library that answer.

    Args:
        grounder: the model.
        joint: the backbone that makes joint embeddings.
        store: the features.
        tables: files and embeddings.
    """

    def __init__(self, grounder: Grounder, joint: Backbone, store: FeatureStore, tables: Tables) -> None:
        self._grounder, self._joint, self._store, self._tables = grounder, joint, store, tables

    def by_sentence(self, query: str, limits: Limits, calibration: Calibration | None = None) -> SearchResult:
        """Return the moments in which a sentence is true."""
        (query,) = checked_queries(query)
        backbone = self._grounder.backbone
        doubt = backbone.query_doubt(query, self._grounder.name) if isinstance(backbone, LimitedBackbone) else None
        if doubt:
            warn(doubt, OutsideWarning)
        evidence = self._hits_of(query, limits)
        if calibration is not None and evidence:
            probability_H = calibration.probabilities(np.array([one.facts for one in evidence]))
            pairs = zip(evidence, probability_H.tolist(), strict=True)
            evidence = [replace(one, hit=replace(one.hit, relevance=probability)) for one, probability in pairs]
        if calibration is not None and limits.min_relevance is None:
            limits = replace(limits, min_relevance=calibration.min_relevance)
        result = _result(query, evidence, limits, notes=(doubt,) if doubt else ())
        return replace(result, is_calibrated=calibration is not None)

    def _hits_of(self, query: str, limits: Limits) -> list[Evidence]:
        """Return all hits of the candidates of a sentence."""
        vector_E = encode_each([query], self._joint)[0][0, 0].astype(np.float32)
        text = self._grounder.encode([query])

        def ground(row: VideoRow, cosine_T: Vector) -> Grounding:
            def ground_part(part: VideoFeatures) -> Grounding:
                return self._grounder.ground_features(part, text, [query], video_name=row.path)[0]

            features, window = self._store.video(row.key), self._grounder.checkpoint.window_clips
            whole = limits.whole or len(cosine_T) != features.timeline.num_clips
            parts = [range(features.timeline.num_clips)] if whole else near_parts(cosine_T, window)
            return ground_parts(features, parts, ground_part)

        vectors = self._tables.vectors(self.nearest_videos(vector_E, limits))
        if not vectors:
            return []
        cosine_N = self._tables.sample(_SAMPLE) @ vector_E
        typical = float(cosine_N.mean()), max(float(cosine_N.std()), 1e-6)
        return _candidate_hits(vector_E, vectors, limits, ground, typical=typical)

    def judge(
        self, annotations: Sequence[Annotation], limits: Limits, *, iou: float, progress: bool = False
    ) -> list[Judged]:
        """Return the hits of annotated queries, and which of them are right.

        Args:
            annotations: queries of videos of the library, by the name of the file without its suffix; others are left
                out. A sentence that several annotations have is one query, with the windows of all.
            limits: which hits.
            iou: the lowest IoU with a window that makes a hit right.
            progress: show a bar.
        """
        from tqdm import tqdm

        numbers_of: dict[str, set[int]] = {}
        for row in limits.rows:
            numbers_of.setdefault(Path(row.path).stem, set()).add(row.number)
        windows_of: dict[str, dict[int, list[tuple[float, float]]]] = {}
        for annotation in annotations:
            for number in numbers_of.get(annotation.vid, ()) if annotation.relevant_windows else ():
                of_query = windows_of.setdefault(annotation.query.strip(), {})
                of_query.setdefault(number, []).extend(annotation.relevant_windows)
        bar = tqdm(windows_of.items(), unit="query", desc="searching", disable=None if progress else True)
        judged = []
        for number, (query, windows) in enumerate(bar):
            # Enough candidates for both searches: with the right videos, and without them.
            more = replace(limits, candidates=FEWEST_CANDIDATES + min(len(windows), _MOST_RIGHT))
            judged += _judged(number, self._hits_of(query, more), windows, iou)
        return judged

    def by_image(self, image: str, limits: Limits) -> SearchResult:
        """Return the moments that look like an image."""
        import torch

        from sidelight.video.read import read_image

        spec = self._joint.spec
        frame_SS3 = read_image(image, size=(spec.resolution, spec.resolution), resize=spec.resize)
        frames_CFSS3 = np.repeat(frame_SS3[None, None], spec.frames_per_clip, axis=1)
        vector_E = self._joint.encode_video(torch.from_numpy(frames_CFSS3))[0, 0].float().cpu().numpy()
        return self._by_vector(image, vector_E, limits)

    def by_moment(self, video: str, start: float, end: float, limits: Limits) -> SearchResult:
        """Return moments that look like a moment of a video, and not the moment itself."""
        row, vectors_TE, timeline = self._clips_of(video, limits.all_rows)
        if end > timeline.duration:
            raise ValueError(f"{video} lasts {timeline.duration:.1f} s, and the moment ends at {end:g} s")
        clips = timeline.clips_in(start, end)
        vector_E = vectors_TE[clips.start : clips.stop].astype(np.float32).mean(0)
        name = f"{video}@{start:g}-{end:g}"

        def other(candidate: VideoRow, moment: Moment) -> bool:
            return row is None or candidate.number != row.number or moment.end <= start or moment.start >= end

        return self._by_vector(name, vector_E, limits, keep=other)

    def _clips_of(self, video: str, rows: Sequence[VideoRow]) -> tuple[VideoRow | None, HalfFeatures, Timeline]:
        """Return the row of a video if the library has it, its embeddings, and its timeline."""
        path = absolute(video)
        row = next((row for row in rows if row.path == path), None)
        if row is None:
            with local_video(video) as file:
                key = content_digest(file)
            row = next((row for row in rows if row.key == key), None)
        if row is not None:
            return row, self._tables.vectors([row.number])[row.number], self._store.timeline(row.key)
        features = encode_video_file(video, self._joint)
        return None, features.video_KTD[0], features.timeline

    def _by_vector(
        self,
        name: str,
        vector_E: Vector,
        limits: Limits,
        *,
        keep: Callable[[VideoRow, Moment], bool] = lambda row, moment: True,
    ) -> SearchResult:
        """Return the moments that are near to an embedding, by grounding without training."""
        from sidelight.training.checkpoint import Checkpoint

        checkpoint = Checkpoint.zero_shot(self._joint.spec)
        grounder = Grounder(checkpoint, backbone=self._joint, cache=None, device=self._grounder.device)
        vector_E = vector_E / max(float(np.linalg.norm(vector_E)), 1e-12)
        vectors = self._tables.vectors(self.nearest_videos(vector_E, limits))
        text = [vector_E.astype(np.float16)[None, None]]

        def ground(row: VideoRow, cosine_T: Vector) -> Grounding:
            video = VideoFeatures(video_KTD=vectors[row.number][None], timeline=self._store.timeline(row.key))
            (grounding,) = grounder.ground_features(video, text, [name], video_name=row.path)
            return replace(grounding, moments=tuple(m for m in grounding.moments if keep(row, m)))

        return _result(name, _candidate_hits(vector_E, vectors, limits, ground), limits)

    def nearest_videos(self, vector_E: Vector, limits: Limits) -> dict[int, float]:
        """Return stage 1: number of a content -> cosine of its nearest clip, best first.

        Args:
            vector_E: embedding of the query.
            limits: which videos, and how many.
        """
        numbers = {row.number for row in limits.rows}
        wanted = min(limits.num_candidates, len(numbers))
        everything = len(numbers) == len({row.number for row in limits.all_rows})
        clips = sum({row.number: row.clips for row in limits.rows}.values())
        limit, nearest = _CLIPS_PER_CANDIDATE * wanted, dict[int, float]()
        while wanted:
            # Few videos are compared without the index, which would read groups that hold none of their clips.
            clips_found = self._tables.nearest(
                vector_E, min(limit, clips), among=None if everything else numbers, exact=not everything
            )
            nearest = {}
            for number, _, cosine in zip(*(column.tolist() for column in clips_found), strict=True):
                if number in numbers:  # a row may be missing still, or no longer be there
                    nearest.setdefault(number, cosine)
            if len(nearest) >= wanted or limit >= min(clips, _MOST_CLIPS):
                break
            limit *= 8  # long videos took the places of others
        return dict(list(nearest.items())[:wanted])


def _candidate_hits(
    vector_E: Vector,
    vectors: Mapping[int, HalfFeatures],
    limits: Limits,
    ground: Callable[[VideoRow, Vector], Grounding],
    *,
    typical: tuple[float, float] = (0.0, 1.0),
) -> list[Evidence]:
    """Ground the candidates, and return all of their hits.

    Args:
        vector_E: embedding of the query.
        vectors: number of a candidate -> the embeddings of its clips, (T, E).
        limits: which hits.
        ground: return the grounding of a video, given the cosine of the query and each of its clips.
        typical: mean and standard deviation of the cosines of the query and the clips of the library.
    """
    rows: dict[int, VideoRow] = {}
    for row in limits.rows:
        if row.number not in vectors:
            continue  # only the files of candidates are looked up
        rows.setdefault(row.number, row)
        before = rows[row.number].path
        if not is_address(before) and not os.path.exists(before):  # prefer a copy that is there
            rows[row.number] = row
    hits: list[Evidence] = []
    for number, vectors_TE in vectors.items():
        row, cosine_T = rows[number], vectors_TE.astype(np.float32) @ vector_E
        grounding = ground(row, cosine_T).at_least(limits.min_score)
        if not grounding:
            continue
        nearest = float(cosine_T.max())
        for moment in _different(grounding.moments):
            clips = grounding.timeline.clips_in(moment.start, moment.end)
            inside = float(cosine_T[clips.start : clips.stop].max(initial=cosine_T.min()))
            mean, deviation = typical
            facts = (nearest - mean) / deviation, (inside - mean) / deviation, float(log_odds(moment.score))
            relevance = min(1.0, (1 + nearest) / 2 * moment.score / grounding[0].score)
            hit = Hit(video=row.path, moment=moment, relevance=relevance)
            hits.append(Evidence(hit=hit, row=row, grounding=grounding, facts=facts))
    return hits


def _judged(
    query: int, evidence: Sequence[Evidence], windows_of: Mapping[int, Sequence[tuple[float, float]]], iou: float
) -> list[Judged]:
    """Return two searches of a sentence: with the videos in which it is true, and without them.

    Args:
        query: number of the sentence.
        evidence: the hits of more candidates than a search reads.
        windows_of: number of a content -> windows in which the sentence is true.
        iou: the lowest IoU of a right hit.
    """
    nearest_first = sorted(evidence, key=lambda one: -one.facts[0])
    candidates = list(dict.fromkeys(one.row.number for one in nearest_first))
    searches = []
    for present in (True, False):
        read = [number for number in candidates if present or number not in windows_of][:FEWEST_CANDIDATES]
        hits = [one for one in evidence if one.row.number in read]
        if hits:
            right = [_is_right(one.hit.moment, windows_of.get(one.row.number, ()), iou) for one in hits]
            search = Judged(
                query=query,
                present=present,
                facts_H3=np.array([one.facts for one in hits]),
                right_H=np.array(right, dtype=bool),
                relevance_H=np.array([one.hit.relevance for one in hits]),
            )
            searches.append(search)
    return searches


def _is_right(moment: Moment, windows: Sequence[tuple[float, float]], iou: float) -> bool:
    """Check whether a moment overlaps one of the windows enough."""
    span_12 = np.array([[moment.start, moment.end]])
    return bool(windows) and bool(np.asarray(spans.iou(span_12, np.array(windows))).max() >= iou)


def _result(query: str, evidence: Sequence[Evidence], limits: Limits, *, notes: tuple[str, ...] = ()) -> SearchResult:
    """Return the best hits of the candidates.

    Args:
        query: the sentence, or a name.
        evidence: all hits.
        limits: which hits.
        notes: sentences that matter to all answers.
    """
    ordered = sorted(evidence, key=lambda one: -one.hit.relevance)
    best = [one for one in ordered if one.hit.relevance >= (limits.min_relevance or 0)][: limits.top]
    by_video: dict[str, list[Evidence]] = {}
    for one in best:
        by_video.setdefault(one.hit.video, []).append(one)
    groundings = (
        replace(
            hits[0].grounding,
            moments=tuple(one.hit.moment for one in hits),
            notes=(*hits[0].row.notes, *hits[0].grounding.notes, *notes),
        )
        for hits in by_video.values()
    )
    left_out = ordered[0].hit.relevance if ordered and not best else None
    return SearchResult(
        query=query,
        hits=tuple(one.hit for one in best),
        groundings=tuple(groundings),
        notes=notes,
        best_left_out=left_out,
    )


def _different(moments: Sequence[Moment]) -> list[Moment]:
    """Return moments without very short ones, and without those that overlap a better one by more than half."""
    moments = [moment for moment in moments if moment.end - moment.start >= _SHORTEST]
    if not moments:
        return []
    spans_N2 = np.array([(moment.start, moment.end) for moment in moments])
    scores_N = np.array([moment.score for moment in moments])
    keep_N = spans.nms(spans_N2, scores_N, _SAME_MOMENT)
    return [moment for moment, keep in zip(moments, keep_N.tolist(), strict=True) if keep]
