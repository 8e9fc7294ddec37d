"""`serve deploy` of a changed configuration under load: every replica is replaced, and no request fails."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.cluster.fake_cluster import FakeCluster, until
from tests.cluster.load import Drawn, draw, request
from tests.cluster.overlays import PATIENCE_S, scaling

_KINDS, _CLIENTS = 4, 4


@asynccontextmanager
async def _steady_load(cluster: FakeCluster) -> AsyncIterator[list[tuple[int, Drawn]]]:
    """Clients that ask for one image after another while the block runs; their images. Raises what a client met."""
    drawn: list[tuple[int, Drawn]] = []
    ending = asyncio.Event()

    async def ask(kind: int) -> None:
        async with cluster.service() as client:
            while not ending.is_set():
                drawn.append((kind, await draw(client, request(kind))))

    async def look() -> None:
        async with cluster.service() as client:
            while not ending.is_set():
                for path in ("/health", "/models"):
                    (await client.get(path)).raise_for_status()
                await asyncio.sleep(0.2)

    async with asyncio.TaskGroup() as group:
        for number in range(_CLIENTS):
            group.create_task(ask(number % _KINDS))
        group.create_task(look())
        try:
            yield drawn
        finally:
            ending.set()


@pytest.mark.cluster(long=True)
async def test_a_changed_configuration_under_load(cluster: FakeCluster) -> None:
    fewest = {"min_replicas": 1}
    shipped = scaling(sd15={**fewest, "max_replicas": 2}, text_encoder=fewest, nsfw_classifier=fewest)
    await cluster.deploy(shipped)
    running = {"SD15": 1, "TextEncoder": 1, "NSFWClassifier": 1, "Router": 1}
    await until(lambda: cluster.runs(running), PATIENCE_S, "all replicas run")
    async with cluster.service() as client:
        alone = [await draw(client, request(number)) for number in range(_KINDS)]
        old = {replica.replica_id for replica in await cluster.replicas()}
        changed = {"limits": {"default_timeout_s": 700}, "stages": {"sd15": {"engine": {"max_rows": 8}}}}
        async with _steady_load(cluster) as drawn:
            await cluster.deploy(shipped, changed)

            async def replaced() -> bool:
                replicas = await cluster.replicas()
                new = {replica.deployment for replica in replicas if replica.replica_id not in old}
                gone = not any(
                    replica.replica_id in old for replica in replicas if replica.deployment in ("SD15", "Router")
                )
                return {"SD15", "Router"} <= new and gone and await cluster.runs(running)

            await until(replaced, PATIENCE_S, "SD15 and the router are new")
            since = len(drawn)

            async def drawn_by_the_new() -> bool:
                return len(drawn) >= since + 2 * _CLIENTS

            await until(drawn_by_the_new, PATIENCE_S, "the new replicas draw")
    assert {(kind, one.pixels) for kind, one in drawn} == {(kind, one.pixels) for kind, one in enumerate(alone)}
    assert len({one.job_id for _, one in drawn}) == len(drawn)
