"""What each way to steer an image costs: a step alone, a step among three plain images, and a detail's pass.

    python -m benchmarks.steering --checkpoint demo-sd15
    python -m benchmarks.steering --random-weights sd15 --size 256 --dtype bfloat16 --steps 4 --rounds 3

Files that steer have random weights (steering_files.py). All ways take turns, so that a machine's drift is in all of
them; a figure is the median of the rounds. Needs no Ray.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from benchmarks.engine import workload_of
from benchmarks.pipelines import conditioning_of, describe_of, load_for, reader_of
from benchmarks.steering_files import ADAPTERS, FEATURES, write_all
from benchmarks.text_table import text_table
from benchmarks.workload import EngineContender, Job, Workload, engine_settings
from deployments.engine.config import (
    ConditioningSettings,
    ControlnetSettings,
    DeviceName,
    DtypeName,
    IpAdapterSettings,
    LoraSettings,
)
from deployments.engine.engine import Engine
from deployments.engine.errors import DarkroomError
from deployments.engine.prompts.syntax import Lora
from deployments.engine.types import (
    Conditioning,
    Control,
    DenoiseRequest,
    Pixels,
    Reference,
    ReferenceFeatures,
    Region,
)

_NAME = "measured"
_BESIDE = 3  # plain images that share the steps
_ROOM_MIB = 1536  # for the weights of each kind
_DETAIL_STRENGTH = 0.4
_GUIDANCE = 5.0

Texts = Callable[[Conditioning], Conditioning]


@dataclass(frozen=True, slots=True)
class Way:
    """A way to steer: what it changes of a plain request, and of its texts."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    texts: Texts = lambda text: text


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds in which all images take a step, in each round, and their UNet rows."""

    rows: float
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the rounds."""
        return statistics.median(self.seconds)


def _composed(number: int) -> Texts:
    """The prompt so many times again."""
    return lambda text: replace(text, composed=(text.positive,) * number, weights=(1.0,) * (1 + number))


def _shown(text: Conditioning) -> Conditioning:
    picture = np.random.default_rng(0).standard_normal(FEATURES, dtype=np.float32)
    return replace(text, references=(ReferenceFeatures(picture, np.zeros_like(picture)),))


def _unguided(text: Conditioning) -> Conditioning:
    return replace(text, negative=None)


def ways_of(width: int, height: int) -> list[Way]:
    """All of them for images of so many pixels; the plain one first."""
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    left, right = _halves(width, height)
    halves = (Region(left), Region(right))
    own = tuple(replace(region, loras=(Lora("lora", 1.0),)) for region in halves)
    freeu = {"freeu_s1": 0.9, "freeu_s2": 0.2, "freeu_b1": 1.3, "freeu_b2": 1.4}
    return [
        Way("plain"),
        Way("no guidance at the step", {"guidance_scale": 1.0}, _unguided),
        Way("FreeU", freeu),
        Way("tiling", {"tiling": True}),
        *(Way(f"{_LABELS[kind]}", {"loras": (Lora(kind, 1.0),)}) for kind in ADAPTERS),
        Way("IP-Adapter, one picture", {"references": (Reference("ip-adapter"),)}, _shown),
        Way("ControlNet", {"controls": (Control("controlnet", picture),)}),
        Way("a third row (AND, as PAG would take)", {"composed_prompts": 2}, _composed(1)),
        Way("two regions", {"composed_prompts": 3, "regions": halves, "base_weight": 0.2}, _composed(2)),
        Way(
            "two regions with a LoRA each",
            {"composed_prompts": 3, "regions": own, "base_weight": 0.2},
            _composed(2),
        ),
    ]


_LABELS = {
    "lora": "LoRA of attention layers",
    "dora": "DoRA of the same",
    "loha": "LoHa of the same",
    "lokr": "LoKr of the same",
    "locon": "LoCon of all layers",
}


def _halves(width: int, height: int) -> tuple[Pixels, Pixels]:
    left = np.zeros((height, width), np.uint8)
    left[:, : width // 2] = 255
    return left, 255 - left


class Steered:
    """One engine with everything that steers.

    Args:
        workload: whose checkpoint, size, steps and sampler are measured.
        folder: as `write_all` fills it.
    """

    def __init__(self, workload: Workload, folder: Path) -> None:
        self._workload = workload
        self._text = conditioning_of(Job(workload=workload, contender=EngineContender(name=_NAME)))
        self._engine = Engine(
            engine_settings(workload, {"max_rows": 32}),
            {_NAME: workload.spec},
            loras=LoraSettings(folder=str(folder / "loras"), resident_mib=_ROOM_MIB),
            conditioning=ConditioningSettings(
                ControlnetSettings(folder=str(folder / "controlnets"), resident_mib=_ROOM_MIB),
                IpAdapterSettings(folder=str(folder / "ip-adapters"), resident_mib=_ROOM_MIB),
            ),
            read=reader_of(workload),
            describe=describe_of(workload),
        )
        self._numbers = count()

    def __enter__(self) -> "Steered":
        self._engine.start()
        self._engine.preload(_NAME).result()
        return self

    def __exit__(self, *_error: object) -> None:
        self._engine.stop()

    def request(self, way: Way, **changes: Any) -> tuple[DenoiseRequest, Conditioning]:
        """An image that is steered so, with its texts."""
        workload, number = self._workload, next(self._numbers)
        plain = DenoiseRequest(
            lane_id=str(number),
            checkpoint=_NAME,
            seed=number,
            steps=workload.steps,
            guidance_scale=workload.guidance_scale,
            width=workload.width,
            height=workload.height,
            sampler=workload.sampler,
            output="latents",
        )
        return replace(plain, **{**way.changes, **changes}), way.texts(self._text)

    def steps(self, ways: Sequence[Way]) -> tuple[float, float]:
        """Draw images together, one for each way; seconds in which each of them takes a step, and their rows in these.

        The engine may take them in one batch or in several.
        """
        before = self._engine.stats()
        asyncio.run(self._drawn([self.request(way) for way in ways]))
        after = self._engine.stats()
        steps = (after.lane_steps_total - before.lane_steps_total) / len(ways)
        seconds = after.step_seconds_total - before.step_seconds_total
        return seconds / steps, (after.rows_total - before.rows_total) / steps

    def image(self, **changes: Any) -> float:
        """Seconds of a plain image, changed so, to its pixels."""
        since = time.perf_counter()
        asyncio.run(self._drawn([self.request(Way("plain"), output="image", **changes)]))
        return time.perf_counter() - since

    async def _drawn(self, work: Sequence[tuple[DenoiseRequest, Conditioning]]) -> None:
        async def draw(request: DenoiseRequest, text: Conditioning) -> None:
            async for _ in self._engine.stream(request, text):
                pass

        await asyncio.gather(*(draw(*one) for one in work))


def measured(steered: Steered, ways: Sequence[Way], rounds: int, beside: int) -> dict[str, Cost]:
    """The cost of each way among so many plain images, by its name; the first round isn't counted."""
    found: dict[str, list[tuple[float, float]]] = {way.name: [] for way in ways}
    for _ in range(rounds + 1):
        for way in ways:
            print(f"{way.name}, {beside} beside", file=sys.stderr)
            found[way.name].append(steered.steps([way, *[ways[0]] * beside]))
    return {name: Cost(figures[0][1], tuple(seconds for seconds, _ in figures[1:])) for name, figures in found.items()}


def detail_pass(steered: Steered, workload: Workload, rounds: int) -> tuple[float, float]:
    """Seconds of an image, and of a detail's part of the same size, decoding and encoding included."""
    picture = np.random.default_rng(0).integers(0, 256, (workload.height, workload.width, 3), np.uint8)
    mask = np.full((workload.height, workload.width), 255, np.uint8)
    part = {"image": picture, "mask": mask, "strength": _DETAIL_STRENGTH}
    whole, parts = [], []
    for _ in range(rounds + 1):
        whole.append(steered.image())
        parts.append(steered.image(**part))
    return statistics.median(whole[1:]), statistics.median(parts[1:])


def table(alone: dict[str, Cost], among: dict[str, Cost]) -> str:
    """A row for each way."""
    plain, plain_among = next(iter(alone.values())), next(iter(among.values()), None)
    header = ["", "rows", "ms a step alone", "of the plain one"]
    header += [] if plain_among is None else [f"and of {_BESIDE} plain images beside it", "of four plain ones"]
    rows = []
    for name, cost in alone.items():
        row = [name, f"{cost.rows:g}", _range(cost), f"{cost.median / plain.median:.2f}"]
        if plain_among is not None:
            row += [_range(among[name]), f"{among[name].median / plain_among.median:.2f}"]
        rows.append(row)
    return text_table(header, rows)


def _range(cost: Cost) -> str:
    least, most = (f"{1000 * edge:.0f}" for edge in (min(cost.seconds), max(cost.seconds)))
    return f"{1000 * cost.median:.0f} ({least} to {most})"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.steering", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", help="demo-sd15, demo-sdxl, a diffusers folder, a .safetensors file or a hub id")
    what.add_argument("--random-weights", choices=("sd15", "sdxl"), help="the real architecture, without a download")
    parser.add_argument("--family", choices=("sd15", "sdxl"), help="of a checkpoint that isn't a diffusers folder")
    parser.add_argument("--size", help="pixels, 512 or 768x512 (width x height); 256 for demo models by default")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5, help="that count (default: 5)")
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--device", choices=get_args(DeviceName), default="auto")
    parser.add_argument("--dtype", choices=get_args(DtypeName), default="auto")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0: one a processor")
    parser.add_argument("--ways", help="only those whose names have one of these words: regions,FreeU")
    parser.add_argument("--alone", action="store_true", help="leave out steps among others, and the detail's pass")
    options = parser.parse_args(arguments)
    options.variant, options.guidance, options.seconds = None, _GUIDANCE, 1.0
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the tables."""
    options = parse(arguments)
    try:
        workload = workload_of(options)
    except (ValueError, DarkroomError) as error:
        print(f"benchmarks.steering: {error}", file=sys.stderr)
        return 2
    ways = ways_of(workload.width, workload.height)
    if options.ways:
        words = options.ways.split(",")
        ways = [way for way in ways if way is ways[0] or any(word in way.name for word in words)]
    with tempfile.TemporaryDirectory(prefix="steering-") as folder:
        place = torch.device("meta" if workload.random_weights else "cpu")
        write_all(Path(folder), load_for(workload, place, torch.float32).unet)
        with Steered(workload, Path(folder)) as steered:
            alone = measured(steered, ways, options.rounds, 0)
            among = {} if options.alone else measured(steered, ways, options.rounds, _BESIDE)
            print(table(alone, among))
            if not options.alone and workload.steps * _DETAIL_STRENGTH >= 1:
                whole, part = detail_pass(steered, workload, options.rounds)
                print(
                    f"\nan image of {workload.steps} steps: {whole:.2f} s; a detail's part at strength "
                    f"{_DETAIL_STRENGTH:g}: {part:.2f} s"
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
