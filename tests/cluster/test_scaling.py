"""GPU nodes come with work and go without it; what is drawn meanwhile is what an idle service draws."""

import pytest

from tests.cluster.fake_cluster import FakeCluster, until
from tests.cluster.load import draw, draw_all, request
from tests.cluster.overlays import PATIENCE_S, scaling
from tests.cluster.watch import watched_nodes

_KINDS = 4


async def _no_node(cluster: FakeCluster) -> bool:
    return not await cluster.nodes()


@pytest.mark.cluster(long=True)
async def test_a_gpu_node_comes_with_work_and_goes_without_it(cluster: FakeCluster) -> None:
    await cluster.deploy(scaling(sd15={"max_replicas": 1}))
    await until(cluster.ready, PATIENCE_S, "the service takes requests")
    await until(lambda: _no_node(cluster), PATIENCE_S, "there is no GPU node")
    async with cluster.service() as client, watched_nodes(cluster) as seen:
        under_load = await draw_all(client, [request(number % _KINDS) for number in range(3 * _KINDS)])
        alone = [await draw(client, request(number)) for number in range(_KINDS)]
    assert [drawn.pixels for drawn in under_load] == 3 * [drawn.pixels for drawn in alone]
    assert len({drawn.pixels for drawn in alone}) == _KINDS
    assert set(seen.most) == {"worker_l4"}
    await until(lambda: _no_node(cluster), PATIENCE_S, "all GPU nodes have gone")


@pytest.mark.cluster(long=True)
async def test_nodes_of_both_types_come_with_work_and_go_without_it(cluster: FakeCluster) -> None:
    # as many nodes as a laptop can hold; none leaves before all have come and its images were drawn alone, too
    few = {"sd15": {"max_replicas": 3}, "sdxl_base": {"max_replicas": 2}, "sdxl_refiner": {"max_replicas": 1}}
    await cluster.deploy(scaling(downscale_delay_s=90.0, **few))
    await until(cluster.ready, PATIENCE_S, "the service takes requests")
    await until(lambda: _no_node(cluster), PATIENCE_S, "there is no GPU node")
    requests = [request(number, model) for number in range(_KINDS) for model in ("sd15", "sdxl")]
    async with cluster.service() as client, watched_nodes(cluster) as seen:
        under_load = await draw_all(client, 6 * requests)
        alone = [await draw(client, body) for body in requests]
        without_refiner = await draw(client, request(0, "sdxl", refiner=False))
    assert [drawn.pixels for drawn in under_load] == 6 * [drawn.pixels for drawn in alone]
    assert without_refiner.pixels != alone[1].pixels
    assert seen.most["worker_l4"] >= 2
    assert seen.most["worker_l40s"] >= 2  # the base's and the refiner's
    for deployment, node_type in (("SD15", "worker_l4"), ("SDXLBase", "worker_l40s"), ("SDXLRefiner", "worker_l40s")):
        nodes = {record["node_id"] for record in cluster.log_records(deployment)}
        assert {seen.types[node] for node in nodes & set(seen.types)} == {node_type}
    await until(lambda: _no_node(cluster), PATIENCE_S, "all GPU nodes have gone")
