"""The layouts by name, and how to recognise one. A new layout is a file beside this one and its name here."""

from __future__ import annotations

from pathlib import Path

from sidelight.core.messages import no_such
from sidelight.features.layouts.base import Layout, folders_named
from sidelight.features.layouts.moment_detr import MomentDETRLayout
from sidelight.features.layouts.r2_tuning import R2TuningLayout
from sidelight.features.layouts.sdst import SDSTLayout

LAYOUTS: dict[str, type[Layout]] = {
    "r2-tuning": R2TuningLayout,
    "sdst": SDSTLayout,
    "moment-detr": MomentDETRLayout,
}
"""The layouts of papers; ``sidelight`` is our own store, :class:`~sidelight.features.store.FeatureStore`."""


def recognise(where: str | Path) -> str | None:
    """Return the layout of some features, ``sidelight`` for a store of ours; None if it is unknown.

    A folder is recognised by its subfolders, VIDEO[+VIDEO...],TEXT by one file of the first folder.

    Raises:
        ValueError: if the folder has subfolders of more than one layout.
    """
    folders = folders_named(str(where))
    if folders is None:
        folder = Path(where)
        if (folder / "manifest.json").is_file():
            return "sidelight"
        names = [name for name, layout in LAYOUTS.items() if folder.is_dir() and layout.folders_in(folder)]
        if len(names) > 1:
            raise ValueError(f"{where} has folders of the layouts {' and '.join(names)}; give VIDEO[+VIDEO...],TEXT")
        return names[0] if names else None
    suffixes = {layout.suffix for layout in LAYOUTS.values()}
    for path in sorted(folders[0][0].glob("[!.]*")):
        if path.suffix in suffixes:
            return next((name for name, layout in LAYOUTS.items() if layout.is_video_file(path)), None)
    return None


def layout_of(where: str | Path, layout: str = "") -> str:
    """Return ``layout`` if given, else the layout that is recognised, else ``sidelight``.

    Raises:
        ValueError: if there is no layout of that name.
    """
    if layout not in ("", "sidelight", *LAYOUTS):
        raise ValueError(no_such("feature layout", layout, ("sidelight", *LAYOUTS)))
    return layout or recognise(where) or "sidelight"
