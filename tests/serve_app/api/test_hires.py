"""A second pass: two lanes of one image, the larger one's the result; under A1111's names too."""

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deployments.engine.samplers.registry import taken_steps
from deployments.engine.types import Priority
from serve_app.config.settings import Settings
from serve_app.images.infotext import infotext_of
from serve_app.stages.client import Stages
from tests.serve_app.api.test_from_image import lanes_of
from tests.serve_app.front import Front, front
from tests.serve_app.images.manifest_files import read_manifest
from tests.serve_app.upscaler_files import write_upscaler


async def test_latents_go_to_the_second_pass(running: Front, stages: Stages) -> None:
    hires = {"scale": 1.5, "strength": 0.5, "steps": 10, "sampler": "Euler a"}
    answer = await running.generate(hires=hires, steps=20, seed=4, scheduler="ddim")
    assert answer.json()["status"] == "complete", answer.text
    first, second = await lanes_of(stages, "sd15", answer.json()["job_id"])
    assert (first.width, first.output, first.strength, first.enlarge) == (256, "latents", None, None)
    assert (second.width, second.height, second.output, second.enlarge) == (384, 384, "image", "latent")
    assert (second.steps, second.strength, second.sampler, second.seed) == (20, 0.5, "euler_a", 4)
    assert second.latents is not None
    assert second.generator_state is None
    shown = answer.json()["images"][0]
    assert (shown["width"], shown["height"]) == (384, 384)
    manifest = read_manifest((await running.http.get(shown["url"])).content)
    assert manifest is not None
    assert manifest.hires is not None
    assert (manifest.width, manifest.hires.width, manifest.hires.upscaler) == (256, 384, "latent")
    assert "Size: 256x256" in infotext_of(manifest)
    assert "Denoising strength: 0.5" in infotext_of(manifest)
    assert "Hires upscale: 1.5, Hires steps: 10, Hires upscaler: Latent, Hires sampler: Euler a" in infotext_of(
        manifest
    )


async def test_pixels_go_to_the_second_pass(running: Front, stages: Stages) -> None:
    answer = await running.generate(hires={"upscaler": "lanczos", "strength": 0.4}, seed=6)
    assert answer.json()["status"] == "complete", answer.text
    first, second = await lanes_of(stages, "sd15", answer.json()["job_id"])
    assert (first.output, second.enlarge, second.latents) == ("image", None, None)
    assert second.image is not None
    assert second.image.shape == (512, 512, 3)
    assert (second.image == 6).all()


@pytest.fixture
async def with_models(raw_settings: dict[str, Any], stages: Stages, tmp_path: Path) -> AsyncIterator[Front]:
    write_upscaler(tmp_path, "twofold", 2)
    raw_settings["upscalers"] = {"folder": str(tmp_path)}
    async with front(Settings.model_validate(raw_settings), stages) as one:
        yield one


async def test_a_model_s_picture_goes_to_the_second_pass(with_models: Front, stages: Stages) -> None:
    hires = {"upscaler": "twofold", "scale": 1.5, "strength": 0.4}
    answer = await with_models.generate(hires=hires, seed=6, priority="batch")
    assert answer.json()["status"] == "complete", answer.text
    first, second = await lanes_of(stages, "sd15", answer.json()["job_id"])
    assert (first.output, second.enlarge, second.latents) == ("image", None, None)
    assert second.image is not None
    assert second.image.shape == (384, 384, 3)
    assert stages.upscaler is not None
    asked = (await stages.upscaler.requests_asked.remote())[-1]
    assert (asked.upscaler, asked.width, asked.height, asked.priority) == ("twofold", 384, 384, Priority.BATCH)
    assert (asked.image == 6).all()
    manifest = read_manifest((await with_models.http.get(answer.json()["image_url"])).content)
    assert manifest is not None
    assert manifest.hires is not None
    assert (manifest.hires.upscaler, manifest.hires.upscaler_hash) == ("twofold", "a" * 64)
    assert "Hires upscaler: twofold" in infotext_of(manifest)
    timings, job = answer.json()["timings"], await with_models.newest()
    assert timings["upscale_s"] > 0
    assert job.device_s == pytest.approx(timings["device_s"], abs=1e-3)


async def test_a_model_that_isn_t_there_is_refused(with_models: Front) -> None:
    answer = await with_models.generate(hires={"upscaler": "nothing"})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "hires.upscaler")
    assert answer.json()["error"]["code"] == "upscaler_refused"


async def test_a1111_may_name_it(with_models: Front) -> None:
    body = {"prompt": "x", "seed": 2, "width": 128, "height": 128, "enable_hr": True, "hr_upscaler": "twofold"}
    assert (await with_models.http.post("/sdapi/v1/txt2img", json=body)).status_code == 200
    assert (await with_models.newest()).request["hires"]["upscaler"] == "twofold"
    refused = await with_models.http.post("/sdapi/v1/txt2img", json={**body, "hr_upscaler": "nothing"})
    assert (refused.status_code, refused.json()["body"]) == (422, "hr_upscaler")


async def test_another_model_draws_the_second_pass(running: Front, stages: Stages) -> None:
    body = {
        "prompt": "a red circle",
        "seed": 2,
        "width": 256,
        "height": 256,
        "enable_hr": True,
        "hr_scale": 1.5,
        "hr_upscaler": "Lanczos",
        "hr_checkpoint_name": "demo-sdxl",
    }
    answer = await running.http.post("/sdapi/v1/txt2img", json=body)
    assert answer.status_code == 200, answer.text
    job = await running.newest()
    (first,) = await lanes_of(stages, "sd15", job.id)
    (second,) = await lanes_of(stages, "sdxl_base", job.id)
    assert (first.checkpoint, first.output) == ("demo-sd15", "image")
    assert (second.checkpoint, second.width, second.output) == ("demo-sdxl", 384, "image")
    assert second.image is not None
    infotext = json.loads(answer.json()["info"])["infotexts"][0]
    manifest = read_manifest(base64.b64decode(answer.json()["images"][0]))
    assert manifest is not None
    assert manifest.hires is not None
    assert manifest.hires.model == "demo-sdxl"
    assert manifest.hires.model_hash is not None
    assert f"Hires checkpoint: demo-sdxl [{manifest.hires.model_hash[:10]}]" in infotext
    repeated = await running.http.post("/sdapi/v1/txt2img", json={"infotext": infotext})
    assert repeated.status_code == 200, repeated.text
    assert (await running.newest()).request["hires"] == job.request["hires"]


async def test_both_passes_are_progress(running: Front) -> None:
    await running.generate(hires={"scale": 1.5, "strength": 0.5, "steps": 10}, steps=10)
    job = await running.newest()
    assert (job.step, job.steps) == (30, 30)  # the stand-in takes all of a schedule, whatever the strength


async def test_a_prompt_changes_by_the_steps_of_each_pass(running: Front, stages: Stages) -> None:
    await running.generate("a [red:blue:5] circle", hires={"strength": 0.5, "steps": 20}, steps=10)
    asked = await stages.text_encoder.steps_asked.remote()
    assert sorted(asked[-2:]) == [10, 20]


async def test_a1111(running: Front, stages: Stages) -> None:
    body: dict[str, Any] = {
        "prompt": "a red circle",
        "seed": 2,
        "steps": 12,
        "width": 256,
        "height": 128,
        "sampler_name": "Euler",
        "enable_hr": True,
        "hr_scale": 2,
        "hr_upscaler": "Latent (bicubic antialiased)",
        "hr_second_pass_steps": 10,
        "denoising_strength": 0.6,
        "hr_sampler_name": "DPM++ 2M",
        "hr_scheduler": "Karras",
        "hr_checkpoint_name": "Use same checkpoint",
        "hr_prompt": "",
    }
    answer = await running.http.post("/sdapi/v1/txt2img", json=body)
    assert answer.status_code == 200, answer.text
    job = await running.newest()
    _, second = await lanes_of(stages, "sd15", job.id)
    assert (second.width, second.height, job.request["hires"]["strength"]) == (512, 256, 0.6)
    assert (second.enlarge, second.sampler) == ("latent_bicubic_antialiased", "webui_dpmpp_2m_karras")
    assert (second.steps, taken_steps(second.sampler, second.steps, second.strength)) == (
        16,
        10,
    )  # of 10 / 0.6
    infotext = json.loads(answer.json()["info"])["infotexts"][0]
    repeated = await running.http.post("/sdapi/v1/txt2img", json={"infotext": infotext})
    assert repeated.status_code == 200, repeated.text
    assert (await running.newest()).request["hires"] == job.request["hires"]


async def test_a1111_s_second_pass_has_texts_and_a_shape_of_its_own(running: Front, stages: Stages) -> None:
    body: dict[str, Any] = {
        "prompt": "a red circle",
        "negative_prompt": "blue",
        "seed": 2,
        "width": 128,
        "height": 128,
        "sampler_name": "Euler",
        "enable_hr": True,
        "hr_resize_x": 256,
        "hr_resize_y": 192,
        "hr_second_pass_steps": 3,  # below the model's least
        "hr_prompt": "a green circle # no star",
        "hr_negative_prompt": "yellow",
    }
    answer = await running.http.post("/sdapi/v1/txt2img", json=body)
    assert answer.status_code == 200, answer.text
    job = await running.newest()
    _, second = await lanes_of(stages, "sd15", job.id)
    assert (second.width, second.height) == (256, 192)
    assert (job.request["hires"]["prompt"], job.request["hires"]["negative_prompt"]) == ("a green circle ", "yellow")
    infotext = json.loads(answer.json()["info"])["infotexts"][0]
    assert "Hires resize: 256x192, Hires steps: 3" in infotext
    assert "Hires prompt: a green circle , Hires negative prompt: yellow" in infotext


@pytest.mark.parametrize(("strength", "steps"), [(0, 1), (0.0001, 1), (0.01, 10)])
async def test_a1111_s_second_pass_may_change_next_to_nothing(
    running: Front, stages: Stages, strength: float, steps: int
) -> None:
    body = {"prompt": "x", "seed": 2, "width": 128, "height": 128, "sampler_name": "Euler", "steps": 20}
    answer = await running.http.post(
        "/sdapi/v1/txt2img", json={**body, "enable_hr": True, "denoising_strength": strength}
    )
    assert answer.status_code == 200, answer.text
    _, second = await lanes_of(stages, "sd15", (await running.newest()).id)
    assert taken_steps(second.sampler, second.steps, second.strength) == steps
    assert second.steps == 1000


async def test_a1111_s_defaults(running: Front) -> None:
    body = {
        "prompt": "x",
        "seed": 2,
        "width": 128,
        "height": 128,
        "hr_resize_x": 192,
        "enable_hr": True,
        "hr_upscaler": "None",
    }
    assert (await running.http.post("/sdapi/v1/txt2img", json=body)).status_code == 200
    hires = (await running.newest()).request["hires"]
    assert (hires["width"], hires["height"], hires["strength"], hires["upscaler"]) == (192, 192, 0.75, "lanczos")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"hr_upscaler": "my own upscaler"}, "hr_upscaler"),
        ({"hr_scale": 0.5}, "hr_scale"),
        ({"hr_scale": 4}, "hr_resize_x"),
        ({"hr_second_pass_steps": 500}, "hr_second_pass_steps"),
        ({"denoising_strength": -1}, "denoising_strength"),
        ({"hr_sampler_name": "DPM adaptive"}, "sampler_name"),
        ({"hr_checkpoint_name": "nothing"}, "hr_checkpoint_name"),
        ({"hr_checkpoint_name": "demo-sdxl"}, "hr_upscaler"),  # "Latent", of another family
    ],
)
async def test_a1111_s_refusals(running: Front, fields: dict[str, Any], field: str) -> None:
    response = await running.http.post("/sdapi/v1/txt2img", json={"prompt": "x", "enable_hr": True, **fields})
    assert (response.status_code, response.json()["body"]) == (422, field), response.text
