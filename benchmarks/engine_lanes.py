"""Measures the engine: n clients, each asking for the next image when it has the last.

The engine's thread is the only one that computes with torch; the clients share this process's event loop, as the
service's requests do.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Literal

import torch

from benchmarks.peak_memory import peak_bytes, reset_peak, reset_warm_peak
from benchmarks.pipelines import conditioning_of, describe_of, reader_of
from benchmarks.results import LANES, Figures, percentiles
from benchmarks.workload import EngineContender, Job, Workload, engine_settings
from deployments.engine.config import EngineSettings
from deployments.engine.engine import Engine
from deployments.engine.errors import DarkroomError
from deployments.engine.stats import EngineStats
from deployments.engine.types import Conditioning, DenoiseRequest

_NAME = "measured"
_WARM_STEPS = 4
_LOOK_S = 0.2  # how often it is looked whether everything is compiled


class Clients:
    """Closed-loop clients of one engine."""

    def __init__(
        self,
        engine: Engine,
        workload: Workload,
        conditioning: Conditioning,
        output: Literal["image", "latents"] = "image",
    ) -> None:
        self._engine = engine
        self._workload = workload
        self._conditioning = conditioning
        self._output = output
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
            output=self._output,
        )
        async for _ in self._engine.stream(request, self._conditioning):
            pass  # progress, then the image; a failure raises


class _Compiler(logging.Handler):
    """What an engine compiles: waiting for it, and what was said of what can't be."""

    def __init__(self, engine: Engine, limit_s: float) -> None:
        super().__init__(logging.WARNING)
        self._engine = engine
        self._limit_s = limit_s
        self._said = ""

    def emit(self, record: logging.LogRecord) -> None:
        self._said = record.getMessage()

    def wait(self) -> bool:
        """Until nothing is being compiled. False where that took too long."""
        until = time.perf_counter() + self._limit_s
        while self._engine.stats().compiling and time.perf_counter() < until:
            time.sleep(_LOOK_S)
        return not self._engine.stats().compiling

    @property
    def failure(self) -> str:
        """Why nothing is compiled, as far as it was said: the last line of it, where errors have their message."""
        lines = self._said.strip().splitlines()
        if not lines:
            return f"nothing was compiled within {self._limit_s:.0f} s"
        first, last = lines[0].strip(), lines[-1].strip()
        return first if first == last else f"{first} ... {last}"


@contextmanager
def started(job: Job, settings: EngineSettings) -> Iterator[Engine]:
    """An engine with the job's checkpoint loaded."""
    workload = job.workload
    engine = Engine(settings, {_NAME: workload.spec}, read=reader_of(workload), describe=describe_of(workload))
    engine.start()
    try:
        engine.preload(_NAME).result()
        yield engine
    finally:
        engine.stop()


def measure_engine(job: Job, contender: EngineContender) -> Iterator[Figures]:
    """Figures at each concurrency, after a warm-up of its own that isn't counted."""
    workload = job.workload
    settings = engine_settings(workload, contender.settings)
    with started(job, settings) as engine:
        compiler = None if settings.compile is None else _Compiler(engine, contender.compiling_s)
        if compiler is not None:
            logging.getLogger("deployments.engine.compile.graph_cache").addHandler(compiler)
        clients = Clients(engine, workload, conditioning_of(job))
        clients.run(1, workload.steps, 0.0)  # traces the sampler's table for this number of steps
        for n in job.concurrency:
            yield _measure(engine, clients, workload, contender.name, n, compiler)


def _measure(
    engine: Engine, clients: Clients, workload: Workload, name: str, concurrency: int, compiler: _Compiler | None
) -> Figures:
    print(f"{name}: {concurrency} at once", file=sys.stderr)
    device = torch.device(engine.stats().device)
    reset_peak(device)
    compiling_s = None
    try:
        if compiler is None:
            clients.run(concurrency, min(workload.steps, _WARM_STEPS), 0.0)
        else:
            compiling_s = _compile(engine, clients, workload, concurrency, compiler)
            reset_warm_peak(device)
        before = engine.stats()
        latencies, seconds = clients.run(concurrency, workload.steps, workload.seconds)
        after = engine.stats()
    except (DarkroomError, _NotCompiled) as error:
        return Figures(contender=name, way=LANES, concurrency=concurrency, failed=str(error))
    p50, p99 = percentiles(latencies)
    return Figures(
        contender=name,
        way=LANES,
        concurrency=concurrency,
        images=len(latencies),
        images_per_s=len(latencies) / seconds,
        latency_p50_s=p50,
        latency_p99_s=p99,
        peak_bytes=peak_bytes(device),
        compiling_s=compiling_s,
        **_counters(before, after, compiled=compiler is not None),
    )


class _NotCompiled(Exception):
    """A contender that is to be compiled, and isn't: its figures would be another one's."""


def _compile(engine: Engine, clients: Clients, workload: Workload, concurrency: int, compiler: _Compiler) -> float:
    """Whole images until all that they took is compiled and was taken so. The seconds that this took.

    Whole ones, because the engine tries several numbers of rows before it stays with one. Raises _NotCompiled.
    """
    began = time.perf_counter()
    while True:
        before = engine.stats()
        clients.run(concurrency, workload.steps, 0.0)
        after = engine.stats()
        if not compiler.wait():
            break
        if _known(before) == _known(engine.stats()):
            break  # nothing new was asked for, and what there is was used
    if after.compiled_steps_total == before.compiled_steps_total:
        raise _NotCompiled(compiler.failure)
    return time.perf_counter() - began


def _known(stats: EngineStats) -> tuple[object, ...]:
    return stats.compiled, stats.compile_failures


def _counters(before: EngineStats, after: EngineStats, *, compiled: bool) -> dict[str, float | None]:
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
        "compiled_share": (after.compiled_steps_total - before.compiled_steps_total) / steps if compiled else None,
    }
