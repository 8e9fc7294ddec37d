"""Ten times too much, for minutes: a running service must refuse what it can't take, and be itself again afterwards.

    python -m benchmarks.overload --url http://127.0.0.1:8000 --capacity 1.5 --minutes 3

Three phases: a load that the service can bear (0.7 of its capacity), ten times its capacity,
and the first again. Told: every status by phase, latencies of what was accepted, and with --pids the memory of the
service's processes. The exit code is 1 where anything but 200, 429 and 503 came back, or a refusal had no Retry-After.
"""

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import quantiles
from typing import Annotated, Any

import httpx
import psutil
import typer

from benchmarks.arrivals import poisson_arrivals
from benchmarks.http_clients import answering, http_client
from benchmarks.service_requests import ImageRequest, requests

_BEARABLE, _TOO_MUCH = 0.7, 10.0
_LONGEST_S = 600.0


@dataclass(frozen=True, slots=True)
class Answered:
    """One request. status: 0 where none came. seconds: from when it should have been sent. told: it had Retry-After."""

    status: int
    seconds: float
    told: bool = False


@dataclass(frozen=True, slots=True)
class Phase:
    """What came of a phase.

    statuses: how often each. p50_s, p99_s: of what was accepted. untold: refusals without Retry-After.
    rss_mb: of the service's processes together, at its end; None where nobody said which they are.
    """

    name: str
    statuses: dict[int, int]
    p50_s: float | None
    p99_s: float | None
    untold: int
    rss_mb: float | None

    @property
    def clean(self) -> bool:
        """Nothing came but images and honest refusals."""
        return set(self.statuses) <= {200, 429, 503} and not self.untold


def phase(name: str, answers: Sequence[Answered], rss_mb: float | None = None) -> Phase:
    """The figures of a phase's answers."""
    served = sorted(one.seconds for one in answers if one.status == 200)
    cuts = quantiles(served, n=100, method="inclusive") if len(served) > 1 else None
    return Phase(
        name=name,
        statuses=dict(sorted(Counter(one.status for one in answers).items())),
        p50_s=cuts[49] if cuts else None,
        p99_s=cuts[98] if cuts else None,
        untold=sum(one.status in (429, 503) and not one.told for one in answers),
        rss_mb=rss_mb,
    )


async def load(http: httpx.AsyncClient, like: ImageRequest, arrivals: Sequence[float], seed: int) -> list[Answered]:
    """Requests at the scheduled seconds, each waiting for its images."""
    clock = asyncio.get_running_loop().time
    started = clock()

    async def one(at: float, request: ImageRequest) -> Answered:
        await asyncio.sleep(max(0.0, started + at - clock()))
        body = request.model_dump(exclude={"sampler"}) | {"scheduler": request.sampler}
        try:
            answer = await http.post("/generate", json=body, headers={"Prefer": f"wait={_LONGEST_S:g}"})
        except httpx.HTTPError:
            return Answered(0, clock() - started - at)
        return Answered(answer.status_code, clock() - started - at, "retry-after" in answer.headers)

    asked = requests(like, seed)
    return list(await asyncio.gather(*(one(at, next(asked)) for at in arrivals)))


def _rss_mb(pids: Sequence[int]) -> float | None:
    return sum(psutil.Process(pid).memory_info().rss for pid in pids) / 2**20 if pids else None


def run(
    capacity: Annotated[float, typer.Option(min=0.001, help="images a second that the service makes at most")],
    url: Annotated[str, typer.Option(callback=answering, help="of the service")] = "http://127.0.0.1:8000",
    minutes: Annotated[
        float, typer.Option(min=0.1, help="of the overload; the phases around it take a third each")
    ] = 3,
    steps: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    size: Annotated[int, typer.Option(min=64, max=2048, help="pixels of both sides")] = 256,
    seed: Annotated[int, typer.Option(help="of prompts, seeds and arrivals")] = 1,
    pids: Annotated[list[int] | None, typer.Option("--pid", help="a process whose memory is watched")] = None,
) -> None:
    """Measure, and print the phases. DARKROOM_API_KEY is used where it is set."""
    like = ImageRequest(
        prompt="", seed=seed, steps=steps, guidance_scale=5.0, width=size, height=size, sampler="dpmpp_2m"
    )

    async def phases() -> list[Phase]:
        found = []
        async with http_client(url, _LONGEST_S + 30) as http:
            if key := os.environ.get("DARKROOM_API_KEY"):
                http.headers["Authorization"] = f"Bearer {key}"
            for number, (name, factor, share) in enumerate(
                [("before", _BEARABLE, 1 / 3), ("overload", _TOO_MUCH, 1.0), ("after", _BEARABLE, 1 / 3)]
            ):
                arrivals = poisson_arrivals(factor * capacity, 60 * minutes * share, seed + number, limit=100_000)
                answers = await load(http, like, arrivals, seed + number)
                found.append(phase(name, answers, _rss_mb(pids or [])))
        return found

    found: list[Phase] = asyncio.run(phases())
    report: list[dict[str, Any]] = [asdict(one) for one in found]
    print(json.dumps(report, indent=1))
    sys.exit(0 if all(one.clean for one in found) else 1)


if __name__ == "__main__":
    typer.run(run)
