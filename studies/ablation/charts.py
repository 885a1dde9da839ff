"""Figures of the ablation plots, in the colours of the package's charts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sidelight.export.charts import DPI
from sidelight.io.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches.

    Raises:
        ValueError: if Matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError('charts need Matplotlib: pip install "sidelight[plot]"') from None
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure beside its target, then rename it; return the target."""
    with replacing(path) as partial:
        figure.savefig(partial)
    return Path(path)
