"""Is the engine right on this device? Its latents against plain diffusers, and bit by bit within a bucket.

    python -m benchmarks.parity --random-weights sd15 sdxl sdxl-refiner --dtype float32 float16 bfloat16

Unlike lanes (sampler, steps, guidance, seed, prompt all differ), each alone and all in one batch. The truth is
diffusers in float32. Rounding differs with batch and memory format, and a UNet can multiply it from step to step, so
the measure is how far diffusers itself gets from the truth: in 16 bit on the same weights, or in float32 with
channels_last. The engine passes within five times that distance, and in float32 within 1e-4 whatever it is. And with
the bucket pinned, company must not change a bit. Needs what benchmarks/engine.py needs; the exit status says whether
all passed.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import diffusers
import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from benchmarks.machine import commit, machine, versions
from benchmarks.pipelines import embedding_arguments, pipeline_over, tensors_of
from benchmarks.real_architectures import UNETS, random_architecture, random_denoiser
from benchmarks.results import LaneParity
from benchmarks.text_table import text_table
from benchmarks.workload import Array, ParityCheck, Workload, random_conditioning, spec_of
from deployments.engine.batch import bucket_for
from deployments.engine.checkpoints.denoiser_weights import DenoiserWeights
from deployments.engine.checkpoints.loader import describe_denoiser, load_denoiser
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import DeviceName, DeviceSettings, DtypeName, EngineSettings
from deployments.engine.device import open_device, release_memory
from deployments.engine.engine import Engine
from deployments.engine.memory.footprint import Describe
from deployments.engine.types import Conditioning, DenoiseRequest, DenoiseResult, Event

_REFINER_START = 0.8
# (sampler, steps, guidance): unlike in everything that lanes may differ in
_LANES = (
    ("euler", 8, 7.5),
    ("euler_a", 6, 1.0),
    ("ddim", 10, 3.0),
    ("dpmpp_2m_karras", 7, 12.0),
    ("unipc", 9, 5.0),
    ("pndm", 5, 7.5),
    ("heun", 4, 1.0),
    ("lcm", 6, 2.0),
)

LANES = len(_LANES)

Work = tuple[DenoiseRequest, Conditioning]


class ParityReport(BaseModel):
    """What `--json` writes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    commit: str
    machine: dict[str, str | int]
    versions: dict[str, str]
    device: str
    size: int
    lanes: tuple[LaneParity, ...]


Load = Callable[[CheckpointSpec, torch.device, torch.dtype], DenoiserWeights]


@dataclass(frozen=True, slots=True)
class Subject:
    """A checkpoint to check: what it is, how it is loaded, and what says beforehand what that will be."""

    spec: CheckpointSpec
    load: Load
    describe: Describe


def check_parity(subject: Subject, settings: DeviceSettings, size: int, lanes: int = LANES) -> list[LaneParity]:
    """Errors of the first `lanes` lanes on a device in one type. size: pixels."""
    device = open_device(settings)
    weights = subject.load(subject.spec, device.torch_device, device.dtype)
    work = _work(weights, size)[:lanes]
    plain = [_by_diffusers(weights, *item) for item in work]
    rows = bucket_for(2 * len(work))  # all lanes at once
    engine_settings = EngineSettings(**settings.model_dump(), max_rows=rows, reproducible_rows=rows)
    catalogue: dict[str, CheckpointSpec] = {subject.spec.family: subject.spec}
    engine = Engine(engine_settings, catalogue, read=lambda _: tensors_of(weights), describe=subject.describe)
    engine.start()
    try:
        alone = [_by_engine(engine, [item])[0] for item in work]
        together = _by_engine(engine, work)
        pinned = [(replace(request, reproducible=True), text) for request, text in work]
        pinned_alone = [_by_engine(engine, [item])[0] for item in pinned]
        pinned_together = _by_engine(engine, pinned)
    finally:
        engine.stop()
    if device.dtype == torch.float32:
        truth = plain
        weights.unet.to(memory_format=torch.channels_last)
        plain = [_by_diffusers(weights, *item) for item in work]
    else:
        torch.nn.Module.to(weights.unet, torch.float32)
        truth = [_by_diffusers(weights, *item) for item in work]
    return [
        LaneParity(
            family=subject.spec.family,
            dtype=str(device.dtype).removeprefix("torch."),
            sampler=request.sampler,
            steps=request.steps,
            guidance_scale=request.guidance_scale,
            alone=_distance(alone[index], truth[index]),
            together=_distance(together[index], truth[index]),
            plain=_distance(plain[index], truth[index]),
            bitwise=pinned_alone[index].tobytes() == pinned_together[index].tobytes(),
        )
        for index, (request, _) in enumerate(work)
    ]


def parity_of(workload: Workload, contender: ParityCheck) -> Iterator[LaneParity]:
    """Every lane of the workload's checkpoint, in one type after the other."""
    subject = _random(workload.spec) if workload.random_weights else _read(workload.spec)
    device = DeviceSettings(device=workload.device, cpu_threads=workload.cpu_threads)
    yield from _in_each_type(subject, device, contender.dtypes, workload.width, contender.lanes)


def render(report: ParityReport) -> str:
    """The report as text for a terminal."""
    rows = [
        [
            lane.family,
            lane.dtype,
            lane.sampler,
            str(lane.steps),
            f"{lane.guidance_scale:g}",
            f"{lane.alone:.1e}",
            f"{lane.together:.1e}",
            f"{lane.plain:.1e}",
            f"{lane.limit:.1e}",
            "equal" if lane.bitwise else "DIFFERS",
            "PASS" if lane.passed else "FAIL",
        ]
        for lane in report.lanes
    ]
    header = ["family", "type", "sampler", "steps", "guidance", "alone", "in batch", "diffusers", "limit", "bits", ""]
    passed = sum(lane.passed for lane in report.lanes)
    packages = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    return "\n\n".join(
        [
            f"commit {report.commit}, {packages}\non {report.device}, {report.size}x{report.size}",
            text_table(header, rows),
            f"{'PASS' if passed == len(rows) else 'FAIL'}: {passed} of {len(rows)} lanes",
        ]
    )


def _work(weights: DenoiserWeights, size: int) -> list[Work]:
    """The unlike lanes; a refiner's go on from noisy latents, at a fifth of a longer schedule."""
    unet: Any = weights.unet
    refiner = weights.family.refines
    work: list[Work] = []
    for index, (sampler, steps, guidance) in enumerate(_LANES):
        shape = (int(unet.config.in_channels), size // 8, size // 8)
        latents = np.random.default_rng(index).standard_normal(shape, dtype=np.float32)
        request = DenoiseRequest(
            lane_id=f"{index}",
            checkpoint=weights.family.name,
            seed=index,
            steps=steps + 14 if refiner else steps,
            guidance_scale=guidance,
            width=size,
            height=size,
            sampler=sampler,
            output="latents",
            denoising_start=_REFINER_START if refiner else 0.0,
            latents=latents if refiner else None,
        )
        text = random_conditioning(unet.config.cross_attention_dim, weights.pooled_channels, guidance > 1, seed=index)
        work.append((request, text))
    return work


def _by_diffusers(weights: DenoiserWeights, request: DenoiseRequest, text: Conditioning) -> Array:
    """Latents (channels, height, width) of a pipeline call for this one image, in the UNet's present type."""
    pipeline = pipeline_over(weights, request.sampler)
    arguments = embedding_arguments(weights, text, 1)
    if request.latents is None:
        arguments |= {"height": request.height, "width": request.width}
    else:
        image = torch.from_numpy(request.latents)[None].to(weights.unet.device)
        arguments |= {"image": image, "denoising_start": request.denoising_start}
    latents: torch.Tensor = pipeline(
        **arguments,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="latent",
    ).images
    return latents[0].float().cpu().numpy()


def _by_engine(engine: Engine, work: Sequence[Work]) -> list[Array]:
    """Latents of lanes that are submitted together, in their order."""
    results: list[Future[Array]] = [Future() for _ in work]

    def settle(result: Future[Array], item: Event | Exception) -> None:
        if isinstance(item, Exception):
            result.set_exception(item)
        elif isinstance(item, DenoiseResult) and item.latents is not None:
            result.set_result(item.latents)

    for (request, text), result in zip(work, results, strict=True):
        engine.submit(request, text, partial(settle, result))
    return [result.result() for result in results]


def _distance(out: Array, truth: Array) -> float:
    wide = truth.astype(np.float64)
    return float(np.linalg.norm(out - wide) / np.linalg.norm(wide))


def _read(spec: CheckpointSpec) -> Subject:
    return Subject(spec, load_denoiser, describe_denoiser)


def _random(spec: CheckpointSpec) -> Subject:
    return Subject(spec, random_denoiser, random_architecture)


def _in_each_type(
    subject: Subject, device: DeviceSettings, dtypes: Sequence[DtypeName], size: int, lanes: int
) -> Iterator[LaneParity]:
    # by default CUDA's convolutions round float32 to TF32's 10 bits, which no comparison would survive
    torch.backends.cudnn.allow_tf32 = False
    for dtype in dtypes:
        print(f"{subject.spec.family}, {dtype}", file=sys.stderr)
        yield from check_parity(subject, device.model_copy(update={"dtype": dtype}), size, lanes)
        release_memory()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.parity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", nargs="+", help="demo models, diffusers folders")
    what.add_argument("--random-weights", nargs="+", choices=list(UNETS), help="real architectures, no download")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "float16", "bfloat16"), default=["float32"])
    parser.add_argument("--device", choices=get_args(DeviceName), default="auto")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0: one a processor")
    parser.add_argument("--size", type=int, default=256, help="pixels (default: 256)")
    parser.add_argument("--lanes", type=int, default=LANES, help="how many of the unlike lanes (default: all)")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check what the command line names; 0 if everything passed."""
    options = parse(arguments)
    diffusers.logging.set_verbosity_error()  # it warns of types that are meant here
    if options.checkpoint:
        subjects = [_read(spec_of(name, None, None)) for name in options.checkpoint]
    else:
        subjects = [_random(CheckpointSpec(family=family, source="random")) for family in options.random_weights]
    device = DeviceSettings(device=options.device, cpu_threads=options.threads)
    lanes = [
        lane
        for subject in subjects
        for lane in _in_each_type(subject, device, options.dtype, options.size, options.lanes)
    ]
    on_cuda = options.device != "cpu" and torch.cuda.is_available()
    report = ParityReport(
        commit=commit(),
        machine=machine(),
        versions=versions(),
        device=torch.cuda.get_device_name(0) if on_cuda else str(machine()["processor"]),
        size=options.size,
        lanes=tuple(lanes),
    )
    if options.json is not None:
        options.json.write_text(report.model_dump_json(indent=1), encoding="utf-8")
    print(render(report))
    return 0 if all(lane.passed for lane in lanes) else 1


if __name__ == "__main__":
    sys.exit(main())
