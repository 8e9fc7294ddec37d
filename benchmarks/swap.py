"""What it costs to change checkpoints, and whether the right one draws afterwards.

    python -m benchmarks.swap --checkpoint demo-sd15 --checkpoint demo-sd15-outline --checkpoint demo-sd15-stripes
    python -m benchmarks.swap --random-weights sd15 --dtype float16

One engine with room for one checkpoint. First swaps with nothing else to do, each timed; then lanes of all checkpoints
at once, which make it swap whenever it can, until there were enough swaps. Every image is compared with the one that
its checkpoint drew at first, to the byte. Ends with status 1 if one differs.
"""

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import psutil
import torch
from pydantic import ValidationError

from benchmarks.machine import commit, machine, versions
from benchmarks.pipelines import tensors_of
from benchmarks.real_architectures import UNETS, pooled_channels, random_architecture, random_denoiser
from benchmarks.results import SwapFigures, percentiles
from benchmarks.workload import SwapTimes, Workload, random_conditioning, spec_of
from deployments.engine.checkpoints.denoiser_weights import DenoiserTensors
from deployments.engine.checkpoints.loader import describe_denoiser, read_denoiser
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import DeviceName, DeviceSettings, DtypeName, EngineSettings
from deployments.engine.device import Device, open_device
from deployments.engine.engine import Engine
from deployments.engine.families.family import FamilyName
from deployments.engine.memory.footprint import Describe
from deployments.engine.residency.host_cache import Reader
from deployments.engine.types import Conditioning, DenoiseRequest, DenoiseResult

_MIB = 1 << 20
_SAMPLER = "euler"
_VARIANTS = 3  # of a random architecture
_LEAST_SIZE = 64


class Lanes:
    """Reproducible images of an engine, compared with the first ones."""

    def __init__(self, engine: Engine, checkpoints: Sequence[str], text: Conditioning, steps: int, size: int) -> None:
        self.engine = engine
        self.checkpoints = checkpoints
        self._text = text
        self._steps = steps
        self._size = size
        self._numbers = itertools.count()
        self._first: dict[str, bytes] = {}
        self.images = self.wrong = 0

    async def until(self, swaps: int, clients: int) -> None:
        """Images of all checkpoints at once until the engine has swapped so many times more."""
        last = self.engine.stats().loads_total + swaps

        async def client(names: Sequence[str]) -> None:
            for name in itertools.cycle(names):
                if self.engine.stats().loads_total >= last:
                    return
                await self.image(name)

        turns = [[*self.checkpoints[n:], *self.checkpoints[:n]] for n in range(len(self.checkpoints))]
        await asyncio.gather(*(client(turns[n % len(turns)]) for n in range(clients)))

    async def image(self, checkpoint: str) -> None:
        """One image; the first of its checkpoint is what the others have to be."""
        request = DenoiseRequest(
            lane_id=str(next(self._numbers)),
            checkpoint=checkpoint,
            seed=1,
            steps=self._steps,
            guidance_scale=5.0,
            width=self._size,
            height=self._size,
            sampler=_SAMPLER,
            reproducible=True,
        )
        async for event in self.engine.stream(request, self._text):
            if isinstance(event, DenoiseResult) and event.image is not None:
                self.images += 1
                drawn = event.image.tobytes()
                self.wrong += drawn != self._first.setdefault(checkpoint, drawn)


def measure(lanes: Lanes, alone: int, swaps: int) -> SwapFigures:
    """With a started engine of which no checkpoint is loaded yet. alone: swaps with nothing else to do."""
    engine, checkpoints = lanes.engine, lanes.checkpoints
    for name in checkpoints:
        asyncio.run(lanes.image(name))
    times = []
    for name in itertools.islice(itertools.cycle(checkpoints), alone):
        started = time.perf_counter()
        engine.preload(name).result()
        times.append(time.perf_counter() - started)
    before, memory_before = engine.stats(), _memory_mib()
    asyncio.run(lanes.until(swaps, 2 * len(checkpoints)))
    after = engine.stats()
    p50, p99 = percentiles(times)
    loads = after.loads_total - before.loads_total
    return SwapFigures(
        checkpoints=tuple(checkpoints),
        alone=alone,
        alone_p50_s=p50,
        alone_p99_s=p99,
        under_load=loads,
        under_load_s=(after.load_seconds_total - before.load_seconds_total) / loads,
        in_place=after.swaps_total,
        images=lanes.images,
        wrong=lanes.wrong,
        memory_before_mib=memory_before,
        memory_after_mib=_memory_mib(),
    )


def swaps_of(workload: Workload, times: SwapTimes) -> SwapFigures:
    """Of three variants of a random architecture, or of a checkpoint and itself under another name."""
    device = DeviceSettings(device=workload.device, dtype=workload.dtype, cpu_threads=workload.cpu_threads)
    if workload.random_weights:
        catalogue, read, describe = _random_variants(workload.spec.family, device)
    else:
        catalogue = {"one": workload.spec, "the other": workload.spec}
        read, describe = read_denoiser, describe_denoiser
    engine = Engine(_settings(device, times.host_memory_gib), catalogue, read, describe=describe)
    return _measured(engine, catalogue, describe, times, workload.steps, workload.width)


def _measured(
    engine: Engine,
    catalogue: Mapping[str, CheckpointSpec],
    describe: Describe,
    times: SwapTimes,
    steps: int,
    size: int,
) -> SwapFigures:
    engine.start()
    try:
        spec = next(iter(catalogue.values()))
        unet = describe(spec).unet
        text = random_conditioning(unet["cross_attention_dim"], pooled_channels(unet, spec.family), guided=True)
        return measure(Lanes(engine, tuple(catalogue), text, steps, size), times.alone, times.swaps)
    finally:
        engine.stop()


def _settings(device: DeviceSettings, host_memory_gib: float) -> EngineSettings:
    return EngineSettings(
        **device.model_dump(), resident_checkpoints=1, host_memory_gib=host_memory_gib, swap_patience_s=0.0
    )


def _memory_mib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.memory_reserved() / _MIB
    resident: int = psutil.Process().memory_info().rss
    return resident / _MIB


def _random_variants(
    family: FamilyName, settings: DeviceSettings
) -> tuple[dict[str, CheckpointSpec], Reader, Describe]:
    device = open_device(settings)
    device.row_threads.close()
    catalogue = {f"variant-{n}": CheckpointSpec(family=family, source=str(n)) for n in range(_VARIANTS)}
    return catalogue, lambda spec: _random_variant(spec, device), random_architecture


def _random_variant(spec: CheckpointSpec, device: Device) -> DenoiserTensors:
    """The real architecture at random; the number in the spec's source makes it another checkpoint."""
    weights = random_denoiser(spec, device.torch_device, device.dtype)
    weights.unet.conv_out.weight.mul_(1 + 0.1 * int(spec.source))
    return tensors_of(weights)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.swap", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", action="append", help="of the demo models, or folders; two or more")
    what.add_argument("--random-weights", choices=list(UNETS), help="three variants of the real architecture")
    parser.add_argument("--device", choices=get_args(DeviceName), default="auto")
    parser.add_argument("--dtype", choices=get_args(DtypeName), default="auto")
    parser.add_argument("--host-memory-gib", type=float, default=16.0, help="0 reads the files each time")
    parser.add_argument("--alone", type=int, default=30, help="swaps with nothing else to do")
    parser.add_argument("--swaps", type=int, default=200, help="swaps under load")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--size", type=int, default=128, help="pixels of both sides")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.size < _LEAST_SIZE:
        parser.error(f"--steps is at least 1, --size at least {_LEAST_SIZE}")
    try:
        options.times = SwapTimes(alone=options.alone, swaps=options.swaps, host_memory_gib=options.host_memory_gib)
        specs = {Path(name).name: spec_of(name, None, None) for name in options.checkpoint or ()}
    except (ValidationError, ValueError) as error:
        parser.error(str(error))
    if options.checkpoint and (len(specs) < 2 or len({spec.family for spec in specs.values()}) > 1):
        parser.error("two checkpoints or more, of one family; or --random-weights")
    options.catalogue = specs
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the figures; 1 if an image was wrong."""
    options = parse(arguments)
    device = DeviceSettings(device=options.device, dtype=options.dtype)
    if options.random_weights is not None:
        catalogue, read, describe = _random_variants(options.random_weights, device)
    else:
        catalogue = options.catalogue
        read, describe = read_denoiser, describe_denoiser
    engine = Engine(_settings(device, options.host_memory_gib), catalogue, read, describe=describe)
    figures = _measured(engine, catalogue, describe, options.times, options.steps, options.size)
    content = {
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "device": engine.stats().device,
        "dtype": engine.stats().dtype,
        "figures": figures.model_dump(),
    }
    print(json.dumps(content, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return 1 if figures.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
