"""From an HTTP prompt to an image, and all that may happen in between, over real Serve and real (tiny) models."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from ray import serve

from tests.e2e.service import Service
from tests.serve_app.images.manifest_files import read_manifest
from tests.serve_app.images.pictures import sent, square
from tests.serve_app.provenance.png_chunks import without_credentials

pytestmark = pytest.mark.ray


@pytest.fixture
async def http(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service.url, timeout=120) as client:
        yield client


async def generate(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await http.post("/generate", json={"prompt": "a red circle", **fields}, headers={"prefer": "wait=100"})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def test_a_prompt_becomes_an_image(http: httpx.AsyncClient) -> None:
    accepted = await http.post("/generate", json={"prompt": "a red circle"})
    assert (accepted.status_code, accepted.json()["status"]) == (202, "queued")
    events = [event async for event in stream(http, accepted.json()["links"]["events"])]
    assert events[0][0] == "queued"
    assert events[-1][0] == "complete"


async def stream(http: httpx.AsyncClient, path: str) -> AsyncIterator[tuple[str, Any]]:
    async with http.stream("GET", path) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        event = ""
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield event, json.loads(line.removeprefix("data: "))


async def test_a_controlnet_steers(http: httpx.AsyncClient) -> None:
    asked = {"model": "demo-sd15", "seed": 5, "reproducible": True, "width": 128, "height": 128}
    control = {"model": "demo-edges", "image": sent(square(128, 128, 32, 32, 64)), "preprocessor": "canny"}
    plain, steered = [await generate(http, **asked, controlnets=chosen) for chosen in ([], [control])]
    files = [(await http.get(body["image_url"])).content for body in (plain, steered)]
    assert files[0] != files[1]
    manifest = read_manifest(files[1])
    assert manifest is not None
    assert [one.name for one in manifest.controlnets] == ["demo-edges"]


async def test_a_reference_is_taken_up(http: httpx.AsyncClient) -> None:
    asked = {"model": "tiny-sd15", "seed": 5, "reproducible": True}
    references = [{"model": "tiny", "image": sent(square(96, 64, 16, 16, 32))}]
    files = []
    for shown in ([], references, references, [references[0] | {"image": sent(square(64, 64, 0, 0, 32))}]):
        body = await generate(http, **asked, references=shown)
        files.append(without_credentials((await http.get(body["image_url"])).content))
    assert files[1] == files[2]
    assert len(set(files)) == 3
    manifest = read_manifest(files[1])
    assert manifest is not None
    assert [one.name for one in manifest.references] == ["tiny"]


@pytest.mark.parametrize("model", ["tiny-sd15", "tiny-sd15-variant", "tiny-sdxl"])
async def test_the_same_seed_is_the_same_file(http: httpx.AsyncClient, service: Service, model: str) -> None:
    files = []
    for _ in range(2):
        body = await generate(http, model=model, seed=5, reproducible=True)
        files.append((await http.get(body["image_url"])).content)
    assert without_credentials(files[0]) == without_credentials(files[1])
    manifest = read_manifest(files[0])
    assert manifest is not None
    assert manifest.model.name == model
    assert len(manifest.model.hash) == 64
    assert (manifest.refiner is not None) == (model == "tiny-sdxl")
    assert manifest.reproducibility.startswith("bucket:")


async def test_many_at_once(http: httpx.AsyncClient) -> None:
    bodies = await asyncio.gather(*(generate(http, prompt=f"shape {index}", seed=index, n=2) for index in range(8)))
    assert all(body["status"] == "complete" for body in bodies), bodies


async def test_an_unknown_thing_is_refused_by_the_real_proxy_too(http: httpx.AsyncClient) -> None:
    response = await http.post("/generate", json={"prompt": "x", "steps": 5000})
    assert (response.status_code, response.json()["error"]["field"]) == (422, "steps")
    response = await http.get("/nope", headers={"x-request-id": "mine"})
    assert (response.status_code, response.headers.get_list("x-request-id")) == (404, ["mine"])
    big = await http.post("/generate", content=b" " * (33 << 20), headers={"content-type": "application/json"})
    assert big.status_code == 413


async def test_ready_describes_every_stage(http: httpx.AsyncClient) -> None:
    response = await http.get("/ready")
    body = response.json()
    assert response.status_code == 200, body
    assert set(body["stages"]) == {"TextEncoder", "SD15", "SDXLBase", "SDXLRefiner", "NSFWClassifier", "Detector"}


async def test_cancel_frees_the_lane(http: httpx.AsyncClient) -> None:
    slow = {"prompt": "slow", "steps": 50, "n": 4, "width": 256, "height": 256}
    accepted = (await http.post("/generate", json=slow)).json()
    async for event, _ in stream(http, accepted["links"]["events"]):
        if event == "progress":
            break
    cancelled = (await http.delete(accepted["links"]["cancel"])).json()
    assert cancelled["status"] == "cancelled"
    assert (await generate(http))["status"] == "complete"


async def test_a_client_that_goes_away_does_not_end_its_job(http: httpx.AsyncClient, service: Service) -> None:
    asked = {"prompt": "left alone", "steps": 20, "n": 2, "width": 128, "height": 128}
    client = asyncio.create_task(http.post("/generate", json=asked, headers={"prefer": "wait=60"}))
    async with asyncio.timeout(60):
        newest: dict[str, Any] = {}
        while newest.get("request", {}).get("prompt") != "left alone":
            newest = next(iter((await http.get("/jobs?limit=1")).json()["jobs"]), {})
    client.cancel()  # its connection is closed
    events = [event async for event, _ in stream(http, newest["links"]["events"])]
    assert events[-1] == "complete"


async def test_previews(http: httpx.AsyncClient) -> None:
    accepted = (await http.post("/generate", json={"prompt": "x", "preview": True, "steps": 20})).json()
    events = [data async for event, data in stream(http, accepted["links"]["events"]) if event == "progress"]
    assert any(data.get("preview", "").startswith("data:image/jpeg;base64,") for data in events)


@pytest.mark.parametrize(
    ("stage", "model"),
    [("SD15", "tiny-sd15"), ("SDXLBase", "tiny-sdxl"), ("SDXLRefiner", "tiny-sdxl"), ("TextEncoder", "tiny-sd15")],
)
async def test_a_stage_that_dies_is_run_again_with_the_same_image(
    http: httpx.AsyncClient, service: Service, stage: str, model: str
) -> None:
    fields = {"model": model, "seed": 9, "steps": 20, "reproducible": True}
    expected = await generate(http, **fields)
    accepted = (await http.post("/generate", json={"prompt": "a red circle", **fields})).json()
    description = await serve.get_deployment_handle(stage, service.app).describe.remote()
    kill(stage, description.replica_id, service.app)
    events = [pair async for pair in stream(http, accepted["links"]["events"])]
    assert events[-1][0] == "complete", events[-1]
    again = (await http.get(events[-1][1]["image_url"])).content
    undisturbed = (await http.get(expected["image_url"])).content
    assert without_credentials(again) == without_credentials(undisturbed)
    await ready(http)


def kill(stage: str, replica_id: str, app: str) -> None:
    """As a crash would: at once, without a word."""
    import ray

    name = f"SERVE_REPLICA::{app}#{stage}#{replica_id}"
    ray.kill(ray.get_actor(name, namespace="serve"), no_restart=False)


async def ready(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(90):
        while (await http.get("/ready")).status_code != 200:  # noqa: ASYNC110  # another process's doing
            await asyncio.sleep(0.2)
