"""A1111's png-info: what our own files and A1111's say of themselves."""

import base64
import io
import json
from typing import Any

import httpx
import pytest
from PIL import Image, PngImagePlugin
from webuiapi import WebUIApi

from tests.serve_app.api.a1111.a1111_client import SMALL, call


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
