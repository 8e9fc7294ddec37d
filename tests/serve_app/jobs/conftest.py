"""Stores of jobs on files of the test's own, under a clock that only the test moves."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serve_app.jobs.store import JobStore
from tests.serve_app.jobs.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/data/jobs.db"


@pytest.fixture
async def store(database_url: str, clock: Clock) -> AsyncIterator[JobStore]:
    store = JobStore(database_url, clock)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def other_store(store: JobStore, database_url: str, clock: Clock) -> AsyncIterator[JobStore]:
    """A second store on the same file, as another process would have it."""
    other = JobStore(database_url, clock)
    await other.open()
    yield other
    await other.close()
