"""The loop: schedule -> run -> settle, in one thread that owns the device.

Lanes join and leave at any step. Knows nothing of Ray, HTTP, jobs or how a generation is composed of stages; callers
hand it DenoiseRequests and get Events back, from any thread or event loop.
"""

import asyncio
import functools
import itertools
import logging
import threading
import time
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from deployments.engine.adapter_files import AdapterFiles
from deployments.engine.admission import Admission
from deployments.engine.batcher import Batch, Batcher, BatchKey
from deployments.engine.checkpoint_spec import CheckpointSpec
from deployments.engine.checkpoints import describe_denoiser, read_denoiser
from deployments.engine.compiled_forwards import CompiledForwards
from deployments.engine.controlnets import Controlnets
from deployments.engine.denoiser import Denoiser
from deployments.engine.denoiser_weights import DenoiserTensors, DenoiserWeights
from deployments.engine.device import Device, open_device
from deployments.engine.errors import (
    Cancelled,
    DarkroomError,
    DeadlineExceeded,
    EngineStopped,
    NumericalFailure,
    UnknownCheckpoint,
)
from deployments.engine.failures import as_darkroom_error
from deployments.engine.footprints import Describe
from deployments.engine.graphs import Graphs
from deployments.engine.host_copies import Reader
from deployments.engine.lane import Lane, Sink, Ticket
from deployments.engine.loading import Loading
from deployments.engine.mailbox import Cancel, Load, Mailbox, Stop, Submit, Traced
from deployments.engine.memory import MemoryPlan
from deployments.engine.memory_budget import budget_of
from deployments.engine.memory_limits import AllowedSizes, LargestSizes
from deployments.engine.memory_table import MemoryTable
from deployments.engine.preparation import prepare_lane, table_for
from deployments.engine.quantization import check_quantization
from deployments.engine.request import LATENT_SCALE, Conditioning, DenoiseRequest, DenoiseResult, Event, Pixels
from deployments.engine.residency import Residency
from deployments.engine.roster import Roster
from deployments.engine.samplers import SamplerTable
from deployments.engine.settings import (
    NO_CONTROLNETS,
    NO_LORAS,
    ControlnetSettings,
    EngineSettings,
    LoraSettings,
)
from deployments.engine.settlement import finish_lanes
from deployments.engine.stats import EngineCounters, EngineStats

logger = logging.getLogger(__name__)

_IDLE_PROBE_S = 5.0  # how often an idle engine touches its device, to notice that it was lost


class Engine:
    """A step-batching denoiser for the checkpoints of `catalogue`."""

    def __init__(
        self,
        settings: EngineSettings,
        catalogue: Mapping[str, CheckpointSpec],
        read: Reader = read_denoiser,
        *,
        describe: Describe = describe_denoiser,
        allowed: Mapping[str, AllowedSizes] | None = None,
        loras: LoraSettings | None = None,
        controlnets: ControlnetSettings | None = None,
    ) -> None:
        """read: a checkpoint's tensors, in the engine's thread (benchmarks run weights without a file).

        describe: says what they will be, before. allowed: what may be asked of a checkpoint: memory is planned for it.
        loras, controlnets: None for none. Raises CheckpointError if their folders aren't there, or the one for
        compiled forwards isn't private.
        """
        self._settings = settings
        self._catalogue = dict(catalogue)
        self._read = read
        self._describe = describe
        self._allowed = allowed
        self._mailbox = Mailbox()
        self._opened: Future[Device] = Future()
        self._memory: MemoryPlan  # these three are there once the device is open
        self._loading: Loading
        self._controlnets: Controlnets
        self._arrivals = itertools.count(1)
        self._schedules: dict[str, Mapping[str, Any]] = {}  # scheduler configs of the checkpoints loaded so far
        # a new sampler table takes 30 to 120 ms: traced here while the device thread goes on with its steps. One
        # worker, so that a table which several lanes need is traced once; its tensors are too small for more threads
        self._tracer = ThreadPoolExecutor(1, "sampler-tables", initializer=torch.set_num_threads, initargs=(1,))
        self._lora_settings, self._controlnet_settings = loras or NO_LORAS, controlnets or NO_CONTROLNETS
        self._adapters = AdapterFiles(self._lora_settings, self._controlnet_settings)
        self._graphs = None if settings.compile is None else Graphs(settings.compile)
        self._compiled: CompiledForwards | None = None
        self._counters = EngineCounters()
        self._roster = Roster(self._counters, settings.progress_interval_s)
        self._batcher: Batcher[Lane] = Batcher(settings.max_rows, settings.reproducible_rows, self._fitting_rows)
        self._residency = Residency(settings.resident_checkpoints, self._read_checkpoint, self._place_checkpoint)
        self._admission = Admission(settings.max_lanes, settings.cached_lanes, settings.swap_patience_s)
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    def start(self) -> None:
        """Open the device. Raises DeviceUnavailable."""
        self._thread.start()
        self._opened.result()

    def stop(self) -> None:
        """End the thread at the next step boundary: lanes in flight fail with EngineStopped.

        Those that were asked for states tell where they are before, so that another engine may go on from there.
        """
        self._mailbox.tell(Stop())
        self._thread.join()

    def preload(self, checkpoint: str) -> "Future[None]":
        """Load a checkpoint now (evicting an idle one); the future raises CheckpointError."""
        self._check_known(checkpoint)
        done: Future[None] = Future()
        self._mailbox.post(Load(checkpoint, done))
        return done

    def submit(self, request: DenoiseRequest, conditioning: Conditioning, sink: Sink) -> None:
        """Queue a lane. `sink` gets its events, then one DenoiseResult or one exception, in the engine's thread.

        Never blocks: a sampler table that isn't known yet is traced in another thread, LoRAs are read in one, and the
        lane starts when they are there. Raises UnknownCheckpoint, CheckpointError (quarantined), DoesNotFit or
        EngineStopped at once.
        """
        self._check_known(request.checkpoint)
        self._mailbox.check()
        self._loading.check(request.checkpoint)
        self._memory.check(request)
        key = BatchKey(
            checkpoint=request.checkpoint,
            height=request.height // LATENT_SCALE,
            width=request.width // LATENT_SCALE,
            tokens=conditioning.tokens,
            pinned=request.reproducible,
            masked=conditioning.filled_up,
            cached=self._graphs is not None and request.step_cache is not None,
        )
        table = self.table(request)
        loras, controlnets = self._adapters.loras(request), self._adapters.controlnets(request)
        arrival, now = next(self._arrivals), time.monotonic()
        ticket = Ticket(request, conditioning, key, arrival, now, sink, table, loras, controlnets)
        self._mailbox.post(Submit(ticket))
        for needed in ticket.needed:
            needed.add_done_callback(lambda _: self._mailbox.tell(Traced()))

    def table(self, request: DenoiseRequest) -> "Future[SamplerTable] | None":
        """What the request runs of its checkpoint's schedule; None while that isn't known, before the first loading.

        The future raises InvalidRequest where that is nothing.
        """
        schedule = self._schedules.get(request.checkpoint)
        return None if schedule is None else self._tracer.submit(table_for, request, schedule)

    def cancel(self, lane_id: str) -> None:
        """Let a lane leave at the next step boundary (it fails with Cancelled); unknown and ended ones are ignored."""
        self._mailbox.tell(Cancel(lane_id))

    async def stream(self, request: DenoiseRequest, conditioning: Conditioning) -> AsyncGenerator[Event, None]:
        """Progress events, then the DenoiseResult; never blocks the event loop.

        Closing the iterator, or cancelling the task that reads it, cancels the lane. Raises DarkroomError's branches.
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
        """What the memory has room for, by checkpoint; without those whose configuration couldn't be read."""
        return self._memory.largest_sizes

    def memory(self) -> MemoryTable:
        """What the memory is planned to hold, and where weights are."""
        return self._memory.table

    def stats(self) -> EngineStats:
        """What the engine has done so far."""
        device = self._opened.result()
        return self._counters.snapshot(
            lanes_active=len(self._roster.active),
            lanes_waiting=len(self._roster.waiting),
            resident=self._residency.names,
            quarantined=self._loading.quarantined,
            compiled=() if self._graphs is None else self._graphs.compiled,
            compiling=0 if self._graphs is None else self._graphs.compiling,
            compile_failures=0 if self._graphs is None else self._graphs.failures,
            compiled_steps=0 if self._compiled is None else self._compiled.steps,
            device=str(device.torch_device),
            dtype=str(device.dtype).removeprefix("torch."),
        )

    # -- everything below runs in the engine's thread ----------------------------------------------------------

    def _main(self) -> None:
        try:
            device = open_device(self._settings)
            check_quantization(self._settings.quantize, device.torch_device, device.dtype)
            self._memory = MemoryPlan(
                self._settings,
                device.dtype,
                budget_of(self._settings, device.torch_device),
                self._catalogue,
                self._describe,
                allowed=self._allowed,
                loras=self._lora_settings,
                controlnets=self._controlnet_settings,
            )
            self._controlnets = Controlnets(self._controlnet_settings.device_bytes, device, self._settings)
            self._loading = Loading(self._settings, self._catalogue, self._read, device, self._memory.policy)
            if self._graphs is not None:
                on_cuda = device.torch_device.type == "cuda"
                self._compiled = CompiledForwards(
                    self._graphs,
                    channels_last=self._settings.channels_last,
                    whole_steps=self._graphs.settings.whole_steps(on_cuda=on_cuda),
                    decodes=self._graphs.settings.decodes(on_cuda=on_cuda),
                    threads=device.row_threads.number,
                )
        except Exception as error:
            self._end(f"the device could not be opened: {error}")
            self._opened.set_exception(error)
            return
        self._opened.set_result(device)
        reason = "the engine was stopped"
        try:
            while self._read_mailbox():
                for batch in self._schedule():
                    self._run_and_settle(batch)
            self._roster.leave_states()
        except Exception as error:  # the last line of defence: the thread is over, and everybody is told why
            logger.exception("the engine's thread ended")
            reason = f"the engine's thread ended: {type(error).__name__}: {error}"
        self._end(reason)
        device.row_threads.close()
        if self._graphs is not None:
            self._graphs.close()

    def _read_mailbox(self) -> bool:
        """Take what has come; wait only while there is nothing to do. False ends the loop."""
        while True:
            idle = not self._roster.active and not self._startable()
            match self._mailbox.take(timeout_s=_IDLE_PROBE_S if idle else 0.0):
                case None if idle:
                    self._opened.result().probe()
                case None:
                    return True
                case Submit(ticket):
                    self._roster.waiting.append(ticket)
                case Cancel(lane_id):
                    for ticket in self._roster.tickets:
                        if ticket.request.lane_id == lane_id:
                            self._roster.fail(ticket, Cancelled("cancelled"))
                case Load(checkpoint, done):
                    self._preload(checkpoint, done)
                case Traced():
                    pass  # it has woken this thread
                case Stop():
                    return False

    def _schedule(self) -> list[Batch[Lane]]:
        """Expire, admit, pick."""
        now = time.monotonic()
        for ticket in self._roster.tickets:
            if now > ticket.deadline:
                self._roster.fail(ticket, DeadlineExceeded(f"not finished within {ticket.request.timeout_s:g} s"))
        loads = self._counters.loads
        while loads == self._counters.loads:  # after a load, those that are loaded already take a step first
            admitted = self._next_ticket(now)
            if admitted is None:
                break
            self._admit(admitted)
        return self._batcher.pick(self._roster.active)

    def _startable(self) -> list[Ticket]:
        """Those waiting whose sampler table and LoRAs are there; a table can't be before its checkpoint is loaded.

        One whose ControlNets have no room holds up those behind it that need some, too, so that its turn comes.
        """
        startable, held_up = [], False
        in_use = self._roster.controlnets
        for ticket in self._roster.waiting:
            if not all(needed.done() for needed in ticket.needed):
                continue
            files = ticket.controlnet_files_found
            held_up = held_up or not self._controlnets.has_room(files, in_use)
            if not (held_up and files):
                startable.append(ticket)
        return startable

    def _next_ticket(self, now: float) -> Ticket | None:
        return self._admission.next_ticket(
            self._startable(),
            self._roster.active,
            loaded=self._residency.__contains__,
            can_load=self._residency.can_load(self._roster.checkpoints),
            now=now,
        )

    def _admit(self, ticket: Ticket) -> None:
        """Load what the ticket needs, and make it a lane."""
        checkpoint = ticket.request.checkpoint
        try:
            if checkpoint not in self._residency:
                self._residency.load(checkpoint, self._roster.checkpoints)
            self._memory.check(ticket.request)  # what it needs may be known only now
            denoiser = self._residency[checkpoint]
            controlnets = self._controlnets.get(
                ticket.controlnet_files, denoiser.weights.unet.config, denoiser.channels, self._roster.controlnets
            )
            lane = prepare_lane(ticket, denoiser, self._settings, controlnets)
        except torch.AcceleratorError:
            raise
        except Exception as error:  # one request's trouble is not to end the engine for everybody
            self._roster.fail(ticket, as_darkroom_error(error, "the image could not be started"))
        else:
            self._roster.admit(lane)

    def _run_and_settle(self, batch: Batch[Lane]) -> None:
        """One step for a batch; on failure the same step again in halves, so that only a culprit fails."""
        started = time.perf_counter()
        denoiser = self._residency[batch.lanes[0].request.checkpoint]
        failure: Exception | None = None
        try:
            outputs, returned = denoiser.step(batch)
            latents = denoiser.put_back(batch, returned)
            finite = torch.isfinite(latents).flatten(1).all(1).tolist()  # the step's one synchronisation
        except torch.AcceleratorError:
            raise
        except Exception as error:
            failure = error
        if failure is not None:
            self._retry_in_halves(batch, failure)
            return
        seconds = time.perf_counter() - started
        self._batcher.charge(batch, seconds)
        for lane in batch.lanes:
            lane.charge(seconds, batch.rows)
        self._counters.step(
            lanes=len(batch.lanes), rows=batch.rows, bucket=batch.bucket, seconds=seconds, shallow=batch.shallow
        )
        self._settle(batch, denoiser, outputs, returned, latents, finite)

    def _retry_in_halves(self, batch: Batch[Lane], error: Exception) -> None:
        out_of_memory = isinstance(error, torch.OutOfMemoryError)
        error = error.with_traceback(None) if out_of_memory else error  # its frames hold the failed step's memory
        key = batch.lanes[0].key
        if out_of_memory:
            torch.cuda.empty_cache()
            if not key.pinned:
                self._batcher.shrink(key, batch.bucket)
        if len(batch.lanes) == 1:
            (lane,) = batch.lanes
            self._roster.fail(lane.ticket, as_darkroom_error(error, "a step failed with this image alone in the batch"))
            return
        logger.warning("a step of %d lanes failed (%s), trying it in halves", len(batch.lanes), error)
        middle = len(batch.lanes) // 2
        for lanes in (batch.lanes[:middle], batch.lanes[middle:]):
            self._run_and_settle(self._batcher.batch_of(lanes))

    def _settle(
        self,
        batch: Batch[Lane],
        denoiser: Denoiser,
        outputs: torch.Tensor,
        returned: torch.Tensor,
        latents: torch.Tensor,
        finite: list[bool],
    ) -> None:
        """Advance, report, finish or fail each lane."""
        done: list[Lane] = []
        for index, lane in enumerate(batch.lanes):
            if not finite[index]:
                self._roster.fail(
                    lane.ticket, NumericalFailure(f"the latents are not finite after step {lane.step + 1}")
                )
                continue
            preview = self._preview(lane, denoiser, outputs[index])
            lane.advance(latents[index], outputs[index], returned[index])
            if lane.finished:
                done.append(lane)
            self._roster.report(lane, preview)
        if done:
            self._finish(done, denoiser)

    def _preview(self, lane: Lane, denoiser: Denoiser, output: torch.Tensor) -> Pixels | None:
        """The preview that the step about to be taken owes, if it owes one."""
        step, every = lane.step + 1, lane.request.preview_every
        if not every or step % every or step == lane.evaluations:
            return None
        try:
            return denoiser.preview(lane.current.timestep, denoiser.model_inputs([lane])[0], output)
        except torch.OutOfMemoryError:
            logger.warning("lane %s: no device memory for a preview, it goes on without", lane.request.lane_id)
            return None

    def _finish(self, lanes: list[Lane], denoiser: Denoiser) -> None:
        """Decode or hand over; a lane that can't be decoded fails alone."""
        started = time.perf_counter()
        for lane, outcome in finish_lanes(lanes, denoiser, self._fitting_images(lanes[0].key)):
            if isinstance(outcome, DarkroomError):
                self._roster.fail(lane.ticket, outcome)
            else:
                self._roster.finish(lane.ticket, outcome)
        self._counters.decode_seconds += time.perf_counter() - started
        if lanes[0].request.checkpoint not in self._roster.checkpoints:
            denoiser.forget_batch()

    def _preload(self, checkpoint: str, done: "Future[None]") -> None:
        if not done.set_running_or_notify_cancel():
            return
        try:
            if checkpoint not in self._residency:
                self._residency.load(checkpoint, self._roster.checkpoints)
        except Exception as error:  # a checkpoint that can't be loaded is not to end the engine for the others
            done.set_exception(as_darkroom_error(error, f"checkpoint {checkpoint!r} could not be loaded"))
            if isinstance(error, torch.AcceleratorError):
                raise
        else:
            done.set_result(None)

    def _fitting_rows(self, key: BatchKey) -> int:
        return self._memory.rows(key.checkpoint, key.height * key.width)

    def _fitting_images(self, key: BatchKey) -> int:
        return self._memory.images(key.checkpoint, key.height * key.width)

    def _read_checkpoint(self, name: str) -> DenoiserTensors:
        self._memory.check_loading(name)
        return self._loading.read(name)

    def _place_checkpoint(self, name: str, read: DenoiserTensors, models: DenoiserWeights | None) -> Denoiser:
        started = time.perf_counter()
        weights, previews = self._loading.place(name, read, models)
        row_threads = self._opened.result().row_threads
        tiled = functools.partial(self._memory.tiled, name)
        denoiser = Denoiser(weights, previews, self._settings, row_threads, self._compiled, tiled)
        self._schedules[name] = weights.scheduler_config
        self._counters.load(time.perf_counter() - started, in_place=models is not None)
        return denoiser

    def _end(self, reason: str) -> None:
        """Tell everybody, those in the mailbox included, that there will be no more steps."""
        unread = self._mailbox.close(reason)
        for ticket in self._roster.tickets:
            self._roster.fail(ticket, EngineStopped(reason))
        for message in unread:
            if isinstance(message, Submit):
                self._roster.fail(message.ticket, EngineStopped(reason))
            elif isinstance(message, Load) and message.done.set_running_or_notify_cancel():
                message.done.set_exception(EngineStopped(reason))

    # -- called from any thread --------------------------------------------------------------------------------

    def _check_known(self, checkpoint: str) -> None:
        if checkpoint not in self._catalogue:
            raise UnknownCheckpoint(f"this stage has no checkpoint {checkpoint!r}", "model")
