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

from sidelight.core.display import BEST_GUESSES, NO_MOMENT, clock, curve_svg
from sidelight.core.grounding import Grounding
from sidelight.core.messages import count_of
from sidelight.export.thumbnails import thumbnails
from sidelight.io.files import require_outputs, write_text
from sidelight.io.storage import is_address

_STEPS, _BEST = 4, ' class="best"'
"""Parts of the time axis, and the mark of the best moment."""
SUFFIXES = (".html", ".htm")
"""File name endings of a report."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --soft: #5b6770; --page: #f6f7f8; --card: #fff; --line: #d5dce2;
  --mark: #c2410c; --curve: #5b6770; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaed; --soft: #a3adb5; --page: #14181b; --card: #1f2529; --line: #39424a; --mark: #ff8a4c;
    --curve: #a3adb5; }
}
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 60rem;
  margin: 0 auto; padding: 1.2rem 1rem 3rem; }
h1, h2 { font-size: 1.35rem; line-height: 1.25; margin: 0 0 .2rem; } h3 { font-size: 1.05rem; margin: 0 0 .6rem; }
h1, h2, h3, p, small { overflow-wrap: anywhere; }
header, section > h2 { margin-top: 0; } section + section { margin-top: 2.5rem; }
p { margin: .2rem 0; } .facts, .note { color: var(--soft); }
article { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem;
  margin-top: 1rem; }
.player { position: sticky; top: 0; z-index: 1; background: var(--page); padding: .6rem 0 .3rem; }
video { display: block; width: 100%; max-height: 42vh; background: #000; border-radius: 8px; }
svg { display: block; width: 100%; height: 84px; color: var(--curve); border-bottom: 1px solid var(--line); }
.plays svg, .plays svg rect { cursor: pointer; }
svg rect { fill: var(--mark); } .head { stroke: var(--mark); stroke-width: 2; vector-effect: non-scaling-stroke; }
.axis { display: flex; justify-content: space-between; color: var(--soft); font-size: .8rem; margin-top: .15rem;
  font-variant-numeric: tabular-nums; }
.moments { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .7rem; padding: 0;
  margin: .9rem 0 0; list-style: none; }
button { font: inherit; color: inherit; text-align: left; width: 100%; padding: .35rem; border: 1px solid var(--line);
  border-radius: 8px; background: none; cursor: pointer; font-variant-numeric: tabular-nums; }
button:disabled { cursor: default; }
button:enabled:hover, button.on { border-color: var(--mark); }
button:focus-visible { outline: 3px solid var(--mark); outline-offset: 1px; }
button img { display: block; width: 100%; aspect-ratio: 16 / 10; object-fit: contain; background: #0002;
  border-radius: 5px; margin-bottom: .3rem; }
.score { color: var(--soft); display: block; font-size: .88rem; } .best .score { color: var(--mark); font-weight: 600; }
small { color: var(--soft); display: block; margin-top: .6rem; }
.failed { color: var(--mark); }
@media (max-width: 30rem) {
  body { padding: .8rem .6rem 2rem; } article { padding: .7rem; } video { max-height: 32vh; }
}
@media print { .player { display: none; } article { break-inside: avoid; } }
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
  section.addEventListener("keydown", event => {
    const place = [...buttons].indexOf(document.activeElement);
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (place < 0 || !step || !buttons[place + step]) return;
    event.preventDefault();
    buttons[place + step].focus();
  });
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
    Moments stand in the order of time, with their rank (#1 is best).

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
    player = player and any(file and not is_address(file) for file in by_video)
    sections = [
        _section(file, of_video, path.parent, top=top, player=player and not is_address(file), titled=len(by_video) > 1)
        for file, of_video in by_video.items()
    ]
    write_text(path, _page(sections, *_head(by_video, player=player)))
    return path


def _page(sections: Sequence[str], title: str, head: str) -> str:
    style, script = (_source_of(text) for text in (_STYLE, _SCRIPT))
    policy = (
        f"default-src 'none'; img-src data:; media-src 'self' file:; style-src {style}; script-src {script}; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"{head}<main>\n{''.join(sections)}</main>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _head(by_video: dict[str, list[Grounding]], *, player: bool) -> tuple[str, str]:
    """Return the title of a report and its head: what was asked, who answered, and how sure the answers are."""
    answers = [grounding for of_video in by_video.values() for grounding in of_video]
    if len(by_video) == 1:
        title = _name(answers[0].video or next(iter(by_video)))
        facts = [f"{clock(answers[0].timeline.duration)} long"]
    else:
        title, facts = f"Moments in {count_of(len(by_video), 'video')}", []
    models = list(dict.fromkeys(grounding.model for grounding in answers if grounding.model))
    facts.append(count_of(len({grounding.query for grounding in answers}), "query"))
    note = f"Answered by the model {', '.join(models) or '(unknown)'}; {BEST_GUESSES}."
    how = " Choose a moment to play it (Tab and arrow keys work too), or click a curve to go to that time."
    return title, (
        f'<header>\n<h1>{escape(title)}</h1>\n<p class="facts">{escape(" · ".join(facts))}</p>\n'
        f'<p class="note">{escape(note)}{how if player else ""}</p>\n</header>\n'
    )


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _source_of(text: str) -> str:
    """Return how a content security policy names this text of a style or a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _section(
    file: str, groundings: Sequence[Grounding], folder: Path, *, top: int | None, player: bool, titled: bool
) -> str:
    """Return the part of the report about one video."""
    screen, title = "", ""
    if player and file:
        screen = (
            f'<div class="player"><video controls preload="metadata" src="{escape(_link(file, folder))}"></video>'
            '<p class="failed" hidden>This browser cannot play the file: it has moved, or its codec is not one of the '
            "web (H.264, VP8, VP9 or AV1).</p></div>\n"
        )
    articles = "".join(_article(grounding, file, top=top, player=bool(screen)) for grounding in groundings)
    duration = groundings[0].timeline.duration
    if titled:
        name = escape(_name(groundings[0].video or file))
        title = f'<h2>{name}</h2>\n<p class="facts">{clock(duration)} long</p>\n'
    plays = ' class="plays"' if screen else ""
    return f'<section{plays} data-duration="{duration:.3f}">\n{title}{screen}{articles}</section>\n'


def _article(grounding: Grounding, file: str, *, top: int | None, player: bool) -> str:
    """Return the query, its curve above the time, and its moments in the order of time."""
    best = grounding if top is None else grounding.best(top)
    spans = [(moment.start, moment.end, moment.score) for moment in best]
    duration = grounding.timeline.duration
    svg = curve_svg(grounding.saliency.tolist(), spans, clip_seconds=grounding.timeline.clip_seconds, duration=duration)
    svg = svg.replace("<svg ", '<svg preserveAspectRatio="none" ', 1)
    svg = svg.replace("</svg>", '<line class="head" x1="0" x2="0" y1="0" y2="60"/></svg>')
    axis = "".join(f"<span>{clock(duration * i / _STEPS)}</span>" for i in range(_STEPS + 1))
    pictures = thumbnails(best, file or None) if spans else []
    moments = sorted(zip(spans, range(1, len(spans) + 1), pictures, strict=True))
    disabled = "" if player else " disabled"
    items = "".join(
        f"<li{_BEST if rank == 1 else ''}>"
        f'<button type="button" data-start="{start:.3f}" data-end="{end:.3f}"{disabled}>'
        f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(picture).decode()}">'
        f'{clock(start)} - {clock(end)} <span class="score">#{rank}, score {score:.2f}</span></button></li>\n'
        for (start, end, score), rank, picture in moments
    )
    answer = f'<ol class="moments">\n{items}</ol>' if spans else f"<p>{NO_MOMENT}</p>"
    small = "".join(f"<small>{escape(line)}</small>" for line in grounding.notes)
    return (
        f'<article>\n<h3>{escape(grounding.query)}</h3>\n{svg}\n<div class="axis">{axis}</div>\n{answer}\n{small}\n'
        "</article>\n"
    )


def _link(file: str, folder: Path) -> str:
    """Return the address of a file, relative to the folder of the report."""
    target = os.path.abspath(file)
    try:
        relative = os.path.relpath(target, os.path.abspath(folder))
    except ValueError:  # another drive of Windows
        return Path(target).as_uri()
    return quote(f"./{relative}".replace(os.sep, "/"))
