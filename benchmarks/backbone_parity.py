"""Compare each backbone at full size with the forward pass of the library that its model comes from.

    python benchmarks/backbone_parity.py                                    # the smallest size of each family
    python benchmarks/backbone_parity.py siglip2/b32-256 videoprism/lvt-base --precision float32

The weights are random, drawn as the library initialises them, so nothing is downloaded. They are written to a folder
and read back by the backbone, as anybody's weights are. For each model and precision, the script prints the largest
difference of

- the tokens of the last four levels of the video tower, in units of the largest value of the level;
- the joint embedding of a frame or clip, and of a sentence; both are unit vectors.

A model of B/32 needs 1.5 GB of disk and memory, and L/14 or So400m up to 5 GB.

Legend: C clips, F frames, S side in pixels, K levels, N frames or clips, P tokens, D width, E width of the joint space.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sidelight.backbones import load_backbone

LEVELS = 4
SENTENCE = "a dog runs over a bridge"
FRAMES = 4
"""Frames of a clip that VideoPrism reads; with 16, its training's number, it takes seven times as long."""
CLIP_SIZES = {  # width, layers, heads, patch, side of a frame; width, layers, heads of the text tower; joint width
    "b32": (768, 12, 12, 32, 224, 512, 12, 8, 512),
    "b16": (768, 12, 12, 16, 224, 512, 12, 8, 512),
    "l14": (1024, 24, 16, 14, 224, 768, 12, 12, 768),
    "l14-336": (1024, 24, 16, 14, 336, 768, 12, 12, 768),
}
SIGLIP2_SIZES = {  # width, layers, heads, hidden, patch, side of a frame; the first four of the text tower
    "b32-256": (768, 12, 12, 3072, 32, 256, 768, 12, 12, 3072),
    "b16-224": (768, 12, 12, 3072, 16, 224, 768, 12, 12, 3072),
    "b16-naflex": (768, 12, 12, 3072, 16, 256, 768, 12, 12, 3072),
    "l16-256": (1024, 24, 16, 4096, 16, 256, 1024, 24, 16, 4096),
    "so400m-14-224": (1152, 27, 16, 4304, 14, 224, 1152, 27, 16, 4304),
    "g-opt-16-256": (1536, 40, 16, 6144, 16, 256, 1152, 27, 16, 4304),
}
VIDEOPRISM_SIZES = {"lvt-base": (768, 12, 12, 3072), "lvt-large": (1024, 24, 16, 4096)}  # width, spatial, heads, hidden
OPEN_CLIP_SIZES = ("PE-Core-T-16-384", "PE-Core-S-16-384", "PE-Core-B-16", "PE-Core-L-14-336", "ViT-B-32", "EVA02-B-16")
SMALLEST = ("clip/b32", "siglip2/b32-256", "videoprism/lvt-base", "open-clip/PE-Core-T-16-384")

Outputs = tuple[Tensor, Tensor, Tensor]
"""Tokens of the last levels (K, N, P, D), embeddings of frames or clips (N, E), and embeddings of sentences (B, E)."""
Library = Callable[[Tensor, Tensor, Tensor, torch.dtype], Outputs]
"""From frames (C, F, S, S, 3), token ids and their mask to the library's own outputs."""


def write_clip(size: str, folder: Path) -> None:
    """Write a CLIP of OpenAI's size."""
    import transformers

    width, depth, heads, patch, side, text_width, text_depth, text_heads, joint = CLIP_SIZES[size]
    video = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": depth, "patch_size": patch}
    video |= {"num_attention_heads": heads, "image_size": side, "projection_dim": joint}
    text = {"hidden_size": text_width, "intermediate_size": 4 * text_width, "num_hidden_layers": text_depth}
    text |= {"num_attention_heads": text_heads, "projection_dim": joint, "eos_token_id": 49407}
    config = transformers.CLIPConfig(vision_config=video, text_config=text, projection_dim=joint)
    transformers.CLIPModel(config).save_pretrained(folder)


def write_siglip2(size: str, folder: Path) -> None:
    """Write a SigLIP 2 of Google's size."""
    import transformers

    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    values = SIGLIP2_SIZES[size]
    video: dict[str, Any] = {**dict(zip(names, values[:4], strict=True)), "patch_size": values[4]}
    text: dict[str, Any] = {**dict(zip(names, values[6:], strict=True)), "vocab_size": 256000, "pad_token_id": 0}
    text |= {"projection_size": values[0], "bos_token_id": 2, "eos_token_id": 1}
    naflex = size.endswith("naflex")
    kind = "Siglip2" if naflex else "Siglip"
    video |= {"num_patches": 256} if naflex else {"image_size": values[5]}
    config = getattr(transformers, f"{kind}Config")(vision_config=video, text_config=text)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)


def write_videoprism(size: str, folder: Path, frames: int = FRAMES) -> None:
    """Write a VideoPrism-LvT of Google's size that reads this many frames a clip."""
    import transformers

    width, spatial, heads, hidden = VIDEOPRISM_SIZES[size]
    tower = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": hidden}
    config = transformers.VideoPrismConfig(
        vision_config={**tower, "num_spatial_layers": spatial, "num_frames": frames}, text_config=tower
    )
    transformers.VideoPrismClipModel(config).save_pretrained(folder)


def write_open_clip(size: str, folder: Path) -> None:
    """Write a model of ``open_clip`` by the name of its configuration."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir()
    model = open_clip.create_model(size)
    config = {"model_cfg": open_clip.get_model_config(size), "preprocess_cfg": model.visual.preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors", {"format": "pt"})


def read_transformers(folder: Path, dtype: torch.dtype) -> Any:
    """Return the library's model in a precision."""
    import transformers

    return transformers.AutoModel.from_pretrained(folder, dtype=dtype).eval()


def pixels_of(frames_CFSS3: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Normalise frames by plain steps, (C, F, 3, S, S)."""
    scaled = (frames_CFSS3.float() / 255 - torch.tensor(mean)) / torch.tensor(std)
    return scaled.permute(0, 1, 4, 2, 3).to(dtype)


def library_of(family: str, folder: Path, mean: Sequence[float], std: Sequence[float]) -> Library:
    """Return the function that computes the library's own outputs."""

    def images(frames: Tensor, ids: Tensor, mask: Tensor, dtype: torch.dtype) -> Outputs:
        model, pixels = read_transformers(folder, dtype), pixels_of(frames, mean, std, dtype).flatten(0, 1)
        inputs = {"pixel_values": pixels}
        if model.config.model_type == "siglip2":
            from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

            patch = model.config.vision_config.patch_size
            rows = [torch.tensor(convert_image_to_patches(image.float().numpy(), patch)) for image in pixels]
            grid = pixels.shape[-1] // patch
            inputs = {"pixel_values": torch.stack(rows).to(dtype), "spatial_shapes": torch.tensor([[grid, grid]])}
            inputs["pixel_attention_mask"] = torch.ones(1, grid * grid, dtype=torch.long)
        output = model.vision_model(**inputs, output_hidden_states=True)
        video = model.get_image_features(**inputs).pooler_output
        text = model.get_text_features(input_ids=ids).pooler_output
        return torch.stack(output.hidden_states[-LEVELS:]), video, text

    def videos(frames: Tensor, ids: Tensor, mask: Tensor, dtype: torch.dtype) -> Outputs:
        model, pixels = read_transformers(folder, dtype), pixels_of(frames, mean, std, dtype)
        output = model.video_model(pixels)
        text = model.text_model(ids, attention_mask=mask).pooler_output
        # The library returns the last auxiliary level only, so that one level is compared.
        return output.last_hidden_state[None], output.pooler_output[:, 0], text

    def open_clips(frames: Tensor, ids: Tensor, mask: Tensor, dtype: torch.dtype) -> Outputs:
        import open_clip

        model = open_clip.create_model(f"local-dir:{folder}").eval().to(dtype)
        pixels = pixels_of(frames, mean, std, dtype).flatten(0, 1)
        output = model.visual.forward_intermediates(
            pixels, indices=LEVELS, output_fmt="NLC", output_extra_tokens=True, intermediates_only=True
        )
        patches = torch.stack(output["image_intermediates"])
        prefix = output.get("image_intermediates_prefix")
        has_prefix = prefix is not None and prefix[0].numel() > 0
        tokens = torch.cat([torch.stack(list(prefix)), patches], dim=2) if has_prefix else patches
        return tokens, model.encode_image(pixels), model.encode_text(ids)

    return {"videoprism": videos, "open-clip": open_clips}.get(family, images)


WRITERS = {"clip": write_clip, "siglip2": write_siglip2, "videoprism": write_videoprism, "open-clip": write_open_clip}
SIZES: dict[str, Sequence[str]] = {
    "clip": list(CLIP_SIZES),
    "siglip2": list(SIGLIP2_SIZES),
    "videoprism": list(VIDEOPRISM_SIZES),
    "open-clip": OPEN_CLIP_SIZES,
}


def sentence(family: str, backbone: Any) -> tuple[Tensor, Tensor]:
    """Return the token ids and the mask of a sentence, and let the backbone read these ids: there is no vocabulary."""
    if family == "open-clip":
        ids, _ = backbone.sentence_ids([SENTENCE])
        return ids, (ids != 0).long()
    if family == "clip":
        row = [49406, 320, 1929, 5000, 962, 320, 2465, 49407]
        backbone.token_ids = lambda queries: [row]
        return torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long)
    words = [235250, 5929, 8923, 1163, 476, 1] if family == "siglip2" else [3, 9, 1782, 3154, 7, 5]
    ids = torch.tensor([words + [0] * (64 - len(words))])
    backbone.sentence_ids = lambda queries: (ids, [len(words)])
    return ids, (torch.arange(64) < len(words)).long()[None]


@torch.inference_mode()
def compare(family: str, folder: Path, precision: str) -> tuple[float, float, float]:
    """Return the largest differences of the levels, of the joint embedding, and of the sentence."""
    options: dict[str, Any] = {"weights": folder, "dtype": precision}
    joint: Any = load_backbone(family, pooling="joint", **options)
    spec = joint.spec
    generator = torch.Generator().manual_seed(0)
    shape = (1, spec.frames_per_clip, spec.resolution, spec.resolution, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    ids, mask = sentence(family, joint)
    video, (text,) = joint.encode_video(frames)[0], joint.encode_text([SENTENCE])
    del joint
    levels = load_backbone(family, pooling="tokens", levels=LEVELS, **options).encode_video(frames)
    run = library_of(family, folder, spec.mean, spec.std)
    expected_levels, expected_video, expected_text = (
        x.float() for x in run(frames, ids, mask, getattr(torch, precision))
    )
    levels = levels[-len(expected_levels) :]
    scale = expected_levels.abs().amax(dim=(1, 2, 3), keepdim=True)
    return (
        float(((levels - expected_levels) / scale).abs().max()),
        float((video - F.normalize(expected_video, dim=-1)).abs().max()),
        float((text[0] - F.normalize(expected_text, dim=-1)).abs().max()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=SMALLEST, help="FAMILY/SIZE: " + ", ".join(all_models()))
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    args = parser.parse_args()
    if unknown := set(args.models) - set(all_models()):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose of {', '.join(all_models())}")
    print(
        f"{'model':<30}{'GB':>6}{'precision':>11}{'levels':>10}{'video':>10}{'sentence':>10}{'seconds':>9}", flush=True
    )
    for model in args.models:
        family, size = model.split("/")
        parent = Path(tempfile.mkdtemp())
        try:
            torch.manual_seed(0)
            WRITERS[family](size, parent / "weights")
            gigabytes = sum(file.stat().st_size for file in (parent / "weights").iterdir()) / 1e9
            for precision in args.precision:
                start = time.perf_counter()
                differences = compare(family, parent / "weights", precision)
                shown = "".join(f"{value:>10.1e}" for value in differences)
                seconds = time.perf_counter() - start
                print(f"{model:<30}{gigabytes:>6.2f}{precision:>11}{shown}{seconds:>9.0f}", flush=True)
        finally:
            shutil.rmtree(parent)


def all_models() -> list[str]:
    """Return FAMILY/SIZE of every model that can be compared."""
    return [f"{family}/{size}" for family, sizes in SIZES.items() for size in sizes]


if __name__ == "__main__":
    main()
