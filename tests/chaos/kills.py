"""Jobs go on while processes are killed at random: what is lost, doubled or different afterwards.

Kills are spread over the run by how many jobs have ended, so that every one of them meets work in flight. Each picture
is compared with that of the same request before the first kill. In the end the job database is read beside the service.
"""

import asyncio
import random
import signal
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict
from rich.console import Console

from tests.chaos.client import StubbornClient, Told
from tests.chaos.ledger import read_ledger
from tests.chaos.running import LEASE_S, RunningService

START_S = 900.0  # a busy machine is slow, not broken
CONSOLE = Console(stderr=True)
_PATIENCE_S = 1800.0
_STAGES = ("TextEncoder", "SD15", "SDXLBase", "SDXLRefiner", "NSFWClassifier")
# what may happen to the service, and how often beside the others
_WEIGHTS = {
    **dict.fromkeys(_STAGES, 3),
    "Router": 6,
    "ServeController": 3,
    "ProxyActor": 3,
    "pause": 2,
    "everything": 1,
}


class KillFigures(BaseModel):
    """lost: jobs that never ended, or not with a picture. doubled: jobs beyond one for each request.

    different: pictures that aren't those of the undisturbed run. stale: jobs whose result was written by another than
    their last owner. adopted: jobs with more than one owner; attempts_max: most owners of one. gap_s: longest time
    without a job's end. All times in seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    jobs: int
    kills: dict[str, int]
    lost: int
    doubled: int
    different: int
    stale: int
    adopted: int
    attempts_max: int
    asked_again: int
    ended_p50_s: float
    ended_max_s: float
    gap_s: float
    seconds: float


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


async def measure_kills(service: RunningService, jobs: int, kills: int, at_once: int, seed: int) -> KillFigures:
    """Start the service, run `jobs` jobs, `at_once` at a time, under `kills` kills."""
    service.start()
    client = StubbornClient(service.url, patience_s=_PATIENCE_S)
    await client.ready(START_S)
    kinds = requests()
    first = await asyncio.gather(*(client.job(body, f"undisturbed-{number}") for number, body in enumerate(kinds)))
    undisturbed = [told.pictures for told in first]
    run = _Run(service, client, kinds, undisturbed, seed)
    started = time.monotonic()
    await asyncio.gather(run.kill_all(kills, jobs), run.ask_all(jobs, at_once))
    await client.ready(START_S)
    known = len(await client.jobs()) - len(kinds)
    ledger = await read_ledger(service.database_url)
    ends = sorted([started, *run.ends])
    seconds = sorted(told.seconds for told in run.told)
    return KillFigures(
        jobs=jobs,
        kills=dict(run.killed),
        lost=jobs - sum(told.status == "complete" and len(told.pictures) == 1 for told in run.told),
        doubled=known - jobs,
        different=run.different,
        stale=sum(entry.stale for entry in ledger),
        adopted=sum(entry.fence > 1 for entry in ledger),
        attempts_max=max(entry.fence for entry in ledger),
        asked_again=sum(told.tries - 1 for told in run.told),
        ended_p50_s=median(seconds),
        ended_max_s=seconds[-1],
        gap_s=max(later - earlier for earlier, later in pairwise(ends)),
        seconds=time.monotonic() - started,
    )


class _Run:
    """Jobs and kills side by side."""

    def __init__(
        self,
        service: RunningService,
        client: StubbornClient,
        kinds: list[dict[str, Any]],
        undisturbed: list[tuple[str, ...]],
        seed: int,
    ) -> None:
        self._service = service
        self._client = client
        self._kinds = kinds
        self._undisturbed = undisturbed
        self._rng = random.Random(seed)
        self._ended = asyncio.Condition()
        self.told: list[Told] = []
        self.ends: list[float] = []
        self.killed: Counter[str] = Counter()
        self.different = 0

    async def ask_all(self, jobs: int, at_once: int) -> None:
        """All jobs, by `at_once` clients."""
        numbers = iter(range(jobs))

        async def one_client() -> None:
            for number in numbers:
                await self._ask(number)

        await asyncio.gather(*(one_client() for _ in range(at_once)))

    async def _ask(self, number: int) -> None:
        kind = number % len(self._kinds)
        try:
            told = await self._client.job(self._kinds[kind], f"job-{number}")
        except (TimeoutError, RuntimeError) as error:
            CONSOLE.print(f"job-{number} is lost: {error!r}", markup=False)
            told = Told("", "lost", (), float("inf"), 1)
        self.told.append(told)
        self.different += told.pictures != self._undisturbed[kind]
        self.ends.append(time.monotonic())
        async with self._ended:
            self._ended.notify_all()

    async def kill_all(self, kills: int, jobs: int) -> None:
        """Kill something each time that so many jobs more have ended."""
        for number in range(kills):
            due = (number + self._rng.random()) * jobs / (kills + 1)
            async with self._ended:
                await self._ended.wait_for(lambda due=due: len(self.told) >= due)
            await self._kill_something()

    async def _kill_something(self) -> None:
        while True:
            names, weights = zip(*_WEIGHTS.items(), strict=True)
            [name] = self._rng.choices(names, weights)
            if name == "everything":
                await asyncio.to_thread(self._service.kill)
                self._service.start()
            else:
                wanted = "Router" if name == "pause" else name
                there = (await asyncio.to_thread(self._service.parts)).get(wanted)
                if not there:  # it is dead already
                    await asyncio.sleep(1)
                    continue
                victim = self._rng.choice(there)
                try:
                    if name == "pause":
                        await _pause(victim)
                    else:
                        victim.kill()
                except psutil.NoSuchProcess:  # it has just ended by itself
                    continue
            self.killed[name] += 1
            CONSOLE.print(f"{time.strftime('%H:%M:%S')} {len(self.told)} jobs, kill: {name}")
            return


async def _pause(router: psutil.Process) -> None:
    """Past its lease: what it then still writes must not count."""
    router.send_signal(signal.SIGSTOP)
    await asyncio.sleep(1.5 * LEASE_S)
    router.send_signal(signal.SIGCONT)


def log_tail(folder: Path, lines: int = 40) -> str:
    """The end of the service's log."""
    path = folder / "service.log"
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""
