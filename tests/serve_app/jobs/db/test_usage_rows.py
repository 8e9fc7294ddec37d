"""What tenants used is counted when jobs end, day by day, by every store of a database."""

from datetime import date, timedelta

import pytest

from serve_app.errors import StaleLease
from serve_app.jobs.db.store import JobStore
from serve_app.jobs.db.usage_rows import Usage
from serve_app.jobs.job import Job, JobProgress
from tests.serve_app.clock import Clock

DAY_S = 86_400


async def claimed(store: JobStore, tenant: str = "alice") -> Job:
    job = (await store.create({}, tenant=tenant, max_queued=9))[0]
    running = await store.claim(job.id, owner="me", lease_s=9, max_attempts=1)
    assert running is not None
    return running


async def rows(store: JobStore, tenant: str | None = None) -> list[Usage]:
    return [*await store.usage.days(tenant=tenant, since=date.min, until=date.max)]


async def test_each_end_counts_on_its_day(store: JobStore, other_store: JobStore, clock: Clock) -> None:
    today = clock().date()
    for use, end in ((store, "complete"), (other_store, "block"), (store, "fail"), (other_store, "cancelled")):
        job = await claimed(use)
        at = JobProgress(20, 20, 2, 1.5)
        match end:
            case "complete":
                await use.complete(job.id, job.fence, {}, at)
            case "block":
                await use.block(job.id, job.fence, {}, at)
            case "fail":
                await use.fail(job.id, job.fence, code="x", message="x", at=at)
            case _:
                await use.cancelled(job.id, job.fence, at)
    job = await claimed(store, "bob")
    clock.forward(DAY_S)
    await store.complete(job.id, job.fence, {}, JobProgress(20, 20, 1, 7.0))
    with pytest.raises(StaleLease):
        await store.complete(job.id, job.fence, {}, JobProgress(20, 20, 1, 7.0))
    tomorrow = today + timedelta(days=1)
    assert await rows(store) == [Usage("alice", today, 6.0, 4), Usage("bob", tomorrow, 7.0, 1)]
    assert await rows(store, "bob") == [Usage("bob", tomorrow, 7.0, 1)]
    assert await store.usage.days(tenant=None, since=today, until=today) == (Usage("alice", today, 6.0, 4),)


async def test_an_attempt_that_died_with_its_owner_is_charged_to_nobody(store: JobStore, clock: Clock) -> None:
    job = await claimed(store)
    await store.progress({job.id: job.fence}, {job.id: JobProgress(5, 20, 0, 90.0)})
    clock.forward(10)
    [failed] = await store.settle_abandoned(1)
    assert (failed.error_code, failed.device_s) == ("attempts_exhausted", 0.0)
    assert await rows(store) == []


async def test_a_job_that_waits_costs_nothing(store: JobStore) -> None:
    job = (await store.create({}, tenant="alice", max_queued=9))[0]
    await store.cancel(job.id)
    assert await rows(store) == []


async def test_refusals_are_added_up(store: JobStore, other_store: JobStore, clock: Clock) -> None:
    today = clock().date()
    for use, tenant in ((store, "alice"), (store, "alice"), (other_store, "alice"), (other_store, "bob")):
        use.usage.refused(tenant)
    clock.forward(DAY_S)
    store.usage.refused("bob")
    for _ in range(2):  # written once
        for use in (store, other_store):
            await use.usage.keep_refusals()
    tomorrow = today + timedelta(days=1)
    assert await rows(store) == [
        Usage("alice", today, refusals=3),
        Usage("bob", today, refusals=1),
        Usage("bob", tomorrow, refusals=1),
    ]
