"""A job goes on in another router from where its images were, whether its own one ended or was killed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from serve_app.config.settings import Settings
from serve_app.jobs.states import JobState
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front, until


@pytest.fixture
def settings(raw_settings: dict[str, Any]) -> Settings:
    raw_settings["jobs"] |= {"state_every": 1, "state_interval_s": 0.01, "lease_s": 0.2, "heartbeat_s": 0.1}
    return Settings.model_validate(raw_settings)


@pytest.fixture
async def fronts(stages: Stages, settings: Settings) -> AsyncIterator[list[Front]]:
    async with AsyncExitStack() as both:
        yield [await both.enter_async_context(front(settings, stages, owner=name)) for name in ("one", "other")]


async def hanging(one: Front, prompt: str, **fields: Any) -> str:
    """A job one of whose lanes takes no further step."""
    job_id: str = (await one.generate(prompt, wait=None, **fields)).json()["job_id"]
    await until(lambda: one.service.hub.latest(job_id) is not None)
    return job_id


async def begun(stages: Stages, stage: str, job_id: str) -> list[int]:
    """The steps that a job's lanes in a stage went on from, in the order of their beginning."""
    lanes: list[tuple[str, int]] = await stages.denoisers[stage].lanes_begun.remote(job_id)
    return [step for _, step in lanes]


async def keeps(one: Front, job_id: str, wanted: set[tuple[int, int]]) -> None:
    """Wait until this is in the store."""
    async with asyncio.timeout(10):
        while set(await one.service.store.kept(job_id)) != wanted:
            pass


async def completed(other: Front, job_id: str) -> None:
    """`other` adopts the job and ends it; nothing half drawn is left."""
    async with asyncio.timeout(10):
        while not other.service.runner.runs(job_id):
            await other.maintenance.beat()
    job = await other.service.wait(await other.service.store.get(job_id), 20)
    assert (job.state, job.step) == (JobState.COMPLETE, job.steps)
    assert await other.service.store.kept(job_id) == {}


async def test_a_router_that_ends_hands_over_where_its_images_are(fronts: list[Front], stages: Stages) -> None:
    one, other = fronts
    job_id = await hanging(one, "endless once", seed=2)
    await one.service.runner.drain(0)
    assert set(await other.service.store.kept(job_id)) == {(0, 0)}
    await completed(other, job_id)
    assert await begun(stages, "sd15", job_id) == [0, 1]


async def test_a_killed_router_has_kept_them(fronts: list[Front], stages: Stages) -> None:
    one, other = fronts
    job_id = await hanging(one, "endless once", seed=4)
    await keeps(other, job_id, {(0, 0)})
    one.service.runner.drop([job_id])  # nothing is written any more
    await until(lambda: not one.service.runner.runs(job_id))
    await completed(other, job_id)
    assert await begun(stages, "sd15", job_id) == [0, 1]


async def test_a_base_that_has_ended_is_not_run_again(fronts: list[Front], stages: Stages) -> None:
    one, other = fronts
    job_id = await hanging(one, "endless once refining", model="demo-sdxl", seed=6)
    await keeps(other, job_id, {(0, 0), (0, 1)})
    await one.service.runner.drain(0)
    await completed(other, job_id)
    assert await begun(stages, "sdxl_base", job_id) == [0]
    assert await begun(stages, "sdxl_refiner", job_id) == [0, 1]
    [image] = (await other.service.store.get(job_id)).result["images"]  # type: ignore[index]
    assert (image["manifest"]["model"]["name"], image["manifest"]["refiner"]["name"]) == (
        "demo-sdxl",
        "demo-sdxl-refiner",
    )


async def test_a_job_whose_stage_goes_with_its_router_is_handed_back(fronts: list[Front]) -> None:
    one, _ = fronts
    job_id = await hanging(one, "always lost", seed=8)
    await one.service.runner.drain(60)
    job = await one.service.store.get(job_id)
    assert (job.state, job.attempts) == (JobState.QUEUED, 0)
    assert set(await one.service.store.kept(job_id)) == {(0, 0)}


async def test_without_states_a_job_begins_anew(raw_settings: dict[str, Any], stages: Stages) -> None:
    raw_settings["jobs"] |= {"state_every": 1, "state_max_bytes": 0}
    async with front(Settings.model_validate(raw_settings), stages) as one:
        job_id = await hanging(one, "endless once", seed=10)
        await one.service.runner.drain(0)
        assert await one.service.store.kept(job_id) == {}
