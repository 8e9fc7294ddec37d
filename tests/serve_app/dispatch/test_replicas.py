"""The dispatcher over real replicas of a stage, which come and go under a backlog."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from deployments.autoscaling import DemandPolicy
from deployments.config import StageSettings, StagesSettings
from deployments.demand import Demand
from deployments.dispatch import Dispatch, ReplicaLoad
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import EngineSettings
from deployments.engine.errors import ReplicaFull, Withdrawn
from deployments.engine.stats import EngineStats
from deployments.engine.types import (
    Conditioning,
    DenoiseRequest,
    DenoiseResult,
    Event,
    Priority,
    Progress,
    PromptEmbedding,
)
from deployments.replica_lists import DeploymentKey, running
from deployments.replica_router import ReplicaRouter
from deployments.sd15 import SD15
from serve_app.stages.client import StageCalls, Stages
from tests.ray_cluster import RayCluster
from tests.serve_app.dispatch.test_backlog import request
from tests.serve_app.front import until
from tests.tiny_checkpoints import PUBLISHED_LAYERS, TEXT_CHANNELS, write_tiny_sd15

pytestmark = pytest.mark.ray

APP = "dispatched"
REPLICAS = 3
ENGINE = EngineSettings(max_rows=4, cpu_threads=1, resident_checkpoints=1, progress_interval_s=0.0)
STAGE = StageSettings(engine=ENGINE)


def conditioning() -> Conditioning:
    random = np.random.default_rng(0)
    positive, negative = (PromptEmbedding(random.standard_normal((77, TEXT_CHANNELS), np.float32)) for _ in range(2))
    return Conditioning(positive, negative)


class Encoded:
    """The encoding of a prompt that is there already."""

    def response(self) -> Conditioning:
        return conditioning()

    def renew(self, _used: Conditioning) -> None:
        pass


class Stage:
    """SD15 on one replica, or on more while a router says that it has work for them."""

    def __init__(self, catalogue: dict[str, CheckpointSpec]) -> None:
        deployment = serve.deployment(SD15).options(
            name="SD15",
            autoscaling_config=AutoscalingConfig(
                min_replicas=1,
                max_replicas=REPLICAS,
                upscale_delay_s=0,
                downscale_delay_s=600,
                policy=AutoscalingPolicy(policy_function=DemandPolicy, policy_kwargs={"target_work_s": 1.0}),
            ),
            ray_actor_options={"num_cpus": 0.1, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}},
            request_router_config=RequestRouterConfig(request_router_class=ReplicaRouter, initial_backoff_s=0.005),
            max_ongoing_requests=256,
        )
        self.handle: DeploymentHandle[Any] = serve.run(deployment.bind(STAGE, catalogue), name=APP, route_prefix=None)

    @contextmanager
    def calls(self, sender: str) -> Iterator[StageCalls]:
        stages = Stages(self.handle, {"sd15": self.handle}, None)
        calls = StageCalls(stages, StagesSettings(sd15=STAGE), sender=sender, attempts=3, patience_s=60.0)
        yield calls
        calls.close()

    @property
    def replicas(self) -> set[str]:
        return set(running(DeploymentKey(APP, "SD15")) or ())

    async def stats(self) -> dict[str, EngineStats]:
        """Of each replica."""
        stats = {}
        for replica in self.replicas:
            stats[replica] = await self.handle.stats.remote(Dispatch("test", replica))
        return stats


@pytest.fixture(scope="module")
def stage(ray_serve: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Lanes of more layers last long enough to be worth another replica, or a wait for theirs."""
    folder = tmp_path_factory.mktemp("dispatched")
    catalogue = {
        name: CheckpointSpec(family="sd15", source=str(write_tiny_sd15(folder / name, seed, PUBLISHED_LAYERS)))
        for seed, name in enumerate(("first", "second", "third"), 1)
    }
    yield Stage(catalogue)
    serve.delete(APP)


def lane(**fields: Any) -> DenoiseRequest:
    return request(**{"width": 64, "height": 64, "steps": 20} | fields)


class Burst:
    """Lanes of one router, and where they were drawn."""

    def __init__(self, calls: StageCalls) -> None:
        self._calls = calls
        self.results: dict[str, DenoiseResult] = {}
        self.begun: list[str] = []

    async def draw(self, lanes: list[DenoiseRequest]) -> None:
        await asyncio.gather(*(self._draw(each) for each in lanes))

    async def _draw(self, asked: DenoiseRequest) -> None:
        def progress(event: Progress) -> None:
            if event.lane_id not in self.begun:
                self.begun.append(event.lane_id)

        encoded: Any = Encoded()
        self.results[asked.lane_id] = await self._calls.denoise("sd15", lambda _: asked, encoded, progress)


async def until_it_steps(stream: AsyncIterator[Event | ReplicaLoad]) -> None:
    async with asyncio.timeout(60):
        while not isinstance(await anext(stream), Progress):
            pass


async def test_an_interactive_lane_begins_before_the_backlog(stage: Stage) -> None:
    with stage.calls("router-1") as calls:
        burst = Burst(calls)
        drawing = asyncio.create_task(burst.draw([lane(seed=seed) for seed in range(30)]))
        await until(lambda: burst.begun, 60)
        urgent = lane(priority=Priority.INTERACTIVE)
        await burst.draw([urgent])
        assert len(burst.begun) < 20, "the backlog waits"
        await drawing


async def test_a_replica_refuses_what_it_has_no_room_for(stage: Stage) -> None:
    await until(lambda: len(stage.replicas) == 1, 60)
    [replica] = stage.replicas
    call = stage.handle.denoise.options(stream=True)
    dispatch = Dispatch("router-1", replica)
    held = []
    try:
        for taken in range(1, 5):  # one after the other: calls at once arrive in any order
            held.append(call.remote(lane(steps=1000), conditioning(), dispatch))
            load = await anext(aiter(held[-1]))
            assert isinstance(load, ReplicaLoad)
            assert (load.replica, load.batches(), load.accepted) == (replica, taken / 2, True)
        refused = aiter(call.remote(lane(), conditioning(), dispatch))
        load = await anext(refused)
        assert (load.batches(), load.accepted) == (2.0, False)
        with pytest.raises(ReplicaFull):
            await anext(refused)
    finally:
        for stream in held:
            stream.cancel()
    async with asyncio.timeout(60):
        while (await stage.stats())[replica].lanes_active:  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.05)


async def test_a_lane_that_has_not_begun_is_given_back(stage: Stage) -> None:
    """It waits for its checkpoint to be loaded; the one that takes steps stays."""
    [replica] = stage.replicas
    call = stage.handle.denoise.options(stream=True)
    dispatch = Dispatch("router-1", replica)
    stepping, waiting = lane(steps=1000), lane(checkpoint="second")
    begun = aiter(call.remote(stepping, conditioning(), dispatch))
    await until_it_steps(begun)
    unbegun = aiter(call.remote(waiting, conditioning(), dispatch))
    assert isinstance(await anext(unbegun), ReplicaLoad)
    await stage.handle.withdraw.remote([stepping.lane_id, waiting.lane_id], dispatch)
    with pytest.raises(Withdrawn):
        await anext(unbegun)
    await until_it_steps(begun)
    begun.cancel()


async def test_two_routers_share_a_replica_and_lose_nothing(stage: Stage) -> None:
    with stage.calls("router-1") as first, stage.calls("router-2") as second:
        bursts = [Burst(first), Burst(second)]
        await asyncio.gather(*(burst.draw([lane(seed=seed, steps=5) for seed in range(15)]) for burst in bursts))
    assert [len(burst.results) for burst in bursts] == [15, 15]


async def test_a_burst_is_shared_by_replicas_that_come_during_it(stage: Stage) -> None:
    """Each new one draws, as many as a router's demand asks for; the pictures are those of a replica alone."""
    before = {replica: each.finished_total for replica, each in (await stage.stats()).items()}
    with stage.calls("router-1") as calls:
        burst = Burst(calls)
        seeds = itertools.count()
        lanes = [lane(seed=next(seeds), reproducible=True, steps=40) for _ in range(10)]
        drawing = [asyncio.create_task(burst.draw(lanes))]
        while len(stage.replicas) < REPLICAS:  # more work comes until they are there
            await stage.handle.report_demand.remote(Demand("router-1", float(REPLICAS), 10.0, 0.0))
            await asyncio.sleep(0.2)
            if len(burst.results) > len(lanes) - 5:
                more = [lane(seed=next(seeds), reproducible=True, steps=40) for _ in range(5)]
                lanes += more
                drawing.append(asyncio.create_task(burst.draw(more)))
        more = [lane(seed=next(seeds), reproducible=True, steps=40) for _ in range(18)]
        drawing.append(asyncio.create_task(burst.draw(more)))
        await asyncio.gather(*drawing)
        stats = await stage.stats()
        drew = {replica: each.finished_total - before.get(replica, 0) for replica, each in stats.items()}
        assert sum(drew.values()) == len(lanes) + len(more), "nothing lost, nothing twice"
        assert len(drew) == REPLICAS
        assert min(drew.values()) >= 3, drew

        alone = Burst(calls)
        await alone.draw([lane(lane_id="again", seed=7, reproducible=True, steps=40)])
        seventh = burst.results[lanes[7].lane_id].image
        assert seventh is not None
        np.testing.assert_array_equal(alone.results["again"].image, seventh)


async def test_three_checkpoints_on_as_many_replicas_stay_where_they_are(stage: Stage) -> None:
    assert len(stage.replicas) == REPLICAS
    before = {replica: each.loads_total for replica, each in (await stage.stats()).items()}
    names = ("first", "second", "third")
    with stage.calls("router-1") as calls:
        await Burst(calls).draw([lane(seed=seed, checkpoint=names[seed % 3]) for seed in range(45)])
    loads = [each.loads_total - before[replica] for replica, each in (await stage.stats()).items()]
    # one each; a replica that has nothing to do may help one that is behind. Placed by turns, 30 lanes find another's
    assert sum(loads) <= 2 * REPLICAS, loads
