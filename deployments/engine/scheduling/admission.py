"""Which ticket gets a place on the device next: of a loaded checkpoint, or of one that must be loaded first.

Pure: no torch, no clock of its own.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from deployments.engine.lanes.lane import Lane, Ticket

# a ticket that has waited so long for a checkpoint to be loaded is overtaken by nothing that came later
_STARVING_S = 30.0


class Admission:
    """Priority first, then the tenant with fewest lanes, then the longest wait; loaded checkpoints go first for a time.

    No ticket starves: a priority without a lane always gets its first one, and a ticket that waits for a checkpoint is
    overtaken for a bounded time.
    """

    def __init__(self, max_lanes: int, swap_patience_s: float) -> None:
        """Both as in EngineSettings; max_lanes bounds the lanes of the same or a higher priority."""
        self._max_lanes = max_lanes
        self._patience = swap_patience_s

    def next_ticket(
        self,
        waiting: Sequence[Ticket],
        active: Sequence[Lane],
        loaded: Callable[[str], bool],
        can_load: bool,
        now: float,
    ) -> Ticket | None:
        """The ticket to admit now, or None.

        Args:
            waiting: tickets that could start.
            active: lanes on the device.
            loaded: whether a checkpoint is on the device.
            can_load: whether another one could be loaded: there is room, or an idle one to evict.
            now: monotonic seconds.
        """
        lanes = Counter(lane.tenant for lane in active)
        starving_since = min(
            (
                ticket.submitted
                for ticket in waiting
                if now - ticket.submitted > max(_STARVING_S, self._patience) and not loaded(ticket.request.checkpoint)
            ),
            default=float("inf"),
        )
        blocked_since: float | None = None

        def order(ticket: Ticket) -> tuple[int, int, float, int]:
            return -ticket.request.priority, lanes[ticket.request.tenant], ticket.since, ticket.arrival

        for ticket in sorted(waiting, key=order):
            if ticket.submitted > starving_since or not self._has_place(ticket, active):
                continue
            if not loaded(ticket.request.checkpoint):
                if can_load:
                    return ticket
                blocked_since = ticket.submitted if blocked_since is None else min(blocked_since, ticket.submitted)
            elif blocked_since is None or now - blocked_since <= self._patience:
                return ticket
        return None

    def _has_place(self, ticket: Ticket, active: Sequence[Lane]) -> bool:
        priority = ticket.request.priority
        at_least = sum(lane.priority >= priority for lane in active)
        return at_least < self._max_lanes or not any(lane.priority == priority for lane in active)
