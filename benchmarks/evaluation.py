"""Measure the speed of the QVHighlights metrics, compared with a plain implementation.

    python benchmarks/evaluation.py [PREDICTIONS ANNOTATIONS]

Without files, the script makes a synthetic set of the size of the validation split: 1,550 queries with 10 windows each.
Both implementations score the same objects in the same process on one thread. Times are CPU seconds, which depend
less on other programs. Reading the files is timed separately. The plain implementation computes the published
definitions for one query, rater and threshold at a time, and must give the same numbers to the last printed digit.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence

import numpy as np
from memory import peak_mib

from sidelight.data.annotations import Annotation, Submission, read_annotations, read_submissions
from sidelight.metrics import evaluate_qvhighlights

AP_THRESHOLDS = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
RECALL_THRESHOLDS = [0.3, 0.35, 0.4, 0.45, *AP_THRESHOLDS]
RANGES = {"short": (0, 10), "middle": (10, 30), "long": (30, math.inf), "full": (-math.inf, math.inf)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("predictions", nargs="?")
    parser.add_argument("annotations", nargs="?")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    start = time.process_time()
    if args.predictions and args.annotations:
        submissions, annotations = read_submissions(args.predictions), read_annotations(args.annotations)
        print(f"{args.predictions}: {len(annotations)} queries, read in {time.process_time() - start:.2f} s")
    else:
        submissions, annotations = synthetic(1550)
        print(f"synthetic: {len(annotations)} queries")
    before = peak_mib()
    times = []
    for _ in range(args.repeats):
        start = time.process_time()
        ours = evaluate_qvhighlights(submissions, annotations)
        times.append(time.process_time() - start)
    used = peak_mib() - before
    start = time.process_time()
    plain = evaluate_plainly(submissions, annotations)
    plain_seconds = time.process_time() - start
    for name, value in plain.items():
        assert ours["brief"][name] == value, (name, ours["brief"][name], value)
    seconds = float(np.median(times))
    print(f"sidelight {seconds:.3f} s (median of {args.repeats}), peak memory + {used:.0f} MiB")
    print(f"plain     {plain_seconds:.2f} s, the same {len(plain)} numbers")
    print(f"ratio     {plain_seconds / seconds:.0f}")


def synthetic(queries: int) -> tuple[list[Submission], list[Annotation]]:
    """Return random predictions and annotations in the form of QVHighlights; the windows are near the true ones."""
    rng = np.random.default_rng(0)
    submissions, annotations = [], []
    for qid in range(queries):
        count = int(rng.integers(1, 4))
        starts = np.sort(rng.choice(np.arange(0, 60, 20), size=count, replace=False))
        windows = [(2.0 * s, 2.0 * (s + int(rng.integers(1, 15)))) for s in starts.tolist()]
        clips = [c for s, e in windows for c in range(int(s // 2), int(e // 2))]
        ratings = rng.integers(0, 5, size=(len(clips), 3)).tolist()
        annotations.append(
            Annotation(
                qid=qid,
                query="a",
                vid=f"v{qid}",
                duration=150,
                relevant_windows=windows,  # type: ignore[arg-type]  # a list, as read from JSON, becomes a tuple
                relevant_clip_ids=clips,
                saliency_scores=ratings,  # type: ignore[arg-type]  # a list, as above
            )
        )
        near = np.array([windows[i % count] for i in range(10)]) + rng.normal(scale=4, size=(10, 2))
        near = np.clip(np.sort(near, axis=1), 0, 150)
        rows = np.concatenate([near, np.sort(rng.random((10, 1)))[::-1]], axis=1)
        curve = rng.normal(size=75)
        submissions.append(Submission(qid=qid, vid=f"v{qid}", pred_relevant_windows=rows, pred_saliency_scores=curve))
    return submissions, annotations


# the definitions as published --------------------------------------------------------------------------------------


def evaluate_plainly(submissions: Sequence[Submission], annotations: Sequence[Annotation]) -> dict[str, float]:
    by_qid = {s.qid: s for s in submissions}
    scores: dict[str, float] = {}
    for name, (shortest, longest) in RANGES.items():
        precisions: dict[float, list[float]] = {t: [] for t in AP_THRESHOLDS}
        first: list[float] = []
        five: list[float] = []
        for annotation in annotations:
            windows = [w for w in annotation.relevant_windows if shortest < w[1] - w[0] <= longest]
            if not windows:
                continue
            predicted = by_qid[annotation.qid].pred_relevant_windows.tolist()
            for threshold in AP_THRESHOLDS:
                precisions[threshold].append(average_precision(predicted, windows, threshold))
            first.append(max((hull_iou(p, w) for p in predicted[:1] for w in windows), default=0.0))
            five.append(max((hull_iou(p, w) for p in predicted[:5] for w in windows), default=0.0))
        if not first:
            continue
        means = [sum(v) / len(v) for v in precisions.values()]
        scores[f"MR-{name}-mAP"] = percent(sum(means) / len(means))
        scores[f"MR-{name}-mIoU"] = percent(sum(first) / len(first))
        # As in the published scripts, all thresholds are computed, and only some are printed.
        shares = {
            rank: {t: sum(v >= t for v in values) / len(values) for t in RECALL_THRESHOLDS}
            for rank, values in (("R1", first), ("R5", five))
        }
        if name == "full":
            for t in (0.5, 0.75):
                scores[f"MR-full-mAP@{t:g}"] = percent(means[AP_THRESHOLDS.index(t)])
            for rank, at in shares.items():
                for t in (0.3, 0.5, 0.7):
                    scores[f"MR-full-{rank}@{t:g}"] = percent(at[t])
    for level, min_rating in (("Fair", 2), ("Good", 3), ("VeryGood", 4)):
        precision: list[float] = []
        hits: list[float] = []
        for annotation in annotations:
            curve = by_qid[annotation.qid].pred_saliency_scores.tolist()
            clips = int(annotation.duration / 2)
            raters = len(annotation.saliency_scores[0])
            ratings = [[0] * raters for _ in range(clips)]
            for clip, rated in zip(annotation.relevant_clip_ids, annotation.saliency_scores, strict=True):
                ratings[clip] = list(rated)
            best = max(range(len(curve)), key=lambda i: (curve[i], -i))
            hits.append(float(best < clips and any(r >= min_rating for r in ratings[best])))
            by_rater = [clip_precision(curve, [r[i] >= min_rating for r in ratings]) for i in range(raters)]
            precision.append(sum(by_rater) / raters)
        scores[f"HL-min-{level}-mAP"] = percent(sum(precision) / len(precision))
        scores[f"HL-min-{level}-Hit1"] = percent(sum(hits) / len(hits))
    return scores


def hull_iou(a: Sequence[float], b: Sequence[float]) -> float:
    common = min(a[1], b[1]) - max(a[0], b[0])
    hull = max(a[1], b[1]) - min(a[0], b[0])
    return max(0.0, common) / hull if hull > 0 else 0.0


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    common = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - common
    return common / union if union > 0 else 0.0


def average_precision(predicted: list[list[float]], true: list[tuple[float, float]], threshold: float) -> float:
    ranked = sorted(predicted[:10], key=lambda p: -p[2])
    taken: set[int] = set()
    right = []
    for p in ranked:
        free = [(iou(p, w), i) for i, w in enumerate(true) if i not in taken]
        overlap, index = max(free, default=(-1.0, -1))
        right.append(overlap >= threshold)
        if right[-1]:
            taken.add(index)
    precision = [sum(right[: i + 1]) / (i + 1) for i in range(len(right))]
    envelope = [max(precision[i:]) for i in range(len(right))]
    return sum(e for e, r in zip(envelope, right, strict=True) if r) / len(true)


def clip_precision(curve: list[float], positive: list[bool]) -> float:
    """Return the average precision, where clips of equal saliency share one point of the curve."""
    scores = [curve[i] if i < len(curve) else 0.0 for i in range(len(positive))]
    points = []
    for value in sorted(set(scores), reverse=True):
        above = [p for s, p in zip(scores, positive, strict=True) if s >= value]
        points.append((sum(above), len(above)))
    precision = [hits / count for hits, count in points]
    rises = [points[i][0] > (points[i - 1][0] if i else 0) for i in range(len(points))]
    envelope = [max(precision[i:]) for i in range(len(points))]
    return sum(e for e, r in zip(envelope, rises, strict=True) if r) / max(1, sum(rises))


def percent(share: float) -> float:
    return float(f"{100 * share:.2f}")


if __name__ == "__main__":
    main()
