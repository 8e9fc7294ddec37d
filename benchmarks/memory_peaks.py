"""The memory plan against the device: what a batch needs by the plan, and what it takes.

For UNet steps of several numbers of rows, and for an image with its decode. Knows the plan's arithmetic by one
function (`planned_bytes`), the engine by its requests.
"""

import sys
from collections.abc import Iterator

import torch

from benchmarks.engine_lanes import Clients, started
from benchmarks.peak_memory import peak_bytes, reset_peak
from benchmarks.pipelines import conditioning_of, describe_of
from benchmarks.results import MemoryPeak
from benchmarks.workload import Job, MemoryPeaks, Workload, engine_settings
from deployments.engine.config import EngineSettings, MemoryPolicy
from deployments.engine.memory.footprint_tracing import footprint_of
from deployments.engine.types import LATENT_SCALE

_STEPS = 4  # so many that all lanes have come together


def measure_peaks(job: Job, contender: MemoryPeaks) -> Iterator[MemoryPeak]:
    """Peaks of steps by rows, then that of one image; each of an engine that has seen such a batch before."""
    workload = job.workload.model_copy(update={"steps": _STEPS})
    settings = engine_settings(workload, {"max_rows": max(2, *contender.rows), "memory": contender.policy})
    with started(job, settings) as engine:
        stats = engine.stats()
        device, dtype = torch.device(stats.device), getattr(torch, stats.dtype)
        text = conditioning_of(job)
        unguided = workload.model_copy(update={"guidance_scale": 1.0})
        for rows in contender.rows:
            print(f"{contender.name}: {rows} rows", file=sys.stderr)
            # an odd number of rows can't be had of lanes that take two
            lanes, asked = (rows, unguided) if rows % 2 else (rows // 2, workload)
            clients = Clients(engine, asked, text, output="latents")
            planned = planned_bytes(workload, settings, dtype, contender.policy, rows=rows, lanes=lanes)
            yield _peak("step", rows, planned, clients, lanes, device)
        clients = Clients(engine, workload, text)
        planned = planned_bytes(workload, settings, dtype, contender.policy, rows=workload.rows, lanes=1, images=1)
        yield _peak("image", workload.rows, planned, clients, 1, device)


def planned_bytes(
    workload: Workload,
    settings: EngineSettings,
    dtype: torch.dtype,
    policy: MemoryPolicy,
    *,
    rows: int,
    lanes: int,
    images: int = 0,
) -> int:
    """The memory plan's peak for steps of `rows` rows and, after them, a decode of `images` images, weights included.

    Of what is resident alone: the plan's reserve for lanes that haven't come isn't in it.
    """
    footprint = footprint_of(describe_of(workload)(workload.spec), settings, dtype)
    cells = workload.height // LATENT_SCALE * (workload.width // LATENT_SCALE)
    peak = footprint.unet_there(policy) + footprint.step(rows, cells)
    if images:
        peak = max(peak, footprint.vae_there(policy) + footprint.decode(images, cells))
    return peak + lanes * footprint.lane(cells)


def _peak(what: str, rows: int, planned: int, clients: Clients, lanes: int, device: torch.device) -> MemoryPeak:
    clients.run(lanes, _STEPS, 0.0)
    reset_peak(device)
    clients.run(lanes, _STEPS, 0.0)
    return MemoryPeak(
        what=what,
        rows=rows,
        planned_bytes=planned,
        measured_bytes=peak_bytes(device),
        comparable=device.type == "cuda",
    )
