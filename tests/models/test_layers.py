"""The shared blocks against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sidelight.models.layers import (
    MLP,
    AttentionPool,
    Dropout,
    DropPath,
    MultiHeadAttention,
    inverse_sigmoid,
    parameter_table,
    sinusoid,
    unit_clip_centers,
)


@pytest.mark.parametrize("probability", [0.5, 0.25, 0.3])
def test_dropout_keeps_the_mean_and_repeats_with_the_seed(probability: float) -> None:
    layer = Dropout(probability)
    x = torch.ones(100, 1003)
    torch.manual_seed(0)
    out = layer(x)
    torch.manual_seed(0)
    assert torch.equal(out, layer(x))
    assert not torch.equal(out, layer(x))
    assert out.mean().item() == pytest.approx(1, abs=0.02)
    assert (out == 0).float().mean().item() == pytest.approx(probability, abs=0.01)
    assert (out[:, ::8] == 0).float().mean().item() == pytest.approx(probability, abs=0.02)
    assert out.unique().tolist() == pytest.approx([0, 1 / (1 - probability)])
    assert layer.eval()(x) is x


def test_dropout_gradient_is_its_mask() -> None:
    x = torch.ones(3, 5, requires_grad=True)
    out = Dropout(0.5)(x)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())  # type: ignore[arg-type]


def test_droppath_drops_whole_samples() -> None:
    torch.manual_seed(0)
    out = DropPath(0.25)(torch.ones(4000, 2, 3))
    assert set(out.flatten(1).std(1).tolist()) == {0.0}
    assert (out[:, 0, 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert out.mean().item() == pytest.approx(1, abs=0.03)


def test_attention_equals_pytorchs() -> None:
    torch.manual_seed(0)
    ours, theirs = MultiHeadAttention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    layers = (ours.query, ours.key, ours.value)
    for layer in (*layers, ours.output):
        nn.init.normal_(layer.bias)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
        theirs.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
        theirs.out_proj.load_state_dict(ours.output.state_dict())
    query, key, value = torch.randn(2, 3, 16), torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    expected, _ = theirs(query, key, value, key_padding_mask=~mask)
    torch.testing.assert_close(ours(query, key, value, mask), expected, atol=1e-6, rtol=1e-5)
    everything, _ = theirs(query, key, value)
    torch.testing.assert_close(ours(query, key, value, None), everything, atol=1e-6, rtol=1e-5)


def test_pooling_is_a_weighted_mean_of_real_tokens() -> None:
    pool = AttentionPool(4)
    tokens = torch.randn(2, 3, 5, 4)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [True] + [False] * 4])
    out = pool(tokens, mask)
    torch.testing.assert_close(out[:, 2], tokens[:, 2, 0])
    weights = pool.score(tokens[1, 1, :2]).softmax(0)
    torch.testing.assert_close(out[1, 1], (weights * tokens[1, 1, :2]).sum(0))


def test_sinusoid_and_unit_clip_centers_by_hand() -> None:
    assert sinusoid(torch.zeros(0), 4).shape == (0, 4)
    slow = 2 * math.pi / 100
    expected = [math.sin(math.pi / 2), math.sin(slow / 4), math.cos(math.pi / 2), math.cos(slow / 4)]
    assert sinusoid(torch.tensor([0.25]), 4)[0].tolist() == pytest.approx(expected, abs=1e-6)
    centers = unit_clip_centers(torch.tensor([2, 4]), 4)
    assert centers.tolist() == [[0.25, 0.75, 1.25, 1.75], [0.125, 0.375, 0.625, 0.875]]


def test_inverse_sigmoid() -> None:
    x = torch.tensor([0.0, 0.2, 0.5, 1.0])
    back = inverse_sigmoid(x).sigmoid()
    torch.testing.assert_close(back, x, atol=2e-5, rtol=0)
    assert inverse_sigmoid(x).isfinite().all()


def test_parameter_table() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(3))
            self.head = MLP(4, 5, 2)
            self.frozen = nn.Linear(2, 2).requires_grad_(False)

    assert parameter_table(nn.Module()) == []
    assert parameter_table(Model()) == [("scale", 3), ("head", 4 * 5 + 5 + 5 * 2 + 2), ("frozen", 0)]
