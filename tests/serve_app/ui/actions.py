"""What somebody does on the page."""

from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Locator, Page


def ask_for(page: Page, prompt: str) -> Locator:
    """Type a prompt and send it; the job's card."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.keyboard.press("Control+Enter")
    return page.get_by_role("article", name=prompt)


def picture(path: Path, colour: str = "white", size: tuple[int, int] = (192, 128)) -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


def sent(page: Page, act: Any) -> dict[str, Any]:
    """The request that POST /generate gets when `act` is done."""
    with page.expect_request(lambda request: request.url.endswith("/generate")) as asked:
        act()
    body: dict[str, Any] = asked.value.post_data_json
    return body
