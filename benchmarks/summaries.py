"""Measure what summaries of shapes videos hold, against uniform and random picks of the same length.

    sidelight shapes --out data/summaries --videos 30 --seed 991 --split test
    python benchmarks/summaries.py data/summaries

Everything is synthetic, and the model is ``shapes``. Three raters of the shapes world rate the clips in which a
sentence is true from 0 to 4; other clips count as 0. The first table gives each sentence as the topic, and counts its
own ratings: their mean over the picked clips, and the share of picked clips that most raters give 4. The second table
gives no topic, and counts the mean rating over all sentences of the video (a clip in which much is good is rated high),
and the share of picked clips that are among the best 15 % of their video.

"sum", which ``sidelight summarize`` uses, values a segment by the sum of its scores, "mean" by their mean, as
benchmarks do. "clips" picks the best clips one by one, without segments. "raters" picks by the ratings themselves.
Random picks are the mean over 100 draws. All pick at most the same length. Intervals are 95 % bootstrap intervals over
videos.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from sidelight import Grounder
from sidelight.data.annotations import Annotation, read_annotations
from sidelight.features.sources import find_videos
from sidelight.grounder import clip_vectors
from sidelight.metrics import summaries, summarization
from sidelight.metrics.statistics import intervals
from sidelight.training.named import topic_of

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
DRAWS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", type=Path, help="folder that `sidelight shapes` made")
    parser.add_argument("--videos", type=int, help="take the first N videos only")
    parser.add_argument("--share", type=float, default=summarization.BUDGET, help="length of a summary")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    by_video: dict[str, list[Annotation]] = {}
    for annotation in read_annotations(args.world / "annotations.jsonl"):
        by_video.setdefault(annotation.vid, []).append(annotation)
    by_video = dict(list(by_video.items())[: args.videos])
    files = find_videos(args.world / "videos", by_video)
    grounder = Grounder.from_pretrained("shapes", device="cpu")
    with_topic: dict[str, list[tuple[float, float]]] = {}
    without: dict[str, list[tuple[float, float]]] = {}
    topic_videos: list[str] = []
    for vid, rows in by_video.items():
        queries = [*(a.query for a in rows), topic_of("shapes")]
        features = grounder.features(files[vid])
        *curves, neutral = [g.saliency for g in grounder.ground_features(features, grounder.encode(queries), queries)]
        vectors_TD = clip_vectors(features)
        segments = summaries.segments_of(vectors_TD, clip_seconds=features.timeline.clip_seconds)
        clips = features.timeline.num_clips
        ratings_QT = np.stack([ratings_of(a, clips, np.mean) for a in rows])
        for annotation, curve, rating_T in zip(rows, curves, ratings_QT, strict=True):
            picks = pickers(curve, rating_T, segments, args.share)
            add(with_topic, picks, rating_T, ratings_of(annotation, clips, np.median) == 4)
        topic_videos += [vid] * len(rows)
        mean_T = ratings_QT.mean(0)
        best_T = mean_T >= np.sort(mean_T)[-max(1, math.floor(args.share * clips))]
        add(without, pickers(neutral, mean_T, segments, args.share), mean_T, best_T)
    counts = f"{len(by_video)} videos, {len(topic_videos)} sentences"
    print(f"{args.world} (synthetic): {counts}, summaries of {args.share:.0%}")
    print_table("each sentence as the topic", "rated 4", with_topic, topic_videos)
    print_table(f"no topic ({topic_of('shapes')!r})", "among the best", without, list(by_video))


def ratings_of(annotation: Annotation, clips: int, reduce: Callable[..., float]) -> Floats:
    """Return the rating of each clip, (T,), reduced over raters; 0 where the sentence is not true."""
    rating_T = np.zeros(clips)
    for clip, ratings in zip(annotation.relevant_clip_ids, annotation.saliency_scores, strict=True):
        if clip < clips:
            rating_T[clip] = reduce(ratings)
    return rating_T


def pickers(
    curve: npt.ArrayLike, rating_T: Floats, segments: npt.NDArray[np.int64], share: float
) -> dict[str, list[Bools]]:
    """Return the picked clips of each way to pick, one or several draws, all of at most the same length."""
    clips = len(rating_T)
    most = max(1, math.floor(share * clips + 1e-6))
    fitting, scores_T = summaries.fitting_segments(segments, most), summaries.scaled(curve)

    def by_segments(values_T: Floats, value: Literal["mean", "sum"]) -> Bools:
        return summarization.summarize(values_T, fitting, most / clips, value=value)

    def best(values_T: Floats) -> Bools:
        return chosen(clips, np.argsort(-values_T, kind="stable")[:most])

    rng = np.random.default_rng(clips)
    return {
        "summary, sum": [by_segments(scores_T, "sum")],
        "summary, mean": [by_segments(scores_T, "mean")],
        "summary, clips": [best(scores_T)],
        "uniform": [chosen(clips, ((np.arange(most) + 0.5) * clips / most).astype(int))],
        "random clips": [chosen(clips, rng.permutation(clips)[:most]) for _ in range(DRAWS)],
        "random segments": [by_segments(rng.random(clips), "sum") for _ in range(DRAWS)],
        "raters, segments": [by_segments(summaries.scaled(rating_T), "sum")],
        "raters, clips": [best(rating_T)],
    }


def chosen(clips: int, places: npt.NDArray[np.int64]) -> Bools:
    picked_T = np.zeros(clips, dtype=bool)
    picked_T[places] = True
    return picked_T


def add(
    rows: dict[str, list[tuple[float, float]]], picks: dict[str, list[Bools]], rating_T: Floats, good_T: Bools
) -> None:
    """Append the mean rating, and the share of good clips, of each way to pick."""

    def mean_over(values_T: npt.NDArray[Any], draws: list[Bools]) -> float:
        return float(np.mean([values_T[picked_T].mean() if picked_T.any() else 0.0 for picked_T in draws]))

    for name, draws in picks.items():
        rows.setdefault(name, []).append((mean_over(rating_T, draws), 100 * mean_over(good_T, draws)))


def print_table(title: str, share: str, rows: dict[str, list[tuple[float, float]]], videos: list[str]) -> None:
    print(f"\n{title:<34}{'mean rating':>22}{f'% {share}':>26}")
    for name, values in rows.items():
        mean, part = intervals(np.array(values), groups=videos)
        cells = [
            f"{mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}]",
            f"{part.value:.1f} [{part.low:.1f}, {part.high:.1f}]",
        ]
        print(f"{name:<34}{cells[0]:>22}{cells[1]:>26}")


if __name__ == "__main__":
    main()
