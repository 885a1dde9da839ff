"""The base class of the layouts: where the files of a layout are, how to read them and how to write them.

Nothing here knows which backbone made the features.

Legend: K levels, T clips, P tokens of a clip, L tokens of a sentence, D_v / D_t widths of video and text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sidelight.backbones.protocol import FeatureSpec
from sidelight.core.messages import count_of
from sidelight.features.layouts.arrays import Array, find, safe_name, unit
from sidelight.features.store import SampleKey

SPEC_FILE = "feature-spec.json"
"""The file with the feature spec, in a folder that sidelight wrote."""
_OLD_SPEC_FILE = "feature-recipe.json"  # before the first release
_FORM = "a folder, or VIDEO[+VIDEO...],TEXT with the folders of videos and of sentences"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The shape of one video's or sentence's features, known without reading the numbers."""

    levels: int
    """K."""
    length: int
    """T of a video, L of a sentence."""
    tokens: int
    """P; 1 where a clip is one vector."""
    width: int
    """D_v or D_t."""
    dtype: str
    """Type of the numbers, such as float16."""

    def describe(self) -> str:
        """Return the shape without the length, such as "4 levels, 50 tokens a clip, 768 wide, float16"."""
        levels = count_of(self.levels, "level")
        tokens = f", {self.tokens} tokens a clip" if self.tokens > 1 else ""
        return f"{levels}{tokens}, {self.width} wide, {self.dtype}"


class Layout(ABC):
    """Features on disk in the layout of one paper: which files there are and what is in them.

    Args:
        where: a folder with the layout's subfolders, or VIDEO[+VIDEO...],TEXT.

    Raises:
        ValueError: if the folders are missing.
    """

    name: ClassVar[str]
    """The key in LAYOUTS."""
    expected: ClassVar[str]
    """The names of the folders, for messages."""
    suffix: ClassVar[str]
    """The suffix of every file."""
    pooling: ClassVar[str]
    """How the paper pooled the tokens of a clip."""
    keeps_tokens: ClassVar[bool] = False
    """Whether a clip may have several tokens; else it is one vector."""
    joins_folders: ClassVar[bool] = False
    """Whether there may be several folders of videos, whose vectors are put side by side."""
    normalised: ClassVar[bool] = False
    """Whether published loaders divide every vector by its length."""

    def __init__(self, where: str | Path) -> None:
        self.where = str(where)
        folders = folders_named(self.where) or (self.folders_in(Path(where)) if Path(where).is_dir() else None)
        if folders is None:
            raise ValueError(f"{where} does not hold features in the layout {self.name}: expected {self.expected}")
        self.video_folders, self.text_folder = folders
        if len(self.video_folders) > 1 and not self.joins_folders:
            raise ValueError(f"{where}: the layout {self.name} has one folder of videos, got {len(self.video_folders)}")
        for folder in (*self.video_folders, self.text_folder):
            if not folder.is_dir():
                raise ValueError(f"there is no folder {folder}; expected {_FORM}")

    # --- which files ----------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def folders_in(cls, folder: Path) -> tuple[tuple[Path, ...], Path] | None:
        """Return the layout's folders of videos and of sentences in a folder; None if they are missing."""

    @classmethod
    @abstractmethod
    def is_video_file(cls, path: Path) -> bool:
        """Check whether a file holds a video's features in this layout.

        Raises:
            ValueError: if the file cannot be read.
        """

    def video_names(self, vid: str) -> list[str]:
        """Return the names that a video's file may have, without suffix; the first one is written."""
        return [vid]

    def text_names(self, key: SampleKey) -> list[str]:
        """Return the names that a sentence's file may have, without suffix; the first one is written."""
        return [str(key.qid)]

    def vids(self) -> list[str]:
        """Return the ids of the videos that every folder of videos has, sorted."""
        per_folder = [{p.stem for p in folder.glob(f"[!.]*{self.suffix}")} for folder in self.video_folders]
        return sorted(set.intersection(*per_folder))

    def surplus_vids(self, vids: Iterable[str]) -> list[str]:
        """Return the files of videos, by name without suffix, that belong to none of these videos."""
        names = {name for vid in vids for name in self.video_names(vid)}
        return [name for name in self.vids() if name not in names]

    def has_video(self, vid: str) -> bool:
        """Check whether every folder of videos has features of a video."""
        return all(find(folder, self.video_names(vid), self.suffix) for folder in self.video_folders)

    def has_text(self, key: SampleKey) -> bool:
        """Check whether there are features of a sentence."""
        return find(self.text_folder, self.text_names(key), self.suffix) is not None

    def video_path(self, vid: str, folder: Path | None = None) -> Path:
        """Return a video's file in a folder of videos, the first folder unless given.

        Raises:
            ValueError: if the file is missing.
        """
        advice = "; check the annotations' vid, or get the features of this video too"
        return self._path(folder or self.video_folders[0], self.video_names(vid), advice)

    def text_path(self, key: SampleKey) -> Path:
        """Return a sentence's file; errors as :meth:`video_path`."""
        advice = (
            f", the features of {key.query!r}; files are found by qid: read the annotations that these features were "
            "made for"
        )
        return self._path(self.text_folder, self.text_names(key), advice)

    def _path(self, folder: Path, names: list[str], advice: str) -> Path:
        path = find(folder, names, self.suffix)
        if path is None:
            raise ValueError(f"{folder}/{names[0]}{self.suffix} is missing{advice}")
        return path

    @property
    def spec_file(self) -> Path:
        """Return the file with the feature spec, which only folders that sidelight wrote have."""
        old, new = Path(self.where) / _OLD_SPEC_FILE, Path(self.where) / SPEC_FILE
        return old if old.is_file() and not new.is_file() else new

    # --- reading --------------------------------------------------------------------------------------------------

    @abstractmethod
    def video_shape(self, vid: str) -> Shape:
        """Return the shape of one video's features.

        Raises:
            ValueError: if the features are missing or have another form.
        """

    @abstractmethod
    def text_shape(self, key: SampleKey) -> Shape:
        """Return the shape of one sentence's features.

        Raises:
            ValueError: if the features are missing or have another form.
        """

    @abstractmethod
    def video(self, vid: str, rows: Sequence[int]) -> Array:
        """Read one video's features: (K, T, D_v), or (K, T, P, D_v) where the layout keeps all tokens.

        Args:
            vid: id of the video.
            rows: the levels to read, counted from the first level of the file.

        Raises:
            ValueError: if the features are missing, damaged or of another form.
        """

    @abstractmethod
    def text(self, key: SampleKey, rows: Sequence[int]) -> Array:
        """Read one sentence's features, (K, L, D_t); arguments and errors as in :meth:`video`."""

    def pooled_video(self, vid: str, rows: Sequence[int], spec: FeatureSpec) -> Array:
        """Read one video's features, pooled as a spec says; else as :meth:`video`."""
        return self.video(vid, rows)

    def unit_video(self, vid: str, rows: Sequence[int]) -> Array:
        """Read one video's features with every vector divided by its length; else as :meth:`video`."""
        return unit(self.video(vid, rows))

    @abstractmethod
    def paper_backbone(self) -> tuple[str, str]:
        """Return the names of the backbone and of the weights that the paper used."""

    # --- writing --------------------------------------------------------------------------------------------------

    # A layout that is only read leaves out folder_names, write_video and write_text.

    @classmethod
    def folder_names(cls, spec: FeatureSpec) -> tuple[str, str]:
        """Return the names of the folders of videos and of sentences to write.

        Raises:
            ValueError: if the layout is only read.
        """
        raise ValueError(f"the layout {cls.name} can be read and not written; choose another one")

    @classmethod
    def require_fits(cls, spec: FeatureSpec) -> None:
        """Check that features of a spec can be written in this layout.

        Raises:
            ValueError: if the layout lacks a place for all tokens, or for the levels.
        """
        if spec.pooling == "tokens" and not cls.keeps_tokens:
            raise ValueError(
                f"the layout {cls.name} has one vector a clip, the store every token; choose r2-tuning, or extract "
                "with another pooling"
            )
        cls.require_levels(spec.levels)

    @classmethod
    def require_levels(cls, levels: tuple[int, ...]) -> None:
        """Check that the layout has a place for these levels; ValueError if not."""
        if levels != tuple(range(-len(levels), 0)):
            raise ValueError(
                f"the layout {cls.name} holds the last levels of a backbone, the store has {levels}; extract the last "
                f"{-levels[0]}"
            )

    @classmethod
    def create(cls, folder: Path, spec: FeatureSpec) -> Layout:
        """Make the layout's folders for features of a spec, in a folder that may have them already."""
        for name in cls.folder_names(spec):
            (folder / name).mkdir(parents=True, exist_ok=True)
        return cls(folder)

    def video_file(self, vid: str) -> Path:
        """Return the file that :meth:`write_video` writes."""
        return self.video_folders[0] / f"{safe_name(self.video_names(vid)[0], 'vid')}{self.suffix}"

    def text_file(self, key: SampleKey) -> Path:
        """Return the file that :meth:`write_text` writes."""
        return self.text_folder / f"{safe_name(self.text_names(key)[0], 'qid')}{self.suffix}"

    def write_video(self, vid: str, video_KTD: Array) -> None:
        """Write one video's features, (K, T, D_v), or (K, T, P, D_v) where the layout keeps all tokens."""
        raise NotImplementedError

    def write_text(self, key: SampleKey, text_KLD: Array) -> None:
        """Write one sentence's features, (K, L, D_t)."""
        raise NotImplementedError


def folders_named(where: str) -> tuple[tuple[Path, ...], Path] | None:
    """Split VIDEO[+VIDEO...],TEXT into the folders of videos and of sentences; None if ``where`` is one folder.

    Raises:
        ValueError: if a part is empty.
    """
    if "," not in where or Path(where).exists():
        return None
    videos, _, text = where.rpartition(",")
    if not text or not all(videos.split("+")) or "," in videos:
        raise ValueError(f"{where!r} is no folder of features; expected {_FORM}")
    return tuple(Path(part) for part in videos.split("+")), Path(text)
