"""SCADA on its own: adapters and losses against plain references, padding, sharing, decoding, and a golden step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from sidelight.backbones import load_tower
from sidelight.backbones.protocol import TrainableTower
from sidelight.backbones.videomae import VideoMAETower
from sidelight.core.batch import FrameBatch, Targets
from sidelight.core.timeline import Timeline
from sidelight.models.decode.scada import ScadaDecodeConfig, highlight_curve
from sidelight.models.losses.scada import ScadaLossConfig, scada_losses
from sidelight.models.recompute import MemoryConfig
from sidelight.models.registry import HEADS
from sidelight.models.scada import (
    MODES,
    Chunks,
    InnerBranch,
    OuterBranch,
    Scada,
    ScadaConfig,
    ScadaPredictions,
)
from sidelight.training.loop import accumulate_gradients
from tests.tiny_models import frames

E = 6
TINY: dict[str, Any] = {"sentence_dim": E, "outer_ratio": 0.25, "hidden": 8, "head_layers": 2, "pair_hidden": 8}
OWN_MODES = [mode for mode in MODES if mode != "frozen"]


def tiny_tower(rows: int = 4) -> TrainableTower:
    """Return a VideoMAE of 3 blocks that reads 4 frames, two a time; all weights are drawn, and none is kept."""
    import transformers

    config = transformers.VideoMAEConfig(
        image_size=8 * rows, patch_size=8, num_frames=4, tubelet_size=2, hidden_size=8, intermediate_size=16,
        num_hidden_layers=3, num_attention_heads=2, use_mean_pooling=False,
    )  # fmt: skip
    model = cast(nn.Module, transformers.VideoMAEModel(config))
    draw(model, seed=1, scale=0.3, keep=0.0)
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            nn.init.ones_(parameter)
    return VideoMAETower(model=model)


def i3d_tower() -> TrainableTower:
    """Return an I3D with random weights, which reads 16 frames of 32 pixels."""
    torch.manual_seed(0)
    return load_tower("i3d", random_weights=True, resolution=32)


def draw(model: nn.Module, *, seed: int, scale: float, keep: float = 1.0) -> None:
    """Draw numbers for all weights, so that none is at its initial 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(keep).add_(torch.randn(parameter.shape, generator=generator) * scale)


def tiny_model(
    tower: TrainableTower | None = None, drawn: bool = True, memory: MemoryConfig | None = None, **changes: Any
) -> Scada:
    torch.manual_seed(0)
    model = Scada(ScadaConfig(**{**TINY, **changes}), tiny_tower() if tower is None else tower, memory)
    if drawn:
        for module in (model.inner, model.outer, model.head):
            draw(module, seed=2, scale=0.1)
    return model


def tiny_batch(tower: TrainableTower | None = None, padding: int = 0, clips_per_chunk: int = 2) -> FrameBatch:
    """Build two videos of 3 and 2 chunks, whose last chunk is half real, and three queries. Padding is garbage."""
    spec = (tower or tiny_tower()).spec
    chunks, clips = (3, 2), (3 * clips_per_chunk - 1, 2 * clips_per_chunk)
    shown = torch.full((2, 3 + padding, spec.frames, spec.resolution, spec.resolution, 3), 200, dtype=torch.uint8)
    for v, count in enumerate(chunks):
        shown[v, :count] = frames(count, spec.frames, spec.resolution, seed=v)
    time = torch.arange((3 + padding) * clips_per_chunk)
    video_of = torch.tensor([0, 0, 1])
    mask_VT = time < torch.tensor(clips).unsqueeze(1)
    return FrameBatch(
        frames_VCFSS3=shown,
        video_mask_VT=mask_VT,
        sentences_BE=torch.randn(3, E, generator=torch.Generator().manual_seed(5)),
        video_of_B=video_of,
        targets=Targets(
            spans_BG2=torch.tensor([[[0.3, 0.4], [0.8, 0.2]], [[0.5, 0.9], [0, 0]], [[0.6, 0.3], [0, 0]]]),
            spans_mask_BG=torch.tensor([[True, True], [True, False], [True, False]]),
            saliency_BT=mask_VT[video_of].float(),
            positive_B=torch.tensor([1, 1, 1]),
        ),
    )


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def step_gradients(model: Scada, batch: FrameBatch) -> dict[str, Tensor]:
    model.zero_grad()
    scada_losses(model(batch), batch, ScadaLossConfig())["total"].backward()
    return gradients(model)


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Return the largest difference of two sets of gradients, relative to the largest number of each tensor."""
    assert a.keys() == b.keys()
    scale = max(float(x.abs().max()) for x in a.values())
    return max(float((a[n] - b[n]).abs().max() / max(float(a[n].abs().max()), 1e-3 * scale)) for n in a)


# adapters ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["videomae", "shapes", "i3d"])
@pytest.mark.parametrize("sentence", [True, False])
def test_new_adapters_change_no_bit(name: str, sentence: bool) -> None:
    tower = {"videomae": tiny_tower, "shapes": lambda: load_tower("shapes"), "i3d": i3d_tower}[name]()
    batch = tiny_batch(tower, clips_per_chunk=tower.spec.grid[0])
    encoded = {
        mode: tiny_model(tower, drawn=False, mode=mode, sentence_in_adapters=sentence).encode(batch) for mode in MODES
    }
    for mode in MODES:
        assert torch.equal(encoded[mode], encoded["frozen"]), mode
    assert encoded["frozen"].abs().sum() > 0


def plain_inner(branch: InnerBranch, tokens_CPD: Tensor, sentence_E: Tensor, across: bool) -> Tensor:
    """Compute the inner branch of one video place by place and time by time."""
    prefix, (times, rows, columns) = branch.stage.prefix, branch.stage.grid
    places = rows * columns
    kernel = branch.over_time.weight[:, 0]
    result = tokens_CPD.clone()
    assert branch.sentence is not None
    factor = branch.sentence.project.weight @ sentence_E + branch.sentence.project.bias
    hidden = {
        (c * times + t, g): F.gelu(branch.down(tokens_CPD[c, prefix + t * places + g])) * factor
        for c in range(len(tokens_CPD))
        for t in range(times)
        for g in range(places)
    }
    for (time, g), h in hidden.items():
        total = cast(Tensor, branch.over_time.bias).clone()
        for tap in range(kernel.shape[1]):
            other = time + tap - kernel.shape[1] // 2
            if (other, g) in hidden and (across or other // times == time // times):
                total = total + kernel[:, tap] * hidden[other, g]
        c, t = divmod(time, times)
        row = prefix + t * places + g
        result[c, row] = tokens_CPD[c, row] + branch.scale * branch.up(h + branch.mix(total))
    return result


def plain_outer(branch: OuterBranch, tokens_CPD: Tensor, sentence_E: Tensor, across: bool) -> Tensor:
    """Compute the outer branch of one video in the paper's order: down, times the sentence, up, pooling over space."""
    prefix, (times, rows, columns) = branch.stage.prefix, branch.stage.grid
    assert branch.sentence is not None
    factor = branch.sentence.project.weight @ sentence_E + branch.sentence.project.bias
    volume = tokens_CPD[:, prefix:].unflatten(1, (times, rows, columns)).permute(0, 4, 1, 2, 3)
    volume = F.pad(volume, (0, columns % branch.stride, 0, rows % branch.stride))
    down = F.gelu(F.conv3d(volume, branch.down.weight, branch.down.bias, stride=(1, branch.stride, branch.stride)))
    down = down * factor.view(1, -1, 1, 1, 1)
    if across:
        down = down.transpose(0, 1).flatten(1, 2).unsqueeze(0)
    kernel = branch.up.weight[..., None, None]
    up = F.conv3d(down, kernel, branch.up.bias, padding=(kernel.shape[2] // 2, 0, 0))
    return up.mean((3, 4)).transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("rows", [4, 3])
@pytest.mark.parametrize("across", [True, False])
def test_adapters_equal_plain_references(rows: int, across: bool) -> None:
    """Compare two videos of 3 and 2 chunks with references of one video each; 3 rows are no multiple of the stride."""
    spec = replace(tiny_tower(rows).spec, prefix=1)
    config = ScadaConfig(**TINY, across_chunks=across)
    mask_BC = torch.tensor([[True, True, True], [True, True, False]])
    chunks = Chunks(mask_BC)
    tokens_NPD = torch.randn(5, 1 + 2 * rows * rows, spec.width, generator=torch.Generator().manual_seed(0))
    sentences_BE = torch.randn(2, E, generator=torch.Generator().manual_seed(1))
    inner, outer = InnerBranch(config, spec), OuterBranch(config, spec, spec)
    draw(inner, seed=3, scale=0.3)
    draw(outer, seed=4, scale=0.3)
    inside = inner(tokens_NPD, sentences_BE[chunks.row_N], chunks if across else None)
    reduced_BTR = chunks.spread(outer.reduce(tokens_NPD))
    beside_BTD = outer(reduced_BTR, sentences_BE, 1 if across else 3)
    for b, (first, count) in enumerate([(0, 3), (3, 2)]):
        video = tokens_NPD[first : first + count]
        torch.testing.assert_close(inside[first : first + count], plain_inner(inner, video, sentences_BE[b], across))
        expected = plain_outer(outer, video, sentences_BE[b], across)
        torch.testing.assert_close(beside_BTD[b, : len(expected)], expected)


def test_clips_are_the_normalised_sum() -> None:
    """Compare F of one video and one query with the backbone and the branches, run by hand."""
    tower, batch = tiny_tower(), tiny_batch().parts(1)[1]
    model = tiny_model(tower, normalise="length", clips_per_chunk=1).eval()
    batch = replace(batch, video_mask_VT=torch.ones(1, 3, dtype=torch.bool), targets=None)
    tokens, total = tower.embed(batch.frames_VCFSS3[0]), torch.zeros(6, 8)
    sentence = batch.sentences_BE[0]
    for number, block in enumerate(tower.blocks):
        tokens = block(tokens)
        total = total + plain_outer(cast(OuterBranch, model.outer[str(number)]), tokens, sentence, True)
        tokens = plain_inner(cast(InnerBranch, model.inner[str(number)]), tokens, sentence, True)
    clips = (tower.finish(tokens).unflatten(1, (2, 16)).mean(2).flatten(0, 1) + total).unflatten(0, (3, 2)).mean(1)
    torch.testing.assert_close(model.encode(batch)[0], F.normalize(clips, dim=-1), atol=1e-5, rtol=1e-4)


# the model -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_padding_and_neighbours_change_nothing(mode: str) -> None:
    model = tiny_model(mode=mode).eval()
    together = model(tiny_batch(padding=2))
    for b, part in enumerate(tiny_batch().parts(1)):
        single = model(part)
        clips = int(part.video_mask_VT.sum())
        torch.testing.assert_close(together.boundary_BT2[b, :clips], single.boundary_BT2[0, :clips])
        pairs = together.pair_mask_BA()[b]
        for name in ("class_BA", "iou_BA", "offsets_BA2"):
            torch.testing.assert_close(
                getattr(together, name)[b][pairs], getattr(single, name)[0][single.pair_mask_BA()[0]]
            )


@pytest.mark.parametrize("sentence", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_what_learns(mode: str, sentence: bool) -> None:
    """Check that every weight that is trained gets a gradient, and that the backbone gets one in mode full alone."""
    model = tiny_model(mode=mode, sentence_in_adapters=sentence)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"head", "norm"} | {
        "frozen": set(), "inner": {"inner"}, "outer": {"outer"}, "both": {"inner", "outer"}, "full": {"tower"}
    }[mode]  # fmt: skip
    assert any("sentence" in name for name in trained if name.startswith(("inner", "outer"))) == (
        sentence and mode not in ("frozen", "full")
    )
    for name, gradient in step_gradients(model, tiny_batch()).items():
        assert name in trained
        assert gradient.isfinite().all() and (gradient != 0).any(), name
    assert not model.tower.training and model.head.training


@pytest.mark.parametrize("mode", MODES)
def test_sentences_change_the_clips_where_adapters_read_them(mode: str) -> None:
    for sentence in (True, False):
        clips_BTD = tiny_model(mode=mode, sentence_in_adapters=sentence).encode(tiny_batch())
        same = torch.allclose(clips_BTD[0], clips_BTD[1])  # two queries of one video
        assert same == (not sentence or mode in ("frozen", "full"))


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("mode", OWN_MODES)
def test_queries_of_a_video_give_the_gradients_of_queries_one_by_one(mode: str, first: int) -> None:
    model, batch = tiny_model(mode=mode, first_adapter=first), tiny_batch()
    together = step_gradients(model, batch)
    model.zero_grad()
    losses = accumulate_gradients(batch, 1, lambda part: scada_losses(model(part), part, ScadaLossConfig()))
    assert largest_difference(together, gradients(model)) < 1e-5
    expected = scada_losses(model(batch), batch, ScadaLossConfig())
    assert {k: float(v) for k, v in losses.items()} == pytest.approx({k: v.item() for k, v in expected.items()})


def test_the_shared_part_runs_once_a_video() -> None:
    model, read = tiny_model(first_adapter=1), []
    for block in model.tower.model.encoder.layer:  # type: ignore[union-attr]
        block.register_forward_hook(lambda *args: read.append(len(args[2])))
    model(tiny_batch())
    assert read == [5, 5, 8]  # chunks: 3 + 2 of the videos; 3 + 3 + 2 of the queries


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel": 2}, "kernel must be odd"),
        ({"kernel": 7}, "kernel must be at most 5: 2 times of a chunk, got 7"),
        ({"mode": "all"}, "mode must be one of 'frozen', 'inner', 'outer', 'both', 'full', got 'all'"),
        ({"outer_ratio": 2.0}, r"outer_ratio must be in \(0, 1\]"),
        ({"adapter_ratio": 0.0}, r"adapter_ratio must be in \(0, 1\]"),
        ({"clips_per_chunk": 3}, "clips_per_chunk must be a divisor of the backbone's 2, got 3"),
        ({"first_adapter": 3}, "first_adapter must be below the backbone's 3 blocks, got 3"),
        ({"hidden": 7}, "hidden must be even"),
    ],
)
def test_wrong_configurations_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model(**changes)


def test_wrong_batches_are_named() -> None:
    batch = tiny_batch()
    with pytest.raises(ValueError, match="built for sentence_dim=6, the batch has sentence_dim=4"):
        tiny_model()(replace(batch, sentences_BE=batch.sentences_BE[:, :4]))
    with pytest.raises(ValueError, match="built for clips_per_chunk=1, the batch has clips_per_chunk=2"):
        tiny_model(clips_per_chunk=1)(batch)
    with pytest.raises(ValueError, match="the same number of clips for each of 3 chunks, got 4 clips"):
        replace(batch, video_mask_VT=batch.video_mask_VT[:, :4], targets=None)
    with pytest.raises(ValueError, match="frames_VCFSS3 must hold bytes values"):
        replace(batch, frames_VCFSS3=batch.frames_VCFSS3.float())
    with pytest.raises(ValueError, match="losses need a batch with targets"):
        scada_losses(tiny_model()(batch), replace(batch, targets=None), ScadaLossConfig())


# memory --------------------------------------------------------------------------------------------------------------

DEVICES = [
    MemoryConfig(checkpoint_blocks=1),
    MemoryConfig(checkpoint_blocks=2),
    MemoryConfig(chunks_at_once=1),
    MemoryConfig(chunks_at_once=2),
    MemoryConfig(checkpoint_blocks=1, chunks_at_once=1),
    MemoryConfig(checkpoint_blocks=2, chunks_at_once=3),
    MemoryConfig(checkpoint_blocks=3, chunks_at_once=1),
]


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("sentence", [True, False])
@pytest.mark.parametrize("mode", OWN_MODES)
def test_memory_devices_change_no_gradient(mode: str, sentence: bool, across: bool) -> None:
    """Compare all gradients with the plain way; ``pytest -s`` prints the largest relative difference."""
    changes: dict[str, Any] = {"mode": mode, "sentence_in_adapters": sentence, "across_chunks": across}
    batch = tiny_batch()
    for first in (0, 1):
        plain = step_gradients(tiny_model(**changes, first_adapter=first), batch)
        for device in DEVICES:
            other = step_gradients(tiny_model(**changes, first_adapter=first, memory=device), batch)
            difference = largest_difference(plain, other)
            print(f"{mode} {sentence=} {across=} {first=} {device}: {difference:.1e}")
            assert difference < 1e-5, device


@pytest.mark.parametrize("name", ["shapes", "i3d", "kernel"])
def test_memory_devices_with_other_backbones(name: str) -> None:
    """Compare with a CLS token, with blocks of different widths and times, and with borders of two times.

    In float64 (the losses stay in float32): in float32, another rounding of numbers near 0 switches some ReLUs of I3D,
    which moves its gradient by 1e-2.
    """
    towers = {"shapes": lambda: load_tower("shapes"), "i3d": i3d_tower, "kernel": tiny_tower}
    tower, kernel = towers[name](), 5 if name == "kernel" else 3
    batch = tiny_batch(tower, clips_per_chunk=tower.spec.grid[0]).to("cpu", torch.float64)
    plain = step_gradients(tiny_model(tower, kernel=kernel).double(), batch)
    for device in (MemoryConfig(chunks_at_once=1), MemoryConfig(checkpoint_blocks=2, chunks_at_once=2)):
        model = tiny_model(tower, memory=device, kernel=kernel).double()
        difference = largest_difference(plain, step_gradients(model, batch))
        print(f"{name} {device}: {difference:.1e}")
        assert difference < 1e-5, device


def test_gradients_reach_a_sentence_encoder_that_is_trained() -> None:
    """Compare the gradients of the sentences themselves; no other test needs them."""
    by_sentence = []
    for memory in (MemoryConfig(), MemoryConfig(chunks_at_once=1, checkpoint_blocks=3)):
        batch = tiny_batch()
        batch.sentences_BE.requires_grad_()
        step_gradients(tiny_model(memory=memory), batch)
        by_sentence.append(batch.sentences_BE.grad)
    torch.testing.assert_close(*by_sentence, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("device", "kept"),
    [
        (MemoryConfig(checkpoint_blocks=1, chunks_at_once=1), 2 * 8),  # before two of three blocks, for 8 chunks
        (MemoryConfig(checkpoint_blocks=2, chunks_at_once=1), 8),
        (MemoryConfig(checkpoint_blocks=3, chunks_at_once=1), 0),
    ],
)
def test_what_is_kept_until_the_backward_pass(device: MemoryConfig, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the chunks whose tokens after an adapter live when the forward pass is over."""
    made, raise_and_add = [], InnerBranch.raise_and_add

    def watch(*args: Any) -> Tensor:
        tokens = raise_and_add(*args)
        made.append((StorageWeakRef(tokens.untyped_storage()), len(tokens)))
        return tokens

    monkeypatch.setattr(InnerBranch, "raise_and_add", watch)
    predictions = tiny_model(memory=device)(tiny_batch())
    assert sum(size for storage, size in made if not storage.expired()) == kept
    assert predictions.class_BA.requires_grad


HALF = MemoryConfig(checkpoint_blocks=3, chunks_at_once=1, frozen_dtype="bfloat16")


@pytest.mark.parametrize("memory", [MemoryConfig(), MemoryConfig(chunks_at_once=1), HALF])
@pytest.mark.parametrize("mode", OWN_MODES)
def test_bfloat16_is_close_to_float32(mode: str, memory: MemoryConfig) -> None:
    """Compare under autocast: losses within 1 %, all gradients together within 10 % of their length, all finite."""
    if mode == "full" and memory == HALF:
        pytest.skip("mode full keeps its weights in float32")
    batch, model = tiny_batch(), tiny_model(mode=mode)
    exact = scada_losses(model(batch), batch, ScadaLossConfig())["total"]
    exact.backward()
    half = tiny_model(mode=mode, memory=memory)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predictions = half(batch)
        loss = scada_losses(predictions, batch, ScadaLossConfig())["total"]
    loss.backward()
    expected, in_half = gradients(model), gradients(half)
    assert expected.keys() == in_half.keys()
    assert all(gradient.isfinite().all() for gradient in in_half.values())
    difference = sum(float((expected[n] - in_half[n]).square().sum()) for n in expected) ** 0.5
    length = sum(float(gradient.square().sum()) for gradient in expected.values()) ** 0.5
    print(f"{mode} {memory}: loss {abs(loss.item() / exact.item() - 1):.1e}, gradients {difference / length:.1e}")
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)
    assert 0 < difference < 0.1 * length


def test_frozen_matrices_are_held_in_bfloat16() -> None:
    model = tiny_model(memory=HALF)
    held = {p.dtype for p in model.tower.parameters() if p.ndim > 1}, {p.dtype for p in model.inner.parameters()}
    assert held == ({torch.bfloat16}, {torch.float32})
    with pytest.raises(ValueError, match="frozen_dtype: bfloat16 needs autocast; train with precision: bf16-mixed"):
        model(tiny_batch())
    with pytest.raises(ValueError, match="frozen_dtype must be float32 in mode full"):
        tiny_model(mode="full", memory=HALF)


@pytest.mark.parametrize("accumulated", [1, 2, 3])
@pytest.mark.parametrize("mode", OWN_MODES)
def test_accumulated_gradients_with_all_devices(mode: str, accumulated: int) -> None:
    batch, model = tiny_batch(), tiny_model(mode=mode, memory=DEVICES[4])
    plain = step_gradients(tiny_model(mode=mode), batch)
    accumulate_gradients(batch, accumulated, lambda part: scada_losses(model(part), part, ScadaLossConfig()))
    assert largest_difference(plain, gradients(model)) < 1e-5


@pytest.mark.parametrize(
    ("changes", "device", "most"),
    [
        ({"mode": "both"}, MemoryConfig(), 2 * 8),  # two blocks of 8 chunks; the shared block keeps nothing
        ({"mode": "both"}, MemoryConfig(checkpoint_blocks=1), 8),
        ({"mode": "both"}, MemoryConfig(chunks_at_once=1), 1),
        ({"mode": "both"}, MemoryConfig(checkpoint_blocks=1, chunks_at_once=2), 2),
        ({"mode": "full"}, MemoryConfig(), 15),  # three blocks of 5 chunks
        ({"mode": "full"}, MemoryConfig(checkpoint_blocks=1), 5),
        ({"mode": "full"}, MemoryConfig(chunks_at_once=1), 3),  # all blocks of one chunk
        ({"mode": "full"}, MemoryConfig(checkpoint_blocks=1, chunks_at_once=1), 1),
        ({"mode": "outer"}, MemoryConfig(chunks_at_once=1), 1),
    ],
)
def test_what_is_in_memory_at_once(changes: dict[str, Any], device: MemoryConfig, most: int) -> None:
    """Count for how many chunks and blocks the hidden values of a feed-forward layer live at once."""
    model, alive, peaks = tiny_model(memory=device, **changes), [], [0]

    def watch(module: nn.Module, inputs: Any, output: Tensor) -> None:
        alive.append((StorageWeakRef(output.untyped_storage()), len(output)))
        peaks.append(sum(size for storage, size in alive if not storage.expired()))

    for block in model.tower.get_submodule("model.encoder.layer").children():
        block.get_submodule("intermediate.dense").register_forward_hook(watch)
    step_gradients(model, tiny_batch())
    assert max(peaks) == most


@pytest.mark.parametrize("sentence", [True, False])
@pytest.mark.parametrize("mode", OWN_MODES)
def test_gradients_of_drawn_chunks_are_right_on_average(
    mode: str, sentence: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Average over every choice of one chunk: the gradient of all chunks. The outputs never change."""
    changes: dict[str, Any] = {"mode": mode, "sentence_in_adapters": sentence, "across_chunks": False}
    batch = tiny_batch()
    plain_model = tiny_model(**changes)
    plain = step_gradients(plain_model, batch)
    total = 8 if mode in ("inner", "both") and sentence else 5
    model = tiny_model(**changes, memory=MemoryConfig(chunk_share=1 / total, chunks_at_once=1))
    mean = {name: torch.zeros_like(gradient) for name, gradient in plain.items()}
    differences = []
    for choice in range(total):
        order = torch.tensor([choice, *(n for n in range(total) if n != choice)])
        monkeypatch.setattr(torch, "randperm", lambda n, order=order: order)
        drawn = step_gradients(model, batch)
        differences.append(largest_difference(plain, drawn))
        mean = {name: mean[name] + drawn[name] / total for name in mean}
        torch.testing.assert_close(model.encode(batch), plain_model.encode(batch))
    assert min(differences) > 1e-2  # no single draw is the whole gradient
    assert largest_difference(plain, mean) < 1e-5


def test_chunks_are_drawn_in_training_alone() -> None:
    model = tiny_model(mode="outer", memory=MemoryConfig(chunk_share=0.4))
    torch.manual_seed(0)
    first, second = step_gradients(model, tiny_batch()), step_gradients(model, tiny_batch())
    assert largest_difference(first, second) > 1e-2
    assert largest_difference(step_gradients(model.eval(), tiny_batch()), step_gradients(model, tiny_batch())) == 0


def test_wrong_ways_to_save_memory_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"chunk_share must be 1 where inner branches convolve across chunks \(across_"
    ):
        tiny_model(memory=MemoryConfig(chunk_share=0.5))
    with pytest.raises(ValueError, match=r"chunk_share must be in \(0, 1\], got 0.0"):
        MemoryConfig(chunk_share=0.0)
    with pytest.raises(ValueError, match="chunks_at_once must be at least 0"):
        MemoryConfig(chunks_at_once=-1)


# losses --------------------------------------------------------------------------------------------------------------


def plain_losses(predictions: ScadaPredictions, targets: Targets, config: ScadaLossConfig) -> dict[str, float]:
    """Compute the losses with loops over queries, clips, pairs and moments."""
    sums = dict.fromkeys(("boundary", "iou_class", "iou", "offset"), 0.0)

    def mean(values: list[float]) -> float:
        return sum(values) / len(values) if values else 0.0

    def balanced(logits: list[float], labels: list[bool]) -> float:
        loss = [float(np.log1p(np.exp(-x if y else x))) for x, y in zip(logits, labels, strict=True)]
        positive = [x for x, y in zip(loss, labels, strict=True) if y]
        return (mean(positive) + mean([x for x, y in zip(loss, labels, strict=True) if not y])) / 2

    size = len(predictions.video_mask_BT)
    for b in range(size):
        clips = int(predictions.video_mask_BT[b].sum())
        moments = [
            tuple(round(edge * clips * 1024) / 1024 for edge in (center - width / 2, center + width / 2))
            for (center, width), real in zip(targets.spans_BG2[b].tolist(), targets.spans_mask_BG[b], strict=True)
            if real
        ]
        for edge in (0, 1):
            labels = [
                any(min(t + 1, m[edge] + 1.5) - max(t, m[edge] - 1.5) >= 0.5 for m in moments) for t in range(clips)
            ]
            sums["boundary"] += balanced(predictions.boundary_BT2[b, :clips, edge].tolist(), labels)
        pairs = [(a, i, j + 1) for a, (i, j) in enumerate(predictions.pairs_A2.tolist()) if j < clips]
        overlaps = []
        for _, i, j in pairs:
            row = [max(0, min(j, e) - max(i, s)) for s, e in moments]
            overlaps.append([x / (j - i + e - s - x) for x, (s, e) in zip(row, moments, strict=True)])
        columns = [[row[w] for row in overlaps] for w in range(len(moments))]
        best = {column.index(max(column)) for column in columns}
        kinds: dict[int, list[float]] = {}
        gaps, labels = [], []
        for k, (a, i, j) in enumerate(pairs):
            iou = max(overlaps[k], default=0.0)
            kinds.setdefault((iou > 0.3) + (iou > 0.7), []).append((float(predictions.iou_BA[b, a]) - iou) ** 2)
            labels.append(iou > 0.9 or k in best)
            if iou > 0.7 or k in best:
                s, e = moments[overlaps[k].index(iou)]
                shift = [x - y for x, y in zip(predictions.offsets_BA2[b, a].tolist(), (s - i, e - j), strict=True)]
                gaps.append(sum(x * x / 2 if abs(x) < 1 else abs(x) - 0.5 for x in shift))
        sums["iou_class"] += balanced([float(predictions.class_BA[b, a]) for a, _, _ in pairs], labels)
        sums["iou"] += mean([mean(kind) for kind in kinds.values()])
        sums["offset"] += mean(gaps)
    means = {name: total / size for name, total in sums.items()}
    return {**means, "total": sum(getattr(config, f"weight_{name}") * value for name, value in means.items())}


@pytest.mark.parametrize("moments", [2, 1, 0])
def test_losses_equal_a_plain_reference(moments: int) -> None:
    batch, config = tiny_batch(padding=1, clips_per_chunk=2), ScadaLossConfig(weight_offset=0.7)
    assert batch.targets is not None
    targets = replace(
        batch.targets,
        spans_BG2=batch.targets.spans_BG2[:, :moments],
        spans_mask_BG=batch.targets.spans_mask_BG[:, :moments],
    )
    with torch.no_grad():
        predictions = tiny_model()(batch)
    losses = scada_losses(predictions, replace(batch, targets=targets), config)
    expected = plain_losses(predictions, targets, config)
    assert {name: float(loss) for name, loss in losses.items()} == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_losses_without_moments_are_finite() -> None:
    batch, model = tiny_batch(), tiny_model()
    assert batch.targets is not None
    targets = replace(batch.targets, spans_mask_BG=torch.zeros_like(batch.targets.spans_mask_BG))
    assert all(g.isfinite().all() for g in step_gradients(model, replace(batch, targets=targets)).values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"weight_iou": -1.0}, "at least 0"), ({"kinds": (0.7, 0.3)}, "two rising"), ({"class_iou": 2.0}, r"in \[0, 1\]")],
)
def test_wrong_losses_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScadaLossConfig(**changes)


# decoding ------------------------------------------------------------------------------------------------------------


def predictions_of(clips: int, good: tuple[int, int], offsets: tuple[float, float] = (0.0, 0.0)) -> ScadaPredictions:
    """Return predictions of one video with one good pair."""
    pairs = torch.ones(clips, clips).triu().nonzero()
    chosen = (pairs == torch.tensor(good)).all(1)
    return ScadaPredictions(
        boundary_BT2=torch.zeros(1, clips, 2),
        class_BA=torch.where(chosen, 4.0, -4.0)[None],
        iou_BA=torch.where(chosen, 0.9, 0.1)[None],
        offsets_BA2=torch.tensor(offsets).expand(1, len(pairs), 2),
        pairs_A2=pairs,
        video_mask_BT=torch.ones(1, clips, dtype=torch.bool),
    )


def test_decoding() -> None:
    timeline = Timeline(duration=9.5, clip_seconds=2.0)
    (answer,) = ScadaDecodeConfig().decode(predictions_of(5, (1, 2), (-0.25, 0.5)), [timeline], ["q"])
    best = answer.moments[0]
    assert (best.start, best.end) == (1.5, 7.0)
    assert best.score == pytest.approx(0.25 * 0.9 / (1 + np.exp(-4)))
    assert len(answer.moments) == 10 and all(0 <= m.start < m.end <= 9.5 for m in answer.moments)
    assert answer.saliency.tolist() == pytest.approx(
        [answer.saliency[0], best.score, best.score, *[answer.saliency[0]] * 2]
    )
    (plain,) = ScadaDecodeConfig(nms_sigma=None, max_moments=None).decode(predictions_of(5, (1, 2)), [timeline], ["q"])
    assert len(plain.moments) == 15
    (one,) = ScadaDecodeConfig(min_score=0.1).decode(predictions_of(5, (4, 4)), [timeline], ["q"])
    assert [(m.start, m.end) for m in one.moments] == [(8.0, 9.5)]  # cut to the video
    (none,) = ScadaDecodeConfig().decode(
        predictions_of(1, (0, 0), (0.6, -0.6)), [Timeline(duration=2, clip_seconds=2)], ["q"]
    )
    assert none.moments == ()  # the edges crossed
    with pytest.raises(ValueError, match="not finite"):
        ScadaDecodeConfig().decode(predictions_of(5, (1, 2), (float("nan"), 0)), [timeline], ["q"])
    with pytest.raises(ValueError, match="nms_sigma must be above 0, or none"):
        ScadaDecodeConfig(nms_sigma=0.0)


@pytest.mark.parametrize(
    ("pairs", "scores", "expected"),
    [
        ([], [], [0, 0, 0, 0]),
        ([(0, 0)], [0.5], [0.5, 0, 0, 0]),
        ([(0, 2), (1, 1), (2, 3)], [0.2, 0.9, 0.4], [0.2, 0.9, 0.4, 0.4]),
    ],
)
def test_highlight_curves(pairs: list[tuple[int, int]], scores: list[float], expected: list[float]) -> None:
    table = np.asarray(pairs, dtype=int).reshape(-1, 2)
    assert highlight_curve(table, np.asarray(scores, dtype=float), 4).tolist() == expected


def test_answers_of_the_model() -> None:
    timelines = [Timeline(duration=2.0 * clips, clip_seconds=2.0) for clips in (5, 5, 4)]
    answers = ScadaDecodeConfig().decode(tiny_model().eval()(tiny_batch()), timelines, ["q"] * 3)
    assert [len(answer.saliency) for answer in answers] == [5, 5, 4]
    assert all(answer.moments for answer in answers)


# other heads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("head", HEADS)
def test_heads_learn_and_answer(head: str, mode: str) -> None:
    """Train each head on each mode for a few steps: the loss falls at every step, and every trained part learns."""
    model, parts, batch = tiny_model(head=head, mode=mode).eval(), HEADS[head], tiny_batch()
    loss_config = parts.loss_config()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser, losses = torch.optim.SGD(trained, lr=1e-3), []
    for _ in range(3):
        optimiser.zero_grad()
        losses.append(parts.losses(model(batch), batch, loss_config)["total"])
        losses[-1].backward()
        optimiser.step()
    assert losses[0] > losses[1] > losses[2]
    learning = {name.split(".")[0] for name, g in gradients(model).items() if g.abs().sum() > 0}
    adapters = {"inner": {"inner"}, "outer": {"outer"}, "both": {"inner", "outer"}, "full": {"tower"}}
    assert learning == {"head", "norm", *adapters.get(mode, set())}
    timelines = [Timeline(duration=2.0 * clips, clip_seconds=2.0) for clips in (5, 5, 4)]
    answers = parts.decode_config().decode(model(batch), timelines, ["q"] * 3)
    assert [len(answer.saliency) for answer in answers] == [5, 5, 4]
    assert all(answer.moments for answer in answers)


@pytest.mark.parametrize("head", ["sdst", "points"])
def test_other_heads_read_clips_and_sentences(head: str) -> None:
    """Check that padding changes nothing, and that another sentence changes the answer."""
    model, batch = tiny_model(head=head, mode="frozen").eval(), tiny_batch()
    plain, padded = model(batch), model(tiny_batch(padding=2))
    name = "spans_KBM2" if head == "sdst" else "video_BTF"
    before, after = getattr(plain, name), getattr(padded, name)
    torch.testing.assert_close(after[:, :, : before.shape[2]] if head == "sdst" else after[:, :6], before)
    other = getattr(model(replace(batch, sentences_BE=-batch.sentences_BE)), name)
    assert not torch.allclose(other, before, atol=1e-4)


# the golden step -----------------------------------------------------------------------------------------------------

GOLDEN = {
    "boundary": 1.309857,
    "iou_class": 0.702487,
    "iou": 0.072452,
    "offset": 0.212771,
    "total": 2.949637,
    "norm": 0.660523,
    "parameters": 329.945221,
}


def golden_step() -> dict[str, float]:
    """Return losses and gradient norm of one step at tiny width, and the sum of the trained parameters after it."""
    model, batch = tiny_model(), tiny_batch()
    for module in (model.inner, model.outer, model.head):
        draw(module, seed=7, scale=0.2, keep=0.0)  # independent of the way in which PyTorch initialises layers
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-2, eps=1e-3)
    by_name = scada_losses(model(batch), batch, ScadaLossConfig())
    by_name["total"].backward()
    norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimiser.step()
    after = sum(p.detach().double().abs().sum().item() for p in trained)
    return {**{k: v.item() for k, v in by_name.items()}, "norm": float(norm), "parameters": after}


def test_golden_step() -> None:
    """Check that one training step gives the stored numbers.

    If a change is meant to move these numbers, renew them: run ``python tests/models/test_scada.py``, paste the dict
    that it prints over GOLDEN, and say in the commit why they moved.
    """
    assert golden_step() == pytest.approx(GOLDEN, rel=1e-4)


if __name__ == "__main__":
    print("GOLDEN =", {k: round(v, 6) for k, v in golden_step().items()})
