"""The outputs that people watch: clips, one film, a contact sheet, a report. `ground` and `export` share them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sidelight.cli.shared import require_plot, require_range
from sidelight.core.messages import and_list, count_of

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
    thumbnails: str | None = None
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
        return bool(self.options())

    def options(self) -> list[str]:
        """Return the names of the options that were given."""
        cuts = {"--clips": self.clips, "--join": self.join, "--thumbnails": self.thumbnails}
        pages = {"--contact-sheet": self.contact_sheet, "--report": self.report}
        return [name for name, file in {**cuts, **pages}.items() if file]

    def without_cuts(self) -> Films:
        """Return these files without clips, a film and thumbnails, for answers without a moment."""
        return replace(self, clips=None, join=None, copy=False, thumbnails=None)

    def write(self, groundings: Sequence[Grounding], *, video: str | None = None, player: bool = True) -> None:
        """Write the files and say so.

        Args:
            groundings: the answers, with the moments that are shown.
            video: the video file, where the answers do not name it.
            player: whether the report shows the video.
        """
        from sidelight.export import clips, report, sheet, thumbnails

        if self.clips:
            cut = clips.cut_clips(
                groundings, self.clips, video=video, padding=self.padding, copy=self.copy, progress=True
            )
            print_clips(cut, copied=self.copy)
        if self.join:
            notes = clips.join_clips(
                groundings, self.join, video=video, padding=self.padding, copy=self.copy, progress=True
            )
            print_notes(notes)
            print(f"wrote {self.join}")
        if self.thumbnails:
            frames = thumbnails.write_thumbnails(groundings, self.thumbnails, video=video)
            print(f"wrote {count_of(len(frames), 'frame')} into {self.thumbnails}")
        if self.contact_sheet:
            print(f"wrote {sheet.contact_sheet(groundings, self.contact_sheet, video=video)}")
        if self.report:
            print(f"wrote {report.write_report(groundings, self.report, video=video, player=player)}")


def worth_showing(
    groundings: Sequence[Grounding], *, top: int | None, min_score: float | None, options: Sequence[str]
) -> list[Grounding]:
    """Return the answers with the moments that are cut and drawn, and print how many others were left out.

    These are the best ones, without those below a quarter of the best score, unless the user has chosen a score.

    Args:
        groundings: the answers, without moments below ``min_score``.
        top: moments of each answer; all unless given.
        min_score: the score that the user gave.
        options: names of the outputs that leave moments out, for the message; nothing is printed if there are none.
    """
    best = [grounding if top is None else grounding.best(top) for grounding in groundings]
    shown = best if min_score is not None else [grounding.without_faint() for grounding in best]
    left_out = sum(map(len, best)) - sum(map(len, shown))
    if left_out and options:
        print(
            f"left out of {and_list(options)}: {count_of(left_out, 'moment')} with less than a quarter of the best "
            "score (--min-score 0 takes all)"
        )
    return shown


def print_clips(clips: Sequence[Clip], *, copied: bool) -> None:
    """Print a line per clip: the file and its length, or where a copied one begins and ends.

    Args:
        clips: the clips.
        copied: whether they begin at keyframes.
    """
    for clip in clips:
        print_notes(clip.notes)
        if not clip.is_new:
            print(f"kept  {clip.path}")
            continue
        # The times are in the name. A clip has whole frames, so its own times would differ from them by up to a frame.
        length = f"{clip.end - clip.start:.1f} s"
        place = f"{clip.start:.3f} s (keyframe) to {clip.end:.3f} s" if copied else length
        print(f"wrote {clip.path}  {place}, {count_of(clip.frames, 'frame')}")


def print_notes(notes: Sequence[str]) -> None:
    """Print sentences that matter to an output on stderr."""
    for note in notes:
        print(f"sidelight: note: {note}", file=sys.stderr)
