"""The same request, however often it comes, is one job, in every database."""

import asyncio
from typing import Any

import pytest

from serve_app.errors import IdempotencyMismatch, QueueFull, UnknownJob
from serve_app.jobs.db.idempotency import RequestKey
from serve_app.jobs.db.store import JobStore
from serve_app.jobs.job import Job, QueueDepth
from tests.serve_app.clock import Clock

REQUEST: dict[str, Any] = {"prompt": "a large red circle", "seed": 5}


async def once(
    store: JobStore, name: str = "k", asked: dict[str, Any] = REQUEST, tenant: str = "", max_queued: int = 100
) -> tuple[Job, bool]:
    return await store.create(asked, key=RequestKey.named(name, asked), tenant=tenant, max_queued=max_queued)


def test_keys_are_hashes_of_what_is_asked_not_of_how_it_was_written() -> None:
    key = RequestKey.named("k", {"a": 1, "b": {"c": "ä", "d": None}})
    assert key == RequestKey.named("k", {"b": {"d": None, "c": "ä"}, "a": 1})
    assert key.body != RequestKey.named("k", {"a": 1, "b": {"c": "ä"}}).body
    assert key.key != RequestKey.named("K", {}).key
    assert {len(key.key), len(key.body)} == {64}


async def test_a_hundred_at_once_with_one_key_are_one_job(store: JobStore, other_store: JobStore) -> None:
    answers = await asyncio.gather(*(once((store, other_store)[index % 2]) for index in range(100)))
    assert len({job.id for job, _ in answers}) == 1
    assert sum(not replayed for _, replayed in answers) == 1
    assert await store.depth() == QueueDepth(queued=1, running=0)


async def test_another_body_is_refused_and_makes_no_job(store: JobStore) -> None:
    await once(store)
    with pytest.raises(IdempotencyMismatch):
        await once(store, asked={**REQUEST, "seed": 6})
    assert await store.depth() == QueueDepth(queued=1, running=0)


async def test_keys_are_their_tenants_own(store: JobStore) -> None:
    mine, _ = await once(store, tenant="a")
    others, replayed = await once(store, tenant="b", asked={"prompt": "another"})
    assert (others.tenant, others.id != mine.id, replayed) == ("b", True, False)
    assert await once(store, tenant="a") == (mine, True)


async def test_a_repetition_finds_its_job_whatever_became_of_it(store: JobStore) -> None:
    job, _ = await once(store, max_queued=1)
    with pytest.raises(QueueFull):
        await once(store, "another", max_queued=1)
    assert await once(store, max_queued=1) == (job, True)
    cancelled = await store.cancel(job.id)
    assert await once(store) == (cancelled, True)


async def test_a_key_is_free_again_when_its_job_is_forgotten(store: JobStore) -> None:
    job, _ = await once(store)
    assert not await store.delete(job.id)
    assert (await once(store))[1]
    await store.cancel(job.id)
    assert await store.delete(job.id)
    again, replayed = await once(store, asked={"prompt": "another"})
    assert (again.id != job.id, replayed) == (True, False)


async def test_a_refused_request_takes_no_key(store: JobStore) -> None:
    with pytest.raises(QueueFull):
        await once(store, max_queued=0)
    assert not (await once(store, asked={"prompt": "another"}))[1]


async def test_a_lost_job_is_taken_once(store: JobStore, other_store: JobStore) -> None:
    made = [(await store.create(REQUEST, max_queued=100))[0] for _ in range(3)]
    for job in made:
        await store.leave(job.id, "mark", 10)
    taken = await asyncio.gather(*((store, other_store)[index % 2].take_over("mark", tenant="") for index in range(9)))
    assert {job.id for job in taken if job is not None} == {job.id for job in made}
    assert sum(job is None for job in taken) == 6


async def test_a_lost_job_is_taken_by_its_fingerprint_in_time_and_oldest_first(store: JobStore, clock: Clock) -> None:
    first, second = [(await store.create(REQUEST, max_queued=100))[0] for _ in range(2)]
    for job in (second, first):
        await store.leave(job.id, "mark", 10)
    clock.forward(9.9)
    assert await store.take_over("another", tenant="") is None
    assert await store.take_over("mark", tenant="") == first
    clock.forward(0.2)
    assert await store.take_over("mark", tenant="") is None


async def test_a_job_that_was_taken_over_or_lost_again_isn_t_given_up(store: JobStore, clock: Clock) -> None:
    job = (await store.create(REQUEST, max_queued=100))[0]
    until = await store.leave(job.id, "mark", 10)
    assert await store.take_over("mark", tenant="") == job
    assert not await store.give_up(job.id, until)
    clock.forward(1)
    later = await store.leave(job.id, "mark", 10)
    assert not await store.give_up(job.id, until)
    assert await store.give_up(job.id, later)
    assert await store.take_over("mark", tenant="") is None


async def test_a_lost_job_is_its_tenant_s_and_is_forgotten_with_it(store: JobStore) -> None:
    job = (await store.create(REQUEST, tenant="a", max_queued=100))[0]
    await store.leave(job.id, "mark", 10)
    with pytest.raises(UnknownJob):
        await store.take_over("mark", tenant="b")
    await store.cancel(job.id)
    await store.delete(job.id)
    assert await store.take_over("mark", tenant="a") is None
