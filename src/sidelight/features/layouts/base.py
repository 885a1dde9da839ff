"""The files of each layout: where they are, how they are called, of which shape they are.

Nothing here knows what made them.

Legend: K levels, T clips, P tokens of a clip, L tokens of a sentence, D_v / D_t widths of video and text.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from sidelight.features.layouts.arrays import Array, find, mapped, members, packed, packed_shape
from sidelight.features.store import SampleKey

LayoutName = Literal["sidelight", "r2-tuning", "sdst", "moment-detr"]

CLIPS_OFF = 4
"""By so many clips features may be longer or shorter than their video."""
SPEC_FILE = "feature-recipe.json"
_FORM = "a folder, or VIDEO[+VIDEO...],TEXT with the folders of videos and of sentences"

# As R2-Tuning's folders call CLIP's sizes -> hub id, widths of the two towers.
CLIPS: dict[str, tuple[str, int, int]] = {
    "b32": ("openai/clip-vit-base-patch32", 768, 512),
    "b16": ("openai/clip-vit-base-patch16", 768, 512),
    "l14": ("openai/clip-vit-large-patch14", 1024, 768),
    "l14_336px": ("openai/clip-vit-large-patch14-336", 1024, 768),
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a file says of itself without its numbers being read."""

    levels: int
    """K."""
    length: int
    """T of a video, L of a sentence."""
    tokens: int
    """P; 1 where a clip is one vector."""
    width: int
    """D_v or D_t."""
    dtype: str
    """Type of its numbers."""


class Layout(ABC):
    """The files of one layout: where they are and what is in them. Nothing here knows what made them.

    Args:
        where: a folder with the layout's subfolders, or VIDEO[+VIDEO...],TEXT.

    Raises:
        ValueError: if the folders are not there.
    """

    name: ClassVar[str]
    looks: ClassVar[str]
    """What its folders are called, for messages."""
    suffix: ClassVar[str]
    pooling: ClassVar[str]
    """How its paper's features were pooled."""

    def __init__(self, where: str | Path) -> None:
        self.where = str(where)
        parts = _folders(self.where)
        if parts is None:
            inside = self.inside(Path(where)) if Path(where).is_dir() else None
            if inside is None:
                raise ValueError(f"{where} does not hold features in the layout {self.name}: expected {self.looks}")
            parts = inside
        self.videos_in, self.text_in = parts
        if len(self.videos_in) > 1 and self.name != MomentDETRLayout.name:
            raise ValueError(f"{where}: the layout {self.name} has one folder of videos, got {len(self.videos_in)}")
        for folder in (*self.videos_in, self.text_in):
            if not folder.is_dir():
                raise ValueError(f"there is no folder {folder}; expected {_FORM}")

    @classmethod
    @abstractmethod
    def inside(cls, folder: Path) -> tuple[tuple[Path, ...], Path] | None:
        """The layout's folders of videos and of sentences in a folder; none if they are not there."""

    @abstractmethod
    def video_shape(self, vid: str) -> Shape:
        """Of one video's features; ValueError if they are missing or of another form."""

    @abstractmethod
    def text_shape(self, asked: SampleKey) -> Shape:
        """Of one sentence's features, likewise."""

    @abstractmethod
    def video(self, vid: str, rows: Sequence[int]) -> Array:
        """(K, T, P, D_v), or (K, T, D_v) where the layout has one vector a clip; only those levels."""

    @abstractmethod
    def text(self, asked: SampleKey, rows: Sequence[int]) -> Array:
        """(K, L, D_t), only those levels."""

    def text_names(self, asked: SampleKey) -> list[str]:
        """What a sentence's file may be called, without its suffix."""
        return [str(asked.qid)]

    def video_names(self, vid: str) -> list[str]:
        """What a video's file may be called, without its suffix."""
        return [vid]

    def vids(self) -> list[str]:
        """The videos that every folder of videos has, sorted."""
        per_folder = [{p.stem for p in folder.glob(f"[!.]*{self.suffix}")} for folder in self.videos_in]
        return sorted(set.intersection(*per_folder))

    def has_video(self, vid: str) -> bool:
        """Whether there are features of it."""
        return all(find(folder, self.video_names(vid), self.suffix) for folder in self.videos_in)

    def has_text(self, asked: SampleKey) -> bool:
        """Whether there are features of this annotation's sentence."""
        return find(self.text_in, self.text_names(asked), self.suffix) is not None

    def video_path(self, vid: str, folder: Path | None = None) -> Path:
        """Its file in a folder of videos, the first unless given."""
        found = find(folder or self.videos_in[0], self.video_names(vid), self.suffix)
        if found is None:
            missing = f"{folder or self.videos_in[0]}/{vid}{self.suffix}"
            raise ValueError(f"{missing} is missing; check the annotations' vid, or get the features of this video too")
        return found

    def text_path(self, asked: SampleKey) -> Path:
        """The file of an annotation's sentence."""
        found = find(self.text_in, self.text_names(asked), self.suffix)
        if found is None:
            missing = f"{self.text_in}/{self.text_names(asked)[0]}{self.suffix}"
            raise ValueError(
                f"{missing} is missing, the features of {asked.query!r}; files are found by qid: read the annotations "
                "that these features were made for"
            )
        return found

    def made_by(self) -> tuple[str, str]:
        """The backbone and the weights that the paper used."""
        return "internvideo2", "OpenGVLab/InternVideo2-Stage2_1B-224p-f4"

    @property
    def spec_file(self) -> Path:
        """Where the feature spec is, if we wrote the folder."""
        return Path(self.where) / SPEC_FILE


class R2TuningLayout(Layout):
    """``.npy``, memory-mapped: (T, K, P, D_v) and (L, K, D_t), or flattened, (T, K * P * D_v) and (L, K * D_t).

    TACoS's videos are called ``VID-cam-002`` there; the sentences of TVSum and YouTube Highlights by their video.
    """

    name = "r2-tuning"
    looks = "clip_b32_vid_k4 and clip_b32_txt_k4, or other folders *_vid_kK and *_txt_kK"
    suffix = ".npy"
    pooling = "tokens"

    @classmethod
    def inside(cls, folder: Path) -> tuple[tuple[Path, ...], Path] | None:
        """*_vid_kK with the *_txt_kK that belongs to it."""
        found = []
        for video in sorted(folder.glob("*_vid_k*")):
            text = folder / re.sub(r"_vid_(k\d+)$", r"_txt_\1", video.name)
            if text != video and text.is_dir() and video.is_dir():
                found.append((video, text))
        if len(found) > 1:
            names = ", ".join(video.name for video, _ in found)
            raise ValueError(f"{folder} has several of R2-Tuning's folders ({names}); give VIDEO,TEXT of one")
        return ((found[0][0],), found[0][1]) if found else None

    @property
    def _named(self) -> tuple[str, int | None]:
        """CLIP's size and K, as the folder says."""
        match = re.fullmatch(r"(?:clip_)?(.+)_vid_k(\d+)", self.videos_in[0].name)
        return (match[1], int(match[2])) if match else ("", None)

    def made_by(self) -> tuple[str, str]:
        """CLIP, of the size that the folder's name tells."""
        size = self._named[0]
        return "clip", CLIPS.get(size, CLIPS["b32"])[0]

    def text_names(self, asked: SampleKey) -> list[str]:
        """By qid, or by vid."""
        return [str(asked.qid), asked.vid]

    def video_names(self, vid: str) -> list[str]:
        """As they are, or with TACoS's camera."""
        return [vid, f"{vid}-cam-002"]

    def _mapped(self, path: Path, *, text: bool) -> Array:
        """(T, K, P, D_v) or (L, K, 1, D_t), not yet read."""
        array = mapped(path)
        size, levels = self._named
        width = CLIPS[size][1:][text] if size in CLIPS else None
        expected = "(tokens, levels, width)" if text else "(clips, levels, tokens, width)"
        if array.ndim == 2 and levels and width and array.shape[1] % (levels * width) == 0:
            array = array.reshape(len(array), levels, -1, width)
        elif array.ndim == 3 and text:
            array = array[:, :, None]
        if array.ndim != 4 or (text and array.shape[2] != 1) or 0 in array.shape:
            raise ValueError(f"{path} must be an array {expected}, got {array.shape}")
        if levels and array.shape[1] != levels:
            raise ValueError(f"{path} has {array.shape[1]} levels, but its folder says {levels}, got {array.shape}")
        return array

    def video_shape(self, vid: str) -> Shape:
        """Of one video's features."""
        return _of_four(self._mapped(self.video_path(vid), text=False))

    def text_shape(self, asked: SampleKey) -> Shape:
        """Of one sentence's features."""
        return _of_four(self._mapped(self.text_path(asked), text=True))

    def video(self, vid: str, rows: Sequence[int]) -> Array:
        """(K, T, P, D_v); what is not asked for is not read."""
        array_TKPD = self._mapped(self.video_path(vid), text=False)
        return np.stack([array_TKPD[:, row] for row in rows])

    def first_tokens(self, vid: str, rows: Sequence[int]) -> Array:
        """(K, T, D_v): CLS, or the only vector of a clip."""
        array_TKPD = self._mapped(self.video_path(vid), text=False)
        return np.stack([array_TKPD[:, row, 0] for row in rows])

    def text(self, asked: SampleKey, rows: Sequence[int]) -> Array:
        """(K, L, D_t)."""
        array_LK1D = self._mapped(self.text_path(asked), text=True)
        return np.stack([array_LK1D[:, row, 0] for row in rows])


class SDSTLayout(Layout):
    """``.npz``: ``visual_feats_interm_pooled`` (T, K, D_v) and ``text_feats`` (K, L, D_t)."""

    name = "sdst"
    looks = "the folders vid_feats and txt_feats"
    suffix = ".npz"
    pooling = "attention"
    VIDEO, TEXT = "visual_feats_interm_pooled", "text_feats"

    @classmethod
    def inside(cls, folder: Path) -> tuple[tuple[Path, ...], Path] | None:
        """vid_feats and txt_feats."""
        video, text = folder / "vid_feats", folder / "txt_feats"
        return ((video,), text) if video.is_dir() and text.is_dir() else None

    def video_shape(self, vid: str) -> Shape:
        """Of one video's features."""
        path = self.video_path(vid)
        (clips, levels, width), dtype = packed_shape(path, self.VIDEO, "(clips, levels, width)")
        return Shape(levels=levels, length=clips, tokens=1, width=width, dtype=dtype)

    def text_shape(self, asked: SampleKey) -> Shape:
        """Of one sentence's features."""
        path = self.text_path(asked)
        (levels, length, width), dtype = packed_shape(path, self.TEXT, "(levels, tokens, width)")
        return Shape(levels=levels, length=length, tokens=1, width=width, dtype=dtype)

    def video(self, vid: str, rows: Sequence[int]) -> Array:
        """(K, T, D_v)."""
        self.video_shape(vid)
        array: Array = packed(self.video_path(vid), self.VIDEO).transpose(1, 0, 2)[list(rows)]
        return array

    def text(self, asked: SampleKey, rows: Sequence[int]) -> Array:
        """(K, L, D_t)."""
        self.text_shape(asked)
        array: Array = packed(self.text_path(asked), self.TEXT)[list(rows)]
        return array


class MomentDETRLayout(Layout):
    """``.npz``: ``features`` (T, D) of each folder, put one beside the other, and ``last_hidden_state`` (L, D_t).

    As published loaders do, each folder's vectors are normalised before (:func:`open_features`).
    """

    name = "moment-detr"
    looks = (
        "slowfast_features, clip_features and clip_text_features (or vid_slowfast, vid_clip and txt_clip); other "
        "folders are given as VIDEO[+VIDEO...],TEXT"
    )
    suffix = ".npz"
    pooling = "cls"
    VIDEO, TEXT = "features", "last_hidden_state"

    @classmethod
    def inside(cls, folder: Path) -> tuple[tuple[Path, ...], Path] | None:
        """The published folders, in the published order; or NAME_features with NAME_text_features, as we write."""
        for videos, text in (
            (("slowfast_features", "clip_features"), "clip_text_features"),
            (("vid_slowfast", "vid_clip"), "txt_clip"),
        ):
            there = tuple(folder / name for name in videos if (folder / name).is_dir())
            if there and (folder / text).is_dir():
                return there, folder / text
        texts = sorted(folder.glob("*_text_features"))
        video = folder / texts[0].name.replace("_text_features", "_features") if len(texts) == 1 else None
        return ((video,), texts[0]) if video is not None and video.is_dir() else None

    def made_by(self) -> tuple[str, str]:
        """The folders' names, for nothing else is known: slowfast+clip."""
        names = [re.sub(r"_features$|^vid_", "", folder.name) for folder in self.videos_in]
        return "+".join(names), "moment-detr"

    def text_names(self, asked: SampleKey) -> list[str]:
        """qidQID, or as UniVTG's: QID."""
        return [f"qid{asked.qid}", str(asked.qid)]

    def _shapes(self, vid: str) -> list[tuple[tuple[int, ...], str]]:
        paths = [self.video_path(vid, folder) for folder in self.videos_in]
        found = [packed_shape(path, self.VIDEO, "(clips, width)") for path in paths]
        lengths = [shape[0] for shape, _ in found]
        if max(lengths) - min(lengths) > CLIPS_OFF:
            named = ", ".join(f"{path.parent.name} {n}" for path, n in zip(paths, lengths, strict=True))
            raise ValueError(
                f"{self.where}: the features of {vid!r} have different lengths ({named} clips); expected the same "
                f"number up to {CLIPS_OFF}: they may be of different clip lengths or videos"
            )
        return found

    def video_shape(self, vid: str) -> Shape:
        """Of one video's features, all folders together."""
        found = self._shapes(vid)
        width = sum(shape[1] for shape, _ in found)
        return Shape(levels=1, length=min(s[0] for s, _ in found), tokens=1, width=width, dtype=found[0][1])

    def text_shape(self, asked: SampleKey) -> Shape:
        """Of one sentence's features."""
        (length, width), dtype = packed_shape(self.text_path(asked), self.TEXT, "(tokens, width)")
        return Shape(levels=1, length=length, tokens=1, width=width, dtype=dtype)

    def parts(self, vid: str) -> list[Array]:
        """(T, D) of each folder, cut to the shortest."""
        clips = self.video_shape(vid).length
        return [packed(self.video_path(vid, folder), self.VIDEO)[:clips] for folder in self.videos_in]

    def video(self, vid: str, rows: Sequence[int]) -> Array:
        """(1, T, D_v)."""
        return np.concatenate(self.parts(vid), axis=1)[None]

    def text(self, asked: SampleKey, rows: Sequence[int]) -> Array:
        """(1, L, D_t)."""
        self.text_shape(asked)
        array: Array = packed(self.text_path(asked), self.TEXT)[None]
        return array


LAYOUTS: dict[str, type[Layout]] = {
    "r2-tuning": R2TuningLayout,
    "sdst": SDSTLayout,
    "moment-detr": MomentDETRLayout,
}
"""The layouts of others; ``sidelight`` is our own, :class:`~sidelight.features.store.FeatureStore`."""


def recognise(where: str | Path) -> str | None:
    """Which layout the features there have, ``sidelight`` for a store of ours; none if it cannot be told.

    A folder is known by its subfolders. Of VIDEO[+VIDEO...],TEXT one file of the first folder is looked into.

    Raises:
        ValueError: if there are folders of more than one layout.
    """
    parts = _folders(str(where))
    if parts is None:
        folder = Path(where)
        if (folder / "manifest.json").is_file():
            return "sidelight"
        found = [name for name, layout in LAYOUTS.items() if folder.is_dir() and layout.inside(folder)]
        if len(found) > 1:
            raise ValueError(f"{where} has folders of the layouts {' and '.join(found)}; give VIDEO[+VIDEO...],TEXT")
        return found[0] if found else None
    for path in sorted(parts[0][0].glob("[!.]*.np[yz]")):
        if path.suffix == ".npy":
            return R2TuningLayout.name
        held = members(path)
        return next((kind.name for kind in (SDSTLayout, MomentDETRLayout) if kind.VIDEO in held), None)
    return None


def layout_of(where: str | Path, layout: str = "") -> str:
    """The layout that is asked for, else the one that is recognised; ours if none is.

    Raises:
        ValueError: for an unknown name.
    """
    if layout not in ("", "sidelight", *LAYOUTS):
        raise ValueError(f"there is no feature layout {layout!r}; known are sidelight, {', '.join(LAYOUTS)}")
    return layout or recognise(where) or "sidelight"


def _folders(where: str) -> tuple[tuple[Path, ...], Path] | None:
    """VIDEO[+VIDEO...],TEXT; none if it is one folder."""
    if "," not in where or Path(where).exists():
        return None
    videos, _, text = where.rpartition(",")
    if not text or not all(videos.split("+")) or "," in videos:
        raise ValueError(f"{where!r} is no folder of features; expected {_FORM}")
    return tuple(Path(part) for part in videos.split("+")), Path(text)


def _of_four(array: Array) -> Shape:
    length, levels, tokens, width = array.shape
    return Shape(levels=levels, length=length, tokens=tokens, width=width, dtype=str(array.dtype))


def described(shape: Shape) -> str:
    """(T, K, P, D) without the length: "4 levels, 50 tokens a clip, 768 wide, float16"."""
    levels = f"{shape.levels} level{'s' if shape.levels > 1 else ''}"
    tokens = f", {shape.tokens} tokens a clip" if shape.tokens > 1 else ""
    return f"{levels}{tokens}, {shape.width} wide, {shape.dtype}"
