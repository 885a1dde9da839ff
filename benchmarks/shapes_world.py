"""Evaluate the shipped model on a shapes test world: all queries, unseen combinations, and shuffled queries.

    python benchmarks/shapes_world.py --seed 4242 --videos 100 --out data/shapes-test

All videos are synthetic. The shuffled run gives each video the query of another video and scores the answer against the
windows of the original query. This measures what a model can reach without reading the query.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sidelight.backbones import backbone_for
from sidelight.data.annotations import Annotation
from sidelight.features.extract import extract
from sidelight.features.sources import find_videos
from sidelight.features.store import FeatureStore
from sidelight.metrics import evaluate_qvhighlights
from sidelight.shapes import make_world
from sidelight.training.checkpoint import Checkpoint
from sidelight.training.dataset import GroundingDataset
from sidelight.training.predict import predict

SHOWN = (
    "MR-full-R1@0.3", "MR-full-R1@0.5", "MR-full-R1@0.7", "MR-full-mIoU", "MR-full-mAP", "MR-short-mAP",
    "MR-middle-mAP", "MR-long-mAP", "HL-min-VeryGood-mAP", "HL-min-VeryGood-Hit1",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--videos", type=int, default=100)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--out", default="data/shapes-test")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    out = Path(args.out) / f"seed-{args.seed}-{args.videos}"
    annotations = make_world(out, videos=args.videos, seed=args.seed, split="test", workers=args.threads, progress=True)
    checkpoint = Checkpoint.from_pretrained(args.model)
    store, failures = extract(
        find_videos(out / "videos", (a.vid for a in annotations)),
        [a.query for a in annotations],
        backbone_for(checkpoint.features),
        out / f"features-{checkpoint.features.digest()}",
        progress=True,
    )
    assert not failures
    rows = {
        "all": annotations,
        "unseen": [a for a in annotations if a.extra["unseen"]],
        "seen": [a for a in annotations if not a.extra["unseen"]],
        "attribute left out": [a for a in annotations if not (a.extra["colour"] and a.extra["shape"])],
        "shuffled": shuffled(annotations),
    }
    scores = {name: score(checkpoint, part, store) for name, part in rows.items()}
    print(f"shapes test world, seed {args.seed}, {args.videos} videos (synthetic)")
    print(f"{'':<22}" + "".join(f"{name:>20}" for name in rows))
    print(f"{'queries':<22}" + "".join(f"{len(part):>20}" for part in rows.values()))
    for metric in SHOWN:
        print(f"{metric:<22}" + "".join(f"{s.get(metric, float('nan')):>20.2f}" for s in scores.values()))


def shuffled(annotations: Sequence[Annotation]) -> list[Annotation]:
    """Return each annotation with the query of another video."""
    rng = np.random.default_rng(0)
    vids = list(dict.fromkeys(a.vid for a in annotations))
    order = rng.permutation(vids).tolist()
    next_video = {vid: order[(order.index(vid) + 1) % len(order)] for vid in vids}
    queries = {vid: [a.query for a in annotations if a.vid == vid] for vid in vids}
    result = []
    for annotation in annotations:
        candidates = queries[next_video[annotation.vid]]
        result.append(replace(annotation, query=candidates[int(rng.integers(len(candidates)))]))
    return result


def score(checkpoint: Checkpoint, annotations: Sequence[Annotation], store: FeatureStore) -> dict[str, float]:
    dataset = GroundingDataset(annotations, store)
    predictions = predict(checkpoint.model, dataset, checkpoint.decode, window_clips=checkpoint.window_clips)
    return dict(evaluate_qvhighlights(predictions, annotations)["brief"])


if __name__ == "__main__":
    main()
