"""AUTOMATIC1111's extras with webuiapi: an image made larger, without a model."""

from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from webuiapi import WebUIApi

from tests.serve_app.image_bombs import png
from tests.serve_app.pictures import encoded, gradient, sent
from tests.serve_app.served import beside


async def enlarged(url: str, **fields: Any) -> Image.Image:
    def call() -> Any:
        api = WebUIApi(baseurl=f"{url}/sdapi/v1")
        with api.session:
            return api.extra_single_image(Image.fromarray(gradient(40, 30)), **fields).image

    image: Image.Image = await beside(call)
    return image


async def test_by_a_factor(url: str) -> None:
    nearest = await enlarged(url, upscaling_resize=2, upscaler_1="Nearest")
    assert (np.asarray(nearest)[::2, ::2] == gradient(40, 30)).all()
    wanted = Image.fromarray(gradient(40, 30)).resize((60, 45), Image.Resampling.LANCZOS)
    assert (np.asarray(await enlarged(url, upscaling_resize=1.5, upscaler_1="Lanczos")) == np.asarray(wanted)).all()
    assert (np.asarray(await enlarged(url, upscaling_resize=1.5)) == np.asarray(wanted)).all()  # "None", as A1111 does


async def test_to_a_size(url: str) -> None:
    size = {"resize_mode": 1, "upscaling_resize_w": 80, "upscaling_resize_h": 80}
    assert (await enlarged(url, **size)).size == (80, 80)
    assert (await enlarged(url, **size, upscaling_crop=False)).size == (107, 80)


async def test_several_at_once(url: str) -> None:
    pictures = [gradient(40, 30), gradient(30, 40)]

    def call() -> Any:
        api = WebUIApi(baseurl=f"{url}/sdapi/v1")
        with api.session:
            return api.extra_batch_images(list(map(Image.fromarray, pictures)), upscaler_1="Nearest").images

    for picture, larger in zip(pictures, await beside(call), strict=True):
        assert (np.asarray(larger)[::2, ::2] == picture).all()


@pytest.mark.parametrize("images", [None, [], ["x"], [{"name": "a"}], [{"data": "a"}], [{"data": ""}] * 101])
async def test_several_that_cannot_be_read_are_refused(url: str, images: object) -> None:
    async with httpx.AsyncClient(base_url=url) as http:
        answer = await http.post("/sdapi/v1/extra-batch-images", json={"imageList": images})
    assert (answer.status_code, answer.json()["body"].split(".")[0]) == (422, "imageList"), answer.text


async def test_two_upscalers_are_mixed(url: str) -> None:
    fields = {"upscaling_resize": 2, "upscaler_1": "Nearest", "upscaler_2": "Lanczos"}
    both = [await enlarged(url, **fields, extras_upscaler_2_visibility=part) for part in (0, 0.5, 1)]
    first, mixed, second = (np.asarray(one).astype(int) for one in both)
    assert np.abs(mixed - (first + second) / 2).max() <= 1
    assert (first != second).any()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"upscaler_1": "R-ESRGAN 4x+"}, "upscaler_1"),
        ({"upscaling_resize": 9}, "upscaling_resize"),
        ({"upscaling_resize": 0}, "upscaling_resize"),
        ({"resize_mode": 2}, "resize_mode"),
        ({"resize_mode": 1, "upscaling_resize_w": 16_000, "upscaling_resize_h": 16_000}, "upscaling_resize_w"),
        ({"gfpgan_visibility": 0.5}, "gfpgan_visibility"),
        ({"image": "http://127.0.0.1/x.png"}, "image"),
        ({"image": encoded(png(60_000, 60_000))}, "image"),
        ({"image": None}, "image"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(url: str, fields: dict[str, Any], named: str) -> None:
    async with httpx.AsyncClient(base_url=url) as http:
        answer = await http.post("/sdapi/v1/extra-single-image", json={"image": sent(gradient(40, 30)), **fields})
    assert (answer.status_code, answer.json()["body"]) == (422, named), answer.text
