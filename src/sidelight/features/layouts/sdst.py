"""SDST's layout.

    vid_feats/VID.npz    "visual_feats_interm_pooled" (T, K, D_v)
    txt_feats/QID.npz    "text_feats" (K, L, D_t)

Source: code of others that reads the released features; SDST's own loader is not published. Two things are assumed:
the 5 levels of the released files are the last five, and files that we write are float16.

Legend: K levels, T clips, L tokens of a sentence, D_v / D_t widths of video and text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sidelight.backbones.protocol import FeatureSpec
from sidelight.features.layouts.arrays import Array, members, packed, packed_shape, save_npz
from sidelight.features.layouts.base import Layout, Shape
from sidelight.features.store import SampleKey

_VIDEO, _TEXT = "visual_feats_interm_pooled", "text_feats"


class SDSTLayout(Layout):
    """``.npz`` files with one vector a clip and level."""

    name = "sdst"
    expected = "the folders vid_feats and txt_feats"
    suffix = ".npz"
    pooling = "attention"

    @classmethod
    def folders_in(cls, folder: Path) -> tuple[tuple[Path, ...], Path] | None:
        """Return the folders vid_feats and txt_feats; None if one is missing."""
        video, text = folder / "vid_feats", folder / "txt_feats"
        return ((video,), text) if video.is_dir() and text.is_dir() else None

    @classmethod
    def is_video_file(cls, path: Path) -> bool:
        """Check whether a file is a ``.npz`` with the array of a video."""
        return path.suffix == cls.suffix and _VIDEO in members(path)

    @classmethod
    def folder_names(cls, spec: FeatureSpec) -> tuple[str, str]:
        return "vid_feats", "txt_feats"

    def paper_backbone(self) -> tuple[str, str]:
        """Return InternVideo2 and its weights."""
        return "internvideo2", "OpenGVLab/InternVideo2-Stage2_1B-224p-f4"

    def video_shape(self, vid: str) -> Shape:
        (clips, levels, width), dtype = packed_shape(self.video_path(vid), _VIDEO, "(clips, levels, width)")
        return Shape(levels=levels, length=clips, tokens=1, width=width, dtype=dtype)

    def text_shape(self, key: SampleKey) -> Shape:
        (levels, length, width), dtype = packed_shape(self.text_path(key), _TEXT, "(levels, tokens, width)")
        return Shape(levels=levels, length=length, tokens=1, width=width, dtype=dtype)

    def video(self, vid: str, rows: Sequence[int]) -> Array:
        self.video_shape(vid)
        video_KTD: Array = packed(self.video_path(vid), _VIDEO).transpose(1, 0, 2)[list(rows)]
        return video_KTD

    def text(self, key: SampleKey, rows: Sequence[int]) -> Array:
        self.text_shape(key)
        text_KLD: Array = packed(self.text_path(key), _TEXT)[list(rows)]
        return text_KLD

    def write_video(self, vid: str, video_KTD: Array) -> None:
        save_npz(self.video_file(vid), _VIDEO, video_KTD.transpose(1, 0, 2))

    def write_text(self, key: SampleKey, text_KLD: Array) -> None:
        save_npz(self.text_file(key), _TEXT, text_KLD)
