"""How an SDST's actionness follows the overlap that it is trained to be, and what it does to the order of moments.

    python benchmarks/actionness.py CHECKPOINT... --annotations data/shapes/val/annotations.jsonl --features STORE

For each checkpoint: metrics with moments ranked by class, by actionness, and by both (the paper's score). Then, over
the moment queries of the last level, by their overlap (IoU) with the best true moment: mean actionness and class, and
the actionness below which a tenth of them lies. Last, the mean actionness of spans that lie inside a true moment
without covering it, and of spans that cover one without lying inside it. (For one overlap the first are pieces of
longer moments, the second surround shorter ones.)

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
WHOLE = 0.95
"""Of a span, for it to lie inside a moment, or of a moment, for it to be covered."""
Values = dict[str, np.ndarray]


@torch.inference_mode()
def moment_queries(model: SDST, dataset: GroundingDataset, batch_size: int = 32) -> Values:
    """Every moment query of every sample that has a moment, each value (N,): its overlap with the best true moment,
    the share of its span that lies in that moment, the share of that moment that it covers, actionness, class.
    """
    found: list[torch.Tensor] = []
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
        found.append(values[:, targets.spans_mask_BG.any(1)].flatten(1))
    rows = torch.cat(found, 1).numpy()
    return dict(zip(("overlap", "inside", "covered", "actionness", "class"), rows, strict=True))


def by_overlap(values: Values, parts: int) -> list[dict[str, Any]]:
    """A row for each part of the overlaps from 0 to 1; nothing (None) where there is no such moment query."""
    place = np.minimum((values["overlap"] * parts).astype(int), parts - 1)
    inside, covered = values["inside"] >= WHOLE, values["covered"] >= WHOLE
    rows = []
    for part in range(parts):
        chosen = place == part
        kinds = {"": chosen, "inside ": chosen & inside & ~covered, "covering ": chosen & covered & ~inside}
        row: dict[str, Any] = {"from": part / parts, "to": (part + 1) / parts}
        for kind, which in kinds.items():
            actionness = values["actionness"][which]
            row[f"{kind}moment queries"] = int(which.sum())
            row[f"{kind}actionness"] = float(actionness.mean()) if which.any() else None
        row["lowest tenth"] = float(np.quantile(values["actionness"][chosen], 0.1)) if chosen.any() else None
        row["class"] = float(values["class"][chosen].mean()) if chosen.any() else None
        rows.append(row)
    return rows


def measure(name: str, annotations: Path, features: Path) -> dict[str, Any]:
    """All of it for one checkpoint."""
    checkpoint = Checkpoint.from_pretrained(name)
    model, decode = checkpoint.model.eval(), checkpoint.decode
    if not isinstance(model, SDST) or not isinstance(decode, DecodeConfig):
        raise SystemExit(f"{name} is no SDST; only that has an actionness")
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


def show(name: str, found: dict[str, Any]) -> None:
    print(f"\n{name}: roi_width {found['roi_width']:g}\n{'ranked by':<12}" + "".join(f"{m:>18}" for m in METRICS))
    for title, brief in found["ranked by"].items():
        print(f"{title:<12}" + "".join(f"{brief[m]:>18.2f}" for m in METRICS))
    _table(found["tenths"], ("moment queries", "actionness", "lowest tenth", "class"))
    kinds = ("inside ", "covering ")
    _table(found["fifths"], [f"{kind}{what}" for kind in kinds for what in ("moment queries", "actionness")])


def _table(rows: list[dict[str, Any]], columns: Sequence[str]) -> None:
    print(f"\n{'overlap':<12}" + "".join(f"{column:>25}" for column in columns))
    for row in rows:
        cells = ("-" if (v := row[c]) is None else f"{v:.3f}" if isinstance(v, float) else f"{v}" for c in columns)
        print(f"{row['from']:.1f} - {row['to']:.1f}{'':<3}" + "".join(f"{cell:>25}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoints", nargs="+", help="folders of SDSTs, or names of packaged models")
    parser.add_argument("--annotations", type=Path, required=True, help="JSONL with the true moments")
    parser.add_argument("--features", type=Path, required=True, help="feature store of their videos and queries")
    parser.add_argument("--json", type=Path, help="write all numbers here too")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = {}
    for name in options.checkpoints:
        found[name] = measure(name, options.annotations, options.features)
        show(name, found[name])
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
