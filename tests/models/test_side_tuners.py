"""The side-tuners that SDST is compared with: sizes, effect of padding, levels that are read, golden steps."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest
import torch

from sidelight.core.batch import Batch, Targets
from sidelight.core.timeline import Timeline
from sidelight.io.tensors import shapes_only
from sidelight.models.decode.r2_tuning import R2DecodeConfig
from sidelight.models.points import PointModel
from sidelight.models.registry import SIDE_TUNERS, build_model, side_tuner

K, D_V, D_T = 3, 10, 8
POINT_MODELS = [name for name, tuner in SIDE_TUNERS.items() if issubclass(tuner.model, PointModel)]
PAPER = {"last-layer": 2.70, "e3va": 2.57, "losa": 6.40, "lst": 2.04, "r2-tuning": 2.70, "sdst": 4.10}
"""Table H of the SDST paper, millions of parameters, counted as R2-Tuning's code does: / 2**20."""
TINY: dict[str, Any] = {
    "video_dim": D_V, "text_dim": D_T, "levels": K, "hidden": 16, "heads": 4, "ffn_ratio": 2, "dropout": 0.0,
    "droppath": 0.0,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {"lst": {"ladder": 8}, "e3va": {"bottleneck": 8, "rank": 4}}


def tiny_model(name: str, **changes: Any) -> torch.nn.Module:
    """Build a model with weights away from their initialisation, which hides mistakes (gates of 0)."""
    torch.manual_seed(0)
    model = build_model(name, TINY | OWN.get(name, {}) | changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tiny_batch(padding: int = 0) -> Batch:
    """Build samples of different lengths. Padding is garbage, and the real numbers do not depend on it."""
    clips, tokens = (17, 4, 9), (5, 1, 3)
    video = torch.full((K, 3, max(clips) + padding, D_V), 7.0)
    text = torch.full((K, 3, max(tokens) + padding, D_T), -9.0)
    for b, (n, m) in enumerate(zip(clips, tokens, strict=True)):
        generator = torch.Generator().manual_seed(b)
        video[:, b, :n] = torch.randn(K, n, D_V, generator=generator)
        text[:, b, :m] = torch.randn(K, m, D_T, generator=generator)
    length = torch.arange(max(clips) + padding)
    return Batch(
        video_KBTD=video,
        video_mask_BT=length < torch.tensor(clips).unsqueeze(1),
        text_KBLD=text,
        text_mask_BL=torch.arange(max(tokens) + padding) < torch.tensor(tokens).unsqueeze(1),
        targets=Targets(
            spans_BG2=torch.tensor([[[0.3, 0.3], [0.8, 0.2]], [[0.5, 0.5], [0, 0]], [[0.2, 0.3], [0, 0]]]),
            spans_mask_BG=torch.tensor([[True, True], [True, False], [True, False]]),
            saliency_BT=(length % 3).float().expand(3, -1) * (length < torch.tensor(clips).unsqueeze(1)),
            positive_B=torch.tensor([2, 1, 2]),
        ),
    )


def alone(batch: Batch, b: int) -> Batch:
    """Return sample ``b`` without padding."""
    clips, tokens, sample = int(batch.video_mask_BT[b].sum()), int(batch.text_mask_BL[b].sum()), slice(b, b + 1)
    return Batch(
        video_KBTD=batch.video_KBTD[:, sample, :clips],
        video_mask_BT=batch.video_mask_BT[sample, :clips],
        text_KBLD=batch.text_KBLD[:, sample, :tokens],
        text_mask_BL=batch.text_mask_BL[sample, :tokens],
    )


def losses(name: str, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    tuner = side_tuner(name)
    return tuner.losses(model(batch), batch, tuner.loss_config())


def test_sizes_of_the_paper() -> None:
    """Compare sizes at InternVideo2's widths with Table H; ``pytest -s`` prints them."""
    assert PAPER.keys() == SIDE_TUNERS.keys() - {
        "univtg",
        "scada",
    }  # which SDST's authors did not adapt to these features
    print(f"\n{'side-tuner':<14}{'parameters':>12}{'/ 2**20':>9}{'paper':>7}{'ratio':>7}")
    for name, paper in PAPER.items():
        count = sum(p.numel() for p in build_model(name, {"video_dim": 768, "text_dim": 1024}).parameters())
        print(f"{name:<14}{count:>12,}{count / 2**20:>9.2f}{paper:>7.2f}{count / 2**20 / paper:>7.3f}")
        assert count / 2**20 == pytest.approx(paper, rel=0.1), name


@pytest.mark.parametrize("cue", [False, True])
@pytest.mark.parametrize("name", POINT_MODELS)
def test_padding_and_neighbours_change_nothing(name: str, cue: bool) -> None:
    model = tiny_model(name, saliency_cue=cue).eval()
    together = model(tiny_batch(padding=3))
    for b in range(3):
        single = model(alone(tiny_batch(), b))
        points, clips = together.point_mask_BN[b], int(together.video_mask_BT[b].sum())
        torch.testing.assert_close(together.logits_BN[b][points], single.logits_BN[0][single.point_mask_BN[0]])
        torch.testing.assert_close(together.distances_BN2[b][points], single.distances_BN2[0][single.point_mask_BN[0]])
        torch.testing.assert_close(together.video_BTF[b, :clips], single.video_BTF[0])
        torch.testing.assert_close(together.text_BF[b], single.text_BF[0])
        torch.testing.assert_close(together.level_video_KBTF[:, b, :clips], single.level_video_KBTF[:, 0])


@pytest.mark.parametrize("cue", [False, True])
@pytest.mark.parametrize("name", POINT_MODELS)
def test_every_parameter_learns(name: str, cue: bool) -> None:
    model = tiny_model(name, saliency_cue=cue)
    losses(name, model, tiny_batch())["total"].backward()
    # These are constant under softmax. With one token per frame, R2-Tuning's q_map and v_map have no effect either.
    idle = ("attention.key.bias", ".q_map", ".v_map") if name == "r2-tuning" else ("attention.key.bias",)
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
        if not any(part in parameter_name for part in idle):
            assert (parameter.grad != 0).any(), parameter_name


@pytest.mark.parametrize("name", POINT_MODELS)
def test_the_cue_adds_saliency_to_what_points_read(name: str) -> None:
    plain, cued = tiny_model(name).eval(), tiny_model(name, saliency_cue=True).eval()
    assert cued.state_dict().keys() - plain.state_dict().keys() == {"cue.direction"}
    cued.load_state_dict({**plain.state_dict(), "cue.direction": torch.linspace(-1, 1, TINY["hidden"])})
    read: list[torch.Tensor] = []
    cued.get_submodule("pyramid.0").register_forward_hook(lambda *args: read.append(args[2]))
    before, after = plain(tiny_batch()), cued(tiny_batch())
    torch.testing.assert_close(before.cosine_BT(), after.cosine_BT())  # the highlight curve is not cued
    mask = after.video_mask_BT
    expected = after.video_BTF + 4 * after.cosine_BT().unsqueeze(-1) * torch.linspace(-1, 1, TINY["hidden"])
    torch.testing.assert_close(read[0][mask], expected[mask])
    assert not torch.allclose(before.logits_BN[before.point_mask_BN], after.logits_BN[after.point_mask_BN])


@pytest.mark.parametrize("name", POINT_MODELS)
@pytest.mark.parametrize("level", range(K))
def test_which_levels_are_read(name: str, level: int) -> None:
    model, batch = tiny_model(name).eval(), tiny_batch()
    before = model(batch).logits_BN
    batch.video_KBTD[level] += 1.0 * torch.randn(batch.video_KBTD[level].shape)
    changed = not torch.allclose(before, model(batch).logits_BN)
    assert changed == (name != "last-layer" or level == K - 1)


@pytest.mark.parametrize("name", POINT_MODELS)
def test_answers(name: str) -> None:
    timelines = [Timeline(duration=2.0 * clips, clip_seconds=2.0) for clips in (17, 4, 9)]
    config = R2DecodeConfig()
    answers = config.decode(tiny_model(name).eval()(tiny_batch()), timelines, ["q"] * 3)
    assert [len(answer.saliency) for answer in answers] == [17, 4, 9]
    assert all(0 <= m.start < m.end <= a.timeline.duration for a in answers for m in a.moments)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"no side-tuner 'ladder'; known are sdst, r2-tuning"):
        side_tuner("ladder")
    with pytest.raises(ValueError, match="configuration of 'lst' does not fit"):
        build_model("lst", {"video_dim": 4, "text_dim": 4, "width": 3})
    with pytest.raises(ValueError, match="ladder must be a multiple of heads=8"):
        build_model("lst", {"video_dim": 4, "text_dim": 4, "ladder": 20})
    with pytest.raises(ValueError, match="this LST was built for video_dim=10, the batch has video_dim=4"):
        batch = tiny_batch()
        tiny_model("lst")(
            Batch(**{f.name: getattr(batch, f.name) for f in fields(batch)} | {"video_KBTD": batch.video_KBTD[..., :4]})
        )


GOLDEN: dict[str, dict[str, float]] = {
    "r2-tuning": {
        "class": 0.10979,
        "l1": 0.643363,
        "saliency": 5.538221,
        "alignment_batch": 3.981442,
        "alignment_levels": 3.191299,
        "total": 1.509559,
        "norm": 3.011136,
        "parameters": 1742.678577,
    },
    "last-layer": {
        "class": 0.223069,
        "l1": 0.54793,
        "saliency": 3.761707,
        "alignment_batch": 4.364977,
        "alignment_levels": 0.0,
        "total": 1.145324,
        "norm": 6.548779,
        "parameters": 1643.357068,
    },
    "lst": {
        "class": 0.199024,
        "l1": 0.569859,
        "saliency": 2.695726,
        "alignment_batch": 1.936784,
        "alignment_levels": 1.948687,
        "total": 0.971116,
        "norm": 3.762866,
        "parameters": 2275.40184,
    },
    "e3va": {
        "class": 0.498602,
        "l1": 0.786916,
        "saliency": 3.586334,
        "alignment_batch": 1.248987,
        "alignment_levels": 1.746257,
        "total": 1.314143,
        "norm": 2.897682,
        "parameters": 1801.310399,
    },
    "losa": {
        "class": 0.184202,
        "l1": 0.658347,
        "saliency": 4.955007,
        "alignment_batch": 3.531827,
        "alignment_levels": 4.849741,
        "total": 1.649529,
        "norm": 3.819457,
        "parameters": 3642.982326,
    },
}


def golden_step(name: str) -> dict[str, float]:
    """Return losses and gradient norm of one step at tiny width, and the sum of all parameters after it."""
    model = tiny_model(name)
    # A large epsilon, since some true gradients are zero (key biases): noise must not decide their steps.
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3)
    by_name = losses(name, model, tiny_batch())
    by_name["total"].backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 35.0)
    optimiser.step()
    after = sum(p.detach().double().abs().sum().item() for p in model.parameters())
    return {**{k: v.item() for k, v in by_name.items()}, "norm": float(norm), "parameters": after}


@pytest.mark.parametrize("name", POINT_MODELS)
def test_golden_step(name: str) -> None:
    """Check that one training step gives the stored numbers.

    If a change is meant to move these numbers, renew them: run ``python tests/models/test_side_tuners.py``, paste
    the dict that it prints over GOLDEN, and say in the commit why they moved.
    """
    assert golden_step(name) == pytest.approx(GOLDEN[name], rel=1e-4)


if __name__ == "__main__":
    print("GOLDEN =", {name: {k: round(v, 6) for k, v in golden_step(name).items()} for name in POINT_MODELS})


@pytest.mark.parametrize("name", [name for name in SIDE_TUNERS if name != "scada"])
def test_a_model_without_memory_has_the_shapes_of_the_model(name: str) -> None:
    config = {"video_dim": D_V, "text_dim": D_T, "hidden": 16}
    with shapes_only():
        without_memory = build_model(name, config).state_dict()
    expected = build_model(name, config).state_dict()
    assert {key: tensor.shape for key, tensor in without_memory.items()} == {k: t.shape for k, t in expected.items()}
    assert all(tensor.is_meta for tensor in without_memory.values())


def test_building_models_without_memory_does_not_import_the_compiler() -> None:
    code = (
        "import sys\n"
        "from sidelight.backbones.shapes.model import ShapesBackboneConfig, TwoTowers\n"
        "from sidelight.io.tensors import shapes_only\n"
        "from sidelight.models.registry import SIDE_TUNERS, build_model\n"
        "with shapes_only():\n"
        "    TwoTowers(ShapesBackboneConfig())\n"
        "    for name in sorted(SIDE_TUNERS.keys() - {'scada'}):\n"
        "        build_model(name, {'video_dim': 8, 'text_dim': 8})\n"
        "print(*(name for name in ('torch._dynamo', 'sympy') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
