"""A database of any earlier version is brought up to the present tables, jobs and all, on every kind of database."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

import serve_app.jobs.db.migration as migration_module
from serve_app.jobs.db.migration import NewerDatabase, migrate
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


def only_first(tmp_path: Path) -> Path:
    """The migrations of the software that knew one step."""
    folder = tmp_path / "migrations %d"
    shutil.copytree(migration_module._FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for step in (folder / "versions").glob("v*.py"):
        if not step.name.startswith("v0001"):
            step.unlink()
    return folder


def write_a_job(connection: Connection) -> None:
    connection.execute(
        text(
            "INSERT INTO jobs (id, tenant, state, request, created_at)"
            " VALUES (:id, '', 'queued', '{\"prompt\"\\: \"x\"}', '2026-11-01 00:00:00+00:00')"
        ),
        {"id": JOB_ID},
    )


async def test_a_new_database_has_the_tables_that_the_store_expects(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(migrate)
        await connection.run_sync(migrate)
        differences = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync, opts={"compare_type": True}), metadata)
        )
    assert differences == []


async def test_a_database_of_the_first_version_keeps_its_jobs(
    engine: AsyncEngine, database_url: str, tmp_path: Path
) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(migrate, only_first(tmp_path))
        assert await connection.run_sync(version_of) == "0001"
        await connection.run_sync(write_a_job)
    await opens_with_its_job(database_url)


async def test_a_database_from_before_alembic_keeps_its_jobs(
    engine: AsyncEngine, database_url: str, tmp_path: Path
) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(migrate, only_first(tmp_path))
        await connection.run_sync(write_a_job)
        for statement in (
            "DROP TABLE alembic_version",
            "CREATE TABLE schema_version (version INTEGER NOT NULL)",
            "INSERT INTO schema_version VALUES (1)",
        ):
            await connection.execute(text(statement))
    await opens_with_its_job(database_url)
    async with engine.connect() as connection:
        assert not await connection.run_sync(lambda sync: inspect(sync).has_table("schema_version"))


async def opens_with_its_job(database_url: str) -> None:
    store = JobStore(database_url)
    for _ in range(2):
        await store.open()
    [job] = await store.queued()
    assert (job.id, job.tenant, job.request) == (JOB_ID, "", {"prompt": "x"})
    claimed = await store.claim(job.id, owner="me", lease_s=9, max_attempts=1)
    assert claimed is not None
    assert (await store.complete(job.id, claimed.fence, {})).state is JobState.COMPLETE
    await store.close()


@pytest.mark.parametrize(
    "statement",
    ["UPDATE alembic_version SET version_num = '9999'", "DROP TABLE alembic_version"],
    ids=["alembic", "before-alembic"],
)
async def test_a_newer_database_is_refused_and_left_alone(engine: AsyncEngine, statement: str) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(migrate)
        await connection.execute(text(statement))
        if "DROP" in statement:
            await connection.execute(text("CREATE TABLE schema_version (version INTEGER NOT NULL)"))
            await connection.execute(text("INSERT INTO schema_version VALUES (2)"))
    async with engine.connect() as connection:
        before = await connection.run_sync(version_of)
    with pytest.raises(NewerDatabase):
        async with engine.begin() as connection:
            await connection.run_sync(migrate)
    async with engine.connect() as connection:
        assert await connection.run_sync(version_of) == before
