"""Hours in minutes: steady unlike work for a while, and whether memory, descriptors and files grow meanwhile.

What is kept is deleted after a minute, so that everything that may grow has to be given back as well.
"""

import asyncio
import contextlib
import random
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
from pydantic import BaseModel, ConfigDict

from tests.chaos.client import StubbornClient
from tests.chaos.kills import START_S, requests
from tests.chaos.running import RunningService

# of the service under soak: what is finished goes soon
SOAK_JOBS = {"result_ttl_s": 60.0, "sweep_interval_s": 15.0, "orphan_interval_s": 60.0}
_SAMPLE_S = 10.0
_SETTLING = 0.25  # of the time: caches fill, allocators find their level


class PartFigures(BaseModel):
    """One process. All slopes by least squares after the settling time, per hour; rss in MiB."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    rss_first: float
    rss_last: float
    rss_slope: float
    descriptors_first: int
    descriptors_last: int
    threads_first: int
    threads_last: int


class SoakFigures(BaseModel):
    """answers: by kind of work and what came of it. files: in the service's folder at the first and the last sample
    after settling, database and logs left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    minutes: float
    answers: dict[str, int]
    unexpected: tuple[str, ...]
    parts: tuple[PartFigures, ...]
    files_first: int
    files_last: int


class _Sample(BaseModel):
    at: float
    rss: float
    descriptors: int
    threads: int


async def measure_soak(service: RunningService, folder: Path, minutes: float, seed: int) -> SoakFigures:
    """Start the service and keep four clients busy with it."""
    service.start()
    client = StubbornClient(service.url, patience_s=900)
    await client.ready(START_S)
    until = time.monotonic() + 60 * minutes
    work = _Work(client, seed)
    samples: dict[tuple[str, int], list[_Sample]] = {}
    files: list[int] = []

    async def watch() -> None:
        while time.monotonic() < until:
            await asyncio.to_thread(_sample, service, samples)
            files.append(await asyncio.to_thread(_count_files, folder))
            await asyncio.sleep(_SAMPLE_S)

    await asyncio.gather(watch(), *(work.go_on(until) for _ in range(4)))
    settled = int(_SETTLING * len(files))
    return SoakFigures(
        minutes=minutes,
        answers=dict(sorted(work.answers.items())),
        unexpected=tuple(work.unexpected[:20]),
        parts=tuple(_part(name, seen[settled:]) for (name, _), seen in sorted(samples.items()) if seen[settled:]),
        files_first=files[settled],
        files_last=files[-1],
    )


class _Work:
    """What clients do: most of it right, some of it wrong, some of it given up halfway."""

    def __init__(self, client: StubbornClient, seed: int) -> None:
        self._client = client
        self._rng = random.Random(seed)
        self._kinds = requests()
        self._number = 0
        self.answers: dict[str, int] = {}
        self.unexpected: list[str] = []

    async def go_on(self, until: float) -> None:
        """One client, one thing after the other."""
        things = {self._draw: 6, self._cancel: 2, self._leave: 2, self._look: 2, self._blunder: 3}
        while time.monotonic() < until:
            [thing] = self._rng.choices(list(things), list(things.values()))
            self._number += 1
            what, good = await thing(self._number)
            name = f"{thing.__name__.strip('_')}: {what}"
            self.answers[name] = self.answers.get(name, 0) + 1
            if not good:
                self.unexpected.append(name)

    def _body(self, number: int) -> dict[str, Any]:
        return {**self._rng.choice(self._kinds), "seed": number, "reproducible": False}

    async def _draw(self, number: int) -> tuple[str, bool]:
        told = await self._client.job(self._body(number), f"soak-{number}")
        return told.status, told.status == "complete"

    async def _cancel(self, number: int) -> tuple[str, bool]:
        http = self._client.http
        job = (await http.post("/generate", json={**self._body(number), "steps": 50, "n": 2})).json()
        answer = await http.delete(job["links"]["cancel"])
        return str(answer.status_code), answer.status_code == 200

    async def _leave(self, number: int) -> tuple[str, bool]:
        """A client that listens, and hangs up."""
        http = self._client.http
        job = (await http.post("/generate", json=self._body(number))).json()
        async with http.stream("GET", job["links"]["events"]) as events:
            async for _line in events.aiter_lines():
                break
        with contextlib.suppress(httpx.TimeoutException):
            await http.post("/generate", json=self._body(number), headers={"Prefer": "wait=60"}, timeout=0.5)
        return "left", True

    async def _look(self, _number: int) -> tuple[str, bool]:
        paths = ("/jobs?limit=50", "/models", "/ready", "/openapi.json", "/sdapi/v1/progress", "/v1/models")
        answer = await self._client.http.get(self._rng.choice(paths))
        return str(answer.status_code), answer.status_code == 200

    async def _blunder(self, _number: int) -> tuple[str, bool]:
        wrong: tuple[dict[str, Any], ...] = (
            {"json": {"prompt": "x", "steps": 10**9}},
            {"json": {"prompt": "x", "nonsense": 1}},
            {"content": b"{" * 1000, "headers": {"Content-Type": "application/json"}},
            {"content": b"x" * (2 << 20), "headers": {"Content-Type": "application/json"}},
            {"content": b"prompt=x"},
        )
        answer = await self._client.http.post("/generate", **self._rng.choice(wrong))
        return str(answer.status_code), 400 <= answer.status_code < 500


def _sample(service: RunningService, samples: dict[tuple[str, int], list[_Sample]]) -> None:
    now = time.monotonic()
    for name, processes in service.parts().items():
        for process in processes:
            with contextlib.suppress(psutil.Error):  # it has ended: the list of samples then shows when
                one = _Sample(
                    at=now,
                    rss=process.memory_info().rss / 2**20,
                    descriptors=process.num_fds(),
                    threads=process.num_threads(),
                )
                samples.setdefault((name, process.pid), []).append(one)


def _count_files(folder: Path) -> int:
    """Images and temporary files: all but Ray's own session and the database's."""
    return sum(
        path.is_file() and "session_" not in str(path) and not path.name.startswith("jobs.db")
        for path in folder.rglob("*")
    )


def _part(name: str, seen: list[_Sample]) -> PartFigures:
    return PartFigures(
        name=name,
        rss_first=seen[0].rss,
        rss_last=seen[-1].rss,
        rss_slope=3600 * slope([one.at for one in seen], [one.rss for one in seen]),
        descriptors_first=seen[0].descriptors,
        descriptors_last=seen[-1].descriptors,
        threads_first=seen[0].threads,
        threads_last=seen[-1].threads,
    )


def slope(times: list[float], values: list[float]) -> float:
    """By least squares; 0 for fewer than two."""
    middle_at, middle = sum(times) / len(times), sum(values) / len(values)
    spread = sum((at - middle_at) ** 2 for at in times)
    if not spread:
        return 0.0
    return sum((at - middle_at) * (value - middle) for at, value in zip(times, values, strict=True)) / spread
