"""A contact sheet: one frame of each moment with its time and score, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sidelight.core.display import NO_MOMENT, clock
from sidelight.core.grounding import Grounding
from sidelight.export import plot
from sidelight.export.editors import one_line
from sidelight.export.thumbnails import FrameImage, moment_frames

_MARGIN, _GAP, _LINE, _CAPTION, _BELOW = 0.25, 0.1, 0.165, 0.3, 0.2
"""Inches: around the sheet, between frames, a line of a heading, below a frame, and between two queries."""
_HIGHEST = 3.3
"""Inches of the highest frame."""
_NARROWEST = 1.5
"""Inches that a caption needs."""


def contact_sheet(
    groundings: Grounding | Sequence[Grounding],
    path: str | Path,
    *,
    video: str | Path | None = None,
    top: int | None = None,
) -> Path:
    """Draw a frame of each moment in the order of time, with the moment's times, rank (#1 is best) and score.

    The frame is taken where the highlight curve is highest in the moment.

    Args:
        groundings: one answer, or several, each with a heading of its own.
        path: file to write; its ending sets the format (.png, .jpg, .svg, .pdf).
        video: the video file, where the answers do not name it.
        top: moments of each answer, best first; all unless given.

    Returns:
        The path.

    Raises:
        ValueError: if there is no answer, an answer names no video, the path cannot be written, or Matplotlib is
            missing.
        VideoError: if a video cannot be read.
    """
    answers = [groundings] if isinstance(groundings, Grounding) else list(groundings)
    if not answers:
        raise ValueError("there is no answer to draw; expected at least one")
    target = plot.checked_target(path)
    figure, fonts = plot.new_page()
    page = plot.Page(figure, 1.0, fonts)
    pixels = round(_HIGHEST * plot.DPI)
    images = [moment_frames(answer, video, top=top, height=pixels) for answer in answers]
    # All answers have columns of one width, and no column is empty in all of them.
    columns = max(map(_columns, images))
    sections = [_Section(page, *section, columns=columns) for section in zip(answers, images, strict=True)]
    page.height = 2 * _MARGIN + sum(section.height for section in sections)
    figure.set_size_inches(plot.WIDTH, page.height)
    y = _MARGIN
    for section in sections:
        section.draw(y)
        y += section.height
    return plot.save_page(figure, target)


def _columns(images: Sequence[FrameImage]) -> int:
    """Return in how many columns frames stand, so that their rows are about equally long."""
    most = 4 if not images or images[0].shape[1] >= images[0].shape[0] else 6
    rows = -(-len(images) // most)
    return -(-len(images) // rows) if images else 1


class _Section:
    """The frames of one answer below its query. The height is known before anything is drawn.

    Args:
        page: where to draw.
        grounding: the answer.
        images: a frame for each of its best moments, best first.
        columns: columns of the sheet.
    """

    def __init__(self, page: plot.Page, grounding: Grounding, images: Sequence[FrameImage], *, columns: int) -> None:
        room = plot.WIDTH - 2 * _MARGIN
        name = f" in {Path(grounding.video).name}" if grounding.video else ""
        self._page = page
        self._heading = page.wrap(one_line(f"“{grounding.query}”{name}"), plot.QUERY_SIZE, room, 2)
        moments = enumerate(zip(grounding.moments, images, strict=False), 1)
        self._cells = sorted(moments, key=lambda cell: (cell[1][0].start, cell[1][0].end))
        aspect = images[0].shape[1] / images[0].shape[0] if images else 1.0
        self._columns = columns
        # A single frame would fill a page; a narrow one still has room for its caption.
        width = (room - (columns - 1) * _GAP) / columns
        self._width = min(width, max(_HIGHEST * aspect, _NARROWEST))
        self._image_height = min(self._width / aspect, _HIGHEST)
        rows = -(-len(self._cells) // self._columns)
        self._head = len(self._heading) * _LINE + 0.08
        self.height = self._head + (rows * (self._image_height + _CAPTION) if self._cells else _LINE) + _BELOW

    def draw(self, y: float) -> None:
        """Draw the section below ``y`` inches."""
        page = self._page
        for i, line in enumerate(self._heading):
            page.text(_MARGIN, y + (i + 0.5) * _LINE, line, size=plot.QUERY_SIZE, weight="bold")
        if not self._cells:
            page.text(_MARGIN, y + self._head + _LINE / 2, NO_MOMENT, size=plot.SMALL_SIZE, color=plot.SOFT_INK)
        for place, (rank, (moment, image)) in enumerate(self._cells):
            row, column = divmod(place, self._columns)
            x = _MARGIN + column * (self._width + _GAP)
            top = y + self._head + row * (self._image_height + _CAPTION)
            box = (
                x / plot.WIDTH,
                1 - (top + self._image_height) / page.height,
                self._width / plot.WIDTH,
                self._image_height / page.height,
            )
            axes = page.figure.add_axes(box, xticks=[], yticks=[])
            axes.imshow(image, aspect="equal", interpolation="antialiased")
            axes.spines[:].set_visible(False)
            below = top + self._image_height + 0.1
            page.text(x, below, f"{clock(moment.start)} - {clock(moment.end)}", size=plot.SMALL_SIZE, color=plot.INK)
            label = f"#{rank}  {moment.score:.2f}"
            page.text(x + self._width, below, label, size=plot.SMALL_SIZE, color=plot.SOFT_INK, ha="right")
