"""AUTOMATIC1111's API with the webuiapi package, and as Open WebUI and SillyTavern call it, over real HTTP.

The stages are stand-ins: an image's pixels are its seed, images of odd seeds are unsafe.
"""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import httpx
import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from webuiapi import WebUIApi

from serve_app.jobs.stage_calls import Stages
from serve_app.metadata import read_manifest
from serve_app.settings import Settings
from tests.serve_app.front import Front, front, until
from tests.serve_app.pictures import gradient, sent, square
from tests.serve_app.served import beside, served

Answer = TypeVar("Answer")

SMALL = {"width": 128, "height": 128, "seed": 2}


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """As clients call it that bring no library."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        yield client


async def call(url: str, use: Callable[[WebUIApi], Answer], **settings: Any) -> Answer:
    """What `use` makes of a webuiapi client."""

    def run() -> Answer:
        api = WebUIApi(baseurl=f"{url}/sdapi/v1", **settings)
        with api.session:
            return use(api)

    return await beside(run)


async def drawing(running: Front, jobs: int = 1) -> None:
    await until(lambda: running.service.runner.depth() == (0, jobs))


INFO_KEYS = {
    "prompt",
    "all_prompts",
    "negative_prompt",
    "all_negative_prompts",
    "seed",
    "all_seeds",
    "subseed",
    "all_subseeds",
    "subseed_strength",
    "width",
    "height",
    "sampler_name",
    "cfg_scale",
    "steps",
    "batch_size",
    "restore_faces",
    "face_restoration_model",
    "sd_model_name",
    "sd_model_hash",
    "sd_vae_name",
    "sd_vae_hash",
    "seed_resize_from_w",
    "seed_resize_from_h",
    "denoising_strength",
    "extra_generation_params",
    "index_of_first_image",
    "infotexts",
    "styles",
    "job_timestamp",
    "clip_skip",
    "is_using_inpainting_conditioning",
    "version",
}


async def test_txt2img(url: str, running: Front) -> None:
    result = await call(
        url, lambda api: api.txt2img(prompt="a red circle", negative_prompt="blue", cfg_scale=5, **SMALL)
    )
    assert (result.image.format, result.image.size) == ("PNG", (128, 128))
    assert result.image.getpixel((0, 0)) == (2, 2, 2)
    assert result.parameters["prompt"] == "a red circle"
    assert set(result.info) == INFO_KEYS
    assert isinstance(result.json["info"], str)
    assert (result.info["prompt"], result.info["negative_prompt"]) == ("a red circle", "blue")
    assert (result.info["sampler_name"], result.info["steps"], result.info["cfg_scale"]) == ("Euler a", 20, 5)
    assert result.info["sd_model_name"] == "demo-sd15"
    assert result.info["sd_model_hash"] == "0" * 10
    assert result.info["infotexts"] == [result.image.text["parameters"]]
    assert len(result.info["job_timestamp"]) == 14


async def test_img2img(url: str, running: Front, stages: Stages) -> None:
    picture = Image.fromarray(gradient(192, 128))
    result = await call(
        url,
        lambda api: api.img2img(
            images=[picture], prompt="a red circle", denoising_strength=0.4, seed=2, steps=10, width=192, height=128
        ),
    )
    assert result.image.size == (192, 128)
    assert result.image.getpixel((0, 0)) == (2, 2, 2)
    assert set(result.info) == INFO_KEYS
    assert result.info["denoising_strength"] == 0.4
    assert "Denoising strength: 0.4" in result.image.text["parameters"]
    assert result.parameters["init_images"] is None
    lane = (await stages.denoisers["sd15"].lanes_asked.remote())[-1]
    assert (lane.image == gradient(192, 128)).all()
    assert (lane.strength, lane.mask) == (0.4, None)


@pytest.mark.parametrize("only_masked", [True, False])
async def test_img2img_with_a_mask(url: str, only_masked: bool) -> None:
    picture, mask = gradient(192, 128), square(192, 128, 40, 40, 48)
    size = {"width": 256, "height": 256} if only_masked else {"width": 192, "height": 128}
    result = await call(
        url,
        lambda api: api.img2img(
            images=[Image.fromarray(picture)],
            mask_image=Image.fromarray(mask),
            mask_blur=2,
            inpaint_full_res=only_masked,
            prompt="x",
            seed=2,
            **size,
        ),
    )
    drawn = np.asarray(result.image)
    assert drawn.shape == picture.shape
    far = np.ones((128, 192), bool)
    far[30:98, 30:98] = False
    assert (drawn[far] == picture[far]).all()
    assert (drawn[50:78, 50:78] == 2).all()
    assert "Mask blur: 2" in result.image.text["parameters"]


async def test_img2img_refuses_what_it_cannot_do_by_its_name(http: httpx.AsyncClient) -> None:
    image = sent(gradient(128, 128))
    mask = sent(square(128, 128, 0, 0, 64))
    for changes, field in (
        ({"init_images": []}, "init_images"),
        ({"init_images": [image, image]}, "init_images"),
        ({"init_images": ["x"]}, "init_images"),
        ({"denoising_strength": 0}, "denoising_strength"),
        ({"mask": mask, "mask_blur": 99}, "mask_blur"),
        ({"mask": mask, "inpainting_fill": 2}, "inpainting_fill"),
        ({"mask": mask, "inpainting_mask_invert": 1, "inpaint_full_res_padding": -1}, "inpaint_full_res_padding"),
        ({"resize_mode": 1}, "resize_mode"),
        ({"initial_noise_multiplier": 1.2}, "initial_noise_multiplier"),
    ):
        body: dict[str, Any] = {"prompt": "x", "init_images": [image], **changes}
        answer = await http.post("/sdapi/v1/img2img", json=body)
        assert (answer.status_code, answer.json()["body"]) == (422, field), answer.text


async def test_images_are_raw_base64(http: httpx.AsyncClient) -> None:
    body = (await http.post("/sdapi/v1/txt2img", json={"prompt": "x", "seed": 2})).json()
    assert set(body) == {"images", "parameters", "info"}
    assert base64.b64decode(body["images"][0], validate=True).startswith(b"\x89PNG")
    assert body["parameters"] == {"prompt": "x", "seed": 2}


async def test_seeds_count_up_over_batches_and_iterations(raw_settings: dict[str, Any], stages: Stages) -> None:
    raw_settings["safety"] = {"mode": "off", "classifier": None}
    async with front(Settings.model_validate(raw_settings), stages) as one, served(one) as url:
        result = await call(url, lambda api: api.txt2img(prompt="x", batch_size=2, n_iter=2, **SMALL))
    assert result.info["all_seeds"] == [2, 3, 4, 5]
    assert result.info["all_prompts"] == ["x"] * 4
    assert [image.getpixel((0, 0))[0] for image in result.images] == [2, 3, 4, 5]
    assert len(result.info["infotexts"]) == result.info["batch_size"] == 4


async def test_a_seed_of_minus_one_is_drawn(url: str, running: Front) -> None:
    await call(url, lambda api: api.custom_get("sdapi/v1/options"))
    await call(url, lambda api: api.session.post(f"{api.baseurl}/txt2img", json={"prompt": "x", "seed": -1}))
    first = (await running.newest()).request["seed"]
    await call(url, lambda api: api.session.post(f"{api.baseurl}/txt2img", json={"prompt": "x", "seed": -1}))
    assert (await running.newest()).request["seed"] != first


async def test_withheld_images_are_left_out(url: str) -> None:
    result = await call(url, lambda api: api.txt2img(prompt="x", batch_size=3, **SMALL))
    assert result.info["all_seeds"] == [2, 4]
    assert len(result.images) == 2
    with pytest.raises(RuntimeError, match="withheld"):
        await call(url, lambda api: api.txt2img(prompt="x", seed=3, width=128, height=128))


async def test_webuiapi_s_asynchronous_call(url: str) -> None:
    api = await beside(lambda: WebUIApi(baseurl=f"{url}/sdapi/v1"))
    with api.session:
        result = await api.txt2img(prompt="x", use_async=True, **SMALL)
    assert result.image.size == (128, 128)


async def test_unknown_keys_are_ignored_and_values_are_taken_loosely(http: httpx.AsyncClient, running: Front) -> None:
    body = {"prompt": "x", "seed": "2", "steps": "12", "cfg_scale": 4, "width": 128.0, "sampler_name": None, "eta": 1}
    assert (await http.post("/sdapi/v1/txt2img", json={**body, "whatever": {"a": 1}})).status_code == 200
    request = (await running.newest()).request
    assert (request["seed"], request["steps"], request["width"]) == (2, 12, 128)


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
    refused = await http.post("/sdapi/v1/options", json={"CLIP_stop_at_last_layers": 2})
    assert (refused.status_code, refused.json()["body"]) == (422, "CLIP_stop_at_last_layers")


async def test_send_images_may_be_declined(http: httpx.AsyncClient) -> None:
    body = (await http.post("/sdapi/v1/txt2img", json={"prompt": "x", "send_images": False, **SMALL})).json()
    assert body["images"] == []
    assert json.loads(body["info"])["all_seeds"] == [2]


async def test_the_checkpoint_chosen_is_the_caller_s_own_default(url: str, running: Front) -> None:
    mine = {"username": "me", "password": "x"}

    def choose(api: WebUIApi) -> Any:
        api.util_set_model("DEMO-SDXL")
        return api.util_get_current_model(), api.txt2img(prompt="x", **SMALL).info["sd_model_name"]

    assert await call(url, choose, **mine) == ("demo-sdxl", "demo-sdxl")
    others = {"username": "you", "password": "x"}
    assert await call(url, lambda api: api.util_get_current_model(), **others) == "demo-sd15"
    assert await call(url, lambda api: api.util_get_current_model()) == "demo-sd15"
    assert (await running.http.get("/models")).json()["default"] == "demo-sd15"


async def test_options_can_be_posted_back_whole(http: httpx.AsyncClient) -> None:
    """Open WebUI does so, with its own choice of a model in it."""
    options = (await http.get("/sdapi/v1/options")).json()
    assert options["sd_model_checkpoint"] == "demo-sd15"
    models = (await http.get("/sdapi/v1/sd-models")).json()
    assert {(model["title"], model["model_name"]) for model in models} == {
        ("demo-sd15", "demo-sd15"),
        ("demo-sdxl", "demo-sdxl"),
    }
    answer = await http.post("/sdapi/v1/options", json={**options, "sd_model_checkpoint": models[1]["title"]})
    assert (answer.status_code, answer.json()) == (200, None)
    body = {"prompt": "x", "batch_size": 1, "width": 512, "height": 256, "steps": 12, "negative_prompt": "y"}
    answer = await http.post("/sdapi/v1/txt2img", json={**body, "seed": 2})
    assert json.loads(answer.json()["info"])["sd_model_name"] == "demo-sdxl"


async def test_options_choose_the_file_type(http: httpx.AsyncClient) -> None:
    assert (await http.get("/sdapi/v1/options")).json()["samples_format"] == "png"
    await http.post("/sdapi/v1/options", json={"samples_format": "webp"})
    assert (await http.get("/sdapi/v1/options")).json()["samples_format"] == "webp"
    image = (await http.post("/sdapi/v1/txt2img", json={"prompt": "x", **SMALL})).json()["images"][0]
    assert Image.open(io.BytesIO(base64.b64decode(image))).format == "WEBP"


@pytest.mark.parametrize("title", ["nope", "demo-sdxl-refiner"])
async def test_an_unknown_checkpoint_is_refused(http: httpx.AsyncClient, title: str) -> None:
    answer = await http.post("/sdapi/v1/options", json={"sd_model_checkpoint": title})
    assert (answer.status_code, answer.json()["body"]) == (422, "sd_model_checkpoint")


async def test_sillytavern_s_calls(http: httpx.AsyncClient, running: Front) -> None:
    """It reads names, chooses a model, waits until nothing is being drawn, and interrupts when its user leaves."""
    for path, key in [
        ("upscalers", "name"),
        ("samplers", "name"),
        ("schedulers", "name"),
        ("sd-models", "title"),
        ("latent-upscale-modes", "name"),
    ]:
        entries = (await http.get(f"/sdapi/v1/{path}")).json()
        assert all(isinstance(entry[key], str) for entry in entries), path
    assert (await http.post("/sdapi/v1/options", json={"sd_model_checkpoint": "demo-sdxl"})).json() is None
    progress = (await http.get("/sdapi/v1/progress")).json()
    assert (progress["progress"], progress["state"]["job_count"]) == (0, 0)
    waiting_for = asyncio.create_task(http.post("/sdapi/v1/txt2img", json={"prompt": "endless"}))
    await drawing(running)
    assert (await http.post("/sdapi/v1/interrupt")).json() == {}
    assert (await waiting_for).json()["images"] == []


async def test_progress(url: str, http: httpx.AsyncClient, running: Front) -> None:
    idle = await call(url, lambda api: api.get_progress())
    assert set(idle) == {"progress", "eta_relative", "state", "current_image", "textinfo"}
    assert set(idle["state"]) == {
        "skipped",
        "interrupted",
        "stopping_generation",
        "job",
        "job_count",
        "job_timestamp",
        "job_no",
        "sampling_step",
        "sampling_steps",
    }
    assert (idle["progress"], idle["state"]["job_count"], idle["current_image"]) == (0, 0, None)
    working = asyncio.create_task(http.post("/sdapi/v1/txt2img", json={"prompt": "endless", "steps": 10}))
    await drawing(running)
    busy = await call(url, lambda api: api.get_progress())
    assert busy["progress"] == 0.1
    assert (busy["state"]["job_count"], busy["state"]["sampling_step"], busy["state"]["sampling_steps"]) == (1, 1, 10)
    preview = Image.open(io.BytesIO(base64.b64decode(busy["current_image"], validate=True)))
    assert preview.size == (4, 4)
    assert max(abs(value - 1) for value in preview.getpixel((0, 0))) <= 1  # the stand-in's first preview
    without = (await http.get("/sdapi/v1/progress", params={"skip_current_image": True})).json()
    assert without["current_image"] is None
    await http.post("/sdapi/v1/interrupt")
    await working
    assert (await call(url, lambda api: api.get_progress()))["progress"] == 0


async def test_progress_before_the_first_step_is_not_zero(raw_settings: dict[str, Any], stages: Stages) -> None:
    async with front(Settings.model_validate(raw_settings), stages) as one:
        one.service.runner._draining = True  # it starts no job: this one waits
        working = asyncio.create_task(one.http.post("/sdapi/v1/txt2img", json={"prompt": "x"}))
        async with asyncio.timeout(10):
            while not (await one.service.store.depth()).queued:  # noqa: ASYNC110  # there is no event to wait for
                await asyncio.sleep(0.01)
        progress = (await one.http.get("/sdapi/v1/progress")).json()
        assert (progress["progress"], progress["current_image"]) == (0.01, None)
        await one.http.post("/sdapi/v1/interrupt")
        assert (await working).json()["images"] == []


async def test_interrupt_stops_the_caller_s_own_work_and_nobody_else_s(url: str, running: Front) -> None:
    def draw(name: str) -> asyncio.Task[Any]:
        who = {"username": name, "password": "x"}
        return asyncio.create_task(call(url, lambda api: api.txt2img(prompt="endless", **SMALL), **who))

    mine, mine_too, yours = draw("me"), draw("me"), draw("you")
    await drawing(running, jobs=3)
    await call(url, lambda api: api.interrupt())  # a third caller: stops nothing
    assert running.service.runner.depth() == (0, 3)
    assert await call(url, lambda api: api.interrupt(), username="me", password="x") == {}  # noqa: S106
    assert [(await one).images for one in (mine, mine_too)] == [[], []]
    assert running.service.runner.depth() == (0, 1)
    seen = await call(url, lambda api: api.get_progress(), username="you", password="x")  # noqa: S106
    assert (seen["state"]["job_count"], seen["state"]["interrupted"]) == (1, False)
    assert not yours.done()
    await call(url, lambda api: api.skip(), username="you", password="x")  # noqa: S106
    assert (await yours).images == []


async def test_skip_ends_the_oldest_request_alone(url: str, running: Front) -> None:
    first = asyncio.create_task(call(url, lambda api: api.txt2img(prompt="endless", **SMALL)))
    await drawing(running)
    second = asyncio.create_task(call(url, lambda api: api.txt2img(prompt="endless", **SMALL)))
    await drawing(running, jobs=2)
    assert await call(url, lambda api: api.skip()) is None
    assert (await first).images == []
    assert not second.done()
    assert (await call(url, lambda api: api.get_progress()))["state"]["skipped"] is True
    assert await call(url, lambda api: api.interrupt()) == {}
    await second


async def test_an_interrupt_of_nothing(url: str) -> None:
    assert await call(url, lambda api: (api.interrupt(), api.skip())) == ({}, None)


@pytest.mark.parametrize("authorization", ["", "Basic", "Basic Og==", "Bearer"])
async def test_an_empty_authorization_is_nobody_s(http: httpx.AsyncClient, authorization: str) -> None:
    await http.post("/sdapi/v1/options", json={"sd_model_checkpoint": "demo-sdxl"})
    options = await http.get("/sdapi/v1/options", headers={"authorization": authorization})
    assert options.json()["sd_model_checkpoint"] == "demo-sdxl"


async def test_tasks_by_their_own_ids(http: httpx.AsyncClient, running: Front) -> None:
    assert (await http.get("/internal/pending-tasks")).json() == {"size": 0, "tasks": []}
    body = {"prompt": "endless", "steps": 10, "force_task_id": "task(mine)"}
    working = asyncio.create_task(http.post("/sdapi/v1/txt2img", json=body))
    await drawing(running)
    assert (await http.get("/internal/pending-tasks")).json() == {"size": 1, "tasks": ["task(mine)"]}
    state = (await http.post("/internal/progress", json={"id_task": "task(mine)"})).json()
    assert (state["active"], state["queued"], state["completed"], state["progress"]) == (True, False, False, 0.1)
    assert state["live_preview"].startswith("data:image/jpeg;base64,")
    seen = {"id_task": "task(mine)", "id_live_preview": state["id_live_preview"]}
    assert (await http.post("/internal/progress", json=seen)).json()["live_preview"] is None
    other = (await http.post("/internal/progress", json=seen, headers={"authorization": "Basic eDp5"})).json()
    assert (other["active"], other["queued"], other["completed"]) == (False, False, False)
    await http.post("/sdapi/v1/interrupt")
    await working
    state = (await http.post("/internal/progress", json=seen)).json()
    assert (state["active"], state["completed"], state["progress"]) == (False, True, None)


async def test_a_client_that_goes_away_takes_its_job_along(http: httpx.AsyncClient, running: Front) -> None:
    await running.goes_with_its_client(http.post("/sdapi/v1/txt2img", json={"prompt": "endless"}, timeout=60))
    assert (await http.get("/sdapi/v1/progress")).json()["state"]["job_count"] == 0


LISTS: dict[str, set[str]] = {
    "sd-models": {"title", "model_name", "hash", "sha256", "filename", "config"},
    "samplers": {"name", "aliases", "options"},
    "schedulers": {"name", "label", "aliases", "default_rho", "need_inner_model"},
    "upscalers": {"name", "model_name", "model_path", "model_url", "scale"},
}


async def test_lists(url: str) -> None:
    found = await call(
        url,
        lambda api: {
            "sd-models": api.get_sd_models(),
            "samplers": api.get_samplers(),
            "schedulers": api.get_schedulers(),
            "upscalers": api.get_upscalers(),
        },
    )
    for name, keys in LISTS.items():
        assert found[name], name
        assert all(set(entry) == keys for entry in found[name]), name
    assert {"Euler a", "DPM++ 2M", "DPM++ 2M Karras", "DDIM"} <= {entry["name"] for entry in found["samplers"]}
    assert [entry["name"] for entry in found["schedulers"]] == [
        "automatic",
        "uniform",
        "karras",
        "exponential",
        "sgm_uniform",
        "beta",
    ]


async def test_lists_of_what_is_not_there(url: str) -> None:
    def ask(api: WebUIApi) -> list[Any]:
        return [
            api.get_sd_vae(),
            api.get_loras(),
            api.get_hypernetworks(),
            api.get_face_restorers(),
            api.get_realesrgan_models(),
            api.get_prompt_styles(),
        ]

    assert await call(url, ask) == [[]] * 6
    assert await call(url, lambda api: api.get_embeddings()) == {"loaded": {}, "skipped": {}}
    assert await call(url, lambda api: api.get_scripts()) == {"txt2img": [], "img2img": []}
    assert await call(url, lambda api: api.refresh_checkpoints()) is None
    assert (await call(url, lambda api: api.get_cmd_flags()))["api"] is True
    assert set(await call(url, lambda api: api.get_memory())) == {"ram", "cuda"}


async def test_every_listed_sampler_draws(http: httpx.AsyncClient) -> None:
    for sampler in (await http.get("/sdapi/v1/samplers")).json():
        body = {"prompt": "x", "sampler_name": sampler["name"], "scheduler": "automatic", **SMALL}
        assert (await http.post("/sdapi/v1/txt2img", json=body)).status_code == 200, sampler


async def test_png_info_reads_our_own_files_of_every_type(url: str, http: httpx.AsyncClient) -> None:
    for kind in ("png", "jpg", "webp"):
        fields = {**SMALL, "override_settings": {"samples_format": kind}}
        drawn = (await http.post("/sdapi/v1/txt2img", json={"prompt": "a (red:1.2) circle, big", **fields})).json()
        [image] = drawn["images"]
        told = (await http.post("/sdapi/v1/png-info", json={"image": image})).json()
        assert set(told) == {"info", "items", "parameters"}
        assert told["info"] == json.loads(drawn["info"])["infotexts"][0]
        assert told["parameters"]["Prompt"] == "a (red:1.2) circle, big"
        assert (told["parameters"]["Seed"], told["parameters"]["Size-1"]) == ("2", "128")
        as_url = (await http.post("/sdapi/v1/png-info", json={"image": f"data:image/png;base64,{image}"})).json()
        assert as_url == told


async def test_png_info_reads_a1111_s_files(url: str) -> None:
    text = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x512"
    image = Image.new("RGB", (8, 8))
    image.info["parameters"] = text  # webuiapi writes an image's info back into the file

    def ask(api: WebUIApi) -> Any:
        return api.png_info(image)

    told = await call(url, ask)
    assert told.info == text


async def test_png_info_of_an_image_without_any(http: httpx.AsyncClient) -> None:
    file = io.BytesIO()
    comment = PngImagePlugin.PngInfo()
    comment.add_text("Comment", "hello")
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=comment)
    told = (await http.post("/sdapi/v1/png-info", json={"image": base64.b64encode(file.getvalue()).decode()})).json()
    assert told == {"info": "", "items": {"Comment": "hello"}, "parameters": {}}


@pytest.mark.parametrize("image", ["", "!!!", "aGVsbG8=", "data:image/png;base64,aGVsbG8="])
async def test_png_info_refuses_what_is_no_image(http: httpx.AsyncClient, image: str) -> None:
    response = await http.post("/sdapi/v1/png-info", json={"image": image})
    assert (response.status_code, response.json()["body"]) == (422, "image")


async def test_every_answer_is_json(http: httpx.AsyncClient) -> None:
    for path, body in [
        ("/sdapi/v1/interrupt", None),
        ("/sdapi/v1/skip", None),
        ("/sdapi/v1/options", {}),
        ("/sdapi/v1/refresh-checkpoints", None),
    ]:
        answer = await http.post(path, json=body) if body is not None else await http.post(path)
        assert answer.status_code == 200, path
        assert answer.json() in ({}, None)


async def test_an_unknown_route_answers_in_a1111_s_form(url: str, http: httpx.AsyncClient) -> None:
    response = await http.post("/sdapi/v1/interrogate", json={})
    assert (response.status_code, response.json()["error"]) == (404, "unknown_route")
    assert set(response.json()) == {"error", "detail", "body", "errors"}
    with pytest.raises(RuntimeError, match="404"):
        await call(url, lambda api: api.interrogate(image=Image.new("RGB", (8, 8))))


async def test_a_request_s_own_keys_come_back_whatever_they_hold(http: httpx.AsyncClient) -> None:
    body = b'{"prompt": "x", "seed": 2, "mine": ["\\ud800", {"deep": "\\u00e9"}]}'
    response = await http.post("/sdapi/v1/txt2img", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 200
    assert response.json()["parameters"] == json.loads(body)


async def test_a_failed_job_is_an_error(http: httpx.AsyncClient) -> None:
    response = await http.post("/sdapi/v1/txt2img", json={"prompt": "poison"})
    assert (response.status_code, response.json()["error"]) == (500, "numerical_failure")
    response = await http.post("/sdapi/v1/txt2img", json={"prompt": "bug"})
    assert (response.status_code, response.json()["error"]) == (500, "internal_error")
    assert "secret" not in response.text
