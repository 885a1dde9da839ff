"""The file that says what a library is: its format, its model, and where its videos come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidelight.backbones.protocol import FeatureSpec
from sidelight.io.files import read_json, write_text
from sidelight.io.jsonl import shown
from sidelight.library.folder import MANIFEST, Folder

FORMAT = "sidelight.library/1"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a library remembers about itself."""

    model: str
    """Name or folder of the model."""
    backbone_weights: str | None
    """Folder or hub id of the backbone's weights; None if they come with the model."""
    features: FeatureSpec
    """Spec of the features that the model reads."""
    joint: FeatureSpec
    """Spec of the embeddings by which candidates are searched."""
    sources: tuple[str, ...] = ()
    """Absolute folders, files, patterns and lists that were added; or addresses."""
    excluded: tuple[str, ...] = ()
    """Absolute paths and addresses that were removed, which an update does not add again."""

    def write(self, folder: Folder) -> None:
        """Write the file, completely or not at all."""
        values: dict[str, Any] = {"format": FORMAT, **vars(self)}
        values |= {"features": self.features.to_dict(), "joint": self.joint.to_dict()}
        with folder.writing(MANIFEST) as path:
            write_text(path, json.dumps(values, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Folder) -> Manifest:
        """Read the file of a library.

        Raises:
            ValueError: if the folder is no library, has another format, or its file is damaged.
        """
        with folder.reading(MANIFEST) as path:
            if path is None:
                raise ValueError(
                    f"{folder.name} is no library: {MANIFEST} is missing; make one with `sidelight library add`"
                )
            return cls._read_file(path)

    @classmethod
    def _read_file(cls, path: Path) -> Manifest:
        values = read_json(path)
        if (stated := values.pop("format", None)) != FORMAT:
            raise ValueError(
                f"{path}: expected format {FORMAT!r}, got {shown(stated)}; use the version of sidelight that made it, "
                "or make a new library"
            )
        try:
            return cls(**_checked(values))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}); bring it back from a copy, or make a new library") from None


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a manifest; KeyError, TypeError or ValueError if one is missing or of another type."""
    for name in ("model", "backbone_weights"):
        if not isinstance(values[name], str) and (name == "model" or values[name] is not None):
            raise TypeError(f"{name} is {shown(values[name])}")
    for name in ("sources", "excluded"):
        if not isinstance(values[name], list) or not all(isinstance(path, str) for path in values[name]):
            raise TypeError(f"{name} is {shown(values[name])}")
    for name in ("features", "joint"):
        if not isinstance(values[name], dict):
            raise TypeError(f"{name} is {shown(values[name])}")
    return {
        **values,
        "features": FeatureSpec.from_dict(values["features"]),
        "joint": FeatureSpec.from_dict(values["joint"]),
        "sources": tuple(values["sources"]),
        "excluded": tuple(values["excluded"]),
    }
