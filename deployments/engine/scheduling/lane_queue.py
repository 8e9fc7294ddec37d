"""The waiting tickets and the active lanes, and the reports to their listeners. In the engine's thread."""

import logging
import time
from collections.abc import Callable

from deployments.engine.errors import DarkroomError
from deployments.engine.lanes.lane import Lane, Ticket
from deployments.engine.memory.weight_pool import DeviceWeights
from deployments.engine.stats import EngineCounters
from deployments.engine.types import DenoiseResult, Event, Pixels

logger = logging.getLogger(__name__)


class LaneQueue:
    """The lanes of an engine, before and after their first step; reports to whoever submitted them.

    Attributes:
        waiting: tickets, in the order of their submission.
        active: lanes that take steps, in the order of their admission.
        undecoded: lanes that have taken their steps, in that order, and are images once they are decoded.
    """

    def __init__(self, counters: EngineCounters, progress_interval_s: float, forget: Callable[[Lane], None]) -> None:
        """Create a queue; `progress_interval_s` as in EngineSettings, `forget` is called with each lane that ends."""
        self.waiting: list[Ticket] = []
        self.active: list[Lane] = []
        self.undecoded: list[Lane] = []
        self._counters = counters
        self._progress_interval_s = progress_interval_s
        self._forget = forget

    @property
    def lanes(self) -> list[Lane]:
        """The lanes on the device."""
        return [*self.active, *self.undecoded]

    @property
    def tickets(self) -> list[Ticket]:
        """The tickets of the lanes on the device, and the waiting ones."""
        return [*(lane.ticket for lane in self.lanes), *self.waiting]

    @property
    def checkpoints(self) -> set[str]:
        """Names of the checkpoints that lanes use."""
        return {lane.request.checkpoint for lane in self.lanes}

    @property
    def weights(self) -> set[DeviceWeights]:
        """The weights that the lanes need on the device besides their checkpoints."""
        return {weights for lane in self.lanes for weights in lane.weights}

    def admit(self, lane: Lane) -> None:
        """Move a lane from the waiting tickets to the active lanes."""
        self.waiting.remove(lane.ticket)
        self.active.append(lane)
        self._counters.queue_seconds_total += lane.admitted - lane.ticket.submitted
        self._counters.resumed_steps_total += lane.step

    def await_decode(self, lane: Lane) -> None:
        """Move a lane that has taken its last step from the active lanes to those that wait to be decoded."""
        self.active.remove(lane)
        self.undecoded.append(lane)

    def report(self, lane: Lane, preview: Pixels | None) -> None:
        """Report a lane's progress, if it is time to, or if there is a preview or a snapshot to go with it."""
        now = time.monotonic()
        state = lane.state() if lane.owes_state else None
        due = lane.finished or now - lane.last_progress >= self._progress_interval_s
        if due or preview is not None or state is not None:
            lane.last_progress = now
            self._report(lane.ticket, lane.progress(preview, state))

    def finish(self, ticket: Ticket, result: DenoiseResult) -> None:
        """Remove a lane and report its result."""
        self._counters.finished_total += 1
        self._counters.images_total += result.image is not None
        self._remove(ticket)
        self._report(ticket, result)

    def fail(self, ticket: Ticket, error: DarkroomError) -> None:
        """Remove a lane and report why it failed."""
        self._counters.failures[error.code] += 1
        self._remove(ticket)
        self._report(ticket, error)

    def report_states(self) -> None:
        """Report the snapshots of the lanes that will take no more steps here."""
        for lane in self.active:
            state = lane.state() if lane.request.state_every else None
            if state is not None:
                self._report(lane.ticket, lane.progress(None, state))

    def _remove(self, ticket: Ticket) -> None:
        self.waiting = [other for other in self.waiting if other is not ticket]
        leaving = [lane for lane in self.lanes if lane.ticket is ticket]
        self.active = [lane for lane in self.active if lane.ticket is not ticket]
        self.undecoded = [lane for lane in self.undecoded if lane.ticket is not ticket]
        for lane in leaving:
            self._forget(lane)

    def _report(self, ticket: Ticket, item: Event | Exception) -> None:
        try:
            ticket.sink(item)
        except RuntimeError:  # the listener's event loop is closed: nobody is left to hear of this lane
            logger.info("lane %s: its listener is gone", ticket.request.lane_id)
            self._remove(ticket)
