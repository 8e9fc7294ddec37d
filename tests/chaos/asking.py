"""The jobs of a run: asked for by several clients at a time, and compared with those of the undisturbed service.

A dozen unlike requests, again and again; what is done to the service meanwhile is spread over the run by how many jobs
have ended, so that every fault meets work in flight.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from statistics import median
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.console import Console

from tests.chaos.client import StubbornClient, Told
from tests.chaos.ledger import read_ledger
from tests.chaos.running import RunningService

CONSOLE = Console(stderr=True)
START_S = 900.0  # a busy machine is slow, not broken
_PATIENCE_S = 1800.0


class JobFigures(BaseModel):
    """lost: jobs that never ended, or not with a picture. doubled: jobs beyond one for each key of a request.

    different: pictures that aren't those of the undisturbed run. stale: jobs whose result was written by another than
    their last owner. adopted: jobs with more than one owner; owners_most: of one job. failed: jobs that said so for
    the reason that they had, and were asked for under another key. asked_again: POSTs that were refused or broke.
    gap_s: longest time without a job's end. All times in seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    jobs: int
    lost: int
    doubled: int
    different: int
    stale: int
    adopted: int
    owners_most: int
    failed: int
    asked_again: int
    ended_p50_s: float
    ended_max_s: float
    gap_s: float
    seconds: float

    @property
    def broken(self) -> bool:
        """A promise was."""
        return bool(self.lost or self.doubled or self.different or self.stale)


def requests() -> list[dict[str, Any]]:
    """A dozen unlike ones, all of them reproducible to the bit."""
    shapes = ("red circle", "blue square", "green star", "yellow ring")
    return [
        {
            "prompt": f"a large {shape} on a white background",
            "model": model,
            "seed": 100 + number,
            "steps": 10 + number,
            "width": 128,
            "height": 128,
            "scheduler": sampler,
            "reproducible": True,
            "safety": "block",
        }
        for number, shape in enumerate(shapes)
        for model, sampler in (("demo-sd15", "dpmpp_2m"), ("demo-sdxl", "euler_a"), ("demo-sd15-stripes", "heun"))
    ]


class Asking:
    """jobs: how many, at_once of them at a time. excuses: codes of errors with which a job may end without being lost.

    seed: of the moments at which something is done to the service.
    """

    def __init__(
        self, service: RunningService, jobs: int, at_once: int, seed: int, excuses: frozenset[str] = frozenset()
    ) -> None:
        self._service = service
        self._client = StubbornClient(service.url, patience_s=_PATIENCE_S)
        self._kinds = requests()
        self._jobs = jobs
        self._at_once = at_once
        self._excuses = excuses
        self._undisturbed: list[tuple[str, ...]] = []
        self._ended = asyncio.Condition()
        self._told: list[Told] = []
        self._keys = 0
        self._failed = 0
        self._ends: list[float] = []
        self._different = 0
        self.rng = random.Random(seed)

    async def undisturbed(self) -> None:
        """See each request's picture before anything happens."""
        await self._client.ready(START_S)
        told = await asyncio.gather(*(self._ask_once(number, f"undisturbed-{number}") for number in self._numbers()))
        if not all(one.pictures for one in told):
            raise RuntimeError(f"the undisturbed service draws nothing: {told}")
        self._undisturbed = [one.pictures for one in told]

    def _numbers(self) -> range:
        return range(len(self._kinds))

    async def ask_all(self) -> None:
        """All jobs, each to its end."""
        numbers = iter(range(self._jobs))
        self._ends = [time.monotonic()]

        async def one_client() -> None:
            for number in numbers:
                await self._ask(number)

        await asyncio.gather(*(one_client() for _ in range(self._at_once)))

    async def moments(self, count: int) -> AsyncIterator[None]:
        """So many moments, spread over the run."""
        for number in range(count):
            due = (number + self.rng.random()) * self._jobs / (count + 1)
            async with self._ended:
                await self._ended.wait_for(lambda due=due: len(self._told) >= due)
            yield

    def note(self, what: str) -> None:
        """Say what was done."""
        CONSOLE.print(f"{time.strftime('%H:%M:%S')} {len(self._told)} jobs, {what}", markup=False)

    async def figures(self) -> JobFigures:
        """After it all, when the service is well again."""
        seconds = self._ends[-1] - self._ends[0]
        await self._client.ready(START_S)
        ledger = await read_ledger(self._service.database_url)
        if {job["job_id"] for job in await self._client.jobs()} != {entry.job_id for entry in ledger}:
            raise RuntimeError("the service and its database don't know the same jobs")
        times = sorted(told.seconds for told in self._told)
        return JobFigures(
            jobs=self._jobs,
            lost=self._jobs - sum(told.status == "complete" and len(told.pictures) == 1 for told in self._told),
            doubled=len(ledger) - self._keys,
            different=self._different,
            stale=sum(entry.stale for entry in ledger),
            adopted=sum(entry.fence > 1 for entry in ledger),
            owners_most=max(entry.fence for entry in ledger),
            failed=self._failed,
            asked_again=sum(told.tries - 1 for told in self._told),
            ended_p50_s=median(times),
            ended_max_s=times[-1],
            gap_s=max(later - earlier for earlier, later in pairwise(self._ends)),
            seconds=seconds,
        )

    async def _ask(self, number: int) -> None:
        kind = number % len(self._kinds)
        told = await self._ask_once(kind, f"job-{number}")
        while told.code in self._excuses:
            self._failed += 1
            told = await self._ask_once(kind, f"job-{number}-{self._failed}")
        if told.pictures != self._undisturbed[kind]:
            self._different += bool(told.pictures)
            self.note(f"job-{number} isn't what it should be: {told}")
        self._told.append(told)
        self._ends.append(time.monotonic())
        async with self._ended:
            self._ended.notify_all()

    async def _ask_once(self, kind: int, key: str) -> Told:
        self._keys += 1
        try:
            return await self._client.job(self._kinds[kind], key)
        except (TimeoutError, RuntimeError) as error:
            self.note(f"{key} is lost: {error!r}")
            return Told("", "lost", None, (), float("inf"), 1)
