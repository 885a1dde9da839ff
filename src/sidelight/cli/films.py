"""The outputs that people watch: clips, one film, a contact sheet, a report. `ground` and `export` share them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sidelight.cli.shared import require_plot, require_range

if TYPE_CHECKING:
    from sidelight.core.grounding import Grounding
    from sidelight.export.clips import Clip


@dataclass(frozen=True, kw_only=True)
class Films:
    """The files that a command writes for people to watch, by the names of its options.

    Raises:
        ValueError: if an option does not fit: a suffix, or a missing package.
    """

    clips: str | None = None
    join: str | None = None
    copy: bool = False
    contact_sheet: str | None = None
    report: str | None = None
    padding: float = 0.0

    def __post_init__(self) -> None:
        require_range(0, padding=self.padding)
        require_plot(self.contact_sheet, option="contact-sheet")
        if self.copy and not (self.clips or self.join):
            raise ValueError("--copy says how --clips and --join cut; give one of them too")
        if self.report and Path(self.report).suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"--report must end in .html, got {self.report}")
        if self.join:
            from sidelight.export.clips import film_suffix

            film_suffix(self.join)

    def __bool__(self) -> bool:
        """Return whether a file is written."""
        return bool(self.clips or self.join or self.contact_sheet or self.report)

    def without_cuts(self) -> Films:
        """Return these files without clips and a film, for answers without a moment."""
        return replace(self, clips=None, join=None, copy=False)

    def write(
        self, groundings: Sequence[Grounding], *, video: str | None = None, top: int | None = None, player: bool = True
    ) -> None:
        """Write the files and say so.

        Args:
            groundings: the answers.
            video: the video file, where the answers do not name it.
            top: moments of each answer; all unless given.
            player: whether the report shows the video.
        """
        from sidelight.export import clips, report, sheet

        if self.clips:
            cut = clips.cut_clips(
                groundings, self.clips, video=video, top=top, padding=self.padding, copy=self.copy, progress=True
            )
            print_clips(cut, copied=self.copy)
        if self.join:
            notes = clips.join_clips(
                groundings, self.join, video=video, top=top, padding=self.padding, copy=self.copy, progress=True
            )
            print_notes(notes)
            print(f"wrote {self.join}")
        if self.contact_sheet:
            print(f"wrote {sheet.contact_sheet(groundings, self.contact_sheet, video=video, top=top)}")
        if self.report:
            print(f"wrote {report.write_report(groundings, self.report, video=video, top=top, player=player)}")


def print_clips(clips: Sequence[Clip], *, copied: bool) -> None:
    """Print a line per clip: the file and what it holds.

    Args:
        clips: the clips.
        copied: whether they begin at keyframes.
    """
    from sidelight.core.display import clock

    for clip in clips:
        print_notes(clip.notes)
        if not clip.is_new:
            print(f"kept  {clip.path}")
            continue
        start = f"{clip.start:.3f} s (keyframe)" if copied else clock(clip.start)
        end = f"{clip.end:.3f} s" if copied else clock(clip.end)
        print(f"wrote {clip.path}  {start} to {end}, {clip.frames} frames")


def print_notes(notes: Sequence[str]) -> None:
    """Print sentences that matter to an output on stderr."""
    for note in notes:
        print(f"sidelight: note: {note}", file=sys.stderr)
