"""Lanes that wait in front of a stage, in the order that holds: class, then tenants by device time, then due time."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from deployments.dispatch import LaneGroup, rows_of
from deployments.engine.scheduling.batcher import STRETCH
from deployments.engine.scheduling.fair_share import FairShare
from deployments.engine.types import DenoiseRequest, Priority

# what a tenant is charged for a lane of which nobody knows the cost; device seconds
_UNKNOWN_S = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class WaitingLane:
    """A lane on its way to a replica.

    Attributes:
        lane_id: Unique among those in flight.
        group: What it must have in common with whoever shares its steps.
        rows: UNet rows of one of its steps.
        priority, tenant: As in DenoiseRequest.
        due: When it should be done, as the engine orders lanes of equal rank; monotonic seconds.
        since: When it came to this router's backlog; monotonic seconds.
        work_s: Device seconds that it is expected to take; 0 while nobody knows.
        arrival: Grows with each lane.
    """

    lane_id: str
    group: LaneGroup
    rows: int
    priority: Priority
    tenant: str
    due: float
    since: float
    work_s: float
    arrival: int

    @classmethod
    def of(cls, request: DenoiseRequest, work_s: float, now: float, arrival: int) -> "WaitingLane":
        """The lane of a request."""
        return cls(
            request.lane_id,
            LaneGroup.of(request),
            rows_of(request),
            request.priority,
            request.tenant,
            now - request.waited_s + STRETCH * work_s,
            now,
            work_s,
            arrival,
        )


class _Line(NamedTuple):
    """Lanes that only their due time tells apart: whoever is first of them goes first."""

    priority: Priority
    tenant: str
    group: LaneGroup


class Backlog:
    """The lanes of one stage that wait in this router. Tenants are charged when their lanes get a place."""

    def __init__(self) -> None:
        self._lines: defaultdict[_Line, list[tuple[float, int, WaitingLane]]] = defaultdict(list)
        self._waiting: set[WaitingLane] = set()
        self._by_checkpoint: Counter[str] = Counter()
        self._tenants: FairShare[str] = FairShare()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, lane: WaitingLane) -> bool:
        """A lane waits from now on. Returns whether it is the first of its class, tenant and group."""
        self._waiting.add(lane)
        self._by_checkpoint[lane.group.checkpoint] += 1
        line = self._lines[_Line(lane.priority, lane.tenant, lane.group)]
        heapq.heappush(line, (lane.due, lane.arrival, lane))
        self._forget_gone(line)
        return line[0][2] is lane

    def remove(self, lane: WaitingLane) -> None:
        """A lane waits no more, if it has."""
        if lane in self._waiting:
            self._waiting.remove(lane)
            self._by_checkpoint[lane.group.checkpoint] -= 1

    def take(self, lane: WaitingLane) -> None:
        """A lane that `heads` named has got a place: its tenant is charged."""
        self.remove(lane)
        self._tenants.charge(lane.tenant, lane.work_s or _UNKNOWN_S)

    @property
    def by_checkpoint(self) -> Mapping[str, int]:
        """Lanes that wait, by the checkpoint that they need."""
        return self._by_checkpoint

    def _forget_gone(self, lanes: list[tuple[float, int, WaitingLane]]) -> None:
        while lanes and lanes[0][2] not in self._waiting:
            heapq.heappop(lanes)

    def heads(self) -> list[WaitingLane]:
        """The first lane of each line, in the order in which they are to get places."""
        for line, lanes in list(self._lines.items()):
            self._forget_gone(lanes)
            if not lanes:
                del self._lines[line]
        self._tenants.activate(line.tenant for line in self._lines)
        return sorted(
            (lanes[0][2] for lanes in self._lines.values()),
            key=lambda lane: (-lane.priority, self._tenants.seconds(lane.tenant), lane.due, lane.arrival),
        )
