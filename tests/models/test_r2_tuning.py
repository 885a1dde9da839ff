"""R2-Tuning: spatial pooling against a plain version, the effect of padding, edge cases of losses and decoding.

The comparison with the published model is in ``tests/parity/test_r2_tuning.py``.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sidelight.core.batch import Batch, Targets
from sidelight.core.timeline import Timeline
from sidelight.data.labels import bind_saliency, bind_windows
from sidelight.models import r2_tuning
from sidelight.models.decode.r2_tuning import R2DecodeConfig, point_windows, postprocess, saliency
from sidelight.models.losses.r2_tuning import (
    R2LossConfig,
    assign_points,
    class_loss,
    distance_loss,
    r2_losses,
    spans_in_clips,
)
from sidelight.models.points import PointPredictions, clip_places, make_points
from sidelight.models.r2_tuning import (
    MapAndPool,
    R2Tuning,
    R2TuningConfig,
    draw_kept,
    frame_parts,
    from_published,
)

K, P, D_V, D_T = 3, 4, 6, 5
TINY = R2TuningConfig(video_dim=D_V, text_dim=D_T, levels=K, hidden=16, heads=4, ffn_ratio=2, dropout=0.0, droppath=0.0)
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def tiny_model(**changes: Any) -> R2Tuning:
    """Build a model with weights away from their initialisation, which hides mistakes (scales of 0)."""
    torch.manual_seed(0)
    model = R2Tuning(replace(TINY, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def tiny_inputs(
    clips: tuple[int, ...] = (19, 3, 1, 8), tokens: tuple[int, ...] = (4, 1, 2, 3), padding: int = 0
) -> Inputs:
    """Build samples of different lengths. Padding is garbage, and the real numbers do not depend on it."""
    size, padded_clips, padded_tokens = len(clips), max(clips) + padding, max(tokens) + padding
    video = torch.full((K, size, padded_clips, P, D_V), 7.0 + padding)
    text = torch.full((K, size, padded_tokens, D_T), -9.0 - padding)
    for b, (n, m) in enumerate(zip(clips, tokens, strict=True)):
        generator = torch.Generator().manual_seed(100 * n + m)
        video[:, b, :n] = torch.randn(K, n, P, D_V, generator=generator)
        text[:, b, :m] = torch.randn(K, m, D_T, generator=generator)
    video_mask = torch.arange(padded_clips) < torch.tensor(clips).unsqueeze(1)
    return video, video_mask, text, torch.arange(padded_tokens) < torch.tensor(tokens).unsqueeze(1)


def batched(video: Tensor, video_mask: Tensor, text: Tensor, text_mask: Tensor) -> Batch:
    return Batch(video_KBTD=video, video_mask_BT=video_mask, text_KBLD=text, text_mask_BL=text_mask)


def tiny_targets(mask_BT: Tensor, windows: int = 2) -> Targets:
    """Build targets: two windows in sample 0, one in sample 1, none in the others."""
    size, clips = mask_BT.shape
    spans_BG2 = torch.tensor([[0.3, 0.3], [0.8, 0.2]]).expand(size, 2, 2)[:, :windows]
    return Targets(
        spans_BG2=spans_BG2.clone(),
        spans_mask_BG=(torch.arange(2) < torch.tensor([2, 1, 0, 0]).unsqueeze(1))[:size, :windows],
        saliency_BT=(torch.arange(clips) % 3).float().expand(size, -1) * mask_BT,
        positive_B=torch.tensor([2, 1, -1, -1])[:size],
    )


def sample_of(inputs: Inputs, b: int) -> Inputs:
    """Return sample ``b`` without padding."""
    video, video_mask, text, text_mask = inputs
    clips, tokens = int(video_mask[b].sum()), int(text_mask[b].sum())
    sample = slice(b, b + 1)
    return video[:, sample, :clips], video_mask[sample, :clips], text[:, sample, :tokens], text_mask[sample, :tokens]


def gradients(model: R2Tuning) -> dict[str, Tensor]:
    return {name: torch.zeros(()) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def test_published_size() -> None:
    model = R2Tuning(R2TuningConfig(video_dim=768, text_dim=512))
    assert sum(p.numel() for p in model.parameters()) == 2_836_242


def test_spatial_pooling_equals_the_papers_formula() -> None:
    """Compare with attention of every query token to every token of the frame, nothing folded or left out."""
    block = tiny_model().block
    video, video_mask, text, text_mask = sample_of(tiny_inputs(), 0)
    ends = clip_places(video_mask, TINY, torch.float32)[0]
    text_KBLF = block.text_map(text)
    all_cls, all_pooled = block._pool(video, ends, video_mask, text_KBLF, text_mask)
    for k, t in itertools.product(range(K), range(video_mask.shape[1])):
        query = text_KBLF[k, 0]
        tokens = block.video_map(torch.cat([video[k, 0, t], ends[0, t].expand(P, 2)], -1))
        scores = block.q_map(query) @ block.v_map(tokens).T / math.sqrt(TINY.hidden)
        pooled = (scores.softmax(-1) @ tokens + query).amax(0)
        torch.testing.assert_close(all_cls[k, 0, t], tokens[0])
        torch.testing.assert_close(all_pooled[k, 0, t], pooled)


def test_shapes() -> None:
    predictions = tiny_model()(batched(*tiny_inputs()))
    points = 19 + 9 + 4 + 2
    assert predictions.logits_BN.shape == predictions.point_mask_BN.shape == (4, points)
    assert predictions.distances_BN2.shape == (4, points, 2) and (predictions.distances_BN2 >= 0).all()
    assert predictions.points_N4.shape == (points, 4)
    assert predictions.video_BTF.shape == (4, 19, 16) and predictions.text_BF.shape == (4, 16)
    assert predictions.level_video_KBTF.shape == (K, 4, 19, 16)
    assert predictions.level_text_KBF.shape == (K, 4, 16)
    assert predictions.point_mask_BN.sum(1).tolist() == [points, 3 + 1, 1, 8 + 4 + 2 + 1]


def real_part(predictions: PointPredictions, b: int) -> list[Tensor]:
    """Return the parts of sample ``b`` that must not depend on the padding."""
    assert predictions.distances_BN2 is not None
    points, clips = predictions.point_mask_BN[b], predictions.video_mask_BT[b]
    return [
        predictions.logits_BN[b, points],
        predictions.distances_BN2[b, points],
        predictions.points_N4[points],
        predictions.video_BTF[b, clips],
        predictions.text_BF[b],
        predictions.level_video_KBTF[:, b, clips],
        predictions.level_text_KBF[:, b],
        torch.from_numpy(saliency(predictions)[b]),
    ]


@pytest.mark.parametrize("padding", [0, 1, 6])
def test_padding_changes_nothing(padding: int) -> None:
    model, inputs = tiny_model(), tiny_inputs(padding=padding)
    together = model(batched(*inputs))
    for b in range(4):
        alone = model(batched(*sample_of(inputs, b)))
        for padded, unpadded in zip(real_part(together, b), real_part(alone, 0), strict=True):
            torch.testing.assert_close(padded, unpadded, rtol=1e-5, atol=1e-5)


def test_padding_changes_neither_losses_nor_gradients() -> None:
    results = []
    for padding in (0, 5):
        model, inputs = tiny_model(), tiny_inputs(padding=padding)
        losses = r2_losses(model(batched(*inputs)), tiny_targets(inputs[1]), R2LossConfig())
        losses["total"].backward()
        results.append({**losses, **gradients(model)})
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_exact_padding_depends_on_the_batch_but_not_on_the_padded_values() -> None:
    model = tiny_model(padding="exact")
    inputs = tiny_inputs()
    video, video_mask, text, text_mask = inputs
    refilled = (video.clone(), video_mask, text.clone(), text_mask)
    refilled[0][:, ~video_mask], refilled[2][:, ~text_mask] = 100.0, 100.0
    first, second, alone = (model(batched(*x)) for x in (inputs, refilled, sample_of(inputs, 1)))
    torch.testing.assert_close(first.logits_BN, second.logits_BN)
    assert (first.logits_BN[1, :3] - alone.logits_BN[0, :3]).abs().max() > 1e-3


@pytest.mark.parametrize("padding", ["independent", "exact"])
def test_every_parameter_learns_and_v_map_bias_has_no_effect(padding: str) -> None:
    model, inputs = tiny_model(padding=padding), tiny_inputs()
    r2_losses(model(batched(*inputs)), tiny_targets(inputs[1]), R2LossConfig())["total"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        without_effect = name.endswith(("attention.key.bias", "v_map.bias"))
        assert (parameter.grad.abs().max() > 1e-7) != without_effect, name
    assert gradients(model)["block.v_map.bias"].abs().sum() == 0


@pytest.mark.parametrize("dropout", [0.0, 0.5, 0.3])
@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("tokens_at_once", [2**10, 2 * P])
def test_gradients_of_map_and_pool(
    dropout: float, ends: bool, tokens_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare with autograd: the same entries dropped, a mask of clips, all frames at once and two at a time."""
    monkeypatch.setitem(r2_tuning.TOKENS_AT_ONCE, "cpu", tokens_at_once)
    torch.manual_seed(0)
    video, mask = torch.randn(K, 2, 3, P, D_V, dtype=torch.float64), torch.arange(3) < torch.tensor([[3], [2]])
    ends_BT2 = torch.rand(2, 3, 2, dtype=torch.float64) if ends else None
    width = D_V + 2 * ends
    shapes = ((K, 2, 4, 7), (K, 2, 4, 7), (width,), (width,), (7, width), (7,), (7,), (7,), (7, 7))
    parameters = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    upstream = [torch.randn(K, 2, 3, 7, dtype=torch.float64) for _ in range(2)]
    torch.manual_seed(1)
    ours = MapAndPool.apply(video, ends_BT2, mask, *parameters, dropout, 1e-5, True)  # type: ignore[no-untyped-call]
    our_gradients = torch.autograd.grad(ours, parameters, upstream)
    torch.manual_seed(1)
    text, folded, gain, shift, weight, bias, inner_gain, inner_shift, last = parameters
    kept = [torch.ones(2, 3, P, n, dtype=torch.bool) for n in (width, 7)]
    for part in frame_parts(video) if dropout else ():
        for entries in kept:
            draw_kept(entries[part], dropout)
    x = video.masked_fill(~mask[:, :, None, None], 0)
    if ends_BT2 is not None:
        x = torch.cat([x, ends_BT2.unsqueeze(2).expand(K, 2, 3, P, 2)], -1)
    x = F.layer_norm(x, (width,), gain, shift) * kept[0] / (1 - dropout)
    x = F.layer_norm(F.linear(x, weight, bias).relu(), (7,), inner_gain, inner_shift) * kept[1]
    weights = (folded.unsqueeze(2) @ x.transpose(3, 4)).softmax(-1)
    plain = (x[:, :, :, 0], (weights @ x @ last.T + text.unsqueeze(2)).amax(3))
    torch.testing.assert_close(ours, plain)
    for gradient, expected in zip(our_gradients, torch.autograd.grad(plain, parameters, upstream), strict=True):
        torch.testing.assert_close(gradient, expected)


def test_the_parts_contain_each_frame_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for tokens_at_once in (1, P, 5 * P, 19 * P, 40 * P, 2**20):
        monkeypatch.setitem(r2_tuning.TOKENS_AT_ONCE, "cpu", tokens_at_once)
        times = torch.zeros(4, 19)
        for part in frame_parts(torch.empty(K, 4, 19, P, D_V)):
            times[part] += 1
            assert times[part].numel() * P <= max(tokens_at_once, P)
        assert (times == 1).all()


def test_features_cannot_be_trained() -> None:
    video, video_mask, text, text_mask = tiny_inputs()
    with pytest.raises(ValueError, match="detach"):
        tiny_model()(batched(video.requires_grad_(), video_mask, text, text_mask))


@pytest.mark.parametrize("probability", [0.5, 0.3])
def test_dropout_keeps_its_share(probability: float) -> None:
    torch.manual_seed(0)
    kept = torch.zeros(100, 999, dtype=torch.bool)
    draw_kept(kept, probability)
    assert kept.float().mean().item() == pytest.approx(1 - probability, abs=0.01)


def test_dropout_only_while_training() -> None:
    model, inputs = tiny_model(dropout=0.5), tiny_inputs()
    training = [model(batched(*inputs)).logits_BN for _ in range(2)]
    answers = [model.eval()(batched(*inputs)).logits_BN, tiny_model()(batched(*inputs)).logits_BN]
    assert (training[0] - training[1]).abs().max() > 1e-3
    torch.testing.assert_close(answers[0], answers[1])


def test_number_of_samples_mapped_at_once_has_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for at_once in (2**13, 1):
        monkeypatch.setitem(r2_tuning.TOKENS_AT_ONCE, "cpu", at_once)
        model, inputs = tiny_model(), tiny_inputs()
        losses = r2_losses(model(batched(*inputs)), tiny_targets(inputs[1]), R2LossConfig())
        losses["total"].backward()
        results.append({**losses, **gradients(model)})
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-4, atol=1e-6, msg=name)


def test_little_is_kept_for_the_backward_pass() -> None:
    """Keep less than a third of the memory that autograd would keep of the video map alone.

    Autograd would keep three tensors as wide as the features and five as wide as the model.
    """
    model, inputs = tiny_model(video_dim=60, dropout=0.5), tiny_inputs((64, 64), (3, 3))
    video = torch.randn(K, 2, 64, P, 60)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.block._pool(video, torch.rand(2, 64, 2), inputs[1], torch.randn(K, 2, 3, 16), inputs[3])
    known = {tensor.untyped_storage().data_ptr() for tensor in (video, *model.parameters())}
    ours = sum(size for address, size in kept.items() if address not in known)
    assert ours < 4 * (3 * 62 + 5 * 16) * K * 2 * 64 * P / 3


def test_half_precision_features_and_autocast() -> None:
    model, (video, video_mask, text, text_mask) = tiny_model(), tiny_inputs()
    plain = model(batched(video, video_mask, text, text_mask))
    halves = model(batched(video.half(), video_mask, text.half(), text_mask))
    torch.testing.assert_close(halves.logits_BN, plain.logits_BN, rtol=0, atol=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        predictions = model(batched(video, video_mask, text, text_mask))
        losses = r2_losses(predictions, tiny_targets(video_mask), R2LossConfig())
    losses["total"].backward()
    assert losses["total"].dtype == torch.float32 and losses["total"].isfinite()


@pytest.mark.parametrize(
    ("clips", "strides", "expected"),
    [
        (1, (1,), [(0, 0, math.inf, 1)]),
        (3, (1, 2, 4), [(0, 0, 2, 1), (1, 0, 2, 1), (2, 0, 2, 1), (0, 2, 4, 2)]),
    ],
)
def test_points(clips: int, strides: tuple[int, ...], expected: list[tuple[float, ...]]) -> None:
    assert make_points(clips, strides).tolist() == [list(map(float, row)) for row in expected]


@pytest.mark.parametrize(
    ("windows", "positive", "distances"),
    [
        ([], [], []),
        # Edges belong to the window. A reach of 2 lies in both ranges, up to 2 and from 2.
        ([(2, 4)], [(2, 1), (3, 1), (4, 1), (2, 2), (4, 2)], [(0, 2), (1, 1), (2, 0), (0, 1), (1, 0)]),
        # From 2 and 4 the farther edge is 2.5 away: too far for stride 1.
        ([(1.5, 4.5)], [(3, 1), (2, 2), (4, 2)], [(1.5, 1.5), (0.25, 1.25), (1.25, 0.25)]),
        # At most 1.5 strides from the center.
        ([(0, 8)], [(2, 2), (4, 2), (6, 2)], [(1, 3), (2, 2), (3, 1)]),
        # Of two windows that fit, the shorter one.
        (
            [(0, 8), (3, 5)],
            [(3, 1), (4, 1), (5, 1), (2, 2), (4, 2), (6, 2)],
            [(0, 2), (1, 1), (2, 0), (1, 3), (2, 2), (3, 1)],
        ),
    ],
)
def test_assignment(windows: list[Any], positive: list[Any], distances: list[Any]) -> None:
    points = make_points(9, (1, 2))
    windows_BG2 = torch.tensor(windows, dtype=torch.float32).reshape(1, -1, 2)
    goal, goal_distances = assign_points(points, windows_BG2, torch.ones(1, len(windows), dtype=torch.bool))
    chosen = goal[0] > 0
    assert [tuple(row) for row in points[chosen][:, [0, 3]].tolist()] == positive
    assert [tuple(row) for row in goal_distances[0, chosen].tolist()] == distances


def test_a_padded_window_has_no_points() -> None:
    goal, _ = assign_points(make_points(9, (1,)), torch.tensor([[[2.0, 4.0]]]), torch.tensor([[False]]))
    assert goal.sum() == 0


@pytest.mark.parametrize("clips", [1, 7, 75, 103, 1024])
def test_edges_on_whole_clips_stay_there(clips: int) -> None:
    """Check that a point on the edge of a window is inside, though (center, width) in float32 loses the last bits."""
    ends = torch.arange(1, clips + 1).float()
    starts = (ends * 0.37).floor()
    spans = torch.stack([(starts + ends) / 2, ends - starts], -1) / clips
    assert spans_in_clips(spans.unsqueeze(0), torch.tensor([clips]))[0].tolist() == [
        [s, e] for s, e in zip(starts.tolist(), ends.tolist(), strict=True)
    ]


def test_losses_without_anything_positive() -> None:
    """Check losses and gradients without a window and without a positive clip: finite, or 0."""
    for windows in (0, 2):
        model, inputs = tiny_model(), sample_of(tiny_inputs(), 3)
        targets = tiny_targets(inputs[1], windows)
        targets = replace(targets, spans_mask_BG=torch.zeros_like(targets.spans_mask_BG), positive_B=torch.tensor([-1]))
        losses = r2_losses(model(batched(*inputs)), targets, R2LossConfig())
        assert losses["l1"] == losses["saliency"] == losses["alignment_batch"] == 0
        assert losses["class"] > 0
        losses["total"].backward()
        assert all(gradient.isfinite().all() for gradient in gradients(model).values())


def test_small_losses_by_hand() -> None:
    logits, goal = torch.tensor([[0.0, 2.0, 5.0]]), torch.tensor([[1.0, 0.0, 1.0]])
    mask = torch.tensor([[True, True, False]])
    p = 1 / (1 + math.exp(-2))
    focal = (0.25 * math.log(2) - p**2 * math.log(1 - p)) / 2
    assert class_loss(logits, goal, mask, gamma=2.0).item() == pytest.approx(focal)
    assert class_loss(logits, goal, mask, gamma=0.0).item() == pytest.approx((math.log(2) - math.log(1 - p)) / 2)
    distances, goal = torch.tensor([[[1.0, 2.0], [9.0, 9.0]]]), torch.tensor([[[3.0, 1.0], [0.0, 0.0]]])
    assert distance_loss(distances, goal, torch.tensor([[True, False]])).item() == pytest.approx(1.5)
    assert distance_loss(distances, goal, torch.zeros(1, 2, dtype=torch.bool)).item() == 0


def test_saliency_as_goal_needs_one_point_per_clip() -> None:
    inputs = tiny_inputs()
    config = R2LossConfig(class_loss="bce", nce_directions=("row",))
    with pytest.raises(ValueError, match=r"strides=\(1,\)"):
        r2_losses(tiny_model()(batched(*inputs)), tiny_targets(inputs[1]), config)
    model = tiny_model(strides=(1,), boundary_head=False, endpoint_features=False)
    losses = r2_losses(model(batched(*inputs)), tiny_targets(inputs[1]), config)
    assert "l1" not in losses and losses["total"].isfinite()


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ([], []),
        ([(3, 9)], [(3, 9)]),
        ([(9, 3)], [(3, 9)]),  # the wrong way round
        ([(17, 30)], [(17, 20)]),  # beyond the end
        ([(25, 30)], [(18, 20)]),  # far beyond the end
        ([(5, 5.5)], [(4.25, 6.25)]),  # shorter than a clip
    ],
)
def test_labels(windows: list[tuple[float, float]], expected: list[tuple[float, float]]) -> None:
    bound = bind_windows(windows, clips=10, clip_seconds=2)
    assert bound.tolist() == [list(map(float, row)) for row in expected]
    curve, positives = bind_saliency(bound, 10, 2)
    assert np.flatnonzero(curve).tolist() == positives and bool(positives) == bool(windows)


def test_decoding() -> None:
    inputs = tiny_inputs()
    predictions = tiny_model()(batched(*inputs))
    timelines = [Timeline(duration=2.0 * n - 0.5, clip_seconds=2.0) for n in (19, 3, 1, 8)]
    for config in (R2DecodeConfig(), R2DecodeConfig(nms="soft-linear", round_to=0.1), R2DecodeConfig(nms="none")):
        answers = config.decode(predictions, timelines, ["a cat"] * 4)
        for answer, timeline in zip(answers, timelines, strict=True):
            assert len(answer.saliency) == timeline.num_clips
            assert all(0 <= m.start < m.end <= timeline.duration for m in answer.moments)
            scores = [m.score for m in answer.moments]
            assert scores == sorted(scores, reverse=True) and all(score > 0 for score in scores)
    assert point_windows(predictions, 0, 2.0, most=5).shape == (5, 3)
    curve_only = tiny_model(strides=(1,), boundary_head=False)(batched(*inputs))
    assert [len(answer.moments) for answer in R2DecodeConfig().decode(curve_only, timelines, ["q"] * 4)] == [0] * 4
    with pytest.raises(ValueError, match="no windows"):
        point_windows(curve_only, 0, 2.0)
    with pytest.raises(ValueError, match="4 queries"):
        R2DecodeConfig().decode(predictions, timelines, ["q"])
    with pytest.raises(ValueError, match="timeline has 3"):
        R2DecodeConfig().decode(predictions, timelines[1:] + timelines[:1], ["q"] * 4)
    with pytest.raises(ValueError, match="not finite"):
        R2DecodeConfig().decode(replace(predictions, logits_BN=predictions.logits_BN * math.nan), timelines, ["q"] * 4)


def test_all_rows_can_be_kept() -> None:
    """Check that windows of score 0 or without length count, as in the published code's files of predictions."""
    predictions = tiny_model()(batched(*tiny_inputs()))
    timelines = [Timeline(duration=2.0 * n - 0.5, clip_seconds=2.0) for n in (19, 3, 1, 8)]
    for config in (R2DecodeConfig(keep_all=True), R2DecodeConfig(nms="soft-linear", round_to=2.0, keep_all=True)):
        answers = config.decode(predictions, timelines, ["a cat"] * 4)
        chosen = replace(config, keep_all=False).decode(predictions, timelines, ["a cat"] * 4)
        for b, (answer, fewer) in enumerate(zip(answers, chosen, strict=True)):
            rows = postprocess(point_windows(predictions, b, 2.0), timelines[b].duration, config)
            assert [m.score for m in answer.moments] == rows[:, 2].tolist()
            assert all(0 <= m.start <= m.end <= timelines[b].duration for m in answer.moments)
            assert [m for m in answer.moments if m.score > 0 and m.duration > 0] == list(fewer.moments)
        assert sum(len(a.moments) for a in answers) > sum(len(a.moments) for a in chosen)


@pytest.mark.parametrize("nms", ["none", "hard", "soft-linear", "soft-gaussian"])
def test_post_processing_of_windows_without_length(nms: Any) -> None:
    config = R2DecodeConfig(nms=nms, round_to=2.0)
    assert postprocess(np.zeros((0, 3), dtype=np.float32), 20.0, config).shape == (0, 3)
    windows = np.array([[3, 3.2, 0.9], [3, 3.2, 0.8], [2, 9, 0.7], [1, 3, 0.6], [15, 25, 0.5]], dtype=np.float32)
    result = postprocess(windows, 20.0, config)
    assert np.isfinite(result).all() and result[0].tolist() == pytest.approx([4, 4, 0.9])
    rows = {tuple(row) for row in result[:, :2].tolist()}
    # 9 / 2 and 1 / 2 are halves: they go to the even neighbour. A window that ends with the video is not rounded.
    assert rows == {(4, 4), (2, 8), (0, 4), (15, 20)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": (1, 3)}, "strides"),
        ({"strides": ()}, "strides"),
        ({"hidden": 15}, "hidden"),
        ({"dropout": 1.0}, "dropout"),
        ({"levels": 0}, "levels"),
        ({"padding": "some"}, "padding"),
    ],
)
def test_wrong_configurations(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


def test_pooled_features_are_frames_of_one_token() -> None:
    video, video_mask, text, text_mask = tiny_inputs()
    model = tiny_model()
    pooled, token = video[:, :, :, 0], video[:, :, :, :1]
    logits = [model(batched(x, video_mask, text, text_mask)).logits_BN for x in (pooled, token)]
    assert torch.equal(*logits)


def test_wrong_features_are_named() -> None:
    video, video_mask, text, text_mask = tiny_inputs()
    with pytest.raises(ValueError, match="this R2Tuning was built for levels=3, the batch has levels=2"):
        tiny_model()(batched(video[:2], video_mask, text[:2], text_mask))
    with pytest.raises(ValueError, match="center_radius"):
        R2LossConfig(center_radius=0.0)
    with pytest.raises(ValueError, match="round_to"):
        R2DecodeConfig(round_to=0.0)


def test_published_entries_that_are_not_weights_of_the_model_are_left_out() -> None:
    published = {"coef": torch.ones(1), "loss._loss_sal.scale": torch.ones(1), "adapter.gate": torch.zeros(2)}
    assert set(from_published(published)) == {"block.gates_K"}
    assert set(from_published(published | {"coord_head.module.3.bias": torch.zeros(2)})) == {
        "block.gates_K",
        "coefficients",
        "boundary_head.last.bias",
    }
