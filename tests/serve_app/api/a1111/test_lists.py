"""A1111's lists of models, samplers and the rest, with webuiapi over real HTTP."""

from typing import Any

import httpx
from webuiapi import WebUIApi

from tests.serve_app.api.a1111.a1111_client import SMALL, call

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
    assert {"DPM++ SDE", "DPM++ 2S a", "DPM++ 3M SDE", "DPM++ 2M SDE Heun", "Restart", "DDIM CFG++", "DPM fast"} <= {
        entry["name"] for entry in found["samplers"]
    }
    assert len({entry["name"] for entry in found["samplers"]}) == len(found["samplers"])
    assert [entry["label"] for entry in found["schedulers"]][:12] == [
        "Automatic",
        "Uniform",
        "Karras",
        "Exponential",
        "Polyexponential",
        "SGM Uniform",
        "KL Optimal",
        "Align Your Steps",
        "Simple",
        "Normal",
        "DDIM",
        "Beta",
    ]
    assert {"turbo", "align_your_steps_gits", "align_your_steps_11", "align_your_steps_32"} <= {
        entry["name"] for entry in found["schedulers"]
    }


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
    built_in = ["dynamic prompts v2.17.1", "freeu integrated (sd 1.x, sd 2.x, sdxl)", "freeu integrated"]
    scripts = await call(url, lambda api: api.get_scripts())
    assert scripts == {"txt2img": built_in, "img2img": [*built_in, "sd upscale"]}
    assert await call(url, lambda api: api.refresh_checkpoints()) is None
    assert (await call(url, lambda api: api.get_cmd_flags()))["api"] is True
    assert set(await call(url, lambda api: api.get_memory())) == {"ram", "cuda"}


async def test_every_listed_sampler_draws(http: httpx.AsyncClient) -> None:
    for sampler in (await http.get("/sdapi/v1/samplers")).json():
        body = {"prompt": "x", "sampler_name": sampler["name"], "scheduler": "automatic", **SMALL}
        assert (await http.post("/sdapi/v1/txt2img", json=body)).status_code == 200, sampler


async def test_further_routes_that_clients_ask(http: httpx.AsyncClient) -> None:
    assert (await http.get("/sdapi/v1/lycos")).json() == []
    assert (await http.get("/sdapi/v1/extensions")).json() == []
    assert (await http.get("/internal/ping")).json() == {}
    assert (await http.get("/login_check")).json() is True
    assert (await http.get("/controlnet/settings")).json() == {"control_net_unit_count": 4}
    types = (await http.get("/controlnet/control_types")).json()["control_types"]
    assert types["Canny"]["default_option"] == "canny"
    assert types["All"]["model_list"] == ["None"]
