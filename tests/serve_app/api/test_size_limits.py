"""An image that no stage has memory for is refused at the door, in every dialect's own form, and makes no job."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.dispatch import Dispatch
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import EngineSettings
from deployments.engine.engine import Engine
from deployments.engine.memory.limits import LargestSizes
from deployments.engine.types import Conditioning, DenoiseRequest, Event
from deployments.replica import StageDescription
from serve_app.config.settings import Settings
from serve_app.stages.readiness import StageState
from tests.serve_app.front import Front, front, handle_of, stand_ins
from tests.serve_app.stand_in_stages import describe

# of the tiny SD1.5 and its images: 128 x 128 do, 512 x 512 don't
MEMORY_GIB = 12 / 1024


class SmallStage:
    """SD15 without a cluster: a real engine on a tiny checkpoint, with little memory."""

    def __init__(self, source: str) -> None:
        settings = EngineSettings(device="cpu", cpu_threads=1, memory_gib=MEMORY_GIB, max_lanes=1)
        self._engine = Engine(settings, {"demo-sd15": CheckpointSpec(family="sd15", source=source)})
        self._engine.start()

    async def denoise(
        self, request: DenoiseRequest, conditioning: Conditioning, _dispatch: Dispatch | None = None
    ) -> AsyncIterator[Event]:
        async for event in self._engine.stream(request, conditioning):
            yield event

    async def describe(self) -> StageDescription:
        return replace(describe("SD15"), largest_sizes=self._engine.largest_sizes())

    def __del__(self) -> None:
        self._engine.stop()


@pytest.fixture
def small(tiny_sd15: Path) -> Any:
    return handle_of(SmallStage, "SD15", str(tiny_sd15))


def ready(description: StageDescription) -> Mapping[str, StageState]:
    return {description.name: StageState("ready", None, 1, description)}


@pytest.fixture
async def informed(settings: Settings, small: Any) -> AsyncIterator[Front]:
    """A front that the stage has told what it has room for."""
    described: StageDescription = await small.describe.remote()
    async with front(settings, replace(stand_ins(), denoisers={"sd15": small}), ready(described)) as one:
        yield one


async def jobs(one: Front) -> int:
    return len((await one.service.store.page(tenant=None, limit=10)).jobs)


async def test_every_dialect_names_its_own_field(informed: Front) -> None:
    async def refusal(path: str, body: dict[str, Any]) -> httpx.Response:
        return await informed.http.post(path, json=body)

    native = await refusal("/generate", {"prompt": "x", "width": 384, "height": 512})
    assert native.status_code == 422
    error = native.json()["error"]
    assert (error["code"], error["field"]) == ("does_not_fit", "height")
    assert error["message"].startswith("height is 512: an image of 384 x 512 doesn't fit the memory")
    assert "at most" in error["message"]

    openai = await refusal("/v1/images/generations", {"prompt": "x", "size": "512x512"})
    assert (openai.status_code, openai.json()["error"]["param"]) == (400, "size")
    assert openai.headers["x-should-retry"] == "false"

    a1111 = await refusal("/sdapi/v1/txt2img", {"prompt": "x", "width": 512, "height": 256, "steps": 20})
    assert (a1111.status_code, a1111.json()["error"], a1111.json()["body"]) == (422, "does_not_fit", "width")

    body = {"inputs": "x", "parameters": {"width": 512, "height": 512}}
    hugging_face = await refusal("/models/demo-sd15", body)
    assert (hugging_face.status_code, hugging_face.json()["error_type"]) == (422, "does_not_fit")
    assert await jobs(informed) == 0


async def test_where_nobody_has_told_the_stage_refuses_and_the_job_says_so(settings: Settings, small: Any) -> None:
    async with front(settings, replace(stand_ins(), denoisers={"sd15": small})) as one:
        body = (await one.generate(width=512, height=512)).json()
        assert body["status"] == "failed"
        assert body["error"]["code"] == "does_not_fit"
        assert "512 x 512" in body["error"]["message"]


async def test_what_is_known_of_a_stage_that_sleeps_is_kept(settings: Settings, stages: Any) -> None:
    sizes = LargestSizes(unguided=512 * 512, guided=256 * 256, reproducible=256 * 256, decoded=512 * 512)
    states = dict(ready(replace(describe("SD15"), largest_sizes={"demo-sd15": sizes})))
    async with front(settings, stages, states) as one:
        assert (await one.generate(width=512, height=512)).status_code == 422
        states["SD15"] = StageState("asleep", None, 0, None)
        await one.service.checks._describe()
        assert (await one.generate(width=512, height=512)).status_code == 422
        assert (await one.generate(width=512, height=512, guidance_scale=1.0)).status_code == 200
        assert (await one.generate(width=256, height=256)).status_code == 200


async def test_a_stage_that_hands_its_latents_over_needs_no_room_to_decode(settings: Settings, stages: Any) -> None:
    plenty = 512 * 512
    base = LargestSizes(unguided=plenty, guided=plenty, reproducible=plenty, decoded=0)
    refiner = LargestSizes(unguided=plenty, guided=plenty, reproducible=plenty, decoded=plenty)
    known = {"demo-sdxl": base, "demo-sdxl-refiner": refiner}
    async with front(settings, stages, ready(replace(describe("SDXLBase"), largest_sizes=known))) as one:
        assert (await one.generate(model="demo-sdxl", steps=10)).status_code == 200
        alone = await one.generate(model="demo-sdxl", steps=10, refiner=False)
        assert (alone.status_code, alone.json()["error"]["field"]) == (422, "model")
