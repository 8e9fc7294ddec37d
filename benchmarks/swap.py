"""What it costs to change checkpoints, and whether the right one draws afterwards.

    python -m benchmarks.swap --checkpoint demo-sd15 --checkpoint demo-sd15-outline --checkpoint demo-sd15-stripes
    python -m benchmarks.swap --random-weights sd15 --dtype float16

One engine with room for one checkpoint. First swaps with nothing else to do, each timed; then lanes of all checkpoints
at once, which make it swap whenever it can, until there were enough swaps. Every image is compared with the one that
its checkpoint drew at first, to the byte. Ends with status 1 if one differs.
"""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import psutil
import torch
import typer

from benchmarks.machine import commit, machine, versions
from benchmarks.pipelines import tensors_of
from benchmarks.real_architectures import pooled_channels, random_architecture, random_denoiser
from benchmarks.results import percentiles
from benchmarks.workload import random_conditioning, spec_of
from deployments.engine.checkpoint_spec import CheckpointSpec, Family
from deployments.engine.checkpoints import describe_denoiser, read_denoiser
from deployments.engine.denoiser_weights import DenoiserTensors
from deployments.engine.device import Device, open_device
from deployments.engine.engine import Engine
from deployments.engine.request import Conditioning, DenoiseRequest, DenoiseResult
from deployments.engine.settings import DeviceSettings, EngineSettings

_MIB = 1 << 20
_SAMPLER = "euler"


@dataclass(frozen=True, slots=True)
class SwapFigures:
    """alone: swaps with nothing else to do, in seconds; under_load_s: the mean of those between steps of lanes.

    wrong: images that weren't what their checkpoint drew at first. Memory in MiB: torch's on CUDA, else the process's;
    at the beginning of the load, when everything had been loaded once, and at its end.
    """

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


def _memory_mib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.memory_reserved() / _MIB
    resident: int = psutil.Process().memory_info().rss
    return resident / _MIB


def _random_variant(spec: CheckpointSpec, device: Device) -> DenoiserTensors:
    """The real architecture at random; the number in the spec's source makes it another checkpoint."""
    weights = random_denoiser(spec, device.torch_device, device.dtype)
    weights.unet.conv_out.weight.mul_(1 + 0.1 * int(spec.source))
    return tensors_of(weights)


def run(
    checkpoint: Annotated[list[str] | None, typer.Option(help="of the demo models, or folders; two or more")] = None,
    random_weights: Annotated[Family | None, typer.Option(help="three variants of the real architecture")] = None,
    device: str = "auto",
    dtype: str = "auto",
    host_memory_gib: Annotated[float, typer.Option(min=0.0, help="0 reads the files each time")] = 16.0,
    alone: Annotated[int, typer.Option(min=2, help="swaps with nothing else to do")] = 30,
    swaps: Annotated[int, typer.Option(min=1, help="swaps under load")] = 200,
    steps: Annotated[int, typer.Option(min=1)] = 4,
    size: Annotated[int, typer.Option(min=64, help="pixels of both sides")] = 128,
    json_path: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Measure, and print the figures."""
    on = DeviceSettings.model_validate({"device": device, "dtype": dtype})
    if random_weights is not None:
        opened = open_device(on)
        opened.row_threads.close()
        catalogue = {f"variant-{n}": CheckpointSpec(family=random_weights, source=str(n)) for n in range(3)}
        read, describe = (lambda spec: _random_variant(spec, opened)), random_architecture
    else:
        catalogue = {Path(name).name: spec_of(name, None, None) for name in checkpoint or ()}
        read, describe = read_denoiser, describe_denoiser
    if len(catalogue) < 2 or len({spec.family for spec in catalogue.values()}) > 1:
        raise typer.BadParameter("two checkpoints or more, of one family; or --random-weights")
    settings = EngineSettings.model_validate(
        on.model_dump() | {"resident_checkpoints": 1, "host_memory_gib": host_memory_gib, "swap_patience_s": 0.0}
    )
    engine = Engine(settings, catalogue, read, describe=describe)
    engine.start()
    try:
        spec = next(iter(catalogue.values()))
        unet = describe(spec).unet
        text = random_conditioning(unet["cross_attention_dim"], pooled_channels(unet, spec.family), guided=True)
        lanes = Lanes(engine, tuple(catalogue), text, steps, size)
        figures = measure(lanes, alone, swaps)
        content = {
            "commit": commit(),
            "machine": machine(),
            "versions": versions(),
            "device": engine.stats().device,
            "dtype": engine.stats().dtype,
            "figures": asdict(figures),
        }
    finally:
        engine.stop()
    print(json.dumps(content, indent=1))
    if json_path is not None:
        json_path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    if figures.wrong:
        sys.exit(1)


if __name__ == "__main__":
    typer.run(run)
