"""How often a stage that scaled up for a burst of streamed lanes goes back to no replica (ray-project/ray 61551).

    python -m tests.cluster.returns --times 30

SD15 of a tiny checkpoint on a Ray of its own, scaled by a router's demand as in the service, with short delays.
"""

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from rich.console import Console

from deployments.autoscaling import DemandPolicy
from deployments.config import StageSettings, StagesSettings
from deployments.demand import Demand
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import EngineSettings
from deployments.replica_lists import DeploymentKey, running
from deployments.replica_router import ReplicaRouter
from deployments.sd15 import SD15
from serve_app.dispatch.demand_reporter import DemandReporter
from serve_app.stages.client import StageCalls, Stages
from tests.cluster.fake_cluster import until
from tests.ray_cluster import ray_cluster
from tests.serve_app.dispatch.test_backlog import request
from tests.serve_app.dispatch.test_replicas import Burst
from tests.tiny_checkpoints import PUBLISHED_LAYERS, write_tiny_sd15

CONSOLE = Console()
_APP, _STAGE = "returns", "SD15"
_MOST, _LANES = 2, 24
_PATIENCE_S = 180.0


def replicas() -> int:
    """Of the stage, as Serve tells its routers."""
    return len(running(DeploymentKey(_APP, _STAGE)) or ())


async def measure(folder: Path, times: int) -> list[tuple[int, float]]:
    """For each burst the most replicas, and the seconds from its last image to the last replica's end."""
    engine = EngineSettings(max_rows=4, cpu_threads=1, progress_interval_s=0.0)
    stage = StageSettings(engine=engine)
    catalogue = {
        "first": CheckpointSpec(family="sd15", source=str(write_tiny_sd15(folder / "first", layers=PUBLISHED_LAYERS)))
    }
    policy = AutoscalingPolicy(policy_function=DemandPolicy, policy_kwargs={"target_work_s": 1.0})
    deployment = serve.deployment(SD15).options(
        name=_STAGE,
        autoscaling_config=AutoscalingConfig(
            min_replicas=0,
            max_replicas=_MOST,
            upscale_delay_s=0,
            downscale_delay_s=2,
            look_back_period_s=11,
            policy=policy,
        ),
        ray_actor_options={"num_cpus": 0.1, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}},
        request_router_config=RequestRouterConfig(request_router_class=ReplicaRouter, initial_backoff_s=0.005),
        max_ongoing_requests=256,
    )
    handle: Any = serve.run(deployment.bind(stage, catalogue), name=_APP, route_prefix=None)
    calls = StageCalls(
        Stages(handle, {"sd15": handle}, None),
        StagesSettings(sd15=stage),
        sender="router-1",
        attempts=3,
        patience_s=60.0,
    )
    work = Demand("router-1", 0.0, 0.0, 0.0)
    reporter = DemandReporter({"sd15": handle}, lambda _: work)
    reporter.start()
    figures = []
    for number in range(times):
        burst, most = Burst(calls), 0
        work = Demand("router-1", float(_MOST), float(_LANES), 0.0)
        lanes = [request(width=64, height=64, steps=40, seed=seed) for seed in range(_LANES)]
        drawing = asyncio.create_task(burst.draw(lanes))
        while not (drawing.done() and most == _MOST):
            most = max(most, replicas())
            await asyncio.sleep(0.1)
        await drawing
        work = Demand("router-1", 0.0, 0.0, 0.0)
        since = time.monotonic()

        async def gone() -> bool:
            return replicas() == 0

        await until(gone, _PATIENCE_S, "no replica is left")
        figures.append((most, time.monotonic() - since))
        CONSOLE.print(
            f"{number + 1}: {most} replicas drew {len(burst.results)} images, gone after {figures[-1][1]:.0f} s"
        )
    await reporter.stop()
    calls.close()
    return figures


def main(times: Annotated[int, typer.Option(min=1)] = 30) -> None:
    """Send bursts to a stage that may sleep, and see it asleep again after each."""
    with tempfile.TemporaryDirectory(prefix="dkr-", dir="/tmp") as folder, ray_cluster():
        figures = asyncio.run(measure(Path(folder), times))
    CONSOLE.print(
        f"{len(figures)} of {times} returns, the slowest after {max(seconds for _, seconds in figures):.0f} s"
    )


if __name__ == "__main__":
    typer.run(main)
