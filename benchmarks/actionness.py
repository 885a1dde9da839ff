"""What an SDST's actionness knows of its moments, and what it does to their order.

    python benchmarks/actionness.py CHECKPOINT... --annotations data/shapes/val/annotations.jsonl --features STORE

For each checkpoint: scores with moments ranked by class, by actionness, and by both (the paper's score); then, over
all moment queries of the last level, the mean of actionness and of class for each tenth of overlap (IoU) with the best
true moment, and the tenth of them with the lowest actionness. Actionness is trained to be the overlap. Last, the mean
actionness of those that lie inside a true moment, and of those that cover it.
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
WHOLE = 0.95
"""Of a span, for it to lie inside a moment, or of a moment, for it to be covered."""
METRICS = ("MR-full-mAP", "MR-full-R1@0.5", "MR-full-R1@0.7")


@torch.inference_mode()
def queries(model: SDST, dataset: GroundingDataset, batch_size: int = 32) -> tuple[np.ndarray, ...]:
    """Of every moment query of every sample with a moment, each (N,): overlap with the best true moment, the share of
    the query's span that lies in that moment, the share of the moment that it covers, actionness and class.
    """
    found = []
    for first in range(0, len(dataset), batch_size):
        batch = dataset.batch(range(first, min(first + batch_size, len(dataset))))
        predictions, targets = model(batch), batch.targets
        assert targets is not None
        inside_BM2 = spans.cw_to_se(predictions.spans_KBM2[-1]).clamp(0, 1)
        true_BG2 = spans.cw_to_se(targets.spans_BG2)
        overlap_BMG = spans.iou(inside_BM2, true_BG2).masked_fill(~targets.spans_mask_BG.unsqueeze(1), 0)
        overlap_BM, best_BM = overlap_BMG.max(-1)
        best_BM2 = true_BG2.gather(1, best_BM.unsqueeze(-1).expand(-1, -1, 2))
        ends_BM = torch.minimum(inside_BM2[..., 1], best_BM2[..., 1])
        common_BM = (ends_BM - torch.maximum(inside_BM2[..., 0], best_BM2[..., 0])).clamp(min=0)
        shares = [common_BM / (s[..., 1] - s[..., 0]).clamp(min=1e-6) for s in (inside_BM2, best_BM2)]
        values = torch.stack([overlap_BM, *shares, predictions.actionness_BM, predictions.logits_KBM[-1].sigmoid()])
        found.append(values[:, targets.spans_mask_BG.any(1)].flatten(1))
    return tuple(torch.cat(found, 1).numpy())


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
    overlap, inside, covered, actionness, probability = queries(model, dataset)
    print(f"\n{'IoU':<12}{'queries':>10}{'actionness':>12}{'lowest 10 %':>13}{'class':>8}")
    for low in np.arange(10) / 10:
        of = (overlap >= low) & ((overlap < low + 0.1) | (low == 0.9))
        if of.any():
            least = np.quantile(actionness[of], 0.1)
            print(
                f"{low:.1f} - {low + 0.1:.1f}{'':<3}{of.sum():>10}{actionness[of].mean():>12.3f}{least:>13.3f}"
                f"{probability[of].mean():>8.3f}"
            )
    print(f"\n{'IoU':<12}{'inside':>10}{'actionness':>12}{'covering':>13}{'actionness':>12}")
    for low in np.arange(1, 5) / 5:
        of = (overlap >= low) & ((overlap < low + 0.2) | (low == 0.8))
        kinds = (of & (inside >= WHOLE), of & (covered >= WHOLE))
        if all(kind.any() for kind in kinds):
            cells = "".join(
                f"{kind.sum():>{w}}{actionness[kind].mean():>12.3f}" for kind, w in zip(kinds, (10, 13), strict=True)
            )
            print(f"{low:.1f} - {low + 0.2:.1f}{'':<3}{cells}")


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
