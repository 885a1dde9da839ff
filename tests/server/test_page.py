"""The page of the service in a browser: ask, search, click, drag, cut and export, by mouse and by keyboard."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import av
import pytest

from sidelight import Grounder
from sidelight.export.thumbnails import as_jpeg
from sidelight.server.app import create_app
from sidelight.server.settings import Settings
from sidelight.video.read import frames_at
from tests.server.conftest import SlowGrounder, serving

pytest.importorskip("playwright", reason="the test of the page needs pip install playwright")

from playwright.sync_api import Route, expect, sync_playwright

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

    page.locator("#save").get_by_label("Export as").select_option("csv")
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


# a library -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library_server(grounder: Grounder, films: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of a service with a library."""
    pytest.importorskip("lancedb", reason='needs LanceDB: pip install "sidelight[library]"')
    from sidelight.library import Library

    folder = tmp_path_factory.mktemp("library")
    for name in ("a.mp4", "b.mp4"):
        (folder / "films").mkdir(exist_ok=True)
        (folder / "films" / name).write_bytes((films / name).read_bytes())
    library = Library.create(folder / "lib", model="shapes", device="cpu")
    library.add(folder / "films", workers=0)
    settings = Settings(port=0)
    app = create_app(grounder, folders=[folder / "films"], library=library, settings=settings)
    with serving(app, settings) as (host, port):
        yield f"http://{host}:{port}/"


@pytest.fixture
def searching(browser: Browser, library_server: str) -> Iterator[Page]:
    """Open the page of a service with a library. An error in the page fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if "Security Policy" in message.text else None)
    page.set_default_timeout(15_000)
    page.goto(library_server)
    yield page
    context.close()
    assert problems == []


def search(page: Page, query: str) -> None:
    """Search all videos, and wait for the hits."""
    expect(page.get_by_label("All 2 videos")).to_be_checked()
    page.get_by_label("What do you want to see?").fill(query)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name=query)).to_be_visible(timeout=30_000)


def frames_of(path: Path) -> int:
    """Return the number of frames of a video file."""
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_search_a_library_open_a_hit_adjust_and_cut_it(searching: Page, films: Path) -> None:
    page = searching
    search(page, "an orange ball is moving")
    hits = page.get_by_role("list", name="Hits, best first").get_by_role("button")
    assert hits.count() >= 2
    expect(page.locator("#hits .guess")).to_contain_text("best guesses, also for what is never shown")
    label = hits.first.get_attribute("aria-label") or ""
    name, span, relevance, score = (part.strip() for part in label.removeprefix("Open ").split(","))
    assert name in ("a.mp4", "b.mp4") and relevance.startswith("relevance 0.") and score.startswith("score ")
    image = hits.first.locator("img")
    expect(image).to_have_js_property("complete", True)
    assert int(image.evaluate("image => image.naturalHeight")) == 144

    hits.first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name=name)).to_be_visible()
    band = page.get_by_role("button", name="Play moment 1").first
    expect(band).to_have_attribute("aria-pressed", "true")
    start, end = (float(part.rpartition(":")[2]) for part in span.split(" \u2013 "))
    expect(page.locator("#player")).to_have_js_property("paused", False)
    at = float(page.locator("#player").evaluate("player => player.currentTime"))
    assert start - 0.1 <= at <= end + 0.5, "the hit is played"

    slider = page.get_by_role("slider", name="End of moment 1")
    slider.focus()
    page.keyboard.press("Shift+ArrowLeft")
    new_start = float(page.get_by_role("slider", name="Start of moment 1").get_attribute("aria-valuenow") or "nan")
    new_end = float(slider.get_attribute("aria-valuenow") or "nan")
    assert hits.first.text_content() and "*" in (hits.first.text_content() or ""), "the hit shows the new edges"

    with page.expect_download() as download:
        page.get_by_role("button", name="Cut moment 1 into a file").click()
    assert download.value.suggested_filename.startswith(f"{name[0]}-an-orange-ball-is-moving-")
    with av.open(str(films / name)) as container:
        rate = float(container.streams.video[0].average_rate or 0)
    cut = Path(download.value.path())
    assert frames_of(cut) == pytest.approx((new_end - new_start) * rate, abs=1.01)

    page.get_by_role("button", name="Show all hits").click()
    page.get_by_text("Export or cut all hits").click()
    panel = page.locator("#save-hits")
    forms = panel.get_by_label("Export as").locator("option").all_text_contents()
    assert any(text.startswith("csv") for text in forms) and not any(text.startswith("srt") for text in forms)
    with page.expect_download() as download:
        panel.get_by_role("button", name="Export").click()
    rows = Path(download.value.path()).read_text().splitlines()[1:]
    assert len(rows) == hits.count() and any(f",{new_end:.3f}," in row for row in rows), "edited edges are exported"
    with page.expect_download() as download:
        panel.get_by_role("button", name="Cut all into one film").click()
    assert frames_of(Path(download.value.path())) > frames_of(cut)
    panel.get_by_role("button", name="Cut all, a file each").click()
    expect(panel.get_by_role("list", name="Files that were cut").get_by_role("link")).to_have_count(hits.count())


def test_more_like_a_moment_and_like_an_image(searching: Page, films: Path, tmp_path: Path) -> None:
    page = searching
    search(page, "an orange ball is moving")
    page.get_by_role("list", name="Hits, best first").get_by_role("button").first.click()
    page.get_by_role("button", name="More like moment 1").click()
    expect(page.get_by_role("heading", name="Moments like")).to_be_visible()
    expect(page.get_by_role("list", name="Hits, best first").get_by_role("button").first).to_be_visible()

    frame = next(iter(frames_at(films / "b.mp4", [3.0]))).image
    (tmp_path / "frame.jpg").write_bytes(as_jpeg(frame))
    page.get_by_label("Search by an image").set_input_files(tmp_path / "frame.jpg")
    expect(page.get_by_role("heading", name="Moments like frame.jpg")).to_be_visible()
    page.get_by_role("list", name="Hits, best first").get_by_role("button").first.click()
    expect(page.get_by_role("button", name="Play moment 1").first).to_be_visible()
    (tmp_path / "no.jpg").write_bytes(b"text")
    page.get_by_label("Search by an image").set_input_files(tmp_path / "no.jpg")
    expect(page.get_by_role("alert")).to_contain_text("no.jpg is no image")


def test_the_page_says_what_the_model_knows_and_what_it_lacks(searching: Page) -> None:
    page = searching
    expect(page.get_by_text("The model shapes knows drawn shapes only; for trying things out.")).to_be_visible()
    page.get_by_role("button", name="Find").click()
    expect(page.get_by_text("Type a sentence first")).to_be_visible()
    page.get_by_role("button", name="Try").click()
    expect(page.get_by_label("What do you want to see?")).to_have_value("a red ball is moving left")
    page.get_by_label("All 2 videos").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_label("One video")).to_be_checked()
    page.get_by_role("button", name="Find").click()
    expect(page.get_by_text("Choose a video first")).to_be_visible()
    expect(page.get_by_label("Choose a video")).to_be_focused()


def test_a_calibrated_library_may_say_that_there_is_none(searching: Page) -> None:
    page, sent = searching, list[dict[str, object]]()

    def answer(route: Route) -> None:
        sent.append(dict(route.request.post_data_json or {}))
        response = route.fetch()
        values = response.json() | {"calibrated": True}
        if sent[-1]["min_relevance"] is None:
            values |= {"hits": [], "answers": [], "best_left_out": 0.123}
        route.fulfill(response=response, json=values)

    page.route("**/v1/search", answer)
    search(page, "an orange ball is moving")
    expect(page.get_by_text("No such moment in all videos: the best guess is 12 % likely")).to_be_visible()
    page.get_by_role("button", name="Show the best guesses").click()
    hits = page.get_by_role("list", name="Hits, best first").get_by_role("button")
    expect(hits.first).to_contain_text("% likely")
    expect(page.get_by_text("How likely a hit is right was learnt")).to_be_visible()
    expect(page.get_by_role("button", name="Show the best guesses")).to_be_hidden()
    assert [values["min_relevance"] for values in sent] == [None, 0]


def test_moments_below_the_lowest_score_are_hidden(searching: Page) -> None:
    page = searching
    search(page, "an orange ball is moving")
    count = page.get_by_role("list", name="Hits, best first").get_by_role("button").count()
    page.get_by_label("Lowest score").fill("1")
    expect(page.get_by_text("No such moment in all videos: the best guess scores")).to_be_visible()
    expect(page.get_by_role("list", name="Hits, best first").get_by_role("button")).to_have_count(0)
    page.get_by_label("Lowest score").fill("0")
    expect(page.get_by_role("list", name="Hits, best first").get_by_role("button")).to_have_count(count)


def test_a_search_fits_a_phone(searching: Page) -> None:
    page = searching
    page.set_viewport_size({"width": 360, "height": 740})
    search(page, "an orange ball is moving")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360, "nothing is wider than the screen"
    page.get_by_role("list", name="Hits, best first").get_by_role("button").first.click()
    expect(page.get_by_role("button", name="Play moment 1").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360, "nothing is wider than the screen"
