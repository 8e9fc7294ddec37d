"""What contenders report: figures by concurrency, times of single modules. Plain data, written as JSON."""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict


class Figures(BaseModel):
    """A contender at one concurrency.

    way: how requests share the device ("lanes", "one call at a time", "one call for all").
    latencies are from submission to image, queue included; `images` of them.
    peak_bytes: device memory allocated on CUDA (of this concurrency), the process's resident memory on a CPU (so far).
    rows_per_step, padding (share of rows), step_seconds (of one step), vae_share (of device time): the engine's own
        counters; None for others.
    failed: why there are no figures.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    contender: str
    way: str
    concurrency: int
    images: int = 0
    images_per_s: float = 0.0
    latency_p50_s: float = 0.0
    latency_p99_s: float = 0.0
    peak_bytes: int = 0
    rows_per_step: float | None = None
    padding: float | None = None
    step_seconds: float | None = None
    vae_share: float | None = None
    failed: str | None = None


class ModuleTime(BaseModel):
    """One forward of a module: median seconds over `repeats` calls; size: UNet rows or images decoded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    module: str
    size: int
    seconds: float = 0.0
    repeats: int = 0
    peak_bytes: int = 0
    failed: str | None = None


class ModuleReport(BaseModel):
    """The device and the checkpoint without a server around them.

    matrix_tflops: measured rate of a large matrix product on random data, in the workload's type.
    evaluations: UNet evaluations of an image. flops: of one UNet row and of one image's decode.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str
    dtype: str
    cpu_threads: int
    matrix_tflops: float
    evaluations: int
    unet_row_flops: int
    vae_decode_flops: int
    unet_parameters: int
    times: tuple[ModuleTime, ...]


class ContenderReport(BaseModel):
    """A process's result: what a contender measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    figures: tuple[Figures, ...] = ()
    modules: ModuleReport | None = None


def percentiles(latencies: Sequence[float]) -> tuple[float, float]:
    """Median and 99th percentile, linearly interpolated: of few samples the latter is close to the largest."""
    p50, p99 = np.percentile(np.asarray(latencies), (50, 99))
    return float(p50), float(p99)
