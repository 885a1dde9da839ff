"""Measure the error of features in bfloat16 and float16 against float32, at each level, for video and text.

    python benchmarks/precision.py                                      # random weights at the published widths
    python benchmarks/precision.py --blocks 40                          # all blocks of InternVideo2-1B instead of 4
    python benchmarks/precision.py --golden DIR                         # also the tiny models of the reference arrays
    python benchmarks/precision.py --answers data/shapes/val            # also the effect of such errors on answers

The error is the length of the difference divided by the length of the float32 features, over all vectors of a level.
"stored" is the error of float32 features stored in float16. The weights are random, because the released ones were not
available; the layer scale of InternVideo2 is 1, so that each block counts fully.

--answers takes a folder of the shapes world with its features (``sidelight extract``). The script adds random errors of
each size to the features and evaluates the shipped model on them.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sidelight.backbones.clip.convert import convert_clip
from sidelight.backbones.clip.model import CLIPBackbone
from sidelight.backbones.internvideo2.bert import our_name
from sidelight.backbones.internvideo2.config import SIZES, BertConfig, InternVideo2Config, VideoConfig
from sidelight.backbones.internvideo2.model import InternVideo2
from sidelight.data.annotations import read_annotations
from sidelight.features.store import FeatureStore, HalfFeatures, VideoFeatures
from sidelight.metrics.evaluate import evaluate_submissions
from sidelight.training.checkpoint import Checkpoint
from sidelight.training.dataset import GroundingDataset
from sidelight.training.predict import predict

LEVELS = 4
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
Levels = list[Tensor]
Both = tuple[Levels, Levels]


def error(features: Sequence[Tensor], reference: Sequence[Tensor]) -> list[float]:
    """Return the relative error of each level."""
    pairs = zip(features, reference, strict=True)
    return [float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs]


def report(title: str, features: Callable[[torch.dtype], Both]) -> None:
    """Print a table of errors with a row for each level; columns are video and text in each type."""
    full = features(torch.float32)
    rows: dict[str, tuple[list[float], list[float]]] = {}
    for name, dtype in HALVES.items():
        halves = features(dtype)
        rows[name] = (error(halves[0], full[0]), error(halves[1], full[1]))
    stored = tuple([x.half() for x in side] for side in full)
    rows["stored"] = (error(stored[0], full[0]), error(stored[1], full[1]))
    print(f"\n{title}")
    sides = [f"{side} {name}" for side in ("video", "text") for name in rows]
    print(f"{'level':<8}" + "".join(f"{name:>14}" for name in sides))
    for level in range(LEVELS):
        values = [rows[name][side][level] for side in (0, 1) for name in rows]
        print(f"{level - LEVELS:<8}" + "".join(f"{value:>14.1e}" for value in values))


# InternVideo2 ------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def internvideo2(model: InternVideo2, pixels_CF3SS: Tensor, ids_BL: Tensor, dtype: torch.dtype) -> Both:
    """Return the last video levels after the frozen pool, and the last text levels."""
    model = model.to(dtype)
    tower = model.vision_encoder
    video = [tower.clip_projector(x) for x in list(tower.layers(pixels_CF3SS.to(dtype)))[-LEVELS:]]
    return video, list(model.text_encoder.layers(ids_BL))[-LEVELS:]


def fill(model: nn.Module) -> nn.Module:
    """Fill a model with random weights that keep the size of values from layer to layer."""
    for name, parameter in model.named_parameters():
        if name.endswith("gamma") or "norm" in name.split(".")[-2:][0]:
            nn.init.ones_(parameter) if not name.endswith("bias") else nn.init.zeros_(parameter)
        elif parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model.eval()


def wide_internvideo2(blocks: int) -> None:
    video = VideoConfig(width=1408, depth=blocks, heads=16, hidden=6144, resolution=112)
    assert (video.width, video.heads, video.hidden) == (SIZES["1b"].width, SIZES["1b"].heads, SIZES["1b"].hidden)
    config = InternVideo2Config(video=video, text=BertConfig(vocabulary=1000, depth=LEVELS))
    torch.manual_seed(0)
    model = fill(InternVideo2(config))
    pixels, ids = torch.randn(2, 4, 3, 112, 112), torch.randint(0, 1000, (4, 16))
    report(
        f"InternVideo2-1B's widths (1408 and 1024), {blocks} blocks and 4 layers, random, 112 x 112, attention pool",
        lambda dtype: internvideo2(copy.deepcopy(model), pixels, ids, dtype),
    )


def tiny_internvideo2(golden: Path) -> None:
    vision = load_file(golden / "vision" / "weights.safetensors")
    text = load_file(golden / "text" / "weights.safetensors")
    sizes = {"hidden": 349, "resolution": 56, "pool_width": 32, "pool_heads": 4, "activation": "gelu"}
    config = InternVideo2Config(
        video=VideoConfig(width=80, depth=6, heads=4, **sizes),
        text=BertConfig(vocabulary=120, width=64, depth=4, heads=4, hidden=128, positions=40),
    )
    renamed = {f"text_encoder.{our_name(n.removeprefix('text_encoder.bert.'))}": t for n, t in text.items()}
    weights = {f"vision_encoder.{name}": tensor for name, tensor in vision.items()} | renamed
    with np.load(golden / "vision" / "inputs.npz") as arrays:
        pixels = torch.from_numpy(arrays["video"]).transpose(1, 2)
    with np.load(golden / "text" / "inputs.npz") as arrays:
        ids = torch.from_numpy(arrays["input_ids"])[:1]

    def features(dtype: torch.dtype) -> Both:
        model = InternVideo2(config)
        names = model.state_dict().keys()
        model.load_state_dict({name: t for name, t in weights.items() if name in names}, strict=False)
        return internvideo2(model.eval(), pixels, ids, dtype)

    report("tiny InternVideo2 of the reference arrays (80 and 64 wide), attention pool", features)


# CLIP --------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def clip(folder: Path, pixels_N3SS: Tensor, ids_BL: Tensor, dtype: torch.dtype) -> Both:
    """Return the last levels of video and text, with all tokens."""
    name = str(dtype).removeprefix("torch.")
    backbone = CLIPBackbone(weights=folder, levels=LEVELS, pooling="tokens", dtype=name)  # type: ignore[arg-type]  # a str, one of DTYPES
    return list(backbone.video(pixels_N3SS.to(dtype))), list(backbone.text(ids_BL))


def wide_clip() -> None:
    import transformers

    with tempfile.TemporaryDirectory() as place:
        torch.manual_seed(0)
        transformers.utils.logging.disable_progress_bar()
        transformers.CLIPModel(transformers.CLIPConfig()).save_pretrained(place)  # the default sizes are ViT-B/32's
        pixels, ids = torch.randn(8, 3, 224, 224), torch.randint(0, 49000, (4, 16))
        report(
            "CLIP ViT-B/32's sizes (768 and 512, 12 layers), random, every token",
            lambda dtype: clip(Path(place), pixels, ids, dtype),
        )


def tiny_clip(golden: Path) -> None:
    with tempfile.TemporaryDirectory() as place, np.load(golden / "inputs.npz") as arrays:
        pixels, ids = torch.from_numpy(arrays["pixel_values"]), torch.from_numpy(arrays["input_ids"])
        folder = convert_clip(golden / "weights_openai.safetensors", Path(place) / "clip", heads=(4, 4))
        report("tiny CLIP of the reference arrays, every token", lambda dtype: clip(folder, pixels, ids, dtype))


# answers -----------------------------------------------------------------------------------------------------------


def answers(world: Path) -> None:
    """Print the metrics of the shipped model on features with random errors of each size."""
    store = FeatureStore(world / "features")
    rows = [a for a in read_annotations(world / "annotations.jsonl") if a.relevant_windows]
    model = Checkpoint.from_pretrained("shapes")
    shown = ("MR-full-R1@0.5", "MR-full-R1@0.7", "MR-full-mAP", "HL-min-VeryGood-Hit1")
    print(f"\nthe shipped model on {len(rows)} queries whose features have a random error (synthetic videos)")
    print(f"{'error':<10}" + "".join(f"{name:>22}" for name in shown))
    for size in (0.0, 1e-3, 1e-2, 3e-2, 1e-1):
        with tempfile.TemporaryDirectory() as place:
            noisy = FeatureStore.create(Path(place) / "store", store.spec)
            rng = np.random.default_rng(0)

            def changed(values: HalfFeatures, size: float = size, rng: np.random.Generator = rng) -> HalfFeatures:
                wide = values.astype(np.float32)
                lengths = np.linalg.norm(wide, axis=-1, keepdims=True) / wide.shape[-1] ** 0.5
                return (wide + size * lengths * rng.standard_normal(wide.shape)).astype(np.float16)

            for vid in dict.fromkeys(a.vid for a in rows):
                video = store.video(vid)
                noisy.put_video(vid, VideoFeatures(video_KTD=changed(video.video_KTD), timeline=video.timeline))
            noisy.put_queries({q: changed(x) for q, x in store.queries(a.query for a in rows).items()})
            predictions = predict(
                model.model, GroundingDataset(rows, noisy), model.decode, window_clips=model.window_clips
            )
            brief = evaluate_submissions(predictions, rows)["brief"]
        print(f"{size:<10g}" + "".join(f"{brief[name]:>22.2f}" for name in shown))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--golden", type=Path, metavar="DIR", help="folder with internvideo2/ and clip/")
    parser.add_argument(
        "--blocks", type=int, default=4, help="how many of InternVideo2's 40 blocks; all 40 need 10 GB of memory"
    )
    parser.add_argument("--answers", type=Path, metavar="DIR", help="annotations.jsonl and features/ of a shapes world")
    args = parser.parse_args()
    if args.golden:
        tiny_internvideo2(args.golden / "internvideo2")
        tiny_clip(args.golden / "clip")
    wide_internvideo2(args.blocks)
    wide_clip()
    if args.answers:
        answers(args.answers)


if __name__ == "__main__":
    main()
