"""The engine against plain diffusers: images per second and latency at several concurrencies, on any device.

    python -m benchmarks.engine --checkpoint demo-sd15
    python -m benchmarks.engine --random-weights sdxl --dtype float16 --json sdxl.json

Needs no Ray: torch, diffusers, transformers, accelerate, safetensors, pydantic, numpy and scipy. Every contender runs
in a process of its own, one after the other; this one only starts them and adds up, and does without torch.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from benchmarks.contender_processes import Run, run_in_process
from benchmarks.machine import commit, machine, versions
from benchmarks.report import Report, render
from benchmarks.results import ContenderReport, Figures
from benchmarks.workload import (
    CHANNELS_LAST,
    COMPILED,
    PLAIN,
    Contender,
    DiffusersContender,
    EngineContender,
    Job,
    ModuleTimes,
    TextEncoding,
    Workload,
    settings_of,
    spec_of,
)
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import DeviceName, DtypeName
from deployments.engine.errors import DarkroomError
from deployments.engine.families.family import FamilyName
from deployments.engine.families.registry import FAMILIES
from deployments.engine.samplers.registry import canonical

_PIXELS = {"sd15": 512, "sdxl": 1024}
_DEMO_PIXELS = 256
_BASELINES = {
    "plain": PLAIN,
    "channels_last": CHANNELS_LAST,
    "compiled": COMPILED,
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", help="demo-sd15, demo-sdxl, a diffusers folder, a .safetensors file or a hub id")
    what.add_argument("--random-weights", choices=sorted(_PIXELS), help="the real architecture, without a download")
    parser.add_argument("--family", choices=sorted(_PIXELS), help="of a checkpoint that isn't a diffusers folder")
    parser.add_argument("--variant", help="of the checkpoint's weight files, such as fp16")
    parser.add_argument("--size", help="pixels, 512 or 768x512 (width x height); 256 for demo models by default")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sampler", default="euler", help="any of the engine's (default: euler)")
    parser.add_argument("--guidance", type=float, default=7.5, help="1 takes one UNet row an image (default: 7.5)")
    parser.add_argument("--device", choices=get_args(DeviceName), default="auto")
    parser.add_argument("--dtype", choices=get_args(DtypeName), default="auto")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0: one a processor")
    parser.add_argument("--concurrency", type=_numbers, default=(1, 4, 8, 16), help="default: 1,4,8,16")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each figure (default: 10)")
    parser.add_argument("--repeats", type=int, default=1, help="of the whole run; the table shows medians and ranges")
    parser.add_argument(
        "--engine",
        action="append",
        metavar="KEY=VALUE,...",
        help="an engine with these settings changed (vae.dtype=bfloat16, compile={}); can be given several times; "
        "'' is the defaults",
    )
    parser.add_argument(
        "--baselines",
        default="plain,channels_last",
        help=f"of {', '.join(_BASELINES)}; '' for none (default: plain,channels_last)",
    )
    parser.add_argument("--no-modules", action="store_true", help="leave out the floor and the modules' own times")
    parser.add_argument("--json", type=Path, help="write everything here, also after each contender")
    return parser.parse_args(arguments)


def workload_of(options: argparse.Namespace) -> Workload:
    """What the options ask to measure. Raises ValueError or DarkroomError where they make no sense."""
    random: FamilyName | None = options.random_weights
    if random is not None:
        spec = CheckpointSpec(family=random, source=f"random/{random}")
        pixels = _PIXELS[random]
    else:
        spec = spec_of(options.checkpoint, options.family, options.variant)
        if FAMILIES[spec.family].refines:
            raise ValueError("a refiner goes on from a base's latents; measure the base (parity.py has the refiner)")
        pixels = _DEMO_PIXELS if spec.source.startswith("package:demo_models/") else _PIXELS[spec.family]
    width, height = _size(options.size or str(pixels))
    return Workload(
        spec=spec,
        random_weights=random is not None,
        width=width,
        height=height,
        steps=options.steps,
        sampler=canonical(options.sampler),
        guidance_scale=options.guidance,
        device=options.device,
        dtype=options.dtype,
        cpu_threads=options.threads,
        seconds=options.seconds,
    )


def contenders_of(options: argparse.Namespace) -> list[Contender]:
    """Who takes part, in order."""
    engines: list[Contender] = [
        EngineContender(name=f"engine {changes}".strip(), settings=settings_of(changes))
        for changes in options.engine or [""]
    ]
    baselines: list[Contender] = [_baseline(name) for name in options.baselines.split(",") if name]
    modules: list[Contender] = []
    if not options.no_modules:
        modules = [
            ModuleTimes(largest=2 * max(options.concurrency) if options.guidance > 1 else max(options.concurrency))
        ]
    return modules + engines + baselines


def main(arguments: Sequence[str] | None = None, run: Run = run_in_process) -> int:
    """Run every contender, print the report; the exit status says whether all of them ran."""
    options = parse(arguments)
    try:
        workload, contenders = workload_of(options), contenders_of(options)
    except (ValueError, DarkroomError) as error:
        print(f"benchmarks.engine: {error}", file=sys.stderr)
        return 2
    report = Report(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=" ".join(["python -m benchmarks.engine", *(sys.argv[1:] if arguments is None else arguments)]),
        commit=commit(),
        machine=machine(),
        versions=versions(),
        workload=workload,
    )
    failed = False
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        embeddings = None if workload.random_weights else str(Path(folder) / "embeddings.npz")

        def measure(contender: Contender) -> ContenderReport:
            job = Job(workload=workload, contender=contender, concurrency=options.concurrency, embeddings=embeddings)
            result = run(job, math.inf, lambda _: None)
            if result.failed is not None:
                print(f"{contender.name}: {result.failed}", file=sys.stderr)
            return result

        if embeddings is not None and measure(TextEncoding(path=embeddings)).failed is not None:
            return 1
        for repeat in range(options.repeats):
            figures: tuple[Figures, ...] = ()
            for contender in contenders:
                if repeat and isinstance(contender, ModuleTimes):
                    continue
                result = measure(contender)
                failed = failed or result.failed is not None
                figures += result.figures
                done = {"figures": (*report.figures[:repeat], figures)} if figures else {}
                report = report.model_copy(update=done | ({"modules": result.modules} if result.modules else {}))
                if options.json is not None:
                    options.json.write_text(report.model_dump_json(indent=1), encoding="utf-8")
    print(render(report))
    return 1 if failed else 0


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height or width)


def _baseline(name: str) -> DiffusersContender:
    if name not in _BASELINES:
        raise ValueError(f"unknown baseline {name!r}; known: {', '.join(_BASELINES)}")
    return _BASELINES[name]


if __name__ == "__main__":
    sys.exit(main())
