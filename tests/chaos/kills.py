"""Jobs go on while processes are killed at random, stopped past their lease, or all of them lost at once."""

import asyncio
import signal
from collections import Counter

import psutil

from tests.chaos.asking import Asking, JobFigures
from tests.chaos.running import LEASE_S, RunningService

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


class KillFigures(JobFigures):
    """kills: how often of what; "pause" is a router stopped past its lease, "everything" the machine's power."""

    kills: dict[str, int]


async def measure_kills(service: RunningService, jobs: int, kills: int, at_once: int, seed: int) -> KillFigures:
    """Start the service, run `jobs` jobs, `at_once` at a time, under `kills` kills."""
    asking = Asking(service, jobs, at_once, seed)
    killed: Counter[str] = Counter()

    async def kill_all() -> None:
        async for _ in asking.moments(kills):
            name = await _kill_something(service, asking)
            killed[name] += 1
            asking.note(f"kill: {name}")

    async with service.kept_up():
        await asking.undisturbed()
        await asyncio.gather(kill_all(), asking.ask_all())
        figures = await asking.figures()
    return KillFigures(**figures.model_dump(), kills=dict(killed))


async def _kill_something(service: RunningService, asking: Asking) -> str:
    while True:
        names, weights = zip(*_WEIGHTS.items(), strict=True)
        [name] = asking.rng.choices(names, weights)
        if name == "everything":
            await asyncio.to_thread(service.kill)
            return name
        there = (await asyncio.to_thread(service.parts)).get("Router" if name == "pause" else name)
        if not there:  # it is dead already
            await asyncio.sleep(1)
            continue
        victim = asking.rng.choice(there)
        try:
            if name == "pause":
                await _pause(victim)
            else:
                victim.kill()
        except psutil.NoSuchProcess:  # it has just ended by itself
            continue
        return name


async def _pause(router: psutil.Process) -> None:
    """Past its lease: what it then still writes must not count."""
    router.send_signal(signal.SIGSTOP)
    await asyncio.sleep(1.5 * LEASE_S)
    router.send_signal(signal.SIGCONT)
