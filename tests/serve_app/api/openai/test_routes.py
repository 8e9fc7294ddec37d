"""OpenAI's Images API with OpenAI's own package, over real HTTP; the stages are stand-ins."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import openai
import pytest
from openai import AsyncAzureOpenAI, AsyncOpenAI, OpenAI
from PIL import Image
from safetensors.numpy import save_file

from serve_app.config.settings import Settings
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front, until
from tests.serve_app.images.manifest_files import read_manifest
from tests.serve_app.images.pictures import file_of, gradient
from tests.serve_app.keyed import GENERATE_READ, with_keys
from tests.serve_app.served import beside, served

Answer = TypeVar("Answer")


@pytest.fixture
async def client(url: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as one:
        yield one


async def with_sync_client(url: str, call: Callable[[OpenAI], Answer], **settings: Any) -> Answer:
    def run() -> Answer:
        with OpenAI(base_url=f"{url}/v1", api_key="none", **settings) as one:
            return call(one)

    return await beside(run)


def opened(b64_json: str | None) -> Image.Image:
    assert b64_json is not None
    return Image.open(io.BytesIO(base64.b64decode(b64_json)))


async def test_a_prompt_becomes_an_image(url: str) -> None:
    answer = await with_sync_client(url, lambda one: one.images.generate(prompt="a red circle", extra_body={"seed": 4}))
    assert answer.data is not None
    [image] = answer.data
    picture = opened(image.b64_json)
    assert (picture.format, picture.size) == ("PNG", (256, 256))
    assert picture.getpixel((0, 0)) == (4, 4, 4)
    assert (image.url, image.revised_prompt) == (None, None)
    assert (answer.output_format, answer.size, answer.background) == ("png", "256x256", "opaque")
    assert answer.created > 1_700_000_000
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens_details.text_tokens == 0


async def test_every_field_of_the_sdk_is_taken(client: AsyncOpenAI, running: Front) -> None:
    answer = await client.images.generate(
        prompt="a red circle",
        model="demo-sdxl",
        n=2,
        size="384x256",
        quality="high",
        style="vivid",
        background="opaque",
        moderation="low",
        complexity="low",
        output_format="webp",
        output_compression=50,
        response_format="b64_json",
        user="somebody",
        safety_identifier="somebody",
        partial_images=0,
        stream=False,
        extra_body={"seed": 2, "safety": "block"},
    )
    assert answer.data is not None
    assert [opened(image.b64_json).size for image in answer.data] == [(384, 256)]  # the other's seed is odd: withheld
    assert (answer.output_format, answer.quality, answer.size) == ("webp", "high", "384x256")
    job = await running.newest()
    assert (job.request["model"], job.request["n"]) == ("demo-sdxl", 2)


async def test_extra_body_adds_the_native_fields(client: AsyncOpenAI) -> None:
    extra = {
        "negative_prompt": "blue",
        "seed": 6,
        "steps": 12,
        "guidance_scale": 3.5,
        "scheduler": "DPM++ 2M Karras",
        "refiner": {"switch_at": 0.5},
        "reproducible": True,
        "priority": "interactive",
        "timeout_s": 30,
        "safety": "block",
    }
    answer = await client.images.generate(prompt="a red circle", model="demo-sdxl", extra_body=extra)
    assert answer.data is not None
    assert answer.data[0].seed == 6  # type: ignore[attr-defined]  # an addition of ours
    manifest = read_manifest(base64.b64decode(answer.data[0].b64_json or ""))
    assert manifest is not None
    assert (manifest.negative_prompt, manifest.seed, manifest.steps) == ("blue", 6, 12)
    assert (manifest.guidance_scale, manifest.sampler) == (3.5, "dpmpp_2m_karras")
    assert manifest.refiner is not None
    assert manifest.refiner.switch_at == 0.5


@pytest.mark.parametrize(("asked", "format_"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
async def test_output_formats(client: AsyncOpenAI, asked: Any, format_: str) -> None:
    answer = await client.images.generate(prompt="x", output_format=asked, extra_body={"seed": 2})
    assert answer.data is not None
    assert opened(answer.data[0].b64_json).format == format_


async def test_urls_can_be_fetched_with_the_same_token(client: AsyncOpenAI, url: str) -> None:
    answer = await client.images.generate(prompt="x", n=2, response_format="url", extra_body={"seed": 2})
    assert answer.data is not None
    [image] = answer.data
    assert image.b64_json is None
    assert image.url is not None
    assert image.url.startswith(f"{url}/images/")
    async with httpx.AsyncClient(headers={"authorization": "Bearer none"}) as http:
        fetched = await http.get(image.url)
    assert fetched.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(fetched.content)).size == (256, 256)


@pytest.mark.parametrize(("size", "expected"), [("auto", "256x256"), ("512x128", "512x128")])
async def test_sizes(client: AsyncOpenAI, size: str, expected: str) -> None:
    assert (await client.images.generate(prompt="x", size=size, extra_body={"seed": 2})).size == expected


async def test_null_is_as_good_as_nothing(client: AsyncOpenAI) -> None:
    answer = await client.images.generate(
        prompt="x", model=None, n=None, size=None, quality=None, stream=None, extra_body={"seed": 2, "steps": None}
    )
    assert answer.size == "256x256"


async def test_an_empty_model_is_the_default_one(client: AsyncOpenAI, running: Front) -> None:
    await client.images.generate(prompt="x", model="", extra_body={"seed": 2})
    assert (await running.newest()).request["model"] == "demo-sd15"


@pytest.mark.parametrize(
    ("synonyms", "meaning"),
    [
        ({"num_inference_steps": 12}, {"steps": 12}),
        ({"step": 12}, {"steps": 12}),
        ({"true_cfg_scale": 3.5}, {"guidance_scale": 3.5}),
        ({"cfg_scale": 3.5}, {"guidance_scale": 3.5}),
        ({"width": 384, "height": 256}, {"width": 384, "height": 256}),
        ({"num_outputs_per_prompt": 2}, {"n": 2}),
        (
            {"lora": {"name": "night", "scale": 0.5}},
            {"loras": [{"name": "night", "weight": 0.5, "text_weight": None}]},
        ),
    ],
    ids=lambda fields: "-".join(fields),
)
async def test_other_servers_names_mean_the_native_fields(
    raw_settings: dict[str, Any],
    stages: Stages,
    tmp_path: Path,
    synonyms: dict[str, Any],
    meaning: dict[str, Any],
) -> None:
    matrices = {f"lora_unet_layer.lora_{part}.weight": np.zeros((1, 1), np.float32) for part in ("up", "down")}
    save_file(matrices, tmp_path / "night.safetensors")
    raw_settings["loras"] = {"folder": str(tmp_path)}
    async with front(Settings.model_validate(raw_settings), stages) as one, served(one) as url:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            await client.images.generate(prompt="x", extra_body={"seed": 2, **synonyms})
        request = (await one.newest()).request
    assert {name: request[name] for name in meaning} == meaning


async def test_what_has_no_effect_is_said_in_the_answer(client: AsyncOpenAI) -> None:
    fields = {"generator_device": "cuda", "vae_use_tiling": True, "vae_use_slicing": False, "enable_teacache": True}
    answer = await client.images.generate(
        prompt="x", quality="high", style="vivid", moderation="auto", extra_body={"seed": 2, **fields}
    )
    assert answer.model_extra is not None
    assert [warning.partition(" ")[0] for warning in answer.model_extra["warnings"]] == [
        "quality",
        "style",
        "generator_device",
        "enable_teacache",
        "vae_use_tiling",
    ]
    answer = await client.images.generate(prompt="x", quality="auto", extra_body={"seed": 2})
    assert "warnings" not in (answer.model_extra or {})


async def test_every_entry_has_all_of_openai_s_keys(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as http:
        for response_format, there, null in (("b64_json", "b64_json", "url"), ("url", "url", "b64_json")):
            body = {"prompt": "x", "seed": 2, "response_format": response_format}
            [entry] = (await http.post("/v1/images/generations", json=body)).json()["data"]
            assert entry.keys() == {"b64_json", "url", "revised_prompt", "seed"}
            assert (isinstance(entry[there], str), entry[null], entry["revised_prompt"]) == (True, None, None)


async def test_whom_it_is_for_is_repeated(client: AsyncOpenAI) -> None:
    for identifiers, expected in (
        ({"safety_identifier": "a", "user": "b"}, "a"),
        ({"safety_identifier": "", "user": "b"}, "b"),
        ({}, None),
    ):
        answer = await client.images.generate(prompt="x", extra_body={"seed": 2, **identifiers})
        assert answer.safety_identifier == expected
        events = await client.images.generate(prompt="x", stream=True, extra_body={"seed": 2, **identifiers})
        *_, done = [event async for event in events]
        assert done.safety_identifier == expected


async def test_an_image_can_be_fetched_by_its_answer_s_id(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as http:
        # the classifier of these stages withholds odd seeds
        answer = (await http.post("/v1/images/generations", json={"prompt": "x", "seed": 3, "n": 2})).json()
        content = await http.get(f"/v1/images/{answer['id']}/content")
        assert (content.status_code, content.headers["content-type"]) == (200, "image/png")
        assert content.content == base64.b64decode(answer["data"][0]["b64_json"])
        job = (await http.post("/generate", json={"prompt": "endless"})).json()["job_id"]
        for job_id, status, code in (
            ("0" * 32, 404, "unknown_job"),
            ("x", 400, "malformed_id"),
            (job, 404, "unknown_image"),
        ):
            refused = await http.get(f"/v1/images/{job_id}/content")
            assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)


async def test_without_v1_it_is_the_same(url: str) -> None:
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        answer = await client.images.generate(prompt="x", extra_body={"seed": 4})
        assert answer.data is not None
        assert opened(answer.data[0].b64_json).getpixel((0, 0)) == (4, 4, 4)
        with pytest.raises(openai.BadRequestError):
            await client.images.generate(prompt="x", extra_body={"steps": 500})


async def test_azure_s_client(raw_settings: dict[str, Any], stages: Stages, tmp_path: Path) -> None:
    keys = with_keys(raw_settings, tmp_path / "keys", alice=GENERATE_READ)
    raw_settings["openai"] = {"aliases": {"dall-e-3": "demo-sdxl"}}
    picture = file_of(gradient(128, 128))
    async with front(Settings.model_validate(raw_settings), stages) as one, served(one) as url:
        settings: dict[str, Any] = {"azure_endpoint": url, "api_version": "2026-02-01", "max_retries": 0}
        async with AsyncAzureOpenAI(**settings, api_key=keys["alice"]) as client:
            for model, expected in (("demo-sd15", "demo-sd15"), ("dall-e-3", "demo-sdxl")):
                await client.images.generate(prompt="x", model=model, extra_body={"seed": 2})
                assert (await one.newest()).request["model"] == expected
                await client.images.edit(image=picture, prompt="x", model=model, extra_body={"seed": 2})
                assert ((await one.newest()).request["model"], (await one.newest()).request["width"]) == (expected, 128)
            with pytest.raises(openai.NotFoundError):
                await client.images.generate(prompt="x", model="nothing")
        async with AsyncAzureOpenAI(**settings, api_key="dk-no-key-of-ours") as client:
            with pytest.raises(openai.AuthenticationError):
                await client.images.generate(prompt="x", model="demo-sd15")


async def test_an_alias_is_its_model(raw_settings: dict[str, Any], stages: Stages) -> None:
    raw_settings["openai"] = {"aliases": {"gpt-image-1": "demo-sdxl"}}
    async with (
        front(Settings.model_validate(raw_settings), stages) as one,
        served(one) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        assert (await client.models.retrieve("gpt-image-1")).id == "gpt-image-1"
        await client.images.generate(prompt="x", model="gpt-image-1", extra_body={"seed": 2})
        assert (await one.newest()).request["model"] == "demo-sdxl"
        picture = file_of(gradient(128, 128))
        await client.images.edit(image=picture, prompt="x", model="gpt-image-1", extra_body={"seed": 2})
        assert (await one.newest()).request["model"] == "demo-sdxl"


async def test_open_webui_s_request(url: str) -> None:
    body = {"model": "demo-sd15", "prompt": "x", "n": 2, "size": "512x512", "response_format": "b64_json"}
    async with httpx.AsyncClient(base_url=url, headers={"authorization": "Bearer none"}) as http:
        answer = (await http.post("/v1/images/generations", json=body)).json()
    assert opened(answer["data"][0]["b64_json"]).size == (512, 512)


async def test_models(client: AsyncOpenAI) -> None:
    models = await client.models.list()
    assert [model.id for model in models.data] == ["demo-sd15", "demo-sdxl"]
    assert {(model.object, model.owned_by) for model in models.data} == {("model", "darkroom")}
    assert (await client.models.retrieve("demo-sdxl")).id == "demo-sdxl"
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("demo-sdxl-refiner")
    assert caught.value.code == "model_not_found"


async def stream_of(client: AsyncOpenAI, prompt: str, **fields: Any) -> list[Any]:
    return [event async for event in await client.images.generate(prompt=prompt, stream=True, **fields)]


@pytest.mark.parametrize("partial_images", [0, 1, 2, 3])
async def test_a_stream_ends_with_the_image_after_its_partial_ones(client: AsyncOpenAI, partial_images: int) -> None:
    events = await stream_of(
        client,
        "slow",
        partial_images=partial_images,
        size="256x128",
        output_format="webp",
        extra_body={"seed": 2, "steps": 10},
    )
    *partial, completed = events
    assert [event.type for event in partial] == ["image_generation.partial_image"] * partial_images
    assert [event.partial_image_index for event in partial] == list(range(partial_images))
    shades = []
    for event in partial:
        picture = opened(event.b64_json)
        assert (picture.format, picture.size) == ("WEBP", (256, 128))
        assert (event.size, event.output_format, event.quality, event.background) == (
            "256x128",
            "webp",
            "auto",
            "opaque",
        )
        assert event.created_at > 1_700_000_000
        shades.append(picture.getpixel((0, 0))[0])
    assert shades == sorted(set(shades))  # the stand-in's previews brighten from step to step
    assert completed.type == "image_generation.completed"
    assert opened(completed.b64_json).getpixel((0, 0)) == (2, 2, 2)
    assert completed.usage.total_tokens == 0
    assert not hasattr(completed, "partial_image_index")


async def test_a_stream_in_a_blocking_client(url: str) -> None:
    def collect(one: OpenAI) -> list[str]:
        return [event.type for event in one.images.generate(prompt="x", stream=True, extra_body={"seed": 2})]

    assert await with_sync_client(url, collect) == ["image_generation.completed"]


async def test_a_stream_of_several_images_completes_each(client: AsyncOpenAI) -> None:
    events = await stream_of(client, "x", n=3, extra_body={"seed": 2})
    assert [opened(event.b64_json).getpixel((0, 0))[0] for event in events] == [2, 4]


async def test_an_error_in_a_stream_is_raised(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.APIError, match="not-a-number") as caught:
        await stream_of(client, "poison")
    assert caught.value.code == "numerical_failure"
    with pytest.raises(openai.APIError) as caught:
        await stream_of(client, "x", extra_body={"seed": 3})
    assert caught.value.code == "moderation_blocked"


async def test_a_stream_that_is_left_cancels_its_job(client: AsyncOpenAI, running: Front) -> None:
    stream = await client.images.generate(prompt="endless", stream=True, partial_images=3)
    await until(lambda: running.service.runner.depth() == (0, 1))
    await stream.close()
    await running.cancelled()


async def test_a_client_that_goes_away_takes_its_job_along(url: str, running: Front) -> None:
    async with httpx.AsyncClient(base_url=url) as http:  # the SDK's may come back for it: test_retries.py
        await running.goes_with_its_client(http.post("/v1/images/generations", json={"prompt": "endless"}, timeout=60))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 32_001}, "prompt"),
        ({"prompt": "x" * 3_000}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"size": "big"}, "size"),
        ({"size": "9000x9000"}, "size"),
        ({"size": "257x256"}, "size"),
        ({"partial_images": 4}, "partial_images"),
        ({"output_compression": 101}, "output_compression"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_format": "svg"}, "output_format"),
        ({"svg": {"model": "x"}}, "svg"),
        ({"frame_count": 4}, "frame_count"),
        ({"background": "transparent"}, "background"),
        ({"response_format": "jpeg"}, "response_format"),
        ({"extra_body": {"steps": 5000}}, "steps"),
        ({"extra_body": {"sede": 1}}, "sede"),
        ({"size": "256x256", "extra_body": {"width": 256}}, "width"),
        ({"n": 2, "extra_body": {"num_outputs_per_prompt": 2}}, "num_outputs_per_prompt"),
        ({"extra_body": {"num_inference_steps": 5000}}, "num_inference_steps"),
    ],
)
async def test_what_is_wrong_is_named(client: AsyncOpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.images.generate(**{"prompt": "x", **fields})
    assert caught.value.param == param
    assert (caught.value.code, caught.value.type) == ("invalid_request", "invalid_request_error")


async def test_an_unknown_model_is_not_found(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.images.generate(prompt="x", model="dall-e-3")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "demo-sd15" in caught.value.message


async def test_withheld_images_are_a_moderation_error(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.images.generate(prompt="x", extra_body={"seed": 3})
    assert (caught.value.code, caught.value.type) == ("moderation_blocked", "image_generation_user_error")


async def test_an_unknown_route_and_a_wrong_method_answer_in_openai_s_form(client: AsyncOpenAI, url: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.embeddings.create(model="demo-sd15", input="x")
    assert (caught.value.code, caught.value.type) == ("unknown_route", "invalid_request_error")
    async with httpx.AsyncClient(base_url=url) as http:
        response = await http.get("/v1/images/generations")
        assert (response.status_code, response.headers["allow"]) == (405, "POST")
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        response = await http.post("/v1/images/generations", content=b"{", headers={"content-type": "application/json"})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "unreadable_request")
        response = await http.post("/v1/images/generations", json={"prompt": "x" * (2 << 20)})
        assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
        assert response.headers["x-should-retry"] == "false"


async def test_a_full_queue_is_retried_after_the_time_it_says(raw_settings: dict[str, Any], stages: Stages) -> None:
    raw_settings["jobs"]["max_queued"] = 1
    async with front(Settings.model_validate(raw_settings), stages) as one, served(one) as address:
        blocker = (await one.generate("endless", wait=None)).json()
        refusals: list[tuple[float, Any]] = []

        async def on_response(response: Any) -> None:
            if response.status_code == 503:
                refusals.append((asyncio.get_running_loop().time(), response.headers))
                await one.http.delete(blocker["links"]["cancel"])

        http = openai.DefaultAsyncHttpxClient(event_hooks={"response": [on_response]})
        async with AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=1, http_client=http) as client:
            answer = await client.images.generate(prompt="x", extra_body={"seed": 2})
        waited = asyncio.get_running_loop().time() - refusals[0][0]
    assert answer.data
    [(_, headers)] = refusals
    assert headers["x-should-retry"] == "true"
    assert 1 <= int(headers["retry-after"]) <= waited


async def test_what_a_job_died_of_is_not_repeated(url: str, running: Front) -> None:
    """The SDK repeats 5xx and 409 by itself; only a refusal is worth it."""

    def fails(one: OpenAI) -> openai.APIStatusError:
        with pytest.raises(openai.InternalServerError) as caught:
            one.images.generate(prompt="poison")
        return caught.value

    error = await with_sync_client(url, fails, max_retries=2)
    assert error.code == "numerical_failure"
    assert error.response.headers["x-should-retry"] == "false"
    assert len((await running.service.store.page(tenant=None, limit=10)).jobs) == 1


async def test_a_job_that_somebody_cancels_is_a_conflict_and_not_repeated(url: str, running: Front) -> None:
    calling = asyncio.create_task(
        with_sync_client(url, lambda one: one.images.generate(prompt="endless"), max_retries=2)
    )
    await until(lambda: running.service.runner.depth() == (0, 1))
    await running.http.delete(f"/jobs/{(await running.newest()).id}")
    with pytest.raises(openai.ConflictError) as caught:
        await calling
    assert caught.value.code == "cancelled"
    assert len((await running.service.store.page(tenant=None, limit=10)).jobs) == 1
