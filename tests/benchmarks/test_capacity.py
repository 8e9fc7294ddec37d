"""The model of a cluster: time jumps, and what comes out is what can be worked out by hand."""

import asyncio
import time

import pytest

from benchmarks.capacity import Cluster, Costs, SimulatedTime, run, simulate
from deployments.engine.config import EngineSettings

COSTS = Costs(step_base=0.01, step_row=0.005, decode=0.2, front=0.02, cores=0)
STEPS = 10


def cluster(most: int, costs: Costs = COSTS, startup_s: float = 100.0) -> Cluster:
    return Cluster(costs, EngineSettings(device="cpu", max_rows=16), most, startup_s, target_work_s=1.0)


def alone(rows: int) -> float:
    """Seconds of a batch of so many rows, decodes aside."""
    return STEPS * (COSTS.step_base + COSTS.step_row * rows)


def test_time_jumps() -> None:
    async def sleep() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    real = time.monotonic()
    assert run(sleep()) == pytest.approx(3600)
    assert time.monotonic() - real < 60

    async def stand_still() -> float:
        await asyncio.Event().wait()
        return 0.0

    with asyncio.Runner(loop_factory=SimulatedTime) as runner, pytest.raises(RuntimeError, match="stands still"):
        runner.run(stand_still())


def test_one_job_takes_what_its_parts_take() -> None:
    one = cluster(1)
    end = run(simulate(one, routers=1, start=1, steps=STEPS, work_s=1.0, arrivals=[0.0]))
    assert end == pytest.approx(COSTS.front + alone(2) + COSTS.decode)
    assert one.totals == [pytest.approx(end)]


def test_a_batch_shares_its_steps() -> None:
    costs = Costs(COSTS.step_base, COSTS.step_row, COSTS.decode, 0.0, 0)
    eight = cluster(1, costs)
    end = run(simulate(eight, routers=1, start=1, steps=STEPS, work_s=1.0, arrivals=[0.0] * 8))
    # the first step is the first lane's alone: the others come while it is under way
    assert end == pytest.approx(alone(16) + costs.step_base + 2 * costs.step_row + 8 * costs.decode, rel=0.05)
    assert eight.replicas["replica-0000"].images == 8


def test_replicas_that_come_share_a_burst() -> None:
    four = cluster(4, startup_s=5.0)
    run(simulate(four, routers=2, start=1, steps=STEPS, work_s=1.0, arrivals=[0.0] * 200))
    drawn = [replica.images for replica in four.replicas.values()]
    assert sum(drawn) == 200
    assert len(drawn) == 4
    assert min(drawn) >= 25


def test_replicas_that_share_cores_are_slower() -> None:
    shared = Costs(COSTS.step_base, COSTS.step_row, COSTS.decode, 0.0, cores=1)
    ends = [
        run(simulate(cluster(2, costs), routers=1, start=2, steps=STEPS, work_s=1.0, arrivals=[0.0] * 32))
        for costs in (Costs(COSTS.step_base, COSTS.step_row, COSTS.decode, 0.0, 0), shared)
    ]
    assert ends[1] == pytest.approx(2 * ends[0], rel=0.1)
