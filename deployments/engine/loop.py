"""The loop: schedule -> run -> settle, in the one thread that owns the device.

Lanes join and leave at any step. Callers are in other threads: the loop reads their messages.
"""

import functools
import logging
import time
from collections.abc import Collection, Mapping, MutableMapping
from concurrent.futures import Future
from typing import Any

import torch

from deployments.engine.batch import Batch, BatchKey
from deployments.engine.checkpoints.denoiser_weights import DenoiserTensors, DenoiserWeights
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.compile.forwards import CompiledForwards
from deployments.engine.compile.graph_cache import GraphCache
from deployments.engine.conditioning.registry import Conditioners
from deployments.engine.config import EngineSettings
from deployments.engine.denoising.denoiser import Denoiser
from deployments.engine.device import Device, as_darkroom_error
from deployments.engine.errors import (
    Cancelled,
    DarkroomError,
    DeadlineExceeded,
    EngineStopped,
    NumericalFailure,
    Withdrawn,
)
from deployments.engine.lanes.finish import decode, decoded_with, hand_over
from deployments.engine.lanes.lane import Lane, LaneFiles, Ticket
from deployments.engine.lanes.prepare import prepare_lane
from deployments.engine.mailbox import Cancel, Load, Mailbox, Retain, Stop, Submit, Traced, Withdraw
from deployments.engine.memory.plan import MemoryPlan
from deployments.engine.memory.weight_pool import DeviceWeights
from deployments.engine.residency.device_cache import Residency
from deployments.engine.residency.host_cache import Reader
from deployments.engine.residency.weight_loader import WeightLoader
from deployments.engine.scheduling.admission import Admission
from deployments.engine.scheduling.batcher import Batcher
from deployments.engine.scheduling.lane_queue import LaneQueue
from deployments.engine.stats import EngineCounters
from deployments.engine.types import DenoiseRequest, Pixels
from deployments.engine.vae.requested import RequestedVaes

logger = logging.getLogger(__name__)

_IDLE_PROBE_S = 5.0  # how often an idle engine touches its device, to notice that it was lost


class StepLoop:
    """The engine's thread, once its device is open.

    Attributes:
        schedules: scheduler configs of the checkpoints loaded so far, by name.
    """

    def __init__(
        self,
        settings: EngineSettings,
        catalogue: MutableMapping[str, CheckpointSpec],
        read: Reader,
        mailbox: Mailbox,
        device: Device,
        memory: MemoryPlan,
        conditioners: Conditioners,
        graphs: GraphCache | None,
        vae_room: int = 0,
    ) -> None:
        """Create the loop; `run` runs it.

        Args:
            settings: of the engine.
            catalogue: checkpoints by name; what requests bring is added, and taken out again.
            read: reads a checkpoint's tensors.
            mailbox: messages of other threads.
            device: where it computes.
            memory: what fits the device.
            conditioners: one for each kind of conditioning.
            graphs: compiled forwards; None to compile nothing.
            vae_room: bytes of the device for VAEs that requests name.
        """
        self._settings = settings
        self._mailbox = mailbox
        self._catalogue = catalogue
        self._added: set[str] = set()  # what requests brought
        self._leaving: set[str] = set()  # of these what is to be forgotten
        self.device = device
        self.memory = memory
        self._weights = WeightLoader(settings, catalogue, read, device, memory.policy)
        self.schedules: dict[str, Mapping[str, Any]] = {}
        self.compiled = (
            None
            if graphs is None
            else CompiledForwards(graphs, channels_last=settings.channels_last, threads=device.row_threads.number)
        )
        self.counters = EngineCounters()
        self.queue = LaneQueue(self.counters, settings.progress_interval_s, self._forget)
        self.residency = Residency(settings.resident_checkpoints, self._read_checkpoint, self._place_checkpoint)
        self._conditioners = conditioners
        self._vaes = RequestedVaes(vae_room, device, settings, memory.tiled)
        self._batcher: Batcher[Lane] = Batcher(settings.max_rows, settings.reproducible_rows, self._fitting_rows)
        self._admission = Admission(settings.max_lanes, settings.swap_patience_s)

    @property
    def row_seconds(self) -> Mapping[BatchKey, float]:
        """Seconds that a row of a step takes at best."""
        return self._batcher.best_row_seconds

    def run(self) -> None:
        """Take steps until a Stop message or an error that is no lane's own; then fail every lane that is left."""
        reason = "the engine was stopped"
        try:
            while self._read_mailbox():
                self._take_turn()
            while self.queue.undecoded:  # a snapshot says what the next step begins with: they have none to take
                self._decode(self.queue.undecoded[0])
            self.queue.report_states()
        except Exception as error:  # the last line of defence: the thread is over, and everybody is told why
            logger.exception("the engine's thread ended")
            reason = f"the engine's thread ended: {type(error).__name__}: {error}"
        self._end(reason)
        self.device.row_threads.close()

    def _read_mailbox(self) -> bool:
        """Handle the messages that have come; wait only while there is nothing to do. False ends the loop."""
        while True:
            if self._leaving:
                self._forget_idle()
            idle = not self.queue.lanes and not self._startable()
            match self._mailbox.take(timeout_s=_IDLE_PROBE_S if idle else 0.0):
                case None if idle:
                    self.device.probe()
                case None:
                    return True
                case Submit(ticket):
                    self._take_in(ticket.request)
                    self.queue.waiting.append(ticket)
                case Cancel(lane_id):
                    for ticket in self.queue.tickets:
                        if ticket.request.lane_id == lane_id:
                            self.queue.fail(ticket, Cancelled("cancelled"))
                case Withdraw(lane_id):
                    self._withdraw(lane_id)
                case Load(checkpoint, done):
                    self._preload(checkpoint, done)
                case Retain(added):
                    self._leaving = self._added - added
                case Traced():
                    pass  # it has woken this thread
                case Stop():
                    return False

    def _take_in(self, request: DenoiseRequest) -> None:
        """Learn of a checkpoint that a request brings."""
        name, added = request.checkpoint, request.added
        if added is not None and name not in self._catalogue:
            self._catalogue[name] = added.spec
            self.memory.add(name, added.allowed)
            self._added.add(name)

    def _forget_idle(self) -> None:
        """Give back what checkpoints take that are to be forgotten, of those that no lane needs any more."""
        for name in self._leaving - {ticket.request.checkpoint for ticket in self.queue.tickets}:
            del self._catalogue[name]
            self.residency.drop(name)
            self._weights.forget(name)
            self.memory.remove(name)
            self.schedules.pop(name, None)
            self._added.remove(name)
            self._leaving.remove(name)

    def _withdraw(self, lane_id: str) -> None:
        """A lane that has taken a step here stays: the work would be lost, or would have to be moved."""
        unstepped = [lane.ticket for lane in self.queue.active if lane.step == 0]
        for ticket in [*self.queue.waiting, *unstepped]:
            if ticket.request.lane_id == lane_id:
                self.queue.fail(ticket, Withdrawn("withdrawn before its first step"))

    def _take_turn(self) -> None:
        """Decode images, or else take a step: whoever is next by priority. Between the two the mailbox is read."""
        self._admit_tickets()
        lane = self._batcher.to_decode(self.queue.undecoded, self.queue.active)
        if lane is not None:
            self._decode(lane)
        elif self.queue.active:
            self._run_and_settle(self._batcher.pick(self.queue.active))

    def _admit_tickets(self) -> None:
        """Fail lanes past their deadline, make lanes of the tickets that there is room for."""
        now = time.monotonic()
        for ticket in self.queue.tickets:
            if now > ticket.deadline:
                self.queue.fail(ticket, DeadlineExceeded(f"not finished within {ticket.request.timeout_s:g} s"))
        loads = self.counters.loads_total
        while loads == self.counters.loads_total:  # after a load, those that are loaded already take a step first
            admitted = self._next_ticket(now)
            if admitted is None:
                break
            self._admit(admitted)

    def _startable(self) -> list[Ticket]:
        """The waiting tickets whose sampler table is traced and whose files are read.

        A ticket whose conditionings or VAE don't fit the device holds up later ones that have any, so that its turn
        comes.
        """
        startable, held_up = [], False
        in_use = self.queue.weights
        for ticket in self.queue.waiting:
            if not all(needed.done() for needed in ticket.needed):
                continue
            files = ticket.usable_files
            held_up = held_up or not self._has_room(ticket.request, files, in_use)
            if not (held_up and (files.conditioning or files.vae)):
                startable.append(ticket)
        return startable

    def _has_room(self, request: DenoiseRequest, files: LaneFiles, in_use: Collection[DeviceWeights]) -> bool:
        """Whether they fit beside those that lanes use; True if they never fit."""
        conditioned = self._conditioners.has_room(files.conditioning, in_use)
        return conditioned and self._vaes.has_room(request, files.vae, in_use)

    def _next_ticket(self, now: float) -> Ticket | None:
        return self._admission.next_ticket(
            self._startable(),
            self.queue.lanes,
            loaded=self.residency.__contains__,
            can_load=self.residency.can_load(self.queue.checkpoints),
            now=now,
        )

    def _admit(self, ticket: Ticket) -> None:
        """Load the ticket's checkpoint and make a lane of the ticket; fail it if either fails."""
        checkpoint = ticket.request.checkpoint
        try:
            if checkpoint not in self.residency:
                self.residency.load(checkpoint, self.queue.checkpoints)
            self.memory.check(ticket.request)  # what it needs may be known only now
            denoiser = self.residency[checkpoint]
            lane = prepare_lane(ticket, denoiser, self._settings, self._conditioners, self._vaes, self.queue.weights)
        except torch.AcceleratorError:
            raise
        except Exception as error:  # one request's trouble is not to end the engine for everybody
            self.queue.fail(ticket, as_darkroom_error(error, "the image could not be started"))
        else:
            self.queue.admit(lane)

    def _run_and_settle(self, batch: Batch[Lane]) -> None:
        """Take one step for a batch; if that fails, take it again in halves, so that only the culprit fails."""
        started = time.perf_counter()
        denoiser = self.residency[batch.lanes[0].request.checkpoint]
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
        self.counters.step(lanes=len(batch.lanes), rows=batch.rows, bucket=batch.bucket, seconds=seconds)
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
            self.queue.fail(lane.ticket, as_darkroom_error(error, "a step failed with this image alone in the batch"))
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
        """Advance, report or fail each lane; one that was the last step of is handed over, or waits to be decoded.

        Args:
            batch: whose step was taken.
            denoiser: that took it.
            outputs: (lanes, channels, height, width), float32, guided model outputs.
            returned: likewise, the latents before what is kept of an image was put back.
            latents: likewise, the next latents.
            finite: whether a lane's next latents are finite, by lane.
        """
        for index, lane in enumerate(batch.lanes):
            if not finite[index]:
                self.queue.fail(lane.ticket, NumericalFailure(f"the latents are not finite after step {lane.step + 1}"))
                continue
            preview = self._preview(lane, denoiser, outputs[index])
            lane.advance(latents[index], outputs[index], returned[index])
            self.queue.report(lane, preview)
            if lane.finished and lane.request.output == "latents":
                self.queue.finish(lane.ticket, hand_over(lane))
            elif lane.finished:
                self.queue.await_decode(lane)

    def _preview(self, lane: Lane, denoiser: Denoiser, output: torch.Tensor) -> Pixels | None:
        """The preview of the step about to be taken; None if none is due."""
        step, every = lane.step + 1, lane.request.preview_every
        if not every or step % every or step == lane.evaluations:
            return None
        try:
            return denoiser.preview(lane.current.timestep, denoiser.model_inputs([lane])[0], output)
        except torch.OutOfMemoryError:
            logger.warning("lane %s: no device memory for a preview, it goes on without", lane.request.lane_id)
            return None

    def _decode(self, first: Lane) -> None:
        """Decode a lane that has taken its steps, with others of its kind; one that can't be decoded fails alone."""
        started = time.perf_counter()
        denoiser = self.residency[first.request.checkpoint]
        lanes = decoded_with(first, self.queue.undecoded)[: self._fitting_images(first.key)]
        for lane, outcome in decode(lanes, denoiser):
            if isinstance(outcome, DarkroomError):
                self.queue.fail(lane.ticket, outcome)
            else:
                self.queue.finish(lane.ticket, outcome)
        seconds = time.perf_counter() - started
        self._batcher.charge_decode(seconds)
        self.counters.decode_seconds_total += seconds

    def _preload(self, checkpoint: str, done: "Future[None]") -> None:
        if not done.set_running_or_notify_cancel():
            return
        try:
            if checkpoint not in self.residency:
                self.residency.load(checkpoint, self.queue.checkpoints)
        except Exception as error:  # a checkpoint that can't be loaded is not to end the engine for the others
            done.set_exception(as_darkroom_error(error, f"checkpoint {checkpoint!r} could not be loaded"))
            if isinstance(error, torch.AcceleratorError):
                raise
        else:
            done.set_result(None)

    def _forget(self, lane: Lane) -> None:
        self.residency[lane.request.checkpoint].forget(lane)

    def _fitting_rows(self, key: BatchKey) -> int:
        return self.memory.rows(key.checkpoint, key.height * key.width)

    def _fitting_images(self, key: BatchKey) -> int:
        return self.memory.images(key.checkpoint, key.height * key.width)

    def _read_checkpoint(self, name: str) -> DenoiserTensors:
        self.memory.check_loading(name)
        return self._weights.read(name)

    def _place_checkpoint(self, name: str, read: DenoiserTensors, models: DenoiserWeights | None) -> Denoiser:
        started = time.perf_counter()
        weights, previews = self._weights.place(name, read, models)
        row_threads = self.device.row_threads
        tiled = functools.partial(self.memory.tiled, name)
        denoiser = Denoiser(weights, previews, self._settings, row_threads, self.compiled, tiled)
        self.schedules[name] = weights.scheduler_config
        self.counters.load(time.perf_counter() - started, in_place=models is not None)
        return denoiser

    def _end(self, reason: str) -> None:
        """Fail every lane and every unread message with EngineStopped."""
        unread = self._mailbox.close(reason)
        for ticket in self.queue.tickets:
            self.queue.fail(ticket, EngineStopped(reason))
        for message in unread:
            if isinstance(message, Submit):
                self.queue.fail(message.ticket, EngineStopped(reason))
            elif isinstance(message, Load) and message.done.set_running_or_notify_cancel():
                message.done.set_exception(EngineStopped(reason))
