"""What a request of A1111's becomes: samplers, overrides, refiners, what can't be done; over real HTTP."""

import base64
import json
from typing import Any

import httpx
import pytest

from tests.serve_app.api.a1111.a1111_client import SMALL, call
from tests.serve_app.front import Front
from tests.serve_app.images.manifest_files import read_manifest


@pytest.mark.parametrize(
    ("sampler", "scheduler", "expected"),
    [
        ("Euler a", "automatic", "euler_a"),
        ("Euler a", "Uniform", "euler_a"),
        ("DPM++ 2M", "Karras", "dpmpp_2m_karras"),
        ("DPM++ 2M", "Automatic", "dpmpp_2m_karras"),
        ("DPM++ 2M", "uniform", "dpmpp_2m"),
        ("DPM++ 2M Karras", None, "dpmpp_2m_karras"),
        ("DPM++ 2M Karras", "karras", "dpmpp_2m_karras"),
        ("DPM++ 2M SDE", "karras", "dpmpp_2m_sde_karras"),
        ("k_euler", "", "euler"),
        ("Euler", "Karras", "euler_karras"),
        ("DPM++ 2M", "Exponential", "dpmpp_2m_exponential"),
        ("DPM++ 2M SDE Beta", None, "dpmpp_2m_sde_beta"),
        ("DDIM", "SGM Uniform", "ddim_trailing"),
        ("DPM++ 2M Karras", "beta", "dpmpp_2m_beta"),
    ],
)
async def test_samplers_and_schedules(
    http: httpx.AsyncClient, running: Front, sampler: str, scheduler: str | None, expected: str
) -> None:
    body = {"prompt": "x", "sampler_name": sampler, "scheduler": scheduler, **SMALL}
    assert (await http.post("/sdapi/v1/txt2img", json=body)).status_code == 200
    assert (await running.newest()).request["sampler"] == expected


async def test_without_a_sampler_the_model_s_own_is_taken(http: httpx.AsyncClient, running: Front) -> None:
    await http.post("/sdapi/v1/txt2img", json={"prompt": "x", "scheduler": "karras", **SMALL})
    assert (await running.newest()).request["sampler"] == "dpmpp_2m"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"cfg_scale": 99}, "cfg_scale"),
        ({"steps": 1000}, "steps"),
        ({"steps": "many"}, "steps"),
        ({"batch_size": 4, "n_iter": 4}, "batch_size"),
        ({"batch_size": 0}, "batch_size"),
        ({"width": 130}, "width"),
        ({"seed": -2}, "seed"),
        ({"sampler_name": "DPM fast"}, "sampler_name"),
        ({"sampler_name": "Euler a", "scheduler": "karras"}, "scheduler"),
        ({"sampler_name": "Euler", "scheduler": "polyexponential"}, "scheduler"),
        ({"override_settings": {"sd_model_checkpoint": "nope"}}, "sd_model_checkpoint"),
        ({"override_settings": {"sd_model_checkpoint": "demo-sdxl-refiner"}}, "sd_model_checkpoint"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 12}}, "CLIP_stop_at_last_layers"),
        ({"override_settings": {"sd_vae": "my.vae.pt"}}, "sd_vae"),
        ({"override_settings": {"samples_format": "avif"}}, "samples_format"),
        ({"refiner_checkpoint": "demo-sdxl-refiner"}, "refiner_checkpoint"),
        ({"refiner_checkpoint": "nope"}, "refiner_checkpoint"),
        ({"tiling": True}, "tiling"),
        ({"restore_faces": True}, "restore_faces"),
        ({"subseed_strength": 0.5}, "subseed_strength"),
        ({"script_name": "X/Y/Z plot"}, "script_name"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True]}}}, "alwayson_scripts"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(
    http: httpx.AsyncClient, fields: dict[str, Any], field: str
) -> None:
    response = await http.post("/sdapi/v1/txt2img", json={"prompt": "x", **fields})
    assert response.status_code == 422, response.text
    body = response.json()
    assert set(body) == {"error", "detail", "body", "errors"}
    assert body["body"] == field
    assert body["detail"]


async def test_override_settings_are_for_this_request(url: str, running: Front) -> None:
    override = {"sd_model_checkpoint": "demo-sdxl", "samples_format": "jpg", "sd_vae": "Automatic", "other": 1}
    result = await call(url, lambda api: api.txt2img(prompt="x", override_settings=override, **SMALL))
    assert (result.image.format, result.info["sd_model_name"]) == ("JPEG", "demo-sdxl")
    assert (await call(url, lambda api: api.get_options()))["sd_model_checkpoint"] == "demo-sd15"


async def test_override_settings_may_stay(url: str) -> None:
    override = {"sd_model_checkpoint": "demo-sdxl"}
    await call(
        url,
        lambda api: api.txt2img(
            prompt="x", override_settings=override, override_settings_restore_afterwards=False, **SMALL
        ),
    )
    assert (await call(url, lambda api: api.util_get_current_model())) == "demo-sdxl"


@pytest.mark.parametrize(
    ("fields", "refiner", "switch_at"),
    [
        ({}, "demo-sdxl-refiner", 0.8),
        ({"refiner_checkpoint": "", "refiner_switch_at": 0}, "demo-sdxl-refiner", 0.8),
        ({"refiner_switch_at": 0.5}, "demo-sdxl-refiner", 0.5),
        ({"refiner_checkpoint": "demo-sdxl-refiner.safetensors [0123abcdef]"}, "demo-sdxl-refiner", 0.8),
        ({"refiner_checkpoint": "DEMO-SDXL-refiner", "refiner_switch_at": 0.6}, "demo-sdxl-refiner", 0.6),
        ({"refiner_checkpoint": "None"}, None, None),
        ({"refiner_switch_at": 1.0}, None, None),
    ],
)
async def test_refiner_fields(
    http: httpx.AsyncClient, fields: dict[str, Any], refiner: str | None, switch_at: float | None
) -> None:
    override = {"sd_model_checkpoint": "demo-sdxl"}
    body = {"prompt": "x", "override_settings": override, **SMALL, **fields}
    answer = (await http.post("/sdapi/v1/txt2img", json=body)).json()
    manifest = read_manifest(base64.b64decode(answer["images"][0]))
    assert manifest is not None
    assert (manifest.refiner and manifest.refiner.name) == refiner
    assert (manifest.refiner and manifest.refiner.switch_at) == switch_at
    named = {"Refiner": refiner, "Refiner switch at": switch_at} if refiner else {}
    assert json.loads(answer["info"])["extra_generation_params"] == named


async def test_a_model_without_a_refiner_takes_a_switch_at_along(http: httpx.AsyncClient) -> None:
    body = {"prompt": "x", "refiner_switch_at": 0.8, **SMALL}
    assert (await http.post("/sdapi/v1/txt2img", json=body)).status_code == 200


async def test_infotext_fills_what_is_left_open(http: httpx.AsyncClient, running: Front) -> None:
    text = (
        "a red circle\nNegative prompt: blue\nSteps: 12, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 4, "
        "Seed: 8, Size: 128x192, Model: demo-sdxl, Clip skip: 2, "
        "Refiner: demo-sdxl-refiner [0000000000], Refiner switch at: 0.5"
    )
    assert (await http.post("/sdapi/v1/txt2img", json={"infotext": text, "seed": 2})).status_code == 200
    request = (await running.newest()).request
    assert (request["prompt"], request["negative_prompt"], request["seed"]) == ("a red circle", "blue", 2)
    assert (request["steps"], request["sampler"], request["guidance_scale"]) == (12, "dpmpp_2m_karras", 4)
    assert (request["width"], request["height"], request["model"]) == (128, 192, "demo-sdxl")
    assert request["switch_at"] == 0.5


@pytest.mark.parametrize(("model", "layers"), [("demo-sd15", 1), ("demo-sdxl", 0)])
async def test_clip_skip_counts_from_one_and_is_of_no_account_for_sdxl(
    http: httpx.AsyncClient, running: Front, model: str, layers: int
) -> None:
    overrides = {"CLIP_stop_at_last_layers": 2, "sd_model_checkpoint": model}
    answer = (
        await http.post("/sdapi/v1/txt2img", json={"prompt": "x", "override_settings": overrides, **SMALL})
    ).json()
    assert (await running.newest()).request["clip_skip"] == layers
    assert json.loads(answer["info"])["clip_skip"] == layers + 1


@pytest.mark.parametrize(("model", "layers"), [("demo-sd15", 1), ("demo-sdxl", 0)])
async def test_options_with_clip_skip_and_a_vae_beside_a_model_choose_all_that_can_be(
    http: httpx.AsyncClient, running: Front, model: str, layers: int
) -> None:
    posted = {"CLIP_stop_at_last_layers": 2, "sd_vae": "vae-ft-mse.safetensors", "sd_model_checkpoint": model}
    assert (await http.post("/sdapi/v1/options", json=posted)).status_code == 200
    options = (await http.get("/sdapi/v1/options")).json()
    assert (options["sd_model_checkpoint"], options["CLIP_stop_at_last_layers"]) == (model, 2)
    assert options["sd_vae"] == "Automatic"  # what can't be chosen isn't claimed
    await http.post("/sdapi/v1/txt2img", json={"prompt": "x", **SMALL})
    request = (await running.newest()).request
    assert (request["model"], request["clip_skip"]) == (model, layers)
    own = {"override_settings": {"CLIP_stop_at_last_layers": 1}}
    await http.post("/sdapi/v1/txt2img", json={"prompt": "x", **SMALL, **own})
    assert (await running.newest()).request["clip_skip"] == 0
