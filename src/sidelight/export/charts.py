"""Charts of scores: a comparison of two predictions, and the reliability of scores.

Matplotlib is used through its objects, never through pyplot: no window opens, no global state changes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sidelight.io.files import replacing
from sidelight.metrics.calibration import Reliability
from sidelight.metrics.compare import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Blue, vermilion and grey of Okabe and Ito, which people with any colour vision can tell apart, also in print.
FIRST, SECOND, NEITHER, INK = "#0072B2", "#D55E00", "#8A949C", "#1F2933"
EQUAL = "#D5DCE2"
DPI = 160


def plot_comparison(comparison: Comparison, path: str | Path) -> Path:
    """Draw the differences of all metrics with their intervals, and the share of queries that each prediction wins.

    The colour says which prediction is better. Grey is no difference (adjusted p of 0.05 or more).

    Args:
        comparison: the differences and wins to draw.
        path: file to write; its ending sets the format.

    Raises:
        ValueError: if Matplotlib is missing.
    """
    metrics, wins = comparison.metrics, comparison.wins
    figure = new_figure(9.5, 1.5 + 0.26 * max(len(metrics), 2.2 * len(wins)))
    left, right = figure.subplots(1, 2, width_ratios=[1.6, 1])
    colours = {"first": FIRST, "second": SECOND, "no difference": NEITHER}
    for row, metric in enumerate(metrics):
        difference, colour = metric.difference, colours[metric.verdict]
        left.plot([difference.low, difference.high], [row, row], color=colour, lw=2.2, solid_capstyle="round")
        left.plot(difference.value, row, "o", color=colour, ms=5)
    left.axvline(0, color=INK, lw=0.8)
    left.set_yticks(range(len(metrics)), [m.metric for m in metrics], fontsize=8)
    left.invert_yaxis()
    percent = 100 * metrics[0].difference.confidence
    left.set_xlabel(f"difference in points, {percent:g} % interval", fontsize=8)
    left.set_title(f"{comparison.names[0]} minus {comparison.names[1]}", fontsize=10, loc="left")
    for row, win in enumerate(wins):
        total = max(1, win.first + win.second + win.equal)
        start = 0.0
        for count, colour in ((win.first, FIRST), (win.equal, EQUAL), (win.second, SECOND)):
            share = 100 * count / total
            right.barh(row, share, left=start, color=colour, height=0.7)
            if share > 7:  # narrower bars have no room for the count
                ink = INK if colour == EQUAL else "white"
                right.text(start + share / 2, row, str(count), ha="center", va="center", fontsize=7, color=ink)
            start += share
    right.set_yticks(range(len(wins)), [w.metric for w in wins], fontsize=8)
    right.invert_yaxis()
    right.set_xlim(0, 100)
    right.set_xlabel("share of queries, %", fontsize=8)
    right.set_title("wins per query", fontsize=10, loc="left")
    for axes in (left, right):
        axes.tick_params(axis="x", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    names = [(FIRST, f"{comparison.names[0]} better"), (SECOND, f"{comparison.names[1]} better"), (NEITHER, "neither")]
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, lw=4, label=label) for colour, label in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return save_figure(figure, path)


def plot_reliability(reliability: Reliability, path: str | Path, *, min_score: float | None = None) -> Path:
    """Draw the share of moments of each score that are right, against the share that the score promises.

    Args:
        reliability: bins of scores.
        path: file to write; its ending sets the format.
        min_score: threshold to mark.

    Raises:
        ValueError: if Matplotlib is missing.
    """
    figure = new_figure(4.6, 4.8)
    upper, lower = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    middle = (reliability.edges[:-1] + reliability.edges[1:]) / 2
    width = reliability.edges[1] - reliability.edges[0]
    upper.plot([0, 1], [0, 1], color=NEITHER, lw=1, ls="--", label="score = share that is right")
    upper.bar(
        middle, np.nan_to_num(reliability.right_N), width=0.92 * width, color=FIRST, alpha=0.85, label="share right"
    )
    upper.plot(reliability.score_N, reliability.right_N, "o", color=INK, ms=4, label="at the mean score")
    upper.set_ylabel("share of moments that are right", fontsize=8)
    upper.set_title(f"expected calibration error {100 * reliability.error:.1f} points", fontsize=10, loc="left")
    lower.bar(middle, reliability.count_N, width=0.92 * width, color=NEITHER)
    lower.set_ylabel("moments", fontsize=8)
    lower.set_xlabel("score of the best moment", fontsize=8)
    if min_score is not None:
        for axes in (upper, lower):
            axes.axvline(min_score, color=SECOND, lw=1.2)
        upper.plot([], [], color=SECOND, lw=1.2, label=f"min-score {min_score:.2f}")
    upper.legend(fontsize=7, frameon=False, loc="upper left")
    for axes in (upper, lower):
        axes.set_xlim(0, 1)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, path)


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
