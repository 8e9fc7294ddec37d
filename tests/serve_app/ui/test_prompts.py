"""Prompts that were sent before, and styles, both kept in the browser."""

from playwright.sync_api import Page, expect

from tests.chromium import PATIENCE_MS, Watched
from tests.serve_app.ui.actions import ask_for, sent

expect.set_options(timeout=PATIENCE_MS)


def reloaded(tab: Page) -> None:
    """The page anew, once it knows its models: until then it still fills its form."""
    tab.reload()
    expect(tab.get_by_label("Model", exact=True)).to_have_value("demo-sd15")


def test_an_earlier_prompt_is_used_again(page: Watched) -> None:
    tab = page.page
    tab.get_by_label("Seed", exact=True).fill("2")
    tab.get_by_label("Negative prompt", exact=True).fill("without it")
    for prompt, cards in (("the first", 1), ("the second", 1), ("the first", 2)):
        expect(ask_for(tab, prompt)).to_have_count(cards)
    reloaded(tab)
    tab.get_by_label("Prompt", exact=True).fill("something else")
    tab.get_by_label("Negative prompt", exact=True).fill("")
    tab.get_by_text("Earlier prompts and styles").click()
    earlier = tab.get_by_label("Earlier prompt", exact=True)
    expect(earlier.get_by_role("option")).to_have_text(["the first", "the second"])  # each once, the newest first
    earlier.select_option("the second")
    tab.get_by_role("button", name="Use it").click()
    body = sent(tab, lambda: tab.keyboard.press("Control+Enter"))
    assert (body["prompt"], body["negative_prompt"]) == ("the second", "without it")


def test_a_style_is_kept_and_added(page: Watched) -> None:
    tab = page.page
    prompt, negative = tab.get_by_label("Prompt", exact=True), tab.get_by_label("Negative prompt", exact=True)
    tab.get_by_text("Earlier prompts and styles").click()
    for name, words in {"ink": "in $& ink", "framed": "a photo of {prompt}, framed"}.items():
        prompt.fill(words)
        negative.fill("blurred")
        tab.get_by_label("Name of a new style").fill(name)
        tab.get_by_label("Name of a new style").press("Enter")
    reloaded(tab)
    prompt.fill("a cat, $1")
    negative.fill("")
    tab.get_by_text("Earlier prompts and styles").click()
    for name in ("ink", "framed"):
        tab.get_by_label("Style", exact=True).select_option(name)
        tab.get_by_role("button", name="Add", exact=True).first.click()
    expect(prompt).to_have_value("a photo of a cat, $1, in $& ink, framed")
    expect(negative).to_have_value("blurred, blurred")
    tab.get_by_role("button", name="Forget").first.click()
    expect(tab.get_by_label("Style", exact=True).get_by_role("option")).to_have_text(["ink"])
