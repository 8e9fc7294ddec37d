"""The loop: schedule -> run -> settle, in one thread that owns the device.

Lanes join and leave at any step. Knows nothing of Ray, HTTP, jobs or how a generation is composed of stages; callers
hand it DenoiseRequests and get Events back, from any thread or event loop.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from deployments.engine.admission import Admission
from deployments.engine.batcher import Batch, Batcher, BatchKey
from deployments.engine.checkpoint_spec import CheckpointSpec
from deployments.engine.checkpoints import DenoiserWeights, load_denoiser
from deployments.engine.denoiser import LATENT_SCALE, Denoiser
from deployments.engine.device import Device, open_device
from deployments.engine.errors import (
    Cancelled,
    DarkroomError,
    DeadlineExceeded,
    DoesNotFit,
    EngineStopped,
    NumericalFailure,
    OutOfDeviceMemory,
    UnknownCheckpoint,
)
from deployments.engine.lane import Lane, Sink, Ticket
from deployments.engine.preparation import prepare_lane
from deployments.engine.request import Conditioning, DenoiseRequest, DenoiseResult, Event, Progress
from deployments.engine.residency import Residency
from deployments.engine.settings import EngineSettings
from deployments.engine.settlement import finish_lanes
from deployments.engine.stats import EngineCounters, EngineStats

logger = logging.getLogger(__name__)

Loader = Callable[[CheckpointSpec, torch.device, torch.dtype], DenoiserWeights]

_IDLE_PROBE_S = 5.0  # how often an idle engine touches its device, to notice that it was lost


@dataclass(frozen=True, slots=True)
class _Submit:
    ticket: Ticket


@dataclass(frozen=True, slots=True)
class _Cancel:
    lane_id: str


@dataclass(frozen=True, slots=True)
class _Load:
    checkpoint: str
    done: "Future[None]"


class _Stop:
    pass


class Engine:
    """A step-batching denoiser for the checkpoints of `catalogue`."""

    def __init__(
        self, settings: EngineSettings, catalogue: Mapping[str, CheckpointSpec], load: Loader = load_denoiser
    ) -> None:
        """load: brings a checkpoint to the device, in the engine's thread (benchmarks run weights without a file)."""
        self._settings = settings
        self._catalogue = dict(catalogue)
        self._load = load
        self._mailbox: queue.SimpleQueue[_Submit | _Cancel | _Load | _Stop] = queue.SimpleQueue()
        self._opened: Future[Device] = Future()
        self._arrivals = 0
        self._lock = threading.Lock()  # guards _arrivals and _ended: submission may come from any thread
        self._ended: str | None = None
        self._waiting: list[Ticket] = []
        self._active: list[Lane] = []
        self._counters = EngineCounters()
        self._batcher: Batcher[Lane] = Batcher(settings.max_rows, settings.reproducible_rows)
        self._residency = Residency(settings.resident_checkpoints, self._load_checkpoint)
        self._admission = Admission(settings.max_lanes, settings.swap_patience_s)
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    def start(self) -> None:
        """Open the device. Raises DeviceUnavailable."""
        self._thread.start()
        self._opened.result()

    def stop(self) -> None:
        """End the thread at the next step boundary; lanes in flight fail with EngineStopped."""
        self._mailbox.put(_Stop())
        self._thread.join()

    def preload(self, checkpoint: str) -> "Future[None]":
        """Load a checkpoint now (evicting an idle one); the future raises CheckpointError."""
        done: Future[None] = Future()
        self._spec(checkpoint)
        self._post(_Load(checkpoint, done))
        return done

    def submit(self, request: DenoiseRequest, conditioning: Conditioning, sink: Sink) -> None:
        """Queue a lane. `sink` gets its events, then one DenoiseResult or one exception, in the engine's thread.

        Raises UnknownCheckpoint or EngineStopped at once.
        """
        self._spec(request.checkpoint)
        key = BatchKey(
            checkpoint=request.checkpoint,
            height=request.height // LATENT_SCALE,
            width=request.width // LATENT_SCALE,
            tokens=conditioning.positive.hidden_states.shape[0],
            pinned=request.reproducible,
        )
        with self._lock:
            self._arrivals += 1
            arrival = self._arrivals
        self._post(_Submit(Ticket(request, conditioning, key, arrival, time.monotonic(), sink)))

    def cancel(self, lane_id: str) -> None:
        """Let a lane leave at the next step boundary (it fails with Cancelled); unknown and ended ones are ignored."""
        if self._ended is None:
            self._mailbox.put(_Cancel(lane_id))

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
        if self._ended is not None:
            raise EngineStopped(self._ended)

    def stats(self) -> EngineStats:
        """What the engine has done so far."""
        counters = self._counters
        device = self._opened.result()
        return EngineStats(
            lanes_active=len(self._active),
            lanes_waiting=len(self._waiting),
            steps_total=counters.steps,
            lane_steps_total=counters.lane_steps,
            rows_total=counters.rows,
            padded_rows_total=counters.padded_rows,
            step_seconds_total=counters.step_seconds,
            queue_seconds_total=counters.queue_seconds,
            decode_seconds_total=counters.decode_seconds,
            images_total=counters.images,
            finished_total=counters.finished,
            failures=dict(counters.failures),
            resident=self._residency.names,
            loads_total=counters.loads,
            device=str(device.torch_device),
            dtype=str(device.dtype).removeprefix("torch."),
        )

    # -- everything below runs in the engine's thread ----------------------------------------------------------

    def _main(self) -> None:
        try:
            device = open_device(self._settings)
        except Exception as error:
            self._end(f"the device could not be opened: {error}")
            self._opened.set_exception(error)
            return
        self._opened.set_result(device)
        reason = "the engine was stopped"
        try:
            while self._read_mailbox():
                batch = self._schedule()
                if batch is not None:
                    self._run_and_settle(batch)
        except Exception as error:  # the last line of defence: the thread is over, and everybody is told why
            logger.exception("the engine's thread ended")
            reason = f"the engine's thread ended: {type(error).__name__}: {error}"
        self._end(reason)

    def _read_mailbox(self) -> bool:
        """Take what has come; wait only while there is nothing to do. False ends the loop."""
        while True:
            idle = not self._active and not self._waiting
            try:
                message = self._mailbox.get(timeout=_IDLE_PROBE_S) if idle else self._mailbox.get_nowait()
            except queue.Empty:
                if not idle:
                    return True
                self._probe_device()
                continue
            match message:
                case _Submit(ticket):
                    self._waiting.append(ticket)
                case _Cancel(lane_id):
                    for ticket in self._tickets():
                        if ticket.request.lane_id == lane_id:
                            self._fail(ticket, Cancelled("cancelled"))
                case _Load(checkpoint, done):
                    self._preload(checkpoint, done)
                case _Stop():
                    return False

    def _schedule(self) -> Batch[Lane] | None:
        """Expire, admit, pick."""
        now = time.monotonic()
        for ticket in self._tickets():
            if now > ticket.deadline:
                self._fail(ticket, DeadlineExceeded(f"not finished within {ticket.request.timeout_s:g} s"))
        loads = self._counters.loads
        while loads == self._counters.loads:  # after a load, those that are loaded already take a step first
            admitted = self._next_ticket(now)
            if admitted is None:
                break
            self._admit(admitted)
        return self._batcher.pick(self._active)

    def _next_ticket(self, now: float) -> Ticket | None:
        return self._admission.next_ticket(
            self._waiting,
            self._active,
            loaded=self._residency.__contains__,
            can_load=self._residency.can_load(self._in_use()),
            now=now,
        )

    def _admit(self, ticket: Ticket) -> None:
        """Load what the ticket needs, and make it a lane."""
        checkpoint = ticket.request.checkpoint
        try:
            if checkpoint not in self._residency:
                self._residency.load(checkpoint, self._in_use())
            lane = prepare_lane(ticket, self._residency[checkpoint])
        except torch.OutOfMemoryError as error:
            self._fail(ticket, OutOfDeviceMemory(f"no device memory to start: {error}"))
        except DarkroomError as error:
            self._fail(ticket, error)
        except torch.AcceleratorError:
            raise
        except Exception as error:  # one request's trouble is not to end the engine for everybody
            logger.exception("lane %s could not be started", ticket.request.lane_id)
            self._fail(ticket, DarkroomError(f"the image could not be started: {type(error).__name__}"))
        else:
            self._waiting.remove(ticket)
            self._active.append(lane)
            self._counters.queue_seconds += lane.admitted - ticket.submitted

    def _run_and_settle(self, batch: Batch[Lane]) -> None:
        """One step for a batch; on failure the same step again in halves, so that only a culprit fails."""
        started = time.perf_counter()
        denoiser = self._residency[batch.lanes[0].request.checkpoint]
        failure: Exception | None = None
        try:
            outputs = denoiser.predict(batch)
            latents = denoiser.update(batch.lanes, outputs)
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
        self._count(batch, seconds)
        self._settle(batch, denoiser, outputs, latents, finite)

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
            self._fail(lane.ticket, _lane_error(error))
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
        latents: torch.Tensor,
        finite: list[bool],
    ) -> None:
        """Advance, report, finish or fail each lane."""
        done: list[Lane] = []
        for index, lane in enumerate(batch.lanes):
            if not finite[index]:
                self._fail(lane.ticket, NumericalFailure(f"the latents are not finite after step {lane.step + 1}"))
                continue
            progress = self._progress(lane, denoiser, outputs[index])
            lane.advance(latents[index], outputs[index])
            if lane.finished:
                done.append(lane)
            if progress is not None:
                self._tell(lane.ticket, progress)
        if done:
            self._finish(done, denoiser)

    def _progress(self, lane: Lane, denoiser: Denoiser, output: torch.Tensor) -> Progress | None:
        """What to report of the step about to be taken, if it is time to report."""
        step, steps = lane.step + 1, len(lane.table.steps)
        every = lane.request.preview_every
        preview = None
        if every and step % every == 0 and step < steps:
            preview = denoiser.preview(lane.current.timestep, denoiser.model_inputs([lane])[0], output)
        now = time.monotonic()
        if preview is None and step < steps and now - lane.last_progress < self._settings.progress_interval_s:
            return None
        lane.last_progress = now
        return Progress(lane.request.lane_id, step, steps, preview)

    def _finish(self, lanes: list[Lane], denoiser: Denoiser) -> None:
        """Decode or hand over; a lane that can't be decoded fails alone."""
        started = time.perf_counter()
        for lane, outcome in finish_lanes(lanes, denoiser, self._settings):
            if isinstance(outcome, DarkroomError):
                self._fail(lane.ticket, outcome)
                continue
            self._counters.finished += 1
            self._counters.images += outcome.image is not None
            self._remove(lane.ticket)
            self._tell(lane.ticket, outcome)
        self._counters.decode_seconds += time.perf_counter() - started
        if not self._active:
            denoiser.forget_batch()

    def _fail(self, ticket: Ticket, error: DarkroomError) -> None:
        self._counters.failures[error.code] += 1
        self._remove(ticket)
        self._tell(ticket, error)

    def _remove(self, ticket: Ticket) -> None:
        self._waiting = [other for other in self._waiting if other is not ticket]
        self._active = [lane for lane in self._active if lane.ticket is not ticket]

    def _tell(self, ticket: Ticket, item: Event | Exception) -> None:
        try:
            ticket.sink(item)
        except RuntimeError:  # the listener's event loop is closed: nobody is left to hear of this lane
            logger.info("lane %s: its listener is gone", ticket.request.lane_id)
            self._remove(ticket)

    def _tickets(self) -> list[Ticket]:
        return [*(lane.ticket for lane in self._active), *self._waiting]

    def _count(self, batch: Batch[Lane], seconds: float) -> None:
        counters = self._counters
        counters.steps += 1
        counters.lane_steps += len(batch.lanes)
        counters.rows += batch.rows
        counters.padded_rows += batch.bucket - batch.rows
        counters.step_seconds += seconds

    def _preload(self, checkpoint: str, done: "Future[None]") -> None:
        if not done.set_running_or_notify_cancel():
            return
        try:
            if checkpoint not in self._residency:
                if not self._residency.can_load(self._in_use()):
                    raise DoesNotFit(f"no room for {checkpoint!r}: every resident checkpoint is in use")
                self._residency.load(checkpoint, self._in_use())
        except DarkroomError as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    def _in_use(self) -> set[str]:
        return {lane.request.checkpoint for lane in self._active}

    def _load_checkpoint(self, name: str) -> Denoiser:
        device = self._opened.result()
        weights = self._load(self._catalogue[name], device.torch_device, device.dtype)
        self._counters.loads += 1
        return Denoiser(weights, self._settings)

    def _probe_device(self) -> None:
        device = self._opened.result().torch_device
        if device.type == "cuda":
            torch.zeros(1, device=device).item()

    def _end(self, reason: str) -> None:
        """Tell everybody, those in the mailbox included, that there will be no more steps."""
        with self._lock:
            self._ended = reason
        for ticket in self._tickets():
            self._fail(ticket, EngineStopped(reason))
        while not self._mailbox.empty():
            message = self._mailbox.get()
            if isinstance(message, _Submit):
                self._fail(message.ticket, EngineStopped(reason))
            elif isinstance(message, _Load):
                message.done.set_exception(EngineStopped(reason))

    # -- called from any thread --------------------------------------------------------------------------------

    def _post(self, message: _Submit | _Load) -> None:
        with self._lock:
            if self._ended is not None:
                raise EngineStopped(self._ended)
            self._mailbox.put(message)

    def _spec(self, checkpoint: str) -> CheckpointSpec:
        if checkpoint not in self._catalogue:
            raise UnknownCheckpoint(f"this stage has no checkpoint {checkpoint!r}", "model")
        return self._catalogue[checkpoint]


def _lane_error(error: Exception) -> DarkroomError:
    """What a single lane is told; what nobody foresaw is told without its text, which may quote anything."""
    if isinstance(error, DarkroomError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return OutOfDeviceMemory(f"out of device memory with a single image in the batch: {error}")
    logger.error("a lane failed", exc_info=error)
    return DarkroomError(f"the engine failed on this image: {type(error).__name__}")
