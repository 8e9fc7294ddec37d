"""Fixtures of stores: jobs in databases of the test's own, under a clock that only the test moves.

What is in terms of `database_url` runs against every database that the store is written for.
"""

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from serve_app.jobs.db.store import JobStore
from tests.serve_app.clock import Clock
from tests.serve_app.lost_answers import Network, network_to
from tests.serve_app.object_server import ObjectServer, running_object_server
from tests.serve_app.postgres import MISSING, Postgres, binaries, running_postgres


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    folder = binaries()
    if folder is None:
        pytest.skip(MISSING)
    with running_postgres(folder) as server:
        yield server


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    name = f"test_{secrets.token_hex(6)}"
    yield postgres.create(name)
    postgres.drop(name)


@pytest.fixture
async def network(postgres: Postgres) -> AsyncIterator[Network]:
    """What `lossy_url` goes through."""
    async with network_to(postgres) as one:
        yield one


@pytest.fixture
def lossy_url(postgres_url: str, postgres: Postgres, network: Network) -> str:
    """A database whose answers may be lost."""
    return postgres_url.replace(f":{postgres.port}/", f":{network.port}/")


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/data/jobs.db"


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
async def store(database_url: str, clock: Clock) -> AsyncIterator[JobStore]:
    store = JobStore(database_url, clock)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def other_store(store: JobStore, database_url: str, clock: Clock) -> AsyncIterator[JobStore]:
    """A second store on the same database, as another process would have it."""
    other = JobStore(database_url, clock)
    await other.open()
    yield other
    await other.close()


@pytest.fixture(scope="module")
def object_server() -> Iterator[ObjectServer]:
    with running_object_server() as server:
        yield server


@pytest.fixture
def bucket_url(object_server: ObjectServer) -> str:
    return object_server.bucket()
