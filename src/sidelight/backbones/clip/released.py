"""The CLIP models that OpenAI released: names, sizes, normalisation, digests. This module imports nothing heavy."""

from __future__ import annotations

CLIP_B32 = "openai/clip-vit-base-patch32"
CLIP_B16 = "openai/clip-vit-base-patch16"
CLIP_L14 = "openai/clip-vit-large-patch14"
CLIP_L14_336 = "openai/clip-vit-large-patch14-336"

CLIP_MODELS: dict[str, tuple[str, int, int]] = {
    "b32": (CLIP_B32, 768, 512),
    "b16": (CLIP_B16, 768, 512),
    "l14": (CLIP_L14, 1024, 768),
    "l14_336px": (CLIP_L14_336, 1024, 768),
}
"""Short name, as R2-Tuning's folders have it -> hub id, width of the video layers, width of the text layers."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of RGB in [0, 1], subtracted from the pixels."""
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of RGB in [0, 1]; the pixels are divided by it."""

OPENAI_FILES = {
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af": CLIP_B32,
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": CLIP_B16,
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836": CLIP_L14,
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02": CLIP_L14_336,
}
"""SHA-256 of each archive that OpenAI released -> hub id of the same weights.

The digests are part of the download addresses in github.com/openai/CLIP, ``clip/clip.py``.
"""
HUB_FILES = {
    "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f": CLIP_B32,
    "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb": CLIP_L14,
}
"""SHA-256 of weights on the hub (``pytorch_model.bin`` of B/32, ``model.safetensors`` of L/14) -> hub id."""
