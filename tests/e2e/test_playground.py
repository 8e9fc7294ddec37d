"""The playground in a real browser, over real Serve and a real model: what is asked for is what the page shows."""

import base64
import io
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from tests.chromium import PATIENCE_MS, Watched, watched
from tests.e2e.service import Service

pytestmark = pytest.mark.ray

expect.set_options(timeout=8 * PATIENCE_MS)  # for whole pictures on a busy machine, the first one's checkpoint included

SIZE = 256

# keeps every state that a card was in, and whether it showed a preview: either may last for a moment only
WITNESS = """() => {
    window.seen = new Set();
    new MutationObserver(() => {
        const card = document.querySelector("article");
        if (!card) return;
        window.seen.add(card.dataset.status);
        if (card.querySelector("img.preview")) window.seen.add("preview");
    }).observe(document.querySelector("#jobs"), { subtree: true, childList: true, attributes: true });
}"""

# the pixels that an <img> shows
SHOWN = """async (image) => {
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    canvas.getContext("2d").drawImage(image, 0, 0);
    return canvas.toDataURL("image/png");
}"""


@pytest.fixture
def page(browser: Browser, service: Service) -> Iterator[Watched]:
    with watched(browser, service.url) as one:
        one.page.get_by_label("Model", exact=True).select_option("demo-sd15")
        for name, value in {"Width": SIZE, "Height": SIZE, "Steps": 20}.items():
            one.page.get_by_label(name, exact=True).fill(str(value))
        yield one


def ask_for(page: Page, prompt: str, seed: int) -> Locator:
    """Type a prompt and send it; the job's card."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Seed", exact=True).fill(str(seed))
    page.keyboard.press("Control+Enter")
    return page.get_by_role("article", name=prompt)


def pixels(card: Locator) -> NDArray[np.int16]:
    """(height, width, 3) of the card's only image, 0 to 255."""
    expect(card).to_have_attribute("data-status", "complete")
    url: str = card.get_by_role("img").evaluate(SHOWN)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")).astype(np.int16)


def where(picture: NDArray[np.int16], channel: int) -> NDArray[np.bool_]:
    """Pixels in which this channel leads by far."""
    others = np.delete(picture, channel, axis=2).max(axis=2)
    return np.asarray(picture[:, :, channel] - others > 60)


def test_a_red_circle_is_red_and_a_part_of_it_turns_green_under_the_brush(page: Watched) -> None:
    tab = page.page
    tab.evaluate(WITNESS)
    card = ask_for(tab, "a large red circle on a blue background", seed=3)
    before = pixels(card)
    red = where(before, 0)
    assert 0.05 < red.mean() < 0.6
    assert where(before, 2).mean() > 0.3
    assert set(tab.evaluate("[...window.seen]")) >= {"running", "preview", "complete"}

    card.get_by_role("button", name="Begin with image 1").click()
    tab.get_by_role("button", name="Paint a mask").click()
    box = tab.locator("#brush-canvas").bounding_box()
    assert box is not None
    scale = box["width"] / SIZE
    rows, columns = np.nonzero(red)
    tab.get_by_role("slider", name="Size").fill("48")
    for row in range(rows.min(), rows.max() + 24, 24):  # over the circle, line by line
        tab.mouse.move(box["x"] + columns.min() * scale, box["y"] + min(row, rows.max()) * scale)
        tab.mouse.down()
        tab.mouse.move(box["x"] + columns.max() * scale, box["y"] + min(row, rows.max()) * scale, steps=3)
        tab.mouse.up()
    tab.get_by_role("button", name="Done").click()
    after = pixels(ask_for(tab, "a large green circle on a blue background", seed=5))
    assert where(after, 1).mean() > 0.05
    assert where(after, 0).mean() < 0.02
    kept = (before == after).all(axis=2)
    away = np.ones_like(red)  # farther off than the brush and its soft edge reach
    away[max(0, rows.min() - 40) : rows.max() + 40, max(0, columns.min() - 40) : columns.max() + 40] = False
    assert away.any()
    assert kept[away].all()  # to the byte

    tab.reload()
    expect(tab.get_by_role("article").first).to_be_visible()
    names = tab.get_by_role("article").evaluate_all("cards => cards.slice(0, 2).map((card) => card.ariaLabel)")
    assert names == ["a large green circle on a blue background", "a large red circle on a blue background"]
    assert (pixels(tab.get_by_role("article").nth(1)) == before).all()


def test_a_job_is_cancelled_from_its_card(page: Watched) -> None:
    tab = page.page
    tab.get_by_label("Images").fill("8")
    tab.get_by_label("Steps", exact=True).fill("50")
    card = ask_for(tab, "a small yellow star on a black background", seed=1)
    expect(card).to_have_attribute("data-status", "running")
    card.get_by_role("button", name="Cancel").click()
    expect(card.locator(".standing")).to_have_text("Cancelled")
