"""The bounds of the queue in device seconds: exact, in the order in which they are said, with an honest wait."""

import asyncio
from typing import Any

import pytest

from serve_app.errors import QueueFull, StartsTooLate, TenantQueueFull
from serve_app.jobs.db.queue_limits import Demand
from serve_app.jobs.db.store import JobStore
from serve_app.jobs.job import Job, JobProgress, QueueDepth


async def make(store: JobStore, tenant: str = "", max_queued: int = 1000, **demand: Any) -> Job:
    return (await store.create({}, tenant=tenant, max_queued=max_queued, demand=Demand(**demand)))[0]


async def test_a_job_keeps_what_it_was_expected_to_take(store: JobStore) -> None:
    job = await make(store, work_s=12.5)
    assert (job.work_s, job.device_s, job.key_id) == (12.5, 0.0, None)
    assert await store.get(job.id) == job
    assert (await make(store)).work_s is None


async def test_work_is_bounded_and_what_is_done_of_it_counts_no_longer(store: JobStore) -> None:
    first = await make(store, work_s=60.0, max_queued_s=100.0)
    with pytest.raises(QueueFull) as caught:
        await make(store, work_s=50.0, max_queued_s=100.0, rate=2.0)
    assert (type(caught.value), caught.value.retry_after_s) == (QueueFull, 5), "10 s too much, 2 s of it a second"
    await make(store, work_s=40.0, max_queued_s=100.0)
    running = await store.claim(first.id, owner="me", lease_s=9, max_attempts=3)
    assert running is not None
    await store.progress({first.id: running.fence}, {first.id: JobProgress(5, 20, 0, 15.0)})
    assert (await store.get(first.id)).device_s == 15.0
    with pytest.raises(QueueFull):
        await make(store, work_s=16.0, max_queued_s=100.0)
    await make(store, work_s=15.0, max_queued_s=100.0)
    await store.complete(first.id, running.fence, {})
    await make(store, work_s=45.0, max_queued_s=100.0)


async def test_a_job_that_is_more_than_the_bound_runs_alone(store: JobStore) -> None:
    await make(store, work_s=500.0, max_queued_s=100.0)
    with pytest.raises(QueueFull) as caught:
        await make(store, work_s=300.0, max_queued_s=100.0)
    assert caught.value.retry_after_s == 500, "as soon as the queue is empty"


async def test_a_tenant_s_bound_is_its_own(store: JobStore) -> None:
    limit = {"work_s": 60.0, "max_queued_s_per_tenant": 100.0, "max_queued_s": 1000.0, "tenant_rate": 0.5}
    await make(store, "a", **limit)
    with pytest.raises(TenantQueueFull) as caught:
        await make(store, "a", **limit)
    assert caught.value.retry_after_s == 40
    await make(store, "b", **limit)


async def test_what_would_start_too_late_is_refused(store: JobStore) -> None:
    with pytest.raises(StartsTooLate) as caught:
        await make(store, work_s=1.0, late_s=7.2)
    assert caught.value.retry_after_s == 8
    assert await store.depth() == QueueDepth(queued=0, running=0)


async def test_where_nobody_knows_numbers_alone_count(store: JobStore) -> None:
    limit = {"max_queued_s": 1.0, "max_queued_s_per_tenant": 1.0}
    for _ in range(3):
        await make(store, max_queued=3, **limit)
    with pytest.raises(QueueFull) as caught:
        await make(store, max_queued=3, **limit)
    assert caught.value.retry_after_s is None
    with pytest.raises(QueueFull) as caught:
        await make(store, max_queued=3, first_end_s=2.5, **limit)
    assert caught.value.retry_after_s == 3


async def test_fifty_at_once_in_two_stores_keep_the_bound(store: JobStore, other_store: JobStore) -> None:
    answers = await asyncio.gather(
        *(make((store, other_store)[index % 2], work_s=10.0, max_queued_s=100.0) for index in range(50)),
        return_exceptions=True,
    )
    assert sum(isinstance(answer, Job) for answer in answers) == 10
    assert sum(isinstance(answer, QueueFull) for answer in answers) == 40
