"""`sidelight convert`: turn published checkpoints into checkpoints of sidelight.

Nothing in such a file is executed. The result appears whole or not at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from sidelight.cli.parser import Group, Option
from sidelight.cli.shared import Count, File, Folder, Name, OutFolder, Weights, require_range


def convert_r2_tuning(
    file: File,
    *,
    run: Name,
    out: OutFolder,
    video_dim: Count | None = None,
    text_dim: Count | None = None,
    hidden: Count | None = None,
    weights: Weights | None = None,
    padding: Literal["independent", "exact"] = "independent",
) -> None:
    """Convert a trained side-tuner of R2-Tuning into a checkpoint.

    Args:
        file: FILE.pth as R2-Tuning's own code saved it; nothing in it is executed.
        run: the published run that saved it: qvhighlights, charades-sta, tacos, ego4d-nlq, youtube-highlights-DOMAIN or
            tvsum-DOMAIN.
        out: folder to make; new, or empty.
        video_dim: width of the backbone's video features (768), for your own variant of the run.
        text_dim: width of the backbone's text features (512), for your own variant of the run.
        hidden: width inside the model (256), for your own variant of the run.
        weights: CLIP weights that made its features (openai/clip-vit-base-patch32): their name, the digest in a feature
            spec, or their folder; needed for other widths.
        padding: in a padded batch, treat each sample as if alone, or give the numbers of the published code.
    """
    from sidelight.training import convert as converting

    if weights is not None and Path(weights).is_dir():
        from sidelight.backbones import load_backbone

        weights = load_backbone("clip", weights=weights, levels=1, pooling="tokens").spec.weights
    checkpoint = converting.convert_r2_tuning(
        file,
        out,
        run=run,
        video_dim=video_dim,
        text_dim=text_dim,
        hidden=hidden,
        weights=weights,
        padding=padding,
    )
    count = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    spec = checkpoint.features
    print(f"wrote {out}: r2-tuning of the run {run}, {count:,} parameters")
    print(
        f"reads {spec.backbone} ({spec.weights}), levels {', '.join(map(str, spec.levels))}, all tokens, "
        f"{spec.frames_per_clip} frame per clip of {spec.clip_seconds:g} s"
    )


def convert_univtg(
    file: File,
    *,
    out: OutFolder | None = None,
    options: Annotated[str, Option("opt.json", path="input")] | None = None,
    weights: Weights | None = None,
    padding: Literal["independent", "exact"] = "independent",
) -> None:
    """Convert a trained UniVTG into a checkpoint.

    Args:
        file: FILE.ckpt as UniVTG's own code saved it; nothing in it is executed.
        out: folder to make; new, or empty. Unless given, the model is kept in the cache under the name univtg/omni.
        options: opt.json of its run; the options in the file unless given, or else those beside it.
        weights: CLIP weights that made its features (openai/clip-vit-base-patch32): their name, the digest in a feature
            spec, or their folder; needed for other widths.
        padding: in a padded batch, treat each sample as if alone, or give the numbers of the published code.
    """
    from sidelight.training import convert_univtg as converting

    if weights is not None and Path(weights).is_dir():
        from sidelight.backbones import load_backbone

        weights = load_backbone("clip", weights=weights, pooling="joint-video").spec.weights
    checkpoint = converting.convert_univtg(file, out, options=options, weights=weights, padding=padding)
    count = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    spec, source = checkpoint.features, checkpoint.recipe["converted_from"]
    print(f"wrote {out or converting.imported_folder()}: univtg, {count:,} parameters; options: {source['options']}")
    print(
        f"reads {spec.backbone} ({spec.weights}), pooling {spec.pooling}, {spec.frames_per_clip} frame per clip of "
        f"{spec.clip_seconds:g} s"
    )
    if out is None:
        print(f"use it with --model {converting.OMNI}")


def convert_internvideo2(
    file: File,
    *,
    out: OutFolder,
    vocabulary: Annotated[str, Option("vocab.txt", path="input")] | None = None,
    heads: Count | None = None,
    pool_heads: Count | None = None,
    text_heads: Count | None = None,
    activation: Literal["gelu_tanh", "gelu"] | None = None,
) -> None:
    """Convert InternVideo2 into a folder of backbone weights.

    Args:
        file: FILE.pt as published: bare, or inside 'module' or 'model'; nothing in it is executed.
        out: folder to make; new, or empty.
        vocabulary: vocab.txt of bert-large-uncased, which the file does not hold; the one beside the file unless given.
        heads: attention heads of the video tower, which the file does not state; the published number unless given.
        pool_heads: attention heads of the video tower's pool; the published number unless given.
        text_heads: attention heads of the text tower; one per 64 channels unless given.
        activation: gelu for weights trained without the fused kernel; gelu_tanh, as the released ones, unless given.
    """
    from sidelight.backbones.internvideo2 import convert as conversion
    from sidelight.backbones.internvideo2.weights import describe_weights

    require_range(1, heads=heads, pool_heads=pool_heads, text_heads=text_heads)
    conversion.convert_internvideo2(
        file,
        out,
        vocabulary=vocabulary,
        activation=activation,
        heads=heads,
        pool_heads=pool_heads,
        text_heads=text_heads,
    )
    print(f"wrote {out}: InternVideo2, {describe_weights(out)}")
    print(f"extract with --backbone internvideo2 --weights {out}")


def convert_clip(
    file: File,
    *,
    out: OutFolder,
    vocabulary: Folder | None = None,
    heads: Count | None = None,
    text_heads: Count | None = None,
) -> None:
    """Convert CLIP into a folder of backbone weights, in Hugging Face's layout.

    Args:
        file: FILE.pt as OpenAI released it, or a state dict with its names (.pt or .safetensors); nothing in it is
            executed.
        out: folder to make; new, or empty.
        vocabulary: folder with tokenizer.json, or with vocab.json and merges.txt; needed to read sentences.
        heads: attention heads of the vision tower; one per 64 channels unless given.
        text_heads: attention heads of the text tower; one per 64 channels unless given.
    """
    from sidelight.backbones.clip import convert as conversion

    require_range(1, heads=heads, text_heads=text_heads)
    if heads is None or text_heads is None:
        if heads != text_heads:
            raise ValueError("give both --heads and --text-heads, or neither")
        both = None
    else:
        both = (heads, text_heads)
    conversion.convert_clip(file, out, heads=both, vocabulary=vocabulary)
    print(f"wrote {out}: CLIP, {conversion.describe_weights(out)}")
    if vocabulary is None:
        print(f"no sentence can be read yet: put tokenizer.json, or vocab.json and merges.txt, into {out}")
    print(f"extract with --backbone clip --weights {out}")


def convert_i3d(file: File, *, out: OutFolder) -> None:
    """Convert I3D (RGB, Kinetics) into a folder of weights of a video backbone that is trained from pixels.

    Args:
        file: FILE.pt as its PyTorch port saved it, such as rgb_imagenet.pt; nothing in it is executed.
        out: folder to make; new, or empty.
    """
    from sidelight.backbones import i3d

    i3d.convert_i3d(file, out)
    tower = i3d.I3DTower(weights=out)
    count = sum(parameter.numel() for parameter in tower.parameters())
    print(f"wrote {out}: I3D, {tower.spec.depth} Inception modules, {count:,} parameters without the classifier")
    print(f'load it with load_tower("i3d", weights="{out}")')


convert = Group(
    "Turn a published checkpoint into one of sidelight.",
    {
        "r2-tuning": convert_r2_tuning,
        "univtg": convert_univtg,
        "internvideo2": convert_internvideo2,
        "clip": convert_clip,
        "i3d": convert_i3d,
    },
)
