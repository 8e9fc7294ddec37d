"""What contenders report: figures by concurrency, times of single modules, likeness, swaps, peaks.

Plain data, written as JSON; no torch here.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from deployments.engine.families.family import FamilyName

LANES = "lanes"
ONE = "one call at a time"
ALL = "one call for all"
EXACT = 1e-4  # of the truth, always good enough in float32
WIDER = 5.0  # times diffusers' own distance from the truth
PLANNED_WITHIN = 0.1  # of the measured peak


class Figures(BaseModel):
    """A contender at one concurrency.

    way: how requests share the device (LANES, ONE or ALL).
    latencies are from submission to image, queue included; `images` of them.
    peak_bytes: device memory allocated on CUDA (of this concurrency), the process's resident memory on a CPU (so far).
    rows_per_step, padding (share of rows), step_seconds (of one step), vae_share (of device time): the engine's own
        counters; None for others.
    compiled_share: of its steps, those that compiled forwards took; compiling_s: how long it was waited for them before
        measuring. None where nothing is compiled.
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
    compiled_share: float | None = None
    compiling_s: float | None = None
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


class LaneParity(BaseModel):
    """One lane: distances ||out - truth|| / ||truth|| of the engine, alone and in company, and of plain diffusers.

    bitwise: alone and with seven others in the same bucket, the latents are equal to the bit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: FamilyName
    dtype: str
    sampler: str
    steps: int
    guidance_scale: float
    alone: float
    together: float
    plain: float
    bitwise: bool

    @property
    def limit(self) -> float:
        """The largest distance that passes."""
        return max(EXACT if self.dtype == "float32" else 0.0, WIDER * self.plain)

    @property
    def close(self) -> bool:
        """Close enough (NaN never is), alone and together."""
        return self.alone <= self.limit and self.together <= self.limit

    @property
    def passed(self) -> bool:
        """Close enough, and reproducible."""
        return self.close and self.bitwise


class SwapFigures(BaseModel):
    """alone: swaps with nothing else to do, in seconds; under_load_s: the mean of those between steps of lanes.

    wrong: images that weren't what their checkpoint drew at first. Memory in MiB: torch's on CUDA, else the process's;
    at the beginning of the load, when everything had been loaded once, and at its end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoints: tuple[str, ...]
    alone: int
    alone_p50_s: float
    alone_p99_s: float
    under_load: int
    under_load_s: float
    in_place: int
    images: int
    wrong: int
    memory_before_mib: float
    memory_after_mib: float


class MemoryPeak(BaseModel):
    """The peak of a batch: what the memory plan says beforehand, and what was measured, weights included, in bytes.

    what: "step" for UNet steps of `rows` rows alone, "image" for those and the decode after them.
    comparable: on a CPU it isn't: what is measured there is the whole process.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str
    rows: int
    planned_bytes: int
    measured_bytes: int
    comparable: bool

    @property
    def within(self) -> bool:
        """Whether the plan is as close as it should be."""
        return abs(self.planned_bytes / self.measured_bytes - 1) <= PLANNED_WITHIN


class ContenderReport(BaseModel):
    """A contender's result, as far as it has come; failed: why it came no further."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    figures: tuple[Figures, ...] = ()
    modules: ModuleReport | None = None
    parity: tuple[LaneParity, ...] = ()
    peaks: tuple[MemoryPeak, ...] = ()
    swaps: SwapFigures | None = None
    failed: str | None = None


def percentiles(latencies: Sequence[float]) -> tuple[float, float]:
    """Median and 99th percentile, linearly interpolated: of few samples the latter is close to the largest."""
    p50, p99 = np.percentile(np.asarray(latencies), (50, 99))
    return float(p50), float(p99)
