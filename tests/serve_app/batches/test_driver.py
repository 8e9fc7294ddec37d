"""Who drives a batch, and when it changes hands."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest

from serve_app.batches.batch import Batch, BatchState
from serve_app.config.settings import Settings
from serve_app.jobs.db.store import JobStore
from serve_app.jobs.job import utc_now
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front, until


@pytest.fixture
async def fronts(raw_settings: dict[str, Any], stages: Stages) -> AsyncIterator[list[Front]]:
    raw_settings["jobs"] |= {"heartbeat_s": 0.1, "lease_s": 60.0}
    raw_settings["batches"] = {"poll_s": 0.05, "in_flight": 4}
    settings = Settings.model_validate(raw_settings)
    async with AsyncExitStack() as both:
        yield [await both.enter_async_context(front(settings, stages, owner=name)) for name in ("one", "other")]


async def created(one: Front, prompt: str, cells: int = 12) -> str:
    axis = {"field": "seed", "values": [2 * number for number in range(cells)]}
    body = {"request": {"prompt": prompt, "steps": 10}, "axes": [axis]}
    batch_id: str = (await one.http.post("/batches", json=body)).raise_for_status().json()["batch_id"]
    return batch_id


async def when(one: Front, batch_id: str, *states: BatchState) -> Batch:
    async with asyncio.timeout(30):
        while (batch := await one.service.store.batches.get(batch_id)).state not in states:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return batch


async def test_a_router_that_ends_hands_its_batches_over_at_once(fronts: list[Front]) -> None:
    one, other = fronts
    await one.batches.start()
    batch_id = await created(one, "a slow circle")
    batch = await when(one, batch_id, BatchState.IN_PROGRESS)
    assert (batch.owner, batch.fence) == ("one", 1)
    await until(lambda: one.service.runner.depth() != (0, 0))
    await one.batches.stop()
    assert (await one.service.store.batches.get(batch_id)).owner is None
    await other.batches.start()
    batch = await when(other, batch_id, BatchState.COMPLETED)
    assert (batch.fence, batch.completed, batch.failed) == (2, 12, 0)
    assert len((await one.service.store.page(tenant=None, limit=100)).jobs) == 12


async def test_a_batch_that_another_has_taken_is_let_go(fronts: list[Front]) -> None:
    one, other = fronts
    await one.batches.start()
    batch_id = await created(one, "endless")
    await when(one, batch_id, BatchState.IN_PROGRESS)
    # one for whom the lease has ended
    later = JobStore(one.service.settings.jobs.database_url, lambda: utc_now() + timedelta(seconds=120))
    await later.open()
    [taken] = await later.batches.claim(owner="other", lease_s=600, limit=9)
    await later.close()
    await until(lambda: not one.batches._held)
    one.batches.check()
    assert await other.service.store.batches.get(batch_id) == taken


async def test_a_cancel_by_another_router_is_learned_of(fronts: list[Front]) -> None:
    one, other = fronts
    await one.batches.start()
    await one.maintenance.start()
    batch_id = await created(one, "endless")
    await until(lambda: one.service.runner.depth()[1] == 4)
    assert (await other.http.delete(f"/batches/{batch_id}")).json()["status"] == "cancelling"
    batch = await when(one, batch_id, BatchState.CANCELLED)
    assert batch.fence == 1
    await one.maintenance.stop()


async def test_a_batch_whose_input_is_gone_fails(fronts: list[Front]) -> None:
    one = fronts[0]
    batch_id = await created(one, "a red circle")
    batch = await one.service.store.batches.get(batch_id)
    await one.service.images.delete_job(batch.input_file)
    await one.batches.start()
    batch = await when(one, batch_id, BatchState.FAILED)
    assert batch.problems == [{"code": "unknown_file", "message": "the file's contents are gone"}]
    one.batches.check()
