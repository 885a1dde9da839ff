"""Deformable attention and RDSA against slow versions that loop over samples, moments, heads and points."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sidelight.models.deformable import (
    Clips,
    DeformableAttention,
    LocalContext,
    Outside,
    ReferenceDeformableAttention,
    initial_offsets,
    interpolation_matrix,
    read_points,
    roi_align,
)

LENGTHS = torch.tensor([7, 3, 1])
B, T, M, F = 3, 7, 5, 16


def slow_read(features_TF: Tensor, position: float, length: int, outside: Outside) -> Tensor:
    """Read features at a position in [0, 1] of the sample's extent, by linear interpolation."""

    def clip(index: int) -> Tensor:
        if outside == "zero" and not 0 <= index < length:
            return torch.zeros_like(features_TF[0])
        return features_TF[min(max(index, 0), length - 1)]

    index = position * length - 0.5
    below = math.floor(index)
    share = index - below
    return (1 - share) * clip(below) + share * clip(below + 1)


def slow_deformable(
    attention: DeformableAttention, chooser: Tensor, references: Tensor, video: Tensor, lengths: Tensor
) -> Tensor:
    heads, points = attention.heads, attention.points
    out = torch.zeros(chooser.shape[0], chooser.shape[1], video.shape[2])
    for b in range(chooser.shape[0]):
        values = attention.value(video[b])
        for m in range(chooser.shape[1]):
            center, width = references[b, m].tolist()
            offsets = attention.offsets(chooser[b, m]).view(heads, points)
            weights = attention.weights(chooser[b, m]).view(heads, points).softmax(-1)
            read = []
            for h, part in enumerate(values.chunk(heads, -1)):
                positions = [center + offset * width / 2 for offset in offsets[h].tolist()]
                length, outside = int(lengths[b]), attention.outside
                read.append(
                    sum(
                        w * slow_read(part, position, length, outside)
                        for w, position in zip(weights[h], positions, strict=True)
                    )
                )
            out[b, m] = attention.output(torch.cat(read))
    return out


def slow_context(context: LocalContext, x_TF: Tensor) -> Tensor:
    """Apply the CNN to one sample without padding."""

    def neighbours(x: Tensor, t: int) -> list[Tensor]:
        half = context.kernel // 2
        return [x[s] if 0 <= s < len(x) else torch.zeros_like(x[0]) for s in range(t - half, t + half + 1)]

    clips = range(len(x_TF))
    if context.kind == "separable":
        mixed = [
            sum(tap * near for tap, near in zip(context.taps_kernelF, neighbours(x_TF, t), strict=True))
            + context.bias_F
            for t in clips
        ]
        return context.mix(context.norm(torch.stack(mixed)).relu())  # type: ignore[no-any-return]
    first = torch.stack([context.first(torch.cat(neighbours(x_TF, t))) for t in clips])
    first = context.norm(first).relu()
    second = torch.stack([context.second(torch.cat(neighbours(first, t))) for t in clips])
    return context.second_norm(second).relu()  # type: ignore[no-any-return]


def scene() -> tuple[Tensor, Tensor, Tensor]:
    """Return features whose padding is garbage, their mask, and references that reach beyond both ends."""
    torch.manual_seed(0)
    video = torch.randn(B, T, F)
    mask = torch.arange(T) < LENGTHS.unsqueeze(1)
    video = torch.where(mask.unsqueeze(-1), video, 1e4)
    references = torch.rand(B, M, 2)
    references[:, 0] = torch.tensor([0.02, 0.9])
    references[:, 1] = torch.tensor([0.99, 0.7])
    return video, mask, references


def randomised(module: nn.Module) -> nn.Module:
    """Fill a module with random weights; as initialised, its offsets would not depend on its input."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


@pytest.mark.parametrize("outside", ["zero", "clamp"])
def test_reading_points(outside: Outside) -> None:
    video, _, _ = scene()
    positions = torch.tensor([-0.6, -0.1, 0.0, 0.3, 0.5, 0.77, 1.0, 1.05, 3.0]).expand(B, 2, -1)
    assert read_points(video, positions[:, :, :0], LENGTHS, outside).shape == (B, 2, 0, F)
    fast = read_points(video, positions, LENGTHS, outside)
    for b in range(B):
        for n, position in enumerate(positions[b, 0].tolist()):
            slow = slow_read(video[b], position, int(LENGTHS[b]), outside)
            torch.testing.assert_close(fast[b, 1, n], slow, atol=1e-5, rtol=1e-5)


def test_reading_a_clips_middle_is_the_clip() -> None:
    video, _, _ = scene()
    middles = (torch.arange(3) + 0.5) / 3
    torch.testing.assert_close(read_points(video[1:2], middles.view(1, 1, 3), LENGTHS[1:2], "zero")[0, 0], video[1, :3])


def test_rows_are_differentiable_in_positions() -> None:
    positions = torch.tensor([[[0.31, 0.62]]], dtype=torch.float32, requires_grad=True)
    rows = interpolation_matrix(positions, torch.tensor([[[0.4, 0.6]]]), torch.tensor([5]), 6, "zero")
    assert rows.shape == (1, 1, 6)
    assert rows.sum().item() == pytest.approx(1)
    (rows[0, 0] * torch.arange(6)).sum().backward()
    torch.testing.assert_close(positions.grad, torch.tensor([[[0.4 * 5, 0.6 * 5]]]))


def test_a_nan_position_gives_a_nan_result() -> None:
    rows = interpolation_matrix(torch.full((1, 1, 1), float("nan")), 1.0, torch.tensor([4]), 4, "zero")
    assert rows.isnan().any()


@pytest.mark.parametrize("outside", ["zero", "clamp"])
def test_deformable_attention_equals_the_slow_one(outside: Outside) -> None:
    video, _, references = scene()
    attention = randomised(DeformableAttention(6, F, 4, 3, outside=outside))
    assert isinstance(attention, DeformableAttention)
    chooser = torch.randn(B, M, 6)
    fast = attention(chooser, references, video, LENGTHS)
    slow = slow_deformable(attention, chooser, references, video, LENGTHS)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("points", [("left", "center", "right"), ("left", "right"), ("center",)])
@pytest.mark.parametrize("kind", ["separable", "full", None])
@pytest.mark.parametrize("reads_query", [False, True])
def test_rdsa_equals_the_slow_one(kind: str | None, points: tuple[str, ...], reads_query: bool) -> None:
    video, mask, references = scene()
    context = None if kind is None else LocalContext(F, 3, kind)  # type: ignore[arg-type]
    attention = DeformableAttention(8, F, 4, 3)
    rdsa = randomised(ReferenceDeformableAttention(F, 8, points, context, attention, reads_query=reads_query))
    moment_queries = torch.randn(B, M, F)
    fast = rdsa.read_video(moment_queries, references, video, Clips(mask, LENGTHS, video))  # type: ignore[operator]
    steps = {"left": -0.5, "center": 0.0, "right": 0.5}
    for b, length in enumerate(LENGTHS.tolist()):
        real = video[b, :length]
        source = real if context is None else slow_context(context, real)
        for m in range(M):
            center, width = references[b, m].tolist()
            read = [slow_read(source, center + steps[name] * width, length, "zero") for name in points]
            own = [moment_queries[b, m]] if reads_query else []
            chooser = rdsa.query(torch.cat([*read, *own])).view(1, 1, -1)  # type: ignore[operator]
            slow = slow_deformable(attention, chooser, references[b : b + 1, m : m + 1], real[None], LENGTHS[b : b + 1])
            torch.testing.assert_close(fast[b, m], slow[0, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["separable", "full"])
def test_context_ignores_padding(kind: str) -> None:
    video, mask, _ = scene()
    context = randomised(LocalContext(F, 3, kind))  # type: ignore[arg-type]
    assert isinstance(context, LocalContext)
    fast = context(video, mask)
    for b, length in enumerate(LENGTHS.tolist()):
        slow = slow_context(context, video[b, :length])
        torch.testing.assert_close(fast[b, :length], slow, atol=1e-5, rtol=1e-4)


def test_initial_offsets_lie_within_the_span_and_spread() -> None:
    for kind in ("directions", "grid"):
        offsets = initial_offsets(kind, 8, 4)
        assert offsets.shape == (8, 4)
        assert offsets.min() == -1
        assert offsets.max() == 1
    assert initial_offsets("directions", 8, 4)[0].tolist() == [0.25, 0.5, 0.75, 1.0]
    assert len(initial_offsets("grid", 8, 4).unique()) == 32
    assert initial_offsets("zero", 2, 3).abs().sum() == 0
    for kind in ("directions", "tadtr"):
        attention = DeformableAttention(6, F, 8, 4, offset_init=kind)  # type: ignore[arg-type]
        offsets, weights = attention.sampling(torch.randn(1, 2, 6))
        torch.testing.assert_close(offsets[0, 1], initial_offsets(kind, 8, 4))  # type: ignore[arg-type]
        torch.testing.assert_close(weights, torch.full_like(weights, 0.25))


def test_tadtrs_offsets_point_both_ways_equally_and_move_slowly() -> None:
    first = initial_offsets("tadtr", 8, 4)[:, -1]
    torch.testing.assert_close(first, torch.tensor([1.0, 0, -1, 0, 1, 0, -1, 0]), atol=1e-6, rtol=0)
    moves = []
    for kind in ("directions", "tadtr"):
        attention = DeformableAttention(6, F, 8, 4, offset_init=kind)
        before = attention.sampling(torch.zeros(1, 1, 6))[0]
        with torch.no_grad():
            attention.offsets.bias.add_(1)
        moves.append(attention.sampling(torch.zeros(1, 1, 6))[0] - before)
    torch.testing.assert_close(moves[1], moves[0] / 4)


@pytest.mark.parametrize("samples", [1, 3])
def test_roi_align_averages_points_of_each_bin(samples: int) -> None:
    video, _, references = scene()
    fast = roi_align(video, references, LENGTHS, 4, samples)
    assert fast.shape == (B, M, 4, F)
    for b, length in enumerate(LENGTHS.tolist()):
        for m in range(M):
            center, width = references[b, m].tolist()
            start, end = max(center - width / 2, 0), min(center + width / 2, 1)
            for k in range(4):
                positions = [start + (end - start) * (k + (s + 0.5) / samples) / 4 for s in range(samples)]
                reads = [slow_read(video[b], position, length, "clamp") for position in positions]
                torch.testing.assert_close(fast[b, m, k], torch.stack(reads).mean(0), atol=1e-5, rtol=1e-4)
