"""The clients' own packages against the whole service, a call each; all they may ask is in tests/serve_app/api."""

import asyncio
import base64
import io
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import httpx
import huggingface_hub.constants
import pytest
from huggingface_hub import InferenceClient
from openai import OpenAI
from PIL import Image
from webuiapi import WebUIApi

from tests.e2e.service import Service
from tests.serve_app.images.manifest_files import read_manifest

pytestmark = pytest.mark.ray


def test_openai(service: Service) -> None:
    with OpenAI(base_url=f"{service.url}/v1", api_key="none", timeout=120) as client:
        stream = client.images.generate(
            prompt="a red circle",
            model="tiny-sdxl",
            size="128x64",
            stream=True,
            partial_images=2,
            extra_body={"seed": 5, "steps": 20},
        )
        *partial, completed = list(stream)
    assert {event.type for event in partial} <= {"image_generation.partial_image"}
    assert completed.type == "image_generation.completed"
    data = base64.b64decode(completed.b64_json)
    assert Image.open(io.BytesIO(data)).size == (128, 64)
    manifest = read_manifest(data)
    assert manifest is not None
    assert (manifest.model.name, manifest.seed, manifest.refiner is not None) == ("tiny-sdxl", 5, True)


def test_openai_s_retry_finds_again_what_was_lost_under_load(service: Service) -> None:
    """The client waits 2.5 s a try, for a picture which others' work delays until the first try is over."""
    lost = Event()
    prompt, load = "asked for again", {"prompt": "others' work", "width": 256, "height": 256, "steps": 50, "n": 4}

    def tries(request: httpx.Request) -> None:
        if request.headers["x-stainless-retry-count"] != "0":
            lost.set()

    def works(http: httpx.Client) -> None:
        while not lost.is_set():
            links = http.post("/generate", json=load | {"priority": "interactive"}).json()["links"]
            while not lost.wait(0.2) and http.get(links["result"]).json()["status"] in ("queued", "running"):
                pass
            http.delete(links["cancel"])

    with (
        httpx.Client(base_url=service.url, timeout=120) as http,
        httpx.Client(event_hooks={"request": [tries]}) as counting,
        OpenAI(
            base_url=f"{service.url}/v1", api_key="none", timeout=2.5, max_retries=5, http_client=counting
        ) as client,
        ThreadPoolExecutor(6) as others,
    ):
        working = [others.submit(works, http) for _ in range(6)]
        try:
            answer = client.images.with_raw_response.generate(prompt=prompt, extra_body={"seed": 5, "steps": 50})
        finally:
            lost.set()
        for one in working:
            one.result()
        jobs = [job for job in http.get("/jobs?limit=100").json()["jobs"] if job["request"]["prompt"] == prompt]
    assert answer.retries_taken > 0
    assert answer.headers["idempotent-replayed"] == "true"
    assert [job["status"] for job in jobs] == ["complete"]
    [image] = answer.parse().data or []
    manifest = read_manifest(base64.b64decode(image.b64_json or ""))
    assert manifest is not None
    assert (manifest.prompt, manifest.seed) == (prompt, 5)


def test_automatic1111(service: Service) -> None:
    api = WebUIApi(baseurl=f"{service.url}/sdapi/v1")
    with api.session:
        fields: dict[str, Any] = {"seed": 5, "steps": 12, "width": 64, "height": 64}
        result = api.txt2img(prompt="a red circle", override_settings={"sd_model_checkpoint": "tiny-sd15"}, **fields)
        assert api.png_info(result.image).info == result.info["infotexts"][0]
    assert result.image.size == (64, 64)
    assert (result.info["sd_model_name"], result.info["all_seeds"]) == ("tiny-sd15", [5])
    assert len(result.info["sd_model_hash"]) == 10


async def test_automatic1111_interrupts_its_own_work(service: Service) -> None:
    """Also through Serve's proxy a caller is told from others by its credentials."""

    def client(name: str) -> WebUIApi:
        return WebUIApi(baseurl=f"{service.url}/sdapi/v1", username=name, password="x")  # noqa: S106

    mine, yours = client("me"), client("you")
    with mine.session, yours.session:
        size: dict[str, Any] = {"width": 256, "height": 256, "steps": 50}
        working = asyncio.create_task(asyncio.to_thread(mine.txt2img, prompt="slow", batch_size=4, **size))
        async with asyncio.timeout(120):
            while (await asyncio.to_thread(mine.get_progress))["state"]["sampling_step"] == 0:
                assert not working.done()
        assert (await asyncio.to_thread(yours.get_progress))["state"]["job_count"] == 0
        await asyncio.to_thread(yours.interrupt)
        assert not working.done()
        await asyncio.to_thread(mine.interrupt)
        assert (await working).images == []


def test_hugging_face(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # the tests are offline elsewhere
    with InferenceClient(model=f"{service.url}/models/tiny-sd15-variant", timeout=120) as client:
        image = client.text_to_image("a red circle", seed=5, width=64, height=128, num_inference_steps=12)
    assert (image.format, image.size) == ("PNG", (64, 128))
    huggingface_hub.close_session()
