"""Settings from a picture's file: what a dropped file of ours or of A1111's was drawn with stands in the form."""

import base64
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, PngImagePlugin
from playwright.sync_api import Page, expect

from tests.chromium import PATIENCE_MS, Watched
from tests.serve_app.ui.actions import picture, sent

expect.set_options(timeout=PATIENCE_MS)

OF_A1111 = (
    "a cat, (masterpiece:1.2)\nNegative prompt: dog\nSteps: 23, Sampler: DPM++ 2M, Schedule type: Karras, "
    "CFG scale: 6.5, Seed: 4, Size: 264x200, Model hash: 6ce0161689, Model: v1-5-pruned, Version: v1.10.1"
)


def written(path: Path, parameters: str) -> Path:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", parameters)
    Image.new("RGB", (16, 16)).save(path, pnginfo=texts)
    return path


def used(tab: Page, file: Path, lost: str = "") -> dict[str, Any]:
    """What is sent once the settings of a file are in the form. lost: what is said to be left out."""
    tab.locator("#picture-file").set_input_files(file)
    tab.get_by_role("button", name="Use its settings").click()
    expect(tab.get_by_alt_text("The image to begin with")).to_be_hidden()
    expect(tab.locator("#lost")).to_contain_text(lost)
    return sent(tab, lambda: tab.keyboard.press("Control+Enter"))


def test_a_file_of_ours_is_drawn_again(page: Watched, tmp_path: Path) -> None:
    drawn = {"model": "demo-sdxl", "seed": 4, "steps": 23, "variation_strength": 0.25, "refiner": {"switch_at": 0.6}}
    others = {"n": 2, "variation_seed": 9, "prompt_2": "the other", "loras": [{"name": "ink", "weight": 0.5}]}
    for kind in ("png", "webp"):
        body = {"prompt": f"kept in a {kind}", **drawn, **others, "output_format": kind}
        job = httpx.post(f"{page.url}/generate", json=body, headers={"prefer": "wait=30"}, timeout=60).json()
        file = tmp_path / f"second.{kind}"
        file.write_bytes(httpx.get(page.url + job["images"][1]["url"]).content)
        request = used(page.page, file)
        assert (request["seed"], request["variation_seed"], request["n"]) == (4, 10, 1)
        assert request.items() >= drawn.items()
        if kind == "png":  # of others A1111's text is read, where a LoRA is in the prompt and there is no second one
            assert (request["prompt_2"], request["loras"]) == (others["prompt_2"], others["loras"])


def test_a_file_of_a1111_s_is_taken_as_far_as_it_goes(page: Watched, tmp_path: Path) -> None:
    tab = page.page
    request = used(tab, written(tmp_path / "a.png", OF_A1111), "v1-5-pruned")
    wanted = {"prompt": "a cat, (masterpiece:1.2)", "negative_prompt": "dog", "steps": 23, "guidance_scale": 6.5}
    drawn = {"seed": 4, "width": 264, "height": 200, "scheduler": "webui_dpmpp_2m_karras"}
    assert request.items() >= (wanted | drawn).items()
    request = used(tab, written(tmp_path / "b.png", OF_A1111 + ", Denoising strength: 0.35"))
    assert "image" not in request
    expect(tab.locator("#picture-problem")).to_contain_text("add it again")
    tab.locator("#picture-file").set_input_files(picture(tmp_path / "photo.png", "black"))
    expect(tab.get_by_label("Strength", exact=True).last).to_have_value("0.35")


def test_a_file_without_settings_offers_none(page: Watched, tmp_path: Path) -> None:
    tab = page.page
    for file in (picture(tmp_path / "plain.png"), written(tmp_path / "words.png", "just a caption")):
        with tab.expect_response(lambda response: response.url.endswith("png-info")) as answered:
            tab.locator("#picture-file").set_input_files(file)
        assert answered.value.ok
        expect(tab.get_by_alt_text("The image to begin with")).to_be_visible()
        expect(tab.get_by_role("button", name="Use its settings")).to_be_hidden()


def test_a_picture_that_was_made_larger_has_the_settings_of_the_first(page: Watched, tmp_path: Path) -> None:
    image = base64.b64encode(written(tmp_path / "small.png", OF_A1111).read_bytes()).decode()
    body = {"image": image, "scale": 2}
    job = httpx.post(f"{page.url}/upscale", json=body, headers={"prefer": "wait=30"}, timeout=60).json()
    (tmp_path / "large.png").write_bytes(httpx.get(page.url + job["image_url"]).content)
    assert used(page.page, tmp_path / "large.png")["prompt"] == "a cat, (masterpiece:1.2)"
