"""One image by itself: its neighbours, its size, another image beside it, and what can be done with it."""

import httpx
from playwright.sync_api import Locator, Page, expect

from tests.chromium import PATIENCE_MS, Watched
from tests.serve_app.ui.actions import ask_for, sent

expect.set_options(timeout=PATIENCE_MS)


def viewed(tab: Page, prompt: str) -> Locator:
    """The viewer with the first image of a job."""
    tab.get_by_role("article", name=prompt).get_by_role("button", name="Open image 1").click()
    return tab.get_by_role("dialog", name="Image")


def drawn(tab: Page, prompt: str, seed: int) -> Locator:
    tab.get_by_label("Seed", exact=True).fill(str(seed))
    card = ask_for(tab, prompt)
    expect(card).to_have_attribute("data-status", "complete")
    return card


def test_the_neighbours_are_reached_by_buttons(page: Watched) -> None:
    tab = page.page
    for seed in (2, 4, 6):
        drawn(tab, f"neighbour {seed}", seed)
    viewer = viewed(tab, "neighbour 6")
    expect(viewer.get_by_role("button", name="Previous image")).to_be_disabled()  # it is the newest
    viewer.get_by_role("button", name="Next image").click()
    viewer.get_by_role("button", name="Next image").click()
    expect(viewer.locator("#viewer-prompt")).to_have_text("neighbour 2")
    viewer.get_by_role("button", name="Previous image").click()
    expect(viewer.locator("#viewer-prompt")).to_have_text("neighbour 4")


def test_an_image_is_looked_at_closely(page: Watched) -> None:
    tab = page.page
    tab.set_viewport_size({"width": 900, "height": 500})
    drawn(tab, "to see closely", 2)
    viewer = viewed(tab, "to see closely")
    image = viewer.get_by_alt_text("to see closely")
    width = "image => image.getBoundingClientRect().width"
    viewer.get_by_role("button", name="Closer").click()
    assert image.evaluate(width) == 256
    tab.keyboard.press("+")
    tab.keyboard.press("+")
    assert image.evaluate(width) == 1024
    expect(viewer.get_by_role("button", name="Closer")).to_be_disabled()
    expect(viewer.locator("#viewer-zoom")).to_have_text("400 %")
    assert viewer.locator("#viewed").evaluate("frame => frame.scrollWidth >= 1024 && frame.clientWidth < 900")
    tab.keyboard.press("-")
    assert image.evaluate(width) == 512
    image.click()
    image.click()  # after the closest all of it is shown again
    expect(viewer.locator("#viewer-zoom")).to_have_text("fitted")
    tab.keyboard.press("+")
    tab.keyboard.press("Escape")
    expect(viewed(tab, "to see closely").locator("#viewer-zoom")).to_have_text("fitted")


def test_two_images_are_compared_along_a_line(page: Watched) -> None:
    tab = page.page
    drawn(tab, "the one below", 2)
    drawn(tab, "the one above", 4)
    viewer = viewed(tab, "the one above")
    first = viewer.get_by_alt_text("the one above").get_attribute("src")
    viewer.get_by_role("button", name="Compare").click()
    viewer.get_by_role("button", name="Next image").click()
    over, under = viewer.get_by_alt_text("The image that it is compared with"), viewer.get_by_alt_text("the one below")
    assert over.get_attribute("src") == first
    expect(over).to_have_css("clip-path", "inset(0px 50% 0px 0px)")
    assert over.bounding_box() == under.bounding_box()
    slider = viewer.get_by_role("slider", name="How much of the first image")
    slider.fill("20")
    expect(over).to_have_css("clip-path", "inset(0px 80% 0px 0px)")
    slider.press("ArrowRight")  # moves the line, and goes to no other image
    expect(over).to_have_css("clip-path", "inset(0px 79% 0px 0px)")
    expect(under).to_be_visible()
    viewer.get_by_role("button", name="Compare").click()
    expect(over).to_be_hidden()


def test_an_image_of_several_is_drawn_alone_or_varied(page: Watched) -> None:
    tab = page.page
    body = {"prompt": "one of a kind", "seed": 2, "n": 2, "variation_seed": 8, "variation_strength": 0.5}
    httpx.post(f"{page.url}/generate", json=body, headers={"prefer": "wait=30"}, timeout=60).raise_for_status()
    tab.reload()
    card = tab.get_by_role("article", name="one of a kind")
    expect(card).to_have_attribute("data-status", "complete")
    card.get_by_role("button", name="Open image 2").click()
    viewer = tab.get_by_role("dialog", name="Image")
    viewer.get_by_role("button", name="Same seed").click()
    expect(viewer).to_be_hidden()
    request = sent(tab, lambda: tab.keyboard.press("Control+Enter"))
    assert (request["n"], request["seed"], request["variation_seed"], request["variation_strength"]) == (1, 2, 9, 0.5)

    card.last.get_by_role("button", name="Open image 1").click()
    request = sent(tab, lambda: viewer.get_by_role("button", name="Variations").click())
    assert (request["n"], request["seed"], request["variation_strength"]) == (4, 2, 0.2)
    assert request["variation_seed"] not in (8, 9)
    expect(tab.get_by_role("article", name="one of a kind").first).to_have_attribute("data-status", "complete")
