"""What `make gpu` measures: its parts, each of them a row of contenders with what they are to do.

Plain settings; no torch here. Knows nothing of how they are run or shown.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.workload import (
    COMPILED,
    PLAIN,
    Contender,
    EngineContender,
    MemoryPeaks,
    ModuleTimes,
    ParityCheck,
    SwapTimes,
    Workload,
    settings_of,
    spec_of,
)
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import DeviceName, DtypeName, MemoryPolicy
from deployments.engine.families.family import FamilyName

LEVERS = "levers-"
"""How the parts that change one setting at a time begin: what isn't there is said and no failure."""
_ENGINE = EngineContender(name="engine")
_COMPILING_S = 400.0  # so that what was compiled can still be measured within a part

Measured = Literal["sd15", "sdxl"]


class _Kind(BaseModel):
    """How a family is measured: pixels of both sides, steps, type; levers: changes of the engine's defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pixels: int
    steps: int
    dtype: DtypeName
    levers: tuple[str, ...]


_CHANGES = (
    "channels_last=false",
    "attention=xformers",
    "attention=sliced",
    "vae.tiling=always",
    "decode_batch=4",
    "max_rows=32",
    "quantize=int8",
    "memory=model_offload",
    "memory=group_offload",
    "memory=sequential_offload",
)
_KINDS: Mapping[Measured, _Kind] = {
    "sd15": _Kind(pixels=512, steps=25, dtype="float16", levers=("dtype=bfloat16", "vae.dtype=bfloat16", *_CHANGES)),
    # in float16 its VAE has to decode in float32
    "sdxl": _Kind(
        pixels=1024, steps=20, dtype="bfloat16", levers=("dtype=float16", "dtype=float16,vae.dtype=bfloat16", *_CHANGES)
    ),
}
_QUICK = _Kind(pixels=64, steps=2, dtype="auto", levers=("decode_batch=4",))


class Options(BaseModel):
    """What can be chosen of a run. quick: the demo models, small and few: whether it runs, not how fast."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: DeviceName = "cuda"
    threads: int = Field(default=0, ge=0)
    concurrency: tuple[int, ...] = (1, 4, 8, 16, 32)
    seconds: float = Field(default=4.0, gt=0.0)
    quick: bool = False


class Step(BaseModel):
    """One contender with its work, in a process of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workload: Workload
    contender: Contender = Field(discriminator="kind")
    concurrency: tuple[int, ...] = ()


def steps_of(part: str, options: Options) -> tuple[Step, ...]:
    """What a part consists of, the most wanted first. Raises KeyError for a part that there isn't."""
    return _PARTS[part](options)


def _parity(options: Options) -> tuple[Step, ...]:
    families: tuple[FamilyName, ...] = ("sd15",) if options.quick else ("sd15", "sdxl", "sdxl-refiner")
    dtypes: tuple[DtypeName, ...] = ("float32",) if options.quick else ("float32", "float16", "bfloat16")
    pixels = _QUICK.pixels if options.quick else 256  # 16 rows in float32, three families, in ten minutes
    return tuple(
        Step(
            workload=_workload(family, options, "auto").model_copy(update={"width": pixels, "height": pixels}),
            contender=ParityCheck(dtypes=dtypes, lanes=2) if options.quick else ParityCheck(dtypes=dtypes),
        )
        for family in families
    )


def _throughput(family: Measured, options: Options) -> tuple[Step, ...]:
    workload = _workload(family, options)
    modules = ModuleTimes(largest=workload.rows * max(options.concurrency))
    return tuple(
        Step(workload=workload, contender=contender, concurrency=options.concurrency)
        for contender in (modules, _ENGINE, PLAIN)
    )


def _compiled_diffusers(family: Measured, options: Options) -> tuple[Step, ...]:
    return (Step(workload=_workload(family, options), contender=COMPILED, concurrency=options.concurrency),)


def _compiled_engine(family: Measured, options: Options) -> tuple[Step, ...]:
    contender = _engine("compile={}").model_copy(update={"compiling_s": _COMPILING_S})
    return (Step(workload=_workload(family, options), contender=contender, concurrency=options.concurrency),)


def _levers(family: Measured, options: Options) -> tuple[Step, ...]:
    kind = _QUICK if options.quick else _KINDS[family]
    concurrency = (1, 2) if options.quick else (1, 8)
    return tuple(
        Step(workload=_workload(family, options), contender=contender, concurrency=concurrency)
        for contender in (_ENGINE, *map(_engine, kind.levers))
    )


def _memory(options: Options) -> tuple[Step, ...]:
    # in bfloat16 the VAE decodes in it, in float16 SDXL's has to be widened: what eight GB hold is said of float16
    dtype: DtypeName = "auto" if options.quick else "float16"
    policies: tuple[MemoryPolicy, ...] = ("resident",) if options.quick else get_args(MemoryPolicy)
    return tuple(
        Step(workload=_workload(family, options, dtype), contender=MemoryPeaks(name=f"memory {policy}", policy=policy))
        for policy in policies
        for family in _families(options)
    )


def _swap(options: Options) -> tuple[Step, ...]:
    pixels, steps = (_QUICK.pixels, _QUICK.steps) if options.quick else (128, 4)
    alone, swaps = (2, 2) if options.quick else (30, 60)
    return tuple(
        Step(
            workload=_workload(family, options).model_copy(update={"width": pixels, "height": pixels, "steps": steps}),
            # three variants of the family, UNet and VAE
            contender=SwapTimes(alone=alone, swaps=swaps, host_memory_gib=6.0 if family == "sd15" else 18.0),
        )
        for family in _families(options)
    )


def _families(options: Options) -> tuple[Measured, ...]:
    return ("sd15",) if options.quick else get_args(Measured)


def _engine(changes: str) -> EngineContender:
    return EngineContender(name=f"engine {changes}", settings=settings_of(changes))


def _workload(family: FamilyName, options: Options, dtype: DtypeName | None = None) -> Workload:
    kind = _QUICK if options.quick else _KINDS["sd15" if family == "sd15" else "sdxl"]
    spec = CheckpointSpec(family=family, source=f"random/{family}")
    return Workload(
        spec=spec_of(f"demo-{family}", None, None) if options.quick else spec,
        random_weights=not options.quick,
        width=kind.pixels,
        height=kind.pixels,
        steps=kind.steps,
        sampler="euler",
        guidance_scale=7.5,
        device=options.device,
        dtype=kind.dtype if dtype is None else dtype,
        cpu_threads=options.threads,
        seconds=options.seconds,
    )


_PARTS: Mapping[str, Callable[[Options], tuple[Step, ...]]] = {
    "parity": _parity,
    "sd15": partial(_throughput, "sd15"),
    "sd15-diffusers-compiled": partial(_compiled_diffusers, "sd15"),
    "sd15-engine-compiled": partial(_compiled_engine, "sd15"),
    "sdxl": partial(_throughput, "sdxl"),
    "sdxl-diffusers-compiled": partial(_compiled_diffusers, "sdxl"),
    "sdxl-engine-compiled": partial(_compiled_engine, "sdxl"),
    "memory": _memory,
    "swap": _swap,
    f"{LEVERS}sd15": partial(_levers, "sd15"),
    f"{LEVERS}sdxl": partial(_levers, "sdxl"),
}
PARTS = tuple(_PARTS)
