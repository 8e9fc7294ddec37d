"""The parts: each measures one thing on a contender that runs."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

import psutil

from benchmarks.arrivals import poisson_arrivals
from benchmarks.http_clients import ImageClient
from benchmarks.load import closed_loop, open_loop, overtake, timed
from benchmarks.load_figures import load_figures, overtaking_figures
from benchmarks.peers.processes import busiest, processor_seconds, shared_fairly_bytes, spent_s
from benchmarks.peers.requests import alike, mixed
from benchmarks.peers.results import (
    Figures,
    HangUp,
    Idle,
    Kill,
    Mixed,
    Overload,
    PartName,
    Picture,
    Rates,
    Short,
    Steps,
    Throughput,
)
from benchmarks.servers import Server
from benchmarks.service_requests import ImageRequest

_LONG_STEPS, _LONG_JOBS = 50, 4
_OBJECTIVE = 3.0  # times the bare pipeline's call
_MIXED_AT_ONCE = 8
_KILLED_JOBS = 4
_UNDER_WAY_S = 0.5  # after which requests that were sent are being drawn


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured.

    Attributes:
        concurrency: clients at once, of closed loops with the demo checkpoint.
        real_concurrency: the same with the real one.
        closed_s: seconds of a closed loop, which also asks for two pictures of each client at least.
        rates: of open loops, in units of what the bare pipeline draws a second.
        open_s: seconds of an open loop.
        mixed: requests of all kinds.
        repeats: of single requests, where a median is taken.
        idle_s: for which the processes are watched.
        back_s: for which it is waited for a contender that was killed.
    """

    concurrency: tuple[int, ...] = (1, 4, 8, 16)
    real_concurrency: tuple[int, ...] = (1, 4)
    closed_s: float = 12.0
    rates: tuple[float, ...] = (0.4, 0.8, 1.2, 1.6, 2.0)
    open_s: float = 15.0
    mixed: int = 24
    repeats: int = 5
    idle_s: float = 15.0
    back_s: float = 90.0


QUICK = Scale(
    concurrency=(1, 2), real_concurrency=(1,), closed_s=0.0, rates=(0.5,), open_s=3.0, mixed=4, repeats=2, idle_s=3.0
)


@dataclass(frozen=True, slots=True)
class Running:
    """A contender that runs.

    Attributes:
        name: its own.
        connect: a further client of it, for the length of a block; all that it waits for is hung up then.
        client: asks it.
        server: its processes; None for a service that ran before.
        like: requests are like this one.
        concurrency: clients at once, of closed loops.
        closed_s: seconds of a closed loop.
        reference_s: the bare pipeline's call of such a request; its own lone request where that isn't known.
        scale: how much is measured.
        folder: of the results.
        seed: of prompts and arrivals.
        most_per_s: pictures that it drew at best, if that was measured.
    """

    name: str
    connect: Callable[[], AbstractAsyncContextManager[ImageClient]]
    client: ImageClient
    server: Server | None
    like: ImageRequest
    concurrency: tuple[int, ...]
    closed_s: float
    reference_s: float
    scale: Scale
    folder: Path
    seed: int
    most_per_s: float | None

    def processes(self) -> set[psutil.Process]:
        """The contender's. Raises RuntimeError for a service that ran before."""
        if self.server is None:
            raise RuntimeError("the processes of a service that ran before aren't known")
        return self.server.family()

    async def lone_s(self, seed: int) -> float:
        """A lone request's median seconds. Raises RuntimeError if one isn't drawn."""
        return await lone_s(self.client, self.like, seed, self.scale.repeats)


async def lone_s(client: ImageClient, like: ImageRequest, seed: int, pictures: int) -> float:
    """A lone request's median seconds. Raises RuntimeError if one isn't drawn."""
    return median([await timed(client, request) for request in islice(alike(like, seed), pictures)])


async def _picture(running: Running) -> Picture:
    request = running.like.model_copy(update={"prompt": "a large red circle on a blue background", "seed": 8})
    answer = await running.client.generate(request)
    if answer.fate != "done":
        raise RuntimeError(f"no picture: {answer.fate} {answer.reason}")
    file = running.folder / "pictures" / f"{running.name}.png"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(answer.image)
    return Picture(file=f"pictures/{file.name}")


async def _throughput(running: Running) -> Throughput:
    closed = {}
    for clients in running.concurrency:
        requests = alike(running.like, running.seed + clients)
        least = 2 * clients if running.closed_s else clients
        served = await closed_loop(running.client, requests, clients, seconds=running.closed_s, least=least)
        closed[clients] = load_figures(served, _OBJECTIVE * running.reference_s)
    return Throughput(closed=closed)


async def _steps(running: Running) -> Steps:
    few, many = running.like.steps, 3 * running.like.steps
    [short_s] = [await timed(running.client, next(alike(running.like, running.seed, steps=few)))]
    [long_s] = [await timed(running.client, next(alike(running.like, running.seed + 1, steps=many)))]
    return steps_of(few, short_s, many, long_s)


def steps_of(few: int, few_s: float, many: int, many_s: float) -> Steps:
    """The line through two pictures' seconds over their steps."""
    step_s = (many_s - few_s) / (many - few)
    return Steps(step_s=step_s, rest_s=few_s - few * step_s)


async def _rates(running: Running) -> Rates:
    objective_s = _OBJECTIVE * running.reference_s
    opened = []
    for number, share in enumerate(running.scale.rates):
        rate = share / running.reference_s
        arrivals = poisson_arrivals(rate, running.scale.open_s, running.seed + number) or (0.0,)
        served = await open_loop(running.client, alike(running.like, running.seed + number), arrivals)
        opened.append(load_figures(served, objective_s, rate))
    return Rates(objective_s=objective_s, opened=tuple(opened))


async def _mixed(running: Running) -> Mixed:
    requests = mixed(running.seed)
    served = await closed_loop(running.client, requests, _MIXED_AT_ONCE, seconds=0.0, least=running.scale.mixed)
    return Mixed(load=load_figures(served, float("inf")))


async def _short(running: Running) -> Short:
    alone_s = await running.lone_s(running.seed)
    behind = [
        await overtake(
            running.client,
            alike(running.like, running.seed + repeat),
            long_steps=_LONG_STEPS,
            short_steps=running.like.steps,
            long_jobs=_LONG_JOBS,
        )
        for repeat in range(1, (running.scale.repeats + 1) // 2 + 1)
    ]
    return Short(overtaking=overtaking_figures(behind, [alone_s]))


async def _idle(running: Running) -> Idle:
    await asyncio.sleep(_UNDER_WAY_S)
    family = running.processes()
    before, began = processor_seconds(family), time.monotonic()
    await asyncio.sleep(running.scale.idle_s)
    family |= running.processes()
    spent, took = spent_s(before, processor_seconds(family)), time.monotonic() - began
    return Idle(processor_share=spent / took, memory_bytes=shared_fairly_bytes(family))


async def _hangup(running: Running) -> HangUp:
    alone_s = await running.lone_s(running.seed)
    long = alike(running.like, running.seed + 1, steps=_LONG_STEPS)
    async with running.connect() as leaving:
        asked = [asyncio.create_task(leaving.generate(request)) for request in islice(long, _LONG_JOBS)]
        await asyncio.sleep(_UNDER_WAY_S)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    after_s = await timed(running.client, next(alike(running.like, running.seed + 2)))
    return HangUp(long_jobs=_LONG_JOBS, after_s=after_s, alone_s=alone_s)


async def _overload(running: Running) -> Overload:
    most_per_s = running.most_per_s or 1 / running.reference_s
    arrivals = poisson_arrivals(2 * most_per_s, running.scale.open_s, running.seed) or (0.0,)
    served = await open_loop(running.client, alike(running.like, running.seed), arrivals)
    load = load_figures(served, _OBJECTIVE * running.reference_s, 2 * most_per_s)
    return Overload(load=load, after_s=await running.lone_s(running.seed + 1))


async def _kill(running: Running) -> Kill:
    jobs = alike(running.like, running.seed, steps=_LONG_STEPS)
    before = processor_seconds(running.processes())
    async with running.connect() as client:
        asked = [asyncio.create_task(client.generate(request)) for request in islice(jobs, _KILLED_JOBS)]
        await asyncio.sleep(2 * _UNDER_WAY_S)
        busiest(before, processor_seconds(running.processes())).kill()
        killed = time.monotonic()
        back_s = None
        for request in alike(running.like, running.seed + 1):
            left_s = running.scale.back_s - (time.monotonic() - killed)
            if left_s <= 0:
                break
            fate = await _fate(running.client, request, left_s)
            if fate == "done":
                back_s = time.monotonic() - killed
                break
            await asyncio.sleep(_UNDER_WAY_S)
        ended, silent = await asyncio.wait(asked, timeout=max(1.0, running.scale.back_s - (time.monotonic() - killed)))
        for task in silent:
            task.cancel()
        await asyncio.gather(*silent, return_exceptions=True)
    answered = sum(task.result().fate == "done" for task in ended)
    failed = len(ended) - answered
    return Kill(asked=len(asked), answered=answered, failed=failed, silent=len(silent), back_s=back_s)


async def _fate(client: ImageClient, request: ImageRequest, patience_s: float) -> str:
    try:
        async with asyncio.timeout(patience_s):
            return (await client.generate(request)).fate
    except TimeoutError:
        return "silent"


PARTS: Mapping[PartName, Callable[[Running], Awaitable[Figures]]] = {
    "picture": _picture,
    "throughput": _throughput,
    "steps": _steps,
    "rates": _rates,
    "mixed": _mixed,
    "short": _short,
    "idle": _idle,
    "hangup": _hangup,
    "overload": _overload,
    "kill": _kill,
}
"""In their order: the last ones leave a contender behind that may be busy, or broken."""
