"""LoRAs over HTTP: named in a prompt or beside it, listed, told again by the image; refused before there is a job."""

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import AsyncOpenAI
from safetensors.numpy import save_file

from serve_app.config.settings import Settings
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front, stand_ins
from tests.serve_app.images.pictures import file_of, gradient
from tests.serve_app.served import served

MATRICES = {f"lora_unet_a.lora_{way}.weight": np.ones((2, 2), np.float32) for way in ("down", "up")}
SMALL = {"seed": 2, "width": 128, "height": 128}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "loras"
    made.mkdir()
    for name in ("style", "other one"):
        save_file(MATRICES, made / f"{name}.safetensors")
    whole = (made / "style.safetensors").read_bytes()
    (made / "cut.safetensors").write_bytes(whole[:-1])
    (made / "disguised.safetensors").write_bytes(b"\x80\x04K\x01.")
    (made / "old.pt").write_bytes(b"\x80\x04K\x01.")
    (tmp_path / "outside.safetensors").write_bytes(whole)
    return made


@pytest.fixture
async def running(raw_settings: dict[str, Any], stages: Stages, folder: Path) -> AsyncIterator[Front]:
    raw_settings |= {"loras": {"folder": str(folder)}, "a1111": {"strict": True}}
    async with front(Settings.model_validate(raw_settings), stages) as one:
        yield one


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "no LoRA named 'nothing'; known: "),
        ("../outside", "no LoRA named '../outside'"),
        ("cut", "'cut' can't be read: cut.safetensors: cut short"),
        ("disguised", "'disguised' can't be read: disguised.safetensors: a pickle in spite of its name"),
        ("old", "'old' is a .pt file: a pickle can run code"),
    ],
)
async def test_refused_before_there_is_a_job(running: Front, folder: Path, name: str, said: str) -> None:
    asked: list[dict[str, Any]] = [{"prompt": f"x <lora:{name}:0.5>"}, {"loras": [{"name": name, "weight": 0.0}]}]
    for fields in asked:
        response = await running.generate(**SMALL, **fields)
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["field"]) == (422, "lora_refused", "loras")
        assert said in error["message"]
        assert str(folder) not in response.text
    for path, body, key in [
        ("/sdapi/v1/txt2img", {"prompt": f"x <lora:{name}>", **SMALL}, "body"),
        ("/v1/images/generations", {"prompt": f"x <lora:{name}>"}, "error"),
        ("/predict", {"inputs": "x", "parameters": {"loras": [{"name": name}]}}, "error"),
    ]:
        response = await running.http.post(path, json=body)
        assert response.status_code in (400, 422), path
        assert key in response.json()
    assert (await running.http.get("/jobs")).json()["jobs"] == []


async def test_listed(running: Front) -> None:
    names = ["other one", "style"]
    models = (await running.http.get("/models")).json()
    assert models["loras"] == names
    assert models["skipped"].keys() == {"loras"}
    assert models["skipped"]["loras"].keys() == {"cut", "disguised", "old"}
    assert "cut short" in models["skipped"]["loras"]["cut"]
    listed = (await running.http.get("/sdapi/v1/loras")).json()
    assert [entry["name"] for entry in listed] == names
    assert listed[1] == {"name": "style", "alias": "style", "path": "style.safetensors", "metadata": {}}


async def test_a_form_s_list_as_openai_s_sdk_writes_it(running: Front) -> None:
    loras = [{"name": "style", "weight": 0.5}, {"name": "other one", "weight": 2.0}]
    async with served(running) as url, AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        await client.images.edit(image=file_of(gradient(128, 128)), prompt="x", extra_body={"seed": 2, "loras": loras})
    assert (await running.newest()).request["loras"] == [{**lora, "text_weight": None} for lora in loras]


async def test_other_servers_name_of_a_lora(running: Front) -> None:
    body = {"prompt": "x", "seed": 2, "lora_name": "style"}
    assert (await running.http.post("/v1/images/generations", json=body)).status_code == 200
    assert (await running.newest()).request["loras"] == [{"name": "style", "weight": 1.0, "text_weight": None}]
    refused = await running.http.post("/v1/images/generations", json={**body, "lora_name": "nothing"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "lora_name")


async def test_told_again_by_the_image(running: Front) -> None:
    """The manifest, and the tags from which A1111's clients make the image again."""
    asked = {"prompt": "a (red:1.2) circle <lora:style:0.5>", "loras": [{"name": "other one", "weight": 2}]}
    job = (await running.generate(**SMALL, **asked)).json()
    assert job["status"] == "complete"
    [image] = job["images"]
    worn = [("other one", 2.0, "0" * 64), ("style", 0.5, "1" * 64)]
    manifest = (await running.newest()).result["images"][0]["manifest"]
    assert [(one["name"], one["weight"], one["hash"]) for one in manifest["loras"]] == worn
    file = (await running.http.get(image["url"])).content
    told = (await running.http.post("/sdapi/v1/png-info", json={"image": base64.b64encode(file).decode()})).json()
    assert told["parameters"]["Prompt"] == "a (red:1.2) circle <lora:other one:2><lora:style:0.5>"
    assert told["parameters"]["Lora hashes"] == f"other one: {'0' * 12}, style: {'1' * 12}"
    again = (await running.http.post("/sdapi/v1/txt2img", json={"infotext": told["info"]})).json()
    assert json.loads(again["info"])["infotexts"][0].splitlines()[0] == told["parameters"]["Prompt"]
    last = (await running.newest()).request["loras"]
    assert last == [
        {"name": "other one", "weight": 2.0, "text_weight": None},
        {"name": "style", "weight": 0.5, "text_weight": None},
    ]


async def test_a_model_s_own(raw_settings: dict[str, Any], stages: Stages, folder: Path) -> None:
    """Worn in every dialect, with nothing for its clients to know."""
    few = {"defaults": {"steps": 4, "guidance_scale": 1.0, "width": 128, "height": 128, "sampler": "lcm"}}
    few["limits"] = {
        "steps": {"min": 1, "max": 8},
        "width": {"min": 128, "max": 512},
        "height": {"min": 128, "max": 512},
    }
    worn = [{"name": "style", "weight": 0.8}]
    raw_settings["models"]["few-step"] = {"family": "sd15", "source": "sd15", "loras": worn, **few}
    raw_settings |= {"loras": {"folder": str(folder)}, "default_model": "few-step"}
    async with front(Settings.model_validate(raw_settings), stages) as running:
        models = (await running.http.get("/models")).json()["models"]
        assert {model["name"]: model["loras"] for model in models}["few-step"] == worn
        asked: list[tuple[str, dict[str, Any]]] = [
            ("/generate", {"prompt": "x", "seed": 2}),
            ("/sdapi/v1/txt2img", {"prompt": "x", "steps": 4, "cfg_scale": 1, "width": 128, "height": 128, "seed": 2}),
            ("/v1/images/generations", {"prompt": "x", "size": "128x128", "seed": 2}),
            ("/predict", {"inputs": "x", "parameters": {"seed": 2}}),
        ]
        for path, body in asked:
            response = await running.http.post(path, json=body, headers={"prefer": "wait=30"})
            assert response.status_code == 200, response.text
            job = await running.newest()
            assert (job.request["loras"], job.request["steps"]) == ([{**worn[0], "text_weight": None}], 4), path
            [image] = job.result["images"]
            assert [(one["name"], one["weight"]) for one in image["manifest"]["loras"]] == [("style", 0.8)]
        (folder / "style.safetensors").unlink()
        response = await running.generate()
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (500, "checkpoint_error")
        wanted = "model 'few-step' names a LoRA in its settings: no LoRA named 'style'; known: other one"
        assert error["message"] == wanted


@pytest.fixture(scope="module")
def stages() -> Stages:
    return stand_ins()
