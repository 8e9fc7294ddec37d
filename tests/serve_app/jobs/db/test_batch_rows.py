"""Batches and their lines: each line is one job at most, whoever holds the batch, and none begins after its end."""

import asyncio
import hashlib
from datetime import timedelta

import pytest

from serve_app.batches.batch import Batch, BatchLine, BatchState, LineCounts, LinePlace, StoredFile
from serve_app.errors import QueueFull, StaleLease, TooManyBatches, UnknownBatch, UnknownFile
from serve_app.jobs.db.idempotency import RequestKey
from serve_app.jobs.db.queue_limits import Demand
from serve_app.jobs.db.store import JobStore
from serve_app.jobs.job import Job, JobProgress
from serve_app.jobs.states import JobState
from tests.serve_app.clock import Clock

WINDOW_S, LEASE_S = 100.0, 30.0


async def new_file(store: JobStore, clock: Clock, tenant: str = "a") -> StoredFile:
    file = StoredFile(store.new_id(), tenant, "lines.jsonl", "batch", 7, clock.now, None)
    await store.files.add(file, max_files=1000, max_bytes=1 << 40)
    return file


async def new_batch(store: JobStore, clock: Clock, tenant: str = "a", max_unfinished: int = 9) -> Batch:
    file = await new_file(store, clock, tenant)
    batch, replayed = await store.batches.create(
        store.new_id(),
        tenant=tenant,
        key_id="0123abcd",
        endpoint="/v1/images/generations",
        input_file=file.id,
        options={"metadata": {"name": "x"}},
        window_s=WINDOW_S,
        max_unfinished=max_unfinished,
    )
    assert not replayed
    return batch


async def begun(store: JobStore, clock: Clock, total: int = 3, owner: str = "me") -> Batch:
    await new_batch(store, clock)
    [claimed] = await store.batches.claim(owner=owner, lease_s=LEASE_S, limit=9)
    return await store.batches.begin(claimed.id, claimed.fence, total)


async def job_of_line(
    store: JobStore, batch: Batch, line: int, most: int = 16, most_s: float | None = None, work_s: float = 1.0
) -> tuple[Job, bool]:
    name = f"{batch.id}-{line}"
    return await store.create(
        {"prompt": f"line {line}"},
        key=RequestKey(hashlib.sha256(name.encode()).hexdigest(), "0" * 64),
        tenant=batch.tenant,
        max_queued=100,
        demand=Demand(work_s=work_s),
        line=LinePlace(batch.id, batch.fence, line, most, most_s),
    )


async def ended(store: JobStore, job: Job, state: JobState, device_s: float = 2.0) -> None:
    claimed = await store.claim(job.id, owner="me", lease_s=LEASE_S, max_attempts=3)
    assert claimed is not None
    at = JobProgress(1, 1, 1, device_s)
    if state is JobState.COMPLETE:
        await store.complete(job.id, claimed.fence, {"images": []}, at)
    elif state is JobState.BLOCKED:
        await store.block(job.id, claimed.fence, {"images": []}, at)
    else:
        await store.fail(job.id, claimed.fence, code="poison", message="x", at=at)


async def counted(store: JobStore, batch: Batch) -> LineCounts:
    return (await store.batches.counts([await store.batches.get(batch.id)]))[batch.id]


async def test_a_new_batch_reads_back_as_it_was_written(store: JobStore, clock: Clock) -> None:
    batch = await new_batch(store, clock)
    assert (batch.state, batch.tenant, batch.key_id, batch.total) == (BatchState.VALIDATING, "a", "0123abcd", 0)
    assert (batch.created_at, batch.expires_at) == (clock.now, clock.now + timedelta(seconds=WINDOW_S))
    assert batch.options == {"metadata": {"name": "x"}}
    assert await store.batches.get(batch.id, tenant="a") == batch
    for wrong in (batch.id[:-1], "0" * 32):
        with pytest.raises(UnknownBatch):
            await store.batches.get(wrong)
    with pytest.raises(UnknownBatch):
        await store.batches.get(batch.id, tenant="b")


async def test_the_lines_of_a_batch_become_jobs_once(store: JobStore, other_store: JobStore, clock: Clock) -> None:
    batch = await begun(store, clock)
    jobs = await asyncio.gather(*(job_of_line(one, batch, 1) for one in (store, other_store) for _ in range(5)))
    assert len({job.id for job, _ in jobs}) == 1
    assert [replayed for _, replayed in jobs].count(False) == 1
    assert await store.batches.lines(batch.id) == {1: BatchLine(jobs[0][0].id)}


async def test_counts_follow_the_jobs(store: JobStore, clock: Clock) -> None:
    batch = await begun(store, clock, total=6)
    jobs = [(await job_of_line(store, batch, line))[0] for line in range(5)]
    assert await counted(store, batch) == LineCounts(0, 0, 5, 0.0)
    for job, state in zip(jobs, (JobState.COMPLETE, JobState.FAILED, JobState.BLOCKED), strict=False):
        await ended(store, job, state)
    await store.cancel(jobs[3].id)
    place = LinePlace(batch.id, batch.fence, 5, 16, None)
    for _ in range(2):  # however often it is noted
        await store.batches.refuse(place, BatchLine(None, "unknown_model", "no such model", "model"))
    assert await counted(store, batch) == LineCounts(1, 4, 1, 6.0)
    assert (await store.batches.lines(batch.id))[5] == BatchLine(None, "unknown_model", "no such model", "model")
    await ended(store, jobs[4], JobState.COMPLETE)
    await store.batches.close(batch.id, batch.fence, BatchState.FINALIZING)
    output = StoredFile(store.new_id(), "a", "output.jsonl", "batch_output", 9, clock.now, None)
    end = await store.batches.end(batch.id, batch.fence, output=output, errors=None)
    assert (end.state, end.completed, end.failed, end.device_s) == (BatchState.COMPLETED, 2, 4, 8.0)
    assert (end.output_file, end.error_file, end.ended_at, end.owner) == (output.id, None, clock.now, None)
    assert await store.files.get(output.id, tenant="a") == output
    assert await counted(store, batch) == LineCounts(2, 4, 0, 8.0)


async def test_no_line_begins_after_a_cancel(store: JobStore, other_store: JobStore, clock: Clock) -> None:
    batch = await begun(store, clock)
    queued, running, complete = [(await job_of_line(store, batch, line))[0] for line in range(3)]
    await ended(store, complete, JobState.COMPLETE)
    claimed = await store.claim(running.id, owner="me", lease_s=LEASE_S, max_attempts=3)
    assert claimed is not None
    with pytest.raises(UnknownBatch):
        await store.batches.cancel(batch.id, tenant="b")
    now, to_stop = await other_store.batches.cancel(batch.id, tenant="a")
    assert (now.state, now.closed_at, to_stop) == (BatchState.CANCELLING, clock.now, [running.id])
    assert (await store.get(queued.id)).state is JobState.CANCELLED
    assert (await store.get(running.id)).cancel_requested
    assert (await store.get(complete.id)).state is JobState.COMPLETE
    with pytest.raises(StaleLease):
        await job_of_line(store, batch, 4)
    assert await store.batches.renew({batch.id: batch.fence}, lease_s=LEASE_S) == {batch.id: BatchState.CANCELLING}
    await store.cancelled(running.id, claimed.fence)
    assert await counted(store, batch) == LineCounts(1, 0, 0, 2.0)  # what a cancel left isn't failed
    # once more changes nothing, and its owner can end it as cancelled alone
    again, to_stop = await store.batches.cancel(batch.id)
    assert (again.state, again.closed_at, to_stop) == (now.state, now.closed_at, [])
    assert (await store.batches.close(batch.id, batch.fence, BatchState.FINALIZING))[0].state is BatchState.CANCELLING
    end = await store.batches.end(batch.id, batch.fence, output=None, errors=None)
    assert end.state is BatchState.CANCELLED
    assert (await store.batches.cancel(batch.id))[0].state is BatchState.CANCELLED


async def test_cancels_and_lines_at_the_same_time_leave_no_job(
    store: JobStore, other_store: JobStore, clock: Clock
) -> None:
    batch = await begun(store, clock)

    async def line(number: int) -> None:
        try:
            await job_of_line(store, batch, number, most=100)
        except StaleLease:
            return

    await asyncio.gather(*map(line, range(20)), other_store.batches.cancel(batch.id), *map(line, range(20, 40)))
    assert (await store.depth()).queued == 0


async def test_a_lost_claim_writes_nothing(store: JobStore, other_store: JobStore, clock: Clock) -> None:
    batch = await begun(store, clock)
    assert not await other_store.batches.claimable()
    assert await other_store.batches.claim(owner="other", lease_s=LEASE_S, limit=9) == ()
    clock.forward(LEASE_S + 1)
    assert await other_store.batches.claimable()
    [taken] = await other_store.batches.claim(owner="other", lease_s=LEASE_S, limit=9)
    assert (taken.fence, taken.owner) == (batch.fence + 1, "other")
    place = LinePlace(batch.id, batch.fence, 0, 16, None)
    for stale in (
        job_of_line(store, batch, 0),
        store.batches.begin(batch.id, batch.fence, 9),
        store.batches.close(batch.id, batch.fence, BatchState.EXPIRING),
        store.batches.fail(batch.id, batch.fence, []),
        store.batches.end(batch.id, batch.fence, output=None, errors=None),
        store.batches.refuse(place, BatchLine(None, "x", "x")),
    ):
        with pytest.raises(StaleLease):
            await stale
    assert await store.batches.renew({batch.id: batch.fence}, lease_s=LEASE_S) == {}
    await store.batches.release({batch.id: batch.fence})
    assert await other_store.batches.get(batch.id) == taken


async def test_a_released_batch_is_anybody_s_at_once(store: JobStore, other_store: JobStore, clock: Clock) -> None:
    batch = await begun(store, clock)
    await store.batches.release({batch.id: batch.fence})
    [taken] = await other_store.batches.claim(owner="other", lease_s=LEASE_S, limit=9)
    assert (taken.id, taken.state) == (batch.id, BatchState.IN_PROGRESS)


async def test_batches_share_their_places(store: JobStore, clock: Clock) -> None:
    first = await begun(store, clock)
    for line in range(4):
        await job_of_line(store, first, line, most=4)
    with pytest.raises(QueueFull) as full:
        await job_of_line(store, first, 4, most=4)
    assert full.value.retry_after_s == 1
    second = await begun(store, clock)
    await job_of_line(store, second, 0, most=4)  # one at least
    with pytest.raises(QueueFull):
        await job_of_line(store, second, 1, most=4)
    await job_of_line(store, first, 0, most=4)  # what has come before is no new one


async def test_batches_share_the_seconds_of_work(store: JobStore, clock: Clock) -> None:
    batch = await begun(store, clock)
    await job_of_line(store, batch, 0, most_s=10.0, work_s=50.0)  # each batch goes on
    with pytest.raises(QueueFull):
        await job_of_line(store, batch, 1, most_s=10.0, work_s=1.0)


async def test_a_failed_batch_takes_its_jobs_along(store: JobStore, clock: Clock) -> None:
    batch = await begun(store, clock)
    job, _ = await job_of_line(store, batch, 0)
    problems = [{"code": "internal", "message": "x"}]
    assert await store.batches.fail(batch.id, batch.fence, problems) == []
    failed = await store.batches.get(batch.id)
    assert (failed.state, failed.problems) == (BatchState.FAILED, problems)
    assert (await store.get(job.id)).state is JobState.CANCELLED


async def test_a_tenant_has_so_many_unfinished_batches(store: JobStore, clock: Clock) -> None:
    for tenant in ("a", "a", "b"):
        await new_batch(store, clock, tenant, max_unfinished=2)
    with pytest.raises(TooManyBatches, match="2 of your batches are unfinished, 2 are allowed"):
        await new_batch(store, clock, "a", max_unfinished=2)


async def test_a_batch_needs_a_file_of_its_tenant(store: JobStore, clock: Clock) -> None:
    file = await new_file(store, clock, "a")
    for tenant, file_id in (("b", file.id), ("a", "0" * 32)):
        with pytest.raises(UnknownFile):
            await store.batches.create(
                store.new_id(),
                tenant=tenant,
                key_id=None,
                endpoint="/v1/images/edits",
                input_file=file_id,
                options={},
                window_s=1,
                max_unfinished=9,
            )


async def test_pages_go_from_the_newest_to_the_oldest(store: JobStore, clock: Clock) -> None:
    made = []
    for tenant in ("a", "b", "a", "a"):
        clock.forward(1)
        made.append(await new_batch(store, clock, tenant))
    page = await store.batches.page(tenant="a", dialect="/v1/", limit=2)
    assert (page.batches, page.more) == ((made[3], made[2]), True)
    page = await store.batches.page(tenant="a", dialect="/v1/", limit=2, after=made[2].id)
    assert (page.batches, page.more) == ((made[0],), False)
    assert len((await store.batches.page(tenant=None, dialect="/v1/", limit=9)).batches) == 4
    assert (await store.batches.page(tenant=None, dialect="/batches", limit=9)).batches == ()


async def test_a_batch_keeps_its_jobs(store: JobStore, clock: Clock) -> None:
    batch = await begun(store, clock, total=1)
    job, _ = await job_of_line(store, batch, 0)
    await ended(store, job, JobState.COMPLETE)
    clock.forward(1000)
    [batch] = await store.batches.claim(owner="me", lease_s=LEASE_S, limit=9)
    assert await store.finished_before(clock.now) == ()
    await store.batches.close(batch.id, batch.fence, BatchState.FINALIZING)
    await store.batches.end(batch.id, batch.fence, output=None, errors=None)
    assert await store.batches.ended_before(5) == ()
    clock.forward(6)
    [old] = await store.batches.ended_before(5)
    assert not await store.batches.delete(old)  # its input is a file of its client's
    assert await store.batches.lines(batch.id) == {}
    assert [one.id for one in await store.finished_before(clock.now)] == [job.id]
    await store.files.get(batch.input_file, tenant="a")
