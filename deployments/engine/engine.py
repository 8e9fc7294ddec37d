"""The engine's interface, for any thread or event loop: DenoiseRequests in, Events out. loop.py does the work."""

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncGenerator, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from deployments.engine.batch import BatchKey
from deployments.engine.checkpoints.loader import describe_denoiser, read_denoiser
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.compile.graph_cache import GraphCache
from deployments.engine.conditioning.registry import Conditioners, step_traces
from deployments.engine.config import NO_LORAS, ConditioningSettings, EngineSettings, LoraSettings
from deployments.engine.device import open_device
from deployments.engine.errors import UnknownCheckpoint
from deployments.engine.lanes.lane import Sink, Ticket
from deployments.engine.lanes.prepare import table_for
from deployments.engine.loop import StepLoop
from deployments.engine.mailbox import Cancel, Load, Mailbox, Retain, Stop, Submit, Traced, Withdraw
from deployments.engine.memory.budget import budget_of
from deployments.engine.memory.footprint import Describe
from deployments.engine.memory.limits import AllowedSizes, LargestSizes
from deployments.engine.memory.plan import MemoryPlan
from deployments.engine.memory.table import MemoryTable
from deployments.engine.request_files import RequestFiles
from deployments.engine.residency.host_cache import Reader
from deployments.engine.samplers.tables import SamplerTable
from deployments.engine.stats import EngineStats
from deployments.engine.types import LATENT_SCALE, Conditioning, DenoiseRequest, DenoiseResult, Event
from deployments.engine.warm_up import warm_up_lane


class Engine:
    """Denoises requests for its checkpoints in batches that change at every step."""

    def __init__(
        self,
        settings: EngineSettings,
        catalogue: Mapping[str, CheckpointSpec],
        read: Reader = read_denoiser,
        *,
        describe: Describe = describe_denoiser,
        allowed: Mapping[str, AllowedSizes] | None = None,
        loras: LoraSettings | None = None,
        conditioning: ConditioningSettings | None = None,
    ) -> None:
        """Create an engine that isn't started yet.

        Args:
            settings: of this engine.
            catalogue: checkpoints by the names that requests use.
            read: reads a checkpoint's tensors, in the engine's thread (benchmarks run weights without a file).
            describe: returns a checkpoint's layout without reading its tensors; memory is planned from it.
            allowed: the largest requests of each checkpoint that memory is planned for; None for any size.
            loras: the folder of LoRAs; None for none.
            conditioning: the folders of conditionings and VAEs; None for none.

        Raises:
            CheckpointError: a folder doesn't exist, or the one for compiled forwards isn't private.
        """
        self._settings = settings
        self._catalogue = dict(catalogue)
        self._read = read
        self._describe = describe
        self._allowed = allowed
        self._mailbox = Mailbox()
        self._opened: Future[StepLoop] = Future()
        self._arrivals = itertools.count(1)
        # a new sampler table takes 30 to 120 ms: traced here while the device thread goes on with its steps. One
        # worker, so that a table which several lanes need is traced once; its tensors are too small for more threads
        self._tracer = ThreadPoolExecutor(1, "sampler-tables", initializer=torch.set_num_threads, initargs=(1,))
        self._lora_settings, self._conditioning = loras or NO_LORAS, conditioning or ConditioningSettings()
        self._files = RequestFiles(self._lora_settings, self._conditioning)
        self._graphs = None if settings.compile is None else GraphCache(settings.compile)
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    def start(self) -> None:
        """Open the device and start the engine's thread. Raises DeviceUnavailable."""
        self._thread.start()
        self._opened.result()

    def stop(self) -> None:
        """End the thread at the next step boundary: lanes in flight fail with EngineStopped.

        Lanes with `state_every` send a last snapshot first, so that another engine may go on from there.
        """
        self._mailbox.tell(Stop())
        self._thread.join()

    def preload(self, checkpoint: str) -> "Future[None]":
        """Load a checkpoint now, evicting an idle one; the future raises CheckpointError.

        Raises:
            UnknownCheckpoint: the catalogue has no such name.
            DarkroomError: the device could not be opened, for this reason.
        """
        self._check_known(checkpoint)
        self._opened.result()  # where the device can't be opened nobody would read what was posted before
        done: Future[None] = Future()
        self._mailbox.post(Load(checkpoint, done))
        return done

    def warm_up(self, checkpoint: str, width: int, height: int) -> "Future[None]":
        """Draw an image of a size that nobody gets, so that the next one is as fast as all others.

        The future, and the call, raise what `submit` says.
        """
        self._check_known(checkpoint)
        request, conditioning = warm_up_lane(checkpoint, self._describe(self._catalogue[checkpoint]), width, height)
        done: Future[None] = Future()

        def sink(item: Event | Exception) -> None:
            if isinstance(item, Exception):
                done.set_exception(item)
            elif isinstance(item, DenoiseResult):
                done.set_result(None)

        self.submit(request, conditioning, sink)
        return done

    def submit(self, request: DenoiseRequest, conditioning: Conditioning, sink: Sink) -> None:
        """Queue a lane. Never blocks: its sampler table is traced and its files are read in other threads.

        Args:
            request: what to draw.
            conditioning: its prompts' embeddings.
            sink: gets the lane's events, then one DenoiseResult or one exception, in the engine's thread.

        Raises:
            UnknownCheckpoint: the catalogue has no such name, and the request doesn't bring it.
            DoesNotFit: the device has no memory for such a request.
            EngineStopped: no more lanes are taken.
        """
        if request.added is None:
            self._check_known(request.checkpoint)
        self._mailbox.check()
        self._loop.memory.check(request)
        key = BatchKey(
            checkpoint=request.checkpoint,
            height=request.height // LATENT_SCALE,
            width=request.width // LATENT_SCALE,
            tokens=conditioning.tokens,
            pinned=request.reproducible,
            masked=conditioning.filled_up,
            tiling=request.tiling,
        )
        table = self.table(request)
        files = self._files.of(request)
        arrival, now = next(self._arrivals), time.monotonic()
        ticket = Ticket(request, conditioning, key, arrival, now, sink, table, files)
        self._mailbox.post(Submit(ticket))
        for needed in ticket.needed:
            needed.add_done_callback(lambda _: self._mailbox.tell(Traced()))

    def table(self, request: DenoiseRequest) -> "Future[SamplerTable] | None":
        """The request's sampler table; None while the checkpoint's schedule isn't known, before its first loading.

        The future raises InvalidRequest if the table has no step.
        """
        schedule = self._loop.schedules.get(request.checkpoint)
        return None if schedule is None else self._tracer.submit(table_for, request, schedule)

    def cancel(self, lane_id: str) -> None:
        """Let a lane leave at the next step boundary (it fails with Cancelled); unknown and ended ones are ignored."""
        self._mailbox.tell(Cancel(lane_id))

    def withdraw(self, lane_id: str) -> None:
        """Let a lane leave that hasn't taken a step (it fails with Withdrawn); all others are left as they are."""
        self._mailbox.tell(Withdraw(lane_id))

    def retain(self, added: Collection[str]) -> None:
        """Forget the checkpoints that came with requests and aren't among these, each when no lane uses it."""
        self._mailbox.tell(Retain(frozenset(added)))

    def rows(self, request: DenoiseRequest) -> int:
        """Most UNet rows of a step that lanes like this one share, as far as the settings and the memory tell."""
        settings = self._settings
        ceiling = settings.reproducible_rows if request.reproducible else settings.max_rows
        cells = (request.height // LATENT_SCALE) * (request.width // LATENT_SCALE)
        return max(1, min(ceiling, self._loop.memory.rows(request.checkpoint, cells)))

    def row_seconds(self, request: DenoiseRequest) -> float:
        """Seconds that a UNet row of steps like the request's takes at best; 0 while nobody knows."""
        height, width = request.height // LATENT_SCALE, request.width // LATENT_SCALE
        known = dict(self._loop.row_seconds)  # the engine's thread goes on writing
        alike = [
            seconds
            for key, seconds in known.items()
            if (key.checkpoint, key.height, key.width) == (request.checkpoint, height, width)
        ]
        return min(alike, default=0.0)

    @property
    def resident(self) -> tuple[str, ...]:
        """Checkpoints on the device, least recently used first."""
        return self._loop.residency.names

    async def stream(self, request: DenoiseRequest, conditioning: Conditioning) -> AsyncGenerator[Event, None]:
        """Queue a lane as `submit` does, and yield its progress, then the DenoiseResult.

        Closing the iterator, or cancelling the task that reads it, cancels the lane.

        Raises:
            DarkroomError: what `submit` raises, or what the lane failed with.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self.submit(request, conditioning, lambda item: loop.call_soon_threadsafe(events.put_nowait, item))
        ended = False
        try:
            while not ended:
                item = await events.get()
                ended = isinstance(item, DenoiseResult | Exception)
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            if not ended:
                self.cancel(request.lane_id)

    def check(self) -> None:
        """Raise EngineStopped if the thread has ended or the device was lost."""
        self._mailbox.check()

    def largest_sizes(self) -> Mapping[str, LargestSizes]:
        """The largest requests that fit the memory, by checkpoint, as far as its configuration could be read."""
        return self._loop.memory.largest_sizes

    def memory(self) -> MemoryTable:
        """The memory plan: what it holds, and where weights are."""
        return self._loop.memory.table

    def stats(self) -> EngineStats:
        """What the engine has done so far."""
        loop = self._loop
        return EngineStats(
            **loop.counters.totals,
            lanes_active=len(loop.queue.lanes),
            lanes_waiting=len(loop.queue.waiting),
            resident=loop.residency.names,
            compiled=() if self._graphs is None else self._graphs.compiled,
            compiling=0 if self._graphs is None else self._graphs.compiling,
            compile_failures=0 if self._graphs is None else self._graphs.failures,
            compiled_steps_total=0 if loop.compiled is None else loop.compiled.steps,
            device=str(loop.device.torch_device),
            dtype=str(loop.device.dtype).removeprefix("torch."),
        )

    @property
    def _loop(self) -> StepLoop:
        """Raises what opening the device raised."""
        return self._opened.result()

    def _main(self) -> None:
        try:
            loop = self._open()
        except Exception as error:
            self._mailbox.close(f"the device could not be opened: {error}")
            self._opened.set_exception(error)
            return
        self._opened.set_result(loop)
        loop.run()
        if self._graphs is not None:
            self._graphs.close()

    def _open(self) -> StepLoop:
        """Open the device, in the engine's thread, which alone may use it."""
        settings = self._settings
        device = open_device(settings)
        memory = MemoryPlan(
            settings,
            device.dtype,
            budget_of(settings, device.torch_device),
            self._catalogue,
            self._describe,
            allowed=self._allowed,
            reserved=self._lora_settings.device_bytes + self._conditioning.device_bytes,
            traces=step_traces(self._conditioning),
            other_vaes=self._conditioning.vaes.folder is not None,
        )
        return StepLoop(
            settings,
            self._catalogue,
            self._read,
            self._mailbox,
            device,
            memory,
            Conditioners(self._conditioning, device, settings),
            self._graphs,
            self._conditioning.vaes.device_bytes,
        )

    def _check_known(self, checkpoint: str) -> None:
        if checkpoint not in self._catalogue:
            raise UnknownCheckpoint(f"this stage has no checkpoint {checkpoint!r}", "model")
