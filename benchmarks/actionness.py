"""What an SDST's actionness knows of its moments, and what it does to their order.

    python benchmarks/actionness.py CHECKPOINT... --annotations data/shapes/val/annotations.jsonl --features STORE

For each checkpoint: scores with moments ranked by class, by actionness, and by both (the paper's score); then, over
all moment queries of the last level, the mean of actionness and of class for each tenth of overlap (IoU) with the best
true moment, and the tenth of them with the lowest actionness. Actionness is trained to be the overlap.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch

from sidelight import spans
from sidelight.annotations import read_annotations
from sidelight.checkpoint import Checkpoint
from sidelight.dataset import GroundingDataset
from sidelight.decode import DecodeConfig
from sidelight.evaluate import evaluate_submissions
from sidelight.features import FeatureStore
from sidelight.models.sdst import SDST
from sidelight.predict import predict

SCORES = {"class": "class", "actionness": "actionness", "sqrt": "both"}
METRICS = ("MR-full-mAP", "MR-full-R1@0.5", "MR-full-R1@0.7")


@torch.inference_mode()
def queries(model: SDST, dataset: GroundingDataset, batch_size: int = 32) -> tuple[np.ndarray, ...]:
    """Overlap, actionness and class of every moment query of every sample with a moment, each (N,)."""
    found = []
    for first in range(0, len(dataset), batch_size):
        batch = dataset.batch(range(first, min(first + batch_size, len(dataset))))
        predictions, targets = model(batch), batch.targets
        assert targets is not None
        inside_BM2 = spans.cw_to_se(predictions.spans_KBM2[-1]).clamp(0, 1)
        overlap_BMG = spans.iou(inside_BM2, spans.cw_to_se(targets.spans_BG2))
        overlap_BM = overlap_BMG.masked_fill(~targets.spans_mask_BG.unsqueeze(1), 0).amax(-1)
        values = torch.stack([overlap_BM, predictions.actionness_BM, predictions.logits_KBM[-1].sigmoid()])
        found.append(values[:, targets.spans_mask_BG.any(1)].flatten(1))
    overlap, actionness, probability = torch.cat(found, 1).numpy()
    return overlap, actionness, probability


def report(name: str, annotations: Path, features: Path) -> None:
    checkpoint = Checkpoint.from_pretrained(name)
    if not isinstance(checkpoint.model, SDST) or not isinstance(checkpoint.decode, DecodeConfig):
        raise SystemExit(f"{name} is no SDST; only that has an actionness")
    model = checkpoint.model.eval()
    rows = read_annotations(annotations)
    dataset = GroundingDataset(rows, FeatureStore(features))
    print(f"\n{name}: roi_scale {model.config.roi_scale:g}\n{'ranked by':<12}" + "".join(f"{m:>18}" for m in METRICS))
    for score, title in SCORES.items():
        config = dataclasses.replace(checkpoint.decode, score=score)
        brief = evaluate_submissions(predict(model, dataset, config), rows)["brief"]
        print(f"{title:<12}" + "".join(f"{brief[m]:>18.2f}" for m in METRICS))
    overlap, actionness, probability = queries(model, dataset)
    print(f"\n{'IoU':<12}{'queries':>10}{'actionness':>12}{'lowest 10 %':>13}{'class':>8}")
    for low in np.arange(10) / 10:
        of = (overlap >= low) & ((overlap < low + 0.1) | (low == 0.9))
        if of.any():
            least = np.quantile(actionness[of], 0.1)
            print(
                f"{low:.1f} - {low + 0.1:.1f}{'':<3}{of.sum():>10}{actionness[of].mean():>12.3f}{least:>13.3f}"
                f"{probability[of].mean():>8.3f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoints", nargs="+", help="folders of SDSTs, or names of packaged models")
    parser.add_argument("--annotations", type=Path, required=True, help="JSONL with the true moments")
    parser.add_argument("--features", type=Path, required=True, help="feature store of their videos and queries")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.checkpoints:
        report(name, options.annotations, options.features)


if __name__ == "__main__":
    main()
