"""AUTOMATIC1111's API with the webuiapi package, and as Open WebUI and SillyTavern call it, over real HTTP.

The stages are stand-ins: an image's pixels are its seed, images of odd seeds are unsafe.
"""

import asyncio
import base64
import io
import json
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from webuiapi import WebUIApi

from deployments.engine.samplers.registry import taken_steps
from serve_app.config.settings import Settings
from serve_app.stages.client import Stages
from tests.serve_app.api.a1111.a1111_client import SMALL, call, drawing
from tests.serve_app.front import Front, front
from tests.serve_app.images.pictures import gradient, sent, square
from tests.serve_app.served import beside, served

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
    "warnings",
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


async def drawn_over(http: httpx.AsyncClient, running: Front, stages: Stages, **fields: Any) -> Any:
    """The lane of an img2img request, and its job's request."""
    body = {"prompt": "x", "init_images": [sent(gradient(192, 128))], **SMALL, **fields}
    answer = await http.post("/sdapi/v1/img2img", json=body)
    assert answer.status_code == 200, answer.text
    job = await running.newest()
    lanes = await stages.denoisers["sd15"].lanes_asked.remote()
    return next(lane for lane in lanes if lane.lane_id.startswith(job.id)), job.request, answer


@pytest.mark.parametrize(
    ("mode", "fit", "shape"),
    [(0, "stretch", (128, 128)), (1, "crop", (128, 128)), (2, "extend", (128, 128)), (3, "latent", (128, 192))],
)
async def test_resize_modes(
    http: httpx.AsyncClient, running: Front, stages: Stages, mode: int, fit: str, shape: tuple[int, int]
) -> None:
    lane, request, _ = await drawn_over(http, running, stages, resize_mode=mode)
    assert (request["image"]["fit"], lane.image.shape[:2]) == (fit, shape)
    assert lane.enlarge == ("latent" if mode == 3 else None)
    if mode == 1:
        assert (lane.image == gradient(192, 128)[:, 32:160]).all()


async def test_several_images_are_drawn_over_one_each(http: httpx.AsyncClient, running: Front, stages: Stages) -> None:
    pictures = [gradient(128, 128), gradient(128, 128)[::-1]]
    body = {"prompt": "x", "init_images": [sent(picture) for picture in pictures], "batch_size": 2, **SMALL}
    answer = await http.post("/sdapi/v1/img2img", json={**body, "n_iter": 2})
    # of seeds 2 to 5 the tests' classifier withholds the odd ones
    assert json.loads(answer.json()["info"])["all_seeds"] == [2, 4]
    assert len(answer.json()["images"]) == 2
    lanes = (await stages.denoisers["sd15"].lanes_asked.remote())[-4:]
    assert sorted(lane.seed for lane in lanes) == [2, 3, 4, 5]
    assert all((lane.image == pictures[lane.seed % 2]).all() for lane in lanes)
    many = await http.post("/sdapi/v1/img2img", json={**body, "n_iter": 99})
    assert (many.status_code, many.json()["body"]) == (422, "n_iter")


@pytest.mark.parametrize("kind", ["alpha", "white", "another size"])
async def test_masks_as_a1111_reads_them(http: httpx.AsyncClient, running: Front, stages: Stages, kind: str) -> None:
    mask: Any = square(192, 128, 64, 32, 64)
    if kind == "alpha":
        painted = Image.new("RGBA", (192, 128))
        painted.putalpha(Image.fromarray(mask))
        mask = painted
    elif kind == "another size":
        mask = square(96, 64, 32, 16, 32)
    fields = {"mask": sent(mask), "mask_blur": 0, "inpaint_full_res": False, "width": 192, "height": 128}
    lane, _, _ = await drawn_over(http, running, stages, **fields)
    wanted = square(192, 128, 64, 32, 64) > 127
    assert ((lane.mask > 127) == wanted).all()


async def test_a_mask_s_blur_may_differ_across_and_down(
    http: httpx.AsyncClient, running: Front, stages: Stages
) -> None:
    fields = {"mask": sent(square(192, 128, 64, 32, 64)), "inpaint_full_res": False, "width": 192, "height": 128}
    lane, _, answer = await drawn_over(http, running, stages, **fields, mask_blur_x=8, mask_blur_y=0)
    assert (lane.mask[80, 44:64] > 0).all()
    assert not lane.mask[:32].any()
    assert json.loads(answer.json()["info"])["warnings"] == []


@pytest.mark.parametrize(
    ("fill", "content"), [(0, "image"), (1, "image"), (2, "noise"), (3, "nothing"), (None, "image")]
)
async def test_masked_contents(
    http: httpx.AsyncClient, running: Front, stages: Stages, fill: int | None, content: str
) -> None:
    mask = {"mask": sent(square(192, 128, 64, 32, 64)), "mask_blur": 0, "inpaint_full_res": False}
    given = {} if fill is None else {"inpainting_fill": fill}
    lane, _, answer = await drawn_over(http, running, stages, width=192, height=128, **mask, **given)
    assert lane.masked_content == content
    assert bool((lane.image == gradient(192, 128)).all()) is (fill not in (0, None))
    [infotext] = json.loads(answer.json()["info"])["infotexts"]
    said = {0: "fill", None: "fill", 2: "latent noise", 3: "latent nothing"}
    assert (f"Masked content: {said.get(fill)}" in infotext) is (fill != 1)


@pytest.mark.parametrize("sampler", ["Euler", "DDIM", "DEIS", None])
@pytest.mark.parametrize("strength", [0, 0.01, 1, 1.5])
async def test_every_strength_takes_a_step_at_least(
    http: httpx.AsyncClient, running: Front, stages: Stages, sampler: str | None, strength: float
) -> None:
    lane, _, _ = await drawn_over(http, running, stages, denoising_strength=strength, sampler_name=sampler, steps=12)
    taken = taken_steps(lane.sampler, 12, lane.strength)
    assert 1 <= taken <= (2 if strength < 1 else 12)


async def test_img2img_refuses_what_it_cannot_do_by_its_name(http: httpx.AsyncClient) -> None:
    image = sent(gradient(128, 128))
    mask = sent(square(128, 128, 0, 0, 64))
    for changes, field in (
        ({"init_images": []}, "init_images"),
        ({"init_images": [image, image]}, "init_images"),
        ({"init_images": ["x"]}, "init_images"),
        ({"mask": mask, "mask_blur": 99}, "mask_blur"),
        ({"mask": mask, "mask_blur_x": 99}, "mask_blur_x"),
        ({"mask": mask, "inpainting_fill": 4}, "inpainting_fill"),
        ({"mask": mask, "inpainting_mask_invert": 1, "inpaint_full_res_padding": -1}, "inpaint_full_res_padding"),
        ({"resize_mode": 4}, "resize_mode"),
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


async def test_options_are_a1111_s_and_kept_for_the_caller(http: httpx.AsyncClient) -> None:
    options = (await http.get("/sdapi/v1/options")).json()
    assert len(options) > 250
    assert (options["send_seed"], options["sd_vae"], options["eta_noise_seed_delta"]) == (True, "Automatic", 0)
    posted: dict[str, Any] = {
        "send_seed": False,
        "eta_noise_seed_delta": 31337,
        "hidden_tabs": ["train"],
        # not of its type, too long, unknown, or not the client's to choose
        "send_size": "no",
        "font": "x" * 1000,
        "mine": 1,
        "grid_save": True,
    }
    assert (await http.post("/sdapi/v1/options", json=posted)).status_code == 200
    changed = {"send_seed": False, "eta_noise_seed_delta": 31337, "hidden_tabs": ["train"]}
    assert (await http.get("/sdapi/v1/options")).json() == options | changed
    other = await http.get("/sdapi/v1/options", headers={"authorization": "Basic b3RoZXI6eA=="})
    assert other.json() == options


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
    defaults = {"prompt": "endless", "sampler_name": "DDIM", "scheduler": "normal"}
    waiting_for = asyncio.create_task(http.post("/sdapi/v1/txt2img", json=defaults))
    await drawing(running)
    assert (await running.newest()).request["sampler"] == "webui_ddim"
    assert (await http.post("/sdapi/v1/interrupt")).json() == {}
    assert (await waiting_for).json()["images"] == []


async def test_every_answer_is_json(http: httpx.AsyncClient) -> None:
    for path, body in [
        ("/sdapi/v1/interrupt", None),
        ("/sdapi/v1/skip", None),
        ("/sdapi/v1/options", {}),
        ("/sdapi/v1/refresh-checkpoints", None),
        ("/sdapi/v1/refresh-vae", None),
        ("/sdapi/v1/unload-checkpoint", None),
        ("/sdapi/v1/reload-checkpoint", None),
    ]:
        answer = await http.post(path, json=body) if body is not None else await http.post(path)
        assert answer.status_code == 200, path
        assert answer.json() in ({}, None)


async def test_an_unknown_route_answers_in_a1111_s_form(url: str, http: httpx.AsyncClient) -> None:
    detect = await http.post("/controlnet/detect", json={})
    assert (detect.status_code, set(detect.json())) == (404, {"error", "detail", "body", "errors"})
    response = await http.post("/sdapi/v1/interrogate", json={})
    assert (response.status_code, response.json()["error"]) == (404, "unknown_route")
    assert set(response.json()) == {"error", "detail", "body", "errors"}
    with pytest.raises(RuntimeError, match="404"):
        await call(url, lambda api: api.interrogate(image=Image.new("RGB", (8, 8))))


async def test_a_request_s_own_keys_come_back_whatever_they_hold(http: httpx.AsyncClient) -> None:
    body = b'{"prompt": "x", "seed": 2, "mine": [null, {"deep": "\\u00e9"}]}'
    response = await http.post("/sdapi/v1/txt2img", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 200
    assert response.json()["parameters"] == {"prompt": "x", "seed": 2, "mine": [None, {"deep": "é"}]}


async def test_a_failed_job_is_an_error(http: httpx.AsyncClient) -> None:
    response = await http.post("/sdapi/v1/txt2img", json={"prompt": "poison"})
    assert (response.status_code, response.json()["error"]) == (500, "numerical_failure")
    response = await http.post("/sdapi/v1/txt2img", json={"prompt": "bug"})
    assert (response.status_code, response.json()["error"]) == (500, "internal_error")
    assert "secret" not in response.text
