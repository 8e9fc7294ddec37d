"""Which lanes share the next UNet forward, by key, priority, fairness, due time, memory and measured step costs.

Pure: no torch, no threads, no clock. Lanes are chosen anew at every step, so a lane that isn't chosen is parked at a
step boundary and loses nothing.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from deployments.engine.batch import Batch, Batchable, BatchKey, bucket_for
from deployments.engine.scheduling.fair_share import FairShare
from deployments.engine.scheduling.step_costs import StepCosts

L = TypeVar("L", bound=Batchable)

STRETCH = 3.0  # a lane is due after so many times the seconds that its own work takes
OVERTAKING = 16  # of so many steps, by device time, one is led by a lane that higher priorities keep parked
_KEYS = 256  # keys of which the cost of a row is kept
_STEPS_BEFORE_GROWTH = 256  # good steps at a shrunk limit before twice the rows are tried again


class Batcher(Generic[L]):
    """Chooses batches: priority first, then least device time by tenant, then by shape, then the earliest due time.

    A lane is due at its submission plus a multiple of its own work. So a short one doesn't wait for long ones that came
    just before it, and a long one isn't overtaken for ever. Lanes of equal work go in the order of their arrival.

    Lanes of a lower priority than the first one join its step where they hardly slow it down. No priority starves:
    lanes below the highest one share a small part of the device's time, longest parked first.
    """

    def __init__(
        self, max_rows: int, reproducible_rows: int, fitting: Callable[[BatchKey], int] = lambda _: sys.maxsize
    ) -> None:
        """Create a batcher.

        Args:
            max_rows, reproducible_rows: as in EngineSettings, powers of two.
            fitting: the most rows of a key that the memory holds.
        """
        self._max_rows = max_rows
        self._reproducible_rows = reproducible_rows
        self._fitting = fitting
        self._limits: dict[BatchKey, int] = {}
        self._steps_since_shrink: dict[BatchKey, int] = {}
        self._tenants: FairShare[str] = FairShare()
        self._keys: FairShare[BatchKey] = FairShare()
        self._costs: StepCosts[BatchKey] = StepCosts()
        self.best_row_seconds: dict[BatchKey, float] = {}
        """What a row takes at best, of the keys that are or were stepped of late."""
        self._row_seconds = 0.0
        self._step_seconds = 0.0
        # device seconds so far; by arrival, what they were when a lane took its last step, or came
        self._clock = 0.0
        self._stepped: dict[int, float] = {}
        self._led_from_below = 0.0
        self._rows_led_from_below = 0
        self._decoded_from_below = 0.0
        self._decode_seconds = 0.0

    def pick(self, lanes: Sequence[L]) -> Batch[L]:
        """The next step's batch of the active lanes, of which there is at least one."""
        self._tenants.activate(lane.tenant for lane in lanes)
        self._keys.activate(lane.key for lane in lanes)
        self._stepped = {lane.arrival: self._stepped.get(lane.arrival, self._clock) for lane in lanes}
        row_seconds = {key: self._costs.row_seconds(key) for key in {lane.key for lane in lanes}}
        if len(self.best_row_seconds) > _KEYS:
            self.best_row_seconds = {key: seconds for key, seconds in row_seconds.items() if seconds}
        due = {lane.arrival: _due(lane, row_seconds) for lane in lanes}
        parked = self._parked_too_long(lanes, row_seconds)
        head = parked or min(
            lanes,
            key=lambda lane: (
                -lane.priority,
                self._tenants.seconds(lane.tenant),
                self._keys.seconds(lane.key),
                due[lane.arrival],
                lane.arrival,
            ),
        )
        together = self._fill(head, [lane for lane in lanes if lane.key == head.key], due)
        batch = self.batch_of(self._worthwhile(self._unslowed(together)))
        if parked is not None:
            self._rows_led_from_below = batch.bucket
        return batch

    def to_decode(self, undecoded: Sequence[L], active: Sequence[L]) -> L | None:
        """The lane that is decoded before the next step; None if the step goes first.

        By priority, then in their order. While lanes of a higher priority step, those below have a small part of the
        device's time, as for steps: images of a batch, which often end together, hold up no interactive one.
        """
        first = max(undecoded, key=lambda lane: lane.priority, default=None)
        if first is None or all(lane.priority <= first.priority for lane in active):
            return first
        if self._clock - self._decoded_from_below < OVERTAKING * self._decode_seconds:
            return None
        self._decoded_from_below = self._clock
        return first

    def charge_decode(self, seconds: float) -> None:
        """Remember what a decode took."""
        self._decode_seconds = seconds

    def batch_of(self, lanes: Sequence[L]) -> Batch[L]:
        """Lanes of one key as a batch, with its bucket."""
        rows = sum(lane.rows for lane in lanes)
        # (a lane with more rows than a pinned batch has is always alone, so that its bucket is always the same)
        least = self._reproducible_rows if lanes[0].key.pinned else 1
        return Batch(tuple(lanes), max(least, bucket_for(rows)))

    def limit(self, key: BatchKey) -> int:
        """The most rows that a batch of this key may have now."""
        ceiling = self._reproducible_rows if key.pinned else self._max_rows
        return min(self._limits.get(key, ceiling), ceiling, self._fitting(key))

    def shrink(self, key: BatchKey, rows: int) -> None:
        """After a step of `rows` rows ran out of memory: allow at most half of them, but two for one lane."""
        self._limits[key] = max(2, bucket_for(rows) // 2)
        self._steps_since_shrink[key] = 0

    def charge(self, batch: Batch[L], seconds: float) -> None:
        """Charge a step to its tenants, by their lanes' rows, and to its shape."""
        self._row_seconds = seconds / batch.rows
        self._step_seconds = seconds
        self._clock += seconds
        for lane in batch.lanes:
            self._stepped[lane.arrival] = self._clock
            self._tenants.charge(lane.tenant, self._row_seconds * lane.rows)
        key = batch.lanes[0].key
        self._keys.charge(key, seconds)
        self._costs.record(key, batch.bucket, seconds)
        self.best_row_seconds[key] = self._costs.row_seconds(key)
        if key in self._limits:
            self._steps_since_shrink[key] += 1
            if self._steps_since_shrink[key] >= _STEPS_BEFORE_GROWTH:
                self._limits[key] *= 2
                self._steps_since_shrink[key] = 0
                if self._limits[key] >= self._max_rows:
                    del self._limits[key], self._steps_since_shrink[key]

    def _parked_too_long(self, lanes: Sequence[L], row_seconds: Mapping[BatchKey, float]) -> L | None:
        """The lane below the highest priority that has been parked longest, if it is its turn to lead a step."""
        highest = max(lane.priority for lane in lanes)
        below = [lane for lane in lanes if lane.priority < highest]
        if not below or not self._step_seconds:
            return None
        lane = min(below, key=lambda lane: (self._stepped[lane.arrival], lane.arrival))
        parked = self._clock - max(self._stepped[lane.arrival], self._led_from_below)
        # what the step that it would lead takes: by its rows, as one stalled step isn't to hold up the next for long
        seconds = max(self._step_seconds, row_seconds[lane.key] * max(lane.rows, self._rows_led_from_below))
        if parked < OVERTAKING * seconds:
            return None
        self._led_from_below = self._clock
        return lane

    def _unslowed(self, lanes: list[L]) -> list[L]:
        """Without the lanes of a lower priority than the first one's that would slow it down, by the measured costs."""
        first = lanes[0]
        urgent = [lane for lane in lanes if lane.priority >= first.priority]
        if first.key.pinned or len(urgent) == len(lanes):
            return lanes
        rows = sum(lane.rows for lane in urgent)
        lower = [lane for lane in lanes if lane.priority < first.priority]
        return urgent + _first(lower, self._costs.unslowed(first.key, rows) - rows)

    def _worthwhile(self, lanes: list[L]) -> list[L]:
        """The first lanes, one at least, as many as are worth running together by the measured costs."""
        key = lanes[0].key
        if key.pinned:
            return lanes
        return _first(lanes, max(lanes[0].rows, self._costs.worthwhile(key, sum(lane.rows for lane in lanes))))

    def _fill(self, head: L, candidates: list[L], due: Mapping[int, float]) -> list[L]:
        """Lanes of one key up to its limit, the head first; tenants take turns within a batch too."""
        room = self.limit(head.key)
        taken: dict[str, int] = {}  # rows by tenant, charged in advance at the price of the last step
        chosen = [head]
        room -= head.rows
        taken[head.tenant] = head.rows
        remaining = [lane for lane in candidates if lane is not head]
        while remaining:
            best = min(
                remaining,
                key=lambda lane: (
                    -lane.priority,
                    self._tenants.seconds(lane.tenant) + self._row_seconds * taken.get(lane.tenant, 0),
                    due[lane.arrival],
                    lane.arrival,
                ),
            )
            remaining.remove(best)
            if best.rows > room:
                continue
            chosen.append(best)
            room -= best.rows
            taken[best.tenant] = taken.get(best.tenant, 0) + best.rows
        return chosen


def _due(lane: Batchable, row_seconds: Mapping[BatchKey, float]) -> float:
    return lane.since + STRETCH * lane.rows * row_seconds[lane.key] * lane.evaluations


def _first(lanes: Sequence[L], room: int) -> list[L]:
    """The first lanes that fit into `room` rows."""
    chosen = []
    for lane in lanes:
        if lane.rows <= room:
            chosen.append(lane)
            room -= lane.rows
    return chosen
