"""Two routers on Postgres and a bucket; one is killed under load, and the other takes its jobs over."""

import asyncio
import sys
from collections.abc import Iterator

import httpx
import pytest

from tests.chaos.client import StubbornClient
from tests.chaos.ledger import read_ledger
from tests.cluster.fake_cluster import FakeCluster, until
from tests.cluster.load import request
from tests.cluster.overlays import BUCKET_PORT, PATIENCE_S, scaling
from tests.serve_app.postgres import MISSING, Postgres, binaries, running_postgres

_KINDS, _JOBS = 4, 24
_POSTGRES_PORT = 5432


@pytest.fixture
def postgres(cluster: FakeCluster) -> Iterator[Postgres]:
    """Outside of the cluster's namespaces, and on a port inside."""
    programs = binaries()
    if programs is None:
        pytest.skip(MISSING)
    socket = cluster.folder / "postgres.sock"
    relay = (sys.executable, "-m", "tests.cluster.relay")
    with running_postgres(programs) as server, cluster.space.outside(*relay, f"unix:{socket}=tcp:{server.port}"):
        cluster.space.start(*relay, f"tcp:{_POSTGRES_PORT}=unix:{socket}", log="postgres.log")
        yield server


@pytest.fixture
async def bucket(cluster: FakeCluster) -> str:
    """Its URL in the cluster; the server lives there."""
    cluster.space.start(sys.executable, "-m", "moto.server", "-p", str(BUCKET_PORT), log="bucket.log")
    socket = cluster.folder / "bucket.sock"
    relay = f"unix:{socket}=tcp:{BUCKET_PORT}"
    cluster.space.start(sys.executable, "-m", "tests.cluster.relay", relay, log="bucket.log")
    transport = httpx.AsyncHTTPTransport(uds=str(socket))
    async with httpx.AsyncClient(transport=transport, base_url="http://bucket") as client:

        async def created() -> bool:
            return (await client.put("/darkroom")).status_code == 200

        await until(created, PATIENCE_S, "the bucket is there")
    return "s3://darkroom/images"


@pytest.mark.cluster(long=True)
async def test_a_killed_routers_jobs_are_taken_over(cluster: FakeCluster, postgres: Postgres, bucket: str) -> None:
    database = postgres.create("cluster")
    fewest = {"min_replicas": 1}
    await cluster.deploy(
        scaling(sd15={**fewest, "max_replicas": 1}, text_encoder=fewest, nsfw_classifier=fewest),
        {
            "jobs": {
                "database_url": database.replace(f":{postgres.port}/", f":{_POSTGRES_PORT}/"),
                "heartbeat_s": 2.0,
                "lease_s": 10.0,
            },
            "images": {"url": bucket},
            "stages": {"router": {"replicas": 2}},
        },
    )
    running = {"SD15": 1, "TextEncoder": 1, "NSFWClassifier": 1, "Router": 2}
    await until(lambda: cluster.runs(running), PATIENCE_S, "all replicas run")
    client = StubbornClient("http://cluster", PATIENCE_S, cluster.socket)
    async with client.http:
        alone = [await client.job(request(number), f"alone-{number}") for number in range(_KINDS)]
        load = [asyncio.create_task(client.job(request(number % _KINDS), f"load-{number}")) for number in range(_JOBS)]

        async def under_way() -> bool:
            return _KINDS <= sum(task.done() for task in load) < _JOBS

        await until(under_way, PATIENCE_S, "some jobs have ended")
        first, second = cluster.replica_processes("Router")
        first.kill()
        told = await asyncio.gather(*load)
    assert [one.status for one in told] == ["complete"] * _JOBS
    assert [one.pictures for one in told] == [alone[number % _KINDS].pictures for number in range(_JOBS)]
    assert second.is_running()
    ledger = await read_ledger(database)
    assert len(ledger) == _KINDS + _JOBS
    assert not any(entry.stale for entry in ledger)
    assert max(entry.fence for entry in ledger) > 1  # at least one was taken over
