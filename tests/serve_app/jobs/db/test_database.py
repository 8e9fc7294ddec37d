"""What one database does that the other doesn't, and what their outages look like. What both do: test_store.py."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, func, select
from sqlalchemy.ext.asyncio import create_async_engine

from serve_app.errors import StoreUnavailable
from serve_app.jobs.db.database import Database
from serve_app.jobs.db.schema import jobs
from serve_app.jobs.db.store import JobStore
from serve_app.jobs.job import Job
from tests.serve_app.postgres import Postgres

REQUEST: dict[str, Any] = {"prompt": "a large red circle"}


async def make(store: JobStore) -> Job:
    return (await store.create(REQUEST, max_queued=1000))[0]


def count_jobs(connection: Connection) -> int:
    return connection.scalar(select(func.count()).select_from(jobs)) or 0


@pytest.fixture
async def store(sqlite_url: str) -> AsyncIterator[JobStore]:
    store = JobStore(sqlite_url)
    await store.open()
    yield store
    await store.close()


async def test_reads_wait_for_no_writer(store: JobStore, tmp_path: Path) -> None:
    job = await make(store)
    writer = sqlite3.connect(tmp_path / "data" / "jobs.db", isolation_level=None)
    try:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE jobs SET tenant = 'x'")
        assert (await store.get(job.id)).tenant == ""
    finally:
        writer.close()


async def test_sqlite_is_set_up_to_survive_crashes(store: JobStore) -> None:
    def found(connection: Connection) -> list[Any]:
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in ("journal_mode", "synchronous")]

    assert await store._database.write(found) == await store._database.read(found) == ["wal", 2]


async def test_a_database_that_is_no_database_is_an_outage(tmp_path: Path) -> None:
    (tmp_path / "jobs.db").write_bytes(b"this is no database" * 1000)
    store = JobStore(f"sqlite+aiosqlite:///{tmp_path}/jobs.db")
    with pytest.raises(StoreUnavailable) as caught:
        await store.open()
    assert "jobs.db" not in str(caught.value)
    await store.close()


async def test_a_folder_that_cannot_be_made_is_an_outage(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = JobStore(f"sqlite+aiosqlite:///{tmp_path}/file/jobs.db")
    with pytest.raises(StoreUnavailable):
        await store.open()
    await store.close()


async def test_losing_the_tables_is_an_outage(store: JobStore, tmp_path: Path) -> None:
    job = await make(store)
    connection = sqlite3.connect(tmp_path / "data" / "jobs.db")
    connection.execute("DROP TABLE jobs")
    connection.commit()
    connection.close()
    for call in (store.get(job.id), make(store), store.depth(), store.queued()):
        with pytest.raises(StoreUnavailable) as caught:
            await call
        # what the database said goes to the log, and with it no prompt
        assert "no such table" in str(caught.value.__cause__)
        assert REQUEST["prompt"] not in str(caught.value.__cause__)


@pytest.mark.parametrize("url", ["sqlite+aiosqlite://", "sqlite+aiosqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="forgets its jobs"):
        JobStore(url)


async def test_a_full_disk_refuses_new_jobs_and_loses_none(store: JobStore) -> None:
    """SQLite meets its end of the disk where it is told to."""
    kept = await make(store)

    def set_pages(connection: Connection, more: int) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + more}")

    await store._database.write(lambda connection: set_pages(connection, 0))
    large = {"prompt": "x" * 100_000}
    with pytest.raises(StoreUnavailable) as caught:
        await store.create(large, max_queued=1000)
    assert "full" in str(caught.value.__cause__)
    assert await store.queued() == (kept,)
    await store._database.write(lambda connection: set_pages(connection, 100_000))
    assert (await store.create(large, max_queued=1000))[0].request == large


async def test_a_postgres_that_restarts_is_an_outage_and_keeps_its_jobs(postgres: Postgres, postgres_url: str) -> None:
    store = JobStore(postgres_url)
    await store.open()
    job = await make(store)
    postgres.kill()
    for call in (make(store), store.get(job.id), store.depth()):
        with pytest.raises(StoreUnavailable) as caught:
            await call
        assert str(postgres.port) not in str(caught.value)
    await asyncio.to_thread(postgres.start)
    assert await store.get(job.id) == job
    assert (await make(store)).id != job.id
    await store.close()


async def test_a_postgres_that_lets_nobody_in_is_an_outage(postgres: Postgres) -> None:
    store = JobStore(postgres.url("no_such_database"))
    with pytest.raises(StoreUnavailable) as caught:
        await store.open()
    assert "no_such_database" in str(caught.value.__cause__)
    await store.close()


async def test_a_postgres_that_hangs_is_an_outage(postgres_url: str) -> None:
    store = JobStore(postgres_url)
    await store.open()
    impatient = Database(postgres_url, busy_timeout_s=0.5)
    others = create_async_engine(postgres_url)
    async with others.begin() as holder:
        await holder.exec_driver_sql("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(StoreUnavailable) as caught:
            await impatient.read(count_jobs)
    assert isinstance(caught.value.__cause__, TimeoutError)
    assert await impatient.read(count_jobs) == 0
    await others.dispose()
    await impatient.close()
    await store.close()
