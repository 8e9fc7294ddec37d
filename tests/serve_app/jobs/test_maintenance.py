"""Jobs of the dead are taken up, wishes from other processes are heard, stale attempts are dropped."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from typing import Any

from serve_app.config.settings import Settings
from serve_app.jobs.db.store import JobStore
from serve_app.jobs.job import Job, utc_now
from serve_app.jobs.states import JobState
from serve_app.planning.resolve import resolve
from serve_app.schemas.generation_request import GenerationRequest
from serve_app.schemas.validation import validated
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front, until


async def stepping(one: Front, prompt: str = "endless") -> str:
    """A job that has taken a step."""
    body = (await one.generate(prompt, wait=None)).json()
    job_id: str = body["job_id"]
    await until(lambda: one.service.hub.latest(job_id) is not None)
    return job_id


async def abandoned(settings: Settings, attempts: int = 1, **fields: Any) -> Job:
    """A job whose owner was killed: claimed some time ago, and no sign of life since."""
    then = utc_now() - timedelta(hours=1)
    store = JobStore(settings.jobs.database_url, clock=lambda: then)
    await store.open()
    request = resolve(
        validated(GenerationRequest, {"prompt": "a red circle", **fields}), settings, drawn_seed=2
    ).generation
    # an hour ago the deadline was far away
    job = (await store.create({**request.model_dump(mode="json"), "timeout_s": 7200.0}, max_queued=100))[0]
    for _ in range(attempts):
        claimed = await store.claim(job.id, owner="dead", lease_s=-1, max_attempts=100)
        assert claimed is not None
    await store.close()
    return replace(job, state=JobState.RUNNING)


async def test_a_job_of_a_killed_owner_is_run_again_and_keeps_its_place(
    settings: Settings, running: Front, stages: Stages
) -> None:
    job = await abandoned(settings)
    await running.maintenance.beat()
    ended = await running.service.wait(job, 20)
    assert (ended.state, ended.fence, ended.attempts) == (JobState.COMPLETE, 2, 2)
    [lane] = [one for one in await stages.denoisers["sd15"].lanes_asked.remote() if one.lane_id.startswith(job.id)]
    assert 3_600 <= lane.waited_s < 4_000  # it was accepted an hour ago


async def test_a_job_that_kills_its_owners_is_given_up(settings: Settings, running: Front) -> None:
    job = await abandoned(settings, attempts=settings.jobs.max_attempts)
    await running.maintenance.beat()
    ended = await running.service.store.get(job.id)
    assert (ended.state, ended.error_code) == (JobState.FAILED, "attempts_exhausted")


async def test_a_job_of_a_model_that_is_gone_fails(
    raw_settings: dict[str, Any], settings: Settings, stages: Stages
) -> None:
    job = await abandoned(settings, model="demo-sdxl")
    del raw_settings["models"]["demo-sdxl"]
    raw_settings["jobs"] |= {"lease_s": 0.2, "heartbeat_s": 0.1}
    async with front(Settings.model_validate(raw_settings), stages) as other:
        ended = job
        async with asyncio.timeout(10):
            while not ended.state.terminal:
                await other.maintenance.beat()
                ended = await other.service.store.get(job.id)
        assert (ended.state, ended.error_code) == (JobState.FAILED, "unknown_model")
        view = (await other.http.get(f"/result/{job.id}")).json()
        assert view["error"]["code"] == "unknown_model"


async def test_a_job_that_only_another_router_can_run_is_left_to_it(
    raw_settings: dict[str, Any], settings: Settings, stages: Stages
) -> None:
    """As in an upgrade, where the routers of before still run: of other models, or with fewer fields of a job."""
    job = await abandoned(settings, model="demo-sdxl")
    later = JobStore(settings.jobs.database_url)
    await later.open()
    newer, _ = await later.create({**job.request, "field_of_later": 1}, max_queued=100)
    await later.close()
    before = dict(raw_settings, models={**raw_settings["models"]})
    del before["models"]["demo-sdxl"]
    async with (
        front(Settings.model_validate(before), stages, owner="before") as old,
        front(settings, stages, owner="new") as new,
    ):
        for _ in range(3):
            await old.maintenance.beat()
        assert (await old.service.store.get(job.id)).fence == 1
        assert (await old.service.store.get(newer.id)).state is JobState.QUEUED
        await new.maintenance.beat()
        assert (await new.service.wait(job, 20)).state is JobState.COMPLETE
        assert (await new.service.store.get(newer.id)).state is JobState.QUEUED  # as another that is too old for it


async def test_a_cancel_through_another_router_is_heard(settings: Settings, stages: Stages) -> None:
    async with AsyncExitStack() as both:
        one = await both.enter_async_context(front(settings, stages, owner="one"))
        other = await both.enter_async_context(front(settings, stages, owner="other"))
        job_id = await stepping(one)
        async with asyncio.timeout(10):
            while (await other.http.get(f"/result/{job_id}")).json()["status"] != "running":  # noqa: ASYNC110
                await asyncio.sleep(0.02)  # the store of another process
        await other.service.store.cancel(job_id)
        await one.maintenance.beat()
        assert (await other.service.wait(await other.service.store.get(job_id), 20)).state is JobState.CANCELLED
        assert [name for name, _ in await other.events(job_id)] == ["cancelled"]


async def test_an_attempt_that_lost_its_lease_is_dropped(settings: Settings, running: Front) -> None:
    job_id = await stepping(running)
    later = JobStore(settings.jobs.database_url, clock=lambda: utc_now() + timedelta(hours=1))
    claimed = await later.claim(job_id, owner="another", lease_s=60, max_attempts=9)
    assert claimed is not None
    await running.maintenance.beat()
    await until(lambda: not running.service.runner.runs(job_id))
    job = await later.get(job_id)
    assert (job.state, job.owner, job.fence) == (JobState.RUNNING, "another", claimed.fence)
    await later.close()


async def test_beats_keep_the_lease(running: Front) -> None:
    job_id = await stepping(running)
    before = (await running.service.store.get(job_id)).lease_until
    await running.maintenance.beat()
    after = (await running.service.store.get(job_id)).lease_until
    assert before is not None
    assert after is not None
    assert after > before


async def test_a_router_that_ends_hands_its_jobs_back_and_takes_no_more(running: Front) -> None:
    job_id = await stepping(running)
    await running.service.runner.drain(0)
    await running.maintenance.beat()
    job = await running.service.store.get(job_id)
    assert (job.state, job.attempts) == (JobState.QUEUED, 0)
    assert not running.service.runner.runs(job_id)


async def test_a_router_that_starts_anew_knows_what_work_costs(settings: Settings, stages: Stages) -> None:
    async with front(settings, stages) as one:
        assert (await one.generate()).status_code == 200
        assert (await one.generate("endless", wait=None)).json()["eta_seconds"] is not None
        await one.maintenance.beat()
    async with front(settings, stages) as other:
        await other.maintenance.start()
        assert (await other.generate("endless", wait=None)).json()["eta_seconds"] is not None
        await other.maintenance.stop()


async def test_what_was_learned_last_is_kept_at_the_end(settings: Settings, running: Front) -> None:
    assert (await running.generate()).status_code == 200
    assert await running.service.store.costs.load() == ()
    await running.maintenance.stop()
    assert {(cost.stage, cost.sampler) for cost in await running.service.store.costs.load()} >= {("sd15", "")}
