"""Add a feature layout: one ``.npy`` a video and one a sentence, with the levels first.

clips/VID.npy        (levels, clips, width)
sentences/QID.npy    (levels, tokens, width)

python examples/feature_layout.py train RECIPE --data.train_features=folder --data.layout=plain
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from sidelight.cli.main import main
from sidelight.features.layouts import LAYOUTS, Layout, Shape
from sidelight.features.layouts.arrays import Array, mapped
from sidelight.features.store import SampleKey


class PlainLayout(Layout):
    """``.npy`` files. Three more methods, folder_names and write_*, would let ``sidelight features export`` write."""

    name, suffix, pooling, expected = "plain", ".npy", "cls", "the folders clips and sentences"

    @classmethod
    def folders_in(cls, folder: Path) -> tuple[tuple[Path, ...], Path] | None:
        clips, sentences = folder / "clips", folder / "sentences"
        return ((clips,), sentences) if clips.is_dir() and sentences.is_dir() else None

    @classmethod
    def is_video_file(cls, path: Path) -> bool:  # asked only where the folder's name does not tell
        return path.suffix == cls.suffix and mapped(path).ndim == 3

    def paper_backbone(self) -> tuple[str, str]:
        return "clip", "openai/clip-vit-base-patch32"  # unless the recipe names others

    def video_shape(self, vid: str) -> Shape:
        return shape_of(self.video_path(vid))

    def text_shape(self, key: SampleKey) -> Shape:
        return shape_of(self.text_path(key))

    def video(self, vid: str, rows: Sequence[int]) -> Array:
        return mapped(self.video_path(vid))[list(rows)]

    def text(self, key: SampleKey, rows: Sequence[int]) -> Array:
        return mapped(self.text_path(key))[list(rows)]


def shape_of(path: Path) -> Shape:
    """Return the shape of a file; ValueError if it has another form."""
    array = mapped(path)
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(f"{path} must be an array (levels, clips or tokens, width), got {array.shape}")
    return Shape(levels=len(array), length=array.shape[1], tokens=1, width=array.shape[2], dtype=str(array.dtype))


LAYOUTS["plain"] = PlainLayout

if __name__ == "__main__":
    sys.exit(main())
