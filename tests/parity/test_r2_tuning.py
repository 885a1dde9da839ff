"""R2-Tuning against the published model: every golden array of ``shared/golden/r2`` (nncore 0.4.4, CPU, float32).

``pytest -s`` prints a table of the largest differences. "relative" is the largest absolute difference divided by the
largest absolute value of the golden array.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sidelight.core import spans
from sidelight.core.batch import Batch, Targets
from sidelight.data.labels import bind_saliency, bind_windows
from sidelight.models import r2_tuning
from sidelight.models.decode.r2_tuning import R2DecodeConfig, point_windows, postprocess, saliency
from sidelight.models.losses.r2_tuning import R2LossConfig, assign_points, r2_losses
from sidelight.models.points import PointPredictions
from sidelight.models.r2_tuning import R2Tuning, R2TuningConfig, from_published, our_name

K, P, D_V, D_T = 4, 5, 48, 32
FORWARD, GRADIENT = 1e-5, 1e-4
CONFIG = R2TuningConfig(video_dim=D_V, text_dim=D_T, hidden=64, dropout=0.0, droppath=0.0, padding="exact")
HIGHLIGHTS = replace(CONFIG, strides=(1,), endpoint_features=False, boundary_head=False)
HIGHLIGHT_LOSSES = R2LossConfig(class_loss="bce", nce_directions=("row",))
PUBLISHED_LOSS = {
    "l1": "loss_reg",
    "class": "loss_cls",
    "saliency": "loss_sal",
    "alignment_batch": "loss_video_cal",
    "alignment_levels": "loss_layer_cal",
}
PUBLISHED_NMS = {"none": "none", "normal": "hard", "linear": "soft-linear", "gaussian": "soft-gaussian"}
TRULY_ZERO = ("adapter.v_map.bias", "adapter.tem.cross_att.k.bias", "adapter.tem.self_att.k.bias")
"""Parameters without effect: their published gradient is rounding noise."""

Golden = Mapping[str, Any]
DIFFERENCES: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """Print the largest differences once all tests have run."""
    yield
    for file, rows in DIFFERENCES.items():
        print(f"\n{file:<34}{'absolute':>12}{'relative':>12}")
        for name, (absolute, relative) in rows.items():
            print(f"  {name:<32}{absolute:>12.1e}{relative:>12.1e}")


def close(file: str, name: str, ours: Any, golden: Any, tolerance: float = FORWARD) -> None:
    """Compare two arrays, and note the difference for the table."""
    values = np.asarray(ours.detach() if isinstance(ours, Tensor) else ours, dtype=np.float64)
    expected = np.asarray(golden, dtype=np.float64)
    assert values.shape == expected.shape, (name, values.shape, expected.shape)
    if values.size == 0:
        return
    absolute = float(np.abs(values - expected).max())
    relative = absolute / max(float(np.abs(expected).max()), 1e-30) if absolute else 0.0
    before = DIFFERENCES[file].get(name, (0.0, 0.0))
    DIFFERENCES[file][name] = (max(before[0], absolute), max(before[1], relative))
    assert relative <= tolerance, f"{file}, {name}: relative difference {relative:.1e}, at most {tolerance:.0e}"


def load(folder: Path, name: str) -> Golden:
    with np.load(folder / f"{name}.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def tiny(goldens: Path) -> Path:
    return goldens / "r2" / "tiny"


@pytest.fixture(scope="module")
def highlights(goldens: Path) -> Path:
    return goldens / "r2" / "tiny_highlights"


def model_of(folder: Path, config: R2TuningConfig = CONFIG) -> R2Tuning:
    checkpoint = torch.load(folder / "checkpoint.pth", weights_only=True)
    model = R2Tuning(config)
    model.load_state_dict(from_published(checkpoint["state_dict"]))
    return model


def features(rows: Any, *inner: int) -> Tensor:
    """Turn features as cached, (T, K * ...), into (K, 1, T, ...)."""
    return torch.tensor(rows.astype(np.float32)).view(len(rows), K, *inner).transpose(0, 1).unsqueeze(1)


def inputs_of(arrays: Golden, samples: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return features and masks of the samples, padded with zeros to the longest sample."""
    videos = [features(arrays[f"video_{i}"], P, D_V) for i in samples]
    texts = [features(arrays[f"query_{i}"], D_T) for i in samples]
    inputs = []
    for parts in (videos, texts):
        longest = max(part.shape[2] for part in parts)
        padded = torch.zeros(K, len(parts), longest, *parts[0].shape[3:])
        mask = torch.zeros(len(parts), longest, dtype=torch.bool)
        for b, part in enumerate(parts):
            padded[:, b, : part.shape[2]] = part[:, 0]
            mask[b, : part.shape[2]] = True
        inputs += [padded, mask]
    return inputs[0], inputs[1], inputs[2], inputs[3]


def batched(video: Tensor, video_mask: Tensor, text: Tensor, text_mask: Tensor) -> Batch:
    return Batch(video_KBTD=video, video_mask_BT=video_mask, text_KBLD=text, text_mask_BL=text_mask)


def targets_of(arrays: Golden, samples: list[int], mask_BT: Tensor, positive: Any = None) -> Targets:
    """Convert the labels to the targets of our batches: (center, width) of the sample's own extent."""
    windows = [torch.tensor(arrays[f"boundary_{i}"]).double() * float(arrays["fps"]) for i in samples]
    size, columns = len(samples), max(len(w) for w in windows)
    spans_BG2, real_BG = torch.zeros(size, columns, 2), torch.zeros(size, columns, dtype=torch.bool)
    saliency_BT = torch.zeros(mask_BT.shape)
    for b, i in enumerate(samples):
        spans_BG2[b, : len(windows[b])] = spans.se_to_cw(windows[b] / mask_BT[b].sum()).float()
        real_BG[b, : len(windows[b])] = True
        curve = torch.tensor(arrays[f"saliency_{i}"])
        saliency_BT[b, : len(curve)] = curve
    if positive is None:
        positive = np.concatenate([arrays[f"pos_clip_{i}"] for i in samples])
    return Targets(
        spans_BG2=spans_BG2,
        spans_mask_BG=real_BG,
        saliency_BT=saliency_BT,
        positive_B=torch.tensor(np.asarray(positive).reshape(-1)),
    )


def weighted(losses: dict[str, Tensor], config: R2LossConfig) -> dict[str, Tensor]:
    """Return our losses as the published code reports them: weighted, by its names."""
    terms = {PUBLISHED_LOSS[n]: getattr(config, f"weight_{n}") * loss for n, loss in losses.items() if n != "total"}
    return terms | {"loss": losses["total"]}


def close_predictions(file: str, predictions: PointPredictions, golden: Golden) -> None:
    close(file, "out_class", predictions.logits_BN, golden["out_class"][..., 0])
    close(file, "out_coord", predictions.distances_BN2, golden["out_coord"])
    close(file, "video_emb", predictions.video_BTF, golden["video_emb"])
    close(file, "query_emb", predictions.text_BF, golden["query_emb"][:, 0])


@pytest.mark.parametrize("tokens_at_once", [2**13, 1], ids=["batch at once", "sample by sample"])
def test_forward(tiny: Path, tokens_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(r2_tuning.TOKENS_AT_ONCE, "cpu", tokens_at_once)
    golden, model = load(tiny, "a_forward"), model_of(tiny)
    outputs: dict[str, list[Tensor]] = defaultdict(list)
    block = model.block
    block.register_forward_hook(lambda _, __, out: outputs["block"].extend(out))
    block.temporal.register_forward_hook(lambda _, args, __: outputs["in"].append(args[0]))
    block.temporal.register_forward_hook(lambda _, args, __: outputs["code"].append(args[1]))
    block.temporal.register_forward_hook(lambda _, __, out: outputs["out"].append(out))
    for level in model.pyramid:
        level.register_forward_hook(lambda _, __, out: outputs["pyramid"].append(out))
    predictions = model(batched(*inputs_of(load(tiny, "inputs"), [0, 1, 2])))
    close_predictions("a_forward", predictions, golden)
    close("a_forward", "adapter_video", outputs["block"][0], golden["adapter_video"])
    close("a_forward", "adapter_query", outputs["block"][2][-1], golden["adapter_query"])
    close("a_forward", "tem_in", torch.stack(outputs["in"]), golden["tem_in"])
    close("a_forward", "tem_out", torch.stack(outputs["out"]), golden["tem_out"])
    close("a_forward", "pos", outputs["code"][0][:1], golden["pos"])
    close("a_forward", "coll_v", predictions.level_video_KBTF, golden["coll_v"])
    close("a_forward", "coll_q", predictions.level_text_KBF, golden["coll_q"][:, :, 0])
    assert len(outputs["pyramid"]) == 4
    for i, output in enumerate(outputs["pyramid"]):
        close("a_forward", "pyramid", output, golden[f"pyramid_{i}"])
    masks = np.concatenate([golden[f"pyramid_mask_{i}"] for i in range(4)], 1)
    np.testing.assert_array_equal(predictions.point_mask_BN, masks.astype(bool))
    np.testing.assert_array_equal(predictions.points_N4, golden["point"])
    np.testing.assert_array_equal(predictions.video_mask_BT, golden["video_msk"].astype(bool))


@pytest.mark.parametrize("padding", ["exact", "independent"])
@pytest.mark.parametrize("sample", [0, 1, 2])
def test_single_samples(tiny: Path, sample: int, padding: Any) -> None:
    """Check a sample alone: it has no padding, so both settings must agree with the published code."""
    golden = {k.removesuffix(f"_{sample}"): v for k, v in load(tiny, "b_single").items() if k.endswith(f"_{sample}")}
    arrays, model = load(tiny, "inputs"), model_of(tiny, replace(CONFIG, padding=padding))
    predictions = model(batched(*inputs_of(arrays, [sample])))
    close_predictions("b_single", predictions, golden)
    np.testing.assert_array_equal(predictions.points_N4, golden["point"])
    close("b_single", "boundary", point_windows(predictions, 0, 2.0), golden["boundary"])
    close("b_single", "saliency", saliency(predictions)[0], golden["saliency"])
    losses = weighted(
        r2_losses(predictions, targets_of(arrays, [sample], predictions.video_mask_BT), R2LossConfig()), R2LossConfig()
    )
    for name in PUBLISHED_LOSS.values():
        close("b_single", name, losses[name], golden[name])


@pytest.mark.parametrize("padding", ["exact", "independent"])
def test_a_padded_batch_gives_what_samples_give_alone(tiny: Path, padding: Any) -> None:
    """Check the default padding; the published padding (exact) differs by far more than rounding."""
    golden, model = load(tiny, "b_single"), model_of(tiny, replace(CONFIG, padding=padding))
    predictions = model(batched(*inputs_of(load(tiny, "inputs"), [0, 1, 2])))
    gaps = []
    for b in range(3):
        real = predictions.point_mask_BN[b] if padding == "independent" else own_points(predictions, b)
        expected = golden[f"out_class_{b}"][0, :, 0]
        gaps.append(float(np.abs(predictions.logits_BN[b, real].detach().numpy() - expected).max()))
    if padding == "independent":
        assert max(gaps) < 1e-5
    else:
        assert gaps[1] < 1e-5 and max(gaps) > 1e-2  # sample 1 is the longest, so it has no padding


def own_points(predictions: PointPredictions, b: int) -> Tensor:
    """Return True for the points that sample b would have alone."""
    ends = predictions.points_N4[:, 0] + predictions.points_N4[:, 3]
    return ends <= predictions.video_mask_BT[b].sum()


def test_training_step(tiny: Path) -> None:
    golden, arrays, model = load(tiny, "c_train"), load(tiny, "inputs"), model_of(tiny)
    predictions = model(batched(*inputs_of(arrays, [0, 1, 2])))
    targets = targets_of(arrays, [0, 1, 2], predictions.video_mask_BT)
    np.testing.assert_array_equal(targets.saliency_BT, arrays["batch_saliency"])
    windows = torch.tensor(arrays["batch_boundary"]).float() * float(arrays["fps"])
    goal, distances = assign_points(predictions.points_N4, windows.nan_to_num(0, 0, 0), windows.isfinite().all(-1))
    np.testing.assert_array_equal(goal, golden["cls_tgt"])
    np.testing.assert_array_equal(distances, golden["reg_tgt"])
    losses = weighted(r2_losses(predictions, targets, R2LossConfig()), R2LossConfig())
    for name in (*PUBLISHED_LOSS.values(), "loss"):
        close("c_train", name, losses[name], golden[name])
        close("c_train", name + "_fp64", losses[name], golden[name + "_fp64"])
    losses["loss"].backward()
    parameters = dict(model.named_parameters())
    assert len(parameters) == len(golden["grad_names"])
    norms = []
    for name, norm in zip(golden["grad_names"], golden["grad_norm_fp64"], strict=True):
        gradient = parameters[our_name(str(name))].grad
        assert gradient is not None
        norms.append(gradient.double().norm())
        if name in TRULY_ZERO:
            assert gradient.abs().max() < 1e-7, name
            continue
        close("c_train", "gradients", gradient, golden[f"grad/{name}"], GRADIENT)
        close("c_train", "gradient norms", norms[-1], norm, GRADIENT)
    close("c_train", "total gradient norm", torch.stack(norms).norm(), golden["grad_total_norm"], GRADIENT)


def test_where_the_published_gradients_are_nan(tiny: Path) -> None:
    """Check clip indices that are masked in other samples: the same losses, and finite gradients."""
    golden, arrays, model = load(tiny, "c_train"), load(tiny, "inputs"), model_of(tiny)
    assert golden["nan_case_num_nan_grads"] > 0
    predictions = model(batched(*inputs_of(arrays, [0, 1, 2])))
    targets = targets_of(arrays, [0, 1, 2], predictions.video_mask_BT, golden["nan_case_pos_clip"])
    losses = weighted(r2_losses(predictions, targets, R2LossConfig()), R2LossConfig())
    for name in (*PUBLISHED_LOSS.values(), "loss"):
        close("c_train", "nan_case_" + name, losses[name], golden["nan_case_" + name])
    losses["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("clips", [1, 2, 3, 5, 7, 8, 49, 103])
@pytest.mark.parametrize("padding", ["exact", "independent"])
def test_lengths(tiny: Path, clips: int, padding: Any) -> None:
    golden = load(tiny, "e_edges")
    arrays = {"video_0": golden[f"video_T{clips}"][0], "query_0": golden[f"query_T{clips}"][0]}
    model = model_of(tiny, replace(CONFIG, padding=padding)).eval()
    with torch.no_grad():
        predictions = model(batched(*inputs_of(arrays, [0])))
    close("e_edges", "boundary", point_windows(predictions, 0, 1.0), golden[f"boundary_T{clips}"])
    close("e_edges", "saliency", saliency(predictions)[0], golden[f"saliency_T{clips}"])


def test_trajectory(tiny: Path) -> None:
    """Train for eight steps, with warm-up, a drop of the learning rate, AdamW and clipping."""
    golden, arrays, model = load(tiny, "f_trajectory"), load(tiny, "inputs"), model_of(tiny)
    run = json.loads(str(golden["config_json"]))
    base, warmup = run["optimizer"]["lr"], run["warmup"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=base, weight_decay=run["optimizer"]["weight_decay"])
    per_epoch = len(golden["lr"]) // run["epochs"]
    batch = inputs_of(arrays, [0, 1, 2])
    for step in range(len(golden["lr"])):
        rate = base * 0.1 ** sum(step // per_epoch >= epoch for epoch in run["lr_schedule"]["step"])
        rate *= 1 - max(0.0, 1 - step / warmup["steps"]) * (1 - warmup["ratio"])
        close("f_trajectory", "lr", rate, golden["lr"][step], 1e-9)
        for group in optimizer.param_groups:
            group["lr"] = rate
        predictions = model(batched(*batch))
        losses = weighted(
            r2_losses(predictions, targets_of(arrays, [0, 1, 2], batch[1]), R2LossConfig()), R2LossConfig()
        )
        for name in (*PUBLISHED_LOSS.values(), "loss"):
            close("f_trajectory", name, losses[name], golden[name][step], 1e-4)
        optimizer.zero_grad()
        losses["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), run["grad_clip"]["max_norm"])
        close("f_trajectory", "grad_norm", norm, golden["grad_norm"][step], 1e-4)
        optimizer.step()
    parameters = dict(model.named_parameters())
    finals = {name.removeprefix("final/"): array for name, array in golden.items() if name.startswith("final/")}
    assert len(finals) == len(parameters)
    for name, array in finals.items():
        if name not in TRULY_ZERO:  # Adam turns their noise into steps of full size
            close("f_trajectory", "final parameters", parameters[our_name(name)], array, 1e-3)


def test_labels(tiny: Path) -> None:
    cases = json.loads((tiny / "bind_cases.json").read_text())
    arrays = load(tiny, "inputs")
    for i, line in enumerate((tiny / "annotations.jsonl").read_text().splitlines()):
        bound = {"boundary": arrays[f"boundary_{i}"], "saliency": arrays[f"saliency_{i}"], "pos_clip_candidates": None}
        cases.append({"label": json.loads(line), "num_frames": len(bound["saliency"]), "fps": 0.5, **bound})
    for case in cases:
        label, clips, clip_seconds = case["label"], case["num_frames"], 1 / case["fps"]
        windows = bind_windows(label["relevant_windows"], clips, clip_seconds)
        curve, positives = bind_saliency(
            windows, clips, clip_seconds, label.get("saliency_scores"), label.get("relevant_clip_ids")
        )
        close("bind_cases", "boundary", windows, case["boundary"], 1e-7)
        close("bind_cases", "saliency", curve, case["saliency"], 1e-7)
        assert case["pos_clip_candidates"] in (None, positives)


def close_post(file: str, key: str, raw: Any, duration: float, golden: Any, scores: bool = True) -> None:
    """Compare rows as sets: rows of equal score may have any order, and rows with a NaN score are skipped."""
    kind, unit, _ = key.split("__")
    size = unit.removeprefix("unit_")
    config = R2DecodeConfig(nms=PUBLISHED_NMS[kind], round_to=None if size == "None" else float(size))  # type: ignore[arg-type]
    ours = postprocess(raw, duration, config)
    assert ours.shape == golden.shape and np.isfinite(ours).all() and (np.diff(ours[:, 2]) <= 0).all(), key
    close(file, f"{kind}, windows", np.unique(ours[:, :2], axis=0), np.unique(golden[:, :2], axis=0), 1e-6)
    unmatched = list(range(len(ours)))
    for row in golden[np.isfinite(golden[:, 2])] if scores else ():
        nearest = unmatched.pop(int(np.abs(ours[unmatched] - row).max(1).argmin()))
        close(file, f"{kind}, scores", ours[nearest, 2] + 1, row[2] + 1, 1e-6)


def test_post_processing(tiny: Path) -> None:
    raw, arrays = load(tiny, "b_single"), load(tiny, "inputs")
    for key, golden in load(tiny, "d_post").items():
        sample = int(key.split("__")[-1])
        close_post("d_post", key, raw[f"boundary_{sample}"], float(arrays["durations"][sample]), golden)


def test_post_processing_of_difficult_windows(tiny: Path) -> None:
    """Post-process equal scores, equal windows, windows outside the video and windows without length."""
    arrays = load(tiny, "nms_stress")
    broken = set(arrays["keys_with_nan"].tolist())
    for key in (key for key in arrays if "__" in key):
        number = int(key.split("__")[-1])
        # In these two sets a NaN score takes the place of one of two equal scores, which changes the one that
        # suppresses the other.
        exchanged = key in broken and number in (3, 21)
        duration = float(arrays[f"duration_{number}"])
        close_post("nms_stress", key, arrays[f"in_{number}"], duration, arrays[key], scores=not exchanged)


def test_highlights(highlights: Path) -> None:
    """Check the model for TVSum and YouTube Highlights: one stride, no boundaries, cross-entropy with saliency."""
    golden, model = load(highlights, "hl"), model_of(highlights, HIGHLIGHTS)
    golden = {**golden, "fps": 1.0} | {f"boundary_{i}": np.zeros((0, 2)) for i in range(3)}
    for i in range(3):
        close("hl", "saliency labels", (golden[f"anno_{i}"].sum(1) - 20) / 80, golden[f"saliency_{i}"], 1e-6)
    batch = inputs_of(golden, [0, 1, 2])
    outputs: list[Tensor] = []
    model.block.register_forward_hook(lambda _, __, out: outputs.extend(out))
    predictions = model(batched(*batch))
    assert predictions.distances_BN2 is None
    close("hl", "train_adapter_video", outputs[0], golden["train_adapter_video"])
    close("hl", "train_adapter_query", outputs[2][-1], golden["train_adapter_query"])
    close("hl", "train_video_emb", predictions.video_BTF, golden["train_video_emb"])
    close("hl", "train_query_emb", predictions.text_BF, golden["train_query_emb"][:, 0])
    close("hl", "train_out_class", predictions.logits_BN, golden["train_out_class"][..., 0])
    losses = weighted(
        r2_losses(predictions, targets_of(golden, [0, 1, 2], batch[1]), HIGHLIGHT_LOSSES), HIGHLIGHT_LOSSES
    )
    for name, loss in losses.items():
        close("hl", "train_" + name, loss, golden["train_" + name])
    losses["loss"].backward()
    parameters = dict(model.named_parameters())
    for name, norm in zip(golden["grad_names"].tolist(), golden["grad_norm"], strict=True):
        if name == "coef":
            assert np.isnan(norm) and our_name(name) not in parameters  # not used without boundaries
        elif name not in TRULY_ZERO:
            gradient = parameters[our_name(name)].grad
            assert gradient is not None
            close("hl", "gradient norms", gradient.norm(), norm, GRADIENT)
    for padding in ("exact", "independent"):
        single = model_of(highlights, replace(HIGHLIGHTS, padding=padding)).eval()
        for i in range(3):
            alone = inputs_of(golden, [i])
            predictions = single(batched(*alone))
            close("hl", "val_saliency", saliency(predictions)[0], golden[f"val_saliency_{i}"])
            losses = weighted(
                r2_losses(predictions, targets_of(golden, [i], alone[1]), HIGHLIGHT_LOSSES), HIGHLIGHT_LOSSES
            )
            for name, loss in losses.items():
                if name != "loss":
                    expected = golden[f"val_{name}_{i}"]
                    close("hl", "val losses", loss + 1, expected + 1)  # with one sample, one of the losses is 0
