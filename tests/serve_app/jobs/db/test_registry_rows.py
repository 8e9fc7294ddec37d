"""The registry's rows: each change is one version and one line of the log, whoever else changes it."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import Connection, insert

from deployments.engine.errors import InvalidRequest
from serve_app.jobs.db.database import writes
from serve_app.jobs.db.registry_rows import RegistryStore
from serve_app.jobs.db.schema import registry_changes, registry_entries
from serve_app.jobs.db.store import JobStore
from serve_app.registry.entries import Author, Change, Content, Entries, EntryKind
from tests.serve_app.clock import Clock

ALICE = Author("alice", "0123abcd")


async def set_alias(store: JobStore, name: str, model: str | None, author: Author = ALICE) -> int:
    content = None if model is None else {"model": model}
    return (await store.registry.change(EntryKind.ALIAS, name, lambda _: content, author))[0]


async def test_changes_are_seen_by_other_processes_and_logged(
    store: JobStore, other_store: JobStore, clock: Clock
) -> None:
    assert await store.registry.load() == (0, Entries())
    assert await set_alias(store, "realistic", "a") == 1
    at = clock.now
    clock.forward(5)
    assert await set_alias(store, "realistic", "b", Author("", None)) == 2
    limits = {"limits": {"steps": {"min": 1, "max": 8}}, "serving": False}
    version, entries = await other_store.registry.change(EntryKind.MODEL, "a", lambda _: limits, ALICE)
    assert (version, entries) == (3, Entries({"a": limits}, {"realistic": {"model": "b"}}))
    assert await store.registry.version() == 3
    assert await store.registry.load() == (3, entries)
    newest, second, first = await other_store.registry.changes(limit=9)
    assert first == Change(1, at, ALICE, EntryKind.ALIAS, "realistic", None, {"model": "a"})
    later = at + timedelta(seconds=5)
    assert second == Change(2, later, Author("", None), EntryKind.ALIAS, "realistic", {"model": "a"}, {"model": "b"})
    assert newest == Change(3, later, ALICE, EntryKind.MODEL, "a", None, limits)
    assert await store.registry.changes(limit=1, before=3) == (second,)


async def test_an_entry_that_stays_as_it_is_is_no_change(store: JobStore) -> None:
    assert await set_alias(store, "realistic", None) == 0
    assert await set_alias(store, "realistic", "a") == await set_alias(store, "realistic", "a") == 1
    assert await set_alias(store, "realistic", None) == 2
    assert await store.registry.load() == (2, Entries())
    assert len(await store.registry.changes(limit=9)) == 2


async def test_a_refused_change_leaves_all_as_it_is(store: JobStore) -> None:
    await set_alias(store, "realistic", "a")

    def refused(entries: Entries) -> Content | None:
        assert entries.aliases == {"realistic": {"model": "a"}}
        raise InvalidRequest("no")

    with pytest.raises(InvalidRequest):
        await store.registry.change(EntryKind.ALIAS, "realistic", refused, ALICE)
    assert await store.registry.load() == (1, Entries({}, {"realistic": {"model": "a"}}))


async def test_changes_at_the_same_time_see_each_other(store: JobStore, other_store: JobStore) -> None:
    def one_more(entries: Entries) -> Content:
        return {"count": entries.models.get("a", {"count": 0})["count"] + 1}

    changes = [one.registry.change(EntryKind.MODEL, "a", one_more, ALICE) for one in (store, other_store) * 10]
    assert sorted(version for version, _ in await asyncio.gather(*changes)) == list(range(1, 21))
    assert (await store.registry.load())[1].models == {"a": {"count": 20}}


async def test_unfinished_jobs_are_counted_by_model(store: JobStore) -> None:
    requests = [{"model": "a"}, {"model": "a"}, {"model": "b"}, {"upscaler": "lanczos"}, {"model": "a"}]
    jobs = [(await store.create(request, max_queued=9))[0] for request in requests]
    await store.cancel(jobs[0].id)
    assert await store.claim(jobs[1].id, owner="me", lease_s=9, max_attempts=1) is not None
    assert await store.unfinished_by_model() == {"a": 2, "b": 1}
    await store.create({"model": "b", "hires": {"model": "c"}}, max_queued=9)
    await store.create({"model": "b", "hires": {"model": None}}, max_queued=9)
    await store.create({"model": "b", "hires": None}, max_queued=9)
    await store.create({"model": "b", "hires": {"model": "b"}}, max_queued=9)
    assert await store.unfinished_by_model() == {"a": 2, "b": 5, "c": 1}


@writes
def write_as_a_later_version(registry: RegistryStore, connection: Connection) -> None:
    at = registry._clock()
    row = {"kind": "scene", "name": "a", "content": {}}
    change = {"version": 2, "at": at, "tenant": "", "kind": "scene", "name": "a", "after": {}}
    connection.execute(insert(registry_entries).values(row))
    connection.execute(insert(registry_changes).values(change))


async def test_what_a_later_version_wrote_counts_for_nothing(store: JobStore, caplog: pytest.LogCaptureFixture) -> None:
    await set_alias(store, "realistic", "a")
    await write_as_a_later_version(store.registry)
    assert await store.registry.load() == (2, Entries({}, {"realistic": {"model": "a"}}))
    [warning] = [record.getMessage() for record in caplog.records if "unknown kinds" in record.getMessage()]
    assert "scene" in warning
    assert await set_alias(store, "realistic", "b") == 3
    assert [change.version for change in await store.registry.changes(limit=9)] == [3, 1]
