"""Jobs for a simulated cluster: small, unlike each other, and each with one right picture."""

import asyncio
import hashlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from PIL import Image

_WAIT_S = 280  # below the longest that the service waits
_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Drawn:
    """A job that is complete.

    Attributes:
        pixels: SHA-256 of the picture's pixels.
        queued_s: before its first step.
        total_s: from its acceptance to its end.
    """

    job_id: str
    pixels: str
    queued_s: float
    total_s: float


def request(number: int, model: str = "sd15", **fields: Any) -> dict[str, Any]:
    """One of any number of requests, reproducible to the bit."""
    shape = ("red circle", "blue square", "green star", "yellow ring")[number % 4]
    return {
        "prompt": f"a large {shape} on a white background",
        "model": model,
        "seed": 100 + number,
        "steps": 12,
        "width": 128,
        "height": 128,
        "reproducible": True,
        **fields,
    }


async def draw(client: httpx.AsyncClient, body: Mapping[str, Any]) -> Drawn:
    """Ask once for one picture and wait for it.

    Raises:
        httpx.HTTPError: a request was refused or its connection broke.
        RuntimeError: the job ended otherwise.
    """
    answer = await client.post(
        "/generate", json=dict(body), headers={"Prefer": f"wait={_WAIT_S}"}, timeout=_WAIT_S + 20
    )
    job = answer.raise_for_status().json()
    while answer.status_code == 202 or job["status"] in ("queued", "running"):
        await asyncio.sleep(_POLL_S)
        answer = await client.get(f"/result/{job['job_id']}")
        job = answer.raise_for_status().json()
    if job["status"] != "complete":
        raise RuntimeError(f"job {job['job_id']} ended as {job['status']}: {job['error']}")
    [image] = job["images"]
    file = (await client.get(image["url"])).raise_for_status().content
    with Image.open(io.BytesIO(file), formats=("PNG",)) as picture:
        pixels = hashlib.sha256(picture.tobytes()).hexdigest()
    return Drawn(job["job_id"], pixels, job["timings"]["queued_s"], job["timings"]["total_s"])


async def draw_all(client: httpx.AsyncClient, bodies: Iterable[Mapping[str, Any]]) -> list[Drawn]:
    """All at once."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(draw(client, body)) for body in bodies]
    return [task.result() for task in tasks]
