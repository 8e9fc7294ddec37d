"""What the web UI's own API tests send: neutral defaults, hires with strength 0, tiling, faces, SD upscale."""

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from serve_app.config.settings import Settings
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front
from tests.serve_app.images.pictures import gradient, sent, square

# neutral values, as its page sends them
SHARED: dict[str, Any] = {
    "batch_size": 1,
    "cfg_scale": 7,
    "eta": 0,
    "height": 64,
    "width": 64,
    "n_iter": 1,
    "negative_prompt": "",
    "prompt": "example prompt",
    "restore_faces": False,
    "s_churn": 0,
    "s_noise": 1,
    "s_tmax": 0,
    "s_tmin": 0,
    "sampler_index": "Euler a",
    "seed": -1,
    "seed_resize_from_h": -1,
    "seed_resize_from_w": -1,
    "steps": 3,
    "styles": [],
    "subseed": -1,
    "subseed_strength": 0,
    "tiling": False,
}
FROM_TEXT = {**SHARED, "denoising_strength": 0, "enable_hr": False, "firstphase_height": 0, "firstphase_width": 0}
FROM_IMAGE = {
    **SHARED,
    "denoising_strength": 0.75,
    "include_init_images": False,
    "init_images": [sent(gradient(64, 64))],
    "inpaint_full_res": False,
    "inpaint_full_res_padding": 0,
    "inpainting_fill": 0,
    "inpainting_mask_invert": False,
    "mask": None,
    "mask_blur": 4,
    "override_settings": {},
    "resize_mode": 0,
}
MASK = sent(np.repeat(square(64, 64, 8, 8, 40)[..., None], 3, axis=2))


@pytest.fixture
async def unjudged(raw_settings: dict[str, Any], stages: Stages) -> AsyncIterator[Front]:
    side = {"min": 64, "max": 512}
    raw_settings["models"]["demo-sd15"]["limits"] = {"width": side, "height": side, "steps": {"min": 1, "max": 50}}
    raw_settings["safety"] = {"mode": "off", "classifier": None}
    async with front(Settings.model_validate(raw_settings), stages) as one:
        yield one


@pytest.mark.parametrize(
    ("call", "fields", "count"),
    [
        ("txt2img", {}, 1),
        ("txt2img", {"negative_prompt": "example negative prompt"}, 1),
        ("txt2img", {"prompt": "((emphasis)), (one:1.1), [to:1], [from::2], [from:to:0.3], [alt|alt1]"}, 1),
        ("txt2img", {"height": 128}, 1),
        ("txt2img", {"enable_hr": True}, 1),
        ("txt2img", {"tiling": True}, 1),
        ("txt2img", {"restore_faces": True}, 1),
        ("txt2img", {"sampler_index": "PLMS"}, 1),
        ("txt2img", {"sampler_index": "DDIM"}, 1),
        ("txt2img", {"sampler_index": "UniPC"}, 1),
        ("txt2img", {"n_iter": 2}, 2),
        ("txt2img", {"batch_size": 2}, 2),
        ("img2img", {}, 1),
        ("img2img", {"mask": MASK}, 1),
        ("img2img", {"mask": MASK, "inpainting_mask_invert": True}, 1),
        ("img2img", {"script_name": "sd upscale", "script_args": ["", 8, "Lanczos", 2.0]}, 1),
    ],
)
async def test_each_is_drawn(unjudged: Front, call: str, fields: dict[str, Any], count: int) -> None:
    body = {**(FROM_TEXT if call == "txt2img" else FROM_IMAGE), **fields}
    answer = await unjudged.http.post(f"/sdapi/v1/{call}", json=body)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["images"]) == count


LISTS = "cmd-flags samplers upscalers sd-models hypernetworks face-restorers realesrgan-models prompt-styles embeddings"


@pytest.mark.parametrize("path", LISTS.split())
async def test_each_list_is_there(unjudged: Front, path: str) -> None:
    assert (await unjudged.http.get(f"/sdapi/v1/{path}")).status_code == 200


async def test_an_option_is_written(unjudged: Front) -> None:
    before = (await unjudged.http.get("/sdapi/v1/options")).json()["send_seed"]
    assert (await unjudged.http.post("/sdapi/v1/options", json={"send_seed": not before})).status_code == 200
    assert (await unjudged.http.get("/sdapi/v1/options")).json()["send_seed"] is not before


@pytest.mark.parametrize("fields", [{"upscaling_resize": 2.0}, {"upscaling_resize": 2.0, "upscaler_1": "Lanczos"}])
async def test_extras_and_png_info(unjudged: Front, fields: dict[str, Any]) -> None:
    neutral = {"resize_mode": 0, "show_extras_results": True, "gfpgan_visibility": 0, "codeformer_visibility": 0}
    further = {"codeformer_weight": 0, "upscaling_resize_w": 128, "upscaling_resize_h": 128, "upscale_first": False}
    body = {**neutral, **further, "image": sent(gradient(64, 64)), **fields}
    assert (await unjudged.http.post("/sdapi/v1/extra-single-image", json=body)).status_code == 200
    batch = {**neutral, **further, **fields, "imageList": [{"data": body["image"], "name": "a"}]}
    assert (await unjudged.http.post("/sdapi/v1/extra-batch-images", json=batch)).status_code == 200
    assert (await unjudged.http.post("/sdapi/v1/png-info", json={"image": body["image"]})).status_code == 200
