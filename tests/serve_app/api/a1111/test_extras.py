"""AUTOMATIC1111's extras with webuiapi: an image made larger, without a model or with one."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from webuiapi import WebUIApi

from serve_app.config.settings import Settings
from serve_app.jobs.states import JobState
from serve_app.stages.client import Stages
from tests.serve_app.api.a1111.a1111_client import SMALL, call
from tests.serve_app.front import Front, front, until
from tests.serve_app.images.image_bombs import png
from tests.serve_app.images.pictures import encoded, gradient, received, sent
from tests.serve_app.served import beside, served
from tests.serve_app.upscaler_files import write_upscaler


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


async def test_a_batch_is_no_larger_than_four_of_the_largest_images(
    raw_settings: dict[str, Any], stages: Stages
) -> None:
    raw_settings["limits"] = {"max_image_pixels": 128 * 128}
    pictures = [{"data": sent(gradient(16, 16))}] * 5
    body = {"upscaling_resize": 8, "upscaler_1": "Nearest"}
    async with front(Settings.model_validate(raw_settings), stages) as one:
        refused = await one.http.post("/sdapi/v1/extra-batch-images", json={**body, "imageList": pictures})
        assert refused.status_code == 422
        assert (refused.json()["body"], refused.json()["detail"]) == (
            "imageList.4",
            "image 5: the results would have more than 65536 pixels in all",
        )
        made = await one.http.post("/sdapi/v1/extra-batch-images", json={**body, "imageList": pictures[1:]})
        assert len(made.json()["images"]) == 4


async def test_two_upscalers_are_mixed(url: str) -> None:
    fields = {"upscaling_resize": 2, "upscaler_1": "Nearest", "upscaler_2": "Lanczos"}
    both = [await enlarged(url, **fields, extras_upscaler_2_visibility=part) for part in (0, 0.5, 1)]
    first, mixed, second = (np.asarray(one).astype(int) for one in both)
    assert np.abs(mixed - (first + second) / 2).max() <= 1
    assert (first != second).any()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"upscaler_1": "my own"}, "upscaler_1"),
        ({"upscaling_resize": 9}, "upscaling_resize"),
        ({"upscaling_resize": 0}, "upscaling_resize"),
        ({"resize_mode": 2}, "resize_mode"),
        ({"resize_mode": 1, "upscaling_resize_w": 16_000, "upscaling_resize_h": 16_000}, "upscaling_resize_w"),
        ({"image": "http://127.0.0.1/x.png"}, "image"),
        ({"image": encoded(png(60_000, 60_000))}, "image"),
        ({"image": None}, "image"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(url: str, fields: dict[str, Any], named: str) -> None:
    async with httpx.AsyncClient(base_url=url) as http:
        answer = await http.post("/sdapi/v1/extra-single-image", json={"image": sent(gradient(40, 30)), **fields})
    assert (answer.status_code, answer.json()["body"]) == (422, named), answer.text


async def test_what_presets_name_is_lanczos_or_a_model_of_the_folder(with_models: Front, tmp_path: Path) -> None:
    write_upscaler(tmp_path, "RealESRGAN_x4plus_anime_6B", 2)
    body = {"image": sent(gradient(40, 30)), "upscaling_resize": 2, "codeformer_visibility": 0.5}
    for name, drawn in (
        ("R-ESRGAN 4x+", np.asarray(Image.fromarray(gradient(40, 30)).resize((80, 60), Image.Resampling.LANCZOS))),
        ("R-ESRGAN 4x+ Anime6B", repeated(80, 60)),
    ):
        answer = await with_models.http.post("/sdapi/v1/extra-single-image", json={**body, "upscaler_1": name})
        assert answer.status_code == 200, answer.text
        assert (received(base64.b64decode(answer.json()["image"])) == drawn).all()
        said = answer.json()["html_info"]
        assert "codeformer_visibility has no effect" in said
        assert ("Lanczos is taken" in said) is (name == "R-ESRGAN 4x+")


@pytest.fixture
async def with_models(raw_settings: dict[str, Any], stages: Stages, tmp_path: Path) -> AsyncIterator[Front]:
    for name in ("twofold", "endless"):
        write_upscaler(tmp_path, name, 2)
    (tmp_path / "broken.safetensors").write_bytes(bytes(100))
    raw_settings["upscalers"] = {"folder": str(tmp_path)}
    async with front(Settings.model_validate(raw_settings), stages) as one:
        yield one


def repeated(width: int, height: int) -> np.ndarray:
    """What the stand-in makes of the gradient."""
    return gradient(40, 30)[np.arange(height) * 30 // height][:, np.arange(width) * 40 // width]


async def test_by_a_model(with_models: Front) -> None:
    async with served(with_models) as url:
        larger = await enlarged(url, upscaling_resize=3, upscaler_1="twofold")
        assert (np.asarray(larger) == repeated(120, 90)).all()
        job = await with_models.newest()
        assert (job.state, job.request["operation"], job.request["upscaler"]) == (
            JobState.COMPLETE,
            "upscale",
            "twofold",
        )
        size = {"resize_mode": 1, "upscaling_resize_w": 80, "upscaling_resize_h": 80, "upscaler_1": "twofold"}
        assert (await enlarged(url, **size)).size == (80, 80)
        mixed = {"upscaler_1": "twofold", "upscaler_2": "Nearest", "extras_upscaler_2_visibility": 0.5}
        assert (np.asarray(await enlarged(url, upscaling_resize=2, **mixed)) == repeated(80, 60)).all()
        before = (await with_models.newest()).id
        assert (await enlarged(url, upscaling_resize=0.5, upscaler_1="twofold")).size == (20, 15)
        assert (await with_models.newest()).id == before  # nothing is made larger


async def test_several_by_a_model(with_models: Front) -> None:
    async with served(with_models) as url:
        images = await call(
            url,
            lambda api: api.extra_batch_images([Image.fromarray(gradient(40, 30))] * 2, upscaler_1="twofold").images,
        )
    assert all((np.asarray(image) == repeated(80, 60)).all() for image in images)


async def test_the_models_are_listed(with_models: Front) -> None:
    listed = (await with_models.http.get("/sdapi/v1/upscalers")).json()
    assert [(one["name"], one["scale"]) for one in listed[3:]] == [("endless", 2), ("twofold", 2)]


async def test_what_a_model_cannot_do_is_refused_by_name(with_models: Front) -> None:
    for fields, named in (
        ({"upscaler_1": "broken"}, "upscaler_1"),
        ({"upscaler_1": "nothing"}, "upscaler_1"),
        ({"upscaler_1": "twofold", "image": "http://127.0.0.1/x.png"}, "image"),
    ):
        body = {"image": sent(gradient(40, 30)), **fields}
        answer = await with_models.http.post("/sdapi/v1/extra-single-image", json=body)
        assert (answer.status_code, answer.json()["body"]) == (422, named), answer.text


async def test_an_unsafe_picture_is_withheld(with_models: Front) -> None:
    body = {"image": sent(gradient(40, 30) + 1), "upscaler_1": "twofold"}
    answer = await with_models.http.post("/sdapi/v1/extra-single-image", json=body)
    assert answer.status_code == 422
    assert "withheld" in answer.text


async def test_interrupt_ends_it(with_models: Front) -> None:
    body = {"image": sent(gradient(40, 30)), "upscaler_1": "endless"}
    asking = asyncio.create_task(with_models.http.post("/sdapi/v1/extra-single-image", json=body))
    await until(lambda: with_models.service.runner.depth() == (0, 1))
    progress = (await with_models.http.get("/sdapi/v1/progress")).json()
    assert (progress["progress"], progress["state"]["job_count"]) == (0.5, 1)
    await with_models.http.post("/sdapi/v1/interrupt")
    assert (await asking).status_code == 409
    await with_models.cancelled()


async def test_it_goes_with_its_client(with_models: Front) -> None:
    body = {"image": sent(gradient(40, 30)), "upscaler_1": "endless"}
    await with_models.goes_with_its_client(with_models.http.post("/sdapi/v1/extra-single-image", json=body))


async def test_the_picture_s_own_parameters_are_kept(with_models: Front) -> None:
    drawn = (await with_models.http.post("/sdapi/v1/txt2img", json={"prompt": "a red circle", **SMALL})).json()
    [picture], [infotext] = drawn["images"], json.loads(drawn["info"])["infotexts"]
    for upscaler in ("Lanczos", "twofold"):
        body = {"image": picture, "upscaling_resize": 2, "upscaler_1": upscaler}
        answer = await with_models.http.post("/sdapi/v1/extra-single-image", json=body)
        told = (await with_models.http.post("/sdapi/v1/png-info", json={"image": answer.json()["image"]})).json()
        assert told["info"] == infotext
        assert told["items"] == {"postprocessing": f"Postprocess upscale by: 2, Postprocess upscaler: {upscaler}"}
    # the native call, too
    native = await with_models.http.post("/upscale", json={"image": picture, "scale": 2}, headers={"prefer": "wait=30"})
    file = (await with_models.http.get(native.json()["image_url"])).content
    told = (await with_models.http.post("/sdapi/v1/png-info", json={"image": encoded(file)})).json()
    assert told["info"] == infotext
    assert told["items"]["postprocessing"].startswith("Postprocess upscale by: 2, Postprocess upscaler: Lanczos")
