"""The README's pictures of the playground: `python -m tests.screenshots http://127.0.0.1:8000`, a default start.

Draws a gallery on the demo models, waits until one more job is half done, and writes docs/images/playground.png (a
desk, in the light) and docs/images/playground-phone.png (a phone, in the dark).
"""

import io
import re
import sys
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Page, expect

from tests.chromium import PATIENCE_MS, chromium, watched

IMAGES = Path(__file__).parents[1] / "docs" / "images"

GALLERY = (
    {"prompt": "a small white star on a purple background", "seed": 11, "model": "demo-sd15-stripes"},
    {"prompt": "a large green ring on a white background", "seed": 5, "model": "demo-sdxl", "n": 4},
    {"prompt": "a large orange triangle on a black background", "seed": 2, "model": "demo-sd15-outline"},
    {"prompt": "a large yellow star on a green background", "seed": 21, "model": "demo-sdxl"},
    {"prompt": "a large red circle and a small yellow square on a blue background", "seed": 3},
)
LAST = {"prompt": "a large blue square and a small red star on a yellow background", "seed": 8, "steps": 50, "n": 2}


def take(page: Page, path: Path) -> None:
    """A screenshot in 256 colours, of which the page has few."""
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    shot.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main(url: str) -> None:
    expect.set_options(timeout=20 * PATIENCE_MS)
    with httpx.Client(base_url=url, timeout=120) as http, chromium() as browser:
        for number, request in enumerate(GALLERY):
            once = {"Idempotency-Key": f"screenshot-{number}"}  # a second try finds the pictures of the first
            http.post("/generate", json=request, headers=once).raise_for_status()
        with watched(browser, url, viewport={"width": 1360, "height": 850}, color_scheme="light") as desk:
            page = desk.page
            for request in GALLERY:
                expect(page.get_by_role("article", name=request["prompt"])).to_have_attribute("data-status", "complete")
            page.get_by_label("Prompt", exact=True).fill(LAST["prompt"])
            page.get_by_label("Seed", exact=True).fill(str(LAST["seed"]))
            page.get_by_label("Steps", exact=True).fill(str(LAST["steps"]))
            page.get_by_label("Images").fill(str(LAST["n"]))
            page.keyboard.press("Control+Enter")
            newest = page.get_by_role("article").first
            expect(newest.locator(".standing")).to_contain_text(re.compile(r"\b[4-8]\d %"))
            expect(newest.locator("img.preview")).to_have_count(2)
            page.get_by_label("Prompt", exact=True).focus()
            page.evaluate("scrollTo(0, 0)")
            take(page, IMAGES / "playground.png")
            expect(newest).to_have_attribute("data-status", "complete")
        phone = {
            "viewport": {"width": 390, "height": 844},
            "color_scheme": "dark",
            "is_mobile": True,
            "has_touch": True,
        }
        with watched(browser, url, **phone) as hand:
            page = hand.page
            page.get_by_role("article").nth(1).scroll_into_view_if_needed()
            page.get_by_role("article").nth(1).locator(".open").first.click()
            page.get_by_role("dialog").get_by_role("button", name="Close", exact=True).click()
            page.get_by_role("article").nth(1).evaluate("card => card.scrollIntoView({ block: 'end' })")
            take(page, IMAGES / "playground-phone.png")


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"))
