"""VideoMAE (Tong et al., NeurIPS 2022, arXiv 2203.12602) as a video tower that can be trained from pixels: S to g.

The weights and the blocks come from Hugging Face transformers (``VideoMAEModel``). The tower reads 16 frames together,
two frames a token in time; the table of places is fixed (sines and cosines) and no part of the weights. There is no CLS
token. Weights that were tuned for classification by mean pooling have no LayerNorm after the last block.

Frames of another resolution than the training's are read with a table of places that is interpolated over rows and
columns (bicubic), as MMAction2 and AdaTAD do.

VideoMAE has no text tower, so it is no :class:`~sidelight.backbones.protocol.Backbone`.

Legend: N chunks, F frames of a chunk, S side in pixels, P tokens of a chunk, D width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from sidelight.backbones.common import Normalise, check_chunks, weights_digest
from sidelight.backbones.pretrained import read_config, read_model
from sidelight.backbones.protocol import TokenShape, TowerSpec

VIDEOMAE_S = "MCG-NJU/videomae-small-finetuned-kinetics"
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class VideoMAETower(nn.Module):
    """VideoMAE behind the :class:`~sidelight.backbones.protocol.TrainableTower` protocol, loaded frozen.

    Args:
        weights: hub id, or folder in Hugging Face's layout.
        resolution: side of a frame in pixels, a multiple of the side of a patch; unless given, the training's.
        model: a ``VideoMAEModel`` that is built already, in place of weights that are read; for counts of sizes.

    Raises:
        ValueError: for weights that are missing, incomplete or not VideoMAE, or a resolution that does not fit.
    """

    def __init__(
        self, *, weights: str | Path = VIDEOMAE_S, resolution: int | None = None, model: Any | None = None
    ) -> None:
        super().__init__()
        digest = "unknown"
        if model is None:
            classes = {"videomae": "VideoMAEConfig"}
            _, config = read_config(weights, classes, family="VideoMAE", example=VIDEOMAE_S)
            _check_resolution(resolution, config.patch_size)  # before the weights are read, which takes long
            model = read_model(weights, "VideoMAEModel", family="VideoMAE")
            digest = weights_digest(model.state_dict())
        config = model.config
        trained, side = config.image_size, config.image_size if resolution is None else resolution
        _check_resolution(side, config.patch_size)
        times, rows = config.num_frames // config.tubelet_size, side // config.patch_size
        self.spec = TowerSpec(
            backbone="videomae",
            weights=digest,
            frames=config.num_frames,
            resolution=side,
            grid=(times, rows, rows),
            prefix=0,
            width=config.hidden_size,
            depth=config.num_hidden_layers,
        )
        if side != trained:
            _fit_places(model.embeddings, times, trained // config.patch_size, rows, side)
        self.model = model
        self.normalise = Normalise(MEAN, STD)
        self.eval().requires_grad_(False)

    @property
    def blocks(self) -> nn.ModuleList:
        """Return the blocks, shallowest first."""
        return cast(nn.ModuleList, self.model.encoder.layer)

    @property
    def stages(self) -> tuple[TokenShape, ...]:
        """Return the shape of the tokens after each block: the same after all."""
        return (self.spec,) * self.spec.depth

    def embed(self, frames_NFSS3: Tensor) -> Tensor:
        """Return the tokens (N, P, D) that the first block reads: patches and their places."""
        check_chunks(frames_NFSS3, self.spec)
        pixels_NF3SS = self.normalise(frames_NFSS3.flatten(0, 1)).unflatten(0, frames_NFSS3.shape[:2])
        tokens_NPD: Tensor = self.model.embeddings(pixels_NF3SS, None)
        return tokens_NPD

    def finish(self, tokens_NPD: Tensor) -> Tensor:
        """Apply the LayerNorm after the last block, if the weights have one."""
        return tokens_NPD if self.model.layernorm is None else cast(Tensor, self.model.layernorm(tokens_NPD))


def _check_resolution(resolution: int | None, patch: int) -> None:
    """Raise ValueError unless frames of this side are cut into whole patches."""
    if resolution is not None and (resolution < patch or resolution % patch):
        raise ValueError(f"resolution must be a multiple of {patch}, the side of VideoMAE's patches; got {resolution}")


def _fit_places(embeddings: Any, times: int, rows: int, new_rows: int, side: int) -> None:
    """Interpolate the table of places over rows and columns, for frames of another side."""
    table_TDRR = embeddings.position_embeddings.reshape(times, rows, rows, -1).permute(0, 3, 1, 2)
    fitted_TDRR = F.interpolate(table_TDRR, size=(new_rows, new_rows), mode="bicubic", align_corners=False)
    embeddings.position_embeddings = fitted_TDRR.permute(0, 2, 3, 1).reshape(1, times * new_rows * new_rows, -1)
    embeddings.patch_embeddings.image_size = (side, side)
    embeddings.patch_embeddings.num_patches = embeddings.num_patches = times * new_rows * new_rows
