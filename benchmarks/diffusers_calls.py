"""Measures plain diffusers: one pipeline call at a time, and one call for n images.

Everything happens in the thread that calls, the only one of its process that uses torch. Attention is diffusers'
default (scaled_dot_product_attention). Images are asked for as numpy arrays, which is cheaper than the default, PIL.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count, cycle, islice
from typing import Any

import torch

from benchmarks.peak_memory import peak_bytes, reset_peak
from benchmarks.pipelines import conditioning_of, embedding_arguments, generators, load_for, pipeline_over
from benchmarks.results import ALL, ONE, Figures, percentiles
from benchmarks.workload import DiffusersContender, Job
from deployments.engine.config import DeviceSettings
from deployments.engine.device import open_device

_WARM_STEPS = 4


def measure_diffusers(job: Job, contender: DiffusersContender) -> Iterator[Figures]:
    """Figures at each concurrency, both ways; each batch size is warmed up by a short call that isn't counted."""
    workload = job.workload
    device = open_device(DeviceSettings(device=workload.device, dtype=workload.dtype, cpu_threads=workload.cpu_threads))
    weights = load_for(workload, device.torch_device, device.dtype)
    pipeline = pipeline_over(weights, workload.sampler)
    if contender.channels_last:
        weights.unet.to(memory_format=torch.channels_last)
        weights.vae.to(memory_format=torch.channels_last)
    if contender.compiled:
        pipeline.unet = torch.compile(pipeline.unet, fullgraph=True, dynamic=False)
        pipeline.vae.decode = torch.compile(pipeline.vae.decode, fullgraph=True, dynamic=False)
    conditioning = conditioning_of(job)
    seeds = count()

    def call(images: int, steps: int) -> float:
        first = next(seeds)
        arguments = embedding_arguments(weights, conditioning, images)
        started = time.perf_counter()
        pipeline(
            **arguments,
            num_inference_steps=steps,
            guidance_scale=workload.guidance_scale,
            width=workload.width,
            height=workload.height,
            generator=generators(range(first, first + images)),
            output_type="np",
        )
        return time.perf_counter() - started

    print(f"{contender.name}: {ONE}", file=sys.stderr)
    reset_peak(device.torch_device)
    call(1, workload.steps)
    alone = _repeat(lambda: call(1, workload.steps), workload.seconds)
    peak = peak_bytes(device.torch_device)
    yield from (_queue(contender.name, alone, n, peak) for n in job.concurrency)
    for n in job.concurrency:
        if n > 1:
            print(f"{contender.name}: {ALL}, {n} images", file=sys.stderr)
            yield _batched(contender.name, call, n, workload.steps, workload.seconds, device.torch_device)


def queue_latencies(durations: Sequence[float], clients: int) -> list[float]:
    """Latencies of a closed loop of `clients` in front of one worker that takes `durations`, in their order.

    A client asks again when it is served, so an image waits for the clients - 1 before it: its latency is the sum of
    `clients` durations in a row. The measured ones are gone through as often as needed.
    """
    calls = list(islice(cycle(durations), len(durations) + clients - 1))
    return [sum(calls[first : first + clients]) for first in range(len(durations))]


def _queue(name: str, durations: Sequence[float], clients: int, peak: int) -> Figures:
    p50, p99 = percentiles(queue_latencies(durations, clients))
    return Figures(
        contender=name,
        way=ONE,
        concurrency=clients,
        images=len(durations),
        images_per_s=len(durations) / sum(durations),
        latency_p50_s=p50,
        latency_p99_s=p99,
        peak_bytes=peak,
    )


def _batched(
    name: str, call: Callable[[int, int], float], images: int, steps: int, seconds: float, device: torch.device
) -> Figures:
    reset_peak(device)
    try:
        call(images, min(steps, _WARM_STEPS))
        durations = _repeat(lambda: call(images, steps), seconds)
    except torch.OutOfMemoryError:
        durations = []
    if not durations:
        reset_peak(device)
        return Figures(contender=name, way=ALL, concurrency=images, failed="out of device memory")
    p50, p99 = percentiles(durations)
    return Figures(
        contender=name,
        way=ALL,
        concurrency=images,
        images=images * len(durations),
        images_per_s=images * len(durations) / sum(durations),
        latency_p50_s=p50,
        latency_p99_s=p99,
        peak_bytes=peak_bytes(device),
    )


def _repeat(call: Callable[[], float], seconds: float) -> list[float]:
    """Durations of calls for about `seconds`; one at least."""
    durations: list[Any] = [call()]
    while sum(durations) < seconds:
        durations.append(call())
    return durations
