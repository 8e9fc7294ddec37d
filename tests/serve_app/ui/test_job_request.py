"""A job's request goes back to the form and into an API call: every field of the schema, or it is named as lost."""

import base64
import json
import re
from pathlib import Path
from typing import Any, get_args

import httpx
from PIL import Image
from playwright.sync_api import Locator, expect
from pydantic import BaseModel

from serve_app.schemas.generation_request import GenerationRequest
from tests.chromium import PATIENCE_MS, Watched
from tests.serve_app.ui.actions import ask_for, picture, sent

expect.set_options(timeout=PATIENCE_MS)

# the address isn't among a job's data, which the page says beside its field; variants are chosen in what a job has
NOT_TOLD = {"webhook_url", "dynamic_prompts"}

OPTIONS = {"output_format": "webp", "priority": "batch", "timeout_s": 77.5, "safety": "block", "preview": True}

STEERED = {"scale": 0.55, "start": 0.125, "end": 0.875}

# requests that say something of every field, each of what goes together
TEXTS: dict[str, Any] = {
    "prompt": "two texts", "negative_prompt": "a star", "prompt_2": "the other", "negative_prompt_2": "no other",
    "model": "demo-sdxl", "n": 2, "seed": 4, "steps": 23, "guidance_scale": 6.125, "guidance_rescale": 0.4,
    "guidance_interval": {"start": 0.1, "end": 0.9}, "width": 264, "height": 200, "scheduler": "dpmpp_2m_karras",
    "refiner": {"switch_at": 0.613}, "loras": [{"name": "ink", "weight": -0.35, "text_weight": 0.2}],
    "regions": [
        {"prompt": "its corner", "box": {"x": 0.25, "y": 0.125, "width": 0.5, "height": 0.375}, "weight": 1.5,
         "loras": [{"name": "ink"}]},
        {
            "prompt": "the rest", "box": {"x": 0.0, "y": 0.5, "width": 1.0, "height": 0.5},
            "loras": [{"name": "ink", "weight": 0.75, "text_weight": -0.5}],
        },
    ],
    "details": [
        {
            "detector": "shapes", "classes": ["circle", "square"], "confidence": 0.55, "max_count": 3, "min_area": 0.01,
            "max_area": 0.9, "offset_x": 5, "offset_y": -6, "dilation": 7, "combine": "all", "blur": 8, "padding": 9,
            "strength": 0.65, "prompt": "a shape", "negative_prompt": "no shape", "steps": 21, "guidance_scale": 4.5,
            "sampler": "ddim", "width": 136, "height": 144,
        },
        {"detector": "shapes"},
    ],
    "base_weight": 0.35, "variation_seed": 0, "variation_strength": 0.3,
    "noise_width": 256, "noise_height": 192, "noise_seed_delta": -31337,
    **OPTIONS,
}  # fmt: skip
SECOND_PASS: dict[str, Any] = {
    "prompt": "larger", "model": "demo-sd15", "seed": 2, "scheduler": "webui_euler_karras", "clip_skip": 1,
    "eta": 0.5, "s_churn": 12.5, "s_tmin": 0.25, "s_tmax": 9.75, "s_noise": 1.01, "reproducible": True, "preview": True,
    "tiling": True, "vae": "soft", "freeu": {"s1": 0.85, "s2": 0.25, "b1": 1.15, "b2": 1.0}, "hires": {
        "scale": 1.5, "upscaler": "latent_bicubic", "strength": 0.45, "steps": 17, "sampler": "webui_euler_a",
        "prompt": "larger, sharper", "negative_prompt": "blurred",
    },
}  # fmt: skip
SIZED_PASS: dict[str, Any] = {
    "prompt": "as large as this", "model": "demo-sdxl", "seed": 2, "refiner": False, "guidance_scale": 1.0,
    "preview": True, "hires": {"width": 384, "height": 384, "upscaler": "lanczos", "model": "demo-sd15"},
}  # fmt: skip


def paths(model: type[BaseModel], before: str = "") -> set[str]:
    """Every field of a request and of its parts."""
    found: set[str] = set()
    for name, field in model.model_fields.items():
        classes = [one for one in (field.annotation, *get_args(field.annotation)) if isinstance(one, type)]
        parts = [one for one in classes if issubclass(one, BaseModel)]
        found |= paths(parts[0], f"{before}{name}.") if parts else {before + name}
    return found


def said(body: dict[str, Any], before: str = "") -> set[str]:
    """The paths of what a request says."""
    found: set[str] = set()
    for name, value in body.items():
        parts = value if isinstance(value, list) else [value]
        for part in parts:
            found |= said(part, f"{before}{name}.") if isinstance(part, dict) else {before + name}
    return found


def data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def steered(image: str, edges: str, style: str, where: str) -> dict[str, Any]:
    """A request that begins with an image and is steered by others."""
    control = {"model": "edges", "preprocessor": "canny", "low": 60, "high": 150, "fit": "pad", **STEERED}
    return {
        "prompt": "steered", "model": "demo-sd15", "seed": 2, "strength": 0.725, "image": image, "mask": where,
        "width": 192, "height": 128, "preview": True,
        "inpaint": {"blur": 7, "invert": True, "only_masked": True, "padding": 24, "fill": "noise"},
        "controlnets": [{**control, "image": edges}],
        "references": [{"model": "base", "image": style, "mask": where, **STEERED}],
        "regions": [{"prompt": "its right half", "mask": where}],
    }  # fmt: skip


def extended(image: str) -> dict[str, Any]:
    sides = {"left": 8, "top": 16, "right": 24, "bottom": 32}
    return {"prompt": "extended", "model": "demo-sd15", "seed": 2, "image": image, "outpaint": sides, "preview": True}


def cropped(image: str) -> dict[str, Any]:
    size = {"width": 256, "height": 256}
    return {
        "prompt": "cropped",
        "model": "demo-sd15",
        "seed": 2,
        "image": image,
        "fit": "crop",
        "preview": True,
        **size,
    }


def drawn(page: Watched, body: dict[str, Any]) -> tuple[Locator, dict[str, Any]]:
    """The card of a request that somebody else has sent, and what it was resolved to."""
    answer = httpx.post(f"{page.url}/generate", json=body, headers={"prefer": "wait=30"}, timeout=60)
    assert answer.status_code == 200, answer.text
    page.page.reload()
    job = answer.json()
    card = page.page.locator(f"[data-job='{job['job_id']}']")
    expect(card).to_have_attribute("data-status", job["status"])
    return card, job["request"]


def repeated(page: Watched) -> dict[str, Any]:
    """Send what the form has; what it was resolved to. The API call says the same."""
    tab = page.page
    box = tab.locator("#api")
    if box.get_attribute("open") is None:
        box.locator("summary").click()
    expect(tab.get_by_label("The call")).to_contain_text("curl")  # an opened box is filled a moment later
    call = tab.get_by_label("The call").text_content() or ""
    with tab.expect_response(lambda response: response.url.endswith("/generate")) as answered:
        body = sent(tab, lambda: tab.keyboard.press("Control+Enter"))
    if "$(" not in call:  # a shell puts files in there; test_page.py runs such a call
        assert json.loads(call[call.index("\n{") : call.rindex("}") + 1]) | {"preview": True} == body
    job_id = answered.value.json()["job_id"]
    expect(tab.locator(f"[data-job='{job_id}']")).to_have_attribute("data-status", "complete")
    request: dict[str, Any] = httpx.get(f"{page.url}/result/{job_id}").json()["request"]
    return request


def test_these_requests_say_something_of_every_field() -> None:
    bodies = (TEXTS, SECOND_PASS, SIZED_PASS, steered("", "", "", ""), extended(""), cropped(""))
    assert set().union(*map(said, bodies)) == (paths(GenerationRequest) - NOT_TOLD - {"refiner.switch_at"}) | {
        "refiner", "refiner.switch_at"
    }  # fmt: skip


def test_a_repeated_job_is_resolved_as_the_first_was(page: Watched) -> None:
    for body in (TEXTS, SECOND_PASS, SIZED_PASS):
        card, resolved = drawn(page, body)
        page.page.get_by_label("Model", exact=True).select_option("demo-sd15")
        page.page.get_by_text("Finer settings").click()
        page.page.get_by_label("Webhook").fill("https://example.org/")
        card.get_by_role("button", name="Use these settings again").click()
        expect(page.page.locator("#lost")).to_have_text("")
        assert repeated(page) == resolved
        labels = card.locator("dt").all_text_contents()
        assert labels == [label for label in labels if "_" not in label]  # the form's words


def test_pictures_of_this_page_are_restored_and_others_named(page: Watched, tmp_path: Path) -> None:
    files = {name: picture(tmp_path / f"{name}.png", colour) for name, colour in
             {"begun": "black", "edges": "gray", "style": "blue", "where": "white"}.items()}  # fmt: skip
    Image.open(files["where"]).crop((-96, 0, 96, 128)).save(files["where"])  # its left half is black
    urls = {name: data_url(path) for name, path in files.items()}
    tab = page.page
    body = steered(urls["begun"], urls["edges"], urls["style"], urls["where"])
    card, resolved = drawn(page, body)
    card.get_by_role("button", name="Use these settings again").click()
    expect(tab.locator("#lost")).to_have_text(
        "Not restored: ControlNet: its picture, Reference: its picture, Reference: its mask, Region: its mask, Mask, "
        "Image."
    )
    tab.locator("#picture-file").set_input_files(files["begun"])
    tab.get_by_label("Picture of ControlNet edges", exact=True).set_input_files(files["edges"])
    tab.get_by_label("Picture of Reference base", exact=True).set_input_files(files["style"])
    tab.get_by_label("Mask of Reference base", exact=True).set_input_files(files["where"])
    tab.get_by_label("Mask of Region 1", exact=True).set_input_files(files["where"])
    tab.get_by_role("button", name="Paint a mask").click()
    tab.get_by_role("slider", name="Size").fill("40")
    tab.locator("#brush-frame").press("Space")
    tab.get_by_role("button", name="Done").click()
    tab.get_by_label("Strength", exact=True).last.fill("0.725")
    first = repeated(page)
    assert {**first["image"], "mask_sha256": ""} == {**resolved["image"], "mask_sha256": ""}
    assert {**first, "image": None} == {**resolved, "image": None}

    tab.get_by_role("button", name="Remove").click()
    tab.get_by_role("button", name="Without edges").click()
    tab.get_by_role("button", name="Without base").click()
    tab.get_by_role("button", name="Without Region 1").click()
    tab.get_by_role("article").first.get_by_role("button", name="Use these settings again").click()
    expect(tab.locator("#lost")).to_have_text("")
    assert repeated(page) == first


def test_an_extended_or_cropped_image_has_the_same_size_again(page: Watched, tmp_path: Path) -> None:
    file = picture(tmp_path / "photo.png", "black")
    for request in (extended, cropped):
        card, resolved = drawn(page, request(data_url(file)))
        card.get_by_role("button", name="Use these settings again").click()
        expect(page.page.locator("#lost")).to_have_text("Not restored: Image.")
        page.page.locator("#picture-file").set_input_files(file)
        expect(page.page.get_by_alt_text("The image to begin with")).to_be_visible()
        assert repeated(page) == resolved


def test_what_no_control_can_hold_is_named(page: Watched) -> None:
    hires = {"scale": 1.5, "negative_prompt": ""}  # else it would be the first pass's
    card, _ = drawn(page, {"prompt": "far off", "negative_prompt": "near", "seed": 2**60, "hires": hires})
    card.get_by_role("button", name="Use these settings again").click()
    expect(page.page.locator("#lost")).to_have_text(re.compile(r"Not restored: Seed \d+, Hires negative prompt\."))
    expect(page.page.get_by_label("Seed", exact=True)).to_have_value("")


def test_loras_that_a_prompt_names_are_that_pass_s(page: Watched) -> None:
    hires = {"scale": 1.5, "prompt": "without"}
    for prompt in ("with <lora:ink:0.5>", "with ink"):
        card, resolved = drawn(page, {"prompt": prompt, "model": "demo-sd15", "seed": 2, "hires": hires})
        card.get_by_role("button", name="Use these settings again").click()
        request = repeated(page)
        assert {**request, "preview": False} == resolved


def test_a_lora_is_picked(page: Watched) -> None:
    tab = page.page
    tab.get_by_role("button", name="Add this LoRA").click()
    tab.get_by_label("Weight of LoRA ink").fill("0.6")
    tab.get_by_label("Seed", exact=True).fill("2")
    card = ask_for(tab, "in ink")
    expect(card).to_have_attribute("data-status", "complete")
    card.get_by_text("Settings", exact=True).click()
    expect(card.locator("dl")).to_contain_text("ink 0.6")
    tab.reload()  # it is kept
    expect(tab.get_by_label("Weight of LoRA ink")).to_have_value("0.6")
    tab.get_by_role("button", name="Without ink").click()
    assert "loras" not in sent(tab, lambda: tab.keyboard.press("Control+Enter"))
