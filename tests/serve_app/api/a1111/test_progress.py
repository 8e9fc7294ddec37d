"""A1111's progress, interrupt and skip, each for the caller's own work; with webuiapi over real HTTP."""

import asyncio
import base64
import io
from typing import Any

import httpx
import pytest
from PIL import Image

from serve_app.config.settings import Settings
from serve_app.stages.client import Stages
from tests.serve_app.api.a1111.a1111_client import SMALL, call, drawing
from tests.serve_app.front import Front, front


async def test_progress(url: str, http: httpx.AsyncClient, running: Front) -> None:
    idle = await call(url, lambda api: api.get_progress())
    assert set(idle) == {"progress", "eta_relative", "state", "current_image", "textinfo"}
    assert set(idle["state"]) == {
        "skipped",
        "interrupted",
        "stopping_generation",
        "job",
        "job_count",
        "job_timestamp",
        "job_no",
        "sampling_step",
        "sampling_steps",
    }
    assert (idle["progress"], idle["state"]["job_count"], idle["current_image"]) == (0, 0, None)
    working = asyncio.create_task(http.post("/sdapi/v1/txt2img", json={"prompt": "endless", "steps": 10}))
    await drawing(running)
    busy = await call(url, lambda api: api.get_progress())
    assert busy["progress"] == 0.1
    assert (busy["state"]["job_count"], busy["state"]["sampling_step"], busy["state"]["sampling_steps"]) == (1, 1, 10)
    preview = Image.open(io.BytesIO(base64.b64decode(busy["current_image"], validate=True)))
    assert preview.size == (4, 4)
    assert max(abs(value - 1) for value in preview.getpixel((0, 0))) <= 1  # the stand-in's first preview
    without = (await http.get("/sdapi/v1/progress", params={"skip_current_image": True})).json()
    assert without["current_image"] is None
    await http.post("/sdapi/v1/interrupt")
    await working
    assert (await call(url, lambda api: api.get_progress()))["progress"] == 0


async def test_progress_before_the_first_step_is_not_zero(raw_settings: dict[str, Any], stages: Stages) -> None:
    async with front(Settings.model_validate(raw_settings), stages) as one:
        one.service.runner._draining = True  # it starts no job: this one waits
        working = asyncio.create_task(one.http.post("/sdapi/v1/txt2img", json={"prompt": "x"}))
        async with asyncio.timeout(10):
            # the job is stored before the caller's session knows it
            while not (progress := (await one.http.get("/sdapi/v1/progress")).json())["progress"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (progress["progress"], progress["current_image"]) == (0.01, None)
        await one.http.post("/sdapi/v1/interrupt")
        assert (await working).json()["images"] == []


async def test_interrupt_stops_the_caller_s_own_work_and_nobody_else_s(url: str, running: Front) -> None:
    def draw(name: str) -> asyncio.Task[Any]:
        who = {"username": name, "password": "x"}
        return asyncio.create_task(call(url, lambda api: api.txt2img(prompt="endless", **SMALL), **who))

    mine, mine_too, yours = draw("me"), draw("me"), draw("you")
    await drawing(running, jobs=3)
    await call(url, lambda api: api.interrupt())  # a third caller: stops nothing
    assert running.service.runner.depth() == (0, 3)
    assert await call(url, lambda api: api.interrupt(), username="me", password="x") == {}  # noqa: S106
    assert [(await one).images for one in (mine, mine_too)] == [[], []]
    assert running.service.runner.depth() == (0, 1)
    seen = await call(url, lambda api: api.get_progress(), username="you", password="x")  # noqa: S106
    assert (seen["state"]["job_count"], seen["state"]["interrupted"]) == (1, False)
    assert not yours.done()
    await call(url, lambda api: api.skip(), username="you", password="x")  # noqa: S106
    assert (await yours).images == []


async def test_skip_ends_the_oldest_request_alone(url: str, running: Front) -> None:
    first = asyncio.create_task(call(url, lambda api: api.txt2img(prompt="endless", **SMALL)))
    await drawing(running)
    second = asyncio.create_task(call(url, lambda api: api.txt2img(prompt="endless", **SMALL)))
    await drawing(running, jobs=2)
    assert await call(url, lambda api: api.skip()) is None
    assert (await first).images == []
    assert not second.done()
    assert (await call(url, lambda api: api.get_progress()))["state"]["skipped"] is True
    assert await call(url, lambda api: api.interrupt()) == {}
    await second


async def test_an_interrupt_of_nothing(url: str) -> None:
    assert await call(url, lambda api: (api.interrupt(), api.skip())) == ({}, None)


@pytest.mark.parametrize("authorization", ["", "Basic", "Basic Og==", "Bearer"])
async def test_an_empty_authorization_is_nobody_s(http: httpx.AsyncClient, authorization: str) -> None:
    await http.post("/sdapi/v1/options", json={"sd_model_checkpoint": "demo-sdxl"})
    options = await http.get("/sdapi/v1/options", headers={"authorization": authorization})
    assert options.json()["sd_model_checkpoint"] == "demo-sdxl"


async def test_tasks_by_their_own_ids(http: httpx.AsyncClient, running: Front) -> None:
    assert (await http.get("/internal/pending-tasks")).json() == {"size": 0, "tasks": []}
    body = {"prompt": "endless", "steps": 10, "force_task_id": "task(mine)"}
    working = asyncio.create_task(http.post("/sdapi/v1/txt2img", json=body))
    await drawing(running)
    assert (await http.get("/internal/pending-tasks")).json() == {"size": 1, "tasks": ["task(mine)"]}
    state = (await http.post("/internal/progress", json={"id_task": "task(mine)"})).json()
    assert (state["active"], state["queued"], state["completed"], state["progress"]) == (True, False, False, 0.1)
    assert state["live_preview"].startswith("data:image/jpeg;base64,")
    seen = {"id_task": "task(mine)", "id_live_preview": state["id_live_preview"]}
    assert (await http.post("/internal/progress", json=seen)).json()["live_preview"] is None
    other = (await http.post("/internal/progress", json=seen, headers={"authorization": "Basic eDp5"})).json()
    assert (other["active"], other["queued"], other["completed"]) == (False, False, False)
    await http.post("/sdapi/v1/interrupt")
    await working
    state = (await http.post("/internal/progress", json=seen)).json()
    assert (state["active"], state["completed"], state["progress"]) == (False, True, None)


async def test_a_client_that_goes_away_takes_its_job_along(http: httpx.AsyncClient, running: Front) -> None:
    await running.goes_with_its_client(http.post("/sdapi/v1/txt2img", json={"prompt": "endless"}, timeout=60))
    assert (await http.get("/sdapi/v1/progress")).json()["state"]["job_count"] == 0
