"""UniVTG on its own: padding, targets, losses, decoding, mistakes, and a golden step. Parity is in ``tests/parity``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sidelight.core import spans
from sidelight.core.batch import Batch, Targets
from sidelight.core.timeline import Timeline
from sidelight.data.annotations import Annotation
from sidelight.data.labels import bind
from sidelight.models.decode.univtg import UniVTGDecodeConfig, suppress, windows
from sidelight.models.losses.contrastive import ContrastiveConfig, sampled_nce_loss
from sidelight.models.losses.univtg import UniVTGLossConfig, assign_clips, univtg_losses
from sidelight.models.registry import build_model
from sidelight.models.univtg import UniVTG, UniVTGConfig, UniVTGPredictions
from tests.models.test_side_tuners import D_T, D_V, K, alone, tiny_batch

TINY: dict[str, Any] = {
    "video_dim": D_V, "text_dim": D_T, "levels": K, "hidden": 16, "heads": 4, "layers": 2, "ffn": 24, "dropout": 0.0,
    "droppath": 0.0,
}  # fmt: skip


def tiny_model(**changes: Any) -> UniVTG:
    torch.manual_seed(0)
    model = build_model("univtg", TINY | changes)
    assert isinstance(model, UniVTG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


# the model -----------------------------------------------------------------------------------------------------------


def test_padding_and_neighbours_change_nothing() -> None:
    model = tiny_model().eval()
    together = model(tiny_batch(padding=3))
    for b in range(3):
        single = model(alone(tiny_batch(), b))
        clips = int(together.video_mask_BT[b].sum())
        for name in ("logits_BT", "distances_BT2", "anchors_BT", "video_BTF"):
            torch.testing.assert_close(getattr(together, name)[b, :clips], getattr(single, name)[0])
        torch.testing.assert_close(together.text_BF[b], single.text_BF[0])


def test_exact_padding_ends_at_the_last_three_clips() -> None:
    exact = tiny_model(padding="exact").eval()
    together, single = exact(tiny_batch()), exact(alone(tiny_batch(), 2))
    torch.testing.assert_close(together.logits_BT[2, :6], single.logits_BT[0, :6])
    assert not torch.allclose(together.logits_BT[2, 6:9], single.logits_BT[0, 6:9])


@pytest.mark.parametrize("level", range(K))
def test_only_the_last_level_is_read(level: int) -> None:
    model, batch = tiny_model().eval(), tiny_batch()
    before = model(batch).logits_BT
    batch.video_KBTD[level] += torch.randn(batch.video_KBTD[level].shape)
    assert (not torch.allclose(before, model(batch).logits_BT)) == (level == K - 1)


def test_every_parameter_learns() -> None:
    model, batch = tiny_model(), tiny_batch()
    univtg_losses(model(batch), batch, UniVTGLossConfig())["total"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if not name.endswith("attention.key.bias"):  # constant under softmax
            assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 15}, "hidden must be a multiple of 2"),
        ({"heads": 3}, "hidden must be a multiple of heads=3"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"anchor": -0.5}, "anchor must be at least 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
    ],
)
def test_wrong_configurations_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UniVTGConfig(**{**TINY, **changes})


def test_a_batch_of_other_widths_is_refused() -> None:
    batch = tiny_batch()
    with pytest.raises(ValueError, match="this UniVTG was built for video_dim=10, the batch has video_dim=4"):
        tiny_model()(replace(batch, video_KBTD=batch.video_KBTD[..., :4]))


# targets and losses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], {}),
        ([(2, 6)], {0: 0, 1: 0, 2: 0}),  # anchors at 2, 4 and 6 s: both ends included
        ([(2.2, 3.8)], {1: 0}),  # no anchor inside: the clip in which it starts
        ([(9.9, 10)], {4: 0}),
        ([(1, 5), (3, 9)], {0: 0, 1: 1, 2: 1, 3: 1}),  # of two windows the last one counts
        ([(2.2, 2.3), (6.5, 6.6)], {1: 0}),  # neither contains an anchor: the first one
    ],
)
def test_clips_in_moments(rows: list[tuple[float, float]], expected: dict[int, int]) -> None:
    """Use five clips of 2 s and a padded one."""
    spans_G2 = torch.tensor(spans.se_to_cw(np.asarray(rows, dtype=float).reshape(-1, 2) / 10)).float()
    targets = Targets(
        spans_BG2=torch.cat([spans_G2, torch.zeros(1, 2)])[None],
        spans_mask_BG=torch.tensor([[True] * len(rows) + [False]]),
        saliency_BT=torch.zeros(1, 6),
        positive_B=torch.tensor([-1]),
    )
    mask_BT = torch.tensor([[True] * 5 + [False]])
    anchors_BT = torch.tensor([[0.2, 0.4, 0.6, 0.8, 1.0, 0.0]])
    inside_BT, goal_BT2 = assign_clips(anchors_BT, mask_BT, targets)
    assert inside_BT[0].nonzero().flatten().tolist() == list(expected)
    for clip, row in expected.items():
        assert goal_BT2[0, clip].tolist() == pytest.approx([second / 10 for second in rows[row]], abs=1e-6)
    assert not goal_BT2[~inside_BT].any()


def test_the_labels_and_the_losses_agree_about_clips() -> None:
    """Compare the labels of unrated windows, at a clip length where the published anchor is not a clip's end."""
    generator = np.random.default_rng(0)
    timeline = Timeline(duration=30.0, clip_seconds=1.0)
    anchors_BT = (torch.arange(30) + 0.5)[None] / 30
    for _ in range(50):
        start, end = sorted(generator.uniform(0, 30, 2).round(1).tolist())
        annotation = Annotation(
            qid=1, query="q", vid="v", duration=30, relevant_windows=((start, max(end, start + 0.1)),)
        )
        labels = bind(annotation, timeline, "univtg")
        targets = Targets(
            spans_BG2=torch.tensor(spans.se_to_cw(labels.windows_G2 / 30)).float()[None],
            spans_mask_BG=torch.tensor([[True]]),
            saliency_BT=torch.tensor(labels.saliency_T)[None],
            positive_B=torch.tensor([0]),
        )
        inside_BT, _ = assign_clips(anchors_BT, torch.ones(1, 30, dtype=torch.bool), targets)
        assert labels.saliency_T.tolist() == inside_BT[0].float().tolist(), annotation.relevant_windows
        assert labels.positives.tolist() == inside_BT[0].nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("clips", "scores", "saliency", "positives"),
    [
        ((1, 2), ((0, 0, 0), (3, 3, 3)), [0, 0, 3, 0], [1, 2]),  # a clip that every rater gave 0 is positive too
        ((0, 1, 2, 3), ((1,), (4,), (4,), (2,)), [1, 4, 4, 2], [2]),  # all clips are rated: the last of the best
        ((2, 9), ((2, 4), (1, 1)), [0, 0, 3, 0], [2]),
    ],
)
def test_rated_labels(clips: Any, scores: Any, saliency: list[float], positives: list[int]) -> None:
    duration = 20.0 if max(clips) > 4 else 8.0
    annotation = Annotation(
        qid=1, query="q", vid="v", duration=duration, relevant_windows=((2, 6),), relevant_clip_ids=clips,
        saliency_scores=scores,
    )  # fmt: skip
    timeline = Timeline(duration=duration, clip_seconds=2.0).first(10)
    labels = bind(annotation, timeline, "univtg")
    expected = [*saliency, *[0.0] * (timeline.num_clips - 4)]
    if duration > 8:
        expected[9], positives = 1.0, [2, 9]
    assert labels.saliency_T.tolist() == expected and labels.positives.tolist() == positives


def without_labels(batch: Batch) -> Batch:
    assert batch.targets is not None
    targets = replace(
        batch.targets,
        spans_mask_BG=torch.zeros_like(batch.targets.spans_mask_BG),
        saliency_BT=torch.zeros_like(batch.targets.saliency_BT),
        positive_B=torch.full_like(batch.targets.positive_B, -1),
    )
    return replace(batch, targets=targets)


def test_losses_without_labels_are_finite() -> None:
    model, batch = tiny_model(), without_labels(tiny_batch())
    losses = univtg_losses(model(batch), batch, UniVTGLossConfig())
    assert {name for name, loss in losses.items() if loss == 0} == {"l1", "giou", "saliency", "alignment_batch"}
    losses["total"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    none = replace(batch, targets=None)
    with pytest.raises(ValueError, match="losses need a batch with targets"):
        univtg_losses(model(none), none, UniVTGLossConfig())


def test_positive_clips_of_other_samples_are_compared_at_the_same_clip() -> None:
    saliency_BT, mask_BT = torch.tensor([[0.1, 0.3], [0.2, 0.5]]), torch.ones(2, 2, dtype=torch.bool)
    targets = Targets(
        spans_BG2=torch.zeros(2, 0, 2),
        spans_mask_BG=torch.zeros(2, 0, dtype=torch.bool),
        saliency_BT=torch.tensor([[0.0, 1.0], [0.0, 1.0]]),
        positive_B=torch.tensor([1, 1]),
    )
    config = ContrastiveConfig(nce_temperature=1.0, nce_directions=("col",))
    ignored = sampled_nce_loss(saliency_BT, mask_BT, targets, config, ties="ignore")
    compared = sampled_nce_loss(saliency_BT, mask_BT, targets, config, ties="ignore", compares_positives=True)
    assert ignored == 0
    assert compared == pytest.approx(float(-torch.log_softmax(torch.tensor([0.3, 0.5]), 0).mean()))


def test_a_loss_between_levels_is_refused() -> None:
    with pytest.raises(ValueError, match="weight_alignment_levels must be 0: UniVTG reads one level"):
        UniVTGLossConfig(weight_alignment_levels=0.1)


# decoding ------------------------------------------------------------------------------------------------------------


def predictions_of(logits: list[float], distances: list[tuple[float, float]]) -> UniVTGPredictions:
    """Return predictions of one sample of five clips; the cosine of clip and query is 1."""
    return UniVTGPredictions(
        logits_BT=torch.tensor([logits]),
        distances_BT2=torch.tensor([distances]),
        anchors_BT=torch.tensor([[0.2, 0.4, 0.6, 0.8, 1.0]]),
        video_BTF=torch.ones(1, 5, 2),
        text_BF=torch.ones(1, 2),
        video_mask_BT=torch.ones(1, 5, dtype=torch.bool),
    )


def test_units_and_options_of_decoding() -> None:
    timeline = Timeline(duration=9.0, clip_seconds=2.0)
    predictions = predictions_of([0.0, 2.0, 1.0, -1.0, 3.0], [(0.1, 0.1)] * 5)

    def moments(**options: Any) -> list[tuple[float, float]]:
        (answer,) = UniVTGDecodeConfig(**options).decode(predictions, [timeline], ["q"])
        assert all(m.end <= 9 for m in answer.moments)
        return [(m.start, m.end) for m in answer.moments]

    # 1.0 is 10 s, after the end of the video. The best clip predicts 9 to 11 s, of which nothing is left.
    assert moments() == [(3.0, 5.0), (5.0, 7.0), (1.0, 3.0), (7.0, 9.0)]
    assert moments(keep_all=True)[0] == (9.0, 9.0)
    assert moments(unit="duration")[:2] == [(8.1, 9.0), (2.7, 4.5)]
    assert moments(max_moments=2, keep_all=True) == [(9.0, 9.0), (3.0, 5.0)]
    assert moments(min_score=0.7) == [(3.0, 5.0), (5.0, 7.0)]
    rounded = moments(unit="duration", round_to_clips=True, keep_all=True)
    assert rounded[0] == (8.0, 8.0) not in moments(unit="duration", round_to_clips=True)  # 4.5 clips to the even 4
    curves = [
        UniVTGDecodeConfig(saliency=kind).decode(predictions, [timeline], ["q"])[0].saliency
        for kind in ("cosine", "sum")
    ]
    np.testing.assert_allclose(curves[1] - curves[0], torch.tensor([0.0, 2, 1, -1, 3]).sigmoid(), atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        ([], {}, []),
        ([(0, 10, 0.9), (0, 9, 0.8), (0, 5, 0.7)], {}, [0, 2]),  # IoU 0.9, and 0.5
        ([(0, 10, 0.9), (0, 7, 0.8)], {}, [0, 1]),  # IoU 0.7 is not above the threshold
        ([(0, 10, 0.9), (0, 9, 0.8), (20, 30, 0.7)], {"max_windows": 2}, [0]),
        ([(0, 10, 0.9), (0, 9, 0.8)], {"nms_threshold": None}, [0, 1]),
        ([(4, 4, 0.9), (4, 4, 0.8)], {}, [0, 1]),  # windows without length overlap nothing
    ],
)
def test_suppression(rows: list[tuple[float, ...]], options: dict[str, Any], expected: list[int]) -> None:
    table = np.asarray(rows, dtype=float).reshape(-1, 3)
    assert suppress(table, UniVTGDecodeConfig(**options)).tolist() == table[expected].tolist()


def test_windows_are_sorted_before_they_are_rounded() -> None:
    timeline = Timeline(duration=10.0, clip_seconds=2.0)
    seconds = np.array([[-1.0, 3.00004], [1.0, 20.0]])
    rows = windows(seconds, np.array([0.50001, 0.50002]), timeline, UniVTGDecodeConfig())
    assert rows.tolist() == [[1.0, 10.0, 0.5], [0.0, 3.0, 0.5]]


def test_numbers_that_are_not_finite_are_refused() -> None:
    broken = predictions_of([float("nan")] * 5, [(0.1, 0.1)] * 5)
    with pytest.raises(ValueError, match="numbers that are not finite"):
        UniVTGDecodeConfig().decode(broken, [Timeline(duration=10.0, clip_seconds=2.0)], ["q"])


# the golden step -----------------------------------------------------------------------------------------------------

GOLDEN = {
    "class": 0.443333,
    "l1": 0.131972,
    "giou": 0.684438,
    "saliency": 5.363291,
    "alignment_batch": 4.994802,
    "total": 7.473296,
    "norm": 12.436355,
    "parameters": 1335.892446,
}


def golden_step() -> dict[str, float]:
    """Return losses and gradient norm of one step at tiny width, and the sum of all parameters after it."""
    model, batch = tiny_model(), tiny_batch()
    # A large epsilon, since some true gradients are zero (key biases): noise must not decide their steps.
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3)
    by_name: dict[str, Tensor] = univtg_losses(model(batch), batch, UniVTGLossConfig())
    by_name["total"].backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 35.0)
    optimiser.step()
    after = sum(p.detach().double().abs().sum().item() for p in model.parameters())
    return {**{k: v.item() for k, v in by_name.items()}, "norm": float(norm), "parameters": after}


def test_golden_step() -> None:
    """Check that one training step gives the stored numbers.

    If a change is meant to move these numbers, renew them: run ``python tests/models/test_univtg.py``, paste the dict
    that it prints over GOLDEN, and say in the commit why they moved.
    """
    assert golden_step() == pytest.approx(GOLDEN, rel=1e-4)


if __name__ == "__main__":
    print("GOLDEN =", {k: round(v, 6) for k, v in golden_step().items()})
