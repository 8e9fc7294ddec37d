import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from serve_app.errors import QueueFull, StaleLease, UnknownJob
from serve_app.jobs.db import leases
from serve_app.jobs.db.store import JobStore
from serve_app.jobs.job import Job, JobProgress, QueueDepth, is_job_id
from serve_app.jobs.states import JobState
from tests.serve_app.clock import Clock

LEASE_S = 30.0
REQUEST: dict[str, Any] = {"prompt": "a large red circle", "seed": 2**63 - 1, "guidance_scale": 7.1, "refiner": None}


async def make(store: JobStore, tenant: str = "", max_queued: int = 1000) -> Job:
    return (await store.create(REQUEST, tenant=tenant, max_queued=max_queued))[0]


async def claim(store: JobStore, job: Job, owner: str = "me", max_attempts: int = 3) -> Job:
    claimed = await store.claim(job.id, owner=owner, lease_s=LEASE_S, max_attempts=max_attempts)
    assert claimed is not None
    return claimed


async def test_a_new_job_is_queued_and_reads_back_as_it_was_written(store: JobStore, clock: Clock) -> None:
    job = await make(store, tenant="a")
    assert is_job_id(job.id)
    assert job.state is JobState.QUEUED
    assert (job.tenant, job.request, job.fence, job.attempts, job.owner) == ("a", REQUEST, 0, 0, None)
    assert job.created_at == clock.now
    assert await store.get(job.id) == job


async def test_a_job_goes_from_queued_to_complete(store: JobStore, clock: Clock) -> None:
    job = await make(store)
    clock.forward(1)
    running = await claim(store, job)
    assert (running.state, running.owner, running.fence, running.attempts) == (JobState.RUNNING, "me", 1, 1)
    assert running.started_at == clock.now
    assert running.lease_until == clock.now + timedelta(seconds=LEASE_S)

    held = await store.progress({job.id: running.fence}, {job.id: JobProgress(7, 40, 1)})
    assert (held.kept, held.lost, held.cancel_requested) == ({job.id}, set(), set())
    moved = await store.get(job.id)
    assert (moved.step, moved.steps, moved.images_done, moved.lease_until) == (7, 40, 1, running.lease_until)

    clock.forward(2)
    done = await store.complete(job.id, running.fence, {"images": ["x"]}, JobProgress(41, 41, 2))
    assert (done.step, done.steps, done.images_done) == (41, 41, 2)
    assert (done.state, done.result, done.finished_at) == (JobState.COMPLETE, {"images": ["x"]}, clock.now)
    assert (done.owner, done.lease_until) == (None, None)
    assert await store.get(job.id) == done


async def test_the_other_ends(store: JobStore) -> None:
    failed = await claim(store, await make(store))
    failed = await store.fail(failed.id, failed.fence, code="out_of_device_memory", message="too large")
    assert (failed.state, failed.error_code, failed.error_message) == (
        JobState.FAILED,
        "out_of_device_memory",
        "too large",
    )
    blocked = await claim(store, await make(store))
    assert (await store.block(blocked.id, blocked.fence, {"images": []})).state is JobState.BLOCKED
    cancelled = await claim(store, await make(store))
    assert (await store.cancelled(cancelled.id, cancelled.fence)).state is JobState.CANCELLED


async def test_unknown_jobs_and_other_tenants_jobs_look_the_same(store: JobStore) -> None:
    job = await make(store, tenant="a")
    assert (await store.get(job.id, tenant="a")).id == job.id
    messages = set()
    for job_id, tenant in [(job.id, "b"), ("0" * 32, "a"), ("../../etc/passwd", "a"), ("", "a"), (job.id.upper(), "a")]:
        for call in (store.get, store.cancel):
            with pytest.raises(UnknownJob) as caught:
                await call(job_id, tenant=tenant)
            messages.add(str(caught.value))
    assert len(messages) == 1
    assert (await store.get(job.id)).state is JobState.QUEUED


async def test_a_full_queue_refuses_and_takes_again_when_a_job_has_ended(store: JobStore) -> None:
    first, _ = await make(store, max_queued=2), await make(store, max_queued=2)
    with pytest.raises(QueueFull):
        await make(store, max_queued=2)
    running = await claim(store, first)
    with pytest.raises(QueueFull):
        await make(store, max_queued=2)
    await store.complete(running.id, running.fence, {})
    await make(store, max_queued=2)


async def test_a_hundred_creates_at_once_in_two_stores_fill_ten_places(store: JobStore, other_store: JobStore) -> None:
    answers = await asyncio.gather(
        *(make((store, other_store)[index % 2], max_queued=10) for index in range(100)), return_exceptions=True
    )
    assert sum(isinstance(answer, Job) for answer in answers) == 10
    assert sum(isinstance(answer, QueueFull) for answer in answers) == 90
    assert (await other_store.depth()).queued == 10


async def test_of_many_claims_of_one_job_one_wins(store: JobStore, other_store: JobStore) -> None:
    job = await make(store)
    claims = await asyncio.gather(
        *(
            (store, other_store)[index % 2].claim(job.id, owner=f"{index}", lease_s=LEASE_S, max_attempts=3)
            for index in range(20)
        )
    )
    winners = [claimed for claimed in claims if claimed is not None]
    assert len(winners) == 1
    assert (winners[0].fence, winners[0].attempts) == (1, 1)
    assert (await store.get(job.id)).owner == winners[0].owner


async def test_an_expired_lease_is_adopted_and_its_old_owner_is_fenced(store: JobStore, clock: Clock) -> None:
    job = await make(store)
    old = await claim(store, job, "old")
    assert await store.claim(job.id, owner="new", lease_s=LEASE_S, max_attempts=3) is None
    assert await store.expired() == ()

    clock.forward(LEASE_S + 1)
    assert [found.id for found in await store.expired()] == [job.id]
    new = await claim(store, job, "new")
    assert (new.owner, new.fence, new.attempts, new.started_at) == ("new", 2, 2, old.started_at)

    before = await store.get(job.id)
    for write in (
        store.complete(job.id, old.fence, {"images": ["stale"]}),
        store.block(job.id, old.fence, {}),
        store.fail(job.id, old.fence, code="x", message="x"),
        store.cancelled(job.id, old.fence),
        store.release(job.id, old.fence),
    ):
        with pytest.raises(StaleLease):
            await write
    assert (await store.heartbeat({job.id: old.fence}, lease_s=LEASE_S)).lost == {job.id}
    assert (await store.progress({job.id: old.fence}, {job.id: JobProgress(1, 2, 0)})).lost == {job.id}
    assert await store.get(job.id) == before
    await store.complete(job.id, new.fence, {"images": ["good"]})
    with pytest.raises(StaleLease):
        await store.complete(job.id, new.fence, {"images": ["twice"]})


async def test_a_heartbeat_keeps_leases_and_brings_wishes_to_cancel(
    store: JobStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_CHUNK", 3)  # so that seven jobs take three statements
    held = {}
    for _ in range(7):
        job = await claim(store, await make(store))
        held[job.id] = job.fence
    ended, to_cancel, *_ = held
    await store.complete(ended, held[ended], {})
    await store.cancel(to_cancel)

    clock.forward(LEASE_S + 1)  # late, but nobody else has come
    beat = await store.heartbeat(held, lease_s=LEASE_S)
    assert beat.lost == {ended}
    assert beat.kept == set(held) - {ended}
    assert beat.cancel_requested == {to_cancel}
    assert await store.expired() == ()
    assert (await store.get(to_cancel)).lease_until == clock.now + timedelta(seconds=LEASE_S)
    assert await store.heartbeat({}, lease_s=LEASE_S) == type(beat)(frozenset(), frozenset(), frozenset())


async def test_the_progress_of_many_jobs_is_one_transaction(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_CHUNK", 3)
    held, moved = {}, {}
    for step in range(7):
        job = await claim(store, await make(store))
        held[job.id], moved[job.id] = job.fence, JobProgress(step, 9, step // 3)
    ended, to_cancel, *_ = held
    await store.complete(ended, held[ended], {})
    await store.cancel(to_cancel)
    transactions = 0

    def begun(*_: object) -> None:
        nonlocal transactions
        transactions += 1

    engine = store._database._server._engine
    event.listen(getattr(engine, "sync_engine", engine), "begin", begun)
    found = await store.progress(held, moved)
    assert transactions == 1
    assert (found.lost, found.kept, found.cancel_requested) == ({ended}, set(held) - {ended}, {to_cancel})
    for job_id in found.kept:
        job = await store.get(job_id)
        assert (job.step, job.images_done) == (moved[job_id].step, moved[job_id].images_done)
    assert await store.progress({}, {}) == type(found)(frozenset(), frozenset(), frozenset())


async def test_cancel_ends_a_queued_job_and_asks_the_owner_of_a_running_one(store: JobStore) -> None:
    waiting = await store.cancel((await make(store)).id)
    assert waiting.state is JobState.CANCELLED
    assert waiting.finished_at is not None
    assert await store.claim(waiting.id, owner="me", lease_s=LEASE_S, max_attempts=3) is None

    running = await claim(store, await make(store))
    asked = await store.cancel(running.id)
    assert (asked.state, asked.cancel_requested) == (JobState.RUNNING, True)
    held = await store.progress({running.id: running.fence}, {running.id: JobProgress(1, 2, 0)})
    assert held.cancel_requested == {running.id}
    released = await claim(store, await make(store))
    await store.cancel(released.id)
    assert (await store.release(released.id, released.fence)).state is JobState.CANCELLED
    done = await store.cancelled(running.id, running.fence)
    assert await store.cancel(running.id) == done


async def test_a_released_job_is_queued_again_at_its_old_place(store: JobStore) -> None:
    first = await make(store)
    await make(store)
    running = await claim(store, first)
    released = await store.release(running.id, running.fence)
    assert (released.state, released.owner, released.attempts, released.lease_until) == (JobState.QUEUED, None, 0, None)
    assert (await store.queued())[0] == released
    assert (await claim(store, released, max_attempts=1)).fence == 2


async def test_a_job_that_outlives_no_attempt_fails(store: JobStore, clock: Clock) -> None:
    job = await make(store)
    for _ in range(2):
        await claim(store, job, max_attempts=2)
        assert await store.settle_abandoned(2) == ()
        clock.forward(LEASE_S + 1)
    assert await store.claim(job.id, owner="me", lease_s=LEASE_S, max_attempts=2) is None
    [failed] = await store.settle_abandoned(2)
    assert (failed.id, failed.state, failed.error_code) == (job.id, JobState.FAILED, "attempts_exhausted")
    with pytest.raises(StaleLease):
        await store.complete(job.id, 2, {})


async def test_an_abandoned_job_that_was_to_be_cancelled_is(store: JobStore, clock: Clock) -> None:
    job = await claim(store, await make(store))
    await store.cancel(job.id)
    clock.forward(LEASE_S + 1)
    assert await store.claim(job.id, owner="x", lease_s=LEASE_S, max_attempts=3) is None
    [cancelled] = await store.settle_abandoned(3)
    assert (cancelled.state, cancelled.error_code) == (JobState.CANCELLED, None)


async def test_the_queue_s_order_and_depth(store: JobStore) -> None:
    made = [await make(store) for _ in range(4)]
    assert [job.id for job in await store.queued()] == [job.id for job in made]
    await claim(store, made[0])
    await store.cancel(made[1].id)
    depth = await store.depth()
    assert (depth.queued, depth.running) == (2, 1)
    assert [job.id for job in await store.queued()] == [made[2].id, made[3].id]


async def test_pages_are_a_tenants_own_newest_first(store: JobStore) -> None:
    mine = [(await make(store, "a")).id for _ in range(5)]
    await make(store, "b")
    seen: list[str] = []
    cursor = None
    for expected in (2, 2, 1):
        page = await store.page(tenant="a", limit=2, cursor=cursor)
        assert len(page.jobs) == expected
        seen += [job.id for job in page.jobs]
        cursor = page.next_cursor
    assert cursor is None
    assert seen == mine[::-1]
    assert len((await store.page(tenant=None, limit=100)).jobs) == 6
    assert (await store.page(tenant="a", limit=2, cursor="'; DROP TABLE jobs")).jobs == ()
    assert [job.id for job in (await store.page(tenant="a", limit=9, id_end=mine[3][-8:])).jobs] == [mine[3]]
    assert (await store.page(tenant="b", limit=9, id_end=mine[3][-8:])).jobs == ()
    assert (await store.page(tenant="a", limit=9, id_end="%")).jobs == ()


async def test_only_ended_jobs_are_deleted(store: JobStore, clock: Clock) -> None:
    ended, waiting = await store.cancel((await make(store)).id), await make(store)
    running = await claim(store, await make(store))
    assert await store.finished_before(clock.now) == ()
    clock.forward(1)
    assert await store.finished_before(clock.now) == (ended,)
    assert await store.delete(ended.id)
    assert not await store.delete(ended.id)
    assert not await store.delete(waiting.id)
    assert not await store.delete(running.id)
    assert await store.depth() == QueueDepth(queued=1, running=1)


async def test_what_is_kept_of_a_job_is_the_newest_and_outlives_its_owner(store: JobStore, clock: Clock) -> None:
    job, other = await claim(store, await make(store)), await claim(store, await make(store))
    assert await store.kept(job.id) == {}
    await store.keep(job.id, job.fence, {(0, 0): b"early", (1, 0): b"\x00\xff"})
    await store.keep(job.id, job.fence, {(0, 0): b"late", (0, 1): b"next stage"})
    newest = {(0, 0): b"late", (1, 0): b"\x00\xff", (0, 1): b"next stage"}
    assert (await store.kept(job.id), await store.kept(other.id)) == (newest, {})

    released = await store.release(job.id, job.fence)
    with pytest.raises(StaleLease):
        await store.keep(job.id, job.fence, {(0, 0): b"released"})
    owner = await claim(store, released)
    clock.forward(LEASE_S + 1)
    adopter = await claim(store, owner)
    with pytest.raises(StaleLease):
        await store.keep(job.id, owner.fence, {(0, 0): b"stale"})
    assert await store.kept(job.id) == newest
    await store.keep(job.id, adopter.fence, {(1, 1): b"mine"})
    assert await store.kept(job.id) == {**newest, (1, 1): b"mine"}


@pytest.mark.parametrize(
    "end",
    [
        lambda store, job: store.complete(job.id, job.fence, {}),
        lambda store, job: store.block(job.id, job.fence, {}),
        lambda store, job: store.fail(job.id, job.fence, code="x", message="x"),
        lambda store, job: store.cancelled(job.id, job.fence),
        lambda store, job: released_then(store, job, store.cancel(job.id)),
        lambda store, job: cancelled_then(store, job, store.release(job.id, job.fence)),
        lambda store, job: expired_then(store, job, store.settle_abandoned(1)),
    ],
    ids=["complete", "block", "fail", "cancelled", "cancel-queued", "release-cancelled", "settle"],
)
async def test_nothing_is_kept_of_a_job_that_has_ended(store: JobStore, end: Callable[..., Awaitable[Any]]) -> None:
    job, other = await claim(store, await make(store)), await claim(store, await make(store))
    for one in (job, other):
        await store.keep(one.id, one.fence, {(0, 0): b"half"})
    await end(store, job)
    assert (await store.get(job.id)).state.terminal
    assert (await store.kept(job.id), await store.kept(other.id)) == ({}, {(0, 0): b"half"})
    with pytest.raises(StaleLease):
        await store.keep(job.id, job.fence, {(0, 0): b"late"})


async def released_then(store: JobStore, job: Job, then: Awaitable[Any]) -> None:
    await store.release(job.id, job.fence)
    assert await store.kept(job.id) == {(0, 0): b"half"}
    await then


async def cancelled_then(store: JobStore, job: Job, then: Awaitable[Any]) -> None:
    await store.cancel(job.id)
    assert await store.kept(job.id) == {(0, 0): b"half"}
    await then


async def expired_then(store: JobStore, job: Job, then: Awaitable[Any]) -> None:
    await store.heartbeat({job.id: job.fence}, lease_s=-1.0)
    await then


async def test_jobs_outlive_their_store(store: JobStore, database_url: str) -> None:
    job = await make(store)
    await store.close()
    again = JobStore(database_url)
    await again.open()
    assert await again.get(job.id) == job
    await again.close()


async def test_a_cancelled_caller_leaves_the_store_usable(store: JobStore) -> None:
    for delay in range(12):
        task = asyncio.create_task(make(store))
        for _ in range(delay):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    made = await asyncio.gather(*(make(store) for _ in range(20)))
    assert [await store.get(job.id) for job in made] == made


async def test_new_files_are_opened_by_several_at_once(tmp_path: Path) -> None:
    for number in range(30):  # of as many, one or two had a store that was refused
        stores = [JobStore(f"sqlite+aiosqlite:///{tmp_path}/{number}.db") for _ in range(6)]
        await asyncio.gather(*(store.open() for store in stores))
        await asyncio.gather(*(store.close() for store in stores))


async def test_opening_at_once_creates_the_tables_once(database_url: str) -> None:
    stores = [JobStore(database_url) for _ in range(4)]
    await asyncio.gather(*(store.open() for store in stores))
    jobs = [await make(store) for store in stores]
    assert len(await stores[0].queued()) == len(jobs)
    await asyncio.gather(*(store.close() for store in stores))
