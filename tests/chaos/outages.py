"""Jobs go on while what keeps them goes away: Postgres killed or stopped, the images' folder gone, its disk full.

A request may be refused then, and an accepted job may fail if it says why: its client asks again, under another key.
None may be lost, and none drawn for nobody.
"""

import asyncio
import resource
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import psutil

from serve_app.errors import StoreUnavailable
from tests.chaos.asking import Asking, JobFigures
from tests.chaos.running import RunningService
from tests.serve_app.postgres import Postgres

# longer than a last write is tried, and shorter
_SHORTEST_S, _LONGEST_S = 3.0, 20.0
# no image is as small
_FULL_BYTES = 256


class OutageFigures(JobFigures):
    """outages: how often of what."""

    outages: dict[str, int]


async def measure_outages(
    service: RunningService, images: Path, database: Postgres, jobs: int, outages: int, at_once: int, seed: int
) -> OutageFigures:
    """Start the service, run `jobs` jobs, `at_once` at a time, under `outages` outages, each kind in its turn."""
    asking = Asking(service, jobs, at_once, seed, excuses=frozenset({StoreUnavailable.code}))
    had: Counter[str] = Counter()

    async def killed(seconds: float) -> None:
        await asyncio.to_thread(database.kill)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(database.start)

    async def stopped(seconds: float) -> None:
        await asyncio.to_thread(database.stop)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(database.start)

    async def gone(seconds: float) -> None:
        away = images.with_name("away")
        await asyncio.to_thread(images.rename, away)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(away.rename, images)

    async def full(seconds: float) -> None:
        """For the routers, to whose files nothing can be added."""
        await asyncio.to_thread(_limit_files, service, _FULL_BYTES)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(_limit_files, service, resource.RLIM_INFINITY)

    kinds: dict[str, Callable[[float], Awaitable[None]]] = {
        "database killed": killed,
        "images gone": gone,
        "database stopped": stopped,
        "disk full": full,
    }

    async def all_of_them() -> None:
        names = list(kinds)
        async for _ in asking.moments(outages):
            name = names[had.total() % len(names)]
            seconds = asking.rng.uniform(_SHORTEST_S, _LONGEST_S)
            asking.note(f"{name} for {seconds:.1f} s")
            await kinds[name](seconds)
            had[name] += 1

    async with service.kept_up():
        await asking.undisturbed()
        await asyncio.gather(all_of_them(), asking.ask_all())
        figures = await asking.figures()
    return OutageFigures(**figures.model_dump(), outages=dict(had))


def _limit_files(service: RunningService, most_bytes: int) -> None:
    for router in service.parts().get("Router", []):
        with suppress(psutil.NoSuchProcess):
            _soft, hard = router.rlimit(resource.RLIMIT_FSIZE)
            router.rlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
