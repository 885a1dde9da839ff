"""The losses of SDST and the contrastive losses: against formulas written with loops, and in edge cases."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sidelight.core.batch import Batch, Predictions, Targets
from sidelight.models.losses.contrastive import alignment_losses, sampled_nce_loss
from sidelight.models.losses.sdst import (
    SDSTLossConfig,
    actionness_loss,
    class_goal,
    focal_loss,
    match,
    sdst_losses,
    span_losses,
)

CONFIG = SDSTLossConfig()
K, B, T, M, F = 2, 3, 6, 4, 8


def make_targets(span_counts: tuple[int, ...] = (2, 1, 0), padded_spans: int = 0) -> Targets:
    torch.manual_seed(1)
    columns = max(span_counts) + padded_spans
    spans = 0.2 + 0.3 * torch.rand(B, columns, 2)
    mask = torch.arange(columns) < torch.tensor(span_counts).unsqueeze(1)
    saliency = torch.tensor([[0.0, 1, 3, 3, 0, 0], [0, 0, 0, 2, 0, 0], [0.0] * 6])
    return Targets(spans_BG2=spans, spans_mask_BG=mask, saliency_BT=saliency, positive_B=torch.tensor([2, 3, -1]))


def make_batch(targets: Targets | None = None, seed: int = 0) -> tuple[Predictions, Batch]:
    torch.manual_seed(seed)
    mask = torch.arange(T) < torch.tensor([6, 4, 5]).unsqueeze(1)
    predictions = Predictions(
        logits_KBM=torch.randn(K, B, M),
        spans_KBM2=0.1 + 0.5 * torch.rand(K, B, M, 2),
        actionness_BM=torch.rand(B, M),
        saliency_BT=(torch.rand(B, T) * 2 - 1) * mask,
        video_KBTF=torch.randn(K, B, T, F),
        text_KBF=torch.randn(K, B, F),
        video_mask_BT=mask,
        saliency_video_BTF=torch.randn(B, T, F),
        saliency_text_BF=torch.randn(B, F),
    )
    batch = Batch(
        video_KBTD=torch.zeros(K, B, T, 2),
        video_mask_BT=mask,
        text_KBLD=torch.zeros(K, B, 3, 2),
        text_mask_BL=torch.ones(B, 3, dtype=torch.bool),
        targets=make_targets() if targets is None else targets,
    )
    return predictions, batch


def requiring_grad(predictions: Predictions) -> Predictions:
    return predictions._map(lambda x: x.clone().requires_grad_() if x.is_floating_point() else x)


def edges(span: Tensor) -> tuple[float, float]:
    center, width = span.tolist()
    return center - width / 2, center + width / 2


def overlap(span_1: Tensor, span_2: Tensor, *, generalised: bool = False) -> float:
    (a, b), (c, d) = edges(span_1), edges(span_2)
    both = max(0.0, min(b, d) - max(a, c))
    union = b - a + d - c - both
    hull = max(b, d) - min(a, c)
    return both / union - ((hull - union) / hull if generalised else 0)


@pytest.mark.parametrize("kind", ["giou", "iou"])
def test_matching_is_the_cheapest(kind: Any) -> None:
    predictions, batch = make_batch()
    targets = batch.targets
    assert targets is not None
    matched, count = match(predictions, targets, replace(CONFIG, matching_overlap=kind))
    assert count == 3
    for k, b in itertools.product(range(K), range(B)):
        spans = targets.spans_BG2[b][targets.spans_mask_BG[b]]

        def cost(m: int, g: int, k: int = k, b: int = b, spans: Tensor = spans) -> float:
            p = predictions.logits_KBM[k, b, m].sigmoid().item()
            span = predictions.spans_KBM2[k, b, m]
            focal = -0.25 * (1 - p) ** 2 * math.log(p) + 0.75 * p**2 * math.log(1 - p)
            distance = (span - spans[g]).abs().sum().item()
            return 2 * focal + 5 * distance - 2 * overlap(span, spans[g], generalised=kind == "giou")

        choices = itertools.permutations(range(M), len(spans))
        best = min(choices, key=lambda choice: sum(cost(m, g) for g, m in enumerate(choice)))
        expected = [best.index(m) if m in best else -1 for m in range(M)]
        assert matched[k, b].tolist() == expected


def test_matching_with_more_spans_than_moment_queries_and_padded_ones_between() -> None:
    predictions, _ = make_batch()
    targets = make_targets((7, 1, 0))
    holes = targets.spans_mask_BG.clone()
    holes[1] = torch.tensor([False, False, True, False, True, False, False])
    matched, count = match(predictions, replace(targets, spans_mask_BG=holes), CONFIG)
    assert count == M + 2
    assert all(len(set(row)) == M and min(row) >= 0 for row in matched[:, 0].tolist())
    assert all(sorted(row) == [-1, -1, 2, 4] for row in matched[:, 1].tolist())
    assert (matched[:, 2] == -1).all()


def test_matching_without_any_span() -> None:
    predictions, _ = make_batch()
    for targets in (make_targets((0, 0, 0)), make_targets((0, 0, 0), padded_spans=2)):
        matched, count = match(predictions, targets, CONFIG)
        assert (matched == -1).all()
        assert count == 1


def test_matching_survives_a_diverged_model() -> None:
    predictions, batch = make_batch()
    broken = replace(predictions, spans_KBM2=torch.full((K, B, M, 2), float("nan")))
    losses = sdst_losses(broken, batch, CONFIG)
    assert losses["l1"].isnan()


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("alpha", [0.25, None])
def test_focal(alpha: float | None, reduction: str) -> None:
    predictions, _ = make_batch()
    positive = torch.rand(K, B, M) > 0.6
    config = SDSTLossConfig(focal_alpha=alpha, level_reduction=reduction)  # type: ignore[arg-type]
    expected = 0.0
    for logit, good in zip(predictions.logits_KBM.flatten().tolist(), positive.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        p_right = p if good else 1 - p
        weight = 1.0 if alpha is None else (alpha if good else 1 - alpha)
        expected += -weight * (1 - p_right) ** 2 * math.log(p_right)
    expected /= 5 * (K if reduction == "mean" else 1)
    loss = focal_loss(predictions.logits_KBM, positive, positive.float(), 5, config)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_focal_survives_certain_logits() -> None:
    logits = torch.tensor([[[200.0, -200.0, 200.0, -200.0]]], requires_grad=True)
    positive = torch.tensor([[[True, True, False, False]]])
    loss = focal_loss(logits, positive, positive.float(), 2, CONFIG)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_the_class_goal_can_be_the_overlap() -> None:
    predictions, batch = make_batch()
    targets = batch.targets
    assert targets is not None
    matched, count = match(predictions, targets, CONFIG)
    config = SDSTLossConfig(class_target="iou")
    goal = class_goal(predictions, matched, targets, config)
    assert torch.equal(class_goal(predictions, matched, targets, CONFIG), (matched >= 0).float())
    expected_loss = 0.0
    for k, b, m in itertools.product(range(K), range(B), range(M)):
        index = int(matched[k, b, m])
        wanted = overlap(predictions.spans_KBM2[k, b, m], targets.spans_BG2[b, index]) if index >= 0 else 0.0
        assert float(goal[k, b, m]) == pytest.approx(wanted, abs=1e-5)
        p = 1 / (1 + math.exp(-float(predictions.logits_KBM[k, b, m])))
        entropy = -wanted * math.log(p) - (1 - wanted) * math.log(1 - p)
        expected_loss += (0.25 if index >= 0 else 0.75) * abs(wanted - p) ** 2 * entropy / count
    loss = focal_loss(predictions.logits_KBM, matched >= 0, goal, count, config)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-4)
    empty = replace(targets, spans_BG2=torch.zeros(B, 0, 2), spans_mask_BG=torch.zeros(B, 0, dtype=torch.bool))
    assert not class_goal(predictions, torch.full_like(matched, -1), empty, config).any()


@pytest.mark.parametrize("kind", ["iou", "giou"])
def test_span_losses(kind: str) -> None:
    predictions, batch = make_batch()
    targets = batch.targets
    assert targets is not None
    config = SDSTLossConfig(iou_kind=kind)  # type: ignore[arg-type]
    matched, count = match(predictions, targets, config)
    l1, iou = 0.0, 0.0
    for k, b, m in itertools.product(range(K), range(B), range(M)):
        if (g := int(matched[k, b, m])) >= 0:
            span, goal = predictions.spans_KBM2[k, b, m], targets.spans_BG2[b, g]
            l1 += (span - goal).abs().sum().item() / count
            iou += (1 - overlap(span, goal, generalised=kind == "giou")) / count
    losses = span_losses(predictions.spans_KBM2, matched, targets, count, config)
    assert losses["l1"].item() == pytest.approx(l1, rel=1e-5)
    assert losses["iou"].item() == pytest.approx(iou, rel=1e-5)


def test_actionness() -> None:
    predictions, batch = make_batch()
    targets = batch.targets
    assert targets is not None
    last = predictions.spans_KBM2[-1]
    last[0, 0] = torch.tensor([0.95, 0.4])  # reaches beyond the end of the video
    expected = expected_entropy = 0.0
    for b, m in itertools.product(range(B), range(M)):
        start, end = (min(max(edge, 0), 1) for edge in edges(last[b, m]))
        inside = torch.tensor([(start + end) / 2, end - start])
        spans = targets.spans_BG2[b][targets.spans_mask_BG[b]]
        goal = max((overlap(inside, span) for span in spans), default=0.0)
        estimate = predictions.actionness_BM[b, m].item()
        expected += abs(estimate - goal) / (B * M)
        expected_entropy -= (goal * math.log(estimate) + (1 - goal) * math.log(1 - estimate)) / (B * M)
    assert actionness_loss(predictions, targets, CONFIG).item() == pytest.approx(expected, rel=1e-5)
    config = SDSTLossConfig(actionness_loss="bce")
    assert actionness_loss(predictions, targets, config).item() == pytest.approx(expected_entropy, rel=1e-4)


@pytest.mark.parametrize(
    ("span", "truth", "goal"),
    [
        ((0.5, 0.4), (0.5, 0.2), 0.5),  # inside the video
        ((0.95, 0.4), (0.9, 0.2), 0.8),  # [0.75, 1.15] counts as [0.75, 1]; unclamped the IoU is 0.5
        ((0.05, 0.4), (0.1, 0.2), 0.8),  # [-0.15, 0.25] counts as [0, 0.25]; unclamped the IoU is 0.5
        ((0.5, 2.0), (0.5, 1.0), 1.0),  # beyond both ends; unclamped the IoU is 0.5
        ((1.3, 0.2), (0.9, 0.2), 0.0),  # outside the video
    ],
)
def test_actionness_counts_only_the_part_inside_the_video(
    span: tuple[float, float], truth: tuple[float, float], goal: float
) -> None:
    """Predict an actionness of 0, so that the loss is its goal."""
    predictions, batch = make_batch()
    predictions = replace(
        predictions,
        spans_KBM2=torch.tensor(span).expand(K, B, M, 2),
        actionness_BM=torch.zeros(B, M),
    )
    assert batch.targets is not None
    targets = replace(
        batch.targets,
        spans_BG2=torch.tensor(truth).expand(B, 1, 2),
        spans_mask_BG=torch.ones(B, 1, dtype=torch.bool),
    )
    assert actionness_loss(predictions, targets, CONFIG).item() == pytest.approx(goal, abs=1e-6)


def slow_nce(predictions: Predictions, batch: Batch, config: SDSTLossConfig) -> float:
    targets = batch.targets
    assert targets is not None
    logits = predictions.saliency_BT / config.nce_temperature
    total, valid = 0.0, 0

    def negative(b: int, t: int) -> bool:
        if not batch.video_mask_BT[b, t]:
            return False
        if (p := int(targets.positive_B[b])) < 0:
            return True
        saliency, limit = targets.saliency_BT[b, t], targets.saliency_BT[b, p]
        return bool(saliency <= limit if config.nce_ties == "negative" else saliency < limit)

    for b in range(B):
        if (p := int(targets.positive_B[b])) < 0:
            continue
        valid += 1
        row = [t for t in range(T) if t == p or negative(b, t)]
        col = [other for other in range(B) if other == b or negative(other, p)]
        if "row" in config.nce_directions:
            total -= logits[b, row].log_softmax(0)[row.index(p)].item()
        if "col" in config.nce_directions:
            total -= logits[col, p].log_softmax(0)[col.index(b)].item()
    return total / max(valid, 1)


@pytest.mark.parametrize("ties", ["ignore", "negative"])
@pytest.mark.parametrize("directions", [("row", "col"), ("row",), ["col"]])
def test_sampled_nce(ties: Any, directions: Any) -> None:
    config = SDSTLossConfig(nce_ties=ties, nce_directions=directions)
    predictions, batch = make_batch()
    assert batch.targets is not None
    loss = sampled_nce_loss(predictions.saliency_BT, batch.video_mask_BT, batch.targets, config, ties=ties)
    assert loss.item() == pytest.approx(slow_nce(predictions, batch, config), rel=1e-5)


@pytest.mark.parametrize("ties", ["ignore", "negative"])
def test_every_positive_is_the_sampled_loss_over_all_of_them(ties: Any) -> None:
    """Take each relevant clip in turn as the drawn clip, weighted by its saliency."""
    config = SDSTLossConfig(nce_directions=("row",))
    predictions, batch = make_batch()
    targets = batch.targets
    assert targets is not None
    inputs = predictions.saliency_BT, batch.video_mask_BT
    loss = sampled_nce_loss(*inputs, targets, config, ties=ties, positives="all")
    expected, valid = 0.0, 0
    for b in range(B):
        if targets.positive_B[b] < 0:
            continue
        valid += 1
        clips = [t for t in range(T) if batch.video_mask_BT[b, t] and targets.saliency_BT[b, t] > 0]
        weights = torch.tensor([float(targets.saliency_BT[b, t]) for t in clips])
        losses = []
        for clip in clips:
            positive_B = torch.full_like(targets.positive_B, -1)
            positive_B[b] = clip
            losses.append(sampled_nce_loss(*inputs, replace(targets, positive_B=positive_B), config, ties=ties))
        expected += float((torch.stack(losses) * weights).sum() / weights.sum())
    assert loss.item() == pytest.approx(expected / valid, rel=1e-5)


@pytest.mark.parametrize("ties", ["ignore", "negative"])
@pytest.mark.parametrize("positives", ["sampled", "all"])
def test_sdst_chooses_ties_and_positives(ties: Any, positives: Any) -> None:
    predictions, batch = make_batch()
    assert batch.targets is not None
    inputs = predictions.saliency_BT, batch.video_mask_BT, batch.targets, CONFIG
    expected = sampled_nce_loss(*inputs, ties=ties, positives=positives)
    config = SDSTLossConfig(nce_ties=ties, nce_positives=positives)
    assert torch.equal(sdst_losses(predictions, batch, config)["saliency"], expected)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_sampled_nce_gradients_are_finite_whatever_is_masked(data: st.DataObject) -> None:
    """Include clip indices masked in every sample, samples of one clip, and batches without a positive clip."""
    predictions, _ = make_batch()
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, T), min_size=B, max_size=B)))
    positive = torch.tensor([data.draw(st.integers(-1, n - 1)) for n in lengths.tolist()])
    flat = st.lists(st.integers(0, 2), min_size=B * T, max_size=B * T)
    targets = replace(make_targets(), positive_B=positive, saliency_BT=torch.tensor(data.draw(flat)).view(B, T).float())
    saliency = predictions.saliency_BT.clone().requires_grad_()
    loss = sampled_nce_loss(saliency, torch.arange(T) < lengths.unsqueeze(1), targets, CONFIG, ties="ignore")
    loss.backward()
    assert loss.isfinite()
    assert loss >= 0
    assert saliency.grad is not None
    assert saliency.grad.isfinite().all()
    if (positive < 0).all():
        assert loss == 0


def test_alignment() -> None:
    predictions, batch = make_batch()
    targets = batch.targets
    assert targets is not None
    losses = alignment_losses(predictions.video_KBTF, predictions.text_KBF, targets, CONFIG)
    valid = [0, 1]
    clips = [[predictions.video_KBTF[k, b, targets.positive_B[b]] for b in valid] for k in range(K)]

    def logit(k: int, b: int, other_k: int, other_b: int) -> float:
        cosine = torch.cosine_similarity(clips[k][b], predictions.text_KBF[other_k, other_b], dim=0)
        return cosine.item() / 0.07

    def nll(own: float, others: list[float]) -> float:
        return math.log(sum(math.exp(x) for x in others)) - own

    across_batch, across_levels = 0.0, 0.0
    for k, b in itertools.product(range(K), valid):
        own = logit(k, b, k, b)
        across_batch += nll(own, [logit(k, b, k, o) for o in valid]) / 2
        across_batch += nll(own, [logit(k, o, k, b) for o in valid]) / 2
        across_levels += nll(own, [logit(k, b, o, b) for o in range(K)]) / 2
        across_levels += nll(own, [logit(o, b, k, b) for o in range(K)]) / 2
    assert losses["alignment_batch"].sum().item() == pytest.approx(across_batch, rel=1e-4)
    assert losses["alignment_levels"].sum().item() == pytest.approx(across_levels, rel=1e-4)
    added = sdst_losses(predictions, batch, CONFIG)
    averaged = sdst_losses(predictions, batch, replace(CONFIG, alignment_reduction="mean"))
    assert added["alignment_batch"].item() == pytest.approx(across_batch, rel=1e-4)
    # R2-Tuning's code: the mean over levels of the mean of the two directions.
    assert averaged["alignment_batch"].item() == pytest.approx(across_batch / K / 2, rel=1e-4)
    assert averaged["alignment_levels"].item() == pytest.approx(across_levels / K / 2, rel=1e-4)


@pytest.mark.parametrize("span_counts", [(0, 0, 0), (0, 1, 0), (2, 1, 3)])
@pytest.mark.parametrize("positive", [[-1, -1, -1], [2, -1, -1], [0, 3, 4]])
def test_everything_is_finite_with_and_without_ground_truth(span_counts: tuple[int, ...], positive: list[int]) -> None:
    targets = replace(make_targets(span_counts), positive_B=torch.tensor(positive))
    predictions, batch = make_batch(targets)
    predictions = requiring_grad(predictions)
    losses = sdst_losses(predictions, batch, CONFIG)
    losses["total"].backward()
    for name, loss in losses.items():
        assert loss.isfinite(), name
        assert loss.shape == (), name
    for tensor in (predictions.logits_KBM, predictions.spans_KBM2, predictions.saliency_BT):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


def test_total_is_the_weighted_sum() -> None:
    predictions, batch = make_batch()
    names = ["class", "l1", "saliency", "alignment_batch", "alignment_levels", "iou", "actionness"]
    default = [1.0, 1.0, 0.1, 0.1, 0.1, 1.0, 1.0]
    assert [getattr(CONFIG, f"weight_{name}") for name in names] == default
    losses = sdst_losses(predictions, batch, CONFIG)
    assert sorted(losses) == sorted([*names, "total"])
    expected = sum(weight * losses[name].item() for weight, name in zip(default, names, strict=True))
    assert losses["total"].item() == pytest.approx(expected, rel=1e-5)
    only = SDSTLossConfig(**{f"weight_{name}": float(name == "l1") for name in names})  # type: ignore[arg-type]
    assert sdst_losses(predictions, batch, only)["total"].item() == pytest.approx(losses["l1"].item())


def test_a_perfect_model_has_little_loss() -> None:
    targets = make_targets((2, 1, 0))
    predictions, batch = make_batch(targets)
    spans = torch.full((K, B, M, 2), 0.99)
    spans[:, :, :2] = targets.spans_BG2
    right = torch.zeros(B, M, dtype=torch.bool)
    right[:, :2] = targets.spans_mask_BG
    perfect = replace(
        predictions,
        spans_KBM2=spans,
        logits_KBM=torch.where(right, 20.0, -20.0).expand(K, B, M),
        saliency_BT=targets.saliency_BT / 3 - (targets.saliency_BT == 0).float(),
    )
    losses = sdst_losses(perfect, batch, CONFIG)
    for name in ("class", "l1", "iou", "saliency"):
        assert losses[name].item() == pytest.approx(0, abs=1e-4), name


def test_half_precision_predictions_give_float32_losses() -> None:
    predictions, batch = make_batch()
    expected = sdst_losses(predictions, batch, CONFIG)["total"]
    total = sdst_losses(predictions.to("cpu", torch.float16), batch.to("cpu", torch.float16), CONFIG)["total"]
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(expected.item(), rel=1e-2)


def test_a_batch_without_targets_is_refused() -> None:
    predictions, batch = make_batch()
    with pytest.raises(ValueError, match="need a batch with targets"):
        sdst_losses(predictions, replace(batch, targets=None), CONFIG)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_l1": -1.0}, "weight_l1 must be at least 0"),
        ({"cost_giou": math.inf}, "cost_giou must be a finite number"),
        ({"weight_class": "1"}, "weight_class must be a finite number"),
        ({"alignment_temperature": 0.0}, "above 0"),
        ({"nce_directions": ()}, "'row', 'col' or both"),
        ({"nce_directions": ("row", "up")}, "'row', 'col' or both"),
        ({"focal_alpha": 1.0}, "focal_alpha"),
        ({"focal_gamma": math.nan}, "focal_gamma"),
        ({"level_reduction": "max"}, "one of 'sum', 'mean'"),
    ],
)
def test_configuration_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SDSTLossConfig(**changes)
