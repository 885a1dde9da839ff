"""Backbone weights that sidelight downloads itself: revision, files and their digests, by hub id.

To add weights, add an entry to :data:`WEIGHTS`; the loader of the backbone calls :func:`weights_folder`. This module
imports nothing heavy.

The digests of CLIP ViT-B/32 are those of two independent public records of this revision, which agree; the one of the
weights is also in :data:`sidelight.backbones.clip.released.HUB_FILES`.
"""

from __future__ import annotations

from pathlib import Path

from sidelight.backbones.clip.released import CLIP_B32
from sidelight.io.download import fetch
from sidelight.io.pinned import Download, HubFile

SIGLIP2_B32 = "google/siglip2-base-patch32-256"

WEIGHTS: dict[str, Download] = {
    CLIP_B32: Download(
        title="CLIP ViT-B/32, the backbone",
        licence="MIT",
        repository=CLIP_B32,
        revision="3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
        files=(
            HubFile(
                path="pytorch_model.bin",
                sha256="a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
                size=605_247_071,
            ),
            HubFile(
                path="config.json",
                sha256="b575ef3c36f2a057fa19e221650105052d61cc9c1a972ec15019c6261ec98770",
                size=4_186,
            ),
            HubFile(
                path="merges.txt",
                sha256="f526393189112391ce6f9795d4695f704121ce452c3aad1f5335cc41337eba85",
                size=524_657,
            ),
            HubFile(
                path="vocab.json",
                sha256="5047b556ce86ccaf6aa22b3ffccfc52d391ea4accdab9c2f2407da5b742d4363",
                size=862_328,
            ),
        ),
    ),
    # No public record of the digests is known: the lock file records them at the first download.
    SIGLIP2_B32: Download(
        title="SigLIP 2 B/32-256, the backbone",
        licence="Apache-2.0",
        repository=SIGLIP2_B32,
        files=(
            HubFile(path="model.safetensors", size=1_506_000_000),
            HubFile(path="config.json"),
            HubFile(path="tokenizer.json", size=34_000_000),
        ),
    ),
}
"""Hub id -> files."""


def weights_folder(weights: str | Path) -> str | Path:
    """Return the folder of weights in :data:`WEIGHTS`, downloaded and checked; other weights are returned as they are.

    Raises:
        DownloadError: if files are missing and cannot be downloaded.
        ValueError: if a file is not the one that is known.
    """
    # A folder of the user's with the name of a hub id comes first, as everywhere.
    if str(weights) not in WEIGHTS or Path(weights).is_dir():
        return weights
    return fetch([WEIGHTS[str(weights)]], needed_by=str(weights))[0]
