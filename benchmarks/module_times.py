"""Times the parts without a server around them: the device's matrix rate, the UNet by rows, the VAE by images."""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.flops import count_flops
from benchmarks.machine import machine
from benchmarks.peak_memory import peak_bytes, reset_peak
from benchmarks.pipelines import load_for
from benchmarks.real_architectures import unet_inputs
from benchmarks.results import ModuleReport, ModuleTime
from benchmarks.workload import Job, ModuleTimes, Workload
from deployments.engine.checkpoints.denoiser_weights import DenoiserWeights
from deployments.engine.config import DeviceSettings
from deployments.engine.device import Device, open_device
from deployments.engine.samplers.tables import sampler_table
from deployments.engine.vae.autoencoder import Vae

_WARM_CALLS = 3
_FEWEST, _MOST = 3, 20  # timed calls of one size
_LARGEST_DECODE = 4


def measure_modules(job: Job, contender: ModuleTimes) -> ModuleReport:
    """Medians over a few calls each, after calls that warm up; FLOPs counted at the workload's size."""
    workload = job.workload
    device = open_device(DeviceSettings(device=workload.device, dtype=workload.dtype, cpu_threads=workload.cpu_threads))
    on = device.torch_device
    rate = _matrix_tflops(device, min(1.0, workload.seconds))
    weights = load_for(workload, on, device.dtype)
    if contender.channels_last:
        weights.unet.to(memory_format=torch.channels_last)
        weights.vae.to(memory_format=torch.channels_last)
    times = _unet_times(weights, workload, contender, on) + _vae_times(weights, workload, on)
    flops = count_flops(weights.family.name, weights.unet.config, weights.vae.config, workload.height, workload.width)
    return ModuleReport(
        device=torch.cuda.get_device_name(on) if on.type == "cuda" else str(machine()["processor"]),
        dtype=str(device.dtype).removeprefix("torch."),
        cpu_threads=torch.get_num_threads(),
        matrix_tflops=rate,
        evaluations=len(sampler_table(weights.scheduler_config, workload.sampler, workload.steps).steps),
        unet_row_flops=flops.unet_row,
        vae_decode_flops=flops.vae_decode,
        unet_parameters=sum(parameter.numel() for parameter in weights.unet.parameters()),
        times=tuple(times),
    )


def _unet_times(
    weights: DenoiserWeights, workload: Workload, contender: ModuleTimes, device: torch.device
) -> list[ModuleTime]:
    unet: Any = weights.unet
    times = []
    rows = 1
    while rows <= contender.largest:
        print(f"UNet, rows: {rows}", file=sys.stderr)
        inputs = unet_inputs(unet, weights.family.name, rows, workload.height // 8, workload.width // 8)
        if contender.channels_last:
            inputs["sample"] = inputs["sample"].contiguous(memory_format=torch.channels_last)
        times.append(_timed("unet", rows, partial(unet, **inputs, return_dict=False), workload, device))
        rows *= 2
    return times


def _vae_times(weights: DenoiserWeights, workload: Workload, device: torch.device) -> list[ModuleTime]:
    """As the engine decodes: pixels on the CPU in the end."""
    vae: Any = weights.vae
    times = []
    images = 1
    while images <= _LARGEST_DECODE:
        print(f"VAE decode, images: {images}", file=sys.stderr)
        latents = torch.randn(
            images, vae.config.latent_channels, workload.height // 8, workload.width // 8, device=device
        )
        times.append(_timed("vae decode", images, partial(Vae(vae).decode, latents), workload, device))
        images *= 2
    return times


def _timed(
    module: str, size: int, forward: Callable[[], object], workload: Workload, device: torch.device
) -> ModuleTime:
    reset_peak(device)
    try:
        durations = _durations(forward, workload.seconds / 4, device)
    except torch.OutOfMemoryError:
        durations = []
    if not durations:
        reset_peak(device)
        return ModuleTime(module=module, size=size, failed="out of device memory")
    return ModuleTime(
        module=module,
        size=size,
        seconds=statistics.median(durations),
        repeats=len(durations),
        peak_bytes=peak_bytes(device),
    )


def _durations(forward: Callable[[], object], seconds: float, device: torch.device) -> list[float]:
    """Seconds of each of 3 to 20 calls, for about `seconds`; warm-up calls before them (one, where calls are slow)."""
    until = time.perf_counter() + seconds
    for _ in range(_WARM_CALLS):
        _run(forward, device)
        if time.perf_counter() > until:
            break
    until = time.perf_counter() + seconds
    durations: list[float] = []
    while len(durations) < _FEWEST or (len(durations) < _MOST and time.perf_counter() < until):
        durations.append(_run(forward, device))
    return durations


def _run(forward: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    forward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _matrix_tflops(device: Device, seconds: float) -> float:
    """TFLOP/s of a large square matrix product on random data: what floors are reckoned with."""
    side = 8192 if device.torch_device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device.torch_device).to(device.dtype) for _ in range(2))
    durations = _durations(lambda: left @ right, seconds, device.torch_device)
    return 2 * side**3 / statistics.median(durations) / 1e12
