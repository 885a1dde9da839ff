"""A report: one HTML file with a player, the highlight curves, and moments that the player jumps to.

The file loads nothing but the video beside it: pictures, style and script are inside, and a content security policy
forbids everything else, so that a query or a file name cannot bring a script along.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from sidelight.core.display import NO_MOMENT, clock, curve_svg
from sidelight.core.grounding import Grounding
from sidelight.core.messages import count_of
from sidelight.export.thumbnails import thumbnails
from sidelight.io.files import require_outputs, write_text
from sidelight.io.storage import is_address

SUFFIXES = (".html", ".htm")
"""File name endings of a report."""

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 1.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.1rem; margin-top: 2rem; } h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
h2, h3, small { overflow-wrap: anywhere; }
.player { position: sticky; top: 0; z-index: 1; background: Canvas; padding: .3rem 0; }
video { width: 100%; max-height: 45vh; background: #000; }
svg { display: block; width: 100%; height: 60px; cursor: pointer; }
svg rect { cursor: pointer; }
.head { stroke: #e8590c; stroke-width: 1; vector-effect: non-scaling-stroke; }
.moments { display: flex; flex-wrap: wrap; gap: .6rem; padding: 0; margin: .6rem 0; list-style: none; }
button { font: inherit; color: inherit; text-align: left; padding: .3rem; border: 1px solid #8888; border-radius: 6px;
  background: none; cursor: pointer; }
button:hover, button:focus-visible, button.on { border-color: #e8590c; outline: 1px solid #e8590c; }
button img { display: block; height: 90px; border-radius: 3px; margin-bottom: .2rem; }
.score { opacity: .65; float: right; margin-left: 1rem; }
small { opacity: .75; display: block; }
.failed { color: #c92a2a; }
"""
_SCRIPT = """
"use strict";
for (const section of document.querySelectorAll("section")) {
  const video = section.querySelector("video"), duration = Number(section.dataset.duration);
  const buttons = section.querySelectorAll("button");
  let stop = null;
  const play = (start, end) => {
    if (!video) return;
    stop = end;
    video.currentTime = start;
    video.play().catch(() => {});
  };
  for (const button of buttons)
    button.addEventListener("click", () => play(Number(button.dataset.start), Number(button.dataset.end)));
  for (const svg of section.querySelectorAll("svg"))
    svg.addEventListener("click", event => {
      const band = event.target.closest("rect[data-start]");
      if (band) return play(Number(band.dataset.start), Number(band.dataset.end));
      const box = svg.getBoundingClientRect();
      play((event.clientX - box.left) / box.width * duration, null);
    });
  if (!video) continue;
  video.addEventListener("error", () => { section.querySelector(".failed").hidden = false; });
  video.addEventListener("timeupdate", () => {
    const now = video.currentTime;
    if (stop !== null && now >= stop) { video.pause(); stop = null; }
    for (const button of buttons)
      button.classList.toggle("on", Number(button.dataset.start) <= now && now < Number(button.dataset.end));
    for (const line of section.querySelectorAll(".head")) {
      const x = now / duration * 600;
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
    }
  });
}
"""


def write_report(
    groundings: Grounding | Sequence[Grounding],
    path: str | Path,
    *,
    video: str | Path | None = None,
    top: int | None = None,
    player: bool = True,
) -> Path:
    """Write answers as one HTML file that plays the moments.

    The player opens the video by a link relative to the report, so move both together. The report needs no network.

    Args:
        groundings: one answer, or several about one video or several videos.
        path: the file to write, .html or .htm.
        video: the video file, where the answers do not name it.
        top: moments of each answer, best first; all unless given.
        player: show the video; False where the file will not stay where it is.

    Returns:
        The path.

    Raises:
        ValueError: if there is no answer, an answer names no video, the suffix is another one, or the report would
            replace a video.
        VideoError: if a video cannot be read.
    """
    answers = [groundings] if isinstance(groundings, Grounding) else list(groundings)
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"a report must end in .html, got {path}")
    if not answers:
        raise ValueError("there is no answer to report; expected at least one")
    by_video: dict[str, list[Grounding]] = {}
    for answer in answers:
        by_video.setdefault(str(video) if video is not None else answer.video or "", []).append(answer)
    require_outputs({"report": path}, by_video)
    sections = [
        _section(file, of_video, path.parent, top=top, player=player and not is_address(file))
        for file, of_video in by_video.items()
    ]
    write_text(path, _page(sections))
    return path


def _page(sections: Sequence[str]) -> str:
    style, script = (_source_of(text) for text in (_STYLE, _SCRIPT))
    policy = (
        f"default-src 'none'; img-src data:; media-src 'self' file:; style-src {style}; script-src {script}; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>sidelight: moments</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        "<h1>Moments</h1>\n<p><small>Click a moment to play it; click a curve to go to that time.</small></p>\n"
        f"{''.join(sections)}<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _source_of(text: str) -> str:
    """Return how a content security policy names this text of a style or a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _section(file: str, groundings: Sequence[Grounding], folder: Path, *, top: int | None, player: bool) -> str:
    """Return the part of the report about one video."""
    shown = groundings[0].video or file
    screen = ""
    if player and file:
        screen = (
            f'<div class="player"><video controls preload="metadata" src="{escape(_link(file, folder))}"></video>'
            '<p class="failed" hidden>This browser cannot play the file: it has moved, or its codec is not one of the '
            "web (H.264, VP8, VP9 or AV1).</p></div>\n"
        )
    articles = "".join(_article(grounding, file, top=top) for grounding in groundings)
    duration = groundings[0].timeline.duration
    name = escape(shown.rsplit("/", 1)[-1])
    return f'<section data-duration="{duration:.3f}">\n<h2>{name}</h2>\n{screen}{articles}</section>\n'


def _article(grounding: Grounding, file: str, *, top: int | None) -> str:
    """Return the query, its curve and its moments."""
    best = grounding if top is None else grounding.best(top)
    spans = [(moment.start, moment.end, moment.score) for moment in best]
    svg = curve_svg(
        grounding.saliency.tolist(),
        spans,
        clip_seconds=grounding.timeline.clip_seconds,
        duration=grounding.timeline.duration,
    )
    svg = svg.replace("<svg ", '<svg preserveAspectRatio="none" ', 1)
    svg = svg.replace("</svg>", '<line class="head" x1="0" x2="0" y1="0" y2="60"/></svg>')
    pictures = thumbnails(best, file or None) if spans else []
    items = "".join(
        f'<li><button type="button" data-start="{start:.3f}" data-end="{end:.3f}">'
        f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(picture).decode()}">'
        f'{clock(start)} - {clock(end)} <span class="score">{score:.2f}</span></button></li>\n'
        for (start, end, score), picture in zip(spans, pictures, strict=True)
    )
    moments = f'<ol class="moments">\n{items}</ol>' if spans else f"<p>{NO_MOMENT}</p>"
    facts = [f"model {grounding.model}"] if grounding.model else []
    facts.append(count_of(len(spans), "moment"))
    small = "".join(f"<small>{escape(line)}</small>" for line in [", ".join(facts), *grounding.notes])
    return f"<article>\n<h3>{escape(grounding.query)}</h3>\n{svg}\n{moments}\n{small}\n</article>\n"


def _link(file: str, folder: Path) -> str:
    """Return the address of a file, relative to the folder of the report."""
    target = os.path.abspath(file)
    try:
        relative = os.path.relpath(target, os.path.abspath(folder))
    except ValueError:  # another drive of Windows
        return Path(target).as_uri()
    return quote(f"./{relative}".replace(os.sep, "/"))
