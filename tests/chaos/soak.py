"""Hours in minutes: steady unlike work for a while, and whether memory, descriptors, threads and files grow meanwhile.

What is kept is deleted after a minute, so that everything that may grow has to be given back as well; in the end no
job, no image and no temporary file may be left. What counts as growth is in growth.py.
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

from tests.chaos.asking import START_S, requests
from tests.chaos.client import StubbornClient
from tests.chaos.growth import COUNT, Growth, growth, rss_bound
from tests.chaos.ledger import read_ledger
from tests.chaos.running import RunningService

# of the service under soak: what is finished goes soon
SOAK_JOBS = {"result_ttl_s": 60.0, "sweep_interval_s": 15.0, "orphan_interval_s": 60.0}
_SAMPLE_S = 10.0
_SETTLING = 0.25  # of the time: caches fill, allocators find their level
_EMPTY_S = 600.0  # until all must have been deleted: what was asked last may wait for the machine
_PARTS = ("ServeController", "ProxyActor", "Router", "TextEncoder", "SD15", "SDXLBase", "SDXLRefiner", "NSFWClassifier")


class PartFigures(BaseModel):
    """One process after the settling time; rss in MiB.

    first, last: medians of the first and the last fifth of the samples. rss_grown, rss_error: a straight line's gain
    over all of them, and its standard error. rss_bound: what rss_grown and twice the error may be together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    rss_first: float
    rss_last: float
    rss_grown: float
    rss_error: float
    rss_bound: float
    descriptors_first: float
    descriptors_last: float
    threads_first: float
    threads_last: float


class SoakFigures(BaseModel):
    """broken: the promises that were, in words. answers: by kind of work and what came of it.

    files_before, files_most, files_left: files and folders of the service without its database, its logs and Ray's
    session: before the work, at most, and when everything had its time to be deleted. jobs_left: in the database then.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    broken: tuple[str, ...]
    minutes: float
    answers: dict[str, int]
    unexpected: int
    parts: tuple[PartFigures, ...]
    files_before: int
    files_most: int
    files_left: int
    jobs_left: int


class Sample(BaseModel):
    """Of a process. at: monotonic seconds. rss: MiB."""

    at: float
    rss: float
    descriptors: int
    threads: int


async def measure_soak(service: RunningService, folder: Path, minutes: float, seed: int) -> SoakFigures:
    """Start the service and keep four clients busy with it."""
    async with service.kept_up():
        return await _measure(service, folder, minutes, seed)


async def _measure(service: RunningService, folder: Path, minutes: float, seed: int) -> SoakFigures:
    client = StubbornClient(service.url, patience_s=900)
    await client.ready(START_S)
    files = [await asyncio.to_thread(_count_files, folder)]
    started = time.monotonic()
    until = started + 60 * minutes
    work = _Work(client, seed)
    samples: dict[tuple[str, int], list[Sample]] = {}

    async def watch() -> None:
        while time.monotonic() < until:
            await asyncio.to_thread(_sample, service, samples)
            files.append(await asyncio.to_thread(_count_files, folder))
            await asyncio.sleep(_SAMPLE_S)

    await asyncio.gather(watch(), *(work.go_on(until) for _ in range(4)))
    settled = started + _SETTLING * 60 * minutes
    parts, broken = judged(samples, settled, until)
    files_left, jobs_left = await _left(service, folder, files[0])
    if files_left > files[0]:
        broken.append(f"{files_left - files[0]} files and folders are left")
    if jobs_left:
        broken.append(f"{jobs_left} jobs are left")
    broken += [f"unexpected, {count} times: {name}" for name, count in sorted(work.unexpected.items())]
    return SoakFigures(
        broken=tuple(broken),
        minutes=minutes,
        answers=dict(sorted(work.answers.items())),
        unexpected=sum(work.unexpected.values()),
        parts=tuple(parts),
        files_before=files[0],
        files_most=max(files),
        files_left=files_left,
        jobs_left=jobs_left,
    )


def judged(
    samples: dict[tuple[str, int], list[Sample]], settled: float, until: float
) -> tuple[list[PartFigures], list[str]]:
    """The figures of all processes that were there from `settled` to `until`, and which promises they broke.

    samples: by a process' name and id. settled, until: as the samples' times. A process that came or went is a
    promise broken, and so is a part of the service that wasn't there at all.
    """
    parts: list[PartFigures] = []
    broken = [f"{part}: no process" for part in _PARTS if part not in {name for name, _ in samples}]
    for (name, pid), all_of_it in sorted(samples.items()):
        seen = [one for one in all_of_it if one.at >= settled]
        if all_of_it[0].at > settled or all_of_it[-1].at < until - 6 * _SAMPLE_S:
            broken.append(f"{name} {pid}: came or went")
        if len(seen) < 10:
            continue
        times = [one.at for one in seen]
        rss = growth(times, [one.rss for one in seen])
        descriptors = growth(times, [one.descriptors for one in seen])
        threads = growth(times, [one.threads for one in seen])
        bound = rss_bound(rss)
        if rss.most > bound:
            broken.append(f"{name}: memory grew by {rss.line:.1f} ± {rss.error:.1f} MiB")
        broken += _more(name, "descriptors", descriptors) + _more(name, "threads", threads)
        parts.append(
            PartFigures(
                name=name,
                rss_first=rss.first,
                rss_last=rss.last,
                rss_grown=rss.line,
                rss_error=rss.error,
                rss_bound=bound,
                descriptors_first=descriptors.first,
                descriptors_last=descriptors.last,
                threads_first=threads.first,
                threads_last=threads.last,
            )
        )
    return parts, broken


def _more(name: str, what: str, of: Growth) -> list[str]:
    return [f"{name}: {what} went from {of.first:g} to {of.last:g}"] if of.last - of.first > COUNT else []


class _Work:
    """What clients do: most of it right, some of it wrong, some of it given up halfway."""

    def __init__(self, client: StubbornClient, seed: int) -> None:
        self._client = client
        self._rng = random.Random(seed)
        self._kinds = requests()
        self._number = 0
        self.answers: dict[str, int] = {}
        self.unexpected: dict[str, int] = {}

    async def go_on(self, until: float) -> None:
        """One client, one thing after the other."""
        things = {self._draw: 6, self._cancel: 2, self._leave: 2, self._look: 2, self._blunder: 3, self._translate: 2}
        while time.monotonic() < until:
            [thing] = self._rng.choices(list(things), list(things.values()))
            self._number += 1
            try:
                what, good = await thing(self._number)
            except httpx.HTTPError as error:
                what, good = repr(error), False
            name = f"{thing.__name__.strip('_')}: {what}"
            self.answers[name] = self.answers.get(name, 0) + 1
            if not good:
                self.unexpected[name] = self.unexpected.get(name, 0) + 1

    def _body(self, number: int) -> dict[str, Any]:
        return {**self._rng.choice(self._kinds), "seed": number, "reproducible": False}

    async def _draw(self, number: int) -> tuple[str, bool]:
        told = await self._client.job(self._body(number), f"soak-{number}")
        return told.status, told.status in ("complete", "blocked")  # the demo's classifier errs now and then

    async def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        answer = await self._client.http.post("/generate", json=body)
        job: dict[str, Any] = answer.raise_for_status().json()
        return job

    async def _cancel(self, number: int) -> tuple[str, bool]:
        job = await self._ask({**self._body(number), "steps": 50, "n": 2})
        answer = await self._client.http.delete(job["links"]["cancel"])
        return str(answer.status_code), answer.status_code == 200

    async def _leave(self, number: int) -> tuple[str, bool]:
        """A client that listens, and hangs up."""
        http = self._client.http
        job = await self._ask(self._body(number))
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

    async def _translate(self, number: int) -> tuple[str, bool]:
        """The other dialects, which answer when the picture is there."""
        prompt = self._body(number)["prompt"]
        asked: tuple[tuple[str, dict[str, Any]], ...] = (
            ("/sdapi/v1/txt2img", {"prompt": prompt, "steps": 10, "width": 128, "height": 128, "seed": number}),
            ("/v1/images/generations", {"prompt": prompt, "size": "128x128", "n": 2}),
        )
        path, body = self._rng.choice(asked)
        answer = await self._client.http.post(path, json=body, timeout=900)
        return f"{path} {answer.status_code}", answer.status_code == 200

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


def _sample(service: RunningService, samples: dict[tuple[str, int], list[Sample]]) -> None:
    now = time.monotonic()
    for name, processes in service.parts().items():
        for process in processes:
            with contextlib.suppress(psutil.Error):  # it has ended: the list of samples then shows when
                one = Sample(
                    at=now,
                    rss=process.memory_info().rss / 2**20,
                    descriptors=process.num_fds(),
                    threads=process.num_threads(),
                )
                samples.setdefault((name, process.pid), []).append(one)


def _count_files(folder: Path) -> int:
    """Images and temporary files: all but Ray's own session and the database's."""
    return sum("session_" not in str(path) and not path.name.startswith("jobs.db") for path in folder.rglob("*"))


async def _left(service: RunningService, folder: Path, files_before: int) -> tuple[int, int]:
    """Files and jobs that are left when all have had their time to be deleted."""
    until = time.monotonic() + _EMPTY_S
    while True:
        files = await asyncio.to_thread(_count_files, folder)
        jobs_left = len(await read_ledger(service.database_url))
        if (files <= files_before and not jobs_left) or time.monotonic() > until:
            return files, jobs_left
        await asyncio.sleep(_SAMPLE_S)
