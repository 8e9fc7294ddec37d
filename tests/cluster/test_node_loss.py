"""A node that loses its power under load: its jobs go on elsewhere, and another node comes in its place."""

import asyncio

import pytest

from tests.cluster.fake_cluster import FakeCluster, until
from tests.cluster.load import draw, draw_all, request
from tests.cluster.overlays import PATIENCE_S, scaling

_KINDS = 4
_RUNNING = {"SD15": 2, "TextEncoder": 1, "NSFWClassifier": 1}


@pytest.mark.cluster(long=True)
async def test_a_killed_nodes_jobs_go_on_elsewhere(cluster: FakeCluster) -> None:
    # two replicas of SD15 fill an L4, and with the encoder and the classifier there are two nodes
    await cluster.deploy(
        scaling(
            sd15={"min_replicas": 2, "max_replicas": 2},
            text_encoder={"min_replicas": 1},
            nsfw_classifier={"min_replicas": 1},
        )
    )
    await until(lambda: cluster.runs(_RUNNING), PATIENCE_S, "all replicas run")
    victim = await _node_of_most_stages(cluster)
    async with cluster.service() as client:
        alone = [await draw(client, request(number)) for number in range(_KINDS)]
        before = cluster.images_drawn(victim)
        load = asyncio.create_task(draw_all(client, [request(number % _KINDS) for number in range(6 * _KINDS)]))

        async def draws() -> bool:
            return cluster.images_drawn(victim) > before

        await until(draws, PATIENCE_S, "the node draws")
        assert not load.done()
        cluster.kill_node(victim)
        drawn = await load
    assert [one.pixels for one in drawn] == 6 * [one.pixels for one in alone]

    async def replaced() -> bool:
        nodes = {replica.node for replica in await cluster.replicas()}
        return victim not in nodes and len(nodes & set(await cluster.nodes())) == 2 and await cluster.runs(_RUNNING)

    await until(replaced, PATIENCE_S, "another node has taken its place")


async def _node_of_most_stages(cluster: FakeCluster) -> str:
    """Of the nodes that draw, the one with the most stages: its loss is the worst."""
    replicas = [replica for replica in await cluster.replicas() if replica.state == "RUNNING" and replica.node]
    drawing = {replica.node for replica in replicas if replica.deployment == "SD15"}
    stages = {node: {replica.deployment for replica in replicas if replica.node == node} for node in drawing if node}
    return max(stages, key=lambda node: len(stages[node]))
