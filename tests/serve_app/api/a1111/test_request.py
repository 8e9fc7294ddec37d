"""What a request of A1111's becomes: samplers, overrides, refiners, what can't be done; over real HTTP."""

import base64
import io
import json
from typing import Any

import httpx
import pytest
from PIL import Image

from serve_app.config.settings import Settings
from serve_app.stages.client import Stages
from tests.serve_app.api.a1111.a1111_client import SMALL, call
from tests.serve_app.front import Front, front
from tests.serve_app.images.manifest_files import read_manifest


@pytest.mark.parametrize(
    ("sampler", "scheduler", "expected"),
    [
        ("Euler a", "automatic", "webui_euler_a"),
        ("Euler a", "Uniform", "webui_euler_a"),
        ("Euler a", "karras", "webui_euler_a_karras"),
        ("DPM++ 2M", "Karras", "webui_dpmpp_2m_karras"),
        ("DPM++ 2M", "Automatic", "webui_dpmpp_2m_karras"),
        ("DPM++ 2M", "uniform", "webui_dpmpp_2m"),
        ("DPM++ 2M Karras", None, "webui_dpmpp_2m_karras"),
        ("DPM++ 2M Karras", "beta", "webui_dpmpp_2m_karras"),  # A1111 believes the name first
        ("DPM++ 2M SDE", "automatic", "webui_dpmpp_2m_sde_exponential"),
        ("DPM++ 2M SDE", "karras", "webui_dpmpp_2m_sde_karras"),
        ("DPM++ 2M SDE Heun", None, "webui_dpmpp_2m_sde_heun_exponential"),
        ("DPM++ 3M SDE", None, "webui_dpmpp_3m_sde_exponential"),
        ("DPM++ SDE", "", "webui_dpmpp_sde_karras"),
        ("DPM++ 2S a", "Exponential", "webui_dpmpp_2s_a_exponential"),
        ("DPM2", None, "webui_dpm2_karras"),
        ("DPM2 a", None, "webui_dpm2_a_karras"),
        ("Restart", None, "webui_restart_karras"),
        ("DPM fast", None, "webui_dpm_fast"),
        ("k_euler", "", "webui_euler"),
        ("k_euler_ancestral", None, "webui_euler_a"),
        ("k_dpmpp_2m_sde_ka", None, "webui_dpmpp_2m_sde_karras"),
        ("dpm++2m", "discrete", "webui_dpmpp_2m"),
        ("dpm++2s_a", "smoothstep", "webui_dpmpp_2s_a_smoothstep"),
        ("euler_cfg_pp", "gits", "webui_euler_cfgpp_align_your_steps_gits"),
        ("ipndm", "ays", "webui_ipndm_align_your_steps"),
        ("Euler", "Align Your Steps 32", "webui_euler_align_your_steps_32"),
        ("Euler", "align_your_steps_GITS", "webui_euler_align_your_steps_gits"),
        ("euler", "KL Optimal", "webui_euler_kl_optimal"),
        ("Euler", "SIMPLE", "webui_euler_simple"),
        ("Euler Polyexponential", None, "webui_euler_polyexponential"),
        ("Euler SGMUniform", None, "webui_euler_sgm_uniform"),
        ("DPM++ 2M SDE Beta", None, "webui_dpmpp_2m_sde_beta"),
        ("Heun", "normal", "webui_heun_normal"),
        ("Heun", "DDIM", "webui_heun_ddim"),
        ("Heun", "turbo", "webui_heun_turbo"),
        ("DDIM", "SGM Uniform", "webui_ddim"),
        ("DDIM CFG++", None, "webui_ddim_cfgpp"),
        ("UniPC", "karras", "webui_unipc"),
        ("PLMS", None, "webui_plms"),
        ("DEIS", "Karras", "deis_karras"),
        ("EulerDiscreteScheduler", "SGM Uniform", "euler_trailing"),
        ("diffusers euler_a_trailing", None, "euler_a_trailing"),
    ],
)
async def test_samplers_and_schedules(
    http: httpx.AsyncClient, running: Front, sampler: str, scheduler: str | None, expected: str
) -> None:
    body = {"prompt": "x", "sampler_name": sampler, "scheduler": scheduler, **SMALL}
    assert (await http.post("/sdapi/v1/txt2img", json=body)).status_code == 200
    assert (await running.newest()).request["sampler"] == expected


async def test_align_your_steps_is_searched_for_each_kind_of_model(http: httpx.AsyncClient, running: Front) -> None:
    overrides = {"sd_model_checkpoint": "demo-sdxl"}
    body = {"prompt": "x", "sampler_name": "Euler", "scheduler": "Align Your Steps", "override_settings": overrides}
    answer = (await http.post("/sdapi/v1/txt2img", json={**body, **SMALL})).json()
    assert (await running.newest()).request["sampler"] == "webui_euler_align_your_steps_xl"
    assert "Sampler: Euler, Schedule type: Align Your Steps, " in json.loads(answer["info"])["infotexts"][0]


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"sampler_name": "Euler", "scheduler": "karas"}, "scheduler 'karas' is unknown: Automatic is taken"),
        ({"sampler_name": "DDIM", "scheduler": "karras"}, "DDIM has noise levels of its own: scheduler Karras"),
        ({"sampler_name": "DEIS", "scheduler": "kl_optimal"}, "DEIS has no KL Optimal schedule"),
        ({"sampler_name": "DEIS", "s_churn": 3}, "s_churn is of no use with this sampler"),
        ({"sampler_name": "Euler", "scheduler": "karras", "eta": 1.0, "s_noise": 1.0, "s_tmax": 0}, None),
        ({"sampler_name": "Euler", "scheduler": "karras", "eta": 0.3}, None),  # A1111's Euler has no eta
    ],
)
async def test_what_is_drawn_otherwise_is_said(
    http: httpx.AsyncClient, fields: dict[str, Any], warning: str | None
) -> None:
    answer = await http.post("/sdapi/v1/txt2img", json={"prompt": "x", **SMALL, **fields})
    warnings = json.loads(answer.json()["info"])["warnings"]
    assert len(warnings) == (warning is not None)
    assert warning is None or warning in warnings[0]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"sampler_name": "Euler a", "eta": 0.5}, {"eta": 0.5, "s_noise": 1.0}),
        ({"sampler_name": "DDIM", "eta": 1.0}, {"eta": 1.0}),
        (
            {"sampler_name": "Euler", "eta": 0.5, "s_churn": 4, "s_tmin": 0.1, "s_tmax": 0},
            {"eta": None, "s_churn": 4.0},
        ),
        ({"sampler_name": "DPM++ SDE", "s_noise": 1.02, "s_churn": 4}, {"s_noise": 1.02, "s_churn": 0.0}),
        ({"sampler_name": "Euler", "s_churn": 4, "s_tmax": 9}, {"s_churn": 4.0, "s_tmax": 9.0}),
    ],
)
async def test_numbers_go_to_the_samplers_that_have_them(
    http: httpx.AsyncClient, running: Front, fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    answer = (await http.post("/sdapi/v1/txt2img", json={"prompt": "x", **SMALL, **fields})).json()
    job = (await running.newest()).request
    assert {name: job[name] for name in expected} == expected
    replay = {"infotext": json.loads(answer["info"])["infotexts"][0]}
    assert (await http.post("/sdapi/v1/txt2img", json=replay)).status_code == 200
    again = (await running.newest()).request
    assert {name: again[name] for name in (*expected, "sampler")} == {
        name: job[name] for name in (*expected, "sampler")
    }


async def test_without_a_sampler_the_model_s_own_is_taken(http: httpx.AsyncClient, running: Front) -> None:
    await http.post("/sdapi/v1/txt2img", json={"prompt": "x", "scheduler": "karras", **SMALL})
    assert (await running.newest()).request["sampler"] == "dpmpp_2m"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"cfg_scale": 99}, "cfg_scale"),
        ({"steps": 1000}, "steps"),
        ({"steps": "many"}, "steps"),
        ({"batch_size": 4, "n_iter": 4}, "batch_size"),
        ({"batch_size": 0}, "batch_size"),
        ({"width": 64}, "width"),
        ({"seed": -2}, "seed"),
        ({"sampler_name": "DPM adaptive"}, "sampler_name"),
        ({"sampler_name": "res_multistep"}, "sampler_name"),
        ({"sampler_name": "DDIM CFG++", "cfg_scale": 1}, "cfg_scale"),
        ({"sampler_name": "Euler a", "eta": 1.5}, "eta"),
        ({"override_settings": {"sd_model_checkpoint": "nope"}}, "sd_model_checkpoint"),
        ({"override_settings": {"sd_model_checkpoint": "demo-sdxl-refiner"}}, "sd_model_checkpoint"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 12}}, "CLIP_stop_at_last_layers"),
        ({"override_settings": {"samples_format": "avif"}}, "samples_format"),
        ({"refiner_checkpoint": "demo-sdxl-refiner"}, "refiner_checkpoint"),
        ({"refiner_checkpoint": "nope"}, "refiner_checkpoint"),
        ({"tiling": "sideways"}, "tiling"),
        ({"subseed_strength": 1.5}, "subseed_strength"),
        ({"subseed_strength": 0.5, "subseed": -2}, "subseed"),
        ({"seed_resize_from_w": 100_000, "seed_resize_from_h": 128}, "seed_resize_from_w"),
        ({"script_name": "X/Y/Z plot"}, "script_name"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True]}}}, "alwayson_scripts"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True, False, {"ad_model": "face.pt"}]}}}, "alwayson_scripts"),
        ({"alwayson_scripts": {"Soft Inpainting": {"args": [True, 1, 0.5]}}}, "alwayson_scripts"),
        ({"alwayson_scripts": {"controlnet": {"args": {"model": "x"}}}}, "alwayson_scripts"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(
    http: httpx.AsyncClient, fields: dict[str, Any], field: str
) -> None:
    response = await http.post("/sdapi/v1/txt2img", json={"prompt": "x", **fields})
    assert response.status_code == 422, response.text
    body = response.json()
    assert set(body) == {"error", "detail", "body", "errors", "info", "parameters", "images"}
    assert body["body"] == field
    assert body["detail"] == body["info"]
    [picture] = body["images"]  # what a client shows that looks there alone
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        assert image.convert("L").getextrema() == (0, 255)


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
    assert (request["steps"], request["sampler"], request["guidance_scale"]) == (12, "webui_dpmpp_2m_karras", 4)
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


def warnings_of(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    found: list[str] = json.loads(answer.json()["info"])["warnings"]
    return found


@pytest.mark.parametrize(
    "scripts",
    [
        {"ADetailer": {"args": [False]}},
        {"ADetailer": {"args": [True, False, {"ad_model": "None"}]}},
        {"ADetailer": {"args": []}, "Never OOM Integrated": {}},
        {"controlnet": {"args": [{"enabled": False, "model": "x"}, {"model": "None"}]}, "ControlNet": {"args": []}},
        {"Dynamic Thresholding": {"args": [False, 7, 100, "Constant", 0]}, "FreeU": {"args": {"enabled": False}}},
        # what the web UI shows, whose API doesn't read it
        {"Refiner": {"args": [True, "x", 0.8]}, "Sampler": {"args": [20, "Euler", "Automatic"]}},
        {"Seed": {"args": [-1, True, 5, 0.5, 0, 0]}, "Comments": {"args": []}, "Extra options": {"args": ["x"]}},
        {"Soft Inpainting": {"args": [False, 1, 0.5, 4, 0, 0.5, 2]}, "Hypertile": {"args": []}},
    ],
)
async def test_scripts_that_are_switched_off_are_ignored(http: httpx.AsyncClient, scripts: dict[str, Any]) -> None:
    body = {"prompt": "x", "alwayson_scripts": scripts, "script_name": "None", "script_args": [], **SMALL}
    assert warnings_of(await http.post("/sdapi/v1/txt2img", json=body)) == []


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"restore_faces": True}, "restore_faces has no effect"),
        (
            {"override_settings": {"sd_vae": "my.vae.pt"}},
            "there is no sd_vae 'my.vae.pt' here",
        ),
        ({"styles": ["nope", "None", ""]}, "there is no style 'nope'"),
        ({"prompt": "x <lora:nope:1>"}, "there is no LoRA 'nope'"),
        ({"prompt": "x <lora:nope:1:1:4>"}, "isn't <lora:name>"),
        ({"enable_hr": True, "hr_upscaler": "R-ESRGAN 4x+"}, "no upscaler 'R-ESRGAN 4x+' here: Lanczos is taken"),
    ],
)
async def test_what_is_not_here_is_left_out_and_said_unless_the_service_is_strict(
    raw_settings: dict[str, Any], stages: Stages, fields: dict[str, Any], warning: str
) -> None:
    for strict in (False, True):
        raw_settings["a1111"] = {"strict": strict}
        async with front(Settings.model_validate(raw_settings), stages) as running:
            answer = await running.http.post("/sdapi/v1/txt2img", json={"prompt": "x", **SMALL, **fields})
            if strict:
                assert answer.status_code == 422, answer.text
            else:
                [said] = warnings_of(answer)
                assert warning in said


async def test_prompts_as_a1111_reads_them(raw_settings: dict[str, Any], stages: Stages) -> None:
    style = {"prompt": "{prompt}, oil", "negative_prompt": "photo"}
    raw_settings["a1111"] = {"styles": {"painting": style, "bright": {"prompt": "sun"}}}
    async with front(Settings.model_validate(raw_settings), stages) as running:
        body = {
            "prompt": "a cat # <lora:nope:1>\nin a hat",
            "negative_prompt": "dog # cat\n<lora:y:1>",
            "styles": ["painting", "bright"],
            **SMALL,
        }
        said = warnings_of(await running.http.post("/sdapi/v1/txt2img", json=body))
        assert said == ["'<lora:y:1>' is text in a negative prompt: a LoRA's tag belongs into the prompt"]
        request = (await running.newest()).request
        assert request["prompt"] == "a cat \nin a hat, oil, sun"
        assert request["negative_prompt"] == "dog \n\\<lora:y:1>, photo"
        listed = (await running.http.get("/sdapi/v1/prompt-styles")).json()
        assert listed[0] == {"name": "painting", **style}
        off = {**body, "styles": [], "prompt": "a # b", "override_settings": {"enable_prompt_comments": False}}
        assert (await running.http.post("/sdapi/v1/txt2img", json=off)).status_code == 200
        assert (await running.newest()).request["prompt"] == "a # b"


async def test_tags_that_do_nothing_are_said(http: httpx.AsyncClient) -> None:
    said = warnings_of(
        await http.post("/sdapi/v1/txt2img", json={"prompt": "x <hypernet:a:1> <LORA:b> AND y", **SMALL})
    )
    assert said == [
        "'<hypernet:a:1>' has no effect here",
        "'<LORA:b>' has no effect here, write <lora:…>",
    ]


async def test_values_are_taken_loosely(http: httpx.AsyncClient, running: Front) -> None:
    body: dict[str, Any] = {
        "prompt": 5,
        "steps": "20.0",
        "cfg_scale": "7",
        "width": 130.7,
        "height": "128",
        "enable_hr": "false",
        "tiling": "",
        "restore_faces": 0,
        "send_images": 1.0,
        "seed": 2.0,
        "styles": "None",
    }
    said = warnings_of(await http.post("/sdapi/v1/txt2img", json=body))
    assert said == ["width 130 is no multiple of 8: 128 is drawn"]
    request = (await running.newest()).request
    assert (request["prompt"], request["steps"], request["width"], request["seed"]) == ("5", 20, 128, 2)


async def test_an_empty_prompt_is_one(http: httpx.AsyncClient, running: Front) -> None:
    assert (await http.post("/sdapi/v1/txt2img", json={"prompt": "", **SMALL})).status_code == 200
    assert (await http.post("/sdapi/v1/txt2img", json={**SMALL})).status_code == 200
    assert (await running.newest()).request["prompt"] == ""
    assert (await running.generate("")).status_code == 422


async def test_noise_of_two_seeds_and_of_another_size(http: httpx.AsyncClient, running: Front, stages: Stages) -> None:
    body = {
        "prompt": "x",
        "subseed": 8,
        "subseed_strength": 0.4,
        "seed_resize_from_w": 256,
        "seed_resize_from_h": 200,
        "batch_size": 2,
        "override_settings": {"eta_noise_seed_delta": 31337},
        **SMALL,
    }
    answer = await http.post("/sdapi/v1/txt2img", json=body)
    info = json.loads(answer.json()["info"])
    assert (info["all_seeds"], info["all_subseeds"], info["subseed_strength"]) == ([2, 2], [8, 9], 0.4)
    assert (info["seed_resize_from_w"], info["seed_resize_from_h"]) == (256, 200)
    noise = "Variation seed: 9, Variation seed strength: 0.4, Seed resize from: 256x200, ENSD: 31337"
    assert noise in info["infotexts"][1]
    job = await running.newest()
    lanes = [lane for lane in await stages.denoisers["sd15"].lanes_asked.remote() if lane.lane_id.startswith(job.id)]
    assert sorted((lane.seed, lane.variation_seed) for lane in lanes) == [(2, 8), (2, 9)]
    assert {(lane.variation_strength, lane.noise_width, lane.noise_height) for lane in lanes} == {(0.4, 256, 200)}
    assert {lane.noise_seed_delta for lane in lanes} == {31337}
    await http.post("/sdapi/v1/txt2img", json={"infotext": info["infotexts"][1]})
    again = (await running.newest()).request
    assert (again["variation_seed"], again["noise_width"], again["noise_seed_delta"]) == (9, 256, 31337)
    neutral = {"subseed": -1, "subseed_strength": 0, "seed_resize_from_w": 0, "seed_resize_from_h": -1}
    await http.post("/sdapi/v1/txt2img", json={"prompt": "x", **SMALL, **neutral})
    assert (await running.newest()).request["variation_strength"] == 0
    await http.post("/sdapi/v1/txt2img", json={"prompt": "x", **SMALL, "subseed_strength": 0.1})
    assert (await running.newest()).request["variation_seed"] >= 0  # drawn


async def test_numbers_of_samplers_may_be_options(http: httpx.AsyncClient, running: Front) -> None:
    options = {"eta_ancestral": 0.5, "eta_ddim": 0.25, "s_noise": 1.02}
    assert (await http.post("/sdapi/v1/options", json=options)).status_code == 200
    for sampler, eta in (("Euler a", 0.5), ("DDIM", 0.25)):
        await http.post("/sdapi/v1/txt2img", json={"prompt": "x", "sampler_name": sampler, **SMALL})
        assert (await running.newest()).request["eta"] == eta
    await http.post("/sdapi/v1/txt2img", json={"prompt": "x", "sampler_name": "DPM++ SDE", "eta": 0.75, **SMALL})
    request = (await running.newest()).request
    assert (request["eta"], request["s_noise"]) == (0.75, 1.02)
