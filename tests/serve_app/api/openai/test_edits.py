"""OpenAI's edits and variations with OpenAI's own package, over real HTTP; the stages are stand-ins."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from PIL import Image

from deployments.engine.types import DenoiseRequest
from serve_app.config.settings import Settings
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, until
from tests.serve_app.images.image_bombs import png
from tests.serve_app.images.pictures import file_of, gradient, square
from tests.serve_app.served import beside

# OpenAI itself has retired variations, and its package says so
pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")

WIDTH, HEIGHT = 192, 128
PICTURE = gradient(WIDTH, HEIGHT)
PAINTED = square(WIDTH, HEIGHT, 40, 24, 48)  # white where it is to be painted
FILE = file_of(PICTURE)


def transparent(painted: np.ndarray) -> bytes:
    """OpenAI's mask: a PNG that is transparent where it is to be painted."""
    black = np.zeros((*painted.shape, 3), np.uint8)
    return file_of(np.dstack([black, 255 - painted]))


MASK = transparent(PAINTED)


@pytest.fixture
def settings(raw_settings: dict[str, Any]) -> Settings:
    raw_settings["limits"] = {"max_image_pixels": 1 << 18, "max_image_body_bytes": 2 << 20}
    return Settings.model_validate(raw_settings)


@pytest.fixture
async def client(url: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as one:
        yield one


def pixels_of(b64_json: str | None) -> np.ndarray:
    assert b64_json is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64_json))))


async def lane_of(running: Front, stages: Stages, stage: str = "sd15") -> DenoiseRequest:
    """The first lane of the newest job."""
    lanes: list[DenoiseRequest] = await stages.denoisers[stage].lanes_asked.remote()
    job = await running.newest()
    return next(lane for lane in lanes if lane.lane_id.startswith(job.id))


async def test_what_is_transparent_in_the_mask_is_painted_and_nothing_else(
    client: AsyncOpenAI, running: Front, stages: Stages
) -> None:
    answer = await client.images.edit(image=FILE, mask=MASK, prompt="a green star", extra_body={"seed": 6})
    assert answer.data is not None
    [image] = answer.data
    drawn = pixels_of(image.b64_json)
    assert (drawn[PAINTED == 0] == PICTURE[PAINTED == 0]).all()
    assert (drawn[PAINTED > 0] == 6).all()
    assert (answer.size, answer.output_format) == (f"{WIDTH}x{HEIGHT}", "png")
    lane = await lane_of(running, stages)
    assert lane.mask is not None
    assert (lane.mask == PAINTED).all()
    assert lane.strength == 1.0


async def test_without_a_mask_all_of_it_is_drawn_again_in_a_blocking_client(
    url: str, running: Front, stages: Stages
) -> None:
    def call() -> Any:
        with OpenAI(base_url=f"{url}/v1", api_key="none") as one:
            return one.images.edit(
                image=("circle.jpg", file_of(PICTURE, "JPEG"), "image/jpeg"), prompt="x", extra_body={"seed": 4}
            )

    answer = await beside(call)
    assert (pixels_of(answer.data[0].b64_json) == 4).all()
    lane = await lane_of(running, stages)
    assert (lane.mask, lane.strength, lane.width, lane.height) == (None, 0.8, WIDTH, HEIGHT)


async def test_every_field_of_the_sdk_is_taken(client: AsyncOpenAI, running: Front, stages: Stages) -> None:
    answer = await client.images.edit(
        image=[FILE],
        mask=MASK,
        prompt="[not] {JSON}",
        model="demo-sdxl",
        n=2,
        size="256x128",
        quality="high",
        background="opaque",
        complexity="low",
        input_fidelity="high",
        output_format="webp",
        output_compression=50,
        response_format="b64_json",
        user="somebody",
        safety_identifier="somebody",
        partial_images=0,
        stream=False,
        extra_body={
            "seed": 2,
            "steps": 20,
            "guidance_scale": 3.5,
            "refiner": {"switch_at": 0.7},
            "strength": 0.9,
            "inpaint": {"blur": 4, "invert": True},
            "reproducible": True,
            "negative_prompt": "blue",
            "loras": "[]",
        },
    )
    assert answer.data is not None
    assert [pixels_of(one.b64_json).shape for one in answer.data] == [(128, 256, 3)]  # the other seed is withheld
    assert (answer.output_format, answer.quality, answer.size) == ("webp", "high", "256x128")
    asked = (await running.newest()).request
    assert (asked["prompt"], asked["negative_prompt"], asked["model"], asked["n"]) == (
        "[not] {JSON}",
        "blue",
        "demo-sdxl",
        2,
    )
    assert (asked["steps"], asked["guidance_scale"], asked["switch_at"], asked["reproducible"]) == (20, 3.5, 0.7, True)
    assert (asked["image"]["strength"], asked["image"]["blur"], asked["image"]["invert"]) == (0.9, 4, True)
    lane = await lane_of(running, stages, "sdxl_base")
    assert (lane.width, lane.height, lane.sampler) == (256, 128, "euler_a")


async def test_an_empty_model_is_the_default_one(client: AsyncOpenAI, running: Front) -> None:
    """What Open WebUI sends where no model is set."""
    extra = {"seed": "2", "num_inference_steps": "12"}
    await client.images.edit(image=FILE, prompt="x", model="", extra_body=extra)
    request = (await running.newest()).request
    assert (request["model"], request["steps"]) == ("demo-sd15", 12)


async def test_urls_are_of_the_whole_picture_where_only_a_part_is_drawn(client: AsyncOpenAI) -> None:
    large, painted = gradient(600, 400), square(600, 400, 100, 100, 60)
    answer = await client.images.edit(
        image=file_of(large),
        mask=transparent(painted),
        prompt="x",
        response_format="url",
        extra_body={"seed": 8, "inpaint": {"only_masked": True}},
    )
    assert answer.data is not None
    assert answer.size == "600x400"
    async with httpx.AsyncClient() as http:
        drawn = np.asarray(Image.open(io.BytesIO((await http.get(answer.data[0].url or "")).content)))
    assert (drawn[painted == 0] == large[painted == 0]).all()


@pytest.mark.parametrize("partial_images", [0, 2])
async def test_a_stream_s_events_are_those_of_edits(client: AsyncOpenAI, partial_images: int) -> None:
    stream = await client.images.edit(
        image=FILE,
        prompt="slow",
        stream=True,
        partial_images=partial_images,
        extra_body={"seed": 2, "steps": 10, "strength": 1.0},
    )
    *partial, completed = [event async for event in stream]
    assert [event.type for event in partial] == ["image_edit.partial_image"] * partial_images
    assert [event.partial_image_index for event in partial] == list(range(partial_images))
    assert all(pixels_of(event.b64_json).shape == (HEIGHT, WIDTH, 3) for event in partial)
    assert completed.type == "image_edit.completed"
    assert (pixels_of(completed.b64_json) == 2).all()
    assert (completed.size, completed.usage.total_tokens) == (f"{WIDTH}x{HEIGHT}", 0)


async def test_a_stream_in_a_blocking_client(url: str) -> None:
    def collect() -> list[str]:
        with OpenAI(base_url=f"{url}/v1", api_key="none") as one:
            stream = one.images.edit(image=FILE, mask=MASK, prompt="x", stream=True, extra_body={"seed": 2})
            return [event.type for event in stream]

    assert await beside(collect) == ["image_edit.completed"]


async def test_variations(client: AsyncOpenAI, running: Front, stages: Stages) -> None:
    answer = await client.images.create_variation(
        image=FILE, n=3, model="demo-sd15", size="256x256", response_format="b64_json", user="x", extra_body={"seed": 2}
    )
    assert answer.data is not None
    assert [pixels_of(one.b64_json)[0, 0, 0] for one in answer.data] == [2, 4]
    lane = await lane_of(running, stages)
    assert (lane.strength, lane.width, lane.height) == (0.6, 256, 256)
    assert (await running.newest()).request["prompt"] == ""
    await client.images.create_variation(image=FILE, extra_body={"seed": 2, "prompt": "a star", "strength": 0.9})
    lane = await lane_of(running, stages)
    assert (lane.strength, (await running.newest()).request["prompt"]) == (0.9, "a star")


async def test_a_variation_in_a_blocking_client(url: str) -> None:
    def call() -> Any:
        with OpenAI(base_url=f"{url}/v1", api_key="none") as one:
            return one.images.create_variation(image=io.BytesIO(FILE), extra_body={"seed": 2})

    assert (pixels_of((await beside(call)).data[0].b64_json) == 2).all()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt"),
    ({"mask": transparent(square(64, 64, 0, 0, 64))}, "mask"),
    ({"mask": transparent(np.zeros_like(PAINTED))}, "mask"),  # nothing is transparent
    ({"mask": file_of(PAINTED)}, "mask"),  # nor can be
    ({"mask": MASK[:100]}, "mask"),
    ({"mask": b""}, "mask"),
    ({"image": b""}, "image"),
    ({"image": b"no picture"}, "image"),
    ({"image": FILE[: len(FILE) // 2]}, "image"),
    ({"image": file_of(PICTURE, "GIF")}, "image"),
    ({"image": png(60_000, 60_000)}, "image"),
    ({"image": file_of(np.zeros((600, 600), np.uint8))}, "image"),
    ({"image": [FILE, FILE]}, "image"),
    ({"markup": MASK}, "markup"),
    ({"image": file_of(gradient(600, 400))}, "size"),
    ({"size": "100x400"}, "size"),
    ({"n": 11}, "n"),
    ({"background": "transparent"}, "background"),
    ({"output_format": "svg", "svg": {"model": "x"}}, "output_format"),
    ({"extra_body": {"strength": 1.5}}, "strength"),
    ({"extra_body": {"strength": "nan"}}, "strength"),
    ({"extra_body": {"steps": "many"}}, "steps"),
    ({"extra_body": {"inpaint": {"blur": 65}}, "mask": MASK}, "inpaint.blur"),
    ({"extra_body": {"inpaint": {"feather": 1}}, "mask": MASK}, "inpaint.feather"),
    ({"extra_body": {"loras": [{"name": "x", "weight": 1}, {"name": "y"}]}}, "loras"),
    ({"extra_body": {"loras": ["x"]}}, "loras"),
    ({"extra_body": {"loras": [{"name": "x", "weight": "much"}]}}, "loras.0.weight"),
    ({"extra_body": {"mask[]": "x"}}, "mask"),
    ({"extra_body": {"sede": 1}}, "sede"),
]


async def test_what_is_wrong_is_named(client: AsyncOpenAI) -> None:
    for fields, param in REFUSED:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.images.edit(**{"image": FILE, "prompt": "x", **fields})
        refused = caught.value
        assert (refused.code, refused.type, refused.param) == ("invalid_request", "invalid_request_error", param)


async def test_a_variation_knows_no_mask(client: AsyncOpenAI, url: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.images.create_variation(image=FILE, extra_body={"inpaint": {"blur": 1}})
    assert caught.value.param == "inpaint"
    async with httpx.AsyncClient(base_url=url) as http:
        answer = await http.post("/v1/images/variations", files={"image": FILE, "mask": MASK})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "mask")


async def test_what_is_no_form_is_refused_in_openai_s_form(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as http:
        for sent, status, code in (
            ({"content": b"x", "headers": {"content-type": "image/png"}}, 415, "unsupported_media_type"),
            ({"data": {"prompt": "x"}}, 415, "unsupported_media_type"),
            ({"files": {"prompt": (None, "x")}}, 400, "invalid_request"),  # no image
            ({"files": {"prompt": (None, "x"), "image": (None, "x")}}, 400, "invalid_request"),
            ({"files": {"image": b"x" * (3 << 20)}}, 413, "body_too_large"),
        ):
            answer = await http.post("/v1/images/edits", **sent)  # type: ignore[arg-type]
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text


async def test_a_json_body_with_data_urls_is_the_same_edit(url: str, client: AsyncOpenAI, running: Front) -> None:
    fields = {"seed": 3, "strength": 0.5}
    form = await client.images.edit(image=FILE, mask=MASK, prompt="a ring", n=2, extra_body=fields)
    picture, mask = (f"data:image/png;base64,{base64.b64encode(file).decode()}" for file in (FILE, MASK))
    body = {"prompt": "a ring", "n": 2, **fields, "model": None, "inpaint": {"blur": 0}}
    async with httpx.AsyncClient(base_url=url) as http:
        for pictures in (
            {"images": [{"image_url": picture}], "mask": {"image_url": mask}},
            {"image": picture, "mask": mask},
        ):
            answer = await http.post("/v1/images/edits", json=body | pictures)
            assert answer.status_code == 200, answer.text
            assert form.data is not None
            assert answer.json()["data"][0]["b64_json"] == form.data[0].b64_json
        for wrong, param in (
            ({"images": [{"image_url": "https://example.com/a.png"}]}, "images"),
            ({"images": [{"file_id": "file-1"}]}, "images"),
            ({"images": [{"image_url": picture}] * 2}, "image"),
            ({"image": 5}, "image"),
            ({}, "image"),
        ):
            answer = await http.post("/v1/images/edits", json={"prompt": "x"} | wrong)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
        answer = await http.post("/v1/images/edits", json=[1])
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_a_mask_that_is_white_to_be_painted(url: str, client: AsyncOpenAI) -> None:
    expected = await client.images.edit(image=FILE, mask=MASK, prompt="a ring", extra_body={"seed": 2})
    assert expected.data is not None
    async with httpx.AsyncClient(base_url=url) as http:
        for name in ("mask", "mask_image"):
            files = {"image": ("a.png", FILE), name: ("b.png", file_of(PAINTED)), "prompt": (None, "a ring")}
            answer = await http.post("/v1/images/inpainting", files=files | {"seed": (None, "2")})
            assert answer.status_code == 200, answer.text
            drawn = pixels_of(answer.json()["data"][0]["b64_json"])
            assert np.array_equal(drawn, pixels_of(expected.data[0].b64_json))
        answer = await http.post("/v1/images/inpainting", files={"image": ("a.png", FILE), "prompt": (None, "x")})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "mask")


async def test_a_larger_picture(url: str) -> None:
    picture = base64.b64encode(FILE).decode()
    async with httpx.AsyncClient(base_url=url) as http:
        for fields, size in (
            ({}, (384, 256)),
            ({"model": "", "scale": 1.5}, (288, 192)),
            ({"model": "lanczos"}, (384, 256)),
        ):
            answer = (await http.post("/v1/images/upscale", json={"image": picture, **fields})).json()
            [entry] = answer["data"]
            assert pixels_of(entry["b64_json"]).shape[1::-1] == size
            assert (answer["size"], entry["url"]) == (f"{size[0]}x{size[1]}", None)
            content = await http.get(f"/v1/images/{answer['id']}/content")
            assert content.content == base64.b64decode(entry["b64_json"])
        by_url = (await http.post("/v1/images/upscale", json={"image": picture, "response_format": "url"})).json()
        assert (await http.get(by_url["data"][0]["url"])).status_code == 200
        for wrong, param in (({"model": "nothing"}, "model"), ({"scale": 99.0}, "scale"), ({"steps": 3}, "steps")):
            answer = await http.post("/v1/images/upscale", json={"image": picture, **wrong})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


async def test_file_names_with_quotes_and_umlauts(url: str) -> None:
    """Open WebUI sends files by their own names."""
    async with httpx.AsyncClient(base_url=url) as http:
        for name in ('a "quoted" picture.png', "Größe ü.png", "图片.png", "a;b=c.png"):
            files = {"image": (name, FILE, "image/png"), "prompt": (None, "x"), "seed": (None, "2")}
            answer = await http.post("/v1/images/edits", files=files)
            assert answer.status_code == 200, answer.text


async def test_a_lost_edit_is_taken_over_by_the_retry_of_the_same_picture(url: str, running: Front) -> None:
    """As generations are, the picture being part of the request (test_retries.py)."""

    async def edit(count: int, file: bytes) -> httpx.Response:
        headers = {"x-stainless-retry-count": str(count)}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as http:
            fields = {"prompt": "slow", "seed": "2", "steps": "10"}
            return await http.post("/v1/images/edits", data=fields, files={"image": file})

    asking = asyncio.create_task(edit(0, FILE))
    await until(lambda: sum(running.service.runner.depth()) == 1)
    asking.cancel()
    other = await edit(1, file_of(PICTURE[::-1].copy()))
    again = await edit(1, FILE)
    assert [one.headers.get("idempotent-replayed") for one in (other, again)] == [None, "true"]
    assert len((await running.service.store.page(tenant=None, limit=10)).jobs) == 2


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/images/variations"])
async def test_a_client_that_goes_away_takes_its_job_along(url: str, running: Front, path: str) -> None:
    async with httpx.AsyncClient(base_url=url) as http:
        form: dict[str, Any] = {"data": {"prompt": "endless"}, "files": {"image": FILE}}
        await running.goes_with_its_client(http.post(path, timeout=60, **form))
