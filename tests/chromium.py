"""Pages in Debian's Chromium, driven by Playwright; whatever a page complains of fails its test.

Playwright's calls block, and its event loop counts as running until it is stopped: a module either drives pages or has
coroutines as tests, not both.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

# the machine that runs the tests is busy: this is how long a page may take to show what it will
PATIENCE_MS = 30_000

# what the browser itself says of an answer with such a status, which a test may be about
_STATUS = "Failed to load resource: the server responded with a status of "


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser; without one on the machine the test is skipped."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium, or CHROMIUM=/path/to/it")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Watched:
    """A page, and what it did wrong. refusals: statuses of answers that the test expects."""

    page: Page
    url: str
    refusals: set[int] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Fails if the page complained, or asked anybody else."""
        expected = tuple(f"{_STATUS}{status}" for status in self.refusals)
        assert [said for said in self.complaints if not said.startswith(expected or ("\0",))] == []


@contextmanager
def watched(browser: Browser, url: str, **options: Any) -> Iterator[Watched]:
    """The page at `url`, with nothing kept from pages before. options: of Playwright's new_context."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    one = Watched(page, url)

    def said(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):  # violations of the content policy are errors
            one.complaints.append(message.text)

    def asked(request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob") and address.netloc != urlsplit(url).netloc:
            one.complaints.append(f"asked {request.url}")

    page.on("console", said)
    page.on("pageerror", lambda error: one.complaints.append(f"uncaught: {error}"))
    page.on("request", asked)
    try:
        page.goto(url)
        yield one
        one.check()
    finally:
        context.close()
