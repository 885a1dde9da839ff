"""Measure how SDST's actionness follows the overlap that it is trained to equal, and how it changes the order of
moments.

    python benchmarks/actionness.py CHECKPOINT... --annotations data/shapes/val/annotations.jsonl --features STORE

For each checkpoint, the script prints

- metrics with moments ranked by class, by actionness, and by both (the paper's score);
- for the moment queries of the last level, by their overlap (IoU) with the best true moment: mean actionness, mean
  class, and the 0.1 quantile of actionness;
- mean actionness of spans that lie inside a true moment without covering it, and of spans that cover a true moment
  without lying inside it.

Shape legend: B batch, M moment queries, G true moments, N all moment queries of all samples.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidelight.core import spans
from sidelight.data.annotations import read_annotations
from sidelight.features.store import FeatureStore
from sidelight.metrics.evaluate import evaluate_submissions
from sidelight.models.decode.sdst import DecodeConfig
from sidelight.models.sdst import SDST
from sidelight.training.checkpoint import Checkpoint
from sidelight.training.dataset import GroundingDataset
from sidelight.training.predict import predict

SCORES = {"class": "class", "actionness": "actionness", "both": "sqrt"}
METRICS = ("MR-full-mAP", "MR-full-R1@0.5", "MR-full-R1@0.7")
MIN_SHARE = 0.95
"""Share of a span from which it lies inside a moment, and share of a moment from which it is covered."""
Values = dict[str, np.ndarray]


@torch.inference_mode()
def moment_queries(model: SDST, dataset: GroundingDataset, batch_size: int = 32) -> Values:
    """Return values (N,) of every moment query of every sample that has a true moment.

    The values are the overlap of the predicted span with the best true moment, the share of the span inside this
    moment, the share of this moment that the span covers, actionness, and class.
    """
    parts: list[torch.Tensor] = []
    for first in range(0, len(dataset), batch_size):
        batch = dataset.batch(range(first, min(first + batch_size, len(dataset))))
        predictions, targets = model(batch), batch.targets
        assert targets is not None
        spans_BM2 = spans.cw_to_se(predictions.spans_KBM2[-1]).clamp(0, 1)
        true_BG2 = spans.cw_to_se(targets.spans_BG2)
        overlap_BMG = spans.iou(spans_BM2, true_BG2).masked_fill(~targets.spans_mask_BG.unsqueeze(1), 0)
        overlap_BM, best_BM = overlap_BMG.max(-1)
        best_BM2 = true_BG2.gather(1, best_BM.unsqueeze(-1).expand(-1, -1, 2))
        common_BM = torch.minimum(spans_BM2[..., 1], best_BM2[..., 1]) - torch.maximum(
            spans_BM2[..., 0], best_BM2[..., 0]
        )
        inside_BM, covered_BM = (common_BM.clamp(min=0) / (s[..., 1] - s[..., 0]) for s in (spans_BM2, best_BM2))
        class_BM = predictions.logits_KBM[-1].sigmoid()
        values = torch.stack([overlap_BM, inside_BM, covered_BM, predictions.actionness_BM, class_BM])
        parts.append(values[:, targets.spans_mask_BG.any(1)].flatten(1))
    rows = torch.cat(parts, 1).numpy()
    return dict(zip(("overlap", "inside", "covered", "actionness", "class"), rows, strict=True))


def by_overlap(values: Values, parts: int) -> list[dict[str, Any]]:
    """Return one row for each of ``parts`` equal ranges of overlap; means without any moment query are None."""
    part_N = np.minimum((values["overlap"] * parts).astype(int), parts - 1)
    inside, covered = values["inside"] >= MIN_SHARE, values["covered"] >= MIN_SHARE
    rows = []
    for part in range(parts):
        chosen = part_N == part
        kinds = {"": chosen, "inside ": chosen & inside & ~covered, "covering ": chosen & covered & ~inside}
        row: dict[str, Any] = {"from": part / parts, "to": (part + 1) / parts}
        for kind, selected in kinds.items():
            actionness = values["actionness"][selected]
            row[f"{kind}moment queries"] = int(selected.sum())
            row[f"{kind}actionness"] = float(actionness.mean()) if selected.any() else None
        row["lowest tenth"] = float(np.quantile(values["actionness"][chosen], 0.1)) if chosen.any() else None
        row["class"] = float(values["class"][chosen].mean()) if chosen.any() else None
        rows.append(row)
    return rows


def measure(name: str, annotations: Path, features: Path) -> dict[str, Any]:
    """Measure one checkpoint."""
    checkpoint = Checkpoint.from_pretrained(name)
    model, decode = checkpoint.model.eval(), checkpoint.decode
    if not isinstance(model, SDST) or not isinstance(decode, DecodeConfig):
        raise SystemExit(f"{name} is not an SDST; only SDST has actionness")
    rows = read_annotations(annotations)
    store = FeatureStore(features, levels=checkpoint.features.levels)
    checkpoint.features.require(store.spec, what=f"the features in {features}")
    dataset = GroundingDataset(rows, store)
    ranked = {}
    for title, score in SCORES.items():
        config = dataclasses.replace(decode, score=score)
        submissions = predict(model, dataset, config, window_clips=checkpoint.window_clips)
        brief = evaluate_submissions(submissions, rows)["brief"]
        ranked[title] = {metric: brief[metric] for metric in METRICS}
    values = moment_queries(model, dataset)
    return {
        "roi_width": model.config.roi_width,
        "ranked by": ranked,
        "tenths": by_overlap(values, 10),
        "fifths": by_overlap(values, 5),
    }


def show(name: str, results: dict[str, Any]) -> None:
    print(f"\n{name}: roi_width {results['roi_width']:g}\n{'ranked by':<12}" + "".join(f"{m:>18}" for m in METRICS))
    for title, brief in results["ranked by"].items():
        print(f"{title:<12}" + "".join(f"{brief[m]:>18.2f}" for m in METRICS))
    _table(results["tenths"], ("moment queries", "actionness", "lowest tenth", "class"))
    kinds = ("inside ", "covering ")
    _table(results["fifths"], [f"{kind}{column}" for kind in kinds for column in ("moment queries", "actionness")])


def _table(rows: list[dict[str, Any]], columns: Sequence[str]) -> None:
    print(f"\n{'overlap':<12}" + "".join(f"{column:>25}" for column in columns))
    for row in rows:
        cells = ("-" if (v := row[c]) is None else f"{v:.3f}" if isinstance(v, float) else f"{v}" for c in columns)
        print(f"{row['from']:.1f} - {row['to']:.1f}{'':<3}" + "".join(f"{cell:>25}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoints", nargs="+", help="folders of SDST checkpoints, or names of shipped models")
    parser.add_argument("--annotations", type=Path, required=True, help="JSON lines with the true moments")
    parser.add_argument("--features", type=Path, required=True, help="feature store of their videos and queries")
    parser.add_argument("--json", type=Path, help="also write all numbers to this file")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {}
    for name in options.checkpoints:
        results[name] = measure(name, options.annotations, options.features)
        show(name, results[name])
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
