"""Plots of groundings: frames along a time axis, the highlight curve, predicted and true spans.

A plot is one column. From top to bottom: a title with the model and the legend, the notes of the groundings, a
filmstrip that all queries share, one panel per query (its sentence, its highlight curve, the true spans as outlines,
its moments as bars), and the time axis. The position of each part is computed in inches before anything is drawn, so
parts never overlap.
Matplotlib is used through its objects, never through pyplot: no window opens, no global state changes.
"""

from __future__ import annotations

import itertools
import os
import unicodedata
import warnings
from bisect import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sidelight.io.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sidelight.core.grounding import Grounding, Moment

FrameImage = npt.NDArray[np.uint8]
"""An RGB image (H, W, 3)."""
Span = tuple[float, float]
SUFFIXES = (".png", ".svg", ".pdf", ".jpg", ".jpeg")
"""File name endings of the formats that a plot can have."""

__all__ = ["plot_grounding", "plot_groundings"]

# Blue, vermilion and greys of Okabe and Ito, which people with any colour vision can tell apart, also in print.
PREDICTED = "#0072B2"
TRUE = "#D55E00"
TRUE_SHADE = "#FCEBDD"
CURVE = "#5B6770"
CURVE_FILL = "#D5DCE2"
INK = "#1F2933"
SOFT_INK = "#66717B"
GRID = "#E6EAED"

# Inches. 7.2 inches at 200 dpi are 1440 pixels, twice the usual width on a page, for sharp screens.
WIDTH, DPI = 7.2, 200
LEFT, RIGHT = 0.68, 0.22
TITLE_HEIGHT, STRIP_GAP, AXIS_HEIGHT = 0.40, 0.15, 0.13
STRIP_HEIGHT, STRIP_MAX_HEIGHT = 0.80, 1.10
LINE, HEADING_PAD, LANE, LANE_PAD, PANEL_GAP = 0.165, 0.05, 0.165, 0.05, 0.19
TITLE_SIZE, QUERY_SIZE, SMALL_SIZE, SCORE_SIZE = 9.5, 8.5, 6.8, 6.2
MAX_QUERY_LINES = 2
NOTE_LINE = 0.135
MIN_BAR = 0.022  # so that a 5-second moment in a 2-hour film is visible
LONG_VIDEO = 600  # seconds; in longer videos bars are very narrow, so labels give the start too

# Seconds between two ticks. The smallest step that gives fewer than MAX_TICKS ticks is used.
TICK_STEPS = (1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600, 7200, 14400, 36000, 86400)
MAX_TICKS = 11

# Fonts for letters that DejaVu Sans lacks, used if they are installed.
OTHER_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "PingFang SC", "Hiragino Sans")


def plot_grounding(
    grounding: Grounding,
    path: str | os.PathLike[str],
    *,
    frames: Iterable[tuple[float, FrameImage]] | None = None,
    truth: Sequence[Span] | None = None,
    title: str | None = None,
    top: int = 5,
    faint: bool = False,
) -> Path:
    """Draw the answer to one query; see :func:`plot_groundings`."""
    return plot_groundings([grounding], path, frames=frames, truth=[truth], title=title, top=top, faint=faint)


def plot_groundings(
    groundings: Sequence[Grounding],
    path: str | os.PathLike[str],
    *,
    frames: Iterable[tuple[float, FrameImage]] | None = None,
    truth: Sequence[Sequence[Span] | None] | None = None,
    title: str | None = None,
    top: int = 5,
    faint: bool = False,
) -> Path:
    """Draw the answers to several queries about one video, under one filmstrip.

    All highlight curves share one scale, from the lowest to the highest saliency in the plot, so the curve of a query
    that matches nothing in the video looks flat. Moments are bars. A bar with a higher score is darker. Moments that
    overlap are drawn in separate lanes, the best on top.

    Args:
        groundings: at least one, all of the same duration.
        path: file to write; its ending sets the format (.png, .svg, .pdf, .jpg). The folder must exist.
        frames: (seconds, (H, W, 3) uint8 RGB) along the video, for the filmstrip. Each cell of the filmstrip shows
            the frame nearest to the middle of the cell. None: no filmstrip.
        truth: true spans (start, end) of each grounding in seconds, or None where the true spans are unknown.
        title: the title; the file name of the video unless given.
        top: most moments to draw per query.
        faint: draw moments with less than a quarter of the best score too, which are noise.

    Returns:
        The path. The file appears whole or not at all.

    Raises:
        ValueError: if there are no groundings, or their durations differ; if frames or true spans have the wrong form;
            if the path cannot be written; if Matplotlib is missing.
    """
    groundings = list(groundings)
    target = checked_target(path)
    duration = _checked_duration(groundings)
    spans = _checked_truth(truth, len(groundings), duration)
    strip = _checked_frames(frames or ())
    if top < 1:
        raise ValueError(f"top is how many moments to draw for each query, at least 1; got {top}")
    figure, fonts = new_page()

    page = Page(figure, duration, fonts)
    drawn = [(grounding if faint else grounding.without_faint()).top(top) for grounding in groundings]
    panels = [
        page.panel(grounding, truth, moments, len(groundings))
        for grounding, truth, moments in zip(groundings, spans, drawn, strict=True)
    ]
    strip_height = _strip_height(strip, page.width) if strip else 0.0
    below_title = strip_height + STRIP_GAP if strip else 0.0
    models = list(dict.fromkeys(g.model for g in groundings if g.model))
    notes = page.notes(list(dict.fromkeys(note for g in groundings for note in g.notes)))
    head = TITLE_HEIGHT + len(notes) * NOTE_LINE
    page.height = head + below_title + sum(panel.height for panel in panels) + AXIS_HEIGHT
    figure.set_size_inches(WIDTH, page.height)
    if title is None:
        title = next((Path(g.video).name for g in groundings if g.video), "")
    page.title(title, models, any(known is not None for known in spans))
    for i, line in enumerate(notes):
        page.text(LEFT, TITLE_HEIGHT - 0.05 + i * NOTE_LINE, line, size=SMALL_SIZE, color=TRUE)
    if strip:
        page.filmstrip(strip, head, strip_height)
    y = head + below_title
    scale = _saliency_range(groundings)
    for panel in panels:
        page.draw(panel, y, scale)
        y += panel.height
    page.time_axis(y - PANEL_GAP + 0.03)
    return save_page(figure, target)


@dataclass(frozen=True)
class _Panel:
    """The part of the plot for one query. Its heights in inches are known before anything is drawn."""

    grounding: Grounding
    truth: Sequence[Span] | None
    heading: list[str]
    lanes: list[list[Moment]]
    curve_height: float

    @property
    def heading_height(self) -> float:
        return len(self.heading) * LINE + HEADING_PAD

    @property
    def rows(self) -> int:
        """Return the number of rows of bars: the lanes of moments, and one row of true spans above them."""
        return max(len(self.lanes), 1) + (self.truth is not None)

    @property
    def height(self) -> float:
        return self.heading_height + self.curve_height + LANE_PAD + self.rows * LANE + PANEL_GAP


class Page:
    """A figure of fixed width, measured in inches from its upper left corner."""

    def __init__(self, figure: Figure, duration: float, fonts: list[str]) -> None:
        self.figure = figure
        self.duration = duration
        self.fonts = fonts
        self.width = WIDTH - LEFT - RIGHT
        self.per_second = self.width / duration
        self.height = 1.0

    def axes(self, y: float, height: float) -> Axes:
        """Add empty axes below ``y``: x in inches over the whole duration, y from 0 (bottom) to 1."""
        box = (LEFT / WIDTH, 1 - (y + height) / self.height, self.width / WIDTH, height / self.height)
        axes: Axes = self.figure.add_axes(box, xlim=(0, self.width), ylim=(0, 1), xticks=[], yticks=[])
        axes.patch.set_visible(False)
        axes.spines[:].set_visible(False)
        return axes

    def grid(self, axes: Axes) -> None:
        for tick in _ticks(self.duration):
            axes.axvline(tick * self.per_second, color=GRID, linewidth=0.6, zorder=0)

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Write one line of text. Matplotlib does not read it as mathematics, as a query may hold two dollar signs."""
        style = {"color": INK, "va": "center_baseline", "family": self.fonts, "parse_math": False, **style}
        self.figure.text(x / WIDTH, 1 - y / self.height, text, **style)

    def label(self, y: float, text: str, color: str) -> None:
        """Write a label in the left margin."""
        self.text(LEFT - 0.08, y, text, size=SMALL_SIZE, color=color, ha="right")

    def text_width(self, text: str, size: float, weight: str = "normal") -> float:
        from matplotlib.font_manager import FontProperties

        font = FontProperties(family=self.fonts, size=size, weight=weight)
        renderer = self.figure.canvas.get_renderer()  # type: ignore[attr-defined]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            return float(renderer.get_text_width_height_descent(text, font, False)[0]) / DPI

    # layout: what goes where

    def panel(
        self, grounding: Grounding, truth: Sequence[Span] | None, moments: Sequence[Moment], panels: int
    ) -> _Panel:
        heading = self.wrap(f"“{_one_line(grounding.query)}”", QUERY_SIZE, self.width, MAX_QUERY_LINES)
        curve_height = 0.62 if panels <= 2 else 0.50 if panels <= 4 else 0.40
        return _Panel(grounding, truth, heading, self.pack(moments), curve_height)

    def wrap(self, text: str, size: float, width: float, max_lines: int) -> list[str]:
        """Break bold text into at most ``max_lines`` lines of a width; longer text ends in an ellipsis."""
        lines: list[str] = []
        while self.text_width(text, size, "bold") > width:
            last = len(lines) == max_lines - 1
            end = ("…”" if text.endswith("”") else "…") if last else ""
            lengths = range(1, len(text))
            cut = bisect(lengths, width, key=lambda n: self.text_width(text[:n] + end, size, "bold")) or 1
            # Cut at a space if one is near. Some languages have no spaces.
            cut = max(text.rfind(" ", max(cut - 24, 1), cut + 1), 0) or cut
            if last:
                return [*lines, text[:cut].rstrip(" ,.;:") + end]
            lines.append(text[:cut])
            text = text[cut:].lstrip()
        return [*lines, text] if text else lines

    def pack(self, moments: Iterable[Moment]) -> list[list[Moment]]:
        """Distribute moments over lanes: each goes to the first lane where its bar and label touch no others."""
        lanes: list[list[Moment]] = []
        extents: list[list[Span]] = []
        for moment in moments:
            (left, right), (x, align, text) = self.bar(moment.start, moment.end), self.score(moment)
            width = self.text_width(text, SCORE_SIZE, "bold")
            left = (x - width if align == "right" else left) - 0.02
            right = (x + width if align == "left" else right) + 0.02
            free = (i for i, lane in enumerate(extents) if all(right < a or left > b for a, b in lane))
            row = next(free, len(lanes))
            if row == len(lanes):
                lanes.append([])
                extents.append([])
            lanes[row].append(moment)
            extents[row].append((left, right))
        return lanes

    def bar(self, start: float, end: float) -> Span:
        """Return the left and right end of a bar in inches, at least MIN_BAR apart."""
        left, right = start * self.per_second, end * self.per_second
        left = min(max(left - max(MIN_BAR - (right - left), 0.0) / 2, 0.0), self.width - MIN_BAR)
        return left, min(max(right, left + MIN_BAR), self.width)

    def score(self, moment: Moment) -> tuple[float, str, str]:
        """Return (x, alignment, text) of a moment's label: in the bar if it fits, else right of it, else left of it."""
        left, right = self.bar(moment.start, moment.end)
        text = f"{moment.score:.2f}"
        if right - left >= self.text_width(text, SCORE_SIZE, "bold") + 0.08:
            return (left + right) / 2, "center", text
        if self.duration >= LONG_VIDEO:
            text = f"{text} at {_clock(moment.start)}"
        if right + 0.04 + self.text_width(text, SCORE_SIZE, "bold") <= self.width:
            return right + 0.04, "left", text
        return left - 0.04, "right", text

    # drawing, from top to bottom

    def notes(self, notes: Sequence[str]) -> list[str]:
        """Return the lines of the notes below the title, at most three per note."""
        sentences = (_one_line(f"{note[0].upper()}{note[1:]}.") for note in notes if note)
        return [line for note in sentences for line in self.wrap(note, SMALL_SIZE, self.width, 3)]

    def title(self, title: str, models: Sequence[str], with_truth: bool) -> None:
        """Write the title and the model on the left, and the legend on the right."""
        from matplotlib.patches import Rectangle

        entries = [("predicted", PREDICTED, PREDICTED), ("highlight curve", CURVE_FILL, CURVE)]
        if with_truth:
            entries.insert(0, ("true", "none", TRUE))
        y, x = 0.19, WIDTH - RIGHT
        for label, fill, edge in entries:
            x -= self.text_width(label, SMALL_SIZE)
            self.text(x, y, label, size=SMALL_SIZE, color=SOFT_INK)
            x -= 0.22
            corner = (x / WIDTH, 1 - (y + 0.045) / self.height)
            size = (0.17 / WIDTH, 0.09 / self.height)
            self.figure.add_artist(Rectangle(corner, *size, facecolor=fill, edgecolor=edge, linewidth=1.0))
            x -= 0.16
        by = self.wrap(f"by {_one_line(', '.join(models))}", SMALL_SIZE, (x - LEFT) / 2, 1) if models else []
        room = x - LEFT - sum(self.text_width(line, SMALL_SIZE) + 0.1 for line in by)
        end = LEFT
        for line in self.wrap(_one_line(title), TITLE_SIZE, room, 1):
            self.text(LEFT, y, line, size=TITLE_SIZE, weight="bold")
            end += self.text_width(line, TITLE_SIZE, "bold") + 0.1
        for line in by:
            self.text(end, y, line, size=SMALL_SIZE, color=SOFT_INK)

    def filmstrip(self, frames: list[tuple[float, FrameImage]], y: float, height: float) -> None:
        axes = self.axes(y, height)
        strip, seams = _strip(frames, self.duration, round(self.width * DPI), round(height * DPI))
        axes.imshow(strip, extent=(0, self.width, 0, 1), aspect="auto", interpolation="none")
        axes.vlines(np.array(seams) / DPI, 0, 1, color="white", linewidth=0.7, alpha=0.8)

    def draw(self, panel: _Panel, y: float, scale: Span) -> None:
        for i, line in enumerate(panel.heading):
            self.text(LEFT, y + (i + 0.5) * LINE, line, size=QUERY_SIZE, weight="bold")
        y += panel.heading_height
        self.curve(panel, y, scale)
        self.lanes(panel, y + panel.curve_height + LANE_PAD)

    def curve(self, panel: _Panel, y: float, scale: Span) -> None:
        axes = self.axes(y, panel.curve_height)
        self.grid(axes)
        for start, end in panel.truth or ():
            axes.axvspan(*self.bar(start, end), facecolor=TRUE_SHADE, linewidth=0, zorder=0.5)
        seconds, saliency = _curve_points(panel.grounding)
        x, heights = seconds * self.per_second, 0.04 + 0.92 * (saliency - scale[0]) / (scale[1] - scale[0])
        axes.fill_between(x, heights, 0, color=CURVE_FILL, linewidth=0, zorder=1)
        axes.plot(x, heights, color=CURVE, linewidth=1.1 if len(x) < 500 else 0.6, solid_joinstyle="round")
        self.label(y + panel.curve_height / 2, "highlight", SOFT_INK)

    def lanes(self, panel: _Panel, y: float) -> None:
        """Draw the true spans, and below them the predicted moments."""
        from matplotlib.patches import Rectangle

        axes = self.axes(y, panel.rows * LANE)
        axes.set_ylim(panel.rows, 0)  # one unit per lane, downwards
        self.grid(axes)
        first = int(panel.truth is not None)
        if first:
            self.label(y + 0.5 * LANE, "true", TRUE)
        for start, end in panel.truth or ():
            left, right = self.bar(start, end)
            outline: dict[str, Any] = {"fill": False, "edgecolor": TRUE, "linewidth": 1.1, "clip_on": False}
            axes.add_patch(Rectangle((left, 0.14), right - left, 0.72, **outline))
        self.label(y + (first + 0.5) * LANE, "predicted", PREDICTED)
        small: dict[str, Any] = {"size": SCORE_SIZE, "family": self.fonts, "va": "center_baseline"}
        for row, lane in enumerate(panel.lanes, first):
            for moment in lane:
                left, right = self.bar(moment.start, moment.end)
                strength = 0.25 + 0.75 * min(max(moment.score, 0.0), 1.0)
                box = Rectangle((left, row + 0.12), right - left, 0.76, linewidth=0)
                box.set_facecolor(_on_white(PREDICTED, strength))  # no alpha: the grid must not shine through
                axes.add_patch(box)
                x, align, text = self.score(moment)
                color = PREDICTED if align != "center" else "white" if strength > 0.6 else INK
                axes.text(x, row + 0.5, text, ha=align, color=color, weight="bold", **small)
        for row, spans in ((0, panel.truth), (first, panel.lanes)):
            if spans is not None and not spans:
                axes.text(0.04, row + 0.5, "none", color=SOFT_INK, style="italic", **small)

    def time_axis(self, y: float) -> None:
        axes = self.axes(y, 0.02)
        axes.axhline(1, color=SOFT_INK, linewidth=0.8)
        ticks = _ticks(self.duration)
        axes.set_xticks([tick * self.per_second for tick in ticks], [_clock(tick) for tick in ticks])
        style: dict[str, Any] = {
            "labelsize": SMALL_SIZE,
            "labelcolor": SOFT_INK,
            "labelfontfamily": self.fonts[0],
        }
        axes.tick_params("x", length=2.5, pad=2, color=SOFT_INK, **style)


def _ticks(duration: float) -> list[float]:
    """Return the seconds of the ticks, from 0, at round distances."""
    step = next((s for s in TICK_STEPS if duration / s < MAX_TICKS), TICK_STEPS[-1])
    return [float(t) for t in np.arange(0, duration + 1e-6, step)]


def _clock(seconds: float) -> str:
    """Return seconds as m:ss, or as h:mm:ss from one hour on."""
    hours, minutes, rest = int(seconds) // 3600, int(seconds) // 60 % 60, int(seconds) % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _one_line(text: str) -> str:
    """Replace line breaks and control characters by single spaces."""
    return " ".join("".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text).split())


def _on_white(color: str, strength: float) -> str:
    """Return the colour that ``color`` has on white at an opacity of ``strength``."""
    parts = (255 - strength * (255 - int(color[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part):02X}" for part in parts)


def _saliency_range(groundings: Sequence[Grounding]) -> tuple[float, float]:
    low = float(min(g.saliency.min() for g in groundings))
    return low, max(float(max(g.saliency.max() for g in groundings)), low + 1e-3)


def _curve_points(grounding: Grounding) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return (seconds, saliency) at the middle of each clip, extended level to both ends of the video."""
    middles = grounding.timeline.clip_spans().mean(axis=1)
    seconds = np.concatenate([[0.0], middles, [grounding.timeline.duration]])
    return seconds, np.pad(np.asarray(grounding.saliency, dtype=np.float64), 1, mode="edge")


def _strip_height(frames: list[tuple[float, FrameImage]], width: float) -> float:
    """Return the height of the filmstrip in inches: higher for few frames, so that less of each is cut off."""
    shape = frames[0][1].shape
    return float(np.clip(width / len(frames) * shape[0] / shape[1], STRIP_HEIGHT, STRIP_MAX_HEIGHT))


def _strip(
    frames: list[tuple[float, FrameImage]], duration: float, width: int, height: int
) -> tuple[FrameImage, list[int]]:
    """Return the filmstrip (height, width, 3), and the x of the borders between its cells, in pixels.

    The cells have equal widths and no gaps. Each shows the middle part of the frame nearest in time to its middle.
    """
    from PIL import Image

    seconds = np.array([t for t, _ in frames])
    shape = frames[0][1].shape
    cells = int(np.clip(round(width / (height * shape[1] / shape[0])), 1, len(frames)))
    edges = [round(i * width / cells) for i in range(cells + 1)]
    strip = np.empty((height, width, 3), np.uint8)
    for i, (left, right) in enumerate(itertools.pairwise(edges)):
        nearest = int(np.abs(seconds - (i + 0.5) / cells * duration).argmin())
        image = Image.fromarray(frames[nearest][1])
        scale = max((right - left) / image.width, height / image.height)
        wide, high = max(right - left, round(image.width * scale)), max(height, round(image.height * scale))
        x, y = (wide - (right - left)) // 2, (high - height) // 2
        scaled = np.asarray(image.resize((wide, high), Image.Resampling.LANCZOS))
        strip[:, left:right] = scaled[y : y + height, x : x + right - left]
    return strip, edges[1:-1]


def checked_target(path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise ValueError(f"cannot draw to {str(target)!r}: its name must end in .png, .svg, .pdf or .jpg")
    if not target.parent.is_dir():
        raise ValueError(f"cannot write {target}: there is no folder {target.parent}; make it first")
    if target.is_dir():
        raise ValueError(f"cannot write {target}: it is a folder; give a file name")
    return target


def _checked_duration(groundings: Sequence[Grounding]) -> float:
    if not groundings:
        raise ValueError("nothing to draw: expected at least one grounding, got none")
    durations = sorted({float(g.timeline.duration) for g in groundings})
    if len(durations) > 1:
        raise ValueError(
            f"groundings in one plot must be of one video; got durations of "
            f"{', '.join(f'{d:g}' for d in durations)} s; draw one plot for each video"
        )
    return durations[0]


def _checked_truth(
    truth: Sequence[Sequence[Span] | None] | None, count: int, duration: float
) -> list[Sequence[Span] | None]:
    truth = [None] * count if truth is None else list(truth)
    if len(truth) != count:
        raise ValueError(f"truth must have one entry per grounding, spans or None: {len(truth)} for {count}")
    for start, end in (span for spans in truth for span in spans or ()):
        if not 0 <= start <= end <= duration + 1.0:  # annotations round the duration
            raise ValueError(
                f"a true span must satisfy 0 <= start <= end <= {duration:g} s, the video's duration; "
                f"got ({start:g}, {end:g})"
            )
    return truth


def _checked_frames(frames: Iterable[tuple[float, FrameImage]]) -> list[tuple[float, FrameImage]]:
    checked = [(float(seconds), np.asarray(image)) for seconds, image in frames]
    for seconds, image in checked:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ValueError(
                f"frames must be (seconds, image) with images of shape (H, W, 3) and type uint8; the image at "
                f"{seconds:g} s is {image.shape}, {image.dtype}"
            )
    return checked


def new_page() -> tuple[Figure, list[str]]:
    """Return an empty figure, and the names of its fonts."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.font_manager import fontManager
    except ImportError as error:
        raise ValueError('plots need Matplotlib, which is missing: pip install "sidelight[plot]"') from error
    figure = Figure(figsize=(WIDTH, 1.0), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    installed = {font.name for font in fontManager.ttflist}
    return figure, ["DejaVu Sans", *(name for name in OTHER_FONTS if name in installed)]


def save_page(figure: Figure, target: Path) -> Path:
    """Write a figure beside its target, then rename it; return the target."""
    with replacing(target) as beside, warnings.catch_warnings():
        # Letters that no installed font has become boxes. The plot is still useful.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(beside, format=target.suffix[1:].lower(), dpi=DPI)
    return target
