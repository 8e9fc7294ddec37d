"""Starts a contender, measures its parts one by one, keeps each result as soon as it is there."""

import asyncio
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import psutil
from rich.console import Console

from benchmarks.http_clients import ImageClient, http_client, until_ready
from benchmarks.load import closed_loop, timed
from benchmarks.machine import commit
from benchmarks.peers.contender import ROOT, Checkpoint, Contender
from benchmarks.peers.darkroom import EAGER_DARKROOM
from benchmarks.peers.environments import scripts_of
from benchmarks.peers.parts import PARTS, Running, Scale, lone_s
from benchmarks.peers.registry import BARE
from benchmarks.peers.requests import DEMO, MIXED_SIZES, alike
from benchmarks.peers.results import (
    Compiled,
    ContenderResults,
    Figures,
    PartName,
    PartResult,
    Reference,
    Start,
    Throughput,
    read_reference,
    read_results,
    write_model,
)
from benchmarks.servers import Server
from deployments.engine.checkpoints.files import resolve_source

_READY_S, _ANSWER_S, _PART_S = 300.0, 600.0, 900.0
_COMPILER = "deployments.engine.compile.compiler"
_LOOK_S = 2.0
_LANES = (1, 2, 4, 8)  # at once: a forward of each number of rows

console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class _Started:
    """A contender that can draw. connect: a client of its own. ready_s: since its command."""

    server: Server | None
    connect: Callable[[], AbstractAsyncContextManager[ImageClient]]
    ready_s: float


class _Record:
    """A contender's results, written with each part."""

    def __init__(self, out: Path, name: str) -> None:
        self._out = out
        self.results = read_results(out, name)
        self.bare_s: float | None = None

    def keep(self, part: PartName, figures: Figures | None, failed: str | None = None) -> None:
        """Keep a part's figures, or why there are none."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        result = PartResult(started=now, commit=commit(), bare_s=self.bare_s, figures=figures, failed=failed)
        self.results = self.results.model_copy(update={"parts": {**self.results.parts, part: result}})
        write_model(self._out, self.results.name, self.results)

    @contextmanager
    def attempt(self, part: PartName) -> Iterator[None]:
        """An error in the block is the part's result, unless there are figures by then."""
        before = self.results
        console.print(f"{before.name}: {part}", highlight=False)
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            if self.results is before:
                self.keep(part, None, f"{type(error).__name__}: {error}"[:300])


class Session:
    """One run of the benchmark."""

    def __init__(self, scale: Scale, seed: int, out: Path, cache: Path) -> None:
        """Measure nothing yet.

        Args:
            scale: how much is measured.
            seed: of prompts and arrivals.
            out: folder of the results.
            cache: folder of environments and weights.
        """
        self._scale = scale
        self._seed = seed
        self._out = out
        self._cache = cache

    async def measure(self, contender: Contender, parts: Sequence[PartName]) -> None:
        """Measure the parts. One that fails says so in the results, and the others go on."""
        record = _Record(self._out, contender.name)
        if "compile" in parts:
            with record.attempt("compile"):
                record.keep("compile", await self._compile())
        if not (rest := [part for part in parts if part != "compile"]):
            return
        with record.attempt(rest[0]):
            record.bare_s = await self._bare_s(contender)
            async with self._started(contender) as started, started.connect() as client:
                start = await self._first_pictures(contender, client, started.ready_s)
                if "start" in rest:
                    record.keep("start", start)
                for part in [part for part in PARTS if part in rest]:
                    with record.attempt(part):
                        async with asyncio.timeout(_PART_S):
                            running = self._running(contender, started, client, record.results, start.later_s)
                            record.keep(part, await PARTS[part](running))

    async def _first_pictures(self, contender: Contender, client: ImageClient, ready_s: float) -> Start:
        """The first and some later ones; then as many at once as will be, for who batches has not batched yet."""
        first_s = await timed(client, next(alike(contender.like, self._seed)))
        real = contender.checkpoint == "real"
        later_s = await lone_s(client, contender.like, self._seed + 1, 1 if real else self._scale.repeats)
        for clients in () if real else self._scale.concurrency:
            await closed_loop(client, alike(contender.like, self._seed + 2), clients, seconds=0.0, least=clients)
        return Start(ready_s=ready_s, first_s=first_s, later_s=later_s)

    async def _bare_s(self, contender: Contender) -> float | None:
        """What the machine is worth: the bare pipeline's call. None where that isn't the contender's work."""
        if contender.checkpoint != "demo":
            return None
        async with self._started(BARE["demo"]) as started, started.connect() as client:
            await timed(client, next(alike(DEMO, self._seed)))
            bare_s = await lone_s(client, DEMO, self._seed + 1, self._scale.repeats)
        if read_reference(self._out) is None:
            write_model(self._out, "reference", Reference(bare_s=bare_s))
        return bare_s

    async def _compile(self) -> Compiled:
        """Have the forwards of all parts compiled, each shape by being drawn, as in a service that runs for long.

        What is compiled already costs nothing.
        """
        began = time.monotonic()
        async with self._started(EAGER_DARKROOM) as started, started.connect() as client:
            for (width, height), lanes in product(sorted(set(MIXED_SIZES)), _LANES):
                requests = alike(DEMO, self._seed, width=width, height=height)
                await closed_loop(client, requests, lanes, seconds=0.0, least=2 * lanes)
                quiet = 0
                while quiet < 2:  # between two forwards there is a moment without a compiler
                    await asyncio.sleep(_LOOK_S)
                    quiet = 0 if _compiles(started.server) else quiet + 1
        return Compiled(seconds=time.monotonic() - began)

    @asynccontextmanager
    async def _started(self, contender: Contender) -> AsyncIterator[_Started]:
        scripts = scripts_of(contender, self._cache)
        checkpoint = self._checkpoint(contender.checkpoint)
        logs = self._out / "logs"
        logs.mkdir(exist_ok=True)
        log = logs / f"{contender.name}.log"
        # a short path, for Ray's sockets; Ray may still write while it is removed
        with (
            tempfile.TemporaryDirectory(prefix="peers-", dir="/tmp", ignore_cleanup_errors=True) as name,
            contender.started(scripts, checkpoint, Path(name), log) as (server, url),
        ):

            @asynccontextmanager
            async def connect() -> AsyncIterator[ImageClient]:
                async with http_client(url, _ANSWER_S) as http:
                    yield contender.client(http)

            try:
                async with http_client(url, _ANSWER_S) as http:
                    ready_s = await until_ready(http, contender.health, _READY_S, _alive(server))
            except (TimeoutError, RuntimeError):
                console.print(*log.read_text(errors="replace").splitlines()[-30:], sep="\n", markup=False)
                raise
            yield _Started(server, connect, ready_s)

    def _checkpoint(self, checkpoint: Checkpoint) -> Path:
        if checkpoint == "demo":
            return resolve_source("package:demo_models/demo-sd15")
        if checkpoint == "own":
            return Path()
        folder = self._cache / "sd15-random"
        if not folder.is_dir():  # in a process of its own: what measures stays small
            subprocess.run([sys.executable, "-m", "benchmarks.real_checkpoints", str(folder)], check=True, cwd=ROOT)
        return folder

    def _running(
        self, contender: Contender, started: _Started, client: ImageClient, results: ContenderResults, own_s: float
    ) -> Running:
        throughput, reference = results.figures(Throughput), read_reference(self._out)
        real = contender.checkpoint == "real"
        return Running(
            name=contender.name,
            connect=started.connect,
            client=client,
            server=started.server,
            like=contender.like,
            concurrency=self._scale.real_concurrency if real else self._scale.concurrency,
            closed_s=0.0 if real else self._scale.closed_s,
            reference_s=reference.bare_s if reference and contender.checkpoint == "demo" else own_s,
            scale=self._scale,
            folder=self._out,
            seed=self._seed,
            most_per_s=max(load.images_per_s for load in throughput.closed.values()) if throughput else None,
        )


def _alive(server: Server | None) -> Callable[[], bool]:
    return (lambda: True) if server is None else server.alive


def _compiles(server: Server | None) -> bool:
    for process in server.family() if server else ():
        try:
            if _COMPILER in process.cmdline():
                return True
        except psutil.NoSuchProcess:
            continue
    return False
