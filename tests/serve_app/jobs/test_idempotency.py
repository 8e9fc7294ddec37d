"""The same request, however often it comes, is one job, in every database."""

import asyncio
from typing import Any

import pytest

from serve_app.errors import IdempotencyMismatch, QueueFull
from serve_app.jobs.idempotency import RequestKey
from serve_app.jobs.job import Job
from serve_app.jobs.store import JobStore

REQUEST: dict[str, Any] = {"prompt": "a large red circle", "seed": 5}


async def once(
    store: JobStore, name: str = "k", asked: dict[str, Any] = REQUEST, tenant: str = "", max_queued: int = 100
) -> tuple[Job, bool]:
    return await store.create_once(asked, key=RequestKey.named(name, asked), tenant=tenant, max_queued=max_queued)


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
    assert (await store.depth()).unfinished == 1


async def test_another_body_is_refused_and_makes_no_job(store: JobStore) -> None:
    await once(store)
    with pytest.raises(IdempotencyMismatch):
        await once(store, asked={**REQUEST, "seed": 6})
    assert (await store.depth()).unfinished == 1


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
