"""A database is brought up to the present tables, jobs and all, on every kind of database."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from serve_app.jobs.db.migrations.migrate import UnknownVersion, migrate
from serve_app.jobs.db.schema import metadata
from serve_app.jobs.db.store import JobStore
from serve_app.jobs.states import JobState

JOB_ID = "019c7d3f2a51c0b7e64f9d20a83b5e17"


@pytest.fixture
async def engine(database_url: str, tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    (tmp_path / "data").mkdir()
    engine = create_async_engine(database_url)
    yield engine
    await engine.dispose()


def version_of(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


async def test_a_new_database_has_the_tables_that_the_store_expects(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(migrate)
        await connection.run_sync(migrate)
        differences = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync, opts={"compare_type": True}), metadata)
        )
    assert differences == []


async def test_a_database_of_the_first_version_keeps_its_jobs(engine: AsyncEngine, database_url: str) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(migrate)
        for table in ("usage", "files", "batches", "batch_lines", "registry_entries", "registry_changes"):
            await connection.execute(text(f"DROP TABLE {table}"))
        await connection.execute(text("UPDATE alembic_version SET version_num = 'jobs_1'"))
        insert = (
            "INSERT INTO jobs (id, tenant, state, request, created_at)"
            " VALUES (:id, '', 'queued', '{\"prompt\"\\: \"x\"}', '2026-11-01 00:00:00+00:00')"
        )
        await connection.execute(text(insert), {"id": JOB_ID})
    store = JobStore(database_url)
    for _ in range(2):
        await store.open()
    [job] = await store.queued()
    assert (job.id, job.tenant, job.request) == (JOB_ID, "", {"prompt": "x"})
    claimed = await store.claim(job.id, owner="me", lease_s=9, max_attempts=1)
    assert claimed is not None
    assert (await store.complete(job.id, claimed.fence, {})).state is JobState.COMPLETE
    await store.close()


@pytest.mark.parametrize("version", ["0001", "0007", "jobs_9"])  # before the steps became one, and to come
async def test_a_database_of_another_version_is_refused_and_left_alone(engine: AsyncEngine, version: str) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(migrate)
        await connection.execute(text("UPDATE alembic_version SET version_num = :version"), {"version": version})
    with pytest.raises(
        UnknownVersion, match=f"has version {version}, which this software doesn't know.*delete it or use that version"
    ):
        async with engine.begin() as connection:
            await connection.run_sync(migrate)
    async with engine.connect() as connection:
        assert await connection.run_sync(version_of) == version
