"""The page of the service in a browser: choose, ask, click, drag, export, by mouse and by keyboard."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.server.conftest import SlowGrounder

pytest.importorskip("playwright", reason="the test of the page needs pip install playwright")

from playwright.sync_api import expect, sync_playwright

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

QUERY = "a zebra is moving"
pytestmark = pytest.mark.filterwarnings("ignore::sidelight.OutsideWarning")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start the system's Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium, which is not on this machine (apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, server: tuple[str, int], slow: SlowGrounder) -> Iterator[Page]:
    """Open the page of the service; the model answers at once. An error in the page fails the test."""
    slow.go.set()
    context = browser.new_context(viewport={"width": 1100, "height": 900}, accept_downloads=True)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if "Security Policy" in message.text else None)
    page.on("request", lambda request: problems.append(request.url) if "127.0.0.1" not in request.url else None)
    page.set_default_timeout(15_000)
    page.goto(f"http://{server[0]}:{server[1]}/")
    yield page
    context.close()
    assert problems == []


def ask(page: Page, query: str = QUERY) -> None:
    """Choose the first video and ask."""
    page.get_by_label("Choose a video").select_option("a.mp4")
    expect(page.get_by_role("button", name="Find")).to_be_enabled()
    page.get_by_label("What do you want to see?").fill(query)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name=query)).to_be_visible(timeout=30_000)


def test_choose_ask_click_drag_and_export(page: Page, tmp_path: Path) -> None:
    page.screenshot(path=tmp_path / "first.png", full_page=True)
    ask(page)
    notes = page.get_by_role("list", name="Notes about this answer")
    expect(notes).to_contain_text("The model shapes never saw the word 'zebra'")

    page.get_by_role("button", name="Play moment 1").last.click()
    expect(page.get_by_role("button", name="Play moment 1").first).to_have_attribute("aria-pressed", "true")
    page.wait_for_function("document.getElementById('player').readyState >= 2")

    start = page.get_by_role("slider", name="Start of moment 1")
    before = float(start.get_attribute("aria-valuenow") or "nan")
    start.focus()
    for key in ("ArrowRight", "Shift+ArrowRight"):
        page.keyboard.press(key)
    assert float(start.get_attribute("aria-valuenow") or "nan") == pytest.approx(before + 1.1, abs=0.02)
    expect(start).to_be_focused()

    end = page.get_by_role("slider", name="End of moment 1")
    box, width = end.bounding_box(), page.locator(".curve").bounding_box()
    assert box is not None and width is not None
    old_end = float(end.get_attribute("aria-valuenow") or "nan")
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 20, y, steps=4)
    page.mouse.up()
    new_end = float(end.get_attribute("aria-valuenow") or "nan")
    duration = float(page.evaluate("document.getElementById('player').duration"))
    assert new_end == pytest.approx(old_end - 20 / width["width"] * duration, abs=0.1)
    expect(page.get_by_role("button", name="Play moment 1").last).to_contain_text("*")
    page.screenshot(path=tmp_path / "answer.png", full_page=True)

    page.get_by_label("Export as").select_option("csv")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    assert download.value.suggested_filename == "a.csv"
    rows = Path(download.value.path()).read_text().splitlines()
    assert f"a.mp4,{QUERY},{before + 1.1:.3f}"[:-2] in rows[1] and f",{new_end:.3f}," in rows[1]

    page.emulate_media(color_scheme="dark")
    page.screenshot(path=tmp_path / "dark.png", full_page=True)


def test_the_page_fits_a_phone_and_works_by_keyboard(page: Page, tmp_path: Path) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    ask(page, "an orange ball is moving")
    page.get_by_role("button", name="Play moment 1").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360, "nothing is wider than the screen"
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
    count = page.get_by_role("list", name="Moments, best first").get_by_role("listitem").count()
    page.get_by_role("button", name="Remove moment 1").press("Enter")
    expect(page.get_by_role("list", name="Moments, best first").get_by_role("listitem")).to_have_count(count - 1)


def test_a_video_is_uploaded(page: Page, films: Path) -> None:
    page.get_by_label("Upload a video").set_input_files(films / "b.mp4")
    expect(page.get_by_label("Choose a video").locator("option:checked")).to_have_text("uploads/b.mp4")
    expect(page.get_by_label("What do you want to see?")).to_be_focused()
    page.get_by_label("Upload a video").set_input_files(films / "notes.txt")
    expect(page.get_by_role("alert")).to_contain_text("has not the suffix of a video")


def test_each_control_has_a_name(page: Page) -> None:
    ask(page)
    page.get_by_role("button", name="Play moment 1").first.click()
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, [role=slider], progress, video")].filter(
          (node) => !(node.labels?.length || node.getAttribute("aria-label") || node.textContent.trim())
        ).map((node) => node.outerHTML)"""
    )
    assert unnamed == []


@pytest.mark.parametrize("server", ["a-token-of-some-length"], indirect=True)
def test_the_token_is_asked_for(page: Page) -> None:
    page.get_by_label("This service needs its token").fill("a wrong one")
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("alert")).to_contain_text("this is not the token")
    page.get_by_label("This service needs its token").fill("a-token-of-some-length")
    page.get_by_role("button", name="Open").click()
    ask(page)
    page.wait_for_function("document.getElementById('player').readyState >= 1")
