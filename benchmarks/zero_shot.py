"""Compare the ways of grounding without training with each other, and with the trained SDST, on a shapes world.

    sidelight shapes --out data/zero-shot --videos 60 --seed 991 --split test --absent 2
    python benchmarks/zero_shot.py data/zero-shot

Everything is synthetic. All methods but SDST read the same curves: the cosines of clips and sentence in the joint space
of the embedded backbone. "fine" and "lower" are the other methods with the settings that were best on another world
(see docs/zero-shot.md), instead of the published or usual ones. Intervals are 95 % bootstrap intervals over videos.

The second table is about sentences that are true nowhere in their video; each differs from an event in one attribute.
It shows for the two ways of deciding "no such moment" how often the score of a sentence that is true is above the score
of a sentence that is not.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sidelight.backbones import load_backbone
from sidelight.data.annotations import Annotation, Submission, read_annotations, write_submissions
from sidelight.features.extract import extract
from sidelight.features.sources import find_videos
from sidelight.features.store import FeatureStore
from sidelight.metrics.calibration import best_moments
from sidelight.metrics.qvhighlights import per_query
from sidelight.metrics.statistics import intervals
from sidelight.models.decode.zero_shot import METHODS
from sidelight.training.checkpoint import Checkpoint
from sidelight.training.dataset import GroundingDataset
from sidelight.training.predict import predict

SHOWN = ("MR-full-mAP", "MR-full-R1@0.5", "MR-full-R1@0.7", "HL-min-VeryGood-Hit1")
TUNED = {
    "threshold, lower": replace(METHODS["threshold"], deviations=0.5),
    "TFVTG, fine": replace(METHODS["tfvtg"], window_step=2, rising_start=False),
    "TAG, fine": replace(METHODS["tag"], cluster_pool=1, rising_start=False),
}
ROWS = {
    "threshold": METHODS["threshold"],
    "TFVTG": METHODS["tfvtg"],
    "TAG": METHODS["tag"],
    **TUNED,
    "persistence (ours)": METHODS["persistence"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", type=Path, help="folder that `sidelight shapes --absent 2` made")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every", type=int, default=1, help="take every N-th query, to choose options quickly")
    parser.add_argument("--out", type=Path, help="folder for the predictions of each method, as JSON lines")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    annotations = read_annotations(args.world / "with-absent.jsonl")[:: args.every]
    present = [a for a in annotations if a.relevant_windows]
    joint = store_of(args.world, annotations, "joint")
    sdst = Checkpoint.from_pretrained("shapes")
    predictions = {
        name: predictions_of(Checkpoint.zero_shot(joint.spec, decode), annotations, joint)
        for name, decode in ROWS.items()
    }
    predictions["SDST (trained)"] = predictions_of(sdst, annotations, store_of(args.world, annotations, "attention"))
    print(f"{args.world} (synthetic): {len(present)} queries on {len({a.vid for a in present})} videos\n")
    print(f"{'':<26}" + "".join(f"{name.removeprefix('MR-full-').removeprefix('HL-min-'):>24}" for name in SHOWN))
    for name, rows in predictions.items():
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            write_submissions(args.out / f"{name.split(' (')[0].replace(', ', '-').replace(' ', '-')}.jsonl", rows)
        cells = [f"{v:>9.2f} [{low:5.1f}, {high:5.1f}]" for v, low, high in scores_of(rows, present)]
        print(f"{name:<26}" + "".join(f"{cell:>24}" for cell in cells))
    print(f"\n{'no such moment':<26}{'true above absent':>24}")
    by_contrast = replace(METHODS["persistence"], presence="contrast")
    absent = {
        "persistence, level": predictions["persistence (ours)"],
        "persistence, contrast": predictions_of(Checkpoint.zero_shot(joint.spec, by_contrast), annotations, joint),
        "SDST (trained)": predictions["SDST (trained)"],
    }
    for name, rows in absent.items():
        print(f"{name:<26}{100 * separation(rows, annotations):>22.1f} %")


def store_of(world: Path, annotations: Sequence[Annotation], pooling: str) -> FeatureStore:
    """Return the features of the embedded backbone, extracted beside the world where they are missing."""
    store, failures = extract(
        find_videos(world / "videos", (a.vid for a in annotations)),
        [a.query for a in annotations],
        load_backbone("shapes", pooling=pooling),
        world / f"features-{pooling}",
        progress=True,
    )
    if failures:
        raise SystemExit(f"these videos cannot be read: {failures}")
    return store


def predictions_of(checkpoint: Checkpoint, annotations: Sequence[Annotation], store: FeatureStore) -> list[Submission]:
    dataset = GroundingDataset(annotations, store, targets=False)
    return predict(checkpoint.model, dataset, checkpoint.decode, window_clips=checkpoint.window_clips)


def scores_of(rows: Sequence[Submission], present: Sequence[Annotation]) -> list[tuple[float, float, float]]:
    """Return value, low and high of each shown metric, in percent, over the queries that have a moment."""
    qids = {a.qid for a in present}
    values = per_query([row for row in rows if row.qid in qids], present)
    table_QM = 100 * np.stack([values[name] for name in SHOWN], axis=1)
    return [(i.value, i.low, i.high) for i in intervals(table_QM, groups=[a.vid for a in present])]


def separation(rows: Sequence[Submission], annotations: Sequence[Annotation]) -> float:
    """Return the share of pairs of a true and an absent query in which the true one scores higher (ROC AUC)."""
    best = best_moments(rows, annotations)
    true, absent = best.score_Q[best.present_Q, None], best.score_Q[None, ~best.present_Q]
    return float(((true > absent) + 0.5 * (true == absent)).mean())


if __name__ == "__main__":
    main()
