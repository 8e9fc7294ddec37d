"""How right is eta_seconds? A steady open load on a running service; each 202's estimate against what happened.

    python -m benchmarks.eta --url http://127.0.0.1:8000 --rate 0.5 --seconds 120

The first part of the run only warms up: the service learns what its work costs. An error is |estimate - truth| over the
truth, where the truth is the job's own total_s; the aim is a median of at most 25 % under steady load.
"""

import asyncio
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Any

import httpx
import typer

from benchmarks.arrivals import poisson_arrivals
from benchmarks.http_clients import answering, http_client
from benchmarks.service_requests import ImageRequest, requests

_WAIT_S = 300.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """One job. asked: seconds from the load's start. eta: as its 202 had it, None where nobody knew. took: total_s."""

    asked: float
    position: int
    eta: float | None
    took: float


@dataclass(frozen=True, slots=True)
class EtaFigures:
    """What came of a load. refused, failed: requests. without: estimates that were null. Errors as fractions."""

    jobs: int
    refused: int
    failed: int
    without: int
    median_error: float | None
    p90_error: float | None
    median_bias: float | None
    median_took_s: float | None


def figures(estimates: Sequence[Estimate], *, refused: int, failed: int, warm_up_s: float) -> EtaFigures:
    """Of the jobs asked for after the warm-up. median_bias: above 0 where the estimates were too long."""
    counted = [one for one in estimates if one.asked >= warm_up_s]
    errors = [(one.eta - one.took) / one.took for one in counted if one.eta is not None]
    absolute = [abs(error) for error in errors]
    return EtaFigures(
        jobs=len(counted),
        refused=refused,
        failed=failed,
        without=len(counted) - len(errors),
        median_error=median(absolute) if absolute else None,
        p90_error=quantiles(absolute, n=10)[-1] if len(absolute) > 1 else None,
        median_bias=median(errors) if errors else None,
        median_took_s=median(one.took for one in counted) if counted else None,
    )


async def measure(
    http: httpx.AsyncClient,
    asked: Iterator[ImageRequest],
    model: str | None,
    arrivals: Sequence[float],
    warm_up_s: float,
) -> tuple[EtaFigures, list[Estimate]]:
    """Ask at the scheduled seconds, whatever becomes of those before."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    estimates: list[Estimate] = []
    refused = failed = 0

    async def one(at: float, request: ImageRequest) -> None:
        nonlocal refused, failed
        await asyncio.sleep(max(0.0, started + at - loop.time()))
        answer = await http.post("/generate", json=_body(request, model))
        if answer.status_code in (429, 503):
            refused += 1
            return
        if answer.status_code != 202:
            failed += 1
            return
        accepted = answer.json()
        job = await _ended(http, accepted["links"]["result"])
        if job["status"] != "complete":
            failed += 1
            return
        estimates.append(Estimate(at, accepted["position"], accepted["eta_seconds"], job["timings"]["total_s"]))

    await asyncio.gather(*(one(at, next(asked)) for at in arrivals))
    return figures(estimates, refused=refused, failed=failed, warm_up_s=warm_up_s), estimates


async def _ended(http: httpx.AsyncClient, result: str) -> dict[str, Any]:
    """The job at its end, asked for twice a second: its own account says when that was. Raises TimeoutError."""
    async with asyncio.timeout(_WAIT_S):
        while True:
            job: dict[str, Any] = (await http.get(result)).json()
            if job["status"] not in ("queued", "running"):
                return job
            await asyncio.sleep(0.5)


def _body(request: ImageRequest, model: str | None) -> dict[str, Any]:
    body = request.model_dump(exclude={"sampler"}) | {"scheduler": request.sampler}
    return body if model is None else body | {"model": model}


def run(
    url: Annotated[str, typer.Option(callback=answering, help="of the service")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="its default")] = None,
    rate: Annotated[float, typer.Option(min=0.001, help="images asked for a second")] = 0.5,
    seconds: Annotated[float, typer.Option(min=1.0, help="of the load, warm-up included")] = 120.0,
    warm_up: Annotated[float, typer.Option(min=0.0, help="seconds that aren't counted")] = 30.0,
    steps: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    size: Annotated[int, typer.Option(min=64, max=2048, help="pixels of both sides")] = 256,
    sampler: str = "dpmpp_2m",
    seed: Annotated[int, typer.Option(help="of prompts, seeds and arrivals")] = 1,
    json_path: Annotated[Path | None, typer.Option("--json", help="write every estimate here")] = None,
) -> None:
    """Measure, and print the figures. DARKROOM_API_KEY is used where it is set."""
    like = ImageRequest(prompt="", seed=seed, steps=steps, guidance_scale=5.0, width=size, height=size, sampler=sampler)

    async def load() -> tuple[EtaFigures, list[Estimate]]:
        async with http_client(url, _WAIT_S) as http:
            if key := os.environ.get("DARKROOM_API_KEY"):
                http.headers["Authorization"] = f"Bearer {key}"
            return await measure(http, requests(like, seed), model, poisson_arrivals(rate, seconds, seed), warm_up)

    found, estimates = asyncio.run(load())
    print(json.dumps(asdict(found), indent=1))
    if json_path is not None:
        content = {"command": sys.argv[1:], "figures": asdict(found), "estimates": [asdict(one) for one in estimates]}
        json_path.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    typer.run(run)
