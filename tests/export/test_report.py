"""Check the contact sheet and the report, which is read by a parser."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from sidelight.core.display import clock
from sidelight.core.grounding import Grounding, Moment
from sidelight.core.timeline import Timeline
from sidelight.export.report import write_report
from sidelight.export.sheet import _columns, contact_sheet
from sidelight.video.damage import VideoError
from sidelight.video.read import probe

QUERY = """<script>alert("1")</script> & 'a door' $x$"""
MOMENTS = (Moment(8, 10, 0.2), Moment(0, 2.5, 0.5), Moment(4, 8, 0.9))


@pytest.fixture
def video(tiny_world: Path, tmp_path: Path) -> Path:
    """Return a video whose name needs to be quoted."""
    path = tmp_path / "films" / 'a "b" #1 100%.mp4'
    path.parent.mkdir()
    path.write_bytes(sorted((tiny_world / "videos").iterdir())[0].read_bytes())
    return path


def answer(video: Path, moments: tuple[Moment, ...] = MOMENTS, query: str = QUERY) -> Grounding:
    timeline = Timeline(duration=probe(video).duration, clip_seconds=2.0)
    curve = np.linspace(-1, 1, timeline.num_clips, dtype=np.float32)
    return Grounding(
        query=query, timeline=timeline, moments=moments, saliency=curve, video=str(video), notes=("a <note>",)
    )


class Page(HTMLParser):
    """Collects the elements of a page with their attributes, and the text by element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "rect", "line", "polygon"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts[self.open[-1] if self.open else ""] = self.texts.get(self.open[-1] if self.open else "", "") + data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_a_report_is_one_safe_file(video: Path, tmp_path: Path) -> None:
    path = write_report([answer(video), answer(video, ())], tmp_path / "report.html")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []  # every element is closed
    assert len(page.all("script")) == 1 and page.texts["h3"] == QUERY * 2
    assert "a <note>" in page.texts["small"] and "no such moment" in page.texts["p"]
    assert [(b["data-start"], b["data-end"]) for b in page.all("button")] == [
        (f"{moment.start:.3f}", f"{moment.end:.3f}") for moment in sorted(MOMENTS, key=lambda m: m.start)
    ]
    assert re.findall(r"#\d, score [\d.]+", text) == ["#2, score 0.50", "#1, score 0.90", "#3, score 0.20"]
    assert page.texts["h1"] == video.name and f"<title>{escape(video.name)}</title>" in text
    assert "; moments are its best guesses, also for what is never shown. Choose a moment" in page.texts["p"]
    assert f"{clock(probe(video).duration)} long · 1 query" in page.texts["p"]
    assert page.texts["span"].startswith("0:00.0") and clock(probe(video).duration) in page.texts["span"]
    assert len(page.all("rect")) == 3 and len(page.all("svg")) == 2
    (player,) = page.all("video")
    assert (tmp_path / unquote(str(player["src"]))).samefile(video)
    assert all(str(image["src"]).startswith("data:image/jpeg;base64,") for image in page.all("img"))
    assert not re.search(r"https?://", text) and not any("style" in a or "onclick" in a for _, a in page.elements)


def test_the_policy_allows_its_own_script_and_style_only(video: Path, tmp_path: Path) -> None:
    page = Page(write_report(answer(video), tmp_path / "report.html").read_text(encoding="utf-8"))
    policy = str(page.all("meta")[1]["content"])
    assert page.all("meta")[1]["http-equiv"] == "Content-Security-Policy"
    for tag in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.texts[tag].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:; media-src 'self' file:;")


def test_a_report_of_several_videos_has_a_player_each(video: Path, tiny_world: Path, tmp_path: Path) -> None:
    other = sorted((tiny_world / "videos").iterdir())[1]
    page = Page(write_report([answer(video), answer(other)], tmp_path / "r.html", top=1).read_text(encoding="utf-8"))
    assert len(page.all("video")) == len(page.all("section")) == len(page.all("button")) == 2
    assert page.texts["h1"] == "Moments in 2 videos" and page.texts["h2"] == f"{video.name}{other.name}"
    page = Page(write_report(answer(video), tmp_path / "r.html", player=False).read_text(encoding="utf-8"))
    assert page.all("video") == [] and all("disabled" in button for button in page.all("button"))
    assert "Choose a moment" not in page.texts["p"]  # nothing can be played


def test_mistakes_of_reports(video: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a report must end in \.html, got .*report\.txt"):
        write_report(answer(video), tmp_path / "report.txt")
    with pytest.raises(ValueError, match="there is no answer to report"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(ValueError, match="does not say which video"):
        write_report(replace(answer(video), video=None), tmp_path / "report.html")
    with pytest.raises(VideoError, match="does not exist"):
        write_report(replace(answer(video), video="gone.mp4"), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_contact_sheet_shows_moments_in_the_order_of_time(video: Path, tmp_path: Path) -> None:
    path = contact_sheet([answer(video), answer(video, ())], tmp_path / "sheet.png")
    image = np.asarray(Image.open(path).convert("RGB"))
    assert image.shape[1] == 1440
    inked = image.min(axis=(0, 2)) < 250
    assert not inked[:48].any() and not inked[-48:].any()  # nothing in the margins
    top = contact_sheet(answer(video), tmp_path / "top.png", top=1)
    assert not (np.asarray(Image.open(top).convert("RGB"))[150:, 800:] < 250).any()  # one frame, on the left
    contact_sheet(answer(video, query="x" * 500), tmp_path / "long.jpg")
    assert (tmp_path / "long.jpg").read_bytes()[:2] == b"\xff\xd8"


@pytest.mark.parametrize(
    ("counts", "columns"), [([0], 1), ([1], 1), ([2], 2), ([4], 4), ([5], 3), ([7], 4), ([9], 3), ([1, 3], 3)]
)
def test_no_column_of_a_contact_sheet_is_empty(counts: list[int], columns: int) -> None:
    assert max(_columns([np.zeros((9, 16, 3), np.uint8)] * count) for count in counts) == columns
    assert _columns([np.zeros((16, 9, 3), np.uint8)] * 6) == 6


def test_mistakes_of_contact_sheets(video: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no answer to draw"):
        contact_sheet([], tmp_path / "sheet.png")
    with pytest.raises(ValueError, match=r"must end in \.png"):
        contact_sheet(answer(video), tmp_path / "sheet.txt")
    assert not list(tmp_path.glob("sheet*"))
