"""How many images a cluster would draw: the real dispatchers in simulated time, over simulated replicas.

    python -m benchmarks.capacity --replicas 1000 --routers 8 --load 0.8
    python -m benchmarks.capacity --burst 96 --start 1 --replicas 4 --startup 50 --cores 1

Dispatchers, backlogs, placement and the replicas' ledgers are those of the service; what takes time is a number: a
UNet step, a decode, a replica's start, the router's own work for a job. Time jumps from one event to the next, so an
hour of 1,000 GPUs takes minutes. The processor time that the dispatchers really take is measured on the way: a router
has one core.
"""

import asyncio
import itertools
import random
import selectors
import statistics
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from rich.console import Console

from deployments.dispatch import ReplicaLoad
from deployments.engine.config import EngineSettings
from deployments.engine.errors import ReplicaFull
from deployments.engine.types import DenoiseRequest, Priority
from deployments.lane_ledger import LaneLedger
from deployments.replica_lists import DeploymentKey, publish
from serve_app.dispatch.dispatcher import Dispatcher, Place

CONSOLE = Console()
# Serve's replicas report what routers want so often
_REPORT_S = 10.0


class SimulatedTime(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        """Simulated seconds."""
        return self.now


class _Jumping(selectors.DefaultSelector):
    def __init__(self, loop: SimulatedTime) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("the simulation stands still: nothing waits for time to pass")
        self._loop.now += max(0.0, timeout)
        return super().select(0)


@dataclass(frozen=True, slots=True)
class Costs:
    """What takes time; seconds.

    Attributes:
        step_base, step_row: a UNet step is the first, and the second for each of its rows.
        decode: an image's decode, which its replica's steps wait for.
        front: a router's processor for a job: HTTP, database, events, the finished image.
        cores: that the replicas share; 0: each has a device of its own.
    """

    step_base: float
    step_row: float
    decode: float
    front: float
    cores: int


@dataclass
class Lane:
    """A lane in a replica."""

    request: DenoiseRequest
    place: Place
    left: int
    done: asyncio.Future[None]


class Replica:
    """Steps the lanes that it has accepted, as many as a batch takes, the first of them first."""

    def __init__(self, name: str, cluster: "Cluster") -> None:
        self.name = name
        self.images = 0
        self._cluster = cluster
        self._lanes: list[Lane] = []
        limit = cluster.engine.max_rows
        self._ledger = LaneLedger(name, lambda _: limit, lambda _: cluster.costs.step_row)
        self._stepping: asyncio.Task[None] | None = None

    def load(self) -> ReplicaLoad:
        """What it tells routers."""
        return self._ledger.load(("checkpoint",))

    async def denoise(self, request: DenoiseRequest, place: Place) -> None:
        """A lane, until its image is done. Raises ReplicaFull."""
        if not self._ledger.accept(request, bounded=True):
            place.said(self._ledger.report("", request, ("checkpoint",), accepted=False))
            raise ReplicaFull("no room")
        lane = Lane(request, place, request.steps, asyncio.get_running_loop().create_future())
        self._lanes.append(lane)
        place.said(self.load())
        if self._stepping is None:
            self._stepping = asyncio.create_task(self._step())
        try:
            await lane.done
        finally:
            self._ledger.remove(request)

    async def _step(self) -> None:
        costs, rows = self._cluster.costs, self._cluster.engine.max_rows // 2
        while self._lanes:
            batch = self._lanes[:rows]
            await asyncio.sleep(self._cluster.slowed(costs.step_base + costs.step_row * 2 * len(batch)))
            for lane in batch:
                lane.left -= 1
                lane.place.stepped()
            ended = [lane for lane in batch if not lane.left]
            if ended:
                await asyncio.sleep(self._cluster.slowed(costs.decode * len(ended)))
            for lane in ended:
                self._lanes.remove(lane)
                self.images += 1
                lane.done.set_result(None)
        self._stepping = None

    @property
    def busy(self) -> bool:
        """Whether it has anything to step."""
        return self._stepping is not None


@dataclass
class Router:
    """A router: its dispatcher, and a processor that does one thing after the other."""

    dispatcher: Dispatcher
    free_at: float = 0.0
    work_s: float = 0.0
    lanes: int = 0

    async def use(self, seconds: float) -> None:
        """Take so much of its processor, when that is free."""
        now = asyncio.get_running_loop().time()
        self.free_at = max(now, self.free_at) + seconds
        await asyncio.sleep(self.free_at - now)


@dataclass
class Cluster:
    """Routers, replicas and an autoscaler.

    Attributes:
        startup_s: from the need for a replica to its first step.
        target_work_s: device seconds of unfinished work for each replica.
        waits, totals: seconds of each job to its place, and to its image.
    """

    costs: Costs
    engine: EngineSettings
    most: int
    startup_s: float
    target_work_s: float
    replicas: dict[str, Replica] = field(default_factory=dict)
    routers: list[Router] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    ready: dict[str, float] = field(default_factory=dict)
    coming: int = 0

    _KEY = DeploymentKey("capacity", "SD15")

    def slowed(self, seconds: float) -> float:
        """What a computation of so many seconds takes while replicas share cores."""
        if not self.costs.cores:
            return seconds
        # a replica that starts takes a share, too
        busy = sum(replica.busy for replica in self.replicas.values()) + self.coming
        return seconds * max(1.0, busy / self.costs.cores)

    def start(self, routers: int, replicas: int) -> None:
        """What is there at the beginning."""
        clock = asyncio.get_running_loop().time
        for number in range(routers):
            dispatcher = Dispatcher(self._KEY, self.engine, f"router-{number}", lambda *_: None, clock)
            self.routers.append(Router(dispatcher))
        for _ in range(replicas):
            self._add()

    def _add(self) -> None:
        name = f"replica-{len(self.replicas):04}"
        self.replicas[name] = Replica(name, self)
        self.ready[name] = asyncio.get_running_loop().time()
        publish(self._KEY, dict.fromkeys(self.replicas, frozenset({"checkpoint"})))

    async def scale(self) -> None:
        """Ask for replicas as DemandPolicy does, by what was reported last."""
        while True:
            await asyncio.sleep(_REPORT_S)
            wanted = sum(router.work_s for router in self.routers) / self.target_work_s
            for _ in range(min(self.most, round(wanted + 0.5)) - len(self.replicas) - self.coming):
                self.coming += 1
                asyncio.get_running_loop().call_later(self.startup_s, self._arrive)

    def _arrive(self) -> None:
        self.coming -= 1
        self._add()

    async def draw(self, router: Router, request: DenoiseRequest, work_s: float) -> None:
        """One job of one image, as StageCalls makes its calls."""
        clock = asyncio.get_running_loop().time
        began = clock()
        router.work_s += work_s
        router.lanes += 1
        await router.use(self.costs.front / 2)
        while True:
            async with router.dispatcher.place(request, work_s) as place:
                waited_s = clock() - began
                try:
                    await self.replicas[place.dispatch.replica].denoise(request, place)
                    break
                except ReplicaFull:
                    continue
        router.work_s -= work_s
        router.lanes -= 1
        await router.use(self.costs.front / 2)
        self.waits.append(waited_s)
        self.totals.append(clock() - began)


def requests(steps: int) -> Iterator[DenoiseRequest]:
    """Images of five tenants, one of twenty interactive."""
    for number in itertools.count():
        yield DenoiseRequest(
            lane_id=f"lane-{number}",
            checkpoint="checkpoint",
            seed=number,
            steps=steps,
            guidance_scale=5.0,
            width=512,
            height=512,
            sampler="euler",
            tenant=f"tenant-{number % 5}",
            priority=Priority.INTERACTIVE if number % 20 == 0 else Priority.NORMAL,
        )


async def simulate(
    cluster: Cluster, routers: int, start: int, steps: int, work_s: float, arrivals: list[float]
) -> float:
    """Let jobs arrive at these times, spread over the routers; returns the time at which the last one is done."""
    cluster.start(routers, start)
    scaling = asyncio.create_task(cluster.scale())
    asked, jobs = requests(steps), list[asyncio.Task[None]]()
    loop = asyncio.get_running_loop()
    for number, at in enumerate(arrivals):
        await asyncio.sleep(max(0.0, at - loop.time()))
        jobs.append(asyncio.create_task(cluster.draw(cluster.routers[number % routers], next(asked), work_s)))
    await asyncio.gather(*jobs)
    scaling.cancel()
    for router in cluster.routers:
        router.dispatcher.close()
    return loop.time()


def run(simulation: Coroutine[Any, Any, float]) -> float:
    """In simulated time."""
    with asyncio.Runner(loop_factory=SimulatedTime) as runner:
        return runner.run(simulation)


def main(
    replicas: Annotated[int, typer.Option(help="most of them")] = 8,
    start: Annotated[int | None, typer.Option(help="of them at the beginning; all without it")] = None,
    routers: Annotated[int, typer.Option()] = 1,
    burst: Annotated[int | None, typer.Option(help="jobs that come at once; a steady load without it")] = None,
    load: Annotated[float, typer.Option(help="of the replicas' capacity, where the load is steady")] = 0.8,
    seconds: Annotated[float, typer.Option(help="of steady load")] = 120.0,
    steps: Annotated[int, typer.Option(help="of each image")] = 20,
    max_rows: Annotated[int, typer.Option(help="UNet rows of a step, two an image")] = 16,
    step_base: Annotated[float, typer.Option(help="seconds of a step, whatever its rows")] = 0.010,
    step_row: Annotated[float, typer.Option(help="seconds of each of its rows")] = 0.006,
    decode: Annotated[float, typer.Option(help="seconds of a decode")] = 0.05,
    front: Annotated[float, typer.Option(help="seconds of a router's core for a job")] = 0.010,
    startup: Annotated[float, typer.Option(help="seconds until a new replica draws")] = 180.0,
    target_work: Annotated[float, typer.Option(help="device seconds for each replica")] = 20.0,
    cores: Annotated[int, typer.Option(help="that replicas share; 0: each has its own device")] = 0,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Simulate a burst or a steady load."""
    costs = Costs(step_base, step_row, decode, front, cores)
    work_s = steps * (step_base / (max_rows / 2) + 2 * step_row) + decode
    capacity = replicas / work_s
    rng = random.Random(seed)
    if burst is None:
        arrivals = list(
            itertools.accumulate(rng.expovariate(load * capacity) for _ in range(round(load * capacity * seconds)))
        )
    else:
        arrivals = [0.0] * burst
    engine = EngineSettings(device="cpu", max_rows=max_rows)
    cluster = Cluster(costs, engine, replicas, startup, target_work)
    real, cpu = time.monotonic(), time.process_time()
    end = run(simulate(cluster, routers, replicas if start is None else start, steps, work_s, arrivals))
    cpu = time.process_time() - cpu
    totals = sorted(cluster.totals)
    CONSOLE.print(
        f"{len(totals)} images in {end:.0f} s by {len(cluster.replicas)} replicas and {routers} routers: "
        f"{len(totals) / end:.1f} images/s (full devices: {capacity:.1f})"
    )
    CONSOLE.print(
        f"a job: median {statistics.median(totals):.1f} s, p99 {totals[int(0.99 * len(totals))]:.1f} s; "
        f"to its place: median {statistics.median(cluster.waits):.2f} s, most {max(cluster.waits):.1f} s"
    )
    drawn = Counter({name: replica.images for name, replica in cluster.replicas.items()})
    least, most = min(drawn.values()), max(drawn.values())
    CONSOLE.print(f"images of a replica: {least} to {most}")
    CONSOLE.print(
        f"processor time of dispatch and simulation: {1e3 * cpu / len(totals):.2f} ms a job, "
        f"{cpu / end / routers:.2f} cores of each router ({time.monotonic() - real:.0f} s in all)"
    )


if __name__ == "__main__":
    typer.run(main)
