"""How long until the first image? Start this first, then the service: what it shows are seconds from its own start.

    python -m benchmarks.cold_start --url http://127.0.0.1:8000 --model sd15

On a cluster start it in the moment of `serve deploy`, while no GPU node is there: the stages' times then hold the
node's coming, its set-up, the download of the weights and their loading. GET /ready says what each stage waits for.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

import httpx
import typer

from benchmarks.http_clients import DarkroomClient, http_client
from benchmarks.service_requests import ImageRequest

_POLL_S = 0.25


class NoImage(Exception):
    """The service was ready and drew nothing; the message is its own."""


def changes(before: Mapping[str, str], ready: Mapping[str, Any]) -> dict[str, str]:
    """Stages whose state or reason isn't what it was, with the new one.

    before: what each stage's last change said. ready: the body of GET /ready.
    """
    now = {name: stage["state"] for name, stage in ready["stages"].items()}
    reasons = {name: stage.get("reason") for name, stage in ready["stages"].items()}
    told = {name: f"{state}: {reasons[name]}" if reasons[name] else state for name, state in now.items()}
    return {name: text for name, text in told.items() if before.get(name) != text}


async def events(http: httpx.AsyncClient, request: ImageRequest, model: str, patience_s: float) -> AsyncIterator[str]:
    """What happens, as it happens, up to the first image. Raises TimeoutError, NoImage."""
    known: dict[str, str] = {}
    async with asyncio.timeout(patience_s):
        while True:
            try:
                ready = await http.get("/ready", timeout=5)
            except httpx.HTTPError:  # nobody listens yet
                await asyncio.sleep(_POLL_S)
                continue
            if ready.headers.get("content-type") != "application/json":  # Serve's proxy answers, nothing behind it
                await asyncio.sleep(_POLL_S)
                continue
            if not known:
                yield "the router answers"
            for name, text in changes(known, ready.json()).items():
                known[name] = text
                yield f"{name}: {text}"
            if ready.status_code == 200:
                break
            await asyncio.sleep(_POLL_S)
        yield "ready"
        answer = await DarkroomClient(http, model, patience_s).generate(request)
    if answer.fate not in ("done", "blocked"):
        raise NoImage(answer.reason)
    yield f"the first image ({answer.fate})"


def run(
    url: Annotated[str, typer.Option(help="of the service")] = "http://127.0.0.1:8000",
    model: Annotated[str, typer.Option(help="of its catalogue")] = "demo-sd15",
    steps: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    size: Annotated[int, typer.Option(min=64, max=2048, help="pixels of both sides")] = 256,
    patience: Annotated[float, typer.Option(min=1.0, help="seconds after which this gives up")] = 3600.0,
) -> None:
    """Print each change with its second. DARKROOM_API_KEY is used where it is set."""
    request = ImageRequest(
        prompt="a red circle", seed=1, steps=steps, guidance_scale=5.0, width=size, height=size, sampler="euler"
    )

    async def follow() -> None:
        started = time.monotonic()
        async with http_client(url, patience) as http:
            if key := os.environ.get("DARKROOM_API_KEY"):
                http.headers["Authorization"] = f"Bearer {key}"
            async for event in events(http, request, model, patience):
                print(f"{time.monotonic() - started:8.1f} s  {event}", flush=True)

    asyncio.run(follow())


if __name__ == "__main__":
    typer.run(run)
