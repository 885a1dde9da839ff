"""Moment-DETR's layout, which UniVTG and its successors share.

    slowfast_features/VID.npz, clip_features/VID.npz    "features" (T, D) each; the vectors are put side by side
    clip_text_features/qidQID.npz                       "last_hidden_state" (L, D_t)

UniVTG calls the folders ``vid_slowfast``, ``vid_clip`` and ``txt_clip``, and the sentence's file ``QID.npz``. Features
have one level. As published loaders do, each folder's vectors are normalised before they are put side by side
(``normalise`` of :func:`~sidelight.features.layouts.open_layout`).

Source: ``start_end_dataset.py`` and scripts of github.com/jayleicn/moment_detr. Where ours differs: theirs cuts folders
of different lengths to the shortest, and sentences to 32 tokens. Here folders may differ by up to CLIPS_OFF clips, and
sentences keep all their tokens.

Legend: T clips, L tokens of a sentence, D_v / D_t widths of video and text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sidelight.backbones.protocol import FeatureSpec
from sidelight.core.timeline import CLIPS_OFF
from sidelight.features.layouts.arrays import Array, members, packed, packed_shape, save_npz, unit
from sidelight.features.layouts.base import Layout, Shape
from sidelight.features.store import SampleKey

_VIDEO, _TEXT = "features", "last_hidden_state"
_PUBLISHED = (
    (("slowfast_features", "clip_features"), "clip_text_features"),
    (("vid_slowfast", "vid_clip"), "txt_clip"),
)


class MomentDETRLayout(Layout):
    """``.npz`` files of one level, in one folder of videos or several."""

    name = "moment-detr"
    expected = (
        "slowfast_features, clip_features and clip_text_features (or vid_slowfast, vid_clip and txt_clip); other "
        "folders are given as VIDEO[+VIDEO...],TEXT"
    )
    suffix = ".npz"
    pooling = "cls"
    joins_folders = True
    normalised = True

    @classmethod
    def folders_in(cls, folder: Path) -> tuple[tuple[Path, ...], Path] | None:
        """Return the published folders, in the published order; else NAME_features with NAME_text_features."""
        for video_names, text_name in _PUBLISHED:
            videos = tuple(folder / name for name in video_names if (folder / name).is_dir())
            if videos and (folder / text_name).is_dir():
                return videos, folder / text_name
        texts = sorted(folder.glob("*_text_features"))
        video = folder / texts[0].name.replace("_text_features", "_features") if len(texts) == 1 else None
        return ((video,), texts[0]) if video is not None and video.is_dir() else None

    @classmethod
    def is_video_file(cls, path: Path) -> bool:
        """Check whether a file is a ``.npz`` with the array of a video."""
        return path.suffix == cls.suffix and _VIDEO in members(path)

    @classmethod
    def folder_names(cls, spec: FeatureSpec) -> tuple[str, str]:
        """Return NAME_features and NAME_text_features, where NAME is the backbone."""
        return f"{spec.backbone}_features", f"{spec.backbone}_text_features"

    @classmethod
    def require_levels(cls, levels: tuple[int, ...]) -> None:
        """Check that there is one level; ValueError if not."""
        if len(levels) > 1:
            raise ValueError(
                f"the layout {cls.name} has one level, the store {len(levels)} ({', '.join(map(str, levels))}); choose "
                "one with --level"
            )

    def text_names(self, key: SampleKey) -> list[str]:
        """Return qidQID, and QID, which UniVTG uses."""
        return [f"qid{key.qid}", str(key.qid)]

    def paper_backbone(self) -> tuple[str, str]:
        """Return the names of the folders, such as slowfast+clip: the files say no more."""
        names = [re.sub(r"_features$|^vid_", "", folder.name) for folder in self.video_folders]
        return "+".join(names), "moment-detr"

    def video_shape(self, vid: str) -> Shape:
        """Return the shape of one video's features, all folders together.

        Raises:
            ValueError: if the lengths differ by more than CLIPS_OFF clips; else as the base class.
        """
        paths = [self.video_path(vid, folder) for folder in self.video_folders]
        shapes, dtypes = zip(*(packed_shape(path, _VIDEO, "(clips, width)") for path in paths), strict=True)
        lengths = [shape[0] for shape in shapes]
        if max(lengths) - min(lengths) > CLIPS_OFF:
            named = ", ".join(f"{path.parent.name} {length}" for path, length in zip(paths, lengths, strict=True))
            raise ValueError(
                f"{self.where}: the features of {vid!r} have different lengths ({named} clips); expected the same "
                f"number up to {CLIPS_OFF}: they may be of different clip lengths or videos"
            )
        width = sum(shape[1] for shape in shapes)
        return Shape(levels=1, length=min(lengths), tokens=1, width=width, dtype=dtypes[0])

    def text_shape(self, key: SampleKey) -> Shape:
        (length, width), dtype = packed_shape(self.text_path(key), _TEXT, "(tokens, width)")
        return Shape(levels=1, length=length, tokens=1, width=width, dtype=dtype)

    def _folder_arrays(self, vid: str) -> list[Array]:
        """Read (T, D) of each folder, cut to the shortest."""
        clips = self.video_shape(vid).length
        return [packed(self.video_path(vid, folder), _VIDEO)[:clips] for folder in self.video_folders]

    def video(self, vid: str, rows: Sequence[int]) -> Array:
        return np.concatenate(self._folder_arrays(vid), axis=1)[None]

    def unit_video(self, vid: str, rows: Sequence[int]) -> Array:
        """Read one video's features, (1, T, D_v), with each folder's vectors divided by their own length."""
        return np.concatenate([unit(array) for array in self._folder_arrays(vid)], axis=1)[None]

    def text(self, key: SampleKey, rows: Sequence[int]) -> Array:
        self.text_shape(key)
        text_1LD: Array = packed(self.text_path(key), _TEXT)[None]
        return text_1LD

    def write_video(self, vid: str, video_KTD: Array) -> None:
        save_npz(self.video_file(vid), _VIDEO, video_KTD[0])

    def write_text(self, key: SampleKey, text_KLD: Array) -> None:
        save_npz(self.text_file(key), _TEXT, text_KLD[0])
