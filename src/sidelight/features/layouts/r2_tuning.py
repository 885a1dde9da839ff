"""R2-Tuning's layout.

    clip_b32_vid_k4/VID.npy    (T, K, P, D_v) float16, or flattened: (T, K * P * D_v)
    clip_b32_txt_k4/QID.npy    (L, K, D_t) float16, or flattened: (L, K * D_t)

The names of the folders tell CLIP's size and K. TACoS's videos are called ``VID-cam-002``; the sentences of TVSum and
YouTube Highlights are called by their video.

Source: ``tools/extract_feat.py`` and ``datasets/grounding.py`` of github.com/yeliudev/R2-Tuning.

Legend: K levels, T clips, P tokens of a clip, L tokens of a sentence, D_v / D_t widths of video and text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sidelight.backbones.clip.released import CLIP_MODELS
from sidelight.backbones.protocol import FeatureSpec
from sidelight.data.datasets.tacos import CAMERA
from sidelight.features.layouts.arrays import Array, mapped, save_npy
from sidelight.features.layouts.base import Layout, Shape
from sidelight.features.store import SampleKey


class R2TuningLayout(Layout):
    """Memory-mapped ``.npy`` files that keep every token of a clip."""

    name = "r2-tuning"
    expected = "clip_b32_vid_k4 and clip_b32_txt_k4, or other folders *_vid_kK and *_txt_kK"
    suffix = ".npy"
    pooling = "tokens"
    keeps_tokens = True

    @classmethod
    def folders_in(cls, folder: Path) -> tuple[tuple[Path, ...], Path] | None:
        """Return the folder *_vid_kK and the folder *_txt_kK that belongs to it; None if they are missing.

        Raises:
            ValueError: if there are several such pairs.
        """
        pairs = []
        for video in sorted(folder.glob("*_vid_k*")):
            text = folder / re.sub(r"_vid_(k\d+)$", r"_txt_\1", video.name)
            if text != video and text.is_dir() and video.is_dir():
                pairs.append((video, text))
        if len(pairs) > 1:
            names = ", ".join(video.name for video, _ in pairs)
            raise ValueError(f"{folder} has several of R2-Tuning's folders ({names}); give VIDEO,TEXT of one")
        return ((pairs[0][0],), pairs[0][1]) if pairs else None

    @classmethod
    def is_video_file(cls, path: Path) -> bool:
        """Check whether a file is a ``.npy``: no other layout has these."""
        return path.suffix == cls.suffix

    @classmethod
    def folder_names(cls, spec: FeatureSpec) -> tuple[str, str]:
        """Return the names of the folders to write, such as clip_b32_vid_k4 and clip_b32_txt_k4."""
        size = next((f"_{size}" for size, (weights, _, _) in CLIP_MODELS.items() if weights == spec.weights), "")
        name, count = spec.backbone + size, len(spec.levels)
        return f"{name}_vid_k{count}", f"{name}_txt_k{count}"

    def video_names(self, vid: str) -> list[str]:
        """Return the id, and the id with TACoS's camera."""
        return [vid, vid + CAMERA]

    def text_names(self, key: SampleKey) -> list[str]:
        """Return the qid and the vid."""
        return [str(key.qid), key.vid]

    def paper_backbone(self) -> tuple[str, str]:
        """Return CLIP and its weights, of the size in the folder's name, else of size b32."""
        return "clip", CLIP_MODELS.get(self._size_and_levels[0], CLIP_MODELS["b32"])[0]

    @property
    def _size_and_levels(self) -> tuple[str, int | None]:
        """Return CLIP's size and K from the folder's name; "" and None if the name has another form."""
        match = re.fullmatch(r"(?:clip_)?(.+)_vid_k(\d+)", self.video_folders[0].name)
        return (match[1], int(match[2])) if match else ("", None)

    def _map(self, path: Path, *, text: bool) -> Array:
        """Map a file into memory as (T, K, P, D_v) or (L, K, 1, D_t), without reading the numbers."""
        array = mapped(path)
        size, levels = self._size_and_levels
        width = CLIP_MODELS[size][1:][text] if size in CLIP_MODELS else None
        if array.ndim == 2 and levels and width and array.shape[1] % (levels * width) == 0:
            array = array.reshape(len(array), levels, -1, width)
        elif array.ndim == 3 and text:
            array = array[:, :, None]
        if array.ndim != 4 or (text and array.shape[2] != 1) or 0 in array.shape:
            form = "(tokens, levels, width)" if text else "(clips, levels, tokens, width)"
            raise ValueError(f"{path} must be an array {form}, got {array.shape}")
        if levels and array.shape[1] != levels:
            raise ValueError(f"{path} has {array.shape[1]} levels, but its folder says {levels}, got {array.shape}")
        return array

    def video_shape(self, vid: str) -> Shape:
        return _shape_of(self._map(self.video_path(vid), text=False))

    def text_shape(self, key: SampleKey) -> Shape:
        return _shape_of(self._map(self.text_path(key), text=True))

    def video(self, vid: str, rows: Sequence[int]) -> Array:
        array_TKPD = self._map(self.video_path(vid), text=False)
        return np.stack([array_TKPD[:, row] for row in rows])

    def pooled_video(self, vid: str, rows: Sequence[int], spec: FeatureSpec) -> Array:
        """Read all tokens of each clip, (K, T, P, D_v), or only the first, (K, T, D_v), as the spec says.

        Raises:
            ValueError: if the spec asks for another pooling, which would need the backbone.
        """
        if spec.pooling == "tokens":
            return self.video(vid, rows)
        array_TKPD = self._map(self.video_path(vid), text=False)
        tokens = array_TKPD.shape[2]
        if tokens > 1 and (spec.pooling != "cls" or spec.frames_per_clip != 1):
            raise ValueError(
                f"{self.video_path(vid)} keeps all {tokens} tokens of a clip: pooling must be tokens, or cls (the "
                f"first token) with one frame a clip; got {spec.pooling} with {spec.frames_per_clip} frames"
            )
        return np.stack([array_TKPD[:, row, 0] for row in rows])

    def text(self, key: SampleKey, rows: Sequence[int]) -> Array:
        array_LK1D = self._map(self.text_path(key), text=True)
        return np.stack([array_LK1D[:, row, 0] for row in rows])

    def write_video(self, vid: str, video_KTD: Array) -> None:
        """Write one video's features, (K, T, P, D_v), or (K, T, D_v) as one token a clip."""
        video_KTPD = video_KTD if video_KTD.ndim == 4 else video_KTD[:, :, None]
        save_npy(self.video_file(vid), video_KTPD.transpose(1, 0, 2, 3))

    def write_text(self, key: SampleKey, text_KLD: Array) -> None:
        save_npy(self.text_file(key), text_KLD.transpose(1, 0, 2))


def _shape_of(array: Array) -> Shape:
    length, levels, tokens, width = array.shape
    return Shape(levels=levels, length=length, tokens=tokens, width=width, dtype=str(array.dtype))
