"""A1111's png-info: what our own files and A1111's say of themselves."""

import base64
import io
import json
from typing import Any

import httpx
import pytest
from PIL import Image, PngImagePlugin
from webuiapi import WebUIApi

from serve_app.schemas.generation_request import GenerationRequest, HiresRequest
from tests.serve_app.api.a1111.a1111_client import SMALL, call


async def test_png_info_reads_our_own_files_of_every_type(url: str, http: httpx.AsyncClient) -> None:
    for kind in ("png", "jpg", "webp"):
        fields = {**SMALL, "override_settings": {"samples_format": kind}}
        drawn = (await http.post("/sdapi/v1/txt2img", json={"prompt": "a (red:1.2) circle, big", **fields})).json()
        [image] = drawn["images"]
        told = (await http.post("/sdapi/v1/png-info", json={"image": image})).json()
        assert set(told) == {"info", "items", "parameters", "request", "warnings"}
        wanted = {"prompt": "a (red:1.2) circle, big", "model": "demo-sd15", "seed": 2, "width": 128, "height": 128}
        assert (told["request"].items() >= wanted.items(), told["warnings"]) == (True, [])
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


async def test_png_info_reads_freeu_as_forge_writes_it(http: httpx.AsyncClient) -> None:
    freeu = {"s1": 0.85, "s2": 0.25, "b1": 1.5, "b2": 1.0}
    body = {"prompt": "a circle", "seed": 2, "steps": 10, "width": 128, "height": 128, "freeu": freeu}
    job = (await http.post("/generate", json=body, headers={"prefer": "wait=30"})).json()
    file = (await http.get(job["images"][0]["url"])).content
    told = (await http.post("/sdapi/v1/png-info", json={"image": base64.b64encode(file).decode()})).json()
    assert "freeu_enabled: True, freeu_b1: 1.5, freeu_b2: 1, freeu_s1: 0.85, freeu_s2: 0.25," in told["info"]
    assert (told["request"]["freeu"], told["warnings"]) == (freeu, [])
    image = Image.open(io.BytesIO(file))
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", told["info"].replace("freeu_b1: 1.5", "freeu_b1: 9"))
    other = io.BytesIO()
    image.save(other, "PNG", pnginfo=info)
    told = (await http.post("/sdapi/v1/png-info", json={"image": base64.b64encode(other.getvalue()).decode()})).json()
    assert "freeu" not in told["request"]
    assert told["warnings"] == ["freeu_b1 is '9': input should be less than or equal to 4"]


async def test_png_info_of_an_image_without_any(http: httpx.AsyncClient) -> None:
    file = io.BytesIO()
    comment = PngImagePlugin.PngInfo()
    comment.add_text("Comment", "hello")
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=comment)
    told = (await http.post("/sdapi/v1/png-info", json={"image": base64.b64encode(file.getvalue()).decode()})).json()
    nothing = {"info": "", "parameters": {}, "request": None, "warnings": []}
    assert told == {**nothing, "items": {"Comment": "hello"}}


async def test_png_info_has_the_native_request_of_what_can_be_drawn_here(http: httpx.AsyncClient) -> None:
    text = (
        "a cat <lora:nowhere:1>\nNegative prompt: dog\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Automatic, CFG scale: 7, Seed: 965400086, Size: 512x384, "
        "Model hash: 6ce0161689, Model: v1-5-pruned, Denoising strength: 0.4, Hires upscale: 2, Hires steps: 7, "
        "Hires upscaler: Latent, Refiner: other [0123456789], Refiner switch at: 0.8"
    )
    file, written = io.BytesIO(), PngImagePlugin.PngInfo()
    written.add_text("parameters", text)
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=written)
    told = (await http.post("/sdapi/v1/png-info", json={"image": base64.b64encode(file.getvalue()).decode()})).json()
    request = GenerationRequest.model_validate(told["request"])
    assert (request.prompt.strip(), request.negative_prompt, request.seed) == ("a cat", "dog", 965400086)
    assert (request.model, request.scheduler) == ("demo-sd15", "webui_dpmpp_2m_karras")  # A1111's Automatic
    assert (request.width, request.height, request.guidance_scale, request.steps) == (512, 384, 7, 20)
    assert request.hires == HiresRequest(scale=2.0, strength=0.4, steps=7, sampler="webui_dpmpp_2m_karras")
    for word in ("v1-5-pruned", "nowhere", "other"):
        assert any(word in warning for warning in told["warnings"]), word


@pytest.mark.parametrize("image", ["", "!!!", "aGVsbG8=", "data:image/png;base64,aGVsbG8="])
async def test_png_info_refuses_what_is_no_image(http: httpx.AsyncClient, image: str) -> None:
    response = await http.post("/sdapi/v1/png-info", json={"image": image})
    assert (response.status_code, response.json()["body"]) == (422, "image")
