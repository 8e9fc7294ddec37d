"""ADetailer's tabs, as its clients send them: native details, what can't be done, and the way back from an infotext."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from webuiapi import ADetailer

from serve_app.config.settings import Settings
from serve_app.stages.client import Stages
from tests.detectors import tiny_network, write_detector
from tests.serve_app.front import Front, front

SMALL = {"prompt": "a red circle", "seed": 2, "steps": 10, "width": 256, "height": 256, "sampler_name": "Euler"}


@pytest.fixture
def detecting(raw_settings: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "detectors").mkdir()
    write_detector(tmp_path / "detectors" / "apart.safetensors", tiny_network())
    write_detector(tmp_path / "detectors" / "face_yolov8n.safetensors", tiny_network())
    raw_settings["detectors"] = {"folder": str(tmp_path / "detectors")}
    return raw_settings


@pytest.fixture
async def running(detecting: dict[str, Any], stages: Stages) -> AsyncIterator[Front]:
    async with front(Settings.model_validate(detecting), stages) as one:
        yield one


async def asked(one: Front, *tabs: Any, path: str = "txt2img", **fields: Any) -> httpx.Response:
    body = {**SMALL, "alwayson_scripts": {"ADetailer": {"args": [*tabs]}}, **fields}
    return await one.http.post(f"/sdapi/v1/{path}", json=body)


async def details_of(one: Front, *tabs: Any, **fields: Any) -> list[dict[str, Any]]:
    answer = await asked(one, *tabs, **fields)
    assert answer.status_code == 200, answer.text
    details: list[dict[str, Any]] = (await one.newest()).request["details"]
    return details


async def test_a_tab_of_defaults(running: Front) -> None:
    (detail,) = await details_of(running, {"ad_model": "apart"})
    assert detail == {
        "detector": "apart", "classes": [], "confidence": 0.3, "max_count": 16, "min_area": 0.0, "max_area": 1.0,
        "offset_x": 0, "offset_y": 0, "dilation": 2, "combine": "each", "blur": 4, "padding": 32, "strength": 0.4,
        "prompt": None, "negative_prompt": None, "loras": None, "steps": 10, "guidance_scale": 7.5,
        "sampler": "webui_euler", "width": 256, "height": 256,
    }  # fmt: skip


TAB = {
    "ad_model": "face_yolov8n.pt", "ad_model_classes": "circle, square", "ad_prompt": "[PROMPT], a face",
    "ad_negative_prompt": "blurred", "ad_confidence": 0.5, "ad_mask_k_largest": 2, "ad_mask_min_ratio": 0.01,
    "ad_mask_max_ratio": 0.5, "ad_x_offset": 3, "ad_y_offset": 4, "ad_dilate_erode": -6, "ad_mask_blur": 7,
    "ad_mask_merge_invert": "Merge and Invert", "ad_denoising_strength": 0.25, "ad_inpaint_only_masked": True,
    "ad_inpaint_only_masked_padding": 24, "ad_use_inpaint_width_height": True, "ad_inpaint_width": 384,
    "ad_inpaint_height": 320, "ad_use_steps": True, "ad_steps": 12, "ad_use_cfg_scale": True, "ad_cfg_scale": 4.5,
    "ad_use_sampler": True, "ad_sampler": "DPM++ 2M", "ad_scheduler": "Karras", "is_api": [],
}  # fmt: skip


async def test_a_tab_that_says_all(running: Front) -> None:
    (detail,) = await details_of(running, True, False, TAB, {"ad_model": "None"}, negative_prompt="a star")
    assert detail == {
        "detector": "face_yolov8n", "classes": ["circle", "square"], "confidence": 0.5, "max_count": 2,
        "min_area": 0.01, "max_area": 0.5, "offset_x": 3, "offset_y": -4, "dilation": -3, "combine": "others",
        "blur": 7, "padding": 24, "strength": 0.25, "prompt": "a red circle, a face", "negative_prompt": "blurred",
        "loras": [], "steps": 12, "guidance_scale": 4.5, "sampler": "webui_dpmpp_2m_karras", "width": 384,
        "height": 320,
    }  # fmt: skip


async def test_its_infotext_asks_for_the_same(running: Front) -> None:
    tabs = [{**TAB, "ad_prompt": "a face, big", "ad_mask_k": 2}, {"ad_model": "apart", "ad_denoising_strength": 0.7}]
    answer = await asked(running, *tabs)
    assert answer.status_code == 200, answer.text
    first = (await running.newest()).request
    (text,) = json.loads(answer.json()["info"])["infotexts"]
    again = await running.http.post("/sdapi/v1/txt2img", json={"infotext": text})
    assert again.status_code == 200, again.text
    assert (await running.newest()).request == first


async def test_a_client_s_own_form(running: Front) -> None:
    (detail,) = await details_of(running, ADetailer(ad_model="apart", ad_steps=10).to_dict())
    assert (detail["detector"], detail["strength"]) == ("apart", 0.4)


@pytest.mark.parametrize(
    "tabs",
    [
        [False, False, {"ad_model": "apart"}],
        [{"ad_model": "None"}],
        [{"ad_model": "apart", "ad_tab_enable": False}],
        [{"ad_model": "apart", "ad_prompt": " [SKIP] "}],
        [True],
        [],
    ],
)
async def test_tabs_that_are_off(running: Front, tabs: list[Any]) -> None:
    assert await details_of(running, *tabs) == []


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"ad_model": "hand_yolov8n.pt"}, "there is no ad_model 'hand_yolov8n.pt' here; known: apart, face_yolov8n"),
        ({"ad_inpaint_only_masked": False}, "ad_inpaint_only_masked"),
        ({"ad_use_checkpoint": True, "ad_checkpoint": "other"}, "ad_checkpoint 'other'"),
        ({"ad_use_vae": True, "ad_vae": "other"}, "ad_vae"),
        ({"ad_use_noise_multiplier": True, "ad_noise_multiplier": 1.1}, "ad_noise_multiplier"),
        ({"ad_use_clip_skip": True, "ad_clip_skip": 2}, "ad_clip_skip"),
        ({"ad_restore_face": True}, "ad_restore_face"),
        ({"ad_controlnet_model": "Passthrough"}, "ad_controlnet_model"),
        ({"ad_mask_k": 40}, "ad_mask_k"),
        ({"ad_mask_k": 1, "ad_mask_filter_method": "Confidence"}, "ad_mask_filter_method"),
        ({"ad_prompt": "a face [SEP] a hand"}, "ad_prompt"),
    ],
)
async def test_what_can_t_be_done_is_left_out_and_said_or_refused(
    running: Front, detecting: dict[str, Any], stages: Stages, fields: dict[str, Any], word: str
) -> None:
    tab = {"ad_model": "apart", **fields}
    answer = await asked(running, tab)
    assert answer.status_code == 200, answer.text
    assert [word in told for told in json.loads(answer.json()["info"])["warnings"]] == [True]
    detecting["a1111"] = {"strict": True}
    async with front(Settings.model_validate(detecting), stages) as strict:
        answer = await asked(strict, tab)
        assert (answer.status_code, answer.json()["body"]) == (422, "alwayson_scripts")
        assert word in answer.json()["detail"]


@pytest.mark.parametrize(
    "tabs",
    [
        [{"ad_model": "apart", "ad_confidence": 2}],
        [{"ad_model": "apart", "ad_confidence": "much"}],
        [{"ad_model": "apart", "ad_denoising_strength": -1}],
        [{"ad_model": "apart", "ad_mask_merge_invert": "Split"}],
        [{"ad_model": "apart", "ad_model_classes": "dog"}],
        [{"ad_model": "apart", "ad_use_inpaint_width_height": True, "ad_inpaint_width": 100_000}],
        [{"ad_model": "apart", "ad_use_sampler": True, "ad_sampler": "nothing"}],
        [{"ad_model": "apart"}] * 5,
    ],
)
async def test_what_is_refused(running: Front, tabs: list[Any]) -> None:
    answer = await asked(running, *tabs)
    assert (answer.status_code, answer.json()["body"]) == (422, "alwayson_scripts"), answer.text


async def test_arguments_that_are_no_list(running: Front) -> None:
    body = {**SMALL, "alwayson_scripts": {"adetailer": {"args": {"ad_model": "apart"}}}}
    assert (await running.http.post("/sdapi/v1/txt2img", json=body)).status_code == 422


@pytest.mark.parametrize("sampler", ["Euler", "diffusers euler"])
async def test_next_to_no_strength_is_a_step(running: Front, sampler: str) -> None:
    (detail,) = await details_of(running, {"ad_model": "apart", "ad_denoising_strength": 0}, sampler_name=sampler)
    assert 0 < detail["strength"] <= 0.11


async def test_the_script_is_listed(running: Front) -> None:
    scripts = (await running.http.get("/sdapi/v1/scripts")).json()
    assert scripts["txt2img"][0] == "adetailer"
    assert scripts["img2img"] == [*scripts["txt2img"], "sd upscale"]
