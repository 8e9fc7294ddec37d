"""How benchmarks ask a service: one call per image, from the request to the image's bytes."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import httpx
import typer

from benchmarks.service_requests import ImageRequest

Fate = Literal["done", "blocked", "refused", "failed"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request. image: the file, where there is one. reason: why there is none.

    One that was drawn and then withheld by the safety layers is "blocked".
    """

    fate: Fate
    image: bytes = b""
    reason: str = ""


class ImageClient(Protocol):
    """A service, seen by its clients."""

    async def generate(self, request: ImageRequest) -> Answer:
        """Ask for an image and wait for its bytes. Nothing is raised for what the service does."""
        ...


def http_client(url: str, timeout_s: float) -> httpx.AsyncClient:
    """A client for many requests at once; proxies of the environment are ignored, for the service is here."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=url, timeout=timeout_s, limits=limits, trust_env=False)


def answering(url: str | None) -> str | None:
    """Check an option that names a running service: its address, or None. Raises BadParameter if nobody answers."""
    if url is not None:
        try:
            httpx.get(f"{url.rstrip('/')}/health", timeout=10, trust_env=False).raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise typer.BadParameter(f"no service answers at {url} ({error}); `darkroom serve` starts one") from None
    return url


class DarkroomClient:
    """Darkroom's native API: one POST that waits for the result. model: a name of its catalogue."""

    def __init__(self, http: httpx.AsyncClient, model: str, wait_s: float) -> None:
        self._http = http
        self._model = model
        self._headers = {"Prefer": f"wait={wait_s:g}"}

    async def generate(self, request: ImageRequest) -> Answer:
        """See ImageClient."""
        body = {
            "prompt": request.prompt,
            "model": self._model,
            "seed": request.seed,
            "steps": request.steps,
            "guidance_scale": request.guidance_scale,
            "width": request.width,
            "height": request.height,
            "scheduler": request.sampler,
        }
        try:
            answer = await self._http.post("/generate", json=body, headers=self._headers)
            if answer.status_code in (429, 503):
                return Answer("refused", reason=answer.text[:200])
            if answer.status_code == 200 and answer.json()["status"] == "blocked":
                return Answer("blocked", reason="the safety layers withheld it")
            if answer.status_code != 200 or answer.json()["status"] != "complete":
                return Answer("failed", reason=f"{answer.status_code} {answer.text[:200]}")
            return await _fetch(self._http, answer.json()["image_url"])
        except httpx.HTTPError as error:
            return Answer("failed", reason=repr(error))


async def _fetch(http: httpx.AsyncClient, url: str) -> Answer:
    image = await http.get(url)
    if image.status_code != 200:
        return Answer("failed", reason=f"{image.status_code} for {url}")
    return Answer("done", image.content)


async def until_ready(
    http: httpx.AsyncClient, path: str, patience_s: float, alive: Callable[[], bool] = lambda: True
) -> float:
    """Ask until the service says 200; the seconds it took. Raises TimeoutError, RuntimeError when it is dead."""
    started = time.monotonic()
    async with asyncio.timeout(patience_s):
        while True:
            if not alive():
                raise RuntimeError("the service ended before it was ready")
            try:
                if (await http.get(path, timeout=5)).status_code == 200:
                    return time.monotonic() - started
            except httpx.HTTPError:
                pass  # nobody listens yet
            await asyncio.sleep(0.25)
