"""The playground in a real browser, over the real front; its stages do on demand what real ones rarely do.

What real models draw there is in tests/e2e/test_playground.py. Pictures of odd seeds are unsafe here.
"""

import base64
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Route, expect

from tests.chromium import PATIENCE_MS, Watched, watched
from tests.serve_app.ui.actions import ask_for, picture, sent

expect.set_options(timeout=PATIENCE_MS)


# a file that is dropped on the page: [base64, media type]
DROP = """([data, type]) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], "photo", { type }));
    for (const name of ["dragenter", "dragover", "drop"]) {
        const event = new DragEvent(name, { dataTransfer: transfer, bubbles: true, cancelable: true });
        document.body.dispatchEvent(event);
    }
}"""


def shown_width(image: Locator) -> int:
    expect(image).to_have_js_property("complete", True)
    width: int = image.evaluate("image => image.naturalWidth")
    return width


def test_a_prompt_becomes_a_picture_that_a_reload_finds_again(page: Watched) -> None:
    tab = page.page
    tab.get_by_label("Negative prompt", exact=True).fill("a green star")
    tab.get_by_label("Seed", exact=True).fill("4")
    tab.get_by_label("Steps", exact=True).fill("12")
    tab.get_by_role("button", name="Landscape").click()
    card = ask_for(tab, "a picture of my own")
    expect(card).to_have_attribute("data-status", "complete")
    expect(card.locator(".safety")).to_have_text("safe")
    expect(tab.get_by_role("status")).to_contain_text("Done")
    assert shown_width(card.get_by_role("img")) == 312

    tab.reload()
    expect(tab.get_by_label("Steps", exact=True)).to_have_value("12")  # the form is kept as well
    expect(card).to_have_attribute("data-status", "complete")
    assert shown_width(card.get_by_role("img")) == 312
    with tab.expect_download() as saved:
        card.hover()
        card.get_by_role("link", name="Download").click()
    assert saved.value.suggested_filename == "darkroom-4.png"

    tab.get_by_label("Model", exact=True).select_option("demo-sdxl")
    tab.get_by_label("Steps", exact=True).fill("30")
    card.get_by_role("button", name="Use these settings again").click()
    body = sent(tab, lambda: tab.keyboard.press("Control+Enter"))
    wanted = {"prompt": "a picture of my own", "negative_prompt": "a green star", "model": "demo-sd15", "seed": 4}
    assert body.items() >= (wanted | {"steps": 12, "width": 312, "height": 208, "n": 1}).items()


def test_a_picture_is_made_larger(page: Watched, tmp_path: Path) -> None:
    page.refusals.add(422)
    tab = page.page
    tab.get_by_label("Seed", exact=True).fill("4")
    card = ask_for(tab, "a picture before it")
    expect(card).to_have_attribute("data-status", "complete")
    card.get_by_role("button", name="Open image").click()
    tab.get_by_role("dialog", name="Image").get_by_role("button", name="Enlarge").click()
    dialog = tab.get_by_role("dialog", name="Enlarge")
    dialog.get_by_label("Times width and height").fill("9")
    dialog.get_by_role("button", name="Enlarge it").click()
    expect(dialog.get_by_role("alert")).to_contain_text("scale")
    dialog.get_by_label("Times width and height").fill("1.5")
    dialog.get_by_role("button", name="Enlarge it").click()
    expect(dialog).to_be_hidden()
    larger = tab.get_by_role("article", name="Enlarged 1.5 times by lanczos")
    expect(larger).to_have_attribute("data-status", "complete")
    assert shown_width(larger.get_by_role("img")) == 384
    expect(larger.get_by_role("button", name="Use these settings again")).to_be_hidden()
    expect(larger.locator("dl")).to_contain_text("384")

    tab.reload()
    expect(larger).to_have_attribute("data-status", "complete")
    tab.locator("#picture-file").set_input_files(picture(tmp_path / "own.png", "black", (40, 30)))
    tab.get_by_role("button", name="Enlarge").click()
    dialog.get_by_role("button", name="Enlarge it").click()
    own = tab.get_by_role("article", name="Enlarged 2 times by lanczos")
    expect(own).to_have_attribute("data-status", "complete")
    assert shown_width(own.get_by_role("img")) == 80


def test_escape_cancels_what_is_drawn(page: Watched) -> None:
    card = ask_for(page.page, "an endless picture")
    expect(card).to_have_attribute("data-status", "running")
    expect(card.get_by_role("progressbar")).to_be_visible()
    expect(card.get_by_alt_text("Preview")).to_be_visible()
    expect(card.locator(".standing")).to_have_text(re.compile(r"^\d+ %"))
    page.page.keyboard.press("Escape")
    expect(card.locator(".standing")).to_have_text("Cancelled")
    expect(card.get_by_role("button", name="Cancel")).to_be_hidden()


def test_a_job_s_standing_is_a_line_of_words(page: Watched) -> None:
    lines = """async () => {
        const { duration, standing } = await import(new URL("ui/words.js", document.baseURI));
        const job = { position: 0, progress: { fraction: 0.456, eta_seconds: 80.2 }, timings: { total_s: 1.78 } };
        const queued = (position, eta) => ({ ...job, status: "queued", position, progress: { eta_seconds: eta } });
        return [
            ...[queued(1, null), queued(2, 11.2), queued(12, 3), queued(43, 60)].map(standing),
            ...["running", "complete", "failed"].map((status) => standing({ ...job, status })),
            ...[0, 59.1, 3600, 7500].map(duration),
        ];
    }"""
    assert page.page.evaluate(lines) == [
        "Next in the queue",
        "2nd in the queue, 12 s left",
        "12th in the queue, 3 s left",
        "43rd in the queue, 1 min left",
        "45 %, 1 min 21 s left",
        "Done in 1.8 s",
        "Failed: unknown error",
        "1 s",
        "1 min",
        "1 h 0 min",
        "2 h 5 min",
    ]


def test_more_jobs_than_event_streams_all_arrive(page: Watched) -> None:
    page.page.get_by_label("Seed", exact=True).fill("2")
    prompts = [f"slow number {number}" for number in range(4)]
    cards = [ask_for(page.page, prompt) for prompt in prompts]
    for card in cards:
        expect(card).to_have_attribute("data-status", "complete")
    order = page.page.get_by_role("article").evaluate_all("cards => cards.slice(0, 4).map(card => card.ariaLabel)")
    assert order == prompts[::-1]


def test_a_stream_that_breaks_is_opened_again(page: Watched) -> None:
    breaks = iter([True, True])

    def broken(route: Route) -> None:
        if next(breaks, False):
            route.fulfill(status=200, content_type="text/event-stream", body='event: queued\ndata: {"posi')
        else:
            route.continue_()

    page.page.route(re.compile("/events$"), broken)
    page.page.get_by_label("Seed", exact=True).fill("2")
    expect(ask_for(page.page, "slow after all")).to_have_attribute("data-status", "complete")
    assert next(breaks, None) is None


def test_what_the_safety_layers_said_stands_at_each_image(page: Watched) -> None:
    tab = page.page
    tab.get_by_label("Seed", exact=True).fill("6")
    tab.get_by_label("Images").fill("2")
    card = ask_for(tab, "one of two")
    expect(card.locator(".safety")).to_have_text(["safe", "withheld"])
    expect(card.locator(".withheld")).to_have_text("Withheld as unsafe by the classifier (score 0.95)")
    tab.get_by_label("Seed", exact=True).fill("7")
    tab.get_by_label("Images").fill("1")
    expect(ask_for(tab, "none of one").locator(".standing")).to_have_text("Withheld as unsafe")
    failed = ask_for(tab, "poison")
    expect(failed.locator(".standing")).to_contain_text("Failed: not-a-number")


def test_a_refusal_stands_beside_its_field(page: Watched) -> None:
    page.refusals.add(422)
    tab = page.page
    steps = tab.get_by_label("Steps", exact=True)
    expect(steps).to_have_value("25")  # the model's own, once the page knows it
    steps.fill("500")
    tab.get_by_label("Prompt", exact=True).fill("too much")
    tab.get_by_role("button", name="Generate").click()
    expect(tab.locator('[data-field="steps"] .error')).to_have_text("Steps is 500, outside 10..50")
    expect(steps).to_be_focused()
    expect(steps).to_have_attribute("aria-invalid", "true")
    steps.fill("20")
    expect(tab.locator('[data-field="steps"] .error')).to_have_count(0)
    tab.get_by_label("Seed", exact=True).fill("9223372036854775807")  # more than a browser's numbers hold
    tab.keyboard.press("Control+Enter")
    expect(tab.locator('[data-field="seed"] .error')).to_contain_text("Seed is")


def test_markup_in_a_prompt_is_text(page: Watched) -> None:
    card = ask_for(page.page, '<img src="x" onerror="alert(1)"> & <b>bold</b>')
    expect(card.locator(".prompt")).to_have_text('<img src="x" onerror="alert(1)"> & <b>bold</b>')
    assert card.locator(".prompt *").count() == 0


def test_the_brush_paints_the_mask_that_is_sent(page: Watched, tmp_path: Path) -> None:
    tab = page.page
    tab.locator("#picture-file").set_input_files(picture(tmp_path / "photo.png", "black"))  # white counts as unsafe
    expect(tab.get_by_label("Width", exact=True)).to_have_value("192")
    expect(tab.get_by_label("Height", exact=True)).to_have_value("128")
    tab.get_by_role("button", name="Paint a mask").click()
    box = tab.locator("#brush-canvas").bounding_box()
    assert box is not None
    tab.get_by_role("slider", name="Size").fill("20")

    def drag(*points: tuple[float, float]) -> None:
        """Over the canvas, in fractions of it."""
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        tab.mouse.move(*places[0])
        tab.mouse.down()
        for place in places[1:]:
            tab.mouse.move(*place, steps=4)
        tab.mouse.up()

    drag((0.25, 0.5), (0.75, 0.5))
    drag((0.5, 0.1), (0.5, 0.2))
    tab.keyboard.press("Control+z")  # the second is gone
    tab.keyboard.press("e")
    drag((0.75, 0.5))
    tab.keyboard.press("e")
    for key in ("ArrowUp", "ArrowUp", "ArrowUp", "Space"):  # from where the eraser was
        tab.keyboard.press(key)
    tab.get_by_role("button", name="Done").click()
    tab.get_by_label("Prompt", exact=True).fill("mended")
    tab.get_by_label("Seed", exact=True).fill("2")
    body = sent(tab, lambda: tab.keyboard.press("Control+Enter"))

    mask = Image.open(io.BytesIO(base64.b64decode(body["mask"].partition(",")[2]))).convert("L")
    assert mask.size == (192, 128)
    white = {"begun": (48, 64), "middle": (96, 64), "by key": (144, 34)}
    black = {"corner": (4, 4), "undone": (96, 20), "erased": (144, 64), "beside": (48, 80)}
    assert {name: mask.getpixel(place) for name, place in white.items()} == dict.fromkeys(white, 255)
    assert {name: mask.getpixel(place) for name, place in black.items()} == dict.fromkeys(black, 0)
    assert body["image"].startswith("data:image/png;base64,")
    assert (body["strength"], body["inpaint"]["blur"]) == (1, 4)
    card = tab.get_by_role("article", name="mended")
    expect(card).to_have_attribute("data-status", "complete")
    expect(card.locator("dl")).to_contain_text("Painted into an image")

    tab.get_by_role("button", name="Change the mask").click()
    tab.get_by_role("button", name="Clear").click()
    tab.keyboard.press("Escape")  # leaves the mask as it was
    expect(tab.get_by_role("button", name="Change the mask")).to_be_visible()
    tab.get_by_role("button", name="Remove").click()
    assert "image" not in sent(tab, lambda: tab.keyboard.press("Control+Enter"))


def test_what_is_done_before_the_models_are_known_waits_for_them(page: Watched, tmp_path: Path) -> None:
    tab = page.page
    held: list[Route] = []
    tab.route("**/models", lambda route: held.append(route))
    with tab.expect_request("**/models"):
        tab.reload()
    tab.locator("#picture-file").set_input_files(picture(tmp_path / "photo.png", "black"))
    expect(tab.get_by_alt_text("The image to begin with")).to_be_visible()
    tab.get_by_label("Prompt", exact=True).fill("early")
    tab.get_by_role("button", name="Generate").click()

    def answer() -> None:
        for route in held:
            route.continue_()

    body = sent(tab, answer)
    assert (body["prompt"], body["width"], body["height"]) == ("early", 192, 128)
    expect(tab.get_by_role("article", name="early")).to_be_visible()


def test_an_image_may_be_dropped_anywhere(page: Watched, tmp_path: Path) -> None:
    data = base64.b64encode(picture(tmp_path / "photo.png", size=(600, 300)).read_bytes()).decode()
    page.page.evaluate(DROP, [data, "image/gif"])
    expect(page.page.locator("#picture-problem")).to_contain_text("can't be read")
    page.page.evaluate(DROP, [data, "image/png"])
    expect(page.page.get_by_alt_text("The image to begin with")).to_be_visible()
    expect(page.page.get_by_label("Width", exact=True)).to_have_value("512")  # the nearest that the model draws
    expect(page.page.get_by_label("Height", exact=True)).to_have_value("256")


def test_an_image_of_the_gallery_is_looked_at_and_begun_with(page: Watched) -> None:
    tab = page.page
    for number in (2, 4):
        tab.get_by_label("Seed", exact=True).fill(str(number))
        expect(ask_for(tab, f"to look at {number}")).to_have_attribute("data-status", "complete")
    tab.get_by_role("article", name="to look at 4").get_by_role("button", name="Open image").click()
    viewer = tab.get_by_role("dialog")
    expect(viewer.locator("#viewer-prompt")).to_have_text("to look at 4")
    tab.keyboard.press("ArrowRight")
    expect(viewer.locator("#viewer-prompt")).to_have_text("to look at 2")
    expect(viewer.locator("dl")).to_contain_text("No unsafe content found")
    viewer.get_by_role("button", name="Begin with this").click()
    expect(tab.get_by_alt_text("The image to begin with")).to_be_visible()
    assert sent(tab, lambda: tab.keyboard.press("Control+Enter"))["strength"] == 0.8


def test_the_calls_to_copy_ask_for_just_what_the_form_does(page: Watched, tmp_path: Path) -> None:
    name = "it's a $PHOTO `x` \\ 1.png"
    tab = page.page
    tab.get_by_label("Model", exact=True).select_option("demo-sdxl")
    tab.get_by_label("Prompt", exact=True).fill('say "$HOME" `id` \\(x\\)\nJSON')
    tab.get_by_label("Seed", exact=True).fill("10")
    tab.locator("#picture-file").set_input_files(picture(tmp_path / name))
    tab.get_by_text("This as an API call").click()
    call = tab.get_by_label("The call")
    expect(call).to_contain_text("base64 <")
    curl = call.text_content()
    tab.get_by_role("button", name="Python").click()
    expect(call).to_contain_text("b64encode")
    python = call.text_content()
    tab.locator("#drop-picture").click()
    expect(call).not_to_contain_text("base64")
    plain = call.text_content()
    asked = sent(tab, lambda: tab.keyboard.press("Control+Enter"))
    assert curl is not None
    assert python is not None
    assert plain is not None
    requests = []
    for command in (["bash", "-c", curl], [sys.executable, "-c", python], [sys.executable, "-c", plain]):
        ran = subprocess.run(
            command, cwd=tmp_path, env={"PATH": os.environ["PATH"]}, check=True, capture_output=True, text=True
        )
        assert "complete" in ran.stdout, ran.stdout
        requests.append(httpx.get(f"{page.url}/jobs?limit=1").json()["jobs"][0]["request"])
    assert requests[0] == requests[1]
    assert requests[0]["image"]["strength"] == 0.8
    assert requests[2]["image"] is None
    for request in requests:
        assert request.items() >= {field: asked[field] for field in ("prompt", "seed", "steps", "width")}.items()


def test_the_gallery_goes_back_page_by_page(page: Watched) -> None:
    for number in range(14):
        httpx.post(f"{page.url}/generate", json={"prompt": f"of many {number}", "seed": 2 * number}).raise_for_status()
    tab = page.page
    tab.reload()
    cards = tab.get_by_role("article")
    expect(cards).to_have_count(12)
    expect(cards.first).to_have_attribute("data-status", "complete")
    tab.get_by_role("button", name="Show older ones").click()
    expect(tab.get_by_role("article", name="of many 0", exact=True)).to_be_visible()


def test_a_key_is_asked_for_and_kept(browser: Browser, keyed: tuple[str, str]) -> None:
    url, key = keyed
    with watched(browser, url) as one:
        one.refusals.add(401)
        tab = one.page
        dialog = tab.get_by_role("dialog")
        dialog.get_by_label("Key").fill("dk_00000000_" + "x" * 43)
        tab.keyboard.press("Enter")
        expect(dialog.get_by_role("alert")).to_have_text("This key is invalid.")
        dialog.get_by_label("Key").fill(key)
        tab.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        tab.get_by_label("Seed", exact=True).fill("2")
        card = ask_for(tab, "a slow and private picture")
        expect(card).to_have_attribute("data-status", "complete")
        tab.reload()
        assert shown_width(card.get_by_role("img")) == 256
        tab.get_by_text("This as an API call").click()
        expect(tab.get_by_label("The call")).to_contain_text("$DARKROOM_KEY")
        assert key not in tab.content()
        slow = ask_for(tab, "an endless and private picture")
        expect(slow).to_have_attribute("data-status", "running")
        tab.get_by_role("button", name="API key").click()
        with tab.expect_event("requestfailed", lambda request: request.url.endswith("/events")):
            dialog.get_by_role("button", name="Forget it").click()  # what runs is not followed any more
        expect(card).to_have_count(0)
        expect(slow).to_have_count(0)
        expect(dialog).to_be_visible()  # what follows has no key


def test_a_phone_in_the_dark(browser: Browser, url: str) -> None:
    phone = {"viewport": {"width": 390, "height": 800}, "color_scheme": "dark", "has_touch": True, "is_mobile": True}
    with watched(browser, url, **phone) as one:
        tab = one.page
        expect(tab.get_by_label("Model", exact=True)).to_have_value("demo-sd15")
        assert tab.evaluate("document.documentElement.scrollWidth") == 390
        form, gallery = tab.locator("#settings").bounding_box(), tab.locator("#gallery").bounding_box()
        assert form is not None
        assert gallery is not None
        assert gallery["y"] > form["y"] + form["height"] - 1
        assert lightness(tab) < 0.2
        tab.get_by_label("Theme").select_option("light")
        assert lightness(tab) > 0.8
        tab.reload()
        assert lightness(tab) > 0.8


def test_a_model_says_what_it_draws_and_offers_examples(page: Watched) -> None:
    tab = page.page
    examples = tab.get_by_role("group", name="Examples").get_by_role("button")
    expect(tab.get_by_label("Model", exact=True)).to_have_value("demo-sd15")
    expect(examples).to_have_count(0)
    tab.get_by_label("Model", exact=True).select_option("demo-sdxl")
    expect(tab.locator("#model-draws")).to_have_text("Circles alone.")
    expect(examples).to_have_text(["a red circle", "a circle, <b>bold</b>"])
    examples.last.click()
    assert sent(tab, lambda: tab.keyboard.press("Control+Enter"))["prompt"] == "a circle, <b>bold</b>"


def test_every_control_has_a_name_and_can_be_reached(page: Watched) -> None:
    tab = page.page
    expect(tab.get_by_label("Prompt", exact=True)).to_be_focused()
    nameless = """() => [...document.querySelectorAll("input, select, textarea, button, a")].filter((one) =>
        !one.closest("[aria-hidden]") && !one.labels?.length && !one.ariaLabel && !one.textContent.trim()
    ).map((one) => one.outerHTML)"""
    assert tab.evaluate(nameless) == []
    reached = set()
    for _ in range(40):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.id"))
    assert reached >= {"negative-prompt", "generate", "model", "width", "steps", "sampler", "seed", "picture-file"}


def lightness(page: Page) -> float:
    """Of the page's background, 0 to 1."""
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red, green, blue = (int(part) for part in re.findall(r"\d+", colour)[:3])
    return (red + green + blue) / 3 / 255


def test_a_lost_connection_is_said_and_the_card_goes_on_when_it_is_back(page: Watched) -> None:
    lost = [True]

    def cut(route: Route) -> None:
        if lost:
            route.abort("connectionrefused")
        else:
            route.continue_()

    page.page.route(re.compile("/events$"), cut)
    page.page.get_by_label("Seed", exact=True).fill("2")
    card = ask_for(page.page, "slow and far away")
    expect(card.locator(".standing")).to_contain_text("Connection lost, trying again")
    expect(page.page.get_by_role("status")).to_have_text("The connection to the service is lost")
    lost.clear()
    expect(card).to_have_attribute("data-status", "complete")
    expect(card.locator(".standing")).to_have_text(re.compile("^Done"))
    page.complaints = [said for said in page.complaints if "net::ERR_CONNECTION_REFUSED" not in said]


def test_the_mask_is_seen_on_any_picture(page: Watched, tmp_path: Path) -> None:
    tab = page.page
    for colour in ("white", "black", "gray", "rgb(229,72,47)", "rgb(90,0,20)", "rgb(255,225,215)", "lime"):
        tab.locator("#picture-file").set_input_files(picture(tmp_path / "photo.png", colour))
        tab.get_by_role("button", name="Paint a mask").click()
        tab.get_by_role("slider", name="Size").fill("64")
        tab.locator("#brush-frame").press("Space")
        box = tab.locator("#brush-canvas").bounding_box()
        assert box is not None
        middle = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        tab.locator("#brush-ring").evaluate("ring => (ring.hidden = true)")
        shot = tab.screenshot(clip={"x": middle["x"] - 40, "y": middle["y"] - 40, "width": 80, "height": 80})
        pixels = list(Image.open(io.BytesIO(shot)).convert("RGB").get_flattened_data())
        levels = sorted(luminance(*pixel) for pixel in pixels)
        dark, light = levels[len(levels) // 10], levels[-len(levels) // 10]
        assert (light + 0.05) / (dark + 0.05) >= 3, colour  # WCAG 2.2, 1.4.11
        tab.get_by_role("button", name="Cancel").click()
        tab.locator("#drop-picture").click()


def test_what_was_wrong_with_a_file_goes_with_it(page: Watched, tmp_path: Path) -> None:
    tab = page.page
    page.refusals |= {413, 422}
    tab.locator("#picture-file").set_input_files(picture(tmp_path / "large.png", size=(1024, 512)))
    expect(tab.get_by_alt_text("The image to begin with")).to_be_visible()
    ask_for(tab, "too many pixels")
    wrong = tab.locator("#picture-part .told")
    expect(wrong).to_have_text(re.compile("^Image "))
    good = base64.b64encode(picture(tmp_path / "photo.png").read_bytes()).decode()
    tab.evaluate(DROP, [good, "image/png"])
    expect(wrong).to_have_count(0)
    expect(tab.locator("#picture-file")).not_to_have_attribute("aria-invalid", "true")


def test_an_error_calls_a_field_by_its_label(page: Watched) -> None:
    page.refusals.add(422)
    tab = page.page
    tab.get_by_text("Finer settings").click()
    tab.get_by_label("Hires: a second pass, larger").check()
    tab.get_by_label("Prompt", exact=True).fill("wrong somewhere")
    for name, label, value in [
        ("n", "Images", "99"),
        ("guidance_scale", "Guidance scale", "99"),
        ("clip_skip", "Clip skip", "99"),
        ("guidance_rescale", "Guidance rescale", "2"),
        ("guidance_interval.start", "Guidance from", "2"),
        ("s_churn", "Sigma churn", "2000"),
        ("hires.scale", "Hires scale", "9"),
        ("hires.steps", "Hires steps", "99"),
        ("timeout_s", "Timeout (s)", "1e9"),
    ]:
        control = tab.locator(f'[name="{name}"]')
        before = control.input_value()
        control.fill(value)
        tab.keyboard.press("Control+Enter")
        told = tab.locator("#settings .told")
        expect(told).to_have_text(re.compile("^" + re.escape(label) + " is "))
        expect(told).not_to_contain_text("_")
        control.fill(before)
        expect(told).to_have_count(0)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(page: Watched, theme: str) -> None:
    tab = page.page
    tab.get_by_label("Seed", exact=True).fill("2")
    card = ask_for(tab, "seen by everybody")
    expect(card).to_have_attribute("data-status", "complete")
    tab.get_by_label("Theme").select_option(theme)
    for summary in tab.locator("#settings summary").all():
        if summary.is_visible():
            summary.click()
    for busy in ("false", "true"):
        tab.locator("#generate").evaluate("(button, busy) => button.setAttribute('aria-busy', busy)", busy)
        assert tab.evaluate(FAINT) == []


# the texts with less than 4.5:1 (WCAG 2.2, 1.4.3), opacity of what they stand in included
FAINT = r"""() => {
    const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const rgba = (colour) => {
        context.clearRect(0, 0, 1, 1);
        context.fillStyle = colour;
        context.fillRect(0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data].map((part) => part / 255);
    };
    const over = ([r, g, b, a], below) => [r, g, b].map((part, at) => part * a + below[at] * (1 - a));
    const light = (colour) => colour
        .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
        .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
    const behind = (node) => {
        const chain = [];
        for (let one = node; one; one = one.parentElement) chain.unshift(one);
        return chain.reduce((colour, one) => over(rgba(getComputedStyle(one).backgroundColor), colour), [1, 1, 1]);
    };
    const faint = [];
    for (const node of document.querySelectorAll("body *")) {
        const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
        const drawn = own && node.checkVisibility();
        if (!drawn || node.matches("option, optgroup, noscript, .unseen, .skip, .safety, .over *")) continue;
        let opacity = 1;
        for (let one = node; one; one = one.parentElement) opacity *= getComputedStyle(one).opacity;
        const below = behind(node);
        const [r, g, b, a] = rgba(getComputedStyle(node).color);
        const [one, other] = [light(over([r, g, b, a * opacity], below)), light(below)].sort((x, y) => y - x);
        if ((one + 0.05) / (other + 0.05) < 4.5) faint.push(node.outerHTML.slice(0, 120));
    }
    return faint;
}"""


def luminance(red: int, green: int, blue: int) -> float:
    """WCAG's, 0 to 1."""
    parts = [part / 255 for part in (red, green, blue)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
