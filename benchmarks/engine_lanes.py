"""Measures the engine: n clients, each asking for the next image when it has the last.

The engine's thread is the only one that computes with torch; the clients share this process's event loop, as the
service's requests do.
"""

import asyncio
import sys
import time
from itertools import count

import torch

from benchmarks.peak_memory import peak_bytes, reset_peak
from benchmarks.pipelines import describe_of, reader_of
from benchmarks.results import Figures, percentiles
from benchmarks.workload import EngineContender, Job, Workload, conditioning_of
from deployments.engine.engine import Engine
from deployments.engine.errors import DarkroomError
from deployments.engine.request import Conditioning, DenoiseRequest
from deployments.engine.settings import EngineSettings
from deployments.engine.stats import EngineStats

_NAME = "measured"
_WARM_STEPS = 4


class _Clients:
    """Closed-loop clients of one engine."""

    def __init__(self, engine: Engine, workload: Workload, conditioning: Conditioning) -> None:
        self._engine = engine
        self._workload = workload
        self._conditioning = conditioning
        self._numbers = count()

    def run(self, clients: int, steps: int, seconds: float) -> tuple[list[float], float]:
        """Latencies of all images, and seconds until the last; a client submits while there is time, once at least."""
        return asyncio.run(self._run(clients, steps, seconds))

    async def _run(self, clients: int, steps: int, seconds: float) -> tuple[list[float], float]:
        started = time.perf_counter()
        of_clients = await asyncio.gather(*(self._client(steps, started + seconds) for _ in range(clients)))
        return [latency for latencies in of_clients for latency in latencies], time.perf_counter() - started

    async def _client(self, steps: int, until: float) -> list[float]:
        latencies = []
        while True:
            submitted = time.perf_counter()
            await self._image(steps)
            done = time.perf_counter()
            latencies.append(done - submitted)
            if done >= until:
                return latencies

    async def _image(self, steps: int) -> None:
        workload, number = self._workload, next(self._numbers)
        request = DenoiseRequest(
            lane_id=str(number),
            checkpoint=_NAME,
            seed=number,
            steps=steps,
            guidance_scale=workload.guidance_scale,
            width=workload.width,
            height=workload.height,
            sampler=workload.sampler,
        )
        async for _ in self._engine.stream(request, self._conditioning):
            pass  # progress, then the image; a failure raises


def measure_engine(job: Job, contender: EngineContender) -> list[Figures]:
    """Figures at each concurrency, after a warm-up of its own that isn't counted."""
    workload = job.workload
    settings = engine_settings(workload, contender)
    engine = Engine(settings, {_NAME: workload.spec}, read=reader_of(workload), describe=describe_of(workload))
    engine.start()
    try:
        engine.preload(_NAME).result()
        clients = _Clients(engine, workload, conditioning_of(job))
        clients.run(1, workload.steps, 0.0)  # traces the sampler's table for this number of steps
        return [_measure(engine, clients, job, contender.name, n) for n in job.concurrency]
    finally:
        engine.stop()


def engine_settings(workload: Workload, contender: EngineContender) -> EngineSettings:
    """The shipped defaults on the workload's device, with the contender's changes."""
    device = {"device": workload.device, "dtype": workload.dtype, "cpu_threads": workload.cpu_threads}
    return EngineSettings.model_validate(device | contender.settings)


def _measure(engine: Engine, clients: _Clients, job: Job, name: str, concurrency: int) -> Figures:
    workload = job.workload
    print(f"{name}: {concurrency} at once", file=sys.stderr)
    device = torch.device(engine.stats().device)
    reset_peak(device)
    try:
        clients.run(concurrency, min(workload.steps, _WARM_STEPS), 0.0)
        before = engine.stats()
        latencies, seconds = clients.run(concurrency, workload.steps, workload.seconds)
        after = engine.stats()
    except DarkroomError as error:
        return Figures(contender=name, way="lanes", concurrency=concurrency, failed=str(error))
    p50, p99 = percentiles(latencies)
    return Figures(
        contender=name,
        way="lanes",
        concurrency=concurrency,
        images=len(latencies),
        images_per_s=len(latencies) / seconds,
        latency_p50_s=p50,
        latency_p99_s=p99,
        peak_bytes=peak_bytes(device),
        **_counters(before, after),
    )


def _counters(before: EngineStats, after: EngineStats) -> dict[str, float]:
    steps = after.steps_total - before.steps_total
    rows = after.rows_total - before.rows_total
    padded = after.padded_rows_total - before.padded_rows_total
    stepping = after.step_seconds_total - before.step_seconds_total
    decoding = after.decode_seconds_total - before.decode_seconds_total
    return {
        "rows_per_step": rows / steps,
        "padding": padded / (rows + padded),
        "step_seconds": stepping / steps,
        "vae_share": decoding / (stepping + decoding),
    }
