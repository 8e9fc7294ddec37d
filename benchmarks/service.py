"""The service over HTTP against the classic design, in one run: throughput, latencies, goodput, overtaking.

    python -m benchmarks.service --json service.json --plot docs/service.png
    python -m benchmarks.service --quick
    python -m benchmarks.service --url http://127.0.0.1:8000

The classic server and Darkroom are measured one after the other, each alone on the machine, with the same requests at
the same moments; the bare pipeline before and after each of them, and in turns with its lone requests, because a shared
machine's speed drifts. Servers are started here and stopped again, on loopback; with --url a Darkroom that runs already
is measured (and runs beside the others, which then get less of the machine).

Every load is bounded in time and in requests; a whole run takes about a quarter of an hour on two cores, a quick one
a few minutes.
"""

import asyncio
import contextlib
import io
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count, islice
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import httpx
import numpy as np
import typer
import yaml
from PIL import Image
from rich.console import Console

from benchmarks.arrivals import poisson_arrivals
from benchmarks.bare_calls import bare_calls
from benchmarks.http_clients import ClassicClient, DarkroomClient, ImageClient, answering, http_client, until_ready
from benchmarks.load import closed_loop, in_turns, open_loop, overtake
from benchmarks.machine import commit, machine, versions
from benchmarks.servers import Alive, classic, darkroom, darkroom_config, free_port
from benchmarks.service_figures import (
    LoadFigures,
    LoneFigures,
    ServiceFigures,
    ServiceReport,
    load_figures,
    lone_figures,
    overtaking_figures,
)
from benchmarks.service_requests import ImageRequest, requests
from benchmarks.service_tables import markdown, plot, print_report
from deployments.engine.checkpoints.files import resolve_source
from deployments.engine.samplers.registry import canonical

_ROOT = Path(__file__).resolve().parent.parent
_WAIT_S = 600.0
_LONG_STEPS, _SHORT_STEPS, _LONG_JOBS = 50, 10, 4

console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured. lone: requests. rates: offered, in units of what the bare pipeline makes a second."""

    lone: int
    concurrency: tuple[int, ...]
    closed_s: float
    rates: tuple[float, ...]
    open_s: float
    repeats: int


FULL = Scale(lone=30, concurrency=(1, 8), closed_s=25.0, rates=(0.5, 0.8, 1.0, 1.5, 2.0), open_s=30.0, repeats=3)
QUICK = Scale(lone=8, concurrency=(1, 8), closed_s=8.0, rates=(0.8, 1.5), open_s=10.0, repeats=1)

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@cli.command()
def run(
    config: Annotated[Path, typer.Option(help="Darkroom's config", exists=True)] = _ROOT / "serve_config.yaml",
    model: Annotated[str | None, typer.Option(help="a model of it (its default_model)")] = None,
    url: Annotated[str | None, typer.Option(callback=answering, help="of a Darkroom that runs already")] = None,
    steps: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    size: Annotated[int, typer.Option(min=64, max=2048, help="pixels of both sides")] = 256,
    guidance: Annotated[float, typer.Option(min=1.0, max=30.0)] = 5.0,
    sampler: Annotated[str, typer.Option(help="ddim, euler or dpmpp_2m")] = "dpmpp_2m",
    seed: Annotated[int, typer.Option(help="of prompts, seeds and arrivals")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="a few minutes, for a first look")] = False,
    no_safety: Annotated[bool, typer.Option("--no-safety", help="Darkroom without its safety layers, too")] = False,
    only: Annotated[str, typer.Option(help="of bare,classic,darkroom")] = "bare,classic,darkroom",
    json_path: Annotated[Path | None, typer.Option("--json", help="write everything here")] = None,
    markdown_path: Annotated[Path | None, typer.Option("--markdown", help="write the tables here")] = None,
    plot_path: Annotated[Path | None, typer.Option("--plot", help="write the plot here (PNG)")] = None,
) -> None:
    """Measure, and print the report."""
    wanted = {name.strip() for name in only.split(",")}
    if unknown := wanted - {"bare", "classic", "darkroom"}:
        raise typer.BadParameter(f"--only: {', '.join(sorted(unknown))}: bare, classic, darkroom are what there is")
    arguments = yaml.safe_load(config.read_text(encoding="utf-8"))["applications"][0]["args"]
    model = model or arguments["default_model"]
    if model not in arguments["models"]:
        raise typer.BadParameter(f"--model: {model} is none of {', '.join(arguments['models'])}")
    like = ImageRequest(
        prompt="",
        seed=seed,
        steps=steps,
        guidance_scale=guidance,
        width=size,
        height=size,
        sampler=canonical(sampler),
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped then, too
    scale = QUICK if quick else FULL
    with tempfile.TemporaryDirectory(prefix="dkb-", dir="/tmp") as name:
        folder = Path(name)
        source = arguments["models"][model]["source"]
        checkpoint = str(resolve_source(source)) if source.startswith("package:") else source
        bench = Bench(like, scale, seed, folder, checkpoint)
        if "bare" in wanted:
            asyncio.run(bench.measure_bare())
        if "classic" in wanted:
            asyncio.run(bench.measure_classic())
        if "darkroom" in wanted:
            asyncio.run(bench.measure_darkroom(config, model, url, not no_safety))
    report = ServiceReport(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=" ".join(["python -m benchmarks.service", *sys.argv[1:]]),
        commit=commit(),
        machine=machine(),
        versions=versions(),
        request=like,
        safety=not no_safety,
        objective_s=bench.objective_s,
        bare_p50_s=bench.bare_p50_s,
        picture_difference=bench.picture_difference(),
        services=tuple(bench.services),
    )
    if json_path is not None:
        json_path.write_text(report.model_dump_json(indent=1), encoding="utf-8")
    if report.services:
        if markdown_path is not None:
            markdown_path.write_text(markdown(report), encoding="utf-8")
        if plot_path is not None:
            plot(report, plot_path)
        print_report(report, Console(width=None if sys.stdout.isatty() else 130))
    elif report.bare_p50_s is not None:
        print(f"bare pipeline call: {report.bare_p50_s:.3f} s")


class Bench:
    """One run: who was measured so far, and what goes from one to the next (rates, the objective)."""

    def __init__(self, like: ImageRequest, scale: Scale, seed: int, folder: Path, checkpoint: str) -> None:
        self._like = like
        self._scale = scale
        self._seed = seed
        self._folder = folder
        self._checkpoint = checkpoint
        self._pictures: dict[str, bytes] = {}
        self._bare: list[float] = []
        self.services: list[ServiceFigures] = []

    @property
    def bare_p50_s(self) -> float | None:
        """Of the bare calls before the first service, by which all loads are chosen; None if there were none."""
        return self._bare[0] if self._bare else None

    @property
    def objective_s(self) -> float:
        """3 x the latency of a lone request: the bare call's, or else that of the first service measured."""
        return 3 * self._lone_s(self.services[0].lone.service_s if self.services else 0.0)

    async def measure_bare(self) -> None:
        """The pipeline's calls with nothing else running."""
        console.print("bare pipeline")
        asked = requests(self._like, self._seed)
        async with bare_calls(self._checkpoint, asked) as call:
            self._bare.append(median([await call(one) for one in islice(asked, self._scale.lone)]))

    async def measure_classic(self) -> None:
        """The classic server, started and stopped."""
        port = free_port()
        with classic(self._checkpoint, self._like.sampler, self._folder, port) as alive:
            async with self._service(f"http://127.0.0.1:{port}", "/health", "classic", alive) as (http, ready_s):
                await self._measure("classic", ClassicClient(http), ready_s)
        await self._close_service()

    async def measure_darkroom(self, config: Path, model: str, url: str | None, safety: bool) -> None:
        """Darkroom, started and stopped, or where it runs already."""
        with contextlib.ExitStack() as stack:
            alive: Alive = lambda: True  # noqa: E731
            if url is None:
                port = free_port()
                content = darkroom_config(config, self._folder, port, safety)
                alive = stack.enter_context(darkroom(content, self._folder))
            where = url or f"http://127.0.0.1:{port}"
            async with self._service(where, "/ready", "darkroom", alive) as (http, ready_s):
                client = DarkroomClient(http, model, wait_s=_WAIT_S)
                await self._measure("darkroom", client, None if url else ready_s)
        await self._close_service()

    def picture_difference(self) -> float | None:
        """Mean absolute difference of the services' pictures of the same request; None with fewer than two."""
        pictures = [_pixels(data) for data in self._pictures.values()]
        if len(pictures) < 2:
            return None
        return float(np.abs(pictures[0] - pictures[1]).mean())

    @contextlib.asynccontextmanager
    async def _service(
        self, url: str, health: str, name: str, alive: Alive
    ) -> AsyncIterator[tuple[httpx.AsyncClient, float]]:
        async with http_client(url, _WAIT_S) as http:
            try:
                yield http, await until_ready(http, health, 300, alive)
            except BaseException:
                log = self._folder / f"{name}.log"
                if log.exists():
                    console.print("\n".join(log.read_text(errors="replace").splitlines()[-30:]), markup=False)
                raise

    async def _close_service(self) -> None:
        """After a service has stopped: the bare calls once more, if there were any, and both go with its figures."""
        if self._bare:
            await self.measure_bare()
            around = (self._bare[-2] + self._bare[-1]) / 2
            self.services[-1] = self.services[-1].model_copy(update={"bare_around_s": around})

    async def _lone(self, client: ImageClient, asked: Iterator[ImageRequest]) -> LoneFigures:
        """In turns with the bare pipeline, if that is measured at all."""
        if self._bare:
            async with bare_calls(self._checkpoint, asked) as call:
                return lone_figures(await in_turns(client, call, asked, self._scale.lone))
        served = await closed_loop(client, asked, 1, seconds=0, least=self._scale.lone)
        service_s = load_figures(served, float("inf")).latency_p50_s
        return LoneFigures(requests=self._scale.lone, service_s=service_s, bare_in_turns_s=None)

    def _lone_s(self, measured: float) -> float:
        return measured if self.bare_p50_s is None else self.bare_p50_s

    async def _measure(self, name: str, client: ImageClient, ready_s: float | None) -> None:
        """All loads on one service. The requests are the same for every service."""
        scale = self._scale
        loads = count(self._seed + 1)

        def fresh() -> Iterator[ImageRequest]:
            return requests(self._like, next(loads))

        console.print(f"{name}: warm-up")
        picture = await client.generate(next(fresh()))
        if picture.fate != "done":
            raise RuntimeError(f"{name} draws nothing: {picture.fate} {picture.reason}")
        self._pictures[name] = picture.image
        for concurrency in (2, *scale.concurrency):
            await closed_loop(client, fresh(), concurrency, seconds=0, least=concurrency)
        console.print(f"{name}: lone requests")
        lone = await self._lone(client, fresh())
        lone_s = self._lone_s(self.services[0].lone.service_s if self.services else lone.service_s)
        closed: dict[str, LoadFigures] = {}
        for concurrency in scale.concurrency:
            console.print(f"{name}: {concurrency} at a time")
            served = await closed_loop(client, fresh(), concurrency, seconds=scale.closed_s, least=2 * concurrency)
            closed[str(concurrency)] = load_figures(served, 3 * lone_s)
        short = self._like.model_copy(update={"steps": _SHORT_STEPS})
        alone = await closed_loop(client, requests(short, next(loads)), 1, seconds=0, least=max(3, scale.lone // 2))
        behind = []
        for number in range(scale.repeats):
            console.print(f"{name}: a short job behind long ones, {number + 1} of {scale.repeats}")
            behind.append(
                await overtake(client, fresh(), long_steps=_LONG_STEPS, short_steps=_SHORT_STEPS, long_jobs=_LONG_JOBS)
            )
        opened = []
        for share in scale.rates:
            rate = share / lone_s
            console.print(f"{name}: {rate:.2f} a second for {scale.open_s:g} s")
            arrivals = poisson_arrivals(rate, scale.open_s, self._seed) or (0.0,)
            opened.append(load_figures(await open_loop(client, fresh(), arrivals), 3 * lone_s, rate))
        self.services.append(
            ServiceFigures(
                name=name,
                ready_s=ready_s,
                lone=lone,
                closed=closed,
                opened=tuple(opened),
                overtaking=overtaking_figures(behind, [one.latency for one in alone]),
            )
        )


def _pixels(data: bytes) -> np.ndarray[Any, np.dtype[np.float64]]:
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float64)


if __name__ == "__main__":
    cli()
