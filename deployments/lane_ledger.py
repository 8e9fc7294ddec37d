"""The lanes that a replica has accepted: whether it takes one more, and which routers are to hear how busy it is."""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

from deployments.dispatch import NO_ROWS, GroupLoad, LaneGroup, ReplicaLoad, rows_of
from deployments.engine.types import DenoiseRequest

# a router that has lanes here is told of a changed load so often at most: their events carry it
_REPORT_PERIOD_S = 0.2


class LaneLedger:
    """Accepts and forgets lanes; belongs to the replica's event loop.

    Args:
        replica: Serve's unique id of this replica.
        limit: Most UNet rows that one step of a request's group takes.
        row_seconds: What a row of such a step takes at best; 0 while nobody knows.
    """

    def __init__(
        self, replica: str, limit: Callable[[DenoiseRequest], int], row_seconds: Callable[[DenoiseRequest], float]
    ) -> None:
        self._replica = replica
        self._limit = limit
        self._row_seconds = row_seconds
        self._lanes: dict[str, DenoiseRequest] = {}
        self._changes = 0
        self._told: dict[str, tuple[int, float]] = {}

    def accept(self, request: DenoiseRequest, *, bounded: bool) -> bool:
        """Take a lane, and say whether there was room for it. bounded: one without room isn't taken."""
        limit = self._limit(request)
        if bounded and not self.load(()).takes(rows_of(request), limit, request.priority):
            return False
        self._lanes[request.lane_id] = request
        self._changes += 1
        return True

    def remove(self, request: DenoiseRequest) -> None:
        """A lane has left."""
        del self._lanes[request.lane_id]
        self._changes += 1

    def load(self, checkpoints: tuple[str, ...], *, accepted: bool = True) -> ReplicaLoad:
        """What the replica holds. The arguments are ReplicaLoad's."""
        rows: defaultdict[LaneGroup, list[int]] = defaultdict(lambda: list(NO_ROWS))
        groups: dict[LaneGroup, GroupLoad] = {}
        for request in self._lanes.values():
            group = LaneGroup.of(request)
            rows[group][request.priority] += rows_of(request)
            groups[group] = GroupLoad(tuple(rows[group]), self._limit(request), self._row_seconds(request))
        return ReplicaLoad(self._replica, groups, checkpoints, accepted)

    def report(
        self, sender: str, request: DenoiseRequest, checkpoints: tuple[str, ...], *, accepted: bool = True
    ) -> ReplicaLoad:
        """What a router is told of the load now, in the stream of its lane `request`.

        Of that lane's group in any case, for a router that doesn't know the group's limit would send it again. The
        other arguments are ReplicaLoad's.
        """
        self._told[sender] = self._changes, time.monotonic()
        load = self.load(checkpoints, accepted=accepted)
        own = GroupLoad(NO_ROWS, self._limit(request), self._row_seconds(request))
        return replace(load, groups={LaneGroup.of(request): own, **load.groups})

    def owes(self, sender: str) -> bool:
        """A router is to be told of the load: it has changed since the last time, which is a while ago."""
        changes, told_at = self._told.get(sender, (-1, float("-inf")))
        return changes != self._changes and time.monotonic() - told_at >= _REPORT_PERIOD_S
