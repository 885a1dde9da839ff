"""UniVTG against the published model: each array of ``tests/data/golden/univtg`` (random weights, CPU, float32).

The arrays were made by running github.com/showlab/UniVTG, commit 32659ac, as it is, on a tiny model. Tolerances, of the
largest absolute difference: 1e-5 for tensors and losses; 2e-4 for windows, which are rounded to four decimals; for
gradients 1e-4 of their tensor's largest value. ``pytest -s`` prints a table of the largest differences.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sidelight.core import spans
from sidelight.core.batch import Batch, Targets
from sidelight.core.timeline import Timeline
from sidelight.data.annotations import Annotation
from sidelight.data.labels import bind
from sidelight.models.decode.univtg import UniVTGDecodeConfig, read_predictions, suppress, windows
from sidelight.models.losses.univtg import UniVTGLossConfig, assign_clips, univtg_losses
from sidelight.models.univtg import UniVTG, UniVTGConfig, UniVTGPredictions, from_published, published_shapes

DATA = Path(__file__).resolve().parents[1] / "data" / "golden" / "univtg"
TOLERANCE, WINDOW, GRADIENT = 1e-5, 2e-4, 1e-4
INPUTS, OUTPUTS = dict(np.load(DATA / "inputs.npz")), dict(np.load(DATA / "outputs.npz"))
DECODED = json.loads((DATA / "decoded.json").read_text())
WEIGHTS = load_file(DATA / "weights.safetensors")
CONFIG = UniVTGConfig(video_dim=16, text_dim=12, hidden=32, heads=8, layers=3, ffn=48, padding="exact")
TIMELINES = [
    Timeline(duration=float(seconds), clip_seconds=2.0, clips=int(clips))
    for seconds, clips in zip(INPUTS["duration"], INPUTS["lengths_vid"], strict=True)
]
WINDOWS = {
    "curve": (((4, 12),), ((0, 4), (8, 12)), ((10, 24),)),
    "interval": (((4.2, 5.1),), ((3, 9.5),), ((10, 24.7),)),
}
PUBLISHED_LOSS = {
    "l1": "loss_b",
    "giou": "loss_g",
    "class": "loss_f",
    "alignment_batch": "loss_s_inter",
    "saliency": "loss_s_intra",
    "total": "weighted_total",
}
TRULY_ZERO = ".attention.key.bias"
"""Parameters without effect: their published gradient is rounding noise."""
DIFFERENCES: dict[str, float] = defaultdict(float)


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """Print the largest differences once all tests have run."""
    yield
    print(f"\n{'golden array':<44}{'largest difference':>18}")
    for name, difference in DIFFERENCES.items():
        print(f"{name:<44}{difference:>18.1e}")


def close(name: str, ours: Any, golden: Any, tolerance: float = TOLERANCE, scale: float = 1.0) -> None:
    """Compare two arrays, and note the difference for the table."""
    values = np.asarray(ours.detach() if isinstance(ours, Tensor) else ours, dtype=np.float64)
    expected = np.asarray(golden, dtype=np.float64)
    assert values.shape == expected.shape, (name, values.shape, expected.shape)
    difference = float(np.abs(values - expected).max()) / scale if values.size else 0.0
    DIFFERENCES[name] = max(DIFFERENCES[name], difference)
    assert difference <= tolerance, f"{name}: difference {difference:.1e}, at most {tolerance:.0e}"


def unit(rows: Any) -> Tensor:
    """Divide each row by its length, as the published loader does (README of the arrays, section 2)."""
    return torch.tensor(rows / (np.linalg.norm(rows, axis=-1, keepdims=True) + 1e-5))


def batch_of(samples: list[int], targets: Targets | None = None) -> Batch:
    """Return the golden inputs from the raw features; padding is garbage, which the model must not need as zeros."""
    parts: list[Tensor] = []
    for kind, garbage in (("vid", 7.0), ("txt", -9.0)):
        rows = [unit(INPUTS[f"raw_{kind}_{i}"]) for i in samples]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=garbage)
        lengths = torch.tensor([len(row) for row in rows])
        parts += [padded[None], torch.arange(padded.shape[1]) < lengths.unsqueeze(1)]
    return Batch(
        video_KBTD=parts[0], video_mask_BT=parts[1], text_KBLD=parts[2], text_mask_BL=parts[3], targets=targets
    )


def targets_of(kind: str) -> Targets:
    """Return the golden targets in our form: (center, width) in units of the extent."""
    size, columns = 3, max(map(len, WINDOWS[kind]))
    spans_BG2, real_BG = torch.zeros(size, columns, 2), torch.zeros(size, columns, dtype=torch.bool)
    for b, rows in enumerate(WINDOWS[kind]):
        unit_spans = np.asarray(rows, dtype=np.float64) / (2 * float(INPUTS["lengths_vid"][b]))
        spans_BG2[b, : len(rows)] = torch.tensor(spans.se_to_cw(unit_spans)).float()
        real_BG[b, : len(rows)] = True
    return Targets(
        spans_BG2=spans_BG2,
        spans_mask_BG=real_BG,
        saliency_BT=torch.tensor(INPUTS[f"{kind}.saliency_scores"]),
        positive_B=torch.tensor(INPUTS[f"{kind}.saliency_pos_labels"][:, 0]),
    )


def model_of(**changes: Any) -> UniVTG:
    model = UniVTG(replace(CONFIG, **changes)).eval()
    model.load_state_dict(from_published(WEIGHTS))
    return model


def run(samples: list[int], **changes: Any) -> tuple[UniVTGPredictions, dict[str, Tensor]]:
    """Return the predictions, and what the published modules returned, by the names of the golden arrays."""
    model, batch = model_of(**changes), batch_of(samples)
    seen: dict[str, Tensor] = {}

    def keep(name: str, module: Any, *, inputs: bool = False) -> None:
        def hook(_: nn.Module, given: tuple[Tensor, ...], returned: Tensor) -> None:
            seen[name] = given[0] if inputs else returned

        module.register_forward_hook(hook)

    for side, input_map in (("vid", model.video_map), ("txt", model.text_map)):
        for name, place in (("0.LayerNorm", 0), ("0", 3), ("1.LayerNorm", 4), ("1", 6)):
            keep(f"{side}_proj.{name}", input_map.layers[place])
    keep("src", model.encoder[0], inputs=True)
    for k, layer in enumerate(model.encoder):
        keep(f"layer{k}.self_attn", layer.attention)
        keep(f"layer{k}.norm1", layer.attention_norm)
        keep(f"layer{k}.linear1", layer.expand)
        keep(f"layer{k}.out", layer)
        keep(f"layer{k}.in", layer, inputs=True)
    for name, head in (("class", model.class_head), ("span", model.boundary_head)):
        for i, convolution in enumerate(head.layers):
            keep(f"{name}_embed.{i}", convolution)
    with torch.no_grad():
        predictions = model(batch)
        for name in [name for name in seen if "_embed" in name]:
            seen[name] = seen[name].transpose(1, 2)
        seen["pos_vid"] = model.code(batch.video_mask_BT)
        code_BSF = torch.cat([seen["pos_vid"], torch.zeros(*batch.text_mask_BL.shape, 32)], 1)
        mask_BS = torch.cat([batch.video_mask_BT, batch.text_mask_BL], 1)
        for k, layer in enumerate(model.encoder):
            x, attention = seen.pop(f"layer{k}.in") + code_BSF, cast(Any, layer).attention
            queries, keys = (p(x).unflatten(-1, (8, -1)).transpose(1, 2) for p in (attention.query, attention.key))
            scores = (queries @ keys.mT / 2.0).masked_fill(~mask_BS[:, None, None], -torch.inf)
            seen[f"layer{k}.self_attn.attn_mean"] = scores.softmax(-1).mean(1)
        seen["txt_typed"] = model.project(batch)[1]
    seen |= {
        "pos": code_BSF,
        "key_padding_mask": ~mask_BS,
        "memory": seen["layer2.out"],
        "pred_logits": predictions.logits_BT.sigmoid().unsqueeze(-1),
        "pred_spans": predictions.distances_BT2 * torch.tensor([-1, 1]),
        "src_vid_mask": predictions.video_mask_BT,
        "vid_mem_proj": predictions.video_BTF,
        "txt_mem_proj": predictions.text_BF.unsqueeze(1),
        "saliency_scores": predictions.cosine_BT() + (predictions.video_mask_BT.float() + 1e-45).log(),
    }
    return predictions, seen


def test_a_padded_batch() -> None:
    """Compare every module's output, at padded positions too."""
    _, seen = run([0, 1, 2])
    names = [name.removeprefix("batch.") for name in OUTPUTS if name.startswith("batch.")]
    assert len(names) > 40
    for name in names:
        close(f"batch.{name}", seen[name], OUTPUTS[f"batch.{name}"])


@pytest.mark.parametrize("i", range(3))
def test_a_sample_alone(i: int) -> None:
    """Compare a sample without padding, as the published demo reads it."""
    _, seen = run([i], padding="independent")
    names = [name.removeprefix(f"single{i}.") for name in OUTPUTS if name.startswith(f"single{i}.")]
    assert len(names) == 9
    for name in names:
        close(f"single{i}.{name}", seen[name], OUTPUTS[f"single{i}.{name}"])


def test_padding_changes_nothing_by_default() -> None:
    together, _ = run([0, 1, 2], padding="independent")
    for i, clips in enumerate(INPUTS["lengths_vid"]):
        for name, ours in (
            ("pred_logits", together.logits_BT.sigmoid().unsqueeze(-1)),
            ("pred_spans", together.distances_BT2 * torch.tensor([-1, 1])),
            ("vid_mem_proj", together.video_BTF),
        ):
            close(f"single{i}.{name}", ours[i : i + 1, :clips], OUTPUTS[f"single{i}.{name}"])
        close(
            f"single{i}.saliency_scores", together.cosine_BT()[i : i + 1, :clips], OUTPUTS[f"single{i}.saliency_scores"]
        )


def test_inputs() -> None:
    batch, model = batch_of([0, 1, 2]), model_of()
    anchors_BT, ends_BT2 = model.places(batch.video_mask_BT)
    mask_BT, mask_BL = batch.video_mask_BT, batch.text_mask_BL
    video = torch.cat([batch.video_KBTD[0], ends_BT2], -1) * mask_BT.unsqueeze(-1)
    close("src_vid", video, INPUTS["src_vid"])
    close("src_txt", batch.text_KBLD[0] * mask_BL.unsqueeze(-1), INPUTS["src_txt"])
    close("src_vid_mask", mask_BT, INPUTS["src_vid_mask"])
    close("src_txt_mask", mask_BL, INPUTS["src_txt_mask"])
    close("timestamp", anchors_BT.unsqueeze(-1).expand(-1, -1, 2), INPUTS["timestamp"])
    close("timestamp_mask", mask_BT, INPUTS["timestamp_mask"])
    assert INPUTS["clip_length"] == 2 and INPUTS["lengths_txt"].tolist() == mask_BL.sum(1).tolist()


# targets and losses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["curve", "interval"])
def test_clips_of_windows(kind: str) -> None:
    targets, batch = targets_of(kind), batch_of([0, 1, 2])
    anchors_BT, _ = model_of().places(batch.video_mask_BT)
    inside_BT, goal_BT2 = assign_clips(anchors_BT, batch.video_mask_BT, targets)
    close(f"{kind}.timestamp_window", inside_BT, INPUTS[f"{kind}.timestamp_window"])
    # Clips outside have no goal. In the sample whose window contains no clip, the published goal fills all rows.
    golden = INPUTS[f"{kind}.span_labels_nn"] * INPUTS[f"{kind}.timestamp_window"][..., None]
    close(f"{kind}.span_labels_nn", goal_BT2, golden)
    for b in range(3):
        own = targets.spans_BG2[b][targets.spans_mask_BG[b]]
        close(f"{kind}.span_labels_cxw.{b}", own, INPUTS[f"{kind}.span_labels_cxw.{b}"])


@pytest.mark.parametrize("kind", ["curve", "interval"])
def test_labels_from_annotations(kind: str) -> None:
    """Build the targets from rows of a file. The published positive clip is random; it must be one of ours."""
    for b, (timeline, rows) in enumerate(zip(TIMELINES, WINDOWS[kind], strict=True)):
        golden = INPUTS[f"{kind}.saliency_scores"][b, : timeline.num_clips]
        rated: dict[str, Any] = {}
        if kind == "curve":  # three raters whose mean is the golden score
            clips = np.flatnonzero(golden).tolist()
            sums = [round(3 * float(golden[clip])) for clip in clips]
            scores = tuple((s // 3, (s + 1) // 3, (s + 2) // 3) for s in sums)
            rated = {"relevant_clip_ids": tuple(clips), "saliency_scores": scores}
        annotation = Annotation(qid=b, query="q", vid="v", duration=timeline.extent, relevant_windows=rows, **rated)
        labels = bind(annotation, timeline, "univtg")
        close(f"{kind}.saliency_scores", labels.saliency_T, golden)
        assert INPUTS[f"{kind}.saliency_pos_labels"][b, 0] in labels.positives
        assert labels.windows_G2.tolist() == [list(map(float, row)) for row in rows]


@pytest.mark.parametrize("kind", ["curve", "interval"])
def test_losses(kind: str) -> None:
    batch = batch_of([0, 1, 2], targets_of(kind))
    losses = univtg_losses(model_of()(batch), batch, UniVTGLossConfig())
    assert losses.keys() == PUBLISHED_LOSS.keys()
    for name, published in PUBLISHED_LOSS.items():
        close(f"loss.{kind}.{published}", losses[name], OUTPUTS[f"loss.{kind}.{published}"])


def test_gradients() -> None:
    model, batch = model_of(), batch_of([0, 1, 2], targets_of("curve"))
    univtg_losses(model(batch), batch, UniVTGLossConfig())["total"].backward()
    golden = {name.removeprefix("grad.curve."): grad for name, grad in OUTPUTS.items() if name.startswith("grad.")}
    assert len(golden) == 66 == len(WEIGHTS) - 3
    parameters = dict(model.named_parameters())
    scales = {name: max(float(np.abs(grad).max()), 1e-6) for name, grad in golden.items()}
    for name, grad in golden.items():
        for ours, expected in from_published({name: torch.tensor(grad)}).items():
            gradient = parameters.pop(ours).grad
            if ours.endswith(TRULY_ZERO):
                assert gradient is not None and gradient.abs().max() < 1e-6 and expected.abs().max() < 1e-6
            else:
                close(f"grad.curve.{name}", gradient, expected, GRADIENT, scales[name])
    assert not parameters


# from outputs to windows -------------------------------------------------------------------------------------------

EXACT = UniVTGDecodeConfig(unit="duration", max_moments=None, nms_threshold=None, keep_all=True)
RUNS: dict[str, tuple[bool, UniVTGDecodeConfig, float]] = {
    "mr_batch3_round": (True, replace(EXACT, round_to_clips=True), 0.7),
    "mr_batch3_noround": (True, EXACT, 0.7),
    "mr_single_round": (False, replace(EXACT, round_to_clips=True), 0.7),
    "mr_single_noround": (False, EXACT, 0.7),
    "mr_single_noround_evalmode_add": (False, replace(EXACT, saliency="sum"), 0.7),
    "mr_single_noround_nms05": (False, EXACT, 0.5),
}


@pytest.mark.parametrize("name", RUNS)
def test_published_evaluation(name: str) -> None:
    padded, config, threshold = RUNS[name]
    for b, golden in enumerate(DECODED[name]):
        predictions, _ = run([0, 1, 2]) if padded else run([b])
        row, clips = (b, int(INPUTS["lengths_vid"][b])) if padded else (0, int(INPUTS["lengths_vid"][b]))
        spans_BT2, scores_BT, cosine_BT = read_predictions(predictions)
        # The published lists of a padded batch hold windows of padded clips too, with score 0.
        scores_T = np.where(predictions.video_mask_BT[row].numpy(), scores_BT[row], 0)
        rows = windows(spans_BT2[row] * TIMELINES[b].duration, scores_T, TIMELINES[b], config)
        close(f"{name}.windows", rows, golden["windows"], WINDOW)
        kept = suppress(rows, replace(config, nms_threshold=threshold, max_moments=10))
        close(f"{name}.windows_nms", kept, golden["windows_nms"], WINDOW)
        # Published curves are float16; with eval_mode add, the score is added after that.
        half = cosine_BT[row, :clips].astype(np.float16).astype(np.float64)
        curve = half + scores_T[:clips] * (config.saliency == "sum")
        close(f"{name}.saliency_fp16", curve, golden["saliency_fp16"], 2**-11)


@pytest.mark.parametrize("name", [name for name, (padded, *_) in RUNS.items() if not padded])
def test_groundings_are_the_published_answers(name: str) -> None:
    """Compare groundings, which are cut to the video once more after rounding to clips."""
    _, config, threshold = RUNS[name]
    config = replace(config, nms_threshold=threshold, max_moments=10)
    predictions, _ = run([0, 1, 2], padding="independent")
    groundings = config.decode(predictions, TIMELINES, ["q"] * 3)
    for grounding, golden in zip(groundings, DECODED[name], strict=True):
        expected = np.asarray(golden["windows_nms"])
        expected[:, :2] = expected[:, :2].clip(max=grounding.timeline.duration)
        ours = [(m.start, m.end, m.score) for m in grounding.moments]
        close(f"{name}.grounding", ours, expected, WINDOW)
        close(f"{name}.curve", grounding.saliency, golden["saliency_fp16"], 1e-3)


def test_published_demo() -> None:
    for b, golden in enumerate(DECODED["demo"]):
        predictions, _ = run([b], padding="independent")
        spans_BT2, scores_BT, cosine_BT = read_predictions(predictions)
        seconds_T2, scores_T = spans_BT2[0] * TIMELINES[b].extent, scores_BT[0]
        close("demo.all_windows", seconds_T2, golden["all_windows"], WINDOW)
        close("demo.confidence", scores_T, golden["confidence"])
        close("demo.saliency", cosine_BT[0], golden["saliency"])
        order = np.argsort(-scores_T, kind="stable")
        assert order[:5].tolist() == golden["top5_idx"] and int(cosine_BT[0].argmax()) == golden["highlight_clip"]
        close("demo.top5_windows", seconds_T2[order[:5]], golden["top5_windows"], WINDOW)
        close("demo.top5_conf", scores_T[order[:5]], golden["top5_conf"])
        close("demo.top1", seconds_T2[order[0]], golden["top1"], WINDOW)
        # Our answer is the same window, cut to the video.
        (answer,) = UniVTGDecodeConfig().decode(predictions, TIMELINES[b : b + 1], ["q"])
        best = np.asarray(golden["top1"]).clip(0, TIMELINES[b].duration)
        close("demo.top1", (answer.moments[0].start, answer.moments[0].end), best, WINDOW)
        start, end = (int(max(value, 0)) for value in golden["top1"])
        shown = [f"{value // 3600:02d}:{value // 60 % 60:02d}:{value % 60:02d}" for value in (start, end)]
        assert f"interval is: {shown[0]} - {shown[1]}" in golden["text"]


# names and shapes --------------------------------------------------------------------------------------------------


def test_names_and_shapes() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in WEIGHTS.items()}
    assert published_shapes(CONFIG) == shapes
    omni = json.loads((DATA / "keys_omni.json").read_text())
    config = UniVTGConfig(video_dim=512, text_dim=512)
    assert published_shapes(config) == {name: tuple(shape) for name, shape in omni["keys"].items()}
    count = sum(math.prod(shape) for shape in published_shapes(config).values())
    assert count == omni["parameters"] == 40_964_103 + 77 * 1024  # the position embeddings of the query are left out
    ours = sum(p.numel() for p in UniVTG(CONFIG).parameters())
    assert ours == sum(math.prod(shape) for shape in shapes.values()) - 77 * 32


def test_no_golden_array_is_left_out() -> None:
    """Check that the files hold nothing but what the tests above compare; negative clips have no effect anywhere."""
    kinds = [f"{kind}.{name}" for kind in WINDOWS for name in PUBLISHED_LOSS.values()]
    known = ("batch.", "single0.", "single1.", "single2.", "grad.curve.", *(f"loss.{name}" for name in kinds))
    assert all(name.startswith(known) for name in OUTPUTS)
    compared = {"src_vid", "src_txt", "src_vid_mask", "src_txt_mask", "timestamp", "timestamp_mask", "clip_length"}
    compared |= {
        "lengths_vid",
        "lengths_txt",
        "duration",
        *(f"raw_{kind}_{i}" for kind in ("vid", "txt") for i in range(3)),
    }
    for kind in WINDOWS:
        compared |= {f"{kind}.span_labels_cxw.{i}" for i in range(3)}
        names = ("timestamp_window", "span_labels_nn", "saliency_scores", "saliency_pos_labels", "saliency_neg_labels")
        compared |= {f"{kind}.{name}" for name in names}
    assert INPUTS.keys() == compared and DECODED.keys() == {*RUNS, "demo", "settings"}
