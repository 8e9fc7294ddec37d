"""What keys spend of the device is remembered, by every store of a database, for as long as their quotas look back."""

from typing import Any

import pytest
from sqlalchemy import func, select

from deployments.engine.errors import InvalidRequest
from serve_app.errors import QuotaExceeded
from serve_app.jobs.db.queue_limits import Demand, Quota
from serve_app.jobs.db.schema import spent
from serve_app.jobs.db.store import JobStore
from serve_app.jobs.job import Job, JobProgress
from tests.serve_app.clock import Clock

HOUR = Quota(100.0, 3_600)


async def make(store: JobStore, work_s: float | None = 10.0, key_id: str = "alice", *quotas: Quota) -> Job:
    demand = Demand(work_s=work_s, key_id=key_id, quotas=quotas or (HOUR,))
    return (await store.create({}, tenant=key_id, max_queued=1000, demand=demand))[0]


async def spend(store: JobStore, seconds: float, key_id: str = "alice", end: str = "complete") -> None:
    """A job that takes so much of the device, whatever was expected."""
    job = (await store.create({}, max_queued=1000, demand=Demand(key_id=key_id)))[0]
    claimed = await store.claim(job.id, owner="me", lease_s=9, max_attempts=9)
    assert claimed is not None
    at = JobProgress(20, 20, 1, seconds)
    match end:
        case "fail":
            await store.fail(job.id, claimed.fence, code="x", message="x", at=at)
        case "cancelled":
            await store.cancelled(job.id, claimed.fence, at)
        case _:
            await store.complete(job.id, claimed.fence, {}, at)


async def refused(store: JobStore, *asked: Any) -> int:
    with pytest.raises(QuotaExceeded) as caught:
        await make(store, *asked)
    return caught.value.retry_after_s


@pytest.mark.parametrize("end", ["complete", "fail", "cancelled"])
async def test_what_a_job_took_is_its_key_s_however_it_ended(store: JobStore, other_store: JobStore, end: str) -> None:
    await spend(store, 60.0, end=end)
    await spend(store, 35.0, end=end)
    await refused(other_store, 6.0)
    await make(other_store, 5.0)
    await make(other_store, 50.0, "bob")


async def test_unfinished_jobs_count_as_they_are_expected(store: JobStore) -> None:
    first = await make(store, 70.0)
    assert await refused(store, 40.0) == 3_600
    await store.cancel(first.id)
    await make(store, 40.0)


async def test_time_gives_it_back_bit_by_bit(store: JobStore, clock: Clock) -> None:
    await spend(store, 60.0)
    clock.forward(600)
    await spend(store, 30.0)
    clock.forward(600)
    assert await refused(store, 20.0) == 2_400, "an hour after the first 60"
    assert await refused(store, 80.0) == 3_000
    clock.forward(2_399)
    await refused(store, 20.0)
    clock.forward(1)
    await make(store, 20.0)
    rows = select(func.count()).select_from(spent)
    assert await store._database.read(lambda connection: connection.scalar(rows)) == 1, "the rest is forgotten"


async def test_every_quota_holds(store: JobStore, clock: Clock) -> None:
    both = (HOUR, Quota(150.0, 86_400))
    await spend(store, 90.0)
    clock.forward(3_660)
    await make(store, 60.0, "alice", *both)
    assert await refused(store, 5.0, "alice", *both) == 86_400 - 3_660


async def test_what_no_quota_could_ever_hold_is_no_matter_of_waiting(store: JobStore) -> None:
    with pytest.raises(InvalidRequest):
        await make(store, 101.0)


async def test_where_nobody_knows_there_must_be_something_left(store: JobStore) -> None:
    await spend(store, 99.0)
    await make(store, None)
    await spend(store, 1.0)
    await refused(store, None)


async def test_what_died_with_its_owner_is_not_charged(store: JobStore, clock: Clock) -> None:
    job = await make(store, 10.0)
    first = await store.claim(job.id, owner="dead", lease_s=1, max_attempts=9)
    assert first is not None
    await store.progress({job.id: first.fence}, {job.id: JobProgress(5, 20, 0, 90.0)})
    clock.forward(2)
    again = await store.claim(job.id, owner="me", lease_s=1, max_attempts=9)
    assert again is not None
    assert again.device_s == 0.0
    await store.complete(job.id, again.fence, {}, JobProgress(20, 20, 1, 10.0))
    await make(store, 90.0)
