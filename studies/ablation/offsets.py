"""The offsets of deformable attention at each level, compared with their initial values (Fig. 4 and Fig. A).

The paper says that the offsets of deformable cross-attention stay near their initial values and within the moment,
while those of RDSA move and point beyond it. Offsets are in half widths of the reference: -1 is its left edge, +1 its
right edge. Two values are measured at each level: the points, and the mean of a head's points weighted by their
attention (as in Fig. 4). They are measured over all moment queries of the validation split, over the matched ones
(Hungarian, at the last level), and over the moment query with the highest score of each sample.

Legend: K levels, B batch, M moment queries, H heads, P points of a head, N selected moment queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sidelight.export.charts import FIRST, INK, NEITHER, SECOND, new_figure, save_figure
from sidelight.models.deformable import DeformableAttention, initial_offsets
from sidelight.models.sdst import SDST, SDSTConfig
from studies.ablation.inference import mean_and_deviation
from studies.ablation.run import Run, located
from studies.ablation.variants import Ablation, chosen_levels

if TYPE_CHECKING:
    from sidelight.core.batch import Batch, Predictions
    from sidelight.models.losses.sdst import SDSTLossConfig
    from sidelight.training.dataset import GroundingDataset

Floats = npt.NDArray[np.float32]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SELECTIONS = ("all", "matched", "top")
"""All moment queries; the ones matched with a true span; the one with the highest score of each sample."""
MEASURES = ("moved", "outside", "weighted_moved", "weighted_outside")
"""The measures of :func:`summary` that a report averages over seeds."""


def record(model: SDST, batch: Batch) -> tuple[Predictions, Tensor, Tensor]:
    """Return the predictions of a model, and the offsets and attention weights of each level, both (K, B, M, H, P).

    Raises:
        ValueError: if the model has no deformable attention.
    """
    modules = [m for m in model.modules() if isinstance(m, DeformableAttention)]
    if not modules:
        raise ValueError("only deformable attention has offsets; this model has none (model.attention, sparse_order)")
    recorded: list[tuple[Tensor, Tensor]] = []

    def recording(sampling: Any) -> Any:
        def sample(query_BMQ: Tensor) -> tuple[Tensor, Tensor]:
            offsets_and_weights = sampling(query_BMQ)
            recorded.append(offsets_and_weights)
            return cast(tuple[Tensor, Tensor], offsets_and_weights)

        return sample

    # The module computes both inside its forward pass, which a hook of PyTorch cannot observe.
    for module in modules:
        module.__dict__["sampling"] = recording(module.sampling)
    try:
        with torch.inference_mode():
            predictions = model(batch)
    finally:
        for module in modules:
            del module.__dict__["sampling"]
    offsets, weights = zip(*recorded, strict=True)
    return predictions, torch.stack(offsets), torch.stack(weights)


def measure(model: SDST, dataset: GroundingDataset, losses: SDSTLossConfig, *, batch_size: int = 64) -> dict[str, Any]:
    """Measure the distributions of the offsets of one model on a dataset with true spans.

    Args:
        model: a model with attention "rdsa" or "deformable".
        dataset: samples; their videos are not cut into windows.
        losses: the costs of the matching.
        batch_size: samples per batch.

    Returns:
        ``initial`` (H, P), and for each selection a list with one dict per level: see :func:`summary`.

    Raises:
        ValueError: if the model has no deformable attention.
    """
    from sidelight.models.losses.sdst import match
    from sidelight.training.dataset import in_order

    model = model.eval()
    device = next(model.parameters()).device
    order = sorted(range(len(dataset)), key=lambda i: dataset.timeline(i).num_clips)
    parts: dict[str, list[tuple[Floats, Floats]]] = {name: [] for name in SELECTIONS}
    for rows in in_order(len(order), batch_size):
        batch = dataset.batch([order[row] for row in rows]).to(device)
        predictions, offsets_KBMHP, weights_KBMHP = record(model, batch)
        assert batch.targets is not None
        matched_BM = match(predictions, batch.targets, losses)[0][-1] >= 0
        best_B1 = predictions.logits_KBM[-1].argmax(1, keepdim=True)
        top_BM = torch.zeros_like(matched_BM).scatter_(1, best_B1, True)
        for name, chosen_BM in zip(SELECTIONS, (torch.ones_like(matched_BM), matched_BM, top_BM), strict=True):
            parts[name].append((_rows(offsets_KBMHP, chosen_BM), _rows(weights_KBMHP, chosen_BM)))
    config: SDSTConfig = model.config
    start_HP = initial_offsets(config.offset_init, config.heads, config.points).numpy()
    summaries: dict[str, Any] = {"initial": start_HP.tolist()}
    for name, pairs in parts.items():
        offsets_KNHP, weights_KNHP = (np.concatenate(arrays, axis=1) for arrays in zip(*pairs, strict=True))
        summaries[name] = [summary(o, w, start_HP) for o, w in zip(offsets_KNHP, weights_KNHP, strict=True)]
    return summaries


def _rows(values_KBMHP: Tensor, chosen_BM: Tensor) -> Floats:
    """Return the values (K, N, H, P) of the chosen moment queries."""
    return cast(Floats, values_KBMHP[:, chosen_BM].float().cpu().numpy())


def summary(offsets_NHP: Floats, weights_NHP: Floats, start_HP: Floats) -> dict[str, Any]:
    """Summarise the offsets of one level: distance from the start, share outside the moment, quantiles.

    ``moved`` is the mean distance of a point from its start, and ``outside`` the share of points beyond [-1, 1]. The
    same names with ``weighted_`` are about the weighted mean of each head's points; its start has equal weights.
    ``heads`` has one dict per head with the start and the quantiles of its weighted mean. Values are None without
    moment queries.
    """
    weighted_NH = (offsets_NHP * weights_NHP).sum(2)
    start_H = start_HP.mean(1)
    return {
        "moment_queries": len(offsets_NHP),
        "moved": _mean(np.abs(offsets_NHP - start_HP)),
        "outside": _mean(np.abs(offsets_NHP) > 1),
        "quantiles": _quantiles(offsets_NHP),
        "weighted_moved": _mean(np.abs(weighted_NH - start_H)),
        "weighted_outside": _mean(np.abs(weighted_NH) > 1),
        "weighted_quantiles": _quantiles(weighted_NH),
        "heads": [
            {"start": float(start), "mean": _mean(weighted_NH[:, head]), "quantiles": _quantiles(weighted_NH[:, head])}
            for head, start in enumerate(start_H)
        ],
    }


def _mean(values: npt.NDArray[Any]) -> float | None:
    return float(values.mean(dtype=np.float64)) if values.size else None


def _quantiles(values: Floats) -> list[float] | None:
    return [float(q) for q in np.quantile(values, QUANTILES)] if values.size else None


def check_weights(runs: Sequence[Run]) -> None:
    """Check that each finished run has weights, before any work. A run copied from another machine may have none.

    Raises:
        ValueError: if a finished run has no weights.
    """
    for run in runs:
        if run.finished and not (run.folder / "last").is_dir():
            raise ValueError(
                f"{run.folder} has no weights (last/), which offsets are measured with; copy them too, or delete the "
                "folder to train the run again"
            )


def measure_run(run: Run) -> dict[str, Any]:
    """Measure the offsets of a finished run on its validation split, whose features must be prepared.

    Raises:
        ValueError: if the run is damaged, has no weights, or has no deformable attention.
    """
    from sidelight.data.annotations import read_annotations
    from sidelight.features.store import FeatureStore
    from sidelight.models.losses.sdst import SDSTLossConfig
    from sidelight.training.checkpoint import Checkpoint
    from sidelight.training.dataset import GroundingDataset

    check_weights([run])
    values = located(run)
    checkpoint = Checkpoint.from_pretrained(run.folder / "last")
    if not isinstance(checkpoint.model, SDST):
        raise ValueError(f"{run.folder} is not an SDST; only its deformable attention has offsets")
    store = FeatureStore(values["data"]["val_features"], levels=chosen_levels(values))
    dataset = GroundingDataset(read_annotations(values["data"]["val"]), store)
    return measure(checkpoint.model, dataset, SDSTLossConfig(**run.recipe["losses"]))


def from_runs(ablation: Ablation, runs: Sequence[Run]) -> dict[str, Any]:
    """Measure the finished runs of a table and return their report.

    Raises:
        ValueError: if no run is finished, or as :func:`measure_run`.
    """
    measured: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if run.finished:
            measures = measure_run(run)
            for name in run.variants:
                measured.setdefault(name, []).append({"seed": run.seed, **measures})
    if not measured:
        raise ValueError(f"table {ablation.name}: there is no finished run yet")
    return report(measured)


def report(measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return means and deviations of :data:`MEASURES` over seeds, and the values of every run.

    Args:
        measured: variant -> result of :func:`measure` of each run.
    """
    rows: dict[str, Any] = {}
    for variant, runs in measured.items():
        rows[variant] = {
            selection: [
                {name: _over_runs([run[selection][level][name] for run in runs]) for name in MEASURES}
                for level in range(len(runs[0][selection]))
            ]
            for selection in SELECTIONS
        }
    return {
        "table": "offsets",
        "quantiles": list(QUANTILES),
        "rows": rows,
        "runs": {variant: list(runs) for variant, runs in measured.items()},
    }


def _over_runs(values: Sequence[float | None]) -> dict[str, float | None]:
    mean, deviation = mean_and_deviation(values)
    return {"mean": mean, "deviation": deviation}


def as_text(table: Mapping[str, Any]) -> str:
    """Return a report as plain text, one line per variant, selection and level."""
    heads = ["moved", "outside (%)", "weighted: moved", "weighted: outside (%)"]
    lines = [
        "Fig. 4, Fig. A: offsets in half widths of the reference; how far from their start, and how many outside it",
        f"{'':<14}{'':<10}{'level':<7}" + "".join(f"{head:>24}" for head in heads),
    ]
    for variant, selections in table["rows"].items():
        for selection, levels in selections.items():
            for level, values in enumerate(levels, 1):
                cells = []
                for name in MEASURES:
                    scale = 100 if "outside" in name else 1
                    mean, deviation = values[name]["mean"], values[name]["deviation"]
                    spread = "" if deviation is None else f" ± {scale * deviation:.3f}"
                    cells.append("-" if mean is None else f"{scale * mean:.3f}{spread}")
                lines.append(f"{variant:<14}{selection:<10}{level:<7}" + "".join(f"{cell:>24}" for cell in cells))
    lines += ["", "mean ± deviation over seeds; weighted: the mean of a head's points by their attention"]
    return "\n".join(lines)


def plot_report(table: Mapping[str, Any], path: str | Path, *, selection: str = "matched") -> Path:
    """Draw the weighted offset of each head of the first run, for each variant and level; return the path.

    Boxes contain half of the moment queries, whiskers 90 %. Crosses are the initial values.

    Raises:
        ValueError: if Matplotlib is missing.
    """
    variants = list(table["runs"])
    levels = max(len(table["runs"][name][0][selection]) for name in variants)
    figure = new_figure(1.2 + 2.2 * levels, 0.8 + 2.4 * len(variants))
    panels = figure.subplots(len(variants), levels, sharex=True, sharey=True, squeeze=False)
    for row, name in zip(panels, variants, strict=True):
        for k, (axes, level) in enumerate(zip(row, table["runs"][name][0][selection], strict=False)):
            for y, head in enumerate(level["heads"]):
                if head["quantiles"]:
                    low, first, middle, third, high = head["quantiles"]
                    axes.plot([low, high], [y, y], color=NEITHER, lw=1)
                    axes.plot([first, third], [y, y], color=FIRST, lw=5, solid_capstyle="butt")
                    axes.plot(middle, y, "|", color="white", ms=6)
                axes.plot(head["start"], y, "x", color=SECOND, ms=6)
            for edge in (-1, 1):
                axes.axvline(edge, color=INK, lw=0.6, ls=":")
            axes.set_title(f"{name}, level {k + 1}", fontsize=8, loc="left")
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("head", fontsize=8)
    for axes in panels[-1]:
        axes.set_xlabel("offset in half widths", fontsize=8)
    figure.suptitle(f"weighted offsets of {selection} moment queries; x where they started", fontsize=9)
    return save_figure(figure, path)
