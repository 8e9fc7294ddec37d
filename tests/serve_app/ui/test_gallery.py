"""The gallery: finding jobs again, liking, saving and deleting several, and the queue above them."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from serve_app.config.settings import Settings
from tests.chromium import PATIENCE_MS, Watched, watched
from tests.serve_app.ui.actions import ask_for
from tests.serve_app.ui.conftest import front_beside, settings_in

expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture
def own(browser: Browser, tmp_path: Path) -> Iterator[Watched]:
    """A page of a service that has drawn nothing yet."""
    with front_beside(Settings.model_validate(settings_in(tmp_path))) as url, watched(browser, url) as one:
        yield one


def drawn(page: Watched, *prompts: str) -> None:
    """Jobs of somebody else's, which the page lists."""
    for number, prompt in enumerate(prompts):
        body = {"prompt": prompt, "seed": 2 * number}
        answer = httpx.post(f"{page.url}/generate", json=body, headers={"prefer": "wait=30"}, timeout=60)
        assert answer.json()["status"] == "complete"
    page.page.reload()
    expect(page.page.locator("[data-status='complete']").first).to_be_visible()


def cards(tab: Page) -> Locator:
    return tab.locator("article:visible")


def test_a_search_finds_jobs_that_weren_t_shown(own: Watched) -> None:
    drawn(own, "an old red Circle", *(f"filler {number}" for number in range(13)))
    tab = own.page
    expect(cards(tab)).to_have_count(12)
    tab.get_by_role("searchbox", name="Search the gallery").fill("circle RED")
    expect(cards(tab)).to_have_count(1)
    expect(cards(tab)).to_have_attribute("aria-label", "an old red Circle")
    cards(tab).get_by_role("button", name="Open image 1").click()
    expect(tab.get_by_role("button", name="Next image")).to_be_disabled()  # the others aren't shown
    tab.keyboard.press("Escape")
    tab.get_by_role("searchbox").fill("nowhere")
    expect(tab.get_by_text("Nothing like that here.")).to_be_visible()
    tab.get_by_role("searchbox").fill("")
    expect(cards(tab)).to_have_count(14)


def test_favourites_are_kept_in_the_browser(own: Watched) -> None:
    drawn(own, "liked", "not so much")
    tab = own.page
    star = tab.get_by_role("article", name="liked").get_by_role("button", name="Favourite")
    star.click()
    tab.reload()
    expect(star).to_have_attribute("aria-pressed", "true")
    tab.get_by_role("button", name="★ Favourites").click()
    expect(cards(tab)).to_have_count(1)
    expect(cards(tab)).to_have_attribute("aria-label", "liked")
    star.click()
    expect(cards(tab)).to_have_count(0)


def test_chosen_jobs_are_saved_together_and_deleted_for_good(own: Watched) -> None:
    drawn(own, "first of all", "second", "third")
    tab = own.page
    job_ids = {}
    for name in ("first of all", "second"):
        card = tab.get_by_role("article", name=name)
        job_ids[name] = card.get_attribute("data-job")
        card.get_by_role("checkbox", name="Choose").check()
    expect(tab.locator("#chosen-count")).to_have_text("2 chosen")
    with tab.expect_download() as saved:
        tab.get_by_role("button", name="Download", exact=True).click()
    assert saved.value.suggested_filename == "darkroom.zip"
    with zipfile.ZipFile(saved.value.path()) as archive:
        assert archive.testzip() is None
        seeds = {"first of all": 0, "second": 2}
        names = {f"{(job_ids[name] or '')[-8:]}-1-darkroom-{seed}.png" for name, seed in seeds.items()}
        assert set(archive.namelist()) == names
        assert Image.open(io.BytesIO(archive.read(sorted(names)[0]))).size == (256, 256)

    tab.get_by_role("button", name="Delete", exact=True).click()
    expect(cards(tab)).to_have_count(3)  # it is asked whether that is meant
    tab.get_by_role("button", name="Delete all 2 for good").click()
    expect(cards(tab)).to_have_count(1)
    expect(tab.locator("#chosen")).to_be_hidden()
    assert httpx.get(f"{own.url}/result/{job_ids['second']}").status_code == 404
    tab.reload()
    expect(cards(tab)).to_have_count(1)
    tab.get_by_role("checkbox", name="Choose").check()
    tab.get_by_role("button", name="Choose none").click()
    expect(tab.get_by_role("checkbox", name="Choose")).not_to_be_checked()


def test_thumbnails_have_the_size_that_somebody_wants(own: Watched) -> None:
    own.page.set_viewport_size({"width": 1280, "height": 720})
    drawn(own, *(f"small {number}" for number in range(8)))
    tab = own.page

    def in_sight() -> int:
        boxes = [box for image in tab.locator(".open img").all() if (box := image.bounding_box()) is not None]
        return sum(box["y"] + box["height"] <= 720 for box in boxes)

    tab.get_by_role("slider", name="Thumbnails").fill("8")
    tab.reload()
    expect(cards(tab)).to_have_count(8)
    small = in_sight()
    tab.get_by_role("slider", name="Thumbnails").fill("30")
    assert in_sight() < 3 <= 8 <= small


def test_the_queue_tells_places_and_what_is_left(own: Watched) -> None:
    tab = own.page
    tab.get_by_label("Seed", exact=True).fill("2")
    names = [f"endless {number}" for number in range(3)]
    for name in names:
        expect(ask_for(tab, name)).to_be_visible()
        if name == names[0]:
            expect(tab.locator("#queue")).to_be_hidden()  # it stands in its card
    rows = tab.locator("#queue-jobs > li")
    expect(rows).to_have_count(3)
    expect(tab.locator("#queue-length")).to_contain_text("3 jobs")
    for row, name in zip(rows.all(), names, strict=True):
        expect(row).to_contain_text(name)
        card = tab.get_by_role("article", name=name)
        expect(card.locator(".standing")).to_have_text(row.locator(".standing").text_content() or "")
    rows.nth(1).get_by_role("button", name="Cancel endless 1").click()
    expect(tab.get_by_role("article", name="endless 1").locator(".standing")).to_have_text("Cancelled")
    expect(rows).to_have_count(2)
    rows.first.get_by_role("button").click()
    expect(tab.locator("#queue")).to_be_hidden()
