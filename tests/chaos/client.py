"""A client that doesn't give up: asks again under the same Idempotency-Key until it is told what became of its job."""

import asyncio
import hashlib
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

TERMINAL = {"complete", "failed", "cancelled", "blocked"}
_PAUSE_S = 0.3


@dataclass(frozen=True, slots=True)
class Told:
    """What a client was told of one job in the end.

    code: of the error with which it failed. pictures: SHA-256 of the pixels of each image. seconds: from the first try
    to the end. tries: of its POST.
    """

    job_id: str
    status: str
    code: str | None
    pictures: tuple[str, ...]
    seconds: float
    tries: int


class StubbornClient:
    """url: of the service. patience_s: for one job, from its first try to its pictures. socket: that leads there."""

    def __init__(self, url: str, patience_s: float, socket: Path | None = None) -> None:
        self._patience_s = patience_s
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        transport = httpx.AsyncHTTPTransport(uds=None if socket is None else str(socket), limits=limits)
        self.http = httpx.AsyncClient(base_url=url, timeout=20, transport=transport, trust_env=False)

    async def job(self, body: Mapping[str, Any], key: str) -> Told:
        """Ask, wait, fetch. Raises TimeoutError when that takes too long: the job counts as lost."""
        started = time.monotonic()
        tries = 0
        async with asyncio.timeout(self._patience_s):
            while True:
                tries += 1
                answer = await self._answer("POST", "/generate", json=body, headers={"Idempotency-Key": key})
                if answer is not None and answer.status_code in (200, 202):
                    break
                await asyncio.sleep(_PAUSE_S)
            job_id = answer.json()["job_id"]
            while (seen := await self.json(f"/result/{job_id}"))["status"] not in TERMINAL:  # noqa: ASYNC110  # HTTP
                await asyncio.sleep(_PAUSE_S)
            pictures = [await self._picture(image["url"]) for image in seen.get("images", []) if image.get("url")]
        code = seen["error"]["code"] if seen.get("error") else None
        return Told(job_id, seen["status"], code, tuple(pictures), time.monotonic() - started, tries)

    async def jobs(self) -> list[dict[str, Any]]:
        """Everything that the service says it ever accepted."""
        found: list[dict[str, Any]] = []
        cursor = ""
        while True:
            page = await self.json(f"/jobs?limit=100{cursor}")
            found += page["jobs"]
            if page["next_cursor"] is None:
                return found
            cursor = f"&cursor={page['next_cursor']}"

    async def ready(self, patience_s: float) -> float:
        """Wait until every stage can serve; the seconds it took. Raises TimeoutError."""
        started = time.monotonic()
        async with asyncio.timeout(patience_s):
            while (answer := await self._answer("GET", "/ready")) is None or answer.status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(_PAUSE_S)
        return time.monotonic() - started

    async def json(self, path: str) -> dict[str, Any]:
        """The JSON object at a path, when it is answered."""
        body: dict[str, Any] = (await self.good(path)).json()
        return body

    async def _picture(self, path: str) -> str:
        with Image.open(io.BytesIO((await self.good(path)).content), formats=("PNG",)) as image:
            return hashlib.sha256(image.tobytes()).hexdigest()

    async def good(self, path: str) -> httpx.Response:
        """Its answer, when it has one. Raises RuntimeError for a 404: what was accepted must be known."""
        while (answer := await self._answer("GET", path)) is None or answer.status_code != 200:
            if answer is not None and answer.status_code == 404 and "error" in answer.text:
                raise RuntimeError(f"{path}: {answer.text}")
            await asyncio.sleep(_PAUSE_S)
        return answer

    async def _answer(self, method: str, path: str, **how: Any) -> httpx.Response | None:
        """None where the connection was refused or broke."""
        try:
            return await self.http.request(method, path, **how)
        except httpx.TransportError:
            return None
