"""Loads on a service: closed loops, open loops, a short job behind long ones. What was asked, and what came of it.

Knows neither service: it is given a client. An open loop asks when its schedule says, whether or not the service keeps
up, and counts latencies from the scheduled moment.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from itertools import islice

from pydantic import BaseModel, ConfigDict

from benchmarks.http_clients import Answer, Fate, ImageClient
from benchmarks.service_requests import ImageRequest


class Served(BaseModel):
    """One request. asked, answered: seconds since its load began; `asked` is when it should have been sent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    asked: float
    answered: float
    fate: Fate
    reason: str = ""

    @property
    def latency(self) -> float:
        """Seconds from asked to answered."""
        return self.answered - self.asked


class Overtaking(BaseModel):
    """A short job that arrives when long ones are under way. short_s, long_s: latencies, the latter of each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    short_s: float
    long_s: tuple[float, ...]


async def closed_loop(
    client: ImageClient, requests: Iterator[ImageRequest], concurrency: int, *, seconds: float, least: int
) -> list[Served]:
    """`concurrency` clients, each asking again when it is served, for `seconds`, until `least` were asked in all."""
    started = time.perf_counter()
    served: list[Served] = []
    asked = 0

    async def one() -> None:
        nonlocal asked
        while time.perf_counter() - started < seconds or asked < least:
            asked += 1
            at = time.perf_counter() - started
            served.append(_served(await client.generate(next(requests)), at, started))

    await asyncio.gather(*(one() for _ in range(concurrency)))
    return served


async def open_loop(client: ImageClient, requests: Iterator[ImageRequest], arrivals: Sequence[float]) -> list[Served]:
    """Requests at the scheduled seconds, whatever becomes of those before; ends when all have been answered."""
    started = time.perf_counter()

    async def one(at: float, request: ImageRequest) -> Served:
        await asyncio.sleep(max(0.0, started + at - time.perf_counter()))
        return _served(await client.generate(request), at, started)

    return list(await asyncio.gather(*(one(at, next(requests)) for at in arrivals)))


async def overtake(
    client: ImageClient, requests: Iterator[ImageRequest], *, long_steps: int, short_steps: int, long_jobs: int
) -> Overtaking:
    """Start the long jobs, a moment apart; then, when the first of them is under way, the short one.

    Raises RuntimeError if any of them isn't drawn.
    """
    asked = list(islice(requests, long_jobs + 1))
    tasks = []
    for request in asked[:-1]:
        tasks.append(asyncio.create_task(timed(client, request.model_copy(update={"steps": long_steps}))))
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.1)
    short_s = await timed(client, asked[-1].model_copy(update={"steps": short_steps}))
    return Overtaking(short_s=short_s, long_s=tuple(await asyncio.gather(*tasks)))


async def timed(client: ImageClient, request: ImageRequest) -> float:
    """The seconds of a request. Raises RuntimeError if nothing is drawn."""
    started = time.perf_counter()
    answer = await client.generate(request)
    if answer.fate not in ("done", "blocked"):
        raise RuntimeError(f"no image for {request.prompt!r}: {answer.fate} {answer.reason}")
    return time.perf_counter() - started


def _served(answer: Answer, asked: float, started: float) -> Served:
    return Served(asked=asked, answered=time.perf_counter() - started, fate=answer.fate, reason=answer.reason)
