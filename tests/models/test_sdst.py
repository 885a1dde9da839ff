"""SDST: comparison with a plain forward pass, effect of padding, every option, the golden step."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidelight.core.batch import Batch, Predictions, Targets
from sidelight.models import SDST, SDSTConfig, parameter_table
from sidelight.models.deformable import roi_align
from sidelight.models.losses.sdst import SDSTLossConfig, sdst_losses
from sidelight.models.registry import SIDE_TUNERS

TINY = SDSTConfig(
    video_dim=6,
    text_dim=5,
    levels=3,
    hidden=16,
    moment_queries=4,
    heads=4,
    points=2,
    ffn_ratio=2,
    rdsa_width=8,
    roi_bins=3,
    dropout=0.0,
    droppath=0.0,
)
PUBLISHED_PARAMETERS = 4.10 * 2**20


def tiny_model(**changes: Any) -> SDST:
    """Build a model with weights away from their initialisation, which hides mistakes (zero offsets, zero heads)."""
    torch.manual_seed(0)
    model = SDST(replace(TINY, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def tiny_batch(
    clips: tuple[int, ...] = (6, 3, 1, 5), tokens: tuple[int, ...] = (4, 1, 2, 3), padding: int = 0
) -> Batch:
    """Build samples of different lengths. Padding is garbage, and the real numbers do not depend on it."""
    size, levels, spans = len(clips), TINY.levels, 2 + padding
    padded_clips, padded_tokens = max(clips) + padding, max(tokens) + padding
    video = torch.full((levels, size, padded_clips, TINY.video_dim), 7.0)
    text = torch.full((levels, size, padded_tokens, TINY.text_dim), -9.0)
    spans_BG2, saliency = torch.full((size, spans, 2), 0.9), torch.zeros(size, padded_clips)
    positive = torch.zeros(size, dtype=torch.int64)
    span_counts = [(2, 1, 0, 1)[b % 4] for b in range(size)]
    for b, (n, m) in enumerate(zip(clips, tokens, strict=True)):
        generator = torch.Generator().manual_seed(100 * n + m)
        video[:, b, :n] = torch.randn(levels, n, TINY.video_dim, generator=generator)
        text[:, b, :m] = torch.randn(levels, m, TINY.text_dim, generator=generator)
        saliency[b, :n] = torch.randint(0, 4, (n,), generator=generator).float()
        spans_BG2[b, :2] = 0.2 + 0.4 * torch.rand(2, 2, generator=generator)
        positive[b] = saliency[b].argmax() if span_counts[b] else -1
    return Batch(
        video_KBTD=video,
        video_mask_BT=torch.arange(padded_clips) < torch.tensor(clips).unsqueeze(1),
        text_KBLD=text,
        text_mask_BL=torch.arange(padded_tokens) < torch.tensor(tokens).unsqueeze(1),
        targets=Targets(
            spans_BG2=spans_BG2,
            spans_mask_BG=torch.arange(spans) < torch.tensor(span_counts).unsqueeze(1),
            saliency_BT=saliency,
            positive_B=positive,
        ),
    )


def plain_attention(block: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Compute the attention of one unpadded sample, head by head."""
    heads: list[Tensor] = []
    parts = [layer(x) for layer, x in ((block.query, queries), (block.key, keys), (block.value, values))]
    for q, k, v in zip(*(part.chunk(block.heads, -1) for part in parts), strict=True):
        heads.append((q @ k.T / math.sqrt(q.shape[-1])).softmax(-1) @ v)
    output: Tensor = block.output(torch.cat(heads, -1))
    return output


def plain_code(values: Tensor, width: int) -> Tensor:
    waves = [2 * math.pi * values / 10000 ** (2 * i / width) for i in range(width // 2)]
    return torch.stack([w.sin() for w in waves] + [w.cos() for w in waves], -1)


def plain_cue(model: Any, dense: Tensor, query: Tensor) -> Tensor:
    """Add 4 cos(D_i, query) u to each clip, or nothing without a cue."""
    if model.cue is None:
        return dense
    rows = [4 * torch.dot(clip, query) / clip.norm() / query.norm() * model.cue.direction for clip in dense]
    return dense + torch.stack(rows)


def plain_forward(model: Any, video_KTD: Tensor, text_KLD: Tensor) -> dict[str, Tensor]:
    """Predict for one sample, without padding or batching, equation by equation. RDSA has its own slow test."""
    config: SDSTConfig = model.config
    level: Any = model.levels[0]
    clips = video_KTD.shape[1]
    edges = torch.arange(clips) / clips
    code = plain_code(edges + 0.5 / clips, config.hidden)
    dense, sparse = level.dense, level.sparse
    d = torch.zeros(clips, config.hidden)
    h = model.moments_MF
    r = model.references_M2.sigmoid()
    out: dict[str, list[Tensor]] = {"logits": [], "spans": [], "video": [], "text": []}
    for k in range(config.levels):
        v = level.map_video(torch.cat([video_KTD[k], edges[:, None], edges[:, None] + 1 / clips], -1))
        t = level.map_text(text_KLD[k])
        words = t[1:] if len(t) > 1 else t
        beta = 1 / (1 + torch.exp(-model.gates_K[k]))
        d = beta * d + (1 - beta) * v
        d = dense.text_norm.norm(d + plain_attention(dense.text_attention, d + code, words, words))
        d = dense.self_norm.norm(d + plain_attention(dense.self_attention, d + code, d + code, d))
        d = dense.ffn_norm.norm(d + dense.ffn.contract(dense.ffn.expand(d).relu()))
        half = config.hidden // 2
        p = model.reference_code(torch.cat([plain_code(r[:, 0], half), plain_code(r[:, 1], half)], -1))
        update = plain_attention(sparse.blocks["ca"], h + p, t, t)
        h = sparse.norms["ca"].norm(h + update)
        update = plain_attention(sparse.blocks["sa"], h + p, h + p, h)
        h = sparse.norms["sa"].norm(h + update)
        pooled = (model.text_pool.score(t).softmax(0) * t).sum(0)
        read = plain_cue(model, d, pooled)
        everything = torch.ones(1, clips, dtype=torch.bool)
        update = sparse.blocks["rdsa"](r[None], read[None], everything, torch.tensor([clips]))[0]
        h = sparse.norms["rdsa"].norm(h + update)
        h = sparse.norms["ffn"].norm(h + sparse.blocks["ffn"](h))
        r = (torch.log(r / (1 - r)) + model.span_head(h)).sigmoid().detach()
        for name, value in (
            ("logits", model.class_head(h)[:, 0]),
            ("spans", r),
            ("video", v),
            ("text", pooled),
        ):
            out[name].append(value)
    around = r * torch.tensor([1.0, config.roi_width])
    curve = F.cosine_similarity(d, pooled[None], dim=-1)
    inputs = {"dense": [read], "saliency": [curve[:, None]], "both": [read, curve[:, None]]}[config.actionness_input]
    bins = roi_align(
        torch.cat(inputs, -1)[None], around[None], torch.tensor([clips]), config.roi_bins, config.roi_samples
    )
    actionness = model.actionness_head(bins[0].flatten(1))[:, 0].sigmoid()
    return {name: torch.stack(parts) for name, parts in out.items()} | {
        "actionness": actionness,
        "saliency": curve,
    }


def sample_of(batch: Batch, b: int) -> Batch:
    """Return sample ``b`` without padding."""
    clips, tokens = int(batch.video_mask_BT[b].sum()), int(batch.text_mask_BL[b].sum())
    targets = batch.targets
    assert targets is not None
    spans = int(targets.spans_mask_BG[b].sum())
    return Batch(
        video_KBTD=batch.video_KBTD[:, b : b + 1, :clips],
        video_mask_BT=batch.video_mask_BT[b : b + 1, :clips],
        text_KBLD=batch.text_KBLD[:, b : b + 1, :tokens],
        text_mask_BL=batch.text_mask_BL[b : b + 1, :tokens],
        targets=Targets(
            spans_BG2=targets.spans_BG2[b : b + 1, :spans],
            spans_mask_BG=targets.spans_mask_BG[b : b + 1, :spans],
            saliency_BT=targets.saliency_BT[b : b + 1, :clips],
            positive_B=targets.positive_B[b : b + 1],
        ),
    )


def gradients(model: SDST, batch: Batch) -> dict[str, Tensor]:
    model.zero_grad()
    sdst_losses(model(batch), batch, SDSTLossConfig())["total"].backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"roi_width": 1.5},
        {"saliency_cue": True},
        {"actionness_input": "saliency"},
        {"actionness_input": "both", "saliency_cue": True, "roi_width": 1.5},
    ],
)
def test_forward_equals_the_plain_one(changes: dict[str, Any]) -> None:
    model, batch = tiny_model(**changes), tiny_batch()
    predictions = model(batch)
    for b in range(batch.size):
        alone = sample_of(batch, b)
        clips = alone.video_KBTD.shape[2]
        plain = plain_forward(model, alone.video_KBTD[:, 0], alone.text_KBLD[:, 0])
        values = {
            "logits": predictions.logits_KBM[:, b],
            "spans": predictions.spans_KBM2[:, b],
            "actionness": predictions.actionness_BM[b],
            "saliency": predictions.saliency_BT[b, :clips],
            "video": predictions.video_KBTF[:, b, :clips],
            "text": predictions.text_KBF[:, b],
        }
        for name, value in values.items():
            torch.testing.assert_close(value, plain[name], atol=1e-5, rtol=1e-4, msg=f"{name} of {b}")
        assert (predictions.saliency_BT[b, clips:] == 0).all()


@pytest.mark.parametrize(("roi_width", "reads_around"), [(1.0, False), (1.5, True)])
def test_roi_width_decides_whether_actionness_reads_around_a_moment(roi_width: float, reads_around: bool) -> None:
    torch.manual_seed(0)
    model = tiny_model(roi_width=roi_width, roi_bins=8)
    dense, span = torch.randn(1, 20, model.config.hidden), torch.tensor([[[0.5, 0.4]]])
    around = dense.clone()
    around[:, [4, 15]] += 1  # second neighbours of [6, 14): no interpolation inside reads them
    saliency, lengths = torch.zeros(1, 20), torch.tensor([20])
    before, after = (model._actionness(d, saliency, span, lengths) for d in (dense, around))
    assert bool((before != after).any()) == reads_around


VARIANTS: list[dict[str, Any]] = [
    {},
    {"attention": "deformable"},
    {"attention": "standard"},
    {"rdsa_conv": "full", "rdsa_kernel": 5},
    {"rdsa_cnn": False, "rdsa_points": ["left", "right"]},
    {"condition_on": "raw"},
    {"condition_on": "ca"},
    {"condition_on": "sa"},
    {"sparse_order": ("sa", "rdsa", "ca")},
    {"sparse_order": ("rdsa",), "outside": "clamp"},
    {"sparse_order": ("ca", "sa", "ffn")},
    {"share_levels": False},
    {"share_levels": False, "level_order": "deep-first"},
    {"detach_references": False, "roi_gradient": True, "roi_samples": 2, "roi_width": 1.5},
    {"endpoint_features": False, "reference_init": "normal", "offset_init": "grid"},
    {"saliency_cue": True, "actionness_input": "both"},
    {"rdsa_reads_query": True, "offset_init": "tadtr"},
    {"saliency_cue": True, "condition_on": "raw", "actionness_input": "saliency"},
]


@functools.cache
def variant(number: int) -> tuple[SDST, dict[str, Tensor]]:
    """Return the model of VARIANTS[number] and its gradients on a batch without extra padding."""
    model = tiny_model(**VARIANTS[number])
    return model, gradients(model, tiny_batch())


@pytest.mark.parametrize("number", range(len(VARIANTS)), ids=lambda number: str(VARIANTS[number]))
def test_padding_changes_nothing(number: int) -> None:
    model, expected = variant(number)
    tight, padded = tiny_batch(), tiny_batch(padding=3)
    together = model(padded)
    for b in range(padded.size):
        alone = model(sample_of(tight, b))
        clips = alone.video_mask_BT.shape[1]
        for unpadded, padded_part in (
            (alone.logits_KBM[:, 0], together.logits_KBM[:, b]),
            (alone.spans_KBM2[:, 0], together.spans_KBM2[:, b]),
            (alone.actionness_BM[0], together.actionness_BM[b]),
            (alone.saliency_BT[0], together.saliency_BT[b, :clips]),
        ):
            torch.testing.assert_close(unpadded, padded_part, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients(model, padded).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_padding_changes_nothing_for_a_batch_of_one() -> None:
    model = tiny_model()
    expected = gradients(model, tiny_batch((5,), (3,)))
    for name, gradient in gradients(model, tiny_batch((5,), (3,), padding=4)).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("number", range(len(VARIANTS)), ids=lambda number: str(VARIANTS[number]))
def test_every_parameter_learns(number: int) -> None:
    for name, gradient in variant(number)[1].items():
        assert gradient.isfinite().all(), name
        # A softmax does not change when all its logits move together: these gradients are truly zero.
        if not name.endswith(("key.bias", "text_pool.score.bias")):
            assert gradient.abs().max() > 0, name


def test_level_order_and_sharing() -> None:
    batch = tiny_batch()
    flipped = replace(batch, video_KBTD=batch.video_KBTD.flip(0), text_KBLD=batch.text_KBLD.flip(0))
    shallow, deep = tiny_model(), tiny_model(level_order="deep-first")
    assert torch.equal(shallow(batch).logits_KBM, deep(flipped).logits_KBM)
    assert not torch.allclose(shallow(batch).logits_KBM, deep(batch).logits_KBM)
    unshared = tiny_model(share_levels=False)
    for level in unshared.levels:
        level.load_state_dict(shallow.levels[0].state_dict())
    rest = {k: v for k, v in shallow.state_dict().items() if not k.startswith("levels.")}
    unshared.load_state_dict(rest, strict=False)
    torch.testing.assert_close(unshared(batch).spans_KBM2, shallow(batch).spans_KBM2)


def test_the_first_prediction_is_the_reference() -> None:
    model = SDST(TINY)
    predictions = model(tiny_batch())
    references = model.references_M2.sigmoid().expand(3, 4, -1, -1)
    torch.testing.assert_close(predictions.spans_KBM2, references)
    assert predictions.logits_KBM.sigmoid().mean().item() == pytest.approx(0.01, abs=0.02)
    edges = references[0, 0, :, 0:1] + references[0, 0, :, 1:] * torch.tensor([-0.5, 0.5])
    assert edges.min() >= 0
    assert edges.max() <= 1


def test_gradients_stop_between_levels_but_reach_the_first_references() -> None:
    batch = tiny_batch()
    for detach in (True, False):
        model = tiny_model(detach_references=detach, sparse_order=("ffn",))
        model(batch).spans_KBM2[-1].sum().backward()
        has_gradient = model.references_M2.grad is not None and bool(model.references_M2.grad.abs().max() > 0)
        assert has_gradient is not detach
    model = tiny_model()
    model(batch).spans_KBM2[0].sum().backward()
    assert model.references_M2.grad is not None
    assert model.references_M2.grad.abs().min() > 0


def test_parameter_count_is_the_papers() -> None:
    """Compare with the paper, whose 4.10 M are 4.10 * 2**20; the module's docstring lists the parts."""
    config = SDSTConfig(video_dim=768, text_dim=1024)
    with torch.device("meta"):
        shared, unshared = SDST(config), SDST(replace(config, share_levels=False))
    count = sum(parameter.numel() for parameter in shared.parameters())
    assert count == 4_346_633
    assert abs(count / PUBLISHED_PARAMETERS - 1) < 0.03
    unshared_count = sum(parameter.numel() for parameter in unshared.parameters())
    assert abs(unshared_count / (12.43 * 2**20) - 1) < 0.03
    with torch.device("meta"):
        cued = SDST(replace(config, saliency_cue=True))
    assert sum(parameter.numel() for parameter in cued.parameters()) == count + 256
    table = parameter_table(shared)
    assert sum(number for _, number in table) == count
    assert dict(table)["actionness_head"] == 1_114_881


def test_the_cue_leaves_the_other_first_weights_alone() -> None:
    models = []
    for cue in (False, True):
        torch.manual_seed(0)
        models.append(SDST(replace(TINY, saliency_cue=cue)).state_dict())
    assert models[1].keys() - models[0].keys() == {"cue.direction"}
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video_dim": 0}, "video_dim must be at least 1, got 0"),
        ({"hidden": 30}, "hidden must be a multiple of 4"),
        ({"hidden": 20, "heads": 3}, "multiple of heads=3"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"attention": "sparse"}, "attention must be one of 'rdsa', 'deformable', 'standard'"),
        ({"level_order": 1}, "level_order must be one of"),
        ({"sparse_order": ("ca", "ca")}, "different names"),
        ({"sparse_order": ()}, "different names"),
        ({"sparse_order": "ca"}, "a list of text"),
        ({"rdsa_points": ("middle",)}, "rdsa_points must be different names out of"),
        ({"rdsa_kernel": 2}, "odd"),
        ({"class_prior": 0.0}, "class_prior"),
        ({"roi_width": 0.0}, "roi_width must be positive and finite"),
        ({"roi_width": math.inf}, "roi_width must be a finite number"),
        ({"levels": "4"}, "a whole number"),
        ({"actionness_input": "video"}, "actionness_input must be one of"),
    ],
)
def test_configuration_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": 4}, "levels=4, the batch has levels=3"),
        ({"video_dim": 7}, "video_dim=7"),
        ({"text_dim": 1}, "text_dim=1"),
    ],
)
def test_features_of_another_backbone_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SDST(replace(TINY, **changes))(tiny_batch())


def test_half_precision_features_and_autocast() -> None:
    model, batch = tiny_model(), tiny_batch()
    expected = model(batch)
    close: Predictions = model(batch.to("cpu", torch.float16))
    torch.testing.assert_close(close.spans_KBM2, expected.spans_KBM2, atol=0.02, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(batch)
        losses = sdst_losses(rough, batch, SDSTLossConfig())
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    torch.testing.assert_close(rough.saliency_BT, expected.saliency_BT, atol=0.2, rtol=0)
    losses["total"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_dropout_is_random_in_training_only() -> None:
    model, batch = tiny_model(dropout=0.5, droppath=0.25), tiny_batch()
    assert not torch.equal(model(batch).logits_KBM, model(batch).logits_KBM)
    model.eval()
    assert torch.equal(model(batch).logits_KBM, model(batch).logits_KBM)


def test_the_registry_has_sdst() -> None:
    model, config = SIDE_TUNERS["sdst"].model, SIDE_TUNERS["sdst"].config
    assert model is SDST
    assert config is SDSTConfig


def golden_step(config: SDSTConfig = TINY, losses: SDSTLossConfig | None = None) -> dict[str, float]:
    """Return loss, gradient norm and a checksum of the parameters after one step, without random numbers."""
    model, batch = SDST(config), tiny_batch()
    ramp = [torch.arange(p.numel()).view_as(p) for p in model.parameters()]
    with torch.no_grad():
        for parameter, steps in zip(model.parameters(), ramp, strict=True):
            parameter.copy_(0.3 * torch.sin(steps + 1.0))
        video, text = (torch.cos(0.7 * torch.arange(x.numel())).view_as(x) for x in (batch.video_KBTD, batch.text_KBLD))
    targets = replace(
        batch.targets,  # type: ignore[type-var]
        spans_BG2=torch.tensor([[[0.3, 0.2], [0.7, 0.4]], [[0.5, 0.5]] * 2, [[0.1, 0.1]] * 2, [[0.6, 0.3]] * 2]),
        saliency_BT=torch.tensor([0.0, 1, 2, 3, 4, 1]).repeat(4, 1) * batch.video_mask_BT,
        positive_B=torch.tensor([4, 2, -1, 3]),
    )
    batch = replace(batch, video_KBTD=video, text_KBLD=text, targets=targets)
    # A large epsilon, since some true gradients are zero (key biases): noise must not decide their steps.
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4, eps=1e-3)
    loss = sdst_losses(model(batch), batch, losses or SDSTLossConfig())["total"]
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 35.0)
    optimiser.step()
    checksum = sum((p.detach() * torch.cos(0.1 * s)).sum() for p, s in zip(model.parameters(), ramp, strict=True))
    return {"loss": loss.item(), "gradient_norm": norm.item(), "checksum": float(checksum)}


CUED = replace(TINY, saliency_cue=True, actionness_input="both", roi_width=1.5)
CUED_LOSSES = SDSTLossConfig(actionness_loss="bce", class_target="iou")
GOLDEN = {"loss": 10.628433, "gradient_norm": 12.205119, "checksum": 31.44323}


GOLDEN_CUED = {"loss": 11.300547, "gradient_norm": 12.949104, "checksum": 31.45352}


def test_golden_step() -> None:
    """Check that one training step gives the stored numbers.

    If a change is meant to move these numbers, renew them: run ``python tests/models/test_sdst.py``, paste
    the dicts that it prints over GOLDEN and GOLDEN_CUED, and say in the commit why they moved.
    """
    assert golden_step() == pytest.approx(GOLDEN, rel=1e-4)
    assert golden_step(CUED, CUED_LOSSES) == pytest.approx(GOLDEN_CUED, rel=1e-4)


if __name__ == "__main__":
    print("GOLDEN =", {name: round(value, 6) for name, value in golden_step().items()})
    print("GOLDEN_CUED =", {name: round(value, 6) for name, value in golden_step(CUED, CUED_LOSSES).items()})
